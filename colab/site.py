"""Makes the documentation site: README, the notebooks' texts, the reference from the docstrings, the measurements.

    python colab/site.py [FOLDER]     # build/site unless said otherwise; a warning is an error

The pages are the files of the repository as they are; only the reference is made here, a page a module, in the order of
the architecture: ground, spine, services, wings. Needs the extra `docs`.
"""

import ast
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = {
    "README.md": "index.md",
    "BUILD.md": "BUILD.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "export/README.md": "export/README.md",
    "benchmarks/RESULTS.md": "benchmarks/RESULTS.md",
    "colab/README.md": "colab/README.md",
}
BESIDE = ("LICENSE", "export", "benchmarks/*.png", "benchmarks/*.py", "colab/*.ipynb", "colab/source/*.md")
"""What pages link to."""
SETTINGS = """\
site_name: keras_bert
site_description: BERT from raw text to a served answer, in one TensorFlow and Keras 3 package.
docs_dir: {docs}
site_dir: {site}
theme:
  name: material
  features: [navigation.sections, navigation.top, content.code.copy]
plugins:
  - search
  - mkdocstrings:
      handlers:
        python:
          paths: [{root}]
          options:
            docstring_style: google
            show_root_heading: true
            show_source: true
            members_order: source
            separate_signature: true
            filters: ["!^_"]
            docstring_options: {{warn_unknown_params: false, warn_missing_types: false}}
markdown_extensions: [tables, admonition, pymdownx.superfences, pymdownx.highlight]
nav:
{nav}
"""


def modules() -> list[str]:
    """Every module with something public, as `keras_bert.text`."""
    found = []
    for path in sorted((ROOT / "keras_bert").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        public = [n for n in ast.parse(path.read_text("utf-8")).body if not getattr(n, "name", "_").startswith("_")]
        if public and parts[1] != "cli":
            found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


def write(docs: Path) -> str:
    """All pages; returns the navigation."""
    for source, target in PAGES.items():
        (docs / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / source, docs / target)
    for pattern in BESIDE:
        for path in ROOT.glob(pattern):
            target = docs / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                shutil.copytree(path, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(path, target)
    (docs / "reference").mkdir()
    names = modules()
    for name in names:
        (docs / "reference" / f"{name}.md").write_text(f"# {name}\n\n::: {name}\n", "utf-8")
    notebooks = sorted((docs / "colab" / "source").glob("*.md"))
    lines = ["  - Start: index.md", "  - Notebooks:", "      - Overview: colab/README.md"]
    for path in notebooks:
        title = path.read_text("utf-8").partition("\n")[0].removeprefix("# ")
        lines.append(f'      - "{title}": colab/source/{path.name}')
    lines += ["  - Serving: export/README.md", "  - Measurements: benchmarks/RESULTS.md", "  - Design: BUILD.md"]
    lines += ["  - Changes: CHANGELOG.md", "  - Reference:"]
    lines += [f"      - {name.removeprefix('keras_bert.')}: reference/{name}.md" for name in names]
    return "\n".join(lines)


def main() -> int:
    site = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build" / "site").absolute()
    with tempfile.TemporaryDirectory() as name:
        docs = Path(name) / "docs"
        docs.mkdir()
        nav = write(docs)
        settings = Path(name) / "mkdocs.yml"
        settings.write_text(SETTINGS.format(docs=docs, site=site, root=ROOT, nav=nav), "utf-8")
        code = subprocess.run(
            [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--config-file", str(settings)],
            env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        ).returncode
    if code == 0:
        print(f"{site / 'index.html'}: open it in a browser")
    return code


if __name__ == "__main__":
    sys.exit(main())
