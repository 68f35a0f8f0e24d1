"""What a row of the corpus holds: one or two segments of a document's sentences, and what the model must tell of them.

A variant is a function `pair(document, start, stop, target, other, rng) -> Pair`. It is shown the sentences
`document[start:stop]`, which together reach `target` tokens or the end of the document, and says how many of them it
used up; `other()` draws another document. `rows` drives it over a document. It and `original_next_sentence` draw from
`rng` in the order of google-research/bert's create_pretraining_data, so that the same seed gives the same rows.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from random import Random
from typing import NamedTuple

from keras_bert.pretrain.columns import Token

Tokens = list[Token]
Document = Sequence[Tokens]
"""The tokens of each sentence; none is empty. No function here looks into a token."""


class Pair(NamedTuple):
    """Two segments (one, where `b` is empty), the label, and the number of sentences that are used up."""

    a: Tokens
    b: Tokens
    label: int
    used: int


class Row(NamedTuple):
    """One or two segments of tokens, without special tokens, and the label."""

    segments: list[Tokens]
    label: int


PairFunction = Callable[[Document, int, int, int, Callable[[], Document], Random], Pair]


def original_next_sentence(
    document: Document, start: int, stop: int, target: int, other: Callable[[], Document], rng: Random
) -> Pair:
    """`next_sentence` as google-research/bert draws it: a lone sentence always gets a random b, so that more than half
    are random, the more the shorter the documents are. Sentences that a random b took the place of are used again."""
    middle = _middle(start, stop, rng)
    a = _join(document, start, middle)
    if middle == stop or rng.random() < 0.5:
        return Pair(a, _passage(other(), target - len(a), rng), 1, middle - start)
    return Pair(a, _join(document, middle, stop), 0, stop - start)


def next_sentence(
    document: Document, start: int, stop: int, target: int, other: Callable[[], Document], rng: Random
) -> Pair:
    """Does b follow a (0), or is it from another document (1)? Half of each (Devlin et al. 2019,
    https://arxiv.org/abs/1810.04805): half of the lone sentences are paired with a neighbour, where they have one."""
    if stop - start == 1 and len(document) > 1 and rng.random() < 0.5:
        first = max(start - 1, 0)
        return Pair(document[first], document[first + 1], 0, 1)
    return original_next_sentence(document, start, stop, target, other, rng)


def sentence_order(
    document: Document, start: int, stop: int, target: int, other: Callable[[], Document], rng: Random
) -> Pair:
    """Are two neighbours in order (0) or swapped (1)? Half of each (ALBERT, Lan et al. 2020,
    https://arxiv.org/abs/1909.11942). A single sentence is cut in two at any token."""
    if stop - start > 1:
        middle = _middle(start, stop, rng)
        a, b = _join(document, start, middle), _join(document, middle, stop)
    else:
        sentence = document[start]
        cut = rng.randint(1, max(1, len(sentence) - 1))
        a, b = sentence[:cut], sentence[cut:]
    swapped = rng.random() < 0.5
    return Pair(b, a, 1, stop - start) if swapped else Pair(a, b, 0, stop - start)


def three_way(
    document: Document, start: int, stop: int, target: int, other: Callable[[], Document], rng: Random
) -> Pair:
    """Is b what follows a (0), what comes before it (1), or from another document (2)? A third of each (StructBERT,
    Wang et al. 2019, https://arxiv.org/abs/1908.04577)."""
    middle = _middle(start, stop, rng)
    label = 2 if middle == stop else rng.randrange(3)
    a = _join(document, start, middle)
    if label == 2:
        return Pair(a, _passage(other(), target - len(a), rng), 2, middle - start)
    b = _join(document, middle, stop)
    return Pair(b, a, 1, stop - start) if label else Pair(a, b, 0, stop - start)


def distance(
    document: Document, start: int, stop: int, target: int, other: Callable[[], Document], rng: Random
) -> Pair:
    """Is b next to a (0), elsewhere in its document (1), or in another one (2)? A third of each where the document is
    long enough (ERNIE 2.0, Sun et al. 2020, https://arxiv.org/abs/1907.12412)."""
    middle = _middle(start, stop, rng)
    a = _join(document, start, middle)
    far = [*range(start - 1), *range(middle + 1, len(document))]
    possible = [label for label, can in enumerate((middle < stop, bool(far), True)) if can]
    label = rng.choice(possible)
    if label == 0:
        return Pair(a, _join(document, middle, stop), 0, stop - start)
    if label == 2:
        return Pair(a, _passage(other(), target - len(a), rng), 2, middle - start)
    first = rng.choice(far)
    end = start - 1 if first < start else len(document)
    return Pair(a, _fill(document, first, end, target - len(a)), 1, middle - start)


def none(document: Document, start: int, stop: int, target: int, other: Callable[[], Document], rng: Random) -> Pair:
    """One segment of full sentences that follow each other, and no label (RoBERTa's DOC-SENTENCES, Liu et al. 2019,
    https://arxiv.org/abs/1907.11692)."""
    if stop - start > 1 and sum(map(len, document[start:stop])) > target:
        stop -= 1
    return Pair(_join(document, start, stop), [], -1, stop - start)


class Pairs(NamedTuple):
    """A way to make rows: the function that draws them, and C, the number of its labels; 0 means one segment."""

    draw: PairFunction
    classes: int

    @property
    def segments(self) -> int:
        """Segments of a row."""
        return 2 if self.classes else 1

    def room(self, max_seq_length: int) -> int:
        """The tokens of a row that are left beside [CLS] and a [SEP] after each segment."""
        return max_seq_length - 1 - self.segments


PAIRS: dict[str, Pairs] = {
    "next_sentence": Pairs(next_sentence, 2),
    "sentence_order": Pairs(sentence_order, 2),
    "three_way": Pairs(three_way, 3),
    "distance": Pairs(distance, 3),
    "none": Pairs(none, 0),
}


def rows(
    document: Document,
    pair: PairFunction,
    other: Callable[[], Document],
    room: int,
    short_seq_prob: float,
    rng: Random,
) -> Iterator[Row]:
    """The rows of a document, drawn one by one: what the caller draws from `rng` for a row comes before the next row.

    Args:
        document: at least one sentence.
        pair: the `draw` of one of `PAIRS`.
        other: draws another document.
        room: the most tokens of a row; longer pairs lose tokens of the longer segment at random ends.
        short_seq_prob: chance of aiming at rows of a random length for all of the document, at least 2 tokens.
        rng: decides everything.
    """
    target = rng.randint(2, room) if rng.random() < short_seq_prob else room
    start = 0
    while start < len(document):
        stop, length = start, 0
        while stop < len(document) and length < target:
            length += len(document[stop])
            stop += 1
        a, b, label, used = pair(document, start, stop, target, other, rng)
        a, b = _truncated(a, b, room, rng)
        if (a and b) or label < 0:  # a sentence of one token cannot be cut in two
            yield Row([a, b] if b else [a], label)
        start += used


def _truncated(a: Tokens, b: Tokens, room: int, rng: Random) -> tuple[Tokens, Tokens]:
    """Take tokens off the longer one, b where they are equal, from its front or its back, until both fit."""
    ends = [[0, len(a)], [0, len(b)]]
    size_a, size_b = len(a), len(b)
    while size_a + size_b > room:
        longer = 0 if size_a > size_b else 1
        size_a, size_b = size_a - (not longer), size_b - longer
        if rng.random() < 0.5:
            ends[longer][0] += 1
        else:
            ends[longer][1] -= 1
    return a[slice(*ends[0])], b[slice(*ends[1])]


def _middle(start: int, stop: int, rng: Random) -> int:
    """Where the second segment begins; `stop` where there is one sentence only."""
    return rng.randint(start + 1, stop - 1) if stop - start > 1 else stop


def _passage(document: Document, length: int, rng: Random) -> Tokens:
    """Sentences from a random one on, until they reach `length` tokens."""
    return _fill(document, rng.randint(0, len(document) - 1), len(document), length)


def _fill(document: Document, start: int, end: int, length: int) -> Tokens:
    """The sentence `start`, and those before `end` that follow it until there are `length` tokens."""
    found = list(document[start])
    while len(found) < length and (start := start + 1) < end:
        found += document[start]
    return found


def _join(document: Document, start: int, stop: int) -> Tokens:
    return list(chain.from_iterable(document[start:stop]))
