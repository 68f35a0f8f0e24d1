"""The stand-in REST server: TF Serving's HTTP contract over exported SavedModels.

It answers status, metadata, `:predict`, `:classify`, `:regress` and metrics. Not here: gRPC.
"""

import asyncio
import gzip
import io
import json
import os
import re
import time
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import unquote

from keras_bert.errors import ConfigError

try:
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import Response
    from starlette.routing import Route
except ModuleNotFoundError as missing:
    raise ConfigError(f"the server needs {missing.name}: pip install keras3-bert[serve]") from missing

from keras_bert.server import json_tensor, openai
from keras_bert.server.batching import Batcher, rows_of
from keras_bert.server.counters import Metrics
from keras_bert.server.json_tensor import RequestError
from keras_bert.server.servable import ACTIONS, Call, Servable
from keras_bert.server.settings import ModelConfig, ServerConfig
from keras_bert.server.swapping import Models, Watcher, not_found

METRICS_PATH = "/monitoring/prometheus/metrics"
_WHICH = r"(?:/versions/([0-9]+)|/labels/([^/:]+))?"
_PATHS = {
    "POST": re.compile(rf"/v1/models/([^/:]+){_WHICH}:({'|'.join(ACTIONS)})", re.IGNORECASE),
    "GET": re.compile(rf"/v1/models(?:/([^/:]+))?{_WHICH}(/metadata)?", re.IGNORECASE),
}
_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": "Content-Type",
}
_MAX_VERSION = 2**63 - 1
_MAX_INFLATED = 100 * 2**20
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


Reread = Callable[[], Mapping[str, ModelConfig]]


class Target(NamedTuple):
    """What a path asks for: `action` is a verb of `ACTIONS`, "/metadata" or ""."""

    name: str
    version: int | None
    label: str | None
    action: str


