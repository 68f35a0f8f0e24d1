"""`Bert`: texts in, answers out. The whole package behind one small class; plain Keras underneath."""

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_bert import checkpoints, readers, serving, training
from keras_bert.answers import ANSWERS
from keras_bert.config import (
    DataConfig,
    HeadConfig,
    OptimizerConfig,
    TrainConfig,
    WindowConfig,
    from_dict,
    to_dict,
)
from keras_bert.data import Examples, Rows, batches_in_order, encode_labels, encoded, hold_out, lengths
from keras_bert.errors import CheckpointError, ConfigError, DataError
from keras_bert.heads import Network
from keras_bert.progress import Progress
from keras_bert.runs import locked
from keras_bert.text import Text


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
        network: `heads.Network`, a plain `keras.Model`: features to logits.
        data: the columns that the `keras-bert` commands read.
        windows: how long texts are read, where a call does not say.
        report: what loading filled, and what it left new.
    """

    def __init__(
        self, text: Text, network: Network, data: DataConfig | None = None, windows: WindowConfig | None = None
    ) -> None:
        self.text, self.network = text, network
        self.data = data or DataConfig()
        if network.head.config.task == "span" and not self.data.text_pair_column:
            self.data = dataclasses.replace(self.data, text_pair_column="text_pair")
        self.windows = windows or network.head.windows(text.config.max_seq_length)
        self.report: checkpoints.Report | None = None
        self._answer: dict[WindowConfig, Any] = {}

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
        **text: Any,
    ) -> "Bert":
        """A pretrained encoder with a new head for `task`.

        Args:
            path: directory of a Hugging Face or google-research/bert checkpoint, or of one of our runs.
            task: "classify", "multilabel", "regress", "tag" or "span".
            labels: values of the label, in the order of class ids; types of entities for "tag", none for "regress"
                and "span".
            seed: of the head's initial weights.
            head: further fields of `HeadConfig`, such as `{"version_2_with_negative": True}`.
            windows: fields of `WindowConfig`, to read long texts otherwise than the head does by itself.
            text: fields of `TextConfig` to take instead of the checkpoint's, such as `max_seq_length=256`; None
                asks the checkpoint. Its own are 128 tokens (384 for "span") and the case of its tokenizer, or of its
                vocabulary.

        Raises:
            CheckpointError: the directory has no checkpoint, or it does not fit. A run of ours must have
                been trained for the same task and labels.
            ConfigError: the labels do not suit the task, or the model has too few positions.
        """
        found = checkpoints.open_checkpoint(path)
        config = from_dict(
            HeadConfig, {"task": task, "labels": list(map(str, labels)), "dropout": dropout} | (head or {})
        )
        if found.head is not None and (found.head.task, found.head.labels) != (config.task, config.labels):
            raise CheckpointError(
                f"{path}: was trained for {found.head.task} with labels {list(found.head.labels)}, "
                f"not for {config.task} with {list(config.labels)}"
            )
        network = Network(found.encoder, config)
        if network.head.max_seq_length and found.head is None and text.get("max_seq_length") is None:
            text["max_seq_length"] = min(network.head.max_seq_length, found.encoder.max_positions)
        bert = cls(Text(found.vocabulary, checkpoints.text_config(found, text)), network, data)
        bert.windows = from_dict(WindowConfig, to_dict(bert.windows) | (windows or {}))
        bert.report = checkpoints.load(bert.network, found)
        initialize(bert.network, bert.report.new, seed)
        return bert

    @classmethod
    def load(cls, path: str | Path) -> "Bert":
        """A model that was saved with `save`, or the best epoch of a `keras-bert finetune` run.

        Raises:
            CheckpointError: the directory holds no model of ours, or it is damaged.
        """
        found = checkpoints.open_checkpoint(path)
        if found.head is None or found.data is None:
            raise CheckpointError(
                f"{path}: a {found.format} checkpoint has no trained head; fine-tune it first "
                "(`keras-bert finetune`, or Bert.from_checkpoint and fit)"
            )
        network = Network(found.encoder, found.head)
        bert = cls(Text(found.vocabulary, found.text), network, found.data, found.contents.windows)
        bert.report = checkpoints.load(bert.network, found)
        return bert

    @property
    def labels(self) -> tuple[str, ...]:
        """Label values in the order of class ids; empty for regression."""
        return self.network.head.config.labels

    @property
    def pair(self) -> bool:
        """Does the model read pairs of texts?"""
        return bool(self.data.text_pair_column)

    def fit(
        self,
        texts: Sequence[str],
        labels: Sequence[Any],
        text_pairs: Sequence[str] | None = None,
        evaluation: tuple[Any, ...] | None = None,
        config: TrainConfig | None = None,
        optimizer: OptimizerConfig | None = None,
        model_dir: str | Path | None = None,
        progress: Any = sys.stderr,
    ) -> training.Result:
        """Fine-tune the whole network; afterwards it has the weights of the best epoch.

        Args:
            texts, text_pairs: n strings each; `text_pairs` only for pairs.
            labels: n label values (classify), comma lists of them (multilabel), numbers (regress), lists of
                `(start, end, type)` of entities (tag), or lists of `(start, answer)`, empty where a question has none
                (span); starts and ends in characters.
            evaluation: `(texts, labels)` or `(texts, labels, text_pairs)`; None holds out a tenth of the
                rows, stratified, equal texts together.
            config, optimizer: see `TrainConfig` and `OptimizerConfig`.
            model_dir: keep checkpoints, metrics and the best model there; None keeps nothing.
            progress: stream of the progress bar and messages; None is silent.

        Raises:
            DataError: a text that is no string, a label that is missing, unknown or no number, no rows, or
                pairs for a model of single texts (and the other way round).
            DivergedError: the loss is not a number any more.
        """
        config = config or TrainConfig()
        if text_pairs is not None and not self.pair:
            self.data = dataclasses.replace(self.data, text_pair_column="text_pair")
        rows = self._rows(texts, labels, text_pairs)
        if evaluation is None:
            kept, held = hold_out(rows, self.data, self.network.head.config.task, 0.1, config.seed)
            rows, held_out = rows.take(kept), rows.take(held)
        else:
            held_out = self._rows(*evaluation)
        folder = None if model_dir is None else Path(model_dir)
        with locked(folder) if folder else contextlib.nullcontext():
            keeping = training.Keeping(folder)
            return self.fit_rows(rows, held_out, config, optimizer or OptimizerConfig(), keeping, progress)

    def fit_rows(
        self,
        train: Rows,
        evaluation: Rows,
        config: TrainConfig,
        optimizer: OptimizerConfig,
        keeping: training.Keeping,
        progress: Any,
        say: training.Say | None = None,
    ) -> training.Result:
        """`fit` for rows of files, with the columns named by `data`."""

        def save_best(network: Network, record: dict[str, Any]) -> None:
            if keeping.folder is not None:
                self.save(keeping.folder, notes=record)

        def to_progress(line: str) -> None:
            if progress is not None:
                print(line, file=progress, flush=True)

        result = training.fit(
            self.network,
            self.text,
            self.examples(train),
            self.examples(evaluation),
            config,
            optimizer,
            keeping,
            save_best,
            say or to_progress,
            progress,
            self.windows,
        )
        self._answer = {}
        return result

    def examples(self, rows: Rows, labelled: bool = True) -> Examples:
        """The rows' texts, and their labels as numbers.

        Raises:
            DataError: a label cannot be used; the file and line are named.
        """
        columns = (self.data.text_column, self.data.text_pair_column)
        segments = tuple(rows[name] for name in columns if name)
        if not labelled:
            return Examples(segments)
        return Examples(segments, *encoded_labels(rows, self.data, self.network.head.config))

    def predict(
        self,
        texts: Sequence[str],
        text_pairs: Sequence[str] | None = None,
        batch_size: int = 64,
        progress: Any = None,
        windows: WindowConfig | None = None,
    ) -> list[dict[str, Any]]:
        """Answers for texts, in their order, equal to those of the exported model.

        Args:
            windows: how texts that are too long are read; None is `self.windows`.

        Returns:
            For each text a dict: `label`, `score` and `scores` (label -> score, best first) for classify;
            `labels` (the active ones) and `scores` for multilabel; `score` for regress; `entities` for tag, dicts of
            `type`, `text`, `score`, `start`, `end`, `start_byte` and `end_byte`; for span `answer` ("" where there is
            none), `score`, `start`, `end`, `start_byte`, `end_byte` (-1 where there is none), `null_score_diff` and
            `nbest`, the best spans; and always `truncated`.

        Raises:
            DataError: a text is no string, or the model needs pairs and got single texts, or the other way
                round.
        """
        return self.plain(self.arrays(texts, text_pairs, batch_size, progress, windows))

    def plain(self, found: dict[str, np.ndarray]) -> list[dict[str, Any]]:
        """What `arrays` gives, as `predict` gives it."""
        answer = ANSWERS[self.network.head.config.task]
        rows = ({name: values[i] for name, values in found.items()} for i in range(len(found["truncated"])))
        return [answer(row) | {"truncated": bool(row["truncated"])} for row in rows]

    def evaluate(
        self, rows: Rows, batch_size: int = 64, progress: Any = None, windows: WindowConfig | None = None
    ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Metrics of the model on labelled rows, and what `arrays` gives for them.

        Raises:
            DataError: a label cannot be used; the file and line are named.
        """
        truth = self.examples(rows).truth
        pairs = rows[self.data.text_pair_column] if self.pair else None
        found = self.arrays(rows[self.data.text_column], pairs, batch_size, progress, windows)
        return self.network.head.metrics_of(truth, found), found

    def arrays(
        self,
        texts: Sequence[str],
        text_pairs: Sequence[str] | None = None,
        batch_size: int = 64,
        progress: Any = None,
        windows: WindowConfig | None = None,
    ) -> dict[str, np.ndarray]:
        """What `serving.Served.answer` gives for the texts, as NumPy arrays with one row a text, in their order."""
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
        examples = Examples(self._texts(texts, text_pairs))
        windows = windows or self.windows
        if windows not in self._answer:
            self._answer[windows] = serving.signature(self.text, self.network, self.pair, windows)
        batches = self._batches(examples, batch_size, windows) or [np.zeros(0, np.int64)]
        parts = []
        with Progress("predict", len(examples), progress) as bar:
            for batch in batches:
                answer = self._answer[windows](*(encoded(c[i] for i in batch) for c in examples.segments))
                parts.append({name: value.numpy() for name, value in answer.items()})
                bar.add(len(batch))
        back = np.argsort(np.concatenate(batches), kind="stable")
        return {name: np.concatenate([p[name] for p in parts])[back] for name in parts[0]}

    def _batches(self, examples: Examples, batch_size: int, windows: WindowConfig) -> list[np.ndarray]:
        """Batches of about `batch_size` windows, of rows of like length."""
        longest = self.text.config.max_seq_length
        tokens = lengths(examples, self.text, cut=False)
        stride = windows.doc_stride or max(1, longest // 4)
        counts = np.minimum(1 + np.maximum(tokens - longest, 0) // stride, windows.max_windows)
        return batches_in_order(np.minimum(tokens, longest), batch_size, counts)

    def save(self, path: str | Path, notes: dict[str, Any] | None = None) -> None:
        """Write weights, vocabulary, labels and settings to a directory; `load` reads it.

        Raises:
            CheckpointError: the directory cannot be written.
        """
        located = self.network.head.located
        windows = self.windows if located else None
        checkpoints.save(path, self.network, self.text.vocabulary, self.text.config, self.data, notes, windows)

    def export(self, export_dir: str | Path, version: int | None = None, **options: Any) -> Path:
        """Write a SavedModel that takes strings to `export_dir/VERSION`; for the options see `serving.export`."""
        options["windows"] = options.get("windows") or self.windows
        return serving.export(self.text, self.network, self.pair, export_dir, version, **options)

    def _rows(self, texts: Sequence[str], labels: Sequence[Any], pairs: Sequence[str] | None = None) -> Rows:
        segments = self._texts(texts, pairs)
        names = (self.data.text_column, self.data.text_pair_column)
        columns: dict[str, list[Any]] = dict(zip(names, segments, strict=False))
        located = self.network.head.located
        columns[self.data.label_column] = [list(v) if located else str(v) for v in labels]
        sizes = {name: len(values) for name, values in columns.items()}
        if len(set(sizes.values())) > 1:
            raise DataError(f"texts and labels must be equally many, got {sizes}")
        if not segments[0]:
            raise DataError("there are no texts; training and evaluation need at least one row each")
        return Rows(columns, ["row"] * len(segments[0]), list(range(1, len(segments[0]) + 1)))

    def _texts(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> tuple[list[str], ...]:
        """The texts as lists, if they are what this model reads."""
        if self.pair != (pairs is not None):
            raise DataError("this model reads " + ("pairs: give text_pairs too" if self.pair else "single texts"))
        first = strings("texts", texts)
        return (first,) if pairs is None else (first, strings("text_pairs", pairs))


def encoded_labels(rows: Rows, data: DataConfig, head: HeadConfig) -> tuple[Any, Any]:
    """Labels and references of `data.Examples`.

    Raises:
        DataError: a label cannot be used; the file and line are named.
    """
    if head.task == "tag":
        return readers.encode_entities(rows, data, head.labels), None
    if head.task == "span":
        passages = encoded(rows[data.text_pair_column])
        golds = [[text for _, text in answers] for answers in rows[data.label_column]]
        return readers.encode_answers(rows, data), list(zip(passages, golds, strict=True))
    return encode_labels(rows, data.label_column, head.task, head.labels), None


def strings(name: str, values: Sequence[str]) -> list[str]:
    """`values` as a list.

    Raises:
        DataError: it is one string, or holds something that is none.
    """
    if isinstance(values, str):
        raise DataError(f"{name} must be a list of strings; put a single text into a list")
    found = list(values)
    for i, value in enumerate(found):
        if not isinstance(value, str):
            raise DataError(f"{name}[{i}] is {value!r}, a {type(value).__name__} and not a string")
    return found


def initialize(network: Network, paths: Sequence[str], seed: int) -> None:
    """Initial values for the weights `paths`, the same for the same seed: truncated normal, biases zero."""
    stddev = network.encoder.config.initializer_range
    for i, path in enumerate(sorted(paths)):
        variable = next(v for v in network.weights if v.path == path)
        if not path.endswith("bias"):
            draw = keras.initializers.TruncatedNormal(stddev=stddev, seed=seed + i)
            variable.assign(draw(variable.shape))
