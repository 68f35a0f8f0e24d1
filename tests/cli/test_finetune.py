"""Fine-tuning's own settings: losses, frozen and new layers, early stopping, folds, thresholds, grids."""

import csv
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from checks import assert_same
from conftest import TINY, WORDS, tiny_bert
from safetensors.numpy import load_file, save_file
from test_fill_mask import fresh
from test_training import OPTIMIZER, TEXT, network, toy, train, trainer, weights, without_times

from keras_bert import FinetuneConfig, HeadConfig, OptimizerConfig, rules
from keras_bert.__main__ import main
from keras_bert.bert import Bert, Ensemble
from keras_bert.cli import model_dir
from keras_bert.cli.grid import combinations
from keras_bert.config import RunConfig, TrainConfig, WindowConfig
from keras_bert.data.labels import label_weights, learnt_head
from keras_bert.data.splits import folds
from keras_bert.data.tables import Table
from keras_bert.errors import ConfigError
from keras_bert.tasks import metrics
from keras_bert.tasks.network import HEADS
from keras_bert.tasks.scores import ClassScores
from keras_bert.training import optimizers
from keras_bert.training.finetune import fit
from keras_bert.training.loop import Keeping

RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(0, 2, (50, 4)).astype(np.float32)
IDS, MANY = RANDOM.integers(0, 4, 50), (RANDOM.random((50, 4)) < 0.4).astype(np.float32)
WEIGHTS = (0.5, 2.0, 1.0, 7.25)
TORCH = "losses are compared with PyTorch's (pip install torch)"


def mean_loss(task, labels, **settings):
    """As training has it: the sum of the rows' losses over the sum of what they count."""
    head = HEADS[task](TINY, HeadConfig(task=task, labels=("a", "b", "c", "d"), **settings))
    targets = keras.ops.cast(labels, head.label_dtype)
    loss, counts = head.loss(targets, keras.ops.convert_to_tensor(LOGITS)), head.counts(targets)
    assert (loss.shape, loss.dtype, counts.shape, counts.dtype) == ((50,), "float32", (50,), "float32")
    return float(tf.reduce_sum(loss) / tf.reduce_sum(counts))


# === Losses ===


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("weighted", [(), WEIGHTS])
def test_cross_entropy_is_that_of_pytorch(smoothing, weighted):
    torch = pytest.importorskip("torch", reason=TORCH)
    theirs = torch.nn.CrossEntropyLoss(torch.tensor(weighted) if weighted else None, label_smoothing=smoothing)
    wanted = float(theirs(torch.tensor(LOGITS), torch.tensor(IDS)))
    found = mean_loss("classify", IDS, label_smoothing=smoothing, label_weights=weighted)
    assert found == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("weighted", [(), WEIGHTS])
def test_sigmoid_loss_is_that_of_pytorch(weighted):
    torch = pytest.importorskip("torch", reason=TORCH)
    theirs = torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor(weighted) if weighted else None)
    wanted = float(theirs(torch.tensor(LOGITS), torch.tensor(MANY)))
    assert mean_loss("multilabel", MANY, label_weights=weighted) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_losses_are_those_of_keras(smoothing):
    one_hot = np.eye(4, dtype=np.float32)[IDS]
    theirs = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing)
    assert mean_loss("classify", IDS, label_smoothing=smoothing) == pytest.approx(
        float(theirs(one_hot, LOGITS)), rel=1e-6
    )
    theirs = keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=smoothing)
    assert mean_loss("multilabel", MANY, label_smoothing=smoothing) == pytest.approx(
        float(theirs(MANY, LOGITS)), rel=1e-6
    )


def test_balanced_weights_are_those_of_scikit_learn():
    peer = pytest.importorskip("sklearn.utils.class_weight", reason="needs scikit-learn (pip install scikit-learn)")
    wanted = peer.compute_class_weight("balanced", classes=np.arange(4), y=IDS)
    np.testing.assert_allclose(label_weights("balanced", IDS, list("abcd")), wanted, rtol=1e-12)
    each = [peer.compute_class_weight("balanced", classes=np.arange(2), y=column.astype(int)) for column in MANY.T]
    wanted = [positive / negative for negative, positive in each]
    np.testing.assert_allclose(label_weights("balanced", MANY, list("abcd")), wanted, rtol=1e-6)


def by_label(answers):
    """Scores in the order of the labels."""
    return ClassScores(HeadConfig()).of_answers(answers)


def test_weights_are_given_by_label():
    assert label_weights("b:2,d:.5", IDS, list("abcd")) == (1.0, 2.0, 1.0, 0.5)
    assert label_weights("a:b:3", IDS, ["a:b", "c"]) == (3.0, 1.0)


@pytest.mark.parametrize(
    "spec", ["x:1", "a", "a:", "a:0", "a:-1", "a:nan", "a:much", "a:1,a:2", "a:1,", "Balanced", ":1"]
)
def test_other_weights_are_refused(spec):
    with pytest.raises(ConfigError, match=r"class_weights: .* is no label and its weight, such as a:2\.5"):
        label_weights(spec, IDS, list("abcd"))


