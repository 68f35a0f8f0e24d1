"""Training: one step, one loop, on one device or on all GPUs of a machine.

The step is our own because Keras 3's `fit` is wrong or broken under `tf.distribute`: gradients are summed
over replicas once, clipped once by their global norm, divided by the all-reduced number of rows, and applied
once, so that one device and many give the same update whatever the batch is split into.
"""

import functools
import json
import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_bert.checkpoints import load, open_checkpoint, write_atomic
from keras_bert.config import FEATURES, OptimizerConfig, TrainConfig
from keras_bert.data import Examples, batches_by_length, batches_in_order, dataset, lengths
from keras_bert.errors import CheckpointError, ConfigError, DivergedError
from keras_bert.heads import Network
from keras_bert.optimizers import AdamW, WarmUpLinearDecay
from keras_bert.progress import Progress, clock

METRICS_FILE = "metrics.jsonl"
Say = Callable[[str], None]
POLICIES = {"none": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}


def strategy_for(config: TrainConfig) -> tf.distribute.Strategy:
    """The `tf.distribute` strategy that the flags ask for.

    Raises:
        ConfigError: more GPUs are asked for than there are, or mirrored with no device to mirror to.
    """
    gpus = tf.config.list_logical_devices("GPU")
    if config.num_gpus > len(gpus):
        found = ", ".join(d.name for d in tf.config.list_logical_devices())
        raise ConfigError(f"num_gpus is {config.num_gpus} but {len(gpus)} are visible; the devices are {found}")
    chosen = gpus if config.num_gpus < 0 else gpus[: config.num_gpus]
    devices = [d.name for d in chosen or tf.config.list_logical_devices("CPU")]
    kind = config.distribution_strategy
    if kind == "mirrored" or (kind == "auto" and len(devices) > 1 and chosen):
        return _mirrored(tuple(devices))
    return tf.distribute.OneDeviceStrategy(devices[0])


@functools.cache
def _mirrored(devices: tuple[str, ...]) -> tf.distribute.Strategy:
    """One strategy a process: those of a second one would number their collectives like those of the first."""
    return tf.distribute.MirroredStrategy(devices)


