"""The stand-in server in a process of its own, spoken to over real HTTP: TensorFlow Serving's golden cases and more."""

import errno
import gzip
import importlib
import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import pytest
from servers import (
    DIRECT,
    in_thread,
    make_gate,
    open_gate,
    patiently,
    running,
    save_gate,
    save_half_plus_two,
    save_pairs,
)

import keras_bert.server
from keras_bert.errors import CheckpointError, ConfigError


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    base = tmp_path_factory.mktemp("models")
    save_half_plus_two(base / "half" / "123")
    save_pairs(base / "pairs" / "0007")
    (base / "half" / "99").mkdir()  # older: never looked at
    (base / "half" / "tmp-124").mkdir()  # an export in progress
    (base / "models.config").write_text(
        f'''model_config_list {{
            config {{
                name: "half" base_path: "{base}/half" model_platform: "tensorflow"
                version_labels {{ key: "stable label" value: 123 }}
                version_labels {{ key: "future" value: 124 }}
            }}
            config {{ name: "pairs" base_path: "{base}/pairs" model_version_policy {{ all {{}} }} }}
        }}'''
    )
    return base


@pytest.fixture(scope="module")
def server(models):
    with running(models / "models.config", 2) as started:
        yield started


def test_it_says_what_it_serves_and_where(server):
    assert server.port > 0
    address = f"http://127.0.0.1:{server.port}/v1/models"
    assert server.lines == (
        f"serving half version 123 on {address}/half",
        f"serving pairs version 7 on {address}/pairs",
    )


# --- predict ---


def test_h1_rows_of_lists(server):
    answer = server.predict({"signature_name": "any_shape", "instances": [[1, 2], [3, 4]]})
    assert answer == {"predictions": [[2.5, 3.0], [3.5, 4.0]]}


@pytest.mark.parametrize(
    ("name", "inputs", "said"),
    [
        ("serving_default", 1.0, "[?] but got []"),
        ("serving_default", [[1.0, 2.0]], "[?] but got [1,2]"),
        ("two_rows", [1.0, 2.0, 3.0], "[2] but got [3]"),
    ],
)
def test_inputs_have_the_shape_that_the_signature_declares(name, inputs, said, server):
    body = json.dumps({"signature_name": name, "inputs": inputs}).encode()
    status, message = server.refusal("POST", "/v1/models/half:predict", body)
    assert (status, message) == (400, f"Input x of signature {name} must have shape {said}")


@pytest.mark.parametrize("which", ["versions/123", "labels/stable%20label"])
def test_h2_a_version_or_label_in_the_path(server, which):
    answer = server.predict({"instances": [1.0, 2.0]}, f"/v1/models/half/{which}:predict")
    assert answer == {"predictions": [2.5, 3.0]}


def test_h3_columns_with_a_signature_name(server):
    answer = server.predict({"signature_name": "serving_default", "inputs": [3.0, 4.0]})
    assert answer == {"outputs": [3.5, 4.0]}


def test_s1_row_and_column_form_agree(server):
    assert server.predict({"instances": [2.0, 3.0, 4.0]}) == {"predictions": [3.0, 3.5, 4.0]}
    assert server.predict({"inputs": [2.0, 3.0, 4.0]}) == {"outputs": [3.0, 3.5, 4.0]}
    assert server.predict({"instances": [{"x": 2.0}]}) == {"predictions": [3.0]}
    assert server.predict({"inputs": {"x": [2.0]}}) == {"outputs": [3.0]}


def test_an_empty_column_is_an_empty_answer(server):
    assert server.predict({"inputs": []}) == {"outputs": []}


def test_an_empty_batch_of_strings(server):
    answer = server.predict({"inputs": {"text": [], "other": []}}, "/v1/models/pairs:predict")
    assert answer == {"outputs": {"joined": [], "joined_bytes": [], "lengths": [], "same": []}}


def test_several_outputs_in_rows(server):
    rows = [{"text": "é", "other": "b"}, {"text": {"b64": "YWE="}, "other": "aa"}]
    assert server.predict({"instances": rows}, "/v1/models/pairs:predict") == {
        "predictions": [
            {"joined": "é|b", "joined_bytes": {"b64": "w6l8Yg=="}, "lengths": [2, 1], "same": False},
            {"joined": "aa|aa", "joined_bytes": {"b64": "YWF8YWE="}, "lengths": [2, 2], "same": True},
        ]
    }