class Service:
    """The models and what their requests share; all requests are answered on one event loop."""

    def __init__(self, models: Mapping[str, ModelConfig], config: ServerConfig, reread: Reread | None = None) -> None:
        self.config, self.metrics = config, Metrics()
        self.models = Models(models, self.metrics, reread or (lambda: models))
        self._run = Batcher(config, self.metrics)
        self._threads = ThreadPoolExecutor(2 + (os.cpu_count() or 1), "request")  # they read and write, and never wait
        self._jobs: set[Future] = set()
        self.watcher = Watcher(
            (config.file_system_poll_wait_seconds, self.models.poll),
            (config.model_config_file_poll_wait_seconds, self.models.reload),
        )

    def describe(self, target: Target) -> dict[str, Any]:
        """The answer to a status or metadata request; refusals are raised as RequestError.

        The status of a label is that of all versions, as in TF Serving, even if there is no such label.
        """
        model = self.models.by_name.get(target.name)
        if target.action:
            return self._find(target).metadata()
        if model is None:
            which = "any versions" if target.version is None else f"version {target.version}"
            raise RequestError(f"Could not find {which} of model {target.name}", status=404)
        return model.status(target.version)

    async def answer(self, target: Target, body: bytes, gzipped: bool) -> bytes:
        """The body of the answer to a request for answers; refusals are raised as RequestError."""
        return await self._answer(target, partial(self._read, target, body, gzipped))

    async def answer_at(self, door: openai.Door, body: bytes, gzipped: bool) -> bytes:
        """The body of the answer to a request of another kind of client, which names its model itself."""
        document = await self._in_thread(self._parse, body, gzipped)
        target = Target(openai.model_of(document, self.models.by_name), None, None, door.action)
        return await self._answer(target, lambda: door.read(self._find(target), document))

    async def _answer(self, target: Target, read: Callable[[], Call]) -> bytes:
        """Reads a request, runs it, and writes the answer.

        When this is cancelled, or `request_timeout` is over, what is not computed yet never is.
        """
        start, status, seconds = time.monotonic(), 500, self.config.request_timeout
        try:
            async with asyncio.timeout(seconds or None):
                call = await self._in_thread(read)
                self._check_rows(rows_of(call.inputs))
                outputs = await self._run(call.signature, call.inputs)
                content = await self._in_thread(call.write, outputs)
            status = 200
            self._count_rows(target.name, rows_of(call.inputs))
            return content
        except TimeoutError:
            status = 504
            raise RequestError(f"The request took longer than the {seconds:g} s of --request_timeout", 504) from None
        except asyncio.CancelledError:
            status = 499
            raise
        except RequestError as error:
            status = error.status
            raise
        finally:
            if target.name in self.models.by_name:  # other names would let clients make up series
                self.metrics.count("request_count", target.name, _STATUS_NAMES.get(status, "INTERNAL"))
                elapsed = (time.monotonic() - start) * 1e6
                self.metrics.observe("request_latency", elapsed, target.name, target.action, "REST")

    def is_idle(self) -> bool:
        """Is nothing being read, computed, written or loaded?"""
        return not (self._jobs or self._run.running or self.watcher.is_alive())

    async def _in_thread(self, work: Callable[..., Any], *args: Any) -> Any:
        """What `work` gives, while other requests go on."""
        job = self._threads.submit(work, *args)
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)
        return await asyncio.wrap_future(job)

    def _read(self, target: Target, body: bytes, gzipped: bool) -> Call:
        document = self._parse(body, gzipped)
        for rows in (document.get("instances"), document.get("examples")):
            self._check_rows(len(rows) if isinstance(rows, list) else 0)
        action = ACTIONS[target.action]
        name, given = json_tensor.signature_name(document), action.read(document)
        return action.call(self._find(target), name, given)  # found late: a bad request comes first

    def _parse(self, body: bytes, gzipped: bool) -> dict[str, Any]:
        return json_tensor.parse_document(self._inflate(body) if gzipped else body)

    def _check_rows(self, rows: int) -> None:
        most = self.config.max_request_rows
        if rows > most:
            raise RequestError(f"The request has {rows} rows, but --max_request_rows is {most}; send parts of it", 413)

    def _count_rows(self, name: str, rows: int) -> None:
        if rows:
            self.metrics.observe("request_example_counts", rows, name)
            self.metrics.count("request_example_count_total", name, by=rows)

    def _find(self, target: Target) -> Servable:
        if target.name not in self.models.by_name:
            raise not_found(target.name, target.version)
        return self.models.by_name[target.name].servable(target.version, target.label)

    def _inflate(self, body: bytes) -> bytes:
        """Undoes gzip, of all members; a broken body becomes an empty one, as in TF Serving."""
        limit = min(self.config.max_request_bytes, _MAX_INFLATED)
        try:
            text = gzip.GzipFile(fileobj=io.BytesIO(body)).read(limit + 1)
        except (OSError, EOFError, zlib.error):
            return b""
        if len(text) > limit:
            raise _too_large(limit)
        return text


