"""`Bert`: texts in, answers out. The whole package behind one small class; plain Keras underneath."""

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_bert import rules
from keras_bert.checkpoints import checkpoints
from keras_bert.checkpoints.formats.sentence_transformers import PROMPTS_FILE
from keras_bert.config import (
    TASKS,
    DataConfig,
    EncoderConfig,
    FinetuneConfig,
    HeadConfig,
    OptimizerConfig,
    TextConfig,
    TrainConfig,
    VectorConfig,
    WindowConfig,
    choose,
    from_dict,
    to_dict,
)
from keras_bert.data.batches import Examples, batches_in_order, encoded, filled, lengths
from keras_bert.data.source import Source, source_of
from keras_bert.data.splits import hold_out
from keras_bert.data.tables import Table
from keras_bert.errors import CheckpointError, ConfigError, DataError
from keras_bert.progress import Progress
from keras_bert.serving import export, signatures
from keras_bert.serving.served import Served, merging_of
from keras_bert.serving.signatures import signatures_of
from keras_bert.tasks.head import Head
from keras_bert.tasks.network import HEADS, Network
from keras_bert.text.text import Text
from keras_bert.text.vocabulary import MASK
from keras_bert.text.wordpiece import WordPiece
from keras_bert.training import loop
from keras_bert.training.doors import Doors, no_trick
from keras_bert.training.finetune import Result, fit
from keras_bert.training.states import locked
from keras_bert.training.step import Trainer


