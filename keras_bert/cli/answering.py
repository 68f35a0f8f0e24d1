"""What predict, evaluate and export can change of how a model answers."""

import dataclasses
from pathlib import Path
from typing import Any

from keras_bert.cli.flags import Flags
from keras_bert.config import HeadConfig, WindowConfig

KINDS = (WindowConfig, HeadConfig)
LEAVE_OUT = ("dropout", "version_2_with_negative")


def check(flags: Flags) -> None:
    """Raises ConfigError where a value is out of its range; before anything is opened."""
    flags.config(WindowConfig)
    flags.config(HeadConfig, decode="")  # which decodes there are, only the task says


def suit(flags: Flags, task: str) -> None:
    """Raises ConfigError where a value does not suit the task."""
    flags.config(HeadConfig, task=task)


def load(flags: Flags, path: Path) -> Any:
    """The `Bert` of a run, with the flags that were given instead of its own settings.

    Raises:
        CheckpointError: the run is damaged.
    """
    from keras_bert.bert import Bert

    bert = Bert.load(path)
    head = bert.network.head
    bert.windows = dataclasses.replace(bert.windows, **flags.given_of(WindowConfig))
    head.config = dataclasses.replace(head.config, **flags.given_of(HeadConfig))
    return bert
