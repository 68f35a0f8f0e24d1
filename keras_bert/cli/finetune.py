"""`keras-bert finetune`: a labelled file and a pretrained checkpoint in, a run directory out.

The run directory holds all that `predict`, `export` and `serve` need: `keras_bert.json` (labels, text
settings, columns), `vocab.txt`, `model.safetensors` (the best epoch), and the record of the run: `flags.txt`,
`metrics.jsonl`, `final_metrics.json`, `eval_predictions.csv`, `report.html`, `checkpoints/`, `tensorboard/`. With
`--folds` (`folds`) or `--grid` (`grid`) it holds several such runs, and what they came to together.
"""

import dataclasses
from typing import Any

from keras_bert.checkpoints.checkpoints import Checkpoint, check_segments, open_checkpoint, text_config
from keras_bert.cli import folds, grid, model_dir
from keras_bert.cli.flags import Flags, add_opening, kept_keys, names_of, note
from keras_bert.cli.one_run import Setup, train
from keras_bert.config import (
    TASKS,
    DataConfig,
    FinetuneConfig,
    HeadConfig,
    OptimizerConfig,
    RunConfig,
    TextConfig,
    TrainConfig,
    WindowConfig,
    tasks_with,
)
from keras_bert.data.batches import Examples
from keras_bert.data.entities import SCHEMES
from keras_bert.data.faults import Reading
from keras_bert.data.labels import check_weighting, learnt_head, split_labels
from keras_bert.data.source import source_of
from keras_bert.data.splits import hold_out
from keras_bert.errors import ConfigError
from keras_bert.tasks.scores import scores_of

WINDOWS = ("max_windows", "doc_stride", "max_query_length")


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
    flags.add("task", "classify", "What to learn.", tasks_with(untrainable=""))
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
    add_opening(flags)
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
    head = flags.config(HeadConfig, task=task, label_smoothing=finetune.label_smoothing)
    check_weighting(type(head), task, finetune)
    if flags["labels"] and not head.has_labels:
        raise ConfigError(f"--labels has no meaning with --task={task}")
    windows = flags.given_of(WindowConfig)
    if windows and head.reads != "windows":
        raise ConfigError(f"--{min(windows)} has no meaning with --task={task} in training; predict and export take it")
    if head.paired and not data.text_pair_column:
        data = dataclasses.replace(data, text_pair_column="text_pair")
    if head.single and data.text_pair_column:
        raise ConfigError(f"--text_pair_column has no meaning with --task={task}")
    columns = {name: value for name, value in head.columns.items() if not flags.given(name)}
    data = dataclasses.replace(data, **columns)
    if flags["eval_file"] and flags.given("eval_share"):
        raise ConfigError("--eval_file and --eval_share contradict each other; give one")
    if not 0 < flags["eval_share"] < 1:
        raise ConfigError(f"--eval_share must be between 0 and 1, got {flags['eval_share']}")
    if flags["folds"] or flags["tune_threshold"]:
        check_folds(flags, head)
    found_out = (*names_of(TextConfig), *WINDOWS)
    if flags["eval_file"] or flags["folds"]:
        found_out = (*found_out, "eval_share")
    config, keeping = flags.config(TrainConfig), flags.config(RunConfig)
    if head.whole_batch and config.grad_accum_steps > 1:
        raise ConfigError(f"--task={task} needs the whole batch at once here: leave --grad_accum_steps at 1")
    setup = Setup(flags, data, config, optimizer, finetune, keeping, found_out)
    model_dir.check(setup.folder, flags, found_out)
    return setup


