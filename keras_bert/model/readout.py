"""What a head reads of the encoder: which of its layers, a BiLSTM over them where asked for, one vector for a text.

Devlin et al. 2019, section 5.3, compare these layers as features of a frozen encoder; `mix` is ELMo's (Peters et al.
2018). A new choice is one function and one row in `LAYERS` or `POOLINGS`.

Shapes: B rows, T tokens, D hidden size, E width of what is read.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from keras_bert.config import EncoderConfig, choose
from keras_bert.errors import ConfigError
from keras_bert.model.kernels import ACTIVATIONS

Tensor = Any
LOW = -1e30


# === Which layers: taps -> [B, T, E] ===


@dataclass(frozen=True)
class Layers:
    """A choice of layers.

    Attributes:
        join: taps of the encoder -> `[B, T, E]`.
        taps: those that it needs.
        least: layers that the encoder must have.
        factor: E is this times D.
        mixed: `join` gives all layers, and `LayerMix` makes one of them.
    """

    join: Callable[[dict[str, Any]], Tensor]
    taps: tuple[str, ...] = ("layers",)
    least: int = 1
    factor: int = 1
    mixed: bool = False


LAYERS: dict[str, Layers] = {
    "last": Layers(lambda taps: taps["sequence"], ("sequence",)),
    "second_last": Layers(lambda taps: taps["layers"][-2], least=2),
    "first_last": Layers(lambda taps: 0.5 * (taps["layers"][0] + taps["layers"][-1])),
    "last4_sum": Layers(lambda taps: sum(taps["layers"][-3:], taps["layers"][-4]), least=4),
    "last4_concat": Layers(lambda taps: ops.concatenate(taps["layers"][-4:], axis=-1), least=4, factor=4),
    "mix": Layers(
        lambda taps: ops.stack([taps["embedded"], *taps["layers"]], axis=2), ("embedded", "layers"), mixed=True
    ),
}
"""`mix` has the embeddings first."""


class LayerMix(keras.layers.Layer):
    """Weighted mean of layers: softmax weights and a factor, both learnt (Peters et al. 2018, equation 1).

    `[B, T, count, D]` -> `[B, T, D]`; untrained, all layers count alike.
    """

    def __init__(self, count: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.count = count

    def build(self, input_shape: Any = None) -> None:
        self.beta = self.add_weight(name="beta", shape=(self.count,), initializer="zeros")
        self.gamma = self.add_weight(name="gamma", shape=(1,), initializer="ones")

    def call(self, layers: Tensor) -> Tensor:
        shares = self.gamma * ops.softmax(self.beta)
        return ops.einsum("btld,l->btd", layers, ops.cast(shares, layers.dtype))


class Readout(keras.layers.Layer):
    """Taps of the encoder -> vectors `[B, T, E]`.

    Args:
        encoder: config of the encoder below.
        layers: a name of `LAYERS`, or a `Layers`.
        lstm: units of each direction of a BiLSTM over the layers (Graves & Schmidhuber 2005); 0 is none. It needs
            `padding_mask` bool `[B, T]` among the taps.

    Raises:
        ConfigError: no such name, or the encoder has too few layers.
    """

    def __init__(self, encoder: EncoderConfig, layers: str = "last", lstm: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.chosen = choose(LAYERS, layers, "choice of layers")
        if encoder.num_layers < self.chosen.least:
            raise ConfigError(f"layers {layers} needs {self.chosen.least} layers; the model has {encoder.num_layers}")
        self.read_width = self.chosen.factor * encoder.hidden_dim
        self.width = 2 * lstm or self.read_width
        policy = self.dtype_policy
        self.mix = LayerMix(encoder.num_layers + 1, name="mix", dtype=policy) if self.chosen.mixed else None
        # Not cuDNN's: a graph that was written on a GPU must run where there is none.
        options = {"return_sequences": True, "use_cudnn": False, "name": "lstm", "dtype": policy}
        one = keras.layers.LSTM(lstm, **options) if lstm else None
        self.lstm = keras.layers.Bidirectional(one, name="lstm", dtype=policy) if one else None

    def build(self, input_shape: Any = None) -> None:
        if self.mix:
            self.mix.build(None)
        if self.lstm:
            self.lstm.build((None, None, self.read_width))

    def call(self, taps: dict[str, Any], training: bool = False) -> Tensor:
        x = self.chosen.join(taps)
        x = self.mix(x) if self.mix else x
        return self.lstm(x, mask=taps["padding_mask"], training=training) if self.lstm else x


# === One vector for a text: [B, T, E] and padding_mask [B, T] -> [B, E], in float32 ===


def cls(x: Tensor, mask: Tensor) -> Tensor:
    """The first position."""
    return ops.cast(x[:, 0, :], "float32")


def mean(x: Tensor, mask: Tensor) -> Tensor:
    """The mean over real positions; zeros where there is none."""
    weights = ops.expand_dims(ops.cast(mask, "float32"), 2)
    total = ops.sum(ops.cast(x, "float32") * weights, axis=1)
    return total / ops.maximum(ops.sum(weights, axis=1), 1.0)


def largest(x: Tensor, mask: Tensor) -> Tensor:
    """The largest value over real positions; zeros where there is none."""
    real = ops.expand_dims(ops.cast(mask, "bool"), 2)
    found = ops.max(ops.where(real, ops.cast(x, "float32"), LOW), axis=1)
    return ops.where(ops.any(real, axis=1), found, 0.0)


def mean_sqrt(x: Tensor, mask: Tensor) -> Tensor:
    """The sum over real positions, over the square root of how many they are."""
    count = ops.sum(ops.cast(mask, "float32"), axis=1, keepdims=True)
    return mean(x, mask) * ops.sqrt(count)


def weighted_mean(x: Tensor, mask: Tensor) -> Tensor:
    """The mean over real positions with the weights 1, 2, 3, ... (Muennighoff 2022, https://arxiv.org/abs/2202.08904).

    Padding stands at the end of a row.
    """
    weights = ops.cast(mask, "float32") * ops.arange(1, ops.shape(mask)[1] + 1, dtype="float32")
    total = ops.sum(ops.cast(x, "float32") * weights[:, :, None], axis=1)
    return total / ops.maximum(ops.sum(weights, axis=1, keepdims=True), 1.0)


def last(x: Tensor, mask: Tensor) -> Tensor:
    """The last real position; zeros where there is none."""
    real = ops.cast(mask, "int32")
    place = ops.arange(ops.shape(mask)[1], dtype="int32")
    end = ops.max(place * real, axis=1, keepdims=True)
    chosen = ops.cast(ops.equal(place, end), "int32") * real
    return ops.sum(ops.cast(x, "float32") * ops.cast(chosen, "float32")[:, :, None], axis=1)


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": cls,
    "mean": mean,
    "max": largest,
    "mean_sqrt": mean_sqrt,
    "weighted_mean": weighted_mean,
    "last": last,
}


def joined(poolings: Sequence[str], x: Tensor, mask: Tensor) -> Tensor:
    """The vectors of several poolings, by name, side by side: `[B, E]` of each."""
    vectors = [choose(POOLINGS, name, "pooling")(x, mask) for name in poolings]
    return ops.concatenate(vectors, axis=-1) if len(vectors) > 1 else vectors[0]


DENSE_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **ACTIVATIONS,
    "identity": lambda x: x,
    "sigmoid": ops.sigmoid,
    "silu": ops.silu,
}
"""Activations of dense layers over a pooled vector."""


def normalized(x: Tensor) -> Tensor:
    """Vectors `[..., E]` of length 1; zeros stay, and have a gradient."""
    return x * ops.rsqrt(ops.maximum(ops.sum(ops.square(x), axis=-1, keepdims=True), 1e-24))
