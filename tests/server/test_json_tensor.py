"""JSON to arrays and back, against TF Serving's published cases, and what its source says of others."""

import base64
import json
import math

import numpy as np
import pytest

from keras_bert.server import json_reader
from keras_bert.server.json_tensor import (
    RequestError,
    parse_document,
    read_inputs,
    signature_name,
    write_outputs,
)

DTYPES = {
    "float": np.float32,
    "double": np.float64,
    "string": object,
    "int": np.int32,
    "bool": np.bool_,
    "int8": np.int8,
    "uint64": np.uint64,
    "half": np.float16,
}


def read(body, **inputs):
    """The arrays of a request body; `inputs` gives the type of each input by name."""
    if isinstance(body, str):
        body = body.encode()
    return read_inputs(parse_document(body), {k: np.dtype(DTYPES[v]) for k, v in inputs.items()})[0]


def refusal(body, **inputs):
    with pytest.raises(RequestError) as caught:
        read(body, **inputs)
    assert caught.value.status == 400
    return str(caught.value)


def column(array):
    return json.loads(write_outputs({"y": np.asarray(array)}, row_form=False))["outputs"]


# --- requests ---


def test_j1_nested_integers_become_a_matrix():
    x = read('{"instances": [[1,2],[3,4],[5,6]]}', x="int")["x"]
    assert x.dtype == np.int32
    np.testing.assert_array_equal(x, [[1, 2], [3, 4], [5, 6]])


DEEP = "[" * 500_000 + "]" * 500_000
DEEPER = "[" * 5_000 + "]" * 5_000  # than Python's own reader goes


def test_j2_deep_nesting_under_a_key_that_nobody_reads_is_accepted():
    assert read(f'{{"other": {DEEP}, "instances": [1]}}', x="int")["x"].tolist() == [1]


def test_j3_a_deeply_nested_signature_name_is_refused():
    with pytest.raises(RequestError, match="'signature_name' key must be a string value"):
        signature_name(parse_document(f'{{"signature_name": {DEEPER}}}'.encode()))


def test_too_many_levels_are_refused(monkeypatch):
    monkeypatch.setattr(json_reader, "_MAX_DEPTH", 5001)
    assert read(f'{{"other": {DEEPER}, "instances": [1]}}', x="int")["x"] == [1]
    assert "too deeply" in refusal(f'{{"other": [{DEEPER}], "instances": [1]}}', x="int")


@pytest.mark.parametrize(
    "inner",
    ['{"a": [1, -2.5e3, "x\\"]}"], "b": {}, "c": []}', "[ ]", '[ 1 ,\n{ "a" : null } , true, NaN]', '"x"', "{}"],
)
def test_deeply_nested_documents_are_read_like_others(inner):
    wanted = json.loads(inner)
    found = parse_document(f'{{"x": {inner}, "deep": {DEEPER}, "last": {inner}}} rest'.encode())
    assert list(found) == ["x", "deep", "last"]
    np.testing.assert_equal([found["x"], found["last"]], [wanted, wanted])


BROKEN = [
    ("[1,]", 3, "Invalid value."),
    ("[,1]", 1, "Invalid value."),
    ("[1}", 2, "Missing a comma or ']' after an array element."),
    ("[1 2]", 3, "Missing a comma or ']' after an array element."),
    ('["a":1]', 4, "Missing a comma or ']' after an array element."),
    ('{"a" 1}', 5, "Missing a colon after a name of object member."),
    ('{"a":,}', 5, "Invalid value."),
    ('{"a": 1,}', 8, "Missing a name for object member."),
    ("{1: 2}", 1, "Missing a name for object member."),
    ('{"a": 1 "b"}', 8, "Missing a comma or '}' after an object member."),
    ("]", 0, "Invalid value."),
    ("[nul]", 4, "Invalid value."),
    ("[" + '1, "a,b", ' * 2500 + "x]", 25_001, "Invalid value."),
    ("[Infinit]", 8, "Invalid value."),
    ("[-]", 2, "Invalid value."),
    ("[01]", 2, "Missing a comma or ']' after an array element."),
    ("[1.]", 3, "Miss fraction part in number."),
    ("[1e+]", 4, "Miss exponent in number."),
    ("[1, 1e309]", 4, "Number too big to be stored in double."),
    ("[-1" + "0" * 309 + "]", 1, "Number too big to be stored in double."),
    ("[0e309]", 1, "Number too big to be stored in double."),
    (r'["ab\x"]', 4, "Invalid escape character in string."),
    ('["a\n"]', 3, "Invalid escape character in string."),
    (r'["\u12g4"]', 2, "Incorrect hex digit after \\u escape in string."),
    (r'["a\ud83d"]', 3, "The surrogate pair in string is invalid."),
    (r'["a\ud83d\u0041"]', 3, "The surrogate pair in string is invalid."),
    ('["a\0"]', 3, "Missing a closing quotation mark in string."),
]
"""What rapidjson 1.1.0 says of broken JSON, and at which byte."""


