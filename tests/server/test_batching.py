"""Requests that run together are answered as if each had run alone."""

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf
from conftest import WORDS
from servers import in_thread, save_filled, save_half_plus_two, save_ids, save_pairs

from keras_bert.server.batching import Batcher
from keras_bert.server.counters import Metrics
from keras_bert.server.json_tensor import RequestError
from keras_bert.server.servable import Servable
from keras_bert.server.settings import ServerConfig

CLIENTS = 200
PATIENT = {"max_batch_size": 16, "batch_timeout_micros": 50_000}


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_export):
    base = tmp_path_factory.mktemp("models")
    save_half_plus_two(base / "half/1")
    save_pairs(base / "pairs/1")
    save_ids(base / "ids/1")
    save_filled(base / "filled/1")
    return {name: base / name for name in ("half", "pairs", "ids", "filled")} | {"texts": tiny_export}


@pytest.fixture(scope="module")
def servables(models):
    return {name: Servable(name, base / "1") for name, base in models.items()}


@pytest.fixture(scope="module")
def server(models):
    with in_thread(models, **PATIENT) as started:
        yield started


class Counted:
    """A signature that notes how many rows each of its runs had."""

    def __init__(self, signature):
        self.signature, self.runs = signature, []

    def __getattr__(self, name):
        return getattr(self.signature, name)

    def __call__(self, inputs):
        self.runs.append(len(next(iter(inputs.values()))))
        return self.signature(inputs)


def together(signature, requests, **config):
    """The answers, or errors, of requests that arrive at the same time, and the rows of each run."""
    counted, batcher = Counted(signature), Batcher(ServerConfig(**(PATIENT | config)), Metrics())

    async def ask():
        return await asyncio.gather(*(batcher(counted, inputs) for inputs in requests), return_exceptions=True)

    return asyncio.run(ask()), counted.runs


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].shape == value.shape
        if value.dtype.kind == "f":
            np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-6)
        else:
            np.testing.assert_array_equal(found[name], value)


# === Over HTTP ===


def test_s5_200_clients_with_texts_of_different_lengths(server, servables):
    """Each sends texts of its own, on a connection of its own, at the same moment."""
    texts = [" ".join(WORDS[5 + (i * 7 + k) % 50] for k in range(1 + i % 40)) for i in range(CLIENTS)]
    requests = [texts[i : i + 1 + i % 3] for i in range(CLIENTS)]
    before, start = server.metrics(), threading.Barrier(CLIENTS)

    def ask(instances):
        start.wait()
        return server.predict({"instances": instances}, "/v1/models/texts:predict")["predictions"]

    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(ask, requests))
    alone = servables["texts"].signatures["serving_default"]
    for instances, rows in zip(requests, answers, strict=True):
        wanted = alone({"text": np.array([text.encode() for text in instances], object)})
        assert [row["label"].encode() for row in rows] == list(wanted["label"])
        assert [row["num_tokens"] for row in rows] == list(wanted["num_tokens"])
        np.testing.assert_allclose([row["scores"] for row in rows], wanted["scores"], rtol=0, atol=1e-6)
    runs = ":tensorflow:serving:batching_session:wrapped_run_count{}"
    assert server.metrics()[runs] - before.get(runs, 0) < CLIENTS / 2, "the test is of no use if nothing ran together"


def test_s2_a_bad_row_spoils_its_own_request_alone(server):
    numbers = [[float(i), 20.0] if i % 5 == 0 else [float(i % 10)] for i in range(40)]

    def ask(instances):
        body = json.dumps({"signature_name": "below_ten", "instances": instances}).encode()
        status, _, answer = server.send("POST", "/v1/models/half:predict", body)
        return status, json.loads(answer)

    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(ask, numbers))
    for instances, (status, answer) in zip(numbers, answers, strict=True):
        if 20.0 in instances:
            assert status == 400
            assert answer["error"].startswith("assertion failed: [x must be below 10]")
        else:
            assert (status, answer) == (200, {"predictions": instances})


@pytest.mark.parametrize("path", ["half:predict", "half:regress"])
def test_a_body_that_is_too_large_is_refused_and_the_connection_stays_usable(models, path):
    from gzip import compress
    from http.client import HTTPConnection

    large = b'{"instances": [' + b"1.0, " * 300 + b"1.0]}"
    with in_thread({"half": models["half"]}, max_request_bytes=1000) as server:
        connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
        for body, headers in [
            (large, {}),
            (iter([large[:900], large[900:]]), {}),
            (compress(large), {"Content-Encoding": "gzip"}),
        ]:
            connection.request("POST", f"/v1/models/{path}", body, headers)
            answer = connection.getresponse()
            message = json.loads(answer.read())["error"]
            assert (answer.status, message) == (413, "The request body is larger than 1000 bytes")
        connection.request("POST", "/v1/models/half:predict", b'{"instances": [2.0]}')
        assert json.loads(connection.getresponse().read()) == {"predictions": [3.0]}
        connection.close()


# === Which requests run together ===


def test_strings_run_together(servables):
    requests = [{"text": np.array([b"a" * i] * (1 + i % 2), object)} for i in range(10)]
    requests = [request | {"other": request["text"]} for request in requests]
    answers, runs = together(servables["pairs"].signatures["serving_default"], requests)
    for request, answer in zip(requests, answers, strict=True):
        assert_same(answer, servables["pairs"].signatures["serving_default"](request))
    assert sum(runs) == 15
    assert len(runs) < 10
    assert max(runs) <= 16


