"""What an earlier version wrote is read by this one and gives the same values; `golden/make_old.py` made the files.

The ids of the tests say how values are compared: `bits` in the environment in which they were recorded, `near`
elsewhere; see `golden_values`. Only public entrances are used, so that these tests outlive any move of a module.
"""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from golden_values import NEAR_AFTER_TRAINING, assert_equal, masked_batches, mode, plain
from safetensors.numpy import load_file

from keras_bert import Bert
from keras_bert.__main__ import main

OLD = Path(__file__).parent / "golden" / "old"
GOLDEN = json.loads((OLD / "answers.json").read_text("utf-8"))
COMMANDS = json.loads((OLD / "commands.json").read_text("utf-8"))
RUNS = sorted(path.name for path in (OLD / "runs").iterdir())
FORMATS = sorted(path.name for path in (OLD / "formats").iterdir())
CORPORA = sorted(path.name for path in (OLD / "corpora").iterdir())
INTERRUPTED = sorted(path.name for path in (OLD / "interrupted").iterdir())
LENGTH = 32
TIMES = ("seconds", "examples_per_second", "python", "tensorflow", "keras", "peak_memory_mb", "weights_sha256")
"""What two runs of the same flags need not have in common."""

compared = pytest.mark.parametrize("how", [mode(GOLDEN["environment"])])


@pytest.fixture
def old(tmp_path, monkeypatch):
    """A copy of the files, which is the working directory, as it was when they were made."""
    shutil.copytree(OLD, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    return tmp_path / "old"


def test_there_is_a_run_of_each_task():
    tasks = {json.loads((OLD / "runs" / run / "keras_bert.json").read_text("utf-8"))["head"]["task"] for run in RUNS}
    assert tasks == set(RUNS)
    assert len(RUNS) == 10


@compared
@pytest.mark.parametrize("run", RUNS)
def test_a_run_answers_as_it_did(run, how):
    golden = GOLDEN["predictions"][run]
    assert_equal(Bert.load(OLD / "runs" / run).predict(**golden["asked"]), golden["answers"], how)


@compared
@pytest.mark.parametrize("name", FORMATS)
def test_a_checkpoint_of_each_format_comes_back_as_the_run_it_was_made_of(name, how, tmp_path):
    flags = [f"--input_dir={OLD}/formats/{name}", f"--output_dir={tmp_path}/back", "--to_format=keras_bert"]
    assert main(["convert", *flags]) == 0
    found, wanted = Bert.load(tmp_path / "back"), Bert.load(OLD / "runs" / "classify")
    weights = [{w.path: np.asarray(w) for w in bert.network.weights} for bert in (found, wanted)]
    assert_equal(*weights, "bits")
    golden = GOLDEN["predictions"]["classify"]
    assert_equal(found.predict(**golden["asked"]), golden["answers"], how)


@compared
def test_a_pretrained_model_is_asked_for_words(how):
    golden = GOLDEN["predictions"]["pretrain"]
    bert = Bert.from_checkpoint(OLD / "resumed" / "pretrain", task="fill_mask", max_seq_length=LENGTH)
    assert_equal(bert.predict(**golden["asked"]), golden["answers"], how)


@compared
def test_an_exported_model_is_verified_and_answers_as_it_did(how, tmp_path, capsys):
    with tarfile.open(OLD / "export.tar.xz") as tar:
        tar.extractall(tmp_path, filter="data")
    assert main(["verify_export", f"--export_dir={tmp_path}/export"]) == 0
    assert "requests answered as exported" in capsys.readouterr().err
    asked, model = GOLDEN["export"]["asked"], tf.saved_model.load(str(tmp_path / "export" / "1"))
    outputs = model.signatures["serving_default"](**{name: tf.constant(values) for name, values in asked.items()})
    as_arrays = {name: value.numpy() for name, value in outputs.items()}
    assert_equal(plain(as_arrays), GOLDEN["export"]["answers"], how)


def tensors(folder, target):
    """The weights of a checkpoint under Hugging Face's names, whatever they are called here."""
    assert main(["convert", f"--input_dir={folder}", f"--output_dir={target}", "--to_format=hf"]) == 0
    return load_file(f"{target}/model.safetensors")


def without_times(values):
    if isinstance(values, list):
        return [without_times(v) for v in values]
    return {k: without_times(v) for k, v in values.items() if k not in TIMES} if isinstance(values, dict) else values


def record(folder):
    """`metrics.jsonl` and `final_metrics.json` of a run."""
    lines = (Path(folder) / "metrics.jsonl").read_text("utf-8").splitlines()
    final = json.loads((Path(folder) / "final_metrics.json").read_text("utf-8"))
    return without_times({"metrics": [json.loads(line) for line in lines], "final": final})


@compared
@pytest.mark.parametrize("run", INTERRUPTED)
def test_an_interrupted_run_goes_on_and_ends_as_it_did(run, how, old):
    """The same command is given; the state is in the middle of an epoch, or between two evaluations."""
    folder, begun = old / "interrupted" / run, (OLD / "interrupted" / run / "metrics.jsonl").read_text("utf-8")
    assert main(COMMANDS[f"interrupted/{run}"]) == 0
    assert (folder / "metrics.jsonl").read_text("utf-8").startswith(begun)  # with its seconds: nothing began anew
    assert_equal(record(folder), record(old / "resumed" / run), how, NEAR_AFTER_TRAINING)
    found, golden = (tensors(source, old / f"hf_{source.parent.name}") for source in (folder, old / "resumed" / run))
    assert_equal(found, golden, how, NEAR_AFTER_TRAINING)


@pytest.mark.parametrize("name", CORPORA)
def test_a_corpus_is_written_byte_for_byte(name, old):
    assert main([*COMMANDS[f"corpora/{name}"], "--output_dir=again"]) == 0
    found, golden = (
        {path.name: path.read_bytes() for path in folder.iterdir()}
        for folder in (old / "again", old / "corpora" / name)
    )
    assert found == golden


@pytest.mark.parametrize("name", CORPORA)
def test_a_corpus_gives_the_same_batches_and_masks(name):
    vocabulary = (OLD / "base" / "vocab.txt").read_text("utf-8").splitlines()
    golden = np.load(OLD / "batches.npz")
    found = masked_batches(str(OLD / "corpora" / name), vocabulary, LENGTH)
    wanted = {key.removeprefix(f"{name}/"): golden[key] for key in golden.files if key.startswith(f"{name}/")}
    assert {key.split("/")[0] for key in wanted} == {"train_0", "train_1", "train_2", "evaluation"}
    assert_equal(found, wanted, "bits")


def test_one_bit_is_a_difference_and_near_is_not_far():
    value = {"a": [0.1, {"b": np.float32([1, 2])}]}
    one_bit = {"a": [0.1, {"b": np.nextafter(value["a"][1]["b"], np.float32(9))}]}
    assert_equal(one_bit, value, "near")
    with pytest.raises(AssertionError, match=r"\['a'\]\[1\]\['b'\]: bits differ"):
        assert_equal(one_bit, value, "bits")
    for far in ({"a": [0.1002, value["a"][1]]}, {"a": [0.1]}, {"b": value["a"]}, {"a": [np.float64(0.1), 0]}):
        with pytest.raises(AssertionError):
            assert_equal(far, value, "near")
    assert mode(GOLDEN["environment"] | {"tensorflow": "2.0"}) == "near"
