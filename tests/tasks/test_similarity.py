"""Similarity: losses and metrics by hand, sentence-transformers' recipe on a real model, and the whole way."""

import dataclasses
import importlib.util
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from conftest import TINY, WORDS, tiny_bert
from keras import ops
from scipy.stats import spearmanr

from keras_bert.__main__ import main
from keras_bert.bert import Bert
from keras_bert.config import DataConfig, HeadConfig, OptimizerConfig, TrainConfig
from keras_bert.data.faults import Reading
from keras_bert.data.pairs import encode_pairs
from keras_bert.data.source import read_labelled
from keras_bert.errors import ConfigError, DataError
from keras_bert.serving import golden
from keras_bert.tasks import cosines
from keras_bert.tasks.similarity import Similarity

PAIRS = DataConfig(text_column="a", text_pair_column="b", label_column="score")


def write(folder, content, name="pairs.csv"):
    path = folder / name
    path.write_text(content, "utf-8")
    return path


# === Files ===


def test_pairs_with_and_without_scores(tmp_path):
    rows = read_labelled("similarity", write(tmp_path, "a,b,score\nx,y,5\nX ,z,-2.5\ny,y,0\n"), PAIRS)
    assert encode_pairs(rows, PAIRS, 5.0).tolist() == [[1, 2, 1], [1, 3, -0.5], [2, 2, 0]]
    with pytest.raises(DataError, match="line 2: score 5 is beyond 1; give the highest as --max_score"):
        encode_pairs(rows, PAIRS, 1.0)
    said = []
    rows = read_labelled("similarity", write(tmp_path, "a,b\nx,y\n"), PAIRS, Reading(say=said.append))
    assert encode_pairs(rows, PAIRS, 5.0).tolist() == [[1, 2, 1]]
    assert said == [f"{tmp_path}/pairs.csv: no column 'score' (--label_column), so each pair means the same"]
    with pytest.raises(DataError, match="has no column b"):
        read_labelled("similarity", write(tmp_path, "a\nx\n"), PAIRS)


# === Losses and metrics ===


def vectors(*angles):
    """Pairs of vectors of length 2 at these angles, in degrees."""
    radians = np.radians(np.array(angles, "float32"))
    return 2 * np.stack([np.cos(radians), np.sin(radians)], axis=2).astype("float32")


def test_ranking_by_hand():
    given = vectors([0, 60], [0, 90], [30, 30], [0, 0])
    far = np.array([[1, 11, 1], [2, 12, 1], [3, 13, 1], [4, 14, 0]], "float32")
    # cosines of the first with the second texts: 1/2, 0, cos 30, 1
    each = [
        math.log(sum(math.exp(2 * c) for c in (0.5, 0.0, math.cos(math.pi / 6), 1.0))) - 2 * own for own in (0.5, 0.0)
    ]
    found = np.asarray(cosines.ranking(far, given, 2.0))
    np.testing.assert_allclose(found[:2], each, rtol=1e-5)
    assert found[3] == 0, "a pair that does not mean the same has no loss of its own"
    assert np.asarray(cosines.positive(far)).tolist() == [1, 1, 1, 0]

    alike = far.copy()
    alike[2, 0], alike[3, 1] = 1, 11  # the third has the first text of pair one, the fourth its second
    alone = math.log(math.exp(2 * 0.5) + math.exp(0)) - 2 * 0.5
    np.testing.assert_allclose(np.asarray(cosines.ranking(alike, given, 2.0))[0], alone, rtol=1e-5)

    filled = np.concatenate([far, np.zeros((2, 3), "float32")])
    more = np.concatenate([given, np.zeros((2, 2, 2), "float32")])
    np.testing.assert_allclose(np.asarray(cosines.ranking(filled, more, 2.0))[:4], found, rtol=1e-6)


def test_ranking_is_cross_entropy_over_the_batch():
    random = np.random.default_rng(0)
    given = random.normal(size=(7, 2, 5)).astype("float32")
    targets = np.stack([np.arange(1, 8), np.arange(11, 18), np.ones(7)], 1).astype("float32")
    unit = given / np.linalg.norm(given, axis=2, keepdims=True)
    logits = 20 * unit[:, 0] @ unit[:, 1].T
    wanted = tf.keras.losses.sparse_categorical_crossentropy(np.arange(7), logits, from_logits=True)
    np.testing.assert_allclose(cosines.ranking(targets, given, 20.0), wanted, rtol=1e-4, atol=1e-5)


