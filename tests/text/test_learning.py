"""Learned vocabularies: their order, what they promise, the same bytes on every run, and refusals in one line."""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import shared
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_bert.__main__ import main
from keras_bert.cli import vocab
from keras_bert.errors import ConfigError, DataError
from keras_bert.progress import Progress
from keras_bert.text import learning
from keras_bert.text.learning import alphabet, count_words, first_rows, learn, splitter, unknown_share
from keras_bert.text.normalization import code_points
from keras_bert.text.vocabulary import read_vocabulary
from keras_bert.text.wordpiece import WordPiece

pytest.importorskip("tokenizers", reason="the extra `vocab` installs it")

SMALL = {"vocab_size": 300, "num_unused": 10, "min_frequency": 1, "stream": None}
TEXT = "The fires spread. Two fires, one forest; the forests burn! Café 学会 über 学\n" * 3


def words_of(*lines: str) -> Counter[str]:
    return count_words(lines, do_lower_case=True)


# === Splitting as the tokenizers do ===


def assert_splits_alike(text: str, lower: bool, flavour: str) -> None:
    """With all its words in the vocabulary, the tokenizer's pieces are the words."""
    words = splitter(lower, flavour)(text)
    limit = {"original": 200, "hf": 100}[flavour]
    pieces = WordPiece(["[UNK]", *dict.fromkeys(words)], lower, flavour).tokenize(text).pieces
    assert pieces == [word if len(word) <= limit else "[UNK]" for word in words]


CASES = [(lower, flavour) for lower in (False, True) for flavour in ("original", "hf")]
ODD = "aA zßİſﬁǅ\t\n\r\x0b\x00\x1c\x85\xad\u2028\u3000\ufeff\ufffdΣσςΑ.,!'学\ue000\U0002b820\u0301\u0345한각"
ODD += "\ud800\udfff#[MASK]"


@pytest.mark.parametrize(("lower", "flavour"), CASES)
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_any_text_is_split_as_the_tokenizer_does(lower, flavour, seed):
    rng = random.Random(seed)  # one long text an example: to build a tokenizer takes time
    runs = (rng.choices(ODD, k=9) if rng.random() < 0.8 else [chr(rng.randrange(0x110000))] for _ in range(3000))
    assert_splits_alike("".join(c for run in runs for c in run), lower, flavour)


@pytest.mark.parametrize(("lower", "flavour"), CASES)
def test_hard_texts_are_split_as_the_tokenizer_does(lower, flavour):
    sigmas = "ΑΣ ΑΣΑ Σ ΣΣ ΑΣ' Α'Σ.Α Α\u0301Σ\u00ad ΑΣ\ud800 ΑΣ\ud800Α x\u0345Σ. ΟΔΥΣΣΕΥΣ\nΑΣ ΣΣΣΣΣ Α.Σ.Σ Σ"
    for text in (sigmas, "", "x" * 250 + " " + "y" * 200):
        assert_splits_alike(text, lower, flavour)


@pytest.mark.slow
@pytest.mark.parametrize(("lower", "flavour"), CASES)
def test_every_character_is_split_as_the_tokenizer_does(lower, flavour):
    codes = list(code_points())
    for start in range(0, len(codes), 5000):
        assert_splits_alike("".join(f"{chr(c)} a{chr(c)}b " for c in codes[start : start + 5000]), lower, flavour)


def test_words_are_counted_across_texts():
    assert words_of("A b.", "b\nÉ") == {"a": 1, "b": 2, ".": 1, "e": 1}
    assert count_words(["A b."], do_lower_case=False) == {"A": 1, "b": 1, ".": 1}


def test_memory_is_bounded_and_frequent_words_stay():
    def lines():
        for i in range(3000):
            yield f"often seldom{i} rare{i} once{i} often"

    counts = count_words(lines(), True, max_different=1000)
    assert len(counts) <= 1000 + 5
    assert counts["often"] == 6000
    assert counts == count_words(lines(), True, max_different=1000)


