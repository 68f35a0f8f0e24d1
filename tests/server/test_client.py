"""export/client.py against real servers: REST against the stand-in, gRPC against a small server made here."""

import importlib.util
import json
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from servers import in_thread, save_half_plus_two, save_ids, save_lengths, save_pairs
from tensorflow.core.framework.tensor_pb2 import TensorProto
from tensorflow.core.protobuf import saved_model_pb2

from keras_bert.server.servable import Servable
from keras_bert.serving.protos import PREDICTION_LOG, message_types

PATH = Path(__file__).parents[2] / "export/client.py"
SPEC = importlib.util.spec_from_file_location("client", PATH)
client = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(client)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    base = tmp_path_factory.mktemp("models")
    save_half_plus_two(base / "half/1")
    save_pairs(base / "pairs/1")
    save_ids(base / "ids/1")
    save_lengths(base / "texts/1")
    return {name: base / name for name in ("half", "pairs", "ids", "texts")}


@pytest.fixture(scope="module")
def rest(models):
    with in_thread(models) as server:
        yield server.url


@pytest.fixture(scope="module")
def grpc_url(models):
    with grpc_server({name: Servable(name, base / "1") for name, base in models.items()}) as url:
        yield url


@contextmanager
def grpc_server(servables):
    """TensorFlow Serving's PredictionService, as far as the client needs it."""
    grpc = pytest.importorskip("grpc", reason="gRPC needs grpcio")
    types = message_types(
        PREDICTION_LOG
        | {
            "MetadataRequest": {"model_spec": (1, "ModelSpec"), "metadata_field": (2, "*string")},
            "MetadataResponse": {"model_spec": (1, "ModelSpec"), "metadata": (2, "*NamedAny")},
            "NamedAny": {"key": (1, "string"), "value": (2, "Any")},
            "Any": {"type_url": (1, "string"), "value": (2, "bytes")},
            "SignatureDefMap": {"signature_def": (1, "*NamedTensor")},
        }
    )

    def find(context, spec):
        if spec.name not in servables:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: Latest({spec.name})")
        return servables[spec.name]

    def predict(body, context):
        request = types["PredictRequest"].FromString(body)
        signature = find(context, request.model_spec).signatures[request.model_spec.signature_name]
        inputs = {entry.key: tf.make_ndarray(TensorProto.FromString(entry.value)) for entry in request.inputs}
        if any(inputs[name].dtype != dtype for name, dtype in signature.dtypes.items()):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "wrong type")
        try:
            outputs = signature(inputs)
        except Exception as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        answer = types["PredictResponse"]()
        for name, array in outputs.items():
            answer.outputs.add(key=name, value=tf.make_tensor_proto(array).SerializeToString())
        return answer.SerializeToString()

    def metadata(body, context):
        request = types["MetadataRequest"].FromString(body)
        assert list(request.metadata_field) == ["signature_def"]
        servable = find(context, request.model_spec)
        content = (servable.directory / "saved_model.pb").read_bytes()
        (graph,) = saved_model_pb2.SavedModel.FromString(content).meta_graphs
        found = types["SignatureDefMap"]()
        for name, definition in graph.signature_def.items():
            found.signature_def.add(key=name, value=definition.SerializeToString())
        answer = types["MetadataResponse"]()
        answer.metadata.add(key="signature_def", value=types["Any"](type_url="x", value=found.SerializeToString()))
        return answer.SerializeToString()

    methods = {"Predict": predict, "GetModelMetadata": metadata}
    handlers = {name: grpc.unary_unary_rpc_method_handler(function) for name, function in methods.items()}
    service = grpc.method_handlers_generic_handler("tensorflow.serving.PredictionService", handlers)
    server = grpc.server(ThreadPoolExecutor(4), handlers=[service])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"grpc://127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@pytest.fixture(params=["rest", "grpc_url"])
def url(request):
    return request.getfixturevalue(request.param)


# === Both ways ===


def test_numbers(url):
    assert client.Client(url, "half").predict([1.0, 2.0]) == [2.5, 3.0]


def test_texts_and_several_outputs(url):
    rows = [{"text": "é", "other": "b"}, {"text": "aa", "other": "aa"}]
    answers = client.Client(url, "pairs").predict(rows)
    found = [(a["joined"], a["lengths"], a["same"]) for a in answers]
    assert found == [("é|b", [2, 1], False), ("aa|aa", [2, 2], True)]


def test_nested_lists(url):
    rows = [
        {"input_word_ids": [1, 2, 300000], "input_mask": [1, 1, 1]},
        {"input_word_ids": [-4, 5, 0], "input_mask": [1, 1, 0]},
    ]
    answers = client.Client(url, "ids").predict(rows)
    assert [a["doubled"] for a in answers] == [[2, 4, 600000], [-8, 10, 0]]
    assert [a["mean"] for a in answers] == [300003 / 3, 0.5]


def test_a_version_and_a_signature_name(rest):
    assert client.Client(rest, "half", version=1).predict([20.0], "slow") == [21.0]
    with pytest.raises(client.NotFound, match=r"Specific\(half, 7\)"):
        client.Client(rest, "half", version=7).predict([1.0])