@pytest.mark.parametrize("before", ['{"é": ', f'{{"deep": {DEEPER}, "x": '])
@pytest.mark.parametrize(("inner", "offset", "message"), BROKEN)
def test_broken_json_is_refused_as_rapidjson_does(before, inner, offset, message):
    expected = f"JSON Parse error: {message} at offset: {len(before.encode()) + offset}"
    assert refusal(f"{before}{inner}}}", x="int") == expected


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (" \n", "The document is empty. at offset: 2"),
        ("\xef\xbb\xbf", "The document is empty. at offset: 3"),
        (" ,", "The document is empty. at offset: 1"),
        ("instances = [1, 2]", "Invalid value. at offset: 0"),
        ('{"instances": [1, 2', "Missing a comma or ']' after an array element. at offset: 19"),
        ('{"instances": "a', "Missing a closing quotation mark in string. at offset: 16"),
    ],
)
def test_documents_that_end_too_soon(body, message):
    assert refusal(body.encode("latin-1"), x="int") == f"JSON Parse error: {message}"


@pytest.mark.parametrize("depth", [64, 65, 900])
@pytest.mark.parametrize("key", ["instances", "inputs"])
def test_more_dimensions_than_an_array_can_have_are_refused(key, depth):
    nested = "[" * depth + "1" + "]" * depth
    assert "nested lists" in refusal(f'{{"{key}": [{nested}]}}', x="int")


def test_as_many_dimensions_as_an_array_can_have_are_accepted():
    nested = "[" * 63 + "1" + "]" * 63
    assert read(f'{{"instances": [{nested}]}}', x="int")["x"].shape == (1,) * 64


@pytest.mark.parametrize("kind", ["float", "double"])
def test_j4_whole_and_decimal_numbers_mix(kind):
    x = read('{"instances": [1, 2.0, 3, 5.003, 0.007, 0.0]}', x=kind)["x"]
    assert x.dtype == DTYPES[kind]
    np.testing.assert_array_equal(x, np.array([1, 2, 3, 5.003, 0.007, 0], DTYPES[kind]))


def test_j5_a_large_integer_equals_its_decimal_form():
    x = read('{"instances": [1435774380, 1435774380.0]}', x="float")["x"]
    assert x[0] == x[1] == np.float32(1435774380)


def test_j6_doubles_beyond_float32_become_infinity_or_zero():
    x = read('{"instances": [1.7976931348623157e308, -1.7976931348623157e308, 2.2250738585072014e-308]}', x="float")[
        "x"
    ]
    np.testing.assert_array_equal(x, np.array([np.inf, -np.inf, 0], np.float32))


@pytest.mark.parametrize(
    ("instances", "shape"),
    [
        ('[{"b64": "aGVsbG8="}, {"b64": "d29ybGQ="}]', (2,)),
        ('[[{"b64": "aGVsbG8="}], [{"b64": "d29ybGQ="}]]', (2, 1)),
        ('[{"x": [[{"b64": "aGVsbG8="}], [{"b64": "d29ybGQ="}]]}]', (1, 2, 1)),
    ],
)
def test_j7_base64_strings(instances, shape):
    x = read(f'{{"instances": {instances}}}', x="string")["x"]
    assert x.shape == shape
    assert x.ravel().tolist() == [b"hello", b"world"]


