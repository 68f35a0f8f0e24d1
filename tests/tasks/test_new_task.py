"""A task that the package does not know: several numbers for a text. Its two parts, and no other table, make it work
in Python, on the command line and as a signature."""

import csv
import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import tensorflow as tf
from conftest import WORDS
from keras import ops

from keras_bert import Bert, FinetuneConfig, OptimizerConfig, TrainConfig
from keras_bert.__main__ import main
from keras_bert.config import TASKS, HeadConfig, SentenceConfig, flag, from_dict, require, to_dict
from keras_bert.data.labels import number_of
from keras_bert.data.source import Source
from keras_bert.errors import ConfigError, DataError
from keras_bert.serving.signatures import only, text
from keras_bert.tasks.head import Sentence, plain_values
from keras_bert.tasks.network import HEADS

# === The task: what would be one class in config/tasks.py, with its source, and one file in tasks/ ===


class CountLists(Source):
    """Comma lists of numbers, of one length."""

    def value(self, label):
        return ",".join(map(str, label))

    def find_labels(self, table, data):
        return tuple(f"count_{i + 1}" for i in range(len(table[data.label_column][0].split(","))))

    def encode(self, table, data, config, tokenizer):
        rows = [[number_of(part) for part in value.split(",")] for value in table[data.label_column]]
        for i, row in enumerate(rows):
            if None in row or len(row) != config.width:
                raise DataError(f"{table.where(i)}: {data.label_column} must be {config.width} numbers")
        return np.array(rows, np.float32).reshape(len(rows), config.width), None


@dataclass(frozen=True)
class CountsConfig(SentenceConfig):
    """Several numbers for a text."""

    task: str = "counts"
    largest: float = flag(1.0, "number that becomes 1 in training.")

    source: ClassVar = CountLists
    has_labels: ClassVar = True
    pipeline: ClassVar = "text-classification"

    def check(self):
        super().check()
        require(self.largest > 0, f"largest must be above 0, got {self.largest}")


class Counts(Sentence):
    """Several numbers: `[B, n]` logits, times `largest`; squared error, labels float `[B, n]`."""

    best_metric = "closeness"
    label_dtype = "float32"
    merging = (lambda logits: logits, lambda logits: logits)
    signatures: ClassVar = {"counts": text(only(numbers="counts"))}

    def check(self):
        if not self.config.labels:
            raise ConfigError("counts needs at least one number")

    def loss(self, labels, logits):
        return ops.mean(ops.square(ops.cast(logits, "float32") - labels / self.config.largest), axis=1)

    def answer(self, logits, features=None):
        return {"counts": ops.cast(logits, "float32") * self.config.largest}

    def plain(self, row):
        """`counts`, in the order of the labels."""
        return plain_values(("counts",), row)

    def metrics_of(self, references, answers):
        return {"closeness": -float(np.mean(np.abs(references - answers["counts"])))}


# === The tests ===

THINGS = ("fire", "flood", "storm", "music")
ROWS = [(f"{a} in the {b} {WORDS[5 + i]}", [i % 4, 2 * (i % 3)]) for i in range(24) for a, b in [
    (THINGS[i % 4], THINGS[i % 3])
]]  # fmt: skip
SHORT = ["--num_train_epochs=2", "--train_batch_size=8", "--learning_rate=1e-2", "--largest=4", "--max_seq_length=16"]


@pytest.fixture(autouse=True)
def counts(monkeypatch):
    monkeypatch.setitem(TASKS, "counts", CountsConfig)
    monkeypatch.setitem(HEADS, "counts", Counts)


def test_its_config_is_picked_by_name():
    config = HeadConfig(task="counts", labels=["a", "b"], largest=3.0, pooling="mean")
    assert config == CountsConfig(labels=("a", "b"), largest=3.0, pooling="mean")
    assert from_dict(HeadConfig, to_dict(config)) == config
    with pytest.raises(ConfigError, match="largest has no meaning with the task tag, only with counts"):
        HeadConfig(task="tag", largest=3.0)
    with pytest.raises(ConfigError, match="label_smoothing has no meaning with the task counts, only with classify"):
        from_dict(HeadConfig, to_dict(config) | {"label_smoothing": 0.1})


