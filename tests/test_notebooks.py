"""The notebooks of colab/: short, stored with the outputs of a real run, and running."""

import ast
import csv
import importlib
import importlib.util
import os
import re
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

from keras_bert.cli import bundle
from keras_bert.data.tables import read

ROOT = Path(__file__).parent.parent
LINES = 60
OPTIONAL = {"keras_hub", "torch", "transformers"}
ELSEWHERE = re.compile(r"/(?:home|root|work|tmp|private|Users|opt|usr)/|site-packages|localhost|pypi|[A-Z]:\\")
NOISE = re.compile(r"INFO:|WARNING|Warning|I0000|E0000|oneDNN|cuda|Traceback")
TINY: dict[str, dict[str, Any]] = {
    "1_from_text_to_signature": {"EPOCHS": 1},
    "2_disaster_tweets": {"FOLDS": 2, "EPOCHS": 1, "LENGTH": 32},
    "3_pretrain_your_own": {
        "STEPS": 6,
        "WARMUP": 2,
        "EVALUATE": 3,
        "SIZE": "tiny",
        "VOCABULARY": 500,
        "EPOCHS": 1,
    },
    "4_serve_it": {"LENGTH": 64, "EPOCHS": 1, "REPEATS": 2},
    "5_long_documents": {"PASSAGES": 12, "SENTENCES": 8, "EPOCHS": 1, "NAME_EPOCHS": 1, "LENGTH": 64},
    "6_chinese": {"DOCUMENTS": 40, "STEPS": 4, "WARMUP": 1, "LABELLED": 12, "EPOCHS": 1},
    "7_coming_from_other_libraries": {},
}


def load_build() -> Any:
    spec = importlib.util.spec_from_file_location("build", ROOT / "colab/build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = load_build()
SOURCES = {source.stem: source for source in build.sources()}
STORED = [name for name in SOURCES if (ROOT / f"colab/{name}.ipynb").exists()]
every = pytest.mark.parametrize("name", STORED)


def stored(name: str) -> Any:
    return nbformat.read(ROOT / f"colab/{name}.ipynb", as_version=4)


def code_cells(found: Any) -> list[Any]:
    return [cell for cell in found.cells if cell.cell_type == "code"]


def shown(found: Any) -> str:
    """All text that a reader sees below the cells."""
    outputs = [output for cell in code_cells(found) for output in cell.outputs]
    return "\n".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs)


def assert_ran(found: Any) -> None:
    outputs = [output for cell in code_cells(found) for output in cell.outputs]
    assert all(output.output_type != "error" for output in outputs)
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []
    assert not NOISE.search(shown(found))


def test_each_has_a_line_in_the_readme():
    readme = (ROOT / "colab/README.md").read_text("utf-8")
    assert re.findall(r"^\| \[.*\]\((\w+)\.ipynb\)", readme, re.M) == list(SOURCES)


@every
def test_it_is_what_its_source_says(name: str):
    made, found = build.notebook(SOURCES[name]), stored(name)
    nbformat.validate(found)
    assert [(c.cell_type, c.source) for c in found.cells] == [(c.cell_type, c.source) for c in made.cells]


@every
def test_it_is_short_and_says_what_it_does(name: str):
    found = stored(name)
    lines = [line for cell in code_cells(found) for line in cell.source.splitlines()]
    assert len([line for line in lines if line.strip() and not line.lstrip().startswith("#")]) < LINES
    first = found.cells[0].source
    assert first.startswith("# ")
    for site in ("colab.research.google.com/github", "kaggle.com/kernels/welcome"):
        assert re.search(rf"\({re.escape('https://' + site)}.*/colab/{name}\.ipynb\)", first)


@every
def test_its_outputs_are_those_of_a_run_elsewhere(name: str):
    """Every cell that prints or draws has done so, without noise, errors, or traces of the machine."""
    found = stored(name)
    assert_ran(found)
    for cell in code_cells(found):
        if re.search(r"^ *print\(|plt\.show|^!", cell.source, re.M):
            assert cell.outputs, cell.source
    assert not ELSEWHERE.search(shown(found))
    assert Path(sys.prefix).name == ".venv" or sys.prefix not in shown(found)
    images = [o for cell in code_cells(found) for o in cell.outputs if "image/png" in o.get("data", {})]
    assert len(images) == sum(cell.source.count("plt.show") for cell in code_cells(found))


@every
def test_what_it_imports_is_there(name: str):
    transform = TransformerManager().transform_cell
    for cell in code_cells(stored(name)):
        for node in ast.walk(ast.parse(transform(cell.source))):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                modules = [f"{node.module}.{a.name}" for a in node.names if not hasattr(module, a.name)]
            assert [m for m in modules if m not in OPTIONAL and importlib.util.find_spec(m) is None] == []


