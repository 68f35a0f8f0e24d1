"""`keras-bert finetune`: a labelled file and a pretrained checkpoint in, a run directory out.

The run directory holds all that `predict`, `export` and `serve` need: `keras_bert.json` (labels, text
settings, columns), `vocab.txt`, `model.safetensors` (the best epoch), and the record of the run: `flags.txt`,
`metrics.jsonl`, `final_metrics.json`, `eval_predictions.csv`, `report.html`, `checkpoints/`, `tensorboard/`. With
`--folds` (`folds`) or `--grid` (`grid`) it holds several such runs, and what they came to together.
"""

import dataclasses
from typing import Any

from keras_bert.checkpoints.checkpoints import Checkpoint, open_checkpoint, text_config
from keras_bert.cli import folds, grid, model_dir
from keras_bert.cli.flags import Flags, names_of, note
from keras_bert.cli.one_run import Setup, train
from keras_bert.config import (
    PAIRED,
    WEIGHTED,
    DataConfig,
    FinetuneConfig,
    HeadConfig,
    OptimizerConfig,
    RunConfig,
    TextConfig,
    TrainConfig,
    WindowConfig,
)
from keras_bert.data.choices import encode_choices
from keras_bert.data.entities import SCHEMES, encode_entities, find_types
from keras_bert.data.faults import Reading
from keras_bert.data.labels import encode_labels, find_labels, find_multilabels, learnt_head, split_labels
from keras_bert.data.masked import targets
from keras_bert.data.pairs import encode_pairs
from keras_bert.data.questions import encode_answers
from keras_bert.data.readers import read_labelled
from keras_bert.data.splits import hold_out, texts_of
from keras_bert.data.tables import Table
from keras_bert.errors import ConfigError, DataError
from keras_bert.report.predictions import SCORED

TASKS = ("classify", "multilabel", "regress", "choice", "similarity", "tag", "span", "generate")
WINDOWED = ("tag", "span")
WINDOWS = ("max_windows", "doc_stride", "max_query_length")
WITHOUT_LABELS = ("regress", "choice", "similarity", "span", "generate")


def define() -> Flags:
    """The flags of the command."""
    kinds = (DataConfig, TextConfig, HeadConfig, WindowConfig, OptimizerConfig, TrainConfig, FinetuneConfig, RunConfig)
    flags = Flags("finetune", "train a pretrained BERT on a labelled file", kinds, leave_out=("window_merge",))
    flags.require(
        "train_file",
        "Labelled rows: csv, tsv or jsonl; CoNLL columns or JSON (tag); SQuAD's JSON (span); also CommonsenseQA's and "
        "C3's JSON (choice); columns source and target (generate). A glob or comma list reads several.",
    )
    flags.require(
        "init_checkpoint",
        "Directory of a checkpoint (Hugging Face, google-research/bert, Model Garden, KerasHub or keras_bert), or the "
        "name of a published model, such as bert-base-uncased.",
    )
    flags.require("model_dir", "Directory of the run; a run found there with the same flags is continued.")
    flags.add("task", "classify", "What to learn.", TASKS)
    flags.add("labels", "", "Label values in the order of class ids, comma separated; default: those found, sorted.")
    flags.add("eval_file", "", "Rows to evaluate on; default: hold out --eval_share of the training rows.")
    flags.add("eval_share", 0.1, "Share of the training rows held out where there is no --eval_file.")
    flags.add("folds", 0, "Train this many models, each without a part of the rows that it is evaluated on; 0: one.")
    flags.add("tune_threshold", False, "With --folds: answer from the score on that had the best F1 on rows held out.")
    flags.add(
        "grid",
        "",
        "Train all combinations of values, such as learning_rate=2e-5,5e-5;num_train_epochs=2,3;seed=1,2,3.",
    )
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
    if flags["grid"]:
        grid.run(flags, argv, define, settle, run)
    else:
        run(settle(flags))
    return 0


def settle(flags: Flags) -> Setup:
    """Check the flags and the directory of the run, as far as that goes without reading data.

    Raises:
        ConfigError: flags that cannot be used, or contradict each other, or a directory that cannot take the run.
    """
    data, finetune, task = flags.config(DataConfig), flags.config(FinetuneConfig), flags["task"]
    optimizer = flags.config(OptimizerConfig)
    flags.config(TextConfig)
    flags.config(WindowConfig)
    flags.config(HeadConfig, task=task, label_smoothing=finetune.label_smoothing)
    if finetune.class_weights and task not in WEIGHTED:
        raise ConfigError(f"--class_weights has no meaning with --task={task}, only with {' and '.join(WEIGHTED)}")
    if task in WITHOUT_LABELS and flags["labels"]:
        raise ConfigError(f"--labels has no meaning with --task={task}")
    windows = flags.given_of(WindowConfig)
    if windows and task not in WINDOWED:
        raise ConfigError(f"--{min(windows)} has no meaning with --task={task} in training; predict and export take it")
    if task in PAIRED and not data.text_pair_column:
        data = dataclasses.replace(data, text_pair_column="text_pair")
    if task == "generate":
        if data.text_pair_column:
            raise ConfigError("--text_pair_column has no meaning with --task=generate")
        usual = {"text_column": "source", "label_column": "target"}
        data = dataclasses.replace(data, **{name: value for name, value in usual.items() if not flags.given(name)})
    if flags["eval_file"] and flags.given("eval_share"):
        raise ConfigError("--eval_file and --eval_share contradict each other; give one")
    if not 0 < flags["eval_share"] < 1:
        raise ConfigError(f"--eval_share must be between 0 and 1, got {flags['eval_share']}")
    if flags["folds"] or flags["tune_threshold"]:
        check_folds(flags)
    found_out = (*names_of(TextConfig), *WINDOWS, *["eval_share"] * bool(flags["eval_file"] or flags["folds"]))
    config, keeping = flags.config(TrainConfig), flags.config(RunConfig)
    if task == "similarity" and flags["objective"] == "ranking" and config.grad_accum_steps > 1:
        raise ConfigError("--objective=ranking needs the whole batch at once: leave --grad_accum_steps at 1")
    setup = Setup(flags, data, config, optimizer, finetune, keeping, found_out)
    model_dir.check(setup.folder, flags, found_out)
    return setup


