"""Pretraining: rows of a corpus to masked batches, and the run over them.

Batch number s of a run is known from the corpus, the seed and s alone, and so are its masks: nothing of the input has
to be saved to go on after a kill.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_bert.checkpoints import checkpoints
from keras_bert.config import MaskingConfig, OptimizerConfig, PretrainConfig, TextConfig, TrainConfig
from keras_bert.data.batches import ahead
from keras_bert.errors import ConfigError
from keras_bert.pretrain.columns import missing
from keras_bert.pretrain.masking import Masking
from keras_bert.pretrain.objectives import PretrainHead, PretrainNetwork, PretrainTask, name_of
from keras_bert.pretrain.reader import Corpus
from keras_bert.pretrain.rows import assemble, fill_up, from_original, pack
from keras_bert.training import devices
from keras_bert.training.loop import Judge, Keeping, Rounds, Say, rehearse, resume, run_rounds
from keras_bert.training.step import Tally, Task, Trainer, copy_weights, distribute

EVALUATION_EPOCH = 2**40
"""The masks of an evaluation are those of an epoch that no training reaches, the same every time."""


Step = Callable[[dict[str, Any], Any, Any], dict[str, Any]]
"""Rows, their epochs and their numbers (int64 `[b]`) -> rows. All that it draws must follow from the last two."""


class CorpusBatches:
    """A corpus as distributed batches with their masks.

    Records -> `ragged` steps -> assembled rows -> masks -> `dense` steps -> the objectives' `prepare` -> packed rows.
    Ragged steps see the columns of records and may change the lengths of rows; dense ones see a batch of full width.

    Args:
        corpus: rows of either format; static ones have their masks already.
        length: tokens of a row at most.
        packed: put short rows together, see `rows.pack`; a batch then has fewer rows.
        ragged: steps before assembling; static rows have none.
        dense: steps after the masks are drawn.
    """

    def __init__(
        self,
        corpus: Corpus,
        vocabulary: Sequence[str],
        masking: MaskingConfig,
        config: TrainConfig,
        length: int,
        packed: bool = False,
        ragged: Sequence[Step] = (),
        dense: Sequence[Step] = (),
    ) -> None:
        ids = {piece: i for i, piece in enumerate(vocabulary)}
        self.corpus, self.config, self.length, self.packed = corpus, config, length, packed
        self.special = (ids["[CLS]"], ids["[SEP]"], ids.get("[PAD]", 0))
        static = corpus.format == "static"
        if ragged and static:
            raise ConfigError("rows of --format=static have their masks already, so their lengths cannot change")
        masks = Masking(masking, vocabulary, config.seed)
        self.ragged, self.dense = tuple(ragged), (*(() if static else (masks,)), *dense)

    def check(self, head: PretrainHead) -> None:
        """Make a batch of one row, and see that it has the columns that the objectives read.

        Raises:
            ConfigError: a column is missing that a mask or an objective reads, or a step fails.
        """
        records, epochs, indices = next(self.corpus.in_order(1))
        batch = self.features(tf.constant(records), epochs, indices, prepare=head.prepare)
        for name, objective in head.objectives.items():
            missing((*objective.inputs, *objective.labels), batch, f"the objective {name}")

    def training(self, trainer: Trainer, batch_size: int, start: int, end: int) -> Any:
        """The batches `start` to `end - 1`, every replica a part of each."""
        seed = self.config.seed

        def cut(first: int, last: int, parts: int) -> Any:
            def batches() -> Iterator[Any]:
                mine = [self.corpus.batches(batch_size, seed, start, (part, parts)) for part in range(first, last)]
                for _ in range(start, end):
                    yield from (next(part) for part in mine)

            return self._dataset(batches, -(-batch_size // parts), trainer)

        return distribute(trainer.strategy, cut)

    def evaluation(self, trainer: Trainer, batch_size: int, rows: int) -> Any:
        """The first `rows` rows, the same masks every time; each worker goes through all of them."""
        local = trainer.strategy.num_replicas_in_sync // devices.worker(trainer.strategy)[1]

        def cut(*_: int) -> Any:
            def batches() -> Iterator[Any]:
                for records, _, indices in self.corpus.in_order(batch_size, rows):
                    for part in range(local):
                        mine = indices[part::local]
                        yield records[part::local], np.full_like(mine, EVALUATION_EPOCH), mine

            return self._dataset(batches, -(-batch_size // local), trainer)

        return distribute(trainer.strategy, cut)

    def _dataset(self, batches: Callable[[], Iterator[Any]], rows: int, trainer: Trainer) -> Any:
        spec = (tf.TensorSpec([None], tf.string), tf.TensorSpec([None], tf.int64), tf.TensorSpec([None], tf.int64))
        fixed, prepare = trainer.fixed, trainer.network.head.prepare
        made = tf.data.Dataset.from_generator(batches, output_signature=spec)
        made = made.map(
            lambda r, e, i: self.features(r, e, i, fixed, prepare), num_parallel_calls=2, deterministic=True
        )
        if fixed:  # the last batch of an evaluation may be smaller
            made = made.map(lambda batch: fill_up(batch, rows))
        return ahead(made, 8)

    def features(
        self,
        records: Any,
        epochs: Any,
        indices: Any,
        fixed: bool = False,
        prepare: Callable[[Any], dict[str, Any]] | None = None,
    ) -> dict[str, Any]:
        """Records, strings `[b]`, of these epochs and numbers, int64 `[b]` -> a batch, see `rows`."""
        examples = self.corpus.parse(records)
        cls_id, sep_id, pad_id = self.special
        for step in self.ragged:
            examples = step(examples, epochs, indices)
        if self.corpus.format == "static":
            batch = from_original(examples)
        else:
            length, multiple = (self.length, 1) if fixed else (None, 1 if self.length % 8 else 8)
            batch = assemble(examples, cls_id, sep_id, pad_id, length, multiple)
        for step in self.dense:
            batch = step(batch, epochs, indices)
        if prepare is not None:
            batch = prepare(batch)
        return pack(batch, self.length, pad_id) if self.packed else batch


class Pretraining(PretrainTask, Task):
    """The task of pretraining, for a `Trainer`."""


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of a run: its rows, how many steps, and rows per step."""

    rows: CorpusBatches
    steps: int
    batch_size: int


