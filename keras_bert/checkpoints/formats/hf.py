"""Hugging Face: `config.json`, `model.safetensors` or `pytorch_model.bin`, `vocab.txt`, `tokenizer_config.json`."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_bert.checkpoints.formats import hf_tokenizer, sentence_transformers
from keras_bert.checkpoints.formats.containers import WEIGHTS_FILE, read_safetensors, write_safetensors
from keras_bert.checkpoints.formats.format import Format
from keras_bert.checkpoints.formats.settings import (
    Contents,
    build,
    checked,
    encoder_keys,
    read_encoder,
    read_json,
    some,
    text_config,
    write_json,
)
from keras_bert.checkpoints.formats.table import ORIGINAL, Names, Stored, Transform, same, to_theirs, transpose
from keras_bert.checkpoints.formats.torch_file import read_torch
from keras_bert.config import TASKS, HeadConfig, tasks_with
from keras_bert.errors import CheckpointError, ConfigError
from keras_bert.rules import Rules

CONFIG_FILE, TORCH_FILE = "config.json", "pytorch_model.bin"
GELU = "gelu"


_LAYERS = {ours: theirs.replace("layer_{i}", "layer/{i}").replace("/", ".") for ours, theirs in ORIGINAL.items()}
_ENDS = {"kernel": ".weight", "bias": ".bias", "gamma": ".weight", "beta": ".bias", "embeddings": ".weight"}
_TURNED: Rules[Transform] = ((r"/kernel$", transpose), (r".*", same))
TABLE = Names(
    _LAYERS
    | {"head/next_sentence": "cls.seq_relationship", "head/logits": "classifier"}
    | sentence_transformers.DENSE_NAMES,
    _ENDS,
    _TURNED,
    others={"head/masked_lm/bias": ("cls.predictions.bias", same)},
    tasks={
        "span": {"head/logits/kernel": ("qa_outputs.weight", transpose), "head/logits/bias": ("qa_outputs.bias", same)}
    },
)

ANEW = ("architectures", "transformers_version", "torch_dtype", "dtype")
OF_THE_HEAD = ("problem_type", "id2label", "label2id", "num_labels", "_num_labels", "classifier_dropout")
"""Keys that are written from what the model is, not from where it came from."""


def read(path: Path) -> Contents:
    """What `config.json` and the tokenizer's files say, and those of sentence-transformers around them.

    Raises:
        CheckpointError: they are broken, or describe what we do not compute.
        DataError: the vocabulary is broken.
    """
    folder = sentence_transformers.transformer(path)
    file = folder / CONFIG_FILE
    encoder, raw, rest, unknown = read_encoder(file, GELU)
    tokenizer = hf_tokenizer.read(folder)
    head, order, problem = _head(raw, file, encoder.hidden_dropout)
    for key in (*ANEW, *OF_THE_HEAD) if head else ANEW:
        rest.pop(key, None)
    kept = {name: keys for name, keys in ((CONFIG_FILE, rest), (hf_tokenizer.CONFIG_FILE, tokenizer.rest)) if keys}
    contents = Contents(
        encoder,
        text_config(folder, encoder, flavour=hf_tokenizer.FLAVOUR, **tokenizer.text),
        tokenizer.vocabulary,
        head,
        origins={"hf": kept} if kept else {},
        unknown=unknown,
        logit_order=order,
        head_problem=problem,
        remarks=tokenizer.remarks,
    )
    return checked(path, sentence_transformers.apply(path, contents, tokenizer.rest.get("model_max_length")))


def _head(raw: Mapping[str, Any], file: Path, dropout: float) -> tuple[HeadConfig | None, tuple[int, ...], str]:
    """The head that the file names, with its labels; None where it names none of ours.

    Returns:
        The head, the order of its logits, and why there is none; see `Contents`.
    """
    names = raw.get("architectures")
    name = names[0] if isinstance(names, list) and names else ""
    tasks = tasks_with(architecture=name) if name else []
    if not tasks:
        return None, (), ""
    table = raw.get("id2label")
    count = raw.get("num_labels", raw.get("_num_labels", 2))
    if table is None and type(count) is int and 0 < count < 2**20:
        table = {str(i): f"LABEL_{i}" for i in range(count)}
    if not isinstance(table, dict) or set(table) != {str(i) for i in range(len(table))}:
        raise CheckpointError(f"{file}: id2label must name the labels 0 to n - 1, got {str(table)[:80]}")
    labels = tuple(str(table[str(i)]) for i in range(len(table)))
    problem = raw.get("problem_type")
    known = {TASKS[one].problem_type: one for one in reversed(tasks)}
    if len(known) == 1:
        task = tasks[0]
    else:
        if problem is None:
            problem = "regression" if len(labels) == 1 else "single_label_classification"
        if problem not in known:
            raise CheckpointError(f"{file}: problem_type {problem!r}; it can be one of {', '.join(known)}")
        task = known[problem]
    if TASKS[task].problem_type == "regression" and len(labels) != 1:
        raise CheckpointError(f"{file}: problem_type regression with {len(labels)} labels; only one is supported")
    try:
        labels, order = TASKS[task].labels_of(labels)
    except ConfigError as error:
        return None, (), f"{file.name}: labels {some(labels, 5)} {error}; --drop='classifier.*' leaves the head out"
    rate = raw.get("classifier_dropout")
    values = {
        "task": task,
        "labels": labels,
        "dropout": dropout if rate is None else rate,
    }
    return build(HeadConfig, values, file), order, ""


def tensors(path: Path, _: Iterable[str]) -> dict[str, Stored]:
    """The tensors, without the prefix `bert.` and with today's names of layer norms."""
    beside = sentence_transformers.tensors(path)
    path = sentence_transformers.transformer(path)
    if (path / WEIGHTS_FILE).exists():
        found = read_safetensors(path / WEIGHTS_FILE)
    elif (path / TORCH_FILE).exists():
        found = read_torch(path / TORCH_FILE)
    else:
        split = any(path.glob("*.index.json"))
        shards = "; it is split into several files, which are not read" if split else ""
        raise CheckpointError(f"{path}: has no {WEIGHTS_FILE}{shards}")
    return {re.sub(r"^bert\.", "", old_norm(name)): value for name, value in found.items()} | beside


