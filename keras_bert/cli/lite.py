"""`keras-bert lite`: a run directory in, a LiteRT model for phones and small machines out."""

from pathlib import Path

from keras_bert.checkpoints import open_checkpoint
from keras_bert.cli.flags import Flags, note
from keras_bert.errors import CheckpointError, ConfigError
from keras_bert.lite import MODEL_FILE, PRECISIONS


def define() -> Flags:
    """The flags of the command."""
    flags = Flags("lite", "write a LiteRT (TensorFlow Lite) model, for phones and small machines")
    flags.require("model_dir", "Directory of a `keras-bert finetune` run.")
    flags.require("output_dir", "Directory to write; `keras_bert.lite.LiteModel` reads it.")
    flags.add("precision", "int8", "How weights are kept; int8 is smallest and fastest.", tuple(PRECISIONS))
    return flags


def main(argv: list[str]) -> int:
    """Run the command; prints the directory it wrote."""
    flags = define()
    if not flags.parse(argv):
        return 0
    folder = Path(flags["output_dir"])
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output_dir {folder}: is a file; name a directory")
    checkpoint = open_checkpoint(flags["model_dir"])
    if checkpoint.data is None:
        raise CheckpointError(f"{checkpoint.path}: is a pretrained checkpoint; run `keras-bert finetune` first")

    from keras_bert.bert import Bert
    from keras_bert.lite import write

    bert = Bert.load(checkpoint.path)
    write(folder, bert.text, bert.network, bert.pair, flags["precision"])
    print(folder)
    note(f"{(folder / MODEL_FILE).stat().st_size / 1e6:.1f} MB in {flags['precision']}")
    return 0
