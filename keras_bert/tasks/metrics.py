"""Metrics over whole evaluation sets, in NumPy. Definitions are those of scikit-learn, SciPy, seqeval and SQuAD."""

import importlib
import re
import string
from collections import Counter
from collections.abc import Sequence, Set
from typing import Any

import numpy as np

from keras_bert.errors import ConfigError


def confusion(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts int `[num_classes, num_classes]`: row is the label, column the prediction."""
    counts = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts, (labels, predicted), 1)
    return counts


def per_class(counts: np.ndarray) -> dict[str, np.ndarray]:
    """`precision`, `recall`, `f1` float `[n]` and `support` int `[n]` from a confusion matrix; 0/0 is 0."""
    hit = np.diag(counts)
    precision = _ratio(hit, counts.sum(0))
    recall = _ratio(hit, counts.sum(1))
    f1 = _ratio(2 * precision * recall, precision + recall)
    return {"precision": precision, "recall": recall, "f1": f1, "support": counts.sum(1)}


def classification(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> dict[str, float]:
    """`accuracy`, `matthews`, `macro_f1` and `f1`.

    `f1` is that of class 1 for two classes (the last label, the positive class of Kaggle's and GLUE's binary
    tasks), and the macro average over all classes otherwise.
    """
    counts = confusion(labels, predicted, num_classes)
    each = per_class(counts)
    macro = float(each["f1"].mean())
    return {
        "accuracy": float(np.diag(counts).sum() / max(counts.sum(), 1)),
        "f1": float(each["f1"][1]) if num_classes == 2 else macro,
        "macro_f1": macro,
        "matthews": matthews(counts),
    }


def matthews(counts: np.ndarray) -> float:
    """Matthews correlation of a confusion matrix (Gorodkin 2004 for more than two classes); 0/0 is 0."""
    counts = counts.astype(np.float64)
    total, hit = counts.sum(), np.diag(counts).sum()
    true, predicted = counts.sum(1), counts.sum(0)
    below = np.sqrt(total**2 - (predicted**2).sum()) * np.sqrt(total**2 - (true**2).sum())
    return float((hit * total - true @ predicted) / below) if below else 0.0


def multilabel(labels: np.ndarray, active: np.ndarray) -> dict[str, float]:
    """`accuracy` (all labels of a row right), micro `f1` and `macro_f1` of 0/1 arrays `[rows, n]`."""
    true_labels, active = labels.astype(bool), active.astype(bool)
    hit, given, true = (true_labels & active).sum(0), active.sum(0), true_labels.sum(0)
    return {
        "accuracy": float((true_labels == active).all(1).mean()) if len(true_labels) else 0.0,
        "f1": float(_ratio(2 * hit.sum(), given.sum() + true.sum())),
        "macro_f1": float(_ratio(2 * hit, given + true).mean()),
    }


# === Scores and labels: where to cut, and whether they can be believed ===


def f1_threshold(labels: np.ndarray, scores: np.ndarray) -> float:
    """The threshold with the best F1 of what lies above it, half-way between two scores; 0.5 where nothing is true.

    Args:
        labels, scores: 0 or 1, and a score from 0 to 1, of the same shape.
    """
    labels, scores = labels.reshape(-1).astype(np.float64), scores.reshape(-1).astype(np.float64)
    if not labels.any():
        return 0.5
    order = np.argsort(-scores, kind="stable")
    labels, scores = labels[order], scores[order]
    f1 = 2 * np.cumsum(labels) / (np.arange(1, len(labels) + 1) + labels.sum())
    below = np.append(scores[1:], 0.0)
    best = int(np.where(scores > below, f1, -1.0).argmax())  # equal scores are cut off alike
    return float(np.clip((scores[best] + below[best]) / 2, 1e-6, 1 - 1e-6))


def nested_thresholds(labels: np.ndarray, scores: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """The threshold of each row, `[n]`, chosen without the rows of its own part: what tuning is honestly worth.

    Args:
        labels, scores: `[n]` or `[n, labels]`, see `f1_threshold`.
        parts: int `[n]`, such as the number of the fold.
    """
    chosen = np.empty(len(parts), np.float64)
    for part in np.unique(parts):
        others = parts != part
        chosen[~others] = f1_threshold(labels[others], scores[others])
    return chosen


def reliability(sure: np.ndarray, right: np.ndarray, bins: int = 15) -> tuple[dict[str, np.ndarray], float]:
    """How sure a model is against how often it is right, and the expected calibration error (Guo et al. 2017).

    Args:
        sure, right: probabilities, and 0 or 1, `[n]`.

    Returns:
        Of each of the equal bins of (0, 1] that holds any: `sure` and `right`, the means, and `count`; and the mean
        difference of the two, weighted by the counts.
    """
    sure, right = sure.astype(np.float64), right.astype(np.float64)
    where = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(where, minlength=bins)
    filled = count > 0
    table = {
        name: np.bincount(where, values, bins)[filled] / count[filled]
        for name, values in (("sure", sure), ("right", right))
    }
    error = float((np.abs(table["sure"] - table["right"]) * count[filled]).sum() / max(len(sure), 1))
    return table | {"count": count[filled]}, error


def regression(labels: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """`mse`, `pearson` and `spearman`; a correlation with a constant is 0."""
    return {
        "mse": float(np.mean(np.square(labels - predicted))) if len(labels) else 0.0,
        "pearson": pearson(labels, predicted),
        "spearman": pearson(ranks(labels), ranks(predicted)),
    }


def entities(labels: Sequence[Set[tuple[int, ...]]], predicted: Sequence[Set[tuple[int, ...]]]) -> dict[str, float]:
    """`precision`, `recall` and `f1` over all entities of all rows, each right where place and type are (seqeval's)."""
    hit = sum(len(a & b) for a, b in zip(labels, predicted, strict=True))
    count, true = sum(map(len, predicted)), sum(map(len, labels))
    return {"precision": hit / max(count, 1), "recall": hit / max(true, 1), "f1": 2 * hit / max(count + true, 1)}


# === Answers to questions ===

ARTICLES = re.compile(r"\b(a|an|the)\b")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
IDEOGRAPH = re.compile("([\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])")


def normalized(answer: str) -> str:
    """An answer as SQuAD compares it: lower case, no ASCII punctuation, no articles, single spaces."""
    return " ".join(ARTICLES.sub(" ", answer.lower().translate(NO_PUNCTUATION)).split())


def exact_match(gold: str, answer: str) -> float:
    """1 where two answers are the same, normalized; else 0."""
    return float(normalized(gold) == normalized(answer))


def answer_f1(gold: str, found: str) -> float:
    """F1 of the words of two answers; Chinese characters are words of their own, as CMRC counts them."""
    a, b = (IDEOGRAPH.sub(r" \1 ", normalized(answer)).split() for answer in (gold, found))
    if not a or not b:
        return float(a == b)
    return 2 * (Counter(a) & Counter(b)).total() / (len(a) + len(b))


def answers_to_questions(
    golds: Sequence[Sequence[str]], best: Sequence[str], silent: np.ndarray, odds: np.ndarray | None = None
) -> dict[str, float]:
    """SQuAD's `exact` and `f1`, from 0 to 1, and of the questions with and without an answer where there are both.

    Args:
        golds: the right answers of each question; none where it has no answer.
        best: the best answer to each question that is one.
        silent: bool `[n]`, was no answer given?
        odds: where there may be no answer, how much its score lies above that of `best`, `[n]`.

    Returns:
        Also `best_f1`; with odds, what answering nothing where they are above `best_f1_thresh` would have given, and
        `best_exact` of `best_exact_thresh`.
    """
    known = [[g for g in row if normalized(g)] or [""] for row in golds]
    result: dict[str, float] = {}
    scores: dict[str, np.ndarray] = {}
    for name, score in (("exact", exact_match), ("f1", answer_f1)):
        spoken = np.array([max(score(g, a) for g in row) for row, a in zip(known, best, strict=True)], np.float64)
        silence = np.array([max(score(g, "") for g in row) for row in known], np.float64)
        scores[name] = np.where(silent, silence, spoken)
        result[name] = float(scores[name].mean()) if len(known) else 0.0
        if odds is not None and len(known):
            result[f"best_{name}"], result[f"best_{name}_thresh"] = best_threshold(spoken, silence, odds)
    answerable = np.array([row != [""] for row in known], bool)
    for part, chosen in (("HasAns", answerable), ("NoAns", ~answerable)):
        if answerable.any() and not answerable.all():
            result |= {f"{part}_{name}": float(values[chosen].mean()) for name, values in scores.items()}
    return {"best_f1": result["f1"]} | result


def best_threshold(spoken: np.ndarray, silence: np.ndarray, odds: np.ndarray) -> tuple[float, float]:
    """The best mean score, and the threshold of the odds above which nothing is answered that gives it.

    Args:
        spoken, kept: the score of each question where it is answered, and where it is not, `[n]`, n > 0.
    """
    order = np.argsort(odds, kind="stable")
    totals = np.concatenate([[0.0], np.cumsum((spoken - silence)[order])])
    together = np.concatenate([[False], np.diff(odds[order]) == 0, [False]])  # equal odds are answered alike
    best = int(np.where(together, -np.inf, totals).argmax())
    around = odds[order[max(best - 1, 0) : best + 1]]
    threshold = around.mean() if best else around[0] - 1.0
    return float((silence.sum() + totals[best]) / len(odds)), float(threshold)


# === Words ===


def cloze(labels: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Share of the masks whose word is among the best k, `p_at_k`, for k = 1, 5, 10 and the most there is; `mrr`.

    Args:
        labels: numbers of the right words, int `[n, E]`, -1 where there is no mask.
        predicted: numbers of the best words, int `[n, M, k]`; what is beyond M was not answered, and counts as wrong.
    """
    masks = min(labels.shape[1], predicted.shape[1])
    hits = (predicted[:, :masks] == labels[:, :masks, np.newaxis]) & (labels[:, :masks, np.newaxis] >= 0)
    size, total = predicted.shape[2], max(int((labels >= 0).sum()), 1)
    shares = {f"p_at_{k}": float(hits[:, :, :k].any(2).sum() / total) for k in (1, 5, 10, size) if k <= size}
    return shares | {"mrr": float((hits / np.arange(1, size + 1)).sum() / total)}


def generation(references: Sequence[str], generated: Sequence[str]) -> dict[str, float]:
    """`rouge_l` (the mean F1 of rouge-score), `bleu` (of the whole set, sacrebleu) and `exact_match`, from 0 to 1.

    Case counts for none of them, white space not for `exact_match`; an ideograph is a word of its own.

    Raises:
        ConfigError: one of the libraries is not installed.
    """
    scorer, bleu = generation_libraries()
    golds, texts = ([IDEOGRAPH.sub(r" \1 ", text.lower()) for text in row] for row in (references, generated))
    rouge = scorer.RougeScorer(["rougeL"], tokenizer=_Words())
    scores = [rouge.score(gold, text)["rougeL"].fmeasure for gold, text in zip(golds, texts, strict=True)]
    same = ["".join(gold.split()) == "".join(text.split()) for gold, text in zip(golds, texts, strict=True)]
    return {
        "rouge_l": float(np.mean(scores)) if scores else 0.0,
        "bleu": float(bleu.corpus_bleu(texts, [golds]).score) / 100 if texts else 0.0,
        "exact_match": float(np.mean(same)) if same else 0.0,
    }


def generation_libraries() -> tuple[Any, Any]:
    """`rouge_score.rouge_scorer` and `sacrebleu`.

    Raises:
        ConfigError: one of them is not installed.
    """
    try:
        return importlib.import_module("rouge_score.rouge_scorer"), importlib.import_module("sacrebleu")
    except ImportError as error:
        raise ConfigError(
            f"ROUGE and BLEU need rouge-score and sacrebleu ({error}); `pip install keras3-bert[generate]`"
        ) from error


class _Words:
    """A tokenizer as rouge-score wants it, for any script."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"[^\W_]+", text)


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation; 0 where one side is constant."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    if len(a) == 0 or np.ptp(a) == 0 or np.ptp(b) == 0:  # after subtracting a rounded mean it may not be 0
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    below = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / below) if below else 0.0


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, equal values sharing the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + 1 + last) / 2)[inverse.ravel()]


def table(labels: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> str:
    """The per-class table that people read: precision, recall, F1 and support of each label."""
    each = per_class(confusion(labels, predicted, len(names)))
    width = max(12, *(len(n) for n in names))
    lines = [f"{'label':>{width}}  precision  recall     f1  support"]
    for i, name in enumerate(names):
        p, r, f = (each[k][i] for k in ("precision", "recall", "f1"))
        lines.append(f"{name:>{width}}  {p:9.3f}  {r:6.3f}  {f:5.3f}  {each['support'][i]:7d}")
    p, r, f = (each[k].mean() for k in ("precision", "recall", "f1"))
    lines.append(f"{'macro mean':>{width}}  {p:9.3f}  {r:6.3f}  {f:5.3f}  {each['support'].sum():7d}")
    return "\n".join(lines)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    above, below = np.asarray(above, np.float64), np.asarray(below, np.float64)
    return np.divide(above, below, out=np.zeros_like(above), where=below != 0)
