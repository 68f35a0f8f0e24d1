"""Vocabulary files: what is read, and the one line that says what is wrong with the others."""

import json
import os
import subprocess
import sys

import pytest
from conftest import shared

from keras_bert.errors import DataError
from keras_bert.text.vocabulary import MAX_BYTES, check_vocabulary, read_vocabulary

GOOD = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "fire", "##s"]


def refusal(path) -> str:
    """The message that reading `path` ends with: one line that begins with the file."""
    with pytest.raises(DataError) as caught:
        read_vocabulary(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message.removeprefix(str(path))


def lines(*pieces: str) -> bytes:
    return "".join(piece + "\n" for piece in pieces).encode()


def test_pieces_come_in_the_order_of_lines(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes(lines(*GOOD))
    assert read_vocabulary(path) == read_vocabulary(str(path)) == GOOD
    path.write_bytes(lines(*GOOD).removesuffix(b"\n"))  # no line end at the end
    assert read_vocabulary(path) == GOOD
    path.write_bytes(lines(*GOOD).replace(b"\n", b"\r\n"))
    assert read_vocabulary(path) == GOOD


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        pytest.param(b"", ": empty", id="0 bytes"),
        pytest.param(b"\n\n", ": empty", id="nothing but line ends"),
        pytest.param(b"\xef\xbb\xbf" + lines(*GOOD), ", line 1: starts with a byte order mark", id="BOM"),
        pytest.param(lines(*GOOD[:4], "", "fire"), ", line 5: blank", id="blank line"),
        pytest.param(lines(*GOOD, ""), ", line 7: blank", id="blank last line"),
        pytest.param(lines(*GOOD, "fire"), ", line 7: repeats 'fire' of line 5", id="duplicate"),
        pytest.param(lines("[CLS]", "[SEP]", "a"), ": has no [UNK] on any of its 3 lines", id="no [UNK]"),
        pytest.param(lines("[UNK]", "[SEP]", "a"), ": has no [CLS]", id="no [CLS]"),
        pytest.param(lines("a", "b"), ": has no [UNK], [CLS], [SEP]", id="another file"),
        pytest.param("\n".join([*GOOD, "é"]).encode("latin-1"), ", line 7: byte 0xe9 is not UTF-8", id="Latin-1"),
        pytest.param("\n".join(GOOD).encode("utf-16"), ", line 1: holds a NUL byte", id="UTF-16"),
        pytest.param(lines(*GOOD) + b"\x7fELF\0\1", ", line 7: holds a NUL byte", id="binary"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, content, complaint):
    path = tmp_path / "vocab.txt"
    path.write_bytes(content)
    assert refusal(path).startswith(complaint)


def test_a_huge_file_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "vocab.txt"
    path.touch()
    os.truncate(path, 16 * MAX_BYTES)  # 1 GB, but no block of it on the disk
    assert refusal(path).startswith(": 1,073,741,824 bytes is no vocabulary")


def test_what_is_no_file_is_refused(tmp_path):
    assert refusal(tmp_path).startswith(": not a file")
    assert refusal(tmp_path / "none.txt").startswith(": cannot be read (No such file or directory)")
    assert refusal(tmp_path / "none.txt" / "vocab.txt").startswith(": cannot be read (")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes on this system")
def test_a_named_pipe_is_refused_and_does_not_hang(tmp_path):
    path = tmp_path / "vocab.txt"
    os.mkfifo(path)
    code = f"from keras_bert.text.vocabulary import read_vocabulary; read_vocabulary({str(path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False)
    assert "vocab.txt: not a file" in done.stderr


# === tokenizer.json ===


def tokenizer(vocab, kind="WordPiece") -> str:
    return json.dumps({"version": "1.0", "model": {"type": kind, "vocab": vocab}}, ensure_ascii=False)


TABLE = {piece: i for i, piece in enumerate(GOOD)}


@pytest.mark.parametrize("order", [1, -1])
def test_a_tokenizer_file_gives_its_pieces_in_the_order_of_ids(tmp_path, order):
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer(dict(list(TABLE.items())[::order])), "utf-8")
    assert read_vocabulary(path) == GOOD


def test_a_tokenizer_file_may_leave_its_type_out(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"model": {"vocab": TABLE}}), "utf-8")
    assert read_vocabulary(path) == GOOD


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        pytest.param("{not json", ": not a tokenizer file", id="broken JSON"),
        pytest.param("[" * 100_000, ": not a tokenizer file", id="deep nesting"),
        pytest.param("[1, 2]", ": not a tokenizer file", id="a list"),
        pytest.param("{}", ": not a tokenizer file", id="no model"),
        pytest.param('{"model": null}', ": not a tokenizer file", id="no model at all"),
        pytest.param('{"model": {"type": "WordPiece"}}', ": not a tokenizer file", id="no vocabulary"),
        pytest.param(tokenizer(["a", "b"]), ": not a tokenizer file", id="a list of pieces"),
        pytest.param(tokenizer({"a": 0, "b": "1"}), ": not a tokenizer file", id="ids of two kinds"),
        pytest.param(tokenizer(TABLE, "BPE"), ": a BPE tokenizer; BERT needs WordPiece", id="BPE"),
        pytest.param(tokenizer([["a", -1.5]], "Unigram"), ": a Unigram tokenizer; BERT needs", id="Unigram"),
        pytest.param(tokenizer(TABLE | {"a": 7}), ": ids do not run from 0 to 6 without gaps", id="gap"),
        pytest.param(tokenizer(TABLE | {"a": 5}), ": ids do not run from 0 to 6 without gaps", id="same id"),
        pytest.param(tokenizer({"a": 1, "b": 2}), ": ids do not run from 0 to 1 without gaps", id="from 1"),
        pytest.param(tokenizer({}), ": has no [UNK], [CLS], [SEP]", id="no pieces"),
        pytest.param(tokenizer(TABLE | {"": 6}), ", line 7: blank", id="empty piece"),
        pytest.param(tokenizer(TABLE | {"a\nb": 6}), ", line 7: 'a\\nb' holds a line break", id="line break"),
    ],
)
def test_another_json_file_is_refused(tmp_path, content, complaint):
    path = tmp_path / "tokenizer.json"
    path.write_text(content, "utf-8")
    assert refusal(path).startswith(complaint)


