"""A vector of each text."""

from collections.abc import Mapping
from typing import Any, ClassVar

import keras
from keras import ops

from keras_bert.config import EncoderConfig, choose
from keras_bert.errors import ConfigError
from keras_bert.model.layers import Tensor
from keras_bert.model.readout import DENSE_ACTIVATIONS, POOLINGS, Readout, joined, normalized
from keras_bert.tasks import divergences
from keras_bert.tasks.head import Head, Row, plain_values


class Embed(Head):
    """A vector of each text, `[B, E]`: its positions' mean, first or largest, of length 1 by default.

    It adds nothing to the encoder, unless `layers`, `head_lstm` or dense layers do, so a pretrained checkpoint answers
    as it is. `dimensions` keeps the first numbers of a vector, which is what models of Matryoshka representations are
    trained for (Kusupati et al. 2022, https://arxiv.org/abs/2205.13147); the length is made 1 afterwards.

    Raises:
        ConfigError: there is no such pooling or activation, or a vector has fewer dimensions.
    """

    signatures: ClassVar[Mapping[str, Any]] = {
        "embedding": "vector",
        "token_embeddings": "token_vectors",
        "token_ids": "vector_of_ids",
        "query": "query",
        "document": "document",
    }

    def make(self, encoder: EncoderConfig) -> None:
        config = self.config
        self.readout = Readout(encoder, config.layers, config.head_lstm, name="readout", dtype=self.dtype_policy)
        for name in config.poolings:
            choose(POOLINGS, name, "pooling")
        kinds = zip(config.dense_units, config.dense_activations, config.dense_biases, strict=True)
        self.dense = [
            keras.layers.Dense(
                units,
                activation=choose(DENSE_ACTIVATIONS, activation, "activation"),
                use_bias=bias,
                name=f"dense_{i}",
                dtype="float32",
            )
            for i, (units, activation, bias) in enumerate(kinds)
        ]

    def build(self, input_shape: Any = None) -> None:
        self.readout.build()
        width = self.readout.width * len(self.config.poolings)
        for layer in self.dense:
            layer.build((None, width))
            width = layer.units

    def vectors(self, sequence: Tensor, mask: Tensor) -> Tensor:
        vectors = joined(self.config.poolings, sequence, mask)
        for layer in self.dense:
            vectors = layer(vectors)
        dimensions, most = self.config.dimensions, vectors.shape[-1]
        if dimensions > most:
            raise ConfigError(f"dimensions {dimensions} is more than the {most} of the model's vectors")
        vectors = vectors[:, : dimensions or most]
        return normalized(vectors) if self.config.normalize else vectors

    def prepare_text(self, text: Any) -> Any:
        return text.with_prompt(self.config.prompt)

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
