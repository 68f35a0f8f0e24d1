"""Tags of words and the entities they say: what a tag means, what it is to be learnt, how entities are decoded.

The labels of a task are the types of its entities. There are 1 + 2n tags for n types: 0 is O, 1 + 2i is B- and 2 + 2i
is I- of type i. A word is what the tokenizer begins anew; its first piece has its tag, further pieces have none.
An entity begins at B-, and at I- that does not go on with its type, so IOB1, IOB2 and BIOES say the same in the end.

Shapes: B texts, W windows, T tokens, U words, K entities of a text that were labelled, E entities that are answered.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from keras import ops

from keras_bert.tags import read_tags, tags_of

Tensor = Any
LOW = -1e30


# === What is to be learnt ===


def targets(spans: Tensor, starts: Tensor, ends: Tensor, begins: Tensor) -> Tensor:
    """The tag + 1 of each first piece of a word, 0 elsewhere, int32 `[W, T]`.

    Args:
        spans: entities int32 `[W, K, 3]`: start, end, type; filled up with -1. Of those that share a word one counts.
        starts, ends, begins: where the pieces are, see `text.Text.located`.
    """
    first, last, kind = (spans[:, None, :, i] for i in range(3))
    inside = ops.logical_and(starts[:, :, None] < last, ends[:, :, None] > first)
    inside = ops.cast(ops.logical_and(inside, begins[:, :, None]), "int32")
    opening = inside * ops.cast(starts[:, :, None] <= first, "int32")
    tag = ops.max(inside * (2 * kind + 2) - opening, axis=2)
    return ops.where(begins, tag + 1, 0)


class Scheme:
    """The tags of a published head, whatever its scheme, in terms of O, B- and I-.

    Args:
        tags, labels, join: of `TagConfig`.

    Attributes:
        targets: a target in terms of the labels -> one in terms of the tags, int32 `[2 + 2n]`.
        types: the number + 1 of a key of the tags, 0 for none -> the number of its label, -1 for none, int32 `[1 + K]`.
    """

    def __init__(self, tags: Sequence[str], labels: Sequence[str], join: bool) -> None:
        reading = read_tags(tags, join)
        self.types = np.array([-1, *(labels.index(kind) for kind in reading.types)], np.int32)
        width = 1 + 2 * len(reading.keys)
        groups = [[i for i, number in enumerate(reading.numbers) if number == wanted] for wanted in range(width)]
        most = max(map(len, groups))
        self.groups = np.array([(group + [len(tags)] * most)[:most] for group in groups], np.int32)
        self.targets = np.array([0, *(self._target(tags, one) for one in tags_of(labels))], np.int32)

    @staticmethod
    def _target(tags: Sequence[str], wanted: str) -> int:
        """1 + the number of the tag that says the same, or else goes on with the type; 0 where there is none."""
        kind = wanted.partition("-")[2]
        same = [i for i, tag in enumerate(tags) if tag in (wanted, kind)]
        near = [tags.index(f"{prefix}-{kind}") for prefix in "IMB" if kind and f"{prefix}-{kind}" in tags]
        return 1 + next(iter([*same, *near]), -1)

    def read(self, values: Tensor, none: float) -> Tensor:
        """Values of tags `[B, U, tags]` -> the largest of those that say the same, `none` where there are none."""
        padded = ops.pad(values, ((0, 0), (0, 0), (0, 1)), constant_values=none)
        return ops.max(ops.take(padded, self.groups, axis=2), axis=3)


# === Logits of pieces -> tags of words ===


def by_word(values: Tensor, chosen: Tensor, features: dict[str, Tensor], how: Callable[..., Tensor]) -> Tensor:
    """Values of pieces `[W, T, ...]` as values of words `[B, U, ...]`, joined by `how`, a segment function."""
    words, rows = features["words"], features["rows"]
    count = ops.shape(features["num_tokens"])[0]
    width = ops.max(words, initial=0) + 1
    place = ops.where(chosen, rows[:, None] * width + words, count * width)
    shape = ops.shape(values)[2:]
    flat = how(ops.reshape(values, (-1, *shape)), ops.reshape(place, (-1,)), num_segments=count * width + 1)
    return ops.reshape(flat[:-1], (count, width, *shape))


def argmax(logits: Tensor, words: Tensor) -> Tensor:
    """The best tag of each word on its own, int32 `[B, U]`."""
    return ops.cast(ops.argmax(logits, axis=-1), "int32")


def constrained(logits: Tensor, words: Tensor) -> Tensor:
    """The best row of tags in which I- follows B- or I- of its type only (Viterbi 1967), int32 `[B, U]`."""
    width = logits.shape[-1]
    tags = ops.arange(width, dtype="int32")[None, :]
    scores = ops.transpose(ops.where(words[:, :, None], logits, 0.0), (1, 0, 2))

    def step(before: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
        """Totals `[B, width]` of the best rows that end in each tag, after one word more."""
        begin = ops.repeat(ops.max(before, axis=1, keepdims=True), width // 2, axis=1)
        inside = ops.maximum(before[:, 1::2], before[:, 2::2])
        both = ops.reshape(ops.stack([begin, inside], axis=2), (-1, width - 1))
        after = ops.concatenate([begin[:, :1], both], axis=1) + score
        return after, after

    def back(after: Tensor, totals: Tensor) -> tuple[Tensor, Tensor]:
        """The tag of a word, given that of the next, int32 `[B]`."""
        after = after[:, None]
        inside = ops.logical_and(after > 0, after % 2 == 0)
        may = ops.logical_or(ops.logical_not(inside), ops.logical_or(tags == after, tags == after - 1))
        tag = ops.cast(ops.argmax(ops.where(may, totals, 2 * LOW), axis=1), "int32")
        return tag, tag

    outside = ops.zeros_like(logits[:, 0]) + ops.where(tags == 0, 0.0, LOW)
    last, totals = ops.scan(step, outside, scores)
    _, path = ops.scan(back, ops.cast(0 * last[:, 0], "int32"), totals, reverse=True)
    return ops.transpose(path)


DECODES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"argmax": argmax, "constrained": constrained}


# === Tags of words -> entities ===


def entities(tags: Tensor, probabilities: Tensor, starts: Tensor, ends: Tensor, size: int) -> dict[str, Tensor]:
    """The entities that tags say, in the order of the text.

    Args:
        tags: int32 `[B, U]`, 0 where there is no word.
        probabilities: float32 `[B, U]`, of each tag.
        starts, ends: where the words are, int32 `[B, U]`.
        size: entities of a row that are answered, E.

    Returns:
        `type_ids`, `start_bytes`, `end_bytes` int32 and `scores` float32 (the mean probability of its tags) `[B, E]`,
        filled up with -1 and 0; `num_entities` int32 `[B]`, which may be more than E.
    """
    kinds = (tags + 1) // 2  # 0 is none
    before = ops.pad(kinds, ((0, 0), (1, 0)))[:, :-1]
    inside = kinds > 0
    opens = ops.logical_and(inside, ops.logical_or(tags % 2 == 1, kinds != before))
    goes_on = ops.logical_and(inside, ops.logical_not(opens))
    closes = ops.logical_and(inside, ops.logical_not(ops.pad(goes_on, ((0, 0), (0, 1)))[:, 1:]))
    width = ops.shape(tags)[1]
    place = ops.arange(width, dtype="int32")[None, :]

    def places(mask: Tensor) -> Tensor:
        """Where `mask` is True, in order, `[B, E]`; `width` behind the last."""
        ordered = ops.pad(ops.where(mask, place, width), ((0, 0), (0, size)), constant_values=2**30)
        return ops.minimum(ops.sort(ordered, axis=1)[:, :size], width)

    first, last = places(opens), places(closes)
    real = first < width

    def at(values: Tensor, where: Tensor, none: Any) -> Tensor:
        picked = ops.take_along_axis(ops.pad(values, ((0, 0), (0, 1))), where, axis=1)
        return ops.where(real, picked, ops.cast(none, picked.dtype))

    total = ops.cumsum(ops.where(inside, probabilities, 0.0), axis=1)
    score = at(total, last, 0) - at(total - probabilities, first, 0)
    return {
        "type_ids": at(kinds, first, 0) - 1,
        "start_bytes": at(starts, first, -1),
        "end_bytes": at(ends, last, -1),
        "scores": ops.where(real, score / ops.cast(last - first + 1, "float32"), 0.0),
        "num_entities": ops.sum(ops.cast(opens, "int32"), axis=1),
    }
