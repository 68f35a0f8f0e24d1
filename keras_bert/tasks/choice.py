"""One of the choices of a question."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from keras import ops

from keras_bert.model.layers import Tensor
from keras_bert.tasks import divergences, spans
from keras_bert.tasks.head import Row, Sentence, plain_values


class Choice(Sentence):
    """One of the choices of a question: a logit for each pair of both, softmax over those of a question.

    Each row is an example's text with one choice (Radford et al. 2018; SWAG in Devlin et al. 2019), so logits are
    `[B * C, 1]`. The numbers of choices may differ; rows that only fill up have score 0. Labels are the number of the
    right choice, int `[B]`.
    """

    best_metric = "accuracy"
    signatures: ClassVar[Mapping[str, Any]] = {
        "token_ids": "logits_of_ids",
        "tokenize": "tokenize_choices",
        "embedding": None,
    }

    def targets(self, labels: Tensor, features: dict[str, Tensor]) -> Tensor:
        """1 for the right choice, 0 for another, -1 for what is none, int32 `[B, C]`."""
        real = ops.any(features["padding_mask"], axis=2)
        number = ops.expand_dims(ops.arange(ops.shape(real)[1], dtype="int32"), 0)
        right = ops.equal(number, ops.expand_dims(ops.cast(labels, "int32"), 1))
        return ops.cast(ops.logical_and(right, real), "int32") - ops.cast(ops.logical_not(real), "int32")

    def loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        logits = ops.reshape(ops.cast(logits, "float32"), ops.shape(labels))
        total = ops.logsumexp(ops.where(labels >= 0, logits, spans.LOW), axis=1)
        return total - ops.sum(ops.where(labels > 0, logits, 0.0), axis=1)

    def divergence(self, teacher: Tensor, logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
        teacher, logits = (ops.reshape(x, ops.shape(targets)) for x in (teacher, logits))
        return divergences.categorical(teacher, logits, temperature, targets >= 0)

    def answer(self, logits: Tensor, features: Any = None) -> dict[str, Tensor]:
        real = ops.any(features["padding_mask"], axis=2)
        logits = ops.where(real, ops.reshape(ops.cast(logits, "float32"), ops.shape(real)), spans.LOW)
        scores = ops.where(real, ops.softmax(logits, axis=1), 0.0)
        choice = ops.where(ops.any(real, axis=1), ops.cast(ops.argmax(logits, axis=1), "int32"), -1)
        return {"choice": choice, "score": ops.max(scores, axis=1), "scores": scores}

    def plain(self, row: Row) -> dict[str, Any]:
        """`choice`, its number from 0, `answer`, its text, `score`, and the `scores` of all, in their order."""
        return plain_values(("choice", "answer", "score", "scores"), row)

    def metrics_of(self, references: Any, answers: dict[str, np.ndarray]) -> dict[str, float]:
        return {"accuracy": float(np.mean(references == answers["choice"])) if len(references) else 0.0}
