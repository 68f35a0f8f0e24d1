"""Fast primitives: each has one definition in `keras.ops`, which runs on every backend.

A faster TensorFlow form may stand beside a definition where it measurably wins; it must be equal in value
and gradient. Dropout has one.
"""

import math
from collections.abc import Callable
from typing import Any

import keras
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


# === Dropout ===


def dropout(x: Tensor, rate: float, seeds: Any) -> Tensor:
    """Set elements to 0 with probability `rate`; scale the others so that the mean stays (Srivastava et al. 2014).

    Args:
        seeds: a `keras.random.SeedGenerator`; one seed is taken, and it alone decides what is dropped.
    """
    form = DROPOUTS.get(keras.backend.backend(), keras.random.dropout)
    return form(x, rate, seed=seeds)


def threshold(rate: float) -> tuple[int, int]:
    """`(k, bits)`: a random integer of so many bits is below k with probability `rate`, to 2 % of the rate.

    Eight bits where they are near enough (0.1 becomes 26/256), since a draw costs by the byte; else sixteen.
    """
    k = round(rate * 2**8)
    if 0 < k < 2**8 and abs(k - rate * 2**8) <= 0.02 * k:
        return k, 8
    return min(round(rate * 2**16), 2**16 - 1), 16


def _dropout_of_bytes(x: Tensor, rate: float, seed: Any) -> Tensor:
    """A random float for every element costs more than the rest of dropout; a byte does, and is kept as a bool."""
    import tensorflow as tf

    k, bits = threshold(rate)
    integer, parts = (tf.uint8, 4) if bits == 8 else (tf.uint16, 2)
    size = tf.size(x)
    words = tf.random.stateless_uniform(
        [(size + parts - 1) // parts], tf.cast(seed.next(), tf.int32), minval=None, maxval=None, dtype=tf.uint32
    )
    drawn = tf.reshape(tf.bitcast(words, integer), [-1])[:size]
    kept = tf.reshape(drawn >= tf.constant(k, integer), tf.shape(x))
    scale = 2**bits / (2**bits - k)

    @tf.custom_gradient
    def apply(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        def thin(values: Tensor) -> Tensor:
            return values * tf.cast(kept, values.dtype) * tf.cast(scale, values.dtype)

        return thin(x), thin

    return apply(x)


DROPOUTS: dict[str, Callable[..., Tensor]] = {"tensorflow": _dropout_of_bytes}
"""Forms that are faster than `keras.random.dropout`, by backend."""
