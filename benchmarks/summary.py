"""The figures under "Beside other libraries" in README.md, out of RESULTS.md.

    python benchmarks/summary.py

Question: what do the measurements come to, a line each? Nothing is measured here: every line is of a section of
RESULTS.md and links to it.

Expected: README.md stays as it was, unless something was measured anew.
"""

import re
from dataclasses import dataclass

from report import RESULTS, table

README = RESULTS.parent.parent / "README.md"
BEGIN, END = "<!-- figures: benchmarks/summary.py writes them -->\n", "<!-- figures end -->\n"
SIDES = ("keras_bert", "KerasHub", "Hugging Face (PyTorch)", "ONNX Runtime", "OpenVINO")


@dataclass(frozen=True)
class Line:
    """A line of the table.

    Attributes:
        section: of RESULTS.md, with the figures.
        column: of its tables; none where they have a column for each side.
        sides: what is said of each of `SIDES`, with names of rows (or columns) in braces; ours is one name.
        cells: what these rows have in other cells.
        ratio: is it said how many times ours a figure is?
    """

    title: str
    section: str
    column: str
    sides: tuple[str, ...]
    cells: tuple[str, ...] = ()
    ratio: bool = True


def embedding(title: str, case: str) -> tuple[Line, Line]:
    """Texts to vectors, in both precisions."""
    section, column = "From raw text to an embedding", "ms per call, median"
    full = ("{keras_bert}", "{KerasHub}", "{PyTorch}", "{ONNX Runtime}", "{OpenVINO}")
    half = (
        "{keras_bert bf16 with kept weights}",
        "",
        "compiled {PyTorch bf16 compiled}",
        "int8 {ONNX Runtime int8}",
        "{OpenVINO bf16}",
    )
    return Line(f"{title}, ms", section, column, full, (case,)), Line("in bfloat16", section, column, half, (case,))


def score(title: str, task: str) -> Line:
    """What is learnt, or known without: the first metric of a task."""
    return Line(title, "Tasks", "", ("{keras_bert}", "", "{hf}"), (task,), ratio=False)


def step(title: str, section: str, *cells: str, peers: tuple[str, str] = ("{KerasHub}", "{Hugging Face}")) -> Line:
    """A step of training."""
    return Line(title, section, "seconds per step, median", ("{keras_bert}", *peers), cells)


EPOCH, PER_EPOCH = "An epoch of real tweets", "seconds per epoch, median of parts"
STEP, START = "A training step", ("Start-up", "seconds, median")
OWN_HEAD = ("{KerasHub}", "{Hugging Face}; {Hugging Face, gathered} with a head of one's own")
LINES = (
    *embedding("1 short text to its embedding", "short-1"),
    *embedding("8 short texts", "short-8"),
    *embedding("32 short texts", "short-32"),
    *embedding("32 mixed texts, up to 512 tokens", "mix-32"),
    Line(
        "fine-tuning on 7,613 tweets, s an epoch",
        EPOCH,
        PER_EPOCH,
        ("{keras_bert}", "{KerasHub} at a fixed 160 tokens", "{Hugging Face}"),
    ),
    Line(
        "in bfloat16",
        EPOCH,
        PER_EPOCH,
        ("{keras_bert bf16}", "{KerasHub bf16}", "{Hugging Face bf16}"),
    ),
    Line(
        "and with rows of like length in a batch",
        EPOCH,
        PER_EPOCH,
        ("{keras_bert bf16, by length}", "", "{Hugging Face bf16, by length}"),
    ),
    step("training step, 32 x 128 tokens, s", STEP, "minilm", "128", "float32"),
    step("in bfloat16", STEP, "minilm", "128", "bfloat16"),
    step("32 x 32 tokens in bfloat16, s", STEP, "minilm", "32", "bfloat16"),
    step(
        "pretraining step, BERT-mini, 32 x 128, bfloat16, s", "A pretraining step", "mini", "bfloat16", peers=OWN_HEAD
    ),
    Line(
        "memory of a training step, 32 x 128 tokens, MB",
        STEP,
        "peak MB",
        ("{keras_bert}", "{KerasHub}", "{Hugging Face}"),
        ("minilm", "128", "float32"),
    ),
    Line(
        "process start to one prediction, s",
        *START,
        ("{keras-bert predict, one text}", "{KerasHub, one text}", "{Hugging Face, one text}"),
    ),
    Line("import, s", *START, ("{from keras_bert import Bert}", "{import keras_hub}", "{import torch, transformers}")),
    Line(
        "tokenizing English, MB/s",
        "Tokenization",
        "MB/s, median",
        ("{keras_bert}", "", "{HF tokenizers encode_batch_fast, 2 threads}"),
        ("English",),
        ratio=False,
    ),
    Line(
        "masked words learnt from 3 M tokens, accuracy",
        "Pretraining from raw text",
        "masked accuracy",
        ("{ours}", "{keras_hub}"),
        ratio=False,
    ),
    score("SST-2, accuracy", "SST-2, sentiment"),
    score("MRPC, F1", "MRPC, paraphrases"),
    score("CoNLL-2003, F1 of entities", "CoNLL-2003, entities"),
    score("SQuAD 2.0, F1 of the best spans", "SQuAD 2.0, answers"),
    score("CommonsenseQA, accuracy", "CommonsenseQA, choices"),
)


