"""Pretraining: from a corpus to a model that can be fine-tuned, and a run that is killed again and again."""

import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from conftest import WORDS

from keras_bert import Bert
from keras_bert.__main__ import main
from keras_bert.checkpoints.checkpoints import WEIGHTS_FILE, open_checkpoint
from keras_bert.config import SIZES, MaskingConfig, OptimizerConfig, TrainConfig
from keras_bert.files import sha256
from keras_bert.pretrain.objectives import PretrainNetwork
from keras_bert.pretrain.reader import Corpus
from keras_bert.pretrain.run import CorpusBatches, Pretraining
from keras_bert.training.step import Trainer

SHORT = ["--num_train_steps=6", "--eval_steps=3", "--max_eval_steps=2", "--train_batch_size=8", "--eval_batch_size=8"]
FAST = ["--learning_rate=1e-3", "--num_warmup_steps=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A directory with a vocabulary, texts, and two corpora of them: `short` and `long`."""
    work, draw = tmp_path_factory.mktemp("pretrain"), random.Random(1)
    (work / "vocab.txt").write_text("\n".join(WORDS) + "\n", "utf-8")
    words = [w for w in WORDS if w.isalnum()]
    documents = ["\n".join(" ".join(draw.choices(words, k=draw.randint(3, 9))) for _ in range(12)) for _ in range(30)]
    (work / "text.txt").write_text("\n\n".join(documents) + "\n", "utf-8")
    for name, length in (("short", 16), ("long", 32)):
        flags = [f"--input_file={work}/text.txt", f"--vocab_file={work}/vocab.txt", f"--output_dir={work}/{name}"]
        assert main(["corpus", *flags, f"--max_seq_length={length}", "--num_processes=1", "--num_shards=2"]) == 0
    return work


def command(folder, model_dir, *more):
    """A run of the tiny size over the short corpus."""
    return [
        "pretrain",
        f"--input_file={folder}/short",
        f"--model_dir={model_dir}",
        "--size=tiny",
        "--max_seq_length=32",
        *SHORT,
        *FAST,
        *more,
    ]


@pytest.fixture(scope="module")
def done(folder):
    """A run of two phases with an evaluation: its directory."""
    two = ["--phase_two_steps=2", f"--phase_two_input_file={folder}/long", "--phase_two_batch_size=4"]
    assert main(command(folder, folder / "run", f"--eval_input_file={folder}/short", *two)) == 0
    return folder / "run"


def test_a_run_is_asked_for_the_words_at_masks(done, tmp_path):
    (tmp_path / "in.txt").write_text("the [MASK] is in the [MASK]\n", "utf-8")
    files = [f"--input_file={tmp_path}/in.txt", f"--output_file={tmp_path}/out.jsonl"]
    assert main(["predict", "--task=fill_mask", f"--model_dir={done}", *files]) == 0
    answer = json.loads((tmp_path / "out.jsonl").read_text("utf-8"))
    assert [len(mask["tokens"]) for mask in answer["masks"]] == [5, 5]
    assert set(answer["masks"][0]["tokens"]) < set(WORDS)


def test_a_run_leaves_a_model_and_its_record(done):
    final = json.loads((done / "final_metrics.json").read_text("utf-8"))
    assert [record["step"] for record in final["history"]] == [3, 6]
    last = final["last"]
    assert last["eval_loss"] == pytest.approx(last["eval_masked_lm_loss"] + last["eval_next_sentence_loss"], abs=1e-6)
    assert last["eval_perplexity"] == pytest.approx(np.exp(last["eval_masked_lm_loss"]))
    assert {"train_masked_lm_accuracy", "eval_masked_lm_accuracy", "eval_next_sentence_accuracy"} <= set(last)
    assert final["weights_sha256"] == sha256(done / WEIGHTS_FILE)
    found = open_checkpoint(done)
    assert (found.encoder.hidden_dim, found.encoder.vocab_size, found.encoder.max_positions) == (128, len(WORDS), 32)


def test_fine_tuning_and_converting_start_from_it(done, tmp_path):
    bert = Bert.from_checkpoint(done, task="classify", labels=("0", "1"))
    assert all(path.startswith("head/") for path in bert.report.new)
    assert bert.predict(["fire in the city"])[0]["label"] in ("0", "1")
    flags = ["--from_format=keras_bert", f"--input_dir={done}", f"--output_dir={tmp_path}/hf", "--to_format=hf"]
    assert main(["convert", *flags, "--verify"]) == 0


@pytest.mark.slow
def test_pretraining_goes_on_from_a_model(done, folder, tmp_path):
    flags = [f for f in command(folder, tmp_path / "more") if not f.startswith("--size")]
    assert main([*flags, f"--init_checkpoint={done}"]) == 0
    first = json.loads((tmp_path / "more" / "final_metrics.json").read_text("utf-8"))["history"][0]
    fresh = json.loads((done / "final_metrics.json").read_text("utf-8"))["history"][0]
    assert first["train_masked_lm_loss"] < fresh["train_masked_lm_loss"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--num_warmup_steps=7"], "--num_warmup_steps 7 is more than the 6"),
        (["--phase_two_steps=2"], "--phase_two_input_file and --phase_two_steps go together"),
        (["--phase_two_steps=6"], "must be fewer than all 6 steps"),
        (["--init_checkpoint=somewhere"], "--init_checkpoint has a size, a vocabulary and a case"),
        (["--size="], "a new model needs a --size"),
        (["--freeze_layers=1"], "--freeze_layers of a new model would keep random weights; it needs --init_checkpoint"),
        (["--mask_share=0.5"], "must add up to 1"),
        (["--grad_accum_steps=9"], "more than the 8 rows of a batch"),
        (["--max_seq_length=8"], "has rows of 16 tokens, --max_seq_length is 8"),
        (["--pack_rows", "--jit_compile=on"], "--pack_rows makes batches of changing size"),
        (["--distribution_strategy=tpu", "--num_gpus=1"], "contradict each other"),
    ],
)
def test_flags_that_cannot_be_are_refused(more, message, folder, tmp_path, capsys):
    assert main(command(folder, tmp_path / "run", *more)) == 2
    err = capsys.readouterr().err
    assert message in err
    assert not (tmp_path / "run").exists()


