"""How positions enter the model: a layer with four hooks, each of which does nothing unless overridden.

The encoder calls all four; kinds of positions differ only in which hooks they override. A new kind is one class and one
row in `POSITIONS`.
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from keras_bert.config import EncoderConfig, choose
from keras_bert.errors import ConfigError

Tensor = Any


class Positions(keras.layers.Layer):
    """No positions at all: the base, and the identity of every hook.

    Shapes: B batch, T target length, S source length, N heads, H head size, D hidden size, E width of the embeddings.
    `positions` are those of the targets, int `[B or 1, T]`, and `places` those of the sources, int `[B or 1, S]`. They
    differ where keys are kept in memory.

    Attributes:
        bounded: whether a row may have no more than `max_positions` tokens.

    Raises:
        ConfigError: the config does not suit this kind, see `check`.
    """

    bounded: ClassVar[bool] = False

    def __init__(self, config: EncoderConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config = config
        self.check(config)

    @classmethod
    def check(cls, config: EncoderConfig) -> None:
        """Raises ConfigError if the config does not suit this kind."""

    @classmethod
    def weight_shapes(cls, config: EncoderConfig) -> dict[str, tuple[int, ...]]:
        """The shapes of its weights by name; what a checkpoint holds of it."""
        return {}

    @property
    def of_pairs(self) -> bool:
        """Whether scores or values depend on the positions of both tokens of a pair."""
        return type(self).scores is not Positions.scores or type(self).values is not Positions.values

    def at(self, layer: int) -> "Positions":
        """The hooks of layer `layer`, from 0; most kinds have the same for all."""
        return self

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        """Change the embeddings `x` `[B, T, E]` at `positions`."""
        return x

    def rotate(self, query: Tensor, key: Tensor, value: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Change queries, keys and values, each `[B, N, T, H]`."""
        return query, key, value

    def scores(self, scores: Tensor, query: Tensor, key: Tensor, positions: Tensor, places: Tensor) -> Tensor:
        """Change the attention scores `[B, N, T, S]` before the softmax; `query` is divided by sqrt(H) already."""
        return scores

    def values(self, context: Tensor, probabilities: Tensor, positions: Tensor, places: Tensor) -> Tensor:
        """Change the attended values `[B, N, T, H]`."""
        return context


# === Added to the embeddings ===


class Absolute(Positions):
    """A learned row for each position, added to the embeddings (Devlin et al. 2019)."""

    bounded = True

    @classmethod
    def weight_shapes(cls, config: EncoderConfig) -> dict[str, tuple[int, ...]]:
        return {"embeddings": (config.max_positions, config.embedding_width)}

    def build(self, input_shape: Any = None) -> None:
        self.table = self.add_weight(
            name="embeddings",
            shape=self.weight_shapes(self.config)["embeddings"],
            initializer=keras.initializers.TruncatedNormal(stddev=self.config.initializer_range),
            autocast=False,
        )

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        return x + ops.cast(ops.take(self.table, positions, axis=0), x.dtype)


class Sinusoidal(Positions):
    """Sines and cosines of the position, in turn, beside embeddings times sqrt(E) (Vaswani et al. 2017)."""

    @classmethod
    def check(cls, config: EncoderConfig) -> None:
        if config.embedding_width % 2:
            raise ConfigError(f"sinusoidal positions need an even width, got {config.embedding_width}")

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        waves = sines(positions, self.config.embedding_width)
        return x * math.sqrt(self.config.embedding_width) + ops.cast(waves, x.dtype)


def sines(positions: Tensor, width: int, base: float = 10000.0) -> Tensor:
    """sin(p / base^(2i / width)) at index 2i and the cosine at 2i + 1; int `[...]` -> float32 `[..., width]`."""
    angles = turns(positions, width, base)
    return ops.reshape(ops.stack([ops.sin(angles), ops.cos(angles)], axis=-1), (*ops.shape(positions), width))


