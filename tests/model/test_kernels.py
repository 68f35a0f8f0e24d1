"""Activations, layer norm and masked softmax against their definitions in plain Python and NumPy."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from keras_bert.errors import ConfigError
from keras_bert.model import kernels

POINTS = [-100.0, -5.0, -1.0, -0.5, 0.0, 1e-6, 0.5, 1.0, 2.0, 5.0, 100.0]


def exact_gelu(x: float) -> float:
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))


def tanh_gelu(x: float) -> float:
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize(("ours", "definition"), [("gelu", exact_gelu), ("gelu_tanh", tanh_gelu)])
def test_gelu_has_the_values_of_its_definition(ours, definition):
    got = np.asarray(kernels.activation(ours)(ops.convert_to_tensor(POINTS, "float32")))
    np.testing.assert_allclose(got, [definition(x) for x in POINTS], rtol=1e-6, atol=1e-6)


def test_the_two_gelus_are_not_the_same():
    x = ops.convert_to_tensor(np.linspace(-4, 4, 801), "float32")
    apart = np.abs(np.asarray(kernels.gelu(x)) - np.asarray(kernels.gelu_tanh(x))).max()
    assert 4e-4 < apart < 5e-4
    assert float(kernels.gelu(ops.convert_to_tensor(1.0))) == pytest.approx(0.8413447, abs=1e-6)  # 1 * Phi(1)


@pytest.mark.parametrize(("ours", "definition"), [("gelu", exact_gelu), ("gelu_tanh", tanh_gelu)])
def test_gelu_has_the_slope_of_its_definition(ours, definition):
    x = tf.constant([-3.0, -0.7, 0.0, 0.3, 2.0])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = kernels.activation(ours)(x)
    wanted = [(definition(v + 1e-5) - definition(v - 1e-5)) / 2e-5 for v in x.numpy().astype("float64")]
    np.testing.assert_allclose(tape.gradient(y, x), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", sorted(kernels.ACTIVATIONS))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_activations_keep_their_dtype(name, dtype):
    y = kernels.activation(name)(ops.convert_to_tensor([-1.0, 0.0, 1.0], dtype))
    assert keras.backend.standardize_dtype(y.dtype) == dtype
    assert np.isfinite(np.asarray(ops.cast(y, "float32"))).all()


def test_unknown_activation():
    with pytest.raises(ConfigError, match=r"unknown activation 'swish'; choose one of gelu, gelu_tanh, relu, tanh"):
        kernels.activation("swish")


def norm_in_numpy(x, gamma, beta, epsilon):
    x = x.astype("float64")
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * gamma + beta


def test_layer_norm_by_hand():
    # mean 2, deviations -1 0 1, variance 2/3: -1.2247, 0, 1.2247; times 2, plus 1
    out = kernels.layer_norm(ops.convert_to_tensor([[1.0, 2.0, 3.0]]), ops.full((3,), 2.0), ops.ones((3,)), 0.0)
    np.testing.assert_allclose(out, [[1 - math.sqrt(6), 1.0, 1 + math.sqrt(6)]], atol=1e-6)


@pytest.mark.parametrize("offset", [0.0, 100.0, 3000.0])
def test_layer_norm_equals_numpy(offset):
    random = np.random.default_rng(0)
    x = (random.normal(size=(4, 5, 64)) + offset).astype("float32")
    gamma, beta = random.normal(size=(2, 64)).astype("float32")
    out = np.asarray(kernels.layer_norm(ops.convert_to_tensor(x), gamma, beta, 1e-12))
    # Two passes: the error is the rounding of the mean, not of a difference of squares.
    wanted = norm_in_numpy(x, gamma, beta, 1e-12)
    np.testing.assert_allclose(out, wanted, rtol=0, atol=1e-6 + 3e-7 * offset)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_layer_norm_of_16_bits_has_statistics_in_float32(dtype):
    # 768 values beside 50: in 16 bits their sum (38400) and squares would lose the deviations or overflow.
    x = ops.cast(50.0 + np.random.default_rng(1).normal(size=(8, 768)), dtype)
    wide = np.asarray(ops.cast(x, "float32"))
    out = kernels.layer_norm(x, ops.ones((768,)), ops.zeros((768,)), 1e-12)
    assert keras.backend.standardize_dtype(out.dtype) == dtype
    wanted = norm_in_numpy(wide, 1.0, 0.0, 1e-12)
    half_a_bit = {"bfloat16": 2**-8, "float16": 2**-11}[dtype]
    np.testing.assert_allclose(ops.cast(out, "float32"), wanted, rtol=1.01 * half_a_bit, atol=1e-5)


def test_layer_norm_of_equal_values_is_beta():
    out = kernels.layer_norm(ops.full((2, 8), 7.25), ops.full((8,), 3.0), ops.full((8,), 0.5), 1e-12)
    np.testing.assert_array_equal(out, np.full((2, 8), 0.5, "float32"))


def test_masked_softmax_by_hand():
    scores = ops.convert_to_tensor([[[[0.0, math.log(3.0), 50.0]]]], "float32")
    mask = ops.convert_to_tensor([[[[True, True, False]]]])
    out = np.asarray(kernels.masked_softmax(scores, mask))
    np.testing.assert_allclose(out[0, 0, 0], [0.25, 0.75, 0.0], atol=1e-7)
    assert out[0, 0, 0, 2] == 0.0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_fully_masked_row_is_uniform(dtype):
    scores = ops.cast(np.random.default_rng(2).normal(size=(2, 3, 4, 8)) * 100, dtype)
    mask = np.ones((2, 1, 1, 8), bool)
    mask[1] = False
    out = kernels.masked_softmax(scores, ops.convert_to_tensor(mask))
    assert keras.backend.standardize_dtype(out.dtype) == dtype
    out = np.asarray(ops.cast(out, "float32"))
    np.testing.assert_array_equal(out[1], np.full((3, 4, 8), 1 / 8, "float32"))
    np.testing.assert_allclose(out[0].sum(-1), 1.0, atol=0.02)
    assert np.abs(out[0] - 1 / 8).max() > 0.5


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_masked_score_gets_no_gradient(dtype):
    scores = tf.cast(tf.random.stateless_normal((1, 2, 3, 4), seed=(1, 2)), dtype)
    mask = tf.constant([[[[True, False, True, False]]]])
    with tf.GradientTape() as tape:
        tape.watch(scores)
        loss = tf.reduce_sum(kernels.masked_softmax(scores, mask) * tf.cast([1.0, 2.0, 3.0, 4.0], dtype))
    gradient = tape.gradient(loss, scores).numpy()
    assert np.abs(gradient[..., [1, 3]]).max() == 0.0
    assert np.abs(gradient[..., [0, 2]]).min() > 0.0


# === Heads ===


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_heads_change_places_with_tokens_in_value_and_gradient(dtype):
    x = tf.cast(tf.random.stateless_normal((2, 5, 3, 4), seed=(1, 2)), dtype)
    incoming = tf.cast(tf.random.stateless_normal((2, 3, 5, 4), seed=(3, 4)), dtype)

    def both(swap):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = swap(x)
        return [tf.cast(v, tf.float32).numpy() for v in (y, tape.gradient(y, x, incoming))]

    wanted = both(lambda x: ops.transpose(x, (0, 2, 1, 3)))
    for found, value in zip(both(kernels.swap), wanted, strict=True):
        np.testing.assert_array_equal(found, value)
    np.testing.assert_array_equal(tf.cast(kernels.swap(kernels.swap(x)), tf.float32), tf.cast(x, tf.float32))


# === Padding ===


@pytest.mark.parametrize("form", ["fast", "plain"])
def test_rows_of_tokens_are_gathered_and_spread_in_value_and_gradient(form, monkeypatch):
    if form == "plain":
        monkeypatch.setattr(kernels, "GRADIENTS", {})
    there = np.array([1, 0, 1, 1, 0, 0], bool)
    places, numbers = tf.constant([0, 2, 3]), tf.constant([0, 3, 1, 2, 3, 3])
    x = tf.constant(np.random.default_rng(1).normal(size=(6, 4)), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(x)
        few = kernels.gather(x, places, numbers)
        all_ = kernels.spread(few, places, numbers)
    slope_few, slope = (tf.convert_to_tensor(g) for g in tape.gradient(all_, [few, x], x + 1))
    np.testing.assert_array_equal(few, x.numpy()[there])
    np.testing.assert_array_equal(all_, x.numpy() * there[:, None])
    np.testing.assert_array_equal(slope_few, x.numpy()[there] + 1)
    np.testing.assert_array_equal(slope, (x.numpy() + 1) * there[:, None])


# === Dropout ===

FORMS = {"plain": keras.random.dropout, "bytes": kernels.DROPOUTS["tensorflow"]}


def seeds(value=7):
    return keras.random.SeedGenerator(value)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dropout_drops_or_scales_and_its_gradient_does_the_same(form, dtype):
    """The definition and the fast form alike: of a given mask there is one value and one gradient."""
    x = tf.cast(tf.random.stateless_normal((37, 11, 5), seed=(1, 2)), dtype)
    incoming = tf.cast(tf.random.stateless_normal(x.shape, seed=(3, 4)), dtype)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = FORMS[form](x, 0.25, seed=seeds())
    assert (y.dtype, y.shape) == (x.dtype, x.shape)
    kept = (y != 0).numpy()
    assert kept.mean() == pytest.approx(0.75, abs=0.04)
    rounding = {"float32": 1e-6, "bfloat16": 2**-6, "float16": 2**-9}[dtype]
    wide, slope, out = (tf.cast(v, "float32").numpy() for v in (x, tape.gradient(y, x, incoming), y))
    np.testing.assert_allclose(out, np.where(kept, wide / 0.75, 0), rtol=rounding)
    np.testing.assert_allclose(slope, np.where(kept, tf.cast(incoming, "float32") / 0.75, 0), rtol=rounding)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9, 0.003])
def test_dropout_keeps_the_mean_and_about_the_rate(rate):
    ones = tf.ones((1000, 1001))
    for form in FORMS.values():
        out = form(ones, rate, seed=seeds()).numpy()
        deviation = math.sqrt(rate / (1 - rate) / out.size)  # of the mean of the scaled elements
        assert out.mean() == pytest.approx(1.0, abs=5 * deviation)
        assert (out == 0).mean() == pytest.approx(rate, rel=0.02, abs=5 * math.sqrt(rate * (1 - rate) / out.size))
        for axis in (0, 1):  # no row or column is dropped more than chance lets it
            assert np.abs(out.mean(axis) - 1).max() < 6 * math.sqrt(rate / (1 - rate) / 1000)


def test_thresholds():
    assert [kernels.threshold(rate) for rate in (0.1, 0.5, 0.2)] == [(26, 8), (128, 8), (51, 8)]
    assert kernels.threshold(0.01) == (655, 16)  # 3/256 is too much
    for rate in (0.999, 0.9999999):  # something is kept, as the scale must be finite
        k, bits = kernels.threshold(rate)
        assert 2**bits - k > 0
    assert kernels.threshold(1e-7) == (0, 16)
    for rate in np.linspace(0.001, 0.999, 999):
        k, bits = kernels.threshold(rate)
        assert k / 2**bits == pytest.approx(rate, rel=0.021)


def test_the_seed_alone_decides_what_is_dropped():
    """Eager, in a graph, compiled, and in a loop; and each call takes the next seed."""
    x = tf.ones((6, 33))

    def twice(generator):
        return tf.stack([kernels.dropout(x, 0.5, generator) for _ in range(2)])

    def looped(generator):
        start = (tf.constant(0), tf.zeros((0, 6, 33)))
        shapes = (tf.TensorShape([]), tf.TensorShape([None, 6, 33]))
        step = lambda i, out: (i + 1, tf.concat([out, kernels.dropout(x, 0.5, generator)[None]], 0))  # noqa: E731
        return tf.while_loop(lambda i, _: i < 2, step, start, shapes)[1]

    wanted = twice(seeds()).numpy()
    assert (wanted[0] != wanted[1]).any()
    assert (twice(seeds(8)).numpy() != wanted).any()
    for compiled in (tf.function(twice), tf.function(twice, jit_compile=True), tf.function(looped)):
        generator = seeds()
        np.testing.assert_array_equal(compiled(generator), wanted)
        assert (compiled(generator).numpy() != wanted).any()


def test_dropout_of_any_shape():
    for shape in [(0, 4), (1,), (), (3, 0), (5, 7)]:
        assert kernels.dropout(tf.ones(shape), 0.1, seeds()).shape == shape
    traced = tf.function(lambda x: kernels.dropout(x, 0.1, generator), input_signature=[tf.TensorSpec([None, None])])
    generator = seeds()
    assert traced(tf.ones((3, 5))).shape == (3, 5)


# === Adam ===


@pytest.mark.parametrize("steps", [1, 20])
def test_adam_in_one_pass_is_its_definition(steps, monkeypatch):
    random = np.random.default_rng(0)
    start, gradients = random.normal(size=(7, 5)), random.normal(size=(steps, 7, 5)).astype("float32")
    found, betas = [], (float(np.float32(0.9)), float(np.float32(0.999)))
    for forms in (kernels.ADAMS, {}):
        monkeypatch.setattr(kernels, "ADAMS", forms)
        variable, first, second = (tf.Variable(v, dtype=tf.float32) for v in (start, 0 * start, 0 * start))
        for gradient in gradients:
            rate, epsilon = tf.constant(0.01), tf.constant(1e-6)
            kernels.adam(variable, (first, second), tf.constant(gradient), rate, betas, epsilon)
        found.append([v.numpy() for v in (variable, first, second)])
    assert np.abs(found[0][0] - start).max() > 1e-3
    for fast, plain in zip(*found, strict=True):
        np.testing.assert_allclose(fast, plain, rtol=1e-6, atol=1e-8)


# === Forms for training ===


def slopes(function, *inputs):
    """The value, and its gradients for a random upstream one."""
    inputs = [tf.constant(value) for value in inputs]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        value = function(*inputs)
    upstream = tf.cast(tf.random.stateless_normal(value.shape, [1, 2]), value.dtype)
    return [value, *tape.gradient(value, inputs, upstream)]


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 2e-5), ("bfloat16", 5e-2)])
@pytest.mark.parametrize("rows", [0, 1, 50])
def test_layer_norm_for_training_is_its_definition(dtype, bound, rows):
    random = np.random.default_rng(0)
    x = tf.cast(random.normal(3, 5, (rows, 24)), dtype).numpy()
    gamma, beta = (random.normal(size=24).astype("float32") for _ in range(2))
    plain, fast = (
        slopes(lambda *v, t=training: kernels.layer_norm(*v, 1e-12, training=t), x, gamma, beta)
        for training in (False, True)
    )
    for a, b in zip(fast, plain, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(ops.cast(a, "float32"), ops.cast(b, "float32"), rtol=bound, atol=bound)


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-6), ("bfloat16", 2e-2)])
def test_masked_softmax_for_training_is_its_definition(dtype, bound):
    random = np.random.default_rng(0)
    scores = tf.cast(random.normal(0, 9, (3, 2, 5, 7)), dtype).numpy()
    mask = np.arange(7) < np.array([7, 3, 0])[:, None, None, None]
    plain, fast = (
        slopes(lambda s, t=training: kernels.masked_softmax(s, tf.constant(mask), training=t), scores)
        for training in (False, True)
    )
    for a, b in zip(fast, plain, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(ops.cast(a, "float32"), ops.cast(b, "float32"), rtol=0, atol=bound)
