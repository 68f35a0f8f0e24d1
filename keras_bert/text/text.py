"""Text to token ids, inside the TensorFlow graph: the same ops serve `tf.data` and the SavedModel.

WordPiece (Schuster & Nakajima 2012; Wu et al. 2016) gives the ids that the checkpoint was trained with, see
`tokenizer.py`; cutting and packing are in `packing.py`. Besides two kernels of TensorFlow Text the graph holds core
TensorFlow ops only, so that older TensorFlow Serving releases load it too.
"""

import copy
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_bert.config import TextConfig, WindowConfig, choose
from keras_bert.errors import ConfigError
from keras_bert.text import packing
from keras_bert.text.tokenizer import Tokenizer, strings
from keras_bert.text.vocabulary import check_vocabulary


class Text:
    """Strings to features: `[CLS] text [SEP]`, `[CLS] text [SEP] text_pair [SEP]`, and so on.

    Args:
        vocabulary: the word pieces in the order of their ids; must hold [UNK], [CLS] and [SEP].
        config: casing, flavour, the longest row, and what is cut where a text is too long.
        special_tokens: pieces that are recognised where a text spells them, such as ("[MASK]",). By default
            none is: special tokens typed by a user are ordinary text.

    Call arguments:
        segments: one or more vectors of strings `[B]` (tensors, lists or arrays), B may be 0. None is no segment.

    Returns:
        A dict of `token_ids` and `segment_ids` int32 `[B, T]`, `padding_mask` bool `[B, T]`, `num_tokens`
        int32 `[B]` (before cutting, special tokens included) and `truncated` bool `[B]`. T is the longest
        row of the batch, at least 2 and at most `max_seq_length`.

    Any bytes are accepted: invalid UTF-8, NUL and control characters never raise, and an empty string
    gives `[CLS] [SEP]`.

    Raises:
        DataError: the vocabulary repeats a piece, lacks a special token, or has a piece that no text can match.
        ConfigError: the input is not a vector of strings, the segments are not equally many, there is no room for
            them, or TensorFlow Text is not installed.

    Example:
        text = Text(read_vocabulary("vocab.txt"), TextConfig(max_seq_length=64))
        features = text(["forest fire near la ronge"])
    """

    def __init__(
        self, vocabulary: Sequence[str], config: TextConfig | None = None, special_tokens: Sequence[str] = ()
    ) -> None:
        self.vocabulary = list(vocabulary)
        self.config = config or TextConfig()
        self.share = choose(packing.SHARES, self.config.truncation, "truncation")
        self.part = choose(packing.PARTS, self.config.truncation_part, "truncation_part")
        index = check_vocabulary(self.vocabulary, "the vocabulary")
        self.cls_id, self.sep_id = index["[CLS]"], index["[SEP]"]
        self.pad_id = index.get("[PAD]", 0)
        self.tokenizer = Tokenizer(self.vocabulary, special_tokens=special_tokens, **self.config.tokenizer)
        self.continues = np.array([piece.startswith("##") for piece in self.vocabulary])
        self.prompt = ""

    def tokenize(self, text: Any) -> tf.RaggedTensor:
        """Strings `[B]` -> ids of their word pieces, ragged int32 `[B, tokens]`, nothing cut or added.

        Those of the prompt, if there is one, stand first.
        """
        return self.tokenizer.tokenize(self._prompted(text))

    def tokenize_with_offsets(self, text: Any) -> tuple[tf.RaggedTensor, tf.RaggedTensor, tf.RaggedTensor]:
        """`tokenize`, and where in the text each token starts and ends, in bytes; -1 for tokens of the prompt."""
        ids, starts, ends = self.tokenizer.tokenize_with_offsets(self._prompted(text))
        before = len(self.prompt.encode("utf-8"))
        if not before:
            return ids, starts, ends
        inside = ends.flat_values > before
        shifted = (
            where.with_flat_values(tf.where(inside, tf.maximum(where.flat_values - before, 0), -1))
            for where in (starts, ends)
        )
        return ids, *shifted

    def _prompted(self, text: Any) -> tf.Tensor:
        return tf.strings.join([self.prompt, strings(text)]) if self.prompt else strings(text)

    def count(self, *segments: Any, how: str = "row") -> Any:
        """Length of each row, or of the longest of each example, as the model will see it, int32 NumPy `[B]`."""
        return tf.minimum(self.read(how, *segments)["num_tokens"], self.config.max_seq_length).numpy()

    def __call__(self, *segments: Any) -> dict[str, tf.Tensor]:
        tokens = [self.tokenize(segment) for segment in segments if segment is not None]
        keep = self._keep(tokens)
        return self._features(self._cut(tokens, keep)) | self._sizes(tokens, keep)

    def read(self, how: str, *segments: Any) -> dict[str, tf.Tensor]:
        """The features of examples, by how they are read: as one "row" (a call), or as the method of that name does."""
        ways = {"row": self.__call__, "each": self.each, "choices": self.choices, "offsets": self.offsets}
        return choose(ways, how, "way to read texts")(*segments)

    def each(self, *segments: Any) -> dict[str, tf.Tensor]:
        """As a call, but every segment is a row of its own.

        Returns:
            `token_ids` and `segment_ids` int32, `padding_mask` bool `[B, S, T]` of S segments; `num_tokens` int32 `[B]`
            of the longest; `truncated` bool `[B]`: was any of them cut?
        """
        given = [strings(segment) for segment in segments if segment is not None]
        return _grouped(self(tf.reshape(tf.stack(given, axis=1), [-1])), [tf.shape(given[0])[0], len(given)])

    def choices(self, *segments: Any) -> dict[str, tf.Tensor]:
        """As a call, for each of the choices that are the last segment, strings `[B, C]`.

        A row is `[CLS] text [SEP] choice [SEP]`; where there is a second text, it stands before each choice, with a
        space between. An empty string is no choice; its row is padding.

        Returns:
            `token_ids` and `segment_ids` int32, `padding_mask` bool `[B, C, T]`; `num_tokens` int32 `[B]` of the
            longest row; `truncated` bool `[B]`: was any of them cut?

        Raises:
            ConfigError: the choices are no rows of strings, or there is not one text, or a pair of texts, beside them.
        """
        *texts, last = (segment for segment in segments if segment is not None)
        choices = strings(last, "choices", rank=2)
        if not 1 <= len(texts) <= 2:
            raise ConfigError(f"{len(texts)} texts beside the choices; give one text, or a pair")
        if choices.shape[1] is None:  # a question without any choice has one that is none
            choices = tf.pad(choices, [[0, 0], [0, tf.maximum(1 - tf.shape(choices)[1], 0)]], constant_values="")
        shape = [tf.shape(choices)[0], tf.shape(choices)[1] if choices.shape[1] is None else choices.shape[1]]
        choices = tf.reshape(choices, [-1])
        first, *middle = texts
        there = tf.not_equal(choices, "")
        second = tf.strings.join([tf.repeat(strings(middle[0]), shape[1]), choices], " ") if middle else choices
        once = self.tokenize(first)  # however many choices there are
        tokens = [tf.gather(once, tf.repeat(tf.range(once.nrows()), shape[1])), self.tokenize(second)]
        keep = self._keep(tokens)
        row = self._features(self._cut(tokens, keep)) | self._sizes(tokens, keep)
        absent = ~there[:, tf.newaxis]
        return _grouped(
            {
                "token_ids": tf.where(absent, self.pad_id, row["token_ids"]),
                "segment_ids": tf.where(absent, 0, row["segment_ids"]),
                "padding_mask": row["padding_mask"] & ~absent,
                "num_tokens": tf.where(there, row["num_tokens"], 0),
                "truncated": row["truncated"] & there,
            },
            shape,
        )

    def windows(self, config: WindowConfig, *segments: Any) -> dict[str, tf.Tensor]:
        """As a call, but the last segment is read in overlapping windows; the others keep half of the row at most.

        Returns:
            Features of the W windows, those of one text after another: `token_ids`, `segment_ids` and `padding_mask`
            `[W, T]`; the text that each belongs to, `rows` int32 `[W]`; and for the B texts `num_tokens`,
            `num_windows` int32 `[B]` and `truncated` bool `[B]`: is there a token that no window holds?

        Raises:
            ConfigError: tokens between two windows would be lost, because the stride is longer than a window.
        """
        tokens = [self.tokenize(segment) for segment in segments if segment is not None]
        return self._windows(config, tokens, self._room(tokens) // 2)[0]

    def located(self, config: WindowConfig, *segments: Any) -> dict[str, tf.Tensor]:
        """As `windows`, with at most `max_query_length` tokens of the others, and where in the last segment pieces are.

        Returns:
            What `windows` gives, and for each position of a window, -1 or False where it is no piece of the last
            segment: `starts` and `ends` int32 `[W, T]`, in bytes of the segment; `words` int32, the number of the word
            in its text; `begins` bool, is it the first piece of a word; `best` bool, is this the one window that shows
            most of what is around the piece?

        Raises:
            ConfigError: as `windows` does.
        """
        given = [strings(segment) for segment in segments if segment is not None]
        tokens = [self.tokenize(segment) for segment in given[:-1]]
        last, starts, ends = self.tokenize_with_offsets(given[-1])
        tokens.append(last)
        limit = min(config.max_query_length * len(tokens[:-1]), self._room(tokens) // 2)
        features, where = self._windows(config, tokens, limit)
        first = tf.ragged.range(last.row_lengths()).flat_values == 0
        begins = first | ~tf.gather(self.continues, last.flat_values)
        count = tf.cumsum(tf.cast(begins, tf.int32))
        words = count - tf.repeat(tf.boolean_mask(count, first), last.row_lengths()[last.row_lengths() > 0])

        def placed(values: tf.Tensor, none: Any) -> tf.Tensor:
            return tf.gather(tf.concat([values, [none]], 0), where)

        return features | {
            "starts": placed(starts.flat_values, -1),
            "ends": placed(ends.flat_values, -1),
            "words": placed(words, -1),
            "begins": placed(begins, False),
            "best": packing.best_window(where, tf.size(last.flat_values)),
        }

    def offsets(self, *segments: Any) -> dict[str, tf.Tensor]:
        """The row of each text as the model sees it, and where in the text its pieces are.

        Returns:
            `token_ids`, `segment_ids`, and in bytes of the segment `starts` and `ends`, -1 where a position is no piece
            of a text; all int32 `[B, T]`. And `padding_mask`, `num_tokens` and `truncated` as a call gives them.
        """
        found = [self.tokenize_with_offsets(segment) for segment in segments if segment is not None]
        tokens, starts, ends = (list(column) for column in zip(*found, strict=True))
        keep = self._keep(tokens)
        numbers, count = [], tf.constant(0)
        for t in tokens:
            numbers.append(t.with_flat_values(tf.range(tf.size(t.flat_values)) + count))
            count += tf.size(t.flat_values)
        where = packing.pack(self._cut(numbers, keep), count, count, count)[0]

        def placed(values: list[tf.RaggedTensor]) -> tf.Tensor:
            return tf.gather(tf.concat([*(v.flat_values for v in values), [-1]], 0), where)

        row = self._features(self._cut(tokens, keep)) | self._sizes(tokens, keep)
        return row | {"starts": placed(starts), "ends": placed(ends)}

    def with_special_tokens(self, tokens: Sequence[str]) -> "Text":
        """The same, which also recognises these pieces where a text spells them."""
        known = self.tokenizer.special_tokens
        more = [token for token in tokens if token not in known]
        return Text(self.vocabulary, self.config, (*known, *more)) if more else self

    def with_prompt(self, prompt: str) -> "Text":
        """The same, which reads `prompt` before each text."""
        made = copy.copy(self)
        made.prompt = prompt
        return made

    def before_target(self, most: int) -> "Text":
        """The same for a text and, as the second segment, its target of at most `most` tokens, its [SEP] included.

        A text without a target has a row that leaves room for one, so it is cut alike with and without.

        Raises:
            ConfigError: the row has no room for both.
        """
        if most + 3 > self.config.max_seq_length:
            raise ConfigError(
                f"max_target_length {most} leaves no room for a text in max_seq_length {self.config.max_seq_length}"
            )
        made = copy.copy(self)
        made.share = packing.before_target(most)
        return made

    def detokenize(self, ids: Any) -> tf.Tensor:
        """Ids int32 `[..., L]` -> the text they spell, strings `[...]`; -1 is nothing, and stands behind the rest.

        Pieces of a word are joined, and there is no space inside Chinese and Japanese, before what closes a clause or a
        bracket, and behind what opens one.

        Raises:
            ConfigError: the ids are a single number.
        """
        ids = tf.convert_to_tensor(ids)
        if ids.shape.rank == 0:
            raise ConfigError("ids to detokenize must be rows of ids, got a single one")
        words = [piece.removeprefix("##") for piece in self.vocabulary]
        parts = zip(self.continues, words, strict=True)
        before = [not (continues or _NO_SPACE_BEFORE.match(word)) for continues, word in parts]
        after = [not _NO_SPACE_AFTER.search(word) for word in words]
        there, at = ids >= 0, tf.maximum(ids, 0)
        apart = tf.gather(tf.constant(before), at)[..., 1:] & tf.gather(tf.constant(after), at)[..., :-1]
        gaps = tf.where(apart & there[..., 1:], " ", "")
        gaps = tf.concat([tf.fill(tf.shape(ids[..., :1]), ""), gaps], -1)
        found = tf.where(there, tf.gather(tf.constant(words), at), "")
        return tf.strings.reduce_join(tf.strings.join([gaps, found]), axis=-1)

    # === Steps ===

    def _windows(
        self, config: WindowConfig, tokens: list[tf.RaggedTensor], limit: int
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        """What `windows` gives, where the other segments keep `limit` tokens, and the number that each position has
        among all tokens of the last segments, `[W, T]`; where it is none of them, how many there are."""
        room = self._room(tokens)
        *others, last = tokens
        limit = limit if others else 0
        stride = config.doc_stride or max(1, (room - limit) // 2)
        if stride > room - limit:
            raise ConfigError(f"doc_stride {stride} is more than the {room - limit} tokens of a window; take fewer")
        others = [packing.cut(t, tf.fill([t.nrows()], limit // len(others))) for t in others]
        size = tf.fill([last.nrows()], room) - sum(map(_lengths, others))
        count = tf.size(last.flat_values)
        numbers, rows, starts = packing.windows(
            last.with_flat_values(tf.range(count)), size, stride, config.max_windows
        )
        pieces = numbers.with_flat_values(tf.gather(last.flat_values, numbers.flat_values))
        before = [tf.gather(t, rows) for t in others]
        read = tf.math.unsorted_segment_max(starts + _lengths(pieces), rows, last.nrows())
        num_read = read + sum(map(_lengths, others)) + 1 + len(tokens)
        sizes = self._sizes(tokens, [])
        features = self._features([*before, pieces]) | {
            "rows": rows,
            "num_tokens": sizes["num_tokens"],
            "num_windows": tf.math.unsorted_segment_sum(tf.ones_like(rows), rows, last.nrows()),
            "truncated": sizes["num_tokens"] > num_read,
        }
        none = [t.with_flat_values(tf.fill(tf.shape(t.flat_values), count)) for t in before]
        return features, packing.pack([*none, numbers], count, count, count)[0]

    def _room(self, tokens: list[tf.RaggedTensor]) -> int:
        """Tokens of a row that are left for the segments."""
        for number, t in enumerate(tokens, 1):
            if not t.shape[:1].is_compatible_with(tokens[0].shape[:1]):
                first, other = tokens[0].shape[0], t.shape[0]
                raise ConfigError(f"{first} texts but {other} in segment {number}; each text needs one")
        room = self.config.max_seq_length - 1 - len(tokens)
        if not tokens or room < 0:
            raise ConfigError(f"{len(tokens)} segments do not fit into {self.config.max_seq_length} tokens")
        return room

    def _keep(self, tokens: list[tf.RaggedTensor]) -> list[tf.Tensor]:
        """How many tokens of each segment fit into the row."""
        room = self._room(tokens)
        return self.share(list(map(_lengths, tokens)), room)

    def _cut(self, tokens: list[tf.RaggedTensor], keep: list[tf.Tensor]) -> list[tf.RaggedTensor]:
        return [packing.cut(t, k, self.part) for t, k in zip(tokens, keep, strict=True)]

    def _features(self, kept: list[tf.RaggedTensor]) -> dict[str, tf.Tensor]:
        found = packing.pack(kept, self.cls_id, self.sep_id, self.pad_id)
        return dict(zip(("token_ids", "segment_ids", "padding_mask"), found, strict=True))

    def _sizes(self, tokens: list[tf.RaggedTensor], keep: list[tf.Tensor]) -> dict[str, tf.Tensor]:
        count = tf.add_n(list(map(_lengths, tokens)))
        return {"num_tokens": count + 1 + len(tokens), "truncated": count > sum(keep)}


_UNSPACED = "\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uff65\U00020000-\U0003134f"
_NO_SPACE_BEFORE = re.compile(rf"[{_UNSPACED}.,!?;:)\]}}%'-]")
_NO_SPACE_AFTER = re.compile(rf"[{_UNSPACED}(\[{{$'-]$")


def _grouped(rows: dict[str, tf.Tensor], shape: list[Any]) -> dict[str, tf.Tensor]:
    """Features of rows as those of `shape[0]` examples, each of `shape[1]` rows."""
    whole = [*shape, tf.shape(rows["token_ids"])[1]]
    found = {name: tf.reshape(rows[name], whole) for name in ("token_ids", "segment_ids", "padding_mask")}
    sizes, cut = (tf.reshape(rows[name], shape) for name in ("num_tokens", "truncated"))
    return found | {"num_tokens": tf.reduce_max(sizes, axis=1), "truncated": tf.reduce_any(cut, axis=1)}


def _lengths(tokens: tf.RaggedTensor) -> tf.Tensor:
    return tf.cast(tokens.row_lengths(), tf.int32)