def turns(positions: Tensor, width: int, base: float) -> Tensor:
    """p / base^(2i / width) for i below width / 2; `[...]` -> float32 `[..., width / 2]`."""
    speeds = (base ** (-np.arange(0, width, 2) / width)).astype("float32")
    return ops.expand_dims(ops.cast(positions, "float32"), -1) * speeds


# === Added to the scores: relative positions ===


def offsets(positions: Tensor, places: Tensor) -> Tensor:
    """Position of the source minus that of the target, int `[B or 1, T, S]`."""
    return ops.expand_dims(places, 1) - ops.expand_dims(positions, 2)


def towards(x: Tensor, table: Tensor, index: Tensor) -> Tensor:
    """Products of vectors with rows of a table: `x` `[B, N, T, H]`, `index` int `[B or 1, T, S]` -> `[B, N, T, S]`.

    Where all rows of the batch count alike, the rows of the table are gathered, else their products with `x`.
    """
    table = ops.cast(table, x.dtype)
    if index.shape[0] == 1:
        return ops.einsum("bnth,tsh->bnts", x, ops.take(table, index[0], axis=0))
    return ops.take_along_axis(ops.matmul(x, ops.transpose(table)), ops.expand_dims(index, 1), axis=-1)


class RelativeSinusoidal(Positions):
    """Sines of the distance, added to keys and values (NEZHA, Wei et al. 2019, https://arxiv.org/abs/1909.00204).

    Distances are cut to `max_distance`. As in the code of the paper, row r of the table has the sines of the index r,
    that is of the distance plus `max_distance`.
    """

    @classmethod
    def check(cls, config: EncoderConfig) -> None:
        _even_heads(config, "relative_sinusoidal")

    def index(self, positions: Tensor, places: Tensor) -> Tensor:
        """Rows of the table, int `[B or 1, T, S]`."""
        furthest = self.config.max_distance
        return ops.clip(offsets(positions, places), -furthest, furthest) + furthest

    def table(self, width: int) -> Tensor:
        return sines(np.arange(2 * self.config.max_distance + 1), width)

    def scores(self, scores: Tensor, query: Tensor, key: Tensor, positions: Tensor, places: Tensor) -> Tensor:
        return scores + towards(query, self.table(query.shape[-1]), self.index(positions, places))

    def values(self, context: Tensor, probabilities: Tensor, positions: Tensor, places: Tensor) -> Tensor:
        rows = ops.cast(ops.take(self.table(context.shape[-1]), self.index(positions, places), axis=0), context.dtype)
        if rows.shape[0] == 1:
            return context + ops.einsum("bnts,tsh->bnth", probabilities, rows[0])
        return context + ops.einsum("bnts,btsh->bnth", probabilities, rows)


class _Distances(Positions):
    """A learned row of width H for each distance, of one layer."""

    asks_keys: ClassVar[bool] = False

    def build(self, input_shape: Any = None) -> None:
        config = self.config.layer(0)
        self.distances = self.add_weight(
            name="embeddings",
            shape=(2 * config.max_positions - 1, config.head_dim),
            initializer=keras.initializers.TruncatedNormal(stddev=config.initializer_range),
            autocast=False,
        )

    def scores(self, scores: Tensor, query: Tensor, key: Tensor, positions: Tensor, places: Tensor) -> Tensor:
        furthest = self.config.max_positions - 1
        scores += towards(query, self.distances, furthest - offsets(positions, places))
        if not self.asks_keys:
            return scores
        scaled = key / ops.cast(math.sqrt(key.shape[-1]), key.dtype)
        of_keys = towards(scaled, self.distances, furthest + offsets(places, positions))  # [B, N, S, T]
        return scores + ops.transpose(of_keys, (0, 1, 3, 2))


class _DistancesOfKeys(_Distances):
    asks_keys = True


