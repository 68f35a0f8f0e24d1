"""The promises that every layer, head and network of this package keeps, each as one function.

A part is told by how to build it and how to run it on the encoder's features; the test of a new part is

    @pytest.mark.parametrize("promise", checks.PROMISES)
    def test_promises(promise, tmp_path):
        promise(checks.Part(build=..., run=...), tmp_path)
"""

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from conftest import TINY

from keras_bert.model.encoder import Encoder, Rows
from keras_bert.model.masks import attention_mask

TOLERANCE = 1e-5
ROUNDING = {"mixed_bfloat16": 0.2, "mixed_float16": 0.03}
"""How far 16-bit outputs may lie from float32 ones whose size is about 1: 8 and 11 bits, over two blocks."""


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """The same answers under the same names: floats within 1e-5, all else equal."""
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        if np.asarray(value).dtype.kind == "f":
            np.testing.assert_allclose(found[name], value, atol=TOLERANCE, err_msg=name)
        else:
            np.testing.assert_array_equal(found[name], value, err_msg=name)


@dataclass(frozen=True)
class Part:
    """Something to check.

    Args:
        build: dtype policy -> a layer or model that has its weights.
        run: (layer, features) -> a tensor, first axis B.
        positions: is the second axis of the output T? Only valid positions are then compared.
        silent: suffix of the weights whose gradient is zero by nature.
    """

    build: Callable[[str], Any]
    run: Callable[[Any, dict[str, Any]], Any]
    positions: bool = True
    silent: str = "nothing"


def features(lengths: list[int], width: int | None = None, seed: int = 0) -> dict[str, np.ndarray]:
    """Random rows of these lengths, padded to `width` with id 0; the first row is the same for one seed."""
    width = width or max(lengths)
    token_ids = np.zeros((len(lengths), width), "int32")
    segment_ids = np.zeros((len(lengths), width), "int32")
    for row, length in enumerate(lengths):
        random = np.random.default_rng([seed, row])
        token_ids[row, :length] = random.integers(1, TINY.vocab_size, length)
        segment_ids[row, length // 2 : length] = 1
    return {"token_ids": token_ids, "segment_ids": segment_ids, "padding_mask": token_ids != 0}


def randomize(layer: Any, seed: int = 0) -> Any:
    """Give every weight a size that matters: fresh biases are 0 and fresh kernels next to it."""
    random = np.random.default_rng(seed)
    for weight in layer.weights:
        centre = 1.0 if weight.path.endswith("gamma") else 0.0
        weight.assign(random.normal(centre, 0.3, weight.shape).astype("float32"))
    return layer


@functools.cache
def below() -> Encoder:
    """The encoder whose embeddings feed the parts that do not make their own."""
    return randomize(Encoder(TINY), seed=99)


def on_vectors(layer: Any, given: dict[str, Any]) -> Any:
    """Run a layer of `[B, T, D]`."""
    return layer(below().embed(given))


def on_rows(layer: Any, given: dict[str, Any]) -> Any:
    """Run a layer of rows `[R, D]` that looks at other positions: `Attention`, `Block`."""
    full = below().complete(given)
    rows = Rows(full["token_ids"])
    out, _ = layer(
        rows.to_rows(below().embed(full)),
        rows=rows,
        visible=attention_mask(below().rules[0], full, TINY),
        where=below().where,
        positions=full["positions"],
    )
    return rows.to_batch(out)


def on_single_rows(layer: Any, given: dict[str, Any]) -> Any:
    """Run a layer of rows `[R, D]` that looks at no others: `FeedForward`."""
    full = below().complete(given)
    rows = Rows(full["token_ids"])
    return rows.to_batch(layer(rows.to_rows(below().embed(full)), rows=rows)[0])


def on_features(model: Any, given: dict[str, Any]) -> Any:
    """Run an encoder or a network."""
    out = model(given)
    return out["sequence"] if isinstance(out, dict) else out


def saved_weights_give_the_same_outputs(part: Part, folder: Path) -> None:
    class Holder(keras.Model):
        def __init__(self, held: Any) -> None:
            super().__init__()
            self.held = held
            self.built = True

    given = features([5, 3])
    first, second = randomize(part.build("float32"), 1), randomize(part.build("float32"), 2)
    wanted = np.asarray(part.run(first, given))
    assert np.abs(wanted - np.asarray(part.run(second, given))).max() > 1e-3
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)  # inside Keras
        Holder(first).save_weights(folder / "part.weights.h5")
    Holder(second).load_weights(folder / "part.weights.h5")
    np.testing.assert_array_equal(np.asarray(part.run(second, given)), wanted)


