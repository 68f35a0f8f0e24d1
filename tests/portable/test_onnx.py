"""ONNX models answer as the network does, for any batch, and are read without TensorFlow, Keras and PyTorch."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import checks
import numpy as np
import pytest
from conftest import TINY, WORDS, shared, tiny_bert

from keras_bert import Bert, HeadConfig, Text, TextConfig
from keras_bert.__main__ import main
from keras_bert.config import DataConfig
from keras_bert.errors import CheckpointError, ConfigError
from keras_bert.portable import onnx, portable
from keras_bert.tasks.network import Network

TEXTS = ["fire in the city", "", "storm " * 40, "Fires é!", "x" * 300, "a b c d e f g h i j k l m n o p q"]
FAR = {"float32": 1e-5, "int8": 0.05}
LABELS = ("no", 'y"es', "🔥")
HEADS = {
    "classify": HeadConfig(labels=LABELS),
    "mixed": HeadConfig(labels=("no", "yes"), layers="mix", pooling="max", threshold=0.4),
    "multilabel": HeadConfig(task="multilabel", labels=("no", "yes")),
    "regress": HeadConfig(task="regress", layers="first_last", pooling="cls"),
    "tag": HeadConfig(task="tag", labels=("place", "person")),
    "span": HeadConfig(task="span"),
    "similarity": HeadConfig(task="similarity"),
    "lstm": HeadConfig(labels=("no", "yes"), head_lstm=4),
}
PAIRS = ("regress", "span", "similarity")
SENTENCES = ("classify", "mixed", "multilabel", "regress")
ALL_OF_THEM = """
import json, sys
from pathlib import Path
from keras_bert.portable import onnx
codes = {}
for run, precision in json.loads(sys.argv[1]):
    folder = Path(run) / precision
    folder.mkdir()
    codes[f"{Path(run).name} {precision}"] = onnx._main(run, str(folder), precision)
