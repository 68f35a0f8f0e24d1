"""Rows of similar length are computed together, so a batch costs what its tokens cost, not what its longest row costs.

A client may send a tweet and a page in one request. Padded to the page, the tweet would cost as much as the page. Here
rows go through the network longest first, in groups of a few hundred tokens, each padded to its own longest row. Groups
run in parallel, and small groups fit the processor's caches, so batches of equal rows gain as well. Each row gets the
result it would get alone, up to rounding.
"""

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

Tensors = dict[str, tf.Tensor]
PARTS, FEWEST, MOST = 4, 192, 384
"""A group takes 1/PARTS of the batch's tokens (padding included), between FEWEST and MOST: enough to amortize the
set-up of a matrix product, few enough that several groups run in parallel and fit the caches."""


def by_length(
    run: Callable[[Tensors], Tensors],
    features: Tensors,
    outputs: Mapping[str, tf.TensorSpec],
    bounds: tuple[int, int] = (FEWEST, MOST),
) -> Tensors:
    """Compute `run(features)` group by group.

    Args:
        run: takes features `[G, S]`, S <= T, of G rows and returns outputs whose first axis is G. A second axis of
            unknown size is the token axis.
        features: int or bool `[W, T]`; `padding_mask` gives the length of each row.
        outputs: specs of the outputs of `run`.
        bounds: fewest and most tokens in a group; a single long row may exceed the bound.

    Returns:
        The outputs in the order of the rows; token outputs are zero where nothing was computed.
    """
    shape = tf.shape(features["padding_mask"])
    count, width = shape[0], shape[1]
    lengths = tf.reduce_max(tf.where(features["padding_mask"], tf.range(1, width + 1), 0), axis=1)
    order = tf.argsort(lengths, direction="DESCENDING", stable=True)
    budget = tf.clip_by_value(tf.reduce_sum(lengths) // PARTS, *bounds)
    falling = tf.concat([tf.maximum(tf.gather(lengths, order), 2), [2]], 0)  # the last entry serves an empty batch

    def end(start: tf.Tensor) -> tf.Tensor:
        return tf.minimum(start + tf.maximum(budget // falling[start], 1), count)

    def more(number: tf.Tensor, start: tf.Tensor, *parts: tf.TensorArray) -> tf.Tensor:
        return (number == 0) | (start < count)

    def group(number: tf.Tensor, start: tf.Tensor, *parts: tf.TensorArray) -> tuple[Any, ...]:
        longest, last = tf.minimum(falling[start], width), end(start)
        found = run({name: tf.gather(value, order[start:last])[:, :longest] for name, value in features.items()})
        wide = [_grown(found[name], spec, width - longest) for name, spec in outputs.items()]
        return number + 1, last, *(part.write(number, value) for part, value in zip(parts, wide, strict=True))

    # Groups are counted first: dynamically sized arrays need an op that servers have only from 2.13 on.
    groups, _ = tf.while_loop(more, lambda number, start: (number + 1, end(start)), (0, 0))
    arrays = [
        tf.TensorArray(spec.dtype, groups, infer_shape=False, element_shape=spec.shape) for spec in outputs.values()
    ]
    _, _, *parts = tf.while_loop(more, group, (0, 0, *arrays))
    back = tf.math.invert_permutation(order)
    found = {name: tf.gather(part.concat(), back) for name, part in zip(outputs, parts, strict=True)}
    return {name: tf.ensure_shape(value, outputs[name].shape) for name, value in found.items()}


def _grown(value: tf.Tensor, spec: tf.TensorSpec, more: tf.Tensor) -> tf.Tensor:
    """Pad token outputs `[G, S, ...]` with `more` columns of zeros; leave other outputs unchanged."""
    if spec.shape.rank < 2 or spec.shape[1] is not None:
        return value
    return tf.pad(value, [[0, 0], [0, more], *[[0, 0]] * (value.shape.rank - 2)])
