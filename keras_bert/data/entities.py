"""Files of entities: CoNLL, BIO and CLUENER JSON.

The label of a text is a list of `(start, end, type)` in characters. A line of CoNLL holds a word first and its tag
last, with spaces or a tab between; blank lines end a sentence, `-DOCSTART-` lines a document. The text of a sentence is
its words with a space between. I- without anything to go on with begins an entity, as conlleval has it;
`--tag_scheme=iob2` or `bioes` refuses it. JSON is one object, an array of them, or objects one after another, and ends
of entities in `label` objects (CLUENER) are of the last character, in lists behind it. Of entities that overlap the
longest counts.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_bert.config import DataConfig, HeadConfig, choose
from keras_bert.data.faults import TABLES, Faults, Reading
from keras_bert.data.source import FileSource, MakeTokenizer
from keras_bert.data.tables import Table, bytes_before, read_objects, read_text
from keras_bert.errors import DataError
from keras_bert.tags import Span, spans_of

TAG = re.compile(r"O|([BIESLU])-(\S.*)")


# === Entities ===


def read_entities(path: str, data: DataConfig, how: Reading) -> Table:
    """A file of texts with entities: JSON by its name, or CoNLL columns."""
    if Path(path).suffix.lower() in TABLES:
        raise DataError(f"{path}: entities are read from CoNLL columns (.txt, .conll) or JSON, not from tables")
    faults = Faults(how.say, how.max_bad_share)
    is_json = Path(path).suffix.lower() in (".json", ".jsonl")
    texts, labels, lines, ids = (_json_entities if is_json else _conll)(path, how, faults)
    if not texts:
        raise DataError(f"{path}: holds no text")
    faults.report(path, len(texts))
    columns: dict[str, list[Any]] = {data.text_column: texts, data.label_column: labels}
    if ids:
        columns[data.id_column] = ids
    return Table(columns, [path] * len(texts), lines)


Found = tuple[list[str], list[list[Span]], list[int], list[str]]
"""Texts, entities, line numbers and ids; no ids where not every text has one."""


def _conll(path: str, how: Reading, faults: Faults) -> Found:
    sentences: list[tuple[int, list[str], list[str]]] = []
    fresh, width = True, 0
    for number, line in enumerate(read_text(path).split("\n"), 1):
        line = line.rstrip("\r")
        fields = line.split("\t") if "\t" in line else line.split()
        if not line.strip() or fields[0] == "-DOCSTART-":
            fresh = True
            continue
        width = width or len(fields)
        if len(fields) != width or not all(f.strip() for f in (fields[0], fields[-1])):
            raise DataError(f"{path}, line {number}: {len(fields)} columns where the first line has {width}")
        if how.labelled and width == 1:
            raise DataError(f"{path}, line {number}: has no tag; expected lines of a word and its tag")
        if how.labelled and not TAG.fullmatch(fields[-1]):
            raise DataError(f"{path}, line {number}: {fields[-1]!r} is no tag; expected O, or a type such as B-PER")
        if fresh:
            sentences.append((number, [], []))
        fresh = False
        sentences[-1][1].append(fields[0].strip())
        sentences[-1][2].append(fields[-1] if how.labelled else "O")
    tags = [tags for _, _, tags in sentences]
    choose(SCHEMES, how.scheme, "tag scheme")(tags, lambda row, i: f"line {sentences[row][0] + i}", path, faults)
    found = [_joined(words, tags) for _, words, tags in sentences]
    return [text for text, _ in found], [spans for _, spans in found], [line for line, _, _ in sentences], []


def _joined(words: Sequence[str], tags: Sequence[str]) -> tuple[str, list[Span]]:
    """Words with spaces between, and the entities that the tags say, in characters of that text."""
    starts = np.concatenate([[0], np.cumsum([len(w) + 1 for w in words])]).tolist()
    return " ".join(words), [(starts[first], starts[end] - 1, kind) for first, end, kind in spans_of(tags)]


def _json_entities(path: str, how: Reading, faults: Faults) -> Found:
    texts, labels, lines, ids = [], [], [], []
    for line, item in read_objects(path):
        where = f"{path}, line {line}"
        words, tags = item.get("tokens", item.get("words")), item.get("ner_tags", item.get("tags", item.get("labels")))
        if isinstance(words, list) and all(isinstance(w, str) for w in words):
            tags = tags if how.labelled else ["O"] * len(words)
            if not isinstance(tags, list) or len(tags) != len(words):
                raise DataError(f"{where}: {len(words)} tokens need as many tags")
            wrong = [tag for tag in tags if not isinstance(tag, str) or not TAG.fullmatch(tag)]
            if wrong:
                raise DataError(f"{where}: {wrong[0]!r} is no tag; expected O, or a type such as B-PER")
            SCHEMES[how.scheme]([tags], lambda row, i, line=line: f"line {line}", path, faults)
            text, spans = _joined(words, tags)
        else:
            if not isinstance(item.get("text"), str):
                raise DataError(f"{where}: has no text; expected text and label, or tokens and tags")
            text = item["text"]
            given = item.get("label", item.get("entities", item.get("labels")))
            if given is None and how.labelled:
                raise DataError(f"{where}: has no label; training and evaluation need them")
            spans = _without_overlaps(_entities(given or [], text, where), faults, f"line {line}")
        texts.append(text)
        labels.append(spans)
        lines.append(line)
        ids += [str(item["id"])] if "id" in item else []
    return texts, labels, lines, ids if len(ids) == len(texts) else []


def _entities(given: Any, text: str, where: str) -> list[Span]:
    """Entities of CLUENER's `{type: {mention: [[first, last]]}}`, of `[[start, end, type]]`, or of objects."""
    found: list[tuple[Any, Any, Any]] = []
    mentions: list[tuple[Any, Any, Any]] = []
    try:
        if isinstance(given, dict):
            mentions = [(m, *place) for of in given.values() for m, places in of.items() for place in places]
            found = [(i, j + 1, kind) for kind, of in given.items() for places in of.values() for i, j in places]
        for entity in [] if isinstance(given, dict) else given:
            if isinstance(entity, dict):
                entity = entity["start"], entity["end"], entity.get("type", entity.get("label"))
            start, end, kind = entity
            found.append((start, end, kind))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise DataError(f"{where}: the label is no list of [start, end, type] ({error})") from error
    for start, end, kind in found:
        whole = isinstance(start, int) and isinstance(end, int) and isinstance(kind, str)
        if not whole or not kind or not 0 <= start < end <= len(text):
            raise DataError(f"{where}: entity {[start, end, kind]!r} does not fit a text of {len(text)} characters")
    for mention, first, last in mentions:
        if text[first : last + 1] != mention:
            raise DataError(f"{where}: {mention!r} is not at {first} to {last} of its text")
    return sorted(set(found))


