"""Checkpoints and networks: open a directory of any format, fill a network from it, save one in ours.

A directory is one of
  keras_bert  `keras_bert.json`, `vocab.txt`, `model.safetensors`: ours, what a run directory holds;
  hf          `config.json` (2019: `bert_config.json`), `model.safetensors` or `pytorch_model.bin`, whole or in shards,
              `vocab.txt` or `tokenizer.json`: Hugging Face;
  tf1         `bert_config.json`, `*.ckpt.index`, `*.ckpt.data-*`, `vocab.txt`: google-research/bert;
  garden      the same files, written by `tf.train.Checkpoint`: TensorFlow Model Garden;
  keras_hub   a preset: `config.json`, `metadata.json`, `model.weights.h5`, `assets/`; or one file `.keras` of a task.

Loading is strict: every weight of the model is filled from the checkpoint, or is named as new; every tensor
of the checkpoint is used, or is named as unused. Weights are data: nothing is ever unpickled or executed.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from keras_bert import rules
from keras_bert.checkpoints import formats, hub
from keras_bert.checkpoints.formats import FORMATS, extra, ours
from keras_bert.checkpoints.formats.containers import WEIGHTS_FILE
from keras_bert.checkpoints.formats.ours import CONFIG_FILE
from keras_bert.checkpoints.formats.settings import VOCABULARY_FILE, Contents, some
from keras_bert.checkpoints.formats.table import Entry, Stored, entries, same, transpose
from keras_bert.config import (
    TASKS,
    DataConfig,
    EncoderConfig,
    HeadConfig,
    TextConfig,
    VectorConfig,
    WindowConfig,
    dumps,
    from_dict,
    tasks_with,
    to_dict,
)
from keras_bert.errors import CheckpointError, ConfigError
from keras_bert.files import replacing, write_atomic
from keras_bert.model.shapes import with_pretraining

UNUSED = {
    "hf": r"^(embeddings\.(position_ids|token_type_ids)|cls\..*|classifier\..*|qa_outputs\..*|dense_\d+\..*)$",
    "tf1": rf"^({FORMATS['tf1'].ignored}|cls/.*|output_(weights|bias))$",
    "garden": rf"^({FORMATS['garden'].ignored}|(masked_lm|classification_heads)/.*)$",
    "keras_hub": rf"^({FORMATS['keras_hub'].ignored}|task/.*)$",
}
"""Tensors that a checkpoint may hold beyond the encoder and the pooler; any other is an error."""

OF_PRETRAINING = "^head/(pooler|masked_lm|next_sentence)/"
"""The same of a run of ours, where its head has none of these parts: a converted checkpoint keeps them."""


@dataclass(frozen=True)
class Report:
    """What loading did: weights filled, weights left at their initial values, tensors left unused.

    `anew` are weights that the checkpoint has but that were to start from random values all the same. `remarks` are
    lines on the directory.
    """

    filled: tuple[str, ...]
    new: tuple[str, ...]
    unused: tuple[str, ...]
    anew: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{len(self.filled)} weights loaded"]
        if self.new:
            lines.append(f"new, with random initial values: {', '.join(self.new)}")
        if self.anew:
            layers = sorted({"/".join(path.split("/")[:2]) for path in self.anew})
            lines.append(f"in the checkpoint but started anew: {', '.join(layers)}")
        if self.unused:
            lines.append(f"in the checkpoint but not used: {some(self.unused)}")
        return "; ".join([*lines, *self.remarks])


@dataclass(frozen=True)
class Checkpoint:
    """A directory that was looked at: its format, its configurations, its vocabulary; weights on demand.

    `head` and `data` are those of a run of ours, or of any checkpoint that `as_trained` gave. What the files of another
    format say of a head is in `contents`.

    Attributes:
        published: whether it is of another format, and its head is used as it is.
    """

    path: Path
    format: str
    contents: Contents
    published: bool = False

    @property
    def encoder(self) -> EncoderConfig:
        """Of the model."""
        return self.contents.encoder

    @property
    def text(self) -> TextConfig:
        """How its text becomes ids."""
        return self.contents.text

    @property
    def vocabulary(self) -> list[str]:
        """Its word pieces in the order of their ids."""
        return self.contents.vocabulary

    @property
    def head(self) -> HeadConfig | None:
        """What it was fine-tuned for."""
        return self.contents.head if self.published or self.format == "keras_bert" else None

    @property
    def vectors(self) -> VectorConfig | None:
        """How it makes the vector of a text, where its files say that."""
        return self.contents.head if isinstance(self.contents.head, VectorConfig) else None

    @property
    def data(self) -> DataConfig | None:
        """The columns of the files that it was fine-tuned on."""
        return self.contents.data if self.published or self.format == "keras_bert" else None


def open_checkpoint(path: str | Path, keep_keys: Sequence[str] = ()) -> Checkpoint:
    """Find out what a directory holds, read its configuration and vocabulary, and check that they agree.

    Args:
        path: a directory, or the name of a published model; see `hub`.
        keep_keys: unknown keys of its settings that are known to leave the arithmetic alone.

    Raises:
        CheckpointError: the directory is absent, holds none of the formats, or its parts do not fit; or its settings
            have keys that may change what the model computes.
        DataError: the vocabulary file is broken.
    """
    folder = hub.resolve(path)
    found, contents = formats.read(folder, keep_keys=keep_keys)
    return Checkpoint(folder, found.name, contents)


def as_trained(
    checkpoint: Checkpoint, task: str = "", labels: Sequence[str] = (), data: DataConfig | None = None
) -> Checkpoint:
    """A checkpoint with the head that it has, to be used as it is.

    Args:
        task: what the head is for, where the files of another format do not say.
        labels: names of its logits in their order, instead of those that the files give.
        data: the columns that it reads, instead of those that the files say.

    Raises:
        CheckpointError: it has no trained head, or one that we do not have.
        ConfigError: a run of ours was asked for another task or other labels; or so many labels do not fit the head.
    """
    path, contents = checkpoint.path, checkpoint.contents
    if checkpoint.format == "keras_bert":
        if labels or (contents.head is not None and task not in ("", contents.head.task)):
            flag = "labels" if labels else "task"
            raise ConfigError(f"{path}: has a {flag} of its own; --{flag} is for published checkpoints that do not say")
    else:
        contents = with_head(checkpoint, task, tuple(labels))
    if contents.head is None:
        raise CheckpointError(f"{path}: {contents.head_problem or _no_head(checkpoint)}")
    columns = data or contents.data
    check_segments(contents.encoder, contents.head, columns or DataConfig())
    return dataclasses.replace(
        checkpoint, contents=dataclasses.replace(contents, data=columns), published=checkpoint.format != "keras_bert"
    )


def _no_head(checkpoint: Checkpoint) -> str:
    pretrained = "|".join(tasks_with(pretrained=True))
    return (
        f"a {checkpoint.format} checkpoint has no trained head; fine-tune it first (`keras-bert finetune`, or "
        f"Bert.from_checkpoint and fit), or ask it with --task={pretrained}; a head that its files do not name needs "
        "its task, such as --task=classify --labels=no,yes"
    )


def with_head(checkpoint: Checkpoint, task: str, labels: tuple[str, ...]) -> Contents:
    """What the files of another format say, with the head that they have; `task` and `labels` where they do not say.

    Raises:
        CheckpointError: there are no weights of a head for the task.
        ConfigError: the head is for another task, or has another number of logits.
    """
    kind, contents = FORMATS[checkpoint.format], checkpoint.contents
    found = kind.tensors(checkpoint.path, formats.names_of(kind, contents))
    head = kind.head(contents, found)
    contents = dataclasses.replace(contents, head=head)
    if not labels and (not task or (head is not None and task == head.task)):
        return contents
    task = task or (head.task if head is not None else "")
    said = checkpoint.contents.head
    if said is not None and TASKS[task].architecture != said.architecture:
        raise ConfigError(f"{checkpoint.path}: has a head for {said.task}; --task={task} is for files that do not say")
    named = kind.table("head/logits/bias", task) if task else None
    if named is None or named[0] not in found:
        what = f"no {named[0]}, which a head for {task} has" if named else _no_head(checkpoint)
        raise CheckpointError(f"{checkpoint.path}: has {what}")
    count = found[named[0]].shape[0]
    if labels and len(labels) != count:
        raise ConfigError(f"{len(labels)} labels, but the head of {checkpoint.path} has {count} logits")
    usual = head.logit_labels if head is not None and len(head.logit_labels) == count else ()
    names = labels or usual or tuple(f"LABEL_{i}" for i in range(count))
    values, order = TASKS[task].of_logits(names)
    fields = {"task": task, "dropout": contents.encoder.hidden_dropout if head is None else head.dropout}
    return dataclasses.replace(contents, head=from_dict(HeadConfig, fields | values), logit_order=order)


def check_segments(encoder: EncoderConfig, head: HeadConfig, data: DataConfig) -> None:
    """Raises ConfigError where a row has more texts than the model has types of segments."""
    texts = 1 + bool(data.text_pair_column) + (head.reads == "choices")
    if head.reads != "each" and texts > encoder.num_segments:
        raise ConfigError(
            f"{texts} texts in a row, but the model has {encoder.num_segments} of the segments that tell them apart; "
            f"grow its table first: `keras-bert convert --num_segments={texts}`"
        )


def _load_whole(network: Any, checkpoint: Checkpoint, drop: str) -> Report:
    """Fill all weights of `network`, those of the head too."""
    matched = formats.match(checkpoint.path, FORMATS[checkpoint.format], checkpoint.contents, drop)
    weights = formats.read_weights(checkpoint.path, matched)
    wanted = {v.path: v for v in network.weights if "seed_generator" not in v.path}
    for path, variable in wanted.items():
        variable.assign(weights[path])
    unused = [*(path for path in weights if path not in wanted), *(name for name, _ in matched.listed)]
    return Report(tuple(wanted), (), tuple(unused), remarks=checkpoint.contents.remarks)


def load(network: Any, checkpoint: Checkpoint, skip: rules.Rules[bool] = ((".*", False),), drop: str = "") -> Report:
    """Fill the weights of `network` (`network.Network`) from `checkpoint`.

    Args:
        skip: which weights are not read, by weight path; they count as new.
        drop: pattern of names of tensors that have no place and may be left out.

    Returns:
        The report; only weights of the head may be new, and only where the checkpoint has none for them.

    Raises:
        CheckpointError: a weight of the encoder is missing, a shape differs, or a tensor is unknown. The
            first five differences are listed, and no weight has been changed.
        ConfigError: `drop` is no pattern.
    """
    if checkpoint.published:
        return _load_whole(network, checkpoint, drop)
    leaving = formats.pattern(drop)
    wanted = {v.path: v for v in network.weights if "seed_generator" not in v.path}
    rows, tensors = _rows(checkpoint, wanted, network.head.config)
    filled, new, problems = {}, [], []
    for path, variable in wanted.items():
        if rules.match(skip, path):
            new.append(path)
            continue
        entry = rows.get(path)
        stored = tensors.pop(entry.name, None) if entry else None
        if entry is None or stored is None:
            if path.startswith("head/") and checkpoint.head is None:
                new.append(path)
            else:
                problems.append(f"no tensor for {path}" + (f" ({entry.name})" if entry else ""))
            continue
        shape, arriving = tuple(variable.shape), _arriving(entry, stored)
        if arriving != shape:
            problems.append(f"{path} is {shape} but {entry.name} is {arriving}")
            continue
        value = entry.transform(stored.read(), shape)
        if value.dtype.kind != "f":
            problems.append(f"{entry.name} holds {value.dtype}, not floating-point numbers")
        elif not np.isfinite(value).all():
            problems.append(f"{entry.name} holds values that are not numbers")
        else:
            filled[path] = value
    for name, path in FORMATS[checkpoint.format].copies.items():
        if "head/masked_lm/bias" in filled and name in tensors and path in filled:
            copied = tensors[name]
            if copied.shape != filled[path].shape or not np.array_equal(copied.read(), filled[path]):
                problems.append(f"{name} differs from {rows[path].name}, to which it should be tied")
    unused, known = sorted(tensors), {entry.name for entry in rows.values()}
    may_stay = "^head/" if checkpoint.head is None else OF_PRETRAINING
    may_stay = UNUSED.get(checkpoint.format, may_stay)
    homeless = [n for n in unused if n not in known and not re.search(may_stay, n) and not leaving.fullmatch(n)]
    remedy = formats.dropping(homeless) if homeless and not problems else ""
    problems += [f"tensor {name} has no place in the model" for name in homeless]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(f"{checkpoint.path}: does not fit the model: {'; '.join(problems[:5])}{more}{remedy}")
    for path, value in filled.items():
        wanted[path].assign(value)
    return Report(tuple(filled), tuple(new), tuple(unused), remarks=checkpoint.contents.remarks)


def _rows(
    checkpoint: Checkpoint, wanted: Mapping[str, Any], head: HeadConfig
) -> tuple[dict[str, Entry], dict[str, Stored]]:
    """Our path -> where the weight is, and all tensors of the checkpoint, values unread."""
    kind, contents = FORMATS[checkpoint.format], checkpoint.contents
    tensors = kind.tensors(checkpoint.path, formats.names_of(kind, contents))
    if checkpoint.format == "keras_bert":
        shapes = {path: tuple(v.shape) for path, v in wanted.items()}
        return {path: Entry(path, shape, path, shape, same) for path, shape in shapes.items()}, tensors
    # Not the last layer of a head: it is always new, labels are the user's.
    rows = {
        entry.path: entry
        for part in with_pretraining(contents.encoder)
        if part not in contents.absent
        for entry in entries(kind.table, part, contents.encoder, None)
    }
    rows |= {entry.path: entry for entry in entries(kind.table, "dense", contents.encoder, head)}
    for part in contents.absent:  # zeros, there because the format must have them
        for entry in entries(kind.table, part, contents.encoder, None):
            tensors.pop(entry.name, None)
    for name, stored in extra.tensors(checkpoint.path).items():
        if name in wanted and not name.startswith("head/logits/"):
            shape = tuple(wanted[name].shape)
            rows[name], tensors[name] = Entry(name, shape, name, shape, same), stored
    return rows, tensors


def _arriving(entry: Entry, stored: Stored) -> tuple[int, ...]:
    """The shape that a tensor has with us."""
    if stored.shape == entry.stored:
        return entry.shape
    return stored.shape[::-1] if entry.transform is transpose else stored.shape


def save(
    path: str | Path,
    network: Any,
    vocabulary: list[str],
    text: TextConfig,
    data: DataConfig | None,
    notes: Mapping[str, Any] | None = None,
    windows: WindowConfig | None = None,
) -> None:
    """Write `network` and all that is needed to use it into the directory `path`, in our format.

    Each file is written under a temporary name and renamed, the configuration last: a directory that has
    one is complete.

    Raises:
        CheckpointError: the directory cannot be written.
    """
    path = Path(path)
    weights = {v.path: np.ascontiguousarray(v.numpy()) for v in network.weights if "seed_generator" not in v.path}
    head, notes = network.head.config, dict(notes or {})
    contents = Contents(network.encoder.config, text, vocabulary, head, data, windows, notes)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with replacing(path / WEIGHTS_FILE) as temporary:
            save_file(weights, temporary)
        write_atomic(path / VOCABULARY_FILE, "\n".join(vocabulary) + "\n")
        write_atomic(path / CONFIG_FILE, dumps(ours.settings(contents)))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be written ({error})") from error


def text_config(checkpoint: Checkpoint, given: Mapping[str, Any]) -> TextConfig:
    """The checkpoint's text settings, with the fields in `given` that are not None instead of its own.

    Raises:
        ConfigError: there is no such field, its value is out of range, or the model has too few positions.
    """
    wanted = {name: value for name, value in given.items() if value is not None}
    text, encoder = from_dict(TextConfig, to_dict(checkpoint.text) | wanted), checkpoint.encoder
    if encoder.positions == "absolute" and text.max_seq_length > encoder.max_positions:
        raise ConfigError(
            f"max_seq_length {text.max_seq_length} is more than the {encoder.max_positions} positions of the model"
        )
    return text
