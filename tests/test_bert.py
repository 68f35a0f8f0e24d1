"""`Bert`: what its docstring promises, the answers of each task, and what it refuses."""

import inspect
import json
import shutil
import textwrap

import keras
import numpy as np
import pytest
from checks import randomize
from conftest import TINY, WORDS, tiny_bert

from keras_bert.bert import Bert
from keras_bert.config import DataConfig, OptimizerConfig, TrainConfig
from keras_bert.errors import CheckpointError, ConfigError, DataError

TEXTS = ["fire in the city", "a song", "storm storm storm is on", "", "game 9"]
SHORT = TrainConfig(num_train_epochs=1, train_batch_size=16)


def learnable(rows=40):
    """Texts and labels that one word decides."""
    words = ("fire", "flood", "music", "song")
    texts = [f"{words[i % 4]} in the {WORDS[5 + i % 26]}" for i in range(rows)]
    return texts, ["1" if i % 4 < 2 else "0" for i in range(rows)]


def weights(bert):
    return {w.path: np.asarray(w) for w in bert.network.weights}


def assert_same_weights(a, b):
    np.testing.assert_equal(weights(a), weights(b))


@pytest.fixture(scope="module")
def bert():
    """A classifier with weights that matter."""
    made = tiny_bert()
    randomize(made.network)
    return made


