"""Values that an earlier version computed, and whether this machine has to give the same bits.

Matrix products round differently on other processors and in other builds of TensorFlow. So values are compared bit
for bit where `environment()` is that in which they were recorded, and within a tolerance elsewhere; integers, strings
and what is drawn at random are equal everywhere.
"""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np

FLAGS = ("avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile", "amx_bf16", "amx_int8")
"""Features of a processor that choose how its kernels add up."""
NEAR = 1e-5
NEAR_AFTER_TRAINING = 1e-3
"""AdamW divides by the size of a gradient, so a rounding of a small one is an update of another size."""


def environment() -> dict[str, Any]:
    """What decides about the last bits of a value, without importing TensorFlow."""
    cpu = Path("/proc/cpuinfo").read_text("utf-8") if Path("/proc/cpuinfo").exists() else ""
    fields = dict(line.replace("\t", "").split(":", 1) for line in cpu.splitlines() if ":" in line)
    return {
        "tensorflow": importlib.metadata.version("tensorflow"),
        "keras": importlib.metadata.version("keras"),
        "machine": platform.machine(),
        "vendor": fields.get("vendor_id", "").strip(),
        "flags": [flag for flag in FLAGS if flag in fields.get("flags", "").split()],
        "onednn": [os.environ.get(name, "") for name in ("TF_ENABLE_ONEDNN_OPTS", "ONEDNN_MAX_CPU_ISA")],
    }


def mode(recorded: dict[str, Any]) -> str:
    """`bits` where values must be equal in every bit, `near` where another environment recorded them."""
    return "bits" if recorded == environment() else "near"


def assert_equal(found: Any, golden: Any, mode: str, tolerance: float = NEAR, where: str = "value") -> None:
    """Compare nested dicts, lists, arrays and plain values; types and, in `bits`, the order of keys count too."""
    assert type(found) is type(golden), f"{where}: {type(found)} instead of {type(golden)}"
    if isinstance(golden, dict):
        assert set(found) == set(golden), f"{where}: keys differ"
        assert mode == "near" or list(found) == list(golden), f"{where}: keys are in another order"
        for key, value in golden.items():
            assert_equal(found[key], value, mode, tolerance, f"{where}[{key!r}]")
    elif isinstance(golden, list):
        assert len(found) == len(golden), f"{where}: {len(found)} items instead of {len(golden)}"
        for i, value in enumerate(golden):
            assert_equal(found[i], value, mode, tolerance, f"{where}[{i}]")
    elif isinstance(golden, float | np.ndarray):
        first, second = np.asarray(found), np.asarray(golden)
        assert (first.dtype, first.shape) == (second.dtype, second.shape), where
        if second.dtype.kind != "f":
            np.testing.assert_array_equal(first, second, err_msg=where)
        elif mode == "near":
            np.testing.assert_allclose(first, second, rtol=tolerance, atol=tolerance, err_msg=where)
        else:
            apart = np.abs(first.astype("float64") - second).max(initial=0)
            assert first.tobytes() == second.tobytes(), f"{where}: bits differ, by {apart:.1e} at most"
    else:
        assert found == golden, where


def plain(outputs: dict[str, np.ndarray]) -> dict[str, Any]:
    """Outputs of a signature as what JSON holds without loss: lists of numbers and strings."""

    def text(value: Any) -> Any:
        if isinstance(value, list):
            return [text(v) for v in value]
        return value.decode("utf-8") if isinstance(value, bytes) else value

    return {name: text(outputs[name].tolist()) for name in sorted(outputs)}


def masked_batches(folder: str, vocabulary: list[str], length: int) -> dict[str, np.ndarray]:
    """Three shuffled batches of pretraining from a corpus, masks drawn, and one of its evaluation.

    There is no public entrance to batches, so these imports move with the modules.
    """
    import tensorflow as tf

    from keras_bert.config import MaskingConfig, TrainConfig
    from keras_bert.pretrain.reader import Corpus
    from keras_bert.pretrain.run import EVALUATION_EPOCH, CorpusBatches

    masking = MaskingConfig(mask_unit="whole_word", max_predictions_per_seq=4)
    rows = CorpusBatches(Corpus.open(folder, verify=True), vocabulary, masking, TrainConfig(seed=7), length)
    shuffled = rows.corpus.batches(12, 7)
    batches = {f"train_{i}": next(shuffled) for i in range(3)}
    records, epochs, indices = next(rows.corpus.in_order(12))
    batches["evaluation"] = records, epochs + EVALUATION_EPOCH, indices
    return {
        f"{name}/{feature}": value.numpy()
        for name, (records, epochs, indices) in batches.items()
        for feature, value in rows.features(tf.constant(records), epochs, indices).items()
    }
