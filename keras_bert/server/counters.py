"""Counters and histograms under TensorFlow Serving's names, as a Prometheus page.

TensorFlow Serving writes its metrics with `/` as `:` and without the suffixes that the Prometheus client library
adds to counters, so the page is written here: one dashboard reads both servers. Durations are in microseconds.
"""

import threading
from bisect import bisect_left
from collections import defaultdict

LATENCY = [10 * 1.8**i for i in range(33)]
COUNTERS = {
    "request_count": ("model_name", "status"),
    "request_example_count_total": ("model",),
    "batching_session:wrapped_run_count": (),
}
HISTOGRAMS = {
    "request_latency": (("model_name", "API", "entrypoint"), LATENCY),
    "runtime_latency": (("model_name", "API", "runtime"), LATENCY),
    "model_warmup_latency": (("model_path", "status"), LATENCY),
    "request_example_counts": (("model",), [2.0**i for i in range(15)]),
    "batching_session:queuing_latency": (("thread_pool_name",), [100 * 1.2**i for i in range(52)]),
}
"""Label names, and upper bounds of the buckets, as in TensorFlow Serving."""


class Metrics:
    """All metrics of one server; safe to call from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, dict[tuple[str, ...], int]] = {name: defaultdict(int) for name in COUNTERS}
        self._buckets: dict[str, dict[tuple[str, ...], list[int]]] = {name: {} for name in HISTOGRAMS}
        self._sums: dict[str, dict[tuple[str, ...], float]] = {name: defaultdict(float) for name in HISTOGRAMS}

    def count(self, name: str, *labels: str, by: int = 1) -> None:
        """Add to a counter; label values in the order of `COUNTERS`."""
        with self._lock:
            self._counts[name][labels] += by

    def observe(self, name: str, value: float, *labels: str) -> None:
        """Add one value to a histogram; label values in the order of `HISTOGRAMS`."""
        bounds = HISTOGRAMS[name][1]
        with self._lock:
            buckets = self._buckets[name].setdefault(labels, [0] * (len(bounds) + 1))
            buckets[bisect_left(bounds, value)] += 1
            self._sums[name][labels] += value

    def page(self) -> str:
        """The text form that Prometheus reads; metrics without a value yet are left out."""
        lines = []
        with self._lock:
            for name, values in self._counts.items():
                lines += [f"# TYPE {_full(name)} counter"] if values else []
                lines += [f"{_full(name)}{_labels(COUNTERS[name], at)} {n}" for at, n in values.items()]
            for name, series in self._buckets.items():
                lines += [f"# TYPE {_full(name)} histogram"] if series else []
                for at, buckets in series.items():
                    lines += _histogram_lines(name, at, buckets, self._sums[name][at])
        return "\n".join([*lines, ""])


def _histogram_lines(name: str, values: tuple[str, ...], buckets: list[int], total: float) -> list[str]:
    names, bounds = HISTOGRAMS[name]
    lines, below = [], 0
    for bound, n in zip([*(f"{b:.6g}" for b in bounds), "+Inf"], buckets, strict=True):
        below += n
        lines.append(f"{_full(name)}_bucket{_labels((*names, 'le'), (*values, bound))} {below}")
    labels = _labels(names, values)
    return [*lines, f"{_full(name)}_sum{labels} {total:.10g}", f"{_full(name)}_count{labels} {below}"]


def _full(name: str) -> str:
    return f":tensorflow:serving:{name}"


def _labels(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    escaped = (v.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") for v in values)
    return "{" + ",".join(f'{n}="{v}"' for n, v in zip(names, escaped, strict=True)) + "}"
