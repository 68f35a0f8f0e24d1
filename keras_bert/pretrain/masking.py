"""Masks of the masked language model, drawn anew each epoch inside `tf.data`.

What is chosen together (`UNITS`) and what replaces it (`REPLACEMENTS`) are functions that know nothing of each other; a
new one is one function and one row. All random numbers of a row come from (seed, epoch, index of the example): the same
three give the same masks in any batch, on any machine and after any restart, and another epoch gives other masks (Liu
et al. 2019).

Shapes: B rows, T tokens, P predictions.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import tensorflow as tf

from keras_bert.config import MaskingConfig, choose
from keras_bert.errors import ConfigError
from keras_bert.pretrain.columns import missing

Batch = dict[str, tf.Tensor]
NEVER = ("[CLS]", "[SEP]", "[PAD]")
"""Tokens that are never chosen."""

SPAN_STOP, LONGEST_SPAN = 0.2, 10
"""SpanBERT's lengths, in words: geometric up to 10, mean 3.8 (Joshi et al. 2020)."""


# === Random numbers ===


class Draws:
    """Random numbers `[B, T]` for rows known by `(seed, epoch, index)`: SplitMix64 (Steele et al. 2014).

    Each number is a function of its row, its stream and its column; nothing is kept between calls.

    Args:
        epoch: int, a scalar or `[B]`.
        index: int `[B]`, the number of each example in the corpus.
        length: T.
    """

    STREAMS: ClassVar[dict[str, int]] = {"order": 0, "replacement": 1, "token": 2, "span": 3}
    """A number never changes: masks follow from it. A new stream takes the next one."""

    def __init__(self, seed: int, epoch: Any, index: Any, length: Any) -> None:
        key = _mix(tf.constant(seed % 2**64, tf.uint64))
        for part in (epoch, index):
            key = _mix(key + tf.cast(part, tf.uint64))
        self.key = key[:, tf.newaxis]
        self.columns = tf.cast(tf.range(1, length + 1), tf.uint64)[tf.newaxis, :]

    def bits(self, stream: str) -> tf.Tensor:
        """uint64, all bits random."""
        start = tf.constant(self.STREAMS[stream] << 32, tf.uint64)
        return _mix(self.key + (start + self.columns) * tf.constant(0x9E3779B97F4A7C15, tf.uint64))

    def uniform(self, stream: str) -> tf.Tensor:
        """float32 from 0 to below 1, in steps of 2^-24."""
        return tf.cast(_shift(self.bits(stream), 40), tf.float32) * 2.0**-24

    def integers(self, stream: str, below: int) -> tf.Tensor:
        """int32 from 0 to below `below`."""
        return tf.cast(_shift(_shift(self.bits(stream), 32) * tf.constant(below, tf.uint64), 32), tf.int32)


def _shift(x: tf.Tensor, by: int) -> tf.Tensor:
    return tf.bitwise.right_shift(x, tf.constant(by, tf.uint64))


def _mix(x: tf.Tensor) -> tf.Tensor:
    x = tf.bitwise.bitwise_xor(x, _shift(x, 30)) * tf.constant(0xBF58476D1CE4E5B9, tf.uint64)
    x = tf.bitwise.bitwise_xor(x, _shift(x, 27)) * tf.constant(0x94D049BB133111EB, tf.uint64)
    return tf.bitwise.bitwise_xor(x, _shift(x, 31))


# === Rows that are masked ===