def run(setup: Setup) -> dict[str, Any]:
    """Check everything that can be checked at once, then train; returns what `final_metrics.json` holds."""
    flags, data, task = setup.flags, setup.data, setup.task
    rows, evaluation, labels = read_rows(flags, data, task)
    head = flags.config(HeadConfig, task=task, labels=labels)
    checkpoint = open_checkpoint(flags["init_checkpoint"])
    if checkpoint.path.resolve() == setup.folder.resolve():
        raise ConfigError(f"--init_checkpoint and --model_dir are both {setup.folder}; a run cannot start from itself")
    text_config(checkpoint, flags.given_of(TextConfig))
    check_layers(checkpoint, setup)
    if flags["folds"]:
        parts = folds.split(setup, rows, head)
    else:
        if evaluation is None:
            kept, held = hold_out(rows, data, task, flags["eval_share"], setup.config.seed)
            rows, evaluation = rows.take(kept), rows.take(held)
        if task in WEIGHTED:
            learnt_head(head, setup.finetune, encode_labels(rows, data.label_column, task, labels))
    note("starting TensorFlow")  # from here on things take time; all that is cheap to check has been
    if flags["folds"]:
        return folds.run(setup, checkpoint, rows, labels, parts)
    assert evaluation is not None
    return train(setup, checkpoint, rows, evaluation, labels, setup.folder)


def check_folds(flags: Flags) -> None:
    """Raises ConfigError where folds have no meaning."""
    task, count = flags["task"], flags["folds"]
    if not count:
        raise ConfigError("--tune_threshold needs predictions for rows that were not trained on: give --folds too")
    if count < 2:
        raise ConfigError(f"--folds must be at least 2, or 0 for none, got {count}")
    if task not in SCORED:
        raise ConfigError(f"--folds has no meaning with --task={task}, only with {', '.join(SCORED)}")
    for name in ("eval_file", "eval_share"):
        if flags[name] != flags.values[name].default:  # flags.txt of a run without folds says the default too
            raise ConfigError(f"--folds and --{name} contradict each other: each fold is held out once")
    if flags["tune_threshold"] and task == "regress":
        raise ConfigError("--tune_threshold has no meaning with --task=regress")


def check_layers(checkpoint: Checkpoint, setup: Setup) -> None:
    """Raises ConfigError where the model has too few layers for what is to be frozen or to start anew."""
    layers, frozen, anew = checkpoint.encoder.num_layers, setup.optimizer.freeze_layers, setup.finetune.reinit_layers
    for name, count in (("freeze_layers", frozen), ("reinit_layers", anew)):
        if count > layers:
            raise ConfigError(f"{name} {count} is more than the {layers} layers of the model")
    if frozen + anew > layers:
        raise ConfigError(f"freeze_layers {frozen} would keep random layers as they are: reinit_layers is {anew}")


def read_rows(flags: Flags, data: DataConfig, task: str) -> tuple[Table, Table | None, tuple[str, ...]]:
    """Training rows, evaluation rows if they have a file, and labels, all checked.

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
        check_labels(rows, data, flags.config(HeadConfig, task=task, labels=labels))
    if evaluation is not None:
        known = set(texts_of(train, data, task))
        both = sum(text in known for text in texts_of(evaluation, data, task))
        if both:
            note(f"warning: {both} of {len(evaluation)} evaluation rows are of texts that are trained on")
    empty = [i for i, text in enumerate(train[data.text_column]) if not text.strip()]
    if empty:
        note(f"warning: {len(empty)} training rows have an empty text, the first at {train.where(empty[0])}")
    return train, evaluation, labels


FOUND = {"classify": find_labels, "multilabel": find_multilabels, "tag": find_types}
"""The labels of a file, where nobody gives them."""


def check_labels(rows: Table, data: DataConfig, head: HeadConfig) -> None:
    """Raises DataError where a label cannot be used."""
    task, labels = head.task, head.labels
    if task == "tag":
        encode_entities(rows, data, labels)
    elif task == "choice":
        encode_choices(rows, data)
    elif task == "similarity":
        if head.objective == "scores" and data.label_column not in rows.columns:
            raise DataError(f"{rows.files[0]}: has no column {data.label_column!r} of scores (--label_column)")
        encode_pairs(rows, data, head.max_score)
    elif task == "generate":
        targets(rows, data)
    elif task == "span":
        encode_answers(rows, data)
        without = [i for i, answers in enumerate(rows[data.label_column]) if not answers]
        if without and not head.version_2_with_negative:
            raise DataError(
                f"{rows.where(without[0])}: has no answer, like {len(without) - 1} more; give "
                "--version_2_with_negative if that is meant"
            )
    else:
        encode_labels(rows, data.label_column, task, labels)