print(json.dumps(codes))
"""


def need() -> None:
    for name in onnx.NEEDED:
        if find_spec(name) is None:
            pytest.skip(reason=f"{name} is not installed (make proofs installs it)")


def random_bert(name: str) -> Bert:
    """A model over `WORDS` whose every weight matters."""
    data = DataConfig(text_pair_column="text_pair" if name in PAIRS else "")
    network = checks.randomize(Network(TINY, HEADS[name]))
    return Bert(Text(WORDS, TextConfig(max_seq_length=16)), network, data)


@pytest.fixture(scope="module")
def berts() -> dict[str, Bert]:
    return {name: random_bert(name) for name in HEADS}


@pytest.fixture(scope="module")
def runs(berts, tmp_path_factory) -> tuple[Path, dict[str, int]]:
    """Runs of all heads, their models below them, and the exit codes of writing those: one process for all."""
    need()
    folder = tmp_path_factory.mktemp("runs")
    for name, bert in berts.items():
        bert.save(folder / name)
    wanted = [(str(folder / name), p) for name in HEADS for p in onnx.PRECISIONS if p == "float32" or name in SENTENCES]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ALL_OF_THEM, json.dumps(wanted)],
        env=os.environ | {"KERAS_BACKEND": "torch", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def written(runs, monkeypatch, tmp_path):
    """(name, precision) -> a directory that `onnx.write` wrote, with the model that is there already."""

    def write(name: str, precision: str = "float32") -> Path:
        model = runs[0] / name / precision / onnx.MODEL_FILE
        monkeypatch.setattr(onnx, "_converted", lambda run, precision: model.read_bytes())
        onnx.write(tmp_path / "model", runs[0] / name, precision)
        return tmp_path / "model"

    return write


@pytest.mark.parametrize("precision", onnx.PRECISIONS)
@pytest.mark.parametrize("name", SENTENCES)
def test_answers_are_those_of_predict(name, precision, written, berts):
    bert, tolerance = berts[name], FAR[precision]
    model = portable.LiteModel(written(name, precision))
    segments = [TEXTS, TEXTS[::-1]] if bert.pair else [TEXTS]
    truncated = set()
    for found, wanted in zip(map(model.answer, *segments), bert.predict(*segments), strict=True):
        assert found.keys() == wanted.keys()
        assert found["truncated"] == wanted["truncated"]
        truncated.add(found["truncated"])
        if "scores" in wanted:
            assert found["scores"] == pytest.approx(wanted["scores"], abs=tolerance)
        if precision == "float32":
            assert found.get("label") == wanted.get("label")
            assert found.get("labels") == wanted.get("labels")
        if "score" in wanted and found.get("label") == wanted.get("label"):
            assert found["score"] == pytest.approx(wanted["score"], abs=tolerance)
    assert truncated == {True, False}
    with pytest.raises(ConfigError, match="this model reads"):
        model.answer(*["fire"] * (2 - bert.pair))


@pytest.mark.parametrize("name", ["tag", "span"])
def test_heads_of_tokens_give_their_logits(name, written, berts):
    bert, model = berts[name], portable.LiteModel(written(name))
    for texts in zip(TEXTS, TEXTS[::-1], strict=True):
        given = texts[: 1 + bert.pair]
        row = bert.text(*([text] for text in given))
        features = {name: row[name] for name in portable.INPUTS}
        found = model.arrays(*given)
        np.testing.assert_allclose(found["logits"], bert.network(features)[0], rtol=0, atol=1e-5)
        assert found["truncated"] == row["truncated"][0]
    with pytest.raises(ConfigError, match=f"this model for {name} gives the logits of each token; take `arrays`"):
        model.answer(*["fire"] * (1 + bert.pair))


def test_similarity_gives_a_vector_of_each_text(written, berts):
    model = portable.LiteModel(written("similarity"))
    found = [model.answer(text)["embedding"] for text in TEXTS]
    np.testing.assert_allclose(found, berts["similarity"].embed(TEXTS), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SENTENCES)
def test_any_number_of_rows_of_any_length(name, runs, berts):
    model = portable.session((runs[0] / name / "float32" / onnx.MODEL_FILE).read_bytes())
    assert [i.name for i in model.get_inputs()] == list(portable.INPUTS)
    assert {i.type for i in model.get_inputs()} == {"tensor(int32)"}
    for lengths in ([2], [5, 3, 7], [40, 2], [64, 64, 1, 9]):
        given = checks.features(lengths, seed=len(lengths))
        wanted = {key: np.asarray(value) for key, value in berts[name].network.answer(given).items()}
        found = model.run(list(wanted), {key: value.astype("int32") for key, value in given.items()})
        for key, value in zip(wanted, found, strict=True):
            assert value.dtype == wanted[key].dtype, key
            np.testing.assert_allclose(value, wanted[key], rtol=1e-5, atol=1e-5, err_msg=key)


def test_what_does_not_come_out_right_is_refused(runs):
    """A BiLSTM is written step by step, for one length."""
    codes = runs[1]
    assert codes.pop("lstm float32") == ConfigError.exit_code
    assert set(codes.values()) == {0}


def test_int8_multiplies_integers(runs):
    """It is smaller where there are many weights, see the slow test."""
    for precision, there in (("float32", False), ("int8", True)):
        assert (b"MatMulInteger" in (runs[0] / "classify" / precision / onnx.MODEL_FILE).read_bytes()) == there


def test_the_command(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    run, output = runs[0] / "classify", tmp_path / "out"
    assert main(["lite", "--format=onnx", f"--model_dir={run}", f"--output_dir={output}"]) == 0
    said = capsys.readouterr()
    assert said.out == f"{output}\n"
    assert "MB in int8" in said.err
    assert portable.LiteModel(output, num_threads=2).answer("fire")["label"] in LABELS


@pytest.mark.slow
def test_a_damaged_run_is_one_line(tmp_path, capsys, berts):
    need()
    run = tmp_path / "run"
    berts["classify"].save(run)
    weights = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(weights[:-100])
    assert main(["lite", "--format=onnx", f"--model_dir={run}", f"--output_dir={tmp_path / 'out'}"]) == 5
    (line,) = capsys.readouterr().err.splitlines()
    assert "model.safetensors" in line
    assert not (tmp_path / "out").exists()


def test_refusals(tmp_path, berts, monkeypatch):
    berts["classify"].save(tmp_path / "run")
    with pytest.raises(ConfigError, match="unknown precision 'float16'; choose one of float32, int8"):
        onnx.write(tmp_path / "out", tmp_path / "run", "float16")
    tiny_bert("choice", ()).save(tmp_path / "choice")
    with pytest.raises(ConfigError, match=r"ONNX models are for classify, .*, not for choice"):
        onnx.write(tmp_path / "out", tmp_path / "choice")
    monkeypatch.setattr(onnx, "NEEDED", ("json", "no_such_torch"))
    with pytest.raises(ConfigError, match=r"writing ONNX needs no_such_torch: `pip install no_such_torch`"):
        onnx.write(tmp_path / "out", tmp_path / "run")
    assert not (tmp_path / "out").exists()


def test_without_pytorch_the_command_says_so(tmp_path, berts):
    berts["classify"].save(tmp_path / "run")
    code = f"""
