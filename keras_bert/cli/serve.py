"""`keras-bert serve`: answer TensorFlow Serving's REST requests from an exported model, on this machine."""

from pathlib import Path

from keras_bert.cli.flags import Flags
from keras_bert.errors import ConfigError


def define() -> Flags:
    """The flags of the command."""
    flags = Flags("serve", "answer REST requests from an exported model, on this machine")
    flags.require("export_dir", "Directory that `keras-bert export` wrote; its largest version is served.")
    flags.add("model_name", "", "Name in the URL; default: the last part of --export_dir.")
    flags.add("port", 8501, "Port; 0 takes a free one.")
    flags.add("host", "127.0.0.1", "Address to listen on; the default answers this machine only.")
    return flags


def main(argv: list[str]) -> int:
    """Run the command until it is interrupted."""
    flags = define()
    if not flags.parse(argv):
        return 0
    if not 0 <= flags["port"] <= 65535:
        raise ConfigError(f"--port must be from 0 to 65535, got {flags['port']}")
    base = Path(flags["export_dir"])

    from keras_bert.server import serve

    serve({flags["model_name"] or base.absolute().name: str(base)}, flags["host"], flags["port"])
    return 0
