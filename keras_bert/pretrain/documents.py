"""Files of text to documents, from any part of a file: so that many workers can share one file of any size.

Kinds of file:
  text    a sentence (or paragraph) a line, blank lines between documents: google-research/bert's form;
  jsonl   an object a line, each a document; blank lines in its text separate paragraphs;
  wiki    `<doc id="..." title="...">` ... `</doc>`, as the usual extractors of Wikipedia write it, a paragraph a line.

A part of a file is a range of bytes. It holds the documents whose beginning (the blank line before it, its line, or its
`<doc` line) lies in the range, whole. Files are read line by line, so memory does not depend on their size.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, NamedTuple

from keras_bert.errors import DataError

LONGEST_LINE = 1 << 26
BOM = b"\xef\xbb\xbf"


class Part(NamedTuple):
    """The documents that begin in the bytes `start` to `stop` of a file of `size` bytes."""

    path: str
    kind: str
    start: int
    stop: int
    size: int


Line = tuple[int, str]
"""A line, and the byte at which it begins."""


def paragraphs(part: Part, column: str = "text") -> Iterator[str | None]:
    """The paragraphs of a part of a file, and None after each document that does not end with the part.

    Args:
        part: where to read.
        column: the key of the text in jsonl.

    Raises:
        DataError: the file cannot be read, has changed since the part was planned, is not UTF-8, or has a line that
            is too long or not what its kind says; the file and line are named.
    """
    try:
        with open(part.path, "rb") as file:
            before = os.fstat(file.fileno())
            if before.st_size != part.size:
                raise DataError(f"{part.path}: changed while it was read; start again with --overwrite")
            lines = _lines(part, file)
            yield from READERS[part.kind](lines, part, column)
            if (after := os.stat(part.path)).st_size != part.size or after.st_mtime_ns != before.st_mtime_ns:
                raise DataError(f"{part.path}: changed while it was read; start again with --overwrite")
    except OSError as error:
        raise DataError(f"{part.path}: cannot be read ({error.strerror})") from error


def _lines(part: Part, file: BinaryIO) -> Iterator[Line]:
    """Whole lines from the first that begins in the part to the end of the file, without the byte order mark."""
    offset = part.start
    if offset:
        file.seek(offset - 1)
        offset += len(file.readline()) - 1
    while raw := file.readline(LONGEST_LINE):
        if len(raw) == LONGEST_LINE:
            raise DataError(f"{_place(part, offset)}: longer than {LONGEST_LINE:,} bytes; break it into lines")
        try:
            yield offset, (raw if offset else raw.removeprefix(BOM)).decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{_place(part, offset)}: byte {error.object[error.start]:#04x} is not UTF-8; "
                "save the file as UTF-8 (it may be Latin-1, Windows-1252 or packed now)"
            ) from error
        offset += len(raw)


def _text(lines: Iterator[Line], part: Part, column: str) -> Iterator[str | None]:
    inside = not part.start
    for offset, line in lines:
        line = line.strip()
        if line and inside:
            yield line
        elif not line:
            if offset >= part.stop:
                return
            inside = True
            yield None


def _jsonl(lines: Iterator[Line], part: Part, column: str) -> Iterator[str | None]:
    for offset, line in lines:
        if offset >= part.stop:
            return
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{_place(part, offset)}: not valid JSON ({error})") from error
        if not isinstance(item, dict) or not isinstance(item.get(column), str):
            has = f"has the keys {', '.join(item)}" if isinstance(item, dict) else f"is a {type(item).__name__}"
            raise DataError(f"{_place(part, offset)}: no text under {column!r} (--text_column); the line {has}")
        yield from re.split(r"\n\s*\n", item[column])
        yield None


def _wiki(lines: Iterator[Line], part: Part, column: str) -> Iterator[str | None]:
    inside, title = False, ""
    for offset, line in lines:
        line = line.strip()
        if line.startswith("<doc "):
            if offset >= part.stop:
                return
            found = re.search(r' title="(.*?)"', line)
            inside, title = True, found[1] if found else ""
        elif line == "</doc>":
            inside = False
            yield None
        elif inside and line and line != title:
            yield line
        elif line and not inside and not part.start:
            raise DataError(f"{_place(part, offset)}: text outside of <doc ...> and </doc>")


READERS: dict[str, Callable[[Iterator[Line], Part, str], Iterator[str | None]]] = {
    "text": _text,
    "jsonl": _jsonl,
    "wiki": _wiki,
}


def _place(part: Part, offset: int) -> str:
    """`file, line 7`; counted only when it is needed."""
    line, left = 1, offset
    with open(part.path, "rb") as file:
        while left and (block := file.read(min(left, 1 << 20))):
            line, left = line + block.count(b"\n"), left - len(block)
    return f"{part.path}, line {line}"


# === Which files, and which parts of them ===


def kind_of(path: str) -> str:
    """The kind of a file by its name, or else by how its first line that is not blank begins.

    Raises:
        DataError: it cannot be read, or it is packed.
    """
    if path.lower().endswith(".jsonl"):
        return "jsonl"
    try:
        with open(path, "rb") as file:
            head = file.read(4096).removeprefix(BOM).lstrip()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if head.startswith((b"\x1f\x8b", b"BZh", b"PK\x03\x04", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ")):
        raise DataError(f"{path}: is packed; unpack it first")
    return "wiki" if head.startswith(b"<doc ") else "jsonl" if re.match(rb'\{\s*"', head) else "text"


def share(files: Sequence[tuple[str, str, int]], count: int) -> list[list[Part]]:
    """Files of `(path, kind, size)`, one after another, as `count` lists of parts with about equally many bytes."""
    total = sum(size for _, _, size in files)
    found = []
    for i in range(count):
        low, high = total * i // count, total * (i + 1) // count
        parts, offset = [], 0
        for path, kind, size in files:
            start, stop = max(low - offset, 0), min(high - offset, size)
            if start < stop:
                parts.append(Part(path, kind, start, stop, size))
            offset += size
        found.append(parts)
    return found


# === Sentences ===

_END = re.compile(r"""[.!?…]+["'”’»)\]]*(?=\s)|[。！？]+[”’」』）]*""")
_ABBREVIATIONS = frozenset(
    (
        *("mr", "mrs", "ms", "dr", "prof", "st", "sr", "jr", "rev", "hon", "gen", "col", "capt", "lt", "sgt", "gov"),
        *("sen", "rep", "pres", "vs", "cf", "e.g", "i.e", "viz", "no", "nos", "vol", "fig", "figs", "pp", "ch", "sec"),
        *(
            "op",
            "ed",
            "eds",
            "est",
            "approx",
            "ca",
            "al",
            "mt",
            "ft",
            "dept",
            "univ",
            "bros",
            "brig",
            "maj",
            "jan",
            "feb",
            "mar",
        ),
        *("apr", "jun", "jul", "aug", "sep", "sept", "oct", "nov", "dec"),
    )
)


def punctuation(paragraph: str) -> list[str]:
    """Sentences of English or Chinese text: they end with `.`, `!`, `?` and a space, or with `。`, `！`, `？`.

    A full stop ends none after a usual abbreviation or a single letter, or before a small letter. Line breaks inside
    the paragraph count as spaces.
    """
    found, start = [], 0
    for match in _END.finditer(paragraph):
        end = match.end()
        if match[0][0] == ".":
            word = paragraph[start : match.start()].rpartition(" ")[2].lstrip("(\"'“‘[").lower()
            following = paragraph[end:].lstrip()[:1] if end < len(paragraph) else ""
            shortened = word in _ABBREVIATIONS or (len(word) == 1 and word.isalpha())
            if following.islower() or (match[0] == "." and shortened):
                continue
        found.append(paragraph[start:end])
        start = end
    found.append(paragraph[start:])
    return [sentence for part in found if (sentence := " ".join(part.split()))]


def lines(paragraph: str) -> list[str]:
    """A sentence a line."""
    return [sentence for line in paragraph.split("\n") if (sentence := line.strip())]


SENTENCES: dict[str, Callable[[str], list[str]]] = {"lines": lines, "punctuation": punctuation}