@pytest.fixture(scope="module")
def saved(bert, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "runs" / "mine"
    bert.save(folder)
    return folder


# === The whole way ===


def test_the_example_of_the_docstring_runs(tiny_checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_checkpoint, "path/to/checkpoint")
    code = textwrap.dedent(inspect.getdoc(Bert).split("Example:\n")[1].split("\n\nAttributes:")[0])
    assert code.count("bert") > 5
    texts, labels = learnable()
    names = {"Bert": Bert, "texts": texts, "labels": ["yes" if label == "1" else "no" for label in labels]}
    exec(compile(code, "Bert.__doc__", "exec"), names)  # our own documentation
    assert (tmp_path / "models/tweets/1/saved_model.pb").exists()
    (answer,) = names["bert"].predict(["forest fire near la ronge"])
    assert answer["label"] in ("no", "yes")
    assert set(answer) == {"label", "score", "scores", "truncated"}
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_fit_learns_and_says_how_well(tmp_path):
    bert = tiny_bert(max_seq_length=12)
    texts, labels = learnable(240)
    config = TrainConfig(num_train_epochs=3, train_batch_size=8)
    bert.predict(texts[:1])  # traced with the weights of before
    result = bert.fit(
        iter(texts),
        np.array([int(label) for label in labels]),
        config=config,
        optimizer=OptimizerConfig(learning_rate=1e-2),
        model_dir=tmp_path / "run",
        progress=None,
    )
    assert result.best["accuracy"] > 0.95
    found = [answer["label"] for answer in bert.predict(texts)]
    assert np.mean([a == b for a, b in zip(found, labels, strict=True)]) > 0.95
    assert_same_weights(Bert.load(tmp_path / "run"), bert)


@pytest.mark.slow
def test_fit_makes_a_model_of_pairs_where_it_gets_pairs(tmp_path):
    bert = tiny_bert()
    texts, labels = learnable(20)
    with pytest.raises(DataError, match="pairs: give text_pairs too"):
        bert.fit(texts, labels, texts, evaluation=(texts, labels), config=SHORT, progress=None)
    bert.fit(texts, labels, texts, evaluation=(texts, labels, texts), config=SHORT, progress=None)
    assert bert.pair
    assert len(bert.predict(TEXTS, TEXTS)) == 5
    bert.save(tmp_path)
    assert Bert.load(tmp_path).pair


# === Answers ===


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_answers_come_in_the_order_of_the_texts(batch_size, bert):
    answers = bert.predict(TEXTS, batch_size=batch_size)
    for text, answer in zip(TEXTS, answers, strict=True):
        (alone,) = bert.predict([text])
        assert alone["label"] == answer["label"]
        assert alone["scores"] == pytest.approx(answer["scores"], abs=1e-6)
    assert len({a["score"] for a in answers}) == 5


def test_classify(bert):
    for answer in bert.predict(TEXTS):
        assert list(answer) == ["label", "score", "scores", "truncated"]
        assert sorted(answer["scores"]) == ["0", "1"]
        assert list(answer["scores"].values()) == sorted(answer["scores"].values(), reverse=True)
        assert (answer["label"], answer["score"]) == next(iter(answer["scores"].items()))
        assert sum(answer["scores"].values()) == pytest.approx(1, abs=1e-6)
        assert answer["truncated"] is False
        json.dumps(answer)
    assert [a["truncated"] for a in bert.predict(["a " * 14, "a " * 15])] == [False, True]


def test_multilabel():
    bert = tiny_bert("multilabel", ("fire", "flood", "storm"))
    randomize(bert.network)
    answers = bert.predict(TEXTS)
    for answer in answers:
        assert list(answer) == ["labels", "scores", "truncated"]
        assert list(answer["scores"]) == ["fire", "flood", "storm"]
        assert answer["labels"] == [name for name, score in answer["scores"].items() if score >= 0.5]
        json.dumps(answer)
    assert len({tuple(a["labels"]) for a in answers}) > 1


def test_regress():
    bert = tiny_bert("regress", ())
    randomize(bert.network)
    answers = bert.predict(TEXTS)
    for answer in answers:
        assert list(answer) == ["score", "truncated"]
        assert type(answer["score"]) is float
    assert len({a["score"] for a in answers}) == 5
    assert bert.labels == ()


def test_pairs_differ_from_their_reverse():
    bert = tiny_bert(pair=True)
    randomize(bert.network)
    there, back = bert.predict(["fire", "song"], ["song", "fire"])
    assert there["scores"] != pytest.approx(back["scores"], abs=1e-4)


def test_no_texts_no_answers(bert):
    assert bert.predict([]) == []
    assert {name: len(value) for name, value in bert.arrays([]).items()}["scores"] == 0


def test_strings_of_other_kinds_are_texts_too(bert):
    class Name(str):
        """A string with a class of its own, as libraries make them."""

    wanted = [a["scores"] for a in bert.predict(TEXTS)]
    for texts in ([Name(t) for t in TEXTS], np.array(TEXTS), tuple(TEXTS), (t for t in TEXTS)):
        assert [a["scores"] for a in bert.predict(texts)] == wanted
    assert bert.predict(["\ud800 fire"])[0]["truncated"] is False


# === Refused ===


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("fire", r"^texts must be a list of strings; put a single text into a list$"),
        (["a", None], r"^texts\[1\] is None, a NoneType and not a string$"),
        ([1.5], r"^texts\[0\] is 1.5, a float and not a string$"),
        (["a", "b", float("nan")], r"^texts\[2\] is nan, a float"),
        ([b"fire"], r"^texts\[0\] is b'fire', a bytes"),
        ([["a", "b"]], r"^texts\[0\] is \['a', 'b'\], a list"),
    ],
)
def test_what_is_no_text_is_refused_with_its_place(texts, message, bert):
    with pytest.raises(DataError, match=message):
        bert.predict(texts)
    with pytest.raises(DataError, match=message):
        bert.fit(texts, ["0"] * len(texts), config=SHORT, progress=None)
    pair = tiny_bert(pair=True)
    with pytest.raises(DataError, match=message.replace("texts", "text_pairs", 1)):
        pair.predict(["a"] * len(texts), texts)


@pytest.mark.parametrize("texts", [b"fire", np.array("fire"), 3, None])
def test_what_is_no_list_is_refused(texts, bert):
    for call in (bert.predict, bert.embed):
        with pytest.raises(DataError, match=r"^texts must be a list of strings; put a single text into a list$"):
            call(texts)


def test_pairs_and_single_texts_are_not_mixed_up(bert):
    with pytest.raises(DataError, match="this model reads single texts"):
        bert.predict(["a"], ["b"])
    with pytest.raises(DataError, match="give text_pairs too"):
        tiny_bert(pair=True).predict(["a"])
    with pytest.raises(DataError, match="1 texts but 2 second texts"):
        tiny_bert(pair=True).predict(["a"], ["b", "c"])
    texts, labels = learnable(20)
    with pytest.raises(DataError, match="this model reads single texts"):
        bert.fit(texts, labels, evaluation=(texts, labels, texts), config=SHORT, progress=None)


