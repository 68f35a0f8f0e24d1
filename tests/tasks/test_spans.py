"""Spans: targets, both searches and the metrics against plain Python, and a toy task up to the exported model."""

import dataclasses
import functools
import random
import re
import string

import keras
import numpy as np
import pytest
import tensorflow as tf
from checks import assert_same, randomize
from conftest import TINY, WORDS

from keras_bert.bert import Bert
from keras_bert.config import HeadConfig, OptimizerConfig, TextConfig, TrainConfig, WindowConfig
from keras_bert.tasks import metrics, spans
from keras_bert.tasks.network import Network
from keras_bert.tasks.span import Span
from keras_bert.text.text import Text

ODD = "fire \U0001f525 caf\u00e9 fires in \u4e1c\u4eac, the cafe\u0301 city\x00 \u05d0\u05b8 song\u200b! game"
QUESTION = "is the fire in the city"
ONE = dataclasses.replace(TINY, num_layers=1)
TEXT = Text(WORDS, TextConfig(max_seq_length=12))


@functools.cache
def bert(decode="", n_best_size=4, negative=False):
    head = HeadConfig(
        task="span", decode=decode, n_best_size=n_best_size, max_answer_length=4, version_2_with_negative=negative
    )
    network = Network(TINY, head)
    randomize(network)
    windows = WindowConfig(max_windows=1000, doc_stride=3, max_query_length=4)
    return Bert(Text(WORDS, TextConfig(max_seq_length=14)), network, windows=windows)


# === Targets ===


