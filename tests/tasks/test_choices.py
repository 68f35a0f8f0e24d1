"""Choices: every form of file, rows of features, losses and answers by hand, Hugging Face's head, and the whole way."""

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, WORDS, shared, tiny_bert
from keras import ops

from keras_bert.__main__ import main
from keras_bert.bert import Bert
from keras_bert.checkpoints.checkpoints import load, open_checkpoint
from keras_bert.config import DataConfig, HeadConfig, OptimizerConfig, TextConfig, TrainConfig
from keras_bert.data.batches import filled
from keras_bert.data.faults import Reading
from keras_bert.data.source import read_labelled
from keras_bert.errors import ConfigError, DataError
from keras_bert.serving import golden
from keras_bert.tasks.choice import Choice
from keras_bert.tasks.network import Network
from keras_bert.text.text import Text

PLAIN = DataConfig(text_column="question")
SWAG = DataConfig(text_column="sent1", text_pair_column="sent2", choices_column="ending")


def read(path, data=PLAIN, **how):
    return read_labelled("choice", path, data, Reading(**how))


def write(folder, content, name="rows.jsonl"):
    path = folder / name
    path.write_text(content if isinstance(content, str) else "\n".join(map(json.dumps, content)), "utf-8")
    return path


# === Files ===


def test_a_table_has_a_column_for_each_choice(tmp_path):
    path = write(tmp_path, "sent1,sent2,ending10,ending2,ending0,label\na,b,z,y,x,2\nc,d,,q,p,0\n", "swag.csv")
    rows = read(path, SWAG)
    assert rows.columns == {"sent1": ["a", "c"], "sent2": ["b", "d"], "ending": [["x", "y", "z"], ["p", "q", ""]]} | {
        "label": [2, 0]
    }
    listed = DataConfig(text_column="sent1", choices_column="ending2,ending0")
    assert read(path, listed, labelled=False).columns == {
        "sent1": ["a", "c"],
        "ending2,ending0": [["y", "x"], ["q", "p"]],
    }


def test_swag(tmp_path):
    rows = read(shared("data/swag/sample.jsonl"), SWAG)
    assert len(rows) == 10
    assert {len(choices) for choices in rows["ending"]} == {4}
    assert rows["label"][:3] == [0, 3, 1]


def test_commonsenseqa():
    rows = read(shared("data/commonsenseqa/dev_rand_split.jsonl"), DataConfig())
    assert len(rows) == 1221
    assert {len(choices) for choices in rows["choices"]} == {5}
    assert rows["text"][0].startswith("A revolving door is convenient for two direction travel")
    assert rows["choices"][0][rows["label"][0]] == "bank"
    assert len(set(rows["id"])) == 1221


def test_c3():
    data = DataConfig(text_column="passage", text_pair_column="question")
    rows = read(shared("data/c3/c3-d-dev.json"), data)
    assert len(rows) == 1825
    assert rows["question"][0] == "他们在谈论什么?"
    assert rows["choices"][0] == ["旅行", "坏境", "工作", "家庭"]
    assert (rows["label"][0], rows["id"][0], rows["passage"][0].count("\n")) == (2, "47-275-1", 1)
    assert {len(choices) for choices in rows["choices"]} > {4}, "numbers of choices differ"
    with pytest.raises(
        DataError, match=r"passages and questions; name the column of the questions: --text_pair_column"
    ):
        read(shared("data/c3/c3-d-dev.json"))


CHOICES = ["fire", "flood", "storm"]


@pytest.mark.parametrize(
    "item",
    [
        {"question": "a", "choices": CHOICES, "label": 1},
        {"question": "a", "choices": CHOICES, "label": "flood"},
        {"question": "a", "choices": CHOICES, "label": "B"},
        {"question": "a", "choices": [{"label": str(i), "text": c} for i, c in enumerate(CHOICES, 1)], "label": "2"},
        {"question": "a", "choices": {"text": CHOICES, "label": ["A", "B", "C"]}, "answerKey": "B"},
        {"question": "a", "choice0": "fire", "choice1": "flood", "choice2": "storm", "label": 1},
        {"question": "a", "choice_1": "fire", "choice_2": "flood", "choice_3": "storm", "label": 1},
    ],
)
def test_one_question_in_many_forms(tmp_path, item):
    rows = read(write(tmp_path, [item]))
    assert rows.columns == {"question": ["a"], "choices": [CHOICES], "label": [1]}
    assert "label" not in read(write(tmp_path, [item]), labelled=False).columns


