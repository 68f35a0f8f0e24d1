"""How alike two texts are."""

from typing import Any

import numpy as np
from keras import ops

from keras_bert.model.layers import Tensor
from keras_bert.tasks import cosines, divergences, metrics
from keras_bert.tasks.embed import Embed


class Similarity(Embed):
    """How alike two texts are: the cosine of their vectors, each text a row of its own; see `similarity`."""

    label_dtype = "float32"
    reads = "each"

    @property
    def best_metric(self) -> str:  # type: ignore[override]
        return "mrr" if self.config.objective == "ranking" else "spearman"

    def counts(self, targets: Tensor) -> Tensor:
        return cosines.positive(targets) if self.config.objective == "ranking" else super().counts(targets)

    def loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        config, vectors = self.config, self.of_pairs(logits)
        return cosines.OBJECTIVES[config.objective or "scores"](labels, vectors, config.similarity_scale)

    def divergence(self, teacher: Tensor, logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
        return ops.mean(divergences.of_vectors(self.of_pairs(teacher), self.of_pairs(logits)), axis=1)

    def of_pairs(self, logits: Tensor) -> Tensor:
        """Vectors of rows as those of pairs, float32 `[B, 2, E]`."""
        return ops.reshape(ops.cast(logits, "float32"), (-1, 2, logits.shape[-1]))

    def answer(self, logits: Tensor, features: Any = None) -> dict[str, Tensor]:
        vectors = self.of_pairs(logits)
        return {"similarity": cosines.cosine(vectors), "embeddings": vectors}

    def metrics_of(self, references: Any, answers: dict[str, np.ndarray]) -> dict[str, float]:
        alike = len(set(references[:, 2].tolist())) < 2  # positives alone correlate with nothing
        objective, found = self.config.objective, dict[str, float]()
        if objective == "scores" or not alike:
            found |= metrics.regression(references[:, 2], answers["similarity"])
        if objective == "ranking" or alike:
            found |= cosines.retrieval(references, answers["embeddings"])
        return found
