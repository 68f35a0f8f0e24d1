"""A model for phones and small machines: LiteRT (TensorFlow Lite), token ids in, answers out, built-in ops only.

`write` makes a directory; `portable.LiteModel` reads it and takes text, with the plain Python tokenizer as its front.
`convert_text` makes a model that takes the text itself and needs TensorFlow Text's registrar in the interpreter.

Full int8 is left out: with BERT's mask constants it is of no use (cosine 0.01 to the float model on all-MiniLM-L6-v2).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from keras_bert.config import choose, tasks_with
from keras_bert.errors import ConfigError
from keras_bert.portable import portable
from keras_bert.portable.portable import LiteModel as LiteModel

MODEL_FILE = "model.tflite"


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

    inputs = {name: tf.TensorSpec([1, None], tf.int32, name) for name in portable.INPUTS}
    return _converted(network, answer, inputs, precision)


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

    (table, model), length = text_layer.tokenizer.constants, text_layer.config.max_seq_length

    def answer(text: Any) -> dict[str, Any]:
        normalized = tensorflow_text.FastBertNormalizer(model_buffer=table).normalize(text)
        kernel = tensorflow_text.FastWordpieceTokenizer(model_buffer=model, token_out_type=tf.int32)
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
    if network.head.config.portable != "answer":
        known = ", ".join(tasks_with(portable="answer"))
        raise ConfigError(f"LiteRT models are for {known}, not for {network.head.config.task}")
    module = tf.Module()
    module.weights = [v.value for v in network.weights if "seed_generator" not in v.path]
    function = tf.function(answer, autograph=False).get_concrete_function(**inputs)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], module)
    converter.allow_custom_ops = "text" in inputs
    prepare(converter)
    return bytes(converter.convert())


def write(path: str | Path, text_layer: Any, network: Any, pair: bool, precision: str = "int8") -> None:
    """Write a model that `LiteModel` reads.

    Raises:
        ConfigError: no such precision or task.
        CheckpointError: the directory cannot be written.
    """
    content, head = convert(network, precision), network.head.config
    portable.write(path, MODEL_FILE, content, text_layer.vocabulary, head, text_layer.config, pair, precision)
