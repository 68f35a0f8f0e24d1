"""How position enters the model."""

import dataclasses

import checks
import numpy as np
import pytest
import tensorflow as tf
from conftest import TINY, slow
from keras import ops

from keras_bert.errors import ConfigError
from keras_bert.model.encoder import Encoder
from keras_bert.model.masks import MASKS
from keras_bert.model.positions import POSITIONS, Absolute, Bucketed, Positions, Sinusoidal, slopes


def vectors(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def test_the_base_changes_nothing():
    base = Positions(TINY)
    x, scores, positions = vectors(2, 3, 16), vectors(2, 2, 3, 3), np.arange(3)[None]
    query, key = vectors(2, 2, 3, 8), vectors(2, 2, 3, 8)
    assert base.embed(x, positions) is x
    assert base.rotate(query, key, query, positions) == (query, key, query)
    assert base.scores(scores, query, key, positions, positions) is scores
    assert base.values(query, scores, positions, positions) is query
    assert base.weights == []


def test_absolute_adds_the_row_of_each_position():
    layer = Absolute(TINY)
    layer.build()
    table = vectors(64, 16)
    layer.table.assign(table)
    x = vectors(2, 3, 16)
    for positions in ([[0, 1, 2]], [[5, 0, 63], [1, 1, 2]]):
        out = layer.embed(x, np.array(positions))
        np.testing.assert_allclose(out, x + table[np.array(positions)], atol=1e-6)
    assert [w.path for w in layer.weights] == ["absolute/embeddings"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_absolute_keeps_16_bits(dtype):
    layer = Absolute(TINY, dtype=f"mixed_{dtype}")
    layer.build()
    assert layer.table.dtype == "float32"
    assert layer.embed(ops.cast(vectors(1, 3, 16), dtype), np.arange(3)[None]).dtype.name == dtype


def encoder_of(kind, **fields):
    return checks.randomize(Encoder(dataclasses.replace(TINY, positions=kind, **fields)))


@pytest.mark.parametrize("kind", POSITIONS)
def test_order_matters_only_through_positions(kind):
    """Without positions BERT sees a bag of words: permuted ids give permuted outputs."""
    ids, order = np.array([[5, 6, 7, 8, 9]]), np.array([3, 1, 4, 0, 2])
    encoder = encoder_of(kind)
    straight = np.asarray(encoder(ids)["sequence"])
    shuffled = np.asarray(encoder(ids[:, order])["sequence"])
    assert (np.abs(shuffled - straight[:, order]).max() > 1e-3) == (kind != "none")
    same = {"token_ids": ids[:, order], "positions": order[None]}
    np.testing.assert_allclose(encoder(same)["sequence"], straight[:, order], atol=1e-5)


IDS = np.array([[5, 6, 7, 8, 9, 10, 11, 0], [12, 5, 13, 6, 14, 7, 15, 8]])
RELATIVE = [kind for kind in POSITIONS if kind not in ("absolute", "sinusoidal")]


@pytest.mark.parametrize("kind", POSITIONS)
def test_only_distances_count_where_positions_are_relative(kind):
    """The second form of each kind, for rows that count for themselves, gives the same as the first."""
    encoder = encoder_of(kind)
    wanted = np.asarray(encoder(IDS)["sequence"])
    rows = np.arange(8)[None] + np.zeros((2, 1), "int32")
    np.testing.assert_allclose(encoder({"token_ids": IDS, "positions": rows})["sequence"], wanted, atol=1e-5)
    moved = np.asarray(encoder({"token_ids": IDS, "positions": rows + np.array([[3], [17]])})["sequence"])
    assert (np.abs(moved - wanted).max() < 2e-5) == (kind in RELATIVE)


# === Each kind, written out for one head in loops of float64 ===


def heads(seed=0, count=2, tokens=7, size=8):
    draw = np.random.default_rng(seed)
    return [draw.normal(size=(1, count, tokens, size)) for _ in range(3)]


def attended(kind, positions, config=TINY, weights=()):
    """Scores and context of our hooks for random queries, keys and values; the mask lets all see all."""
    query, key, value = heads()
    layer = POSITIONS[kind](config)
    layer.build(None)
    for weight in layer.weights:
        weight.assign(np.random.default_rng(1).normal(size=weight.shape))
    layer, positions = layer.at(0), np.asarray(positions)[None]
    q, k, v = (np.asarray(x) for x in layer.rotate(*(x.astype("float32") for x in (query, key, value)), positions))
    q = q / np.sqrt(8).astype("float32")
    scores = np.asarray(layer.scores(q @ k.swapaxes(2, 3), q, k, positions, positions))
    probabilities = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    context = np.asarray(layer.values(probabilities @ v, probabilities, positions, positions))
    return scores[0], context[0], layer


def loops(positions, score, value=lambda i, j, v: v, turn=lambda x, p: x):
    """`score(q, k, i, j, head)` and `value(i, j, v)` for every pair of positions."""
    query, key, values = (x[0] for x in heads())
    scores = np.array(
        [
            [[score(turn(q, i), turn(k, j), i, j, h) for k, j in zip(key[h], positions, strict=True)]
             for q, i in zip(query[h], positions, strict=True)]
            for h in range(2)
        ]
    )  # fmt: skip
    probabilities = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    context = [
        [
            sum(p * value(i, j, v) for p, j, v in zip(row, positions, vs, strict=True))
            for i, row in zip(positions, rows, strict=True)
        ]
        for rows, vs in zip(probabilities, values, strict=True)
    ]
    return scores, np.array(context)


PLACES = [0, 1, 2, 9, 40, 41, 63]


def check(kind, config, *written_out, **others):
    scores, context, _ = attended(kind, PLACES, config)
    theirs = loops(PLACES, *written_out, **others)
    np.testing.assert_allclose(scores, theirs[0], atol=2e-5)
    np.testing.assert_allclose(context, theirs[1], atol=2e-5)


def test_nezha_adds_sines_to_keys_and_values():
    config = dataclasses.replace(TINY, max_distance=16)

    def row(i, j):
        index = min(max(j - i, -16), 16) + 16
        return np.array([f(index / 10000 ** (2 * m / 8)) for m in range(4) for f in (np.sin, np.cos)])

    check(
        "relative_sinusoidal",
        config,
        lambda q, k, i, j, h: (q @ k + q @ row(i, j)) / np.sqrt(8),
        lambda i, j, v: v + row(i, j),
    )


@pytest.mark.parametrize("kind", ["relative_key", "relative_key_query"])
def test_relative_keys_have_a_row_for_each_distance(kind):
    _, _, layer = attended(kind, PLACES)
    table, both = np.asarray(layer.distances), kind == "relative_key_query"
    assert table.shape == (2 * 64 - 1, 8)
    check(
        kind, TINY, lambda q, k, i, j, h: (q @ k + q @ table[i - j + 63] + both * (k @ table[i - j + 63])) / np.sqrt(8)
    )


def test_alibi_grows_with_the_distance():
    check("alibi", TINY, lambda q, k, i, j, h: q @ k / np.sqrt(8) - abs(i - j) * 2.0 ** (-8 * (h + 1) / 2))


@pytest.mark.parametrize(
    ("heads", "wanted"),
    [(1, [2**-8]), (4, [0.25, 0.0625, 0.015625, 0.00390625]), (3, [2**-4, 2**-8, 2**-2]), (12, None)],
)
def test_slopes_of_alibi(heads, wanted):
    """Those of the code of the paper, also for numbers that are no power of two."""
    found = slopes(heads)
    if wanted is None:
        wanted = [2 ** -(h + 1) for h in range(8)] + [2 ** -(m + 0.5) for m in range(4)]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_buckets_are_exact_then_logarithmic():
    """32 of them: 0 to 7 one each, then 8 up to a distance of 128, and as many for the other direction."""
    distances = np.arange(-200, 201)
    found = np.asarray(Bucketed.bucket(distances))
    limits = [8 * 16 ** (n / 8) for n in range(8)]
    for distance, bucket in zip(distances, found, strict=True):
        far = abs(int(distance))
        wanted = far if far < 8 else 7 + sum(far >= limit - 1e-9 for limit in limits)
        assert bucket == wanted + 16 * (distance > 0), distance
    table = np.asarray(attended("bucketed", PLACES)[2].biases)
    assert table.shape == (32, 2)
    check("bucketed", TINY, lambda q, k, i, j, h: q @ k / np.sqrt(8) + table[found[j - i + 200], h])


def turned(x, p, base=10000.0, half=False):
    out = np.empty(8)
    for m in range(4):
        one, two = (m, m + 4) if half else (2 * m, 2 * m + 1)
        angle = p * base ** (-2 * m / 8)
        out[one] = x[one] * np.cos(angle) - x[two] * np.sin(angle)
        out[two] = x[two] * np.cos(angle) + x[one] * np.sin(angle)
    return out


@pytest.mark.parametrize("kind", ["rotary", "rotary_half"])
@pytest.mark.parametrize(
    ("fields", "base", "divisor"),
    [({}, 1e4, 1), ({"rotary_base": 100.0, "rotary_scale": 4.0}, 100.0, 4),
     ({"rotary_scale": 4.0, "rotary_scaling": "ntk"}, 1e4 * 4 ** (8 / 6), 1), ({"rotary_value": True}, 1e4, 1)],
)  # fmt: skip
def test_rotary_turns_pairs_of_channels(kind, fields, base, divisor):
    def turn(x, p):
        return turned(x, p / divisor, base, kind == "rotary_half")

    check(
        kind,
        dataclasses.replace(TINY, **fields),
        lambda q, k, i, j, h: q @ k / np.sqrt(8),
        lambda i, j, v: turn(v, j) if "rotary_value" in fields else v,
        turn=turn,
    )


def test_layers_that_see_everything_have_a_base_of_their_own():
    fields = {"attention_mask": "local", "local_window": 4, "global_every": 2, "global_rotary_base": 160000.0}
    layer = POSITIONS["rotary_half"](dataclasses.replace(TINY, num_layers=4, **fields))
    assert [layer.at(i).base for i in range(4)] == [160000.0, 10000.0, 160000.0, 10000.0]


def test_sines_stand_beside_scaled_embeddings():
    x, positions = vectors(1, 5, 16), np.array([[0, 1, 2, 500, 7]])
    wanted = [[f(p / 10000 ** (2 * m / 16)) for m in range(8) for f in (np.sin, np.cos)] for p in positions[0].tolist()]
    np.testing.assert_allclose(Sinusoidal(TINY).embed(x, positions), 4 * x + np.array(wanted), atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("sinusoidal", {"embedding_dim": 5}, "an even width, got 5"),
        ("relative_sinusoidal", {"head_dim": 5}, "heads of an even size, got 5"),
        ("rotary", {"head_dim": 7}, "heads of an even size, got 7"),
        ("rotary", {"rotary_scaling": "yarn"}, "yarn"),
        ("bucketed", {"layer_heads": (1, 2)}, "same number of heads"),
    ],
)
def test_what_a_kind_cannot_do_is_refused(kind, fields, message):
    with pytest.raises(ConfigError, match=message):
        POSITIONS[kind](dataclasses.replace(TINY, **fields))


@pytest.mark.parametrize("kind", POSITIONS)
def test_rows_may_be_longer_where_positions_are_not_bounded(kind):
    encoder, long = encoder_of(kind, max_positions=6), np.arange(5, 14)[None]
    if kind in ("absolute", "relative_key", "relative_key_query"):
        with pytest.raises(ConfigError, match="9 tokens in a row, but the model has 6 positions"):
            encoder(long)
    else:
        assert np.isfinite(np.asarray(encoder(long)["sequence"])).all()


# === Each kind under each mask, in each way to run the encoder ===


def ways():
    """Every kind with every mask; by default each kind with one of them."""
    for i, kind in enumerate(POSITIONS):
        for j, mask in enumerate(MASKS):
            yield (kind, mask) if i % len(MASKS) == j else slow(kind, mask)


@pytest.mark.parametrize(("kind", "mask"), list(ways()))
def test_each_kind_under_each_mask(kind, mask):
    """Padded, packed, of tokens only, recomputed and in sixteen bits: all give what rows alone give."""
    encoder = encoder_of(kind, attention_mask=mask, local_window=4, hidden_dropout=0.0, attention_dropout=0.0)
    segments = (np.arange(8) > 3).astype("int32")[None] + np.zeros((2, 1), "int32")
    given = {"token_ids": IDS, "segment_ids": segments}
    wanted = np.asarray(encoder(given)["sequence"])
    alone = np.asarray(encoder({"token_ids": IDS[:1, :7], "segment_ids": segments[:1, :7]})["sequence"])
    np.testing.assert_allclose(wanted[:1, :7], alone, atol=1e-5)

    pieces = {"pack_ids": np.repeat([[0, 1]], [7, 8], axis=1), "positions": np.r_[0:7, 0:8][None]}
    joined = {"token_ids": np.r_[IDS[0, :7], IDS[1]][None], "segment_ids": np.r_[segments[0, :7], segments[1]][None]}
    if mask not in ("local", "seq2seq", "prefix"):  # their rules look at the row, not at the text
        packed = np.asarray(encoder(joined | pieces)["sequence"])[0]
        np.testing.assert_allclose(packed, np.r_[wanted[0, :7], wanted[1]], atol=1e-5)

    real = (IDS > 0)[..., None]
    for setting in ("tokens_only", "recompute"):
        setattr(encoder, setting, True)
        trained = tf.function(lambda: encoder(given, training=True)["sequence"])()
        np.testing.assert_allclose(trained * real, wanted * real, atol=1e-5)
        setattr(encoder, setting, False)
    half = Encoder(encoder.config, dtype="mixed_bfloat16")
    for mine, theirs in zip(half.weights, encoder.weights, strict=True):
        mine.assign(theirs)
    rough = np.asarray(ops.cast(half(given)["sequence"], "float32"))
    assert np.abs((rough - wanted) * real).mean() < 0.05 * np.abs(wanted).mean()
