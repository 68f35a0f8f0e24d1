"""KerasHub: a preset directory of BertBackbone, and of BertTextClassifier or BertMaskedLM where there is such a head.

`config.json`, `metadata.json`, `model.weights.h5`, `tokenizer.json`, `assets/tokenizer/vocabulary.txt`; with a head
also `task.json`, `task.weights.h5`, `preprocessor.json`. A task that was saved as one file `.keras` has the same parts
in one `config.json` and one `model.weights.h5`, and is read only. The weights are read and written without KerasHub.
"""

import dataclasses
import datetime
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from keras_bert.checkpoints.formats.containers import has_h5, read_h5_whole, write_h5
from keras_bert.checkpoints.formats.format import Format
from keras_bert.checkpoints.formats.settings import (
    Contents,
    build,
    checked,
    numbers,
    read_json,
    some,
    text_config,
    write_json,
)
from keras_bert.checkpoints.formats.settings import write_vocabulary as write_pieces
from keras_bert.checkpoints.formats.table import BLOCK, SPLIT_HEADS, Names, Stored, same, to_theirs
from keras_bert.config import EncoderConfig, HeadConfig
from keras_bert.errors import CheckpointError
from keras_bert.text.vocabulary import read_vocabulary

CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE = "config.json", "model.weights.h5", "tokenizer.json"
TASK_FILE, TASK_WEIGHTS_FILE, PREPROCESSOR_FILE = "task.json", "task.weights.h5", "preprocessor.json"
VOCABULARY_FILES = (
    "assets/tokenizer/vocabulary.txt",
    "assets/vocabulary.txt",
    "assets/preprocessor/tokenizer/vocabulary.txt",
)
FIXED = {"activation": "gelu_tanh", "layer_norm_epsilon": 1e-12, "pad_token_id": 0}

NAMES = {
    "vocab_size": "vocabulary_size",
    "num_layers": "num_layers",
    "num_heads": "num_heads",
    "hidden_dim": "hidden_dim",
    "intermediate_dim": "intermediate_dim",
    "hidden_dropout": "dropout",
    "max_positions": "max_sequence_length",
    "num_segments": "num_segments",
}
TOKENIZER_ONLY: dict[str, tuple[Any, ...]] = {
    "split": (True,),
    "suffix_indicator": ("##",),
    "oov_token": ("[UNK]",),
    "split_on_cjk": (True,),
}
BACKBONE, CLASSIFIER, MASKED_LM, EMBEDDER = "BertBackbone", "BertTextClassifier", "BertMaskedLM", "BertTextEmbedder"
TASKS = (CLASSIFIER, "BertClassifier", MASKED_LM, EMBEDDER)


_BLOCK, _HEAD = "layers/transformer_encoder{_i}", "task/layers/masked_lm_head"
_ATTENTION = f"{_BLOCK}/_self_attention_layer"
TABLE = Names(
    {
        "encoder/tokens": "layers/reversible_embedding",
        "encoder/positions": "layers/position_embedding",
        "encoder/segments": "layers/embedding",
        "encoder/norm": "layers/layer_normalization",
        f"{BLOCK}/attention/query": f"{_ATTENTION}/query_dense",
        f"{BLOCK}/attention/key": f"{_ATTENTION}/key_dense",
        f"{BLOCK}/attention/value": f"{_ATTENTION}/value_dense",
        f"{BLOCK}/attention/output": f"{_ATTENTION}/output_dense",
        f"{BLOCK}/attention_norm": f"{_BLOCK}/_self_attention_layer_norm",
        f"{BLOCK}/feed_forward/inner": f"{_BLOCK}/_feedforward_intermediate_dense",
        f"{BLOCK}/feed_forward/outer": f"{_BLOCK}/_feedforward_output_dense",
        f"{BLOCK}/feed_forward_norm": f"{_BLOCK}/_feedforward_layer_norm",
        "head/pooler/dense": "layers/dense",
        "head/masked_lm/transform": f"{_HEAD}/_intermediate_dense",
        "head/masked_lm/norm": f"{_HEAD}/_intermediate_layer_norm",
        "head/logits": "task/layers/dense",
    },
    {"kernel": "/vars/0", "bias": "/vars/1", "gamma": "/vars/0", "beta": "/vars/1", "embeddings": "/vars/0"},
    SPLIT_HEADS,
    {"head/masked_lm/bias": (f"{_HEAD}/vars/0", same)},
)
"""Names that begin with `task/` are in `task.weights.h5`, the others in `model.weights.h5`."""


