"""JSON as TensorFlow Serving reads it: rapidjson 1.1.0 with NaN and Infinity, which stops after the first value.

Differences from Python's `json`: of equal keys the first counts; `Inf`, `-Inf` and `-NaN` are numbers; a number beyond
float64 and a high surrogate without a low one are errors wherever they stand; errors have rapidjson's texts, with the
offset in bytes. A decimal number is rounded correctly here, where rapidjson may be a few units in the last place off.
Needs the standard library alone.
"""

import json
import math
import re
import sys
from collections.abc import Collection, Mapping
from json.decoder import scanstring  # type: ignore[attr-defined]  # typeshed lacks it
from typing import Any, NoReturn

_MAX_DEPTH = 2**20
_LARGEST = sys.float_info.max
_START = re.compile(rb"\xef?\xbb?\xbf?[ \t\r\n]*")  # a byte order mark, or any part of one, as rapidjson has it
_SPACE = re.compile(rb"[ \t\r\n]*")
_DIGITS = re.compile(rb"[0-9]+")
_POINT, _EXPONENT = re.compile(rb"\."), re.compile(rb"[eE]([+-]?)")
_HIGH_SURROGATE = re.compile(rb"\\u[dD][89abAB]..(?!\\u[dD][c-fC-F])", re.DOTALL)
_CHARACTERS = re.compile(
    rb'[^"\\\x00-\x1f]*'
    rb'(?:\\(?:["\\/bfnrt]|u(?![dD][89abAB])[0-9a-fA-F]{4}|u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})'
    rb'[^"\\\x00-\x1f]*)*'
)
_PLAIN_ITEMS = re.compile(
    rb'(?:(?:-?(?:0|[1-9][0-9]{0,17})(?:\.[0-9]{1,17})?|"[^"\\\x00-\x1f]*"|true|false|null)'
    rb"[ \t\r\n]*,[ \t\r\n]*){2,1000}"
)
_HEX = re.compile(rb"[0-9a-fA-F]{4}")
_LITERALS = {b"t": (b"true", True), b"f": (b"false", False), b"n": (b"null", None)}
_CLOSING = {b"]": "array", b"}": "object"}
_OPENING = {b"[": "array", b"{": "object"}
_VALUE_COMES = ("start", "array", "next item", "value")
_ERRORS = {
    "start": "The document is empty.",
    "array": "Invalid value.",
    "next item": "Invalid value.",
    "value": "Invalid value.",
    "item": "Missing a comma or ']' after an array element.",
    "object": "Missing a name for object member.",
    "next member": "Missing a name for object member.",
    "name": "Missing a colon after a name of object member.",
    "member": "Missing a comma or '}' after an object member.",
}
"""What is wrong where the text ends, or goes on with the wrong character: after `[`, after a comma in a list, after a
colon, after an item, after `{`, after a comma in an object, after a name, after a member."""


class ParseError(ValueError):
    """The text is not JSON; the message is rapidjson's."""


class Members(dict):
    """An object with equal keys: a dict of the first of each. `pairs` has all of them in the order of the text."""

    pairs: list[tuple[str, Any]]


def members(value: Mapping[str, Any]) -> Collection[tuple[str, Any]]:
    """The pairs of an object in the order of the text, equal keys included."""
    return value.pairs if isinstance(value, Members) else value.items()


def read(body: bytes) -> Any:
    """The JSON value at the start of `body`; what follows it is not looked at.

    Objects are dicts, or `Members` where keys are equal. Bytes that are not UTF-8 become lone surrogates, as in
    `surrogateescape`. Python's reader does the work; what it does not read, or may read in another way, is read again
    step by step.

    Raises:
        ParseError: there is none, or it is nested more than a million levels deep.
    """
    start = _START.match(body).end()  # type: ignore[union-attr]  # it matches anywhere
    if not _HIGH_SURROGATE.search(body):
        try:
            value, _ = _PLAIN.raw_decode(body[start:].decode("utf-8", "surrogateescape"))
            if isinstance(value, dict | list):  # a number may go on for rapidjson
                return value
        except (ValueError, RecursionError):
            pass
    return _Reader(body, start).read()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        found = Members(reversed(pairs))
        found.pairs = pairs
    return found


