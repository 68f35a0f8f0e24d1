"""Labelled rows and what a model says of them: kept beside a run, pooled over folds, cut at a threshold, reported.

`eval_predictions.csv` of a run has the columns `row` (where it was read), `id`, `label`, `text` (and `text_pair`), and
a column of scores for each label (`score_LABEL`), or `score` for a number.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keras_bert.config import DataConfig, HeadConfig
from keras_bert.data.labels import encode_labels
from keras_bert.data.tables import Table, read
from keras_bert.errors import CheckpointError, DataError
from keras_bert.files import write_atomic
from keras_bert.tasks import metrics

PREDICTIONS_FILE = "eval_predictions.csv"
SCORED = ("classify", "multilabel", "regress")
"""The tasks whose answers are scores of a whole row."""


@dataclass(frozen=True)
class Predictions:
    """Rows, in the order of their file, and their scores.

    Attributes:
        head: task and labels.
        rows: `where` it was read, `id`, `label` as it is written, and the texts of each row.
        truth: the labels as numbers, see `labels.encode_labels`.
        scores: float32 `[n, labels]` in the order of the labels, or `[n]` of numbers.
    """

    head: HeadConfig
    rows: tuple[tuple[str, ...], ...]
    truth: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: Sequence[int] | np.ndarray) -> "Predictions":
        """The rows of `indices`, in that order."""
        return Predictions(self.head, tuple(self.rows[i] for i in indices), self.truth[indices], self.scores[indices])

    def decided(self, threshold: float | np.ndarray | None = None) -> np.ndarray:
        """What is answered at a threshold, or one for each row: label ids int `[n]`, bools `[n, labels]`, or numbers.

        None takes the threshold of the head. Equal to `head.Head.answer`.
        """
        cut = np.broadcast_to(np.asarray(self.head.threshold if threshold is None else threshold), len(self))
        if self.head.task == "multilabel":
            return self.scores >= cut.astype(np.float32)[:, None]
        if self.head.task == "regress":
            return self.scores
        if len(self.head.labels) == 2:
            return np.argmax(self.scores / np.stack([1.0 - cut, cut], 1).astype(np.float32), axis=1)
        return np.argmax(self.scores, axis=1)

    def metrics(self, threshold: float | np.ndarray | None = None) -> dict[str, float]:
        """The metrics of the task at a threshold."""
        found = self.decided(threshold)
        if self.head.task == "classify":
            return metrics.classification(self.truth, found, len(self.head.labels))
        return (metrics.multilabel if self.head.task == "multilabel" else metrics.regression)(self.truth, found)

    @property
    def hits(self) -> tuple[np.ndarray, np.ndarray]:
        """0 or 1 and its score, of all that a threshold decides: the last of two labels, or each of several."""
        if self.head.task == "multilabel":
            return self.truth, self.scores
        return self.truth == 1, self.scores[:, 1]

    @property
    def wrong(self) -> np.ndarray:
        """How wrong each row's answer is, float `[n]`: 1 - the score of what is right, or the distance."""
        if self.head.task == "classify":
            return 1 - self.scores[np.arange(len(self)), self.truth]
        distance = np.abs(self.scores.astype(np.float64) - self.truth)
        return distance if self.head.task == "regress" else distance.max(1)

    def said(self, decided: np.ndarray) -> list[str]:
        """`decided` as it is written in files."""
        labels = self.head.labels
        if self.head.task == "classify":
            return [labels[i] for i in decided]
        if self.head.task == "multilabel":
            return [",".join(label for label, on in zip(labels, row, strict=True) if on) for row in decided]
        return [f"{value:g}" for value in decided]


def tunable(head: HeadConfig) -> bool:
    """Does a threshold decide what is answered?"""
    return head.task == "multilabel" or (head.task == "classify" and len(head.labels) == 2)


def of_answers(rows: Table, data: DataConfig, head: HeadConfig, answers: Mapping[str, np.ndarray]) -> Predictions:
    """Labelled rows, and what `head.Head.answer` gives for them."""
    columns = [name for name in (data.text_column, data.text_pair_column) if name]
    ids = rows.columns.get(data.id_column, [""] * len(rows))
    described = tuple(
        (rows.where(i), plain(ids[i]), rows[data.label_column][i], *(plain(rows[name][i]) for name in columns))
        for i in range(len(rows))
    )
    truth = encode_labels(rows, data.label_column, head.task, head.labels)
    return Predictions(head, described, truth, by_label(answers))


def plain(text: str) -> str:
    """The text without what UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def by_label(answers: Mapping[str, np.ndarray]) -> np.ndarray:
    """The scores of answers in the order of the labels, float32 `[n, labels]`; of numbers `[n]`."""
    if "class_ids" not in answers:
        return np.asarray(answers["score"], np.float32)
    scores = np.zeros(answers["scores"].shape, np.float32)
    np.put_along_axis(scores, answers["class_ids"].astype(np.int64), answers["scores"], axis=1)
    return scores


def join(parts: Sequence[Predictions]) -> Predictions:
    """Predictions of several models with the same labels, one after the other."""
    rows = tuple(row for part in parts for row in part.rows)
    truth, scores = (np.concatenate([getattr(part, name) for part in parts]) for name in ("truth", "scores"))
    return Predictions(parts[0].head, rows, truth, scores)


def write(folder: Path, found: Predictions) -> None:
    """Write `eval_predictions.csv`."""
    texts = ("text", "text_pair")[: len(found.rows[0]) - 3] if found.rows else ()
    header = ["row", "id", "label", *texts, *score_columns(found.head)]
    scores = found.scores.reshape(len(found), -1).tolist()
    lines = ([*row, *values] for row, values in zip(found.rows, scores, strict=True))
    write_atomic(folder / PREDICTIONS_FILE, as_csv(header, lines, csv.QUOTE_NONNUMERIC))


def load(folder: Path, head: HeadConfig) -> Predictions | None:
    """What `write` wrote; None where there is nothing.

    Raises:
        CheckpointError: it is broken, or of other labels.
    """
    path = folder / PREDICTIONS_FILE
    if head.task not in SCORED or not path.exists():
        return None
    names = score_columns(head)
    try:
        table = read(path, ("row", "id", "label", "text", *names))
        truth = encode_labels(table, "label", head.task, head.labels)
        scores = np.array([table[name] for name in names], np.float32).T
    except (DataError, ValueError) as error:
        raise CheckpointError(f"{error}; it is written anew by --overwrite") from error
    columns = ["row", "id", "label", "text", *["text_pair"] * ("text_pair" in table.columns)]
    rows = tuple(zip(*(table[name] for name in columns), strict=True))
    return Predictions(head, rows, truth, scores if head.labels else scores[:, 0])


def score_columns(head: HeadConfig) -> list[str]:
    """Names of the columns of scores."""
    return [f"score_{label}" for label in head.labels] or ["score"]


def as_csv(header: Sequence[str], lines: Any, quoting: Any = csv.QUOTE_MINIMAL) -> str:
    """The content of a csv file."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n", quoting=quoting)
    writer.writerow(header)
    writer.writerows(lines)
    return out.getvalue()
