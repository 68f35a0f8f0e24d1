"""What a format is: one value with one form, so that opening, loading and converting know no names of formats."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from keras_bert.checkpoints.formats.settings import Contents
from keras_bert.checkpoints.formats.table import Stored, Table
from keras_bert.config import HeadConfig


def holds_all(_: Contents, parts: set[str]) -> set[str]:
    """The files have a place for every part of a model."""
    return parts


def said(contents: Contents, _: Mapping[str, Stored]) -> HeadConfig | None:
    """The settings say what head there is."""
    return contents.head


@dataclass(frozen=True)
class Format:
    """One kind of checkpoint directory.

    Attributes:
        name: as flags and reports have it.
        mark: the file that tells a directory of this format.
        is_here: whether a directory holds the settings of one.
        is_complete: whether it holds the weights too.
        table: the name and transform of each weight that it can store.
        read: a directory -> what it says beside the weights.
        tensors: `(directory, names looked for)` -> its tensors, under the names of the table where it has them.
        write: `(directory, contents, weights under our paths)`; the directory is there and empty.
        head: the head of a model, from what is said and from its tensors.
        files: pattern of the files that are read; others are not carried by a conversion.
        ignored: pattern of tensors that are no weights: buffers, counters, slots of optimizers.
        copies: names of tensors that must equal a weight of ours.
        holds: which parts its files have a place for; others need a file of ours beside them.
        needs: parts that its own programs expect; where a model has none, zeros are written.
        fixed: settings that its own programs compute in one way only.
    """

    name: str
    mark: str
    is_here: Callable[[Path], bool]
    is_complete: Callable[[Path], bool]
    table: Table
    read: Callable[[Path], Contents]
    tensors: Callable[[Path, Iterable[str]], dict[str, Stored]]
    write: Callable[[Path, Contents, Mapping[str, np.ndarray]], None]
    head: Callable[[Contents, Mapping[str, Stored]], HeadConfig | None] = said
    files: str = ".*"
    ignored: str = "$^"
    copies: Mapping[str, str] = field(default_factory=dict)
    holds: Callable[[Contents, set[str]], set[str]] = holds_all
    needs: frozenset[str] = frozenset()
    fixed: Mapping[str, object] = field(default_factory=dict)
