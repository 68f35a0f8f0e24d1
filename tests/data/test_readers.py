"""Files of entities and questions: every form that is read, and every fault with its file and line."""

import json
import os
import re
from collections import Counter

import numpy as np
import pytest
from conftest import shared

from keras_bert.__main__ import main
from keras_bert.config import DataConfig
from keras_bert.data.entities import encode_entities, find_types
from keras_bert.data.faults import Reading
from keras_bert.data.questions import encode_answers
from keras_bert.data.source import read_labelled
from keras_bert.data.tables import Table
from keras_bert.errors import ConfigError, DataError

TAGS = DataConfig()
QUESTIONS = DataConfig(text_pair_column="text_pair")


def write(folder, content, name):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return path


def tagged(folder, content, name="rows.conll", said=None, **how):
    say = (lambda line: None) if said is None else said.append
    return read_labelled("tag", write(folder, content, name), TAGS, Reading(say=say, **how))


def asked(folder, content, said=None, name="questions.json", **how):
    say = (lambda line: None) if said is None else said.append
    content = content if isinstance(content, str | bytes) else json.dumps(content)
    return read_labelled("span", write(folder, content, name), QUESTIONS, Reading(say=say, **how))


def squad(*paragraphs):
    """`(context, [(id, question, answers, ...)])` in the layout of SQuAD."""
    made = [
        {"context": context, "qas": [{"id": i, "question": q, "answers": a, **dict(*more)} for i, q, a, *more in qas]}
        for context, qas in paragraphs
    ]
    return {"version": "1.1", "data": [{"title": "t", "paragraphs": made}]}


def answer(text, start):
    return {"text": text, "answer_start": start}


# === CoNLL ===

IOB1 = "-DOCSTART- -X- O O\n\nU.N. NNP I-NP I-ORG\nofficial NN I-NP O\n\nNew NNP I-NP I-LOC\nYork NNP I-NP I-LOC\n"
IOB1 += "Paris NNP I-NP B-LOC\nBerlin NNP I-NP B-LOC\n"
SPANS = [[(0, 4, "ORG")], [(0, 8, "LOC"), (9, 14, "LOC"), (15, 21, "LOC")]]


@pytest.mark.parametrize(
    "tags",
    [
        ["I-ORG", "O", "I-LOC", "I-LOC", "B-LOC", "B-LOC"],
        ["B-ORG", "O", "B-LOC", "I-LOC", "B-LOC", "B-LOC"],
        ["S-ORG", "O", "B-LOC", "E-LOC", "S-LOC", "S-LOC"],
        ["U-ORG", "O", "B-LOC", "L-LOC", "U-LOC", "U-LOC"],
    ],
)
@pytest.mark.parametrize("separator", [" ", "\t", "   "])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_all_schemes_and_separators_say_the_same(tags, separator, end, tmp_path):
    words = ["U.N.", "official", "New", "York", "Paris", "Berlin"]
    lines = [separator.join([word, "X", tag]) for word, tag in zip(words, tags, strict=True)]
    rows = tagged(tmp_path, end.join(["-DOCSTART- -X- O", "", *lines[:2], "", "", *lines[2:]]))
    assert rows["text"] == ["U.N. official", "New York Paris Berlin"]
    assert rows["label"] == SPANS
    assert rows.lines == [3, 7]
    assert find_types(rows, "label") == ("LOC", "ORG")


