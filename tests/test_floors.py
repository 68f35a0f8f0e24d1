"""The rooms of the package and their floors, as BUILD.md draws them: a room imports from lower floors only."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import keras_bert

PACKAGE = "keras_bert"
BUILD = Path(__file__).parents[1] / "BUILD.md"
ROW = re.compile(r"\| (\d) \| (`[^|]+`) \| [^|]+ \| (yes|no) \|")
OUTSIDE = {"export", "colab", "benchmarks", "tests"}
WITHOUT_TENSORFLOW = {"text/normalization", "text/vocabulary", "text/wordpiece", "text/learning", "portable/onnx"}
"""Files that do without, in rooms that do not."""
MAY_INSIDE_FUNCTIONS = {"model/kernels", "data/batches"}


def drawn(text: str) -> tuple[dict[str, int], set[str]]:
    """The floor of each room that BUILD.md draws, and the rooms that never import TensorFlow.

    A room, or a module beside the rooms, is one unit. The units of the lowest floor stand in order: each may import
    those left of it.
    """
    floors: dict[str, int] = {}
    without: set[str] = set()
    for number, names, tensorflow in ROW.findall(text):
        units = re.findall(r"`(\w+)`", names)
        for place, unit in enumerate(units):
            floors[unit] = int(number) * 100 + (place if number == "1" else 0)
        without |= set(units) if tensorflow == "no" else set()
    return floors, without


FLOORS, NEVER = drawn(BUILD.read_text("utf-8"))


def imports(path: Path, package: list[str]) -> Iterator[tuple[int, bool, list[str]]]:
    """`(line, inside a function, dotted name)` of everything a file imports; `package` is its folder."""

    def walk(node: ast.AST, inside: bool) -> Iterator[tuple[int, bool, list[str]]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((child.lineno, inside, alias.name.split(".")) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = package[: len(package) + 1 - child.level] if child.level else []
                base = [*base, *(child.module.split(".") if child.module else ())]
                yield from ((child.lineno, inside, [*base, alias.name]) for alias in child.names)
            yield from walk(child, inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    yield from walk(ast.parse(path.read_text("utf-8")), False)


def may_import(unit: str, other: str) -> bool:
    """Does `other` lie below `unit`? A room may import its own modules."""
    return unit == other or FLOORS[other] < FLOORS[unit]


def knows_tensorflow(unit: str, module: str, inside: bool) -> bool:
    """May this module import TensorFlow, here?"""
    if module in MAY_INSIDE_FUNCTIONS:
        return inside
    return unit not in NEVER and module not in WITHOUT_TENSORFLOW


def faults(root: Path) -> list[str]:
    """What is wrong with the imports of the package in `root`, each as `file:line: words`."""
    found = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        unit, place = parts[0], path.relative_to(root).as_posix()
        if parts == ("__init__",):
            continue
        if unit not in FLOORS:
            found.append(f"{place}:1: {unit} has no floor")
            continue
        for line, inside, name in imports(path, [PACKAGE, *parts[:-1]]):
            if name[0] in OUTSIDE:
                found.append(f"{place}:{line}: imports {name[0]}, which is outside of the package")
            elif name[0].startswith("tensorflow"):
                if not knows_tensorflow(unit, "/".join(parts), inside):
                    found.append(f"{place}:{line}: {unit} imports {name[0]}")
            elif name[0] == PACKAGE and len(name) > 1 and name[1] != "__version__":
                if name[1] not in FLOORS:
                    found.append(f"{place}:{line}: {name[1]} has no floor")
                elif not may_import(unit, name[1]):
                    found.append(f"{place}:{line}: {unit} imports {name[1]}, which is not below it")
    return found


def test_the_package_keeps_its_floors():
    assert faults(Path(keras_bert.__file__).parent) == []


def test_the_drawing_has_every_room_and_no_other():
    root = Path(keras_bert.__file__).parent
    rooms = {path.parent.name for path in root.glob("*/*.py")} | {path.stem for path in root.glob("*.py")}
    assert rooms - {"__init__"} - {root.name} == set(FLOORS)
    assert len({floor // 100 for floor in FLOORS.values()}) == 9


def test_every_room_says_what_is_in_it():
    root = Path(keras_bert.__file__).parent
    for room in {path.parent for path in root.rglob("*.py")} - {root}:
        assert ast.get_docstring(ast.parse((room / "__init__.py").read_text("utf-8"))), room


def test_no_modules_import_each_other_in_a_circle():
    """Imports at the top of modules; those inside functions come later and close no circle."""
    root = Path(keras_bert.__file__).parent
    arrows: dict[str, set[str]] = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root.parent).with_suffix("").parts
        names = [name for _, inside, name in imports(path, list(parts[:-1])) if not inside and name[0] == PACKAGE]
        arrows[".".join(parts)] = {".".join(name[:n]) for name in names for n in (len(name), len(name) - 1)}
    arrows = {module: targets & arrows.keys() for module, targets in arrows.items()}
    while free := [module for module, targets in arrows.items() if not targets]:
        arrows = {module: targets - set(free) for module, targets in arrows.items() if module not in free}
    assert arrows == {}


def test_the_package_is_really_walked():
    tokenizer = Path(keras_bert.__file__).parent / "text" / "tokenizer.py"
    found = {".".join(name): inside for _, inside, name in imports(tokenizer, [PACKAGE, "text"])}
    assert found["keras_bert.text.double_array"] is False
    assert found["tensorflow_text"] is True


@pytest.mark.parametrize(
    ("file", "source", "fault"),
    [
        ("tasks/head.py", "from keras_bert.serving import Served", "tasks/head.py:1: tasks imports serving, which is"),
        ("tasks/head.py", "\nimport keras_bert.bert", "tasks/head.py:2: tasks imports bert, which is not below it"),
        ("tasks/head.py", "from keras_bert import errors, training", "tasks/head.py:1: tasks imports training"),
        ("tasks/head.py", "from .. import training", "tasks/head.py:1: tasks imports training"),
        ("model/masks.py", "from ..text import Text", "model/masks.py:1: model imports text"),
        ("tasks/head.py", "def f():\n    from keras_bert import cli", "tasks/head.py:2: tasks imports cli"),
        (
            "tasks/head.py",
            "class A:\n    if True:\n        import tensorflow as tf",
            "tasks/head.py:3: tasks imports t",
        ),
        ("tasks/head.py", "def f():\n    import tensorflow_text", "tasks/head.py:2: tasks imports tensorflow_text"),
        ("model/kernels.py", "from tensorflow import nn", "model/kernels.py:1: model imports tensorflow"),
        ("model/masks.py", "def f():\n    import tensorflow", "model/masks.py:2: model imports tensorflow"),
        ("text/wordpiece.py", "import tensorflow", "text/wordpiece.py:1: text imports tensorflow"),
        ("rules.py", "from keras_bert.config import choose", "rules.py:1: rules imports config"),
        ("config/base.py", "from keras_bert.model import masks", "config/base.py:1: config imports model"),
        ("errors.py", "from keras_bert.config import dumps", "errors.py:1: errors imports config"),
        ("rules.py", "from keras_bert.text import SPECIAL", "rules.py:1: rules imports text"),
        ("training/loop.py", "from keras_bert.serving import x", "training/loop.py:1: training imports serving"),
        ("server/rest.py", "from keras_bert.cli import flags", "server/rest.py:1: server imports cli"),
        ("server/rest.py", "from ..bert import Bert", "server/rest.py:1: server imports bert"),
        ("bert.py", "from keras_bert.server import serve", "bert.py:1: bert imports server"),
        ("cli/export.py", "import export.client", "cli/export.py:1: imports export, which is outside"),
        ("cli/demo.py", "from benchmarks import epoch", "cli/demo.py:1: imports benchmarks, which is outside"),
        ("bert.py", "from tests.conftest import WORDS", "bert.py:1: imports tests, which is outside"),
        ("bert.py", "from keras_bert.__main__ import main", "bert.py:1: bert imports __main__, which is not below"),
        ("bert.py", "from keras_bert import Text", "bert.py:1: Text has no floor"),
        ("novel.py", "", "novel.py:1: novel has no floor"),
        ("cli/pretrain.py", "from keras_bert.novel import loss", "cli/pretrain.py:1: novel has no floor"),
    ],
)
def test_a_planted_fault_is_found(tmp_path, file, source, fault):
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(source, "utf-8")
    (found,) = faults(tmp_path)
    assert found.startswith(fault)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("__init__.py", "from keras_bert.bert import Bert\nimport tensorflow"),
        ("config/base.py", "from keras_bert.errors import ConfigError"),
        ("rules.py", "from keras_bert.files import replacing\nfrom keras_bert.errors import ConfigError"),
        ("model/kernels.py", "def f():\n    import tensorflow as tf"),
        ("text/text.py", "import tensorflow as tf\nfrom keras_bert import config"),
        ("serving/export.py", "def f():\n    from keras_bert import __version__"),
        ("server/rest.py", "from keras_bert.server import json_tensor\nfrom . import json_tensor"),
        ("cli/demo.py", "from keras_bert.cli import export\nfrom .flags import Flags\nfrom ..bert import Bert"),
        ("__main__.py", "import keras_bert\nimport keras_bert.errors"),
    ],
)
def test_what_is_allowed_is_no_fault(tmp_path, file, source):
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(source, "utf-8")
    assert faults(tmp_path) == []
