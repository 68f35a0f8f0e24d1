"""Versions that come and go while requests are answered, and the requests that warm them up."""

import importlib.util
import itertools
import json
import logging
import shutil
import threading
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from servers import in_thread, patiently, save_half_plus_two

from keras_bert.errors import CheckpointError, ConfigError
from keras_bert.server.counters import Metrics
from keras_bert.server.json_tensor import RequestError
from keras_bert.server.settings import Latest, ModelConfig, Specific, read_model_config
from keras_bert.server.swapping import Model, Models

CLIENT = importlib.util.spec_from_file_location("client", Path(__file__).parents[2] / "export/client.py")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Two models to copy from: they add 2 and 10."""
    folder = tmp_path_factory.mktemp("saved")
    for offset in (2, 10):
        save_half_plus_two(folder / str(offset), float(offset))
    return folder


def publish(saved, base, version, offset):
    """As the exporter does it: copy under a temporary name, then rename."""
    shutil.copytree(saved / str(offset), base / f".tmp-{version}")
    (base / f".tmp-{version}").rename(base / str(version))


def make(base, **config):
    return Model("half", ModelConfig(str(base), **config), Metrics())


def states(model):
    return {v["version"]: v["state"] for v in model.status()["model_version_status"]}


# === Versions come and go ===


def swap_under_load(saved, base, swaps):
    """Answers and failures of four clients while versions come, break and go; after each, every client is answered."""
    publish(saved, base, 1, 2)
    answers, failures, stop = [[] for _ in range(4)], [], threading.Event()

    def client(port, answered):
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        while not stop.is_set():
            connection.request("POST", "/v1/models/half:predict", b'{"instances": [2.0]}')
            response = connection.getresponse()
            body = response.read()
            (answered if response.status == 200 else failures).append(body)
        connection.close()

    with in_thread({"half": base}, file_system_poll_wait_seconds=0.1) as server:
        clients = [threading.Thread(target=client, args=(server.port, answered)) for answered in answers]
        for thread in clients:
            thread.start()
        try:
            for version in range(1, 2 * swaps, 2):
                wait_for_answers(answers, failures)
                broken = base / str(version + 1)
                broken.mkdir()
                (broken / "saved_model.pb").write_bytes(b"no model")
                wait_for(server, version + 1, "END")
                wait_for_answers(answers, failures)
                publish(saved, base, version + 2, 10 if version % 4 == 1 else 2)
                wait_for(server, version + 2, "AVAILABLE")
                wait_for(server, version, "END")
                for old in (version, version + 1):
                    shutil.rmtree(base / str(old))
            wait_for_answers(answers, failures)
        finally:
            stop.set()
            for thread in clients:
                thread.join()
    return answers, failures


def wait_for_answers(answers, failures):
    """Until every client has had two more answers: the second was asked for after this call."""
    enough = [len(answered) + 2 for answered in answers]
    for _ in patiently():
        if failures or all(len(a) >= n for a, n in zip(answers, enough, strict=True)):
            return
    raise AssertionError(f"clients get no more answers: {[len(a) for a in answers]}")


def wait_for(server, version, state):
    for _ in patiently():
        found = server.get("/v1/models/half")["model_version_status"]
        if any(f["version"] == str(version) and f["state"] == state for f in found):
            return
    raise AssertionError(f"version {version} is not {state}: {found}")


@pytest.mark.parametrize("swaps", [3, pytest.param(40, marks=pytest.mark.slow)])
def test_s6_no_request_fails_while_versions_change(saved, tmp_path, caplog, swaps):
    answers, failures = swap_under_load(saved, tmp_path, swaps)
    print(f"{sum(map(len, answers))} answers, {swaps} versions swapped and as many broken ones")
    assert failures == []
    for answered in answers:
        values = [json.loads(body)["predictions"][0] for body in answered]
        assert [value for value, _ in itertools.groupby(values)] == ([3.0, 11.0] * swaps)[: swaps + 1]
    broken = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert len(broken) >= swaps
    assert "half: version 2 is not served: " in broken[0]
    assert broken[0].endswith("; version 1 keeps serving")
    assert all("\n" not in line for line in broken)


def test_the_newest_version_is_served_and_a_new_one_takes_its_place(saved, tmp_path):
    for version in (1, 9):
        publish(saved, tmp_path, version, 2)
    model = make(tmp_path)
    assert states(model) == {"9": "AVAILABLE"}
    publish(saved, tmp_path, 10, 10)
    model.poll()
    assert states(model) == {"10": "AVAILABLE", "9": "END"}
    assert model.servable().version == 10
    with pytest.raises(RequestError, match=r"Specific\(half, 9\)"):
        model.servable(9)
    shutil.rmtree(tmp_path / "10")
    model.poll()
    assert model.servable().version == 9, "rolling back is removing the newest version"


def test_a_broken_version_is_tried_again_when_its_files_change(saved, tmp_path, caplog):
    publish(saved, tmp_path, 1, 2)
    model = make(tmp_path)
    shutil.copytree(saved / "10", tmp_path / "2")
    (tmp_path / "2/variables/variables.index").rename(tmp_path / "hidden")
    for _ in range(3):
        model.poll()
    assert model.servable().version == 1
    assert len([r for r in caplog.records if r.levelno == logging.ERROR]) == 1
    (status,) = model.status(2)["model_version_status"]
    assert (status["state"], status["status"]["error_code"]) == ("END", "UNKNOWN")
    assert "not a loadable SavedModel" in status["status"]["error_message"]
    (tmp_path / "hidden").rename(tmp_path / "2/variables/variables.index")
    model.poll()
    assert states(model) == {"2": "AVAILABLE", "1": "END"}


def test_without_versions_nothing_is_served_until_one_comes_back(saved, tmp_path, caplog):
    publish(saved, tmp_path / "base", 1, 2)
    model = make(tmp_path / "base")
    (tmp_path / "base").rename(tmp_path / "away")
    model.poll()
    assert model.servable().version == 1, "a disk that is away for a moment stops nothing"
    assert "no such directory" in caplog.text
    (tmp_path / "away").rename(tmp_path / "base")
    shutil.rmtree(tmp_path / "base/1")
    model.poll()
    with pytest.raises(RequestError, match=r"Latest\(half\)") as caught:
        model.servable()
    assert caught.value.status == 404
    publish(saved, tmp_path / "base", 2, 2)
    model.poll()
    assert model.servable().version == 2


def test_policies_and_labels(saved, tmp_path):
    for version in (1, 2, 3):
        publish(saved, tmp_path, version, 2)
    both = make(tmp_path, policy=Specific(frozenset([1, 3])), labels={"stable": 1, "canary": 3, "old": 2})
    assert states(both) == {"3": "AVAILABLE", "1": "AVAILABLE"}
    assert (both.servable().version, both.servable(label="stable").version) == (3, 1)
    with pytest.raises(RequestError, match="Unrecognized servable version label: old"):
        both.servable(label="old")
    assert list(states(make(tmp_path, policy=Latest(2)))) == ["3", "2"]
    assert list(states(make(tmp_path, policy=set))) == ["3", "2", "1"]
    with pytest.raises(CheckpointError, match="has no version 7; it has 1, 2, 3"):
        make(tmp_path, policy=Specific(frozenset([7])))


def test_versions_that_are_not_there_are_named_beside_those_that_are(saved, tmp_path, caplog):
    for version in (1, 2):
        publish(saved, tmp_path, version, 2)
    with pytest.raises(CheckpointError, match=rf"^{tmp_path}: has no version 7, 9; it has 1, 2$"):
        make(tmp_path, policy=Specific(frozenset([9, 7])))
    model = make(tmp_path, policy=Specific(frozenset([1, 9])))
    for _ in range(3):
        model.poll()
    assert states(model) == {"1": "AVAILABLE"}
    (line,) = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert line == f"half: {tmp_path}: has no version 9; it has 1, 2"
    publish(saved, tmp_path, 9, 2)
    model.poll()
    assert states(model) == {"9": "AVAILABLE", "1": "AVAILABLE"}


# === The configuration file ===


def write_config(path, **models):
    """A configuration file; each model is its base path and what else stands in its block."""
    blocks = [f'config {{ name: "{name}" base_path: "{base}" {rest} }}' for name, (base, rest) in models.items()]
    path.write_text(f"model_config_list {{ {' '.join(blocks)} }}")


def test_a_changed_configuration_file_is_taken_over(saved, tmp_path, caplog):
    """Models come, change and go; what cannot be read or loaded leaves the others as they are."""
    caplog.set_level(logging.INFO, "keras_bert.server")
    for version in (1, 2):
        publish(saved, tmp_path / "a", version, 2)
    publish(saved, tmp_path / "b", 1, 10)
    file = tmp_path / "models.config"

    def reload(**models):
        write_config(file, **models)
        served.reload()
        return {name: states(model) for name, model in served.by_name.items() if model._states}

    write_config(file, a=(tmp_path / "a", ""))
    served = Models(read_model_config(str(file)), Metrics(), lambda: read_model_config(str(file)))
    one = 'model_version_policy { specific { versions: 1 } } version_labels { key: "stable" value: 1 }'
    assert reload(a=(tmp_path / "a", one)) == {"a": {"2": "END", "1": "AVAILABLE"}}
    assert served.by_name["a"].servable(label="stable").version == 1
    found = reload(a=(tmp_path / "a", one), b=(tmp_path / "b", ""), c=(tmp_path / "c", ""))
    assert found == {"a": {"2": "END", "1": "AVAILABLE"}, "b": {"1": "AVAILABLE"}}
    with pytest.raises(RequestError, match=r"Latest\(c\)"):
        served.by_name["c"].servable()
    publish(saved, tmp_path / "c", 4, 2)
    served.poll()
    assert states(served.by_name["c"]) == {"4": "AVAILABLE"}

    answer = served.by_name["a"].servable().signatures["serving_default"]
    assert reload(a=(tmp_path / "b", ""))["a"]["1"] == "AVAILABLE"
    moved = served.by_name["a"].servable().signatures["serving_default"]
    ask = {"x": np.array([2.0], np.float32)}
    assert (answer(ask)["y"].tolist(), moved(ask)["y"].tolist()) == ([3.0], [11.0])
    assert states(served.by_name["b"]) == {"1": "END"}
    with pytest.raises(RequestError, match=r"Latest\(b\)"):
        served.by_name["b"].servable()

    file.write_text("model_config_list { config { nome: 'a' } }")
    caplog.clear()
    for _ in range(3):
        served.reload()
    (line,) = [r.getMessage() for r in caplog.records]
    assert 'no field named "nome"' in line
    assert line.endswith("; what is loaded keeps serving")
    assert served.by_name["a"].servable().version == 1
    assert reload(a=(tmp_path / "b", ""), b=(tmp_path / "b", ""))["b"] == {"1": "AVAILABLE"}, "it may come back"


def test_a_server_reads_its_configuration_file_again(saved, tmp_path):
    publish(saved, tmp_path / "a", 1, 2)
    publish(saved, tmp_path / "b", 1, 10)
    file = tmp_path / "models.config"
    write_config(file, a=(tmp_path / "a", ""))

    def reread():
        return read_model_config(str(file))

    config = {"model_config_file_poll_wait_seconds": 0.05, "file_system_poll_wait_seconds": 0}
    with in_thread({"a": tmp_path / "a"}, reread, **config) as server:
        assert server.send("GET", "/v1/models/b")[0] == 404
        write_config(file, b=(tmp_path / "b", ""))
        assert any(server.send("GET", "/v1/models/b")[0] == 200 for _ in patiently())
        for _ in patiently():
            status, _, _ = server.send("POST", "/v1/models/a:predict", b'{"instances": [2.0]}')
            if status == 404:
                break
        else:
            raise AssertionError("a model that is gone from the file is still served")


def test_fields_that_the_real_server_knows_are_read(tmp_path, caplog):
    path = tmp_path / "models.config"
    logs = """logging_config { log_collector_config { type: "" filename_prefix: "/tmp/log" }
                               sampling_config { sampling_rate: 0.5 attributes: 1 } }"""
    write_config(path, a=("/m/a", f"model_type: TENSORFLOW {logs}"))
    assert read_model_config(str(path)) == {"a": ModelConfig("/m/a")}
    assert [r.getMessage() for r in caplog.records] == [f"{path}: a has a logging_config; no requests are logged here"]


@pytest.mark.parametrize("field", ['model_platform: "pytorch"', "model_type: OTHER"])
def test_models_of_other_platforms_are_refused(tmp_path, field):
    path = tmp_path / "models.config"
    write_config(path, a=("/m/a", field))
    with pytest.raises(ConfigError, match="a is not of the platform tensorflow"):
        read_model_config(str(path))


def test_the_model_configuration_file(tmp_path):
    path = tmp_path / "models.config"
    path.write_text(
        """model_config_list { config { name: "a" base_path: "/m/a" model_platform: "tensorflow" }
           config { name: "b", base_path: "/m/b"  # a comment
             model_version_policy { specific { versions: 1 versions: 4 } }
             version_labels { key: "stable" value: 1 } version_labels { key: "canary" value: 4 } } }"""
    )
    models = read_model_config(str(path))
    assert {name: model.base_path for name, model in models.items()} == {"a": "/m/a", "b": "/m/b"}
    assert models["a"].policy([3, 12, 5]) == {12}
    assert models["b"].policy([3, 4, 5]) == {4}
    assert models["b"].labels == {"stable": 1, "canary": 4}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("", "names no model"),
        ("model_config_list { config { nome: 'a' } }", 'has no field named "nome"'),
        ("model_config_list { config { name: 'a' } }", "a name of its own and a base_path"),
        ("model_config_list { " + "config { name: 'a' base_path: '/m' } " * 2 + "}", "a name of its own"),
    ],
)
def test_a_broken_model_configuration_file_is_refused(tmp_path, text, message):
    path = tmp_path / "models.config"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_model_config(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


# === Warm-up ===


def write_warm_up(directory, *requests):
    """A warm-up file, written without the server's own message types: the kind of log, the fields of its request."""
    client = importlib.util.module_from_spec(CLIENT)
    CLIENT.loader.exec_module(client)
    field = client._field
    (directory / "assets.extra").mkdir()
    with tf.io.TFRecordWriter(str(directory / "assets.extra/tf_serving_warmup_requests")) as writer:
        for kind, signature, payload in requests:
            spec = field(1, field(1, b"half") + field(3, signature))
            if kind == 6:
                tensor = tf.make_tensor_proto(payload, tf.float32).SerializeToString()
                payload = field(2, field(1, b"x") + field(2, tensor))
            else:
                example = tf.train.Example()
                example.features.feature["x"].float_list.value.extend(payload)
                payload = field(2, field(1, field(1, example.SerializeToString())))
            writer.write(field(kind, field(1, spec + payload)))