class MaskedRows(NamedTuple):
    """The rows of a batch, as units and replacements see them.

    Attributes:
        token_ids: int32 `[B, T]`, nothing hidden yet.
        starts: bool `[B, T]`, where words begin: by the column `words` if the corpus has it, else at each piece without
            `##`.
        fixed: bool `[B, T]`, special tokens and padding; they are never chosen.
        budget: int32 `[B]`, how many tokens are to be chosen.
        columns: all columns of the batch by their names; `column` reads one of them.
        config: settings of the masks.
        draws: random numbers of these rows.
        mask_id: the id of the mask token.
        vocab_size: ids are below it.
    """

    token_ids: tf.Tensor
    starts: tf.Tensor
    fixed: tf.Tensor
    budget: tf.Tensor
    columns: Batch
    config: MaskingConfig
    draws: Draws
    mask_id: int
    vocab_size: int

    def column(self, name: str) -> tf.Tensor:
        """A further column of the corpus, such as `cased`.

        Raises:
            ConfigError: the corpus does not hold it.
        """
        missing([name], self.columns, "the mask")
        return self.columns[name]


# === Units: what is chosen together; rows -> Units ===


class Units(NamedTuple):
    """The unit that each token belongs to, as its number in the row: int32 `[B, T]`.

    Attributes:
        whole: chosen wholly or not at all.
        together: chosen one after the other, as long as there is room.
        alike: replaced in the same way.
        chosen: bool `[B, T]`, if the unit chooses the tokens itself; None lets `choose_tokens` draw whole units. What
            is fixed or beyond `max_predictions_per_seq` is taken out.
    """

    whole: tf.Tensor
    together: tf.Tensor
    alike: tf.Tensor
    chosen: tf.Tensor | None = None


Unit = Callable[[MaskedRows], Units]


def tokens(rows: MaskedRows) -> Units:
    """Each token by itself (Devlin et al. 2019)."""
    each = number(tf.ones_like(rows.starts))
    return Units(each, each, each)


def whole_words(rows: MaskedRows) -> Units:
    """All pieces of a word or none; each piece is replaced by itself (google-research/bert, May 2019)."""
    words = number(rows.starts)
    return Units(words, words, number(tf.ones_like(rows.starts)))


def spans(rows: MaskedRows) -> Units:
    """Runs of whole words, replaced alike; the last one is cut where there is no more room (SpanBERT).

    The row is divided into runs of random length, and runs are chosen. Special tokens end a run.
    """
    words, fixed = number(rows.starts), rows.fixed
    stay = 1.0 - SPAN_STOP
    below = 1.0 - rows.draws.uniform("span") * (1.0 - stay**LONGEST_SPAN)
    lengths = tf.cast(tf.math.log(below) / tf.math.log(stay), tf.int32) + 1
    runs = tf.searchsorted(tf.cumsum(lengths, axis=1), words, side="right")
    together = number(begins(runs) | fixed | tf.concat([tf.zeros_like(fixed[:, :1]), fixed[:, :-1]], 1))
    return Units(words, together, together)


def number(starts: tf.Tensor) -> tf.Tensor:
    """0, 1, 2, ... rising where a unit starts."""
    return tf.maximum(tf.cumsum(tf.cast(starts, tf.int32), axis=1) - 1, 0)


def begins(runs: tf.Tensor) -> tf.Tensor:
    """bool `[B, T]`: whether a token is the first of its row, or in another run than the token before it."""
    return tf.concat([tf.ones_like(runs[:, :1], tf.bool), runs[:, 1:] != runs[:, :-1]], 1)


UNITS: dict[str, Unit] = {"token": tokens, "whole_word": whole_words, "span": spans}


# === Replacements: what is put in the place of chosen tokens; rows -> ids `[B, T]` ===

Replacement = Callable[[MaskedRows], tf.Tensor]


def mask(rows: MaskedRows) -> tf.Tensor:
    """The mask token."""
    return tf.fill(tf.shape(rows.token_ids), rows.mask_id)


def random(rows: MaskedRows) -> tf.Tensor:
    """Any token of the vocabulary, special and unused ones included, as the original draws them."""
    return rows.draws.integers("token", rows.vocab_size)


def keep(rows: MaskedRows) -> tf.Tensor:
    """The token itself."""
    return rows.token_ids


REPLACEMENTS: dict[str, Replacement] = {"mask": mask, "random": random, "keep": keep}
"""The shares are `MaskingConfig.shares`: three fields for these, `replacements` for others."""


# === Choosing ===


