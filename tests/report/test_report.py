"""Reports: what is in them is right, they need nothing else, and no label or text breaks them."""

import json
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import tiny_bert

from keras_bert.__main__ import main
from keras_bert.config import HeadConfig, dumps
from keras_bert.errors import CheckpointError
from keras_bert.report import predictions, report
from keras_bert.report.predictions import Predictions
from keras_bert.tasks import metrics

HISTORY = [
    {"epoch": 1, "step": 5, "train_loss": 0.7, "eval_loss": 0.6, "f1": 0.5, "seconds": 1.0},
    {"epoch": 2, "step": 10, "train_loss": 0.4, "eval_loss": 0.5, "f1": 0.75, "seconds": 1.0},
]
NASTY = ("a<b>&\"'", "$x_1$ 火 🔥", "no\\label")


def scored(task="classify", labels=NASTY, rows=40, seed=0):
    """Made-up rows of a task with made-up scores."""
    random = np.random.default_rng(seed)
    width = len(labels) or 1
    scores = random.random((rows, width)).astype(np.float32)
    if task == "classify":
        scores /= scores.sum(1, keepdims=True)
        truth = random.integers(0, width, rows)
        written = [labels[i] for i in truth]
    elif task == "multilabel":
        truth = (random.random((rows, width)) < 0.4).astype(np.float32)
        written = [",".join(label for label, on in zip(labels, row, strict=True) if on) for row in truth]
    else:
        scores, truth = scores[:, 0], random.random(rows).astype(np.float32)
        written = [repr(float(value)) for value in truth]
    texts = [f'row {i} <script>alert("{i}")</script>\r\n"x", $y$' for i in range(rows)]
    described = tuple(
        (f"a.csv, line {i + 2}", str(i), w, t) for i, (w, t) in enumerate(zip(written, texts, strict=True))
    )
    return Predictions(HeadConfig(task=task, labels=labels), described, truth, scores)


def finished(folder, found=None, history=HISTORY, **more):
    """The files of a finished run."""
    folder.mkdir(exist_ok=True)
    final = {"schema": 1, "task": found.head.task if found else "tag", "best": history[-1], "seconds": 2.0}
    (folder / "final_metrics.json").write_text(dumps(final | more), "utf-8")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(h) + "\n" for h in history), "utf-8")
    if found:
        tiny_bert(found.head.task, found.head.labels).save(folder)
        predictions.write(folder, found)
    return folder


class Page(HTMLParser):
    """Tables by the heading above them, pictures, and every tag."""

    def __init__(self, path):
        super().__init__()
        self.tables, self.images, self.tags, self.heading, self.inside = {}, [], set(), "", ""
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.inside = tag
        if tag == "img":
            self.images.append(dict(attrs)["src"])
        elif tag == "tr":
            self.tables.setdefault(self.heading, []).append([])
        elif tag in ("td", "th"):
            self.tables[self.heading][-1].append("")

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside == "h2":
            self.heading = data
        elif self.inside in ("td", "th"):
            self.tables[self.heading][-1][-1] += data


# === Predictions ===

SCORED = ("classify", "multilabel", "regress")


@pytest.mark.parametrize("task", SCORED)
def test_predictions_survive_their_file_to_the_bit(task, tmp_path):
    found = scored(task, NASTY if task != "regress" else ())
    predictions.write(tmp_path, found)
    again = predictions.load(tmp_path, found.head)
    assert again.rows == found.rows
    np.testing.assert_array_equal(again.truth, found.truth)
    np.testing.assert_array_equal(again.scores, found.scores)
    assert again.metrics() == found.metrics()


def test_a_broken_file_of_predictions_is_refused(tmp_path):
    found = scored()
    assert predictions.load(tmp_path, found.head) is None
    (tmp_path / predictions.PREDICTIONS_FILE).write_text("row,id,label,text\n1,2,3,4\n")
    with pytest.raises(CheckpointError, match=r"has no column score_a<b>.*--overwrite"):
        predictions.load(tmp_path, found.head)


@pytest.mark.parametrize("threshold", [0.5, 0.3, 0.8123])
@pytest.mark.parametrize(("task", "labels"), [("classify", ("0", "1")), ("classify", NASTY), ("multilabel", NASTY)])
def test_what_is_decided_is_what_the_head_answers(task, labels, threshold):
    """The same scores through the head that a model is exported with."""
    import dataclasses

    from keras_bert.tasks.network import HEADS

    bert, found = tiny_bert(task, labels), scored(task, labels, rows=300)
    head = HEADS[task](bert.network.encoder.config, dataclasses.replace(found.head, threshold=threshold))
    logits = np.log(found.scores) if task == "classify" else np.log(found.scores) - np.log1p(-found.scores)
    answer = head.answer(logits)
    decided = found.decided(threshold)
    wanted = answer["active"] if task == "multilabel" else answer["class_ids"][:, 0]
    np.testing.assert_array_equal(np.asarray(wanted), decided)
    if task == "classify":
        np.testing.assert_array_equal(np.asarray(answer["class_id"]), decided)
        np.testing.assert_allclose(
            found.kind.of_answers({k: np.asarray(v) for k, v in answer.items()}), found.scores, atol=1e-6
        )
        np.testing.assert_allclose(np.asarray(answer["score"]), found.scores[np.arange(300), decided], atol=1e-6)
    if len(labels) == 2:
        np.testing.assert_array_equal(decided, found.scores[:, 1] > np.float32(threshold))


