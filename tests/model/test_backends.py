"""Every head on Keras' PyTorch backend gives the numbers that it gives on TensorFlow."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import each_head
import numpy as np
import pytest

from keras_bert.tasks.network import HEADS


def test_every_head_is_there():
    assert {config.task for config in each_head.HEADS.values()} == set(HEADS)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Results on TensorFlow and on PyTorch, by `head:output`."""
    if find_spec("torch") is None:
        pytest.skip(reason="torch is not installed (make proofs installs it)")
    folder, here, weights = tmp_path_factory.mktemp("backends"), {}, {}
    for name in each_head.HEADS:
        network, random = each_head.network(name), np.random.default_rng(0)
        for weight in network.weights:
            if "seed_generator" not in weight.path:
                centre = 1.0 if weight.path.endswith("gamma") else 0.0
                weight.assign(random.normal(centre, 0.3, weight.shape))
                weights[f"{name}:{weight.path}"] = weight.numpy()
        here |= {f"{name}:{key}": value for key, value in each_head.results(network).items()}
    np.savez(folder / "weights.npz", **weights)
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, each_head.__file__, folder / "weights.npz", folder / "found.npz"],
        env=os.environ
        | {"KERAS_BACKEND": "torch", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": f"{root.parent}{os.pathsep}{root}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return here, dict(np.load(folder / "found.npz"))


@pytest.mark.slow
@pytest.mark.parametrize("name", each_head.HEADS)
def test_equal_on_pytorch(name, both):
    here, there = ({k: v for k, v in found.items() if k.startswith(f"{name}:")} for found in both)
    assert here.keys() == there.keys()
    for key, value in here.items():
        assert there[key].dtype == value.dtype, key
        np.testing.assert_allclose(there[key], value, rtol=1e-5, atol=1e-5, err_msg=key)


@pytest.mark.slow
def test_a_step_on_jax_learns():
    """The benchmark of accelerators on the processor: the network and the loss of pretraining, compiled by XLA."""
    if find_spec("jax") is None:
        pytest.skip(reason="jax is not installed (make proofs installs it)")
    script = Path(__file__).parents[2] / "benchmarks" / "accelerator.py"
    command = [sys.executable, script, "--cases=tiny-16", "--tokens=64", "--rounds=30"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[-1] == "there is no accelerator: nothing was written"
    size, length, rows, *_, loss = said[0].split("  ")
    assert (size, length, rows) == ("tiny", "16", "4")
    first, last = map(float, loss.split(" to "))
    assert 10 < first < 11  # ln 30522 is 10.3: nothing is known
    assert last < first - 0.5
