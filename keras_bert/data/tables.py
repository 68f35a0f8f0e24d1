"""Tables of text from files (csv, tsv, jsonl), read and checked whole before any long work.

A row is never dropped or repaired in silence: it is used as it is written, or the command stops with the file, the
line and the value.

Rules: the first line names the columns. `.csv` is RFC 4180 (quoted fields may hold commas and line breaks); in `.tsv`
a quote is a character like any other, as in GLUE. `.jsonl` holds one object a line. Files are UTF-8; a byte order mark
and CR LF line ends are accepted. A blank line is no row, but an empty text is a text.
"""

import csv
import glob
import io
import json
import os
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keras_bert.errors import DataError

csv.field_size_limit(2**31 - 1)


@dataclass(frozen=True)
class Table:
    """A table: `columns[name][i]`, and where row i was read: `files[i]`, `lines[i]` from 1.

    Values are strings; for tags and spans the label column holds what `readers` makes of its files.
    """

    columns: dict[str, list[Any]]
    files: list[str]
    lines: list[int]
    unit: str = "line"

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, name: str) -> list[Any]:
        return self.columns[name]

    def where(self, i: int) -> str:
        """`train.csv, line 17` of row `i`."""
        return f"{self.files[i]}, {self.unit} {self.lines[i]}"

    def take(self, indices: Iterable[int]) -> "Table":
        """The rows of `indices`, in that order."""
        indices = list(indices)
        columns = {name: [values[i] for i in indices] for name, values in self.columns.items()}
        return Table(columns, [self.files[i] for i in indices], [self.lines[i] for i in indices], self.unit)


def read(pattern: str | Path, columns: Sequence[str] = ()) -> Table:
    """Read one file, or several given as a comma list or a glob; all must have the same columns.

    Args:
        pattern: paths ending in .csv, .tsv, .jsonl (or .txt, read as .tsv).
        columns: names that must be there.

    Raises:
        DataError: nothing matches, a file cannot be read, is not a regular file, changes while it is read,
            is not UTF-8, has no rows, lacks a column, or has a row that does not fit its header.
    """
    tables = [_read_file(path, columns) for path in find(pattern)]
    names = list(tables[0].columns)
    for table in tables[1:]:
        if set(table.columns) != set(names):
            raise DataError(
                f"{table.files[0]}: columns {list(table.columns)} differ from {names} of {tables[0].files[0]}"
            )
    merged = {name: [value for t in tables for value in t.columns[name]] for name in names}
    return Table(merged, [f for t in tables for f in t.files], [n for t in tables for n in t.lines])


def find(pattern: str | Path) -> list[str]:
    """The files of a comma list of paths and globs, each glob sorted.

    Raises:
        DataError: a part matches nothing.
    """
    found: list[str] = []
    for part in [str(pattern)] if os.path.exists(pattern) else str(pattern).split(","):
        matches = sorted(glob.glob(part)) if glob.has_magic(part) and not os.path.exists(part) else [part]
        if not matches:
            raise DataError(f"{part}: matches no file")
        found += matches
    return found


def _read_file(path: str, wanted: Sequence[str]) -> Table:
    content = read_text(path)
    suffix = Path(path).suffix.lower()
    readers = {".csv": _csv, ".tsv": _tsv, ".txt": _tsv, ".jsonl": _jsonl}
    if suffix not in readers:
        raise DataError(f"{path}: unknown kind of file {suffix!r}; known are {', '.join(readers)}")
    header, rows, lines = readers[suffix](content, path)
    if not header:
        raise DataError(f"{path}: is empty")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{path}, line 1: the header names {twice} more than once")
    missing = [name for name in wanted if name not in header]
    if missing:
        raise DataError(f"{path}, line 1: has no column {', '.join(missing)}; its columns are {', '.join(header)}")
    if not rows:
        raise DataError(f"{path}: has a header but no rows")
    columns = {name: [row[i] for row in rows] for i, name in enumerate(header)}
    return Table(columns, [path] * len(rows), lines)