@pytest.mark.parametrize(
    ("texts", "labels", "evaluation", "message"),
    [
        ([], [], None, "there are no texts"),
        (["a"] * 20, ["0", "1"] * 10, ([], []), "there are no texts"),
        (["a", "b"], ["0"], None, r"equally many, got \{'text': 2, 'label': 1\}"),
        (["a", "b"], ["0", "1"], None, "too few to hold out 10%"),
        (["a", "b"], ["0", "2"], (["a"], ["0"]), r"line 2: label '2' is not among the labels \['0', '1'\]"),
        (["a", "b"], ["0", None], (["a"], ["0"]), "line 2: label 'None' is not among"),
        (["a", "b"], [0.0, 1.0], (["a"], ["0"]), "line 1: label '0.0' is not among"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_refused(texts, labels, evaluation, message, bert):
    before = weights(bert)
    with pytest.raises(DataError, match=message):
        bert.fit(texts, labels, evaluation=evaluation, config=SHORT, progress=None)
    np.testing.assert_equal(weights(bert), before)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_needs_a_row(batch_size, bert):
    with pytest.raises(ConfigError, match="batch_size must be at least 1"):
        bert.predict(["a"], batch_size=batch_size)


# === Checkpoints ===


def test_a_pretrained_checkpoint_gets_a_new_head(tiny_checkpoint):
    bert = Bert.from_checkpoint(tiny_checkpoint, labels=[0, 1, "two"])
    assert bert.labels == ("0", "1", "two")
    assert bert.report.new == ("head/logits/kernel", "head/logits/bias")
    assert len(bert.report.filled) == len(bert.network.weights) - 2
    assert bert.text.vocabulary == WORDS
    assert bert.network.encoder.config.num_layers == TINY.num_layers
    assert bert.text.config.max_seq_length == TINY.max_positions, "128, but the model has fewer positions"


def test_one_seed_gives_one_head(tiny_checkpoint):
    heads = []
    for seed, noise in ((1, 1), (1, 2), (2, 1)):
        keras.utils.set_random_seed(noise)
        found = weights(Bert.from_checkpoint(tiny_checkpoint, labels=["0", "1"], seed=seed))
        heads.append(found["head/logits/kernel"])
        assert not found["head/logits/bias"].any()
    np.testing.assert_array_equal(heads[0], heads[1])
    assert np.abs(heads[0] - heads[2]).max() > 1e-3
    assert 0.01 < heads[0].std() < 0.03


@pytest.mark.parametrize("length", [65, 512])
def test_rows_longer_than_the_model_has_positions_are_refused(length, tiny_checkpoint):
    with pytest.raises(ConfigError, match=f"max_seq_length {length} is more than the 64 positions"):
        Bert.from_checkpoint(tiny_checkpoint, labels=["0", "1"], max_seq_length=length)
    assert Bert.from_checkpoint(tiny_checkpoint, labels=["0", "1"], max_seq_length=64).predict(["a " * 99])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "classify needs at least two labels"),
        ({"labels": ["1"]}, "classify needs at least two labels"),
        ({"labels": ["1", 1]}, r"labels must be unique, these are not: \['1'\]"),
        ({"task": "regress", "labels": ["0", "1"]}, "regress has no labels"),
        ({"task": "multilabel"}, "multilabel needs at least one label"),
        ({"task": "cluster", "labels": ["0", "1"]}, "unknown task .cluster.; choose one of classify, multilabel"),
        ({"labels": ["0", "1"], "max_seq_length": 2}, "max_seq_length must be at least 3"),
    ],
)
def test_settings_that_do_not_suit_are_refused(settings, message, tiny_checkpoint):
    with pytest.raises(ConfigError, match=message):
        Bert.from_checkpoint(tiny_checkpoint, **settings)


def test_case_follows_the_checkpoint_unless_told_otherwise(tiny_checkpoint):
    made = {
        kind: Bert.from_checkpoint(tiny_checkpoint, labels=["0", "1"], do_lower_case=kind)
        for kind in (None, True, False)
    }
    assert {kind: bert.text.config.do_lower_case for kind, bert in made.items()} == {
        None: True,
        True: True,
        False: False,
    }
    ids = {kind: bert.text(["FIRE"])["token_ids"].numpy()[0, 1] for kind, bert in made.items()}
    assert ids[True] == ids[None] == WORDS.index("fire")
    assert ids[False] == WORDS.index("[UNK]")


