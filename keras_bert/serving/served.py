"""Text, encoder and head as one function from strings to answers.

`Served.answer` is the whole of it: text -> features -> logits -> answer. `Bert.predict` runs that function in process;
`export` writes it as the signature `serving_default`, and the others of `signatures.py` beside it. The parts are
functions of the graph that all signatures call, so weights, vocabulary and graph are in the file once.

Models of the same task, such as those of folds, can answer as one, with the mean of their scores: the text is read once
for all of them.

Shapes: B texts, W windows (W = B where long texts are cut), T tokens, n labels, M models.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from keras import ops

from keras_bert.config import HeadConfig, WindowConfig, choose
from keras_bert.errors import ConfigError
from keras_bert.model.encoder import Memory
from keras_bert.serving import embedding_types, search
from keras_bert.serving.groups import by_length
from keras_bert.tasks.head import Head
from keras_bert.tasks.network import HEADS, Network, as_rows
from keras_bert.text import packing
from keras_bert.text.tokenizer import character_offsets
from keras_bert.text.vocabulary import MASK

Tensors = dict[str, tf.Tensor]

Pairs = list[tuple[tf.Tensor, ...]]
"""Keys and values of each block, see `encoder.Memory`."""

DTYPES = (tf.float32, tf.int32, tf.string, tf.bool)


class Served:
    """A model as functions from strings to answers.

    Args:
        text_layer, network: the parts of the model.
        pair: does it read pairs of texts?
        windows: how long texts are read; by default they are cut.
        others: further models of the same task, labels and vocabulary that answer together with `network`.
        types: forms in which vectors are answered, names of `EMBEDDING_TYPES`.

    Attributes:
        features: strings `[B]` -> what `Text` gives, and `num_windows` int32 `[B]`.
        source, next: what `remembering` runs: token_ids and padding_mask `[B, T]` -> `Pairs`; and token_ids,
            segment_ids, positions `[B, K]`, seen bool `[B, K, P]` and `Pairs` -> logits `[B, K, V]` and `Pairs` of K
            tokens more.
        network: token_ids, segment_ids int32 and padding_mask bool `[W, T]` -> `logits`, `sequence` `[W, T, D]`, and
            the head's `extra_outputs`, such as `pooled` `[W, D]`; of several models `logits` `[W, M, n]` only.
            Differentiable, also after loading; without dropout.

    Raises:
        ConfigError: the task has no way to merge windows, or models, or vectors in such a form.
    """

    def __init__(
        self,
        text_layer: Any,
        network: Network,
        pair: bool,
        windows: WindowConfig | None = None,
        others: Sequence[Network] = (),
        types: Sequence[str] = ("float",),
    ) -> None:
        head, config = network.head, network.encoder.config
        self.text_layer = text_layer = head.prepare_text(text_layer)
        self.model, self.networks = network, (network, *others)
        self.head, self.pair = head, pair
        self.types = embedding_types.check(types, head.config)
        self.windows = windows or head.windows(text_layer.config.max_seq_length)
        if self.windows.max_windows > 1 and head.config.reads != "windows":
            merging_of(head, "with windows")
        if others:
            merging_of(head, "of several models")
        # Raw variables, not the Keras model: with the model as a child, the graph gets two handles for each
        # variable and TensorFlow 1 loaders, among them TensorFlow Serving, restore only one of them.
        self.weights = [v.value for n in self.networks for v in n.weights if "seed_generator" not in v.path]
        self.num_positions, self.vocab_size = config.max_positions - head.reserved, config.vocab_size
        self.texts = [tf.TensorSpec([None], tf.string, name=n) for n in ("text", "text_pair")[: 1 + pair]]
        if head.config.reads == "choices":
            self.texts.append(tf.TensorSpec([None, None], tf.string, name="choices"))
        ids = [tf.TensorSpec([None, None], tf.int32, n) for n in ("token_ids", "segment_ids")]
        ids.append(tf.TensorSpec([None, None], tf.bool, "padding_mask"))
        self.ids = ids
        count = ROWS.get(head.config.reads)
        vectors = [tf.TensorSpec([None], tf.string)] * count if count else self.texts
        self.network = tf.function(self._run, ids, autograph=False)
        self.source = tf.function(self._run_source, [ids[0], ids[2]], autograph=False)
        self.next = tf.function(self._run_next, autograph=False)
        self.features = tf.function(self._read, self.texts, autograph=False)
        self.rows = tf.function(text_layer.offsets, vectors, autograph=False)
        # Functions of their own: the vocabulary is in the graph once, however many signatures show words.
        self.pieces = tf.function(self._run_pieces, [tf.TensorSpec([None], tf.int32)], autograph=False)
        self.spelt = tf.function(text_layer.detokenize, [tf.TensorSpec([None] * 3, tf.int32)], autograph=False)

    def _run(self, token_ids: Any, segment_ids: Any, padding_mask: Any) -> Tensors:
        features = {"token_ids": token_ids, "segment_ids": segment_ids, "padding_mask": padding_mask}
        if len(self.networks) > 1:
            logits = ops.stack([one(features, training=False) for one in self.networks], axis=1)
            return {"logits": ops.cast(logits, "float32")}
        taps = self.model.encoded(features, sorted({*self.head.taps, "sequence"}))
        outputs = {"logits": self.head(taps, training=False), "sequence": taps["sequence"]}
        return {n: ops.cast(value, "float32") for n, value in (outputs | self.head.extra_outputs(taps)).items()}

    def _read(self, *texts: Any) -> Tensors:
        strings = {"strings": tf.identity(texts[-1])}
        if self.head.config.reads == "windows":
            return self.text_layer.located(self.windows, *texts) | strings
        if self.windows.max_windows > 1:
            return self.text_layer.windows(self.windows, *texts)
        features = self.text_layer.read(self.head.config.reads, *texts) | strings
        return features | {"num_windows": tf.ones_like(features["num_tokens"])}

    def _run_source(self, token_ids: Any, padding_mask: Any) -> Pairs:
        memory = [Memory() for _ in range(self.model.encoder.config.num_layers)]
        self.model.encoded({"token_ids": token_ids, "padding_mask": padding_mask}, ("sequence",), memory=memory)
        return [one.tensors for one in memory]

    def _run_next(self, token_ids: Any, segment_ids: Any, positions: Any, seen: Any, pairs: Pairs) -> tuple[Any, Pairs]:
        width = tf.range(tf.shape(token_ids)[1])[tf.newaxis, :]
        separate = {"padding_mask": tf.ones_like(token_ids, tf.bool), "pack_ids": tf.zeros_like(token_ids) + width}
        features = {"token_ids": token_ids, "segment_ids": segment_ids, "positions": positions} | separate
        memory = [Memory(*pair) for pair in pairs]
        taps = self.model.encoded(features, self.head.taps, memory=memory, seen=seen) | {"places": width}
        logits = ops.cast(self.head(taps, training=False), "float32")
        return logits, [one.tensors for one in memory]

    def _run_pieces(self, ids: Any) -> tf.Tensor:
        known, count = tf.constant([*self.text_layer.vocabulary, ""]), len(self.text_layer.vocabulary)
        return tf.gather(known, tf.where((ids < 0) | (ids >= count), count, ids))

    def words(self, ids: tf.Tensor) -> tf.Tensor:
        """The pieces of ids of any shape; "" where there is none."""
        return tf.ensure_shape(tf.reshape(self.pieces(tf.reshape(ids, [-1])), tf.shape(ids)), ids.shape)

    def answer(self, *texts: Any) -> Tensors:
        """Strings `[B]` to answers: from raw text to what a client gets.

        Returns:
            `label` and `score` `[B]`, `labels`, `scores` and `class_ids` `[B, n]` from the best to the worst
            (classify); `labels`, `scores`, `class_ids` and `active` `[B, n]` in the order of the labels
            (multilabel); `score` `[B]` (regress); `choice`, `answer` and `score` `[B]`, `scores` `[B, C]` in the order
            of the choices (choice); `similarity` `[B]` (similarity); `embedding` `[B, E]` (embed); `types`, `texts`,
            `scores`, `starts`, `ends` and `start_bytes`, `end_bytes` `[B, E]` of the first `num_entities` (tag);
            `answer`, `score`, `start`, `end`, `start_byte`, `end_byte`, `null_score_diff` `[B]`, and `nbest_answers`
            and the like `[B, n]` (span); `tokens`, `token_ids`, `scores` `[B, E, k]` and `starts`, `ends` `[B, E]` of
            the first of `num_masks`, and `filled` `[B]` (fill_mask); `generated`, `score`, `ended` `[B]`,
            `nbest_generated`, `nbest_scores` `[B, K]` (generate); always `num_tokens`, `num_windows` int32 `[B]` and
            `truncated` bool `[B]`. Floats are float32. No width depends on the other texts of the batch.
        """
        features = self.features(*texts)
        sizes = {name: features[name] for name in ("num_tokens", "num_windows", "truncated")}
        return self.public(features) | sizes

    def values(self, features: Tensors) -> Tensors:
        """All that the head says about features: its answer, with label values beside their ids."""
        answer = choose(ANSWERING, self.head.answering, "way to answer")(self, features)
        for first, last, *names in self.head.slices:
            sliced = slices(features["strings"], answer[first], answer[last])
            answer |= dict(zip(names, sliced, strict=True))
        if "embedding" in answer:
            answer |= embedding_types.forms(answer.pop("embedding"), self.types)
        if "choice" in answer:
            answer["answer"] = _of_choices(features["strings"], answer["choice"])
        return answer | _names(answer, self.head.config)

    def public(self, features: Tensors) -> Tensors:
        """`values` without those that say the same in another form."""
        return {k: v for k, v in self.values(features).items() if k not in INNER}

    def encoded(self, features: Tensors, *names: str) -> Tensors:
        """What of the outputs of `network` is named, for features; rows of like length are computed together."""
        rows = {name: as_rows(features[name]) for name in ("token_ids", "segment_ids", "padding_mask")}
        known = self.network.get_concrete_function().structured_outputs

        def run(some: Tensors) -> Tensors:
            outputs = self.network(**some)
            return {name: outputs[name] for name in names}

        return by_length(run, rows, {name: known[name] for name in names}) if self.head.groupable else run(rows)


ROWS = {"choices": 2, "each": 1}
"""Texts of a row, by how an example is read: a choice stands behind its text; else a row has all texts."""


def merging_of(head: Head, what: str) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """`Head.merging`.

    Raises:
        ConfigError: the task has none.
    """
    if head.merging is None:
        known = ", ".join(task for task, kind in HEADS.items() if kind.merging)
        raise ConfigError(f"unknown task {what} {head.config.task!r}; choose one of {known}")
    return head.merging


def answered(served: Served, features: Tensors) -> Tensors:
    """What the head answers, of logits that were merged if a text has several windows, or there are several models.

    The score of a model is that of all windows; the mean is taken of these.
    """
    logits, together = served.encoded(features, "logits")["logits"], len(served.networks) > 1
    windows = "rows" in features and served.head.config.reads != "windows"
    if windows or together:
        to_scores, to_logits = merging_of(served.head, "with windows or of several models")
        scores = to_scores(logits)
        if windows:
            count = tf.shape(features["num_tokens"])[0]
            scores = packing.merge(scores, features["rows"], count, served.windows.window_merge)
        logits = to_logits(ops.mean(scores, axis=1) if together else scores)
    return {k: tf.convert_to_tensor(value) for k, value in served.head.answer(logits, features).items()}


INNER = ("probabilities", "class_id", "embeddings")
"""What a head answers that says the same as another output, or is of use to metrics only."""


def _names(answer: Tensors, head: HeadConfig) -> Tensors:
    """Label values beside their ids."""
    values = tf.constant([*head.labels, ""], tf.string)
    count = len(head.labels)
    return {
        label: tf.gather(values, tf.where(answer[ids] < 0, count, answer[ids]))
        for ids, label in (("class_id", "label"), ("class_ids", "labels"), ("type_ids", "types"))
        if ids in answer
    }


def _of_choices(texts: tf.Tensor, numbers: tf.Tensor) -> tf.Tensor:
    """The text of a choice of each row, `[B]` of `[B, C]`; "" where the number is -1."""
    texts = tf.concat([texts, tf.fill([tf.shape(texts)[0], 1], "")], 1)
    return tf.gather(texts, tf.where(numbers < 0, tf.shape(texts)[1] - 1, numbers), batch_dims=1)


def slices(texts: tf.Tensor, first: tf.Tensor, last: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The text between places in bytes, and the places in characters, of `[B]` texts and `[B]` or `[B, E]` places.

    Where a place is -1 the text is "" and the place stays. What is no UTF-8 is replaced, as JSON must hold it.
    """
    shape = tf.shape(first)
    if first.shape.rank == 1:
        first, last = first[:, tf.newaxis], last[:, tf.newaxis]
    begin, end = tf.maximum(first, 0), tf.maximum(last, 0)
    slices = tf.strings.substr(texts[:, tf.newaxis], begin, end - begin)
    slices = tf.strings.unicode_transcode(slices, "UTF-8", "UTF-8")
    both = character_offsets(texts, tf.RaggedTensor.from_tensor(tf.concat([begin, end], 1)))
    places = tf.reshape(both.flat_values, tf.shape(tf.concat([begin, end], 1)))
    starts, ends = (tf.where(first < 0, -1, half) for half in tf.split(places, 2, axis=1))
    return tf.reshape(slices, shape), tf.reshape(starts, shape), tf.reshape(ends, shape)


