"""What predict, evaluate and export can change of how a model answers."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keras_bert.checkpoints.checkpoints import Checkpoint, open_checkpoint
from keras_bert.cli.flags import Flags, names_of
from keras_bert.config import (
    TASKS,
    DataConfig,
    HeadConfig,
    WindowConfig,
    choose,
    from_dict,
    tasks_with,
)
from keras_bert.errors import CheckpointError, ConfigError
from keras_bert.training.states import finished

KINDS = (WindowConfig, HeadConfig)
LEAVE_OUT = ("dropout", "version_2_with_negative")
OF_TRAINING = ("layers", "head_lstm", "pooling", "normalize", "objective", "similarity_scale", "max_score")
"""What a run was trained with; with --task it can be chosen."""


def add_task(flags: Flags) -> None:
    """The flags of what is asked of a pretrained checkpoint."""
    flags.add(
        "task",
        "",
        "Ask a pretrained checkpoint in --model_dir, without fine-tuning.",
        ("", *tasks_with(pretrained=True)),
    )
    flags.add("text_column", "", "With --task: column that holds the text; default: text.")
    flags.add("text_pair_column", "", "With --task=similarity: column of the second text; default: text_pair.")
    flags.add("label_column", "", "With --task=similarity: column of the score, for `evaluate`; default: label.")
    flags.add("max_seq_length", 0, "With --task: longest row in tokens; default: that of the checkpoint.")


def asked(flags: Flags, checkpoint: Checkpoint) -> tuple[HeadConfig, DataConfig]:
    """What is asked, and the columns of the files: what a run says, or of a pretrained checkpoint what the flags say.

    Raises:
        CheckpointError: the checkpoint is a pretrained one, and no task was given.
        ConfigError: the run was trained for another task, or has columns and a length of its own.
    """
    names = ("text_column", "text_pair_column", "label_column", "max_seq_length", *OF_TRAINING)
    task, given = flags["task"], [name for name in names if flags.given(name)]
    if checkpoint.head is None or checkpoint.data is None:
        if not task:
            raise CheckpointError(
                f"{checkpoint.path}: is a pretrained checkpoint; run `keras-bert finetune` first, or ask it with "
                f"--task={'|'.join(tasks_with(pretrained=True))}"
            )
        if flags["max_seq_length"] < 0:
            raise ConfigError(f"--max_seq_length must be 0 or more, got {flags['max_seq_length']}")
        return from_dict(HeadConfig, {"task": task} | flags.given_of(HeadConfig)), columns(flags)
    if task not in ("", checkpoint.head.task) or given:
        raise ConfigError(
            f"--{given[0] if given else 'task'}: {checkpoint.path} was trained for {checkpoint.head.task} and has its "
            "own; the flag is for pretrained checkpoints"
        )
    return checkpoint.head, checkpoint.data


def columns(flags: Flags) -> DataConfig:
    """The columns of files for a pretrained checkpoint."""
    kind = choose(TASKS, flags["task"], "task")
    usual = {"text_pair_column": "text_pair"} if kind.paired else {}
    names = ("text_column", "text_pair_column", "label_column")
    return DataConfig(**usual | dict(kind.columns) | {name: flags[name] for name in names if flags[name]})


def check(flags: Flags) -> None:
    """Raises ConfigError where a value is out of its range; before anything is opened."""
    flags.config(WindowConfig)
    for task, kind in TASKS.items():  # which of them the task has is not known yet
        own = {name: flags[name] for name in names_of(kind) if name in flags.values}
        from_dict(kind, {"task": task} | own)


def suit(flags: Flags, task: str) -> None:
    """Raises ConfigError where a value does not suit the task."""
    flags.config(HeadConfig, task=task)


def members(path: str) -> list[str]:
    """The models that answer for a run directory: its own, or those of its folds.

    Raises:
        ConfigError: it is a grid of runs, which has no model of its own.
    """
    final = finished(Path(path)) or {}
    if "best_run" in final:
        raise ConfigError(f"--model_dir {path}: is a grid; name one of its runs, such as {path}/{final['best_run']}")
    return [str(Path(path) / name) for name in final.get("folds", [])] or [path]


def load(flags: Flags, paths: Sequence[str]) -> Any:
    """The `Bert` of a run or pretrained checkpoint, with the flags that were given instead of its own settings.

    Args:
        paths: what `members` gave; several answer with the mean of their scores.

    Raises:
        CheckpointError: the run is damaged.
    """
    from keras_bert.bert import Bert, Ensemble

    if flags["task"] and open_checkpoint(paths[0]).head is None:
        return Bert.from_checkpoint(
            paths[0],
            task=flags["task"],
            data=columns(flags),
            head=flags.given_of(HeadConfig),
            windows=flags.given_of(WindowConfig),
            max_seq_length=flags["max_seq_length"] or None,
        )
    berts = [Bert.load(path) for path in paths]
    bert = Ensemble(berts) if len(berts) > 1 else berts[0]
    head = bert.network.head
    bert.windows = dataclasses.replace(bert.windows, **flags.given_of(WindowConfig))
    head.config = dataclasses.replace(head.config, **flags.given_of(type(head.config)))
    return bert
