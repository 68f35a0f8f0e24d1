"""WordPiece inside the TensorFlow graph: the ids and offsets of `keras_bert.wordpiece`, at the speed of the kernels.

Two kernels of TensorFlow Text do the work: FastBertNormalize with a table of our own, built from the flavour's frozen
lists, and FastWordpieceTokenizeWithOffsets (Song et al. 2021, https://arxiv.org/abs/2012.15524). What a table of single
code points cannot say (final sigmas, special tokens in a text, the length of words in characters) is said with core
TensorFlow operations, each behind a cheap look at whether the batch needs it. The graph holds constants only: no
variables, lookup tables, assets or Python functions.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
from types import ModuleType
from typing import Any

import numpy as np
import tensorflow as tf

from keras_bert.config import AddedToken
from keras_bert.errors import ConfigError, DataError
from keras_bert.text import double_array
from keras_bert.text.added import Finder, check_added, finders, word_class
from keras_bert.text.normalization import FINAL_SIGMA, SIGMA, SURROGATES, changes, character_class, code_points, members
from keras_bert.text.wordpiece import MAX_WORD_CHARACTERS, UNKNOWN, alone, has_sigma_rule, index, with_special

HOST = "/CPU:0"
"""Strings live there; without a word TensorFlow would send the numbers to an accelerator and back."""
FILLER = b"\x01"
"""A control character, which every flavour drops: takes up the room of what must not shift the rest."""
OPEN, CLOSE, OPEN_WORD, CLOSE_WORD, NOT_OPEN, NOT_CLOSE = map(chr, range(2, 8))
"""Control characters, which are dropped too: they mark added tokens in a text while it is split."""
ROW = 2**32
"""Keeps the places of different rows apart in one sorted list."""
PRIVATE = range(0xF0000, 0xFFFFE)
LONE = (0xFA6E, 0xFA6F, *range(0xFADA, 0xFB00), 0x2FA1E, 0x2FA1F)
"""Unassigned code points of the CJK compatibility blocks: the kernel makes each a word of its own."""


Tokens = tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]
"""Ids int32, starts and ends int64, all `[tokens]`, and row splits."""


class Tokenizer:
    """Strings to ids of word pieces, exactly as the flavour's reference does it.

    Args:
        vocabulary: word pieces in the order of their ids; must hold [UNK].
        do_lower_case: lower-case and strip accents.
        flavour: "original" (google-research/bert) or "hf" (Hugging Face's fast tokenizers).
        special_tokens: pieces to find in the text as they are written; others are ordinary text.
        accents, chinese_chars, max_word_length, added_tokens: see `TextConfig`.

    Any bytes are accepted: ill-formed UTF-8 is skipped, as by `decode("utf-8", "ignore")`, but a special token with
    such bytes inside is ordinary text. See `wordpiece.Encoding` for what offsets mean.

    Raises:
        ConfigError: no such flavour, tokens that cannot be found, or no TensorFlow Text.
        DataError: the vocabulary lacks [UNK] or a special token.

    Example:
        tokenizer = Tokenizer(["[UNK]", "a", "##b"], do_lower_case=True)
        ids, starts, ends = tokenizer.tokenize_with_offsets(tf.constant(["AB c"]))  # [[1, 2, 0]], [[0, 1, 3]], ...
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
        self._text = _tensorflow_text()
        known = index(vocabulary, flavour)
        tokens = with_special(added_tokens, special_tokens)
        check_added(tokens, known, has_sigma_rule(do_lower_case, flavour))
        self.special_tokens = tuple(special_tokens)
        self.limit = max_word_length or MAX_WORD_CHARACTERS[flavour]
        self.unknown_id = known[UNKNOWN]

        kind = Kind(flavour, bool(do_lower_case), accents, chinese_chars)
        used = _odd(chain.from_iterable(known), chinese_chars)
        changed, stand_ins = _changes(kind, used)
        never = {token.content for token in tokens if not token.piece}
        rows = [f"[no piece {row}]" for row in range(len(vocabulary))]  # never in a text: it has punctuation inside
        for piece, row in known.items():
            if _is_possible(piece) and piece not in never:
                rows[row] = piece.translate(stand_ins)
        short, self._model_limit_at = _wordpiece_model(rows, rows[self.unknown_id], self.limit)
        raw, normal = finders(tokens, {chr(code): value for code, value in changed.items()})
        self._raw, self._normal = Splitter(raw, known), Splitter(normal, known)
        with tf.init_scope(), tf.device(HOST):
            self._model = tf.constant(short)
            self._is_suffix = tf.constant([row.startswith("##") for row in rows])
            self._table = tf.constant(_table(kind, used))
            self._filling_table = tf.constant(_filling_table(FILLER, OPEN + NOT_CLOSE))
        self._sigma_rule = _sigma_rule() if has_sigma_rule(do_lower_case, flavour) else ""

    @property
    def constants(self) -> tuple[tf.Tensor, tf.Tensor]:
        """What the two kernels are told, uint8 `[bytes]`: the table of FastBertNormalize and the model of
        FastWordpieceTokenizeWithOffsets."""
        return self._table, self._model

    def tokenize(self, texts: Any) -> tf.RaggedTensor:
        """Strings `[B]` -> ids, ragged int32 `[B, tokens]`; B may be 0."""
        with tf.device(HOST):
            ids, _, _, splits = self._tokens(strings(texts), with_offsets=False)
            return tf.RaggedTensor.from_row_splits(ids, splits, validate=False)

    def tokenize_with_offsets(self, texts: Any) -> tuple[tf.RaggedTensor, tf.RaggedTensor, tf.RaggedTensor]:
        """Strings `[B]` -> ids, and where each token starts and ends in its string, in bytes.

        All are ragged int32 `[B, tokens]`; `character_offsets` turns bytes into characters.
        """
        with tf.device(HOST):
            ids, starts, ends, splits = self._tokens(strings(texts), with_offsets=True)
            return tuple(
                tf.RaggedTensor.from_row_splits(tf.cast(values, tf.int32), splits, validate=False)
                for values in (ids, starts, ends)
            )

    # === Steps: strings [B] -> ids int32, starts and ends int64, all [tokens], and row splits ===

    def _tokens(self, strings: tf.Tensor, with_offsets: bool) -> Tokens:
        """Of strings as they are given; starts and ends mean nothing without offsets."""
        joined = tf.strings.reduce_join(strings) if self._sigma_rule or self._raw else None
        if self._sigma_rule:
            strings = tf.cond(_holds(joined, SIGMA), lambda: self._finalize_sigmas(strings), lambda: strings)
        run = partial(self._words, with_offsets=with_offsets)
        if not self._raw:
            return run(strings)
        return tf.cond(
            _holds(joined, self._raw.pattern),
            lambda: self._raw.between(self._fill_ill_formed(strings), run),
            lambda: run(strings),
        )

    def _words(self, strings: tf.Tensor, with_offsets: bool) -> Tokens:
        """Of strings in which no token has to be found before they are normalized."""
        kernel = self._text.FastBertNormalizer(model_buffer=self._table)
        if with_offsets:
            normalized, sources = kernel.normalize_with_offsets(strings)
        else:
            normalized, sources = kernel.normalize(strings), None
        found = self._pieces(normalized)
        if self._normal:
            found = tf.cond(
                _holds(tf.strings.reduce_join(normalized), self._normal.pattern),
                lambda: self._normal.between(normalized, self._pieces),
                lambda: self._pieces(normalized),
            )
        if sources is None:
            return found
        ids, starts, ends, splits = found
        rows = tf.repeat(sources.row_splits[:-1], splits[1:] - splits[:-1])
        places = sources.flat_values
        begins = tf.gather(places, rows + starts)
        last = tf.gather(places, rows + ends - 1)
        stops = tf.gather(places, rows + ends)

        def next_sources() -> tf.Tensor:
            # A token that ends inside one expanded character ends where the next character begins.
            keys = sources.value_rowids() * ROW + tf.cast(places, tf.int64)
            row = tf.repeat(tf.range(sources.nrows()), splits[1:] - splits[:-1])
            return tf.gather(places, tf.searchsorted(keys, row * ROW + tf.cast(last, tf.int64), side="right"))

        stops = tf.cond(tf.reduce_any(stops == last), next_sources, lambda: stops)
        return ids, tf.cast(begins, tf.int64), tf.cast(stops, tf.int64), splits

    def _pieces(self, normalized: tf.Tensor) -> Tokens:
        """Of normalized strings, with places in them."""

        def run(model: tf.Tensor) -> Tokens:
            kernel = self._text.FastWordpieceTokenizer(model_buffer=model, token_out_type=tf.int32)
            ids, starts, ends = kernel.tokenize_with_offsets(normalized)
            return ids.flat_values, starts.flat_values, ends.flat_values, ids.row_splits

        # The kernel counts bytes. Up to as many bytes as characters are allowed its answer is right; a longer word is
        # one wide [UNK], which is seldom. Then it counts again with room for characters of four bytes.
        found = run(self._model)
        wide = tf.reduce_any(found[2] - found[1] > self.limit)

        def count_characters() -> Tokens:
            at = self._model_limit_at
            room = tf.constant(np.frombuffer(np.int32(4 * self.limit).tobytes(), np.uint8))
            model = tf.concat([self._model[:at], room, self._model[at + 4 :]], 0)
            return self._collapse_long_words(normalized, *run(model))

        return tf.cond(wide, count_characters, lambda: found)

    def _collapse_long_words(
        self, normalized: tf.Tensor, ids: tf.Tensor, starts: tf.Tensor, ends: tf.Tensor, splits: tf.Tensor
    ) -> Tokens:
        """Make one [UNK] of each word with too many characters."""
        is_first = ~tf.gather(self._is_suffix, ids)
        word = tf.cumsum(tf.cast(is_first, tf.int32)) - 1
        word_ends = tf.math.segment_max(ends, word)
        row_starts = tf.repeat(_starts(normalized), splits[1:] - splits[:-1])
        counts = _characters_before(normalized)
        before = tf.gather(counts, tf.boolean_mask(row_starts + starts, is_first))
        after = tf.gather(counts, tf.boolean_mask(row_starts, is_first) + word_ends)
        too_long = tf.gather(after - before > self.limit, word)
        ids = tf.where(too_long, self.unknown_id, ids)
        ends = tf.where(too_long, tf.gather(word_ends, word), ends)
        keep = is_first | ~too_long
        kept_before = tf.concat([[0], tf.cumsum(tf.cast(keep, tf.int64))], 0)
        ids, starts, ends = (tf.boolean_mask(values, keep) for values in (ids, starts, ends))
        return ids, starts, ends, tf.gather(kept_before, splits)

    def _finalize_sigmas(self, strings: tf.Tensor) -> tf.Tensor:
        """Final sigmas in place of capital ones at the end of words; both have two bytes."""
        return tf.strings.regex_replace(self._fill_ill_formed(strings), self._sigma_rule, rf"\1{FINAL_SIGMA}\2")

    def _fill_ill_formed(self, strings: tf.Tensor) -> tf.Tensor:
        return self._text.FastBertNormalizer(model_buffer=self._filling_table).normalize(strings)


class Splitter:
    """What finds added tokens in strings, in the graph, as `added.Finder` does in plain Python.

    Args:
        finder: the tokens.
        known: piece -> id.

    Attributes:
        pattern: a regular expression of RE2 that matches each of them.
    """

    def __init__(self, finder: Finder, known: Mapping[str, int]) -> None:
        self.pattern = "|".join(map(re.escape, finder.literals))
        self._single = "|".join(map(re.escape, finder.single))
        with tf.init_scope(), tf.device(HOST):
            self._literals = tf.constant(finder.literals, tf.string)
            self._ids = tf.constant([known[finder.tokens[text].content] for text in finder.literals], tf.int64)

    def __bool__(self) -> bool:
        return bool(self.pattern)

    def between(self, strings: tf.Tensor, run: Callable[[tf.Tensor], Tokens]) -> Tokens:
        """The tokens in strings, and those that `run` finds between them."""
        parts = self._parts(strings)
        texts, splits = parts.flat_values, parts.row_splits
        is_token = tf.ragged.range(parts.row_lengths()).flat_values % 2 == 1
        sizes = tf.cast(tf.strings.length(texts), tf.int64)
        before = tf.cumsum(sizes, exclusive=True)
        starts = before - tf.repeat(tf.gather(tf.concat([before, [0]], 0), splits[:-1]), parts.row_lengths())
        ids, begins, ends, inner = run(tf.where(is_token, "", texts))
        found = tf.RaggedTensor.from_row_splits(tf.stack([tf.cast(ids, tf.int64), begins, ends], 1), inner)
        same = tf.boolean_mask(texts, is_token)[:, tf.newaxis] == self._literals
        own = tf.gather(self._ids, tf.argmax(tf.cast(same, tf.int32), axis=1))
        own = tf.stack([own, tf.zeros_like(own), tf.boolean_mask(sizes, is_token)], 1)
        tokens = tf.RaggedTensor.from_row_lengths(own, tf.cast(is_token, tf.int64), validate=False)
        both = tf.concat([found, tokens], axis=1)
        ids, begins, ends = tf.unstack(both.values, axis=1)
        shift = tf.gather(starts, both.value_rowids())
        return tf.cast(ids, tf.int32), begins + shift, ends + shift, tf.gather(both.row_splits, splits)

    def _parts(self, strings: tf.Tensor) -> tf.RaggedTensor:
        """Strings `[B]` -> their parts, ragged `[B, parts]`: text and token in turn, text first and last."""

        def replace(text: tf.Tensor, pattern: str, by: str) -> tf.Tensor:
            return tf.strings.regex_replace(text, pattern, by)

        text = replace(strings, f"({self.pattern})", rf"{OPEN}\1{CLOSE}")
        if self._single:
            word = word_class()
            text = replace(text, f"{OPEN}({self._single}){CLOSE}", rf"{OPEN_WORD}\1{CLOSE_WORD}")
            text = replace(text, f"([{word}][{CLOSE}{CLOSE_WORD}]?){OPEN_WORD}", rf"\1{NOT_OPEN}")
            text = replace(text, f"{CLOSE_WORD}([{OPEN}{OPEN_WORD}{NOT_OPEN}]?[{word}])", rf"{NOT_CLOSE}\1")
            text = replace(text, f"{OPEN_WORD}({self._single}){CLOSE_WORD}", rf"{OPEN}\1{CLOSE}")
            text = replace(text, f"[{OPEN_WORD}{CLOSE_WORD}{NOT_OPEN}{NOT_CLOSE}]", "")
        return tf.strings.split(replace(text, f"[{OPEN}{CLOSE}]", CLOSE), CLOSE)


def character_offsets(texts: Any, byte_offsets: tf.RaggedTensor) -> tf.RaggedTensor:
    """Offsets in bytes of strings `[B]` -> in characters (code points), ragged int32 `[B, tokens]`.

    Ill-formed UTF-8 counts for nothing, as after `decode("utf-8", "ignore")`.
    """
    with tf.init_scope(), tf.device(HOST):
        table = tf.constant(_filling_table(b"\x80"))  # a byte that begins no character
    with tf.device(HOST):
        kernel = _tensorflow_text().FastBertNormalizer(model_buffer=table)
        filled = kernel.normalize(strings(texts))
        counts = _characters_before(filled)
        starts = _starts(filled)
        rows = byte_offsets.value_rowids()
        places = tf.gather(starts, rows) + tf.cast(byte_offsets.flat_values, tf.int64)
        found = tf.gather(counts, places) - tf.gather(counts, tf.gather(starts, rows))
        return byte_offsets.with_flat_values(found)


# === Inputs ===


def strings(values: Any, name: str = "texts", rank: int = 1) -> tf.Tensor:
    """Lists, an array or a tensor of strings as a tensor `[B]`, or `[B, C]` where `rank` is 2.

    The graph checks the rank again: a placeholder may be fed with another one, on which TensorFlow Text's kernels end
    the process.

    Raises:
        ConfigError: they are no strings, or of another rank.
    """
    try:
        found = tf.convert_to_tensor(_encoded(values), tf.string)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} must be {SHAPES[rank]}, and they hold something else") from error
    if found.shape.rank != rank:
        raise ConfigError(f"{name} must be {SHAPES[rank]}, got shape {found.shape}{ADVICE[rank]}")
    return tf.ensure_shape(found, [None] * rank)


