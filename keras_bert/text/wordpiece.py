"""WordPiece in plain Python: the definition of our ids, and the tokenizer where TensorFlow Text has no wheels.

Greedy longest match first (Wu et al. 2016, https://arxiv.org/abs/1609.08144) over words of the flavour's characters.
`keras_bert.tokenizer` gives the same ids and offsets inside the TensorFlow graph.
"""

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate

from keras_bert.errors import ConfigError, DataError
from keras_bert.text.normalization import FINAL_SIGMA, SIGMA, SURROGATES, changes, character_class, members

UNKNOWN = "[UNK]"
MAX_WORD_CHARACTERS = {"original": 200, "hf": 100}
"""A longer word, counted after normalization, is one [UNK]."""
MAX_SPECIAL_TOKENS = 13
MANY_UNKNOWN, MANY_CAPITALS = 0.05, 0.1
"""Shares above which `misfit` speaks: of [UNK] among pieces, of capitals in a vocabulary. Where vocabulary and casing
fit, 1% is much; English with the wrong casing has 7% and more."""
SAMPLE = 500
_PUNCTUATION = frozenset(string.punctuation)


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

    Raises:
        ConfigError: no such flavour, or special tokens that cannot be told apart.
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
    ) -> None:
        self.index = index(vocabulary, flavour)
        self.special_tokens = check_special_tokens(special_tokens, self.index)
        self.limit = MAX_WORD_CHARACTERS[flavour]
        self._table = {chr(c): value for c, value in changes(flavour, do_lower_case).items()}
        self._space = {chr(c) for c in members(flavour, "space")}
        self._alone = {chr(c) for kind in ("cjk", "punctuation") for c in members(flavour, kind)}
        self._has_sigma_rule = has_sigma_rule(do_lower_case, flavour)
        self._special = re.compile("|".join(map(re.escape, self.special_tokens))) if self.special_tokens else None
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
        words, sources = self._words(chars)
        found = Encoding()
        known: dict[str, list[tuple[str, int, int]]] = {}
        for word, first in words:
            if word not in known:
                known[word] = self.pieces(word)
            for piece, start, end in known[word]:
                begin, stop = sources[first[start]], sources[first[end - 1] + 1]
                found.ids.append(self.index[piece])
                found.pieces.append(piece)
                found.characters.append((ordinals[begin], ordinals[stop]))
                found.bytes.append((places[begin], places[stop]))
        return found

    def _words(self, chars: str) -> tuple[list[tuple[str, list[int]]], list[int]]:
        """Words with the number of the source of each of their characters (a special token counts as one); sources.

        Sources are the positions of the characters that are not dropped, with the length of the text at the end, so
        that the source after the last one of a token is where the token ends.
        """
        special = {m.start(): m.group() for m in self._special.finditer(chars)} if self._special else {}
        words: list[tuple[str, list[int]]] = []
        sources: list[int] = []
        word: list[str] = []
        first: list[int] = []
        at = 0
        while at < len(chars):
            token = special.get(at)
            value = token or self._table.get(chars[at], chars[at])
            if value and not _is_surrogate(chars[at]):
                for c in [token] if token else value:
                    if token or c in self._space or c in self._alone:
                        if word:
                            words.append(("".join(word), first))
                            word, first = [], []
                        if c not in self._space:
                            words.append((c, [len(sources)]))
                    else:
                        word.append(c)
                        first.append(len(sources))
                sources.append(at)
            at += len(token or "x")
        if word:
            words.append(("".join(word), first))
        return words, [*sources, len(chars)]

    def pieces(self, word: str) -> list[tuple[str, int, int]]:
        """Piece, start and end for each piece of a normalized word, or [UNK] for all of it."""
        if word in self.special_tokens:
            return [(word, 0, 1)]
        found: list[tuple[str, int, int]] = []
        start = 0 if len(word) <= self.limit else len(word) + 1
        while start < len(word):
            prefix = "##" if start else ""
            for end in range(min(len(word), start + self._longest), start, -1):
                piece = prefix + word[start:end]
                if piece in self.index:
                    found.append((piece, start, end))
                    start = end
                    break
            else:
                start = len(word) + 1
        return found if start == len(word) else [(UNKNOWN, 0, len(word))]


def index(vocabulary: Sequence[str], flavour: str) -> dict[str, int]:
    """Piece -> id as the flavour's reference reads the lines: the original strips them, the last of equals counts.

    Raises:
        ConfigError: no such flavour.
        DataError: there is no [UNK].
    """
    if flavour not in MAX_WORD_CHARACTERS:
        raise ConfigError(f"no tokenizer flavour {flavour!r}; there are {', '.join(MAX_WORD_CHARACTERS)}")
    found = {piece.strip() if flavour == "original" else piece: number for number, piece in enumerate(vocabulary)}
    if UNKNOWN not in found:
        raise DataError(f"the vocabulary has no {UNKNOWN} among its {len(vocabulary)} pieces")
    return found


def misfit(vocabulary: Sequence[str], texts: Sequence[str], do_lower_case: bool, flavour: str = "original") -> str:
    """One line where vocabulary, casing and texts hardly belong together, judged by the first of them; else ""."""
    ordinary = [piece for piece in vocabulary if piece[0] not in "[<"]
    capitals = sum(piece != piece.lower() for piece in ordinary) / max(len(ordinary), 1)
    if do_lower_case and capitals > MANY_CAPITALS:
        return f"{capitals:.0%} of the vocabulary has capitals but text is lower-cased; is do_lower_case false for it?"

    def unknown(lower: bool) -> float:
        wordpiece = WordPiece(vocabulary, lower, flavour)
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


def check_special_tokens(tokens: Sequence[str], known: Mapping[str, int]) -> tuple[str, ...]:
    """The special tokens as a tuple.

    Raises:
        ConfigError: there are too many, one is repeated or could be part of ordinary text, or two can overlap.
        DataError: the vocabulary lacks one.
    """
    if isinstance(tokens, str):
        raise ConfigError(f"special_tokens must be a list of pieces, got {tokens!r}")
    if len(tokens) > MAX_SPECIAL_TOKENS or len(set(tokens)) < len(tokens):
        raise ConfigError(f"special_tokens must be at most {MAX_SPECIAL_TOKENS} different pieces, got {list(tokens)}")
    for token in tokens:
        if len(token) < 2 or not _PUNCTUATION & set(token) or token.startswith("##") or SIGMA in token:
            raise ConfigError(
                f"special token {token!r}: must be more than one character, hold ASCII punctuation (so that no word "
                f"of a text equals it), not start with ## and not hold {SIGMA}"
            )
        if token not in known:
            raise DataError(f"the vocabulary has no {token}, which special_tokens names")
        for other in tokens:
            if token != other and (token in other or _overlap(token, other)):
                raise ConfigError(f"special tokens {token!r} and {other!r} can overlap in a text")
    return tuple(tokens)


def _overlap(first: str, second: str) -> bool:
    return any(first.endswith(second[:n]) for n in range(1, min(len(first), len(second))))


def _is_surrogate(char: str) -> bool:
    return "\ud800" <= char <= "\udfff"


def _width(char: str) -> int:
    return len(char.encode("utf-8", "surrogatepass"))
