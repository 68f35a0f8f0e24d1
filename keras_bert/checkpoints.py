"""Weights and configurations from and to directories: one name table per format, read by one loader.

A directory is one of
  keras_bert  `keras_bert.json`, `vocab.txt`, `model.safetensors`: ours, what a run directory holds;
  hf          `config.json`, `model.safetensors`, `vocab.txt` or `tokenizer.json`: Hugging Face;
  tf1         `bert_config.json`, `*.ckpt.index`, `*.ckpt.data-*`, `vocab.txt`: google-research/bert.

Loading is strict: every weight of the model is filled from the checkpoint, or is named as new; every tensor
of the checkpoint is used, or is named as unused. Weights are data: nothing is ever unpickled or executed.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from keras_bert.config import (
    DataConfig,
    EncoderConfig,
    HeadConfig,
    TextConfig,
    dumps,
    from_dict,
    to_dict,
)
from keras_bert.errors import CheckpointError, ConfigError
from keras_bert.vocabulary import read_vocabulary

CONFIG_FILE, VOCABULARY_FILE, WEIGHTS_FILE = "keras_bert.json", "vocab.txt", "model.safetensors"
SCHEMA = 1

Transform = Callable[[np.ndarray], np.ndarray]


def same(x: np.ndarray) -> np.ndarray:
    """Stored as we hold it."""
    return x


def transpose(x: np.ndarray) -> np.ndarray:
    """Stored `(out, in)`; its own inverse."""
    return x.T


def _table(dot: str, block: str, kernel: str, norm: tuple[str, str], transform: Transform, tables: str):
    """The rows of a format that names weights as the original did: they differ in spelling only."""

    def dense(ours: str, *theirs: str) -> list[tuple[str, str, Transform]]:
        name = dot.join(theirs)
        return [
            (f"{ours}/kernel", f"{name}{dot}{kernel}", transform),
            (f"{ours}/bias", f"{name}{dot}bias", same),
        ]

    def layer_norm(ours: str, *theirs: str) -> list[tuple[str, str, Transform]]:
        name = dot.join((*theirs, "LayerNorm"))
        return [
            (f"{ours}/{our}", f"{name}{dot}{their}", same) for our, their in zip(("gamma", "beta"), norm, strict=True)
        ]

    ours = "encoder/block_{i}"
    return [
        ("encoder/tokens/embeddings", dot.join(("embeddings", f"word_embeddings{tables}")), same),
        ("encoder/positions/embeddings", dot.join(("embeddings", f"position_embeddings{tables}")), same),
        ("encoder/segments/embeddings", dot.join(("embeddings", f"token_type_embeddings{tables}")), same),
        *layer_norm("encoder/norm", "embeddings"),
        *dense(f"{ours}/attention/query", block, "attention", "self", "query"),
        *dense(f"{ours}/attention/key", block, "attention", "self", "key"),
        *dense(f"{ours}/attention/value", block, "attention", "self", "value"),
        *dense(f"{ours}/attention/output", block, "attention", "output", "dense"),
        *layer_norm(f"{ours}/attention_norm", block, "attention", "output"),
        *dense(f"{ours}/feed_forward/inner", block, "intermediate", "dense"),
        *dense(f"{ours}/feed_forward/outer", block, "output", "dense"),
        *layer_norm(f"{ours}/feed_forward_norm", block, "output"),
        *dense("head/pooler/dense", "pooler", "dense"),
    ]


TABLES: dict[str, list[tuple[str, str, Transform]]] = {
    "hf": _table(".", "encoder.layer.{i}", "weight", ("weight", "bias"), transpose, ".weight"),
    "tf1": _table("/", "encoder/layer_{i}", "kernel", ("gamma", "beta"), same, ""),
}
"""`(our path, their name, transform)`; `{i}` is the block. Their names are without the prefix `bert`."""

UNUSED = {
    "hf": r"^(embeddings\.(position_ids|token_type_ids)|cls\..*|classifier\..*|qa_outputs\..*)$",
    "tf1": r"(^cls/|/adam_[mv]$|^global_step$|^output_(weights|bias)$)",
}
"""Tensors that a checkpoint may hold beyond the encoder and the pooler; any other is an error."""

GELU_OF_ORIGIN = {"hf": "gelu", "tf1": "gelu_tanh"}
"""What a format means by `"hidden_act": "gelu"`: Hugging Face the exact one, google-research/bert tanh."""

ACTIVATION_NAMES = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "tanh": "tanh",
}

CONFIG_NAMES = {
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "hidden_dim": "hidden_size",
    "intermediate_dim": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "num_segments": "type_vocab_size",
    "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "initializer_range": "initializer_range",
    "layer_norm_epsilon": "layer_norm_eps",
    "pad_token_id": "pad_token_id",
}
"""Our field -> the key in `bert_config.json` and Hugging Face's `config.json`."""


