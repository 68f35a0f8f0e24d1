"""Scores of whole rows, in NumPy: what is answered at a threshold, how good that is, and how files write it.

A task whose answer is such a score names a class here in its dataclass; folds, ensembles and reports ask it.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from keras_bert.config import HeadConfig, resolve
from keras_bert.tasks import metrics


class Scores:
    """The form, and what a number for each row needs.

    Attributes:
        exclusive: whether one label is right; then there is a confusion matrix.
        numeric: whether the answer is the score itself.
    """

    exclusive: ClassVar[bool] = False
    numeric: ClassVar[bool] = False

    def __init__(self, config: HeadConfig) -> None:
        self.config = config

    @property
    def columns(self) -> list[str]:
        """Names of the columns of scores."""
        return [f"score_{label}" for label in self.config.labels] or ["score"]

    @property
    def tunable(self) -> bool:
        """Whether a threshold decides what is answered."""
        return False

    @property
    def threshold(self) -> float:
        """The threshold of the config; 0.5 if it has none."""
        return float(getattr(self.config, "threshold", 0.5))

    def of_answers(self, answers: Mapping[str, np.ndarray]) -> np.ndarray:
        """What `Head.answer` gives, as scores float32 `[n, labels]` in the order of the labels, or `[n]`."""
        if "class_ids" not in answers:
            return np.asarray(answers["score"], np.float32)
        scores = np.zeros(answers["scores"].shape, np.float32)
        np.put_along_axis(scores, answers["class_ids"].astype(np.int64), answers["scores"], axis=1)
        return scores

    def decided(self, scores: np.ndarray, threshold: np.ndarray) -> np.ndarray:
        """What is answered at a threshold of each row, `[n]`; equal to `Head.answer`."""
        raise NotImplementedError(type(self).__name__)

    def metrics(self, truth: np.ndarray, decided: np.ndarray) -> dict[str, float]:
        """The metrics of the task, of labels and of what `decided` gives."""
        raise NotImplementedError(type(self).__name__)

    def hits(self, truth: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """0 or 1 and its score, of all that a threshold decides."""
        return truth, scores

    def wrong(self, truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """How wrong the answer of each row is, float `[n]`."""
        raise NotImplementedError(type(self).__name__)

    def said(self, decided: np.ndarray) -> list[str]:
        """What `decided` gives, as files write it."""
        raise NotImplementedError(type(self).__name__)


class ClassScores(Scores):
    """One of n labels: scores `[n, labels]`, truth int `[n]`; a threshold decides between two."""

    exclusive = True

    @property
    def tunable(self) -> bool:
        return len(self.config.labels) == 2

    def decided(self, scores: np.ndarray, threshold: np.ndarray) -> np.ndarray:
        if self.tunable:
            scores = scores / np.stack([1.0 - threshold, threshold], 1).astype(np.float32)
        return np.argmax(scores, axis=1)

    def metrics(self, truth: np.ndarray, decided: np.ndarray) -> dict[str, float]:
        return metrics.classification(truth, decided, len(self.config.labels))

    def hits(self, truth: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The last of two labels."""
        return truth == 1, scores[:, 1]

    def wrong(self, truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """1 - the score of the right label."""
        return 1 - scores[np.arange(len(truth)), truth]

    def said(self, decided: np.ndarray) -> list[str]:
        return [self.config.labels[i] for i in decided]


class LabelScores(Scores):
    """Any number of n labels: scores and truth `[n, labels]`; a threshold decides each."""

    @property
    def tunable(self) -> bool:
        return True

    def decided(self, scores: np.ndarray, threshold: np.ndarray) -> np.ndarray:
        return scores >= threshold.astype(np.float32)[:, None]

    def metrics(self, truth: np.ndarray, decided: np.ndarray) -> dict[str, float]:
        return metrics.multilabel(truth, decided)

    def wrong(self, truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """The largest distance of a score to 0 or 1."""
        return np.abs(scores.astype(np.float64) - truth).max(1)

    def said(self, decided: np.ndarray) -> list[str]:
        labels = self.config.labels
        return [",".join(label for label, on in zip(labels, row, strict=True) if on) for row in decided]


class NumberScores(Scores):
    """One number: scores and truth `[n]`."""

    numeric = True

    def decided(self, scores: np.ndarray, threshold: np.ndarray) -> np.ndarray:
        return scores

    def metrics(self, truth: np.ndarray, decided: np.ndarray) -> dict[str, float]:
        return metrics.regression(truth, decided)

    def wrong(self, truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """The distance."""
        return np.abs(scores.astype(np.float64) - truth)

    def said(self, decided: np.ndarray) -> list[str]:
        return [f"{value:g}" for value in decided]


def scores_of(config: HeadConfig) -> Any:
    """The `Scores` of a task; None if its answer is no score of a whole row."""
    return resolve(config.scores)(config) if config.scores else None
