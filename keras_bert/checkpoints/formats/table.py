"""Our weights under the names of another format, and back.

Which weights there are, and their shapes, is in `shapes`. A format's table says how it names and stores each. In names
`{i}` is the number of the block, and `{_i}` the same as Keras writes it: nothing for block 0, then `_1`, `_2`.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from keras_bert.config import EncoderConfig, HeadConfig
from keras_bert.model.shapes import Shape, with_pretraining
from keras_bert.rules import Rules, match


@dataclass(frozen=True)
class Transform:
    """How a format stores a weight. The same step goes both ways: it is its own inverse, given the shape wanted.

    Args:
        name: for reports.
        stored: `(shape of ours, attention heads)` -> the shape of theirs.
        step: `(array, wanted shape)` -> array.
    """

    name: str
    stored: Callable[[Shape, int], Shape]
    step: Callable[[np.ndarray, Shape], np.ndarray]

    def __call__(self, x: np.ndarray, shape: Shape = ()) -> np.ndarray:
        return self.step(x, shape)


def _reshape(x: np.ndarray, shape: Shape) -> np.ndarray:
    return x.reshape(shape)


same = Transform("same", lambda shape, _: shape, lambda x, _: x)
transpose = Transform("transpose", lambda shape, _: shape[::-1], lambda x, _: x.T)
split_last = Transform("split heads", lambda shape, n: (*shape[:-1], n, shape[-1] // n), _reshape)
split_first = Transform("split heads", lambda shape, n: (n, shape[0] // n, *shape[1:]), _reshape)


# === Names ===

Named = tuple[str, Transform]
Table = Callable[[str, str], Named | None]
"""`(our path, task)` -> the name and the transform of a weight; None where the format has no place for it."""


@dataclass(frozen=True)
class Names:
    """The table of a format that has the same layers as we, under other names.

    Attributes:
        layers: our layer -> theirs.
        ends: our weight of a layer -> the end of their name.
        transforms: rules over our paths.
        others: our path -> the weights whose names do not follow from these.
        tasks: task -> `others` of that task.
    """

    layers: Mapping[str, str]
    ends: Mapping[str, str]
    transforms: Rules[Transform] = ((".*", same),)
    others: Mapping[str, Named] = field(default_factory=dict)
    tasks: Mapping[str, Mapping[str, Named]] = field(default_factory=dict)

    def __call__(self, path: str, task: str = "") -> Named | None:
        named = self.tasks.get(task, {}).get(path) or self.others.get(path)
        if named is not None:
            return named
        number = re.search(r"/block_(\d+)/", path)
        layer, _, weight = re.sub(r"/block_\d+/", "/block_{i}/", path).rpartition("/")
        if layer not in self.layers:
            return None
        i = number[1] if number else ""
        theirs = self.layers[layer].replace("{i}", i).replace("{_i}", f"_{i}" if i != "0" else "")
        return theirs + self.ends[weight], match(self.transforms, path)


BLOCK = "encoder/block_{i}"
_BLOCK = "encoder/layer_{i}"
ORIGINAL = {
    "encoder/tokens": "embeddings/word_embeddings",
    "encoder/positions": "embeddings/position_embeddings",
    "encoder/segments": "embeddings/token_type_embeddings",
    "encoder/norm": "embeddings/LayerNorm",
    f"{BLOCK}/attention/query": f"{_BLOCK}/attention/self/query",
    f"{BLOCK}/attention/key": f"{_BLOCK}/attention/self/key",
    f"{BLOCK}/attention/value": f"{_BLOCK}/attention/self/value",
    f"{BLOCK}/attention/output": f"{_BLOCK}/attention/output/dense",
    f"{BLOCK}/attention_norm": f"{_BLOCK}/attention/output/LayerNorm",
    f"{BLOCK}/feed_forward/inner": f"{_BLOCK}/intermediate/dense",
    f"{BLOCK}/feed_forward/outer": f"{_BLOCK}/output/dense",
    f"{BLOCK}/feed_forward_norm": f"{_BLOCK}/output/LayerNorm",
    "head/pooler/dense": "pooler/dense",
    "head/masked_lm/transform": "cls/predictions/transform/dense",
    "head/masked_lm/norm": "cls/predictions/transform/LayerNorm",
}
"""Our layers as google-research/bert names them; Hugging Face took the names over."""

SPLIT_HEADS: Rules[Transform] = (
    (r"attention/(query|key|value)/", split_last),
    (r"attention/output/kernel", split_first),
    (r".*", same),
)
"""How Keras' attention layers store what are plain matrices elsewhere."""


def shared_prefix(names: Iterable[str]) -> str:
    """What all names begin with, up to a dot or a slash, such as `module.` of a model from several devices."""
    ordered = sorted(names)
    pairs = zip(ordered[0], ordered[-1], strict=False) if len(ordered) > 1 else ()
    until = next((i for i, (a, b) in enumerate(pairs) if a != b), 0)
    return ordered[0][: max(ordered[0].rfind(mark, 0, until) for mark in "./") + 1] if ordered else ""


# === The weights of one model ===


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its shape and type are known before its values are read. `key` is its name there."""

    shape: Shape
    dtype: str
    read: Callable[[], np.ndarray]
    key: str


@dataclass(frozen=True)
class Entry:
    """One weight of one model: where we keep it and where a format does."""

    path: str
    shape: Shape
    name: str
    stored: Shape
    transform: Transform


def entries(table: Table, part: str, encoder: EncoderConfig, head: HeadConfig | None) -> Iterator[Entry]:
    """The weights of a part; none where the model has no such part, or the format no place for it."""
    task = "" if head is None else head.task
    found = []
    for path, shape in with_pretraining(encoder, head).get(part, {}).items():
        named = table(path, task)
        if named is None:
            return
        name, transform = named
        found.append(Entry(path, shape, name, transform.stored(shape, encoder.num_heads), transform))
    yield from found


def all_entries(table: Table, encoder: EncoderConfig, head: HeadConfig | None) -> Iterator[Entry]:
    """The weights of all parts that a checkpoint of such a model can hold."""
    for part in with_pretraining(encoder, head):
        yield from entries(table, part, encoder, head)


def to_theirs(table: Table, weights: Mapping[str, np.ndarray], contents: Any) -> dict[str, np.ndarray]:
    """Weights under our paths -> the tensors of a format, C-contiguous float32."""
    return {
        entry.name: np.ascontiguousarray(entry.transform(weights[entry.path], entry.stored))
        for entry in all_entries(table, contents.encoder, contents.head)
        if entry.path in weights
    }