def a_row_does_not_depend_on_the_batch(part: Part, folder: Path) -> None:
    layer = randomize(part.build("float32"))
    alone = np.asarray(part.run(layer, features([4])))[0]
    keep = slice(4) if part.positions else slice(None)
    for lengths, width in (([4, 4], None), ([4, 4, 2], 4), ([4, 20], None), ([4], 33)):
        together = np.asarray(part.run(layer, features(lengths, width)))[0]
        np.testing.assert_allclose(together[keep], alone, rtol=0, atol=TOLERANCE)


def padding_content_does_not_matter(part: Part, folder: Path) -> None:
    layer = randomize(part.build("float32"))
    given = features([4, 7])
    other = dict(given, token_ids=given["token_ids"].copy(), segment_ids=given["segment_ids"].copy())
    other["token_ids"][0, 4:], other["segment_ids"][0, 4:] = 9, 1
    keep = slice(4) if part.positions else slice(None)
    outs = [np.asarray(part.run(layer, f))[0] for f in (given, other)]
    np.testing.assert_allclose(outs[1][keep], outs[0][keep], rtol=0, atol=TOLERANCE)


def a_row_of_padding_only_is_finite(part: Part, folder: Path) -> None:
    for policy in ("float32", "mixed_bfloat16", "mixed_float16"):
        out = part.run(randomize(part.build(policy)), features([0, 3]))
        assert np.isfinite(np.asarray(out).astype("float32")).all(), policy


def a_batch_of_none_works(part: Part, folder: Path) -> None:
    layer = randomize(part.build("float32"))
    some = features([5, 3])
    whole = np.asarray(part.run(layer, some))
    names = ("token_ids", "segment_ids", "padding_mask")
    kinds = dict(zip(names, ("int32", "int32", "bool"), strict=True))
    signature = {name: tf.TensorSpec((None, None), kinds[name], name) for name in names}
    traced = tf.function(lambda **given: part.run(layer, given)).get_concrete_function(**signature)

    def call(given: dict[str, np.ndarray]) -> np.ndarray:
        return np.asarray(traced(**{name: tf.constant(given[name]) for name in names}))

    np.testing.assert_allclose(call(some), whole, rtol=0, atol=TOLERANCE)
    none = call({name: some[name][:0] for name in names})
    assert none.shape == (0, *whole.shape[1:])
    assert none.dtype == whole.dtype


def sixteen_bits_compute_nearly_the_same(part: Part, folder: Path) -> None:
    given = features([5, 3])
    wanted = np.asarray(part.run(randomize(part.build("float32")), given))
    for policy, tolerance in ROUNDING.items():
        layer = randomize(part.build(policy))
        out = np.asarray(part.run(layer, given))
        assert out.dtype.name == policy.removeprefix("mixed_"), policy
        assert {w.dtype for w in layer.weights} == {"float32"}, "weights stay in 32 bits"
        keep = given["padding_mask"] if part.positions else slice(None)
        difference = np.abs(out[keep].astype("float32") - wanted[keep])
        assert 0 < difference.max() < tolerance * max(1.0, np.abs(wanted[keep]).max()), policy


def every_weight_learns(part: Part, folder: Path) -> None:
    layer = randomize(part.build("float32"))
    with tf.GradientTape() as tape:
        out = part.run(layer, features([6, 5]))
        loss = tf.reduce_sum(out * np.random.default_rng(3).normal(size=out.shape).astype("float32"))
    gradients = tape.gradient(loss, [w.value for w in layer.trainable_weights])
    assert layer.trainable_weights
    for weight, gradient in zip(layer.trainable_weights, gradients, strict=True):
        assert gradient is not None, f"no gradient reaches {weight.path}"
        size = np.abs(np.asarray(tf.convert_to_tensor(gradient))).max()
        assert np.isfinite(size), weight.path
        if weight.path.endswith(part.silent):
            assert size < 1e-4, weight.path
        else:
            assert size > 1e-4, f"no gradient reaches {weight.path}"


PROMISES: tuple[Callable[[Part, Path], None], ...] = (
    saved_weights_give_the_same_outputs,
    a_row_does_not_depend_on_the_batch,
    padding_content_does_not_matter,
    a_row_of_padding_only_is_finite,
    a_batch_of_none_works,
    sixteen_bits_compute_nearly_the_same,
    every_weight_learns,
)
