"""A client of TensorFlow Serving, over REST or gRPC, in one file.

    python export/client.py --url=http://localhost:8501 --model=bert "some text"
    python export/client.py --url=grpc://localhost:8500 --model=bert "some text"

    client = Client("http://localhost:8501", "bert")
    client.predict(["some text"])

Bytes are sent as they are, arrays and numbers of NumPy as lists and numbers.
REST needs the standard library alone; gRPC needs grpcio, and neither TensorFlow nor tensorflow-serving-api: the few
messages are written and read here. Neither needs keras_bert, so the file may be copied into any project.
Connection errors and answers 503 are tried again after a growing pause; nothing else is.
"""

import argparse
import base64
import http.client
import json
import random
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import quote, urlsplit

# === Errors ===


class ServingError(Exception):
    """The server could not answer (the message is the server's), or what it sent is no answer."""


class BadRequest(ServingError):
    """The request does not fit the model, or is too large, or cannot be sent; sending it again is of no use."""


class NotFound(ServingError):
    """There is no such model or version, or it is not loaded yet."""


class Unavailable(ServingError):
    """No connection, or a server that is too busy, after all attempts."""


class Timeout(ServingError):
    """No answer in time."""


HTTP_ERRORS = {400: BadRequest, 413: BadRequest, 404: NotFound, 503: Unavailable, 504: Timeout}
GRPC_ERRORS = {
    "INVALID_ARGUMENT": BadRequest,
    "FAILED_PRECONDITION": BadRequest,
    "OUT_OF_RANGE": BadRequest,
    "NOT_FOUND": NotFound,
    "UNAVAILABLE": Unavailable,
    "DEADLINE_EXCEEDED": Timeout,
}


# === The client ===


class Client:
    """Asks one model; safe to share between threads.

    Args:
        url: `http://`, `https://` (REST) or `grpc://` with host and port.
        model: the name of the model.
        version: a version number; None takes the newest.
        timeout: seconds that one attempt may take.
        retries: attempts after the first, each after a pause of `pause * 2**attempt` seconds, more or less.
    """

    def __init__(
        self,
        url: str,
        model: str,
        version: int | None = None,
        timeout: float = 30.0,
        retries: int = 3,
        pause: float = 0.2,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https", "grpc") or not parts.hostname:
            raise ValueError(f"url must be http://, https:// or grpc://HOST:PORT, got {url!r}")
        self.timeout, self.retries, self.pause = timeout, retries, pause
        kind = _Grpc if parts.scheme == "grpc" else _Rest
        self._transport: _Rest | _Grpc = kind(parts, model, version)

    def predict(self, instances: Iterable[Any], signature_name: str = "serving_default") -> list[Any]:
        """One answer for each instance.

        An instance is the value of the only input (a text, say), or a dict of values by input name. An answer is
        the value of the only output, or a dict of values by name.

        Raises:
            BadRequest, NotFound, Unavailable, Timeout: see there; ServingError: anything else.
        """
        rows = _rows(instances)
        if not isinstance(signature_name, str):
            raise BadRequest(f"signature_name must be a string, got {signature_name!r}")
        answers = self._patiently(lambda: self._transport.predict(rows, signature_name, self.timeout))
        if not isinstance(answers, list) or len(answers) != len(rows):
            raise ServingError(f"the server's answer does not have one entry for each of {len(rows)} instances")
        return answers

    def ready(self) -> bool:
        """Is the model loaded, so that it would answer now?"""
        try:
            self._transport.check(self.timeout)
        except (NotFound, Unavailable, Timeout):
            return False
        return True

    def _patiently(self, attempt: Callable[[], list[Any]]) -> list[Any]:
        for i in range(self.retries):
            try:
                return attempt()
            except Unavailable:
                time.sleep(self.pause * 2**i * random.uniform(0.5, 1.5))
        return attempt()


def _rows(instances: Any) -> list[Any]:
    """The instances as lists, dicts, strings, bytes and numbers of Python."""
    rows = None if isinstance(instances, str | bytes) else _plain(instances)
    if not isinstance(rows, list):
        raise BadRequest(f"instances must be a list, got {type(instances).__name__}; put a single one into a list")
    return rows


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | bytes | bool | int | float):
        return value
    if isinstance(value, dict):
        wrong = next((key for key in value if not isinstance(key, str)), None)
        if wrong is not None:
            raise BadRequest(f"the keys of an instance must be names of inputs, got {wrong!r}")
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    for convert in ("tolist", "numpy"):  # arrays and numbers of NumPy and its like, tensors of TensorFlow
        if hasattr(value, convert):
            return _plain(getattr(value, convert)())
    if isinstance(value, Iterable):
        return [_plain(item) for item in value]
    raise BadRequest(f"a value of type {type(value).__name__} cannot be sent")