@dataclass(frozen=True)
class _Said:
    """What the files say: the settings of the backbone and the tokenizer, the task, if any, and its longest row."""

    file: Path
    backbone: dict[str, Any]
    tokenizer: dict[str, Any]
    task: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    length: int | None = None


def _said(path: Path) -> _Said:
    """The parts, each in a file of its own, or all in one.

    Raises:
        CheckpointError: the files are broken, or describe other classes.
    """
    file = path / CONFIG_FILE
    name, whole = _config_of(file, BACKBONE, *TASKS)
    if name != BACKBONE:
        backbone, preprocessor = (_config_in(file, whole, part) for part in ("backbone", "preprocessor"))
        tokenizer = _config_in(file, preprocessor, "tokenizer")
        return _Said(file, backbone, tokenizer, _task_name(name), whole, _length(preprocessor))
    if not (path / TOKENIZER_FILE).exists():
        raise CheckpointError(f"{path}: has no {TOKENIZER_FILE}; save the task with its preprocessor, not the backbone")
    _, tokenizer = _config_of(path / TOKENIZER_FILE, "BertTokenizer")
    said = _Said(file, whole, tokenizer)
    if not (path / TASK_FILE).exists():
        return said
    task, settings = _config_of(path / TASK_FILE, *TASKS)
    file = path / PREPROCESSOR_FILE
    length = _length(read_json(file).get("config")) if file.exists() else None
    return _Said(path / TASK_FILE, whole, tokenizer, _task_name(task), settings, length)


def _task_name(name: str) -> str:
    """The name of today of a class that had another one."""
    return CLASSIFIER if name == "BertClassifier" else name


def _length(preprocessor: Any) -> int | None:
    length = preprocessor.get("sequence_length") if isinstance(preprocessor, dict) else None
    return length if type(length) is int and length >= 3 else None


def _config_in(file: Path, whole: dict[str, Any], part: str) -> dict[str, Any]:
    """The config of a serialized object in another one."""
    inner = whole.get(part)
    config = inner.get("config") if isinstance(inner, dict) else None
    if not isinstance(config, dict):
        raise CheckpointError(f"{file}: has no {part}; save the task with its preprocessor, or a preset")
    return config


def _config_of(file: Path, *classes: str) -> tuple[str, dict[str, Any]]:
    """Class and config of a serialized object.

    Raises:
        CheckpointError: the file is broken, or describes another class.
    """
    content = read_json(file)
    name, config = content.get("class_name"), content.get("config")
    if name not in classes or not isinstance(config, dict):
        raise CheckpointError(f"{file}: class_name {name!r}; it can be one of {', '.join(classes)}")
    return name, config


def read(path: Path) -> Contents:
    """What the files of a preset say beside the weights.

    Raises:
        CheckpointError: they are broken, or describe what we do not compute.
        DataError: the vocabulary is broken.
    """
    file = path / CONFIG_FILE
    said = _said(path)
    raw = said.backbone
    values = numbers(raw, NAMES, file)
    encoder: EncoderConfig = build(EncoderConfig, values | {"activation": "gelu_tanh"}, file)
    dropout = encoder.hidden_dropout
    encoder = build(EncoderConfig, values | {"activation": "gelu_tanh", "attention_dropout": dropout}, file)
    unknown = tuple(f"{file.name}: {key}" for key in raw if key not in {*NAMES.values(), "name", "trainable", "dtype"})
    tokenizer = said.tokenizer
    for key, allowed in TOKENIZER_ONLY.items():
        if key in tokenizer and tokenizer[key] not in allowed:
            raise CheckpointError(f"{path}: {key} {tokenizer[key]!r} of the tokenizer changes the ids; not supported")
    lower = tokenizer.get("lowercase") is True
    remarks: tuple[str, ...] = ()
    if lower and tokenizer.get("strip_accents") is not True:
        remarks = ("its tokenizer lower-cases but keeps accents; ours strips them, as uncased BERT was trained",)
    names = [path / name for name in VOCABULARY_FILES if (path / name).exists()]
    if not names:
        raise CheckpointError(f"{path}: has no {VOCABULARY_FILES[0]}")
    contents = Contents(
        encoder,
        text_config(file, encoder, lower, longest=said.length if said.task in (CLASSIFIER, EMBEDDER) else None),
        read_vocabulary(names[0]),
        _head(said),
        unknown=unknown,
        masked_words=said.task == MASKED_LM,
        remarks=remarks,
    )
    return checked(path, contents)


