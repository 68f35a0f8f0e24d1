"""Training: the loop around the step of `trainer.py`, and fine-tuning.

Where a run stands is the number of batches it has taken. Everything else, the order of the data and the masks
too, follows from that number and the seed, so a run that was killed goes on from its newest state (`runs.py`) and
ends with the weights, bit for bit, of one that was not.
"""

import math
import platform
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_bert import strategies
from keras_bert.checkpoints import load, open_checkpoint
from keras_bert.config import FEATURES, FinetuneConfig, OptimizerConfig, RunConfig, TrainConfig, WindowConfig
from keras_bert.data import (
    Examples,
    Prepare,
    batches_at_random,
    batches_in_order,
    dataset,
    encoded,
    learnt_head,
    lengths,
    rows_of,
)
from keras_bert.errors import CheckpointError, DivergedError, KerasBertError, Stopped
from keras_bert.heads import Head, Network
from keras_bert.progress import Progress, clock
from keras_bert.runs import States
from keras_bert.trainer import Batch, Scalars, Tally, Task, Trainer, copy_weights, distribute
from keras_bert.wordpiece import misfit

Say = Callable[[str], None]
PLACES = ("token_ids", "segment_ids", "padding_mask", "starts", "ends", "begins")
"""What a row that is a window is made of; see `text.Text.located`."""


# === The loop ===


