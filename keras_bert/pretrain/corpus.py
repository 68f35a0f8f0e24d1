"""Text to a corpus of rows to pretrain on: TFRecord shards and a manifest.

The input, as one long stream of bytes, is shared out over shards, and one pure function makes a shard from its share:
its seed is the seed of the corpus and its own number, it writes under a temporary name and renames, and what is there
already is not built again. So shards can be built in any order, by any number of processes or machines, with the same
result; a build that was killed goes on where it was.

Two formats:

  dynamic   int64 features `token_ids` (the ids of all segments one after another, without [CLS] and [SEP]),
            `segment_lengths` (one or two numbers), `pair_label` (-1 where there is no sentence task), and the further
            columns that were asked for (`columns.COLUMNS`), which the manifest lists under "columns";
  static    what google-research/bert's create_pretraining_data writes, draw by draw, its masks included. Shard 0 of a
            corpus of one shard has its records in its order.

Memory: a process holds a pool of documents (`POOL` tokens, at most three times that), from which the partners of
the next sentence task are drawn; longer documents are taken in parts. Static rows are shuffled, as the original does
it, within their shard, whose rows a process holds; more shards need less memory.
"""

import functools
import hashlib
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, TextIO

from keras_bert.config import CorpusConfig, choose, dumps, to_dict
from keras_bert.errors import ConfigError, DataError, KerasBertError
from keras_bert.files import replacing, size_of, write_atomic
from keras_bert.pretrain import documents, pairs, tfrecords
from keras_bert.pretrain.columns import CorpusColumns, Token, choose_columns
from keras_bert.pretrain.documents import Part
from keras_bert.pretrain.pairs import Tokens
from keras_bert.progress import Progress
from keras_bert.text.learning import splitter
from keras_bert.text.vocabulary import fingerprint, read_vocabulary
from keras_bert.text.wordpiece import WordPiece

MANIFEST = "manifest.json"
BUILDING = "building.json"
VOCABULARY = "vocab.txt"
"""A copy of the one that the rows were made with, for training."""
VERSION = 1
SHARD = "shard-{:05d}-of-{:05d}.tfrecord"
POOL = 4_000_000
"""Tokens of the documents that partners are drawn from."""
LARGEST, SMALLEST, USUAL = 32_000_000, 1_000_000, 16
"""Bytes of text that make up a shard by default: at most, and at least as long as there are fewer shards than usual."""
CHUNK = 4096
COUNTS = ("documents", "sentences", "records", "tokens", "row_tokens", "text_bytes", "bytes")


@dataclass(frozen=True)
class ShardJob:
    """One shard to build: all that its worker needs to know."""

    number: int
    parts: tuple[Part, ...]
    output: str
    vocab_file: str
    config: CorpusConfig


class Document(NamedTuple):
    """The tokens of sentences; parts of one long document have the same number."""

    number: int
    sentences: list[Tokens]