def test_words_may_hold_anything(tmp_path):
    rows = tagged(tmp_path, "\ufeff\u4e1c\u4eac B-LOC\n\U0001f525 O\ncafe\u0301 B-LOC\n", "rows.txt")
    (text,), (spans,) = rows["text"], rows["label"]
    assert [text[s:e] for s, e, _ in spans] == ["\u4e1c\u4eac", "cafe\u0301"]
    (encoded,) = encode_entities(rows, TAGS, ("LOC",))
    assert [text.encode()[s:e].decode() for s, e, _ in encoded] == ["\u4e1c\u4eac", "cafe\u0301"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a B-X\nb\n", "rows.conll, line 2: 1 columns where the first line has 2"),
        ("a X B-X\nb B-X\n", "rows.conll, line 2: 2 columns where the first line has 3"),
        ("a\tX\tB-X\nb\tX\t\n", "rows.conll, line 2: 3 columns where"),
        ("a\nb\n", "rows.conll, line 1: has no tag"),
        ("a O\n\nb PER\n", "rows.conll, line 3: 'PER' is no tag; expected O, or a type such as B-PER"),
        ("a O\nb B-\n", "line 2: 'B-' is no tag"),
        ("", "rows.conll: holds no text"),
        ("-DOCSTART- O\n\n", "rows.conll: holds no text"),
        (b"a O\nb\xff O\n", "rows.conll, line 2: byte 0xff is not UTF-8"),
    ],
)
def test_broken_columns_are_refused(content, message, tmp_path):
    with pytest.raises(DataError, match=message):
        tagged(tmp_path, content)


@pytest.mark.parametrize(
    ("scheme", "tags", "message"),
    [
        ("iob2", "O I-X", "rows.conll, line 2: I-X without B-; try --tag_scheme=auto"),
        ("iob2", "B-X I-Y", "line 2: I-Y without B-"),
        ("iob2", "B-X E-X", "line 2: E-X is not of IOB2; try --tag_scheme=bioes"),
        ("bioes", "B-X O", "line 1: B-X without an end"),
        ("bioes", "O E-X", "line 2: E-X without B-"),
        ("bioes", "S-X I-X", "line 2: I-X without B-"),
        ("bioes", "B-X I-X", "line 2: I-X without an end"),
    ],
)
def test_a_scheme_that_is_named_is_held_to(scheme, tags, message, tmp_path):
    content = "".join(f"w {tag}\n" for tag in tags.split())
    with pytest.raises(DataError, match=message):
        tagged(tmp_path, content, scheme=scheme)
    assert len(tagged(tmp_path, content, scheme="iob1")) == 1


def test_a_few_strays_are_counted_and_many_refused(tmp_path):
    good, stray, said = "a B-X\nb I-X\n\n", "a O\nb I-X\n\n", []
    rows = tagged(tmp_path, good * 98 + stray * 2, said=said)
    assert rows["label"][-1] == [(2, 3, "X")]
    assert len(said) == 1
    assert "rows.conll: I- without B- begins an entity: line 296, line 299" in said[0]
    with pytest.raises(DataError, match=r"rows.conll: 3 faults in 100 rows are more than 2%"):
        tagged(tmp_path, good * 97 + stray * 3)
    assert len(tagged(tmp_path, good * 97 + stray * 3, max_bad_share=0.03)) == 100


def test_texts_alone_need_no_tags(tmp_path):
    rows = tagged(tmp_path, "New\nYork\n\nParis\n", labelled=False)
    assert rows["text"] == ["New York", "Paris"]
    assert tagged(tmp_path, "id,text\n1,New York\n", "rows.csv", labelled=False)["text"] == ["New York"]
    with pytest.raises(DataError, match="not from tables"):
        tagged(tmp_path, "text,label\na,O\n", "rows.csv")
    with pytest.raises(ConfigError, match="unknown tag scheme 'bio'; choose one of auto, iob1, iob2, bioes"):
        tagged(tmp_path, "a O\n", scheme="bio")


# === JSON of entities ===

