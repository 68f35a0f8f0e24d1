"""`keras-bert finetune`: a labelled file and a pretrained checkpoint in, a run directory out.

The run directory holds all that `predict`, `export` and `serve` need: `keras_bert.json` (labels, text
settings, columns), `vocab.txt`, `model.safetensors` (the best epoch), and the record of the run: `flags.txt`,
`metrics.jsonl`, `final_metrics.json`, `checkpoints/`, `tensorboard/`.
"""

import dataclasses
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from keras_bert.checkpoints import WEIGHTS_FILE, Checkpoint, open_checkpoint, text_config
from keras_bert.cli import model_dir
from keras_bert.cli.flags import Flags, names_of, note
from keras_bert.cli.model_dir import FINAL_FILE
from keras_bert.config import (
    DataConfig,
    HeadConfig,
    OptimizerConfig,
    RunConfig,
    TextConfig,
    TrainConfig,
    WindowConfig,
    dumps,
)
from keras_bert.data import Rows, encode_labels, find_labels, find_multilabels, hold_out, split_labels, texts_of
from keras_bert.errors import ConfigError, DataError
from keras_bert.files import sha256, write_atomic
from keras_bert.readers import SCHEMES, Reading, encode_answers, encode_entities, find_types, read_labelled
from keras_bert.runs import locked

TASKS = ("classify", "multilabel", "regress", "tag", "span")
WINDOWED = ("tag", "span")
WINDOWS = ("max_windows", "doc_stride", "max_query_length")
WITHOUT_LABELS = ("regress", "span")


def define() -> Flags:
    """The flags of the command."""
    kinds = (DataConfig, TextConfig, HeadConfig, WindowConfig, OptimizerConfig, TrainConfig, RunConfig)
    flags = Flags("finetune", "train a pretrained BERT on a labelled file", kinds, leave_out=("window_merge",))
    flags.require(
        "train_file",
        "Labelled rows: csv, tsv or jsonl; CoNLL columns or JSON (tag); SQuAD's JSON (span). A glob or comma list "
        "reads several.",
    )
    flags.require("init_checkpoint", "Directory of a Hugging Face, google-research/bert or keras_bert checkpoint.")
    flags.require("model_dir", "Directory of the run; a run found there with the same flags is continued.")
    flags.add("task", "classify", "What to learn.", TASKS)
    flags.add("labels", "", "Label values in the order of class ids, comma separated; default: those found, sorted.")
    flags.add("eval_file", "", "Rows to evaluate on; default: hold out --eval_share of the training rows.")
    flags.add("eval_share", 0.1, "Share of the training rows held out where there is no --eval_file.")
    add_reading(flags)
    flags.add("overwrite", False, "Delete the run found in --model_dir and start anew.")
    return flags


def add_reading(flags: Flags) -> None:
    """The flags of how files of entities and questions are read."""
    flags.add("tag_scheme", "auto", "tag: how CoNLL files write tags; all but iob2 and bioes take any.", tuple(SCHEMES))
    flags.add("max_bad_share", 0.02, "tag, span: share of rows with faults that are accepted.")


def reading(flags: Flags, labelled: bool = True) -> Reading:
    """How files of entities and questions are read."""
    share = flags["max_bad_share"]
    if not 0 <= share <= 1:
        raise ConfigError(f"--max_bad_share must be from 0 to 1, got {share}")
    return Reading(labelled, flags["tag_scheme"], share, note)


def main(argv: list[str]) -> int:
    """Run the command; see the module's docstring."""
    flags = define()
    if not flags.parse(argv):
        return 0
    run(flags)
    return 0


