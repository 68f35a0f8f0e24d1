"""The stand-in REST server: TF Serving's HTTP contract over exported SavedModels.

It answers status, metadata, `:predict`, `:classify`, `:regress` and metrics. Not here: gRPC.
"""

import asyncio
import json
import os
import re
import signal
import socket
import threading
import time
import zlib
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from keras_bert.errors import ConfigError

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import Response
    from starlette.routing import Route
except ModuleNotFoundError as missing:
    raise ConfigError(f"the server needs {missing.name}: pip install keras3-bert[serve]") from missing

from keras_bert.server import json_tensor
from keras_bert.server.batching import Batcher
from keras_bert.server.counters import Metrics
from keras_bert.server.json_tensor import RequestError
from keras_bert.server.servable import ACTIONS, Servable
from keras_bert.server.settings import ModelConfig, ServerConfig
from keras_bert.server.swapping import Model, Watcher, log, not_found

METRICS_PATH = "/monitoring/prometheus/metrics"
_MODEL = r"/v1/models/([^/:]+)(?:/versions/([0-9]+)|/labels/([^/:]+))?"
_PATHS = {
    "POST": re.compile(rf"{_MODEL}:({'|'.join(ACTIONS)})", re.IGNORECASE),
    "GET": re.compile(_MODEL + r"(/metadata)?", re.IGNORECASE),
}
_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_MAX_VERSION = 2**63 - 1
_MAX_INFLATED = 100 * 2**20
_DRAIN_SECONDS = 30
_STATUS_NAMES = {
    200: "OK",
    400: "INVALID_ARGUMENT",
    404: "NOT_FOUND",
    413: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}  # others are INTERNAL
_EXAMPLES = {"O": '"some text"', "f": "1.0", "b": "true"}  # and 1


class Target(NamedTuple):
    """What a path asks for: `action` is a verb of `ACTIONS`, "/metadata" or ""."""

    name: str
    version: int | None
    label: str | None
    action: str


class Service:
    """The models and what their requests share; `answer` may be called from any thread."""

    def __init__(self, models: Mapping[str, ModelConfig], config: ServerConfig) -> None:
        self.config, self.metrics = config, Metrics()
        self.models = {name: Model(name, model, self.metrics) for name, model in models.items()}
        self._run = Batcher(config, self.metrics)

    def describe(self, target: Target) -> dict[str, Any]:
        """The answer to a status or metadata request; refusals are raised as RequestError."""
        model = self.models.get(target.name)
        if target.action:
            return self._find(target).metadata()
        if model is None:
            which = "any versions" if target.version is None else f"version {target.version}"
            raise RequestError(f"Could not find {which} of model {target.name}", status=404)
        return model.status(target.version, target.label)

    def answer(self, target: Target, body: bytes, gzipped: bool) -> bytes:
        """The body of the answer to a request for answers; refusals are raised as RequestError."""
        start, status = time.monotonic(), 500
        try:
            document = json_tensor.parse_document(self._inflate(body) if gzipped else body)
            action = ACTIONS[target.action]
            name, given = json_tensor.signature_name(document), action.read(document)
            content = action.answer(self._find(target), name, given, self._run)  # found late: a bad request comes first
            status = 200
            self._count_rows(target.name, document)
            return content
        except RequestError as error:
            status = error.status
            raise
        finally:
            if target.name in self.models:  # other names would let clients make up series
                self.metrics.count("request_count", target.name, _STATUS_NAMES.get(status, "INTERNAL"))
                elapsed = (time.monotonic() - start) * 1e6
                self.metrics.observe("request_latency", elapsed, target.name, target.action, "REST")

    def _count_rows(self, name: str, document: Mapping[str, Any]) -> None:
        rows = document.get("instances") or document.get("examples")
        if isinstance(rows, list):
            self.metrics.observe("request_example_counts", len(rows), name)
            self.metrics.count("request_example_count_total", name, by=len(rows))

    def _find(self, target: Target) -> Servable:
        if target.name not in self.models:
            raise not_found(target.name, target.version)
        return self.models[target.name].servable(target.version, target.label)

    def _inflate(self, body: bytes) -> bytes:
        """Undoes gzip; a broken body becomes an empty one, as in TF Serving."""
        inflater = zlib.decompressobj(zlib.MAX_WBITS | 16)
        limit = min(self.config.max_request_bytes, _MAX_INFLATED)
        try:
            text = inflater.decompress(body, limit + 1)
        except zlib.error:
            return b""
        if len(text) > limit:
            raise _too_large(limit)
        return text if inflater.eof else b""


