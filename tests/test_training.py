"""Training: one device and many give the same, what stops a run, what a run leaves behind, and how it goes on."""

import dataclasses
import io
import json
import math
import shutil
import struct

import numpy as np
import pytest
import tensorflow as tf
from conftest import TINY, WORDS

from keras_bert import training
from keras_bert.bert import Bert
from keras_bert.checkpoints import WEIGHTS_FILE, sha256
from keras_bert.config import HeadConfig, OptimizerConfig, TextConfig, TrainConfig
from keras_bert.data import Examples
from keras_bert.errors import CheckpointError, ConfigError, DivergedError
from keras_bert.heads import Network
from keras_bert.text import Text
from keras_bert.training import METRICS_FILE, Trainer, fit, strategy_for

ONE = dataclasses.replace(TINY, num_layers=1)  # one layer: most of the time here goes into tracing
STILL = dataclasses.replace(ONE, hidden_dropout=0.0, attention_dropout=0.0)
TEXT = Text(WORDS, TextConfig(max_seq_length=16))
BAD, GOOD = ("fire", "flood", "storm"), ("music", "song", "game")
OPTIMIZER = OptimizerConfig(learning_rate=1e-2)


def network(task="classify", labels=("0", "1"), encoder=STILL, dropout=0.0, seed=7):
    """A tiny network whose weights are the same for the same seed."""
    made = Network(encoder, HeadConfig(task=task, labels=labels, dropout=dropout))
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
    return Examples(texts, None, 1 - labels if flip else labels)


def numbers(values):
    """Texts with numbers as labels."""
    return Examples(toy(len(values)).texts, None, np.array(values, np.float32))


def weights(of):
    return {w.path: np.asarray(w) for w in of.weights}


def difference(a, b):
    """The largest difference between the weights of two networks."""
    a, b = weights(a), weights(b)
    assert set(a) == set(b)
    return max(np.abs(a[path] - b[path]).max() for path in a)


def trainer(start, strategy="one_device", steps=20, optimizer=OPTIMIZER, **config):
    return Trainer(start, TEXT, optimizer, TrainConfig(distribution_strategy=strategy, **config), steps)


def reset(to, start):
    """As if `to` had just been made, without tracing its step again."""
    training.copy_weights(start, to.network)
    for variable in to.optimizer.variables:
        variable.assign(np.zeros(variable.shape))
    return to


def train(to, examples, batches):
    """What each step says: `[loss, rows, finite]`."""
    return list(to.train_batches(to.distribute(examples, [np.asarray(b, int) for b in batches])))


def uneven(rows, size, steps):
    """`steps` batches of at most `size` of `rows` rows; every epoch's last one is what is left."""
    random, batches = np.random.default_rng(0), []
    while len(batches) < steps:
        order = random.permutation(rows)
        batches += [order[i : i + size] for i in range(0, rows, size)]
    return batches[:steps]


