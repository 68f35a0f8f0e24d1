"""Which tokens are masked, what is put there, and that both depend on (seed, epoch, example) alone."""

import dataclasses
import math

import numpy as np
import pytest
import tensorflow as tf

from keras_bert.config import MaskingConfig
from keras_bert.errors import ConfigError
from keras_bert.pretrain import masking
from keras_bert.pretrain.ablate import ARMS
from keras_bert.pretrain.masking import Masking

VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *(f"w{i}" for i in range(70)),
    *(f"##p{i}" for i in range(25)),
]
CLS, SEP, MASK, PIECES = 2, 3, 4, 75
FREE = {"max_predictions_per_seq": 0}


def rows(lengths, width=None, seed=0, pieces=0.25):
    """`[CLS] ... [SEP] ... [SEP]` of these lengths; the first of a seed are the same whatever follows."""
    width = width or max(lengths)
    token_ids = np.zeros((len(lengths), width), "int32")
    for row, length in enumerate(lengths):
        random = np.random.default_rng([seed, row])
        ids = np.where(
            random.random(length) < pieces, random.integers(PIECES, 100, length), random.integers(5, 75, length)
        )
        ids[[0, length // 2, length - 1]] = CLS, SEP, SEP
        token_ids[row, :length] = ids
    return {"token_ids": token_ids, "padding_mask": np.arange(width) < np.array(lengths)[:, None]}


def draw(given, epoch=0, index=None, seed=1, **config):
    index = np.arange(len(given["token_ids"])) if index is None else np.asarray(index)
    features = {name: tf.constant(value) for name, value in given.items()}
    out = Masking(MaskingConfig(**config), VOCABULARY, seed)(features, epoch, tf.constant(index, tf.int64))
    return {name: value.numpy() for name, value in out.items()}


def chosen(out):
    """bool [B, T] from the positions."""
    marks = np.zeros(out["token_ids"].shape, bool)
    at = np.nonzero(out["masked_weights"])
    marks[at[0], out["masked_positions"][at]] = True
    return marks


def words(ids):
    """Word number of each token of one row."""
    special = np.isin(ids, (CLS, SEP))
    return np.cumsum((ids < PIECES) | np.concatenate([[True], special[:-1]]))


# === How many ===


@pytest.mark.parametrize(("length", "count"), [(500, 75), (1000, 150), (8, 1), (5, 1), (10, 2), (30, 4)])
def test_the_count_is_the_rounded_share_of_the_row(length, count):
    # 1.5 rounds to 2 and 4.5 to 4, as Python's round does; [CLS] and [SEP] count as tokens, as in the original
    assert chosen(draw(rows([length]), **FREE)).sum() == count


def test_counts_equal_those_of_the_original_formula():
    lengths = list(range(4, 400))
    counts = draw(rows(lengths), max_predictions_per_seq=20)["masked_weights"].sum(1)
    assert counts.tolist() == [min(20, max(1, round(n * 0.15)), n - 3) for n in lengths]


def test_targets_are_the_originals_in_order():
    given = rows([40, 17, 9])
    out = draw(given)
    assert out["masked_positions"].shape == out["masked_ids"].shape == out["masked_weights"].shape == (3, 20)
    assert [out[name].dtype.name for name in ("masked_positions", "masked_ids", "masked_weights")] == [
        *("int32", "int32", "float32")
    ]
    for row, count in enumerate((6, 3, 1)):
        positions = out["masked_positions"][row]
        assert (np.diff(positions[:count]) > 0).all()
        np.testing.assert_array_equal(out["masked_ids"][row, :count], given["token_ids"][row, positions[:count]])
        assert out["masked_weights"][row].tolist() == [1.0] * count + [0.0] * (20 - count)
        assert not positions[count:].any()
        assert not out["masked_ids"][row, count:].any()
    visible = ~chosen(out)
    np.testing.assert_array_equal(out["token_ids"][visible], given["token_ids"][visible])


def test_a_row_without_candidates_has_no_targets():
    given = rows([8, 2, 8])
    given["token_ids"][1, :2] = CLS, SEP
    out = draw(given, **FREE)
    assert out["masked_weights"].sum(1).tolist() == [1, 0, 1]
    assert out["masked_positions"].shape == (3, 1)


def test_an_empty_batch_is_an_empty_batch():
    given = {name: value[:0] for name, value in rows([8]).items()}
    assert draw(given)["masked_ids"].shape == (0, 20)
    assert draw(given, **FREE)["masked_ids"].shape == (0, 1)


# === Which ===


@pytest.mark.parametrize("unit", list(masking.UNITS))
def test_special_tokens_and_padding_are_never_chosen(unit):
    given = rows(list(range(3, 63)) * 5, 64)
    for prob in (0.15, 1.0):
        marks = chosen(draw(given, mask_unit=unit, masked_lm_prob=prob, **FREE))
        ids = given["token_ids"][marks]
        assert not np.isin(ids, (0, CLS, SEP)).any()
        assert marks[~given["padding_mask"]].sum() == 0
    assert marks.sum() == (~np.isin(given["token_ids"], (0, CLS, SEP))).sum()


def test_every_candidate_is_chosen_equally_often():
    given = rows([43] * 4000, seed=3)
    given["token_ids"][:] = given["token_ids"][0]
    marks = chosen(draw(given))
    often = marks[:, ~np.isin(given["token_ids"][0], (CLS, SEP))].sum(0)
    expected = 4000 * 6 / 40
    assert ((often - expected) ** 2 / (expected * (1 - 6 / 40))).sum() < 39 + 4 * math.sqrt(2 * 39)


@pytest.mark.parametrize("unit", ["whole_word", "span"])
def test_words_are_chosen_wholly_or_not_at_all(unit):
    given = rows([60] * 300, pieces=0.4)
    out = draw(given, mask_unit=unit, **FREE)
    marks = chosen(out)
    for ids, row in zip(given["token_ids"], marks, strict=True):
        number = words(ids)
        for word in set(number[row]):
            assert row[number == word].all()
    counts = marks.sum(1)
    assert counts.max() <= 9
    assert counts.mean() > 8.8


def test_the_smallest_word_is_chosen_where_none_fits():
    given = rows([9])
    given["token_ids"][0] = [CLS, 10, 80, 80, SEP, 11, 80, SEP, SEP]
    for index in range(20):
        out = draw(given, index=[index], mask_unit="whole_word")
        assert np.nonzero(chosen(out)[0])[0].tolist() == [5, 6]
    assert chosen(draw(given, mask_unit="whole_word", max_predictions_per_seq=1)).sum() == 0


def test_a_piece_beside_a_special_token_is_a_word_of_its_own():
    starts = Masking(MaskingConfig(), VOCABULARY, 0)._starts
    ids = tf.constant([[CLS, 80, 81, 10, 80, SEP, 80, SEP]])
    fixed = tf.constant(np.isin(ids, (CLS, SEP)))
    assert starts(ids, fixed).numpy().astype(int).tolist() == [[1, 1, 0, 1, 0, 1, 1, 1]]


def test_filling_equals_looking_at_one_after_the_other():
    random = np.random.default_rng(0)
    sizes = random.integers(0, 7, (500, 30)).astype("int32")
    room = random.integers(0, 25, 500).astype("int32")
    expected = np.zeros(sizes.shape, bool)
    for row in range(500):
        left = room[row]
        for i, size in enumerate(sizes[row]):
            if 0 < size <= left:
                expected[row, i], left = True, left - size
    np.testing.assert_array_equal(masking._fill(tf.constant(sizes), tf.constant(room)), expected)


def test_span_lengths_are_those_of_spanbert():
    starts = tf.ones((400, 1000), tf.bool)
    draws = masking.Draws(0, 0, tf.range(400), 1000)
    number = masking.spans(starts, ~starts, draws).together.numpy()
    lengths = np.concatenate([np.bincount(row)[:-1] for row in number])  # the row's end cuts the last
    weights = 0.2 * 0.8 ** np.arange(10)
    expected = weights / weights.sum()
    found = np.bincount(lengths, minlength=11)[1:] / len(lengths)
    assert lengths.min() == 1
    assert lengths.max() == 10
    np.testing.assert_allclose(found, expected, atol=0.005)
    assert lengths.mean() == pytest.approx((expected * np.arange(1, 11)).sum(), abs=0.03)
    assert lengths.mean() == pytest.approx(3.8, abs=0.05)


def test_chosen_spans_are_as_long_as_drawn():
    given = rows([3000] * 40, pieces=0)
    marks = chosen(draw(given, mask_unit="span", masked_lm_prob=0.02, **FREE))
    edges = np.diff(np.pad(marks, ((0, 0), (1, 1))).astype(int), axis=1)
    lengths = np.nonzero(edges == -1)[1] - np.nonzero(edges == 1)[1]
    assert lengths.mean() == pytest.approx(3.8, abs=0.25)  # a little more where two neighbours are chosen
    assert marks.sum(1).tolist() == [60] * 40


def test_a_span_is_replaced_alike():
    given = rows([500] * 50, pieces=0)
    out = draw(given, mask_unit="span", masked_lm_prob=0.1, **FREE)
    marks = chosen(out)
    masked = marks & (out["token_ids"] == MASK)
    inside = marks[:, 1:] & marks[:, :-1]
    changes = (masked[:, 1:] != masked[:, :-1]) & inside
    assert changes.sum() / inside.sum() < 0.1  # independent draws would change at 0.32


# === What is put there ===


@pytest.mark.parametrize("arm", list(ARMS))
def test_the_arms_of_the_ablation(arm):
    given, config = rows([200] * 200), ARMS[arm]
    out = draw(given, **dataclasses.asdict(config))
    marks = chosen(out)
    before, after = given["token_ids"][marks], out["token_ids"][marks]
    count = len(before)
    assert count == 200 * (197 if config.masked_lm_prob == 1 else 30)
    expected = {
        "mask": config.mask_share + config.random_share / 100,
        "same": config.keep_share + config.random_share / 100,
    }
    found = {"mask": (after == MASK).mean(), "same": (after == before).mean()}
    for name in expected:
        deviation = math.sqrt(expected[name] * (1 - min(expected[name], 1.0)) / count)
        assert found[name] == pytest.approx(expected[name], abs=5 * deviation), name


def test_the_replacements_are_independent_and_random_tokens_uniform():
    # chi-square over 1.2 million chosen tokens: what is put there, and which random token
    given = rows([2003] * 600, pieces=0)
    given["token_ids"][:, 1:-1] = 10
    given["token_ids"][:, 1001] = SEP
    out = draw(given, masked_lm_prob=1.0, **FREE)
    counts = np.bincount(out["token_ids"][chosen(out)], minlength=100)
    total = counts.sum()
    assert total >= 1e6
    expected = np.full(100, 0.1 / 100)
    expected[MASK] += 0.8
    expected[10] += 0.1
    statistic = ((counts - total * expected) ** 2 / (total * expected)).sum()
    assert statistic < 99 + 4 * math.sqrt(2 * 99)
    shares = [counts[MASK], counts[10], total - counts[MASK] - counts[10]]
    wanted = np.array([expected[MASK], expected[10], 0.098]) * total
    assert ((shares - wanted) ** 2 / wanted).sum() < 18.4  # 2 degrees of freedom, p = 1e-4


def test_unknown_in_place_of_the_mask():
    given = rows([200] * 20)
    out = draw(given, mask_token="[UNK]", mask_share=1.0, random_share=0.0, keep_share=0.0)
    assert (out["token_ids"][chosen(out)] == 1).all()


def test_a_vocabulary_without_the_mask_token_is_refused():
    with pytest.raises(ConfigError, match=r"no \[MASK\]"):
        Masking(MaskingConfig(), [piece for piece in VOCABULARY if piece != "[MASK]"], 0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"masked_lm_prob": 0.0}, "masked_lm_prob"),
        ({"masked_lm_prob": 1.1}, "masked_lm_prob"),
        ({"max_predictions_per_seq": -1}, "max_predictions_per_seq"),
        ({"keep_share": 0.2}, "add up to 1"),
        ({"mask_share": 1.1, "random_share": -0.1, "keep_share": 0.0}, "add up to 1"),
        ({"replacements": "mask:0.2"}, "replacements names mask, which has a setting of its own"),
        ({"replacements": "similar"}, "replacements must be NAME:WEIGHT"),
        ({"replacements": "similar:0.1,similar:0.1"}, "replacements names similar twice"),
        ({"replacements": "similar:0.1"}, "add up to 1, got 0.8 \\+ 0.1 \\+ 0.1 \\+ 0.1"),
    ],
)
def test_settings_out_of_range_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        MaskingConfig(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mask_unit": "letter"}, "unknown mask_unit 'letter'; choose one of token, whole_word, span"),
        ({"replacements": "gone:0.1", "keep_share": 0.0}, "unknown replacement 'gone'; choose one of mask, random"),
    ],
)
def test_names_in_no_table_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        Masking(MaskingConfig(**values), VOCABULARY, 0)


