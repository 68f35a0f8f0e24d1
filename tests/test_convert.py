"""Conversions: round trips to the bit, refusals that write nothing, and other programs that load what was written."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import checks
import each_head
import numpy as np
import pytest
import tensorflow as tf
from conftest import TINY, WORDS, shared, slow
from safetensors.numpy import load_file, save_file
from test_formats import contents, parts_of, weights

from keras_bert import conversion
from keras_bert.__main__ import main
from keras_bert.bert import Bert
from keras_bert.checkpoints import formats
from keras_bert.checkpoints.checkpoints import load, open_checkpoint, save
from keras_bert.checkpoints.formats import FORMATS, extra
from keras_bert.checkpoints.formats.settings import Contents
from keras_bert.config import SIZES, DataConfig, HeadConfig, TextConfig, WindowConfig
from keras_bert.conversion import Changes, Conversion, convert
from keras_bert.errors import CheckpointError, ConfigError
from keras_bert.model.encoder import Encoder
from keras_bert.model.layers import TiedLogits
from keras_bert.tasks.network import Network

PATH = ["keras_bert", "hf", "keras_bert", "keras_hub", "keras_bert", "garden", "keras_bert", "tf1", "keras_bert"]
ALL = ("encoder", "pooler", "masked_lm", "next_sentence")


def read(folder: Path) -> tuple[Contents, dict[str, np.ndarray]]:
    found, said = formats.read(folder)
    matched = formats.match(folder, found, said)
    return matched.contents, formats.read_weights(folder, matched)


def write(folder: Path, name: str, of: Contents, values: dict[str, np.ndarray]) -> Path:
    """A directory of a format, written straight, without anything of ours beside it."""
    folder.mkdir()
    FORMATS[name].write(folder, of, values)
    return folder


def same_bits(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> bool:
    return one.keys() == two.keys() and all(one[path].tobytes() == two[path].tobytes() for path in one)


@pytest.fixture
def pretrained(tmp_path) -> Path:
    """A random pretrained checkpoint in Hugging Face's layout, with all its heads."""
    of = contents(activation="gelu")
    return write(tmp_path / "pretrained", "hf", of, weights(of, *ALL))


@pytest.fixture
def ner(tmp_path) -> Path:
    """A token classifier of Hugging Face as `pytorch_model.bin`, its vocabulary cut to the rows that the model has."""
    source = shared("checkpoints/hf_ner_bert_L-1_H-16")
    folder = tmp_path / "ner"
    folder.mkdir()
    for file in source.iterdir():
        shutil.copyfile(file, folder / file.name)
    pieces = (source / "vocab.txt").read_text("utf-8").split("\n")
    (folder / "vocab.txt").write_text("\n".join(pieces[:402]) + "\n", "utf-8")
    return folder


REAL = ["google_toy_L-2_H-4", "hf_tiny_bert_L-1_H-32", "ner", "minilm"]


@pytest.fixture
def start(source, request) -> Path:
    """A checkpoint to start from, by its name: one of `REAL`, which others have trained, or a fixture."""
    return shared(f"checkpoints/{source}") if "_L-" in source else request.getfixturevalue(source)


# === Round trips ===


@pytest.mark.parametrize("source", [*REAL, "pretrained"])
def test_round_trip_to_the_bit(source, start, tmp_path):
    before, values = read(start)
    folder = start
    for step, name in enumerate(PATH):
        report = convert(folder, tmp_path / f"{step}_{name}", name, verify=step == 0)
        folder = tmp_path / f"{step}_{name}"
        assert (report.target, len(report.rows)) == (name, len(values))
        after, again = read(folder)
        assert same_bits(values, again), name
        for field in ("encoder", "text", "vocabulary", "head", "data"):
            assert getattr(after, field) == getattr(before, field), (name, field)
        if source == "minilm" and step:
            shutil.rmtree(tmp_path / f"{step - 1}_{PATH[step - 1]}")
    if formats.detect(start).name == "hf":
        convert(folder, tmp_path / "back", "hf")
        if (start / "model.safetensors").exists():
            first, last = (load_file(d / "model.safetensors") for d in (start, tmp_path / "back"))
            assert {n for n in first if n.removeprefix("bert.") != "embeddings.position_ids"} == set(last)
            assert all(first[n].tobytes() == last[n].tobytes() for n in last)
        first, last = (json.loads((d / "config.json").read_text("utf-8")) for d in (start, tmp_path / "back"))
        gone = {"transformers_version", "_num_labels", "architectures"}
        assert {k: v for k, v in first.items() if k not in gone}.items() <= last.items()


@pytest.mark.parametrize("source", list(FORMATS))
@pytest.mark.parametrize("target", list(FORMATS))
def test_every_format_to_every_format(source, target, tmp_path):
    of = contents(None if source != "keras_hub" else "classify")
    values = weights(of, *sorted(FORMATS[source].holds(of, {*ALL, *(["logits"] if of.head else [])})))
    before, _ = read(write(tmp_path / "a", source, of, values))
    report = convert(tmp_path / "a", tmp_path / "b", target, verify=True)
    after, again = read(tmp_path / "b")
    assert formats.detect(tmp_path / "b").name == target
    assert same_bits(values, again)
    assert (after.encoder, after.text, after.head) == (before.encoder, before.text, before.head)
    assert {row[0] for row in report.rows} == set(values)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("task", ["classify", "multilabel", "regress", "tag", "span", "choice"])
@pytest.mark.parametrize("target", list(FORMATS))
def test_heads_and_labels_survive_every_format(task, target, tmp_path):
    of = contents(task)
    of = dataclasses.replace(of, head=dataclasses.replace(of.head, dropout=0.3))
    values = weights(of, *parts_of(task))
    write(tmp_path / "a", "keras_bert", of, values)
    convert(tmp_path / "a", tmp_path / "b", target, verify=True)
    convert(tmp_path / "b", tmp_path / "c", "keras_bert", verify=True)
    after, again = read(tmp_path / "c")
    assert same_bits(values, again), "no pooler comes or goes"
    assert (after.head, after.text) == (of.head, of.text)
    assert ("head/pooler/dense/kernel" in again) == (task not in ("tag", "span"))


# === Every head ===

HELD: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("classify_two", "classify_mix", "classify_lstm", "multilabel", "regress"), ("keras_bert",)),
    "generate": ("keras_bert",),
}
"""Head of `each_head` -> the formats that hold it; all of them where none are named."""
UNHELD = {
    "classify_two": "a head with layers 'last4_concat' and a head with pooling 'mean'",
    "classify_mix": "a head with layers 'mix' and a head with pooling 'max'",
    "classify_lstm": "a head with layers 'last4_sum' and a head with head_lstm 4",
    "multilabel": "a head with layers 'first_last' and a head with pooling 'cls'",
    "regress": "a head with layers 'second_last'",
    "generate": "an encoder with attention_mask 'seq2seq'",
}


def saved_run(name: str, folder: Path) -> Path:
    """A run directory of ours with random weights."""
    network, vocabulary = each_head.network(name), [*WORDS, "more"]
    windows = WindowConfig(max_windows=7, doc_stride=5) if network.head.config.reads == "windows" else None
    checks.randomize(network)
    columns = DataConfig(label_column="target")
    save(folder, network, vocabulary, TextConfig(max_seq_length=16), columns, {"epoch": 2}, windows)
    return folder


def ways():
    """Every head to every format; by default one format for each head, and all of them for a classifier."""
    for i, name in enumerate(each_head.HEADS):
        for j, target in enumerate(FORMATS):
            often = (i + j) % len(FORMATS) == 0 or name == "classify"
            yield (name, target) if often else slow(name, target)