def create_app(models: Mapping[str, str | ModelConfig], config: ServerConfig | None = None) -> Starlette:
    """Loads the models and returns the ASGI application that serves them.

    Args:
        models: for each model name, the base directory that holds its integer version directories, or more.

    Raises:
        ConfigError: no model is given, or a name cannot stand in a path.
        CheckpointError: a model cannot be loaded.
    """
    if not models:
        raise ConfigError("no model to serve; give at least one name with its base directory")
    for name in models:
        if not name or "/" in name or ":" in name:
            raise ConfigError(f"model name {name!r} cannot stand in a path; use letters, digits, - and _")
    config = config or ServerConfig()
    configs = {name: ModelConfig(model) if isinstance(model, str) else model for name, model in models.items()}
    service = Service(configs, config)
    # A request blocks its thread while it waits for company; TF Serving advises two per row of a batch.
    threads = ThreadPoolExecutor(max(4 * (os.cpu_count() or 1), 2 * config.max_batch_size), "request")

    async def answer(request: Request) -> Response:
        path = request.scope.get("raw_path", request.url.path.encode()).decode("latin-1")
        if path == METRICS_PATH and request.method == "GET":
            return Response(service.metrics.page(), media_type="text/plain")
        if not path.lower().startswith("/v1/"):
            return Response(status_code=404)
        try:
            target = _parse(request.method, path)
            if request.method == "GET":
                return Response(json.dumps(service.describe(target), indent=4), media_type="application/json")
            body = await _read(request, config.max_request_bytes)
            gzipped = "gzip" in request.headers.get("content-encoding", "").lower()
            loop = asyncio.get_running_loop()
            content = await loop.run_in_executor(threads, service.answer, target, body, gzipped)
            return Response(content, media_type="application/json")
        except RequestError as error:
            return _error_response(str(error), error.status)
        except ClientDisconnect:
            return Response(status_code=499)

    async def failed(request: Request, error: Exception) -> Response:
        return _error_response(f"internal error ({type(error).__name__}); the server's log has it", 500)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        watcher = Watcher(service.models.values(), config.file_system_poll_wait_seconds)
        if config.file_system_poll_wait_seconds:
            watcher.start()
        yield
        watcher.stop()

    routes = [Route("/{path:path}", answer, methods=_METHODS)]
    app = Starlette(routes=routes, exception_handlers={Exception: failed}, lifespan=lifespan)
    app.state.service = service
    return app


def serve(
    models: Mapping[str, str | ModelConfig],
    host: str = "127.0.0.1",
    port: int = 8501,
    config: ServerConfig | None = None,
) -> None:
    """Serves the models over HTTP until SIGTERM or SIGINT, then finishes open requests and returns.

    Prints one line per model on standard output once connections are accepted; what happens to versions later,
    and a request to try for each model, is logged. Outside the main thread (in a notebook, say) no signal is
    caught, and the server runs as long as its thread.

    Args:
        models: for each model name, the base directory that holds its integer version directories, or more.
        host: the address to listen on.
        port: the port to listen on; 0 picks a free one.

    Raises:
        ConfigError: the address cannot be used, no model is given, or a name cannot stand in a path.
        CheckpointError: a model cannot be loaded.
    """
    app = create_app(models, config)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=_DRAIN_SECONDS))
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"cannot listen on {host}:{port} ({error}); use another port, or 0") from error
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # or each answer waits 40 ms for an acknowledgement
    with listener, _stop_signals(server):
        address = f"[{host}]" if ":" in host else host
        for model in app.state.service.models.values():
            url = f"http://{address}:{listener.getsockname()[1]}/v1/models/{quote(model.name)}"
            servable = model.servable()
            print(f"serving {model.name} version {servable.version} on {url}", flush=True)
            log.info("try it: curl -d '%s' %s:predict", _example(servable), url)
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


def _parse(method: str, path: str) -> Target:
    if method == "GET" and path.lower() == "/v1/models":
        raise RequestError("Missing model name in request.")
    match = _PATHS[method].fullmatch(path) if method in _PATHS else None
    if not match:
        raise RequestError(f"Malformed request: {method} {path}")
    name, version, label, action = match.groups()
    digits = (version or "").lstrip("0")
    if len(digits) > 19 or int(digits or 0) > _MAX_VERSION:
        raise RequestError(f"Failed to convert version: {version} to numeric.")
    number = int(digits or 0) if version else None
    return Target(unquote(name), number, unquote(label) if label else None, (action or "").lower())


async def _read(request: Request, limit: int) -> bytes:
    """The body. One that is too large is still taken in, up to a point, so that the client reads the refusal."""
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            chunks.clear()
        else:
            chunks.append(chunk)
        if size > 4 * limit:
            break
    if size > limit:
        raise _too_large(limit)
    return b"".join(chunks)


def _too_large(limit: int) -> RequestError:
    return RequestError(f"The request body is larger than {limit} bytes", status=413)


def _example(servable: Servable) -> str:
    """A small request that the model's default signature can read."""
    signature = servable.signatures.get("serving_default") or next(iter(servable.signatures.values()))
    values = {}
    for name, shape in signature.inputs.items():
        value = _EXAMPLES.get(signature.dtypes[name].kind, "1")
        for size in reversed((shape or ())[1:]):
            value = "[" + ", ".join([value] * (size or 2)) + "]"
        values[name] = value
    inputs = ", ".join(f'"{name}": {value}' for name, value in values.items())
    extra = "" if signature.name == "serving_default" else f'"signature_name": "{signature.name}", '
    return f'{{{extra}"instances": [{next(iter(values.values())) if len(values) == 1 else f"{{{inputs}}}"}]}}'


def _error_response(message: str, status: int) -> Response:
    return Response(json.dumps({"error": message}), status, media_type="application/json")