# === Words: ids -> strings ===


def filled(served: Served, features: Tensors) -> Tensors:
    """The best words for each mask, where it is in the text, and the text with the best word of each.

    A piece that goes on with a word joins what is before its mask. Of ids alone there is no text, and no place in it.
    """
    answer = answered(served, features)
    ids, places = answer["token_ids"], answer.pop("places")
    answer["tokens"] = tokens = served.words(ids)
    if "starts" not in features:
        return answer
    texts, real = features["strings"], places >= 0
    starts = tf.gather(features["starts"], tf.maximum(places, 0), batch_dims=1)
    first = tf.where(real, starts, -1)
    _, *where = slices(texts, first, tf.where(real, starts + len(MASK), -1))
    answer |= dict(zip(("starts", "ends"), where, strict=True))
    length = tf.strings.length(texts)[:, tf.newaxis]
    end = tf.where(real, starts, length)
    begin = tf.minimum(tf.concat([tf.zeros_like(length), end + len(MASK)], 1), length)
    between = tf.strings.substr(texts[:, tf.newaxis], begin[:, :-1], end - begin[:, :-1])
    best = tokens[:, :, 0]
    between = tf.where(tf.strings.substr(best, 0, 2) == "##", tf.strings.regex_replace(between, r"\s+$", ""), between)
    joined = tf.strings.join([between, tf.strings.regex_replace(best, "^##", "")])
    rest = tf.strings.substr(texts, begin[:, -1], length[:, 0] - begin[:, -1])
    whole = tf.strings.join([tf.strings.reduce_join(joined, axis=1), rest])
    return answer | {"filled": tf.strings.unicode_transcode(whole, "UTF-8", "UTF-8")}


