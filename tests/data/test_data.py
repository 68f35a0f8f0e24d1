"""Rows from files, labels, splits and batches: what is read is what was written, or the line is named."""

import csv
import io
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import WORDS, shared

import keras_bert
from keras_bert import Text, TextConfig
from keras_bert.config import TASKS, DataConfig, HeadConfig
from keras_bert.data.batches import Examples, batches_at_random, batches_in_order, dataset, lengths, rows_of
from keras_bert.data.labels import find_labels, find_multilabels
from keras_bert.data.source import source_of
from keras_bert.data.splits import hold_out, split
from keras_bert.data.tables import Table, find, read
from keras_bert.errors import DataError

SAMPLE = Path(keras_bert.__file__).parent / "samples/disaster_messages.csv"


def written(folder: Path, content: str | bytes, name: str = "rows.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refusal(path: str | Path, *columns: str) -> str:
    """The message that reading ends with, one line, without the folder."""
    with pytest.raises(DataError) as caught:
        read(path, columns)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(str(Path(path).parent) + os.sep)


def labelled(*values: str) -> Table:
    """Rows of `train.csv`, the first on line 2."""
    return Table({"label": list(values)}, ["train.csv"] * len(values), list(range(2, len(values) + 2)))


# === csv and tsv (D1) ===


@pytest.mark.parametrize(
    ("content", "columns", "lines"),
    [
        pytest.param("text,label\na,1\nb,0\n", {"text": ["a", "b"], "label": ["1", "0"]}, [2, 3], id="plain"),
        pytest.param("text,label\na,1", {"text": ["a"], "label": ["1"]}, [2], id="no line end at the end"),
        pytest.param("\ufefftext,label\na,1\n", {"text": ["a"], "label": ["1"]}, [2], id="BOM"),
        pytest.param("text,label\r\na,1\r\nb,0\r\n", {"text": ["a", "b"], "label": ["1", "0"]}, [2, 3], id="CRLF"),
        pytest.param('\ufeff"text"\r\n"a"\r\n', {"text": ["a"]}, [2], id="BOM, quotes and CRLF"),
        pytest.param(
            'text,n\n"a\nb\r\nc",1\nd,2\n', {"text": ["a\nb\r\nc", "d"], "n": ["1", "2"]}, [2, 5], id="breaks"
        ),
        pytest.param('text\n"say ""no"", he said"\n', {"text": ['say "no", he said']}, [2], id="quotes"),
        pytest.param('text,n\n5" pipe,1\n', {"text": ['5" pipe'], "n": ["1"]}, [2], id="a quote inside"),
        pytest.param("text,n\n\na,1\n\n\nb,2\n", {"text": ["a", "b"], "n": ["1", "2"]}, [3, 6], id="blank lines"),
        pytest.param("text,n\n,1\n , 2\n", {"text": ["", " "], "n": ["1", " 2"]}, [2, 3], id="empty and spaces"),
        pytest.param("text\nNA\nnan\nnull\n\\N\n", {"text": ["NA", "nan", "null", "\\N"]}, [2, 3, 4, 5], id="not NaN"),
        pytest.param("t,n\na\u2028b\x0bc\x85d,1\ne,2\n", {"t": ["a\u2028b\x0bc\x85d", "e"], "n": ["1", "2"]}, [2, 3]),
        pytest.param("text,n\na\0b,1\n", {"text": ["a\0b"], "n": ["1"]}, [2], id="NUL"),
    ],
)
def test_csv_is_read_as_it_is_written(tmp_path, content, columns, lines):
    rows = read(written(tmp_path, content))
    assert rows.columns == columns
    assert rows.lines == lines
    assert len(rows) == len(lines)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param("", "rows.csv: is empty", id="0 bytes"),
        pytest.param("\ufeff\n\n", "rows.csv: is empty", id="BOM and blank lines"),
        pytest.param("text,label\n", "rows.csv: has a header but no rows", id="header only"),
        pytest.param("text,label\n\n\n", "rows.csv: has a header but no rows", id="header and blank lines"),
        pytest.param("text,label\na,1\nb\n", "rows.csv, line 3: 1 fields where the header has 2", id="short row"),
        pytest.param("text,label\na,b,1\n", "rows.csv, line 2: 3 fields where the header has 2", id="long row"),
        pytest.param('text,label\n"a\nb\nc",1\n\nd\n', "rows.csv, line 6: 1 fields", id="short row after breaks"),
        pytest.param("text,id,text\na,1,b\n", "rows.csv, line 1: the header names ['text'] more than once", id="names"),
        pytest.param("body,label\na,1\n", "rows.csv, line 1: has no column text; its columns are body, label"),
        pytest.param("Text,Label\na,1\n", "rows.csv, line 1: has no column text, label; its columns are Text, Label"),
        pytest.param('text,label\na,1\n"b,1\nc,0\n', "rows.csv, line 3: unexpected end of data", id="open quote"),
        pytest.param(
            'text,label\n"a\nb",1\n"c" d,1\n', "rows.csv, line 4: ',' expected after '\"'", id="after a quote"
        ),
        pytest.param(b"text,label\na,1\ncaf\xe9,1\n", "rows.csv, line 3: byte 0xe9 is not UTF-8", id="Latin-1"),
        pytest.param(
            b"\xef\xbb\xbftext,label\nab,1\n\xe9,1\n", "rows.csv, line 3: byte 0xe9 is", id="Latin-1 after BOM"
        ),
        pytest.param("text,label\na,1\n".encode("utf-16"), "rows.csv, line 1: byte 0xff is not UTF-8", id="UTF-16"),
    ],
)
def test_a_csv_that_cannot_be_used_is_refused_with_its_line(tmp_path, content, message):
    assert refusal(written(tmp_path, content), "text", "label").startswith(message)