# === What a vocabulary looks like ===


def test_the_first_rows_are_those_of_published_vocabularies():
    published = read_vocabulary(shared("data/vocab/uncased/vocab.txt"))
    rows = first_rows(994)
    assert rows == published[: len(rows)]
    assert [rows.index(t) for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")] == [0, 100, 101, 102, 103]


def test_rows_with_few_slots_and_reserved_tokens():
    assert first_rows(2, ["[E1]", "<num>"]) == [
        *("[PAD]", "[unused0]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[E1]", "<num>")
    ]
    assert first_rows(0) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def test_characters_come_first_and_then_the_most_useful_pieces():
    pieces = learn(words_of("aab aab aab aab 学 . ab"), 100, 1, 0, stream=None)
    # a ##a and ##a ##b occur 4 times, a ##b once; of equals the pair that comes first in the order of rows
    assert pieces == [*first_rows(0), ".", "a", "b", "学", "##a", "##b", "aa", "aab", "ab"]


@pytest.mark.parametrize("size", [27, 28, 30, 32, 33])
def test_the_size_is_met_exactly(size):
    pieces = learn(words_of("the them then there"), size, 1, 10, stream=None)
    singles = [*"ehmnrt", *(f"##{c}" for c in "ehmnrt")]
    assert pieces == [*first_rows(10), *singles, "th", "the", "##re", "them", "then", "there"][:size]


def test_where_words_are_few_so_are_the_pieces():
    pieces = learn(words_of("ab ab"), 30000, stream=None)
    assert pieces[-5:] == ["a", "b", "##a", "##b", "ab"]
    assert len(pieces) == 999 + 5


def test_reserved_tokens_are_there_once_whatever_the_text_says():
    pieces = learn(words_of("fire fire fires x"), **SMALL, reserved_tokens=["fire", "[E1]", "x", "##s"])
    assert pieces[15:19] == ["fire", "[E1]", "x", "##s"]
    assert len(pieces) == len(set(pieces))
    # what is reserved is not learned again and takes no other's place
    assert learn(words_of("fire fire"), 27, 1, 10, ["fire", "zz"], stream=None)[25:] == ["fi", "##re"]


def test_rare_characters_and_pieces_are_left_out():
    counts = words_of("abc abc q")
    assert "q" in learn(counts, **SMALL)
    pieces = learn(counts, **SMALL | {"min_frequency": 2})
    assert "q" not in pieces
    assert "abc" in pieces
    assert unknown_share(counts, pieces) == pytest.approx(1 / 3)
    assert alphabet(counts, limit=2) == ["a", "b"]
    assert alphabet(Counter(["z", "y", "b", "c"]), limit=2) == ["b", "c"]  # of equals the lower code points
    assert alphabet(Counter({"a" * 99_999: 1, "z": 1})) == ["a"]  # 99.99% is covered without it
    assert alphabet(Counter({"a" * 9_997: 1, "z": 3})) == ["a", "z"]


@pytest.mark.parametrize("flavour", ["original", "hf"])
def test_only_words_with_other_characters_are_unknown(flavour):
    counts = count_words([TEXT, "q " + "x" * 300], True, flavour)
    pieces = learn(counts, **SMALL | {"min_frequency": 2}, flavour=flavour)
    tokenizer = WordPiece(pieces, True, flavour)
    unknown = {word for word in counts if "[UNK]" in tokenizer.tokenize(word).pieces}
    assert unknown == {"q", "x" * 300}
    anew = "".join(random.Random(1).choices([p for p in pieces if len(p) == 1], k=150))
    assert "[UNK]" not in tokenizer.tokenize(anew[:90]).pieces
    assert unknown_share(counts, pieces, flavour) == 2 / counts.total()


def test_cjk_and_punctuation_have_no_second_form():
    pieces = learn(words_of(TEXT), **SMALL)
    assert "学" in pieces
    assert "##学" not in pieces
    assert "##." not in pieces
    assert "##e" in pieces


def test_large_counts_are_divided_and_give_the_same(monkeypatch):
    counts = words_of("the fires spread the forest", "the forests burn the the")
    many = Counter({word: 1000 * n for word, n in counts.items()})
    expected = learn(counts, **SMALL)
    monkeypatch.setattr(learning, "MAX_FED", sum(n for w, n in counts.items() if len(w) > 1))
    assert learn(many, **SMALL) == expected
    # and so are the least frequencies, rounded up
    assert learn(many, **SMALL | {"min_frequency": 1001}) == learn(counts, **SMALL | {"min_frequency": 2})


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"vocab_size": 0}, "vocab_size must be at least 1, got 0"),
        ({"min_frequency": 0}, "min_frequency must be at least 1"),
        ({"num_unused": -1}, "num_unused must be at least 0"),
        ({"limit_alphabet": -1}, "limit_alphabet must be at least 0"),
        ({"reserved_tokens": [""]}, "reserved token '': must not be empty or hold white space"),
        ({"reserved_tokens": ["a b"]}, "reserved token 'a b': must not be empty"),
        ({"reserved_tokens": ["a", "a"]}, "reserved token 'a': is in the vocabulary already"),
        ({"reserved_tokens": ["[CLS]"]}, r"reserved token '\[CLS\]': is in the vocabulary already"),
        ({"reserved_tokens": ["[unused3]"]}, "is in the vocabulary already"),
        ({"flavour": "none"}, "no tokenizer flavour 'none'"),
        ({"vocab_size": 40}, "vocab_size 40 is too small: 15 rows for .* characters; make it [0-9]+ or more, or lower"),
    ],
)
def test_what_cannot_be_is_refused(options, complaint):
    with pytest.raises(ConfigError, match=f"^{complaint}|{complaint}") as caught:
        learn(words_of(TEXT), **SMALL | options)
    assert "\n" not in str(caught.value)


