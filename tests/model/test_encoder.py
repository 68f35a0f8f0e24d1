"""The encoder: sizes, defaults, taps, and its arithmetic against an independent BERT in NumPy."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec

import checks
import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import TINY

from keras_bert import SIZES
from keras_bert.config import EncoderConfig, HeadConfig, dumps, from_dict, to_dict
from keras_bert.errors import ConfigError
from keras_bert.model.encoder import TAPS, Attention, Block, Embedding, Encoder, FeedForward, Rows
from keras_bert.model.layers import Pooler, TiedLogits
from keras_bert.model.norms import LayerNorm
from keras_bert.model.positions import POSITIONS
from keras_bert.tasks.network import Network

PARTS = {
    "table": checks.Part(
        build=lambda dtype: build(Embedding(TINY, TINY.vocab_size, dtype=dtype)),
        run=lambda layer, given: layer(given["token_ids"]),
    ),
    "layer_norm": checks.Part(
        build=lambda dtype: build(LayerNorm(1e-12, dtype=dtype), (None, 16)), run=checks.on_vectors
    ),
    "attention": checks.Part(
        build=lambda dtype: build(Attention(TINY, dtype=dtype)), run=checks.on_rows, silent="key/bias"
    ),
    "feed_forward": checks.Part(build=lambda dtype: build(FeedForward(TINY, dtype=dtype)), run=checks.on_single_rows),
    "block": checks.Part(build=lambda dtype: build(Block(TINY, dtype=dtype)), run=checks.on_rows, silent="key/bias"),
    "encoder": checks.Part(build=lambda dtype: Encoder(TINY, dtype=dtype), run=checks.on_features, silent="key/bias"),
}
"""A bias of the keys adds the same to every score of a query, which the softmax takes out again: no gradient."""


def build(layer, *shape):
    layer.build(*shape or (None,))
    return layer


@pytest.mark.parametrize("promise", checks.PROMISES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("part", PARTS)
def test_promises(part, promise, tmp_path):
    promise(PARTS[part], tmp_path)


# === Sizes ===

COUNTS = {  # encoder and pooler; and with the heads of pre-training (design/requirements.md section 1)
    "tiny": (4_385_920, 4_433_468),
    "mini": (11_170_560, 11_267_900),
    "small": (28_763_648, 29_058_876),
    "medium": (41_373_184, 41_668_412),
    "base": (109_482_240, 110_106_428),
    "base-cased": (108_310_272, 108_932_934),
    "base-chinese": (102_267_648, 102_882_442),
    "base-multilingual-cased": (177_853_440, 178_566_653),
    "large": (335_141_888, 336_226_108),
}


def count(config: EncoderConfig) -> tuple[int, int]:
    """Weights of encoder and pooler, and of these with masked language model and next sentence heads."""
    encoder = Encoder(config)
    pooler, mlm = build(Pooler(config)), build(TiedLogits(config))
    nsp = keras.layers.Dense(2)
    nsp.build((None, config.hidden_dim))
    body = encoder.count_params() + pooler.count_params()
    return body, body + mlm.count_params() + nsp.count_params()


@pytest.mark.parametrize("size", ["tiny", "mini", "small"])
def test_parameter_counts(size):
    assert count(SIZES[size]) == COUNTS[size]


@pytest.mark.parametrize("size", list(COUNTS))
def test_parameter_counts_from_small_ones(size):
    """Counts are a plane over layers and vocabulary: three small models of one width give all of it."""
    wanted = SIZES[size]

    def small(num_layers, vocab_size):
        return np.array(count(dataclasses.replace(wanted, num_layers=num_layers, vocab_size=vocab_size)))

    corner, deeper, larger = small(1, 1), small(2, 1), small(1, 2)
    got = corner + (wanted.num_layers - 1) * (deeper - corner) + (wanted.vocab_size - 1) * (larger - corner)
    assert tuple(got.tolist()) == COUNTS[size]


@pytest.mark.slow
@pytest.mark.parametrize("size", list(COUNTS))
def test_parameter_counts_of_the_real_models(size):
    assert count(SIZES[size]) == COUNTS[size]


def test_every_size_is_counted():
    assert set(SIZES) == set(COUNTS)


@pytest.mark.parametrize(
    ("size", "attention", "feed_forward", "block"),
    [("base", 2_362_368, 4_722_432, 7_087_872), ("large", 4_198_400, 8_393_728, 12_596_224)],
)
def test_parameter_counts_of_the_parts(size, attention, feed_forward, block):
    config = SIZES[size]
    assert build(Attention(config)).count_params() == attention == 4 * (config.hidden_dim**2 + config.hidden_dim)
    assert build(FeedForward(config)).count_params() == feed_forward
    assert build(Block(config)).count_params() == block == attention + feed_forward + 4 * config.hidden_dim


def test_number_of_heads_does_not_change_the_count():
    counts = {count(dataclasses.replace(TINY, num_heads=n)) for n in (1, 2, 4, 8, 16)}
    assert len(counts) == 1


def test_initial_weights():
    encoder = Encoder(dataclasses.replace(TINY, initializer_range=0.05, vocab_size=5000))
    for weight in encoder.weights:
        value, kind = weight.numpy(), weight.path.rsplit("/", 1)[-1]
        if kind in ("kernel", "embeddings"):
            assert np.abs(value).max() <= 0.1 + 1e-6, weight.path  # truncated at two deviations
            assert (value == 0).mean() < 0.01, weight.path
        else:
            assert (value == {"gamma": 1.0, "beta": 0.0, "bias": 0.0}[kind]).all(), weight.path
    assert encoder.tokens.embeddings.numpy().std() == pytest.approx(0.88 * 0.05, rel=0.01)


# === Features and their defaults ===


@pytest.fixture(scope="module")
def encoder():
    return checks.randomize(Encoder(TINY))


def test_ids_alone_equal_all_defaults_spelled_out(encoder):
    ids = checks.features([6, 3])["token_ids"]
    spelled_out = {
        "token_ids": ids,
        "segment_ids": np.zeros_like(ids),
        "padding_mask": ids != 0,
        "positions": np.broadcast_to(np.arange(6, dtype="int32"), (2, 6)),
    }
    wanted = encoder(spelled_out)["sequence"]
    for given in (ids, tf.constant(ids), {"token_ids": ids}, {**spelled_out, "positions": np.arange(6)[None]}):
        np.testing.assert_array_equal(encoder(given)["sequence"], wanted)
    for name, other in {"segment_ids": 1, "padding_mask": True, "positions": 7}.items():
        changed = encoder({**spelled_out, name: np.full_like(ids, other)})["sequence"]
        assert np.abs(changed - wanted).max() > 1e-3, name


def test_the_padding_id_is_the_one_of_the_config():
    ids = np.array([[5, 6, 3, 3]])
    encoder = checks.randomize(Encoder(dataclasses.replace(TINY, pad_token_id=3)))
    mask = np.array([[True, True, False, False]])
    np.testing.assert_array_equal(
        encoder(ids)["sequence"], encoder({"token_ids": ids, "padding_mask": mask})["sequence"]
    )


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_features_of_either_integer_type(encoder, dtype):
    given = checks.features([6, 3])
    wanted = encoder(given)["sequence"]
    np.testing.assert_array_equal(encoder({k: v.astype(dtype) for k, v in given.items()})["sequence"], wanted)


def test_positions_may_restart(encoder):
    """Two texts in one row: with restarted positions the embeddings of the second are those it has alone."""
    ids = np.array([[5, 6, 7, 5, 6, 7]])
    embedded = np.asarray(encoder.embed({"token_ids": ids, "positions": np.array([[0, 1, 2, 0, 1, 2]])}))
    np.testing.assert_array_equal(embedded[:, 3:], embedded[:, :3])
    running = np.asarray(encoder.embed({"token_ids": ids}))
    np.testing.assert_array_equal(running[:, :3], embedded[:, :3])
    assert np.abs(running[:, 3:] - embedded[:, 3:]).max() > 1e-2


def test_too_long_a_row(encoder):
    assert encoder(np.ones((1, 64), "int32"))["sequence"].shape == (1, 64, 16)
    with pytest.raises(ConfigError, match="65 tokens in a row, but the model has 64 positions"):
        encoder(np.ones((1, 65), "int32"))
    traced = tf.function(encoder).get_concrete_function(tf.TensorSpec((None, None), tf.int32))
    with pytest.raises(tf.errors.InvalidArgumentError, match="64"):
        traced(tf.ones((1, 65), tf.int32))


def test_features_that_are_none_of_ours(encoder):
    ids = np.ones((1, 3), "int32")
    with pytest.raises(ConfigError, match=r"token_ids required; got \['input_ids'\]"):
        encoder({"input_ids": ids})
    with pytest.raises(ConfigError, match=r"got .*'token_ids', 'token_type_ids'"):
        encoder({"token_ids": ids, "token_type_ids": ids})
    with pytest.raises(ConfigError, match=r"\[B, T\].*\(3,\)"):
        encoder(np.ones(3, "int32"))


def test_unknown_names_in_the_config():
    for field, names in {
        "attention_mask": "unknown attention mask 'x'; choose one of bidirectional",
        "positions": "unknown kind of positions 'x'; choose one of absolute",
        "activation": "unknown activation 'x'; choose one of gelu",
    }.items():
        with pytest.raises(ConfigError, match=names):
            Encoder(dataclasses.replace(TINY, **{field: "x"}))


# === Taps ===


def test_taps_are_what_was_asked_for(encoder):
    given = checks.features([6, 3])
    everything = encoder(given, taps=TAPS)
    assert set(everything) == set(TAPS)
    assert everything["embedded"].shape == everything["sequence"].shape == (2, 6, 16)
    assert [x.shape for x in everything["layers"]] == [(2, 6, 16)] * 2
    assert [x.shape for x in everything["attentions"]] == [(2, 2, 6, 6)] * 2
    np.testing.assert_array_equal(everything["layers"][-1], everything["sequence"])
    assert np.abs(everything["layers"][0] - everything["layers"][1]).max() > 1e-2
    np.testing.assert_array_equal(everything["embedded"], encoder.embed(given))
    assert [[x.shape for x in layer] for layer in everything["heads"]] == [[(2, 2, 6, 8)] * 4] * 2
    assert [x.shape for x in everything["inner"]] == [(2, 6, 32)] * 2
    for tap in TAPS:
        one = encoder(given, taps=[tap])
        assert set(one) == {tap}
        np.testing.assert_array_equal(np.asarray(one[tap]), np.asarray(everything[tap]))
    assert set(encoder(given)) == {"sequence"}
    assert encoder(given, taps=()) == {}


def test_attentions_are_probabilities_over_tokens(encoder):
    given = checks.features([6, 3])
    for probabilities in map(np.asarray, encoder(given, taps=("attentions",))["attentions"]):
        np.testing.assert_allclose(probabilities.sum(-1), 1.0, atol=1e-6)
        assert probabilities.min() >= 0
        assert (probabilities[1, :, :, 3:] == 0).all()


def test_heads_are_what_attention_is_computed_from(encoder):
    taps = encoder(checks.features([6, 6]), taps=("heads", "attentions"))
    for heads, attention in zip(taps["heads"], map(np.asarray, taps["attentions"]), strict=True):
        query, key, value, context = map(np.asarray, heads)
        scores = np.exp(np.einsum("bnth,bnsh->bnts", query, key) / np.sqrt(8))
        np.testing.assert_allclose(attention, scores / scores.sum(-1, keepdims=True), atol=1e-5)
        np.testing.assert_allclose(context, np.einsum("bnts,bnsh->bnth", attention, value), atol=1e-5)


@pytest.mark.parametrize("tokens_only", [False, True])
def test_gradients_reach_the_taps_of_heads_and_units(tokens_only):
    """`<x, dL/dx>` of what a dense layer without bias reads is `<kernel, dL/dkernel>`, whatever comes after it."""
    encoder, given = checks.randomize(Encoder(dataclasses.replace(TINY, hidden_dropout=0.0))), checks.features([6, 3])
    encoder.tokens_only = tokens_only
    block = encoder.blocks[0]
    kernels = [layer.kernel.value for layer in (block.attention.output_dense, block.feed_forward.outer)]
    with tf.GradientTape() as tape:
        taps = encoder(given, taps=("sequence", "heads", "inner"), training=True)
        loss = tf.reduce_sum(tf.sin(taps["sequence"]) * given["padding_mask"][..., None])
    read = [taps["heads"][0][3], taps["inner"][0]]
    slopes = tape.gradient(loss, [*read, *kernels])
    for x, kernel, slope, other in zip(read, kernels, slopes[:2], slopes[2:], strict=True):
        wanted = tf.reduce_sum(kernel * other).numpy()
        np.testing.assert_allclose(tf.reduce_sum(x * slope).numpy(), wanted, rtol=1e-4)
        assert abs(wanted) > 1e-3


def test_unknown_tap(encoder):
    with pytest.raises(ConfigError, match=r"unknown taps \['pooled'\]; choose of .*'sequence'"):
        encoder(np.ones((1, 3), "int32"), taps=("sequence", "pooled"))


def test_embed_then_contextualise_is_the_whole(encoder):
    given = checks.features([6, 3])
    embedded = encoder.embed(given)
    np.testing.assert_array_equal(encoder.contextualise(embedded, given)["sequence"], encoder(given)["sequence"])
    with tf.GradientTape() as tape:
        tape.watch(embedded)
        out = tf.reduce_sum(encoder.contextualise(embedded, given)["sequence"][0, 0] ** 3)
    gradient = tape.gradient(out, embedded).numpy()
    assert (np.abs(gradient[0]).max(-1) > 0).all(), "every token of the row matters to its first"
    assert (gradient[1] == 0).all(), "no token of another row does"


def test_a_shift_moves_the_tokens_as_other_rows_of_the_table_would(encoder):
    given = {"token_ids": np.array([[5, 6, 7, 8]])}
    plain, shift = np.asarray(encoder(given)["sequence"]), np.zeros((1, 4, 16), "float32")
    np.testing.assert_array_equal(encoder(given, shift=shift)["sequence"], plain)
    shift[0, 2] = np.linspace(-1, 1, 16)
    found = np.asarray(encoder(given, shift=shift)["sequence"])
    table = encoder.tokens.embeddings.numpy()
    try:
        encoder.tokens.embeddings.assign(table + shift[0, 2] * (np.arange(len(table)) == 7)[:, None])
        np.testing.assert_allclose(found, encoder(given)["sequence"], atol=1e-6)
    finally:
        encoder.tokens.embeddings.assign(table)
    assert np.abs(found - plain).max() > 0.1


# === Sizes of each layer ===


def test_sizes_that_are_spelled_out_change_nothing():
    usual = Encoder(TINY)
    config = dataclasses.replace(TINY, head_dim=8, layer_heads=(2, 2), layer_units=(32, 32))
    spelled = Encoder(config)
    assert [(w.path, w.shape) for w in spelled.weights] == [(w.path, w.shape) for w in usual.weights]
    for mine, other in zip(spelled.weights, checks.randomize(usual).weights, strict=True):
        mine.assign(other)
    given = checks.features([6, 3])
    np.testing.assert_array_equal(spelled(given)["sequence"], usual(given)["sequence"])


def test_heads_and_units_that_do_nothing_can_be_left_out():
    """A layer of 2 heads and 32 units of which some write zeros, and one that has the others only."""
    full = checks.randomize(Encoder(TINY))
    heads, units = ([0, 1], [1]), (range(32), range(5, 25))
    config = dataclasses.replace(TINY, head_dim=8, layer_heads=(2, 1), layer_units=(32, 20))
    small = Encoder(from_dict(EncoderConfig, json.loads(dumps(to_dict(config)))))
    for mine, whole in zip(small.weights, full.weights, strict=True):
        mine.assign(np.zeros(mine.shape) if mine.shape != whole.shape else whole)
    for block, whole, some, wide in zip(small.blocks, full.blocks, heads, units, strict=True):
        columns, wide = np.concatenate([np.arange(8) + 8 * head for head in some]), list(wide)
        for name in ("query", "key", "value"):
            kernel, bias = getattr(whole.attention, name).get_weights()
            getattr(block.attention, name).set_weights([kernel[:, columns], bias[columns]])
        out, bias = whole.attention.output_dense.get_weights()
        block.attention.output_dense.set_weights([out[columns], bias])
        out[np.setdiff1d(np.arange(16), columns)] = 0
        whole.attention.output_dense.set_weights([out, bias])
        kernel, bias = whole.feed_forward.inner.get_weights()
        block.feed_forward.inner.set_weights([kernel[:, wide], bias[wide]])
        out, bias = whole.feed_forward.outer.get_weights()
        block.feed_forward.outer.set_weights([out[wide], bias])
        out[np.setdiff1d(np.arange(32), wide)] = 0
        whole.feed_forward.outer.set_weights([out, bias])
    given = checks.features([6, 3])
    np.testing.assert_allclose(small(given)["sequence"], full(given)["sequence"], atol=1e-5)
    assert [x[0].shape[1] for x in small(given, taps=["heads"])["heads"]] == [2, 1]
    assert small.count_params() == full.count_params() - 3 * 8 * 17 - 8 * 16 - 12 * 33


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"num_heads": 3}, "hidden_dim 16 is not a multiple of num_heads 3, and there is no head_dim"),
        ({"head_dim": -1}, "head_dim must be at least 0, got -1"),
        ({"layer_heads": (2,)}, r"layer_heads must be a number of at least 1 for each of the 2 layers, got \[2\]"),
        ({"layer_units": (32, 0)}, r"layer_units must be .* got \[32, 0\]"),
        ({"local_window": -2}, "local_window must be at least 0"),
    ],
)
def test_sizes_that_cannot_be_are_refused(sizes, said):
    with pytest.raises(ConfigError, match=said):
        dataclasses.replace(TINY, **sizes)


def test_a_head_may_be_of_any_size():
    encoder = checks.randomize(Encoder(dataclasses.replace(TINY, num_heads=3, head_dim=5)))
    assert encoder.blocks[0].attention.query.kernel.shape == (16, 15)
    assert encoder.blocks[0].attention.output_dense.kernel.shape == (15, 16)
    assert np.isfinite(encoder(checks.features([6, 3]))["sequence"]).all()


def test_dropout_acts_in_training_only():
    given = checks.features([6, 3])
    encoder = checks.randomize(Encoder(TINY))
    still = encoder(given)["sequence"]
    np.testing.assert_array_equal(encoder(given, training=False)["sequence"], still)
    first, second = (encoder(given, training=True)["sequence"] for _ in range(2))
    assert np.abs(first - still).max() > 1e-2
    assert np.abs(first - second).max() > 1e-2
    for field in ("hidden_dropout", "attention_dropout"):
        rates = {"hidden_dropout": 0.0, "attention_dropout": 0.0, field: 0.5}
        only = checks.randomize(Encoder(dataclasses.replace(TINY, **rates)))
        assert np.abs(only(given, training=True)["sequence"] - still).max() > 1e-2, field
    never = checks.randomize(Encoder(dataclasses.replace(TINY, hidden_dropout=0.0, attention_dropout=0.0)))
    np.testing.assert_allclose(never(given, training=True)["sequence"], still, rtol=0, atol=2e-6)


# === As a Keras model ===


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_config_round_trip(dtype):
    config = dataclasses.replace(TINY, activation="relu", num_segments=3, hidden_dropout=0.3)
    encoder = Encoder(config, dtype=dtype, name="mine")
    again = Encoder.from_config(json.loads(json.dumps(encoder.get_config())))
    assert again.config == config
    assert again.get_config() == encoder.get_config()
    assert (again.name, again.dtype_policy.name, again.blocks[0].attention.query.dtype_policy.name) == (
        "mine",
        dtype,
        dtype,
    )
    assert [w.shape for w in again.weights] == [w.shape for w in encoder.weights]


def test_inside_a_functional_model(encoder):
    given = checks.features([6, 3])
    given["padding_mask"] = given["padding_mask"].astype("int32")
    inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in given}
    taps = encoder(inputs, taps=("sequence", "layers"))
    model = keras.Model(inputs, {"last": taps["sequence"], "first": taps["layers"][0]})
    wanted = encoder(given, taps=("sequence", "layers"))
    for out in (model(given), model.predict(given, verbose=0)):
        np.testing.assert_allclose(out["last"], wanted["sequence"], atol=1e-6)
        np.testing.assert_allclose(out["first"], wanted["layers"][0], atol=1e-6)
    fixed = keras.Input((65,), dtype="int32")
    with pytest.raises(ConfigError, match="65 tokens"):
        encoder(fixed)


# === Arithmetic ===


def numpy_bert(w, config, given, gelu):
    """BERT as the paper has it, in float64, from a dict of weights by path."""

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + config.layer_norm_epsilon)
        return x * w[f"encoder/{name}/gamma"] + w[f"encoder/{name}/beta"]

    def dense(x, name):
        return x @ w[f"encoder/{name}/kernel"] + w[f"encoder/{name}/bias"]

    def split(x):
        return np.stack(np.split(x, config.num_heads, axis=-1), axis=1)  # [B, N, T, H]

    ids = given["token_ids"]
    x = w["encoder/tokens/embeddings"][ids] + w["encoder/segments/embeddings"][given["segment_ids"]]
    x = norm(x + w["encoder/positions/embeddings"][: ids.shape[1]], "norm")
    hidden = np.where(given["padding_mask"], 0.0, -np.inf)[:, None, None, :]
    for block in (f"block_{i}" for i in range(config.num_layers)):
        q, k, v = (split(dense(x, f"{block}/attention/{name}")) for name in ("query", "key", "value"))
        weights = np.exp(q @ k.swapaxes(2, 3) / math.sqrt(config.hidden_dim / config.num_heads) + hidden)
        context = np.concatenate(list(np.moveaxis(weights / weights.sum(-1, keepdims=True) @ v, 1, 0)), axis=-1)
        x = norm(x + dense(context, f"{block}/attention/output"), f"{block}/attention_norm")
        inner = gelu(dense(x, f"{block}/feed_forward/inner"))
        x = norm(x + dense(inner, f"{block}/feed_forward/outer"), f"{block}/feed_forward_norm")
    return x


GELUS = {
    "gelu": np.vectorize(lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2)))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}


@pytest.mark.parametrize("activation", list(GELUS))
@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (3, 2)], ids=lambda s: f"L{s[0]}-A{s[1]}")
def test_equals_an_independent_bert(activation, shape):
    config = dataclasses.replace(TINY, activation=activation, num_layers=shape[0], num_heads=shape[1])
    encoder = checks.randomize(Encoder(config), seed=5)
    given = checks.features([9, 4, 1])
    weights = {w.path: w.numpy().astype("float64") for w in encoder.weights}
    wanted = numpy_bert(weights, config, given, GELUS[activation])
    got = np.asarray(encoder(given)["sequence"])
    difference = np.abs(got - wanted)[given["padding_mask"]]
    assert difference.max() <= 1e-5
    other = numpy_bert(weights, config, given, GELUS["gelu" if activation == "gelu_tanh" else "gelu_tanh"])
    assert np.abs(other - wanted)[given["padding_mask"]].max() > 2e-5, "the two activations can be told apart"


def test_attention_by_hand():
    """One head of width 1 over two tokens: query 1, keys 0 and ln 3, values 10 and 20."""
    config = dataclasses.replace(TINY, hidden_dim=1, num_heads=1)
    attention = build(Attention(config))
    for layer, kernel, bias in (
        (attention.query, 0.0, 1.0),
        (attention.key, math.log(3), 0.0),
        (attention.value, 10.0, 10.0),
        (attention.output_dense, 2.0, 0.5),
    ):
        layer.set_weights([np.array([[kernel]]), np.array([bias])])
    out, taps = attention(
        tf.constant([[0.0], [1.0]]),
        rows=Rows(tf.constant([[1, 1]])),
        visible=tf.constant([[[[True, True]]]]),
        where=checks.below().where,
        positions=tf.constant([[0, 1]]),
    )
    np.testing.assert_allclose(taps["attentions"][0, 0], [[0.25, 0.75]] * 2, atol=1e-6)
    np.testing.assert_allclose(out, [[0.5 + 2 * 17.5]] * 2, atol=1e-5)  # 0.25 * 10 + 0.75 * 20 = 17.5


# === Sixteen bits ===


def test_in_sixteen_bits_the_gradients_of_a_row_of_a_table_add_up():
    table = build(Embedding(TINY, TINY.vocab_size, dtype="mixed_bfloat16"))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(table(np.full((8, 512), 3, "int32")))
    slope = tf.convert_to_tensor(tape.gradient(loss, table.embeddings.value)).numpy()
    wanted = np.zeros(slope.shape, "float32")
    wanted[3] = 8 * 512
    np.testing.assert_array_equal(slope, wanted)
    assert slope.dtype == wanted.dtype


# === Padding ===


@pytest.mark.parametrize("positions", sorted(POSITIONS))
def test_without_padding_the_same_is_learnt(positions):
    """Rows with padding behind, in front and inside, and one of nothing but padding: values and all gradients."""
    config = dataclasses.replace(TINY, positions=positions, hidden_dropout=0.0, attention_dropout=0.0)
    encoder, given = checks.randomize(Encoder(config)), checks.features([6, 3, 5, 4])
    given["padding_mask"] = np.array([[1] * 6, [1, 1, 1, 0, 0, 0], [0, 1, 1, 0, 0, 1], [0] * 6], bool)
    there = given["padding_mask"][..., None]

    def learnt(tokens_only):
        encoder.tokens_only = tokens_only
        with tf.GradientTape() as tape:
            out = encoder(given, training=True)["sequence"]
            loss = tf.reduce_sum(tf.sin(out) * there)
        values = [v.value for v in encoder.trainable_variables]
        return out.numpy(), [tf.convert_to_tensor(g).numpy() for g in tape.gradient(loss, values)]

    (wanted, slopes), (found, others) = learnt(False), learnt(True)
    np.testing.assert_allclose(found, wanted * there, rtol=0, atol=1e-5)
    assert np.abs(wanted[~given["padding_mask"]]).min() > 0
    for variable, slope, other in zip(encoder.trainable_variables, slopes, others, strict=True):
        np.testing.assert_allclose(other, slope, rtol=1e-5, atol=1e-5, err_msg=variable.path)


# === Other backends ===

ELSEWHERE = """
import json, sys
import numpy as np
import keras
assert keras.backend.backend() == sys.argv[1]
import keras_bert.tasks.network
from keras_bert.config import EncoderConfig, HeadConfig
network = keras_bert.tasks.network.Network(EncoderConfig(**json.loads(sys.argv[2])), HeadConfig(labels=("a", "b", "c")))
stored = dict(np.load(sys.argv[3]))
given = {name.split(":")[1]: stored.pop(name) for name in list(stored) if name.startswith("given:")}
assert sorted(stored) == sorted(w.path for w in network.weights)
for weight in network.weights:
    weight.assign(stored[weight.path])
