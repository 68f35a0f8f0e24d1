"""Tagging: tags and entities by hand and against seqeval, and a toy task from texts to the exported model."""

import dataclasses
import functools
import itertools
import random

import keras
import numpy as np
import pytest
import tensorflow as tf
from checks import assert_same, randomize
from conftest import TINY, WORDS

from keras_bert.bert import Bert
from keras_bert.config import HeadConfig, OptimizerConfig, TextConfig, TrainConfig, WindowConfig
from keras_bert.tags import spans_of
from keras_bert.tasks import metrics, tagging
from keras_bert.tasks.network import Network
from keras_bert.tasks.tag import Tag
from keras_bert.text.text import Text

TAGS = ["O", "B-X", "I-X", "B-Y", "I-Y"]
TYPES = ("X", "Y")
ONE = dataclasses.replace(TINY, num_layers=1)
TEXT = Text(WORDS, TextConfig(max_seq_length=10))
ODD = "fire \U0001f525 caf\u00e9 fires in \u4e1c\u4eac, the cafe\u0301 city\x00 \u05d0\u05b8 song\u200b! "
ODD += "\U0001f469\u200d\U0001f680 game"


def head(decode="argmax", **config):
    return Tag(TINY, HeadConfig(task="tag", labels=TYPES, decode=decode, **config))


@functools.cache
def bert(decode="", length=10, windows=None, max_entities=40):
    """A random model that is not fond of O; the same weights for all arguments."""
    network = Network(TINY, HeadConfig(task="tag", labels=TYPES, decode=decode, max_entities=max_entities))
    randomize(network)
    network.head.projection.bias.assign([-4, 0, 0, 0, 0])
    return Bert(Text(WORDS, TextConfig(max_seq_length=length)), network, windows=windows)


# === Tags as they are written ===


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("O B-X I-X O", [(1, 3, "X")]),
        ("I-X I-X B-X I-Y", [(0, 2, "X"), (2, 3, "X"), (3, 4, "Y")]),
        ("B-X E-X E-X S-X S-X I-X", [(0, 2, "X"), (2, 3, "X"), (3, 4, "X"), (4, 5, "X"), (5, 6, "X")]),
        ("B-X-1 I-X-1 I-X-2", [(0, 2, "X-1"), (2, 3, "X-2")]),
        ("O O", []),
        ("", []),
    ],
)
def test_entities_of_tags_by_hand(tags, spans):
    assert spans_of(tags.split()) == spans


@pytest.mark.parametrize("prefixes", ["BI", "I", "BIES"])
def test_entities_and_f1_are_those_of_seqeval(prefixes):
    seqeval = pytest.importorskip("seqeval.metrics")
    labelling = pytest.importorskip("seqeval.metrics.sequence_labeling")
    draw = random.Random(prefixes)
    names = ["O"] * 3 + [f"{p}-{t}" for p in prefixes for t in ("PER", "LOC")]
    for _ in range(7):
        rows = [[draw.choices(names, k=draw.randrange(1, 9)) for _ in range(100)]]  # 2,100 rows over the three schemes
        rows.append([[draw.choice([tag, draw.choice(names)]) for tag in row] for row in rows[0]])
        spans = [[{*spans_of(row)} for row in part] for part in rows]
        for row, found in zip(itertools.chain(*rows), itertools.chain(*spans), strict=True):
            wanted = {(first, last + 1, kind) for kind, first, last in labelling.get_entities(row)}
            assert found == wanted, row
        ours = metrics.entities(*spans)
        assert ours["f1"] == pytest.approx(seqeval.f1_score(*rows), abs=1e-12)
        assert ours["precision"] == pytest.approx(seqeval.precision_score(*rows), abs=1e-12)
        assert ours["recall"] == pytest.approx(seqeval.recall_score(*rows), abs=1e-12)


def test_no_entities_score_0():
    assert metrics.entities([set()], [set()]) == {"precision": 0, "recall": 0, "f1": 0}
    assert metrics.entities([{(0, 1, "X")}], [{(0, 1, "X")}]) == {"precision": 1, "recall": 1, "f1": 1}


