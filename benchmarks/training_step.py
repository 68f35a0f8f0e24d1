"""One fine-tuning step of a MiniLM-sized classifier: keras_bert, KerasHub and Hugging Face on PyTorch.

    python benchmarks/training_step.py [--quick]

Question: how long does a step take (forward, backward, clipping by the global norm, AdamW), with the
same sizes, batch and token ids, dropout 0.1? Every peer runs in a process of its own and they take turns, a step
each, so that the machine's mood hits all alike; the figures are medians. Weights are random: speed does not depend
on them. bfloat16 is a `mixed_bfloat16` policy in Keras and autocast in PyTorch; weights stay float32.
`--quick` measures 32 tokens only, few times.

Expected: no slower than the faster peer at either length and precision.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

VOCABULARY, LAYERS, HIDDEN, HEADS, INNER, BATCH, RATE, DECAY = 30522, 6, 384, 12, 1536, 32, 5e-5, 0.01
PRECISIONS = ("float32", "bfloat16")
Step = Callable[[], float]


def rows(length: int) -> tuple:
    """Token ids and bool mask `[BATCH, length]`, and labels; rows are half to all full."""
    import numpy as np

    random = np.random.default_rng(0)
    mask = np.arange(length) < random.integers(length // 2, length + 1, (BATCH, 1))
    mask[0] = True
    return random.integers(1000, VOCABULARY, mask.shape) * mask, mask, random.integers(0, 2, BATCH)


def ours(length: int, precision: str) -> Step:
    import tensorflow as tf

    from keras_bert import OptimizerConfig, TrainConfig
    from keras_bert.config import EncoderConfig, HeadConfig
    from keras_bert.heads import Network
    from keras_bert.trainer import Trainer
    from keras_bert.training import HeadTask

    shape = EncoderConfig(
        vocab_size=VOCABULARY,
        hidden_dim=HIDDEN,
        num_layers=LAYERS,
        num_heads=HEADS,
        intermediate_dim=INNER,
        activation="gelu",
    )
    head = HeadConfig(labels=("0", "1"))
    ids, mask, labels = rows(length)
    batch = {
        "features": {"token_ids": ids.astype("int32"), "padding_mask": mask, "segment_ids": ids.astype("int32") * 0},
        "labels": labels.astype("int32"),
        "weights": (labels * 0 + 1).astype("float32"),
    }
    trainer = Trainer(
        lambda policy: HeadTask(Network(shape, head, dtype=policy)),
        Network(shape, head),
        OptimizerConfig(learning_rate=RATE, weight_decay=DECAY),
        TrainConfig(mixed_precision="none" if precision == "float32" else precision, train_batch_size=BATCH),
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


def keras_hub(length: int, precision: str) -> Step:
    import keras
    import keras_hub

    keras.config.set_dtype_policy("float32" if precision == "float32" else "mixed_bfloat16")
    ids, mask, labels = rows(length)
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=VOCABULARY, num_layers=LAYERS, num_heads=HEADS, hidden_dim=HIDDEN, intermediate_dim=INNER
    )
    model = keras_hub.models.BertTextClassifier(backbone, 2)
    model.compile(
        keras.optimizers.AdamW(RATE, weight_decay=DECAY, global_clipnorm=1.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    features = {"token_ids": ids, "segment_ids": ids * 0, "padding_mask": mask.astype("int32")}
    return lambda: float(model.train_on_batch(features, labels))


def hugging_face(length: int, precision: str) -> Step:
    import torch
    import transformers

    ids, mask, labels = (torch.tensor(x).long() for x in rows(length))
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        num_hidden_layers=LAYERS,
        hidden_size=HIDDEN,
        num_attention_heads=HEADS,
        intermediate_size=INNER,
        num_labels=2,
        attn_implementation="eager",
    )
    model = transformers.BertForSequenceClassification(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY)

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


PEERS: dict[str, Callable[[int, str], Step]] = {
    "keras_bert": ours,
    "KerasHub": keras_hub,
    "Hugging Face": hugging_face,
}


def work(name: str, length: str, precision: str) -> None:
    """A worker: a step for each line on standard input, wall and processor seconds for each on standard output."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    step = PEERS[name](int(length), precision)
    for _ in range(3):
        step()
    out.write("{}\n")
    for _ in sys.stdin:
        start, used = time.perf_counter(), time.process_time()
        loss = step()
        out.write(json.dumps([time.perf_counter() - start, time.process_time() - used, loss]) + "\n")


def measure(length: int, precision: str, rounds: int) -> list[list[str]]:
    """The peers in turn; one line of the table for each."""
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}
    processes = {}
    for name in PEERS:
        command = [sys.executable, __file__, "--worker", name, str(length), precision]
        processes[name] = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
    taken: dict[str, list] = {name: [] for name in PEERS}
    for process in processes.values():
        if not process.stdout.readline():
            sys.exit(f"{process.args[3]} could not start; its message is above")
    for _ in range(rounds):
        for name, process in processes.items():
            process.stdin.write("\n")
            process.stdin.flush()
            taken[name].append(json.loads(process.stdout.readline()))
    for process in processes.values():
        process.stdin.close()
        process.wait()
    wall, used = ({name: statistics.median(t[i] for t in ts) for name, ts in taken.items()} for i in (0, 1))
    lines = []
    for name in PEERS:
        spread = f"{wall[name]:.3f} ({min(t[0] for t in taken[name]):.3f} to {max(t[0] for t in taken[name]):.3f})"
        tokens, ratio = f"{BATCH * length / wall[name]:,.0f}", f"{wall[name] / wall['keras_bert']:.2f}"
        lines.append([f"{length}", precision, name, spread, f"{used[name]:.3f}", tokens, ratio])
        print("  ".join(lines[-1]), flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="32 tokens only, five rounds, nothing is written")
    parser.add_argument("--worker", nargs=3, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(*args.worker)
        return
    from report import machine, table, write_section

    lengths, rounds = ((32,), 5) if args.quick else ((32, 128), 15)
    lines = [line for length in lengths for precision in PRECISIONS for line in measure(length, precision, rounds)]
    header = ["tokens", "precision", "", "seconds per step, median", "processor seconds", "tokens/s", "times ours"]
    text = (
        f"`python benchmarks/training_step.py`: {LAYERS} layers of {HIDDEN}, batch {BATCH}, rows half to all full, "
        f"AdamW, clipping, dropout 0.1; {rounds} steps of each in turn, each in a process of its own. "
        "tokens/s counts padding."
    )
    body = "\n\n".join([text, table(header, lines), machine()])
    if args.quick:
        print(body)
        return
    write_section("A training step", body)


if __name__ == "__main__":
    main()
