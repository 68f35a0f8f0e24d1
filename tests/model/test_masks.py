"""Attention masks: which positions may attend to which."""

import dataclasses

import checks
import numpy as np
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