def test_the_size_named_in_the_refusal_is_enough():
    with pytest.raises(ConfigError) as caught:
        learn(words_of(TEXT), **SMALL | {"vocab_size": 20})
    least = int(str(caught.value).split("make it ")[1].split()[0])
    assert len(learn(words_of(TEXT), **SMALL | {"vocab_size": least})) == least
    with pytest.raises(ConfigError, match="too small"):
        learn(words_of(TEXT), **SMALL | {"vocab_size": least - 1})


def test_texts_without_words_are_refused():
    with pytest.raises(DataError, match="there are no words"):
        learn(words_of(" \n\x00"), **SMALL)
    with pytest.raises(DataError, match="no character occurs 5 times"):
        learn(words_of("abc"), **SMALL | {"min_frequency": 5})


def test_without_the_trainer_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)  # as if not installed
    with pytest.raises(ConfigError, match="needs the package tokenizers") as caught:
        learn(words_of(TEXT), **SMALL)
    assert "pip install 'keras3-bert[vocab]'" in str(caught.value)
    assert "\n" not in str(caught.value)


# === The command ===


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder of two texts in which thousands of pieces are equally frequent."""
    rng = random.Random(0)
    stems = ["".join(rng.choices("abcdefghijklmnoprstuvwäé學会", k=rng.randint(2, 9))) for _ in range(1500)]
    lines = [" ".join(rng.choices(stems, k=12)) + rng.choice([".", "!", " ;"]) for _ in range(400)]
    (tmp_path / "a.txt").write_text("\n".join(lines[:200]), "utf-8")
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"id": 1, "text": t}) + "\n" for t in lines[200:]), "utf-8")
    return tmp_path


def command(corpus: Path, *flags: str, output: str = "vocab.txt") -> list[str]:
    return [
        "vocab",
        f"--input_file={corpus}/a.txt,{corpus}/b.jsonl",
        f"--output_file={corpus}/{output}",
        *("--vocab_size=1200", "--num_unused=20"),
        *flags,
    ]


def test_the_same_bytes_whatever_the_threads_hashes_and_order(corpus):
    outputs = []
    for i, (threads, order) in enumerate([("1", "a.txt,{}/b.jsonl"), ("2", "b.jsonl,{}/a.txt")]):
        argv = [*command(corpus, output=f"{i}.txt"), f"--input_file={corpus}/{order.format(corpus)}"]
        environment = os.environ | {"PYTHONHASHSEED": str(i + 1), "RAYON_NUM_THREADS": threads}
        done = subprocess.run(
            [sys.executable, "-m", "keras_bert", *argv], env=environment, capture_output=True, text=True, timeout=100
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{corpus}/{i}.txt\n"
        outputs.append((corpus / f"{i}.txt").read_bytes())
    assert outputs[0] == outputs[1]
    assert len(read_vocabulary(corpus / "0.txt")) == 1200


def test_the_command_says_what_it_did(corpus, capsys):
    assert main(command(corpus, "--reserved_tokens=[E1], [E2]")) == 0
    out, err = capsys.readouterr()
    assert out == f"{corpus}/vocab.txt\n"
    lines = err.splitlines()
    assert lines[0].startswith("reading, in kB  ")
    assert lines[1].endswith("different; merging the most frequent pairs")
    assert lines[2].startswith("1,200 pieces, 27 of them characters")
    assert lines[3] == "0.0000% of these texts' words are [UNK]"
    assert read_vocabulary(corpus / "vocab.txt")[25:27] == ["[E1]", "[E2]"]
    assert [p.name for p in sorted(corpus.iterdir())] == ["a.txt", "b.jsonl", "vocab.txt"]


def test_too_few_texts_are_said(corpus, capsys):
    assert main(command(corpus, "--vocab_size=99999", "--nodo_lower_case")) == 0
    assert "warning: the texts give no more than " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "code", "complaint"),
    [
        (["--vocab_size=60"], 2, "vocab_size 60 is too small: 25 rows"),
        (["--vocab_size=25"], 2, "--vocab_size 25 leaves no room beside 25 special and unused tokens"),
        (["--vocab_size=many"], 2, "many"),
        (["--min_frequency=0"], 2, "--min_frequency must be at least 1, got 0"),
        (["--num_unused=-1"], 2, "--num_unused must be at least 0, got -1"),
        (["--limit_alphabet=-1"], 2, "--limit_alphabet must be at least 0, got -1"),
        (["--reserved_tokens=a,,b"], 2, "reserved token '': must not be empty"),
        (["--output_file={}/none/vocab.txt"], 2, "must be a file in a directory that exists"),
        (["--output_file={}"], 2, "must be a file in a directory that exists"),
        (["--output_file={}/a.txt"], 2, "is there already; name another file, or --overwrite"),
        (["--output_file={}/a.txt", "--overwrite"], 2, "is also the input"),
        (["--no_such_flag=1"], 2, "no_such_flag"),
        (["--input_file={}/*.md"], 3, "*.md: matches no file"),
        (["--input_file={}/none.txt"], 3, "none.txt: cannot be read (No such file or directory)"),
        (["--input_file={}"], 3, "is a directory; name a file, or a glob such as"),
        (["--text_column=body"], 3, "b.jsonl, line 1: no text under 'body' (--text_column); the line has the keys id"),
    ],
)
def test_a_refusal_is_one_line_and_writes_nothing(flags, code, complaint, corpus, capsys):
    before = {path.name: path.read_bytes() for path in corpus.iterdir()}
    assert main(command(corpus, *(flag.format(corpus) for flag in flags))) == code
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = [line for line in err.splitlines() if line.startswith("keras-bert vocab: error: ")]
    assert complaint in line
    assert err.splitlines()[-1] == line
    assert {path.name: path.read_bytes() for path in corpus.iterdir()} == before


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("x.txt", b"", "x.txt: is empty"),
        ("x.txt", b"\n\n \n", "there are no words in the texts"),
        ("x.txt", b"one\ntwo \xe9t\xe9\n", "x.txt, line 2: byte 0xe9 is not UTF-8"),
        ("x.txt", "word".encode("utf-16"), "x.txt, line 1: byte 0xff is not UTF-8"),
        ("x.txt", b"word " * 300_000 + b"\n\xc3", "x.txt, line 2: byte 0xc3 is not UTF-8"),
        ("x.jsonl", b'{"text": "a"}\n{"text": ', "x.jsonl, line 2: not valid JSON"),
        ("x.jsonl", b'{"text": "\xe9"}\n', "x.jsonl, line 1: byte 0xe9 is not UTF-8"),
        ("x.jsonl", b"[1]\n", "x.jsonl, line 1: no text under 'text' (--text_column); the line is a list"),
        ("x.jsonl", b'{"text": null}\n', "x.jsonl, line 1: no text under 'text'"),
        ("x.jsonl", b"[" * 100_000, "x.jsonl, line 1: not valid JSON"),
    ],
)
def test_a_damaged_input_is_refused(name, content, complaint, tmp_path, capsys):
    (tmp_path / name).write_bytes(content)
    argv = ["vocab", f"--input_file={tmp_path / name}", f"--output_file={tmp_path}/vocab.txt"]
    assert main(argv) == 3
    assert complaint in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "vocab.txt").exists()


def test_an_existing_vocabulary_is_replaced_only_when_asked(corpus):
    (corpus / "vocab.txt").write_text("mine", "utf-8")
    assert main(command(corpus)) == 2
    assert (corpus / "vocab.txt").read_text("utf-8") == "mine"
    assert main(command(corpus, "--overwrite")) == 0
    assert len(read_vocabulary(corpus / "vocab.txt")) == 1200


# === Reading ===


def read(path: Path) -> list[str]:
    return list(vocab.read_texts([str(path)], "text", Progress("", 0, stream=None)))


def test_texts_are_cut_between_words_only(tmp_path, monkeypatch):
    text = "学会 the über\nfires 😀" * 50
    path = tmp_path / "x.txt"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    for block in (1, 3, 7, 64, 10_000):
        monkeypatch.setattr(vocab, "BLOCK", block)
        found = read(path)
        assert "".join(found) == "\ufeff" + text
        assert all(part[-1] in " \n" for part in found[:-1])
        assert count_words(found, True) == count_words([text], True)


def test_a_text_without_spaces_is_cut_at_last(tmp_path, monkeypatch):
    path = tmp_path / "x.txt"
    path.write_text("学" * 5000, "utf-8")
    monkeypatch.setattr(vocab, "BLOCK", 100)
    monkeypatch.setattr(vocab, "LONGEST", 500)
    found = read(path)
    assert max(map(len, found)) < 600
    assert count_words(found, True) == {"学": 5000}


def test_json_lines_may_be_blank_and_end_in_any_way(tmp_path):
    path = tmp_path / "x.JSONL"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a\\ud800b"}\r\n\n{"text": ""}\n{"text": "c", "more": 1}')
    assert read(path) == ["a\ud800b", "c"]
    assert count_words(read(path), True) == {"ab": 1, "c": 1}


@pytest.mark.slow
@pytest.mark.parametrize("language", ["raw_en", "raw_zh"])
def test_real_texts_give_the_same_vocabulary_twice(language, tmp_path):
    files = sorted(map(str, shared(f"data/{language}").iterdir()))
    counts = count_words(vocab.read_texts(files, "text", Progress("", 0, stream=None)), True)
    backwards = count_words(vocab.read_texts(files[::-1], "text", Progress("", 0, stream=None)), True)
    assert counts == backwards
    assert learn(counts, stream=None) == learn(backwards, stream=None)