CLUENER = {
    "text": "\u6e29\u683c\u5728\u6731\u5bb6",
    "label": {"name": {"\u6e29\u683c": [[0, 1]]}, "place": {"\u6731\u5bb6": [[3, 4]]}},
}
WANTED = [(0, 2, "name"), (3, 5, "place")]


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(CLUENER, indent=2) * 3,
        json.dumps([CLUENER] * 3),
        (json.dumps(CLUENER) + "\n") * 3,
        (json.dumps({"text": CLUENER["text"], "label": WANTED}) + "\n") * 3,
        json.dumps({"text": CLUENER["text"], "entities": [{"start": s, "end": e, "type": t} for s, e, t in WANTED]})
        * 3,
    ],
)
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_forms_of_json(content, name, tmp_path):
    rows = tagged(tmp_path, content, name)
    assert rows["text"] == [CLUENER["text"]] * 3
    assert rows["label"] == [WANTED] * 3


def test_json_of_words_and_tags(tmp_path):
    items = [
        {"id": 7, "tokens": ["New", "York"], "ner_tags": ["B-LOC", "I-LOC"]},
        {"id": 8, "words": ["a"], "tags": ["O"]},
    ]
    rows = tagged(tmp_path, "\n".join(map(json.dumps, items)), "rows.jsonl")
    assert rows.columns == {"text": ["New York", "a"], "label": [[(0, 8, "LOC")], []], "id": ["7", "8"]}
    assert rows.lines == [1, 2]


def test_of_overlapping_entities_the_longest_counts(tmp_path):
    good = json.dumps({"text": "abcd", "label": [[0, 1, "X"]]})
    bad = json.dumps({"text": "abcd", "label": [[0, 1, "Y"], [0, 3, "X"], [2, 4, "X"], [3, 4, "Z"]]})
    said = []
    rows = tagged(tmp_path, "\n".join([good] * 99 + [bad]), "rows.jsonl", said)
    assert rows["label"][-1] == [(0, 3, "X"), (3, 4, "Z")]
    assert said == [f"warning: {rows.files[0]}: entities overlap, the longest was kept: line 100, line 100"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a", "label": []}\n{"text": \n', "rows.jsonl, line 3: not valid JSON"),
        ('{"text": "a", "label": []}\n[1]', "line 2: holds a list, not an object"),
        ('{"label": []}', "line 1: has no text"),
        ('{"text": "a"}', "line 1: has no label"),
        ('{"text": "a", "label": [[0, 2, "X"]]}', r"entity \[0, 2, 'X'\] does not fit a text of 1 characters"),
        ('{"text": "a", "label": [[-1, 1, "X"]]}', "does not fit"),
        ('{"text": "a", "label": [[0, 0, "X"]]}', "does not fit"),
        ('{"text": "a", "label": [[0, 1, 5]]}', "does not fit"),
        ('{"text": "a", "label": [[0, 1]]}', "is no list of"),
        ('{"text": "a", "label": 5}', "is no list of"),
        ('{"text": "ab", "label": {"X": {"b": [[0, 0]]}}}', "'b' is not at 0 to 0 of its text"),
        ('{"tokens": ["a"], "tags": ["O", "O"]}', "1 tokens need as many tags"),
        ('{"tokens": ["a"], "tags": [3]}', "3 is no tag"),
        ("", "rows.jsonl: is empty"),
        ("[" * 100000, "line 1: not valid JSON"),
    ],
)
def test_broken_json_is_refused(content, message, tmp_path):
    with pytest.raises(DataError, match=message):
        tagged(tmp_path, content, "rows.jsonl")


def test_labels_must_fit():
    rows = Table({"text": ["ab"], "label": [[(0, 1, "X")]]}, ["f"], [3])
    assert encode_entities(rows, TAGS, ("W", "X")).tolist() == [[[0, 1, 1]]]
    with pytest.raises(DataError, match=r"f, line 3: entity type 'X' is not among the labels \['W'\]"):
        encode_entities(rows, TAGS, ("W",))
    rows = Table({"text": ["ab"], "label": [[(1, 4, "X")]]}, ["f"], [3])
    with pytest.raises(DataError, match="f, line 3: entity 1 to 4 does not fit its text"):
        encode_entities(rows, TAGS, ("X",))
    with pytest.raises(DataError, match="f: no row has an entity"):
        find_types(Table({"text": ["ab"], "label": [[]]}, ["f"], [3]), "label")
    none = encode_entities(Table({"text": ["ab"], "label": [[]]}, ["f"], [3]), TAGS, ("X",))
    assert none.tolist() == [[[-1, -1, -1]]]


