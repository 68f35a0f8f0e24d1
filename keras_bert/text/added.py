"""Tokens that were added to a vocabulary: found in a text as they are written, before it is split into words.

This follows the package `tokenizers` of Hugging Face. At each place the longest token is found, and what is found is
not looked at again. A token that is to be a single word does not count beside a letter or digit. Tokens with
`normalized` are looked for in the normalized text, in their own normalized form; the others in the text as it is.
White space around a token belongs to no token, so the flags `lstrip` and `rstrip`, which take it, change no ids.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

from keras_bert.config import AddedToken
from keras_bert.errors import ConfigError, DataError
from keras_bert.text.normalization import SIGMA, character_class, members

WORDS_OF = "hf"
"""The flavour whose class "word" tells what may not stand beside a single word."""


class Finder:
    """What finds added tokens in a text.

    Args:
        tokens: text to find -> the token that it is.

    Attributes:
        literals: the texts, the longest first.
        single: those that must be single words.
    """

    def __init__(self, tokens: Mapping[str, AddedToken]) -> None:
        self.tokens = dict(tokens)
        self.literals = sorted(self.tokens, key=len, reverse=True)
        self.single = [text for text in self.literals if self.tokens[text].single_word]
        self._pattern = re.compile("|".join(map(re.escape, self.literals))) if tokens else None
        self._word = members(WORDS_OF, "word") if self.single else frozenset[int]()

    def __bool__(self) -> bool:
        return bool(self.tokens)

    def find(self, text: str) -> Iterator[tuple[str, int, int]]:
        """The content of each token in the text, where it starts and where it ends; and "" for what is between."""
        last = 0
        for match in self._pattern.finditer(text) if self._pattern else ():
            token, (start, end) = self.tokens[match.group()], match.span()
            beside = text[max(start - 1, 0) : start] + text[end : end + 1]
            if token.single_word and not self._word.isdisjoint(map(ord, beside)):
                continue
            if start > last:
                yield "", last, start
            yield token.content, start, end
            last = end
        if last < len(text):
            yield "", last, len(text)


def word_class() -> str:
    """The inside of RE2's `[...]` for what may not stand beside a single word."""
    return character_class(members(WORDS_OF, "word"), r"\x{{{:x}}}-\x{{{:x}}}")


def finders(tokens: Sequence[AddedToken], table: Mapping[str, str]) -> tuple[Finder, Finder]:
    """What finds tokens in a text as it is, and in the normalized text.

    Args:
        table: character -> what it becomes; characters that stay are not in it.
    """
    raw = {token.content: token for token in tokens if not token.normalized}
    normal = {"".join(table.get(c, c) for c in token.content): token for token in tokens if token.normalized}
    return Finder(raw), Finder(normal)


def check_added(tokens: Sequence[AddedToken], known: Mapping[str, int], has_sigma_rule: bool) -> None:
    """Check that tokens can be found in a text.

    Raises:
        ConfigError: one is repeated, begins or ends with white space, or holds what texts never have where they are
            looked for.
        DataError: the vocabulary lacks one.
    """
    contents = [token.content for token in tokens]
    twice = sorted({content for content in contents if contents.count(content) > 1})
    if twice:
        raise ConfigError(f"added tokens must be different pieces, these are not: {twice}")
    for content in contents:
        if content not in known:
            raise DataError(f"the vocabulary has no {content}, which the added or special tokens name")
        if not content or content != content.strip() or not content.isprintable():
            raise ConfigError(f"added token {content!r}: must be printable, and no white space at its ends")
        if has_sigma_rule and SIGMA in content:
            raise ConfigError(f"added token {content!r}: must not hold {SIGMA}, which becomes another letter here")
