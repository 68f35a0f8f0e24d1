"""Spans of a passage that answer a question: what is to be learnt, and how the best is found over all windows.

A span is scored by the logit of its first token plus that of its last (Devlin et al. 2019); the score of having no
answer is that of [CLS] as both. Where windows overlap, a span begins in the window that shows most around its first
token, as in google-research/bert, so each span is there once.

Shapes: B questions, W windows, T tokens, M = the most windows of a question, n = spans that are answered.
"""

from collections.abc import Callable
from typing import Any

from keras import ops

Tensor = Any
LOW, HIGH = -1e30, 1e4
ALLOWED, START, END = 1, 2, 4
"""Bits of a target: the position is a token of the passage or [CLS], the answer starts there, it ends there."""


# === What is to be learnt ===


def targets(gold: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
    """Bits of `ALLOWED`, `START` and `END` for each position, int32 `[W, T]`.

    A window that does not hold the whole answer has none: it starts and ends at [CLS].

    Args:
        gold: start and end of the answer in bytes of the passage, int32 `[W, 2]`; -1 is no answer, and -2 an answer
            whose place is not known: such a row has no start and no end, and counts for nothing.
        starts, ends: where the tokens are, -1 where they are none of the passage, int32 `[W, T]`.
    """
    first, last = gold[:, :1], gold[:, 1:]
    real = starts >= 0
    whole = ops.logical_and(
        ops.any(ops.logical_and(real, starts <= first), axis=1, keepdims=True),
        ops.any(ops.logical_and(real, ends >= last), axis=1, keepdims=True),
    )
    known = ops.logical_and(first >= 0, whole)
    inside = ops.logical_and(real, ops.logical_and(ends > first, starts < last))
    inside = ops.cast(ops.logical_and(inside, known), "int32")
    cls = ops.cast(ops.arange(ops.shape(starts)[1])[None, :] == 0, "int32")
    count = ops.cumsum(inside, axis=1) * inside
    is_start = ops.cast(count == 1, "int32")
    is_end = inside * ops.cast(count == ops.sum(inside, axis=1, keepdims=True), "int32")
    none = cls * ops.cast(ops.logical_and(ops.sum(inside, axis=1, keepdims=True) == 0, first > -2), "int32")
    allowed = ops.maximum(ops.cast(real, "int32"), cls)
    return allowed * ALLOWED + (is_start + none) * START + (is_end + none) * END


def bit(marks: Tensor, which: int) -> Tensor:
    """Is a bit set? bool, of the shape of `marks`."""
    return (marks // which) % 2 == 1


# === Logits -> spans: (logits, features, longest, n) -> (start_bytes, end_bytes, scores, null), of B rows ===


def joint(logits: Tensor, features: dict[str, Tensor], longest: int, size: int) -> tuple[Tensor, ...]:
    """The best n of all spans of at most `longest` tokens."""
    starts, ends = features["starts"], features["ends"]
    real = starts >= 0
    width = ops.shape(starts)[1]
    opens = ops.where(ops.logical_and(real, features["best"]), logits[..., 0], LOW)
    closes = ops.pad(ops.where(real, logits[..., 1], LOW), ((0, 0), (0, longest - 1)), constant_values=LOW)
    band = ops.stack([closes[:, d : d + width] for d in range(longest)], axis=2)  # [W, T, longest]
    scores = ops.reshape(opens[:, :, None] + band, (-1, width * longest))
    scores, flat = ops.top_k(ops.pad(scores, ((0, 0), (0, size)), constant_values=LOW), size)
    flat = ops.minimum(ops.cast(flat, "int32"), width * longest - 1)
    first = flat // longest
    last = ops.minimum(first + flat % longest, width - 1)
    places = (ops.take_along_axis(starts, first, axis=1), ops.take_along_axis(ends, last, axis=1))
    scores, best = ops.top_k(of_rows(scores, features, LOW), size)
    found_bytes = (ops.take_along_axis(of_rows(p, features, -1), best, axis=1) for p in places)
    return *found_bytes, scores, null(logits, features)


def independent(logits: Tensor, features: dict[str, Tensor], longest: int, size: int) -> tuple[Tensor, ...]:
    """The best start and the best end, each on its own; an end before the start means that there is no answer.

    The score is the logarithm of both probabilities' product, that of no answer is of what is left to 1.
    """
    seen = ops.logical_and(features["starts"] >= 0, features["best"])
    places: list[Tensor] = []
    score: Tensor = 0.0
    for i, name in enumerate(("starts", "ends")):
        scores = of_rows(ops.where(seen, logits[..., i], LOW), features, LOW)
        best = ops.argmax(scores, axis=1, keepdims=True)
        places.append(ops.take_along_axis(of_rows(features[name], features, -1), best, axis=1))
        score = score + ops.take_along_axis(ops.log_softmax(scores, axis=1), best, axis=1)
    first, last = places
    fill = ((0, 0), (0, size - 1))
    return (
        ops.pad(first, fill, constant_values=-1),
        ops.pad(last, fill, constant_values=-1),
        ops.pad(ops.where(last > first, score, LOW), fill, constant_values=LOW),
        ops.log(ops.maximum(-ops.expm1(score[:, 0]), 1e-30)),
    )


DECODES: dict[str, Callable[..., tuple[Tensor, ...]]] = {"joint": joint, "independent": independent}


def of_rows(values: Tensor, features: dict[str, Tensor], none: Any) -> Tensor:
    """Those of all windows of a question beside each other: `[W, k]` -> `[B, M * k]`, filled up with `none`."""
    counts = features["num_windows"]
    most = ops.max(counts, initial=1)
    number = ops.arange(most, dtype="int32")[None, :]
    valid = number < counts[:, None]
    window = ops.where(valid, (ops.cumsum(counts) - counts)[:, None] + number, 0)
    filled = ops.pad(values, ((0, 1), (0, 0)), constant_values=none)  # window 0, where there is none at all
    width = ops.shape(values)[1]
    gathered = ops.where(valid[:, :, None], ops.take(filled, window, axis=0), ops.cast(none, values.dtype))
    return ops.reshape(gathered, (ops.shape(counts)[0], most * width))


def null(logits: Tensor, features: dict[str, Tensor]) -> Tensor:
    """The score of having no answer, in the window that speaks against it most, `[B]`."""
    return ops.min(of_rows(logits[:, 0, 0:1] + logits[:, 0, 1:2], features, -LOW), axis=1)


def answer(best: tuple[Tensor, ...], negative: bool, threshold: float) -> dict[str, Tensor]:
    """What is answered, given the n best spans of each question.

    Args:
        best: what one of `DECODES` gives.
        negative: may there be no answer though there are spans?
        threshold: there is none where its score is more than this above that of the best span.

    Returns:
        `start_byte`, `end_byte` int32 (-1 is no answer), `score` (the probability among the n spans, and no answer
        where that may be) and `null_score_diff` float32 `[B]`; `nbest_start_bytes`, `nbest_end_bytes` int32 and
        `nbest_scores` float32 `[B, n]`, which are spans only and filled up with -1 and 0.
    """
    first, last, scores, null = best
    real = scores > LOW / 2
    empty = ops.logical_not(real[:, 0])
    diff = ops.where(empty, HIGH, ops.clip(null - scores[:, 0], -HIGH, HIGH))
    none = ops.logical_or(empty, diff > threshold) if negative else empty
    silence = null if negative else ops.where(empty, null, LOW)
    shares = ops.softmax(ops.concatenate([scores, silence[:, None]], axis=1), axis=1)
    first, last = ops.where(real, first, -1), ops.where(real, last, -1)
    return {
        "start_byte": ops.where(none, -1, first[:, 0]),
        "end_byte": ops.where(none, -1, last[:, 0]),
        "score": ops.where(none, shares[:, -1], shares[:, 0]),
        "null_score_diff": diff,
        "nbest_start_bytes": first,
        "nbest_end_bytes": last,
        "nbest_scores": ops.where(real, shares[:, :-1], 0.0),
    }