@pytest.mark.parametrize(("name", "target"), list(ways()))
def test_a_run_with_each_head_goes_there_and_back(name, target, tmp_path):
    run = saved_run(name, tmp_path / "run")
    before = sorted(tmp_path.iterdir())
    if target not in HELD.get(name, FORMATS):
        wanted = f"{run}: {target} cannot hold {UNHELD[name]}; only keras_bert can"
        with pytest.raises(CheckpointError, match=f"^{re.escape(wanted)}$"):
            convert(run, tmp_path / "there", target)
        assert sorted(tmp_path.iterdir()) == before
        return
    convert(run, tmp_path / "there", target)
    convert(tmp_path / "there", tmp_path / "back", "keras_bert", verify=True)
    first, last = (load_file(folder / "model.safetensors") for folder in (run, tmp_path / "back"))
    assert same_bits(first, last)
    bert, again = Bert.load(run), Bert.load(tmp_path / "back")
    assert again.report.new == again.report.unused == ()
    assert (again.network.head.config, again.data, again.windows) == (bert.network.head.config, bert.data, bert.windows)
    one, two = (each_head.results(b.network) for b in (bert, again))
    assert one.keys() == two.keys()
    for key, value in one.items():
        np.testing.assert_array_equal(two[key], value, err_msg=key)
    said = [json.loads((folder / "keras_bert.json").read_text("utf-8")) for folder in (run, tmp_path / "back")]
    assert said[0] == {name: part for name, part in said[1].items() if name != "origins"}


TABLE = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")


def test_longer_tables_repeat_their_rows():
    np.testing.assert_array_equal(conversion.tile(TABLE, 12), np.concatenate([TABLE, TABLE, TABLE[:2]]))
    np.testing.assert_array_equal(conversion.last_again(TABLE, 7), np.concatenate([TABLE, TABLE[4:], TABLE[4:]]))


def test_longer_tables_have_two_levels():
    """Written out from the article: u_r = (p_r - 0.4 p_0) / 0.6; place a n + b has 0.4 u_a + 0.6 u_b."""
    found = conversion.hierarchical(TABLE, 25)
    np.testing.assert_array_equal(found[:5], TABLE)
    u = [(row - 0.4 * TABLE[0]) / 0.6 for row in TABLE.astype("float64")]
    for a in range(1, 5):
        for b in range(5):
            np.testing.assert_allclose(found[5 * a + b], 0.4 * u[a] + 0.6 * u[b], atol=1e-6)
    with pytest.raises(ConfigError, match="5 positions give at most 25"):
        conversion.hierarchical(TABLE, 26)


def test_longer_tables_have_rows_in_between():
    found = conversion.interpolate(TABLE, 9)
    np.testing.assert_allclose(found[::2], TABLE, atol=1e-6)
    np.testing.assert_allclose(found[1::2], (TABLE[1:] + TABLE[:-1]) / 2, atol=1e-6)


@pytest.mark.parametrize("how", conversion.EXTENSIONS)
def test_a_model_with_a_longer_table_reads_longer_rows(how, tiny_checkpoint, tmp_path):
    changes = Changes(max_positions=150, extend_positions=how)
    report = convert(tiny_checkpoint, tmp_path / "long", "keras_bert", changes=changes)
    assert f"64 rows grown to 150, made as {how} says" in " ".join(report.remarks)
    bert = Bert.from_checkpoint(tmp_path / "long", task="embed", max_seq_length=140)
    assert bert.text(["a " * 200])["token_ids"].shape == (1, 140)
    assert np.isfinite(bert.embed(["a " * 200])).all()


def test_vectors_of_a_bilstm_have_no_place_in_another_format(tmp_path):
    network = Network(TINY, HeadConfig(task="embed", head_lstm=3))
    save(tmp_path / "run", network, WORDS, TextConfig(max_seq_length=16), None)
    with pytest.raises(CheckpointError, match=r"hf cannot hold a head with head_lstm 3; only keras_bert can$"):
        convert(tmp_path / "run", tmp_path / "out", "hf")
    assert not (tmp_path / "out").exists()


# === Tags of Hugging Face ===


def ner_of(folder: Path, tags: list[str], seed: int = 0, **encoder) -> dict[str, np.ndarray]:
    """A token classifier as transformers writes it, without anything of ours; returns its weights by name."""
    of = contents(activation="gelu", **encoder)
    write(folder, "hf", of, weights(of, "encoder", seed=seed))
    random = np.random.default_rng(seed + 1)
    stored = load_file(folder / "model.safetensors")
    tensors = {f"bert.{name}": value for name, value in stored.items()}
    tensors["classifier.weight"] = random.normal(size=(len(tags), 16)).astype("f4")
    tensors["classifier.bias"] = random.normal(size=len(tags)).astype("f4")
    save_file(tensors, folder / "model.safetensors")
    table = {str(i): tag for i, tag in enumerate(tags)}
    change(folder, architectures=["BertForTokenClassification"], id2label=table)
    return tensors


@pytest.mark.parametrize(
    ("tags", "types"),
    [
        (["O", "B-PER", "I-PER", "B-LOC", "I-LOC"], ("PER", "LOC")),
        (["B-LOC", "B-PER", "I-LOC", "I-PER", "O"], ("LOC", "PER")),
        (["I-PER", "O", "B-PER"], ("PER",)),
        (["O", "I-a-b", "B-a-b"], ("a-b",)),
    ],
)
@pytest.mark.parametrize("target", list(FORMATS))
def test_tags_become_types(tags, types, target, tmp_path):
    tensors = ner_of(tmp_path / "ner", tags)
    convert(tmp_path / "ner", tmp_path / "there", target, verify=True)
    convert(tmp_path / "there", tmp_path / "ours", "keras_bert", verify=True)
    bert = Bert.load(tmp_path / "ours")
    assert (bert.network.head.config.task, bert.labels) == ("tag", types)
    values = {w.path: w.numpy() for w in bert.network.weights}
    names = ["O", *(f"{prefix}-{kind}" for kind in types for prefix in ("B", "I"))]
    for row, tag in enumerate(names):
        theirs = tags.index(tag)
        np.testing.assert_array_equal(values["head/logits/kernel"][:, row], tensors["classifier.weight"][theirs])
        assert values["head/logits/bias"][row] == tensors["classifier.bias"][theirs]


@pytest.mark.parametrize(
    "tags",
    [
        ["O"],
        ["O", "B-", "I-"],
    ],
)
def test_tags_that_are_no_types_are_refused(tags, tmp_path):
    ner_of(tmp_path / "ner", tags)
    with pytest.raises(CheckpointError, match="name no types of entities, which a head for tag needs") as refused:
        convert(tmp_path / "ner", tmp_path / "out", "keras_bert")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()
    convert(tmp_path / "ner", tmp_path / "out", "keras_bert", changes=Changes(drop=r"classifier\..*"), verify=True)
    assert read(tmp_path / "out")[0].head is None
    assert open_checkpoint(tmp_path / "ner").head is None, "fine-tuning starts from it all the same"


# === What is written loads ===


def test_a_part_of_pretraining_beside_a_head_is_kept_and_loads(tmp_path):
    """Old token classifiers have a pooler; nothing reads it."""
    of = contents("tag")
    values = weights(of, "encoder", "pooler", "masked_lm", "logits")
    write(tmp_path / "a", "hf", of, values)
    convert(tmp_path / "a", tmp_path / "b", "keras_bert", verify=True)
    assert same_bits(values, read(tmp_path / "b")[1])
    report = Bert.load(tmp_path / "b").report
    assert report.unused == tuple(sorted(p for p in values if "pooler" in p or "masked_lm" in p))


@pytest.mark.parametrize("target", list(FORMATS))
def test_a_classifier_without_its_pooler_is_refused(target, tmp_path):
    of = contents("classify")
    write(tmp_path / "a", "hf", of, weights(of, "encoder", "logits"))
    message = r"1 not filled: head/pooler/dense/kernel \(of the head for classify that the settings name\)$"
    with pytest.raises(CheckpointError, match=message):
        convert(tmp_path / "a", tmp_path / "b", target)
    assert not (tmp_path / "b").exists()


