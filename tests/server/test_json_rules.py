"""Random documents, most of them broken somewhere, against the rules of TensorFlow Serving's source in `json_rules`.

What the server refuses on purpose (see `json_tensor`) is told apart: text that is not UTF-8, and rows in which one key
stands twice.
"""

import math
import random
import re

import json_rules as rules
import numpy as np
import pytest
import tensorflow as tf
from json_rules import Refused

from keras_bert.server.examples import read_examples
from keras_bert.server.json_tensor import RequestError, parse_document, read_inputs, signature_name

SIGNATURES = [
    {"x": "int32"},
    {"x": "int64"},
    {"x": "uint64"},
    {"x": "float32"},
    {"x": "float64"},
    {"x": "float16"},
    {"x": "bool"},
    {"x": "object"},
    {"a": "object", "x": "float32"},
]
# fmt: off
NUMBERS = [
    "0", "-0", "1", "-7", "12", "2147483647", "2147483648", "-2147483649", "9223372036854775807",
    "9223372036854775808", "-9223372036854775808", "-9223372036854775809", "18446744073709551615",
    "18446744073709551616", "1.5", "-0.25", "1e5", "1E+2", "2.5e-3", "1e308", "1.8e308", "1e309", "-1e400", "0e400",
    "0.001e310", "0.0001e312", "1e-400", "1e0000308", "12345678901234567890.123456789012345678901e300",
    "1.2345678901234567890123456789e320", "NaN", "-NaN", "Inf", "-Inf", "Infinity", "-Infinity", "NInf", "NaN.5",
    "Infe2", "Infi", "-I", "Na", "-", "--1", "+1", "01", "1.", ".5", "1e", "1e+", "1.e5", "true", "false", "null",
    "tru", "True", "x", "'a'",
]
# fmt: on
NUMBERS += ["1" + "0" * zeros for zeros in (307, 308, 309)] + ["-1" + "0" * 310 + ".5", "0." + "0" * 30 + "1e330"]
TEXTS = [
    "",
    "a",
    "b64",
    "x",
    "aGVsbG8=",
    "aGVs\\nbG8",
    "aGVsbG8 =",
    "aGVsbG8.",
    "a",
    r"\n\"\\\/",
    r"\u00e9",
    "é",
    r"\ud83d\ude00",
]
ODD_TEXTS = [
    r"\ud83d",
    r"\ude00",
    r"\ud83d\u0041",
    r"\ud83d\u12",
    r"\u12g4",
    r"\x",
    "a\nb",
    "a\0b",
    r"x\u0000y",
    r"\\ud83d",
]
SCALARS = {
    "any": NUMBERS,
    "object": TEXTS,
    "bool": ["true", "false"],
    "int32": NUMBERS[:6],
    "int64": NUMBERS[:9],
    "uint64": [*NUMBERS[2:3], *NUMBERS[5:9]],
    "float32": NUMBERS[:23],
}
CUTS = [",", ":", "]", "}", "[", "{", '"', "\\", "\0", "1", "e", ".", " ", "-", "I", "N", "\x0b"]
FRONTS = [b"", b"", b"", b" ", b"\n\t", b"\xef\xbb\xbf", b"\xbb", b"\xef\xbf "]


