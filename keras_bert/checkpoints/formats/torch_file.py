"""`pytorch_model.bin` without PyTorch and without executing pickled code.

Since PyTorch 1.6 the file is a zip archive: `data.pkl` describes tensors, `data/KEY` holds the bytes of storage KEY.
Before, it was five pickles one after another (a magic number, a version, the machine, the description, the keys of the
storages) and the storages behind them, each with its length. A pickle is never unpickled here. Its opcodes are read one
by one, and only those that a dict of tensors needs have a meaning: plain values, an ordered dict, and the functions
`_rebuild_tensor` and `_rebuild_parameter` over storages. Anything else stops.
"""

import io
import pickletools
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from keras_bert.checkpoints.formats.table import Stored
from keras_bert.errors import CheckpointError
from keras_bert.model.shapes import Shape

PICKLE_BYTES = 32 * 1024 * 1024
STORAGES: dict[str, Any] = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
ORDERED_DICT, PARAMETER = "collections OrderedDict", "torch._utils _rebuild_parameter"
REBUILD = ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor")
OLD_BEGIN, OLD_VERSION = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", 1001
"""The first pickle of the layout before PyTorch 1.6, whole: a magic number; and what the second one holds."""


class _Refused(Exception):
    """Why a description is not one of plain tensors."""


@dataclass(frozen=True)
class _Name:
    """A global name in the description; nothing is imported for it."""

    name: str


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: Any
    items: int


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: Shape
    strides: Shape


@dataclass(frozen=True)
class _File:
    """The storages of a file: how many bytes each has, and how they are read."""

    sizes: Mapping[str, int]
    read: Callable[[str], bytes]


def read_torch(file: Path) -> dict[str, Stored]:
    """The tensors of a `pytorch_model.bin`, of today's layout or of the one before PyTorch 1.6.

    Raises:
        CheckpointError: the file is broken, or describes more than tensors.
    """
    try:
        with open(file, "rb") as stream:
            begin = stream.read(4)
        described, storages = (_read_zip if begin == b"PK\x03\x04" else _read_old)(file)
        return {name: _stored(file, storages, name, tensor) for name, tensor in described.items()}
    except (_Refused, zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        reason = str(error) if isinstance(error, _Refused) else f"broken ({error})"
        raise CheckpointError(f"{file}: {reason}") from error


def _read_zip(file: Path) -> tuple[dict[str, _Tensor], _File]:
    with zipfile.ZipFile(file) as archive:
        members = _members(archive)
        root = next((name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")), None)
        if root is None or root.count("/") != 1:
            raise _Refused("has no data.pkl")
        if members[f"{root}data.pkl"].file_size > PICKLE_BYTES:
            raise _Refused("its description of tensors is larger than 32 MB")
        order = f"{root}byteorder"
        if order in members and archive.read(order) != b"little":
            raise _Refused("is not of little-endian byte order")
        described = _tensors(_follow(io.BytesIO(archive.read(f"{root}data.pkl"))))
    data = f"{root}data/"
    sizes = {name.removeprefix(data): info.file_size for name, info in members.items() if name.startswith(data)}

    def read(key: str) -> bytes:
        with zipfile.ZipFile(file) as archive:
            return archive.read(members[data + key])

    return described, _File(sizes, read)


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        if info.filename in members:
            raise _Refused(f"holds {info.filename!r} twice")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise _Refused(f"{info.filename!r} is compressed, which PyTorch never does")
        members[info.filename] = info
    return members


def _read_old(file: Path) -> tuple[dict[str, _Tensor], _File]:
    size = file.stat().st_size
    with open(file, "rb") as stream:
        head = io.BytesIO(stream.read(PICKLE_BYTES))
    if head.read(len(OLD_BEGIN)) != OLD_BEGIN:
        raise _Refused("is not a file of PyTorch")
    version, machine, description, keys = (_follow(head) for _ in range(4))
    if version != OLD_VERSION or not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise _Refused("is not of little-endian byte order, or of another version")
    described = _tensors(description)
    storages = {tensor.storage.key: tensor.storage for tensor in described.values()}
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(storages):
        raise _Refused("its list of storages is not that of its tensors")
    starts, sizes, place = {}, {}, head.tell()
    with open(file, "rb") as stream:
        for key in map(str, keys):
            stream.seek(place)
            length = int.from_bytes(stream.read(8), "little")
            if length != storages[key].items:
                raise _Refused(f"a storage has {length:,} numbers where {storages[key].items:,} are described")
            starts[key], sizes[key] = place + 8, length * np.dtype(storages[key].dtype).itemsize
            place = starts[key] + sizes[key]
    if place > size:
        raise _Refused(f"is cut off: {size:,} bytes where {place:,} are described")

    def read(key: str) -> bytes:
        with open(file, "rb") as stream:
            stream.seek(starts[key])
            return stream.read(sizes[key])

    return described, _File(sizes, read)


def _stored(file: Path, storages: _File, name: str, tensor: _Tensor) -> Stored:
    storage, dtype = tensor.storage, np.dtype(tensor.storage.dtype)
    there, needed = storages.sizes.get(storage.key), storage.items * dtype.itemsize
    if there is None:
        raise _Refused(f"has no bytes for {name}")
    if there != needed:
        raise _Refused(f"holds {there:,} bytes for {name}, which needs {needed:,}")
    last = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True))
    if (prod(tensor.shape) and last >= storage.items) or prod(tensor.shape) > storage.items:
        raise _Refused(f"{name} reaches beyond its bytes")

    def read() -> np.ndarray:
        try:
            flat = np.frombuffer(storages.read(storage.key), dtype)
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            raise CheckpointError(f"{file}: broken ({error})") from error
        if len(flat) != storage.items:
            raise CheckpointError(f"{file}: was cut off after it was opened")
        strides = tuple(s * dtype.itemsize for s in tensor.strides)
        value = np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, strides, writeable=False)
        return value.copy() if dtype.kind in "iub" else value.astype(np.float32)

    return Stored(tensor.shape, dtype.name, read, name)


