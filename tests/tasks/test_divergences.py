"""How far answers are from those of a teacher, over all heads that are trained."""

import functools

import each_head
import numpy as np
import pytest
import tensorflow as tf
from checks import randomize
from scipy.special import expit, rel_entr, softmax

from keras_bert.config import FEATURES

NAMES = [name for name, head in each_head.HEADS.items() if head.task != "fill_mask"]
CONSTANTS = {"classify": 1, "choice": 0, "tag": 2, "span": 1, "generate": 2}
"""Axis of the logits over which a constant changes no answer; choices are one column."""


@functools.cache
def case(name):
    """A head, its logits, other logits and its targets."""
    network = randomize(each_head.network(name))
    task, head = network.head.config.task, network.head
    features = {name: tf.constant(value) for name, value in each_head.features(task).items()}
    logits = network({name: value for name, value in features.items() if name in FEATURES})
    labels = tf.constant(each_head.LABELS[task]) if task in each_head.LABELS else None
    targets = None if task == "embed" else head.targets(labels, features)
    noise = np.random.default_rng(5).normal(0, 1, logits.shape).astype("float32")
    return head, logits, logits + noise, targets


@pytest.mark.parametrize("name", NAMES)
def test_it_is_zero_for_equal_logits_and_above_for_others(name):
    head, logits, other, targets = case(name)
    rows = len(targets) if targets is not None else len(logits)
    for temperature in (1.0, 2.0):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            same = head.divergence(logits, logits, targets, temperature)
            slopes = head.divergence(tf.stop_gradient(logits), logits, targets, temperature)
        assert same.shape == (rows,)
        assert same.dtype == tf.float32
        np.testing.assert_allclose(same, 0, atol=1e-6)
        np.testing.assert_allclose(tape.gradient(slopes, logits), 0, atol=1e-6)
        found = head.divergence(other, logits, targets, temperature).numpy()
        assert found.min() >= -1e-6
        assert found.max() > 1e-3


@pytest.mark.parametrize("name", [n for n in NAMES if each_head.HEADS[n].task in CONSTANTS])
def test_a_constant_that_changes_no_answer_changes_nothing(name):
    head, logits, other, targets = case(name)
    axis = CONSTANTS[head.config.task]
    shape = [1 if i == axis else n for i, n in enumerate(logits.shape)]
    if head.config.task == "choice":
        shape = [1, 1]
    constant = np.random.default_rng(6).normal(0, 3, shape).astype("float32")
    changed = head.divergence(other - 2 * constant, logits + constant, targets)
    np.testing.assert_allclose(changed, head.divergence(other, logits, targets), atol=2e-5)


@pytest.mark.parametrize("name", ["embed", "similarity", "similarity_scores"])
def test_the_length_of_a_vector_changes_nothing(name):
    head, logits, other, targets = case(name)
    changed = head.divergence(3.0 * other, 0.5 * logits, targets)
    np.testing.assert_allclose(changed, head.divergence(other, logits, targets), atol=2e-5)


@pytest.mark.parametrize("name", ["tag", "span", "choice"])
def test_what_does_not_count_changes_nothing(name):
    """Pieces without a label, tokens that are no answer, choices that are none."""
    head, logits, other, targets = case(name)
    if name == "choice":
        targets = tf.constant([[1, 0], [0, 1], [1, -1]])
    counted = {
        "tag": lambda: targets.numpy()[..., None] > 0,
        "span": lambda: (targets.numpy()[..., None] & 1) > 0,
        "choice": lambda: targets.numpy().reshape(-1, 1) >= 0,
    }[name]
    elsewhere = np.where(counted(), 0.0, 7.0).astype("float32") * np.ones(logits.shape, "float32")
    assert 0 < elsewhere.mean() < 7
    plain, changed = (head.divergence(other, x, targets) for x in (logits, logits + elsewhere))
    np.testing.assert_allclose(changed, plain, atol=1e-6)


@pytest.mark.parametrize("name", ["classify", "multilabel", "tag", "regress"])
def test_it_is_the_divergence_of_scipy(name):
    head, logits, other, targets = case(name)
    teacher, student = other.numpy() / 2, logits.numpy() / 2
    if head.config.task == "classify":
        wanted = rel_entr(softmax(teacher, axis=1), softmax(student, axis=1)).sum(1)
    elif head.config.task == "multilabel":
        wanted = sum(rel_entr(expit(s * teacher), expit(s * student)).sum(1) for s in (1, -1))
    elif head.config.task == "tag":
        each = rel_entr(softmax(teacher, axis=2), softmax(student, axis=2)).sum(2)
        wanted = (each * (targets.numpy() > 0)).sum(1)
    else:
        wanted = (other - logits).numpy()[:, 0] ** 2
    np.testing.assert_allclose(head.divergence(other, logits, targets, 2.0), wanted, rtol=1e-4, atol=1e-5)
