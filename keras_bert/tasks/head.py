"""The form of a head: a small network over the encoder, its loss, its answers and its metrics.

A head knows six things: `call` (taps -> logits), `targets` (labels of a text -> what its logits are to learn), `loss`
(targets, logits -> one value per row), `answer` (logits, features -> the numbers a user gets, the same in `predict`,
`evaluate` and the exported graph), `plain` (one row of them in plain Python) and `metrics_of`. Heads use `keras.ops`
only.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from keras_bert.config import EncoderConfig, HeadConfig, WindowConfig, choose
from keras_bert.errors import ConfigError
from keras_bert.model.encoder import Encoder, dense
from keras_bert.model.layers import Pooler, Tensor, TiedLogits
from keras_bert.model.readout import LAYERS, POOLINGS, Readout
from keras_bert.tasks import words

Row = Mapping[str, Any]
"""Output name -> the NumPy value of one row."""


class Head(keras.layers.Layer):
    """The form of a head: what is read of the encoder, a vector of each row or token, dropout, and a dense layer.

    Args:
        encoder: config of the encoder below.
        config: the dataclass of the task, which says how examples are read (`config.reads`).

    Attributes:
        attention_mask: name of the mask, if it is not that of the checkpoint.
        pretrained_head: whether all of the head's weights come from pretraining.
        groupable: whether rows may be grouped by length when serving. False if the width of the logits depends on the
            batch.
        merging: a function from logits to the scores that are averaged over windows or models, and one from the mean
            to logits again; None if they cannot be averaged.
        answering: how logits become the answer of a served model, a name of `serving.ANSWERING`.
        slices: for places in bytes that `answer` gives, names of: starts, ends, the text between them, and both in
            characters.
        signatures: further signatures of an exported model -> names of `serving.MAKERS`; None removes one of those
            that all models have.
    """

    best_metric: ClassVar[str]
    label_dtype: ClassVar[str] = "int32"
    attention_mask: ClassVar[str] = ""
    pretrained_head: ClassVar[bool] = False
    groupable: ClassVar[bool] = True
    merging: ClassVar[tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] | None] = None
    answering: ClassVar[str] = "logits"
    slices: ClassVar[tuple[tuple[str, str, str, str, str], ...]] = ()
    signatures: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, encoder: EncoderConfig, config: HeadConfig, name: str = "head", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.config: Any = config  # of the class that the task has
        self.check()
        self.make(encoder)
        self.hidden_dim = encoder.hidden_dim
        self.build()

    # === The network ===

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
        """What it reads of the encoder; nothing else is computed."""
        return choose(LAYERS, self.config.layers, "choice of layers").taps

    @property
    def width(self) -> int:
        """Number of logits per example, or per token."""
        return self.config.width

    def check(self) -> None:
        """Raises ConfigError if the labels do not suit the task."""
        if self.config.labels and not self.config.has_labels:
            raise ConfigError(f"{self.config.task} has no labels, got {list(self.config.labels)}")

    def extra_inputs(self, features: Any, encoder: Encoder) -> dict[str, Tensor]:
        """What `call` gets besides the taps."""
        return {"padding_mask": encoder.complete(features)["padding_mask"]}

    def vectors(self, sequence: Tensor, mask: Tensor) -> Tensor:
        """The vectors to classify, of `[B, T, E]` and the `padding_mask`."""
        return sequence

    def call(self, taps: dict[str, Tensor], training: bool = False) -> Tensor:
        """Taps of the encoder -> logits `[B, width]`, or `[B, T, width]` of tokens."""
        vectors = self.vectors(self.readout(taps, training=training), taps.get("padding_mask"))
        return self.projection(self.dropout(vectors, training=training))

    def extra_outputs(self, taps: dict[str, Tensor]) -> dict[str, Tensor]:
        """What signatures of a served model need besides the logits, by name."""
        return {}

    # === Training ===

    def targets(self, labels: Tensor, features: dict[str, Tensor]) -> Tensor:
        """What the logits of each row are to learn, of the labels of its text; here they are the same."""
        return labels

    def counts(self, targets: Tensor) -> Tensor:
        """How much each row counts in the mean loss, float32 `[B]`."""
        return ops.ones(ops.shape(targets)[:1])

    def loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Loss of each row, float32 `[B]`: `counts` times its mean."""
        raise NotImplementedError(type(self).__name__)

    def divergence(self, teacher: Tensor, logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
        """How far the answers of `logits` are from those of the `teacher`'s, float32 `[B]`; see `divergences`.

        It is summed over what `targets` show to count in a row, whose labels it does not read. `temperature` divides
        logits that become probabilities.
        """
        raise NotImplementedError(type(self).__name__)

    @property
    def whole_batch(self) -> bool:
        """Whether the loss compares the rows of a batch, so that a batch cannot be cut into parts."""
        return self.config.whole_batch

    def config_for(self, labelled: bool) -> HeadConfig:
        """The config to train with, on rows with or without labels.

        Raises:
            ConfigError: it asks for labels, and there are none.
        """
        return self.config

    def warnings(self, examples: Any, text: Any) -> list[str]:
        """Lines for people about training examples (`batches.Examples`) and a `text.Text`."""
        return []

    # === Reading ===

    @classmethod
    def windows(cls, max_seq_length: int) -> WindowConfig:
        """How long texts are read by default."""
        return WindowConfig()

    @classmethod
    def settings(cls, vocabulary: Sequence[str]) -> dict[str, Any]:
        """Fields of the config that follow from the vocabulary."""
        return {}

    def prepare_text(self, text: Any) -> Any:
        """A `text.Text` as this head needs it."""
        return text

    @property
    def reserved(self) -> int:
        """Tokens of a row that texts must leave free."""
        return 0

    # === Answers ===

    def answer(self, logits: Tensor, features: Any = None) -> dict[str, Tensor]:
        """What a user gets: float32 and int32 tensors, first axis B, widths that do not depend on B."""
        raise NotImplementedError(type(self).__name__)

    def plain(self, row: Row) -> dict[str, Any]:
        """One row of what a served model answers, as plain Python; what stands first goes into a csv file."""
        return plain_values(row, row)

    def cell(self, answer: Mapping[str, Any]) -> Any:
        """What `predict` writes into the label column of a csv file, of what `plain` gives; lists as comma lists."""
        first = next(iter(answer.values()))
        return ",".join(map(str, first)) if isinstance(first, list) else first

    def files(self, ids: Sequence[str], answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Files in the layout of other programs, by name, of the ids of rows and of what `plain` gives."""
        return {}

    # === Evaluation ===

    @classmethod
    def before_evaluation(cls) -> None:
        """Raises ConfigError if a library that the metrics need is not installed."""

    def metrics_of(self, references: Any, answers: dict[str, np.ndarray]) -> dict[str, float]:
        """Metrics over a whole evaluation set.

        Args:
            references: what is right, see `batches.Examples`.
            answers: what `answer` gives, or the exported model.
        """
        raise NotImplementedError(type(self).__name__)

    def with_tuned_threshold(self, record: dict[str, Any]) -> HeadConfig:
        """The config with the threshold that an evaluation found best; `record` is what `metrics_of` gave."""
        return self.config


def plain_values(names: Iterable[str], row: Row) -> dict[str, Any]:
    """Some of a row's values in plain Python."""
    return {name: plain_value(row[name]) for name in names}


def plain_value(value: Any) -> Any:
    """A NumPy value, or bytes, in plain Python."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if not value.ndim:
        return value.item()
    return [plain_value(one) for one in value] if value.dtype.kind in "OSU" else value.tolist()


class Sentence(Head):
    """The form of a head over one vector of a row: the pretrained pooler's by default.

    Over other layers than the last, or over a BiLSTM, the pooler has no meaning; the default is the mean there.
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

    def extra_outputs(self, taps: dict[str, Tensor]) -> dict[str, Tensor]:
        return {} if self.pooling else {"pooled": self.pooler(taps["sequence"])}

    def vectors(self, sequence: Tensor, mask: Tensor) -> Tensor:
        if not self.pooling:
            return self.pooler(sequence)
        return ops.cast(choose(POOLINGS, self.pooling, "pooling")(sequence, mask), self.compute_dtype)


class Words(Head):
    """The form of a head over the vocabulary: the logits of the masked language model at some positions of a row.

    `call` gets the encoder's token table and the positions with the taps, and gives `[B, P, V]`; see `words`.
    """

    groupable = False
    signatures: ClassVar[Mapping[str, Any]] = {"token_ids": "public_of_ids"}

    def make(self, encoder: EncoderConfig) -> None:
        self.masked_lm = TiedLogits(encoder, name="masked_lm", dtype=self.dtype_policy)

    def build(self, input_shape: Any = None) -> None:
        self.masked_lm.build()

    @property
    def taps(self) -> tuple[str, ...]:
        return ("sequence",)

    def places(self, features: dict[str, Tensor]) -> Tensor:
        """Positions whose logits are computed, int32 `[B, P]`."""
        raise NotImplementedError(type(self).__name__)

    def extra_inputs(self, features: Any, encoder: Encoder) -> dict[str, Tensor]:
        return {"table": encoder.tokens.embeddings, "places": self.places(encoder.complete(features))}

    def call(self, taps: dict[str, Tensor], training: bool = False) -> Tensor:
        width = ops.shape(taps["sequence"])[1]
        places = ops.clip(taps["places"], 0, width - 1)
        return self.masked_lm(words.gather(taps["sequence"], places), taps["table"])
