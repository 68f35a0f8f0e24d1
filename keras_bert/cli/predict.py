"""`keras-bert predict`: a file of texts in, a csv of labels out, or JSON lines of entities, answers or anything.

The csv has the input's id column, where there is one, and the label under the name and with the values it had in
training, so that it is a Kaggle submission as it stands. Answers that go to a file named `predictions.json` are written
as google-research/bert writes them, with `nbest_predictions.json` and `null_odds.json` beside.
"""

import csv
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

from keras_bert.cli.answering import KINDS, LEAVE_OUT, add_task, asked, check, load, members, opened, suit
from keras_bert.cli.flags import Flags, note
from keras_bert.config import dumps
from keras_bert.data.faults import Reading
from keras_bert.data.source import source_of
from keras_bert.data.tables import Table
from keras_bert.errors import ConfigError
from keras_bert.files import write_atomic


def define() -> Flags:
    """The flags of the command."""
    flags = Flags("predict", "label the rows of a file", KINDS, LEAVE_OUT)
    flags.require("model_dir", "Directory of a `keras-bert finetune` run, or of any checkpoint.")
    flags.require(
        "input_file",
        "Texts: csv, tsv or jsonl with the text column(s) of training; also CoNLL or JSON (tag), SQuAD's JSON (span), "
        "JSON of choices (choice), lines of text (.txt; fill_mask).",
    )
    flags.require(
        "output_file",
        "The csv (labels), or JSON lines (.jsonl; tag, span, fill_mask) to write; an existing one is replaced.",
    )
    flags.add("probabilities", False, "Also write a column of scores for every label.")
    flags.add("predict_batch_size", 64, "Rows per step.")
    add_task(flags)
    return flags


def main(argv: list[str]) -> int:
    """Run the command; see the module's docstring."""
    flags = define()
    if not flags.parse(argv):
        return 0
    check(flags)
    output = Path(flags["output_file"])
    if flags["predict_batch_size"] < 1:
        raise ConfigError(f"--predict_batch_size must be at least 1, got {flags['predict_batch_size']}")
    if output.is_dir() or not output.parent.is_dir():
        raise ConfigError(f"--output_file {output}: must be a file in a directory that exists")
    if not os.access(output.parent, os.W_OK | os.X_OK):
        raise ConfigError(f"--output_file {output}: no permission to write in {output.parent}")
    paths = members(flags["model_dir"])
    checkpoint = opened(flags, paths[0])
    head, data = asked(flags, checkpoint)
    suit(flags, head.task)
    source = source_of(head)
    rows = source.read(flags["input_file"], data, Reading(labelled=False, max_bad_share=1.0, say=note))
    data = asked(flags, checkpoint, rows.columns)[1]
    if output.exists() and any(output.samefile(f) for f in set(rows.files)):
        raise ConfigError(f"--output_file {output}: is also the input; name another file")
    ids = rows.columns.get(data.id_column)
    if ids and len(set(ids)) < len(ids):
        first = {value: i for i, value in reversed(list(enumerate(ids)))}
        twice = next(i for i, value in enumerate(ids) if first[value] < i)
        note(f"warning: {rows.where(twice)}: the {data.id_column} {ids[twice]!r} is there more than once")

    bert = load(flags, paths, data)
    examples = bert.examples(rows, labelled=False)
    answers = bert.plain(bert.arrays_of(examples, flags["predict_batch_size"], sys.stderr))
    files = files_of(bert, rows, answers)
    if output.name in files:
        write_files(output.parent, files)
    elif head.fits_csv and output.suffix != ".jsonl":
        write_atomic(output, as_csv(rows, answers, bert, flags["probabilities"]))
    else:
        write_atomic(output, as_lines(rows, answers, bert))
    cut = sum(a["truncated"] for a in answers)
    if cut:
        length = bert.text.config.max_seq_length - bert.network.head.reserved
        most = f" in {bert.windows.max_windows} windows" if bert.windows.max_windows > 1 else ""
        note(f"warning: {cut} of {len(answers)} texts were longer than {length} tokens{most} and were cut")
    note(f"wrote {len(answers)} rows to {output}")
    return 0


def as_csv(rows: Table, answers: list[dict[str, Any]], bert: Any, probabilities: bool) -> str:
    """The output file: id, label, and the scores if they are asked for."""
    data, scores = bert.data, answers[0].get("scores", [])
    labels = list(map(str, range(len(scores)))) if isinstance(scores, list) else bert.labels
    ids = rows.columns.get(data.id_column)
    header = ([data.id_column] if ids else []) + [data.label_column]
    if probabilities:
        header += [f"score_{label}" for label in labels]
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    for i, answer in enumerate(answers):
        row = ([ids[i]] if ids else []) + [bert.head.cell(answer)]
        if probabilities:
            scores = answer.get("scores", [])
            row += scores if isinstance(scores, list) else [scores[label] for label in labels]
        writer.writerow(row)
    return out.getvalue()


def as_lines(rows: Table, answers: list[dict[str, Any]], bert: Any) -> str:
    """The output file: an object a line, with the id of its row."""
    name = bert.data.id_column
    ids = rows.columns.get(name)
    lines = ({name: ids[i]} | answer if ids else answer for i, answer in enumerate(answers))
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def files_of(bert: Any, rows: Table, answers: list[dict[str, Any]]) -> dict[str, Any]:
    """Files in the layout of other programs, such as google-research/bert, by name."""
    ids = rows.columns.get(bert.data.id_column) or [str(i) for i in range(1, len(answers) + 1)]
    files: dict[str, Any] = bert.head.files(ids, answers)
    return files


def write_files(folder: Path, files: dict[str, Any]) -> None:
    """Write what `files_of` gave, as JSON."""
    for name, content in files.items():
        write_atomic(folder / name, dumps(content))
