"""Files of questions about passages: SQuAD, CMRC.

The label of a question is a list of `(start, answer)`, in characters; a start of -1 is an answer that is not in the
passage. An answer that is not where the file says is taken from the nearest place that holds it.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from keras_bert.config import DataConfig, HeadConfig
from keras_bert.data.batches import encoded as as_utf8
from keras_bert.data.faults import TABLES, Faults, Reading
from keras_bert.data.source import FileSource, MakeTokenizer, joined, text_columns
from keras_bert.data.tables import Table, read_objects
from keras_bert.errors import DataError

# === Questions ===


def read_questions(path: str, data: DataConfig, how: Reading) -> Table:
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
    return Table(columns, [path] * len(rows), list(range(1, len(rows) + 1)), "question")


def _questions(path: str) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Passage and question of each `qas` entry, and where it is."""
    ((_, content), *more) = read_objects(path)
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


def encode_answers(rows: Table, data: DataConfig) -> np.ndarray:
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


class Answers(FileSource):
    """Questions about passages."""

    without_labels = (*TABLES, ".jsonl")

    def read_file(self, path: str, data: DataConfig, how: Reading) -> Table:
        return read_questions(path, data, how)

    def value(self, label: Any) -> Any:
        return list(label)

    def check(self, table: Table, data: DataConfig, config: HeadConfig) -> None:
        without = [i for i, answers in enumerate(table[data.label_column]) if not answers]
        if without and not getattr(config, "version_2_with_negative", True):
            raise DataError(
                f"{table.where(without[0])}: has no answer, like {len(without) - 1} more; give "
                "--version_2_with_negative if that is meant"
            )

    def encode(self, table: Table, data: DataConfig, config: HeadConfig, tokenizer: MakeTokenizer) -> tuple[Any, Any]:
        passages = as_utf8(table[data.text_pair_column])
        golds = [[text for _, text in answers] for answers in table[data.label_column]]
        return encode_answers(table, data), list(zip(passages, golds, strict=True))

    def groups(self, table: Table, data: DataConfig) -> list[str]:
        """The passage: its questions stay together."""
        return joined(table, text_columns(data)[-1:])
