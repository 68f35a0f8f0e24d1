"""`keras-bert bundle`: all that a machine without internet needs, in one directory."""

import base64
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import keras_bert
from keras_bert.__main__ import main
from keras_bert.checkpoints.checkpoints import open_checkpoint
from keras_bert.cli import bundle
from keras_bert.errors import CheckpointError


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published directory with files that do not belong into a bundle."""
    folder = tmp_path_factory.mktemp("published") / "all-MiniLM-L6-v2"
    shutil.copytree(tiny_checkpoint, folder)
    for name in ("pytorch_model.bin", "tf_model.h5", "rust_model.ot", "LICENSE", "onnx/model.onnx"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("[]", "utf-8")
    return folder


@pytest.fixture(scope="module")
def made(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "bundle"
    assert main(["bundle", f"--init_checkpoint={checkpoint}", f"--output_dir={folder}"]) == 0
    return folder


def wheel_of(folder: Path) -> Path:
    return folder / json.loads((folder / "bundle.json").read_text("utf-8"))["wheel"]


def test_it_holds_what_is_needed_and_says_so(made: Path):
    content = json.loads((made / "bundle.json").read_text("utf-8"))
    found = {p.relative_to(made).as_posix() for p in made.rglob("*") if p.is_file()} - {"bundle.json"}
    name = content["checkpoint"]
    assert name == "all-MiniLM-L6-v2"
    of_checkpoint = {f"{name}/{file}" for file in ("config.json", "vocab.txt", "model.safetensors", "LICENSE")}
    assert found == {"README.md", content["wheel"], *of_checkpoint} == set(content["files"])
    for place, stated in content["files"].items():
        data = (made / place).read_bytes()
        assert stated == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_a_bundle_is_a_home_of_checkpoints(made: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KERAS_BERT_HOME", str(made))
    assert open_checkpoint("all-MiniLM-L6-v2").path == made / "all-MiniLM-L6-v2"
    assert open_checkpoint("all-MiniLM-L6-v2").vocabulary == open_checkpoint(checkpoint).vocabulary


def test_the_wheel_holds_the_package_and_its_record_is_right(made: Path):
    package = Path(keras_bert.__file__).parent
    with zipfile.ZipFile(wheel_of(made)) as archive:
        names = archive.namelist()
        modules = {n.removeprefix("keras_bert/") for n in names if n.startswith("keras_bert/")}
        there = {p.relative_to(package).as_posix() for p in package.rglob("*") if p.is_file()}
        assert modules == {p for p in there if "__pycache__" not in p}
        (record,) = [n for n in names if n.endswith("/RECORD")]
        lines = [line.split(",") for line in archive.read(record).decode().splitlines()]
        assert {line[0] for line in lines} == set(names)
        for name, digest, size in lines[:-1]:
            data = archive.read(name)
            hashed = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            assert (digest, size) == (f"sha256={hashed}", str(len(data)))


def test_pip_installs_the_wheel_without_an_index(made: Path, tmp_path: Path):
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", f"--target={tmp_path}"]
    subprocess.run([*pip, str(wheel_of(made))], check=True, timeout=120)
    code = "import keras_bert; print(keras_bert.__file__, keras_bert.__version__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.split() == [str(tmp_path / "keras_bert/__init__.py"), keras_bert.__version__]
    assert (tmp_path / "bin/keras-bert").exists()


def test_the_same_files_give_the_same_wheel(made: Path, tmp_path: Path):
    assert bundle.write_wheel(tmp_path).read_bytes() == wheel_of(made).read_bytes()


def test_it_needs_no_network(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert main(["bundle", f"--init_checkpoint={checkpoint}", f"--output_dir={tmp_path / 'made'}"]) == 0


def test_further_wheels_and_another_name(made: Path, checkpoint: Path, tmp_path: Path):
    other = tmp_path / "other-1.0-py3-none-any.whl"
    shutil.copy(wheel_of(made), other)
    flags = [f"--init_checkpoint={checkpoint}", f"--output_dir={tmp_path / 'made'}", "--name=hf/me/mine"]
    assert main(["bundle", *flags, f"--wheel_files={tmp_path}/*.whl"]) == 0
    assert (tmp_path / "made/wheels" / other.name).read_bytes() == other.read_bytes()
    assert (tmp_path / "made/hf/me/mine/model.safetensors").exists()


def test_a_published_name_is_the_folder_that_the_hub_looks_for(checkpoint: Path):
    found = open_checkpoint(checkpoint)
    assert bundle.name_of("sentence-transformers/all-MiniLM-L6-v2", found) == "all-MiniLM-L6-v2"
    assert bundle.name_of("hf://org/name@v1", found) == "hf/org/name@v1"


@pytest.mark.parametrize(
    ("flag", "code", "message"),
    [
        ("--name=wheels", 2, "cannot be the checkpoint's folder"),
        ("--name=../up", 2, "cannot be the checkpoint's folder"),
        ("--wheel_files=LICENSE", 2, "LICENSE: is not a wheel"),
        ("--wheel_files=*.nothing", 3, "matches no file"),
        ("--init_checkpoint=nowhere", 5, "nowhere: does not exist"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(
    flag: str, code: int, message: str, checkpoint: Path, tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(["bundle", f"--init_checkpoint={checkpoint}", "--output_dir=made", flag]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_holds_something_is_kept(checkpoint: Path, tmp_path: Path, capsys):
    (tmp_path / "mine.txt").write_text("mine", "utf-8")
    assert main(["bundle", f"--init_checkpoint={checkpoint}", f"--output_dir={tmp_path}"]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_without_an_installed_package_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bundle, "DISTRIBUTION", "a-distribution-that-nobody-has")
    with pytest.raises(CheckpointError, match=r"is not installed; run `pip install .`"):
        bundle.write_wheel(tmp_path)
