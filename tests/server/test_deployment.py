"""The files of export/serving: they parse, and say the same about names, ports, paths and flags.

Docker and a cluster are not needed: what can be run without them is run, the health check for one.
"""

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from google.protobuf import text_format
from servers import in_thread, save_half_plus_two

from keras_bert.server.rest import METRICS_PATH
from keras_bert.server.settings import ServerConfig, read_model_config
from keras_bert.serving.protos import message_types

FOLDER = Path(__file__).parents[2] / "export/serving"
WRAPPED = {"Int64": {"value": (1, "int64")}, "Bool": {"value": (1, "bool")}}
BATCHING = WRAPPED | {
    "BatchingParameters": {
        "max_batch_size": (1, "Int64"),
        "batch_timeout_micros": (2, "Int64"),
        "max_enqueued_batches": (3, "Int64"),
        "num_batch_threads": (4, "Int64"),
        "allowed_batch_sizes": (6, "*int64"),
        "enable_large_batch_splitting": (8, "Bool"),
        "max_execution_batch_size": (9, "Int64"),
    }
}
MONITORING = {
    "MonitoringConfig": {"prometheus_config": (1, "PrometheusConfig")},
    "PrometheusConfig": {"enable": (1, "bool"), "path": (2, "string")},
}
FLAGS = {
    "port",
    "rest_api_port",
    "model_config_file",
    "model_config_file_poll_wait_seconds",
    "enable_batching",
    "batching_parameters_file",
    "monitoring_config_file",
}
"""Of `tensorflow_model_server`, as far as they are used."""


def parse(name, messages, message):
    return text_format.Parse((FOLDER / name).read_text("utf-8"), message_types(messages)[message]())


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((FOLDER / "compose.yaml").read_text("utf-8"))


@pytest.fixture(scope="module")
def kubernetes():
    found = list(yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text("utf-8")))
    return {document["kind"]: document for document in found}


@pytest.fixture(scope="module")
def container(kubernetes):
    (container,) = kubernetes["Deployment"]["spec"]["template"]["spec"]["containers"]
    return container


@pytest.fixture(scope="module")
def model():
    """The name of the one model in models.config."""
    (name,) = read_model_config(str(FOLDER / "models.config"))
    return name


def flags_of(arguments):
    return dict(re.fullmatch("--([a-z_]+)=(.+)", argument).groups() for argument in arguments)


def test_both_start_the_same_server_with_flags_that_it_has(compose, container):
    serving = compose["services"]["serving"]
    assert serving["image"] == container["image"]
    assert re.fullmatch(r"tensorflow/serving:\d+\.\d+\.\d+", serving["image"])
    assert serving["entrypoint"] == container["command"]
    assert flags_of(serving["command"]) == flags_of(container["args"])
    assert flags_of(serving["command"]).keys() == FLAGS


def test_every_configuration_file_is_there_and_mounted_where_the_flags_say(compose, container):
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {"/config": "config", "/models": "models"}
    volumes = [volume.rsplit(":", 2) for volume in compose["services"]["serving"]["volumes"]]
    assert {where: what for what, where, _ in volumes} == {"/config": ".", "/models": "${MODELS:-../../models}"}
    assert {mode for _, _, mode in volumes} == {"ro"}
    apply = (FOLDER / "kubernetes.yaml").read_text("utf-8")
    for flag, path in flags_of(container["args"]).items():
        if flag.endswith("_file"):
            assert Path(path).parent == Path("/config")
            assert (FOLDER / Path(path).name).is_file()
            assert f"--from-file={Path(path).name}" in apply


def test_models_lie_where_they_are_mounted(model):
    config = read_model_config(str(FOLDER / "models.config"))[model]
    assert config.base_path == f"/models/{model}"
    assert config.policy([1, 2, 10]) == {10}
    assert 'model_platform: "tensorflow"' in (FOLDER / "models.config").read_text("utf-8")


def test_batching_parameters():
    found = parse("batching_parameters.txt", BATCHING, "BatchingParameters")
    values = {field.name: value.value for field, value in found.ListFields()}
    assert values["enable_large_batch_splitting"], "or requests with more rows than a batch are refused"
    assert values["max_batch_size"] > values["max_execution_batch_size"]
    ours = ServerConfig()
    assert values["max_execution_batch_size"] == ours.max_batch_size
    assert values["batch_timeout_micros"] == ours.batch_timeout_micros
    assert values["num_batch_threads"] == ours.num_batch_threads
    assert values["max_enqueued_batches"] >= values["num_batch_threads"]


