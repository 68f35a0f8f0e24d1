"""Every head with features and labels, in NumPy, and what comes out of it: the same on every backend of Keras.

`test_backends` runs this file as a program, with Keras on another backend: weights and features in, results out.
"""

import sys
from typing import Any

import numpy as np
from keras import ops

from keras_bert.config import FEATURES, EncoderConfig, HeadConfig
from keras_bert.tasks.network import Network

ENCODER = {
    "vocab_size": 60,
    "num_layers": 4,
    "num_heads": 2,
    "hidden_dim": 16,
    "intermediate_dim": 32,
    "max_positions": 32,
}
HEADS = {
    "classify": HeadConfig(labels=("a", "b", "c"), label_smoothing=0.1, label_weights=(1.0, 2.0, 3.0)),
    "classify_two": HeadConfig(labels=("a", "b"), threshold=0.3, layers="last4_concat", pooling="mean"),
    "classify_mix": HeadConfig(labels=("a", "b"), layers="mix", pooling="max"),
    "classify_lstm": HeadConfig(labels=("a", "b"), layers="last4_sum", head_lstm=4),
    "multilabel": HeadConfig(task="multilabel", labels=("a", "b", "c"), layers="first_last", pooling="cls"),
    "regress": HeadConfig(task="regress", layers="second_last"),
    "choice": HeadConfig(task="choice"),
    "similarity": HeadConfig(task="similarity", objective="ranking"),
    "similarity_scores": HeadConfig(task="similarity", objective="scores", normalize=False),
    "embed": HeadConfig(task="embed"),
    "embed_dense": HeadConfig(
        task="embed",
        pooling="cls+weighted_mean+last+mean_sqrt",
        dense_units=(6, 5),
        dense_activations=("silu", "identity"),
        dense_biases=(True, False),
        dimensions=3,
    ),
    "tag": HeadConfig(task="tag", labels=("place", "person"), max_entities=5),
    "tag_constrained": HeadConfig(task="tag", labels=("place", "person"), decode="constrained"),
    "span": HeadConfig(task="span", max_answer_length=3, n_best_size=4, version_2_with_negative=True),
    "span_independent": HeadConfig(task="span", decode="independent"),
    "fill_mask": HeadConfig(task="fill_mask", mask_token_id=4, max_masks=3),
    "generate": HeadConfig(task="generate", max_target_length=4),
}
LABELS = {
    "classify": np.array([1, 0, 1], "int32"),
    "multilabel": np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1]], "float32"),
    "regress": np.array([0.5, -1.0, 2.0], "float32"),
    "choice": np.array([1, 0, 1], "int32"),
    "similarity": np.array([[1, 1, 1], [2, 2, 1], [1, 3, 0.2]], "float32"),
    "tag": np.array([[[0, 4, 1], [6, 8, 0]], [[2, 4, 0], [-1, -1, -1]], [[-1, -1, -1]] * 2], "int32"),
    "span": np.array([[2, 6], [-1, -1], [-2, -2]], "int32"),
}


def network(name: str) -> Network:
    """The network of a head."""
    mask = "seq2seq" if name == "generate" else "bidirectional"
    return Network(EncoderConfig(**ENCODER, attention_mask=mask), HEADS[name])


def features(task: str) -> dict[str, np.ndarray]:
    """Three rows of 8, 6 and 3 of 9 positions: two pieces to a word, two bytes to a piece, segments and masks."""
    place, lengths = np.arange(9, dtype="int32"), np.array([[8], [6], [3]])
    ids = np.random.default_rng(0).integers(5, 60, (3, 9)).astype("int32")
    mask = place < lengths
    ids[0, 2] = ids[1, 3] = 4
    found = {"token_ids": ids * mask, "segment_ids": (mask * (place > lengths // 2)).astype("int32")}
    found["padding_mask"] = mask
    if task in ("choice", "similarity"):
        return {name: np.stack([value, np.roll(value, 1, axis=0)], axis=1) for name, value in found.items()}
    if task in ("tag", "span"):
        inside = (place > 0) & (place < lengths - 1)
        piece = np.broadcast_to(place - 1, (3, 9))
        found |= {
            "starts": np.where(inside, 2 * piece, -1).astype("int32"),
            "ends": np.where(inside, 2 * piece + 2, -1).astype("int32"),
            "words": np.where(inside, piece // 2, -1).astype("int32"),
            "begins": inside & (piece % 2 == 0),
            "best": inside,
            "rows": np.array([0, 1, 2], "int32"),
            "num_tokens": lengths[:, 0].astype("int32"),
            "num_windows": np.array([1, 1, 1], "int32"),
        }
    return found


def results(net: Network) -> dict[str, np.ndarray]:
    """Logits, answer, targets, counts and loss."""
    head, task = net.head, net.head.config.task
    given = {key: ops.convert_to_tensor(value) for key, value in features(task).items()}
    logits = net({key: value for key, value in given.items() if key in FEATURES}, training=False)
    out: dict[str, Any] = {"logits": logits} | head.answer(logits, given)
    if task not in ("embed", "fill_mask"):  # nothing is learnt there
        labels = ops.convert_to_tensor(LABELS[task]) if task in LABELS else None
        targets = head.targets(labels, given)
        out |= {"targets": targets, "counts": head.counts(targets), "loss": head.loss(targets, logits)}
    return {key: ops.convert_to_numpy(value) for key, value in out.items()}


def main(source: str, target: str) -> None:
    """Weights of all heads from `source`, results to `target`, both npz."""
    stored, found = np.load(source), {}
    for name in HEADS:
        net = network(name)
        for weight in net.weights:
            if "seed_generator" not in weight.path:
                weight.assign(stored[f"{name}:{weight.path}"])
        found |= {f"{name}:{key}": value for key, value in results(net).items()}
    np.savez(target, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