def figures(results: str, line: Line) -> dict[str, float]:
    """The figures of a line by the other cells of their rows, or by their columns.

    Raises:
        SystemExit: the section is not there.
    """
    found = re.search(rf"^## {re.escape(line.section)}\n(.*?)(?=^## |\Z)", results, re.S | re.M)
    if found is None:
        raise SystemExit(f"RESULTS.md has no section {line.section!r}")
    values: dict[str, float] = {}
    header: list[str] = []
    for text in found.group(1).split("\n"):
        row = [cell.strip() for cell in text.strip("|").split("|")] if text.startswith("|") else []
        if (line.column or SIDES[0]) in row:
            header = row
        elif header and len(row) == len(header) and set(line.cells) <= set(row):
            names, cells = (row, [row[header.index(line.column)]] * len(row)) if line.column else (header, row)
            for name, cell in zip(names, cells, strict=True):
                if number := re.match(r"[\d,.]+", cell):
                    values[name] = float(number.group().replace(",", ""))
    return values


def rounded(value: float, line: Line) -> str:
    """Two digits, or as many as stand before the point; three of what is learnt, a share of 1."""
    if value >= 1:
        return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"
    return f"{value:.2g}" if line.ratio else f"{value:.3f}"


def told(line: Line, results: str) -> list[str]:
    """The cells of a line.

    Raises:
        KeyError: RESULTS.md has no such figure.
    """
    values = figures(results, line)
    ours = values[line.sides[0].strip("{}")]

    def one(name: re.Match[str]) -> str:
        value = values[name.group(1)]
        times, told_apart = value / ours, line.ratio and name.group() != line.sides[0]
        return rounded(value, line) + (f" ({times:.{1 + (times < 2)}f} x)" if told_apart else "")

    anchor = re.sub(r"[^a-z0-9-]", "", line.section.lower().replace(" ", "-"))
    cells = [re.sub(r"\{(.+?)\}", one, side) or "-" for side in line.sides]
    return [f"[{line.title}](benchmarks/RESULTS.md#{anchor})", *cells, *["-"] * (len(SIDES) - len(cells))]


def summary(results: str) -> str:
    """The table, of the text of RESULTS.md."""
    return table(["", *SIDES], [told(line, results) for line in LINES])


def main() -> None:
    before, begin, rest = README.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{README.name} has no place for the figures: {BEGIN.strip()}")
    made = summary(RESULTS.read_text("utf-8"))
    README.write_text(f"{before}{begin}\n{made}\n\n{end}{after}", "utf-8")
    print(made)


if __name__ == "__main__":
    main()
