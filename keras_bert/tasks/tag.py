"""Entities in a text."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from keras import ops

from keras_bert.config import WindowConfig, choose
from keras_bert.errors import ConfigError
from keras_bert.model.layers import Tensor
from keras_bert.tasks import divergences, metrics, tagging
from keras_bert.tasks.head import Head, Row, plain_value


class Tag(Head):
    """Entities in a text: softmax over the tags of each word's first piece (Devlin et al. 2019, case 2).

    The labels are the types of entities; see `tagging` for tags, targets and decoding.
    """

    best_metric = "f1"
    slices = (("start_bytes", "end_bytes", "texts", "starts", "ends"),)
    signatures: ClassVar[Mapping[str, Any]] = {"token_ids": "logits_of_ids"}

    def check(self) -> None:
        if not self.config.labels:
            raise ConfigError("tag needs at least one type of entities")
        self.decode  # noqa: B018  (an unknown name is refused before any work)

    @property
    def decode(self) -> Any:
        """The decoder, of `tagging.DECODES`."""
        return choose(tagging.DECODES, self.config.decode or "argmax", "decode")

    @property
    def scheme(self) -> tagging.Scheme:
        """How the tags of a published head are read."""
        return tagging.Scheme(self.config.tags, self.config.labels, self.config.join_tags)

    @classmethod
    def windows(cls, max_seq_length: int) -> WindowConfig:
        return WindowConfig(max_windows=64)

    def targets(self, labels: Tensor, features: dict[str, Tensor]) -> Tensor:
        targets = tagging.targets(labels, features["starts"], features["ends"], features["begins"])
        return ops.take(self.scheme.targets, targets) if self.config.tags else targets

    def counts(self, targets: Tensor) -> Tensor:
        return ops.sum(ops.cast(targets > 0, "float32"), axis=1)

    def loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        logits = ops.cast(logits, "float32")
        tags = ops.expand_dims(ops.maximum(labels - 1, 0), 2)
        each = ops.logsumexp(logits, axis=2) - ops.squeeze(ops.take_along_axis(logits, tags, axis=2), 2)
        return ops.sum(ops.where(labels > 0, each, 0.0), axis=1)

    def divergence(self, teacher: Tensor, logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
        each = divergences.categorical(teacher, logits, temperature)
        return ops.sum(ops.where(targets > 0, each, 0.0), axis=1)

    def answer(self, logits: Tensor, features: Any = None) -> dict[str, Tensor]:
        seen = ops.logical_and(features["begins"], features["best"])
        logits = tagging.by_word(ops.cast(logits, "float32"), seen, features, ops.segment_sum)
        starts = tagging.by_word(features["starts"] + 1, seen, features, ops.segment_sum) - 1
        ends = tagging.by_word(features["ends"], features["starts"] >= 0, features, ops.segment_max)
        words, shares = starts >= 0, ops.softmax(logits, axis=2)
        if self.config.tags:
            logits, shares = self.scheme.read(logits, tagging.LOW), self.scheme.read(shares, 0.0)
        tags = ops.where(words, self.decode(logits, words), 0)
        shares = ops.take_along_axis(shares, tags[:, :, None], axis=2)[:, :, 0]
        answer = tagging.entities(tags, shares, starts, ends, self.config.max_entities)
        if self.config.tags:
            answer["type_ids"] = ops.take(self.scheme.types, answer["type_ids"] + 1)
        return answer

    def plain(self, row: Row) -> dict[str, Any]:
        """`entities`: what, where, and how sure."""
        names = ("type", "text", "score", "start", "end", "start_byte", "end_byte")
        columns = [plain_value(row[f"{name}s"])[: row["num_entities"]] for name in names]
        return {"entities": [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]}

    def metrics_of(self, references: Any, answers: dict[str, np.ndarray]) -> dict[str, float]:
        names = ("start_bytes", "end_bytes", "type_ids")
        answered = np.stack([answers[name] for name in names], axis=2)
        return metrics.entities(
            *([{tuple(e) for e in row.tolist() if e[0] >= 0} for row in of] for of in (references, answered))
        )
