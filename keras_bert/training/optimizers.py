"""AdamW and LAMB, with rules for weight decay and learning rate by weight path, and schedules of the rate."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_bert import rules
from keras_bert.config import EncoderConfig, OptimizerConfig, choose, from_dict, to_dict
from keras_bert.errors import ConfigError
from keras_bert.model import kernels

NO_DECAY: list[tuple[str, float]] = [(r"(^|/)(bias|gamma|beta)$", 0.0), (".*", 1.0)]
"""Factors of weight decay, by weight path: biases and layer norms do not decay."""

ONE_RATE: list[tuple[str, float]] = [(".*", 1.0)]
"""Factors of the learning rate, by weight path: the same for all."""


def layer_rates(encoder: EncoderConfig, decay: float) -> list[tuple[str, float]]:
    """Factors of the learning rate that shrink towards the input (Howard & Ruder 2018; Sun et al. 2019).

    Heads learn at the full rate, block i of L at `decay ** (L - i)`, embeddings at `decay ** (L + 1)`, where L counts
    the blocks with weights of their own.
    """
    layers = encoder.num_blocks
    blocks = [(rf"(^|/)encoder/block_{i}/", decay ** (layers - i)) for i in range(layers)]
    return [*blocks, (r"(^|/)encoder/", decay ** (layers + 1)), (".*", 1.0)]


def learning(encoder: EncoderConfig, freeze_layers: int) -> list[tuple[str, bool]]:
    """Which weights are trained, by weight path: all for -1, else all but the embeddings and that many lowest blocks.

    Raises:
        ConfigError: the encoder has fewer blocks than that.
    """
    layers = encoder.num_blocks
    if freeze_layers > layers:
        raise ConfigError(f"freeze_layers {freeze_layers} is more than the {layers} layers of the model")
    blocks = [(rf"(^|/)encoder/block_{i}/", i >= freeze_layers) for i in range(layers)]
    return [*blocks, (r"(^|/)encoder/", freeze_layers < 0), (".*", True)]


def freeze(network: keras.Model, freeze_layers: int) -> None:
    """Freeze the embeddings and lowest blocks of `network`: no gradient, decay or optimizer slot."""
    for variable in network.trainable_variables:
        variable.trainable = rules.match(learning(network.encoder.config, freeze_layers), variable.path)


# === Schedules ===

DECAYS: dict[str, Callable[[Any, float], Any]] = {
    "linear": lambda done, power: 1.0 - done,
    "polynomial": lambda done, power: (1.0 - done) ** power,
    "cosine": lambda done, power: 0.5 * (1.0 + ops.cos(math.pi * done)),
    "constant": lambda done, power: ops.ones_like(done),
}
"""`(done, power)` -> fraction of the peak rate, after the fraction `done` of the steps that follow warm-up."""


class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """From 0 up to `peak` in `warmup_steps`, then down to 0 at `total_steps` (linearly in Devlin et al. 2019).

    Step s, from 0, has the rate `peak * (s + 1) / warmup_steps` during warm-up, then `peak` times the decay at
    `(s - warmup_steps) / (total_steps - warmup_steps)`; with linear decay no step has the rate 0.

    Raises:
        ConfigError: an unknown decay.
    """

    def __init__(
        self, peak: float, total_steps: int, warmup_steps: int = 0, decay: str = "linear", power: float = 1.0
    ) -> None:
        super().__init__()
        self.peak, self.total_steps, self.warmup_steps = peak, total_steps, warmup_steps
        self.decay, self.power = decay, power
        self.left = choose(DECAYS, decay, "lr_schedule")

    def __call__(self, step: Any) -> Any:
        step = ops.cast(step, "float32")
        up = (step + 1.0) / max(self.warmup_steps, 1)
        done = 1.0 - (self.total_steps - step) / max(self.total_steps - self.warmup_steps, 1)
        return self.peak * ops.where(step < self.warmup_steps, up, self.left(ops.clip(done, 0.0, 1.0), self.power))

    def get_config(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("peak", "total_steps", "warmup_steps", "decay", "power")}


def schedule(config: OptimizerConfig, total_steps: int) -> WarmUp:
    """The schedule of these settings, over a run of `total_steps`.

    Raises:
        ConfigError: the warm-up is longer than the run.
    """
    warmup = config.num_warmup_steps
    if warmup > total_steps:
        raise ConfigError(f"num_warmup_steps {warmup} is more than the {total_steps} steps of the run")
    if warmup < 0:
        warmup = round(config.warmup_proportion * total_steps)
    return WarmUp(config.learning_rate, total_steps, warmup, config.lr_schedule, config.lr_power)


# === Optimizers ===


class Step(NamedTuple):
    """The inputs of one update of a weight.

    Attributes:
        moments: the variables of the first and second moment; `betas` are their decay rates.
        correction, epsilon: scalars that hold the bias corrections of both moments.
        rate, decay: learning rate and weight decay of this weight.
    """

    gradient: Any
    moments: tuple[Any, Any]
    betas: tuple[float, float]
    correction: Any
    epsilon: Any
    rate: Any
    decay: float


class AdamW(keras.optimizers.Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), bias-corrected.

    Args:
        learning_rate: a number or a schedule.
        config: decay, betas, epsilon, EMA. The training step does the clipping.
        decay_rules: `(pattern, factor)` over weight paths; factors multiply `config.weight_decay`.
        rate_rules: `(pattern, factor)` over weight paths; factors multiply the learning rate.

    With `config.ema_decay` above 0, `averages` holds an exponential moving average of each weight. Its decay grows from
    0.1 to that value, `min(decay, (1 + t) / (10 + t))`, so that early steps are forgotten.

    Raises:
        ConfigError: from `build`, if no rule covers a weight.
    """

    def __init__(
        self,
        learning_rate: Any,
        config: OptimizerConfig | None = None,
        decay_rules: rules.Rules[float] = NO_DECAY,
        rate_rules: rules.Rules[float] = ONE_RATE,
        name: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate=learning_rate, name=name or type(self).__name__.lower(), **kwargs)
        self.config = config or OptimizerConfig()
        self.decay_rules, self.rate_rules = decay_rules, rate_rules

    def get_config(self) -> dict[str, Any]:
        rules_ = {"decay_rules": self.decay_rules, "rate_rules": self.rate_rules}
        return super().get_config() | {"config": to_dict(self.config)} | rules_

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "AdamW":
        config = config | {"config": from_dict(OptimizerConfig, config["config"])}
        return super().from_config(config, custom_objects)

    def build(self, variables: list[Any]) -> None:
        if self.built:
            return
        # The variables of a step have no path, so the rules are resolved here, once.
        self.decays = [self.config.weight_decay * rules.match(self.decay_rules, v.path) for v in variables]
        self.rates = [rules.match(self.rate_rules, v.path) for v in variables]
        super().build(variables)
        self.first, self.second = self.add_optimizer_variables(variables, ["first", "second"])
        self.averages: list[Any] = []
        if self.config.ema_decay:
            (self.averages,) = self.add_optimizer_variables(variables, ["average"])
            for average, variable in zip(self.averages, variables, strict=True):
                average.assign(variable)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        index = self._get_variable_index(variable)
        # Rounded to float32 first: 1 - 0.999 would be off by 5e-5 in a kernel that subtracts in float32.
        beta_1, beta_2 = (float(np.float32(beta)) for beta in (self.config.beta_1, self.config.beta_2))
        if hasattr(gradient, "dense_shape"):  # one row for each lookup in a table: sum them before squaring
            gradient = ops.scatter(ops.expand_dims(gradient.indices, -1), gradient.values, variable.shape)
        gradient = ops.cast(gradient, variable.dtype)
        rate = ops.cast(learning_rate, variable.dtype) * self.rates[index]
        step = ops.cast(self.iterations + 1, variable.dtype)
        # m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps), with the bias corrections as scalars
        unbias = ops.sqrt(_one_minus_power(beta_2, step))
        correction, epsilon = unbias / _one_minus_power(beta_1, step), self.config.epsilon * unbias
        moments = self.first[index], self.second[index]
        self.change(variable, Step(gradient, moments, (beta_1, beta_2), correction, epsilon, rate, self.decays[index]))
        if self.averages:
            average = self.averages[index]
            decay = ops.minimum(self.config.ema_decay, step / (9.0 + step))
            self.assign_add(average, (variable - average) * (1.0 - decay))

    def change(self, variable: Any, step: Step) -> None:
        """Take `rate * (decay * variable + Adam's step)` from `variable`, and move its moments."""
        if step.decay:
            self.assign_sub(variable, variable * (step.rate * step.decay))
        kernels.adam(variable, step.moments, step.gradient, step.rate * step.correction, step.betas, step.epsilon)


class Lamb(AdamW):
    """LAMB (You et al. 2020, https://arxiv.org/abs/1904.00962): AdamW's update, scaled by the norm of the weight.

    Weights without decay (biases, layer norms) are not scaled, as in the authors' code.
    """

    def change(self, variable: Any, step: Step) -> None:
        if not step.decay:
            super().change(variable, step)
            return
        first, second = step.moments
        kernels.move(step.moments, step.gradient, step.betas)
        change = first * step.correction / (ops.sqrt(second) + step.epsilon) + variable * step.decay
        size, length = ops.sqrt(ops.sum(ops.square(variable))), ops.sqrt(ops.sum(ops.square(change)))
        scale = ops.where(ops.logical_and(size > 0, length > 0), size / ops.maximum(length, 1e-30), 1.0)
        self.assign_sub(variable, change * (step.rate * scale))


OPTIMIZERS: dict[str, type[AdamW]] = {"adamw": AdamW, "lamb": Lamb}


def _one_minus_power(beta: float, step: Any) -> Any:
    """1 - beta^step without cancellation: in float32 the plain difference is off by 1e-5 at the first steps."""
    return -ops.expm1(step * math.log(max(beta, 1e-30)))
