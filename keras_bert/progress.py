"""How far along long work is: a bar on a terminal, a plain line now and then anywhere else."""

import sys
import time
from typing import TextIO


class Progress:
    """Counts up to `total` and says how long the rest will take.

    Args:
        label: what is being done.
        total: units of work.
        stream: where to write; standard error unless told otherwise. None is silent.
        every: seconds between plain lines when the stream is no terminal.
        done: units that were done before.

    Example:
        with Progress("predict", total=1000) as progress:
            for batch in batches:
                progress.add(len(batch))
    """

    def __init__(
        self, label: str, total: int, stream: TextIO | None = sys.stderr, every: float = 10.0, done: int = 0
    ) -> None:
        self.label, self.total, self.stream, self.every = label, total, stream, every
        self.done, self.before, self.values = done, done, ""
        self.terminal = stream is not None and stream.isatty()
        self.start = self.last = time.monotonic()
        self.written = done

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        if self.stream is not None and (self.terminal or self.written < self.done):
            self._write(end="\n")

    def add(self, amount: int = 1, **values: float) -> None:
        """Count `amount` more; `values` are shown beside the count."""
        self.done += amount
        self.values = "".join(f"  {name} {value:.4f}" for name, value in values.items())
        now = time.monotonic()
        if self.stream is not None and now - self.last >= (0.1 if self.terminal else self.every):
            self.last = now
            self._write(end="" if self.terminal else "\n")

    def _write(self, end: str) -> None:
        assert self.stream is not None
        self.written = self.done
        spent = time.monotonic() - self.start
        left = spent / max(self.done - self.before, 1) * (self.total - self.done)
        state = f"{clock(left)} left" if self.done < self.total else f"{clock(spent)}"
        count = f"{self.done}/{self.total}"
        if self.terminal:
            filled = 24 * self.done // max(self.total, 1)
            line = f"\r{self.label}  {count} [{'#' * filled}{'.' * (24 - filled)}] {state}{self.values}\033[K"
        else:
            line = f"{self.label}  {count}  {state}{self.values}"
        try:
            self.stream.write(line + end)
            self.stream.flush()
        except (OSError, ValueError):  # the reader or the terminal went away; the work goes on
            self.stream = None


def clock(seconds: float) -> str:
    """`75` -> `1:15`; hours only where there are some."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