def test_weights_that_cannot_be_had_or_have_no_meaning_are_refused():
    with pytest.raises(ConfigError, match="no training row has the label 'e'"):
        label_weights("balanced", IDS, list("abcde"))
    for finetune in (FinetuneConfig(class_weights="balanced"), FinetuneConfig(label_smoothing=0.1)):
        for head in (HeadConfig("regress"), HeadConfig("tag", ("a", "b"))):
            with pytest.raises(ConfigError, match=f"has no meaning with the task {head.task}, only with classify and"):
                learnt_head(head, finetune, np.zeros(3, np.float32))
    assert learnt_head(HeadConfig("regress"), FinetuneConfig(), None) == HeadConfig("regress")


def test_weighted_labels_move_a_model_and_are_kept_with_it(tmp_path):
    """Nearly all weight on one label: everything gets it. The averaged loss is the weighted one."""
    start = network()
    finetune = FinetuneConfig(class_weights="1:1000", label_smoothing=0.1)
    config = TrainConfig(num_train_epochs=2, train_batch_size=8)
    result = fit(start, TEXT, toy(24), toy(12, seed=1), config, OPTIMIZER, finetune=finetune, say=list)
    assert set(result.answers["class_id"]) == {1}
    assert (start.head.config.label_weights, start.head.config.label_smoothing) == ((1.0, 1000.0), 0.1)
    Bert(TEXT, start).save(tmp_path)
    assert Bert.load(tmp_path).network.head.config == start.head.config


# === Frozen layers ===

LAYERS = dataclasses.replace(TINY, num_layers=3)


@pytest.mark.parametrize(
    ("layers", "still", "name", "average"), [(0, "E", "adamw", 0.5), (2, "E01", "lamb", 0.0), (3, "E012", "adamw", 0.0)]
)
def test_frozen_layers_are_bit_equal_and_have_no_slots(layers, still, name, average):
    """Also under weight decay, with averaged weights and LAMB."""
    start = network(encoder=LAYERS)
    before = weights(start)
    to = trainer(
        start, optimizer=OptimizerConfig(name, 1e-2, ema_decay=average, freeze_layers=layers, weight_decay=0.5)
    )
    train(to, toy(16), [range(8), range(8, 16)])
    after = weights(to.network)
    for path, value in before.items():
        block = re.match(r"encoder/block_(\d)/", path)
        part = block.group(1) if block else "E" if path.startswith("encoder/") else "head"
        same = np.array_equal(after[path], value)
        # keys' biases have no gradient, and biases do not decay: the step of a gradient that is rounding may be 0
        assert same == (part in still) or path.endswith("key/bias"), path
        slots = [v.path for v in to.optimizer.variables if path.replace("/", "_") in v.path]
        assert len(slots) == (0 if part in still else 2 + (average > 0)), (path, slots)


def test_freezing_covers_every_weight_by_a_rule():
    paths = [w.path for w in network(encoder=LAYERS).weights]
    chosen = rules.assign(optimizers.learning(LAYERS, 1), paths)
    assert {path for path, learns in chosen.items() if not learns} == {
        path
        for path in paths
        if path.startswith("encoder/") and not path.startswith(("encoder/block_1", "encoder/block_2"))
    }
    with pytest.raises(ConfigError, match="freeze_layers 4 is more than the 3 layers"):
        optimizers.learning(LAYERS, 4)
    with pytest.raises(ConfigError, match="freeze_layers must be -1"):
        OptimizerConfig(freeze_layers=-2)


# === Layers that start anew ===


def test_new_top_layers_are_the_same_for_a_seed_and_reported(tmp_path):
    tiny_bert().save(tmp_path / "own")
    loaded = weights(Bert.from_checkpoint(tmp_path / "own", labels=["0", "1"]).network)
    first, again, other = (
        Bert.from_checkpoint(tmp_path / "own", labels=["0", "1"], seed=seed, reinit_layers=1) for seed in (3, 3, 4)
    )
    assert "started anew: encoder/block_1, head/pooler" in str(first.report)
    assert set(first.report.filled) | set(first.report.anew) == set(loaded)
    assert not set(first.report.filled) & set(first.report.anew)
    a, b, c = (weights(bert.network) for bert in (first, again, other))
    for path, value in loaded.items():
        np.testing.assert_array_equal(a[path], b[path])
        anew = path.startswith(("encoder/block_1/", "head/pooler/"))
        assert (path in first.report.anew) == anew
        if not anew:
            np.testing.assert_array_equal(a[path], value)
        elif path.endswith("kernel"):
            assert not np.array_equal(a[path], c[path])
            assert not np.array_equal(a[path], value)
            assert 0.5 < a[path].std() / (0.88 * TINY.initializer_range) < 1.5, "cut off at two standard deviations"
        else:
            assert set(a[path].tolist()) == {1.0 if path.endswith("gamma") else 0.0}
    assert Bert.from_checkpoint(tmp_path / "own", labels=["0", "1"]).report.anew == ()
    with pytest.raises(ConfigError, match="reinit_layers 3 is more than the 2 layers"):
        Bert.from_checkpoint(tmp_path / "own", labels=["0", "1"], reinit_layers=3)


# === Early stopping ===

PATIENT = FinetuneConfig(early_stopping_patience=2)
EIGHT = TrainConfig(num_train_epochs=8, train_batch_size=8)


class Killed(BaseException):
    """The process ends here."""


