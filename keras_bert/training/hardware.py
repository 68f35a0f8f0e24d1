"""What a notebook or a machine has to train on, and what follows from it: precision, batch parts, what to change."""

import glob
import os
import platform
import subprocess
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from keras_bert.config import (
    EncoderConfig,
    TrainConfig,
)
from keras_bert.training.memory import MIB, Plan

GIB = 2**30

TPU_SIGNS = ("ISTPUVM", "TPU_ACCELERATOR_TYPE", "COLAB_TPU_ADDR")


@dataclass(frozen=True)
class Hardware:
    """The devices that TensorFlow sees.

    Attributes:
        kind: "GPU", "TPU" or "CPU".
        name: of one device.
        count: how many there are; of a CPU, its cores.
        memory: bytes of one device, or of the machine.
        capability: of a GPU, such as (7, 5).
        advice: sentences that say what to change.
    """

    kind: str
    name: str
    count: int
    memory: int
    capability: tuple[int, int] = (0, 0)
    advice: tuple[str, ...] = ()

    def __str__(self) -> str:
        unit = " cores" if self.kind == "CPU" else ""
        first = f"{self.kind}: {self.count} x {self.name}" if not unit else f"CPU: {self.count}{unit}"
        size = f"{self.memory / GIB:.0f} GiB" + (" each" if self.count > 1 and not unit else "")
        return "\n".join([f"{first}, {size}, arithmetic: {PRECISION[self.mixed_precision]}", *self.advice])

    @property
    def mixed_precision(self) -> str:
        """What pays: bfloat16 from Ampere on and on TPUs, float16 on Volta and Turing (T4), else float32."""
        if self.kind == "TPU" or self.capability >= (8, 0):
            return "bfloat16"
        return "float16" if self.capability >= (7, 0) else "none"

    def settings(self, encoder: EncoderConfig, max_seq_length: int, train_batch_size: int = 32) -> dict[str, Any]:
        """Fields of `TrainConfig` for training `encoder` on rows of at most `max_seq_length` tokens.

        The batch stays what it is, so results do; where it does not fit into memory it is computed in parts. A quarter
        of the memory is left to what cannot be counted.
        """
        devices = 1 if self.kind == "CPU" else self.count
        rows = -(-train_batch_size // devices)
        plan = Plan(encoder, TrainConfig(mixed_precision=self.mixed_precision, grad_accum_steps=2))
        fit = max(1, plan.largest(0.75 * self.memory / MIB, max_seq_length))
        return {
            "train_batch_size": train_batch_size,
            "grad_accum_steps": min(-(-rows // fit), train_batch_size),
            "mixed_precision": self.mixed_precision,
        }


PRECISION = {"none": "float32", "float16": "float16 with float32 weights", "bfloat16": "bfloat16 with float32 weights"}


def find() -> Hardware:
    """Look at this machine. GPUs that differ are taken for the smallest of them."""
    tpus, gpus = tf.config.list_logical_devices("TPU"), tf.config.list_physical_devices("GPU")
    if tpus:
        return Hardware("TPU", "TPU core", len(tpus), 8 * GIB)
    if gpus:
        details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
        capability = min(d.get("compute_capability", (0, 0)) for d in details)
        advice = () if len(gpus) > 1 or capability >= (7, 0) else (OLD_GPU,)
        return Hardware("GPU", details[0].get("device_name", "GPU"), len(gpus), gpu_memory(), capability, advice)
    attached = any(name in os.environ for name in TPU_SIGNS) or glob.glob("/dev/accel*")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 8 * GIB
    return Hardware("CPU", "CPU", os.cpu_count() or 1, memory, advice=(TPU_UNUSED if attached else NO_GPU,))


NO_GPU = (
    "There is no GPU: all works, training takes many times as long. Kaggle: Session options > Accelerator > GPU T4 "
    "x2. Colab: Runtime > Change runtime type > T4 GPU."
)

TPU_UNUSED = "A TPU is attached, but the TensorFlow of this image cannot use it: choose a GPU as accelerator instead."

OLD_GPU = "This GPU has no fast 16-bit arithmetic; with a choice, take T4 x2."


def gpu_memory() -> int:
    """Bytes of the smallest GPU, as its driver says; 8 GiB where it does not."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
        return min(int(line) for line in said.split()) * 2**20
    except (OSError, ValueError, subprocess.SubprocessError):
        return 8 * GIB


def environment() -> dict[str, Any]:
    """Versions and peak memory of this process, for reports."""
    return {
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "peak_memory_mb": peak_memory_mb(),
    }


def peak_memory_mb() -> int:
    """The most memory this process has held, in MiB; 0 where the system does not say."""
    try:
        import resource  # not on Windows
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024 * 1024 if platform.system() == "Darwin" else 1024))
