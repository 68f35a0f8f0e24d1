"""The formats' files: tables that lead there and back, and files that lie, which are refused before they do harm."""

import json
import re
import struct
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import tensorflow as tf
from conftest import TINY, WORDS, shared

from keras_bert.checkpoints import formats
from keras_bert.checkpoints.formats import FORMATS, containers
from keras_bert.checkpoints.formats.settings import Contents
from keras_bert.checkpoints.formats.table import entries
from keras_bert.checkpoints.formats.torch_file import read_torch
from keras_bert.config import HeadConfig, TextConfig
from keras_bert.errors import CheckpointError
from keras_bert.model.shapes import PARTS

TASKS = {
    "classify": ("a", "b", "c"),
    "multilabel": ("a",),
    "regress": (),
    "tag": ("place", "person"),
    "span": (),
    "choice": (),
}


def contents(task: str | None = None, **encoder) -> Contents:
    import dataclasses

    head = HeadConfig(task=task, labels=TASKS[task]) if task else None
    return Contents(dataclasses.replace(TINY, **encoder), TextConfig(max_seq_length=16), WORDS, head)


def weights(of: Contents, *parts: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights of the parts, under our paths."""
    random = np.random.default_rng(seed)
    return {
        entry.path: random.normal(size=entry.shape).astype(np.float32)
        for part in parts
        for entry in entries(FORMATS["keras_bert"].table, part, of.encoder, of.head)
    }


def parts_of(task: str | None) -> tuple[str, ...]:
    """The parts of a network, written out by hand."""
    of_head = {None: (), "tag": ("logits",), "span": ("logits",)}
    return ("encoder", *of_head.get(task, ("pooler", "logits")))


def read_again(folder: Path) -> tuple[Contents, dict[str, np.ndarray]]:
    found, said = formats.read(folder)
    matched = formats.match(folder, found, said)
    return matched.contents, formats.read_weights(folder, matched)


def refused(call, *arguments) -> str:
    """The one line with which a call refuses."""
    with pytest.raises(CheckpointError) as error:
        call(*arguments)
    message = str(error.value)
    assert "\n" not in message
    assert error.value.exit_code == 5
    return message


# === Tables ===


@pytest.mark.parametrize("name", list(FORMATS))
@pytest.mark.parametrize("task", [None, *TASKS])
def test_every_row_leads_there_and_back(name, task):
    of, table = contents(task), FORMATS[name].table
    seen = set()
    for part in PARTS:
        for entry in entries(table, part, of.encoder, of.head):
            x = np.arange(np.prod(entry.shape), dtype=np.float32).reshape(entry.shape)
            there = entry.transform(x, entry.stored)
            assert there.shape == entry.stored
            np.testing.assert_array_equal(entry.transform(there, entry.shape), x)
            assert entry.name not in seen
            seen.add(entry.name)
            assert "{" not in entry.name + entry.path


@pytest.mark.parametrize("name", list(FORMATS))
def test_a_table_names_the_encoder_and_what_is_trained_with_it(name):
    of = contents("classify")
    named = {part: len(list(entries(FORMATS[name].table, part, of.encoder, of.head))) for part in PARTS}
    wanted = {"encoder": 37, "pooler": 2, "masked_lm": 5, "next_sentence": 2, "readout": 0, "dense": 0, "logits": 2}
    if name == "garden":
        wanted["logits"] = 0
    if name == "keras_hub":
        wanted["next_sentence"] = 0
    assert named == wanted
    unnamed = HeadConfig(labels=("a", "b"), layers="mix")
    assert len(list(entries(FORMATS[name].table, "readout", of.encoder, unnamed))) == 2 * (name == "keras_bert")
    dense = {"dense_units": (3, 4), "dense_activations": ("tanh", "tanh"), "dense_biases": (True, False)}
    found = list(entries(FORMATS[name].table, "dense", of.encoder, HeadConfig(task="embed", **dense)))
    assert len(found) == (3 if name in ("keras_bert", "hf") else 0)


def test_names_and_shapes_are_those_of_published_models():
    """BERT-Base Chinese of Google: every name and every shape, the heads of pre-training included."""
    folder = shared("checkpoints/index_only/chinese_L-12_H-768_A-12")
    said = json.loads((folder / "bert_config.json").read_text("utf-8"))
    from keras_bert.checkpoints.formats.settings import read_encoder

    encoder = read_encoder(folder / "bert_config.json", "gelu_tanh")[0]
    assert (encoder.num_layers, encoder.vocab_size) == (said["num_hidden_layers"], said["vocab_size"])
    published = {
        name.removeprefix("bert/"): tuple(shape)
        for name, shape in tf.train.list_variables(str(folder / "bert_model.ckpt"))
    }
    ours = {
        e.name: e.stored
        for part in PARTS
        for e in entries(FORMATS["tf1"].table, part, encoder, None)
        if part != "logits"
    }
    assert ours == published
    assert len(published) == 206


# === pytorch_model.bin ===


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


DICT = name("collections", "OrderedDict") + b")R"


def tensor(shape=(2, 3), strides=(3, 1), key="0", items=6, kind="FloatStorage", offset=0) -> bytes:
    storage = b"(" + text("storage") + name("torch", kind) + text(key) + text("cpu") + number(items) + b"tQ"
    rebuilt = storage + number(offset) + numbers(*shape) + numbers(*strides) + b"\x89" + DICT
    return name("torch._utils", "_rebuild_tensor_v2") + b"(" + rebuilt + b"tR"


def state(*items: tuple[str, bytes], after: bytes = b"") -> bytes:
    return b"\x80\x02" + DICT + b"(" + b"".join(text(key) + value for key, value in items) + b"u" + after + b"."


VALUES = np.arange(6, dtype=np.float32)


def torch_zip(file: Path, description: bytes, compression=zipfile.ZIP_STORED, **members: bytes) -> Path:
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", description)
        for key, data in ({"data/0": VALUES.tobytes()} | members).items():
            archive.writestr(f"archive/{key}", data)
    return file


def test_tensors_of_a_torch_file(tmp_path):
    file = torch_zip(
        tmp_path / "a.bin",
        state(
            ("plain", tensor()),
            ("turned", tensor((3, 2), (1, 3))),
            ("part", tensor((2,), (2,), offset=1)),
            ("none", tensor((0, 4), (4, 1))),
            ("scalar", tensor((), ())),
            after=b"}" + text("_metadata") + DICT + b"sb",
        ),
        version=b"3\n",
        byteorder=b"little",
    )
    found = {key: value.read() for key, value in read_torch(file).items()}
    np.testing.assert_array_equal(found["plain"], VALUES.reshape(2, 3))
    np.testing.assert_array_equal(found["turned"], VALUES.reshape(2, 3).T)
    np.testing.assert_array_equal(found["part"], [1, 3])
    assert found["none"].shape == (0, 4)
    assert found["scalar"] == 0
    assert {value.dtype for value in found.values()} == {np.dtype("float32")}


def test_a_real_torch_file():
    file = shared("checkpoints/hf_ner_bert_L-1_H-16/pytorch_model.bin")
    found = read_torch(file)
    assert len(found) == 24
    with zipfile.ZipFile(file) as archive:
        flat = np.frombuffer(archive.read("archive/data/1"), "<f4")
    np.testing.assert_array_equal(found["bert.embeddings.word_embeddings.weight"].read(), flat.reshape(402, 16))
    assert found["bert.embeddings.position_ids"].dtype == "int64"
    np.testing.assert_array_equal(found["bert.embeddings.position_ids"].read(), np.arange(16)[None])


def torch_before_zip(description: bytes, keys: bytes = text("0"), items: int = 6, machine: bytes = b"\x88") -> bytes:
    """The layout before PyTorch 1.6, written out by hand."""
    magic = b"\x80\x02\x8a\x0a" + 0x1950A86A20F9469CFC6C.to_bytes(10, "little") + b"."
    said = b"\x80\x02}(" + text("little_endian") + machine + text("type_sizes") + b"}u."
    return (
        magic + b"\x80\x02M" + struct.pack("<H", 1001) + b"." + said + description
        + b"\x80\x02](" + keys + b"e." + struct.pack("<q", items) + VALUES.tobytes()
    )  # fmt: skip


OLD = tensor().replace(b"tQ", b"NtQ")


def test_a_torch_file_before_zip_archives(tmp_path):
    file = tmp_path / "a.bin"
    file.write_bytes(torch_before_zip(state(("plain", OLD), ("turned", tensor((3, 2), (1, 3)).replace(b"tQ", b"NtQ")))))
    found = {key: value.read() for key, value in read_torch(file).items()}
    np.testing.assert_array_equal(found["plain"], VALUES.reshape(2, 3))
    np.testing.assert_array_equal(found["turned"], VALUES.reshape(2, 3).T)


OLD_FAULTS = {
    "cut off": (torch_before_zip(state(("a", OLD)))[:-1], "is cut off"),
    "another length": (torch_before_zip(state(("a", OLD)), items=5), "a storage has 5 numbers where 6 are described$"),
    "other keys": (torch_before_zip(state(("a", OLD)), text("1")), "not that of its tensors$"),
    "a key twice": (torch_before_zip(state(("a", OLD)), text("0") * 2), "not that of its tensors$"),
    "keys that are lists": (torch_before_zip(state(("a", OLD)), b"]"), "not that of its tensors$"),
    "big endian": (torch_before_zip(state(("a", OLD)), machine=b"\x89"), "is not of little-endian byte order"),
    "a call": (
        torch_before_zip(state(("a", name("os", "system") + b"(" + text("echo") + b"tR"))),
        "calls 'os system'; it holds more than tensors",
    ),
    "a view": (
        torch_before_zip(state(("a", tensor().replace(b"tQ", text("v") + b"tQ")))),
        "is no storage; it holds more than tensors$",
    ),
    "a pickle": (b"\x80\x02cos\nsystem\n.", "is not a file of PyTorch$"),
}


@pytest.mark.parametrize("fault", list(OLD_FAULTS))
def test_faults_of_a_torch_file_before_zip_archives(fault, tmp_path):
    content, message = OLD_FAULTS[fault]
    (tmp_path / "a.bin").write_bytes(content)
    assert re.search(message, refused(read_torch, tmp_path / "a.bin"))


@pytest.mark.slow
def test_torch_itself_agrees(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed (extra peers)")
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 7
    tensors = {
        "float": base, "double": base.double(), "half": base.half(), "bfloat": base.bfloat16(), "long": base.long(),
        "view": base[1:3, ::2], "turned": base.T, "bool": base > 1, "parameter": torch.nn.Parameter(base).data,
    }  # fmt: skip
    torch.save(tensors, tmp_path / "a.bin")
    found = read_torch(tmp_path / "a.bin")
    assert set(found) == set(tensors)
    for key, value in tensors.items():
        np.testing.assert_array_equal(found[key].read(), value.float().numpy(), err_msg=key)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    torch.save(model.state_dict(), tmp_path / "b.bin")
    for key, value in read_torch(tmp_path / "b.bin").items():
        np.testing.assert_array_equal(value.read(), model.state_dict()[key].numpy())
    torch.save(model, tmp_path / "c.bin")
    assert "it holds more than tensors" in refused(read_torch, tmp_path / "c.bin")
    torch.save(tensors, tmp_path / "d.bin", _use_new_zipfile_serialization=False)
    for key, value in read_torch(tmp_path / "d.bin").items():
        np.testing.assert_array_equal(value.read(), tensors[key].float().numpy(), err_msg=key)
    torch.save(dict(model.named_parameters()), tmp_path / "e.bin", _use_new_zipfile_serialization=False)
    np.testing.assert_array_equal(read_torch(tmp_path / "e.bin")["0.bias"].read(), model[0].bias.detach().numpy())
    torch.save(model, tmp_path / "f.bin", _use_new_zipfile_serialization=False)
    assert "it holds more than tensors" in refused(read_torch, tmp_path / "f.bin")


DEEP = b"(" * 50_000 + b"t" * 50_000
TORCH_FAULTS = {
    "a call": (state(("a", name("os", "system") + b"(" + text("echo") + b"tR")), "calls 'os system'; it holds more"),
    "a call by stack": (
        b"\x80\x04" + text("os") + text("system") + b"\x93(" + text("touch HERE") + b"tR.", "calls 'os system'"),
    "eval": (b"\x80\x02" + name("builtins", "eval") + b"(" + text("1") + b"tR.", "calls 'builtins eval'"),
    "an object": (b"\x80\x02(" + text("x") + b"ios\nsystem\n.", "uses INST"),
    "a new object": (b"\x80\x02" + name("os", "system") + b")\x81.", "uses NEWOBJ"),
    "an extension": (b"\x80\x02\x82\x01.", "uses EXT1"),
    "a text id": (b"\x80\x02Pstorage\n.", "uses PERSID"),
    "the state of a tensor": (b"\x80\x02" + tensor() + b"}b.", "sets the state of an object"),
    "a list": (b"\x80\x02].", "something else than a dict of tensors$"),
    "a list that is none": (b"\x80\x02}K\x01a.", "appends to what is no list$"),
    "another storage": (state(("a", tensor(kind="QInt8Storage"))), "'torch QInt8Storage' is not read$"),
    "a storage from elsewhere": (
        state(("a", tensor().replace(b"ctorch\nFloat", b"cother\nFloat"))), "a storage of kind 'other FloatStorage'"),
    "a key that climbs": (state(("a", tensor(key="../data/0"))), "a storage of kind"),
    "no bytes": (state(("a", tensor(key="7"))), "has no bytes for a$"),
    "more bytes than there are": (state(("a", tensor(items=7))), "holds 24 bytes for a, which needs 28$"),
    "beyond its bytes": (state(("a", tensor(shape=(2, 4)))), "a reaches beyond its bytes$"),
    "an offset": (state(("a", tensor(offset=1))), "a reaches beyond its bytes$"),
    "an offset before": (state(("a", tensor(offset=-1))), "does not fit its storage$"),
    "expanded": (state(("a", tensor((2**20, 2**20), (0, 0)))), "a reaches beyond its bytes$"),
    "a negative stride": (state(("a", tensor(strides=(-3, 1)))), "not made of whole numbers$"),
    "a deep shape": (state(("a", tensor().replace(numbers(2, 3), DEEP))), "not made of whole numbers$"),
    "shape and strides": (state(("a", tensor(strides=(1,)))), "does not fit its storage$"),
    "a tensor alone": (b"\x80\x02" + tensor() + b".", "something else than a dict of tensors$"),
    "a number": (state(("a", number(3))), "something else than a dict of tensors$"),
    "nothing": (b"\x80\x02.", "something else than a dict of tensors$"),
    "empty": (b"", "broken description of tensors"),
    "cut off": (state(("a", tensor()))[:-30], "broken description of tensors"),
    "a mark too few": (b"\x80\x02}u.", "takes what is not there$"),
    "below the stack": (b"\x80\x02R.", "takes what is not there$"),
    "unknown memory": (b"\x80\x02h\x05.", "broken description of tensors"),
    "items of a number": (b"\x80\x02K\x01K\x01K\x01s.", "what is no dict$"),
    "a name that is a tuple": (b"\x80\x02}))s.", "a name is a tuple$"),
}  # fmt: skip


@pytest.mark.parametrize("fault", list(TORCH_FAULTS))
def test_a_torch_file_that_holds_more_than_tensors(fault, tmp_path, monkeypatch):
    import os

    description, message = TORCH_FAULTS[fault]
    monkeypatch.setattr(os, "system", lambda *_: pytest.fail("code of the file was executed"))
    file = torch_zip(tmp_path / "a.bin", description)
    assert re.search(message, refused(read_torch, file))
    assert list(tmp_path.iterdir()) == [file]


def test_archives_that_are_none_of_torch(tmp_path):
    file = tmp_path / "a.bin"
    good = state(("a", tensor()))
    torch_zip(file, good, zipfile.ZIP_DEFLATED, **{"data/1": bytes(1 << 20)})
    assert "is compressed, which PyTorch never does" in refused(read_torch, file)
    torch_zip(file, good, byteorder=b"big")
    assert "is not of little-endian byte order" in refused(read_torch, file)
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(file, "a") as archive:
        archive.writestr("archive/data/0", b"other")
    assert "twice" in refused(read_torch, file)
    torch_zip(file, good)
    data = file.read_bytes()
    for cut in (10, 200, len(data) - 1):
        file.write_bytes(data[:cut])
        assert "broken (" in refused(read_torch, file)
    file.write_bytes(data.replace(VALUES.tobytes(), VALUES[::-1].tobytes()))
    assert "broken (Bad CRC" in refused(read_torch(file)["a"].read)
    file.write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")
    assert "broken description of tensors" in refused(read_torch, file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x.txt", "x")
    assert "has no data.pkl" in refused(read_torch, file)
    assert "No such file" in refused(read_torch, tmp_path / "b.bin")


# === safetensors ===


def safetensors(header: object, data: bytes = b"") -> bytes:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(content)) + content + data


def part(begin: int, end: int, shape=(2,), dtype="F32") -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 7,
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 200_000_000) + b"{}",
        safetensors(b"[" * 100_000),
        safetensors(b"not json"),
        safetensors({"a": part(0, 8), "b": part(4, 12)}, bytes(12)),
        safetensors({"a": part(0, 8), "b": part(12, 20)}, bytes(20)),
        safetensors({"a": part(0, 8)}, bytes(4)),
        safetensors({"a": part(0, 8)}, bytes(12)),
        safetensors({"a": part(0, 8, (3,))}, bytes(8)),
        safetensors({"a": part(0, 8, (2**62, 2**62))}, bytes(8)),
        safetensors({"a": part(0, 8, dtype="F31")}, bytes(8)),
        safetensors({"a": part(8, 0)}, bytes(8)),
    ],
    ids=[
        "empty",
        "short",
        "huge",
        "large",
        "deep",
        "no-json",
        "overlap",
        "gap",
        "cut",
        "long",
        "shape",
        "absurd",
        "type",
        "backwards",
    ],
)
def test_safetensors_that_lie(content, tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    assert "broken or not a safetensors file" in refused(containers.read_safetensors, file)


def test_safetensors_of_another_type(tmp_path):
    (tmp_path / "a").write_bytes(safetensors({"a": part(0, 2, dtype="F8_E4M3")}, bytes(2)))
    stored = containers.read_safetensors(tmp_path / "a")["a"]
    assert "broken or not a safetensors file" in refused(stored.read)


# === HDF5 ===


def test_hdf5_there_and_back(tmp_path):
    tensors = {"layers/a/vars/0": np.eye(3, dtype="f4"), "vars/0": np.arange(2, dtype="f4")}
    containers.write_h5(tmp_path / "a.h5", tensors, {"layers/a/vars": "first"})
    found = containers.read_h5(tmp_path / "a.h5")
    assert {key: value.shape for key, value in found.items()} == {"layers/a/vars/0": (3, 3), "vars/0": (2,)}
    for key, value in tensors.items():
        np.testing.assert_array_equal(found[key].read(), value)
    with h5py.File(tmp_path / "a.h5") as h5:
        assert h5["layers/a/vars"].attrs["name"] == "first"


def external_link(h5: h5py.File, folder: Path) -> None:
    h5["layers"] = h5py.ExternalLink(str(folder / "secret.h5"), "/vars")


def soft_link(h5: h5py.File, folder: Path) -> None:
    h5["vars/1"] = h5py.SoftLink("/vars/0")


def external_storage(h5: h5py.File, folder: Path) -> None:
    h5.create_dataset("vars/1", (2,), "f4", external=[(str(folder / "secret.h5"), 0, 8)])


def virtual(h5: h5py.File, folder: Path) -> None:
    layout = h5py.VirtualLayout((2,), "f4")
    layout[:] = h5py.VirtualSource(str(folder / "secret.h5"), "vars/0", (2,))
    h5.create_virtual_dataset("vars/1", layout)


def huge(h5: h5py.File, folder: Path) -> None:
    h5.create_dataset("vars/1", (2**40, 2**20), "f4", chunks=(1024, 1024))


def compressed(h5: h5py.File, folder: Path) -> None:
    h5.create_dataset("vars/1", data=np.zeros((4096, 1024), "f4"), compression="gzip")


def strings(h5: h5py.File, folder: Path) -> None:
    h5.create_dataset("vars/1", data=[b"a", b"b"])


def named_type(h5: h5py.File, folder: Path) -> None:
    h5["vars/1"] = np.dtype("f4")


def deep(h5: h5py.File, folder: Path) -> None:
    h5.create_group("/".join("abcdefghijklmnopqrstuvw"))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (external_link, r"layers is a link \(ExternalLink\)"),
        (soft_link, r"vars/1 is a link \(SoftLink\)"),
        (external_storage, "the values of vars/1 lie in another file"),
        (virtual, "the values of vars/1 lie in another file"),
        (huge, r"vars/1 declares \(1099511627776, 1048576\), which is .* bytes, but the file holds 0 for it"),
        (
            compressed,
            r"vars/1 declares \(4096, 1024\), which is 16,777,216 bytes, but the file holds [\d,]{5,6} for it",
        ),
        (strings, r"vars/1 holds object, not numbers"),
        (named_type, "vars/1 is a Datatype"),
        (deep, "nested deeper"),
    ],
)
def test_hdf5_that_points_elsewhere(fault, message, tmp_path):
    import re

    with h5py.File(tmp_path / "secret.h5", "w") as h5:
        h5["vars/0"] = np.ones(2, "f4")
    with h5py.File(tmp_path / "a.h5", "w") as h5:
        h5["vars/0"] = np.ones(2, "f4")
        fault(h5, tmp_path)
    assert re.search(message, refused(containers.read_h5, tmp_path / "a.h5"))


@pytest.mark.parametrize("keep", [0, 10, 1000, 2100])
def test_hdf5_cut_off(keep, tmp_path):
    containers.write_h5(tmp_path / "a.h5", {"vars/0": np.ones(100, "f4")}, {})
    data = (tmp_path / "a.h5").read_bytes()
    (tmp_path / "a.h5").write_bytes(data[:keep])
    assert "broken or not an HDF5 file" in refused(containers.read_h5, tmp_path / "a.h5")


# === Each format, written and read ===


HOLDS = {
    "keras_bert": ["encoder", "pooler", "masked_lm", "next_sentence", "logits"],
    "hf": ["encoder", "pooler", "masked_lm", "next_sentence", "logits"],
    "tf1": ["encoder", "pooler", "masked_lm", "next_sentence", "logits"],
    "garden": ["encoder", "pooler", "masked_lm", "next_sentence"],
    "keras_hub": ["encoder", "pooler", "logits"],
}


@pytest.mark.parametrize("name", list(FORMATS))
def test_all_a_format_holds_is_read_as_it_was_written(name, tmp_path):
    of = contents("classify")
    all_parts = weights(of, *HOLDS["keras_bert"])
    held = FORMATS[name].holds(of, set(HOLDS["keras_bert"]))
    assert held == set(HOLDS[name])
    values = weights(of, *held)
    FORMATS[name].write(tmp_path, of, values)
    said, again = read_again(tmp_path)
    assert again.keys() == values.keys() <= all_parts.keys()
    for path, value in values.items():
        assert again[path].dtype == np.float32
        assert again[path].tobytes() == value.tobytes(), path
    assert said.vocabulary == WORDS
    assert said.encoder.num_layers == 2
    assert (said.encoder.activation, of.encoder.activation) == ("gelu_tanh", "gelu_tanh")


def test_a_preset_has_one_task():
    both = {"encoder", "pooler", "masked_lm", "next_sentence", "logits"}
    hub = FORMATS["keras_hub"]
    assert hub.holds(contents(), both - {"logits"}) == {"encoder", "pooler", "masked_lm"}
    assert hub.holds(contents("tag"), both) == {"encoder", "pooler", "masked_lm"}
    assert hub.holds(contents("regress"), both) == {"encoder", "pooler", "logits"}


ARCHITECTURES = {
    **dict.fromkeys(("classify", "multilabel", "regress"), "BertForSequenceClassification"),
    "tag": "BertForTokenClassification",
    "span": "BertForQuestionAnswering",
    "choice": "BertForMultipleChoice",
}


@pytest.mark.parametrize("task", list(TASKS))
def test_heads_of_hugging_face(task, tmp_path):
    of = contents(task)
    FORMATS["hf"].write(tmp_path, of, weights(of, *parts_of(task)))
    assert read_again(tmp_path)[0].head == of.head
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert config["architectures"] == [ARCHITECTURES[task]]
    number = {"span": 2, "choice": 1, "regress": 1, "tag": 5}.get(task, len(TASKS[task]))
    assert config["id2label"].keys() == {str(i) for i in range(number)}
    if task == "tag":
        assert list(config["id2label"].values()) == ["O", "B-place", "I-place", "B-person", "I-person"]
    names = containers.read_safetensors(tmp_path / "model.safetensors")
    assert {n.split(".")[0] for n in names} == {"bert", "qa_outputs" if task == "span" else "classifier"}


@pytest.mark.parametrize("parts", [[], ["masked_lm"], ["next_sentence"], ["masked_lm", "next_sentence"]])
def test_the_class_that_hugging_face_is_told(parts, tmp_path):
    of = contents()
    FORMATS["hf"].write(tmp_path, of, weights(of, "encoder", "pooler", *parts))
    name = {0: "BertModel", 2: "BertForPreTraining"}.get(len(parts)) or {
        "masked_lm": "BertForMaskedLM", "next_sentence": "BertForNextSentencePrediction"}[parts[0]]  # fmt: skip
    assert json.loads((tmp_path / "config.json").read_text("utf-8"))["architectures"] == [name]
    prefixed = any(n.startswith("bert.") for n in containers.read_safetensors(tmp_path / "model.safetensors"))
    assert prefixed == bool(parts)


def test_heads_of_google(tmp_path):
    for task, kept in {"classify": HeadConfig(labels=("0", "1", "2")), "span": HeadConfig(task="span"),
                       "regress": HeadConfig(task="regress")}.items():  # fmt: skip
        of = contents(task)
        folder = tmp_path / task
        folder.mkdir()
        FORMATS["tf1"].write(folder, of, weights(of, "encoder", "pooler", "logits"))
        assert read_again(folder)[0].head == kept
        names = {n for n, _ in tf.train.list_variables(str(folder / "bert_model.ckpt"))}
        assert {"bert/pooler/dense/kernel", "cls/squad/output_bias" if task == "span" else "output_bias"} <= names


# === Model Garden: found by what objects are made of ===


def saved(folder: Path, of: Contents, **roots) -> None:
    """A checkpoint with other words at its root than ours."""
    values = weights(of, "encoder", "pooler", "masked_lm", "next_sentence")
    FORMATS["garden"].write(folder, of, values)
    bundle = containers.Bundle(containers.find_bundle(folder))
    objects = bundle.objects()
    nodes: dict[int, tf.train.Checkpoint | tf.Variable] = {}

    def build(node: int) -> tf.train.Checkpoint | tf.Variable:
        if node not in nodes:
            if objects.keys[node]:
                nodes[node] = tf.Variable(bundle.value(objects.keys[node]))
            else:
                nodes[node] = tf.train.Checkpoint()
                for word, child in objects.children[node].items():
                    setattr(nodes[node], word, build(child))
        return nodes[node]

    root = {word: build(child) for word, child in objects.children[0].items() if word != "save_counter"}
    for file in folder.glob("bert_model*"):
        file.unlink()
    tf.train.Checkpoint(**{word: root[was] for word, was in roots.items()}).save(str(folder / "bert_model.ckpt"))


@pytest.mark.parametrize(
    ("roots", "heads"),
    [
        ({"model": "model"}, {"pooler", "masked_lm", "next_sentence"}),
        ({"anything": "model", "encoder": "encoder"}, {"pooler", "masked_lm", "next_sentence"}),
        ({"encoder": "encoder"}, {"pooler"}),
        ({"encoder": "encoder", "masked_lm": "masked_lm", "next_sentence.pooler_dense": "next_sentence.pooler_dense"},
         {"pooler", "masked_lm"}),
    ],
)  # fmt: skip
def test_the_words_at_the_root_do_not_matter(roots, heads, tmp_path):
    of = contents()
    saved(tmp_path, of, **roots)
    _, again = read_again(tmp_path)
    wanted = weights(of, "encoder", "pooler", "masked_lm", "next_sentence")
    kept = weights(of, "encoder", *heads)
    assert again.keys() == kept.keys()
    for path in kept:
        np.testing.assert_array_equal(again[path], wanted[path])


def test_the_pooler_of_the_heads_is_the_trained_one(tmp_path):
    of = contents()
    values = weights(of, "encoder", "pooler", "next_sentence")
    other = np.full((16, 16), 7, np.float32)
    roots = {}
    monkey = containers.write_objects

    def two_poolers(prefix, tree):
        tree["encoder"]["_pooler_layer"]["kernel"] = other
        roots.update(tree)
        monkey(prefix, tree)

    formats.garden.write_objects, before = two_poolers, formats.garden.write_objects
    try:
        FORMATS["garden"].write(tmp_path, of, values)
    finally:
        formats.garden.write_objects = before
    found, said = formats.read(tmp_path)
    matched = formats.match(tmp_path, found, said)
    again = formats.read_weights(tmp_path, matched)
    np.testing.assert_array_equal(again["head/pooler/dense/kernel"], values["head/pooler/dense/kernel"])
    assert any("_pooler_layer/kernel" in key for key, _ in matched.listed)
    assert roots.keys() == {"encoder", "model", "next_sentence.pooler_dense"}


def test_names_as_a_training_loop_gives_them(tmp_path):
    """`ckpt-7`, an encoder that is the root itself, and an optimizer's variables beside it."""
    of = contents()
    values = weights(of, "encoder", "pooler")
    FORMATS["garden"].write(tmp_path, of, values)
    for old in tmp_path.glob("bert_model.ckpt-1.*"):
        old.rename(old.with_name(old.name.replace("bert_model.ckpt-1", "ckpt-7")))
    assert formats.detect(tmp_path).name == "garden"
    assert read_again(tmp_path)[1].keys() == values.keys()

    bundle = containers.Bundle(tmp_path / "ckpt-7")
    objects = bundle.objects()

    def build(node: int, target: tf.train.Checkpoint) -> tf.train.Checkpoint:
        for word, child in objects.children[node].items():
            key = objects.keys[child]
            setattr(target, word, tf.Variable(bundle.value(key)) if key else build(child, tf.train.Checkpoint()))
        return target

    root = build(objects.children[0]["encoder"], tf.train.Checkpoint())
    root.optimizer = tf.train.Checkpoint(iterations=tf.Variable(3))
    for file in tmp_path.glob("ckpt-7.*"):
        file.unlink()
    root.save(str(tmp_path / "ckpt"))
    found, said = formats.read(tmp_path)
    matched = formats.match(tmp_path, found, said)
    again = formats.read_weights(tmp_path, matched)
    assert all(again[path].tobytes() == value.tobytes() for path, value in values.items())
    assert {name for name, _ in matched.listed} >= {"optimizer/iterations/.ATTRIBUTES/VARIABLE_VALUE"}


def test_garden_checkpoints_that_cannot_be_read(tmp_path):
    of = contents()
    FORMATS["garden"].write(tmp_path, of, weights(of, "encoder", "pooler"))
    for file in tmp_path.glob("bert_model*"):
        file.unlink()
    old = tf.train.Checkpoint(**{"layer_with_weights-0": tf.train.Checkpoint(embeddings=tf.Variable([1.0]))})
    old.save(str(tmp_path / "bert_model.ckpt"))
    assert "holds no BertEncoderV2; older layouts" in refused(read_again, tmp_path)
    for file in tmp_path.glob("bert_model*"):
        file.unlink()
    one, two = (tf.train.Checkpoint(_embedding_layer=tf.train.Checkpoint(), _transformer_layers=tf.train.Checkpoint())
                for _ in range(2))  # fmt: skip
    tf.train.Checkpoint(one=one, two=two).save(str(tmp_path / "bert_model.ckpt"))
    assert "holds 2 objects with _embedding_layer and _transformer_layers" in refused(read_again, tmp_path)
    index = next(tmp_path.glob("*.index"))
    index.write_bytes(index.read_bytes()[:100])
    assert "broken (" in refused(read_again, tmp_path) or "holds no" in refused(read_again, tmp_path)
