"""Files of entities (CoNLL columns, BIO and CLUENER JSON) and of questions (SQuAD, CMRC), as rows with their labels.

The label of a text with entities is a list of `(start, end, type)`, that of a question a list of `(start, answer)`, in
characters; a start of -1 is an answer that is not in the passage. What can be read in one way only is read so; what is
wrong with single rows is counted and listed, and too much of it is an error.

Rules: a line of CoNLL holds a word first and its tag last, with spaces or a tab between; blank lines end a sentence,
`-DOCSTART-` lines a document. The text of a sentence is its words with a space between. I- without anything to go on
with begins an entity, as conlleval has it; `--tag_scheme=iob2` or `bioes` refuses it. JSON is one object, an array of
them, or objects one after another, and ends of entities in `label` objects (CLUENER) are of the last character, in
lists behind it. Of entities that overlap the longest counts. An answer that is not where the file says is taken from
the nearest place that holds it.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from keras_bert.config import DataConfig, choose
from keras_bert.data import Rows, find, read, read_text
from keras_bert.errors import DataError
from keras_bert.tags import Span, spans_of

Say = Callable[[str], None]
TAG = re.compile(r"O|([BIESLU])-(\S.*)")
TABLES = (".csv", ".tsv")
"""Where texts alone can be read from."""
LISTED = 5


@dataclass
class Faults:
    """What is wrong with single rows of a file: counted, listed, and refused where it is too much.

    Args:
        say: gets the lines meant for people.
        share: rows with faults that are accepted.
    """

    say: Say
    share: float
    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, what: str, where: str) -> None:
        """Note a fault; `what` says it, and what was done, without the row."""
        self.found.setdefault(what, []).append(where)

    def report(self, path: str, rows: int) -> None:
        """Say what was found.

        Raises:
            DataError: there is too much of it, or nothing else.
        """
        count = sum(map(len, self.found.values()))
        for what, where in self.found.items():
            more = f" and {len(where) - LISTED} more" if len(where) > LISTED else ""
            self.say(f"warning: {path}: {what}: {', '.join(where[:LISTED])}{more}")
        if count > self.share * max(rows, 1):
            raise DataError(
                f"{path}: {count} faults in {rows} rows are more than {self.share:.0%}; mend the file, or accept them "
                "with --max_bad_share"
            )


@dataclass(frozen=True)
class Reading:
    """How files of entities and questions are read.

    Attributes:
        labelled: must there be labels?
        scheme: one of `SCHEMES`, for tags.
        max_bad_share: rows with faults that are accepted.
        say: gets the lines meant for people.
    """

    labelled: bool = True
    scheme: str = "auto"
    max_bad_share: float = 0.02
    say: Say = print


def read_labelled(task: str, pattern: str | Path, data: DataConfig, how: Reading | None = None) -> Rows:
    """The rows of one file or several, see `data.find`; the columns are those of `data`.

    Raises:
        DataError: nothing matches, or a file cannot be read, is broken, or has too many faults.
    """
    how = how or Reading()
    columns = [c for c in (data.text_column, data.text_pair_column, data.label_column if how.labelled else "") if c]
    if task not in READERS:
        return read(pattern, columns)
    kinds = {Path(path).suffix.lower() for path in find(pattern)}
    if not how.labelled and kinds <= {*TABLES, *[".jsonl"] * (task == "span")}:
        return read(pattern, columns)
    found = [READERS[task](path, data, how) for path in find(pattern)]
    names = [name for name in found[0].columns if all(name in rows.columns for rows in found)]
    merged = {name: [value for rows in found for value in rows[name]] for name in names}
    return Rows(merged, [f for r in found for f in r.files], [n for r in found for n in r.lines], found[0].unit)


# === Entities ===


def read_entities(path: str, data: DataConfig, how: Reading) -> Rows:
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
    return Rows(columns, [path] * len(texts), lines)


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
    for line, item in _objects(path):
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


def find_types(rows: Rows, column: str) -> tuple[str, ...]:
    """The types of all entities, in alphabetical order.

    Raises:
        DataError: there is no entity.
    """
    types = sorted({kind for spans in rows[column] for _, _, kind in spans})
    if not types:
        raise DataError(f"{rows.files[0]}: no row has an entity; is this a file of tags?")
    return tuple(types)


def encode_entities(rows: Rows, data: DataConfig, labels: Sequence[str]) -> np.ndarray:
    """Start and end in bytes and the id of the type of each entity, int32 `[rows, K, 3]`, filled up with -1.

    Raises:
        DataError: a type is not among `labels`, or an entity does not fit its text.
    """
    ids = {label: i for i, label in enumerate(labels)}
    most = max((len(spans) for spans in rows[data.label_column]), default=0)
    encoded = np.full((len(rows), max(most, 1), 3), -1, np.int32)
    for i, (text, spans) in enumerate(zip(rows[data.text_column], rows[data.label_column], strict=True)):
        places = _bytes_before(text) if spans else []
        for j, (start, end, kind) in enumerate(spans):
            if kind not in ids:
                raise DataError(f"{rows.where(i)}: entity type {kind!r} is not among the labels {list(labels)}")
            if not 0 <= start < end <= len(text):
                raise DataError(f"{rows.where(i)}: entity {start} to {end} does not fit its text")
            encoded[i, j] = places[start], places[end], ids[kind]
    return encoded


# === Questions ===


def read_questions(path: str, data: DataConfig, how: Reading) -> Rows:
    """A file of questions in the layout of SQuAD 1.1 and 2.0, which CMRC has too."""
    if Path(path).suffix.lower() in TABLES:
        raise DataError(f"{path}: answers are read from SQuAD's JSON, not from tables")
    faults = Faults(how.say, how.max_bad_share)
    rows: list[tuple[str, str, str, list[tuple[int, str]]]] = []
    seen: set[str] = set()
    count = 0
    for passage, qa, place in _questions(path):
        count += 1
        question, name = qa.get("question"), str(qa.get("id", count))
        if not isinstance(question, str):
            raise DataError(f"{path}: {place} has a question without text")
        if name in seen:
            faults.add("ids are there more than once, the first was kept", name)
            continue
        seen.add(name)
        if not passage.strip() and how.labelled:
            faults.add("passages are empty, the questions were left out", name)
            continue
        answers = [] if qa.get("is_impossible") else _answers(qa.get("answers") or [], f"{path}: question {name}")
        rows.append((name, question, passage, [_placed(passage, a, faults, name) for a in answers]))
    faults.report(path, count)
    if how.labelled and not any(answers for *_, answers in rows):
        raise DataError(f"{path}: no question has an answer; is this a file for training?")
    names = (data.id_column, data.text_column, data.text_pair_column, data.label_column)
    columns = {name: list(values) for name, values in zip(names, zip(*rows, strict=True), strict=False)}
    return Rows(columns, [path] * len(rows), list(range(1, len(rows) + 1)), "question")


def _questions(path: str) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Passage and question of each `qas` entry, and where it is."""
    ((_, content), *more) = _objects(path)
    articles = content.get("data")
    if more or not isinstance(articles, list):
        raise DataError(f"{path}: is not in the layout of SQuAD; expected one object with a list `data`")
    for i, article in enumerate(articles, 1):
        for j, paragraph in enumerate(_list(article, "paragraphs", f"{path}: article {i}"), 1):
            place = f"article {i}, paragraph {j}"
            qas = _list(paragraph, "qas", f"{path}: {place}")
            passage = paragraph.get("context")
            if not isinstance(passage, str):
                raise DataError(f"{path}: {place} has no context")
            for qa in qas:
                if not isinstance(qa, dict):
                    raise DataError(f"{path}: {place} has a question that is no object")
                yield passage, qa, place