# === The description ===


def _naturals(value: Any) -> Shape:
    if not isinstance(value, tuple) or any(type(n) is not int or not 0 <= n < 2**48 for n in value):
        raise _Refused("a shape is not made of whole numbers")
    return value


def _storage(identity: Any) -> _Storage:
    match identity:
        case ("storage", _Name(name), str(key), str(), int(items), *view) if items >= 0 and view in ([], [None]):
            kind = name.removeprefix("torch ")
            if name.startswith("torch ") and kind in STORAGES and key.isalnum():
                return _Storage(key, STORAGES[kind], items)
            raise _Refused(f"a storage of kind {name!r} is not read")
    raise _Refused("a persistent id is no storage; it holds more than tensors")


def _call(function: Any, arguments: Any) -> Any:
    match function, arguments:
        case _Name(name), () if name == ORDERED_DICT:
            return {}
        case _Name(name), (_Tensor() as tensor, bool(), dict()) if name == PARAMETER:
            return tensor
        case _Name(name), (_Storage() as storage, int(offset), shape, strides, *_) if name in REBUILD:
            shape, strides = _naturals(shape), _naturals(strides)
            if len(shape) != len(strides) or not 0 <= offset <= storage.items:
                raise _Refused("a tensor does not fit its storage")
            return _Tensor(storage, offset, shape, strides)
    name = function.name if isinstance(function, _Name) else type(function).__name__
    raise _Refused(f"its description calls {name!r}; it holds more than tensors, and code is never run")


def _tensors(description: Any) -> dict[str, _Tensor]:
    """What was described, if it is a dict of tensors."""
    if not isinstance(description, dict) or not all(isinstance(v, _Tensor) for v in description.values()):
        raise _Refused("holds something else than a dict of tensors")
    return {str(name): tensor for name, tensor in description.items()}


