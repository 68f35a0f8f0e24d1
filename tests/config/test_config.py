"""Configurations: what is refused, the table of sizes, dicts and JSON there and back."""

import dataclasses
import json

import pytest

from keras_bert import errors
from keras_bert.config import (
    SIZES,
    DataConfig,
    EncoderConfig,
    HeadConfig,
    OptimizerConfig,
    TextConfig,
    TrainConfig,
    choose,
    dumps,
    from_dict,
    to_dict,
)
from keras_bert.errors import ConfigError

NAN, INF = float("nan"), float("inf")
KINDS = [EncoderConfig, TextConfig, DataConfig, HeadConfig, OptimizerConfig, TrainConfig]


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        *[(EncoderConfig, name, 0) for name in ("vocab_size", "num_layers", "num_heads", "hidden_dim")],
        (EncoderConfig, "intermediate_dim", -1),
        (EncoderConfig, "num_heads", 7),
        (EncoderConfig, "hidden_dropout", 1.5),
        (EncoderConfig, "attention_dropout", -0.1),
        *[(TextConfig, "max_seq_length", value) for value in (-1, 0, 1, 2)],
        (DataConfig, "text_column", ""),
        (DataConfig, "text_pair_column", "text"),
        (DataConfig, "label_column", "text"),
        *[(HeadConfig, "dropout", value) for value in (1.0, 1.5, -0.1, NAN)],
        *[(HeadConfig, "threshold", value) for value in (0.0, 1.0, NAN)],
        (HeadConfig, "labels", ("a", "b", "a")),
        *[(OptimizerConfig, "learning_rate", value) for value in (0.0, -1e-5, 1e3, NAN, INF)],
        *[(OptimizerConfig, "warmup_proportion", value) for value in (-0.1, 1.0, NAN)],
        *[(OptimizerConfig, "weight_decay", value) for value in (-0.1, NAN, INF)],
        *[(OptimizerConfig, "clip_norm", value) for value in (-1.0, NAN)],
        *[(TrainConfig, "train_batch_size", value) for value in (0, -1)],
        (TrainConfig, "eval_batch_size", 0),
        (TrainConfig, "num_train_epochs", 0),
        (TrainConfig, "num_gpus", -2),
        *[(TrainConfig, "seed", value) for value in (-1, 2**31)],
        (TrainConfig, "mixed_precision", "float8"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(kind, name, value):
    with pytest.raises(ConfigError) as caught:
        kind(**{name: value})
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (TextConfig, "max_seq_length", 3),
        (HeadConfig, "dropout", 0.0),
        (OptimizerConfig, "clip_norm", 0.0),
        (OptimizerConfig, "warmup_proportion", 0.0),
        (TrainConfig, "seed", 0),
        (TrainConfig, "num_gpus", 0),
    ],
)
def test_the_smallest_values_are_taken(kind, name, value):
    assert getattr(kind(**{name: value}), name) == value


def test_a_strategy_without_devices_is_refused():
    with pytest.raises(ConfigError, match="contradict"):
        TrainConfig(distribution_strategy="mirrored", num_gpus=0)


@pytest.mark.parametrize("kind", KINDS)
def test_configs_are_frozen(kind):
    config = kind()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, dataclasses.fields(kind)[0].name, 1)


@pytest.mark.parametrize("config", [*(kind() for kind in KINDS), HeadConfig(labels=("no", "yes")), SIZES["large"]])
def test_a_config_survives_json(config):
    assert from_dict(type(config), json.loads(dumps(to_dict(config)))) == config


def test_labels_from_json_are_a_tuple_again():
    assert from_dict(HeadConfig, {"labels": ["no", "yes"]}).labels == ("no", "yes")


def test_an_unknown_key_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"TextConfig has no \['casing'\].*do_lower_case.*max_seq_length"):
        from_dict(TextConfig, {"max_seq_length": 64, "casing": True})


def test_choose_lists_the_right_names():
    assert choose(SIZES, "tiny", "size") is SIZES["tiny"]
    with pytest.raises(ConfigError, match=r"unknown size 'huge'; choose one of tiny, mini, small"):
        choose(SIZES, "huge", "size")


@pytest.mark.parametrize(
    ("name", "layers", "hidden", "heads", "inner", "vocabulary"),
    [
        ("tiny", 2, 128, 2, 512, 30522),
        ("base", 12, 768, 12, 3072, 30522),
        ("large", 24, 1024, 16, 4096, 30522),
        ("base-chinese", 12, 768, 12, 3072, 21128),
    ],
)
def test_sizes_are_those_of_the_papers(name, layers, hidden, heads, inner, vocabulary):
    size = SIZES[name]
    found = (size.num_layers, size.hidden_dim, size.num_heads, size.intermediate_dim, size.vocab_size)
    assert found == (layers, hidden, heads, inner, vocabulary)


@pytest.mark.parametrize("kind", [TextConfig, DataConfig, OptimizerConfig, TrainConfig])
def test_a_help_is_one_sentence(kind):
    helps = [field.metadata["help"] for field in dataclasses.fields(kind) if "help" in field.metadata]
    assert helps
    assert all(text.endswith(".") and "\n" not in text for text in helps)


def test_dumps_is_readable_and_ends_with_a_newline():
    assert dumps({"labels": ["не", "火"]}) == '{\n  "labels": [\n    "не",\n    "火"\n  ]\n}\n'


def test_each_error_has_its_exit_code():
    kinds = [errors.KerasBertError, ConfigError, errors.DataError, errors.DivergedError, errors.CheckpointError]
    assert [kind.exit_code for kind in kinds] == [1, 2, 3, 4, 5]
    assert all(issubclass(kind, errors.KerasBertError) for kind in kinds)
