"""One format of checkpoint to another: nothing is left at random, nothing is lost without being named.

Every weight of the target comes from a tensor of the source, every tensor of the source is used or listed, and every
setting is carried; what the target's own files have no place for goes into `keras_bert_extra.*` beside them. If
anything does not fit, nothing is written.
"""

import contextlib
import dataclasses
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from keras_bert.checkpoints import formats, hub
from keras_bert.checkpoints.checkpoints import Checkpoint, open_checkpoint, with_head
from keras_bert.checkpoints.formats import FORMATS, Format, Match, extra
from keras_bert.checkpoints.formats.settings import Contents, some
from keras_bert.checkpoints.formats.table import entries
from keras_bert.config import DataConfig, EncoderConfig, choose
from keras_bert.errors import CheckpointError, ConfigError, DataError
from keras_bert.model.shapes import of_objective, parts, shapes, with_pretraining

Weights = dict[str, np.ndarray]
MOST_ROWS = 2**16
"""Of a grown table of positions or segments."""


@dataclass(frozen=True)
class Changes:
    """What a conversion changes on the way; None and empty leave all as it is.

    Attributes:
        activation: instead of what the source's format means by its name: "gelu" (exact) or "gelu_tanh".
        do_lower_case: instead of what the source says or its vocabulary shows.
        num_segments: rows of the segment table. New ones are copies of the last: a further text is first taken as the
            second one was, and training tells them apart.
        max_positions: rows of the position table.
        extend_positions: where the new ones come from, a name of `EXTENSIONS`.
        task, labels: what the head of the source is for, and the names of its logits in their order, where its files
            do not say.
        text_pair_column: column of the second text, if the head reads pairs and the files do not say so.
        drop: pattern of names of tensors in the source that may be left out.
        keep_keys: unknown keys of the source's settings that are known to leave the arithmetic alone.
    """

    activation: str | None = None
    do_lower_case: bool | None = None
    num_segments: int | None = None
    max_positions: int | None = None
    extend_positions: str = "tile"
    task: str = ""
    labels: Sequence[str] = ()
    text_pair_column: str = ""
    drop: str = ""
    keep_keys: Sequence[str] = ()