def _follow(code: io.BytesIO) -> Any:
    """Follow the opcodes of a pickle to its end; the result is plain values, names, storages and tensors."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def pop() -> Any:
        if len(stack) <= (marks[-1] if marks else 0):
            raise _Refused("its description takes what is not there")
        return stack.pop()

    def to_mark() -> list[Any]:
        if not marks:
            raise _Refused("its description takes what is not there")
        mark = marks.pop()
        taken = stack[mark:]
        del stack[mark:]
        return taken

    def set_items(pairs: list[Any]) -> None:
        target = stack[-1] if stack else None
        if not isinstance(target, dict) or len(pairs) % 2:
            raise _Refused("its description sets items of what is no dict")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, str | int):
                raise _Refused(f"a name is a {type(key).__name__}")
            target[key] = value

    def append(values: list[Any]) -> None:
        if not stack or not isinstance(stack[-1], list):
            raise _Refused("its description appends to what is no list")
        stack[-1].extend(values)

    def pair() -> list[Any]:
        value, key = pop(), pop()
        return [key, value]

    def reduce() -> Any:
        arguments, function = pop(), pop()
        return _call(function, arguments)

    def build() -> None:
        if not isinstance(pop(), dict):  # what PyTorch hangs on the dict (versions of modules) is left out
            raise _Refused("sets the state of an object")
        if not stack or not isinstance(stack[-1], dict):
            raise _Refused("sets the state of an object")

    def tuple_of(count: int) -> tuple[Any, ...]:
        return tuple([pop() for _ in range(count)][::-1])

    def global_name() -> _Name:
        attribute, module = pop(), pop()
        return _Name(f"{module} {attribute}")

    values = ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT")
    push: dict[str, Callable[[Any], Any]] = {
        **dict.fromkeys(values, lambda argument: argument),
        "NONE": lambda _: None,
        "NEWTRUE": lambda _: True,
        "NEWFALSE": lambda _: False,
        "EMPTY_DICT": lambda _: {},
        "EMPTY_LIST": lambda _: [],
        "EMPTY_TUPLE": lambda _: (),
        "TUPLE": lambda _: tuple(to_mark()),
        "TUPLE1": lambda _: tuple_of(1),
        "TUPLE2": lambda _: tuple_of(2),
        "TUPLE3": lambda _: tuple_of(3),
        "GLOBAL": lambda argument: _Name(argument),
        "STACK_GLOBAL": lambda _: global_name(),
        "BINPERSID": lambda _: _storage(pop()),
        "REDUCE": lambda _: reduce(),
        "BINGET": lambda argument: memo[argument],
        "LONG_BINGET": lambda argument: memo[argument],
    }
    do: dict[str, Callable[[Any], Any]] = {
        "PROTO": lambda _: None,
        "FRAME": lambda _: None,
        "MARK": lambda _: marks.append(len(stack)),
        "BINPUT": lambda argument: memo.__setitem__(argument, stack[-1]),
        "LONG_BINPUT": lambda argument: memo.__setitem__(argument, stack[-1]),
        "MEMOIZE": lambda _: memo.__setitem__(len(memo), stack[-1]),
        "APPEND": lambda _: append([pop()]),
        "APPENDS": lambda _: append(to_mark()),
        "SETITEM": lambda _: set_items(pair()),
        "SETITEMS": lambda _: set_items(to_mark()),
        "BUILD": lambda _: build(),
    }
    try:
        for opcode, argument, _ in pickletools.genops(code):
            if opcode.name in push:
                stack.append(push[opcode.name](argument))
            elif opcode.name in do:
                do[opcode.name](argument)
            elif opcode.name == "STOP":
                break
            else:
                raise _Refused(f"uses {opcode.name} in its description of tensors; it holds more than tensors")
    except (ValueError, KeyError, IndexError) as error:
        raise _Refused(f"broken description of tensors ({error!r})") from error
    return stack[-1] if stack else None
