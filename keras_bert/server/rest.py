"""The stand-in REST server: TF Serving's HTTP contract over exported SavedModels.

It answers model status, metadata and `:predict` for the largest version of each model. Not here:
`:classify` and `:regress` (501), version labels, reloading of versions, gRPC, metrics.
"""

import json
import re
import signal
import socket
import threading
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from keras_bert.errors import CheckpointError, ConfigError

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import Response
    from starlette.routing import Route
except ModuleNotFoundError as missing:
    raise ConfigError(f"the server needs {missing.name}: pip install keras3-bert[serve]") from missing

import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401  (registers the tokenizer operations that exported models use)
from google.protobuf.json_format import MessageToDict
from tensorflow.core.protobuf import saved_model_pb2

from keras_bert.server import json_tensor
from keras_bert.server.json_tensor import RequestError

_MODEL = r"/v1/models/([^/:]+)(?:/versions/([0-9]+)|/labels/([^/:]+))?"
_POST_PATH = re.compile(_MODEL + r":(classify|regress|predict)", re.IGNORECASE)
_GET_PATH = re.compile(_MODEL + r"(/metadata)?", re.IGNORECASE)
_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_MAX_VERSION = 2**63 - 1
_MAX_INFLATED = 100 * 2**20
_DRAIN_SECONDS = 30

_HTTP_STATUS = {
    tf.errors.INVALID_ARGUMENT: 400,
    tf.errors.FAILED_PRECONDITION: 400,
    tf.errors.OUT_OF_RANGE: 400,
    tf.errors.UNAUTHENTICATED: 401,
    tf.errors.PERMISSION_DENIED: 403,
    tf.errors.NOT_FOUND: 404,
    tf.errors.ALREADY_EXISTS: 409,
    tf.errors.ABORTED: 409,
    tf.errors.RESOURCE_EXHAUSTED: 429,
    tf.errors.CANCELLED: 499,
    tf.errors.UNIMPLEMENTED: 501,
    tf.errors.UNAVAILABLE: 503,
    tf.errors.DEADLINE_EXCEEDED: 504,
}  # UNKNOWN, INTERNAL and DATA_LOSS are 500


class Servable:
    """The largest version of one exported model, loaded and ready to predict.

    Args:
        name: the name clients use in the path.
        base_dir: the directory that holds the version directories (`1/`, `2/`, ...).

    Raises:
        CheckpointError: there is no version directory, or the SavedModel in it cannot be loaded.
    """

    def __init__(self, name: str, base_dir: str):
        directory = _largest_version(Path(base_dir))
        self.name = name
        self.version = int(directory.name)
        try:
            signature_defs = _read_signature_defs(directory)
            self._model = tf.saved_model.load(str(directory))  # kept: it owns the variables
            self._functions = dict(self._model.signatures)
        except Exception as error:  # TensorFlow, protobuf and the file system each raise their own kinds
            reason = _first_line(str(error)) or type(error).__name__
            raise CheckpointError(
                f"{directory}: not a loadable SavedModel ({reason}); export the model again"
            ) from error
        self._dtypes = {
            signature: {
                key: np.dtype(tf.dtypes.as_dtype(info.dtype).as_numpy_dtype)
                for key, info in sorted(signature_defs[signature].inputs.items())
            }
            for signature in self._functions
        }
        self._signature_defs = {
            signature: MessageToDict(
                definition, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
            )
            for signature, definition in signature_defs.items()
        }

    def status(self) -> dict[str, Any]:
        """The answer to a status request."""
        state = {"error_code": "OK", "error_message": ""}
        version = {"version": str(self.version), "state": "AVAILABLE", "status": state}
        return {"model_version_status": [version]}

    def metadata(self) -> dict[str, Any]:
        """The answer to a metadata request: every signature with its inputs and outputs."""
        return {
            "model_spec": {"name": self.name, "signature_name": "", "version": str(self.version)},
            "metadata": {"signature_def": {"signature_def": self._signature_defs}},
        }

    def predict(self, document: Mapping[str, Any]) -> bytes:
        """Runs one parsed `:predict` request and returns the JSON body of its answer.

        Raises:
            RequestError: the request does not fit the model, or an operation in the graph failed.
        """
        signature = json_tensor.signature_name(document)
        if signature not in self._functions:
            raise RequestError(f'Serving signature name: "{signature}" not found in signature def')
        dtypes = self._dtypes[signature]
        if not dtypes:
            raise RequestError(f"Failed to get input map for signature: {signature}")
        inputs, row_form = json_tensor.read_inputs(document, dtypes)
        try:
            tensors = {key: tf.constant(value, tf.as_dtype(dtypes[key])) for key, value in inputs.items()}
            outputs = self._functions[signature](**tensors)
            arrays = {k: np.asarray(v.numpy(), v.dtype.as_numpy_dtype) for k, v in outputs.items()}
        except tf.errors.OpError as error:
            status = _HTTP_STATUS.get(error.error_code, 500)
            raise RequestError(_first_line(error.message), status) from error
        return json_tensor.write_outputs(arrays, row_form)


