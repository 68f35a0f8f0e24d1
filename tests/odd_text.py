"""Texts that break tokenizers, and the original tokenizer's specification in a few lines of unicodedata."""

import itertools
import random
import unicodedata
from collections.abc import Iterator

from conftest import shared

VOCABULARIES = {"uncased": True, "cased": False, "chinese": True, "multi_cased": False}
"""The published vocabularies, and whether they are for lower-cased text."""
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

NAUGHTY = [
    "",
    " ",
    "\t\r\n \u3000\u00a0",
    "\0",
    "a\0b",
    "\0\0Σ\0",
    "\x01\x02\x7f\x80\x85",
    "a\x1cb\x1fc\x0bd\x0ce",
    "a\u2028b\u2029c",
    "\ufeffbyte order mark",
    "soft\u00adhyphen zero\u200bwidth\u200djoiner",
    "\u202eright to left\u202c",
    "\ufffd replacement \ufffd",
    "naïve Café ÅNGSTRÖM Straße ﬁne ŉ ſ ǅ",
    "İstanbul ISTANBUL ıi",
    "ΟΔΥΣΣΕΥΣ ΑΣ. Σ ΣΣ ΑΣ\u0301 ΑΣΑ Σ'Σ a:Σ:b Α\u00adΣ",
    "ΑΣ[MASK]Σ ΑΣ\u3000ΑΣ中ΑΣ",
    "e\u0301\u0323 \u0301 \u0301a Z̴̡̛a̶l̷g̸o̵",
    "한국어 각ᄀ각 \u1100\u1161\u11a8",
    "漢字かなカナ交じり文 ﾊﾝｶｸ ＦＵＬＬ　ｗｉｄｔｈ",
    "\uf900\ufa0e\ufada\ufaff\U0002f800\U0002fa1f",
    "\u2e80\u3007\u31c0\U0002b81f\U0002b820\U0002b91f\U0002ceaf\U0002ceb0\U0003134f",
    "ภาษาไทยไม่มีการเว้นวรรค",
    "हिन्दी தமிழ் కొో မြန်မာ ភាសាខ្មែរ བོད་ཡིག",
    "עִבְרִית العَرَبِيَّة \u0600\u06dd\u070f",
    "👍🏽 👨‍👩‍👧‍👦 🇨🇳 ❤️ 🏴\U000e0067\U000e0062\U000e007f",
    "\ue000\U000f0000\U0010fffd x\ue000y",
    "\ud7ff\ue000\uffff\ufffe\U0010ffff",
    "\u1b4e \u1b7d a\u1b4eb \u166d a\u166db \U00011f43",
    "\u302e\u302f\U0001d165\U0001d16d a\u302e\u0301b",
    "[MASK] x[MASK]y [mask] [ MASK ] [MASK [MASK]] [[SEP]][CLS][PAD][UNK]",
    "##ing # ## ##[MASK] [unused1] [no piece 1]",
    "don't can't $9.99 x=~y `q` ^_^ <b>&amp;</b> C:\\path\\n",
    "¡Hola! ¿Qué? «oui» „ja“ … — – ‿ ⁂ § ¶ © ° ± ´ ¨ ·",
    "½ x² ⅷ ① ㎏ ªº 𝐁𝐨𝐥𝐝 ⓐ ℌ Ω K Å",
    "1.000,00 0x1F 1e-5 ٣٤ ௩ Ⅷ",
    "a" * 99 + " " + "b" * 101 + " " + "c" * 201 + "-" + "d" * 200,
    "é" * 100 + " " + "é" * 101 + " " + "e\u0301" * 200 + " " + "e\u0301" * 201,
    "中" * 250 + "ก" * 201 + "中" + "ก" * 200,
    "𐐀" * 200 + " " + "𐐀" * 201 + " " + "\U00010330" * 400,
    "'; DROP TABLE texts; -- \" OR 1=1 ${jndi:ldap} %s%n {{7*7}}",
    "\ud800 lone \udfff surrogates \udc00\ud800",
]

WORDS = [
    *["the", "quick", "brown", "Fox", "jumped", "don't", "$9.99", "x=~y", "naïve", "café", "Ångström", "İstanbul"],
    *["Straße", "ﬁne", "ǅ", "ſ", "Việt", "e\u0301te\u0301", "ΟΔΟΣ", "ΑΣ", "ΑΣ\u0308Β", "ά", "中文字", "日本語", "각"],
    *["ひらがな", "한국어", "ภาษาไทย", "हिन्दी", "العَرَبِيَّة", "עִבְרִית", "[MASK]", "[SEP]", "[UNK]", "x[MASK]y"],
    *["##ing", "👍🏽", "👨\u200d👩\u200d👧", "🇨🇳"],
]
ODD = [
    *"\t\n\r\0\x01\x0b\x1c\x1f\x85\xa0\xad\u200b\u200d\u2028\u2029\u3000\ufeff\ufffd\u302e\u0301\u0345ʰ",
    *"ΣΣΣς:.'Aαάǅ中ıİﬀ각ிொ[]#-",
    *"\u1b4e\u166d\ufada\ufaff\ue000\U000f0000\U0002b820\U000e0001",
]