def ids(*lengths):
    found = []
    for length in lengths:
        row = np.arange(1, length + 1, dtype=np.int32)[None]
        found.append({"input_mask": np.ones_like(row), "input_word_ids": row})
    return found


def test_token_ids_are_padded_to_the_longest_and_answers_cut_back(servables):
    signature = servables["ids"].signatures["serving_default"]
    requests = ids(3, 7, 1, 5, 3, 2)  # as wide as the three labels, which must not be cut
    answers, runs = together(signature, requests, max_batch_size=6, batch_timeout_micros=10**6)
    assert runs == [6]
    for request, answer in zip(requests, answers, strict=True):
        assert_same(answer, signature(request))


def test_ids_without_a_mask_run_with_others_of_their_length_only(servables):
    signature = servables["ids"].signatures["unmasked"]
    requests = [{"input_word_ids": request["input_word_ids"]} for request in ids(3, 7, 3, 7, 3, 3)]
    answers, runs = together(signature, requests)
    assert sorted(runs) == [2, 4]
    for request, answer in zip(requests, answers, strict=True):
        assert_same(answer, signature(request))


@pytest.mark.parametrize(
    ("model", "name", "inputs"),
    [
        ("half", "two_rows", {"x": np.array([1, 2], np.float32)}),
        ("pairs", "constant", {"text": np.array([b"a"], object)}),
    ],
    ids=["rows are fixed", "an output has no rows"],
)
def test_signatures_without_free_rows_run_one_request_at_a_time(servables, model, name, inputs):
    signature = servables[model].signatures[name]
    assert not signature.batched
    answers, runs = together(signature, [inputs] * 5)
    assert len(runs) == 5
    for answer in answers:
        assert_same(answer, signature(inputs))


def test_large_requests_run_in_pieces_and_empty_ones_alone(servables):
    signature = servables["half"].signatures["serving_default"]
    requests = [{"x": np.arange(n, dtype=np.float32)} for n in (0, 100, 16, 0)]
    answers, runs = together(signature, requests)
    assert sorted(runs) == [0, 0, 4, *[16] * 7]
    for request, answer in zip(requests, answers, strict=True):
        assert_same(answer, {"y": 0.5 * request["x"] + 2})


def test_a_small_request_waits_for_a_piece_of_a_large_one_only(servables):
    """Both threads have a piece, and two more wait, when the small one comes: it is among the next."""
    signature = servables["half"].signatures["serving_default"]
    requests = [{"x": np.arange(n, dtype=np.float32)} for n in (160, 1)]
    answers, runs = together(signature, requests, batch_timeout_micros=0)
    assert sorted(runs) == [1, *[16] * 10]
    assert runs.index(1) <= 4
    assert answers[1]["y"].tolist() == [2.0]


@pytest.mark.parametrize(
    ("model", "name"), [("filled", "serving_default"), ("texts", "tokenize"), ("ids", "serving_default")]
)
def test_rows_that_a_model_fills_up_are_put_together_as_if_they_had_run_at_once(servables, model, name):
    signature = servables[model].signatures[name]
    texts = np.array([b"a b", b"c", b"", b"d e f g", b"h", b"i j k"], object)
    ids = np.arange(1, 43, dtype=np.int32).reshape(6, 7)
    inputs = {"input_word_ids": ids, "input_mask": ids % 5} if model == "ids" else {"text": texts}
    for size in (1, 2, 3, 4):
        (answer,), runs = together(signature, [inputs], max_batch_size=size)
        assert_same(answer, signature(inputs))
        assert max(runs[: len(texts) // size]) == size


def test_pieces_that_nobody_waits_for_do_not_run(servables):
    """The client leaves while two of a hundred pieces are computed."""
    begun, go = threading.Semaphore(0), threading.Event()

    class Held(Counted):
        def __call__(self, inputs):
            begun.release()
            go.wait()
            return super().__call__(inputs)

    held, batcher = Held(servables["half"].signatures["serving_default"]), Batcher(ServerConfig(), Metrics())

    async def leave():
        work = asyncio.ensure_future(batcher(held, {"x": np.zeros(1600, np.float32)}))
        for _ in range(2):
            await asyncio.to_thread(begun.acquire)
        assert batcher.running == 2
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        go.set()
        return await batcher(held, {"x": np.zeros(1, np.float32)})

    assert asyncio.run(leave())["y"].tolist() == [2.0]
    assert held.runs == [16, 16, 1]


def test_a_batch_size_of_one_runs_each_request_alone(servables):
    requests = [{"x": np.array([float(n)], np.float32)} for n in range(6)]
    answers, runs = together(servables["half"].signatures["serving_default"], requests, max_batch_size=1)
    assert runs == [1] * 6
    assert [answer["y"].tolist() for answer in answers] == [[0.5 * n + 2] for n in range(6)]


def test_inputs_of_different_lengths_are_an_error_of_their_own_request(servables):
    signature = servables["pairs"].signatures["serving_default"]
    good = {name: np.array([b"a"], object) for name in ("text", "other")}
    bad = good | {"other": np.array([b"a", b"b", b"c"], object), "text": np.array([b"a", b"b"], object)}
    answers, _ = together(signature, [good, bad, good])
    assert isinstance(answers[1], RequestError)
    for answer in (answers[0], answers[2]):
        assert_same(answer, signature(good))


def test_an_operation_error_keeps_its_status(servables):
    with pytest.raises(RequestError, match="x must be below 10") as caught:
        servables["half"].signatures["below_ten"]({"x": np.array([11], np.float32)})
    assert caught.value.status == 400
    assert isinstance(caught.value.__cause__, tf.errors.InvalidArgumentError)
