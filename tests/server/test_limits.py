"""What a client may take of the server: rows, bytes, time and connections; and how it ends while a model is at work."""

import json
import logging
import os
import signal
import socket
import time
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path

import pytest
from servers import in_thread, make_gate, open_gate, patiently, running, save_gate, save_half_plus_two

from keras_bert.server.running import OnceInAWhile

FLAGS = {
    "max_request_rows": 100,
    "max_request_bytes": 1000,
    "request_timeout": 2,
    "head_timeout": 1,
    "body_timeout": 1,
    "limit_concurrency": 20,
    "drain_timeout": 1,
}
HEAD = b"POST /v1/models/half:predict HTTP/1.1\r\nHost: a\r\n"


@pytest.fixture(scope="module")
def gate(tmp_path_factory):
    base = tmp_path_factory.mktemp("gate")
    save_gate(base / "1")
    return base


@pytest.fixture(scope="module")
def server(gate, tmp_path_factory):
    base = tmp_path_factory.mktemp("models")
    save_half_plus_two(base / "half/1")
    config = base / "models.config"
    bases = {"half": base / "half", "gate": gate}
    models = [f'config {{ name: "{name}" base_path: "{path}" }}' for name, path in bases.items()]
    config.write_text(f"model_config_list {{ {' '.join(models)} }}")
    with running(config, 2, *(f"--{name}={value}" for name, value in FLAGS.items())) as started:
        yield started


def connect(server):
    return socket.create_connection(("127.0.0.1", server.port), timeout=60)


