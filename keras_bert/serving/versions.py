"""The versions of a served model: directories named by whole numbers, under one base directory.

TensorFlow Serving polls the base directory every second and serves the largest number, so a version must appear whole
or not at all: it is written under another name and then renamed, and deleted the same way. Rolling back publishes an
older version again under a new number, so what is served never depends on what was deleted.
"""

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from keras_bert.errors import CheckpointError, ConfigError
from keras_bert.files import write_atomic

LABELS = "labels.json"


def versions(base: Path) -> list[int]:
    """The version numbers under `base`, sorted."""
    if not base.is_dir():
        return []
    return sorted(int(p.name) for p in base.iterdir() if p.is_dir() and re.fullmatch("[0-9]+", p.name))


def folder_of(base: Path, version: int) -> Path:
    """The directory of a version. Leading zeros are ignored, as servers do.

    Raises:
        ConfigError: there is no such version; the message lists the existing ones.
    """
    if base.is_dir():
        for path in sorted(base.iterdir()):
            if path.is_dir() and re.fullmatch("[0-9]+", path.name) and int(path.name) == version:
                return path
    raise ConfigError(f"{base}: has no version {version}; it has {versions(base) or 'none'}")


def next_version(base: Path) -> int:
    """The largest version under `base` plus 1; 1 for an empty or new directory."""
    if base.exists() and not base.is_dir():
        raise ConfigError(f"{base}: is a file; export_dir must be a directory")
    return max(versions(base), default=0) + 1


def check_version(base: Path, version: int) -> int:
    """Returns `version` if a server can load it from `base` and it does not exist yet."""
    next_version(base)
    if not 0 < version < 2**63:
        raise ConfigError(f"version must be from 1 to {2**63 - 1}, got {version}")
    if version in versions(base):
        raise ConfigError(f"{base / str(version)}: exists; give another --version, or none for the next one")
    return version


@contextlib.contextmanager
def publishing(base: Path, version: int | None = None) -> Iterator[tuple[Path, Path]]:
    """Yields a temporary directory to write to, and the version directory it becomes if nothing is raised.

    Args:
        version: a new positive number; None takes the largest plus 1.

    Raises:
        ConfigError: the version is not a positive 64-bit number or exists, or `base` is a file.
        CheckpointError: the directory cannot be written.
    """
    target, temporary = base, None
    try:
        target = base / str(next_version(base) if version is None else check_version(base, version))
        base.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=base, prefix=f".tmp-{target.name}-"))
        yield temporary, target
        for path in temporary.rglob("*"):
            if path.is_file():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
        temporary.chmod(0o755)
        os.rename(temporary, target)
    except OSError as error:
        raise CheckpointError(f"{target}: cannot be written ({error})") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                shutil.rmtree(temporary)


def roll_back(base: Path, version: int) -> Path:
    """Publish an older version again as the newest. Its files are hard links where the disk allows it."""

    def link(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)

    source = folder_of(base, version)
    with publishing(base) as (temporary, target):
        shutil.copytree(source, temporary, copy_function=link, dirs_exist_ok=True)
    return target


def prune(base: Path, keep: int) -> list[int]:
    """Delete all versions but the `keep` largest and those with a label; returns the deleted numbers.

    Raises:
        ConfigError: `keep` is below 1.
        CheckpointError: a version cannot be deleted.
    """
    if keep < 1:
        raise ConfigError(f"keep must be at least 1, got {keep}; a model needs a version")
    old = [v for v in versions(base)[:-keep] if v not in labels(base).values()]
    for version in old:
        gone = base / f".tmp-gone-{version}"
        try:
            os.rename(folder_of(base, version), gone)
            shutil.rmtree(gone)
        except OSError as error:
            raise CheckpointError(f"{base / str(version)}: cannot be deleted ({error})") from error
    return old


# === Labels ===


def labels(base: Path) -> dict[str, int]:
    """Label -> version, as set with `set_label`.

    Raises:
        CheckpointError: the file of labels is damaged.
    """
    path = base / LABELS
    try:
        found = json.loads(path.read_text("utf-8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); delete it and set the labels again") from error
    if not isinstance(found, dict) or not all(type(v) is int for v in found.values()):
        raise CheckpointError(f"{path}: must map labels to versions; delete it and set the labels again")
    return found


def set_label(base: Path, label: str, version: int | None) -> None:
    """Make `version` available to clients as `/labels/LABEL`; None removes the label.

    Raises:
        ConfigError: the label is not valid in a URL path, or there is no such version.
        CheckpointError: the file of labels cannot be read or written.
    """
    if not re.fullmatch("[A-Za-z0-9_]+", label):
        raise ConfigError(f"label {label!r} must be letters, digits and _, such as stable")
    found = labels(base)
    if version is None:
        found.pop(label, None)
    else:
        folder_of(base, version)
        found[label] = version
    try:
        write_atomic(base / LABELS, json.dumps(dict(sorted(found.items())), indent=2) + "\n")
    except OSError as error:
        raise CheckpointError(f"{base / LABELS}: cannot be written ({error})") from error


def model_config(models: Mapping[str, tuple[Path, str]]) -> str:
    """TensorFlow Serving's model configuration file.

    Args:
        models: name -> the base directory here, and its path as the server sees it.

    A model without labels is served in its largest version; one with labels in its labeled versions and the largest.
    """
    blocks = []
    for name, (base, path) in models.items():
        found = labels(base)
        lines = [f"name: {_quoted(name)}", f"base_path: {_quoted(path)}", 'model_platform: "tensorflow"']
        if found:
            served = sorted({*found.values(), *versions(base)[-1:]})
            lines.append(f"model_version_policy {{ specific {{ {' '.join(f'versions: {v}' for v in served)} }} }}")
        lines += [f"version_labels {{ key: {_quoted(label)} value: {v} }}" for label, v in found.items()]
        blocks.append("  config {\n" + "".join(f"    {line}\n" for line in lines) + "  }\n")
    return "model_config_list {\n" + "".join(blocks) + "}\n"


def _quoted(value: str) -> str:
    """A string literal of a text proto."""
    escaped = "".join(chr(b) if 32 <= b < 127 and b not in b'"\\' else f"\\{b:03o}" for b in value.encode("utf-8"))
    return f'"{escaped}"'
