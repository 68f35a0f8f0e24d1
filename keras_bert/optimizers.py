"""AdamW with rules for what decays and how fast each weight learns, and the warm-up schedule of BERT."""

import math
from typing import Any

import keras
from keras import ops

from keras_bert import rules
from keras_bert.config import OptimizerConfig, from_dict, to_dict

NO_DECAY: list[tuple[str, float]] = [(r"(^|/)(bias|gamma|beta)$", 0.0), (".*", 1.0)]
"""Factors of weight decay, by weight path: biases and layer norms do not decay."""

ONE_RATE: list[tuple[str, float]] = [(".*", 1.0)]
"""Factors of the learning rate, by weight path: all alike."""


class WarmUpLinearDecay(keras.optimizers.schedules.LearningRateSchedule):
    """From 0 up to `peak` in `warmup_steps`, then straight down to 0 at `total_steps` (Devlin et al. 2019).

    Step s (from 0) takes the rate `peak * (s + 1) / warmup_steps` while warming up, then
    `peak * (total_steps - s) / (total_steps - warmup_steps)`; no step's rate is 0.
    """

    def __init__(self, peak: float, total_steps: int, warmup_steps: int = 0) -> None:
        super().__init__()
        self.peak, self.total_steps, self.warmup_steps = peak, total_steps, warmup_steps

    def __call__(self, step: Any) -> Any:
        step = ops.cast(step, "float32")
        up = (step + 1.0) / max(self.warmup_steps, 1)
        down = (self.total_steps - step) / max(self.total_steps - self.warmup_steps, 1)
        return self.peak * ops.where(step < self.warmup_steps, up, ops.maximum(down, 0.0))

    def get_config(self) -> dict[str, Any]:
        return {"peak": self.peak, "total_steps": self.total_steps, "warmup_steps": self.warmup_steps}


class AdamW(keras.optimizers.Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), bias-corrected.

    Args:
        learning_rate: a number or a schedule.
        config: decay, betas, epsilon. Clipping is the training step's work, not the optimizer's.
        decay_rules: `(pattern, factor)` over weight paths, multiplies `config.weight_decay`.
        rate_rules: `(pattern, factor)` over weight paths, multiplies the learning rate.

    Raises:
        ConfigError: from `build`, where the rules leave a weight undecided.
    """

    def __init__(
        self,
        learning_rate: Any,
        config: OptimizerConfig | None = None,
        decay_rules: rules.Rules[float] = NO_DECAY,
        rate_rules: rules.Rules[float] = ONE_RATE,
        name: str = "adamw",
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
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
        # Inside a step only raw variables arrive, without a path: every rule is resolved here, once.
        self.decays = [self.config.weight_decay * rules.match(self.decay_rules, v.path) for v in variables]
        self.rates = [rules.match(self.rate_rules, v.path) for v in variables]
        super().build(variables)
        self.first, self.second = self.add_optimizer_variables(variables, ["first", "second"])

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        index = self._get_variable_index(variable)
        first, second = self.first[index], self.second[index]
        beta_1, beta_2 = self.config.beta_1, self.config.beta_2
        if hasattr(gradient, "dense_shape"):  # rows of a table, one per look-up: to be summed before the square
            gradient = ops.scatter(ops.expand_dims(gradient.indices, -1), gradient.values, variable.shape)
        gradient = ops.cast(gradient, variable.dtype)
        rate = ops.cast(learning_rate, variable.dtype) * self.rates[index]
        step = ops.cast(self.iterations + 1, variable.dtype)
        unbias = ops.sqrt(_one_minus_power(beta_2, step))
        correction = unbias / _one_minus_power(beta_1, step)
        self.assign_add(first, (gradient - first) * (1.0 - beta_1))
        self.assign_add(second, (ops.square(gradient) - second) * (1.0 - beta_2))
        # m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps), with the corrections pulled out of the tensors
        change = first * (rate * correction) / (ops.sqrt(second) + self.config.epsilon * unbias)
        if self.decays[index]:
            change = change + variable * (rate * self.decays[index])
        self.assign_sub(variable, change)


def _one_minus_power(beta: float, step: Any) -> Any:
    """1 - beta^step without cancellation: in float32 the plain difference is off by 1e-5 at the first steps."""
    return -ops.expm1(step * math.log(max(beta, 1e-30)))
