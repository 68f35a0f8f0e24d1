"""Rows of pretraining: `[CLS] A [SEP] B [SEP]` from ids without special tokens, and several short rows in one.

A batch is a flat dict of dense tensors with first axis B, every one a row of `columns.COLUMNS`: the encoder's features
(`config.FEATURES`), what is to be predicted, and what else the corpus holds beside a token or a row:

    token_ids, segment_ids int32, padding_mask bool  [B, T]
    masked_positions, masked_ids int32, masked_weights float32  [B, P]; see `masking.Masking`
    pair_labels int32  [B]; -1 where a row has none
and where rows were packed
    positions, pack_ids int32  [B, T]; pack_ids are equal within a piece, padding has 0
    cls_positions, pair_labels int32  [B, K]; of each piece, unused places have position 0 and label -1

A row of a packed batch is made of K pieces, which were rows before.
"""

from typing import Any

import tensorflow as tf

from keras_bert.pretrain.columns import COLUMNS, name_in_batch, of_batch

Batch = dict[str, tf.Tensor]

ORIGINAL = {
    "input_ids": ("token_ids", tf.int32),
    "segment_ids": ("segment_ids", tf.int32),
    "input_mask": ("padding_mask", tf.bool),
    "masked_lm_positions": ("masked_positions", tf.int32),
    "masked_lm_ids": ("masked_ids", tf.int32),
    "masked_lm_weights": ("masked_weights", tf.float32),
    "next_sentence_labels": ("pair_labels", tf.int32),
}
"""The features of a record of google-research/bert, which has its masks already -> our name and type."""


def from_original(records: Batch) -> Batch:
    """A batch of records of google-research/bert's `create_pretraining_data`: tensors `[B, ...]` under their names."""
    batch = {ours: tf.cast(records[theirs], dtype) for theirs, (ours, dtype) in ORIGINAL.items()}
    return batch | {"pair_labels": tf.reshape(batch["pair_labels"], [-1])}


def assemble(
    examples: dict[str, Any], cls_id: int, sep_id: int, pad_id: int = 0, length: int | None = None, multiple: int = 1
) -> Batch:
    """Examples of a corpus -> features, `pair_labels`, and the further columns of the corpus.

    Args:
        examples: `token_ids` ragged `[B, tokens]`, the ids of all segments one after another; `segment_lengths`
            ragged `[B, segments]`, which add up to the row's tokens; `pair_label` int `[B]`, -1 for none; and any other
            columns of records, ragged `[B, tokens]` or `[B, runs]`, or `[B]`.
        length: of all rows; None is the longest of the batch, rounded up to a multiple of `multiple`.

    Raises:
        InvalidArgumentError: a row is longer than `length`.
    """
    lengths = tf.cast(examples["segment_lengths"], tf.int64)
    counts = lengths.row_lengths()
    sizes = examples["token_ids"].row_lengths() + counts
    numbers = tf.repeat(tf.cast(tf.ragged.range(counts).flat_values, tf.int32), lengths.flat_values + 1)
    widths = tf.cast(sizes + 1, tf.int32)
    longest = tf.reduce_max(tf.concat([widths, [2]], 0))
    width = (longest + multiple - 1) // multiple * multiple
    if length is not None:
        message = f"a row of the corpus has more than {length} tokens; build it with --max_seq_length={length}"
        tf.debugging.assert_less_equal(longest, length, message)
        width = tf.constant(length)

    def dense(values: Any, first: int, default: int) -> tf.Tensor:
        """Values of all tokens of all rows, [SEP]s included, as `[B, T]` with `first` at [CLS]."""
        rest = tf.RaggedTensor.from_row_lengths(values, sizes).to_tensor(default)
        row = tf.concat([tf.fill([tf.shape(rest)[0], 1], first), rest], axis=1)
        row = tf.pad(row, [[0, 0], [0, width - tf.shape(row)[1]]], constant_values=default)
        return tf.ensure_shape(row, [None, length])

    def ended(values: Any, end: int) -> tf.Tensor:
        """Values of all tokens of all segments, with `end` after each segment."""
        segments = tf.RaggedTensor.from_row_lengths(tf.cast(values, tf.int32), lengths.flat_values)
        return tf.concat([segments, tf.fill([segments.nrows(), 1], end)], axis=1).flat_values

    batch = {
        "token_ids": dense(ended(examples["token_ids"].flat_values, sep_id), cls_id, pad_id),
        "segment_ids": dense(numbers, 0, 0),
        "padding_mask": tf.ensure_shape(tf.sequence_mask(widths, width), [None, length]),
    }
    for name, values in examples.items():
        if name in ("token_ids", "segment_lengths"):
            continue
        column = COLUMNS[name]
        if column.per == "row":
            made = values
        else:
            each = _run_numbers(values) if column.per == "run" else values.flat_values
            made = dense(ended(each, column.filler), column.filler, column.filler)
        batch[name_in_batch(name)] = tf.cast(made, column.dtype)
    return batch


