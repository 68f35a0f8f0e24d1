"""`keras-bert evaluate`: a run and a labelled file in, its metrics out.

`eval_results.txt` holds them as google-research/bert writes them, a line each. For questions also `predictions.json`,
`nbest_predictions.json` and `null_odds.json`, for SQuAD's own script.
"""

import os
import sys
from pathlib import Path

from keras_bert.checkpoints.checkpoints import Checkpoint, open_checkpoint
from keras_bert.cli.answering import KINDS, LEAVE_OUT, add_task, asked, check, load, members, suit
from keras_bert.cli.finetune import add_reading, check_labels, reading
from keras_bert.cli.flags import Flags, note
from keras_bert.cli.predict import write_squad
from keras_bert.config import DataConfig
from keras_bert.data.masked import draw_masks, encode_words
from keras_bert.data.readers import read_labelled
from keras_bert.data.tables import Table
from keras_bert.errors import ConfigError
from keras_bert.files import write_atomic
from keras_bert.tasks.metrics import generation_libraries
from keras_bert.text.vocabulary import MASK
from keras_bert.text.wordpiece import WordPiece

RESULTS_FILE = "eval_results.txt"
SEED = 12345
"""Of masks that are drawn."""


def define() -> Flags:
    """The flags of the command."""
    flags = Flags("evaluate", "the metrics of a model on a labelled file", KINDS, LEAVE_OUT)
    flags.require("model_dir", "Directory of a `keras-bert finetune` run; with --task of a pretrained checkpoint.")
    flags.require(
        "eval_file",
        "Labelled rows, in a file such as those of training; of fill_mask texts with masks and, in the column target, "
        "the words that belong there, or lines of text (.txt), in which masks are drawn.",
    )
    flags.add("output_dir", "", "Where the results go; default: --model_dir.")
    flags.add("eval_batch_size", 64, "Rows per step.")
    add_reading(flags)
    add_task(flags)
    return flags


def main(argv: list[str]) -> int:
    """Run the command; see the module's docstring."""
    flags = define()
    if not flags.parse(argv):
        return 0
    check(flags)
    if flags["task"] and not flags["output_dir"]:
        raise ConfigError("--task asks a pretrained checkpoint, which is left as it is: give --output_dir too")
    folder = Path(flags["output_dir"] or flags["model_dir"])
    if flags["eval_batch_size"] < 1:
        raise ConfigError(f"--eval_batch_size must be at least 1, got {flags['eval_batch_size']}")
    paths = members(flags["model_dir"])
    checkpoint = open_checkpoint(paths[0])
    head, data = asked(flags, checkpoint)
    if folder.exists() and not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        raise ConfigError(f"--output_dir {folder}: must be a directory that can be written")
    suit(flags, head.task)
    rows = read_labelled(head.task, flags["eval_file"], data, reading(flags))
    if head.task == "fill_mask":
        rows = with_masks(flags, checkpoint, rows, data)
    else:
        check_labels(rows, data, head)
    if head.task == "generate":
        generation_libraries()

    bert = load(flags, paths)
    metrics, found = bert.evaluate(rows, flags["eval_batch_size"], sys.stderr)
    lines = "".join(f"{name} = {value}\n" for name, value in sorted(metrics.items()))
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / RESULTS_FILE, lines)
    if head.task == "span":
        write_squad(folder, rows.columns.get(data.id_column), bert.plain(found), bert)
    print(lines, end="", flush=True)
    note(f"{len(rows)} rows; the results are in {folder / RESULTS_FILE}")
    return 0


def with_masks(flags: Flags, checkpoint: Checkpoint, rows: Table, data: DataConfig) -> Table:
    """Texts with masks and the words that belong there, checked; lines of text get masks first.

    Raises:
        DataError: masks and words do not fit, or no text can have a mask.
    """
    text = checkpoint.text
    wordpiece = WordPiece(checkpoint.vocabulary, text.do_lower_case, text.flavour, (MASK,))
    if data.label_column not in rows.columns:
        tokens = (flags["max_seq_length"] or text.max_seq_length) - 2
        drawn = draw_masks(rows, data, wordpiece, tokens, flags["max_masks"], SEED)
        note(f"masks were drawn in {len(drawn)} of {len(rows)} texts; the others have no word of one piece")
        rows = drawn
    encode_words(rows, data, wordpiece)
    return rows
