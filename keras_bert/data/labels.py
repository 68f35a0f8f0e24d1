"""Labels as files write them, as numbers, and how much each counts.

Labels are compared as they are written: "1" and "1.0" are not the same, and a column that mixes them is refused.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from keras_bert.config import DataConfig, FinetuneConfig, HeadConfig, WeightedConfig, tasks_with
from keras_bert.data.source import MakeTokenizer, Source
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


def encode_classes(table: Table, column: str, labels: Sequence[str]) -> np.ndarray:
    """The number of the label of each row, int32 `[rows]`.

    Raises:
        DataError: a value is not among `labels`.
    """
    return np.array([number for (number,) in _numbers(table, column, labels, lambda value: [value])], np.int32)


def encode_sets(table: Table, column: str, labels: Sequence[str]) -> np.ndarray:
    """1 for the labels of each row, else 0, float32 `[rows, labels]`; values are comma lists.

    Raises:
        DataError: as `encode_classes`.
    """
    encoded = np.zeros((len(table), len(labels)), np.float32)
    for row, numbers in zip(encoded, _numbers(table, column, labels, split_labels), strict=True):
        row[numbers] = 1
    return encoded


def _numbers(
    table: Table, column: str, labels: Sequence[str], names_in: Callable[[str], list[str]]
) -> Iterator[list[int]]:
    """The numbers of the labels that each value names."""
    ids = {label: i for i, label in enumerate(labels)}
    for i, value in enumerate(table[column]):
        names = names_in(value)
        for name in names:
            if name not in ids:
                raise DataError(
                    f"{table.where(i)}: {column} {name!r} is not among the labels {some_of(labels)} of training"
                )
        yield [ids[name] for name in names]


def encode_numbers(table: Table, column: str) -> np.ndarray:
    """The number of each row, float32 `[rows]`.

    Raises:
        DataError: a value is no number.
    """
    encoded = []
    for i, value in enumerate(table[column]):
        number = number_of(value)
        if number is None or abs(number) > float(np.finfo(np.float32).max):
            raise DataError(f"{table.where(i)}: {column} {value!r} is not a number")
        encoded.append(number)
    return np.array(encoded, np.float32)


# === Sources ===


class Classes(Source):
    """One label a row."""

    stratified = True

    def find_labels(self, table: Table, data: DataConfig) -> tuple[str, ...]:
        return find_labels(table, data.label_column)

    def encode(self, table: Table, data: DataConfig, config: HeadConfig, tokenizer: MakeTokenizer) -> tuple[Any, Any]:
        return encode_classes(table, data.label_column, config.labels), None


class LabelSets(Source):
    """Comma lists of labels."""

    def find_labels(self, table: Table, data: DataConfig) -> tuple[str, ...]:
        return find_multilabels(table, data.label_column)

    def encode(self, table: Table, data: DataConfig, config: HeadConfig, tokenizer: MakeTokenizer) -> tuple[Any, Any]:
        return encode_sets(table, data.label_column, config.labels), None


class Numbers(Source):
    """One number a row."""

    def encode(self, table: Table, data: DataConfig, config: HeadConfig, tokenizer: MakeTokenizer) -> tuple[Any, Any]:
        return encode_numbers(table, data.label_column), None


# === How much labels count ===


def learnt_head(head: HeadConfig, finetune: FinetuneConfig, encoded: Any) -> HeadConfig:
    """The head as it is trained, with the loss that `finetune` asks for.

    Args:
        encoded: labels of the training rows, see `Examples`.

    Raises:
        ConfigError: weights or smoothing do not suit the labels or the task.
    """
    if not isinstance(head, WeightedConfig):
        check_weighting(type(head), head.task, finetune)
        return head
    spec = finetune.class_weights
    weights = label_weights(spec, encoded, head.labels) if spec else ()
    return dataclasses.replace(head, label_smoothing=finetune.label_smoothing, label_weights=weights)


def check_weighting(kind: type[HeadConfig], task: str, finetune: FinetuneConfig) -> None:
    """Raises ConfigError if the labels of a task cannot be smoothed and weighted, and that is asked for."""
    for name in ("class_weights", "label_smoothing"):
        if getattr(finetune, name) and not issubclass(kind, WeightedConfig):
            known = " and ".join(tasks_with(WeightedConfig))
            raise ConfigError(f"{name} has no meaning with the task {task}, only with {known}")


def label_weights(spec: str, encoded: np.ndarray, labels: Sequence[str]) -> tuple[float, ...]:
    """What each label counts in the loss.

    Args:
        spec: "label:weight,..." (others 1), or "balanced": rows / (labels * rows of the label), as scikit-learn's
            `compute_class_weight`; where a row has several labels, rows without it / rows with it.
        encoded: labels of the training rows, what `encode_classes` or `encode_sets` gives.

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
