"""Checkpoints: the formats, saving and reading back, and faults that must be told and must change nothing."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import checks
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from conftest import TINY, WORDS, shared
from safetensors.numpy import load_file, save_file

from keras_bert.checkpoints import formats
from keras_bert.checkpoints.checkpoints import UNUSED, Checkpoint, load, open_checkpoint, replacing, save, text_config
from keras_bert.checkpoints.formats import FORMATS
from keras_bert.checkpoints.formats.settings import Contents
from keras_bert.checkpoints.formats.table import entries
from keras_bert.checkpoints.formats.torch_file import read_torch
from keras_bert.config import DataConfig, EncoderConfig, HeadConfig, TextConfig
from keras_bert.errors import CheckpointError, ConfigError, DataError
from keras_bert.files import sha256, write_atomic
from keras_bert.tasks.network import Network

LABELS = HeadConfig(labels=("no", "yes"))
NEW = ("head/logits/kernel", "head/logits/bias")


def weights(network) -> dict[str, np.ndarray]:
    return {w.path: w.numpy() for w in network.weights}


def opened(path, head: HeadConfig = LABELS):
    """Open and load; when either refuses, no weight may have changed."""
    found = open_checkpoint(path)
    network = checks.randomize(Network(found.encoder, found.head or head))
    before = weights(network)
    try:
        report = load(network, found)
    except BaseException:
        after = weights(network)
        assert all((after[path] == before[path]).all() for path in before), "a refused checkpoint changed a weight"
        raise
    return found, network, report


@pytest.fixture
def hf(tiny_checkpoint, tmp_path) -> Path:
    """A copy of the tiny checkpoint in Hugging Face's layout, to be damaged."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "hf"))


@pytest.fixture
def ours(tmp_path) -> Path:
    """A saved network in our format."""
    network = checks.randomize(Network(TINY, LABELS), seed=4)
    save(tmp_path / "ours", network, WORDS, TextConfig(max_seq_length=16), DataConfig(label_column="target"))
    return tmp_path / "ours"


@pytest.fixture
def toy(tmp_path) -> Path:
    """A copy of a checkpoint that google-research/bert wrote, Adam's slots and all."""
    source = shared("checkpoints/google_toy_L-2_H-4")
    (tmp_path / "toy").mkdir()
    for file in source.iterdir():
        if file.suffix != ".meta":
            (tmp_path / "toy" / file.name).write_bytes(file.read_bytes())
    return tmp_path / "toy"


# === Formats ===


def test_hugging_face():
    folder = shared("checkpoints/hf_tiny_bert_L-1_H-32")
    found, network, report = opened(folder)
    assert (found.format, found.head, found.data) == ("hf", None, None)
    assert (found.encoder.num_layers, found.encoder.hidden_dim, found.encoder.num_heads) == (1, 32, 2)
    assert (found.encoder.activation, found.encoder.hidden_dropout) == ("gelu", 0.0)
    assert len(found.vocabulary) <= found.encoder.vocab_size == 256
    assert found.vocabulary[:4] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    assert found.text == TextConfig(do_lower_case=True, max_seq_length=128, flavour="hf")
    stored, got = load_file(folder / "model.safetensors"), weights(network)
    assert report.new == ("head/pooler/dense/kernel", "head/pooler/dense/bias", *NEW)  # it was saved without a pooler
    assert report.unused == ()
    assert len(report.filled) == len(stored)
    np.testing.assert_array_equal(
        got["encoder/block_0/feed_forward/inner/kernel"], stored["encoder.layer.0.intermediate.dense.weight"].T
    )
    np.testing.assert_array_equal(
        got["encoder/block_0/attention/key/bias"], stored["encoder.layer.0.attention.self.key.bias"]
    )
    np.testing.assert_array_equal(got["encoder/norm/gamma"], stored["embeddings.LayerNorm.weight"])


def tf1_names(encoder):
    """Names of google-research/bert for an encoder and its pooler, written out by hand."""
    block = "attention/self/query", "attention/self/key", "attention/self/value"
    dense = *block, "attention/output/dense", "intermediate/dense", "output/dense"
    layers = [f"encoder/layer_{i}/{name}" for i in range(encoder.num_layers) for name in dense] + ["pooler/dense"]
    norms = [
        f"encoder/layer_{i}/{name}/LayerNorm"
        for i in range(encoder.num_layers)
        for name in ("output", "attention/output")
    ]
    return {
        *(f"embeddings/{name}_embeddings" for name in ("word", "position", "token_type")),
        *(f"{layer}/{name}" for layer in layers for name in ("kernel", "bias")),
        *(f"{layer}/{name}" for layer in [*norms, "embeddings/LayerNorm"] for name in ("gamma", "beta")),
    }


