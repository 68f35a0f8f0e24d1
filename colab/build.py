"""Makes the notebooks of this folder from `source/*.md`, and runs them so that they are stored with their outputs.

    python colab/build.py               # those whose code has changed; the others get their new text
    python colab/build.py 1_from 4_     # those whose names begin so

In a source, a block ```python is a cell; `# parameters` as its first line marks the cell that tests put other values
after. Everything else is text. Notebooks run in an empty folder, with all-MiniLM-L6-v2 at hand under its name.

A fork changes `REPOSITORY` below and runs this once: the outputs stay, the badges lead to the fork.
"""

import os
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

COLAB = Path(__file__).parent
REPOSITORY = "OWNER/keras_bert"  # where the badges lead
BADGES = """[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]\
(https://colab.research.google.com/github/{repository}/blob/main/colab/{name}.ipynb)
[![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)]\
(https://kaggle.com/kernels/welcome?src=https://github.com/{repository}/blob/main/colab/{name}.ipynb)"""
PARAMETERS = "# parameters\n"
QUIET = "ignore::Warning:tqdm.auto"  # it misses widgets that no notebook here has
BLOCK = re.compile(r"^```python\n(.*?)\n```$", re.M | re.S)


def sources() -> list[Path]:
    """The sources in reading order."""
    return sorted((COLAB / "source").glob("*.md"))


def notebook(source: Path) -> Any:
    """A source as a notebook without outputs; badges stand below its title."""
    title, _, rest = source.read_text("utf-8").partition("\n")
    badges = BADGES.format(repository=REPOSITORY, name=source.stem)
    parts = BLOCK.split(f"{title}\n\n{badges}\n{rest}")
    makers = nbformat.v4.new_markdown_cell, nbformat.v4.new_code_cell
    cells = [makers[i % 2](part.strip(), id=f"cell-{i}") for i, part in enumerate(parts) if part.strip()]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}, "language_info": {"name": "python"}}
    return nbformat.v4.new_notebook(cells=cells, metadata=kernel)


def kernel_of(python: str) -> type[AsyncKernelManager]:
    """Kernels of this Python, whatever kernel specs the machine has."""

    class Kernel(AsyncKernelManager):
        @property
        def kernel_spec(self) -> KernelSpec:
            command = [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            return KernelSpec(argv=command, display_name="Python 3", language="python")

    return Kernel


def execute(
    made: Any, folder: Path, home: Path, values: Mapping[str, Any] | None = None, python: str = sys.executable
) -> None:
    """Run a notebook in `folder`; its cells get their outputs.

    Args:
        home: a directory of checkpoints by name, see `keras_bert.hub`.
        values: parameters to take instead of the notebook's own.
        python: what runs the cells; it needs ipykernel.

    Raises:
        CellExecutionError: a cell has failed.
    """
    path = f"{Path(python).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = os.environ | {"PATH": path, "KERAS_BERT_HOME": str(home), "PYTHONWARNINGS": QUIET}
    running = nbformat.from_dict(made)
    if values:
        place = next(i for i, cell in enumerate(running.cells) if cell.source.startswith(PARAMETERS))
        lines = [f"{name} = {value!r}" for name, value in values.items()]
        running.cells.insert(place + 1, nbformat.v4.new_code_cell("\n".join(lines), id="values"))
    where = {"metadata": {"path": str(folder)}}
    client = NotebookClient(running, timeout=7200, kernel_manager_class=kernel_of(python), resources=where)
    client.execute(env=environment)
    results = {cell.id: cell for cell in running.cells if cell.cell_type == "code"}
    for number, cell in enumerate((cell for cell in made.cells if cell.cell_type == "code"), 1):
        cell.outputs = [clean(output) for output in joined(results[cell.id].outputs)]
        cell.execution_count = number


def joined(outputs: list[Any]) -> list[Any]:
    """Outputs with neighbouring pieces of one stream put together."""
    found: list[Any] = []
    for output in outputs:
        if found and output.output_type == "stream" == found[-1].output_type and output.name == found[-1].name:
            found[-1].text += output.text
        else:
            found.append(output)
    return found


def clean(output: Any) -> Any:
    """An output as a terminal would leave it: progress bars at their end, no colours, no memory addresses."""
    if output.output_type == "stream":
        lines = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", output.text).replace("\r\n", "\n").split("\n")
        output.text = "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines)
    elif output.output_type == "execute_result":
        output.execution_count = None
    for kind in [kind for kind in output.get("data", {}) if kind not in ("text/plain", "image/png")]:
        del output.data[kind]
    return output


def home(folder: Path) -> Path:
    """A directory of checkpoints by name, with the demo's in it: a bundle is one."""
    from keras_bert.cli import bundle
    from keras_bert.cli.demo import pretrained

    bundle.main([f"--init_checkpoint={pretrained()}", "--name=all-MiniLM-L6-v2", f"--output_dir={folder / 'home'}"])
    return folder / "home"


def keep_outputs(made: Any, path: Path) -> bool:
    """Take the outputs of the stored notebook, if its code is the same; returns whether it is."""
    if not path.exists():
        return False
    cells, before = ([c for c in n.cells if c.cell_type == "code"] for n in (made, nbformat.read(path, as_version=4)))
    same = [c.source for c in cells] == [c.source for c in before]
    for cell, old in zip(cells, before, strict=False):
        cell.outputs, cell.execution_count = old.outputs, old.execution_count
    return same


def main(beginnings: list[str]) -> None:
    for source in sources():
        made, path = notebook(source), COLAB / f"{source.stem}.ipynb"
        if source.stem.startswith(tuple(beginnings)) or not keep_outputs(made, path):
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name) / "work"
                folder.mkdir()
                execute(made, folder, home(Path(name)))
        nbformat.validate(made)
        nbformat.write(made, path)
        print(source.stem, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
