"""What happens to each character before WordPiece: frozen lists, so that ids never depend on the Python at hand.

Two flavours. "original" is google-research/bert's tokenizer: clean the text, set CJK characters apart, for uncased
models lower-case, decompose (NFD) and strip nonspacing marks, under Unicode 14.0. "hf" is what the fast tokenizers of
Hugging Face do; their tables are of another age and they drop private-use characters.

Almost all of it is a function of single code points. The lists are in `unicode/*.txt`, written by `write()`; the one
rule that looks at neighbours (the final sigma) needs the two classes `letter` and `ignorable` from there.

`make proofs` compares both flavours with their references on every code point, alone and between letters, with all
published vocabularies, on real texts and on a million odd lines: no ids differ. What remains are texts that no
published vocabulary tells apart. NFD also sorts neighbouring combining marks; for the nonspacing ones, which are
stripped, that means nothing, but 25 marks of Unicode 14.0 are spacing ones (U+302E, some viramas, musical symbols), and
two of them side by side stay here in the order of the text.
"""

import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

from keras_bert.errors import ConfigError

FLAVOURS = ("original", "hf")
FOLDER = Path(__file__).parent / "unicode"
SIGMA, FINAL_SIGMA = "\u03a3", "\u03c2"
CASES = {
    (False, ""): "cased",
    (True, ""): "uncased",
    (True, "keep"): "lowered",
    (False, "strip"): "stripped",
    (True, "strip"): "uncased",
    (False, "keep"): "cased",
}
"""`(lower_case, accents)` -> the list of its changes; "lowered" and "stripped" are in "hf" only."""
ORIGINAL_CASES, HF_CASES = ("cased", "uncased"), ("cased", "uncased", "lowered", "stripped")

HANGUL = range(0xAC00, 0xD7A4)
SURROGATES = range(0xD800, 0xE000)
CJK = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)


def code_points() -> Iterator[int]:
    """All that UTF-8 can write: every code point but the surrogates."""
    yield from range(SURROGATES.start)
    yield from range(SURROGATES.stop, sys.maxunicode + 1)


def changes(flavour: str, lower_case: bool, accents: str = "") -> dict[int, str]:
    """What a code point becomes, for those that do not stay as they are: "" where it is dropped.

    Args:
        flavour: "original" or "hf".
        lower_case: for uncased vocabularies.
        accents: "keep" or "strip"; "" strips them where text is lower-cased.

    Raises:
        ConfigError: no such flavour, or it has no such list.
    """
    case = CASES[bool(lower_case), accents]
    if case not in _sections(flavour):
        raise ConfigError(f"accents={accents} with do_lower_case={lower_case} is not in the flavour {flavour}")
    return _unpack(_sections(flavour)[case])


@cache
def members(name: str, kind: str) -> frozenset[int]:
    """The code points of a frozen class.

    Args:
        name: a flavour, or "kernel" for the classes by which TensorFlow Text's kernel splits.
        kind: "space" (ends a word), "cjk" or "punctuation" (words of their own); in "original" also "letter" and
            "ignorable" (what a final sigma follows, and what may stand between) and "unassigned" in Unicode 14.0;
            in "hf" also "word" (what may not stand beside an added token that is a single word); in "kernel" only
            "space" and "alone" (CJK or punctuation).

    Raises:
        ConfigError: no such flavour.
    """
    return frozenset(c for line in _sections(name)[kind] for c in _range(line))


def character_class(codes: Iterable[int], form: str) -> str:
    """The inside of a regular expression's `[...]`: `form` is how its dialect writes a range, given first and last."""
    ordered = sorted(codes)
    breaks = [i for i, (a, b) in enumerate(pairwise(ordered), 1) if b > a + 1]
    return "".join(
        form.format(ordered[i], ordered[j - 1]) for i, j in zip([0, *breaks], [*breaks, len(ordered)], strict=True)
    )


# === Deriving the lists ===