class Trainer:
    """A network, its optimizer and the compiled steps, under one strategy.

    Args:
        network: weights to start from; it is not changed until `finish`.
        text: the tokenizer, a `text.Text`.
        total_steps: steps of the whole run, for the schedule.
    """

    def __init__(
        self, network: Network, text: Any, optimizer: OptimizerConfig, config: TrainConfig, total_steps: int
    ) -> None:
        self.config, self.text, self.strategy = config, text, strategy_for(config)
        self.rate, self.clip_norm = optimizer.learning_rate, optimizer.clip_norm
        with self.strategy.scope():
            self.network = Network(network.encoder.config, network.head.config, dtype=POLICIES[config.mixed_precision])
            copy_weights(network, self.network)
            for i, variable in enumerate(v for v in self.network.variables if "seed_generator" in v.path):
                variable.assign([config.seed % 2**32, i])
            warmup = round(optimizer.warmup_proportion * total_steps)
            schedule = WarmUpLinearDecay(optimizer.learning_rate, total_steps, warmup)
            self.optimizer = AdamW(schedule, optimizer)
            self.optimizer.build(self.network.trainable_variables)
            scaled = config.mixed_precision == "float16"
            self.loss_scale = tf.Variable(2.0**15 if scaled else 1.0, trainable=False, name="loss_scale")
            self.good_steps = tf.Variable(0, trainable=False, name="good_steps")
        self.scaled = scaled
        self._train: Any = None
        self._answer: Any = None

    @property
    def step(self) -> int:
        """Updates made so far."""
        return int(self.optimizer.iterations.numpy())

    def state(self) -> dict[str, Any]:
        """All that the next step depends on, as variables by name, for a checkpoint.

        The variables and not the network: Keras keeps the seeds of dropout from `tf.train.Checkpoint`.
        """
        variables = self.network.variables
        return {
            "weights": {v.path: v.value for v in variables if "seed_generator" not in v.path},
            "seeds": [v.value for v in variables if "seed_generator" in v.path],
            "optimizer": {v.path: v.value for v in self.optimizer.variables},
            "loss_scale": self.loss_scale,
            "good_steps": self.good_steps,
        }

    def distribute(self, examples: Examples, batches: list[np.ndarray]) -> Any:
        """The batches as a distributed dataset: each is cut into one part per replica, parts may be empty."""
        replicas = self.strategy.num_replicas_in_sync
        parts = [part for batch in batches for part in np.array_split(batch, replicas)]
        return self.strategy.distribute_datasets_from_function(lambda context: dataset(examples, self.text, parts))

    def train_batches(self, batches: Any) -> Any:
        """Train on each batch; yields `(loss, rows, finite)` of the step before, so the device never waits."""
        before = None
        for batch in batches:
            if self._train is None:
                self._train = tf.function(self._train_step, input_signature=[batches.element_spec])
            now = self._train(batch)
            if before is not None:
                yield [float(x) for x in before]
            before = now
        if before is not None:
            yield [float(x) for x in before]

    def _train_step(self, batch: Any) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        loss_sums, counts, gradients = self.strategy.run(self._gradients, args=(batch,))
        variables = [v.value for v in self.network.trainable_variables]
        count = tf.maximum(self.strategy.reduce("SUM", counts, axis=None), 1.0)
        loss = self.strategy.reduce("SUM", loss_sums, axis=None) / count
        extended = self.strategy.extended
        gradients = extended.batch_reduce_to("SUM", list(zip(gradients, variables, strict=True)))
        local = [self.strategy.experimental_local_results(g)[0] for g in gradients]
        norm = tf.linalg.global_norm(local) / (count * self.loss_scale)
        finite = tf.math.is_finite(norm) & tf.math.is_finite(loss)
        clip = tf.minimum(1.0, self.clip_norm / tf.maximum(norm, 1e-30)) if self.clip_norm else 1.0
        factor = clip / (count * self.loss_scale)
        rate = self.optimizer.learning_rate

        def update(variable: Any, gradient: Any, factor: Any, rate: Any) -> None:
            self.optimizer.update_step(gradient * factor, variable, rate)

        def apply() -> tf.Tensor:
            for variable, gradient in zip(variables, gradients, strict=True):
                extended.update(variable, update, args=(gradient, factor, rate), group=False)
            self.optimizer.iterations.assign_add(1)
            return tf.constant(True)

        tf.cond(finite, apply, lambda: tf.constant(False))
        if self.scaled:
            self._rescale(finite)
        return loss, count, tf.cast(finite, tf.float32)

    def _gradients(self, batch: Any) -> tuple[Any, Any, list[Any]]:
        """Of one replica: loss summed over its rows, number of rows, gradients of the (scaled) sum."""
        features, labels, _ = batch
        known = {name: features[name] for name in FEATURES if name in features}
        with tf.GradientTape() as tape:
            logits = self.network(known, training=True)
            loss = tf.reduce_sum(self.network.head.loss(labels, logits))
            scaled = loss * self.loss_scale
        variables = self.network.trainable_variables
        gradients = tape.gradient(scaled, [v.value for v in variables])
        dense = [
            tf.zeros(v.shape, v.dtype) if g is None else tf.convert_to_tensor(g)
            for g, v in zip(gradients, variables, strict=True)
        ]
        return loss, tf.cast(tf.shape(labels)[0], tf.float32), dense

    def _rescale(self, finite: tf.Tensor) -> None:
        """Dynamic loss scale: halve it after a step that overflowed, double it after 2000 that did not."""
        good = tf.where(finite, self.good_steps + 1, 0)
        grow = good >= 2000
        scale = tf.where(finite, tf.where(grow, self.loss_scale * 2.0, self.loss_scale), self.loss_scale * 0.5)
        self.loss_scale.assign(tf.clip_by_value(scale, 1.0, 2.0**24))
        self.good_steps.assign(tf.where(grow, 0, good))

    def evaluate(self, examples: Examples) -> tuple[float, dict[str, np.ndarray]]:
        """Mean loss and answers of all rows, in their order."""
        batches = batches_in_order(lengths(examples, self.text), self.config.eval_batch_size)
        distributed = self.distribute(examples, batches)
        if self._answer is None:
            self._answer = tf.function(
                lambda batch: self.strategy.run(self._evaluate_step, args=(batch,)),
                input_signature=[distributed.element_spec],
            )
        total, parts, order = 0.0, [], []
        for batch in distributed:
            losses, answers, indices = self._answer(batch)
            local = self.strategy.experimental_local_results
            total += sum(float(x) for x in local(losses))
            order += [x.numpy() for x in local(indices)]
            parts += [{k: local(v)[r].numpy() for k, v in answers.items()} for r in range(len(local(losses)))]
        back = np.argsort(np.concatenate(order))
        return total / len(examples), {k: np.concatenate([p[k] for p in parts])[back] for k in parts[0]}

    def _evaluate_step(self, batch: Any) -> tuple[Any, dict[str, Any], Any]:
        features, labels, indices = batch
        known = {name: features[name] for name in FEATURES if name in features}
        logits = self.network(known, training=False)
        head = self.network.head
        return tf.reduce_sum(head.loss(labels, logits)), head.answer(logits), indices


