"""JSON examples to tf.Examples, and the results of classify and regress, against TF Serving's published cases."""

import json
import math

import numpy as np
import pytest
import tensorflow as tf

from keras_bert.server.examples import read_examples, write_classes, write_values
from keras_bert.server.json_tensor import RequestError, parse_document


def read(body):
    """The features of each example of a request body, as plain lists."""
    parsed = [tf.train.Example.FromString(row) for row in read_examples(parse_document(body.encode()))]
    return [
        {name: list(getattr(f, f.WhichOneof("kind")).value) for name, f in example.features.feature.items()}
        for example in parsed
    ]


def test_j18_context_and_mixed_features():
    found = read(
        """{"signature_name": "custom", "context": {"query": "pizza", "location": ["sfo"]}, "examples": [
            {"names": ["foo", "bar"], "ratings": [8.0, 9.0, NaN, Infinity], "age": 20},
            {"names": ["baz", {"b64": "aGVsbG8="}], "ratings": 6.0, "intboolmix": [1, true, false]},
            {"names": "bar", "ratings": -Infinity}]}"""
    )
    context = {"query": [b"pizza"], "location": [b"sfo"]}
    assert found[1] == context | {"names": [b"baz", b"hello"], "ratings": [6.0], "intboolmix": [1, 1, 0]}
    assert found[2] == context | {"names": [b"bar"], "ratings": [-math.inf]}
    assert math.isnan(found[0]["ratings"][2])
    assert found[0]["ratings"][3] == math.inf
    assert found[0]["age"] == [20]


def test_numbers_beyond_64_bits_are_decimals_and_beyond_float32_infinite():
    (found,) = read(f'{{"examples": [{{"a": {2**70}, "b": 1e300, "c": {2**63 - 1}, "d": {-(2**63)}}}]}}')
    assert found == {"a": [2.0**70], "b": [math.inf], "c": [2**63 - 1], "d": [-(2**63)]}


def test_of_equal_features_the_last_counts_and_of_other_equal_keys_the_first():
    (found,) = read(r'{"examples": [{"a": 1, "b\u0000c": "x", "a": ["y", "z"]}], "examples": []}')
    assert found == {"a": [b"y", b"z"], "b": [b"x"]}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ('{"context": [1], "examples": [{}]}', "Example must be JSON object but got JSON Array"),
        ('{"examples": {"names": 1}}', "Expecting 'examples' value to be an list/array"),
        ('{"examples": [[{"names": 1}]]}', "Example must be JSON object but got JSON Array"),
        ('{"examples": [{"names": [10, null]}]}', "Feature: names has element with unexpected JSON type: Null"),
        ('{"examples": [{"names": [10, 10.0]}]}', "Unexpected element type in feature: names expecting type: int64"),
        ('{"examples": [{"names": [10, {"test": 10}]}]}', "names has element with unexpected JSON type: Object"),
        ('{"examples": [{"names": [[10], 20]}]}', "names has element with unexpected JSON type: Array"),
        (
            '{"examples": [{"names": [20, 18446744073709551603]}]}',
            "names has uint64_t element. Only int64_t is supported",
        ),
        ('{"examples": [{"names": ["a", 1]}]}', "feature: names expecting type: bytes"),
        ('{"examples": [{"names": [1, 18446744073709551603, 1.5]}]}', "uint64_t"),
        ('{"examples": [{"names": [1.5, 18446744073709551603]}]}', "feature: names expecting type: float"),
        ('{"examples": [{"a": {"b64": "YQ==", "b64": "YQ=="}}]}', "a has element with unexpected JSON type: Object"),
        ('{"examples": [true]}', "Example must be JSON object but got JSON True"),
    ],
)
def test_j19_features_that_cannot_be(document, message):
    with pytest.raises(RequestError, match=message) as caught:
        read(document)
    assert caught.value.status == 400


def test_results_of_classification():
    classes = np.array([[b"car", "b\u00fcs".encode()], [b"bike", b'"q"']], object)
    scores = np.array([[0.2, 0.7], [1, math.nan]], np.float32)
    body = write_classes(classes, scores)
    assert b"NaN" in body
    assert json.loads(body.replace(b"NaN", b"0.5"))["results"] == [
        [["car", 0.2], ["b\u00fcs", 0.7]],
        [["bike", 1.0], ['"q"', 0.5]],
    ]
    assert json.loads(write_classes(classes, None))["results"][0] == [["car", 0.0], ["b\u00fcs", 0.0]]
    assert json.loads(write_classes(None, scores[:1]))["results"] == [[["", 0.2], ["", 0.7]]]


def test_results_of_regression():
    assert json.loads(write_values(np.array([[0.2], [0.9]], np.float32))) == {"results": [0.2, 0.9]}
    assert b"[Infinity, NaN]" in write_values(np.array([math.inf, math.nan], np.float32))


def test_j20_no_results():
    with pytest.raises(RequestError, match="empty ClassificationResults"):
        write_classes(None, np.zeros((0, 2), np.float32))