# === Pieces and files of the world ===


def test_only_line_feeds_end_a_piece(tmp_path):
    odd = ["\u2028", "##\u2028", "\u0085", "\u3000", "\x0b", "a\u2029b"]
    path = tmp_path / "vocab.txt"
    path.write_bytes(lines(*GOOD, *odd))
    assert read_vocabulary(path) == [*GOOD, *odd]


@pytest.mark.parametrize(
    ("name", "count", "somewhere"),
    [
        ("uncased", 30522, {101: "[CLS]", 7592: "hello", 30521: "##～"}),
        ("cased", 28996, {101: "[CLS]"}),
        ("chinese", 21128, {101: "[CLS]", 343: "\u2028", 13502: "##\u2028"}),
        ("multi_cased", 119547, {101: "[CLS]"}),
    ],
)
def test_the_published_vocabularies(name, count, somewhere):
    pieces = read_vocabulary(shared(f"data/vocab/{name}/vocab.txt"))
    assert len(pieces) == count
    assert {i: pieces[i] for i in somewhere} == somewhere


def test_check_gives_the_ids_and_names_the_source():
    assert check_vocabulary(GOOD, "mine") == TABLE
    with pytest.raises(DataError, match=r"^mine, line 2: repeats"):
        check_vocabulary(["[UNK]", "[UNK]"], "mine")


# === No TensorFlow ===


@pytest.mark.parametrize(
    "module",
    [
        *("text.vocabulary", "config", "data.tables", "data.source", "data.batches", "checkpoints.checkpoints"),
        *("tasks.metrics", "progress", "rules", "text", "data", "checkpoints", "tasks", "training", "serving"),
    ],
)
def test_checks_before_training_need_no_tensorflow(module):
    code = f"import sys, keras_bert.{module}; print(*(m for m in ('tensorflow', 'keras') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == ""
