"""The form of a head: a small network over the encoder, its loss, its answers and its metrics.

A head knows five things: `call` (taps -> logits), `targets` (labels of a text -> what its logits are to learn), `loss`
(targets, logits -> one value per row), `answer` (logits, features -> the numbers a user gets, the same in `predict`,
`evaluate` and the exported graph) and `metrics_of`. Heads use `keras.ops` only.
"""

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

    def divergence(self, teacher: Tensor, logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
        """How far the answers of `logits` are from those of the `teacher`'s, float32 `[B]`; see `divergences`.

        It is summed over what `targets` show to count in a row, whose labels it does not read. `temperature` divides
        logits that become probabilities.
        """
        raise NotImplementedError(type(self).__name__)

    def answer(self, logits: Tensor, features: Any = None) -> dict[str, Tensor]:
        """What a user gets: float32 and int32 tensors, first axis B, widths that do not depend on B."""
        raise NotImplementedError(type(self).__name__)

    def metrics_of(self, references: Any, answers: dict[str, np.ndarray]) -> dict[str, float]:
        """Metrics over a whole evaluation set.

        Args:
            references: what is right, see `batches.Examples`.
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