# === Questions ===


def test_squad_1_and_2(tmp_path):
    context = "caf\u00e9 \U0001f525 in Paris"
    content = squad((context, [("a", "where", [answer("Paris", 10)]), ("b", "who", [], {"is_impossible": True})]))
    rows = asked(tmp_path, content)
    assert rows.columns == {
        "id": ["a", "b"],
        "text": ["where", "who"],
        "text_pair": [context] * 2,
        "label": [[(10, "Paris")], []],
    }
    assert rows.where(1).endswith("questions.json, question 2")
    first, second = encode_answers(rows, QUESTIONS).tolist()
    assert context.encode()[slice(*first)].decode() == "Paris"
    assert second == [-1, -1]


def test_an_impossible_question_has_no_answer_whatever_the_file_says(tmp_path):
    content = squad(("a b", [("x", "q", [answer("a", 0)], {"is_impossible": True}), ("y", "q", [answer(" b ", 1)])]))
    assert asked(tmp_path, content)["label"] == [[], [(2, "b")]]


def test_single_faults_are_survived_and_named(tmp_path):
    good = [(f"g{i}", "q", [answer("b", 2)]) for i in range(100)]
    bad = [
        ("off", "q", [answer("b", 0)]),
        ("absent", "q", [answer("z", 0), answer("b", 2)]),
        ("nowhere", "q", [answer("z", 0)]),
        ("g5", "again", [answer("b", 2)]),
    ]
    said = []
    rows = asked(
        tmp_path, squad(("a b b", good + bad), ("  ", [("empty", "q", [answer("b", 2)])])), said, max_bad_share=0.05
    )
    assert rows["id"][-3:] == ["off", "absent", "nowhere"]
    assert rows["label"][-3:] == [[(2, "b")], [(-1, "z"), (2, "b")], [(-1, "z")]]
    assert encode_answers(rows, QUESTIONS)[-3:].tolist() == [[2, 3], [2, 3], [-2, -2]]
    assert sorted(line.split(": ", 2)[2] for line in said) == [
        "answer_start is wrong, the nearest place was taken: off",
        "answers are not in their passages, and cannot be learnt: absent, nowhere",
        "ids are there more than once, the first was kept: g5",
        "passages are empty, the questions were left out: empty",
    ]
    with pytest.raises(DataError, match=r"questions.json: 5 faults in 105 rows are more than 2%.*--max_bad_share"):
        asked(tmp_path, squad(("a b b", good + bad), ("  ", [("empty", "q", [answer("b", 2)])])))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "questions.json, line 1: not valid JSON"),
        ("", "questions.json: is empty"),
        ("[]", "is empty"),
        ('{"paragraphs": []}', "is not in the layout of SQuAD"),
        ('{"data": []} {}', "is not in the layout of SQuAD"),
        ({"data": [{}]}, "article 1 has no list `paragraphs`"),
        ({"data": [{"paragraphs": [{"qas": []}]}]}, "article 1, paragraph 1 has no context"),
        ({"data": [{"paragraphs": [{"context": "a"}]}]}, "article 1, paragraph 1 has no list `qas`"),
        ({"data": [{"paragraphs": [{"context": "a", "qas": [3]}]}]}, "a question that is no object"),
        ({"data": [{"paragraphs": [{"context": "a", "qas": [{"id": 1}]}]}]}, "a question without text"),
        (squad(("a", [("x", "q", [{"text": "a"}])])), "question x: an answer needs text and answer_start"),
        (squad(("a", [("x", "q", [answer("a", "0")])])), "question x: an answer needs text and answer_start, got '0'"),
        (squad(("a", [("x", "q", [])])), "no question has an answer"),
        (squad(), "no question has an answer"),
    ],
)
def test_broken_questions_are_refused(content, message, tmp_path):
    with pytest.raises(DataError, match=message):
        asked(tmp_path, content)


