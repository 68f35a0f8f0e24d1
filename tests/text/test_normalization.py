"""The frozen lists of characters."""

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_bert.errors import ConfigError
from keras_bert.text import normalization

CASES = [(flavour, lower) for flavour in normalization.FLAVOURS for lower in (False, True)]


@pytest.mark.parametrize("lower", [False, True])
def test_the_original_lists_are_those_of_unicode_14(lower):
    frozen, derived = normalization.changes("original", lower), normalization.derive("original", lower)
    if unicodedata.unidata_version == "14.0.0":
        assert frozen == derived
    different = {c for c in frozen.keys() | derived.keys() if frozen.get(c) != derived.get(c)}
    new = different - normalization.members("original", "unassigned")
    assert not new, f"changed since Unicode 14.0: {[f'{c:04X}' for c in sorted(new)]}"


def test_the_original_classes_are_those_of_unicode_14():
    derived = normalization.derive_members("original")
    unassigned = normalization.members("original", "unassigned")
    for kind, members in derived.items():
        different = members ^ normalization.members("original", kind)
        if unicodedata.unidata_version == "14.0.0":
            assert not different, kind
        new = different - unassigned
        assert not new, f"{kind}: changed since Unicode 14.0: {[f'{c:04X}' for c in sorted(new)]}"


def test_the_hf_lists_are_those_of_the_package_tokenizers():
    tokenizers = pytest.importorskip("tokenizers")
    for lower, accents in normalization.CASES:
        frozen = normalization.changes("hf", lower, accents)
        assert frozen == normalization.derive("hf", lower, accents), tokenizers.__version__
    for kind, members in normalization.derive_members("hf").items():
        assert members == normalization.members("hf", kind), (kind, tokenizers.__version__)


@pytest.mark.parametrize("flavour", normalization.FLAVOURS)
def test_a_file_is_what_writing_its_lists_gives(flavour, tmp_path):
    names = normalization.HF_CASES if flavour == "hf" else normalization.ORIGINAL_CASES
    of_case = {case: arguments for arguments, case in normalization.CASES.items()}
    lists = {case: normalization.changes(flavour, *of_case[case]) for case in names}
    more = {"hf": ["word"], "original": ["letter", "ignorable", "unassigned"]}[flavour]
    kinds = ["space", "cjk", "punctuation", *more]
    file = normalization.FOLDER / f"{flavour}.txt"
    head = file.read_text("utf-8").splitlines()[0].removeprefix("# ")
    normalization.write(flavour, lists | {k: normalization.members(flavour, k) for k in kinds}, head, tmp_path)
    assert (tmp_path / file.name).read_bytes() == file.read_bytes()


def test_what_the_lists_say_can_be_checked_by_eye():
    cased, uncased = normalization.changes("original", False), normalization.changes("original", True)
    assert (len(cased), len(uncased)) == (245, 16461)
    assert [cased[ord(c)] for c in "\t\0\u200b\u3000\ufffd"] == [" ", "", "", " ", ""]
    assert [uncased[ord(c)] for c in "AéİΣǅ\u0301각"] == ["a", "e", "i", "σ", "ǆ", "", "\u1100\u1161\u11a8"]
    assert ord("é") not in cased
    assert ord("ß") not in uncased
    private = 0xE000
    assert private not in cased
    assert normalization.changes("hf", False)[private] == ""
    assert not any(len(value.encode()) > 12 for value in uncased.values())


@pytest.mark.parametrize(("flavour", "lower"), CASES)
def test_what_a_change_gives_stays_as_it_is(flavour, lower):
    table = normalization.changes(flavour, lower)
    assert {c for value in table.values() for c in value if ord(c) in table} <= {" "}


def test_no_change_moves_a_character_between_classes():
    """So a text can be normalized before it is split."""
    for flavour, lower in CASES:
        alone = {kind: normalization.members(flavour, kind) for kind in ("cjk", "punctuation", "space")}
        for code, value in normalization.changes(flavour, lower).items():
            for kind in ("cjk", "punctuation"):
                inside = {ord(c) in alone[kind] for c in value}
                assert len(inside) <= 1, (flavour, hex(code))
                if kind == "cjk" and inside:
                    assert inside == {code in alone[kind]}, (flavour, hex(code))


def test_hangul_is_decomposed_by_arithmetic():
    for code in normalization.HANGUL:
        assert normalization._hangul(code) == unicodedata.normalize("NFD", chr(code))


@given(st.dictionaries(st.integers(0, 300), st.text("ab\xe9\U00010000 ", max_size=3)))
def test_packing_loses_nothing(table):
    assert normalization._unpack(list(normalization._pack(table))) == table


@given(st.sets(st.integers(0, 300)))
def test_ranges_lose_nothing(codes):
    texts = [text for _, text in normalization._ranges(sorted(codes))]
    assert [c for text in texts for c in normalization._range(text)] == sorted(codes)


def test_the_files_are_small():
    assert sum(file.stat().st_size for file in normalization.FOLDER.iterdir()) < 120_000


def test_an_unknown_flavour_is_refused():
    with pytest.raises(ConfigError, match="original, hf"):
        normalization.changes("cursive", True)


def test_code_points_are_those_of_utf8():
    assert sum(1 for _ in normalization.code_points()) == sys.maxunicode + 1 - 0x800
