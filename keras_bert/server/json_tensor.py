"""JSON to arrays and back, the way TF Serving's REST interface does it. Needs NumPy alone.

A request document holds either `instances` (row form: a list with one element per row) or `inputs`
(columnar form: whole tensors). Strings are `object` arrays of `bytes`. Documents are read as rapidjson reads
them, and messages follow TF Serving's wording, except that values quoted in them stand on one line and are
cut short.

Four kinds of requests that TF Serving takes are refused or mended here:
- Text that is not UTF-8, or holds a lone low surrogate, is refused; there its raw bytes reach the model.
- An integer beyond the range of int8, uint8 or int16 is refused; there it wraps around.
- A tensor of 64 dimensions or more is refused; NumPy has no more.
- A key that a row names twice counts once, its first value, though all must fit; there every value is taken,
  so that the rows after it get the values of others.
"""

import base64
import json
import math
import re
from collections.abc import Mapping
from itertools import chain
from typing import Any, NoReturn

import numpy as np

from keras_bert.server import json_reader
from keras_bert.server.json_reader import Members, members

_TF_NAMES = {"object": "string", "float32": "float", "float64": "double", "float16": "half"}
_INT_TYPES = ("int8", "int16", "int32", "int64", "uint8", "uint32", "uint64")  # TF Serving lacks uint16
_JSON_TYPES = ("object", "bool", "float32", "float64", *_INT_TYPES)  # and float16
_DECIMAL_WORDS = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
_ALL_DIGITS = {4: 9, 8: 17}  # of a decimal, by its bytes
_MAX_RANK = 64  # NumPy's own limit
_MAX_QUOTE = 200
_MAX_FLOAT = float(np.finfo(np.float32).max)
_CODES = {400: "INVALID_ARGUMENT", 501: "UNIMPLEMENTED"}
_JSON_KINDS = {type(None): "Null", dict: "Object", Members: "Object", list: "Array", str: "String"}  # and Number
_SPACE = re.compile(r"[ \t\n\v\f\r]+")
_BASE64 = re.compile(r"([A-Za-z0-9+/]*)([=.]*)")


class RequestError(Exception):
    """A request that cannot be answered: `status` is the HTTP code, the text goes in the body."""

    def __init__(self, message: str, status: int = 400):
        super().__init__(message)
        self.status = status


def parse_document(body: bytes) -> dict[str, Any]:
    """Reads the JSON object at the start of a request body; bytes after it are ignored. Of equal keys the first counts.

    Raises:
        RequestError: the body is empty, not JSON, not an object, or nested a million levels deep.
    """
    if not body:
        raise RequestError("JSON Parse error: The document is empty")
    try:
        document = json_reader.read(body)
    except json_reader.ParseError as error:
        raise RequestError(f"JSON Parse error: {error}") from None
    if not isinstance(document, dict):
        raise RequestError(f"JSON Value: {quote(document)} Is not object")
    return document


def signature_name(document: Mapping[str, Any]) -> str:
    """The signature a request asks for, `serving_default` when it names none.

    Raises:
        RequestError: the name is not a string.
    """
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise RequestError(
            f"JSON Value: {quote(document)} not formatted correctly. 'signature_name' key must be a string value."
        )
    return name or "serving_default"


def read_inputs(document: Mapping[str, Any], dtypes: Mapping[str, np.dtype]) -> tuple[dict[str, np.ndarray], bool]:
    """Turns the `instances` or `inputs` of a request into one array per named input.

    Args:
        document: the parsed request.
        dtypes: the type of each input of the signature; `object` stands for strings.

    Returns:
        The arrays by input name, and whether the request was in row form.

    Raises:
        RequestError: the values do not fit the inputs, or their lists have uneven lengths.
    """
    if "instances" in document and "inputs" in document:
        raise RequestError(
            f"JSON Value: {quote(document)} Not formatted correctly expecting only one of "
            "'inputs' or 'instances' keys to exist "
        )
    if "instances" in document:
        rows = document["instances"]
        if not isinstance(rows, list):
            raise RequestError(f"JSON Value: {quote(document)} Expecting 'instances' to be an list/array")
        if not rows:
            raise RequestError(f"JSON Value: {quote(document)} No values in 'instances' array")
        return _read_rows(rows, dtypes), True
    if "inputs" in document:
        return _read_columns(document["inputs"], dtypes), False
    raise RequestError("Missing 'inputs' or 'instances' key")