# === Targets ===


def test_only_first_pieces_of_words_are_learnt():
    found = TEXT.located(WindowConfig(max_windows=9), ["fires in the city", "a storming"])
    labels = np.array([[[0, 8, 0], [13, 17, 1]], [[2, 10, 1], [-1, -1, -1]]], np.int32)
    wanted = [[0, 2, 0, 3, 1, 4, 0, 0, 0, 0][:7], [0, 1, 4, 0, 0, 0, 0]]
    assert np.asarray(head().targets(labels, found)).tolist() == wanted


def test_entities_that_share_a_word_are_one():
    found = TEXT.located(WindowConfig(), ["a fires b"])
    targets = np.asarray(head().targets(np.array([[[2, 4, 1], [4, 7, 0]]], np.int32), found))
    assert targets.tolist() == [[0, 1, 4, 0, 1, 0]]


def test_an_entity_that_windows_cut_goes_on_in_the_next():
    found = TEXT.located(WindowConfig(max_windows=9, doc_stride=4), ["a b c d e f g h i j"])
    targets = np.asarray(head().targets(np.array([[[6, 13, 0]]] * 2, np.int32), found))
    assert targets.tolist() == [[0, 1, 1, 1, 2, 3, 3, 3, 1, 0], [0, 3, 3, 3, 1, 1, 1, 0, 0, 0]]


def test_loss_and_counts_by_hand():
    made = head()
    logits = np.log(np.array([[[1, 2, 3, 4, 10], [1, 1, 1, 1, 1], [9, 1, 1, 1, 1]]], np.float32))
    assert np.asarray(made.counts(np.array([[5, 0, 2]]))).tolist() == [2]
    np.testing.assert_allclose(made.loss(np.array([[5, 0, 2]]), logits), [np.log(2) + np.log(13)], rtol=1e-6)
    np.testing.assert_allclose(made.loss(np.array([[0, 0, 0]]), logits), [0])


# === Decoding ===


def test_argmax_and_constrained_agree_where_every_tag_may_follow():
    logits = np.random.default_rng(0).normal(size=(50, 9, 5)).astype("float32")
    there = np.ones((50, 9), bool)
    best = np.asarray(tagging.argmax(logits, there))
    found = np.asarray(tagging.constrained(logits, there))
    legal = [all(map(may_follow, [0, *row], row)) for row in best.tolist()]
    assert 0 < sum(legal) < 50
    np.testing.assert_array_equal(found[legal], best[legal])


def may_follow(before, tag):
    return tag == 0 or tag % 2 == 1 or before in (tag, tag - 1)


@pytest.mark.parametrize("length", [1, 2, 4])
def test_constrained_is_the_best_of_all_legal_rows(length):
    logits = np.random.default_rng(length).normal(size=(20, length, 5)).astype("float32")
    found = np.asarray(tagging.constrained(logits, np.ones((20, length), bool)))
    every = [r for r in itertools.product(range(5), repeat=length) if all(map(may_follow, (0, *r), r))]
    for row, tags in zip(logits, found, strict=True):
        totals = [row[np.arange(length), list(r)].sum() for r in every]
        assert tuple(tags.tolist()) == every[int(np.argmax(totals))]


def test_what_is_no_word_says_nothing():
    logits = np.random.default_rng(0).normal(size=(9, 6, 5)).astype("float32")
    there = np.arange(6)[None] < np.array([[3]] * 9)
    wide, narrow = (np.asarray(tagging.constrained(logits[:, :n], there[:, :n])) for n in (6, 3))
    np.testing.assert_array_equal(wide[:, :3], narrow)