@pytest.mark.slow
def test_in_python(tiny_checkpoint, tmp_path):
    texts, labels = zip(*ROWS, strict=True)
    head = {"largest": 4.0}
    bert = Bert.from_checkpoint(tiny_checkpoint, "counts", ("one", "two"), head=head, max_seq_length=16)
    start = bert.predict(texts[:3])
    train, optimizer = TrainConfig(train_batch_size=8, num_train_epochs=2), OptimizerConfig(learning_rate=1e-2)
    evaluation = (texts[:4], labels[:4])
    result = bert.fit(texts, labels, evaluation=evaluation, config=train, optimizer=optimizer, progress=None)
    answers = bert.predict(texts[:4])
    assert answers[:3] != start
    assert [set(answer) for answer in answers] == [{"counts", "truncated"}] * 4
    far = np.mean(np.abs(np.array([answer["counts"] for answer in answers]) - labels[:4]))
    assert result.best["closeness"] == pytest.approx(-far, abs=1e-5)
    assert bert.evaluate(bert._rows(*evaluation))[0]["closeness"] == pytest.approx(-far, abs=1e-5)
    bert.save(tmp_path / "run")
    again = Bert.load(tmp_path / "run")
    assert again.head.config == dataclasses.replace(bert.head.config, labels=("one", "two"))
    assert again.predict(texts[:4]) == answers
    with pytest.raises(DataError, match="row, line 1: label must be 2 numbers"):
        bert.fit(texts[:2], [[1], [2]], evaluation=evaluation, config=train)
    with pytest.raises(ConfigError, match="class_weights has no meaning with the task counts"):
        bert.fit(texts, labels, config=train, finetune=FinetuneConfig(class_weights="balanced"), progress=None)


def test_on_the_command_line_and_as_a_signature(tiny_checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with open("train.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [["id", "text", "label"], *([i, t, f"{a},{b}"] for i, (t, (a, b)) in enumerate(ROWS))]
        )
    assert main(["finetune", "--help"]) == 0
    assert "counts: number that becomes 1 in training. [1.0]" in capsys.readouterr().out
    run = ["--train_file=train.csv", f"--init_checkpoint={tiny_checkpoint}", "--model_dir=run", "--task=counts"]
    assert main(["finetune", *run, "--task=regress", *SHORT]) == 2
    assert "largest has no meaning with the task regress, only with counts" in capsys.readouterr().err
    assert main(["finetune", *run, *SHORT]) == 0, capsys.readouterr().err
    assert main(["evaluate", "--model_dir=run", "--eval_file=train.csv"]) == 0
    assert "closeness = -" in (tmp_path / "run/eval_results.txt").read_text("utf-8")
    assert main(["predict", "--model_dir=run", "--input_file=train.csv", "--output_file=out.csv"]) == 0
    with open("out.csv", newline="", encoding="utf-8") as file:
        header, *lines = csv.reader(file)
    assert header == ["id", "label"]
    found = np.array([[float(value) for value in label.split(",")] for _, label in lines])
    assert found.shape == (24, 2)
    assert main(["export", "--model_dir=run", "--export_dir=exported"]) == 0
    signatures = tf.saved_model.load(str(tmp_path / "exported/1")).signatures
    assert set(signatures) == {"serving_default", "tokenize", "embedding", "token_ids", "counts"}
    served = signatures["counts"](tf.constant([text for text, _ in ROWS]))
    assert set(served) == {"numbers"}
    np.testing.assert_allclose(served["numbers"].numpy(), found, rtol=1e-4, atol=1e-5)
    assert 'pipeline_tag: "text-classification"' in (tmp_path / "exported/1/README.md").read_text("utf-8")