def test_google_research_bert(toy):
    reader = tf.train.load_checkpoint(str(toy / "bert_model.ckpt"))
    names = set(reader.get_variable_to_shape_map())
    assert len(names) == 139
    found, network, report = opened(toy)
    assert (found.format, found.encoder.activation, found.text.max_seq_length) == ("tf1", "gelu_tanh", 16)
    assert found.text.do_lower_case
    assert report.new == NEW
    assert set(report.filled) == {w.path for w in network.weights} - set(NEW)
    used = {f"bert/{name}" for name in tf1_names(found.encoder)}
    unused = {name if name in names else f"bert/{name}" for name in report.unused}
    assert used | unused == names
    assert not used & unused
    assert len(used) == len(report.filled) == 2 * 16 + 7
    got = weights(network)
    for ours, theirs in {
        "encoder/tokens/embeddings": "bert/embeddings/word_embeddings",
        "encoder/norm/beta": "bert/embeddings/LayerNorm/beta",
        "encoder/block_1/attention/query/kernel": "bert/encoder/layer_1/attention/self/query/kernel",
        "encoder/block_0/attention/output/kernel": "bert/encoder/layer_0/attention/output/dense/kernel",
        "encoder/block_0/feed_forward/inner/kernel": "bert/encoder/layer_0/intermediate/dense/kernel",
        "encoder/block_1/feed_forward/outer/kernel": "bert/encoder/layer_1/output/dense/kernel",
        "encoder/block_1/feed_forward_norm/gamma": "bert/encoder/layer_1/output/LayerNorm/gamma",
        "head/pooler/dense/kernel": "bert/pooler/dense/kernel",
    }.items():
        np.testing.assert_array_equal(got[ours], reader.get_tensor(theirs), err_msg=ours)
    assert np.isfinite(network(np.array([[2, 5, 6, 3]])).numpy()).all()


def test_names_of_a_published_model_are_all_known():
    """BERT-Base Chinese as Google published it: of its names none is missing and none is left over."""
    index = shared("checkpoints/index_only/chinese_L-12_H-768_A-12/bert_model.ckpt.index")
    names = {name.removeprefix("bert/") for name, _ in tf.train.list_variables(str(index.with_suffix("")))}
    encoder = EncoderConfig(num_layers=12)
    used = {e.name for part in ("encoder", "pooler") for e in entries(FORMATS["tf1"].table, part, encoder, None)}
    assert used == tf1_names(encoder)
    assert used <= names
    assert len(used) == 12 * 16 + 7
    assert sorted(name for name in names - used if not re.search(UNUSED["tf1"], name)) == []


def test_our_own(ours):
    found, network, report = opened(ours)
    assert (found.format, found.encoder, found.head) == ("keras_bert", TINY, LABELS)
    assert (found.text.max_seq_length, found.data.label_column) == (16, "target")
    assert found.vocabulary == WORDS
    assert (report.new, report.unused) == ((), ())
    assert set(report.filled) == {w.path for w in network.weights}


@pytest.mark.parametrize("task", ["classify", "multilabel", "regress"])
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_saved_and_opened_again_bit_for_bit(task, dtype, tmp_path):
    labels = () if task == "regress" else ("a", 'b\n"é', "c")
    network = checks.randomize(Network(TINY, HeadConfig(task=task, labels=labels), dtype=dtype), seed=8)
    text, data = TextConfig(do_lower_case=False, max_seq_length=20), DataConfig(text_pair_column="other")
    save(tmp_path / "a" / "b", network, WORDS, text, data, notes={"epoch": 2, "f1": 0.5})
    found, again, _ = opened(tmp_path / "a" / "b")
    assert (found.encoder, found.head, found.text, found.data) == (TINY, network.head.config, text, data)
    before, after = weights(network), weights(again)
    assert before.keys() == after.keys()
    for path in before:
        np.testing.assert_array_equal(after[path], before[path])
    assert sorted(p.name for p in found.path.iterdir()) == ["keras_bert.json", "model.safetensors", "vocab.txt"]
    assert json.loads((found.path / "keras_bert.json").read_text("utf-8"))["notes"] == {"epoch": 2, "f1": 0.5}
    first = {p.name: p.read_bytes() for p in found.path.iterdir()}
    save(found.path, again, found.vocabulary, found.text, found.data, notes={"epoch": 2, "f1": 0.5})
    assert {p.name: p.read_bytes() for p in found.path.iterdir()} == first, "saving again gives the same bytes"


