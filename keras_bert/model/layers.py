"""Layers between the encoder and a head: the pooler, and the logits over the vocabulary."""

from typing import Any

import keras
from keras import ops

from keras_bert.config import EncoderConfig
from keras_bert.model import kernels
from keras_bert.model.encoder import dense
from keras_bert.model.norms import norm

Tensor = Any


class Pooler(keras.layers.Layer):
    """A dense layer with tanh on the first position (Devlin et al. 2019): `[B, T, D]` -> `[B, D]`."""

    def __init__(self, config: EncoderConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config = config
        self.dense = dense(config, config.hidden_dim, "dense", self.dtype_policy, "tanh")

    def build(self, input_shape: Any = None) -> None:
        self.dense.build((None, self.config.hidden_dim))

    def call(self, sequence: Tensor) -> Tensor:
        return self.dense(sequence[:, 0, :])


class TiedLogits(keras.layers.Layer):
    """Vocabulary logits of the masked language model, tied to the token table (Press & Wolf 2017).

    Dense layer, activation and layer norm, then a product with the encoder's token table, and a bias of its own:
    vectors `[..., D]` -> logits `[..., V]`. The table belongs to the encoder; it is read, not copied.
    """

    def __init__(self, config: EncoderConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config = config
        act = kernels.activation(config.activation)
        self.transform = dense(config, config.embedding_width, "transform", self.dtype_policy, act)
        self.norm = norm(config, "norm", self.dtype_policy)

    def build(self, input_shape: Any = None) -> None:
        self.transform.build((None, self.config.hidden_dim))
        self.norm.build((None, self.config.embedding_width))
        self.bias = self.add_weight(name="bias", shape=(self.config.vocab_size,), initializer="zeros")

    def call(self, hidden: Tensor, table: Tensor) -> Tensor:
        hidden = self.norm(self.transform(hidden))
        return ops.matmul(hidden, ops.transpose(ops.cast(table, hidden.dtype))) + self.bias
