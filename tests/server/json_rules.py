"""What TensorFlow Serving makes of a request document, rule by rule as its C++ source has them.

`parse` follows `reader.h` of rapidjson 1.1.0 (its iterative parser, with NaN and Infinity, which stops when done), byte
by byte. `predict_request` and `examples` follow `json_tensor.cc`. All are slow and meant to be compared with.
"""

import math
import re
from base64 import b64decode
from itertools import takewhile

PARSE_ERRORS = {
    "start": "The document is empty.",
    "array initial": "Invalid value.",
    "element delimiter": "Invalid value.",
    "key value delimiter": "Invalid value.",
    "element": "Missing a comma or ']' after an array element.",
    "object initial": "Missing a name for object member.",
    "member delimiter": "Missing a name for object member.",
    "member key": "Missing a colon after a name of object member.",
    "member value": "Missing a comma or '}' after an object member.",
}
TOKENS = {b"[": "[", b"]": "]", b"{": "{", b"}": "}", b",": ",", b":": ":", b'"': "string"}  # others are values
VALUES = {"string", "value"}
TRANSITIONS = {
    **{("start", token): "finish" for token in VALUES},
    **{("array initial", token): "element" for token in VALUES},
    **{("element delimiter", token): "element" for token in VALUES},
    **{("key value delimiter", token): "member value" for token in VALUES},
    **{("object initial", token): "member key" for token in ("string",)},
    **{("member delimiter", token): "member key" for token in ("string",)},
    **{
        (state, token): after
        for state in ("start", "array initial", "element delimiter", "key value delimiter")
        for token, after in (("[", "array initial"), ("{", "object initial"))
    },
    ("array initial", "]"): "array finish",
    ("element", "]"): "array finish",
    ("object initial", "}"): "object finish",
    ("member value", "}"): "object finish",
    ("element", ","): "element delimiter",
    ("member value", ","): "member delimiter",
    ("member key", ":"): "key value delimiter",
}
AROUND = {"start": "finish", "array initial": "element", "element delimiter": "element"}  # and "member value"


class Refused(Exception):
    """A status that is not OK: its code, and its message as a regular expression."""

    def __init__(self, message: str, code: str = "INVALID_ARGUMENT"):
        super().__init__(message)
        self.code = code


class Object(list):
    """The members of an object, `(name, value)`, equal names included."""

    def find(self, name):
        return next((value for key, value in self if key == name), None)

    def has(self, name):
        return any(key == name for key, _ in self)