def write_outputs(outputs: Mapping[str, np.ndarray], row_form: bool) -> bytes:
    """Writes output arrays as the JSON body of an answer.

    A single output loses its name. String outputs are written as text, or as `{"b64": ...}` objects
    when their name ends in `_bytes`.

    Args:
        outputs: the arrays by output name; strings as `object` arrays of `bytes`.
        row_form: whether the request was in row form, and so the answer is.

    Raises:
        RequestError: a type has no JSON form, or the outputs cannot be cut into the same rows.
    """
    names = sorted(outputs)
    if not names:
        raise RequestError("Cannot convert empty tensor map to JSON")
    if row_form:
        _check_rows(outputs)
        columns = [_tensor_json(name, outputs[name], levels=1) for name in names]
        rows = columns[0] if len(names) == 1 else [_object_json(names, r) for r in zip(*columns, strict=True)]
        text = '{\n    "predictions": [' + ",\n        ".join(rows) + "]\n}"
    else:
        values = [_tensor_json(name, outputs[name], levels=0)[0] for name in names]
        text = '{\n    "outputs": ' + (values[0] if len(names) == 1 else _object_json(names, values)) + "\n}"
    return text.encode("utf-8", "surrogateescape")


def _read_rows(rows: list, dtypes: Mapping[str, np.dtype]) -> dict[str, np.ndarray]:
    named = _is_named(rows[0])
    if not named and len(dtypes) > 1:
        raise RequestError(
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map"
        )
    only = next(iter(dtypes))
    shapes: dict[str, list[int]] = {}
    leaves: dict[str, list] = {name: [] for name in dtypes}
    for index, row in enumerate(rows):
        if _is_named(row) != named:
            wanted, got = ("object", "list") if named else ("value/list", "object")
            raise RequestError(f"Expecting {wanted} but got {got} at item {index} of input list")
        seen = set()
        for key, value in members(row) if named else [(only, row)]:
            name = until_nul(key)
            try:
                shape, values = _flatten(value, name, dtypes)
                _check_same(shapes.setdefault(name, shape), shape)
            except RequestError as error:
                where = f"element: {index} key: {name}" if named else f"element: {index}"
                raise RequestError(
                    f"Failed to process {where} of 'instances' list. Error: {_CODES[error.status]}: {error}"
                ) from None
            if name not in seen:
                leaves[name] += values
                seen.add(name)
        if named and seen != dtypes.keys():
            raise RequestError(
                f"Failed to process element: {index} of 'instances' list. JSON object: {quote(row)} "
                f"keys must be equal to: {','.join(sorted(dtypes))}"
            )
    return {name: _to_array(leaves[name], [len(rows), *shapes[name]], dtypes[name]) for name in dtypes}


def _read_columns(value: Any, dtypes: Mapping[str, np.dtype]) -> dict[str, np.ndarray]:
    if not _is_named(value):
        if len(dtypes) > 1:
            raise RequestError(
                "inputs is a plain value/list, but expecting an object as multiple input tensors "
                "required as per tensorinfo_map"
            )
        value = {next(iter(dtypes)): value}
    arrays = {}
    for name, dtype in dtypes.items():
        if name not in value:
            raise RequestError(f"Missing named input: {name} in 'inputs' object.")
        shape, leaves = _flatten(value[name], name, dtypes)
        arrays[name] = _to_array(leaves, shape, dtype)
    return arrays


