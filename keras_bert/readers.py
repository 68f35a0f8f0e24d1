"""Files of entities (CoNLL, BIO and CLUENER JSON), of questions (SQuAD, CMRC) and of choices, as rows with labels.

The label of a text with entities is a list of `(start, end, type)`, that of a question a list of `(start, answer)`, in
characters; a start of -1 is an answer that is not in the passage. That of choices is the number of the right one. What
can be read in one way only is read so; what is wrong with single rows is counted and listed, and too much of it is an
error.

Rules: a line of CoNLL holds a word first and its tag last, with spaces or a tab between; blank lines end a sentence,
`-DOCSTART-` lines a document. The text of a sentence is its words with a space between. I- without anything to go on
with begins an entity, as conlleval has it; `--tag_scheme=iob2` or `bioes` refuses it. JSON is one object, an array of
them, or objects one after another, and ends of entities in `label` objects (CLUENER) are of the last character, in
lists behind it. Of entities that overlap the longest counts. An answer that is not where the file says is taken from
the nearest place that holds it. All labels of a file of choices are said in one way: by what the file calls a choice,
by number from 0, by letter, or by text.
"""

import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from keras_bert.config import DataConfig, choose
from keras_bert.data import Rows, encode_labels, find, read, read_text
from keras_bert.errors import DataError
from keras_bert.tags import Span, spans_of
from keras_bert.vocabulary import MASK
from keras_bert.wordpiece import UNKNOWN, WordPiece

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
    if not how.labelled and task != "choice" and kinds <= {*TABLES, *[".jsonl"] * (task == "span")}:
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


# === Choices ===


@dataclass(frozen=True)
class Question:
    """A question as a file has it: where, its columns, its choices, and what the file calls them, if it does."""

    line: int
    columns: dict[str, str]
    choices: list[str]
    names: list[str]


def read_choices(path: str, data: DataConfig, how: Reading) -> Rows:
    """A file of questions with choices: a table, JSON, CommonsenseQA's or C3's.

    A choice that is empty is none. In CommonsenseQA's layout the text is the stem of the question; in C3's the passage,
    and the second text is the question.
    """
    columns = [c for c in (data.text_column, data.text_pair_column, data.label_column if how.labelled else "") if c]
    if data.choices_column in (*columns, data.label_column):
        raise DataError(f"{path}: --choices_column={data.choices_column} is also the column of a text or of the label")
    unit = "line"
    if Path(path).suffix.lower() in TABLES:
        found = _table_choices(path, data, columns)
    else:
        items = _c3(path, data)
        unit = "question" if items else "line"
        found = [_json_choices(f"{path}, {unit} {n}", n, item, data) for n, item in items or _objects(path)]
    for question in found:
        where = f"{path}, {unit} {question.line}"
        missing = [name for name in columns if name not in question.columns]
        if missing:
            raise DataError(f"{where}: has no {', '.join(missing)}; it has {', '.join(question.columns)}")
        if sum(bool(choice) for choice in question.choices) < 2:
            raise DataError(f"{where}: needs two choices at least, got {question.choices}")
    kept = [data.text_column, *[data.text_pair_column] * bool(data.text_pair_column)]
    kept += [data.id_column] * all(data.id_column in question.columns for question in found)
    table: dict[str, list[Any]] = {name: [q.columns[name] for q in found] for name in kept}
    table[data.choices_column] = [q.choices for q in found]
    if how.labelled:
        table[data.label_column] = _right(found, data.label_column, lambda q: f"{path}, {unit} {q.line}")
    return Rows(table, [path] * len(found), [q.line for q in found], unit)


def _table_choices(path: str, data: DataConfig, columns: Sequence[str]) -> list[Question]:
    rows = read(path, columns)
    names = _choice_columns(f"{path}, line 1", list(rows.columns), data.choices_column)
    return [
        Question(line, {name: rows[name][i] for name in rows.columns}, [rows[name][i] for name in names], [])
        for i, line in enumerate(rows.lines)
    ]


