"""Doors of training: what a trick may change in a step, held by gradients, and that shut doors change nothing."""

import dataclasses
import math

import numpy as np
import pytest
import tensorflow as tf
import test_training as toys
from conftest import slow

from keras_bert.bert import Bert
from keras_bert.config import HeadConfig, OptimizerConfig, TrainConfig
from keras_bert.errors import ConfigError
from keras_bert.tasks.network import Network
from keras_bert.training import doors
from keras_bert.training.doors import Doors, ExtraLoss, Pass
from keras_bert.training.finetune import HeadTask, LabelledRows
from keras_bert.training.optimizers import AdamW
from keras_bert.training.step import Task, Trainer


class Recorder(AdamW):
    """Leaves its gradient in each weight."""

    def change(self, variable, step):
        variable.assign(step.gradient)


RECORD = OptimizerConfig(optimizer=Recorder, clip_norm=0.0)


def step(trick, start, strategy="one_device", **config):
    """One step with a trick: its trainer, what it said, and the gradient of each weight."""
    settings = TrainConfig(distribution_strategy=strategy, train_batch_size=8, **config)

    def make(policy):
        return HeadTask(Network(start.encoder.config, start.head.config, dtype=policy))

    trainer = Trainer(make, start, RECORD, settings, 10, trick)
    rows = LabelledRows(toys.toy(8), toys.TEXT, settings)
    (batch,) = trainer.take(rows.distributed(trainer, [np.arange(8)], 8))
    trainer.train(batch)
    said = trainer.flush()
    return trainer, said, {name: value for name, value in trainer.state().items() if not name.startswith("optimizer")}


def shut(trainer):
    return Doors()


# === View ===


def identity(trainer):
    return Doors(view=lambda variable: variable.value)


def with_lstm():
    encoder = dataclasses.replace(toys.ONE, num_layers=2)
    return toys.randomized(Network(encoder, HeadConfig(labels=("0", "1"), head_lstm=4)))


@pytest.mark.parametrize(
    "config",
    [
        {},
        slow({"mixed_precision": "bfloat16", "grad_accum_steps": 2}),
        {"recompute": True, "mixed_precision": "bfloat16"},
        slow({"strategy": "mirrored"}),
        slow({"jit_compile": "on", "eval_batch_size": 8}),
        slow({"lstm": True}),
    ],
    ids=str,
)
def test_a_view_that_changes_nothing_gives_the_same_loss_gradients_and_seeds(config):
    config = dict(config)
    start = with_lstm() if config.pop("lstm", False) else toys.with_dropout()
    (_, plain, wanted), (_, viewed, found) = (step(trick, start, **config) for trick in (shut, identity))
    assert viewed == plain
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    gradients = [value for name, value in wanted.items() if name.startswith("weights/") and "kernel" in name]
    assert len(gradients) > 6
    assert all(np.abs(value).max() > 0 for value in gradients)
    moved = [value for name, value in wanted.items() if name.startswith("seeds/")]
    assert {int(value[1]) for value in moved if value[1]}, "some seed has moved"


@pytest.mark.parametrize("recompute", [False, True])
def test_where_a_view_hides_a_weight_its_gradient_is_zero_and_elsewhere_that_of_the_hidden_network(recompute):
    start, hidden, masks = toys.network(), toys.network(), {}
    random = np.random.default_rng(3)
    for weight in hidden.weights:
        if weight.path.endswith("kernel"):
            masks[weight.path] = random.integers(0, 2, weight.shape).astype("float32")
            weight.assign(weight * masks[weight.path])

    def pruned(trainer):
        return Doors(view=lambda v: v.value * masks[v.path] if v.path in masks else None)

    _, said, found = step(pruned, start, recompute=recompute)
    _, like, wanted = step(shut, hidden, recompute=recompute)
    assert said["loss"] == like["loss"]
    for path, mask in masks.items():
        gradient = found[f"weights/{path}"]
        assert (gradient[mask == 0] == 0).all(), path
        np.testing.assert_array_equal(gradient[mask == 1], wanted[f"weights/{path}"][mask == 1], err_msg=path)
        assert np.abs(gradient).max() > 0, path


