"""Rows of text from files (csv, tsv, jsonl), checked, and batches of them; `readers` knows other files.

Files are read and checked whole before any long work. A row is never dropped or repaired in silence: it is
used as it is written, or the command stops with the file, the line and the value.

Rules: the first line names the columns. `.csv` is RFC 4180 (quoted fields may hold commas and line breaks);
in `.tsv` a quote is a character like any other, as in GLUE. `.jsonl` holds one object a line. Files are
UTF-8; a byte order mark and CR LF line ends are accepted. A blank line is no row, but an empty text is a
text. Labels are compared as they are written: "1" and "1.0" are not the same, and a column that mixes them
is refused.
"""

import csv
import dataclasses
import glob
import io
import json
import os
import random
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keras_bert.config import FEATURES, WEIGHTED, DataConfig, FinetuneConfig, HeadConfig
from keras_bert.errors import ConfigError, DataError

csv.field_size_limit(2**31 - 1)


@dataclass(frozen=True)
class Rows:
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

    def take(self, indices: Iterable[int]) -> "Rows":
        """The rows of `indices`, in that order."""
        indices = list(indices)
        columns = {name: [values[i] for i in indices] for name, values in self.columns.items()}
        return Rows(columns, [self.files[i] for i in indices], [self.lines[i] for i in indices], self.unit)


def read(pattern: str | Path, columns: Sequence[str] = ()) -> Rows:
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
    return Rows(merged, [f for t in tables for f in t.files], [n for t in tables for n in t.lines])


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


def _read_file(path: str, wanted: Sequence[str]) -> Rows:
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
    return Rows(columns, [path] * len(rows), lines)


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


# === Labels ===


def find_labels(rows: Rows, column: str) -> tuple[str, ...]:
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
        number = _number(value)
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


def find_multilabels(rows: Rows, column: str) -> tuple[str, ...]:
    """The labels of a column that holds comma lists, in alphabetical order."""
    labels = sorted({label for value in rows[column] for label in split_labels(value)})
    if not labels:
        raise DataError(f"{rows.files[0]}: no row has a {column}; expected comma lists such as 'fire,flood'")
    return tuple(labels)


def split_labels(value: str) -> list[str]:
    """`"fire, flood"` -> `["fire", "flood"]`; an empty string has no labels."""
    return [part.strip() for part in value.split(",") if part.strip()]