SHAPES = {1: "a list or vector of strings", 2: "rows of strings, all of one length"}
ADVICE = {1: "; put a single text into a list", 2: ""}


def _encoded(values: Any) -> Any:
    """UTF-8 of what is a string in lists of any depth, also where it holds lone surrogates."""
    if isinstance(values, list | tuple):
        return [_encoded(value) for value in values]
    return values.encode("utf-8", "surrogatepass") if isinstance(values, str) else values


# === Parts of the graph ===


def _starts(strings: tf.Tensor) -> tf.Tensor:
    """Where each string begins when all are joined, int64 `[B]`."""
    return tf.cumsum(tf.cast(tf.strings.length(strings), tf.int64), exclusive=True)


def _characters_before(strings: tf.Tensor) -> tf.Tensor:
    """Characters before each byte of the joined strings, and before their end, int32 `[bytes + 1]`."""
    data = tf.io.decode_raw(tf.strings.reduce_join(strings), tf.uint8)
    begins = tf.bitwise.bitwise_and(data, np.uint8(0xC0)) != 0x80
    return tf.concat([[0], tf.cumsum(tf.cast(begins, tf.int32))], 0)


def _holds(joined: tf.Tensor, pattern: str) -> tf.Tensor:
    """Whether a joined batch holds a pattern without empty matches (a search for literals costs next to nothing)."""
    rest = tf.strings.regex_replace(joined, pattern, "", replace_global=False)
    return tf.strings.length(rest) < tf.strings.length(joined)


