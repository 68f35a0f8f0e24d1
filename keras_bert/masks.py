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


def attention_mask(rule: Rule, features: dict[str, Any]) -> Any:
    """`rule` and the padding mask together, ready for `[B, N, T, S]` scores: bool `[B or 1, 1, T or 1, S]`."""
    source = ops.expand_dims(ops.cast(features["padding_mask"], "bool"), 1)  # [B, 1, S]
    return ops.expand_dims(ops.logical_and(rule(features), source), 1)


MASKS: dict[str, Rule] = {"bidirectional": bidirectional}
