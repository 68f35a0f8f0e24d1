"""What follows from the devices that were found."""

import pytest
from conftest import TINY

from keras_bert import SIZES, HeadConfig, TrainConfig
from keras_bert.tasks.network import Network
from keras_bert.training import hardware
from keras_bert.training.hardware import GIB, Hardware
from keras_bert.training.memory import Plan

T4 = Hardware("GPU", "Tesla T4", 2, 15 * GIB, (7, 5))


def test_this_machine_is_described():
    found = hardware.find()
    assert found.kind in ("CPU", "GPU", "TPU")
    assert str(found).startswith(f"{found.kind}: {found.count}")
    assert found.memory > GIB
    TrainConfig(**found.settings(TINY, 64))


@pytest.mark.parametrize("size", ["tiny", "mini"])
def test_weights_are_counted_as_keras_counts_them(size: str):
    network = Network(SIZES[size], HeadConfig(labels=("0", "1")))
    counted = network.encoder.count_params() + network.head.pooler.count_params()
    assert Plan(SIZES[size], TrainConfig()).parameters == counted


def test_the_batch_stays_and_is_cut_where_memory_is_small():
    parts = [
        T4.settings(SIZES[size], length)["grad_accum_steps"] for size in ("base", "large") for length in (128, 512)
    ]
    assert parts == [1, 1, 2, 8]
    small = Hardware("GPU", "small", 1, 4 * GIB)
    found = small.settings(SIZES["base"], 512, train_batch_size=16)
    assert found == {"train_batch_size": 16, "grad_accum_steps": 16, "mixed_precision": "none"}


@pytest.mark.parametrize(
    ("found", "precision"),
    [
        (T4, "float16"),
        (Hardware("GPU", "Tesla P100", 1, 16 * GIB, (6, 0)), "none"),
        (Hardware("GPU", "A100", 1, 40 * GIB, (8, 0)), "bfloat16"),
        (Hardware("TPU", "TPU core", 8, 8 * GIB), "bfloat16"),
        (Hardware("CPU", "CPU", 4, 30 * GIB), "none"),
    ],
)
def test_sixteen_bits_where_they_pay(found: Hardware, precision: str):
    assert found.mixed_precision == precision
    assert TrainConfig(**found.settings(TINY, 64)).mixed_precision == precision


def test_the_banner_says_what_was_found_and_what_to_change():
    assert str(T4) == "GPU: 2 x Tesla T4, 15 GiB each, arithmetic: float16 with float32 weights"
    without = Hardware("CPU", "CPU", 4, 30 * GIB, advice=(hardware.NO_GPU,))
    assert str(without).splitlines() == ["CPU: 4 cores, 30 GiB, arithmetic: float32", hardware.NO_GPU]
