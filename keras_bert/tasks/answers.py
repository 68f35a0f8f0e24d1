"""One row of what an exported model answers, as plain Python: `ANSWERS[task](row)`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
"""Output name -> the row's NumPy value."""


def classify(row: Row) -> dict[str, Any]:
    """`label`, `score`, and `scores` from the best to the worst."""
    names = [name.decode("utf-8") for name in row["labels"]]
    scores = {name: float(score) for name, score in zip(names, row["scores"], strict=True)}
    return {"label": row["label"].decode("utf-8"), "score": float(row["score"]), "scores": scores}


def multilabel(row: Row) -> dict[str, Any]:
    """`labels`, those that are active, and `scores`."""
    names = [name.decode("utf-8") for name in row["labels"]]
    return {
        "labels": [name for name, on in zip(names, row["active"], strict=True) if on],
        "scores": {name: float(score) for name, score in zip(names, row["scores"], strict=True)},
    }


def regress(row: Row) -> dict[str, Any]:
    """`score`."""
    return {"score": float(row["score"])}


def choice(row: Row) -> dict[str, Any]:
    """`choice`, its number from 0, `answer`, its text, `score`, and the `scores` of all, in their order."""
    scores = [float(score) for score in row["scores"]]
    return _plain(("choice", "answer", "score"), (row["choice"], row["answer"], row["score"])) | {"scores": scores}


def similarity(row: Row) -> dict[str, Any]:
    """`similarity`, the cosine."""
    return {"similarity": float(row["similarity"])}


def embed(row: Row) -> dict[str, Any]:
    """`embedding`, a list of numbers."""
    return {"embedding": row["embedding"].tolist()}


def tag(row: Row) -> dict[str, Any]:
    """`entities`: what, where, and how sure."""
    names = ("type", "text", "score", "start", "end", "start_byte", "end_byte")
    columns = [row[name][: row["num_entities"]] for name in (f"{name}s" for name in names)]
    return {"entities": [_plain(names, values) for values in zip(*columns, strict=True)]}


def span(row: Row) -> dict[str, Any]:
    """The answer, where it is, and the best spans."""
    names = ("answer", "score", "start", "end", "start_byte", "end_byte")
    columns = [row[f"nbest_{name}s"] for name in names]
    spans = (_plain(names, values) for values in zip(*columns, strict=True))
    best = [found for found in spans if found["start"] >= 0]
    one = (*names, "null_score_diff")
    return _plain(one, [row[name] for name in one]) | {"nbest": best}


def fill_mask(row: Row) -> dict[str, Any]:
    """`filled`, the text with the best words in it; and of each mask where it is, and `tokens` with their `scores`."""
    there = row["starts"] >= 0
    columns = [row[name][there].tolist() for name in ("starts", "ends", "scores")]
    tokens = [[token.decode("utf-8") for token in best] for best in row["tokens"][there]]
    masks = [
        {"tokens": best, "scores": scores, "start": start, "end": end}
        for best, start, end, scores in zip(tokens, *columns, strict=True)
    ]
    return {"filled": row["filled"].decode("utf-8"), "masks": masks, "num_masks": int(row["num_masks"])}


def generate(row: Row) -> dict[str, Any]:
    """`generated`, its `score`, whether it `ended` by itself, and `nbest` with their scores."""
    both = zip(row["nbest_generated"], row["nbest_scores"], strict=True)
    best = [_plain(("generated", "score"), found) for found in both]
    return _plain(("generated", "score", "ended"), [row[n] for n in ("generated", "score", "ended")]) | {"nbest": best}


def _plain(names: Any, values: Any) -> dict[str, Any]:
    pairs = zip(names, values, strict=True)
    return {name: value.decode("utf-8") if isinstance(value, bytes) else value.item() for name, value in pairs}


def squad_files(ids: Sequence[str], answers: Sequence[Mapping[str, Any]], negative: bool) -> dict[str, Any]:
    """The files that google-research/bert and SQuAD's script know, by name: id -> answer, its like, its odds.

    Args:
        answers: of `span`, one for each id.
        negative: may a question have no answer?
    """
    best = {}
    for name, found in zip(ids, answers, strict=True):
        spans = [{"text": s["answer"], "probability": s["score"]} for s in found["nbest"]]
        rest = max(0.0, 1.0 - sum(s["probability"] for s in spans))
        if negative or not spans:
            spans.append({"text": "", "probability": rest})
        best[name] = sorted(spans, key=lambda s: -s["probability"])
    return {
        "predictions.json": {name: found["answer"] for name, found in zip(ids, answers, strict=True)},
        "nbest_predictions.json": best,
        "null_odds.json": {name: found["null_score_diff"] for name, found in zip(ids, answers, strict=True)},
    }


ANSWERS: dict[str, Callable[[Row], dict[str, Any]]] = {
    "classify": classify,
    "multilabel": multilabel,
    "regress": regress,
    "choice": choice,
    "similarity": similarity,
    "embed": embed,
    "tag": tag,
    "span": span,
    "fill_mask": fill_mask,
    "generate": generate,
}
