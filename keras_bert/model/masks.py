"""Attention masks: which positions may attend to which, as functions of one signature.

A rule takes the encoder's features (`config.FEATURES`, completed with defaults) and its config, and returns a bool
tensor broadcastable to `[B, T, S]`: may target position t attend to source position s? The encoder combines it with the
padding mask, so a rule need not handle padding. A new kind of attention is one function and one row in `MASKS`.
"""

from collections.abc import Callable
from typing import Any

from keras import ops

from keras_bert.config import EncoderConfig

Rule = Callable[[dict[str, Any], EncoderConfig], Any]


def bidirectional(features: dict[str, Any], config: EncoderConfig) -> Any:
    """Every position attends to every other (Devlin et al. 2019): True `[1, 1, 1]`."""
    return ops.ones((1, 1, 1), dtype="bool")


def causal(features: dict[str, Any], config: EncoderConfig) -> Any:
    """A position attends to itself and to those before it (Radford et al. 2018): bool `[1, T, S]`."""
    return ops.expand_dims(distances(features) <= 0, 0)


def local(features: dict[str, Any], config: EncoderConfig) -> Any:
    """A position attends to `local_window // 2` positions to each side (Beltagy et al. 2020): bool `[1, T, S]`."""
    if not config.local_window:
        return bidirectional(features, config)
    return ops.expand_dims(ops.abs(distances(features)) <= config.local_window // 2, 0)


def right_to_left(features: dict[str, Any], config: EncoderConfig) -> Any:
    """A position attends to itself and to those after it: bool `[1, T, S]`."""
    return ops.expand_dims(distances(features) >= 0, 0)


def seq2seq(features: dict[str, Any], config: EncoderConfig) -> Any:
    """Segment 0 attends to itself, a later segment to segment 0 and to what precedes (UniLM, Dong et al. 2019).

    Bool `[B, T, S]`. All positions of segment 0 share one place in the order; the others follow one by one.
    """
    order = ops.cumsum(ops.cast(ops.cast(features["segment_ids"], "bool"), "int32"), axis=1)  # [B, T]
    return ops.expand_dims(order, 2) >= ops.expand_dims(order, 1)


def packed(features: dict[str, Any]) -> Any:
    """Positions attend to those with equal `pack_ids`: the texts of a row stay separate. Bool `[B, T, S]`."""
    return ops.equal(ops.expand_dims(features["pack_ids"], 2), ops.expand_dims(features["pack_ids"], 1))


def ordered(features: dict[str, Any]) -> Any:
    """Positions attend to those whose `order` is not above their own; questions are seen by their like alone.

    One rule for permuted (XLNet, Yang et al. 2019), pseudo-masked (UniLMv2, Bao et al. 2020) and other orders of a row.
    A position for which `asks` is true is a question: it attends to what comes before its order, and to questions of
    the same order; nothing else attends to it. Bool `[B, T, S]`.
    """
    order = ops.cast(features["order"], "int32")
    of_target, of_source = ops.expand_dims(order, 2), ops.expand_dims(order, 1)
    if "asks" not in features:
        return of_source <= of_target
    asks = ops.cast(features["asks"], "bool")
    target_asks, source_asks = ops.expand_dims(asks, 2), ops.expand_dims(asks, 1)
    content = ops.where(target_asks, of_source < of_target, of_source <= of_target)
    return ops.where(source_asks, ops.logical_and(target_asks, ops.equal(of_source, of_target)), content)


def distances(features: dict[str, Any]) -> Any:
    """Source index minus target index, int32 `[T, S]`."""
    indices = ops.arange(ops.shape(features["padding_mask"])[1])
    return ops.expand_dims(indices, 0) - ops.expand_dims(indices, 1)


def attention_mask(rule: Rule, features: dict[str, Any], config: EncoderConfig, seen: Any = None) -> Any:
    """`rule` and the padding mask combined, ready for `[B, N, T, S]` scores: bool `[B or 1, 1, T or 1, S]`.

    With P earlier tokens in memory, `seen` bool `[B, T, P]` says which of them each new token attends to; the result is
    then `[B, 1, T, P + T]`.

    If the features have `pack_ids`, `packed` applies too, and with `order`, `ordered`, whatever the rule: both are
    properties of a batch, not of the model, which need not know how it was trained.
    """
    visible = ops.expand_dims(ops.cast(features["padding_mask"], "bool"), 1)  # [B, 1, S]
    if "pack_ids" in features:
        visible = ops.logical_and(visible, packed(features))
    if "order" in features:
        visible = ops.logical_and(visible, ordered(features))
    visible = ops.logical_and(rule(features, config), visible)
    if seen is not None:
        shape = ops.shape(features["token_ids"])
        visible = ops.concatenate([seen, ops.broadcast_to(visible, (*shape, shape[1]))], axis=2)
    return ops.expand_dims(visible, 1)


MASKS: dict[str, Rule] = {
    "bidirectional": bidirectional,
    "causal": causal,
    "right_to_left": right_to_left,
    "local": local,
    "seq2seq": seq2seq,
    "prefix": seq2seq,
}
