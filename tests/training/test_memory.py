"""What fits into a memory, and the command that says so."""

import dataclasses

import pytest
from conftest import TINY

from keras_bert import SIZES, TrainConfig
from keras_bert.__main__ import main
from keras_bert.errors import ConfigError
from keras_bert.model.encoder import Encoder
from keras_bert.training.memory import Plan, megabytes

BASE = SIZES["base"]


def peak(batch=8, length=128, encoder=BASE, **config):
    return Plan(encoder, TrainConfig(**config)).megabytes(batch, length)


def test_what_makes_a_run_larger_and_what_makes_it_smaller():
    assert peak(16) > peak(8) > peak(0) > 4 * 109e6 / 2**20
    assert peak(4, 256) > peak(8, 128), "attention is of the square of the length"
    assert peak(mixed_precision="bfloat16") < peak()
    assert peak(32, recompute=True) < 0.6 * peak(32)
    assert peak(encoder=dataclasses.replace(BASE, num_layers=6)) < 0.7 * peak()


def test_sizes_of_each_layer_are_counted():
    pruned = dataclasses.replace(TINY, num_heads=3, head_dim=5, layer_heads=(3, 1), layer_units=(32, 7))
    for config in (TINY, pruned):
        pooler = config.hidden_dim * (config.hidden_dim + 1)
        assert Plan(config, TrainConfig()).parameters == Encoder(config).count_params() + pooler
    halved = dataclasses.replace(BASE, layer_heads=(6,) * 12, layer_units=(1536,) * 12)
    assert 0.5 * peak(64, 512) < peak(64, 512, halved) < 0.65 * peak(64, 512)


@pytest.mark.parametrize("length", [32, 512])
@pytest.mark.parametrize("memory", [3_000, 16_384, 81_920])
def test_the_largest_batch_fits_and_one_more_does_not(memory, length):
    plan = Plan(BASE, TrainConfig())
    most = plan.largest(memory, length)
    assert most == 0 or plan.megabytes(most, length) <= memory
    assert plan.megabytes(most + 1, length) > memory


@pytest.mark.parametrize(
    ("text", "size"), [("16GB", 16384), ("512MB", 512), ("1.5 GiB", 1536), ("2T", 2 * 2**20), (" 8g ", 8192)]
)
def test_sizes_as_people_write_them(text, size):
    assert megabytes(text) == size


@pytest.mark.parametrize("text", ["", "16", "GB", "-1GB", "0GB", "16GBit", "many"])
def test_what_is_no_size(text):
    with pytest.raises(ConfigError, match="16GB"):
        megabytes(text)


def test_the_command_prints_a_table(capsys):
    assert main(["plan", "--memory=16GB", "--size=base", "--train_batch_size=256"]) == 0
    out, err = capsys.readouterr()
    header, *rows = (line.split("  ") for line in out.splitlines())
    assert [cell.strip() for cell in header if cell.strip()] == [
        "max_seq_length",
        "float32",
        "float32, recompute",
        "bfloat16",
        "bfloat16, recompute",
    ]
    assert len(rows) == 5
    assert "109.5 M weights" in err
    assert "(x " in out


def test_the_size_of_a_checkpoint(tiny_checkpoint, capsys):
    assert main(["plan", "--memory=2GB", f"--init_checkpoint={tiny_checkpoint}"]) == 0
    out, _ = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["32", "64"], "it has 64 positions"
    assert main(["plan", "--memory=2GB", f"--init_checkpoint={tiny_checkpoint}", "--hidden_dim=17"]) == 2
    assert "hidden_dim 17" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "--memory must be given"),
        (["--memory=lots"], "16GB"),
        (["--memory=1GB", "--size=huge"], "size"),
        (["--memory=1GB", "--size=base", "--init_checkpoint=x"], "contradict"),
        (["--memory=1GB", "--train_batch_size=0"], "train_batch_size must be at least 1"),
    ],
)
def test_what_it_refuses(flags, said, capsys):
    assert main(["plan", *flags]) == 2
    assert said in capsys.readouterr().err
