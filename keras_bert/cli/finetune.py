"""`keras-bert finetune`: a labelled file and a pretrained checkpoint in, a run directory out.

The run directory holds all that `predict`, `export` and `serve` need: `keras_bert.json` (labels, text
settings, columns), `vocab.txt`, `model.safetensors` (the best epoch), and the record of the run: `flags.txt`,
`metrics.jsonl`, `final_metrics.json`, `checkpoints/`, `tensorboard/`.
"""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from keras_bert.checkpoints import (
    CONFIG_FILE,
    VOCABULARY_FILE,
    WEIGHTS_FILE,
    Checkpoint,
    open_checkpoint,
    sha256,
    text_config,
    write_atomic,
)
from keras_bert.cli.flags import Flags, names_of, note
from keras_bert.config import DataConfig, HeadConfig, OptimizerConfig, TextConfig, TrainConfig, dumps
from keras_bert.data import Rows, encode_labels, find_labels, find_multilabels, hold_out, read, split_labels
from keras_bert.errors import ConfigError

FLAGS_FILE, FINAL_FILE = "flags.txt", "final_metrics.json"
RUN_FILES = (FLAGS_FILE, CONFIG_FILE, VOCABULARY_FILE, WEIGHTS_FILE, "metrics.jsonl", FINAL_FILE)
RUN_FOLDERS = ("checkpoints", "tensorboard")
TASKS = ("classify", "multilabel", "regress")


def define() -> Flags:
    """The flags of the command."""
    kinds = (DataConfig, TextConfig, HeadConfig, OptimizerConfig, TrainConfig)
    flags = Flags("finetune", "train a pretrained BERT on a labelled file", kinds)
    flags.require("train_file", "Labelled rows: csv, tsv or jsonl; a glob or comma list reads several.")
    flags.require("init_checkpoint", "Directory of a Hugging Face, google-research/bert or keras_bert checkpoint.")
    flags.require("model_dir", "Directory of the run; a run found there with the same flags is continued.")
    flags.add("task", "classify", "What to learn.", TASKS)
    flags.add("labels", "", "Label values in the order of class ids, comma separated; default: those found, sorted.")
    flags.add("eval_file", "", "Rows to evaluate on; default: hold out --eval_share of the training rows.")
    flags.add("eval_share", 0.1, "Share of the training rows held out where there is no --eval_file.")
    flags.add("overwrite", False, "Delete the run found in --model_dir and start anew.")
    return flags


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
    if task == "regress" and flags["labels"]:
        raise ConfigError("--labels has no meaning with --task=regress")
    if flags["eval_file"] and flags.given("eval_share"):
        raise ConfigError("--eval_file and --eval_share contradict each other; give one")
    if not 0 < flags["eval_share"] < 1:
        raise ConfigError(f"--eval_share must be between 0 and 1, got {flags['eval_share']}")
    check_model_dir(folder, flags)
    train, evaluation, labels = read_rows(flags, data, task, train_config.seed)
    head = flags.config(HeadConfig, task=task, labels=labels)
    checkpoint = open_checkpoint(flags["init_checkpoint"])
    if checkpoint.path.resolve() == folder.resolve():
        raise ConfigError(f"--init_checkpoint and --model_dir are both {folder}; a run cannot start from itself")
    text = {name: flags[name] for name in names_of(TextConfig) if flags.given(name)}
    text_config(checkpoint, text)

    note("starting TensorFlow")
    from keras_bert import training  # from here on things take time; all that is cheap to check has been
    from keras_bert.bert import Bert

    training.strategy_for(train_config)
    bert = Bert.from_checkpoint(
        checkpoint.path,
        task=task,
        labels=labels,
        data=data,
        dropout=head.dropout,
        seed=train_config.seed,
        **text,
    )
    note(f"{checkpoint.path} ({describe(checkpoint)}): {bert.report}")
    prepare_model_dir(folder, flags)  # not before all that can be refused has been
    result = bert.fit_rows(train, evaluation, train_config, optimizer, folder, sys.stderr, note)
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
    columns = [c for c in (data.text_column, data.text_pair_column, data.label_column) if c]
    train = read(flags["train_file"], columns)
    evaluation = read(flags["eval_file"], columns) if flags["eval_file"] else None
    if task == "regress":
        labels: tuple[str, ...] = ()
    elif flags["labels"]:
        labels = tuple(split_labels(flags["labels"]))
    elif task == "multilabel":
        labels = find_multilabels(train, data.label_column)
    else:
        labels = find_labels(train, data.label_column)
    for rows in filter(None, (train, evaluation)):
        encode_labels(rows, data.label_column, task, labels)
    empty = [i for i, text in enumerate(train[data.text_column]) if not text.strip()]
    if empty:
        note(f"warning: {len(empty)} training rows have an empty text, the first at {train.where(empty[0])}")
    if evaluation is None:
        kept, held = hold_out(train, data, task, flags["eval_share"], seed)
        train, evaluation = train.take(kept), train.take(held)
    return train, evaluation, labels


def check_model_dir(folder: Path, flags: Flags) -> None:
    """Refuse, before any work, a directory that cannot take this run; nothing is touched.

    Raises:
        ConfigError: it is a file, cannot be written, or holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--model_dir {folder}: is a file; name a directory")
    parent = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not parent.is_dir():
        raise ConfigError(f"--model_dir {folder}: {parent} is a file")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigError(f"--model_dir {folder}: no permission to write in {parent}")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / FLAGS_FILE).exists():
        raise ConfigError(f"--model_dir {folder}: is not empty and holds no run; name another directory")
    if flags["overwrite"]:
        return
    then = set((folder / FLAGS_FILE).read_text("utf-8", errors="replace").splitlines())
    now = set(own_flags(flags).splitlines())
    if now != then:
        changes = (("now", now - then), ("then", then - now))
        said = ", ".join(f"{when} {' '.join(sorted(lines))}" for when, lines in changes if lines)
        raise ConfigError(
            f"--model_dir {folder}: holds a run with other flags ({said}); name another directory, or --overwrite"
        )


def prepare_model_dir(folder: Path, flags: Flags) -> None:
    """Make the directory, delete an old run if that was asked for, and record the flags."""
    if flags["overwrite"] and folder.exists():
        for name in RUN_FOLDERS:
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in RUN_FILES:
            (folder / name).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / FLAGS_FILE, own_flags(flags))


def own_flags(flags: Flags) -> str:
    """What tells one run from another, and repeats it: all flags but the place of the run.

    Flags whose default is not a value but found out are in it only where they were given.
    """
    found_out = [*names_of(TextConfig), *(["eval_share"] if flags["eval_file"] else [])]
    return flags.resolved(("overwrite", "model_dir", *(name for name in found_out if not flags.given(name))))


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