def test_is_the_model_ready(url):
    assert client.Client(url, "half").ready()
    assert not client.Client(url, "nothing").ready()


def test_a_bad_request_is_not_sent_again(url):
    ask = client.Client(url, "half", pause=100)
    with pytest.raises(client.BadRequest, match="x must be below 10"):
        ask.predict([20.0], "below_ten")
    for instances in (["text"], [], [{"y": 1.0}], [[1.0], [1.0, 2.0]]):
        with pytest.raises(client.BadRequest):
            ask.predict(instances)


def test_an_unknown_model_is_not_found(url):
    with pytest.raises(client.NotFound, match=r"Servable not found for request: Latest\(nothing\)"):
        client.Client(url, "nothing", pause=100).predict([1.0])


def test_no_answer_in_time(url):
    ask = client.Client(url, "half", pause=100)
    assert ask.predict([1.0], "slow") == [2.0]  # over gRPC this has also read what the inputs are
    ask.timeout = 0.2
    with pytest.raises(client.Timeout):
        ask.predict([3000.0], "slow")


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_nobody_there(scheme):
    if scheme == "grpc":
        pytest.importorskip("grpc", reason="gRPC needs grpcio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ask = client.Client(f"{scheme}://127.0.0.1:{port}", "half", retries=2, pause=0.01)
    with pytest.raises(client.Unavailable):
        ask.predict([1.0]) if scheme == "http" else ask._transport.check(5)
    assert not ask.ready()


@pytest.mark.parametrize("url", ["localhost:8501", "ftp://a", "http://"])
def test_a_url_that_is_none_is_refused(url):
    with pytest.raises(ValueError, match="url must be"):
        client.Client(url, "half")


# === What is tried again ===


@contextmanager
def answering(*statuses):
    """A server that gives these statuses one after the other; 0 closes the connection without an answer, and bytes are
    the body of status 200."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            status = statuses[len(seen)]
            seen.append(status)
            if status != 0:
                body = json.dumps({"predictions": [1]} if status == 200 else {"error": f"no {status}"}).encode()
                status, body = (200, status) if isinstance(status, bytes) else (status, body)
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", seen
        finally:
            server.shutdown()
            thread.join()


def test_503_and_lost_connections_are_tried_again_after_growing_pauses(monkeypatch):
    pauses = []
    monkeypatch.setattr(client, "time", SimpleNamespace(sleep=pauses.append))
    with answering(503, 0, 503, 200) as (url, seen):
        assert client.Client(url, "m", pause=0.1).predict(["a"]) == [1]
    assert seen == [503, 0, 503, 200]
    assert len(pauses) == 3
    assert all(0.5 <= pause / (0.1 * 2**i) <= 1.5 for i, pause in enumerate(pauses))


def test_retries_come_to_an_end():
    with answering(503, 503, 503) as (url, seen), pytest.raises(client.Unavailable, match="no 503"):
        client.Client(url, "m", retries=2, pause=0.01).predict(["a"])
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("status", "error"),
    [(400, "BadRequest"), (413, "BadRequest"), (404, "NotFound"), (500, "ServingError"), (504, "Timeout")],
)
def test_other_refusals_are_not_tried_again(status, error):
    with answering(status, 200) as (url, seen), pytest.raises(client.ServingError, match=f"no {status}") as caught:
        client.Client(url, "m").predict(["a"])
    assert type(caught.value).__name__ == error
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"<html>", "did not answer with a JSON object, but with '<html>'"),
        (b"", "did not answer with a JSON object"),
        (b"\xff\xfe", "did not answer with a JSON object"),
        (b"[1]", "did not answer with a JSON object"),
        (b"[" * 100_000, "did not answer with a JSON object"),
        (b'{"outputs": [1]}', "has no predictions"),
        (b'{"predictions": [1, 2]}', "one entry for each of 1 instances"),
        (b'{"predictions": 1}', "one entry for each of 1 instances"),
    ],
)
def test_what_is_no_answer_is_an_error(body, said):
    with answering(body) as (url, seen), pytest.raises(client.ServingError, match=said) as caught:
        client.Client(url, "m").predict(["a"])
    assert type(caught.value) is client.ServingError
    assert len(seen) == 1


@pytest.mark.parametrize(
    "message", [b"\x0a\x05ab", b"\x0a\x04\x0a\x02\xff\xff", b"\x0a\x00", b"\x0a\x06\x0a\x01x\x12\x01\x08"]
)
def test_what_is_no_message_is_an_error(message):
    with pytest.raises(client.ServingError, match="cannot be read"):
        client._readable(client._read_answer, message)


# === What is sent ===


@pytest.mark.parametrize("instances", ["fire", b"fire", {"text": "fire"}, 1, None, np.float32(1), np.array("fire")])
def test_one_instance_is_no_list(url, instances):
    with pytest.raises(client.BadRequest, match="instances must be a list, got"):
        client.Client(url, "texts").predict(instances)


@pytest.mark.parametrize("instances", [[object()], [{1: "a"}], [{"x": 1j}], [[b"a", print]]])
def test_what_cannot_be_sent_is_refused(url, instances):
    with pytest.raises(client.BadRequest, match=r"cannot be sent|must be names of inputs"):
        client.Client(url, "half").predict(instances)


@pytest.mark.parametrize("instances", [["\ud800"], [5], [None], [[]], [{"text": "a", "other": 1}], [{"b64": "?"}]])
def test_what_does_not_fit_the_input_is_a_bad_request(url, instances):
    with pytest.raises(client.BadRequest):
        client.Client(url, "texts", pause=100).predict(instances)


def test_numbers_and_arrays_of_numpy_and_iterators_are_sent(url):
    half = client.Client(url, "half")
    for instances in (
        np.array([1, 2], np.int64),
        [np.float32(1), np.float16(2)],
        iter([1, 2]),
        (1, 2),
        tf.constant([1, 2]),
    ):
        assert half.predict(instances) == [2.5, 3.0]
    rows = [{"input_word_ids": np.array([1, 2]), "input_mask": (np.int32(1), 1)}]
    assert client.Client(url, "ids").predict(rows)[0]["doubled"] == [2, 4]


def test_bytes_are_sent_as_they_are(url):
    texts = client.Client(url, "texts")
    assert texts.predict(["é".encode(), bytearray(b"ab"), np.array(b"abc")]) == texts.predict(["é", "ab", "abc"])


def test_a_signature_name_must_be_a_string(url):
    with pytest.raises(client.BadRequest, match="signature_name must be a string"):
        client.Client(url, "half").predict([1.0], 5)


# === Messages ===


@pytest.mark.parametrize(
    "dtype", ["float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint32", "uint64", "bool"]
)
@pytest.mark.parametrize("shape", [(3,), (2, 2), (0,), (2, 0), ()])
def test_tensors_are_read_as_tensorflow_writes_them(dtype, shape):
    info = np.iinfo(dtype) if np.dtype(dtype).kind in "iu" else None
    values = np.resize(np.array([info.min, info.max, 1] if info else [0, 1, 1], dtype), shape)
    for proto in (tf.make_tensor_proto(values), fields_of(values)):
        assert client._read_tensor(proto.SerializeToString()) == values.tolist()


def fields_of(values):
    """The tensor with its values one by one in their field, as TensorFlow Serving writes it."""
    proto = TensorProto(dtype=tf.as_dtype(values.dtype).as_datatype_enum)
    proto.tensor_shape.CopyFrom(tf.TensorShape(values.shape).as_proto())
    names = {"float32": "float_val", "float64": "double_val", "int64": "int64_val", "bool": "bool_val"}
    names |= {"uint32": "uint32_val", "uint64": "uint64_val"}
    getattr(proto, names.get(values.dtype.name, "int_val")).extend(values.ravel().tolist())
    return proto


def test_a_repeated_last_value_may_be_written_once():
    proto = TensorProto(dtype=tf.int32.as_datatype_enum, int_val=[5, -7])
    proto.tensor_shape.CopyFrom(tf.TensorShape([2, 2]).as_proto())
    assert client._read_tensor(proto.SerializeToString()) == [[5, -7], [-7, -7]]


@pytest.mark.parametrize(("values", "kind"), [([1e300], 1), ([2**70], 9), ([-1], 23), (["a"], 9), ([0.5], 19)])
def test_what_no_tensor_can_hold_is_refused(values, kind):
    with pytest.raises(client.BadRequest):
        client._write_tensor(values, kind)


@pytest.mark.parametrize("values", [["é", "", "a" * 300], [["a"], ["b"]], [1.5, -2.0], [[1, 2], [3, 4]], [True, False]])
def test_tensors_are_written_as_tensorflow_reads_them(values):
    dtype = tf.constant(values).dtype
    found = tf.make_ndarray(TensorProto.FromString(client._write_tensor(values, dtype.as_datatype_enum)))
    np.testing.assert_array_equal(found, tf.constant(values).numpy())


# === As a script ===


def run(*arguments):
    command = [sys.executable, "-I", str(PATH), *arguments]  # -I: without this package or the working directory
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_as_a_script(rest, grpc_url):
    for url in (rest, grpc_url):
        done = run(f"--url={url}", "--model=texts", "--signature_name=serving_default", "fire", "été")
        assert (done.returncode, done.stderr) == (0, "")
        assert [json.loads(line) for line in done.stdout.splitlines()] == [4, 5]
    done = run(f"--url={rest}", "--model=nothing", "some text")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "NotFound: Servable not found for request: Latest(nothing)\n"
    assert run("--url=nonsense", "--model=m", "a").stderr.startswith("ValueError: url must be")
    assert run("a").returncode == 2


def test_it_needs_the_standard_library_alone():
    code = f"import sys, runpy; runpy.run_path({str(PATH)!r}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert not {"grpc", "google", "numpy", "tensorflow", "keras_bert"} & set(done.stdout.split())