taps = network.encoder(given, taps=("sequence", "attentions"))
outputs = {"sequence": taps["sequence"], "attention": taps["attentions"][-1], **network.answer(given)}
np.savez(sys.argv[4], **{name: keras.ops.convert_to_numpy(value) for name, value in outputs.items()})
assert "tensorflow" not in sys.modules
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_equal_on_other_backends_and_without_tensorflow(backend, tmp_path):
    if find_spec(backend) is None:
        pytest.skip(reason=f"{backend} is not installed")
    network = checks.randomize(Network(TINY, HeadConfig(labels=("a", "b", "c"))))
    given = checks.features([6, 3])
    stored = {w.path: w.numpy() for w in network.weights} | {f"given:{name}": x for name, x in given.items()}
    np.savez(tmp_path / "in.npz", **stored)
    files = [str(tmp_path / "in.npz"), str(tmp_path / "out.npz")]
    command = [sys.executable, "-c", ELSEWHERE, backend, json.dumps(to_dict(TINY)), *files]
    done = subprocess.run(
        command, env={**os.environ, "KERAS_BACKEND": backend}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    taps = network.encoder(given, taps=("sequence", "attentions"))
    wanted = {"sequence": taps["sequence"], "attention": taps["attentions"][-1], **network.answer(given)}
    there = np.load(tmp_path / "out.npz")
    assert set(there) == set(wanted)
    for name in wanted:
        np.testing.assert_allclose(there[name], wanted[name], rtol=0, atol=1e-5, err_msg=name)
        assert there[name].dtype == wanted[name].dtype, name
