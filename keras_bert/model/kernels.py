"""Fast primitives: each has one definition in `keras.ops`, which runs on every backend.

A definition may have a faster TensorFlow form if that measurably wins; values and gradients must be equal.
"""

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_bert.config import choose

Tensor = Any
MASKED = -1e9
"""Score of a masked position: finite, so that a fully masked row stays finite too."""


def gelu(x: Tensor) -> Tensor:
    """x * Phi(x), exact (Hendrycks & Gimpel 2016). TensorFlow fuses this form into the matrix product."""
    return 0.5 * x * (1.0 + ops.erf(x * math.sqrt(0.5)))


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh approximation of GELU, which google-research/bert computes under the name "gelu"."""
    scale = math.sqrt(2.0 / math.pi)
    return 0.5 * x * (1.0 + ops.tanh(x * (scale + 0.044715 * scale * ops.square(x))))


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


# === Layer norm ===


def layer_norm(x: Tensor, gamma: Tensor, beta: Tensor, epsilon: float, training: bool = False) -> Tensor:
    """Normalise the last axis of `x` `[..., D]` (Ba et al. 2016); statistics in float32, two passes."""
    form = LAYER_NORMS.get(keras.backend.backend()) if training and len(x.shape) == 2 else None
    if form is not None:
        return form(x, gamma, beta, epsilon)
    wide = ops.cast(x, "float32")
    centred = wide - ops.mean(wide, axis=-1, keepdims=True)
    variance = ops.mean(ops.square(centred), axis=-1, keepdims=True)
    normal = centred * ops.rsqrt(variance + epsilon)
    return ops.cast(normal * ops.cast(gamma, "float32") + ops.cast(beta, "float32"), x.dtype)


def _layer_norm_of_products(x: Tensor, gamma: Any, beta: Any, epsilon: float) -> Tensor:
    """For rows `[R, D]`: sums are matrix products with a constant column, and the gradient is written out."""
    import tensorflow as tf

    @tf.custom_gradient
    def apply(x: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, ...]]]:
        wide, mean = tf.cast(x, tf.float32), tf.fill([x.shape[-1], 1], 1.0 / x.shape[-1])
        centred = wide - tf.matmul(wide, mean)
        scale = tf.math.rsqrt(tf.matmul(tf.square(centred), mean) + epsilon)
        normal = centred * scale

        def gradient(upstream: Tensor) -> tuple[Tensor, ...]:
            upstream, row = tf.cast(upstream, tf.float32), tf.ones([1, tf.shape(x)[0]])
            along, column = upstream * normal, gamma[:, tf.newaxis] * mean
            slope = upstream * gamma - tf.matmul(upstream, column) - normal * tf.matmul(along, column)
            return tf.cast(slope * scale, x.dtype), tf.matmul(row, along)[0], tf.matmul(row, upstream)[0]

        return tf.cast(normal * gamma + beta, x.dtype), gradient

    return apply(x, *(tf.cast(tf.convert_to_tensor(v), tf.float32) for v in (gamma, beta)))


LAYER_NORMS: dict[str, Callable[..., Tensor]] = {"tensorflow": _layer_norm_of_products}
"""Faster forms in training, by backend; a served graph is faster with plain ops."""


# === Heads ===


def swap(x: Tensor) -> Tensor:
    """Swap the axes of tokens and heads: `[B, T, N, H]` -> `[B, N, T, H]`, or back."""
    form = SWAPS.get(keras.backend.backend())
    return ops.transpose(x, (0, 2, 1, 3)) if form is None else form(x)


def _swap_of_bits(x: Tensor) -> Tensor:
    """For floats TensorFlow sets up a transpose plan, which can cost more than the transpose; integers skip it."""
    import tensorflow as tf

    integer, order = {2: tf.uint16, 4: tf.int32}[x.dtype.size], (0, 2, 1, 3)

    @tf.custom_gradient
    def apply(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        moved = tf.transpose(tf.bitcast(x, integer), order)
        # The gradient is plain, so that it has a gradient itself and a SavedModel can store it.
        return tf.bitcast(moved, x.dtype), lambda upstream: tf.transpose(upstream, order)

    return apply(x)


SWAPS: dict[str, Callable[[Tensor], Tensor]] = {"tensorflow": _swap_of_bits}
"""Faster forms, by backend."""


# === Padding ===


def gather(x: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
    """Select the rows of tokens: `[B * T, D]` -> `[R, D]`.

    Args:
        positions: int32 `[R]`, the position of each row.
        rows: int32 `[B * T]`, the row of each position, R for padding.
    """
    return _with_gradient(lambda x: _take(x, positions), lambda upstream: _take_or_zero(upstream, rows), x)


def spread(x: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
    """Put the rows of tokens back, with zeros for padding: `[R, D]` -> `[B * T, D]`; the gradient of `gather`."""
    return _with_gradient(lambda x: _take_or_zero(x, rows), lambda upstream: _take(upstream, positions), x)


def _take(x: Tensor, indices: Tensor) -> Tensor:
    return ops.take(x, indices, axis=0)


def _take_or_zero(x: Tensor, indices: Tensor) -> Tensor:
    """`_take`, where an index past the end gives zeros."""
    return _take(ops.pad(x, ((0, 1), (0, 0))), indices)


def _with_gradient(value: Callable[[Tensor], Tensor], gradient: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    form = GRADIENTS.get(keras.backend.backend())
    return value(x) if form is None else form(value, gradient, x)


def _written_out(value: Callable[[Tensor], Tensor], gradient: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """TensorFlow's own gradient of a gather adds up rows one by one."""
    import tensorflow as tf

    return tf.custom_gradient(lambda x: (value(x), gradient))(x)


