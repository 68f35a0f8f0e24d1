"""`keras-bert bundle`: one directory with all that a machine without internet needs, such as a Kaggle notebook.

    keras-bert bundle --init_checkpoint=all-MiniLM-L6-v2 --output_dir=keras-bert-bundle

It holds the checkpoint as it was published, a wheel of this package, and further wheels that were asked for.
"""

import base64
import hashlib
import re
import shutil
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

from keras_bert.checkpoints import hub
from keras_bert.checkpoints.checkpoints import Checkpoint, open_checkpoint
from keras_bert.checkpoints.formats import FORMATS, extra
from keras_bert.cli.flags import Flags, note
from keras_bert.config import dumps
from keras_bert.conversion import check_target, in_one_piece
from keras_bert.data.tables import find
from keras_bert.errors import CheckpointError, ConfigError
from keras_bert.files import sha256

DISTRIBUTION = "keras3-bert"
PACKAGE = Path(__file__).parent.parent
MANIFEST, README, WHEELS = "bundle.json", "README.md", "wheels"
BESIDE = rf"tokenizer\.json|.*\.safetensors(\.index\.json)?|{hub.RECORD_FILE}|README\.md|LICENSE.*|NOTICE.*"
"""Pattern of files that belong to a checkpoint although no format reads all of them."""


def define() -> Flags:
    """The flags of the command."""
    flags = Flags("bundle", "one directory with weights and wheels, for machines without internet")
    flags.require("init_checkpoint", "Directory of a checkpoint or of a run, or the name of a published model.")
    flags.require("output_dir", "Directory to write; must be absent or empty.")
    flags.add("name", "", "Folder of the checkpoint in the bundle; default: the model's name, or its directory's.")
    flags.add("wheel_files", "", "Further wheels to put in; a glob or comma list gives several.")
    return flags


def main(argv: list[str]) -> int:
    """Run the command; prints what the bundle holds."""
    flags = define()
    if not flags.parse(argv):
        return 0
    target = Path(flags["output_dir"])
    check_target(target)
    further = [Path(path) for path in find(flags["wheel_files"])] if flags["wheel_files"] else []
    for path in further:
        if path.suffix != ".whl" or not path.is_file():
            raise ConfigError(f"--wheel_files {path}: is not a wheel (*.whl)")
    checkpoint = open_checkpoint(flags["init_checkpoint"])
    name = flags["name"] or name_of(flags["init_checkpoint"], checkpoint)
    if not re.fullmatch(r"\w[\w.@-]*(/\w[\w.@-]*)*", name) or name.split("/")[0] in (MANIFEST, README, WHEELS):
        raise ConfigError(f"{name!r} cannot be the checkpoint's folder; give a plain --name")
    with in_one_piece(target) as folder:
        copy(checkpoint, folder / name)
        (folder / WHEELS).mkdir()
        wheel = write_wheel(folder / WHEELS)
        for path in further:
            shutil.copyfile(path, folder / WHEELS / path.name)
        open_checkpoint(folder / name)
        (folder / README).write_text(readme(name, wheel.name, checkpoint), "utf-8")
        files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
        content: dict[str, Any] = {
            "schema": 1,
            "checkpoint": name,
            "wheel": f"{WHEELS}/{wheel.name}",
            "files": {place: {"size": path.stat().st_size, "sha256": sha256(path)} for place, path in files.items()},
        }
        (folder / MANIFEST).write_text(dumps(content), "utf-8")
    for place, file in content["files"].items():
        print(f"{file['size'] / 1e6:>9.1f} MB  {place}")
    note(f"{target / README} says how to use it")
    return 0


def name_of(given: str, checkpoint: Checkpoint) -> str:
    """What the checkpoint is found as in the bundle: the folder that `hub` looks for, or its directory's name."""
    handle = None if Path(given).is_dir() else hub.parse(given)
    return handle.folder if handle else checkpoint.path.absolute().name


def copy(checkpoint: Checkpoint, folder: Path) -> None:
    """Copy the files that the checkpoint is made of; of weights that are there in two forms the safe one."""
    wanted = rf"{FORMATS[checkpoint.format].files}|{BESIDE}|{extra.EXTRA_FILE}|{extra.EXTRA_WEIGHTS_FILE}"
    found = {p.relative_to(checkpoint.path).as_posix(): p for p in checkpoint.path.rglob("*") if p.is_file()}
    found = {place: path for place, path in found.items() if re.fullmatch(wanted, place)}
    if any(place.endswith(".safetensors") for place in found):
        found = {place: path for place, path in found.items() if not place.endswith(".bin")}
    for place, path in found.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / place)


def write_wheel(folder: Path) -> Path:
    """A wheel of this package as it is installed here, the same bytes for the same files; nothing is downloaded.

    Raises:
        CheckpointError: the package is not installed.
    """
    try:
        installed = metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError as error:
        raise CheckpointError(f"{DISTRIBUTION} is not installed; run `pip install .` in its checkout first") from error
    stem = f"{DISTRIBUTION.replace('-', '_')}-{installed.version}"
    modules = (p for p in PACKAGE.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    files = {f"{PACKAGE.name}/{p.relative_to(PACKAGE).as_posix()}": p.read_bytes() for p in modules}
    described = {
        "METADATA": installed.read_text("METADATA") or installed.read_text("PKG-INFO"),
        "WHEEL": "Wheel-Version: 1.0\nGenerator: keras-bert bundle\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "entry_points.txt": installed.read_text("entry_points.txt"),
    }
    files |= {f"{stem}.dist-info/{name}": (text or "").encode() for name, text in described.items()}
    lines = [f"{place},sha256={_digest(content)},{len(content)}" for place, content in sorted(files.items())]
    record = f"{stem}.dist-info/RECORD"
    files[record] = "".join(f"{line}\n" for line in [*lines, f"{record},,"]).encode()
    wheel = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for place, content in sorted(files.items()):
            entry = zipfile.ZipInfo(place)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o100644 << 16
            archive.writestr(entry, content)
    return wheel


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def readme(name: str, wheel: str, checkpoint: Checkpoint) -> str:
    """What the bundle is, for the person who finds it."""
    return f"""# keras_bert and a checkpoint, for use without internet

- `{name}/`: the pretrained model ({checkpoint.format}, {checkpoint.encoder.num_layers} layers)
- `{WHEELS}/`: the package, pure Python; TensorFlow 2.20, tensorflow-text and Keras 3 must be there already
- `{MANIFEST}`: size and sha256 of every file

In Kaggle: upload this directory as a data set, add it to the notebook as an input, switch the internet off, and

```python
%pip install -q --no-index --no-deps /kaggle/input/DATASET/{WHEELS}/{wheel}

from keras_bert import Bert

bert = Bert.from_checkpoint("/kaggle/input/DATASET/{name}", labels=["0", "1"])
```
"""
