"""`keras-bert ablate`: leave something out of the recipe, and see what it was for.

    keras-bert ablate --suite=masking

trains a tiny model once for each of the five ways to mask and prints what each can and cannot do, in a few minutes on a
CPU. Without --input_file the text is an artificial language that so small a model learns in that time.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_bert.cli.flags import Flags, note
from keras_bert.config import TextConfig, dumps
from keras_bert.data.tables import find
from keras_bert.errors import ConfigError, DataError
from keras_bert.files import replacing, write_atomic

SUITES = ("masking",)
FLAGS_OF_TEXT = ("do_lower_case", "max_seq_length")


def define() -> Flags:
    """The flags of the command."""
    flags = Flags("ablate", "leave something out of the recipe, and see what it was for")
    flags.add("suite", "masking", "What is varied.", SUITES)
    flags.add("input_file", "", "Plain text, a sentence a line; a glob or comma list reads several.")
    flags.add("vocab_file", "", "Vocabulary of --input_file.")
    flags.add("do_lower_case", True, "Lower-case the text and strip accents; must fit the vocabulary.")
    flags.add("max_seq_length", 32, "Longest row of --input_file in tokens; longer lines are cut.")
    flags.add("max_rows", 20000, "Lines of --input_file that are read.")
    flags.add("num_train_steps", 1500, "Steps of each arm.")
    flags.add("train_batch_size", 64, "Rows per step.")
    flags.add("learning_rate", 3e-3, "Learning rate.")
    flags.add("seed", 0, "Seed of weights, masks and order.")
    flags.add("output_dir", "", "Where the figures (masking.json) and a picture of them (masking.png) go.")
    return flags


def main(argv: list[str]) -> int:
    """Run the command; prints the table."""
    flags = define()
    if not flags.parse(argv):
        return 0
    for name in ("num_train_steps", "train_batch_size", "max_rows"):
        if flags[name] < 1:
            raise ConfigError(f"--{name} must be at least 1, got {flags[name]}")
    if not 0 < flags["learning_rate"] <= 1:
        raise ConfigError(f"--learning_rate must be above 0 and at most 1, got {flags['learning_rate']}")
    if bool(flags["input_file"]) != bool(flags["vocab_file"]):
        raise ConfigError("--input_file and --vocab_file go together; give both or none")

    from keras_bert.pretrain import ablate

    labels = None
    if flags["input_file"]:
        rows, vocabulary = read(flags)
    else:
        rows, labels, vocabulary = ablate.language(7000)
    note(f"{len(rows):,} rows, {len(vocabulary):,} word pieces, {len(ablate.ARMS)} x {flags['num_train_steps']} steps")
    results = ablate.masking_arms(
        rows,
        vocabulary,
        steps=flags["num_train_steps"],
        labels=labels,
        batch_size=flags["train_batch_size"],
        learning_rate=flags["learning_rate"],
        seed=flags["seed"],
        say=note,
    )
    print(ablate.table(results), flush=True)
    if flags["output_dir"]:
        folder = Path(flags["output_dir"])
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "masking.json", dumps(results))
        draw(folder / "masking.png", results, ablate.MEASURES)
    return 0


def read(flags: Flags) -> tuple[np.ndarray, list[str]]:
    """Rows of the input, and the pieces of the vocabulary that occur in them.

    Raises:
        DataError: a file or the vocabulary is broken, or has no text.
    """
    from keras_bert.text.text import Text
    from keras_bert.text.vocabulary import read_vocabulary

    text = Text(
        read_vocabulary(flags["vocab_file"]),
        TextConfig(do_lower_case=flags["do_lower_case"], max_seq_length=flags["max_seq_length"]),
    )
    lines: list[str] = []
    for path in find(flags["input_file"]):
        try:
            with open(path, encoding="utf-8") as file:
                lines += [line for line in file if line.strip()]
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    if not lines:
        raise DataError(f"{flags['input_file']}: has no text")
    ids = text(lines[: flags["max_rows"]])["token_ids"].numpy()
    always = [text.vocabulary.index(token) for token in ("[CLS]", "[SEP]", "[MASK]") if token in text.vocabulary]
    used = [text.pad_id, *np.setdiff1d(np.union1d(ids, always), [text.pad_id]).tolist()]
    number = np.zeros(len(text.vocabulary), np.int32)
    number[used] = np.arange(len(used))
    return number[ids], [text.vocabulary[i] for i in used]


def draw(path: Path, results: Sequence[dict], measures: dict[str, str]) -> None:
    """A picture of the measures, one chart each; left out where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        note("matplotlib is not installed (pip install matplotlib): no picture")
        return
    figure = Figure(figsize=(3 * len(measures), 3), layout="constrained")
    for axis, (name, what) in zip(figure.subplots(1, len(measures), sharey=True), measures.items(), strict=True):
        axis.barh([result["arm"] for result in results], [result[name] for result in results])
        axis.set_title(textwrap.fill(what, 36), fontsize=8)
        axis.set_xlim(0, 1)
        axis.invert_yaxis()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
