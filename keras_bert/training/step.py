"""One step of training, on one device, on all GPUs of a machine, or on many machines.

The step is our own because Keras 3's `fit` is wrong or broken under `tf.distribute`: losses are divided by a
weight that is summed over all replicas and micro-batches, gradients are summed once, clipped once by their global
norm and applied once, so that one device and many give the same update whatever a batch is cut into.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_bert.config import OptimizerConfig, TrainConfig, choose
from keras_bert.errors import CheckpointError, ConfigError
from keras_bert.model.encoder import View
from keras_bert.training import devices
from keras_bert.training.devices import Strategy, strategy_for
from keras_bert.training.doors import ASCENTS, Doors, ExtraLoss, Pass, no_trick
from keras_bert.training.optimizers import ONE_RATE, OPTIMIZERS, freeze, layer_rates, schedule

Batch = Any
Scalars = dict[str, Any]
Arrays = dict[str, np.ndarray]
SPREAD = 0x9E3779B9
"""Distance between the seeds of two dropouts, so that no two ever draw the same numbers."""

POLICIES = {"none": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}


# === The task ===


class Task:
    """A network and its losses: all that training knows about what it trains.

    A batch is a nested dict of tensors whose first axis is B, which may be 0. Losses are sums over the batch;
    `weights` returns the normaliser of each loss, summed over the global batch, without a forward pass.

    Attributes:
        network: a `keras.Model` with a `config`-bearing `encoder`, and `encoders`, a tuple of all it has; all its
            trainable weights are trained.
        factors: the weight of each loss in the total.
    """

    network: Any
    factors: dict[str, float]

    def weights(self, batch: Batch) -> Scalars:
        """The weight of each loss in this batch, float32 scalars under the names of `factors`."""
        raise NotImplementedError(type(self).__name__)

    def sums(self, batch: Batch, training: bool) -> tuple[Scalars, dict[str, tuple[Any, Any]]]:
        """Each loss summed over the batch, and measures such as accuracies as `(sum, count)`."""
        raise NotImplementedError(type(self).__name__)

    def shifted(self, batch: Batch, shift: Any) -> tuple[Scalars, dict[str, tuple[Any, Any]]]:
        """`sums` in training, with `shift` `[rows, T, D]` added to the token embeddings."""
        raise ConfigError(f"{type(self).__name__} cannot shift embeddings, as ascents do")

    def add_losses(self, losses: dict[str, ExtraLoss]) -> None:
        """Train on these losses too, under new names in `factors`."""
        if losses:
            raise ConfigError(f"{type(self).__name__} takes no further losses")

    def zeros(self, batch: Batch) -> Any:
        """The `shift` that changes nothing, float32 `[rows, T, D]`."""
        raise ConfigError(f"{type(self).__name__} cannot shift embeddings, as ascents do")

    def evaluate(self, batch: Batch) -> tuple[Scalars, dict[str, tuple[Any, Any]], dict[str, Any]]:
        """`sums` without dropout, and the tensors per row that an evaluation collects; none by default.

        Losses that only training has are left out.
        """
        return *self.sums(batch, False), {}


def copy_weights(source: keras.Model, target: keras.Model) -> None:
    """Assign every weight of `source` to `target`, by path, except for seeds of dropout."""
    values = {v.path: v for v in source.weights if "seed_generator" not in v.path}
    for variable in target.weights:
        if variable.path in values:
            variable.assign(values[variable.path])


# === One step ===


class Trainer:
    """A task, its optimizer and the compiled steps, under one strategy.

    Args:
        make: builds the task for a dtype policy; called once, in the scope of the strategy.
        start: a model with the initial weights; it is not changed.
        total_steps: steps of the whole run, for the schedule.
        trick: returns the `Doors` of a trick; called once, in the scope of the strategy, when the task and the
            optimizer are built.
    """

    def __init__(
        self,
        make: Callable[[str], Task],
        start: keras.Model,
        optimizer: OptimizerConfig,
        config: TrainConfig,
        total_steps: int,
        trick: Callable[["Trainer"], Doors] = no_trick,
    ) -> None:
        self.config, self.strategy = config, strategy_for(config)
        self.rate, self.clip_norm = optimizer.learning_rate, optimizer.clip_norm
        self.fixed = config.jit_compile == "on" or devices.is_tpu(self.strategy)
        with self.strategy.scope():
            self.task = make(POLICIES[config.mixed_precision])
            self.network = self.task.network
            copy_weights(start, self.network)
            freeze(self.network, optimizer.freeze_layers)
            for encoder in self.network.encoders:
                encoder.recompute, encoder.tokens_only = config.recompute, not self.fixed
            for i, variable in enumerate(self.seeds):
                variable.assign([(config.seed + i * SPREAD) % 2**32, 0])  # each call adds 1 to the second number
            decay = optimizer.layer_decay
            rates = ONE_RATE if decay == 1 else layer_rates(self.network.encoder.config, decay)
            rate = schedule(optimizer, total_steps)
            self.optimizer = choose(OPTIMIZERS, optimizer.optimizer, "optimizer")(rate, optimizer, rate_rules=rates)
            self.optimizer.build(self.network.trainable_variables)
            scaled = config.mixed_precision == "float16"
            self.loss_scale = tf.Variable(2.0**15 if scaled else 1.0, trainable=False, name="loss_scale")
            self.good_steps = tf.Variable(0, trainable=False, name="good_steps")
            self.doors = trick(self)
        self.ascent = choose(ASCENTS, self.doors.ascent, "ascent")
        self.task.add_losses(self.doors.losses)
        self.scaled = scaled
        part = self._part
        self._compiled = tf.function(part, jit_compile=True) if config.jit_compile == "on" else part
        self.pending: Any = None
        self._spec: Any = None
        self._steps: dict[str, Any] = {}
        self._names: dict[str, list[str]] = {}

    @property
    def step(self) -> int:
        """Number of updates so far; a batch with a gradient that is not finite makes none."""
        return int(self.optimizer.iterations.numpy())

    @property
    def seeds(self) -> list[Any]:
        """The seeds of dropout."""
        return [v for v in self.network.variables if "seed_generator" in v.path]

    def variables(self) -> dict[str, Any]:
        """Everything that the next step depends on, by name."""
        return {
            **{f"weights/{v.path}": v for v in self.network.variables if "seed_generator" not in v.path},
            **{f"seeds/{i}": v for i, v in enumerate(self.seeds)},
            **{f"optimizer/{v.path}": v for v in self.optimizer.variables},
            "loss_scale": self.loss_scale,
            "good_steps": self.good_steps,
            **{f"doors/{name}": v for name, v in self.doors.variables.items()},
        }

    def state(self) -> Arrays:
        """The values of `variables`."""
        return {name: np.array(v.numpy()) for name, v in self.variables().items()}

    def restore(self, arrays: Arrays) -> None:
        """Assign what `state` returned.

        Raises:
            CheckpointError: a variable is missing or has another shape; nothing has been changed.
        """
        variables = self.variables()
        shapes = {name: tuple(v.shape) for name, v in variables.items()}
        stored = {name: value.shape for name, value in arrays.items()}
        differences = [
            f"{name} is {stored.get(name, 'missing')} there and {shapes.get(name, 'missing')} here"
            for name in sorted(set(shapes) | set(stored))
            if shapes.get(name) != stored.get(name)
        ]
        if differences:
            more = f" and {len(differences) - 5} more" if len(differences) > 5 else ""
            raise CheckpointError(f"the state is of another model: {'; '.join(differences[:5])}{more}")
        for name, variable in variables.items():
            variable.assign(arrays[name])

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within this context the network holds the averaged weights, if the optimizer keeps averages."""
        averages = getattr(self.optimizer, "averages", [])
        pairs = list(zip(averages, self.network.trainable_variables, strict=bool(averages)))

        def swap() -> None:
            for average, variable in pairs:
                value = variable.numpy()
                variable.assign(average)
                average.assign(value)

        swap()
        try:
            yield
        finally:
            swap()

    # --- Training ---

    def take(self, batches: Any) -> Iterator[Batch]:
        """The batches of a distributed dataset, for `train`."""
        spec = batches.element_spec
        if self._spec != spec:
            self._spec, signature = spec, [spec, tf.TensorSpec([], tf.float32)]
            self._steps["train"] = tf.function(self._train_step, input_signature=signature, autograph=False)
        return iter(batches)

    def train(self, batch: Batch, stop: bool = False) -> dict[str, float]:
        """Make one update, and return the values of the update before it, so that the device never waits.

        Returns:
            Nothing at the first call; `flush` returns the values of the last. `loss`, `finite` (0 if no update was
            made), `stop` (some worker was told to stop), and the sum and weight of each loss and measure.
        """
        before = self.pending
        self.pending = self._steps["train"](batch, tf.constant(float(stop)))
        return self._floats(before)

    def flush(self) -> dict[str, float]:
        """The values of the last update; waits for it."""
        before, self.pending = self.pending, None
        return self._floats(before)

    def _floats(self, found: Any) -> dict[str, float]:
        return {} if found is None else dict(zip(self._names["train"], found.numpy().tolist(), strict=True))

    def _train_step(self, batch: Batch, stop: Any) -> tf.Tensor:
        total = lambda value: self.strategy.reduce("SUM", value, axis=None)  # noqa: E731
        names = list(self.task.factors)
        counts = total(self.strategy.run(self._counts, args=(batch, stop)))
        scales = tf.math.divide_no_nan(tf.constant(list(self.task.factors.values())), counts[1:])
        sums, gradients = self.strategy.run(self._gradients, args=(batch, scales))
        sums = total(sums)
        loss = tf.reduce_sum(sums[: len(names)] * scales)
        variables = [v.value for v in self.network.trainable_variables]
        extended = self.strategy.extended
        gradients = extended.batch_reduce_to("SUM", list(zip(gradients, variables, strict=True)))
        local = [self.strategy.experimental_local_results(g)[0] for g in gradients]
        norm = tf.linalg.global_norm(local) / self.loss_scale
        finite = tf.math.is_finite(norm) & tf.math.is_finite(loss)
        clip = tf.minimum(1.0, self.clip_norm / tf.maximum(norm, 1e-30)) if self.clip_norm else 1.0
        factor, rate = clip / self.loss_scale, self.optimizer.learning_rate

        def update(variable: Any, gradient: Any, factor: Any, rate: Any) -> None:
            self.optimizer.update_step(gradient * factor, variable, rate)

        def apply() -> tf.Tensor:
            for variable, gradient in zip(variables, gradients, strict=True):
                extended.update(variable, update, args=(gradient, factor, rate), group=False)
            self.optimizer.iterations.assign_add(1)
            for change in self.doors.after_step:
                change()
            return tf.constant(True)

        tf.cond(finite, apply, lambda: tf.constant(False))
        if self.scaled:
            self._rescale(finite)
        self._names["train"] = ["loss", "finite", "stop", *(f"{n}/weight" for n in names), *self._names["sums"]]
        return tf.concat([[loss, tf.cast(finite, tf.float32)], counts, sums], 0)

    def _counts(self, batch: Batch, stop: Any) -> tf.Tensor:
        weights = self.task.weights(batch)
        return tf.stack([stop, *(tf.cast(weights[name], tf.float32) for name in self.task.factors)])

    def _gradients(self, batch: Batch, scales: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """On one replica: losses and measures summed over its rows, and the gradients of the scaled total."""
        parts = self.config.grad_accum_steps
        if parts == 1:
            return self._compiled(batch, scales)
        rows = tf.nest.flatten(batch)[0].shape[0]
        if rows is not None and rows % parts:
            rows = None

        def piece(i: Any) -> Batch:
            if rows is not None:  # static sizes stay static, as XLA requires
                size = rows // parts
                return tf.nest.map_structure(
                    lambda t: tf.slice(t, [i * size, *[0] * (t.shape.rank - 1)], [size, *t.shape[1:]]), batch
                )
            count = tf.shape(tf.nest.flatten(batch)[0])[0]
            return tf.nest.map_structure(lambda t: t[i * count // parts : (i + 1) * count // parts], batch)

        def add(i: Any, sums: Any, gradients: list[Any]) -> tuple[Any, Any, list[Any]]:
            more, found = self._compiled(piece(i), scales)
            return i + 1, sums + more, [a + b for a, b in zip(gradients, found, strict=True)]

        first = self._compiled(piece(tf.constant(0)), scales)
        _, sums, gradients = tf.while_loop(lambda i, *_: i < parts, add, [tf.constant(1), *first])
        return sums, gradients

    def _part(self, batch: Batch, scales: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
        found = self.ascent(lambda shift: self._pass(batch, scales, shift), lambda: self.task.zeros(batch))
        return found.sums, found.gradients

    def _pass(self, batch: Batch, scales: tf.Tensor, shift: Any) -> Pass:
        """Forward and backward once, with `shift` added to the token embeddings where it is not None."""
        with tf.GradientTape() as tape:
            if shift is not None:
                tape.watch(shift)
            with self._viewed():
                losses, measures = self.task.sums(batch, True) if shift is None else self.task.shifted(batch, shift)
            each = [tf.cast(losses[name], tf.float32) for name in self.task.factors]
            scaled = tf.reduce_sum(tf.stack(each) * scales) * self.loss_scale
        self._names["sums"] = [
            *(f"{name}/sum" for name in self.task.factors),
            *(f"{name}/{what}" for name in measures for what in ("sum", "weight")),
        ]
        counted = [tf.cast(value, tf.float32) for pair in measures.values() for value in pair]
        variables = self.network.trainable_variables
        gradients, ascent = tape.gradient(scaled, ([v.value for v in variables], [] if shift is None else [shift]))
        dense = [
            tf.zeros(v.shape, v.dtype) if g is None else tf.convert_to_tensor(g)
            for g, v in zip(gradients, variables, strict=True)
        ]
        return Pass(tf.stack([*each, *counted]), dense, ascent[0] / self.loss_scale if ascent else None)

    @contextmanager
    def _viewed(self) -> Iterator[None]:
        """In here the network reads what the view gives; the seeds that moved stay moved."""
        if self.doors.view is None:
            yield
            return
        weights = [v for v in self.network.variables if "seed_generator" not in v.path]
        tensors = [(v, self.doors.view(v)) for v in weights]
        with View([(v, tf.convert_to_tensor(tensor)) for v, tensor in tensors if tensor is not None]) as scope:
            yield
        for seed in self.seeds:
            moved = scope.get_current_value(seed)
            if moved is not None:
                seed.assign(moved)

    def _rescale(self, finite: tf.Tensor) -> None:
        """Dynamic loss scale: halve it after a step that overflows, double it after 2000 that do not."""
        good = tf.where(finite, self.good_steps + 1, 0)
        grow = good >= 2000
        scale = tf.where(finite, tf.where(grow, self.loss_scale * 2.0, self.loss_scale), self.loss_scale * 0.5)
        self.loss_scale.assign(tf.clip_by_value(scale, 1.0, 2.0**24))
        self.good_steps.assign(tf.where(grow, 0, good))

    # --- Evaluation ---

    def evaluate(self, batches: Any) -> tuple["Tally", dict[str, np.ndarray]]:
        """Losses and measures over all batches, and what the task collects for each row, in the order of the rows."""
        tally, parts, local = Tally(self.task.factors), [], self.strategy.experimental_local_results
        if "evaluate" not in self._steps:
            step = lambda batch: self.strategy.run(self._evaluate_step, args=(batch,))  # noqa: E731
            self._steps["evaluate"] = tf.function(step, input_signature=[batches.element_spec], autograph=False)
        for batch in batches:
            counted, rows = self._steps["evaluate"](batch)
            for value in local(counted):
                tally.add(dict(zip(self._names["evaluate"], value.numpy().tolist(), strict=True)))
            parts += [{k: local(v)[r].numpy() for k, v in rows.items()} for r in range(len(local(counted)))]
        return tally, {k: np.concatenate([p[k] for p in parts]) for k in (parts[0] if parts else ())}

    def _evaluate_step(self, batch: Batch) -> tuple[tf.Tensor, dict[str, Any]]:
        weights, (losses, measures, rows) = self.task.weights(batch), self.task.evaluate(batch)
        pairs = {name: (loss, weights[name]) for name, loss in losses.items()} | measures
        self._names["evaluate"] = [f"{name}/{what}" for name in pairs for what in ("sum", "weight")]
        return tf.stack([tf.cast(value, tf.float32) for pair in pairs.values() for value in pair]), rows


class Tally:
    """Sums of losses and measures over steps, and their means.

    Args:
        factors: the weight of each loss in the total.
        sums: sums to start from, `{"NAME/sum": ..., "NAME/weight": ...}`.
    """

    def __init__(self, factors: dict[str, float], sums: dict[str, float] | None = None) -> None:
        self.factors, self.sums = factors, dict(sums or {})

    def add(self, values: dict[str, float]) -> None:
        """Add the sums and weights of a step; other values are ignored."""
        for name, value in values.items():
            if name.endswith(("/sum", "/weight")):
                self.sums[name] = self.sums.get(name, 0.0) + value

    def means(self, prefix: str = "") -> dict[str, float]:
        """`PREFIXloss`, and each loss and measure if there are several."""
        names = [name.removesuffix("/sum") for name in self.sums if name.endswith("/sum")]
        each = {n: self.sums[f"{n}/sum"] / max(self.sums.get(f"{n}/weight", 0.0), 1e-30) for n in names}
        loss = sum(factor * each.get(name, 0.0) for name, factor in self.factors.items())
        detail = (
            {} if names == ["loss"] else {f"{prefix}{n}{'_loss' * (n in self.factors)}": v for n, v in each.items()}
        )
        return {f"{prefix}loss": loss} | detail


def distribute(strategy: Strategy, cut: Callable[[int, int, int], Any]) -> Any:
    """A dataset that gives every replica of this process its part of each batch.

    Args:
        cut: `(first, last, all)` -> a `tf.data.Dataset`. Each batch is cut into `all` parts; the dataset yields parts
            `first` to `last - 1` of each, one after the other.
    """
    if isinstance(strategy, tf.distribute.OneDeviceStrategy):
        # The strategy's own iterators tune themselves in a thread, and wait for it, for seconds, when they end.
        return cut(0, 1, 1)
    number, workers = devices.worker(strategy)
    everyone = strategy.num_replicas_in_sync
    mine = everyone // workers
    return strategy.distribute_datasets_from_function(lambda _: cut(number * mine, (number + 1) * mine, everyone))
