"""Open tables: a new name is one function or class and one row, and a function may stand in place of a name."""

import dataclasses
import importlib
import re

import numpy as np
import pytest
import tensorflow as tf
from conftest import WORDS

from keras_bert.cli.flags import Flags
from keras_bert.config import (
    EncoderConfig,
    OptimizerConfig,
    TextConfig,
    TrainConfig,
    WindowConfig,
    choose,
    dumps,
    to_dict,
)
from keras_bert.errors import ConfigError
from keras_bert.model import encoder, masks, norms, positions
from keras_bert.text import packing
from keras_bert.text.text import Text
from keras_bert.training import devices, optimizers


def first_half(lengths, room):
    """At most half of the room for each of the segments."""
    return [tf.minimum(length, room // 2) for length in lengths]


def middle(lengths, keep):
    """The first token and the last ones."""
    return tf.minimum(keep, 1), keep - tf.minimum(keep, 1)


def smallest(values, rows, num_rows):
    return tf.math.unsorted_segment_min(values, rows, num_rows)


class Descent(optimizers.AdamW):
    """Plain gradient descent."""

    def change(self, variable, step):
        self.assign_sub(variable, step.rate * step.gradient)


def root(done, power):
    return (1.0 - done) ** 0.5


NEW = {
    (TextConfig, "truncation"): (packing.SHARES, first_half),
    (TextConfig, "truncation_part"): (packing.PARTS, middle),
    (WindowConfig, "window_merge"): (packing.MERGES, smallest),
    (OptimizerConfig, "optimizer"): (optimizers.OPTIMIZERS, Descent),
    (OptimizerConfig, "lr_schedule"): (optimizers.DECAYS, root),
    (EncoderConfig, "positions"): (positions.POSITIONS, type("Halves", (positions.Absolute,), {})),
    (EncoderConfig, "attention_mask"): (masks.MASKS, lambda features, config: masks.bidirectional(features, config)),
    (EncoderConfig, "norm"): (norms.NORMS, type("Plain", (norms.LayerNorm,), {})),
    (EncoderConfig, "norm_place"): (norms.NORM_PLACES, norms.NormPlace(lambda n, x: n(x), lambda n, x: n(x), False)),
    (EncoderConfig, "feed_forward"): (encoder.FEED_FORWARDS, type("Same", (encoder.FeedForward,), {})),
    (EncoderConfig, "rotary_scaling"): (positions.SCALINGS, lambda base, scale, width: (scale, base * scale)),
    (TrainConfig, "distribution_strategy"): (devices.STRATEGIES, lambda config: tf.distribute.get_strategy()),
}


@pytest.mark.parametrize(("kind", "name"), NEW)
def test_a_flag_takes_a_new_name_of_its_table_and_the_config_a_function(kind, name, monkeypatch):
    table, new = NEW[kind, name]
    flags = Flags("some", "something", [kind])
    with pytest.raises(ConfigError, match=name):
        flags.parse([f"--{name}=new"])
    monkeypatch.setitem(table, "new", new)
    flags = Flags("some", "something", [kind])
    assert flags.parse([f"--{name}=new"])
    assert choose(table, getattr(flags.config(kind), name), name) is new
    assert re.search(r"[|, ]new\b", flags.usage())
    assert choose(table, getattr(kind(**{name: new}), name), name) is new


def test_every_table_that_a_flag_names_is_there_and_has_its_default():
    config = importlib.import_module("keras_bert.config")
    for kind in filter(dataclasses.is_dataclass, vars(config).values()):
        for field in dataclasses.fields(kind):
            choices = field.metadata.get("choices")
            if isinstance(choices, str):
                module, _, table = choices.partition(":")
                assert field.default in ["", "auto", *getattr(importlib.import_module(module), table)], choices


def test_an_unknown_name_is_refused_where_it_is_used():
    with pytest.raises(ConfigError, match="unknown truncation 'fair'; choose one of longest_first, round_robin"):
        Text(WORDS, TextConfig(truncation="fair"))
    with pytest.raises(ConfigError, match="unknown truncation_part 'best'; choose one of head, tail, head_tail"):
        Text(WORDS, TextConfig(truncation_part="best"))
    with pytest.raises(ConfigError, match="unknown lr_schedule 'steep'; choose one of linear"):
        optimizers.schedule(OptimizerConfig(lr_schedule="steep"), 10)
    with pytest.raises(ConfigError, match="unknown distribution_strategy 'horovod'; choose one of auto, one_device"):
        devices.strategy_for(TrainConfig(distribution_strategy="horovod"))
    with pytest.raises(ConfigError, match="unknown way to merge windows 'sum'; choose one of mean, max, first"):
        packing.merge(tf.ones([1, 1]), tf.zeros([1], tf.int32), 1, "sum")


def test_functions_in_place_of_names_cut_rows_and_set_rates():
    words = " ".join(WORDS[20:40])
    text = Text(WORDS, TextConfig(max_seq_length=11, truncation=first_half, truncation_part=middle))
    row = text([words], [words])["token_ids"].numpy()[0]
    kept = [20, 37, 38, 39]  # (11 - 3) // 2 of each
    assert row.tolist() == [text.cls_id, *kept, text.sep_id, *kept, text.sep_id]
    rate = optimizers.schedule(OptimizerConfig(learning_rate=0.5, lr_schedule=root, num_warmup_steps=0), 100)
    np.testing.assert_allclose(rate(36), 0.5 * 0.8, rtol=1e-6)
    values = tf.constant([[3.0], [2.0], [7.0]])
    np.testing.assert_array_equal(packing.merge(values, tf.constant([0, 0, 1]), 2, smallest), [[2.0], [7.0]])


def test_a_function_cannot_be_written_to_a_file():
    with pytest.raises(ConfigError, match="first_half is no name that can be saved"):
        dumps(to_dict(TextConfig(truncation=first_half)))