# === Ascent ===

EPSILON = 0.5


def fgm(run, zeros):
    """Miyato et al. 2017: half on the embeddings, half on those moved by a fixed length up the gradient of a row."""
    clean = run(zeros())
    length = tf.norm(clean.ascent, axis=[1, 2], keepdims=True)
    moved = run(tf.math.divide_no_nan(EPSILON * clean.ascent, length))
    return Pass(clean.sums, [(a + b) / 2 for a, b in zip(clean.gradients, moved.gradients, strict=True)])


def loss_at(network, batch, shift):
    """The mean loss of a batch whose embeddings are made here, token rows + shift."""
    encoder, features = network.encoder, network.encoder.complete(batch["features"])
    rows = tf.gather(encoder.tokens.embeddings.value, features["token_ids"]) + shift
    rows += tf.gather(encoder.segments.embeddings.value, features["segment_ids"])
    embedded = encoder.norm(encoder.where.embed(rows, features["positions"]))
    logits = network.head(encoder.contextualise(embedded, features, network.head.taps) | features)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["labels"], tf.cast(logits, tf.float32))
    return tf.reduce_mean(losses)


@pytest.mark.parametrize("config", [{}, slow({"grad_accum_steps": 4}), slow({"recompute": True})], ids=str)
def test_a_method_of_ascent_is_five_lines(config, monkeypatch):
    monkeypatch.setitem(doors.ASCENTS, "fgm", fgm)
    start = toys.network()
    trainer, said, found = step(lambda trainer: Doors(ascent="fgm"), start, **config)
    rows = LabelledRows(toys.toy(8), toys.TEXT, trainer.config)
    (batch,) = trainer.take(rows.distributed(trainer, [np.arange(8)], 8))
    weights = [v.value for v in start.trainable_variables]
    zero = tf.zeros([*batch["features"]["token_ids"].shape, 16])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(zero)
        clean = loss_at(start, batch, zero)
    slope = tape.gradient(clean, zero).numpy()
    lengths = np.sqrt((slope**2).sum((1, 2), keepdims=True))
    assert (slope[~batch["features"]["padding_mask"].numpy()] == 0).all()
    with tf.GradientTape() as other:
        moved = loss_at(start, batch, tf.constant(EPSILON * slope / lengths))
    wanted = [
        (tf.convert_to_tensor(a) + tf.convert_to_tensor(b)) / 2
        for a, b in zip(tape.gradient(clean, weights), other.gradient(moved, weights), strict=True)
    ]
    assert math.isclose(said["loss"], float(clean), rel_tol=1e-5)
    assert float(moved) > float(clean) + 1e-3
    for variable, gradient in zip(start.trainable_variables, wanted, strict=True):
        np.testing.assert_allclose(found[f"weights/{variable.path}"], gradient, atol=2e-6, err_msg=variable.path)


def test_the_shift_of_a_row_goes_up_as_fast_as_its_gradient_says():
    """Against finite differences, in float16 too, whose loss scale must not show."""
    lengths = {}
    for precision in ("none", "float16"):
        kept = []

        def trick(trainer, kept=kept):
            length = tf.Variable(tf.zeros([8]))
            kept.append(length)

            def ascent(run, zeros):
                clean = run(zeros())
                length.assign(tf.norm(clean.ascent, axis=[1, 2]))
                return clean

            return Doors(ascent=ascent, variables={"length": length})

        trainer, _, state = step(trick, toys.network(), mixed_precision=precision)
        lengths[precision] = state["doors/length"]
    np.testing.assert_allclose(lengths["float16"], lengths["none"], rtol=0.1)
    rows = LabelledRows(toys.toy(8), toys.TEXT, trainer.config)
    (batch,) = trainer.take(rows.distributed(trainer, [np.arange(8)], 8))
    start, zero = toys.network(), tf.zeros([*batch["features"]["token_ids"].shape, 16])
    with tf.GradientTape() as tape:
        tape.watch(zero)
        loss = loss_at(start, batch, zero)
    direction = tape.gradient(loss, zero).numpy()
    direction /= np.sqrt((direction**2).sum((1, 2), keepdims=True))
    for row in range(8):
        shift = np.zeros_like(direction)
        shift[row] = 1e-2 * direction[row]
        rise = (loss_at(start, batch, shift) - loss_at(start, batch, -shift)) / 2e-2
        assert math.isclose(float(rise), lengths["none"][row], rel_tol=2e-2)