def _without_overlaps(spans: Sequence[Span], faults: Faults, where: str) -> list[Span]:
    kept: list[Span] = []
    for span in sorted(spans, key=lambda s: (s[0] - s[1], s)):
        if any(span[0] < other[1] and other[0] < span[1] for other in kept):
            faults.add("entities overlap, the longest was kept", where)
        else:
            kept.append(span)
    return sorted(kept)


# --- Schemes: (tags of sentences, where a tag is, path, faults) ---

Where = Callable[..., str]


def _stray(tags: Sequence[str], prefixes: str) -> Iterator[int]:
    """Where a tag with one of the prefixes has nothing of its type to go on with."""
    before = "O"
    for i, tag in enumerate(tags):
        if tag[0] in prefixes and (before[0] not in "BI" or before[1:] != tag[1:]):
            yield i
        before = tag


def _auto(rows: Sequence[Sequence[str]], where: Where, path: str, faults: Faults) -> None:
    """IOB1 where more entities begin with I- than with a B- that it would not have; else those that do are faults."""
    strays = [(row, i) for row, tags in enumerate(rows) for i in _stray(tags, "IEL")]
    others = sum(len(list(_stray(tags, "BSU"))) for tags in rows)
    if len(strays) <= others:
        for row, i in strays:
            faults.add("I- without B- begins an entity", where(row, i))


