"""sentence-transformers: what stands beside a Hugging Face checkpoint and says how its vectors are made.

`modules.json` lists the modules: the transformer, whose folder holds the checkpoint, then pooling, dense layers and
normalization, each with a `config.json` in a folder of its own. `sentence_bert_config.json` in the transformer's folder
has the longest row, `config_sentence_transformers.json` the prompts. What we do not compute is refused by name.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keras_bert.checkpoints.formats.containers import WEIGHTS_FILE, read_safetensors, write_safetensors
from keras_bert.checkpoints.formats.settings import Contents, build, read_json, write_json
from keras_bert.checkpoints.formats.table import Stored
from keras_bert.checkpoints.formats.torch_file import read_torch
from keras_bert.config import EncoderConfig, HeadConfig, TextConfig, VectorConfig
from keras_bert.config.tasks import MOST_DENSE
from keras_bert.errors import CheckpointError

MODULES_FILE, PROMPTS_FILE, CONFIG_FILE = "modules.json", "config_sentence_transformers.json", "config.json"
TORCH_FILE = "pytorch_model.bin"
KINDS = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
LENGTH_FILES = tuple(f"sentence_{kind}_config.json" for kind in KINDS)
"""Where the transformer's own settings can be; the first one that exists counts."""
FILES = (
    r"modules\.json|config_sentence_transformers\.json|(\d+_[^/]*/)?sentence_[\w-]+_config\.json"
    rf"|\d+_[^/]*/{CONFIG_FILE}"
)

TRANSFORMERS = ("Transformer", "BERT")
POOLINGS = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt",
    "weightedmean": "weighted_mean",
    "lasttoken": "last",
}
"""Names of poolings in `pooling_mode`, in the order in which the older files join them, and ours."""
OLD_POOLINGS = {
    f"pooling_mode_{name}": name
    for name in ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
}
OF_OLD = dict(zip(OLD_POOLINGS, POOLINGS, strict=True))
ACTIVATIONS = {
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.linear.Identity": "identity",
    "torch.nn.modules.activation.GELU": "gelu",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
    "torch.nn.modules.activation.SiLU": "silu",
}
SENTENCE = "sentence_embedding"
IO_KEYS = {"module_input_name": (SENTENCE,), "module_output_name": (SENTENCE, None)}
TRANSFORMER_ONLY = {"transformer_task": ("feature-extraction",), "module_output_name": ("token_embeddings",)}
"""Keys of the transformer's settings that change what it gives, and the values that we compute."""
DOCUMENT_PROMPTS = ("document", "passage", "corpus")

DENSE_NAMES = {f"head/dense_{i}": f"dense_{i}.linear" for i in range(MOST_DENSE)}
"""Our dense layers -> the names of theirs, each of which is in a file of its own."""


@dataclass(frozen=True)
class Module:
    """A row of `modules.json`: the last part of its class, and its folder."""

    kind: str
    folder: Path


def is_here(path: Path) -> bool:
    """Is the directory one of sentence-transformers?"""
    return (path / MODULES_FILE).is_file()


def transformer(path: Path) -> Path:
    """The folder that holds the checkpoint: that of the first module, or `path` where there are no modules.

    Raises:
        CheckpointError: `modules.json` is broken, or begins with no transformer.
    """
    return _modules(path)[0].folder if is_here(path) else path


def apply(path: Path, contents: Contents, model_max_length: Any) -> Contents:
    """`contents` with the head that the modules describe, and the length of rows; as it is without `modules.json`.

    Args:
        model_max_length: what the tokenizer says, which counts where the transformer's settings say nothing.

    Raises:
        CheckpointError: the files are broken, or describe what we do not compute.
    """
    if not is_here(path):
        return contents
    values: dict[str, Any] = {"task": "embed", "normalize": False}
    for module in _steps(path):
        values |= STEPS[module.kind](module.folder, contents.encoder, values)
    prompts, rest = _prompts(path / PROMPTS_FILE)
    values |= prompts
    head = build(HeadConfig, values, path / MODULES_FILE)
    text = _text(transformer(path), contents, model_max_length)
    origins = {**contents.origins, "sentence_transformers": {PROMPTS_FILE: rest}} if rest else contents.origins
    return dataclasses.replace(contents, head=head, text=text, origins=origins)


