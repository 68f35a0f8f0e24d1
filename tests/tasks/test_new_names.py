"""New names in the tables that heads read: a choice of layers, a pooling, a decoder, a similarity objective; and, for
the encoder, a kind of positions and a mask. Each is one row, used in Python and on the command line."""

import csv
import dataclasses
import json

import numpy as np
import pytest
from conftest import TINY, WORDS, tiny_bert
from keras import ops

from keras_bert import Bert
from keras_bert.__main__ import main
from keras_bert.config import HeadConfig
from keras_bert.model.encoder import Encoder
from keras_bert.model.masks import MASKS
from keras_bert.model.positions import POSITIONS, Positions
from keras_bert.model.readout import LAYERS, POOLINGS, Layers
from keras_bert.tasks import cosines, spans, tagging
from keras_bert.tasks.network import Network

SHORT = ["--num_train_epochs=1", "--train_batch_size=8", "--max_seq_length=16", "--eval_share=0.25"]
TEXTS = [f"{first} in the {second}" for first in WORDS[43:47] for second in WORDS[45:50]]


def second(x, mask):
    """The vector of the second position."""
    return ops.cast(x[:, 1, :], "float32")


class Parity(Positions):
    """Half of the numbers of odd positions are shifted by one."""

    def embed(self, x, positions):
        half = ops.arange(x.shape[-1]) % 2
        return x + ops.cast(ops.expand_dims(positions % 2, -1) * half, x.dtype)


def nothing(logits, words):
    """No word is in an entity."""
    return ops.zeros(ops.shape(logits)[:2], "int32")


def absolute(labels, vectors, scale):
    """The distance of the cosine to the score."""
    return ops.abs(cosines.cosine(vectors) - labels[:, 2])


@pytest.fixture
def names(monkeypatch):
    monkeypatch.setitem(LAYERS, "first", Layers(lambda taps: taps["layers"][0]))
    monkeypatch.setitem(POOLINGS, "second", second)
    monkeypatch.setitem(tagging.DECODES, "nothing", nothing)
    monkeypatch.setitem(spans.DECODES, "again", spans.DECODES["joint"])
    monkeypatch.setitem(cosines.OBJECTIVES, "absolute", absolute)
    monkeypatch.setitem(POSITIONS, "parity", Parity)
    monkeypatch.setitem(
        MASKS, "itself", lambda features, config: ops.eye(ops.shape(features["token_ids"])[1])[None] > 0
    )


def written(path, header, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def test_layers_and_poolings(names, tiny_checkpoint, tmp_path, capsys):
    file = written(tmp_path / "train.csv", ["text", "label"], [(text, i % 2) for i, text in enumerate(TEXTS)])
    run = [f"--train_file={file}", f"--init_checkpoint={tiny_checkpoint}", f"--model_dir={tmp_path}/run", *SHORT]
    assert main(["finetune", *run, "--layers=first", "--pooling=second"]) == 0, capsys.readouterr().err
    bert = Bert.load(tmp_path / "run")
    assert (bert.head.config.layers, bert.head.config.pooling) == ("first", "second")
    found = bert.arrays(TEXTS[:3])
    features = bert.text(TEXTS[:3])
    hidden = bert.network.encoder({"token_ids": features["token_ids"]}, taps=("layers",))["layers"][0]
    logits = np.asarray(bert.head.projection(np.asarray(hidden)[:, 1]))
    odds = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(found["scores"].max(1), (odds / odds.sum(1, keepdims=True)).max(1), atol=1e-5)
    direct = HeadConfig(labels=("0", "1"), layers=LAYERS["first"], pooling=second)
    assert Network(TINY, direct).head.pooling is second


def test_decoders(names, tmp_path):
    bert = tiny_bert("tag", ("X",))
    silent = dataclasses.replace(bert.head.config, decode="nothing")
    network = Network(TINY, silent)
    network.set_weights(bert.network.get_weights())
    Bert(bert.text, network).save(tmp_path / "run")
    assert any(answer["entities"] for answer in bert.predict(TEXTS))
    assert not any(answer["entities"] for answer in Bert.load(tmp_path / "run").predict(TEXTS))
    file = written(tmp_path / "in.csv", ["text"], [(text,) for text in TEXTS])
    out = tmp_path / "out.jsonl"
    assert main(["predict", f"--model_dir={tmp_path}/run", f"--input_file={file}", f"--output_file={out}"]) == 0
    assert [json.loads(line)["entities"] for line in out.read_text("utf-8").splitlines()] == [[]] * len(TEXTS)
    assert HeadConfig(task="span", decode="again").decode == "again"


def test_an_objective_of_cosines(names, tiny_checkpoint, tmp_path, capsys):
    rows = [(text, other, i % 2) for i, (text, other) in enumerate(zip(TEXTS, TEXTS[::-1], strict=True))]
    file = written(tmp_path / "train.csv", ["text", "other", "label"], rows)
    run = [f"--train_file={file}", f"--init_checkpoint={tiny_checkpoint}", f"--model_dir={tmp_path}/run", *SHORT]
    flags = ["--task=similarity", "--text_pair_column=other", "--objective=absolute"]
    assert main(["finetune", *run, *flags]) == 0, capsys.readouterr().err
    assert Bert.load(tmp_path / "run").head.config.objective == "absolute"


def test_positions_and_masks(names):
    encoder = Encoder(dataclasses.replace(TINY, positions="parity", attention_mask="itself"))
    ids = np.array([[5, 5, 5, 5]])
    first, second_, third, fourth = np.asarray(encoder(ids)["sequence"])[0]
    np.testing.assert_array_equal(first, third)
    np.testing.assert_array_equal(second_, fourth)
    assert np.abs(first - second_).max() > 1e-3
