"""What predict, evaluate and export can change of how a model answers."""

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from keras_bert.checkpoints.checkpoints import Checkpoint, as_trained, check_segments, open_checkpoint
from keras_bert.cli.flags import Flags, add_opening, kept_keys, names_of, note
from keras_bert.config import (
    TASKS,
    DataConfig,
    HeadConfig,
    WindowConfig,
    from_dict,
    tasks_with,
)
from keras_bert.data.labels import split_labels
from keras_bert.errors import ConfigError
from keras_bert.training.states import finished

KINDS = (WindowConfig, HeadConfig)
LEAVE_OUT = ("dropout", "version_2_with_negative")
OF_TRAINING = (
    "layers",
    "head_lstm",
    "pooling",
    "normalize",
    "objective",
    "similarity_scale",
    "max_score",
    "activation",
)
"""What a run was trained with; with --task it can be chosen."""
COLUMNS = ("text_column", "text_pair_column", "label_column")


def add_task(flags: Flags) -> None:
    """The flags of what is asked of a checkpoint that is no run of ours."""
    flags.add(
        "task",
        "",
        "What the head of a published model is for, where its files do not say; or what a pretrained one is asked.",
        ("", *TASKS),
    )
    flags.add("labels", "", "Names of the logits of a published head in their order, comma separated.")
    flags.add("text_column", "", "Column that holds the text, of a checkpoint that does not say; default: text.")
    flags.add("text_pair_column", "", "Likewise of the second text; default: text_pair where the input has it.")
    flags.add("label_column", "", "Likewise of the label, for `evaluate`; default: label.")
    flags.add("max_seq_length", 0, "Longest row in tokens of a checkpoint that is no run; default: what its files say.")
    add_opening(flags)


def opened(flags: Flags, path: str) -> Checkpoint:
    """The checkpoint with the head that it has, or without one if it is asked what it was pretrained for.

    Raises:
        CheckpointError: it is a pretrained one, and no task was given.
        ConfigError: a flag has no meaning with it.
    """
    found = _found(flags, path)
    given = [name for name in ("task", "labels", *COLUMNS, "max_seq_length", *OF_TRAINING) if flags.given(name)]
    if flags["max_seq_length"] < 0:
        raise ConfigError(f"--max_seq_length must be 0 or more, got {flags['max_seq_length']}")
    if found.head is None:
        return (
            found if pretrained_task(flags, found) else as_trained(found, flags["task"], split_labels(flags["labels"]))
        )
    own = [name for name in given if name not in COLUMNS or found.data is not None]
    own = [name for name in own if name != "task" or flags["task"] != found.head.task]
    if own:
        raise ConfigError(
            f"--{own[0]}: {found.path} was trained for {found.head.task} and has its own; the flag is for checkpoints "
            "that do not say"
        )
    return found


def _found(flags: Flags, path: str) -> Checkpoint:
    """The checkpoint; without its head where that is a setting alone, such as a pooling, and another task is asked."""
    found = open_checkpoint(path, kept_keys(flags))
    head = found.head
    if head is None or not head.encoder_only or flags["task"] in ("", head.task):
        return found
    return dataclasses.replace(found, contents=dataclasses.replace(found.contents, head=None))


def pretrained_task(flags: Flags, found: Checkpoint) -> str:
    """What a checkpoint without a head of ours is asked that it was pretrained for; "" if its head is to answer."""
    if flags["task"]:
        return flags["task"] if flags["task"] in tasks_with(pretrained=True) else ""
    return "fill_mask" if found.contents.masked_words and not flags["labels"] else ""


def asked(flags: Flags, found: Checkpoint, columns: Collection[str] = ()) -> tuple[HeadConfig, DataConfig]:
    """What is asked of what `opened` gave, and the columns of the files.

    Args:
        columns: of the input, where it is a table; a second text among them is read if nothing says otherwise.
    """
    if found.head is None:
        task = pretrained_task(flags, found)
        return from_dict(HeadConfig, {"task": task} | flags.given_of(HeadConfig)), columns_of(flags, TASKS[task])
    head, said = found.head, found.data
    data = said if said is not None and not found.published else columns_of(flags, type(head), said)
    usual = DataConfig(text_pair_column="text_pair")
    may_read = not head.single and not head.encoder_only and head.reads == "row"
    is_open = found.contents.data is None and not data.text_pair_column and may_read
    if is_open and usual.text_pair_column in columns:
        data = dataclasses.replace(data, text_pair_column=usual.text_pair_column)
        check_segments(found.encoder, head, data)
        note(f"the column {usual.text_pair_column} is read as the second text of each row")
    check_segments(found.encoder, head, data)
    return head, data


def columns_of(flags: Flags, kind: type[HeadConfig], said: DataConfig | None = None) -> DataConfig:
    """The columns of files for a checkpoint that is no run: what flags, its files, and the task say, in this order."""
    usual = {"text_pair_column": "text_pair"} if kind.paired else {}
    own = {} if said is None else {name: getattr(said, name) for name in COLUMNS}
    return DataConfig(**usual | dict(kind.columns) | own | {name: flags[name] for name in COLUMNS if flags.given(name)})


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


def load(flags: Flags, paths: Sequence[str], data: DataConfig) -> Any:
    """The `Bert` of a run or another checkpoint, with the flags that were given instead of its own settings.

    Args:
        paths: what `members` gave; several answer with the mean of their scores.
        data: what `asked` gave.

    Raises:
        CheckpointError: the run is damaged.
    """
    from keras_bert.bert import Bert, Ensemble

    opening: dict[str, Any] = {"drop": flags["drop"], "keep_keys": kept_keys(flags)}
    first = _found(flags, paths[0])
    text: dict[str, Any] = {"max_seq_length": flags["max_seq_length"] or None}
    if first.head is None and pretrained_task(flags, first):
        return Bert.from_checkpoint(
            paths[0],
            task=pretrained_task(flags, first),
            data=data,
            head=flags.given_of(HeadConfig),
            windows=flags.given_of(WindowConfig),
            **opening,
            **text,
        )
    if first.head is None or first.data is None:
        said: dict[str, Any] = (
            {} if first.head is not None else {"task": flags["task"], "labels": split_labels(flags["labels"])}
        )
        berts = [Bert.load(paths[0], data=data, head=flags.given_of(HeadConfig), **said, **opening, **text)]
    else:
        berts = [Bert.load(path, **opening) for path in paths]
    bert = Ensemble(berts) if len(berts) > 1 else berts[0]
    head = bert.network.head
    bert.windows = dataclasses.replace(bert.windows, **flags.given_of(WindowConfig))
    head.config = dataclasses.replace(head.config, **flags.given_of(type(head.config)))
    return bert
