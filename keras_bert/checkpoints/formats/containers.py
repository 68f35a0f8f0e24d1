"""Files of tensors: safetensors, TensorFlow's checkpoint bundles, and the HDF5 files of Keras.

Weights are data. Nothing here executes or unpickles what it reads, follows a link out of a file, or asks for more
memory than the file is long: shapes and types are known, and compared with what is wanted, before values are read.
"""

import atexit
import contextlib
import functools
import io
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from keras_bert.checkpoints.formats.settings import read_json, some
from keras_bert.checkpoints.formats.table import Stored
from keras_bert.errors import CheckpointError
from keras_bert.model.shapes import Shape

WEIGHTS_FILE = "model.safetensors"
OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
VALUE = "VARIABLE_VALUE"

# === safetensors ===


@contextlib.contextmanager
def _as_safetensors(file: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: broken or not a safetensors file ({error})") from error


def read_safetensors(file: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file. The library checks the header: its length, overlaps, gaps and sizes.

    Raises:
        CheckpointError: the file is none, is cut off, or its header lies. Reading a value raises it for
            a type that NumPy does not have.
    """

    def reader(name: str) -> Any:
        def read() -> np.ndarray:
            with _as_safetensors(file), safe_open(file, framework="numpy") as tensors:
                value = tensors.get_tensor(name)
                return value if value.dtype.kind in "iub" else value.astype(np.float32)

        return read

    with _as_safetensors(file), safe_open(file, framework="numpy") as tensors:
        found = {}
        for name in tensors.keys():  # noqa: SIM118 (not a dict)
            part = tensors.get_slice(name)
            found[name] = Stored(tuple(part.get_shape()), part.get_dtype(), reader(name), name)
        return found


def write_safetensors(file: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """A safetensors file that Hugging Face's library reads too."""
    save_file(dict(tensors), file, metadata={"format": "pt"})


# === TensorFlow bundles ===


def find_bundle(path: Path) -> Path:
    """The prefix of the one checkpoint in a directory.

    Raises:
        CheckpointError: there is none, or more than one.
    """
    indices = _indices(path)
    if len(indices) != 1:
        raise CheckpointError(
            f"{path}: has {len(indices)} files *.ckpt*.index ({some([p.name for p in indices])}); keep exactly one"
        )
    return indices[0].with_suffix("")


def _indices(path: Path) -> list[Path]:
    return sorted({*path.glob("*.ckpt*.index"), *path.glob("ckpt*.index")})


def has_bundle(path: Path) -> bool:
    """Does a directory hold a checkpoint, its values included?"""
    return any(list(path.glob(f"{index.stem}.data-*")) for index in _indices(path))


def is_object_based(path: Path) -> bool:
    """Was the checkpoint in `path` written by `tf.train.Checkpoint`? Looks into the index, without TensorFlow."""
    with contextlib.suppress(OSError):
        return any(OBJECT_GRAPH.encode() in index.read_bytes() for index in _indices(path))
    return False


class Bundle:
    """A TensorFlow checkpoint: keys, shapes, types, and values on demand."""

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        with self.intact() as tf:
            self.reader = tf.train.load_checkpoint(str(prefix))
            self.shapes = {k: tuple(v) for k, v in sorted(self.reader.get_variable_to_shape_map().items())}
            self.dtypes = {k: v.name for k, v in self.reader.get_variable_to_dtype_map().items()}

    @contextlib.contextmanager
    def intact(self) -> Iterator[Any]:
        """Gives TensorFlow, and turns what it raises into a CheckpointError."""
        import tensorflow as tf

        try:
            yield tf
        except (tf.errors.OpError, IndexError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{self.prefix}: broken ({(str(error) or repr(error)).splitlines()[0]})") from error

    def stored(self, key: str) -> Stored:
        """One tensor."""
        return Stored(self.shapes[key], self.dtypes[key], lambda: self.value(key), key)

    def value(self, key: str) -> Any:
        """What is stored under a key; floating-point numbers as float32."""
        with self.intact():
            value = self.reader.get_tensor(key)
        return value.astype(np.float32) if self.dtypes[key] in ("float16", "bfloat16", "float64") else value

    def objects(self) -> "Objects":
        """The graph of objects in a checkpoint of `tf.train.Checkpoint`."""
        from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

        graph = TrackableObjectGraph()
        try:
            graph.ParseFromString(self.value(OBJECT_GRAPH))
        except CheckpointError:
            raise
        except Exception as error:  # the class is protobuf's, and not the same in all its versions
            raise CheckpointError(f"{self.prefix}: broken object graph ({error!r})") from error
        return Objects(self, graph)


class Objects:
    """Objects of a `tf.train.Checkpoint`, found by the attributes that lead to them, not by the keys of the file."""

    def __init__(self, bundle: Bundle, graph: Any) -> None:
        self.bundle = bundle
        count = len(graph.nodes)
        self.children = [{c.local_name: c.node_id for c in n.children if 0 <= c.node_id < count} for n in graph.nodes]
        self.keys = [next((a.checkpoint_key for a in n.attributes if a.name == VALUE), "") for n in graph.nodes]

    def with_children(self, *names: str) -> list[int]:
        """The objects that have all of these attributes."""
        return [i for i, children in enumerate(self.children) if all(name in children for name in names)]

    def key(self, node: int, path: str) -> str | None:
        """The key of the variable at `path` below an object, if there is one."""
        for name in path.split("/"):
            if name not in self.children[node]:
                return None
            node = self.children[node][name]
        return self.keys[node] if self.keys[node] in self.bundle.shapes else None


def write_bundle(prefix: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """A checkpoint of named tensors, as `tf.compat.v1.train.Saver` writes it.

    Raises:
        CheckpointError: it cannot be written.
    """
    import tensorflow as tf

    names = sorted(tensors)
    try:
        tf.raw_ops.SaveV2(
            prefix=str(prefix),
            tensor_names=names,
            shape_and_slices=[""] * len(names),
            tensors=[tf.constant(tensors[name]) for name in names],
        )
    except tf.errors.OpError as error:
        raise CheckpointError(f"{prefix}: cannot be written ({str(error).splitlines()[0]})") from error


def write_objects(prefix: Path, tree: Mapping[str, Any]) -> None:
    """A `tf.train.Checkpoint`, with nested dicts as objects and arrays as variables.

    A dict or an array that occurs twice is one object with two names.

    Raises:
        CheckpointError: it cannot be written.
    """
    import tensorflow as tf

    made: dict[int, Any] = {}

    def build(value: Any) -> Any:
        if id(value) not in made:
            if isinstance(value, np.ndarray):
                made[id(value)] = tf.Variable(value)
            else:
                made[id(value)] = node = tf.train.Checkpoint()
                for name, child in value.items():
                    setattr(node, name, build(child))
        return made[id(value)]

    try:
        with tf.device("CPU:0"):
            tf.train.Checkpoint(**{name: build(child) for name, child in tree.items()}).save(str(prefix))
    except tf.errors.OpError as error:
        raise CheckpointError(f"{prefix}: cannot be written ({str(error).splitlines()[0]})") from error


# === Archives of Keras ===

ARCHIVED = ("config.json", "metadata.json", "model.weights.h5", "assets/")
MOST_EXPANSION = 64


@functools.lru_cache(maxsize=4)
def unpacked(file: Path, changed: int) -> Path:
    """The files of a `.keras` archive, in a folder that is gone when the process ends.

    Args:
        changed: time of its last change, so that a file that was replaced is read again.

    Raises:
        CheckpointError: it is broken, or unpacks to more than weights would.
    """
    parent = Path(tempfile.mkdtemp(prefix="keras_bert."))
    atexit.register(shutil.rmtree, parent, ignore_errors=True)
    folder = parent / file.name
    try:
        with zipfile.ZipFile(file) as archive:
            members = [info for info in archive.infolist() if info.filename.startswith(ARCHIVED) and not info.is_dir()]
            if any(".." in info.filename.split("/") or "\\" in info.filename for info in members):
                raise CheckpointError(f"{file}: names files elsewhere")
            if sum(info.file_size for info in members) > MOST_EXPANSION * file.stat().st_size:
                raise CheckpointError(
                    f"{file}: unpacks to more than {MOST_EXPANSION} times its size, which weights never do"
                )
            archive.extractall(folder, members)
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise CheckpointError(f"{file}: broken or not a file of Keras ({error})") from error
    return folder


# === HDF5 ===


def read_h5(file: Path) -> dict[str, Stored]:
    """The data sets of an HDF5 file, by path.

    Raises:
        CheckpointError: the file is broken; it holds a link (soft or into another file), a data set that lies
            elsewhere or is virtual; or one whose declared size is not what the file holds, compressed ones included.
    """
    import h5py

    found: dict[str, Stored] = {}

    def reader(name: str, dtype: str) -> Any:
        def read() -> np.ndarray:
            with _as_h5(file), h5py.File(file, "r") as h5:
                value = h5[name][()]
            value = np.asarray(value).view(ml_dtypes.bfloat16) if dtype == BFLOAT16 else value
            return value.astype(np.float32) if dtype == BFLOAT16 or value.dtype.kind == "f" else value

        return read

    def walk(group: Any, prefix: str, depth: int) -> None:
        if depth > 16:
            raise CheckpointError(f"{file}: groups are nested deeper than Keras nests them, at {prefix}")
        for name in group:
            path = f"{prefix}{name}"
            link = group.get(name, getlink=True)
            if type(link) is not h5py.HardLink:
                raise CheckpointError(f"{file}: {path} is a link ({type(link).__name__}); only plain data is read")
            item = group[name]
            if isinstance(item, h5py.Group):
                walk(item, f"{path}/", depth + 1)
            elif isinstance(item, h5py.Dataset):
                shape = _checked_shape(file, path, item)
                dtype = BFLOAT16 if _is_bfloat16(item) else item.dtype.name
                found[path] = Stored(shape, dtype, reader(path, dtype), path)
            else:
                raise CheckpointError(f"{file}: {path} is a {type(item).__name__}; only plain data is read")

    with _as_h5(file), h5py.File(file, "r") as h5:
        walk(h5, "", 0)
    return found


def has_h5(file: Path) -> bool:
    """Is a file there, or the index of its shards?"""
    return file.exists() or file.with_suffix(".json").exists()


def read_h5_whole(file: Path) -> dict[str, Stored]:
    """`read_h5` of a file, or of the shards that Keras has split it into, which an index beside them names.

    Raises:
        CheckpointError: see `read_h5`; or the index is broken, or a shard is not there.
    """
    if file.exists():
        return read_h5(file)
    index = file.with_suffix(".json")
    table = read_json(index).get("weight_map")
    named = (
        [shards if isinstance(shards, list) else [shards] for shards in table.values()]
        if isinstance(table, dict)
        else []
    )
    shards = sorted({name for names in named for name in names if isinstance(name, str)})
    if not shards or any(Path(name).name != name for name in shards):
        raise CheckpointError(f"{index}: weight_map is not a table from weights to files beside it")
    missing = [name for name in shards if not (file.parent / name).exists()]
    if missing:
        raise CheckpointError(f"{index}: names {some(missing)}; put them there")
    found: dict[str, Stored] = {}
    for name in shards:
        found |= read_h5(file.parent / name)
    return found


@contextlib.contextmanager
def _as_h5(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        if isinstance(error, CheckpointError):
            raise
        reason = (str(error) or repr(error)).splitlines()[0]
        raise CheckpointError(f"{file}: broken or not an HDF5 file ({reason})") from error


BFLOAT16 = "bfloat16"
"""HDF5 has no such numbers: Keras stores them as two bytes each and says so in an attribute."""


def _is_bfloat16(item: Any) -> bool:
    return item.dtype.kind == "V" and item.dtype.itemsize == 2 and item.attrs.get("dtype") == BFLOAT16


def _checked_shape(file: Path, path: str, item: Any) -> Shape:
    if item.external or item.is_virtual:
        raise CheckpointError(f"{file}: the values of {path} lie in another file; only plain data is read")
    shape = tuple(item.shape or ())
    if item.dtype.kind not in "fiub" and not _is_bfloat16(item):
        raise CheckpointError(f"{file}: {path} holds {item.dtype}, not numbers")
    declared, there = prod(shape) * item.dtype.itemsize, item.id.get_storage_size()
    if declared != there:
        raise CheckpointError(
            f"{file}: {path} declares {shape}, which is {declared:,} bytes, but the file holds {there:,} for it"
        )
    return shape


def write_h5(file: Path, tensors: Mapping[str, np.ndarray], names: Mapping[str, str]) -> None:
    """An HDF5 file as `keras.Model.save_weights` lays it out.

    Args:
        tensors: path of a data set -> values.
        names: path of a `vars` group -> the name of its layer.
    """
    import h5py

    content = io.BytesIO()  # the library does not survive a full disk
    with h5py.File(content, "w") as h5:
        for path in (*tensors, *(f"{group}/" for group in names)):
            h5.require_group(path.rpartition("/")[0])
        for path, value in tensors.items():
            h5.create_dataset(path, data=value)
        for group, name in names.items():
            h5[group].attrs["name"] = name
    file.write_bytes(content.getbuffer())