def targets(passage, gold):
    """`(starts, ends)` of each window as words, or CLS."""
    windows = WindowConfig(max_windows=9, doc_stride=3, max_query_length=2)
    found = TEXT.located(windows, ["fire in the"], [passage])
    made = np.asarray(spans.targets(np.array([gold] * len(found["rows"]), np.int32), found["starts"], found["ends"]))
    pieces = np.array(WORDS)[found["token_ids"].numpy()]
    context = np.asarray(found["starts"]) >= 0
    np.testing.assert_array_equal(made % 2 == 1, context | (np.arange(made.shape[1]) == 0))
    return [
        ("".join(pieces[w][(made[w] // 2) % 2 == 1]), "".join(pieces[w][made[w] // 4 == 1])) for w in range(len(made))
    ]


def test_answers_in_windows():
    text = "a b c d fires e f g h i"  # windows of 7: "a b c d fire ##s e", "d fire ##s e f g h", "e f g h i"
    cls = ("[CLS]", "[CLS]")
    assert targets(text, (6, 13)) == [("d", "##s"), ("d", "##s"), cls]
    assert targets(text, (8, 13)) == [("fire", "##s"), ("fire", "##s"), cls]
    assert targets(text, (9, 12)) == [("fire", "fire"), ("fire", "fire"), cls], "half of a token is the token"
    assert targets(text, (4, 17)) == [cls, cls, cls], "longer than any window shows"
    assert targets(text, (-1, -1)) == [cls, cls, cls]
    assert targets(text, (-2, -2)) == [("", ""), ("", ""), ("", "")]


def test_loss_by_hand():
    head = Span(TINY, HeadConfig(task="span"))
    logits = np.log(np.array([[[1, 1], [7, 7], [2, 3], [1, 4]]], np.float32))
    marks = np.array([[1, 0, 1 + 2, 1 + 4]])  # the second token is of the question
    np.testing.assert_allclose(head.loss(marks, logits), [(np.log(4 / 2) + np.log(8 / 4)) / 2], rtol=1e-6)
    unknown = np.array([[1, 0, 1, 1]])
    np.testing.assert_allclose(head.loss(unknown, logits), [0])
    assert np.asarray(head.counts(np.concatenate([marks, unknown, marks * 0]))).tolist() == [1, 0, 0]
    np.testing.assert_allclose(head.loss(marks * 0, logits), [0])


# === Search ===


def random_case(seed, questions=6, longest=9):
    """Logits and features of windows that show tokens of 1 byte each, some of them in two windows."""
    draw = np.random.default_rng(seed)
    counts = draw.integers(1, 4, questions)
    counts[0] = 1
    rows = np.repeat(np.arange(questions), counts)
    starts = np.full((len(rows), longest + 2), -1)
    best = np.zeros(starts.shape, bool)
    for w, row in enumerate(rows):
        number = w - counts[:row].sum()
        size = 0 if row == 0 else int(draw.integers(2, longest))
        starts[w, 2 : 2 + size] = number * 4 + np.arange(size)
    for row in range(questions):
        for byte in range(40):
            there = np.argwhere((starts == byte) & (rows == row)[:, None])
            if len(there):
                best[tuple(there[draw.integers(len(there))])] = True
    features = {"starts": starts, "ends": np.where(starts < 0, -1, starts + 1), "best": best, "num_windows": counts}
    logits = draw.normal(size=(*starts.shape, 2)).astype("float32")
    return logits, {k: v.astype(bool if k == "best" else "int32") for k, v in features.items()}, rows


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("longest", "size"), [(1, 3), (3, 5), (20, 1)])
def test_joint_search_is_that_of_plain_python(seed, longest, size):
    logits, features, rows = random_case(seed)
    found = [np.asarray(value) for value in spans.joint(logits, features, longest, size)]
    starts, best = features["starts"], features["best"]
    for row in range(rows.max() + 1):
        every = [
            (float(logits[w, i, 0] + logits[w, j, 1]), starts[w, i], starts[w, j] + 1)
            for w in np.flatnonzero(rows == row)
            for i in np.flatnonzero(best[w])
            for j in range(i, min(i + longest, starts.shape[1]))
            if starts[w, j] >= 0
        ]
        every = sorted(every, reverse=True)[:size]
        scores = found[2][row]
        assert (scores > -1e29).sum() == len(every)
        for k, (score, first, last) in enumerate(every):
            assert (found[0][row, k], found[1][row, k]) == (first, last)
            assert scores[k] == pytest.approx(score, abs=1e-5)
        null = min(logits[w, 0].sum() for w in np.flatnonzero(rows == row))
        assert found[3][row] == pytest.approx(null, abs=1e-5)


def example(start, end):
    """A passage of six tokens of which one is the best start and one the best end, counted from 0."""
    logits = np.zeros((1, 7, 2), np.float32)
    logits[0, 1 + start, 0], logits[0, 1 + end, 1] = 5, 5
    starts = np.array([[-1, *range(6)]], np.int32)
    there = starts >= 0
    features = {
        "starts": starts,
        "ends": np.where(there, starts + 1, -1),
        "best": there,
        "num_windows": np.array([1], np.int32),
    }
    return logits, features


def test_independent_ends_by_hand():
    found = spans.answer(spans.independent(*example(2, 3), 30, 3), False, 0.0)
    assert (int(found["start_byte"][0]), int(found["end_byte"][0])) == (2, 4), "tokens 2 to 3"
    share = (np.exp(5) / (np.exp(5) + 5)) ** 2
    assert float(found["score"][0]) == pytest.approx(1, abs=1e-6)
    assert float(found["null_score_diff"][0]) == pytest.approx(np.log(1 - share) - np.log(share), abs=1e-4)
    found = spans.answer(spans.independent(*example(3, 2), 30, 3), False, 0.0)
    assert (int(found["start_byte"][0]), int(found["end_byte"][0])) == (-1, -1), "an end before the start is no answer"
    assert np.asarray(found["nbest_start_bytes"]).tolist() == [[-1, -1, -1]]
    found = spans.answer(spans.joint(*example(3, 2), 30, 3), False, 0.0)
    assert int(found["start_byte"][0]) >= 0, "the joint search knows better"


def test_the_longest_answer_is_kept_to():
    found = spans.joint(*example(0, 5), 6, 1)
    assert (int(found[0][0, 0]), int(found[1][0, 0])) == (0, 6)
    found = spans.joint(*example(0, 5), 5, 1)
    assert int(found[1][0, 0] - found[0][0, 0]) <= 5


def test_no_answer_where_its_score_is_above_the_threshold():
    found = (np.array([[3, 1]]), np.array([[4, 2]]), np.array([[2.0, 1.0]], np.float32), np.array([4.0], np.float32))
    for negative, threshold, start in ((False, 0.0, 3), (True, 1.9, -1), (True, 2.0, 3), (True, 2.1, 3)):
        answer = {k: np.asarray(v) for k, v in spans.answer(found, negative, threshold).items()}
        assert answer["start_byte"].tolist() == [start]
        assert answer["null_score_diff"].tolist() == [2.0]
        assert answer["nbest_start_bytes"].tolist() == [[3, 1]], "the best spans stay"
        shares = np.exp([2, 1, 4]) if negative else np.exp([2, 1])
        wanted = shares[2 if start < 0 else 0] / shares.sum()
        assert answer["score"][0] == pytest.approx(wanted, abs=1e-6)


# === Answers ===


@pytest.mark.parametrize("decode", ["joint", "independent"])
def test_offsets_slice_the_passage_whatever_it_holds(decode):
    passages = [ODD, "", "\U0001f525", ODD * 3, "the " * 40, "cafe\u0301"]
    answers = bert(decode).predict([QUESTION] * 6, passages)
    for passage, found in zip(passages, answers, strict=True):
        for one in [found, *found["nbest"]]:
            if one["start"] < 0:
                assert (one["answer"], one["end"], one["start_byte"], one["end_byte"]) == ("", -1, -1, -1)
                continue
            assert passage[one["start"] : one["end"]] == one["answer"] != ""
            assert passage.encode()[one["start_byte"] : one["end_byte"]].decode() == one["answer"]
        assert len({(s["start"], s["end"]) for s in found["nbest"]}) == len(found["nbest"])
        scores = [s["score"] for s in found["nbest"]]
        assert scores == sorted(scores, reverse=True)
    assert answers[1]["answer"] == ""
    if decode == "joint":
        assert [bool(a["answer"]) for a in answers] == [True, False, True, True, True, True]


@pytest.mark.parametrize("decode", ["joint", "independent"])
def test_a_row_alone_and_beside_a_long_one_is_the_same(decode):
    model = bert(decode)
    passages = ["fires in the city", ODD, "", "a fire flood " * 800]
    questions = [QUESTION, "is", QUESTION * 20, "music"]
    together = model.arrays(questions, passages)
    assert together["num_windows"][3] > 500
    for i, (question, passage) in enumerate(zip(questions, passages, strict=True)):
        for one in (model.arrays([question], [passage]), model.arrays([question, "a"], [passage, "the song " * 1200])):
            assert_same({k: v[0] for k, v in one.items()}, {k: v[i] for k, v in together.items()})


# === Metrics ===


def answers_at_random(count):
    draw = random.Random(5)
    words = [
        "the",
        "The",
        "a",
        "an",
        "of",
        "fire.",
        "fire",
        "U.S.",
        "caf\u00e9",
        "Caf\u00e9,",
        "1,000",
        "-",
        "\u2019s",
        "  ",
    ]
    words += list(string.punctuation[:6])
    row = lambda: " ".join(draw.choices(words, k=draw.randrange(0, 5)))  # noqa: E731
    golds = [[row() for _ in range(draw.randrange(0, 4))] for _ in range(count)]
    found = [draw.choice([row(), row(), *gold, ""]) for gold in golds]
    return golds, found


def official_words(answer):
    """SQuAD's normalization, said in another way: single characters first, then words."""
    kept = [c for c in answer.lower() if c not in string.punctuation]
    return [w for w in re.sub(r"\b(a|an|the)\b", " ", "".join(kept)).split() if w]


def official_scores(gold, found):
    """Exact match and F1 of one answer, with the multiset taken apart one word after another."""
    gold, found = official_words(gold), official_words(found)
    rest, same = list(gold), 0
    for word in found:
        if word in rest:
            rest.remove(word)
            same += 1
    if not gold or not found:
        return float(gold == found), float(gold == found)
    precision, recall = same / len(found), same / len(gold)
    return float(gold == found), 2 * precision * recall / (precision + recall) if same else 0.0


def test_exact_match_and_f1_are_those_of_the_official_script():
    golds, found = answers_at_random(1000)
    for gold, one in zip(golds, found, strict=True):
        for other in gold:
            scores = (metrics.exact_match(other, one), metrics.answer_f1(other, one))
            assert scores == pytest.approx(official_scores(other, one), abs=1e-12)
    known = [[g for g in gold if official_words(g)] or [""] for gold in golds]
    has, silent = np.array([gold != [""] for gold in known]), np.array([not one for one in found])
    ours = metrics.reading(golds, [one or "x" for one in found], silent)
    for i, name in enumerate(("exact", "f1")):
        each = np.array([max(official_scores(g, one)[i] for g in gold) for gold, one in zip(known, found, strict=True)])
        assert ours[name] == pytest.approx(each.mean(), abs=1e-12)
        assert ours[f"HasAns_{name}"] == pytest.approx(each[has].mean(), abs=1e-12)
        assert ours[f"NoAns_{name}"] == pytest.approx(each[~has].mean(), abs=1e-12)


def test_the_best_threshold_is_the_best_of_all():
    draw = np.random.default_rng(0)
    for _ in range(20):
        answerable = draw.uniform(size=50) < 0.5
        given = np.where(answerable, draw.uniform(size=50).round(1), 0.0)
        odds = draw.normal(size=50).round(1)
        ours, threshold = metrics.best_threshold(given, (~answerable).astype(float), odds)
        every = [np.where(odds > t, ~answerable, given).mean() for t in [*odds, odds.min() - 1]]
        assert ours == pytest.approx(max(every))
        assert np.where(odds > threshold, ~answerable, given).mean() == pytest.approx(ours)


def test_thresholds_at_the_ends():
    ones, zeros, odds = np.ones(3), np.zeros(3), np.array([1.0, 2.0, 2.0])
    assert metrics.best_threshold(zeros, ones, odds) == (1.0, 0.0)
    assert metrics.best_threshold(ones, zeros, odds) == (1.0, 2.0)
    assert metrics.best_threshold(np.array([1.0, 0, 0]), np.array([0.0, 1, 1]), odds) == (1.0, 1.5)
    assert metrics.best_threshold(np.array([0.0, 1, 0]), np.array([1.0, 0, 1]), odds) == (2 / 3, 0.0), "equal odds"


def test_chinese_characters_count_one_by_one():
    assert metrics.answer_f1("\u5317\u4eac\u5e02", "\u5317\u4eac") == pytest.approx(0.8)
    assert metrics.exact_match("\u5317\u4eac\u5e02", "\u5317\u4eac") == 0


def test_files_of_squad():
    best = [{"answer": "b", "score": 0.25}, {"answer": "c", "score": 0.125}]
    answers = [
        {"answer": "", "nbest": best, "null_score_diff": 1.5},
        {"answer": "", "nbest": [], "null_score_diff": 9.0},
    ]
    files = Network(TINY, HeadConfig(task="span", version_2_with_negative=True)).head.files(["x", "y"], answers)
    assert files["predictions.json"] == {"x": "", "y": ""}
    assert files["null_odds.json"] == {"x": 1.5, "y": 9.0}
    assert files["nbest_predictions.json"] == {
        "x": [
            {"text": "", "probability": 0.625},
            {"text": "b", "probability": 0.25},
            {"text": "c", "probability": 0.125},
        ],
        "y": [{"text": "", "probability": 1.0}],
    }


# === The whole way ===


def toy(rows, seed=0):
    """A question names one of two things, and the passage may hold it."""
    draw, questions, passages, answers = random.Random(seed), [], [], []
    for _ in range(rows):
        words = draw.choices([*"abcdefg", "the", "is", "in"], k=draw.randint(2, 18))
        questions.append(draw.choice(["fire", "song"]))
        place = draw.randrange(len(words))
        if draw.random() < 0.7:
            words[place] = {"fire": "storm", "song": "music"}[questions[-1]]
            answers.append([(len(" ".join([*words[:place], ""])), words[place])])
        else:
            answers.append([])
        passages.append(" ".join(words))
    return questions, answers, passages


@pytest.fixture(scope="module")
def trained():
    keras.utils.set_random_seed(2)
    head = HeadConfig(task="span", version_2_with_negative=True, n_best_size=3, max_answer_length=3)
    model = Bert(Text(WORDS, TextConfig(max_seq_length=16)), Network(ONE, head))
    questions, answers, passages = toy(60, 1)
    result = model.fit(
        *toy(200),
        evaluation=(questions, answers, passages),
        config=TrainConfig(num_train_epochs=2, train_batch_size=16),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        progress=None,
    )
    return model, result


def test_a_toy_task_is_learnt(trained):
    model, result = trained
    assert result.best["best_f1"] > 0.95
    assert model.network.head.config.null_score_diff_threshold == result.best["best_f1_thresh"]
    found = model.predict(["fire", "song", "fire"], ["\u00e9 \U0001f525 a storm b", "a b c d e " * 9 + "music", ""])
    assert [a["answer"] for a in found] == ["storm", "music", ""]
    assert found[1]["start"] == 90
    assert not any(a["truncated"] for a in found)


def test_an_evaluation_says_what_training_said_with_the_best_threshold(trained):
    model, result = trained
    questions, answers, passages = toy(60, 1)
    found, _ = model.evaluate(model._rows(questions, answers, passages))
    assert found["f1"] == pytest.approx(result.best["best_f1"], abs=1e-6)
    assert found["best_f1"] == pytest.approx(result.best["best_f1"], abs=1e-6)


def test_the_exported_model_answers_as_predict(trained, tmp_path):
    model, _ = trained
    questions, _, passages = toy(5, 2)
    questions, passages = [*questions, "fire", "song", "fire"], [*passages, ODD, "", "a storm b " * 50]
    folder = model.export(tmp_path / "model")
    answer = tf.saved_model.load(str(folder)).signatures["serving_default"](
        text=tf.constant(questions), text_pair=tf.constant([p.encode() for p in passages])
    )
    wanted = model.arrays(questions, passages)
    assert set(answer) == set(wanted)
    for name, value in wanted.items():
        if value.dtype.kind == "f":
            np.testing.assert_allclose(answer[name], value, atol=1e-5)
        else:
            np.testing.assert_array_equal(answer[name].numpy(), value)
    assert "question-answering" in (folder / "README.md").read_text("utf-8")