def tensors(path: Path) -> dict[str, Stored]:
    """The tensors of the dense layers, under the names of `DENSE_NAMES`."""
    found: dict[str, Stored] = {}
    dense = [module for module in _modules(path) if module.kind == "Dense"] if is_here(path) else []
    for i, module in enumerate(dense):
        read = read_safetensors if (module.folder / WEIGHTS_FILE).exists() else read_torch
        file = module.folder / (WEIGHTS_FILE if read is read_safetensors else TORCH_FILE)
        if not file.exists():
            raise CheckpointError(f"{module.folder}: has no {WEIGHTS_FILE}")
        found |= {f"dense_{i}.{name}": stored for name, stored in read(file).items()}
    return found


def write(path: Path, contents: Contents, weights: Mapping[str, np.ndarray]) -> None:
    """Write the files beside a checkpoint of a model that gives vectors; of any other model nothing.

    Args:
        weights: tensors under the names of `DENSE_NAMES`.
    """
    head = contents.head
    if not holds(head):
        return
    assert isinstance(head, VectorConfig)
    modules = [("", "Transformer")]
    pooling = _folder(path, modules, "Pooling")
    modes = [_theirs(POOLINGS, name) for name in head.poolings]
    width = contents.encoder.hidden_dim
    write_json(pooling, _pooling_keys(modes, width) | {"include_prompt": True})
    width *= len(modes)
    for i, units in enumerate(head.dense_units):
        file = _folder(path, modules, "Dense")
        keys = {
            "in_features": width,
            "out_features": units,
            "bias": head.dense_biases[i],
            "activation_function": _theirs(ACTIVATIONS, head.dense_activations[i]),
        }
        write_json(file, keys)
        prefix = f"dense_{i}."
        own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        write_safetensors(file.parent / WEIGHTS_FILE, own)
        width = units
    if head.normalize:
        modules.append((f"{len(modules)}_Normalize", "Normalize"))
    rows = [
        {"idx": i, "name": str(i), "path": folder, "type": f"sentence_transformers.models.{kind}"}
        for i, (folder, kind) in enumerate(modules)
    ]
    (path / MODULES_FILE).write_text(json.dumps(rows, indent=2) + "\n", "utf-8")
    lengths = {"max_seq_length": contents.text.max_seq_length, "do_lower_case": False}
    write_json(path / LENGTH_FILES[0], lengths)
    write_json(path / PROMPTS_FILE, _prompt_keys(head, contents.origin("sentence_transformers", PROMPTS_FILE)))


def holds(head: HeadConfig | None) -> bool:
    """Whether the files can say how the vectors of a head are made; False if it gives none."""
    if not isinstance(head, VectorConfig):
        return False
    modes = [_theirs(POOLINGS, name) for name in head.poolings]
    activations = [_theirs(ACTIVATIONS, name) for name in head.dense_activations]
    return head.layers == "last" and not head.head_lstm and not head.dimensions and all([*modes, *activations])


# === Modules: (folder, encoder, fields so far) -> fields of the head ===


def _pooling(folder: Path, encoder: EncoderConfig, _: Mapping[str, Any]) -> dict[str, Any]:
    file = folder / CONFIG_FILE
    said = read_json(file)
    width = said.get("embedding_dimension", said.get("word_embedding_dimension", encoder.hidden_dim))
    if width != encoder.hidden_dim:
        raise CheckpointError(f"{file}: pools vectors of {width}, but the model's have {encoder.hidden_dim}")
    modes = said.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in OF_OLD.items() if said.get(key)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    other = [key for key in said if key.startswith("pooling_mode_") and key not in OF_OLD and said[key]]
    if not isinstance(modes, list) or not modes or not all(mode in POOLINGS for mode in modes) or other:
        raise CheckpointError(f"{file}: pooling {other or modes} is not supported, only {', '.join(POOLINGS)}")
    if not said.get("include_prompt", True):
        raise CheckpointError(f"{file}: include_prompt false is not supported; prompts are part of the pooled text")
    return {"pooling": "+".join(POOLINGS[mode] for mode in modes)}