def test_questions_alone(tmp_path):
    content = {"data": [{"paragraphs": [{"context": "", "qas": [{"id": 3, "question": "q"}]}]}]}
    assert asked(tmp_path, content, labelled=False).columns == {
        "id": ["3"],
        "text": ["q"],
        "text_pair": [""],
        "label": [[]],
    }
    table = "text,text_pair\nwho,somebody\n"
    assert asked(tmp_path, table, name="questions.csv", labelled=False)["text_pair"] == ["somebody"]
    with pytest.raises(DataError, match="not from tables"):
        asked(tmp_path, table, name="questions.csv")


def test_several_files_are_one(tmp_path):
    for name in ("a", "b"):
        write(tmp_path, f"{name} B-X\n", f"{name}.conll")
    rows = read_labelled("tag", str(tmp_path / "*.conll"), TAGS, Reading())
    assert rows["text"] == ["a", "b"]
    assert [f[-7:] for f in rows.files] == ["a.conll", "b.conll"]
    with pytest.raises(DataError, match="matches no file"):
        read_labelled("tag", str(tmp_path / "*.iob"), TAGS)


# === Real files ===


@pytest.mark.parametrize(
    ("part", "sentences", "entities"), [("train", 14041, 23499), ("testa", 3250, 5942), ("testb", 3453, 5648)]
)
def test_conll_2003_has_as_many_entities_as_its_paper_says(part, sentences, entities):
    rows = read_labelled("tag", shared(f"data/conll2003/eng.{part}"), TAGS)
    assert (len(rows), sum(map(len, rows["label"]))) == (sentences, entities)
    assert find_types(rows, "label") == ("LOC", "MISC", "ORG", "PER")


def test_cluener():
    rows = read_labelled("tag", shared("data/cluener/dev.json"), TAGS)
    assert (len(rows), sum(map(len, rows["label"])), len(find_types(rows, "label"))) == (1343, 3072, 10)
    rows = read_labelled("tag", shared("data/cluener/test.json"), TAGS, Reading(labelled=False))
    assert (len(rows), rows["id"][:2]) == (1345, ["0", "1"])
    with pytest.raises(DataError, match=r"test\.json, line 1: has no label"):
        read_labelled("tag", shared("data/cluener/test.json"), TAGS)


def test_five_answers_of_cmrc_are_elsewhere():
    said = []
    rows = read_labelled("span", shared("data/cmrc2018_trial/cmrc2018_trial.json"), QUESTIONS, Reading(say=said.append))
    assert len(rows) == 1002
    assert ["nearest place was taken" in line and line.count("TRIAL") == 5 for line in said] == [True]
    for passage, (start, end) in zip(rows["text_pair"], encode_answers(rows, QUESTIONS), strict=True):
        assert passage.encode()[start:end].decode()


def test_squad_2_part():
    rows = read_labelled("span", shared("data/squad2_part/dev-v2.0.json"), QUESTIONS)
    places = encode_answers(rows, QUESTIONS)
    assert (len(rows), int((places[:, 0] >= 0).sum())) == (6078, 2910)
    assert Counter(map(bool, rows["label"])) == {True: 2910, False: 3168}
    assert np.all(places[:, 1] >= places[:, 0])


# === Every kind of file, damaged in every way ===