def pretrain(
    network: PretrainNetwork,
    vocabulary: Sequence[str],
    text: TextConfig,
    phases: Sequence[Phase],
    held_out: CorpusBatches | None,
    config: TrainConfig,
    pretraining: PretrainConfig,
    optimizer: OptimizerConfig,
    keeping: Keeping,
    say: Say = print,
    progress: Any = None,
) -> list[dict[str, Any]]:
    """Run all phases, one after the other under one schedule; returns the record of each evaluation.

    Args:
        network: starting weights, and the objectives; has the last weights at the end.
        vocabulary, text: saved beside the weights.
        held_out: rows to evaluate on; None records the training losses alone.
        keeping: where states and, after each evaluation, the model in our format go.

    Raises:
        DivergedError, CheckpointError, Stopped: as `loop.run_rounds`.
    """
    steps = sum(phase.steps for phase in phases)
    rounds = Rounds(steps, min(pretraining.eval_steps, steps), "step")
    factors = {name_of(objective): weight for objective, weight in pretraining.weights.items()}
    for rows in filter(None, (*(phase.rows for phase in phases), held_out)):
        rows.check(network.head)
    trainer = Trainer(lambda policy: Pretraining(network.like(policy), factors), network, optimizer, config, steps)
    ends = list(itertools.accumulate(phase.steps for phase in phases))

    def batches(step: int) -> Any:
        number = next(i for i, end in enumerate(ends) if step < end)
        phase, begin = phases[number], ends[number] - phases[number].steps
        return phase.rows.training(trainer, phase.batch_size, step - begin, phase.steps)

    say(
        f"pretraining on {devices.describe(trainer.strategy)}: {steps} steps of {phases[0].batch_size} rows, "
        f"{len(phases[0].rows.corpus):,} rows in the corpus, {network.count_params():,} parameters"
    )
    if keeping.config.dry_run:
        rehearse(trainer, batches, rounds)
    resumed = resume(trainer, keeping, say)

    def evaluate() -> dict[str, Any]:
        if held_out is None:
            return {}
        limit = pretraining.max_eval_steps * config.eval_batch_size
        tally, _ = trainer.evaluate(held_out.evaluation(trainer, config.eval_batch_size, limit))
        return named(tally, "eval_")

    def conclude(record: dict[str, Any]) -> None:
        record |= perplexities(record, "train_")
        copy_weights(trainer.network, network)
        if keeping.folder is not None and devices.worker(trainer.strategy)[0] == 0:
            checkpoints.save(keeping.folder, network, list(vocabulary), text, None, record)

    history, _ = run_rounds(trainer, batches, rounds, Judge(evaluate, conclude), keeping, resumed, say, progress)
    copy_weights(trainer.network, network)
    return history


def named(tally: Tally, prefix: str) -> dict[str, float]:
    """The means of an evaluation, and the perplexity of its masked tokens."""
    means = tally.means(prefix)
    return means | perplexities(means, prefix)


def perplexities(means: dict[str, Any], prefix: str) -> dict[str, float]:
    """The perplexity of the masked tokens, if these are predicted."""
    loss = means.get(f"{prefix}masked_lm_loss")
    return {} if loss is None else {f"{prefix}perplexity": perplexity(loss)}


def perplexity(loss: float) -> float:
    """exp of a mean loss per token, bounded so that it stays a number."""
    return math.exp(min(loss, 700.0))
