"""Rows of like length computed together, so that a batch costs what its tokens cost and not what its longest row does.

A client may send a tweet beside a page. Padded to the page, the tweet would cost as much as the page; here rows go
through the network from the longest on, in groups of some hundred tokens, each group as wide as its own longest row.
Groups run at the same time, and small ones stay in the processor's caches, so batches of like rows gain too. Every row
is computed as it is alone, but for rounding.
"""

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

Tensors = dict[str, tf.Tensor]
PARTS, FEWEST, MOST = 4, 192, 384
"""A group has a share of the batch's tokens, padding counted, within bounds: so many that products are worth their
setting up, so few that there are several groups, which run at the same time, and that they fit into the caches."""


def by_length(
    run: Callable[[Tensors], Tensors],
    features: Tensors,
    outputs: Mapping[str, tf.TensorSpec],
    bounds: tuple[int, int] = (FEWEST, MOST),
) -> Tensors:
    """`run(features)`, computed in groups.

    Args:
        run: features of G rows, `[G, S]` with S <= T -> outputs whose first axis is G; a second axis of unknown size is
            that of the tokens.
        features: int or bool `[W, T]`; `padding_mask` says how long rows are.
        outputs: what `run` gives.
        bounds: the fewest and the most tokens that a group is filled up to; one row is a group in any case.

    Returns:
        The outputs in the order of the rows; those of tokens are zero where nothing was computed.
    """
    shape = tf.shape(features["padding_mask"])
    count, width = shape[0], shape[1]
    lengths = tf.reduce_max(tf.where(features["padding_mask"], tf.range(1, width + 1), 0), axis=1)
    order = tf.argsort(lengths, direction="DESCENDING", stable=True)
    budget = tf.clip_by_value(tf.reduce_sum(lengths) // PARTS, *bounds)
    falling = tf.concat([tf.maximum(tf.gather(lengths, order), 2), [2]], 0)  # the last is for a batch of no rows

    def end(start: tf.Tensor) -> tf.Tensor:
        return tf.minimum(start + tf.maximum(budget // falling[start], 1), count)

    def more(number: tf.Tensor, start: tf.Tensor, *parts: tf.TensorArray) -> tf.Tensor:
        return (number == 0) | (start < count)

    def group(number: tf.Tensor, start: tf.Tensor, *parts: tf.TensorArray) -> tuple[Any, ...]:
        longest, last = tf.minimum(falling[start], width), end(start)
        found = run({name: tf.gather(value, order[start:last])[:, :longest] for name, value in features.items()})
        wide = [_grown(found[name], spec, width - longest) for name, spec in outputs.items()]
        return number + 1, last, *(part.write(number, value) for part, value in zip(parts, wide, strict=True))

    # Counted first: arrays that grow need an op that servers have from 2.13 on only.
    groups, _ = tf.while_loop(more, lambda number, start: (number + 1, end(start)), (0, 0))
    arrays = [
        tf.TensorArray(spec.dtype, groups, infer_shape=False, element_shape=spec.shape) for spec in outputs.values()
    ]
    _, _, *parts = tf.while_loop(more, group, (0, 0, *arrays))
    back = tf.math.invert_permutation(order)
    found = {name: tf.gather(part.concat(), back) for name, part in zip(outputs, parts, strict=True)}
    return {name: tf.ensure_shape(value, outputs[name].shape) for name, value in found.items()}


def _grown(value: tf.Tensor, spec: tf.TensorSpec, more: tf.Tensor) -> tf.Tensor:
    """Outputs of tokens `[G, S, ...]` with so many columns of zeros more; others as they are."""
    if spec.shape.rank < 2 or spec.shape[1] is not None:
        return value
    return tf.pad(value, [[0, 0], [0, more], *[[0, 0]] * (value.shape.rank - 2)])