@pytest.mark.parametrize("name", ["rows.tsv", "rows.txt", "ROWS.TSV"])
def test_in_tsv_a_quote_is_a_character(tmp_path, name):
    rows = read(written(tmp_path, 'text\tn\n"a\t1\nsay ""no""\t2\nx, "y"\\\t3\r\n', name))
    assert rows.columns == {"text": ['"a', 'say ""no""', 'x, "y"\\'], "n": ["1", "2", "3"]}
    assert rows.lines == [2, 3, 4]


def test_a_short_tsv_row_is_refused(tmp_path):
    assert refusal(written(tmp_path, 'text\tn\n"a\nb"\t1\n', "rows.tsv")).startswith("rows.tsv, line 2: 1 fields")


def test_any_text_survives_the_csv_writer(tmp_path):
    draw = random.Random(1)
    texts = ["".join(draw.choices('ab ,"\n\r\t\u2028é火', k=draw.randrange(12))) for _ in range(300)]
    out = io.StringIO(newline="")
    csv.writer(out).writerows([["id", "text"], *enumerate(texts)])
    assert read(written(tmp_path, out.getvalue()))["text"] == texts


# === jsonl ===


def test_jsonl_values_become_texts(tmp_path):
    lines = [
        '{"text": "a\u2028b \\n\\u00e9", "label": ["fire", "flood"], "n": 1, "x": null, "y": {"k": "é"}}',
        "",
        '{"y": 12345678901234567890, "x": true, "n": 1.0, "label": [], "text": ""}',
    ]
    rows = read(written(tmp_path, "\r\n".join(lines), "rows.jsonl"))
    assert rows.columns == {
        "text": ["a\u2028b \né", ""],
        "label": ["fire,flood", ""],
        "n": ["1", "1.0"],
        "x": ["", "true"],
        "y": ['{"k": "é"}', "12345678901234567890"],
    }
    assert rows.lines == [1, 3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param("", "rows.jsonl: is empty", id="0 bytes"),
        pytest.param('{"text": "a"}\n{text: "b"}\n', "rows.jsonl, line 2: not valid JSON", id="bad JSON"),
        pytest.param('{"text": "a"}\n\n{"text": "b"\n}\n', "rows.jsonl, line 3: not valid JSON", id="over two lines"),
        pytest.param("[" * 100_000, "rows.jsonl, line 1: not valid JSON", id="deep nesting"),
        pytest.param('{"text": "a"}\n["b"]\n', "rows.jsonl, line 2: holds a list, not an object", id="a list"),
        pytest.param('"text"\n', "rows.jsonl, line 1: holds a str, not an object", id="a string"),
        pytest.param('{}\n{"text": "a"}\n', "rows.jsonl, line 1: holds an object without keys", id="no keys"),
        pytest.param(
            '{"text": "a"}\n{"text": "b", "n": 1}\n',
            "rows.jsonl, line 2: keys ['text', 'n'] differ from ['text'] of the first row",
            id="more keys",
        ),
        pytest.param('{"body": "a"}\n', "rows.jsonl, line 1: has no column text; its columns are body", id="no text"),
    ],
)
def test_a_jsonl_that_cannot_be_used_is_refused_with_its_line(tmp_path, content, message):
    assert refusal(written(tmp_path, content, "rows.jsonl"), "text").startswith(message)