def run(setup: Setup) -> dict[str, Any]:
    """Check everything that can be checked at once, then train; returns what `final_metrics.json` holds."""
    flags = setup.flags
    examples, evaluation, head = read_examples(setup)
    checkpoint = open_checkpoint(flags["init_checkpoint"], kept_keys(flags))
    if checkpoint.path.resolve() == setup.folder.resolve():
        raise ConfigError(f"--init_checkpoint and --model_dir are both {setup.folder}; a run cannot start from itself")
    text_config(checkpoint, flags.given_of(TextConfig))
    check_segments(checkpoint.encoder, head, setup.data)
    check_layers(checkpoint, setup)
    if flags["folds"]:
        parts = folds.split(setup, examples, head)
    else:
        if evaluation is None:
            share, seed = flags["eval_share"], setup.config.seed
            rest, held = hold_out(examples.rows, setup.data, source_of(head), share, seed)
            examples, evaluation = examples.take(rest), examples.take(held)
        learnt_head(head, setup.finetune, examples.labels)
    note("starting TensorFlow")  # from here on things take time; all that is cheap to check has been
    if flags["folds"]:
        return folds.run(setup, checkpoint, examples, head.labels, parts)
    assert evaluation is not None
    return train(setup, checkpoint, examples, evaluation, head.labels, setup.folder)


def check_folds(flags: Flags, head: HeadConfig) -> None:
    """Raises ConfigError where folds have no meaning."""
    task, count = flags["task"], flags["folds"]
    if not count:
        raise ConfigError("--tune_threshold needs predictions for rows that were not trained on: give --folds too")
    if count < 2:
        raise ConfigError(f"--folds must be at least 2, or 0 for none, got {count}")
    scores = scores_of(head)
    if scores is None:
        known = ", ".join(name for name, kind in TASKS.items() if kind.scores)
        raise ConfigError(f"--folds has no meaning with --task={task}, only with {known}")
    for name in ("eval_file", "eval_share"):
        if flags[name] != flags.values[name].default:  # flags.txt of a run without folds says the default too
            raise ConfigError(f"--folds and --{name} contradict each other: each fold is held out once")
    if flags["tune_threshold"] and scores.numeric:
        raise ConfigError(f"--tune_threshold has no meaning with --task={task}")


def check_layers(checkpoint: Checkpoint, setup: Setup) -> None:
    """Raises ConfigError where the model has too few layers for what is to be frozen or to start anew."""
    layers, frozen, anew = checkpoint.encoder.num_layers, setup.optimizer.freeze_layers, setup.finetune.reinit_layers
    for name, count in (("freeze_layers", frozen), ("reinit_layers", anew)):
        if count > layers:
            raise ConfigError(f"{name} {count} is more than the {layers} layers of the model")
    if frozen + anew > layers:
        raise ConfigError(f"freeze_layers {frozen} would keep random layers as they are: reinit_layers is {anew}")


def read_examples(setup: Setup) -> tuple[Examples, Examples | None, HeadConfig]:
    """Training examples, evaluation examples if they have a file, and the head with its labels, all checked.

    Raises:
        DataError: anything about the files that cannot be used.
    """
    flags, data, how = setup.flags, setup.data, reading(setup.flags)
    head = flags.config(HeadConfig, task=setup.task)
    source = source_of(head)
    names = ["train_file", "eval_file"] if flags["eval_file"] else ["train_file"]
    tables = [source.read(flags[name], data, how) for name in names]
    labels = tuple(split_labels(flags["labels"])) or source.find_labels(tables[0], data)
    head = dataclasses.replace(head, labels=labels)
    for table in tables:
        source.check(table, data, head)
    train, *rest = (source.examples(table, data, head) for table in tables)
    if rest:
        known = set(source.groups(train.rows, data))
        both = sum(text in known for text in source.groups(rest[0].rows, data))
        if both:
            note(f"warning: {both} of {len(rest[0])} evaluation rows are of texts that are trained on")
    empty = [i for i, text in enumerate(train.segments[0]) if not text.strip()]
    if empty:
        note(f"warning: {len(empty)} training rows have an empty text, the first at {train.rows.where(empty[0])}")
    return train, rest[0] if rest else None, head
