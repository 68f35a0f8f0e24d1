"""Choices per weight: ordered `(pattern, value)` lists over weight paths, first match wins.

Learning rates, weight decay, freezing, partial loading and pruning are all told this way:

    NO_DECAY = [(r"(^|/)(bias|gamma|beta)$", 0.0), (r".*", 0.01)]
    decay = match(NO_DECAY, "encoder/block_0/attention/query/kernel")    # 0.01
"""

import re
from collections.abc import Iterable, Sequence
from typing import TypeAlias, TypeVar

from keras_bert.errors import ConfigError

V = TypeVar("V")
Rules: TypeAlias = Sequence[tuple[str, V]]


def match(rules: Rules[V], path: str) -> V:
    """The value of the first rule whose pattern is found in `path` (`re.search`).

    Raises:
        ConfigError: no rule covers `path`. A weight that nothing decides is a mistake, never a default.
    """
    for pattern, value in rules:
        if re.search(pattern, path):
            return value
    raise ConfigError(f"no rule covers the weight {path!r}; the patterns are {[p for p, _ in rules]}")


def assign(rules: Rules[V], paths: Iterable[str]) -> dict[str, V]:
    """`match` for every path: `{path: value}`.

    Raises:
        ConfigError: a path is not covered, or a pattern is found in no path at all (a typo); the catch-all
            pattern `.*` may find none.
    """
    paths = list(paths)
    chosen = {path: match(rules, path) for path in paths}
    for pattern, _ in rules:
        if pattern != ".*" and not any(re.search(pattern, path) for path in paths):
            raise ConfigError(f"the rule {pattern!r} matches none of the {len(paths)} weights")
    return chosen
