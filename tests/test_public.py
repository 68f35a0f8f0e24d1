"""The public names: all there, imported when first used, and nothing heavy or foreign comes with them."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import keras_bert


def loaded_after(statement: str, *names: str) -> set[str]:
    """Which of the modules `names` a fresh process has loaded after `statement`."""
    code = f"{statement}\nimport sys\nprint(*(name for name in {names!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("name", keras_bert.__all__)
def test_every_public_name_is_there(name):
    value = getattr(keras_bert, name)
    assert value is not None
    assert name in dir(keras_bert)
    if isinstance(value, type):
        assert value.__name__ == name
        assert value.__module__.startswith("keras_bert.")
        assert value.__doc__


def test_the_public_names_are_these():
    assert set(keras_bert.__all__) == {
        *("Bert", "Encoder", "Text", "SIZES", "KerasBertError", "__version__"),
        *("EncoderConfig", "FinetuneConfig", "HeadConfig", "OptimizerConfig", "TextConfig", "TrainConfig"),
    }


def test_type_checkers_see_the_same_names():
    source = Path(keras_bert.__file__).read_text("utf-8")
    seen = re.findall(r"^    from (keras_bert[.\w]+) import (\w+) as (\w+)$", source, re.M)
    assert sorted(name for _, name, alias in seen if name == alias) == sorted({*keras_bert.__all__} - {"__version__"})
    for home, name, _ in seen:
        assert getattr(importlib.import_module(home), name) is getattr(keras_bert, name)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'keras_bert' has no attribute 'Brat'"):
        keras_bert.Brat  # noqa: B018
    with pytest.raises(ImportError, match="Brat"):
        exec("from keras_bert import Brat")


def test_importing_the_package_loads_nothing_heavy():
    heavy = ("tensorflow", "keras", "keras_hub", "tf_keras", "numpy")
    assert loaded_after("import keras_bert; keras_bert.TextConfig()", *heavy) == set()


def test_importing_bert_loads_keras_and_no_other_bert():
    foreign = ("keras_hub", "keras_nlp", "tf_keras", "torch", "transformers", "jax")
    by_keras = loaded_after("import keras", *foreign)  # Keras looks for JAX where it is installed
    assert loaded_after("from keras_bert import Bert", "keras", *foreign) == {"keras"} | by_keras


def test_the_version_is_that_of_the_changelog():
    assert re.fullmatch(r"\d+\.\d+\.\d+([a-z]+\d+)?", keras_bert.__version__)
    changelog = Path(__file__).parent.parent / "CHANGELOG.md"
    if not changelog.exists():
        pytest.skip(reason="there is no CHANGELOG.md yet")
    versions = re.findall(r"^## \[?v?(\d[\w.]*)", changelog.read_text("utf-8"), re.M)
    assert versions[0] == keras_bert.__version__
