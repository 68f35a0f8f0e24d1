"""A model in a small directory, asked without TensorFlow and Keras: token ids in, answers out, text by plain Python.

`lite` and `onnx` write such directories, `LiteModel` reads them: a model for an interpreter of LiteRT
(`ai_edge_litert`, or TensorFlow's own) or for ONNX Runtime, with the vocabulary and the settings beside it. A new form
is one function and one row in `RUNNERS`.
"""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_bert.config import HeadConfig, TextConfig, choose, dumps, from_dict, to_dict
from keras_bert.errors import CheckpointError, ConfigError, DataError
from keras_bert.files import replacing, write_atomic
from keras_bert.text.vocabulary import read_vocabulary
from keras_bert.text.wordpiece import WordPiece

CONFIG_FILE, VOCABULARY_FILE = "keras_bert_lite.json", "vocab.txt"
INPUTS = ("token_ids", "segment_ids", "padding_mask")
"""What every model takes, int32 `[B, T]`."""


def write(
    path: str | Path,
    model_file: str,
    content: bytes,
    vocabulary: Sequence[str],
    head: HeadConfig,
    text: TextConfig,
    pair: bool,
    precision: str,
) -> None:
    """Write a directory that `LiteModel` reads: the model, the vocabulary, and the settings, which come last.

    Args:
        model_file: a name of `RUNNERS`, which says what `content` is for.

    Raises:
        CheckpointError: the directory cannot be written.
    """
    path = Path(path)
    settings = {"schema": 1, "model": model_file, "pair": pair, "precision": precision}
    settings |= {"head": to_dict(head), "text": to_dict(text)}
    try:
        path.mkdir(parents=True, exist_ok=True)
        with replacing(path / model_file) as temporary:
            Path(temporary).write_bytes(content)
        write_atomic(path / VOCABULARY_FILE, "".join(f"{piece}\n" for piece in vocabulary))
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


# === What runs a model: (its bytes, threads) -> (inputs by name, [1, T]) -> outputs by name ===

Run = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]


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


def _tflite(content: bytes, num_threads: int) -> Run:
    run = interpreter(content, num_threads).get_signature_runner()
    return lambda inputs: run(**inputs)


def session(content: bytes, num_threads: int = 1) -> Any:
    """A session of ONNX Runtime on the CPU.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError("a model in ONNX needs ONNX Runtime: `pip install onnxruntime`") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = num_threads, 1
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _onnx(content: bytes, num_threads: int) -> Run:
    opened = session(content, num_threads)
    names = [output.name for output in opened.get_outputs()]
    return lambda inputs: dict(zip(names, opened.run(names, inputs), strict=True))


RUNNERS: dict[str, Callable[[bytes, int], Run]] = {"model.tflite": _tflite, "model.onnx": _onnx}
"""By the name of the model's file."""


# === Running ===


class LiteModel:
    """A model that `write` wrote: text in, answer out, one at a time.

    Args:
        path: its directory.
        num_threads: how many the model may use.

    Raises:
        CheckpointError: the directory holds no such model, or it is damaged.
        ConfigError: what runs such a model is not installed.

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
            self.pair, file = bool(settings["pair"]), path / settings["model"]
            runner = choose(RUNNERS, file.name, "file of a model")
            content = file.read_bytes()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: is no LiteRT or ONNX model of ours, or is damaged ({error!r})") from error
        vocabulary = read_vocabulary(path / VOCABULARY_FILE)
        self.tokenizer = WordPiece(vocabulary, **self.text.tokenizer)
        self.cls_id, self.sep_id = vocabulary.index("[CLS]"), vocabulary.index("[SEP]")
        try:
            self._run = runner(content, num_threads)
        except ConfigError:
            raise
        except Exception as error:  # ONNX Runtime has types of its own
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{file}: cannot be read ({reason})") from error

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
        """What the model gives for one text, or one pair: as `Head.answer`, without the first axis; and `truncated`.

        Some models in ONNX give what the answer is to be found from instead, see `onnx.OUTPUTS`.

        Raises:
            ConfigError: it got a pair for a text or a text for a pair.
            DataError: a text is no string.
        """
        if len(segments) != 1 + self.pair:
            raise ConfigError("this model reads " + ("pairs: give two texts" if self.pair else "single texts"))
        for segment in segments:
            if not isinstance(segment, str):
                raise DataError(f"a text must be a string, got {type(segment).__name__}; ask for one text at a time")
        ids, kinds, truncated = self.row(*segments)
        values = zip(INPUTS, (ids, kinds, [1] * len(ids)), strict=True)
        found = self._run({name: np.array([value], np.int32) for name, value in values})
        return {name: value[0] for name, value in found.items()} | {"truncated": np.array(truncated)}

    def answer(self, *segments: str) -> dict[str, Any]:
        """As `Bert.predict` for one text, or one pair.

        Raises:
            ConfigError: the model gives no answer but logits, or got a pair for a text or a text for a pair.
            DataError: a text is no string.
        """
        found, labels = self.arrays(*segments), self.head.labels
        if "logits" in found:
            raise ConfigError(f"this model for {self.head.task} gives the logits of each token; take `arrays`")
        out: dict[str, Any] = {}
        if "embedding" in found:
            out["embedding"] = found["embedding"].tolist()
        if "class_id" in found:
            out["label"] = labels[int(found["class_id"])]
        if "score" in found:
            out["score"] = float(found["score"])
        if "active" in found:
            out["labels"] = [labels[i] for i, on in zip(found["class_ids"], found["active"], strict=True) if on]
        if "class_ids" in found:
            out["scores"] = {labels[i]: float(s) for i, s in zip(found["class_ids"], found["scores"], strict=True)}
        return out | {"truncated": bool(found["truncated"])}