def old_norm(name: str) -> str:
    """bert-base-uncased and its time name the weights of layer norms as the original did."""
    return re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name))


def write(path: Path, contents: Contents, weights: Mapping[str, np.ndarray]) -> None:
    """Write a directory that transformers loads, and sentence-transformers if the model gives vectors."""
    named = to_theirs(TABLE, weights, contents)
    dense = {name: named.pop(name) for name in list(named) if name.startswith("dense_")}
    bare = re.compile(r"cls\.|classifier\.|qa_outputs\.")
    prefix = "bert." if any(bare.match(name) for name in named) else ""
    write_safetensors(
        path / WEIGHTS_FILE, {name if bare.match(name) else prefix + name: value for name, value in named.items()}
    )
    write_json(path / CONFIG_FILE, _config(contents, weights))
    hf_tokenizer.write(path, contents)
    sentence_transformers.write(path, contents, dense)


def _holds(contents: Contents, parts: set[str]) -> set[str]:
    """All parts, but dense layers over vectors that sentence-transformers could not make."""
    return parts if sentence_transformers.holds(contents.head) else parts - {"dense"}


def _is_here(path: Path) -> bool:
    if sentence_transformers.is_here(path):
        return not (path / "bert_config.json").exists()
    return (path / CONFIG_FILE).exists() and "class_name" not in read_json(path / CONFIG_FILE)


def _config(contents: Contents, weights: Mapping[str, np.ndarray]) -> dict[str, Any]:
    head = contents.head
    if head is not None and head.architecture:
        name = head.architecture
    elif "head/masked_lm/bias" in weights:
        name = "BertForPreTraining" if "head/next_sentence/bias" in weights else "BertForMaskedLM"
    else:
        name = "BertForNextSentencePrediction" if "head/next_sentence/bias" in weights else "BertModel"
    config = {
        "architectures": [name],
        "model_type": "bert",
        "torch_dtype": "float32",
        **encoder_keys(contents.encoder, GELU),
        "position_embedding_type": "absolute",
    }
    if head is not None and head.architecture:
        labels = head.logit_labels or tuple(f"LABEL_{i}" for i in range(head.width))
        config |= {
            "id2label": {str(i): label for i, label in enumerate(labels)},
            "label2id": {label: i for i, label in enumerate(labels)},
            "classifier_dropout": head.dropout,
        }
        if head.problem_type:
            config["problem_type"] = head.problem_type
    return contents.origin("hf", CONFIG_FILE) | config


_FILES = (
    r"config\.json|tokenizer(_config)?\.json|special_tokens_map\.json|added_tokens\.json|vocab\.txt"
    r"|model\.safetensors|pytorch_model\.bin"
)
FORMAT = Format(
    name="hf",
    mark=CONFIG_FILE,
    is_here=_is_here,
    table=TABLE,
    read=read,
    tensors=tensors,
    write=write,
    files=rf"{_FILES}|{sentence_transformers.FILES}|\d+_[^/]*/({_FILES})",
    holds=_holds,
    ignored=r"embeddings\.(position_ids|token_type_ids)",
    copies={
        "cls.predictions.decoder.weight": "encoder/tokens/embeddings",
        "cls.predictions.decoder.bias": "head/masked_lm/bias",
    },
)
