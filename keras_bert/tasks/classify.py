"""One of n labels."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from keras import ops

from keras_bert.config import WeightedConfig
from keras_bert.errors import ConfigError
from keras_bert.model.layers import Tensor
from keras_bert.tasks import divergences, metrics
from keras_bert.tasks.head import Row, Sentence, plain_value, plain_values


class Classify(Sentence):
    """One of n labels: softmax over `[B, n]`; label ids int `[B]` (Devlin et al. 2019, cases 1 and 3)."""

    best_metric = "f1"
    merging = (ops.softmax, ops.log)  # probabilities are averaged; a softmax of their logarithms gives them again
    signatures: ClassVar[Mapping[str, Any]] = {"probabilities": "probabilities", "classify": "classify"}

    def check(self) -> None:
        if len(self.config.labels) < 2:
            raise ConfigError(f"classify needs at least two labels, got {list(self.config.labels)}")

    def counts(self, targets: Tensor) -> Tensor:
        return ops.take(self._weights(), targets)

    def loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        logits, smoothing = ops.cast(logits, "float32"), self.config.label_smoothing
        target = ops.one_hot(labels, self.width, dtype="float32") * (1.0 - smoothing) + smoothing / self.width
        each = ops.logsumexp(logits, axis=1, keepdims=True) - logits
        return ops.sum(target * self._weights() * each, axis=1)

    def divergence(self, teacher: Tensor, logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
        return divergences.categorical(teacher, logits, temperature)

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

    def plain(self, row: Row) -> dict[str, Any]:
        """`label`, `score`, and `scores` from the best to the worst."""
        scores = zip(plain_value(row["labels"]), plain_value(row["scores"]), strict=True)
        return plain_values(("label", "score"), row) | {"scores": dict(scores)}

    def metrics_of(self, references: Any, answers: dict[str, np.ndarray]) -> dict[str, float]:
        return metrics.classification(references, answers["class_ids"][:, 0], self.width)


def cuts(config: WeightedConfig) -> np.ndarray:
    """What the scores of labels are divided by before the best is chosen, float32 `[n]`: of two labels the last is the
    answer if its score is above the threshold."""
    two = (1.0 - config.threshold, config.threshold)
    return np.array(two if len(config.labels) == 2 else (1.0,) * len(config.labels), np.float32)