def _any(rows: Sequence[Sequence[str]], where: Where, path: str, faults: Faults) -> None:
    """I- may begin an entity."""


def _iob2(rows: Sequence[Sequence[str]], where: Where, path: str, faults: Faults) -> None:
    """Every entity begins with B-."""
    for row, tags in enumerate(rows):
        for i, tag in enumerate(tags):
            if tag[0] in "ESLU":
                raise DataError(f"{path}, {where(row, i)}: {tag} is not of IOB2; try --tag_scheme=bioes")
        for i in _stray(tags, "I"):
            raise DataError(f"{path}, {where(row, i)}: {tags[i]} without B-; try --tag_scheme=auto")


def _bioes(rows: Sequence[Sequence[str]], where: Where, path: str, faults: Faults) -> None:
    """Every entity begins with B- and ends with E-, or is one S-; L- and U- say the same."""
    for row, tags in enumerate(rows):
        for i in _stray(tags, "IEL"):
            raise DataError(f"{path}, {where(row, i)}: {tags[i]} without B-; try --tag_scheme=auto")
        for i, tag in enumerate(tags):
            after = tags[i + 1] if i + 1 < len(tags) else "O"
            if tag[0] in "BI" and (after[0] not in "IEL" or after[1:] != tag[1:]):
                raise DataError(f"{path}, {where(row, i)}: {tag} without an end; try --tag_scheme=auto")


SCHEMES: dict[str, Callable[[Sequence[Sequence[str]], Where, str, Faults], None]] = {
    "auto": _auto,
    "iob1": _any,
    "iob2": _iob2,
    "bioes": _bioes,
}


def find_types(rows: Table, column: str) -> tuple[str, ...]:
    """The types of all entities, in alphabetical order.

    Raises:
        DataError: there is no entity.
    """
    types = sorted({kind for spans in rows[column] for _, _, kind in spans})
    if not types:
        raise DataError(f"{rows.files[0]}: no row has an entity; is this a file of tags?")
    return tuple(types)


def encode_entities(rows: Table, data: DataConfig, labels: Sequence[str]) -> np.ndarray:
    """Start and end in bytes and the id of the type of each entity, int32 `[rows, K, 3]`, filled up with -1.

    Raises:
        DataError: a type is not among `labels`, or an entity does not fit its text.
    """
    ids = {label: i for i, label in enumerate(labels)}
    most = max((len(spans) for spans in rows[data.label_column]), default=0)
    encoded = np.full((len(rows), max(most, 1), 3), -1, np.int32)
    for i, (text, spans) in enumerate(zip(rows[data.text_column], rows[data.label_column], strict=True)):
        places = bytes_before(text) if spans else []
        for j, (start, end, kind) in enumerate(spans):
            if kind not in ids:
                raise DataError(f"{rows.where(i)}: entity type {kind!r} is not among the labels {list(labels)}")
            if not 0 <= start < end <= len(text):
                raise DataError(f"{rows.where(i)}: entity {start} to {end} does not fit its text")
            encoded[i, j] = places[start], places[end], ids[kind]
    return encoded


class Entities(FileSource):
    """Texts with entities."""

    def read_file(self, path: str, data: DataConfig, how: Reading) -> Table:
        return read_entities(path, data, how)

    def value(self, label: Any) -> Any:
        return list(label)

    def find_labels(self, table: Table, data: DataConfig) -> tuple[str, ...]:
        return find_types(table, data.label_column)

    def encode(self, table: Table, data: DataConfig, config: HeadConfig, tokenizer: MakeTokenizer) -> tuple[Any, Any]:
        return encode_entities(table, data, config.labels), None
