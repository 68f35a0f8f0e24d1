"""What is asked of the encoder: small heads of one form, and the network that joins one to the encoder.

A head knows four things: `call` (taps -> logits), `loss` (labels, logits -> one value per example), `answer`
(logits -> the numbers a user gets, the same in `predict`, `evaluate` and the exported graph) and `metrics`.
Heads use `keras.ops` only. A new head is one class and one row in `HEADS`.
"""

from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from keras_bert import kernels, metrics
from keras_bert.config import FEATURES, EncoderConfig, HeadConfig, choose
from keras_bert.encoder import Encoder, LayerNorm, dense
from keras_bert.errors import ConfigError

Tensor = Any


class Pooler(keras.layers.Layer):
    """Dense with tanh over the first position (Devlin et al. 2019): `[B, T, D]` -> `[B, D]`."""

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

    Dense, activation and layer norm, then a product with the encoder's own token table and a free bias:
    vectors `[..., D]` -> logits `[..., V]`. The table stays the encoder's: it is read, never copied.
    """

    def __init__(self, config: EncoderConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config = config
        act = kernels.activation(config.activation)
        self.transform = dense(config, config.hidden_dim, "transform", self.dtype_policy, act)
        self.norm = LayerNorm(config.layer_norm_epsilon, name="norm", dtype=self.dtype_policy)

    def build(self, input_shape: Any = None) -> None:
        self.transform.build((None, self.config.hidden_dim))
        self.norm.build((None, self.config.hidden_dim))
        self.bias = self.add_weight(name="bias", shape=(self.config.vocab_size,), initializer="zeros")

    def call(self, hidden: Tensor, table: Tensor) -> Tensor:
        hidden = self.norm(self.transform(hidden))
        return ops.matmul(hidden, ops.transpose(ops.cast(table, hidden.dtype))) + self.bias


class Head(keras.layers.Layer):
    """The form of a head over the pooled first position.

    Args:
        encoder: config of the encoder below.
        config: task, labels, dropout, threshold.
    """

    taps: ClassVar[tuple[str, ...]] = ("sequence",)
    best_metric: ClassVar[str]
    label_dtype: ClassVar[str] = "int32"

    def __init__(self, encoder: EncoderConfig, config: HeadConfig, name: str = "head", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.config = config
        self.check()
        self.pooler = Pooler(encoder, name="pooler", dtype=self.dtype_policy)
        self.dropout = keras.layers.Dropout(config.dropout, dtype=self.dtype_policy)
        self.projection = dense(encoder, self.width, "logits", self.dtype_policy)
        self.hidden_dim = encoder.hidden_dim
        self.build()

    def build(self, input_shape: Any = None) -> None:
        self.pooler.build()
        self.projection.build((None, self.hidden_dim))

    @property
    def width(self) -> int:
        """Number of logits per example."""
        return len(self.config.labels)

    def check(self) -> None:
        """Raises ConfigError where the labels do not suit the task."""

    def call(self, taps: dict[str, Tensor], training: bool = False) -> Tensor:
        """Taps of the encoder -> logits `[B, width]`."""
        return self.projection(self.dropout(self.pooler(taps["sequence"]), training=training))

    def loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Loss of each example, float32 `[B]`."""
        raise NotImplementedError(type(self).__name__)

    def answer(self, logits: Tensor) -> dict[str, Tensor]:
        """What a user gets: float32 and int32 tensors, first axis B, widths that do not depend on B."""
        raise NotImplementedError(type(self).__name__)

    def metrics_of(self, labels: np.ndarray, answers: dict[str, np.ndarray]) -> dict[str, float]:
        """Metrics over a whole evaluation set."""
        raise NotImplementedError(type(self).__name__)


