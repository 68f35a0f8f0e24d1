"""One fine-tuning step: keras_bert, KerasHub, Model Garden and Hugging Face on PyTorch.

    python benchmarks/training_step.py [--quick] [--sizes=minilm,base] [--lengths=32,128]

Question: how long does a step take (forward, backward, clipping by the global norm, AdamW), with the same sizes, batch
and token ids, dropout 0.1, and how much memory? Weights are random: speed does not depend on them. bfloat16 is a
`mixed_bfloat16` policy in Keras and autocast in PyTorch; weights stay float32, but for `pure`, where PyTorch keeps them
in bfloat16 too. Model Garden needs an environment of its own: GARDEN_PYTHON names its interpreter.
`--quick` measures 32 tokens only, few times, and writes nothing.

Expected: no slower than the fastest peer at either length and precision.
"""

import argparse
import os
from collections.abc import Callable

import turns

VOCABULARY, RATE, DECAY = 30522, 5e-5, 0.01
SIZES = {"minilm": (6, 384, 12, 1536, 32), "base": (12, 768, 12, 3072, 8)}
"""Layers, hidden size, heads, feed-forward size, batch."""
PRECISIONS = ("float32", "bfloat16")
Step = Callable[[], float]


def rows(batch: int, length: int) -> tuple:
    """Token ids and bool mask `[batch, length]`, and labels; rows are half to all full."""
    import numpy as np

    random = np.random.default_rng(0)
    mask = np.arange(length) < random.integers(length // 2, length + 1, (batch, 1))
    mask[0] = True
    return random.integers(1000, VOCABULARY, mask.shape) * mask, mask, random.integers(0, 2, batch)


def ours(size: str, length: int, precision: str) -> Step:
    import tensorflow as tf

    from keras_bert import OptimizerConfig, TrainConfig
    from keras_bert.config import EncoderConfig, HeadConfig
    from keras_bert.heads import Network
    from keras_bert.trainer import Trainer
    from keras_bert.training import HeadTask

    layers, hidden, heads, inner, count = SIZES[size]
    shape = EncoderConfig(
        vocab_size=VOCABULARY,
        hidden_dim=hidden,
        num_layers=layers,
        num_heads=heads,
        intermediate_dim=inner,
        activation="gelu",
    )
    head = HeadConfig(labels=("0", "1"))
    ids, mask, labels = rows(count, length)
    batch = {
        "features": {"token_ids": ids.astype("int32"), "padding_mask": mask, "segment_ids": ids.astype("int32") * 0},
        "labels": labels.astype("int32"),
        "weights": (labels * 0 + 1).astype("float32"),
    }
    trainer = Trainer(
        lambda policy: HeadTask(Network(shape, head, dtype=policy)),
        Network(shape, head),
        OptimizerConfig(learning_rate=RATE, weight_decay=DECAY),
        TrainConfig(mixed_precision="none" if precision == "float32" else precision, train_batch_size=count),
        1_000_000,
    )
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


def keras_hub(size: str, length: int, precision: str) -> Step:
    import keras
    import keras_hub
    import numpy as np

    keras.config.set_dtype_policy("float32" if precision == "float32" else "mixed_bfloat16")
    layers, hidden, heads, inner, count = SIZES[size]
    ids, mask, labels = rows(count, length)
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=VOCABULARY, num_layers=layers, num_heads=heads, hidden_dim=hidden, intermediate_dim=inner
    )
    model = keras_hub.models.BertTextClassifier(backbone, 2)
    model.compile(
        keras.optimizers.AdamW(RATE, weight_decay=DECAY, global_clipnorm=1.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    features = {"token_ids": ids, "segment_ids": ids * 0, "padding_mask": mask.astype("int32")}
    return lambda: float(np.ravel(model.train_on_batch(features, labels))[0])


def garden(size: str, length: int, precision: str) -> Step:
    import numpy as np
    import tensorflow_models as tfm
    import tf_keras

    tf_keras.mixed_precision.set_global_policy("float32" if precision == "float32" else "mixed_bfloat16")
    layers, hidden, heads, inner, count = SIZES[size]
    ids, mask, labels = rows(count, length)
    encoder = tfm.nlp.networks.BertEncoder(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_layers=layers,
        num_attention_heads=heads,
        inner_dim=inner,
        type_vocab_size=2,
    )
    model = tfm.nlp.models.BertClassifier(encoder, 2)
    model.compile(
        tf_keras.optimizers.AdamW(RATE, weight_decay=DECAY, global_clipnorm=1.0),
        tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    features = {"input_word_ids": ids, "input_mask": mask.astype("int32"), "input_type_ids": ids * 0}
    return lambda: float(np.ravel(model.train_on_batch(features, labels))[0])


def hugging_face(pure: bool = False) -> Callable[[str, int, str], Step]:
    def build(size: str, length: int, precision: str) -> Step:
        import torch
        import transformers

        layers, hidden, heads, inner, count = SIZES[size]
        ids, mask, labels = (torch.tensor(x).long() for x in rows(count, length))
        config = transformers.BertConfig(
            vocab_size=VOCABULARY,
            num_hidden_layers=layers,
            hidden_size=hidden,
            num_attention_heads=heads,
            intermediate_size=inner,
            num_labels=2,
            attn_implementation="eager",
        )
        model = transformers.BertForSequenceClassification(config).train()
        if pure:
            model = model.bfloat16()
        optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY, fused=True)

        def step() -> float:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16" and not pure):
                loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            return loss.item()

        return step

    return build


PEERS: dict[str, Callable[[str, int, str], Step]] = {
    "keras_bert": ours,
    "KerasHub": keras_hub,
    "Model Garden": garden,
    "Hugging Face": hugging_face(),
    "Hugging Face, pure": hugging_face(pure=True),
}


def measure(size: str, length: int, precision: str, rounds: int) -> list[list[str]]:
    """The peers in turn; one line of the table for each."""
    own = {"Model Garden": os.environ.get("GARDEN_PYTHON", "")}
    peers = [n for n in PEERS if not (n.endswith("pure") and precision == "float32") and own.get(n, n)]
    lines, tokens = [], SIZES[size][-1] * length
    for name, taken in (found := turns.measure(__file__, peers, [size, length, precision], rounds, own)).items():
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--sizes", default="minilm")
    parser.add_argument("--lengths", default="32,128")
    parser.add_argument("--precisions", default=",".join(PRECISIONS))
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--worker", nargs=4, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        name, size, length, precision = args.worker
        turns.work(lambda: PEERS[name](size, int(length), precision))
        return
    from report import machine, table, write_section

    lengths, rounds = ((32,), 5) if args.quick else ([int(n) for n in args.lengths.split(",")], args.rounds)
    cases = [(s, n, p) for s in args.sizes.split(",") for n in lengths for p in args.precisions.split(",")]
    lines = [line for size, length, precision in cases for line in measure(size, length, precision, rounds)]
    header = ["size", "tokens", "precision", "", "seconds per step, median", "tokens/s", "peak MB", "times ours"]
    text = (
        "`python benchmarks/training_step.py`: minilm is 6 layers of 384 with batch 32, base 12 of 768 with batch 8; "
        f"rows half to all full, AdamW, clipping, dropout 0.1; {rounds} steps of each in turn, each in a process of "
        "its own. tokens/s counts padding; `pure` keeps the weights in bfloat16 too."
    )
    body = "\n\n".join([text, table(header, lines), machine()])
    if args.quick:
        print(body)
        return
    write_section("A training step", body)


if __name__ == "__main__":
    main()
