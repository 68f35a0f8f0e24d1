"""What each part of the masking recipe is for: the five arms, trained and measured on a tiny model.

Each arm leaves something out of the paper's recipe (Devlin et al. 2019, appendix C.2), and each omission has a failure
that can be predicted; `MEASURES` says how it shows. All arms start from the same weights and see the same rows in the
same order; only the masks differ.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_bert.config import EncoderConfig, MaskingConfig, OptimizerConfig
from keras_bert.errors import DataError
from keras_bert.pretrain.masking import Masking
from keras_bert.pretrain.objectives import PretrainNetwork, PretrainTask
from keras_bert.training.optimizers import AdamW

Result = dict[str, Any]


def _arm(mask: float, random: float, keep: float, prob: float = 0.15) -> MaskingConfig:
    return MaskingConfig(prob, 0, mask_share=mask, random_share=random, keep_share=keep)


ARMS: dict[str, MaskingConfig] = {
    "all words": _arm(0.0, 0.0, 1.0, prob=1.0),
    "only masks": _arm(1.0, 0.0, 0.0),
    "masks and random": _arm(0.8, 0.2, 0.0),
    "80/10/10": _arm(0.8, 0.1, 0.1),
    "masks and originals": _arm(0.8, 0.0, 0.2),
}

MEASURES: dict[str, str] = {
    "visible": "accuracy at tokens that are there to be seen",
    "masked": "accuracy at tokens that [MASK] hides",
    "kept": "probability of the original where it was chosen and kept",
    "copied": "share of random tokens that are given back as the answer",
    "features": "accuracy of a linear probe for what a visible word means where it stands",
}

FAILURES: dict[str, tuple[str, ...]] = {
    "all words": ("masked",),
    "only masks": ("visible", "features"),
    "masks and random": ("kept",),
    "masks and originals": ("copied",),
}
"""Arm -> the measures in which it fails: it learns to copy and nothing else; it never has to understand a word that it
can see; it learns that what it sees is never the answer; it learns that what it sees always is."""

TINY = EncoderConfig(
    num_layers=2, num_heads=4, hidden_dim=32, intermediate_dim=128, hidden_dropout=0.0, attention_dropout=0.0
)
MOST_ROWS, MOST_CLASSES = 1000, 50


# === A language that can be learned in a minute ===


def language(
    num_rows: int, length: int = 22, run: int = 5, topics: int = 24, words: int = 60, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Rows in which every `run` words are on one topic; a topic has 8 words, each half as likely as the one before.

    A word belongs to about three topics, so what it is about is told by its neighbours and not by itself; and a topic
    has several words, so that the neighbours tell what a word may be but not which it is.

    Returns:
        Token ids int32 `[num_rows, length]`, the sense of each token (which word of which topic, -1 for special ones),
        and the vocabulary.
    """
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{i}" for i in range(words))]
    of_topic = np.stack([np.random.default_rng(i).permutation(words)[:8] for i in range(topics)])
    share = 0.5 ** np.arange(8)
    random = np.random.default_rng(seed)
    inside = length - 2
    topic = np.repeat(random.integers(0, topics, (num_rows, -(-inside // run))), run, axis=1)[:, :inside]
    word = random.choice(8, topic.shape, p=share / share.sum())
    ids = np.pad(of_topic[topic, word] + vocabulary.index("word0"), ((0, 0), (1, 1)))
    ids[:, 0], ids[:, -1] = vocabulary.index("[CLS]"), vocabulary.index("[SEP]")
    return ids.astype("int32"), np.pad(8 * topic + word, ((0, 0), (1, 1)), constant_values=-1), vocabulary


# === The suite ===


def masking_arms(
    rows: Sequence[Sequence[int]] | np.ndarray,
    vocabulary: Sequence[str],
    steps: int,
    labels: np.ndarray | None = None,
    encoder: EncoderConfig = TINY,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    seed: int = 0,
    say: Callable[[str], object] = lambda line: None,
) -> list[Result]:
    """Train and measure every arm.

    Args:
        rows: token ids, [CLS] and [SEP] included; a sixth of them, 1000 at most, is kept for the measures.
        steps: of each arm.
        labels: what the probe is to tell of each token, int `[rows, T]`, -1 for nothing; by default `pairs`.
        encoder: its vocabulary and number of positions are set here.
        say: gets a line when an arm is done.

    Returns:
        For each arm its name under "arm", its loss at the end under "loss", and the `MEASURES`.

    Raises:
        DataError: there are too few rows.
    """
    if len(rows) < 12:
        raise DataError(f"{len(rows)} rows are too few to train on some and measure on others; at least 12 are needed")
    ids = _dense(rows)
    held = min(len(ids) // 6, MOST_ROWS)
    if labels is None:
        labels = pairs(ids, [vocabulary.index(token) for token in ("[CLS]", "[SEP]")])
    keras.utils.set_random_seed(seed)
    encoder = dataclasses.replace(encoder, vocab_size=len(vocabulary), max_positions=ids.shape[1])
    bench = _Bench(encoder, vocabulary, learning_rate, seed, ids[:held], labels[:held])
    results = []
    for name, config in ARMS.items():
        loss = bench.train(ids[held:], config, steps, batch_size)
        results.append({"arm": name, "loss": loss} | bench.measure())
        say(f"{name}: loss {loss:.3f} after {steps} steps")
    return results


def table(results: Sequence[Result]) -> str:
    """The results as people read them; the predicted failure of an arm has a star."""
    lines = [f"{'arm':20}" + "".join(f"{name:>11}" for name in ("loss", *MEASURES))]
    for result in results:
        cells = [f"{result['loss']:10.3f} "]
        cells += [f"{result[name]:10.3f}" + " *"[name in FAILURES.get(result["arm"], ())] for name in MEASURES]
        lines.append(f"{result['arm']:20}" + "".join(cells))
    lines += [
        "",
        *(f"{name:10}{what}" for name, what in MEASURES.items()),
        "*         where the arm is expected to fail",
    ]
    return "\n".join(line.rstrip() for line in lines)


def pairs(ids: np.ndarray, special: Sequence[int]) -> np.ndarray:
    """Which of the 50 most frequent pairs each token makes with the one to its left: a label from 0, or -1."""
    word = (ids != 0) & ~np.isin(ids, special)
    both = np.pad(word[:, :-1] & word[:, 1:], ((0, 0), (1, 0)))
    found, number, counts = np.unique(
        np.stack([np.roll(ids, 1, axis=1)[both], ids[both]]), axis=1, return_inverse=True, return_counts=True
    )
    label = np.full(found.shape[1], -1)
    often = np.argsort(-counts, kind="stable")[:MOST_CLASSES]
    label[often] = np.arange(len(often))
    labels = np.full(ids.shape, -1)
    labels[both] = label[number.ravel()]
    return labels


def probe(hidden: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy of ridge regression from vectors `[rows, T, D]` to labels `[rows, T]`, -1 for none.

    It is fitted on the first half of the rows and judged on the second.
    """
    half = len(hidden) // 2
    parts = [
        (hidden[part][labels[part] >= 0], labels[part][labels[part] >= 0]) for part in (np.s_[:half], np.s_[half:])
    ]
    (x, y), (new, wanted) = parts
    if not len(x) or not len(new):
        return 0.0
    mean, deviation = x.mean(0), x.std(0) + 1e-6
    x, new = ((np.hstack([(v - mean) / deviation, np.ones((len(v), 1))])) for v in (x, new))
    weights = np.linalg.solve(x.T @ x + np.eye(x.shape[1]), x.T @ np.eye(labels.max() + 1)[y])
    return float(((new @ weights).argmax(1) == wanted).mean())


class _Bench:
    """One tiny model that every arm starts anew, so that everything is compiled once."""

    def __init__(
        self,
        encoder: EncoderConfig,
        vocabulary: Sequence[str],
        learning_rate: float,
        seed: int,
        held: np.ndarray,
        labels: np.ndarray,
    ) -> None:
        self.vocabulary, self.seed, self.held, self.labels = vocabulary, seed, features(held), labels
        numbers = tf.range(len(held))
        self.hidden = {n: Masking(c, vocabulary, seed + 1)(self.held, 0, numbers) for n, c in ARMS.items()}
        self.mask_id = vocabulary.index("[MASK]")
        self.network = PretrainNetwork(encoder, pair_classes=0)
        self.task = PretrainTask(self.network)
        self.variables = self.network.trainable_variables
        self.optimizer = AdamW(learning_rate, OptimizerConfig(weight_decay=0.0))
        self.optimizer.build(self.variables)
        self.start = [(v, v.numpy()) for v in (*self.network.variables, *self.optimizer.variables)]
        row, slots = (None, encoder.max_positions), (None, None)
        inputs = {"token_ids": tf.TensorSpec(row, tf.int32), "padding_mask": tf.TensorSpec(row, tf.bool)}
        targets = {name: tf.TensorSpec(slots, tf.int32) for name in ("masked_positions", "masked_ids")}
        targets["masked_weights"] = tf.TensorSpec(slots, tf.float32)
        self.step = tf.function(self._step, input_signature=[inputs | targets])
        self.look = tf.function(self._look, input_signature=[inputs])

    def _step(self, batch: dict[str, Any]) -> tf.Tensor:
        with tf.GradientTape() as tape:
            losses, _ = self.task.sums(batch, training=True)
            loss = losses["masked_lm"] / self.task.weights(batch)["masked_lm"]
        gradients = tape.gradient(loss, [v.value for v in self.variables])
        self.optimizer.apply([tf.convert_to_tensor(g) for g in gradients], self.variables)
        return loss

    def _look(self, features: dict[str, Any]) -> tuple[tf.Tensor, tf.Tensor]:
        hidden = self.network.encoder(features)["sequence"]
        everywhere = tf.broadcast_to(tf.range(tf.shape(hidden)[1]), tf.shape(hidden)[:2])
        objective = self.network.head.objectives["masked_lm"]
        logits = objective({"sequence": hidden}, encoder=self.network.encoder, batch={"masked_positions": everywhere})
        return hidden, tf.nn.softmax(logits)

    def train(self, ids: np.ndarray, config: MaskingConfig, steps: int, batch_size: int) -> float:
        for variable, value in self.start:
            variable.assign(value)
        masks = tf.function(Masking(config, self.vocabulary, self.seed), reduce_retracing=True)
        random, losses = np.random.default_rng(self.seed), []
        for step in range(steps):
            chosen = random.integers(0, len(ids), batch_size)
            losses.append(self.step(masks(features(ids[chosen]), tf.constant(step), tf.constant(chosen))))
        return float(np.mean([float(loss) for loss in losses[-50:]]))

    def predict(self, arm: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Probabilities `[n, V]`, input and original ids `[n]` of the held-out tokens that an arm's masks choose."""
        batch = self.hidden[arm]
        _, found = self.look({name: batch[name] for name in ("token_ids", "padding_mask")})
        used = batch["masked_weights"].numpy() > 0
        at = np.nonzero(used)[0], batch["masked_positions"].numpy()[used]
        return found.numpy()[at], batch["token_ids"].numpy()[at], batch["masked_ids"].numpy()[used]

    def measure(self) -> dict[str, float]:
        """The measures on the held-out rows."""
        shown, _, original = self.predict("all words")
        hidden, _, behind = self.predict("only masks")
        kept, given, answer = self.predict("masks and originals")
        same = given == answer
        random, seen, true = self.predict("masks and random")
        other = (seen != true) & (seen != self.mask_id)
        return {
            "visible": _mean(shown.argmax(1) == original),
            "masked": _mean(hidden.argmax(1) == behind),
            "kept": _mean(kept[same, answer[same]]),
            "copied": _mean(random[other].argmax(1) == seen[other]),
            "features": probe(self.look(self.held)[0].numpy(), self.labels),
        }


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0


def _dense(rows: Sequence[Sequence[int]] | np.ndarray) -> np.ndarray:
    """Rows of ids, padded with 0 to the longest: int32 `[rows, T]`."""
    dense = np.zeros((len(rows), max(map(len, rows))), "int32")
    for i, row in enumerate(rows):
        dense[i, : len(row)] = row
    return dense


def features(ids: np.ndarray) -> dict[str, tf.Tensor]:
    """Rows padded with 0 as the encoder takes them."""
    return {"token_ids": tf.constant(ids), "padding_mask": tf.constant(ids != 0)}
