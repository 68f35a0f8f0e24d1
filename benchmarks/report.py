"""One section of RESULTS.md for each benchmark; a script replaces its own section and leaves the others."""

import importlib.metadata
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path

RESULTS = Path(__file__).parent / "RESULTS.md"
PACKAGES = ("tensorflow", "keras", "tensorflow-text", "torch", "transformers", "keras-hub", "numpy")
HEAD = "# Measurements\n\nEach section is written by the script named in it; run it to measure again.\n"


def write_section(title: str, body: str, path: Path = RESULTS) -> None:
    """Put `body` under `## title`, in place of what was there."""
    content = path.read_text("utf-8") if path.exists() else HEAD
    section = f"## {title}\n\n{body.strip()}\n"
    pattern = re.compile(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", re.S | re.M)
    if pattern.search(content):
        content = pattern.sub(lambda _: section + "\n", content)
    else:
        content = f"{content.rstrip()}\n\n{section}"
    path.write_text(content.rstrip() + "\n", "utf-8")


def machine() -> str:
    """The processor, its cores, and the versions that were measured."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"^model name\s*: (.+)$", info.read_text(), re.M)
        flags = re.search(r"^flags\s*: (.+)$", info.read_text(), re.M)
        extra = [f for f in ("avx2", "avx512f", "amx_bf16") if flags and f in flags.group(1).split()]
        model = f"{found.group(1) if found else model} ({', '.join(extra)})"
    versions = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return f"Machine: {model}, {os.cpu_count()} cores. Python {platform.python_version()}, {', '.join(versions)}."


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines)


def bars(name: str, panels: Mapping[str, Mapping[str, float]], unit: str) -> str:
    """Draw one panel a case, one bar a peer (ours darker), save it as `name`, and return the line that shows it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(3, len(panels))
    height = 0.6 + 0.22 * max(map(len, panels.values()))
    shape = (-(-len(panels) // columns), columns)
    figure, grid = pyplot.subplots(*shape, figsize=(4.4 * columns, height * shape[0]), squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.axis("off")
    for axes, (title, values) in zip(grid.flat, panels.items(), strict=False):
        colors = ["#1a5fb4" if peer.startswith(("keras_bert", "ours")) else "#b8c4d4" for peer in values]
        drawn = axes.barh(range(len(values)), list(values.values()), color=colors)
        told = [f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in values.values()]
        axes.bar_label(drawn, told, padding=2, fontsize=7)
        axes.set_yticks(range(len(values)), list(values), fontsize=7)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set_title(title, fontsize=8)
        axes.tick_params(axis="x", labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(unit, fontsize=8)
    figure.tight_layout()
    figure.savefig(RESULTS.with_name(name), dpi=90)
    pyplot.close(figure)
    return f"![{unit}]({name})"
