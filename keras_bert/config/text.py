"""How strings become rows of tokens."""

from dataclasses import dataclass
from typing import Any

from keras_bert.config.base import check_choices, flag, require

ADDED_FLAGS = ("single_word", "normalized", "piece")


@dataclass(frozen=True)
class AddedToken:
    """A token that is found in a text as it is written; see `text.added`.

    Attributes:
        single_word: not beside a letter or digit.
        normalized: found in the normalized text.
        piece: words can be made of it too, as of any other piece of the vocabulary.
    """

    content: str
    single_word: bool = False
    normalized: bool = False
    piece: bool = True


@dataclass(frozen=True)
class TextConfig:
    """How strings become token ids, and what is kept of texts that are too long.

    `flavour` is the tokenizer that the checkpoint was trained with, see `tokenizer.Tokenizer`: "original"
    (google-research/bert) or "hf" (Hugging Face); the importer sets it. `accents` are "" (stripped where text is
    lower-cased, and only there), "keep" or "strip". `chinese_chars` says whether each Chinese character is a word,
    `max_word_length` what is the longest word in characters, 0 as in the flavour. `added_tokens` are found in a text as
    they are written; `added_flags` has for each the words of `ADDED_FLAGS` that hold, with spaces between.
    """

    do_lower_case: bool = flag(True, "Lower-case the text and strip accents; must fit the vocabulary.")
    max_seq_length: int = flag(128, "Longest row in tokens, [CLS] and [SEP] included; longer texts are cut.")
    truncation: str = flag(
        "longest_first",
        "How segments share a row that is too short for all.",
        "keras_bert.text.packing:SHARES",
    )
    truncation_part: str = flag(
        "head", "Which part of a text that is too long is kept.", "keras_bert.text.packing:PARTS"
    )
    flavour: str = "original"
    accents: str = ""
    chinese_chars: bool = True
    max_word_length: int = 0
    added_tokens: tuple[str, ...] = ()
    added_flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("added_tokens", "added_flags"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_choices(self)
        require(self.flavour in ("original", "hf"), f"flavour must be original or hf, got {self.flavour!r}")
        require(
            self.flavour == "hf" or (not self.accents and self.chinese_chars),
            "accents and chinese_chars are settings of the flavour hf",
        )
        require(0 <= self.max_word_length < 2**20, f"max_word_length must be 0 or more, got {self.max_word_length}")
        require(len(self.added_tokens) == len(self.added_flags), "added_tokens and added_flags must be equally many")
        words = {word for flags in self.added_flags for word in flags.split()}
        require(words <= set(ADDED_FLAGS), f"added_flags can hold {', '.join(ADDED_FLAGS)}, got {sorted(words)}")
        require(self.accents in ("", "keep", "strip"), f"accents must be keep or strip, got {self.accents!r}")
        require(self.max_seq_length >= 3, f"max_seq_length must be at least 3, got {self.max_seq_length}")

    @property
    def tokenizer(self) -> dict[str, Any]:
        """The settings of a `Tokenizer` or `WordPiece`, by the names of their arguments."""
        names = ("do_lower_case", "flavour", "accents", "chinese_chars", "max_word_length")
        added = (
            AddedToken(content, *(name in flags.split() for name in ADDED_FLAGS))
            for content, flags in zip(self.added_tokens, self.added_flags, strict=True)
        )
        return {name: getattr(self, name) for name in names} | {"added_tokens": tuple(added)}


@dataclass(frozen=True)
class WindowConfig:
    """Long texts read whole, in overlapping windows whose scores are merged, where they are not to be cut.

    The last segment of a row is what windows move over; the number of windows bounds what a text can cost. Tags and
    spans need no merging: each token is judged in the window that shows most of what is around it.
    """

    max_windows: int = flag(1, "Windows of a long text that are read; 1 cuts the text instead.")
    doc_stride: int = flag(0, "Tokens from the start of a window to the start of the next; 0 is half a window.")
    window_merge: str = flag("mean", "How the scores of a text's windows become one.", "keras_bert.text.packing:MERGES")
    max_query_length: int = flag(64, "Tokens of a question; --task=span reads windows of the passage beside it.")

    def __post_init__(self) -> None:
        check_choices(self)
        require(1 <= self.max_windows <= 1000, f"max_windows must be from 1 to 1000, got {self.max_windows}")
        require(self.doc_stride >= 0, f"doc_stride must be 0 or more, got {self.doc_stride}")
        require(self.max_query_length >= 1, f"max_query_length must be at least 1, got {self.max_query_length}")
