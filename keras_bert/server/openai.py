"""What clients of embedding models and rerankers ask: OpenAI's `/v1/embeddings`, and `/rerank` of Cohere and Jina.

`model` in a request names a served model. Its newest version answers, with the signatures that `keras-bert export`
writes. A further path is one function that reads its requests, and one row in `DOORS`.
"""

import base64
import json
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_bert.server.json_tensor import RequestError, to_bytes
from keras_bert.server.servable import Arrays, Call, Servable, Signature

Document = Mapping[str, Any]


class Refusal(RequestError):
    """A request that cannot be answered: `param` is the wrong key in it, `code` OpenAI's word for the reason."""

    def __init__(self, message: str, param: str, code: str | None = None, status: int = 400):
        super().__init__(message, status)
        self.param, self.code = param, code


def model_of(document: Document, names: Collection[str]) -> str:
    """The model that a request asks for; it need not say so where there is only one.

    Raises:
        Refusal: it names none of `names`.
    """
    name = document.get("model", next(iter(names)) if len(names) == 1 else None)
    if not isinstance(name, str):
        raise Refusal(f"model must be the name of a model; there are {', '.join(sorted(names))}", "model")
    if name not in names:
        message = f"The model {name!r} does not exist; there are {', '.join(sorted(names))}"
        raise Refusal(message, "model", "model_not_found", 404)
    return name


# === Embeddings ===

ENCODINGS: dict[str, Callable[[np.ndarray], Any]] = {
    "float": np.ndarray.tolist,
    "base64": lambda vector: base64.b64encode(vector.astype("<f4").tobytes()).decode(),
}


