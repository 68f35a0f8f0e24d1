"""The ablation of masking: the form with a few steps, and the effects where there is time."""

import json
import re

import numpy as np
import pytest

from keras_bert.__main__ import main
from keras_bert.errors import DataError
from keras_bert.pretrain import ablate

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "fire", "is", "in", "city", "##s", "a"]


def test_the_language():
    rows, senses, vocabulary = ablate.language(4000, length=22)
    assert rows.shape == senses.shape == (4000, 22)
    topics = np.where(senses < 0, -1, senses // 8)
    assert (rows[:, 0] == vocabulary.index("[CLS]")).all()
    assert (rows[:, -1] == vocabulary.index("[SEP]")).all()
    assert rows[:, 1:-1].min() == vocabulary.index("word0")
    assert rows.max() == len(vocabulary) - 1
    inside = topics[:, 1:-1].reshape(4000, 4, 5)
    assert (inside == inside[:, :, :1]).all()
    of_word = [set(topics[rows == i]) for i in range(5, len(vocabulary))]
    assert 2 < np.mean([len(found) for found in of_word]) < 4, "a word does not tell its topic"
    _, counts = np.unique(rows[topics == 0], return_counts=True)
    assert sorted(counts / counts.sum())[::-1][:3] == pytest.approx([0.5, 0.25, 0.125], abs=0.05)


def test_pairs():
    ids = np.array([[2, 9, 7, 9, 7, 3], [2, 8, 9, 3, 0, 0]])
    labels = ablate.pairs(ids, [2, 3])
    assert labels.tolist() == [[-1, -1, 0, 1, 0, -1], [-1, -1, 2, -1, -1, -1]]  # 9 7 twice, then 7 9 and 8 9


def test_the_probe_finds_what_is_there_and_nothing_else():
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, (60, 10))
    centres = random.normal(size=(4, 8))
    hidden = centres[labels] + 0.1 * random.normal(size=(60, 10, 8))
    assert ablate.probe(hidden, labels) == 1.0
    assert ablate.probe(random.normal(size=(60, 10, 8)), labels) < 0.4
    assert ablate.probe(hidden, np.full((60, 10), -1)) == 0.0


def test_few_rows_are_refused():
    with pytest.raises(DataError, match="at least 12"):
        ablate.masking_arms([[2, 5, 3]] * 11, WORDS, steps=1)


def test_the_command_prints_a_table(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    lines = ["the fire is in the city", "a city is a city", "fires in the city", "the cities"] * 10
    (tmp_path / "text.txt").write_text("\n\n".join(lines), "utf-8")
    (tmp_path / "vocab.txt").write_text("\n".join([*WORDS[:5], "never", *WORDS[5:]]) + "\n", "utf-8")
    out = tmp_path / "out"
    files = [f"--input_file={tmp_path / 'text.txt'}", f"--vocab_file={tmp_path / 'vocab.txt'}", f"--output_dir={out}"]
    assert main(["ablate", *files, "--num_train_steps=2", "--train_batch_size=4"]) == 0
    printed, said = capsys.readouterr()
    rows = printed.splitlines()
    assert rows[0].split() == ["arm", "loss", *ablate.MEASURES]
    assert [re.split(r"\s{2,}", row)[0] for row in rows[1:6]] == list(ablate.ARMS)
    assert [row.count("*") for row in rows[1:6]] == [1, 2, 1, 0, 1]
    results = json.loads((out / "masking.json").read_text("utf-8"))
    assert [result["arm"] for result in results] == list(ablate.ARMS)
    assert all(0 <= result[name] <= 1 for result in results for name in ablate.MEASURES)
    assert (out / "masking.png").read_bytes().startswith(b"\x89PNG")
    assert "40 rows, 12 word pieces" in said


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--input_file=x.txt"], "go together"),
        (["--num_train_steps=0"], "num_train_steps"),
        (["--learning_rate=0"], "learning_rate"),
        (["--suite=depth"], "suite"),
    ],
)
def test_wrong_flags_are_refused(given, message, capsys):
    assert main(["ablate", *given]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_every_predicted_failure_shows():
    rows, senses, vocabulary = ablate.language(7000)
    found = {result["arm"]: result for result in ablate.masking_arms(rows, vocabulary, 1500, senses)}
    usual = found["80/10/10"]
    assert found["all words"]["visible"] > 0.99
    assert found["all words"]["masked"] < 0.1 < 0.4 < usual["masked"]
    assert found["only masks"]["visible"] < 0.6 < 0.75 < usual["visible"]
    assert all(result["features"] < usual["features"] + 0.01 for result in found.values())  # the paper's gap is small
    assert found["masks and random"]["kept"] < usual["kept"] - 0.2
    assert found["masks and originals"]["copied"] > 0.7 > 0.2 > usual["copied"]
