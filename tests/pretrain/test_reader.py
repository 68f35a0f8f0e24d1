"""Reading a corpus: the order that needs no iterator, and every fault of its files."""

import gzip
import itertools
import json
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf
from conftest import shared

from keras_bert.errors import DataError
from keras_bert.files import sha256
from keras_bert.pretrain import reader, rows, tfrecords
from keras_bert.pretrain.corpus import SHARD
from keras_bert.pretrain.reader import Corpus

COUNTS = (7, 0, 13, 5, 31, 1, 9)
TOTAL = sum(COUNTS)


def record(number: int, **changes: bytes) -> bytes:
    """A row whose ids tell its number."""
    features = {
        "token_ids": tfrecords.int64s([number, *range(number % 5 + 1)]),
        "segment_lengths": tfrecords.int64s([1, number % 5 + 1]),
        "pair_label": tfrecords.int64s([number % 2]),
    }
    return tfrecords.example(features | changes)


def write(folder, counts=COUNTS):
    """A corpus with a manifest; records are numbered through all shards."""
    folder.mkdir(parents=True)
    shards, first = [], 0
    for i, count in enumerate(counts):
        path = folder / SHARD.format(i, len(counts))
        path.write_bytes(tfrecords.frame([record(n) for n in range(first, first + count)]))
        first += count
        size = path.stat().st_size
        shards.append({"file": path.name, "records": count, "bytes": size, "sha256": sha256(path)})
    config = {"format": "dynamic", "max_seq_length": 128}
    manifest = {"version": 1, "config": config, "vocab_size": 100, "shards": shards}
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("reader") / "corpus")


@pytest.fixture
def corpus(folder, monkeypatch):
    monkeypatch.setattr(reader, "GROUP", 3)
    with_groups = Corpus.open(folder)
    yield with_groups
    with_groups.close()


@pytest.fixture
def copy(folder, tmp_path):
    """A corpus to damage, and its largest shard."""
    shutil.copytree(folder, tmp_path / "c")
    return tmp_path / "c", tmp_path / "c" / SHARD.format(4, len(COUNTS))


def numbers(corpus, records):
    return [ids[0] for ids in corpus.parse(tf.constant(records))["token_ids"].to_list()]


def some(batches, count):
    return list(itertools.islice(batches, count))


def same(a, b):
    return a[0] == b[0] and np.array_equal(a[1], b[1]) and np.array_equal(a[2], b[2])


# === Order ===


@pytest.mark.parametrize("batch_size", [1, 8, 66, 200])
def test_a_batch_is_the_same_wherever_reading_starts(corpus, batch_size):
    count = 20
    whole = some(corpus.batches(batch_size, seed=3), count)
    for start in range(count):
        assert same(next(corpus.batches(batch_size, seed=3, start=start)), whole[start])
    assert all(same(a, b) for a, b in zip(some(corpus.batches(batch_size, 3, start=7), 5), whole[7:], strict=False))


def test_far_batches_need_nothing_that_comes_before(corpus):
    records, epochs, indices = next(corpus.batches(8, seed=1, start=10**12))
    assert epochs[0] == 8 * 10**12 // TOTAL
    assert numbers(corpus, records) == indices.tolist()


@pytest.mark.parametrize("parts", [1, 2, 3, 8])
def test_parts_make_up_the_batch(corpus, parts):
    whole = some(corpus.batches(8, seed=5, start=4), 12)
    shares = [some(corpus.batches(8, seed=5, start=4, part=(r, parts)), 12) for r in range(parts)]
    for i, (records, epochs, indices) in enumerate(whole):
        for r in range(parts):
            assert same(shares[r][i], (records[r::parts], epochs[r::parts], indices[r::parts]))


