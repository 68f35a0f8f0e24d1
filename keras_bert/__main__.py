"""`keras-bert COMMAND --flags`: finds the command, runs it, and turns errors into one line and an exit code."""

import importlib
import os
import sys

from keras_bert.errors import KerasBertError

COMMANDS = {
    "demo": "the whole way on a small sample: fine-tune, export, serve, ask",
    "finetune": "train a pretrained BERT on a labelled file",
    "predict": "label the rows of a file",
    "export": "write a SavedModel that takes strings, for TensorFlow Serving",
    "serve": "answer REST requests from an exported model, on this machine",
}
USAGE = "\n".join(
    [
        "usage: keras-bert COMMAND [--flags]",
        "",
        *(f"  {name:10} {what}" for name, what in COMMANDS.items()),
        "",
        "`keras-bert COMMAND --help` lists the flags of a command.",
    ]
)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code (0 well, 2 usage, 3 data, 4 diverged, 5 checkpoint)."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] not in COMMANDS:
        asked = bool(argv) and argv[0] in ("help", "-h", "--help")
        if argv and not asked:
            print(f"keras-bert: error: there is no command {argv[0]!r}", file=sys.stderr)
        print(USAGE, file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    name = argv[0]
    try:
        return importlib.import_module(f"keras_bert.cli.{name}").main(argv[1:])
    except KerasBertError as error:
        print(f"keras-bert {name}: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"keras-bert {name}: stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