def create_app(models: dict[str, str]) -> Starlette:
    """Loads the models and returns the ASGI application that serves them.

    Args:
        models: for each model name, the base directory that holds its integer version directories.

    Raises:
        ConfigError: no model is given, or a name cannot stand in a path.
        CheckpointError: a model cannot be loaded.
    """
    if not models:
        raise ConfigError("no model to serve; give at least one name with its base directory")
    for name in models:
        if not name or "/" in name or ":" in name:
            raise ConfigError(f"model name {name!r} cannot stand in a path; use letters, digits, - and _")
    servables = {name: Servable(name, base_dir) for name, base_dir in models.items()}

    async def answer(request: Request) -> Response:
        path = request.scope.get("raw_path", request.url.path.encode()).decode("latin-1")
        if not path.lower().startswith("/v1/"):
            return Response(status_code=404)
        try:
            body = await request.body()
            gzipped = "gzip" in request.headers.get("content-encoding", "").lower()
            content = await run_in_threadpool(_respond, servables, request.method, path, body, gzipped)
        except RequestError as error:
            return _error_response(str(error), error.status)
        except ClientDisconnect:
            return Response(status_code=499)
        return Response(content, media_type="application/json")

    async def failed(request: Request, error: Exception) -> Response:
        return _error_response(f"internal error ({type(error).__name__}); the server's log has it", 500)

    app = Starlette(routes=[Route("/{path:path}", answer, methods=_METHODS)], exception_handlers={Exception: failed})
    app.state.servables = servables
    return app


def serve(models: dict[str, str], host: str = "127.0.0.1", port: int = 8501) -> None:
    """Serves the models over HTTP until SIGTERM or SIGINT, then finishes open requests and returns.

    Prints one line per model on standard output once connections are accepted. Outside the main thread
    (in a notebook, say) no signal is caught, and the server runs as long as its thread.

    Args:
        models: for each model name, the base directory that holds its integer version directories.
        host: the address to listen on.
        port: the port to listen on; 0 picks a free one.

    Raises:
        ConfigError: the address cannot be used, no model is given, or a name cannot stand in a path.
        CheckpointError: a model cannot be loaded.
    """
    app = create_app(models)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=_DRAIN_SECONDS)
    server = uvicorn.Server(config)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"cannot listen on {host}:{port} ({error}); use another port, or 0") from error
    with listener, _stop_signals(server):
        address = f"[{host}]" if ":" in host else host
        for servable in app.state.servables.values():
            url = f"http://{address}:{listener.getsockname()[1]}/v1/models/{servable.name}"
            print(f"serving {servable.name} version {servable.version} on {url}", flush=True)
        server.run(sockets=[listener])