def test_base64_without_padding_and_with_bytes_that_are_no_text():
    x = read('{"instances": [{"b64": "aGVsbG8"}, {"b64": "/wA="}]}', x="string")["x"]
    assert x.tolist() == [b"hello", b"\xff\x00"]


def test_base64_with_line_ends_and_spaces():
    lines = base64.encodebytes(bytes(range(256))).decode()  # as the command base64 prints it
    texts = [lines, lines.replace("\n", " \r\n\t"), "aGVs bG8 =", " aG Vs bG8.\n", ""]
    x = read(json.dumps({"instances": [{"b64": text} for text in texts]}), x="string")["x"]
    assert x.tolist() == [bytes(range(256))] * 2 + [b"hello"] * 2 + [b""]


@pytest.mark.parametrize(
    "text", ["_-_-", "a", "aGVsb", "aGVsbG8==", "aGVsbA=", "aGVs=bG8", "aGVs\x00bG8", "aGVs=", "é"]
)
def test_base64_of_the_wrong_form_is_refused(text):
    assert "Unable to base64 decode" in refusal(json.dumps({"instances": [{"b64": text}]}), x="string")


def test_objects_of_another_form_are_no_base64():
    assert "formatted correctly for base64" in refusal('{"instances": [[{"b": "a"}]]}', x="string")


def test_j8_named_inputs_with_nan_and_infinity():
    arrays = read(
        """{"instances": [
            {"i": [[1,2],[3,4]], "s": ["foo", "bar"], "f": [1.0, NaN], "d": [NaN]},
            {"i": [[5,6],[7,8]], "s": ["baz", "é"], "f": [-Infinity, Infinity], "d": [2]}]}""",
        i="int",
        s="string",
        f="float",
        d="double",
    )
    np.testing.assert_array_equal(arrays["i"], [[[1, 2], [3, 4]], [[5, 6], [7, 8]]])
    assert arrays["s"].tolist() == [[b"foo", b"bar"], [b"baz", "é".encode()]]
    np.testing.assert_array_equal(arrays["f"], np.array([[1, np.nan], [-np.inf, np.inf]], np.float32))
    np.testing.assert_array_equal(arrays["d"], [[np.nan], [2]])


def test_j9_bytes_after_the_document_are_ignored():
    assert read(b'  {"instances": [1, 2]}X \xff{', x="int")["x"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("instances", "message"),
    [
        (
            "[[1,2],[3,4],[5,6,7]]",
            "element: 2 of 'instances' list. Error: INVALID_ARGUMENT: Expecting tensor size",
        ),
        ("[[1,2],[[5,6]]]", "Expecting shape [2] but got: [1,2]"),
        ("[1,[1]]", "Expecting shape [] but got: [1]"),
        ('[[1,2],["a","b"]]', 'JSON Value: "a" Type: String is not of expected type: int32'),
        ("[[[1,2],[3]]]", "Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
        ("[[[1,2],3]]", "JSON Value: 3 found at incorrect level: 2"),
        ("[[1,[2]]]", "Encountered list at unexpected level: 1 expected < 1"),
    ],
)
def test_j10_uneven_rows_are_refused(instances, message):
    assert message in refusal(f'{{"instances": {instances}}}', x="int")


def test_j11_both_request_forms_at_once_are_refused():
    assert "Not formatted correctly" in refusal('{"instances": [1], "inputs": [1]}', x="int")


def test_j12_objects_and_lists_do_not_mix():
    assert "Expecting object but got list at item 1" in refusal('{"instances": [{"x": 1}, [1]]}', x="int")
    message = refusal('{"instances": [[1], {"x": 1}]}', x="int")
    assert "Expecting value/list but got object at item 1" in message


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "JSON Parse error: The document is empty"),
        ("[1, 2]", "Is not object"),
        ("{}", "Missing 'inputs' or 'instances' key"),
        ("1e400", "Number too big to be stored in double. at offset: 0"),
        ("1.5", "JSON Value: 1.5 Is not object"),
        ('{"instances": 1}', "Expecting 'instances' to be an list/array"),
        ('{"instances": []}', "No values in 'instances' array"),
    ],
)
def test_documents_that_are_no_request(body, message):
    assert message in refusal(body, x="int")


