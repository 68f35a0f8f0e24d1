"""Vocabulary files: word pieces in the order of their ids, read and checked without TensorFlow."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from keras_bert.errors import DataError

SPECIAL = ("[UNK]", "[CLS]", "[SEP]")
MASK = "[MASK]"
"""Hides a token in pretraining; in the text of --task=fill_mask it asks for a word."""
MAX_BYTES = 64 * 1024 * 1024


def fingerprint(vocabulary: Sequence[str]) -> str:
    """What tells one vocabulary from another: the SHA-256 of a `vocab.txt` of it."""
    return hashlib.sha256("".join(f"{piece}\n" for piece in vocabulary).encode("utf-8", "surrogatepass")).hexdigest()


def read_vocabulary(path: str | Path) -> list[str]:
    """The pieces of a `vocab.txt` (one a line), or of a WordPiece `tokenizer.json`, in the order of ids.

    Raises:
        DataError: the file is unreadable, empty, larger than 64 MB, binary, not UTF-8, has a byte order mark,
            a blank line or a repeated piece, or lacks [UNK], [CLS] or [SEP].
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise DataError(f"{path}: not a file; a vocabulary is a text file with one word piece a line")
        if size > MAX_BYTES:
            raise DataError(f"{path}: {size:,} bytes is no vocabulary; the largest known has 1 MB")
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if not data.strip():
        raise DataError(f"{path}: empty; a vocabulary has one word piece a line")
    if data.startswith(b"\xef\xbb\xbf"):
        raise DataError(f"{path}, line 1: starts with a byte order mark; save the file as UTF-8 without one")
    if b"\0" in data:
        raise DataError(f"{path}, line {_line(data, data.index(0))}: holds a NUL byte; this is not a text file")
    try:
        content = data.replace(b"\r\n", b"\n").decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}, line {_line(data, error.start)}: byte {data[error.start]:#04x} is not UTF-8; "
            "save the file as UTF-8"
        ) from error
    if path.suffix == ".json":
        pieces = _pieces_of_json(content, path)
    else:
        pieces = content.removesuffix("\n").split("\n")
    check_vocabulary(pieces, str(path))
    return pieces


def check_vocabulary(pieces: Sequence[str], name: str) -> dict[str, int]:
    """Piece -> id.

    Raises:
        DataError: a piece is blank or repeated, or a special token is missing; the line is named.
    """
    index: dict[str, int] = {}
    for number, piece in enumerate(pieces):
        if not piece:  # white space alone is a piece of some vocabularies
            raise DataError(f"{name}, line {number + 1}: blank; every line must hold a word piece")
        if piece in index:
            raise DataError(f"{name}, line {number + 1}: repeats {piece!r} of line {index[piece] + 1}")
        if "\n" in piece:  # only a tokenizer.json can hold one
            raise DataError(f"{name}, line {number + 1}: {piece!r} holds a line break; no vocab.txt could keep it")
        index[piece] = number
    missing = [token for token in SPECIAL if token not in index]
    if missing:
        raise DataError(f"{name}: has no {', '.join(missing)} on any of its {len(index)} lines")
    return index


def _pieces_of_json(content: str, path: Path) -> list[str]:
    try:
        model = json.loads(content)["model"]
        kind, table = model.get("type", "WordPiece"), model["vocab"]
        pieces = sorted(table, key=table.__getitem__) if kind == "WordPiece" else []
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: not a tokenizer file (no model with a vocabulary: {error!r})") from error
    if kind != "WordPiece":
        raise DataError(f"{path}: a {kind} tokenizer; BERT needs WordPiece")
    if [table[piece] for piece in pieces] != list(range(len(pieces))):
        raise DataError(f"{path}: ids do not run from 0 to {len(pieces) - 1} without gaps")
    return pieces


def _line(data: bytes, offset: int) -> int:
    return data.count(b"\n", 0, offset) + 1