def test_warm_up_requests_are_replayed_before_a_version_is_published(saved, tmp_path):
    publish(saved, tmp_path, 1, 2)
    write_warm_up(tmp_path / "1", (6, b"", [1.0, 2.0]), (6, b"below_ten", [1.0]), (3, b"regress_x_to_y", [1.0]))
    metrics = Metrics()
    model = Model("half", ModelConfig(str(tmp_path)), metrics)
    assert model.servable().warm_up() == 3
    count = f':tensorflow:serving:model_warmup_latency_count{{model_path="{tmp_path}/1",status="OK"}} 1'
    assert count in metrics.page()


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        ([(6, b"", [1.0]), (6, b"below_ten", [20.0])], "record 2 failed .*x must be below 10"),
        ([(6, b"nothing", [1.0])], "record 1 failed .*no signature 'nothing'"),
        ([(6, b"regress_x_to_y", [1.0])], r"takes \['inputs'\], not \['x'\]"),
        ([(3, b"regress_x_to_y", [1.0]), (2, b"classify_x_to_y", [])], "record 2 failed"),
        ([(4, b"", [])], "no predict, classify or regress request"),
        ([(6, b"", [1.0])] * 1001, "more than 1000"),
    ],
)
def test_a_version_whose_warm_up_fails_is_not_published(saved, tmp_path, requests, message):
    publish(saved, tmp_path, 1, 2)
    model = make(tmp_path)
    shutil.copytree(saved / "10", tmp_path / "2")
    write_warm_up(tmp_path / "2", *requests)
    model.poll()
    assert model.servable().version == 1
    (status,) = model.status(2)["model_version_status"]
    assert tf.strings.regex_full_match(status["status"]["error_message"], f".*{message}.*").numpy()


def test_a_warm_up_file_that_is_no_tfrecord_is_refused(saved, tmp_path):
    publish(saved, tmp_path, 1, 2)
    (tmp_path / "1/assets.extra").mkdir()
    (tmp_path / "1/assets.extra/tf_serving_warmup_requests").write_bytes(b"rubbish" * 10)
    with pytest.raises(CheckpointError, match="warm-up record 0 failed"):
        make(tmp_path)
