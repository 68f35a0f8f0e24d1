"""`keras-bert serve`: what it says when it starts, what it refuses, and its help."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request

import pytest
from conftest import shared
from servers import save_half_plus_two

from keras_bert.__main__ import main
from keras_bert.cli.serve import in_sixteen_bits
from keras_bert.config import FROZEN
from keras_bert.server.settings import Latest, ModelConfig


def test_the_request_it_prints_works_when_pasted(tmp_path):
    if shutil.which("curl") is None:
        pytest.skip(reason="the printed request needs curl")
    save_half_plus_two(tmp_path / "half model" / "1")
    command = [sys.executable, "-m", "keras_bert", "serve", f"--export_dir={tmp_path / 'half model'}", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            assert re.fullmatch(r"serving half model version 1 on http://127.0.0.1:\d+/v1/models/half%20model\n", line)
            hint = next(line for line in process.stderr if line.startswith("try it: "))
            done = subprocess.run(
                ["bash", "-c", hint.removeprefix("try it: ")], capture_output=True, text=True, timeout=60
            )
            assert json.loads(done.stdout) == {"predictions": [2.5]}
        finally:
            process.send_signal(signal.SIGTERM)
    assert process.returncode == 0


@pytest.mark.slow
def test_a_published_checkpoint_is_served_at_once():
    folder = shared("cases/checkpoints/a04_cross_encoder")
    said = json.loads((folder / "expected.json").read_text("utf-8"))
    flags = [f"--init_checkpoint={folder / 'ckpt'}", "--model_name=ranker", "--port=0"]
    command = [sys.executable, "-m", "keras_bert", "serve", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            line = process.stdout.readline()
            address = re.fullmatch(r"serving ranker version 1 on (http://127.0.0.1:\d+/v1/models/ranker)\n", line)[1]
            rows = [{"text": a, "text_pair": b} for a, b in zip(said["texts"], said["pairs"], strict=True)]
            request = urllib.request.Request(f"{address}:predict", json.dumps({"instances": rows}).encode())
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as found:
                scores = [row["score"] for row in json.load(found)["predictions"]]
        finally:
            process.send_signal(signal.SIGTERM)
    assert scores == pytest.approx([row[0] for row in said["logits"]], abs=1e-5)
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--export_dir must be given, or --model_config_file"),
        (["--export_dir=a", "--model_config_file=b"], "--model_config_file takes the place of --export_dir"),
        (["--model_name=a", "--model_config_file=b"], "--model_config_file takes the place of --export_dir"),
        (["--model_config_file=missing.config"], "--model_config_file missing.config: "),
        (["--export_dir=a", "--max_batch_size=0"], "max_batch_size must be at least 1, got 0"),
        (["--export_dir=a", "--num_batch_threads=-1"], "num_batch_threads must be at least 1, got -1"),
        (["--export_dir=a", "--batch_timeout_micros=-1"], "batch_timeout_micros must be from 0 to 10^9, got -1"),
        (["--export_dir=a", "--file_system_poll_wait_seconds=nan"], "file_system_poll_wait_seconds must be from 0"),
        (["--export_dir=a", "--request_timeout=-1"], "request_timeout must be from 0 to 10^9, got -1"),
        (["--export_dir=a", "--head_timeout=nan"], "head_timeout must be from 0 to 10^9, got nan"),
        (["--export_dir=a", "--limit_concurrency=0"], "limit_concurrency must be at least 1, got 0"),
        (["--export_dir=a", "--max_request_rows=0"], "max_request_rows must be at least 1, got 0"),
        (["--export_dir=a", "--model_config_file_poll_wait_seconds=1"], "needs --model_config_file"),
        (["--export_dir=a", "--max_request_bytes=ten"], "max_request_bytes"),
        (["--export_dir=a", "--max_batchsize=8"], "max_batchsize"),
        (["--export_dir=a", "--port=-1"], "--port must be from 0 to 65535"),
    ],
)
def test_wrong_flags_are_refused_in_one_line(capsys, flags, message):
    assert main(["serve", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("keras-bert serve: error: ")
    assert message in line


def test_help_names_every_flag_with_its_default(capsys):
    assert main(["serve", "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("keras-bert serve: answer REST requests from an exported model, on this machine\n")
    for flag, default in {
        "host": "127.0.0.1",
        "port": "8501",
        "max_batch_size": "16",
        "batch_timeout_micros": "0",
        "max_request_bytes": "16777216",
        "max_request_rows": "10000",
        "request_timeout": "30.0",
        "drain_timeout": "30.0",
        "file_system_poll_wait_seconds": "1.0",
    }.items():
        assert re.search(rf"^  --{flag}\n      .+ \[{re.escape(default)}\]$", text, re.M), flag
    assert max(map(len, text.splitlines())) <= 120


def test_weights_are_kept_where_all_versions_are_ours_and_in_bfloat16(tmp_path):
    def version(place, precision):
        folder = tmp_path / place / "assets.extra"
        folder.mkdir(parents=True)
        if precision:
            (folder / "keras_bert.json").write_text(json.dumps({"schema": 1, "precision": precision}))

    version("half/1", "bfloat16")
    version("full/1", "float32")
    version("both/1", "float32")
    version("both/2", "bfloat16")
    version("strange/1", "")
    models = {place: ModelConfig(str(tmp_path / place)) for place in ("half", "full", "both", "strange")}
    assert [in_sixteen_bits({"m": model}) for model in models.values()] == [True, False, True, False]
    assert not in_sixteen_bits({"m": ModelConfig(str(tmp_path / "both"), Latest(2))})
    assert in_sixteen_bits({name: models[name] for name in ("half", "both")})
    assert not in_sixteen_bits(models)
    assert not in_sixteen_bits({"m": ModelConfig(str(tmp_path / "nowhere"))})


def test_the_command_keeps_weights_before_anything_is_computed(tmp_path):
    """Not for another's model, in whose graph a product may have something else than weights."""
    for place in ("strange", "ours"):
        save_half_plus_two(tmp_path / place / "1")
    manifest = tmp_path / "ours" / "1" / "assets.extra" / "keras_bert.json"
    manifest.parent.mkdir()
    manifest.write_text('{"schema": 1, "precision": "bfloat16"}')
    program = f"""
import os, sys
from unittest import mock
from keras_bert.__main__ import main
for folder in sys.argv[1:]:
    with mock.patch("keras_bert.server.serve", create=True):
        print(main(["serve", "--export_dir=" + folder]), os.environ.get({FROZEN!r}))
"""
    command = [sys.executable, "-c", program, tmp_path / "strange", tmp_path / "ours"]
    environment = {name: value for name, value in os.environ.items() if name != FROZEN}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.stdout.splitlines() == ["0 None", "0 1"], done.stderr