@pytest.mark.parametrize("batch_size", [4, 50, 150])
def test_every_record_is_read_once_an_epoch(corpus, batch_size):
    seen = [
        (epoch, index)
        for _, epochs, indices in some(corpus.batches(batch_size, seed=2), -(-5 * TOTAL // batch_size))
        for epoch, index in zip(epochs.tolist(), indices.tolist(), strict=True)
    ]
    orders = []
    for epoch in range(5):
        order = [index for e, index in seen if e == epoch]
        assert sorted(order) == list(range(TOTAL))
        orders.append(tuple(order))
    assert [e for e, _ in seen] == sorted(e for e, _ in seen)
    assert len(set(orders)) == 5


def test_seeds_give_other_orders_and_records_are_those_of_their_numbers(corpus):
    first, second = (next(corpus.batches(TOTAL, seed)) for seed in (1, 2))
    assert first[2].tolist() != second[2].tolist()
    assert numbers(corpus, first[0]) == first[2].tolist()
    assert len(corpus) == TOTAL


def test_a_group_is_read_before_the_next(corpus):
    """Memory is bounded by the records of a group: an epoch goes through one after the other."""
    ends = np.cumsum([c for c in COUNTS if c])
    _, _, indices = next(corpus.batches(TOTAL, seed=9))
    shards = np.searchsorted(ends, indices, side="right")
    met = [set(shards[:n]) for n in range(1, TOTAL + 1)]
    assert any(len(m) == 3 and set(shards[n + 1 :]).isdisjoint(m) for n, m in enumerate(met[:-1]))


def test_in_order(corpus):
    batches = list(corpus.in_order(10, limit=25))
    assert [len(records) for records, _, _ in batches] == [10, 10, 5]
    assert np.concatenate([indices for _, _, indices in batches]).tolist() == list(range(25))
    assert sum(len(records) for records, _, _ in corpus.in_order(10)) == TOTAL


def test_few_files_are_open_at_once(corpus):
    list(corpus.in_order(4))
    assert len(corpus._open) <= 6
    corpus.close()
    assert numbers(corpus, corpus.read(np.array([40, 3, 40]))) == [40, 3, 40]


# === Records ===


def test_dynamic_records_become_ragged_rows(folder):
    corpus = Corpus.open(folder, verify=True, vocab_size=100)
    examples = corpus.parse(tf.constant([record(3), record(1)]))
    assert examples["token_ids"].to_list() == [[3, 0, 1, 2, 3], [1, 0, 1]]
    assert examples["segment_lengths"].to_list() == [[1, 4], [1, 2]]
    assert examples["pair_label"].numpy().tolist() == [1, 1]
    batch = tf.function(lambda r: rows.assemble(corpus.parse(r), cls_id=90, sep_id=91))(tf.constant([record(1)]))
    assert batch["token_ids"].numpy().tolist() == [[90, 1, 91, 0, 1, 91]]


def test_records_of_the_original_need_no_manifest(tmp_path):
    source = shared("data/golden/pretraining/tf_examples.tfrecord")
    said = []
    corpus = Corpus.open(source, vocab_size=30522, say=said.append)
    assert (len(corpus), corpus.format) == (60, "static")
    assert said == [f"warning: {source}: no manifest.json beside it; counting and checking 1 files"]
    records, _, _ = next(corpus.in_order(60))
    assert records == list(tf.data.TFRecordDataset(str(source)).as_numpy_iterator())
    examples = corpus.parse(tf.constant(records))
    assert examples["input_ids"].shape == (60, 128)
    assert examples["masked_lm_weights"].dtype == tf.float32
    with pytest.raises(DataError, match=r"record 1: holds the id \d+; ids run from 0 to 99"):
        Corpus.open(source, vocab_size=100, say=said.append)


def test_shards_can_be_chosen(folder):
    assert len(Corpus.open(f"{folder}/shard-0000[23]*")) == 13 + 5


def test_tensorflow_reads_what_is_written_and_the_other_way_round(tmp_path):
    chance = np.random.default_rng(1)
    data = [chance.bytes(n) for n in (0, 1, 7, 8, 9, 63, 64, 65, 1000, 70_000)] + [b"123456789"]
    path = str(tmp_path / "a.tfrecord")
    (tmp_path / "a.tfrecord").write_bytes(tfrecords.frame(data))
    assert list(tf.data.TFRecordDataset(path).as_numpy_iterator()) == data
    with tf.io.TFRecordWriter(path) as writer:
        for item in data:
            writer.write(item)
    assert (tmp_path / "a.tfrecord").read_bytes() == tfrecords.frame(data)
    assert tfrecords.frame([]) == b""


def test_examples_are_those_of_protobuf():
    numbers, values = [0, 1, -1, 127, 128, 16384, 2**40], [1.0, 0.5, -3.0]
    mine = tfrecords.example({"n": tfrecords.int64s(numbers), "v": tfrecords.floats(values)})
    feature = tf.train.Example.FromString(mine).features.feature
    assert list(feature["n"].int64_list.value) == numbers
    assert list(feature["v"].float_list.value) == values


# === Faults ===


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


def replace(folder, shard, data):
    """Another content of a shard that the manifest knows of."""
    shard.write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = next(s for s in manifest["shards"] if s["file"] == shard.name)
    entry |= {"bytes": len(data), "sha256": sha256(shard)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_missing_shard(copy):
    folder, shard = copy
    shard.unlink()
    with pytest.raises(DataError, match=rf"{shard.name}: cannot be read \(No such file"):
        Corpus.open(folder)


def test_a_file_cut_inside_a_record_and_at_the_end_of_one(copy):
    folder, shard = copy
    data = shard.read_bytes()
    descriptor = os.open(shard, os.O_RDONLY)
    boundary = int(tfrecords.scan(descriptor, "")[20][0]) - 12
    os.close(descriptor)
    for size in (boundary, boundary + 5, boundary + 20, len(data) - 1):
        shard.write_bytes(data[:size])
        with pytest.raises(
            DataError, match=rf"{shard.name}: has {size:,} bytes where manifest.json says {len(data):,}"
        ):
            Corpus.open(folder)


def test_a_cut_file_that_the_manifest_agrees_with(copy):
    folder, shard = copy
    data = shard.read_bytes()
    replace(folder, shard, data[:-3])
    with pytest.raises(DataError, match=rf"{shard.name}, record 31: the file is cut inside it"):
        Corpus.open(folder, verify=True)
    replace(folder, shard, data[: len(data) // 2])
    with pytest.raises(DataError, match=rf"{shard.name}, record \d+: the file is cut inside it"):
        next(Corpus.open(folder).batches(TOTAL, 0))
    replace(folder, shard, tfrecords.frame([record(n) for n in range(30)]))
    with pytest.raises(DataError, match=r"has 30 records where manifest.json says 31"):
        next(Corpus.open(folder).batches(TOTAL, 0))


@pytest.mark.parametrize(
    ("inside", "message"),
    [(3, "record 12: its length is damaged"), (9, "record 12: its length is damaged"), (20, "record 12: is damaged")],
)
def test_a_flipped_bit(copy, inside, message):
    folder, shard = copy
    with open(shard, "rb") as file:
        start = int(tfrecords.scan(file.fileno(), "")[11][0]) - 12
    flip(shard, start + inside)
    with pytest.raises(DataError, match=f"{shard.name}, {message}"):
        Corpus.open(folder, verify=True)
    with pytest.raises(DataError, match=f"{shard.name}, {message}"):
        next(Corpus.open(folder).batches(TOTAL, 0))


def test_a_shard_that_was_replaced_by_a_good_one(copy):
    folder, shard = copy
    data = shard.read_bytes()
    shard.write_bytes(tfrecords.frame([record(n) for n in range(30, 61)]))
    assert shard.stat().st_size == len(data)
    Corpus.open(folder)
    with pytest.raises(DataError, match=rf"{shard.name}: is not the file that manifest.json describes"):
        Corpus.open(folder, verify=True)


def test_files_that_are_no_tfrecords(tmp_path):
    whole = tfrecords.frame([record(1)])
    for name, content, message in (
        ("a.tfrecord", gzip.compress(whole), "is packed with gzip"),
        ("b.tfrecord", b"", "is empty"),
        ("c.tfrecord", b"no records at all, only a text", "record 1: its length is damaged"),
        ("d.tfrecord", tfrecords.frame([b"\xff\xfegarbage"]), "record 1: not a tf.train.Example"),
        ("e.tfrecord", whole[:7], "record 1: the file is cut inside it"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}.*{message}"):
            Corpus.open(tmp_path / name, say=lambda line: None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_ids": tfrecords.floats([1.0, 2.0])}, "not as expected"),
        ({"pair_label": tfrecords.int64s([])}, "not as expected"),
        ({"pair_label": tfrecords.int64s([1, 2])}, "not as expected"),
        ({"segment_lengths": tfrecords.int64s([1, 9])}, "segment_lengths do not add up"),
        ({"segment_lengths": tfrecords.int64s([])}, "segment_lengths do not add up"),
        ({"token_ids": tfrecords.int64s([5, 100]), "segment_lengths": tfrecords.int64s([2])}, "holds the id 100"),
        ({"token_ids": tfrecords.int64s([-1, 5]), "segment_lengths": tfrecords.int64s([2])}, "holds the id -1"),
    ],
)
def test_records_that_do_not_fit(copy, changes, message):
    folder, shard = copy
    good = [record(n) for n in range(31)]
    good[17] = record(17, **changes)
    replace(folder, shard, tfrecords.frame(good))
    with pytest.raises(DataError, match=rf"{shard.name}, record 18: {message}"):
        Corpus.open(folder, verify=True, vocab_size=100)
    (folder / "manifest.json").unlink()
    with pytest.raises(DataError, match=rf"{shard.name}, record 18: {message}"):
        Corpus.open(shard, vocab_size=100, say=lambda line: None)


def test_missing_keys_and_static_records_of_another_length(tmp_path):
    path = tmp_path / "a.tfrecord"
    path.write_bytes(tfrecords.frame([tfrecords.example({"ids": tfrecords.int64s([1])})]))
    with pytest.raises(DataError, match=r"record 1: holds ids; rows to pretrain on have token_ids, or input_ids"):
        Corpus.open(path, say=lambda line: None)
    without = tfrecords.example({"token_ids": tfrecords.int64s([1])})
    path.write_bytes(tfrecords.frame([record(1), without]))
    with pytest.raises(DataError, match=r"a.tfrecord, record 2: not as expected \(Feature: pair_label"):
        Corpus.open(path, say=lambda line: None)

    def static(length):
        numbers = ("input_ids", "input_mask", "segment_ids")
        few = {name: tfrecords.int64s([1] * 2) for name in ("masked_lm_positions", "masked_lm_ids")}
        features = {name: tfrecords.int64s([1] * length) for name in numbers} | few
        features |= {"masked_lm_weights": tfrecords.floats([1, 1]), "next_sentence_labels": tfrecords.int64s([0])}
        return tfrecords.example(features)

    path.write_bytes(tfrecords.frame([static(8), static(8), static(9)]))
    with pytest.raises(DataError, match=r"a.tfrecord, record 3: not as expected \(Key: .*9 but output shape: \[8\]\)"):
        Corpus.open(path, say=lambda line: None)


def test_a_corpus_of_a_larger_vocabulary(folder):
    with pytest.raises(DataError, match="made with 100 word pieces, more than the 99 of the model"):
        Corpus.open(folder, vocab_size=99)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not valid JSON"), ("[]", "holds a list"), ('{"version": 9}', "version 9"), ('{"version": 1}', "not whole")],
)
def test_a_bad_manifest(copy, content, message):
    folder, _ = copy
    (folder / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=f"manifest.json: .*{message}"):
        Corpus.open(folder)


def test_nothing_there(tmp_path, folder):
    for source, message in (
        (tmp_path, "holds no manifest.json and no TFRecord files"),
        (tmp_path / "*.tfrecord", "matches no file"),
        (tmp_path / "a.tfrecord", "cannot be read"),
    ):
        with pytest.raises(DataError, match=message):
            Corpus.open(source)
    (tmp_path / "building.json").write_text("{}")
    with pytest.raises(DataError, match="the build is not finished"):
        Corpus.open(tmp_path)
    os.mkfifo(tmp_path / "pipe.tfrecord")
    (tmp_path / "dir.tfrecord").mkdir()
    (tmp_path / "building.json").unlink()
    with pytest.raises(DataError, match="not a regular file"):
        Corpus.open(tmp_path / "pipe.tfrecord")
    with pytest.raises(DataError, match=r"dir.tfrecord: holds no manifest.json"):
        Corpus.open(tmp_path / "dir.tfrecord")
    shutil.copytree(folder, tmp_path / "c")
    (tmp_path / "c/stranger.tfrecord").write_bytes(b"")
    with pytest.raises(DataError, match=r"stranger.tfrecord: is not in .*manifest.json"):
        Corpus.open(f"{tmp_path}/c/*.tfrecord")


def test_a_file_that_is_cut_or_vanishes_while_it_is_read(copy):
    folder, shard = copy
    corpus = Corpus.open(folder)
    list(corpus.in_order(TOTAL))
    with open(shard, "rb+") as file:
        file.truncate(100)
    with pytest.raises(DataError, match=rf"{shard.name}, record \d+: is no longer there"):
        list(corpus.in_order(TOTAL))
    corpus = Corpus.open(f"{folder}/shard-00000*")
    (folder / SHARD.format(0, len(COUNTS))).unlink()
    with pytest.raises(DataError, match=r"shard-00000.*cannot be read"):
        next(corpus.batches(1, 0))