# === Files (D7, D8) ===


def test_several_files_are_one_table(tmp_path):
    first = written(tmp_path, "text,n\na,1\nb,2\n", "part-0.csv")
    second = written(tmp_path, '{"n": 3, "text": "c"}\n', "part-1.jsonl")
    for pattern in (f"{first},{second}", tmp_path / "part-*"):
        rows = read(pattern)
        assert rows.columns == {"text": ["a", "b", "c"], "n": ["1", "2", "3"]}
        assert [rows.where(i) for i in range(3)] == [f"{first}, line 2", f"{first}, line 3", f"{second}, line 1"]


def test_the_files_of_a_glob_are_sorted(tmp_path):
    paths = [str(written(tmp_path, "text\na\n", f"{i}.csv")) for i in (2, 0, 1)]
    assert find(tmp_path / "*.csv") == sorted(paths)
    assert find(f"{paths[0]},{tmp_path / '[01].csv'}") == [paths[0], *sorted(paths[1:])]


@pytest.mark.parametrize("name", ["a,b.csv", "a[1].csv", "a*.csv"])
def test_a_file_may_be_named_like_a_pattern(tmp_path, name):
    assert read(written(tmp_path, "text\na\n", name))["text"] == ["a"]


def test_files_with_different_columns_are_refused(tmp_path):
    first = written(tmp_path, "text,n\na,1\n", "a.csv")
    second = written(tmp_path, "text,label\nb,2\n", "b.csv")
    message = refusal(f"{first},{second}")
    assert message == f"{second}: columns ['text', 'label'] differ from ['text', 'n'] of {first}"


def test_a_path_that_is_no_data_file_is_refused(tmp_path):
    (tmp_path / "rows.csv").mkdir()
    assert refusal(tmp_path / "rows.csv").startswith("rows.csv: is a directory; name a file, or a glob such as")
    assert refusal(tmp_path / "none.csv") == "none.csv: cannot be read (No such file or directory)"
    assert refusal(tmp_path / "no*.csv") == "no*.csv: matches no file"
    assert refusal(written(tmp_path, "a", "rows.xlsx")).startswith("rows.xlsx: unknown kind of file '.xlsx'; known are")
    assert "cannot be read" in refusal("x" * 5000 + ".csv")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes on this system")
def test_a_named_pipe_is_refused_and_does_not_hang(tmp_path):
    path = tmp_path / "rows.csv"
    os.mkfifo(path)
    code = f"from keras_bert.data import read; read({str(path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False)
    assert "rows.csv: is not a regular file" in done.stderr


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may read every file")
def test_a_file_without_permission_is_refused(tmp_path):
    path = written(tmp_path, "text\na\n")
    path.chmod(0)
    assert refusal(path) == "rows.csv: cannot be read (Permission denied)"


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path, stat = written(tmp_path, "text\na\n"), os.stat

    def stat_then_grow(name, **options):
        result = stat(name, **options)
        if str(name) == str(path):
            with path.open("a") as file:
                file.write("b\n")
        return result

    monkeypatch.setattr(os, "stat", stat_then_grow)
    assert refusal(path).startswith("rows.csv: changed while it was read")


