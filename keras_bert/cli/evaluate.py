"""`keras-bert evaluate`: a run and a labelled file in, its metrics out.

`eval_results.txt` holds them as google-research/bert writes them, a line each. For questions also `predictions.json`,
`nbest_predictions.json` and `null_odds.json`, for SQuAD's own script.
"""

import functools
import os
import sys
from pathlib import Path

from keras_bert.checkpoints.checkpoints import Checkpoint
from keras_bert.cli.answering import KINDS, LEAVE_OUT, add_task, asked, check, load, members, opened, suit
from keras_bert.cli.finetune import add_reading, reading
from keras_bert.cli.flags import Flags, note
from keras_bert.cli.predict import files_of, write_files
from keras_bert.config import DataConfig, HeadConfig
from keras_bert.data.batches import Examples
from keras_bert.data.source import source_of
from keras_bert.errors import ConfigError
from keras_bert.files import write_atomic
from keras_bert.text.vocabulary import MASK
from keras_bert.text.wordpiece import WordPiece

RESULTS_FILE = "eval_results.txt"


def define() -> Flags:
    """The flags of the command."""
    flags = Flags("evaluate", "the metrics of a model on a labelled file", KINDS, LEAVE_OUT)
    flags.require("model_dir", "Directory of a `keras-bert finetune` run, or of any checkpoint.")
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
    folder = Path(flags["output_dir"] or flags["model_dir"])
    if flags["eval_batch_size"] < 1:
        raise ConfigError(f"--eval_batch_size must be at least 1, got {flags['eval_batch_size']}")
    paths = members(flags["model_dir"])
    checkpoint = opened(flags, paths[0])
    if (checkpoint.head is None or checkpoint.published) and not flags["output_dir"]:
        raise ConfigError(f"--model_dir {checkpoint.path}: is no run and is left as it is; give --output_dir too")
    head, data = asked(flags, checkpoint)
    if folder.exists() and not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        raise ConfigError(f"--output_dir {folder}: must be a directory that can be written")
    suit(flags, head.task)
    examples, data = read_examples(flags, checkpoint, head, data)

    from keras_bert.tasks.network import HEADS

    HEADS[head.task].before_evaluation()
    bert = load(flags, paths, data)
    metrics, answers = bert.evaluate(examples, flags["eval_batch_size"], sys.stderr)
    lines = "".join(f"{name} = {value}\n" for name, value in sorted(metrics.items()))
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / RESULTS_FILE, lines)
    write_files(folder, files_of(bert, examples.rows, bert.plain(answers)))
    print(lines, end="", flush=True)
    note(f"{len(examples)} rows; the results are in {folder / RESULTS_FILE}")
    return 0


def read_examples(
    flags: Flags, checkpoint: Checkpoint, head: HeadConfig, data: DataConfig
) -> tuple[Examples, DataConfig]:
    """The labelled rows, checked, and the columns that are read of them.

    Raises:
        DataError: anything about the file that cannot be used.
    """
    source, text = source_of(head), checkpoint.text
    tokenizer = functools.partial(WordPiece, checkpoint.vocabulary, special_tokens=(MASK,), **text.tokenizer)
    longest = flags["max_seq_length"] or text.max_seq_length
    rows = source.read(flags["eval_file"], data, reading(flags))
    data = asked(flags, checkpoint, rows.columns)[1]
    rows = source.with_labels(rows, data, head, tokenizer, longest, note)
    source.check(rows, data, head)
    return source.examples(rows, data, head, tokenizer), data