def fuzz(count: int, seed: int) -> Iterator[str]:
    """Lines of words, odd characters and random code points, some with words around the length limits."""
    chance = random.Random(seed)
    for _ in range(count):
        parts = []
        for _ in range(chance.randint(1, 10)):
            kind = chance.random()
            if kind < 0.45:
                parts.append(chance.choice(WORDS))
            elif kind < 0.75:
                parts.append(chance.choice(ODD))
            elif kind < 0.85:
                parts.append(" ")
            elif kind < 0.995:
                code = chance.randrange(0x20, chance.choice([0x600, 0x3000, 0xD800, 0x20000, 0x110000]))
                parts.append("x" if 0xD800 <= code < 0xE000 else chr(code))
            else:
                parts.append(chance.choice("aéภ中𐐀") * chance.choice([99, 100, 101, 199, 200, 201, 400, 801]))
        yield "".join(parts)


def corrupt(data: bytes, chance: random.Random) -> bytes:
    """The same bytes with up to three of them changed, taken away or put in."""
    damaged = bytearray(data or b"x")
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(damaged))
        stray = chance.choice(b"\x80\xbf\xc0\xc1\xce\xe4\xed\xf0\xf4\xf5\xff")
        damaged[at : at + chance.choice([0, 1, 1])] = chance.choice([bytes([stray]), b""])
        damaged = damaged or bytearray(b"x")
    return bytes(damaged)


def vocabulary(name: str) -> list[str]:
    """A published vocabulary; not by splitlines(), which would break it at U+2028."""
    return shared(f"data/vocab/{name}/vocab.txt").read_text("utf-8").removesuffix("\n").split("\n")


def udhr() -> list[str]:
    """The lines of the Universal Declaration of Human Rights in 19 languages."""
    files = sorted(shared("data/udhr_sample").glob("*.txt"))
    return [line for file in files for line in file.read_text("utf-8").split("\n")]


# === google-research/bert's FullTokenizer, from its description ===


def reference_ids(text: str, pieces: dict[str, int], lower: bool) -> list[int]:
    """Ids of a text by the original's rules under this Python's Unicode version (14.0 in Python 3.11)."""
    return [pieces[p] for word in reference_words(text, lower) for p in reference_pieces(word, pieces)]


def reference_words(text: str, lower: bool) -> Iterator[str]:
    kept = (c for c in text if c in "\t\n\r" or (c != "\ufffd" and unicodedata.category(c) not in ("Cc", "Cf")))
    for word in "".join(f" {c} " if _is_cjk(c) else c for c in kept).split():
        if lower:
            decomposed = unicodedata.normalize("NFD", word.lower())
            word = "".join(c for c in decomposed if unicodedata.category(c) != "Mn")
        for _, group in itertools.groupby(enumerate(word), lambda item: _is_punctuation(item[1]) and item[0] + 1):
            yield "".join(c for _, c in group)


def reference_pieces(word: str, pieces: dict[str, int]) -> list[str]:
    """Greedy longest match first, or [UNK] for a word without a match or of more than 200 characters."""
    found: list[str] = []
    rest = word if len(word) <= 200 else "\0"
    while rest:
        prefix = "##" if found else ""
        match = next((rest[:n] for n in range(len(rest), 0, -1) if prefix + rest[:n] in pieces), None)
        if match is None:
            return ["[UNK]"]
        found.append(prefix + match)
        rest = rest[len(match) :]
    return found


def _is_cjk(char: str) -> bool:
    name = unicodedata.name(char, "")
    if name.startswith(("CJK UNIFIED IDEOGRAPH", "CJK COMPATIBILITY IDEOGRAPH")):
        return not 0x2CEB0 <= ord(char) <= 0x2F7FF and ord(char) < 0x30000  # later extensions are not meant
    return char in UNASSIGNED_CJK


def _is_punctuation(char: str) -> bool:
    return unicodedata.category(char)[0] == "P" or (char.isascii() and unicodedata.category(char)[0] == "S")


UNASSIGNED_CJK = frozenset(
    chr(c)
    for first, last in [(0x9FFD, 0x9FFF), (0xFA6E, 0xFA6F), (0xFADA, 0xFAFF), (0x2A6DE, 0x2A6DF), (0x2FA1E, 0x2FA1F)]
    for c in range(first, last + 1)
) | frozenset(map(chr, [*range(0x2B739, 0x2B740), *range(0x2B81E, 0x2B820), *range(0x2CEA2, 0x2CEB0)]))
"""In the ranges of the original, but no characters in some version of Unicode."""
