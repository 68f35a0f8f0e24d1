"""What holds for every task: a row's answer is its own, and the exported model gives it in a process of its own."""

import dataclasses
import os
import pickle
import subprocess
import sys

import each_head
import numpy as np
import pytest
from checks import randomize
from conftest import TINY, WORDS

from keras_bert.bert import Bert
from keras_bert.config import TASKS, DataConfig, TextConfig
from keras_bert.data.batches import encoded, filled
from keras_bert.tasks.network import HEADS, Network
from keras_bert.text.text import Text

TEXTS = [
    "fire in the [MASK]",
    "",
    "\u6771\u4eac \U0001f525 Cafe\u0301, fires!",
    "storm [MASK] a b c d e f g h i j k l m n o",
]
SECOND = ["a fire in the \U0001f525 city", "music", "", "the song of the storm is in the city " * 3]
CHOICES = [["a", "b"], ["c", "d", "e"], ["fire", "", "song"], ["x", "y"]]
LONG = ("the storm of fires in the city, " * 400)[:10_000]


def make(task):
    """A random model of a task whose answers differ from text to text."""
    encoder = dataclasses.replace(TINY, attention_mask="seq2seq" if task == "generate" else TINY.attention_mask)
    mask = {"mask_token_id": WORDS.index("[MASK]")} if task == "fill_mask" else {}
    head = dataclasses.replace(each_head.HEADS[task], **mask)
    data = DataConfig(text_pair_column="text_pair" if TASKS[task].paired else "")
    network = randomize(Network(encoder, head), seed=3)
    return Bert(Text(WORDS, TextConfig(max_seq_length=24)), network, data)


def asked(bert, rows, *, beside=False):
    """What a model of its kind is asked for some of the rows; and for one of 10,000 characters behind them."""
    columns = [[column[i] for i in rows] for column in (TEXTS, SECOND, CHOICES)]
    for column, long in zip(columns, (LONG, LONG, [LONG, "a"]), strict=True):
        column += [long] * beside
    texts, pairs, choices = columns
    return texts, pairs if bert.pair else None, choices if bert.head.config.reads == "choices" else None


def arrays(bert, rows, **how):
    texts, pairs, choices = asked(bert, rows, **how)
    return bert.arrays(texts, pairs, choices=choices)


def assert_equal(found, wanted):
    """The same answers, within 1e-5; what there is more of in the wider one is nothing (choices that are none)."""
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        first, second = (np.atleast_1d(v) for v in (found[name], value))
        width = min(len(first), len(second))
        assert not any(np.any(more) for more in (first[width:], second[width:])), name
        if second.dtype.kind == "f":
            np.testing.assert_allclose(first[:width], second[:width], rtol=1e-5, atol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(first[:width], second[:width], err_msg=name)


ELSEWHERE = ("tag", "span", "fill_mask", "generate")
"""Tasks whose own tests ask the same in more ways; here they are slow ones."""


@pytest.mark.parametrize("task", [pytest.param(t, marks=[pytest.mark.slow] * (t in ELSEWHERE)) for t in HEADS])
def test_a_row_alone_in_a_batch_and_beside_a_long_one_is_the_same(task):
    bert = make(task)
    together, beside = arrays(bert, range(4)), arrays(bert, range(4), beside=True)
    assert bool(beside["truncated"][4]) or bert.windows.max_windows > 1
    for i in range(4):
        alone = arrays(bert, [i])
        for other in (alone, arrays(bert, [i], beside=True)):
            assert_equal({k: v[0] for k, v in other.items()}, {k: v[i] for k, v in together.items()})
        assert_equal({k: v[i] for k, v in beside.items()}, {k: v[0] for k, v in alone.items()})


FRESH = """
import pickle, sys
import tensorflow as tf
import tensorflow_text

found = {}
for task, (folder, columns) in pickle.load(sys.stdin.buffer).items():
    answer = tf.saved_model.load(folder).signatures["serving_default"]
    found[task] = {k: v.numpy() for k, v in answer(**{k: tf.constant(v) for k, v in columns.items()}).items()}
assert not [name for name in sys.modules if name.startswith("keras_bert")]
sys.stdout.buffer.write(pickle.dumps(found))
"""


@pytest.mark.slow
def test_every_exported_model_answers_as_predict_in_a_fresh_process(tmp_path):
    berts, questions = {task: make(task) for task in HEADS}, {}
    for task, bert in berts.items():
        texts, pairs, choices = asked(bert, range(4), beside=True)
        columns = {"text": encoded(texts)} | ({"text_pair": encoded(pairs)} if pairs else {})
        columns |= {"choices": np.array([encoded(row) for row in filled(choices)], object)} if choices else {}
        questions[task] = str(bert.export(tmp_path / task)), columns
    done = subprocess.run(
        [sys.executable, "-c", FRESH],
        input=pickle.dumps(questions),
        capture_output=True,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": ""},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr.decode()
    for task, found in pickle.loads(done.stdout).items():
        wanted = arrays(berts[task], range(4), beside=True)
        for i in range(5):
            assert_equal({k: v[i] for k, v in found.items()}, {k: v[i] for k, v in wanted.items()})
