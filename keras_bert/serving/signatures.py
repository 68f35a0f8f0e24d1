"""The signatures of a SavedModel: how inputs become features, and what is given for them.

`COMMON` names those of every model, `Head.signatures` those of a task; `MAKERS` has what the names stand for.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import tensorflow as tf

from keras_bert.config import WindowConfig, choose
from keras_bert.serving import embedding_types, search
from keras_bert.serving.requests import IDS
from keras_bert.serving.served import Served, Tensors, answered
from keras_bert.tasks.head import Head
from keras_bert.tasks.network import Network


def signature(text_layer: Any, network: Network, pair: bool, windows: WindowConfig | None = None) -> Any:
    """`Served.answer` as a `tf.function` of `text`, or of `text` and `text_pair`: what `Bert.predict` runs."""
    return signatures_of(Served(text_layer, network, pair, windows))["serving_default"]


# === How inputs become features: Served -> (function, input signature) ===

Made = tuple[Callable[..., Tensors], list[tf.TensorSpec]]

Gives = Callable[[Served, Tensors], Tensors]


def checked(function: Callable[..., Tensors], specs: Sequence[tf.TensorSpec]) -> Any:
    """`function` as a `tf.function` of inputs that the graph itself checks: servers do not look at their shapes.

    An input must have the rank of its spec. Inputs of one call agree in the dimensions that they share: `text` and
    `choices` in B, a mask in B and T with its token ids. What does not fit is an InvalidArgumentError, before any
    kernel has read it.
    """

    def run(*inputs: Any) -> Tensors:
        ranked = [tf.ensure_shape(value, spec.shape) for value, spec in zip(inputs, specs, strict=True)]
        pairs = zip(ranked[1:], specs[1:], strict=True)
        with tf.control_dependencies([_agree(ranked[0], specs[0], *pair) for pair in pairs]):
            return function(*map(tf.identity, ranked))

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    run.__signature__ = inspect.Signature([inspect.Parameter(spec.name, kind) for spec in specs])  # type: ignore[attr-defined]
    return tf.function(run, specs, autograph=False)


def _agree(first: tf.Tensor, first_spec: tf.TensorSpec, other: tf.Tensor, spec: tf.TensorSpec) -> tf.Operation:
    """An assertion that two inputs have the same sizes in the dimensions that both have."""
    shared = min(first.shape.rank, other.shape.rank)
    wanted, found = tf.shape(first)[:shared], tf.shape(other)[:shared]
    message = [f"{spec.name} and {first_spec.name} must agree in size, got", found, "and", wanted]
    return tf.debugging.Assert(tf.reduce_all(found == wanted), message)


def strings(gives: Callable[..., Tensors]) -> Callable[[Served], Made]:
    """Of strings `text`, `text_pair` for pairs, and `choices` `[B, C]`, which `gives` takes as they are."""
    return lambda served: (partial(gives, served), served.texts)


def alone(gives: Gives) -> Callable[[Served], Made]:
    """Of strings `text`, each read by itself, also where the model reads pairs."""

    def made(served: Served) -> Made:
        def function(text: Any) -> Tensors:
            return gives(served, served.text_layer(text) | {"strings": tf.identity(text)})

        return function, served.texts[:1]

    return made


def prompted(field: str, gives: Gives) -> Callable[[Served], Made | None]:
    """Of strings `text`, each behind the prompt that a field of the head has; none where the head has no prompts."""

    def made(served: Served) -> Made | None:
        head = served.head.config
        layer = served.text_layer.with_prompt(getattr(head, field))

        def function(text: Any) -> Tensors:
            return gives(served, layer(text))

        return (function, served.texts[:1]) if head.has_prompts else None

    return made


def text(gives: Gives) -> Callable[[Served], Made]:
    """Of strings `text`, and `text_pair` for pairs."""
    return strings(lambda served, *texts: gives(served, served.features(*texts)))


def examples(gives: Gives) -> Callable[[Served], Made]:
    """Of serialized tf.Examples with `text` and `text_pair`, which REST's `:classify` and `:regress` send."""

    def made(served: Served) -> Made:
        keys = {spec.name: tf.io.FixedLenFeature([], tf.string) for spec in served.texts}

        def function(inputs: Any) -> Tensors:
            parsed = tf.io.parse_example(inputs, keys)
            return gives(served, served.features(*(parsed[name] for name in keys)))

        return function, [tf.TensorSpec([None], tf.string, name="inputs")]

    return made


