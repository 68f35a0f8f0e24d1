"""Fast primitives: each has one definition in `keras.ops`, which runs on every backend.

A faster TensorFlow form may stand beside a definition where it measurably wins; it must be equal in value
and gradient. None does yet.
"""

import math
from collections.abc import Callable
from typing import Any

from keras import ops

from keras_bert.config import choose

Tensor = Any
MASKED = -1e9
"""Score of a position that may not be looked at: finite, so that a fully masked row stays finite too."""


def gelu(x: Tensor) -> Tensor:
    """x * Phi(x), exact (Hendrycks & Gimpel 2016). Written so that TensorFlow fuses it into the product."""
    return 0.5 * x * (1.0 + ops.erf(x * math.sqrt(0.5)))


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh approximation of GELU, which google-research/bert computes under the name "gelu"."""
    return 0.5 * x * (1.0 + ops.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)))


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "relu": ops.relu,
    "tanh": ops.tanh,
}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The function of that name.

    Raises:
        ConfigError: there is none; the message lists the names.
    """
    return choose(ACTIVATIONS, name, "activation")


def layer_norm(x: Tensor, gamma: Tensor, beta: Tensor, epsilon: float) -> Tensor:
    """Normalise the last axis of `x` `[..., D]` (Ba et al. 2016); statistics in float32, two passes."""
    wide = ops.cast(x, "float32")
    centred = wide - ops.mean(wide, axis=-1, keepdims=True)
    variance = ops.mean(ops.square(centred), axis=-1, keepdims=True)
    normal = centred * ops.rsqrt(variance + epsilon)
    return ops.cast(normal * ops.cast(gamma, "float32") + ops.cast(beta, "float32"), x.dtype)


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax in float32 over the last axis of `scores` `[B, N, T, S]`.

    Args:
        mask: bool, broadcastable to `[B, 1, T, S]`; positions that are False get probability 0. A row
            without any True gets equal probabilities, never NaN.
    """
    wide = ops.where(mask, ops.cast(scores, "float32"), MASKED)
    return ops.cast(ops.softmax(wide, axis=-1), scores.dtype)