class Stream:
    """A MemoryStream inside an EncodedInputStream of UTF-8."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0
        for mark in (b"\xef", b"\xbb", b"\xbf"):
            self.consume(mark)

    def peek(self) -> bytes:
        return self.data[self.at : self.at + 1] or b"\0"

    def take(self) -> bytes:
        sign = self.peek()
        self.at += self.at < len(self.data)
        return sign

    def consume(self, sign: bytes) -> bool:
        found = self.at < len(self.data) and self.peek() == sign
        self.at += found
        return found

    def consume_all(self, word: bytes) -> bool:
        return all(self.consume(word[i : i + 1]) for i in range(len(word)))

    def is_digit(self) -> bool:
        return b"0" <= self.peek() <= b"9"

    def fail(self, what: str, at: int | None = None):
        raise Refused(re.escape(f"JSON Parse error: {what} at offset: {self.at if at is None else at}"))


# === rapidjson ===


def parse(data: bytes):
    """None, bool, int, float, bytes, list or Object."""
    s, state, stack = Stream(data), "start", []
    result = None
    while state != "finish":
        while s.peek() in (b" ", b"\n", b"\r", b"\t"):
            s.take()
        if s.peek() == b"\0":
            s.fail(PARSE_ERRORS[state])
        token = TOKENS.get(s.peek(), "value")
        after = TRANSITIONS.get((state, token))
        if after is None:
            s.fail(PARSE_ERRORS[state])
        if after in ("array initial", "object initial"):
            stack.append([[] if token == "[" else Object(), AROUND.get(state, "member value"), None])
            s.take()
        elif after in ("array finish", "object finish"):
            s.take()
            result, after, _ = stack.pop()
            put(stack, result)
        elif after == "member key":
            stack[-1][2] = parse_string(s)
        elif after in ("element delimiter", "member delimiter", "key value delimiter"):
            s.take()
        else:
            result = parse_value(s)
            put(stack, result)
        state = after
    return result


def put(stack, value):
    if not stack:
        return
    container, _, key = stack[-1]
    container.append((key, value) if isinstance(container, Object) else value)


def parse_value(s: Stream):
    words = {b"n": (b"null", None), b"t": (b"true", True), b"f": (b"false", False)}
    if s.peek() == b'"':
        return parse_string(s)
    if s.peek() in words:
        word, value = words[s.peek()]
        if not s.consume_all(word):
            s.fail("Invalid value.")
        return value
    return parse_number(s)


def parse_string(s: Stream) -> bytes:
    escapes = dict(zip(b'"\\/bfnrt', b'"\\/\b\f\n\r\t', strict=True))
    out = bytearray()
    s.take()
    while True:
        sign = s.peek()
        if sign == b"\\":
            start = s.at
            s.take()
            if s.peek()[0] in escapes and s.at < len(s.data):
                out.append(escapes[s.take()[0]])
            elif s.consume(b"u"):
                out += parse_escape(s, start)
            else:
                s.fail("Invalid escape character in string.", start)
        elif sign == b'"':
            s.take()
            return bytes(out)
        elif sign == b"\0":
            s.fail("Missing a closing quotation mark in string.")
        elif sign < b" ":
            s.fail("Invalid escape character in string.")
        else:
            out += s.take()


def parse_escape(s: Stream, start: int) -> bytes:
    code = parse_hex4(s, start)
    if 0xD800 <= code <= 0xDBFF:
        if not s.consume_all(b"\\u"):
            s.fail("The surrogate pair in string is invalid.", start)
        second = parse_hex4(s, start)
        if not 0xDC00 <= second <= 0xDFFF:
            s.fail("The surrogate pair in string is invalid.", start)
        code = ((code - 0xD800) << 10 | (second - 0xDC00)) + 0x10000
    return chr(code).encode("utf-8", "surrogatepass")


def parse_hex4(s: Stream, start: int) -> int:
    code = 0
    for _ in range(4):
        if s.peek() not in [b"%c" % digit for digit in b"0123456789abcdefABCDEF"]:
            s.fail("Incorrect hex digit after \\u escape in string.", start)
        code = code << 4 | int(s.take(), 16)
    return code


def parse_number(s: Stream):
    start, d, named, use_double = s.at, 0.0, False, False
    minus = s.consume(b"-")
    i, significant = 0, 0
    limit = 2**63 if minus else 2**64 - 1
    if s.peek() == b"0":
        s.take()
    elif s.is_digit():
        i = int(s.take())
        while s.is_digit() and not use_double:
            if i * 10 + int(s.peek()) > limit:
                d, use_double = float(i), True
            else:
                i = i * 10 + int(s.take())
                significant += 1
    elif s.peek() in (b"I", b"N"):
        named = True
        if s.consume_all(b"NaN"):
            d = math.nan
        elif s.consume_all(b"Inf"):
            d = -math.inf if minus else math.inf
            if s.peek() == b"i" and not s.consume_all(b"inity"):
                s.fail("Invalid value.")
        else:
            s.fail("Invalid value.")
    else:
        s.fail("Invalid value.")
    while use_double and s.is_digit():
        if d >= 1.7976931348623157e307:
            s.fail("Number too big to be stored in double.", start)
        d = d * 10 + int(s.take())
    fraction = 0
    if s.consume(b"."):
        if not s.is_digit():
            s.fail("Miss fraction part in number.")
        if not use_double:
            while s.is_digit() and i <= 2**53 - 1:
                i = i * 10 + int(s.take())
                fraction -= 1
                significant += i != 0
            d, use_double = float(i), True
        while s.is_digit():
            digit = int(s.take())
            if significant < 17:
                d = d * 10.0 + digit
                fraction -= 1
                significant += d > 0
    exponent = 0
    if s.consume(b"e") or s.consume(b"E"):
        if not use_double:
            d, use_double = float(i), True
        negative = not s.consume(b"+") and s.consume(b"-")
        if not s.is_digit():
            s.fail("Miss exponent in number.")
        exponent = int(s.take())
        while s.is_digit():
            digit = int(s.take())
            if not negative or exponent < 214748364:
                exponent = exponent * 10 + digit
            if not negative and exponent > 308 - fraction:
                s.fail("Number too big to be stored in double.", start)
        exponent = -exponent if negative else exponent
    if use_double:
        power = exponent + fraction
        d = scale(scale(d, -308), power + 308) if power < -308 else scale(d, power)
        return -d if minus else d
    return d if named else -i if minus else i


def scale(d: float, power: int) -> float:
    if power < -308:
        return 0.0
    return d * 10.0**power if power >= 0 else d / 10.0**-power


# === json_tensor.cc ===

TYPES = {
    "float32": "float",
    "float64": "double",
    "float16": "half",
    "object": "string",
    **{name: name for name in ("bool", "int8", "int16", "int32", "int64", "uint8", "uint32", "uint64", "uint16")},
}
INTEGERS = {
    **dict.fromkeys(("int32", "int16", "int8", "uint8"), (-(2**31), 2**31 - 1)),
    "int64": (-(2**63), 2**63 - 1),
    "uint32": (0, 2**32 - 1),
    "uint64": (0, 2**64 - 1),
}


def parse_object(data: bytes) -> Object:
    if not data:
        raise Refused("JSON Parse error: The document is empty")
    document = parse(data)
    if not isinstance(document, Object):
        raise Refused(f"JSON Value: {quoted(document)} Is not object")
    return document


def signature(document: Object) -> bytes:
    name = document.find(b"signature_name")
    if document.has(b"signature_name") and not isinstance(name, bytes):
        raise Refused(
            f"JSON Value: {quoted(document)} not formatted correctly. 'signature_name' key must be a string value."
        )
    return name or b""


def predict_request(data: bytes, types: dict[str, str]):
    """For each input its shape and values, whether rows were given, and whether a row named an input twice."""
    document = parse_object(data)
    signature(document)
    if document.has(b"instances") and document.has(b"inputs"):
        raise Refused(
            f"JSON Value: {quoted(document)} Not formatted correctly expecting only one of 'inputs' or 'instances' "
            "keys to exist "
        )
    if document.has(b"instances"):
        rows = document.find(b"instances")
        if not is_list(rows):
            raise Refused(f"JSON Value: {quoted(document)} Expecting 'instances' to be an list/array")
        if not rows:
            raise Refused(f"JSON Value: {quoted(document)} No values in 'instances' array")
        return (*from_rows(rows, types), True)
    if document.has(b"inputs"):
        return from_columns(document.find(b"inputs"), types), False, False
    raise Refused("Missing 'inputs' or 'instances' key")


def from_rows(rows, types):
    if not isinstance(rows[0], Object) and len(types) > 1:
        raise Refused(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
            "tensorinfo_map"
        )
    named = is_element(rows[0])
    shapes, sizes, values, twice = {}, {}, {name: [] for name in types}, False
    for index, row in enumerate(rows):
        if is_element(row) != named:
            what = "object but got list" if named else "value/list but got object"
            raise Refused(f"Expecting {what} at item {index} of input list")
        keys = []
        for key, value in row if named else [(next(iter(types)).encode(), row)]:
            name = key.split(b"\0")[0].decode("utf-8", "surrogateescape")
            keys.append(name)
            try:
                add_item(value, name, types, shapes, sizes, values)
            except Refused as error:
                key_text = f" key: {re.escape(name)}" if named else ""
                raise Refused(
                    f"Failed to process element: {index}{key_text} of 'instances' list. Error: {error.code}: {error}"
                ) from None
        twice |= len(set(keys)) < len(keys)
        if set(keys) != set(types):
            raise Refused(
                f"Failed to process element: {index} of 'instances' list. JSON object: {quoted(row)} keys must be "
                f"equal to: {','.join(sorted(types))}"
            )
    return {name: ([len(rows), *shapes[name]], values[name]) for name in types}, twice


def add_item(item, name, types, shapes, sizes, values):
    if name not in types:
        raise Refused(f"JSON object: does not have named input: {re.escape(name)}")
    shape = dense_shape(item)
    before = len(values[name])
    fill(item, 0, shape, types[name], values[name])
    size = len(values[name]) - before
    if name not in sizes:
        sizes[name], shapes[name] = size, shape
    elif sizes[name] != size:
        raise Refused(f"Expecting tensor size: {sizes[name]} but got: {size}")
    elif shapes[name] != shape:
        wanted, got = (re.escape("[" + ",".join(map(str, dims)) + "]") for dims in (shapes[name], shape))
        raise Refused(f"Expecting shape {wanted} but got: {got}")


def from_columns(value, types):
    if not is_element(value):
        if len(types) > 1:
            raise Refused(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
                "tensorinfo_map"
            )
        value = Object([(next(iter(types)).encode(), value)])
    found = {}
    for name, kind in types.items():
        if not value.has(name.encode()):
            raise Refused(f"Missing named input: {name} in 'inputs' object.")
        item, values = value.find(name.encode()), []
        shape = dense_shape(item)
        fill(item, 0, shape, kind, values)
        found[name] = (shape, values)
    return found


def dense_shape(value) -> list[int]:
    if not is_list(value):
        return []
    return [len(value), *(dense_shape(value[0]) if value else [])]


def fill(value, level, shape, kind, values):
    if not is_list(value):
        if level != len(shape):
            raise Refused(
                f"JSON Value: {quoted(value)} found at incorrect level: {level + 1} in the JSON DOM. "
                f"Expected at level: {len(shape)}"
            )
        if isinstance(value, Object):
            if kind != "object":
                refuse_type(value, kind)
            values.append(from_base64(value))
        else:
            values.append(convert(value, kind))
        return
    if level >= len(shape):
        raise Refused(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise Refused(
            f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: {shape[level]}"
        )
    for item in value:
        fill(item, level + 1, shape, kind, values)


def convert(value, kind):
    if kind in ("float16", "uint16"):
        raise Refused(f"Conversion of JSON Value: {quoted(value)} to type: {TYPES[kind]}", "UNIMPLEMENTED")
    wanted = {"float32": (int, float), "float64": (int, float), "bool": (bool,), "object": (bytes,)}.get(kind, (int,))
    low, high = INTEGERS.get(kind, (-math.inf, math.inf))
    if type(value) not in wanted or (kind in INTEGERS and not low <= value <= high):
        refuse_type(value, kind)
    return value


def refuse_type(value, kind):
    raise Refused(f"JSON Value: {quoted(value)} Type: {json_type(value)} is not of expected type: {TYPES[kind]}")


def from_base64(value: Object) -> bytes:
    if not is_base64(value):
        raise Refused(f"JSON Value: {quoted(value)} not formatted correctly for base64 data")
    signs = [bytes([sign]) for sign in value.find(b"b64") if bytes([sign]) not in b" \t\n\v\f\r"]
    letters = list(takewhile(lambda sign: sign not in b"=.", signs))
    padding = signs[len(letters) :]
    wanted = {0: 0, 2: 2, 3: 1}.get(len(letters) % 4)
    if wanted is None or not all(sign.isalnum() or sign in b"+/" for sign in letters):
        raise Refused("Unable to base64 decode")
    if len(padding) not in (0, wanted) or not all(sign in b"=." for sign in padding):
        raise Refused("Unable to base64 decode")
    return b64decode(b"".join(letters) + b"=" * wanted)


def is_list(value):
    return isinstance(value, list) and not isinstance(value, Object)


def is_base64(value):
    return isinstance(value, Object) and len(value) == 1 and isinstance(value.find(b"b64"), bytes)


def is_element(value):
    return isinstance(value, Object) and not is_base64(value)


def json_type(value):
    kinds = {type(None): "Null", Object: "Object", list: "Array", bytes: "String"}
    return str(value) if isinstance(value, bool) else kinds.get(type(value), "Number")


def quoted(value) -> str:
    """A number or a word as the source prints it, as a regular expression; anything else is not compared."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, float):
        return ".*"
    if not math.isfinite(value):
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)]
    return "[-+.e0-9]+"


