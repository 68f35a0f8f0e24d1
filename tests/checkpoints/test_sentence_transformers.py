"""Directories of sentence-transformers: their vectors are those of that library, or the directory is refused."""

import dataclasses
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import shared
from safetensors.numpy import load_file, save_file

from keras_bert import Bert
from keras_bert.__main__ import main
from keras_bert.checkpoints.checkpoints import open_checkpoint
from keras_bert.conversion import convert
from keras_bert.errors import CheckpointError, ConfigError

GOLDEN = Path(__file__).parents[1] / "golden"


def load_maker():
    spec = importlib.util.spec_from_file_location(
        "make_sentence_transformers", GOLDEN / "make_sentence_transformers.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


maker = load_maker()
RECORDED = np.load(maker.RECORDED)


@pytest.mark.parametrize("name", maker.CASES)
def test_vectors_are_those_of_sentence_transformers(name, tmp_path):
    bert = Bert.from_checkpoint(maker.write(name, tmp_path), task="embed")
    assert bert.report.new == ()
    np.testing.assert_allclose(bert.embed(maker.TEXTS), RECORDED[f"{name}:"], atol=1e-5)


@pytest.mark.parametrize("name", ["prompts", "passages", "default_prompt"])
@pytest.mark.parametrize("kind", ["query", "document"])
def test_prompts_of_queries_and_documents(name, kind, tmp_path):
    bert = Bert.from_checkpoint(maker.write(name, tmp_path), task="similarity")
    np.testing.assert_allclose(bert.embed(maker.TEXTS, kind=kind), RECORDED[f"{name}:{kind}"], atol=1e-5)


def test_a_model_without_prompts_has_no_query(tmp_path):
    bert = Bert.from_checkpoint(maker.write("mean", tmp_path), task="embed")
    with pytest.raises(ConfigError, match="has no signature query; give query_prompt"):
        bert.embed(["a"], kind="query")


def test_places_in_a_text_behind_a_prompt(tmp_path):
    bert = Bert.from_checkpoint(maker.write("prompts", tmp_path), task="embed")
    read = bert.head.prepare_text(bert.text).offsets(["fire ab"])
    assert bert.head.config.prompt == "query: "
    pieces = [maker.PIECES[i] for i in read["token_ids"][0].numpy()]
    assert pieces == ["[CLS]", "query", ":", "fire", "a", "##b", "[SEP]"]
    assert read["starts"][0].numpy().tolist() == [-1, -1, -1, 0, 5, 6, -1]
    assert read["ends"][0].numpy().tolist() == [-1, -1, -1, 4, 6, 7, -1]


def test_shards_prefixes_and_old_names_in_the_folder_of_the_transformer(tmp_path):
    folder = maker.write("old_layout", tmp_path) / "0_BERT"
    (folder / "config.json").rename(folder / "bert_config.json")
    tensors = {f"module.{name}": value for name, value in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    table = {name: names[i % 2] for i, name in enumerate(sorted(tensors))}
    for shard in names:
        save_file({name: tensors[name] for name in table if table[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}), "utf-8")
    bert = Bert.load(tmp_path)
    assert (bert.head.config.task, bert.text.config.max_seq_length) == ("embed", 12)
    np.testing.assert_allclose(bert.embed(maker.TEXTS), RECORDED["old_layout:"], atol=1e-5)
    (folder / names[1]).unlink()
    with pytest.raises(CheckpointError, match=rf"0_BERT: has no model.*index\.json names {names[1]}"):
        Bert.load(tmp_path)


def test_settings_of_a_head_as_it_is(tmp_path):
    cut = Bert.load(maker.write("mean", tmp_path), head={"dimensions": 4, "pooling": "cls"})
    cls = Bert.from_checkpoint(tmp_path, task="embed", head={"pooling": "cls"}).embed(maker.TEXTS)[:, :4]
    np.testing.assert_allclose(cut.embed(maker.TEXTS), cls / np.linalg.norm(cls, axis=1, keepdims=True), atol=1e-6)
    with pytest.raises(ConfigError, match="layers"):
        Bert.load(tmp_path, head={"layers": "no such choice"})


# === Written by us ===


@pytest.mark.parametrize("name", ["dense", "joined", "new_order", "prompts", "old_layout"])
def test_a_converted_model_gives_the_same(name, tmp_path):
    source = maker.write(name, tmp_path / "source")
    for target in ("keras_bert", "hf", "tf1"):
        convert(source, tmp_path / target, target, verify=True)
        found = Bert.from_checkpoint(tmp_path / target, task="embed")
        np.testing.assert_allclose(found.embed(maker.TEXTS), RECORDED[f"{name}:"], atol=1e-5)
    assert json.loads((tmp_path / "hf/modules.json").read_text())[1]["path"] == "1_Pooling"
    assert not (tmp_path / "hf/keras_bert_extra.json").exists()
    convert(tmp_path / "keras_bert", tmp_path / "again", "hf")
    for file in (path.relative_to(tmp_path / "hf") for path in (tmp_path / "hf").rglob("*.json")):
        assert json.loads((tmp_path / "again" / file).read_text()) == json.loads((tmp_path / "hf" / file).read_text())


def test_a_converted_model_can_be_fine_tuned_for_anything(tmp_path):
    convert(maker.write("dense", tmp_path / "source"), tmp_path / "ours", "keras_bert")
    for folder in ("source", "ours"):
        bert = Bert.from_checkpoint(tmp_path / folder, labels=["no", "yes"])
        assert {path.split("/")[1] for path in bert.report.new} == {"logits"}


READ = """
import json, sys
import numpy as np
from sentence_transformers import SentenceTransformer
np.save(sys.argv[2], SentenceTransformer(sys.argv[1], device="cpu").encode(json.loads(sys.argv[3])))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dense", "prompts", "new_order"])
def test_sentence_transformers_reads_what_we_write(name, tmp_path):
    if importlib.util.find_spec("sentence_transformers") is None:
        pytest.skip(reason="sentence-transformers is not installed")
    convert(maker.write(name, tmp_path / "source"), tmp_path / "hf", "hf")
    said = [str(tmp_path / "hf"), str(tmp_path / "out.npy"), json.dumps(maker.TEXTS)]
    subprocess.run([sys.executable, "-c", READ, *said], check=True, timeout=300)  # its PyTorch needs its own process
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), RECORDED[f"{name}:"], atol=1e-5)


# === What we do not compute ===


def change(path: Path, **values) -> None:
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | values), "utf-8")


def modules(folder: Path, change_rows) -> None:
    file = folder / "modules.json"
    file.write_text(json.dumps(change_rows(json.loads(file.read_text()))), "utf-8")


ST = "sentence_transformers.models."
FAULTS = {
    "pooling": (
        lambda f: change(f / "1_Pooling/config.json", pooling_mode="attention"),
        "pooling .'attention'. is not",
    ),
    "old pooling": (
        lambda f: change(f / "1_Pooling/config.json", pooling_mode_new_tokens=True),
        "pooling .'pooling_mode_new_tokens'. is not",
    ),
    "width": (lambda f: change(f / "1_Pooling/config.json", word_embedding_dimension=8), "pools vectors of 8, but"),
    "prompt": (lambda f: change(f / "1_Pooling/config.json", include_prompt=False), "include_prompt false"),
    "activation": (
        lambda f: change(f / "2_Dense/config.json", activation_function="torch.nn.modules.activation.Hardtanh"),
        "Hardtanh' is not supported, only Tanh",
    ),
    "residual": (lambda f: change(f / "2_Dense/config.json", use_residual=True), "use_residual true"),
    "tokens": (lambda f: change(f / "2_Dense/config.json", module_input_name="token_embeddings"), "module_input_name"),
    "weights": (lambda f: (f / "2_Dense/model.safetensors").unlink(), "2_Dense: has no model.safetensors"),
    "length": (
        lambda f: change(f / "sentence_bert_config.json", max_seq_length="long"),
        "max_seq_length must be a whole",
    ),
    "task": (lambda f: change(f / "sentence_bert_config.json", transformer_task="fill-mask"), "transformer_task"),
    "prompts": (lambda f: change(f / "config_sentence_transformers.json", prompts=["a"]), "prompts must be an object"),
    "default": (
        lambda f: change(f / "config_sentence_transformers.json", default_prompt_name="a"),
        "default_prompt_name 'a' is none of no prompts",
    ),
    "module": (
        lambda f: modules(f, lambda rows: [*rows, rows[0] | {"type": ST + "CNN"}]),
        "module CNN is not supported",
    ),
    "code": (lambda f: modules(f, lambda rows: [*rows, rows[0] | {"type": "own.Code"}]), "own.Code is code of"),
    "outside": (lambda f: modules(f, lambda rows: [rows[0], rows[1] | {"path": "../x"}]), "lies outside"),
    "order": (lambda f: modules(f, lambda rows: [*rows[:2], rows[-1], rows[2]]), "Dense after Normalize is not"),
    "no pooling": (lambda f: modules(f, lambda rows: rows[:1]), "has no Pooling behind the transformer"),
    "no transformer": (lambda f: modules(f, lambda rows: rows[1:]), "begins with Pooling"),
    "no list": (lambda f: modules(f, lambda rows: {"a": 1}), "holds a dict, not a list"),
    "no file": (lambda f: (f / "1_Pooling/config.json").unlink(), "1_Pooling/config.json: cannot be read"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_we_do_not_compute_is_refused(fault, tmp_path):
    maker.write("dense", tmp_path)
    spoil, said = FAULTS[fault]
    spoil(tmp_path)
    with pytest.raises(CheckpointError, match=said) as caught:
        Bert.from_checkpoint(tmp_path, task="embed")
    assert "\n" not in str(caught.value)


def test_another_measure_than_the_cosine_is_refused(tmp_path):
    maker.write("cls", tmp_path)
    change(tmp_path / "config_sentence_transformers.json", similarity_fn_name="dot")
    with pytest.raises(CheckpointError, match="similarity_fn_name 'dot' is not supported"):
        Bert.from_checkpoint(tmp_path, task="similarity")
    Bert.from_checkpoint(tmp_path, task="embed")


def test_dimensions(tmp_path):
    maker.write("mean", tmp_path)
    cut = Bert.from_checkpoint(tmp_path, task="embed", head={"dimensions": 4}).embed(maker.TEXTS)
    wanted = RECORDED["mean:"][:, :4]
    np.testing.assert_allclose(cut, wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=1e-5)
    bert = Bert.from_checkpoint(tmp_path, task="embed", head={"dimensions": 17})
    with pytest.raises(ConfigError, match="dimensions 17 is more than the 16"):
        bert.embed(["a"])


# === Published structures ===


def test_a_case_of_a_published_model():
    folder = shared("cases/checkpoints/b01_bge_cls")
    wanted = json.loads((folder / "expected.json").read_text("utf-8"))
    found = Bert.from_checkpoint(folder / "ckpt", task="embed").embed(wanted["texts"])
    np.testing.assert_allclose(found, wanted["cls"], atol=1e-5)


def test_minilm_has_its_own_length(minilm, tmp_path):
    assert open_checkpoint(minilm).text.max_seq_length == 256
    wanted = json.loads((shared("cases/checkpoints/b02b_minilm_128") / "expected.json").read_text("utf-8"))
    for file in minilm.iterdir():
        if file.suffix != ".md":
            shutil.copytree(file, tmp_path / file.name) if file.is_dir() else (tmp_path / file.name).symlink_to(file)
    (tmp_path / "sentence_bert_config.json").unlink()
    change(tmp_path / "sentence_bert_config.json", max_seq_length=128, do_lower_case=False)
    found = Bert.from_checkpoint(tmp_path, task="embed").embed(wanted["texts"])
    np.testing.assert_allclose(found, wanted["mean"], atol=1e-5)
    assert dataclasses.asdict(open_checkpoint(tmp_path).text)["max_seq_length"] == 128


def test_a_converted_model_answers_from_the_command_line(tmp_path, capsys):
    convert(maker.write("cls", tmp_path / "source"), tmp_path / "ours", "keras_bert")
    (tmp_path / "in.csv").write_text("text,text_pair\nfire,lake\nfire,the fire\n", "utf-8")
    said = [f"--input_file={tmp_path / 'in.csv'}", f"--model_dir={tmp_path / 'ours'}"]
    assert main(["predict", *said, f"--output_file={tmp_path / 'o.jsonl'}"]) == 0
    rows = [json.loads(line)["embedding"] for line in (tmp_path / "o.jsonl").read_text("utf-8").splitlines()]
    assert np.shape(rows) == (2, maker.WIDTH)
    assert rows[0] == rows[1]
    assert main(["predict", *said, "--task=similarity", f"--output_file={tmp_path / 'o.csv'}"]) == 0
    capsys.readouterr()
    found = [float(row.split(",")[-1]) for row in (tmp_path / "o.csv").read_text("utf-8").split()[1:]]
    bert = Bert.from_checkpoint(tmp_path / "source", task="embed", head={"normalize": True})
    wanted = bert.embed(["fire", "lake", "the fire"])
    np.testing.assert_allclose(found, [wanted[0] @ wanted[1], wanted[0] @ wanted[2]], atol=1e-5)
