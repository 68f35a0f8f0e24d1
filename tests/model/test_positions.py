"""How position enters the model."""

import dataclasses

import numpy as np
import pytest
from conftest import TINY
from keras import ops

from keras_bert.model.encoder import Encoder
from keras_bert.model.positions import POSITIONS, Absolute, Positions


def vectors(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def test_the_base_changes_nothing():
    base = Positions(TINY)
    x, scores, positions = vectors(2, 3, 16), vectors(2, 2, 3, 3), np.arange(3)[None]
    query, key = vectors(2, 2, 3, 8), vectors(2, 2, 3, 8)
    assert base.embed(x, positions) is x
    assert base.rotate(query, key, positions) == (query, key)
    assert base.scores(scores, query, positions) is scores
    assert base.values(query, scores, positions) is query
    assert base.weights == []


def test_absolute_adds_the_row_of_each_position():
    layer = Absolute(TINY)
    layer.build()
    table = vectors(64, 16)
    layer.table.assign(table)
    x = vectors(2, 3, 16)
    for positions in ([[0, 1, 2]], [[5, 0, 63], [1, 1, 2]]):
        out = layer.embed(x, np.array(positions))
        np.testing.assert_allclose(out, x + table[np.array(positions)], atol=1e-6)
    assert [w.path for w in layer.weights] == ["absolute/embeddings"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_absolute_keeps_16_bits(dtype):
    layer = Absolute(TINY, dtype=f"mixed_{dtype}")
    layer.build()
    assert layer.table.dtype == "float32"
    assert layer.embed(ops.cast(vectors(1, 3, 16), dtype), np.arange(3)[None]).dtype.name == dtype


def test_order_matters_only_through_positions():
    """Without positions BERT sees a bag of words: permuted ids give permuted outputs."""
    ids, order = np.array([[5, 6, 7, 8, 9]]), np.array([3, 1, 4, 0, 2])
    for kind in POSITIONS:
        encoder = Encoder(dataclasses.replace(TINY, positions=kind))
        straight = np.asarray(encoder(ids)["sequence"])
        shuffled = np.asarray(encoder(ids[:, order])["sequence"])
        assert np.abs(shuffled - straight[:, order]).max() > 1e-3, kind
        same = {"token_ids": ids[:, order], "positions": order[None]}
        np.testing.assert_allclose(encoder(same)["sequence"], straight[:, order], atol=1e-5)
