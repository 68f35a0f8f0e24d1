"""Greedy and beam search in the TensorFlow graph, over any model that predicts the next token.

The beam holds the best K hypotheses. A hypothesis that has ended stays in the beam unchanged and competes by the same
score: its log probability over `((5 + length) / 6) ** penalty` (Wu et al. 2016, https://arxiv.org/abs/1609.08144,
without the coverage term). The length includes the end token. A beam of 1 is greedy search.

The keys and values that a model caches are never moved when the beam changes. Each hypothesis records the beam slots it
has passed through instead, and so finds its own tokens in the cache.

Shapes: B rows, K hypotheses per row, L the longest hypothesis in tokens, V vocabulary.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

Step = Callable[[tf.Tensor, tf.Tensor, tf.Tensor, Any], tuple[tf.Tensor, Any]]
"""`(ids, ways, length, state) -> (logits, state)`: one step of decoding.

`ids` int32 `[B, K, L]` are the hypotheses. `ways[b, k, i]` int32 is the beam slot that hypothesis k occupied when token
i was generated. Only the first `length` entries of both are valid. `logits` float32 `[B, K, V]` are those of the next
token.
"""
LOW = -1e30


class Hypotheses(NamedTuple):
    """The hypotheses of each row, best first.

    `ids` int32 `[B, K, L]` are padded with the end token. `scores` float32, `lengths` int32 (end token included) and
    `ended` bool are `[B, K]`; `ended` is False for a hypothesis that was cut after L tokens.
    """

    ids: Any
    scores: Any
    lengths: Any
    ended: Any


def search(
    step: Step, rows: Any, size: int, length: int, end_id: int, penalty: float = 0.0, state: Any = ()
) -> Hypotheses:
    """Find the best hypotheses of each row. Rows do not affect each other.

    Args:
        step: runs until every hypothesis has ended, at most `length` times.
        rows: B, a number or a scalar.
        size: K, at most V.
        length: L.
        penalty: 0 compares probabilities; larger values favor longer hypotheses.
        state: passed to the first step: nested tensors whose static shapes do not change.
    """

    def normalized(totals: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        return totals / ((5.0 + tf.cast(lengths, tf.float32)) / 6.0) ** penalty

    def unfinished(count: Any, ids: Any, ways: Any, totals: Any, lengths: Any, ended: Any, state: Any) -> tf.Tensor:
        return (count < length) & ~tf.reduce_all(ended)

    def extend(count: Any, ids: Any, ways: Any, totals: Any, lengths: Any, ended: Any, state: Any) -> tuple[Any, ...]:
        logits, state = step(ids, ways, count, state)
        log_probabilities = tf.nn.log_softmax(logits)
        width = tf.shape(log_probabilities)[2]
        stays = tf.where(tf.range(width) == end_id, 0.0, LOW)
        totals = totals[:, :, tf.newaxis] + tf.where(ended[:, :, tf.newaxis], stays, log_probabilities)
        lengths += tf.cast(~ended, tf.int32)
        scores = normalized(totals, lengths[:, :, tf.newaxis])
        _, chosen = tf.math.top_k(tf.reshape(scores, [rows, size * width]), size)
        origin, token = chosen // width, chosen % width
        ids, ways, lengths, ended = (tf.gather(v, origin, batch_dims=1) for v in (ids, ways, lengths, ended))
        here = tf.range(length) == count
        ids, ways = (tf.where(here, v[:, :, tf.newaxis], old) for v, old in ((token, ids), (origin, ways)))
        totals = tf.gather(tf.reshape(totals, [rows, size * width]), chosen, batch_dims=1)
        return count + 1, ids, ways, totals, lengths, ended | (token == end_id), state

    start = (
        tf.constant(0),
        tf.fill([rows, size, length], end_id),
        tf.zeros([rows, size, length], tf.int32),
        tf.tile(
            tf.where(tf.range(size) == 0, 0.0, LOW)[tf.newaxis, :], [rows, 1]
        ),  # all hypotheses are equal at first, so only one counts
        tf.zeros([rows, size], tf.int32),
        tf.zeros([rows, size], tf.bool),
        state,
    )
    whole, each = tf.TensorShape([None, size, length]), tf.TensorShape([None, size])
    state_shapes = tf.nest.map_structure(lambda tensor: tensor.shape, state)
    shapes = (tf.TensorShape([]), whole, whole, each, each, each, state_shapes)
    _, ids, _, totals, lengths, ended, _ = tf.while_loop(unfinished, extend, start, shape_invariants=shapes)
    return Hypotheses(ids, normalized(totals, lengths), lengths, ended)