def test_what_was_saved_is_what_is_loaded(tmp_path):
    bert = tiny_bert("multilabel", ("a", "b"), pair=True, max_seq_length=9, do_lower_case=False)
    randomize(bert.network)
    bert.data = DataConfig(text_column="one", text_pair_column="two", label_column="what", id_column="number")
    bert.save(tmp_path / "deep" / "er")
    loaded = Bert.load(tmp_path / "deep" / "er")
    assert_same_weights(loaded, bert)
    assert loaded.data == bert.data
    assert loaded.text.config == bert.text.config
    assert loaded.text.vocabulary == bert.text.vocabulary
    assert loaded.network.head.config == bert.network.head.config
    assert loaded.network.encoder.config == bert.network.encoder.config
    assert loaded.predict(TEXTS, TEXTS) == bert.predict(TEXTS, TEXTS)


def test_a_run_can_be_trained_further_for_the_same_labels(saved, bert):
    again = Bert.from_checkpoint(saved, labels=["0", "1"], max_seq_length=8)
    assert again.report.new == ()
    assert_same_weights(again, bert)
    assert again.text.config.max_seq_length == 8


@pytest.mark.parametrize(
    ("settings", "both"),
    [
        (
            {"labels": ["0", "1", "2"]},
            r"classify with labels \['0', '1'\], not for classify with \['0', '1', '2'\]; with new_head",
        ),
        ({"labels": ["1", "0"]}, r"classify with labels \['0', '1'\], not for classify with \['1', '0'\]"),
        ({"labels": ["0", "1"], "task": "multilabel"}, r"classify with labels .*, not for multilabel"),
        ({"task": "regress"}, r"classify with labels \['0', '1'\], not for regress with \[\]"),
    ],
)
def test_a_run_for_other_labels_is_refused_with_both_lists(settings, both, saved):
    with pytest.raises(CheckpointError, match=both):
        Bert.from_checkpoint(saved, **settings)


@pytest.mark.parametrize(
    ("task", "labels", "kept"),
    [
        ("classify", ["yes", "no"], ("encoder/", "head/pooler/")),
        ("multilabel", ["a", "b", "c"], ("encoder/", "head/pooler/")),
        ("tag", ["PER"], ("encoder/",)),
        ("similarity", [], ("encoder/",)),
    ],
)
def test_a_run_of_another_task_starts_with_a_new_head_on_its_encoder(task, labels, kept, saved, bert):
    second = Bert.from_checkpoint(saved, task=task, labels=labels, new_head=True)
    assert (second.network.head.config.task, list(second.labels)) == (task, labels)
    before = {w.path: np.asarray(w) for w in bert.network.weights}
    for weight in second.network.weights:
        if "seed_generator" not in weight.path:
            stays = weight.path.startswith(kept)
            assert (weight.path in second.report.filled) == stays
            assert (weight.path in second.report.new) != stays
            old = before.get(weight.path)
            same = old is not None and np.array_equal(old, weight)
            assert same == stays or weight.path.endswith("bias"), weight.path
    again = Bert.from_checkpoint(saved, labels=["0", "1"], new_head=True)
    assert again.report.new == ("head/logits/kernel", "head/logits/bias"), "new for the same labels, too"


def test_a_checkpoint_without_a_head_cannot_be_loaded_as_a_model(tiny_checkpoint):
    with pytest.raises(CheckpointError, match=r"a hf checkpoint has no trained head; fine-tune it first"):
        Bert.load(tiny_checkpoint)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("keras_bert.json", "holds no checkpoint"),
        ("model.safetensors", "has no model.safetensors"),
        ("vocab.txt", r"vocab.txt: cannot be read"),
    ],
)
def test_a_model_that_lacks_a_file_is_refused(name, message, saved, tmp_path):
    shutil.copytree(saved, tmp_path / "copy")
    (tmp_path / "copy" / name).unlink()
    with pytest.raises((CheckpointError, DataError), match=message):
        Bert.load(tmp_path / "copy")
