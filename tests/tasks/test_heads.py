"""Heads and the network: losses and answers by hand, and logits tied to the encoder's own table."""

import dataclasses
import math

import checks
import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import TINY
from keras import ops

from keras_bert.config import HeadConfig
from keras_bert.errors import ConfigError
from keras_bert.model.encoder import Encoder
from keras_bert.model.layers import Pooler, TiedLogits
from keras_bert.tasks.classify import Classify
from keras_bert.tasks.multilabel import Multilabel
from keras_bert.tasks.network import HEADS, Network
from keras_bert.tasks.regress import Regress

CONFIGS = {
    "classify": HeadConfig(task="classify", labels=("no", "perhaps", "yes")),
    "multilabel": HeadConfig(task="multilabel", labels=("fire", "flood", "storm", "quake")),
    "regress": HeadConfig(task="regress"),
    "choice": HeadConfig(task="choice"),
    "similarity": HeadConfig(task="similarity", pooling="max"),
    "embed": HeadConfig(task="embed", layers="first_last"),
    "tag": HeadConfig(task="tag", labels=("place", "person"), max_entities=5),
    "span": HeadConfig(task="span", max_answer_length=3, n_best_size=4),
}
SENTENCES = ("classify", "multilabel", "regress")
"""The tasks with one answer for a whole row; `test_tagging`, `test_choices` and others have the others."""
ONE_VECTOR = (*SENTENCES, "choice", "similarity", "embed")


def build(layer):
    layer.build(None)
    return layer


PARTS = {
    "pooler": checks.Part(build=lambda dtype: build(Pooler(TINY, dtype=dtype)), run=checks.on_vectors, positions=False),
    "tied_logits": checks.Part(
        build=lambda dtype: build(TiedLogits(TINY, dtype=dtype)),
        run=lambda layer, given: layer(checks.below().embed(given), checks.below().tokens.embeddings),
    ),
    **{
        f"head_{task}": checks.Part(
            build=lambda dtype, task=task: HEADS[task](TINY, CONFIGS[task], dtype=dtype),
            run=lambda layer, given: layer({"sequence": checks.below().embed(given)}),
            positions=task not in ONE_VECTOR,
        )
        for task in CONFIGS
        if task not in ("similarity", "embed")
    },
    **{
        f"network_{task}": checks.Part(
            build=lambda dtype, task=task: Network(TINY, CONFIGS[task], dtype=dtype),
            run=checks.on_features,
            positions=task not in ONE_VECTOR,
            silent="key/bias",
        )
        for task in CONFIGS
    },
}


@pytest.mark.parametrize("promise", checks.PROMISES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("part", PARTS)
def test_promises(part, promise, tmp_path):
    promise(PARTS[part], tmp_path)


def head(task):
    return HEADS[task](TINY, CONFIGS[task])


def numbers(tensor):
    return np.asarray(tensor).tolist()


# === Losses ===


def test_cross_entropy_by_hand():
    logits = ops.convert_to_tensor([[0.0, math.log(2.0), math.log(5.0)], [1.0, 1.0, 1.0], [0.0, 0.0, 200.0]])
    loss = head("classify").loss(ops.convert_to_tensor([2, 0, 0]), logits)
    # -ln 5/8, ln 3, and 200 where exp would overflow
    np.testing.assert_allclose(loss, [math.log(8 / 5), math.log(3), 200.0], rtol=1e-6)


def test_sigmoid_loss_by_hand():
    logits = ops.convert_to_tensor([[0.0, math.log(3.0), -math.log(3.0), 0.0], [200.0, -200.0, 200.0, -200.0]])
    labels = ops.convert_to_tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 1.0]])
    loss = head("multilabel").loss(labels, logits)
    # sigmoids 1/2, 3/4, 1/4, 1/2: twice ln 2 and twice ln 4/3; then 0, 0, 200, 200
    np.testing.assert_allclose(loss, [(2 * math.log(2) + 2 * math.log(4 / 3)) / 4, 100.0], rtol=1e-6)


def test_squared_error_by_hand():
    loss = head("regress").loss(ops.convert_to_tensor([2.0, -1.0]), ops.convert_to_tensor([[2.5], [1.0]]))
    np.testing.assert_allclose(loss, [0.25, 4.0])