def run(flags: Flags) -> dict[str, Any]:
    """Check everything that can be checked at once, then train; returns what `final_metrics.json` holds."""
    data, train_config = flags.config(DataConfig), flags.config(TrainConfig)
    optimizer, task, folder = flags.config(OptimizerConfig), flags["task"], Path(flags["model_dir"])
    flags.config(TextConfig)
    flags.config(WindowConfig)
    flags.config(HeadConfig, task=task)
    if task in WITHOUT_LABELS and flags["labels"]:
        raise ConfigError(f"--labels has no meaning with --task={task}")
    windows = flags.given_of(WindowConfig)
    if windows and task not in WINDOWED:
        raise ConfigError(f"--{min(windows)} has no meaning with --task={task} in training; predict and export take it")
    if task == "span" and not data.text_pair_column:
        data = dataclasses.replace(data, text_pair_column="text_pair")
    if flags["eval_file"] and flags.given("eval_share"):
        raise ConfigError("--eval_file and --eval_share contradict each other; give one")
    if not 0 < flags["eval_share"] < 1:
        raise ConfigError(f"--eval_share must be between 0 and 1, got {flags['eval_share']}")
    found_out = (*names_of(TextConfig), *WINDOWS, *["eval_share"] * bool(flags["eval_file"]))
    keeping = flags.config(RunConfig)
    model_dir.check(folder, flags, found_out)
    train, evaluation, labels = read_rows(flags, data, task, train_config.seed)
    head = flags.config(HeadConfig, task=task, labels=labels)
    checkpoint = open_checkpoint(flags["init_checkpoint"])
    if checkpoint.path.resolve() == folder.resolve():
        raise ConfigError(f"--init_checkpoint and --model_dir are both {folder}; a run cannot start from itself")
    text = flags.given_of(TextConfig)
    text_config(checkpoint, text)

    note("starting TensorFlow")
    from keras_bert import training  # from here on things take time; all that is cheap to check has been
    from keras_bert.bert import Bert
    from keras_bert.strategies import meet, strategy_for, worker
    from keras_bert.training import Keeping

    strategy = strategy_for(train_config)
    bert = Bert.from_checkpoint(
        checkpoint.path,
        task=task,
        labels=labels,
        data=data,
        seed=train_config.seed,
        head={name: getattr(head, name) for name in names_of(HeadConfig)},
        windows=windows,
        **text,
    )
    note(f"{checkpoint.path} ({describe(checkpoint)}): {bert.report}")
    with ExitStack() as stack:
        if not keeping.dry_run and worker(strategy)[0] == 0:
            stack.enter_context(locked(folder))
            model_dir.prepare(folder, flags, found_out)  # not before all that can be refused has been
        meet(strategy)
        kept = Keeping(None if keeping.dry_run else folder, keeping, catch_signals=True)
        result = bert.fit_rows(train, evaluation, train_config, optimizer, kept, sys.stderr, note)
    final = {
        "schema": 1,
        "task": task,
        "labels": list(labels),
        "train_rows": len(train),
        "eval_rows": len(evaluation),
        "best": result.best,
        "history": result.history,
        "seconds": round(result.seconds, 2),
        "examples_per_second": round(result.examples_per_second, 2),
        "weights_sha256": sha256(folder / WEIGHTS_FILE),
        **training.environment(),
    }
    if not (folder / FINAL_FILE).exists():  # else the run was finished before, and nothing was trained now
        write_atomic(folder / FINAL_FILE, dumps(final))
    print(report(bert, evaluation, result), flush=True)
    note(f"saved the best epoch ({result.best['epoch']}) in {folder}")
    return final


def read_rows(flags: Flags, data: DataConfig, task: str, seed: int) -> tuple[Rows, Rows, tuple[str, ...]]:
    """Training rows, evaluation rows and labels, all checked.

    Raises:
        DataError: anything about the files that cannot be used.
    """
    how = reading(flags)
    train = read_labelled(task, flags["train_file"], data, how)
    evaluation = read_labelled(task, flags["eval_file"], data, how) if flags["eval_file"] else None
    labels: tuple[str, ...] = ()
    if flags["labels"]:
        labels = tuple(split_labels(flags["labels"]))
    elif task in FOUND:
        labels = FOUND[task](train, data.label_column)
    for rows in filter(None, (train, evaluation)):
        check_labels(rows, data, task, labels, flags["version_2_with_negative"])
    if evaluation is not None:
        known = set(texts_of(train, data, task))
        both = sum(text in known for text in texts_of(evaluation, data, task))
        if both:
            note(f"warning: {both} of {len(evaluation)} evaluation rows are of texts that are trained on")
    empty = [i for i, text in enumerate(train[data.text_column]) if not text.strip()]
    if empty:
        note(f"warning: {len(empty)} training rows have an empty text, the first at {train.where(empty[0])}")
    if evaluation is None:
        kept, held = hold_out(train, data, task, flags["eval_share"], seed)
        train, evaluation = train.take(kept), train.take(held)
    return train, evaluation, labels


FOUND = {"classify": find_labels, "multilabel": find_multilabels, "tag": find_types}
"""The labels of a file, where nobody gives them."""


def check_labels(rows: Rows, data: DataConfig, task: str, labels: tuple[str, ...], negative: bool) -> None:
    """Raises DataError where a label cannot be used."""
    if task == "tag":
        encode_entities(rows, data, labels)
    elif task == "span":
        encode_answers(rows, data)
        without = [i for i, answers in enumerate(rows[data.label_column]) if not answers]
        if without and not negative:
            raise DataError(
                f"{rows.where(without[0])}: has no answer, like {len(without) - 1} more; give "
                "--version_2_with_negative if that is meant"
            )
    else:
        encode_labels(rows, data.label_column, task, labels)


def report(bert: Any, evaluation: Rows, result: Any) -> str:
    """The table of a classification, or one line of metrics."""
    from keras_bert import metrics

    head = bert.network.head.config
    if head.task == "classify":
        labels = encode_labels(evaluation, bert.data.label_column, head.task, head.labels)
        return metrics.table(labels, result.answers["class_id"], head.labels)
    return "  ".join(f"{k} {v:.4f}" for k, v in result.best.items() if isinstance(v, float))


def describe(checkpoint: Checkpoint) -> str:
    """`hf, 6 layers, 384 wide, uncased, gelu`."""
    encoder = checkpoint.encoder
    case = "uncased" if checkpoint.text.do_lower_case else "cased"
    return f"{checkpoint.format}, {encoder.num_layers} layers, {encoder.hidden_dim} wide, {case}, {encoder.activation}"
