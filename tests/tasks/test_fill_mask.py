"""Words for the masks of a text: against Hugging Face, by hand, from every format, and from the exported model."""

import importlib.util
import json
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
from checks import assert_same, randomize
from conftest import TINY, WORDS, shared
from safetensors.numpy import load_file, save_file
from test_formats import contents, weights

from keras_bert.__main__ import main
from keras_bert.bert import Bert
from keras_bert.checkpoints.checkpoints import save
from keras_bert.checkpoints.formats import FORMATS
from keras_bert.config import DataConfig, TextConfig, WindowConfig
from keras_bert.data.masked import draw_masks, encode_words
from keras_bert.data.tables import Table
from keras_bert.errors import CheckpointError, ConfigError, DataError
from keras_bert.pretrain.objectives import PretrainNetwork
from keras_bert.tasks import metrics
from keras_bert.text.vocabulary import MASK
from keras_bert.text.wordpiece import WordPiece

PARTS = ("encoder", "pooler", "masked_lm", "next_sentence")
TEXTS = [
    "the [MASK] is in the city",
    "[MASK]",
    "fire [MASK] and [MASK], flood[MASK]",
    "",
    "no mask [mask] here",
    "[MASK][MASK]\U0001f525 \u6771\u4eac [MASK]!",
    "storm " * 9 + "[MASK] " * 2 + "storm " * 9 + "[MASK]",
]


def pretrained(folder, name="hf", parts=PARTS):
    """A random pretrained checkpoint of a format."""
    of = contents(activation="gelu" if name == "hf" else "gelu_tanh")
    folder.mkdir()
    FORMATS[name].write(folder, of, weights(of, *parts))
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return pretrained(tmp_path_factory.mktemp("fill_mask") / "pretrained")


@pytest.fixture(scope="module")
def bert(checkpoint):
    return Bert.from_checkpoint(checkpoint, task="fill_mask", max_seq_length=16, head={"max_masks": 4})


# === Answers ===


