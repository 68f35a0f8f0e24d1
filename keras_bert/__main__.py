"""`keras-bert COMMAND --flags`: finds the command, runs it, and turns errors into one line and an exit code."""

import importlib
import io
import os
import sys

from keras_bert.errors import KerasBertError, Stopped

COMMANDS = {
    "demo": "the whole way on a small sample: fine-tune, export, serve, ask",
    "pretrain": "train a BERT from a corpus",
    "finetune": "train a pretrained BERT on a labelled file",
    "evaluate": "the metrics of a model on a labelled file",
    "predict": "label the rows of a file",
    "embed": "vectors of texts, or of their tokens, from any checkpoint",
    "plan": "say which batches fit into a memory, before anything is trained",
    "report": "write the report of a finished run anew",
    "export": "write a SavedModel that takes strings, for TensorFlow Serving",
    "verify_export": "ask an exported model, here or on a server, whether it still answers as it did",
    "lite": "write a LiteRT (TensorFlow Lite) or ONNX model, for phones and small machines",
    "versions": "list, label, prune and roll back the versions of an exported model",
    "convert": "write a checkpoint in another format",
    "corpus": "turn texts into rows to pretrain on",
    "vocab": "learn a WordPiece vocabulary from texts",
    "ablate": "leave something out of the recipe, and see what it was for",
    "serve": "answer REST requests from an exported model, on this machine",
    "bundle": "one directory with weights and wheels, for machines without internet",
}
USAGE = "\n".join(
    [
        "usage: keras-bert COMMAND [--flags]",
        "",
        *(f"  {name:13} {what}" for name, what in COMMANDS.items()),
        "",
        "`keras-bert demo` needs no flags and no data. `keras-bert COMMAND --help` lists the flags of a command.",
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
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a label that the terminal cannot show is no error
    code, message = _run(argv[0], argv[1:])
    try:
        if message:
            print(f"keras-bert {argv[0]}: {message}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        for stream in (sys.stdout, sys.stderr):  # Python flushes once more when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return code


def _run(name: str, argv: list[str]) -> tuple[int, str]:
    """The exit code of a command, and what to tell the person."""
    try:
        return importlib.import_module(f"keras_bert.cli.{name}").main(argv), ""
    except Stopped as stopped:
        return stopped.exit_code, str(stopped)
    except KerasBertError as error:
        return error.exit_code, f"error: {error}"
    except BrokenPipeError:  # the reader of our output went away, as in `| head`
        return 141, ""
    except OSError as error:  # a full disk, a missing permission, a name too long
        return 5, f"error: {error}"
    except KeyboardInterrupt:
        return 130, "stopped"
    except Exception as error:
        if not isinstance(error, MemoryError) and type(error).__name__ != "ResourceExhaustedError":
            raise
        return 1, (
            "error: out of memory; lower --train_batch_size, --eval_batch_size or --max_seq_length, raise "
            "--grad_accum_steps, or use --recompute or --mixed_precision=bfloat16; `keras-bert plan` says what fits"
        )


if __name__ == "__main__":
    sys.exit(main())
