"""How similar two texts are, by the cosine of their vectors: what is to be learnt of pairs, and how well it was.

Targets of a pair are float32 `[B, 3]`: a number that equal first texts share, one that equal second texts share, and
the score, 1 for what means the same; 0 numbers fill up a batch. Vectors of pairs are `[B, 2, E]`.

A bi-encoder reads the two texts separately (Reimers & Gurevych 2019), so that vectors can be stored and searched; for
few pairs a cross-encoder (`regress` on pairs) is more exact.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from keras_bert.model.readout import LOW, normalized

Tensor = Any


def cosine(vectors: Tensor) -> Tensor:
    """The cosine of each pair, `[B]` of `[B, 2, E]`; 0 with a vector of zeros."""
    vectors = normalized(vectors)
    return ops.sum(vectors[:, 0] * vectors[:, 1], axis=1)


# === Losses of each pair, [B]: (targets [B, 3], vectors float32 [B, 2, E], scale) ===


def ranking(targets: Tensor, vectors: Tensor, scale: float) -> Tensor:
    """Multiple negatives ranking (Henderson et al. 2017, https://arxiv.org/abs/1705.00652).

    Softmax over the second texts of the batch, by `scale` times the cosine with the first one; the right one is the
    pair's own. Second texts that are equal to it, or stand with an equal first text, are not held against it. Pairs
    with a score below a half are negatives of others only.
    """
    vectors = normalized(vectors)
    scores = scale * ops.matmul(vectors[:, 0], ops.transpose(vectors[:, 1]))
    own = ops.cast(ops.eye(ops.shape(scores)[0]), "bool")
    against = ops.logical_or(own, ops.logical_not(_alike(targets)))
    against = ops.logical_and(against, targets[None, :, 0] > 0)
    total = ops.logsumexp(ops.where(against, scores, LOW), axis=1)
    return (total - ops.sum(ops.where(own, scores, 0.0), axis=1)) * positive(targets)


def _alike(targets: Tensor) -> Tensor:
    """Have pair i and pair j a text in common? `[B, B]`."""
    first, second = (targets[:, None, i] == targets[None, :, i] for i in (0, 1))
    return ops.logical_or(first, second)


def scores(targets: Tensor, vectors: Tensor, scale: float) -> Tensor:
    """The squared difference of cosine and score (Reimers & Gurevych 2019)."""
    return ops.square(cosine(vectors) - targets[:, 2])


def positive(targets: Tensor) -> Tensor:
    """1 for pairs that mean the same, else 0; float32 `[B]`."""
    return ops.cast(ops.logical_and(targets[:, 2] >= 0.5, targets[:, 0] > 0), "float32")


@dataclass(frozen=True)
class Objective:
    """What is learnt of pairs.

    Attributes:
        loss: targets `[B, 3]`, vectors `[B, 2, E]` and a scale -> `[B]`.
        ranks: whether pairs are ranked: the loss compares the pairs of a batch and counts those that mean the same, no
            scores are needed, and the best epoch is the one that finds second texts best.
    """

    loss: Callable[[Tensor, Tensor, float], Tensor]
    ranks: bool = False


OBJECTIVES: dict[str, Objective] = {"ranking": Objective(ranking, ranks=True), "scores": Objective(scores)}


# === Metrics ===


def retrieval(targets: np.ndarray, vectors: np.ndarray, chunk: int = 1024) -> dict[str, float]:
    """`accuracy` and `mrr` (mean reciprocal rank) of finding the second text of each positive pair among all of them.

    Args:
        vectors: `[n, 2, E]`, of any length.
    """
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=2, keepdims=True), 1e-12)
    asked = np.flatnonzero(targets[:, 2] >= 0.5)
    ranks = [np.zeros(0)]
    for start in range(0, len(asked), chunk):
        part = asked[start : start + chunk]
        found = vectors[part, 0] @ vectors[:, 1].T
        own = np.sum(vectors[part, 0] * vectors[part, 1], axis=1, keepdims=True)
        same = (targets[part, None, 0] == targets[:, 0]) | (targets[part, None, 1] == targets[:, 1])
        ranks.append(1 + np.sum((found > own + 1e-6) & ~same, axis=1))
    ranked = np.concatenate(ranks)
    if not len(ranked):
        return {"accuracy": 0.0, "mrr": 0.0}
    return {"accuracy": float(np.mean(ranked == 1)), "mrr": float(np.mean(1 / ranked))}
