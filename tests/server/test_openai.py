"""`--openai`: embeddings and reranking as clients of OpenAI, Cohere and Jina ask for them."""

import base64
import gzip
import json

import numpy as np
import pytest
import tensorflow as tf
from checks import randomize
from conftest import tiny_bert
from servers import in_thread, save_half_plus_two

TEXT = tf.TensorSpec([None], tf.string, name="text")
PAIR = tf.TensorSpec([None], tf.string, name="text_pair")


def counts(text, letters="abcd"):
    """How often each letter is in a text, float32 `[B, 4]`."""
    found = [tf.strings.length(text) - tf.strings.length(tf.strings.regex_replace(text, one, "")) for one in letters]
    return tf.cast(tf.stack(found, axis=1), tf.float32)


def save(directory, **functions):
    """A model with these signatures, each a function of `text`, or of `text` and `text_pair` if its name has "pair"."""
    module = tf.Module()
    module.functions = {
        name.removesuffix("_pair"): tf.function(function, [TEXT, PAIR][: 1 + name.endswith("_pair")])
        for name, function in functions.items()
    }
    tf.saved_model.save(module, str(directory), signatures=module.functions)


def words(text):
    return {"num_tokens": tf.cast(tf.strings.split(text).row_lengths(), tf.int32) + 2}


def words_of_pair(text, text_pair):
    return words(tf.strings.join([text, text_pair], " "))


def share(text, text_pair):
    """The share of the second text's letters that are in the first, as the second of two probabilities."""
    found = tf.reduce_sum(tf.minimum(counts(text), counts(text_pair)), axis=1) / 4
    return tf.stack([1 - found, found], axis=1)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    base = tmp_path_factory.mktemp("models")
    save(
        base / "vectors/1",
        embedding=lambda text: {"embedding": counts(text) / tf.norm(counts(text), axis=1, keepdims=True)},
        tokenize=words,
    )
    save(
        base / "classes/1",
        serving_default_pair=lambda text, text_pair: {"score": tf.reduce_max(share(text, text_pair), axis=1)},
        probabilities_pair=lambda text, text_pair: {"probabilities": share(text, text_pair)},
        tokenize_pair=words_of_pair,
        embedding_pair=lambda text, text_pair: {"embedding": share(text, text_pair)},
    )
    save(
        base / "number/1",
        serving_default_pair=lambda text, text_pair: {"score": 10 * share(text, text_pair)[:, 1]},
        regress=lambda text: {"outputs": tf.strings.length(text)},
    )
    save(
        base / "three/1",
        serving_default_pair=lambda text, text_pair: {"score": share(text, text_pair)[:, 1]},
        probabilities_pair=lambda text, text_pair: {"probabilities": tf.repeat(share(text, text_pair), [1, 2], 1)},
    )
    save_half_plus_two(base / "half/1")
    return {path.name: path for path in sorted(base.iterdir())}


@pytest.fixture(scope="module")
def server(bases):
    with in_thread(bases, openai=True, max_request_rows=100) as server:
        yield server


def ask(server, path, **document):
    status, kind, body = server.send("POST", path, json.dumps(document).encode())
    assert kind == "application/json"
    return status, json.loads(body)


def embed(server, **document):
    status, answer = ask(server, "/v1/embeddings", **{"model": "vectors"} | document)
    assert status == 200, answer
    assert answer.keys() == {"object", "data", "model", "usage"}
    assert [one["index"] for one in answer["data"]] == list(range(len(answer["data"])))
    return answer


def vectors(answer):
    return np.array([one["embedding"] for one in answer["data"]])


# === Embeddings ===


