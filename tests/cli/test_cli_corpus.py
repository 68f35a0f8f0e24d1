"""`keras-bert corpus`: what it prints and refuses, and builds that are killed."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from test_corpus import contents, write

from keras_bert.__main__ import main

COMMAND = [sys.executable, "-m", "keras_bert", "corpus"]


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    desk = tmp_path_factory.mktemp("desk")
    write(desk / "a.txt", documents=120)
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "d",
        "s",
        "un",
        "##believable",
        *(f"##{i}" for i in range(10)),
    ]
    (desk / "vocab.txt").write_text("\n".join(words) + "\n")
    return desk


def given(desk, tmp_path, **others):
    values = {"input_file": desk / "a.txt", "vocab_file": desk / "vocab.txt", "output_dir": tmp_path / "out"} | others
    return ["corpus", *(f"--{name}={value}" for name, value in values.items())]


def test_it_says_what_it_made(desk, tmp_path, capsys):
    assert main(given(desk, tmp_path, max_seq_length=64, num_shards=2, num_processes=1)) == 0
    out = capsys.readouterr().out.splitlines()
    table = {line.split()[0]: line.split()[1] for line in out[:-1]}
    totals = json.loads((tmp_path / "out/manifest.json").read_text())["totals"]
    assert list(table) == ["documents", "sentences", "tokens", "rows", "padding", "shards", "text", "seconds", "speed"]
    assert (table["documents"], table["shards"], table["rows"]) == ("120", "2", f"{totals['records']:,}")
    assert table["padding"] == f"{1 - totals['row_tokens'] / (64 * totals['records']):.1%}"
    assert out[-1] == str(tmp_path / "out")


def test_help_reads_well(capsys):
    assert main(["corpus", "--help"]) == 0
    out = capsys.readouterr().out
    for name in (
        "input_file",
        "output_dir",
        "vocab_file",
        "max_seq_length",
        "max_predictions_per_seq",
        "masked_lm_prob",
    ):
        assert f"--{name}" in out
    for name in (
        "short_seq_prob",
        "dupe_factor",
        "do_whole_word_mask",
        "do_lower_case",
        "random_seed",
        "pairs=next_sen",
    ):
        assert f"--{name}" in out


@pytest.mark.parametrize(
    ("others", "code", "message"),
    [
        ({"input_file": "nothing/*.txt"}, 3, "nothing/*.txt: matches no file"),
        ({"vocab_file": "nothing.txt"}, 3, "nothing.txt: cannot be read"),
        ({"pairs": "all"}, 2, "should be one of"),
        ({"masked_lm_prob": 0.2}, 2, "--masked_lm_prob is for --format=static"),
        ({"do_whole_word_mask": "true"}, 2, "--do_whole_word_mask is for --format=static"),
        ({"num_shards": -1}, 2, "--num_shards must be at least 0"),
        ({"max_seq_length": 2}, 2, "max_seq_length must be at least 5"),
        ({"beam_options": "--runner=X"}, 2, "--beam_options is for --runner=beam"),
        ({"output_dir": ""}, 2, "--output_dir must be given"),
        ({"input_format": "jsonl"}, 3, "line 1: not valid JSON"),
    ],
)
def test_it_refuses_in_one_line(desk, tmp_path, capsys, others, code, message):
    assert main(given(desk, tmp_path, num_processes=1, **others)) == code
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("keras-bert corpus: error: ")
    assert message in err


def test_a_killed_build_goes_on_with_the_same_command(desk, tmp_path):
    """kill -9 as soon as some shards are there; they stay, and the end is that of a build without a pause."""
    flags = [*given(desk, tmp_path)[1:], "--num_shards=12", "--num_processes=2", "--dupe_factor=60"]
    process = subprocess.Popen([*COMMAND, *flags], stderr=subprocess.DEVNULL, start_new_session=True)
    out = tmp_path / "out"
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None and len(list(out.glob("shard-*.json"))) < 3:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = {
        path: path.stat().st_mtime_ns for path in out.glob("shard-*.tfrecord") if path.with_suffix(".json").exists()
    }
    assert len(finished) >= 3
    assert not (out / "manifest.json").exists()
    assert main(["corpus", *flags, "--num_processes=1"]) == 0
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert main(["corpus", *flags, "--num_processes=1", f"--output_dir={tmp_path}/whole"]) == 0
    assert contents(out) == contents(tmp_path / "whole")


def test_building_needs_no_tensorflow(desk, tmp_path):
    code = "import sys; from keras_bert.__main__ import main; print(main(sys.argv[1:]), 'tensorflow' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, *given(desk, tmp_path, num_processes=1)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "0 False"