def test_several_outputs_in_columns(server):
    columns = {"text": ["é", "aa"], "other": ["b", "aa"], "ignored": 1}
    assert server.predict({"inputs": columns}, "/v1/models/pairs:predict") == {
        "outputs": {
            "joined": ["é|b", "aa|aa"],
            "joined_bytes": [{"b64": "w6l8Yg=="}, {"b64": "YWF8YWE="}],
            "lengths": [[2, 1], [2, 2]],
            "same": [False, True],
        }
    }


def test_an_output_that_does_not_follow_the_batch_fits_columns_only(server):
    document = {"signature_name": "constant", "inputs": ["a", "b"]}
    answer = server.predict(document, "/v1/models/pairs:predict")
    assert answer == {"outputs": {"labels": ["no", "yes", "maybe"], "text": ["a", "b"]}}
    body = json.dumps({"signature_name": "constant", "instances": ["a", "b"]}).encode()
    status, message = server.refusal("POST", "/v1/models/pairs:predict", body)
    assert status == 400
    assert "inconsistent batch size" in message


def test_paths_ignore_case_but_names_do_not(server):
    assert server.predict({"instances": [2.0]}, "/V1/Models/half:Predict") == {"predictions": [3.0]}
    assert server.refusal("GET", "/v1/models/HALF")[0] == 404


def test_gzip_bodies_are_inflated(server):
    body = gzip.compress(b'{"instances": [2.0]}')
    headers = {"Content-Encoding": "gzip"}
    status, _, answer = server.send("POST", "/v1/models/half:predict", body, headers)
    assert status == 200
    assert json.loads(answer) == {"predictions": [3.0]}


@pytest.mark.parametrize("end", [b"", b"\0" * 512], ids=["", "zeros"])
def test_gzip_bodies_may_have_several_members(server, end):
    body = b"".join(gzip.compress(part) for part in (b'{"instances"', b"", b": [2.0", b"]}")) + end
    status, _, answer = server.send("POST", "/v1/models/half:predict", body, {"Content-Encoding": "gzip"})
    assert (status, json.loads(answer)) == (200, {"predictions": [3.0]})


@pytest.mark.parametrize("body", [b"no gzip", gzip.compress(b'{"instances": [2.0]}')[:-4]], ids=["other", "cut"])
def test_broken_gzip_is_an_empty_document(server, body):
    headers = {"Content-Encoding": "gzip"}
    status, _, answer = server.send("POST", "/v1/models/half:predict", body, headers)
    assert status == 400
    assert "The document is empty" in json.loads(answer)["error"]


def test_concurrent_requests_get_their_own_answers(server):
    wanted = [[float(i)] * (i + 1) for i in range(10)]
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda rows: server.predict({"instances": rows}), wanted))
    assert answers == [{"predictions": [0.5 * row + 2 for row in rows]} for rows in wanted]


def test_one_connection_carries_several_requests(server):
    connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        for body, status in [(b"", 400), (b'{"inputs": []}', 200), (iter([b'{"inputs": ', b"[2.0]}"]), 200)]:
            connection.request("POST", "/v1/models/half:predict", body)
            answer = connection.getresponse()
            assert answer.status == status
            last = json.loads(answer.read())
        assert last == {"outputs": [3.0]}  # the one sent in chunks
    finally:
        connection.close()


def test_many_rows_in_one_request(server):
    rows = [[float(i)] * 20 for i in range(10_000)]
    answer = server.predict({"signature_name": "any_shape", "instances": rows})
    assert len(answer["predictions"]) == 10_000
    assert answer["predictions"][-1] == [0.5 * 9999 + 2] * 20


# --- status and metadata ---


