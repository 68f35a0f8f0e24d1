"""The table that TensorFlow Text's kernel FastBertNormalize walks, built from any list of changes.

The kernel takes one code point at a time (at ill-formed UTF-8 one byte, or a truncated sequence of two or three),
looks its bytes up in a byte trie and copies them or puts a string in their place. The trie is a double array in the
layout of darts-clone (Aoe 1989): a node has a base, and its child by byte b is the unit at index `base ^ b`.
"""

from collections.abc import Mapping
from functools import cache

import numpy as np

UNICODE = 0x110000
BLOCK = 256
CHANGED = 1 << 30  # a datum: this bit, the place of the string in the pool << 6, its length in bytes
HAS_VALUE = 1 << 8  # a unit: the byte that led here, this bit, index ^ base << 10
IS_VALUE = 1 << 31

Node = tuple[int, tuple[tuple[int, int], ...]]  # value (0: none), then (byte, number of the child) pairs


def normalizer(
    changes: Mapping[int, str],
    ill_formed: tuple[bytes, bytes, bytes] = (b"", b"", b""),
) -> np.ndarray:
    """The model of FastBertNormalize, uint8 `[bytes]`.

    Args:
        changes: code point -> what replaces it, at most 63 bytes of UTF-8; others stay.
        ill_formed: what replaces ill-formed UTF-8 of 1, 2 and 3 bytes.
    """
    pool: dict[bytes, int] = {}
    size = 0

    def datum(value: bytes) -> int:
        nonlocal size
        if value not in pool:
            pool[value] = size
            size += len(value)
        return CHANGED | pool[value] << 6 | len(value)

    data = np.zeros(UNICODE, np.int32)
    encoded = {value: datum(value.encode("utf-8")) for value in sorted(set(changes.values()))}
    data[np.fromiter(changes, np.int64, len(changes))] = [encoded[value] for value in changes.values()]
    nodes = _trie(data, [datum(value) for value in ill_formed])
    return _flatbuffer(_place(nodes), int(data[0]), np.frombuffer(b"".join(pool), np.uint8))


def _trie(data: np.ndarray, ill_formed: list[int]) -> list[Node]:
    """UTF-8 sequences -> data as a trie whose equal subtrees are one node; the root comes last."""
    numbers: dict[Node, int] = {}

    def node(value: int, children: tuple[tuple[int, int], ...] = ()) -> int:
        return numbers.setdefault((value, children), len(numbers))

    @cache
    def leaves(block: bytes) -> tuple[tuple[int, int], ...]:
        row = np.frombuffer(block, np.int32)
        return tuple((0x80 + int(i), node(int(row[i]))) for i in np.flatnonzero(row))

    blocks = [row.tobytes() for row in data.reshape(-1, 64)]  # the 64 code points that differ in the last byte

    def lead3(number: int) -> int:  # E0..EF: a second byte below A0 after E0, or above 9F after ED, is ill-formed
        second = range(0x20 * (number == 0), 0x20 if number == 0xD else 0x40)
        return node(ill_formed[0], tuple((0x80 + s, last(number * 64 + s, ill_formed[1])) for s in second))

    def lead4(number: int) -> int:  # F0..F4: likewise below 90 after F0, above 8F after F4
        second = range(0x10 * (number == 0), 0x10 if number == 4 else 0x40)
        return node(ill_formed[0], tuple((0x80 + s, third((number * 64 + s) * 64)) for s in second))

    def third(block: int) -> int:
        return node(ill_formed[1], tuple((0x80 + t, last(block + t, ill_formed[2])) for t in range(64)))

    def last(block: int, truncated: int) -> int:
        return node(truncated, leaves(blocks[block]))

    root = {byte: node(int(data[byte])) for byte in range(1, 0x80) if data[byte]}  # NUL has a field of its own
    root |= {byte: node(ill_formed[0]) for byte in range(0x80, 0x100)}
    root |= {0xC0 | block: last(block, ill_formed[0]) for block in range(2, 32)}
    root |= {0xE0 | number: lead3(number) for number in range(16)}
    root |= {0xF0 | number: lead4(number) for number in range(5)}
    node(0, tuple(sorted(root.items())))
    return list(numbers)


def _place(nodes: list[Node]) -> np.ndarray:
    """The units of the double array, uint32 `[units]`.

    Widest nodes first, each at a base whose slots are free and that no other node has: with a base of its own, the
    byte written in a unit tells whose child it is. Nodes that only hold a value come last and fill the gaps, so it
    does no harm to look for room in the last few blocks only.
    """
    slots = [([0] if value else []) + [byte for byte, _ in children] for value, children in nodes]
    low = np.arange(BLOCK)
    free = np.ones((0, BLOCK), bool)
    unused = np.ones((0, BLOCK), bool)  # as a base
    bases = np.zeros(len(nodes), np.int64)
    inner = [number for number, (_, children) in enumerate(nodes) if children]
    for number in sorted(inner, key=lambda n: -len(slots[n])):
        labels = np.array(slots[number])
        for block in range(max(0, len(free) - 4), len(free) + 1):
            if block == len(free):
                free = np.concatenate([free, np.ones((1, BLOCK), bool)])
                unused = np.concatenate([unused, np.ones((1, BLOCK), bool)])
                free[0, 0] = unused[0, 0] = False  # the root's own unit
            if free[block].sum() < len(labels):
                continue
            fits = unused[block] & free[block][low[:, None] ^ labels].all(1)
            if fits.any():
                base = int(fits.argmax())
                free[block, base ^ labels] = unused[block, base] = False
                bases[number] = block * BLOCK + base
                break
    values = [number for number, (_, children) in enumerate(nodes) if not children]
    missing = len(values) - int((free & unused).sum())
    more = np.ones((max(0, -(-missing // BLOCK)), BLOCK), bool)
    free, unused = np.concatenate([free, more]), np.concatenate([unused, more])
    bases[values] = np.flatnonzero(free & unused)[: len(values)]

    units = np.zeros(free.size, np.uint32)
    units[0] = bases[-1] << 10
    for number, (value, children) in enumerate(nodes):
        base = int(bases[number])
        if value:
            units[base] = IS_VALUE | value
        for byte, child in children:
            slot = base ^ byte
            units[slot] = byte | (HAS_VALUE if nodes[child][0] else 0) | (slot ^ int(bases[child])) << 10
    return units


def _flatbuffer(units: np.ndarray, of_nul: int, pool: np.ndarray) -> np.ndarray:
    """TensorFlow Text's FastBertNormalizerModel: a flag that no kernel reads, units, datum of NUL, string pool."""
    import flatbuffers

    builder = flatbuffers.Builder(units.nbytes + pool.nbytes + 256)
    pool_at = builder.CreateNumpyVector(pool)
    units_at = builder.CreateNumpyVector(units)
    builder.StartObject(4)
    builder.PrependUOffsetTRelativeSlot(3, pool_at, 0)
    builder.PrependInt32Slot(2, of_nul, 0)
    builder.PrependUOffsetTRelativeSlot(1, units_at, 0)
    builder.Finish(builder.EndObject())
    return np.frombuffer(bytes(builder.Output()), np.uint8)