def _head(said: _Said) -> HeadConfig | None:
    """The head of the task; labels of a classifier are their numbers, the format has no names for them."""
    if said.task == EMBEDDER:
        values = {
            "pooling": said.settings.get("pooling_mode", "mean"),
            "normalize": said.settings.get("normalize", True),
        }
        return build(HeadConfig, {"task": "embed"} | values, said.file)
    if said.task != CLASSIFIER:
        return None
    count, activation = said.settings.get("num_classes"), said.settings.get("activation", "linear")
    if type(count) is not int or not 0 < count < 2**20:
        raise CheckpointError(f"{said.file}: num_classes must be a whole number from 1, got {count!r}")
    if activation not in ("linear", "softmax", "sigmoid", None):
        raise CheckpointError(f"{said.file}: activation {activation!r} is not supported")
    task = "regress" if count == 1 else "multilabel" if activation == "sigmoid" else "classify"
    labels = tuple(map(str, range(count))) if count > 1 else ()
    values = {"task": task, "labels": labels, "dropout": said.settings.get("dropout", 0.1)}
    if activation == "sigmoid" and count == 1:
        values["activation"] = activation
    return build(HeadConfig, values, said.file)


def tensors(path: Path, _: Iterable[str]) -> dict[str, Stored]:
    """The data sets of `model.weights.h5`, and of `task.weights.h5` below `task/`; of 8 bits as what they stand for."""
    if not has_h5(path / WEIGHTS_FILE):
        there = some(sorted(p.name for p in path.iterdir() if p.is_file()))
        raise CheckpointError(f"{path}: has no {WEIGHTS_FILE}; there are {there}")
    found = read_h5_whole(path / WEIGHTS_FILE)
    inner = "layers/bert_backbone/"
    if any(name.startswith(inner) for name in found):  # a task in one file
        renamed = {name: name.removeprefix(inner) if inner in name else f"task/{name}" for name in found}
        found = {renamed[name]: value for name, value in found.items()}
    elif has_h5(path / TASK_WEIGHTS_FILE):
        found |= {f"task/{name}": value for name, value in read_h5_whole(path / TASK_WEIGHTS_FILE).items()}
    return _in_full(found)


def _in_full(found: dict[str, Stored]) -> dict[str, Stored]:
    """Matrices that Keras has quantized to 8 bits, divided by their scales, which then are no weights any more."""
    full = dict(found)
    for name, value in found.items():
        group, _, number = name.rpartition("/")
        if value.dtype != "int8" or number != "0":
            continue
        last = max(int(other.rpartition("/")[2]) for other in found if other.rpartition("/")[0] == group)
        rows = "embedding" in group
        full[name] = dataclasses.replace(
            value, dtype="float32 of int8", read=functools.partial(_divided, value, found[f"{group}/{last}"], rows)
        )
        del full[f"{group}/{last}"]
    return full


def _divided(value: Stored, scale: Stored, rows: bool) -> np.ndarray:
    """A scale is of the rows of a table, or of the last axes of a matrix, after axes of length 1."""
    scales = scale.read()
    if rows:
        scales = scales[:, None]
    while scales.ndim > len(value.shape) and scales.shape[0] == 1:
        scales = scales[0]
    return value.read().astype(np.float32) / scales


def holds(contents: Contents, parts: set[str]) -> set[str]:
    """A preset has one task: the classifier where there is one, else the masked language model."""
    classifier = contents.head is not None and bool(contents.head.scores)
    return parts & {"encoder", "pooler", "logits" if classifier and "logits" in parts else "masked_lm"}


def write(path: Path, contents: Contents, weights: Mapping[str, np.ndarray]) -> None:
    """Write a preset that `from_preset` of KerasHub loads."""
    named = to_theirs(TABLE, weights, contents)
    for file, wanted in ((WEIGHTS_FILE, False), (TASK_WEIGHTS_FILE, True)):
        own = {n.removeprefix("task/"): v for n, v in named.items() if n.startswith("task/") == wanted}
        if own and wanted:  # a task is compiled before its weights are loaded: its optimizer must be there
            own |= {"optimizer/vars/0": np.zeros((), np.int64), "optimizer/vars/1": np.full((), 5e-5, np.float32)}
        if own:
            write_h5(path / file, own, {group: LAYER_NAMES[group] for group in LAYER_NAMES if f"{group}/0" in own})
    write_pieces(path / VOCABULARY_FILES[0], contents.vocabulary)
    backbone = _serialized("bert", "bert_backbone", "BertBackbone", "float32", _backbone(contents))
    tokenizer = _serialized("bert", "bert_tokenizer", "BertTokenizer", "int32", _tokenizer(contents))
    write_json(path / CONFIG_FILE, backbone)
    write_json(path / TOKENIZER_FILE, tokenizer)
    write_json(path / "metadata.json", _metadata(weights))
    if "head/logits/kernel" in weights or "head/masked_lm/bias" in weights:
        task, preprocessor = _task(contents, "head/logits/kernel" in weights, backbone, tokenizer)
        write_json(path / TASK_FILE, task)
        write_json(path / PREPROCESSOR_FILE, preprocessor)


