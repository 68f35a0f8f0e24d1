"""Our own format: `keras_bert.json`, `vocab.txt`, `model.safetensors`; what a run directory holds."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_bert.checkpoints.formats.containers import WEIGHTS_FILE, read_safetensors, write_safetensors
from keras_bert.checkpoints.formats.format import Format
from keras_bert.checkpoints.formats.settings import (
    VOCABULARY_FILE,
    Contents,
    build,
    checked,
    objects,
    read_json,
    write_json,
    write_vocabulary,
)
from keras_bert.checkpoints.formats.table import Stored, same
from keras_bert.config import DataConfig, EncoderConfig, HeadConfig, TextConfig, WindowConfig, to_dict
from keras_bert.errors import CheckpointError
from keras_bert.text.vocabulary import read_vocabulary

CONFIG_FILE = "keras_bert.json"
SCHEMA = 1
KINDS: dict[str, Any] = {"encoder": EncoderConfig, "text": TextConfig, "head": HeadConfig, "data": DataConfig}
OPTIONAL = ("head", "data")
"""Null in a checkpoint that was converted and has no head of its own, or does not say which columns it reads."""


def read(path: Path) -> Contents:
    """What `keras_bert.json` and `vocab.txt` say.

    Raises:
        CheckpointError: they are broken, of another schema, or do not fit.
        DataError: the vocabulary is broken.
    """
    file = path / CONFIG_FILE
    content = read_json(file)
    if content.get("schema") != SCHEMA:
        raise CheckpointError(f"{file}: schema {content.get('schema')!r}; this version reads schema {SCHEMA}")
    unknown = sorted(set(content) - {"schema", "notes", "origins", "windows", *KINDS})
    if unknown:
        raise CheckpointError(f"{file}: unknown keys {unknown}")
    configs: dict[str, Any] = {}
    for name, kind in KINDS.items():
        if name not in content:
            raise CheckpointError(f"{file}: {name!r} is missing")
        if name in OPTIONAL and content[name] is None:
            continue
        if not isinstance(content[name], dict):
            raise CheckpointError(f"{file}: {name} is not an object")
        configs[name] = build(kind, content[name], file)
    if "windows" in content:
        configs["windows"] = build(WindowConfig, objects(file, content, "windows"), file)
    configs["notes"], configs["origins"] = objects(file, content, "notes"), objects(file, content, "origins", 3)
    vocabulary = read_vocabulary(path / VOCABULARY_FILE)
    return checked(path, Contents(vocabulary=vocabulary, **configs))


def tensors(path: Path, _: Iterable[str]) -> dict[str, Stored]:
    """The weights, under our paths."""
    if not (path / WEIGHTS_FILE).exists():
        raise CheckpointError(f"{path}: has no {WEIGHTS_FILE}")
    return read_safetensors(path / WEIGHTS_FILE)


def settings(contents: Contents) -> dict[str, Any]:
    """The content of `keras_bert.json`."""
    parts = {name: getattr(contents, name) for name in ("encoder", "head", "text", "data")}
    described = {name: None if value is None else to_dict(value) for name, value in parts.items()}
    windows = {"windows": to_dict(contents.windows)} if contents.windows else {}
    origins = {"origins": contents.origins} if contents.origins else {}
    return {"schema": SCHEMA, **described, **windows, "notes": contents.notes, **origins}


def write(path: Path, contents: Contents, weights: Mapping[str, np.ndarray]) -> None:
    """Write a directory; `checkpoints.save` is the one that replaces the files of a run."""
    write_safetensors(path / WEIGHTS_FILE, {name: np.ascontiguousarray(value) for name, value in weights.items()})
    write_vocabulary(path / VOCABULARY_FILE, contents.vocabulary)
    write_json(path / CONFIG_FILE, settings(contents))


FORMAT = Format(
    name="keras_bert",
    mark=CONFIG_FILE,
    is_here=lambda path: (path / CONFIG_FILE).exists(),
    is_complete=lambda path: (path / WEIGHTS_FILE).exists(),
    table=lambda path, _: (path, same),
    read=read,
    tensors=tensors,
    write=write,
    files=r"keras_bert\.json|vocab\.txt|model\.safetensors",
)