def _flatten(value: Any, name: str, dtypes: Mapping[str, np.dtype]) -> tuple[list[int], list]:
    """The shape of nested lists (that of their first elements) and the checked values in them."""
    if name not in dtypes:
        raise RequestError(f"JSON object: does not have named input: {name}")
    shape, first = [], value
    while isinstance(first, list):
        shape.append(len(first))
        first = first[0] if first else None
    if len(shape) >= _MAX_RANK:  # one more is needed for the rows
        raise RequestError(f"JSON Value: {quote(value)} has {len(shape)} nested lists, too many for a tensor")
    leaves = _leaves(value, shape)
    return shape, _walk(value, 0, shape, dtypes[name]) if leaves is None else _check_leaves(leaves, dtypes[name])


def _leaves(value: Any, shape: list[int]) -> list | None:
    """The values in nested lists of this shape, in the order of the text; None if a list has another size or place."""
    leaves = [value]
    for size in shape:
        if not all(isinstance(item, list) and len(item) == size for item in leaves):
            return None
        leaves = list(chain.from_iterable(leaves))
    return None if any(isinstance(item, list) for item in leaves) else leaves


def _walk(value: Any, level: int, shape: list[int], dtype: np.dtype) -> list:
    """The checked values, one at a time, so that what is wrong first in the text is what is raised."""
    if not isinstance(value, list):
        if level != len(shape):
            raise RequestError(
                f"JSON Value: {quote(value)} found at incorrect level: {level + 1} in the JSON DOM. "
                f"Expected at level: {len(shape)}"
            )
        return _check_leaves([value], dtype)
    if level >= len(shape):
        raise RequestError(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise RequestError(
            f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: {shape[level]}"
        )
    return list(chain.from_iterable(_walk(item, level + 1, shape, dtype) for item in value))


def _check_same(first: list[int], shape: list[int]) -> None:
    if math.prod(shape) != math.prod(first):
        raise RequestError(f"Expecting tensor size: {math.prod(first)} but got: {math.prod(shape)}")
    if shape != first:
        first_text, text = (",".join(map(str, dims)) for dims in (first, shape))
        raise RequestError(f"Expecting shape [{first_text}] but got: [{text}]")


def _check_leaves(leaves: list, dtype: np.dtype) -> list:
    """The values as Python objects that fit `dtype`: bytes for strings, the rest as they came."""
    if dtype.name not in _JSON_TYPES and leaves:
        if isinstance(leaves[0], dict):
            _refuse_type(leaves[0], dtype)
        raise RequestError(f"Conversion of JSON Value: {quote(leaves[0])} to type: {_tf_name(dtype)}", status=501)
    if dtype.kind == "O":
        return [to_bytes(leaf) for leaf in leaves]
    wanted = {"b": (bool,), "f": (int, float)}.get(dtype.kind, (int,))  # exact: a bool is no number
    low, high = (np.iinfo(dtype).min, np.iinfo(dtype).max) if dtype.name in _INT_TYPES else (-np.inf, np.inf)
    for leaf in leaves:
        if type(leaf) not in wanted or leaf < low or leaf > high:
            _refuse_type(leaf, dtype)
    return leaves


def to_bytes(leaf: Any) -> bytes:
    """The bytes of a string, or of an object that holds them in base64, with or without padding and with any spaces.

    Raises:
        RequestError: it is neither, or its text is no base64, or not UTF-8.
    """
    if is_base64(leaf):
        return _decode_base64(leaf["b64"])
    if isinstance(leaf, dict):
        raise RequestError(f"JSON Value: {quote(leaf)} not formatted correctly for base64 data")
    if not isinstance(leaf, str):
        _refuse_type(leaf, np.dtype(object))
    try:
        return leaf.encode("utf-8")
    except UnicodeEncodeError:
        raise RequestError("JSON Parse error: Invalid encoding in string.") from None


def _decode_base64(text: str) -> bytes:
    found = _BASE64.fullmatch(_SPACE.sub("", text))
    if found is None or len(found[1]) % 4 == 1 or len(found[2]) not in (0, -len(found[1]) % 4):
        raise RequestError("Unable to base64 decode")
    return base64.b64decode(found[1] + "=" * (-len(found[1]) % 4))


def _to_array(leaves: list, shape: list[int], dtype: np.dtype) -> np.ndarray:
    try:
        with np.errstate(over="ignore", under="ignore"):  # out of float32's range: infinity or zero
            wide = np.dtype(np.float64) if dtype.kind == "f" else dtype
            return np.array(leaves, wide).astype(dtype).reshape(shape)
    except OverflowError:
        raise RequestError("JSON Parse error: Number too big to be stored in double.") from None


def _check_rows(outputs: Mapping[str, np.ndarray]) -> None:
    batch = None
    for name, array in outputs.items():
        if array.ndim == 0:
            raise RequestError(f"Tensor name: {name} has no shape information ")
        if batch is not None and len(array) != batch:
            raise RequestError(f"Tensor name: {name} has inconsistent batch size: {len(array)} expecting: {batch}")
        batch = len(array)


def _tensor_json(name: str, array: np.ndarray, levels: int) -> list[str]:
    """The JSON texts of the sub-tensors that are left when the first `levels` dimensions are split."""
    if array.size and array.dtype.name not in _JSON_TYPES:
        raise RequestError(f"Failed to write JSON value for tensor type: {_tf_name(array.dtype)}")
    flat = array.reshape(-1)
    if array.dtype.kind == "O" and name.endswith("_bytes"):
        texts = [f'{{"b64": "{base64.b64encode(item).decode()}"}}' for item in flat]
    elif array.dtype.kind == "O":
        decoded = (item.decode("utf-8", "surrogateescape") for item in flat)
        texts = [json.dumps(item, ensure_ascii=False) for item in decoded]
    elif array.dtype.kind == "f":
        texts = decimals(flat)
    else:
        texts = [json.dumps(item) for item in flat.tolist()]
    for level in range(array.ndim - 1, levels - 1, -1):
        size, groups = array.shape[level], math.prod(array.shape[:level])
        texts = ["[" + ", ".join(texts[i * size : (i + 1) * size]) + "]" for i in range(groups)]
    return texts


def decimals(flat: np.ndarray) -> list[str]:
    """Six digits where they read back as the same number, else all that the type may need: nine, or seventeen."""
    texts = [f"{item:.6g}" for item in flat.tolist()]
    for index in np.flatnonzero(np.array(texts, flat.dtype) != flat):
        texts[index] = f"{flat[index].item():.{_ALL_DIGITS[flat.dtype.itemsize]}g}"
    return [_DECIMAL_WORDS.get(text) or (text + ".0" if text.lstrip("-").isdigit() else text) for text in texts]


def _object_json(names: list[str], values: Any) -> str:
    return "{" + ", ".join(f"{json.dumps(n)}: {v}" for n, v in zip(names, values, strict=True)) + "}"


def is_base64(value: Any) -> bool:
    """Whether it is an object with one key, `b64`, and a string there."""
    return isinstance(value, dict) and len(members(value)) == 1 and isinstance(value.get("b64"), str)


def until_nul(name: str) -> str:
    """The part of a key that TF Serving sees: it reads keys of rows and examples as C strings."""
    return name.partition("\0")[0]


def json_type(value: Any) -> str:
    return str(value) if isinstance(value, bool) else _JSON_KINDS.get(type(value), "Number")


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and not is_base64(value)


def _tf_name(dtype: np.dtype) -> str:
    return _TF_NAMES.get(dtype.name, dtype.name)


def _refuse_type(leaf: Any, dtype: np.dtype) -> NoReturn:
    raise RequestError(f"JSON Value: {quote(leaf)} Type: {json_type(leaf)} is not of expected type: {_tf_name(dtype)}")


def quote(value: Any) -> str:
    """The value as JSON for an error message, cut to a readable length."""
    if type(value) is float or (type(value) is int and not -(2**63) <= value < 2**64):
        return decimals(np.array([value], np.float32 if abs(value) <= _MAX_FLOAT else np.float64))[0]
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return "[...]"
    return text if len(text) <= _MAX_QUOTE else text[:_MAX_QUOTE] + "..."
