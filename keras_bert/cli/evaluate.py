"""`keras-bert evaluate`: a run and a labelled file in, its metrics out.

`eval_results.txt` holds them as google-research/bert writes them, a line each. For questions also `predictions.json`,
`nbest_predictions.json` and `null_odds.json`, for SQuAD's own script.
"""

import os
import sys
from pathlib import Path

from keras_bert.checkpoints import open_checkpoint
from keras_bert.cli.answering import KINDS, LEAVE_OUT, check, load, suit
from keras_bert.cli.finetune import add_reading, check_labels, reading
from keras_bert.cli.flags import Flags, note
from keras_bert.cli.predict import write_squad
from keras_bert.errors import CheckpointError, ConfigError
from keras_bert.files import write_atomic
from keras_bert.readers import read_labelled

RESULTS_FILE = "eval_results.txt"


def define() -> Flags:
    """The flags of the command."""
    flags = Flags("evaluate", "the metrics of a model on a labelled file", KINDS, LEAVE_OUT)
    flags.require("model_dir", "Directory of a `keras-bert finetune` run.")
    flags.require("eval_file", "Labelled rows, in a file such as those of training.")
    flags.add("output_dir", "", "Where the results go; default: --model_dir.")
    flags.add("eval_batch_size", 64, "Rows per step.")
    add_reading(flags)
    return flags


def main(argv: list[str]) -> int:
    """Run the command; see the module's docstring."""
    flags = define()
    if not flags.parse(argv):
        return 0
    check(flags)
    folder = Path(flags["output_dir"] or flags["model_dir"])
    if flags["eval_batch_size"] < 1:
        raise ConfigError(f"--eval_batch_size must be at least 1, got {flags['eval_batch_size']}")
    checkpoint = open_checkpoint(flags["model_dir"])
    data, head = checkpoint.data, checkpoint.head
    if data is None or head is None:
        raise CheckpointError(f"{checkpoint.path}: is a pretrained checkpoint; run `keras-bert finetune` first")
    if folder.exists() and not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        raise ConfigError(f"--output_dir {folder}: must be a directory that can be written")
    suit(flags, head.task)
    rows = read_labelled(head.task, flags["eval_file"], data, reading(flags))
    check_labels(rows, data, head.task, head.labels, head.version_2_with_negative)

    bert = load(flags, checkpoint.path)
    metrics, found = bert.evaluate(rows, flags["eval_batch_size"], sys.stderr)
    lines = "".join(f"{name} = {value}\n" for name, value in sorted(metrics.items()))
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / RESULTS_FILE, lines)
    if head.task == "span":
        write_squad(folder, rows.columns.get(data.id_column), bert.plain(found), bert)
    print(lines, end="", flush=True)
    note(f"{len(rows)} rows; the results are in {folder / RESULTS_FILE}")
    return 0
