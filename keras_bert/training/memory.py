"""How much memory training needs, and which batches fit, by length, parts of a batch, precision and recomputation.

Estimated from the shapes: weights, gradients, moments and their temporaries; what each layer keeps for each token for
the gradients; and TensorFlow itself. The factors were measured on CPU (`benchmarks/growth.py` compares estimate and
peak); a GPU keeps the same tensors in its own memory.
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
    """Memory needed to train an encoder with a small head.

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

    @property
    def layers(self) -> list[EncoderConfig]:
        """The sizes of each layer."""
        return [self.encoder.layer(i) for i in range(self.encoder.num_layers)]

    def per_token(self, length: int) -> float:
        """Bytes that training keeps for each token, in rows of `length` tokens.

        A layer keeps about 10 vectors of the hidden size, 4 of all heads together, 3.5 of the inner size and 3.3 rows
        of attention scores.
        """
        hidden, size = self.encoder.hidden_dim, 4 if self.config.mixed_precision == "none" else 2
        layers = [
            size * (10 * hidden + 4 * e.num_heads * e.head_dim + 3.5 * e.intermediate_dim + 3.3 * e.num_heads * length)
            for e in self.layers
        ]
        if self.config.recompute:
            return len(layers) * size * hidden + 2.5 * max(layers)
        return sum(layers)

    def megabytes(self, batch: int, length: int) -> float:
        """Peak memory of the process in MiB, with `batch` rows of `length` tokens in each part of a batch."""
        weights = PER_WEIGHT * self.parameters * (1 + 0.25 * (self.config.grad_accum_steps > 1))
        halves = 0 if self.config.mixed_precision == "none" else 2 * self.parameters
        return (PROCESS + weights + halves + batch * length * self.per_token(length)) / MIB

    def largest(self, megabytes: float, length: int) -> int:
        """The most rows of `length` tokens that fit into that many MiB at once; 0 if not even one does."""
        free = megabytes - self.megabytes(0, length)
        return max(0, int(free / (self.megabytes(1, length) - self.megabytes(0, length))))


def megabytes(text: str) -> float:
    """`16GB`, `512MB` or `80GiB` in MiB; vendors write GB for GiB, and so do we.

    Raises:
        ConfigError: it is not a size.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([MGT])i?B?\s*", text, re.IGNORECASE)
    if not found or float(found[1]) <= 0:
        raise ConfigError(f"memory must be a size such as 16GB or 512MB, got {text!r}")
    return float(found[1]) * {"M": 1, "G": 2**10, "T": 2**20}[found[2].upper()]