def test_cosine_and_scores_by_hand():
    given = np.concatenate([vectors([0, 60], [45, 225]), np.zeros((1, 2, 2), "float32")])
    np.testing.assert_allclose(cosines.cosine(ops.convert_to_tensor(given)), [0.5, -1, 0], atol=1e-6)
    targets = np.array([[1, 2, 1], [3, 4, -0.5], [5, 6, 0]], "float32")
    np.testing.assert_allclose(cosines.scores(targets, given, 20.0), [0.25, 0.25, 0], atol=1e-6)


def test_retrieval_by_hand():
    targets = np.array([[1, 11, 1], [2, 12, 1], [3, 13, 1], [4, 13, 0]], "float64")
    given = vectors([0, 20], [0, 10], [100, 100], [0, 100])
    # the first text 0 finds 10 before 20; the third is found twice, but both are the same text
    assert cosines.retrieval(targets, given) == {"accuracy": 2 / 3, "mrr": (1 / 2 + 1 + 1) / 3}
    assert cosines.retrieval(targets, given, chunk=1) == cosines.retrieval(targets, given)
    assert cosines.retrieval(targets[3:], given[3:]) == {"accuracy": 0.0, "mrr": 0.0}


def test_metrics_are_those_of_scipy():
    random = np.random.default_rng(1)
    labels = np.stack([np.arange(20), np.arange(20), random.random(20)], 1)
    answers = {"similarity": random.random(20), "embeddings": random.random((20, 2, 3))}
    head = Similarity(TINY, HeadConfig(task="similarity", objective="scores"))
    found = head.metrics_of(labels, answers)
    assert found["spearman"] == pytest.approx(spearmanr(labels[:, 2], answers["similarity"]).statistic)
    assert head.best_metric in found
    head = Similarity(TINY, HeadConfig(task="similarity", objective="ranking"))
    assert {"spearman", "mrr"} <= set(head.metrics_of(labels, answers))
    labels[:, 2] = 1
    assert set(head.metrics_of(labels, answers)) == {"accuracy", "mrr"}
    assert head.best_metric == "mrr"


# === A real model ===

SENTENCES = ["A man is eating food.", "Someone eats", "The girl carries a baby across the long road to the city!", ""]
RECIPE = """
import json, sys
import numpy as np, torch, transformers

folder, out, texts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
given = transformers.AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
model = transformers.AutoModel.from_pretrained(folder).eval().float()
with torch.no_grad():
    hidden = model(**given).last_hidden_state
mask = given["attention_mask"].unsqueeze(-1).float()  # as the card of the model has it
pooled = (hidden * mask).sum(1) / torch.clamp(mask.sum(1), min=1e-9)
np.save(out, torch.nn.functional.normalize(pooled, p=2, dim=1).numpy())
"""


def test_minilm_gives_the_vectors_of_sentence_transformers(minilm, tmp_path):
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(reason=f"{name} is not installed (extra peers)")
    command = [sys.executable, "-c", RECIPE, str(minilm), str(tmp_path / "out.npy"), json.dumps(SENTENCES)]
    subprocess.run(command, check=True, timeout=300)
    wanted = np.load(tmp_path / "out.npy")
    bert = Bert.from_checkpoint(minilm, "similarity")
    assert bert.report is not None
    assert bert.report.new == (), "it works without training"
    np.testing.assert_allclose(bert.embed(SENTENCES), wanted, atol=1e-5)
    answers = bert.predict(SENTENCES, SENTENCES[1:] + SENTENCES[:1])
    found = [answer["similarity"] for answer in answers]
    np.testing.assert_allclose(found, np.sum(wanted * np.roll(wanted, -1, axis=0), axis=1), atol=1e-5)


# === Training ===

THINGS = WORDS[5:25]