def test_an_openbook_question_has_a_stem(tmp_path):
    item = {"id": "7", "question": {"stem": "a", "choices": [{"text": "x", "label": "A"}, {"text": "y", "label": "B"}]}}
    rows = read(write(tmp_path, [item | {"answerKey": "B"}]), DataConfig())
    assert rows.columns == {"text": ["a"], "id": ["7"], "choices": [["x", "y"]], "label": [1]}


@pytest.mark.parametrize(
    ("items", "fault"),
    [
        ([{"question": "a", "choices": ["x", "y"], "label": 2}], "line 1: the label '2' is not .* the choices are"),
        ([{"question": "a", "choices": ["x", "y"]}], "line 1: has no label; it has question"),
        ([{"choices": ["x", "y"], "label": 0}], "line 1: has no question; it has label"),
        ([{"question": "a", "choices": ["x"], "label": 0}], "line 1: needs two choices at least"),
        ([{"question": "a", "choices": ["x", ""], "label": 0}], "line 1: needs two choices at least"),
        ([{"question": "a", "choices": ["x", "", "z"], "label": 1}], "line 1: the label '1' is not"),
        ([{"question": "a", "choices": ["x", 3], "label": 0}], "line 1: choices is no list of choices"),
        ([{"question": "a", "label": 0}], "line 1: has no choices under 'choices' .--choices_column.; its columns are"),
        ([{"question": "a", "choices": ["1", "0"], "label": "1"}], "could be a number from 0 or the text of a choice"),
        (
            [{"question": "a", "choices": ["x", "y"], "label": i} for i in ("x", "y", "z")],
            "line 3: the label 'z' is not the text of a choice as in other rows",
        ),
        ("[[1, 2], [3]]", "is not in the layout of C3"),
    ],
)
def test_faults_name_the_line(tmp_path, items, fault):
    with pytest.raises(DataError, match=fault):
        read(write(tmp_path, items))


def test_the_column_of_choices_is_no_other(tmp_path):
    with pytest.raises(DataError, match="--choices_column=question is also the column of a text"):
        read(write(tmp_path, "question,label\na,0\n", "rows.csv"), DataConfig("question", choices_column="question"))


# === Rows ===


def test_each_choice_is_a_row_with_its_text():
    text = Text(WORDS, TextConfig(max_seq_length=12))
    choices = [["a fire", "b"], ["c", ""]]
    found = text.choices(["the city", "the game in the city"], choices)
    assert found["token_ids"].shape == (2, 2, 9)
    for i, one in enumerate(["the city", "the game in the city"]):
        for j, choice in enumerate(choices[i]):
            alone = text([one], [choice])
            length = int(alone["num_tokens"][0]) if choice else 0
            for name in ("token_ids", "segment_ids", "padding_mask"):
                np.testing.assert_array_equal(found[name][i, j, :length], alone[name][0, :length])
                assert not np.asarray(found[name][i, j, length:]).any()
    assert found["num_tokens"].numpy().tolist() == [7, 9]
    assert found["truncated"].numpy().tolist() == [False, False]
    assert text.choices(["the city " * 9], [["a"]])["truncated"].numpy().tolist() == [True]
    paired = text.choices(["the"], ["in the"], [["city", "song"]])
    np.testing.assert_array_equal(paired["token_ids"][0, 1], text(["the"], ["in the song"])["token_ids"][0])
    with pytest.raises(ConfigError, match="choices must be rows of strings"):
        text.choices(["a"], ["b"])


# === Arithmetic ===


def features(there):
    mask = np.repeat(np.array(there, bool)[:, :, None], 2, axis=2)
    return {"padding_mask": mask, "token_ids": np.zeros(mask.shape, "int32")}