def test_a_head_that_cannot_be_made_is_refused(tmp_path):
    of = dataclasses.replace(contents(), head=HeadConfig(labels=("only",)))
    write(tmp_path / "a", "hf", of, weights(of, "encoder", "pooler", "logits"))
    with pytest.raises(CheckpointError, match="no network can be made of it: classify needs at least two labels, got"):
        convert(tmp_path / "a", tmp_path / "b", "keras_bert")
    assert not (tmp_path / "b").exists()


def test_verify_loads_what_was_written(tmp_path, monkeypatch):
    """Settings that nothing computes are refused first; were they not, loading would find out."""
    of = contents("classify", attention_mask="left_to_right")
    write(tmp_path / "a", "keras_bert", of, weights(of, *parts_of("classify")))
    with pytest.raises(CheckpointError, match="no network can be made of it: unknown attention mask 'left_to_right'"):
        convert(tmp_path / "a", tmp_path / "out", "keras_bert")
    monkeypatch.setattr(conversion, "check_model", lambda *_: None)
    message = r"out: does not load: unknown attention mask 'left_to_right'; .*; nothing was written$"
    with pytest.raises(CheckpointError, match=message):
        convert(tmp_path / "a", tmp_path / "out", "keras_bert", verify=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


@pytest.mark.parametrize("target", list(FORMATS))
def test_a_network_loads_every_format(target, pretrained, tmp_path):
    convert(pretrained, tmp_path / "a", target)
    found = open_checkpoint(tmp_path / "a")
    assert (found.format, found.head, found.data) == (target, None, None)
    network = Network(found.encoder, HeadConfig(labels=("a", "b")))
    report = load(network, found)
    assert report.new == ("head/logits/kernel", "head/logits/bias")
    _, values = read(pretrained)
    for w in network.weights:
        if w.path in report.filled:
            np.testing.assert_array_equal(w.numpy(), values[w.path])
    assert found.encoder.activation == "gelu"


@pytest.mark.parametrize("target", list(FORMATS))
def test_a_pooler_of_zeros_is_not_loaded(target, tmp_path):
    of = contents()
    write(tmp_path / "a", "hf", of, weights(of, "encoder", "masked_lm"))
    report = convert(tmp_path / "a", tmp_path / "b", target, verify=True)
    assert ("pooler: zeros, the model has none" in report.remarks) == (target in ("garden", "keras_hub"))
    found = open_checkpoint(tmp_path / "b")
    new = load(Network(found.encoder, HeadConfig(labels=("a", "b"))), found).new
    assert new == tuple(f"head/{layer}/{name}" for layer in ("pooler/dense", "logits") for name in ("kernel", "bias"))


def test_a_published_name_is_converted(pretrained, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_BERT_HOME", str(tmp_path / "home"))
    shutil.copytree(pretrained, tmp_path / "home/bert-base-uncased")
    convert("bert-base-uncased", tmp_path / "a", "tf1")
    assert same_bits(read(tmp_path / "a")[1], read(pretrained)[1])


# === What is carried and what is said ===


def test_settings_and_keys_are_carried(tmp_path):
    of = contents(activation="gelu", layer_norm_epsilon=1e-6, attention_dropout=0.2, pad_token_id=4)
    of = dataclasses.replace(of, text=TextConfig(do_lower_case=False, max_seq_length=64, flavour="hf"))
    write(tmp_path / "hf", "hf", of, weights(of, "encoder", "pooler"))
    config = json.loads((tmp_path / "hf/config.json").read_text("utf-8"))
    (tmp_path / "hf/config.json").write_text(json.dumps(config | {"use_cache": True, "x_temperature": 2}), "utf-8")
    with pytest.raises(CheckpointError, match=r"unknown keys.*: config.json: x_temperature; --keep_keys=x_temperature"):
        convert(tmp_path / "hf", tmp_path / "tf1", "tf1")
    report = convert(tmp_path / "hf", tmp_path / "tf1", "tf1", changes=Changes(keep_keys=["x_temperature"]))
    assert [line for line in report.remarks if "programs of tf1" in line] == [
        "activation is 'gelu' here; programs of tf1 compute 'gelu_tanh' all the same",
        "layer_norm_epsilon is 1e-06 here; programs of tf1 compute 1e-12 all the same",
    ]
    assert any("use_cache, x_temperature" in line and extra.EXTRA_FILE in line for line in report.remarks)
    written = json.loads((tmp_path / "tf1/bert_config.json").read_text("utf-8"))
    assert written["hidden_act"] == "gelu"
    assert "use_cache" not in written
    after, _ = read(tmp_path / "tf1")
    assert (after.encoder, after.text) == (of.encoder, of.text)
    convert(tmp_path / "tf1", tmp_path / "again", "hf")
    last = json.loads((tmp_path / "again/config.json").read_text("utf-8"))
    assert (last["use_cache"], last["x_temperature"], last["hidden_act"]) == (True, 2, "gelu")
    assert json.loads((tmp_path / "again/tokenizer_config.json").read_text("utf-8"))["do_lower_case"] is False
    shutil.copytree(tmp_path / "tf1", tmp_path / "alone")
    (tmp_path / "alone" / extra.EXTRA_FILE).unlink()
    assert read(tmp_path / "alone")[0].encoder.activation == "gelu_tanh", "what the format means by its name"


def test_gelu_can_be_overridden(pretrained, tmp_path):
    report = convert(pretrained, tmp_path / "a", "tf1", changes=Changes(activation="gelu_tanh", do_lower_case=False))
    assert not [line for line in report.remarks if "programs of" in line]
    after, _ = read(tmp_path / "a")
    assert (after.encoder.activation, after.text.do_lower_case) == ("gelu_tanh", False)
    assert json.loads((tmp_path / "a/bert_config.json").read_text("utf-8"))["hidden_act"] == "gelu"
    with pytest.raises(ConfigError, match="unknown activation 'swish'"):
        convert(pretrained, tmp_path / "b", "tf1", changes=Changes(activation="swish"))


def test_settings_that_changed_after_a_conversion_are_noticed(pretrained, tmp_path):
    convert(pretrained, tmp_path / "a", "tf1")
    config = json.loads((tmp_path / "a/bert_config.json").read_text("utf-8"))
    (tmp_path / "a/bert_config.json").write_text(json.dumps(config | {"hidden_act": "relu"}), "utf-8")
    with pytest.raises(
        CheckpointError, match="was written beside activation 'gelu_tanh', but the settings now say 'relu'"
    ):
        open_checkpoint(tmp_path / "a")


def test_growing_tables(pretrained, tmp_path):
    report = convert(pretrained, tmp_path / "a", "tf1", changes=Changes(num_segments=4, max_positions=150), verify=True)
    _, before = read(pretrained)
    after, values = read(tmp_path / "a")
    assert (after.encoder.num_segments, after.encoder.max_positions) == (4, 150)
    segments, positions = values["encoder/segments/embeddings"], values["encoder/positions/embeddings"]
    np.testing.assert_array_equal(segments[:2], before["encoder/segments/embeddings"])
    np.testing.assert_array_equal(segments[2:], before["encoder/segments/embeddings"][[1, 1]])
    np.testing.assert_array_equal(positions, np.tile(before["encoder/positions/embeddings"], (3, 1))[:150])
    grown = {"encoder/segments/embeddings", "encoder/positions/embeddings"}
    assert same_bits(
        {k: v for k, v in before.items() if k not in grown}, {k: v for k, v in values.items() if k not in grown}
    )
    assert len([line for line in report.remarks if "rows grown to" in line]) == 2
    found = open_checkpoint(tmp_path / "a")
    network = Network(found.encoder, HeadConfig(labels=("a", "b")))
    load(network, found)
    assert np.isfinite(network({"token_ids": np.full((1, 150), 7), "segment_ids": np.full((1, 150), 3)}).numpy()).all()
    for changes in (Changes(num_segments=1), Changes(max_positions=63)):
        with pytest.raises(ConfigError, match=r"is less than the \d+ of the model; rows are added, never cut"):
            convert(pretrained, tmp_path / "b", "tf1", changes=changes)
    assert not (tmp_path / "b").exists()


def test_the_report_names_every_tensor_and_file(pretrained, tmp_path):
    (pretrained / "README.md").write_text("mine", "utf-8")
    report = convert(pretrained, tmp_path / "a", "tf1")
    stored = load_file(pretrained / "model.safetensors")
    there = dict(tf.train.list_variables(str(tmp_path / "a/bert_model.ckpt")))
    assert {row[2] for row in report.rows} == set(stored)
    assert {row[4] for row in report.rows} == set(there)
    for path, shape, source, how, target, to in report.rows:
        assert sorted(shape) == sorted(stored[source].shape) == sorted(there[target]), path
        turned = path.endswith("kernel")
        assert (how, to) == ("transpose" if turned else "same", "transpose" if "next_sentence/k" in path else "same")
    lines = str(report).splitlines()
    assert lines[0].split() == ["ours", "shape", "hf", "transform", "tf1", "transform"]
    assert "note: not carried: README.md" in lines
    assert lines[-1] == f"hf -> tf1: {len(stored)} weights"


def test_half_precision_is_named(pretrained, tmp_path):
    stored = {name: value.astype(np.float16) for name, value in load_file(pretrained / "model.safetensors").items()}
    save_file(stored, pretrained / "model.safetensors")
    report = convert(pretrained, tmp_path / "a", "keras_bert", verify=True)
    assert {row[3] for row in report.rows} == {"same, F16", "transpose, F16"}
    assert json.loads((tmp_path / "a/keras_bert.json").read_text("utf-8"))["head"] is None


def test_a_smaller_vocabulary_is_named(pretrained, tmp_path):
    (pretrained / "vocab.txt").write_text("\n".join(WORDS[:-3]) + "\n", "utf-8")
    report = convert(pretrained, tmp_path / "a", "keras_bert")
    assert "the vocabulary has 55 pieces; the last 3 rows of the token table have none" in report.remarks


# === Copies, and tensors that may be left out ===


def add(folder: Path, **tensors) -> None:
    stored = load_file(folder / "model.safetensors")
    save_file(
        stored | {name.replace("__", "."): value for name, value in tensors.items()}, folder / "model.safetensors"
    )


def test_a_copy_of_a_tied_weight_must_be_equal(pretrained, tmp_path):
    stored = load_file(pretrained / "model.safetensors")
    table = stored["bert.embeddings.word_embeddings.weight"]
    add(
        pretrained,
        cls__predictions__decoder__weight=table,
        cls__predictions__decoder__bias=stored["cls.predictions.bias"],
    )
    report = convert(pretrained, tmp_path / "a", "tf1")
    assert report.listed == (
        ("cls.predictions.decoder.weight", "equal to embeddings.word_embeddings.weight"),
        ("cls.predictions.decoder.bias", "equal to cls.predictions.bias"),
    )
    add(pretrained, cls__predictions__decoder__weight=table + 1)
    with pytest.raises(
        CheckpointError, match=r"decoder.weight differs from embeddings.word_embeddings.weight, to which"
    ):
        convert(pretrained, tmp_path / "b", "tf1")
    report = convert(pretrained, tmp_path / "b", "tf1", changes=Changes(drop=r"cls\.predictions\.decoder\..*"))
    assert {why for _, why in report.listed} == {"left out as asked"}
    assert len(report.listed) == 2


def test_dropping_a_head(pretrained, tmp_path):
    report = convert(pretrained, tmp_path / "a", "hf", changes=Changes(drop="cls.*"), verify=True)
    assert len(report.listed) == 7
    assert json.loads((tmp_path / "a/config.json").read_text("utf-8"))["architectures"] == ["BertModel"]
    of = contents("tag")
    write(tmp_path / "tag", "hf", of, weights(of, "encoder", "logits"))
    report = convert(tmp_path / "tag", tmp_path / "c", "keras_bert", changes=Changes(drop="classifier.*"), verify=True)
    assert [name for name, _ in report.listed] == ["classifier.bias", "classifier.weight"]
    assert read(tmp_path / "c")[0].head is None
    with pytest.raises(ConfigError, match="'\\(' is not a regular expression"):
        convert(pretrained, tmp_path / "b", "hf", changes=Changes(drop="("))
    with pytest.raises(CheckpointError, match=r"not filled: encoder/tokens/embeddings"):
        convert(pretrained, tmp_path / "b", "hf", changes=Changes(drop=".*word_embeddings.*"))


# === Refusals: one line, exit 5, nothing written ===


def change(folder: Path, file: str = "config.json", **values) -> None:
    content = json.loads((folder / file).read_text("utf-8")) if (folder / file).exists() else {}
    content = {k: v for k, v in (content | values).items() if v is not ...}
    (folder / file).write_text(json.dumps(content), "utf-8")


def rename(folder: Path, old: str, new: str | None) -> None:
    stored = load_file(folder / "model.safetensors")
    value = stored.pop(old)
    save_file(stored | ({new: value} if new else {}), folder / "model.safetensors")


def cut(file: Path, keep: int) -> None:
    file.write_bytes(file.read_bytes()[:keep])


NAN = np.full(16, np.nan, "float32")
FAULTS = {
    "truncated": (lambda d: cut(d / "model.safetensors", 20_000), "broken or not a safetensors file"),
    "header": (lambda d: (d / "model.safetensors").write_bytes(b"\xff" * 99), "broken or not a safetensors file"),
    "renamed": (
        lambda d: rename(d, "bert.pooler.dense.bias", "bert.pooler.dense.bais"),
        r"1 not filled: head/pooler/dense/bias \(pooler.dense.bias\); 1 no place for: pooler.dense.bais$",
    ),
    "missing": (
        lambda d: rename(d, "bert.encoder.layer.1.output.dense.weight", None),
        r"1 not filled: encoder/block_1/feed_forward/outer/kernel \(encoder.layer.1.output.dense.weight\)$",
    ),
    "half a head": (lambda d: rename(d, "cls.predictions.bias", None), "1 not filled: head/masked_lm/bias"),
    "a tensor too many": (
        lambda d: add(d, adapter__down=NAN),
        r"1 no place for: adapter.down; .* leave them out with --drop='adapter\\.\.\*' \(drop= in Python\)$",
    ),
    "a head that is not named": (
        lambda d: add(d, classifier__weight=np.ones((2, 16), "f4"), classifier__bias=np.ones(2, "f4")),
        r"2 no place for: classifier.bias, classifier.weight; .*--drop='classifier\\.\.\*' ",
    ),
    "another shape": (
        lambda d: add(d, cls__seq_relationship__bias=np.ones(3, "f4")),
        r"head/next_sentence/bias \(cls.seq_relationship.bias is \(3,\), not \(2,\)\)$",
    ),
    "whole numbers": (
        lambda d: add(d, bert__pooler__dense__bias=np.ones(16, "i8")),
        r"pooler.dense.bias holds I64, not floating-point numbers\)$",
    ),
    "not a number": (lambda d: add(d, bert__pooler__dense__bias=NAN), "holds values that are not numbers$"),
    "fewer layers": (
        lambda d: change(d, num_hidden_layers=1),
        r"does not fit: 16 no place for: encoder.layer.1[^,]*(, [^,]+){4} and 11 more; .*--drop='encoder.*layer",
    ),
    "more layers": (
        lambda d: change(d, num_hidden_layers=3),
        r"does not fit: 16 not filled: encoder/block_2/[^,]*(, [^,]+){4} and 11 more$",
    ),
    "layers without end": (lambda d: change(d, num_hidden_layers=10**12), "num_hidden_layers 10+ is more than 1024$"),
    "another width": (lambda d: change(d, hidden_size=8), r"not filled: encoder/tokens.* and \d\d more$"),
    "another inner width": (lambda d: change(d, intermediate_size=33), "6 not filled: encoder/block_0"),
    "heads that do not divide": (
        lambda d: change(d, num_attention_heads=3),
        "num_heads 3, and there is no head_dim$",
    ),
    "an unknown key": (lambda d: change(d, num_experts=8), "unknown keys, .*: config.json: num_experts; --keep_keys="),
    "relative positions": (lambda d: change(d, position_embedding_type="relative_key"), "is not supported$"),
    "a decoder": (lambda d: change(d, is_decoder=True), "is_decoder True is not supported$"),
    "cross attention": (lambda d: change(d, add_cross_attention=True), "add_cross_attention True is not supported$"),
    "pruned heads": (lambda d: change(d, pruned_heads={"0": [1]}), "pruned_heads .* is not supported$"),
    "another model": (lambda d: change(d, model_type="roberta"), "only bert can be loaded$"),
    "no labels": (
        lambda d: change(d, architectures=["BertForSequenceClassification"], id2label={"1": "a"}),
        "id2label must name the labels 0 to n - 1",
    ),
    "labels twice": (
        lambda d: change(d, architectures=["BertForSequenceClassification"], id2label={"0": "a", "1": "a"}),
        "labels must be unique",
    ),
    "a head without weights": (
        lambda d: change(d, architectures=["BertForTokenClassification"], id2label={"0": "O", "1": "B-a", "2": "I-a"}),
        r"1 not filled: head/logits/kernel \(of the head for tag that the settings name\)$",
    ),
    "an unknown problem": (
        lambda d: change(d, architectures=["BertForSequenceClassification"], problem_type="x"),
        "problem_type 'x'; it can be one of",
    ),
    "a longer vocabulary": (
        lambda d: (d / "vocab.txt").write_text("\n".join([*WORDS, "more"]) + "\n", "utf-8"),
        "the vocabulary has 59 pieces but the model 58 rows for them; they do not belong together$",
    ),
    "a broken vocabulary": (
        lambda d: (d / "vocab.txt").write_text("\n".join([*WORDS[:-1], "a"]) + "\n", "utf-8"),
        "vocab.txt, line 58: repeats 'a' of line 6$",
    ),
    "no vocabulary": (lambda d: (d / "vocab.txt").unlink(), "has no vocab.txt"),
    "other special tokens": (
        lambda d: change(d, "tokenizer_config.json", cls_token="<s>"),
        r"cls_token is '<s>'; only \[CLS\] is supported$",
    ),
    "an index that is none": (
        lambda d: (d / "model.safetensors").rename(d / "model.safetensors.index.json"),
        "model.safetensors.index.json: not valid JSON",
    ),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_faults_write_nothing(fault, pretrained, tmp_path, capsys):
    damage, message = FAULTS[fault]
    damage(pretrained)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=message):
        convert(pretrained, tmp_path / "out", "tf1")
    code = main(["convert", f"--input_dir={pretrained}", f"--output_dir={tmp_path / 'out'}", "--to_format=tf1"])
    out, err = capsys.readouterr()
    assert (code, out) == (5, "")
    assert err.startswith("keras-bert convert: error: ")
    assert err.count("\n") == 1
    assert str(pretrained) in err
    assert sorted(tmp_path.iterdir()) == before


def h5_of(folder: Path):
    import h5py

    return h5py.File(folder / "model.weights.h5", "r+")


def to_preset(folder: Path) -> None:
    convert(folder, folder.parent / "other", "keras_hub")
    shutil.rmtree(folder)
    shutil.move(folder.parent / "other", folder)


def to_bundle(name: str):
    def turn(folder: Path) -> None:
        convert(folder, folder.parent / "other", name)
        shutil.rmtree(folder)
        shutil.move(folder.parent / "other", folder)

    return turn


def h5_link(folder: Path) -> None:
    import h5py

    with h5_of(folder) as h5:
        del h5["layers/dense/vars/0"]
        h5["layers/dense/vars/0"] = h5py.ExternalLink("/etc/passwd", "/x")


def h5_rename(folder: Path) -> None:
    with h5_of(folder) as h5:
        h5.move("layers/dense/vars/0", "layers/dense/vars/7")


def flip(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 0xFF
    file.write_bytes(data)


OTHER_FAULTS = {
    "keras_hub link": ("keras_hub", h5_link, r"layers/dense/vars/0 is a link \(ExternalLink\)"),
    "keras_hub renamed": ("keras_hub", h5_rename, r"1 not filled: .*; 1 no place for: layers/dense/vars/7$"),
    "keras_hub truncated": ("keras_hub", lambda d: cut(d / "model.weights.h5", 50_000), "broken or not an HDF5 file"),
    "keras_hub no task": ("keras_hub", lambda d: (d / "task.weights.h5").unlink(), None),
    "keras_hub other class": (
        "keras_hub", lambda d: change(d, class_name="RobertaBackbone"), "class_name 'RobertaBackbone'; it can be"),
    "keras_hub no tokenizer": (
        "keras_hub", lambda d: (d / "tokenizer.json").unlink(), "has no tokenizer.json; save the task with its prep"),
    "keras_hub no vocabulary": (
        "keras_hub", lambda d: (d / "assets/tokenizer/vocabulary.txt").unlink(), "has no assets/tokenizer"),
    "garden index": ("garden", lambda d: cut(d / "bert_model.ckpt-1.index", 900), "bert_model.ckpt-1: broken"),
    "garden data": ("garden", lambda d: flip(d / "bert_model.ckpt-1.data-00000-of-00001", 5000), "broken"),
    "garden cut": ("garden", lambda d: cut(d / "bert_model.ckpt-1.data-00000-of-00001", 5000), "broken"),
    "garden layers": ("garden", lambda d: change(d, "bert_config.json", num_hidden_layers=1), "16 no place for: "),
    "tf1 data": ("tf1", lambda d: flip(d / "bert_model.ckpt.data-00000-of-00001", 1000), "bert_model.ckpt: broken"),
    "tf1 unknown key": ("tf1", lambda d: change(d, "bert_config.json", embedding_size=8), "json: embedding_s"),
    "tf1 no index": ("tf1", lambda d: (d / "bert_model.ckpt.index").unlink(), r"has 0 files \*.ckpt\*.index"),
    "keras_bert schema": ("keras_bert", lambda d: change(d, "keras_bert.json", schema=9), "reads schema 1$"),
    "keras_bert unknown": ("keras_bert", lambda d: change(d, "keras_bert.json", x=9), r"unknown keys \['x'\]$"),
    "keras_bert part": ("keras_bert", lambda d: change(d, "keras_bert.json", text=...), "'text' is missing$"),
    "extra schema": ("tf1", lambda d: change(d, extra.EXTRA_FILE, schema=2), "not of schema 1"),
    "extra unknown": ("tf1", lambda d: change(d, extra.EXTRA_FILE, more=2), r"unknown keys \['more'\]$"),
    "extra field": ("tf1", lambda d: change(d, extra.EXTRA_FILE, encoder={"layers": 2}), "'layers' is not a setting"),
    "extra part": ("tf1", lambda d: change(d, extra.EXTRA_FILE, absent=["tail"]), "names no parts of a model$"),
    "extra origins": ("tf1", lambda d: change(d, extra.EXTRA_FILE, origins={"hf": [1]}), "origins is not an object"),
    "keras_bert notes": ("keras_bert", lambda d: change(d, "keras_bert.json", notes=[1]), "notes is not an object"),
    "extra head": ("tf1", lambda d: change(d, extra.EXTRA_FILE, head=3), "head is not an object$"),
    "extra weights": (
        "keras_hub", lambda d: (d / extra.EXTRA_WEIGHTS_FILE).write_bytes(b"x"), "broken or not a safetensors file"),
}  # fmt: skip


@pytest.mark.parametrize("fault", list(OTHER_FAULTS))
def test_faults_of_other_formats_write_nothing(fault, pretrained, tmp_path):
    name, damage, message = OTHER_FAULTS[fault]
    to_bundle(name)(pretrained)
    damage(pretrained)
    if message is None:  # a preset may come without its task
        assert "head/masked_lm/bias" not in {row[0] for row in convert(pretrained, tmp_path / "out", "hf").rows}
        return
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=message) as refused:
        convert(pretrained, tmp_path / "out", "hf")
    assert "\n" not in str(refused.value)
    assert str(pretrained) in str(refused.value)
    assert sorted(tmp_path.iterdir()) == before


def test_a_published_model_without_its_data(tmp_path, capsys):
    for file in shared("checkpoints/index_only/uncased_L-2_H-128_A-2").iterdir():
        shutil.copyfile(file, tmp_path / file.name)
    shutil.copyfile(shared("data/vocab/uncased/vocab.txt"), tmp_path / "vocab.txt")
    with pytest.raises(CheckpointError, match=r"bert_model\.ckpt: broken"):
        convert(tmp_path, tmp_path / "out", "hf")
    assert not (tmp_path / "out").exists()


def test_a_vocabulary_of_another_model(tmp_path):
    with pytest.raises(CheckpointError, match="the vocabulary has 405 pieces but the model 402 rows for them"):
        convert(shared("checkpoints/hf_ner_bert_L-1_H-16"), tmp_path / "out", "keras_bert")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"attention_mask": "causal"}, "attention_mask 'causal'"),
        ({"layer_heads": (2, 1), "head_dim": 8}, r"head_dim 8 and an encoder with layer_heads \(2, 1\)"),
        ({"layer_units": (5, 32)}, r"layer_units \(5, 32\)"),
    ],
)
def test_an_encoder_that_others_do_not_have(setting, said, tmp_path):
    of = contents(**setting)
    write(tmp_path / "a", "keras_bert", of, weights(of, "encoder", "pooler"))
    with pytest.raises(CheckpointError, match=rf"hf cannot hold an encoder with {said}; only keras_bert can$"):
        convert(tmp_path / "a", tmp_path / "b", "hf")
    convert(tmp_path / "a", tmp_path / "b", "keras_bert", verify=True)
    assert read(tmp_path / "b")[0].encoder == of.encoder


