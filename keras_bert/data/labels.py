"""Labels as files write them, as numbers, and how much each counts.

Labels are compared as they are written: "1" and "1.0" are not the same, and a column that mixes them is refused.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_bert.config import WEIGHTED, FinetuneConfig, HeadConfig
from keras_bert.data.tables import Table
from keras_bert.errors import ConfigError, DataError

# === Labels ===


def find_labels(rows: Table, column: str) -> tuple[str, ...]:
    """The label values of a column, whole numbers in their order, others in alphabetical order.

    Raises:
        DataError: a label is missing, there is only one, or one number is written in two ways.
    """
    first: dict[str, int] = {}
    for i, value in enumerate(rows[column]):
        if not value.strip():
            raise DataError(f"{rows.where(i)}: no {column}; every training row needs a label")
        first.setdefault(value, i)
    if len(first) == 1:
        raise DataError(f"{rows.files[0]}: all {len(rows)} rows have the {column} {rows[column][0]!r}; need two")
    numbers: dict[float, str] = {}
    for value, i in first.items():
        number = number_of(value)
        if number is None:
            continue
        other = numbers.setdefault(number, value)
        if other != value:
            raise DataError(f"{rows.where(i)}: {column} {value!r} is {other!r} written another way; use one of them")
    if len(numbers) == len(first) and len(first) > 50 and len(first) > len(rows) // 2:
        raise DataError(f"{rows.files[0]}: {column} has {len(first)} different numbers; use --task=regress for these")
    if len(numbers) == len(first):
        return tuple(sorted(first, key=float))
    return tuple(sorted(first))


def find_multilabels(rows: Table, column: str) -> tuple[str, ...]:
    """The labels of a column that holds comma lists, in alphabetical order."""
    labels = sorted({label for value in rows[column] for label in split_labels(value)})
    if not labels:
        raise DataError(f"{rows.files[0]}: no row has a {column}; expected comma lists such as 'fire,flood'")
    return tuple(labels)


def split_labels(value: str) -> list[str]:
    """`"fire, flood"` -> `["fire", "flood"]`; an empty string has no labels."""
    return [part.strip() for part in value.split(",") if part.strip()]


def encode_labels(rows: Table, column: str, task: str, labels: Sequence[str]) -> np.ndarray:
    """Labels as numbers: int32 `[rows]` (classify), float32 `[rows, n]` (multilabel), float32 `[rows]` (regress).

    Those of tag and span need the text too: `entities.encode_entities`, `questions.encode_answers`.

    Raises:
        DataError: a value that is missing, is not among `labels`, or is not a number.
    """
    ids = {label: i for i, label in enumerate(labels)}
    encoded: list[Any] = []
    for i, value in enumerate(rows[column]):
        if task == "regress":
            number = number_of(value)
            if number is None or abs(number) > float(np.finfo(np.float32).max):
                raise DataError(f"{rows.where(i)}: {column} {value!r} is not a number")
            encoded.append(number)
            continue
        names = split_labels(value) if task == "multilabel" else [value]
        for name in names:
            if name not in ids:
                raise DataError(
                    f"{rows.where(i)}: {column} {name!r} is not among the labels {some_of(labels)} of training"
                )
        if task == "multilabel":
            chosen = np.zeros(len(labels), np.float32)
            chosen[[ids[name] for name in names]] = 1
            encoded.append(chosen)
        else:
            encoded.append(ids[value])
    shape = (len(encoded), len(labels)) if task == "multilabel" else (len(encoded),)
    return np.array(encoded, np.float32 if task in ("multilabel", "regress") else np.int32).reshape(shape)


def learnt_head(head: HeadConfig, finetune: FinetuneConfig, encoded: Any) -> HeadConfig:
    """The head as it is trained, with the loss that `finetune` asks for.

    Args:
        encoded: labels of the training rows, see `Examples`.

    Raises:
        ConfigError: weights or smoothing do not suit the labels or the task.
    """
    spec = finetune.class_weights
    if spec and head.task not in WEIGHTED:
        raise ConfigError(f"class_weights has no meaning with the task {head.task}, only with {' and '.join(WEIGHTED)}")
    weights = label_weights(spec, encoded, head.labels) if spec else ()
    return dataclasses.replace(head, label_smoothing=finetune.label_smoothing, label_weights=weights)


def label_weights(spec: str, encoded: np.ndarray, labels: Sequence[str]) -> tuple[float, ...]:
    """What each label counts in the loss.

    Args:
        spec: "label:weight,..." (others 1), or "balanced": rows / (labels * rows of the label), as scikit-learn's
            `compute_class_weight`; where a row has several labels, rows without it / rows with it.
        encoded: labels of the training rows, `encode_labels` of classify or multilabel.

    Raises:
        ConfigError: an unknown label, a weight that is no number above 0, or no training row has one of the labels.
    """
    if spec != "balanced":
        given: dict[str, float] = {}
        for part in spec.split(","):
            name, colon, number = part.rpartition(":")
            weight = number_of(number)
            if not colon or name not in labels or name in given or weight is None or weight <= 0:
                raise ConfigError(
                    f"class_weights: {part!r} is no label and its weight, such as {labels[0]}:2.5, for one of "
                    f"{some_of(labels)}; or balanced"
                )
            given[name] = weight
        return tuple(given.get(label, 1.0) for label in labels)
    several = encoded.ndim == 2
    counts = encoded.sum(0) if several else np.bincount(encoded, minlength=len(labels))
    absent = [label for label, count in zip(labels, counts, strict=True) if count == 0]
    if absent:
        raise ConfigError(f"class_weights=balanced: no training row has the label {absent[0]!r}; give numbers instead")
    if several:  # a label that all rows have would count nothing
        return tuple((np.maximum(len(encoded) - counts, 1) / counts).tolist())
    return tuple((len(encoded) / (len(labels) * counts)).tolist())


def number_of(value: str) -> float | None:
    """The number that `value` spells; None for words, also for nan, inf and Python's `1_000`."""
    try:
        number = float(value)
    except ValueError:
        return None
    return number if np.isfinite(number) and "_" not in value else None


def some_of(names: Sequence[str], limit: int = 10) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return repr(list(names[:limit])) + more