def embeddings(servable: Servable, document: Document) -> Call:
    """Reads a request for embeddings: `input` and, optionally, `dimensions` and `encoding_format`.

    With `dimensions` n a vector is its first n numbers, brought to length 1.
    """
    given = document.get("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
        raise Refusal("input must be a text, or a list of at least one; none may be empty, nor token ids", "input")
    encoding = document.get("encoding_format")
    encoding = "float" if encoding is None else encoding
    if not isinstance(encoding, str) or encoding not in ENCODINGS:
        raise Refusal(f"encoding_format must be one of {', '.join(ENCODINGS)}, got {encoding!r}", "encoding_format")
    signature = _of_vectors(servable)
    if signature is None:
        raise Refusal(f"The model {servable.name!r} gives no embedding of a single text", "model")
    inputs = {"text": _strings(texts)}
    dimensions = _dimensions(document, signature)

    def write(outputs: Arrays) -> bytes:
        vectors = outputs["embedding"]
        if dimensions is not None:
            vectors = _of_length_one(vectors[:, :dimensions])
        data = [
            {"object": "embedding", "index": index, "embedding": ENCODINGS[encoding](vector)}
            for index, vector in enumerate(vectors)
        ]
        return _body({"object": "list", "data": data, "model": servable.name, "usage": _usage(servable, inputs)})

    return Call(signature, inputs, write)


def _dimensions(document: Document, signature: Signature) -> int | None:
    dimensions, most = document.get("dimensions"), (signature.outputs["embedding"] or (None,))[-1]
    if dimensions is None:
        return None
    if type(dimensions) is not int or not 1 <= dimensions <= (most or dimensions):
        raise Refusal(f"dimensions must be a whole number from 1 to {most}, got {dimensions!r}", "dimensions")
    return dimensions


def _of_vectors(servable: Servable) -> Signature | None:
    signature = servable.signatures.get("embedding")
    return signature if signature and signature.inputs.keys() == {"text"} and "embedding" in signature.outputs else None


def _of_length_one(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


# === Reranking ===


class Scoring(NamedTuple):
    """How documents are scored: what runs, and `[N]` scores of its outputs."""

    signature: Signature
    inputs: Arrays
    scores: Callable[[Arrays], np.ndarray]


def by_last_label(servable: Servable, query: str, texts: Sequence[str]) -> Scoring | None:
    """The probability of the last label, of a model for pairs that has one label or two."""
    return _of_pairs(servable.signatures.get("probabilities"), "probabilities", query, texts)


def by_score(servable: Servable, query: str, texts: Sequence[str]) -> Scoring | None:
    """The number that a model for pairs gives (regress)."""
    known = servable.signatures
    return _of_pairs(known.get("serving_default") if "regress" in known else None, "score", query, texts)


def by_cosine(servable: Servable, query: str, texts: Sequence[str]) -> Scoring | None:
    """The cosine of the vectors of the query and a document."""
    signature = _of_vectors(servable)
    if signature is None:
        return None

    def scores(outputs: Arrays) -> np.ndarray:
        vectors = _of_length_one(outputs["embedding"])
        return vectors[1:] @ vectors[0]

    return Scoring(signature, {"text": _strings([query, *texts])}, scores)


def _of_pairs(signature: Signature | None, output: str, query: str, texts: Sequence[str]) -> Scoring | None:
    if signature is None or signature.inputs.keys() != {"text", "text_pair"}:
        return None
    if (signature.outputs.get(output) or ())[1:] not in ((), (1,), (2,)):
        return None
    inputs = {"text": _strings([query] * len(texts)), "text_pair": _strings(texts)}
    return Scoring(signature, inputs, lambda outputs: outputs[output].reshape(len(texts), -1)[:, -1])


SCORERS = (by_last_label, by_score, by_cosine)
"""Ways to score; the first that the model has is taken."""


def rerank(servable: Servable, document: Document) -> Call:
    """Reads a request for the order of documents by a query: `query`, `documents` and, optionally, `top_n` and
    `return_documents`. A document is a string, or an object with one as `text`.

    Scores are probabilities, cosines, or what a model for regression gives; the first document has the highest.
    """
    query, given = document.get("query"), document.get("documents")
    if not isinstance(query, str) or not query:
        raise Refusal("query must be a text, and not empty", "query")
    if not isinstance(given, list) or not given:
        raise Refusal("documents must be a list of at least one text", "documents")
    texts: list[Any] = [one.get("text") if isinstance(one, dict) else one for one in given]
    wrong = next((i for i, text in enumerate(texts) if not isinstance(text, str)), None)
    if wrong is not None:
        raise Refusal(f"documents[{wrong}] must be a text, or an object with one as text", "documents")
    top, back = document.get("top_n"), document.get("return_documents")
    if top is not None and (type(top) is not int or top < 1):
        raise Refusal(f"top_n must be a whole number from 1 on, got {top!r}", "top_n")
    if back not in (None, False, True):
        raise Refusal(f"return_documents must be true or false, got {back!r}", "return_documents")
    scoring = next(filter(None, (score(servable, query, texts) for score in SCORERS)), None)
    if scoring is None:
        message = (
            f"The model {servable.name!r} scores no pairs: it must be for pairs, with one or two labels or a score"
        )
        raise Refusal(f"{message}, or give an embedding of a single text", "model")

    def write(outputs: Arrays) -> bytes:
        scores = scoring.scores(outputs).tolist()
        order = sorted(range(len(texts)), key=lambda index: -scores[index])[:top]
        results = [
            {"index": index, "relevance_score": scores[index]} | ({"document": {"text": texts[index]}} if back else {})
            for index in order
        ]
        answer = {"id": str(uuid.uuid4()), "object": "list", "model": servable.name, "results": results}
        return _body(answer | {"usage": _usage(servable, scoring.inputs)})

    return Call(scoring.signature, scoring.inputs, write)


def _strings(texts: Sequence[str]) -> np.ndarray:
    array = np.empty(len(texts), object)
    array[:] = [to_bytes(text) for text in texts]
    return array


def _usage(servable: Servable, inputs: Arrays) -> dict[str, int]:
    """How many tokens the texts have; 0 where the model cannot say it."""
    signature, count = servable.signatures.get("tokenize"), 0
    if signature and signature.inputs.keys() == inputs.keys() and "num_tokens" in signature.outputs:
        count = int(signature(inputs)["num_tokens"].sum())
    return {"prompt_tokens": count, "total_tokens": count}


def _body(document: Document) -> bytes:
    return json.dumps(document).encode()


# === Errors, and the table ===


def openai_error(error: RequestError) -> Document:
    """An error as OpenAI's clients read it."""
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    known = {name: getattr(error, name, None) for name in ("param", "code")}
    return {"error": {"message": str(error), "type": kind, **known}}


def rerank_error(error: RequestError) -> Document:
    """An error as clients of Cohere (`message`) and Jina (`detail`) read it."""
    return {"message": str(error), "detail": str(error)}


class Door(NamedTuple):
    """One path: `action` is what metrics call it, `read` reads its requests, `error` writes its refusals."""

    action: str
    read: Callable[[Servable, Document], Call]
    error: Callable[[RequestError], Document]


_RERANK = Door("rerank", rerank, rerank_error)
DOORS = {
    "/v1/embeddings": Door("embeddings", embeddings, openai_error),
    "/v1/rerank": _RERANK,
    "/rerank": _RERANK,
}
