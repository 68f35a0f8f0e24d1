"""How a room shows its public names: each is imported when it is first used, so that a room costs nothing to enter."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def exported(room: str, names: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package.

    Args:
        room: its `__name__`.
        names: module -> the public names in it, with spaces between.
    """
    homes = {name: module for module, some in names.items() for name in some.split()}

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{room}.{homes[name]}"), name)

    return find, lambda: sorted(homes)