def test_a_vocabulary_smaller_than_the_model_is_fine(hf):
    (hf / "vocab.txt").write_text("\n".join(WORDS[:-3]) + "\n", "utf-8")
    assert opened(hf)[0].vocabulary == WORDS[:-3]


@pytest.mark.parametrize("prefix", ["", "bert."])
@pytest.mark.parametrize("norms", [("weight", "bias"), ("gamma", "beta")])
def test_names_as_hugging_face_has_had_them(hf, prefix, norms):
    """bert-base-uncased on the hub: prefix `bert.`, norms as gamma and beta, heads of pre-training beside."""
    wanted = weights(opened(hf)[1])
    stored = load_file(hf / "model.safetensors")
    renamed = {}
    for name, value in stored.items():
        for new, old in zip(norms, ("weight", "bias"), strict=True):
            if name.endswith(f"LayerNorm.{old}"):
                name = name.removesuffix(old) + new
                break
        renamed[prefix + name] = value
    heads = {
        "cls.predictions.bias": np.zeros(58, "float32"),
        f"cls.predictions.transform.LayerNorm.{norms[0]}": np.ones(16, "float32"),
        "cls.seq_relationship.weight": np.zeros((2, 16), "float32"),
        f"{prefix}embeddings.position_ids": np.arange(64)[None],
    }
    save_file(renamed | heads, hf / "model.safetensors")
    _, network, report = opened(hf)
    assert report.new == NEW
    assert len(report.unused) == 4
    got = weights(network)
    for path in report.filled:
        np.testing.assert_array_equal(got[path], wanted[path])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_weights_of_other_precisions_become_float32(hf, dtype):
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    stored = {name: value.astype(kind) for name, value in load_file(hf / "model.safetensors").items()}
    save_file(stored, hf / "model.safetensors")
    _, network, _ = opened(hf)
    assert {w.dtype for w in network.weights} == {"float32"}
    np.testing.assert_array_equal(
        network.encoder.tokens.embeddings.numpy(), stored["embeddings.word_embeddings.weight"].astype("float32")
    )


def test_a_checkpoint_without_a_pooler_leaves_it_new(hf):
    stored = load_file(hf / "model.safetensors")
    save_file({k: v for k, v in stored.items() if not k.startswith("pooler")}, hf / "model.safetensors")
    report = opened(hf)[2]
    assert report.new == ("head/pooler/dense/kernel", "head/pooler/dense/bias", *NEW)
    assert str(report).startswith(f"{len(report.filled)} weights loaded; new, with random initial values: head/pooler")


@pytest.mark.parametrize(
    ("hidden_act", "activation"),
    [("gelu", "gelu"), ("gelu_new", "gelu_tanh"), ("gelu_pytorch_tanh", "gelu_tanh"), ("relu", "relu")],
)
def test_activation_by_name(hf, hidden_act, activation):
    change(hf, hidden_act=hidden_act)
    assert open_checkpoint(hf).encoder.activation == activation


def test_gelu_by_origin(hf, toy):
    change(hf, hidden_act=...)
    assert open_checkpoint(hf).encoder.activation == "gelu"
    assert json.loads((toy / "bert_config.json").read_text("utf-8"))["hidden_act"] == "gelu"
    assert open_checkpoint(toy).encoder.activation == "gelu_tanh"


def test_settings_of_the_config_are_taken_over(hf):
    change(
        hf,
        hidden_dropout_prob=0.2,
        attention_probs_dropout_prob=0,
        layer_norm_eps=1e-6,
        initializer_range=0.01,
        pad_token_id=None,
    )
    config = open_checkpoint(hf).encoder
    wanted = (0.2, 0, 1e-6, 0.01, 0)
    assert wanted == (
        config.hidden_dropout,
        config.attention_dropout,
        config.layer_norm_epsilon,
        config.initializer_range,
        config.pad_token_id,
    )


