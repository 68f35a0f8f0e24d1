"""Training: one device and many give the same, what stops a run, what a run leaves behind, and how it goes on."""

import contextlib
import dataclasses
import io
import json
import math
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from conftest import TINY, WORDS, slow

from keras_bert.bert import Bert
from keras_bert.checkpoints.checkpoints import WEIGHTS_FILE
from keras_bert.config import FROZEN, HeadConfig, OptimizerConfig, RunConfig, TextConfig, TrainConfig
from keras_bert.data.batches import Examples
from keras_bert.errors import CheckpointError, ConfigError, DivergedError, Stopped
from keras_bert.files import sha256
from keras_bert.tasks.network import Network
from keras_bert.text.text import Text
from keras_bert.training import finetune, loop
from keras_bert.training.devices import strategy_for
from keras_bert.training.finetune import HeadTask, LabelledRows, fit
from keras_bert.training.loop import Judge, Keeping, Rounds, run_rounds
from keras_bert.training.states import METRICS_FILE
from keras_bert.training.step import Trainer, copy_weights

ONE = dataclasses.replace(TINY, num_layers=1)  # one layer: most of the time here goes into tracing
STILL = dataclasses.replace(ONE, hidden_dropout=0.0, attention_dropout=0.0)
TEXT = Text(WORDS, TextConfig(max_seq_length=16))
BAD, GOOD = ("fire", "flood", "storm"), ("music", "song", "game")
OPTIMIZER = OptimizerConfig(learning_rate=1e-2)
CLIPPED = OptimizerConfig(learning_rate=1e-3, clip_norm=0.5, weight_decay=0.1)


def network(task="classify", labels=("0", "1"), encoder=STILL, dropout=0.0, seed=7):
    """A tiny network whose weights are the same for the same seed."""
    return randomized(Network(encoder, HeadConfig(task=task, labels=labels, dropout=dropout)), seed)


def randomized(made, seed=7):
    """A network with kernels and tables of one seed."""
    random = np.random.default_rng(seed)
    for weight in made.weights:
        if weight.path.endswith(("kernel", "embeddings")):
            weight.assign(random.normal(0, 0.1, weight.shape))
    return made


def with_dropout():
    return network(encoder=ONE, dropout=0.1)