def _run_numbers(lengths: Any) -> tf.Tensor:
    """Lengths of runs, ragged `[B, runs]` -> for all tokens of all rows the number of their run in its row, from 1."""
    counts = lengths.row_lengths()
    return tf.repeat(tf.ragged.range(1, counts + 1).flat_values, lengths.flat_values)


# === Packing ===


def first_fit(lengths: Any, room: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Put each length into the first row that has room for it.

    Args:
        lengths: int `[E]`, none larger than `room`.

    Returns:
        The row of each, and where in its row it starts: int32 `[E]`.
    """
    lengths = tf.convert_to_tensor(lengths, tf.int32)
    count = tf.shape(lengths)[0]

    def place(i: Any, used: tf.Tensor, rows: Any, starts: Any) -> tuple[Any, ...]:
        row = tf.argmax(used + lengths[i] <= room, output_type=tf.int32)
        start = used[row]
        used = tf.tensor_scatter_nd_add(used, [[row]], [lengths[i]])
        return i + 1, used, rows.write(i, row), starts.write(i, start)

    state = (0, tf.zeros_like(lengths), *(tf.TensorArray(tf.int32, count) for _ in range(2)))
    _, _, rows, starts = tf.while_loop(lambda i, *_: i < count, place, state)
    return rows.stack(), starts.stack()


def pack(batch: Batch, length: int, pad_id: int = 0) -> Batch:
    """Put the rows of a batch, masks and all, into as few rows of `length` tokens as first-fit needs.

    The pieces of a row do not see each other (`masks.packed`) and each counts its positions from 0, so hidden states
    and losses are those of separate rows. The same batch gives the same rows. Every column moves as `COLUMNS` says.
    """
    mask = batch["padding_mask"]
    sizes = tf.reduce_sum(tf.cast(mask, tf.int32), axis=1)
    rows, starts = first_fit(sizes, length)
    num_rows = tf.reduce_max(tf.concat([rows, [-1]], 0)) + 1

    def by_row(values: tf.Tensor, owners: tf.Tensor, default: int = 0, width: int | None = None) -> tf.Tensor:
        """`values` of the examples `owners`, in this order, gathered in their new rows."""
        where = tf.gather(rows, owners)
        order = tf.argsort(where, stable=True)
        ragged = tf.RaggedTensor.from_value_rowids(tf.gather(values, order), tf.gather(where, order), num_rows)
        return ragged.to_tensor(default, shape=[None, width])

    at = tf.cast(tf.where(mask), tf.int32)
    examples = tf.range(tf.shape(sizes)[0])
    used = batch["masked_weights"] > 0 if "masked_weights" in batch else None
    owners = None if used is None else tf.cast(tf.where(used)[:, 0], tf.int32)
    packed = {
        "padding_mask": tf.sequence_mask(tf.math.unsorted_segment_sum(sizes, rows, num_rows), length),
        "positions": by_row(at[:, 1], at[:, 0], width=length),
        "pack_ids": by_row(at[:, 0] + 1, at[:, 0], width=length),
        "cls_positions": by_row(starts, examples),
    }
    for name, column in of_batch(batch.keys() - packed.keys()).items():
        filler = pad_id if name == "token_ids" else column.filler
        if column.per == "row":
            packed[name] = by_row(batch[name], examples, filler)
        elif column.per == "prediction":
            values = tf.boolean_mask(batch[name], used)
            packed[name] = by_row(values + tf.gather(starts, owners) if column.place else values, owners, filler)
        else:
            packed[name] = by_row(tf.boolean_mask(batch[name], mask), at[:, 0], filler, length)
    return packed


def fill_up(batch: Batch, rows: int) -> Batch:
    """Add rows in which nothing counts, so that the batch has `rows` of them."""

    def filled(tensor: tf.Tensor, filler: int) -> tf.Tensor:
        absent = [[0, rows - tf.shape(tensor)[0]], *[[0, 0]] * (tensor.shape.rank - 1)]
        value = tf.cast(filler, tensor.dtype)
        return tf.ensure_shape(tf.pad(tensor, absent, constant_values=value), [rows, *tensor.shape[1:]])

    return {name: filled(batch[name], column.filler) for name, column in of_batch(batch).items()}