def copy_weights(source: Network, target: Network) -> None:
    """Assign every weight of `source` to `target`, by path; seeds of dropout stay."""
    values = {v.path: v for v in source.weights if "seed_generator" not in v.path}
    for variable in target.weights:
        if variable.path in values:
            variable.assign(values[variable.path])


@dataclass
class Result:
    """What a run came to: metrics of the best epoch, answers of that epoch, and the history of all."""

    best: dict[str, Any]
    answers: dict[str, np.ndarray]
    history: list[dict[str, Any]]
    seconds: float
    examples_per_second: float


def fit(
    network: Network,
    text: Any,
    train: Examples,
    evaluation: Examples,
    config: TrainConfig,
    optimizer: OptimizerConfig,
    model_dir: Path | None = None,
    save_best: Callable[[Network, dict[str, Any]], None] | None = None,
    say: Say = print,
    progress: Any = None,
) -> Result:
    """Train, evaluate after every epoch, and leave `network` with the weights of the best epoch.

    Args:
        network: starting weights; changed in place at the end.
        train, evaluation: rows with labels.
        model_dir: where checkpoints, `metrics.jsonl` and TensorBoard events go; a run found there is
            continued after its last finished epoch. None keeps nothing.
        save_best: called with the network whenever an epoch is the best so far.
        say: gets the lines meant for people.
        progress: stream of the progress bar; None is silent.

    Raises:
        DivergedError: a loss or gradient is not a number; checkpoints of finished epochs stay.
        ConfigError: the devices asked for are not there.
        CheckpointError: the checkpoint in `model_dir` cannot be read or written.
    """
    start = time.monotonic()
    row_lengths = lengths(train, text)
    steps_per_epoch = math.ceil(len(train) / config.train_batch_size)
    trainer = Trainer(network, text, optimizer, config, config.num_train_epochs * steps_per_epoch)
    head = trainer.network.head
    epochs_done = tf.Variable(0, trainable=False, name="epochs_done")
    checkpoint = tf.train.Checkpoint(**trainer.state(), epochs_done=epochs_done)
    manager = writer = None
    history: list[dict[str, Any]] = []
    if model_dir is not None:
        manager, history = _resume(checkpoint, model_dir, network, epochs_done, say)
        writer = tf.summary.create_file_writer(str(model_dir / "tensorboard"))
    best = max(history, key=lambda h: h[head.best_metric], default=None)
    say(
        f"training on {trainer.strategy.num_replicas_in_sync} x {_device(trainer.strategy)}: {len(train)} rows, "
        f"{config.num_train_epochs} epochs of {steps_per_epoch} steps, mean length {row_lengths.mean():.1f} tokens"
    )
    best_answers: dict[str, np.ndarray] | None = None
    rows_done, train_seconds = 0, 0.0
    first = int(epochs_done.numpy())
    for epoch in range(first, config.num_train_epochs):
        label, epoch_start = f"epoch {epoch + 1}/{config.num_train_epochs}", time.monotonic()
        batches = batches_by_length(row_lengths, config.train_batch_size, config.seed, epoch)
        train_loss = _train_epoch(trainer, trainer.distribute(train, batches), len(batches), label, progress)
        train_seconds += time.monotonic() - epoch_start
        rows_done += len(train)
        eval_loss, answers = trainer.evaluate(evaluation)
        record = {
            "epoch": epoch + 1,
            "step": trainer.step,
            "train_loss": train_loss,
            "eval_loss": eval_loss,
            **head.metrics_of(evaluation.labels, answers),
            "seconds": round(time.monotonic() - epoch_start, 2),
        }
        history.append(record)
        more = config.num_train_epochs - epoch - 1
        left = f"  {clock(more * (time.monotonic() - start) / (epoch + 1 - first))} left" if more else ""
        say(f"{label}  " + "  ".join(f"{k} {v:.4f}" for k, v in record.items() if isinstance(v, float)) + left)
        if len(history) == 1:
            _warn_if_collapsed(evaluation.labels, answers, optimizer, say)
        if best is None or record[head.best_metric] > best[head.best_metric]:
            best, best_answers = record, answers
            copy_weights(trainer.network, network)
            if save_best:
                save_best(network, record)
        epochs_done.assign(epoch + 1)
        if manager is not None and model_dir is not None:
            _write(manager, model_dir, history, writer)
    assert best is not None
    if best_answers is None:  # the best epoch was before a restart: `network` was loaded from there
        copy_weights(network, trainer.network)
        best_answers = trainer.evaluate(evaluation)[1]
    return Result(
        best=best,
        answers=best_answers,
        history=history,
        seconds=time.monotonic() - start,
        examples_per_second=rows_done / max(train_seconds, 1e-9),
    )