def create_app(
    models: Mapping[str, str | ModelConfig], config: ServerConfig | None = None, reread: Reread | None = None
) -> Starlette:
    """Loads the models and returns the ASGI application that serves them.

    Args:
        models: for each model name, the base directory that holds its integer version directories, or more.
        config: how requests are taken and run.
        reread: gives the models anew, every `model_config_file_poll_wait_seconds`.

    Raises:
        ConfigError: no model is given, or a name cannot stand in a path.
        CheckpointError: a model cannot be loaded.
    """
    config = config or ServerConfig()
    configs = {name: ModelConfig(model) if isinstance(model, str) else model for name, model in models.items()}
    service = Service(configs, config, reread)
    doors = openai.DOORS if config.openai else {}

    async def answer(request: Request) -> Response:
        path = request.scope.get("raw_path", request.url.path.encode()).decode("latin-1")
        if path == METRICS_PATH and request.method == "GET":
            return Response(service.metrics.page(), media_type="text/plain")
        if path not in doors and not path.lower().startswith("/v1/"):
            return _last_if_unread(Response(status_code=404), request, config)
        response = await answer_v1(request, path)
        if config.rest_api_enable_cors_support:
            response.headers.update(_CORS)
        return _last_if_unread(response, request, config)

    async def answer_v1(request: Request, path: str) -> Response:
        try:
            if request.method == "OPTIONS":
                return _preflight(request)
            if path in doors:
                if request.method != "POST":
                    raise RequestError("Method Not Allowed; use POST", 405)
                work = partial(service.answer_at, doors[path])
            else:
                target = _parse(request.method, path)
                if request.method == "GET":
                    return Response(json.dumps(service.describe(target), indent=4), media_type="application/json")
                work = partial(service.answer, target)
            body = await _read(request, config.max_request_bytes)
            gzipped = "gzip" in request.headers.get("content-encoding", "").lower()
            content = await _while_there(request, work(body, gzipped))
            return Response(content, media_type="application/json")
        except RequestError as error:
            return refuse(path, error)
        except ClientDisconnect:
            return Response(status_code=499)
        except asyncio.CancelledError:  # the server ends, and waits no longer
            return refuse(path, RequestError("The server is shutting down; send the request again", 503))

    def refuse(path: str, error: RequestError, headers: Mapping[str, str] | None = None) -> Response:
        if path not in doors:
            return refusal(str(error), error.status, headers)
        return Response(json.dumps(doors[path].error(error)), error.status, headers, media_type="application/json")

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return _last_if_unread(refusal(error.detail, error.status_code, error.headers), request, config)

    async def failed(request: Request, error: Exception) -> Response:
        message = f"internal error ({type(error).__name__}); the server's log has it"
        return refuse(request.url.path, RequestError(message, 500))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        service.watcher.start()
        yield
        service.watcher.stop()

    routes = [Route("/{path:path}", answer, methods=_METHODS)]
    app = Starlette(routes=routes, exception_handlers={HTTPException: refused, Exception: failed}, lifespan=lifespan)
    app.state.service = service
    return app


def _preflight(request: Request) -> Response:
    """The answer to what a browser asks before it lets a page of another site ask."""
    if not re.match("https?://.", request.headers.get("origin", "")):
        raise RequestError("Origin header is missing in CORS preflight")
    return Response(media_type="application/json")


def _parse(method: str, path: str) -> Target:
    match = _PATHS[method].fullmatch(path) if method in _PATHS else None
    if not match:
        raise RequestError(f"Malformed request: {method} {path}")
    name, version, label, action = match.groups()
    digits = (version or "").lstrip("0")
    if len(digits) > 19 or int(digits or 0) > _MAX_VERSION:
        raise RequestError(f"Failed to convert version: {version} to numeric.")
    if not name:  # `versions` in /v1/models/versions/1 is no name, as in TF Serving
        raise RequestError("Missing model name in request.")
    number = int(digits or 0) if version else None
    return Target(unquote(name), number, unquote(label) if label else None, (action or "").lower())


def _last_if_unread(response: Response, request: Request, config: ServerConfig) -> Response:
    """Ends the connection after a refusal where the body may never come, or is too large to be thrown away."""
    waits = "expect" in request.headers
    if response.status_code >= 400 and (waits or _length(request) > 4 * config.max_request_bytes):
        response.headers["Connection"] = "close"
    return response


def _length(request: Request) -> int:
    return int(request.headers.get("content-length", 0))


async def _read(request: Request, limit: int) -> bytes:
    """The body.

    Of one that is too large the rest is thrown away by uvicorn, so that the client comes to read the refusal. A client
    that waits for "100 Continue" has not sent it yet.

    Raises:
        RequestError: it is too large.
        ClientDisconnect: the client leaves before its end.
    """
    body = bytearray()
    if _length(request) > limit:
        raise _too_large(limit)
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise _too_large(limit)
    return bytes(body)


async def _while_there(request: Request, answer: Coroutine[Any, Any, bytes]) -> bytes:
    """The result of `answer`, which is cancelled when the client leaves.

    Raises:
        ClientDisconnect: it has left.
    """

    async def leaves() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(answer), asyncio.ensure_future(leaves())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


def _too_large(limit: int) -> RequestError:
    return RequestError(f"The request body is larger than {limit} bytes", 413)


def refusal(message: str, status: int, headers: Mapping[str, str] | None = None) -> Response:
    """An answer in the form of all errors."""
    return Response(json.dumps({"error": message}), status, headers, media_type="application/json")