def test_loss_and_answer_by_hand():
    head = Choice(TINY, HeadConfig(task="choice"))
    logits = ops.convert_to_tensor([[0.0], [math.log(3.0)], [9.0], [1.0], [1.0], [1.0]])
    given = features([[1, 1, 0], [1, 1, 1]])
    wanted = head.targets(ops.convert_to_tensor([0, 2]), given)
    assert np.asarray(wanted).tolist() == [[1, 0, -1], [0, 0, 1]]
    np.testing.assert_allclose(head.loss(wanted, logits), [math.log(4), math.log(3)], rtol=1e-6)
    answer = head.answer(logits, given)
    np.testing.assert_allclose(answer["scores"], [[1 / 4, 3 / 4, 0], [1 / 3] * 3], atol=1e-6)
    assert np.asarray(answer["choice"]).tolist() == [1, 0]
    np.testing.assert_allclose(answer["score"], [3 / 4, 1 / 3], atol=1e-6)
    none = head.answer(logits[:2], features([[0, 0]]))
    assert (np.asarray(none["choice"]).tolist(), np.asarray(none["scores"]).tolist()) == ([-1], [[0.0, 0.0]])
    assert head.metrics_of(np.array([1, 1]), {"choice": np.array([1, 0])}) == {"accuracy": 0.5}


def test_further_choices_of_other_rows_change_nothing():
    bert = tiny_bert("choice", ())
    questions, choices = ["the city", "a game"], [["fire", "flood"], ["storm", "music", "song", "in"]]
    together = bert.predict(questions, choices=choices)
    for i in range(2):
        (alone,) = bert.predict(questions[i : i + 1], choices=choices[i : i + 1])
        np.testing.assert_allclose(together[i]["scores"][: len(choices[i])], alone["scores"], atol=1e-6)
        assert sum(together[i]["scores"]) == pytest.approx(1, abs=1e-6)
        assert together[i]["answer"] == choices[i][together[i]["choice"]] == alone["answer"]
    assert together[0]["scores"][2:] == [0.0, 0.0]
    assert bert.predict([], choices=[]) == []
    with pytest.raises(DataError, match="this model chooses: give choices too"):
        bert.predict(["a"])
    with pytest.raises(DataError, match="this model has no choices"):
        tiny_bert().predict(["a"], choices=[["b", "c"]])


THEIRS = """
import sys
import numpy as np, torch, transformers

folder, given, out = sys.argv[1:]
arrays = np.load(given)
if not arrays["again"]:
    torch.manual_seed(3)
    sizes = dict(vocab_size=int(arrays["vocab_size"]), num_hidden_layers=2, num_attention_heads=2, hidden_size=16)
    sizes |= dict(intermediate_size=32, max_position_embeddings=64, initializer_range=0.5)
    transformers.BertForMultipleChoice(transformers.BertConfig(**sizes)).save_pretrained(folder)
model, info = transformers.BertForMultipleChoice.from_pretrained(folder, output_loading_info=True)
assert not any(info.values()), info
names = ("token_ids", "padding_mask", "segment_ids")
with torch.no_grad():
    logits = model.eval()(*(torch.tensor(arrays[name].astype("int64")) for name in names)).logits
np.save(out, logits.numpy())
"""


@pytest.mark.slow
def test_hugging_face_computes_the_same(tmp_path):
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(reason=f"{name} is not installed (extra peers)")
    given = Text(WORDS, TextConfig(max_seq_length=16)).choices(
        ["the city", "a game"], [["fire", "a flood"], ["storm ed", "music"]]
    )
    names = ("token_ids", "segment_ids", "padding_mask")

    def theirs(folder: Path, again: bool) -> np.ndarray:
        arrays = {name: given[name].numpy() for name in names}
        np.savez(tmp_path / "given.npz", again=again, vocab_size=len(WORDS), **arrays)
        paths = [str(folder), str(tmp_path / "given.npz"), str(tmp_path / "out.npy")]
        subprocess.run([sys.executable, "-c", THEIRS, *paths], check=True, timeout=300)  # torch dislikes TensorFlow
        return np.load(tmp_path / "out.npy")

    wanted = theirs(tmp_path / "hf", False)
    assert np.ptp(wanted) > 0.1
    (tmp_path / "hf/vocab.txt").write_text("\n".join(WORDS) + "\n", "utf-8")
    for source, target, kind in (("hf", "ours", "keras_bert"), ("ours", "back", "hf")):
        paths = [f"--input_dir={tmp_path / source}", f"--output_dir={tmp_path / target}"]
        assert main(["convert", f"--to_format={kind}", *paths]) == 0
    found = open_checkpoint(tmp_path / "ours")
    assert found.head == HeadConfig(task="choice")
    network = Network(found.encoder, found.head)
    load(network, found)
    logits = np.asarray(network({name: given[name] for name in names})).reshape(2, 2)
    np.testing.assert_allclose(logits, wanted, atol=1e-5)
    np.testing.assert_array_equal(theirs(tmp_path / "back", True), wanted)


