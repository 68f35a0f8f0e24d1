"""The notebooks of colab/: short, stored with the outputs of a real run, and running."""

import ast
import importlib
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from conftest import shared
from IPython.core.inputtransformer2 import TransformerManager

ROOT = Path(__file__).parent.parent
LINES = 60
OPTIONAL = {"keras_hub", "torch", "transformers"}
ELSEWHERE = re.compile(r"/(?:home|root|work|tmp|private|Users|opt|usr)/|site-packages|localhost|pypi|[A-Z]:\\")
NOISE = re.compile(r"INFO:|WARNING|Warning|I0000|E0000|oneDNN|cuda|Traceback")
TINY: dict[str, dict[str, Any]] = {
    "1_from_text_to_signature": {"EPOCHS": 1},
    "2_disaster_tweets": {"FOLDS": 2, "EPOCHS": 1, "LENGTH": 32, "DATA": "nlp-getting-started"},
    "3_pretrain_your_own": {
        "STEPS": 6,
        "WARMUP": 2,
        "EVALUATE": 3,
        "SIZE": "tiny",
        "VOCABULARY": 500,
        "EPOCHS": 1,
    },
    "4_serve_it": {"LENGTH": 64, "EPOCHS": 1, "REPEATS": 2},
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
SOURCES = {source.stem: source for source in build.sources() if (ROOT / f"colab/{source.stem}.ipynb").exists()}
every = pytest.mark.parametrize("name", SOURCES)


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
        assert (ROOT / "colab" / target).exists(), target


def run(name: str, folder: Path, checkpoint: Path) -> Any:
    """A notebook after a run with tiny settings, from a tiny checkpoint."""
    made = build.notebook(SOURCES[name])
    values = TINY[name] | ({} if name.startswith("3") else {"CHECKPOINT": str(checkpoint)})
    build.execute(made, folder, folder, values)
    assert_ran(made)
    return made


def test_from_text_to_signature_runs(tiny_checkpoint: Path, tmp_path: Path):
    found = run("1_from_text_to_signature", tmp_path, tiny_checkpoint)
    assert "forest" not in shown(found)  # the tiny vocabulary has it in letters
    assert (tmp_path / "models/messages/1/saved_model.pb").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in SOURCES if n[0] in "347"])
def test_the_others_run(name: str, tiny_checkpoint: Path, tmp_path: Path):
    run(name, tmp_path, tiny_checkpoint)


@pytest.mark.slow
def test_disaster_tweets_run_and_go_on(tiny_checkpoint: Path, tmp_path: Path):
    """The second run, after a lost session, keeps what the first has done."""
    (tmp_path / "nlp-getting-started").mkdir()
    for name in ("train.csv", "test.csv"):
        lines = shared(f"data/disaster_tweets/{name}").read_text("utf-8").splitlines(keepends=True)
        (tmp_path / "nlp-getting-started" / name).write_text("".join(lines[:250]), "utf-8")
    first = run("2_disaster_tweets", tmp_path, tiny_checkpoint)
    assert "fold 1: F1" in shown(first)
    submission = (tmp_path / "submission.csv").read_text("utf-8")
    lines = submission.splitlines()
    assert lines[0] == "id,target"
    assert all(re.fullmatch(r"\d+,[01]", line) for line in lines[1:])
    (tmp_path / "submission.csv").unlink()
    again = run("2_disaster_tweets", tmp_path, tiny_checkpoint)
    assert "fold 1: F1" not in shown(again)
    assert (tmp_path / "submission.csv").read_text("utf-8") == submission