@every
def test_its_links_lead_somewhere(name: str):
    text = "\n".join(cell.source for cell in stored(name).cells if cell.cell_type == "markdown")
    for target in re.findall(r"\]\((?!https:)([^)]+)\)", text):
        assert (ROOT / "colab" / target).exists() or Path(target).stem in SOURCES, target


def run(name: str, folder: Path, checkpoint: Path | None = None, python: str = sys.executable) -> Any:
    """A notebook after a run with tiny settings, from a tiny checkpoint or what it makes or finds itself."""
    made = build.notebook(SOURCES[name])
    values = TINY[name] | ({} if checkpoint is None else {"CHECKPOINT": str(checkpoint)})
    build.execute(made, folder, folder, values, python)
    assert_ran(made)
    return made


@pytest.fixture(autouse=True)
def no_data(monkeypatch: pytest.MonkeyPatch):
    """Notebooks make their own, whatever the environment names."""
    for name in re.findall(r'environ\.get\("(\w+)"', "\n".join(path.read_text("utf-8") for path in SOURCES.values())):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.slow
def test_from_text_to_signature_runs(tiny_checkpoint: Path, tmp_path: Path):
    found = run("1_from_text_to_signature", tmp_path, tiny_checkpoint)
    assert "forest" not in shown(found)  # the tiny vocabulary has it in letters
    assert (tmp_path / "models/messages/1/saved_model.pb").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SOURCES if name[0] in "34567"])
def test_the_others_run(name: str, tiny_checkpoint: Path, tmp_path: Path):
    run(name, tmp_path, None if name[0] in "36" else tiny_checkpoint)


def competition(folder: Path) -> None:
    """The competition's files with other texts in them: the messages of the package."""
    folder.mkdir(parents=True)
    rows = read(str(files("keras_bert") / "samples/disaster_messages.csv"))
    texts = list(zip(rows["text"], rows["target"], strict=True))
    columns = ["id", "keyword", "text", "target"]
    for name, given, width in (("train", texts[:200], 4), ("test", texts[200:250], 3)):
        with open(folder / f"{name}.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([columns[:width], *([i, "fire", *row][:width] for i, row in enumerate(given))])


def check_submission(path: Path) -> str:
    submission = path.read_text("utf-8")
    lines = submission.splitlines()
    assert lines[0] == "id,target"
    assert len(lines) == 51
    assert all(re.fullmatch(r"\d+,[01]", line) for line in lines[1:])
    return submission


@pytest.mark.slow
def test_disaster_tweets_run_and_go_on(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The second run, after a lost session, keeps what the first has done."""
    competition(tmp_path / "tweets")
    monkeypatch.setenv("DISASTER_TWEETS", "tweets")
    first = run("2_disaster_tweets", tmp_path, tiny_checkpoint)
    submission = check_submission(tmp_path / "submission.csv")
    (tmp_path / "submission.csv").unlink()
    written = [path.stat().st_mtime_ns for path in tmp_path.glob("folds/*/*")]
    again = run("2_disaster_tweets", tmp_path, tiny_checkpoint)
    assert "fold 1: F1" in shown(again)
    assert shown(again) == shown(first)
    assert [path.stat().st_mtime_ns for path in tmp_path.glob("folds/*/*")] == written
    assert (tmp_path / "submission.csv").read_text("utf-8") == submission


@pytest.mark.slow
def test_disaster_tweets_run_on_kaggle_without_internet(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """In an environment with the versions of Kaggle's image and without this package, from attached inputs alone."""
    python = os.environ.get("KAGGLE_PYTHON")
    if not python:
        pytest.skip(reason="KAGGLE_PYTHON names no Python with colab/kaggle.txt (make kaggle makes one)")
    competition(tmp_path / "input/nlp-getting-started")
    name, place = "all-MiniLM-L6-v2", tmp_path / "input/my-bundle"
    bundle.main([f"--init_checkpoint={tiny_checkpoint}", f"--name={name}", f"--output_dir={place}"])
    work, packages = tmp_path / "working", tmp_path / "packages"
    work.mkdir()
    packages.mkdir()
    for variable, value in {
        "KERAS_BERT_INPUTS": str(tmp_path / "input"),
        "PIP_TARGET": str(packages),
        "PIP_NO_INDEX": "1",
        "PYTHONPATH": str(packages),
        "http_proxy": "http://127.0.0.1:9",  # nobody listens there
        "https_proxy": "http://127.0.0.1:9",
    }.items():
        monkeypatch.setenv(variable, value)
    found = run("2_disaster_tweets", work, python=python)
    assert "a bundle, so all works offline" in shown(found)
    assert (packages / "keras_bert/__init__.py").exists()
    check_submission(work / "submission.csv")