def test_a_large_batch_answers_as_its_rows_do(bert):
    """More tokens than are computed together, and rows with more masks than others."""
    many = [text for text in TEXTS for _ in range(8)]
    alone = bert.predict(TEXTS)
    for i, answer in enumerate(bert.predict(many)):
        assert answer["filled"] == alone[i // 8]["filled"]


# In a process of its own: what the pipeline imports does not get along with TensorFlow in one.
PIPELINE = """
import json, sys
import torch, transformers

folder, vocabulary, texts, shape = json.load(sys.stdin)
torch.manual_seed(3)
model = transformers.BertForMaskedLM(transformers.BertConfig(**shape)).eval()
model.cls.predictions.bias.data.normal_()
model.save_pretrained(folder)
tokenizer = transformers.BertTokenizerFast(vocab={w: i for i, w in enumerate(vocabulary)}, do_lower_case=True)
pipeline = transformers.pipeline("fill-mask", model=model, tokenizer=tokenizer, top_k=6)
found = [pipeline(text) for text in texts]
found = [[row] if isinstance(row[0], dict) else row for row in found]
print("FOUND" + json.dumps([[[[one["token"], one["score"]] for one in mask] for mask in row] for row in found]))
"""


def test_hugging_face_fills_the_same(tmp_path):
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(reason=f"{name} is not installed (extra peers)")
    shape = {"vocab_size": TINY.vocab_size, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}
    shape |= {"intermediate_size": 32, "max_position_embeddings": 64, "initializer_range": 0.5}
    texts = [*TEXTS[:3], TEXTS[5], *(f"{word} [MASK] {WORDS[5 + i]} [MASK] the" for i, word in enumerate(WORDS[41:60]))]
    asked = json.dumps([str(tmp_path), WORDS, texts, shape])
    done = subprocess.run([sys.executable, "-c", PIPELINE], input=asked, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout.partition("FOUND")[2])
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n", "utf-8")
    ours = Bert.from_checkpoint(tmp_path, task="fill_mask", max_seq_length=64, head={"top_k": 6})
    assert ours.report.new == ()
    for wanted, answer in zip(theirs, ours.predict(texts), strict=True):
        assert len(answer["masks"]) == len(wanted) == answer["num_masks"]
        for mask, best in zip(answer["masks"], wanted, strict=True):
            assert mask["tokens"] == [WORDS[token] for token, _ in best]
            assert mask["scores"] == pytest.approx([score for _, score in best], abs=1e-5)
    assert any(WORDS[token].startswith("##") for row in theirs for mask in row for token, _ in mask)


def filled(text, answer):
    """A text with the best words in it, by plain Python."""
    for mask in reversed(answer["masks"]):
        before, best = text[: mask["start"]], mask["tokens"][0]
        text = (before.rstrip() + best[2:] if best.startswith("##") else before + best) + text[mask["end"] :]
    return text


def test_answers(bert):
    answers = bert.predict(TEXTS)
    for text, answer in zip(TEXTS, answers, strict=True):
        json.dumps(answer)
        assert set(answer) == {"filled", "masks", "num_masks", "truncated"}
        for mask in answer["masks"]:
            assert text[mask["start"] : mask["end"]] == MASK
            assert len(mask["tokens"]) == len(mask["scores"]) == 5
            assert mask["scores"] == sorted(mask["scores"], reverse=True)
            assert 0 < sum(mask["scores"]) <= 1 + 1e-6
        assert answer["filled"] == filled(text, answer)
    assert [len(a["masks"]) for a in answers] == [1, 1, 3, 0, 0, 3, 2]
    assert [a["truncated"] for a in answers] == [False] * 6 + [True]
    assert answers[6]["filled"].endswith(MASK), "a mask that was cut off stays"
    assert answers[3] == {"filled": "", "masks": [], "num_masks": 0, "truncated": False}
    assert bert.predict([]) == []


def test_pieces_that_go_on_with_a_word_join_it(bert):
    """The output bias makes `##s` the best piece everywhere."""
    (bias,) = [w for w in bert.network.weights if w.path == "head/masked_lm/bias"]
    before = bias.numpy()
    try:
        bias.assign(np.where(np.array(WORDS) == "##s", 1e4, 0.0))
        texts = ["fire [MASK] flood[MASK]\n [MASK]", "[MASK]", " [MASK] a"]
        assert [a["filled"] for a in bert.predict(texts)] == ["fires floodss", "s", "s a"]
    finally:
        bias.assign(before)


def test_masks_beyond_the_most_are_counted_and_stay(bert):
    (answer,) = bert.predict(["[MASK] " * 6])
    assert (len(answer["masks"]), answer["num_masks"], answer["truncated"]) == (4, 6, False)
    assert answer["filled"].count(MASK) == 2


def test_what_is_kept_of_a_long_text_decides_which_masks_are_seen(checkpoint):
    bert = Bert.from_checkpoint(checkpoint, task="fill_mask", max_seq_length=8, truncation_part="tail")
    text = "[MASK] " + "fire " * 9 + "[MASK] the"
    (answer,) = bert.predict([text])
    assert answer["truncated"]
    assert [mask["start"] for mask in answer["masks"]] == [text.rindex(MASK)]
    assert answer["filled"].startswith("[MASK] fire")
    assert answer["filled"] == filled(text, answer)


def test_a_text_alone_and_beside_others_is_the_same(bert):
    together = bert.arrays(TEXTS)
    for i, text in enumerate(TEXTS):
        for found in (bert.arrays([text]), bert.arrays([text, "[MASK] " * 9])):
            assert_same({k: v[0] for k, v in found.items()}, {k: v[i] for k, v in together.items()})


# === Checkpoints ===


@pytest.mark.parametrize("name", ["tf1", "garden", "keras_hub", "keras_bert"])
def test_every_format_has_the_head(name, bert, checkpoint, tmp_path):
    folder = pretrained(tmp_path / name, name)
    found = Bert.from_checkpoint(folder, task="fill_mask", max_seq_length=16)
    assert found.report.new == ()
    theirs = {w.path: w.numpy() for w in bert.network.weights}
    for weight in found.network.weights:
        np.testing.assert_array_equal(weight.numpy(), theirs[weight.path], err_msg=weight.path)


def test_what_pretrain_saves_is_asked_as_it_is(tmp_path):
    network = randomize(PretrainNetwork(TINY))
    save(tmp_path / "pretrained", network, WORDS, TextConfig(max_seq_length=16), None)
    bert = Bert.from_checkpoint(tmp_path / "pretrained", task="fill_mask")
    ids = bert.text.with_special_tokens((MASK,))(["the [MASK] is"])
    batch = {**{name: ids[name] for name in ("token_ids", "segment_ids", "padding_mask")}, "masked_positions": [[2]]}
    logits = np.asarray(network({k: np.asarray(v) for k, v in batch.items()})["masked_lm"])[0, 0]
    (mask,) = bert.predict(["the [MASK] is"])[0]["masks"]
    assert mask["tokens"] == [WORDS[i] for i in np.argsort(-logits)[:5]]
    assert mask["scores"][0] == pytest.approx(np.exp(logits).max() / np.exp(logits).sum(), abs=1e-5)
    bert.save(tmp_path / "saved")
    assert Bert.load(tmp_path / "saved").predict(TEXTS) == bert.predict(TEXTS)
    again = [f"--input_dir={tmp_path}/saved", f"--output_dir={tmp_path}/hf", "--to_format=hf", "--verify"]
    assert main(["convert", *again]) == 0
    assert json.loads((tmp_path / "hf/config.json").read_text("utf-8"))["architectures"] == ["BertForMaskedLM"]


def test_a_checkpoint_without_the_head_is_refused(tmp_path, capsys):
    folder = pretrained(tmp_path / "bare", parts=("encoder", "pooler"))
    with pytest.raises(CheckpointError, match="bare: has no head for masked words") as refusal:
        Bert.from_checkpoint(folder, task="fill_mask")
    assert "\n" not in str(refusal.value)
    (tmp_path / "in.txt").write_text("a [MASK]\n", "utf-8")
    argv = ["predict", "--task=fill_mask", f"--model_dir={folder}", f"--input_file={tmp_path}/in.txt"]
    assert main([*argv, f"--output_file={tmp_path}/out.jsonl"]) == 5
    assert "has no head for masked words" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_a_head_that_is_not_tied_is_refused(checkpoint, tmp_path):
    folder = tmp_path / "untied"
    shutil.copytree(checkpoint, folder)
    tensors = load_file(folder / "model.safetensors")
    table = tensors["bert.embeddings.word_embeddings.weight"]
    for name, value, refused in (("weight", table, False), ("weight", table + 1, True), ("bias", table[:, 0], True)):
        save_file(tensors | {f"cls.predictions.decoder.{name}": value}, folder / "model.safetensors")
        if refused:
            with pytest.raises(CheckpointError, match=f"decoder.{name} differs from .*, to which it should be tied"):
                Bert.from_checkpoint(folder, task="fill_mask")
        else:
            assert Bert.from_checkpoint(folder, task="fill_mask").report.new == ()


def test_a_checkpoint_of_the_original_pretraining_is_asked():
    bert = Bert.from_checkpoint(shared("checkpoints/google_toy_L-2_H-4"), task="fill_mask", head={"top_k": 3})
    (answer,) = bert.predict(["all [MASK] you"])
    assert bert.report.new == ()
    assert len(answer["masks"][0]["tokens"]) == 3


def test_what_cannot_be_asked(checkpoint, bert):
    with pytest.raises(ConfigError, match="fill_mask reads single texts"):
        Bert.from_checkpoint(checkpoint, task="fill_mask", data=DataConfig(text_pair_column="b"))
    with pytest.raises(ConfigError, match="fill_mask has no labels"):
        Bert.from_checkpoint(checkpoint, task="fill_mask", labels=["a", "b"])
    with pytest.raises(ConfigError, match="learnt by pretraining"):
        bert.fit(["a [MASK]"], ["b"], evaluation=(["a [MASK]"], ["b"]), progress=None)
    with pytest.raises(ConfigError, match="unknown task with windows 'fill_mask'"):
        bert.predict(["a"], windows=WindowConfig(max_windows=2))


# === Metrics ===


def test_precision_at_k_by_hand():
    wanted = np.array([[3, -1, -1], [4, 5, -1], [6, 7, 8]])
    found = np.array([[[3, 1], [2, 1]], [[1, 4], [2, 1]], [[1, 2], [7, 1]]])
    # hits: 3 first, 4 second, 7 first; 5 and 6 missed, 8 not answered
    assert metrics.cloze(wanted, found) == pytest.approx({"p_at_1": 2 / 6, "p_at_2": 3 / 6, "mrr": 2.5 / 6})


def rows(texts, labels=None):
    columns = {"text": texts} | ({"target": labels} if labels else {})
    return Table(columns, ["f.csv"] * len(texts), list(range(2, len(texts) + 2)))


COLUMNS = DataConfig(label_column="target")
WORDPIECE = WordPiece(WORDS, True, "original", (MASK,))


def test_words_of_masks_are_checked():
    found = encode_words(rows(["a [MASK] b [MASK]", "[MASK]"], ["Fire ##s", "the"]), COLUMNS, WORDPIECE)
    np.testing.assert_array_equal(found, [[WORDS.index("fire"), WORDS.index("##s")], [WORDS.index("the"), -1]])
    for texts, labels, message in (
        (["a [MASK]"], ["fire the"], "f.csv, line 2: 1 .MASK. in the text, but 2 words in target"),
        (["a [MASK]", "b"], ["a", ""], "f.csv, line 3: 0 .MASK. in the text, but 0 words"),
        (["[MASK]"], ["fires"], "'fires' is no piece of the vocabulary"),
        (["[MASK]"], ["quake\u20ac"], "is no piece of the vocabulary"),
    ):
        with pytest.raises(DataError, match=message):
            encode_words(rows(texts, labels), COLUMNS, WORDPIECE)


def test_masks_are_drawn_of_whole_words():
    texts = [f"the fires in {a}, {b} storm" for a in "abcdef" for b in "ghijkl"]
    drawn = draw_masks(rows([*texts, "fires", "", MASK]), COLUMNS, WORDPIECE, 16, 3, 1)
    assert len(drawn) == len(texts)
    for text, masked, label in zip(texts, drawn["text"], drawn["target"], strict=True):
        assert masked.count(MASK) == len(label.split()) == 1
        assert masked.replace(MASK, label) == text
        assert "fires" in masked
    assert len(set(drawn["target"])) > 8
    assert drawn["text"] == draw_masks(rows(texts), COLUMNS, WORDPIECE, 16, 3, 1)["text"]
    encode_words(drawn, COLUMNS, WORDPIECE)
    with pytest.raises(DataError, match="no text has a word that is one piece"):
        draw_masks(rows(["fires"]), COLUMNS, WORDPIECE, 16, 3, 1)


# === Commands and the exported model ===

FRESH = """
import pickle, sys
import tensorflow as tf
import tensorflow_text

folder, texts = pickle.load(sys.stdin.buffer)
found = tf.saved_model.load(folder).signatures["serving_default"](text=tf.constant(texts))
assert not [name for name in sys.modules if name.startswith("keras_bert")]
sys.stdout.buffer.write(pickle.dumps({k: v.numpy() for k, v in found.items()}))
"""


def fresh(folder, texts):
    """What an exported model answers in a process of its own, without this package."""
    asked = pickle.dumps((str(folder), [text.encode("utf-8") for text in texts]))
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": ""}
    done = subprocess.run([sys.executable, "-c", FRESH], input=asked, capture_output=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    return pickle.loads(done.stdout)


@pytest.mark.slow
def test_the_commands_ask_a_pretrained_checkpoint(checkpoint, tmp_path, capsys):
    model = ["--task=fill_mask", f"--model_dir={checkpoint}", "--max_seq_length=16", "--max_masks=4", "--top_k=10"]
    (tmp_path / "in.txt").write_text("\n".join(text for text in TEXTS if text), "utf-8")
    output = tmp_path / "out.jsonl"
    before = sorted(p.name for p in checkpoint.iterdir())
    assert main(["predict", *model, f"--input_file={tmp_path}/in.txt", f"--output_file={output}"]) == 0
    texts = [text.strip() for text in TEXTS if text]
    bert = Bert.from_checkpoint(checkpoint, "fill_mask", max_seq_length=16, head={"max_masks": 4, "top_k": 10})
    answers = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    for answer, wanted in zip(answers, bert.predict(texts), strict=True):
        assert answer["filled"] == wanted["filled"]
        assert [m["tokens"] for m in answer["masks"]] == [m["tokens"] for m in wanted["masks"]]
    assert "1 of 6 texts were longer" in capsys.readouterr().err

    (tmp_path / "plain.txt").write_text("the fire is in the city\n\nstorm, flood and music\n", "utf-8")
    (tmp_path / "rows.csv").write_text("text,target\nthe [MASK] is,fire\n[MASK] [MASK],a b\n", "utf-8")
    for name in ("plain.txt", "rows.csv"):
        argv = ["evaluate", *model, f"--eval_file={tmp_path}/{name}", f"--output_dir={tmp_path}/results"]
        assert main(argv) == 0
        said = dict(line.split(" = ") for line in capsys.readouterr().out.splitlines())
        assert set(said) == {"p_at_1", "p_at_5", "p_at_10", "mrr"}
    assert main(["evaluate", *model, f"--eval_file={tmp_path}/rows.csv"]) == 2
    assert "give --output_dir too" in capsys.readouterr().err

    assert main(["export", *model, f"--export_dir={tmp_path}/model"]) == 0
    found, wanted = fresh(tmp_path / "model/1", TEXTS), bert.arrays(TEXTS)
    assert_same(found, wanted)
    card = (tmp_path / "model/1/README.md").read_text("utf-8")
    assert 'pipeline_tag: "fill-mask"' in card
    assert "The [MASK] is in the city" in card
    assert before == sorted(p.name for p in checkpoint.iterdir())


def test_a_run_cannot_be_asked_another_task(checkpoint, tmp_path, capsys):
    (tmp_path / "in.csv").write_text("text\na\n", "utf-8")
    argv = [f"--input_file={tmp_path}/in.csv", f"--output_file={tmp_path}/out.csv"]
    assert main(["predict", f"--model_dir={checkpoint}", *argv]) == 5
    assert "or ask it with --task=similarity|fill_mask|embed" in capsys.readouterr().err
    from conftest import tiny_bert

    tiny_bert().save(tmp_path / "run")
    assert main(["predict", "--task=fill_mask", f"--model_dir={tmp_path}/run", *argv]) == 2
    assert "was trained for classify" in capsys.readouterr().err