def test_a_task_that_cannot_shift_says_so():
    with pytest.raises(ConfigError, match="Task cannot shift embeddings, as ascents do"):
        Task().shifted({}, 0.0)
    with pytest.raises(ConfigError, match="unknown ascent 'up'; choose one of none"):
        step(lambda trainer: Doors(ascent="up"), toys.network())


# === After a step ===


def test_what_comes_after_a_step_comes_after_no_other():
    """Three batches of which the second has no finite loss: two updates, and the sums of the weights after each."""

    def trick(trainer):
        count, total = tf.Variable(0), tf.Variable(0.0)
        weight = trainer.network.head.projection.bias
        after = lambda: (count.assign_add(1), total.assign_add(tf.reduce_sum(weight.value)))  # noqa: E731
        return Doors(after_step=(after,), variables={"count": count, "total": total})

    start = toys.network("regress", ())

    def make(policy):
        return HeadTask(Network(start.encoder.config, start.head.config, dtype=policy))

    trainer = Trainer(make, start, toys.OPTIMIZER, TrainConfig(distribution_strategy="one_device"), 10, trick)
    rows = LabelledRows(toys.numbers([1.0, math.inf, 3.0]), toys.TEXT, trainer.config, start.head)
    biases = []
    for batch in trainer.take(rows.distributed(trainer, [np.array([0]), np.array([1]), np.array([2])], 0)):
        trainer.train(batch)
        trainer.flush()
        biases.append(float(trainer.network.head.projection.bias[0]))
    state = trainer.state()
    assert trainer.step == state["doors/count"] == 2
    assert biases[0] == biases[1] != biases[2]
    assert math.isclose(state["doors/total"], biases[0] + biases[2], rel_tol=1e-6)


# === Further losses ===


def test_a_further_loss_is_trained_on_and_told_but_not_evaluated():
    def size(task, batch, logits):
        return tf.reduce_sum(tf.square(tf.cast(logits, tf.float32)), axis=-1)

    def trick(trainer):
        return Doors(losses={"size": ExtraLoss(size, 0.25)})

    start = toys.network()
    trainer, said, found = step(trick, start, grad_accum_steps=2)
    rows = LabelledRows(toys.toy(8), toys.TEXT, trainer.config)
    (batch,) = trainer.take(rows.distributed(trainer, [np.arange(8)], 8))
    kernel = start.head.projection.kernel
    with tf.GradientTape() as tape:
        logits = start(batch["features"])
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["labels"], logits)
        sizes = tf.reduce_sum(logits**2, axis=1)
        total = tf.reduce_mean(losses) + 0.25 * tf.reduce_mean(sizes)
    np.testing.assert_allclose(said["loss"], total, rtol=1e-5)
    np.testing.assert_allclose(said["size/sum"] / said["size/weight"], tf.reduce_mean(sizes), rtol=1e-5)
    gradient = tape.gradient(total, kernel.value)
    np.testing.assert_allclose(found[f"weights/{kernel.path}"], gradient, atol=1e-6)
    steps = []

    def counted(trainer):
        return dataclasses.replace(trick(trainer), after_step=(lambda: steps.append(1),))

    settings = TrainConfig(num_train_epochs=1, train_batch_size=8, distribution_strategy="one_device")
    train, held_out = ((rows.segments[0], [str(i) for i in rows.labels]) for rows in (toys.toy(16), toys.toy(8, 1)))
    bert = Bert(toys.TEXT, start)
    result = bert.fit(*train, None, held_out, settings, toys.OPTIMIZER, progress=None, trick=counted)
    (record,) = result.history
    assert {"train_loss", "train_loss_loss", "train_size_loss", "eval_loss"} <= set(record)
    assert math.isclose(
        record["train_loss"], record["train_loss_loss"] + 0.25 * record["train_size_loss"], rel_tol=1e-5
    )
    assert steps, "what comes after a step is traced"
