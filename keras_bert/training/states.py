"""The directory of a run: used by one process at a time, with states to resume from that are complete or absent.

A state is one safetensors file, `checkpoints/step-000001234.safetensors`. It holds all variables that the next step
depends on; its header holds the step, the sums since the last evaluation, the history, and a checksum of the tensors.
It is written under another name and then renamed, so a kill at any moment leaves earlier states intact. A run resumes
from the readable state with the highest step, whatever the time of the file.
"""

import json
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from keras_bert.errors import CheckpointError, ConfigError
from keras_bert.files import replacing, write_atomic

try:
    import fcntl
except ImportError:  # Windows, where TensorFlow Text does not run either
    fcntl = None  # type: ignore[assignment]

METRICS_FILE, FINAL_FILE, LOCK_FILE, STATES = "metrics.jsonl", "final_metrics.json", ".lock", "checkpoints"
SCHEMA = 1
Arrays = dict[str, np.ndarray]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock the directory of a run, and create it if it does not exist.

    Raises:
        ConfigError: another process has locked it; the message gives its process id.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK_FILE, "a+", encoding="ascii") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                file.seek(0)
                holder = file.read().strip()
                raise ConfigError(
                    f"--model_dir {folder}: another process ({holder or 'of unknown number'}) trains there; "
                    "wait for it, or name another directory"
                ) from error
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield


def finished(folder: Path) -> dict[str, Any] | None:
    """`final_metrics.json` of a run; None if the run has not finished.

    Raises:
        CheckpointError: it is broken.
    """
    path = folder / FINAL_FILE
    try:
        found = json.loads(path.read_text("utf-8")) if path.exists() else None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    if found is not None and not isinstance(found, dict):
        raise CheckpointError(f"{path}: holds no object")
    return found


class States:
    """The states of one run.

    Args:
        folder: the directory of the run.
        keep: how many states to keep; with two or more, one damaged state does not lose the run.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    def found(self) -> list[Path]:
        """The existing states, the newest first."""
        return sorted((self.folder / STATES).glob("step-*.safetensors"), reverse=True)

    def newest(self, say: Callable[[str], None]) -> tuple[Arrays, dict[str, Any]] | None:
        """The newest readable state: arrays by name, and its header; None if the run has not begun.

        Raises:
            CheckpointError: none of the states can be read, or they were deleted.
        """
        problems = []
        for path in self.found():
            try:
                found = _read(path)
            except CheckpointError as error:
                problems.append(str(error))
                continue
            for problem in problems:
                say(f"warning: {problem}; going on from the state before it")
            return found
        if problems:
            raise CheckpointError(f"{problems[0]}; no other state can be read: start anew with --overwrite")
        if (self.folder / METRICS_FILE).exists():
            raise CheckpointError(f"{self.folder}: has {METRICS_FILE} but no state; start anew with --overwrite")
        return None

    def write(self, step: int, arrays: Arrays, notes: dict[str, Any]) -> None:
        """Write a state and the metrics of its history, then delete states beyond `keep`.

        Raises:
            CheckpointError: the directory cannot be written; earlier states remain.
        """
        folder = self.folder / STATES
        header = {"schema": SCHEMA, "step": step, "checksum": _checksum(arrays), **notes}
        try:
            folder.mkdir(exist_ok=True)  # without parents: if the directory of the run was deleted, this is an error
            with replacing(folder / f"step-{step:09d}.safetensors") as temporary:
                save_file(arrays, temporary, {"state": json.dumps(header)})
            write_atomic(self.folder / METRICS_FILE, "".join(json.dumps(h) + "\n" for h in notes["history"]))
            for old in self.found()[self.keep :]:
                old.unlink()
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{folder}: the state at step {step} cannot be written ({error})") from error

    def tidy(self) -> None:
        """Delete incomplete files of a run that was killed."""
        for rest in (*self.folder.glob(".*.tmp"), *(self.folder / STATES).glob(".*.tmp")):
            rest.unlink(missing_ok=True)


def _read(path: Path) -> tuple[Arrays, dict[str, Any]]:
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {})["state"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: broken or not a state of a run ({str(error).splitlines()[0]})") from error
    if header.get("schema") != SCHEMA:
        raise CheckpointError(f"{path}: has schema {header.get('schema')}, not {SCHEMA}; it is of another keras_bert")
    if header.get("checksum") != _checksum(arrays):
        raise CheckpointError(f"{path}: its content does not fit its checksum")
    return arrays, header


def _checksum(arrays: Arrays) -> int:
    """CRC-32 over names and values, sorted by name."""
    crc = 0
    for name in sorted(arrays):
        crc = zlib.crc32(
            np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data, zlib.crc32(name.encode(), crc)
        )
    return crc
