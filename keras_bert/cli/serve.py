"""`keras-bert serve`: answer TensorFlow Serving's REST requests from exported models, on this machine."""

import logging
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from keras_bert.cli.answering import add_task, asked, check, load, members, opened, suit
from keras_bert.cli.flags import Flags
from keras_bert.config import FROZEN
from keras_bert.errors import CheckpointError, ConfigError
from keras_bert.server.settings import ModelConfig, ServerConfig, read_model_config
from keras_bert.serving.golden import read_manifest
from keras_bert.serving.versions import folder_of, versions


def define() -> Flags:
    """The flags of the command."""
    flags = Flags("serve", "answer REST requests from an exported model, on this machine", [ServerConfig])
    flags.add(
        "export_dir",
        "",
        "Directory that `keras-bert export` wrote; its newest version is served. This or --model_config_file.",
    )
    flags.add(
        "init_checkpoint", "", "Directory or name of any checkpoint with a head, exported for this process alone."
    )
    add_task(flags)
    flags.add("model_name", "", "Name in the URL; default: the last part of --export_dir.")
    flags.add("model_config_file", "", "Several models, versions and labels, in TensorFlow Serving's text form.")
    flags.add("port", 8501, "Port; 0 takes a free one.")
    flags.add("host", "127.0.0.1", "Address to listen on; the default answers this machine only.")
    return flags


def main(argv: list[str]) -> int:
    """Run the command until it is interrupted."""
    flags = define()
    if not flags.parse(argv):
        return 0
    if flags["init_checkpoint"]:
        return ended(serve_checkpoint(flags))
    base, file = flags["export_dir"], flags["model_config_file"]
    if not base and not file:
        raise ConfigError("--export_dir must be given, or --model_config_file or --init_checkpoint")
    if file and (base or flags["model_name"]):
        raise ConfigError("--model_config_file takes the place of --export_dir and --model_name; give one of them")
    if flags["model_config_file_poll_wait_seconds"] and not file:
        raise ConfigError("--model_config_file_poll_wait_seconds needs --model_config_file")
    config = checked(flags)
    one = {flags["model_name"] or Path(base).absolute().name: ModelConfig(base)}
    models = read_model_config(file) if file else one
    if in_sixteen_bits(models):
        os.environ.setdefault(FROZEN, "1")
    return ended(answer(flags, models, config, partial(read_model_config, file) if file else None))


def ended(in_time: bool) -> int:
    """The exit status; ends the process at once where a model computes on, since Python would wait for its thread."""
    if not in_time:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    return 0


def checked(flags: Flags) -> ServerConfig:
    """The settings of the server.

    Raises:
        ConfigError: one is out of its range.
    """
    if not 0 <= flags["port"] <= 65535:
        raise ConfigError(f"--port must be from 0 to 65535, got {flags['port']}")
    return flags.config(ServerConfig)


def serve_checkpoint(flags: Flags) -> bool:
    """Export a checkpoint into a folder of this process and serve it; see `answer`."""
    for name in ("export_dir", "model_config_file"):
        if flags[name]:
            raise ConfigError(f"--init_checkpoint and --{name} contradict each other; give one")
    config = checked(flags)
    check(flags)
    paths = members(flags["init_checkpoint"])
    head, data = asked(flags, opened(flags, paths[0]))
    suit(flags, head.task)
    name = flags["model_name"] or Path(flags["init_checkpoint"]).absolute().name
    with tempfile.TemporaryDirectory() as folder:
        load(flags, paths, data).export(folder)
        return answer(flags, {name: ModelConfig(folder)}, config)


Reread = Callable[[], Mapping[str, ModelConfig]]


def answer(flags: Flags, models: Mapping[str, ModelConfig], config: ServerConfig, reread: Reread | None = None) -> bool:
    """Serve until the process is interrupted; False if a model computes on after the time to drain."""
    from keras_bert.server import serve

    logger = logging.getLogger("keras_bert.server")
    handler, before = logging.StreamHandler(), (logger.level, logger.propagate)
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    logger.propagate = False  # a handler of the root logger would say each line again
    try:
        return serve(models, flags["host"], flags["port"], config, reread)
    finally:  # the process may go on: leave the logging as it was
        logger.removeHandler(handler)
        logger.level, logger.propagate = before


def in_sixteen_bits(models: Mapping[str, ModelConfig]) -> bool:
    """Are all versions to be served ours, and exported in bfloat16?

    There copies of the weights (`config.FROZEN`) make answers faster; with float32 they would only take memory, and the
    graph of a stranger may have products of other things than weights.
    """
    folders = []
    for model in models.values():
        base = Path(model.base_path)
        folders += [folder_of(base, version) for version in model.policy(versions(base))]
    try:
        return bool(folders) and all(read_manifest(folder).get("precision") == "bfloat16" for folder in folders)
    except CheckpointError:
        return False