def test_a_file_that_vanishes_is_refused(tmp_path, monkeypatch):
    path, stat = written(tmp_path, "text\na\n"), os.stat

    def stat_then_delete(name, **options):
        result = stat(name, **options)
        path.unlink(missing_ok=True)
        return result

    monkeypatch.setattr(os, "stat", stat_then_delete)
    assert refusal(path) == "rows.csv: cannot be read (No such file or directory)"


# === Real files ===


def test_the_carried_sample():
    rows = read(SAMPLE, ["id", "text", "target"])
    assert len(rows) == 480
    assert find_labels(rows, "target") == ("0", "1")
    assert Counter(rows["target"]) == {"0": 264, "1": 216}
    assert rows["id"] == [str(i) for i in range(1, 481)]
    assert all(text.strip() for text in rows["text"])


def test_disaster_tweets():
    rows = read(shared("data/disaster_tweets/train.csv"), ["id", "text", "target"])
    assert len(rows) == 7613
    assert find_labels(rows, "target") == ("0", "1")
    assert Counter(rows["target"])["1"] == 3271
    raw = shared("data/disaster_tweets/train.csv").read_bytes().split(b"\n")
    assert all(raw[rows.lines[i] - 1].startswith(rows["id"][i].encode() + b",") for i in range(7613))


# === Rows ===


def test_take_keeps_order_and_places():
    rows = labelled("a", "b", "c").take([2, 0])
    assert rows["label"] == ["c", "a"]
    assert [rows.where(i) for i in (0, 1)] == ["train.csv, line 4", "train.csv, line 2"]
    assert len(labelled("a").take([])) == 0


# === Labels (D2) ===


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (("1", "0", "1"), ("0", "1")),
        (("10", "9", "-1", "2"), ("-1", "2", "9", "10")),
        (("1.5", "0.5", "1"), ("0.5", "1", "1.5")),
        (("yes", "no"), ("no", "yes")),
        (("b", "10", "9"), ("10", "9", "b")),
        (("nan", "1", "0"), ("0", "1", "nan")),
        (("1", "nan", "0"), ("0", "1", "nan")),
        (("inf", "Infinity"), ("Infinity", "inf")),
        (("1_0", "10"), ("10", "1_0")),
        (("é", "z"), ("z", "é")),
    ],
)
def test_labels_in_their_order(values, labels):
    assert find_labels(labelled(*values), "label") == labels


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("1", "", "0"), "train.csv, line 3: no label; every training row needs a label"),
        (("1", " \t", "0"), "train.csv, line 3: no label"),
        (("1", "1", "1"), "train.csv: all 3 rows have the label '1'; need two"),
        (("1", "0", "1.0"), "train.csv, line 4: label '1.0' is '1' written another way"),
        (("1", " 1", "0"), "train.csv, line 3: label ' 1' is '1' written another way"),
        (("0", "-0", "1"), "train.csv, line 3: label '-0' is '0' written another way"),
        (("1", "01", "fire"), "train.csv, line 3: label '01' is '1' written another way"),
        ([str(i / 7) for i in range(60)], "train.csv: label has 60 different numbers; use --task=regress"),
    ],
)
def test_labels_that_cannot_be_meant_are_refused(values, message):
    with pytest.raises(DataError) as caught:
        find_labels(labelled(*values), "label")
    assert str(caught.value).startswith(message)


def test_find_multilabels():
    assert find_multilabels(labelled("fire, flood", "", "storm,fire,"), "label") == ("fire", "flood", "storm")
    with pytest.raises(DataError, match=r"train.csv: no row has a label; expected comma lists"):
        find_multilabels(labelled("", " , "), "label")


