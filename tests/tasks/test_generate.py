"""Generating texts: rows and losses by hand, the search against plain Python, and a task that is learnt."""

import dataclasses
import importlib.util
import json
import math
import random
import sys

import checks
import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import TINY, WORDS
from test_fill_mask import fresh

from keras_bert.__main__ import main
from keras_bert.bert import Bert
from keras_bert.config import DataConfig, EncoderConfig, HeadConfig, OptimizerConfig, TextConfig, TrainConfig
from keras_bert.errors import ConfigError, DataError
from keras_bert.model.encoder import Encoder, Memory
from keras_bert.model.positions import POSITIONS
from keras_bert.tasks import metrics, words
from keras_bert.tasks.network import Network
from keras_bert.text.text import Text

CLS, SEP, MASK_ID = (WORDS.index(piece) for piece in ("[CLS]", "[SEP]", "[MASK]"))
TEXTS = ["fire in the city", "", "storm " * 30, "a b c d", "\u6771\u4eac \U0001f525 fires!"]
SEQ2SEQ = dataclasses.replace(TINY, attention_mask="seq2seq")


def ids(text):
    return [WORDS.index(piece) for piece in text.split()]


def make(beam_size=1, penalty=0.6, most=5, length=16, seed=0):
    """A random model whose answers differ from text to text."""
    head = HeadConfig(task="generate", max_target_length=most, beam_size=beam_size, length_penalty=penalty)
    network = checks.randomize(Network(SEQ2SEQ, head), seed)
    return Bert(Text(WORDS, TextConfig(max_seq_length=length)), network)


# === Rows ===


def test_a_text_is_cut_alike_with_and_without_its_target():
    text = Text(WORDS, TextConfig(max_seq_length=12)).before_target(5)
    alone, both = text(["a b c d e f g", "a"]), text(["a b c d e f g", "a"], ["h i j k l m", "n"])
    np.testing.assert_array_equal(alone["token_ids"][0], [CLS, *ids("a b c d e"), SEP])
    np.testing.assert_array_equal(both["token_ids"][0], [CLS, *ids("a b c d e"), SEP, *ids("h i j k"), SEP])
    np.testing.assert_array_equal(both["segment_ids"][0], [0] * 7 + [1] * 5)
    assert alone["truncated"].numpy().tolist() == both["truncated"].numpy().tolist() == [True, False]
    assert alone["num_tokens"].numpy().tolist() == [9, 3]
    with pytest.raises(ConfigError, match="max_target_length 10 leaves no room for a text in max_seq_length 12"):
        text.before_target(10)


def test_what_is_told_from_where_by_hand():
    text = Text(WORDS, TextConfig(max_seq_length=16)).before_target(4)
    features = {k: np.asarray(v) for k, v in text(["a b", "c"], ["d", "e f"]).items()}
    # [CLS] a b [SEP] d [SEP] and [CLS] c [SEP] e f [SEP]
    d, e, f, end = (i + 1 for i in (*ids("d e f"), SEP))
    targets = np.asarray(words.next_tokens(features))
    np.testing.assert_array_equal(targets, [[0, 0, 0, d, end, 0], [0, 0, e, f, end, 0]])
    np.testing.assert_array_equal(words.target_places(features, 4), [[3, 4, 5, 5], [2, 3, 4, 5]])
    np.testing.assert_array_equal(words.target_places(features, 9)[0], [3, 4, 5, 5, 5, 5])
    logits = np.zeros((2, 4, 7), "float32")
    np.testing.assert_array_equal(words.at_target_places(targets, logits, 4), [[d, end, 0, 0], [e, f, end, 0]])