def run(start, rows=24, evaluation=None, model_dir=None, optimizer=OPTIMIZER, say=None, save_best=None, **config):
    """`fit` of a toy task; returns the result and the lines said."""
    lines = []
    settings = TrainConfig(**{"num_train_epochs": 2, "train_batch_size": 8} | config)
    result = fit(
        start,
        TEXT,
        toy(rows),
        evaluation or toy(12, seed=1),
        settings,
        optimizer,
        model_dir,
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
    start, examples = network(encoder=dataclasses.replace(STILL, num_layers=2)), toy(33)
    batches = uneven(33, 8, steps=20)
    assert {len(b) for b in batches} == {8, 1}, "one row: the second device gets none"
    optimizer = OptimizerConfig(learning_rate=1e-3, clip_norm=0.5, weight_decay=0.1)
    runs = {kind: trainer(start, kind, optimizer=optimizer) for kind in ("one_device", "mirrored")}
    said = {kind: train(run, examples, batches) for kind, run in runs.items()}
    assert {kind: run.strategy.num_replicas_in_sync for kind, run in runs.items()} == {"one_device": 1, "mirrored": 2}
    assert [count for _, count, _ in said["mirrored"]] == [len(b) for b in batches]
    np.testing.assert_allclose(said["mirrored"], said["one_device"], rtol=0, atol=2e-6)
    assert difference(runs["one_device"].network, start) > 1e-3
    assert difference(runs["one_device"].network, runs["mirrored"].network) <= 2e-6
    losses, answers = zip(*(run.evaluate(examples) for run in runs.values()), strict=True)
    assert losses[0] == pytest.approx(losses[1], abs=2e-6)
    np.testing.assert_allclose(answers[0]["probabilities"], answers[1]["probabilities"], rtol=0, atol=2e-6)


@pytest.mark.usefixtures("two_devices")
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
    assert lines[0].endswith("after epoch 1")
    assert lines[1].startswith("training on 2 x CPU")
    assert difference(start, whole) == 0


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
    made = TEXT([examples.texts[i] for i in rows])
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
    fit(start, TEXT, good, good, TrainConfig(num_train_epochs=1), OPTIMIZER, tmp_path, keep_in(tmp_path), list)
    before = snapshot(tmp_path / "checkpoints")
    again = network("regress", ())
    with pytest.raises(DivergedError, match=r"^epoch 2/3, step 1 of 1: .* lower --learning_rate \(now 0.01\)"):
        fit(again, TEXT, bad, good, TrainConfig(num_train_epochs=3), OPTIMIZER, tmp_path, None, list)
    assert snapshot(tmp_path / "checkpoints") == before
    assert difference(again, start) == 0


# === Sixteen bits ===


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_sixteen_bits_learn(precision):
    start = network()
    result, _ = run(start, rows=64, mixed_precision=precision, num_train_epochs=8)
    assert {w.dtype for w in start.weights} == {"float32"}
    losses = [record["train_loss"] for record in result.history]
    assert losses[-1] < 0.5 * losses[0]
    assert result.best["accuracy"] > 0.9


@pytest.fixture(scope="module")
def half():
    """A trainer with float16."""
    optimizer = OptimizerConfig(learning_rate=5e-3, warmup_proportion=0)
    return trainer(network(), mixed_precision="float16", optimizer=optimizer)


def test_the_loss_scale_halves_on_overflow_and_training_goes_on(half):
    reset(half, network()).loss_scale.assign(2.0**24)  # 16 bits end at 65504
    said = train(half, toy(32), [range(32)] * 20)
    finite = [bool(f) for *_, f in said]
    skipped = finite.index(True)
    assert 0 < skipped < 15, "the first steps overflow"
    assert all(finite[skipped:])
    assert float(half.loss_scale) == 2.0 ** (24 - skipped)
    assert half.step == 20 - skipped
    losses = [loss for loss, *_ in said]
    assert losses[:skipped] == [losses[0]] * skipped, "no step was made before"
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
    ((loss, _, finite),) = train(half, toy(8), [range(8)])
    assert math.isfinite(loss)
    assert (finite, float(half.loss_scale)) == (0, 2)
    batches = half.distribute(toy(8), [np.arange(8)] * 4)
    with pytest.raises(DivergedError, match=r"^epoch 1/1, step 1 of 4: .* or train without mixed precision"):
        training._train_epoch(half, batches, 4, "epoch 1/1", None)


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
    predicted = [answer["label"] for answer in loaded.predict(evaluation.texts)]
    assert predicted == [str(i) for i in result.answers["class_id"]]
    assert json.loads((tmp_path / "keras_bert.json").read_text("utf-8"))["notes"] == result.best


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
    assert lines.index(warning) == 2, "after the first epoch, and not again"
    shown = stream.getvalue().splitlines()
    assert [line[:14] for line in shown] == ["epoch 1/2  2/2", "epoch 2/2  2/2"]


@pytest.mark.parametrize(
    ("labels", "predicted", "warned"),
    [([0, 1, 1], [1, 1, 1], True), ([0, 1, 1], [1, 1, 0], False), ([1, 1, 1], [1, 1, 1], False), ([1], [0], False)],
)
def test_what_counts_as_collapsed(labels, predicted, warned):
    lines = []
    training._warn_if_collapsed(labels, {"class_id": np.array(predicted)}, OPTIMIZER, lines.append)
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


class Killed(Exception):
    """Stands for a power cut."""


@pytest.mark.parametrize("where", ["after the evaluation of epoch 3", "while the best so far is saved"])
def test_a_run_that_was_killed_ends_like_one_that_was_not(where, tmp_path, undisturbed):
    saved = []

    def say(line):
        if "evaluation" in where and line.startswith("epoch 3"):
            raise Killed

    def save(best, record):
        if "saved" in where and saved:
            raise Killed
        saved.append(record)
        keep_in(tmp_path)(best, record)

    settings = {"num_train_epochs": 4, "model_dir": tmp_path}
    with pytest.raises(Killed):
        run(with_dropout(), say=say, save_best=save, **settings)
    done = len((tmp_path / METRICS_FILE).read_text("utf-8").splitlines())
    assert 0 < done < 4
    start = with_dropout()
    result, lines = run(start, **settings)
    assert lines[0] == f"continuing the run in {tmp_path} after epoch {done}"
    assert without_times(result.history) == without_times(undisturbed[1].history)
    assert len(result.history) == 4
    assert result.best["epoch"] == undisturbed[1].best["epoch"]
    assert difference(start, undisturbed[0]) == 0
    assert difference(Bert.load(tmp_path).network, undisturbed[0]) == 0
    assert [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text("utf-8").splitlines()] == result.history
    assert [p.name for p in (tmp_path / "checkpoints").glob("*.index")] == ["ckpt-4.index"]


def test_a_finished_run_is_not_trained_again(undisturbed):
    first, result, folder = undisturbed
    before = snapshot(folder)
    start = with_dropout()
    again, lines = run(start, num_train_epochs=4, model_dir=folder)
    assert lines[0].endswith("after epoch 4")
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


STATE, DATA, INDEX = (f"checkpoints/{name}" for name in ("checkpoint", "ckpt-4.data-00000-of-00001", "ckpt-4.index"))


@pytest.mark.parametrize(
    ("spoil", "file", "message"),
    [
        *[(spoil, STATE, "its `checkpoint` file is broken") for spoil in (rubbish, empty, delete)],
        *[(spoil, DATA, r"ckpt-4: cannot be restored \(.+\)") for spoil in (cut, empty, delete)],
        *[(spoil, INDEX, r"ckpt-4: cannot be restored \(.+\)") for spoil in (cut, empty)],
        *[(spoil, METRICS_FILE, r"ckpt-4: cannot be restored \(.+\)") for spoil in (rubbish, empty, delete)],
        (cut, WEIGHTS_FILE, "model.safetensors: broken or not a safetensors file"),
    ],
)
def test_a_broken_run_is_refused_and_not_started_anew(spoil, file, message, undisturbed, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(undisturbed[2], folder)
    state = folder / STATE
    state.write_text(state.read_text("utf-8").replace(str(undisturbed[2]), str(folder)), "utf-8")
    spoil(folder / file)
    before = sha256(folder / WEIGHTS_FILE)
    with pytest.raises(CheckpointError, match=message) as found:
        run(with_dropout(), num_train_epochs=5, model_dir=folder)
    assert "\n" not in str(found.value)
    assert sha256(folder / WEIGHTS_FILE) == before


def test_a_run_directory_that_was_moved_goes_on(undisturbed, tmp_path):
    folder = tmp_path / "moved"
    shutil.copytree(undisturbed[2], folder)
    _, lines = run(with_dropout(), num_train_epochs=4, model_dir=folder)
    assert lines[0] == f"continuing the run in {folder} after epoch 4"
