"""Rows of like length computed together: the same numbers, whatever stands beside a row."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import TINY

from keras_bert.config import HeadConfig
from keras_bert.serving.groups import by_length
from keras_bert.tasks.network import Network

OUTPUTS = {
    "logits": tf.TensorSpec([None, 2], tf.float32),
    "sequence": tf.TensorSpec([None, None, TINY.hidden_dim], tf.float32),
}


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(4)
    return Network(TINY, HeadConfig(labels=("0", "1")))


@pytest.fixture(scope="module")
def run(network):
    @tf.function(autograph=False)
    def run(rows):
        taps = network.encoder(rows)
        return {"logits": network.head(taps), "sequence": taps["sequence"]}

    return run


def batch(*lengths, width=None):
    """Random rows of these lengths, padded."""
    random = np.random.default_rng(sum(lengths))
    mask = np.arange(width or max([*lengths, 2])) < np.array(lengths, int).reshape(-1, 1)
    ids = random.integers(5, TINY.vocab_size, mask.shape) * mask
    values = {"token_ids": ids, "segment_ids": ids % 2, "padding_mask": mask}
    return {name: tf.constant(value, tf.bool if name == "padding_mask" else tf.int32) for name, value in values.items()}


@pytest.mark.parametrize("budget", [1, 40, 10_000])
@pytest.mark.parametrize(
    "lengths",
    [(7,), (3, 64, 9, 9, 2, 30), (5,) * 9, tuple(range(2, 40))],
    ids=["one", "mixed", "alike", "rising"],
)
def test_groups_give_what_the_whole_batch_gives(run, lengths, budget):
    features = batch(*lengths)
    found, whole = by_length(run, features, OUTPUTS, (budget, budget)), run(features)
    there = features["padding_mask"].numpy()
    np.testing.assert_allclose(found["logits"], whole["logits"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(found["sequence"].numpy()[there], whole["sequence"].numpy()[there], rtol=0, atol=1e-5)
    assert found["sequence"].shape == whole["sequence"].shape


def test_no_group_is_wider_than_its_longest_row(network):
    seen = []

    def run(rows):
        tf.py_function(lambda ids: seen.append(tuple(ids.shape)), [rows["token_ids"]], [])
        return {"logits": tf.zeros([tf.shape(rows["token_ids"])[0], 2])}

    features = batch(4, 60, 5, 6, 61, 4)
    by_length(run, features, {"logits": OUTPUTS["logits"]}, (128, 128))
    assert seen == [(2, 61), (4, 6)]


@pytest.mark.parametrize(("rows", "group"), [(4, 2), (8, 2), (16, 4), (40, 8)], ids=["few", "low", "share", "many"])
def test_a_group_has_a_quarter_of_the_batch_within_bounds(rows, group):
    seen = []

    def run(rows):
        seen.append(tuple(rows["token_ids"].shape))
        return {"logits": tf.zeros([tf.shape(rows["token_ids"])[0], 2])}

    by_length(run, batch(*(8,) * rows), {"logits": OUTPUTS["logits"]}, (16, 64))
    assert seen == [(group, 8)] * (rows // group)


def test_rows_with_holes_keep_all_their_tokens(run):
    features = batch(12, 30, 8)
    mask = features["padding_mask"].numpy()
    mask[0, 3:9] = False
    features["padding_mask"] = tf.constant(mask)
    np.testing.assert_allclose(
        by_length(run, features, OUTPUTS, (16, 16))["logits"], run(features)["logits"], rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("count", [0, 3])
def test_no_rows_and_rows_without_tokens(run, count):
    features = {name: value[:count] for name, value in batch(0, 0, 0, width=4).items()}
    found = by_length(run, features, OUTPUTS, (16, 16))
    assert found["logits"].shape == (count, 2)
    assert found["sequence"].shape == (count, 4, TINY.hidden_dim)
    assert np.isfinite(found["logits"]).all()