@dataclass(frozen=True)
class Conversion:
    """What was converted.

    Attributes:
        rows: `(our path, shape, source name, transform, target name, transform)` of every weight.
        listed: `(tensor of the source, why it was not used)`.
        remarks: whatever else a reader should know, a line each.
    """

    source: str
    target: str
    rows: tuple[tuple[str, tuple[int, ...], str, str, str, str], ...]
    listed: tuple[tuple[str, str], ...]
    remarks: tuple[str, ...]
    verified: bool

    def __str__(self) -> str:
        head = ("ours", "shape", self.source, "transform", self.target, "transform")
        table = [head, *((row[0], "x".join(map(str, row[1])), *row[2:]) for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in table]
        for why in dict.fromkeys(why for _, why in self.listed):
            names = [name for name, reason in self.listed if reason == why]
            lines.append(f"not used, {why} ({len(names)}): {some(names)}")
        lines += [f"note: {remark}" for remark in self.remarks]
        done = "; all bits equal after reading back, and it loads" if self.verified else ""
        return "\n".join([*lines, f"{self.source} -> {self.target}: {len(self.rows)} weights{done}"])


def convert(
    input_dir: str | Path,
    output_dir: str | Path,
    to_format: str,
    from_format: str | None = None,
    changes: Changes | None = None,
    verify: bool = False,
) -> Conversion:
    """Write the checkpoint in `input_dir` to `output_dir` in another format, or the same one, complete or not at all.

    Args:
        input_dir: a directory, or the name of a published checkpoint, see `hub`.
        to_format, from_format: names in `formats.FORMATS`; None finds out.
        verify: read everything back, compare it bit by bit, and load it as `Bert` does, before it takes its name.

    Raises:
        CheckpointError: the source is broken or does not fit, has unknown keys, or has what the target cannot hold; or
            the target cannot be written.
        ConfigError: an option cannot be used, or `output_dir` is not empty.
    """
    changes = changes or Changes()
    target_path = Path(output_dir)
    target = choose(FORMATS, to_format, "format")
    if from_format is not None:
        choose(FORMATS, from_format, "format")
    check_target(target_path)
    source_path = hub.resolve(input_dir)
    source, matched = match(source_path, from_format, changes)
    contents, weights = change(matched.contents, formats.read_weights(source_path, matched), changes)
    check_held(source_path, target, contents)
    check_model(source_path, contents, weights)
    with in_one_piece(target_path) as folder:
        remarks = write(folder, target, contents, weights)
        again = read_back(folder, target_path, target, contents, weights, verify)
        if verify:
            check_loads(folder, target_path, carried(contents))
    return Conversion(
        source.name,
        target.name,
        tuple(rows(matched, again)),
        tuple(matched.listed),
        (*contents.remarks, *not_carried(source_path, source, matched), *remarks),
        verify,
    )


def match(path: Path, from_format: str | None, changes: Changes) -> tuple[Format, Match]:
    """Open the source and match its tensors with our weights.

    Raises:
        CheckpointError: see `formats.read` and `formats.match`.
    """
    try:
        source, contents = formats.read(path, from_format, changes.keep_keys)
    except DataError as error:
        raise CheckpointError(str(error)) from error
    contents = with_said(Checkpoint(path, source.name, contents), changes)
    return source, formats.match(path, source, contents, changes.drop)


def with_said(found: Checkpoint, changes: Changes) -> Contents:
    """What a source says, with what the caller says of its head.

    Raises:
        CheckpointError: see `checkpoints.with_head`.
        ConfigError: likewise; or the source says it itself.
    """
    contents = found.contents
    if changes.task or changes.labels:
        if found.head is not None:
            raise ConfigError(
                f"{found.path}: has a task and labels of its own; the flags are for published checkpoints"
            )
        contents = with_head(found, changes.task, tuple(changes.labels))
    if not changes.text_pair_column:
        return contents
    if contents.head is None or contents.head.single:
        raise ConfigError(f"{found.path}: has no head that reads pairs; leave text_pair_column empty")
    columns = dataclasses.replace(contents.data or DataConfig(), text_pair_column=changes.text_pair_column)
    return dataclasses.replace(contents, data=columns)


# === Longer tables ===


def last_again(table: np.ndarray, rows: int) -> np.ndarray:
    """`[n, D]` -> `[rows, D]`: new rows are copies of the last."""
    return table[np.minimum(np.arange(rows), len(table) - 1)]


def tile(table: np.ndarray, rows: int) -> np.ndarray:
    """Rows repeat from the first on (Longformer, Beltagy et al. 2020, https://arxiv.org/abs/2004.05150).

    Neighbours keep the relation they were trained with everywhere but at the seams.
    """
    return table[np.arange(rows) % len(table)]


def hierarchical(table: np.ndarray, rows: int, alpha: float = 0.4) -> np.ndarray:
    """Row i of n is made of those of i // n and i % n (Su, https://kexue.fm/archives/7947); the first n stay.

    Raises:
        ConfigError: more than n * n rows.
    """
    n, i = len(table), np.arange(rows)
    if rows > n * n:
        raise ConfigError(f"{n} positions give at most {n * n}")
    base = (table.astype(np.float64) - alpha * table[:1]) / (1 - alpha)
    made = alpha * base[i // n] + (1 - alpha) * base[i % n]
    return np.concatenate([table, made[n:]])


def interpolate(table: np.ndarray, rows: int) -> np.ndarray:
    """Rows in between, on straight lines: the first and the last stay, and all others move closer together."""
    places = np.arange(rows) * ((len(table) - 1) / max(rows - 1, 1))
    low = np.floor(places).astype(int)
    high, share = np.minimum(low + 1, len(table) - 1), (places - low)[:, None]
    return table[low] * (1 - share) + table[high] * share


EXTENSIONS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "tile": tile,
    "hierarchical": hierarchical,
    "interpolate": interpolate,
}
"""Where the new rows of a longer table of positions come from: `(table [n, D], rows)` -> `[rows, D]`."""


def change(contents: Contents, weights: Weights, changes: Changes) -> tuple[Contents, Weights]:
    """Apply what the caller asked for.

    Raises:
        ConfigError: a table would shrink, or an activation is unknown.
    """
    encoder, weights, remarks = contents.encoder, dict(weights), []
    if changes.activation is not None:
        from keras_bert.model.kernels import ACTIVATIONS  # brings Keras, which nothing else here needs

        choose(ACTIVATIONS, changes.activation, "activation")
        encoder = dataclasses.replace(encoder, activation=changes.activation)
    extension = choose(EXTENSIONS, changes.extend_positions, "extension of positions")
    for field, path, extended, how in (
        ("num_segments", "encoder/segments/embeddings", last_again, "are copies of the last row"),
        ("max_positions", "encoder/positions/embeddings", extension, f"made as {changes.extend_positions} says"),
    ):
        wanted, there = getattr(changes, field), getattr(encoder, field)
        if wanted is None or wanted == there:
            continue
        if wanted < there:
            raise ConfigError(f"{field} {wanted} is less than the {there} of the model; rows are added, never cut")
        if wanted > MOST_ROWS:
            raise ConfigError(f"{field} {wanted} is more than {MOST_ROWS}")
        if path not in weights:
            raise ConfigError(f"{field}: the model has no such table")
        encoder = dataclasses.replace(encoder, **{field: wanted})
        try:
            weights[path] = np.ascontiguousarray(extended(weights[path], wanted).astype(np.float32))
        except ConfigError as error:
            raise ConfigError(f"{field} {wanted}: {error}") from error
        remarks.append(f"{path}: {there} rows grown to {wanted}, {how}")
    text = contents.text
    if changes.do_lower_case is not None:
        text = dataclasses.replace(text, do_lower_case=changes.do_lower_case)
    remarks = [*contents.remarks, *remarks]
    return dataclasses.replace(contents, encoder=encoder, text=text, remarks=tuple(remarks)), weights


EVERYWHERE = (
    *("vocab_size", "num_layers", "num_heads", "hidden_dim", "intermediate_dim", "max_positions", "num_segments"),
    *("activation", "hidden_dropout", "attention_dropout", "layer_norm_epsilon", "initializer_range", "pad_token_id"),
)
"""Settings of an encoder that every format has."""
USUAL: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(EncoderConfig) if f.name not in EVERYWHERE}
"""The other settings, and the values with which a model is a BERT, which every format can hold."""
USUAL_OF_HEADS: dict[str, Any] = {"layers": "last", "head_lstm": 0, "pooling": ""}


