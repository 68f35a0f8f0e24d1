"""Texts with masks and the words that belong there; texts with targets to generate."""

import random
from pathlib import Path
from typing import Any

import numpy as np

from keras_bert.config import DataConfig, HeadConfig
from keras_bert.data.batches import Examples
from keras_bert.data.faults import Reading, Say
from keras_bert.data.source import FileSource, MakeTokenizer, Source, no_labels
from keras_bert.data.tables import Table, read, read_text
from keras_bert.errors import DataError
from keras_bert.text.vocabulary import MASK
from keras_bert.text.wordpiece import UNKNOWN, WordPiece

# === Masks ===

MASKED_SHARE = 0.15


def read_masked(path: str, data: DataConfig, how: Reading) -> Table:
    """A table of texts with masks, and of the words that belong there; or plain lines of text (.txt), without words."""
    if Path(path).suffix.lower() != ".txt":
        return read(path, [data.text_column, *([data.label_column] if how.labelled else [])])
    lines = [(number, line.strip()) for number, line in enumerate(read_text(path).split("\n"), 1) if line.strip()]
    if not lines:
        raise DataError(f"{path}: holds no text")
    return Table({data.text_column: [line for _, line in lines]}, [path] * len(lines), [number for number, _ in lines])


def encode_words(rows: Table, data: DataConfig, wordpiece: WordPiece) -> np.ndarray:
    """The number of the piece that belongs at each mask, int32 `[rows, E]`, filled up with -1.

    Raises:
        DataError: there are not as many words as masks, or one is no single piece of the vocabulary.
    """
    found: list[list[int]] = []
    for i, (text, label) in enumerate(zip(rows[data.text_column], rows[data.label_column], strict=True)):
        words, count = label.split(), text.count(MASK)
        if not count or len(words) != count:
            where = f"{rows.where(i)}: {count} {MASK} in the text"
            raise DataError(f"{where}, but {len(words)} words in {data.label_column}")
        pieces = [[wordpiece.index[w]] if w in wordpiece.index else wordpiece.tokenize(w).ids for w in words]
        for word, ids in zip(words, pieces, strict=True):
            if len(ids) != 1 or ids[0] == wordpiece.index[UNKNOWN]:
                raise DataError(f"{rows.where(i)}: {word!r} is no piece of the vocabulary, so no mask can stand for it")
        found.append([ids[0] for ids in pieces])
    encoded = np.full((len(found), max(map(len, found), default=1)), -1, np.int32)
    for i, ids in enumerate(found):
        encoded[i, : len(ids)] = ids
    return encoded


def draw_masks(rows: Table, data: DataConfig, wordpiece: WordPiece, tokens: int, most: int, seed: int) -> Table:
    """Texts with a mask in the place of some words, and these words as the label; the same for the same seed.

    Words that are one piece of the vocabulary are drawn, `MASKED_SHARE` of those of a text, one at least. Texts without
    such a word are left out.

    Args:
        tokens: of a text from which is drawn; behind them it may be cut.
        most: masks of a text.

    Raises:
        DataError: no text has such a word.
    """
    kept, texts, labels = [], [], []
    for i, text in enumerate(rows[data.text_column]):
        found = wordpiece.tokenize(text)
        pieces = [*found.pieces[:tokens], "##"]
        whole = [
            at
            for at, piece in enumerate(pieces[:-1])
            if not piece.startswith("##") and not pieces[at + 1].startswith("##") and piece.isalnum()
        ]
        if not whole or MASK in text:
            continue
        count = min(most, max(1, round(MASKED_SHARE * len(whole))))
        chosen = sorted(random.Random(f"{seed}/{i}").sample(whole, count))
        for at in reversed(chosen):
            start, end = found.characters[at]
            text = text[:start] + MASK + text[end:]
        kept.append(i)
        texts.append(text)
        labels.append(" ".join(pieces[at] for at in chosen))
    if not kept:
        raise DataError(f"{rows.files[0]}: no text has a word that is one piece of the vocabulary")
    return Table(
        {data.text_column: texts, data.label_column: labels},
        [rows.files[i] for i in kept],
        [rows.lines[i] for i in kept],
    )


# === Targets ===


def targets(rows: Table, data: DataConfig) -> list[str]:
    """The texts that are to be generated.

    Raises:
        DataError: one is empty.
    """
    for i, target in enumerate(rows[data.label_column]):
        if not target.strip():
            raise DataError(f"{rows.where(i)}: no {data.label_column}; every text needs a target")
    return rows[data.label_column]


# === Sources ===

SEED = 12345
"""Of masks that are drawn."""


class MaskedWords(FileSource):
    """Texts with masks and the words that belong there."""

    def read_file(self, path: str, data: DataConfig, how: Reading) -> Table:
        return read_masked(path, data, how)

    def with_labels(
        self, table: Table, data: DataConfig, config: HeadConfig, tokenizer: MakeTokenizer, longest: int, say: Say
    ) -> Table:
        """Lines of text get masks in the place of some words."""
        if data.label_column in table.columns:
            return table
        drawn = draw_masks(table, data, tokenizer(), longest - 2, getattr(config, "max_masks", 16), SEED)
        say(f"masks were drawn in {len(drawn)} of {len(table)} texts; the others have no word of one piece")
        return drawn

    def encode(self, table: Table, data: DataConfig, config: HeadConfig, tokenizer: MakeTokenizer) -> tuple[Any, Any]:
        return encode_words(table, data, tokenizer()), None


class Targets(Source):
    """Texts with targets to generate, which are the last segment of labelled rows."""

    def examples(
        self,
        table: Table,
        data: DataConfig,
        config: HeadConfig,
        tokenizer: MakeTokenizer | None = None,
        labelled: bool = True,
    ) -> Examples:
        segments = self.segments(table, data)
        if not labelled:
            return Examples(segments, table=table)
        found = targets(table, data)
        return Examples((*segments, found), no_labels(table), found, table)