def read_text(path: str) -> str:
    """The content of a UTF-8 file.

    Raises:
        DataError: it is no regular file, cannot be read, changes while it is read, or is not UTF-8.
    """
    try:
        before = os.stat(path)
        if stat.S_ISDIR(before.st_mode):
            raise DataError(f"{path}: is a directory; name a file, or a glob such as {os.path.join(path, '*.csv')}")
        if not stat.S_ISREG(before.st_mode):
            raise DataError(f"{path}: is not a regular file; write the data to a file first")
        with open(path, "rb") as file:
            data = file.read()
        after = os.stat(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or len(data) != after.st_size:
        raise DataError(f"{path}: changed while it was read; wait until it is written, then start again")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        rest = error.object  # what follows the byte order mark, where there is one
        line = rest.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: byte {rest[error.start]:#04x} is not UTF-8; "
            "save the file as UTF-8 (it may be Latin-1 or Windows-1252 now)"
        ) from error


def _csv(content: str, path: str) -> tuple[list[str], list[list[str]], list[int]]:
    return _delimited(csv.reader(io.StringIO(content, newline=""), strict=True), path)


def _tsv(content: str, path: str) -> tuple[list[str], list[list[str]], list[int]]:
    reader = csv.reader(
        io.StringIO(content, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None, strict=True
    )
    return _delimited(reader, path)


def _delimited(reader: Any, path: str) -> tuple[list[str], list[list[str]], list[int]]:
    header: list[str] = []
    rows: list[list[str]] = []
    lines: list[int] = []
    start = 1
    try:
        for row in reader:
            first, start = start, reader.line_num + 1
            if not header:
                header = row
            elif row:  # a blank line is no row
                if len(row) != len(header):
                    raise DataError(f"{path}, line {first}: {len(row)} fields where the header has {len(header)}")
                rows.append(row)
                lines.append(first)
    except csv.Error as error:
        raise DataError(f"{path}, line {start}: {error}; check the quotes from here on") from error
    return header, rows, lines


def _jsonl(content: str, path: str) -> tuple[list[str], list[list[str]], list[int]]:
    header: list[str] = []
    rows: list[list[str]] = []
    lines: list[int] = []
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number}: not valid JSON ({error})") from error
        if not isinstance(item, dict):
            raise DataError(f"{path}, line {number}: holds a {type(item).__name__}, not an object")
        if not item:
            raise DataError(f"{path}, line {number}: holds an object without keys")
        header = header or list(item)
        if set(item) != set(header):
            raise DataError(f"{path}, line {number}: keys {list(item)} differ from {header} of the first row")
        rows.append([_as_text(item[name]) for name in header])
        lines.append(number)
    return header, rows, lines


def _as_text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(_as_text(v) for v in value)
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# === Parts ===


def read_objects(path: str) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a JSON file and their lines: one, an array of them, or one after another."""
    content = read_text(path)
    decoder, at, line = json.JSONDecoder(), 0, 1
    blank = re.compile(r"\s*")
    found: list[tuple[int, Any]] = []

    def skip(at: int) -> int:
        match = blank.match(content, at)
        return match.end() if match else at

    at = skip(0)
    line += content.count("\n", 0, at)
    while at < len(content):
        try:
            item, end = decoder.raw_decode(content, at)
        except (ValueError, RecursionError) as error:
            wrong = getattr(error, "lineno", line)
            raise DataError(f"{path}, line {wrong}: not valid JSON ({getattr(error, 'msg', error)})") from error
        found += [(line, one) for one in item] if isinstance(item, list) and not found else [(line, item)]
        end = skip(end)
        line += content.count("\n", at, end)
        at = end
    if not found:
        raise DataError(f"{path}: is empty")
    for line, item in found:
        if not isinstance(item, dict):
            raise DataError(f"{path}, line {line}: holds a {type(item).__name__}, not an object")
    return found


def bytes_before(text: str) -> list[int]:
    """UTF-8 bytes before each character, and before the end."""
    sizes: Iterable[int] = (len(c.encode("utf-8", "surrogatepass")) for c in text)
    return np.concatenate([[0], np.cumsum(list(sizes), dtype=np.int64)]).astype(int).tolist()