def test_metrics_are_where_prometheus_looks(compose, kubernetes, container):
    found = parse("monitoring.config", MONITORING, "MonitoringConfig").prometheus_config
    assert (found.enable, found.path) == (True, METRICS_PATH)
    (scrape,) = yaml.safe_load((FOLDER / "prometheus.yml").read_text("utf-8"))["scrape_configs"]
    rest_port = flags_of(container["args"])["rest_api_port"]
    assert scrape["metrics_path"] == METRICS_PATH
    assert scrape["static_configs"] == [{"targets": [f"serving:{rest_port}"]}]
    assert "serving" in compose["services"]
    annotations = kubernetes["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/path"] == METRICS_PATH
    assert annotations["prometheus.io/port"] == rest_port


def test_ports(compose, kubernetes, container):
    flags = flags_of(container["args"])
    named = {port["name"]: str(port["containerPort"]) for port in container["ports"]}
    assert named == {"grpc": flags["port"], "rest": flags["rest_api_port"]} == {"grpc": "8500", "rest": "8501"}
    service = {port["name"]: (str(port["port"]), port["targetPort"]) for port in kubernetes["Service"]["spec"]["ports"]}
    assert service == {name: (port, name) for name, port in named.items()}
    assert compose["services"]["serving"]["ports"] == [f"127.0.0.1:{port}:{port}" for port in named.values()]


def test_labels_select_the_pods(kubernetes):
    labels = kubernetes["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert kubernetes["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert kubernetes["Service"]["spec"]["selector"] == labels
    assert kubernetes["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels


def test_probes(kubernetes, container, model):
    for probe in ("startupProbe", "readinessProbe"):
        assert container[probe]["httpGet"] == {"path": f"/v1/models/{model}/metadata", "port": "rest"}
    assert container["livenessProbe"]["tcpSocket"] == {"port": "grpc"}, "a loading or busy server must not be killed"
    assert container["startupProbe"]["periodSeconds"] * container["startupProbe"]["failureThreshold"] >= 300
    assert kubernetes["Deployment"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > 30
    assert set(container["resources"]) == {"requests", "limits"}


def test_the_health_check_runs_in_bash_alone(compose, model, tmp_path):
    """Against the stand-in: well while the model can answer; not for another model, nor when nobody listens."""
    kind, *command = compose["services"]["serving"]["healthcheck"]["test"]
    assert (kind, command[:2]) == ("CMD", ["bash", "-c"])
    assert f"GET /v1/models/{model}/metadata " in command[2]

    def check(port, name):
        script = command[2].replace("8501", str(port)).replace(f"/{model}/", f"/{name}/").replace("$$", "$")
        return subprocess.run(["/bin/bash", "-c", script], env={}, capture_output=True, timeout=30).returncode

    save_half_plus_two(tmp_path / "1")
    with in_thread({model: tmp_path}) as server:
        assert check(server.port, model) == 0
        assert check(server.port, "nothing") != 0
    assert check(server.port, model) != 0


def test_the_readme_takes_six_lines(model):
    text = (FOLDER / "README.md").read_text("utf-8")
    (block,) = re.findall(r"```\n(.*?)```", text, re.S)
    lines = block.splitlines()
    assert len(lines) == 6
    assert lines[0].endswith(f"--export_dir=models/{model}")
    assert sum(f"model={model}" in line or f"/v1/models/{model}:predict" in line for line in lines) == 3
    listed = set(re.findall(r"^\| `(.+?)` \|", text, re.M))
    assert listed == {p.name for p in FOLDER.iterdir() if p.name != "README.md"} | {"../client.py"}


def test_the_way_to_docker_takes_six_lines(compose):
    """Of export/README.md: one model, one name, one port, and the image of the compose file."""
    text = (FOLDER.parent / "README.md").read_text("utf-8")
    lines = [line.strip() for line in re.search(r"(?:^    .+\n)+", text, re.M)[0].splitlines()]
    assert len(lines) == 6
    command = " ".join(lines[2:4]).replace("\\ ", "")
    (name,) = re.findall("MODEL_NAME=([a-z]+)", command)
    assert f'-v "$PWD/models/{name}:/models/{name}"' in command
    assert command.endswith(compose["services"]["serving"]["image"])
    assert re.search(r"-p 127\.0\.0\.1:8501:8501 ", command)
    assert [line.split()[:2] for line in (*lines[:2], lines[4])] == [
        ["keras-bert", "export"],
        *[["keras-bert", "verify_export"]] * 2,
    ]
    assert all(f"--export_dir=models/{name}" in line for line in (*lines[:2], lines[4]))
    assert lines[4].endswith("--url=http://localhost:8501")
    assert lines[5].endswith(f"http://localhost:8501/v1/models/{name}:predict")
    assert "No Docker was at hand" in text
