"""The blocks of README.md and export/README.md run as they are printed, on a tiny checkpoint."""

import csv
import importlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import WORDS

from keras_bert import config
from keras_bert.__main__ import main
from keras_bert.model import masks
from keras_bert.pretrain import objectives
from keras_bert.tasks import network

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """A directory with the files that the README speaks of."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(tiny_checkpoint, folder / "all-MiniLM-L6-v2")
    for name, columns in (("train.csv", ["id", "text", "target"]), ("test.csv", ["id", "text"])):
        with open(folder / name, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            for i in range(40):
                row = [i, f"{WORDS[40 + i % 8]} in the {WORDS[i % 30 + 5]}", i % 2]
                writer.writerow(row[: len(columns)])
    return folder


def blocks(path: Path, *kinds: str) -> list[str]:
    return [code for kind, code in BLOCK.findall(path.read_text("utf-8")) if kind in kinds]


def environment() -> dict[str, str]:
    return os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "TF_CPP_MIN_LOG_LEVEL": "3"}


@pytest.fixture(scope="module")
def after_commands(folder: Path) -> Path:
    """The directory after the README's shell block."""
    commands = blocks(ROOT / "README.md", "sh")[0]
    done = subprocess.run(
        ["bash", "-euc", commands], cwd=folder, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_the_commands_make_a_submission_and_a_model(after_commands: Path) -> None:
    with open(after_commands / "submission.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["id", "target"]
    assert [r[0] for r in rows[1:]] == [str(i) for i in range(40)]
    assert {r[1] for r in rows[1:]} <= {"0", "1"}
    assert (after_commands / "models/tweets/1/saved_model.pb").exists()


@pytest.mark.slow
def test_the_server_answers_the_request(after_commands: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip(reason="the README's request needs curl")
    serve, request = blocks(ROOT / "README.md", "sh")[1:3]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = "exec " + serve.replace("8501", port)
    with subprocess.Popen(
        ["bash", "-euc", command], cwd=after_commands, env=environment(), stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline().startswith("serving tweets version 1")
        ask = ["bash", "-euc", request.replace("8501", port)]
        answer = subprocess.run(ask, capture_output=True, text=True, timeout=60)
        server.send_signal(signal.SIGTERM)
    assert server.returncode == 0
    (found,) = json.loads(answer.stdout)["predictions"]
    printed = json.loads(blocks(ROOT / "README.md", "json")[0])["predictions"][0]
    assert set(found) == set(printed)
    assert found["label"] in ("0", "1")


def test_the_python_blocks_run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(folder)
    names = {"texts": [f"{w} in the city" for w in WORDS[5:35]], "labels": ["0", "1"] * 15}
    for code in blocks(ROOT / "README.md", "python"):
        exec(compile(code, "README.md", "exec"), names)  # our own documentation
    assert "'label'" in capsys.readouterr().out
    assert (folder / "models/mine/1/saved_model.pb").exists()


def test_the_new_parts_of_BUILD_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(folder)
    for table in (
        config.TASKS,
        network.HEADS,
        masks.MASKS,
        objectives.OBJECTIVES,
    ):
        for name in ("strided", "focal", "first_piece"):
            monkeypatch.setitem(table, name, None)  # afterwards it is gone again
            del table[name]
    names = {"texts": [f"{w} in the city" for w in WORDS[5:35]], "labels": ["0", "1"] * 15}
    for code in blocks(ROOT / "BUILD.md", "python"):
        exec(compile(code, "BUILD.md", "exec"), names)  # our own documentation
    shown = capsys.readouterr().out
    assert "position 0 looks at [ 0  4  8 12 16]" in shown
    assert "'score'" in shown
    assert "masked_lm" in shown.splitlines()[-1]


def test_commands_that_are_shown_exist_with_their_flags(capsys: pytest.CaptureFixture) -> None:
    shown = re.sub(r"\\\n\s*", " ", (ROOT / "README.md").read_text("utf-8"))
    lines = re.findall(r"^keras-bert [a-z_]+ .*--.*$", shown, re.M)
    assert len(lines) > 20
    for line in lines:
        assert main([line.split()[1], "--help"]) == 0
        known = re.findall(r"^  --(\w+)", capsys.readouterr().out, re.M)
        flags = re.findall(r" --(\w+)", line.split(" #")[0])
        assert not set(flags) - set(known), line


@pytest.mark.slow
def test_the_exported_model_loads_as_documented(after_commands: Path) -> None:
    (code,) = blocks(ROOT / "export/README.md", "python")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=after_commands,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "tf.Tensor" in done.stdout


def test_the_readme_says_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    summary = importlib.import_module("summary")
    table = summary.summary((ROOT / "benchmarks" / "RESULTS.md").read_text("utf-8"))
    assert f"{summary.BEGIN}\n{table}\n\n{summary.END}" in (ROOT / "README.md").read_text("utf-8")
