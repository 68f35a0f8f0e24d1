"""Encoders that are no BERT: shared layers, narrow tables, other norms and feed-forwards."""

import dataclasses

import checks
import numpy as np
import pytest
import tensorflow as tf
from conftest import TINY

from keras_bert.config import EncoderConfig
from keras_bert.errors import ConfigError
from keras_bert.model.encoder import Encoder
from keras_bert.model.shapes import count, pooler, shapes

IDS = np.array([[5, 6, 7, 8, 9, 0], [10, 11, 12, 13, 14, 15]])
FOUR = dataclasses.replace(TINY, num_layers=4, hidden_dropout=0.0, attention_dropout=0.0)
ALBERT = EncoderConfig(vocab_size=30000, embedding_dim=128, layer_groups=1, activation="gelu_tanh")


def wide(layers, hidden, heads):
    sizes = {"num_layers": layers, "hidden_dim": hidden, "num_heads": heads, "intermediate_dim": 4 * hidden}
    return dataclasses.replace(ALBERT, **sizes)


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (ALBERT, 11_683_584),
        (wide(24, 1024, 16), 17_683_968),
        (wide(24, 2048, 16), 58_724_864),
        (wide(12, 4096, 64), 222_595_584),
    ],
    ids=["base", "large", "xlarge", "xxlarge"],
)
def test_albert_has_as_many_weights_as_published(config, parameters):
    """Lan et al. 2020, with the pooler; the classes of transformers have as many."""
    assert count(shapes(config)) + count(pooler(config)) == parameters


def test_layers_that_share_a_block_are_copies_of_it():
    """Forward, and the gradient of the block is the sum over its copies."""
    shared = checks.randomize(Encoder(dataclasses.replace(FOUR, layer_groups=2)))
    copies = Encoder(FOUR)
    by_path = {w.path: w for w in shared.weights}
    for weight in copies.weights:
        path = weight.path
        for i in range(4):
            path = path.replace(f"block_{i}/", f"group_{i // 2}/")
        weight.assign(by_path[path.replace("group_", "block_")])
    gradients = []
    for encoder in (shared, copies):
        with tf.GradientTape() as tape:
            out = encoder(IDS)["sequence"]
            total = tf.reduce_sum(out * np.random.default_rng(0).normal(size=out.shape).astype("float32"))
        weights = encoder.trainable_weights
        slopes = tape.gradient(total, [w.value for w in weights])
        gradients.append({w.path: tf.convert_to_tensor(s) for w, s in zip(weights, slopes, strict=True)})
        gradients[-1]["out"] = out
    one, four = gradients
    np.testing.assert_array_equal(one["out"], four["out"])
    for path, slope in one.items():
        group = path.split("/")[1] if "/" in path else ""
        if group.startswith("block_"):
            g = int(group.removeprefix("block_"))
            wanted = sum(four[path.replace(group, f"block_{i}")] for i in (2 * g, 2 * g + 1))
            np.testing.assert_allclose(slope, wanted, atol=2e-4, rtol=1e-4, err_msg=path)


def test_every_layer_has_its_taps_and_its_memory_where_blocks_are_shared():
    encoder = Encoder(dataclasses.replace(FOUR, layer_groups=1))
    assert len(encoder.blocks) == 1
    taps = encoder(IDS, taps=("layers", "attentions"))
    assert [len(taps[name]) for name in ("layers", "attentions")] == [4, 4]


def test_norms_before_the_layers_leave_the_sum_alone():
    """With kernels of the outputs at zero each layer adds nothing: the last norm sees the embeddings."""
    encoder = checks.randomize(Encoder(dataclasses.replace(FOUR, norm_place="pre")))
    for weight in encoder.weights:
        if "attention/output" in weight.path or "feed_forward/outer" in weight.path:
            weight.assign(np.zeros(weight.shape))
    taps = encoder(IDS, taps=("embedded", "sequence"))
    x = np.asarray(taps["embedded"], "float64")
    normal = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    gamma, beta = (np.asarray(w) for w in encoder.final_norm.weights)
    np.testing.assert_allclose(taps["sequence"], normal * gamma + beta, atol=1e-4)


@pytest.mark.parametrize("norm", ["rms", "scale"])
def test_norms_without_a_mean(norm):
    encoder = checks.randomize(Encoder(dataclasses.replace(FOUR, norm=norm)))
    layer, x = encoder.blocks[0].attention_norm, np.random.default_rng(0).normal(size=(3, 16))
    wanted = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12)
    wanted = wanted * np.asarray(layer.gamma) if norm == "rms" else wanted
    np.testing.assert_allclose(layer(x.astype("float32")), wanted, atol=1e-5)
    assert [w.path.rpartition("/")[2] for w in layer.weights] == (["gamma"] if norm == "rms" else [])


def test_a_gate_multiplies_what_the_other_half_says():
    encoder = checks.randomize(Encoder(dataclasses.replace(FOUR, feed_forward="gated", activation="relu")))
    layer, x = encoder.blocks[1].feed_forward, np.random.default_rng(0).normal(size=(5, 16))
    kernel, outer, bias = (np.asarray(w) for w in layer.weights)
    assert kernel.shape == (16, 64)
    inner = np.maximum(x @ kernel[:, :32], 0) * (x @ kernel[:, 32:])
    found, _ = layer(x.astype("float32"), rows=None)
    np.testing.assert_allclose(found, inner @ outer + bias, atol=1e-4)


def test_some_layers_see_everything_and_the_others_their_window():
    config = dataclasses.replace(FOUR, attention_mask="local", local_window=2, global_every=3)
    shown = checks.randomize(Encoder(config))(IDS[1:], taps=("attentions",))["attentions"]
    reach = [(np.asarray(layer)[0, 0] > 0).sum(axis=-1).tolist() for layer in shown]
    window = [2, 3, 3, 3, 3, 2]
    assert reach == [[6] * 6, window, window, [6] * 6]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layer_groups": 5}, "layer_groups must be between 0 and the 4 layers, got 5"),
        ({"layer_groups": 2, "layer_heads": (1, 2, 2, 1)}, "leave layer_groups at 0"),
        ({"first_norm": False}, "set norm_place to pre"),
        ({"global_every": 2}, "global_every is for attention_mask local, got bidirectional"),
        ({"max_distance": 0}, "max_distance must be at least 1, got 0"),
        ({"embedding_dim": -1}, "embedding_dim must be at least 0, got -1"),
    ],
)
def test_what_does_not_go_together_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(FOUR, **fields)


@pytest.mark.parametrize(
    ("field", "kind"), [("norm", "norm"), ("norm_place", "place of norms"), ("feed_forward", "kind of feed-forward")]
)
def test_an_unknown_name_lists_the_known_ones(field, kind):
    with pytest.raises(ConfigError, match=f"{kind}.*nonsense"):
        Encoder(dataclasses.replace(FOUR, **{field: "nonsense"}))
