"""Peers that take turns: each in a process of its own, one timed call after the other, round after round.

So the machine's mood hits all alike, no peer's memory or threads disturb another's, and a ratio is of medians that were
taken in the same minutes. A peer whose packages are not there is left out, and the table says so.
"""

import contextlib
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REST = 0.3
"""Seconds between two turns, so that threads of the last peer do not go on spinning on the next one's processors."""
ENVIRONMENT = {"TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow", "TOKENIZERS_PARALLELISM": "true"}


@dataclass
class Taken:
    """What a peer took: seconds of each call, processor seconds, and what it said of itself."""

    wall: list[float] = field(default_factory=list)
    used: list[float] = field(default_factory=list)
    peak_mb: float = 0.0
    ready: float = 0.0
    result: Any = None
    missing: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.wall) if self.wall else float("nan")

    def spread(self, unit: float = 1.0, digits: int = 3) -> str:
        """`0.936 (0.911 to 1.020)`, in seconds times `unit`."""
        low, high = min(self.wall) * unit, max(self.wall) * unit
        return f"{self.median * unit:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def work(build: Callable[[], Callable[[], Any]], warmup: int = 2) -> None:
    """The side of the peer: build it, warm it up, then one call for each line on standard input.

    What `build` gives is called without arguments; what it returns last goes into the table's `result`. Where it has an
    attribute `pid`, the memory is that of the process of this number.
    """
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    start = time.perf_counter()
    try:
        call = build()
    except ModuleNotFoundError as error:
        out.write(json.dumps({"missing": f"needs {error.name}"}) + "\n")
        return
    for _ in range(warmup):
        begun = time.perf_counter()
        result = call()
    ready = time.perf_counter()
    brief = ready - begun < 1
    out.write(json.dumps({"ready": ready - start, "result": result}) + "\n")
    for _ in sys.stdin:
        if brief:
            call()  # after a rest threads sleep and caches are cold
        start, used = time.perf_counter(), time.process_time()
        call()
        taken = time.perf_counter() - start
        used = time.process_time() - used
        out.write(json.dumps([taken, used, peak_mb(getattr(call, "pid", None))]) + "\n")


def peak_mb(pid: int | None = None) -> float:
    """The most memory that a process has held, this one if none is named."""
    if pid is None:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    status = Path(f"/proc/{pid}/status").read_text("utf-8")
    return int(re.search(r"^VmHWM:\s+(\d+) kB$", status, re.M).group(1)) / 1024


def measure(
    script: str,
    peers: Sequence[str],
    arguments: Sequence[object],
    rounds: int,
    pythons: Mapping[str, str] | None = None,
) -> dict[str, Taken]:
    """Start `script --worker PEER ARGUMENTS` for every peer, one after the other, then let them take turns.

    Args:
        pythons: interpreters of peers that need an environment of their own.
    """
    taken, processes = {name: Taken() for name in peers}, {}
    for name in peers:
        command = [(pythons or {}).get(name) or sys.executable, script, "--worker", name, *map(str, arguments)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | ENVIRONMENT
        )
        said = json.loads(process.stdout.readline() or '{"missing": "failed; its message is above"}')
        taken[name].missing = said.get("missing", "")
        taken[name].ready, taken[name].result = said.get("ready", 0.0), said.get("result")
        if not taken[name].missing:
            processes[name] = process
    for _ in range(rounds):
        for name, process in processes.items():
            if taken[name].missing:
                continue
            time.sleep(REST)
            process.stdin.write("\n")
            process.stdin.flush()
            line = process.stdout.readline()
            if not line:
                taken[name].missing = "failed; its message is above"
                continue
            wall, used, peak = json.loads(line)
            taken[name].wall.append(wall)
            taken[name].used.append(used)
            taken[name].peak_mb = peak
    for process in processes.values():
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.wait()
    return taken
