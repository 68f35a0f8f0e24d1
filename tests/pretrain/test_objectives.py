"""Rows, packing, the pretraining network, its losses and measures."""

import dataclasses
import math

import checks
import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import TINY, WORDS
from keras import ops

from keras_bert import conversion
from keras_bert.checkpoints import checkpoints
from keras_bert.checkpoints.formats import FORMATS
from keras_bert.config import DataConfig, HeadConfig, MaskingConfig, TextConfig
from keras_bert.errors import ConfigError
from keras_bert.pretrain.masking import Masking
from keras_bert.pretrain.objectives import PretrainNetwork, PretrainTask, gather
from keras_bert.pretrain.rows import assemble, first_fit, from_original, pack
from keras_bert.tasks.network import Network

CLS, SEP, MASK = 2, 3, 4
CALM = dataclasses.replace(TINY, hidden_dropout=0.0, attention_dropout=0.0)


def examples(segments, labels=None):
    """What a corpus holds: rows of segments of ids."""
    return {
        "token_ids": tf.ragged.constant([[i for s in row for i in s] for row in segments], dtype=tf.int64),
        "segment_lengths": tf.ragged.constant([[len(s) for s in row] for row in segments], dtype=tf.int64),
        "pair_label": tf.constant(labels or [-1] * len(segments), tf.int64),
    }


