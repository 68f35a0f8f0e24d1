"""Text, encoder and head become one SavedModel that takes strings and gives answers.

`serve` is the whole of it: text -> features -> taps -> logits -> answer. `Bert.predict` runs that function in
process; `export` writes it as the signature `serving_default`.
"""

import contextlib
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import tensorflow as tf

from keras_bert.checkpoints import sha256
from keras_bert.config import HeadConfig, dumps, to_dict
from keras_bert.errors import CheckpointError, ConfigError
from keras_bert.heads import Network

MANIFEST = "keras_bert.json"
DTYPES = (tf.float32, tf.int32, tf.string, tf.bool)


def serve(text_layer: Any, network: Network, text: Any, text_pair: Any = None) -> dict[str, tf.Tensor]:
    """Strings `[B]` to answers: from raw text to what a client gets, in one line of calls.

    Returns:
        `label` and `score` `[B]`, `labels`, `scores` and `class_ids` `[B, n]` from the best to the worst
        (classify); `labels`, `scores`, `class_ids` and `active` `[B, n]` in the order of the labels
        (multilabel); `score` `[B]` (regress); always `num_tokens` int32 `[B]` and `truncated` bool `[B]`.
        Floats are float32. No width depends on the other texts of the batch.
    """
    features = text_layer(text, text_pair)
    answer = network.answer(features)
    answer = {name: tf.convert_to_tensor(value) for name, value in answer.items()}
    answer |= _names(answer, network.head.config)
    return answer | {name: features[name] for name in ("num_tokens", "truncated")}


def _names(answer: dict[str, tf.Tensor], head: HeadConfig) -> dict[str, tf.Tensor]:
    """Label values beside their ids."""
    values = tf.constant(list(head.labels), tf.string)
    return {
        label: tf.gather(values, answer[ids])
        for ids, label in (("class_id", "label"), ("class_ids", "labels"))
        if ids in answer
    }


def signature(text_layer: Any, network: Network, pair: bool, names: tuple[str, ...] = ()) -> Any:
    """`serve` as a `tf.function` of `text`, or of `text` and `text_pair`; `names` selects outputs."""
    hidden = ("probabilities", "class_id")

    def answer(text: Any, text_pair: Any = None) -> dict[str, tf.Tensor]:
        found = serve(text_layer, network, text, text_pair)
        return {k: v for k, v in found.items() if (k in names if names else k not in hidden)}

    strings = [tf.TensorSpec([None], tf.string, name=n) for n in ("text", "text_pair")[: 1 + pair]]
    if pair:
        return tf.function(lambda text, text_pair: answer(text, text_pair), strings, autograph=False)
    return tf.function(lambda text: answer(text), strings, autograph=False)


def export(text_layer: Any, network: Network, pair: bool, export_dir: str | Path, version: int | None = None) -> Path:
    """Write a SavedModel under `export_dir/VERSION`, as TensorFlow Serving expects it.

    The model is written under a temporary name and renamed at the end, so a server that watches
    `export_dir` never sees half of it. Signature: `serving_default`, see `serve`.

    Args:
        version: a positive number that is not there yet; None takes the one after the largest.

    Returns:
        The version directory.

    Raises:
        ConfigError: the version is not a positive 64-bit number or exists, or `export_dir` is a file.
        CheckpointError: the directory cannot be written.
    """
    base = target = Path(export_dir)
    module = tf.Module()
    # Raw variables, not the Keras model: with the model as a child, the graph gets two handles for each
    # variable and TensorFlow 1 loaders, among them TensorFlow Serving, restore only one of them.
    module.weights = [v.value for v in network.weights if "seed_generator" not in v.path]
    module.serving_default = signature(text_layer, network, pair)
    temporary = None
    try:
        target = base / str(next_version(base) if version is None else check_version(base, version))
        base.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=base, prefix=f".tmp-{target.name}-"))
        tf.saved_model.save(module, str(temporary), signatures={"serving_default": module.serving_default})
        extra = temporary / "assets.extra"
        extra.mkdir(exist_ok=True)
        (extra / MANIFEST).write_text(dumps(manifest(text_layer, network, temporary)), "utf-8")
        temporary.chmod(0o755)
        os.rename(temporary, target)
    except (OSError, tf.errors.OpError) as error:
        raise CheckpointError(f"{target}: cannot be written ({str(error).splitlines()[0]})") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                shutil.rmtree(temporary)
    return target


def manifest(text_layer: Any, network: Network, folder: Path) -> dict[str, Any]:
    """What the SavedModel is, for people and programs: configurations, versions, files with their hashes."""
    import keras
    import tensorflow_text

    from keras_bert import __version__

    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {
        "schema": 1,
        "keras_bert": __version__,
        "tensorflow": tf.__version__,
        "tensorflow_text": tensorflow_text.__version__,
        "keras": keras.__version__,
        "head": to_dict(network.head.config),
        "text": to_dict(text_layer.config),
        "encoder": to_dict(network.encoder.config),
        "files": {str(p.relative_to(folder)): sha256(p) for p in files},
    }


def versions(base: Path) -> list[int]:
    """The version numbers under `base`, sorted."""
    if not base.is_dir():
        return []
    return sorted(int(p.name) for p in base.iterdir() if p.is_dir() and re.fullmatch("[0-9]+", p.name))


def next_version(base: Path) -> int:
    """One after the largest version under `base`; 1 in an empty or new directory."""
    if base.exists() and not base.is_dir():
        raise ConfigError(f"{base}: is a file; export_dir must be a directory")
    return max(versions(base), default=0) + 1


def check_version(base: Path, version: int) -> int:
    """`version`, if a server can load it from `base` and it is not there yet."""
    next_version(base)
    if not 0 < version < 2**63:
        raise ConfigError(f"version must be from 1 to {2**63 - 1}, got {version}")
    if version in versions(base):
        raise ConfigError(f"{base / str(version)}: exists; give another --version, or none for the next one")
    return version