def said(connection):
    """Everything that the server says until it closes: the lines of the head, and the document."""
    answer = b"".join(iter(lambda: connection.recv(4096), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.decode().split("\r\n"), json.loads(body or "null")


# === Rows ===


@pytest.mark.parametrize("form", ["instances", "inputs"])
def test_a_request_of_too_many_rows_is_refused_with_their_number(server, form):
    def body(rows):
        return json.dumps({form: [1] * rows}).encode()

    assert server.send("POST", "/v1/models/half:predict", body(100))[0] == 200
    refusal = server.refusal("POST", "/v1/models/half:predict", body(101))
    assert refusal == (413, "The request has 101 rows, but --max_request_rows is 100; send parts of it")


def test_examples_are_rows(server):
    body = json.dumps({"signature_name": "regress_x_to_y", "examples": [{"x": 1.0}] * 30}).encode()
    assert server.send("POST", "/v1/models/half:regress", body)[0] == 200


def test_a_request_that_takes_too_long_is_given_up(server, tmp_path):
    path = make_gate(tmp_path / "gate")
    refusal = server.refusal("POST", "/v1/models/gate:predict", json.dumps({"inputs": [path]}).encode())
    assert refusal == (504, "The request took longer than the 2 s of --request_timeout")
    assert server.predict({"instances": [2.0]}) == {"predictions": [3.0]}, "the other thread is free"
    count = ':tensorflow:serving:request_count{model_name="gate",status="DEADLINE_EXCEEDED"}'
    assert server.metrics()[count] == 1
    open_gate(path)


def test_what_a_client_waits_for_that_has_left_is_not_computed(gate, tmp_path):
    """Two requests have both threads, and the client of a third leaves; a fourth, behind it, is answered."""
    paths = [make_gate(tmp_path / name) for name in "abcd"]
    with in_thread({"gate": gate}, request_timeout=0) as server, ExitStack() as stack:
        connections = []
        for path in paths:
            connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
            stack.callback(connection.close)
            connection.request("POST", "/v1/models/gate:predict", json.dumps({"inputs": [path]}))
            connections.append(connection)
            assert path not in paths[:2] or any(Path(f"{path}.asked").exists() for _ in patiently())
        connections[2].close()
        count = ':tensorflow:serving:request_count{model_name="gate",status="CANCELLED"}'
        assert any(server.metrics().get(count) == 1 for _ in patiently())
        for path in paths:
            open_gate(path)
        for place in (0, 1, 3):
            assert json.loads(connections[place].getresponse().read()) == {"outputs": [paths[place]]}
        assert not Path(f"{paths[2]}.asked").exists()


# === Slow clients ===


def test_a_connection_without_a_request_is_closed(server):
    with connect(server) as connection:
        assert said(connection) == ([""], None)


@pytest.mark.parametrize(
    "begun",
    [
        HEAD,
        HEAD + b"Content-Length: 30\r\n\r\n{",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\n{  \r\n",
    ],
    ids=["head", "body", "chunks"],
)
def test_a_request_that_is_not_sent_in_time_is_refused(server, begun):
    with connect(server) as connection:
        connection.sendall(begun)
        assert_late(connection)


def assert_late(connection):
    head, document = said(connection)
    assert head[0] == "HTTP/1.1 408 Request Timeout"
    assert document == {"error": "The request did not come in time"}


def test_requests_one_after_another_each_have_their_time(server):
    """Together they take longer than one may; the last one never comes to its end."""
    with connect(server) as connection:
        for _ in range(8):
            connection.sendall(HEAD + b"Content-Length: 20\r\n\r\n")
            time.sleep(0.15)
            connection.sendall(b'{"instances": [2.0]}')
            answer = b""
            while not answer.endswith(b"}"):
                answer += connection.recv(4096)
            assert b"3.0" in answer
        connection.sendall(HEAD)
        assert_late(connection)


def test_a_body_that_drips_has_no_more_time_than_one_that_stops(server):
    with connect(server) as connection:
        connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\n")
        connection.settimeout(0.1)
        answer = b""
        for _ in patiently():
            try:
                connection.sendall(b" ")
                answer = connection.recv(4096)
                break
            except TimeoutError:
                continue
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_a_client_that_does_not_read_its_answers_is_left(server):
    """It asks for some twenty megabytes. The client does not see that it is left, but the server has no connection."""

    def connections():
        links = {os.readlink(path) for path in descriptors.iterdir() if path.is_symlink()}
        return {link for link in links if link.startswith("socket:")}

    descriptors = Path(f"/proc/{server.process.pid}/fd")
    if not descriptors.exists():
        pytest.skip(reason="the open files of a process are seen in Linux's /proc only")
    before = connections()
    with connect(server) as connection:
        connection.sendall(2000 * b"GET /v1/models/half/metadata HTTP/1.1\r\nHost: a\r\n\r\n")
        assert connection.recv(1)
        (own,) = connections() - before
        assert any(own not in connections() for _ in patiently())


# === Bytes ===


def test_a_large_body_is_refused_before_it_is_sent(server):
    with connect(server) as connection:
        connection.sendall(HEAD + b"Content-Length: 1001\r\nExpect: 100-continue\r\n\r\n")
        head, document = said(connection)
    assert head[0].startswith("HTTP/1.1 413 ")
    assert document == {"error": "The request body is larger than 1000 bytes"}


@pytest.mark.parametrize("line", [b"POST /v1/models/half/predict", b"POST /elsewhere", b"BREW /v1/models/half"])
def test_a_connection_ends_whose_body_was_announced_and_not_asked_for(server, line):
    """What comes next could be that body, or another request."""
    with connect(server) as connection:
        connection.sendall(line + b" HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n")
        head, _ = said(connection)
    assert head[0].startswith("HTTP/1.1 40")
    assert "connection: close" in [line.lower() for line in head]


def test_a_body_of_the_right_size_is_asked_for(server):
    with connect(server) as connection:
        connection.sendall(HEAD + b"Content-Length: 20\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 100 ")
        connection.sendall(b'{"instances": [2.0]}')
        assert said(connection)[1] == {"predictions": [3.0]}


def test_a_body_that_is_far_too_large_is_not_taken_in(server):
    with connect(server) as connection:
        connection.sendall(HEAD + b"Content-Length: 1000000000000\r\n\r\n{")
        head, _ = said(connection)
    assert head[0].startswith("HTTP/1.1 413 ")
    assert "connection: close" in [line.lower() for line in head]


@pytest.mark.parametrize(
    "text", [b"hello\r\n\r\n", b"GET / HTTP/1.1\r\n bad\r\n\r\n", b"\x16\x03\x01" * 20 + b"\r\n\r\n"]
)
def test_what_is_no_http_is_refused_in_json(server, text):
    with connect(server) as connection:
        connection.sendall(text)
        head, document = said(connection)
    assert head[0] == "HTTP/1.1 400 Bad Request"
    assert document == {"error": "Invalid HTTP request received."}


def test_messages_about_connections_do_not_fill_the_log():
    """One that comes again and again is let through once; another one, or another exception, is its own."""
    logger, lines = logging.Logger("connections"), []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger.addHandler(handler)
    logger.addFilter(OnceInAWhile())
    for number in range(100):
        logger.warning("connection %d is refused", number)
        logger.warning("no descriptors")
    for error in (OSError(), ValueError(), OSError()):
        logger.error("failed", exc_info=error)
    assert lines == ["connection 0 is refused", "no descriptors", "failed", "failed"]


# === Connections ===


def test_connections_beyond_the_limit_are_refused_and_the_others_are_served(server):
    with ExitStack() as stack:
        first = HTTPConnection("127.0.0.1", server.port, timeout=60)
        stack.callback(first.close)
        first.connect()
        others = [stack.enter_context(connect(server)) for _ in range(25)]
        others[-1].sendall(HEAD + b"Content-Length: 2\r\n\r\n{}")
        head, document = said(others[-1])
        assert head[0].startswith("HTTP/1.1 503 ")
        assert document == {"error": "The server has as many connections as it may; try again later"}
        first.request("POST", "/v1/models/half:predict", b'{"instances": [2.0]}')
        assert json.loads(first.getresponse().read()) == {"predictions": [3.0]}
    assert any(server.send("GET", "/v1/models/half")[0] == 200 for _ in patiently())


# === The end; this test stands last, since it ends the server of all ===


def test_it_ends_while_a_model_is_at_work(server, tmp_path):
    """The model never answers; its client is told so, and the process waits for nothing but its drain time."""
    path = make_gate(tmp_path / "gate")
    body = json.dumps({"inputs": [path]}).encode()
    with connect(server) as connection:
        connection.sendall(HEAD.replace(b"half", b"gate") + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert any(Path(f"{path}.asked").exists() for _ in patiently())
        server.process.send_signal(signal.SIGTERM)
        head, document = said(connection)
    assert head[0] == "HTTP/1.1 503 Service Unavailable"
    assert document == {"error": "The server is shutting down; send the request again"}
    assert server.process.wait(60) == 0