def _decimal(text: str) -> float:
    value = float(text)
    if math.isinf(value) or (value == 0 and ("e" in text or "E" in text)):  # it may be beyond rapidjson's exponents
        raise ValueError
    return value


def _whole(text: str) -> int:
    if len(text) > 308:
        raise ValueError
    return int(text)


_PLAIN = json.JSONDecoder(object_pairs_hook=_object, parse_float=_decimal, parse_int=_whole)


class _Reader:
    """Reads the value step by step, without recursion."""

    def __init__(self, body: bytes, start: int) -> None:
        self._body, self._at, self._state = body, start, "start"
        self._open: list[tuple[list, str]] = []  # the items or pairs of each open list and object, and where it stands
        self._names: list[str] = []

    def read(self) -> Any:
        while True:
            self._at = _SPACE.match(self._body, self._at).end()  # type: ignore[union-attr]
            if self._state in ("array", "next item"):
                self._take_plain_items()
            sign = self._body[self._at : self._at + 1]
            if sign in _CLOSING and self._state in (_CLOSING[sign], "item" if sign == b"]" else "member"):
                value = self._close(sign)
            elif self._state in _VALUE_COMES and sign not in (b"", b"\0", b",", b":", b"]", b"}"):
                if sign in _OPENING:
                    self._enter(_OPENING[sign])
                    continue
                value = self._scalar(sign)
            else:
                self._go_on(sign)
                continue
            if not self._open:
                return value
            self._keep(value)

    def _take_plain_items(self) -> None:
        """Takes items that Python reads in the same way, and the commas behind them, in one go."""
        while found := _PLAIN_ITEMS.match(self._body, self._at):
            text = found[0].rstrip(b", \t\r\n").decode("utf-8", "surrogateescape")
            self._open[-1][0].extend(_PLAIN.decode(f"[{text}]"))
            self._state, self._at = "next item", found.end()

    def _enter(self, kind: str) -> None:
        if len(self._open) == _MAX_DEPTH:
            raise ParseError("The document is nested too deeply.")
        self._open.append(([], kind))
        self._state = kind
        self._at += 1

    def _close(self, sign: bytes) -> Any:
        self._at += 1
        items, _ = self._open.pop()
        return items if sign == b"]" else _object(items)

    def _keep(self, value: Any) -> None:
        """Puts a finished value into the list or object around it."""
        items, kind = self._open[-1]
        if kind == "array":
            items.append(value)
            self._state = "item"
        else:
            items.append((self._names.pop(), value))
            self._state = "member"

    def _go_on(self, sign: bytes) -> None:
        """Reads a name, a colon or a comma."""
        if sign == b'"' and self._state in ("object", "next member"):
            self._names.append(self._string())
            self._state = "name"
            return
        following = {("name", b":"): "value", ("item", b","): "next item", ("member", b","): "next member"}
        if (self._state, sign) not in following:
            self._fail(_ERRORS[self._state], self._at)
        self._state = following[self._state, sign]
        self._at += 1

    def _scalar(self, sign: bytes) -> Any:
        if sign == b'"':
            return self._string()
        if sign in _LITERALS:
            word, value = _LITERALS[sign]
            self._at, whole = self._along(word, self._at)
            if not whole:
                self._fail("Invalid value.", self._at)
            return value
        return self._number()

    def _along(self, word: bytes, at: int) -> tuple[int, bool]:
        """How far the text goes along with `word` from `at` on, and whether to its end."""
        for letter in word:
            if self._body[at : at + 1] != bytes([letter]):
                return at, False
            at += 1
        return at, True

    def _string(self) -> str:
        start = self._at
        end = _CHARACTERS.match(self._body, start + 1).end()  # type: ignore[union-attr]
        sign = self._body[end : end + 1]
        if sign != b'"':
            self._fail(self._what_is_wrong_in_string(sign, end), end)
        self._at = end + 1
        text = self._body[start : end + 1].decode("utf-8", "surrogateescape")
        return scanstring(text, 1)[0] if "\\" in text else text[1:-1]

    def _what_is_wrong_in_string(self, sign: bytes, at: int) -> str:
        if sign in (b"", b"\0"):
            return "Missing a closing quotation mark in string."
        if self._body[at : at + 2] != b"\\u":
            return "Invalid escape character in string."
        second = at + 6
        if not _HEX.match(self._body, at + 2):
            return "Incorrect hex digit after \\u escape in string."
        if self._body[second : second + 2] == b"\\u" and not _HEX.match(self._body, second + 2):
            return "Incorrect hex digit after \\u escape in string."
        return "The surrogate pair in string is invalid."

    def _number(self) -> int | float:
        start = self._at
        minus = self._body[start : start + 1] == b"-"
        self._at += minus
        whole = self._digits(self._at)
        whole = b"0" if whole.startswith(b"0") else whole
        named = None if whole else self._nan_or_infinity(minus)
        self._at += len(whole)
        whole = whole or b"0"  # rapidjson goes on after NaN and Infinity as after 0
        if _is_too_big(whole, minus):
            self._fail("Number too big to be stored in double.", start)
        fraction = self._part(_POINT, "Miss fraction part in number.")
        exponent = self._part(_EXPONENT, "Miss exponent in number.")
        largest = 308 + _counted(whole, minus, fraction) if exponent else 308
        if _is_exponent_too_big(exponent, largest):
            self._fail("Number too big to be stored in double.", start)
        sign = b"-" if minus else b""
        if fraction or exponent:
            return float(b"%s%s.%se%s" % (sign, whole, fraction or b"0", exponent or b"0"))
        return int(sign + whole) if named is None else named

    def _digits(self, at: int) -> bytes:
        found = _DIGITS.match(self._body, at)
        return found[0] if found else b""

    def _part(self, before: re.Pattern[bytes], missing: str) -> bytes:
        """The digits after `before`, where that comes next, with the sign in front; there must be some."""
        found = before.match(self._body, self._at)
        if not found:
            return b""
        digits = self._digits(found.end())
        self._at = found.end() + len(digits)
        if not digits:
            self._fail(missing, self._at)
        return b"".join(found.groups()) + digits

    def _nan_or_infinity(self, minus: bool) -> float:
        self._at, is_nan = self._along(b"NaN", self._at)
        if is_nan:
            return math.nan
        self._at, is_infinite = self._along(b"Inf", self._at)  # rapidjson does not go back, so NInf is infinite
        if is_infinite and self._body[self._at : self._at + 1] == b"i":
            self._at, is_infinite = self._along(b"inity", self._at)
        if not is_infinite:
            self._fail("Invalid value.", self._at)
        return -math.inf if minus else math.inf

    def _fail(self, what: str, at: int) -> NoReturn:
        raise ParseError(f"{what} at offset: {at}")


