"""What is asked of vectors and of cross-encoders: prompts, fewer dimensions, other forms; and the best documents."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from conftest import TINY, WORDS, tiny_bert

from keras_bert import Bert, HeadConfig, Text, TextConfig
from keras_bert.config import DataConfig
from keras_bert.errors import ConfigError, DataError
from keras_bert.serving.embedding_types import binary, int8
from keras_bert.serving.golden import difference
from keras_bert.serving.served import Served
from keras_bert.serving.signatures import signatures_of
from keras_bert.tasks.network import Network

TEXTS = ["the fire", "music in the city!", ""]
PROMPTS = {"query_prompt": "song: ", "document_prompt": "the city. "}


def vectors(**head) -> Bert:
    """An embedder with the weights of `tiny_bert`."""
    network = Network(TINY, HeadConfig(task="embed", **head))
    network.encoder.set_weights(tiny_bert("embed", ()).network.encoder.get_weights())
    return Bert(Text(WORDS, TextConfig(max_seq_length=16)), network, DataConfig())


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The embedder with prompts, 12 of its 16 dimensions in all forms."""
    folder = tmp_path_factory.mktemp("vectors")
    path = vectors(dimensions=12, **PROMPTS).export(folder, embedding_types=("float", "int8", "binary"))
    return tf.saved_model.load(str(path)).signatures


def test_prompts_stand_in_the_graph(exported):
    plain = vectors(dimensions=12)
    for name, prompt in (("query", "song: "), ("document", "the city. "), ("embedding", "")):
        found = exported[name](text=tf.constant(TEXTS))["embedding"]
        np.testing.assert_allclose(found, plain.embed([prompt + text for text in TEXTS]), atol=1e-6)
        assert name == "embedding" or np.abs(found - plain.embed(TEXTS)).max() > 1e-3


def test_forms_of_vectors(exported):
    found = {name: value.numpy() for name, value in exported["query"](text=tf.constant(TEXTS)).items()}
    vector = found["embedding"]
    assert vector.shape == (3, 12)
    np.testing.assert_allclose(np.linalg.norm(vector, axis=1), 1, atol=1e-6)
    assert found["embedding_int8"].dtype == found["embedding_binary"].dtype == np.int8
    np.testing.assert_allclose(found["embedding_int8"] / 127, vector, atol=0.5 / 127 + 1e-6)
    wanted = (np.packbits(vector > 0, axis=-1) - 128).astype(np.int8)  # as sentence-transformers packs signs
    np.testing.assert_array_equal(found["embedding_binary"], wanted)


def test_the_first_dimensions_are_made_long_again():
    whole, cut = vectors().embed(TEXTS), vectors(dimensions=5).embed(TEXTS)
    np.testing.assert_allclose(cut, whole[:, :5] / np.linalg.norm(whole[:, :5], axis=1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize("width", [1, 8, 13])
def test_signs_and_steps(width):
    vector = np.random.default_rng(width).normal(size=(5, width)).astype("float32")
    vector[0] = 0
    packed = (np.packbits(vector > 0, axis=-1) - 128).astype(np.int8)
    np.testing.assert_array_equal(binary(tf.constant(vector)), packed)
    np.testing.assert_array_equal(int8(tf.constant([[1.5, -1.0, 0.5, 0.0]])), [[127, -127, 64, 0]])


@pytest.mark.parametrize(
    ("task", "head", "types", "said"),
    [
        ("embed", {}, ["float16"], "unknown embedding type 'float16'"),
        ("embed", {}, [], "must name at least one"),
        ("embed", {"normalize": False}, ["int8"], "needs vectors of length 1"),
        ("regress", {}, ["int8"], "a model for regress gives no vectors of its own"),
    ],
)
def test_forms_that_cannot_be(task, head, types, said):
    bert = tiny_bert(task, ())
    bert.head.config = dataclasses.replace(bert.head.config, **head)
    with pytest.raises(ConfigError, match=said):
        Served(bert.text, bert.network, False, types=types)


def test_rounding_on_another_machine_is_no_difference():
    found = {"embedding_int8": np.array([[1, -2]], "i1"), "embedding_binary": np.array([[-128, 3]], "i1")}
    near = {"embedding_int8": np.array([[2, -2]], "i1"), "embedding_binary": np.array([[0, 3]], "i1")}
    assert difference(near, found, 1e-4) == 0
    far = {"embedding_int8": np.array([[3, -2]], "i1")}, {"embedding_binary": np.array([[-125, 3]], "i1")}
    for change in far:
        with pytest.raises(DataError):
            difference(found | change, found, 1e-4)


# === Cross-encoders ===

QUERIES = ["fire in the city", "the song"]
DOCUMENTS = [["the flood", "storm, fire!", "", "music is on"], ["", "a game", "a game", "songs"]]


@pytest.fixture(scope="module")
def reranker():
    return tiny_bert("regress", (), pair=True)


def test_the_best_documents(reranker):
    ask = signatures_of(Served(reranker.text, reranker.network, True))["rerank"]
    found = {name: value.numpy() for name, value in ask(tf.constant(QUERIES), tf.constant(DOCUMENTS)).items()}
    for i, (query, documents) in enumerate(zip(QUERIES, DOCUMENTS, strict=True)):
        there = [j for j, document in enumerate(documents) if document]
        answers = reranker.predict([query] * len(there), [documents[j] for j in there])
        scores = dict(zip(there, (answer["score"] for answer in answers), strict=True))
        order = sorted(there, key=lambda j: -scores[j])
        assert found["indices"][i].tolist()[:3] == order or len({*scores.values()}) < 3
        np.testing.assert_allclose(found["scores"][i][:3], [scores[j] for j in order], atol=1e-5)
        assert (found["indices"][i][3], found["scores"][i][3]) == (-1, 0)
    asked = reranker.rerank(QUERIES, [[d for d in row if d] for row in DOCUMENTS])
    assert [len(row) for row in asked] == [3, 3]
    np.testing.assert_allclose([[score for _, score in row] for row in asked], found["scores"][:, :3], atol=1e-5)
    assert reranker.rerank(["fire"], [[]]) == [[]]


def test_an_exported_cross_encoder(reranker, tmp_path):
    ask = tf.saved_model.load(str(reranker.export(tmp_path))).signatures["rerank"]
    found = ask(query=tf.constant(QUERIES), documents=tf.constant(DOCUMENTS))
    wanted = reranker.rerank(QUERIES, DOCUMENTS)
    np.testing.assert_allclose(found["scores"][:, :3], [[score for _, score in row] for row in wanted], atol=1e-5)
    none = ask(query=tf.constant(QUERIES), documents=tf.zeros([2, 0], tf.string))
    assert none["indices"].shape == none["scores"].shape == (2, 0)


def test_who_cannot_rerank(reranker):
    with pytest.raises(ConfigError, match="no signature rerank; it takes the task regress on pairs"):
        tiny_bert("regress", ()).rerank(["a"], [["b"]])
    with pytest.raises(DataError, match="2 queries but 1 lists"):
        reranker.rerank(QUERIES, DOCUMENTS[:1])