# === The page ===


@pytest.mark.parametrize("task", SCORED)
def test_the_page_says_what_the_predictions_say_and_needs_nothing_else(task, tmp_path):
    pytest.importorskip("matplotlib", reason="pictures need matplotlib (pip install matplotlib)")
    labels = NASTY if task != "regress" else ()
    found = scored(task, labels)
    folder = finished(tmp_path / "run", found)
    assert report.write(folder) == ""
    page = Page(folder / "report.html")
    assert page.tags & {"script", "link", "iframe", "b"} == set()
    pictures = sorted(p.name for p in (folder / "report").iterdir())
    wanted = {"classify": ["confusion", "per_class", "reliability"], "multilabel": ["per_class", "reliability"]}
    assert pictures == sorted(f"{n}.png" for n in ["learning_curves", *wanted.get(task, ["scatter"])])
    assert len(page.images) == len(pictures)
    assert all(src.startswith("data:image/png;base64,") for src in page.images)
    assert all((folder / "report" / name).read_bytes()[:4] == b"\x89PNG" for name in pictures)
    assert [row[:2] for row in page.tables["Learning curves"]] == [
        ["epoch", "train_loss"],
        ["1", "0.7000"],
        ["2", "0.4000"],
    ]
    if task == "classify":
        counts = metrics.confusion(found.truth, found.scores.argmax(1), 3)
        assert page.tables["Confusion matrix"] == [
            ["", *NASTY],
            *([name, *map(str, row)] for name, row in zip(NASTY, counts.tolist(), strict=True)),
        ]
    if labels:
        truth = found.truth == 1 if task == "classify" else found.truth[:, 1]
        said = found.decided() == 1 if task == "classify" else found.decided()[:, 1]
        row = next(row for row in page.tables["Labels"] if row[0] == NASTY[1])
        hit = (truth * said).sum()
        assert row[1:3] == [f"{hit / said.sum():.4f}", f"{hit / truth.sum():.4f}"]
    worst = page.tables["Most wrong"][1:]
    assert len(worst) == 20
    by = [float(row[3]) for row in worst]
    assert by == sorted(by, reverse=True)
    assert by[0] == pytest.approx(found.wrong.max(), abs=1e-4)
    assert '<script>alert("' in worst[0][4], "shown as text"


def test_without_matplotlib_the_tables_stay_and_it_says_what_to_install(tmp_path, monkeypatch, capsys):
    folder = finished(tmp_path / "run", scored())
    (folder / "report").mkdir()
    (folder / "report/confusion.png").write_bytes(b"old")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["report", f"--model_dir={folder}", "--most_wrong=7", "--bins=2"]) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{folder / 'report.html'}\n"
    assert 'pip install "keras3-bert[plot]"' in shown.err
    page = Page(folder / "report.html")
    assert not page.images
    assert {"Learning curves", "Confusion matrix", "Labels", "Reliability", "Most wrong"} <= set(page.tables)
    assert (len(page.tables["Most wrong"]), len(page.tables["Reliability"])) == (8, 3)
    assert "keras3-bert[plot]" in (folder / "report.html").read_text("utf-8")
    assert not list((folder / "report").iterdir()), "a picture of another run is worse than none"


def test_other_tasks_and_runs_from_python_have_learning_curves_alone(tmp_path):
    folder = finished(tmp_path / "run")
    report.write(folder)
    assert set(Page(folder / "report.html").tables) == {"", "Learning curves"}


def test_many_labels_are_cut_to_the_most_frequent(tmp_path):
    labels = tuple(f"label {i}" for i in range(60))
    found = scored(labels=labels, rows=500)
    folder = finished(tmp_path / "run", found)
    report.write(folder)
    page = Page(folder / "report.html")
    assert len(page.tables["Confusion matrix"]) == 41
    assert len(page.tables["Labels"]) == 62


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "final_metrics.json").unlink(), "has no final_metrics.json; only a run that is finished"),
        (lambda f: (f / "final_metrics.json").write_text("{"), "final_metrics.json: cannot be read"),
        (lambda f: (f / "metrics.jsonl").write_text("x"), "metrics.jsonl: cannot be read"),
        (lambda f: (f / "eval_predictions.csv").write_text("row\n1\n"), "eval_predictions.csv, line 1: has no column"),
    ],
)
def test_a_broken_run_has_no_report(spoil, message, tmp_path, capsys):
    folder = finished(tmp_path / "run", scored())
    spoil(folder)
    assert main(["report", f"--model_dir={folder}"]) == 5
    assert re.search(f"keras-bert report: error: .*{message}", capsys.readouterr().err)
    assert not (folder / "report.html").exists()


def test_a_grid_and_nothing_are_refused(tmp_path, capsys):
    (tmp_path / "final_metrics.json").write_text('{"best_run": "seed=1"}')
    assert main(["report", f"--model_dir={tmp_path}"]) == 2
    assert "is a grid; name one of its runs" in capsys.readouterr().err
    assert main(["report", f"--model_dir={tmp_path / 'none'}"]) == 5
    assert "none: does not exist" in capsys.readouterr().err