@dataclass(frozen=True)
class Rounds:
    """How long a run is: `steps` in all, evaluated after every `size` of them and at the end."""

    steps: int
    size: int
    unit: str = "epoch"

    def __len__(self) -> int:
        return -(-self.steps // self.size)

    def end(self, number: int) -> int:
        """Step after which round `number`, from 0, ends."""
        return min((number + 1) * self.size, self.steps)

    def label(self, number: int) -> str:
        """`epoch 2/3`, or `step 2000/3000`, of round `number`, from 0."""
        return f"epoch {number + 1}/{len(self)}" if self.unit == "epoch" else f"step {self.end(number)}/{self.steps}"


@dataclass
class Keeping:
    """Where and how a run is kept, and what tells it to stop.

    Attributes:
        folder: the directory of the run; None keeps nothing.
        catch_signals: SIGTERM and SIGINT save and stop; a second one kills.
    """

    folder: Path | None = None
    config: RunConfig = field(default_factory=RunConfig)
    catch_signals: bool = False


@dataclass
class Judge:
    """What is done after a round, with the averaged weights where there are averages.

    Attributes:
        evaluate: returns what is to be recorded.
        conclude: gets the whole record.
        enough: gets the records of all rounds so far, also those before a restart; is the run to end here?
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
        batches: batch number -> the distributed batches from there on; asked again where they end.
        resumed: what `resume` gave.

    Returns:
        The records of all rounds, and the batches per second of this process.

    Raises:
        DivergedError: a loss or gradient is not a number; the states so far stay.
        CheckpointError: the directory cannot be written.
        Stopped: by a signal or the time limit, after a state was written.
    """
    step, spent = int(resumed.get("step", 0)), float(resumed.get("spent", 0.0))
    history: list[dict[str, Any]] = list(resumed.get("history", []))
    tally = Tally(trainer.task.factors, resumed.get("tally"))
    states = writer = None
    if keeping.folder is not None and strategies.worker(trainer.strategy)[0] == 0:
        states = States(keeping.folder, keeping.config.keep_checkpoint_max)
        writer = tf.summary.create_file_writer(str(keeping.folder / "tensorboard"))
    begun, first, seconds = time.monotonic(), step, 0.0
    alone = strategies.worker(trainer.strategy)[1] == 1  # else all have to stop after the same step
    left: Iterator[Batch] = iter(())

    def account(values: dict[str, float], number: int) -> bool:
        """Count what batch `number` gave; returns whether the run is to stop."""
        if not values:
            return False
        if not math.isfinite(values["loss"]) or not (values["finite"] or trainer.loss_scale > 1):  # else it may help
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
    """What is raised in here because another worker went away becomes one line."""
    try:
        yield
    except strategies.WORKER_LOST as error:
        if strategies.worker(trainer.strategy)[1] == 1:
            raise
        raise KerasBertError(
            f"another worker is gone ({' '.join(str(error).split())[:160]}); start all workers again with the same "
            "command, they go on from the newest state"
        ) from error


def rehearse(trainer: Trainer, batches: Callable[[int], Any], rounds: Rounds) -> None:
    """A few steps, a state written and restored, and what the whole run will take.

    Raises:
        Stopped: always, with exit code 0 and the figures.
        CheckpointError: the state that was restored is not the one that was written.
    """
    times, taken = [], iter(trainer.take(batches(0)))
    for _, batch in zip(range(6), taken, strict=False):
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
    """Start or stop the profiler where this batch number is the first or follows the last to be profiled."""
    profiled = keeping.config.profiled
    if profiled and keeping.folder is not None:
        if step == profiled[0]:
            tf.profiler.experimental.start(str(keeping.folder / "tensorboard"))
        elif step == profiled[1] + 1:
            tf.profiler.experimental.stop()


class _Stop:
    """Whether a signal or the time limit has asked the run to stop."""

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
    """Watch the clock, and the signals where that was asked for; a second signal acts as it always does."""
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


# === Fine-tuning ===


@dataclass
class Result:
    """What a run came to: metrics of the best epoch, answers of that epoch, and the history of all."""

    best: dict[str, Any]
    answers: dict[str, np.ndarray]
    history: list[dict[str, Any]]
    seconds: float
    examples_per_second: float


class HeadTask(Task):
    """Rows with labels, and the head of a `heads.Network`."""

    factors = {"loss": 1.0}  # noqa: RUF012 (the same for all)

    def __init__(self, network: Network) -> None:
        self.network = network

    def weights(self, batch: Batch) -> Scalars:
        return {"loss": tf.reduce_sum(self.network.head.counts(batch["labels"]) * batch["weights"])}

    def sums(self, batch: Batch, training: bool) -> tuple[Scalars, dict[str, tuple[Any, Any]]]:
        return {"loss": self._loss(batch, self._logits(batch, training))}, {}

    def evaluate(self, batch: Batch) -> tuple[Scalars, dict[str, tuple[Any, Any]], dict[str, Any]]:
        logits = self._logits(batch, False)
        answer = self.network.head.answer(logits, batch["features"])
        return {"loss": self._loss(batch, logits)}, {}, answer | {"numbers": batch["numbers"]}

    def _logits(self, batch: Batch, training: bool) -> Any:
        features = {name: value for name, value in batch["features"].items() if name in FEATURES}
        return self.network(features, training=training)

    def _loss(self, batch: Batch, logits: Any) -> Any:
        return tf.reduce_sum(self.network.head.loss(batch["labels"], logits) * batch["weights"])


class LabelledRows:
    """Texts with labels as distributed batches, in the order of training or of evaluation.

    A row is a text, or where the head says where in it something is, one of its windows: training takes windows in any
    order, an evaluation all those of a text together.

    Attributes:
        lengths: tokens of each row.
    """

    def __init__(
        self,
        examples: Examples,
        text: Any,
        config: TrainConfig,
        head: Head | None = None,
        windows: WindowConfig | None = None,
        by_length: bool = False,
    ) -> None:
        self.examples, self.config, self.longest = examples, config, text.config.max_seq_length
        self.owners: np.ndarray | None = None
        self.by_length = by_length
        if head is None or not head.located:
            how = "row" if head is None else head.reads
            self.lengths = lengths(examples, text, how=how)
            read = tf.function(lambda *segments: text.read(how, *segments), autograph=False)  # traced once
            self.prepare = self.prepare_whole = rows_of(read, head and head.targets)
            return
        windows = windows or head.windows(self.longest)
        specs = [tf.TensorSpec([None], tf.string)] * len(examples.segments)
        read = tf.function(lambda *segments: text.located(windows, *segments), specs, autograph=False)
        self.lengths, self.owners = window_lengths(examples, read)
        self.prepare, self.prepare_whole = windows_of(read, head), texts_of_windows(read, head)

    def distributed(self, trainer: Trainer, batches: Sequence[np.ndarray], size: int) -> Any:
        """These index arrays, each cut into a part per replica; parts may be empty."""
        return distribute(trainer.strategy, lambda *cut: self._dataset(batches, cut, size, trainer.fixed))

    def training(self, trainer: Trainer, step: int) -> Any:
        """The batches from number `step` on, to the end of its epoch."""
        epoch, done = divmod(step, self.steps)
        size, sorted_by = self.config.train_batch_size, self.lengths if self.by_length else None
        order = batches_at_random(len(self.lengths), size, self.config.seed, epoch, sorted_by)
        return self.distributed(trainer, order[done:], size)

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return -(-len(self.lengths) // self.config.train_batch_size)

    def evaluate(self, trainer: Trainer) -> tuple[float, dict[str, np.ndarray]]:
        """Mean loss and answers of all texts, in their order; every worker evaluates them all."""
        size = self.config.eval_batch_size
        workers = strategies.worker(trainer.strategy)[1]
        local = trainer.strategy.num_replicas_in_sync // workers
        if self.owners is None:
            batches = batches_in_order(self.lengths, size)
            whole = distribute(
                trainer.strategy, lambda *_: self._dataset(batches, (0, local, local), size, trainer.fixed)
            )
        else:
            counts = np.bincount(self.owners[:, 0], minlength=len(self.examples))
            longest = np.zeros(len(self.examples), np.int32)
            np.maximum.at(longest, self.owners[:, 0], self.lengths)
            batches = batches_in_order(longest, size, counts)
            whole = distribute(trainer.strategy, lambda *_: self._whole(batches, local))
        tally, rows = trainer.evaluate(whole)
        numbers = rows.pop("numbers")
        real = numbers > 0
        back = np.argsort(numbers[real])
        return tally.means()["loss"], {name: values[real][back] for name, values in rows.items()}

    def _whole(self, batches: Sequence[np.ndarray], parts: int) -> Any:
        pieces = [part for batch in batches for part in np.array_split(batch, parts)]
        return dataset(self.examples, self.prepare_whole, pieces)

    def _dataset(self, batches: Sequence[np.ndarray], cut: tuple[int, int, int], size: int, fixed: bool) -> Any:
        first, last, parts = cut
        pieces = [part for batch in batches for part in np.array_split(batch, parts)[first:last]]
        shape = (-(-size // parts), self.longest) if fixed else None
        return dataset(self.examples, self.prepare, pieces, shape, self.owners)


def window_lengths(examples: Examples, read: Any, chunk: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of every window of all texts, int32 `[r]`, and its text and its number there, int32 `[r, 2]`."""
    found, owners = [np.zeros(0, np.int32)], [np.zeros((0, 2), np.int32)]
    for i in range(0, len(examples), chunk):
        features = read(*(tf.constant(encoded(segment[i : i + chunk])) for segment in examples.segments))
        counts = features["num_windows"].numpy()
        found.append(features["padding_mask"].numpy().sum(1, dtype=np.int32))
        numbers = np.concatenate([np.arange(n) for n in counts])
        owners.append(np.stack([np.repeat(np.arange(len(counts)) + i, counts), numbers], 1).astype(np.int32))
    return np.concatenate(found), np.concatenate(owners)


def windows_of(read: Any, head: Head) -> Prepare:
    """Each row is one window of a text; `read` is `text.Text.located`."""

    def prepare(segments: Sequence[Any], labels: Any, number: Any) -> dict[str, Any]:
        found = read(*segments)
        counts = found["num_windows"]
        chosen = tf.cumsum(counts, exclusive=True) + number
        one = {name: tf.gather(found[name], chosen) for name in PLACES}
        width = tf.reduce_max(tf.concat([tf.reduce_sum(tf.cast(one["padding_mask"], tf.int32), axis=1), [2]], 0))
        one = {name: value[:, :width] for name, value in one.items()}
        features = {name: one[name] for name in FEATURES if name in one}
        return {"features": features, "labels": head.targets(labels, one), "weights": tf.ones(tf.shape(counts))}

    return prepare


def texts_of_windows(read: Any, head: Head) -> Prepare:
    """All windows of each text, with what it takes to find the answer; labels and weights are those of windows."""

    def prepare(segments: Sequence[Any], labels: Any) -> dict[str, Any]:
        found = read(*segments)
        targets = head.targets(tf.gather(labels, found["rows"]), found)
        return {"features": found, "labels": targets, "weights": tf.ones(tf.shape(found["rows"]))}

    return prepare


def fit(
    network: Network,
    text: Any,
    train: Examples,
    evaluation: Examples,
    config: TrainConfig,
    optimizer: OptimizerConfig,
    keeping: Keeping | None = None,
    save_best: Callable[[Network, dict[str, Any]], None] | None = None,
    say: Say = print,
    progress: Any = None,
    windows: WindowConfig | None = None,
    finetune: FinetuneConfig | None = None,
) -> Result:
    """Train, evaluate after every epoch, and leave `network` with the weights of the best epoch.

    Args:
        network: starting weights; changed in place at the end.
        train, evaluation: rows with labels.
        keeping: where states, `metrics.jsonl` and TensorBoard events go; a run found there is continued.
        save_best: called with the network whenever an epoch is the best so far.
        say: gets the lines meant for people.
        progress: stream of the progress bar; None is silent.
        windows: how tags and spans read long texts; None leaves it to the head.
        finetune: smoothed and weighted labels, early stopping; `reinit_layers` is done before.

    Raises:
        DivergedError: a loss or gradient is not a number; states written before stay.
        ConfigError: the devices asked for are not there, or weights of labels do not suit labels or task.
        CheckpointError: a state in the directory of the run cannot be read or written.
        Stopped: a signal or the time limit; a state was written.
    """
    begun, keeping, finetune = time.monotonic(), keeping or Keeping(), finetune or FinetuneConfig()
    learnt = learnt_head(network.head.config, finetune, train.labels)
    by_length = finetune.group_by_length
    rows = LabelledRows(train, text, config, network.head, windows, by_length)
    held_out = LabelledRows(evaluation, text, config, network.head, windows)
    rounds = Rounds(config.num_train_epochs * rows.steps, rows.steps)

    def make(policy: str) -> Task:
        return HeadTask(Network(network.encoder.config, learnt, dtype=policy))

    trainer = Trainer(make, network, optimizer, config, rounds.steps)
    head = trainer.network.head
    if keeping.config.dry_run:
        rehearse(trainer, lambda step: rows.training(trainer, step), rounds)
    resumed = resume(trainer, keeping, say)
    best = max(resumed.get("history", []), key=lambda h: h[head.best_metric], default=None)
    if best is not None and keeping.folder is not None:
        load(network, open_checkpoint(keeping.folder))
        network.head.config = head.tuned(best)
    answers: dict[str, np.ndarray] = {}
    best_answers: dict[str, np.ndarray] | None = None
    cut = f" in {len(rows.lengths)} windows" if len(rows.lengths) > len(train) else ""
    say(
        f"training on {strategies.describe(trainer.strategy)}: {len(train)} rows{cut}, "
        f"{config.num_train_epochs} epochs of {rows.steps} steps, mean length {rows.lengths.mean():.1f} tokens"
    )
    sample = train.segments[-1 if head.located else 0]
    if reason := misfit(text.vocabulary, sample, text.config.do_lower_case, text.config.flavour):
        say(f"warning: {reason}")

    def evaluate() -> dict[str, Any]:
        nonlocal answers
        loss, answers = held_out.evaluate(trainer)
        return {"eval_loss": loss, **head.metrics_of(evaluation.truth, answers)}

    def conclude(record: dict[str, Any]) -> None:
        nonlocal best, best_answers
        if record["epoch"] == 1:
            _warn_if_collapsed(evaluation.labels, answers, optimizer, say)
        if best is None or record[head.best_metric] > best[head.best_metric]:
            best, best_answers = record, answers
            copy_weights(trainer.network, network)
            network.head.config = head.tuned(record)
            if save_best and strategies.worker(trainer.strategy)[0] == 0:
                save_best(network, record)

    def enough(history: list[dict[str, Any]]) -> bool:
        values = [record[head.best_metric] for record in history]
        since = len(values) - 1 - values.index(max(values)) if values else 0
        return 0 < finetune.early_stopping_patience <= since

    history, speed = run_rounds(
        trainer,
        lambda step: rows.training(trainer, step),
        rounds,
        Judge(evaluate, conclude, enough),
        keeping,
        resumed,
        say,
        progress,
    )
    assert best is not None
    if len(history) < len(rounds):
        say(f"no better {head.best_metric} for {len(history) - best['epoch']} epochs: ended after {len(history)}")
    if best_answers is None:  # the best epoch was before a restart: `network` was loaded from there
        copy_weights(network, trainer.network)
        best_answers = held_out.evaluate(trainer)[1]
    return Result(
        best=best,
        answers=best_answers,
        history=history,
        seconds=time.monotonic() - begun,
        examples_per_second=speed * len(rows.lengths) / rows.steps,
    )


def resume(trainer: Trainer, keeping: Keeping, say: Say) -> dict[str, Any]:
    """Restore the newest state of the run, if there is one; returns what its header says.

    Raises:
        CheckpointError: there are states but none can be read, or they are of another model.
    """
    if keeping.folder is None:
        return {}
    states = States(keeping.folder, keeping.config.keep_checkpoint_max)
    if strategies.worker(trainer.strategy)[0] == 0:
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


def _warn_if_collapsed(labels: Any, answers: dict[str, np.ndarray], optimizer: OptimizerConfig, say: Say) -> None:
    predicted = answers.get("class_id")
    if predicted is not None and len(predicted) > 1 and len(set(labels)) > 1 and len(set(predicted)) == 1:
        say(
            f"warning: every one of the {len(predicted)} evaluation rows got the same label; the model has collapsed. "
            f"Try a --learning_rate below {optimizer.learning_rate:g} (2e-5 to 5e-5 is usual), or more data"
        )


def environment() -> dict[str, Any]:
    """Versions and peak memory of this process, for reports."""
    return {
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "peak_memory_mb": peak_memory_mb(),
    }


def peak_memory_mb() -> int:
    """The most memory this process has held, in MiB; 0 where the system does not say."""
    try:
        import resource  # not on Windows
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024 * 1024 if platform.system() == "Darwin" else 1024))
