"""Fine-tuning: batches of labelled rows, the task of a head, and the run."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from keras_bert.checkpoints.checkpoints import load, open_checkpoint
from keras_bert.config import FEATURES, FinetuneConfig, OptimizerConfig, TrainConfig, WindowConfig
from keras_bert.data.batches import (
    Examples,
    Prepare,
    batches_at_random,
    batches_in_order,
    dataset,
    encoded,
    lengths,
    rows_of,
)
from keras_bert.data.labels import learnt_head
from keras_bert.tasks.head import Head
from keras_bert.tasks.network import Network
from keras_bert.text.wordpiece import misfit
from keras_bert.training import devices
from keras_bert.training.doors import Doors, ExtraLoss, no_trick
from keras_bert.training.loop import Judge, Keeping, Rounds, Say, rehearse, resume, run_rounds
from keras_bert.training.step import Batch, Scalars, Task, Trainer, copy_weights, distribute

PLACES = ("token_ids", "segment_ids", "padding_mask", "starts", "ends", "begins")
"""Features of a row that is a window of a text; see `text.Text.located`."""


# === Fine-tuning ===


@dataclass
class Result:
    """The result of a run: metrics and answers of the best epoch, and the history of all epochs."""

    best: dict[str, Any]
    answers: dict[str, np.ndarray]
    history: list[dict[str, Any]]
    seconds: float
    examples_per_second: float


class HeadTask(Task):
    """Rows with labels, and the head of a `network.Network`."""

    def __init__(self, network: Network) -> None:
        self.network, self.factors = network, {"loss": 1.0}
        self.extra: dict[str, ExtraLoss] = {}

    def add_losses(self, losses: dict[str, ExtraLoss]) -> None:
        self.extra = losses
        self.factors |= {name: extra.factor for name, extra in losses.items()}

    def weights(self, batch: Batch) -> Scalars:
        labelled = tf.reduce_sum(self.network.head.counts(batch["labels"]) * batch["weights"])
        return {"loss": labelled} | dict.fromkeys(self.extra, tf.reduce_sum(batch["weights"]))

    def sums(self, batch: Batch, training: bool) -> tuple[Scalars, dict[str, tuple[Any, Any]]]:
        return self._losses(batch, self.logits(batch, training)), {}

    def shifted(self, batch: Batch, shift: Any) -> tuple[Scalars, dict[str, tuple[Any, Any]]]:
        return self._losses(batch, self.logits(batch, True, shift)), {}

    def zeros(self, batch: Batch) -> Any:
        shape = tf.shape(batch["features"]["token_ids"])  # [B, T], or [B, S, T] of several rows each
        return tf.zeros([tf.reduce_prod(shape[:-1]), shape[-1], self.network.encoder.config.embedding_width])

    def evaluate(self, batch: Batch) -> tuple[Scalars, dict[str, tuple[Any, Any]], dict[str, Any]]:
        logits = self.logits(batch, False)
        answer = self.network.head.answer(logits, batch["features"])
        return {"loss": self._loss(batch, logits)}, {}, answer | {"numbers": batch["numbers"]}

    def logits(self, batch: Batch, training: bool, shift: Any = None) -> Any:
        """Logits of a batch; `shift` float32 `[rows, T, D]` is added to the token embeddings."""
        features = {name: value for name, value in batch["features"].items() if name in FEATURES}
        return self.network(features, training=training, shift=shift)

    def _losses(self, batch: Batch, logits: Any) -> Scalars:
        extra = {
            name: tf.reduce_sum(extra.loss(self, batch, logits) * batch["weights"])
            for name, extra in self.extra.items()
        }
        return {"loss": self._loss(batch, logits)} | extra

    def _loss(self, batch: Batch, logits: Any) -> Any:
        return tf.reduce_sum(self.network.head.loss(batch["labels"], logits) * batch["weights"])


class LabelledRows:
    """Labelled texts as distributed batches, for training or for evaluation.

    A row is a text or, for a head that reads windows, one window of a text. Training takes windows in
    any order, evaluation takes all windows of a text together.

    Attributes:
        lengths: number of tokens in each row.
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
        if head is None or head.config.reads != "windows":
            how = "row" if head is None else head.config.reads
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
        """The batches with these row indices, each cut into one part per replica; parts may be empty."""
        return distribute(trainer.strategy, lambda *cut: self._dataset(batches, cut, size, trainer.fixed))

    def training(self, trainer: Trainer, step: int) -> Any:
        """The batches from number `step` to the end of its epoch."""
        epoch, done = divmod(step, self.steps)
        size, sorted_by = self.config.train_batch_size, self.lengths if self.by_length else None
        order = batches_at_random(len(self.lengths), size, self.config.seed, epoch, sorted_by)
        return self.distributed(trainer, order[done:], size)

    @property
    def steps(self) -> int:
        """Number of batches in an epoch."""
        return -(-len(self.lengths) // self.config.train_batch_size)

    def evaluate(self, trainer: Trainer) -> tuple[float, dict[str, np.ndarray]]:
        """Mean loss, and the answers to all texts in their order; every worker evaluates all of them."""
        size = self.config.eval_batch_size
        workers = devices.worker(trainer.strategy)[1]
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
    """Of each of the r windows of all texts: tokens, int32 `[r]`; its text and its number in it, int32 `[r, 2]`."""
    found, owners = [np.zeros(0, np.int32)], [np.zeros((0, 2), np.int32)]
    for i in range(0, len(examples), chunk):
        features = read(*(tf.constant(encoded(segment[i : i + chunk])) for segment in examples.segments))
        counts = features["num_windows"].numpy()
        found.append(features["padding_mask"].numpy().sum(1, dtype=np.int32))
        numbers = np.concatenate([np.arange(n) for n in counts])
        owners.append(np.stack([np.repeat(np.arange(len(counts)) + i, counts), numbers], 1).astype(np.int32))
    return np.concatenate(found), np.concatenate(owners)


def windows_of(read: Any, head: Head) -> Prepare:
    """Prepares rows that are one window of a text each; `read` is `text.Text.located`."""

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
    """Prepares all windows of each text, with all that the answer needs; labels and weights are those of windows."""

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
    trick: Callable[[Trainer], Doors] = no_trick,
) -> Result:
    """Train, evaluate after every epoch, and leave `network` with the weights of the best epoch.

    Args:
        network: the initial weights; receives those of the best epoch.
        train, evaluation: labelled rows.
        keeping: where to write states, `metrics.jsonl` and TensorBoard events; a run in that directory is resumed.
        save_best: called with the network whenever an epoch is the best so far.
        say: receives messages for people.
        progress: stream of the progress bar; None is silent.
        windows: how tags and spans read long texts; None is the default of the head.
        finetune: smoothed and weighted labels, early stopping; `reinit_layers` and `new_head` come before.
        trick: changes the step, see `doors`.

    Raises:
        DivergedError: a loss or gradient is not a number; earlier states remain.
        ConfigError: the devices do not exist, or the label weights do not suit the labels or the task.
        CheckpointError: a state in the directory of the run cannot be read or written.
        Stopped: by a signal or the time limit, after writing a state.
    """
    begun, keeping, finetune = time.monotonic(), keeping or Keeping(), finetune or FinetuneConfig()
    learnt = learnt_head(network.head.config, finetune, train.labels)
    by_length = finetune.group_by_length
    rows = LabelledRows(train, text, config, network.head, windows, by_length)
    held_out = LabelledRows(evaluation, text, config, network.head, windows)
    rounds = Rounds(config.num_train_epochs * rows.steps, rows.steps)

    def make(policy: str) -> Task:
        return HeadTask(Network(network.encoder.config, learnt, dtype=policy))

    trainer = Trainer(make, network, optimizer, config, rounds.steps, trick)
    head = trainer.network.head
    if keeping.config.dry_run:
        rehearse(trainer, lambda step: rows.training(trainer, step), rounds)
    resumed = resume(trainer, keeping, say)
    best = max(resumed.get("history", []), key=lambda h: h[head.best_metric], default=None)
    if best is not None and keeping.folder is not None:
        load(network, open_checkpoint(keeping.folder))
        network.head.config = head.with_tuned_threshold(best)
    answers: dict[str, np.ndarray] = {}
    best_answers: dict[str, np.ndarray] | None = None
    cut = f" in {len(rows.lengths)} windows" if len(rows.lengths) > len(train) else ""
    say(
        f"training on {devices.describe(trainer.strategy)}: {len(train)} rows{cut}, "
        f"{config.num_train_epochs} epochs of {rows.steps} steps, mean length {rows.lengths.mean():.1f} tokens"
    )
    sample = train.segments[-1 if head.config.reads == "windows" else 0]
    if reason := misfit(text.vocabulary, sample, **text.config.tokenizer):
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
            network.head.config = head.with_tuned_threshold(record)
            if save_best and devices.worker(trainer.strategy)[0] == 0:
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


def _warn_if_collapsed(labels: Any, answers: dict[str, np.ndarray], optimizer: OptimizerConfig, say: Say) -> None:
    predicted = answers.get("class_id")
    if predicted is not None and len(predicted) > 1 and len(set(labels)) > 1 and len(set(predicted)) == 1:
        say(
            f"warning: every one of the {len(predicted)} evaluation rows got the same label; the model has collapsed. "
            f"Try a --learning_rate below {optimizer.learning_rate:g} (2e-5 to 5e-5 is usual), or more data"
        )
