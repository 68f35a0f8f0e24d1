"""What an exported model is asked before it is published: golden requests, which it keeps, warm-up requests, and wrong
ones, which it must refuse."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

Arrays = dict[str, np.ndarray]
SENTENCES = ("A quick brown fox jumps over the lazy dog.", "Forest fire near La Ronge, Café 東京 🔥 [SEP]", "")
LENGTHS = (8, 32, 128, 512)
"""Tokens of warm-up requests, as far as they fit into a row."""
IDS = ("input_word_ids", "input_mask", "input_type_ids")
"""Inputs of a signature of token ids, under the names that TensorFlow Hub and Model Garden clients use."""
RANKS: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
    lambda value: value.reshape(-1)[:1].reshape([]),
    lambda value: value.reshape(-1) if value.ndim > 1 else np.stack([value, value], axis=1),
    lambda value: value[np.newaxis],
    lambda value: np.stack([value, value], axis=-1)[np.newaxis],
)
"""An input of a vector or matrix -> another rank: a scalar, a vector or a nested pair, one more, two more."""


class Trial:
    """Requests for every signature of a model.

    Args:
        text_layer: strings to features.
        pair: does the model read pairs of texts?
        signatures: name -> `inputs`, whose names say what to send: strings, tf.Examples or token ids.
    """

    def __init__(self, text_layer: Any, pair: bool, signatures: Mapping[str, Any]) -> None:
        self.text_layer, self.signatures = text_layer, signatures
        self.names = ("text", "text_pair")[: 1 + pair]
        self.longest = text_layer.config.max_seq_length
        masks = [f"The {token} is in the city{token}" for token in text_layer.tokenizer.special_tokens]
        self.sentences = (*masks, *SENTENCES)

    @property
    def example(self) -> dict[str, str]:
        """One text, or one pair, to show."""
        return dict(zip(self.names, self.sentences, strict=False))

    def golden(self, few: int | None = None) -> Iterator[tuple[str, Arrays]]:
        """Signature and inputs of texts that are short, foreign, empty and too long, or of the first `few` of them."""
        texts = (*self.sentences, f"{self.sentences[0]} " * (self.longest // 4))[:few]
        return ((name, self.inputs(signature["inputs"], texts)) for name, signature in self.signatures.items())

    def warmup(self, max_windows: int = 1) -> list[tuple[str, Arrays]]:
        """For every signature a text of each length; for `serving_default` also many, and one of all windows."""
        asked = [
            (name, ["the " * (length // len(self.names))] * count)
            for name in self.signatures
            for length in [*(n for n in LENGTHS if n < self.longest), self.longest]
            for count in ((1, 8) if name == "serving_default" else (1,))
        ]
        if max_windows > 1:
            asked.append(("serving_default", ["the " * (self.longest * max_windows)]))
        return [(name, self.inputs(self.signatures[name]["inputs"], texts)) for name, texts in asked]

    def wrong(self) -> Iterator[tuple[str, Arrays]]:
        """For every signature inputs of wrong shapes: each of them, and all together, of another rank; each of another
        size than the rest."""
        for name, signature in self.signatures.items():
            good = self.inputs(signature["inputs"], self.sentences[:2])
            for change in RANKS:
                for key in good:
                    yield name, good | {key: change(good[key])}
                if len(good) > 1:
                    yield name, {key: change(value) for key, value in good.items()}
            for key, value in good.items():
                others = [other.ndim for one, other in good.items() if one != key]
                for axis in range(min(value.ndim, max(others, default=0))):
                    yield name, good | {key: np.take(value, [0], axis)}
                    yield name, good | {key: np.concatenate([value, np.take(value, [0], axis)], axis)}

    def inputs(self, names: Collection[str], texts: Sequence[str]) -> Arrays:
        """What a signature with the inputs `names` is sent for texts.

        Second texts are the same in reverse; choices are both, and a third that is none.
        """
        both = [[t.encode("utf-8") for t in column] for column in (texts, texts[::-1])]
        columns = both[: len(self.names)]
        if "inputs" in names:
            rows = [dict(zip(self.names, row, strict=True)) for row in zip(*columns, strict=True)]
            return {"inputs": np.array([_example(row) for row in rows], object)}
        if IDS[0] in names:
            found = self.text_layer(*columns)
            values = (found[name].numpy().astype(np.int32) for name in ("token_ids", "padding_mask", "segment_ids"))
            return dict(zip(IDS, values, strict=True))
        choices = [[*row, b""] for row in zip(*both, strict=True)]
        given = {"text": both[0], "text_pair": both[1], "choices": choices, "query": both[0], "documents": choices}
        return {name: np.array(values, object) for name, values in given.items() if name in names}


def _example(row: Mapping[str, bytes]) -> bytes:
    features = {k: tf.train.Feature(bytes_list=tf.train.BytesList(value=[v])) for k, v in row.items()}
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(deterministic=True)