def _dense(folder: Path, encoder: EncoderConfig, before: Mapping[str, Any]) -> dict[str, Any]:
    file = folder / CONFIG_FILE
    said = read_json(file)
    _check_names(file, said)
    activation = said.get("activation_function", "torch.nn.modules.activation.Tanh")
    if activation not in ACTIVATIONS:
        known = ", ".join(name.rpartition(".")[2] for name in ACTIVATIONS)
        raise CheckpointError(f"{file}: activation_function {activation!r} is not supported, only {known}")
    if said.get("use_residual"):
        raise CheckpointError(f"{file}: use_residual true is not supported")
    units, bias = said.get("out_features"), said.get("bias", True)
    if type(units) is not int or type(bias) is not bool or units < 1:
        raise CheckpointError(f"{file}: out_features must be a whole number and bias true or false")
    new = {"dense_units": units, "dense_activations": ACTIVATIONS[activation], "dense_biases": bias}
    return {name: [*before.get(name, ()), value] for name, value in new.items()}


def _normalize(folder: Path, _: EncoderConfig, before: Mapping[str, Any]) -> dict[str, Any]:
    if (folder / CONFIG_FILE).is_file():
        _check_names(folder / CONFIG_FILE, read_json(folder / CONFIG_FILE))
    return {"normalize": True}


def _check_names(file: Path, said: Mapping[str, Any]) -> None:
    """Raises CheckpointError if a module reads or writes something else than the vector of a text."""
    for key, allowed in IO_KEYS.items():
        if said.get(key, SENTENCE) not in allowed:
            raise CheckpointError(f"{file}: {key} {said[key]!r} is not supported, only {SENTENCE}")


STEPS = {"Pooling": _pooling, "Dense": _dense, "Normalize": _normalize}
"""In the order in which they can stand; there may be several dense layers."""


def _steps(path: Path) -> list[Module]:
    """The modules behind the transformer.

    Raises:
        CheckpointError: there is no pooling, or a module is not supported, or not at its place.
    """
    file, steps, names = path / MODULES_FILE, list[Module](), list(STEPS)
    for module in _modules(path)[1:]:
        before = steps[-1].kind if steps else ""
        if module.kind == "Dropout":  # of training
            continue
        if module.kind not in STEPS:
            raise CheckpointError(f"{file}: module {module.kind} is not supported, only {', '.join(STEPS)}")
        if before and module.kind != "Dense" and names.index(module.kind) <= names.index(before):
            raise CheckpointError(f"{file}: {module.kind} after {before} is not supported")
        if before == "Normalize":
            raise CheckpointError(f"{file}: {module.kind} after {before} is not supported")
        steps.append(module)
    if not steps or steps[0].kind != "Pooling":
        raise CheckpointError(f"{file}: has no Pooling behind the transformer, which makes the vector of a text")
    return steps


def _text(folder: Path, contents: Contents, model_max_length: Any) -> TextConfig:
    """How texts are read: the transformer's own settings, over those of the tokenizer."""
    file = next((folder / name for name in LENGTH_FILES if (folder / name).is_file()), folder / LENGTH_FILES[0])
    said = read_json(file) if file.is_file() else {}
    for key, allowed in TRANSFORMER_ONLY.items():
        if said.get(key, allowed[0]) not in allowed:
            raise CheckpointError(f"{file}: {key} {said[key]!r} is not supported")
    length, positions = said.get("max_seq_length"), contents.encoder.max_positions
    length = model_max_length if length is None else length
    if length is not None and (isinstance(length, bool) or not isinstance(length, int | float) or length < 3):
        raise CheckpointError(f"{file}: max_seq_length must be a whole number from 3 on, got {length!r}")
    longest = positions if length is None else int(min(length, positions))
    text = dataclasses.replace(contents.text, max_seq_length=longest)
    if said.get("do_lower_case") and not text.do_lower_case:  # before a tokenizer that keeps accents
        text = dataclasses.replace(text, do_lower_case=True, accents="keep")
    return text