def _list(item: Any, name: str, where: str) -> list[Any]:
    found = item.get(name) if isinstance(item, dict) else None
    if not isinstance(found, list):
        raise DataError(f"{where} has no list `{name}`")
    return found


def _answers(given: Any, where: str) -> list[tuple[int, str]]:
    try:
        found = [(a["answer_start"], a["text"]) for a in given]
    except (TypeError, KeyError) as error:
        raise DataError(f"{where}: an answer needs text and answer_start ({error})") from error
    for start, answer in found:
        if not isinstance(start, int) or not isinstance(answer, str):
            raise DataError(f"{where}: an answer needs text and answer_start, got {start!r} and {answer!r}")
    return found


def _placed(passage: str, answer: tuple[int, str], faults: Faults, name: str) -> tuple[int, str]:
    """The answer where the passage has it, without the white space around it."""
    start, text = answer
    start, text = start + len(text) - len(text.lstrip()), text.strip()
    if text and start >= 0 and passage.startswith(text, start):
        return start, text
    places = [m.start() for m in re.finditer(f"(?={re.escape(text)})", passage)] if text else []
    if not places:
        faults.add("answers are not in their passages, and cannot be learnt", name)
        return -1, text
    faults.add("answer_start is wrong, the nearest place was taken", name)
    return min(places, key=lambda place: abs(place - start)), text


def encode_answers(rows: Rows, data: DataConfig) -> np.ndarray:
    """Start and end of the first answer in bytes of the passage, int32 `[rows, 2]`; see `spans.targets`."""
    encoded = np.full((len(rows), 2), -1, np.int32)
    for i, (passage, answers) in enumerate(zip(rows[data.text_pair_column], rows[data.label_column], strict=True)):
        known = [(start, text) for start, text in answers if start >= 0]
        if known:
            start, text = known[0]
            if not passage.startswith(text, start):
                raise DataError(f"{rows.where(i)}: the answer {text!r} is not at {start} of its passage")
            before = len(passage[:start].encode("utf-8", "surrogatepass"))
            encoded[i] = before, before + len(text.encode("utf-8", "surrogatepass"))
        elif answers:
            encoded[i] = -2
    return encoded


READERS: dict[str, Callable[[str, DataConfig, Reading], Rows]] = {"tag": read_entities, "span": read_questions}
"""The tasks that have files of their own."""


# === Parts ===


def _objects(path: str) -> list[tuple[int, dict[str, Any]]]:
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


def _bytes_before(text: str) -> list[int]:
    """UTF-8 bytes before each character, and before the end."""
    sizes: Iterable[int] = (len(c.encode("utf-8", "surrogatepass")) for c in text)
    return np.concatenate([[0], np.cumsum(list(sizes), dtype=np.int64)]).astype(int).tolist()
