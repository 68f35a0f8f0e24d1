"""How positions enter the model: a layer with four hooks, each of which does nothing unless overridden.

The encoder calls all four; kinds of positions differ only in which hooks they override. A new kind is one class and one
row in `POSITIONS`.
"""

from typing import Any

import keras
from keras import ops

from keras_bert.config import EncoderConfig

Tensor = Any


class Positions(keras.layers.Layer):
    """No positions at all: the base, and the identity of every hook.

    Shapes: B batch, T target length, S source length, N heads, H head size, D hidden size.
    """

    def __init__(self, config: EncoderConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config = config

    @classmethod
    def weight_shapes(cls, config: EncoderConfig) -> dict[str, tuple[int, ...]]:
        """The shapes of its weights by name; what a checkpoint holds of it."""
        return {}

    @property
    def of_pairs(self) -> bool:
        """Whether scores or values depend on the positions of both tokens of a pair; keys in memory have none."""
        return type(self).scores is not Positions.scores or type(self).values is not Positions.values

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        """Change the embeddings `x` `[B, T, D]` at `positions` (int, `[B or 1, T]`)."""
        return x

    def rotate(self, query: Tensor, key: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Change queries and keys, both `[B, N, T, H]`."""
        return query, key

    def scores(self, scores: Tensor, query: Tensor, positions: Tensor) -> Tensor:
        """Change the attention scores `[B, N, T, S]` before the softmax."""
        return scores

    def values(self, context: Tensor, probabilities: Tensor, positions: Tensor) -> Tensor:
        """Change the attended values `[B, N, T, H]`."""
        return context


class Absolute(Positions):
    """A learned row per position, added to the embeddings (Devlin et al. 2019)."""

    @classmethod
    def weight_shapes(cls, config: EncoderConfig) -> dict[str, tuple[int, ...]]:
        return {"embeddings": (config.max_positions, config.hidden_dim)}

    def build(self, input_shape: Any = None) -> None:
        self.table = self.add_weight(
            name="embeddings",
            shape=self.weight_shapes(self.config)["embeddings"],
            initializer=keras.initializers.TruncatedNormal(stddev=self.config.initializer_range),
            autocast=False,
        )

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        return x + ops.cast(ops.take(self.table, positions, axis=0), x.dtype)


POSITIONS: dict[str, type[Positions]] = {"absolute": Absolute}
