"""`keras-bert export`: a run directory in, a versioned SavedModel that takes strings out.

The models of folds become one, which answers with the mean of their scores, as `predict` does.
"""

import json
import re
from pathlib import Path
from typing import Any

from keras_bert.checkpoints.checkpoints import Checkpoint
from keras_bert.cli.answering import KINDS, LEAVE_OUT, add_task, asked, check, load, members, opened, suit
from keras_bert.cli.flags import Flags, names_of_table, note
from keras_bert.cli.model_dir import FINAL_FILE
from keras_bert.errors import CheckpointError, ConfigError
from keras_bert.training.states import finished

ABOUT = ("description", "license", "base_model")


def define() -> Flags:
    """The flags of the command."""
    flags = Flags("export", "write a SavedModel that takes strings, for TensorFlow Serving", KINDS, LEAVE_OUT)
    flags.require("model_dir", "Directory of a `keras-bert finetune` run, or of any checkpoint.")
    flags.require("export_dir", "Directory of the model; versions are its subdirectories.")
    add_task(flags)
    flags.add("version", "", "Version number; default: the one after the largest.")
    flags.add("precision", "float32", "Weights and arithmetic of the graph; answers stay float32.", PRECISIONS)
    flags.add("embedding_types", "float", f"Forms of vectors that are answered, a comma list of {', '.join(TYPES)}.")
    flags.add("description", "", "What the model is for; goes into its card.")
    flags.add("license", "", "Licence of the model, such as apache-2.0; goes into its card.")
    flags.add("base_model", "", "The pretrained model it was made from; goes into its card.")
    return flags


PRECISIONS = ("float32", "bfloat16")
TYPES = names_of_table("keras_bert.serving.embedding_types", "EMBEDDING_TYPES")


def main(argv: list[str]) -> int:
    """Run the command; prints the directory it wrote."""
    flags = define()
    if not flags.parse(argv):
        return 0
    check(flags)
    base = Path(flags["export_dir"])
    version = parse_version(flags["version"]) if flags["version"] else None
    if base.exists() and not base.is_dir():
        raise ConfigError(f"--export_dir {base}: is a file; name a directory")
    paths = members(flags["model_dir"])
    checkpoint = opened(flags, paths[0])
    head, data = asked(flags, checkpoint)
    suit(flags, head.task)
    about = {name: flags[name] for name in ABOUT}
    about |= run_of(checkpoint) if len(paths) == 1 else folds_of(Path(flags["model_dir"]))

    types = [name.strip() for name in flags["embedding_types"].split(",")]
    unknown = [name for name in types if name not in TYPES]
    if unknown:
        raise ConfigError(f"--embedding_types: {unknown[0]!r} is none of {', '.join(TYPES)}")
    bert = load(flags, paths, data)
    target = bert.export(base, version, precision=flags["precision"], about=about, embedding_types=types)
    print(target)
    note(f"{target / 'README.md'} says how to serve it and how to ask it")
    note(f"serve it here with `keras-bert serve --export_dir={base}`, or with TensorFlow Serving")
    return 0


def run_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the run says of its data and its best epoch; a run that was saved from Python says less."""
    path = checkpoint.path / FINAL_FILE
    try:
        final = json.loads(path.read_text("utf-8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    data = {name: final[name] for name in ("train_rows", "eval_rows") if name in final}
    return {"training": data, "metrics": checkpoint.contents.notes}


def folds_of(folder: Path) -> dict[str, Any]:
    """What a directory of folds says of its data, and of all models on the rows that they were not trained on."""
    final = finished(folder) or {}
    data = {"train_rows": final["train_rows"], "folds": len(final["folds"])}
    return {"training": data, "metrics": final["out_of_fold"]}


def parse_version(value: str, flag: str = "version") -> int:
    """A version as people type it.

    Raises:
        ConfigError: it is not plain digits without leading zeros, or does not fit 64 bits.
    """
    if not re.fullmatch("[1-9][0-9]{0,18}", value) or int(value) >= 2**63:
        raise ConfigError(f"--{flag} must be a whole number from 1 to 2^63 - 1 without leading zeros, got {value!r}")
    return int(value)
