"""Which TensorFlow Serving releases can load a SavedModel, by the ops and attributes of its graph.

A server knows only the ops it was built with; a graph with any other op fails to load. The table is `server_ops.txt`,
which names its source.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2

from keras_bert.errors import CheckpointError

REMARKS = re.compile(r".*\.debug_name$")
"""Attributes that do not affect the result; releases that do not know them ignore them."""


@dataclass(frozen=True)
class Ops:
    """The ops of a graph, sorted, and the oldest server release that has all of them, such as "2.12"."""

    names: tuple[str, ...]
    oldest_server: str


@cache
def table() -> dict[str, int]:
    """Maps an op, or an `Op.attribute` added later than its op, to the y of the first release 2.y that has it."""
    found: dict[str, int] = {}
    release = 0
    for line in resources.files("keras_bert.serving").joinpath("server_ops.txt").read_text("utf-8").splitlines():
        if line.startswith("# "):
            release = int(line.rpartition("2.")[2])
        elif release:
            found |= dict.fromkeys(line.split(), release)
    return found


def meta_graph(folder: Path) -> Any:
    """The graph with the tag `serve` of the SavedModel in `folder`.

    Raises:
        CheckpointError: there is no such graph, or the file cannot be read.
    """
    path, content = folder / "saved_model.pb", saved_model_pb2.SavedModel()
    try:
        content.ParseFromString(path.read_bytes())
    except (OSError, DecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); export the model again") from error
    for graph in content.meta_graphs:
        if "serve" in graph.meta_info_def.tags:
            return graph
    raise CheckpointError(f"{path}: has no graph for serving; export the model again")


def nodes(graph_def: Any) -> Iterator[Any]:
    """The nodes of a graph and of its functions, without function calls."""
    functions = {f.signature.name for f in graph_def.library.function}
    for part in (graph_def.node, *(f.node_def for f in graph_def.library.function)):
        yield from (node for node in part if node.op not in functions)


def check(folder: Path) -> Ops:
    """Look up every op of the SavedModel in `folder`.

    Raises:
        CheckpointError: no release in the table has one of its ops, or a node must be compiled by XLA, which servers
            refuse.
    """
    known, names, oldest = table(), set(), 0
    for node in nodes(meta_graph(folder).graph_def):
        if node.attr["_XlaMustCompile"].b:
            raise CheckpointError(f"{node.name}: must be compiled by XLA, which TensorFlow Serving does not do")
        if node.op not in known:
            first, last = min(known.values()), max(known.values())
            raise CheckpointError(f"{node.name}: no TensorFlow Serving from 2.{first} to 2.{last} has the op {node.op}")
        names.add(node.op)
        later = (f"{node.op}.{attribute}" for attribute in node.attr)
        oldest = max(oldest, known[node.op], *(known.get(name, 0) for name in later if not REMARKS.match(name)))
    return Ops(tuple(sorted(names)), f"2.{oldest}")