@dataclass(frozen=True)
class Report:
    """What loading did: weights filled, weights left at their initial values, tensors left unused."""

    filled: tuple[str, ...]
    new: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{len(self.filled)} weights loaded"]
        if self.new:
            lines.append(f"new, with random initial values: {', '.join(self.new)}")
        if self.unused:
            lines.append(f"in the checkpoint but not used: {_some(self.unused)}")
        return "; ".join(lines)


@dataclass(frozen=True)
class Checkpoint:
    """A directory that was looked at: its format, its configurations, its vocabulary; weights on demand."""

    path: Path
    format: str
    encoder: EncoderConfig
    text: TextConfig
    vocabulary: list[str]
    head: HeadConfig | None = None
    data: DataConfig | None = None

    def tensors(self) -> dict[str, np.ndarray]:
        """All tensors under their names in the file, without the prefix `bert`."""
        named = dict(_read_tf1(self.path) if self.format == "tf1" else _read_safetensors(self.path))
        if self.format == "hf":  # bert-base-uncased and its time still name layer norms as TF1 did
            named = {_old_norm(name): value for name, value in named.items()}
        return {re.sub(r"^bert[./]", "", name): value for name, value in named.items()}


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Find out what a directory holds, read its configuration and vocabulary, and check that they agree.

    Raises:
        CheckpointError: the directory is absent, holds none of the formats, or its parts do not fit.
        DataError: the vocabulary file is broken.
    """
    path = Path(path)
    if not path.is_dir():
        what = "is a file, not a directory" if path.exists() else "does not exist"
        raise CheckpointError(
            f"{path}: {what}; give a directory with a checkpoint (config.json, vocab.txt and "
            "model.safetensors of Hugging Face, or bert_config.json and bert_model.ckpt of google-research/bert)"
        )
    if (path / CONFIG_FILE).exists():
        return _open_ours(path)
    if (path / "bert_config.json").exists():
        return _open_theirs(path, "tf1", path / "bert_config.json")
    if (path / "config.json").exists():
        return _open_theirs(path, "hf", path / "config.json")
    found = sorted(p.name for p in path.iterdir())
    raise CheckpointError(
        f"{path}: holds no checkpoint: none of {CONFIG_FILE}, bert_config.json, config.json among {_some(found)}"
    )


def load(network: Any, checkpoint: Checkpoint) -> Report:
    """Fill the weights of `network` (`heads.Network`) from `checkpoint`.

    Returns:
        The report; only weights of the head may be new, and only where the checkpoint has none for them.

    Raises:
        CheckpointError: a weight of the encoder is missing, a shape differs, or a tensor is unknown. The
            first five differences are listed, and no weight has been changed.
    """
    tensors = checkpoint.tensors()
    wanted = {v.path: v for v in network.weights if "seed_generator" not in v.path}
    rows = _rows(checkpoint, wanted)
    filled, new, problems = {}, [], []
    for path, variable in wanted.items():
        name, transform = rows.get(path, (None, same))
        if name not in tensors:
            if path.startswith("head/") and checkpoint.format != "keras_bert":
                new.append(path)
            else:
                problems.append(f"no tensor for {path}" + (f" ({name})" if name else ""))
            continue
        value = transform(tensors.pop(name))
        if tuple(value.shape) != tuple(variable.shape):
            problems.append(f"{path} is {tuple(variable.shape)} but {name} is {tuple(value.shape)}")
        elif value.dtype.kind != "f":
            problems.append(f"{name} holds {value.dtype}, not floating-point numbers")
        elif not np.isfinite(value).all():
            problems.append(f"{name} holds values that are not numbers")
        else:
            filled[path] = value
    unused = sorted(tensors)
    problems += [
        f"tensor {name} has no place in the model"
        for name in unused
        if not re.search(UNUSED.get(checkpoint.format, "^$"), name)
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(f"{checkpoint.path}: does not fit the model: {'; '.join(problems[:5])}{more}")
    for path, value in filled.items():
        wanted[path].assign(value)
    return Report(tuple(filled), tuple(new), tuple(unused))


def save(
    path: str | Path,
    network: Any,
    vocabulary: list[str],
    text: TextConfig,
    data: DataConfig,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write `network` and all that is needed to use it into the directory `path`, in our format.

    Each file is written under a temporary name and renamed, the configuration last: a directory that has
    one is complete.

    Raises:
        CheckpointError: the directory cannot be written.
    """
    path = Path(path)
    weights = {v.path: np.ascontiguousarray(v.numpy()) for v in network.weights if "seed_generator" not in v.path}
    content = {
        "schema": SCHEMA,
        "encoder": to_dict(network.encoder.config),
        "head": to_dict(network.head.config),
        "text": to_dict(text),
        "data": to_dict(data),
        "notes": dict(notes or {}),
    }
    try:
        path.mkdir(parents=True, exist_ok=True)
        with replacing(path / WEIGHTS_FILE) as temporary:
            save_file(weights, temporary)
        write_atomic(path / VOCABULARY_FILE, "\n".join(vocabulary) + "\n")
        write_atomic(path / CONFIG_FILE, dumps(content))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be written ({error})") from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[str]:
    """A temporary name beside `path`; what was written there is flushed and renamed to `path` on success."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def write_atomic(path: Path, content: str) -> None:
    """Write a text file under a temporary name, then rename."""
    with replacing(path) as temporary:
        Path(temporary).write_text(content, "utf-8", newline="")


def sha256(path: str | Path) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _rows(checkpoint: Checkpoint, wanted: Mapping[str, Any]) -> dict[str, tuple[str, Transform]]:
    """Our path -> (their name, transform), with blocks spelled out."""
    if checkpoint.format == "keras_bert":
        return {path: (path, same) for path in wanted}
    return {
        ours.replace("{i}", str(i)): (theirs.replace("{i}", str(i)), transform)
        for ours, theirs, transform in TABLES[checkpoint.format]
        for i in range(checkpoint.encoder.num_layers if "{i}" in ours else 1)
    }


def _old_norm(name: str) -> str:
    return re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name))


def _open_ours(path: Path) -> Checkpoint:
    content = _read_json(path / CONFIG_FILE)
    if content.get("schema") != SCHEMA:
        raise CheckpointError(
            f"{path / CONFIG_FILE}: schema {content.get('schema')!r}; this version reads schema {SCHEMA}"
        )
    try:
        kinds: dict[str, Any] = {"encoder": EncoderConfig, "text": TextConfig, "head": HeadConfig, "data": DataConfig}
        configs: dict[str, Any] = {name: from_dict(kind, content[name]) for name, kind in kinds.items()}
    except (ConfigError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path / CONFIG_FILE}: {error}") from error
    vocabulary = read_vocabulary(path / VOCABULARY_FILE)
    return _checked(Checkpoint(path, "keras_bert", vocabulary=vocabulary, **configs))


def _open_theirs(path: Path, kind: str, config_file: Path) -> Checkpoint:
    raw = _read_json(config_file)
    if raw.get("model_type", "bert") != "bert":
        raise CheckpointError(f"{config_file}: model_type {raw['model_type']!r}; only bert can be loaded")
    for key, usual in {"position_embedding_type": "absolute", "is_decoder": False}.items():
        if raw.get(key, usual) != usual:
            raise CheckpointError(f"{config_file}: {key} {raw[key]!r} is not supported")
    values = {ours: raw[theirs] for ours, theirs in CONFIG_NAMES.items() if raw.get(theirs) is not None}
    missing = [CONFIG_NAMES[k] for k in ("vocab_size", "num_layers", "num_heads", "hidden_dim") if k not in values]
    if missing:
        raise CheckpointError(f"{config_file}: has no {', '.join(missing)}")
    for ours, value in values.items():
        whole = isinstance(getattr(EncoderConfig, ours), int)
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or value < 0:
            what = "a whole number" if whole else "a number"
            raise CheckpointError(f"{config_file}: {CONFIG_NAMES[ours]} must be {what}, got {value!r}")
    act = raw.get("hidden_act", "gelu")
    if not isinstance(act, str) or act not in ACTIVATION_NAMES:
        raise CheckpointError(f"{config_file}: hidden_act {act!r}; it can be one of {', '.join(ACTIVATION_NAMES)}")
    values["activation"] = GELU_OF_ORIGIN[kind] if act == "gelu" else ACTIVATION_NAMES[act]
    vocabulary_file = path / VOCABULARY_FILE
    if not vocabulary_file.exists() and (path / "tokenizer.json").exists():
        vocabulary_file = path / "tokenizer.json"
    if not vocabulary_file.exists():
        raise CheckpointError(f"{path}: has no vocab.txt; put the vocabulary the model was trained with there")
    vocabulary = read_vocabulary(vocabulary_file)
    try:
        encoder = from_dict(EncoderConfig, values)
        text = TextConfig(
            do_lower_case=_lower_case(path, vocabulary),
            max_seq_length=min(TextConfig().max_seq_length, encoder.max_positions),
        )
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{config_file}: {error}") from error
    return _checked(Checkpoint(path, kind, encoder, text, vocabulary))


def _checked(checkpoint: Checkpoint) -> Checkpoint:
    size = len(checkpoint.vocabulary)
    if size > checkpoint.encoder.vocab_size:
        raise CheckpointError(
            f"{checkpoint.path}: the vocabulary has {size} pieces but the model {checkpoint.encoder.vocab_size} "
            "rows for them; they do not belong together"
        )
    return checkpoint


def _lower_case(path: Path, vocabulary: list[str]) -> bool:
    """Is the checkpoint uncased? What its tokenizer settings say, else whether any piece has a capital."""
    settings = path / "tokenizer_config.json"
    if settings.exists():
        said = _read_json(settings).get("do_lower_case")
        if isinstance(said, bool):
            return said
    return not any(re.search("[A-Z]", piece) and piece[0] not in "[<" for piece in vocabulary)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not an object")
    return content


def _read_safetensors(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    file = path / WEIGHTS_FILE
    if not file.exists():
        pickled = "; pytorch_model.bin can hold code, convert it" if (path / "pytorch_model.bin").exists() else ""
        raise CheckpointError(f"{path}: has no {WEIGHTS_FILE}{pickled}")
    try:
        with safe_open(file, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                value = tensors.get_tensor(name)
                yield name, value if value.dtype.kind in "iub" else value.astype(np.float32)
    except (SafetensorError, OSError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: broken or not a safetensors file ({error})") from error


def _read_tf1(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    import tensorflow as tf

    indices = sorted(path.glob("*.ckpt*.index"))
    if len(indices) != 1:
        raise CheckpointError(
            f"{path}: has {len(indices)} files *.ckpt*.index ({_some([p.name for p in indices])}); keep exactly one"
        )
    try:
        reader = tf.train.load_checkpoint(str(indices[0].with_suffix("")))
        for name in reader.get_variable_to_shape_map():
            yield name, reader.get_tensor(name)
    except (tf.errors.OpError, IndexError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{indices[0].with_suffix('')}: broken ({str(error).splitlines()[0]})") from error


def _some(names: Any, limit: int = 8) -> str:
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "nothing") + more


def with_length(text: TextConfig, encoder: EncoderConfig, max_seq_length: int | None) -> TextConfig:
    """`text` with another longest row.

    Raises:
        ConfigError: the model has fewer positions than that.
    """
    length = text.max_seq_length if max_seq_length is None else max_seq_length
    if encoder.positions == "absolute" and length > encoder.max_positions:
        raise ConfigError(f"max_seq_length {length} is more than the {encoder.max_positions} positions of the model")
    return dataclasses.replace(text, max_seq_length=length)
