"""What people look at after a run: one HTML page that needs nothing else, and its pictures as PNG files.

`write(folder)` reads what a run leaves behind (`final_metrics.json`, `metrics.jsonl`, `eval_predictions.csv`, those of
its folds too) and writes `report.html` and `report/*.png`. Pictures need matplotlib; the tables beside them do not.
"""

import base64
import dataclasses
import html
import io
import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keras_bert.checkpoints.checkpoints import open_checkpoint
from keras_bert.errors import CheckpointError
from keras_bert.files import replacing, write_atomic
from keras_bert.report import predictions
from keras_bert.report.predictions import Predictions
from keras_bert.tasks import metrics
from keras_bert.training.states import FINAL_FILE, METRICS_FILE, finished

REPORT_FILE, PICTURES = "report.html", "report"
WITHOUT_PICTURES = 'There are no pictures because matplotlib is not installed: pip install "keras3-bert[plot]", then '
MOST_LABELS, LONGEST = 40, 400
"""Labels in a confusion matrix, characters of an example."""

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0; font-size: 13px }
th, td { border: 1px solid #ccc; padding: .2em .6em; text-align: right; vertical-align: top }
th:first-child, td:first-child, td.text { text-align: left }
td.text { overflow-wrap: anywhere; max-width: 36em }
img { max-width: 100% }
"""


@dataclass(frozen=True)
class Run:
    """What a run left behind.

    Attributes:
        final: `final_metrics.json`.
        histories: the records of all rounds by the name of the run; several where there are folds.
        found: the rows that were judged, where the task gives scores to rows.
        most_wrong: examples that are shown.
        bins: of the reliability curve.
    """

    folder: Path
    final: dict[str, Any]
    histories: dict[str, list[dict[str, Any]]]
    found: Predictions | None
    most_wrong: int = 20
    bins: int = 15


def load(folder: Path) -> Run:
    """Read a finished run, or the folds of one.

    Raises:
        CheckpointError: it is not finished, or something in it is broken.
    """
    final = finished(folder)
    if final is None:
        raise CheckpointError(f"{folder}: has no {FINAL_FILE}; only a run that is finished has a report")
    parts = [folder / name for name in final.get("folds", [])] or [folder]
    histories = {part.name: history(part) for part in parts}
    if "task" not in final or (parts == [folder] and not (folder / predictions.PREDICTIONS_FILE).exists()):
        return Run(folder, final, histories, None)
    heads = [open_checkpoint(part).head for part in parts]
    found = [predictions.load(part, head) for part, head in zip(parts, heads, strict=True) if head is not None]
    pooled = [one for one in found if one is not None]
    return Run(folder, final, histories, predictions.join(pooled) if pooled else None)


def history(folder: Path) -> list[dict[str, Any]]:
    """The records of `metrics.jsonl`.

    Raises:
        CheckpointError: it is absent or broken.
    """
    path = folder / METRICS_FILE
    try:
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error


def write(folder: str | Path, most_wrong: int = 20, bins: int = 15) -> str:
    """Write `report.html` and `report/*.png` of a run; returns what is missing in them, or "".

    Args:
        most_wrong, bins: see `Run`.

    Raises:
        CheckpointError: the run is not finished or broken.
    """
    run = dataclasses.replace(load(Path(folder)), most_wrong=most_wrong, bins=bins)
    figure = figures()
    sections = [section for make in SECTIONS for section in make(run)]
    body = [summary(run)]
    if figure is None:
        body.append(f"<p>{html.escape(WITHOUT_PICTURES)}<code>keras-bert report --model_dir=...</code></p>")
    target = run.folder / PICTURES
    for old in target.glob("*.png"):
        old.unlink()
    for section in sections:
        body.append(f"<h2>{html.escape(section.title)}</h2>\n<p>{html.escape(section.about)}</p>")
        if figure is not None and section.draw is not None:
            target.mkdir(exist_ok=True)
            picture = drawn(figure, section.draw, section.size)
            with replacing(target / f"{section.name}.png") as temporary:
                Path(temporary).write_bytes(picture)
            data = base64.b64encode(picture).decode("ascii")
            body.append(f'<img alt="{html.escape(section.title)}" src="data:image/png;base64,{data}">')
        body.append(section.table)
    title = f"keras-bert: {run.final.get('task', 'training')}, {run.folder.absolute().name}"
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>\n'
        f"<style>{STYLE}</style></head>\n<body>\n<h1>{html.escape(title)}</h1>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )
    write_atomic(run.folder / REPORT_FILE, page)
    return "" if figure is not None else 'no pictures: pip install "keras3-bert[plot]", then keras-bert report'


# === Sections ===


@dataclass(frozen=True)
class Section:
    """A part of the page: words, a picture that is drawn into matplotlib axes, and a table as HTML."""

    name: str
    title: str
    about: str
    table: str
    draw: Callable[[Any], None] | None = None
    size: tuple[float, float] = (6.0, 4.0)


def summary(run: Run) -> str:
    """What the run came to, as a table."""
    final = run.final
    rows: list[list[Any]] = [
        [name, final[name]] for name in ("task", "train_rows", "eval_rows", "seconds") if name in final
    ]
    best = final.get("mean") or final.get("best") or {}
    error = final.get("standard_error", {})
    for name, value in best.items():
        if isinstance(value, int | float) and name != "seconds":
            rows.append([name, f"{number(value)} ± {number(error[name])}" if name in error else value])
    for name, value in (final.get("out_of_fold") or {}).items():
        rows.append([f"out of fold: {name}", value])
    for name, value in (final.get("threshold") or {}).items():
        rows.append([f"threshold: {name}", value])
    return table(["", ""], rows)


def learning_curves(run: Run) -> Iterable[Section]:
    """Losses and metrics after each round."""
    longest = max(run.histories.values(), key=len)
    if not longest:
        return
    x = "epoch" if "epoch" in longest[0] else "step"
    names = [k for k, v in longest[0].items() if isinstance(v, float) and k != "seconds"]
    losses = [name for name in names if name.endswith("loss")]
    charts = [chart for chart in (losses, [n for n in names if n not in losses]) if chart]

    def draw(figure: Any) -> None:
        axes = figure.subplots(1, len(charts), squeeze=False)[0]
        for axis, chart in zip(axes, charts, strict=True):
            for number, name in enumerate(chart):
                for which, records in enumerate(run.histories.values()):
                    points = [(r[x], r[name]) for r in records if name in r]
                    label = name if which == 0 else None
                    axis.plot(*zip(*points, strict=True), marker=".", color=f"C{number % 10}", label=label, alpha=0.8)
            axis.set_xlabel(x)
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.legend(fontsize=8)
            axis.grid(alpha=0.3)

    header = [*["run"] * (len(run.histories) > 1), x, *names]
    rows = [
        [*[name] * (len(run.histories) > 1), *(record.get(n, "") for n in (x, *names))]
        for name, records in run.histories.items()
        for record in records
    ]
    about = "After each round; a line for each fold." if len(run.histories) > 1 else "After each round."
    yield Section("learning_curves", "Learning curves", about, table(header, rows), draw, (5.0 * len(charts), 3.5))


def confusion(run: Run) -> Iterable[Section]:
    """The confusion matrix of a classification, of its most frequent labels where there are many."""
    found = run.found
    if found is None or not found.kind.exclusive:
        return
    labels = found.head.labels
    counts = metrics.confusion(found.truth, found.decided(), len(labels))
    shown = np.sort(np.argsort(-(counts.sum(1) + counts.sum(0)), kind="stable")[:MOST_LABELS])
    names, part = [labels[i] for i in shown], counts[np.ix_(shown, shown)]

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        axis.imshow(part / np.maximum(part.sum(1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
        ticks(axis, names, names)
        axis.set_xlabel("answer")
        axis.set_ylabel("label")
        if len(names) <= 15:
            for (i, j), count in np.ndenumerate(part):
                dark = count > part[i].sum() / 2
                axis.text(j, i, str(count), ha="center", va="center", color="white" if dark else "black", fontsize=8)

    about = "Rows are labels, columns are answers; colours are shares of the label."
    if len(labels) > MOST_LABELS:
        about += f" The {MOST_LABELS} most frequent of {len(labels)} labels."
    rows = [[name, *line] for name, line in zip(names, part.tolist(), strict=True)]
    side = min(2.5 + 0.5 * len(names), 12.0)
    yield Section("confusion", "Confusion matrix", about, table(["", *names], rows), draw, (side, side))


def per_class(run: Run) -> Iterable[Section]:
    """Precision, recall, F1 and number of rows of each label."""
    found = run.found
    if found is None or not found.head.labels:
        return
    decided, labels = found.decided(), found.head.labels
    if found.kind.exclusive:
        each = metrics.per_class(metrics.confusion(found.truth, decided, len(labels)))
    else:
        tables = [
            metrics.confusion(t, d, 2) for t, d in zip(found.truth.T.astype(int), decided.T.astype(int), strict=True)
        ]
        each = {
            name: np.array([metrics.per_class(t)[name][1] for t in tables]) for name in ("precision", "recall", "f1")
        }
        each["support"] = found.truth.sum(0).astype(int)
    rows = [[label, *(each[name][i].item() for name in each)] for i, label in enumerate(labels)]
    rows.append(
        ["macro mean", *(each[name].mean() for name in ("precision", "recall", "f1")), int(each["support"].sum())]
    )
    shown = np.argsort(-each["support"], kind="stable")[:MOST_LABELS][::-1]

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        axis.barh(range(len(shown)), each["f1"][shown])
        ticks(axis, None, [labels[i] for i in shown])
        axis.set_xlim(0, 1)
        axis.set_xlabel("f1")

    size = (6.0, min(1.2 + 0.3 * len(shown), 12.0))
    yield Section("per_class", "Labels", "Of each label.", table(["label", *each], rows), draw, size)


def calibration(run: Run) -> Iterable[Section]:
    """Reliability curve, and the expected calibration error (Guo et al. 2017, https://arxiv.org/abs/1706.04599)."""
    found = run.found
    if found is None or not found.head.labels:
        return
    if found.kind.exclusive:
        best = found.scores.argmax(1)
        sure, right = found.scores.max(1), best == found.truth
        what = "the best label's score, against the share of rows where it is right"
    else:
        sure, right = found.scores.reshape(-1), found.truth.reshape(-1)
        what = "the score of a label, against the share of rows that have it"
    bins, error = metrics.reliability(sure, right, run.bins)

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        axis.plot([0, 1], [0, 1], color="grey", linestyle=":")
        axis.plot(bins["sure"], bins["right"], marker="o")
        for x, y, count in zip(bins["sure"], bins["right"], bins["count"], strict=True):
            axis.annotate(str(count), (x, y), textcoords="offset points", xytext=(4, -10), fontsize=7)
        axis.set(xlim=(0, 1), ylim=(0, 1), xlabel="score", ylabel="share that is right")

    about = f"Is a score of 0.8 right in 8 of 10 cases? Here: {what}. Expected calibration error {error:.4f}."
    rows = zip(*(values.tolist() for values in bins.values()), strict=True)
    yield Section("reliability", "Reliability", about, table(["score", "right", "rows"], rows), draw, (4.5, 4.5))


def scatter(run: Run) -> Iterable[Section]:
    """Numbers that were to be found, against those that were."""
    found = run.found
    if found is None or not found.kind.numeric:
        return

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        axis.scatter(found.truth, found.scores, s=6, alpha=0.5)
        ends = [float(min(found.truth.min(), found.scores.min())), float(max(found.truth.max(), found.scores.max()))]
        axis.plot(ends, ends, color="grey", linestyle=":")
        axis.set(xlabel="label", ylabel="answer")

    rows = [[name, value] for name, value in found.metrics().items()]
    yield Section("scatter", "Labels and answers", "A point for each row.", table(["", ""], rows), draw, (4.5, 4.5))


def most_wrong(run: Run) -> Iterable[Section]:
    """The rows whose right answer scored least: hard ones, and wrong labels."""
    found = run.found
    if found is None:
        return
    worst = np.argsort(-found.wrong, kind="stable")[: run.most_wrong]
    said = found.take(worst)
    answers = said.said(said.decided())
    rows = []
    for (where, _, label, *texts), answer, wrong in zip(said.rows, answers, said.wrong, strict=True):
        rows.append([where, label, answer, float(wrong), " | ".join(short(t, LONGEST) for t in texts)])
    about = "Where the right answer scored least, worst first: hard rows, and labels that may be wrong."
    yield Section(
        "most_wrong", "Most wrong", about, table(["row", "label", "answer", "wrong by", "text"], rows, (1, 2, 4))
    )


SECTIONS: tuple[Callable[[Run], Iterable[Section]], ...] = (
    learning_curves,
    confusion,
    per_class,
    calibration,
    scatter,
    most_wrong,
)
"""The parts of the page, in their order; each says by itself whether a run has it."""


# === Tables and pictures ===


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], texts: Sequence[int] = ()) -> str:
    """An HTML table; columns `texts` are set as text."""
    lines = ["<table>"]
    if any(header):
        lines.append("<tr>" + "".join(f"<th>{html.escape(name)}</th>" for name in header) + "</tr>")
    for row in rows:
        opened = ('<td class="text">' if i in texts else "<td>" for i in range(len(row)))
        cells = (f"{tag}{html.escape(number(value))}</td>" for tag, value in zip(opened, row, strict=True))
        lines.append("<tr>" + "".join(cells) + "</tr>")
    return "\n".join([*lines, "</table>"])


def number(value: Any) -> str:
    """A value as it is shown."""
    if isinstance(value, float):
        return f"{value:.4f}" if 1e-3 <= abs(value) < 1e5 or value == 0 else f"{value:.3g}"
    return ", ".join(map(number, value)) if isinstance(value, list) else str(value)


def figures() -> Any:
    """matplotlib's `Figure`, or None where it is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    return Figure


def drawn(figure: Any, draw: Callable[[Any], None], size: tuple[float, float]) -> bytes:
    """A PNG file."""
    canvas, out = figure(figsize=size, layout="constrained"), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a letter that the font does not have becomes a box
        draw(canvas)
        canvas.savefig(out, format="png", dpi=110, metadata={"Software": None})
    return out.getvalue()


def ticks(axis: Any, x: Sequence[str] | None, y: Sequence[str]) -> None:
    """Labels along the axes, as they are: `$` begins no formula."""
    names = [short(name, 24) for name in y]
    axis.set_yticks(range(len(y)), names, fontsize=8, parse_math=False)
    if x is not None:
        axis.set_xticks(range(len(x)), names, fontsize=8, rotation=60, ha="right", parse_math=False)


def short(text: str, most: int) -> str:
    """The text in one line of at most `most` characters."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 3]}..."
