"""What another format cannot say, in files of ours beside its own: `keras_bert_extra.json` and `.safetensors`.

google-research/bert has no word for the exact GELU, KerasHub none for label names, and neither for each other's heads.
A directory that we write in their format is complete for them; these files let us read back all of it.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_bert.checkpoints.formats.containers import read_safetensors, write_safetensors
from keras_bert.checkpoints.formats.settings import Contents, build, objects, read_json, write_json
from keras_bert.checkpoints.formats.table import Stored
from keras_bert.config import DataConfig, EncoderConfig, HeadConfig, TextConfig, WindowConfig, to_dict
from keras_bert.errors import CheckpointError
from keras_bert.model.shapes import PARTS

EXTRA_FILE, EXTRA_WEIGHTS_FILE = "keras_bert_extra.json", "keras_bert_extra.safetensors"
SCHEMA = 1
FIELDS: dict[str, Any] = {"encoder": EncoderConfig, "text": TextConfig}
WHOLE: dict[str, Any] = {"head": HeadConfig, "data": DataConfig, "windows": WindowConfig}


def unsaid(wanted: Contents, said: Contents) -> dict[str, Any]:
    """What `wanted` holds and a directory that was read back as `said` does not."""
    content: dict[str, Any] = {}
    for name in FIELDS:
        ours, theirs = (to_dict(getattr(contents, name)) for contents in (wanted, said))
        changes = {key: {"there": theirs[key], "here": ours[key]} for key in ours if ours[key] != theirs[key]}
        if changes:
            content[name] = changes
    for name in WHOLE:
        usual = DataConfig() if name == "data" and wanted.head is not None else None
        held = getattr(wanted, name) or usual
        if held != (getattr(said, name) or usual):
            content[name] = None if held is None else to_dict(held)
    if wanted.notes != said.notes:
        content["notes"] = wanted.notes
    origins = {name: files for name, files in wanted.origins.items() if files != said.origins.get(name)}
    if origins:
        content["origins"] = origins
    return content


def write(path: Path, content: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> None:
    """Write the files, each only where there is something to say."""
    if weights:
        write_safetensors(path / EXTRA_WEIGHTS_FILE, weights)
    if content:
        write_json(path / EXTRA_FILE, {"schema": SCHEMA, **content})


def apply(path: Path, contents: Contents) -> Contents:
    """`contents` with what `keras_bert_extra.json` adds, where there is such a file.

    Raises:
        CheckpointError: the file is broken, or the settings beside it have changed since.
    """
    file = path / EXTRA_FILE
    if not file.exists():
        return contents
    content = read_json(file)
    if content.pop("schema", None) != SCHEMA:
        raise CheckpointError(f"{file}: not of schema {SCHEMA}, which this version reads")
    changes: dict[str, Any] = {}
    for name, kind in FIELDS.items():
        if name in content:
            changes[name] = build(kind, _changed(file, to_dict(getattr(contents, name)), content.pop(name)), file)
    for name, kind in WHOLE.items():
        if name in content:
            value = content.pop(name)
            if value is not None and not isinstance(value, dict):
                raise CheckpointError(f"{file}: {name} is not an object")
            changes[name] = None if value is None else build(kind, value, file)
    changes["notes"] = objects(file, content, "notes") or contents.notes
    changes["origins"] = objects(file, content, "origins", 3) | contents.origins
    absent = content.get("absent", [])
    if not isinstance(absent, list) or not all(isinstance(part, str) and part in PARTS for part in absent):
        raise CheckpointError(f"{file}: absent {str(absent)[:80]} names no parts of a model")
    changes["absent"] = tuple(absent)
    for name in ("notes", "origins", "absent"):
        content.pop(name, None)
    if content:
        raise CheckpointError(f"{file}: unknown keys {sorted(content)}")
    return dataclasses.replace(contents, **changes)


def _changed(file: Path, values: dict[str, Any], changes: Any) -> dict[str, Any]:
    for key, change in changes.items() if isinstance(changes, dict) else [("", None)]:
        if key not in values or not isinstance(change, dict) or set(change) != {"there", "here"}:
            raise CheckpointError(f"{file}: cannot be used, {key!r} is not a setting with its two values")
        if values[key] not in (change["there"], change["here"]):  # here: by a version that reads more of the settings
            raise CheckpointError(
                f"{file}: was written beside {key} {change['there']!r}, but the settings now say {values[key]!r}; "
                "delete the file if they are right"
            )
        values[key] = change["here"]
    return values


def tensors(path: Path) -> dict[str, Stored]:
    """The weights, under our paths, that the format has no place for."""
    file = path / EXTRA_WEIGHTS_FILE
    return read_safetensors(file) if file.exists() else {}