def random_examples(lengths, seed=0):
    random = np.random.default_rng(seed)
    segments = [
        [random.integers(5, len(WORDS), n // 2).tolist(), random.integers(5, len(WORDS), n - n // 2).tolist()]
        for n in lengths
    ]
    return examples(segments, random.integers(0, 2, len(lengths)).tolist())


def masked(given, **config):
    masks = Masking(MaskingConfig(**config), WORDS, 0)
    return masks(given, 0, tf.range(tf.shape(given["token_ids"])[0], dtype=tf.int64))


def batch_of(lengths, length=None, seed=0):
    return masked(assemble(random_examples(lengths, seed), CLS, SEP, length=length))


def numbers(tensor):
    return np.asarray(tensor).tolist()


# === Rows ===


def test_rows_are_put_together():
    rows = assemble(examples([[[7, 8], [9]], [[5, 6, 7]], [[7], [], [8]]], [1, -1, 0]), CLS, SEP)
    assert numbers(rows["token_ids"]) == [[2, 7, 8, 3, 9, 3], [2, 5, 6, 7, 3, 0], [2, 7, 3, 3, 8, 3]]
    assert numbers(rows["segment_ids"]) == [[0, 0, 0, 0, 1, 1], [0] * 6, [0, 0, 0, 1, 2, 2]]
    assert numbers(rows["padding_mask"]) == [[True] * 6, [True] * 5 + [False], [True] * 6]
    assert numbers(rows["pair_labels"]) == [1, -1, 0]
    assert [rows[name].dtype.name for name in rows] == ["int32", "int32", "bool", "int32"]


@pytest.mark.parametrize(("options", "width"), [({}, 7), ({"multiple": 8}, 8), ({"length": 12}, 12)])
def test_rows_are_padded(options, width):
    rows = assemble(examples([[[7]], [[5, 6, 7], [8]]]), CLS, SEP, pad_id=1, **options)
    assert rows["token_ids"].shape == (2, width)
    assert numbers(rows["token_ids"][0]) == [2, 7, 3] + [1] * (width - 3)


def test_a_row_that_does_not_fit_is_refused():
    with pytest.raises(tf.errors.InvalidArgumentError, match="max_seq_length=6"):
        assemble(examples([[[5, 6, 7], [8]]]), CLS, SEP, length=6)


def test_rows_inside_tf_data():
    data = tf.data.Dataset.from_tensor_slices(random_examples([5, 30, 12, 7])).batch(3)
    shapes = [b["token_ids"].shape.as_list() for b in data.map(lambda e: assemble(e, CLS, SEP, multiple=8))]
    assert shapes == [[3, 40], [1, 16]]
    fixed = data.map(lambda e: masked(assemble(e, CLS, SEP, length=64)))
    widths = {name: spec.shape.as_list()[1:] for name, spec in fixed.element_spec.items()}
    assert widths.pop("pair_labels") == []
    assert {name for name, width in widths.items() if width == [64]} == {"token_ids", "segment_ids", "padding_mask"}
    assert {name for name, width in widths.items() if width == [20]} == {
        "masked_positions",
        "masked_ids",
        "masked_weights",
    }


def test_records_of_the_original_become_the_same_batch():
    records = {
        "input_ids": [[2, 7, 4, 3, 0]],
        "segment_ids": [[0, 0, 0, 0, 0]],
        "input_mask": [[1, 1, 1, 1, 0]],
        "masked_lm_positions": [[2, 0]],
        "masked_lm_ids": [[9, 0]],
        "masked_lm_weights": [[1.0, 0.0]],
        "next_sentence_labels": [[1]],
    }
    batch = from_original({name: tf.constant(value) for name, value in records.items()})
    wanted = masked(assemble(examples([[[7, 9, 8]]], [1]), CLS, SEP))
    assert {n: t.dtype for n, t in batch.items()} == {n: t.dtype for n, t in wanted.items()}
    assert numbers(batch["padding_mask"]) == [[True] * 4 + [False]]
    assert numbers(batch["pair_labels"]) == [1]
    assert numbers(batch["masked_ids"]) == [[9, 0]]


# === Packing ===


def test_first_fit():
    rows, starts = first_fit([5, 6, 4, 3, 1, 10, 2], 10)
    assert numbers(rows) == [0, 1, 0, 1, 0, 2, 3]
    assert numbers(starts) == [0, 0, 5, 6, 9, 0, 0]
    random = np.random.default_rng(0).integers(1, 65, 200)
    used, expected = [], []
    for length in random:
        row = next((i for i, u in enumerate(used) if u + length <= 64), len(used))
        used += [0] * (row == len(used))
        expected.append((row, used[row]))
        used[row] += int(length)
    assert list(zip(*map(numbers, first_fit(random, 64)), strict=True)) == expected


def test_packed_rows():
    rows = pack(masked(assemble(examples([[[7, 8]], [[9], [10]], [[11]]], [-1, 1, -1]), CLS, SEP)), 8, pad_id=1)
    assert rows["token_ids"].shape == (2, 8)
    assert numbers(rows["segment_ids"]) == [[0] * 8, [0, 0, 0, 1, 1, 0, 0, 0]]
    assert numbers(rows["padding_mask"]) == [[True] * 7 + [False], [True] * 5 + [False] * 3]
    assert numbers(rows["positions"]) == [[0, 1, 2, 3, 0, 1, 2, 0], [0, 1, 2, 3, 4, 0, 0, 0]]
    assert numbers(rows["pack_ids"]) == [[1, 1, 1, 1, 3, 3, 3, 0], [2, 2, 2, 2, 2, 0, 0, 0]]
    assert numbers(rows["cls_positions"]) == [[0, 4], [0, 0]]
    assert numbers(rows["pair_labels"]) == [[-1, -1], [1, -1]]
    assert numbers(tf.reduce_sum(rows["masked_weights"], 1)) == [2, 1]
    assert rows["masked_positions"][0][1] == 5
    assert rows["masked_ids"][0][1] == 11
    assert rows["token_ids"][0][7] == 1


def test_packing_computes_what_separate_rows_compute():
    network = checks.randomize(PretrainNetwork(CALM))
    separate = batch_of([20, 3, 11, 8, 30, 6, 4, 17, 25, 3])
    packed = tf.function(lambda b: pack(b, 40))(separate)
    assert packed["token_ids"].shape == (5, 40)
    hidden, together = (np.asarray(network.encoder(features_of(b))["sequence"]) for b in (separate, packed))
    rows, starts = map(numbers, first_fit(tf.reduce_sum(tf.cast(separate["padding_mask"], tf.int32), 1), 40))
    for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
        size = int(separate["padding_mask"].numpy()[i].sum())
        np.testing.assert_allclose(together[row, start : start + size], hidden[i, :size], rtol=0, atol=1e-6)
    task = PretrainTask(network)
    assert {k: float(v) for k, v in task.weights(packed).items()} == {
        k: float(v) for k, v in task.weights(separate).items()
    }
    (losses, measures), (wanted, wanted_measures) = (task.sums(b, training=False) for b in (packed, separate))
    for name in wanted:
        assert float(losses[name]) == pytest.approx(float(wanted[name]), rel=1e-6)
    for name in wanted_measures:
        assert [float(x) for x in measures[name]] == pytest.approx([float(x) for x in wanted_measures[name]], rel=1e-6)


def features_of(batch):
    return {n: batch[n] for n in ("token_ids", "segment_ids", "padding_mask", "positions", "pack_ids") if n in batch}


def test_packing_nothing_gives_nothing():
    none = {name: value[:0] for name, value in batch_of([5, 6]).items()}
    assert pack(none, 16)["token_ids"].shape == (0, 16)


# === The network ===


def run(network, given):
    at = tf.tile([[1, 2, 2]], [tf.shape(given["token_ids"])[0], 1])
    logits = network(dict(given, masked_positions=at))
    return ops.concatenate(
        [ops.reshape(logits["masked_lm"], (-1, 3 * TINY.vocab_size)), logits["next_sentence"]], axis=1
    )


PART = checks.Part(build=lambda dtype: PretrainNetwork(TINY, dtype=dtype), run=run, positions=False, silent="key/bias")


@pytest.mark.parametrize("promise", checks.PROMISES, ids=lambda f: f.__name__)
def test_promises(promise, tmp_path):
    promise(PART, tmp_path)


def test_only_masked_positions_reach_the_vocabulary_and_nothing_is_lost():
    network, batch = checks.randomize(PretrainNetwork(CALM)), batch_of([20, 9, 14])
    logits = network(batch)["masked_lm"]
    assert logits.shape == (3, 20, TINY.vocab_size)
    hidden = network.encoder(features_of(batch))["sequence"]
    places = np.tile(np.arange(hidden.shape[1]), (len(hidden), 1))
    objective = network.head.objectives["masked_lm"]
    everywhere = objective({"sequence": hidden}, encoder=network.encoder, batch={"masked_positions": places})
    expected = tf.gather(everywhere, batch["masked_positions"], batch_dims=1)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)


def test_gather_takes_vectors_of_its_own_row():
    x = np.arange(24.0).reshape(2, 4, 3)
    assert numbers(gather(x, np.array([[3, 0], [1, 1]]))) == [
        [x[0, 3].tolist(), x[0, 0].tolist()],
        [x[1, 1].tolist()] * 2,
    ]


def test_the_table_learns_by_both_of_its_paths():
    network, batch = checks.randomize(PretrainNetwork(CALM)), batch_of([12, 9])
    table, task = network.encoder.tokens.embeddings.value, PretrainTask(network)

    def gradient(hidden_too):
        with tf.GradientTape() as tape:
            hidden = network.encoder(features_of(batch))["sequence"]
            hidden = hidden if hidden_too else tf.stop_gradient(hidden)
            taps = {"sequence": hidden}
            logits = network.head(taps, encoder=network.encoder, batch=batch)["masked_lm"]
            loss, _ = task.objectives["masked_lm"].sums(batch, logits)
        return tf.convert_to_tensor(tape.gradient(loss, table)).numpy()

    both, as_output = gradient(True), gradient(False)
    unseen = np.setdiff1d(np.arange(TINY.vocab_size), batch["token_ids"])
    np.testing.assert_allclose(both[unseen], as_output[unseen], rtol=0, atol=1e-5)
    assert (np.abs(both).max(1) > 1e-5).all(), "every row is an output"
    seen = np.unique(np.asarray(batch["token_ids"])[np.asarray(batch["padding_mask"])])
    assert (np.abs(both - as_output)[seen].max(1) > 1e-4).all(), "the rows that were looked up are inputs as well"


@pytest.mark.parametrize("classes", [0, 3])
def test_other_numbers_of_pair_classes(classes):
    network, batch = PretrainNetwork(TINY, pair_classes=classes), batch_of([12, 9])
    assert ("next_sentence" in network(batch)) == bool(classes)
    assert [v.path for v in network.weights if "next_sentence" in v.path] == []
    assert PretrainTask(network).weights(batch).keys() == ({"masked_lm", "next_sentence"} if classes else {"masked_lm"})
    if classes:
        assert network(batch)["next_sentence"].shape == (2, 3)


def test_one_class_of_pairs_is_refused():
    with pytest.raises(ConfigError, match="pair_classes"):
        PretrainNetwork(TINY, pair_classes=1)


@pytest.mark.parametrize("name", list(FORMATS))
def test_all_weights_go_through_every_format(name, tmp_path):
    network = checks.randomize(PretrainNetwork(TINY))
    checkpoints.save(tmp_path / "ours", network, WORDS, TextConfig(max_seq_length=16), DataConfig())
    folder = tmp_path / "theirs"
    conversion.convert(tmp_path / "ours", folder, name)
    again = PretrainNetwork(checkpoints.open_checkpoint(folder).encoder)
    report = checkpoints.load(again, checkpoints.open_checkpoint(folder))
    assert not report.new
    for before, after in zip(network.weights, again.weights, strict=True):
        if "seed_generator" not in before.path:
            np.testing.assert_array_equal(before, after, err_msg=before.path)


def test_fine_tuning_starts_from_it(tmp_path):
    network = checks.randomize(PretrainNetwork(TINY))
    checkpoints.save(tmp_path, network, WORDS, TextConfig(max_seq_length=16), DataConfig())
    tuned = Network(TINY, HeadConfig(labels=("no", "yes")))
    report = checkpoints.load(tuned, checkpoints.open_checkpoint(tmp_path))
    assert sorted(report.new) == ["head/logits/bias", "head/logits/kernel"]
    assert sorted({name.split("/")[1] for name in report.unused}) == ["masked_lm", "next_sentence"]
    np.testing.assert_array_equal(tuned.head.pooler.dense.kernel, network.head.pooler.dense.kernel)


# === Losses and measures ===

SENTENCES = (
    "[CLS] the man went to [MASK] store [SEP] he bought a gallon [MASK] milk [SEP]",
    ("[CLS] the man [MASK] to the store [SEP] penguin [MASK] are flight ##less birds [SEP]"),
)
ANSWERS = [["the", "of"], ["went", "##s"]]


def sample():
    """The two examples of next sentence prediction that the paper gives, and a small vocabulary for them."""
    rows = [sentence.split() for sentence in SENTENCES]
    vocabulary = sorted({piece for row in [*rows, *ANSWERS] for piece in row})
    ids = [[vocabulary.index(piece) for piece in row] for row in rows]
    width = max(map(len, rows))
    at = [[i for i, piece in enumerate(row) if piece == "[MASK]"] for row in rows]
    batch = {
        "token_ids": np.array([row + [0] * (width - len(row)) for row in ids], "int32"),
        "segment_ids": np.array([[int(i > row.index("[SEP]") and i < len(row)) for i in range(width)] for row in rows]),
        "padding_mask": np.arange(width) < np.array([[len(row)] for row in rows]),
        "masked_positions": np.array([[*positions, 0] for positions in at], "int32"),
        "masked_ids": np.array([[*(vocabulary.index(piece) for piece in row), 0] for row in ANSWERS], "int32"),
        "masked_weights": np.array([[1, 1, 0]] * 2, "float32"),
        "pair_labels": np.array([0, 1], "int32"),
    }
    return batch, vocabulary


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_combined_loss_equals_a_hand_computed_value(reduction):
    batch, vocabulary = sample()
    shape = dataclasses.replace(CALM, vocab_size=len(vocabulary))
    network = checks.randomize(PretrainNetwork(shape, reduction=reduction))
    logits = {name: np.asarray(value, "float64") for name, value in network(batch).items()}

    def surprise(scores, label):
        return math.log(sum(math.exp(s) for s in scores)) - scores[label]

    words = [[surprise(logits["masked_lm"][row, i], batch["masked_ids"][row, i]) for i in (0, 1)] for row in (0, 1)]
    pairs = [surprise(logits["next_sentence"][row], row) for row in (0, 1)]  # 0 is IsNext
    by_hand = {
        "mean": (words[0][0] + words[0][1] + words[1][0] + words[1][1]) / 4 + (pairs[0] + pairs[1]) / 2,
        "sum": (words[0][0] + words[0][1] + pairs[0] + words[1][0] + words[1][1] + pairs[1]) / 2,
    }
    task = PretrainTask(network)
    assert total(task, batch) == pytest.approx(by_hand[reduction], rel=1e-5)
    halves = [{name: value[part] for name, value in batch.items()} for part in (slice(0, 1), slice(1, 2))]
    assert total(task, *halves) == pytest.approx(by_hand[reduction], rel=1e-5)
    doubled = PretrainTask(network, {"next_sentence": 2.0})
    assert total(doubled, batch) == pytest.approx(by_hand[reduction] + sum(pairs) / 2, rel=1e-5)


def total(task, *parts):
    """The total loss as training computes it from parts of a batch."""
    weights = [task.weights(part) for part in parts]
    losses = [task.sums(part, training=False)[0] for part in parts]
    return sum(
        factor * sum(float(part[name]) for part in losses) / sum(float(part[name]) for part in weights)
        for name, factor in task.factors.items()
    )


def test_measures_are_counted_where_there_is_something_to_predict():
    objectives = PretrainTask(PretrainNetwork(TINY)).objectives
    logits = np.full((2, 2, 4), -5.0, "float32")
    logits[0, 0, 1] = logits[0, 1, 2] = logits[1, 0, 3] = 5.0
    batch = {
        "masked_ids": np.array([[1, 3], [3, 0]]),
        "masked_weights": np.array([[1, 1], [1, 0]], "float32"),
        "pair_labels": np.array([1, -1]),
    }
    loss, measures = objectives["masked_lm"].sums(batch, logits)
    assert [float(x) for x in measures["masked_lm_accuracy"]] == [2, 3]
    assert [float(x) for x in measures["masked_lm_loss"]] == pytest.approx([float(loss), 3])
    assert float(loss) == pytest.approx(3 * math.log(1 + 3 * math.exp(-10)) + 10, rel=1e-5)
    _, measures = objectives["next_sentence"].sums(batch, np.array([[0.0, 1.0], [0.0, 1.0]], "float32"))
    assert [float(x) for x in measures["next_sentence_accuracy"]] == [1, 1]
    assert float(objectives["next_sentence"].weight(batch)) == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_losses_are_float32_and_stable(dtype):
    objective = PretrainTask(PretrainNetwork(TINY)).objectives["next_sentence"]
    logits = ops.convert_to_tensor([[200.0, -200.0], [1.0, 1.0]], dtype)
    loss, _ = objective.sums({"pair_labels": np.array([1, 0])}, logits)
    assert keras.backend.standardize_dtype(loss.dtype) == "float32"
    assert float(loss) == pytest.approx(400 + math.log(2), rel=1e-6)


def test_a_batch_with_nothing_to_predict_is_zero():
    batch = batch_of([12, 9])
    batch |= {"masked_weights": tf.zeros_like(batch["masked_weights"]), "pair_labels": tf.constant([-1, -1])}
    task = PretrainTask(PretrainNetwork(TINY))
    losses, measures = task.sums(batch, training=True)
    assert [float(x) for x in (*losses.values(), *task.weights(batch).values())] == [0] * 4
    assert [float(x) for pair in measures.values() for x in pair] == [0] * 8


def test_a_task_compiles_with_unknown_shapes():
    task, batches = PretrainTask(checks.randomize(PretrainNetwork(CALM))), (batch_of([20, 14, 7]), batch_of([9]))
    specs = {name: tf.TensorSpec([None] * len(t.shape), t.dtype) for name, t in batches[0].items()}
    compiled = tf.function(lambda batch: task.sums(batch, training=False)[0], input_signature=[specs])
    for batch in batches:
        for name, loss in task.sums(batch, training=False)[0].items():
            assert float(compiled(batch)[name]) == pytest.approx(float(loss), rel=1e-5)


def test_steps_down_the_gradient_lower_the_loss():
    task, batch = PretrainTask(checks.randomize(PretrainNetwork(CALM))), batch_of([20, 14, 7, 9])
    weights, before = task.network.trainable_weights, total(task, batch)
    for _ in range(3):
        with tf.GradientTape() as tape:
            losses, _ = task.sums(batch, training=True)
            loss = sum(losses[name] / weight for name, weight in task.weights(batch).items())
        for weight, gradient in zip(weights, tape.gradient(loss, [w.value for w in weights]), strict=True):
            weight.assign_sub(1e-3 * tf.convert_to_tensor(gradient))
    assert total(task, batch) < before


def test_wrong_names_are_refused():
    with pytest.raises(ConfigError, match="reduction"):
        PretrainNetwork(TINY, reduction="median")
    with pytest.raises(ConfigError, match="next_sentence"):
        PretrainTask(PretrainNetwork(TINY, pair_classes=0), {"next_sentence": 2.0})


@pytest.mark.slow
def test_losses_equal_those_of_transformers(tmp_path):
    import torch
    from transformers import BertForPreTraining

    network = checks.randomize(PretrainNetwork(dataclasses.replace(CALM, activation="gelu")))
    checkpoints.save(tmp_path / "ours", network, WORDS, TextConfig(max_seq_length=16), DataConfig())
    conversion.convert(tmp_path / "ours", tmp_path / "hf", "hf")
    peer, loading = BertForPreTraining.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    peer.eval()
    batch = batch_of([20, 9, 14, 30])
    labels = np.full(batch["token_ids"].shape, -100)
    at = np.nonzero(batch["masked_weights"].numpy())
    labels[at[0], batch["masked_positions"].numpy()[at]] = batch["masked_ids"].numpy()[at]
    with torch.no_grad():
        out = peer(
            input_ids=torch.tensor(batch["token_ids"].numpy()),
            token_type_ids=torch.tensor(batch["segment_ids"].numpy()),
            attention_mask=torch.tensor(batch["padding_mask"].numpy()).int(),
            labels=torch.tensor(labels),
            next_sentence_label=torch.tensor(batch["pair_labels"].numpy()).long(),
        )
    assert total(PretrainTask(network), batch) == pytest.approx(float(out.loss), abs=1e-5)
