"""`keras-bert finetune --grid="learning_rate=2e-5,5e-5;seed=1,2,3"`: a run for each combination, and which is best.

Each is a run in a directory of MODEL_DIR that is named by its values. `results.csv` has a line for each run,
`summary.csv` one for each setting with mean and standard deviation over its seeds, the best first; `final_metrics.json`
names the best.
"""

import itertools
import re
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keras_bert.cli import model_dir
from keras_bert.cli.flags import Flags, note
from keras_bert.cli.model_dir import RESULTS_FILE, SUMMARY_FILE
from keras_bert.cli.one_run import Setup
from keras_bert.config import dumps
from keras_bert.errors import ConfigError, DivergedError, Stopped
from keras_bert.files import write_atomic
from keras_bert.report.predictions import as_csv
from keras_bert.training.states import FINAL_FILE, finished, locked

FIXED = ("grid", "help", "model_dir", "overwrite", "dry_run", "max_time", "task", "labels", "train_file", "eval_file")
"""Flags that runs of a grid have in common, so that they can be compared."""

UNSAFE = re.compile(r"[^-+.\w]")


@dataclass(frozen=True)
class Combination:
    """One run of a grid: the values of its flags, and its directory."""

    values: dict[str, str]
    folder: Path


def combinations(spec: str, known: Flags, folder: Path) -> list[Combination]:
    """All combinations of `name=value,...;name=value,...`.

    Raises:
        ConfigError: a name that is no flag or cannot vary, no value, or one that is there twice.
    """
    choices: dict[str, list[str]] = {}
    for part in filter(None, (part.strip() for part in spec.split(";"))):
        name, _, listed = (piece.strip() for piece in part.partition("="))
        values = [value.strip() for value in listed.split(",")]
        if name not in known.values or name in FIXED:
            raise ConfigError(f"--grid: {name!r} is no flag that can vary")
        if not all(values) or len(set(values)) < len(values) or name in choices:
            raise ConfigError(f"--grid: {part!r} must be a flag and its values, each once, such as seed=1,2,3")
        choices[name] = values
    if not choices:
        raise ConfigError(f"--grid: {spec!r} has no values, such as seed=1,2,3")
    found = []
    for chosen in itertools.product(*choices.values()):
        pairs = dict(zip(choices, chosen, strict=True))
        found.append(Combination(pairs, folder / ",".join(f"{k}={UNSAFE.sub('_', v)}" for k, v in pairs.items())))
    if len({one.folder for one in found}) < len(found):
        raise ConfigError("--grid: two values would name the same directory; give one of them another name")
    return found


def run(
    flags: Flags,
    argv: list[str],
    define: Callable[[], Flags],
    settle: Callable[[Flags], Setup],
    run_one: Callable[[Setup], dict[str, Any]],
) -> dict[str, Any]:
    """Train what is not trained yet, then compare; returns what `final_metrics.json` holds.

    Raises:
        ConfigError: the grid, or one of its combinations, cannot be used; nothing was trained.
    """
    folder, begun = Path(flags["model_dir"]), time.monotonic()
    grid = combinations(flags["grid"], flags, folder)

    def setup(one: Combination, *more: str) -> Setup:
        given, made = [f"--{name}={value}" for name, value in one.values.items()], define()
        made.parse([*argv, "--grid=", f"--model_dir={one.folder}", *given, *more])
        return settle(made)

    plans = [setup(one) for one in grid]
    found_out = plans[0].found_out
    model_dir.check(folder, flags, found_out)
    from keras_bert.tasks.network import HEADS
    from keras_bert.training.devices import strategy_for, worker

    chief = worker(strategy_for(plans[0].config))[0] == 0 and not flags["dry_run"]
    with ExitStack() as stack:
        if chief:
            stack.enter_context(locked(folder))
            model_dir.prepare(folder, flags, found_out)
        for number, one in enumerate(grid, 1):
            if finished(one.folder) is not None:
                continue
            left = flags["max_time"] and flags["max_time"] - (time.monotonic() - begun)
            if left < 0:
                raise Stopped(f"stopped by the time limit; the same command goes on in {folder}", 75)
            note(f"run {number} of {len(grid)}: {one.folder.name}")
            try:
                run_one(setup(one, f"--max_time={left}"))
            except DivergedError as error:
                note(f"warning: {one.folder.name}: {error}; the other runs go on")
        if not chief:
            return {}
        metric = HEADS[flags["task"]].best_metric
        results = [(one, measured(one.folder)) for one in grid]
        settings = summary(results, metric)
        if not settings:
            raise DivergedError("all runs of the grid diverged; lower the learning rate")
        write_atomic(folder / RESULTS_FILE, results_table(results))
        write_atomic(folder / SUMMARY_FILE, as_csv(*table(settings, metric)))
        best = settings[0]
        final = {
            "schema": 1,
            "task": flags["task"],
            "metric": metric,
            "best_run": best["best_run"],
            "best": {name: best[name] for name in ("settings", "mean", "std", "runs")},
            "settings": settings,
        }
        write_atomic(folder / FINAL_FILE, dumps(final))
    print(aligned(*table(settings, metric)), flush=True)
    note(f"the best {metric} on average; its best run is {folder / best['best_run']}; see {folder / RESULTS_FILE}")
    return final


def measured(folder: Path) -> dict[str, float]:
    """The metrics of a run, or the means over its folds; none where it diverged."""
    final = finished(folder)
    if final is None:
        return {}
    values = final["mean"] if "mean" in final else final["best"]
    found = {name: value for name, value in values.items() if isinstance(value, float) and name != "seconds"}
    return found | {"seconds": final["seconds"]}


def summary(results: list[tuple[Combination, dict[str, float]]], metric: str) -> list[dict[str, Any]]:
    """What each setting comes to over its seeds, the best mean first; runs that diverged count as missing."""
    by_setting: dict[tuple[tuple[str, str], ...], list[tuple[str, float]]] = {}
    for one, values in results:
        setting = tuple((name, value) for name, value in one.values.items() if name != "seed")
        if metric in values:
            by_setting.setdefault(setting, []).append((one.folder.name, values[metric]))
    found = []
    for setting, runs in by_setting.items():
        reached = np.array([value for _, value in runs], np.float64)
        spread = float(reached.std(ddof=1)) if len(reached) > 1 else 0.0
        best = max(runs, key=lambda run: run[1])[0]
        found.append(
            {
                "settings": dict(setting),
                "runs": len(runs),
                "mean": float(reached.mean()),
                "std": spread,
                "best_run": best,
            }
        )
    return sorted(found, key=lambda one: -one["mean"])


def results_table(results: list[tuple[Combination, dict[str, float]]]) -> str:
    """The content of `results.csv`."""
    measures = list(dict.fromkeys(name for _, values in results for name in values))
    lines = (
        [one.folder.name, *one.values.values(), *(values.get(name, "") for name in measures)] for one, values in results
    )
    return as_csv(["run", *results[0][0].values, *measures], lines)


def table(settings: list[dict[str, Any]], metric: str) -> tuple[list[str], list[list[Any]]]:
    """Header and lines of the summary."""
    names = list(settings[0]["settings"])
    lines = [[*one["settings"].values(), one["runs"], one["mean"], one["std"], one["best_run"]] for one in settings]
    return [*names, "runs", f"{metric}_mean", f"{metric}_std", "best_run"], lines


def aligned(header: list[str], lines: list[list[Any]]) -> str:
    """A table for people."""
    cells = [header, *([f"{v:.4f}" if isinstance(v, float) else str(v) for v in line] for line in lines)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    return "\n".join("  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in cells)
