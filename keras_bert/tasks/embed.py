"""A vector of each text."""

from collections.abc import Mapping
from typing import Any, ClassVar

from keras import ops

from keras_bert.config import EncoderConfig, choose
from keras_bert.model.layers import Tensor
from keras_bert.model.readout import POOLINGS, Readout, normalized
from keras_bert.tasks import divergences
from keras_bert.tasks.head import Head, Row, plain_values


class Embed(Head):
    """A vector of each text, `[B, E]`: its positions' mean, first or largest, of length 1 by default.

    It adds nothing to the encoder, unless `layers` or `head_lstm` do, so a pretrained checkpoint answers as it is.
    """

    signatures: ClassVar[Mapping[str, Any]] = {
        "embedding": "vector",
        "token_embeddings": "token_vectors",
        "token_ids": "vector_of_ids",
    }

    def make(self, encoder: EncoderConfig) -> None:
        config = self.config
        self.readout = Readout(encoder, config.layers, config.head_lstm, name="readout", dtype=self.dtype_policy)

    def build(self, input_shape: Any = None) -> None:
        self.readout.build()

    def vectors(self, sequence: Tensor, mask: Tensor) -> Tensor:
        pooled = choose(POOLINGS, self.config.pooling or "mean", "pooling")(sequence, mask)
        return normalized(pooled) if self.config.normalize else pooled

    def call(self, taps: dict[str, Tensor], training: bool = False) -> Tensor:
        vectors = self.vectors(self.readout(taps, training=training), taps["padding_mask"])
        return ops.cast(vectors, self.compute_dtype)

    def extra_outputs(self, taps: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"vectors": self.readout(taps)}

    def divergence(self, teacher: Tensor, logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
        return divergences.of_vectors(teacher, logits)

    def answer(self, logits: Tensor, features: Any = None) -> dict[str, Tensor]:
        return {"embedding": ops.cast(logits, "float32")}

    def plain(self, row: Row) -> dict[str, Any]:
        """`embedding`, a list of numbers."""
        return plain_values(("embedding",), row)
