"""JSON to arrays and back, the way TF Serving's REST interface does it. Needs NumPy alone.

A request document holds either `instances` (row form: a list with one element per row) or `inputs`
(columnar form: whole tensors). Strings are `object` arrays of `bytes`. Messages follow TF Serving's
wording, except that values quoted in them are cut short, and that text which is not valid UTF-8 (or a
lone surrogate escape) is refused here, where TF Serving lets raw bytes through.
"""

import base64
import json
import math
import re
from collections.abc import Mapping
from itertools import chain
from typing import Any, NoReturn

import numpy as np

_TF_NAMES = {"object": "string", "float32": "float", "float64": "double", "float16": "half"}
_INT_TYPES = ("int8", "int16", "int32", "int64", "uint8", "uint32", "uint64")  # TF Serving lacks uint16
_JSON_TYPES = ("object", "bool", "float32", "float64", *_INT_TYPES)  # and float16
_DECIMAL_WORDS = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
_MAX_RANK = 64  # NumPy's own limit
_MAX_QUOTE = 200
_MAX_DEEP = 2 * 2**20  # characters that are read without recursion: some seconds
_SPACE = re.compile(r"[ \t\r\n]*")


class RequestError(Exception):
    """A request that cannot be answered: `status` is the HTTP code, the text goes in the body."""

    def __init__(self, message: str, status: int = 400):
        super().__init__(message)
        self.status = status


def parse_document(body: bytes) -> dict[str, Any]:
    """Reads the JSON object at the start of a request body; bytes after it are ignored.

    Raises:
        RequestError: the body is empty, not JSON, not an object, or large and nested thousands of levels deep.
    """
    text = body.decode("utf-8", "surrogateescape").removeprefix("\ufeff").lstrip(" \t\r\n")
    if not text:
        raise RequestError("JSON Parse error: The document is empty")
    try:
        try:
            document, _ = json.JSONDecoder().raw_decode(text)
        except RecursionError:
            if len(text) > _MAX_DEEP:
                raise RequestError("JSON Parse error: The document is nested too deeply.") from None
            document = _parse_deep(text)
    except json.JSONDecodeError as error:
        raise RequestError(f"JSON Parse error: Invalid value. at offset: {error.pos}") from None
    except ValueError:  # an integer with more digits than Python converts
        raise RequestError("JSON Parse error: Number too big to be stored in double.") from None
    if not isinstance(document, dict):
        raise RequestError(f"JSON Value: {quote(document)} Is not object")
    return document


def _parse_deep(text: str) -> Any:
    """The JSON value at the start of `text`, read without recursion; slow, so only for what nests deeply.

    Raises:
        json.JSONDecodeError: there is none.
    """
    decoder, position = json.JSONDecoder(), 0
    root: list = []
    open_ones: list[list | dict] = [root]  # the containers that are not closed,
    keys = [""]  # and the last key of each
    while not root or len(open_ones) > 1:
        position = _SPACE.match(text, position).end()  # type: ignore[union-attr]  # it matches anywhere
        sign, inner = text[position : position + 1], open_ones[-1]
        if sign and sign in "]}" and len(open_ones) > 1 and sign == ("]" if isinstance(inner, list) else "}"):
            open_ones.pop()
            keys.pop()
            position += 1
            continue
        if inner is not root and inner:
            position = _skip(text, position, ",")
        if isinstance(inner, dict):
            if text[position : position + 1] != '"':
                raise json.JSONDecodeError("Missing a name for object member", text, position)
            keys[-1], position = decoder.raw_decode(text, position)
            position = _skip(text, position, ":")
        value: Any
        if text[position : position + 1] in ("[", "{"):
            value = [] if text[position] == "[" else {}
            position += 1
        else:
            value, position = decoder.raw_decode(text, position)
        if isinstance(inner, dict):
            inner[keys[-1]] = value
        else:
            inner.append(value)
        if isinstance(value, list | dict):
            open_ones.append(value)
            keys.append("")
    return root[0]


