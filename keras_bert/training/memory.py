"""What a training run takes in memory, and what fits: batch, length, parts of a batch, precision, recomputation.

Counted from the shapes: weights, gradients, moments and their temporaries once; what each layer keeps of each token for
the gradients; and what TensorFlow itself takes. The shares were measured on CPU (`benchmarks/growth.py` compares plan
and peak); on a GPU the same tensors are kept, in the device's memory.
"""

import re
from dataclasses import dataclass

from keras_bert.config import EncoderConfig, TrainConfig
from keras_bert.errors import ConfigError
from keras_bert.model.shapes import count, pooler, shapes

MIB = 2**20
PROCESS = 820 * MIB
"""TensorFlow with its libraries, without any model."""
PER_WEIGHT = 17.4
"""Bytes: weight, gradient, two moments, all float32, and some of their temporaries."""


@dataclass(frozen=True)
class Plan:
    """Memory of training an encoder with a small head.

    Attributes:
        encoder: its shape.
        config: precision, recomputation and parts of a batch.
    """

    encoder: EncoderConfig
    config: TrainConfig

    @property
    def parameters(self) -> int:
        """Weights of the encoder and its pooler."""
        return count(shapes(self.encoder)) + count(pooler(self.encoder))

    def per_token(self, length: int) -> float:
        """Bytes that training keeps of each token of rows of `length`.

        A layer keeps about 14 vectors of the hidden size, 3.5 of the inner size and 3.3 rows of attention scores.
        """
        e, size = self.encoder, 4 if self.config.mixed_precision == "none" else 2
        layer = size * (14 * e.hidden_dim + 3.5 * e.intermediate_dim + 3.3 * e.num_heads * length)
        if self.config.recompute:
            return e.num_layers * size * e.hidden_dim + 2.5 * layer
        return e.num_layers * layer

    def megabytes(self, batch: int, length: int) -> float:
        """Peak memory of the process in MiB, with `batch` rows of `length` tokens in each part of a step."""
        weights = PER_WEIGHT * self.parameters * (1 + 0.25 * (self.config.grad_accum_steps > 1))
        halves = 0 if self.config.mixed_precision == "none" else 2 * self.parameters
        return (PROCESS + weights + halves + batch * length * self.per_token(length)) / MIB

    def largest(self, megabytes: float, length: int) -> int:
        """Most rows of `length` tokens that fit in so many MiB at once; 0 where not even one does."""
        free = megabytes - self.megabytes(0, length)
        return max(0, int(free / (self.megabytes(1, length) - self.megabytes(0, length))))


def megabytes(text: str) -> float:
    """`16GB`, `512MB` or `80GiB` in MiB; vendors mean GiB when they write GB, and so do we.

    Raises:
        ConfigError: it is nothing of that kind.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([MGT])i?B?\s*", text, re.IGNORECASE)
    if not found or float(found[1]) <= 0:
        raise ConfigError(f"memory must be a size such as 16GB or 512MB, got {text!r}")
    return float(found[1]) * {"M": 1, "G": 2**10, "T": 2**20}[found[2].upper()]