LAYER_NAMES = {
    "layers/reversible_embedding/vars": "token_embedding",
    "layers/position_embedding/vars": "position_embedding",
    "layers/embedding/vars": "segment_embedding",
    "layers/layer_normalization/vars": "embeddings_layer_norm",
    "layers/masked_lm_head/vars": "mlm_head",
}


def _serialized(package: str, module: str, name: str, dtype: str, config: dict[str, Any]) -> dict[str, Any]:
    """An object as Keras serializes it."""
    policy = {"module": "keras", "class_name": "DTypePolicy", "config": {"name": dtype}, "registered_name": None}
    return {
        "module": f"keras_hub.src.models.{package}.{module}",
        "class_name": name,
        "config": {"name": module, "trainable": True, "dtype": policy} | config,
        "registered_name": f"keras_hub>{name}",
    }


def _backbone(contents: Contents) -> dict[str, Any]:
    return {theirs: getattr(contents.encoder, ours) for ours, theirs in NAMES.items()}


def _tokenizer(contents: Contents) -> dict[str, Any]:
    lower = contents.text.do_lower_case
    return {
        "config_file": TOKENIZER_FILE,
        "vocabulary": None,
        "sequence_length": None,
        "lowercase": lower,
        "strip_accents": lower,
        "split": True,
        "suffix_indicator": "##",
        "oov_token": "[UNK]",
        "special_tokens": None,
        "special_tokens_in_strings": False,
    }


def _metadata(weights: Mapping[str, np.ndarray]) -> dict[str, Any]:
    count = sum(v.size for path, v in weights.items() if path.startswith(("encoder/", "head/pooler/")))
    now = datetime.datetime.now(datetime.UTC)
    return {
        "keras_version": version("keras"),
        "keras_hub_version": "0.26.0",
        "parameter_count": count,
        "date_saved": now.strftime("%Y-%m-%d@%H:%M:%S"),
        "tasks": ["MaskedLM", "TextClassifier"],
    }


def _task(
    contents: Contents, classifier: bool, backbone: dict[str, Any], tokenizer: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    common = {
        "tokenizer": tokenizer,
        "config_file": PREPROCESSOR_FILE,
        "sequence_length": contents.text.max_seq_length,
        "truncate": "round_robin",
    }
    if classifier and contents.head is not None:
        module, name = "bert_text_classifier", "BertTextClassifier"
        settings: dict[str, Any] = {
            "num_classes": len(contents.head.labels) or 1,
            "activation": "linear",
            "dropout": contents.head.dropout,
        }
    else:
        module, name, settings = "bert_masked_lm", "BertMaskedLM", {}
        common |= {
            "mask_selection_rate": 0.15,
            "mask_selection_length": 96,
            "mask_token_rate": 0.8,
            "random_token_rate": 0.1,
        }
    preprocessor = _serialized("bert", f"{module}_preprocessor", f"{name}Preprocessor", "float32", common)
    parts = {"backbone": backbone, "preprocessor": preprocessor, "name": module} | settings
    task = {
        "module": f"keras_hub.src.models.bert.{module}",
        "class_name": name,
        "config": parts,
        "registered_name": f"keras_hub>{name}",
    }
    return task, preprocessor


FORMAT = Format(
    name="keras_hub",
    mark=CONFIG_FILE,
    is_here=lambda path: (path / CONFIG_FILE).exists() and "class_name" in read_json(path / CONFIG_FILE),
    is_complete=lambda path: has_h5(path / WEIGHTS_FILE),
    table=TABLE,
    read=read,
    tensors=tensors,
    write=write,
    ignored=r"(task/)?(optimizer/.*|.*/seed_generator(_state)?/.*)",
    files=r"config\.json|metadata\.json|(model|task)(_\d+)?\.weights\.(h5|json)|(task|preprocessor|tokenizer)\.json"
    r"|assets/.*vocabulary\.txt",
    holds=holds,
    needs=frozenset({"pooler"}),
    fixed=FIXED,
)
