"""Progress: plain lines in files, a bar on terminals, and never a reason to stop the work."""

import contextlib
import io
import os
from types import SimpleNamespace

import pytest

from keras_bert import progress
from keras_bert.progress import Progress, clock


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: self.now))


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_plain_lines_now_and_then_and_one_at_the_end(time):
    stream = io.StringIO()
    with Progress("predict", total=100, stream=stream, every=10) as bar:
        for _ in range(10):
            time.now += 3
            bar.add(10, loss=0.5)
    assert stream.getvalue().splitlines() == [
        "predict  40/100  0:18 left  loss 0.5000",
        "predict  80/100  0:06 left  loss 0.5000",
        "predict  100/100  0:30  loss 0.5000",
    ]


def test_the_last_line_is_not_written_twice(time):
    stream = io.StringIO()
    with Progress("train", total=5, stream=stream, every=10) as bar:
        time.now += 20
        bar.add(5)
    assert stream.getvalue() == "train  5/5  0:20\n"


@pytest.mark.parametrize("total", [0, 7])
def test_no_line_when_nothing_was_done(total):
    stream = io.StringIO()
    with Progress("train", total=total, stream=stream):
        pass
    assert stream.getvalue() == ""


def test_work_that_fails_says_how_far_it_came():
    stream = io.StringIO()
    with contextlib.suppress(KeyError), Progress("train", total=5, stream=stream) as bar:
        bar.add(2)
        raise KeyError
    assert stream.getvalue().startswith("train  2/5  ")


def test_a_bar_on_a_terminal_stays_on_its_line(time):
    stream = Terminal()
    with Progress("train", total=4, stream=stream) as bar:
        for _ in range(4):
            time.now += 1
            bar.add(1)
    shown = stream.getvalue().removesuffix("\n").split("\r")
    assert shown[1] == f"train  1/4 [{'#' * 6}{'.' * 18}] 0:03 left\033[K"
    assert shown[-1] == f"train  4/4 [{'#' * 24}] 0:04\033[K"
    assert stream.getvalue().count("\n") == 1


def test_a_terminal_is_not_flooded(time):
    stream = Terminal()
    with Progress("train", total=1000, stream=stream) as bar:
        for _ in range(1000):
            time.now += 0.01
            bar.add(1)
    assert 90 <= stream.getvalue().count("\r") <= 102


def test_none_is_silent(capfd):
    with Progress("train", total=2, stream=None, every=0) as bar:
        bar.add(2)
    assert bar.done == 2
    assert capfd.readouterr() == ("", "")


def test_a_broken_pipe_does_not_stop_the_work():
    reading, writing = os.pipe()
    os.close(reading)
    stream = os.fdopen(writing, "w")
    with Progress("train", total=3, stream=stream, every=0) as bar:
        for _ in range(3):
            bar.add(1)
    assert bar.done == 3
    assert bar.stream is None
    with contextlib.suppress(BrokenPipeError):
        stream.close()


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="there are no pseudo-terminals on this system")
def test_a_terminal_that_is_closed_does_not_stop_the_work(time):
    master, slave = os.openpty()
    stream = os.fdopen(slave, "w")
    with Progress("train", total=3, stream=stream) as bar:
        assert bar.terminal
        os.close(master)
        for _ in range(3):
            time.now += 1
            bar.add(1)
    assert bar.done == 3
    assert bar.stream is None
    with contextlib.suppress(OSError):
        stream.close()


def test_a_closed_file_does_not_stop_the_work():
    stream = io.StringIO()
    with Progress("train", total=1, stream=stream, every=0) as bar:
        stream.close()
        bar.add(1)
    assert bar.stream is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (75, "1:15"), (59.6, "1:00"), (3599.6, "1:00:00"), (36061, "10:01:01")]
)
def test_clock(seconds, text):
    assert clock(seconds) == text
