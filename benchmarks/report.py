"""One section of RESULTS.md for each benchmark; a script replaces its own section and leaves the others."""

import importlib.metadata
import os
import platform
import re
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
