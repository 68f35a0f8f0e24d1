"""TFRecord files of tf.train.Example without TensorFlow, so that a worker starts in no time: encoding, framing, checks.

A record is its length (8 bytes), the masked CRC-32C of those, the data, and the masked CRC-32C of the data. Checksums
are computed for many records at once: 8 bytes of each in one step.
"""

import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

import numpy as np

from keras_bert.errors import DataError

POLYNOMIAL = 0x82F63B78
MASK = 0xA282EAD8
HEADER = np.dtype([("length", "<u8"), ("crc", "<u4")])
FOOTER = 4


# === Checksums ===


@cache
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """The table of one byte, uint32 `[256]`, and those of four pairs of bytes, uint32 `[4, 65536]`."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> np.uint32(1)) ^ (np.uint32(POLYNOMIAL) * (table & np.uint32(1)))
    after = [table]  # after[i]: what a byte does to the checksum, i more bytes later
    for _ in range(7):
        after.append(table[after[-1] & 255] ^ (after[-1] >> 8))
    pairs = [(after[6 - 2 * i][:, None] ^ after[7 - 2 * i][None, :]).ravel() for i in range(4)]
    return table, np.stack(pairs)


def masked_crc(records: Sequence[bytes]) -> np.ndarray:
    """The masked CRC-32C of each record, uint32 `[records]`."""
    table, pairs = _tables()
    lengths = np.array([len(r) for r in records], np.int64)
    data = np.frombuffer(b"".join(records) + b"\0" * 8, np.uint8)
    words = np.ndarray(len(data) - 7, "<u8", data.data, strides=(1,))  # the 8 bytes from each place on
    order = np.argsort(-lengths, kind="stable")  # the longest first, so that those not yet done are in front
    at = (np.cumsum(lengths) - lengths)[order]
    odd, steps = lengths[order] % 8, lengths[order] // 8
    crc = np.full(len(records), 0xFFFFFFFF, np.uint32)
    for i in range(7):
        left = np.flatnonzero(odd > i)
        crc[left] = table[(crc[left] ^ data[at[left]]) & 255] ^ (crc[left] >> 8)
        at[left] += 1
    active = np.searchsorted(-steps, -np.arange(int(steps.max(initial=0))), side="left")
    for n in active:
        half = (words[at[:n]] ^ crc[:n]).view("<u2").reshape(n, 4)
        crc[:n] = pairs[0][half[:, 0]] ^ pairs[1][half[:, 1]] ^ pairs[2][half[:, 2]] ^ pairs[3][half[:, 3]]
        at[:n] += 8
    crc = ~crc
    found = np.empty_like(crc)
    found[order] = ((crc >> 15) | (crc << 17)) + np.uint32(MASK)
    return found


# === Records ===


def frame(records: Sequence[bytes]) -> bytes:
    """Records as they stand in a file."""
    headers = np.empty(len(records), HEADER)
    headers["length"] = [len(r) for r in records]
    headers["crc"] = masked_crc([n.tobytes() for n in headers["length"]])
    before, after = headers.tobytes(), masked_crc(records).astype("<u4").tobytes()
    size = HEADER.itemsize
    return b"".join(
        part
        for i, record in enumerate(records)
        for part in (before[size * i : size * (i + 1)], record, after[FOOTER * i : FOOTER * (i + 1)])
    )


def scan(descriptor: int, path: str) -> np.ndarray:
    """Where each record's data begins and how long it is, int64 `[records, 2]`; reads the lengths only.

    Raises:
        DataError: the file is packed or no TFRecord, is cut inside a record, or a length is damaged.
    """
    size, offset, found = os.fstat(descriptor).st_size, 0, bytearray()
    starts: list[int] = []
    while offset < size:
        header = os.pread(descriptor, HEADER.itemsize, offset)
        found += header
        if len(header) < HEADER.itemsize:
            break
        starts.append(offset + HEADER.itemsize)
        offset += HEADER.itemsize + struct.unpack_from("<Q", header)[0] + FOOTER
    headers = np.frombuffer(bytes(found), HEADER, len(starts))
    damaged = np.flatnonzero(masked_crc([n.tobytes() for n in headers["length"]]) != headers["crc"])
    if len(damaged):
        if not damaged[0] and os.pread(descriptor, 2, 0) == b"\x1f\x8b":
            raise DataError(f"{path}: is packed with gzip; unpack it first")
        raise DataError(
            f"{path}, record {damaged[0] + 1}: its length is damaged; this is no TFRecord, or build it again"
        )
    if offset != size:
        raise DataError(f"{path}, record {max(len(starts), 1)}: the file is cut inside it; copy or build it again")
    return np.stack([np.array(starts, np.int64), headers["length"].astype(np.int64)], -1).reshape(-1, 2)


def read(descriptor: int, path: str, places: np.ndarray, numbers: np.ndarray) -> list[bytes]:
    """The data of the records at `places`, int64 `[records, 2]` of `scan`, checked.

    Raises:
        DataError: one is damaged or no longer there; `numbers` are their numbers in the file, from 0.
    """
    raw = [os.pread(descriptor, length + FOOTER, start) for start, length in places.tolist()]
    for data, number, length in zip(raw, numbers, places[:, 1], strict=True):
        if len(data) != length + FOOTER:
            raise DataError(f"{path}, record {number + 1}: is no longer there; the file changed while it was read")
    records = [data[:-FOOTER] for data in raw]
    stored = np.frombuffer(b"".join(data[-FOOTER:] for data in raw), "<u4")
    damaged = np.flatnonzero(masked_crc(records) != stored)
    if len(damaged):
        raise DataError(f"{path}, record {numbers[damaged[0]] + 1}: is damaged (checksum); copy or build it again")
    return records


# === tf.train.Example ===


class _Varints(dict[int, bytes]):
    def __missing__(self, value: int) -> bytes:
        left, found = value % (1 << 64), bytearray()
        while left > 127:
            found.append(left & 127 | 128)
            left >>= 7
        found.append(left)
        self[value] = bytes(found)
        return self[value]


_VARINT = _Varints()


def _field(number: int, data: bytes) -> bytes:
    return _VARINT[number << 3 | 2] + _VARINT[len(data)] + data


def int64s(values: Iterable[int]) -> bytes:
    """A tf.train.Feature of whole numbers."""
    return _field(3, _field(1, b"".join(map(_VARINT.__getitem__, values))))


def floats(values: Sequence[float]) -> bytes:
    """A tf.train.Feature of float32 numbers."""
    return _field(2, _field(1, np.array(values, "<f4").tobytes()))


def example(features: Mapping[str, bytes]) -> bytes:
    """A serialized tf.train.Example of named features."""
    entries = (_field(1, _field(1, name.encode()) + _field(2, value)) for name, value in features.items())
    return _field(1, b"".join(entries))