def test_pytorch_weights_are_read_where_there_are_no_others():
    """A token classifier of Hugging Face; only its vocabulary is that of another model."""
    source = shared("checkpoints/hf_ner_bert_L-1_H-16")
    contents = formats.hf.read_encoder(source / "config.json", "gelu")[0]
    checkpoint = Checkpoint(source, "hf", Contents(contents, TextConfig(), WORDS))
    network = checks.randomize(Network(contents, LABELS))
    report = load(network, checkpoint)
    assert report.new == ("head/pooler/dense/kernel", "head/pooler/dense/bias", *NEW)
    assert report.unused == ("classifier.bias", "classifier.weight", "embeddings.position_ids")
    stored = {name: value.read() for name, value in read_torch(source / "pytorch_model.bin").items()}
    for path, name in {
        "encoder/tokens/embeddings": "bert.embeddings.word_embeddings.weight",
        "encoder/block_0/attention_norm/gamma": "bert.encoder.layer.0.attention.output.LayerNorm.weight",
    }.items():
        np.testing.assert_array_equal(weights(network)[path], stored[name])


# === Case ===


@pytest.mark.parametrize(
    ("vocabulary", "lower"), [("uncased", True), ("cased", False), ("chinese", True), ("multi_cased", False)]
)
def test_case_is_read_off_the_vocabulary(hf, vocabulary, lower):
    shutil.copyfile(shared(f"data/vocab/{vocabulary}/vocab.txt"), hf / "vocab.txt")
    change(hf, vocab_size=119547)
    assert open_checkpoint(hf).text.do_lower_case is lower


def test_tokenizer_settings_decide_before_the_vocabulary(hf):
    for said, lower in ((False, False), (True, True), (None, True), ("yes", True)):
        (hf / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": said}), "utf-8")
        assert open_checkpoint(hf).text.do_lower_case is lower
    (hf / "tokenizer_config.json").write_text("{}", "utf-8")
    (hf / "vocab.txt").write_text("\n".join([*WORDS[:-1], "Fire"]) + "\n", "utf-8")
    assert open_checkpoint(hf).text.do_lower_case is False


def test_longest_row(hf):
    found = open_checkpoint(hf)
    assert found.text.max_seq_length == 64, "128, but the model has 64 positions"
    assert text_config(found, {}) == found.text
    assert text_config(found, {"max_seq_length": 10}).max_seq_length == 10
    with pytest.raises(ConfigError, match="max_seq_length 65 is more than the 64 positions of the model"):
        text_config(found, {"max_seq_length": 65})


# === Saving in one piece ===


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def test_a_full_disk_leaves_the_old_files(ours):
    resource = pytest.importorskip("resource", reason="file size limits are POSIX")
    before = contents(ours)
    network = checks.randomize(Network(TINY, LABELS), seed=5)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limit[1]))  # the weights need 30 kB
    try:
        with pytest.raises(CheckpointError) as refused:
            save(ours, network, WORDS, TextConfig(), DataConfig())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert one_line(refused, ours).startswith(f"{ours}: cannot be written")
    assert contents(ours) == before
    opened(ours)


def test_weights_that_fail_half_way_leave_the_old_ones(ours, monkeypatch):
    """The one replaced part here: safetensors 0.8 keeps the old file by itself, earlier ones need not."""

    def half(tensors, file):
        Path(file).write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    before = contents(ours)
    monkeypatch.setattr("keras_bert.checkpoints.checkpoints.save_file", half)
    with pytest.raises(CheckpointError, match=r"cannot be written .*No space left on device") as refused:
        save(ours, Network(TINY, LABELS), WORDS, TextConfig(), DataConfig())
    one_line(refused, ours)
    assert contents(ours) == before
    opened(ours)


def test_the_configuration_is_written_last(tmp_path):
    """A directory that has one is complete: where an earlier file fails there must be none."""
    (tmp_path / "vocab.txt").mkdir()
    with pytest.raises(CheckpointError):
        save(tmp_path, Network(TINY, LABELS), WORDS, TextConfig(), DataConfig())
    assert {p.name for p in tmp_path.iterdir()} == {"vocab.txt", "model.safetensors"}
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "vocab.txt", "keras_bert.json"])
def test_a_target_that_cannot_be_replaced_leaves_no_rubbish(ours, name):
    (ours / name).unlink()
    (ours / name).mkdir()
    before = {p.name for p in ours.iterdir()}
    with pytest.raises(CheckpointError) as refused:
        save(ours, Network(TINY, LABELS), WORDS, TextConfig(), DataConfig())
    one_line(refused, ours)
    assert {p.name for p in ours.iterdir()} == before


def test_a_file_in_the_place_of_the_directory(tmp_path):
    (tmp_path / "run").write_text("mine", "utf-8")
    with pytest.raises(CheckpointError) as refused:
        save(tmp_path / "run", Network(TINY, LABELS), WORDS, TextConfig(), DataConfig())
    one_line(refused, tmp_path / "run")
    assert (tmp_path / "run").read_text("utf-8") == "mine"