@contextmanager
def _stop_signals(server: uvicorn.Server) -> Iterator[None]:
    """Makes SIGTERM and SIGINT a normal end: uvicorn raises them again after its own shutdown."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: Any) -> None:
        server.should_exit = True

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _respond(servables: Mapping[str, Servable], method: str, path: str, body: bytes, gzipped: bool) -> bytes:
    """The body of the answer to one request; refusals are raised as RequestError."""
    if method == "GET" and path.lower() == "/v1/models":
        raise RequestError("Missing model name in request.")
    pattern = {"GET": _GET_PATH, "POST": _POST_PATH}.get(method)
    match = pattern.fullmatch(path) if pattern else None
    if not match:
        raise RequestError(f"Malformed request: {method} {path}")
    name, version_text, label, action = match.groups()
    name, digits = unquote(name), (version_text or "").lstrip("0")
    if len(digits) > 19 or int(digits or 0) > _MAX_VERSION:
        raise RequestError(f"Failed to convert version: {version_text} to numeric.")
    version = int(digits or 0) if version_text else None
    if label:
        raise RequestError(f"Unrecognized servable version label: {unquote(label)}")

    servable = servables.get(name)
    if servable and version not in (None, servable.version):
        servable = None
    if method == "GET" and not action:
        if not servable:
            which = "any versions" if version is None else f"version {version}"
            raise RequestError(f"Could not find {which} of model {name}", status=404)
        return json.dumps(servable.status(), indent=4).encode()
    document = json_tensor.parse_document(_inflate(body) if gzipped else body) if method == "POST" else {}
    if not servable:
        which = f"Latest({name})" if version is None else f"Specific({name}, {version})"
        raise RequestError(f"Servable not found for request: {which}", status=404)
    if method == "GET":
        return json.dumps(servable.metadata(), indent=4).encode()
    if action.lower() != "predict":
        raise RequestError(f":{action} is not implemented by this server; use :predict", status=501)
    return servable.predict(document)


def _inflate(body: bytes) -> bytes:
    """Undoes gzip; a broken or oversized body becomes an empty one, as in TF Serving."""
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        text = inflater.decompress(body, _MAX_INFLATED)
    except zlib.error:
        return b""
    return text if inflater.eof else b""


def _error_response(message: str, status: int) -> Response:
    return Response(json.dumps({"error": message}), status, media_type="application/json")


def _largest_version(base_dir: Path) -> Path:
    if (base_dir / "saved_model.pb").is_file():
        raise CheckpointError(f"{base_dir}: is a SavedModel itself; give the directory that holds it")
    if not base_dir.is_dir():
        raise CheckpointError(f"{base_dir}: no such directory; give the one that holds the versions (1/, 2/)")
    versions = [
        child for child in base_dir.iterdir() if child.is_dir() and child.name.isascii() and child.name.isdigit()
    ]
    if not versions:
        raise CheckpointError(f"{base_dir}: no version directory in it; export the model to {base_dir / '1'}")
    return max(versions, key=lambda child: int(child.name))


def _read_signature_defs(directory: Path) -> dict[str, Any]:
    """The signatures as the file states them, with the names and dims that metadata answers carry."""
    saved_model = saved_model_pb2.SavedModel()
    saved_model.ParseFromString((directory / "saved_model.pb").read_bytes())
    graphs = [graph for graph in saved_model.meta_graphs if "serve" in graph.meta_info_def.tags]
    if not graphs:
        raise ValueError("no graph tagged 'serve' in saved_model.pb")
    return dict(graphs[0].signature_def)


def _first_line(message: str) -> str:
    """The line of an error that says what is wrong, without TensorFlow's frame around it."""
    for line in message.splitlines():
        line = re.sub(r"\{\{function_node .*?\}\} ?|\s*\[Op:[^\]]*\]|^\s*\(\d+\) +", "", line).strip()
        frame = ("Graph execution error", "Detected at node", "<stack traces", "[[{{", "File ")
        if line and not line.startswith(frame) and not line.endswith("root error(s) found."):
            return line
    return ""
