"""Flags from dataclasses: a field's name, default, help and choices become one absl flag."""

import ast
import contextlib
import dataclasses
import importlib.util
import io
import sys
import textwrap
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from absl import flags

from keras_bert.config import HeadConfig, from_dict
from keras_bert.errors import ConfigError

T = TypeVar("T")
DEFINE: dict[type, Any] = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
}


@dataclass(frozen=True)
class Field:
    """A field of a config as a flag; `choices` are the values that it takes, None for any."""

    name: str
    default: Any
    help: str
    choices: tuple[str, ...] | None


def fields_of(kind: type) -> list[Field]:
    """The fields of a dataclass that are flags; of one with variants those of all variants.

    The help of a field that only a few variants have begins with their names. A name may stand for fields of several
    variants that differ: then the help of each is shown, and the values of all are taken.
    """
    variants = kind.variants() if hasattr(kind, "variants") else {"": kind}
    owners: dict[str, dict[str, dataclasses.Field[Any]]] = {}
    for variant, one in variants.items():
        for field in dataclasses.fields(one):
            if "help" in field.metadata:
                owners.setdefault(field.name, {})[variant] = field
    return [_merged(name, of, few=len(of) <= len(variants) // 2) for name, of in owners.items()]


def _merged(name: str, owners: dict[str, dataclasses.Field[Any]], few: bool) -> Field:
    first = next(iter(owners.values()))
    helps: dict[str, list[str]] = {}
    names: list[str] = []
    for variant, field in owners.items():
        helps.setdefault(field.metadata["help"], []).append(variant)
        names += [n for n in names_in(field.metadata["choices"], field.default) or () if n not in names]
    said = [
        f"{', '.join(variants)}: {help}" if few else help[:1].upper() + help[1:] for help, variants in helps.items()
    ]
    text = "; ".join([*(one.removesuffix(".") for one in said[:-1]), said[-1]])
    return Field(name, first.default, text, tuple(names) or None)


def names_of(kind: type) -> list[str]:
    """The names of the fields of a dataclass that are flags."""
    variants = kind.variants().values() if hasattr(kind, "variants") else [kind]
    found = (field.name for one in variants for field in dataclasses.fields(one) if "help" in field.metadata)
    return list(dict.fromkeys(found))


def names_in(choices: Sequence[str] | str | None, default: Any) -> Sequence[str] | None:
    """The values that a flag takes; `choices` is what `config.base.flag` got, and "" is one if it is the default."""
    if not isinstance(choices, str):
        return choices
    names = names_of_table(*choices.split(":"))
    return names if default in names else [default, *names]


def names_of_table(module: str, table: str) -> list[str]:
    """The names in a table of a module; its source is read if nobody has imported it, so that help stays quick."""
    if module in sys.modules:
        return list(getattr(sys.modules[module], table))
    spec = importlib.util.find_spec(module)
    assert spec
    assert spec.origin
    for node in ast.parse(Path(spec.origin).read_text("utf-8")).body:
        named: Iterable[ast.expr] = getattr(node, "targets", [getattr(node, "target", None)])
        keys = getattr(getattr(node, "value", None), "keys", None)
        if keys and any(isinstance(name, ast.Name) and name.id == table for name in named):
            return [ast.literal_eval(key) for key in keys]
    return list(getattr(importlib.import_module(module), table))


WIDTH = 120
"""Most characters of a line of help."""


class Flags:
    """The flags of one command.

    Args:
        command: its name, for the help text.
        about: one line that says what it does.
        kinds: dataclasses whose fields with a help become flags.
        leave_out: fields that this command has no use for; they keep their defaults.
    """

    def __init__(self, command: str, about: str, kinds: Sequence[type] = (), leave_out: Sequence[str] = ()) -> None:
        self.command, self.about = command, about
        self.values = flags.FlagValues()
        self.required: list[str] = []
        self.titles: dict[str, str] = {}  # of the flags that come from dataclasses
        for kind in kinds:
            title = (kind.__doc__ or "").partition("\n")[0].rstrip(".")
            for field in fields_of(kind):
                if field.name not in leave_out:
                    self.add(field.name, field.default, field.help, field.choices)
                    self.titles[field.name] = title
        self.add("help", False, "Show this.")

    def add(self, name: str, default: Any, help: str, choices: Sequence[str] | None = None) -> None:
        """Define a flag; its type is that of `default`."""
        if choices:
            flags.DEFINE_enum(name, default, list(choices), help, flag_values=self.values)
        else:
            DEFINE[type(default)](name, default, help, flag_values=self.values)

    def require(self, name: str, help: str) -> None:
        """Define a string flag that must be given."""
        self.add(name, "", f"{help} Required.")
        self.required.append(name)

    def parse(self, argv: Sequence[str]) -> bool:
        """Read the command line; False means that help was asked for and shown.

        Raises:
            ConfigError: an unknown flag, a value of the wrong kind, a missing flag, or a bad flag file.
        """
        warnings = io.StringIO()
        try:
            with contextlib.redirect_stderr(warnings):
                rest = self.values([self.command, *argv])[1:]
        except flags.Error as error:
            raise ConfigError(" ".join(str(error).removeprefix("ERROR:: ").split())) from error
        except (OSError, RecursionError, UnicodeDecodeError) as error:
            raise ConfigError(f"flag file: {error}") from error
        if warnings.getvalue():  # absl says one thing only, and goes on: that a flag file reads itself
            raise ConfigError(" ".join(warnings.getvalue().removeprefix("Warning: ").split()))
        broken = [f"--{name}" for name in self.values if "\n" in str(self[name])]
        if broken:
            raise ConfigError(f"{', '.join(broken)}: a value must be one line")
        if self["help"]:
            print(self.usage())
            return False
        if rest:
            raise ConfigError(f"unexpected {rest[0]!r}; values are given as --name=value")
        missing = [f"--{name}" for name in self.required if not self[name]]
        if missing:
            raise ConfigError(f"{', '.join(missing)} must be given")
        return True

    def __getitem__(self, name: str) -> Any:
        return self.values[name].value

    def given(self, name: str) -> bool:
        """Was the flag, if this command has it, set on the command line or in a flag file?"""
        return name in self.values and bool(self.values[name].present)

    def given_of(self, kind: type) -> dict[str, Any]:
        """Of the fields of a dataclass those whose flags were given."""
        return {name: self[name] for name in names_of(kind) if name in self.values and self.given(name)}

    def config(self, kind: type[T], **extra: Any) -> T:
        """Build a dataclass from its flags.

        Raises:
            ConfigError: a value is out of its range.
        """
        config = from_dict(kind, {name: self[name] for name in names_of(kind) if name in self.values} | extra)
        for field in dataclasses.fields(config):  # type: ignore[arg-type]
            names, value = names_in(field.metadata.get("choices"), field.default), getattr(config, field.name)
            if names and value not in names:
                raise ConfigError(f"{field.name} must be one of {tuple(names)}{_whose(config)}, got {value!r}")
        return config

    def resolved(self, leave_out: Sequence[str] = ()) -> str:
        """All flags with their values, in the form that `--flagfile` reads; strings must hold no newline."""
        names = [name for name in sorted(self.values) if name not in ("help", *leave_out)]
        return "".join(f"{_line(name, self[name])}\n" for name in names)

    def at_default(self, leave_out: Container[str]) -> list[str]:
        """The lines of `resolved` of the flags that have their default, but for those (as `--name`) in `leave_out`."""
        names = [name for name in self.values if f"--{name}" not in leave_out]
        return [_line(name, self[name]) for name in names if self[name] == self.values[name].default]

    def usage(self) -> str:
        """The help text: what must be given, the command's own flags, then those of each dataclass, with defaults."""
        needed = "".join(f" --{name}=..." for name in self.required)
        lines = [f"keras-bert {self.command}: {self.about}", "", f"usage: keras-bert {self.command}{needed} [--flags]"]
        own = [name for name in self.values if name not in (*self.required, *self.titles, "help")]
        parts = {"Needed": self.required, "May be given": [*own, "help"]}
        for name, title in self.titles.items():
            parts.setdefault(title, []).append(name)
        for title, names in parts.items():
            lines += ["", f"{title}:"] if names else []
            for name in names:
                lines += self._lines(name)
            if title == "May be given":
                lines += ["  --flagfile=FILE", "      Read flags from a file, one --name=value a line; later ones win."]
        return "\n".join(lines)

    def _lines(self, name: str) -> list[str]:
        flag = self.values[name]
        choices: list[str] = getattr(flag.parser, "enum_values", None) or []
        about = flag.help.partition(">: ")[2] if choices else flag.help  # absl puts the choices before it
        default = str(flag.default).lower() if isinstance(flag.default, bool) else flag.default
        shown = "" if default == "" or name == "help" else f" [{default}]"
        first = f"  --{name}" + (f"={'|'.join(filter(None, choices))}" if choices else "")
        if len(first) > WIDTH:
            first, about = f"  --{name}", f"{about} One of {', '.join(filter(None, choices))}."
        return [first, *textwrap.wrap(about + shown, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)]


def add_opening(flags: Flags) -> None:
    """The flags of how a checkpoint is opened that is not quite as expected."""
    flags.add("drop", "", "Regular expression: tensors of the checkpoint with such names may be left out.")
    flags.add(
        "keep_keys", "", "Unknown keys of the checkpoint's settings that do not change the model, comma separated."
    )


def kept_keys(flags: Flags) -> tuple[str, ...]:
    """What `--keep_keys` names."""
    return tuple(key.strip() for key in flags["keep_keys"].split(",") if key.strip())


def note(line: str) -> None:
    """A line for the person at the terminal, on standard error; work goes on where nobody reads it."""
    with contextlib.suppress(BrokenPipeError):
        print(line, file=sys.stderr, flush=True)


def _whose(config: Any) -> str:
    """The task that a value is wrong for, if it is that of a head."""
    return f" for {config.task}" if isinstance(config, HeadConfig) else ""


def _line(name: str, value: Any) -> str:
    """A flag as `--flagfile` reads it."""
    return f"--{name}={str(value).lower() if isinstance(value, bool) else value}"