def test_a_list_of_texts_becomes_a_list_of_vectors(server):
    answer = embed(server, input=["aab b", "d"], user="somebody")
    assert (answer["object"], answer["model"]) == ("list", "vectors")
    np.testing.assert_allclose(vectors(answer), [[0.5**0.5, 0.5**0.5, 0, 0], [0, 0, 0, 1]], rtol=1e-6)
    assert answer["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    assert answer["data"][1]["object"] == "embedding"


def test_one_text_becomes_a_list_of_one_vector(server):
    np.testing.assert_array_equal(vectors(embed(server, input="b")), [[0, 1, 0, 0]])


def test_base64_holds_float32_in_little_endian(server):
    answer = embed(server, input=["aab", "abcd"], encoding_format="base64")
    found = [np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in answer["data"]]
    np.testing.assert_array_equal(found, vectors(embed(server, input=["aab", "abcd"])).astype(np.float32))


def test_fewer_dimensions_are_the_first_ones_of_length_one(server):
    answer = embed(server, input=["aaabbbbd", "d"], dimensions=2)
    np.testing.assert_allclose(vectors(answer), [[0.6, 0.8], [0, 0]], rtol=1e-6)


def test_a_gzipped_body_is_read(server):
    body = gzip.compress(json.dumps({"model": "vectors", "input": "a"}).encode())
    status, _, answer = server.send("POST", "/v1/embeddings", body, {"Content-Encoding": "gzip"})
    assert (status, len(json.loads(answer)["data"])) == (200, 1)


@pytest.mark.parametrize(
    ("document", "param", "said"),
    [
        ({}, "input", "input must be a text"),
        ({"input": ""}, "input", "input must be a text"),
        ({"input": []}, "input", "input must be a text"),
        ({"input": ["a", ""]}, "input", "input must be a text"),
        ({"input": [1, 2]}, "input", "nor token ids"),
        ({"input": [[1, 2]]}, "input", "nor token ids"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format", "one of float, base64, got 'hex'"),
        ({"input": "a", "encoding_format": []}, "encoding_format", "must be one of"),
        ({"input": "a", "dimensions": 0}, "dimensions", "from 1 to 4, got 0"),
        ({"input": "a", "dimensions": 5}, "dimensions", "from 1 to 4, got 5"),
        ({"input": "a", "dimensions": True}, "dimensions", "must be a whole number"),
        ({"input": "a", "model": "half"}, "model", "'half' gives no embedding of a single text"),
        ({"input": "a", "model": "classes"}, "model", "'classes' gives no embedding of a single text"),
        ({"input": "a", "model": 5}, "model", "model must be the name of a model; there are classes, half"),
    ],
)
def test_requests_that_are_wrong_are_refused_as_openai_does(server, document, param, said):
    status, answer = ask(server, "/v1/embeddings", **{"model": "vectors"} | document)
    assert (status, answer.keys()) == (400, {"error"})
    error = answer["error"]
    assert said in error.pop("message")
    assert error == {"type": "invalid_request_error", "param": param, "code": None}


def test_an_unknown_model_is_not_found(server):
    status, answer = ask(server, "/v1/embeddings", model="other", input="a")
    assert (status, answer["error"]["code"]) == (404, "model_not_found")
    assert "there are classes, half, number, three, vectors" in answer["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/rerank", "/rerank"])
def test_what_is_no_request_is_refused_in_the_form_of_the_path(server, path):
    def message(body, method="POST"):
        status, _, answer = server.send(method, path, body)
        answer = json.loads(answer)
        return status, answer["error"]["message"] if path == "/v1/embeddings" else answer["detail"]

    assert message(b'{"model"') == (
        400,
        "JSON Parse error: Missing a colon after a name of object member. at offset: 8",
    )
    assert message(None, "GET") == (405, "Method Not Allowed; use POST")
    many = {"model": "vectors", "input": ["a"] * 101, "query": "a", "documents": ["a"] * 101}
    status, said = message(json.dumps(many).encode())
    assert status == 413
    assert "--max_request_rows is 100" in said


def test_text_that_is_not_utf8_is_refused(server):
    status, _, answer = server.send("POST", "/v1/embeddings", b'{"model": "vectors", "input": "\xff"}')
    assert (status, json.loads(answer)["error"]["type"]) == (400, "invalid_request_error")


# === Reranking ===


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank"])
@pytest.mark.parametrize(
    ("model", "scores", "tokens"),
    [
        ("classes", [0.25, 1.0, 0.0, 0.25], 16),
        ("number", [2.5, 10.0, 0.0, 2.5], 0),
        ("vectors", [0.5, 1.0, 0.0, 0.5], 16),
    ],
)
def test_documents_are_ordered_by_their_scores(server, path, model, scores, tokens):
    documents = ["a", {"text": "abcd"}, "xy", "b"]
    if model == "vectors":
        documents[2], scores = "aaa bbb", [0.5, 1.0, 0.5**0.5, 0.5]
    status, answer = ask(server, path, model=model, query="abcd", documents=documents)
    assert status == 200
    assert (answer["model"], answer["usage"]) == (model, {"prompt_tokens": tokens, "total_tokens": tokens})
    order = sorted(range(4), key=lambda index: -scores[index])
    assert [one["index"] for one in answer["results"]] == order
    found = [one["relevance_score"] for one in answer["results"]]
    assert found == pytest.approx([scores[index] for index in order])
    assert answer["results"][0].keys() == {"index", "relevance_score"}


def test_the_best_documents_with_their_texts(server):
    document = {"model": "classes", "query": "ab", "documents": ["x", "a", "ab"], "top_n": 2, "return_documents": True}
    _, answer = ask(server, "/rerank", **document)
    assert [one["document"] for one in answer["results"]] == [{"text": "ab"}, {"text": "a"}]
    _, answer = ask(server, "/rerank", **document | {"top_n": 9, "return_documents": False})
    assert [one["index"] for one in answer["results"]] == [2, 1, 0]


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"query": ""}, "query must be a text"),
        ({"query": ["a"]}, "query must be a text"),
        ({"documents": []}, "documents must be a list"),
        ({"documents": "a"}, "documents must be a list"),
        ({"documents": ["a", {"title": "b"}]}, "documents[1] must be a text"),
        ({"top_n": 0}, "top_n must be a whole number from 1 on, got 0"),
        ({"return_documents": "yes"}, "return_documents must be true or false"),
        ({"model": "three"}, "'three' scores no pairs"),
        ({"model": "half"}, "'half' scores no pairs"),
    ],
)
def test_requests_that_are_wrong_are_refused_as_cohere_and_jina_do(server, document, said):
    status, answer = ask(server, "/v1/rerank", **{"model": "classes", "query": "a", "documents": ["b"]} | document)
    assert status == 400
    assert answer.keys() == {"message", "detail"}
    assert answer["message"] == answer["detail"]
    assert said in answer["message"]


