"""`keras-bert convert`: a checkpoint of one format in, the same checkpoint in another out, or nothing at all."""

from keras_bert.checkpoints.formats import FORMATS
from keras_bert.cli.flags import Flags, add_opening, kept_keys, note
from keras_bert.config import TASKS
from keras_bert.conversion import EXTENSIONS, Changes, convert
from keras_bert.data.labels import split_labels


def define() -> Flags:
    """The flags of the command."""
    flags = Flags("convert", "write a checkpoint in another format")
    names = tuple(FORMATS)
    flags.require("input_dir", "Directory of the checkpoint, or the name of a published one.")
    flags.require("output_dir", "Directory to write; must be absent or empty.")
    flags.require("to_format", f"Format to write: {', '.join(names)}.")
    flags.add("from_format", "", "Format of --input_dir; default: found out.", ("", *names))
    flags.add("verify", False, "Read back what was written, compare every bit and load it before it takes its name.")
    flags.add(
        "activation",
        "",
        "GELU to record: gelu (exact) or gelu_tanh; default: what the source's format means by its name.",
        ("", "gelu", "gelu_tanh"),
    )
    flags.add("do_lower_case", True, "Is the model uncased? Default: what the source says or its vocabulary shows.")
    flags.add("num_segments", 0, "Grow the segment table to so many rows, copies of its last one; 0 leaves it.")
    flags.add("max_positions", 0, "Grow the position table to so many rows; 0 leaves it.")
    flags.add("extend_positions", "tile", "Where the new rows of --max_positions come from.", tuple(EXTENSIONS))
    flags.add("task", "", "What the head of the source is for, where its files do not say.", ("", *TASKS))
    flags.add("labels", "", "Names of the logits of the source's head in their order, comma separated.")
    flags.add("text_pair_column", "", "Column of the second text, if the head reads pairs and its files do not say so.")
    add_opening(flags)
    return flags


def main(argv: list[str]) -> int:
    """Run the command; prints where each weight came from and went."""
    flags = define()
    if not flags.parse(argv):
        return 0
    changes = Changes(
        activation=flags["activation"] or None,
        do_lower_case=flags["do_lower_case"] if flags.given("do_lower_case") else None,
        num_segments=flags["num_segments"] or None,
        max_positions=flags["max_positions"] or None,
        extend_positions=flags["extend_positions"],
        task=flags["task"],
        labels=split_labels(flags["labels"]),
        text_pair_column=flags["text_pair_column"],
        drop=flags["drop"],
        keep_keys=kept_keys(flags),
    )
    report = convert(
        flags["input_dir"],
        flags["output_dir"],
        flags["to_format"],
        flags["from_format"] or None,
        changes,
        flags["verify"],
    )
    print(report)
    note(f"wrote {flags['output_dir']}")
    return 0
