"""Files of questions with choices: SWAG, CommonsenseQA, ARC, C3, or columns.

The label is the number of the right choice. All labels of a file are said in one way: by what the file calls a choice,
by number from 0, by letter, or by text.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keras_bert.config import DataConfig, HeadConfig
from keras_bert.data.faults import TABLES, Reading
from keras_bert.data.source import FileSource, MakeTokenizer, text_columns
from keras_bert.data.tables import Table, read, read_objects, read_text
from keras_bert.errors import DataError

# === Choices ===


@dataclass(frozen=True)
class Question:
    """A question as a file has it: where, its columns, its choices, and what the file calls them, if it does."""

    line: int
    columns: dict[str, str]
    choices: list[str]
    names: list[str]


def read_choices(path: str, data: DataConfig, how: Reading) -> Table:
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
        found = [_json_choices(f"{path}, {unit} {n}", n, item, data) for n, item in items or read_objects(path)]
    for question in found:
        where = f"{path}, {unit} {question.line}"
        missing = [name for name in columns if name not in question.columns]
        if missing:
            raise DataError(f"{where}: has no {', '.join(missing)}; it has {', '.join(question.columns)}")
        if sum(bool(choice) for choice in question.choices) < 2:
            raise DataError(f"{where}: needs two choices at least, got {question.choices}")
    copied = text_columns(data)
    if all(data.id_column in question.columns for question in found):
        copied.append(data.id_column)
    table: dict[str, list[Any]] = {name: [q.columns[name] for q in found] for name in copied}
    table[data.choices_column] = [q.choices for q in found]
    if how.labelled:
        table[data.label_column] = _right(found, data.label_column, lambda q: f"{path}, {unit} {q.line}")
    return Table(table, [path] * len(found), [q.line for q in found], unit)


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


def encode_choices(rows: Table, data: DataConfig) -> np.ndarray:
    """The number of the right choice, int32 `[rows]`.

    Raises:
        DataError: there is no such choice.
    """
    for i, (choices, right) in enumerate(zip(rows[data.choices_column], rows[data.label_column], strict=True)):
        if not isinstance(right, int) or not 0 <= right < len(choices) or not choices[right]:
            raise DataError(f"{rows.where(i)}: the label {right!r} is no number of one of the choices {choices}")
    return np.array(rows[data.label_column], np.int32)


class Choices(FileSource):
    """Questions with choices."""

    without_labels = ()

    def read_file(self, path: str, data: DataConfig, how: Reading) -> Table:
        return read_choices(path, data, how)

    def segment_columns(self, data: DataConfig) -> list[str]:
        return [*super().segment_columns(data), data.choices_column]

    def value(self, label: Any) -> Any:
        return int(label)

    def encode(self, table: Table, data: DataConfig, config: HeadConfig, tokenizer: MakeTokenizer) -> tuple[Any, Any]:
        return encode_choices(table, data), None