def test_pairs_without_scores_learn_by_ranking():
    bert = tiny_bert("similarity", ())
    first, second = ["fire", "flood", "storm"], ["music", "song", "game"]
    config, optimizer = TrainConfig(num_train_epochs=5, train_batch_size=6), OptimizerConfig(learning_rate=2e-2)
    held = (first, None, second)
    result = bert.fit(first * 16, None, second * 16, held, config, optimizer, progress=None)
    assert bert.network.head.config.objective == "ranking"
    assert (result.best["accuracy"], result.best["mrr"]) == (1.0, 1.0)
    assert result.history[-1]["train_loss"] < 0.5 * result.history[0]["train_loss"]
    assert (bert.embed(first) @ bert.embed(second).T).argmax(1).tolist() == [0, 1, 2]
    with pytest.raises(ConfigError, match="needs the whole batch at once: leave grad_accum_steps at 1"):
        bert.fit(first, None, second, held, dataclasses.replace(config, grad_accum_steps=2))


@pytest.mark.parametrize("task", ["similarity", "choice"])
@pytest.mark.slow
def test_batches_that_are_filled_up_are_learnt_too(task):
    bert = tiny_bert(task, ())
    config = TrainConfig(num_train_epochs=1, train_batch_size=4, eval_batch_size=4, jit_compile="on")
    texts, more = ["fire", "flood", "storm"], ["music", "song", "game"]
    if task == "similarity":
        result = bert.fit(texts, None, more, (texts, None, more), config, progress=None)
    else:
        choices = [["a", "b"], ["a", "b", "c"], ["c", "a"]]
        held = (texts, [0, 1, 1], None, choices)
        result = bert.fit(texts, [0, 1, 1], None, held, config, progress=None, choices=choices)
    assert np.isfinite(result.best["train_loss"])
    assert result.best["eval_loss"] == pytest.approx(result.best["train_loss"], abs=1.0)


def test_scores_are_learnt():
    bert = tiny_bert("similarity", ())
    first, second = ["fire a", "flood b"] * 8, ["fire c", "fire d"] * 8
    config = TrainConfig(num_train_epochs=3, train_batch_size=4)
    held = (first, [1.0, 0.0] * 8, second)
    result = bert.fit(
        first * 5, [1.0, 0.0] * 40, second * 5, held, config, OptimizerConfig(learning_rate=1e-2), progress=None
    )
    assert bert.network.head.config.objective == "scores"
    assert result.best["spearman"] > 0.8
    assert result.history[-1]["mse"] < 0.01  # the best rank may come before
    with pytest.raises(DataError, match="labels are missing; only similarity learns from pairs alone"):
        tiny_bert().fit(["a"], None)
    with pytest.raises(ConfigError, match="embed has nothing to learn from"):
        tiny_bert("embed", ()).fit(["a"], ["b"], evaluation=(["a"], ["b"]))


def test_a_text_does_not_depend_on_its_partner():
    bert = tiny_bert("similarity", ())
    one, two = bert.predict(["fire", "fire"], ["a song in the city", "a"])
    assert one["similarity"] != two["similarity"]
    both = bert.embed(["fire", "a song in the city", "a"])
    np.testing.assert_allclose([one["similarity"], two["similarity"]], both[1:] @ both[0], atol=1e-6)
    (back,) = bert.predict(["a"], ["fire"])
    assert back["similarity"] == pytest.approx(two["similarity"], abs=1e-6)
    np.testing.assert_allclose(np.linalg.norm(both, axis=1), 1, atol=1e-6)


