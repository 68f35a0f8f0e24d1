"""Normalisation: what is computed, as `NORMS`, and where a layer does it, as `NORM_PLACES`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_bert.config import EncoderConfig, choose
from keras_bert.model import kernels

Tensor = Any


class LayerNorm(keras.layers.Layer):
    """Layer normalisation over the last axis (Ba et al. 2016), with statistics in float32."""

    weight_names: tuple[str, ...] = ("gamma", "beta")

    def __init__(self, epsilon: float, use_bias: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epsilon, self.use_bias = epsilon, use_bias

    def build(self, input_shape: Any) -> None:
        self.gamma = self.add_weight(name="gamma", shape=(input_shape[-1],), initializer="ones")
        self.beta = self.add_weight(name="beta", shape=(input_shape[-1],), initializer="zeros") if self.use_bias else 0

    def call(self, x: Tensor, training: bool = False) -> Tensor:
        beta = self.beta if self.use_bias else ops.zeros_like(self.gamma)
        return kernels.layer_norm(x, self.gamma, beta, self.epsilon, training)


class RMSNorm(LayerNorm):
    """Division by the root of the mean square, and a factor for each channel (Zhang & Sennrich 2019)."""

    weight_names: tuple[str, ...] = ("gamma",)

    def __init__(self, epsilon: float, use_bias: bool = True, **kwargs: Any) -> None:
        super().__init__(epsilon, use_bias=False, **kwargs)

    def call(self, x: Tensor, training: bool = False) -> Tensor:
        return self.divided(x, self.gamma)

    def divided(self, x: Tensor, gamma: Tensor) -> Tensor:
        wide = ops.cast(x, "float32")
        normal = wide * ops.rsqrt(ops.mean(ops.square(wide), axis=-1, keepdims=True) + self.epsilon)
        return ops.cast(normal * ops.cast(gamma, "float32"), x.dtype)


class ScaleNorm(RMSNorm):
    """`RMSNorm` without weights (RoFormerV2)."""

    weight_names = ()

    def build(self, input_shape: Any) -> None:
        pass

    def call(self, x: Tensor, training: bool = False) -> Tensor:
        return self.divided(x, 1.0)


NORMS: dict[str, type[LayerNorm]] = {"layer": LayerNorm, "rms": RMSNorm, "scale": ScaleNorm}


def norm(config: EncoderConfig, name: str, dtype: Any) -> LayerNorm:
    """The norm that the config names.

    Raises:
        ConfigError: there is none of that name.
    """
    kind = choose(NORMS, config.norm, "norm")
    return kind(config.layer_norm_epsilon, use_bias=config.norm_bias, name=name, dtype=dtype)


class NormPlace(NamedTuple):
    """Where a layer normalises.

    Attributes:
        before: `(norm, x)` -> what attention and feed-forward read.
        after: `(norm, sum)` -> the output, of `x` and what they computed.
        at_the_end: whether the last layer's output is normalised once more.
    """

    before: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]
    after: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]
    at_the_end: bool


NORM_PLACES: dict[str, NormPlace] = {
    "post": NormPlace(before=lambda norm, x: x, after=lambda norm, x: norm(x), at_the_end=False),
    "pre": NormPlace(before=lambda norm, x: norm(x), after=lambda norm, x: x, at_the_end=True),
}
"""After the sum, as BERT does (Vaswani et al. 2017), or before what is added (Xiong et al. 2020)."""
