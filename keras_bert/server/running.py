"""The process around the REST application: its address, its signals, and the limits of its connections.

uvicorn serves; what it has no setting for is here: the time that a client has for the head and the body of a request, a
refusal in JSON of connections beyond a number, and an answer to a lack of descriptors that costs no time.
"""

import asyncio
import json
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from keras_bert.errors import ConfigError

try:
    import h11
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ModuleNotFoundError as missing:
    raise ConfigError(f"the server needs {missing.name}: pip install keras3-bert[serve]") from missing

from keras_bert.server.settings import ModelConfig, ServerConfig

if TYPE_CHECKING:
    from keras_bert.server.servable import Servable

log = logging.getLogger("keras_bert.server")
_seldom = logging.getLogger("keras_bert.server.connections")
_SECONDS_BETWEEN = 60
_BACKLOG = 2048
_RESERVED = 64
"""Descriptors that are left for the models, the log and connections that are refused."""
_EXAMPLES = {"O": '"some text"', "f": "1.0", "b": "true"}  # and 1


def serve(
    models: Mapping[str, str | ModelConfig],
    host: str = "127.0.0.1",
    port: int = 8501,
    config: ServerConfig | None = None,
    reread: Callable[[], Mapping[str, ModelConfig]] | None = None,
) -> bool:
    """Serves the models over HTTP until SIGTERM or SIGINT, then finishes open requests and returns.

    Prints one line per model on standard output once connections are accepted; what happens to versions later,
    and a request to try for each model, is logged. Outside the main thread (in a notebook, say) no signal is
    caught, and the server runs as long as its thread.

    Args:
        models: for each model name, the base directory that holds its integer version directories, or more.
        host: the address to listen on.
        port: the port to listen on; 0 picks a free one.
        config: how requests are taken and run.
        reread: gives the models anew, every `model_config_file_poll_wait_seconds`.

    Returns:
        Whether everything that was begun has ended. If not, a model is still computing what nobody waits for, on a
        thread that cannot be stopped; the process then ends at once by `os._exit` only.

    Raises:
        ConfigError: the address cannot be used, no model is given, or a name cannot stand in a path.
        CheckpointError: a model cannot be loaded.
    """
    config = config or ServerConfig()
    with _bound(host, port) as listener:  # before TensorFlow is imported, which takes seconds
        from keras_bert.server.rest import create_app, refusal

        app = create_app(models, config, reread)
        full = refusal("The server has as many connections as it may; try again later", 503, {"Connection": "close"})
        server = _Server(_Config(app, config, full))
        with _stop_signals(server):
            _listen(listener)
            address = f"[{host}]" if ":" in host else host
            for model in app.state.service.models.by_name.values():
                url = f"http://{address}:{listener.getsockname()[1]}/v1/models/{quote(model.name)}"
                servable = model.servable()
                print(f"serving {model.name} version {servable.version} on {url}", flush=True)
                log.info("try it: curl -d '%s' %s:predict", _example(servable), url)
            server.run(sockets=[listener])
        return app.state.service.is_idle()


# === The address ===


def _bound(host: str, port: int) -> socket.socket:
    """A socket that has the address; clients cannot connect yet."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise _unusable(f"{host}:{port}", error) from error
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # or each answer waits 40 ms for an acknowledgement
    return listener


def _listen(listener: socket.socket) -> None:
    try:
        listener.listen(_BACKLOG)
    except OSError as error:  # another process was faster
        raise _unusable("{}:{}".format(*listener.getsockname()), error) from error


def _unusable(address: str, error: Exception) -> ConfigError:
    return ConfigError(f"cannot listen on {address} ({error}); use another port, or 0")


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


# === Connections ===


class _Config(uvicorn.Config):
    """The settings of uvicorn, ours, and the application that answers where there are too many connections."""

    def __init__(self, app: Any, limits: ServerConfig, full: Any) -> None:
        super().__init__(
            app,
            loop="asyncio",
            http=_Connection,
            ws="none",
            log_level="warning",
            backlog=1,  # asyncio tries as often to accept, also where there are no descriptors left
            timeout_graceful_shutdown=limits.drain_timeout,  # type: ignore[arg-type]  # uvicorn takes fractions, too
        )
        self.limits, self.full = limits, full
        self.max_connections = min(limits.limit_concurrency, _descriptors() - _RESERVED)
        logging.getLogger("uvicorn.error").addFilter(_once_in_a_while)


class _Server(uvicorn.Server):
    """uvicorn's server, with the log and the queue of connections that it has no settings for."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        asyncio.get_running_loop().set_exception_handler(_loop_error)
        for listener in sockets or ():
            listener.listen(_BACKLOG)