def derive(flavour: str, lower_case: bool, accents: str = "") -> dict[int, str]:
    """`changes` computed afresh: from this Python's Unicode tables, or by asking the package `tokenizers`.

    The frozen lists of "original" are those of Python 3.11 (Unicode 14.0).
    """
    if flavour == "hf":
        from tokenizers.normalizers import BertNormalizer

        strip = {"": None, "keep": False, "strip": True}[accents]
        normalizer = BertNormalizer(handle_chinese_chars=False, lowercase=lower_case, strip_accents=strip)
        change: Callable[[str], str] = normalizer.normalize_str
    else:
        change = _original_lower if lower_case else _original_clean
    return {c: value for c in code_points() if (value := change(chr(c))) != chr(c)}


def derive_members(flavour: str) -> dict[str, set[int]]:
    """The classes of a flavour computed afresh, as `derive` does."""
    if flavour == "hf":
        from tokenizers import AddedToken, Tokenizer
        from tokenizers.models import WordPiece
        from tokenizers.normalizers import BertNormalizer
        from tokenizers.pre_tokenizers import BertPreTokenizer

        added = Tokenizer(WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
        added.add_tokens([AddedToken("@@", single_word=True, normalized=False)])
        spaced = BertNormalizer(clean_text=False, strip_accents=False, lowercase=False).normalize_str
        split = BertPreTokenizer().pre_tokenize_str
        words = {c: len(split(f"a{chr(c)}b")) for c in code_points()}  # 1: in a word, 2: between words, 3: a word
        return {
            "space": {c for c, n in words.items() if n == 2},
            "cjk": {c for c in code_points() if spaced(chr(c)) != chr(c)},
            "punctuation": {c for c, n in words.items() if n == 3},
            "word": {c for c in code_points() if added.token_to_id("@@") not in added.encode(f"@@{chr(c)}").ids},
        }
    # Python's lower() tells its own classes: a sigma turns final after a letter, ignorable characters between.
    letter = {c for c in code_points() if (chr(c) + SIGMA).lower()[-1] == FINAL_SIGMA}
    ignorable = {c for c in code_points() if c not in letter and f"A{chr(c)}{SIGMA}".lower()[-1] == FINAL_SIGMA}
    dropped = {c for c, value in derive("original", False).items() if not value}
    return {
        "space": {c for c in code_points() if chr(c).isspace()},
        "cjk": {c for first, last in CJK for c in range(first, last + 1)},
        "punctuation": {c for c in code_points() if _is_punctuation(chr(c))},
        "letter": letter - dropped,
        "ignorable": ignorable | dropped,  # a dropped character is gone before lower() sees the word
        "unassigned": {c for c in code_points() if unicodedata.category(chr(c)) == "Cn"},
    }


def write(name: str, sections: dict[str, dict[int, str] | set[int]], head: str, folder: Path = FOLDER) -> None:
    """Write `unicode/<name>.txt`: one section for each of the lists and classes."""
    lines = [f"# {line}" for line in [*head.splitlines(), *FORMAT.splitlines()]]
    for section, content in sections.items():
        packed = _pack(content) if isinstance(content, dict) else (text for _, text in _ranges(sorted(content)))
        lines += ["", f"[{section}]", *packed]
    (folder / f"{name}.txt").write_text("\n".join(lines) + "\n", "utf-8")


def write_flavour(flavour: str, folder: Path = FOLDER) -> None:
    """Derive the lists of a flavour and write its file; "original" needs Python 3.11."""
    if flavour == "hf":
        import tokenizers

        head = f"Characters as the package tokenizers {tokenizers.__version__} treats them."
    else:
        head = f"Characters as google-research/bert treats them under Unicode {unicodedata.unidata_version}."
    of_case = {case: arguments for arguments, case in reversed(CASES.items())}
    lists = {case: derive(flavour, *of_case[case]) for case in (HF_CASES if flavour == "hf" else ORIGINAL_CASES)}
    write(flavour, {**lists, **derive_members(flavour)}, head, folder)


def _original_clean(char: str) -> str:
    if char in "\t\n\r" or unicodedata.category(char) == "Zs":
        return " "
    if char == "\ufffd" or unicodedata.category(char) in ("Cc", "Cf"):
        return ""
    return char


def _original_lower(char: str) -> str:
    decomposed = unicodedata.normalize("NFD", _original_clean(char).lower())
    return "".join(c for c in decomposed if unicodedata.category(c) != "Mn")


def _is_punctuation(char: str) -> bool:
    if char.isascii():
        return char.isprintable() and char != " " and not char.isalnum()
    return unicodedata.category(char).startswith("P")


# === The form of the files ===

FORMAT = """\
Written by keras_bert/text/normalization.py; the tests derive it again.
Numbers are hexadecimal: 41..5A is a range, 100..12E/2 every second code point of it. In [cased] and [uncased] there
follows what becomes of it: `drop`, the code points that replace it, the distance to the one that does (+20), or
`hangul` (its parts, by the arithmetic of the Unicode standard)."""


@cache
def _sections(name: str) -> dict[str, list[str]]:
    if name not in (*FLAVOURS, "kernel"):
        raise ConfigError(f"no tokenizer flavour {name!r}; there are {', '.join(FLAVOURS)}")
    found: dict[str, list[str]] = {}
    for line in (FOLDER / f"{name}.txt").read_text("utf-8").splitlines():
        if line.startswith("["):
            section = found.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            section.append(line)
    return found


def _range(text: str) -> range:
    ends, _, step = text.partition("/")
    first, _, last = ends.partition("..")
    return range(int(first, 16), int(last or first, 16) + 1, int(step or 1))


def _unpack(lines: list[str]) -> dict[int, str]:
    found: dict[int, str] = {}
    for line in lines:
        where, what = line.split(" ", 1)
        if what == "hangul":
            found |= {c: _hangul(c) for c in _range(where)}
        elif what[0] in "+-":
            found |= {c: chr(c + int(what, 16)) for c in _range(where)}
        else:
            value = "" if what == "drop" else "".join(chr(int(c, 16)) for c in what.split())
            found |= dict.fromkeys(_range(where), value)
    return found


def _hangul(code: int) -> str:
    """The parts of a syllable: leading consonant, vowel and, unless it is number 0, trailing consonant."""
    rest, tail = divmod(code - HANGUL.start, 28)
    lead, vowel = divmod(rest, 21)
    return chr(0x1100 + lead) + chr(0x1161 + vowel) + (chr(0x11A7 + tail) if tail else "")


def _pack(table: dict[int, str]) -> Iterator[str]:
    by_change: dict[str, list[int]] = {}
    for code, value in sorted(table.items()):
        if code in HANGUL and value == _hangul(code):
            change = "hangul"
        elif len(value) == 1 and value != " ":
            change = f"{ord(value) - code:+X}"
        else:
            change = " ".join(f"{ord(c):X}" for c in value) or "drop"
        by_change.setdefault(change, []).append(code)
    lines = [(first, f"{text} {change}") for change, codes in by_change.items() for first, text in _ranges(codes)]
    return (line for _, line in sorted(lines))


def _ranges(codes: Iterable[int]) -> Iterator[tuple[int, str]]:
    """Sorted code points -> (first of it, text of it) for each range, of every second one where that is longer."""
    rest = list(codes)
    at = 0
    while at < len(rest):
        ends = {}
        for step in (1, 2):
            end = at
            while end + 1 < len(rest) and rest[end + 1] == rest[end] + step:
                end += 1
            ends[step] = end
        step = 2 if ends[2] >= at + 2 and ends[2] > ends[1] else 1
        end = ends[step]
        text = f"{rest[at]:04X}" + (f"..{rest[end]:04X}" if end > at else "") + ("/2" if step == 2 else "")
        yield rest[at], text
        at = end + 1


if __name__ == "__main__":
    for each in FLAVOURS:
        write_flavour(each)