def encode_labels(rows: Rows, column: str, task: str, labels: Sequence[str]) -> np.ndarray:
    """Labels as numbers: int32 `[rows]` (classify), float32 `[rows, n]` (multilabel), float32 `[rows]` (regress).

    Those of tag and span need the text too: `readers.encode_entities`, `readers.encode_answers`.

    Raises:
        DataError: a value that is missing, is not among `labels`, or is not a number.
    """
    ids = {label: i for i, label in enumerate(labels)}
    encoded: list[Any] = []
    for i, value in enumerate(rows[column]):
        if task == "regress":
            number = _number(value)
            if number is None or abs(number) > float(np.finfo(np.float32).max):
                raise DataError(f"{rows.where(i)}: {column} {value!r} is not a number")
            encoded.append(number)
            continue
        names = split_labels(value) if task == "multilabel" else [value]
        for name in names:
            if name not in ids:
                raise DataError(
                    f"{rows.where(i)}: {column} {name!r} is not among the labels {_some(labels)} of training"
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
            weight = _number(number)
            if not colon or name not in labels or name in given or weight is None or weight <= 0:
                raise ConfigError(
                    f"class_weights: {part!r} is no label and its weight, such as {labels[0]}:2.5, for one of "
                    f"{_some(labels)}; or balanced"
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


def _number(value: str) -> float | None:
    """The number that `value` spells; None for words, also for nan, inf and Python's `1_000`."""
    try:
        number = float(value)
    except ValueError:
        return None
    return number if np.isfinite(number) and "_" not in value else None


def _some(names: Sequence[str], limit: int = 10) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return repr(list(names[:limit])) + more


# === Splits and batches ===


def split(groups: Sequence[str], strata: Sequence[str], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Split rows into train and held-out indices, stratified, with equal `groups` on the same side.

    Args:
        groups: rows that must stay together have equal values (duplicate texts).
        strata: the label of each row; each label gives about `share` of its rows (a group counts as its
            first row's label).
        share: part of the rows to hold out, in (0, 1).
        seed: of the shuffle.

    Returns:
        Two sorted index lists that cover all rows.
    """
    members: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    by_stratum: dict[str, list[list[int]]] = {}
    for rows in members.values():
        by_stratum.setdefault(strata[rows[0]], []).append(rows)
    held: set[int] = set()
    for name in sorted(by_stratum):
        bags = by_stratum[name]
        random.Random(f"{seed}/{name}").shuffle(bags)
        wanted, taken = round(share * sum(len(b) for b in bags)), 0
        for bag in bags:
            if taken + len(bag) <= wanted:
                held.update(bag)
                taken += len(bag)
    return [i for i in range(len(groups)) if i not in held], sorted(held)


def folds(groups: Sequence[str], strata: Sequence[str], count: int, seed: int) -> np.ndarray:
    """The fold of each row, int32 `[n]` from 0: stratified, with equal `groups` in the same fold.

    Of each label (a group counts as its first row's) every fold gets about the same number of rows, and so in all:
    groups are shuffled, the large ones placed first, each where so far is least.
    """
    members: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    by_stratum: dict[str, list[list[int]]] = {}
    for rows in members.values():
        by_stratum.setdefault(strata[rows[0]], []).append(rows)
    fold_of, sizes = np.zeros(len(groups), np.int32), [0] * count
    for name in sorted(by_stratum):
        bags, here = by_stratum[name], [0] * count
        random.Random(f"{seed}/{name}").shuffle(bags)
        for bag in sorted(bags, key=len, reverse=True):
            fold = min(range(count), key=lambda k: (here[k], sizes[k]))
            fold_of[bag] = fold
            here[fold] += len(bag)
            sizes[fold] += len(bag)
    return fold_of


def hold_out(rows: Rows, data: DataConfig, task: str, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices to train on and to evaluate on: stratified by label, equal texts on one side.

    Raises:
        DataError: there are too few rows for both.
    """
    groups = texts_of(rows, data, task)
    strata = rows[data.label_column] if task == "classify" else [""] * len(rows)
    kept, held = split(groups, strata, share, seed)
    if not held or not kept:
        raise DataError(
            f"{rows.files[0]}: {len(rows)} rows are too few to hold out {share:.0%} of them for evaluation "
            f"(equal texts stay together; {len(set(groups))} differ); give an evaluation file"
        )
    return kept, held


def segment_columns(data: DataConfig, task: str) -> list[str]:
    """The columns that a model of the task reads, in the order of a row's segments."""
    names = (data.text_column, data.text_pair_column, data.choices_column if task == "choice" else "")
    return [name for name in names if name]


def texts_of(rows: Rows, data: DataConfig, task: str) -> list[str]:
    """What rows may not have in common with those they are judged by: their texts, or of a question its passage."""
    columns = [c for c in (data.text_column, data.text_pair_column) if c][-1 if task == "span" else 0 :]
    return ["\0".join(rows[c][i].strip().casefold() for c in columns) for i in range(len(rows))]


def batches_at_random(
    count: int, batch_size: int, seed: int, epoch: int, lengths: np.ndarray | None = None
) -> list[np.ndarray]:
    """The order of one training epoch of `count` rows: index arrays of at most `batch_size`.

    The same `(seed, epoch)` gives the same order. With `lengths` rows of like length go together, so that a batch holds
    little padding: rows are sorted inside pools of 64 batches, and the batches shuffled. What comes with length, such
    as a label, is then alike in a batch too.
    """
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(count)

    def cut(rows: np.ndarray, size: int) -> list[np.ndarray]:
        return [rows[i : i + size] for i in range(0, len(rows), size)]

    if lengths is None:
        return cut(order, batch_size)
    pools = (pool[np.argsort(lengths[pool], kind="stable")] for pool in cut(order, 64 * batch_size))
    batches = [batch for pool in pools for batch in cut(pool, batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def batches_in_order(lengths: np.ndarray, batch_size: int, counts: np.ndarray | None = None) -> list[np.ndarray]:
    """The order of an evaluation: rows from long to short, so memory trouble shows at once.

    Args:
        counts: windows of each row; a batch then has at most `batch_size` of them, or one row.
    """
    order = np.argsort(-lengths, kind="stable")
    if counts is None:
        return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    batches: list[list[int]] = []
    room = 0
    for row in order:
        if counts[row] > room:
            batches.append([])
            room = batch_size
        batches[-1].append(row)
        room -= counts[row]
    return [np.array(batch) for batch in batches]


# === Examples for TensorFlow ===


@dataclass(frozen=True)
class Examples:
    """Texts with their labels as numbers, as training and evaluation take them.

    Attributes:
        segments: lists of n strings: the texts, and the second texts of pairs; of choices last a list of n lists, all
            of one length and filled up with "" (`filled`).
        labels: an array whose first axis is n, or None: int32 `[n]` of classify, float32 `[n, classes]` of multilabel,
            float32 `[n]` of regress, int32 `[n, K, 3]` of tag (`tagging.targets`), int32 `[n, 2]` of span
            (`spans.targets`), int32 `[n]` of choice.
        references: what metrics compare with, where that is more than the labels: n times the UTF-8 passage and the
            list of right answers (span).
    """

    segments: tuple[list[Any], ...]
    labels: Any = None
    references: Any = None

    def __post_init__(self) -> None:
        for other in self.segments[1:]:
            if len(other) != len(self.segments[0]):
                raise DataError(f"{len(self.segments[0])} texts but {len(other)} second texts; each text needs one")

    def __len__(self) -> int:
        return len(self.segments[0])

    @property
    def truth(self) -> Any:
        """What metrics compare with."""
        return self.labels if self.references is None else self.references


def lengths(examples: Examples, text: Any, chunk: int = 1024, cut: bool = True, how: str = "row") -> np.ndarray:
    """Tokens of each row, or of the longest of each example, as they are or after cutting, int32 `[n]`.

    Args:
        text: a `text.Text`.
        how: the rows of an example, see `text.Text.read`.
    """
    counts = [np.zeros(0, np.int32)]
    for i in range(0, len(examples), chunk):
        part = [encoded(segment[i : i + chunk]) for segment in examples.segments]
        counts.append(text.count(*part, how=how) if cut else text.read(how, *part)["num_tokens"].numpy())
    return np.concatenate(counts)


def encoded(texts: Iterable[Any]) -> list[Any]:
    """UTF-8, also of strings that no decoder gives (lone surrogates); of lists of strings too."""
    return [text.encode("utf-8", "surrogatepass") if isinstance(text, str) else encoded(text) for text in texts]


def filled(choices: Sequence[Sequence[str]]) -> list[list[str]]:
    """Lists of choices, all as long as the longest; "" is no choice."""
    width = max(map(len, choices), default=0)
    return [[*row, *[""] * (width - len(row))] for row in choices]


Prepare = Callable[..., dict[str, Any]]
"""Segments as string tensors `[b]`, labels `[b, ...]`, and where rows are windows the number of each -> `features`,
`labels` and `weights` of a batch."""


def dataset(
    examples: Examples,
    prepare: Prepare,
    batches: list[np.ndarray],
    fixed: tuple[int, int] | None = None,
    windows: np.ndarray | None = None,
) -> Any:
    """A `tf.data.Dataset` of batches as training takes them, one element for each index array in `batches`.

    Args:
        prepare: makes a batch of strings and labels; `rows_of` is one.
        fixed: rows and tokens that every batch is padded to, where shapes must not change (XLA, TPU).
        windows: text and number int32 `[r, 2]` of each window, where the indices are of windows.

    Returns:
        Dicts of what `prepare` makes, `weights` (1, or 0 for a row that only fills up) among it, and `numbers` int32
        `[b]`, which rows these are, from 1; 0 only fills up. An empty index array gives an empty batch.
    """
    import tensorflow as tf

    segments = [tf.constant(encoded(values), tf.string) for values in examples.segments]
    labels = tf.zeros([len(examples)]) if examples.labels is None else tf.constant(examples.labels)
    flat = np.concatenate([*batches, np.zeros(0, np.int64)]).astype(np.int32)
    ragged = tf.RaggedTensor.from_row_lengths(flat, [len(b) for b in batches])

    def element(indices: Any) -> Any:
        which, extra = indices, []
        if windows is not None:
            picked = tf.gather(windows, indices)
            which, extra = picked[:, 0], [picked[:, 1]]
        made = prepare([tf.gather(s, which) for s in segments], tf.gather(labels, which), *extra)
        batch = made | {"numbers": indices + 1}
        return batch if fixed is None else tf.nest.map_structure(lambda t: _fill_up(t, fixed), batch)

    element = tf.autograph.experimental.do_not_convert(element)  # there is no control flow to convert
    return tf.data.Dataset.from_tensor_slices(ragged).map(element).prefetch(4)


def rows_of(text: Any, targets: Callable[[Any, Any], Any] | None = None) -> Prepare:
    """Each text is a row, or several where `text` makes several of it.

    Args:
        text: a `text.Text`, or a `tf.function` of one: it is traced for every dataset otherwise.
        targets: labels and features -> what is to be learnt, see `heads.Head.targets`; None takes the labels.
    """

    def prepare(segments: Sequence[Any], labels: Any) -> dict[str, Any]:
        import tensorflow as tf

        made = text(*segments)
        features = {name: made[name] for name in FEATURES if name in made}
        wanted = labels if targets is None else targets(labels, features)
        return {"features": features, "labels": wanted, "weights": tf.ones(tf.shape(labels)[:1])}

    return prepare


def _fill_up(tensor: Any, shape: tuple[int, int]) -> Any:
    """Pad `[b]`, `[b, t]` or `[b, s, t]` with zeros up to `shape`; sizes that are known stay."""
    import tensorflow as tf

    wanted = [shape[0], *(shape[1] if size is None else size for size in tensor.shape[1:])]
    padding = [(0, w - n) for w, n in zip(wanted, tf.unstack(tf.shape(tensor)), strict=True)]
    return tf.ensure_shape(tf.pad(tensor, padding), wanted)