def choose_tokens(candidates: tf.Tensor, units: Units, order: tf.Tensor, budget: tf.Tensor, most: int) -> tf.Tensor:
    """Take units in random order, skip those for which there is no more room: bool `[B, T]`.

    Args:
        candidates: bool `[B, T]`.
        order: float `[B, T]`, a random key for the unit of each number in a row; the smallest keys are taken first.
        budget: int32 `[B]`, tokens to choose; a row whose units are all larger gets its smallest.
        most: bound on the tokens of a row; 0 is none.
    """
    length = tf.shape(candidates)[1]
    size = tf.gather(_sum_by(units.whole, tf.cast(candidates, tf.int32)), units.whole, batch_dims=1)
    size = tf.where(begins(units.whole), size, 0)
    key = tf.where(size > 0, tf.gather(order, units.together, batch_dims=1), math.inf)
    ranked = tf.argsort(key, axis=1, stable=True)
    sizes = tf.gather(size, ranked, batch_dims=1)
    smallest = tf.reduce_min(tf.where(sizes > 0, sizes, length), axis=1)
    budget = tf.maximum(budget, tf.minimum(smallest, most) if most else smallest)
    numbers = tf.gather(units.whole, ranked, batch_dims=1)
    taken = _sum_by(numbers, tf.cast(_fill(sizes, budget), tf.int32)) > 0
    return tf.gather(taken, units.whole, batch_dims=1) & candidates


def _fill(sizes: tf.Tensor, room: tf.Tensor) -> tf.Tensor:
    """Which of `sizes` `[B, T]` are taken, first come first served, within `room` `[B]`; 0 never is.

    Equal to looking at one after the other. Each round takes all up to the first for which there is no room, and
    leaves out those too large for what is left; a few rounds do.
    """

    def round_(taken: tf.Tensor, waiting: tf.Tensor, room: tf.Tensor) -> tuple[tf.Tensor, ...]:
        total = tf.cumsum(tf.where(waiting, sizes, 0), axis=1)
        new = waiting & (total <= room[:, tf.newaxis])
        room = room - tf.reduce_sum(tf.where(new, sizes, 0), axis=1)
        return taken | new, waiting & ~new & (sizes <= room[:, tf.newaxis]), room

    waiting = (sizes > 0) & (sizes <= room[:, tf.newaxis])
    state = (tf.zeros_like(waiting), waiting, room)
    return tf.while_loop(lambda taken, waiting, room: tf.reduce_any(waiting), round_, state)[0]