# === On what it depends ===


@pytest.mark.parametrize("unit", list(masking.UNITS))
def test_a_row_depends_on_its_epoch_and_number_alone(unit):
    lengths = [50, 31, 64, 12]
    given = rows(lengths, 64)
    together = draw(given, epoch=2, index=[7, 2**40, 0, 3], mask_unit=unit)
    for row, index in enumerate((7, 2**40, 0, 3)):
        width = lengths[row]
        alone = {name: value[row : row + 1, :width] for name, value in given.items()}
        out = draw(alone, epoch=2, index=[index], mask_unit=unit)
        np.testing.assert_array_equal(out["token_ids"][0], together["token_ids"][row, :width])
        np.testing.assert_array_equal(out["masked_positions"][0], together["masked_positions"][row])


@pytest.mark.parametrize("what", ["epoch", "index", "seed"])
def test_another_epoch_example_or_seed_has_other_masks(what):
    given = rows([64] * 50)
    given["token_ids"][:] = given["token_ids"][0]
    first = chosen(draw(given, index=np.arange(50)))
    second = chosen(draw(given, **{"index": np.arange(50), what: np.arange(50, 100) if what == "index" else 5}))
    same = (first & second).sum() / first.sum()
    assert same == pytest.approx(10 / 61, abs=0.05)  # as many as by chance
    rest = (first[:, None] & first[None])[~np.eye(50, dtype=bool)].sum() / (49 * first.sum())
    assert rest == pytest.approx(10 / 61, abs=0.05)


def test_inside_tf_data_it_is_the_same():
    given = rows([64, 30, 50, 64, 20, 40])
    masks = Masking(MaskingConfig(mask_unit="whole_word"), VOCABULARY, 1)
    data = tf.data.Dataset.from_tensor_slices((given, tf.range(6, dtype=tf.int64))).batch(4)
    data = data.map(lambda features, index: masks(features, tf.constant(3, tf.int64), index))
    expected = draw(given, epoch=3, mask_unit="whole_word")
    for name in expected:
        np.testing.assert_array_equal(np.concatenate([batch[name] for batch in data]), expected[name])
    assert data.element_spec["masked_positions"].shape.as_list() == [None, 20]


def test_the_draws_are_those_of_splitmix64():
    # the published sequence for seed 1234567
    key = masking.Draws.__new__(masking.Draws)
    key.key = tf.constant([[1234567]], tf.uint64)
    key.columns = tf.cast(tf.range(1, 4), tf.uint64)[tf.newaxis, :]
    assert key.bits("order").numpy()[0].tolist() == [*(6457827717110365317, 3203168211198807973, 9817491932198370423)]