def _train_epoch(trainer: Trainer, batches: Any, steps: int, label: str, progress: Any) -> float:
    """Train on the batches of one epoch; returns the mean loss of their rows."""
    loss_sum = rows = 0.0
    with Progress(label, steps, progress) as bar:
        for number, (loss, count, finite) in enumerate(trainer.train_batches(batches), 1):
            if not math.isfinite(loss) or not (finite or trainer.loss_scale > 1):  # else a smaller scale may help
                raise DivergedError(
                    f"{label}, step {number} of {steps}: the loss or its gradient is not a number; "
                    f"lower --learning_rate (now {trainer.rate:g}), or train without mixed precision"
                )
            loss_sum, rows = loss_sum + loss * count, rows + count
            bar.add(1, loss=loss_sum / max(rows, 1))
    return loss_sum / max(rows, 1)


def _resume(
    checkpoint: Any, model_dir: Path, network: Network, epochs_done: Any, say: Say
) -> tuple[Any, list[dict[str, Any]]]:
    """Restore the newest checkpoint of `model_dir`, if there is one.

    Returns:
        The manager of the checkpoints, and the history of the epochs that are done.
    """
    folder = model_dir / "checkpoints"
    found = [path.name for path in folder.glob("ckpt-*.index")]
    try:
        manager = tf.train.CheckpointManager(checkpoint, str(folder), max_to_keep=1)
    except ValueError:  # an empty state file; one with other rubbish in it gives no latest checkpoint
        manager = None
    if manager is None or (found and manager.latest_checkpoint is None):
        raise CheckpointError(
            f"{folder}: has {', '.join(found) or 'no checkpoint'} but its `checkpoint` file is broken; "
            "mend it, or start anew with --overwrite"
        )
    if not found:
        return manager, []
    try:
        checkpoint.restore(manager.latest_checkpoint).assert_existing_objects_matched()
        lines = (model_dir / METRICS_FILE).read_text("utf-8").splitlines()
        history = [json.loads(line) for line in lines[: int(epochs_done.numpy())]]
        if len(history) < int(epochs_done.numpy()):
            raise ValueError(f"{METRICS_FILE} has {len(history)} of {int(epochs_done.numpy())} epochs")
    except (tf.errors.OpError, AssertionError, IndexError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{manager.latest_checkpoint}: cannot be restored ({str(error).splitlines()[0]}); "
            "start anew with --overwrite"
        ) from error
    load(network, open_checkpoint(model_dir))
    say(f"continuing the run in {model_dir} after epoch {len(history)}")
    return manager, history


def _write(manager: Any, model_dir: Path, history: list[dict[str, Any]], writer: Any) -> None:
    """After an epoch: the metrics so far, TensorBoard events, then the checkpoint that counts the epoch."""
    record = history[-1]
    try:
        write_atomic(model_dir / METRICS_FILE, "".join(json.dumps(h) + "\n" for h in history))
        with writer.as_default(step=record["step"]):
            for name, value in record.items():
                if isinstance(value, float):
                    tf.summary.scalar(name, value)
        writer.flush()
        manager.save()
    except (tf.errors.OpError, OSError) as error:
        raise CheckpointError(f"{model_dir}: cannot be written ({str(error).splitlines()[0]})") from error


def _warn_if_collapsed(labels: Any, answers: dict[str, np.ndarray], optimizer: OptimizerConfig, say: Say) -> None:
    predicted = answers.get("class_id")
    if predicted is not None and len(predicted) > 1 and len(set(labels)) > 1 and len(set(predicted)) == 1:
        say(
            f"warning: every one of the {len(predicted)} evaluation rows got the same label; the model has collapsed. "
            f"Try a --learning_rate below {optimizer.learning_rate:g} (2e-5 to 5e-5 is usual), or more data"
        )


def _device(strategy: tf.distribute.Strategy) -> str:
    """`GPU`, or `CPU (8 cores)`."""
    device = strategy.extended.worker_devices[0]
    kind = tf.DeviceSpec.from_string(device).device_type
    return f"CPU ({os.cpu_count()} cores)" if kind == "CPU" else str(kind)


def environment() -> dict[str, Any]:
    """Versions and peak memory of this process, for reports."""
    try:
        import resource  # not on Windows
    except ImportError:
        peak = 0
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "peak_memory_mb": round(peak / (1024 * 1024 if platform.system() == "Darwin" else 1024)),
    }
