"""A corpus as training reads it: any batch of any epoch by its number, so that there is no iterator to save.

The order of an epoch: shards are shuffled by (seed, epoch) and taken in groups, and the records of a group are
permuted. Batch `i` holds the records `i * batch_size` to `(i + 1) * batch_size` of all epochs laid end to end, so where
it lies is known from the numbers of records alone, and memory holds the order and the places of two groups. Records
are read by their place in the file, not through a memory map: a file that is cut while it is read is an error here,
and would end the process there.
"""

import functools
import itertools
import os
import re
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from keras_bert.config import CorpusConfig, from_dict
from keras_bert.data.tables import find
from keras_bert.errors import ConfigError, DataError
from keras_bert.files import sha256, size_of
from keras_bert.pretrain import tfrecords
from keras_bert.pretrain.columns import COLUMNS
from keras_bert.pretrain.corpus import BUILDING, MANIFEST, VERSION, read_json

GROUP = 8
"""Shards whose records are mixed."""
CHUNK = 1024

Batch = tuple[list[bytes], np.ndarray, np.ndarray]
"""Records, and for each its epoch and its number in the corpus, int64 `[b]`."""


class Shard(NamedTuple):
    """A file, and how many records it has."""

    path: str
    records: int


class Corpus:
    """Records of shards, numbered from 0 through all of them.

    Args:
        shards: files in their order; empty ones may be among them.
        features: what a record holds, for `tf.io.parse_example`.
        manifest: what the build said of them; empty for records of other origin.

    Example:
        corpus = Corpus.open("corpus")
        for records, epochs, indices in corpus.batches(batch_size=256, seed=1, start=step):
            examples = corpus.parse(tf.constant(records))
    """

    def __init__(self, shards: list[Shard], features: dict[str, Any], manifest: dict[str, Any] | None = None) -> None:
        self.shards, self.features, self.manifest = shards, features, manifest or {}
        self.format = "static" if "input_ids" in features else "dynamic"
        self.ends = np.cumsum([shard.records for shard in shards])
        self._open: OrderedDict[int, tuple[int, np.ndarray]] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls,
        source: str | Path,
        verify: bool = False,
        vocab_size: int | None = None,
        say: Callable[[str], object] | None = None,
    ) -> "Corpus":
        """Find a corpus and check it.

        Sizes are compared with the manifest at once, numbers of records when a shard is first read, checksums with
        each record. Records without a manifest (of google-research/bert's create_pretraining_data) are counted and
        checked now.

        Args:
            source: the directory of a corpus, or a glob or comma list of its shards or of other TFRecord files.
            verify: read everything, compare the hashes of files and look at each id.
            vocab_size: of the model; ids must be below it.
            say: takes a line for the person at the terminal; by default it goes to standard error.

        Raises:
            DataError: a file is missing, damaged, cut, packed, empty, of another kind, or does not fit; it is named,
                and the record where that is known.
        """
        shards, manifest = _find(str(source))
        if not manifest:
            line = f"warning: {shards[0].path}: no {MANIFEST} beside it; counting and checking {len(shards)} files"
            (say or functools.partial(print, file=sys.stderr))(line)
            shards = [Shard(shard.path, _count(shard.path)) for shard in shards]
        size = manifest.get("vocab_size", 0)
        if vocab_size is not None and size > vocab_size:
            raise DataError(f"{source}: made with {size:,} word pieces, more than the {vocab_size:,} of the model")
        shards = [shard for shard in shards if shard.records]
        if not shards:
            raise DataError(f"{source}: has no records")
        if manifest:
            try:
                config = from_dict(CorpusConfig, manifest["config"])
            except ConfigError as error:
                raise DataError(
                    f"{source}: {MANIFEST} has settings that this program does not know ({error})"
                ) from error
            columns = _listed(manifest, source)
            static = (config.max_seq_length, config.max_predictions_per_seq) if config.format == "static" else None
            features = _features(static, columns)
        else:
            features = _guess(shards[0])
        corpus = cls(shards, features, manifest)
        if verify or not manifest:
            corpus.check(vocab_size)
        return corpus

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; reading opens them again."""
        while self.__dict__.get("_open"):
            os.close(self._open.popitem()[1][0])

    # === Reading ===

    def batches(self, batch_size: int, seed: int, start: int = 0, part: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
        """Shuffled batches without end, from number `start` on; a batch may hold the end of one epoch and the
        beginning of the next.

        Args:
            batch_size: records of a whole batch.
            seed: of the order.
            start: the first batch.
            part: `(r, n)`: only the rows r, r + n, r + 2n... of each batch.
        """
        order = _Order([shard.records for shard in self.shards], seed)
        rank, count = part
        for first in itertools.count(start * batch_size, batch_size):
            epochs, offsets = np.divmod(np.arange(first + rank, first + batch_size, count), len(self))
            indices = np.empty_like(offsets)
            for epoch in np.unique(epochs):
                chosen = epochs == epoch
                indices[chosen] = order(int(epoch), offsets[chosen])
            yield self.read(indices), epochs, indices

    def in_order(self, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        """All records once, or the first `limit`, in their order; the last batch may be smaller."""
        end = len(self) if limit is None else min(limit, len(self))
        for first in range(0, end, batch_size):
            indices = np.arange(first, min(first + batch_size, end))
            yield self.read(indices), np.zeros_like(indices), indices

    def read(self, indices: np.ndarray) -> list[bytes]:
        """The records of these numbers.

        Raises:
            DataError: one cannot be read, or is damaged.
        """
        where = np.searchsorted(self.ends, indices, side="right")
        found: list[bytes] = [b""] * len(indices)
        with self._lock:
            for number in np.unique(where):
                rows = np.flatnonzero(where == number)
                shard = self.shards[number]
                descriptor, places = self._opened(int(number))
                inside = indices[rows] - (self.ends[number] - shard.records)
                for row, record in zip(
                    rows, tfrecords.read(descriptor, shard.path, places[inside], inside), strict=True
                ):
                    found[row] = record
        return found

    def _opened(self, number: int) -> tuple[int, np.ndarray]:
        """The descriptor of a shard and the places of its records; of the files used last, two groups stay open."""
        if number not in self._open:
            shard = self.shards[number]
            descriptor = _descriptor(shard.path)
            try:
                places = tfrecords.scan(descriptor, shard.path)
                if len(places) != shard.records:
                    raise DataError(
                        f"{shard.path}: has {len(places):,} records where {MANIFEST} says {shard.records:,}; "
                        "copy or build it again"
                    )
            except BaseException:
                os.close(descriptor)
                raise
            self._open[number] = descriptor, places
            if len(self._open) > 2 * GROUP:
                os.close(self._open.popitem(last=False)[1][0])
        self._open.move_to_end(number)
        return self._open[number]

    # === What is in a record ===

    def parse(self, records: Any) -> dict[str, Any]:
        """Records, strings `[b]`, as tensors.

        Dynamic: `token_ids` `[b, tokens]` and `segment_lengths` `[b, segments]` ragged int32, `pair_label` int32 `[b]`,
        and the further columns of the corpus: ragged `[b, tokens]` or `[b, runs]`, or `[b]`.
        Static: the original's names, int32 `[b, length]`, `masked_lm_weights` float32.
        """
        found = tf.io.parse_example(records, self.features)
        return {name: value if value.dtype == tf.float32 else tf.cast(value, tf.int32) for name, value in found.items()}

    def check(self, vocab_size: int | None = None) -> None:
        """Read every record and look at its ids; compare the hashes of files with the manifest.

        Raises:
            DataError: as `open`.
        """
        said = {shard["file"]: shard["sha256"] for shard in self.manifest.get("shards", ())}
        first = 0
        for shard, end in zip(self.shards, self.ends.tolist(), strict=True):
            for start in range(first, end, CHUNK):
                records = self.read(np.arange(start, min(start + CHUNK, end)))
                if self._fault(records, vocab_size):
                    faults = ((i, self._fault([record], vocab_size)) for i, record in enumerate(records))
                    i, fault = next((i, fault) for i, fault in faults if fault)
                    raise DataError(f"{shard.path}, record {start - first + i + 1}: {fault}")
            expected = said.get(Path(shard.path).name)
            if expected and sha256(shard.path) != expected:
                raise DataError(f"{shard.path}: is not the file that {MANIFEST} describes; copy or build it again")
            first = end

    def _fault(self, records: list[bytes], vocab_size: int | None) -> str:
        """What is wrong with these records; empty if nothing is."""
        try:
            examples = self.parse(tf.constant(records))
        except tf.errors.InvalidArgumentError as error:
            found = re.search(r"(?:Key|Feature): .*?(?= \[Op:|$)", error.message)
            return f"not as expected ({found[0] if found else error.message})"
        except UnicodeDecodeError:  # TensorFlow's own message quotes the bytes
            return "not a tf.train.Example"
        if self.format == "dynamic":
            sizes = examples["token_ids"].row_lengths().numpy()
            for name, value in examples.items():
                runs = name == "segment_lengths" or COLUMNS[name].per == "run"
                if runs and not np.all((tf.reduce_sum(value, axis=1).numpy() == sizes) & (sizes > 0)):
                    return f"{name} do not add up to the number of token_ids"
                if not runs and COLUMNS[name].per == "token" and not np.all(value.row_lengths().numpy() == sizes):
                    return f"{name} are not as many as the token_ids"
            ids = examples["token_ids"].flat_values.numpy()
        else:
            ids = np.concatenate([examples[name].numpy().ravel() for name in ("input_ids", "masked_lm_ids")])
        limit = vocab_size or np.iinfo(np.int32).max
        bad = ids[(ids < 0) | (ids >= limit)]
        return f"holds the id {bad[0]}; ids run from 0 to {limit - 1:,}" if len(bad) else ""


# === The order of an epoch ===


class _Order:
    """Which record stands at an offset of an epoch."""

    def __init__(self, counts: list[int], seed: int) -> None:
        self.counts, self.seed = np.array(counts), seed
        self.firsts = np.cumsum(self.counts) - self.counts
        self.plan = functools.lru_cache(maxsize=2)(self._plan)
        self.group = functools.lru_cache(maxsize=2)(self._group)

    def __call__(self, epoch: int, offsets: np.ndarray) -> np.ndarray:
        """Numbers of records for rising offsets, int64."""
        ends = self.plan(epoch)[1]
        groups = np.searchsorted(ends, offsets, side="right")
        parts = []
        for group in np.unique(groups).tolist():
            first = ends[group - 1] if group else 0
            parts.append(self.group(epoch, group)[offsets[groups == group] - first])
        return np.concatenate(parts)

    def _plan(self, epoch: int) -> tuple[list[np.ndarray], np.ndarray]:
        """The shards of each group, and where each group ends."""
        shards = np.random.default_rng((self.seed, epoch)).permutation(len(self.counts))
        groups = [shards[i : i + GROUP] for i in range(0, len(shards), GROUP)]
        return groups, np.cumsum([self.counts[group].sum() for group in groups])

    def _group(self, epoch: int, group: int) -> np.ndarray:
        shards = self.plan(epoch)[0][group]
        numbers = np.concatenate([self.firsts[s] + np.arange(self.counts[s]) for s in shards])
        return np.random.default_rng((self.seed, epoch, 1 + group)).permutation(numbers)


# === Finding a corpus ===


def _find(source: str) -> tuple[list[Shard], dict[str, Any]]:
    """The shards of a source, and its manifest, where it has one; sizes are checked."""
    folder = Path(source)
    if folder.is_dir():
        paths = sorted(str(p) for p in folder.iterdir() if p.name.endswith((".tfrecord", ".tf_record", ".tfrecords")))
    else:
        paths = find(source)
        folder = Path(paths[0]).parent
    if (folder / MANIFEST).exists():
        manifest = _read_manifest(folder / MANIFEST)
        listed = {str(folder / shard["file"]): shard for shard in manifest["shards"]}
        chosen = list(listed) if Path(source).is_dir() else paths
        for path in chosen:
            if path not in listed:
                raise DataError(f"{path}: is not in {folder / MANIFEST}; name the directory, or its shards alone")
            size = size_of(path, "tfrecord") if listed[path]["bytes"] else 0
            if size != listed[path]["bytes"]:
                raise DataError(
                    f"{path}: has {size:,} bytes where {MANIFEST} says {listed[path]['bytes']:,}; "
                    "it was cut or replaced: copy or build it again"
                )
        return [Shard(path, listed[path]["records"]) for path in chosen], manifest
    if (folder / BUILDING).exists():
        raise DataError(f"{folder}: the build is not finished; start the same `keras-bert corpus` again")
    if not paths:
        raise DataError(f"{folder}: holds no {MANIFEST} and no TFRecord files")
    for path in paths:
        size_of(path, "tfrecord")
    return [Shard(path, 0) for path in paths], {}


def _read_manifest(path: Path) -> dict[str, Any]:
    manifest = read_json(path)
    if manifest.get("version") != VERSION:
        raise DataError(f"{path}: is of version {manifest.get('version')}, this program reads {VERSION}")
    shards = manifest.get("shards")
    fields = {"file": str, "records": int, "bytes": int, "sha256": str}
    whole = isinstance(shards, list) and all(
        isinstance(s, dict) and all(isinstance(s.get(name), kind) for name, kind in fields.items()) for s in shards
    )
    if not whole or not isinstance(manifest.get("config"), dict) or not isinstance(manifest.get("vocab_size"), int):
        raise DataError(f"{path}: is not whole; build the corpus again")
    return manifest


def _descriptor(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _count(path: str) -> int:
    descriptor = _descriptor(path)
    try:
        return len(tfrecords.scan(descriptor, path))
    finally:
        os.close(descriptor)


def _listed(manifest: dict[str, Any], source: str | Path) -> tuple[str, ...]:
    """The further columns of a corpus; a manifest without a list has none.

    Raises:
        DataError: one is unknown here.
    """
    listed = manifest.get("columns", [])
    unknown = [name for name in listed if name not in COLUMNS] if isinstance(listed, list) else [listed]
    if unknown:
        raise DataError(f"{source}: {MANIFEST} lists columns that this program does not know ({unknown[0]!r})")
    return tuple(listed)


def _features(static: tuple[int, int] | None, columns: Iterable[str] = ()) -> dict[str, Any]:
    """What is in a record: dynamic with its further columns, or static with its longest row and most predictions."""
    if static is None:
        ragged = tf.io.RaggedFeature(tf.int64, row_splits_dtype=tf.int64)
        one = tf.io.FixedLenFeature([], tf.int64)
        kinds = {name: one if COLUMNS[name].per == "row" else ragged for name in columns}
        return {"token_ids": ragged, "segment_lengths": ragged, "pair_label": one} | kinds
    length, predictions = static
    return {
        **{name: tf.io.FixedLenFeature([length], tf.int64) for name in ("input_ids", "input_mask", "segment_ids")},
        "masked_lm_positions": tf.io.FixedLenFeature([predictions], tf.int64),
        "masked_lm_ids": tf.io.FixedLenFeature([predictions], tf.int64),
        "masked_lm_weights": tf.io.FixedLenFeature([predictions], tf.float32),
        "next_sentence_labels": tf.io.FixedLenFeature([1], tf.int64),
    }


def _guess(shard: Shard) -> dict[str, Any]:
    """What is in the records of a file, by its first one."""
    descriptor = _descriptor(shard.path)
    try:
        (record,) = tfrecords.read(descriptor, shard.path, tfrecords.scan(descriptor, shard.path)[:1], np.arange(1))
    finally:
        os.close(descriptor)
    try:
        found = tf.train.Example.FromString(record).features.feature
    except DecodeError as error:
        raise DataError(f"{shard.path}, record 1: not a tf.train.Example") from error
    if "token_ids" in found:
        return _features(None, [name for name, column in COLUMNS.items() if column.make and name in found])
    if "input_ids" in found and "masked_lm_ids" in found:
        return _features((len(found["input_ids"].int64_list.value), len(found["masked_lm_ids"].int64_list.value)))
    names = ", ".join(sorted(found)) or "nothing"
    raise DataError(
        f"{shard.path}, record 1: holds {names}; rows to pretrain on have token_ids, or input_ids and masks"
    )
