"""The directory of a run, as commands see it: which run may use it, and what is recorded there."""

import contextlib
import os
import re
import shutil
from pathlib import Path

from keras_bert.checkpoints.checkpoints import CONFIG_FILE, VOCABULARY_FILE, WEIGHTS_FILE
from keras_bert.cli.flags import Flags, names_of
from keras_bert.config import RunConfig
from keras_bert.errors import ConfigError
from keras_bert.files import write_atomic
from keras_bert.report.predictions import PREDICTIONS_FILE
from keras_bert.report.report import PICTURES, REPORT_FILE
from keras_bert.training.states import FINAL_FILE, LOCK_FILE, METRICS_FILE, STATES

FLAGS_FILE, OUT_OF_FOLD_FILE, RESULTS_FILE, SUMMARY_FILE = "flags.txt", "oof.csv", "results.csv", "summary.csv"
RUN_FILES = (
    *(FLAGS_FILE, CONFIG_FILE, VOCABULARY_FILE, WEIGHTS_FILE, METRICS_FILE, FINAL_FILE, PREDICTIONS_FILE, REPORT_FILE),
    *(OUT_OF_FOLD_FILE, RESULTS_FILE, SUMMARY_FILE),
)
RUN_FOLDERS = (STATES, "tensorboard", PICTURES)
RUNS_BELOW = re.compile(r"fold_\d+|[a-z_0-9]+=.*")
"""Names of the runs that a run with folds, or a grid, is made of."""
PASSING = ("overwrite", "model_dir", *names_of(RunConfig))
"""Flags that do not tell one run from another."""


def check(folder: Path, flags: Flags, found_out: tuple[str, ...] = ()) -> None:
    """Refuse, before any work, a directory that cannot take this run; nothing is touched.

    Args:
        found_out: flags whose default is not a value but found out; they count only where they were given.

    Raises:
        ConfigError: it is a file, cannot be written, or holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--model_dir {folder}: is a file; name a directory")
    parent = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not parent.is_dir():
        raise ConfigError(f"--model_dir {folder}: {parent} is a file")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigError(f"--model_dir {folder}: no permission to write in {parent}")
    if not folder.exists() or all(path.name.startswith(".") for path in folder.iterdir()):
        return
    if not (folder / FLAGS_FILE).exists():
        raise ConfigError(f"--model_dir {folder}: is not empty and holds no run; name another directory")
    if flags["overwrite"]:
        return
    then = set((folder / FLAGS_FILE).read_text("utf-8", errors="replace").splitlines())
    now = set(own_flags(flags, found_out).splitlines())
    now -= set(flags.at_default({line.partition("=")[0] for line in then}))  # flags that are newer than the run
    if now != then:
        changes = (("now", now - then), ("then", then - now))
        said = ", ".join(f"{when} {' '.join(sorted(lines))}" for when, lines in changes if lines)
        raise ConfigError(
            f"--model_dir {folder}: holds a run with other flags ({said}); name another directory, or --overwrite"
        )


def prepare(folder: Path, flags: Flags, found_out: tuple[str, ...] = ()) -> None:
    """Make the directory, delete an old run if that was asked for, and record the flags."""
    if flags["overwrite"] and folder.exists():
        clear(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / FLAGS_FILE, own_flags(flags, found_out))


def clear(folder: Path) -> None:
    """Delete a run, and the runs that it is made of; what else is there stays."""
    for name in RUN_FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in RUN_FILES:
        (folder / name).unlink(missing_ok=True)
    for below in folder.iterdir():
        if RUNS_BELOW.fullmatch(below.name) and below.is_dir():
            clear(below)
            (below / LOCK_FILE).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # somebody else's files are there too
                below.rmdir()


def own_flags(flags: Flags, found_out: tuple[str, ...] = ()) -> str:
    """What tells one run from another, and repeats it, in the form that `--flagfile` reads."""
    return flags.resolved((*PASSING, *(name for name in found_out if not flags.given(name))))