class Bert:
    """A tokenizer, an encoder and a head that belong together.

    Example:
        bert = Bert.from_checkpoint("path/to/checkpoint", labels=["no", "yes"])
        bert.fit(texts, labels)
        bert.predict(["forest fire near la ronge"])    # [{"label": "yes", "score": 0.98, ...}]

        bert.save("runs/tweets")
        bert = Bert.load("runs/tweets")
        bert.export("models/tweets")

    Attributes:
        text: `text.Text`, strings to features.
        network: `network.Network`, a plain `keras.Model`: features to logits.
        data: the columns that the `keras-bert` commands read.
        windows: how long texts are read, where a call does not say.
        report: what loading filled, and what it left new.
        columns_open: whether it is a published model that does not say whether it reads pairs.
        others: further networks, with whose scores those of `network` are averaged.
    """

    def __init__(
        self, text: Text, network: Network, data: DataConfig | None = None, windows: WindowConfig | None = None
    ) -> None:
        self.text, self.network = text, network
        self.data = data or DataConfig()
        self.columns_open = False
        config = network.head.config
        if config.single and self.data.text_pair_column:
            raise ConfigError(f"{config.task} reads single texts; leave text_pair_column empty")
        if config.paired and not self.data.text_pair_column:
            self.data = dataclasses.replace(self.data, text_pair_column="text_pair")
        checkpoints.check_segments(network.encoder.config, config, self.data)
        self.windows = windows or network.head.windows(text.config.max_seq_length)
        self.report: checkpoints.Report | None = None
        self.others: tuple[Network, ...] = ()
        self._answer: dict[tuple[WindowConfig, str], Any] = {}

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        task: str = "classify",
        labels: Sequence[str] = (),
        data: DataConfig | None = None,
        dropout: float = 0.1,
        seed: int = 12345,
        head: dict[str, Any] | None = None,
        windows: dict[str, Any] | None = None,
        reinit_layers: int = 0,
        new_head: bool = False,
        drop: str = "",
        keep_keys: Sequence[str] = (),
        **text: Any,
    ) -> "Bert":
        """A pretrained encoder with a new head for `task`.

        Args:
            path: directory of a Hugging Face or google-research/bert checkpoint, or of one of our runs.
            task: "classify", "multilabel", "regress", "choice", "similarity", "tag", "span", "generate"; or "fill_mask"
                or "embed", which are what a pretrained checkpoint knows by itself.
            labels: values of the label, in the order of class ids; types of entities for "tag"; none for the others.
            seed: of the head's initial weights.
            head: further fields of `HeadConfig`, such as `{"version_2_with_negative": True}`. For "embed" and
                "similarity" pooling, dense layers, normalization and prompts are those of the checkpoint otherwise.
            windows: fields of `WindowConfig`, to read long texts otherwise than the head does by itself.
            reinit_layers: how many of the top layers start anew, and the pooler with them (Zhang et al. 2021,
                https://arxiv.org/abs/2006.05987).
            new_head: of a run, take the encoder and the pooler only, whatever it was trained for (two-stage
                fine-tuning, Phang et al. 2018, https://arxiv.org/abs/1811.01088).
            drop: pattern of names of tensors that the model does not need and may be left out.
            keep_keys: unknown keys of the checkpoint's settings that are known to leave the arithmetic alone.
            text: fields of `TextConfig` to take instead of the checkpoint's, such as `max_seq_length=256`; None
                asks the checkpoint. Its own are 128 tokens (384 for "span"; what `modules.json` of
                sentence-transformers leads to) and the case of its tokenizer, or of its vocabulary.

        Raises:
            CheckpointError: the directory has no checkpoint, or it does not fit. Without `new_head`, a run of ours
                must have been trained for the same task and labels.
            ConfigError: the labels do not suit the task, or the model has too few positions.
        """
        found, kind = checkpoints.open_checkpoint(path, keep_keys), choose(HEADS, task, "task")
        checkpoint, vectors = found, vector_settings(found, task)
        encoder_only = [task, checkpoint.head.task] if checkpoint.head else [task]
        if new_head or any(choose(TASKS, one, "task").encoder_only for one in encoder_only):
            checkpoint = dataclasses.replace(checkpoint, contents=dataclasses.replace(checkpoint.contents, head=None))
        fields: dict[str, Any] = {"task": task, "labels": list(map(str, labels)), "dropout": dropout}
        if checkpoint.head is not None and (checkpoint.head.task, list(checkpoint.head.labels)) == (
            task,
            fields["labels"],
        ):
            fields |= {name: getattr(checkpoint.head, name) for name in ("tags",) if hasattr(checkpoint.head, name)}
        config = from_dict(HeadConfig, fields | kind.settings(checkpoint.vocabulary) | vectors | (head or {}))
        if checkpoint.head is not None and (checkpoint.head.task, checkpoint.head.labels) != (
            config.task,
            config.labels,
        ):
            raise CheckpointError(
                f"{path}: was trained for {checkpoint.head.task} with labels {list(checkpoint.head.labels)}, "
                f"not for {config.task} with {list(config.labels)}; with new_head (--new_head) its encoder gets a new "
                "head"
            )
        mask = kind.attention_mask or checkpoint.encoder.attention_mask
        network = Network(dataclasses.replace(checkpoint.encoder, attention_mask=mask), config)
        if checkpoint.head is None and text.get("max_seq_length") is None:
            text["max_seq_length"] = usual_length(network.head, found)
        bert = cls(Text(checkpoint.vocabulary, checkpoints.text_config(checkpoint, text)), network, data)
        bert.windows = from_dict(WindowConfig, to_dict(bert.windows) | (windows or {}))
        fresh = starting_anew(checkpoint.encoder, reinit_layers)
        report = checkpoints.load(bert.network, checkpoint, NEW_HEAD if new_head else ((".*", False),), drop)
        anew, filled = (tuple(p for p in report.filled if rules.match(fresh, p) == new) for new in (True, False))
        bert.report = dataclasses.replace(report, filled=filled, anew=anew)
        if kind.pretrained_head and report.new:
            raise CheckpointError(
                f"{checkpoint.path}: has no head for masked words ({report.new[0]} and {len(report.new) - 1} more are "
                f"missing), which {task} answers with; take a checkpoint of pretraining that has kept it"
            )
        initialize(bert.network, (*report.new, *anew), seed)
        return bert

    @classmethod
    def load(
        cls,
        path: str | Path,
        task: str = "",
        labels: Sequence[str] = (),
        data: DataConfig | None = None,
        drop: str = "",
        keep_keys: Sequence[str] = (),
        head: dict[str, Any] | None = None,
        **text: Any,
    ) -> "Bert":
        """A model with the head that it has: of `save`, of a `keras-bert finetune` run, or published by others.

        Args:
            path: directory of any checkpoint, or the name of a published one.
            task, labels: what the head of a published checkpoint is for, and the names of its logits in their order,
                where its files do not say.
            data: the columns of files, if they are other than it says. A published checkpoint that does not say whether
                it reads pairs is asked with or without `text_pairs`.
            drop, keep_keys: see `from_checkpoint`.
            head: fields of its `HeadConfig` to take instead of the checkpoint's.
            text: fields of `TextConfig` to take instead of the checkpoint's.

        Raises:
            CheckpointError: the directory holds no trained head, or it is damaged.
            ConfigError: task, labels or settings do not fit what it holds.
        """
        found = checkpoints.open_checkpoint(path, keep_keys)
        if found.contents.masked_words and not task and not labels:
            return cls.from_checkpoint(path, task="fill_mask", head=head, drop=drop, keep_keys=keep_keys, **text)
        checkpoint = checkpoints.as_trained(found, task, labels, data)
        config = from_dict(HeadConfig, to_dict(checkpoint.head) | (head or {}))
        checkpoint = dataclasses.replace(checkpoint, contents=dataclasses.replace(checkpoint.contents, head=config))
        network = Network(checkpoint.encoder, config)
        layer = Text(checkpoint.vocabulary, checkpoints.text_config(checkpoint, text))
        bert = cls(layer, network, checkpoint.data, checkpoint.contents.windows)
        bert.columns_open = found.contents.data is None and data is None
        bert.report = checkpoints.load(bert.network, checkpoint, drop=drop)
        return bert

    @property
    def labels(self) -> tuple[str, ...]:
        """Label values in the order of class ids; empty for regression."""
        return self.network.head.config.labels

    @property
    def head(self) -> Head:
        """The head of the network."""
        return self.network.head

    @property
    def source(self) -> Source:
        """What reads the files of the task and encodes their labels."""
        return source_of(self.head.config)

    @property
    def pair(self) -> bool:
        """Does the model read pairs of texts?"""
        return bool(self.data.text_pair_column)

    def fit(
        self,
        texts: Sequence[str],
        labels: Sequence[Any] | None,
        text_pairs: Sequence[str] | None = None,
        evaluation: tuple[Any, ...] | None = None,
        config: TrainConfig | None = None,
        optimizer: OptimizerConfig | None = None,
        model_dir: str | Path | None = None,
        progress: Any = sys.stderr,
        finetune: FinetuneConfig | None = None,
        choices: Sequence[Sequence[str]] | None = None,
        trick: Callable[[Trainer], Doors] = no_trick,
    ) -> Result:
        """Fine-tune the whole network; afterwards it has the weights of the best epoch.

        Args:
            texts, text_pairs: n strings each; `text_pairs` only for pairs.
            labels: n label values (classify), comma lists of them (multilabel), numbers (regress), lists of
                `(start, end, type)` of entities (tag), lists of `(start, answer)`, empty where a question has none
                (span), starts and ends in characters; the numbers of the right choices, from 0 (choice); scores of
                pairs, or None where all pairs mean the same (similarity).
            evaluation: `(texts, labels)`, `(texts, labels, text_pairs)` or `(texts, labels, text_pairs, choices)`; None
                holds out a tenth of the rows, stratified, equal texts together.
            config, optimizer: see `TrainConfig` and `OptimizerConfig`.
            model_dir: keep checkpoints, metrics and the best model there; None keeps nothing.
            progress: stream of the progress bar and messages; None is silent.
            finetune: smoothed and weighted labels, early stopping; see `FinetuneConfig`, whose `reinit_layers` is a
                matter of `from_checkpoint`.
            choices: n lists of strings, of "choice".
            trick: changes the step, see `training.doors`.

        Raises:
            DataError: a text that is no string, a label that is missing, unknown or no number, no rows, or
                pairs for a model of single texts (and the other way round).
            DivergedError: the loss is not a number any more.
        """
        self._check_trainable()
        config = config or TrainConfig()
        self._read_pairs(text_pairs)
        rows = self._rows(texts, labels, text_pairs, choices)
        train = self.examples(rows)
        if evaluation is None:
            rest, held = hold_out(rows, self.data, self.source, 0.1, config.seed)
            train, held_out = train.take(rest), train.take(held)
        else:
            held_out = self.examples(self._rows(*evaluation))
        folder = None if model_dir is None else Path(model_dir)
        with locked(folder) if folder else contextlib.nullcontext():
            keeping = loop.Keeping(folder)
            optimizer = optimizer or OptimizerConfig()
            return self.fit_rows(train, held_out, config, optimizer, keeping, progress, finetune=finetune, trick=trick)

    def _read_pairs(self, text_pairs: Sequence[str] | None) -> None:
        """Make it a model of pairs, if it is asked with pairs and may be one."""
        if text_pairs is not None and not self.pair and not self.head.config.single:
            data = dataclasses.replace(self.data, text_pair_column="text_pair")
            checkpoints.check_segments(self.network.encoder.config, self.head.config, data)
            self.data, self._answer = data, {}

    def _check_trainable(self) -> None:
        """Raises ConfigError if fine-tuning cannot train the task."""
        if self.head.config.untrainable:
            raise ConfigError(self.head.config.untrainable)

    def fit_rows(
        self,
        train: Table | Examples,
        evaluation: Table | Examples,
        config: TrainConfig,
        optimizer: OptimizerConfig,
        keeping: loop.Keeping,
        progress: Any,
        say: loop.Say | None = None,
        finetune: FinetuneConfig | None = None,
        trick: Callable[[Trainer], Doors] = no_trick,
    ) -> Result:
        """`fit` for rows of files, with the columns named by `data`, or for what `examples` made of them.

        Raises:
            ConfigError: there is nothing to fine-tune.
        """
        self._check_trainable()
        head, train, evaluation = self.head, self.examples(train), self.examples(evaluation)
        head.config = head.config_for(train.table is None or self.data.label_column in train.table.columns)
        if head.whole_batch and config.grad_accum_steps > 1:
            raise ConfigError(
                f"the loss of {head.config.task} needs the whole batch at once: leave grad_accum_steps at 1"
            )

        def save_best(network: Network, record: dict[str, Any]) -> None:
            if keeping.folder is not None:
                self.save(keeping.folder, notes=record)

        def to_progress(line: str) -> None:
            if progress is not None:
                print(line, file=progress, flush=True)

        say, text = say or to_progress, head.prepare_text(self.text)
        for line in head.warnings(train, text):
            say(line)
        result = fit(
            self.network,
            text,
            train,
            evaluation,
            config,
            optimizer,
            keeping,
            save_best,
            say,
            progress,
            self.windows,
            finetune,
            trick,
        )
        self._answer = {}
        return result

    def examples(self, rows: Table | Examples, labelled: bool = True) -> Examples:
        """The rows' texts, and their labels as numbers; examples stay as they are.

        Raises:
            DataError: a label cannot be used; the file and line are named.
        """
        if isinstance(rows, Examples):
            return rows
        tokenizer = functools.partial(wordpiece, self.text)
        return self.source.examples(rows, self.data, self.head.config, tokenizer, labelled)

    def predict(
        self,
        texts: Sequence[str],
        text_pairs: Sequence[str] | None = None,
        batch_size: int = 64,
        progress: Any = None,
        windows: WindowConfig | None = None,
        choices: Sequence[Sequence[str]] | None = None,
    ) -> list[dict[str, Any]]:
        """Answers for texts, in their order, equal to those of the exported model.

        Args:
            windows: how texts that are too long are read; None is `self.windows`.

        Returns:
            For each text a dict: `label`, `score` and `scores` (label -> score, best first) for classify;
            `labels` (the active ones) and `scores` for multilabel; `score` for regress; for choice `choice`, its number
            from 0, `answer`, its text, `score`, and `scores` in the order of the choices; `similarity` for similarity;
            `embedding`, a list, for embed; `entities` for tag, dicts of
            `type`, `text`, `score`, `start`, `end`, `start_byte` and `end_byte`; for span `answer` ("" where there is
            none), `score`, `start`, `end`, `start_byte`, `end_byte` (-1 where there is none), `null_score_diff` and
            `nbest`, the best spans; for fill_mask `filled`, the text with the best words in it, `num_masks`, and
            `masks`, dicts of `tokens` and their `scores`, `start` and `end`; for generate `generated`, its `score`,
            whether it `ended` by itself, and `nbest`; and always `truncated`.

        Raises:
            DataError: a text is no string, or the model needs pairs and got single texts, or the other way
                round.
        """
        return self.plain(self.arrays(texts, text_pairs, batch_size, progress, windows, choices))

    def plain(self, arrays: dict[str, np.ndarray]) -> list[dict[str, Any]]:
        """What `arrays` gives, as `predict` gives it."""
        rows = ({name: values[i] for name, values in arrays.items()} for i in range(len(arrays["truncated"])))
        return [self.head.plain(row) | {"truncated": bool(row["truncated"])} for row in rows]

    def evaluate(
        self, rows: Table | Examples, batch_size: int = 64, progress: Any = None, windows: WindowConfig | None = None
    ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Metrics of the model on labelled rows, and what `arrays` gives for them.

        Raises:
            DataError: a label cannot be used; the file and line are named.
        """
        labelled = self.examples(rows)
        texts = self.examples(labelled.rows, labelled=False)  # a labelled segment would be part of the answer
        answers = self.arrays_of(texts, batch_size, progress, windows)
        if self.head.config.reads == "each":  # vectors rank pairs; they are no output of a served model
            answers["embeddings"] = np.stack([self.embed(column, batch_size) for column in texts.segments], axis=1)
        return self.head.metrics_of(labelled.truth, answers), answers

    def arrays(
        self,
        texts: Sequence[str],
        text_pairs: Sequence[str] | None = None,
        batch_size: int = 64,
        progress: Any = None,
        windows: WindowConfig | None = None,
        choices: Sequence[Sequence[str]] | None = None,
    ) -> dict[str, np.ndarray]:
        """What `served.Served.answer` gives for the texts, as NumPy arrays with one row a text, in their order."""
        if self.columns_open:
            self._read_pairs(text_pairs)
        return self.arrays_of(Examples(self._texts(texts, text_pairs, choices)), batch_size, progress, windows)

    def arrays_of(
        self, examples: Examples, batch_size: int = 64, progress: Any = None, windows: WindowConfig | None = None
    ) -> dict[str, np.ndarray]:
        """`arrays` of the texts of `examples`."""
        numbers, parts = [], []
        for batch, answer in self._asked("serving_default", examples, batch_size, progress, windows):
            numbers.append(batch)
            parts.append(answer)
        back = np.argsort(np.concatenate(numbers), kind="stable")
        return {name: np.concatenate([p[name] for p in parts])[back] for name in parts[0]}

    def embed(
        self, texts: Sequence[str], batch_size: int = 64, progress: Any = None, kind: str = "embedding"
    ) -> np.ndarray:
        """A vector of each text, float32 `[n, E]`: what the signature `embedding` gives.

        Args:
            kind: "query" or "document" for the signature of that name, with the model's prompt for it.

        Raises:
            ConfigError: the model has no such signature.
        """
        self._has(kind)
        rows: dict[int, np.ndarray] = {}
        for batch, answer in self._asked(kind, Examples((strings("texts", texts),)), batch_size, progress):
            rows |= dict(zip(batch.tolist(), answer["embedding"], strict=True))
        return np.stack([rows[i] for i in range(len(rows))]) if rows else answer["embedding"]

    def embed_tokens(
        self, texts: Sequence[str], batch_size: int = 64, progress: Any = None
    ) -> list[tuple[list[str], np.ndarray]]:
        """The tokens of each text, [CLS] and [SEP] too, and their vectors, float32 `[tokens, E]`.

        Raises:
            ConfigError: the task of the model is not "embed" or "similarity".
        """
        self._has("token_embeddings")
        tokens: dict[int, tuple[list[str], np.ndarray]] = {}
        for batch, rows in self._asked("token_embeddings", Examples((strings("texts", texts),)), batch_size, progress):
            for i, pieces, vectors in zip(batch.tolist(), rows["tokens"], rows["embeddings"], strict=True):
                pieces_read = [piece.decode("utf-8") for piece in pieces if piece]
                tokens[i] = pieces_read, vectors[: len(pieces_read)].copy()
        return [tokens[i] for i in range(len(tokens))]

    def rerank(self, queries: Sequence[str], documents: Sequence[Sequence[str]]) -> list[list[tuple[int, float]]]:
        """For each query the numbers of its documents from the best to the worst, with their scores.

        Raises:
            ConfigError: the model does not give a score to pairs of texts.
            DataError: a query or document is no string, or there are not as many lists of documents as queries.
        """
        given = strings("queries", queries), [strings(f"documents[{i}]", row) for i, row in enumerate(documents)]
        if len(given[0]) != len(given[1]):
            raise DataError(f"{len(given[0])} queries but {len(given[1])} lists of documents; each query needs one")
        if self.columns_open:
            self._read_pairs(given[0])
        ask = self._signature("rerank", self.windows)
        found = []
        for query, row in zip(*given, strict=True):
            answer = ask(encoded([query]), np.array([encoded(row)]) if row else np.zeros((1, 0), "S1"))
            both = zip(answer["indices"][0].numpy().tolist(), answer["scores"][0].numpy().tolist(), strict=True)
            found.append([(number, score) for number, score in both if number >= 0])
        return found

    def _signature(self, name: str, windows: WindowConfig) -> Any:
        """A signature of the model as a function; raises ConfigError if it has none of this name."""
        if (windows, name) not in self._answer:
            served = Served(self.text, self.network, self.pair, windows, self.others)
            made = signatures_of(served)
            if name not in made:
                raise ConfigError(f"this model for {self.head.config.task} has no signature {name}; {NEEDED.get(name)}")
            self._answer[windows, name] = made[name]
        return self._answer[windows, name]

    def _has(self, name: str) -> None:
        """Raises ConfigError where the model has no signature of this name."""
        task = self.head.config.task
        if name not in signatures.table_of(self.head, 1 + len(self.others)):
            raise ConfigError(f"a model for {task} has no {name}; take the task embed or similarity")
        if self.pair and self.head.config.reads == "row":
            raise ConfigError(f"this model for {task} reads pairs as one row; take the task embed")

    def _asked(
        self,
        name: str,
        examples: Examples,
        batch_size: int = 64,
        progress: Any = None,
        windows: WindowConfig | None = None,
    ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Numbers of the rows of a batch, and what the signature `name` gives for them; at least one batch."""
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
        windows = windows or self.windows
        asked = self._signature(name, windows)
        with Progress("predict", len(examples), progress) as bar:
            segments = examples.columns
            for batch in self._batches(examples, batch_size, windows) or [np.zeros(0, np.int64)]:
                columns: list[Any] = [encoded(c[i] for i in batch) for c in segments]
                if self.head.config.reads == "choices" and not len(batch):
                    columns[-1] = np.zeros((0, 1), "S1")
                answer = asked(*columns)
                yield batch, {name: value.numpy() for name, value in answer.items()}
                bar.add(len(batch))

    def _batches(self, examples: Examples, batch_size: int, windows: WindowConfig) -> list[np.ndarray]:
        """Batches of about `batch_size` windows, of rows of like length."""
        longest = self.text.config.max_seq_length
        tokens = lengths(examples, self.text, cut=False, how=self.head.config.reads)
        stride = windows.doc_stride or max(1, longest // 4)
        counts = np.minimum(1 + np.maximum(tokens - longest, 0) // stride, windows.max_windows)
        return batches_in_order(np.minimum(tokens, longest), batch_size, counts)

    def save(self, path: str | Path, notes: dict[str, Any] | None = None) -> None:
        """Write weights, vocabulary, labels and settings to a directory; `load` reads it.

        Raises:
            CheckpointError: the directory cannot be written.
        """
        windows = self.windows if self.head.config.reads == "windows" else None
        checkpoints.save(path, self.network, self.text.vocabulary, self.text.config, self.data, notes, windows)

    def export(self, export_dir: str | Path, version: int | None = None, **options: Any) -> Path:
        """Write a SavedModel that takes strings to `export_dir/VERSION`; for the options see `export.export`."""
        options |= {"windows": options.get("windows") or self.windows, "others": self.others}
        return export.export(self.text, self.network, self.pair, export_dir, version, **options)

    def _rows(
        self,
        texts: Sequence[str],
        labels: Sequence[Any] | None,
        pairs: Sequence[str] | None = None,
        choices: Sequence[Sequence[str]] | None = None,
    ) -> Table:
        segments = self._texts(texts, pairs, choices)
        source = self.source
        columns: dict[str, list[Any]] = dict(zip(source.segment_columns(self.data), segments, strict=True))
        if labels is not None:
            columns[self.data.label_column] = [source.value(label) for label in labels]
        elif not source.labels_optional:
            raise DataError("labels are missing; only similarity learns from pairs alone")
        sizes = {name: len(values) for name, values in columns.items()}
        if len(set(sizes.values())) > 1:
            raise DataError(f"texts and labels must be equally many, got {sizes}")
        if not segments[0]:
            raise DataError("there are no texts; training and evaluation need at least one row each")
        return Table(columns, ["row"] * len(segments[0]), list(range(1, len(segments[0]) + 1)))

    def _texts(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        choices: Sequence[Sequence[str]] | None = None,
    ) -> tuple[list[Any], ...]:
        """The texts as lists, if they are what this model reads."""
        if self.pair != (pairs is not None):
            raise DataError("this model reads " + ("pairs: give text_pairs too" if self.pair else "single texts"))
        if (self.head.config.reads == "choices") != (choices is not None):
            raise DataError("this model chooses: give choices too" if choices is None else "this model has no choices")
        columns: list[list[Any]] = [strings("texts", texts)]
        if pairs is not None:
            columns.append(strings("text_pairs", pairs))
        if choices is not None:
            columns.append(filled([strings(f"choices[{i}]", row) for i, row in enumerate(choices)]))
        return tuple(columns)


class Ensemble(Bert):
    """Models of the same task and labels, such as those of folds, that answer with the mean of their scores.

    Exported, they are one SavedModel. Training and saving are matters of each of them.

    Args:
        members: one or more; threshold and windows are those of the first.

    Raises:
        ConfigError: the task has no scores of whole rows; or labels, vocabularies or how texts are read differ.
    """

    def __init__(self, members: Sequence[Bert]) -> None:
        first, labels = members[0], {member.labels for member in members}
        super().__init__(first.text, first.network, first.data, first.windows)
        merging_of(self.head, "of several models")
        if len(labels) > 1:
            raise ConfigError(f"models with different labels cannot answer together: {sorted(labels)}")
        for member in members[1:]:
            if (member.text.config, member.text.vocabulary) != (first.text.config, first.text.vocabulary):
                raise ConfigError("models that read texts differently cannot answer together")
        self.others = tuple(member.network for member in members[1:])

    def save(self, path: str | Path, notes: dict[str, Any] | None = None) -> None:
        """A directory holds one model.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"{1 + len(self.others)} models cannot be saved as one; save each of them")


PROMPTS = "give query_prompt or document_prompt, which its files do not name"
NEEDED = {"query": PROMPTS, "document": PROMPTS, "rerank": "it takes the task regress on pairs of texts"}
"""What a model lacks that has no signature of this name."""


def usual_length(head: Head, checkpoint: checkpoints.Checkpoint) -> int | None:
    """Longest row in tokens of a new head; None for that of the checkpoint."""
    if head.config.longest_row:
        return min(head.config.longest_row, checkpoint.encoder.max_positions)
    said = checkpoint.contents.head  # asked without training, it reads rows as long as the model can
    trainable = checkpoint.head is None and said is not None and not said.untrainable
    return min(TextConfig().max_seq_length, checkpoint.text.max_seq_length) if trainable else None


def wordpiece(text: Text) -> WordPiece:
    """The tokenizer of a text layer in plain Python, which knows masks."""
    return WordPiece(text.vocabulary, special_tokens=(MASK,), **text.config.tokenizer)


def strings(name: str, values: Sequence[str]) -> list[str]:
    """`values` as a list.

    Raises:
        DataError: it is one string or no list, or holds something that is no string.
    """
    try:
        texts = None if isinstance(values, str | bytes) else list(values)
    except TypeError:  # a scalar array or tensor, None, a number
        texts = None
    if texts is None:
        raise DataError(f"{name} must be a list of strings; put a single text into a list")
    for i, value in enumerate(texts):
        if not isinstance(value, str):
            raise DataError(f"{name}[{i}] is {value!r}, a {type(value).__name__} and not a string")
    return texts


NEW_HEAD: rules.Rules[bool] = (
    (r"^head/(pooler|masked_lm)/", False),
    (r"^head/", True),
    (".*", False),
)
"""Which weights of a run are not read if it gets a new head: those that only its task has."""


def vector_settings(checkpoint: checkpoints.Checkpoint, task: str) -> dict[str, Any]:
    """How a checkpoint makes the vector of a text, as fields of a head for `task`; nothing where either has none.

    Raises:
        CheckpointError: the task compares vectors by their cosine, and the checkpoint in another way.
    """
    found, kind = checkpoint.vectors, choose(TASKS, task, "task")
    if found is None or not issubclass(kind, VectorConfig):
        return {}
    said = checkpoint.contents.origin("sentence_transformers", PROMPTS_FILE).get("similarity_fn_name")
    usual = ("cosine", "dot", None) if found.normalize else ("cosine", None)
    if kind.paired and said not in usual:
        raise CheckpointError(
            f"{checkpoint.path}: similarity_fn_name {said!r} is not supported; similarity is the cosine; the task "
            "embed gives the vectors"
        )
    names = [f.name for f in dataclasses.fields(VectorConfig) if f.name not in ("task", "labels", "dropout")]
    return {name: value for name, value in to_dict(found).items() if name in names}


def starting_anew(encoder: EncoderConfig, layers: int) -> list[tuple[str, bool]]:
    """Which weights do not come from a checkpoint, by weight path: those of the top layers, if any, and of the pooler.

    Raises:
        ConfigError: the encoder has fewer layers.
    """
    blocks = encoder.num_blocks
    if layers > blocks:
        raise ConfigError(f"reinit_layers {layers} is more than the {blocks} layers of the model")
    top = [(rf"(^|/)encoder/block_{i}/", True) for i in range(blocks - layers, blocks)]
    return [*top, (r"(^|/)pooler/", layers > 0), (".*", False)]


def initialize(network: Network, paths: Sequence[str], seed: int) -> None:
    """Initial values for the weights `paths`, the same for the same seed: truncated normal, biases 0, norms 1 and 0.

    Those of a BiLSTM are Keras' own: uniform (Glorot & Bengio 2010), orthogonal where it comes back to itself.
    """
    draws, stddev = keras.initializers, network.encoder.config.initializer_range
    kinds: rules.Rules[Any] = (
        (r"/(bias|beta)$", lambda seed: draws.Zeros()),
        (r"/gamma$", lambda seed: draws.Ones()),
        (r"/lstm/.*/recurrent_kernel$", lambda seed: draws.Orthogonal(seed=seed)),
        (r"/lstm/", lambda seed: draws.GlorotUniform(seed=seed)),
        (r".*", lambda seed: draws.TruncatedNormal(stddev=stddev, seed=seed)),
    )
    for i, path in enumerate(sorted(paths)):
        variable = next(v for v in network.weights if v.path == path)
        variable.assign(rules.match(kinds, path)(seed + i)(variable.shape))