def build(
    config: CorpusConfig,
    files: Sequence[str],
    vocab_file: str,
    output_dir: str | Path,
    num_shards: int = 0,
    num_processes: int = 0,
    overwrite: bool = False,
    run: Callable[[Sequence[ShardJob]], None] | None = None,
    stream: TextIO | None = sys.stderr,
) -> dict[str, Any]:
    """Build a corpus, or what is missing of it.

    Args:
        config: how text becomes rows.
        files: text, jsonl or Wikipedia extracts, see `documents`.
        vocab_file: word pieces, one a line.
        output_dir: where shards and manifest go.
        num_shards: 0 decides by the size of the texts.
        num_processes: 0 is one for each core.
        overwrite: replace another corpus in that directory.
        run: what has all jobs done, anywhere; by default processes of this machine.
        stream: where to show progress.

    Returns:
        The manifest.

    Raises:
        ConfigError: the directory holds something else, or cannot be written.
        DataError: a file cannot be read, or its texts give no rows.
    """
    check(config)
    folder = Path(output_dir)
    vocabulary = read_vocabulary(vocab_file)
    if config.format == "static" and "[MASK]" not in vocabulary:
        raise DataError(f"{vocab_file}: has no [MASK], which static masks need")
    inputs = [
        (path, documents.kind_of(path) if config.input_format == "auto" else config.input_format, size)
        for path, size in [(path, size_of(path, "txt")) for path in files]
    ]
    total = sum(size for _, _, size in inputs)
    num_shards = num_shards or max(-(-total // LARGEST), min(USUAL, total // SMALLEST), 1)
    settings = to_dict(config)
    columns = choose_columns(settings.pop("columns"))
    plan = {
        "version": VERSION,
        "config": settings,
        "inputs": [{"path": path, "kind": kind, "bytes": size} for path, kind, size in inputs],
        "vocabulary_sha256": fingerprint(vocabulary),
        "vocab_size": len(vocabulary),
        "num_shards": num_shards,
    }
    if columns:
        plan["columns"] = list(columns)
    done = _prepare(folder, plan, vocabulary, overwrite)
    if done:
        return done
    jobs = [
        ShardJob(i, tuple(parts), str(folder / SHARD.format(i, num_shards)), vocab_file, config)
        for i, parts in enumerate(documents.share(inputs, num_shards))
    ]
    missing = [job for job in jobs if finished(job) is None]
    if run:
        run(missing)
    else:
        run_local(missing, num_processes, stream)
    shards = [finished(job) for job in jobs]
    lost = [job.output for job, shard in zip(jobs, shards, strict=True) if shard is None]
    if lost:
        raise DataError(f"{lost[0]}: was not built; start the same command again")
    return _conclude(folder, plan, [shard for shard in shards if shard])


def check(config: CorpusConfig) -> None:
    """Look up the names in `config` before any work.

    Raises:
        ConfigError: one is in no row of its table, or static rows were to have further columns.
    """
    choose(pairs.PAIRS, config.pairs, "pairs")
    if config.sentences != "auto":
        choose(documents.SENTENCES, config.sentences, "sentences")
    if config.input_format != "auto":
        choose(documents.READERS, config.input_format, "input_format")
    if choose_columns(config.columns) and config.format == "static":
        raise ConfigError("--columns is for --format=dynamic; the records of the original have no place for more")


def _prepare(folder: Path, plan: dict[str, Any], vocabulary: Sequence[str], overwrite: bool) -> dict[str, Any] | None:
    """Make the directory ready; the manifest, if it holds this very corpus already.

    Raises:
        ConfigError: it holds something else, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output_dir {folder}: cannot be made ({error.strerror})") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"--output_dir {folder}: no permission to write there")
    if overwrite:
        for path in folder.iterdir():
            if path.name in (MANIFEST, BUILDING, VOCABULARY) or path.name.startswith(("shard-", ".shard-")):
                path.unlink()
    found = next((read_json(folder / name) for name in (MANIFEST, BUILDING) if (folder / name).exists()), None)
    if found is None and any(folder.iterdir()) and not overwrite:
        raise ConfigError(f"--output_dir {folder}: holds other files; name a new directory, or --overwrite")
    other = sorted(name for name in {*plan, "columns"} if found and found.get(name) != plan.get(name))
    if other:
        raise ConfigError(
            f"--output_dir {folder}: holds another corpus (other {', '.join(other)}); "
            "name a new directory, or --overwrite"
        )
    for path in folder.glob(".shard-*.tmp"):  # of a build that was killed
        path.unlink()
    if found is None:
        write_atomic(folder / BUILDING, dumps(plan))
        write_atomic(folder / VOCABULARY, "".join(f"{piece}\n" for piece in vocabulary))
    return found if found and "shards" in found else None


def _conclude(folder: Path, plan: dict[str, Any], shards: list[dict[str, Any]]) -> dict[str, Any]:
    totals = {name: sum(shard[name] for shard in shards) for name in COUNTS}
    if not totals["records"]:
        raise DataError(
            f"{plan['inputs'][0]['path']}: no rows; the texts hold no sentences for {plan['config']['pairs']}"
        )
    manifest = plan | {"totals": totals, "shards": shards}
    write_atomic(folder / MANIFEST, dumps(manifest))
    for shard in shards:
        _stub(folder / shard["file"]).unlink()
    (folder / BUILDING).unlink()
    return manifest


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        DataError: it cannot be read or is none.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error}); build the corpus again") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: holds a {type(found).__name__}, not an object; build the corpus again")
    return found


# === Many shards ===


def run_local(jobs: Sequence[ShardJob], num_processes: int = 0, stream: TextIO | None = sys.stderr) -> None:
    """Build shards in processes of this machine, 0 for one a core.

    Raises:
        DataError: what the first shard that fails raises; those that are finished stay.
        KerasBertError: a process died.
    """
    num_processes = min(num_processes or os.cpu_count() or 1, len(jobs))
    sizes = {job.number: sum(part.stop - part.start for part in job.parts) // 1000 for job in jobs}
    with Progress("building, in kB of text", total=sum(sizes.values()), stream=stream) as progress:
        if num_processes <= 1:
            for job in jobs:
                build_shard(job)
                progress.add(sizes[job.number])
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(num_processes, mp_context=context) as pool:
            futures = {pool.submit(build_shard, job): job.number for job in jobs}
            try:
                for future in as_completed(futures):
                    future.result()
                    progress.add(sizes[futures[future]])
            except BrokenProcessPool as error:
                raise KerasBertError(
                    "a process died, perhaps for want of memory; what is finished is kept: "
                    "start again with fewer --num_processes"
                ) from error
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


# === One shard ===


def finished(job: ShardJob) -> dict[str, Any] | None:
    """What is known of a shard that is there already."""
    stub, output = _stub(Path(job.output)), Path(job.output)
    if not stub.exists() or not output.exists():
        return None
    shard = read_json(stub)
    return shard if shard.get("bytes") == output.stat().st_size else None


def _stub(shard: Path) -> Path:
    return shard.with_suffix(".json")


def build_shard(job: ShardJob) -> dict[str, Any]:
    """Build one shard, unless it is there, and return its line of the manifest."""
    known = finished(job)
    if known is not None:
        return known
    config = job.config
    tokenizer = _tokenizer(job.vocab_file, config.do_lower_case, config.flavour, config.columns)
    rng = Random(config.random_seed if not job.number else f"{config.random_seed}/{job.number}")
    counts = dict.fromkeys(COUNTS, 0)
    counts["text_bytes"] = sum(part.stop - part.start for part in job.parts)
    stream = _read(job, tokenizer, counts)
    records = FORMATS[config.format](stream, job, tokenizer, rng, counts)
    digest = hashlib.sha256()
    output = Path(job.output)
    with replacing(output) as temporary, open(temporary, "wb") as file:
        while chunk := list(islice(records, CHUNK)):
            data = tfrecords.frame(chunk)
            file.write(data)
            digest.update(data)
            counts["records"] += len(chunk)
            counts["bytes"] += len(data)
    shard = {"file": output.name, **counts, "sha256": digest.hexdigest()}
    write_atomic(_stub(output), dumps(shard))
    return shard


def _read(job: ShardJob, tokenizer: "SentenceTokenizer", counts: dict[str, int]) -> Iterator[Document]:
    """The documents of a shard; long ones in parts, which are counted as one."""
    config = job.config
    static = config.format == "static"
    longest = sys.maxsize if static else pairs.PAIRS[config.pairs].room(config.max_seq_length)
    number, size = 0, 0
    found: list[Tokens] = []
    for part in job.parts:
        usual = "lines" if part.kind == "text" else "punctuation"
        split = documents.SENTENCES[usual if config.sentences == "auto" else config.sentences]
        # For the original, the first lines of a file go on with the last document of the file before.
        ends = () if static and part.kind == "text" else (None,)
        for paragraph in chain(documents.paragraphs(part, config.text_column), ends):
            for sentence in split(paragraph) if paragraph else ():
                tokens = tokenizer(sentence)
                counts["tokens"] += len(tokens)
                counts["sentences"] += bool(tokens)
                size += len(tokens)
                found += [tokens[i : i + longest] for i in range(0, len(tokens), longest)]
            if found and (paragraph is None or (size >= POOL and not static)):
                yield Document(number, found)
                found, size = [], 0
            if paragraph is None:
                number += 1
    if found:
        yield Document(number, found)


class SentenceTokenizer:
    """Sentences to tokens, equal to `WordPiece`, which does the first of equal words: the others are remembered.

    A token is its id, or, if the corpus has columns of tokens, a tuple; see `columns.Token`.
    """

    REMEMBERED = 500_000
    LONGEST = 32

    def __init__(self, vocab_file: str, do_lower_case: bool, flavour: str, columns: str = "") -> None:
        vocabulary = read_vocabulary(vocab_file)
        self.columns = CorpusColumns(choose_columns(columns))
        self.wordpiece = WordPiece(vocabulary, do_lower_case, flavour)
        self.index = self.wordpiece.index
        self.ids = list(self.index.values())
        self.suffixes = frozenset(i for piece, i in self.index.items() if piece.startswith("##"))
        self.split = splitter(do_lower_case, flavour)
        self.tokenize = self._with_columns if self.columns.tokens else self._of_chunk
        self.words = _Memory(self._of_word, self.REMEMBERED)
        self.chunks = _Memory(self.tokenize, self.REMEMBERED)

    def __call__(self, sentence: str) -> Tokens:
        """The tokens of a sentence; no rule looks beyond a space, so the parts between spaces can be remembered."""
        found: Tokens = []
        for chunk in sentence.split(" "):
            found += self.chunks[chunk] if len(chunk) <= self.LONGEST else self.tokenize(chunk)
        return found

    def _with_columns(self, chunk: str) -> tuple[Token, ...]:
        return self.columns.attach(chunk, self.wordpiece.tokenize(chunk))

    def _of_chunk(self, chunk: str) -> tuple[Token, ...]:
        return tuple(chain.from_iterable(map(self.words.__getitem__, self.split(chunk))))

    def _of_word(self, word: str) -> tuple[Token, ...]:
        return tuple(self.index[piece] for piece, _, _ in self.wordpiece.pieces(word))


class _Memory(dict[str, tuple[Token, ...]]):
    """Remembers what `make` returned, and forgets all when there is too much of it."""

    def __init__(self, make: Callable[[str], tuple[Token, ...]], limit: int) -> None:
        super().__init__()
        self.make, self.limit = make, limit

    def __missing__(self, key: str) -> tuple[Token, ...]:
        if len(self) >= self.limit:
            self.clear()
        found = self[key] = self.make(key)
        return found


@functools.lru_cache(maxsize=1)
def _tokenizer(vocab_file: str, do_lower_case: bool, flavour: str, columns: str) -> SentenceTokenizer:
    return SentenceTokenizer(vocab_file, do_lower_case, flavour, columns)


# === Formats ===


def _dynamic(
    stream: Iterator[Document], job: ShardJob, tokenizer: SentenceTokenizer, rng: Random, counts: dict[str, int]
) -> Iterator[bytes]:
    """Rows without masks, in the order of the documents."""
    config = job.config
    kind = pairs.PAIRS[config.pairs]
    room = kind.room(config.max_seq_length)
    for pool in _pools(stream, counts):
        for document in pool * config.copies:
            other = functools.partial(_partner, pool, document, rng, job)
            for row in pairs.rows(document.sentences, kind.draw, other, room, config.short_seq_prob, rng):
                lengths = [len(segment) for segment in row.segments]
                counts["row_tokens"] += sum(lengths) + 1 + len(lengths)
                columns = tokenizer.columns.of_row(row.segments, document.number)
                record = {"token_ids": columns.pop("token_ids"), "segment_lengths": lengths, "pair_label": [row.label]}
                yield tfrecords.example({name: tfrecords.int64s(values) for name, values in (record | columns).items()})


def _pools(stream: Iterator[Document], counts: dict[str, int]) -> Iterator[list[Document]]:
    """Documents in lists of about `POOL` tokens, the last up to twice that, so that it too has partners."""
    ready: list[Document] = []
    pool: list[Document] = []
    size, last = 0, -1
    for document in stream:
        pool.append(document)
        size += sum(map(len, document.sentences))
        counts["documents"] += document.number != last
        last = document.number
        if size >= POOL and pool[0].number != last:
            if ready:
                yield ready
            ready, pool, size = pool, [], 0
    if ready or pool:
        yield ready + pool


def _partner(pool: Sequence[Document], document: Document, rng: Random, job: ShardJob) -> list[Tokens]:
    """The sentences of any other document of the pool; numbers in a pool never fall.

    Raises:
        DataError: there is none.
    """
    if pool[0].number == pool[-1].number:
        paths = ", ".join(dict.fromkeys(part.path for part in job.parts))
        raise DataError(
            f"{paths}: shard {job.number} has one document only, so none to take other sentences from; use fewer "
            "--num_shards, separate documents by blank lines, or choose --pairs=sentence_order or none"
        )
    while (other := rng.choice(pool)).number == document.number:
        pass
    return other.sentences


def _static(
    stream: Iterator[Document], job: ShardJob, tokenizer: SentenceTokenizer, rng: Random, counts: dict[str, int]
) -> Iterator[bytes]:
    """Rows with masks, shuffled: what the original draws, in the order in which it draws it."""
    config = job.config
    kind = pairs.PAIRS[config.pairs]
    pair = pairs.original_next_sentence if config.pairs == "next_sentence" else kind.draw
    room = kind.room(config.max_seq_length)
    everything = [document.sentences for document in stream]
    counts["documents"] = len(everything)
    rng.shuffle(everything)
    records = []
    for _ in range(config.copies):
        for i, document in enumerate(everything):
            other = functools.partial(_original_partner, everything, i, rng)
            for row in pairs.rows(document, pair, other, room, config.short_seq_prob, rng):
                counts["row_tokens"] += sum(map(len, row.segments)) + 1 + len(row.segments)
                records.append(_static_record(row, config, tokenizer, rng))
    rng.shuffle(records)
    yield from records


def _original_partner(everything: list[list[Tokens]], own: int, rng: Random) -> list[Tokens]:
    """Any other document; the original takes the document itself after ten draws of it."""
    for _ in range(10):
        number = rng.randint(0, len(everything) - 1)
        if number != own:
            break
    return everything[number]


def _static_record(row: pairs.Row, config: CorpusConfig, tokenizer: SentenceTokenizer, rng: Random) -> bytes:
    ids, segment_ids = [tokenizer.index["[CLS]"]], [0]
    candidates: list[list[int]] = []
    for number, segment in enumerate(row.segments):
        for token in segment:
            if config.do_whole_word_mask and candidates and token in tokenizer.suffixes:
                candidates[-1].append(len(ids))
            else:
                candidates.append([len(ids)])
            ids.append(token)
        ids.append(tokenizer.index["[SEP]"])
        segment_ids += [number] * (len(segment) + 1)
    original = list(ids)
    wanted = min(config.max_predictions_per_seq, max(1, round(len(ids) * config.masked_lm_prob)))
    positions: list[int] = []
    rng.shuffle(candidates)
    for unit in candidates:
        if len(positions) >= wanted:
            break
        if len(positions) + len(unit) > wanted:
            continue
        for position in unit:
            ids[position] = _replacement(ids[position], tokenizer, rng)
        positions += unit
    positions.sort()
    length, predictions = config.max_seq_length - len(ids), config.max_predictions_per_seq - len(positions)
    return tfrecords.example(
        {
            "input_ids": tfrecords.int64s(ids + [0] * length),
            "input_mask": tfrecords.int64s([1] * len(ids) + [0] * length),
            "segment_ids": tfrecords.int64s(segment_ids + [0] * length),
            "masked_lm_positions": tfrecords.int64s(positions + [0] * predictions),
            "masked_lm_ids": tfrecords.int64s([original[p] for p in positions] + [0] * predictions),
            "masked_lm_weights": tfrecords.floats([1.0] * len(positions) + [0.0] * predictions),
            "next_sentence_labels": tfrecords.int64s([max(row.label, 0)]),
        }
    )


def _replacement(token: int, tokenizer: SentenceTokenizer, rng: Random) -> int:
    """[MASK], or the token itself, or any: 80, 10 and 10 %."""
    if rng.random() < 0.8:
        return tokenizer.index["[MASK]"]
    if rng.random() < 0.5:
        return token
    return tokenizer.ids[rng.randint(0, len(tokenizer.ids) - 1)]


Formatter = Callable[[Iterator[Document], ShardJob, SentenceTokenizer, Random, dict[str, int]], Iterator[bytes]]
FORMATS: dict[str, Formatter] = {"dynamic": _dynamic, "static": _static}