def check_held(path: Path, target: Format, contents: Contents) -> None:
    """Check that a format can hold a model: others than ours have one kind of encoder, and heads over its last layer.

    A head without weights is not in the way: what it reads is a setting, and the format holds the encoder.

    Raises:
        CheckpointError: it cannot; the settings that it has no place for are named.
    """
    if target is formats.ours.FORMAT:
        return
    encoder, head = contents.encoder, contents.head
    unusual = [f"an encoder with {line}" for line in unusual_settings(encoder, USUAL)]
    if head is not None and {"logits", "readout"} & parts(encoder, head).keys():
        unusual += [f"a head with {line}" for line in unusual_settings(head, USUAL_OF_HEADS)]
    if unusual:
        names = formats.ours.FORMAT.name
        raise CheckpointError(f"{path}: {target.name} cannot hold {' and '.join(unusual)}; only {names} can")


def unusual_settings(config: Any, usual: dict[str, Any]) -> list[str]:
    """The settings that are not as usual."""
    different = {name: getattr(config, name, value) for name, value in usual.items()}
    return [f"{name} {value!r}" for name, value in different.items() if value != usual[name]]


def check_model(path: Path, contents: Contents, weights: Weights) -> None:
    """Check that a network can be built of the settings and filled with the weights.

    Raises:
        CheckpointError: it cannot.
    """
    encoder, head = contents.encoder, contents.head
    known = {p: shape for part in with_pretraining(encoder, head).values() for p, shape in part.items()}
    wrong = [p for p, shape in shapes(encoder, head).items() if p not in weights or weights[p].shape != shape]
    known |= {p: value.shape for p, value in weights.items() if head is None and of_objective(p)}
    wrong += [p for p, value in weights.items() if p not in known or value.shape != known[p]]
    if wrong:
        raise CheckpointError(f"{path}: the model needs other weights: {some(dict.fromkeys(wrong), 5)}")
    from keras_bert.model.kernels import ACTIVATIONS
    from keras_bert.model.masks import MASKS
    from keras_bert.tasks.network import HEADS  # brings Keras

    try:
        choose(MASKS, encoder.attention_mask, "attention mask")
        choose(ACTIVATIONS, encoder.activation, "activation")
        if head is not None:
            choose(HEADS, head.task, "task")(encoder, head)
    except ConfigError as error:
        raise CheckpointError(f"{path}: no network can be made of it: {error}") from error


