"""Attention masks: which positions may attend to which."""

import dataclasses

import checks
import numpy as np
import pytest
import tensorflow as tf
from conftest import TINY
from keras import ops

from keras_bert.model import masks
from keras_bert.model.encoder import Encoder

PADDED = {"padding_mask": np.array([[True, True, False], [True, False, False]])}


def test_bidirectional_hides_padding_and_nothing_else():
    visible = np.asarray(masks.attention_mask(masks.bidirectional, PADDED, TINY))
    assert visible.shape == (2, 1, 1, 3)
    assert visible.dtype == bool
    np.testing.assert_array_equal(visible[:, 0, 0], PADDED["padding_mask"])


def test_a_rule_and_the_padding_are_both_obeyed():
    def left_to_right(features, config):
        length = features["padding_mask"].shape[1]
        return ops.expand_dims(ops.convert_to_tensor(np.tri(length, dtype=bool)), 0)

    visible = np.asarray(masks.attention_mask(left_to_right, PADDED, TINY))
    assert visible.shape == (2, 1, 3, 3)
    np.testing.assert_array_equal(visible[0, 0], [[True, False, False], [True, True, False], [True, True, False]])
    np.testing.assert_array_equal(visible[1, 0], [[True, False, False]] * 3)


def test_a_mask_of_numbers_counts_as_well():
    for dtype in ("int32", "int64", "float32"):
        features = {"padding_mask": PADDED["padding_mask"].astype(dtype)}
        visible = np.asarray(masks.attention_mask(masks.bidirectional, features, TINY))
        np.testing.assert_array_equal(visible[:, 0, 0], PADDED["padding_mask"])


def test_every_rule_of_the_table_broadcasts_over_a_batch():
    features = PADDED | {"segment_ids": np.array([[0, 1, 0], [0, 0, 0]])}
    for name, rule in masks.MASKS.items():
        visible = masks.attention_mask(rule, features, TINY)
        assert np.broadcast_to(np.asarray(visible), (2, 4, 3, 3)).dtype == bool, name


def seen(rule, config=TINY, **features):
    """bool [B, T, S]; nothing is padding."""
    features = {name: np.array(value) for name, value in features.items()}
    shape = next(iter(features.values())).shape
    visible = masks.attention_mask(rule, features | {"padding_mask": np.ones(shape, bool)}, config)
    return np.broadcast_to(np.asarray(visible)[:, 0], (shape[0], shape[1], shape[1])).astype(int).tolist()


def test_causal_looks_back():
    assert seen(masks.causal, token_ids=[[5, 6, 7]]) == [[[1, 0, 0], [1, 1, 0], [1, 1, 1]]]


def test_seq2seq_reads_the_source_and_what_was_written():
    (visible,) = seen(masks.seq2seq, segment_ids=[[0, 0, 1, 1]])
    assert visible == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]


def test_local_looks_half_a_window_to_each_side():
    (visible,) = seen(masks.local, dataclasses.replace(TINY, local_window=2), token_ids=[[5, 6, 7, 8]])
    assert visible == [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1]]
    (visible,) = seen(masks.local, token_ids=[[5, 6, 7, 8]])
    assert np.all(visible)


def test_a_new_rule_has_a_parameter(monkeypatch):
    """Tokens reach only as far as the window says, layer by layer; a function does as well as a name."""

    def following(features, config):
        gap = masks.distances(features)
        return ops.expand_dims(ops.logical_and(gap >= 0, gap <= config.local_window), 0)

    monkeypatch.setitem(masks.MASKS, "following", following)
    given = checks.features([8])
    changed = dict(given, token_ids=given["token_ids"].copy())
    changed["token_ids"][0, 7] = 9
    for rule in ("following", following):
        config = dataclasses.replace(TINY, num_layers=2, attention_mask=rule, local_window=2)
        encoder = checks.randomize(Encoder(config))
        first, second = (np.asarray(encoder(f)["sequence"])[0] for f in (given, changed))
        reached = np.abs(first - second).max(axis=1) > 1e-6
        assert reached.tolist() == [False] * 3 + [True] * 5


PACKED = {"pack_ids": [[1, 1, 2, 2, 2]]}


def test_packed_pieces_do_not_see_each_other():
    (visible,) = seen(masks.bidirectional, **PACKED)
    assert visible == [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 1, 1], [0, 0, 1, 1, 1], [0, 0, 1, 1, 1]]


def test_packing_goes_with_every_rule():
    (visible,) = seen(masks.causal, **PACKED)
    assert visible == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 1]]
    (visible,) = seen(masks.seq2seq, **PACKED, segment_ids=[[0, 1, 0, 0, 1]])
    assert visible == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 1]]


def test_no_later_token_reaches_an_earlier_output():
    encoder = checks.randomize(Encoder(dataclasses.replace(TINY, attention_mask="causal")))
    given = checks.features([8])
    changed = dict(given, token_ids=given["token_ids"].copy())
    changed["token_ids"][0, 5:] = 9
    first, second = (np.asarray(encoder(f)["sequence"])[0] for f in (given, changed))
    np.testing.assert_array_equal(first[:5], second[:5])
    assert np.abs(first[5:] - second[5:]).max() > 0.1