Start = Callable[[Served, Tensors], tuple[search.Step, Any]]
"""Features of texts -> how the next token is found, and the state to begin with; see `search.search`."""


def remembering(served: Served, features: Tensors) -> tuple[search.Step, Any]:
    """Each token of text and targets is read once: keys and values of all that were read are the state.

    The hypotheses of a text are the tokens of one row there, each of which sees the text and its own way. The text's
    [SEP], from which the first token is told, is read again with them.
    """
    size, ids, mask = served.head.config.beam_size, features["token_ids"], features["padding_mask"]
    last = tf.maximum(tf.reduce_sum(tf.cast(mask, tf.int32), axis=1, keepdims=True) - 1, 0)
    first = tf.repeat(tf.gather(ids, last, batch_dims=1)[:, :, tf.newaxis], size, axis=1)
    text = tf.repeat((mask & (tf.range(tf.shape(ids)[1]) < last))[:, tf.newaxis, :], size, axis=1)

    def step(targets: tf.Tensor, ways: tf.Tensor, length: tf.Tensor, pairs: Pairs) -> tuple[tf.Tensor, Pairs]:
        tokens = tf.concat([first, targets], axis=2)[:, :, length]
        own = ways[:, :, :length, tf.newaxis] == tf.range(size)
        seen = tf.concat([text, tf.reshape(own, [tf.shape(ids)[0], size, length * size])], axis=2)
        segments, positions = tf.zeros_like(tokens) + tf.minimum(length, 1), tf.zeros_like(tokens) + last + length
        return served.next(tokens, segments, positions, seen, pairs)

    return step, served.source(ids, mask)