class _Connection(H11Protocol):
    """uvicorn's HTTP/1.1 connection, which ends when a request does not come, or an answer is not taken, in time."""

    config: _Config
    _awaited: tuple[Any, Any] = (None, None)
    _timer: asyncio.TimerHandle | None = None
    _taking: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.config.max_connections:
            self.app = self.config.full
            _seldom.warning("more than %d connections; further ones are refused", self.config.max_connections)
        self._set_timer()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._set_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._timer, self._taking):
            if timer:
                timer.cancel()

    def pause_writing(self) -> None:
        """The client takes in less than is sent."""
        super().pause_writing()
        self._close_later()

    def resume_writing(self) -> None:
        """It has taken in enough."""
        super().resume_writing()
        if self._taking:
            self._taking.cancel()

    def timeout_keep_alive_handler(self) -> None:
        """Ends a connection after an answer; what the client has not taken in yet would keep it open."""
        super().timeout_keep_alive_handler()
        self._close_later()

    def _close_later(self) -> None:
        if self._taking:
            self._taking.cancel()
        seconds = self.config.limits.body_timeout
        self._taking = self.loop.call_later(seconds, self.transport.abort) if seconds else None

    def _set_timer(self) -> None:
        """Starts the clock where the client begins to owe a head or a body, and stops it where it has paid."""
        state, limits = self.conn.their_state, self.config.limits
        seconds = 0.0
        if state is h11.SEND_BODY:
            seconds = limits.body_timeout
        elif state is h11.IDLE and (self.cycle is None or self.conn.trailing_data[0]):
            seconds = limits.head_timeout if self.app is not self.config.full else 1.0
        awaited = (seconds and state, self.cycle)
        if awaited == self._awaited:
            return
        if self._timer:
            self._timer.cancel()
        self._awaited = awaited
        self._timer = self.loop.call_later(seconds, self._give_up) if seconds else None

    def _give_up(self) -> None:
        begun = self.conn.their_state is h11.SEND_BODY or self.conn.trailing_data[0]
        if begun:
            self._refuse(408, "The request did not come in time")
        else:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP, in JSON like all refusals."""
        self._refuse(400, msg)

    def _refuse(self, status: int, message: str) -> None:
        """Answers without the application, if nothing is answered yet, and ends the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps({"error": message}).encode()
            kind = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("Connection", "close")]
            reason = HTTPStatus(status).phrase.encode()
            head = h11.Response(status_code=status, headers=kind, reason=reason)
            for event in (head, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def _descriptors() -> int:
    """How many files and connections the process may have open."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return 2**31
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 2**31


# === Logs ===


class OnceInAWhile(logging.Filter):
    """Lets a message through once a minute: clients must not be able to fill a disk."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[Any, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Has it not been said in the last minute?"""
        message = (record.msg, record.exc_info and record.exc_info[0])
        now, last = time.monotonic(), self._last.get(message, -float("inf"))
        if now - last >= _SECONDS_BETWEEN:
            self._last[message] = now
            return True
        return False


_once_in_a_while = OnceInAWhile()
_seldom.addFilter(_once_in_a_while)


def _loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    if "socket.accept()" in context["message"]:
        advice = "raise `ulimit -n`, or lower --limit_concurrency"
        _seldom.error("new connections wait: %s; %s", context.get("exception"), advice)
    else:
        loop.default_exception_handler(context)


def _example(servable: "Servable") -> str:
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