# === Examples of classify and regress ===


def example_request(data: bytes):
    """The context (or None) and the examples, each a dict of features `(kind, values)` by name."""
    document = parse_object(data)
    signature(document)
    context = example(document.find(b"context")) if document.has(b"context") else None
    rows = document.find(b"examples")
    if not document.has(b"examples"):
        raise Refused(
            f"JSON Value: {quoted(document)} When method is classify, key 'examples' is expected and was not found"
        )
    if not is_list(rows):
        raise Refused(f"JSON Value: {quoted(document)} Expecting 'examples' value to be an list/array")
    if not rows:
        raise Refused(f"JSON Value: {quoted(document)} 'examples' value is an empty array")
    return context, [example(row) for row in rows]


def example(value):
    if not isinstance(value, Object):
        raise Refused(f"Example must be JSON object but got JSON {json_type(value)}")
    features = {}
    for key, content in value:
        name = key.split(b"\0")[0].decode("utf-8", "surrogateescape")
        kind, values = None, []
        for item in content if is_list(content) else [content]:
            kind = add_to_feature(item, name, kind, values)
        features[name] = (kind, values)
    return features


def add_to_feature(value, name, kind, values):
    if value is None or is_list(value) or is_element(value):
        raise Refused(f"Feature: {re.escape(name)} has element with unexpected JSON type: {json_type(value)}")
    is_decimal = isinstance(value, float) or (isinstance(value, int) and not -(2**63) <= value < 2**64)
    own = "float" if is_decimal else "int64" if isinstance(value, int) else "bytes"
    if kind not in (None, own):
        raise Refused(f"Unexpected element type in feature: {re.escape(name)} expecting type: {kind}")
    if own == "int64" and value >= 2**63:
        raise Refused(f"Feature: {re.escape(name)} has uint64_t element. Only int64_t is supported.")
    values.append(from_base64(value) if isinstance(value, Object) else value)
    return own