PASSAGE, OPTIONS = "the cat sat", ["cat", "dog"]
ASKED = {"question": "q", "choices": OPTIONS, "label": "0"}
KINDS = {  # task and flags, name, content
    "csv": ("classify", "rows.csv", "id,text,label\n1,fire,yes\n2,music,no\n"),
    "tsv (GLUE)": ("classify --text_column=s1 --text_pair_column=s2", "rows.tsv", "s1\ts2\tlabel\na\tb\t1\nc\td\t0\n"),
    "jsonl": ("multilabel", "rows.jsonl", '{"text": "a", "label": "x"}\n{"text": "b", "label": "x,y"}\n'),
    "CoNLL, IOB1": ("tag", "rows.txt", IOB1),
    "CoNLL, IOB2": ("tag --tag_scheme=iob2", "rows.conll", "EU\tB-ORG\nin\tO\n\nParis\tB-LOC\n"),
    "CoNLL, BIOES": ("tag --tag_scheme=bioes", "rows.conll", "New B-LOC\nYork E-LOC\n\nParis S-LOC\n"),
    "tokens and tags": ("tag", "rows.jsonl", '{"tokens": ["a"], "tags": ["B-X"]}\n{"tokens": ["b"], "tags": ["O"]}\n'),
    "CLUENER": ("tag", "rows.json", '{"text": "ab", "label": {"X": {"a": [[0, 0]]}}}\n{"text": "b", "label": {}}\n'),
    "SQuAD 1.1": ("span", "rows.json", json.dumps(squad((PASSAGE, [("1", "who", [answer("cat", 4)])])), indent=1)),
    "SQuAD 2.0": (
        "span --version_2_with_negative",
        "rows.json",
        json.dumps(squad((PASSAGE, [("1", "who", [answer("cat", 4)]), ("2", "why", [])])), indent=1),
    ),
    "CMRC": ("span", "rows.json", json.dumps(squad(("天气很好", [("1", "谁", [answer("天气", 0)])])), indent=1)),
    "choice, csv": ("choice", "rows.csv", "text,choice0,choice1,label\nq,cat,dog,1\nr,cat,dog,0\n"),
    "choice, SWAG": (
        "choice --text_column=startphrase --choices_column=ending",
        "rows.csv",
        "startphrase,ending0,ending1,label\nq,cat,dog,1\nr,cat,dog,0\n",
    ),
    "choice, jsonl": ("choice", "rows.jsonl", f"{json.dumps(ASKED)}\n{json.dumps(ASKED)}\n"),
    "choice, C3": (
        "choice --text_pair_column=question",
        "rows.json",
        json.dumps([[["a"], [{"question": "q", "choice": OPTIONS, "answer": "dog"}], "1"]], indent=1),
    ),
    "pairs, scores": ("similarity --objective=scores", "rows.csv", "text,text_pair,label\na,b,1\nc,d,0\n"),
    "pairs, alone": ("similarity", "rows.tsv", "text\ttext_pair\na\tb\nc\td\n"),
    "source and target": ("generate", "rows.tsv", "source\ttarget\na\tb\nc\td\n"),
    "masks": ("fill_mask", "rows.csv", "text,target\nthe [MASK],cat\na [MASK],dog\n"),
    "masks, lines": ("fill_mask", "rows.txt", "the [MASK]\na [MASK]\n"),
}
TREES = [kind for kind, (_, name, _) in KINDS.items() if name.endswith(("json", "jsonl"))]
SHEETS = [kind for kind, (_, name, _) in KINDS.items() if name.endswith(("csv", "tsv"))]


def reads(kind, path):
    """The rows of a file, read by its task with its flags, as `finetune`, `evaluate` and `predict` do."""
    task, *options = KINDS[kind][0].split()
    given = dict(option[2:].partition("=")[::2] for option in options)
    usual = {"generate": {"text_column": "source", "label_column": "target"}, "fill_mask": {"label_column": "target"}}
    pair = {"text_pair_column": "text_pair"} if task in ("span", "similarity") else {}
    columns = usual.get(task, {}) | pair | {name: value for name, value in given.items() if name.endswith("column")}
    how = Reading(task != "fill_mask" or path.suffix != ".txt", given.get("tag_scheme", "auto"), say=lambda line: None)
    return read_labelled(task, path, DataConfig(**columns), how)