def test_entities_of_tags_in_the_graph_are_those_in_python():
    random = np.random.default_rng(1)
    tags = random.integers(0, 5, (200, 11)).astype("int32")
    tags[np.arange(11)[None] >= random.integers(0, 12, 200)[:, None]] = 0
    shares = random.uniform(size=tags.shape).astype("float32")
    starts = np.tile(np.arange(11, dtype="int32") * 3, (200, 1))
    found = {k: np.asarray(v) for k, v in tagging.entities(tags, shares, starts, starts + 2, 6).items()}
    for i, row in enumerate(tags):
        wanted = spans_of([TAGS[t] for t in row])
        assert found["num_entities"][i] == len(wanted)
        for j in range(6):
            one = {k: v[i, j] for k, v in found.items() if k != "num_entities"}
            if j >= len(wanted):
                assert one == {"type_ids": -1, "start_bytes": -1, "end_bytes": -1, "scores": 0}
                continue
            first, end, kind = wanted[j]
            assert (TYPES[one["type_ids"]], one["start_bytes"], one["end_bytes"]) == (kind, first * 3, end * 3 - 1)
            assert one["scores"] == pytest.approx(shares[i, first:end].mean(), abs=1e-5)


# === Answers ===


@pytest.mark.parametrize("decode", ["argmax", "constrained"])
def test_offsets_slice_the_string_whatever_it_holds(decode):
    model, texts = bert(decode), [ODD, "", "\U0001f525", ODD * 3, "a " * 40]
    answers = model.predict(texts)
    for text, answer in zip(texts, answers, strict=True):
        for e in answer["entities"]:
            assert text[e["start"] : e["end"]] == e["text"] == text.encode()[e["start_byte"] : e["end_byte"]].decode()
            assert e["text"].strip() == e["text"] != ""
            assert e["type"] in TYPES
            assert 0 < e["score"] <= 1
    assert sum(len(a["entities"]) for a in answers) > 10
    assert {c for a in answers for e in a["entities"] for c in e["text"]} & set("\U0001f525\u4e1c\u4eac\u00e9")


@pytest.mark.parametrize("decode", ["argmax", "constrained"])
def test_a_row_alone_and_beside_a_long_one_is_the_same(decode):
    model = bert(decode)
    texts = ["fires in the city", ODD, "", "fire flood " * 1000]
    together, alone = model.arrays(texts), [model.arrays([text]) for text in texts]
    beside = [model.arrays([text, "a song " * 1500]) for text in texts]
    for other in (alone, beside):
        for i, one in enumerate(other):
            assert_same({k: v[0] for k, v in one.items()}, {k: v[i] for k, v in together.items()})
    assert together["truncated"].tolist() == [False, False, False, True]


def test_windows_cover_a_long_text():
    text = " ".join(random.Random(0).choices(["fire", "song", "city", *"abcdefg"], k=120))
    model = bert(length=12, windows=WindowConfig(max_windows=50, doc_stride=2), max_entities=200)
    answer, short = model.predict([text, "a fire b storm c"])
    assert answer["truncated"]
    assert max(e["end"] for e in answer["entities"]) > 0.8 * len(text)
    assert max(e["end"] for e in short["entities"]) <= 16
    places = [(e["start"], e["end"]) for e in answer["entities"]]
    assert places == sorted(places)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(places))


def test_each_token_is_best_in_one_window_that_shows_most_around_it():
    found = TEXT.located(WindowConfig(max_windows=9, doc_stride=3), ["a b c d e f g h i j k l", "a"])
    best, words = found["best"].numpy(), found["words"].numpy()
    assert sorted(words[:-1][best[:-1]].tolist()) == list(range(12))
    width = (words >= 0).sum(1)
    for w, t in zip(*np.nonzero(best), strict=True):
        context = min(t - 1, width[w] - t)
        for other, place in zip(
            *np.nonzero((words == words[w, t]) & (found["rows"] == found["rows"][w])[:, None]), strict=True
        ):
            score = lambda a, i, n: min(i - 1, n - i) + 0.01 * n  # noqa: E731
            assert score(0, t, width[w]) >= score(0, place, width[other])
        assert context >= 0


def test_more_entities_than_are_answered_are_counted():
    tags = np.array([[1, 0, 1, 1, 0, 3], [1, 0, 0, 0, 0, 0]], np.int32)
    found = tagging.entities(tags, np.ones((2, 6), "float32"), tags, tags, 2)
    assert np.asarray(found["num_entities"]).tolist() == [4, 1]
    assert np.asarray(found["type_ids"]).tolist() == [[0, 0], [0, -1]]


