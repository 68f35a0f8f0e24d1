"""`keras-bert finetune --folds=K`: K models, each evaluated on the rows that it was not trained on.

Each is a run in MODEL_DIR/fold_1 and so on. MODEL_DIR has `oof.csv`, the scores of every row by the model that did not
see it, and `final_metrics.json` with what they come to: the mean and its standard error over the folds, the metrics of
all rows together, and with `--tune_threshold` what a threshold is worth that was chosen on these rows.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from keras_bert.checkpoints.checkpoints import CONFIG_FILE, Checkpoint, open_checkpoint
from keras_bert.checkpoints.formats.containers import WEIGHTS_FILE
from keras_bert.checkpoints.formats.settings import read_json
from keras_bert.cli import model_dir
from keras_bert.cli.flags import note
from keras_bert.cli.model_dir import OUT_OF_FOLD_FILE
from keras_bert.cli.one_run import Setup, in_a_line, train, write_report
from keras_bert.config import HeadConfig, dumps
from keras_bert.data.batches import Examples
from keras_bert.data.labels import learnt_head
from keras_bert.data.source import source_of
from keras_bert.data.splits import folds
from keras_bert.data.tables import Table
from keras_bert.errors import CheckpointError, DataError
from keras_bert.files import sha256, write_atomic
from keras_bert.report import predictions
from keras_bert.report.predictions import Predictions
from keras_bert.tasks import metrics
from keras_bert.training.states import FINAL_FILE, finished, locked


def split(setup: Setup, examples: Examples, head: HeadConfig) -> np.ndarray:
    """The fold of each row, int32 from 0; equal texts are in the same one.

    Raises:
        DataError: there are too few different texts.
        ConfigError: class weights cannot be had from the rows of one of the folds.
    """
    count, source, rows = setup.flags["folds"], source_of(head), examples.rows
    groups, strata = source.groups(rows, setup.data), source.strata(rows, setup.data)
    parts = folds(groups, strata, count, setup.config.seed)
    if len(set(parts.tolist())) < count:
        raise DataError(f"{rows.files[0]}: {len(set(groups))} different texts are too few for {count} folds")
    sizes = {label: strata.count(label) for label in head.labels} if source.stratified else {}
    few = [label for label, size in sizes.items() if size < count]
    if few:
        note(f"warning: not every fold has a row of the label {few[0]!r}, which only {sizes[few[0]]} rows have")
    for part in range(count):
        learnt_head(head, setup.finetune, examples.labels[parts != part])
    return parts


def run(
    setup: Setup, checkpoint: Checkpoint, examples: Examples, labels: tuple[str, ...], parts: np.ndarray
) -> dict[str, Any]:
    """Train what is not trained yet, then put it together; returns what `final_metrics.json` holds."""
    from keras_bert.training.devices import strategy_for, worker

    chief = worker(strategy_for(setup.config))[0] == 0 and not setup.keeping.dry_run
    folders = [setup.folder / f"fold_{i + 1}" for i in range(setup.flags["folds"])]
    with ExitStack() as stack:
        if chief:
            stack.enter_context(locked(setup.folder))
            model_dir.prepare(setup.folder, setup.flags, setup.found_out)
        for i, folder in enumerate(folders):
            if finished(folder) is None:
                note(f"fold {i + 1} of {len(folders)}")
                rest, held = np.flatnonzero(parts != i), np.flatnonzero(parts == i)
                train(setup, checkpoint, examples.take(rest), examples.take(held), labels, folder)
        if not chief:
            return {}
        rows = examples.rows
        found = collected(folders, rows, setup.data.label_column, parts)
        final = together(folders, found, parts, setup.flags["tune_threshold"])
        write_atomic(setup.folder / OUT_OF_FOLD_FILE, out_of_fold(setup, rows, found, parts))
        write_atomic(setup.folder / FINAL_FILE, dumps(final))
        write_report(setup.folder)
    print(said(final, found), flush=True)
    note(f"saved {len(folders)} models and {OUT_OF_FOLD_FILE} in {setup.folder}; predict and export average them")
    return final


def collected(folders: list[Path], rows: Table, label_column: str, parts: np.ndarray) -> Predictions:
    """What the models say of the rows that they were not trained on, in the order of the file.

    Raises:
        CheckpointError: a fold has no predictions, or they are of other rows.
    """
    found = []
    for i, folder in enumerate(folders):
        head = open_checkpoint(folder).head
        here = predictions.load(folder, head) if head else None
        wanted = [(rows.where(j), rows[label_column][j]) for j in np.flatnonzero(parts == i).tolist()]
        if here is None or [(row[0], row[2]) for row in here.rows] != wanted:
            raise CheckpointError(
                f"{folder}: its {predictions.PREDICTIONS_FILE} is not of the rows of {rows.files[0]}, which has "
                "changed since; start anew with --overwrite"
            )
        found.append(here)
    order = np.concatenate([np.flatnonzero(parts == i) for i in range(len(folders))])
    return predictions.join(found).take(np.argsort(order))


def together(folders: list[Path], found: Predictions, parts: np.ndarray, tune: bool) -> dict[str, Any]:
    """What the folds come to; a tuned threshold is written into their configurations too."""
    finals = [finished(folder) or {} for folder in folders]
    names = [k for k, v in finals[0]["best"].items() if isinstance(v, float) and k != "seconds"]
    values = {name: np.array([final["best"][name] for final in finals], np.float64) for name in names}
    final: dict[str, Any] = {
        "schema": 1,
        "task": found.head.task,
        "labels": list(found.head.labels),
        "folds": [folder.name for folder in folders],
        "train_rows": len(found),
        "mean": {name: float(v.mean()) for name, v in values.items()},
        "standard_error": {name: float(v.std(ddof=1) / np.sqrt(len(v))) for name, v in values.items()},
        "out_of_fold": found.metrics(0.5),
    }
    if tune:
        final["threshold"] = tuned(found, parts)
        for folder in folders:
            store_threshold(folder, final["threshold"]["threshold"])
    final["best"] = [one["best"] for one in finals]
    final["seconds"] = round(sum(one["seconds"] for one in finals), 2)
    final["weights_sha256"] = [sha256(folder / WEIGHTS_FILE) for folder in folders]
    return final


def tuned(found: Predictions, parts: np.ndarray) -> dict[str, Any]:
    """The threshold with the best F1 of all rows, and what it is worth.

    `f1_at_half` is without it; `f1_tuned` flatters, as the threshold was chosen on the same rows; `f1_nested` is
    honest: the threshold of each fold was chosen on the others.
    """
    truth, scores = found.hits
    best, nested = metrics.f1_threshold(truth, scores), metrics.nested_thresholds(truth, scores, parts)
    return {
        "threshold": best,
        "f1_at_half": found.metrics(0.5)["f1"],
        "f1_tuned": found.metrics(best)["f1"],
        "f1_nested": found.metrics(nested)["f1"],
        "thresholds_nested": [float(nested[parts == i][0]) for i in range(parts.max() + 1)],
    }


def store_threshold(folder: Path, threshold: float) -> None:
    """Let the model of a run answer from this score on."""
    content = read_json(folder / CONFIG_FILE)
    content["head"]["threshold"] = threshold
    write_atomic(folder / CONFIG_FILE, dumps(content))


def out_of_fold(setup: Setup, rows: Table, found: Predictions, parts: np.ndarray) -> str:
    """The content of `oof.csv`: id, label, scores, and the fold that a row was held out in."""
    data = setup.data
    ids = rows.columns.get(data.id_column)
    header = [*([data.id_column] if ids else []), data.label_column, *found.kind.columns, "fold"]
    scores = found.scores.reshape(len(found), -1).tolist()
    lines = (
        [*([ids[i]] if ids else []), rows[data.label_column][i], *scores[i], int(parts[i]) + 1]
        for i in range(len(found))
    )
    return predictions.as_csv(header, lines)


def said(final: dict[str, Any], found: Predictions) -> str:
    """What people read at the end."""
    lines = []
    if found.kind.exclusive:
        lines.append(metrics.table(found.truth, found.decided(0.5), found.head.labels))
    lines.append("out of fold: " + in_a_line(final["out_of_fold"]))
    pairs = ((name, value, final["standard_error"][name]) for name, value in final["mean"].items())
    lines.append("folds: " + "  ".join(f"{name} {value:.4f} ± {error:.4f}" for name, value, error in pairs))
    if "threshold" in final:
        lines.append("threshold: " + in_a_line(final["threshold"]))
    return "\n".join(lines)