def test_the_loss_and_what_is_right_by_hand():
    bert = make(most=4)
    features = bert.network.head.prepare_text(bert.text)(["a b", "c"], ["d", "e f"])
    given = {name: features[name] for name in ("token_ids", "segment_ids", "padding_mask")}
    head, logits = bert.network.head, np.array(bert.network(given))
    targets = head.targets(np.zeros(2, "int32"), given)
    wanted = [[*ids("d"), SEP], [*ids("e f"), SEP]]
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    losses = [-sum(logp[i, j, token] for j, token in enumerate(row)) for i, row in enumerate(wanted)]
    np.testing.assert_allclose(head.loss(targets, logits), losses, rtol=1e-5)
    np.testing.assert_array_equal(head.counts(targets), [2, 3])
    logits[0, 0, ids("d")] = logits[1, 2, SEP] = 99
    logits[0, 1, SEP] = -99
    answer = {k: np.asarray(v) for k, v in head.answer(logits, given).items()}
    best = [[int(np.argmax(logits[i, j])) == token for j, token in enumerate(row)] for i, row in enumerate(wanted)]
    assert answer["num_right"].tolist() == [sum(row) for row in best]
    assert answer["num_wanted"].tolist() == [2, 3]
    assert head.metrics_of(None, answer)["token_accuracy"] == pytest.approx(sum(map(sum, best)) / 5)


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        ("fire ##s in the city", "fires in the city"),
        ("the city , fire ##ed !", "the city, fireed!"),
        ("##s fire", "s fire"),
        ("", ""),
    ],
)
def test_pieces_become_text(pieces, text):
    found = Text(WORDS).detokenize(tf.constant([[*ids(pieces), -1, -1], [*[-1] * len(ids(pieces)), -1, -1]]))
    assert [t.decode() for t in found.numpy()] == [text, ""]


def test_chinese_has_no_spaces():
    vocabulary = [*WORDS, "\u5929", "\u6c14", "\u3002", "2019", "(", ")", "it", "'", "-"]
    pieces = ["天", "气", "2019", "天", "。", "the", "(", "气", ")", "it", "'", "s", "fire", "-", "city"]
    found = Text(vocabulary).detokenize(tf.constant([[vocabulary.index(p) for p in pieces]]))
    assert found.numpy()[0].decode() == "\u5929\u6c142019\u5929\u3002the (\u6c14) it's fire-city"


def test_a_single_id_is_no_text():
    with pytest.raises(ConfigError, match="rows of ids, got a single one"):
        Text(WORDS).detokenize(tf.constant(5))


# === Heads: the promises of every network ===


def padded(logits, there, width=24):
    logits = tf.where(tf.convert_to_tensor(there)[:, :, None], logits, tf.zeros_like(logits))
    return tf.pad(logits, [[0, 0], [0, width - tf.shape(logits)[1]], [0, 0]])


def run_generate(network, given):
    full = network.encoder.complete(given)
    logits = network(given)
    return padded(logits, words.at_target_places(words.next_tokens(full), logits, 24) > 0)


def run_fill_mask(network, given):
    full = network.encoder.complete(given)
    return padded(network(given), network.head.places(full) < tf.shape(full["token_ids"])[1])


NETWORKS = {
    "generate": (SEQ2SEQ, HeadConfig(task="generate", max_target_length=24), run_generate),
    "fill_mask": (
        dataclasses.replace(TINY, vocab_size=10),
        HeadConfig(task="fill_mask", mask_token_id=9),
        run_fill_mask,
    ),
}