def _choice_columns(where: str, columns: Sequence[str], wanted: str) -> list[str]:
    """The columns of choices: a comma list of them, or those of a prefix and a number, such as choice0 and choice1."""
    names = wanted.split(",")
    if len(names) == 1:
        numbered = re.compile(re.escape(wanted.removesuffix("s")) + r"s?_?([0-9]+)")
        found = {int(match[1]): match[0] for match in map(numbered.fullmatch, columns) if match}
        names = [found[number] for number in sorted(found)]
    if len(names) < 2 or not set(names) <= set(columns):
        raise DataError(
            f"{where}: has no choices under {wanted!r} (--choices_column); its columns are {', '.join(columns)}"
        )
    return names


def _json_choices(where: str, line: int, item: dict[str, Any], data: DataConfig) -> Question:
    stem = item.get("question")
    if isinstance(stem, dict):  # CommonsenseQA, ARC, OpenBookQA
        item = item | {data.text_column: stem.get("stem"), data.choices_column: stem.get("choices")}
    elif isinstance(stem, str):  # the same, as Hugging Face has them
        item = {data.text_column: stem} | item
    if "answerKey" in item:
        item = {data.label_column: item["answerKey"]} | item
    given: Any = item.get(data.choices_column)
    if given is None:
        given = [item[name] for name in _choice_columns(where, list(item), data.choices_column)]
    names: list[Any] = []
    if isinstance(given, dict):
        names, given = given.get("label", []), given.get("text")
    elif isinstance(given, list) and all(isinstance(one, dict) for one in given):
        names, given = [one.get("label") for one in given], [one.get("text") for one in given]
    if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
        raise DataError(f"{where}: {data.choices_column} is no list of choices")
    if names and (len(names) != len(given) or not all(isinstance(name, str) for name in names)):
        raise DataError(f"{where}: a choice needs text and label")
    plain = {name: value for name, value in item.items() if isinstance(value, str | int | float)}
    columns = {name: value if isinstance(value, str) else json.dumps(value) for name, value in plain.items()}
    return Question(line, columns, given, names)


def _c3(path: str, data: DataConfig) -> list[tuple[int, dict[str, Any]]]:
    """The questions of C3: `[[lines of a passage], [{question, choice, answer}], id]` each; none where it is no C3."""
    content = read_text(path).lstrip()
    if not re.match(r"\[\s*\[", content):
        return []
    try:
        items = json.loads(content)
        found = [
            {
                data.text_column: "\n".join(passage),
                data.text_pair_column: asked["question"],
                data.choices_column: asked["choice"],
                data.id_column: f"{name}-{number}",
                **({data.label_column: asked["answer"]} if "answer" in asked else {}),
            }
            for passage, questions, name in items
            for number, asked in enumerate(questions, 1)
        ]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(f"{path}: is not in the layout of C3 ({error})") from error
    if not data.text_pair_column:
        raise DataError(f"{path}: has passages and questions; name the column of the questions: --text_pair_column")
    return list(enumerate(found, 1))


WAYS: dict[str, Callable[[Question, str], int | None]] = {
    "the label of a choice": lambda q, label: _index(q.names, label),
    "a number from 0": lambda q, label: int(label) if re.fullmatch("[0-9]{1,6}", label) else None,
    "a letter": lambda q, label: ord(label) - ord("A") if re.fullmatch("[A-Z]", label) else None,
    "the text of a choice": lambda q, label: _index(q.choices, label),
}
"""How a label says which choice is right; the first wins where a file names its choices."""


def _right(found: Sequence[Question], column: str, where: Callable[[Question], str]) -> list[int]:
    """The number of the right choice of each question; all are said in one way.

    Raises:
        DataError: one cannot be found, or two ways fit and mean different choices.
    """

    def number(way: str, question: Question) -> int:
        at = WAYS[way](question, question.columns[column])
        return at if at is not None and at < len(question.choices) and question.choices[at] else -1

    numbers = {way: [number(way, question) for question in found] for way in WAYS}
    fits = [way for way, values in numbers.items() if -1 not in values]
    if not fits:
        best = max(numbers, key=lambda way: sum(value >= 0 for value in numbers[way]))
        wrong = found[numbers[best].index(-1)]
        raise DataError(
            f"{where(wrong)}: the {column} {wrong.columns[column]!r} is not {best} as in other rows; the choices are "
            f"{wrong.choices}"
        )
    for way in fits[1:] if not found[0].names else ():
        for first, second, question in zip(numbers[fits[0]], numbers[way], found, strict=True):
            if first != second:
                raise DataError(
                    f"{where(question)}: the {column} {question.columns[column]!r} could be {fits[0]} or {way}, which "
                    "are different choices; write letters from A instead"
                )
    return numbers[fits[0]]