@pytest.mark.parametrize("path", ["half", "half/versions/123", "half/labels/stable%20label", "h%61lf"])
def test_h6_status(server, path):
    assert server.get(f"/v1/models/{path}") == {
        "model_version_status": [
            {"version": "123", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
        ]
    }


@pytest.mark.parametrize("path", ["half", "half/versions/123", "half/labels/stable%20label"])
def test_h7_metadata(server, path):
    answer = server.get(f"/v1/models/{path}/metadata")
    assert answer["model_spec"] == {"name": "half", "signature_name": "", "version": "123"}
    signatures = answer["metadata"]["signature_def"]["signature_def"]
    assert {"serving_default", "classify_x_to_y", "regress_x_to_y", "__saved_model_init_op"} < signatures.keys()
    shape = {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False}
    default = signatures["serving_default"]
    assert default["inputs"] == {"x": {"dtype": "DT_FLOAT", "tensor_shape": shape, "name": "serving_default_x:0"}}
    assert default["outputs"]["y"]["dtype"] == "DT_FLOAT"
    assert default["outputs"]["y"]["tensor_shape"] == shape
    assert default["method_name"] == "tensorflow/serving/predict"
    assert default["defaults"] == {}


# --- refusals ---


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/foo"),
        ("POST", "/v1/foo"),
        ("POST", "/v1/models"),
        ("GET", "/v1/models/foo:predict"),
        ("POST", "/v1/models/foo/version/50:predict"),
        ("POST", "/v1/models/foo/versions/HELLO:regress"),
        ("POST", "/v1/models/foo/versions/50/labels/some:regress"),
        ("GET", "/v1/models/foo/label/some"),
        ("POST", "/v1/models/foo/metadata"),
        ("GET", "/v1/models/debug/model_name"),
        ("PUT", "/v1/models/half:predict"),
        ("DELETE", "/v1/models/half"),
    ],
)
def test_h8_malformed_requests(server, method, path):
    status, message = server.refusal(method, path, b"{}" if method != "GET" else None)
    assert (status, message) == (400, f"Malformed request: {method} {path}")


@pytest.mark.parametrize("path", ["", "/versions/1", "/labels/a", "/versions/1/metadata"])
def test_a_model_name_is_needed(server, path):
    """`versions` could be a name; the regular expression of TensorFlow Serving reads it as a version's beginning."""
    assert server.refusal("GET", f"/v1/models{path}") == (400, "Missing model name in request.")


def test_a_model_may_be_called_as_the_parts_of_a_path_are(server):
    for name in ("versions", "labels", "metadata"):
        refusal = server.refusal("GET", f"/v1/models/{name}")
        assert refusal == (404, f"Could not find any versions of model {name}")


def test_other_methods_are_refused_in_json(server):
    assert server.refusal("TRACE", "/v1/models/half") == (405, "Method Not Allowed")
    assert server.refusal("BREW", "/v1/models/half:predict", b"{}") == (405, "Method Not Allowed")


def test_options_need_an_origin(server):
    path = "/v1/models/half:predict"
    assert server.refusal("OPTIONS", path) == (400, "Origin header is missing in CORS preflight")
    status, _, body = server.send("OPTIONS", path, headers={"Origin": "https://example.org"})
    assert (status, body) == (200, b"")
    assert not cors(server, "OPTIONS", path)


def cors(server, method, path, body=None):
    """The headers with which a server lets pages of other sites ask."""
    request = urllib.request.Request(server.url + path, body, {"Origin": "https://example.org"}, method=method)
    try:
        answer = DIRECT.open(request, timeout=60)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        return {name: value for name, value in answer.headers.items() if name.lower().startswith("access-control")}


@pytest.fixture(scope="module")
def open_to_browsers(models):
    with in_thread({"half": models / "half"}, rest_api_enable_cors_support=True) as started:
        yield started


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("OPTIONS", "/v1/models/half:predict", None),
        ("GET", "/v1/models/half", None),
        ("POST", "/v1/models/half:predict", b'{"instances": [2.0]}'),
        ("POST", "/v1/models/half:predict", b"{"),
    ],
)
def test_pages_of_other_sites_may_ask_where_a_flag_lets_them(open_to_browsers, method, path, body):
    assert cors(open_to_browsers, method, path, body) == {
        "access-control-allow-origin": "*",
        "access-control-allow-methods": "GET, POST",
        "access-control-allow-headers": "Content-Type",
    }


def test_other_paths_have_no_handler(server):
    assert server.send("GET", "/index.html")[0] == 404


@pytest.mark.parametrize("version", ["18446744073709551615", "9" * 5000], ids=["uint64", "long"])
@pytest.mark.parametrize("action", ["predict", "regress"])
def test_h9_versions_beyond_int64(server, version, action):
    status, message = server.refusal("POST", f"/v1/models/half/versions/{version}:{action}", b"{}")
    assert status == 400
    assert message.startswith("Failed to convert version: ")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/v1/models/foo:predict", "Servable not found for request: Latest(foo)"),
        ("/v1/models/foo/versions/50:predict", "Servable not found for request: Specific(foo, 50)"),
        ("/v1/models/half/versions/99:predict", "Servable not found for request: Specific(half, 99)"),
        ("/v1/models/half99:predict", "Servable not found for request: Latest(half99)"),
    ],
)
def test_h10_predict_with_an_unknown_model_or_version(server, path, message):
    assert server.refusal("POST", path, b'{"instances": [1]}') == (404, message)