class _Rest:
    def __init__(self, parts: Any, model: str, version: int | None) -> None:
        self._connect = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._address = (parts.hostname, parts.port)
        at = "" if version is None else f"/versions/{version}"
        self._path = f"{parts.path.rstrip('/')}/v1/models/{quote(model, safe='')}{at}"

    def predict(self, rows: list[Any], signature_name: str, timeout: float) -> Any:
        document = {"signature_name": signature_name, "instances": rows}
        answer = self._ask("POST", ":predict", timeout, json.dumps(document, default=_base64).encode())
        if "predictions" not in answer:
            raise ServingError("the server's answer has no predictions")
        return answer["predictions"]

    def check(self, timeout: float) -> None:
        self._ask("GET", "/metadata", timeout)

    def _ask(self, method: str, what: str, timeout: float, body: bytes | None = None) -> dict[str, Any]:
        host, port = self._address
        connection = self._connect(host, port, timeout=timeout)
        try:
            connection.request(method, self._path + what, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            status, content = response.status, response.read()
        except TimeoutError as error:
            raise Timeout(f"no answer from {host}:{port} within {timeout} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"{host}:{port}: {str(error) or type(error).__name__}") from error
        finally:
            connection.close()
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            answer = None
        start = content[:200].decode("utf-8", "replace")
        if status != 200:
            message = answer.get("error") if isinstance(answer, dict) else start
            raise HTTP_ERRORS.get(status, ServingError)(message or f"status {status}")
        if not isinstance(answer, dict):
            raise ServingError(f"{host}:{port} did not answer with a JSON object, but with {start!r}")
        return answer


def _base64(value: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(value).decode()}


class _Grpc:
    def __init__(self, parts: Any, model: str, version: int | None) -> None:
        try:
            import grpc
        except ModuleNotFoundError as missing:
            raise ServingError("grpc:// needs grpcio: pip install grpcio") from missing
        self._error = grpc.RpcError
        unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self._call = grpc.insecure_channel(parts.netloc, unlimited).unary_unary
        number = b"" if version is None else _field(2, _number(1, version))
        self._spec = _field(1, model.encode()) + number
        self._inputs: dict[str, dict[str, int]] = {}

    def predict(self, rows: list[Any], signature_name: str, timeout: float) -> Any:
        inputs = self._inputs_of(signature_name, timeout)
        only = next(iter(inputs)) if len(inputs) == 1 else ""
        rows = [row if isinstance(row, dict) else {only: row} for row in rows]
        if not rows or any(row.keys() != inputs.keys() for row in rows):
            raise BadRequest(f"there must be instances, each with the inputs {sorted(inputs)}")
        request = _field(1, self._spec + _field(3, signature_name.encode()))
        for name, kind in inputs.items():
            tensor = _write_tensor([row[name] for row in rows], kind)
            request += _field(2, _field(1, name.encode()) + _field(2, tensor))
        return _readable(_read_answer, self._ask("Predict", request, timeout))

    def check(self, timeout: float) -> bytes:
        request = _field(1, self._spec) + _field(2, b"signature_def")
        return self._ask("GetModelMetadata", request, timeout)

    def _inputs_of(self, signature_name: str, timeout: float) -> dict[str, int]:
        """The inputs of a signature and the numbers of their types; asked for once."""
        if signature_name not in self._inputs:
            definitions = _readable(_read_signatures, self.check(timeout))
            if signature_name not in definitions:
                raise BadRequest(f"the model has no signature {signature_name!r}; it has {sorted(definitions)}")
            self._inputs[signature_name] = _readable(_read_inputs, definitions[signature_name])
        return self._inputs[signature_name]

    def _ask(self, method: str, request: bytes, timeout: float) -> bytes:
        try:
            return self._call(f"/tensorflow.serving.PredictionService/{method}")(request, timeout=timeout)
        except self._error as error:
            raise GRPC_ERRORS.get(error.code().name, ServingError)(error.details()) from error


def _readable(read: Callable[[bytes], Any], message: bytes) -> Any:
    """What `read` finds in a message of the server."""
    try:
        return read(message)
    except (IndexError, KeyError, TypeError, ValueError, struct.error) as error:
        raise ServingError(f"the server's answer cannot be read ({type(error).__name__}: {error})") from error


def _read_answer(message: bytes) -> Any:
    outputs = {name: _read_tensor(tensor) for name, tensor in _entries(message, 1)}
    if len(outputs) == 1:
        return next(iter(outputs.values()))
    return [dict(zip(outputs, row, strict=True)) for row in zip(*outputs.values(), strict=True)]


def _read_signatures(message: bytes) -> dict[str, bytes]:
    packed = dict(_entries(message, 2))["signature_def"]  # a google.protobuf.Any
    return dict(_entries(dict(_fields(packed))[2], 1))


def _read_inputs(signature: bytes) -> dict[str, int]:
    return {name: dict(_fields(info))[2] for name, info in _entries(signature, 1)}


# === Protocol buffers: as much as Predict needs ===

STRING = 7
NUMBERS = {1: "f", 2: "d", 3: "i", 4: "B", 5: "h", 6: "b", 9: "q", 10: "?", 22: "I", 23: "Q"}
"""TensorFlow's numbers of the types that have a JSON form, and how `struct` calls them."""
PACKED = {5: "f", 6: "d"}
VARINTS = (7, 10, 11, 16, 17)
"""The fields of a TensorProto that hold values: decimals of fixed size, and whole numbers of any."""


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _field(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """`(number, value)` of each field of a message: an int for a varint, else bytes."""
    position = 0
    while position < len(data):
        key, position = _read_varint(data, position)
        if key & 7 == 0:
            value, position = _read_varint(data, position)
            yield key >> 3, value
            continue
        size = {1: 8, 5: 4}.get(key & 7)
        if size is None:
            size, position = _read_varint(data, position)
        yield key >> 3, data[position : position + size]
        position += size


def _entries(data: bytes, field: int) -> Iterator[tuple[str, bytes]]:
    """The entries of a map with messages for values."""
    for number, entry in _fields(data):
        if number == field:
            parts = dict(_fields(entry))
            yield parts[1].decode(), parts.get(2, b"")


def _write_tensor(values: list[Any], kind: int) -> bytes:
    shape: list[int] = []
    first: Any = values
    while isinstance(first, list):
        shape.append(len(first))
        first = first[0] if first else None
    leaves = list(_flat(values, shape))
    if kind != STRING and kind not in NUMBERS:
        raise BadRequest(f"inputs of TensorFlow's type {kind} cannot be sent")
    dims = b"".join(_field(2, _number(1, size)) for size in shape)
    tensor = _number(1, kind) + _field(2, dims)
    try:
        if kind == STRING:
            return tensor + b"".join(_field(8, v if isinstance(v, bytes) else v.encode()) for v in leaves)
        return tensor + _field(4, struct.pack(f"<{len(leaves)}{NUMBERS[kind]}", *leaves))
    except (struct.error, AttributeError, OverflowError, UnicodeEncodeError) as error:
        raise BadRequest(f"a value is of the wrong type for the input ({error})") from error


def _flat(value: Any, shape: list[int]) -> Iterator[Any]:
    if isinstance(value, list) != bool(shape) or (shape and len(value) != shape[0]):
        raise BadRequest("the lists of one input must have the same lengths")
    if not shape:
        yield value
        return
    for item in value:
        yield from _flat(item, shape[1:])


def _read_tensor(data: bytes) -> Any:
    kind, shape, leaves = 0, [], []
    for number, value in _fields(data):
        if number == 1:
            kind = value
        elif number == 2:
            shape = [dict(_fields(dim)).get(1, 0) for n, dim in _fields(value) if n == 2]
        elif number == 4:
            leaves = [x for (x,) in struct.iter_unpack(f"<{NUMBERS[kind]}", value)]
        elif number == 8:
            leaves.append(value.decode("utf-8", "replace"))
        elif number in PACKED:
            leaves += [x for (x,) in struct.iter_unpack(f"<{PACKED[number]}", value)]
        elif number in VARINTS:
            leaves += [_cast(x, kind) for x in ([value] if isinstance(value, int) else _varints(value))]
    size = 1
    for n in shape:
        size *= n
    leaves += leaves[-1:] * (size - len(leaves))  # a value that repeats to the end may be written once
    for n in reversed(shape[1:]):
        leaves = [leaves[i : i + n] for i in range(0, len(leaves), n)] if n else [[]] * shape[0]
    return leaves if shape else leaves[0]


def _varints(data: bytes) -> Iterator[int]:
    position = 0
    while position < len(data):
        value, position = _read_varint(data, position)
        yield value


def _cast(value: int, kind: int) -> int | bool:
    if NUMBERS.get(kind) == "?":
        return bool(value)
    return value - 2**64 if value >= 2**63 and NUMBERS.get(kind) != "Q" else value


# === As a script ===


def main(argv: list[str] | None = None) -> int:
    """Print one line of JSON for each text; errors are one line, with exit code 1."""
    parser = argparse.ArgumentParser(description="Ask a served model about texts.", allow_abbrev=False)
    parser.add_argument("--url", default="http://localhost:8501", help="http://, https:// or grpc://HOST:PORT")
    parser.add_argument("--model", required=True, help="name of the model")
    parser.add_argument("--version", type=int, help="version number (default: the newest)")
    parser.add_argument("--signature_name", default="serving_default", help="signature to ask")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds that one attempt may take")
    parser.add_argument("texts", nargs="+", metavar="text")
    args = parser.parse_args(argv)
    try:
        client = Client(args.url, args.model, args.version, args.timeout)
        for answer in client.predict(args.texts, args.signature_name):
            print(json.dumps(answer, ensure_ascii=False))
    except (ServingError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
