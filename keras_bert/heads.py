"""What is asked of the encoder: small heads of one form, and the network that joins one to the encoder.

A head knows five things: `call` (taps -> logits), `targets` (labels of a text -> what its logits are to learn), `loss`
(targets, logits -> one value per row), `answer` (logits, features -> the numbers a user gets, the same in `predict`,
`evaluate` and the exported graph) and `metrics_of`. Heads use `keras.ops` only. A new head is one class and one row in
`HEADS`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from keras_bert import kernels, metrics, similarity, spans, tagging, words
from keras_bert.config import FEATURES, EncoderConfig, HeadConfig, WindowConfig, choose
from keras_bert.encoder import Encoder, LayerNorm, dense
from keras_bert.errors import ConfigError
from keras_bert.readout import LAYERS, POOLINGS, Readout, normalized
from keras_bert.vocabulary import MASK

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
    """The form of a head: what is read of the encoder, a vector of each row or token, dropout, and a dense layer.

    Args:
        encoder: config of the encoder below.
        config: task, labels, dropout, and how answers are found.

    Attributes:
        reads: the rows of an example, see `text.Text.read`; of several rows the features are `[B, S, T]`.
        located: does it answer where in the text something is? Then it reads what `text.Text.located` gives.
        max_seq_length: usual longest row, where it is not that of the checkpoint.
        attention_mask: who looks at whom, where it is not as the checkpoint has it.
        pretrained: does it answer with the weights of pretraining, without any of its own?
        apart: may the rows of a batch be computed in groups? Not where the width of the logits is the batch's.
    """

    best_metric: ClassVar[str]
    label_dtype: ClassVar[str] = "int32"
    reads: ClassVar[str] = "row"
    located: ClassVar[bool] = False
    max_seq_length: ClassVar[int | None] = None
    attention_mask: ClassVar[str] = ""
    pretrained: ClassVar[bool] = False
    apart: ClassVar[bool] = True

    def __init__(self, encoder: EncoderConfig, config: HeadConfig, name: str = "head", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.config = config
        self.check()
        self.make(encoder)
        self.hidden_dim = encoder.hidden_dim
        self.build()

    def make(self, encoder: EncoderConfig) -> None:
        """Make the layers."""
        config, policy = self.config, self.dtype_policy
        self.readout = Readout(encoder, config.layers, config.head_lstm, name="readout", dtype=policy)
        self.dropout = keras.layers.Dropout(config.dropout, dtype=policy)
        self.projection = dense(encoder, self.width, "logits", policy)

    def build(self, input_shape: Any = None) -> None:
        self.readout.build()
        self.projection.build((None, self.readout.width))

    @property
    def taps(self) -> tuple[str, ...]:
        """What it reads of the encoder; nothing else is kept."""
        return LAYERS[self.config.layers].taps

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

    def reading(self, text: Any) -> Any:
        """A `text.Text` as this head has it read."""
        return text

    @property
    def reserved(self) -> int:
        """Tokens that a row must have room for beside what is read."""
        return 0

    def beside(self, features: Any, encoder: Encoder) -> dict[str, Tensor]:
        """What `call` gets beside the taps."""
        return {"padding_mask": encoder.complete(features)["padding_mask"]}

    def vectors(self, sequence: Tensor, mask: Tensor) -> Tensor:
        """What is classified, of `[B, T, E]` and the `padding_mask`."""
        return sequence

    def call(self, taps: dict[str, Tensor], training: bool = False) -> Tensor:
        """Taps of the encoder -> logits `[B, width]`, or `[B, T, width]` of tokens."""
        vectors = self.vectors(self.readout(taps, training=training), taps.get("padding_mask"))
        return self.projection(self.dropout(vectors, training=training))

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
    """The form of a head over one vector of a row: the pretrained pooler's, where nothing else is asked for.

    Over other layers than the last, or a BiLSTM, the pooler has no meaning; there it is the mean.
    """

    def make(self, encoder: EncoderConfig) -> None:
        if not self.pooling:
            self.pooler = Pooler(encoder, name="pooler", dtype=self.dtype_policy)
        super().make(encoder)

    def build(self, input_shape: Any = None) -> None:
        if not self.pooling:
            self.pooler.build()
        super().build()

    @property
    def pooling(self) -> str:
        """A name of `POOLINGS`; "" is the pooler."""
        config = self.config
        return config.pooling or ("mean" if config.layers != "last" or config.head_lstm else "")

    def vectors(self, sequence: Tensor, mask: Tensor) -> Tensor:
        if not self.pooling:
            return self.pooler(sequence)
        return ops.cast(choose(POOLINGS, self.pooling, "pooling")(sequence, mask), self.compute_dtype)


class Classify(Sentence):
    """One of n labels: softmax over `[B, n]`; label ids int `[B]` (Devlin et al. 2019, cases 1 and 3)."""

    best_metric = "f1"

    def check(self) -> None:
        if len(self.config.labels) < 2:
            raise ConfigError(f"classify needs at least two labels, got {list(self.config.labels)}")

    def counts(self, targets: Tensor) -> Tensor:
        return ops.take(self._weights(), targets)

    def loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        logits, smoothing = ops.cast(logits, "float32"), self.config.label_smoothing
        wanted = ops.one_hot(labels, self.width, dtype="float32") * (1.0 - smoothing) + smoothing / self.width
        each = ops.logsumexp(logits, axis=1, keepdims=True) - logits
        return ops.sum(wanted * self._weights() * each, axis=1)

    def _weights(self) -> Tensor:
        """What each label counts, float32 `[n]`."""
        return ops.convert_to_tensor(self.config.label_weights or (1.0,) * self.width, "float32")

    def answer(self, logits: Tensor, features: Any = None) -> dict[str, Tensor]:
        probabilities = ops.softmax(ops.cast(logits, "float32"), axis=-1)
        _, class_ids = ops.top_k(probabilities / ops.convert_to_tensor(cuts(self.config)), self.width, sorted=True)
        scores, class_ids = ops.take_along_axis(probabilities, class_ids, axis=1), ops.cast(class_ids, "int32")
        return {
            "probabilities": probabilities,
            "class_id": class_ids[:, 0],
            "score": scores[:, 0],
            "class_ids": class_ids,
            "scores": scores,
        }

    def metrics_of(self, references: Any, answers: dict[str, np.ndarray]) -> dict[str, float]:
        return metrics.classification(references, answers["class_ids"][:, 0], self.width)


def cuts(config: HeadConfig) -> np.ndarray:
    """What the scores of labels are divided by before the best is chosen, float32 `[n]`: of two labels the last is the
    answer where its score is above the threshold."""
    two = (1.0 - config.threshold, config.threshold)
    return np.array(two if len(config.labels) == 2 else (1.0,) * len(config.labels), np.float32)


class Multilabel(Sentence):
    """Any number of n labels: a sigmoid each over `[B, n]`; labels 0 or 1, float `[B, n]`."""

    best_metric = "f1"
    label_dtype = "float32"

    def check(self) -> None:
        if not self.config.labels:
            raise ConfigError("multilabel needs at least one label")

    def loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        logits, labels = ops.cast(logits, "float32"), ops.cast(labels, "float32")
        smoothing = self.config.label_smoothing
        labels = labels * (1.0 - smoothing) + 0.5 * smoothing
        weights = ops.convert_to_tensor(self.config.label_weights or (1.0,) * self.width, "float32")
        low = ops.log1p(ops.exp(-ops.abs(logits)))  # -log sigmoid(x) is this + max(-x, 0)
        each = weights * labels * (low + ops.maximum(-logits, 0.0)) + (1.0 - labels) * (low + ops.maximum(logits, 0.0))
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


class Choice(Sentence):
    """One of the choices of a question: a logit for each pair of both, softmax over those of a question.

    Each row is an example's text with one choice (Radford et al. 2018; SWAG in Devlin et al. 2019), so logits are
    `[B * C, 1]`. The numbers of choices may differ; what is no choice has score 0. Labels are the number of the right
    choice, int `[B]`.
    """

    best_metric = "accuracy"
    reads = "choices"

    @property
    def width(self) -> int:
        return 1

    def check(self) -> None:
        if self.config.labels:
            raise ConfigError(f"choice has no labels, got {list(self.config.labels)}")

    def targets(self, labels: Tensor, features: dict[str, Tensor]) -> Tensor:
        """1 for the right choice, 0 for another, -1 for what is none, int32 `[B, C]`."""
        there = ops.any(features["padding_mask"], axis=2)
        number = ops.expand_dims(ops.arange(ops.shape(there)[1], dtype="int32"), 0)
        right = ops.equal(number, ops.expand_dims(ops.cast(labels, "int32"), 1))
        return ops.cast(ops.logical_and(right, there), "int32") - ops.cast(ops.logical_not(there), "int32")

    def loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        logits = ops.reshape(ops.cast(logits, "float32"), ops.shape(labels))
        total = ops.logsumexp(ops.where(labels >= 0, logits, spans.LOW), axis=1)
        return total - ops.sum(ops.where(labels > 0, logits, 0.0), axis=1)

    def answer(self, logits: Tensor, features: Any = None) -> dict[str, Tensor]:
        there = ops.any(features["padding_mask"], axis=2)
        logits = ops.where(there, ops.reshape(ops.cast(logits, "float32"), ops.shape(there)), spans.LOW)
        scores = ops.where(there, ops.softmax(logits, axis=1), 0.0)
        choice = ops.where(ops.any(there, axis=1), ops.cast(ops.argmax(logits, axis=1), "int32"), -1)
        return {"choice": choice, "score": ops.max(scores, axis=1), "scores": scores}

    def metrics_of(self, references: Any, answers: dict[str, np.ndarray]) -> dict[str, float]:
        return {"accuracy": float(np.mean(references == answers["choice"])) if len(references) else 0.0}


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

    def answer(self, logits: Tensor, features: Any = None) -> dict[str, Tensor]:
        return {"embedding": ops.cast(logits, "float32")}


class Similarity(Embed):
    """How alike two texts are: the cosine of their vectors, each text a row of its own; see `similarity`."""

    label_dtype = "float32"
    reads = "each"

    @property
    def best_metric(self) -> str:  # type: ignore[override]
        return "mrr" if self.config.objective == "ranking" else "spearman"

    def counts(self, targets: Tensor) -> Tensor:
        return similarity.positive(targets) if self.config.objective == "ranking" else super().counts(targets)

    def loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        config, vectors = self.config, self.of_pairs(logits)
        return similarity.OBJECTIVES[config.objective or "scores"](labels, vectors, config.similarity_scale)

    def of_pairs(self, logits: Tensor) -> Tensor:
        """Vectors of rows as those of pairs, float32 `[B, 2, E]`."""
        return ops.reshape(ops.cast(logits, "float32"), (-1, 2, logits.shape[-1]))

    def answer(self, logits: Tensor, features: Any = None) -> dict[str, Tensor]:
        vectors = self.of_pairs(logits)
        return {"similarity": similarity.cosine(vectors), "embeddings": vectors}

    def metrics_of(self, references: Any, answers: dict[str, np.ndarray]) -> dict[str, float]:
        alike = len(set(references[:, 2].tolist())) < 2  # positives alone correlate with nothing
        objective, found = self.config.objective, dict[str, float]()
        if objective == "scores" or not alike:
            found |= metrics.regression(references[:, 2], answers["similarity"])
        if objective == "ranking" or alike:
            found |= similarity.retrieval(references, answers["embeddings"])
        return found


class Words(Head):
    """The form of a head over the vocabulary: the logits of the masked language model at some places of a row.

    `call` gets the encoder's token table and the places with the taps, and gives `[B, P, V]`; see `words`.
    """

    apart = False

    def make(self, encoder: EncoderConfig) -> None:
        self.masked_lm = TiedLogits(encoder, name="masked_lm", dtype=self.dtype_policy)

    def build(self, input_shape: Any = None) -> None:
        self.masked_lm.build()

    def check(self) -> None:
        if self.config.labels:
            raise ConfigError(f"{self.config.task} has no labels, got {list(self.config.labels)}")

    def places(self, features: dict[str, Tensor]) -> Tensor:
        """Where logits are wanted, int32 `[B, P]`."""
        raise NotImplementedError(type(self).__name__)

    def beside(self, features: Any, encoder: Encoder) -> dict[str, Tensor]:
        return {"table": encoder.tokens.embeddings, "places": self.places(encoder.complete(features))}

    def call(self, taps: dict[str, Tensor], training: bool = False) -> Tensor:
        width = ops.shape(taps["sequence"])[1]
        places = ops.clip(taps["places"], 0, width - 1)
        return self.masked_lm(words.gather(taps["sequence"], places), taps["table"])


class FillMask(Words):
    """The words at the masks of a text: what the model was pretrained for (Devlin et al. 2019), so nothing is new.

    `[MASK]` in a text is the mask, whatever the case of the vocabulary.
    """

    reads = "offsets"
    pretrained = True

    def check(self) -> None:
        super().check()
        if self.config.mask_token_id < 0:
            raise ConfigError(f"fill_mask needs {MASK} in the vocabulary, and its number in mask_token_id")

    def reading(self, text: Any) -> Any:
        return text.with_special_tokens((MASK,))

    def places(self, features: dict[str, Tensor]) -> Tensor:
        return words.masks(words.is_mask(features, self.config.mask_token_id), self.config.max_masks)

    def answer(self, logits: Tensor, features: Any = None) -> dict[str, Tensor]:
        config, there = self.config, words.is_mask(features, self.config.mask_token_id)
        found = words.best(logits, self.places(features), ops.shape(there)[1], config.top_k, config.max_masks)
        return found | {"num_masks": ops.sum(ops.cast(there, "int32"), axis=1)}

    def metrics_of(self, references: Any, answers: dict[str, np.ndarray]) -> dict[str, float]:
        return metrics.cloze(references, answers["token_ids"])


class Generate(Words):
    """A text that follows a text, token by token (UniLM's sequence to sequence, Dong et al. 2019).

    The mask of the encoder lets the source see itself, and each token of the target the source and what is before it.
    In training each token is told from the one before it, the first from the source's [SEP]. UniLM's fine-tuning hides
    tokens at random instead and tells those only; telling all needs no draws, learns from every token at each step, and
    from rows as they are when the target is found: nothing is hidden there.

    `answer` is what training evaluates: how many of the tokens are right, given those before them. A row of which all
    are is one that greedy search gives exactly.
    """

    best_metric = "token_accuracy"
    attention_mask = "seq2seq"

    def make(self, encoder: EncoderConfig) -> None:
        if encoder.num_segments < 2 or encoder.attention_mask != self.attention_mask:
            raise ConfigError("generate needs an encoder with two segments and attention_mask seq2seq")
        if self.config.beam_size >= encoder.vocab_size // 2:
            raise ConfigError(f"beam_size {self.config.beam_size} is too many for {encoder.vocab_size} pieces")
        super().make(encoder)

    @property
    def reserved(self) -> int:
        return self.config.max_target_length

    def reading(self, text: Any) -> Any:
        return text.before_target(self.config.max_target_length)

    def places(self, features: dict[str, Tensor]) -> Tensor:
        return words.target_places(features, self.config.max_target_length)

    def targets(self, labels: Tensor, features: dict[str, Tensor]) -> Tensor:
        return words.next_tokens(features)

    def counts(self, targets: Tensor) -> Tensor:
        return ops.sum(ops.cast(targets > 0, "float32"), axis=1)

    def loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        wanted = words.at_target_places(labels, logits, self.config.max_target_length)
        logits = ops.cast(logits, "float32")
        chosen = ops.take_along_axis(logits, ops.expand_dims(ops.maximum(wanted - 1, 0), 2), axis=2)[:, :, 0]
        return ops.sum(ops.where(wanted > 0, ops.logsumexp(logits, axis=2) - chosen, 0.0), axis=1)

    def answer(self, logits: Tensor, features: Any = None) -> dict[str, Tensor]:
        wanted = words.at_target_places(words.next_tokens(features), logits, self.config.max_target_length)
        found = ops.cast(ops.top_k(ops.cast(logits, "float32"), 1)[1][:, :, 0], "int32")
        right = ops.logical_and(wanted > 0, ops.equal(found, wanted - 1))
        return {
            "num_right": ops.sum(ops.cast(right, "int32"), axis=1),
            "num_wanted": ops.sum(ops.cast(wanted > 0, "int32"), axis=1),
        }

    def metrics_of(self, references: Any, answers: dict[str, np.ndarray]) -> dict[str, float]:
        if "generated" in answers:
            return metrics.generation(references, [text.decode("utf-8") for text in answers["generated"]])
        right, wanted = answers["num_right"], answers["num_wanted"]
        return {
            "token_accuracy": float(right.sum() / max(wanted.sum(), 1)),
            "exact_match": float((right == wanted).mean()) if len(right) else 0.0,
        }


HEADS: dict[str, type[Head]] = {
    "classify": Classify,
    "multilabel": Multilabel,
    "regress": Regress,
    "choice": Choice,
    "tag": Tag,
    "span": Span,
    "similarity": Similarity,
    "embed": Embed,
    "fill_mask": FillMask,
    "generate": Generate,
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
        return self.head(self.encoded(features, self.head.taps, training), training=training)

    def encoded(self, features: Any, taps: Sequence[str], training: bool = False, **memory: Any) -> dict[str, Any]:
        """Taps of the encoder; the rows of examples `[B, S, T]` are `[B * S, T]` there.

        Args:
            memory: the encoder's `memory` and `seen`, of rows that go on.
        """
        if isinstance(features, dict):
            features = {name: as_rows(value) for name, value in features.items()}
        learns = bool(self.encoder.trainable_variables)  # features of a frozen encoder have no dropout
        found = self.encoder(features, taps=taps, training=training and learns, **memory)
        return found | self.head.beside(features, self.encoder)

    def answer(self, features: Any) -> dict[str, Tensor]:
        """What a user gets for these features: the head's answer, without dropout."""
        known = {name: features[name] for name in FEATURES if name in features}
        return self.head.answer(self(known, training=False), features)


def as_rows(features: Any) -> Any:
    """`[B, S, T]` as `[B * S, T]`; `[B, T]` as it is."""
    shape = ops.shape(features)
    return features if len(shape) < 3 else ops.reshape(features, (-1, shape[-1]))