class Classify(Head):
    """One of n labels: softmax over `[B, n]`; label ids int `[B]` (Devlin et al. 2019, cases 1 and 3)."""

    best_metric = "f1"

    def check(self) -> None:
        if len(self.config.labels) < 2:
            raise ConfigError(f"classify needs at least two labels, got {list(self.config.labels)}")

    def loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        logits = ops.cast(logits, "float32")
        chosen = ops.take_along_axis(logits, ops.expand_dims(labels, 1), axis=1)
        return ops.logsumexp(logits, axis=1) - ops.squeeze(chosen, 1)

    def answer(self, logits: Tensor) -> dict[str, Tensor]:
        probabilities = ops.softmax(ops.cast(logits, "float32"), axis=-1)
        scores, class_ids = ops.top_k(probabilities, self.width, sorted=True)
        class_ids = ops.cast(class_ids, "int32")
        return {
            "probabilities": probabilities,
            "class_id": class_ids[:, 0],
            "score": scores[:, 0],
            "class_ids": class_ids,
            "scores": scores,
        }

    def metrics_of(self, labels: np.ndarray, answers: dict[str, np.ndarray]) -> dict[str, float]:
        return metrics.classification(labels, answers["class_id"], self.width)


class Multilabel(Head):
    """Any number of n labels: a sigmoid each over `[B, n]`; labels 0 or 1, float `[B, n]`."""

    best_metric = "f1"
    label_dtype = "float32"

    def check(self) -> None:
        if not self.config.labels:
            raise ConfigError("multilabel needs at least one label")

    def loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        logits, labels = ops.cast(logits, "float32"), ops.cast(labels, "float32")
        each = ops.maximum(logits, 0.0) - logits * labels + ops.log1p(ops.exp(-ops.abs(logits)))
        return ops.mean(each, axis=1)

    def answer(self, logits: Tensor) -> dict[str, Tensor]:
        scores = ops.sigmoid(ops.cast(logits, "float32"))
        ids = ops.broadcast_to(ops.expand_dims(ops.arange(self.width, dtype="int32"), 0), ops.shape(scores))
        return {
            "class_ids": ids,
            "scores": scores,
            "active": ops.greater_equal(scores, self.config.threshold),
        }

    def metrics_of(self, labels: np.ndarray, answers: dict[str, np.ndarray]) -> dict[str, float]:
        return metrics.multilabel(labels, answers["active"])


class Regress(Head):
    """One number: `[B, 1]` logits taken as they are; labels float `[B]`; squared error."""

    best_metric = "pearson"
    label_dtype = "float32"

    @property
    def width(self) -> int:
        return 1

    def check(self) -> None:
        if self.config.labels:
            raise ConfigError(f"regress has no labels, got {list(self.config.labels)}")

    def loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        return ops.square(ops.cast(logits, "float32")[:, 0] - ops.cast(labels, "float32"))

    def answer(self, logits: Tensor) -> dict[str, Tensor]:
        return {"score": ops.cast(logits, "float32")[:, 0]}

    def metrics_of(self, labels: np.ndarray, answers: dict[str, np.ndarray]) -> dict[str, float]:
        return metrics.regression(labels, answers["score"])


HEADS: dict[str, type[Head]] = {"classify": Classify, "multilabel": Multilabel, "regress": Regress}


class Network(keras.Model):
    """An encoder and a head: features -> logits. Plain Keras; training and export both use it.

    Args:
        encoder: config of the encoder.
        head: config of the head; `head.task` names one of `HEADS`.
        dtype: "float32", "mixed_bfloat16" or "mixed_float16".
    """

    def __init__(self, encoder: EncoderConfig, head: HeadConfig, dtype: Any = None, **kwargs: Any) -> None:
        super().__init__(dtype=dtype, **kwargs)
        self.encoder = Encoder(encoder, dtype=self.dtype_policy)
        self.head = choose(HEADS, head.task, "task")(encoder, head, dtype=self.dtype_policy)
        self.built = True

    def call(self, features: Any, training: bool = False) -> Tensor:
        taps = self.encoder(features, taps=self.head.taps, training=training)
        return self.head(taps, training=training)

    def answer(self, features: Any) -> dict[str, Tensor]:
        """What a user gets for these features: the head's answer, without dropout."""
        known = {name: features[name] for name in FEATURES if name in features}
        return self.head.answer(self(known, training=False))
