"""What pretraining learns: objectives, each a layer with its own logits and loss, and the network that holds them.

An objective is one class and one row in `OBJECTIVES`. It reads taps of the encoder and columns of a batch
(`columns.COLUMNS`), and gives how much of the batch counts, its loss and its measures, all as sums, so that a batch may
be cut into parts of any size. Everything is `keras.ops`.

Shapes: B rows, T tokens, P predictions, K pieces of a packed row, D hidden size, V vocabulary, C classes of pairs.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import keras
from keras import ops

from keras_bert.config import FEATURES, EncoderConfig, choose
from keras_bert.errors import ConfigError
from keras_bert.model.encoder import Encoder
from keras_bert.model.layers import Pooler, TiedLogits
from keras_bert.tasks.words import gather

Tensor = Any
Batch = Mapping[str, Any]
Measures = dict[str, tuple[Tensor, Tensor]]


# === Objectives ===

REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": ops.sum,
    "sum": lambda weights: ops.sum(ops.max(weights, axis=1)),
}
"""Weights of predictions `[B, P]` -> the normaliser of the sum of their losses. "mean" averages over all predictions of
a batch, as google-research/bert does; "sum" adds up those of each row and averages over rows."""


class Objective(keras.layers.Layer):
    """The form of an objective; its weights stand under `head/NAME/`, where NAME is its name in `OBJECTIVES`.

    Args:
        encoder: config of the encoder.
        pair_classes: C, labels of the corpus' sentence pairs; 0 if it has none.
        reduction: a name in `REDUCTIONS`, or a function of that form; for losses of many predictions in a row.
    """

    taps: ClassVar[tuple[str, ...]] = ("sequence",)
    """What it reads of the encoder; "pooled" is the pooler's output at each [CLS], `[B * K, D]`."""
    inputs: ClassVar[tuple[str, ...]] = ()
    """Columns of a batch that `call` reads; a batch without them has no logits of this objective."""
    labels: ClassVar[tuple[str, ...]] = ()
    """Columns of a batch that `weight` and `sums` read."""

    def __init__(self, encoder: EncoderConfig, pair_classes: int, reduction: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.encoder_config, self.pair_classes = encoder, pair_classes
        self.reduction = choose(REDUCTIONS, reduction, "loss_reduction")

    def build(self, input_shape: Any = None) -> None:
        """Make all weights; the shapes are known from the config."""

    def prepare(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Change or complete masked rows while they are loaded, before they are packed; by default nothing changes."""
        return batch

    def call(self, taps: Batch, encoder: Encoder, batch: Batch) -> Tensor:
        """Logits, of any shape that `sums` knows."""
        raise NotImplementedError(type(self).__name__)

    def weight(self, batch: Batch) -> Tensor:
        """What the loss of these rows is divided by once the whole batch is summed: a float32 scalar."""
        raise NotImplementedError(type(self).__name__)

    def sums(self, batch: Batch, logits: Tensor) -> tuple[Tensor, Measures]:
        """The loss, and `{measure: (sum, count)}`: float32 scalars, summed over these rows."""
        raise NotImplementedError(type(self).__name__)


def sums(labels: Tensor, logits: Tensor, weights: Tensor, name: str) -> tuple[Tensor, Measures]:
    """Cross entropy in float32, accuracy and the same loss as a measure: labels int `[...]`, logits `[..., n]`."""
    logits = ops.cast(logits, "float32")
    labels, weights = ops.cast(labels, "int32"), ops.cast(weights, "float32")
    losses = ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)
    best = ops.top_k(logits, 1, sorted=False)[1][..., 0]  # several times as fast as argmax on TensorFlow
    hits = ops.cast(ops.equal(ops.cast(best, "int32"), labels), "float32")
    loss, count = ops.sum(losses * weights), ops.sum(weights)
    return loss, {f"{name}_accuracy": (ops.sum(hits * weights), count), f"{name}_loss": (loss, count)}


class MaskedLM(TiedLogits, Objective):
    """The original token at each masked position (Devlin et al. 2019): logits `[B, P, V]`.

    Only the masked positions reach the product with the token table.
    """

    inputs = ("masked_positions",)
    labels = ("masked_ids", "masked_weights")

    def __init__(self, encoder: EncoderConfig, pair_classes: int, reduction: Any, **kwargs: Any) -> None:
        given = {"encoder": encoder, "pair_classes": pair_classes, "reduction": reduction}
        super().__init__(encoder, **given, **kwargs)

    def call(self, taps: Batch, encoder: Encoder, batch: Batch) -> Tensor:  # type: ignore[override]
        return super().call(gather(taps["sequence"], batch["masked_positions"]), encoder.tokens.embeddings)

    def weight(self, batch: Batch) -> Tensor:
        return self.reduction(ops.cast(batch["masked_weights"], "float32"))

    def sums(self, batch: Batch, logits: Tensor) -> tuple[Tensor, Measures]:
        return sums(batch["masked_ids"], logits, batch["masked_weights"], "masked_lm")


class SentencePair(Objective):
    """Which kind of pair a row is: logits `[B * K, C]`; label 0 of two is IsNext (Devlin et al. 2019).

    Its weights are called `next_sentence`, as in checkpoints of other origin, or `pair` if C is not 2.
    """

    taps = ("pooled",)
    labels = ("pair_labels",)

    def __init__(self, encoder: EncoderConfig, pair_classes: int, reduction: Any, name: str, **kwargs: Any) -> None:
        if not pair_classes:
            raise ConfigError(f"the objective {name} needs a corpus with sentence pairs; this one has none")
        super().__init__(encoder, pair_classes, reduction, name=name if pair_classes == 2 else "pair", **kwargs)

    def build(self, input_shape: Any = None) -> None:
        initializer = keras.initializers.TruncatedNormal(stddev=self.encoder_config.initializer_range)
        shape = (self.encoder_config.hidden_dim, self.pair_classes)
        self.kernel = self.add_weight(name="kernel", shape=shape, initializer=initializer)
        self.bias = self.add_weight(name="bias", shape=(self.pair_classes,), initializer="zeros")

    def call(self, taps: Batch, encoder: Encoder, batch: Batch) -> Tensor:
        return ops.add(ops.matmul(taps["pooled"], self.kernel), self.bias)

    def weight(self, batch: Batch) -> Tensor:
        return ops.sum(ops.cast(ops.convert_to_tensor(batch["pair_labels"]) >= 0, "float32"))

    def sums(self, batch: Batch, logits: Tensor) -> tuple[Tensor, Measures]:
        labels = ops.reshape(batch["pair_labels"], (-1,))
        return sums(ops.maximum(labels, 0), logits, labels >= 0, "next_sentence")


OBJECTIVES: dict[str, type[Objective]] = {"masked_lm": MaskedLM, "next_sentence": SentencePair}


def usual(pair_classes: int) -> dict[str, float]:
    """The objectives of BERT, each with weight 1, for a corpus with so many labels of pairs."""
    return {"masked_lm": 1.0} | ({"next_sentence": 1.0} if pair_classes else {})


def name_of(objective: str | type[Objective]) -> str:
    """The name of an objective; a class that stands in place of a name is called like the class, in lower case."""
    if isinstance(objective, str):
        return objective
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", objective.__name__).lower()


# === Network ===


class PretrainHead(keras.layers.Layer):
    """The objectives of one pretraining: taps of the encoder and a batch -> logits by objective.

    Args:
        objectives: names in `OBJECTIVES`, or classes of that form.
        pair_classes: C, labels of the corpus' sentence pairs; 0 if it has none.
        reduction: what the losses of a row's predictions become; see `REDUCTIONS`.
    """

    config = None
    """Labels are given in fine-tuning, see `head.Head`; a checkpoint of pretraining has none."""

    def __init__(
        self,
        encoder: EncoderConfig,
        objectives: Sequence[str | type[Objective]],
        pair_classes: int,
        reduction: Any = "mean",
        name: str = "head",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.hidden_dim = encoder.hidden_dim
        self.pooler: Pooler | None = None
        self.objectives: dict[str, Objective] = {}
        for objective in objectives:
            kind, key = choose(OBJECTIVES, objective, "objective"), name_of(objective)
            if "pooled" in kind.taps and self.pooler is None:
                self.pooler = Pooler(encoder, name="pooler", dtype=self.dtype_policy)
            self.objectives[key] = kind(encoder, pair_classes, reduction, name=key, dtype=self.dtype_policy)
        taps = {tap for objective in self.objectives.values() for tap in objective.taps}
        self.taps = tuple(sorted(taps - {"pooled"} | {"sequence"}))
        self.build()

    def build(self, input_shape: Any = None) -> None:
        for layer in (self.pooler, *self.objectives.values()):
            if layer is not None:
                layer.build()
        self.built = True

    def prepare(self, batch: dict[str, Any]) -> dict[str, Any]:
        """What the objectives make of masked rows while these are loaded."""
        for objective in self.objectives.values():
            batch = objective.prepare(batch)
        return batch

    def call(self, taps: dict[str, Tensor], encoder: Encoder, batch: Batch) -> dict[str, Tensor]:
        """The logits of each objective whose inputs the batch has."""
        if self.pooler is not None:
            first = taps["sequence"]
            if "cls_positions" in batch:
                first = ops.reshape(gather(first, batch["cls_positions"]), (-1, 1, self.hidden_dim))
            taps = taps | {"pooled": self.pooler(first)}
        return {
            name: objective(taps, encoder=encoder, batch=batch)
            for name, objective in self.objectives.items()
            if all(column in batch for column in objective.inputs)
        }


class PretrainNetwork(keras.Model):
    """An encoder with the heads of pretraining: a batch -> logits by objective.

    Weights have the names that `checkpoints` and `conversion` know, so that it is filled from and saved to the same
    directories as `network.Network`, and fine-tuning starts from it.

    Args:
        encoder: config of the encoder.
        pair_classes: C, labels of sentence pairs: 2 for next sentence and for sentence order, 0 for none.
        dtype: "float32", "mixed_bfloat16" or "mixed_float16".
        objectives: names in `OBJECTIVES` or classes; None takes the `usual` ones.
        reduction: what the losses of a row's predictions become; see `REDUCTIONS`.

    Attributes:
        encoders: all encoders that are trained; `encoder` is the one that fine-tuning starts from.
    """

    def __init__(
        self,
        encoder: EncoderConfig,
        pair_classes: int = 2,
        dtype: Any = None,
        objectives: Sequence[str | type[Objective]] | None = None,
        reduction: Any = "mean",
        **kwargs: Any,
    ) -> None:
        super().__init__(dtype=dtype, **kwargs)
        if pair_classes < 0 or pair_classes == 1:
            raise ConfigError(f"pair_classes must be 0 (no pairs) or at least 2, got {pair_classes}")
        self.settings = (pair_classes, list(usual(pair_classes) if objectives is None else objectives), reduction)
        self.encoder = Encoder(encoder, dtype=self.dtype_policy)
        self.head = PretrainHead(encoder, self.settings[1], pair_classes, reduction, dtype=self.dtype_policy)
        self.built = True

    @property
    def encoders(self) -> tuple[Encoder, ...]:
        """Here one."""
        return (self.encoder,)

    def like(self, dtype: Any) -> "PretrainNetwork":
        """The same network with new weights, for another dtype policy."""
        pair_classes, objectives, reduction = self.settings
        return type(self)(self.encoder.config, pair_classes, dtype, objectives, reduction)

    def call(self, batch: Any, training: bool = False) -> dict[str, Tensor]:
        features = {name: batch[name] for name in FEATURES if name in batch}
        taps = self.encoder(features, taps=self.head.taps, training=training)
        return self.head(taps, encoder=self.encoder, batch=batch)


# === Task ===


class PretrainTask:
    """A network and its objectives, as training runs them.

    The total loss is the sum over objectives of `factors[name] * loss / weight`, both summed over the whole batch.

    Args:
        network: its head holds the objectives.
        factors: weights of the objectives in the total; 1 where none is given.

    Raises:
        ConfigError: a factor for an objective that the network does not have.
    """

    def __init__(self, network: PretrainNetwork, factors: Mapping[str, float] | None = None) -> None:
        self.network = network
        self.objectives = network.head.objectives
        self.factors = dict.fromkeys(self.objectives, 1.0) | dict(factors or {})
        unknown = sorted(set(self.factors) - set(self.objectives))
        if unknown:
            names = ", ".join(self.objectives)
            raise ConfigError(f"no loss is called {', '.join(unknown)}; this network has {names}")

    def weights(self, batch: Batch) -> dict[str, Tensor]:
        """The normaliser of each loss, of these rows, without a forward pass: float32 scalars."""
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
