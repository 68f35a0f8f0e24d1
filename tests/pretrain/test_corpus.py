"""The corpus: the original's records, and rows that depend on the text and the seed alone."""

import json
import os
import subprocess
from collections import Counter
from itertools import chain
from pathlib import Path
from random import Random

import pytest
import tensorflow as tf
from conftest import shared
from odd_text import NAUGHTY, VOCABULARIES, udhr, vocabulary

from keras_bert.config import CorpusConfig
from keras_bert.errors import ConfigError, DataError
from keras_bert.pretrain import corpus, documents
from keras_bert.pretrain.corpus import SentenceTokenizer, build
from keras_bert.pretrain.documents import lines, paragraphs, punctuation, share
from keras_bert.pretrain.pairs import PAIRS
from keras_bert.pretrain.reader import Corpus
from keras_bert.text.wordpiece import WordPiece

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
DOCUMENTS, SENTENCES = 24, 30
MARKS = [f"d{d}" for d in range(DOCUMENTS)] + [f"s{s}" for s in range(SENTENCES)] + ["un", "##believ", "##able"]


def write(
    path: Path, kind: str = "text", documents: int = DOCUMENTS, sentences: int = SENTENCES, seed: int = 1
) -> Path:
    """Documents whose words tell the document and the sentence."""
    rng = Random(seed)
    texts = [
        [f"d{d} s{s}" + " unbelievable" * rng.randint(0, 4) for s in range(rng.randint(2, sentences))]
        for d in range(documents)
    ]
    form = {
        "text": lambda d, text: "\n".join(text) + "\n\n",
        "jsonl": lambda d, text: json.dumps({"id": d, "text": "\n\n".join(s.capitalize() + "." for s in text)}) + "\n",
        "wiki": lambda d, text: f'<doc id="{d}" title="T {d}">\nT {d}\n\n' + "\n".join(text) + "\n\n</doc>\n",
    }[kind]
    path.write_text("".join(form(d, text) for d, text in enumerate(texts)), "utf-8")
    return path


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    desk = tmp_path_factory.mktemp("corpus")
    (desk / "vocab.txt").write_text("\n".join([*SPECIAL, *MARKS, "."]) + "\n", "utf-8")
    write(desk / "a.txt")
    write(desk / "b.jsonl", "jsonl")
    write(desk / "c.txt", "wiki")
    return desk


def make(desk, output, files=("a.txt",), num_shards=1, num_processes=1, overwrite=False, **settings):
    config = CorpusConfig(**({"max_seq_length": 32} | settings))
    paths = [str(desk / name) for name in files]
    vocab, stream = str(desk / "vocab.txt"), None
    return build(config, paths, vocab, output, num_shards, num_processes, overwrite, stream=stream)


def examples(folder):
    source = Corpus.open(folder, verify=True)
    (batch,) = list(source.in_order(len(source)))
    return source.parse(tf.constant(batch[0]))


def segments(folder):
    """Segments of ids of each row, and labels."""
    found = examples(folder)
    rows = []
    for ids, lengths in zip(found["token_ids"].to_list(), found["segment_lengths"].to_list(), strict=True):
        ends = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
        rows.append([ids[ends[i] : ends[i + 1]] for i in range(len(lengths))])
    return rows, found["pair_label"].numpy().tolist()


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def features(record):
    return {k: v.SerializeToString() for k, v in tf.train.Example.FromString(record).features.feature.items()}


# === Static: the original, record by record ===


def test_the_original_records_in_their_order(tmp_path):
    text = shared("data/golden/pretraining/sample_text.txt")
    golden = tf.data.TFRecordDataset(str(text.parent / "tf_examples.tfrecord"))
    expected = [features(record) for record in golden.as_numpy_iterator()]
    vocab = str(shared("data/vocab/uncased/vocab.txt"))
    manifest = build(CorpusConfig(format="static", dupe_factor=5), [str(text)], vocab, tmp_path / "c", stream=None)
    (records, _, _), *rest = Corpus.open(tmp_path / "c", verify=True, vocab_size=30522).in_order(100)
    assert not rest
    assert [features(record) for record in records] == expected
    assert len(expected) == manifest["totals"]["records"] == 60


