"""The versions of a model: found in its directory, loaded, published, and unloaded again.

As in TensorFlow Serving, a version is a subdirectory with a whole number for a name. The directory is looked at again
and again; a new version is loaded and warmed up while the old one answers, and then takes its place. One that cannot
be loaded is logged, and tried again when its files change; until then the old one keeps serving.
"""

import contextlib
import gc
import logging
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from keras_bert.errors import CheckpointError
from keras_bert.server.counters import Metrics
from keras_bert.server.json_tensor import RequestError
from keras_bert.server.servable import Servable
from keras_bert.server.settings import ModelConfig

log = logging.getLogger("keras_bert.server")


class Model:
    """One model with the versions that are loaded. `poll` is for one thread; the rest may be called from any.

    Raises:
        CheckpointError: no version can be served, or one that should be cannot be loaded.
    """

    def __init__(self, name: str, config: ModelConfig, metrics: Metrics) -> None:
        self.name, self.config, self._metrics = name, config, metrics
        self._loaded: dict[int, Servable] = {}  # never changed in place: readers take no lock
        self._states: dict[int, tuple[str, str]] = {}
        self._failed: dict[int, Any] = {}
        base = Path(config.base_path)
        wanted = self._wanted(self._find(base))
        if not wanted:
            raise CheckpointError(f"{base}: no version directory in it; export the model to {base / '1'}")
        for version, directory in sorted(wanted.items()):
            self._load(version, directory)

    def servable(self, version: int | None = None, label: str | None = None) -> Servable:
        """A loaded version, the largest one where neither a version nor a label is given.

        Raises:
            RequestError: it is not loaded (404), or there is no such label (400).
        """
        if label is not None:
            version = self._labelled(label)
        loaded = self._loaded
        if not loaded or (version is not None and version not in loaded):
            raise not_found(self.name, version)
        return loaded[max(loaded) if version is None else version]

    def status(self, version: int | None = None, label: str | None = None) -> dict[str, Any]:
        """The answer to a status request: every version that was ever seen, or one of them."""
        if label is not None:
            version = self._labelled(label)
        states = dict(self._states)
        if version is not None:
            states = {version: states[version]} if version in states else {}
        if not states:
            which = "any versions" if version is None else f"version {version}"
            raise RequestError(f"Could not find {which} of model {self.name}", status=404)
        return {"model_version_status": [_status(v, *states[v]) for v in sorted(states, reverse=True)]}

    def _labelled(self, label: str) -> int:
        """The version with a label; as in TensorFlow Serving, only a loaded version can have one."""
        version = self.config.labels.get(label)
        if version not in self._loaded:
            raise RequestError(f"Unrecognized servable version label: {label}")
        return version

    def poll(self) -> None:
        """Looks for new and removed versions; loads the former, then unloads what is not wanted any more."""
        try:
            wanted = self._wanted(self._find(Path(self.config.base_path)))
        except (CheckpointError, OSError) as error:  # perhaps the disk is away for a moment
            log.error("%s: %s; what is loaded keeps serving", self.name, error)
            return
        for version, directory in sorted(wanted.items()):
            if version not in self._loaded:
                self._try(version, directory)
        unwanted = self._loaded.keys() - wanted.keys()
        if unwanted and wanted.keys() <= self._loaded.keys():
            self._unload(unwanted)

    def _find(self, base: Path) -> dict[int, Path]:
        if (base / "saved_model.pb").is_file():
            raise CheckpointError(f"{base}: is a SavedModel itself; give the directory that holds it")
        if not base.is_dir():
            raise CheckpointError(f"{base}: no such directory; give the one that holds the versions (1/, 2/)")
        numbered = [child for child in sorted(base.iterdir()) if child.name.isascii() and child.name.isdigit()]
        return {int(child.name): child for child in numbered if child.is_dir() and int(child.name) < 2**63}

    def _wanted(self, found: dict[int, Path]) -> dict[int, Path]:
        return {version: found[version] for version in self.config.policy(found)}

    def _try(self, version: int, directory: Path) -> None:
        """Loads a version that has appeared, unless it has failed before and is still the same."""
        files = _fingerprint(directory)
        if self._failed.get(version) == files:
            return
        try:
            self._load(version, directory)
        except CheckpointError as error:
            self._failed[version] = files
            serving = f"version {max(self._loaded)} keeps serving" if self._loaded else "nothing is served"
            log.error("%s: version %d is not served: %s; %s", self.name, version, error, serving)

    def _load(self, version: int, directory: Path) -> None:
        self._states[version] = ("LOADING", "")
        start = time.monotonic()
        try:
            servable = Servable(self.name, directory)
            start_of_warm_up = time.monotonic()
            records = servable.warm_up()
        except CheckpointError as error:
            self._states[version] = ("END", str(error))
            raise
        if records:
            elapsed = (time.monotonic() - start_of_warm_up) * 1e6
            self._metrics.observe("model_warmup_latency", elapsed, str(directory), "OK")
        self._loaded = {**self._loaded, version: servable}
        self._states[version] = ("AVAILABLE", "")
        seconds = time.monotonic() - start
        log.info("%s: version %d loaded in %.1f s, %d warm-up requests", self.name, version, seconds, records)

    def _unload(self, versions: Iterable[int]) -> None:
        for version in versions:
            self._loaded = {v: servable for v, servable in self._loaded.items() if v != version}
            self._states[version] = ("END", "")
            log.info("%s: version %d unloaded", self.name, version)
        gc.collect()  # a loaded SavedModel holds itself in cycles, and may be large


def not_found(name: str, version: int | None) -> RequestError:
    """The refusal of a request to a model or version that is not served."""
    which = f"Latest({name})" if version is None else f"Specific({name}, {version})"
    return RequestError(f"Servable not found for request: {which}", status=404)


class Watcher(threading.Thread):
    """Polls models every `seconds` until `stop`."""

    def __init__(self, models: Iterable[Model], seconds: float) -> None:
        super().__init__(name="watcher", daemon=True)
        self._models, self._seconds, self._stopped = list(models), seconds, threading.Event()

    def run(self) -> None:
        while not self._stopped.wait(self._seconds):
            for model in self._models:
                try:
                    model.poll()
                except Exception:  # a defect must not end the watch over the other models
                    log.exception("%s: looking for versions failed", model.name)

    def stop(self) -> None:
        """Ends the thread after what it is doing now; does not wait for a model that is being loaded."""
        self._stopped.set()
        if self.is_alive():
            self.join(0.1)


def _status(version: int, state: str, message: str) -> dict[str, Any]:
    code = "UNKNOWN" if message else "OK"
    return {"version": str(version), "state": state, "status": {"error_code": code, "error_message": message}}


def _fingerprint(directory: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and times of the files in a directory; different after any change that matters here."""
    found = []
    for path in sorted(directory.rglob("*")):
        with contextlib.suppress(OSError):  # it went away meanwhile
            stat = path.stat()
            found.append((str(path), stat.st_size, stat.st_mtime_ns))
    return found
