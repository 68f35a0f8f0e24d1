"""Files that are there whole or not at all, and their hashes."""

import contextlib
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from keras_bert.errors import DataError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[str]:
    """A temporary name beside `path`; what was written there is flushed and renamed to `path` on success."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def write_atomic(path: Path, content: str) -> None:
    """Write a text file under a temporary name, then rename."""
    with replacing(path) as temporary:
        Path(temporary).write_text(content, "utf-8", newline="")


def size_of(path: str, kind: str) -> int:
    """The size in bytes of a file to read from; `kind` is its usual ending, for the advice.

    Raises:
        DataError: it is not there, not a regular file, or empty.
    """
    try:
        found = os.stat(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if stat.S_ISDIR(found.st_mode):
        raise DataError(f"{path}: is a directory; name a file, or a glob such as {os.path.join(path, f'*.{kind}')}")
    if not stat.S_ISREG(found.st_mode):
        raise DataError(f"{path}: is not a regular file; write the texts to a file first")
    if not found.st_size:
        raise DataError(f"{path}: is empty")
    return found.st_size


def sha256(path: str | Path) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
