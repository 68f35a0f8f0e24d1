"""Scores of all pieces of the vocabulary at some places of a row: at masks, and where the next token is to come.

A row of a text and its target is `[CLS] text [SEP] target [SEP]`; each token of the target, and the [SEP] that ends it,
is told from the position before it.

Shapes: B rows, T tokens, P places, V vocabulary, E masks of a row that are answered, k pieces of each.
"""

from typing import Any

from keras import ops

Tensor = Any


def gather(sequence: Tensor, positions: Tensor) -> Tensor:
    """Vectors at some positions of each row: `[B, T, D]` at int `[B, P]` -> `[B, P, D]`."""
    batch, length, width = ops.shape(sequence)[0], ops.shape(sequence)[1], sequence.shape[-1]
    positions = ops.cast(positions, "int32")
    flat = positions + ops.expand_dims(ops.arange(batch, dtype="int32") * length, 1)
    return ops.take(ops.reshape(sequence, (-1, width)), flat, axis=0)


# === Masks ===


def is_mask(features: dict[str, Tensor], mask_id: int) -> Tensor:
    """Which positions are masks, bool `[B, T]`."""
    return ops.logical_and(ops.equal(features["token_ids"], mask_id), ops.cast(features["padding_mask"], "bool"))


def masks(masked: Tensor, most: int) -> Tensor:
    """Where the first masks of each row are, in order, int32 `[B, P]`; T behind the last.

    P is their number in the row that has most of them, from 1 to `most`.
    """
    width = ops.shape(masked)[1]
    places = ops.sort(ops.where(masked, ops.arange(width, dtype="int32")[None, :], width), axis=1)
    count = ops.max(ops.sum(ops.cast(masked, "int32"), axis=1), initial=1)
    return places[:, : ops.minimum(count, most)]


def best(logits: Tensor, places: Tensor, width: Any, size: int, most: int) -> dict[str, Tensor]:
    """The best pieces for each mask.

    Args:
        logits: `[B, P, V]`.
        places: what `masks` gives.
        width: T.
        size, most: k and E.

    Returns:
        `token_ids` int32 and `scores` float32 `[B, E, k]`, the probabilities among all pieces, from the best on; and
        `places` int32 `[B, E]`. Filled up with -1, 0 and -1.
    """
    scores, ids = ops.top_k(ops.softmax(ops.cast(logits, "float32"), axis=2), size)
    real = places < width

    def padded(values: Tensor, none: Any) -> Tensor:
        shape = ops.shape(values)[2:]
        chosen = ops.reshape(real, (*ops.shape(real), *(1 for _ in shape)))
        known = ops.where(chosen, values, ops.cast(none, values.dtype))
        grown = ops.pad(known, ((0, 0), (0, most), *((0, 0) for _ in shape)), constant_values=none)
        return ops.reshape(grown[:, :most], (-1, most, *shape))

    return {
        "token_ids": padded(ops.cast(ids, "int32"), -1),
        "scores": padded(scores, 0),
        "places": padded(places, -1),
    }


# === Targets ===


def target_places(features: dict[str, Tensor], most: int) -> Tensor:
    """Positions from which the tokens of the target are told, int32 `[B, P]`: the first [SEP] and those after it.

    P is `most`, or T where rows are shorter.
    """
    width = ops.shape(features["token_ids"])[1]
    source = ops.logical_and(ops.equal(features["segment_ids"], 0), ops.cast(features["padding_mask"], "bool"))
    first = ops.sum(ops.cast(source, "int32"), axis=1, keepdims=True) - 1
    places = first + ops.arange(most, dtype="int32")[None, :width]
    return ops.clip(places, 0, width - 1)


def next_tokens(features: dict[str, Tensor]) -> Tensor:
    """What is to be told from each position: the next token + 1 where that is of the target, else 0, int32 `[B, T]`."""
    target = ops.logical_and(ops.equal(features["segment_ids"], 1), ops.cast(features["padding_mask"], "bool"))
    ids = ops.where(target, ops.cast(features["token_ids"], "int32") + 1, 0)
    return ops.pad(ids, ((0, 0), (0, 1)))[:, 1:]


def at_target_places(targets: Tensor, logits: Tensor, most: int) -> Tensor:
    """What `next_tokens` gives, at the places of `target_places`: int32 `[B, P]`, P that of `logits`."""
    first = ops.cast(ops.argmax(targets > 0, axis=1), "int32")
    places = first[:, None] + ops.arange(most, dtype="int32")[None, : ops.shape(logits)[1]]
    return ops.take_along_axis(ops.pad(targets, ((0, 0), (0, most))), places, axis=1)
