"""A text that follows a text."""

from typing import Any

import numpy as np
from keras import ops

from keras_bert.config import EncoderConfig
from keras_bert.errors import ConfigError
from keras_bert.model.layers import Tensor
from keras_bert.tasks import divergences, metrics, words
from keras_bert.tasks.head import Row, Words, plain_value, plain_values


class Generate(Words):
    """A text that follows a text, token by token (UniLM's sequence to sequence, Dong et al. 2019).

    The mask of the encoder lets the source see itself, and each token of the target the source and what is before it.
    In training each token is told from the one before it, the first from the source's [SEP]. UniLM's fine-tuning hides
    tokens at random instead and tells those only; telling all needs no draws, learns from every token at each step, and
    from rows as they are when the target is found: nothing is hidden there.

    `answer` is what training evaluates: how many of the tokens are right, given those before them. A row of which all
    are is one that greedy search gives exactly.
    """

    best_metric = "token_accuracy"
    attention_mask = "seq2seq"
    answering = "search"

    def make(self, encoder: EncoderConfig) -> None:
        if encoder.num_segments < 2 or encoder.attention_mask != self.attention_mask:
            raise ConfigError("generate needs an encoder with two segments and attention_mask seq2seq")
        if self.config.beam_size >= encoder.vocab_size // 2:
            raise ConfigError(f"beam_size {self.config.beam_size} is too many for {encoder.vocab_size} pieces")
        super().make(encoder)

    @property
    def reserved(self) -> int:
        return self.config.max_target_length

    def prepare_text(self, text: Any) -> Any:
        return text.before_target(self.config.max_target_length)

    def places(self, features: dict[str, Tensor]) -> Tensor:
        return words.target_places(features, self.config.max_target_length)

    def targets(self, labels: Tensor, features: dict[str, Tensor]) -> Tensor:
        return words.next_tokens(features)

    def counts(self, targets: Tensor) -> Tensor:
        return ops.sum(ops.cast(targets > 0, "float32"), axis=1)

    def loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        target = words.at_target_places(labels, logits, self.config.max_target_length)
        logits = ops.cast(logits, "float32")
        chosen = ops.take_along_axis(logits, ops.expand_dims(ops.maximum(target - 1, 0), 2), axis=2)[:, :, 0]
        return ops.sum(ops.where(target > 0, ops.logsumexp(logits, axis=2) - chosen, 0.0), axis=1)

    def divergence(self, teacher: Tensor, logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
        wanted = words.at_target_places(targets, logits, self.config.max_target_length)
        each = divergences.categorical(teacher, logits, temperature)
        return ops.sum(ops.where(wanted > 0, each, 0.0), axis=1)

    def answer(self, logits: Tensor, features: Any = None) -> dict[str, Tensor]:
        target = words.at_target_places(words.next_tokens(features), logits, self.config.max_target_length)
        best = ops.cast(ops.top_k(ops.cast(logits, "float32"), 1)[1][:, :, 0], "int32")
        right = ops.logical_and(target > 0, ops.equal(best, target - 1))
        return {
            "num_right": ops.sum(ops.cast(right, "int32"), axis=1),
            "num_wanted": ops.sum(ops.cast(target > 0, "int32"), axis=1),
        }

    def plain(self, row: Row) -> dict[str, Any]:
        """`generated`, its `score`, whether it `ended` by itself, and `nbest` with their scores."""
        both = zip(plain_value(row["nbest_generated"]), plain_value(row["nbest_scores"]), strict=True)
        best = [{"generated": text, "score": score} for text, score in both]
        return plain_values(("generated", "score", "ended"), row) | {"nbest": best}

    def warnings(self, examples: Any, text: Any) -> list[str]:
        most, targets = self.config.max_target_length, examples.segments[-1]
        cut = int((text.tokenize(targets).row_lengths() >= most).numpy().sum())
        said = f"warning: {cut} of {len(targets)} targets have more than {most - 1} tokens and are cut"
        return [said] if cut else []

    @classmethod
    def before_evaluation(cls) -> None:
        metrics.generation_libraries()

    def metrics_of(self, references: Any, answers: dict[str, np.ndarray]) -> dict[str, float]:
        if "generated" in answers:
            return metrics.generation(references, [text.decode("utf-8") for text in answers["generated"]])
        right, total = answers["num_right"], answers["num_wanted"]
        return {
            "token_accuracy": float(right.sum() / max(total.sum(), 1)),
            "exact_match": float((right == total).mean()) if len(right) else 0.0,
        }
