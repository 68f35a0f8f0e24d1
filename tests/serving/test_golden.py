"""Golden requests: values to JSON and back, and when two answers count as equal."""

import json

import numpy as np
import pytest

from keras_bert.errors import CheckpointError, DataError
from keras_bert.serving import golden


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (np.array([[1.5, -2e-7], [3e20, 0.1]], np.float32), "float32"),
        (np.array([1, -(2**31)], np.int32), "int32"),
        (np.array([[True, False]]), "bool"),
        (np.array([[b"fire", "é🔥\x00".encode()], [b"\xff", b""]], object), "string"),
        (np.zeros([0, 3], np.float32), "float32"),
    ],
)
def test_values_survive_json(values, dtype):
    found = golden.from_json(json.loads(json.dumps(golden.to_json(values))), dtype)
    if values.size:
        assert found.shape == values.shape
    if dtype == "float32":
        np.testing.assert_allclose(found.reshape(values.shape), values, rtol=1e-6)
    else:
        np.testing.assert_array_equal(found, values)


def answer(labels, scores, **more):
    order = np.argsort(-np.array(scores))
    found = {"labels": np.array([[labels[i] for i in order]], object), "scores": np.array([scores])[:, order]}
    return found | {"label": found["labels"][:, 0], "score": found["scores"][:, 0], **more}


LABELS = [b"a", b"b", "é".encode()]


@pytest.mark.parametrize(
    ("other", "apart"),
    [
        (answer(LABELS, [0.6, 0.3, 0.1]), 0),
        (answer(LABELS, [0.60005, 0.3, 0.1]), 5e-5),
        (answer(LABELS, [0.6, 0.2, 0.2]), None),
        (answer([b"b", b"a", LABELS[2]], [0.6, 0.3, 0.1]), None),
        (answer(LABELS, [np.nan, 0.3, 0.1]), None),
        (answer(LABELS, [0.6, 0.3, 0.1], more=np.zeros(1)), None),
        ({k: v[:, :2] if v.ndim == 2 else v for k, v in answer(LABELS, [0.6, 0.3, 0.1]).items()}, None),
    ],
)
def test_answers_are_compared_within_the_tolerance(other, apart):
    wanted = answer(LABELS, [0.6, 0.3, 0.1])
    if apart is None:
        with pytest.raises(DataError, match=r"of row 0 is|of shape|outputs are"):
            golden.difference(other, wanted, 1e-4)
    else:
        assert golden.difference(other, wanted, 1e-4) == pytest.approx(apart, abs=1e-7)


def test_labels_with_equal_scores_may_change_places():
    one, other = answer(LABELS, [0.40001, 0.4, 0.2]), answer(LABELS, [0.4, 0.40001, 0.2])
    assert one["label"] != other["label"]
    assert golden.difference(one, other, 1e-4) < 1e-4
    with pytest.raises(DataError):
        golden.difference(one, other, 1e-6)


def words(ids, scores, rest=b"flood"):
    """An answer of fill_mask: two texts, the first with one mask, the second with none; the three best words."""
    names = np.array([b"fire", b"flood", b"storm", b"song", b""], object)
    ids = np.array([[ids], [[-1] * 3]], np.int32)
    filled = np.array([names[ids[0, 0, 0]] + b"!", b"none"], object)
    scores = np.array([[scores], [[0, 0, 0]]], np.float32)
    return {"token_ids": ids, "tokens": names[ids], "scores": scores, "filled": filled, "rest": np.array([rest, b""])}


@pytest.mark.parametrize(
    ("other", "wrong"),
    [
        (words([1, 0, 2], [0.40001, 0.4, 0.1]), ""),
        (words([0, 1, 3], [0.4, 0.4, 0.1]), ""),  # another third, as good as the one that was
        (words([0, 2, 1], [0.4, 0.4, 0.1]), "token_ids"),
        (words([3, 1, 2], [0.4, 0.4, 0.1]), "token_ids"),
        (words([0, 1, 2], [0.4, 0.39, 0.1]), "scores"),
        (words([0, 1, 2], [0.4, 0.4, 0.1]) | {"filled": np.array([b"fire!", b"some"], object)}, "filled"),
        (words([0, 1, 2], [0.4, 0.4, 0.1], rest=b"other"), "rest"),
    ],
)
def test_words_for_a_mask_may_change_places_where_their_scores_are_equal(other, wrong):
    wanted = words([0, 1, 2], [0.4, 0.4, 0.1])
    if wrong:
        with pytest.raises(DataError, match=f"^{wrong} of row"):
            golden.difference(other, wanted, 1e-4)
    else:
        assert golden.difference(other, wanted, 1e-4) < 1e-4


@pytest.mark.parametrize("content", [None, "{", "[]", '{"schema": 2}'])
def test_a_manifest_that_cannot_be_read_is_refused(content, tmp_path):
    (tmp_path / "assets.extra").mkdir()
    if content is not None:
        (tmp_path / "assets.extra" / golden.MANIFEST).write_text(content)
    with pytest.raises(CheckpointError, match=r"keras_bert\.json: "):
        golden.read_manifest(tmp_path)


def test_a_server_that_is_not_there_is_an_error():
    manifest = {"signatures": {"f": {"outputs": {"x": {"dtype": "float32"}}}}}
    with pytest.raises(CheckpointError, match=r"http://127\.0\.0\.1:9/v1/models/m: does not answer f"):
        golden.server("http://127.0.0.1:9/v1/models/m", manifest)("f", {"text": np.array([b"a"], object)})