@pytest.mark.parametrize(
    ("action", "body", "message"),
    [
        ("predict", b'{"instances": [1', "JSON Parse error"),
        ("predict", b'{"signature_name": 5}', "must be a string value"),
        ("predict", b'{"instances": 1}', "Servable not found"),
        ("classify", b'{"examples": 1}', "Expecting 'examples' value to be an list/array"),
        ("regress", b'{"examples": [{"a": null}]}', "has element with unexpected JSON type: Null"),
        ("regress", b'{"examples": [{}], "signature_name": "no"}', "Servable not found"),
    ],
)
def test_a_bad_document_is_refused_before_an_unknown_model(server, action, body, message):
    status, text = server.refusal("POST", f"/v1/models/foo:{action}", body)
    assert status == (404 if message == "Servable not found" else 400)
    assert message in text


@pytest.mark.parametrize("path", ["foo", "foo/versions/1", "half/versions/99"])
@pytest.mark.parametrize("end", ["", "/metadata"])
def test_h10_status_and_metadata_of_an_unknown_model_or_version(server, path, end):
    status, message = server.refusal("GET", f"/v1/models/{path}{end}")
    assert status == 404
    assert path.split("/")[0] in message


@pytest.mark.parametrize("label", ["a", "future"])
def test_h11_unknown_labels_and_labels_of_versions_that_are_not_loaded(server, label):
    for method, end in [("GET", "/metadata"), ("POST", ":predict")]:
        body = b"{}" if method == "POST" else None
        refusal = server.refusal(method, f"/v1/models/half/labels/{label}{end}", body)
        assert refusal == (400, f"Unrecognized servable version label: {label}")


def test_the_status_of_a_label_is_that_of_all_versions(server):
    """As in TensorFlow Serving, whose GetModelStatus knows no labels."""
    assert server.get("/v1/models/half/labels/nothing") == server.get("/v1/models/half")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "JSON Parse error: The document is empty"),
        (b"instances = [1, 2]", "JSON Parse error: Invalid value"),
        (b'{"instances": ' + b"[" * 500_000, "Invalid value"),
        (b'{"instances": ["x", "y"]}', "not of expected type: float"),
        (b'{"instances": [1.0, "y"]}', "Failed to process element: 1 of 'instances' list"),
        (b'{"signature_name": 100, "instances": [1]}', "'signature_name' key must be a string value."),
        (b'{"signature_name": "a", "instances": [1]}', 'Serving signature name: "a" not found'),
        (b'{"instances": [1], "inputs": [1]}', "Not formatted correctly"),
    ],
    ids=["h12-empty", "h12-invalid", "deep", "h13", "row", "h14", "signature", "both"],
)
def test_h12_to_h14_bodies_that_are_no_request(server, body, message):
    status, text = server.refusal("POST", "/v1/models/half:predict", body)
    assert status == 400
    assert message in text


def test_a_failing_operation_answers_with_its_own_message(server):
    body = json.dumps({"signature_name": "below_ten", "instances": [1.0, 20.0]}).encode()
    status, message = server.refusal("POST", "/v1/models/half:predict", body)
    assert status == 400
    assert message.startswith("assertion failed: [x must be below 10]")
    assert "\n" not in message
    assert ".py" not in message
    assert "[Op:" not in message
    assert server.predict({"signature_name": "below_ten", "inputs": [1.0]}) == {"outputs": [1.0]}


# --- classify and regress ---


def post(server, action, document):
    status, _, body = server.send("POST", f"/v1/models/half:{action}", json.dumps(document).encode())
    return status, json.loads(body)


def test_h4_s2_regress(server):
    document = {"signature_name": "regress_x_to_y", "examples": [{"x": 80.0}, {"x": [2.0]}]}
    assert post(server, "regress", document) == (200, {"results": [42, 3.0]})


def test_h5_s2_classify(server):
    document = {"signature_name": "classify_x_to_y", "examples": [{"x": 20.0}, {"x": 2.0}]}
    assert post(server, "classify", document) == (200, {"results": [[["", 12]], [["", 3.0]]]})


