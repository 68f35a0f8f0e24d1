"""Who may look at whom: functions of the features, all of one signature.

A rule gets the encoder's features (`config.FEATURES`, completed with defaults) and returns a bool tensor
broadcastable to `[B, T, S]`: may target position t look at source position s? The encoder and-s it with the
padding mask, so a rule need not think of padding. A new kind of attention is one function and one row here.
"""

from collections.abc import Callable
from typing import Any

from keras import ops

Rule = Callable[[dict[str, Any]], Any]


def bidirectional(features: dict[str, Any]) -> Any:
    """Every position may look at every other (Devlin et al. 2019): True `[1, 1, 1]`."""
    return ops.ones((1, 1, 1), dtype="bool")


def causal(features: dict[str, Any]) -> Any:
    """A position looks at itself and at what is before it (Radford et al. 2018): bool `[1, T, S]`."""
    places = ops.arange(ops.shape(features["padding_mask"])[1])
    return ops.expand_dims(ops.expand_dims(places, 1) >= ops.expand_dims(places, 0), 0)


def seq2seq(features: dict[str, Any]) -> Any:
    """Segment 0 looks at itself, the segments after it at segment 0 and at what is before (UniLM, Dong et al. 2019).

    Bool `[B, T, S]`. A position of segment 0 is as early as all others of it, those after it come one by one.
    """
    order = ops.cumsum(ops.cast(ops.cast(features["segment_ids"], "bool"), "int32"), axis=1)  # [B, T]
    return ops.expand_dims(order, 2) >= ops.expand_dims(order, 1)


def packed(features: dict[str, Any]) -> Any:
    """Positions with equal `pack_ids` look at one another: several texts in a row, each by itself; bool `[B, T, S]`."""
    return ops.equal(ops.expand_dims(features["pack_ids"], 2), ops.expand_dims(features["pack_ids"], 1))


def attention_mask(rule: Rule, features: dict[str, Any], seen: Any = None) -> Any:
    """`rule` and the padding mask together, ready for `[B, N, T, S]` scores: bool `[B or 1, 1, T or 1, S]`.

    Where there are P tokens before those of the features, `seen` says who looks at which of them, bool `[B, T, P]`, and
    the result is `[B, 1, T, P + T]`.

    Where the features have `pack_ids`, `packed` holds as well, whatever the rule: packing is a property of a batch
    and not of the model, so that a model does not have to know how it was trained.
    """
    visible = ops.expand_dims(ops.cast(features["padding_mask"], "bool"), 1)  # [B, 1, S]
    if "pack_ids" in features:
        visible = ops.logical_and(visible, packed(features))
    visible = ops.logical_and(rule(features), visible)
    if seen is not None:
        shape = ops.shape(features["token_ids"])
        visible = ops.concatenate([seen, ops.broadcast_to(visible, (*shape, shape[1]))], axis=2)
    return ops.expand_dims(visible, 1)


MASKS: dict[str, Rule] = {"bidirectional": bidirectional, "causal": causal, "seq2seq": seq2seq}
