"""One fine-tuning step: keras_bert, KerasHub, Model Garden and Hugging Face on PyTorch.

    python benchmarks/training_step.py [--quick] [--cases=minilm-32,minilm-128,base-128]

Question: how long does a step take (forward, backward, clipping by the global norm, AdamW), with the same sizes, batch
and token ids, dropout 0.1, and how much memory? Weights are random: speed does not depend on them. bfloat16 is a
`mixed_bfloat16` policy in Keras and autocast in PyTorch; weights stay float32, but for `pure`, where PyTorch keeps them
in bfloat16 too. Model Garden needs an environment of its own: GARDEN_PYTHON names its interpreter.
`--quick` measures the first case only, few times, and writes nothing.

Expected: no slower than the fastest peer at either length and precision.
"""

import argparse
import os
from collections.abc import Callable, Mapping
from typing import Any

import turns

VOCABULARY, RATE, DECAY = 30522, 5e-5, 0.01
SIZES = {"mini": (4, 256, 4, 1024, 32), "minilm": (6, 384, 12, 1536, 32), "base": (12, 768, 12, 3072, 8)}
"""Layers, hidden size, heads, feed-forward size, batch."""
PRECISIONS = ("float32", "bfloat16")
Step = Callable[[], float]
Peers = Mapping[str, Callable[[str, int, str], Step]]
"""By name: size, length, precision -> a step that returns the loss."""


def rows(batch: int, length: int) -> tuple:
    """Token ids and bool mask `[batch, length]`, and labels; rows are half to all full."""
    import numpy as np

    random = np.random.default_rng(0)
    mask = np.arange(length) < random.integers(length // 2, length + 1, (batch, 1))
    mask[0] = True
    return random.integers(1000, VOCABULARY, mask.shape) * mask, mask, random.integers(0, 2, batch)


def encoder_of(size: str) -> Any:
    """Our config of an encoder of this size."""
    from keras_bert.config import EncoderConfig

    layers, hidden, heads, inner, _ = SIZES[size]
    return EncoderConfig(
        vocab_size=VOCABULARY,
        hidden_dim=hidden,
        num_layers=layers,
        num_heads=heads,
        intermediate_dim=inner,
        activation="gelu",
    )


def repeated(make: Callable[[str | None], Any], batch: Any, precision: str) -> Step:
    """A step of our trainer on this batch, again and again; `make` gives a task of a precision."""
    import tensorflow as tf

    from keras_bert import OptimizerConfig, TrainConfig
    from keras_bert.training.step import Trainer

    config = TrainConfig(
        mixed_precision="none" if precision == "float32" else precision,
        train_batch_size=len(tf.nest.flatten(batch)[0]),
    )
    optimizer = OptimizerConfig(learning_rate=RATE, weight_decay=DECAY)
    trainer = Trainer(make, make(None).network, optimizer, config, 1_000_000)
    # Sizes are unknown to the graph, as they are in a real run.
    specs = tf.nest.map_structure(lambda x: tf.TensorSpec([None] * x.ndim, x.dtype), batch)

    def endless():
        while True:
            yield batch

    batches = tf.data.Dataset.from_generator(endless, output_signature=specs)
    source = trainer.take(trainer.strategy.experimental_distribute_dataset(batches))

    def step() -> float:
        trainer.train(next(source))
        return trainer.flush()["loss"]

    return step


def ours(size: str, length: int, precision: str) -> Step:
    from keras_bert.config import HeadConfig
    from keras_bert.tasks.network import Network
    from keras_bert.training.finetune import HeadTask

    shape, head, count = encoder_of(size), HeadConfig(labels=("0", "1")), SIZES[size][-1]
    ids, mask, labels = rows(count, length)
    batch = {
        "features": {"token_ids": ids.astype("int32"), "padding_mask": mask, "segment_ids": ids.astype("int32") * 0},
        "labels": labels.astype("int32"),
        "weights": (labels * 0 + 1).astype("float32"),
    }
    return repeated(lambda policy: HeadTask(Network(shape, head, dtype=policy)), batch, precision)


def backbone_of(size: str, precision: str) -> Any:
    """KerasHub's encoder of this size."""
    import keras
    import keras_hub

    keras.config.set_dtype_policy("float32" if precision == "float32" else "mixed_bfloat16")
    layers, hidden, heads, inner, _ = SIZES[size]
    return keras_hub.models.BertBackbone(
        vocabulary_size=VOCABULARY, num_layers=layers, num_heads=heads, hidden_dim=hidden, intermediate_dim=inner
    )


def fitted(keras: Any, model: Any, features: Any, targets: Any, **options: Any) -> Step:
    """A step of Keras's own trainer, of Keras 3 or tf_keras, on this batch, again and again."""
    import numpy as np

    optimizer = keras.optimizers.AdamW(RATE, weight_decay=DECAY, global_clipnorm=1.0)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), **options)
    return lambda: float(np.ravel(model.train_on_batch(features, targets))[0])


def keras_hub(size: str, length: int, precision: str) -> Step:
    import keras
    import keras_hub

    ids, mask, labels = rows(SIZES[size][-1], length)
    model = keras_hub.models.BertTextClassifier(backbone_of(size, precision), 2)
    features = {"token_ids": ids, "segment_ids": ids * 0, "padding_mask": mask.astype("int32")}
    return fitted(keras, model, features, labels, jit_compile=False)


