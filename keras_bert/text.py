"""Text to token ids, inside the TensorFlow graph: the same ops serve `tf.data` and the SavedModel.

WordPiece (Schuster & Nakajima 2012; Wu et al. 2016) runs in TensorFlow Text's fast kernels. Cutting and
packing use core TensorFlow ops only, so that older TensorFlow Serving releases load the graph too.
"""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from keras_bert.config import TextConfig
from keras_bert.errors import ConfigError, DataError
from keras_bert.vocabulary import check_vocabulary

MAX_WORD_BYTES = 800
"""A word of more UTF-8 bytes than this becomes [UNK]; the reference limit is 200 characters of up to 4."""


class Text:
    """Strings to features: `[CLS] text [SEP]`, or `[CLS] text [SEP] text_pair [SEP]`.

    Args:
        vocabulary: the word pieces in the order of their ids; must hold [UNK], [CLS] and [SEP].
        config: casing and the longest row.

    Call arguments:
        text: strings `[B]` (tensor, list or array), B may be 0.
        text_pair: the second segments, strings `[B]`, or None.

    Returns:
        A dict of `token_ids` and `segment_ids` int32 `[B, T]`, `padding_mask` bool `[B, T]`, `num_tokens`
        int32 `[B]` (before cutting, special tokens included) and `truncated` bool `[B]`. T is the longest
        row of the batch, at least 2 and at most `max_seq_length`. Where a pair is too long its longer text
        loses tokens first, as in google-research/bert.

    Any bytes are accepted: invalid UTF-8, NUL and control characters never raise, and an empty string
    gives `[CLS] [SEP]`. Special tokens typed in a text are ordinary text.

    Raises:
        DataError: the vocabulary repeats a piece, lacks a special token, or has a piece that no text can match.
        ConfigError: the input is not a vector of strings, there are not as many second texts as first ones, or
            TensorFlow Text is not installed.

    Example:
        text = Text(read_vocabulary("vocab.txt"), TextConfig(max_seq_length=64))
        features = text(["forest fire near la ronge"])
    """

    def __init__(self, vocabulary: Sequence[str], config: TextConfig | None = None) -> None:
        try:
            import tensorflow_text
        except ImportError as error:
            raise ConfigError(
                f"tokenizing needs tensorflow-text, which cannot be imported here ({error}); there are wheels "
                "for Linux and macOS (`pip install tensorflow-text`), none for Windows"
            ) from error
        self.vocabulary = list(vocabulary)
        self.config = config or TextConfig()
        index = check_vocabulary(self.vocabulary, "the vocabulary")
        self.cls_id, self.sep_id = index["[CLS]"], index["[SEP]"]
        self.pad_id = index.get("[PAD]", 0)
        try:
            self._tokenizer = tensorflow_text.FastBertTokenizer(
                self.vocabulary,
                token_out_type=tf.int32,
                max_bytes_per_word=MAX_WORD_BYTES,
                lower_case_nfd_strip_accents=self.config.do_lower_case,
            )
        except (RuntimeError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(f"the vocabulary: TensorFlow Text cannot build a tokenizer from it ({reason})") from error

    def tokenize(self, text: Any) -> tf.RaggedTensor:
        """Strings `[B]` -> ids of their word pieces, ragged int32 `[B, tokens]`, nothing cut or added."""
        if isinstance(text, list | tuple):
            text = [t.encode("utf-8", "surrogatepass") if isinstance(t, str) else t for t in text]
        try:
            strings = tf.convert_to_tensor(text, tf.string)
        except (TypeError, ValueError) as error:
            raise ConfigError("texts must be a list or vector of strings; something in them is none") from error
        if strings.shape.rank != 1:
            raise ConfigError(
                f"texts must be a list or vector of strings, got shape {strings.shape}; put a single text into a list"
            )
        return self._tokenizer.tokenize(strings)

    def count(self, text: Any, text_pair: Any = None) -> Any:
        """Length of each row as the model will see it, int32 NumPy `[B]`."""
        features = self(text, text_pair)
        return tf.minimum(features["num_tokens"], self.config.max_seq_length).numpy()

    def __call__(self, text: Any, text_pair: Any = None) -> dict[str, tf.Tensor]:
        segments = [self.tokenize(t) for t in ([text] if text_pair is None else [text, text_pair])]
        if not segments[0].shape[:1].is_compatible_with(segments[-1].shape[:1]):
            raise ConfigError(
                f"{segments[0].shape[0]} texts but {segments[-1].shape[0]} second texts; each text needs one"
            )
        room = self.config.max_seq_length - 1 - len(segments)
        lengths = [tf.cast(s.row_lengths(), tf.int32) for s in segments]
        kept = keep_lengths(lengths, room)
        num_tokens = tf.add_n(lengths) + 1 + len(segments)

        batch = tf.shape(lengths[0])[0]
        one = tf.ones([batch, 1], tf.int32)
        row: list[Any] = [one * self.cls_id]
        for segment, keep in zip(segments, kept, strict=True):
            row += [head(segment, keep), one * self.sep_id]
        ids = tf.concat(row, axis=1)
        widths = tf.cast(ids.row_lengths(), tf.int32)
        longest = tf.reduce_max(tf.concat([widths, [2]], 0))  # at least 2, so that a batch of 0 works
        token_ids = ids.to_tensor(default_value=self.pad_id, shape=[None, None])
        token_ids = tf.pad(token_ids, [[0, 0], [0, longest - tf.shape(token_ids)[1]]], constant_values=self.pad_id)
        column = tf.range(longest)[tf.newaxis, :]
        padding_mask = column < widths[:, tf.newaxis]
        second = padding_mask & (column >= (kept[0] + 2)[:, tf.newaxis])  # after the first [SEP]
        return {
            "token_ids": token_ids,
            "segment_ids": tf.cast(second, tf.int32),
            "padding_mask": padding_mask,
            "num_tokens": num_tokens,
            "truncated": num_tokens > self.config.max_seq_length,
        }


def keep_lengths(lengths: list[tf.Tensor], room: int) -> list[tf.Tensor]:
    """How many tokens each of one or two segments keeps, int32 `[B]`, so that a row has at most `room`.

    The closed form of google-research/bert's rule: drop the last token of the longer segment, of the second
    one when both are equally long, until the row fits.
    """
    if len(lengths) == 1:
        return [tf.minimum(lengths[0], room)]
    first, second = lengths
    keep_second = tf.minimum(second, tf.maximum(room - first, room // 2))
    return [tf.minimum(first, room - keep_second), keep_second]


def head(ragged: tf.RaggedTensor, keep: tf.Tensor) -> tf.RaggedTensor:
    """The first `keep[i]` values of each row `i`."""
    lengths = tf.cast(ragged.row_lengths(), tf.int32)
    within = tf.ragged.range(lengths).flat_values < tf.repeat(keep, lengths)
    return tf.RaggedTensor.from_row_lengths(tf.boolean_mask(ragged.flat_values, within), keep)
