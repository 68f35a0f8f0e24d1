"""One run of fine-tuning: checked rows and a checkpoint in, the directory of a run out."""

import dataclasses
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_bert.checkpoints.checkpoints import WEIGHTS_FILE, Checkpoint
from keras_bert.cli import model_dir
from keras_bert.cli.flags import Flags, kept_keys, names_of, note
from keras_bert.config import (
    DataConfig,
    FinetuneConfig,
    HeadConfig,
    OptimizerConfig,
    RunConfig,
    TextConfig,
    TrainConfig,
    WindowConfig,
    dumps,
)
from keras_bert.data.batches import Examples
from keras_bert.errors import Stopped
from keras_bert.files import sha256, write_atomic
from keras_bert.report import predictions, report
from keras_bert.tasks import metrics
from keras_bert.tasks.scores import scores_of
from keras_bert.training.states import FINAL_FILE, locked


@dataclass(frozen=True)
class Setup:
    """What the flags ask for.

    Attributes:
        found_out: flags whose default is found out, see `model_dir.check`.
        begun: when the command began, for `--max_time`.
    """

    flags: Flags
    data: DataConfig
    config: TrainConfig
    optimizer: OptimizerConfig
    finetune: FinetuneConfig
    keeping: RunConfig
    found_out: tuple[str, ...]
    begun: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def folder(self) -> Path:
        """The directory of the run."""
        return Path(self.flags["model_dir"])

    @property
    def task(self) -> str:
        """What is learnt."""
        return self.flags["task"]

    def time_left(self) -> RunConfig:
        """`keeping`, with what is left of its time.

        Raises:
            Stopped: nothing is.
        """
        if not self.keeping.max_time:
            return self.keeping
        left = self.keeping.max_time - (time.monotonic() - self.begun)
        if left <= 0:
            raise Stopped(f"stopped by the time limit; the same command goes on in {self.folder}", 75)
        return dataclasses.replace(self.keeping, max_time=left)


def train(
    setup: Setup, checkpoint: Checkpoint, rows: Examples, evaluation: Examples, labels: tuple[str, ...], folder: Path
) -> dict[str, Any]:
    """Train, keep the run in `folder`, and write its report; returns what `final_metrics.json` holds."""
    from keras_bert.bert import Bert
    from keras_bert.training import hardware, loop
    from keras_bert.training.devices import meet, strategy_for, worker

    flags, keeping = setup.flags, setup.time_left()
    head = flags.config(HeadConfig, task=setup.task, labels=labels)
    strategy = strategy_for(setup.config)
    chief = worker(strategy)[0] == 0 and not keeping.dry_run
    bert = Bert.from_checkpoint(
        checkpoint.path,
        task=setup.task,
        labels=labels,
        data=setup.data,
        seed=setup.config.seed,
        head={name: getattr(head, name) for name in names_of(type(head))},
        windows=flags.given_of(WindowConfig),
        reinit_layers=setup.finetune.reinit_layers,
        new_head=setup.finetune.new_head,
        drop=flags["drop"],
        keep_keys=kept_keys(flags),
        **flags.given_of(TextConfig),
    )
    note(f"{checkpoint.path} ({describe(checkpoint)}): {bert.report}")
    with ExitStack() as stack:
        if chief:
            stack.enter_context(locked(folder))
            model_dir.prepare(folder, flags, setup.found_out)  # not before all that can be refused has been
        meet(strategy)
        kept = loop.Keeping(None if keeping.dry_run else folder, keeping, catch_signals=True)
        result = bert.fit_rows(
            rows, evaluation, setup.config, setup.optimizer, kept, sys.stderr, note, finetune=setup.finetune
        )
        final = {
            "schema": 1,
            "task": setup.task,
            "labels": list(labels),
            "train_rows": len(rows),
            "eval_rows": len(evaluation),
            "best": result.best,
            "history": result.history,
            "seconds": round(result.seconds, 2),
            "examples_per_second": round(result.examples_per_second, 2),
            "weights_sha256": sha256(folder / WEIGHTS_FILE),
            **hardware.environment(),
        }
        if chief and not (folder / FINAL_FILE).exists():  # else the run was finished before: nothing was trained now
            if head.scores:
                found = predictions.of_answers(evaluation, setup.data, bert.network.head.config, result.answers)
                predictions.write(folder, found)
            write_atomic(folder / FINAL_FILE, dumps(final))
        if chief:
            write_report(folder)
    print(summary(bert, evaluation, result), flush=True)
    note(f"saved the best epoch ({result.best['epoch']}) in {folder}")
    return final


def write_report(folder: Path) -> None:
    """Write the report, and say where it is and what is missing."""
    missing = report.write(folder)
    note(f"{folder / report.REPORT_FILE} shows how it went" + (f" ({missing})" if missing else ""))


def summary(bert: Any, evaluation: Examples, result: Any) -> str:
    """The table of a classification, or one line of metrics."""
    scores = scores_of(bert.head.config)
    if scores and scores.exclusive:
        return metrics.table(evaluation.labels, result.answers["class_id"], bert.labels)
    return in_a_line(result.best)


def in_a_line(values: dict[str, Any]) -> str:
    """The metrics among `values`."""
    return "  ".join(f"{k} {v:.4f}" for k, v in values.items() if isinstance(v, float))


def describe(checkpoint: Checkpoint) -> str:
    """`hf, 6 layers, 384 wide, uncased, gelu`."""
    encoder = checkpoint.encoder
    case = "uncased" if checkpoint.text.do_lower_case else "cased"
    return f"{checkpoint.format}, {encoder.num_layers} layers, {encoder.hidden_dim} wide, {case}, {encoder.activation}"
