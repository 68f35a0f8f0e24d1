"""Golden requests: what a model answered when it was exported, kept in its manifest to be asked again anywhere.

Values are stored the way TensorFlow Serving's REST interface writes them, so the same cases replay in Python and
against a live server.
"""

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_bert.errors import CheckpointError, DataError
from keras_bert.files import sha256

MANIFEST = "keras_bert.json"
TOLERANCES = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
"""How far a number may differ from the exported one (relative above 1): machines round differently."""

Arrays = Mapping[str, np.ndarray]
Ask = Callable[[str, Arrays], Arrays]
"""Signature and inputs -> outputs."""


# === Values as JSON ===


def to_json(values: np.ndarray) -> Any:
    """An array as nested lists; byte strings that are not UTF-8 become `{"b64": ...}`."""
    if values.dtype.kind == "f":
        return [float(f"{v:.7g}") for v in values] if values.ndim == 1 else [to_json(v) for v in values]
    if values.dtype.kind != "O":
        return values.tolist()
    return [_string(v) if isinstance(v, bytes) else to_json(v) for v in values]


def _string(value: bytes) -> Any:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(value).decode("ascii")}


def from_json(values: Any, dtype: str) -> np.ndarray:
    """Nested lists as an array of a TensorFlow type; strings become bytes."""
    if dtype != "string":
        return np.array(values, dtype)

    def to_bytes(value: Any) -> Any:
        if isinstance(value, list):
            return [to_bytes(v) for v in value]
        return base64.b64decode(value["b64"]) if isinstance(value, dict) else value.encode("utf-8")

    return np.array(to_bytes(values), object)


# === Comparing ===


RANKED = dict.fromkeys(("labels", "class_ids", "classes", "tokens", "token_ids"), "scores")
"""Outputs sorted from best to worst, and the output with their scores: ties may be ordered differently elsewhere."""
ORDERED = {"indices": "scores"}
"""Numbers in the order of their scores: equal where the scores are."""
FIRST = {"label": "labels", "filled": "tokens"}
"""Outputs derived from the first entry of a sorted output."""


ROUNDED: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "embedding_int8": lambda found, wanted: np.abs(found.astype(np.int32) - wanted) <= 1,
    "embedding_binary": lambda found, wanted: np.isin(
        np.bitwise_xor(found, wanted).astype(np.uint8), [0, *(1 << np.arange(8))]
    ),
}
"""Outputs that were rounded, and what counts as equal: one step apart, or one sign of eight."""


def difference(found: Arrays, wanted: Arrays, tolerance: float) -> float:
    """The largest difference between two answers. Labels or words with tied scores may swap places.

    Raises:
        DataError: they differ by more than `tolerance`; the message names the output and the row.
    """
    if set(found) != set(wanted):
        raise DataError(f"outputs are {sorted(found)}, not {sorted(wanted)}")
    for name, value in wanted.items():
        if found[name].shape != value.shape:
            raise DataError(f"{name} is of shape {found[name].shape}, not {value.shape}")
    worst = 0.0
    for name, value in wanted.items():
        if value.dtype.kind == "f":
            apart = np.abs(found[name].astype(np.float64) - value) / np.maximum(1, np.abs(value))
            wrong = ~(apart <= tolerance)  # NaN too
            worst = max(worst, float(apart.max(initial=0)))
        else:
            wrong = (found[name] != value) & ~_tied(name, found, wanted, tolerance)
        if wrong.any():
            row = int(np.argwhere(wrong)[0][0])
            raise DataError(f"{name} of row {row} is {found[name][row]!r}, not {value[row]!r}")
    return worst