# === Beside TensorFlow Serving's paths ===


def test_the_paths_of_tensorflow_serving_answer_as_ever(server):
    assert server.predict({"instances": [1.0]}, "/v1/models/half:predict") == {"predictions": [2.5]}
    assert server.refusal("POST", "/v1/other", b"{}")[0] == 400
    assert server.metrics()[':tensorflow:serving:request_count{model_name="vectors",status="OK"}'] >= 1


def test_without_the_flag_nobody_answers_there(bases):
    with in_thread({"vectors": bases["vectors"]}) as plain:
        assert plain.send("POST", "/rerank", b"{}")[0] == 404
        assert plain.refusal("POST", "/v1/embeddings", b"{}") == (400, "Malformed request: POST /v1/embeddings")


def test_a_model_need_not_be_named_where_there_is_one(bases):
    with in_thread({"vectors": bases["vectors"]}, openai=True) as one:
        assert ask(one, "/v1/embeddings", input="a")[0] == 200


# === Exported models ===


@pytest.mark.slow
def test_exported_models_embed_and_rerank(tmp_path):
    texts = ["fire in the city", "the city", "fire fire", "a forest"]
    berts = {
        "similarity": tiny_bert("similarity", (), pair=True),
        "embed": tiny_bert("embed", ()),
        "classify": tiny_bert(pair=True),
        "regress": tiny_bert("regress", (), pair=True),
    }
    for name, bert in berts.items():
        randomize(bert.network)
        bert.export(tmp_path / name)
    with in_thread({name: tmp_path / name for name in berts}, openai=True) as server:
        vectors_of = {name: vectors(embed(server, model=name, input=texts)) for name in ("similarity", "embed")}
        answers = {name: ask(server, "/rerank", model=name, query=texts[0], documents=texts[1:])[1] for name in berts}
    wanted = [answer["embedding"] for answer in berts["embed"].predict(texts)]
    np.testing.assert_allclose(vectors_of["embed"], wanted, atol=1e-5)
    pairs = [texts[:1] * 3, texts[1:]]
    scores = {
        "similarity": [answer["similarity"] for answer in berts["similarity"].predict(*pairs)],
        "embed": _cosines(np.array(wanted)),
        "classify": [answer["scores"]["1"] for answer in berts["classify"].predict(*pairs)],
        "regress": [answer["score"] for answer in berts["regress"].predict(*pairs)],
    }
    np.testing.assert_allclose(_cosines(vectors_of["similarity"]), scores["similarity"], atol=1e-5)
    for name, answer in answers.items():
        found = {one["index"]: one["relevance_score"] for one in answer["results"]}
        np.testing.assert_allclose([found[i] for i in range(3)], scores[name], atol=1e-5, err_msg=name)
        assert list(found.values()) == sorted(found.values(), reverse=True)
        assert answer["usage"]["total_tokens"] > 10


def _cosines(vectors):
    """Of the first with each of the others."""
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors[1:] @ vectors[0]
