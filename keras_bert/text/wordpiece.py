"""WordPiece in plain Python: the definition of our ids, and the tokenizer where TensorFlow Text has no wheels.

Greedy longest match first (Wu et al. 2016, https://arxiv.org/abs/1609.08144) over words of the flavour's characters.
`keras_bert.tokenizer` gives the same ids and offsets inside the TensorFlow graph.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from typing import Any

from keras_bert.config import AddedToken
from keras_bert.errors import ConfigError, DataError
from keras_bert.text.added import check_added, finders
from keras_bert.text.normalization import FINAL_SIGMA, SIGMA, SURROGATES, changes, character_class, members

UNKNOWN = "[UNK]"
MAX_WORD_CHARACTERS = {"original": 200, "hf": 100}
"""A longer word, counted after normalization, is one [UNK]."""
MANY_UNKNOWN, MANY_CAPITALS = 0.05, 0.1
"""Shares above which `misfit` speaks: of [UNK] among pieces, of capitals in a vocabulary. Where vocabulary and casing
fit, 1% is much; English with the wrong casing has 7% and more."""
SAMPLE = 500


@dataclass(frozen=True)
class Encoding:
    """The tokens of one text: ids, the pieces of the vocabulary, and where each one begins and ends in the text.

    `characters` counts code points, `bytes` counts bytes of UTF-8; both are (start, end) pairs. In a text given as
    bytes, the ill-formed ones are no characters, as after `decode("utf-8", "ignore")`. What is dropped (a stripped
    accent, a control character) belongs to the token before it; pieces of one character that normalization
    expands, such as a Hangul syllable, all have the whole of it.
    """

    ids: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    characters: list[tuple[int, int]] = field(default_factory=list)
    bytes: list[tuple[int, int]] = field(default_factory=list)


class WordPiece:
    """Text to ids, exactly as the flavour's reference does it.

    Args:
        vocabulary: word pieces in the order of their ids; must hold [UNK].
        do_lower_case: lower-case and strip accents.
        flavour: "original" (google-research/bert) or "hf" (Hugging Face's fast tokenizers).
        special_tokens: pieces to find in the text as they are written; others are ordinary text.
        accents, chinese_chars, max_word_length, added_tokens: see `TextConfig`.

    Raises:
        ConfigError: no such flavour, or tokens that cannot be found.
        DataError: the vocabulary lacks [UNK] or a special token.

    Example:
        WordPiece(["[UNK]", "a", "##b"], do_lower_case=True).tokenize("AB c").ids  # [1, 2, 0]
    """

    def __init__(
        self,
        vocabulary: Sequence[str],
        do_lower_case: bool,
        flavour: str = "original",
        special_tokens: Sequence[str] = (),
        *,
        accents: str = "",
        chinese_chars: bool = True,
        max_word_length: int = 0,
        added_tokens: Sequence[AddedToken] = (),
    ) -> None:
        self.index = index(vocabulary, flavour)
        self._has_sigma_rule = has_sigma_rule(do_lower_case, flavour)
        tokens = with_special(added_tokens, special_tokens)
        check_added(tokens, self.index, self._has_sigma_rule)
        self._pieces = self.index.keys() - {token.content for token in tokens if not token.piece}
        self.limit = max_word_length or MAX_WORD_CHARACTERS[flavour]
        self._table = {chr(c): value for c, value in changes(flavour, do_lower_case, accents).items()}
        self._space = {chr(c) for c in members(flavour, "space")}
        self._alone = {chr(c) for c in alone(flavour, chinese_chars)}
        self._raw, self._normal = finders(tokens, self._table)
        self._longest = max(map(len, self.index))

    def tokenize(self, text: str | bytes) -> Encoding:
        """The tokens of one text; a lone surrogate in a str counts as ill-formed and is dropped.

        Raises:
            ConfigError: it is not one string.
        """
        if not isinstance(text, str | bytes):
            raise ConfigError(f"a text must be one string, got {type(text).__name__}")
        if isinstance(text, bytes):
            chars = text.decode("utf-8", "surrogateescape")  # each ill-formed byte is a surrogate for the moment
            widths = [1 if _is_surrogate(c) else _width(c) for c in chars]
            ordinals = [0, *accumulate(not _is_surrogate(c) for c in chars)]
        else:
            chars, widths, ordinals = text, [_width(c) for c in text], list(range(len(text) + 1))
        places = [0, *accumulate(widths)]
        if self._has_sigma_rule:
            chars = finalize_sigmas(chars)
        found = Encoding()
        known: dict[str, list[tuple[str, int, int]]] = {}

        def add(piece: str, start: int, end: int) -> None:
            found.ids.append(self.index[piece])
            found.pieces.append(piece)
            found.characters.append((ordinals[start], ordinals[end]))
            found.bytes.append((places[start], places[end]))

        for token, start, end in self._raw.find(chars):
            if token:
                add(token, start, end)
                continue
            normal, sources, following = self._normalized(chars, start, end)
            for word, first in self._words(normal):
                added, text = isinstance(word, str), "".join(word)
                if not added and text not in known:
                    known[text] = self.pieces(text)
                for piece, begin, stop in [(text, 0, len(first))] if added else known[text]:
                    add(piece, sources[first[begin]], following[first[stop - 1]])
        return found

    def _normalized(self, chars: str, start: int, end: int) -> tuple[str, list[int], list[int]]:
        """The normalized text between two places, and for each of its characters the place that it is from and the
        place of the next one that is not dropped."""
        kept = [
            at for at in range(start, end) if self._table.get(chars[at], chars[at]) and not _is_surrogate(chars[at])
        ]
        normal, sources, following = [], [], []
        for at, after in zip(kept, [*kept[1:], end], strict=False):
            value = self._table.get(chars[at], chars[at])
            normal.append(value)
            sources += [at] * len(value)
            following += [after] * len(value)
        return "".join(normal), sources, following

    def _words(self, normal: str) -> Iterator[tuple[str | list[str], range]]:
        """The words of a normalized text, each a list of characters, and the tokens in it, each a string; with the
        places of their characters."""
        for token, start, end in self._normal.find(normal):
            if token:
                yield token, range(start, end)
                continue
            begin = start
            for at in range(start, end + 1):
                ends = at == end or normal[at] in self._space or normal[at] in self._alone
                if ends and at > begin:
                    yield list(normal[begin:at]), range(begin, at)
                if at < end and normal[at] in self._alone:
                    yield [normal[at]], range(at, at + 1)
                begin = at + 1 if ends else begin

    def pieces(self, word: str) -> list[tuple[str, int, int]]:
        """Piece, start and end for each piece of a normalized word, or [UNK] for all of it."""
        found: list[tuple[str, int, int]] = []
        start = 0 if len(word) <= self.limit else len(word) + 1
        while start < len(word):
            prefix = "##" if start else ""
            for end in range(min(len(word), start + self._longest), start, -1):
                piece = prefix + word[start:end]
                if piece in self._pieces:
                    found.append((piece, start, end))
                    start = end
                    break
            else:
                start = len(word) + 1
        return found if start == len(word) else [(UNKNOWN, 0, len(word))]


def index(vocabulary: Sequence[str], flavour: str) -> dict[str, int]:
    """Piece -> id as the flavour's reference reads the lines: the last of equals counts, and white space does not, in
    the original at both ends of a line, in Hugging Face at the right one.

    Raises:
        ConfigError: no such flavour.
        DataError: there is no [UNK].
    """
    if flavour not in MAX_WORD_CHARACTERS:
        raise ConfigError(f"no tokenizer flavour {flavour!r}; there are {', '.join(MAX_WORD_CHARACTERS)}")
    strip = str.strip if flavour == "original" else str.rstrip
    found = {strip(piece): number for number, piece in enumerate(vocabulary)}
    if UNKNOWN not in found:
        raise DataError(f"the vocabulary has no {UNKNOWN} among its {len(vocabulary)} pieces")
    return found


def misfit(
    vocabulary: Sequence[str], texts: Sequence[str], do_lower_case: bool, flavour: str = "original", **more: Any
) -> str:
    """One line where vocabulary, casing and texts hardly belong together, judged by the first of them; else "".

    Args:
        more: further arguments of `WordPiece`.
    """
    ordinary = [piece for piece in vocabulary if piece[0] not in "[<"]
    capitals = sum(piece != piece.lower() for piece in ordinary) / max(len(ordinary), 1)
    if do_lower_case and capitals > MANY_CAPITALS:
        return f"{capitals:.0%} of the vocabulary has capitals but text is lower-cased; is do_lower_case false for it?"

    def unknown(lower: bool) -> float:
        wordpiece = WordPiece(vocabulary, lower, flavour, **more)
        pieces = [piece for text in texts[:SAMPLE] for piece in wordpiece.tokenize(text[:SAMPLE]).pieces]
        return pieces.count(UNKNOWN) / max(len(pieces), 1)

    share = unknown(do_lower_case)
    if share <= MANY_UNKNOWN:
        return ""
    other = unknown(not do_lower_case)
    advice = f", but {other:.1%} with do_lower_case {str(not do_lower_case).lower()}" if other < share / 2 else ""
    return f"{share:.1%} of the word pieces of the texts are {UNKNOWN}{advice}; the vocabulary does not suit them"


def has_sigma_rule(do_lower_case: bool, flavour: str) -> bool:
    """Whether a capital sigma becomes final by its neighbours; Hugging Face lower-cases single characters."""
    return do_lower_case and flavour == "original"


def finalize_sigmas(text: str) -> str:
    """Final sigmas in place of capital ones at the end of words, where Python's `lower` has them too."""
    return _sigma_rule().sub(rf"\1{FINAL_SIGMA}", text) if SIGMA in text else text


@cache
def _sigma_rule() -> re.Pattern[str]:
    """A capital sigma after a letter and not before one, ignorable characters between."""
    letter, ignorable = (
        character_class(codes, r"\U{:08x}-\U{:08x}")
        for codes in (members("original", "letter"), members("original", "ignorable").union(SURROGATES))
    )
    return re.compile(rf"([{letter}][{ignorable}]*+){SIGMA}(?![{ignorable}]*+[{letter}])")


def with_special(added: Sequence[AddedToken], special: Sequence[str]) -> tuple[AddedToken, ...]:
    """The added tokens, and the special ones that are not among them.

    Raises:
        ConfigError: the special tokens are no list, or one is repeated.
    """
    if isinstance(special, str):
        raise ConfigError(f"special_tokens must be a list of pieces, got {special!r}")
    if len(set(special)) < len(special):
        raise ConfigError(f"special_tokens must be different pieces, got {list(special)}")
    known = {token.content for token in added}
    return (*added, *(AddedToken(content) for content in special if content not in known))


def alone(flavour: str, chinese_chars: bool) -> frozenset[int]:
    """The code points that are words of their own."""
    cjk = members(flavour, "cjk") if chinese_chars else frozenset()
    return cjk | members(flavour, "punctuation")


def _is_surrogate(char: str) -> bool:
    return "\ud800" <= char <= "\udfff"


def _width(char: str) -> int:
    return len(char.encode("utf-8", "surrogatepass"))
