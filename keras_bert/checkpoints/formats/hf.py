"""Hugging Face: `config.json`, `model.safetensors` or `pytorch_model.bin`, `vocab.txt`, `tokenizer_config.json`.

Either file of weights may be split into shards that an index names. In directories of 2019 (pytorch-pretrained-bert)
the configuration is `bert_config.json`.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
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
from keras_bert.checkpoints.formats.table import (
    ORIGINAL,
    Names,
    Stored,
    Transform,
    same,
    shared_prefix,
    to_theirs,
    transpose,
)
from keras_bert.checkpoints.formats.torch_file import read_torch
from keras_bert.config import TASKS, DataConfig, HeadConfig, tasks_with
from keras_bert.errors import CheckpointError, ConfigError
from keras_bert.rules import Rules

CONFIG_FILE, OLD_CONFIG_FILE = "config.json", "bert_config.json"
CONTAINERS: dict[str, Callable[[Path], dict[str, Stored]]] = {
    WEIGHTS_FILE: read_safetensors,
    "pytorch_model.bin": read_torch,
}
"""Files of weights, in the order in which they are looked for; `.index.json` behind the name is that of shards."""
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
    file = config_file(folder)
    encoder, raw, rest, unknown = read_encoder(file, GELU)
    tokenizer = hf_tokenizer.read(folder)
    longest = tokenizer.rest.get("model_max_length")
    head = _head(raw, file, encoder.hidden_dropout)
    for key in (*ANEW, *OF_THE_HEAD) if head.config else ANEW:
        rest.pop(key, None)
    kept = {name: keys for name, keys in ((CONFIG_FILE, rest), (hf_tokenizer.CONFIG_FILE, tokenizer.rest)) if keys}
    contents = Contents(
        encoder,
        text_config(
            file, encoder, longest=_longest(longest, head.config), flavour=hf_tokenizer.FLAVOUR, **tokenizer.text
        ),
        tokenizer.vocabulary,
        head.config,
        head.data,
        origins={"hf": kept} if kept else {},
        unknown=unknown,
        logit_order=head.order,
        head_problem=head.problem,
        masked_words=(raw.get("architectures") or [""])[0] == "BertForMaskedLM",
        remarks=(*tokenizer.remarks, *_not_read(folder)),
    )
    return checked(path, sentence_transformers.apply(path, contents, longest))


def _longest(said: Any, head: HeadConfig | None) -> int | None:
    """Tokens of a row that a head of the files reads as its tokenizer says; None for the usual ones."""
    if head is None or head.longest_row:
        return None
    return int(min(said, MOST_TOKENS)) if isinstance(said, int | float) and said >= 3 else MOST_TOKENS


MOST_TOKENS = 2**16


def config_file(path: Path) -> Path:
    """The configuration under its name of today, or that of 2019."""
    return path / (CONFIG_FILE if (path / CONFIG_FILE).exists() else OLD_CONFIG_FILE)


def is_here(path: Path) -> bool:
    """Is there a configuration, or the one of 2019 with weights beside it, or are there modules?"""
    if sentence_transformers.is_here(path):
        return True
    if (path / CONFIG_FILE).exists():
        return "class_name" not in read_json(path / CONFIG_FILE)
    return (path / OLD_CONFIG_FILE).exists() and is_complete(path)


def is_complete(path: Path) -> bool:
    """Are the weights there, of shards all?"""
    return bool(_containers(sentence_transformers.transformer(path))[0])


def _containers(path: Path) -> tuple[dict[str, tuple[str, ...]], str]:
    """Container -> its files, of those that are whole; and why another one is not."""
    found, problem = dict[str, tuple[str, ...]](), ""
    for name in CONTAINERS:
        index = path / f"{name}.index.json"
        if (path / name).exists():
            found[name] = (name,)
        elif index.exists():
            shards = tuple(sorted(set(_shard_of(index).values())))
            missing = [shard for shard in shards if not (path / shard).exists()]
            problem = problem or f"{index.name} names {some(missing)}; put them there"
            if not missing:
                found[name] = shards
    return found, problem


def _shard_of(index: Path) -> dict[str, str]:
    """Tensor -> the file that holds it.

    Raises:
        CheckpointError: the index is broken, or names files elsewhere.
    """
    table = read_json(index).get("weight_map")
    if (
        not isinstance(table, dict)
        or not table
        or not all(isinstance(n, str) and SHARD.fullmatch(n) for n in table.values())
    ):
        raise CheckpointError(f"{index}: weight_map is not a table from tensors to files beside it")
    return table


SHARD = re.compile(r"[\w-][\w.-]*")


def _not_read(path: Path) -> tuple[str, ...]:
    """A remark on weights that lie beside those that are read."""
    first, *others = _containers(path)[0] or [""]
    return (f"{first} is read, not {' and '.join(others)} beside it",) if others else ()


@dataclass(frozen=True)
class _Head:
    """What a configuration says of the head: the head, the order of its logits (see `Contents`), the columns that it
    reads, and why a head that is named is none."""

    config: HeadConfig | None = None
    order: tuple[int, ...] = ()
    data: DataConfig | None = None
    problem: str = ""


def _head(raw: Mapping[str, Any], file: Path, dropout: float) -> _Head:
    """The head that the file names, with its labels."""
    names = raw.get("architectures")
    name = names[0] if isinstance(names, list) and names else ""
    tasks = tasks_with(architecture=name) if name else []
    if not tasks:
        return _Head()
    labels = _labels(raw, file)
    cross = _activation(raw, file, len(labels)) if len(tasks) > 1 else None
    task = _task(raw, file, tasks, len(labels), cross)
    try:
        values, order = TASKS[task].of_logits(labels)
    except ConfigError as error:
        return _Head(
            problem=f"{file.name}: labels {some(labels, 5)} {error}; --drop='classifier.*' leaves the head out"
        )
    if cross == "sigmoid" and hasattr(TASKS[task], "activation"):
        values["activation"] = cross
    rate = raw.get("classifier_dropout")
    values |= {"task": task, "dropout": dropout if rate is None else rate}
    data = None if cross is None else DataConfig(text_pair_column="text_pair")
    return _Head(build(HeadConfig, values, file), order, data)


def _labels(raw: Mapping[str, Any], file: Path) -> tuple[str, ...]:
    """The names of the logits in their order."""
    table = raw.get("id2label")
    count = raw.get("num_labels", raw.get("_num_labels", 2))
    if table is None and type(count) is int and 0 < count < 2**20:
        table = {str(i): f"LABEL_{i}" for i in range(count)}
    if not isinstance(table, dict) or set(table) != {str(i) for i in range(len(table))}:
        raise CheckpointError(f"{file}: id2label must name the labels 0 to n - 1, got {str(table)[:80]}")
    return tuple(str(table[str(i)]) for i in range(len(table)))


CROSS_ENCODER_ACTIVATIONS = {
    "torch.nn.modules.linear.Identity": "identity",
    "torch.nn.Identity": "identity",
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
    "torch.nn.Sigmoid": "sigmoid",
}


def _activation(raw: Mapping[str, Any], file: Path, count: int) -> str | None:
    """What a CrossEncoder of sentence-transformers makes of its logits; None where the file is not of one.

    Where it does not say, that is the sigmoid of a single logit, and nothing for several.
    """
    usual = "sigmoid" if count == 1 else "identity"
    said = raw.get("sentence_transformers")
    name = said.get("activation_fn") if isinstance(said, dict) else None
    name = raw.get("sbert_ce_default_activation_function") if name is None else name
    if name is None:
        return None if said is None else usual
    if name not in CROSS_ENCODER_ACTIVATIONS:
        known = ", ".join(CROSS_ENCODER_ACTIVATIONS)
        raise CheckpointError(f"{file}: activation function {name!r} is not computed; it can be one of {known}")
    return CROSS_ENCODER_ACTIVATIONS[name]


def _task(raw: Mapping[str, Any], file: Path, tasks: list[str], count: int, cross: str | None) -> str:
    """Which of the tasks of one class of transformers it is."""
    known = {TASKS[one].problem_type: one for one in reversed(tasks)}
    if len(known) == 1:
        return tasks[0]
    problem = raw.get("problem_type")
    if problem is None:
        several = "multi_label_classification" if cross == "sigmoid" else "single_label_classification"
        problem = "regression" if count == 1 else several
    if problem not in known:
        raise CheckpointError(f"{file}: problem_type {problem!r}; it can be one of {', '.join(known)}")
    if problem == "regression" and count != 1:
        raise CheckpointError(f"{file}: problem_type regression with {count} labels; only one is supported")
    if cross == "sigmoid" and problem == "single_label_classification":
        raise CheckpointError(
            f"{file}: problem_type {problem} with a sigmoid of each label; they contradict each other"
        )
    return known[problem]


def tensors(path: Path, _: Iterable[str]) -> dict[str, Stored]:
    """The tensors, without a prefix that all of them share, without `bert.`, and with today's names of layer norms.

    Those of sentence-transformers' dense layers are among them.

    Raises:
        CheckpointError: there are no weights, they are broken, or a shard lacks what the index says.
    """
    beside = sentence_transformers.tensors(path)
    path = sentence_transformers.transformer(path)
    whole, problem = _containers(path)
    if not whole:
        there = some(sorted(p.name for p in path.iterdir() if p.is_file()))
        raise CheckpointError(f"{path}: has no {' or '.join(CONTAINERS)}; {problem or f'there are {there}'}")
    container, files = next(iter(whole.items()))
    found: dict[str, Stored] = {}
    for file in files:
        found |= CONTAINERS[container](path / file)
    index = path / f"{container}.index.json"
    lost = [name for name in _shard_of(index) if name not in found] if files != (container,) else []
    if lost:
        raise CheckpointError(f"{index}: no shard holds {some(lost)}; copy the files anew")
    start = len(shared_prefix(found))
    return {re.sub(r"^bert\.", "", old_norm(name[start:])): value for name, value in found.items()} | beside


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
        activation = getattr(head, "activation", "")
        if activation:
            names = {ours: theirs for theirs, ours in reversed(CROSS_ENCODER_ACTIVATIONS.items())}
            config["sentence_transformers"] = {"activation_fn": names[activation]}
    return contents.origin("hf", CONFIG_FILE) | config


_FILES = (
    r"(bert_)?config\.json|tokenizer(_config)?\.json|special_tokens_map\.json|added_tokens\.json|vocab\.txt"
    r"|(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?"
)
FORMAT = Format(
    name="hf",
    mark=CONFIG_FILE,
    is_here=is_here,
    is_complete=is_complete,
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
