"""What is asked of the encoder: small heads of one form, and the network that joins one to the encoder.

A head knows five things: `call` (taps -> logits), `targets` (labels of a text -> what its logits are to learn), `loss`
(targets, logits -> one value per row), `answer` (logits, features -> the numbers a user gets, the same in `predict`,
`evaluate` and the exported graph) and `metrics_of`. Heads use `keras.ops` only. A new head is one class and one row in
`HEADS`.
"""

import dataclasses
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from keras_bert import kernels, metrics, spans, tagging
from keras_bert.config import FEATURES, EncoderConfig, HeadConfig, WindowConfig, choose
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
    """The form of a head: a vector of each row or token, dropout, and a dense layer.

    Args:
        encoder: config of the encoder below.
        config: task, labels, dropout, and how answers are found.

    Attributes:
        located: does it answer where in the text something is? Then it reads what `text.Text.located` gives.
        max_seq_length: usual longest row, where it is not that of the checkpoint.
    """

    taps: ClassVar[tuple[str, ...]] = ("sequence",)
    best_metric: ClassVar[str]
    label_dtype: ClassVar[str] = "int32"
    located: ClassVar[bool] = False
    max_seq_length: ClassVar[int | None] = None

    def __init__(self, encoder: EncoderConfig, config: HeadConfig, name: str = "head", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.config = config
        self.check()
        self.make(encoder)
        self.dropout = keras.layers.Dropout(config.dropout, dtype=self.dtype_policy)
        self.projection = dense(encoder, self.width, "logits", self.dtype_policy)
        self.hidden_dim = encoder.hidden_dim
        self.build()

    def make(self, encoder: EncoderConfig) -> None:
        """Make the layers below the dropout; here there are none."""

    def build(self, input_shape: Any = None) -> None:
        self.projection.build((None, self.hidden_dim))

    @property
    def width(self) -> int:
        """Number of logits per example, or per token."""
        return len(self.config.labels)

    def check(self) -> None:
        """Raises ConfigError where the labels do not suit the task."""

    @classmethod
    def windows(cls, max_seq_length: int) -> WindowConfig:
        """How long texts are read where nobody says."""
        return WindowConfig()

    def vectors(self, sequence: Tensor) -> Tensor:
        """What is classified, of `[B, T, D]`."""
        return sequence

    def call(self, taps: dict[str, Tensor], training: bool = False) -> Tensor:
        """Taps of the encoder -> logits `[B, width]`, or `[B, T, width]` of tokens."""
        return self.projection(self.dropout(self.vectors(taps["sequence"]), training=training))

    def targets(self, labels: Tensor, features: dict[str, Tensor]) -> Tensor:
        """What the logits of each row are to learn, of the labels of its text; here they are the same."""
        return labels

    def counts(self, targets: Tensor) -> Tensor:
        """How much each row counts in the mean loss, float32 `[B]`."""
        return ops.ones(ops.shape(targets)[:1])

    def loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Loss of each row, float32 `[B]`: `counts` times its mean."""
        raise NotImplementedError(type(self).__name__)

    def answer(self, logits: Tensor, features: Any = None) -> dict[str, Tensor]:
        """What a user gets: float32 and int32 tensors, first axis B, widths that do not depend on B."""
        raise NotImplementedError(type(self).__name__)

    def metrics_of(self, references: Any, answers: dict[str, np.ndarray]) -> dict[str, float]:
        """Metrics over a whole evaluation set.

        Args:
            references: what is right, see `data.Examples`.
            answers: what `answer` gives, or the exported model.
        """
        raise NotImplementedError(type(self).__name__)

    def tuned(self, record: dict[str, Any]) -> HeadConfig:
        """The config, with what an evaluation has found best; `record` is what `metrics_of` gave."""
        return self.config


class Sentence(Head):
    """The form of a head over the pooled first position."""

    def make(self, encoder: EncoderConfig) -> None:
        self.pooler = Pooler(encoder, name="pooler", dtype=self.dtype_policy)

    def build(self, input_shape: Any = None) -> None:
        self.pooler.build()
        super().build()

    def vectors(self, sequence: Tensor) -> Tensor:
        return self.pooler(sequence)


class Classify(Sentence):
    """One of n labels: softmax over `[B, n]`; label ids int `[B]` (Devlin et al. 2019, cases 1 and 3)."""

    best_metric = "f1"

    def check(self) -> None:
        if len(self.config.labels) < 2:
            raise ConfigError(f"classify needs at least two labels, got {list(self.config.labels)}")

    def loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        logits = ops.cast(logits, "float32")
        chosen = ops.take_along_axis(logits, ops.expand_dims(labels, 1), axis=1)
        return ops.logsumexp(logits, axis=1) - ops.squeeze(chosen, 1)

    def answer(self, logits: Tensor, features: Any = None) -> dict[str, Tensor]:
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

    def metrics_of(self, references: Any, answers: dict[str, np.ndarray]) -> dict[str, float]:
        return metrics.classification(references, answers["class_ids"][:, 0], self.width)


class Multilabel(Sentence):
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

    def answer(self, logits: Tensor, features: Any = None) -> dict[str, Tensor]:
        scores = ops.sigmoid(ops.cast(logits, "float32"))
        ids = ops.broadcast_to(ops.expand_dims(ops.arange(self.width, dtype="int32"), 0), ops.shape(scores))
        return {
            "class_ids": ids,
            "scores": scores,
            "active": ops.greater_equal(scores, self.config.threshold),
        }

    def metrics_of(self, references: Any, answers: dict[str, np.ndarray]) -> dict[str, float]:
        return metrics.multilabel(references, answers["active"])


class Regress(Sentence):
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

    def answer(self, logits: Tensor, features: Any = None) -> dict[str, Tensor]:
        return {"score": ops.cast(logits, "float32")[:, 0]}

    def metrics_of(self, references: Any, answers: dict[str, np.ndarray]) -> dict[str, float]:
        return metrics.regression(references, answers["score"])


class Tag(Head):
    """Entities in a text: softmax over the tags of each word's first piece (Devlin et al. 2019, case 2).

    The labels are the types of entities; see `tagging` for tags, targets and decoding.
    """

    best_metric = "f1"
    located = True

    @property
    def width(self) -> int:
        return 1 + 2 * len(self.config.labels)

    def check(self) -> None:
        if not self.config.labels:
            raise ConfigError("tag needs at least one type of entities")

    @classmethod
    def windows(cls, max_seq_length: int) -> WindowConfig:
        return WindowConfig(max_windows=64)

    def targets(self, labels: Tensor, features: dict[str, Tensor]) -> Tensor:
        return tagging.targets(labels, features["starts"], features["ends"], features["begins"])

    def counts(self, targets: Tensor) -> Tensor:
        return ops.sum(ops.cast(targets > 0, "float32"), axis=1)

    def loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        logits = ops.cast(logits, "float32")
        tags = ops.expand_dims(ops.maximum(labels - 1, 0), 2)
        each = ops.logsumexp(logits, axis=2) - ops.squeeze(ops.take_along_axis(logits, tags, axis=2), 2)
        return ops.sum(ops.where(labels > 0, each, 0.0), axis=1)

    def answer(self, logits: Tensor, features: Any = None) -> dict[str, Tensor]:
        seen = ops.logical_and(features["begins"], features["best"])
        logits = tagging.by_word(ops.cast(logits, "float32"), seen, features, ops.segment_sum)
        starts = tagging.by_word(features["starts"] + 1, seen, features, ops.segment_sum) - 1
        ends = tagging.by_word(features["ends"], features["starts"] >= 0, features, ops.segment_max)
        there = starts >= 0
        tags = ops.where(there, tagging.DECODES[self.config.decode or "argmax"](logits, there), 0)
        shares = ops.take_along_axis(ops.softmax(logits, axis=2), tags[:, :, None], axis=2)[:, :, 0]
        return tagging.entities(tags, shares, starts, ends, self.config.max_entities)

    def metrics_of(self, references: Any, answers: dict[str, np.ndarray]) -> dict[str, float]:
        names = ("start_bytes", "end_bytes", "type_ids")
        found = np.stack([answers[name] for name in names], axis=2)
        return metrics.entities(
            *([{tuple(e) for e in row.tolist() if e[0] >= 0} for row in of] for of in (references, found))
        )


class Span(Head):
    """The span of a passage that answers a question: a start and an end (Devlin et al. 2019, case 4).

    Softmax over the tokens of the passage and [CLS], which stands for no answer; see `spans` for decoding.
    """

    best_metric = "best_f1"
    located = True
    max_seq_length = 384

    @property
    def width(self) -> int:
        return 2

    def check(self) -> None:
        if self.config.labels:
            raise ConfigError(f"span has no labels, got {list(self.config.labels)}")

    @classmethod
    def windows(cls, max_seq_length: int) -> WindowConfig:
        return WindowConfig(max_windows=64, doc_stride=max(1, min(128, max_seq_length // 3)))

    def targets(self, labels: Tensor, features: dict[str, Tensor]) -> Tensor:
        return spans.targets(labels, features["starts"], features["ends"])

    def counts(self, targets: Tensor) -> Tensor:
        return ops.cast(ops.any(spans.bit(targets, spans.START), axis=1), "float32")

    def loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        allowed = ops.expand_dims(spans.bit(labels, spans.ALLOWED), 2)
        logits = ops.where(allowed, ops.cast(logits, "float32"), spans.LOW)
        total = 0.5 * ops.sum(ops.logsumexp(logits, axis=1), axis=1) * self.counts(labels)
        for i, which in enumerate((spans.START, spans.END)):
            total = total - 0.5 * ops.sum(ops.where(spans.bit(labels, which), logits[..., i], 0.0), axis=1)
        return total

    def answer(self, logits: Tensor, features: Any = None) -> dict[str, Tensor]:
        config = self.config
        decode = spans.DECODES[config.decode or "joint"]
        found = decode(ops.cast(logits, "float32"), features, config.max_answer_length, config.n_best_size)
        return spans.answer(found, config.version_2_with_negative, config.null_score_diff_threshold)

    def metrics_of(self, references: Any, answers: dict[str, np.ndarray]) -> dict[str, float]:
        places = zip(answers["nbest_start_bytes"][:, 0], answers["nbest_end_bytes"][:, 0], strict=True)
        best = [
            passage[max(start, 0) : max(end, 0)].decode("utf-8", "ignore")
            for (passage, _), (start, end) in zip(references, places, strict=True)
        ]
        odds = answers["null_score_diff"] if self.config.version_2_with_negative else None
        return metrics.reading([golds for _, golds in references], best, answers["start_byte"] < 0, odds)

    def tuned(self, record: dict[str, Any]) -> HeadConfig:
        if not self.config.version_2_with_negative:
            return self.config
        return dataclasses.replace(self.config, null_score_diff_threshold=record["best_f1_thresh"])


HEADS: dict[str, type[Head]] = {
    "classify": Classify,
    "multilabel": Multilabel,
    "regress": Regress,
    "tag": Tag,
    "span": Span,
}


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
        return self.head.answer(self(known, training=False), features)
