"""`keras-bert report`: write the report of a finished run anew: `report.html`, and its pictures in `report/`."""

from pathlib import Path

from keras_bert.cli.flags import Flags, note
from keras_bert.errors import CheckpointError, ConfigError
from keras_bert.report import report
from keras_bert.training.states import finished


def define() -> Flags:
    """The flags of the command."""
    flags = Flags("report", "write the report of a finished run anew")
    flags.require("model_dir", "Directory of a `keras-bert finetune` run, or of its folds.")
    flags.add("most_wrong", 20, "Examples that are shown of those whose right answer scored least.")
    flags.add("bins", 15, "Parts of the reliability curve.")
    return flags


def main(argv: list[str]) -> int:
    """Run the command; prints where the report is."""
    flags = define()
    if not flags.parse(argv):
        return 0
    folder = Path(flags["model_dir"])
    for name, least in (("most_wrong", 0), ("bins", 1)):
        if flags[name] < least:
            raise ConfigError(f"--{name} must be at least {least}, got {flags[name]}")
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: does not exist" if not folder.exists() else f"{folder}: is a file")
    final = finished(folder)
    if final and "best_run" in final:
        raise ConfigError(
            f"--model_dir {folder}: is a grid; name one of its runs, such as {folder / final['best_run']}"
        )
    missing = report.write(folder, most_wrong=flags["most_wrong"], bins=flags["bins"])
    print(folder / report.REPORT_FILE)
    if missing:
        note(missing)
    return 0
