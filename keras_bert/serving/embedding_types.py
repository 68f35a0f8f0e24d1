"""Forms in which a vector is answered: numbers, whole numbers of one byte, or signs.

Outputs and values are those of sentence-transformers (`quantize_embeddings`) for signs; whole numbers are 127 times the
numbers of a vector of length 1, rounded, so no calibration is needed. A new form is one function and one row in
`EMBEDDING_TYPES`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from keras_bert.config import HeadConfig, VectorConfig, choose
from keras_bert.errors import ConfigError

STEPS = 127
BITS = 8


@dataclass(frozen=True)
class EmbeddingType:
    """A form of a vector.

    Attributes:
        output: the name of the output.
        of: float32 `[B, E]` -> the form.
        unit: whether it needs vectors of length 1.
    """

    output: str
    of: Callable[[tf.Tensor], tf.Tensor]
    unit: bool = False


def int8(vectors: tf.Tensor) -> tf.Tensor:
    """Whole numbers from -127 to 127, int8 `[B, E]`."""
    return tf.cast(tf.round(tf.clip_by_value(vectors, -1.0, 1.0) * STEPS), tf.int8)


def binary(vectors: tf.Tensor) -> tf.Tensor:
    """Signs, eight to a byte and the first in its highest bit, less 128: int8 `[B, E / 8]`, rounded up."""
    width = -(-vectors.shape[1] // BITS)
    signs = tf.pad(tf.cast(vectors > 0, tf.int32), [[0, 0], [0, width * BITS - vectors.shape[1]]])
    weights = tf.constant(2 ** np.arange(BITS - 1, -1, -1), tf.int32)
    packed = tf.reduce_sum(tf.reshape(signs, [-1, width, BITS]) * weights, axis=2)
    return tf.cast(packed - 128, tf.int8)


EMBEDDING_TYPES: dict[str, EmbeddingType] = {
    "float": EmbeddingType("embedding", tf.identity),
    "int8": EmbeddingType("embedding_int8", int8, unit=True),
    "binary": EmbeddingType("embedding_binary", binary),
}


def check(names: Sequence[str], head: HeadConfig) -> tuple[EmbeddingType, ...]:
    """The forms of these names.

    Raises:
        ConfigError: there is no such form, none is named, or it does not suit the vectors of the head.
    """
    found = tuple(choose(EMBEDDING_TYPES, name, "embedding type") for name in dict.fromkeys(names))
    if not found:
        raise ConfigError(f"embedding_types must name at least one of {', '.join(EMBEDDING_TYPES)}")
    if tuple(names) != ("float",) and not isinstance(head, VectorConfig):
        raise ConfigError(f"embedding_types: a model for {head.task} gives no vectors of its own")
    if any(one.unit for one in found) and not (isinstance(head, VectorConfig) and head.normalize):
        raise ConfigError("embedding_types=int8 needs vectors of length 1, which normalize makes")
    return found


def forms(vectors: tf.Tensor, types: Sequence[EmbeddingType]) -> dict[str, Any]:
    """The outputs of a vector float32 `[B, E]`."""
    return {one.output: one.of(vectors) for one in types}