def check_loads(folder: Path, name: Path, keep_keys: Sequence[str]) -> None:
    """Load what was written as a user will: a run of ours with its head, anything else as an encoder.

    Raises:
        CheckpointError: it does not load.
    """
    from keras_bert.bert import Bert

    try:
        if open_checkpoint(folder, keep_keys).head is None:
            Bert.from_checkpoint(folder, task="embed", keep_keys=keep_keys)
        else:
            Bert.load(folder)
    except (CheckpointError, ConfigError, DataError) as error:
        reason = str(error).replace(str(folder), str(name))
        raise CheckpointError(f"{name}: does not load: {reason}; nothing was written") from error


def carried(contents: Contents) -> list[str]:
    """The keys that are written back into the files of their formats; unknown ones among them were accepted."""
    return [key for files in contents.origins.values() for keys in files.values() for key in keys]


def write(folder: Path, target: Format, contents: Contents, weights: Weights) -> list[str]:
    """Write into an empty directory; returns what a reader should know of it.

    Raises:
        CheckpointError: it cannot be written.
    """
    there = parts_of(contents, weights)
    known = with_pretraining(contents.encoder, contents.head)
    task = "" if contents.head is None else contents.head.task
    held = (path for part in target.holds(contents, there) for path in known[part])
    inside = {path for path in held if target.table(path, task)}
    if target is formats.ours.FORMAT:
        inside |= weights.keys()
    beside = {path: value for path, value in weights.items() if path not in inside}
    absent = sorted(target.needs - there)
    zeros = {
        entry.path: np.zeros(entry.shape, np.float32)
        for part in absent
        for entry in entries(target.table, part, contents.encoder, contents.head)
    }
    try:
        target.write(folder, contents, {path: weights[path] for path in weights if path in inside} | zeros)
        if target is formats.ours.FORMAT:
            return []
        unsaid = extra.unsaid(contents, target.read(folder))
        extra.write(folder, unsaid | ({"absent": absent} if absent else {}), beside)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: cannot be written ({error})") from error
    remarks = limits(target, contents, unsaid)
    if beside:
        remarks.append(f"{target.name} has no place for {some(beside)}: kept in {extra.EXTRA_WEIGHTS_FILE}")
    return [*remarks, *(f"{part}: zeros, the model has none" for part in absent)]


