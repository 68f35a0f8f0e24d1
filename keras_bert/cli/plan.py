"""`keras-bert plan`: which batches fit into a memory, by length, precision and recomputation."""

import dataclasses

from keras_bert.checkpoints.checkpoints import open_checkpoint
from keras_bert.cli.flags import Flags, note
from keras_bert.config import SIZES, EncoderConfig, TrainConfig
from keras_bert.errors import ConfigError
from keras_bert.training.memory import Plan, megabytes

LENGTHS = (32, 64, 128, 256, 512)
SHAPE = ("num_layers", "num_heads", "hidden_dim", "intermediate_dim", "vocab_size")


def define() -> Flags:
    """The flags of the command."""
    flags = Flags("plan", "say which batches fit into a memory, before anything is trained", [EncoderConfig])
    flags.require("memory", "Memory of the machine or of one GPU, such as 16GB.")
    flags.add("size", "base", "Size of the model.", tuple(SIZES))
    flags.add("init_checkpoint", "", "Checkpoint whose size is taken instead of --size.")
    for name in SHAPE:
        flags.add(name, 0, "In place of that of --size or the checkpoint; 0 leaves it.")
    flags.add("train_batch_size", 32, "Rows per step that are wanted.")
    return flags


def main(argv: list[str]) -> int:
    """Run the command; prints a table."""
    flags = define()
    if not flags.parse(argv):
        return 0
    memory, wanted = megabytes(flags["memory"]), flags["train_batch_size"]
    if flags["init_checkpoint"] and flags.given("size"):
        raise ConfigError("--size and --init_checkpoint contradict each other; give one")
    TrainConfig(train_batch_size=wanted)
    encoder = shape(flags)
    ways = [
        TrainConfig(mixed_precision=precision, recompute=again)
        for precision in ("none", "bfloat16")
        for again in (False, True)
    ]
    lengths = [length for length in LENGTHS if length <= encoder.max_positions]
    plan = Plan(encoder, ways[0])
    note(
        f"{plan.parameters / 1e6:.1f} M weights; with --train_batch_size={wanted}: the most rows that fit at once, and "
        "the --grad_accum_steps that make up the rest"
    )
    rows = [["max_seq_length", *(name(way) for way in ways)]]
    rows += [[str(length), *(cell(Plan(encoder, way), memory, length, wanted) for way in ways)] for length in lengths]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(value.rjust(width) for value, width in zip(row, widths, strict=True)).rstrip(), flush=True)
    return 0


def shape(flags: Flags) -> EncoderConfig:
    """The encoder that is meant.

    Raises:
        CheckpointError, ConfigError: there is none of that kind.
    """
    path = flags["init_checkpoint"]
    known = open_checkpoint(path).encoder if path else SIZES[flags["size"]]
    sizes = {name: flags[name] for name in SHAPE if flags[name]}
    return dataclasses.replace(known, **sizes | flags.given_of(EncoderConfig))


def name(way: TrainConfig) -> str:
    """`bfloat16, recompute`."""
    return ("float32" if way.mixed_precision == "none" else way.mixed_precision) + ", recompute" * way.recompute


def cell(plan: Plan, memory: float, length: int, wanted: int) -> str:
    """`32 (x 2)`: rows at once and parts; `-` where not one row fits."""
    most = plan.largest(memory, length)
    if not most:
        return "-"
    parts = -(-wanted // most)
    return f"{most}" + (f" (x {parts})" if parts > 1 else "")
