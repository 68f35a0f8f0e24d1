"""The tables of pretraining are open: a new name is one function or class and one row, in Python and in commands."""

import json
import math
import random
import shutil
from itertools import chain

import numpy as np
import pytest
import tensorflow as tf
from conftest import TINY
from keras import ops
from safetensors.numpy import load_file

from keras_bert import Bert
from keras_bert.__main__ import main
from keras_bert.checkpoints import checkpoints
from keras_bert.config import CorpusConfig, MaskingConfig, PretrainConfig
from keras_bert.errors import ConfigError, DataError
from keras_bert.files import sha256
from keras_bert.model.encoder import dense
from keras_bert.pretrain import columns, corpus, documents, masking, objectives, pairs
from keras_bert.pretrain.columns import Column
from keras_bert.pretrain.masking import Masking, Units, begins, number
from keras_bert.pretrain.objectives import Objective, PretrainNetwork, PretrainTask
from keras_bert.pretrain.reader import Corpus
from keras_bert.pretrain.rows import assemble, fill_up, pack

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
NAMES, WORDS = ["rome", "paris", "alice"], ["the", "man", "walks", "in", "un", "##believ", "##able", "7"]
MARKS = [f"d{i}" for i in range(20)]
VOCABULARY = [*SPECIAL, *NAMES, *WORDS, *MARKS, ",", "."]
CLS, SEP, MASK = 2, 3, 4
SHORT = [
    *("--num_train_steps=4", "--eval_steps=2", "--train_batch_size=8", "--size=tiny", "--max_seq_length=24"),
    *("--learning_rate=1e-3", "--num_warmup_steps=1"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A vocabulary, texts in which names are capitalised and each sentence tells its document, and a corpus of them."""
    work, draw = tmp_path_factory.mktemp("open"), random.Random(1)
    (work / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", "utf-8")
    known = [*(name.capitalize() for name in NAMES), "ALICE", "the", "man", "walks", "in", "unbelievable", "7"]
    texts = []
    for mark in MARKS:
        lines = [f"{mark} " + ", ".join(draw.choices(known, k=draw.randint(3, 7))) + "." for _ in range(8)]
        texts.append("\n".join(lines))
    (work / "text.txt").write_text("\n\n".join(texts) + "\n", "utf-8")
    assert main(build(work, "corpus", "--columns=document, cased,word_lengths")) == 0
    return work


def build(folder, name, *more):
    files = [f"--input_file={folder}/text.txt", f"--vocab_file={folder}/vocab.txt", f"--output_dir={folder}/{name}"]
    return ["corpus", *files, "--max_seq_length=24", "--num_processes=1", "--num_shards=1", *more]


def run(folder, name, *more, source="corpus"):
    return ["pretrain", f"--input_file={folder}/{source}", f"--model_dir={folder}/{name}", *SHORT, *more]


def records(folder, name):
    source = Corpus.open(folder / name, verify=True)
    (batch,) = source.in_order(len(source))
    return {name: value.numpy() for name, value in source.parse(tf.constant(batch[0])).items()}


# === Columns ===


def test_columns_tell_of_each_token_word_and_row(folder):
    manifest = json.loads((folder / "corpus" / "manifest.json").read_text("utf-8"))
    assert manifest["columns"] == ["cased", "word_lengths", "document"]
    assert "columns" not in manifest["config"]
    found = records(folder, "corpus")
    seen = set()
    for row, ids in enumerate(found["token_ids"]):
        pieces = [VOCABULARY[i] for i in ids]
        assert found["cased"][row].tolist() == [int(piece in NAMES) for piece in pieces]
        ends = np.cumsum(found["word_lengths"][row])
        cuts = {0, *np.cumsum(found["segment_lengths"][row])}
        starts = [i for i, piece in enumerate(pieces) if not piece.startswith("##") or i in cuts]
        assert [0, *ends] == [*starts, len(pieces)]
        first = [piece for piece in pieces[: found["segment_lengths"][row][0]] if piece in MARKS]
        assert set(first) <= {MARKS[found["document"][row]]}
        seen |= set(pieces)
    assert {"##able", *NAMES} < seen


def test_a_corpus_without_columns_is_as_before(folder, tmp_path):
    assert main(build(folder, "plain")) == 0
    manifest = json.loads((folder / "plain" / "manifest.json").read_text("utf-8"))
    assert "columns" not in manifest
    assert "columns" not in manifest["config"]
    plain, more = records(folder, "plain"), records(folder, "corpus")
    assert set(plain) == {"token_ids", "segment_lengths", "pair_label"}
    for name, values in plain.items():
        assert all(np.array_equal(a, b) for a, b in zip(values, more[name], strict=True))


def test_columns_stay_with_their_tokens_on_the_way_to_a_batch():
    examples = {
        "token_ids": tf.ragged.constant([[5, 8, 9], [6, 12, 13], [7]], dtype=tf.int64),
        "segment_lengths": tf.ragged.constant([[2, 1], [3], [1]], dtype=tf.int64),
        "pair_label": tf.constant([1, -1, -1], tf.int64),
        "cased": tf.ragged.constant([[1, 0, 0], [1, 0, 0], [1]], dtype=tf.int64),
        "word_lengths": tf.ragged.constant([[1, 1, 1], [1, 2], [1]], dtype=tf.int64),
        "document": tf.constant([4, 5, 6], tf.int64),
    }
    batch = assemble(examples, CLS, SEP)
    assert batch["token_ids"].numpy().tolist() == [[2, 5, 8, 3, 9, 3], [2, 6, 12, 13, 3, 0], [2, 7, 3, 0, 0, 0]]
    assert batch["cased"].numpy().tolist() == [[0, 1, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0]]
    assert batch["words"].numpy().tolist() == [[0, 1, 2, 0, 3, 0], [0, 1, 2, 2, 0, 0], [0, 1, 0, 0, 0, 0]]
    assert batch["document"].numpy().tolist() == [4, 5, 6]
    packed = pack(batch, 10)
    assert packed["cased"].numpy().tolist() == [[0, 1, 0, 0, 0, 0, 0, 1, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0, 0, 0]]
    assert packed["document"].numpy().tolist() == [[4, 6], [5, -1]]
    full = fill_up(batch, 4)
    assert full["document"].numpy().tolist() == [4, 5, 6, -1]
    assert full["pair_labels"].numpy().tolist() == [1, -1, -1, -1]
    assert full["cased"].numpy()[3].tolist() == [0] * 6
    assert {name: value.dtype.name for name, value in full.items()} == {
        name: value.dtype.name for name, value in batch.items()
    }


def digits(text, tokens):
    return [int(piece.isdigit()) for piece in tokens.pieces]


def test_a_new_column_is_one_function_and_one_row(folder, monkeypatch, capsys):
    assert main(build(folder, "digits", "--columns=digits")) == 2
    assert "unknown column 'digits'; choose one of cased, word_lengths, document" in capsys.readouterr().err
    monkeypatch.setitem(columns.COLUMNS, "digits", Column("token", make=digits))
    assert main(build(folder, "digits", "--columns=digits")) == 0
    found = records(folder, "digits")
    seven = [(ids == VOCABULARY.index("7")).astype(int).tolist() for ids in found["token_ids"]]
    assert [values.tolist() for values in found["digits"]] == seven
    assert sum(chain.from_iterable(seven)) > 10
    assert main(build(folder, "digits", "--columns=cased")) == 2
    assert "holds another corpus (other columns)" in capsys.readouterr().err
    monkeypatch.delitem(columns.COLUMNS, "digits")
    with pytest.raises(DataError, match="lists columns that this program does not know"):
        Corpus.open(folder / "digits")


def test_records_that_do_not_fit_their_columns_are_named(folder, tmp_path):
    shutil.copytree(folder / "corpus", tmp_path / "c")
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text("utf-8"))
    assert manifest["columns"][1] == "word_lengths"
    source = Corpus.open(tmp_path / "c")
    (record,) = source.read(np.array([0]))
    example = tf.train.Example.FromString(record)
    example.features.feature["cased"].int64_list.value.append(1)
    assert source._fault([example.SerializeToString()], None) == "cased are not as many as the token_ids"
    example = tf.train.Example.FromString(record)
    example.features.feature["word_lengths"].int64_list.value.append(1)
    assert source._fault([example.SerializeToString()], None) == "word_lengths do not add up to the number of token_ids"
    assert source._fault([record], None) == ""


def test_static_rows_have_no_place_for_columns(folder, capsys):
    assert main(build(folder, "static", "--format=static", "--columns=cased")) == 2
    assert "--columns is for --format=dynamic" in capsys.readouterr().err


# === Masks ===


def names_only(rows):
    """Names, all of a row at once, however many."""
    each = number(tf.ones_like(rows.starts))
    return Units(each, each, each, chosen=rows.column("cased") > 0)


def runs_of_names(rows):
    """Neighbouring names are one unit."""
    runs = number(begins(rows.column("cased")) | rows.fixed)
    return Units(runs, runs, runs)


def unknown(rows):
    return tf.ones_like(rows.token_ids)


IDS = np.array([[2, 5, 6, 8, 7, 9, 3, 0]], "int32")
ROW = {
    "token_ids": tf.constant(IDS),
    "padding_mask": tf.constant(IDS > 0),
    "cased": tf.constant([[0, 1, 1, 0, 1, 0, 0, 0]]),
}


def draw(row=ROW, epoch=0, **settings):
    masks = Masking(MaskingConfig(**settings), VOCABULARY, 0)
    return {name: value.numpy() for name, value in masks(row, epoch, tf.constant([0], tf.int64)).items()}


ALL_MASKS = {"mask_share": 1.0, "random_share": 0.0, "keep_share": 0.0}


@pytest.mark.parametrize("named", [True, False])
def test_a_unit_may_choose_by_a_column_itself(named, monkeypatch):
    monkeypatch.setitem(masking.UNITS, "names", names_only)
    batch = draw(mask_unit="names" if named else names_only, max_predictions_per_seq=4, **ALL_MASKS)
    assert batch["token_ids"].tolist() == [[2, 4, 4, 8, 4, 9, 3, 0]]
    assert batch["masked_positions"].tolist() == [[1, 2, 4, 0]]
    assert batch["masked_ids"].tolist() == [[5, 6, 7, 0]]
    assert draw(mask_unit=names_only, max_predictions_per_seq=2)["masked_positions"].tolist() == [[1, 2]]


def test_a_unit_of_a_column_is_chosen_wholly():
    chosen = {
        tuple(draw(mask_unit=runs_of_names, masked_lm_prob=0.3, epoch=e)["masked_positions"][0, :2]) for e in range(30)
    }
    assert {pair for pair in chosen if 1 in pair or 2 in pair} == {(1, 2)}
    assert len(chosen) > 1


def test_words_of_the_corpus_go_before_those_of_the_vocabulary():
    row = ROW | {"words": tf.constant([[0, 1, 1, 1, 2, 2, 0, 0]])}
    chosen = {
        tuple(
            np.flatnonzero(
                draw(row, mask_unit="whole_word", masked_lm_prob=0.3, epoch=e, **ALL_MASKS)["token_ids"][0] == 4
            )
        )
        for e in range(20)
    }
    assert chosen == {(4, 5)}  # two tokens are to be chosen, and only the second word has so few


@pytest.mark.parametrize("named", [True, False])
def test_a_replacement_is_one_function_and_one_row(named, monkeypatch):
    monkeypatch.setitem(masking.REPLACEMENTS, "unknown", unknown)
    shares = {"mask_share": 0.0, "random_share": 0.0, "keep_share": 0.0}
    replacements = "unknown:1" if named else {unknown: 1.0}
    batch = draw(masked_lm_prob=1.0, replacements=replacements, **shares)
    assert batch["token_ids"].tolist() == [[2, 1, 1, 1, 1, 1, 3, 0]]


# === Objectives ===


class Capitalised(Objective):
    """Was the word of a token written with a capital letter? Logits `[B, T]` (ERNIE 2.0, Sun et al. 2020)."""

    labels = ("cased", "padding_mask")

    def __init__(self, encoder, *args, **kwargs):
        super().__init__(encoder, *args, **kwargs)
        self.dense = dense(encoder, 1, "dense", self.dtype_policy)

    def build(self, input_shape=None):
        self.dense.build((None, self.encoder_config.hidden_dim))

    def call(self, taps, encoder, batch):
        return self.dense(taps["sequence"])[..., 0]

    def weight(self, batch):
        return ops.sum(ops.cast(batch["padding_mask"], "float32"))

    def sums(self, batch, logits):
        logits, labels = ops.cast(logits, "float32"), ops.cast(batch["cased"], "float32")
        counted = ops.cast(batch["padding_mask"], "float32")
        losses = ops.maximum(logits, 0.0) - logits * labels + ops.log1p(ops.exp(-ops.abs(logits)))
        hits = ops.cast(ops.equal(logits > 0, labels > 0), "float32")
        return ops.sum(losses * counted), {"capitalised_accuracy": (ops.sum(hits * counted), ops.sum(counted))}


def of_rows(weights):
    """The mean over rows of the largest weight in each."""
    return ops.sum(ops.max(weights, axis=1))


@pytest.fixture(scope="module")
def done(folder):
    """A run with an objective of a new name, by the command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(objectives.OBJECTIVES, "capitalised", Capitalised)
        assert main(run(folder, "run", "--objectives=masked_lm:1,capitalised:0.5", "--pack_rows")) == 0
    return folder / "run"


def test_an_objective_is_one_class_and_one_row(done):
    records = [json.loads(line) for line in (done / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [record["step"] for record in records] == [2, 4]
    for record in records:
        both = record["train_masked_lm_loss"] + 0.5 * record["train_capitalised_loss"]
        assert record["train_loss"] == pytest.approx(both, abs=1e-6)
        assert 0 <= record["train_capitalised_accuracy"] <= 1
        assert "train_next_sentence_loss" not in record
    stored = load_file(done / "model.safetensors")
    heads = {path for path in stored if path.startswith("head/") and not path.startswith("head/masked_lm/")}
    assert heads == {"head/capitalised/dense/kernel", "head/capitalised/dense/bias"}
    assert not np.array_equal(stored["head/capitalised/dense/bias"], [0.0])


def test_a_run_with_it_is_resumed_and_loads(done, folder, monkeypatch):
    monkeypatch.setitem(objectives.OBJECTIVES, "capitalised", Capitalised)
    again = folder / "again"
    shutil.copytree(done, again)
    (again / "checkpoints" / "step-000000004.safetensors").unlink()
    (again / "final_metrics.json").unlink()
    (again / "model.safetensors").unlink()
    assert main(run(folder, "again", "--objectives=masked_lm:1,capitalised:0.5", "--pack_rows")) == 0
    assert sha256(again / "model.safetensors") == sha256(done / "model.safetensors")
    found = checkpoints.open_checkpoint(done)
    network = PretrainNetwork(found.encoder, 0, objectives=["masked_lm", Capitalised])
    assert checkpoints.load(network, found).new == ()
    stored = load_file(done / "model.safetensors")
    kernel = network.head.objectives["capitalised"].dense.kernel
    np.testing.assert_array_equal(kernel, stored["head/capitalised/dense/kernel"])
    tuned = Bert.from_checkpoint(done, task="classify", labels=("0", "1"))
    assert [path for path in tuned.report.unused if "capitalised" in path]


def test_its_weights_go_through_another_format_and_back(done, tmp_path):
    for source, target, name in ((done, tmp_path / "hf", "hf"), (tmp_path / "hf", tmp_path / "ours", "keras_bert")):
        assert (
            main(["convert", f"--input_dir={source}", f"--output_dir={target}", f"--to_format={name}", "--verify"]) == 0
        )
    before, beside = load_file(done / "model.safetensors"), load_file(tmp_path / "hf" / "keras_bert_extra.safetensors")
    after = load_file(tmp_path / "ours" / "model.safetensors")
    assert before.keys() == after.keys()
    for path, value in before.items():
        np.testing.assert_array_equal(value, after[path], err_msg=path)
    assert set(beside) == {"head/capitalised/dense/kernel", "head/capitalised/dense/bias"}


def test_an_objective_needs_its_column(folder, monkeypatch, capsys):
    assert main(build(folder, "bare")) == 0
    command = run(folder, "none", "--objectives=masked_lm:1,capitalised:0.5", source="bare")
    assert main(command) == 2
    assert "unknown objective 'capitalised'; choose one of masked_lm, next_sentence" in capsys.readouterr().err
    monkeypatch.setitem(objectives.OBJECTIVES, "capitalised", Capitalised)
    monkeypatch.setitem(masking.UNITS, "names", names_only)
    for more, message in (
        (command, "the objective capitalised reads cased, which this corpus does not hold"),
        (run(folder, "none", "--mask_unit=names", source="bare"), "the mask reads cased, which this corpus does not"),
    ):
        assert main(more) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert message in error
        assert "build it with `keras-bert corpus --columns=cased`" in error
    assert not (folder / "none").exists()


def test_its_sums_are_those_of_numpy():
    network = PretrainNetwork(TINY, 0, objectives=["masked_lm", Capitalised])
    batch = {name: np.asarray(value) for name, value in ROW.items()}
    logits = np.array([[0.0, 2.0, -1.0, 0.5, 3.0, -2.0, 1.0, 9.0]], "float32")
    loss, measures = network.head.objectives["capitalised"].sums(batch, logits)
    signs = [1 if c else -1 for c in batch["cased"][0]]
    by_hand = sum(math.log1p(math.exp(-s * x)) for s, x in list(zip(signs, logits[0].tolist(), strict=True))[:7])
    assert float(loss) == pytest.approx(by_hand, rel=1e-5)
    assert [float(x) for x in measures["capitalised_accuracy"]] == [4, 7]
    assert network.encoders == (network.encoder,)


def test_objectives_are_weighted_and_reduced_by_name_or_value(monkeypatch):
    chosen = PretrainConfig(objectives={"masked_lm": 1.0, Capitalised: 0.5}).weights
    network = PretrainNetwork(TINY, 0, objectives=list(chosen), reduction=of_rows)
    task = PretrainTask(network, {"capitalised": 0.5})
    assert task.factors == {"masked_lm": 1.0, "capitalised": 0.5}
    weights = {"masked_weights": np.array([[1, 1, 0], [1, 0, 0]], "float32")}
    assert float(network.head.objectives["masked_lm"].weight(weights)) == 2
    monkeypatch.setitem(objectives.REDUCTIONS, "rows", of_rows)
    assert PretrainNetwork(TINY, 0, reduction="rows").settings[2] == "rows"
    assert PretrainConfig(loss_reduction="rows").loss_reduction == "rows"
    with pytest.raises(ConfigError, match="the objective next_sentence needs a corpus with sentence pairs"):
        PretrainNetwork(TINY, 0, objectives=["masked_lm", "next_sentence"])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("masked_lm", "objectives must be NAME:WEIGHT with commas between, got 'masked_lm'"),
        ("masked_lm:1,masked_lm:2", "objectives names masked_lm twice"),
        ("masked_lm:0", "weights of objectives must be above 0"),
        ("masked_lm:x", "got 'masked_lm:x'"),
        (":1", "got ':1'"),
    ],
)
def test_objectives_that_cannot_be_are_refused(value, message):
    with pytest.raises(ConfigError, match=message):
        PretrainConfig(objectives=value)


# === Texts and pairs ===


def commas(paragraph):
    return [part.strip() for part in paragraph.split(",") if part.strip(" .")]


def one_line(lines, part, column):
    """Each line is a document."""
    for offset, line in lines:
        if offset >= part.stop:
            return
        if line.strip():
            yield line.strip()
            yield None


def mirrored(document, start, stop, target, other, rng):
    """Is b the same as a (0), a backwards (1), or another passage (2)?"""
    a = list(chain.from_iterable(document[start:stop]))[: target // 2]
    label = rng.randrange(3)
    return pairs.Pair(a, (a, a[::-1], list(other()[0]))[label], label, stop - start)


def test_sentences_readers_and_pairs_of_new_names(folder, monkeypatch, capsys):
    names = ["--sentences=commas", "--input_format=one_line", "--pairs=mirrored"]
    for i, name in enumerate(names):
        assert main(build(folder, "mirrored", name)) == 2
        assert name.split("=")[0][2:] in capsys.readouterr().err, i
    monkeypatch.setitem(documents.SENTENCES, "commas", commas)
    monkeypatch.setitem(documents.READERS, "one_line", one_line)
    monkeypatch.setitem(pairs.PAIRS, "mirrored", pairs.Pairs(mirrored, 3))
    assert main(build(folder, "mirrored", *names)) == 0
    text = (folder / "text.txt").read_text("utf-8")
    totals = json.loads((folder / "mirrored" / "manifest.json").read_text("utf-8"))["totals"]
    assert totals["documents"] == len([line for line in text.splitlines() if line])
    assert totals["sentences"] == text.count(",") + totals["documents"]
    found = records(folder, "mirrored")
    assert set(found["pair_label"].tolist()) == {0, 1, 2}
    whole = 0
    for ids, lengths, label in zip(found["token_ids"], found["segment_lengths"], found["pair_label"], strict=True):
        a, b = ids[: lengths[0]].tolist(), ids[lengths[0] :].tolist()
        whole += label < 2 and len(a) == len(b)
        assert label == 2 or len(a) != len(b) or b == (a if label == 0 else a[::-1])
    assert whole > 10


@pytest.mark.slow
def test_a_run_by_names_that_are_all_new(folder, monkeypatch):
    monkeypatch.setitem(pairs.PAIRS, "mirrored", pairs.Pairs(mirrored, 3))
    monkeypatch.setitem(masking.UNITS, "names", names_only)
    monkeypatch.setitem(masking.REPLACEMENTS, "unknown", unknown)
    monkeypatch.setitem(objectives.REDUCTIONS, "rows", of_rows)
    assert main(build(folder, "mirrors", "--pairs=mirrored", "--columns=cased")) == 0
    more = ["--mask_unit=names", "--replacements=unknown:0.2", "--mask_share=0.6", "--loss_reduction=rows"]
    assert main(run(folder, "new", *more, source="mirrors")) == 0
    last = json.loads((folder / "new" / "final_metrics.json").read_text("utf-8"))["last"]
    assert {"train_masked_lm_loss", "train_next_sentence_loss", "train_perplexity"} < set(last)
    assert load_file(folder / "new" / "model.safetensors")["head/pair/kernel"].shape[1] == 3


def test_values_that_have_no_name_cannot_be_saved(folder, tmp_path):
    files = [str(folder / "text.txt")], str(folder / "vocab.txt"), tmp_path / "out"
    config = CorpusConfig(sentences=commas)
    with pytest.raises(ConfigError, match="commas is no name that can be saved"):
        corpus.build(config, *files, num_processes=1, stream=None)
