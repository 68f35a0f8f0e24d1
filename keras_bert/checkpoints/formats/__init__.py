"""The formats of checkpoints: for each a name table that is read in both directions, and its files.

A new format is one module with a `Format` and one row in `FORMATS`.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_bert.checkpoints.formats import extra, garden, hf, keras_hub, ours, tf1
from keras_bert.checkpoints.formats.format import Format
from keras_bert.checkpoints.formats.settings import Contents, some
from keras_bert.checkpoints.formats.table import Entry, Stored, Transform, all_entries, entries, same, shared_prefix
from keras_bert.config import TASKS, choose
from keras_bert.errors import CheckpointError, ConfigError
from keras_bert.model.shapes import Shape, of_objective, parts, with_pretraining

FORMATS: dict[str, Format] = {f.name: f for f in (ours.FORMAT, tf1.FORMAT, garden.FORMAT, keras_hub.FORMAT, hf.FORMAT)}
"""In the order in which a directory is looked at."""


def detect(path: Path, name: str | None = None) -> Format:
    """The format of a directory; `name` asks for one.

    Raises:
        CheckpointError: the directory holds none of the formats, or not the one asked for.
    """
    here = all_here(path)
    if not here:
        files = sorted(p.name for p in path.iterdir())
        marks = ", ".join(dict.fromkeys(f.mark for f in FORMATS.values()))
        folders = [p for p in sorted(path.iterdir()) if p.is_dir()]
        deeper = [p.name for p in folders if any(f.is_complete(p) for f in all_here(p))]
        deeper += [name for name in files if name.endswith(".keras")]
        hint = f"; name what is in it: {some(str(path / name) for name in deeper)}" if deeper else ""
        raise CheckpointError(f"{path}: holds no checkpoint: none of {marks} among {some(files)}{hint}")
    if name is not None and choose(FORMATS, name, "format") not in here:
        raise CheckpointError(f"{path}: holds a {here[0].name} checkpoint, not a {name} one")
    return here[0] if name is None else FORMATS[name]


def all_here(path: Path) -> list[Format]:
    """The formats that a directory holds, those with their weights first."""
    return sorted((f for f in FORMATS.values() if f.is_here(path)), key=lambda f: not f.is_complete(path))


def read(path: Path, name: str | None = None, keep_keys: Sequence[str] = ()) -> tuple[Format, Contents]:
    """The format of a directory and what it says beside the weights.

    Args:
        keep_keys: unknown keys of the settings that are known to leave the arithmetic alone.

    Raises:
        CheckpointError: see `detect`; or its parts are broken, do not fit, or have keys that are unknown.
        DataError: the vocabulary is broken.
    """
    found = detect(path, name)
    contents = extra.apply(path, found.read(path))
    unknown = {key: key.rpartition(": ")[2] for key in contents.unknown}
    left = [key for key, last in unknown.items() if last not in keep_keys]
    if left:
        names = ",".join(unknown[key] for key in left)
        raise CheckpointError(
            f"{path}: unknown keys, which may change what the model computes: {some(left, 5)}; "
            f"--keep_keys={names} if they do not (keep_keys= in Python)"
        )
    others = [other.name for other in all_here(path) if other is not found and other.is_complete(path)]
    if others:
        remark = f"the directory holds {found.name} and {' and '.join(others)}: {found.name} is read"
        contents = dataclasses.replace(contents, remarks=(remark, *contents.remarks))
    return found, contents


@dataclass(frozen=True)
class Match:
    """The tensors of a directory, matched with our weights; nothing has been read yet.

    Attributes:
        contents: with the head that the tensors show.
        rows: our path -> where the weight is and what it holds.
        listed: `(tensor, why it is not used)`.
        copies: tensor -> our path whose weight it must equal.
    """

    format: Format
    contents: Contents
    rows: dict[str, tuple[Entry, Stored]]
    listed: list[tuple[str, str]]
    copies: dict[str, tuple[str, Stored]]


def match(path: Path, found: Format, contents: Contents, leave_out: str = "") -> Match:
    """Match every tensor with a weight, and every weight with a tensor.

    Args:
        leave_out: pattern of names of tensors that may stay unused.

    Raises:
        CheckpointError: a weight has no tensor or one of another shape, or a tensor has no place; both lists.
        ConfigError: `leave_out` is no pattern.
    """
    leaving = pattern(leave_out)
    try:
        parts(contents.encoder, contents.head)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    stored = found.tensors(path, names_of(found, contents))
    contents = dataclasses.replace(contents, head=found.head(contents, stored))
    beside = {} if found is ours.FORMAT else extra.tensors(path)
    rows: dict[str, tuple[Entry, Stored]] = {}
    listed = [(value.key, "left out as asked") for name, value in stored.items() if leaving.fullmatch(name)]
    rest = {name: value for name, value in stored.items() if not leaving.fullmatch(name)}
    logits = {entry.name for entry in entries(found.table, "logits", contents.encoder, contents.head)}
    if logits & stored.keys() and not logits & rest.keys():
        contents = dataclasses.replace(contents, head=None, data=None)  # its weights were left out as asked
    required = parts(contents.encoder, contents.head)
    unfilled: list[str] = []
    for part, weights in with_pretraining(contents.encoder, contents.head).items():
        wanted, source = _where(part, found, contents, rest, beside)
        if part in contents.absent:
            listed += [(entry.name, f"zeros of a {part} that the model does not have") for entry in wanted]
            for entry in wanted:
                source.pop(entry.name, None)
            wanted = []
        if part in required and not wanted and weights:
            unfilled.append(f"{next(iter(weights))} (of the {_owner(part, contents)} that the settings name)")
        for entry in wanted:
            value = source.pop(entry.name, None)
            if value is None or (reason := _misfit(entry, value)):
                unfilled.append(f"{entry.path} ({entry.name if value is None else reason})")
            else:
                rows[entry.path] = (entry, value)
    if contents.head is None:  # what pretraining learned besides keeps its names and shapes
        source = rest if found is ours.FORMAT else beside
        for name in filter(of_objective, list(source)):
            rows[name] = Entry(name, source[name].shape, name, source[name].shape, same), source.pop(name)
    copies = {name: (path_, rest.pop(name)) for name, path_ in found.copies.items() if name in rest and path_ in rows}
    listed += [(v.key, "no weights of the model") for name, v in rest.items() if re.fullmatch(found.ignored, name)]
    no_place = sorted(name for name in (*rest, *beside) if not re.fullmatch(found.ignored, name))
    if no_place and contents.head_problem:
        raise CheckpointError(f"{path}: {contents.head_problem}")
    if unfilled or no_place:
        remedy = "" if unfilled else dropping(no_place)
        named = (found.table("head/logits/bias", task) for task in TASKS)
        if contents.head is None and {one[0] for one in named if one} & set(no_place):
            remedy = f"; say with --task what the head is for{remedy}"
        raise CheckpointError(f"{path}: does not fit: {'; '.join(_both_lists(unfilled, no_place))}{remedy}")
    return Match(found, contents, rows, listed, copies)


def pattern(text: str) -> re.Pattern[str]:
    """The pattern of names of tensors that may stay unused; an empty text matches none.

    Raises:
        ConfigError: it is not a regular expression.
    """
    try:
        return re.compile(text or "$^")
    except re.error as error:
        raise ConfigError(f"{text!r} is not a regular expression ({error})") from error


def dropping(names: Iterable[str]) -> str:
    """The remedy where tensors have no place: the flag that leaves all of them out."""
    names = list(names)
    shared = shared_prefix(names)
    begins = [shared] if shared else [re.split(r"(?<=[./])", name, maxsplit=1)[0] for name in names]
    said = "|".join(dict.fromkeys(re.escape(begin) + ("" if begin in names else ".*") for begin in begins))
    return f"; if the model does not need them, leave them out with --drop='{said}' (drop= in Python)"


def _owner(part: str, contents: Contents) -> str:
    return part if contents.head is None or part == "encoder" else f"head for {contents.head.task}"


def _where(
    part: str, found: Format, contents: Contents, stored: dict[str, Stored], beside: dict[str, Stored]
) -> tuple[list[Entry], dict[str, Stored]]:
    """The weights of a part that the model has, and the tensors they are among: the format's, or ours beside them."""
    own = list(entries(ours.FORMAT.table, part, contents.encoder, contents.head))
    if any(entry.name in beside for entry in own):
        return own, beside
    theirs = list(entries(found.table, part, contents.encoder, contents.head))
    if part == "logits" and contents.logit_order:
        theirs = [dataclasses.replace(e, transform=_reordered(e.transform, contents.logit_order)) for e in theirs]
    return (theirs if part == "encoder" or any(entry.name in stored for entry in theirs) else []), stored


