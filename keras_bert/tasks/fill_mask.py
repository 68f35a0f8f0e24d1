"""The words at the masks of a text."""

from typing import Any

import numpy as np
from keras import ops

from keras_bert.errors import ConfigError
from keras_bert.model.layers import Tensor
from keras_bert.tasks import metrics, words
from keras_bert.tasks.head import Words
from keras_bert.text.vocabulary import MASK


class FillMask(Words):
    """The words at the masks of a text: what the model was pretrained for (Devlin et al. 2019), so nothing is new.

    `[MASK]` in a text is the mask, whatever the case of the vocabulary.
    """

    reads = "offsets"
    pretrained = True

    def check(self) -> None:
        super().check()
        if self.config.mask_token_id < 0:
            raise ConfigError(f"fill_mask needs {MASK} in the vocabulary, and its number in mask_token_id")

    def reading(self, text: Any) -> Any:
        return text.with_special_tokens((MASK,))

    def places(self, features: dict[str, Tensor]) -> Tensor:
        return words.masks(words.is_mask(features, self.config.mask_token_id), self.config.max_masks)

    def answer(self, logits: Tensor, features: Any = None) -> dict[str, Tensor]:
        config, there = self.config, words.is_mask(features, self.config.mask_token_id)
        found = words.best(logits, self.places(features), ops.shape(there)[1], config.top_k, config.max_masks)
        return found | {"num_masks": ops.sum(ops.cast(there, "int32"), axis=1)}

    def metrics_of(self, references: Any, answers: dict[str, np.ndarray]) -> dict[str, float]:
        return metrics.cloze(references, answers["token_ids"])