def test_out_of_memory_is_one_line_of_advice(monkeypatch, capsys):
    """A real allocation of 64 TiB, in place of a real run."""
    monkeypatch.setattr("keras_bert.cli.pretrain.run", lambda flags: tf.ones([1 << 44]))
    assert main(["pretrain", "--input_file=x", "--model_dir=y"]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "out of memory; lower --train_batch_size" in line


def test_a_corpus_of_another_vocabulary_is_refused(folder, tmp_path, capsys):
    other = tmp_path / "vocab.txt"
    other.write_text("\n".join([*WORDS[:5], *reversed(WORDS[5:])]) + "\n", "utf-8")
    assert main(command(folder, tmp_path / "run", f"--vocab_file={other}")) == 2
    assert "was made with another vocabulary" in capsys.readouterr().err


def test_a_corpus_that_was_cut_is_refused(folder, tmp_path, capsys):
    shutil.copytree(folder / "short", tmp_path / "short")
    shard = sorted((tmp_path / "short").glob("*.tfrecord"))[0]
    shard.write_bytes(shard.read_bytes()[:-40])
    assert main(command(tmp_path, tmp_path / "run")) == 3
    assert shard.name in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_static_and_dynamic_rows_have_the_same_form(folder, tmp_path):
    flags = [f"--input_file={folder}/text.txt", f"--vocab_file={folder}/vocab.txt", f"--output_dir={tmp_path}/static"]
    assert main(["corpus", *flags, "--format=static", "--max_seq_length=16", "--max_predictions_per_seq=3"]) == 0
    batches = []
    for place in (tmp_path / "static", folder / "short"):
        rows = CorpusBatches(Corpus.open(place), WORDS, MaskingConfig(max_predictions_per_seq=3), TrainConfig(), 16)
        records, epochs, indices = next(rows.corpus.batches(4, 1))
        batches.append(rows.features(tf.constant(records), epochs, indices, fixed=True))
    specs = [{name: (t.dtype, t.shape) for name, t in batch.items()} for batch in batches]
    assert specs[0] == specs[1]


def test_packed_rows_give_the_same_losses(folder):
    corpus, config = Corpus.open(folder / "long"), TrainConfig(eval_batch_size=16)
    shape = dataclasses.replace(SIZES["tiny"], vocab_size=len(WORDS), max_positions=32)
    network = PretrainNetwork(shape, 2)
    trainer = Trainer(lambda policy: Pretraining(PretrainNetwork(shape, 2)), network, OptimizerConfig(), config, 1)
    found, sizes = [], []
    for packed in (False, True):
        rows = CorpusBatches(corpus, WORDS, MaskingConfig(), config, 32, packed)
        sizes.append(sum(len(batch["token_ids"]) for batch in rows.evaluation(trainer, 16, 136)))
        trainer._steps.pop("evaluate", None)  # other features, another graph
        found.append(trainer.evaluate(rows.evaluation(trainer, 16, 136))[0].means())
    assert sizes[1] < sizes[0]
    assert found[1] == pytest.approx(found[0], abs=1e-5)


def test_masks_of_training_change_with_the_epoch_and_those_of_evaluation_do_not(folder):
    rows = CorpusBatches(Corpus.open(folder / "short"), WORDS, MaskingConfig(), TrainConfig(), 16)
    (records, _, indices) = next(rows.corpus.in_order(32))
    first, again, second = (
        rows.features(tf.constant(records), np.full(len(indices), epoch), indices)["token_ids"].numpy()
        for epoch in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != second).any()


TOPICS = [[f"{a}{b}{c}" for c in "xyz"] for a in "abcdefgh" for b in "mnopqr"]


def write_documents(path, topics, seed):
    """96 documents of 100 sentences; with topics, two documents have the words of each, else all have all words."""
    draw, lines = random.Random(seed), []
    for i in range(2 * len(TOPICS)):
        own = TOPICS[i % len(TOPICS)] if topics else [word for topic in TOPICS for word in topic]
        lines += [" ".join(draw.choices(own, k=draw.randint(4, 8))) for _ in range(100)] + [""]
    path.write_text("\n".join(lines), "utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(("topics", "low", "high"), [(True, 0.95, 1.0), (False, 0.45, 0.55)])
def test_next_sentence_is_learnt_where_it_can_be(topics, low, high, tmp_path):
    """More than 95 % where documents have topics; chance where all sentences come from one bag of words.

    Documents are long: at its end one gives a short row, and only a true pair is short, in the paper's recipe too.
    """
    words = [word for topic in TOPICS for word in topic]
    (tmp_path / "vocab.txt").write_text("\n".join([*WORDS[:5], *words]) + "\n", "utf-8")
    for name, seed, copies in (("train", 1, 6), ("held", 2, 1)):
        write_documents(tmp_path / f"{name}.txt", topics, seed)
        flags = [f"--input_file={tmp_path}/{name}.txt", f"--output_dir={tmp_path}/{name}"]
        flags += ["--max_seq_length=32", f"--dupe_factor={copies}"]
        assert main(["corpus", *flags, f"--vocab_file={tmp_path}/vocab.txt", "--num_processes=1"]) == 0
    flags = [f"--input_file={tmp_path}/train", f"--eval_input_file={tmp_path}/held", f"--model_dir={tmp_path}/run"]
    steps = ["--num_train_steps=1500", "--eval_steps=300", "--max_eval_steps=20", "--learning_rate=5e-4"]
    assert main(["pretrain", *flags, *steps, "--size=tiny", "--max_seq_length=32"]) == 0
    last = json.loads((tmp_path / "run" / "final_metrics.json").read_text("utf-8"))["last"]
    print(f"next sentence accuracy with topics {topics}: {last['eval_next_sentence_accuracy']:.4f}")
    assert low < last["eval_next_sentence_accuracy"] <= high


# === Workers ===


def start_worker(index, ports, argv, **environment):
    cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
    settings = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
    command = [sys.executable, "-m", "keras_bert", *argv, "--distribution_strategy=multi_worker_mirrored"]
    environment = os.environ | {"TF_CONFIG": settings} | environment
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@pytest.mark.slow
def test_a_worker_that_goes_away_or_never_comes_is_an_error_and_the_run_goes_on(folder, tmp_path):
    argv = command(folder, tmp_path / "run", "--num_train_steps=200", "--eval_steps=100", "--save_checkpoints_steps=10")
    ports = free_ports(2)
    first, second = (start_worker(i, ports, argv) for i in range(2))
    while not list((tmp_path / "run").glob("checkpoints/step-*.safetensors")):
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.1)
    second.kill()
    second.communicate()
    _, err = first.communicate(timeout=120)
    assert first.returncode == 1
    assert "another worker is gone" in err
    assert len([line for line in err.splitlines() if line.startswith("keras-bert pretrain: error")]) == 1
    alone = start_worker(0, free_ports(2), argv, KERAS_BERT_WORKER_TIMEOUT="5")
    _, err = alone.communicate(timeout=60)
    assert alone.returncode == 1
    assert "waiting for all workers of TF_CONFIG, 5 s at most" in err
    ports = free_ports(2)
    pair = [start_worker(i, ports, argv) for i in range(2)]
    said = [one.communicate(timeout=300)[1] for one in pair]
    assert [one.returncode for one in pair] == [0, 0], said
    assert all("continuing the run" in err for err in said)
    assert json.loads((tmp_path / "run" / "final_metrics.json").read_text("utf-8"))["last"]["step"] == 200


# === Killed ===


def kill_and_go_on(argv, kills, seed):
    """Run a command, kill it with -9 after a random time, again and again; then let it end.

    The times are drawn from how long it takes alone, so that kills fall into start, steps, evaluation and saving.
    """
    draw, done = random.Random(seed), 0
    while done < kills:
        with subprocess.Popen(argv, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
            for line in process.stderr:  # one kill in four comes early, the others while there is work
                if line.startswith(("step", "continuing")) or draw.random() < 0.02:
                    break
            time.sleep(draw.uniform(0, 2.5))
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                done += 1
            else:
                assert process.returncode == 0, process.stderr.read()
                return done
    assert subprocess.run(argv, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False).returncode == 0
    return done


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "kills"), [("one_device", 20), ("mirrored", 5)])
def test_a_run_that_is_killed_again_and_again_ends_bit_identical(strategy, kills, folder, tmp_path):
    """With dropout, shuffling, masks drawn anew each epoch, and evaluation."""
    start = "import sys, tensorflow as tf; from keras_bert.__main__ import main\n"
    start += "cpu = tf.config.list_physical_devices('CPU')[0]\n"
    start += "tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)\n"
    start += "sys.exit(main(sys.argv[1:]))"
    more = ["--num_train_steps=400", "--eval_steps=40", "--save_checkpoints_steps=7", "--train_batch_size=9"]
    more += [f"--distribution_strategy={strategy}", f"--eval_input_file={folder}/short"]
    argv = [sys.executable, "-c", start, *command(folder, tmp_path / "whole", *more)]
    subprocess.run(argv, check=True, capture_output=True)
    argv = [sys.executable, "-c", start, *command(folder, tmp_path / "killed", *more)]
    done = kill_and_go_on(argv, kills, seed=7)
    print(f"{strategy}: {done} kills")
    assert done == kills
    finals = [json.loads((tmp_path / n / "final_metrics.json").read_text("utf-8")) for n in ("whole", "killed")]
    assert finals[0]["weights_sha256"] == finals[1]["weights_sha256"]
    histories = [[{k: v for k, v in r.items() if k != "seconds"} for r in f["history"]] for f in finals]
    assert histories[0] == histories[1]
    shutil.rmtree(tmp_path)