def _sum_by(numbers: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """The sum of `values` `[B, T]` over each unit, at the unit's number: `[B, T]`."""
    shape = tf.shape(numbers)
    rows = tf.range(shape[0])[:, tf.newaxis] * shape[1]
    return tf.reshape(tf.math.unsorted_segment_sum(values, rows + numbers, shape[0] * shape[1]), shape)


class Masking:
    """Draws masks for batches of rows.

    Args:
        config: how much, in what units, and what is put there.
        vocabulary: the word pieces in the order of their ids.
        seed: of the run.

    Raises:
        ConfigError: the vocabulary lacks the mask token, or a unit or replacement is unknown.
    """

    def __init__(self, config: MaskingConfig, vocabulary: Sequence[str], seed: int) -> None:
        ids = {piece: i for i, piece in enumerate(vocabulary)}
        if config.mask_token not in ids:
            raise ConfigError(f"the vocabulary has no {config.mask_token}; name another --mask_token or vocabulary")
        self.config, self.seed, self.vocab_size = config, seed, len(vocabulary)
        self.replacements = [
            (choose(REPLACEMENTS, name, "replacement"), share) for name, share in config.shares.items()
        ]
        self.mask_id = ids[config.mask_token]
        self.never = [ids[token] for token in NEVER if token in ids]
        self.continues = [piece.startswith("##") for piece in vocabulary]
        self.unit = choose(UNITS, config.mask_unit, "mask_unit")

    def __call__(self, features: Batch, epoch: Any, index: Any) -> Batch:
        """Features -> the same with tokens hidden, and what is to be predicted.

        Args:
            features: `token_ids` int32 and `padding_mask` bool `[B, T]`, and any others, which stay.
            epoch: int, a scalar or `[B]`.
            index: int `[B]`, the number of each row's example.

        Returns:
            `features` and `masked_positions`, `masked_ids` int32 and `masked_weights` float32 `[B, P]`, in the order
            of positions; unused places are 0. P is `max_predictions_per_seq`, or what the longest row needs where
            that is 0. The number of predictions is the original's: `masked_lm_prob` times all tokens of the row,
            special ones included, rounded, at least 1.
        """
        config, most = self.config, self.config.max_predictions_per_seq
        token_ids, padding_mask = features["token_ids"], features["padding_mask"]
        draws = Draws(self.seed, epoch, index, tf.shape(token_ids)[1])
        fixed = ~padding_mask | tf.reduce_any(token_ids[:, :, tf.newaxis] == tf.constant(self.never), axis=2)
        count = tf.reduce_sum(tf.cast(padding_mask, tf.float64), axis=1)
        budget = tf.maximum(tf.cast(tf.round(count * config.masked_lm_prob), tf.int32), 1)
        budget = tf.minimum(budget, most) if most else budget
        starts = self._starts(features, fixed)
        rows = MaskedRows(token_ids, starts, fixed, budget, features, config, draws, self.mask_id, self.vocab_size)
        units = self.unit(rows)
        if units.chosen is None:
            chosen = choose_tokens(~fixed, units, draws.uniform("order"), budget, most)
        else:
            chosen = units.chosen & ~fixed
            chosen &= tf.cumsum(tf.cast(chosen, tf.int32), axis=1) <= (most or tf.shape(chosen)[1])
        return features | {"token_ids": self._replace(rows, units, chosen)} | _targets(token_ids, chosen, most)

    def _starts(self, features: Batch, fixed: tf.Tensor) -> tf.Tensor:
        """Where words begin: by the corpus' own `words`, or at each piece without `##`, and beside special tokens."""
        if "words" in features:
            return begins(features["words"])
        goes_on = tf.gather(tf.constant(self.continues), features["token_ids"]) & ~fixed
        after = tf.concat([tf.ones_like(fixed[:, :1]), fixed[:, :-1]], axis=1)
        return ~goes_on | after

    def _replace(self, rows: MaskedRows, units: Units, chosen: tf.Tensor) -> tf.Tensor:
        draw = tf.gather(rows.draws.uniform("replacement"), units.alike, batch_dims=1)
        result, low = rows.token_ids, 0.0
        for replace, share in self.replacements:
            high = low + share
            here = chosen & (draw >= low) & (draw < high)
            result = tf.where(here, replace(rows), result)
            low = high
        return result


def _targets(token_ids: tf.Tensor, chosen: tf.Tensor, most: int) -> Batch:
    """The chosen positions of each row, moved to the left: `[B, P]`."""
    count = tf.reduce_sum(tf.cast(chosen, tf.int32), axis=1)
    width = most or tf.maximum(tf.reduce_max(tf.concat([count, [1]], 0)), 1)
    where = tf.where(chosen)
    slots = tf.boolean_mask(tf.cumsum(tf.cast(chosen, tf.int64), axis=1) - 1, chosen)
    shape = tf.stack([tf.shape(chosen, tf.int64)[0], tf.cast(width, tf.int64)])
    positions = tf.scatter_nd(tf.stack([where[:, 0], slots], axis=1), tf.cast(where[:, 1], tf.int32), shape)
    positions = tf.ensure_shape(positions, [None, most or None])
    weights = tf.sequence_mask(count, width, tf.float32)
    ids = tf.gather(token_ids, positions, batch_dims=1) * tf.cast(weights, tf.int32)
    return {"masked_positions": positions, "masked_ids": ids, "masked_weights": weights}
