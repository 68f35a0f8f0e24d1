"""Greedy and beam search over any model that says what comes next, inside the TensorFlow graph.

The beam holds the best K hypotheses, those that have ended among them: they stay as they are, and are compared with the
others by the same score, the logarithm of their probability over `((5 + length) / 6) ** penalty` (Wu et al. 2016,
https://arxiv.org/abs/1609.08144, without coverage); the length counts the end token. A beam of 1 is greedy search.

Shapes: B rows, K hypotheses of each, L tokens of a hypothesis at most, V vocabulary.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

Step = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
"""Hypotheses int32 `[B * K, L]`, those of a row after one another, and how many of their tokens are there, int32 ->
logits float32 `[B * K, V]` of the next."""
LOW = -1e30


class Hypotheses(NamedTuple):
    """What was found, the best first: `ids` int32 `[B, K, L]`, filled up with the end token; `scores` float32,
    `lengths` int32 (with the end token) and `ended` bool `[B, K]`: did it end, or was it cut after L tokens?"""

    ids: Any
    scores: Any
    lengths: Any
    ended: Any


def search(step: Step, rows: Any, size: int, length: int, end_id: int, penalty: float = 0.0) -> Hypotheses:
    """The best hypotheses of each row; a row's do not depend on the other rows.

    Args:
        step: is run until all have ended, `length` times at most. Shapes do not change from one time to the next.
        rows: B, a number or a scalar.
        size: K, at most V.
        length: L.
        penalty: 0 compares probabilities; the greater it is, the longer the best hypothesis.
    """

    def normalized(totals: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        return totals / ((5.0 + tf.cast(lengths, tf.float32)) / 6.0) ** penalty

    def go_on(count: tf.Tensor, ids: tf.Tensor, totals: tf.Tensor, lengths: tf.Tensor, ended: tf.Tensor) -> tf.Tensor:
        return (count < length) & ~tf.reduce_all(ended)

    def extend(count: tf.Tensor, ids: tf.Tensor, totals: tf.Tensor, lengths: tf.Tensor, ended: tf.Tensor) -> Any:
        found = tf.nn.log_softmax(step(tf.reshape(ids, [-1, length]), count))
        width = tf.shape(found)[1]
        stays = tf.where(tf.range(width) == end_id, 0.0, LOW)
        found = tf.where(ended[:, :, tf.newaxis], stays, tf.reshape(found, [rows, size, width]))
        totals = totals[:, :, tf.newaxis] + found
        lengths += tf.cast(~ended, tf.int32)
        scores = normalized(totals, lengths[:, :, tf.newaxis])
        _, chosen = tf.math.top_k(tf.reshape(scores, [rows, size * width]), size)
        origin, token = chosen // width, chosen % width
        ids, lengths, ended = (tf.gather(values, origin, batch_dims=1) for values in (ids, lengths, ended))
        ids = tf.where(tf.range(length) == count, token[:, :, tf.newaxis], ids)
        totals = tf.gather(tf.reshape(totals, [rows, size * width]), chosen, batch_dims=1)
        return count + 1, ids, totals, lengths, ended | (token == end_id)

    start = (
        tf.constant(0),
        tf.fill([rows, size, length], end_id),
        tf.tile(tf.where(tf.range(size) == 0, 0.0, LOW)[tf.newaxis, :], [rows, 1]),  # all are the same: one counts
        tf.zeros([rows, size], tf.int32),
        tf.zeros([rows, size], tf.bool),
    )
    whole, each = tf.TensorShape([None, size, length]), tf.TensorShape([None, size])
    shapes = (tf.TensorShape([]), whole, each, each, each)
    _, ids, totals, lengths, ended = tf.while_loop(go_on, extend, start, shape_invariants=shapes)
    return Hypotheses(ids, normalized(totals, lengths), lengths, ended)
