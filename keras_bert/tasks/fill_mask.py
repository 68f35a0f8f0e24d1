"""The words at the masks of a text."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from keras_bert.errors import ConfigError
from keras_bert.model.layers import Tensor
from keras_bert.tasks import metrics, words
from keras_bert.tasks.head import Row, Words, plain_value, plain_values
from keras_bert.text.vocabulary import MASK


class FillMask(Words):
    """The words at the masks of a text: what the model was pretrained for (Devlin et al. 2019), so nothing is new.

    `[MASK]` in a text is the mask, whatever the case of the vocabulary.
    """

    pretrained_head = True
    answering = "words"

    def check(self) -> None:
        super().check()
        if self.config.mask_token_id < 0:
            raise ConfigError(f"fill_mask needs {MASK} in the vocabulary, and its number in mask_token_id")

    @classmethod
    def settings(cls, vocabulary: Sequence[str]) -> dict[str, Any]:
        return {"mask_token_id": list(vocabulary).index(MASK)} if MASK in vocabulary else {}

    def prepare_text(self, text: Any) -> Any:
        return text.with_special_tokens((MASK,))

    def places(self, features: dict[str, Tensor]) -> Tensor:
        return words.masks(words.is_mask(features, self.config.mask_token_id), self.config.max_masks)

    def answer(self, logits: Tensor, features: Any = None) -> dict[str, Tensor]:
        config, masks = self.config, words.is_mask(features, self.config.mask_token_id)
        best = words.best(logits, self.places(features), ops.shape(masks)[1], config.top_k, config.max_masks)
        return best | {"num_masks": ops.sum(ops.cast(masks, "int32"), axis=1)}

    def plain(self, row: Row) -> dict[str, Any]:
        """`filled`, the text with the best words in it; and of each mask where it is, and `tokens` with their
        `scores`."""
        real = row["starts"] >= 0
        starts, ends, scores, tokens = (plain_value(row[n][real]) for n in ("starts", "ends", "scores", "tokens"))
        masks = [
            {"tokens": best, "scores": values, "start": start, "end": end}
            for best, values, start, end in zip(tokens, scores, starts, ends, strict=True)
        ]
        return plain_values(("filled",), row) | {"masks": masks} | plain_values(("num_masks",), row)

    def metrics_of(self, references: Any, answers: dict[str, np.ndarray]) -> dict[str, float]:
        return metrics.cloze(references, answers["token_ids"])
