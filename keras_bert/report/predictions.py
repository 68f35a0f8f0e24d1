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
from keras_bert.data.batches import Examples
from keras_bert.data.source import source_of, text_columns
from keras_bert.data.tables import read
from keras_bert.errors import CheckpointError, DataError
from keras_bert.files import write_atomic
from keras_bert.tasks.scores import Scores, scores_of

PREDICTIONS_FILE = "eval_predictions.csv"


@dataclass(frozen=True)
class Predictions:
    """Rows, in the order of their file, and their scores.

    Attributes:
        head: task and labels; the task has `scores`.
        rows: `where` it was read, `id`, `label` as it is written, and the texts of each row.
        truth: the labels as numbers, see `batches.Examples`.
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

    @property
    def kind(self) -> Scores:
        """What the scores mean."""
        return scores_of(self.head)

    def decided(self, threshold: float | np.ndarray | None = None) -> np.ndarray:
        """What is answered at a threshold, or one for each row: label ids int `[n]`, bools `[n, labels]`, or numbers.

        None takes the threshold of the head. Equal to `head.Head.answer`.
        """
        cut = np.broadcast_to(np.asarray(self.kind.threshold if threshold is None else threshold), len(self))
        return self.kind.decided(self.scores, cut)

    def metrics(self, threshold: float | np.ndarray | None = None) -> dict[str, float]:
        """The metrics of the task at a threshold."""
        return self.kind.metrics(self.truth, self.decided(threshold))

    @property
    def hits(self) -> tuple[np.ndarray, np.ndarray]:
        """0 or 1 and its score, of all that a threshold decides: the last of two labels, or each of several."""
        return self.kind.hits(self.truth, self.scores)

    @property
    def wrong(self) -> np.ndarray:
        """How wrong each row's answer is, float `[n]`: 1 - the score of what is right, or the distance."""
        return self.kind.wrong(self.truth, self.scores)

    def said(self, decided: np.ndarray) -> list[str]:
        """`decided` as it is written in files."""
        return self.kind.said(decided)


def of_answers(
    examples: Examples, data: DataConfig, head: HeadConfig, answers: Mapping[str, np.ndarray]
) -> Predictions:
    """Labelled rows, and what `head.Head.answer` gives for them."""
    rows = examples.rows
    ids = rows.columns.get(data.id_column, [""] * len(rows))
    described = tuple(
        (
            rows.where(i),
            plain(ids[i]),
            rows[data.label_column][i],
            *(plain(rows[name][i]) for name in text_columns(data)),
        )
        for i in range(len(rows))
    )
    return Predictions(head, described, examples.labels, scores_of(head).of_answers(answers))


def plain(text: str) -> str:
    """The text without what UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def join(parts: Sequence[Predictions]) -> Predictions:
    """Predictions of several models with the same labels, one after the other."""
    rows = tuple(row for part in parts for row in part.rows)
    truth, scores = (np.concatenate([getattr(part, name) for part in parts]) for name in ("truth", "scores"))
    return Predictions(parts[0].head, rows, truth, scores)


def write(folder: Path, found: Predictions) -> None:
    """Write `eval_predictions.csv`."""
    texts = ("text", "text_pair")[: len(found.rows[0]) - 3] if found.rows else ()
    header = ["row", "id", "label", *texts, *found.kind.columns]
    scores = found.scores.reshape(len(found), -1).tolist()
    lines = ([*row, *values] for row, values in zip(found.rows, scores, strict=True))
    write_atomic(folder / PREDICTIONS_FILE, as_csv(header, lines, csv.QUOTE_NONNUMERIC))


def load(folder: Path, head: HeadConfig) -> Predictions | None:
    """What `write` wrote; None where there is nothing.

    Raises:
        CheckpointError: it is broken, or of other labels.
    """
    path = folder / PREDICTIONS_FILE
    kind = scores_of(head)
    if kind is None or not path.exists():
        return None
    names = kind.columns
    try:
        table = read(path, ("row", "id", "label", "text", *names))
        truth = source_of(head).examples(table, DataConfig(), head).labels
        scores = np.array([table[name] for name in names], np.float32).T
    except (DataError, ValueError) as error:
        raise CheckpointError(f"{error}; it is written anew by --overwrite") from error
    columns = [c for c in ("row", "id", "label", "text", "text_pair") if c in table.columns]
    rows = tuple(zip(*(table[name] for name in columns), strict=True))
    return Predictions(head, rows, truth, scores if head.labels else scores[:, 0])


def as_csv(header: Sequence[str], lines: Any, quoting: Any = csv.QUOTE_MINIMAL) -> str:
    """The content of a csv file."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n", quoting=quoting)
    writer.writerow(header)
    writer.writerows(lines)
    return out.getvalue()