def _reordered(transform: Transform, order: tuple[int, ...]) -> Transform:
    """From their order of logits to ours."""

    def step(x: np.ndarray, shape: Shape) -> np.ndarray:
        return transform(x, shape)[..., list(order)]

    return dataclasses.replace(transform, name=f"{transform.name}, tags in our order", step=step)


def _misfit(entry: Entry, value: Stored) -> str:
    """Why a tensor cannot be this weight; empty where it can."""
    if value.shape != entry.stored:
        return f"{entry.name} is {value.shape}, not {entry.stored}"
    if not value.dtype.lower().startswith(("f", "bf")):
        return f"{entry.name} holds {value.dtype}, not floating-point numbers"
    return ""


def names_of(found: Format, contents: Contents) -> Iterator[str]:
    """All names that a format has for the weights of such a model; to ask for them takes Keras."""
    yield from (entry.name for entry in all_entries(found.table, contents.encoder, contents.head))


def _both_lists(unfilled: list[str], no_place: list[str]) -> Iterable[str]:
    for what, names in (("not filled", unfilled), ("no place for", no_place)):
        if names:
            yield f"{len(names)} {what}: {some(names, 5)}"


def read_weights(path: Path, matched: Match) -> dict[str, np.ndarray]:
    """The weights under our paths, C-contiguous float32.

    Raises:
        CheckpointError: values cannot be read or are not numbers; or a copy of a tied weight differs from it.
    """
    weights = {}
    for ours_path, (entry, stored) in matched.rows.items():
        value = np.ascontiguousarray(entry.transform(stored.read(), entry.shape), np.float32)
        if not np.isfinite(value).all():
            raise CheckpointError(f"{path}: {entry.name} holds values that are not numbers")
        weights[ours_path] = value
    for name, (ours_path, stored) in matched.copies.items():
        if stored.shape != weights[ours_path].shape or not np.array_equal(stored.read(), weights[ours_path]):
            raise CheckpointError(
                f"{path}: {name} differs from {matched.rows[ours_path][0].name}, to which it should be tied; "
                f"leave it out with --drop={re.escape(name)} if it is not needed"
            )
        matched.listed.append((name, f"equal to {matched.rows[ours_path][0].name}"))
    return weights