def encode_labels(rows, task, labels):
    """The labels of the examples that the source of a task makes of rows."""
    config = HeadConfig(task=task, labels=tuple(labels))
    encoded, references = source_of(config).encode(rows, DataConfig(), config, None)
    assert references is None
    return encoded


@pytest.mark.parametrize(
    ("task", "labels", "values", "encoded", "kind"),
    [
        ("classify", ("no", "yes"), ("yes", "no", "yes"), [1, 0, 1], np.int32),
        ("multilabel", ("a", "b", "c"), ("c, a", "", "b"), [[1, 0, 1], [0, 0, 0], [0, 1, 0]], np.float32),
        ("regress", (), ("1", "-2.5", " 1e3 "), [1, -2.5, 1000], np.float32),
        ("classify", ("no", "yes"), (), [], np.int32),
        ("multilabel", ("a", "b"), (), np.zeros((0, 2)), np.float32),
    ],
)
def test_encode_labels(task, labels, values, encoded, kind):
    found = encode_labels(labelled(*values), task, labels)
    assert found.dtype == kind
    np.testing.assert_array_equal(found, np.array(encoded, kind), strict=True)


@pytest.mark.parametrize(
    ("task", "value", "message"),
    [
        ("classify", "maybe", "label 'maybe' is not among the labels ['no', 'yes'] of training"),
        ("classify", "", "label '' is not among the labels"),
        ("classify", "yes ", "label 'yes ' is not among the labels"),
        ("multilabel", "no,maybe", "label 'maybe' is not among the labels"),
        *[("regress", value, f"label {value!r} is not a number") for value in ("", "x", "1,5", "nan", "NaN", "-inf")],
        *[("regress", value, f"label {value!r} is not a number") for value in ("1_000", "1e39")],
    ],
)
def test_a_label_that_cannot_be_encoded_is_refused_with_its_line(task, value, message):
    rows = labelled("1" if task == "regress" else "no", value)
    with pytest.raises(DataError) as caught:
        encode_labels(rows, task, ("no", "yes") if task != "regress" else ())
    assert str(caught.value).startswith(f"train.csv, line 3: {message}")


def test_many_labels_are_not_all_listed():
    with pytest.raises(DataError, match=r"'label9'\] and 15 more of training"):
        encode_labels(labelled("x"), "classify", [f"label{i}" for i in range(25)])


# === Splits ===


@pytest.mark.parametrize("seed", [0, 1, 12345])
@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_split_covers_all_rows_in_stratified_shares(seed, share):
    draw = random.Random(seed)
    strata = draw.choices(["a", "b", "c"], [0.7, 0.2, 0.1], k=1000)
    groups = [str(draw.randrange(700)) for _ in range(1000)]  # many rows have an equal
    kept, held = split(groups, strata, share, seed)
    assert sorted(kept + held) == list(range(1000))
    assert (kept, held) == (sorted(kept), sorted(held))
    assert not {groups[i] for i in kept} & {groups[i] for i in held}
    first = {group: strata[groups.index(group)] for group in groups}
    totals = Counter(first[group] for group in groups)
    counts = Counter(first[groups[i]] for i in held)
    assert all(abs(counts[name] - share * totals[name]) <= 3 for name in totals)


def test_split_is_exact_without_equal_rows():
    strata = ["a"] * 90 + ["b"] * 10
    _, held = split([str(i) for i in range(100)], strata, 0.2, 7)
    assert Counter(strata[i] for i in held) == {"a": 18, "b": 2}


def test_split_depends_on_the_seed_alone():
    groups, strata = [str(i) for i in range(200)], ["a", "b"] * 100
    assert split(groups, strata, 0.2, 1) == split(groups, strata, 0.2, 1)
    assert split(groups, strata, 0.2, 1) != split(groups, strata, 0.2, 2)
    _, held = split([str(i) for i in range(10)], ["a"] * 10, 0.3, 12345)
    assert held == [0, 2, 4]  # the same on every machine


def table(texts, labels, pairs=None) -> Table:
    columns = {"text": list(texts), "label": list(labels)} | ({} if pairs is None else {"pair": list(pairs)})
    return Table(columns, ["train.csv"] * len(texts), list(range(2, len(texts) + 2)))


