"""Text to token ids, inside the TensorFlow graph: the same ops serve `tf.data` and the SavedModel.

WordPiece (Schuster & Nakajima 2012; Wu et al. 2016) gives the ids that the checkpoint was trained with, see
`tokenizer.py`; cutting and packing are in `packing.py`. Besides two kernels of TensorFlow Text the graph holds core
TensorFlow ops only, so that older TensorFlow Serving releases load it too.
"""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from keras_bert import packing
from keras_bert.config import TextConfig, choose
from keras_bert.errors import ConfigError
from keras_bert.tokenizer import Tokenizer
from keras_bert.vocabulary import check_vocabulary


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
        index = check_vocabulary(self.vocabulary, "the vocabulary")
        self.cls_id, self.sep_id = index["[CLS]"], index["[SEP]"]
        self.pad_id = index.get("[PAD]", 0)
        self.tokenizer = Tokenizer(self.vocabulary, self.config.do_lower_case, self.config.flavour, special_tokens)

    def tokenize(self, text: Any) -> tf.RaggedTensor:
        """Strings `[B]` -> ids of their word pieces, ragged int32 `[B, tokens]`, nothing cut or added."""
        return self.tokenizer.tokenize(strings(text))

    def count(self, *segments: Any) -> Any:
        """Length of each row as the model will see it, int32 NumPy `[B]`."""
        return tf.minimum(self(*segments)["num_tokens"], self.config.max_seq_length).numpy()

    def __call__(self, *segments: Any) -> dict[str, tf.Tensor]:
        tokens = [self.tokenize(segment) for segment in segments if segment is not None]
        for number, t in enumerate(tokens, 1):
            if not t.shape[:1].is_compatible_with(tokens[0].shape[:1]):
                first, other = tokens[0].shape[0], t.shape[0]
                raise ConfigError(f"{first} texts but {other} in segment {number}; each text needs one")
        room = self.config.max_seq_length - 1 - len(tokens)
        if not tokens or room < 0:
            raise ConfigError(f"{len(tokens)} segments do not fit into {self.config.max_seq_length} tokens")
        lengths = [tf.cast(t.row_lengths(), tf.int32) for t in tokens]
        num_tokens = tf.add_n(lengths) + 1 + len(tokens)
        kept = [
            packing.cut(t, keep, self.config.truncation_part)
            for t, keep in zip(tokens, self.share(lengths, room), strict=True)
        ]
        token_ids, segment_ids, padding_mask = packing.pack(kept, self.cls_id, self.sep_id, self.pad_id)
        return {
            "token_ids": token_ids,
            "segment_ids": segment_ids,
            "padding_mask": padding_mask,
            "num_tokens": num_tokens,
            "truncated": num_tokens > self.config.max_seq_length,
        }


def strings(text: Any) -> tf.Tensor:
    """A list, array or tensor of texts as a tensor `[B]`.

    Raises:
        ConfigError: it is not a vector of strings.
    """
    if isinstance(text, list | tuple):
        text = [t.encode("utf-8", "surrogatepass") if isinstance(t, str) else t for t in text]
    try:
        found = tf.convert_to_tensor(text, tf.string)
    except (TypeError, ValueError) as error:
        raise ConfigError("texts must be a list or vector of strings; something in them is none") from error
    if found.shape.rank != 1:
        raise ConfigError(
            f"texts must be a list or vector of strings, got shape {found.shape}; put a single text into a list"
        )
    return found
