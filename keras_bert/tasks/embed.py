"""A vector of each text."""

from typing import Any

from keras import ops

from keras_bert.config import EncoderConfig, choose
from keras_bert.errors import ConfigError
from keras_bert.model.layers import Tensor
from keras_bert.model.readout import POOLINGS, Readout, normalized
from keras_bert.tasks import divergences
from keras_bert.tasks.head import Head


class Embed(Head):
    """A vector of each text, `[B, E]`: its positions' mean, first or largest, of length 1 unless that is not wanted.

    It adds nothing to the encoder, unless `layers` or `head_lstm` do, so a pretrained checkpoint answers as it is.
    """

    def make(self, encoder: EncoderConfig) -> None:
        config = self.config
        self.readout = Readout(encoder, config.layers, config.head_lstm, name="readout", dtype=self.dtype_policy)

    def build(self, input_shape: Any = None) -> None:
        self.readout.build()

    def check(self) -> None:
        if self.config.labels:
            raise ConfigError(f"{self.config.task} has no labels, got {list(self.config.labels)}")

    def vectors(self, sequence: Tensor, mask: Tensor) -> Tensor:
        found = choose(POOLINGS, self.config.pooling or "mean", "pooling")(sequence, mask)
        return normalized(found) if self.config.normalize else found

    def call(self, taps: dict[str, Tensor], training: bool = False) -> Tensor:
        found = self.vectors(self.readout(taps, training=training), taps["padding_mask"])
        return ops.cast(found, self.compute_dtype)

    def divergence(self, teacher: Tensor, logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
        return divergences.of_vectors(teacher, logits)

    def answer(self, logits: Tensor, features: Any = None) -> dict[str, Tensor]:
        return {"embedding": ops.cast(logits, "float32")}