class Writer:
    """Random JSON; the lists of one document tend to the same length, so that tensors come out."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.width, self.kind = self.random.randrange(3), "any"

    def text(self, odd: float = 0.02) -> str:
        return f'"{self.random.choice(ODD_TEXTS if self.random.random() < odd else TEXTS)}"'

    def scalar(self) -> str:
        kind = self.random.choice([*SCALARS]) if self.random.random() < 0.03 else self.kind
        if kind == "object":
            return self.text() if self.random.random() < 0.7 else f'{{"b64": {self.text()}}}'
        return self.random.choice(SCALARS.get(kind, NUMBERS))

    def tensor(self, rank: int) -> str:
        if rank == 0 or self.random.random() < 0.05:
            return self.scalar()
        width = self.width if self.random.random() < 0.97 else self.random.randrange(4)
        return self.list([self.tensor(rank - 1) for _ in range(width)])

    def list(self, items) -> str:
        return "[" + self.random.choice([",", ", ", " ,\n"]).join(items) + "]"

    def object(self, pairs) -> str:
        pairs = list(pairs)
        if self.random.random() < 0.05 and pairs:
            pairs.append(self.random.choice(pairs))
        return "{" + ", ".join(f'"{name}":{value}' for name, value in pairs) + "}"

    def typed(self, kind: str, rank: int) -> str:
        self.kind = {"float64": "float32", "float16": "float32"}.get(kind, kind)
        return self.tensor(rank)

    def row(self, types, rank: int) -> str:
        pairs = [(name, self.typed(kind, rank)) for name, kind in types.items()]
        return self.object(pair for pair in pairs if self.random.random() < 0.99)

    def predict(self, types) -> bytes:
        rank, number = self.random.randrange(3), self.random.randrange(1, 4)
        named = len(types) > 1 or self.random.random() < 0.3
        (only, *_) = types.values()
        rows = [self.row(types, rank) if named else self.typed(only, rank) for _ in range(number)]
        columns = self.row(types, rank + 1) if named else self.typed(only, rank + 1)
        pairs = [self.random.choice([("instances", self.list(rows)), ("inputs", columns)])]
        if self.random.random() < 0.1:
            pairs.append(("instances", self.random.choice([self.list(rows), "[]", "1", "null"])))
        return self.document(pairs)

    def classify(self) -> bytes:
        rows = [
            self.row({"a": "object", "b": "float32"}, self.random.randrange(2))
            for _ in range(self.random.randrange(1, 4))
        ]
        pairs = [("examples", self.list(rows))]
        if self.random.random() < 0.3:
            pairs.append(("context", self.random.choice([*rows, "[]", "true"])))
        return self.document(pairs)

    def document(self, pairs) -> bytes:
        if self.random.random() < 0.2:
            pairs.append(("signature_name", self.random.choice(['"s"', '""', "5", "null"])))
        if self.random.random() < 0.2:
            pairs.append(("other", self.random.choice([self.text(0.5), self.random.choice(NUMBERS), self.tensor(2)])))
        self.random.shuffle(pairs)
        body = bytearray(self.object(pairs).encode())
        if self.random.random() < 0.25:
            place = self.random.randrange(len(body))
            end = self.random.choice([place, place, place + 1, len(body)])
            body[place:end] = self.random.choice(CUTS).encode() if self.random.random() < 0.7 else b"\xff"
        return self.random.choice(FRONTS) + bytes(body) + self.random.choice([b"", b"", b"x", b" 1"])


def holds_odd_text(value) -> bool:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").encode() != value
    if isinstance(value, rules.Object):
        return any(holds_odd_text(key) or holds_odd_text(item) for key, item in value)
    return isinstance(value, list) and any(holds_odd_text(item) for item in value)


def compare_refusals(body, expected, error):
    """True if both refuse for the same reason, with the same text; else an AssertionError."""
    odd = "Invalid encoding in string" in str(error)
    if odd:
        assert holds_odd_text(rules.parse(body)), body
        return
    assert expected is not None, (body, error)
    assert re.fullmatch(str(expected), str(error), re.DOTALL), (body, str(expected), str(error))
    assert isinstance(error, RequestError)
    assert error.status == {"INVALID_ARGUMENT": 400, "UNIMPLEMENTED": 501}[expected.code], body


def outcome(function, *args):
    """What it returns, and what it raises."""
    try:
        return function(*args), None
    except (Refused, RequestError) as error:
        return None, error


def read_predict(body, types):
    document = parse_document(body)
    signature_name(document)
    return read_inputs(document, {name: np.dtype(kind) for name, kind in types.items()})


def check_predict(seed):
    types = SIGNATURES[seed % len(SIGNATURES)]
    body = Writer(seed).predict(types)
    expected, refused = outcome(rules.predict_request, body, types)
    found, error = outcome(read_predict, body, types)
    if error is not None:
        compare_refusals(body, refused, error)
        return False
    assert expected is not None, (body, str(refused))
    tensors, twice, row_form = expected
    assert found[1] == row_form, body
    for name, (shape, values) in tensors.items():
        array, size = found[0][name], math.prod(shape)
        assert (array.shape, array.dtype) == (tuple(shape), types[name]), body
        if not (twice and shape[0] > 1):  # there later rows get values of earlier ones
            compare_values(body, array.reshape(-1), values[:size])
    return True


def compare_values(body, array, values):
    if array.dtype.kind != "f":
        assert array.tolist() == values, body
        return
    with np.errstate(over="ignore"):
        wanted = np.array(values, np.float64).astype(array.dtype)
    np.testing.assert_allclose(
        array, wanted, rtol=1e-14 if array.itemsize == 8 else 2e-7, atol=1e-300, err_msg=str(body)
    )


def read_classify(body):
    document = parse_document(body)
    signature_name(document)
    return read_examples(document)


def check_classify(seed):
    body = Writer(seed).classify()
    expected, refused = outcome(rules.example_request, body)
    found, error = outcome(read_classify, body)
    if error is not None:
        compare_refusals(body, refused, error)
        return False
    assert expected is not None, (body, str(refused))
    context, rows = expected
    assert len(found) == len(rows)
    for serialized, row in zip(found, rows, strict=True):
        compare_features(body, tf.train.Example.FromString(serialized), (context or {}) | row)
    return True


def compare_features(body, example, wanted):
    assert example.features.feature.keys() == wanted.keys(), body
    for name, (kind, values) in wanted.items():
        feature = example.features.feature[name]
        assert feature.WhichOneof("kind") == (kind and f"{kind}_list"), body
        found = list(getattr(feature, f"{kind}_list").value) if kind else []
        if kind == "float":
            compare_values(body, np.array(found, np.float32), values)
        else:
            assert found == values, body


COUNTS = [400, pytest.param(20_000, marks=pytest.mark.slow)]


@pytest.mark.parametrize("count", COUNTS)
def test_random_requests_are_read_by_the_rules(count):
    accepted = sum(check_predict(seed) for seed in range(count))
    assert count // 4 < accepted < 3 * count // 4


@pytest.mark.parametrize("count", COUNTS)
def test_random_examples_are_read_by_the_rules(count):
    accepted = sum(check_classify(seed) for seed in range(count))
    assert count // 4 < accepted < 3 * count // 4