@cache
def _sigma_rule() -> str:
    """`wordpiece`'s rule of final sigmas for RE2, which cannot look ahead."""
    letter, ignorable = (
        character_class(members("original", kind), r"\x{{{:x}}}-\x{{{:x}}}") for kind in ("letter", "ignorable")
    )
    return rf"([{letter}][{ignorable}]*){SIGMA}([{ignorable}]*(?:[^{letter}{ignorable}]|\z))"


# === The constants ===


def kernel_classes() -> dict[str, set[int]]:
    """How the installed kernel splits, found by asking it: the sections of `unicode/kernel.txt`."""
    model, _ = _wordpiece_model([UNKNOWN, "a"], UNKNOWN, 100)
    kernel = _tensorflow_text().FastWordpieceTokenizer(model_buffer=tf.constant(model), token_out_type=tf.int32)
    codes = list(code_points())
    counts = kernel.tokenize(tf.constant([f"a{chr(c)}a".encode() for c in codes])).row_lengths().numpy()
    return {kind: {c for c, n in zip(codes, counts, strict=True) if n == k} for kind, k in (("space", 2), ("alone", 3))}


@dataclass(frozen=True)
class Kind:
    """What decides how characters are normalized and split; see `TextConfig`."""

    flavour: str
    lower_case: bool
    accents: str = ""
    chinese_chars: bool = True


