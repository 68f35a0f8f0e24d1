"""The training loop: rounds of steps, an evaluation after each, and states to resume from.

The position of a run is the number of batches it has taken. Everything else, including the order of the data and the
masks, follows from that number and the seed. So a run that was killed resumes from its newest state (`states.py`) and
ends with the same weights, bit for bit, as a run that was not.
"""

import math
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_bert.config import RunConfig
from keras_bert.errors import CheckpointError, DivergedError, KerasBertError, Stopped
from keras_bert.progress import Progress, clock
from keras_bert.training import devices
from keras_bert.training.hardware import peak_memory_mb
from keras_bert.training.states import States
from keras_bert.training.step import Batch, Tally, Trainer

Say = Callable[[str], None]


# === The loop ===


@dataclass(frozen=True)
class Rounds:
    """The length of a run: `steps` in all, with an evaluation after every `size` steps and at the end."""

    steps: int
    size: int
    unit: str = "epoch"

    def __len__(self) -> int:
        return -(-self.steps // self.size)

    def end(self, number: int) -> int:
        """The step at which round `number`, from 0, ends."""
        return min((number + 1) * self.size, self.steps)

    def label(self, number: int) -> str:
        """`epoch 2/3`, or `step 2000/3000`, of round `number`, from 0."""
        return f"epoch {number + 1}/{len(self)}" if self.unit == "epoch" else f"step {self.end(number)}/{self.steps}"


@dataclass
class Keeping:
    """Where and how a run is saved, and what may stop it.

    Attributes:
        folder: the directory of the run; None saves nothing.
        catch_signals: on SIGTERM or SIGINT, save and stop; a second signal kills.
    """

    folder: Path | None = None
    config: RunConfig = field(default_factory=RunConfig)
    catch_signals: bool = False


@dataclass
class Judge:
    """The evaluation after each round, on averaged weights if there are any.

    Attributes:
        evaluate: returns the values to record.
        conclude: takes the whole record.
        enough: takes the records of all rounds, including those before a restart; True ends the run.
    """

    evaluate: Callable[[], dict[str, Any]]
    conclude: Callable[[dict[str, Any]], None]
    enough: Callable[[list[dict[str, Any]]], bool] = lambda history: False


def run_rounds(
    trainer: Trainer,
    batches: Callable[[int], Any],
    rounds: Rounds,
    judge: Judge,
    keeping: Keeping,
    resumed: dict[str, Any],
    say: Say,
    progress: Any,
) -> tuple[list[dict[str, Any]], float]:
    """Train to the end of the run, evaluating and saving on the way.

    Args:
        batches: batch number -> the distributed batches from there on; called again when they end.
        resumed: what `resume` returned.

    Returns:
        The records of all rounds, and the batches per second of this process.

    Raises:
        DivergedError: a loss or gradient is not a number; earlier states remain.
        CheckpointError: the directory cannot be written.
        Stopped: by a signal or the time limit, after writing a state.
    """
    step, spent = int(resumed.get("step", 0)), float(resumed.get("spent", 0.0))
    history: list[dict[str, Any]] = list(resumed.get("history", []))
    tally = Tally(trainer.task.factors, resumed.get("tally"))
    states = writer = None
    if keeping.folder is not None and devices.worker(trainer.strategy)[0] == 0:
        states = States(keeping.folder, keeping.config.keep_checkpoint_max)
        writer = tf.summary.create_file_writer(str(keeping.folder / "tensorboard"))
    begun, first, seconds = time.monotonic(), step, 0.0
    alone = devices.worker(trainer.strategy)[1] == 1  # otherwise all workers must stop at the same step
    left: Iterator[Batch] = iter(())

    def account(values: dict[str, float], number: int) -> bool:
        """Count the values of batch `number`; returns whether the run must stop."""
        if not values:
            return False
        # A gradient that overflows is no error as long as a smaller loss scale may help.
        if not math.isfinite(values["loss"]) or not (values["finite"] or trainer.loss_scale > 1):
            start = len(history) * rounds.size
            raise DivergedError(
                f"{label}, step {number - start} of {end - start}: the loss or its gradient is not a number; "
                f"lower --learning_rate (now {trainer.rate:g}), or train without mixed precision"
            )
        tally.add(values)
        return bool(values["stop"])

    def save() -> None:
        if states is not None:
            notes = {"tally": tally.sums, "spent": spent + time.monotonic() - round_begun, "history": history}
            states.write(step, trainer.state(), notes)

    with _asked_to_stop(keeping) as stop, _together(trainer):
        while len(history) < len(rounds) and not judge.enough(history):
            end, label, round_begun = rounds.end(len(history)), rounds.label(len(history)), time.monotonic()
            start = len(history) * rounds.size
            with Progress(label, end - start, progress, done=step - start) as bar:
                while step < end:
                    batch = next(left, None)
                    if batch is None:
                        left = trainer.take(batches(step))
                        batch = next(left)
                    _profile(keeping, step)
                    stopping = account(trainer.train(batch, stop.asked()), step)
                    step += 1
                    stopping = stopping or (alone and stop.asked())
                    if stopping or (step % keeping.config.save_checkpoints_steps == 0 and step < end):
                        stopping = account(trainer.flush(), step) or stopping
                        save()
                    if stopping:
                        raise stop.error(step, rounds.steps, keeping.folder)
                    bar.add(1, **({"loss": tally.means()["loss"]} if tally.sums else {}))
                account(trainer.flush(), step)
            seconds += time.monotonic() - round_begun
            record: dict[str, Any] = {"epoch": len(history) + 1} if rounds.unit == "epoch" else {}
            record |= {"step": step, **tally.means("train_")}
            if keeping.folder is not None and not keeping.folder.is_dir():
                raise CheckpointError(f"{keeping.folder}: was deleted while the run went on; nothing more can be kept")
            with trainer.averaged():
                record |= judge.evaluate()
                record["seconds"] = round(spent + time.monotonic() - round_begun, 2)
                judge.conclude(record)
            history.append(record)
            rest = 0 if judge.enough(history) else rounds.steps - step
            say(_line(label, record, rest / max(step - first, 1) * (time.monotonic() - begun)))
            if writer is not None:
                _events(writer, record, keeping.folder)
            spent, round_begun, tally.sums = 0.0, time.monotonic(), {}
            save()
            if stop.asked() and step < rounds.steps and not judge.enough(history):
                raise stop.error(step, rounds.steps, keeping.folder)
    return history, (step - first) / max(seconds, 1e-9)


@contextmanager
def _together(trainer: Trainer) -> Iterator[None]:
    """Turns errors caused by the loss of another worker into one line."""
    try:
        yield
    except devices.WORKER_LOST as error:
        if devices.worker(trainer.strategy)[1] == 1:
            raise
        raise KerasBertError(
            f"another worker is gone ({' '.join(str(error).split())[:160]}); start all workers again with the same "
            "command, they go on from the newest state"
        ) from error


def rehearse(trainer: Trainer, batches: Callable[[int], Any], rounds: Rounds) -> None:
    """Make a few steps, write and restore a state, and estimate the whole run.

    Raises:
        Stopped: always, with exit code 0 and the figures.
        CheckpointError: the restored state differs from the one that was written.
    """
    times: list[float] = []
    for _, batch in zip(range(6), trainer.take(batches(0)), strict=False):
        start = time.monotonic()
        trainer.train(batch)
        values = trainer.flush()
        times.append(time.monotonic() - start)
    with tempfile.TemporaryDirectory() as folder:
        states, wanted = States(Path(folder)), trainer.state()
        states.write(len(times), wanted, {"history": []})
        size = states.found()[0].stat().st_size
        arrays, _ = states.newest(print) or ({}, {})
    trainer.restore(arrays)
    if any(not np.array_equal(value, wanted[name]) for name, value in trainer.state().items()):
        raise CheckpointError("a state that was written and restored differs; please report this")
    step = float(np.median(times[1:] or times))
    raise Stopped(
        f"dry run: first step {times[0]:.1f} s, then {step:.3f} s each, loss {values['loss']:.4f}; "
        f"{rounds.steps} steps take about {clock(rounds.steps * step)} without evaluation; "
        f"a state is {size / 2**20:.0f} MiB, peak memory {peak_memory_mb()} MiB; nothing was kept",
        0,
    )


def _line(label: str, record: dict[str, Any], left: float) -> str:
    values = "  ".join(f"{k} {v:.4f}" for k, v in record.items() if isinstance(v, float))
    return f"{label}  {values}" + (f"  {clock(left)} left" if left else "")


def _events(writer: Any, record: dict[str, Any], folder: Path | None) -> None:
    try:
        with writer.as_default(step=record["step"]):
            for name, value in record.items():
                if isinstance(value, float):
                    tf.summary.scalar(name, value)
        writer.flush()
    except (tf.errors.OpError, OSError) as error:
        raise CheckpointError(f"{folder}: cannot be written ({str(error).splitlines()[0]})") from error


def _profile(keeping: Keeping, step: int) -> None:
    """Start the profiler before the first profiled batch, and stop it after the last."""
    profiled = keeping.config.profiled
    if profiled and keeping.folder is not None:
        if step == profiled[0]:
            tf.profiler.experimental.start(str(keeping.folder / "tensorboard"))
        elif step == profiled[1] + 1:
            tf.profiler.experimental.stop()


class _Stop:
    """Knows whether a signal or the time limit asks the run to stop."""

    def __init__(self, limit: float) -> None:
        self.until = time.monotonic() + limit if limit else math.inf
        self.signal: signal.Signals | None = None

    def asked(self) -> bool:
        return bool(self.signal) or time.monotonic() >= self.until

    def error(self, step: int, steps: int, folder: Path | None) -> Stopped:
        code = 128 + self.signal if self.signal else 75
        why = self.signal.name if self.signal else "the time limit, or another worker"
        how = f"saved in {folder}; the same command goes on from there" if folder else "nothing was to be kept"
        return Stopped(f"stopped after step {step} of {steps} by {why}; {how}", code)


@contextmanager
def _asked_to_stop(keeping: Keeping) -> Iterator[_Stop]:
    """Watch the clock, and signals if `keeping` says so; a second signal has its usual effect."""
    stop, before = _Stop(keeping.config.max_time), dict[int, Any]()

    def note(number: int, frame: Any) -> None:
        stop.signal = signal.Signals(number)
        signal.signal(number, before[number])

    for number in (signal.SIGTERM, signal.SIGINT) if keeping.catch_signals else ():
        before[number] = signal.signal(number, note)
    try:
        yield stop
    finally:
        for caught, handler in before.items():
            signal.signal(caught, handler)


def resume(trainer: Trainer, keeping: Keeping, say: Say) -> dict[str, Any]:
    """Restore the newest state of the run, if there is one; returns its header.

    Raises:
        CheckpointError: none of the states can be read, or they belong to another model.
    """
    if keeping.folder is None:
        return {}
    states = States(keeping.folder, keeping.config.keep_checkpoint_max)
    if devices.worker(trainer.strategy)[0] == 0:
        states.tidy()
    found = states.newest(say)
    if found is None:
        return {}
    arrays, header = found
    try:
        trainer.restore(arrays)
    except CheckpointError as error:
        raise CheckpointError(f"{keeping.folder}: {error}; start anew with --overwrite") from error
    say(f"continuing the run in {keeping.folder} after step {header['step']}")
    return header
