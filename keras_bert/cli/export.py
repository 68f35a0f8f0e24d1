"""`keras-bert export`: a run directory in, a versioned SavedModel that takes strings out."""

import re
from pathlib import Path

from keras_bert.checkpoints import open_checkpoint
from keras_bert.cli.flags import Flags, note
from keras_bert.errors import CheckpointError, ConfigError


def define() -> Flags:
    """The flags of the command."""
    flags = Flags("export", "write a SavedModel that takes strings, for TensorFlow Serving")
    flags.require("model_dir", "Directory of a `keras-bert finetune` run.")
    flags.require("export_dir", "Directory of the model; versions are its subdirectories.")
    flags.add("version", "", "Version number; default: the one after the largest.")
    return flags


def main(argv: list[str]) -> int:
    """Run the command; prints the directory it wrote."""
    flags = define()
    if not flags.parse(argv):
        return 0
    base = Path(flags["export_dir"])
    version = parse_version(flags["version"]) if flags["version"] else None
    if base.exists() and not base.is_dir():
        raise ConfigError(f"--export_dir {base}: is a file; name a directory")
    checkpoint = open_checkpoint(flags["model_dir"])
    if checkpoint.data is None:
        raise CheckpointError(f"{checkpoint.path}: is a pretrained checkpoint; run `keras-bert finetune` first")

    from keras_bert.bert import Bert

    target = Bert.load(checkpoint.path).export(base, version)
    print(target)
    note(f"serve it here with `keras-bert serve --export_dir={base}`, or with TensorFlow Serving")
    return 0


def parse_version(value: str) -> int:
    """A version as people type it.

    Raises:
        ConfigError: it is not plain digits without leading zeros, or does not fit 64 bits.
    """
    if not re.fullmatch("[1-9][0-9]{0,18}", value) or int(value) >= 2**63:
        raise ConfigError(f"--version must be a whole number from 1 to 2^63 - 1 without leading zeros, got {value!r}")
    return int(value)