def latin(content):
    """With a byte that is no UTF-8 in the last line."""
    lines = content.encode().rstrip(b"\n").split(b"\n")
    return b"\n".join([*lines[:-1], b"\xe9" + lines[-1]]), f"line {len(lines)}: byte 0xe9 is not UTF-8"


def doubled(content):
    """With every column twice."""
    mark = "\t" if "\t" in content else ","
    return "".join(f"{line}{mark}{line}\n" for line in content.splitlines()).encode()


DAMAGED = {  # content -> bytes, what is said
    "empty": lambda content: (b"", "is empty|holds no text"),
    "blank": lambda content: (b"\n\n", "is empty|holds no text"),
    "latin-1": latin,
    "UTF-16": lambda content: (content.encode("utf-16"), "line 1: byte 0xff is not UTF-8"),
}
IN_TREES = {
    "cut": lambda content: (content.rstrip()[:-2].encode(), "line [0-9]+: not valid JSON|not in the layout of C3"),
    "list": lambda content: (b"[1, 2]\n", "holds a|not in the layout"),
    "other keys": lambda content: (b'{"a": "b"}\n', "has no|not in the layout"),
}
IN_SHEETS = {
    "header only": lambda content: (content.split("\n")[0].encode(), "has a header but no rows"),
    "ragged": lambda content: (content.replace("\n", "\n\n", 1).encode() + b"a\n", "line 5: 1 fields where the header"),
    "other columns": lambda content: (b"a,b\n1,2\n", "line 1: has no (column|choices)"),
    "twice": lambda content: (doubled(content), "line 1: the header names .* more than once"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_damaged_file_is_refused_in_one_line(kind, tmp_path):
    _, name, content = KINDS[kind]
    faults = DAMAGED | (IN_TREES if kind in TREES else {}) | (IN_SHEETS if kind in SHEETS else {})
    for fault, damage in faults.items():
        damaged, message = damage(content)
        path = write(tmp_path, damaged, name)
        with pytest.raises(DataError, match=message) as raised:
            reads(kind, path)
        said = str(raised.value)
        assert (said[: len(str(path))], said.count("\n")) == (str(path), 0), fault
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / f"pipe{path.suffix}")
    for other, message in (
        (tmp_path / "folder", "is a directory|unknown kind of file"),
        (tmp_path / f"none{path.suffix}", "cannot be read"),
        (tmp_path / f"pipe{path.suffix}", "is not a regular file"),
        (tmp_path / f"*.none{path.suffix}", "matches no file"),
    ):
        with pytest.raises(DataError, match=message):
            reads(kind, other)


@pytest.mark.parametrize("kind", KINDS)
def test_windows_files_say_the_same(kind, tmp_path):
    """A byte order mark, CRLF, blank lines at the end, or none: the rows are the same."""
    _, name, content = KINDS[kind]
    wanted = reads(kind, write(tmp_path, content, name))
    assert len(wanted)
    for other in ("\ufeff" + content, content.replace("\n", "\r\n"), content + "\n\n", content.rstrip("\n")):
        found = reads(kind, write(tmp_path, other, name))
        assert (found.columns, found.lines) == (wanted.columns, wanted.lines)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("masks")])
def test_the_command_refuses_a_damaged_file_before_anything_else(kind, tmp_path, capsys):
    """Exit 3 and one line, without a look at the checkpoint, which is not there."""
    flags, name, content = KINDS[kind]
    damaged, message = latin(content)
    path = write(tmp_path, damaged, name)
    argv = [f"--task={flags.split()[0]}", *flags.split()[1:], f"--train_file={path}", f"--model_dir={tmp_path}/run"]
    assert main(["finetune", *argv, f"--init_checkpoint={tmp_path}/none"]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(f"{re.escape(str(path))}, {message}", line)
    assert not (tmp_path / "run").exists()