def test_hold_out_keeps_equal_texts_together():
    texts = [f"text {i // 4}" for i in range(200)]
    texts[1::4] = [f"  TEXT {i // 4} " for i in range(1, 200, 4)]  # equal but for case and spaces
    kept, held = hold_out(table(texts, ["0", "1"] * 100), DataConfig(), source_of(TASKS["classify"]), 0.1, 1)
    assert len(held) == 20
    assert not {i // 4 for i in kept} & {i // 4 for i in held}


def test_hold_out_of_pairs_looks_at_both_texts():
    rows = table(["same"] * 40, ["0", "1"] * 20, [f"second {i // 2}" for i in range(40)])
    kept, held = hold_out(rows, DataConfig(text_pair_column="pair"), source_of(TASKS["classify"]), 0.1, 1)
    assert len(held) == 4
    assert not {i // 2 for i in kept} & {i // 2 for i in held}


def test_hold_out_does_not_stratify_numbers():
    rows = table([f"text {i}" for i in range(20)], [str(i / 7) for i in range(20)])
    kept, held = hold_out(rows, DataConfig(), source_of(TASKS["regress"]), 0.1, 1)
    assert (len(kept), len(held)) == (18, 2)


@pytest.mark.parametrize("texts", [["a", "b", "c"], ["a"] * 100])
def test_too_few_rows_to_hold_out_are_refused(texts):
    with pytest.raises(DataError, match=rf"\d+ rows are too few to hold out 10% .* {len({*texts})} differ"):
        hold_out(table(texts, ["0"] * len(texts)), DataConfig(), source_of(TASKS["classify"]), 0.1, 1)


# === Batches ===


def padding(batches: list[np.ndarray], sizes: np.ndarray) -> float:
    """Share of positions that hold padding."""
    cells = sum(len(batch) * sizes[batch].max() for batch in batches)
    return float(1 - sizes.sum() / cells)


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 5000])
def test_every_row_is_in_exactly_one_batch(count):
    sizes = np.random.default_rng(3).integers(3, 128, count)
    ways = (batches_at_random(count, 32, 1, 0), batches_at_random(count, 32, 1, 0, sizes), batches_in_order(sizes, 32))
    for batches in ways:
        assert sorted(i for batch in batches for i in batch) == list(range(count))
        assert all(0 < len(batch) <= 32 for batch in batches)


@pytest.mark.parametrize("sizes", [None, np.random.default_rng(3).integers(3, 128, 1000)])
def test_the_order_of_an_epoch_is_given_by_seed_and_epoch(sizes):
    ways = [(s, e) for s in (1, 2) for e in (0, 1)]
    flat = {way: np.concatenate(batches_at_random(1000, 32, *way, sizes)).tolist() for way in ways}
    assert flat[1, 0] == np.concatenate(batches_at_random(1000, 32, 1, 0, sizes)).tolist()
    assert len({tuple(order) for order in flat.values()}) == 4


def test_rows_of_like_length_are_together_and_batches_are_not_sorted():
    sizes = np.random.default_rng(3).integers(3, 128, 5000)
    batches = batches_at_random(5000, 32, 1, 0, sizes)
    assert padding(batches, sizes) < 0.05 < 0.4 < padding(batches_at_random(5000, 32, 1, 0), sizes)
    longest = [int(sizes[batch].max()) for batch in batches]
    assert 0.3 < np.mean(np.diff(longest) > 0) < 0.7


def test_an_evaluation_goes_from_long_to_short():
    sizes = np.array([3, 9, 5, 9, 7])
    assert [batch.tolist() for batch in batches_in_order(sizes, 2)] == [[1, 3], [4, 2], [0]]


def test_batches_of_windows_hold_as_many_as_they_should():
    sizes, counts = np.array([3, 9, 5, 9, 7]), np.array([1, 4, 1, 2, 1])
    assert [b.tolist() for b in batches_in_order(sizes, 3, counts)] == [[1], [3, 4], [2, 0]]
    assert batches_in_order(sizes[:0], 3, counts[:0]) == []