@pytest.mark.parametrize("whole", [False, True])
def test_static_masks(desk, tmp_path, whole):
    prob, most = 0.4, 11
    settings = {"masked_lm_prob": prob, "max_predictions_per_seq": most, "dupe_factor": 3, "do_whole_word_mask": whole}
    make(desk, tmp_path / "c", format="static", **settings)
    found = {name: value.numpy() for name, value in examples(tmp_path / "c").items()}
    words = len(SPECIAL) + MARKS.index("un")
    kinds: Counter[str] = Counter()
    for row in range(len(found["input_ids"])):
        ids, n = found["input_ids"][row].tolist(), int(found["input_mask"][row].sum())
        count = int(found["masked_lm_weights"][row].sum())
        positions = found["masked_lm_positions"][row][:count].tolist()
        labels = found["masked_lm_ids"][row][:count].tolist()
        assert count <= min(most, max(1, round(n * prob)))
        assert whole or count == min(most, max(1, round(n * prob)))
        assert positions == sorted(set(positions))
        assert not found["masked_lm_positions"][row][count:].any()
        kinds.update(
            "mask" if ids[p] == 4 else "keep" if ids[p] == t else "other"
            for p, t in zip(positions, labels, strict=True)
        )
        original = list(ids)
        for position, label in zip(positions, labels, strict=True):
            original[position] = label
        assert original[0] == 2
        assert original.count(3) == 2
        assert not any(original[n:])
        assert found["segment_ids"][row].tolist() == [int(i > original.index(3)) for i in range(n)] + [0] * (32 - n)
        assert not {2, 3} & set(labels)
        if whole:
            for place in (i for i, token in enumerate(original[:n]) if token == words):
                pieces = [i for i in range(place, min(place + 3, n)) if original[i] == words + i - place]
                assert len({i in positions for i in pieces}) == 1
    total = kinds.total()
    for kind, expected in (("mask", 0.8), ("keep", 0.1), ("other", 0.1)):
        assert abs(kinds[kind] - expected * total) < 4 * (total * expected * (1 - expected)) ** 0.5


def test_static_shards_differ_only_by_their_documents_and_seed(desk, tmp_path):
    manifest = make(desk, tmp_path / "c", num_shards=3, format="static")
    assert manifest["totals"]["documents"] == DOCUMENTS
    assert len({shard["sha256"] for shard in manifest["shards"]}) == 3


# === Dynamic ===


@pytest.mark.parametrize("pairs", PAIRS)
def test_rows_have_true_labels_and_fit(desk, tmp_path, pairs):
    make(desk, tmp_path / "c", num_shards=2, pairs=pairs, dupe_factor=3)
    first, last = len(SPECIAL), len(SPECIAL) + DOCUMENTS
    own = {d: set() for d in range(DOCUMENTS)}
    rows, labels = segments(tmp_path / "c")
    for row, label in zip(rows, labels, strict=True):
        assert len(row) == PAIRS[pairs].segments
        assert sum(map(len, row)) + 1 + len(row) <= 32
        of = [{token - first for token in segment if first <= token < last} for segment in row]
        assert all(len(found) <= 1 for found in of)
        if len(row) == 2 and all(of):
            different = label == {"next_sentence": 1, "three_way": 2, "distance": 2}.get(pairs)
            assert (of[0] != of[1]) == different
        for document in chain(*of):
            own[document].add(label)
    assert all(own.values())
    assert set(labels) == (set(range(PAIRS[pairs].classes)) or {-1})


def test_rows_without_pairs_hold_the_text(desk, tmp_path):
    make(desk, tmp_path / "c", pairs="none", num_shards=5)
    rows, _ = segments(tmp_path / "c")
    tokenizer = SentenceTokenizer(str(desk / "vocab.txt"), True, "original")
    expected = [tokenizer(line) for line in (desk / "a.txt").read_text().split("\n")]
    assert list(chain(*(row[0] for row in rows))) == list(chain(*expected))


