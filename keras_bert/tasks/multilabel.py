"""Any number of n labels."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from keras import ops

from keras_bert.errors import ConfigError
from keras_bert.model.layers import Tensor
from keras_bert.tasks import divergences, metrics
from keras_bert.tasks.head import Row, Sentence, plain_value


def logit(scores: Tensor) -> Tensor:
    """The inverse of the sigmoid."""
    return ops.log(scores) - ops.log1p(-scores)


class Multilabel(Sentence):
    """Any number of n labels: a sigmoid each over `[B, n]`; labels 0 or 1, float `[B, n]`."""

    best_metric = "f1"
    label_dtype = "float32"
    merging = (ops.sigmoid, logit)
    signatures: ClassVar[Mapping[str, Any]] = {"probabilities": "scores", "classify": "classify"}

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

    def divergence(self, teacher: Tensor, logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
        return ops.sum(divergences.bernoulli(teacher, logits, temperature), axis=1)

    def answer(self, logits: Tensor, features: Any = None) -> dict[str, Tensor]:
        scores = ops.sigmoid(ops.cast(logits, "float32"))
        ids = ops.broadcast_to(ops.expand_dims(ops.arange(self.width, dtype="int32"), 0), ops.shape(scores))
        return {
            "class_ids": ids,
            "scores": scores,
            "active": ops.greater_equal(scores, self.config.threshold),
        }

    def plain(self, row: Row) -> dict[str, Any]:
        """`labels`, those that are active, and `scores`."""
        names, scores = plain_value(row["labels"]), plain_value(row["scores"])
        active = [name for name, on in zip(names, row["active"], strict=True) if on]
        return {"labels": active, "scores": dict(zip(names, scores, strict=True))}

    def metrics_of(self, references: Any, answers: dict[str, np.ndarray]) -> dict[str, float]:
        return metrics.multilabel(references, answers["active"])
