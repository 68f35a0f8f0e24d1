"""`keras-bert serve`: answer TensorFlow Serving's REST requests from exported models, on this machine."""

import logging
import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

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
    base, file = flags["export_dir"], flags["model_config_file"]
    if not base and not file:
        raise ConfigError("--export_dir must be given, or --model_config_file")
    if file and (base or flags["model_name"]):
        raise ConfigError("--model_config_file takes the place of --export_dir and --model_name; give one of them")
    if flags["model_config_file_poll_wait_seconds"] and not file:
        raise ConfigError("--model_config_file_poll_wait_seconds needs --model_config_file")
    if not 0 <= flags["port"] <= 65535:
        raise ConfigError(f"--port must be from 0 to 65535, got {flags['port']}")
    config = flags.config(ServerConfig)
    one = {flags["model_name"] or Path(base).absolute().name: ModelConfig(base)}
    models = read_model_config(file) if file else one
    if in_sixteen_bits(models):
        os.environ.setdefault(FROZEN, "1")

    from keras_bert.server import serve

    logger = logging.getLogger("keras_bert.server")
    handler, before = logging.StreamHandler(), (logger.level, logger.propagate)
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    logger.propagate = False  # a handler of the root logger would say each line again
    try:
        ended = serve(models, flags["host"], flags["port"], config, partial(read_model_config, file) if file else None)
    finally:  # the process may go on: leave the logging as it was
        logger.removeHandler(handler)
        logger.level, logger.propagate = before
    if not ended:  # a model computes on, and Python would wait for its thread
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    return 0


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
