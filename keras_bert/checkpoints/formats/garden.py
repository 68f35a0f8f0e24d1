"""TensorFlow Model Garden: `bert_config.json`, an object-based `bert_model.ckpt-N.*`, `vocab.txt`.

The checkpoint is that of `tf.train.Checkpoint` over a BertEncoderV2 (`encoder=` or `model=`) or a BertPretrainerV2
(`model=`, `**model.checkpoint_items`, or both). Objects are found by what they are made of, so the words under which
they were saved do not matter. The older layout with names such as `layer_with_weights-0` is not read.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_bert.checkpoints.formats.containers import (
    Bundle,
    Objects,
    find_bundle,
    has_bundle,
    is_object_based,
    write_objects,
)
from keras_bert.checkpoints.formats.format import Format
from keras_bert.checkpoints.formats.settings import Contents, checked
from keras_bert.checkpoints.formats.table import BLOCK, SPLIT_HEADS, Names, Stored, to_theirs
from keras_bert.checkpoints.formats.tf1 import CONFIG_FILE, FILES, FIXED, PREFIX, read_settings, write_settings
from keras_bert.errors import CheckpointError

POOLER, OWN_POOLER = "encoder/_pooler_layer", "next_sentence.pooler_dense"


_BLOCK = "encoder/_transformer_layers/{i}"
TABLE = Names(
    {
        "encoder/tokens": "encoder/_embedding_layer",
        "encoder/positions": "encoder/_position_embedding_layer",
        "encoder/segments": "encoder/_type_embedding_layer",
        "encoder/norm": "encoder/_embedding_norm_layer",
        f"{BLOCK}/attention/query": f"{_BLOCK}/_attention_layer/_query_dense",
        f"{BLOCK}/attention/key": f"{_BLOCK}/_attention_layer/_key_dense",
        f"{BLOCK}/attention/value": f"{_BLOCK}/_attention_layer/_value_dense",
        f"{BLOCK}/attention/output": f"{_BLOCK}/_attention_layer/_output_dense",
        f"{BLOCK}/attention_norm": f"{_BLOCK}/_attention_layer_norm",
        f"{BLOCK}/feed_forward/inner": f"{_BLOCK}/_intermediate_dense",
        f"{BLOCK}/feed_forward/outer": f"{_BLOCK}/_output_dense",
        f"{BLOCK}/feed_forward_norm": f"{_BLOCK}/_output_layer_norm",
        "head/pooler/dense": POOLER,
        "head/masked_lm": "masked_lm",
        "head/masked_lm/transform": "masked_lm/dense",
        "head/masked_lm/norm": "masked_lm/layer_norm",
        "head/next_sentence": "classification_heads/0/out_proj",
    },
    {name: f"/{name}" for name in ("kernel", "bias", "gamma", "beta", "embeddings")},
    SPLIT_HEADS,
)


def read(path: Path) -> Contents:
    """What the directory says beside the weights."""
    return checked(path, read_settings(path, "garden"))


def tensors(path: Path, names: Iterable[str]) -> dict[str, Stored]:
    """The variables: those of the table under its names, all others under their keys.

    Raises:
        CheckpointError: the checkpoint is broken, or holds no encoder, or several.
    """
    bundle = Bundle(find_bundle(path))
    objects = bundle.objects()
    anchors = {
        "encoder": _one(objects, bundle, "_embedding_layer", "_transformer_layers"),
        "masked_lm": _one(objects, bundle, "dense", "layer_norm", "embedding_table"),
        "classification_heads/0": _one(objects, bundle, "dense", "out_proj"),
    }
    if anchors["encoder"] is None:
        raise CheckpointError(
            f"{bundle.prefix}: holds no BertEncoderV2; older layouts (layer_with_weights-0 and so on) are not read"
        )
    own = _own_pooler(objects, anchors["classification_heads/0"])
    found: dict[str, Stored] = {}
    used = set()
    for name in names:
        word = next((word for word in anchors if name.startswith(f"{word}/")), "")
        node = anchors.get(word)
        key = None if node is None else objects.key(node, name.removeprefix(f"{word}/"))
        if key is not None:
            found[name] = bundle.stored(key)
            used.add(key)
    for name in [f"{POOLER}/{part}" for part in ("kernel", "bias")]:
        key = None if own is None else objects.key(own, name.rpartition("/")[2])
        if key is not None:  # the heads have a pooler of their own: it is the one that was trained
            if name in found and not np.array_equal(found[name].read(), bundle.value(key)):
                found[f"{name} (not the pooler of the head)"] = found[name]
            found[name] = bundle.stored(key)
            used.add(key)
    return found | {key: bundle.stored(key) for key in bundle.shapes if key not in used}


def _one(objects: Objects, bundle: Bundle, *children: str) -> int | None:
    nodes = objects.with_children(*children)
    if len(nodes) > 1:
        raise CheckpointError(f"{bundle.prefix}: holds {len(nodes)} objects with {' and '.join(children)}; which one?")
    return nodes[0] if nodes else None


def _own_pooler(objects: Objects, head: int | None) -> int | None:
    """The dense layer in front of a head, which `checkpoint_items` saves without the head."""
    if head is not None:
        return objects.children[head]["dense"]
    return next((children[OWN_POOLER] for children in objects.children if OWN_POOLER in children), None)


def write(path: Path, contents: Contents, weights: Mapping[str, np.ndarray]) -> None:
    """Write a directory whose checkpoint restores into a BertEncoderV2 and a BertPretrainerV2."""
    tree: dict[str, Any] = {}
    for name, value in to_theirs(TABLE, weights, contents).items():
        *folders, last = name.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = value
    encoder = tree["encoder"]
    root: dict[str, Any] = {"encoder": encoder, "model": encoder}
    if "masked_lm" in tree or "classification_heads" in tree:
        root["model"] = {"encoder_network": encoder, **tree}
        del root["model"]["encoder"]
    if "masked_lm" in tree:
        root["masked_lm"] = masked_lm = tree["masked_lm"]
        masked_lm["embedding_table"] = encoder["_embedding_layer"]["embeddings"]
        masked_lm["output_bias/bias"] = masked_lm["bias"]
    if "classification_heads" in tree:
        own = {name: value.copy() for name, value in encoder["_pooler_layer"].items()}
        root[OWN_POOLER] = tree["classification_heads"]["0"]["dense"] = own
    write_objects(path / PREFIX, root)
    write_settings(path, contents, "garden")


FORMAT = Format(
    name="garden",
    mark=CONFIG_FILE,
    is_here=lambda path: (path / CONFIG_FILE).exists() and is_object_based(path),
    is_complete=has_bundle,
    table=TABLE,
    read=read,
    tensors=tensors,
    write=write,
    ignored=r"(save_counter|global_step|step|optimizer)/.*|_CHECKPOINTABLE_OBJECT_GRAPH|.*/\.OPTIMIZER_SLOT/.*"
    r"|.* \(not the pooler of the head\)",
    files=FILES,
    holds=lambda _, parts: parts & {"encoder", "pooler", "masked_lm", "next_sentence"},
    needs=frozenset({"pooler"}),
    fixed=FIXED,
)