def test_classes_and_scores_go_together_and_the_context_fills_in(server):
    document = {"signature_name": "classify_named", "context": {"x": 1.5}, "examples": [{}, {"x": -2.0}]}
    assert post(server, "classify", document) == (
        200,
        {"results": [[["above", 1.5], ["below", -1.5]], [["below", -2.0], ["above", 2.0]]]},
    )


@pytest.mark.parametrize(
    ("action", "document", "message"),
    [
        ("classify", {"examples": [{"x": 1.0}]}, "a string tensor named inputs"),
        ("regress", {"signature_name": "classify_x_to_y", "examples": [{}]}, "No regression outputs found"),
        ("classify", {"signature_name": "regress_x_to_y", "examples": [{}]}, 'at least one of "classes" or "scores"'),
        ("classify", {"signature_name": "a", "examples": [{}]}, "No signature was found with the name: a"),
        ("classify", {"signature_name": "classify_x_to_y"}, "key 'examples' is expected and was not found"),
        ("classify", {"signature_name": "classify_x_to_y", "examples": {}}, "to be an list/array"),
        ("classify", {"signature_name": "classify_x_to_y", "examples": []}, "'examples' value is an empty array"),
        (
            "classify",
            {"signature_name": "classify_x_to_y", "examples": [[1]]},
            "must be JSON object but got JSON Array",
        ),
        ("regress", {"signature_name": "regress_x_to_y", "examples": [{"y": 1.0}]}, "x"),
    ],
)
def test_examples_that_do_not_fit_are_refused(server, action, document, message):
    status, answer = post(server, action, document)
    assert status == 400
    assert message in answer["error"]


# --- odd requests, S3 and S4 ---


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (json.dumps({"signature_name": "constant", "inputs": ["x" * 10_000_000]}).encode(), 200),
        (b'{"signature_name": "constant", "inputs": ["a"], "inputs": ["b"]}', 200),
        (rb'{"signature_name": "constant", "inputs": ["\ud800"]}', 400),
        (b'{"signature_name": "constant", "inputs": [NaN]}', 400),
        (b'{"signature_name": "constant", "inputs": ["\xff"]}', 400),
        (b'{"signature_name": "constant", "inputs": ["a"], "deep": ' + b"[" * 500_000 + b"]" * 500_000 + b"}", 200),
        (b"[" * 500_000, 400),
        (b"\x00" * 1000, 400),
    ],
    ids=["10 MB", "twice", "surrogate", "nan", "bytes", "deep", "open", "zeros"],
)
def test_s3_bodies_that_are_strange_do_no_harm(server, body, status):
    assert server.send("POST", "/v1/models/pairs:predict", body)[0] == status
    assert server.predict({"instances": [2.0]}) == {"predictions": [3.0]}


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "nonsense"])
def test_s4_the_content_type_does_not_matter(server, content_type):
    assert server.predict({"instances": [2.0]}, **{"Content-Type": content_type}) == {"predictions": [3.0]}


def test_s4_a_slow_client_and_a_half_closed_socket_get_their_answer(server):
    body = b'{"instances": [2.0]}'
    head = b"POST /v1/models/half:predict HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        for piece in (head % len(body), body[:5], body[5:]):
            connection.sendall(piece)
            time.sleep(0.05)
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"3.0" in answer


