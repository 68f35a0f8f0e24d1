"""Greedy and beam search against a plain search in Python, on random models."""

import itertools
import math

import numpy as np
import pytest
import tensorflow as tf

from keras_bert.serving.search import search

VOCABULARY, END = 5, 0


def model(seed, rows, sharp=2.0):
    """A random model: row and hypothesis -> log-probabilities of the next token, the same whenever it is asked."""
    known = {}

    def scores(row, hypothesis):
        key = (row, *hypothesis)
        if key not in known:
            logits = np.random.default_rng([seed, *key]).normal(size=VOCABULARY).astype("float32") * sharp
            logits[END] -= 0.5
            known[key] = logits
        return known[key]

    return scores


def step_of(scores, size):
    """The model as `search` asks it."""

    def ask(ids, count):
        rows = [[scores(i, tokens[: int(count)]) for tokens in row] for i, row in enumerate(ids.tolist())]
        return np.array(rows, "float32").reshape(-1, size, VOCABULARY)

    def step(ids, ways, count, state):
        found = tf.numpy_function(ask, [ids, count], tf.float32)
        return tf.ensure_shape(found, [None, size, VOCABULARY]), state

    return step


def normalized(total, length, penalty):
    return total / ((5 + length) / 6) ** penalty


def plain(scores, row, size, length, penalty):
    """Beam search as one would write it down: `(hypothesis without its end, score, did it end)`, the best first."""
    beam = [((), 0.0, False)]
    for _ in range(length):
        found = []
        for hypothesis, total, ended in beam:
            if ended:
                found.append((hypothesis, total, True))
                continue
            logits = scores(row, hypothesis).astype("float64")
            logp = logits - math.log(np.exp(logits).sum())
            for token in range(VOCABULARY):
                if token == END:
                    found.append((hypothesis, total + logp[token], True))
                else:
                    found.append(((*hypothesis, token), total + logp[token], False))
        found.sort(key=lambda h: -normalized(h[1], len(h[0]) + h[2], penalty))
        beam = found[:size]
        if all(ended for *_, ended in beam):
            break
    return [(h, normalized(total, len(h) + ended, penalty), ended) for h, total, ended in beam]


def run(scores, rows, size, length, penalty):
    step = step_of(scores, size)
    found = tf.function(lambda: search(step, rows, size, length, END, penalty), autograph=False)()
    assert found.ids.shape == (rows, size, length)
    out = []
    for row in range(rows):
        hypotheses = []
        for k in range(size):
            ids, ended = found.ids[row, k].numpy().tolist(), bool(found.ended[row, k])
            spoken = int(found.lengths[row, k]) - ended
            assert ids[spoken:] == [END] * (length - spoken)
            hypotheses.append((tuple(ids[:spoken]), float(found.scores[row, k]), ended))
        out.append(hypotheses)
    return out


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("penalty", [0.0, 0.6, 2.0])
def test_beam_search_is_that_in_python(size, penalty):
    scores = model(size, rows=12)
    found = run(scores, 12, size, 6, penalty)
    wanted = [plain(scores, row, size, 6, penalty) for row in range(12)]
    for ours, theirs in zip(found, wanted, strict=True):
        assert [(h, ended) for h, _, ended in ours] == [(h, ended) for h, _, ended in theirs]
        assert [s for _, s, _ in ours] == pytest.approx([s for _, s, _ in theirs], abs=1e-5)
    every = [h for row in found for h in row]
    assert {ended for *_, ended in every} == {True, False}, "of use only if some end and some are cut"
    assert len({len(h) for h, *_ in every}) > 2


def test_a_beam_of_one_is_greedy():
    scores = model(7, rows=20)
    for row, ((hypothesis, _, ended),) in enumerate(run(scores, 20, 1, 5, 1.0)):
        greedy = []
        while len(greedy) < 5 and (not greedy or greedy[-1] != END):
            greedy.append(int(np.argmax(scores(row, tuple(greedy)))))
        assert ended == (greedy[-1] == END)
        assert hypothesis == tuple(greedy[: len(greedy) - ended])


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_beam_that_holds_everything_finds_the_best_of_all(penalty):
    scores, length = model(3, rows=3, sharp=1.0), 3
    for row, best in enumerate(run(scores, 3, VOCABULARY**2 * 2, length, penalty)):
        totals = {}
        for tokens in itertools.product(range(VOCABULARY), repeat=length):
            cut = tokens.index(END) + 1 if END in tokens else length
            total = 0.0
            for i in range(cut):
                logits = scores(row, tokens[:i]).astype("float64")
                total += logits[tokens[i]] - math.log(np.exp(logits).sum())
            totals[tokens[:cut]] = normalized(total, cut, penalty)
        top = max(totals, key=totals.get)
        assert (*best[0][0], *[END] * best[0][2]) == top
        assert best[0][1] == pytest.approx(totals[top], abs=1e-5)


def test_a_row_alone_is_the_same_and_no_rows_are_none():
    scores = model(5, rows=4)
    together = run(scores, 4, 3, 6, 0.6)
    for row in range(4):
        (alone,) = run(lambda _, h, row=row: scores(row, h), 1, 3, 6, 0.6)
        assert [h[0] for h in alone] == [h[0] for h in together[row]]
        assert [h[1] for h in alone] == pytest.approx([h[1] for h in together[row]], abs=1e-6)
    found = search(lambda ids, *_: (tf.zeros([tf.shape(ids)[0], 2, VOCABULARY]), ()), tf.constant(0), 2, 4, END)
    assert [tuple(v.shape) for v in found] == [(0, 2, 4), (0, 2), (0, 2), (0, 2)]


def test_the_way_of_a_hypothesis_leads_to_its_own_tokens():
    """What each place of the beam was asked with is kept; along its way each hypothesis finds what it is made of."""
    scores, size, length = model(11, rows=6), 4, 6
    asked, ask = [], step_of(scores, size)

    def step(ids, ways, count, state):
        count = int(count)
        asked.append(ids[:, :, count - 1].numpy() if count else None)
        for row, k in itertools.product(range(6), range(size)):
            path = [*ways[row, k, 1:count].numpy().tolist(), k][:count]
            assert [asked[j + 1][row, place] for j, place in enumerate(path)] == ids[row, k, :count].numpy().tolist()
        moved.append(bool(tf.reduce_any(ways[:, :, 1:count] != tf.range(size)[:, tf.newaxis])))
        return ask(ids, ways, tf.constant(count), state)

    moved = []
    search(step, 6, size, length, END, 0.6)
    assert any(moved), "of use only if hypotheses change their places"


def test_it_stops_when_all_have_ended():
    asked = []

    def step(ids, ways, count, state):
        asked.append(int(count))
        return tf.one_hot(tf.fill([2, 1], END), VOCABULARY) * 50, state

    search(step, 2, 1, 100, END)
    assert asked == [0]
