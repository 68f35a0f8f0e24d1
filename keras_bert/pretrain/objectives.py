"""What pretraining asks for: the network with its heads, the objectives, and the task that training runs.

An objective knows three things of a batch (`rows`): how much of it counts (`weight`), its loss, and its measures, all
as sums, so that a batch may be cut into parts of any size. Everything is `keras.ops`. A new objective is one class, one
row in `OBJECTIVES`, and its logits under the same name from `PretrainHead`.

Shapes: B rows, T tokens, P predictions, K pieces of a packed row, D hidden size, V vocabulary, C classes of pairs.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import keras
from keras import ops

from keras_bert.config import FEATURES, EncoderConfig, choose
from keras_bert.errors import ConfigError
from keras_bert.model.encoder import Encoder, dense
from keras_bert.model.layers import Pooler, TiedLogits
from keras_bert.tasks.words import gather

Tensor = Any
Batch = Mapping[str, Any]
Measures = dict[str, tuple[Tensor, Tensor]]


# === Network ===


class PretrainHead(keras.layers.Layer):
    """Logits of the masked language model at masked positions, and of sentence pairs over the pooled [CLS].

    Args:
        pair_classes: C, kinds of pairs; 0 leaves the pooler and the classifier away.
    """

    config = None
    """Labels are given in fine-tuning, see `head.Head`; a checkpoint of pretraining has none."""

    def __init__(self, encoder: EncoderConfig, pair_classes: int, name: str = "head", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        policy = self.dtype_policy
        self.hidden_dim = encoder.hidden_dim
        self.masked_lm = TiedLogits(encoder, name="masked_lm", dtype=policy)
        self.pooler = Pooler(encoder, name="pooler", dtype=policy) if pair_classes else None
        name = "next_sentence" if pair_classes == 2 else "pair"  # checkpoints of other origin have two classes
        self.pair = dense(encoder, pair_classes, name, policy) if pair_classes else None
        self.build()

    def build(self, input_shape: Any = None) -> None:
        self.masked_lm.build()
        if self.pooler and self.pair:
            self.pooler.build()
            self.pair.build((None, self.hidden_dim))
        self.built = True

    def call(self, sequence: Tensor, table: Tensor, batch: Batch) -> dict[str, Tensor]:
        """`sequence` `[B, T, D]` and the token table `[V, D]` -> "masked_lm" `[B, P, V]`, "next_sentence" `[B * K, C]`.

        Only the masked positions reach the product with the table.
        """
        out = {}
        if "masked_positions" in batch:
            out["masked_lm"] = self.masked_lm(gather(sequence, batch["masked_positions"]), table)
        if self.pooler and self.pair:
            if "cls_positions" in batch:
                first = ops.reshape(gather(sequence, batch["cls_positions"]), (-1, 1, self.hidden_dim))
            else:
                first = sequence
            out["next_sentence"] = self.pair(self.pooler(first))
        return out


class PretrainNetwork(keras.Model):
    """An encoder with the heads of pretraining: a batch -> logits by objective.

    Weights have the names that `checkpoints` and `conversion` know, so that it is filled from and saved to the same
    directories as `network.Network`, and fine-tuning starts from it.

    Args:
        encoder: config of the encoder.
        pair_classes: kinds of sentence pairs: 2 for next sentence and for sentence order, 0 for none.
        dtype: "float32", "mixed_bfloat16" or "mixed_float16".
    """

    def __init__(self, encoder: EncoderConfig, pair_classes: int = 2, dtype: Any = None, **kwargs: Any) -> None:
        super().__init__(dtype=dtype, **kwargs)
        if pair_classes < 0 or pair_classes == 1:
            raise ConfigError(f"pair_classes must be 0 (no pairs) or at least 2, got {pair_classes}")
        self.encoder = Encoder(encoder, dtype=self.dtype_policy)
        self.head = PretrainHead(encoder, pair_classes, dtype=self.dtype_policy)
        self.built = True

    @property
    def encoders(self) -> tuple[Encoder, ...]:
        """All encoders of the network; fine-tuning starts from `encoder`."""
        return (self.encoder,)

    def call(self, batch: Any, training: bool = False) -> dict[str, Tensor]:
        features = {name: batch[name] for name in FEATURES if name in batch}
        sequence = self.encoder(features, training=training)["sequence"]
        return self.head(sequence, self.encoder.tokens.embeddings, batch)


# === Objectives ===


class Objective(Protocol):
    """The form of an objective. Sums are float32 scalars over the rows given."""

    name: ClassVar[str]

    def weight(self, batch: Batch) -> Tensor:
        """What the loss is divided by, of these rows."""

    def sums(self, batch: Batch, logits: Tensor) -> tuple[Tensor, Measures]:
        """Loss, and `{measure: (sum, count)}`."""


def sums(labels: Tensor, logits: Tensor, weights: Tensor, name: str) -> tuple[Tensor, Measures]:
    """Cross entropy in float32, accuracy and the same loss as a measure: labels int `[...]`, logits `[..., n]`."""
    logits = ops.cast(logits, "float32")
    labels, weights = ops.cast(labels, "int32"), ops.cast(weights, "float32")
    losses = ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)
    best = ops.top_k(logits, 1, sorted=False)[1][..., 0]  # several times as fast as argmax on TensorFlow
    hits = ops.cast(ops.equal(ops.cast(best, "int32"), labels), "float32")
    loss, count = ops.sum(losses * weights), ops.sum(weights)
    return loss, {f"{name}_accuracy": (ops.sum(hits * weights), count), f"{name}_loss": (loss, count)}


class MaskedLM:
    """The original token at each masked position (Devlin et al. 2019)."""

    name: ClassVar[str] = "masked_lm"

    def weight(self, batch: Batch) -> Tensor:
        return ops.sum(ops.cast(batch["masked_weights"], "float32"))

    def sums(self, batch: Batch, logits: Tensor) -> tuple[Tensor, Measures]:
        return sums(batch["masked_ids"], logits, batch["masked_weights"], self.name)


class MaskedLMSum(MaskedLM):
    """The same, summed over the masked positions of a row instead of averaged; the mean is over rows."""

    def weight(self, batch: Batch) -> Tensor:
        return ops.sum(ops.max(ops.cast(batch["masked_weights"], "float32"), axis=1))


class SentencePair:
    """Which kind of pair a row is, for any number of kinds; label 0 of two is IsNext (Devlin et al. 2019)."""

    name: ClassVar[str] = "next_sentence"

    def weight(self, batch: Batch) -> Tensor:
        return ops.sum(ops.cast(ops.convert_to_tensor(batch["pair_labels"]) >= 0, "float32"))

    def sums(self, batch: Batch, logits: Tensor) -> tuple[Tensor, Measures]:
        labels = ops.reshape(batch["pair_labels"], (-1,))
        return sums(ops.maximum(labels, 0), logits, labels >= 0, self.name)


OBJECTIVES: dict[str, dict[str, Objective]] = {
    "mean": {"masked_lm": MaskedLM(), "next_sentence": SentencePair()},
    "sum": {"masked_lm": MaskedLMSum(), "next_sentence": SentencePair()},
}
"""By reduction, then by name."""


# === Task ===


class PretrainTask:
    """A network and its objectives, as training runs them.

    The total loss is the sum over objectives of `factors[name] * loss / weight`, both summed over the whole batch.

    Args:
        network: its heads decide which objectives there are.
        factors: weights of the objectives in the total; 1 where not given.
        reduction: "mean" averages over all masked positions of a batch, as google-research/bert does; "sum" adds up the
            losses of the masked positions of each row, and averages over rows.

    Raises:
        ConfigError: an unknown reduction, or a factor for an objective that the network has no head for.
    """

    def __init__(
        self, network: PretrainNetwork, factors: Mapping[str, float] | None = None, reduction: str = "mean"
    ) -> None:
        self.network = network
        all_of_them = choose(OBJECTIVES, reduction, "reduction")
        names = ["masked_lm", *(["next_sentence"] if network.head.pair else [])]
        self.objectives = {name: all_of_them[name] for name in names}
        self.factors = dict.fromkeys(names, 1.0) | dict(factors or {})
        unknown = sorted(set(self.factors) - set(names))
        if unknown:
            raise ConfigError(f"no loss is called {', '.join(unknown)}; this network has {', '.join(names)}")

    def weights(self, batch: Batch) -> dict[str, Tensor]:
        """What each loss of these rows counts, without running the network: float32 scalars."""
        return {name: objective.weight(batch) for name, objective in self.objectives.items()}

    def sums(self, batch: Batch, training: bool) -> tuple[dict[str, Tensor], Measures]:
        """Losses under the names of `weights`, and measures as `(sum, count)`; sums over these rows, float32."""
        logits = self.network(batch, training=training)
        losses: dict[str, Tensor] = {}
        measures: Measures = {}
        for name, objective in self.objectives.items():
            losses[name], more = objective.sums(batch, logits[name])
            measures |= more
        return losses, measures
