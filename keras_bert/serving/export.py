"""A model written as a SavedModel that takes strings, tried before it is published."""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import tensorflow as tf

from keras_bert.config import HeadConfig, VectorConfig, WindowConfig, choose, to_dict
from keras_bert.errors import CheckpointError
from keras_bert.serving import golden, manifest, releases, warmup
from keras_bert.serving.probe import PROBE
from keras_bert.serving.requests import Trial
from keras_bert.serving.served import Served
from keras_bert.serving.signatures import checked, signatures_of
from keras_bert.serving.versions import publishing
from keras_bert.tasks.network import Network

# === Export ===

MANY_LABELS = 1000
"""Models with more have one golden request a signature, so that the manifest stays small."""


def export(
    text_layer: Any,
    network: Network,
    pair: bool,
    export_dir: str | Path,
    version: int | None = None,
    windows: WindowConfig | None = None,
    precision: str = "",
    about: Mapping[str, Any] | None = None,
    others: Sequence[Network] = (),
    embedding_types: Sequence[str] = ("float",),
) -> Path:
    """Write a SavedModel under `export_dir/VERSION`, as TensorFlow Serving expects it.

    The model is written under a temporary name, its ops are looked up, it is loaded again and asked, also what it must
    refuse (`probe.py`), and only then is it renamed: a server that watches `export_dir` never sees half of it.

    Args:
        version: a positive number that is not there yet; None takes the one after the largest.
        windows: how long texts are read.
        precision: "float32", or "bfloat16" weights and arithmetic; "" takes the network's own. Outputs are float32.
        about: what the manifest and the model card say besides, such as `license`, `base_model`, `description`.
        others: further models, that answer together with `network`.
        embedding_types: forms in which vectors are answered, names of `EMBEDDING_TYPES`.

    Returns:
        The version directory.

    Raises:
        ConfigError: the version is not a positive 64-bit number or exists, `export_dir` is a file, or the windows or
            embedding types do not suit the model.
        CheckpointError: the directory cannot be written, no server has an op of the graph, or the loaded model answers
            otherwise than this one, or does not refuse requests of wrong shapes.
    """
    base = Path(export_dir)
    network, *others = (in_precision(one, precision) for one in (network, *others))
    served = Served(text_layer, network, pair, windows, others, embedding_types)
    functions = signatures_of(served)
    module = tf.Module()
    module.weights, module.features = served.weights, checked(served.features, served.texts)
    module.network = checked(served.network, served.ids)
    PROBE.start()
    with publishing(base, version) as (folder, target), ThreadPoolExecutor(1) as beside:
        try:
            tf.saved_model.save(module, str(folder), signatures=functions)
        except tf.errors.OpError as error:
            raise CheckpointError(f"{target}: cannot be written ({str(error).splitlines()[0]})") from error
        ops_used, described = releases.check(folder), manifest.described(folder)
        trial = Trial(served.text_layer, pair, described)
        refused = beside.submit(PROBE.refuses, folder, list(trial.wrong()))
        model = tf.saved_model.load(str(folder))
        ask = golden.loaded(model)
        few = 1 if len(served.head.config.labels) > MANY_LABELS else None
        cases = [golden.case(name, inputs, ask(name, inputs)) for name, inputs in trial.golden(few)]
        tolerance = golden.TOLERANCES[network.compute_dtype]
        said = {"golden": [c for c in cases if c["signature"] == "serving_default"], "signatures": described}
        golden.replay(said | {"tolerance": tolerance}, golden.loaded(SimpleNamespace(signatures=functions)))
        requests = trial.warmup(served.windows.max_windows)
        warmup.replay(model.signatures, requests)
        refused.result()
        warmup.write(folder, base.absolute().name, requests)
        facts = {
            "pair": pair,
            "head": to_dict(served.head.config),
            "text": to_dict(text_layer.config),
            "encoder": to_dict(network.encoder.config),
            "windows": to_dict(served.windows),
            "precision": network.compute_dtype,
            "models": len(served.networks),
            "parameters": sum(math.prod(w.shape) for w in served.weights),
            "vocabulary": manifest.vocabulary(text_layer.vocabulary),
            "embedding": about_embedding(served.head.config) if "embedding" in described else None,
            "signatures": described,
            "tolerance": tolerance,
            "example": trial.example,
            "golden": cases,
            "warmup_records": len(requests),
            "about": dict(about or {}),
        }
        manifest.write(folder, base.absolute().name, facts, ops_used)
    return target


def about_embedding(head: HeadConfig) -> dict[str, Any]:
    """How the signature `embedding` makes its vector."""
    if not isinstance(head, VectorConfig):
        return {"pooling": "mean", "normalized": True}
    said = {"pooling": "+".join(head.poolings), "layers": head.layers, "normalized": head.normalize}
    names = ("dense_units", "dimensions", "prompt", "query_prompt", "document_prompt")
    return said | {name: value for name in names if (value := getattr(head, name))}


def in_precision(network: Network, precision: str) -> Network:
    """The same weights in a network that keeps and computes in "float32" or "bfloat16"; "" leaves it as it is.

    Weights that are bfloat16 already are read at half the cost, and are not cast at every call.
    """
    policy = {"": network.dtype_policy.name, "float32": "float32", "bfloat16": "bfloat16"}
    wanted = choose(policy, precision, "precision")
    if wanted == network.dtype_policy.name:
        return network
    other = Network(network.encoder.config, network.head.config, dtype=wanted)
    other.set_weights(network.get_weights())
    return other