def token_ids(gives: Gives) -> Callable[[Served], Made]:
    """Of token ids `[B, T]` under the names that TensorFlow Hub and Model Garden clients use; they pad with mask 0."""

    def made(served: Served) -> Made:
        def function(input_word_ids: Any, input_mask: Any, input_type_ids: Any) -> Tensors:
            length, most = tf.shape(input_word_ids)[1], served.num_positions
            low = tf.reduce_all((input_word_ids >= 0) & (input_word_ids < served.vocab_size))
            checks = [
                tf.debugging.Assert(length <= most, [f"input_word_ids: at most {most} tokens, got", length]),
                tf.debugging.Assert(low, [f"input_word_ids: ids must be from 0 to {served.vocab_size - 1}"]),
            ]
            with tf.control_dependencies(checks):
                grow = [[0, 0], [0, tf.maximum(2 - length, 0)]]  # rows of no tokens have no first position
                ids, mask, types = (tf.pad(t, grow) for t in (input_word_ids, input_mask, input_type_ids))
            return gives(served, {"token_ids": ids, "segment_ids": types, "padding_mask": mask > 0})

        return function, [tf.TensorSpec([None, None], tf.int32, name) for name in IDS]

    return made


# === What a signature gives: (Served, features) -> outputs ===


def only(**names: str) -> Gives:
    """Some of `Served.values`, under other names."""

    def gives(served: Served, features: Tensors) -> Tensors:
        values = served.values(features)
        return {alias: values[name] for alias, name in names.items()}

    return gives


def embedding(served: Served, features: Tensors) -> Tensors:
    """`embedding` `[B, D]`: the mean of the last layer over a text's positions, of length 1."""
    mask = tf.cast(features["padding_mask"], tf.float32)[:, :, tf.newaxis]
    total = tf.reduce_sum(served.encoded(features, "sequence")["sequence"] * mask, axis=1)
    if "rows" in features:
        total = tf.math.unsorted_segment_sum(total, features["rows"], tf.shape(features["num_tokens"])[0])
    return {"embedding": tf.math.l2_normalize(total, axis=1, epsilon=1e-12)}


def vector(served: Served, features: Tensors) -> Tensors:
    """`embedding` `[B, E]`: the vector of a text as the head makes it, or other forms of it; see `EMBEDDING_TYPES`."""
    return embedding_types.forms(served.encoded(features, "logits")["logits"], served.types)


def vectors(served: Served, features: Tensors) -> Tensors:
    """`embeddings` `[B, T, E]` of every token, [CLS] and [SEP] too, and `tokens` `[B, T]`; the rest is 0 and ""."""
    mask, width = features["padding_mask"], served.text_layer.config.max_seq_length
    values = tf.where(mask[:, :, tf.newaxis], served.encoded(features, "vectors")["vectors"], 0.0)
    padding = [[0, 0], [0, width - tf.shape(values)[1]], [0, 0]]
    tokens = tokenize(served, features["strings"])
    return {
        "embeddings": tf.ensure_shape(tf.pad(values, padding), [None, width, values.shape[2]]),
        **{name: tokens[name] for name in ("tokens", "num_tokens", "truncated")},
    }


def reranked(served: Served, query: Any, documents: Any) -> Tensors:
    """Which of the documents `[B, N]` suit a query best: `indices` int32 `[B, N]`, from the best to the worst, and
    their `scores`. An empty string is no document; it has the index -1 and the score 0, behind the others."""
    count = tf.shape(documents)[1]
    features = served.text_layer.choices(query, documents)
    there = tf.reduce_any(features["padding_mask"], axis=2)
    scores = tf.reshape(answered(served, features)["score"], tf.shape(there))
    order = tf.argsort(tf.where(there, scores, search.LOW), axis=1, direction="DESCENDING", stable=True)[:, :count]
    real = tf.gather(there, order, batch_dims=1)
    shape = [None, None]
    return {
        "indices": tf.ensure_shape(tf.where(real, order, -1), shape),
        "scores": tf.ensure_shape(tf.where(real, tf.gather(scores, order, batch_dims=1), 0.0), shape),
    }


def rerank(served: Served) -> Made | None:
    """Of strings `query` `[B]` and `documents` `[B, N]`, where the model reads pairs."""
    specs = [tf.TensorSpec([None], tf.string, "query"), tf.TensorSpec([None, None], tf.string, "documents")]
    return (partial(reranked, served), specs) if served.pair else None