def test_long_sentences_lose_nothing(desk, tmp_path):
    (tmp_path / "a.txt").write_text("d1 " * 1000 + "\n\n" + "d2 " * 500)
    (tmp_path / "vocab.txt").write_text((desk / "vocab.txt").read_text())
    manifest = make(tmp_path, tmp_path / "c", pairs="none", short_seq_prob=0.0)
    assert manifest["totals"]["records"] == -(-1000 // 30) + -(-500 // 30)
    assert manifest["totals"]["tokens"] == 1500


def test_a_document_that_is_read_in_parts_is_no_partner_of_itself(desk, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "POOL", 20)
    manifest = make(desk, tmp_path / "c", dupe_factor=2)
    assert manifest["totals"]["documents"] == DOCUMENTS
    first, last = len(SPECIAL), len(SPECIAL) + DOCUMENTS
    rows, labels = segments(tmp_path / "c")
    for row, label in zip(rows, labels, strict=True):
        a, b = ({token for token in segment if first <= token < last} for segment in row)
        assert not a or not b or (a != b) == (label == 1)


# === Any number of shards and processes ===


def test_the_number_of_processes_does_not_matter(desk, tmp_path):
    files = ("a.txt", "b.jsonl", "c.txt")
    for processes in (1, 2):
        make(desk, tmp_path / str(processes), files, num_shards=5, num_processes=processes)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    shards = [corpus.SHARD.format(i, 5) for i in range(5)]
    assert sorted(contents(tmp_path / "1")) == ["manifest.json", *shards, "vocab.txt"]


@pytest.mark.parametrize(("kind", "name"), [("text", "a.txt"), ("jsonl", "b.jsonl"), ("wiki", "c.txt")])
def test_parts_of_files_hold_each_document_once(desk, tmp_path, kind, name):
    """Wherever the file is cut, also with several bytes a character and with CR LF."""
    path = tmp_path / name
    text = (desk / name).read_text("utf-8").replace("unbelievable", "größer 中文").replace("\n", "\r\n")
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    size = path.stat().st_size

    def read(count):
        found = chain.from_iterable(
            chain(paragraphs(part), [None]) for parts in share([(str(path), kind, size)], count) for part in parts
        )
        whole, document = [], []
        for paragraph in found:
            if paragraph is not None:
                document.append(paragraph)
            elif document:
                whole.append(document)
                document = []
        return whole

    whole = read(1)
    assert len(whole) == DOCUMENTS
    assert all(document[0].lower().startswith("d") for document in whole)
    for count in (2, 3, 7, 50, 333):
        assert read(count) == whole


def test_files_follow_each_other_as_in_the_original_only_when_static(desk, tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("d1 s1\nd1 s2")
    (tmp_path / "vocab.txt").write_text((desk / "vocab.txt").read_text())
    counts = {
        form: make(tmp_path, tmp_path / form, ("a.txt", "b.txt"), format=form)["totals"]["documents"]
        for form in ("static", "dynamic")
    }
    assert counts == {"static": 1, "dynamic": 2}


def test_a_build_goes_on_where_it_was(desk, tmp_path):
    whole = make(desk, tmp_path / "whole", num_shards=6)

    def stop_after_three(tasks):
        for task in tasks[:3]:
            corpus.build_shard(task)
        raise KeyboardInterrupt

    config = CorpusConfig(max_seq_length=32)
    arguments = (config, [str(desk / "a.txt")], str(desk / "vocab.txt"), tmp_path / "c", 6)
    with pytest.raises(KeyboardInterrupt):
        build(*arguments, run=stop_after_three, stream=None)
    shards = [tmp_path / "c" / corpus.SHARD.format(i, 6) for i in range(6)]
    times = [path.stat().st_mtime_ns for path in shards[:3]]
    shards[1].write_bytes(shards[1].read_bytes()[:-1])  # one that was damaged since is built again
    (tmp_path / "c/.shard-00004.abc.tmp").write_bytes(b"rubbish of a killed process")
    assert build(*arguments, stream=None) == whole
    assert contents(tmp_path / "c") == contents(tmp_path / "whole")
    assert [shards[i].stat().st_mtime_ns == times[i] for i in range(3)] == [True, False, True]
    times = [path.stat().st_mtime_ns for path in shards]
    assert build(*arguments, stream=None) == whole
    assert [path.stat().st_mtime_ns for path in shards] == times


def test_other_contents_of_the_directory_are_safe(desk, tmp_path):
    make(desk, tmp_path / "c")
    before = contents(tmp_path / "c")
    for settings, what in (
        ({"random_seed": 2}, "config"),
        ({"num_shards": 2}, "num_shards"),
        ({"files": ("c.txt",)}, "inputs"),
    ):
        with pytest.raises(
            ConfigError, match=rf"holds another corpus \(other {what}\); name a new directory, or --over"
        ):
            make(desk, tmp_path / "c", **settings)
    assert contents(tmp_path / "c") == before
    (tmp_path / "c/notes.txt").write_text("mine")
    make(desk, tmp_path / "c", num_shards=2, overwrite=True)
    assert sorted(contents(tmp_path / "c")) == [
        "manifest.json",
        "notes.txt",
        *(corpus.SHARD.format(i, 2) for i in (0, 1)),
        "vocab.txt",
    ]
    (tmp_path / "d").mkdir()
    (tmp_path / "d/thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="holds other files"):
        make(desk, tmp_path / "d")
    with pytest.raises(ConfigError, match="cannot be made"):
        make(desk, tmp_path / "d/thesis.txt")


@pytest.mark.slow
def test_beam_makes_the_same_corpus(desk, tmp_path):
    python = os.environ.get("BEAM_PYTHON")
    if not python:
        pytest.skip(reason="BEAM_PYTHON names no Python with apache-beam")
    make(desk, tmp_path / "local", num_shards=5)
    options = "--runner=DirectRunner --direct_num_workers=2 --direct_running_mode=multi_processing"
    command = [python, "-m", "keras_bert", "corpus", f"--input_file={desk}/a.txt", f"--vocab_file={desk}/vocab.txt"]
    command += [f"--output_dir={tmp_path}/beam", "--num_shards=5", "--max_seq_length=32", "--runner=beam"]
    subprocess.run([*command, f"--beam_options={options}"], check=True, timeout=300)
    assert contents(tmp_path / "beam") == contents(tmp_path / "local")


# === Text to ids ===


@pytest.mark.parametrize("name", VOCABULARIES)
def test_remembered_words_give_the_ids_of_the_original(name):
    vocab, lower = str(shared(f"data/vocab/{name}/vocab.txt")), VOCABULARIES[name]
    tokenizer, wordpiece = SentenceTokenizer(vocab, lower, "original"), WordPiece(vocabulary(name), lower)
    tokenizer.chunks.limit = 50
    for text in [*NAUGHTY, *udhr()[::7]] * 2:
        assert tokenizer(text) == wordpiece.tokenize(text).ids


@pytest.mark.parametrize(
    ("paragraph", "expected"),
    [
        ("It rains. We stay! Why? Because.", ["It rains.", "We stay!", "Why?", "Because."]),
        ("Mr. Smith met J. Doe in St. Louis. They left.", ["Mr. Smith met J. Doe in St. Louis.", "They left."]),
        ('He said "No." Then he left (at once.) So.', ['He said "No."', "Then he left (at once.)", "So."]),
        (
            "It cost 3.5 dollars, e.g. today. Version 2.0 is out.",
            ["It cost 3.5 dollars, e.g. today.", "Version 2.0 is out."],
        ),
        ("Well... he paused. Wait... what?", ["Well... he paused.", "Wait... what?"]),
        ("今天下雨。我们不去！“真的吗？”他问。", ["今天下雨。", "我们不去！", "“真的吗？”", "他问。"]),
        ("One\nline. Two\nlines.", ["One line.", "Two lines."]),
        ("no end", ["no end"]),
        (" \n ", []),
        (".", ["."]),
    ],
)
def test_sentences_end_at_punctuation(paragraph, expected):
    assert punctuation(paragraph) == expected


def test_sentences_end_at_lines():
    assert lines(" One. Two.\n\n three \n") == ["One. Two.", "three"]


def test_jsonl_and_wiki_hold_the_documents_of_text(desk, tmp_path):
    totals = [make(desk, tmp_path / name, (name,), pairs="none")["totals"] for name in ("a.txt", "b.jsonl", "c.txt")]
    assert len({t["documents"] for t in totals}) == len({t["sentences"] for t in totals}) == 1
    assert totals[0]["tokens"] == totals[2]["tokens"]


# === Bad input ===


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"fine\n\nfine\ncaf\xe9\n", r"a.txt, line 4: byte 0xe9 is not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', r"a.jsonl, line 2: not valid JSON"),
        (
            "a.jsonl",
            b'{"text": "a"}\n\n{"body": "a"}\n',
            r"line 3: no text under 'text' \(--text_column\); the line has the k",
        ),
        ("a.jsonl", b"[1]\n", r"line 1: no text under 'text' .*; the line is a list"),
        ("a.txt", b'<doc id="1" title="a">\nfire\n</doc>\nfire\n', r"a.txt, line 4: text outside of <doc"),
        ("a.txt", b"", "a.txt: is empty"),
        ("a.txt", b"\x1f\x8b\x08", "a.txt: is packed; unpack it first"),
        ("a.txt", b" \n \n", "a.txt: no rows"),
        ("a.txt", b"d1 s1\nd1 s2\n" * 90, "a.txt: shard 0 has one document only, .* --pairs=sentence_order or none"),
    ],
)
def test_bad_input_is_named(desk, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    (tmp_path / "vocab.txt").write_text((desk / "vocab.txt").read_text())
    with pytest.raises(DataError, match=message):
        make(tmp_path, tmp_path / "c", (name,), short_seq_prob=0.0)


def test_files_that_are_no_files(desk, tmp_path):
    (tmp_path / "d").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for path, message in (("d", "is a directory"), ("pipe", "not a regular file"), ("none", "cannot be read")):
        with pytest.raises(DataError, match=message):
            make(desk, tmp_path / "c", (tmp_path / path,))


def test_a_file_that_changes_or_vanishes_while_it_is_read(desk, tmp_path):
    path = write(tmp_path / "a.txt")
    (tmp_path / "vocab.txt").write_text((desk / "vocab.txt").read_text())

    def change(tasks):
        with open(path, "a") as file:
            file.write("more")
        corpus.build_shard(tasks[0])

    def vanish(tasks):
        path.unlink()
        corpus.build_shard(tasks[0])

    for i, (run, message) in enumerate(((change, "changed while it was read"), (vanish, "cannot be read"))):
        with pytest.raises(DataError, match=f"a.txt: {message}"):
            build(CorpusConfig(), [str(path)], str(tmp_path / "vocab.txt"), tmp_path / str(i), 1, run=run, stream=None)


def test_a_line_without_end(desk, tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "LONGEST_LINE", 1000)
    (tmp_path / "a.txt").write_text("d1\n" + "d2 " * 400)
    (tmp_path / "vocab.txt").write_text((desk / "vocab.txt").read_text())
    with pytest.raises(DataError, match=r"a.txt, line 2: longer than 1,000 bytes"):
        make(tmp_path, tmp_path / "c")


def test_an_error_in_another_process_is_the_same(desk, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "d1 s1. D1 s2."}\n' * 40 + "{\n")
    (tmp_path / "vocab.txt").write_text((desk / "vocab.txt").read_text())
    with pytest.raises(DataError, match=r"a.jsonl, line 41: not valid JSON"):
        make(tmp_path, tmp_path / "c", ("a.jsonl",), num_shards=4, num_processes=2)


@pytest.mark.parametrize(
    "settings",
    [{"max_seq_length": 4}, {"masked_lm_prob": 0.0}, {"short_seq_prob": 1.5}, {"dupe_factor": -1}, {"pairs": "all"}],
)
def test_settings_out_of_range(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        CorpusConfig(**settings)
