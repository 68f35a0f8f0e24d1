"""Handles of hubs: what is found on this machine, what a download keeps, and what is said when it cannot be."""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import shared
from safetensors.numpy import save

from keras_bert.checkpoints import hub
from keras_bert.checkpoints.checkpoints import open_checkpoint
from keras_bert.checkpoints.hub import KNOWN, check, parse, record, resolve
from keras_bert.errors import CheckpointError

SHA = "0123456789abcdef0123456789abcdef01234567"
MINIATURE = "bert_uncased_L-2_H-128_A-2"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever opens a socket fails the test."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def files(tiny_checkpoint: Path) -> dict[str, bytes]:
    """A repository with a checkpoint, and with what must not come from a hub."""
    found = {path.name: path.read_bytes() for path in tiny_checkpoint.iterdir()}
    return found | {
        "tokenizer_config.json": b'{"do_lower_case": true}',
        "pytorch_model.bin": b"pickle",
        "modeling.py": b"raise SystemExit",
        "onnx/model.onnx": b"onnx",
        "1_Pooling/config.json": b"{}",
        "README.md": b"# Model",
        "rust_model.ot": b"rust",
    }


WANTED = {"config.json", "vocab.txt", "tokenizer_config.json", "model.safetensors", "1_Pooling/config.json"}


