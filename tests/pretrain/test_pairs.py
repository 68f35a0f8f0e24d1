"""Sentence pairs: labels that are true, the shares of the papers, and rows that fit."""

from itertools import chain
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_bert.cli.flags import names_in
from keras_bert.config import CorpusConfig
from keras_bert.pretrain.pairs import PAIRS, original_next_sentence, rows

ROOM = 61


def corpus(documents: int = 40, sentences: int = 60, seed: int = 0) -> list[list[list[int]]]:
    """Ids tell where they come from: 100000 a document, 1000 a sentence, 1 a token."""
    rng = Random(seed)
    return [
        [[100_000 * d + 1000 * s + t for t in range(rng.randint(1, 30))] for s in range(sentences)]
        for d in range(documents)
    ]


def draw(name: str, short: float = 0.1, seed: int = 1, everything: list[list[list[int]]] | None = None):
    """All rows of a corpus, each with the number of its document."""
    everything = everything or corpus()
    rng = Random(seed)
    found = []
    for d, document in enumerate(everything):

        def other(own=d):
            return everything[rng.choice([i for i in range(len(everything)) if i != own])]

        found += [(d, row) for row in rows(document, PAIRS[name].draw, other, ROOM, short, rng)]
    return found


def document_of(segment: list[int]) -> int:
    (found,) = {token // 100_000 for token in segment}
    return found


def sentences_of(segment: list[int]) -> list[int]:
    return list(dict.fromkeys(token // 1000 % 100 for token in segment))


def within_three_sigma(labels: list[int], label: int, share: float) -> bool:
    n = len(labels)
    return abs(labels.count(label) - n * share) <= 3 * (n * share * (1 - share)) ** 0.5


def test_the_names_are_those_of_the_flag():
    field = CorpusConfig.__dataclass_fields__["pairs"]
    assert names_in(field.metadata["choices"], field.default) == list(PAIRS)
    assert PAIRS["none"].room(128) == 126
    assert PAIRS["next_sentence"].room(128) == 125


@pytest.mark.parametrize("name", PAIRS)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), lengths=st.lists(st.lists(st.integers(1, 90), min_size=1), min_size=2, max_size=6))
def test_rows_fit_and_hold_tokens_of_one_document_each(name, seed, lengths):
    documents = [
        [[100_000 * d + 1000 * (s % 100) + t for t in range(n)] for s, n in enumerate(document)]
        for d, document in enumerate(lengths)
    ]
    for d, row in draw(name, 0.5, seed, documents):
        assert len(row.segments) == PAIRS[name].segments
        assert all(row.segments)
        assert len(row.segments) == 1 or sum(map(len, row.segments)) <= ROOM
        assert d in {document_of(segment) for segment in row.segments}
        assert row.label in range(PAIRS[name].classes) or (name == "none" and row.label == -1)


def test_half_of_the_next_sentences_are_true():
    for documents, sentences in ((40, 60), (1500, 2)):
        labels = [row.label for _, row in draw("next_sentence", everything=corpus(documents, sentences))]
        assert within_three_sigma(labels, 1, 0.5)


def test_the_original_gives_lone_sentences_a_random_partner():
    document, another = corpus(2)
    rng = Random(3)
    for stop, share in ((11, 1.0), (14, 0.5)):
        found = [original_next_sentence(document, 10, stop, ROOM, lambda: another, rng) for _ in range(2000)]
        assert within_three_sigma([pair.label for pair in found], 1, share)


def test_random_sentences_are_of_another_document_and_true_ones_follow():
    for d, ((a, b), label) in draw("next_sentence"):
        assert document_of(a) == d
        assert (document_of(b) != d) == (label == 1)
        assert label or max(a) < min(b)


def test_sentences_that_a_random_partner_replaced_are_used_again():
    everything = corpus()
    for d, document in enumerate(everything):
        a_or_true = [row.segments[: 2 - row.label] for own, row in draw("next_sentence", 0) if own == d]
        used = set(chain.from_iterable(sentences_of(segment) for segments in a_or_true for segment in segments))
        assert len(used) >= 0.9 * len(document)  # cutting to the room may drop a whole sentence
        if d == 2:
            break


def test_short_rows_are_as_frequent_as_asked():
    def targets(short):
        return [max(len(list(chain(*row.segments))) for own, row in found if own == d) for d in range(40)]

    found = draw("next_sentence", 0.0)
    assert min(targets(0.0)) == ROOM
    found = draw("next_sentence", 1.0)
    assert sum(length < ROOM for length in targets(1.0)) > 15


def test_sentence_order_is_really_swapped():
    found = draw("sentence_order")
    assert within_three_sigma([row.label for _, row in found], 1, 0.5)
    for d, ((a, b), label) in found:
        assert document_of(a) == document_of(b) == d
        assert (max(a) < min(b)) == (label == 0)
        assert (min(a) > max(b)) == (label == 1)


def test_three_ways_are_a_third_each():
    found = draw("three_way", 0)
    labels = [row.label for _, row in found]
    assert all(within_three_sigma(labels, label, 1 / 3) for label in range(3))
    for d, ((a, b), label) in found:
        assert document_of(a) == d or label == 1
        assert (document_of(a) != document_of(b)) == (label == 2)
        if label < 2:
            assert (max(b) < min(a)) == (label == 1)


def test_distances_are_a_third_each():
    found = draw("distance", 0)
    labels = [row.label for _, row in found]
    assert all(abs(labels.count(label) / len(labels) - 1 / 3) < 0.05 for label in range(3))
    for d, ((a, b), label) in found:
        assert document_of(a) == d
        assert (document_of(b) != d) == (label == 2)
        if label == 1:
            before, after = sentences_of(a)[0], sentences_of(a)[-1]
            assert not set(sentences_of(b)) & set(range(before - 1, after + 1))


def test_without_pairs_a_row_holds_full_sentences_and_nothing_is_lost():
    everything = corpus()
    found = draw("none")
    for d, document in enumerate(everything):
        segments = [row.segments[0] for own, row in found if own == d]
        assert list(chain(*segments)) == list(chain(*document))
        ends = {sentence[-1] for sentence in document}
        assert all(segment[-1] in ends for segment in segments)
        assert all(len(segment) <= ROOM for segment in segments)