def stopping(folder=None, say=None, finetune=PATIENT, config=None):
    """A run whose metric soon gets no better; returns the network, the result and the lines said."""
    start, lines = network(), []

    def keep(best, record):
        Bert(TEXT, best).save(folder, record)

    keeping = Keeping(folder, config or RunConfig())
    result = fit(
        start,
        TEXT,
        toy(24),
        toy(12, seed=1),
        EIGHT,
        OPTIMIZER,
        keeping,
        keep if folder else None,
        say or lines.append,
        finetune=finetune,
    )
    return start, result, lines


@pytest.fixture(scope="module")
def early(tmp_path_factory):
    """A run that ended early: its directory, network, result and the lines said."""
    folder = tmp_path_factory.mktemp("early")
    return folder, *stopping(folder)


def test_a_run_ends_after_epochs_without_a_better_metric(early):
    _, _, result, lines = early
    values = [record["f1"] for record in result.history]
    ended = [n for n in range(1, len(values) + 1) if n - 1 - values.index(max(values[:n])) >= 2]
    assert ended == [len(values)]
    assert len(values) < 8
    assert result.best == result.history[values.index(max(values))]
    assert lines[-1] == f"no better f1 for 2 epochs: ended after {len(values)}"


@pytest.mark.slow
def test_a_run_that_was_killed_stops_as_early_with_the_same_weights(early, tmp_path):
    _, wanted, whole, _ = early

    def say(line):
        if line.startswith(f"epoch {len(whole.history) - 1}/"):
            raise Killed

    with pytest.raises(Killed):
        stopping(tmp_path, say)
    found, result, lines = stopping(tmp_path)
    assert lines[0].startswith("continuing the run in")
    assert without_times(result.history) == without_times(whole.history)
    for path, value in weights(wanted).items():
        np.testing.assert_array_equal(weights(found)[path], value)


def test_a_run_that_ended_early_is_not_trained_again(early):
    folder, network, whole, _ = early
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and "events" not in p.name}
    again, result, lines = stopping(folder)
    assert not [line for line in lines if line.startswith("epoch ")]
    assert without_times(result.history) == without_times(whole.history)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    for path, value in weights(network).items():
        np.testing.assert_array_equal(weights(again)[path], value)


# === Folds: which row is where ===


@pytest.mark.parametrize("count", [2, 3, 5])
def test_folds_keep_groups_together_and_labels_in_proportion(count):
    random = np.random.default_rng(count)
    groups = [f"g{i}" for i in random.integers(0, 150, 400)]
    label_of = {g: "ab"[i % 7 == 0] for i, g in enumerate(sorted(set(groups)))}
    strata = [label_of[g] for g in groups]
    found = folds(groups, strata, count, seed=1)
    assert found.shape == (400,)
    assert sorted(set(found.tolist())) == list(range(count))
    where = {}
    for group, fold in zip(groups, found.tolist(), strict=True):
        assert where.setdefault(group, fold) == fold
    sizes = np.bincount(found)
    assert sizes.max() - sizes.min() <= 4
    for label in "ab":
        here = np.bincount(found[[s == label for s in strata]], minlength=count)
        assert here.max() - here.min() <= 3
    np.testing.assert_array_equal(folds(groups, strata, count, seed=1), found)
    assert (folds(groups, strata, count, seed=2) != found).any()


def test_folds_of_single_rows_are_as_equal_as_those_of_scikit_learn():
    peer = pytest.importorskip("sklearn.model_selection", reason="needs scikit-learn (pip install scikit-learn)")
    labels = np.array(["x"] * 13 + ["y"] * 29 + ["z"] * 8)
    found = folds([str(i) for i in range(50)], labels.tolist(), 5, seed=3)
    theirs = [test for _, test in peer.StratifiedKFold(5).split(labels, labels)]
    for label in "xyz":
        ours = sorted(np.bincount(found[labels == label], minlength=5).tolist())
        assert ours == sorted((labels[test] == label).sum() for test in theirs)


# === Thresholds ===


@pytest.mark.parametrize("seed", range(6))
def test_the_threshold_is_the_best_there_is(seed):
    random = np.random.default_rng(seed)
    labels = (random.random(120) < 0.3).astype(int)
    scores = np.round(np.clip(random.normal(0.3 + 0.2 * labels, 0.2), 0, 1), 2).astype(np.float32)  # many are equal
    threshold = metrics.f1_threshold(labels, scores)

    def f1(cut):
        return metrics.classification(labels, (scores >= cut).astype(int), 2)["f1"]

    assert f1(threshold) == max(f1(cut) for cut in np.linspace(0, 1, 1001))
    assert not np.isin(np.float32(threshold), scores), "half-way: rounding does not change what is answered"


def test_thresholds_at_the_ends():
    assert metrics.f1_threshold(np.array([0, 0]), np.array([0.2, 0.9])) == 0.5
    assert 0 < metrics.f1_threshold(np.array([1, 1]), np.array([0.0, 1.0])) < 1
    assert 0.3 < metrics.f1_threshold(np.array([0, 1]), np.array([0.3, 1.0])) < 1


def test_nested_thresholds_do_not_see_their_own_part():
    random = np.random.default_rng(0)
    labels, scores, parts = random.integers(0, 2, 90), random.random(90), np.arange(90) % 3
    found = metrics.nested_thresholds(labels, scores, parts)
    for part in range(3):
        assert set(found[parts == part]) == {metrics.f1_threshold(labels[parts != part], scores[parts != part])}
    changed = np.where(parts == 1, 1 - labels, labels)
    assert metrics.nested_thresholds(changed, scores, parts)[1] == found[1]