@pytest.mark.parametrize("promise", checks.PROMISES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("task", NETWORKS)
def test_promises(task, promise, tmp_path, monkeypatch):
    encoder, head, run = NETWORKS[task]
    monkeypatch.setattr(checks, "TINY", encoder)  # its vocabulary is what features are drawn from
    part = checks.Part(lambda dtype: Network(encoder, head, dtype=dtype), run, positions=False, silent="key/bias")
    promise(part, tmp_path)


# === The search ===


def next_scores(bert, source, target):
    """Log-probabilities of what comes after a target, of a row that is made by hand."""
    row = [CLS, *source, SEP, *target]
    segments = [0] * (len(source) + 2) + [1] * len(target)
    given = {"token_ids": np.array([row]), "segment_ids": np.array([segments]), "padding_mask": np.ones((1, len(row)))}
    taps = bert.network.encoder({k: v.astype("int32") for k, v in given.items()})
    table = bert.network.encoder.tokens.embeddings
    logits = np.array(bert.network.head.masked_lm(taps["sequence"][:, -1:], table))[0, 0].astype("float64")
    logits[[WORDS.index(piece) for piece in ("[PAD]", "[UNK]", "[CLS]", "[MASK]")]] = -1e30
    return logits - logits.max() - math.log(np.exp(logits - logits.max()).sum())


def plain_search(bert, source, size, penalty, most):
    """`(tokens, score, did it end)` of the best hypotheses."""
    beam = [((), 0.0, False)]
    for _ in range(most):
        found = []
        for tokens, total, ended in beam:
            if ended:
                found.append((tokens, total, True))
                continue
            for token, logp in enumerate(next_scores(bert, source, tokens)):
                found.append(((*tokens, *[token] * (token != SEP)), total + logp, token == SEP))
        found.sort(key=lambda h: -h[1] / ((5 + len(h[0]) + h[2]) / 6) ** penalty)
        beam = found[:size]
    return [(t, total / ((5 + len(t) + ended) / 6) ** penalty, ended) for t, total, ended in beam]


@pytest.mark.parametrize(("size", "penalty"), [(1, 0.6), (3, 0.0), (3, 2.0)])
def test_predict_finds_what_plain_python_finds(size, penalty):
    bert, ended = make(size, penalty), set()
    for text, answer in zip(TEXTS, bert.predict(TEXTS), strict=True):
        json.dumps(answer)
        source = bert.text.tokenize([text]).to_list()[0][: 16 - 5 - 2]
        wanted = plain_search(bert, source, size, penalty, 5)
        spelled = bert.text.detokenize(tf.constant([[*w[0], *[-1] * (5 - len(w[0]))] for w in wanted])).numpy()
        assert [n["generated"] for n in answer["nbest"]] == [t.decode() for t in spelled]
        assert [n["score"] for n in answer["nbest"]] == pytest.approx([w[1] for w in wanted], abs=1e-5)
        assert (answer["generated"], answer["ended"]) == (answer["nbest"][0]["generated"], wanted[0][2])
        assert answer["truncated"] is (text == TEXTS[2])
        ended.add(answer["ended"])
    assert len({a["generated"] for a in bert.predict(TEXTS)}) > 2


@pytest.mark.parametrize("kind", POSITIONS)
def test_tokens_read_one_by_one_are_as_if_read_together(kind):
    encoder = checks.randomize(Encoder(dataclasses.replace(SEQ2SEQ, positions=kind, num_layers=2)))
    draw = np.random.default_rng(1)
    token_ids, lengths = draw.integers(5, len(WORDS), (3, 9)), np.array([4, 2, 5])
    row = np.arange(9)[None] + 0 * lengths[:, None]
    together = {"token_ids": token_ids, "segment_ids": (row >= lengths[:, None]).astype("int32")}
    wanted = np.asarray(encoder(together)["sequence"])
    source, memory = 5, [Memory() for _ in encoder.blocks]
    mask = row[:, :source] < lengths[:, None]
    encoder({"token_ids": token_ids[:, :source], "padding_mask": mask}, memory=memory)
    seen = mask[:, None]
    for i in range(4):
        places = lengths[:, None] + i
        given = {"token_ids": np.take_along_axis(token_ids, places, 1), "segment_ids": np.ones((3, 1), "int32")}
        found = encoder(given | {"positions": places}, memory=memory, seen=seen)["sequence"]
        np.testing.assert_allclose(found, np.take_along_axis(wanted, places[:, :, None], 1), atol=1e-5)
        seen = np.concatenate([seen, np.ones((3, 1, 1), bool)], axis=2)


def test_a_text_alone_and_beside_others_is_the_same():
    bert = make(2)
    together = bert.arrays(TEXTS)
    for i, text in enumerate(TEXTS):
        for found in (bert.arrays([text]), bert.arrays([text, "a " * 50])):
            checks.assert_same({k: v[0] for k, v in found.items()}, {k: v[i] for k, v in together.items()})
    assert bert.predict([]) == []


# === The whole way ===


def digits(count, seed, without=()):
    """Rows of digits, and the same from the last to the first."""
    draw, texts = random.Random(seed), []
    while len(texts) < count:
        text = " ".join(draw.choices("0123456789", k=draw.randint(1, 4)))
        if text not in without:
            texts.append(text)
    return texts, [text[::-1] for text in texts]


@pytest.fixture(scope="module")
def trained():
    keras.utils.set_random_seed(1)
    encoder = EncoderConfig(
        vocab_size=len(WORDS),
        num_layers=2,
        num_heads=4,
        hidden_dim=32,
        intermediate_dim=64,
        max_positions=16,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        initializer_range=0.1,
        attention_mask="seq2seq",
    )
    network = Network(encoder, HeadConfig(task="generate", max_target_length=6, beam_size=2))
    bert = Bert(Text(WORDS, TextConfig(max_seq_length=16)), network)
    result = bert.fit(
        *digits(2000, 1),
        evaluation=digits(100, 2),
        config=TrainConfig(num_train_epochs=4, train_batch_size=64),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        progress=None,
    )
    return bert, result


def test_digits_are_learnt_to_be_turned_round(trained):
    bert, result = trained
    assert result.best["token_accuracy"] > 0.95
    texts, targets = digits(100, 3, without=set(digits(2000, 1)[0]))
    answers = bert.predict(texts)
    assert np.mean([a["generated"] == target for a, target in zip(answers, targets, strict=True)]) > 0.9
    assert all(a["ended"] for a in answers)


def test_training_counts_what_greedy_search_finds(trained):
    bert, result = trained
    bert.network.head.config = dataclasses.replace(bert.network.head.config, beam_size=1)
    try:
        bert._answer = {}
        texts, targets = digits(100, 2)
        same = [a["generated"] == target for a, target in zip(bert.predict(texts), targets, strict=True)]
        assert result.best["exact_match"] == pytest.approx(np.mean(same))
        assert np.array_equal(result.answers["num_right"] == result.answers["num_wanted"], same)
    finally:
        bert.network.head.config = dataclasses.replace(bert.network.head.config, beam_size=2)
        bert._answer = {}


def test_the_exported_model_answers_as_predict(trained, tmp_path):
    bert, _ = trained
    texts = [*digits(4, 5)[0], "", "9 " * 40]
    folder = bert.export(tmp_path / "model")
    found, wanted = fresh(folder, texts), bert.arrays(texts)
    checks.assert_same(found, wanted)
    model = tf.saved_model.load(str(folder))
    row = bert.network.head.prepare_text(bert.text)(texts[:4])
    names = ("input_word_ids", "input_mask", "input_type_ids")
    values = (tf.cast(row[n], tf.int32) for n in ("token_ids", "padding_mask", "segment_ids"))
    of_ids = model.signatures["token_ids"](**dict(zip(names, values, strict=True)))
    np.testing.assert_array_equal(of_ids["generated"], wanted["generated"][:4])
    assert "text2text-generation" in (folder / "README.md").read_text("utf-8")


@pytest.mark.slow
def test_the_commands(tiny_checkpoint, tmp_path, capsys, monkeypatch):
    texts, targets = digits(40, 1)
    lines = [f"{i}\t{text}\t{target}" for i, (text, target) in enumerate(zip(texts, targets, strict=True))]
    (tmp_path / "train.tsv").write_text("\n".join(["id\tsource\ttarget", *lines]) + "\n", "utf-8")
    model, run = ["--max_seq_length=16", "--max_target_length=6"], f"--model_dir={tmp_path}/run"
    argv = ["finetune", "--task=generate", f"--train_file={tmp_path}/train.tsv", f"--init_checkpoint={tiny_checkpoint}"]
    assert main([*argv, run, *model, "--num_train_epochs=1", "--train_batch_size=8"]) == 0
    said = capsys.readouterr()
    assert "token_accuracy" in said.out
    assert "new, with random initial values: head/masked_lm/" in said.err
    saved = json.loads((tmp_path / "run/keras_bert.json").read_text("utf-8"))
    assert (saved["encoder"]["attention_mask"], saved["head"]["max_target_length"]) == ("seq2seq", 6)
    assert (saved["data"]["text_column"], saved["data"]["label_column"]) == ("source", "target")

    output = f"--output_file={tmp_path}/out.csv"
    assert main(["predict", run, f"--input_file={tmp_path}/train.tsv", output, "--beam_size=3"]) == 0
    rows = (tmp_path / "out.csv").read_text("utf-8").splitlines()
    assert rows[0] == "id,target"
    assert len(rows) == 41
    for name in ("rouge_score", "rouge_score.rouge_scorer"):  # the second may have been imported by another test
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["evaluate", run, f"--eval_file={tmp_path}/train.tsv"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "rouge-score" in line]
    assert "pip install keras3-bert[generate]" in line


def test_what_cannot_be_used(tiny_checkpoint, tmp_path, capsys):
    (tmp_path / "train.csv").write_text("source,target\na,b\nc, \n", "utf-8")
    argv = ["finetune", "--task=generate", f"--train_file={tmp_path}/train.csv", f"--init_checkpoint={tiny_checkpoint}"]
    argv.append(f"--model_dir={tmp_path}/run")
    for more, code, message in (
        ([], 3, "train.csv, line 3: no target; every text needs a target"),
        (["--text_pair_column=b"], 2, "--text_pair_column has no meaning with --task=generate"),
        (["--labels=a,b"], 2, "--labels has no meaning"),
        (["--beam_size=0"], 2, "beam_size must be from 1 to 1000"),
        (["--max_target_length=1"], 2, "max_target_length must be at least 2"),
        (["--max_windows=2"], 2, "--max_windows has no meaning"),
    ):
        assert main([*argv, *more]) == code
        assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    bert = make(most=14)
    with pytest.raises(ConfigError, match="leaves no room"):
        bert.predict(["a"])
    with pytest.raises(ConfigError, match="attention_mask seq2seq"):
        Network(TINY, HeadConfig(task="generate"))
    with pytest.raises(ConfigError, match="generate reads single texts"):
        Bert.from_checkpoint(tiny_checkpoint, task="generate", data=DataConfig(text_pair_column="b"))
    with pytest.raises(DataError, match="every text needs a target"):
        make().fit(["a", "b"], ["c", ""], evaluation=(["a"], ["c"]), progress=None)


def test_a_run_is_gone_on_with_and_converted(tiny_checkpoint, tmp_path):
    bert = Bert.from_checkpoint(tiny_checkpoint, task="generate", max_seq_length=16, head={"max_target_length": 5})
    assert {path.split("/")[1] for path in bert.report.new} == {"masked_lm"}
    bert.save(tmp_path / "run")
    again = Bert.from_checkpoint(tmp_path / "run", task="generate", head={"max_target_length": 5})
    argv = [f"--input_dir={tmp_path}/run", "--to_format=keras_bert", f"--output_dir={tmp_path}/copy", "--verify"]
    assert main(["convert", *argv]) == 0
    for other in (again, Bert.load(tmp_path / "copy")):
        assert other.network.head.config == bert.network.head.config
        assert other.network.encoder.config == bert.network.encoder.config
        assert other.text.config == bert.text.config
        np.testing.assert_equal([w.numpy() for w in other.network.weights], [w.numpy() for w in bert.network.weights])


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"distribution_strategy": "mirrored"}, {"jit_compile": "on"}, {"grad_accum_steps": 2}])
def test_other_ways_to_train_come_to_the_same(how):
    runs = []
    for more in ({}, how):
        encoder = dataclasses.replace(SEQ2SEQ, num_layers=1, hidden_dropout=0.0, attention_dropout=0.0)
        network = checks.randomize(Network(encoder, HeadConfig(task="generate", max_target_length=6)))
        bert = Bert(Text(WORDS, TextConfig(max_seq_length=16)), network)
        config = TrainConfig(num_train_epochs=1, train_batch_size=8, **more)
        runs.append(bert.fit(*digits(40, 1), evaluation=digits(21, 2), config=config, progress=None))
    first, second = (run.best for run in runs)
    for name in ("train_loss", "eval_loss", "token_accuracy"):
        assert second[name] == pytest.approx(first[name], rel=1e-4)