import sys
sys.modules["torch"] = None
from keras_bert.__main__ import main
code = main(["lite", "--format=onnx", "--model_dir={tmp_path / "run"}", "--output_dir={tmp_path / "out"}"])
assert "tensorflow" not in sys.modules  # nor does it take long
sys.exit(code)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("keras-bert lite: error: writing ONNX needs torch")


def test_reading_needs_neither_tensorflow_nor_keras_nor_pytorch(written):
    code = f"""
import sys
from keras_bert.portable import LiteModel
print(LiteModel({str(written("classify"))!r}).answer("fire in the city")["label"])
sys.exit(any(name in sys.modules for name in ("tensorflow", "keras", "torch", "onnx")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in LABELS


def test_without_its_runtime_a_model_says_so(written, monkeypatch):
    folder = written("classify")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match="a model in ONNX needs ONNX Runtime: `pip install onnxruntime`"):
        portable.LiteModel(folder)


def test_damaged_models_are_one_line(written):
    folder = written("classify")
    whole = (folder / onnx.MODEL_FILE).read_bytes()
    for content in (b"nothing", whole[: len(whole) // 2], b""):
        (folder / onnx.MODEL_FILE).write_bytes(content)
        with pytest.raises(CheckpointError, match=r"model\.onnx: cannot be read") as caught:
            portable.LiteModel(folder)
        assert caught.value.exit_code == 5
        assert "\n" not in str(caught.value)
    settings = json.loads((folder / portable.CONFIG_FILE).read_text("utf-8"))
    for model in ("model.pt", "../run/model.safetensors", 3):
        (folder / portable.CONFIG_FILE).write_text(json.dumps(settings | {"model": model}), "utf-8")
        with pytest.raises(CheckpointError, match="is no LiteRT or ONNX model of ours"):
            portable.LiteModel(folder)
    (folder / onnx.MODEL_FILE).unlink()
    with pytest.raises(CheckpointError, match="is no LiteRT or ONNX model of ours"):
        portable.LiteModel(folder)


@pytest.mark.slow
def test_all_minilm(minilm, tmp_path):
    """Scores of tweets, with a head that spreads them; int8 in a quarter of the size."""
    import csv

    need()
    path = shared("data/disaster_tweets/test.csv")
    with open(path, newline="", encoding="utf-8") as file:
        texts = [row["text"] for row in csv.DictReader(file)][:200]
    bert = Bert.from_checkpoint(minilm, labels=["0", "1"], max_seq_length=64)
    kernel = bert.network.head.projection.kernel
    kernel.assign(20 * kernel)
    bert.save(tmp_path / "run")
    wanted = [answer["scores"]["1"] for answer in bert.predict(texts)]
    sizes, apart = {}, {}
    for precision in onnx.PRECISIONS:
        onnx.write(tmp_path / precision, tmp_path / "run", precision)
        model = portable.LiteModel(tmp_path / precision)
        sizes[precision] = (tmp_path / precision / onnx.MODEL_FILE).stat().st_size
        apart[precision] = np.abs([model.answer(text)["scores"]["1"] for text in texts] - np.array(wanted))
    print({p: f"{sizes[p] / 1e6:.1f} MB, most {apart[p].max():.1e}, mean {apart[p].mean():.1e}" for p in sizes})
    assert np.std(wanted) > 0.05
    assert apart["float32"].max() < 1e-5
    assert apart["int8"].max() < 0.1
    assert apart["int8"].mean() < 0.02
    assert sizes["int8"] < 0.3 * sizes["float32"]
