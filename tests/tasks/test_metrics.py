"""Metrics: equal to scikit-learn's and SciPy's, also where a class or a correlation is degenerate."""

import warnings

import numpy as np
import pytest

from keras_bert.tasks import metrics

PEER = "metrics are compared with scikit-learn (pip install scikit-learn)"
CASES = ["random", "imbalanced", "one class predicted", "one class true", "never predicted", "all right", "all wrong"]


def drawn(case: str, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions int `[300]`."""
    rng = np.random.default_rng(CASES.index(case))
    labels, predicted = rng.integers(0, classes, 300), rng.integers(0, classes, 300)
    if case == "imbalanced":
        labels = (rng.random(300) < 0.03).astype(int)
    elif case == "one class predicted":
        predicted[:] = classes - 1
    elif case == "one class true":
        labels[:] = 0
    elif case == "never predicted":
        predicted[predicted == 1] = 0
    elif case == "all right":
        predicted = labels
    elif case == "all wrong":
        predicted = (labels + 1) % classes
    return labels, predicted


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("case", CASES)
def test_classification_equals_scikit_learn(case, classes):
    peer = pytest.importorskip("sklearn.metrics", reason=PEER)
    labels, predicted = drawn(case, classes)
    ids = list(range(classes))
    macro = peer.f1_score(labels, predicted, labels=ids, average="macro", zero_division=0)
    binary = peer.f1_score(labels, predicted, labels=[1], average="macro", zero_division=0)
    assert metrics.classification(labels, predicted, classes) == pytest.approx(
        {
            "accuracy": peer.accuracy_score(labels, predicted),
            "f1": binary if classes == 2 else macro,
            "macro_f1": macro,
            "matthews": peer.matthews_corrcoef(labels, predicted),
        },
        abs=1e-12,
    )
    counts = metrics.confusion(labels, predicted, classes)
    np.testing.assert_array_equal(counts, peer.confusion_matrix(labels, predicted, labels=ids))
    theirs = peer.precision_recall_fscore_support(labels, predicted, labels=ids, zero_division=0)
    for ours, other in zip(metrics.per_class(counts).values(), theirs, strict=True):
        np.testing.assert_allclose(ours, other, atol=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_multilabel_equals_scikit_learn(share):
    peer = pytest.importorskip("sklearn.metrics", reason=PEER)
    rng = np.random.default_rng(1)
    labels = (rng.random((200, 5)) < 0.3).astype(np.float32)
    labels[:, 4] = 0
    active = rng.random((200, 5)) < share
    assert metrics.multilabel(labels, active) == pytest.approx(
        {
            "accuracy": peer.accuracy_score(labels.astype(int), active.astype(int)),
            "f1": peer.f1_score(labels.astype(int), active.astype(int), average="micro", zero_division=0),
            "macro_f1": peer.f1_score(labels.astype(int), active.astype(int), average="macro", zero_division=0),
        },
        abs=1e-12,
    )


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("ties", [False, True])
def test_regression_equals_scipy(kind, ties):
    peer = pytest.importorskip("scipy.stats", reason="correlations are compared with SciPy (pip install scipy)")
    rng = np.random.default_rng(2)
    labels = rng.normal(100, 1, 500)
    predicted = labels + rng.normal(0, 2, 500)
    if ties:
        labels, predicted = np.round(labels), np.round(predicted)
    labels, predicted = labels.astype(kind), predicted.astype(kind)
    found = metrics.regression(labels, predicted)
    assert found["mse"] == pytest.approx(np.mean((labels - predicted) ** 2.0), rel=1e-5)
    assert found["pearson"] == pytest.approx(peer.pearsonr(labels.astype(float), predicted.astype(float))[0], abs=1e-12)
    assert found["spearman"] == pytest.approx(peer.spearmanr(labels, predicted)[0], abs=1e-12)
    np.testing.assert_array_equal(metrics.ranks(labels), peer.rankdata(labels))


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1, 3, 7, 100, 1000])
def test_a_correlation_with_a_constant_is_zero(kind, size):
    constant, varied = np.full(size, 0.1, kind), np.arange(size).astype(kind)
    for a, b in ((constant, varied), (varied, constant), (constant, constant * 3)):
        found = metrics.regression(a, b)
        assert (found["pearson"], found["spearman"]) == (0.0, 0.0)


def test_no_rows_give_zeros_and_no_warning():
    none = np.zeros(0, int)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = {
            **metrics.classification(none, none, 2),
            **metrics.multilabel(np.zeros((0, 3)), np.zeros((0, 3))),
            **metrics.regression(none, none),
        }
    assert set(found) == {"accuracy", "f1", "macro_f1", "matthews", "mse", "pearson", "spearman"}
    assert set(found.values()) == {0.0}


def test_matthews_of_many_rows_does_not_overflow():
    counts = np.array([[3_000_000_000, 1_000_000_000], [1_000_000_000, 3_000_000_000]])
    assert metrics.matthews(counts) == pytest.approx(0.5)


def test_table_by_hand():
    # cat: 2 of 3 found, 2 of 2 given right; dog: 1 of 1 found, 1 of 2 given right; owl: never there
    labels, predicted = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    assert metrics.table(labels, predicted, ["cat", "dog", "owl"]).splitlines() == [
        "       label  precision  recall     f1  support",
        "         cat      1.000   0.667  0.800        3",
        "         dog      0.500   1.000  0.667        1",
        "         owl      0.000   0.000  0.000        0",
        "  macro mean      0.500   0.556  0.489        4",
    ]


def test_table_makes_room_for_long_names():
    lines = metrics.table(np.array([0, 1]), np.array([0, 1]), ["a" * 40, "b"]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1].startswith("a" * 40 + "  ")