class RelativeKey(Positions):
    """Queries meet a learned row for each distance, in each layer (Shaw et al. 2018, as transformers computes it).

    Distances are not cut, so rows longer than `max_positions` are refused.
    """

    bounded = True
    kind: ClassVar[type[_Distances]] = _Distances

    def __init__(self, config: EncoderConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        policy = self.dtype_policy
        self.by_layer = [self.kind(config.layer(i), name=f"layer_{i}", dtype=policy) for i in range(config.num_layers)]

    @classmethod
    def weight_shapes(cls, config: EncoderConfig) -> dict[str, tuple[int, ...]]:
        sizes = (config.layer(i).head_dim for i in range(config.num_layers))
        return {f"layer_{i}/embeddings": (2 * config.max_positions - 1, size) for i, size in enumerate(sizes)}

    @property
    def of_pairs(self) -> bool:
        return True

    def build(self, input_shape: Any = None) -> None:
        for layer in self.by_layer:
            layer.build(None)

    def at(self, layer: int) -> Positions:
        return self.by_layer[layer]


class RelativeKeyQuery(RelativeKey):
    """`RelativeKey` where keys meet the row too (Huang et al. 2020, https://arxiv.org/abs/2009.13658)."""

    kind = _DistancesOfKeys


class Alibi(Positions):
    """A penalty that grows with the distance, steeper in some heads than in others, the same in both directions.

    Press et al. 2022, https://arxiv.org/abs/2108.12409; in both directions as MosaicBERT and jina-bert-v2 have it.
    """

    def scores(self, scores: Tensor, query: Tensor, key: Tensor, positions: Tensor, places: Tensor) -> Tensor:
        # In float32: sixteen bits count distances of 300 in steps of 2.
        distances = ops.cast(ops.abs(offsets(positions, places)), "float32")[:, None]
        return ops.cast(scores, "float32") - slopes(scores.shape[1])[:, None, None] * distances


def slopes(num_heads: int) -> np.ndarray:
    """Of each head, float32 `[N]`: powers of 2^(-8/N), and for other N than powers of two every second one between."""
    power = 2 ** int(math.log2(num_heads))
    found = [2.0 ** (-8 * (h + 1) / power) for h in range(power)]
    found += [2.0 ** (-8 * (2 * m + 1) / (2 * power)) for m in range(num_heads - power)]
    return np.array(found, "float32")


class Bucketed(Positions):
    """A learned bias for each bucket of distances and each head, shared by all layers (T5, MPNet, UniLMv2).

    Raffel et al. 2020, https://arxiv.org/abs/1910.10683, section 2.1: half of the buckets are for each direction; short
    distances have one each, longer ones share them on a logarithmic scale, from `FURTHEST` on the last.
    """

    BUCKETS, FURTHEST = 32, 128

    @classmethod
    def check(cls, config: EncoderConfig) -> None:
        if config.layer_heads:
            raise ConfigError("bucketed positions need the same number of heads in each layer: leave layer_heads empty")

    @classmethod
    def weight_shapes(cls, config: EncoderConfig) -> dict[str, tuple[int, ...]]:
        return {"embeddings": (cls.BUCKETS, config.num_heads)}

    def build(self, input_shape: Any = None) -> None:
        self.biases = self.add_weight(
            name="embeddings",
            shape=self.weight_shapes(self.config)["embeddings"],
            initializer=keras.initializers.TruncatedNormal(stddev=self.config.initializer_range),
            autocast=False,
        )

    @classmethod
    def bucket(cls, distances: Tensor) -> Tensor:
        """Number of the bucket of distances, int `[...]`."""
        half = cls.BUCKETS // 2
        exact, far = half // 2, ops.abs(distances)
        share = ops.log(ops.cast(ops.maximum(far, 1), "float32") / exact) / math.log(cls.FURTHEST / exact)
        shared = ops.minimum(exact + ops.cast(share * (half - exact), "int32"), half - 1)
        return ops.where(far < exact, ops.cast(far, "int32"), shared) + half * ops.cast(distances > 0, "int32")

    def scores(self, scores: Tensor, query: Tensor, key: Tensor, positions: Tensor, places: Tensor) -> Tensor:
        biases = ops.take(ops.cast(self.biases, "float32"), self.bucket(offsets(positions, places)), axis=0)
        return ops.cast(scores, "float32") + ops.transpose(biases, (0, 3, 1, 2))


# === Turned queries and keys ===


class Rotary(Positions):
    """Pairs of neighbouring channels of queries and keys are turned by the position (RoFormer, Su et al. 2021).

    Pair m turns by p * base^(-2m / H), see https://arxiv.org/abs/2104.09864, so that a product depends on the distance
    alone. `rotary_value` turns values too. Longer rows than a model was trained on: `rotary_scale` s divides positions
    ("linear", Chen et al. 2023) or raises the base ("ntk"), see `SCALINGS`.
    """

    @classmethod
    def check(cls, config: EncoderConfig) -> None:
        _even_heads(config, "rotary")
        choose(SCALINGS, config.rotary_scaling, "scaling of rotary positions")

    def __init__(self, config: EncoderConfig, base: float = 0.0, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.base = base or config.rotary_base
        other = config.global_rotary_base
        everywhere = not other or other == self.base
        self.of_global = None if everywhere else type(self)(config, other, name="global", dtype=self.dtype_policy)

    def build(self, input_shape: Any = None) -> None:
        if self.of_global is not None:
            self.of_global.build(None)

    def at(self, layer: int) -> Positions:
        every = self.config.global_every
        return self.of_global if self.of_global is not None and every and layer % every == 0 else self

    def rotate(self, query: Tensor, key: Tensor, value: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        divisor, base = SCALINGS[self.config.rotary_scaling](self.base, self.config.rotary_scale, query.shape[-1])
        angles = ops.expand_dims(turns(positions, query.shape[-1], base) / divisor, 1)  # [B or 1, 1, T, H / 2]
        waves = ops.sin(angles), ops.cos(angles)
        query, key = (self.turned(x, *waves) for x in (query, key))
        return query, key, self.turned(value, *waves) if self.config.rotary_value else value

    def turned(self, x: Tensor, sine: Tensor, cosine: Tensor) -> Tensor:
        """Turn `x` `[B, N, T, H]`; in float32."""
        wide = ops.cast(x, "float32")
        first, second = self.split(wide)
        turned = self.join(first * cosine - second * sine, second * cosine + first * sine)
        return ops.cast(ops.reshape(turned, ops.shape(x)), x.dtype)

    @staticmethod
    def split(x: Tensor) -> tuple[Tensor, Tensor]:
        """The first and the second channel of each pair, `[B, N, T, H / 2]`."""
        return x[..., ::2], x[..., 1::2]

    @staticmethod
    def join(first: Tensor, second: Tensor) -> Tensor:
        """The inverse of `split`, in the order of the channels."""
        return ops.stack([first, second], axis=-1)


class RotaryHalf(Rotary):
    """`Rotary` where channel m of a head is paired with channel m + H / 2 (ModernBERT, KerasHub, Llama)."""

    @staticmethod
    def split(x: Tensor) -> tuple[Tensor, Tensor]:
        half = x.shape[-1] // 2
        return x[..., :half], x[..., half:]

    @staticmethod
    def join(first: Tensor, second: Tensor) -> Tensor:
        return ops.concatenate([first, second], axis=-1)


Scaling = Callable[[float, float, int], tuple[float, float]]
"""`(base, scale, head size)` -> what positions are divided by, and the base."""
SCALINGS: dict[str, Scaling] = {
    "linear": lambda base, scale, width: (scale, base),
    "ntk": lambda base, scale, width: (1.0, base * scale ** (width / (width - 2))),
}


def _even_heads(config: EncoderConfig, name: str) -> None:
    odd = [config.layer(i).head_dim for i in range(config.num_layers) if config.layer(i).head_dim % 2]
    if odd:
        raise ConfigError(f"{name} positions need heads of an even size, got {odd[0]}")


POSITIONS: dict[str, type[Positions]] = {
    "absolute": Absolute,
    "none": Positions,
    "sinusoidal": Sinusoidal,
    "relative_sinusoidal": RelativeSinusoidal,
    "relative_key": RelativeKey,
    "relative_key_query": RelativeKeyQuery,
    "rotary": Rotary,
    "rotary_half": RotaryHalf,
    "alibi": Alibi,
    "bucketed": Bucketed,
}