def toy(rows, seed=0, flip=False):
    """Short texts that one word decides: label 1 where it is one of `BAD`."""
    random = np.random.default_rng(seed)
    labels = np.arange(rows, dtype=np.int32) % 2
    texts = []
    for label in labels:
        word = random.choice(BAD if label else GOOD)
        some = random.choice([*"abcdefgh", "the", "is", "in", "city"], random.integers(0, 8))
        texts.append(" ".join([*some[: len(some) // 2], word, *some[len(some) // 2 :]]))
    return Examples((texts,), 1 - labels if flip else labels)


def numbers(values):
    """Texts with numbers as labels."""
    return Examples(toy(len(values)).segments, np.array(values, np.float32))


def weights(of):
    return {w.path: np.asarray(w) for w in of.weights}


def difference(a, b):
    """The largest difference between the weights of two networks."""
    a, b = weights(a), weights(b)
    assert set(a) == set(b)
    return max(np.abs(a[path] - b[path]).max() for path in a)


def trainer(start, strategy="one_device", steps=20, optimizer=OPTIMIZER, **config):
    settings = TrainConfig(distribution_strategy=strategy, **config)

    def make(policy):
        return HeadTask(Network(start.encoder.config, start.head.config, dtype=policy))

    return Trainer(make, start, optimizer, settings, steps)


def reset(to, start):
    """As if `to` had just been made, without tracing its step again."""
    copy_weights(start, to.network)
    for variable in to.optimizer.variables:
        variable.assign(np.zeros(variable.shape))
    return to


def train(to, examples, batches):
    """What each step says: `[loss, rows, finite]`."""
    rows = LabelledRows(examples, TEXT, to.config)
    said = [to.train(b) for b in to.take(rows.distributed(to, [np.asarray(b, int) for b in batches], 0))]
    said = [*said[1:], to.flush()]
    return [[found[name] for name in ("loss", "loss/weight", "finite")] for found in said]


def evaluate(to, examples):
    """Mean loss, and answers in the order of the rows."""
    return LabelledRows(examples, TEXT, to.config).evaluate(to)


def uneven(rows, size, steps):
    """`steps` batches of at most `size` of `rows` rows; every epoch's last one is what is left."""
    random, batches = np.random.default_rng(0), []
    while len(batches) < steps:
        order = random.permutation(rows)
        batches += [order[i : i + size] for i in range(0, rows, size)]
    return batches[:steps]


def run(
    start, rows=24, evaluation=None, model_dir=None, optimizer=OPTIMIZER, say=None, save_best=None, config=None, **train
):
    """`fit` of a toy task; returns the result and the lines said."""
    lines = []
    settings = TrainConfig(**{"num_train_epochs": 2, "train_batch_size": 8} | train)
    result = fit(
        start,
        TEXT,
        toy(rows),
        evaluation or toy(12, seed=1),
        settings,
        optimizer,
        Keeping(model_dir, config or RunConfig()),
        save_best or (model_dir and keep_in(model_dir)),
        say or lines.append,
    )
    return result, lines


def keep_in(folder):
    """What `Bert.fit_rows` does when an epoch is the best so far."""

    def save(best, record):
        Bert(TEXT, best).save(folder, record)

    return save


def snapshot(folder):
    """Every file with its content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def without_times(history):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run of four epochs with dropout: its network, its result and its directory."""
    start, folder = with_dropout(), tmp_path_factory.mktemp("undisturbed")
    result, _ = run(start, num_train_epochs=4, model_dir=folder)
    return start, result, folder


@pytest.fixture(scope="module")
def compiled():
    """A trainer whose step is traced; `reset` makes it new."""
    return trainer(network(), optimizer=dataclasses.replace(OPTIMIZER, clip_norm=1e3, weight_decay=0.0))


# === One device and many ===


@pytest.fixture
def two_devices():
    """Skips where mirrored training would not be on the two logical processors that conftest makes."""
    if tf.config.list_logical_devices("GPU"):
        pytest.skip(reason="there is a GPU here; two logical processors are what this test mirrors to")


@pytest.mark.usefixtures("two_devices")
def test_two_devices_train_like_one_on_uneven_batches():
    start, examples = network(), toy(33)
    batches = uneven(33, 8, steps=20)
    assert {len(b) for b in batches} == {8, 1}, "one row: the second device gets none"
    runs = {kind: trainer(start, kind, optimizer=CLIPPED) for kind in ("one_device", "mirrored")}
    said = {kind: train(run, examples, batches) for kind, run in runs.items()}
    assert {kind: run.strategy.num_replicas_in_sync for kind, run in runs.items()} == {"one_device": 1, "mirrored": 2}
    assert [count for _, count, _ in said["mirrored"]] == [len(b) for b in batches]
    np.testing.assert_allclose(said["mirrored"], said["one_device"], rtol=0, atol=2e-6)
    assert difference(runs["one_device"].network, start) > 1e-3
    assert difference(runs["one_device"].network, runs["mirrored"].network) <= 2e-6
    losses, answers = zip(*(evaluate(run, examples) for run in runs.values()), strict=True)
    assert losses[0] == pytest.approx(losses[1], abs=2e-6)
    np.testing.assert_allclose(answers[0]["probabilities"], answers[1]["probabilities"], rtol=0, atol=2e-6)


def test_parts_of_a_batch_train_like_the_whole():
    """33 rows in batches of 8: the last of an epoch has one row, and three of its parts have none."""
    start, examples, batches = network(), toy(33), uneven(33, 8, steps=20)
    whole, parts = (trainer(start, optimizer=CLIPPED, grad_accum_steps=n) for n in (1, 4))
    said = [train(to, examples, batches) for to in (whole, parts)]
    np.testing.assert_allclose(said[1], said[0], rtol=0, atol=2e-6)
    assert difference(whole.network, start) > 1e-3
    assert difference(whole.network, parts.network) <= 2e-6


def test_layers_that_are_computed_again_train_like_those_that_are_kept():
    """With dropout: both times the same has to be dropped."""
    start, examples, batches = with_dropout(), toy(33), uneven(33, 8, steps=6)
    runs = [trainer(start, recompute=again) for again in (False, True)]
    said = [train(to, examples, batches) for to in runs]
    assert difference(runs[0].network, start) > 1e-4
    np.testing.assert_allclose(said[1], said[0], rtol=0, atol=2e-6)
    assert difference(runs[0].network, runs[1].network) <= 2e-6


def test_two_processes_train_like_one(tmp_path):
    """Real processes that talk over the loopback; both evaluate all rows."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        cluster = {"worker": [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]}
    script, workers = Path(__file__).parents[1] / "worker.py", []
    for index in range(2):
        settings = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
        command = [sys.executable, script, tmp_path / f"{index}.npz"]
        workers.append(subprocess.Popen(command, env=os.environ | {"TF_CONFIG": settings}, stderr=subprocess.PIPE))
    for one in workers:
        _, err = one.communicate(timeout=240)
        assert one.returncode == 0, err.decode()
    start, examples = network(), toy(33)
    alone = trainer(start, optimizer=CLIPPED)
    said = train(alone, examples, uneven(33, 8, steps=20))
    loss, answers = evaluate(alone, examples)
    for index in range(2):
        found = dict(np.load(tmp_path / f"{index}.npz"))
        assert found.pop("who").tolist() == [index, 2]
        np.testing.assert_allclose(found.pop("said"), said, rtol=0, atol=2e-6)
        np.testing.assert_allclose(found.pop("scores"), answers["probabilities"], rtol=0, atol=2e-6)
        assert float(found.pop("loss")) == pytest.approx(loss, abs=2e-6)
        for path, value in weights(alone.network).items():
            np.testing.assert_allclose(found.pop(path.replace("/", "|")), value, rtol=0, atol=2e-6)
        assert not found


@pytest.mark.parametrize("by_length", [True, False])
def test_rows_of_like_length_go_together_only_where_that_is_asked_for(by_length, monkeypatch):
    examples = Examples((["a", "a b c d e f"] * 16,))
    rows = LabelledRows(examples, TEXT, TrainConfig(train_batch_size=8), network().head, by_length=by_length)
    monkeypatch.setattr(rows, "distributed", lambda trainer, batches, size: batches)
    batches = rows.training(None, 0)
    assert sorted(np.concatenate(batches)) == list(range(32))
    assert [len({*rows.lengths[batch]}) == 1 for batch in batches] == [by_length] * 4


def test_a_compiled_step_of_fixed_shapes_is_the_plain_step():
    start, examples, batches = network(), toy(33), uneven(33, 8, steps=6)
    plain = trainer(start, optimizer=CLIPPED)
    compiled = trainer(start, optimizer=CLIPPED, jit_compile="on", train_batch_size=8, eval_batch_size=8)
    rows = LabelledRows(examples, TEXT, compiled.config)
    for batch in compiled.take(rows.distributed(compiled, batches, 8)):
        assert batch["features"]["token_ids"].shape == (8, 16)
        compiled.train(batch)
    train(plain, examples, batches)
    assert difference(plain.network, compiled.network) <= 5e-6
    (loss, answers), (wanted, right) = evaluate(compiled, examples), evaluate(plain, examples)
    assert loss == pytest.approx(wanted, abs=5e-6)
    np.testing.assert_allclose(answers["probabilities"], right["probabilities"], rtol=0, atol=5e-6)


@pytest.mark.usefixtures("two_devices")
@pytest.mark.slow
def test_two_devices_train_with_dropout_and_in_sixteen_bits():
    to = trainer(with_dropout(), "mirrored", steps=60, mixed_precision="bfloat16")
    said = train(to, toy(33), uneven(33, 8, steps=60))
    assert all(finite for *_, finite in said)
    assert to.step == 60
    assert np.mean([loss for loss, *_ in said[-5:]]) < 0.5 * np.mean([loss for loss, *_ in said[:5]])


@pytest.mark.slow
@pytest.mark.usefixtures("two_devices")
def test_a_run_on_two_devices_goes_on_as_if_it_had_not_stopped(tmp_path):
    settings = {"num_train_epochs": 3, "distribution_strategy": "mirrored", "rows": 33}
    whole = with_dropout()
    run(whole, **settings)

    def say(line):
        if line.startswith("epoch 2"):
            raise Killed

    with pytest.raises(Killed):
        run(with_dropout(), model_dir=tmp_path, say=say, **settings)
    start = with_dropout()
    _, lines = run(start, model_dir=tmp_path, **settings)
    assert lines[0].endswith("after step 5")
    assert lines[1].startswith("training on 2 x CPU")
    assert difference(start, whole) == 0


@pytest.mark.parametrize(
    ("flags", "cluster", "message"),
    [
        ({"distribution_strategy": "tpu", "tpu": "local"}, "", "no TPU local can be used"),
        ({"distribution_strategy": "tpu"}, "", "no TPU of this machine can be used"),
        (
            {"distribution_strategy": "parameter_server"},
            "",
            "parameter_server is not offered: .* multi_worker_mirrored",
        ),
        ({"distribution_strategy": "multi_worker_mirrored"}, "", "TF_CONFIG, which is not set; it looks like"),
        ({"distribution_strategy": "multi_worker_mirrored"}, "{}", "TF_CONFIG, which is '{}'"),
    ],
)
def test_what_cannot_be_had_is_said_in_a_line(flags, cluster, message, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", cluster)
    with pytest.raises(ConfigError, match=message) as found:
        strategy_for(TrainConfig(**flags))
    assert "\n" not in str(found.value)


def test_an_environment_in_which_weights_are_not_seen_to_change_is_refused(monkeypatch):
    """TensorFlow would go on with the weights of the first step, in all dense layers, and say nothing."""
    monkeypatch.setenv(FROZEN, "0")
    strategy_for(TrainConfig())
    monkeypatch.setenv(FROZEN, "1")
    with pytest.raises(ConfigError, match=f"{FROZEN} is set in the environment: .* unset it"):
        strategy_for(TrainConfig())


def test_more_gpus_than_there_are_is_refused_with_the_devices():
    with pytest.raises(ConfigError, match=r"num_gpus is 99 but \d+ are visible; the devices are .*/device:CPU:0"):
        strategy_for(TrainConfig(num_gpus=99))


@pytest.mark.usefixtures("two_devices")
@pytest.mark.parametrize(
    ("flags", "replicas"),
    [
        ({}, 1),
        ({"num_gpus": 0}, 1),
        ({"distribution_strategy": "one_device"}, 1),
        ({"distribution_strategy": "mirrored"}, 2),
    ],
)
def test_strategy_of_the_flags(flags, replicas):
    assert strategy_for(TrainConfig(**flags)).num_replicas_in_sync == replicas


# === One step ===


def features_of(examples, rows):
    made = TEXT([examples.segments[0][i] for i in rows])
    return {name: made[name] for name in ("token_ids", "segment_ids", "padding_mask")}


def test_the_loss_of_a_step_is_the_mean_over_its_rows(compiled):
    start, examples, rows = network(), toy(9), [8, 3, 5]
    ((loss, count, finite),) = train(reset(compiled, start), examples, [rows])
    logits = np.asarray(start(features_of(examples, rows)), np.float64)
    each = np.log(np.exp(logits).sum(1)) - logits[np.arange(3), examples.labels[rows]]
    assert (count, finite) == (3, 1)
    assert loss == pytest.approx(each.mean(), abs=1e-6)


def test_an_empty_batch_changes_no_weight(compiled):
    start = network()
    ((loss, _, finite),) = train(reset(compiled, start), toy(8), [[]])
    assert (loss, finite) == (0, 1)
    assert difference(compiled.network, start) == 0


def gradient_by_hand(start, examples):
    """The gradient of the mean loss, outside of any trainer."""
    with tf.GradientTape() as tape:
        logits = start(features_of(examples, range(len(examples))))
        loss = tf.reduce_mean(start.head.loss(examples.labels, logits))
    gradients = tape.gradient(loss, [v.value for v in start.trainable_variables])
    return np.concatenate([np.ravel(tf.convert_to_tensor(g)) for g in gradients])


def gradient_seen(to):
    """The gradient that the optimizer got in its only step, from its first moments."""
    moments = [np.ravel(v) for v in to.optimizer.variables if v.path.endswith("_first")]
    assert len(moments) == len(to.network.trainable_variables)
    return np.concatenate(moments) / (1 - to.optimizer.config.beta_1)


def test_a_gradient_below_the_bound_is_the_plain_one(compiled):
    start, examples = network(), toy(8)
    train(reset(compiled, start), examples, [range(8)])
    wanted = gradient_by_hand(start, examples)
    assert 0.01 < np.linalg.norm(wanted) < compiled.clip_norm
    np.testing.assert_allclose(gradient_seen(compiled), wanted, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def regression():
    """A trainer of numbers, with clipping to 0.25."""
    return trainer(network("regress", ()), optimizer=dataclasses.replace(OPTIMIZER, clip_norm=0.25))


def test_a_huge_gradient_is_clipped_to_the_norm_and_keeps_its_direction(regression):
    start, examples = network("regress", ()), numbers([1e4] * 8)
    train(reset(regression, start), examples, [range(8)])
    free, clipped = gradient_by_hand(start, examples), gradient_seen(regression)
    assert np.linalg.norm(free) > 1e3
    assert np.linalg.norm(clipped) == pytest.approx(0.25, rel=1e-5)
    assert clipped @ free / np.linalg.norm(clipped) / np.linalg.norm(free) == pytest.approx(1, abs=1e-6)


# === Losses that are no numbers ===


def test_a_step_without_a_finite_loss_is_no_step(regression):
    """A batch with a label that is no number, between two good ones, leaves no trace."""
    start, examples = network("regress", ()), numbers([*np.linspace(-1, 1, 11), math.nan])
    good, spoilt = [range(4), range(4, 8)], range(8, 12)
    assert [f for *_, f in train(reset(regression, start), examples, [good[0], spoilt, good[1]])] == [1, 0, 1]
    assert regression.step == 2
    found = [np.asarray(v) for v in (*regression.network.weights, *regression.optimizer.variables)]
    train(reset(regression, start), examples, good)
    assert difference(regression.network, start) > 0
    for value, variable in zip(found, (*regression.network.weights, *regression.optimizer.variables), strict=True):
        np.testing.assert_array_equal(value, np.asarray(variable))


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_epoch(tmp_path):
    """The loss overflows in the second epoch: label 3e38 is a number, its square is none."""
    assert DivergedError.exit_code == 4
    start, good, bad = network("regress", ()), numbers(np.linspace(-1, 1, 8)), numbers([3e38] * 8)
    kept = Keeping(tmp_path)
    fit(start, TEXT, good, good, TrainConfig(num_train_epochs=1), OPTIMIZER, kept, keep_in(tmp_path), list)
    before = snapshot(tmp_path / "checkpoints")
    again = network("regress", ())
    with pytest.raises(DivergedError, match=r"^epoch 2/3, step 1 of 1: .* lower --learning_rate \(now 0.01\)"):
        fit(again, TEXT, bad, good, TrainConfig(num_train_epochs=3), OPTIMIZER, kept, None, list)
    assert snapshot(tmp_path / "checkpoints") == before
    assert difference(again, start) == 0


# === Sixteen bits ===


@pytest.fixture(scope="module")
def half():
    """A trainer with float16."""
    optimizer = OptimizerConfig(learning_rate=5e-3, warmup_proportion=0)
    return trainer(network(), steps=80, mixed_precision="float16", optimizer=optimizer)


@pytest.mark.slow
def test_sixteen_bits_learn(half):
    """In place of a whole run each: 80 steps, and an evaluation."""
    optimizer = OptimizerConfig(learning_rate=5e-3, warmup_proportion=0)
    brain = trainer(network(), steps=80, mixed_precision="bfloat16", optimizer=optimizer)
    reset(half, network()).loss_scale.assign(2.0**15)
    for to, kind in ((brain, "bfloat16"), (half, "float16")):
        assert to.network.compute_dtype == kind
        assert {w.dtype for w in to.network.weights} == {"float32"}
        losses = [loss for loss, *_ in train(to, toy(64), uneven(64, 8, steps=80))]
        assert np.mean(losses[-8:]) < 0.5 * np.mean(losses[:8])
        answers = evaluate(to, toy(40, seed=5))[1]
        assert {answers[name].dtype.name for name in ("probabilities", "scores", "score")} == {"float32"}
        assert np.mean(answers["class_id"] == toy(40, seed=5).labels) > 0.9


def test_the_loss_scale_halves_on_overflow_and_training_goes_on(half):
    reset(half, network()).loss_scale.assign(2.0**24)  # 16 bits end at 65504
    said = train(half, toy(32), [range(32)] * 20)
    finite = [bool(f) for *_, f in said]
    first, skipped = finite.index(True), finite.count(False)
    assert 0 < first <= skipped < 15, "the first steps overflow"
    assert float(half.loss_scale) == 2.0 ** (24 - skipped)
    assert half.step == 20 - skipped
    losses = [loss for loss, *_ in said]
    assert losses[:first] == [losses[0]] * first, "no step was made before"
    assert losses[-1] < losses[0]


def test_the_loss_scale_doubles_after_2000_good_steps(half):
    reset(half, network()).loss_scale.assign(2.0**10)
    half.good_steps.assign(1998)
    train(half, toy(8), [range(8)])
    assert (float(half.loss_scale), int(half.good_steps)) == (2.0**10, 1999)
    train(half, toy(8), [range(8)])
    assert (float(half.loss_scale), int(half.good_steps)) == (2.0**11, 0)


def test_a_run_that_overflows_at_every_scale_has_diverged(half):
    """Otherwise it would end well without having learnt anything.

    The pooled vector is about 0 and so are the logits, but 16 slopes of 6e4 add up to more than 65504.
    """
    start = network()
    named = {w.path: w for w in start.weights}
    named["head/logits/kernel"].assign(np.full((16, 2), 6e4) * [-1, 1])
    named["head/pooler/dense/kernel"].assign(np.full((16, 16), 0.1))
    reset(half, start).loss_scale.assign(4.0)
    ((loss, _, finite),) = train(half, toy(8), [range(1)])
    assert math.isfinite(loss)
    assert (finite, float(half.loss_scale)) == (0, 2)
    rows = LabelledRows(toy(8), TEXT, half.config)
    with pytest.raises(DivergedError, match=r"^epoch 1/1, step 1 of 4: .* or train without mixed precision"):
        run_rounds(
            half,
            lambda step: rows.distributed(half, [np.arange(1)] * 4, 8),
            Rounds(4, 4),
            Judge(dict, list),
            Keeping(),
            {},
            list,
            None,
        )


# === What a run comes to ===


def test_it_learns_what_one_word_decides():
    result, lines = run(with_dropout(), rows=96, evaluation=toy(60, seed=5), num_train_epochs=6)
    assert result.best["accuracy"] > 0.95
    assert result.best["f1"] > 0.95
    assert [r["epoch"] for r in result.history] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in result.history] == [12, 24, 36, 48, 60, 72]
    assert [line[:9] for line in lines if line.startswith("epoch")] == [f"epoch {i}/6" for i in range(1, 7)]


def test_the_best_epoch_is_what_is_left_in_the_network_and_on_disk(tmp_path):
    """The evaluation labels are the wrong way round, so learning makes it worse: an early epoch is the best."""
    start, kept, evaluation = network(), [], toy(32, seed=3, flip=True)

    def save(best, record):
        kept.append((record, weights(best)))
        keep_in(tmp_path)(best, record)

    result, _ = run(start, rows=64, evaluation=evaluation, num_train_epochs=7, model_dir=tmp_path, save_best=save)
    scores = [record["f1"] for record in result.history]
    best = scores.index(max(scores))
    assert best < 6
    assert scores[-1] < scores[best], "the test is of no use otherwise"
    assert result.best == result.history[best] == kept[-1][0]
    np.testing.assert_equal(weights(start), kept[-1][1])
    loaded = Bert.load(tmp_path)
    assert difference(loaded.network, start) == 0
    predicted = [answer["label"] for answer in loaded.predict(evaluation.segments[0])]
    assert predicted == [str(i) for i in result.answers["class_id"]]
    assert json.loads((tmp_path / "keras_bert.json").read_text("utf-8"))["notes"] == result.best


@pytest.mark.slow
def test_another_seed_gives_another_result_and_no_directory_no_files(tmp_path, monkeypatch, undisturbed):
    """That one seed gives one result is what the tests of going on rest on."""
    monkeypatch.chdir(tmp_path)
    other = with_dropout()
    result, _ = run(other, num_train_epochs=1, seed=2)
    assert difference(other, undisturbed[0]) > 1e-4
    assert result.history[0]["train_loss"] != undisturbed[1].history[0]["train_loss"]
    assert not list(tmp_path.iterdir())


def test_a_collapsed_model_is_called_so_and_progress_goes_to_its_stream():
    start, lines, stream = network(), [], io.StringIO()
    bias = next(w for w in start.weights if w.path == "head/logits/bias")
    bias.assign([100.0, -100.0])
    settings = TrainConfig(num_train_epochs=2, train_batch_size=8)
    slow = OptimizerConfig(learning_rate=1e-6)
    fit(start, TEXT, toy(16), toy(8), settings, slow, say=lines.append, progress=stream)
    (warning,) = [line for line in lines if line.startswith("warning")]
    assert "every one of the 8 evaluation rows got the same label; the model has collapsed" in warning
    assert "below 1e-06" in warning
    assert lines.index(warning) == 1, "with the first epoch, and not again"
    shown = stream.getvalue().splitlines()
    assert [line[:14] for line in shown if "  2/2 " in line] == ["epoch 1/2  2/2", "epoch 2/2  2/2"]


@pytest.mark.parametrize(
    ("labels", "predicted", "warned"),
    [([0, 1, 1], [1, 1, 1], True), ([0, 1, 1], [1, 1, 0], False), ([1, 1, 1], [1, 1, 1], False), ([1], [0], False)],
)
def test_what_counts_as_collapsed(labels, predicted, warned):
    lines = []
    finetune._warn_if_collapsed(labels, {"class_id": np.array(predicted)}, OPTIMIZER, lines.append)
    assert bool(lines) == warned


def test_metrics_and_events_can_be_read(undisturbed):
    _, result, folder = undisturbed
    lines = (folder / METRICS_FILE).read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == result.history
    assert {"epoch", "step", "train_loss", "eval_loss", "accuracy", "f1", "seconds"} <= set(result.history[0])
    found = {}
    for file in (folder / "tensorboard").glob("events.out.tfevents.*"):
        for record in tf.data.TFRecordDataset(str(file)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                (found[event.step, value.tag],) = struct.unpack("<f", value.tensor.tensor_content)
    for record in result.history:
        for name in ("train_loss", "eval_loss", "accuracy", "f1"):
            assert found[record["step"], name] == pytest.approx(record[name], rel=1e-6)


# === Going on ===


def test_averaged_weights_are_evaluated_and_kept_and_training_goes_on_from_the_plain_ones(tmp_path):
    optimizer = dataclasses.replace(OPTIMIZER, ema_decay=0.9)
    start, plain = with_dropout(), with_dropout()
    result, _ = run(start, model_dir=tmp_path, optimizer=optimizer)
    other, _ = run(plain)
    assert [r["train_loss"] for r in result.history] == [r["train_loss"] for r in other.history]
    assert result.history[-1]["eval_loss"] != other.history[-1]["eval_loss"]
    assert difference(start, plain) > 1e-4
    assert difference(Bert.load(tmp_path).network, start) == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), slow(signal.SIGINT, 130), slow(0, 75)])
def test_a_run_that_is_told_to_stop_saves_at_the_next_step_and_goes_on(number, code, tmp_path, undisturbed):
    """By a signal, or (0) by the clock."""

    def say(line):
        if line.startswith("epoch 1") and number:
            os.kill(os.getpid(), number)

    keeping = Keeping(tmp_path, RunConfig(max_time=0 if number else 1e-3), catch_signals=True)
    settings = TrainConfig(num_train_epochs=4, train_batch_size=8)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="the same command goes on") as stopped:
        fit(with_dropout(), TEXT, toy(24), toy(12, seed=1), settings, OPTIMIZER, keeping, keep_in(tmp_path), say)
    assert signal.getsignal(signal.SIGTERM) == before
    assert stopped.value.exit_code == code
    assert f"after step {3 if number else 1} of 12" in str(stopped.value)
    start = with_dropout()
    result, _ = run(start, num_train_epochs=4, model_dir=tmp_path)
    assert without_times(result.history) == without_times(undisturbed[1].history)
    assert difference(start, undisturbed[0]) == 0


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(1)


def test_a_second_signal_acts_at_once():
    with loop._asked_to_stop(Keeping(catch_signals=True)) as stop:
        interrupt()
        assert stop.asked()
        with pytest.raises(KeyboardInterrupt):
            interrupt()


def test_a_directory_that_is_deleted_ends_the_run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()

    def say(line):
        if line.startswith("epoch 1"):
            shutil.rmtree(folder)

    with pytest.raises(CheckpointError, match=r"cannot be (re)?written|was deleted"):
        run(network(), model_dir=folder, say=say)
    assert not folder.exists()


def test_a_dry_run_keeps_nothing_and_says_what_the_run_will_take(tmp_path):
    start = with_dropout()
    with pytest.raises(Stopped, match=r"first step .* 6 steps take about 0:0.* a state is .* nothing was kept") as done:
        run(start, config=RunConfig(dry_run=True))
    assert done.value.exit_code == 0
    assert difference(start, with_dropout()) == 0


def test_profiled_steps_leave_a_profile(tmp_path):
    run(network(), model_dir=tmp_path, config=RunConfig(profile_steps="1,2"))
    assert list((tmp_path / "tensorboard").rglob("*.xplane.pb"))


class Killed(Exception):
    """Stands for a power cut."""


@pytest.mark.parametrize("where", ["after the evaluation of epoch 3", slow("before the first state is written")])
def test_a_run_that_was_killed_ends_like_one_that_was_not(where, tmp_path, undisturbed):
    def say(line):
        if "evaluation" in where and line.startswith("epoch 3"):
            raise Killed

    def save(best, record):
        keep_in(tmp_path)(best, record)
        if "state" in where:
            raise Killed

    settings = {"num_train_epochs": 4, "model_dir": tmp_path}
    with pytest.raises(Killed):
        run(with_dropout(), say=say, save_best=save, **settings)
    done = 2 if "evaluation" in where else 0
    start = with_dropout()
    result, lines = run(start, **settings)
    assert lines[0].startswith(f"continuing the run in {tmp_path} after step {3 * done}" if done else "training on")
    assert without_times(result.history) == without_times(undisturbed[1].history)
    assert len(result.history) == 4
    assert result.best["epoch"] == undisturbed[1].best["epoch"]
    assert difference(start, undisturbed[0]) == 0
    assert difference(Bert.load(tmp_path).network, undisturbed[0]) == 0
    assert [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text("utf-8").splitlines()] == result.history
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "step-000000009.safetensors",
        "step-000000012.safetensors",
    ]


def test_a_finished_run_is_not_trained_again(undisturbed):
    first, result, folder = undisturbed
    before = snapshot(folder)
    start = with_dropout()
    again, lines = run(start, num_train_epochs=4, model_dir=folder)
    assert lines[0].endswith("after step 12")
    assert not [line for line in lines if line.startswith("epoch")]
    assert (again.best, again.history) == (result.best, result.history)
    np.testing.assert_allclose(again.answers["probabilities"], result.answers["probabilities"], rtol=0, atol=1e-6)
    assert difference(start, first) == 0
    after = snapshot(folder)
    assert {name: after.get(name) for name in before} == before


def cut(path):
    path.write_bytes(path.read_bytes()[:100])


def delete(path):
    path.unlink()


def empty(path):
    path.write_bytes(b"")


def rubbish(path):
    path.write_bytes(b"\x00{rubbish")


def flip(path):
    """Change one bit in the middle of the tensors."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("spoil", [cut, flip, slow(empty), slow(rubbish)])
def test_a_run_goes_on_from_the_state_before_a_broken_one(spoil, undisturbed, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(undisturbed[2], folder)
    spoil(folder / "checkpoints" / "step-000000012.safetensors")
    start = with_dropout()
    result, lines = run(start, num_train_epochs=4, model_dir=folder)
    assert "step-000000012.safetensors" in lines[0]
    assert lines[0].startswith("warning: ")
    assert lines[1] == f"continuing the run in {folder} after step 9"
    assert without_times(result.history) == without_times(undisturbed[1].history)
    assert difference(start, undisturbed[0]) == 0


@pytest.mark.parametrize(
    ("spoil", "files", "message"),
    [
        (cut, "checkpoints/*", "step-000000012.safetensors: broken or not a state .* no other state can be read"),
        (flip, "checkpoints/*", "step-000000012.safetensors: its content does not fit its checksum"),
        (delete, "checkpoints/*", "has metrics.jsonl but no state"),
        (cut, WEIGHTS_FILE, "model.safetensors: broken or not a safetensors file"),
    ],
)
def test_a_broken_run_is_refused_and_not_started_anew(spoil, files, message, undisturbed, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(undisturbed[2], folder)
    for file in folder.glob(files):
        spoil(file)
    before = sha256(folder / WEIGHTS_FILE)
    with pytest.raises(CheckpointError, match=message) as found:
        run(with_dropout(), num_train_epochs=5, model_dir=folder)
    assert "\n" not in str(found.value)
    assert sha256(folder / WEIGHTS_FILE) == before


def test_a_state_of_another_model_is_refused_with_the_differences(undisturbed, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(undisturbed[2], folder)
    other = network(encoder=dataclasses.replace(ONE, num_layers=2), dropout=0.1)
    with pytest.raises(
        CheckpointError, match=r"of another model: .*block_1.* is missing there.* and .* more; start anew"
    ):
        run(other, num_train_epochs=4, model_dir=folder)


def test_a_run_directory_that_was_moved_goes_on(undisturbed, tmp_path):
    folder = tmp_path / "moved"
    shutil.copytree(undisturbed[2], folder)
    _, lines = run(with_dropout(), num_train_epochs=4, model_dir=folder)
    assert lines[0] == f"continuing the run in {folder} after step 12"
