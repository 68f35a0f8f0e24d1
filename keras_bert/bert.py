"""`Bert`: texts in, answers out. The whole package behind one small class; plain Keras underneath."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_bert import checkpoints, serving, training
from keras_bert.config import DataConfig, HeadConfig, OptimizerConfig, TrainConfig
from keras_bert.data import Examples, Rows, batches_in_order, encode_labels, hold_out, lengths
from keras_bert.errors import CheckpointError, ConfigError, DataError
from keras_bert.heads import Network
from keras_bert.progress import Progress
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
        report: what loading filled, and what it left new.
    """

    def __init__(self, text: Text, network: Network, data: DataConfig | None = None) -> None:
        self.text, self.network = text, network
        self.data = data or DataConfig()
        self.report: checkpoints.Report | None = None
        self._answer: Any = None

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        task: str = "classify",
        labels: Sequence[str] = (),
        data: DataConfig | None = None,
        dropout: float = 0.1,
        seed: int = 12345,
        **text: Any,
    ) -> "Bert":
        """A pretrained encoder with a new head for `task`.

        Args:
            path: directory of a Hugging Face or google-research/bert checkpoint, or of one of our runs.
            task: "classify", "multilabel" or "regress".
            labels: values of the label, in the order of class ids; none for "regress".
            seed: of the head's initial weights.
            text: fields of `TextConfig` to take instead of the checkpoint's, such as `max_seq_length=256`; None
                asks the checkpoint. Its own are 128 tokens and the case of its tokenizer, or of its vocabulary.

        Raises:
            CheckpointError: the directory has no checkpoint, or it does not fit. A run of ours must have
                been trained for the same task and labels.
            ConfigError: the labels do not suit the task, or the model has too few positions.
        """
        found = checkpoints.open_checkpoint(path)
        head = HeadConfig(task=task, labels=tuple(map(str, labels)), dropout=dropout)
        if found.head is not None and (found.head.task, found.head.labels) != (head.task, head.labels):
            raise CheckpointError(
                f"{path}: was trained for {found.head.task} with labels {list(found.head.labels)}, "
                f"not for {head.task} with {list(head.labels)}"
            )
        config = checkpoints.text_config(found, text)
        bert = cls(Text(found.vocabulary, config), Network(found.encoder, head), data)
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
        bert = cls(Text(found.vocabulary, found.text), Network(found.encoder, found.head), found.data)
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
            labels: n label values (classify), comma lists of them (multilabel), or numbers (regress).
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
        return self.fit_rows(rows, held_out, config, optimizer or OptimizerConfig(), model_dir, progress)

    def fit_rows(
        self,
        train: Rows,
        evaluation: Rows,
        config: TrainConfig,
        optimizer: OptimizerConfig,
        model_dir: str | Path | None,
        progress: Any,
        say: training.Say | None = None,
    ) -> training.Result:
        """`fit` for rows of files, with the columns named by `data`."""
        folder = None if model_dir is None else Path(model_dir)

        def save_best(network: Network, record: dict[str, Any]) -> None:
            if folder is not None:
                self.save(folder, notes=record)

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
            folder,
            save_best,
            say or to_progress,
            progress,
        )
        self._answer = None
        return result

    def examples(self, rows: Rows, labelled: bool = True) -> Examples:
        """The rows' texts, and their labels as numbers.

        Raises:
            DataError: a label cannot be used; the file and line are named.
        """
        head = self.network.head.config
        labels = encode_labels(rows, self.data.label_column, head.task, head.labels) if labelled else None
        pairs = rows[self.data.text_pair_column] if self.pair else None
        return Examples(rows[self.data.text_column], pairs, labels)

    def predict(
        self,
        texts: Sequence[str],
        text_pairs: Sequence[str] | None = None,
        batch_size: int = 64,
        progress: Any = None,
    ) -> list[dict[str, Any]]:
        """Answers for texts, in their order, equal to those of the exported model.

        Returns:
            For each text a dict: `label`, `score` and `scores` (label -> score, best first) for classify;
            `labels` (the active ones) and `scores` for multilabel; `score` for regress; and always
            `truncated`.

        Raises:
            DataError: a text is no string, or the model needs pairs and got single texts, or the other way
                round.
        """
        found = self.arrays(texts, text_pairs, batch_size, progress)
        out: list[dict[str, Any]] = []
        for i in range(len(found["truncated"])):
            row = {name: values[i] for name, values in found.items()}
            names = [n.decode("utf-8") for n in row.get("labels", ())]
            answer: dict[str, Any] = {}
            if "label" in row:
                answer["label"] = row["label"].decode("utf-8")
            if "score" in row:
                answer["score"] = float(row["score"])
            if "active" in row:
                answer["labels"] = [n for n, on in zip(names, row["active"], strict=True) if on]
            if names:
                answer["scores"] = {n: float(s) for n, s in zip(names, row["scores"], strict=True)}
            out.append(answer | {"truncated": bool(row["truncated"])})
        return out

    def arrays(
        self,
        texts: Sequence[str],
        text_pairs: Sequence[str] | None = None,
        batch_size: int = 64,
        progress: Any = None,
    ) -> dict[str, np.ndarray]:
        """What `serving.serve` gives for the texts, as NumPy arrays with one row a text, in their order."""
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
        examples = Examples(*self._texts(texts, text_pairs))
        if self._answer is None:
            self._answer = serving.signature(self.text, self.network, self.pair)
        batches = batches_in_order(lengths(examples, self.text), batch_size) or [np.zeros(0, np.int64)]
        parts = []
        with Progress("predict", len(examples), progress) as bar:
            for batch in batches:
                columns = [examples.texts] if examples.pairs is None else [examples.texts, examples.pairs]
                answer = self._answer(*([encode(c[i]) for i in batch] for c in columns))
                parts.append({name: value.numpy() for name, value in answer.items()})
                bar.add(len(batch))
        back = np.argsort(np.concatenate(batches), kind="stable")
        return {name: np.concatenate([p[name] for p in parts])[back] for name in parts[0]}

    def save(self, path: str | Path, notes: dict[str, Any] | None = None) -> None:
        """Write weights, vocabulary, labels and settings to a directory; `load` reads it.

        Raises:
            CheckpointError: the directory cannot be written.
        """
        checkpoints.save(path, self.network, self.text.vocabulary, self.text.config, self.data, notes)

    def export(self, export_dir: str | Path, version: int | None = None) -> Path:
        """Write a SavedModel that takes strings to `export_dir/VERSION`; see `serving.export`."""
        return serving.export(self.text, self.network, self.pair, export_dir, version)

    def _rows(self, texts: Sequence[str], labels: Sequence[Any], pairs: Sequence[str] | None = None) -> Rows:
        first, second = self._texts(texts, pairs)
        columns = {self.data.text_column: first, self.data.label_column: [str(v) for v in labels]}
        if second is not None:
            columns[self.data.text_pair_column] = second
        sizes = {name: len(values) for name, values in columns.items()}
        if len(set(sizes.values())) > 1:
            raise DataError(f"texts and labels must be equally many, got {sizes}")
        if not first:
            raise DataError("there are no texts; training and evaluation need at least one row each")
        return Rows(columns, ["row"] * len(first), list(range(1, len(first) + 1)))

    def _texts(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> tuple[list[str], list[str] | None]:
        """The texts as lists, if they are what this model reads."""
        if self.pair != (pairs is not None):
            raise DataError("this model reads " + ("pairs: give text_pairs too" if self.pair else "single texts"))
        return strings("texts", texts), None if pairs is None else strings("text_pairs", pairs)


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


def encode(text: str) -> bytes:
    """UTF-8, also of strings that no decoder gives (lone surrogates)."""
    return text.encode("utf-8", "surrogatepass")


def initialize(network: Network, paths: Sequence[str], seed: int) -> None:
    """Initial values for the weights `paths`, the same for the same seed: truncated normal, biases zero."""
    stddev = network.encoder.config.initializer_range
    for i, path in enumerate(sorted(paths)):
        variable = next(v for v in network.weights if v.path == path)
        if not path.endswith("bias"):
            draw = keras.initializers.TruncatedNormal(stddev=stddev, seed=seed + i)
            variable.assign(draw(variable.shape))
