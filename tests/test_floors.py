"""The floors of the package: a module imports from lower floors only, and few of them know TensorFlow."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import keras_bert

PACKAGE = "keras_bert"
FLOORS = {
    **dict.fromkeys(("config", "errors", "files", "kernels", "progress", "rules", "vocabulary"), 1),
    **dict.fromkeys(("double_array", "normalization", "packing", "plan", "protos", "tags"), 1),
    **dict.fromkeys(("formats", "masks", "metrics", "optimizers", "positions", "runs", "strategies", "wordpiece"), 2),
    **dict.fromkeys(
        ("golden", "grouping", "hardware", "op_check", "spans", "tagging", "trial", "versions", "warmup"), 2
    ),
    **dict.fromkeys(("answers", "data", "encoder", "hub", "manifest", "tokenizer", "trainer", "vocab_learning"), 3),
    **dict.fromkeys(("checkpoints", "conversion", "heads", "predictions", "readers", "text"), 4),
    **dict.fromkeys(("lite", "report", "serving", "training"), 5),
    **dict.fromkeys(("bert", "pretrain", "server"), 6),
    **dict.fromkeys(("__main__", "cli"), 7),
    **{"words": 2, "generation": 3},
    **{"readout": 2, "similarity": 3},
    **{"portable": 3, "onnx": 5},
}
"""Each module, and each folder as a whole; the package's own `__init__` imports on first use and is exempt."""

GROUND = {"errors": 0, "config": 1}  # the order inside floor 1; the others there come after these two
OUTSIDE = {"export", "colab", "benchmarks", "tests"}
WITHOUT_TENSORFLOW = {
    *("config", "encoder", "errors", "heads", "kernels", "masks", "metrics", "positions", "progress", "rules"),
    *("answers", "normalization", "predictions", "readers", "report", "spans", "tagging", "tags", "vocabulary"),
    *("onnx", "readout", "similarity", "wordpiece", "words"),
}
MAY_INSIDE_FUNCTIONS = {"kernels"}


def imports(path: Path, package: list[str]) -> Iterator[tuple[int, bool, list[str]]]:
    """`(line, inside a function, dotted name)` of everything a file imports; `package` is its folder."""

    def walk(node: ast.AST, inside: bool) -> Iterator[tuple[int, bool, list[str]]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((child.lineno, inside, alias.name.split(".")) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = package[: len(package) + 1 - child.level] if child.level else []
                base = base + (child.module or "").split(".") * bool(child.module)
                yield from ((child.lineno, inside, [*base, alias.name]) for alias in child.names)
            yield from walk(child, inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    yield from walk(ast.parse(path.read_text("utf-8")), False)


def may_import(unit: str, other: str) -> bool:
    """Does `other` lie below `unit`? A folder may import its own modules."""
    if unit == other or FLOORS[other] < FLOORS[unit]:
        return True
    return FLOORS[unit] == FLOORS[other] == 1 and GROUND.get(other, 2) < GROUND.get(unit, 2)


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
                if unit in WITHOUT_TENSORFLOW and not (inside and unit in MAY_INSIDE_FUNCTIONS):
                    found.append(f"{place}:{line}: {unit} imports {name[0]}")
            elif name[0] == PACKAGE and len(name) > 1 and name[1] != "__version__":
                if name[1] not in FLOORS:
                    found.append(f"{place}:{line}: {name[1]} has no floor")
                elif not may_import(unit, name[1]):
                    found.append(f"{place}:{line}: {unit} imports {name[1]}, which is not below it")
    return found


def test_the_package_keeps_its_floors():
    assert faults(Path(keras_bert.__file__).parent) == []


def test_every_floor_is_inhabited():
    root = Path(keras_bert.__file__).parent
    assert [unit for unit in FLOORS if not ((root / unit).is_dir() or (root / f"{unit}.py").is_file())] == []


def test_the_package_is_really_walked():
    tokenizer = Path(keras_bert.__file__).parent / "tokenizer.py"
    found = {".".join(name): inside for _, inside, name in imports(tokenizer, [PACKAGE])}
    assert found["keras_bert.double_array"] is False
    assert found["tensorflow_text"] is True


@pytest.mark.parametrize(
    ("file", "source", "fault"),
    [
        (
            "heads.py",
            "from keras_bert.serving import serve",
            "heads.py:1: heads imports serving, which is not below it",
        ),
        ("heads.py", "\nimport keras_bert.bert", "heads.py:2: heads imports bert, which is not below it"),
        ("heads.py", "from keras_bert import metrics, training", "heads.py:1: heads imports training"),
        ("heads.py", "from . import training", "heads.py:1: heads imports training"),
        ("heads.py", "from .checkpoints import load", "heads.py:1: heads imports checkpoints"),
        ("heads.py", "def f():\n    from keras_bert import cli", "heads.py:2: heads imports cli"),
        ("heads.py", "class A:\n    if True:\n        import tensorflow as tf", "heads.py:3: heads imports tensorflow"),
        ("heads.py", "def f():\n    import tensorflow_text", "heads.py:2: heads imports tensorflow_text"),
        ("kernels.py", "from tensorflow import nn", "kernels.py:1: kernels imports tensorflow"),
        ("config.py", "from keras_bert.rules import match", "config.py:1: config imports rules"),
        ("errors.py", "from keras_bert.config import dumps", "errors.py:1: errors imports config"),
        ("rules.py", "from keras_bert.vocabulary import SPECIAL", "rules.py:1: rules imports vocabulary"),
        ("masks.py", "from keras_bert.positions import POSITIONS", "masks.py:1: masks imports positions"),
        ("server/rest.py", "from keras_bert.cli import flags", "server/rest.py:1: server imports cli"),
        ("server/rest.py", "from ..bert import Bert", "server/rest.py:1: server imports bert"),
        ("bert.py", "from keras_bert.server import serve", "bert.py:1: bert imports server"),
        ("cli/export.py", "import export.client", "cli/export.py:1: imports export, which is outside"),
        (
            "cli/demo.py",
            "from benchmarks import epoch",
            "cli/demo.py:1: imports benchmarks, which is outside",
        ),
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
        ("config.py", "from keras_bert.errors import ConfigError"),
        ("rules.py", "from keras_bert.config import choose\nfrom keras_bert.errors import ConfigError"),
        ("kernels.py", "def f():\n    import tensorflow as tf"),
        ("text.py", "import tensorflow as tf\nfrom keras_bert import vocabulary"),
        ("serving.py", "def f():\n    from keras_bert import __version__"),
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
