"""google-research/bert: `bert_config.json`, `bert_model.ckpt.*` with named tensors, `vocab.txt`."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from keras_bert.checkpoints.formats.containers import Bundle, find_bundle, has_bundle, is_object_based, write_bundle
from keras_bert.checkpoints.formats.format import Format
from keras_bert.checkpoints.formats.settings import (
    VOCABULARY_FILE,
    Contents,
    checked,
    encoder_keys,
    find_vocabulary,
    is_cased,
    read_encoder,
    text_config,
    write_json,
    write_vocabulary,
)
from keras_bert.checkpoints.formats.table import ORIGINAL, Named, Names, Stored, same, to_theirs, transpose
from keras_bert.config import HeadConfig

CONFIG_FILE, PREFIX = "bert_config.json", "bert_model.ckpt"
GELU = "gelu_tanh"
FIXED = {"activation": GELU, "layer_norm_epsilon": 1e-12}
FILES = r"bert_config\.json|vocab\.txt|checkpoint|(.*\.)?ckpt.*\.(index|meta|data-.*)"
IGNORED = (
    r"(.*/)?(adam|lamb)_[mv](_\d+)?"
    r"|.*/(Adam|Momentum|RMSProp|Adagrad|Adadelta|Ftrl|LAMB|LAMBOptimizer|AdamWeightDecayOptimizer)(_\d+)?"
    r"|(.*/)?(ExponentialMovingAverage|EMA|ema)"
    r"|(.*/)?(beta[12]_power|global_step|step)(_\d+)?"
    r"|(.*/)?(current_)?loss_scale(_\d+)?|(.*/)?(good_steps|num_good_steps|global_step_loss_scale|learning_rate)"
    r"|signal_early_stopping/STOP|(report_uninitialized_variables|save|Adam|optimizer)/.*"
)
"""Leftovers of training: slots of optimizers, averages of weights beside the weights, scales of losses, counters."""
UNSAID = ("layer_norm_eps", "pad_token_id")
"""Keys that the original's `BertConfig` does not have."""


def output(path: str, name: str) -> dict[str, Named]:
    """A last layer as the original's scripts make it."""
    return {f"{path}/kernel": (f"{name}output_weights", transpose), f"{path}/bias": (f"{name}output_bias", same)}


TABLE = Names(
    ORIGINAL,
    {name: f"/{name}" for name in ("kernel", "bias", "gamma", "beta")} | {"embeddings": ""},
    others={
        "head/masked_lm/bias": ("cls/predictions/output_bias", same),
        **output("head/next_sentence", "cls/seq_relationship/"),
        **output("head/logits", ""),
    },
    tasks={"span": output("head/logits", "cls/squad/")},
)


def read_settings(path: Path, name: str) -> Contents:
    """What `bert_config.json` and `vocab.txt` say, without a head; Model Garden has the same files."""
    file = path / CONFIG_FILE
    encoder, _, rest, unknown = read_encoder(file, GELU)
    vocabulary = find_vocabulary(path)
    text = text_config(file, encoder, not is_cased(vocabulary))
    origins = {name: {CONFIG_FILE: rest}} if rest else {}
    return Contents(encoder, text, vocabulary, origins=origins, unknown=unknown)


def write_settings(path: Path, contents: Contents, name: str) -> None:
    """`bert_config.json` and `vocab.txt`."""
    known = {key: value for key, value in encoder_keys(contents.encoder, GELU).items() if key not in UNSAID}
    write_json(path / CONFIG_FILE, contents.origin(name, CONFIG_FILE) | known)
    write_vocabulary(path / VOCABULARY_FILE, contents.vocabulary)


def read(path: Path) -> Contents:
    """What the directory says. A classifier's labels are their numbers: the format has no names for them."""
    return checked(path, read_settings(path, "tf1"))


def head_of(contents: Contents, shapes: Mapping[str, Stored]) -> HeadConfig | None:
    """The head that a checkpoint's tensors are those of."""
    if contents.head is not None:
        return contents.head
    if "cls/squad/output_bias" in shapes:
        return HeadConfig(task="span")
    if "output_bias" not in shapes:
        return None
    width = shapes["output_bias"].shape[0] if shapes["output_bias"].shape else 0
    if width < 2:
        return HeadConfig(task="regress")
    return HeadConfig(task="classify", labels=tuple(map(str, range(width))))


def tensors(path: Path, _: Iterable[str]) -> dict[str, Stored]:
    """The tensors, without the prefix `bert/`."""
    bundle = Bundle(find_bundle(path))
    return {re.sub("^bert/", "", key): bundle.stored(key) for key in bundle.shapes}


def write(path: Path, contents: Contents, weights: Mapping[str, np.ndarray]) -> None:
    """Write a directory that the original's scripts read."""
    named = to_theirs(TABLE, weights, contents)
    bare = re.compile("cls/|output_(weights|bias)$")
    write_bundle(path / PREFIX, {name if bare.match(name) else f"bert/{name}": v for name, v in named.items()})
    write_settings(path, contents, "tf1")


FORMAT = Format(
    name="tf1",
    mark=CONFIG_FILE,
    is_here=lambda path: (path / CONFIG_FILE).exists() and not is_object_based(path),
    is_complete=has_bundle,
    table=TABLE,
    read=read,
    tensors=tensors,
    write=write,
    head=head_of,
    ignored=IGNORED,
    files=FILES,
    fixed=FIXED,
)
