"""The answer in a passage."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from keras import ops

from keras_bert.config import HeadConfig, WindowConfig, choose
from keras_bert.model.layers import Tensor
from keras_bert.tasks import divergences, metrics, spans
from keras_bert.tasks.head import Head, Row, plain_value, plain_values


class Span(Head):
    """The span of a passage that answers a question: a start and an end (Devlin et al. 2019, case 4).

    Softmax over the tokens of the passage and [CLS], which stands for no answer; see `spans` for decoding.
    """

    best_metric = "best_f1"
    slices = (
        ("start_byte", "end_byte", "answer", "start", "end"),
        ("nbest_start_bytes", "nbest_end_bytes", "nbest_answers", "nbest_starts", "nbest_ends"),
    )
    signatures: ClassVar[Mapping[str, Any]] = {"token_ids": "logits_of_ids"}

    def check(self) -> None:
        super().check()
        self.decode  # noqa: B018  (an unknown name is refused before any work)

    @property
    def decode(self) -> Any:
        """The decoder, of `spans.DECODES`."""
        return choose(spans.DECODES, self.config.decode or "joint", "decode")

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
        best = self.decode(ops.cast(logits, "float32"), features, config.max_answer_length, config.n_best_size)
        return spans.answer(best, config.version_2_with_negative, config.null_score_diff_threshold)

    def plain(self, row: Row) -> dict[str, Any]:
        """The answer, where it is, and the best spans."""
        names = ("answer", "score", "start", "end", "start_byte", "end_byte")
        columns = [plain_value(row[f"nbest_{name}s"]) for name in names]
        rows = (dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True))
        best = [span for span in rows if span["start"] >= 0]
        return plain_values((*names, "null_score_diff"), row) | {"nbest": best}

    def files(self, ids: Sequence[str], answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The files that google-research/bert and SQuAD's script know: id -> answer, its best spans, its odds."""
        best = {}
        for name, answer in zip(ids, answers, strict=True):
            texts = [{"text": s["answer"], "probability": s["score"]} for s in answer["nbest"]]
            rest = max(0.0, 1.0 - sum(s["probability"] for s in texts))
            if self.config.version_2_with_negative or not texts:
                texts.append({"text": "", "probability": rest})
            best[name] = sorted(texts, key=lambda s: -s["probability"])
        return {
            "predictions.json": {name: answer["answer"] for name, answer in zip(ids, answers, strict=True)},
            "nbest_predictions.json": best,
            "null_odds.json": {name: answer["null_score_diff"] for name, answer in zip(ids, answers, strict=True)},
        }

    def metrics_of(self, references: Any, answers: dict[str, np.ndarray]) -> dict[str, float]:
        places = zip(answers["nbest_start_bytes"][:, 0], answers["nbest_end_bytes"][:, 0], strict=True)
        best = [
            passage[max(start, 0) : max(end, 0)].decode("utf-8", "ignore")
            for (passage, _), (start, end) in zip(references, places, strict=True)
        ]
        odds = answers["null_score_diff"] if self.config.version_2_with_negative else None
        return metrics.answers_to_questions([golds for _, golds in references], best, answers["start_byte"] < 0, odds)

    def with_tuned_threshold(self, record: dict[str, Any]) -> HeadConfig:
        if not self.config.version_2_with_negative:
            return self.config
        return dataclasses.replace(self.config, null_score_diff_threshold=record["best_f1_thresh"])
