"""Fast primitives: each has one definition in `keras.ops`, which runs on every backend.

A faster TensorFlow form may stand beside a definition where it measurably wins; it must be equal in value
and gradient.
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
    """Rows `[R, D]`: sums are products with a column of equal numbers, and the gradient is written out."""
    import tensorflow as tf

    @tf.custom_gradient
    def apply(x: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, ...]]]:
        wide, share = tf.cast(x, tf.float32), tf.fill([x.shape[-1], 1], 1.0 / x.shape[-1])
        centred = wide - tf.matmul(wide, share)
        scale = tf.math.rsqrt(tf.matmul(tf.square(centred), share) + epsilon)
        normal = centred * scale

        def gradient(upstream: Tensor) -> tuple[Tensor, ...]:
            given, row = tf.cast(upstream, tf.float32), tf.ones([1, tf.shape(x)[0]])
            along, column = given * normal, gamma[:, tf.newaxis] * share
            slope = given * gamma - tf.matmul(given, column) - normal * tf.matmul(along, column)
            return tf.cast(slope * scale, x.dtype), tf.matmul(row, along)[0], tf.matmul(row, given)[0]

        return tf.cast(normal * gamma + beta, x.dtype), gradient

    return apply(x, *(tf.cast(tf.convert_to_tensor(v), tf.float32) for v in (gamma, beta)))


LAYER_NORMS: dict[str, Callable[..., Tensor]] = {"tensorflow": _layer_norm_of_products}
"""Forms that are faster in training, by backend; a graph to be served is better off with plain ops."""


# === Heads ===


def swap(x: Tensor) -> Tensor:
    """Tokens and heads change places: `[B, T, N, H]` -> `[B, N, T, H]`, or back."""
    form = SWAPS.get(keras.backend.backend())
    return ops.transpose(x, (0, 2, 1, 3)) if form is None else form(x)


def _swap_of_bits(x: Tensor) -> Tensor:
    """TensorFlow sets up a plan to move floats, which may cost more than the moving; it just moves integers."""
    import tensorflow as tf

    integer, order = {2: tf.uint16, 4: tf.int32}[x.dtype.size], (0, 2, 1, 3)

    @tf.custom_gradient
    def apply(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        moved = tf.transpose(tf.bitcast(x, integer), order)
        # Plain, so that it has a gradient too, and a SavedModel keeps it.
        return tf.bitcast(moved, x.dtype), lambda upstream: tf.transpose(upstream, order)

    return apply(x)


SWAPS: dict[str, Callable[[Tensor], Tensor]] = {"tensorflow": _swap_of_bits}
"""Faster forms, by backend."""


# === Padding ===


def gather(x: Tensor, places: Tensor, numbers: Tensor) -> Tensor:
    """The rows of tokens: `[B * T, D]` -> `[R, D]`.

    Args:
        places: int32 `[R]`, where each row is.
        numbers: int32 `[B * T]`, the row of each place, R where there is none.
    """
    return _with_gradient(lambda x: _taken(x, places), lambda upstream: _with_zeros(upstream, numbers), x)


def spread(x: Tensor, places: Tensor, numbers: Tensor) -> Tensor:
    """The rows of tokens at their places, zeros elsewhere: `[R, D]` -> `[B * T, D]`; each is the other's gradient."""
    return _with_gradient(lambda x: _with_zeros(x, numbers), lambda upstream: _taken(upstream, places), x)


def _taken(x: Tensor, places: Tensor) -> Tensor:
    return ops.take(x, places, axis=0)


def _with_zeros(x: Tensor, numbers: Tensor) -> Tensor:
    return _taken(ops.pad(x, ((0, 1), (0, 0))), numbers)


def _with_gradient(value: Callable[[Tensor], Tensor], gradient: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    form = GRADIENTS.get(keras.backend.backend())
    return value(x) if form is None else form(value, gradient, x)


def _written_out(value: Callable[[Tensor], Tensor], gradient: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """TensorFlow would find the gradient itself, and add up rows one by one."""
    import tensorflow as tf

    return tf.custom_gradient(lambda x: (value(x), gradient))(x)


GRADIENTS: dict[str, Callable[..., Tensor]] = {"tensorflow": _written_out}
"""How a gradient that is known is made use of, by backend; others find it themselves."""


# === Softmax ===


def masked_softmax(scores: Tensor, mask: Tensor, training: bool = False) -> Tensor:
    """Softmax in float32 over the last axis of `scores` `[B, N, T, S]`.

    Args:
        mask: bool, broadcastable to `[B, 1, T, S]`; positions that are False get probability 0. A row
            without any True gets equal probabilities, never NaN.
    """
    form = SOFTMAXES.get(keras.backend.backend()) if training else None
    if form is not None:
        return form(scores, mask)
    wide = ops.where(mask, ops.cast(scores, "float32"), MASKED)
    return ops.cast(ops.softmax(wide, axis=-1), scores.dtype)


def _softmax_with_gradient(scores: Tensor, mask: Tensor) -> Tensor:
    """Of the forward pass only the probabilities are kept, in the type of the scores."""
    import tensorflow as tf

    allowed = tf.cast(mask, tf.float32)
    low, kept = (1.0 - allowed) * MASKED, tf.cast(mask, scores.dtype)

    @tf.custom_gradient
    def apply(scores: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        # A score beside -1e9 is lost to rounding as long as it is below 32, and a large one changes nothing either.
        found = tf.cast(tf.nn.softmax(tf.cast(scores, tf.float32) + low), scores.dtype)

        def gradient(upstream: Tensor) -> Tensor:
            weighed = upstream * found
            return (weighed - found * tf.reduce_sum(weighed, axis=-1, keepdims=True)) * kept

        return found, gradient

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
    """One read and one write of each tensor instead of a dozen; False for variables that are spread over devices."""
    import tensorflow as tf

    places = [v.value if isinstance(v, keras.Variable) else v for v in (variable, *moments)]
    if not all(type(v).__name__ == "ResourceVariable" for v in places):
        return False
    tf.raw_ops.ResourceApplyAdam(
        var=places[0].handle,
        m=places[1].handle,
        v=places[2].handle,
        beta1_power=0.0,  # the corrections are in `rate` and `epsilon` already
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
        seeds: a `keras.random.SeedGenerator`, of which one seed is taken, or a seed that was taken from one (TensorFlow
            only); it alone decides what is dropped.
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