@pytest.mark.slow
def test_from_file_to_served_answer(tmp_path, tiny_checkpoint, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "id,a,b,score\n" + "".join(f"p{i},the {t},{t} song,{i % 3}\n" for i, t in enumerate(THINGS)))
    flags = [
        "--task=similarity",
        "--train_file=pairs.csv",
        "--eval_file=pairs.csv",
        f"--init_checkpoint={tiny_checkpoint}",
    ]
    flags += [
        "--text_column=a",
        "--text_pair_column=b",
        "--label_column=score",
        "--model_dir=run",
        "--num_train_epochs=1",
    ]
    assert main(["finetune", *flags, "--max_seq_length=16"]) == 3
    assert "pairs.csv, line 4: score 2 is beyond 1; give the highest as --max_score" in capsys.readouterr().err
    assert main(["finetune", *flags, "--max_seq_length=16", "--max_score=2", "--pooling=max"]) == 0
    assert "spearman" in capsys.readouterr().out
    bert = Bert.load("run")
    assert (bert.network.head.config.objective, bert.network.head.config.pooling) == ("scores", "max")
    first, second = [f"the {t}" for t in THINGS], [f"{t} song" for t in THINGS]
    wanted = [answer["similarity"] for answer in bert.predict(first, second)]
    assert main(["evaluate", "--model_dir=run", "--eval_file=pairs.csv"]) == 0
    spearman = spearmanr(wanted, [i % 3 for i in range(len(THINGS))]).statistic
    assert f"spearman = {spearman:.6f}"[:14] in capsys.readouterr().out
    assert main(["predict", "--model_dir=run", "--input_file=pairs.csv", "--output_file=out.csv"]) == 0
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert lines[0] == "id,score"
    np.testing.assert_allclose([float(line.split(",")[1]) for line in lines[1:]], wanted, atol=1e-6)
    assert main(["predict", "--model_dir=run", "--input_file=pairs.csv", "--output_file=o.csv", "--pooling=cls"]) == 2
    assert "--pooling: run was trained for similarity and has its own" in capsys.readouterr().err
    assert main(["export", "--model_dir=run", "--export_dir=models/pairs"]) == 0
    assert main(["verify_export", "--export_dir=models/pairs"]) == 0
    manifest = golden.read_manifest(tmp_path / "models/pairs/1")
    assert manifest["embedding"] == {"pooling": "max", "layers": "last", "normalized": True}
    model = tf.saved_model.load(str(tmp_path / "models/pairs/1"))
    assert set(model.signatures) == {"serving_default", "embedding", "token_embeddings", "token_ids", "tokenize"}
    found = model.signatures["serving_default"](text=tf.constant(first), text_pair=tf.constant(second))
    assert set(found) == {"similarity", "num_tokens", "num_windows", "truncated"}
    np.testing.assert_allclose(found["similarity"], wanted, atol=1e-6)
    np.testing.assert_allclose(
        model.signatures["embedding"](text=tf.constant(first))["embedding"], bert.embed(first), atol=1e-6
    )


def test_a_pretrained_checkpoint_is_asked_and_exported(tmp_path, tiny_checkpoint, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "text,text_pair,label\n" + "".join(f"the {t},{t} song,{i % 2}\n" for i, t in enumerate(THINGS)))
    asked = [f"--model_dir={tiny_checkpoint}", "--task=similarity"]
    assert main(["evaluate", *asked, "--eval_file=pairs.csv", "--output_dir=out"]) == 0
    assert "pearson = " in capsys.readouterr().out
    assert main(["predict", *asked, "--input_file=pairs.csv", "--output_file=out.jsonl"]) == 0
    assert set(json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])) == {"similarity", "truncated"}
    assert main(["export", *asked, "--export_dir=models/pairs"]) == 0
    assert main(["verify_export", "--export_dir=models/pairs"]) == 0


@pytest.mark.slow
def test_pairs_alone_are_learnt_from_a_file(tmp_path, tiny_checkpoint, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "text,text_pair\n" + "".join(f"the {t},{t} song\n" for t in THINGS))
    flags = ["--task=similarity", "--train_file=pairs.csv", f"--init_checkpoint={tiny_checkpoint}", "--model_dir=run"]
    flags += ["--num_train_epochs=1", "--train_batch_size=6", "--max_seq_length=8", "--eval_share=0.3"]
    assert main(["finetune", *flags, "--objective=scores"]) == 3
    assert "pairs.csv: has no column 'label' of scores (--label_column)" in capsys.readouterr().err
    assert main(["finetune", *flags, "--objective=ranking", "--layers=mix"]) == 0
    said = capsys.readouterr()
    assert "pairs.csv: no column 'label' (--label_column), so each pair means the same" in said.err
    assert "mrr" in said.out
    assert main(["evaluate", "--model_dir=run", "--eval_file=pairs.csv"]) == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} == {"accuracy", "mrr"}
    assert main(["embed", "--init_checkpoint=run", "--input_file=pairs.csv", "--output_file=out.npz"]) == 0
    vectors = np.load(tmp_path / "out.npz")["embeddings"]
    np.testing.assert_allclose(vectors, Bert.load("run").embed([f"the {t}" for t in THINGS]), atol=1e-6)