GRADIENTS: dict[str, Callable[..., Tensor]] = {"tensorflow": _written_out}
"""How to use a known gradient, by backend; other backends derive it themselves."""


# === Softmax ===


def masked_softmax(scores: Tensor, mask: Tensor, training: bool = False) -> Tensor:
    """Softmax in float32 over the last axis of `scores` `[B, N, T, S]`.

    Args:
        mask: bool, broadcastable to `[B, 1, T, S]`; positions that are False get probability 0. A row
            without any True gets equal probabilities, not NaN.
    """
    form = SOFTMAXES.get(keras.backend.backend()) if training else None
    if form is not None:
        return form(scores, mask)
    wide = ops.where(mask, ops.cast(scores, "float32"), MASKED)
    return ops.cast(ops.softmax(wide, axis=-1), scores.dtype)


def _softmax_with_gradient(scores: Tensor, mask: Tensor) -> Tensor:
    """Keeps only the probabilities of the forward pass, in the dtype of the scores."""
    import tensorflow as tf

    allowed = tf.cast(mask, tf.float32)
    low, kept = (1.0 - allowed) * MASKED, tf.cast(mask, scores.dtype)

    @tf.custom_gradient
    def apply(scores: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        # Adding -1e9 swallows scores below 32 by rounding, and larger ones change nothing either.
        probabilities = tf.cast(tf.nn.softmax(tf.cast(scores, tf.float32) + low), scores.dtype)

        def gradient(upstream: Tensor) -> Tensor:
            weighted = upstream * probabilities
            return (weighted - probabilities * tf.reduce_sum(weighted, axis=-1, keepdims=True)) * kept

        return probabilities, gradient

    return apply(scores)


SOFTMAXES: dict[str, Callable[..., Tensor]] = {"tensorflow": _softmax_with_gradient}
"""Forms that are faster in training, by backend."""


# === Adam ===


def move(moments: tuple[Any, Any], gradient: Tensor, betas: tuple[float, float]) -> None:
    """Move Adam's two moments, variables, towards `gradient` and its square."""
    (first, second), (beta_1, beta_2) = moments, betas
    first.assign_add((gradient - first) * (1.0 - beta_1))
    second.assign_add((ops.square(gradient) - second) * (1.0 - beta_2))


def adam(
    variable: Any, moments: tuple[Any, Any], gradient: Tensor, rate: Tensor, betas: tuple[float, float], epsilon: Tensor
) -> None:
    """Move the moments, then take `rate * first / (sqrt(second) + epsilon)` from `variable` (Kingma & Ba 2015)."""
    form = ADAMS.get(keras.backend.backend())
    if form is None or not form(variable, moments, gradient, rate, betas, epsilon):
        move(moments, gradient, betas)
        variable.assign_sub(rate * moments[0] / (ops.sqrt(moments[1]) + epsilon))


def _adam_in_one_pass(
    variable: Any, moments: tuple[Any, Any], gradient: Tensor, rate: Tensor, betas: tuple[float, float], epsilon: Tensor
) -> bool:
    """One read and one write of each tensor instead of a dozen; False for distributed variables."""
    import tensorflow as tf

    weight, first, second = (v.value if isinstance(v, keras.Variable) else v for v in (variable, *moments))
    if not all(type(v).__name__ == "ResourceVariable" for v in (weight, first, second)):
        return False
    tf.raw_ops.ResourceApplyAdam(
        var=weight.handle,
        m=first.handle,
        v=second.handle,
        beta1_power=0.0,  # `rate` and `epsilon` already hold the bias corrections
        beta2_power=0.0,
        lr=rate,
        beta1=betas[0],
        beta2=betas[1],
        epsilon=epsilon,
        grad=gradient,
    )
    return True


ADAMS: dict[str, Callable[..., bool]] = {"tensorflow": _adam_in_one_pass}
"""Forms that are faster, by backend."""


# === Dropout ===


def dropout(x: Tensor, rate: float, seeds: Any) -> Tensor:
    """Set elements to 0 with probability `rate`; scale the others so that the mean stays (Srivastava et al. 2014).

    Args:
        seeds: a `keras.random.SeedGenerator`, which gives one seed, or such a seed (TensorFlow only). The seed alone
            decides what is dropped.
    """
    form = DROPOUTS.get(keras.backend.backend(), keras.random.dropout)
    return form(x, rate, seed=seeds)


def threshold(rate: float) -> tuple[int, int]:
    """`(k, bits)`: a random integer of that many bits is below k with probability `rate`, to within 2 %.

    Eight bits if they are close enough (0.1 becomes 26/256), since draws cost by the byte; else sixteen.
    """
    k = round(rate * 2**8)
    if 0 < k < 2**8 and abs(k - rate * 2**8) <= 0.02 * k:
        return k, 8
    return min(round(rate * 2**16), 2**16 - 1), 16


def _dropout_of_bytes(x: Tensor, rate: float, seed: Any) -> Tensor:
    """Draws a byte for each element: drawing a float costs more than the rest of dropout. Keeps a bool for each."""
    import tensorflow as tf

    k, bits = threshold(rate)
    integer, parts = (tf.uint8, 4) if bits == 8 else (tf.uint16, 2)
    size = tf.size(x)
    drawn = seed.next() if isinstance(seed, keras.random.SeedGenerator) else seed
    words = tf.random.stateless_uniform(
        [(size + parts - 1) // parts], tf.cast(drawn, tf.int32), minval=None, maxval=None, dtype=tf.uint32
    )
    integers = tf.reshape(tf.bitcast(words, integer), [-1])[:size]
    kept = tf.reshape(integers >= tf.constant(k, integer), tf.shape(x))
    scale = 2**bits / (2**bits - k)

    @tf.custom_gradient
    def apply(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        def thin(values: Tensor) -> Tensor:
            return values * tf.cast(kept, values.dtype) * tf.cast(scale, values.dtype)

        return thin(x), thin

    return apply(x)


DROPOUTS: dict[str, Callable[..., Tensor]] = {"tensorflow": _dropout_of_bytes}
"""Forms that are faster than `keras.random.dropout`, by backend."""
