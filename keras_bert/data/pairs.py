"""Pairs of texts with or without a score."""

from typing import Any

import numpy as np

from keras_bert.config import DataConfig, HeadConfig
from keras_bert.data.faults import Reading
from keras_bert.data.labels import encode_numbers
from keras_bert.data.source import FileSource, MakeTokenizer
from keras_bert.data.tables import Table, read
from keras_bert.errors import DataError

# === Pairs ===


def read_pairs(path: str, data: DataConfig, how: Reading) -> Table:
    """A table of pairs, with their scores, or without: then all pairs mean the same."""
    rows = read(path, [data.text_column, data.text_pair_column])
    if how.labelled and data.label_column not in rows.columns:
        how.say(f"{path}: no column {data.label_column!r} (--label_column), so each pair means the same")
    return rows


def encode_pairs(rows: Table, data: DataConfig, max_score: float) -> np.ndarray:
    """Numbers of the first and of the second text, equal ones alike, from 1, and the score, float32 `[rows, 3]`.

    Args:
        max_score: the score that becomes 1.

    Raises:
        DataError: a score is no number, or further from 0 than `max_score`.
    """
    columns = [rows[name] for name in (data.text_column, data.text_pair_column)]
    numbers: dict[str, int] = {}
    ids = [[numbers.setdefault(text.strip().casefold(), len(numbers) + 1) for text in column] for column in columns]
    scores: Any = np.ones(len(rows), np.float32)
    if data.label_column in rows.columns:
        scores = encode_numbers(rows, data.label_column) / np.float32(max_score)
        for i in np.flatnonzero(np.abs(scores) > 1)[:1]:
            found = rows[data.label_column][i]
            raise DataError(f"{rows.where(i)}: score {found} is beyond {max_score:g}; give the highest as --max_score")
    return np.stack([*np.array(ids, np.float32), scores], axis=1)


class Pairs(FileSource):
    """Pairs of texts."""

    labels_optional = True

    def read_file(self, path: str, data: DataConfig, how: Reading) -> Table:
        return read_pairs(path, data, how)

    def check(self, table: Table, data: DataConfig, config: HeadConfig) -> None:
        if getattr(config, "objective", "") == "scores" and data.label_column not in table.columns:
            raise DataError(f"{table.files[0]}: has no column {data.label_column!r} of scores (--label_column)")

    def encode(self, table: Table, data: DataConfig, config: HeadConfig, tokenizer: MakeTokenizer) -> tuple[Any, Any]:
        return encode_pairs(table, data, getattr(config, "max_score", 1.0)), None
