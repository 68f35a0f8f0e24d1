"""`keras-bert corpus`: texts in, rows to pretrain on out.

    keras-bert corpus --input_file='wiki/*.jsonl' --vocab_file=vocab.txt --output_dir=corpus

The same texts and flags give the same files, byte for byte, whatever the number of processes. A build that was
stopped goes on with the same command.
"""

import functools
import shlex
import time
from pathlib import Path
from typing import Any

from keras_bert.cli.flags import Flags
from keras_bert.config import CorpusConfig
from keras_bert.data.tables import find
from keras_bert.errors import ConfigError
from keras_bert.pretrain import beam, corpus

STATIC = ("max_predictions_per_seq", "masked_lm_prob", "do_whole_word_mask")


def define() -> Flags:
    """The flags of the command."""
    flags = Flags("corpus", "turn texts into rows to pretrain on", [CorpusConfig])
    flags.require("input_file", "Texts in UTF-8; a glob or comma list reads several.")
    flags.require("vocab_file", "The vocabulary: a word piece a line.")
    flags.require("output_dir", "Directory for the shards and their manifest.")
    flags.add("overwrite", False, "Replace another corpus in --output_dir.")
    flags.add("num_shards", 0, "Files to write; 0 means one for every 32 MB of text, and more for small texts.")
    flags.add("num_processes", 0, "Processes to work with; 0 means one for each core.")
    flags.add("runner", "local", "Who does the work: processes of this machine, or Apache Beam.", ("local", "beam"))
    flags.add("beam_options", "", "Options for Apache Beam, such as '--runner=FlinkRunner --parallelism=64'.")
    return flags


def main(argv: list[str]) -> int:
    """Run the command; prints what the corpus holds."""
    flags = define()
    if not flags.parse(argv):
        return 0
    config = flags.config(CorpusConfig)
    for name in ("num_shards", "num_processes"):
        if flags[name] < 0:
            raise ConfigError(f"--{name} must be at least 0, got {flags[name]}")
    for name in STATIC:
        if config.format == "dynamic" and flags.given(name):
            raise ConfigError(f"--{name} is for --format=static; dynamic masks are drawn while training")
    if flags["beam_options"] and flags["runner"] != "beam":
        raise ConfigError("--beam_options is for --runner=beam")
    run = functools.partial(beam.run, options=shlex.split(flags["beam_options"])) if flags["runner"] == "beam" else None
    start = time.monotonic()
    manifest = corpus.build(
        config,
        find(flags["input_file"]),
        flags["vocab_file"],
        flags["output_dir"],
        flags["num_shards"],
        flags["num_processes"],
        flags["overwrite"],
        run,
    )
    print(table(manifest, time.monotonic() - start))
    print(Path(flags["output_dir"]))
    return 0


def table(manifest: dict[str, Any], seconds: float) -> str:
    """What a corpus holds, one figure a line."""
    totals = manifest["totals"]
    places = totals["records"] * manifest["config"]["max_seq_length"]
    size = totals["text_bytes"] / 1e6
    figures = {
        "documents": f"{totals['documents']:,}",
        "sentences": f"{totals['sentences']:,}",
        "tokens": f"{totals['tokens']:,}",
        "rows": f"{totals['records']:,}",
        "padding": f"{1 - totals['row_tokens'] / places:.1%}",
        "shards": f"{len(manifest['shards']):,}",
        "text": f"{size:,.1f} MB",
        "seconds": f"{seconds:,.1f}",
        "speed": f"{size / seconds:,.2f} MB/s",
    }
    width = max(map(len, figures.values()))
    return "\n".join(f"{name:10} {value:>{width}}" for name, value in figures.items())
