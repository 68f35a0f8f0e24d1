"""The directory of a run: one process at a time, and states that are whole or not there."""

import json
import multiprocessing
import os
import resource
import subprocess
import sys
import time

import numpy as np
import pytest

from keras_bert.errors import CheckpointError, ConfigError
from keras_bert.training import states as states_module
from keras_bert.training.states import METRICS_FILE, States, locked

ARRAYS = {"weights/a": np.arange(12, dtype=np.float32).reshape(3, 4), "step": np.array(7), "none": np.zeros((0, 2))}
NOTES = {"history": [{"step": 5, "loss": 0.1}], "tally": {"loss/sum": 0.1 + 0.2}}


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_a_state_comes_back_as_it_was_bit_by_bit(tmp_path):
    States(tmp_path).write(7, ARRAYS, NOTES)
    arrays, header = States(tmp_path).newest(print)
    assert {k: (v.dtype, v.shape, v.tobytes()) for k, v in arrays.items()} == {
        k: (v.dtype, v.shape, v.tobytes()) for k, v in ARRAYS.items()
    }
    assert header["step"] == 7
    assert header["tally"]["loss/sum"] == 0.1 + 0.2
    assert [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text().splitlines()] == NOTES["history"]


def test_the_newest_state_is_that_of_the_highest_step_whatever_the_clock_says(tmp_path):
    states = States(tmp_path, keep=3)
    for step in (5, 900, 1000):
        states.write(step, ARRAYS, NOTES)
    for path in states.found():
        os.utime(path, (1e9, 1e9))
    os.utime(states.found()[-1], (2e9, 2e9))
    assert states.newest(print)[1]["step"] == 1000


def test_old_states_and_half_written_files_go(tmp_path):
    states = States(tmp_path, keep=2)
    for step in (1, 2, 3):
        states.write(step, ARRAYS, NOTES)
    assert names(tmp_path) == ["step-000000002.safetensors", "step-000000003.safetensors"]
    (tmp_path / "checkpoints" / ".step-000000004.safetensors.x.tmp").write_bytes(b"half")
    states.tidy()
    assert len(names(tmp_path)) == 2


def test_a_run_that_has_not_begun_has_no_state(tmp_path):
    assert States(tmp_path).newest(print) is None


def test_a_state_of_another_schema_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(states_module, "SCHEMA", 2)
    States(tmp_path).write(1, ARRAYS, NOTES)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="has schema 2, not 1"):
        States(tmp_path).newest(print)


def write_with_little_room(folder, conversation):
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        States(folder).write(2, {"big": np.zeros(100_000)}, NOTES)
    except CheckpointError as error:
        conversation.put(str(error))
    else:
        conversation.put("written")


def test_a_full_disk_leaves_the_state_before(tmp_path):
    """The limit on the size of files stands for the disk; in a process of its own."""
    States(tmp_path).write(1, ARRAYS, NOTES)
    before = names(tmp_path)
    context = multiprocessing.get_context("fork")
    conversation = context.Queue()
    process = context.Process(target=write_with_little_room, args=(tmp_path, conversation))
    process.start()
    said = conversation.get(timeout=60)
    process.join(60)
    assert "the state at step 2 cannot be written" in said
    assert names(tmp_path) == before
    assert States(tmp_path).newest(print)[1]["step"] == 1


WRITE = """
import sys
from pathlib import Path
import numpy as np
from keras_bert.training.states import States
states, step = States(Path(sys.argv[1])), int(sys.argv[2])
while True:
    step += 1
    states.write(step, {"step": np.full(1 << 18, step)}, {"history": []})
    print(step, flush=True)
"""


@pytest.mark.parametrize("kills", [12, pytest.param(100, marks=pytest.mark.slow)])
def test_a_kill_at_any_moment_of_writing_leaves_the_newest_state_that_was_written(kills, tmp_path):
    random, step = np.random.default_rng(kills), 0
    for _ in range(kills):
        command = [sys.executable, "-c", WRITE, str(tmp_path), str(step)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            said = int(process.stdout.readline())
            time.sleep(random.uniform(0, 0.05))
            process.kill()
            said = max([said, *(int(line) for line in process.stdout.read().split("\n")[:-1])])
        warnings = []
        states = States(tmp_path)
        states.tidy()
        arrays, header = states.newest(warnings.append)
        assert not warnings
        assert said <= header["step"] <= said + 1
        assert set(arrays["step"].tolist()) == {header["step"]}
        assert not list(tmp_path.rglob("*.tmp"))
        step = header["step"]


HOLD = "import sys; from pathlib import Path; from keras_bert.training.states import locked\n"
HOLD += "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"


def test_a_second_process_is_refused_and_a_killed_one_holds_nothing(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=rf"another process \({first.pid}\) trains there"), locked(tmp_path):
            pass
        first.kill()
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())
