"""The answer in a passage."""

import dataclasses
from typing import Any

import numpy as np
from keras import ops

from keras_bert.config import HeadConfig, WindowConfig
from keras_bert.errors import ConfigError
from keras_bert.model.layers import Tensor
from keras_bert.tasks import divergences, metrics, spans
from keras_bert.tasks.head import Head


class Span(Head):
    """The span of a passage that answers a question: a start and an end (Devlin et al. 2019, case 4).

    Softmax over the tokens of the passage and [CLS], which stands for no answer; see `spans` for decoding.
    """

    best_metric = "best_f1"
    located = True
    max_seq_length = 384

    @property
    def width(self) -> int:
        return 2

    def check(self) -> None:
        if self.config.labels:
            raise ConfigError(f"span has no labels, got {list(self.config.labels)}")

    @classmethod
    def windows(cls, max_seq_length: int) -> WindowConfig:
        return WindowConfig(max_windows=64, doc_stride=max(1, min(128, max_seq_length // 3)))

    def targets(self, labels: Tensor, features: dict[str, Tensor]) -> Tensor:
        return spans.targets(labels, features["starts"], features["ends"])

    def counts(self, targets: Tensor) -> Tensor:
        return ops.cast(ops.any(spans.bit(targets, spans.START), axis=1), "float32")

    def loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        allowed = ops.expand_dims(spans.bit(labels, spans.ALLOWED), 2)
        logits = ops.where(allowed, ops.cast(logits, "float32"), spans.LOW)
        total = 0.5 * ops.sum(ops.logsumexp(logits, axis=1), axis=1) * self.counts(labels)
        for i, which in enumerate((spans.START, spans.END)):
            total = total - 0.5 * ops.sum(ops.where(spans.bit(labels, which), logits[..., i], 0.0), axis=1)
        return total

    def divergence(self, teacher: Tensor, logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
        teacher, logits = (ops.transpose(x, (0, 2, 1)) for x in (teacher, logits))  # [B, 2, T]
        allowed = ops.expand_dims(spans.bit(targets, spans.ALLOWED), 1)
        return 0.5 * ops.sum(divergences.categorical(teacher, logits, temperature, allowed), axis=1)

    def answer(self, logits: Tensor, features: Any = None) -> dict[str, Tensor]:
        config = self.config
        decode = spans.DECODES[config.decode or "joint"]
        found = decode(ops.cast(logits, "float32"), features, config.max_answer_length, config.n_best_size)
        return spans.answer(found, config.version_2_with_negative, config.null_score_diff_threshold)

    def metrics_of(self, references: Any, answers: dict[str, np.ndarray]) -> dict[str, float]:
        places = zip(answers["nbest_start_bytes"][:, 0], answers["nbest_end_bytes"][:, 0], strict=True)
        best = [
            passage[max(start, 0) : max(end, 0)].decode("utf-8", "ignore")
            for (passage, _), (start, end) in zip(references, places, strict=True)
        ]
        odds = answers["null_score_diff"] if self.config.version_2_with_negative else None
        return metrics.reading([golds for _, golds in references], best, answers["start_byte"] < 0, odds)

    def tuned(self, record: dict[str, Any]) -> HeadConfig:
        if not self.config.version_2_with_negative:
            return self.config
        return dataclasses.replace(self.config, null_score_diff_threshold=record["best_f1_thresh"])