def test_reliability_equals_scikit_learn_and_the_paper():
    peer = pytest.importorskip("sklearn.calibration", reason="needs scikit-learn (pip install scikit-learn)")
    random = np.random.default_rng(0)
    sure = random.random(500)
    right = (random.random(500) < sure**2).astype(int)
    table, error = metrics.reliability(sure, right, bins=10)
    true, predicted = peer.calibration_curve(right, sure, n_bins=10)
    np.testing.assert_allclose(table["right"], true, atol=1e-12)
    np.testing.assert_allclose(table["sure"], predicted, atol=1e-12)
    wanted = 0.0
    for low in np.arange(10) / 10:
        inside = (sure > low) & (sure <= low + 0.1)
        wanted += inside.mean() * abs(right[inside].mean() - sure[inside].mean())
    assert error == pytest.approx(wanted, abs=1e-9)
    assert metrics.reliability(np.array([0.0, 1.0]), np.array([0, 1]))[1] == 0


# === Several models ===


@pytest.mark.slow
def test_models_answer_together_with_the_mean_of_their_scores():
    texts = ["fire in the city", "music", "the song is the game", ""]
    for task, labels in (("classify", ("0", "1")), ("multilabel", ("a", "b", "c")), ("regress", ())):
        members = [tiny_bert(task, labels) for _ in range(2)]
        for number, member in enumerate(members):
            random = np.random.default_rng(number)
            for weight in member.network.weights:
                if weight.path.endswith("kernel"):
                    weight.assign(random.normal(0, 0.4, weight.shape))
        alone = [by_label(member.arrays(texts)) for member in members]
        assert not np.allclose(alone[0], alone[1], atol=1e-3)
        together = Ensemble(members)
        np.testing.assert_allclose(by_label(together.arrays(texts)), np.mean(alone, axis=0), atol=1e-6)
        if task == "multilabel":
            windows, long = WindowConfig(max_windows=3, doc_stride=4), ["fire in the city " * 9, "music"]
            alone = [by_label(member.arrays(long, windows=windows)) for member in members]
            found = together.arrays(long, windows=windows)
            np.testing.assert_allclose(by_label(found), np.mean(alone, axis=0), atol=1e-6)
            assert found["num_windows"].tolist() == [3, 1]
        first = Ensemble(members[:1]).predict(texts)
        for ours, theirs in zip(first, members[0].predict(texts), strict=True):
            assert set(ours) == set(theirs)
            assert ours.get("label") == theirs.get("label")
            assert ours.get("labels") == theirs.get("labels")
    rows = Table({"text": texts, "label": ["1"] * 4}, ["row"] * 4, [1, 2, 3, 4])
    assert set(together.evaluate(rows)[0]) == {"mse", "pearson", "spearman"}
    with pytest.raises(ConfigError, match="2 models cannot be saved as one"):
        together.save("models")
    with pytest.raises(ConfigError, match="a model for regress has no embedding"):
        together.embed(texts)
    with pytest.raises(ConfigError, match="models that read texts differently"):
        Ensemble([tiny_bert(), tiny_bert(max_seq_length=9)])
    with pytest.raises(ConfigError, match="different labels"):
        Ensemble([tiny_bert(), tiny_bert(labels=("0", "2"))])
    with pytest.raises(ConfigError, match="unknown task of several models 'tag'"):
        Ensemble([tiny_bert("tag", ("a",))])


# === From the command line ===

SHORT = ["--label_column=target", "--num_train_epochs=4", "--train_batch_size=4", "--learning_rate=1e-2"]
RUN = ["finetune", "--train_file=train.csv", "--init_checkpoint=pretrained", *SHORT]


