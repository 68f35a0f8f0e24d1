"""How similar two texts are."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from keras import ops

from keras_bert.config import HeadConfig, choose
from keras_bert.errors import ConfigError
from keras_bert.model.layers import Tensor
from keras_bert.tasks import cosines, divergences, metrics
from keras_bert.tasks.embed import Embed
from keras_bert.tasks.head import Row, plain_values


class Similarity(Embed):
    """How similar two texts are: the cosine of their vectors, each text a row of its own; see `cosines`."""

    label_dtype = "float32"
    signatures: ClassVar[Mapping[str, Any]] = {**Embed.signatures, "tokenize": "tokenize_alone"}

    @property
    def objective(self) -> cosines.Objective:
        """What is learnt; a function alone is the loss of an objective that is judged by scores."""
        chosen = choose(cosines.OBJECTIVES, self.config.objective or "scores", "objective")
        return chosen if isinstance(chosen, cosines.Objective) else cosines.Objective(chosen)

    @property
    def best_metric(self) -> str:  # type: ignore[override]
        return "mrr" if self.objective.ranks else "spearman"

    @property
    def whole_batch(self) -> bool:
        return self.objective.ranks

    def config_for(self, labelled: bool) -> HeadConfig:
        config = self.config
        if not config.objective:
            config = dataclasses.replace(config, objective="scores" if labelled else "ranking")
        elif not labelled and not self.objective.ranks:
            raise ConfigError(f"objective={config.objective} learns from scores, and there is no column of them")
        return config

    def counts(self, targets: Tensor) -> Tensor:
        return cosines.positive(targets) if self.objective.ranks else super().counts(targets)

    def loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        return self.objective.loss(labels, self.of_pairs(logits), self.config.similarity_scale)

    def divergence(self, teacher: Tensor, logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
        return ops.mean(divergences.of_vectors(self.of_pairs(teacher), self.of_pairs(logits)), axis=1)

    def of_pairs(self, logits: Tensor) -> Tensor:
        """Vectors of rows as those of pairs, float32 `[B, 2, E]`."""
        return ops.reshape(ops.cast(logits, "float32"), (-1, 2, logits.shape[-1]))

    def answer(self, logits: Tensor, features: Any = None) -> dict[str, Tensor]:
        vectors = self.of_pairs(logits)
        return {"similarity": cosines.cosine(vectors), "embeddings": vectors}

    def plain(self, row: Row) -> dict[str, Any]:
        """`similarity`, the cosine."""
        return plain_values(("similarity",), row)

    def metrics_of(self, references: Any, answers: dict[str, np.ndarray]) -> dict[str, float]:
        one_score = len(set(references[:, 2].tolist())) < 2  # positives alone correlate with nothing
        learnt = bool(self.config.objective)  # else all that can be judged is
        values = dict[str, float]()
        if (learnt and not self.objective.ranks) or not one_score:
            values |= metrics.regression(references[:, 2], answers["similarity"])
        if (learnt and self.objective.ranks) or one_score:
            values |= cosines.retrieval(references, answers["embeddings"])
        return values