def _first_part(whole: bytes, minus: bool) -> bytes:
    """The leading digits that rapidjson gathers in an integer of 64 bits."""
    limit, size = 2**63 if minus else 2**64 - 1, 20
    while int(whole[:size]) > limit:
        size -= 1
    return whole[:size]


def _is_too_big(whole: bytes, minus: bool) -> bool:
    """Whether rapidjson refuses these digits: it multiplies by ten while the value is below a tenth of the largest."""
    if len(whole) <= 308:
        return False
    part = _first_part(whole, minus)
    value = float(int(part))
    for digit in whole[len(part) :]:
        if value >= _LARGEST / 10:
            return True
        value = value * 10 + (digit - ord("0"))
    return False


def _is_exponent_too_big(exponent: bytes, largest: int) -> bool:
    digits = exponent.lstrip(b"+0")[:10]  # ten digits are too many with any fraction
    return not exponent.startswith(b"-") and int(digits or b"0") > largest


def _counted(whole: bytes, minus: bool, fraction: bytes) -> int:
    """How many digits of the fraction rapidjson takes: none after some 17 that matter."""
    part = _first_part(whole, minus)
    value, digits = int(part), len(part) - 1
    fits = len(part) == len(whole)
    count = 0
    for digit in fraction:
        if digits >= 17 and not (fits and value < 2**53):
            break
        value = value * 10 + (digit - ord("0"))
        digits += value > 0
        count += 1
    return count
