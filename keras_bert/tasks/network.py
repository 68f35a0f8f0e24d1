"""The table of heads, and the network that joins one to the encoder."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_bert.config import FEATURES, EncoderConfig, HeadConfig, choose
from keras_bert.model.encoder import Encoder
from keras_bert.model.layers import Tensor
from keras_bert.tasks.choice import Choice
from keras_bert.tasks.classify import Classify
from keras_bert.tasks.embed import Embed
from keras_bert.tasks.fill_mask import FillMask
from keras_bert.tasks.generate import Generate
from keras_bert.tasks.head import Head
from keras_bert.tasks.multilabel import Multilabel
from keras_bert.tasks.regress import Regress
from keras_bert.tasks.similarity import Similarity
from keras_bert.tasks.span import Span
from keras_bert.tasks.tag import Tag

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

    @property
    def encoders(self) -> tuple[Encoder, ...]:
        """All encoders of the network; fine-tuning starts from `encoder`."""
        return (self.encoder,)

    def call(self, features: Any, training: bool = False, shift: Tensor = None) -> Tensor:
        return self.head(self.encoded(features, self.head.taps, training, shift=shift), training=training)

    def encoded(self, features: Any, taps: Sequence[str], training: bool = False, **options: Any) -> dict[str, Any]:
        """Taps of the encoder; the rows of examples `[B, S, T]` are `[B * S, T]` there.

        Args:
            options: the encoder's `memory`, `seen` and `shift`.
        """
        if isinstance(features, dict):
            features = {name: as_rows(value) for name, value in features.items()}
        learns = bool(self.encoder.trainable_variables)  # features of a frozen encoder have no dropout
        read = self.encoder(features, taps=taps, training=training and learns, **options)
        return read | self.head.extra_inputs(features, self.encoder)

    def answer(self, features: Any) -> dict[str, Tensor]:
        """What a user gets for these features: the head's answer, without dropout."""
        known = {name: features[name] for name in FEATURES if name in features}
        return self.head.answer(self(known, training=False), features)


def as_rows(features: Any) -> Any:
    """`[B, S, T]` as `[B * S, T]`; `[B, T]` as it is."""
    shape = ops.shape(features)
    return features if len(shape) < 3 else ops.reshape(features, (-1, shape[-1]))
