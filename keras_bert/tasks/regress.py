"""One number."""

from typing import Any

import numpy as np
from keras import ops

from keras_bert.errors import ConfigError
from keras_bert.model.layers import Tensor
from keras_bert.tasks import metrics
from keras_bert.tasks.head import Sentence


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

    def divergence(self, teacher: Tensor, logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
        return self.loss(ops.cast(teacher, "float32")[:, 0], logits)

    def answer(self, logits: Tensor, features: Any = None) -> dict[str, Tensor]:
        return {"score": ops.cast(logits, "float32")[:, 0]}

    def metrics_of(self, references: Any, answers: dict[str, np.ndarray]) -> dict[str, float]:
        return metrics.regression(references, answers["score"])