def write(path, header, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


@pytest.fixture(scope="module")
def work(tmp_path_factory, tiny_checkpoint):
    """A directory with training data of which one word decides nearly always, and a checkpoint that learns it."""
    work = tmp_path_factory.mktemp("work")
    shutil.copytree(tiny_checkpoint, work / "pretrained")
    tensors, random = load_file(work / "pretrained/model.safetensors"), np.random.default_rng(7)
    for name in sorted(tensors):
        if tensors[name].ndim == 2:
            tensors[name] = random.normal(0, 0.15, tensors[name].shape).astype(np.float32)
    save_file(tensors, work / "pretrained/model.safetensors")
    words, random = ("fire", "flood", "music", "song"), np.random.default_rng(0)
    rows = []
    for i in range(100):
        label = (i % 4 < 2) != (random.random() < 0.15)
        rows.append([str(1000 - i), f"{words[i % 4]} in the {WORDS[5 + i % 26]}, {WORDS[5 + i % 7]}", str(int(label))])
    rows += [[str(2000 + i), *rows[i][1:]] for i in range(5)]  # the same texts again
    write(work / "train.csv", ["id", "text", "target"], rows)
    kinds = [",".join(w for w in words[:3] if random.random() < 0.5) for _ in range(40)]
    write(work / "many.csv", ["text", "kinds"], [[f"{k} {WORDS[5 + i % 26]} {i}", k] for i, k in enumerate(kinds)])
    return work


@pytest.fixture
def at_work(work, monkeypatch):
    monkeypatch.chdir(work)
    return work


@pytest.fixture(scope="module")
def three(work):
    """A run of three folds with a tuned threshold: its directory and what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "keras_bert", *RUN, "--model_dir=three", "--folds=3", "--tune_threshold"],
        cwd=work,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return work / "three", done.stdout, done.stderr


@pytest.fixture(scope="module")
def alone(three, work):
    """The export of one fold of the three."""
    assert main(["export", f"--model_dir={work}/three/fold_1", f"--export_dir={work}/alone"]) == 0
    return work / "alone/1"


def final_of(folder):
    return json.loads((folder / "final_metrics.json").read_text("utf-8"))


def test_every_row_is_scored_by_the_model_that_did_not_see_it(three, at_work):
    folder, _, _ = three
    header, *rows = read(folder / "oof.csv")
    assert header == ["id", "target", "score_0", "score_1", "fold"]
    source = read("train.csv")[1:]
    assert [row[:2] for row in rows] == [[row[0], row[2]] for row in source]
    fold_of = [int(row[4]) for row in rows]
    assert set(fold_of) == {1, 2, 3}
    assert fold_of[100:] == fold_of[:5], "equal texts are in the same fold"
    for number in (1, 2, 3):
        mine = [i for i, fold in enumerate(fold_of) if fold == number]
        scores = by_label(Bert.load(folder / f"fold_{number}").arrays([source[i][1] for i in mine]))
        np.testing.assert_allclose([[float(v) for v in rows[i][2:4]] for i in mine], scores, atol=1e-5)
        assert final_of(folder / f"fold_{number}")["eval_rows"] == len(mine)


def test_what_folds_come_to(three):
    folder, out, err = three
    final, parts = final_of(folder), [final_of(folder / f"fold_{i}") for i in (1, 2, 3)]
    assert final["folds"] == ["fold_1", "fold_2", "fold_3"]
    assert (final["task"], final["labels"], final["train_rows"]) == ("classify", ["0", "1"], 105)
    for name in ("f1", "accuracy", "eval_loss"):
        values = [part["best"][name] for part in parts]
        assert final["mean"][name] == pytest.approx(np.mean(values))
        assert final["standard_error"][name] == pytest.approx(np.std(values, ddof=1) / 3**0.5)
    rows = read(folder / "oof.csv")[1:]
    labels, scores = np.array([int(r[1]) for r in rows]), np.array([float(r[3]) for r in rows])
    fold = np.array([int(r[4]) for r in rows])
    assert final["out_of_fold"]["accuracy"] > 0.7, "it has learnt something"
    assert final["out_of_fold"] == metrics.classification(labels, (scores > 0.5).astype(int), 2)
    found = final["threshold"]
    assert found["threshold"] == pytest.approx(metrics.f1_threshold(labels, scores))
    tuned = metrics.classification(labels, (scores > found["threshold"]).astype(int), 2)["f1"]
    assert found["f1_tuned"] == pytest.approx(tuned)
    assert found["f1_tuned"] >= found["f1_at_half"] == final["out_of_fold"]["f1"]
    nested = [metrics.f1_threshold(labels[fold != i], scores[fold != i]) for i in (1, 2, 3)]
    np.testing.assert_allclose(found["thresholds_nested"], nested)
    honest = (scores > np.array(nested)[fold - 1]).astype(int)
    assert found["f1_nested"] == pytest.approx(metrics.classification(labels, honest, 2)["f1"])
    assert re.search(r"^out of fold: accuracy \d", out, re.M)
    assert re.search(r"^folds: .*f1 0\.\d+ ± 0\.\d+", out, re.M)
    assert re.search(r"^threshold: .*f1_nested", out, re.M)
    assert [line for line in err.splitlines() if line.startswith("fold ")] == [f"fold {i} of 3" for i in (1, 2, 3)]
    assert (folder / "report.html").exists()


@pytest.mark.slow
def test_predict_evaluate_and_export_know_folds_and_the_threshold(three, alone, at_work, capsys):
    folder, _, _ = three
    threshold = final_of(folder)["threshold"]["threshold"]
    members = [Bert.load(folder / f"fold_{i}") for i in (1, 2, 3)]
    assert [member.network.head.config.threshold for member in members] == [threshold] * 3
    assert (
        main(["predict", "--model_dir=three", "--input_file=train.csv", "--output_file=o.csv", "--probabilities"]) == 0
    )
    header, *rows = read("o.csv")
    assert header == ["id", "target", "score_0", "score_1"]
    texts = [row[1] for row in read("train.csv")[1:]]
    wanted = np.mean([by_label(member.arrays(texts)) for member in members], axis=0)
    np.testing.assert_allclose([[float(v) for v in row[2:]] for row in rows], wanted, atol=1e-6)
    assert [row[1] for row in rows] == ["1" if score > threshold else "0" for score in wanted[:, 1]]
    assert main(["evaluate", "--model_dir=three", "--eval_file=train.csv"]) == 0
    assert "f1 = " in capsys.readouterr().out
    exported = tf.saved_model.load(str(alone)).signatures["serving_default"](text=tf.constant(texts))
    scores = by_label(members[0].arrays(texts))[:, 1]
    wanted = ["1" if score > threshold else "0" for score in scores]
    assert [label.decode() for label in exported["label"].numpy()] == wanted
    assert main(["report", "--model_dir=three"]) == 0


def test_folds_are_exported_as_one_model_that_answers_as_predict(three, alone, at_work, capsys):
    folder, _, _ = three
    assert main(["export", "--model_dir=three", "--export_dir=together"]) == 0
    assert main(["verify_export", "--export_dir=together"]) == 0
    manifest, one = (json.loads(Path(f"{f}/1/assets.extra/keras_bert.json").read_text()) for f in ("together", "alone"))
    assert (manifest["models"], manifest["parameters"]) == (3, 3 * one["parameters"])
    assert manifest["about"]["training"] == {"train_rows": 105, "folds": 3}
    assert manifest["about"]["metrics"] == final_of(folder)["out_of_fold"]
    assert {case["signature"] for case in manifest["golden"]} == set(manifest["signatures"])
    assert set(manifest["signatures"]) == {"serving_default", "classify", "probabilities", "token_ids", "tokenize"}
    assert "the mean of the scores of 3 models" in Path("together/1/README.md").read_text("utf-8")
    sizes = [Path(f"{f}/1/variables/variables.data-00000-of-00001").stat().st_size for f in ("together", "alone")]
    assert sizes[0] / sizes[1] == pytest.approx(3, rel=0.05)

    texts = [*(row[1] for row in read("train.csv")[1:20]), "", "fire " * 40, "\u6771\u4eac \U0001f525"]
    found = fresh(Path("together/1"), texts)
    wanted = Ensemble([Bert.load(folder / f"fold_{i}") for i in (1, 2, 3)]).arrays(texts)
    assert_same(found, wanted)


@pytest.mark.slow
def test_folds_that_are_there_are_not_trained_again(three, at_work, capsys):
    folder, out, _ = three
    shutil.copytree("three", "partly")
    shutil.rmtree("partly/fold_2")
    (at_work / "partly/final_metrics.json").unlink()
    assert main([*RUN, "--model_dir=partly", "--folds=3", "--tune_threshold"]) == 0
    shown = capsys.readouterr()
    assert [line for line in shown.err.splitlines() if line.startswith("fold ")] == ["fold 2 of 3"]
    assert out.endswith("\n".join(shown.out.splitlines()[-7:]) + "\n")
    assert (at_work / "partly/oof.csv").read_text() == (folder / "oof.csv").read_text()
    a, b = final_of(at_work / "partly"), final_of(folder)
    assert (a["weights_sha256"], a["threshold"], a["mean"]) == (b["weights_sha256"], b["threshold"], b["mean"])


@pytest.mark.slow
def test_folds_that_are_killed_go_on_and_end_alike(three, at_work, capsys):
    folder, _, _ = three
    flags = [*RUN, "--model_dir=killed", "--folds=3", "--tune_threshold"]
    process = subprocess.Popen([sys.executable, "-m", "keras_bert", *flags], stderr=subprocess.PIPE, text=True)
    said, second = [], False
    for line in process.stderr:
        said.append(line)
        second = second or line.startswith("fold 2")
        if second and line.startswith("epoch 1/4  train_loss"):
            process.send_signal(signal.SIGKILL)
            break
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, "".join(said)
    assert not (at_work / "killed/final_metrics.json").exists()
    done = (at_work / "killed/fold_1/model.safetensors").stat().st_mtime_ns
    assert main(["predict", "--model_dir=killed", "--input_file=train.csv", "--output_file=o.csv"]) == 5
    assert main(flags) == 0
    err = capsys.readouterr().err
    assert "fold 1 of 3" not in err
    assert "continuing the run in killed/fold_2" in err or "fold 2 of 3" in err
    assert (at_work / "killed/fold_1/model.safetensors").stat().st_mtime_ns == done
    assert (at_work / "killed/oof.csv").read_text() == (folder / "oof.csv").read_text()
    a, b = final_of(at_work / "killed"), final_of(folder)
    assert (a["weights_sha256"], a["threshold"], a["mean"]) == (b["weights_sha256"], b["threshold"], b["mean"])


def test_overwriting_folds_leaves_none_of_them(three, at_work):
    shutil.copytree("three", "replaced")
    for place in ("replaced/fold_3", "replaced/mine=1", "replaced/tokens"):
        (at_work / place).mkdir(exist_ok=True)
        (at_work / place / "notes.md").write_text("mine")
    (at_work / "replaced/tokens/flags.txt").write_text("of a run that is not part of this one")
    (at_work / "replaced/eval_results.txt").unlink(missing_ok=True)
    model_dir.clear(at_work / "replaced")
    left = sorted(
        p.relative_to(at_work / "replaced").as_posix() for p in (at_work / "replaced").rglob("*") if p.is_file()
    )
    assert left == [".lock", "fold_3/notes.md", "mine=1/notes.md", "tokens/flags.txt", "tokens/notes.md"]


def test_a_training_file_that_has_changed_is_noticed(three, at_work, capsys):
    shutil.copytree("three", "stale")
    text = (at_work / "train.csv").read_text()
    lines = text.splitlines(keepends=True)
    try:
        (at_work / "train.csv").write_text("".join([lines[0], *lines[2:], lines[1]]))
        assert main([*RUN, "--model_dir=stale", "--folds=3", "--tune_threshold"]) == 5
        assert "is not of the rows of train.csv, which has changed since" in capsys.readouterr().err
    finally:
        (at_work / "train.csv").write_text(text)


@pytest.mark.slow
def test_several_labels_have_one_threshold(at_work):
    flags = ["--task=multilabel", "--train_file=many.csv", "--label_column=kinds", "--init_checkpoint=pretrained"]
    short = ["--num_train_epochs=1", "--learning_rate=1e-2", "--class_weights=balanced", "--label_smoothing=.05"]
    assert main(["finetune", *flags, *short, "--model_dir=several", "--folds=2", "--tune_threshold"]) == 0
    final, (header, *rows) = final_of(at_work / "several"), read("several/oof.csv")
    assert header == ["kinds", "score_fire", "score_flood", "score_music", "fold"]
    scores = np.array([[float(v) for v in row[1:4]] for row in rows])
    truth = np.array([[name in row[0].split(",") for name in ("fire", "flood", "music")] for row in rows])
    threshold = final["threshold"]["threshold"]
    assert threshold == pytest.approx(metrics.f1_threshold(truth, scores))
    assert final["threshold"]["f1_tuned"] == pytest.approx(metrics.multilabel(truth, scores >= threshold)["f1"])


# === Grids ===


@pytest.fixture(scope="module")
def grid(work):
    """A grid of four runs, with other settings that all have in common."""
    flags = [*RUN, "--num_train_epochs=1", "--model_dir=grid", "--grid=learning_rate=1e-2,1e-4;seed=1,2"]
    flags += ["--freeze_layers=0", "--reinit_layers=1", "--class_weights=balanced", "--label_smoothing=.1"]
    done = subprocess.run(
        [sys.executable, "-m", "keras_bert", *flags],
        cwd=work,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return flags, done.stdout, done.stderr


NAMES = [f"learning_rate={rate},seed={seed}" for rate in ("1e-2", "1e-4") for seed in (1, 2)]


def test_a_grid_is_all_combinations_and_names_the_best(grid, at_work, capsys):
    _, out, err = grid
    header, *rows = read("grid/results.csv")
    assert header[:3] == ["run", "learning_rate", "seed"]
    assert [row[0] for row in rows] == NAMES
    f1 = {row[0]: float(row[header.index("f1")]) for row in rows}
    assert f1 == pytest.approx({name: final_of(at_work / "grid" / name)["best"]["f1"] for name in NAMES})
    final, (columns, *lines) = final_of(at_work / "grid"), read("grid/summary.csv")
    assert columns == ["learning_rate", "runs", "f1_mean", "f1_std", "best_run"]
    values = {rate: [f1[n] for n in NAMES if f"={rate}," in n] for rate in ("1e-2", "1e-4")}
    means = [float(line[2]) for line in lines]
    assert means == sorted(means, reverse=True)
    for rate, runs, mean, spread, best in lines:
        assert (runs, f1[best]) == ("2", max(values[rate]))
        assert float(mean) == pytest.approx(np.mean(values[rate]))
        assert float(spread) == pytest.approx(np.std(values[rate], ddof=1))
    assert final["best_run"] == lines[0][4]
    assert final["best"]["settings"] == {"learning_rate": lines[0][0]}
    assert [line.split() for line in out.splitlines()][-3] == columns
    assert f"its best run is grid/{final['best_run']}" in err
    seeds = {(at_work / "grid" / name / "flags.txt").read_text().count("--seed=2\n") for name in NAMES}
    assert seeds == {0, 1}
    assert main(["predict", "--model_dir=grid", "--input_file=train.csv", "--output_file=o.csv"]) == 2
    assert f"is a grid; name one of its runs, such as grid/{final['best_run']}" in capsys.readouterr().err


def test_frozen_and_new_layers_from_the_command_line(grid, work):
    _, _, err = grid
    assert "in the checkpoint but started anew: encoder/block_1, head/pooler" in err
    start = weights(Bert.from_checkpoint(work / "pretrained", labels=["0", "1"]).network)
    for name in NAMES:
        bert = Bert.load(work / "grid" / name)
        assert bert.network.head.config.label_smoothing == 0.1
        assert len(bert.network.head.config.label_weights) == 2
        for path, value in weights(bert.network).items():
            still = path.startswith("encoder/") and not path.startswith("encoder/block_")
            assert np.array_equal(value, start[path]) == still or path.endswith("key/bias"), path


def test_a_second_stage_starts_from_a_run_of_another_task(grid, at_work, capsys):
    first = f"grid/{NAMES[0]}"
    flags = ["finetune", "--train_file=train.csv", "--label_column=target", f"--init_checkpoint={first}"]
    flags += ["--task=regress", "--model_dir=second", "--num_train_epochs=1", "--freeze_layers=2"]
    assert main(flags) == 5
    assert "not for regress with []; with new_head (--new_head) its encoder gets a new head" in capsys.readouterr().err
    assert not (at_work / "second").exists()
    assert main([*flags, "--new_head"]) == 0
    assert "new, with random initial values: head/logits/" in capsys.readouterr().err
    before, after = (weights(Bert.load(at_work / folder).network) for folder in (first, "second"))
    assert after["head/logits/kernel"].shape == (16, 1)
    for path, value in after.items():
        if path.startswith("encoder/"):
            np.testing.assert_array_equal(value, before[path])


def test_a_grid_goes_on_where_it_was(grid, at_work, capsys):
    flags, _, _ = grid
    kept = {name: (at_work / "grid" / name / "model.safetensors").stat().st_mtime_ns for name in NAMES}
    missing = NAMES[2]
    shutil.rmtree(at_work / "grid" / missing)
    before = (at_work / "grid/results.csv").read_text()
    assert main(flags) == 0
    err = capsys.readouterr().err
    assert [line for line in err.splitlines() if line.startswith("run ")] == [f"run 3 of 4: {missing}"]
    without = lambda text: [row.rpartition(",")[0] for row in text.splitlines()]  # noqa: E731 (seconds differ)
    assert without((at_work / "grid/results.csv").read_text()) == without(before)
    for name in set(NAMES) - {missing}:
        assert (at_work / "grid" / name / "model.safetensors").stat().st_mtime_ns == kept[name]


@pytest.mark.slow
def test_a_run_of_a_grid_that_diverges_does_not_end_it(at_work, capsys):
    """Numbers so large that their squares overflow, with one of two files of labels."""
    write("huge.csv", ["text", "target"], [[f"fire {i}", str(i % 5) + "e38"[: 3 * (i % 5 < 3)]] for i in range(40)])
    flags = ["--task=regress", "--train_file=huge.csv", "--num_train_epochs=1", "--model_dir=huge"]
    assert main([*RUN, *flags, "--grid=seed=1"]) == 4
    err = capsys.readouterr().err
    assert err.count("the other runs go on") == 1
    assert "all runs of the grid diverged" in err


def known():
    from keras_bert.cli.finetune import define

    return define()


def test_the_flags_of_a_plain_run_can_be_repeated_in_folds_and_grids(at_work):
    from keras_bert.cli.finetune import settle

    flags = known()
    assert flags.parse([*RUN[1:], "--model_dir=plain"])
    plan = settle(flags)
    (at_work / "plain.txt").write_text(model_dir.own_flags(flags, plan.found_out))
    for more in (["--folds=3", "--tune_threshold"], ["--grid=seed=1,2", "--folds=2"]):
        flags = known()
        assert flags.parse(["--flagfile=plain.txt", "--model_dir=again", *more])
        assert settle(flags).flags["folds"] in (2, 3)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("lerning_rate=1", "'lerning_rate' is no flag that can vary"),
        ("model_dir=a,b", "'model_dir' is no flag that can vary"),
        ("grid=a", "'grid' is no flag that can vary"),
        ("seed=", "'seed=' must be a flag and its values"),
        ("seed", "'seed' must be a flag and its values"),
        ("seed=1,,2", "must be a flag and its values"),
        ("seed=1,1", "must be a flag and its values, each once"),
        ("seed=1;seed=2", "must be a flag and its values, each once"),
        (";", "has no values"),
        ("init_checkpoint=a/b,a_b", "would name the same directory"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(spec, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        combinations(spec, known(), tmp_path)


REFUSED = [
    (["--folds=1"], 2, "--folds must be at least 2"),
    (["--folds=3", "--eval_share=.2"], 2, "--folds and --eval_share contradict each other"),
    (["--folds=3", "--eval_file=train.csv"], 2, "--folds and --eval_file contradict each other"),
    (["--folds=3", "--task=tag"], 2, "--folds has no meaning with --task=tag, only with classify, multilabel, regress"),
    (["--folds=3", "--task=regress", "--tune_threshold"], 2, "--tune_threshold has no meaning with --task=regress"),
    (["--tune_threshold"], 2, "--tune_threshold needs .* --folds"),
    (["--folds=101"], 3, "train.csv: 100 different texts are too few for 101 folds"),
    (["--class_weights=2:3"], 2, "class_weights: '2:3' is no label and its weight"),
    (["--class_weights=balanced", "--task=regress"], 2, "class_weights has no meaning with the task regress"),
    (["--class_weights=balanced", "--labels=0,1,2"], 2, "no training row has the label '2'"),
    (["--label_smoothing=1"], 2, "label_smoothing must be in"),
    (["--label_smoothing=.1", "--task=span"], 2, "label_smoothing has no meaning with the task span"),
    (["--freeze_layers=3"], 2, "freeze_layers 3 is more than the 2 layers"),
    (["--reinit_layers=3"], 2, "reinit_layers 3 is more than the 2 layers"),
    (["--freeze_layers=1", "--reinit_layers=2"], 2, "freeze_layers 1 would keep random layers"),
    (["--early_stopping_patience=-1"], 2, "early_stopping_patience must be at least 0"),
    (["--grid=learning_rate=1e-5,0"], 2, "learning_rate must be above 0"),
    (["--grid=learning_rate=1e-5,fast"], 2, "learning_rate=fast"),
]


@pytest.mark.parametrize(("flags", "code", "message"), REFUSED, ids=[" ".join(flags) for flags, *_ in REFUSED])
def test_what_cannot_be_is_refused_before_anything_is_made(flags, code, message, at_work, capsys):
    assert main([*RUN, "--model_dir=refused", *flags]) == code
    err = capsys.readouterr().err
    assert re.search(f"^keras-bert finetune: error: .*{message}", err, re.M), err
    assert "starting TensorFlow" not in err
    assert not (at_work / "refused").exists()
