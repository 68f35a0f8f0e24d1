"""The JSON of `:classify` and `:regress`: objects of features to tf.Examples, and results back.

Messages follow TF Serving's wording, as in `json_tensor`.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from keras_bert.server.json_reader import members
from keras_bert.server.json_tensor import (
    RequestError,
    decimals,
    is_base64,
    json_type,
    quote,
    to_bytes,
    until_nul,
)

_LISTS = {"int64": "int64_list", "float": "float_list", "bytes": "bytes_list"}


def read_examples(document: Mapping[str, Any]) -> np.ndarray:
    """The `examples` of a request, each behind the features of its `context`, serialized: objects `[B]`.

    Raises:
        RequestError: there are none, or one of them cannot be a tf.Example.
    """
    context = _example(document["context"]) if "context" in document else b""
    if "examples" not in document:
        raise RequestError(
            f"JSON Value: {quote(document)} When method is classify, key 'examples' is expected and was not found"
        )
    rows = document["examples"]
    if not isinstance(rows, list):
        raise RequestError(f"JSON Value: {quote(document)} Expecting 'examples' value to be an list/array")
    if not rows:
        raise RequestError(f"JSON Value: {quote(document)} 'examples' value is an empty array")
    examples = np.empty(len(rows), object)
    examples[:] = [context + _example(row) for row in rows]  # a later feature wins when they are read
    return examples


def _example(value: Any) -> bytes:
    if not isinstance(value, dict):
        raise RequestError(f"Example must be JSON object but got JSON {json_type(value)}")
    example = tf.train.Example()
    for key, content in members(value):  # of equal names the last counts here, unlike anywhere else
        name = to_bytes(until_nul(key)).decode()
        feature = example.features.feature[name]
        feature.Clear()
        for item in content if isinstance(content, list) else [content]:
            _add(feature, name, item)
    return example.SerializeToString()


def _add(feature: tf.train.Feature, name: str, item: Any) -> None:
    kind, value = _convert(name, item, feature.WhichOneof("kind"))
    getattr(feature, _LISTS[kind]).value.append(value)


def _convert(name: str, item: Any, already: str | None) -> tuple[str, Any]:
    """The kind of list that an element belongs in, and its value there; `already` is the kind of those before."""
    if not (isinstance(item, bool | int | float | str) or is_base64(item)):
        raise RequestError(f"Feature: {name} has element with unexpected JSON type: {json_type(item)}")
    kind = "bytes"
    if isinstance(item, bool | int | float):  # an integer beyond 64 bits is read as a decimal
        kind = "float" if isinstance(item, float) or not -(2**63) <= item < 2**64 else "int64"
    if already not in (None, _LISTS[kind]):
        expected = already.removesuffix("_list")
        raise RequestError(f"Unexpected element type in feature: {name} expecting type: {expected}")
    if kind == "bytes":
        return kind, to_bytes(item)
    if kind == "float":
        with np.errstate(over="ignore"):
            return kind, float(np.float32(item))
    if item >= 2**63:
        raise RequestError(f"Feature: {name} has uint64_t element. Only int64_t is supported.")
    return kind, int(item)


def write_classes(classes: np.ndarray | None, scores: np.ndarray | None) -> bytes:
    """The body for classes and scores `[B, n]`, of which one may be missing."""
    given = classes if scores is None else scores
    assert given is not None
    rows, n = given.shape
    labels = [b""] * (rows * n) if classes is None else classes.reshape(-1)
    numbers = np.zeros(rows * n, np.float32) if scores is None else scores.reshape(-1)
    texts = (json.dumps(label.decode("utf-8", "surrogateescape"), ensure_ascii=False) for label in labels)
    cells = [f"[{label}, {number}]" for label, number in zip(texts, decimals(numbers), strict=True)]
    return _results("[" + ", ".join(cells[i * n : (i + 1) * n]) + "]" for i in range(rows))


def write_values(values: np.ndarray) -> bytes:
    """The body for values `[B]` or `[B, 1]`."""
    return _results(decimals(values.reshape(-1)))


def _results(texts: Any) -> bytes:
    rows = list(texts)
    if not rows:
        raise RequestError("Cannot convert empty ClassificationResults to JSON")
    return ('{\n    "results": [' + ", ".join(rows) + "]\n}").encode("utf-8", "surrogateescape")