def garden_encoder(size: str, precision: str) -> Any:
    """Model Garden's encoder of this size."""
    import tensorflow_models as tfm
    import tf_keras

    tf_keras.mixed_precision.set_global_policy("float32" if precision == "float32" else "mixed_bfloat16")
    layers, hidden, heads, inner, _ = SIZES[size]
    return tfm.nlp.networks.BertEncoder(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_layers=layers,
        num_attention_heads=heads,
        inner_dim=inner,
        type_vocab_size=2,
    )


def garden(size: str, length: int, precision: str) -> Step:
    import tensorflow_models as tfm
    import tf_keras

    ids, mask, labels = rows(SIZES[size][-1], length)
    model = tfm.nlp.models.BertClassifier(garden_encoder(size, precision), 2)
    features = {"input_word_ids": ids, "input_mask": mask.astype("int32"), "input_type_ids": ids * 0}
    return fitted(tf_keras, model, features, labels)


def transformers_config(size: str, **others: Any) -> Any:
    """The `transformers.BertConfig` of one of `SIZES`."""
    import transformers

    layers, hidden, heads, inner, _ = SIZES[size]
    return transformers.BertConfig(
        vocab_size=VOCABULARY,
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        intermediate_size=inner,
        **others,
    )


def torch_step(model: Any, loss_of_batch: Callable[[], Any], autocast: bool) -> Step:
    """A step of PyTorch on one batch: AdamW, and gradients clipped to a norm of 1."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY, fused=True)

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = loss_of_batch()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


def hugging_face(pure: bool = False) -> Callable[[str, int, str], Step]:
    def build(size: str, length: int, precision: str) -> Step:
        import torch
        import transformers

        ids, mask, labels = (torch.tensor(x).long() for x in rows(SIZES[size][-1], length))
        config = transformers_config(size, num_labels=2, attn_implementation="eager")
        model = transformers.BertForSequenceClassification(config).train()
        if pure:
            model = model.bfloat16()
        autocast = precision == "bfloat16" and not pure
        return torch_step(model, lambda: model(input_ids=ids, attention_mask=mask, labels=labels).loss, autocast)

    return build


PEERS: Peers = {
    "keras_bert": ours,
    "KerasHub": keras_hub,
    "Model Garden": garden,
    "Hugging Face": hugging_face(),
    "Hugging Face, pure": hugging_face(pure=True),
}


def measure(script: str, peers: Peers, case: tuple[str, int, str], rounds: int) -> list[list[str]]:
    """The peers in turn; one line of the table for each."""
    size, length, precision = case
    own = {"Model Garden": os.environ.get("GARDEN_PYTHON", "")}
    names = [n for n in peers if not (n.endswith("pure") and precision == "float32") and own.get(n, n)]
    lines, tokens = [], SIZES[size][-1] * length
    for name, taken in (found := turns.measure(script, names, case, rounds, own)).items():
        line = [size, f"{length}", precision, name]
        if taken.missing:
            lines.append([*line, taken.missing, "", "", ""])
        else:
            ratio = taken.median / found["keras_bert"].median
            lines.append(
                [*line, taken.spread(), f"{tokens / taken.median:,.0f}", f"{taken.peak_mb:,.0f}", f"{ratio:.2f}"]
            )
        print("  ".join(lines[-1]), flush=True)
    return lines


def run(script: str, doc: str | None, peers: Peers, title: str, cases: str, text: str) -> None:
    """The command line of a benchmark of steps: sizes with lengths, in every precision, into a section with a plot."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--cases", default=cases)
    parser.add_argument("--precisions", default=",".join(PRECISIONS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--worker", nargs=4, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        name, size, length, precision = args.worker
        turns.work(lambda: peers[name](size, int(length), precision))
        return
    from report import bars, machine, table, write_section

    named, rounds = (cases.split(",")[:1], 5) if args.quick else (args.cases.split(","), args.rounds)
    sized = [(size, int(length)) for size, length in (case.split("-") for case in named)]
    each = [(*case, precision) for case in sized for precision in args.precisions.split(",")]
    lines = [line for case in each for line in measure(script, peers, case, rounds)]
    header = ["size", "tokens", "precision", "", "seconds per step, median", "tokens/s", "peak MB", "times ours"]
    about = f"{text} {rounds} steps of each in turn, each in a process of its own. tokens/s counts padding."
    if args.quick:
        print("\n\n".join([about, table(header, lines), machine()]))
        return
    panels: dict[str, dict[str, float]] = {}
    for size, length, precision, name, *_, ratio in lines:
        if ratio:
            panels.setdefault(f"{size}, {length} tokens, {precision}", {})[name] = float(ratio)
    plot = bars(os.path.basename(script).replace(".py", ".png"), panels, "time of a step, times ours")
    write_section(title, "\n\n".join([about, table(header, lines), plot, machine()]))


if __name__ == "__main__":
    run(
        __file__,
        __doc__,
        PEERS,
        "A training step",
        "minilm-32,minilm-128,base-128",
        "`python benchmarks/training_step.py`: minilm is 6 layers of 384 with batch 32, base 12 of 768 with batch 8; "
        "rows half to all full, of which only ours leaves out the padding, AdamW, clipping, dropout 0.1; `pure` keeps "
        "the weights in bfloat16 too;",
    )