# === The whole way ===

BAD, GOOD = ("fire", "flood", "storms"), ("music", "song game")


def toy(rows, seed=0):
    """Texts in which words of two kinds are entities."""
    draw, texts, labels = random.Random(seed), [], []
    for _ in range(rows):
        words, spans, at = [], [], 0
        for _ in range(draw.randint(1, 14)):
            kind = draw.choice(["BAD", "GOOD", "", "", ""])
            kind = "" if spans and spans[-1][1] == at - 1 else kind
            word = draw.choice(BAD if kind == "BAD" else GOOD if kind else [*"abcdefg", "the", "is"])
            spans += [(at, at + len(word), kind)] if kind else []
            words.append(word)
            at += len(word) + 1
        texts.append(" ".join(words))
        labels.append(spans)
    return texts, labels


@pytest.fixture(scope="module")
def trained():
    keras.utils.set_random_seed(2)
    network = Network(ONE, HeadConfig(task="tag", labels=("BAD", "GOOD"), max_entities=9))
    model = Bert(Text(WORDS, TextConfig(max_seq_length=12)), network)
    result = model.fit(
        *toy(200),
        evaluation=toy(60, 1),
        config=TrainConfig(num_train_epochs=2, train_batch_size=16),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        progress=None,
    )
    return model, result


@pytest.mark.slow
def test_a_toy_task_is_learnt(trained):
    model, result = trained
    assert result.best["f1"] > 0.95
    assert set(result.best) >= {"precision", "recall", "f1", "eval_loss", "train_loss"}
    (answer,) = model.predict(["a fire! in the song game \U0001f525 storms"])
    assert [(e["type"], e["text"]) for e in answer["entities"]][:2] == [("BAD", "fire"), ("GOOD", "song game")]


def test_an_evaluation_says_what_training_said(trained):
    model, result = trained
    rows = model._rows(*toy(60, 1))
    found, _ = model.evaluate(rows)
    for name, value in found.items():
        assert value == pytest.approx(result.best[name], abs=1e-6)


def test_a_run_keeps_its_windows(trained, tmp_path):
    model, _ = trained
    model.windows = WindowConfig(max_windows=7, doc_stride=3)
    try:
        model.save(tmp_path)
        assert Bert.load(tmp_path).windows == model.windows
    finally:
        model.windows = model.network.head.windows(12)


def test_the_exported_model_answers_as_predict(trained, tmp_path):
    model, _ = trained
    texts = [*toy(5, 2)[0], ODD, "", "fire song " * 100]
    folder = model.export(tmp_path / "model")
    answer = tf.saved_model.load(str(folder)).signatures["serving_default"](
        text=tf.constant([t.encode() for t in texts])
    )
    wanted = model.arrays(texts)
    assert set(answer) == set(wanted)
    for name, value in wanted.items():
        if value.dtype.kind == "f":
            np.testing.assert_allclose(answer[name], value, atol=1e-5)
        else:
            np.testing.assert_array_equal(answer[name].numpy(), value)
    assert "token-classification" in (folder / "README.md").read_text("utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"distribution_strategy": "mirrored"}, {"jit_compile": "on"}, {"grad_accum_steps": 2}])
def test_other_ways_to_train_come_to_the_same(how):
    runs = []
    for more in ({}, how):
        made = dataclasses.replace(TINY, num_layers=1, hidden_dropout=0.0, attention_dropout=0.0)
        network = Network(made, HeadConfig(task="tag", labels=("BAD", "GOOD"), dropout=0.0))
        randomize(network)
        model = Bert(Text(WORDS, TextConfig(max_seq_length=12)), network)
        config = TrainConfig(num_train_epochs=1, train_batch_size=8, **more)
        runs.append(model.fit(*toy(40), evaluation=toy(21, 1), config=config, progress=None))
    first, second = (run.best for run in runs)
    for name in ("train_loss", "eval_loss", "f1"):
        assert second[name] == pytest.approx(first[name], rel=1e-4)
    np.testing.assert_array_equal(runs[0].answers["start_bytes"], runs[1].answers["start_bytes"])
