"""Which operations of TensorFlow our time goes into: a short text, eight short texts, and a training step.

    python benchmarks/where_time_goes.py [--rows=8]

Question: what bounds an answer and a step, so what would a faster one have to change? TensorFlow's profiler counts the
calls of every kind of operation and the time between their begin and end; they run on several threads, so the times may
add up to more than the clock shows. Products cost arithmetic, all else is the price of many small operations.

Expected: most of a step in products; of one short text no more than half.
"""

import argparse
import collections
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import turns

CASES = ("short-1 float32", "short-1 bfloat16", "short-8 bfloat16", "step float32", "step bfloat16")


def asked(case: str, precision: str, folder: Path) -> tuple[Callable[[], Any], int]:
    """What is measured, and how many calls of the model that is."""
    if case == "step":
        import training_step

        return training_step.ours("minilm", 128, precision), 1
    import latency

    size = int(case.split("-")[1])
    texts = latency.texts("short", 32)
    embed = latency.saved_model(precision)(folder, latency.LENGTHS["short"])
    batches = [texts[i : i + size] for i in range(0, len(texts), size)]
    return lambda: [embed(batch) for batch in batches], len(batches)


def work(case: str) -> None:
    """A worker: prints one line of JSON, milliseconds by the clock, and of each kind of operation its calls and ms."""
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    with tempfile.TemporaryDirectory() as name:
        call, calls = asked(*case.split(), Path(name))
        for _ in range(3):
            call()
        times = []
        for _ in range(5):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        tf.profiler.experimental.start(f"{name}/profile")
        call()
        tf.profiler.experimental.stop()
        space = xplane_pb2.XSpace()
        space.ParseFromString(next(Path(name, "profile").glob("**/*.xplane.pb")).read_bytes())
    spent: collections.Counter = collections.Counter()
    count: collections.Counter = collections.Counter()
    for plane in space.planes:
        events = (event for line in plane.lines for event in line.events) if "CPU" in plane.name else ()
        for event in events:
            label = plane.event_metadata[event.metadata_id].name
            _, colon, kind = label.partition(":")  # name:Kind
            if colon and kind.isidentifier():
                spent[kind] += event.duration_ps / 1e9 / calls
                count[kind] += 1 / calls
    found = [[kind, count[kind], milliseconds] for kind, milliseconds in spent.most_common()]
    print(json.dumps({"ms": 1000 * sorted(times)[2] / calls, "kinds": found}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8, help="kinds of operations that are shown of each")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker)
        return
    from report import machine, table, write_section

    lines = []
    for case in args.cases.split(","):
        command = [sys.executable, __file__, "--worker", case]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | turns.ENVIRONMENT
        )
        found = json.loads(done.stdout.splitlines()[-1])
        whole = sum(ms for *_, ms in found["kinds"])
        for number, (kind, calls, ms) in enumerate(found["kinds"][: args.rows]):
            head = [case, f"{found['ms']:.1f}"] if number == 0 else ["", ""]
            lines.append([*head, kind, f"{calls:,.0f}", f"{ms:.2f}", f"{ms / whole:.0%}"])
    header = ["", "ms by the clock", "operation", "calls", "ms", "share"]
    text = (
        "`python benchmarks/where_time_goes.py`: all-MiniLM-L6-v2, tweets to embeddings, and a step of 32 rows of 128 "
        "tokens, by TensorFlow's profiler; operations that run at the same time are each counted in full."
    )
    body = "\n\n".join([text, table(header, lines), machine()])
    print(body)
    if args.cases == ",".join(CASES):
        write_section("Where the time goes", body)


if __name__ == "__main__":
    main()