@pytest.mark.slow
def test_targets_that_are_cut_are_counted(capsys):
    bert = make(most=4)
    config = TrainConfig(num_train_epochs=1)
    bert.fit(["a", "b"], ["a b c", "a b c d"], evaluation=(["a"], ["c"]), config=config, progress=sys.stderr)
    assert "warning: 1 of 2 targets have more than 3 tokens and are cut" in capsys.readouterr().err


# === Metrics ===


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_rouge_bleu_and_exact_match():
    for name in ("rouge_score", "sacrebleu"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(reason=f"{name} is not installed (extra generate)")
    gold = ["the cat sat on the mat", "\u4eca\u5929\u5929\u6c14\u5f88\u597d"]
    same = metrics.generation(gold, ["The cat sat  on the mat", "\u4eca\u5929 \u5929\u6c14\u5f88\u597d"])
    assert same == pytest.approx({"rouge_l": 1, "bleu": 1, "exact_match": 1})
    found = metrics.generation(gold, ["the cat on a mat", "\u4eca\u5929\u5929\u6c14"])
    # longest common subsequences: 4 of 6 and of 5, and 4 of 6 and of 4
    assert found["rouge_l"] == pytest.approx((2 * 4 / 11 + 2 * 4 / 10) / 2)
    assert found["exact_match"] == 0
    assert 0 < found["bleu"] < 1