@pytest.mark.parametrize(
    ("kind", "value", "named"),
    [
        ("int", "1.0", "Number is not of expected type: int32"),
        ("int", "true", "True is not of expected type: int32"),
        ("int", "2147483648", "Number is not of expected type: int32"),
        ("int8", "-129", "Number is not of expected type: int8"),
        ("uint64", "-1", "Number is not of expected type: uint64"),
        ("float", '"x"', "String is not of expected type: float"),
        ("float", "false", "False is not of expected type: float"),
        ("double", "null", "Null is not of expected type: double"),
        ("float", '{"b64": "aGVsbG8="}', "Object is not of expected type: float"),
        ("bool", "1", "Number is not of expected type: bool"),
        ("string", "NaN", "JSON Value: NaN Type: Number is not of expected type: string"),
        ("string", "-2.50", "JSON Value: -2.5 Type: Number is not of expected type: string"),
        ("int", "3e9", "JSON Value: 3e+09 Type: Number is not of expected type: int32"),
        ("int", "18446744073709551616", "JSON Value: 1.84467441e+19 Type: Number is not of expected type: int32"),
        ("string", r'"\udc00"', "Invalid encoding in string"),
    ],
)
def test_values_of_another_type_are_refused(kind, value, named):
    assert named in refusal(f'{{"instances": [{value}]}}', x=kind)


def test_text_that_is_not_utf8_is_refused():
    assert "Invalid encoding in string" in refusal(b'{"instances": ["\xff"]}', x="string")


def test_an_input_type_without_json_form_is_unimplemented():
    with pytest.raises(RequestError, match=r"^Conversion of JSON Value: 1\.5 to type: half$") as caught:
        read('{"inputs": [1.5]}', x="half")
    assert caught.value.status == 501
    message = "Failed to process element: 0 of 'instances' list. Error: UNIMPLEMENTED: Conversion of JSON Value: 1"
    assert message in refusal('{"instances": [1]}', x="half")
    assert "Type: Object is not of expected type: half" in refusal('{"instances": [{"b64": ""}]}', x="half")


def test_an_input_type_without_json_form_may_be_empty():
    x = read('{"inputs": [[], []]}', x="half")["x"]
    assert (x.shape, x.dtype) == ((2, 0), np.float16)


@pytest.mark.parametrize(
    ("text", "value"),
    [("NaN", math.nan), ("-NaN", math.nan), ("Inf", math.inf), ("-Inf", -math.inf), ("-Infinity", -math.inf)],
)
def test_numbers_that_have_names(text, value):
    np.testing.assert_array_equal(read(f'{{"instances": [{text}]}}', x="float")["x"], np.float32([value]))


@pytest.mark.parametrize("text", ["0." + "0" * 30 + "1e330", "1" + "0" * 308, "1e-400", "1e0000308"])
def test_numbers_at_the_ends_of_double(text):
    assert read(f'{{"inputs": {text}}}', x="double")["x"] == float(text)


@pytest.mark.parametrize("text", ["1e309", "-1" + "0" * 309 + ".5", r'"\ud83d"'])
def test_what_no_number_or_text_can_be_is_refused_in_keys_that_nobody_reads(text):
    assert refusal(f'{{"instances": [1], "other": {text}}}', x="int").endswith(f" at offset: {28 + ('d8' in text)}")


def test_text_in_keys_that_nobody_reads_may_be_odd():
    assert read(b'{"\xff": "\xff", "other": "\\udc00", "instances": [1]}', x="int")["x"] == [1]


# --- equal keys ---


def test_of_equal_keys_the_first_counts():
    assert read('{"instances": [1], "instances": [2], "inputs\\u0000": 3}', x="int")["x"].tolist() == [1]
    assert read('{"inputs": {"x": 1, "x": 2, "y": 3}, "inputs": 4}', x="int")["x"] == 1
    assert signature_name(parse_document(b'{"signature_name": "a", "signature_name": 5}')) == "a"