def test_a_directory_of_sentence_transformers_comes_whole(home, tiny_checkpoint, files):
    base = {f"0_Transformer/{name}": files[name] for name in ("config.json", "vocab.txt", "model.safetensors")}
    rows = [("", "0_Transformer", "Transformer"), ("", "1_Pooling", "Pooling"), ("", "2_Dense", "Dense")]
    listed = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for _, path, kind in rows]
    more = {
        "modules.json": json.dumps(listed).encode(),
        "config_sentence_transformers.json": b"{}",
        "0_Transformer/sentence_bert_config.json": b'{"max_seq_length": 12}',
        "1_Pooling/config.json": b"{}",
        "2_Dense/config.json": b'{"in_features": 16, "out_features": 4}',
        "2_Dense/model.safetensors": save({"linear.weight": np.ones((4, 16), "f"), "linear.bias": np.ones(4, "f")}),
    }
    sent = base | more | {"2_Dense/pytorch_model.bin": b"pickle", "onnx/config.json": b"{}", "README.md": b"#"}
    folder = resolve("hf://org/name", home=home, client=HuggingFace(sent), mounts=home)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names == {*base, *more, "hub.json"}
    found = open_checkpoint(folder)
    assert (found.text.max_seq_length, found.vectors.dense_units) == (12, (4,))
    (folder / "2_Dense/model.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match=r"2_Dense/model\.safetensors"):
        resolve("hf://org/name", home=home, mounts=home)


class HuggingFace:
    """As much of the client as is used; `sent` is what arrives, where it differs from what is stated."""

    def __init__(self, files: dict[str, bytes], sent: dict[str, bytes | None] | None = None) -> None:
        self.files, self.sent, self.calls = files, sent or {}, []

    def model_info(self, repo_id: str, *, revision: str | None, files_metadata: bool) -> SimpleNamespace:
        assert files_metadata
        self.calls.append(("model_info", repo_id, revision))
        siblings = []
        for name, data in self.files.items():
            lfs = SimpleNamespace(sha256=hashlib.sha256(data).hexdigest()) if name.endswith("safetensors") else None
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            siblings.append(SimpleNamespace(rfilename=name, size=len(data), blob_id=blob, lfs=lfs))
        return SimpleNamespace(sha=SHA, siblings=siblings)

    def snapshot_download(self, repo_id, *, revision, local_dir, allow_patterns) -> str:
        self.calls.append(("snapshot_download", repo_id, revision))
        for name, data in (self.files | self.sent).items():
            if data is not None and (name in allow_patterns or name in self.sent):
                path = Path(local_dir) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        (Path(local_dir) / ".cache/huggingface").mkdir(parents=True)
        (Path(local_dir) / ".cache/huggingface/notes").write_text("x", "utf-8")
        return local_dir


class Kaggle:
    """As much of the client as is used; inside Kaggle it mounts and ignores `output_dir`."""

    def __init__(self, files: dict[str, bytes], mount: Path | None = None) -> None:
        self.files, self.mount, self.calls = files, mount, []

    def model_download(self, handle: str, output_dir: str) -> str:
        self.calls.append(handle)
        folder = self.mount or Path(output_dir)
        for name, data in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        return str(folder)


class Offline:
    """A client without a network: every call ends in an error of many lines, but for what `kept` says."""

    def __init__(self, kept: Path | None = None) -> None:
        self.kept = kept

    def model_info(self, *args: object, **kwargs: object) -> None:
        raise ConnectionError("no route\n to host")

    def snapshot_download(self, repo_id: str, *, local_files_only: bool = False, **kwargs: object) -> str:
        if self.kept is None or not local_files_only:
            raise ConnectionError("no route\n to host")
        return str(self.kept)

    def model_download(self, *args: object, **kwargs: object) -> None:
        raise ConnectionError("no route\n to host")


def refusal(*args: object, **kwargs: object) -> str:
    with pytest.raises(CheckpointError) as caught:
        resolve(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def listing(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# === On this machine ===


def test_a_directory_is_itself_and_nothing_else_is_looked_at(tiny_checkpoint, monkeypatch):
    assert resolve(tiny_checkpoint) == resolve(str(tiny_checkpoint)) == tiny_checkpoint
    monkeypatch.chdir(tiny_checkpoint.parent)
    assert resolve(tiny_checkpoint.name) == Path(tiny_checkpoint.name)


def test_a_directory_comes_before_the_name(tmp_path, monkeypatch):
    (tmp_path / "bert-base-uncased").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve("bert-base-uncased") == Path("bert-base-uncased")


FOLDERS = {
    "bert-base-uncased": "bert-base-uncased",
    MINIATURE: MINIATURE,
    f"google/{MINIATURE}": MINIATURE,
    "hf://org/name": "hf/org/name",
    "hf://org/name@main": "hf/org/name@main",
    "hf://org/name@refs/pr/1": "hf/org/name@refs--pr--1",
    "kaggle://o/m/keras/v": "kaggle/o/m/keras/v",
    "kaggle://o/m/keras/v/3": "kaggle/o/m/keras/v@3",
}


@pytest.mark.parametrize(("handle", "folder"), FOLDERS.items())
def test_a_copied_folder_is_found_by_its_name(handle, folder, home, tiny_checkpoint, monkeypatch):
    shutil.copytree(tiny_checkpoint, home / folder)
    assert resolve(handle, home=home, client=Offline()) == home / folder
    monkeypatch.setenv("KERAS_BERT_HOME", str(home))
    assert open_checkpoint(resolve(handle)).encoder.num_layers == 2


def test_a_handle_may_have_gone_through_a_path(home, tiny_checkpoint):
    shutil.copytree(tiny_checkpoint, home / "hf/org/name")
    assert resolve(Path("hf://org/name"), home=home, client=Offline()) == home / "hf/org/name"


def test_the_default_home_is_in_the_cache_of_the_user(tmp_path, tiny_checkpoint, monkeypatch):
    monkeypatch.delenv("KERAS_BERT_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    folder = tmp_path / ".cache/keras_bert/bert-base-cased"
    shutil.copytree(tiny_checkpoint, folder)
    assert resolve("bert-base-cased", client=Offline()) == folder


def test_known_names_are_repositories():
    assert len(KNOWN) == 30
    assert parse("bert-base-chinese").name == "google-bert/bert-base-chinese"
    assert parse("all-MiniLM-L6-v2").name == "sentence-transformers/all-MiniLM-L6-v2"
    assert parse("bert_uncased_L-12_H-768_A-12").name == "google/bert_uncased_L-12_H-768_A-12"
    assert parse("google/bert-base-cased") is None
    assert parse("some/path") is None


@pytest.mark.parametrize(
    "handle",
    [
        *("hf://", "hf://org", "hf://../etc/passwd", "hf://org/..", "hf://a/b/c", "hf://org/name@", "hf://org/na me"),
        *("hf://org/name@../x", "hf://org\\..\\x/name", "kaggle://o/m/f", "kaggle://o/m/f/v/x", "kaggle://o/m/f/../1"),
    ],
)
def test_what_only_begins_as_a_handle_is_refused(handle, home):
    assert "not a name of a model on a hub; write hf://org/name[@revision] or kaggle://" in refusal(handle, home=home)


@pytest.mark.parametrize("name", ["nowhere", "bert-base-uncase", "a/b/c", "", "x" * 5000])
def test_a_path_that_is_not_there_is_refused(name, home):
    message = refusal(name, home=home)
    assert "does not exist; give a directory with a checkpoint" in message
    assert "a name such as bert-base-uncased, hf://org/name" in message


def test_a_file_is_refused(tiny_checkpoint):
    assert "is a file, not a directory" in refusal(tiny_checkpoint / "vocab.txt")


def test_local_work_loads_no_client(tiny_checkpoint, home):
    shutil.copytree(tiny_checkpoint, home / "bert-base-uncased")
    code = (
        f"import sys\nfrom keras_bert.checkpoints import hub\nhub.resolve({str(tiny_checkpoint)!r})\n"
        f"hub.resolve('bert-base-uncased', home={str(home)!r})\n"
        "print(*(m for m in ('huggingface_hub', 'kagglehub', 'requests', 'httpx', 'tensorflow') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == ""


def test_what_an_installed_package_carries_is_not_downloaded(tmp_path, tiny_checkpoint, home, monkeypatch):
    shutil.copytree(tiny_checkpoint, tmp_path / "carrier_of_a_model/model")
    (tmp_path / "carrier_of_a_model/model/data_config.json").write_text("[]", "utf-8")  # of no concern
    (tmp_path / "carrier_of_a_model/__init__.py").write_text("raise SystemExit  # nobody imports it", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(hub, "PACKAGED", {"bert-base-uncased": "carrier_of_a_model", "bert-base-cased": "not_there"})
    assert resolve("bert-base-uncased", home=home, client=Offline()) == tmp_path / "carrier_of_a_model/model"
    assert not home.exists()
    shutil.copytree(tiny_checkpoint, home / "bert-base-uncased")
    assert resolve("bert-base-uncased", home=home, client=Offline()) == home / "bert-base-uncased"
    for handle in ("bert-base-cased", "hf://org/bert-base-uncased", "bert-base-uncased@main"):
        assert "bert" in refusal(handle, home=home, client=Offline())


# === Inside Kaggle ===


@pytest.mark.parametrize(
    ("handle", "places", "expected"),
    [
        ("kaggle://o/bert/Keras/tiny", ["bert/keras/tiny/2", "bert/keras/tiny/10"], "bert/keras/tiny/10"),
        ("kaggle://o/bert/keras/tiny/2", ["bert/keras/tiny/2", "bert/keras/tiny/10"], "bert/keras/tiny/2"),
        ("kaggle://o/bert/keras/tiny", ["models/o/bert/keras/tiny/1"], "models/o/bert/keras/tiny/1"),
        ("bert-base-uncased", ["bert-base-uncased"], "bert-base-uncased"),
        ("all-MiniLM-L6-v2", ["all-minilm-l6-v2"], "all-minilm-l6-v2"),
        ("bert-base-uncased", ["my-models/bert-base-uncased"], "my-models/bert-base-uncased"),
        ("bert-base-uncased", ["datasets/me/models/bert-base-uncased"], "datasets/me/models/bert-base-uncased"),
        ("bert-base-uncased", ["datasets/me/bert-base-uncased"], "datasets/me/bert-base-uncased"),
        ("hf://org/name", ["my-models/hf/org/name"], "my-models/hf/org/name"),
    ],
)
def test_what_is_mounted_is_found(handle, places, expected, tmp_path, tiny_checkpoint, home):
    for place in places:
        shutil.copytree(tiny_checkpoint, tmp_path / "input" / place)
    assert resolve(handle, home=home, mounts=tmp_path / "input", client=Offline()) == tmp_path / "input" / expected
    assert not home.exists()


def test_another_version_is_not_taken_for_it(tmp_path, tiny_checkpoint, home):
    shutil.copytree(tiny_checkpoint, tmp_path / "input/bert/keras/tiny/2")
    message = refusal("kaggle://o/bert/keras/tiny/3", home=home, mounts=tmp_path / "input", client=Offline())
    assert message.startswith("kaggle://o/bert/keras/tiny/3: is not on this machine")


def test_the_client_inside_kaggle_mounts(tmp_path, files, home):
    client, notes = Kaggle(files, mount=tmp_path / "input/x"), []
    found = resolve("kaggle://o/m/keras/v", home=home, client=client, note=notes.append)
    assert found == tmp_path / "input/x"
    assert listing(found) == set(files)  # a mount is left as it is
    assert listing(home) == set()
    assert notes == [f"kaggle://o/m/keras/v: mounted at {found}"]


# === Downloads ===


def test_a_download_keeps_only_what_is_read(home, files):
    client, notes = HuggingFace(files), []
    found = resolve("hf://org/name", home=home, client=client, note=notes.append)
    assert found == home / "hf/org/name"
    assert listing(home) == {f"hf/org/name/{name}" for name in (*WANTED, "hub.json")}
    assert [p.name for p in (home / "hf/org").iterdir()] == ["name"]  # nothing temporary is left
    assert client.calls == [("model_info", "org/name", None), ("snapshot_download", "org/name", SHA)]
    stated = record(found)
    assert stated["source"] == "hf://org/name"
    assert stated["revision"] == SHA
    assert set(stated["files"]) == WANTED
    weights = files["model.safetensors"]
    assert stated["files"]["model.safetensors"] == {"size": len(weights), "sha256": hashlib.sha256(weights).hexdigest()}
    (note,) = notes
    assert note.startswith("hf://org/name: 5 files, ")
    assert note.endswith(f"of hf://org/name (revision {SHA}) in {found}")
    assert open_checkpoint(found).text.do_lower_case
    assert resolve("hf://org/name", home=home, client=Offline()) == found  # and from now on without a network


def test_a_revision_is_asked_for(home, files):
    client = HuggingFace(files)
    assert resolve("hf://org/name@v1.0", home=home, client=client) == home / "hf/org/name@v1.0"
    assert client.calls[0] == ("model_info", "org/name", "v1.0")


def test_a_known_name_is_downloaded_under_its_name(home, files):
    client = HuggingFace(files)
    assert resolve("bert-base-uncased", home=home, client=client) == home / "bert-base-uncased"
    assert client.calls[0][1] == "google-bert/bert-base-uncased"


def test_a_client_that_sends_more_is_cleaned_up_after(home, files):
    client = HuggingFace(files, sent={"evil.py": b"x", "sub/pytorch_model.bin": b"x"})
    assert listing(resolve("hf://org/name", home=home, client=client)) == {*WANTED, "hub.json"}


def test_a_keras_hub_preset_comes_with_its_vocabulary(home):
    h5py = pytest.importorskip("h5py", reason="comes with Keras")
    home.mkdir()
    with h5py.File(home / "w.weights.h5", "w") as file:
        file["x"] = np.zeros(9)
    preset = {
        "config.json": b"{}",
        "metadata.json": b"{}",
        "tokenizer.json": b"{}",
        "model.weights.h5": (home / "w.weights.h5").read_bytes(),
        "assets/tokenizer/vocabulary.txt": b"[UNK]\n",
    }
    for handle, client in (("hf://keras/x", HuggingFace), ("kaggle://keras/bert/keras/x/2", Kaggle)):
        found = resolve(handle, home=home, client=client(preset | {"x.py": b"", "assets/x.bin": b""}))
        assert listing(found) == {*preset, "hub.json"}
    assert record(found)["revision"] == "2"
    cut = preset | {"model.weights.h5": preset["model.weights.h5"][:-100]}
    assert "model.weights.h5: broken or not an HDF5 file" in refusal("kaggle://a/b/c/d", home=home, client=Kaggle(cut))


def test_weights_in_several_forms_come_once(home, files):
    more = files | {"model.fp16.safetensors": files["model.safetensors"], "tokenizer.json": b"{}"}
    found = resolve("hf://org/name", home=home, client=HuggingFace(more))
    assert listing(found) == {*WANTED, "tokenizer.json", "hub.json"}


@pytest.mark.parametrize(
    ("name", "change", "complaint"),
    [
        ("model.safetensors", lambda data: data[:-1], "model.safetensors has "),
        ("model.safetensors", lambda data: data[:-1] + b"\xff", "is not the file that the hub states (digest)"),
        ("model.safetensors", lambda data: None, "model.safetensors did not arrive"),
        ("vocab.txt", lambda data: b"X" + data[1:], "vocab.txt is not the file that the hub states (digest)"),
        ("config.json", lambda data: b"", "config.json has 0 of "),
    ],
)
def test_a_damaged_download_is_refused_and_leaves_nothing(name, change, complaint, home, files):
    client = HuggingFace(files, sent={name: change(files[name])})
    message = refusal("hf://org/name", home=home, client=client)
    assert message.startswith("hf://org/name: ")
    assert complaint in message
    assert message.endswith("try again; nothing was kept")
    assert list((home / "hf/org").iterdir()) == []
    assert resolve("hf://org/name", home=home, client=HuggingFace(files)).is_dir()  # the next try is not poisoned


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_weights_that_are_cut_off_at_the_hub_are_refused(keep, home, files):
    """The hub states what it has, but the file's own header says more."""
    broken = files | {"model.safetensors": files["model.safetensors"][:keep]}
    for handle, client in (("hf://org/name", HuggingFace), ("kaggle://o/m/f/v", Kaggle)):
        message = refusal(handle, home=home, client=client(broken))
        assert "model.safetensors: broken or not a safetensors file" in message
    assert listing(home) == set()


def test_torch_weights_are_fetched_where_there_are_no_others(home):
    folder = shared("cases/checkpoints/a07_bert_tiny_old/ckpt")
    files = {path.name: path.read_bytes() for path in folder.iterdir()} | {"evil.bin": b"x", "training_args.bin": b"x"}
    found = resolve("hf://a/b", home=home, client=HuggingFace(files))
    assert {path.name for path in found.iterdir()} == {"config.json", "vocab.txt", "pytorch_model.bin", "hub.json"}
    assert open_checkpoint(found).encoder.hidden_dim == 32
    modules = [{"path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}]
    deeper = {f"0_Transformer/{name}": data for name, data in files.items()}
    deeper |= {"modules.json": json.dumps(modules).encode(), "2_Dense/model.safetensors": save({"a": np.ones(1, "f")})}
    found = resolve("hf://a/c", home=home, client=HuggingFace(deeper))
    assert {path.name for path in (found / "0_Transformer").iterdir()} == {
        "config.json",
        "vocab.txt",
        "pytorch_model.bin",
    }
    assert (found / "2_Dense/model.safetensors").exists(), "each folder has weights of its own"


def test_weights_that_cannot_be_read_are_not_fetched(home, files):
    del files["model.safetensors"]
    message = refusal(MINIATURE, home=home, client=HuggingFace(files))
    assert message.startswith(f"{MINIATURE}: pytorch_model.bin: is not a file of PyTorch; try again")
    del files["pytorch_model.bin"]
    message = refusal(MINIATURE, home=home, client=HuggingFace(files))
    assert message.startswith(
        f"{MINIATURE}: has no config.json with *.safetensors or pytorch_model.bin on the Hugging "
    )
    assert f"convert other weights into {home / MINIATURE}" in message
    assert "no config.json" in refusal("hf://a/b", home=home, client=HuggingFace({"README.md": b""}))
    assert "has none of keras_bert.json" in refusal("kaggle://a/b/c/d", home=home, client=Kaggle({"x.pb": b""}))
    assert listing(home) == set()


def test_a_download_that_stops_leaves_nothing(home, files):
    class Stopped(HuggingFace):
        def snapshot_download(self, repo_id, *, local_dir, **kwargs):
            (Path(local_dir) / "model.safetensors").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resolve("hf://org/name", home=home, client=Stopped(files))
    assert list((home / "hf/org").iterdir()) == []


def test_of_two_downloads_at_once_one_stays(home, files):
    class Second(HuggingFace):
        """While this one downloads, another process finishes."""

        def snapshot_download(self, *args, **kwargs):
            resolve("hf://org/name", home=home, client=HuggingFace(self.files))
            return super().snapshot_download(*args, **kwargs)

    assert check(resolve("hf://org/name", home=home, client=Second(files))) is None
    assert [p.name for p in (home / "hf/org").iterdir()] == ["name"]


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows has other permissions")
def test_a_home_that_cannot_be_written_is_said(tmp_path, files):
    (tmp_path / "file").write_text("", "utf-8")
    message = refusal("hf://org/name", home=tmp_path / "file", client=HuggingFace(files))
    assert "cannot be written (" in message
    assert message.endswith("name another folder in $KERAS_BERT_HOME")


# === Broken folders ===


def damage(folder: Path, what: str) -> None:
    path = folder / "model.safetensors"
    if what == "missing":
        path.unlink()
    elif what == "cut":
        path.write_bytes(path.read_bytes()[:-5])
    elif what == "other":
        path.write_bytes(save({"x": np.zeros(3, np.float32)}))
    elif what == "config":
        (folder / "config.json").unlink()
    elif what == "json":
        (folder / "tokenizer_config.json").write_text('{"do_lower', "utf-8")
    elif what == "record":
        (folder / "hub.json").write_text(json.dumps({"files": 3}), "utf-8")


@pytest.mark.parametrize(
    ("what", "complaint"),
    [
        ("missing", "model.safetensors: is missing, but "),
        ("cut", "model.safetensors: has "),
        ("other", "model.safetensors: has "),
        ("config", "has none of keras_bert.json, config.json, bert_config.json"),
        ("json", "tokenizer_config.json: has "),
        ("record", "hub.json: broken (KeyError: 'source')"),
    ],
)
def test_a_folder_that_was_damaged_later_is_refused(what, complaint, home, files):
    found = resolve("hf://org/name", home=home, client=HuggingFace(files))
    damage(found, what)
    message = refusal("hf://org/name", home=home, client=Offline())
    assert message.startswith(str(found))
    assert complaint in message
    assert "delete the folder to download it again" in message


@pytest.mark.parametrize(
    ("what", "complaint"),
    [("cut", "model.safetensors: broken or not a safetensors file"), ("json", "tokenizer_config.json: not valid JSON")],
)
def test_a_copied_folder_that_is_cut_off_is_refused(what, complaint, home, tiny_checkpoint):
    shutil.copytree(tiny_checkpoint, home / "bert-base-cased")
    damage(home / "bert-base-cased", what)
    assert complaint in refusal("bert-base-cased", home=home, client=Offline())


# === Offline ===


@pytest.mark.parametrize(
    ("handle", "folder", "source", "package"),
    [
        ("bert-base-uncased", "bert-base-uncased", "google-bert/bert-base-uncased from the Hugging Face hub", "hu"),
        ("hf://org/name@v2", "hf/org/name@v2", "org/name (revision v2) from the Hugging Face hub", "huggingface_hub"),
        ("kaggle://o/m/f/v", "kaggle/o/m/f/v", "the files of o/m/f/v from Kaggle Models", "kagglehub"),
    ],
)
@pytest.mark.parametrize("installed", [True, False])
def test_offline_one_line_says_what_to_put_where(handle, folder, source, package, installed, home, monkeypatch):
    if not installed:
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # as if not installed
        monkeypatch.setitem(sys.modules, "kagglehub", None)
    message = refusal(handle, home=home, client=Offline() if installed else None)
    reason = "(ConnectionError: no route to host)" if installed else "(ModuleNotFoundError: "
    assert message.startswith(f"{handle}: is not on this machine and cannot be downloaded {reason}")
    assert source in message
    assert f"into {home / folder}, or go online with `pip install {package}" in message
    assert not home.exists() or listing(home) == set()


def test_offline_the_clients_own_cache_is_used(home, tiny_checkpoint, tmp_path):
    kept, notes = tmp_path / "snapshots" / SHA, []
    shutil.copytree(tiny_checkpoint, kept)
    assert resolve("bert-base-uncased", home=home, client=Offline(kept), note=notes.append) == kept
    assert notes == [f"bert-base-uncased: offline, using revision {SHA} in {kept}"]
    (kept / "model.safetensors").unlink()  # a cache that is not whole is none
    assert "is not on this machine" in refusal("bert-base-uncased", home=home, client=Offline(kept))


def test_the_real_client_without_a_network(home, tmp_path):
    pytest.importorskip("huggingface_hub", reason="the extra `hub` installs it")
    code = (
        "from keras_bert.checkpoints import hub\nfrom keras_bert.errors import CheckpointError\n"
        f"try:\n    hub.resolve('bert-base-uncased', home={str(home)!r})\n"
        "except CheckpointError as error:\n    print(error)\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True, text=True, timeout=120, check=True, env=environment,
    )  # fmt: skip
    (line,) = done.stdout.splitlines()
    assert line.startswith("bert-base-uncased: is not on this machine and cannot be downloaded (OfflineModeIsEnabled: ")
    assert line.endswith(f"into {home / 'bert-base-uncased'}, or go online with `pip install huggingface_hub`")


def test_the_real_clients_have_what_is_called():
    import inspect

    huggingface_hub = pytest.importorskip("huggingface_hub", reason="the extra `hub` installs it")
    assert {"revision", "files_metadata"} <= set(inspect.signature(huggingface_hub.model_info).parameters)
    wanted = {"revision", "local_dir", "allow_patterns", "local_files_only"}
    assert wanted <= set(inspect.signature(huggingface_hub.snapshot_download).parameters)
    kagglehub = pytest.importorskip("kagglehub", reason="the extra `hub` installs it")
    assert "output_dir" in inspect.signature(kagglehub.model_download).parameters


def test_no_host_is_named():
    source = Path(hub.__file__).read_text("utf-8")
    assert "http" not in source.replace("HTTP", "")