def generated(served: Served, features: Tensors, start: Start = remembering) -> Tensors:
    """The best targets of each text, found by `search.search`, and whether the best came to an end by itself."""
    config, text_layer = served.head.config, served.text_layer
    size, most, rows = config.beam_size, config.max_target_length, tf.shape(features["token_ids"])[0]
    pieces, numbers = text_layer.vocabulary, np.arange(served.vocab_size)
    never = np.isin(numbers, [pieces.index(p) for p in NEVER if p in pieces]) | (numbers >= len(pieces))
    ask, state = start(served, features)

    def step(*asked: Any) -> tuple[tf.Tensor, Any]:
        logits, state = ask(*asked)
        return tf.where(never, search.LOW, logits), state

    best = search.search(step, rows, size, most, text_layer.sep_id, config.length_penalty, state)
    spoken = tf.range(most) < (best.lengths - tf.cast(best.ended, tf.int32))[:, :, tf.newaxis]
    texts = tf.ensure_shape(served.spelt(tf.where(spoken, best.ids, -1)), [None, size])
    return {
        "generated": texts[:, 0],
        "score": best.scores[:, 0],
        "ended": best.ended[:, 0],
        "nbest_generated": texts,
        "nbest_scores": best.scores,
    }


NEVER = ("[PAD]", "[UNK]", "[CLS]", MASK)
"""Pieces that no target is made of."""

ANSWERING: dict[str, Callable[[Served, Tensors], Tensors]] = {
    "logits": answered,
    "words": filled,
    "search": generated,
}
"""How features become an answer, by `Head.answering`."""
