"""The shapes of weights without a network: against networks that were built, over every head and size."""

import dataclasses

import each_head
import pytest
from conftest import TINY

from keras_bert.config import SIZES, TASKS, EncoderConfig, HeadConfig
from keras_bert.errors import ConfigError
from keras_bert.model.encoder import Encoder
from keras_bert.model.positions import POSITIONS
from keras_bert.model.shapes import FORMS, PARTS, count, parts, shapes, with_pretraining
from keras_bert.pretrain.objectives import PretrainNetwork
from keras_bert.tasks.network import Network

FOUR = EncoderConfig(**each_head.ENCODER)
OTHERS = {
    **{f"positions {kind}": {"positions": kind} for kind in POSITIONS},
    "three segments, odd sizes": {"num_segments": 3, "vocab_size": 71, "hidden_dim": 12, "num_heads": 3}
    | {"intermediate_dim": 7, "max_positions": 9},
    "six layers": {"num_layers": 6, "intermediate_dim": 16},
    "shared": {"embedding_dim": 6, "layer_groups": 2},
    "pre": {"norm_place": "pre", "embedding_norm": False, "first_norm": False},
    "without biases": {"use_bias": False, "norm_bias": False, "embedding_dim": 6},
    "rms": {"norm": "rms", "feed_forward": "gated"},
    "scale": {"norm": "scale", "feed_forward": "gated", "use_bias": False},
}
ENCODERS = {"four": FOUR} | {name: dataclasses.replace(FOUR, **fields) for name, fields in OTHERS.items()}
OFTEN = ("classify", "fill_mask")


def built(network) -> dict[str, tuple[int, ...]]:
    """The weights of a network that is there."""
    return {w.path: tuple(w.shape) for w in network.weights if "seed_generator" not in w.path}


def ways():
    """Every head over BERT, and over each other encoder one that pools and one with the vocabulary."""
    yield from (("four", name) for name in each_head.HEADS)
    yield from ((size, name) for size in OTHERS for name in OFTEN)


@pytest.mark.parametrize(("size", "name"), list(ways()))
def test_a_network_has_these_weights(size, name):
    mask = "seq2seq" if name == "generate" else "bidirectional"
    encoder, head = dataclasses.replace(ENCODERS[size], attention_mask=mask), each_head.HEADS[name]
    network = Network(encoder, head)
    assert shapes(encoder, head) == built(network)
    assert count(shapes(encoder, head)) == network.count_params() - sum(
        w.shape.num_elements() for w in network.weights if "seed_generator" in w.path
    )


def test_every_form_of_head_is_that_of_a_task():
    assert {kind.form for kind in TASKS.values()} == set(FORMS)


@pytest.mark.parametrize("pooling", ["", "cls", "mean", "max"])
@pytest.mark.parametrize("lstm", [0, 3])
@pytest.mark.parametrize("layers", ["last", "last4_concat", "mix"])
@pytest.mark.parametrize("task", ["regress", "embed"])
def test_what_is_read_decides_about_the_pooler(task, layers, lstm, pooling):
    head = HeadConfig(task=task, layers=layers, head_lstm=lstm, pooling=pooling)
    assert shapes(FOUR, head) == built(Network(FOUR, head))


def test_an_encoder_alone_and_with_all_of_pretraining():
    pruned = dataclasses.replace(TINY, num_heads=3, head_dim=5, layer_heads=(3, 1), layer_units=(32, 7))
    for config in (TINY, pruned):
        assert shapes(config) == built(Encoder(config))
    known = with_pretraining(TINY)
    assert {k: v for part in known.values() for k, v in part.items()} == built(PretrainNetwork(TINY))
    assert list(known) == ["encoder", "pooler", "masked_lm", "next_sentence"]
    assert list(parts(TINY)) == ["encoder"]


def test_parts_in_their_order():
    heads = HeadConfig(labels=("a", "b"), layers="mix"), each_head.HEADS["embed_dense"]
    found = [list(with_pretraining(FOUR, head)) for head in heads]
    assert {part for of_head in found for part in of_head} == set(PARTS)
    assert all(of_head == sorted(of_head, key=PARTS.index) for of_head in found)


def test_sizes_of_the_paper():
    """Devlin et al. 2019, table of the released models: 110 M and 340 M weights with the pooler."""
    assert count(shapes(SIZES["base"])) + 768 * 769 == 109_482_240  # as others count bert-base-uncased
    assert count(shapes(SIZES["large"])) + 1024 * 1025 == 335_141_888


def test_names_that_nothing_has():
    with pytest.raises(ConfigError, match="unknown task 'sing'"):
        shapes(TINY, HeadConfig(task="sing"))
    with pytest.raises(ConfigError, match="unknown kind of positions 'spiral'"):
        shapes(dataclasses.replace(TINY, positions="spiral"))