@cache
def _table(kind: Kind, used: frozenset[str]) -> np.ndarray:
    """The table of FastBertNormalize, uint8 `[bytes]`."""
    return double_array.normalizer(_changes(kind, used)[0])


@cache
def _changes(kind: Kind, used: frozenset[str]) -> tuple[dict[int, str], dict[int, str]]:
    """What the kernel is to put in the place of characters, and which of these stand for others.

    Where the kernel splits otherwise than the flavour, characters that occur in no piece stand in for those of the
    text, so both the table and the vocabulary can be written with them.

    Args:
        used: what `_odd` gives for the vocabulary.
    """
    table = changes(kind.flavour, kind.lower_case, kind.accents)
    stand_ins, void_private, void_lone = _stand_ins(kind, table, used)
    found = {code: value.translate(stand_ins) for code, value in table.items()} | {
        code: char for code, char in stand_ins.items() if code not in table
    }
    # A stand-in that is written in a text must not pass for what it stands for; one more is in no piece either.
    for code in map(ord, set(stand_ins.values())):
        if code not in table:
            found[code] = void_lone if code in LONE and kind.chinese_chars else void_private
    return found, stand_ins


def _stand_ins(kind: Kind, table: dict[int, str], used: frozenset[str]) -> tuple[dict[int, str], str, str]:
    """Code points -> stand-ins; and two characters in no piece, of which the second is a word of its own."""
    ours = alone(kind.flavour, kind.chinese_chars)
    private, lone = (_unused(codes, used) for codes in (PRIVATE, LONE))
    void_private, void_lone = next(private), next(lone)
    shown = set(chain.from_iterable(table.values()))
    chinese = members(kind.flavour, "cjk") - ours
    found = {}
    for code in sorted(ours ^ members("kernel", "alone")):
        if code in chinese and chr(code) not in used:
            found[code] = void_private  # its word is unknown in any case
        elif code not in table or chr(code) in shown:
            found[code] = next(lone if code in ours else private)
    return found, void_private, void_lone


