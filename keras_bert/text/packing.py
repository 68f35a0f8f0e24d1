"""Segments to model rows: truncation, packing with special tokens, overlapping windows, and whole words.

Everything is core TensorFlow ops on ragged tensors, so it runs in `tf.data` and inside a SavedModel alike.
Shapes: B texts, W windows, S segments per row.
"""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from keras_bert.config import choose

Lengths = list[tf.Tensor]
Share = Callable[[Lengths, int], Lengths]
Part = Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
Merge = Callable[[tf.Tensor, tf.Tensor, Any], tf.Tensor]


# === Truncation, how much: (lengths, room) -> lengths to keep, each int32 [B] ===


def longest_first(lengths: Lengths, room: int) -> Lengths:
    """Drop tokens from the longest segment (the last one on ties) until the row fits.

    This is google-research/bert's rule for pairs, in closed form and for any number of segments: every segment is cut
    to one common length, and the remaining room goes to the first segments that were cut, one token each. Filling the
    row with one token of each segment in turn (round robin) gives the same lengths.
    """
    count = len(lengths)
    if count == 1:
        return [tf.minimum(lengths[0], room)]
    stacked = tf.stack(lengths, axis=1)  # [B, S]
    ordered = tf.sort(stacked, axis=1)
    before = tf.cumsum(ordered, axis=1, exclusive=True)
    # If the k shortest stay whole, the others share the rest equally; the level is the largest such share.
    level = tf.reduce_max((room - before) // tf.range(count, 0, -1), axis=1, keepdims=True)
    kept = tf.minimum(stacked, level)
    cut = tf.cast(stacked > level, tf.int32)
    spare = room - tf.reduce_sum(kept, axis=1, keepdims=True)
    kept += cut * tf.cast(tf.cumsum(cut, axis=1) <= spare, tf.int32)
    return tf.unstack(kept, num=count, axis=1)


def waterfall(lengths: Lengths, room: int) -> Lengths:
    """The first segment keeps as much as fits, the next takes what is left, and so on."""
    kept: Lengths = []
    for length in lengths:
        kept.append(tf.minimum(length, room))
        room = room - kept[-1]
    return kept


def before_target(most: int) -> Share:
    """Reserve room for a second segment of `most` tokens, its [SEP] included, whether or not there is one."""

    def share(lengths: Lengths, room: int) -> Lengths:
        first, *targets = lengths
        left = room - most + len(targets)
        return [tf.minimum(first, left), *(tf.minimum(length, most - 1) for length in targets)]

    return share


SHARES: dict[str, Share] = {
    "longest_first": longest_first,
    "round_robin": longest_first,
    "waterfall": waterfall,
}


# === Truncation, which part: (row lengths, keep) -> (tokens from the head, from the tail), each int32 [B] ===


def head(lengths: tf.Tensor, keep: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The first tokens."""
    return keep, tf.zeros_like(keep)


def tail(lengths: tf.Tensor, keep: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The last tokens."""
    return tf.zeros_like(keep), keep


def head_tail(lengths: tf.Tensor, keep: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """A quarter from the head and the rest from the tail: 128 + 382 of 510 tokens (Sun et al. 2019)."""
    first = tf.where(lengths <= keep, keep, (keep + 2) // 4)
    return first, keep - first


PARTS: dict[str, Part] = {
    "head": head,
    "tail": tail,
    "head_tail": head_tail,
}


def cut(segment: tf.RaggedTensor, keep: tf.Tensor, part: str | Part = "head") -> tf.RaggedTensor:
    """Keep `keep[i]` tokens of row i of `segment` `[B, tokens]`; `part` is a name in `PARTS`, or a function."""
    begin, end = segment.row_splits[:-1], segment.row_splits[1:]
    lengths = tf.cast(end - begin, tf.int32)
    keep = tf.minimum(keep, lengths)
    first, last = choose(PARTS, part, "part of a text to keep")(lengths, keep)
    begins = tf.stack([begin, end - tf.cast(last, end.dtype)], axis=1)  # of the head and of the tail
    ends = tf.stack([begin + tf.cast(first, begin.dtype), end], axis=1)
    at = tf.ragged.range(tf.reshape(begins, [-1]), tf.reshape(ends, [-1])).flat_values
    splits = tf.concat([[0], tf.cumsum(tf.cast(keep, begin.dtype))], 0)
    return tf.RaggedTensor.from_row_splits(tf.gather(segment.flat_values, at), splits, validate=False)


# === Rows ===


def pack(
    segments: Sequence[tf.RaggedTensor], cls_id: int, sep_id: int, pad_id: int
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Build `[CLS] a [SEP] b [SEP] ...`, padded to the longest row of the batch, at least 2 tokens wide.

    Returns:
        `token_ids` and `segment_ids` int32 `[B, T]`, `padding_mask` bool `[B, T]`. Segment ids are 0, 1, 2, ...;
        [CLS] belongs to the first segment, each [SEP] to the one it ends, padding has 0.
    """
    lengths = [tf.cast(segment.row_lengths(), tf.int32)[:, tf.newaxis] for segment in segments]
    widths = tf.add_n(lengths) + 1 + len(segments)  # [B, 1]
    column = tf.range(tf.reduce_max(tf.concat([widths[:, 0], [2]], 0)))[
        tf.newaxis, :
    ]  # an empty batch has no longest row
    padding_mask = column < widths
    token_ids = tf.where(padding_mask, tf.where(column == 0, cls_id, sep_id), pad_id)
    segment_ids = tf.zeros_like(token_ids)
    begin: Any = 1
    for number, (segment, length) in enumerate(zip(segments, lengths, strict=True)):
        if number:
            segment_ids += tf.cast(padding_mask & (column >= begin), tf.int32)
        inside = (column >= begin) & (column < begin + length)
        at = tf.where(inside, tf.cast(segment.row_starts(), tf.int32)[:, tf.newaxis] + column - begin, 0)
        values = tf.concat([segment.flat_values, [pad_id]], 0)  # there may be no token at all
        token_ids = tf.where(inside, tf.gather(values, at), token_ids)
        begin += length + 1
    return token_ids, segment_ids, padding_mask


# === Windows ===


def windows(
    segment: tf.RaggedTensor, size: tf.Tensor, stride: int, most: int
) -> tuple[tf.RaggedTensor, tf.Tensor, tf.Tensor]:
    """Cut the rows of `segment` `[B, tokens]` into overlapping windows, so that long texts are read whole.

    Args:
        size: tokens per window, int32 `[B]` or one number; at least 1.
        stride: tokens from the start of one window to the start of the next.
        most: maximum number of windows per row; tokens after the last window are not read.

    Returns:
        The windows `[W, tokens]` in order; the row of each window, int32 `[W]`; and its start in that row, int32 `[W]`.
        A row that fits, or is empty, has one window.
    """
    lengths = tf.cast(segment.row_lengths(), tf.int32)
    size = tf.broadcast_to(tf.convert_to_tensor(size, tf.int32), tf.shape(lengths))
    more = tf.maximum(lengths - size, 0)
    counts = tf.minimum(1 + (more + stride - 1) // stride, most)
    rows = tf.repeat(tf.range(tf.shape(lengths)[0]), counts)
    starts = tf.ragged.range(counts).flat_values * stride
    widths = tf.minimum(tf.gather(lengths, rows) - starts, tf.gather(size, rows))
    offsets = tf.cast(tf.gather(segment.row_starts(), rows), tf.int32) + starts
    flat = tf.ragged.range(offsets, offsets + widths)
    return tf.RaggedTensor.from_row_lengths(tf.gather(segment.flat_values, flat.flat_values), widths), rows, starts


def best_window(where: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Select, for each token, the window that shows it with the most context; the first one on ties.

    Context is measured as in google-research/bert: by the shorter side of the token, then by the length of the window.

    Args:
        where: which of the `count` tokens each position holds, int32 `[W, T]`; `count` for padding.

    Returns:
        bool `[W, T]`; exactly one position of each token is True.
    """
    real = where < count
    length = tf.reduce_sum(tf.cast(real, tf.int64), axis=1, keepdims=True)
    left = tf.cumsum(tf.cast(real, tf.int64), axis=1) - 1
    number, shape = tf.size(where, tf.int64), tf.shape(where)
    later = tf.reshape(tf.range(number, 0, -1), shape)
    key = (tf.minimum(left, length - 1 - left) * 100 + length) * (number + 1) + later
    best = tf.math.unsorted_segment_max(tf.reshape(key, [-1]), tf.reshape(where, [-1]), count + 1)
    return real & (key == tf.gather(best, where))


def merge(values: tf.Tensor, rows: tf.Tensor, num_rows: Any, how: str | Merge = "mean") -> tf.Tensor:
    """Merge the values of windows `[W, n]` into those of rows `[B, n]`; `how` is a name in `MERGES`, or a function."""
    return choose(MERGES, how, "way to merge windows")(values, rows, num_rows)


def _first(values: tf.Tensor, rows: tf.Tensor, num_rows: Any) -> tf.Tensor:
    return tf.gather(values, tf.searchsorted(rows, tf.range(num_rows)))


MERGES: dict[str, Merge] = {
    "mean": tf.math.unsorted_segment_mean,
    "max": tf.math.unsorted_segment_max,
    "first": _first,
}


# === Words ===


def whole_words(tokens: tf.RaggedTensor, continues: tf.Tensor) -> tf.RaggedTensor:
    """Group the pieces of each word: `[B, tokens]` -> `[B, words, pieces]`.

    Args:
        continues: bool `[V]`, or ragged `[B, tokens]`: whether a piece continues the word before it. In a vocabulary
            these are the pieces that begin with `##`; for Chinese words see `continuing_characters`.
    """
    if isinstance(continues, tf.RaggedTensor):
        flags = continues.flat_values
    else:
        flags = tf.gather(continues, tokens.flat_values)
    first = tf.ragged.range(tokens.row_lengths()).flat_values == 0  # the first piece of a row always starts a word
    starts = tf.logical_or(tf.logical_not(flags), first)
    words = tf.RaggedTensor.from_value_rowids(
        tokens.flat_values,
        tf.cumsum(tf.cast(starts, tf.int64)) - 1,
        nrows=tf.reduce_sum(tf.cast(starts, tf.int64)),
    )
    counts = tf.math.unsorted_segment_sum(tf.cast(starts, tf.int64), tokens.value_rowids(), tokens.nrows())
    return tf.RaggedTensor.from_row_lengths(words, counts)


def continuing_characters(pieces: Sequence[str], segment: Callable[[str], Sequence[str]]) -> list[bool]:
    """Mark pieces that continue a word in text without spaces (whole-word masking, Cui et al. 2019).

    Args:
        pieces: the pieces of a text; each Chinese character is a piece.
        segment: a word segmenter, text -> words that concatenate to it (`lambda s: list(jieba.cut(s))`).

    Returns:
        Whether each piece continues a word: pieces that begin with `##`, and all but the first character of each word
        that `segment` finds in a run of single characters.
    """
    flags = [piece.startswith("##") for piece in pieces]
    run: list[int] = []
    for i, piece in enumerate([*pieces, "##"]):
        if len(piece) == 1 and not piece.isascii():
            run.append(i)
            continue
        start = 0
        for word in segment("".join(pieces[j] for j in run)) if run else ():
            for j in run[start + 1 : start + len(word)]:
                flags[j] = True
            start += len(word)
        run = []
    return flags
