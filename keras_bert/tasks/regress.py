"""One number."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
from keras import ops

from keras_bert.config import choose
from keras_bert.model.layers import Tensor
from keras_bert.tasks import metrics
from keras_bert.tasks.head import Row, Sentence, plain_values


def same(values: Tensor) -> Tensor:
    """Numbers are averaged as they are."""
    return values


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"": same, "sigmoid": ops.sigmoid}
"""From logits to scores."""


class Regress(Sentence):
    """One number: `[B, 1]` logits through `config.activation`; labels float `[B]`; squared error."""

    best_metric = "pearson"
    label_dtype = "float32"
    merging = (same, same)
    signatures: ClassVar[Mapping[str, Any]] = {"regress": "regress", "rerank": "rerank"}

    def check(self) -> None:
        super().check()
        choose(ACTIVATIONS, self.config.activation, "activation")

    def scores(self, logits: Tensor) -> Tensor:
        """float32 `[B]`."""
        scores = choose(ACTIVATIONS, self.config.activation, "activation")(ops.cast(logits, "float32"))
        return scores[:, 0]

    def loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        return ops.square(self.scores(logits) - ops.cast(labels, "float32"))

    def divergence(self, teacher: Tensor, logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
        return self.loss(self.scores(teacher), logits)

    def answer(self, logits: Tensor, features: Any = None) -> dict[str, Tensor]:
        return {"score": self.scores(logits)}

    def plain(self, row: Row) -> dict[str, Any]:
        """`score`."""
        return plain_values(("score",), row)

    def metrics_of(self, references: Any, answers: dict[str, np.ndarray]) -> dict[str, float]:
        return metrics.regression(references, answers["score"])
