"""Rows in windows and rows with offsets, against the same thing said in plain Python."""

import numpy as np
import pytest
from conftest import WORDS

from keras_bert.config import TextConfig, WindowConfig
from keras_bert.errors import ConfigError
from keras_bert.text.text import Text

CLS, SEP = WORDS.index("[CLS]"), WORDS.index("[SEP]")
TEXTS = [
    "fire in the city",
    "",
    "a b c d e f g h i j k l m n o p q r s t u v w x y z",
    "storms " * 9,
    "a b c d e f g h",
]
OTHERS = ["", "flood", "is music in the city", "0 1 2 3 4 5 6 7 8 9", "x y z"]


def text(length, **config):
    return Text(WORDS, TextConfig(max_seq_length=length, **config))


def ids(layer, value):
    return layer.tokenize([value])[0].numpy().tolist()


def by_hand(layer, config, length, *segments):
    """Windows of one text: rows without padding, and whether something is left out."""
    *others, last = [ids(layer, s) for s in segments]
    room = length - 1 - len(segments)
    half = room // 2 if others else 0
    stride = config.doc_stride or max(1, (room - half) // 2)
    kept = [t[: half // len(others)] for t in others]
    size = room - sum(map(len, kept))
    starts = [0]
    while starts[-1] + size < len(last) and len(starts) < config.max_windows:
        starts.append(starts[-1] + stride)
    rows = [[CLS, *(i for t in kept for i in (*t, SEP)), *last[s : s + size], SEP] for s in starts]
    return rows, starts[-1] + size < len(last) or kept != others


@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize(("length", "most", "stride"), [(8, 3, 0), (8, 100, 2), (8, 4, 1), (16, 5, 0), (64, 2, 3)])
def test_windows_are_those_made_by_hand(pair, length, most, stride):
    layer, config = text(length), WindowConfig(max_windows=most, doc_stride=stride)
    columns = [OTHERS, TEXTS] if pair else [TEXTS]
    found = {name: value.numpy() for name, value in layer.windows(config, *columns).items()}
    rows = [row[mask].tolist() for row, mask in zip(found["token_ids"], found["padding_mask"], strict=True)]
    wanted = [by_hand(layer, config, length, *segments) for segments in zip(*columns, strict=True)]
    assert rows == [row for made, _ in wanted for row in made]
    assert found["rows"].tolist() == [i for i, (made, _) in enumerate(wanted) for _ in made]
    assert found["num_windows"].tolist() == [len(made) for made, _ in wanted]
    assert found["truncated"].tolist() == [left for _, left in wanted]
    assert found["num_tokens"].tolist() == layer(*columns)["num_tokens"].numpy().tolist()
    assert found["token_ids"].shape[1] <= length


def test_no_texts_have_no_windows():
    found = text(8).windows(WindowConfig(max_windows=3), [])
    assert found["token_ids"].shape == (0, 2)
    assert found["num_windows"].shape == found["rows"].shape == (0,)


def test_a_text_that_fits_is_the_same_row_as_without_windows():
    layer = text(16)
    found, usual = layer.windows(WindowConfig(max_windows=9), TEXTS[:2]), layer(TEXTS[:2])
    for name, value in usual.items():
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize(("segments", "length", "stride"), [(1, 8, 7), (2, 8, 4), (2, 3, 0)])
def test_a_stride_that_loses_tokens_is_refused(segments, length, stride):
    with pytest.raises(ConfigError, match=r"is more than the \d tokens of a window; take fewer"):
        text(length).windows(WindowConfig(max_windows=2, doc_stride=stride), *[["fire"]] * segments)


@pytest.mark.parametrize(
    "values", [{"max_windows": 0}, {"max_windows": 1001}, {"doc_stride": -1}, {"max_query_length": 0}]
)
def test_windows_that_cannot_be_are_refused(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        WindowConfig(**values)


@pytest.mark.parametrize("part", ["head", "tail", "head_tail"])
@pytest.mark.parametrize("pair", [False, True])
def test_offsets_lead_back_to_the_pieces(part, pair):
    layer = text(9, truncation_part=part)
    columns = [["Fires, FLOODS & stórms!", "", "the city " * 8]]
    columns += [["music", "Song game", "x" * 300]] if pair else []
    found = {name: value.numpy() for name, value in layer.offsets(*columns).items()}
    for name, value in layer(*columns).items():
        np.testing.assert_array_equal(found[name], value)
    for row, mask in enumerate(found["padding_mask"]):
        for i, here in enumerate(mask):
            piece, start, end = WORDS[found["token_ids"][row, i]], found["starts"][row, i], found["ends"][row, i]
            if not here or piece in ("[CLS]", "[SEP]"):
                assert (start, end) == (-1, -1)
            else:
                source = (
                    columns[found["segment_ids"][row, i]][row].encode()[start:end].decode().lower().replace("ó", "o")
                )
                assert piece in ("[UNK]", source, "##" + source)
    assert (found["starts"] >= 0).sum() > 5