# === The whole way ===

LETTERS = WORDS[5:21]
ROWS = [
    {"id": f"q{i}", "question": f"the {letter}", "choices": ["fire", letter, "storm", "in"][: 2 + i % 3], "label": "B"}
    for i, letter in enumerate(LETTERS)
]


def test_the_right_choice_is_learnt():
    bert = tiny_bert("choice", ())
    questions, choices = ["a", "b"] * 8, [["fire", "flood"], ["flood", "fire", "song"]] * 8
    config = TrainConfig(num_train_epochs=3, train_batch_size=8)
    optimizer = OptimizerConfig(learning_rate=1e-2)
    held = (questions[:2], [0, 1], None, choices[:2])
    result = bert.fit(questions * 5, [0, 1] * 40, None, held, config, optimizer, None, None, choices=choices * 5)
    assert result.best["accuracy"] == 1.0
    assert [a["answer"] for a in bert.predict(["a", "b"], choices=choices[:2])] == ["fire", "fire"]
    with pytest.raises(DataError, match="line 1: the label 5 is no number of one of the choices"):
        bert.fit(["a"], [5], None, held, choices=[["b", "c"]])


@pytest.mark.slow
def test_from_file_to_served_answer(tmp_path, tiny_checkpoint, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, ROWS)
    flags = [
        "--task=choice",
        "--train_file=rows.jsonl",
        "--text_column=question",
        f"--init_checkpoint={tiny_checkpoint}",
    ]
    flags += ["--model_dir=run", "--num_train_epochs=2", "--train_batch_size=4", "--eval_share=0.25"]
    assert main(["finetune", *flags, "--max_seq_length=16", "--labels=A,B"]) == 2
    assert "--labels has no meaning with --task=choice" in capsys.readouterr().err
    assert main(["finetune", *flags, "--max_seq_length=16"]) == 0
    assert "accuracy" in capsys.readouterr().out
    bert = Bert.load("run")
    wanted = bert.predict([row["question"] for row in ROWS], choices=[row["choices"] for row in ROWS])
    assert main(["evaluate", "--model_dir=run", "--eval_file=rows.jsonl"]) == 0
    right = np.mean([answer["choice"] == 1 for answer in wanted])
    assert capsys.readouterr().out == f"accuracy = {right}\n"
    assert (
        main(["predict", "--model_dir=run", "--input_file=rows.jsonl", "--output_file=o.csv", "--probabilities"]) == 0
    )
    header, first, *_ = (tmp_path / "o.csv").read_text().splitlines()
    assert header == "id,label,score_0,score_1,score_2,score_3"
    assert first.startswith(f"q0,{wanted[0]['choice']},")
    assert main(["predict", "--model_dir=run", "--input_file=rows.jsonl", "--output_file=o.jsonl"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text("utf-8").splitlines()]
    assert [line["answer"] for line in lines] == [answer["answer"] for answer in wanted]
    assert main(["export", "--model_dir=run", "--export_dir=models/quiz"]) == 0
    assert main(["verify_export", "--export_dir=models/quiz"]) == 0
    manifest = golden.read_manifest(tmp_path / "models/quiz/1")
    assert set(manifest["signatures"]) == {"serving_default", "tokenize", "token_ids"}
    assert manifest["signatures"]["serving_default"]["inputs"]["choices"] == {"dtype": "string", "shape": [None, None]}

    import tensorflow as tf

    model = tf.saved_model.load(str(tmp_path / "models/quiz/1"))
    choices = filled([row["choices"] for row in ROWS])
    asked = {"text": tf.constant([row["question"] for row in ROWS]), "choices": tf.constant(choices)}
    found = model.signatures["serving_default"](**asked)
    assert [value.decode() for value in found["answer"].numpy()] == [answer["answer"] for answer in wanted]
    np.testing.assert_allclose(found["scores"], [answer["scores"] for answer in wanted], atol=1e-6)
    tokens = model.signatures["tokenize"](**asked)
    assert tokens["tokens"].shape == (16, 4, 16)
    assert [t.decode() for t in tokens["tokens"][0, 1].numpy() if t] == ["[CLS]", "the", "a", "[SEP]", "a", "[SEP]"]
    assert path.exists()
