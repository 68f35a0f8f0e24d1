"""Our weights and their shapes, and the rows that lead from them to the names of another format and back.

A row is `(our path, their name, transform)`. In names `{i}` is the number of the block, and `{_i}` the same as Keras
writes it: nothing for block 0, then `_1`, `_2`. Shapes are written in letters: V vocabulary, P positions, G segments,
D hidden, F inner, N heads, H head size, C logits.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_bert.config import EncoderConfig, HeadConfig
from keras_bert.rules import Rules, match

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Transform:
    """How a format stores a weight. The same step goes both ways: it is its own inverse, given the shape wanted.

    Args:
        name: for reports.
        letters: the shape of ours -> the shape of theirs, in letters.
        step: `(array, wanted shape)` -> array.
    """

    name: str
    letters: Callable[[str], str]
    step: Callable[[np.ndarray, Shape], np.ndarray]

    def __call__(self, x: np.ndarray, shape: Shape = ()) -> np.ndarray:
        return self.step(x, shape)


def _reshape(x: np.ndarray, shape: Shape) -> np.ndarray:
    return x.reshape(shape)


same = Transform("same", lambda ours: ours, lambda x, _: x)
transpose = Transform("transpose", lambda ours: ours[::-1], lambda x, _: x.T)
split_last = Transform("split heads", lambda ours: f"{ours[:-1]}NH", _reshape)
split_first = Transform("split heads", lambda ours: f"NH{ours[1:]}", _reshape)

Row = tuple[str, str, Transform]
Table = Mapping[str, list[Row]]
"""The rows of each part of a model; a part is stored as a whole or not at all."""


def _dense(path: str, shape: str) -> dict[str, str]:
    return {f"{path}/kernel": shape, f"{path}/bias": shape[-1]}


def _norm(path: str) -> dict[str, str]:
    return {f"{path}/gamma": "D", f"{path}/beta": "D"}


BLOCK = "encoder/block_{i}"
PARTS: dict[str, dict[str, str]] = {
    "encoder": {
        "encoder/tokens/embeddings": "VD",
        "encoder/positions/embeddings": "PD",
        "encoder/segments/embeddings": "GD",
        **_norm("encoder/norm"),
        **_dense(f"{BLOCK}/attention/query", "DD"),
        **_dense(f"{BLOCK}/attention/key", "DD"),
        **_dense(f"{BLOCK}/attention/value", "DD"),
        **_dense(f"{BLOCK}/attention/output", "DD"),
        **_norm(f"{BLOCK}/attention_norm"),
        **_dense(f"{BLOCK}/feed_forward/inner", "DF"),
        **_dense(f"{BLOCK}/feed_forward/outer", "FD"),
        **_norm(f"{BLOCK}/feed_forward_norm"),
    },
    "pooler": _dense("head/pooler/dense", "DD"),
    "masked_lm": {
        **_dense("head/masked_lm/transform", "DD"),
        **_norm("head/masked_lm/norm"),
        "head/masked_lm/bias": "V",
    },
    "next_sentence": _dense("head/next_sentence", "D2"),
    "logits": _dense("head/logits", "DC"),
}
"""Path -> shape of every weight that a checkpoint of any format can hold, by part. The masked language model's last
product is with the token table itself, so it has no weight of its own but the bias."""

SHAPES = {path: shape for part in PARTS.values() for path, shape in part.items()}
WIDTHS = {"span": 2, "choice": 1, "regress": 1}
"""Logits of the tasks whose labels do not count them."""
WITHOUT_LOGITS = ("fill_mask", "generate")
"""Tasks whose head is that of the masked language model, and nothing else."""


def sizes(encoder: EncoderConfig, head: HeadConfig | None) -> dict[str, int]:
    """What the letters of a shape stand for."""
    return {
        "V": encoder.vocab_size,
        "P": encoder.max_positions,
        "G": encoder.num_segments,
        "D": encoder.hidden_dim,
        "F": encoder.intermediate_dim,
        "N": encoder.num_heads,
        "H": encoder.hidden_dim // encoder.num_heads,
        "C": 0 if head is None else WIDTHS.get(head.task, len(head.labels)),
        "2": 2,
    }


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
    """The weights of a part, blocks spelled out; "logits" has rows of its own for some tasks, under the task's name."""
    if part == "logits" and head is not None and head.task in WITHOUT_LOGITS:
        return
    values = sizes(encoder, head)
    rows = table.get(head.task if part == "logits" and head else part, table.get(part, []))
    for ours, theirs, transform in rows:
        if ours == "encoder/positions/embeddings" and encoder.positions != "absolute":
            continue
        letters = SHAPES[ours]
        shape = tuple(values[letter] for letter in letters)
        stored = tuple(values[letter] for letter in transform.letters(letters))
        for i in range(encoder.num_layers if "{i}" in ours else 1):
            name = theirs.replace("{i}", str(i)).replace("{_i}", f"_{i}" if i else "")
            yield Entry(ours.replace("{i}", str(i)), shape, name, stored, transform)


def rows(
    layers: Mapping[str, str], weights: Mapping[str, str], transforms: Rules[Transform] = ((".*", same),)
) -> dict[str, list[Row]]:
    """The table of a format that has the same layers as we, under other names.

    Args:
        layers: our layer -> theirs; a part without layers is no part of the table.
        weights: our weight of a layer -> the end of their name.
        transforms: rules over our paths.
    """
    table: dict[str, list[Row]] = {}
    for part, paths in PARTS.items():
        for path in paths:
            layer, _, weight = path.rpartition("/")
            if layer in layers:
                row = path, layers[layer] + weights[weight], match(transforms, path)
                table.setdefault(part, []).append(row)
    return table


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


def to_theirs(table: Table, weights: Mapping[str, np.ndarray], contents: Any) -> dict[str, np.ndarray]:
    """Weights under our paths -> the tensors of a format, C-contiguous float32."""
    return {
        entry.name: np.ascontiguousarray(entry.transform(weights[entry.path], entry.stored))
        for part in PARTS
        for entry in entries(table, part, contents.encoder, contents.head)
        if entry.path in weights
    }
