"""How the cost of ours grows with batch, length, layers and width, in time and in memory.

    python benchmarks/growth.py [--points=8]

Question: from 6 layers of 384, batch 16, 128 tokens, one thing is changed at a time: what do a training step (forward,
backward, clipping, AdamW, dropout) and an answer (forward only) cost, and how much memory does the process take at its
peak, beside what `keras-bert plan` foresees? Every point is a process of its own.

Expected: time in proportion to tokens, layers, and width times width; plan within a tenth of the peak.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import turns

PLOT = Path(__file__).parent / "growth.png"
START = {"batch": 16, "length": 128, "layers": 6, "width": 384, "precision": "none", "recompute": 0}
CHANGES: dict[str, tuple[Any, ...]] = {
    "batch": (1, 4, 16, 64, 128),
    "length": (8, 32, 128, 512),
    "layers": (2, 6, 12),
    "width": (128, 384, 768),
    "precision": ("none", "bfloat16"),
    "recompute": (0, 1),
}
VOCABULARY, REPEATS = 30522, 5


def work(point: dict[str, Any]) -> None:
    """A worker: prints one line of JSON."""
    import numpy as np
    import tensorflow as tf

    from keras_bert import OptimizerConfig, TrainConfig
    from keras_bert.config import EncoderConfig, HeadConfig
    from keras_bert.tasks.network import Network
    from keras_bert.training.finetune import HeadTask
    from keras_bert.training.memory import Plan
    from keras_bert.training.step import Trainer

    shape = EncoderConfig(
        vocab_size=VOCABULARY,
        num_layers=point["layers"],
        num_heads=max(1, point["width"] // 64),
        hidden_dim=point["width"],
        intermediate_dim=4 * point["width"],
        activation="gelu",
    )
    head = HeadConfig(labels=("0", "1"))
    config = TrainConfig(
        mixed_precision=point["precision"], train_batch_size=point["batch"], recompute=bool(point["recompute"])
    )
    make = lambda policy: HeadTask(Network(shape, head, dtype=policy))  # noqa: E731
    trainer = Trainer(make, Network(shape, head), OptimizerConfig(), config, 1_000_000)
    ids = np.random.default_rng(0).integers(1000, VOCABULARY, (point["batch"], point["length"])).astype("int32")
    features = {"token_ids": ids, "segment_ids": ids * 0, "padding_mask": ids > 0}
    batch = {"features": features, "labels": ids[:, 0] % 2, "weights": np.ones(len(ids), "float32")}
    specs = tf.nest.map_structure(lambda x: tf.TensorSpec([None] * x.ndim, x.dtype), batch)
    dataset = tf.data.Dataset.from_generator(lambda: iter([batch] * (REPEATS + 3)), output_signature=specs)
    source = trainer.take(trainer.strategy.experimental_distribute_dataset(dataset))
    steps, answers = [], []
    for one in source:
        start = time.perf_counter()
        trainer.train(one)
        trainer.flush()
        steps.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    answer = tf.function(lambda f: trainer.network(f, training=False), autograph=False, reduce_retracing=True)
    given = {name: tf.constant(value) for name, value in features.items()}
    for _ in range(REPEATS + 2):
        start = time.perf_counter()
        answer(given).numpy()
        answers.append(time.perf_counter() - start)
    planned = Plan(shape, config).megabytes(point["batch"], point["length"])
    found = {"step": statistics.median(steps[2:]), "answer": statistics.median(answers[2:]), "peak": peak}
    print(json.dumps(point | found | {"planned": planned, "parameters": trainer.network.count_params()}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=99, help="points of each line at most")
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(json.loads(args.worker))
        return
    from report import machine, table, write_section

    done: dict[str, dict[str, Any]] = {}
    lines = []
    for name, values in CHANGES.items():
        for value in values[: args.points]:
            point = json.dumps(START | {name: value})
            if point not in done:
                command = [sys.executable, __file__, "--worker", point]
                process = subprocess.run(
                    command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | turns.ENVIRONMENT
                )
                done[point] = json.loads(process.stdout.splitlines()[-1])
                print(process.stdout.splitlines()[-1], flush=True)
            p = done[point]
            tokens = p["batch"] * p["length"]
            lines.append(
                [
                    name,
                    str(value),
                    f"{p['step']:.3f}",
                    f"{tokens / p['step']:,.0f}",
                    f"{1000 * p['answer']:.1f}",
                    f"{tokens / p['answer']:,.0f}",
                    f"{p['peak']:,.0f}",
                    f"{p['planned']:,.0f} ({p['planned'] / p['peak'] - 1:+.0%})",
                ]
            )
    picture(list(done.values()))
    header = ["changed", "to", "s per step", "tokens/s", "ms per answer", "tokens/s", "peak MB", "plan says"]
    text = (
        "`python benchmarks/growth.py`: 16 full rows of 128 tokens, 6 layers of 384, float32, and of these one thing "
        f"changed at a time; medians of {REPEATS}, each point in a process of its own; the peak is that of training."
    )
    plot = f"![Seconds and megabytes over batch, length, layers, width]({PLOT.name})"
    write_section("How cost grows", "\n\n".join([text, table(header, lines), plot, machine()]))


def picture(points: list[dict[str, Any]]) -> None:
    """Seconds of a step and peak memory over each of the four sizes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = ("batch", "length", "layers", "width")
    figure, rows = pyplot.subplots(2, len(names), figsize=(12, 5), sharey="row")
    for column, name in enumerate(names):
        line = sorted((p for p in points if all(p[k] == START[k] for k in START if k != name)), key=lambda p: p[name])
        for axes, what, unit in zip(rows[:, column], ("step", "peak"), ("s per step", "peak MB"), strict=True):
            axes.plot([p[name] for p in line], [p[what] for p in line], marker="o")
            axes.set(xlabel=name, ylim=(0, None))
            if column == 0:
                axes.set_ylabel(unit)
    figure.tight_layout()
    figure.savefig(PLOT, dpi=90)


if __name__ == "__main__":
    main()
