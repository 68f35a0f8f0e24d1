"""`keras-bert lite`: a run directory in, a model for phones and small machines out, in LiteRT's form or as ONNX."""

from collections.abc import Callable
from pathlib import Path

from keras_bert.checkpoints.checkpoints import Checkpoint, as_trained, open_checkpoint
from keras_bert.cli.flags import Flags, note
from keras_bert.errors import ConfigError
from keras_bert.portable import lite, onnx


def _tflite(folder: Path, checkpoint: Checkpoint, precision: str) -> None:
    from keras_bert.bert import Bert

    bert = Bert.load(checkpoint.path)
    lite.write(folder, bert.text, bert.network, bert.pair, precision)


FORMATS: dict[str, tuple[str, Callable[[Path, Checkpoint, str], None]]] = {
    "tflite": (lite.MODEL_FILE, _tflite),
    "onnx": (onnx.MODEL_FILE, onnx.write),
}
"""The file of the model, and what writes its directory."""


def define() -> Flags:
    """The flags of the command."""
    flags = Flags("lite", "write a LiteRT (TensorFlow Lite) or ONNX model, for phones and small machines")
    flags.require("model_dir", "Directory of a `keras-bert finetune` run.")
    flags.require("output_dir", "Directory to write; `keras_bert.portable.LiteModel` reads it.")
    flags.add("format", "tflite", "What is to run it: LiteRT, or ONNX Runtime (extra onnx).", tuple(FORMATS))
    precisions = tuple(lite.PRECISIONS | onnx.PRECISIONS)
    flags.add("precision", "int8", "How weights are kept; int8 is smallest and fastest.", precisions)
    return flags


def main(argv: list[str]) -> int:
    """Run the command; prints the directory it wrote."""
    flags = define()
    if not flags.parse(argv):
        return 0
    folder, (file, write) = Path(flags["output_dir"]), FORMATS[flags["format"]]
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output_dir {folder}: is a file; name a directory")
    checkpoint = as_trained(open_checkpoint(flags["model_dir"]))
    write(folder, checkpoint, flags["precision"])
    print(folder)
    note(f"{(folder / file).stat().st_size / 1e6:.1f} MB in {flags['precision']}")
    return 0