def _tied(name: str, found: Arrays, wanted: Arrays, tolerance: float) -> np.ndarray:
    """Marks ties: two labels swapped places, but their scores agree within the tolerance.

    A label that is missing from the expected list ranks behind its last entry.
    """
    if FIRST.get(name) in wanted:
        first, same = FIRST[name], wanted[name].shape
        changed = found[first][..., 0] != wanted[first][..., 0]
        return changed.reshape(*same, -1).any(axis=-1)
    if name in ROUNDED:
        return ROUNDED[name](found[name], wanted[name])
    if name in ORDERED:
        return np.abs(found[ORDERED[name]] - wanted[ORDERED[name]]) <= 2 * tolerance
    good = np.zeros(wanted[name].shape, bool)
    scores = wanted.get(RANKED.get(name, ""))
    if scores is None or scores.shape != good.shape:
        return good
    for place in map(tuple, np.argwhere(found[name] != wanted[name])):
        ranks = np.flatnonzero(wanted[name][place[:-1]] == found[name][place])
        other = scores[place[:-1]][ranks[0] if ranks.size else -1]
        good[place] = abs(other - scores[place]) <= 2 * tolerance
    return good


# === Replaying ===


def case(signature: str, inputs: Arrays, outputs: Arrays) -> dict[str, Any]:
    """A golden request in the form the manifest stores."""
    asked, answered = ({name: to_json(value) for name, value in sorted(part.items())} for part in (inputs, outputs))
    return {"signature": signature, "inputs": asked, "outputs": answered}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a version directory.

    Raises:
        CheckpointError: it is missing, broken or of another schema.
    """
    path = folder / "assets.extra" / MANIFEST
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); is this a version that `export` wrote?") from error
    if not isinstance(content, dict) or content.get("schema") != 1:
        raise CheckpointError(f"{path}: is not a manifest of schema 1; export the model again")
    return content


def check_files(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Check that the files of a version are the exported ones.

    Raises:
        CheckpointError: one is missing or changed.
    """
    for name, digest in manifest["files"].items():
        path = folder / name
        if not path.is_file() or sha256(path) != digest:
            raise CheckpointError(f"{path}: is {'changed' if path.exists() else 'missing'} since the export")


def replay(manifest: Mapping[str, Any], ask: Ask) -> dict[str, float]:
    """Repeat every golden request; returns the largest difference per signature.

    Raises:
        CheckpointError: an answer differs; the message names signature, output and row.
    """
    worst: dict[str, float] = {}
    for case in manifest["golden"]:
        name = case["signature"]
        inputs, wanted = (
            {
                key: from_json(value, manifest["signatures"][name][kind][key]["dtype"])
                for key, value in case[kind].items()
            }
            for kind in ("inputs", "outputs")
        )
        try:
            apart = difference(ask(name, inputs), wanted, manifest["tolerance"])
        except DataError as error:
            raise CheckpointError(f"signature {name}: {error}") from error
        worst[name] = max(apart, worst.get(name, 0.0))
    return worst


def loaded(model: Any) -> Ask:
    """An `Ask` for a loaded SavedModel, or any object with `signatures`."""
    import tensorflow as tf

    def ask(name: str, inputs: Arrays) -> Arrays:
        outputs = model.signatures[name](**{key: tf.constant(value) for key, value in inputs.items()})
        return {key: value.numpy() for key, value in outputs.items()}

    return ask


def server(url: str, manifest: Mapping[str, Any], timeout: float = 60) -> Ask:
    """An `Ask` for a live server, over REST.

    Args:
        url: URL of the model, such as `http://localhost:8501/v1/models/tweets`.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(name: str, inputs: Arrays) -> Arrays:
        columns = {key: to_json(value) for key, value in inputs.items()}
        given = columns if len(columns) > 1 else next(iter(columns.values()))
        body = json.dumps({"signature_name": name, "inputs": given}).encode("utf-8")
        request = urllib.request.Request(f"{url}:predict", body, {"Content-Type": "application/json"})
        try:
            with opener.open(request, timeout=timeout) as response:
                outputs = json.load(response)["outputs"]
        except urllib.error.HTTPError as error:
            raise CheckpointError(f"{url}: answers {error.code} to {name}: {error.read(300)!r}") from error
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"{url}: does not answer {name} ({error})") from error
        kinds = manifest["signatures"][name]["outputs"]
        outputs = outputs if len(kinds) > 1 else {next(iter(kinds)): outputs}
        return {key: from_json(value, kinds[key]["dtype"]) for key, value in outputs.items()}

    return ask