def test_of_equal_keys_in_a_row_the_first_counts_and_each_must_fit():
    assert read('{"instances": [{"x": 1, "x": 2}, {"x": 3}]}', x="int")["x"].tolist() == [1, 3]
    message = "Failed to process element: 0 key: x of 'instances' list. Error: INVALID_ARGUMENT: JSON Value: \"a\""
    assert message in refusal('{"instances": [{"x": 1, "x": "a"}]}', x="int")
    assert "Expecting tensor size: 1 but got: 2" in refusal('{"instances": [{"x": 1, "x": [2, 3]}]}', x="int")


def test_keys_of_rows_end_at_a_nul():
    assert read(r'{"instances": [{"x\u0000y": 1}]}', x="int")["x"].tolist() == [1]


def test_two_b64_keys_are_no_base64():
    two = '{"b64": "YQ==", "b64": "YQ=="}'
    assert "key: b64 of 'instances' list. Error" in refusal(f'{{"instances": [{two}]}}', x="string")
    assert "formatted correctly for base64" in refusal(f'{{"instances": [[{two}]]}}', x="string")


def test_rows_must_name_exactly_the_inputs():
    assert "does not have named input: c" in refusal('{"instances": [{"a": 1, "c": 1}]}', a="int", b="int")
    assert "keys must be equal to: a,b" in refusal('{"instances": [{"a": 1}]}', a="int", b="int")
    assert "expecting list of objects" in refusal('{"instances": [1]}', a="int", b="int")


def test_columns_ignore_extra_names_and_demand_the_others():
    arrays = read('{"inputs": {"a": [1], "b": 2, "c": 3}}', a="int", b="int")
    assert arrays.keys() == {"a", "b"}
    assert (arrays["a"].shape, arrays["b"].shape) == ((1,), ())
    assert "Missing named input: b" in refusal('{"inputs": {"a": [1]}}', a="int", b="int")
    assert "expecting an object" in refusal('{"inputs": [1]}', a="int", b="int")


@pytest.mark.parametrize("kind", ["int", "float", "string", "bool"])
def test_empty_columns_are_a_batch_of_none(kind):
    x = read('{"inputs": []}', x=kind)["x"]
    assert x.shape == (0,)
    assert x.dtype == DTYPES[kind]


def test_long_values_are_cut_in_messages():
    assert len(refusal(json.dumps({"instances": 0, "rest": "a" * 10_000}), x="int")) < 400


def test_signature_name():
    assert signature_name({}) == signature_name({"signature_name": ""}) == "serving_default"
    assert signature_name({"signature_name": "tagging"}) == "tagging"
    with pytest.raises(RequestError, match="'signature_name' key must be a string value"):
        signature_name({"signature_name": 5})


# --- answers ---


def test_one_output_loses_its_name_in_both_forms():
    y = {"y": np.array([[1, 2], [3, 4]], np.int32)}
    assert json.loads(write_outputs(y, row_form=True)) == {"predictions": [[1, 2], [3, 4]]}
    assert json.loads(write_outputs(y, row_form=False)) == {"outputs": [[1, 2], [3, 4]]}


def test_several_outputs_are_objects_per_row_or_one_object_of_columns():
    outputs = {"b": np.array([True, False]), "a": np.array([[0.5], [1.5]], np.float32)}
    assert json.loads(write_outputs(outputs, row_form=True)) == {
        "predictions": [{"a": [0.5], "b": True}, {"a": [1.5], "b": False}]
    }
    assert json.loads(write_outputs(outputs, row_form=False)) == {"outputs": {"a": [[0.5], [1.5]], "b": [True, False]}}


def test_j13_an_alias_ending_in_bytes_is_written_as_base64():
    values = np.array([b"hello", b"\xff"], object)
    body = write_outputs({"raw_bytes": values, "n": np.array([1, 2])}, row_form=True)
    assert json.loads(body)["predictions"] == [
        {"n": 1, "raw_bytes": {"b64": "aGVsbG8="}},
        {"n": 2, "raw_bytes": {"b64": "/w=="}},
    ]