def answer_of_ids(served: Served, features: Tensors) -> Tensors:
    """The answer, and `logits` `[B, n]`, `pooled_output` `[B, D]` for those who go on computing."""
    known = served.network.get_concrete_function().structured_outputs
    names = {"logits": "logits", "pooled_output": "pooled"}
    further = {ours: name for ours, name in names.items() if name in known}
    encoded = served.encoded(features, *further.values())
    return served.public(features) | {ours: encoded[name] for ours, name in further.items()}


def logits_of_ids(served: Served, features: Tensors) -> Tensors:
    """`logits` `[B, n]`, or `[B, T, n]` of every token: what the answer is made of, where ids do not say it."""
    return served.encoded(features, "logits")


def tokenize(served: Served, *texts: Any) -> Tensors:
    """The rows that the model sees: `tokens`, `ids`, `segment_ids`, and which bytes of the texts they come from."""
    width = served.text_layer.config.max_seq_length
    rows = served.rows(*texts)

    def wide(values: tf.Tensor, fill: Any) -> tf.Tensor:
        grown = tf.pad(values, [[0, 0], [0, width - tf.shape(values)[1]]], constant_values=fill)
        return tf.ensure_shape(grown, [None, width])

    return {
        "tokens": wide(tf.where(rows["padding_mask"], served.words(rows["token_ids"]), ""), ""),
        "ids": wide(rows["token_ids"], served.text_layer.pad_id),
        "segment_ids": wide(rows["segment_ids"], 0),
        "starts": wide(rows["starts"], -1),
        "ends": wide(rows["ends"], -1),
        "num_tokens": rows["num_tokens"],
        "truncated": rows["truncated"],
    }


def tokenize_choices(served: Served, *texts: Any) -> Tensors:
    """`tokenize` for the row of each choice: `[B, C, T]`, and `num_tokens` and `truncated` `[B, C]`."""
    *first, choices = texts
    shape = tf.shape(choices)
    repeated = [tf.repeat(text, shape[1]) for text in first]
    second = tf.strings.join([*repeated[1:], tf.reshape(choices, [-1])], " ")
    rows = tokenize(served, repeated[0], second)
    return {name: tf.reshape(v, tf.concat([shape, tf.shape(v)[1:]], 0)) for name, v in rows.items()}


MAKERS: dict[str, Callable[[Served], Made | None]] = {
    "answer": strings(Served.answer),
    "tokenize": strings(tokenize),
    "tokenize_alone": alone(lambda served, features: tokenize(served, features["strings"])),
    "tokenize_choices": strings(tokenize_choices),
    "embedding": text(embedding),
    "vector": alone(vector),
    "token_vectors": alone(vectors),
    "vector_of_ids": token_ids(vector),
    "query": prompted("query_prompt", vector),
    "document": prompted("document_prompt", vector),
    "answer_of_ids": token_ids(answer_of_ids),
    "public_of_ids": token_ids(Served.public),
    "logits_of_ids": token_ids(logits_of_ids),
    "probabilities": text(only(probabilities="probabilities")),
    "scores": text(only(probabilities="scores")),
    "classify": examples(only(classes="labels", scores="scores")),
    "regress": examples(only(outputs="score")),
    "rerank": rerank,
}
"""What makes a signature, by the names that `Head.signatures` has; None where a model has no use for it."""

COMMON: dict[str, str] = {
    "serving_default": "answer",
    "tokenize": "tokenize",
    "embedding": "embedding",
    "token_ids": "answer_of_ids",
}
"""The signatures of every model, and names of `MAKERS`; `Head.signatures` adds to them."""

TOGETHER: dict[str, str | None] = {"token_ids": "public_of_ids", "embedding": None}
"""Those of several models, which have no vector in common."""


def table_of(head: Head | type[Head], models: int = 1) -> dict[str, Callable[[Served], Made | None]]:
    """The signatures of so many models with a head of this kind, by name."""
    table = COMMON | dict(head.signatures) | (TOGETHER if models > 1 else {})
    return {name: choose(MAKERS, made, "signature") for name, made in table.items() if made}


def signatures_of(served: Served) -> dict[str, Any]:
    """Every signature of the model as a `tf.function`, by name."""
    table = table_of(served.head, len(served.networks))
    made = {name: make(served) for name, make in table.items()}
    return {name: checked(*one) for name, one in made.items() if one}