def test_the_target_does_not_reach_the_source():
    encoder = checks.randomize(Encoder(dataclasses.replace(TINY, attention_mask="seq2seq")))
    given = checks.features([8])
    changed = dict(given, token_ids=given["token_ids"].copy())
    changed["token_ids"][0, 6:] = 9
    first, second = (np.asarray(encoder(f)["sequence"])[0] for f in (given, changed))
    np.testing.assert_array_equal(first[:6], second[:6])
    assert np.abs(first[6:] - second[6:]).max() > 0.1


# === Orders of a row ===


def picture(*lines):
    """What each position sees, `x` for what it does."""
    return [[int(c == "x") for c in line] for line in lines]


PSEUDO = {
    # x1 M x3 M M x6 | x4 x5 x2 | M M M: positions 4 and 5 are told in the first step, position 2 in the second.
    "order": [[0, 0, 0, 0, 0, 0, 1, 1, 2, 1, 1, 2]],
    "asks": [[0] * 9 + [1] * 3],
}
PERMUTED = {
    # x1 ... x6 | M M M: the questions of 2, 4 and 5, which are told in the order 5, 2, 4.
    "order": [[-1, 1, -1, 2, 0, -1, 1, 2, 0]],
    "asks": [[0] * 6 + [1] * 3],
}
FRAGMENT = {"order": [[0, 0, 0, 0, 0, 0, 1, 2, 3]]}
PICTURES = {
    "pseudo": (
        PSEUDO,
        picture(
            *["xxxxxx......"] * 6,
            *["xxxxxxxx...."] * 2,
            "xxxxxxxxx...",
            *["xxxxxx...xx."] * 2,
            "xxxxxxxx...x",
        ),
    ),
    "permuted": (
        PERMUTED,
        picture(
            "x.x..x...",
            "xxx.xx...",
            "x.x..x...",
            "xxxxxx...",
            "x.x.xx...",
            "x.x..x...",
            "x.x.xxx..",
            "xxx.xx.x.",
            "x.x..x..x",
        ),
    ),
    "fragment": (
        FRAGMENT,
        picture(*["xxxxxx..."] * 6, "xxxxxxx..", "xxxxxxxx.", "xxxxxxxxx"),
    ),
}


@pytest.mark.parametrize("name", PICTURES)
def test_the_order_of_a_row_says_who_sees_whom(name):
    features, wanted = PICTURES[name]
    (visible,) = seen(masks.bidirectional, **features)
    assert visible == wanted
    content = ~np.array(features.get("asks", [[0] * len(wanted)]), bool)[0]
    shown = np.array(wanted, bool)[np.ix_(content, content)]
    assert not (shown.astype(int) @ shown.astype(int) * ~shown).any(), "what I see sees only what I see"


@pytest.mark.parametrize(
    ("rule", "order"),
    [
        ("bidirectional", [3, 3, 3, 3]),
        ("causal", [0, 1, 2, 3]),
        ("right_to_left", [3, 2, 1, 0]),
        ("seq2seq", [0, 0, 1, 2]),
    ],
)
def test_the_plain_masks_are_orders_too(rule, order):
    plain = seen(masks.MASKS[rule], segment_ids=[[0, 0, 1, 1]])
    assert seen(masks.bidirectional, order=[order]) == plain


def test_an_order_goes_with_every_rule_and_with_packing():
    features = {"order": [[0, 1, 0, 1, 1]]} | PACKED
    (visible,) = seen(masks.bidirectional, **features)
    assert visible == picture("x....", "xx...", "..x..", "..xxx", "..xxx")
    (visible,) = seen(masks.causal, **features)
    assert visible == picture("x....", "xx...", "..x..", "..xx.", "..xxx")


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", PICTURES)
def test_nothing_leaks_through_three_layers(name, training):
    """The gradient of each output to each input is 0 exactly where no way of the picture leads, in both softmaxes."""
    features, shown = PICTURES[name]
    sizes = {"num_layers": 3, "hidden_dropout": 0.0, "attention_dropout": 0.0}
    encoder = checks.randomize(Encoder(dataclasses.replace(TINY, **sizes)))
    ids = np.random.default_rng(0).integers(5, 40, (1, len(shown)))
    given = {"token_ids": ids} | {key: np.array(value) for key, value in features.items()}
    embedded = tf.Variable(encoder.embed(given))
    with tf.GradientTape() as tape:
        outputs = encoder.contextualise(embedded, given, training=training)["sequence"]
        told = tf.reduce_sum(outputs * np.random.default_rng(1).normal(size=outputs.shape).astype("float32"), (0, 2))
    slopes = tape.jacobian(told, embedded)  # [T, 1, T, D]
    reached = np.abs(slopes).max(axis=(1, 3)) > 0
    ways = np.linalg.matrix_power(np.array(shown) + np.eye(len(shown), dtype=int), 3) > 0
    np.testing.assert_array_equal(reached, ways)
    if "asks" in features:
        questions = np.array(features["asks"][0], bool)
        assert not reached[np.ix_(~questions, questions)].any(), "content sees no question"
