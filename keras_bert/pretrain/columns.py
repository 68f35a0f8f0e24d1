"""Columns: everything that may stand beside a token, a word or a row, from the documents to the batches.

The writer and the reader of a corpus, assembling, packing and filling up all read `COLUMNS`. A new column is one row
here, and one function if the corpus computes it.

While a corpus is built, a token is its id, or, if the corpus has columns of tokens, a tuple of its id and its value in
each of them, in the order of `CorpusColumns.tokens`. So a token keeps its values wherever it moves.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import Any

from keras_bert.config import choose
from keras_bert.errors import ConfigError
from keras_bert.text.wordpiece import Encoding

Token = Any
"""An id, or a tuple of an id and the values of the columns of tokens."""

OfTokens = Callable[[str, Encoding], Sequence[int]]
"""A text without spaces, and its tokens -> a value for each token; for runs, 1 where a run begins."""

OfRow = Callable[[Sequence[Sequence[Token]], int], int]
"""The segments of a row, and the number of its document in the shard -> the value of the row."""


@dataclass(frozen=True)
class Column:
    """One kind of value.

    Attributes:
        per: "token" (`[B, T]`), "row" (`[B]`; `[B, K]` once K rows are packed into one), "prediction" (`[B, P]`), or
            "run": lengths of runs of tokens that together make up the row; in a batch the number of each token's run,
            from 1 (`[B, T]`).
        dtype: in a batch.
        filler: where there is no value: special tokens, padding, rows that only fill up a batch.
        batch: the name in a batch, where it is not that in a record.
        place: the values are positions in a row, which shift when rows are packed.
        make: computes the values while a corpus is built: an `OfTokens` or, for "row", an `OfRow`. None: the column is
            always there, or comes into being later.
    """

    per: str
    dtype: str = "int32"
    filler: int = 0
    batch: str = ""
    place: bool = False
    make: Callable[..., Any] | None = None


def cased(text: str, tokens: Encoding) -> list[int]:
    """1 for each token of a word that begins with an upper-case letter before lower-casing, else 0."""
    values: list[int] = []
    for piece, (start, _) in zip(tokens.pieces, tokens.characters, strict=True):
        values.append(values[-1] if piece.startswith("##") else int(text[start].isupper()))
    return values


def words(text: str, tokens: Encoding) -> list[int]:
    """1 where a word begins: at each piece without `##`."""
    return [int(not piece.startswith("##")) for piece in tokens.pieces]


def document(segments: Sequence[Sequence[Token]], number: int) -> int:
    """The number of the document that the first segment is from, counted from 0 in each shard."""
    return number


COLUMNS: dict[str, Column] = {
    "token_ids": Column("token"),
    "pair_label": Column("row", filler=-1, batch="pair_labels"),
    "cased": Column("token", make=cased),
    "word_lengths": Column("run", batch="words", make=words),
    "document": Column("row", filler=-1, make=document),
    "segment_ids": Column("token"),
    "padding_mask": Column("token", "bool"),
    "positions": Column("token"),
    "pack_ids": Column("token"),
    "masked_positions": Column("prediction", place=True),
    "masked_ids": Column("prediction"),
    "masked_weights": Column("prediction", "float32"),
    "cls_positions": Column("row"),
}
"""By the name in a record, or in a batch for those that no record holds."""


def name_in_batch(name: str) -> str:
    """What a column of records is called in a batch."""
    return COLUMNS[name].batch or name


def of_batch(batch: Iterable[str]) -> dict[str, Column]:
    """The columns of a batch, by their names there.

    Raises:
        ConfigError: one is in no row of the table.
    """
    known = {column.batch or name: column for name, column in COLUMNS.items()}
    return {name: choose(known, name, "column of a batch") for name in batch}


def choose_columns(names: str) -> tuple[str, ...]:
    """The further columns of a corpus from a comma list, in the order of the table.

    Raises:
        ConfigError: a name is unknown, or of a column that is not computed from text.
    """
    optional = {name: column for name, column in COLUMNS.items() if column.make}
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        choose(optional, name, "column")
    return tuple(name for name in optional if name in wanted)


class CorpusColumns:
    """The further columns of one corpus: how a row of tokens becomes the columns of a record.

    Args:
        names: rows of `COLUMNS` that are made of text.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.tokens = [name for name in names if COLUMNS[name].per != "row"]
        self.rows = [name for name in names if COLUMNS[name].per == "row"]

    def attach(self, text: str, tokens: Encoding) -> tuple[Token, ...]:
        """The tokens of a text without spaces, each with its values.

        Raises:
            ConfigError: a column does not have one value for each token.
        """
        values = []
        for name in self.tokens:
            make = COLUMNS[name].make
            values.append(list(make(text, tokens)) if make else [])
            if len(values[-1]) != len(tokens.ids):
                raise ConfigError(
                    f"the column {name} has {len(values[-1])} values for the {len(tokens.ids)} of {text!r}"
                )
        return tuple(zip(tokens.ids, *values, strict=True))

    def of_row(self, segments: Sequence[Sequence[Token]], number: int) -> dict[str, list[int]]:
        """`token_ids` and the further columns of a row, as a record holds them."""
        if not self.tokens:
            values: dict[str, list[int]] = {"token_ids": list(chain.from_iterable(segments))}
        else:
            names = ["token_ids", *self.tokens]
            values = dict(zip(names, map(list, zip(*chain.from_iterable(segments), strict=True)), strict=True))
        for name in self.tokens:
            if COLUMNS[name].per == "run":
                values[name] = run_lengths(values[name], list(map(len, segments)))
        for name in self.rows:
            make = COLUMNS[name].make
            values[name] = [make(segments, number)] if make else []
        return values


def run_lengths(begins: Sequence[int], segment_lengths: Sequence[int]) -> list[int]:
    """The lengths of runs, from marks at their first tokens; a segment always begins a run."""
    starts = {0, *accumulate(segment_lengths), *(i for i, begin in enumerate(begins) if begin)}
    return [end - start for start, end in pairwise(sorted(starts))]


def missing(columns: Iterable[str], batch: Mapping[str, Any], what: str) -> None:
    """Refuse a batch without the columns that `what` reads.

    Raises:
        ConfigError: some are missing; the line says how to get them.
    """
    absent = [name for name in columns if name not in batch]
    if absent:
        stored = {column.batch or name: name for name, column in COLUMNS.items() if column.make}
        names = ",".join(stored.get(name, name) for name in absent)
        built = all(name in stored for name in absent)
        advice = f"build it with `keras-bert corpus --columns={names}`" if built else "choose another corpus"
        raise ConfigError(f"{what} reads {', '.join(absent)}, which this corpus does not hold; {advice}")
