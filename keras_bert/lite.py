"""A model for phones and small machines: LiteRT (TensorFlow Lite), token ids in, answers out, built-in ops only.

`write` makes a directory; `LiteModel` reads it and takes text, with the plain Python tokenizer as its front: it needs
an interpreter (`ai_edge_litert`, or TensorFlow's own), no TensorFlow Text and no Keras. `convert_text` makes a model
that takes the text itself and needs TensorFlow Text's registrar in the interpreter.

Full int8 is left out: with BERT's mask constants it is of no use (cosine 0.01 to the float model on all-MiniLM-L6-v2).
"""

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_bert.config import HeadConfig, TextConfig, choose, dumps, from_dict, to_dict
from keras_bert.errors import CheckpointError, ConfigError
from keras_bert.files import replacing, write_atomic
from keras_bert.vocabulary import read_vocabulary
from keras_bert.wordpiece import WordPiece

MODEL_FILE, CONFIG_FILE, VOCABULARY_FILE = "model.tflite", "keras_bert_lite.json", "vocab.txt"
TASKS = ("classify", "multilabel", "regress")


# === Conversion (needs TensorFlow) ===


def _float16(converter: Any) -> None:
    import tensorflow as tf

    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]


def _int8(converter: Any) -> None:
    import tensorflow as tf

    converter.optimizations = [tf.lite.Optimize.DEFAULT]


PRECISIONS: dict[str, Callable[[Any], None]] = {"float32": lambda converter: None, "float16": _float16, "int8": _int8}
"""How weights are kept: as they are, in half the size, or in a quarter with int8 arithmetic, which is fastest."""


def convert(network: Any, precision: str = "int8") -> bytes:
    """A network as a LiteRT model of one row: token_ids, segment_ids, padding_mask int32 `[1, T]` -> its answer.

    Raises:
        ConfigError: no such precision, or the task has answers of another form.
    """
    import tensorflow as tf

    def answer(**features: Any) -> dict[str, Any]:
        return network.answer(features | {"padding_mask": features["padding_mask"] > 0})

    names = ("token_ids", "segment_ids", "padding_mask")
    return _converted(network, answer, {n: tf.TensorSpec([1, None], tf.int32, n) for n in names}, precision)


def convert_text(text_layer: Any, network: Any, precision: str = "int8") -> bytes:
    """A network as a LiteRT model of one text: `text` string `[1]` -> its answer and `token_ids` int32 `[1, L]`.

    Runs in an interpreter with `tensorflow_text.tflite_registrar.SELECT_TFTEXT_OPS`. The tokenizer is its two kernels
    alone: the end of Greek words in capitals, and words of more characters than the tokenizer allows in less than four
    times the bytes, may come out otherwise than in TensorFlow. Long texts keep their head.

    Raises:
        ConfigError: as `convert`.
    """
    import tensorflow as tf
    import tensorflow_text

    tokenizer, length = text_layer.tokenizer, text_layer.config.max_seq_length

    def answer(text: Any) -> dict[str, Any]:
        normalized = tensorflow_text.FastBertNormalizer(model_buffer=tokenizer._table).normalize(text)
        kernel = tensorflow_text.FastWordpieceTokenizer(model_buffer=tokenizer._model, token_out_type=tf.int32)
        pieces = kernel.tokenize(normalized)
        # Dense at once: the registrar has no kernels for most ops of ragged tensors.
        row = tf.pad(pieces.to_tensor(shape=[1, length - 2]), [[0, 0], [1, 1]])
        last = tf.expand_dims(tf.minimum(tf.cast(pieces.row_lengths(), tf.int32), length - 2) + 1, 1)
        column = tf.expand_dims(tf.range(length), 0)
        ids = tf.where(column < last, row, tf.where(column == last, text_layer.sep_id, text_layer.pad_id))
        ids = tf.where(column == 0, text_layer.cls_id, ids)
        features = {"token_ids": ids, "segment_ids": tf.zeros_like(ids), "padding_mask": column <= last}
        return network.answer(features) | {"token_ids": ids}

    return _converted(network, answer, {"text": tf.TensorSpec([1], tf.string, "text")}, precision)


def _converted(network: Any, answer: Callable[..., dict[str, Any]], inputs: dict[str, Any], precision: str) -> bytes:
    import tensorflow as tf

    prepare = choose(PRECISIONS, precision, "precision")
    if network.head.config.task not in TASKS:
        raise ConfigError(f"LiteRT models are for {', '.join(TASKS)}, not for {network.head.config.task}")
    module = tf.Module()
    module.weights = [v.value for v in network.weights if "seed_generator" not in v.path]
    function = tf.function(answer, autograph=False).get_concrete_function(**inputs)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], module)
    converter.allow_custom_ops = "text" in inputs
    prepare(converter)
    return bytes(converter.convert())


def write(path: str | Path, text_layer: Any, network: Any, pair: bool, precision: str = "int8") -> None:
    """Write a model that `LiteModel` reads: the converted network, the vocabulary, and the settings, which come last.

    Raises:
        ConfigError: no such precision or task.
        CheckpointError: the directory cannot be written.
    """
    path, content = Path(path), convert(network, precision)
    settings = {"schema": 1, "pair": pair, "precision": precision}
    settings |= {"head": to_dict(network.head.config), "text": to_dict(text_layer.config)}
    try:
        path.mkdir(parents=True, exist_ok=True)
        with replacing(path / MODEL_FILE) as temporary:
            Path(temporary).write_bytes(content)
        write_atomic(path / VOCABULARY_FILE, "".join(f"{piece}\n" for piece in text_layer.vocabulary))
        write_atomic(path / CONFIG_FILE, dumps(settings))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error})") from error