def _index(values: Sequence[str], value: str) -> int | None:
    """Where the value is, if it is there once."""
    return values.index(value) if values.count(value) == 1 else None


def encode_choices(rows: Rows, data: DataConfig) -> np.ndarray:
    """The number of the right choice, int32 `[rows]`.

    Raises:
        DataError: there is no such choice.
    """
    for i, (choices, right) in enumerate(zip(rows[data.choices_column], rows[data.label_column], strict=True)):
        if not isinstance(right, int) or not 0 <= right < len(choices) or not choices[right]:
            raise DataError(f"{rows.where(i)}: the label {right!r} is no number of one of the choices {choices}")
    return np.array(rows[data.label_column], np.int32)


# === Masks ===

MASKED_SHARE = 0.15


def read_masked(path: str, data: DataConfig, how: Reading) -> Rows:
    """A table of texts with masks, and of the words that belong there; or plain lines of text (.txt), without words."""
    if Path(path).suffix.lower() != ".txt":
        return read(path, [data.text_column, *[data.label_column] * how.labelled])
    lines = [(number, line.strip()) for number, line in enumerate(read_text(path).split("\n"), 1) if line.strip()]
    if not lines:
        raise DataError(f"{path}: holds no text")
    return Rows({data.text_column: [line for _, line in lines]}, [path] * len(lines), [number for number, _ in lines])


def encode_words(rows: Rows, data: DataConfig, wordpiece: WordPiece) -> np.ndarray:
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


def draw_masks(rows: Rows, data: DataConfig, wordpiece: WordPiece, tokens: int, most: int, seed: int) -> Rows:
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
    return Rows(
        {data.text_column: texts, data.label_column: labels},
        [rows.files[i] for i in kept],
        [rows.lines[i] for i in kept],
    )


# === Targets ===


def targets(rows: Rows, data: DataConfig) -> list[str]:
    """The texts that are to be generated.

    Raises:
        DataError: one is empty.
    """
    for i, target in enumerate(rows[data.label_column]):
        if not target.strip():
            raise DataError(f"{rows.where(i)}: no {data.label_column}; every text needs a target")
    return rows[data.label_column]


# === Pairs ===


def read_pairs(path: str, data: DataConfig, how: Reading) -> Rows:
    """A table of pairs, with their scores, or without: then all pairs mean the same."""
    rows = read(path, [data.text_column, data.text_pair_column])
    if how.labelled and data.label_column not in rows.columns:
        how.say(f"{path}: no column {data.label_column!r} (--label_column), so each pair means the same")
    return rows


def encode_pairs(rows: Rows, data: DataConfig, max_score: float) -> np.ndarray:
    """Numbers of the first and of the second text, equal ones alike, from 1, and the score, float32 `[rows, 3]`.

    Args:
        max_score: the score that becomes 1.

    Raises:
        DataError: a score is no number, or further from 0 than `max_score`.
    """
    columns = [rows[name] for name in (data.text_column, data.text_pair_column)]
    numbers: dict[str, int] = {}
    ids = [[numbers.setdefault(text.strip().casefold(), len(numbers) + 1) for text in column] for column in columns]
    scores: Any = np.ones(len(rows), np.float32)
    if data.label_column in rows.columns:
        scores = encode_labels(rows, data.label_column, "regress", ()) / np.float32(max_score)
        for i in np.flatnonzero(np.abs(scores) > 1)[:1]:
            found = rows[data.label_column][i]
            raise DataError(f"{rows.where(i)}: score {found} is beyond {max_score:g}; give the highest as --max_score")
    return np.stack([*np.array(ids, np.float32), scores], axis=1)


READERS: dict[str, Callable[[str, DataConfig, Reading], Rows]] = {
    "tag": read_entities,
    "span": read_questions,
    "choice": read_choices,
    "similarity": read_pairs,
    "fill_mask": read_masked,
}
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
