"""Metrics over whole evaluation sets, in NumPy. Definitions are scikit-learn's and SciPy's."""

from collections.abc import Sequence

import numpy as np


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
    wanted, active = labels.astype(bool), active.astype(bool)
    hit, given, true = (wanted & active).sum(0), active.sum(0), wanted.sum(0)
    return {
        "accuracy": float((wanted == active).all(1).mean()) if len(wanted) else 0.0,
        "f1": float(_ratio(2 * hit.sum(), given.sum() + true.sum())),
        "macro_f1": float(_ratio(2 * hit, given + true).mean()),
    }


def regression(labels: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """`mse`, `pearson` and `spearman`; a correlation with a constant is 0."""
    return {
        "mse": float(np.mean(np.square(labels - predicted))) if len(labels) else 0.0,
        "pearson": pearson(labels, predicted),
        "spearman": pearson(ranks(labels), ranks(predicted)),
    }


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