def test_a_write_that_fails_half_way(tmp_path):
    write_atomic(tmp_path / "a.txt", "old\r\n\u00e9")
    assert (tmp_path / "a.txt").read_bytes() == b"old\r\n\xc3\xa9", "written as given, in UTF-8"
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o644

    def fail_half_way():
        with replacing(tmp_path / "a.txt") as temporary:
            Path(temporary).write_text("new", "utf-8")
            assert Path(temporary).parent == tmp_path
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_half_way()
    assert contents(tmp_path) == {"a.txt": b"old\r\n\xc3\xa9"}


def test_sha256(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# === Faults ===


def one_line(refused, path: Path) -> str:
    """The message of an error about `path`: one line that names it."""
    message = str(refused.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def change(folder: Path, config: str = "config.json", **values) -> None:
    """Change keys of a JSON file; `...` removes one."""
    content = json.loads((folder / config).read_text("utf-8")) | values
    content = {key: value for key, value in content.items() if value is not ...}
    (folder / config).write_text(json.dumps(content), "utf-8")


def change_part(folder: Path, part: str, **values) -> None:
    """Change keys of one part of `keras_bert.json`."""
    content = json.loads((folder / "keras_bert.json").read_text("utf-8"))
    change(folder, "keras_bert.json", **{part: content[part] | values})


def change_tensors(folder: Path, **values) -> None:
    """Change tensors of `model.safetensors`, dots and slashes of the names written as `__`; None removes one."""
    stored = load_file(folder / "model.safetensors")
    plain = {name.replace(".", "__").replace("/", "__"): name for name in stored}
    for key, value in values.items():
        name = plain.get(key, key.replace("__", "."))
        if value is None:
            del stored[name]
        else:
            stored[name] = value
    save_file(stored, folder / "model.safetensors")


def cut(file: Path, keep: int) -> None:
    file.write_bytes(file.read_bytes()[:keep])


def flip(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 0xFF
    file.write_bytes(data)


def replace(file: Path, content: bytes) -> None:
    file.write_bytes(content)


def as_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


def pickled_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


ODD = np.full(16, 1.0, "float32")
ODD[3] = np.nan
HF_FAULTS = {
    "vocabulary of another size": (
        lambda d: change(d, vocab_size=70),
        r"encoder/tokens/embeddings is \(70, 16\) but embeddings.word_embeddings.weight is \(58, 16\)$",
    ),
    "another width": (lambda d: change(d, hidden_size=8), r"is \(58, 8\) but .* is \(58, 16\); .* and 32 more$"),
    "another inner width": (lambda d: change(d, intermediate_size=33), r"inner/kernel is \(16, 33\) but .* \(16, 32\)"),
    "fewer layers": (
        lambda d: change(d, num_hidden_layers=1),
        "does not fit the model: tensor encoder.layer.1.attention.* has no place in the model; .* and 11 more; "
        r".* leave them out with --drop='encoder\\.layer\\.1\\.\.\*' \(drop= in Python\)$",
    ),
    "more layers": (
        lambda d: change(d, num_hidden_layers=3),
        r"no tensor for encoder/block_2/attention/query/kernel \(encoder.layer.2.* and 11 more$",
    ),
    "fewer positions": (lambda d: change(d, max_position_embeddings=32), r"positions/embeddings is \(32, 16\)"),
    "more segments": (lambda d: change(d, type_vocab_size=3), r"segments/embeddings is \(3, 16\)"),
    "heads that do not divide": (
        lambda d: change(d, num_attention_heads=3),
        "config.json: hidden_dim 16 is not a multiple of num_heads 3, and there is no head_dim$",
    ),
    "a number as text": (
        lambda d: change(d, hidden_size="16"),
        "config.json: hidden_size must be a whole number, got '16'$",
    ),
    "half a layer": (lambda d: change(d, num_hidden_layers=1.5), "num_hidden_layers must be a whole number, got 1.5$"),
    "a truth for a number": (lambda d: change(d, vocab_size=True), "vocab_size must be a whole number, got True$"),
    "less than nothing": (lambda d: change(d, type_vocab_size=-1), "type_vocab_size must be a whole number, got -1$"),
    "epsilon as text": (lambda d: change(d, layer_norm_eps="1e-12"), "layer_norm_eps must be a number, got '1e-12'$"),
    "no layers": (lambda d: change(d, num_hidden_layers=0), "config.json: num_layers must be at least 1, got 0$"),
    "dropout 2": (lambda d: change(d, hidden_dropout_prob=2), r"hidden_dropout must be in \[0, 1\), got 2$"),
    "unknown activation": (lambda d: change(d, hidden_act="swish"), "hidden_act 'swish'; it can be one of gelu, "),
    "activation of no kind": (lambda d: change(d, hidden_act=["gelu"]), r"hidden_act \['gelu'\]"),
    "another model": (lambda d: change(d, model_type="roberta"), "model_type 'roberta'; only bert can be loaded$"),
    "relative positions": (
        lambda d: change(d, position_embedding_type="relative_key"),
        "position_embedding_type 'relative_key' is not supported$",
    ),
    "a decoder": (lambda d: change(d, is_decoder=True), "is_decoder True is not supported$"),
    "keys missing": (
        lambda d: change(d, hidden_size=..., vocab_size=...),
        "config.json: has no vocab_size, hidden_size$",
    ),
    "config cut off": (lambda d: cut(d / "config.json", 40), "config.json: not valid JSON"),
    "config empty": (lambda d: cut(d / "config.json", 0), "config.json: not valid JSON"),
    "config in UTF-16": (
        lambda d: replace(d / "config.json", '{"vocab_size": 1}'.encode("utf-16")),
        "config.json: not valid JSON",
    ),
    "config a list": (lambda d: replace(d / "config.json", b"[1]"), "config.json: holds a list, not an object$"),
    "config nested deep": (lambda d: replace(d / "config.json", b"[" * 100_000), "config.json: not valid JSON"),
    "config a directory": (lambda d: as_directory(d / "config.json"), "config.json: cannot be read"),
    "tokenizer settings broken": (
        lambda d: replace(d / "tokenizer_config.json", b"{"),
        "tokenizer_config.json: not valid JSON",
    ),
    "not a number": (
        lambda d: change_tensors(d, pooler__dense__bias=ODD),
        "pooler.dense.bias holds values that are not numbers$",
    ),
    "infinity": (
        lambda d: change_tensors(d, embeddings__LayerNorm__weight=np.full(16, np.inf, "float32")),
        "embeddings.LayerNorm.weight holds values that are not numbers$",
    ),
    "whole numbers for weights": (
        lambda d: change_tensors(d, pooler__dense__bias=np.zeros(16, "int64")),
        "pooler.dense.bias holds int64, not floating-point numbers$",
    ),
    "truths for weights": (
        lambda d: change_tensors(d, pooler__dense__bias=np.zeros(16, "bool")),
        "pooler.dense.bias holds bool, not floating-point numbers$",
    ),
    "weights in 8 bits": (
        lambda d: change_tensors(d, pooler__dense__bias=ODD.astype(ml_dtypes.float8_e4m3fn)),
        "model.safetensors: broken or not a safetensors file",
    ),
    "a tensor too many": (
        lambda d: change_tensors(d, adapter__weight=ODD),
        "does not fit the model: tensor adapter.weight has no place in the model; if the model does "
        r"not need them, leave them out with --drop='adapter\\.\.\*' \(drop= in Python\)$",
    ),
    "a tensor too few": (
        lambda d: change_tensors(d, embeddings__LayerNorm__bias=None),
        r"does not fit the model: no tensor for encoder/norm/beta \(embeddings.LayerNorm.bias\)$",
    ),
    "a tensor transposed": (
        lambda d: change_tensors(d, encoder__layer__0__output__dense__weight=np.zeros((32, 16), "float32")),
        r"outer/kernel is \(32, 16\) but encoder.layer.0.output.dense.weight is \(16, 32\)$",
    ),
    "weights cut off": (lambda d: cut(d / "model.safetensors", 20_000), "model.safetensors: broken or not a"),
    "weights cut by one byte": (
        lambda d: cut(d / "model.safetensors", (d / "model.safetensors").stat().st_size - 1),
        "model.safetensors: broken or not a",
    ),
    "weights empty": (lambda d: cut(d / "model.safetensors", 0), "model.safetensors: broken or not a"),
    "header broken": (lambda d: flip(d / "model.safetensors", 8), "model.safetensors: broken or not a"),
    "header of 2**64 bytes": (
        lambda d: replace(d / "model.safetensors", b"\xff" * 1000),
        "model.safetensors: broken or not a",
    ),
    "weights a directory": (lambda d: as_directory(d / "model.safetensors"), "model.safetensors: broken or not a"),
    "no weights": (
        lambda d: (d / "model.safetensors").unlink(),
        "has no model.safetensors or pytorch_model.bin; there are config.json, vocab.txt$",
    ),
    "pickled weights only": (
        pickled_only,
        "pytorch_model.bin: is not a file of PyTorch$",
    ),
    "vocabulary longer than the model": (
        lambda d: replace(d / "vocab.txt", "\n".join([*WORDS, "more"]).encode()),
        "the vocabulary has 59 pieces but the model 58 rows for them; they do not belong together$",
    ),
    "no vocabulary": (lambda d: (d / "vocab.txt").unlink(), "has no vocab.txt; put the vocabulary"),
}


@pytest.mark.parametrize("fault", list(HF_FAULTS))
def test_faults_of_hugging_face_directories(fault, hf):
    damage, message = HF_FAULTS[fault]
    opened(hf)
    damage(hf)
    with pytest.raises(CheckpointError, match=message) as refused:
        opened(hf)
    text = one_line(refused, hf)
    assert refused.value.exit_code == 5
    if "does not fit" in text:
        assert text.partition("; if the model")[0].count("; ") <= 4, "at most five differences"


OUR_FAULTS = {
    "newer schema": (
        lambda d: change(d, "keras_bert.json", schema=2),
        "keras_bert.json: schema 2; this version reads schema 1$",
    ),
    "no schema": (lambda d: change(d, "keras_bert.json", schema=...), "schema None; this version reads schema 1$"),
    "a part missing": (lambda d: change(d, "keras_bert.json", head=...), "keras_bert.json: 'head'"),
    "an unknown field": (
        lambda d: change_part(d, "encoder", num_experts=8),
        r"keras_bert.json: EncoderConfig has no \['num_experts'\]",
    ),
    "a part of no kind": (lambda d: change(d, "keras_bert.json", text=None), "keras_bert.json: "),
    "an empty file": (lambda d: cut(d / "keras_bert.json", 0), "keras_bert.json: not valid JSON"),
    "another number of labels": (
        lambda d: change_part(d, "head", labels=["a", "b", "c"]),
        r"head/logits/kernel is \(16, 3\) but head/logits/kernel is \(16, 2\)",
    ),
    "labels twice": (lambda d: change_part(d, "head", labels=["a", "a"]), "keras_bert.json: labels must be unique"),
    "a head's tensor too few": (
        lambda d: change_tensors(d, head__logits__bias=None),
        r"no tensor for head/logits/bias \(head/logits/bias\)$",
    ),
    "a tensor too many": (
        lambda d: change_tensors(d, extra=ODD),
        "tensor extra has no place in the model; .*--drop='extra'",
    ),
    "fewer layers": (
        lambda d: change_part(d, "encoder", num_layers=1),
        "tensor encoder/block_1/attention/key/bias has no place in .* and 11 more; .*--drop='encoder/block_1/.*'",
    ),
    "not a number": (
        lambda d: change_tensors(d, encoder__norm__gamma=ODD),
        "encoder/norm/gamma holds values that are not numbers$",
    ),
    "weights cut off": (lambda d: cut(d / "model.safetensors", 9000), "model.safetensors: broken or not a"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "has no model.safetensors$"),
}


@pytest.mark.parametrize("fault", list(OUR_FAULTS))
def test_faults_of_our_directories(fault, ours):
    damage, message = OUR_FAULTS[fault]
    opened(ours)
    damage(ours)
    with pytest.raises(CheckpointError, match=message) as refused:
        opened(ours)
    assert one_line(refused, ours).partition("; if the model")[0].count("; ") <= 4


INDEX, DATA = "bert_model.ckpt.index", "bert_model.ckpt.data-00000-of-00001"
TF1_FAULTS = {
    "no data file": (lambda d: (d / DATA).unlink(), "bert_model.ckpt: broken"),
    "data cut off": (lambda d: cut(d / DATA, 4000), "bert_model.ckpt: broken"),
    "data empty": (lambda d: cut(d / DATA, 0), "bert_model.ckpt: broken"),
    "a bit of the data": (lambda d: flip(d / DATA, 1000), "bert_model.ckpt: broken .*[Cc]hecksum"),
    "index empty": (lambda d: cut(d / INDEX, 0), "bert_model.ckpt: broken"),
    "index cut off": (lambda d: cut(d / INDEX, 2000), "bert_model.ckpt: broken"),
    "a bit of the index": (lambda d: flip(d / INDEX, 500), "bert_model.ckpt: broken"),
    "no index": (lambda d: (d / INDEX).unlink(), r"has 0 files \*.ckpt\*.index"),
    "two indices": (
        lambda d: shutil.copy(d / INDEX, d / "model.ckpt-7.index"),
        r"has 2 files .* \(bert_model.ckpt.index, model.ckpt-7.index\); keep exactly one$",
    ),
    "vocabulary of another size": (
        lambda d: change(d, "bert_config.json", vocab_size=20),
        r"tokens/embeddings is \(20, 4\) but embeddings/word_embeddings is \(15, 4\)$",
    ),
    "another inner width": (lambda d: change(d, "bert_config.json", intermediate_size=8), r"is \(4, 8\) but"),
    "fewer layers": (
        lambda d: change(d, "bert_config.json", num_hidden_layers=1),
        "tensor encoder/layer_1/.* has no place in the model; .* and 11 more; .*--drop='encoder/layer_1/.*'",
    ),
    "no vocabulary": (lambda d: (d / "vocab.txt").unlink(), "has no vocab.txt"),
    "config broken": (lambda d: cut(d / "bert_config.json", 10), "bert_config.json: not valid JSON"),
}


@pytest.mark.parametrize("fault", list(TF1_FAULTS))
def test_faults_of_google_directories(fault, toy):
    damage, message = TF1_FAULTS[fault]
    damage(toy)
    with pytest.raises(CheckpointError, match=message) as refused:
        opened(toy)
    one_line(refused, toy)


def test_a_published_index_without_its_data(tmp_path):
    for file in shared("checkpoints/index_only/uncased_L-2_H-128_A-2").iterdir():
        shutil.copyfile(file, tmp_path / file.name)
    shutil.copyfile(shared("data/vocab/uncased/vocab.txt"), tmp_path / "vocab.txt")
    with pytest.raises(CheckpointError, match=r"bert_model\.ckpt: broken") as refused:
        opened(tmp_path)
    one_line(refused, tmp_path)


def test_a_vocabulary_that_belongs_to_another_model():
    folder = shared("checkpoints/hf_ner_bert_L-1_H-16")
    with pytest.raises(CheckpointError, match="the vocabulary has 405 pieces but the model 402 rows") as refused:
        open_checkpoint(folder)
    one_line(refused, folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "vocab.txt: empty"),
        (b"[UNK]\n[SEP]\n", r"vocab.txt: has no \[CLS\]"),
        (b"[UNK]\n[CLS]\n[SEP]\n\nx\n", "vocab.txt, line 4: blank"),
        (b"[UNK]\n[CLS]\n[SEP]\n[CLS]\n", r"vocab.txt, line 4: repeats '\[CLS\]' of line 2"),
        (b"[UNK]\n[CLS]\n[SEP]\n\xff\n", "vocab.txt, line 4: byte 0xff is not UTF-8"),
    ],
)
@pytest.mark.parametrize("layout", ["hf", "ours"])
def test_broken_vocabularies(layout, content, message, request):
    folder = request.getfixturevalue(layout)
    (folder / "vocab.txt").write_bytes(content)
    with pytest.raises(DataError, match=message) as refused:
        open_checkpoint(folder)
    one_line(refused, folder)
    assert refused.value.exit_code == 3


def test_places_that_hold_no_checkpoint(tmp_path, hf):
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    for i in range(12):
        (tmp_path / "full" / f"{i:02}.txt").touch()
    for path, message in {
        tmp_path / "nowhere": "does not exist; give a directory with a checkpoint",
        hf / "model.safetensors": "is a file, not a directory; give a directory",
        tmp_path / "empty": "holds no checkpoint: none of keras_bert.json, .* among nothing$",
        tmp_path / "full": "among 00.txt, .*07.txt and 4 more$",
    }.items():
        with pytest.raises(CheckpointError, match=message) as refused:
            open_checkpoint(path)
        one_line(refused, path)


def test_a_network_of_another_shape(hf):
    """The caller's network, not the file, is wrong: the same refusal, and its weights stay."""
    network = checks.randomize(Network(dataclasses.replace(TINY, num_layers=3), LABELS))
    before = weights(network)
    with pytest.raises(CheckpointError, match=r"no tensor for encoder/block_2/.* and 11 more$") as refused:
        load(network, open_checkpoint(hf))
    one_line(refused, hf)
    assert all((weights(network)[path] == before[path]).all() for path in before)
