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
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from keras_bert.errors import CheckpointError, ConfigError
from keras_bert.server.counters import Metrics
from keras_bert.server.json_tensor import RequestError
from keras_bert.server.servable import Servable
from keras_bert.server.settings import ModelConfig, Specific

log = logging.getLogger("keras_bert.server")


class Model:
    """One model with the versions that are loaded. `poll` is for one thread; the rest may be called from any.

    Args:
        name: the name that clients use in the path.
        config: where its versions are, and which are served; another one may take its place.
        metrics: what is counted.
        at_once: loads the versions now; otherwise `poll` does, and logs what fails.

    A model that is `retired` has no versions, whatever is on the disk.

    Raises:
        CheckpointError: no version can be served, or one that should be cannot be loaded.
    """

    def __init__(self, name: str, config: ModelConfig, metrics: Metrics, at_once: bool = True) -> None:
        self.name, self.config, self._metrics = name, config, metrics
        self.retired = False
        self._loaded: dict[int, Servable] = {}  # never changed in place: readers take no lock
        self._states: dict[int, tuple[str, str]] = {}
        self._failed: dict[int, Any] = {}
        self._complaint = ""
        if at_once:
            self._start()

    def _start(self) -> None:
        base = Path(self.config.base_path)
        found = self._find(base)
        wanted = self._wanted(found)
        absent = self._absent(found)
        if not wanted:
            raise CheckpointError(absent or f"{base}: no version directory in it; export the model to {base / '1'}")
        self._complain(absent)
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

    def status(self, version: int | None = None) -> dict[str, Any]:
        """The answer to a status request: every version that was ever seen, or one of them."""
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
            found = {} if self.retired else self._find(Path(self.config.base_path))
            wanted = self._wanted(found)
            self._complain(self._absent(found))
            for version, directory in sorted(wanted.items()):
                if version not in self._loaded or self._loaded[version].directory != directory:
                    self._try(version, directory)
        except (CheckpointError, OSError) as error:  # perhaps the disk is away for a moment
            self._complain(f"{error}; what is loaded keeps serving")
            return
        unwanted = self._loaded.keys() - wanted.keys()
        if unwanted and wanted.keys() <= self._loaded.keys():
            self._unload(unwanted)

    def _absent(self, found: Mapping[int, Path]) -> str:
        """What is wrong where the policy names versions that are not there."""
        policy = self.config.policy
        absent = sorted(v for v in policy.versions if v not in found) if isinstance(policy, Specific) else []
        if not absent or self.retired:
            return ""
        names = (", ".join(map(str, versions)) or "none" for versions in (absent, sorted(found)))
        return "{}: has no version {}; it has {}".format(self.config.base_path, *names)

    def _complain(self, complaint: str) -> None:
        """Logs what is wrong once, not at every look."""
        if complaint and complaint != self._complaint:
            log.error("%s: %s", self.name, complaint)
        self._complaint = complaint

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


class Models:
    """All models of a server. `poll` and `reload` are for one thread; `by_name` may be read in any.

    Args:
        configs: the models to begin with.
        metrics: what is counted.
        reread: gives the configs anew.

    Raises:
        ConfigError: there is no model, or one whose name cannot stand in a path.
        CheckpointError: a model cannot be loaded.
    """

    def __init__(
        self, configs: Mapping[str, ModelConfig], metrics: Metrics, reread: Callable[[], Mapping[str, ModelConfig]]
    ) -> None:
        self._configs, self._metrics, self._reread, self._complaint = _checked(configs), metrics, reread, ""
        self.by_name = {name: Model(name, config, metrics) for name, config in configs.items()}

    def poll(self) -> None:
        """Looks for new and removed versions of every model."""
        for model in self.by_name.values():
            try:
                model.poll()
            except Exception:  # a defect must not end the watch over the other models
                log.exception("%s: looking for versions failed", model.name)

    def reload(self) -> None:
        """Takes over configs that have changed: new models come, old ones go, others get other versions or labels.

        Of configs that cannot be read nothing is taken over.
        """
        try:
            configs = _checked(self._reread())
        except ConfigError as error:
            if str(error) != self._complaint:
                log.error("%s; what is loaded keeps serving", error)
            self._complaint = str(error)
            return
        self._complaint = ""
        if configs == self._configs:
            return
        log.info("models are now %s", ", ".join(configs))
        new = configs.keys() - self.by_name.keys()
        made = {name: Model(name, configs[name], self._metrics, at_once=False) for name in new}
        self.by_name = self.by_name | made  # never changed in place, either
        for name, model in self.by_name.items():
            model.config, model.retired = configs.get(name, model.config), name not in configs
        self._configs = configs
        self.poll()


class Watcher(threading.Thread):
    """Calls each of some functions again and again until `stop`, so many seconds apart; those of 0 never."""

    def __init__(self, *work: tuple[float, Callable[[], None]]) -> None:
        super().__init__(name="watcher", daemon=True)
        self._work, self._stopped = [(seconds, call) for seconds, call in work if seconds], threading.Event()

    def run(self) -> None:
        due = [time.monotonic() + seconds for seconds, _ in self._work]
        while due and not self._stopped.wait(min(due) - time.monotonic()):
            first = due.index(min(due))
            seconds, call = self._work[first]
            call()
            due[first] = time.monotonic() + seconds

    def stop(self) -> None:
        """Ends the thread after what it is doing now; does not wait for a model that is being loaded."""
        self._stopped.set()
        if self.is_alive():
            self.join(0.1)


def _checked(configs: Mapping[str, ModelConfig]) -> Mapping[str, ModelConfig]:
    if not configs:
        raise ConfigError("no model to serve; give at least one name with its base directory")
    for name in configs:
        if not name or "/" in name or ":" in name:
            raise ConfigError(f"model name {name!r} cannot stand in a path; use letters, digits, - and _")
    return configs


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