def _odd(characters: Iterable[str], chinese_chars: bool) -> frozenset[str]:
    """Of the characters of a vocabulary those that decide about stand-ins."""
    chinese = frozenset() if chinese_chars else members("hf", "cjk")
    return frozenset(c for c in set(characters) if ord(c) in PRIVATE or ord(c) in LONE or ord(c) in chinese)


def _unused(codes: Iterable[int], used: frozenset[str]) -> Iterator[str]:
    return (chr(c) for c in codes if chr(c) not in used)


@cache
def _filling_table(filler: bytes, ends: str = "") -> np.ndarray:
    """A table that puts a filler in the place of each byte of ill-formed UTF-8, and changes nothing else.

    Args:
        ends: two characters of one byte; those between, and these, are filled too.
    """
    filled = range(ord(ends[0]), ord(ends[1]) + 1) if ends else ()
    return double_array.normalizer({code: filler.decode() for code in filled}, (filler, filler * 2, filler * 3))


def _is_possible(piece: str) -> bool:
    """Whether a word can hold a piece; the kernel's builder refuses some that cannot be, or makes words of them."""
    return piece not in ("", "##") and _never_in_words().isdisjoint(piece)


@cache
def _never_in_words() -> frozenset[str]:
    return frozenset(map(chr, chain(range(0x20), SURROGATES, members("kernel", "space"))))


def _wordpiece_model(rows: Sequence[str], unknown: str, limit: int) -> tuple[np.ndarray, int]:
    """The model of FastWordpieceTokenizeWithOffsets, uint8 `[bytes]`, and where in it the limit is, an int32."""
    from flatbuffers.table import Table
    from tensorflow_text.core.pybinds import pywrap_fast_wordpiece_tokenizer_model_builder as builder

    try:
        model = builder.build_fast_wordpiece_model(list(rows), limit, "##", unknown, False, False)
    except (RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"the vocabulary: TensorFlow Text cannot build a tokenizer from it ({reason})") from error
    root = Table(model, int.from_bytes(model[:4], "little"))
    at = root.Pos + root.Offset(12)  # max_bytes_per_token, the fifth field of FastWordpieceTokenizerConfig
    assert int.from_bytes(model[at : at + 4], "little") == limit
    return np.frombuffer(model, np.uint8), at


def _tensorflow_text() -> ModuleType:
    try:
        import tensorflow_text
    except ImportError as error:
        raise ConfigError(
            f"tokenizing needs tensorflow-text, which cannot be imported here ({error}); there are wheels "
            "for Linux and macOS (`pip install tensorflow-text`), none for Windows"
        ) from error
    return tensorflow_text
