"""What all configs share: fields that become flags, checks, and the way to JSON and back."""

import dataclasses
import importlib
import json
from typing import Any, TypeVar

from keras_bert.errors import ConfigError

T = TypeVar("T")

PLAIN = (bool, int, float, list, tuple, dict, type(None))
"""What JSON holds beside strings; nothing of it can stand in place of a name of an open table."""


def flag(default: Any, help: str, choices: tuple[str, ...] | str | None = None) -> Any:
    """A field of a config that is also a flag of the commands.

    Args:
        choices: the values that are allowed. A string names an open table, such as "keras_bert.text.packing:SHARES":
            the flag takes its names, Python a value for the table as well, and whoever looks a name up checks it.
    """
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


def check_choices(config: Any) -> None:
    """Check the fields whose values are listed; those of open tables are checked where they are looked up."""
    for f in dataclasses.fields(config):
        choices, value = f.metadata.get("choices"), getattr(config, f.name)
        require(not isinstance(choices, tuple) or value in choices, f"{f.name} must be one of {choices}, got {value!r}")


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def to_dict(config: Any) -> dict[str, Any]:
    """A config as a plain dict that JSON can hold."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}


def from_dict(kind: type[T], values: dict[str, Any]) -> T:
    """Build a config from a dict.

    Args:
        kind: a dataclass. One with a `variant` names the class that suits the values, see `tasks.HeadConfig`.

    Raises:
        ConfigError: a key is not a field of `kind`, or a value is of another type or out of its range.
    """
    variant: Any = getattr(kind, "variant", None)
    if variant:
        kind, values = variant(values)
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    require(not unknown, f"{kind.__name__} has no {unknown}; it has {list(fields)}")
    for name, value in values.items():
        usual = getattr(kind, name)
        likes = {float: (int, float), tuple: (list, tuple)}.get(type(usual), type(usual))
        right = isinstance(value, likes) and isinstance(value, bool) == isinstance(usual, bool)
        entry = isinstance(fields[name].metadata.get("choices"), str) and not isinstance(value, PLAIN)
        require(right or entry, f"{name} must be like {usual!r}, got {value!r}")
    return kind(**values)


def resolve(name: Any) -> Any:
    """What a string such as "keras_bert.data.labels:Classes" names; what is no string is returned as it is."""
    if not isinstance(name, str):
        return name
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def choose(table: dict[str, T], name: str | T, what: str) -> T:
    """`table[name]`, or a ConfigError that lists the right names; a value for the table is returned as it is."""
    if not isinstance(name, str):
        return name
    require(name in table, f"unknown {what} {name!r}; choose one of {', '.join(table)}")
    return table[name]


def dumps(values: Any) -> str:
    """JSON as every file of ours is written: indented, UTF-8, one newline at the end.

    Raises:
        ConfigError: a setting is a function or class; only its name in a table can be written.
    """

    def refuse(value: Any) -> Any:
        name = getattr(value, "__name__", repr(value))
        raise ConfigError(f"{name} is no name that can be saved: add it to its table and give its name there instead")

    return json.dumps(values, indent=2, ensure_ascii=False, default=refuse) + "\n"