def _skip(text: str, position: int, sign: str) -> int:
    """The place of the next value after `sign`, which must come next."""
    position = _SPACE.match(text, position).end()  # type: ignore[union-attr]
    if text[position : position + 1] != sign:
        raise json.JSONDecodeError(f"Expecting {sign!r}", text, position)
    return _SPACE.match(text, position + 1).end()  # type: ignore[union-attr]


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
            "'inputs' or 'instances' keys to exist"
        )
    if "instances" in document:
        rows = document["instances"]
        if not isinstance(rows, list):
            raise RequestError(f"JSON Value: {quote(document)} Excepting 'instances' to be an list/array")
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
        for name, value in row.items() if named else [(only, row)]:
            try:
                shape, values = _flatten(value, name, dtypes)
                _check_same(shapes.setdefault(name, shape), shape)
            except RequestError as error:
                where = f"element: {index} key: {name}" if named else f"element: {index}"
                raise RequestError(
                    f"Failed to process {where} of 'instances' list. Error: INVALID_ARGUMENT: {error}"
                ) from None
            leaves[name] += values
        if named and row.keys() != dtypes.keys():
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
    leaves = [value]
    for level, size in enumerate(shape):
        for item in leaves:
            if not isinstance(item, list):
                raise RequestError(
                    f"JSON Value: {quote(item)} found at incorrect level: {level + 1} in the JSON DOM. "
                    f"Expected at level: {len(shape)}"
                )
            if len(item) != size:
                raise RequestError(
                    f"Encountered list at unexpected size: {len(item)} at level: {level} expected size: {size}"
                )
        leaves = list(chain.from_iterable(leaves))
    if any(isinstance(item, list) for item in leaves):
        raise RequestError(f"Encountered list at unexpected level: {len(shape)} expected < {len(shape)}")
    return shape, _check_leaves(leaves, dtypes[name])


def _check_same(first: list[int], shape: list[int]) -> None:
    if math.prod(shape) != math.prod(first):
        raise RequestError(f"Expecting tensor size: {math.prod(first)} but got: {math.prod(shape)}")
    if shape != first:
        first_text, text = (",".join(map(str, dims)) for dims in (first, shape))
        raise RequestError(f"Expecting shape [{first_text}] but got: [{text}]")


def _check_leaves(leaves: list, dtype: np.dtype) -> list:
    """The values as Python objects that fit `dtype`: bytes for strings, the rest as they came."""
    if dtype.name not in _JSON_TYPES:
        raise RequestError(f"Conversion of JSON Value to type: {_tf_name(dtype)}", status=501)
    if dtype.kind == "O":
        return [to_bytes(leaf) for leaf in leaves]
    wanted = {"b": (bool,), "f": (int, float)}.get(dtype.kind, (int,))  # exact: a bool is no number
    low, high = (np.iinfo(dtype).min, np.iinfo(dtype).max) if dtype.name in _INT_TYPES else (-np.inf, np.inf)
    for leaf in leaves:
        if type(leaf) not in wanted or leaf < low or leaf > high:
            _refuse_type(leaf, dtype)
    return leaves


def to_bytes(leaf: Any) -> bytes:
    if is_base64(leaf):
        encoded = leaf["b64"]
        try:
            return base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
        except ValueError:
            raise RequestError("Unable to base64 decode") from None
    if isinstance(leaf, dict):
        raise RequestError(f"JSON Value: {quote(leaf)} not formatted correctly for base64 data")
    if not isinstance(leaf, str):
        _refuse_type(leaf, np.dtype(object))
    try:
        return leaf.encode("utf-8")
    except UnicodeEncodeError:
        raise RequestError("JSON Parse error: Invalid encoding in string.") from None


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
    if array.dtype.name not in _JSON_TYPES:
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
    """Six digits where they read back as the same number, else as many as that takes."""
    texts = [f"{item:.6g}" for item in flat.tolist()]
    for index in np.flatnonzero(np.array(texts, flat.dtype) != flat):
        texts[index] = str(flat[index])
    return [_DECIMAL_WORDS.get(text) or (text + ".0" if text.lstrip("-").isdigit() else text) for text in texts]


def _object_json(names: list[str], values: Any) -> str:
    return "{" + ", ".join(f"{json.dumps(n)}: {v}" for n, v in zip(names, values, strict=True)) + "}"


def is_base64(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and not is_base64(value)


def _tf_name(dtype: np.dtype) -> str:
    return _TF_NAMES.get(dtype.name, dtype.name)


def _refuse_type(leaf: Any, dtype: np.dtype) -> NoReturn:
    kinds = {"NoneType": "Null", "bool": str(leaf), "dict": "Object", "list": "Array", "str": "String"}
    kind = kinds.get(type(leaf).__name__, "Number")
    raise RequestError(f"JSON Value: {quote(leaf)} Type: {kind} is not of expected type: {_tf_name(dtype)}")


def quote(value: Any) -> str:
    """The value as JSON for an error message, cut to a readable length."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return "[...]"
    return text if len(text) <= _MAX_QUOTE else text[:_MAX_QUOTE] + "..."