def test_s4_a_client_that_goes_away_does_no_harm(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(b"POST /v1/models/half:predict HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{")
    assert server.predict({"instances": [2.0]}) == {"predictions": [3.0]}


# --- metrics ---


def test_metrics_have_the_names_of_tensorflow_serving(server):
    server.predict({"instances": [2.0, 3.0]})
    server.refusal("POST", "/v1/models/nothing:predict", b"{}")
    server.refusal("POST", "/v1/models/half:predict", b"{}")
    found = server.metrics()
    prefix = ":tensorflow:serving:"
    assert found[prefix + 'request_count{model_name="half",status="OK"}'] >= 1
    assert found[prefix + 'request_count{model_name="half",status="INVALID_ARGUMENT"}'] >= 1
    of = 'model_name="half",API="predict",entrypoint="REST"'
    requests = [n for name, n in found.items() if name.startswith(prefix + 'request_count{model_name="half"')]
    latencies = [n for name, n in found.items() if name.startswith(prefix + 'request_latency_count{model_name="half"')]
    assert sum(latencies) == sum(requests)
    count = found[f"{prefix}request_latency_count{{{of}}}"]
    assert found[f'{prefix}request_latency_bucket{{{of},le="+Inf"}}'] == count
    assert found[f"{prefix}request_latency_sum{{{of}}}"] > 0
    assert found[prefix + 'runtime_latency_count{model_name="half",API="Predict",runtime="TF2"}'] >= 1
    assert found[prefix + 'request_example_count_total{model="half"}'] >= 2
    assert not [name for name in found if "nothing" in name], "clients must not make up series"


# --- starting and stopping ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_s7_open_requests_are_answered_before_it_ends(tmp_path, number):
    """Two of them run and two wait in the queue when the signal comes; none can end before it has acted."""
    save_gate(tmp_path / "gate/1")
    config = tmp_path / "models.config"
    config.write_text(f'model_config_list {{ config {{ name: "gate" base_path: "{tmp_path}/gate" }} }}')
    paths = [make_gate(tmp_path / name) for name in "abcd"]
    with running(config, 1) as started:
        connections = [HTTPConnection("127.0.0.1", started.port, timeout=60) for _ in paths]
        for path, connection in zip(paths, connections, strict=True):
            connection.request("POST", "/v1/models/gate:predict", json.dumps({"inputs": [path]}))
            started.get("/v1/models/gate")  # the server, which reads in order, has read the request before this one
            if path in paths[:2]:
                assert any(Path(f"{path}.asked").exists() for _ in patiently())
        started.process.send_signal(number)
        assert any(refused(started.port) for _ in patiently())
        for path in paths:
            open_gate(path)
        for path, connection in zip(paths, connections, strict=True):
            response = connection.getresponse()
            assert (response.status, json.loads(response.read())) == (200, {"outputs": [path]})
            connection.close()
        rest, _ = started.process.communicate(timeout=60)
        assert (started.process.returncode, rest) == (0, "")
        assert refused(started.port)


def refused(port):
    """Does nobody listen there?"""
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda base: None, "no such directory"),
        (lambda base: base.mkdir(), "no version directory in it; export the model to"),
        (lambda base: (base / "latest").mkdir(parents=True), "no version directory in it"),
        (lambda base: (base / "1").mkdir(parents=True), "not a loadable SavedModel"),
    ],
    ids=["missing", "empty", "no number", "no model"],
)
def test_a_base_directory_without_a_model_is_refused(tmp_path, make, message):
    base = tmp_path / "base"
    make(base)
    with pytest.raises(CheckpointError, match=message) as caught:
        keras_bert.server.create_app({"m": str(base)})
    assert str(base) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_broken_saved_model_is_refused(tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").write_bytes(b"\xff" * 100)
    with pytest.raises(CheckpointError, match=r"1: not a loadable SavedModel .*; export the model again"):
        keras_bert.server.create_app({"m": str(tmp_path)})


def test_a_version_directory_in_place_of_the_base_is_refused(models):
    with pytest.raises(CheckpointError, match="is a SavedModel itself; give the directory that holds it"):
        keras_bert.server.create_app({"m": str(models / "half/123")})


def test_models_that_no_path_can_name_are_refused(models):
    with pytest.raises(ConfigError, match="model name 'a/b'"):
        keras_bert.server.create_app({"a/b": str(models / "half")})
    with pytest.raises(ConfigError, match="no model to serve"):
        keras_bert.server.create_app({})


def test_a_port_in_use_is_refused_before_tensorflow_is_imported(server, models):
    code = f"""
import sys
from keras_bert.__main__ import main
print(main(["serve", "--export_dir={models / "half"}", "--port={server.port}"]), "tensorflow" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.stdout == "2 False\n"
    (line,) = run.stderr.splitlines()
    assert line.startswith(f"keras-bert serve: error: cannot listen on 127.0.0.1:{server.port} (")
    assert line.endswith("; use another port, or 0")


@pytest.mark.parametrize(("module", "missing"), [("rest", "starlette.applications"), ("running", "uvicorn")])
def test_the_extra_is_named_when_it_is_not_installed(monkeypatch, module, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, f"keras_bert.server.{module}", raising=False)
    with pytest.raises(ConfigError, match=re.escape("pip install keras3-bert[serve]")):
        importlib.import_module(f"keras_bert.server.{module}")


def test_importing_the_package_loads_no_server():
    code = (
        "import sys, keras_bert.server, keras_bert.server.json_tensor; "
        "print([m for m in ('keras_bert.server.rest', 'starlette', 'uvicorn', 'tensorflow') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert run.stdout.strip() == "[]"
