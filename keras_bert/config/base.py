"""What all configs share: fields that become flags, checks, and the way to JSON and back."""

import dataclasses
import json
from typing import Any, TypeVar

from keras_bert.errors import ConfigError

T = TypeVar("T")


def flag(default: Any, help: str, choices: tuple[str, ...] | None = None) -> Any:
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


def check_choices(config: Any) -> None:
    for f in dataclasses.fields(config):
        choices, value = f.metadata.get("choices"), getattr(config, f.name)
        require(not choices or value in choices, f"{f.name} must be one of {choices}, got {value!r}")


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def to_dict(config: Any) -> dict[str, Any]:
    """A config as a plain dict that JSON can hold."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}


def from_dict(kind: type[T], values: dict[str, Any]) -> T:
    """Build a config from a dict.

    Raises:
        ConfigError: a key is not a field of `kind`, or a value is of another type or out of its range.
    """
    names = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(names))
    require(not unknown, f"{kind.__name__} has no {unknown}; it has {names}")
    for name, value in values.items():
        usual = getattr(kind, name)
        likes = {float: (int, float), tuple: (list, tuple)}.get(type(usual), type(usual))
        right = isinstance(value, likes) and isinstance(value, bool) == isinstance(usual, bool)
        require(right, f"{name} must be like {usual!r}, got {value!r}")
    return kind(**values)


def choose(table: dict[str, T], name: str, what: str) -> T:
    """`table[name]`, or a ConfigError that lists the right names."""
    require(name in table, f"unknown {what} {name!r}; choose one of {', '.join(table)}")
    return table[name]


def dumps(values: Any) -> str:
    """JSON as every file of ours is written: indented, UTF-8, one newline at the end."""
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"