# === Rows in plain Python, equal to those of `packing` ===

Ids = list[int]


def longest_first(lengths: Sequence[int], room: int) -> list[int]:
    """Drop from the longest segment, the last of equally long ones, until the row fits."""
    kept = [min(length, room) for length in lengths]
    while sum(kept) > room:
        longest = max(range(len(kept)), key=lambda i: (kept[i], i))
        kept[longest] -= 1
    return kept


def waterfall(lengths: Sequence[int], room: int) -> list[int]:
    """The first segment keeps all it can, the next what is left, and so on."""
    kept: list[int] = []
    for length in lengths:
        kept.append(min(length, room - sum(kept)))
    return kept


SHARES: dict[str, Callable[[Sequence[int], int], list[int]]] = {
    "longest_first": longest_first,
    "round_robin": longest_first,
    "waterfall": waterfall,
}
PARTS: dict[str, Callable[[Ids, int], Ids]] = {
    "head": lambda ids, keep: ids[:keep],
    "tail": lambda ids, keep: ids[len(ids) - keep :],
    "head_tail": lambda ids, keep: ids[: (keep + 2) // 4] + ids[len(ids) - keep + (keep + 2) // 4 :],
}


def cut(config: TextConfig, segments: Sequence[Ids]) -> list[Ids]:
    """The tokens of each segment that fit into a row."""
    room = config.max_seq_length - 1 - len(segments)
    keep = choose(SHARES, config.truncation, "truncation")([len(ids) for ids in segments], room)
    part = choose(PARTS, config.truncation_part, "part of a text to keep")
    return [ids if len(ids) <= k else part(ids, k) for ids, k in zip(segments, keep, strict=True)]


# === Running ===


class LiteModel:
    """A model that `write` wrote: text in, answer out, one at a time.

    Args:
        path: its directory.
        num_threads: of the interpreter.

    Raises:
        CheckpointError: the directory holds no such model, or it is damaged.
        ConfigError: there is no interpreter.

    Example:
        model = LiteModel("models/tweets-lite")
        model.answer("forest fire near la ronge")    # {"label": "1", "score": 0.98, ...}
    """

    def __init__(self, path: str | Path, num_threads: int = 1) -> None:
        path = Path(path)
        try:
            settings = json.loads((path / CONFIG_FILE).read_text("utf-8"))
            self.head = from_dict(HeadConfig, settings["head"])
            self.text = from_dict(TextConfig, settings["text"])
            self.pair = bool(settings["pair"])
            content = (path / MODEL_FILE).read_bytes()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: is no LiteRT model of ours, or is damaged ({error!r})") from error
        vocabulary = read_vocabulary(path / VOCABULARY_FILE)
        self.tokenizer = WordPiece(vocabulary, self.text.do_lower_case, self.text.flavour)
        self.cls_id, self.sep_id = vocabulary.index("[CLS]"), vocabulary.index("[SEP]")
        try:
            self._run = interpreter(content, num_threads).get_signature_runner()
        except ValueError as error:
            raise CheckpointError(f"{path / MODEL_FILE}: cannot be read ({error})") from error

    def row(self, *segments: str) -> tuple[Ids, Ids, bool]:
        """Token ids, segment ids, and whether something was cut."""
        tokens = [self.tokenizer.tokenize(segment).ids for segment in segments]
        kept = cut(self.text, tokens)
        ids, kinds = [self.cls_id], [0]
        for number, segment in enumerate(kept):
            ids += [*segment, self.sep_id]
            kinds += [number] * (len(segment) + 1)
        return ids, kinds, kept != tokens

    def arrays(self, *segments: str) -> dict[str, np.ndarray]:
        """What the network answers for one text, or one pair: as `Head.answer`, without the first axis."""
        if len(segments) != 1 + self.pair:
            raise ConfigError("this model reads " + ("pairs: give two texts" if self.pair else "single texts"))
        ids, kinds, truncated = self.row(*segments)
        values = {"token_ids": ids, "segment_ids": kinds, "padding_mask": [1] * len(ids)}
        found = self._run(**{name: np.array([value], np.int32) for name, value in values.items()})
        return {name: value[0] for name, value in found.items()} | {"truncated": np.array(truncated)}

    def answer(self, *segments: str) -> dict[str, Any]:
        """As `Bert.predict` for one text, or one pair."""
        found, labels = self.arrays(*segments), self.head.labels
        out: dict[str, Any] = {}
        if "class_id" in found:
            out["label"] = labels[int(found["class_id"])]
        if "score" in found:
            out["score"] = float(found["score"])
        if "active" in found:
            out["labels"] = [labels[i] for i, on in zip(found["class_ids"], found["active"], strict=True) if on]
        if "class_ids" in found:
            out["scores"] = {labels[i]: float(s) for i, s in zip(found["class_ids"], found["scores"], strict=True)}
        return out | {"truncated": bool(found["truncated"])}


def interpreter(content: bytes, num_threads: int = 1) -> Any:
    """An interpreter of LiteRT, or TensorFlow's where that is not installed.

    Raises:
        ConfigError: neither is installed.
    """
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        try:
            from tensorflow.lite.python.interpreter import Interpreter
        except ImportError as error:
            raise ConfigError("no interpreter: `pip install ai-edge-litert`, or TensorFlow") from error
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*tf.lite.Interpreter is deprecated", UserWarning)
        return Interpreter(model_content=content, num_threads=num_threads)