# === Examples for TensorFlow ===

TEXTS = ["the fire", "flood", "", "music in the city . music", "storm songs"]
PAIRS = ["is on", "", "the game", "a", "b c"]


@pytest.fixture(scope="module")
def text() -> Text:
    return Text(WORDS, TextConfig(max_seq_length=8))


@pytest.mark.parametrize("pairs", [(), (PAIRS,)])
@pytest.mark.parametrize("labels", [None, np.array([1, 0, 1, 0, 1], np.int32), np.eye(5, dtype=np.float32)])
def test_dataset_yields_what_text_gives(text, pairs, labels):
    batches = [np.array([3, 0]), np.array([], np.int64), np.array([4, 1, 2])]
    elements = list(dataset(Examples((TEXTS, *pairs), labels), rows_of(text), batches))
    assert len(elements) == 3
    for batch, found in zip(batches, elements, strict=True):
        expected = text([TEXTS[i] for i in batch], *([other[i] for i in batch] for other in pairs))
        assert set(found["features"]) == {"token_ids", "segment_ids", "padding_mask"}
        for name, value in found["features"].items():
            np.testing.assert_array_equal(value, expected[name], strict=True)
        np.testing.assert_array_equal(found["numbers"], batch + 1)
        np.testing.assert_array_equal(found["weights"], np.ones(len(batch), np.float32), strict=True)
        if labels is not None:
            np.testing.assert_array_equal(found["labels"], labels[batch], strict=True)
        assert len(found["labels"]) == len(batch)


def test_rows_that_only_fill_up_have_number_0(text):
    (found,) = dataset(Examples((TEXTS,), np.arange(5)), rows_of(text), [np.array([3, 0])], fixed=(4, 8))
    assert found["features"]["token_ids"].shape == (4, 8)
    assert found["numbers"].numpy().tolist() == [4, 1, 0, 0]
    assert found["weights"].numpy().tolist() == [1, 1, 0, 0]


def test_no_rows_are_no_trouble(text):
    assert list(dataset(Examples(([],)), rows_of(text), [])) == []
    found, *rest = dataset(Examples(([],)), rows_of(text), [np.zeros(0, np.int64)])
    assert not rest
    assert (found["features"]["token_ids"].shape, found["labels"].shape, found["numbers"].shape) == ((0, 2), (0,), (0,))
    assert lengths(Examples(([],)), text).shape == (0,)


@pytest.mark.parametrize(("pairs", "expected"), [((), [4, 3, 2, 8, 5]), ((PAIRS,), [7, 4, 5, 8, 8])])
@pytest.mark.parametrize("chunk", [2, 1024])
def test_lengths_are_those_after_cutting(text, pairs, expected, chunk):
    found = lengths(Examples((TEXTS, *pairs)), text, chunk)
    assert found.dtype == np.int32
    assert found.tolist() == expected
    whole = lengths(Examples((TEXTS, *pairs)), text, chunk, cut=False)
    assert np.minimum(whole, 8).tolist() == expected
    assert whole.max() > 8 or not pairs


def test_a_lone_surrogate_of_a_jsonl_is_read_like_any_invalid_byte(tmp_path, text):
    rows = read(written(tmp_path, '{"text": "fire \\ud800", "pair": "\\udfff"}\n', "rows.jsonl"))
    examples = Examples((rows["text"], rows["pair"]))
    cls, sep, fire = (WORDS.index(piece) for piece in ("[CLS]", "[SEP]", "fire"))
    assert lengths(examples, text).tolist() == [4]
    (found,) = dataset(examples, rows_of(text), [np.array([0])])
    assert found["features"]["token_ids"].numpy().tolist() == [[cls, fire, sep, sep]]


def test_examples_with_a_missing_second_text_are_refused():
    with pytest.raises(DataError, match="2 texts but 1 second texts"):
        Examples((["a", "b"], ["c"]))