def _modules(path: Path) -> list[Module]:
    """The rows of `modules.json` in their order.

    Raises:
        CheckpointError: the file is broken, names a folder outside, or does not begin with a transformer.
    """
    file = path / MODULES_FILE
    rows = read_json(file, list)
    try:
        found = list(_read_rows(path, rows))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: not a list of modules ({error!r})") from error
    if not found or found[0].kind not in TRANSFORMERS:
        first = found[0].kind if found else "nothing"
        raise CheckpointError(f"{file}: begins with {first}; only {TRANSFORMERS[0]} is supported")
    return found


def _read_rows(path: Path, rows: Any) -> Iterator[Module]:
    for row in rows:
        package, _, kind = row["type"].rpartition(".")
        if package.partition(".")[0] != "sentence_transformers":
            raise CheckpointError(
                f"{path / MODULES_FILE}: module {row['type']} is code of the model's own; it is not run"
            )
        folder = path / row["path"]
        if not folder.resolve().is_relative_to(path.resolve()):
            raise CheckpointError(f"{path / MODULES_FILE}: {row['path']!r} lies outside of the directory")
        yield Module(kind, folder)


# === Prompts ===


def _prompts(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The prompts as fields of a head, and the file's content for writing it back.

    A document gets the first prompt named "document", "passage" or "corpus". (Release 6.2 of sentence-transformers says
    the same, but always finds an empty one named "document".) Without a prompt of their own, queries and documents have
    none, also where other texts have the default one.

    Raises:
        CheckpointError: the file is broken.
    """
    if not file.is_file():
        return {}, {}
    said = read_json(file)
    prompts, default = said.get("prompts") or {}, said.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(one, str | None) for one in prompts.values()):
        raise CheckpointError(f"{file}: prompts must be an object of strings")
    if default is not None and default not in prompts:
        raise CheckpointError(
            f"{file}: default_prompt_name {default!r} is none of {', '.join(prompts) or 'no prompts'}"
        )
    of_documents = next((name for name in DOCUMENT_PROMPTS if name in prompts), "")
    fields = {
        "prompt": prompts.get(default) or "",
        "query_prompt": prompts.get("query") or "",
        "document_prompt": prompts.get(of_documents) or "",
    }
    return {name: value for name, value in fields.items() if value}, said


def _prompt_keys(head: VectorConfig, origin: Mapping[str, Any]) -> dict[str, Any]:
    """`config_sentence_transformers.json`: what was there, with the prompts of the head."""
    prompts = dict(origin.get("prompts") or {})
    of_documents = next((name for name in DOCUMENT_PROMPTS if name in prompts), DOCUMENT_PROMPTS[0])
    for name, value in (("query", head.query_prompt), (of_documents, head.document_prompt)):
        if value or prompts.get(name):
            prompts[name] = value
    default = origin.get("default_prompt_name")
    if (prompts.get(default) or "") != head.prompt:
        default = next((name for name, value in prompts.items() if value == head.prompt), "default")
        prompts[default] = head.prompt
    usual: dict[str, Any] = {"similarity_fn_name": "cosine", "prompts": {}, "default_prompt_name": None}
    said = {"prompts": prompts, "default_prompt_name": default if head.prompt else None}
    return {**(origin or usual), **{key: value for key, value in said.items() if value or key in origin}}


# === Writing ===


def _folder(path: Path, modules: list[tuple[str, str]], kind: str) -> Path:
    """The `config.json` of a new module."""
    name = f"{len(modules)}_{kind}"
    modules.append((name, kind))
    (path / name).mkdir()
    return path / name / CONFIG_FILE


def _theirs(names: Mapping[str, str], ours: str) -> str:
    """Their name for ours; "" where they have none."""
    return next((theirs for theirs, name in names.items() if name == ours), "")


def _pooling_keys(modes: list[str], width: int) -> dict[str, Any]:
    """The pooling as all releases read it, or as newer ones do where the order of several is another."""
    if modes == [mode for mode in POOLINGS if mode in modes]:
        return {"word_embedding_dimension": width} | {key: mode in modes for key, mode in OF_OLD.items()}
    return {"embedding_dimension": width, "pooling_mode": modes}
