"""At length: the tokenizer in the graph, the plain one and independent ones give the same ids, for all of Unicode, all
published vocabularies, real texts and a million odd lines each.

Independent is, for "original", google-research/bert's own code (package bert-tensorflow), or where it is not installed
its rules, written anew in `odd_text`; for "hf" the package tokenizers. What no test can show is named in
`normalization`.
"""

import importlib.util
import itertools
import random
import sys
import time
import unicodedata
from collections.abc import Callable

import pytest
import tensorflow as tf
from conftest import shared
from odd_text import SPECIAL, VOCABULARIES, corrupt, fuzz, reference_ids, udhr, vocabulary
from test_tokenizer import MEGABYTE, Pair, encoded
from test_wordpiece import hugging_face, unicode_14

from keras_bert.text.normalization import code_points

KINDS = [pytest.param(f, n, marks=[unicode_14] * (f == "original")) for f in ("original", "hf") for n in VOCABULARIES]
PARTS, LINES = 10, 100_000


def google(known: dict[str, int], lower: bool) -> Callable[[bytes], list[int]]:
    """google-research/bert's tokenizer, which reads its settings from flags of the command line."""
    from absl import flags
    from bert import tokenization

    if not flags.FLAGS.is_parsed():
        flags.FLAGS(sys.argv[:1])
    words, pieces = tokenization.BasicTokenizer(lower), tokenization.WordpieceTokenizer(known)
    return lambda text: [known[piece] for word in words.tokenize(text) for piece in pieces.tokenize(word)]


def reference(flavour: str, name: str, special: list[str]) -> Callable[[bytes], list[int]]:
    """A function from a text to its ids that shares nothing with ours."""
    pieces, lower = vocabulary(name), VOCABULARIES[name]
    if flavour == "hf":
        theirs = hugging_face(pieces, lower, special)
        return lambda text: theirs.encode(text.decode("utf-8", "ignore")).ids
    known = {piece.strip(): number for number, piece in enumerate(pieces)}
    if importlib.util.find_spec("bert"):
        return google(known, lower)
    return lambda text: reference_ids(text.decode("utf-8", "ignore"), known, lower)


def check(flavour: str, name: str, texts: list[bytes], special: list[str] | None = None) -> None:
    """All agree on every one of the texts; otherwise how many differ, and some of them."""
    special = special or []
    pair = Pair(vocabulary(name), VOCABULARIES[name], flavour, special)
    found = pair.differences(texts, reference(flavour, name, special))
    assert not found, f"{len(found)} of {len(texts)} differ, such as {found[:5]}"


@pytest.mark.slow
@pytest.mark.parametrize("form", ["alone", "a?b"])
@pytest.mark.parametrize(("flavour", "name"), KINDS)
def test_every_code_point(flavour, name, form):
    before, after = ("", "") if form == "alone" else ("a", "b")
    check(flavour, name, [f"{before}{chr(c)}{after}".encode() for c in code_points()])


@pytest.mark.slow
@pytest.mark.parametrize("part", [f"{i} of {PARTS}" for i in range(1, PARTS + 1)])
@pytest.mark.parametrize(("flavour", "name"), KINDS)
def test_a_million_odd_lines(flavour, name, part):
    number = int(part.split()[0])
    chance = random.Random(number)
    lines = encoded(fuzz(LINES, seed=number))
    # The original has no special tokens in a text; Hugging Face finds them where they are added to a tokenizer.
    special = SPECIAL if flavour == "hf" and number % 2 else []
    damaged = [corrupt(line, chance) for line in lines[::5] if not special]  # in a special token they make a difference
    check(flavour, name, [*lines, *damaged], special)


@pytest.mark.slow
@pytest.mark.parametrize("part", [f"{i} of {PARTS}" for i in range(1, PARTS + 1)])
@pytest.mark.parametrize("name", VOCABULARIES)
def test_special_tokens_among_odd_lines(name, part):
    number = int(part.split()[0])
    pair = Pair(vocabulary(name), VOCABULARIES[name], "original", SPECIAL)
    assert not pair.differences(encoded(fuzz(LINES // 10, seed=100 + number)))


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["udhr_sample", "raw_en", "raw_zh"])
@pytest.mark.parametrize(("flavour", "name"), KINDS)
def test_real_texts(flavour, name, folder):
    lines = udhr()
    if folder != "udhr_sample":
        files = sorted(shared(f"data/{folder}").iterdir())
        lines = [line for file in files for line in file.read_text("utf-8").split("\n")][::4]
    check(flavour, name, encoded(lines))


@pytest.mark.slow
@pytest.mark.parametrize(("flavour", "name"), KINDS)
def test_marks_that_unicode_would_reorder(flavour, name):
    """Our rules look at one character at a time, so they never reorder; no published vocabulary shows it."""
    marks = [c for c in map(chr, code_points()) if unicodedata.combining(c) and unicodedata.category(c) != "Mn"]
    assert len(marks) == 25 or unicodedata.unidata_version != "14.0.0"
    pairs = [f"{letter}{a}{b}x" for a, b in itertools.product(marks, marks) for letter in ("a", "க", "가", "中")]
    check(flavour, name, encoded(pairs))


@pytest.mark.slow
@pytest.mark.parametrize("special", [(), SPECIAL])
def test_a_megabyte_takes_neither_long_nor_much(special):
    """Two seconds of the processor and 500 MB at most, whatever it is made of."""
    resource = pytest.importorskip("resource", reason="memory is measured on POSIX only")
    pair = Pair(vocabulary("uncased"), True, special=special)
    pair.differences([b"a"])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for text in MEGABYTE:
        start = time.process_time()
        pair.graph.tokenize_with_offsets(tf.constant([text]))
        assert time.process_time() - start < 2, text[:9]
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # in kB
    print(f"{grown / 1000:.0f} MB")
    assert grown < 500_000
