"""Sharing a row among segments, cutting, packing, windows, words: against a few lines of plain Python each."""

import random

import numpy as np
import pytest
import tensorflow as tf

from keras_bert.errors import ConfigError
from keras_bert.text import packing


def drop_from_the_longest(lengths: list[int], room: int) -> list[int]:
    """The rule as it is told: pop from the longest, from the last of equally long ones."""
    lengths = list(lengths)
    while sum(lengths) > room:
        longest = max(lengths)
        lengths[max(i for i, n in enumerate(lengths) if n == longest)] -= 1
    return lengths


def take_in_turn(lengths: list[int], room: int) -> list[int]:
    """Round robin: one token of each segment in turn while there is room."""
    kept = [0] * len(lengths)
    while sum(kept) < min(room, sum(lengths)):
        for i, n in enumerate(lengths):
            if kept[i] < n and sum(kept) < room:
                kept[i] += 1
    return kept


def fill(lengths: list[int], room: int) -> list[int]:
    kept = []
    for n in lengths:
        kept.append(min(n, room - sum(kept)))
    return kept


@pytest.mark.parametrize(
    ("name", "oracle"),
    [("longest_first", drop_from_the_longest), ("round_robin", take_in_turn), ("waterfall", fill)],
)
@pytest.mark.parametrize("segments", [1, 2, 3, 5])
def test_shares(name: str, oracle, segments: int) -> None:
    rng = random.Random(segments)
    for room in (0, 1, 7, 20):
        rows = [[rng.randrange(12) for _ in range(segments)] for _ in range(200)]
        found = packing.SHARES[name]([tf.constant(c, tf.int32) for c in zip(*rows, strict=True)], room)
        assert np.stack(found, 1).tolist() == [oracle(row, room) for row in rows]


def test_parts() -> None:
    rows = tf.ragged.constant([list(range(10)), [0, 1], []], dtype=tf.int32)
    keep = tf.constant([4, 4, 4])
    assert packing.cut(rows, keep, "head").to_list() == [[0, 1, 2, 3], [0, 1], []]
    assert packing.cut(rows, keep, "tail").to_list() == [[6, 7, 8, 9], [0, 1], []]
    assert packing.cut(rows, keep, "head_tail").to_list() == [[0, 7, 8, 9], [0, 1], []]
    long = tf.ragged.constant([list(range(1000))], dtype=tf.int32)
    (kept,) = packing.cut(long, tf.constant([510]), "head_tail").to_list()
    assert kept == [*range(128), *range(1000 - 382, 1000)]  # the 128 + 382 of Sun et al.
    with pytest.raises(ConfigError, match="middle"):
        packing.cut(rows, keep, "middle")


def test_three_segments_in_a_row() -> None:
    segments = [tf.ragged.constant(r, dtype=tf.int32) for r in ([[11, 12], []], [[21], [22]], [[], [31, 32, 33]])]
    ids, kinds, mask = packing.pack(segments, cls_id=1, sep_id=2, pad_id=0)
    assert ids.numpy().tolist() == [[1, 11, 12, 2, 21, 2, 2, 0], [1, 2, 22, 2, 31, 32, 33, 2]]
    assert kinds.numpy().tolist() == [[0, 0, 0, 0, 1, 1, 2, 0], [0, 0, 1, 1, 2, 2, 2, 2]]
    assert mask.numpy().sum(1).tolist() == [7, 8]


def test_an_empty_batch_packs_to_two_columns() -> None:
    empty = tf.RaggedTensor.from_row_lengths(tf.zeros([0], tf.int32), tf.zeros([0], tf.int64))
    assert [tuple(x.shape) for x in packing.pack([empty, empty], 1, 2, 0)] == [(0, 2)] * 3


@pytest.mark.parametrize(("size", "stride", "most"), [(4, 2, 99), (4, 4, 99), (5, 3, 2), (1, 1, 99), (4, 2, 1)])
def test_windows(size: int, stride: int, most: int) -> None:
    texts = [list(range(100 * i, 100 * i + n)) for i, n in enumerate([0, 1, 4, 5, 9, 12])]
    expected, rows, starts = [], [], []
    for row, text in enumerate(texts):
        start = 0
        while start == 0 or (start + size - stride < len(text)):
            if rows.count(row) == most:
                break
            expected.append(text[start : start + size])
            rows.append(row)
            starts.append(start)
            start += stride
    found = packing.windows(tf.ragged.constant(texts, dtype=tf.int32), size, stride, most)
    assert found[0].to_list() == expected
    assert found[1].numpy().tolist() == rows
    assert found[2].numpy().tolist() == starts
    if most == 99 and stride <= size:  # nothing is left unread
        assert {t for w in expected for t in w} == {t for text in texts for t in text}


def test_a_text_that_fits_is_its_own_window() -> None:
    texts = tf.ragged.constant([[1, 2, 3], [4]], dtype=tf.int32)
    found, rows, _ = packing.windows(texts, tf.constant([3, 3]), 2, 10)
    assert found.to_list() == texts.to_list()
    values = tf.constant([[0.25, 0.75], [1.0, 0.0]])
    for how in packing.MERGES:
        np.testing.assert_array_equal(packing.merge(values, rows, 2, how), values)


def test_merges() -> None:
    values, rows = tf.constant([[1.0], [3.0], [5.0], [7.0]]), tf.constant([0, 0, 1, 1])
    merged = {how: packing.merge(values, rows, 2, how).numpy().ravel().tolist() for how in packing.MERGES}
    assert merged == {"mean": [2.0, 6.0], "max": [3.0, 7.0], "first": [1.0, 5.0]}
    with pytest.raises(ConfigError, match="median"):
        packing.merge(values, rows, 2, "median")


def test_whole_words() -> None:
    continues = tf.constant([False, False, True, True])  # of pieces 0, 1, ##2, ##3
    tokens = tf.ragged.constant([[0, 2, 3, 1], [], [1], [2, 3, 0]], dtype=tf.int32)
    words = packing.whole_words(tokens, continues)
    assert words.to_list() == [[[0, 2, 3], [1]], [], [[1]], [[2, 3], [0]]]
    flags = tf.ragged.constant([[False, False, True, False], [], [False], [False, True, True]])
    assert packing.whole_words(tokens, flags).to_list() == [[[0], [2, 3], [1]], [], [[1]], [[2, 3, 0]]]


def test_chinese_words() -> None:
    words = {"使用语言模型来预测": ["使用", "语言", "模型", "来", "预测"], "下": ["下"]}
    pieces = [*"使用语言模型来预测", "bert", "##s", "下", "!"]
    flags = packing.continuing_characters(pieces, words.__getitem__)
    together = "".join(("+" if flag else " ") + piece for piece, flag in zip(pieces, flags, strict=True))
    assert together == " 使+用 语+言 模+型 来 预+测 bert+##s 下 !"