def test_strings_are_written_as_utf8_text():
    body = write_outputs({"y": np.array(['ünï "q"\n'.encode(), b"\x00"], object)}, row_form=True)
    assert "ünï".encode() in body
    assert json.loads(body)["predictions"] == ['ünï "q"\n', "\x00"]


def test_strings_that_are_not_utf8_are_written_raw_as_tf_serving_does():
    assert b'"a\xffb"' in write_outputs({"y": np.array([b"a\xffb"], object)}, row_form=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_j14_decimals_are_short(dtype):
    y = np.array([9000000, 999999, 0.5, 0.0003, 0.00003, 555557.5, 0.1, -7], dtype)
    body = write_outputs({"y": y}, row_form=False).decode()
    assert "[9e+06, 999999.0, 0.5, 0.0003, 3e-05, 555557.5, 0.1, -7.0]" in body


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.float32(1 / 3), "0.333333343"),
        (np.float32(16777216), "16777216.0"),
        (np.float32(3.4028235e38), "3.40282347e+38"),
        (np.float32(1e-45), "1.4013e-45"),
        (np.float64(1 / 3), "0.33333333333333331"),
        (np.float64(1e23), "1e+23"),
        (np.float64(123456789), "123456789.0"),
        (np.float64(5e-324), "4.94066e-324"),
        (np.float32(-0.0), "-0.0"),
    ],
)
def test_decimals_that_need_more_than_six_digits_have_all_of_them(value, text):
    assert write_outputs({"y": np.array([value])}, row_form=False) == b'{\n    "outputs": [%s]\n}' % text.encode()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_decimals_read_back_as_the_same_number(dtype):
    rng = np.random.default_rng(0)
    y = (rng.standard_normal(1000) * 10.0 ** rng.integers(-30, 30, 1000)).astype(dtype)
    y = np.concatenate([y, [np.finfo(dtype).max, np.finfo(dtype).smallest_subnormal, dtype(-0.0)]])
    np.testing.assert_array_equal(np.array(column(y), dtype), y)


def test_j15_nan_and_infinity_are_bare_tokens():
    y = np.array([np.nan, np.inf, -np.inf], np.float32)
    assert b"[NaN, Infinity, -Infinity]" in write_outputs({"y": y}, row_form=False)
    nan, high, low = column(y)
    assert math.isnan(nan)
    assert (high, low) == (math.inf, -math.inf)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"y": np.array([1j], np.complex64)}, "Failed to write JSON value for tensor type: complex64"),
        ({"y": np.array([1], np.float16)}, "Failed to write JSON value for tensor type: half"),
        ({"y": np.array(1.0)}, "Tensor name: y has no shape information"),
        ({"a": np.zeros(2), "b": np.zeros(3)}, "Tensor name: b has inconsistent batch size: 3 expecting: 2"),
        ({}, "Cannot convert empty tensor map to JSON"),
    ],
)
def test_j16_outputs_that_cannot_be_rows_are_refused(outputs, message):
    with pytest.raises(RequestError, match=message) as caught:
        write_outputs(outputs, row_form=True)
    assert caught.value.status == 400


@pytest.mark.parametrize("shape", [(0,), (2, 0)])
def test_an_output_type_without_json_form_may_be_empty(shape):
    assert column(np.zeros(shape, np.float16)) == np.zeros(shape).tolist()


def test_a_scalar_output_is_fine_in_columns():
    assert column(np.float32(2.5)) == 2.5


@pytest.mark.parametrize("outputs", [{"a": np.zeros(0)}, {"a": np.zeros((0, 3)), "b": np.zeros(0, object)}])
def test_j17_no_rows(outputs):
    assert json.loads(write_outputs(outputs, row_form=True)) == {"predictions": []}


@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 2), (2, 0, 3), (2, 3, 4), (1,)])
def test_every_shape_survives_the_column_form(shape):
    y = np.arange(math.prod(shape), dtype=np.int64).reshape(shape)
    assert column(y) == y.tolist()