def limits(target: Format, contents: Contents, unsaid: dict[str, Any]) -> list[str]:
    """What programs of the target's own will not know, and where they compute something else."""
    lines = []
    for name, value in target.fixed.items():
        wanted = getattr(contents.encoder, name)
        if wanted != value:
            lines.append(f"{name} is {wanted!r} here; programs of {target.name} compute {value!r} all the same")
    kept = [f"{part}.{key}" for part in extra.FIELDS for key in unsaid.get(part, {})]
    kept += [name for name in (*extra.WHOLE, "notes") if name in unsaid]
    kept += [
        f"{file}: {', '.join(keys)}" for files in unsaid.get("origins", {}).values() for file, keys in files.items()
    ]
    if kept:
        lines.append(f"{target.name} has no place for {'; '.join(kept)}: kept in {extra.EXTRA_FILE}")
    return lines


def parts_of(contents: Contents, weights: Weights) -> set[str]:
    """The parts that a model has."""
    known = with_pretraining(contents.encoder, contents.head)
    return {part for part, paths in known.items() if weights.keys() & paths.keys()}


def read_back(
    folder: Path,
    name: Path,
    target: Format,
    contents: Contents,
    weights: Weights,
    every_bit: bool,
) -> Match:
    """Open what was written and compare its settings, vocabulary and names, and where asked all bits of the weights.

    Raises:
        CheckpointError: anything differs.
    """
    found, again = formats.read(folder, keep_keys=carried(contents))
    matched = formats.match(folder, found, again)
    fields = ("encoder", "text", "vocabulary", "head", "windows", "notes")
    differing = [field for field in fields if getattr(matched.contents, field) != getattr(contents, field)]
    if contents.head is not None and (matched.contents.data or DataConfig()) != (contents.data or DataConfig()):
        differing.append("data")
    differing += sorted(weights.keys() ^ matched.rows.keys())
    if every_bit and not differing:
        values = formats.read_weights(folder, matched)
        differing = [path for path in weights if weights[path].tobytes() != values[path].tobytes()]
    if found is not target or differing:
        raise CheckpointError(f"{name}: reads back differently: {some(differing, 5)}; nothing was written")
    return matched


def rows(matched: Match, again: Match) -> Iterator[tuple[str, tuple[int, ...], str, str, str, str]]:
    """The lines of the report: of each weight where it came from, where it went, and how."""
    for path, (entry, stored) in matched.rows.items():
        to, there = again.rows[path]
        how = entry.transform.name + (f", {stored.dtype}" if stored.dtype not in ("F32", "float32") else "")
        yield path, to.shape, stored.key, how, there.key, to.transform.name


def not_carried(path: Path, source: Format, matched: Match) -> list[str]:
    """Files of the source that a conversion does not look at."""
    own = {extra.EXTRA_FILE, extra.EXTRA_WEIGHTS_FILE}
    names = sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file())
    left = [name for name in names if name not in own and not re.fullmatch(source.files, name)]
    return [f"not carried: {some(left)}"] if left else []


def check_target(path: Path) -> None:
    """Raises ConfigError where a directory cannot take the result; nothing is touched."""
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path}: is a file; name a directory")
    if path.exists() and any(path.iterdir()):
        raise ConfigError(f"{path}: is not empty; name another directory")


@contextlib.contextmanager
def in_one_piece(path: Path) -> Any:
    """A temporary directory beside `path` that takes its name when the block ends well, and vanishes otherwise.

    Raises:
        CheckpointError: it cannot be made or renamed.
    """
    path = Path(os.path.abspath(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror})") from error
    try:
        yield folder
        try:
            for file in (p for p in folder.rglob("*") if p.is_file()):
                with open(file, "rb+") as stream:
                    os.fsync(stream.fileno())
                os.chmod(file, 0o644)
            os.chmod(folder, 0o755)
            if path.exists():
                path.rmdir()
            os.rename(folder, path)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