# === In one piece ===


def test_verify_notices_a_wrong_bit(pretrained, tmp_path, monkeypatch):
    before = FORMATS["tf1"]

    def wrong(folder, of, values):
        values = {path: value.copy() for path, value in values.items()}
        values["encoder/norm/beta"].view(np.uint32)[3] ^= 1
        before.write(folder, of, values)

    monkeypatch.setitem(FORMATS, "tf1", dataclasses.replace(before, write=wrong))
    with pytest.raises(CheckpointError, match=r"out: reads back differently: encoder/norm/beta; nothing was written$"):
        convert(pretrained, tmp_path / "out", "tf1", verify=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", list(FORMATS))
def test_a_full_disk_leaves_nothing(name, pretrained, tmp_path):
    resource = pytest.importorskip("resource", reason="file size limits are POSIX")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = sorted(tmp_path.iterdir())
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limit[1]))  # the weights need 30 kB
    try:
        with pytest.raises(CheckpointError, match="cannot be written") as refused:
            convert(pretrained, tmp_path / "out", name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert "\n" not in str(refused.value)
    assert sorted(tmp_path.iterdir()) == before


def test_an_interrupt_leaves_nothing(pretrained, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(conversion.extra, "write", stop)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        convert(pretrained, tmp_path / "out", "tf1")
    assert sorted(tmp_path.iterdir()) == before


def test_places_that_cannot_take_the_result(pretrained, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").write_text("mine", "utf-8")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="full: is not empty"):
        convert(pretrained, tmp_path / "full", "tf1")
    with pytest.raises(ConfigError, match="mine: is a file"):
        convert(pretrained, tmp_path / "full/mine", "tf1")
    with pytest.raises(CheckpointError, match="cannot be written"):
        convert(pretrained, tmp_path / "full/mine/out", "tf1")
    with pytest.raises(ConfigError, match="is not empty"):
        convert(pretrained, pretrained, "tf1")
    convert(pretrained, tmp_path / "empty", "tf1")
    convert(pretrained, tmp_path / "new/deep/er", "tf1")
    assert same_bits(read(tmp_path / "empty")[1], read(tmp_path / "new/deep/er")[1])
    assert (tmp_path / "empty").stat().st_mode & 0o777 == 0o755
    assert {f.stat().st_mode & 0o777 for f in (tmp_path / "empty").iterdir()} == {0o644}


# === The command ===


def test_the_command(pretrained, tmp_path, capsys):
    given = [f"--input_dir={pretrained}", f"--output_dir={tmp_path / 'out'}", "--from_format=hf", "--to_format=tf1"]
    assert main(["convert", *given, "--verify", "--num_segments=3", "--activation=gelu_tanh"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "hf -> tf1: 46 weights; all bits equal after reading back, and it loads"
    assert "bert/encoder/layer_1/attention/self/query/kernel" in out
    assert err == f"wrote {tmp_path / 'out'}\n"
    after, _ = read(tmp_path / "out")
    assert (after.encoder.num_segments, after.encoder.activation) == (3, "gelu_tanh")


@pytest.mark.parametrize(
    ("flag", "code", "message"),
    [
        ("--from_format=tf1", 5, "holds a hf checkpoint, not a tf1 one"),
        ("--from_format=onnx", 2, "from_format"),
        ("--to_format=onnx", 2, "unknown format 'onnx'; choose one of keras_bert, tf1, garden, keras_hub, hf"),
        ("--num_segments=1", 2, "num_segments 1 is less than the 2 of the model"),
        ("--max_positions=99999999999", 2, "max_positions 99999999999 is more than 65536"),
        ("--activation=relu", 2, "activation"),
        ("--input_dir=/nowhere", 5, "/nowhere: does not exist"),
        ("--input_dir=hf://a/b", 5, "hf://a/b: is not on this machine and cannot be downloaded"),
        ("--output_dir=", 2, "--output_dir must be given"),
    ],
)
def test_flags_that_cannot_be_used(flag, code, message, pretrained, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("KERAS_BERT_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    given = [f"--input_dir={pretrained}", f"--output_dir={tmp_path / 'out'}", "--to_format=tf1", flag]
    assert main(["convert", *given]) == code
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_report_can_be_printed():
    report = Conversion("a", "b", (("x", (1, 2), "y", "same", "z", "same"),), (("t", "no"), ("u", "no")), ("r",), False)
    assert str(report).splitlines()[1:] == [
        "x     1x2    y  same       z  same",
        "not used, no (2): t, u",
        "note: r",
        "a -> b: 1 weights",
    ]


# === Other programs load what was written ===

IDS = np.array([[2, 5, 9, 11, 13, 3, 7, 3], [2, 21, 22, 3, 0, 0, 0, 0]])
SEGMENTS = np.array([[0] * 6 + [1] * 2, [0] * 8])
BOUND = 2e-5


def ids_for(folder: Path) -> np.ndarray:
    """Ids that a model has rows for; the padding stays."""
    return np.where(IDS, 1 + (IDS + 2000) % (read(folder)[0].encoder.vocab_size - 1), 0)


def hidden(folder: Path, ids: np.ndarray = IDS, segments: np.ndarray = SEGMENTS) -> dict[str, np.ndarray]:
    """What our encoder and heads compute from a checkpoint, valid positions only."""
    of, values = read(folder)
    encoder = Encoder(of.encoder)
    for w in encoder.weights:
        if "seed_generator" not in w.path:
            w.assign(values[w.path])
    sequence = encoder({"token_ids": ids, "segment_ids": segments})["sequence"]
    out = {"sequence": sequence.numpy()[ids != 0]}
    pooled = sequence.numpy()[:, 0]
    if "head/pooler/dense/kernel" in values:
        pooled = np.tanh(pooled @ values["head/pooler/dense/kernel"] + values["head/pooler/dense/bias"])
        out["pooled"] = pooled
    if "head/masked_lm/bias" in values:
        layer = TiedLogits(of.encoder, name="masked_lm")
        layer.build()
        for w in layer.weights:
            w.assign(values[f"head/{w.path}"])
        out["masked_lm"] = layer(sequence, encoder.tokens.embeddings).numpy()[ids != 0]
    for name in ("next_sentence", "logits"):
        if f"head/{name}/kernel" in values:
            x = sequence.numpy() if of.head and of.head.task in ("tag", "span") else pooled
            out[name] = x @ values[f"head/{name}/kernel"] + values[f"head/{name}/bias"]
    return out


def close(ours: np.ndarray, theirs: np.ndarray) -> None:
    difference = float(np.abs(np.asarray(ours) - np.asarray(theirs)).max())
    print(f"largest difference {difference:.1e}")
    assert difference <= BOUND


@pytest.mark.parametrize("source", REAL)
def test_keras_hub_loads_our_presets(source, start, tmp_path):
    keras_hub = pytest.importorskip("keras_hub", reason="keras-hub is not installed")
    convert(start, tmp_path / "a", "keras_hub", changes=Changes(activation="gelu_tanh"))
    ids, segments = ids_for(tmp_path / "a"), SEGMENTS
    backbone = keras_hub.models.BertBackbone.from_preset(str(tmp_path / "a"))
    theirs = backbone.predict(
        {"token_ids": ids, "segment_ids": segments, "padding_mask": (ids != 0).astype("int32")}, verbose=0
    )
    ours = hidden(tmp_path / "a", ids)
    close(ours["sequence"], theirs["sequence_output"][ids != 0])
    if "pooled" in ours:
        close(ours["pooled"], theirs["pooled_output"])
    tokenizer = keras_hub.models.BertTokenizer.from_preset(str(tmp_path / "a"))
    vocabulary = read(tmp_path / "a")[0].vocabulary
    assert tokenizer.get_vocabulary() == [piece.strip() for piece in vocabulary]  # as it reads the file
    if source == "minilm":
        assert [vocabulary[i] for i in tokenizer("Caf\u00e9 au lait")] == ["cafe", "au", "lai", "##t"]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras, when it saves
def test_keras_hub_loads_our_heads_and_we_load_theirs(tmp_path):
    keras_hub = pytest.importorskip("keras_hub", reason="keras-hub is not installed")
    of = contents("classify")
    write(tmp_path / "a", "keras_hub", of, weights(of, "encoder", "pooler", "logits"))
    mask = (IDS != 0).astype("int32")
    features = {"token_ids": IDS, "segment_ids": SEGMENTS, "padding_mask": mask}
    classifier = keras_hub.models.BertTextClassifier.from_preset(str(tmp_path / "a"))
    backbone = classifier.backbone
    direct = classifier.output_dense(backbone.predict(features, verbose=0)["pooled_output"])
    close(hidden(tmp_path / "a")["logits"], direct.numpy())
    assert classifier.preprocessor.tokenizer.vocabulary_size() == len(WORDS)

    of = contents()
    values = weights(of, "encoder", "pooler", "masked_lm")
    write(tmp_path / "b", "keras_hub", of, values)
    masked = keras_hub.models.BertMaskedLM.from_preset(str(tmp_path / "b"))
    head = {w.path.rpartition("mlm_head/")[2]: w.numpy() for w in masked.masked_lm_head.weights}
    np.testing.assert_array_equal(head["intermediate_dense/kernel"], values["head/masked_lm/transform/kernel"])
    assert sum(np.array_equal(w, values["head/masked_lm/bias"]) for w in head.values()) == 1

    for name, task in {"c": masked, "d": classifier}.items():
        task.save_to_preset(str(tmp_path / name))
        again, theirs = read(tmp_path / name)
        assert same_bits(theirs, read(tmp_path / {"c": "b", "d": "a"}[name])[1])
        assert again.vocabulary == WORDS
        convert(tmp_path / name, tmp_path / f"{name}_hf", "hf", verify=True)


def test_google_names_of_what_we_write(tmp_path):
    published = shared("checkpoints/index_only/uncased_L-2_H-128_A-2/bert_model.ckpt.index").with_suffix("")
    of = Contents(SIZES["tiny"], TextConfig(), WORDS)
    values = weights(of, *ALL)
    write(tmp_path / "ours", "keras_bert", of, values)
    convert(tmp_path / "ours", tmp_path / "tf1", "tf1")
    prefix = str(tmp_path / "tf1/bert_model.ckpt")
    assert tf.train.list_variables(prefix) == tf.train.list_variables(str(published))
    reader = tf.train.load_checkpoint(prefix)
    np.testing.assert_array_equal(
        reader.get_tensor("cls/seq_relationship/output_weights"), values["head/next_sentence/kernel"].T
    )
    wanted, got = (
        json.loads((d / "bert_config.json").read_text("utf-8")) for d in (published.parent, tmp_path / "tf1")
    )
    assert wanted == got


def torch_and_transformers():
    torch = pytest.importorskip("torch", reason="torch is not installed (extra peers)")
    return torch, pytest.importorskip("transformers", reason="transformers is not installed (extra peers)")


def of_torch(model, torch, ids: np.ndarray) -> dict[str, np.ndarray]:
    with torch.no_grad():
        out = model.eval()(
            input_ids=torch.tensor(ids),
            token_type_ids=torch.tensor(SEGMENTS),
            attention_mask=torch.tensor(ids != 0).long(),
        )
    return {name: value.numpy() for name, value in out.items() if hasattr(value, "numpy")}


@pytest.mark.slow
@pytest.mark.parametrize("way", ["tf1", "keras_hub", "garden"])
@pytest.mark.parametrize("source", REAL)
def test_transformers_loads_our_files(source, start, way, tmp_path):
    torch, transformers = torch_and_transformers()
    convert(start, tmp_path / "way", way)
    convert(tmp_path / "way", tmp_path / "hf", "hf", verify=True)
    ids = ids_for(tmp_path / "hf")
    model, info = transformers.BertModel.from_pretrained(tmp_path / "hf", output_loading_info=True)
    theirs, ours = of_torch(model, torch, ids), hidden(tmp_path / "hf", ids)
    assert {name.split(".")[0] for name in info["missing_keys"]} == (set() if "pooled" in ours else {"pooler"})
    assert {name.split(".")[0] for name in info["unexpected_keys"]} <= {"cls", "classifier"}
    close(ours["sequence"], theirs["last_hidden_state"][ids != 0])
    if "pooled" in ours:
        close(ours["pooled"], theirs["pooler_output"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    if source == "minilm":
        assert tokenizer.tokenize("Caf\u00e9 au lait") == ["cafe", "au", "lai", "##t"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "parts", "name", "output"),
    [
        (None, ("masked_lm",), "BertForMaskedLM", "logits"),
        (None, ("pooler", "masked_lm", "next_sentence"), "BertForPreTraining", "prediction_logits"),
        (None, ("pooler", "next_sentence"), "BertForNextSentencePrediction", "logits"),
        ("classify", ("pooler", "logits"), "BertForSequenceClassification", "logits"),
        ("regress", ("pooler", "logits"), "BertForSequenceClassification", "logits"),
        ("tag", ("logits",), "BertForTokenClassification", "logits"),
        ("span", ("logits",), "BertForQuestionAnswering", "start_logits"),
    ],
)
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_transformers_loads_our_heads_and_we_load_theirs(task, parts, name, output, activation, tmp_path):
    torch, transformers = torch_and_transformers()
    of = contents(task, activation=activation)
    values = {path: value * 0.2 for path, value in weights(of, "encoder", *parts).items()}
    write(tmp_path / "a", "hf", of, values)
    model, info = getattr(transformers, name).from_pretrained(tmp_path / "a", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    theirs = of_torch(model, torch, IDS)
    ours = hidden(tmp_path / "a")
    if "masked_lm" in parts:
        close(ours["masked_lm"], theirs[output][IDS != 0])
        if "next_sentence" in parts:
            close(ours["next_sentence"], theirs["seq_relationship_logits"])
    elif task == "span":
        close(ours["logits"][..., 0][IDS != 0], theirs["start_logits"][IDS != 0])
        close(ours["logits"][..., 1][IDS != 0], theirs["end_logits"][IDS != 0])
    elif task == "tag":
        close(ours["logits"][IDS != 0], theirs["logits"][IDS != 0])
    else:
        close(ours["logits" if task else "next_sentence"], theirs["logits"])
    if task == "tag":
        tags = ["O", "B-place", "I-place", "B-person", "I-person"]
        assert model.config.id2label == dict(enumerate(tags))
    model.save_pretrained(tmp_path / "b")
    shutil.copyfile(tmp_path / "a/vocab.txt", tmp_path / "b/vocab.txt")
    again, weights_again = read(tmp_path / "b")
    assert same_bits(weights_again, values)
    assert (again.encoder.activation, again.head) == (activation, of.head)
    torch.save(model.state_dict(), tmp_path / "b/pytorch_model.bin")
    (tmp_path / "b/model.safetensors").unlink()
    assert same_bits(read(tmp_path / "b")[1], values)


GARDEN = """
import os, sys
import numpy as np, tensorflow as tf, tf_keras
from official.nlp import modeling
folder, data, size = sys.argv[1:4]
c = __import__("json").load(open(folder + "/bert_config.json"))
def gelu(x): return tf_keras.activations.gelu(x, approximate=True)
def build():
    encoder = modeling.networks.BertEncoderV2(
        vocab_size=c["vocab_size"], hidden_size=c["hidden_size"], num_layers=c["num_hidden_layers"],
        num_attention_heads=c["num_attention_heads"], max_sequence_length=c["max_position_embeddings"],
        type_vocab_size=c["type_vocab_size"], inner_dim=c["intermediate_size"], inner_activation=gelu)
    head = modeling.layers.ClassificationHead(inner_dim=c["hidden_size"], num_classes=2, name="next_sentence")
    model = modeling.models.BertPretrainerV2(encoder, mlm_activation=gelu, classification_heads=[head])
    f = dict(np.load(data))
    out = lambda: {k: v.numpy() for k, v in model(f, training=False).items() if hasattr(v, "numpy")}
    out()
    return encoder, model, out
prefix = tf.train.latest_checkpoint(folder)
encoder, model, out = build()
if size == "encoder":
    tf.train.Checkpoint(encoder=encoder).restore(prefix).assert_existing_objects_matched().expect_partial()
    first = out()
    encoder, model, out = build()
    tf.train.Checkpoint(model=encoder).restore(prefix).assert_existing_objects_matched().expect_partial()
    second = out()
    for k in ("sequence_output", "pooled_output"):
        assert (first[k] == second[k]).all(), k
else:
    tf.train.Checkpoint(model=model).restore(prefix).assert_existing_objects_matched().expect_partial()
    second = out()
    encoder, model, out = build()
    tf.train.Checkpoint(**model.checkpoint_items).restore(prefix).assert_existing_objects_matched().expect_partial()
    assert (out()["mlm_logits"] == second["mlm_logits"]).all()
    tf.train.Checkpoint(model=model, **model.checkpoint_items).restore(prefix).assert_consumed()
    second = out()
np.savez(folder + "/out.npz", **{k: v for k, v in second.items() if not isinstance(v, list)})
kinds = {"model": {"model": model}, "items": model.checkpoint_items, "encoder": {"encoder": encoder}}
for name, roots in kinds.items():
    tf.train.Checkpoint(**roots).save(os.path.join(folder, name, "bert_model.ckpt"))
"""


def by_garden(folder: Path, tmp_path: Path, what: str, ids: np.ndarray) -> dict[str, np.ndarray]:
    """What Model Garden computes from a directory, in its own interpreter; it also writes what it loaded."""
    python = os.environ.get("GARDEN_PYTHON")
    if not python:
        pytest.skip(reason="GARDEN_PYTHON names no interpreter with tf-models-official (extra garden)")
    positions = np.tile(np.arange(ids.shape[1]), (len(ids), 1))
    features = {
        "input_word_ids": ids,
        "input_mask": ids != 0,
        "input_type_ids": SEGMENTS,
        "masked_lm_positions": positions,
    }
    np.savez(tmp_path / "features.npz", **{name: value.astype("int32") for name, value in features.items()})
    (tmp_path / "garden.py").write_text(GARDEN, "utf-8")
    for name in ("model", "items", "encoder"):
        (folder / name).mkdir()
        for file in ("bert_config.json", "vocab.txt", extra.EXTRA_FILE):
            if (folder / file).exists():
                shutil.copyfile(folder / file, folder / name / file)
    command = [python, str(tmp_path / "garden.py"), str(folder), str(tmp_path / "features.npz"), what]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(np.load(folder / "out.npz"))


@pytest.mark.slow
@pytest.mark.parametrize("source", REAL)
def test_model_garden_loads_our_encoder(source, start, tmp_path):
    changes = Changes(activation="gelu_tanh", drop=r"cls.*|classifier.*")
    convert(start, tmp_path / "a", "garden", changes=changes, verify=True)
    ids = ids_for(tmp_path / "a")
    theirs = by_garden(tmp_path / "a", tmp_path, "encoder", ids)
    ours = hidden(tmp_path / "a", ids)
    close(ours["sequence"], theirs["sequence_output"][ids != 0])
    if "pooled" in ours:
        close(ours["pooled"], theirs["pooled_output"])
    assert same_bits(read(tmp_path / "a/encoder")[1], read(tmp_path / "a")[1])


@pytest.mark.slow
def test_model_garden_loads_our_pretrainer_and_we_load_theirs(tmp_path):
    of = contents()
    values = {path: value * 0.2 for path, value in weights(of, *ALL).items()}
    write(tmp_path / "ours", "keras_bert", of, values)
    convert(tmp_path / "ours", tmp_path / "a", "garden", verify=True)
    theirs = by_garden(tmp_path / "a", tmp_path, "pretrainer", IDS)
    ours = hidden(tmp_path / "a")
    close(ours["sequence"], theirs["sequence_output"][IDS != 0])
    close(ours["masked_lm"], theirs["mlm_logits"][IDS != 0])
    close(ours["next_sentence"], theirs["next_sentence"])
    assert same_bits(read(tmp_path / "a/model")[1], values)
    without = {path: value for path, value in values.items() if "next_sentence" not in path}
    assert same_bits(read(tmp_path / "a/items")[1], without)
    assert set(read(tmp_path / "a/encoder")[1]) == {path for path in without if "masked_lm" not in path}
