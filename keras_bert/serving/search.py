"""Greedy and beam search over any model that says what comes next, inside the TensorFlow graph.

The beam holds the best K hypotheses, those that have ended among them: they stay as they are, and are compared with the
others by the same score, the logarithm of their probability over `((5 + length) / 6) ** penalty` (Wu et al. 2016,
https://arxiv.org/abs/1609.08144, without coverage); the length counts the end token. A beam of 1 is greedy search.

What a model keeps of the tokens it has read is never moved when the beam changes. A hypothesis knows its way instead:
in which of the K places of the beam it stood each time, so that it finds its own tokens among those of all.

Shapes: B rows, K hypotheses of each, L tokens of a hypothesis at most, V vocabulary.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

Step = Callable[[tf.Tensor, tf.Tensor, tf.Tensor, Any], tuple[tf.Tensor, Any]]
"""Hypotheses int32 `[B, K, L]`, their ways int32 `[B, K, L]`, how many of their tokens are there, int32, and a state ->
logits float32 `[B, K, V]` of the next, and the state for the next time. Of a way as much is there as of the tokens: the
place of the beam, from 0, that was asked for each of them."""
LOW = -1e30


class Hypotheses(NamedTuple):
    """What was found, the best first: `ids` int32 `[B, K, L]`, filled up with the end token; `scores` float32,
    `lengths` int32 (with the end token) and `ended` bool `[B, K]`: did it end, or was it cut after L tokens?"""

    ids: Any
    scores: Any
    lengths: Any
    ended: Any


def search(
    step: Step, rows: Any, size: int, length: int, end_id: int, penalty: float = 0.0, state: Any = ()
) -> Hypotheses:
    """The best hypotheses of each row; a row's do not depend on the other rows.

    Args:
        step: is run until all have ended, `length` times at most.
        rows: B, a number or a scalar.
        size: K, at most V.
        length: L.
        penalty: 0 compares probabilities; the greater it is, the longer the best hypothesis.
        state: of the first step: tensors in lists or tuples, whose shapes do not change as far as they are known.
    """

    def normalized(totals: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        return totals / ((5.0 + tf.cast(lengths, tf.float32)) / 6.0) ** penalty

    def go_on(count: Any, ids: Any, ways: Any, totals: Any, lengths: Any, ended: Any, state: Any) -> tf.Tensor:
        return (count < length) & ~tf.reduce_all(ended)

    def extend(count: Any, ids: Any, ways: Any, totals: Any, lengths: Any, ended: Any, state: Any) -> tuple[Any, ...]:
        logits, state = step(ids, ways, count, state)
        found = tf.nn.log_softmax(logits)
        width = tf.shape(found)[2]
        stays = tf.where(tf.range(width) == end_id, 0.0, LOW)
        totals = totals[:, :, tf.newaxis] + tf.where(ended[:, :, tf.newaxis], stays, found)
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
        tf.tile(tf.where(tf.range(size) == 0, 0.0, LOW)[tf.newaxis, :], [rows, 1]),  # all are the same: one counts
        tf.zeros([rows, size], tf.int32),
        tf.zeros([rows, size], tf.bool),
        state,
    )
    whole, each = tf.TensorShape([None, size, length]), tf.TensorShape([None, size])
    kept = tf.nest.map_structure(lambda tensor: tensor.shape, state)
    shapes = (tf.TensorShape([]), whole, whole, each, each, each, kept)
    _, ids, _, totals, lengths, ended, _ = tf.while_loop(go_on, extend, start, shape_invariants=shapes)
    return Hypotheses(ids, normalized(totals, lengths), lengths, ended)
