"""Who may look at whom."""

import numpy as np
from keras import ops

from keras_bert import masks

PADDED = {"padding_mask": np.array([[True, True, False], [True, False, False]])}


def test_bidirectional_hides_padding_and_nothing_else():
    visible = np.asarray(masks.attention_mask(masks.bidirectional, PADDED))
    assert visible.shape == (2, 1, 1, 3)
    assert visible.dtype == bool
    np.testing.assert_array_equal(visible[:, 0, 0], PADDED["padding_mask"])


def test_a_rule_and_the_padding_are_both_obeyed():
    def left_to_right(features):
        length = features["padding_mask"].shape[1]
        return ops.expand_dims(ops.convert_to_tensor(np.tri(length, dtype=bool)), 0)

    visible = np.asarray(masks.attention_mask(left_to_right, PADDED))
    assert visible.shape == (2, 1, 3, 3)
    np.testing.assert_array_equal(visible[0, 0], [[True, False, False], [True, True, False], [True, True, False]])
    np.testing.assert_array_equal(visible[1, 0], [[True, False, False]] * 3)


def test_a_mask_of_numbers_counts_as_well():
    for dtype in ("int32", "int64", "float32"):
        features = {"padding_mask": PADDED["padding_mask"].astype(dtype)}
        visible = np.asarray(masks.attention_mask(masks.bidirectional, features))
        np.testing.assert_array_equal(visible[:, 0, 0], PADDED["padding_mask"])


def test_every_rule_of_the_table_broadcasts_over_a_batch():
    for name, rule in masks.MASKS.items():
        visible = masks.attention_mask(rule, PADDED)
        assert np.broadcast_to(np.asarray(visible), (2, 4, 3, 3)).dtype == bool, name