@pytest.mark.parametrize("task", SENTENCES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_losses_are_float32_one_per_example(task, dtype):
    made = head(task)
    logits = ops.cast(np.random.default_rng(0).normal(size=(4, made.width)), dtype)
    shape = (4, made.width) if task == "multilabel" else (4,)
    labels = ops.cast(np.random.default_rng(1).integers(0, 2, shape), made.label_dtype)
    loss = made.loss(labels, logits)
    assert (loss.shape, loss.dtype) == ((4,), "float32")
    wide = made.loss(labels, ops.cast(logits, "float32"))
    np.testing.assert_allclose(loss, wide, atol=1e-6)
    assert made.loss(labels[:0], logits[:0]).shape == (0,)


@pytest.mark.parametrize("task", SENTENCES)
def test_one_step_down_the_gradient_lowers_the_loss(task):
    network = checks.randomize(Network(TINY, CONFIGS[task]))
    shape = (4, network.head.width) if task == "multilabel" else (4,)
    labels = ops.cast(np.random.default_rng(1).integers(0, 2, shape), network.head.label_dtype)
    given = checks.features([6, 3, 4, 5])
    with tf.GradientTape() as tape:
        before = tf.reduce_mean(network.head.loss(labels, network(given)))
    weights = network.head.trainable_weights
    for weight, gradient in zip(weights, tape.gradient(before, [w.value for w in weights]), strict=True):
        weight.assign_sub(1e-3 * gradient)
    assert float(tf.reduce_mean(network.head.loss(labels, network(given)))) < float(before)


# === Answers ===


def test_classify_answers_best_first():
    logits = ops.convert_to_tensor([[0.0, math.log(2.0), math.log(5.0)], [math.log(6.0), 0.0, 0.0]])
    answer = head("classify").answer(logits)
    np.testing.assert_allclose(answer["probabilities"], [[1 / 8, 2 / 8, 5 / 8], [6 / 8, 1 / 8, 1 / 8]], atol=1e-7)
    np.testing.assert_allclose(answer["scores"], [[5 / 8, 2 / 8, 1 / 8], [6 / 8, 1 / 8, 1 / 8]], atol=1e-7)
    np.testing.assert_allclose(answer["score"], [5 / 8, 6 / 8], atol=1e-7)
    assert numbers(answer["class_ids"]) == [[2, 1, 0], [0, 1, 2]]
    assert numbers(answer["class_id"]) == [2, 0]


def test_equal_scores_are_answered_in_the_order_of_labels():
    answer = head("classify").answer(ops.zeros((2, 3)))
    assert numbers(answer["class_ids"]) == [[0, 1, 2]] * 2
    assert numbers(answer["class_id"]) == [0, 0]
    np.testing.assert_allclose(answer["scores"], np.full((2, 3), 1 / 3), atol=1e-7)


def test_extreme_logits_give_certain_answers():
    answer = head("classify").answer(ops.convert_to_tensor([[-1e4, 1e4, 0.0]]))
    assert numbers(answer["scores"]) == [[1.0, 0.0, 0.0]]
    assert numbers(answer["class_id"]) == [1]
    scores = head("multilabel").answer(ops.convert_to_tensor([[1e4, -1e4, 0.0, 0.0]]))["scores"]
    assert numbers(scores) == [[1.0, 0.0, 0.5, 0.5]]


def test_multilabel_answers_in_the_order_of_labels():
    logits = ops.convert_to_tensor([[math.log(3.0), 0.0, -math.log(3.0), 2.0]])
    answer = head("multilabel").answer(logits)
    np.testing.assert_allclose(answer["scores"], [[0.75, 0.5, 0.25, 1 / (1 + math.exp(-2))]], atol=1e-6)
    assert numbers(answer["class_ids"]) == [[0, 1, 2, 3]]
    assert numbers(answer["active"]) == [[True, True, False, True]], "the threshold itself counts as active"
    strict = Multilabel(TINY, dataclasses.replace(CONFIGS["multilabel"], threshold=0.8))
    assert numbers(strict.answer(logits)["active"]) == [[False, False, False, True]]


def test_regress_answers_the_number():
    assert numbers(head("regress").answer(ops.convert_to_tensor([[0.5], [-3.0]]))["score"]) == [0.5, -3.0]


KINDS = {
    "classify": {
        "probabilities": ((3,), "float32"),
        "class_id": ((), "int32"),
        "score": ((), "float32"),
        "class_ids": ((3,), "int32"),
        "scores": ((3,), "float32"),
    },
    "multilabel": {"class_ids": ((4,), "int32"), "scores": ((4,), "float32"), "active": ((4,), "bool")},
    "regress": {"score": ((), "float32")},
}


@pytest.mark.parametrize("task", SENTENCES)
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("rows", [3, 0])
def test_answers_have_the_same_form_under_every_policy(task, dtype, rows):
    network = checks.randomize(Network(TINY, CONFIGS[task], dtype=dtype))
    given = {name: value[:rows] for name, value in checks.features([6, 3, 4]).items()}
    answer = network.answer({**given, "num_tokens": np.zeros(rows)})
    assert {k: (tuple(v.shape), keras.backend.standardize_dtype(v.dtype)) for k, v in answer.items()} == {
        name: ((rows, *shape), kind) for name, (shape, kind) in KINDS[task].items()
    }
    wide = checks.randomize(Network(TINY, CONFIGS[task])).answer(given)
    for name in ("score", "scores"):
        if name in answer:
            np.testing.assert_allclose(answer[name], wide[name], atol=0.15 if dtype != "float32" else 0)


def test_answers_have_no_dropout():
    network = checks.randomize(Network(TINY, dataclasses.replace(CONFIGS["regress"], dropout=0.5)))
    given = checks.features([6, 3])
    first, second = (numbers(network.answer(given)["score"]) for _ in range(2))
    assert first == second
    assert numbers(network(given, training=True)) != numbers(network(given, training=True))


def test_the_pooler_reads_the_first_position_only():
    pooler = checks.randomize(build(Pooler(TINY)))
    x = np.random.default_rng(0).normal(size=(2, 4, 16)).astype("float32")
    kernel, bias = (w.numpy() for w in pooler.weights)
    np.testing.assert_allclose(pooler(x), np.tanh(x[:, 0] @ kernel + bias), atol=1e-6)
    assert pooler(x).shape == (2, 16)


# === Labels ===


def test_labels_that_do_not_suit_the_task():
    for labels in ((), ("only",)):
        with pytest.raises(ConfigError, match="classify needs at least two labels, got"):
            Classify(TINY, HeadConfig(labels=labels))
    with pytest.raises(ConfigError, match="multilabel needs at least one label"):
        Multilabel(TINY, HeadConfig(task="multilabel"))
    with pytest.raises(ConfigError, match=r"regress has no labels, got \['0', '1'\]"):
        Regress(TINY, HeadConfig(task="regress", labels=("0", "1")))
    with pytest.raises(ConfigError, match="tag needs at least one type of entities"):
        HEADS["tag"](TINY, HeadConfig(task="tag"))
    with pytest.raises(ConfigError, match=r"span has no labels, got \['0'\]"):
        HEADS["span"](TINY, HeadConfig(task="span", labels=("0",)))
    for task, decode in (("tag", "joint"), ("span", "argmax")):
        with pytest.raises(ConfigError, match=f"unknown decode '{decode}'; choose one of"):
            HEADS[task](TINY, dataclasses.replace(CONFIGS[task], decode=decode))
    with pytest.raises(
        ConfigError,
        match="unknown task 'cluster'; choose one of classify, multilabel, regress, choice, similarity, tag",
    ):
        Network(TINY, HeadConfig(task="cluster"))


def test_width_is_the_number_of_labels():
    widths = {"classify": 3, "multilabel": 4, "regress": 1, "choice": 1, "tag": 5, "span": 2}
    assert {task: head(task).width for task in widths} == widths
    assert {task: head(task).projection.kernel.shape for task in widths} == {t: (16, n) for t, n in widths.items()}
    assert Multilabel(TINY, HeadConfig(task="multilabel", labels=("one",))).width == 1


# === Logits tied to the token table ===


def test_tied_logits_read_the_encoders_table():
    encoder, tied = checks.randomize(Encoder(TINY)), checks.randomize(build(TiedLogits(TINY)), 1)
    assert TINY.vocab_size != TINY.intermediate_dim
    assert [tuple(w.shape) for w in tied.weights] == [(TINY.vocab_size,), (16, 16), (16,), (16,), (16,)]
    given = checks.features([6, 3])
    hidden = encoder(given)["sequence"]
    table = encoder.tokens.embeddings
    before = np.asarray(tied(hidden, table))
    inner = np.asarray(tied.norm(tied.transform(hidden)))
    np.testing.assert_allclose(before, inner @ table.numpy().T + tied.bias.numpy(), atol=1e-5)
    changed = table.numpy()
    changed[7] += 1.0
    table.assign(changed)
    difference = np.abs(np.asarray(tied(hidden, table)) - before).max((0, 1))
    np.testing.assert_allclose(difference[7], np.abs(inner.sum(-1)).max(), atol=1e-4)
    assert difference[np.arange(TINY.vocab_size) != 7].max() == 0.0


def test_tied_logits_teach_the_table_from_both_ends():
    encoder, tied = checks.randomize(Encoder(TINY)), checks.randomize(build(TiedLogits(TINY)), 1)
    given = {"token_ids": np.array([[5, 6, 7]])}
    table = encoder.tokens.embeddings.value
    with tf.GradientTape() as tape:
        out = tf.reduce_sum(tied(encoder(given)["sequence"], encoder.tokens.embeddings) ** 2)
    gradient = np.abs(np.asarray(tf.convert_to_tensor(tape.gradient(out, table)))).max(-1)
    assert (gradient > 0).all(), "as output weights every row learns"
    with tf.GradientTape() as tape:
        out = tf.reduce_sum(encoder(given)["sequence"] ** 3)
    gradient = np.abs(np.asarray(tf.convert_to_tensor(tape.gradient(out, table)))).max(-1)
    assert np.flatnonzero(gradient).tolist() == [5, 6, 7], "as input weights only the rows that were read"
