"""The commands: what they refuse before TensorFlow starts, and one run from a csv to a served answer."""

import contextlib
import csv
import importlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
from conftest import WORDS, tiny_bert
from safetensors.numpy import load_file, save_file

from keras_bert.__main__ import COMMANDS, main
from keras_bert.bert import Bert
from keras_bert.files import sha256

COMMAND = [sys.executable, "-m", "keras_bert"]
ENVIRONMENT = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "no_proxy": "127.0.0.1"}
TRAIN = ["finetune", "--train_file=train.csv", "--label_column=target", "--init_checkpoint=pretrained"]
RUN = [*TRAIN, "--model_dir=run"]
SHORT = ["--num_train_epochs=3", "--train_batch_size=4", "--learning_rate=1e-2", "--eval_share=0.25"]
THINGS = ("fire", "flood", "storm", "city")
EVERY = """
import contextlib, io, json, sys
from keras_bert.__main__ import main

found = []
for argv in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(argv)
    found.append((code, out.getvalue(), err.getvalue(), "tensorflow" in sys.modules))
json.dump(found, sys.stdout)
"""


def write(path, rows, delimiter=","):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows(rows)


def table(rows=40):
    """Texts that one word decides, with ids that are not in order."""
    words = ("fire", "flood", "music", "song")
    return [
        [str(1000 - i), f"{words[i % 4]} in the {WORDS[5 + i % 26]}, {WORDS[5 + i % 7]}", "1" if i % 4 < 2 else "0"]
        for i in range(rows)
    ]


def squad(questions):
    """SQuAD's layout of `(id, question, passage, answers)`."""
    paragraphs = [
        {
            "context": context,
            "qas": [
                {"id": i, "question": q, "answers": [{"text": a, "answer_start": context.index(a)} for a in answers]}
            ],
        }
        for i, q, context, answers in questions
    ]
    return json.dumps({"data": [{"paragraphs": paragraphs}]})


def snapshot(folder):
    """Every file and directory with its content and its time."""
    return {
        str(p.relative_to(folder)): (p.lstat().st_mtime_ns, p.read_bytes() if p.is_file() else None)
        for p in folder.rglob("*")
    }


@pytest.fixture(scope="module")
def desk(tmp_path_factory, tiny_checkpoint):
    """A directory with good and bad input of every kind."""
    desk = tmp_path_factory.mktemp("desk")
    rows, header = table(), ["id", "text", "target"]
    write(desk / "train.csv", [header, *rows])
    write(desk / "test.csv", [header[:2], *(row[:2] for row in rows[::-1])])
    write(desk / "blank_label.csv", [header, *rows[:5], ["1", "fire", " "], *rows])
    write(desk / "one_label.csv", [header, *([i, t, "1"] for i, t, _ in rows)])
    write(desk / "two_spellings.csv", [header, *rows, ["1", "fire", "1.0"]])
    write(desk / "new_label.csv", [header, *rows[:3], ["1", "fire", "maybe"]])
    write(desk / "no_number.csv", [header, *([i, t, "0.5"] for i, t, _ in rows), ["1", "fire", "much"]])
    write(desk / "ragged.csv", [header, *rows[:2], ["1", "fire"], *rows])
    write(desk / "few.csv", [header, *rows[:4]])
    (desk / "header.csv").write_text("id,text,target\n")
    (desk / "empty.csv").write_text("")
    (desk / "latin1.csv").write_bytes(b"id,text,target\n1,fire,1\n2,caf\xe9,0\n")
    (desk / "quote.csv").write_text('id,text,target\n1,fire,1\n2,"fire,0\n3,song,1\n')
    (desk / "broken.jsonl").write_text('{"text": "fire", "target": 1}\n{"text": \n')
    (desk / "table.xls").write_text("id")
    (desk / "train.conll").write_text("a O\nb PER\n")
    (desk / "f2.json").write_text(squad([("q1", "who", "a b", []), ("q2", "who", "a b", ["b"])]))
    (desk / "folder.csv").mkdir()
    os.mkfifo(desk / "pipe.csv")

    shutil.copytree(tiny_checkpoint, desk / "pretrained")
    tiny_bert().save(desk / "ours")
    for name, content in {"broken": "{", "list": "[]", "gpt": '{"model_type": "gpt2"}'}.items():
        shutil.copytree(tiny_checkpoint, desk / name)
        (desk / name / "config.json").write_text(content)
    config = json.loads((tiny_checkpoint / "config.json").read_text("utf-8"))
    tensors = load_file(tiny_checkpoint / "model.safetensors")
    head = {"architectures": ["BertForSequenceClassification"], "num_labels": 2}
    for name, changes in {
        "other_arithmetic": {"use_pre_layer_norm": True},
        "head": head,
        "one_segment": head | {"type_vocab_size": 1},
    }.items():
        shutil.copytree(tiny_checkpoint, desk / name)
        (desk / name / "config.json").write_text(json.dumps(config | changes))
        last = {"classifier.weight": np.zeros((2, 16), "f4"), "classifier.bias": np.zeros(2, "f4")}
        save_file(tensors | last, desk / name / "model.safetensors")
    write(desk / "pairs.csv", [["text", "text_pair"], ["fire", "flood"]])
    shutil.copytree(tiny_checkpoint, desk / "bad_vocab")
    (desk / "bad_vocab/vocab.txt").write_bytes(b"[PAD]\n[UNK]\n\n[CLS]\n[SEP]\n")
    (desk / "nothing").mkdir()
    (desk / "ours/flags.txt").write_text("--task=classify\n")

    (desk / "file").write_text("a file")
    write(desk / "foreign" / "thesis.txt", [["years of work"]])
    (desk / "other_run").mkdir()
    (desk / "other_run/flags.txt").write_text("--train_file=another.csv\n")
    (desk / "other_run/model.safetensors").write_text("weights")

    (desk / "a.flags").write_text("--flagfile=b.flags\n")
    (desk / "b.flags").write_text("--flagfile=a.flags\n")
    (desk / "self.flags").write_text("--flagfile=self.flags\n--num_train_epochs=1\n")
    (desk / "unknown.flags").write_text("--num_train_epochs=1\n--lerning_rate=1\n")
    (desk / "kind.flags").write_text("--num_train_epochs=many\n")
    (desk / "binary.flags").write_bytes(b"\xff\xfe\x00")
    return desk


def bad(code, message, *argv):
    return pytest.param(list(argv), code, message, id=" ".join(a for a in argv if a not in RUN)[:80] or argv[0])


def finetune(code, message, *flags):
    return bad(code, message, *RUN, *flags)


def number(name, *values):
    return [finetune(2, f"{name} must be .*got", f"--{name}={value}") for value in values]


HUGE = "9" * 5000
REFUSED = [
    # F1: names
    finetune(2, r"Unknown command line flag 'lerning_rate'. Did you mean: learning_rate", "--lerning_rate=1"),
    bad(2, r"Did you mean: model_dir", "predict", "--modeldir=x"),
    finetune(2, r"unexpected 'train.csv'; values are given as --name=value", "train.csv"),
    # F2: values
    *number("learning_rate", "0", "-1", "nan", "inf", "1e3"),
    *number("train_batch_size", 0, -1),
    *number("eval_batch_size", 0),
    *number("num_train_epochs", 0, -3),
    *number("max_seq_length", 0, 1, 2),
    *number("warmup_proportion", 1, 1.5, -0.1, "nan"),
    *number("dropout", 1, 1.5, -0.1, "nan"),
    *number("weight_decay", -1, "nan"),
    *number("clip_norm", -1, "inf"),
    *number("seed", -1, 2**31),
    *number("num_gpus", -2),
    *number("eval_share", 0, 1, "nan"),
    finetune(2, "max_seq_length 65 is more than the 64 positions of the model", "--max_seq_length=65"),
    finetune(2, "max_seq_length 513 is more than the 64 positions of the model", "--max_seq_length=513"),
    finetune(2, "num_train_epochs=three: invalid literal for int", "--num_train_epochs=three"),
    finetune(2, "num_train_epochs=1.5: invalid literal for int", "--num_train_epochs=1.5"),
    finetune(2, "learning_rate=fast", "--learning_rate=fast"),
    finetune(2, "overwrite=maybe", "--overwrite=maybe"),
    finetune(2, "task=cluster: value should be one of <classify|multilabel|regress|tag|span>", "--task=cluster"),
    finetune(2, "should be one of <none|bfloat16|float16>", "--mixed_precision=int8"),
    finetune(2, "should be one of <auto|one_device|mirrored|multi_worker_mirrored", "--distribution_strategy=horovod"),
    finetune(2, "--label_column: a value must be one line", "--label_column=a\nb"),
    # F4: contradictions, and what is missing
    bad(2, "--train_file, --init_checkpoint, --model_dir must be given", "finetune"),
    bad(2, "--init_checkpoint, --model_dir must be given", "finetune", "--train_file=train.csv"),
    finetune(2, "--eval_file and --eval_share contradict", "--eval_file=train.csv", "--eval_share=0.1"),
    finetune(2, "--labels has no meaning with --task=regress", "--task=regress", "--labels=0,1"),
    finetune(2, "contradict", "--distribution_strategy=mirrored", "--num_gpus=0"),
    finetune(2, "must be different columns", "--text_column=target"),
    finetune(2, "must be different columns", "--text_pair_column=text"),
    finetune(2, "text_column must not be empty", "--text_column="),
    finetune(2, r"labels must be unique, these are not: \['1'\]", "--labels=0,1,1"),
    bad(
        2,
        "are both .*; a run cannot start from itself",
        *TRAIN[:-1],
        "--init_checkpoint=ours",
        "--model_dir=./ours",
        "--overwrite",
    ),
    # F5: flag files
    finetune(2, "Unable to open flagfile: .*No such file.*'none.flags'", "--flagfile=none.flags"),
    finetune(2, "Unable to open flagfile: .*directory", "--flagfile=nothing"),
    finetune(2, "circular flagfile dependency.*a.flags", "--flagfile=a.flags"),
    finetune(2, "circular flagfile dependency.*self.flags", "--flagfile=self.flags"),
    finetune(2, "'lerning_rate'. Did you mean: learning_rate", "--flagfile=unknown.flags"),
    finetune(2, "num_train_epochs=many", "--flagfile=kind.flags"),
    finetune(2, "flag file: .*can't decode", "--flagfile=binary.flags"),
    # F7: the directory of the run
    bad(2, "--model_dir file: is a file", *TRAIN, "--model_dir=file"),
    bad(2, "--model_dir file/below/it: .*file is a file", *TRAIN, "--model_dir=file/below/it"),
    bad(2, "--model_dir foreign: is not empty and holds no run", *TRAIN, "--model_dir=foreign"),
    bad(2, "--model_dir foreign: is not empty and holds no run", *TRAIN, "--model_dir=foreign", "--overwrite"),
    bad(
        2,
        "--model_dir other_run: holds a run with other flags .now .*--train_file=train.csv.*then --train_file=another",
        *TRAIN,
        "--model_dir=other_run",
    ),
    bad(5, "name too long", *TRAIN, "--model_dir=" + "x" * 300),
    # D2, D3: labels
    finetune(3, "blank_label.csv, line 7: no target", "--train_file=blank_label.csv"),
    finetune(3, "one_label.csv: all 40 rows have the target '1'", "--train_file=one_label.csv"),
    finetune(
        3, "two_spellings.csv, line 42: target '1.0' is '1' written another way", "--train_file=two_spellings.csv"
    ),
    finetune(
        3, r"new_label.csv, line 5: target 'maybe' is not among the labels \['0', '1'\]", "--eval_file=new_label.csv"
    ),
    finetune(3, r"train.csv, line 4: target '0' is not among the labels \['1', 'x'\]", "--labels=1,x"),
    finetune(
        3, "no_number.csv, line 42: target 'much' is not a number", "--train_file=no_number.csv", "--task=regress"
    ),
    finetune(3, "few.csv: 4 rows are too few to hold out 10%", "--train_file=few.csv"),
    # D1, D7, D8: files
    finetune(3, "line 1: has no column target; its columns are id, text", "--train_file=test.csv"),
    finetune(3, "header.csv: has a header but no rows", "--train_file=header.csv"),
    finetune(3, "empty.csv: is empty", "--train_file=empty.csv"),
    finetune(3, "ragged.csv, line 4: 2 fields where the header has 3", "--train_file=ragged.csv"),
    finetune(3, "latin1.csv, line 3: byte 0xe9 is not UTF-8", "--train_file=latin1.csv"),
    finetune(3, "quote.csv, line 3: ", "--train_file=quote.csv"),
    finetune(3, "broken.jsonl, line 2: not valid JSON", "--train_file=broken.jsonl"),
    finetune(3, "table.xls: unknown kind of file '.xls'", "--train_file=table.xls"),
    finetune(3, r"gone.csv: cannot be read .No such file", "--train_file=gone.csv"),
    finetune(3, "folder.csv: is a directory", "--train_file=folder.csv"),
    finetune(3, "pipe.csv: is not a regular file", "--train_file=pipe.csv"),
    finetune(3, r"none-\*.csv: matches no file", "--train_file=none-*.csv"),
    # exit 5: checkpoints
    finetune(5, "nowhere: does not exist", "--init_checkpoint=nowhere"),
    finetune(5, "file: is a file", "--init_checkpoint=file"),
    finetune(5, "nothing: holds no checkpoint", "--init_checkpoint=nothing"),
    finetune(5, "config.json: not valid JSON", "--init_checkpoint=broken"),
    finetune(5, "config.json: holds a list", "--init_checkpoint=list"),
    finetune(5, "gpt2", "--init_checkpoint=gpt"),
    finetune(3, "vocab.txt, line 3", "--init_checkpoint=bad_vocab"),
    finetune(
        5, "unknown keys, .*: config.json: use_pre_layer_norm; --keep_keys=", "--init_checkpoint=other_arithmetic"
    ),
    finetune(
        2,
        "2 texts in a row, but the model has 1 of the segments .*`keras-bert convert --num_segments=2`",
        "--init_checkpoint=one_segment",
        "--text_pair_column=id",
    ),
    # heads that others have trained
    bad(5, "unknown keys", "predict", "--model_dir=other_arithmetic", "--input_file=test.csv", "--output_file=o.csv"),
    bad(
        5,
        "has no classifier.bias, which a head for tag has",
        "export",
        "--model_dir=pretrained",
        "--export_dir=m",
        "--task=tag",
    ),
    bad(2, "--task: ours was trained for classify", "export", "--model_dir=ours", "--export_dir=m", "--task=tag"),
    bad(
        2,
        "3 labels, but the head of head has 2 logits",
        "export",
        "--model_dir=head",
        "--export_dir=m",
        "--labels=a,b,c",
    ),
    bad(2, "has a head for classify; --task=tag is for", "export", "--model_dir=head", "--export_dir=m", "--task=tag"),
    bad(
        2,
        "head: is no run and is left as it is; give --output_dir",
        "evaluate",
        "--model_dir=head",
        "--eval_file=train.csv",
    ),
    bad(2, "--init_checkpoint and --export_dir contradict", "serve", "--init_checkpoint=head", "--export_dir=models"),
    bad(5, "has no trained head; fine-tune it first", "serve", "--init_checkpoint=pretrained"),
    bad(2, "2 texts in a row", "predict", "--model_dir=one_segment", "--input_file=pairs.csv", "--output_file=o.csv"),
    # predict
    bad(5, "nowhere: does not exist", "predict", "--model_dir=nowhere", "--input_file=test.csv", "--output_file=o.csv"),
    bad(
        5,
        "has no trained head; fine-tune it first",
        "predict",
        "--model_dir=pretrained",
        "--input_file=test.csv",
        "--output_file=o.csv",
    ),
    bad(3, "gone.csv: cannot be read", "predict", "--model_dir=ours", "--input_file=gone.csv", "--output_file=o.csv"),
    bad(3, "unknown kind of file", "predict", "--model_dir=ours", "--input_file=a.flags", "--output_file=o.csv"),
    bad(
        2,
        "must be a file in a directory that exists",
        "predict",
        "--model_dir=ours",
        "--input_file=test.csv",
        "--output_file=no/o.csv",
    ),
    bad(
        2,
        "must be a file in a directory that exists",
        "predict",
        "--model_dir=ours",
        "--input_file=test.csv",
        "--output_file=nothing",
    ),
    bad(2, "is also the input", "predict", "--model_dir=ours", "--input_file=test.csv", "--output_file=./test.csv"),
    bad(
        2,
        "--predict_batch_size must be at least 1",
        "predict",
        "--model_dir=ours",
        "--input_file=test.csv",
        "--output_file=o.csv",
        "--predict_batch_size=0",
    ),
    # tags, questions, evaluate
    finetune(3, "train.conll, line 2: 'PER' is no tag", "--task=tag", "--train_file=train.conll"),
    finetune(3, "entities are read from CoNLL columns", "--task=tag"),
    finetune(
        3,
        "f2.json, question 1: has no answer, like 0 more.*--version_2_with_negative",
        "--task=span",
        "--train_file=f2.json",
    ),
    finetune(2, "--labels has no meaning with --task=span", "--task=span", "--labels=a,b"),
    finetune(2, "--doc_stride has no meaning with --task=classify in training", "--doc_stride=5"),
    finetune(2, "max_bad_share must be from 0 to 1", "--task=tag", "--max_bad_share=2"),
    finetune(2, "max_answer_length must be from 1 to 1000, got 0", "--task=span", "--max_answer_length=0"),
    finetune(2, "decode must be one of .* for tag, got 'joint'", "--task=tag", "--decode=joint"),
    bad(
        2,
        "decode has no meaning with the task classify",
        "evaluate",
        "--model_dir=ours",
        "--eval_file=x",
        "--decode=argmax",
    ),
    finetune(2, "max_query_length must be at least 1", "--task=span", "--max_query_length=0"),
    bad(5, "has no trained head; fine-tune it first", "evaluate", "--model_dir=pretrained", "--eval_file=train.csv"),
    bad(3, "line 1: has no column label", "evaluate", "--model_dir=ours", "--eval_file=train.csv"),
    bad(
        2,
        "--output_dir file: must be a directory",
        "evaluate",
        "--model_dir=ours",
        "--eval_file=train.csv",
        "--output_dir=file",
    ),
    # export: X1, X2
    *[
        bad(
            2,
            "--version must be a whole number from 1 to",
            "export",
            "--model_dir=ours",
            "--export_dir=models",
            f"--version={version}",
        )
        for version in ("01", "-1", "abc", "0", "1.5", "²", "1_000", " 1", str(2**63), HUGE)
    ],
    bad(2, "--export_dir file: is a file", "export", "--model_dir=ours", "--export_dir=file"),
    bad(5, "nowhere: does not exist", "export", "--model_dir=nowhere", "--export_dir=models"),
    bad(5, "has no trained head; fine-tune it first", "export", "--model_dir=pretrained", "--export_dir=models"),
    # serve
    bad(2, "--export_dir must be given", "serve"),
    bad(2, "--port must be from 0 to 65535, got 70000", "serve", "--export_dir=models", "--port=70000"),
]


@pytest.fixture(scope="module")
def outcomes(desk):
    """Every case and every --help in one fresh process, in which TensorFlow is to stay away."""
    cases = [case.values[0] for case in REFUSED] + [[name, "--help"] for name in COMMANDS]
    before = snapshot(desk)
    done = subprocess.run(
        [sys.executable, "-c", EVERY],
        input=json.dumps(cases),
        cwd=desk,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert snapshot(desk) == before, "nothing was written, deleted or touched"
    return dict(zip(map(tuple, cases), json.loads(done.stdout), strict=True))


@pytest.mark.parametrize(("argv", "code", "message"), REFUSED)
def test_it_is_refused_in_one_line_before_tensorflow_starts(argv, code, message, outcomes):
    found, out, err, tensorflow = outcomes[tuple(argv)]
    assert re.search(message, err), err
    assert found == code
    assert out == ""
    assert err.startswith(f"keras-bert {argv[0]}: error: ")
    assert err.count("\n") == 1
    assert not tensorflow


@pytest.mark.parametrize("name", COMMANDS)
def test_help_lists_every_flag(name, outcomes):
    code, out, err, tensorflow = outcomes[name, "--help"]
    assert (code, err) == (0, "")
    assert out.startswith(f"keras-bert {name}: ")
    flags = importlib.import_module(f"keras_bert.cli.{name}").define()
    assert len(list(flags.values)) > 3
    for flag in [*flags.values, "flagfile"]:
        assert f"\n  --{flag}" in out
    for flag in flags.required:
        assert re.search(rf"\n  --{flag}\n(      .*\n)*      .*Required\.", out)
    assert not tensorflow


@pytest.mark.parametrize(
    ("argv", "code", "stream"), [([], 2, "err"), (["train"], 2, "err"), (["help"], 0, "out"), (["--help"], 0, "out")]
)
def test_usage(argv, code, stream, capsys):
    assert main(argv) == code
    shown = capsys.readouterr()
    assert all(f"\n  {name} " in getattr(shown, stream) for name in COMMANDS)
    assert getattr(shown, "out" if stream == "err" else "err") == ""
    assert ("there is no command 'train'" in shown.err) == (argv == ["train"])


def test_the_installed_script_and_a_reader_that_goes_away(desk):
    """`keras-bert finetune --help | head -1`, as a shell runs it."""
    shell = 'set -o pipefail; "$@" | head -c 20; echo " ${PIPESTATUS[0]}"'
    script = os.path.join(os.path.dirname(sys.executable), "keras-bert")
    for command in (COMMAND, *([[script]] if os.path.exists(script) else [])):
        for unbuffered in ("", "1"):
            done = subprocess.run(
                ["bash", "-c", shell, "bash", *command, "finetune", "--help"],
                env=ENVIRONMENT | {"PYTHONUNBUFFERED": unbuffered},
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert re.fullmatch(r"keras-bert finetune:? (141|0)\n", done.stdout), done.stdout
            assert done.stderr == ""


# === From a csv to a served answer ===


@pytest.fixture(scope="module")
def work(tmp_path_factory, tiny_checkpoint):
    """A directory with training data, input of every kind and a checkpoint that learns them in three epochs."""
    work = tmp_path_factory.mktemp("work")
    shutil.copytree(tiny_checkpoint, work / "pretrained")
    tensors, random = load_file(work / "pretrained/model.safetensors"), np.random.default_rng(7)
    for name in sorted(tensors):
        if tensors[name].ndim == 2:
            tensors[name] = random.normal(0, 0.15, tensors[name].shape).astype(np.float32)
    save_file(tensors, work / "pretrained/model.safetensors")
    rows, header = table(160), ["id", "text", "target"]
    write(work / "train.csv", [header, *rows])
    write(work / "test.csv", [[*header[:2], "keyword"], *([*row[:2], "x"] for row in table(70)[::-1])])
    write(work / "test.tsv", [header[:2], *(row[:2] for row in table(70)[::-1])], "\t")
    with open(work / "test.jsonl", "w") as file:
        for number, text, _ in table(70)[::-1]:
            file.write(json.dumps({"id": int(number), "text": text}) + "\n")
    return work


def start(work, *argv, **settings):
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*COMMAND, *argv], cwd=work, **({"env": ENVIRONMENT} | streams | settings))


def finish(process):
    out, err = process.communicate(timeout=180)
    assert "Traceback" not in out + err
    return process.returncode, out, err


@pytest.fixture(scope="module")
def flow(work):
    """finetune, then predict (its messages read by nobody) and export: what each said."""
    said = {"finetune": finish(start(work, *RUN, *SHORT))}
    assert said["finetune"][0] == 0, said["finetune"][2]
    reading, writing = os.pipe()
    os.close(reading)
    files = ["--model_dir=run", "--input_file=test.csv", "--output_file=submission.csv"]
    predict = start(work, "predict", *files, stdout=writing, stderr=writing)
    export = start(work, "export", "--model_dir=run", "--export_dir=models/tweets")
    os.close(writing)
    said["predict"] = (predict.wait(timeout=180), "", "")
    said["export"] = finish(export)
    return said


@pytest.fixture
def at_work(work, monkeypatch):
    monkeypatch.chdir(work)
    return work


def read_csv(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_finetune_leaves_a_run_that_says_what_it_is(flow, work):
    code, out, err = flow["finetune"]
    assert code == 0
    assert re.match(r" +label  precision  recall     f1  support\n +0 .*\n +1 .*\n  macro mean .*\n$", out)
    lines = err.splitlines()
    assert lines[0] == "starting TensorFlow"
    assert "pretrained (hf, 2 layers, 16 wide, uncased, gelu)" in lines[1]
    assert "new, with random initial values: head/logits/kernel, head/logits/bias" in lines[1]
    assert [line[:9] for line in lines if "train_loss" in line] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert re.fullmatch(r"saved the best epoch \([123]\) in run", lines[-1])
    final = json.loads((work / "run/final_metrics.json").read_text("utf-8"))
    assert (final["schema"], final["task"], final["labels"]) == (1, "classify", ["0", "1"])
    assert (final["train_rows"], final["eval_rows"]) == (120, 40)
    assert final["weights_sha256"] == sha256(work / "run/model.safetensors")
    assert len(final["history"]) == 3
    assert final["history"][2]["train_loss"] < final["history"][0]["train_loss"]
    assert final["best"] in final["history"]
    assert final["best"]["f1"] == max(record["f1"] for record in final["history"])
    assert final["examples_per_second"] > 0
    assert final["peak_memory_mb"] > 100
    assert {"seconds", "python", "tensorflow", "keras"} <= set(final)
    assert {p.name for p in (work / "run").iterdir()} == {
        *("flags.txt", "keras_bert.json", "vocab.txt", "model.safetensors", "metrics.jsonl", "final_metrics.json"),
        *("eval_predictions.csv", "report.html", "report", "checkpoints", "tensorboard", ".lock"),
    }


def test_the_predictions_are_a_submission(flow, work):
    """Also where nobody reads the messages."""
    assert flow["predict"][0] == 0
    header, *rows = read_csv(work / "submission.csv")
    assert header == ["id", "target"]
    assert [row[0] for row in rows] == [row[0] for row in table(70)[::-1]]
    assert {row[1] for row in rows} == {"0", "1"}
    wanted = [a["label"] for a in Bert.load(work / "run").predict([row[1] for row in table(70)[::-1]])]
    assert [row[1] for row in rows] == wanted
    assert not list(work.glob(".*tmp"))


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_predict_reads_every_kind_and_writes_scores(kind, flow, at_work, capsys):
    files = ["--model_dir=run", f"--input_file=test.{kind}", f"--output_file={kind}.csv"]
    assert main(["predict", *files, "--probabilities", "--predict_batch_size=16"]) == 0
    assert capsys.readouterr().err.endswith(f"wrote 70 rows to {kind}.csv\n")
    header, *rows = read_csv(f"{kind}.csv")
    assert header == ["id", "target", "score_0", "score_1"]
    assert [row[:2] for row in rows] == read_csv("submission.csv")[1:]
    for _, label, *scores in rows:
        assert sum(map(float, scores)) == pytest.approx(1, abs=1e-6)
        assert label == ("1" if float(scores[1]) > float(scores[0]) else "0")


def test_predict_without_ids_and_with_what_is_worth_a_warning(flow, at_work, capsys):
    write(at_work / "no_ids.csv", [["text"], ["fire"], ["song " * 100]])
    assert main(["predict", "--model_dir=run", "--input_file=no_ids.csv", "--output_file=o.csv"]) == 0
    assert "warning: 1 of 2 texts were longer than 64 tokens and were cut" in capsys.readouterr().err
    assert [len(row) for row in read_csv("o.csv")] == [1, 1, 1]
    write(at_work / "twice.csv", [["id", "text"], ["7", "fire"], ["8", "song"], ["7", "song"]])
    assert main(["predict", "--model_dir=run", "--input_file=twice.csv", "--output_file=o.csv"]) == 0
    assert "warning: twice.csv, line 4: the id '7' is there more than once" in capsys.readouterr().err
    assert [row[0] for row in read_csv("o.csv")] == ["id", "7", "8", "7"]


def test_the_exported_model_is_served(flow, work):
    code, out, err = flow["export"]
    assert (code, out) == (0, "models/tweets/1\n")
    assert "keras-bert serve --export_dir=models/tweets" in err
    texts = [row[1] for row in table(5)]
    with start(work, "serve", "--export_dir=models/tweets", "--port=0", stderr=None) as server:
        try:
            line = server.stdout.readline()
            assert re.match(r"serving tweets version 1 on http://127\.0\.0\.1:\d+/v1/models/tweets$", line)
            url = line.split()[-1]
            request = urllib.request.Request(f"{url}:predict", json.dumps({"instances": texts}).encode())
            with urllib.request.urlopen(request, timeout=60) as response:
                rows = json.load(response)["predictions"]
        finally:
            server.send_signal(signal.SIGTERM)
    assert server.returncode == 0
    for row, answer in zip(rows, Bert.load(work / "run").predict(texts), strict=True):
        assert row["label"] == answer["label"]
        assert row["score"] == pytest.approx(answer["score"], abs=1e-5)


def test_export_counts_versions_and_refuses_one_that_exists(flow, at_work, capsys):
    flags = ["export", "--model_dir=run", "--export_dir=models/tweets"]
    assert main([*flags, "--version=1"]) == 2
    assert "models/tweets/1: exists; give another --version" in capsys.readouterr().err
    assert main(flags) == 0
    assert capsys.readouterr().out == "models/tweets/2\n"


# === The same run again ===


@pytest.mark.slow
def test_the_flags_file_repeats_the_run(flow, at_work):
    assert main(["finetune", "--flagfile=run/flags.txt", "--model_dir=again"]) == 0
    first, second = (json.loads((at_work / name / "final_metrics.json").read_text()) for name in ("run", "again"))
    assert second["weights_sha256"] == first["weights_sha256"]
    assert (at_work / "again/flags.txt").read_text() == (at_work / "run/flags.txt").read_text()


@pytest.mark.slow
def test_the_flags_file_repeats_what_was_not_given(work, at_work, tiny_checkpoint):
    """Length and case come from the checkpoint and the share has no meaning with a file: none of them is recorded."""
    shutil.copytree(tiny_checkpoint, "cased")
    (at_work / "cased/tokenizer_config.json").write_text('{"do_lower_case": false}')
    flags = ["--init_checkpoint=cased", "--eval_file=train.csv", "--num_train_epochs=1"]
    assert main([*TRAIN, *flags, "--model_dir=cased_run"]) == 0
    assert Bert.load("cased_run").text.config.do_lower_case is False
    assert main(["finetune", "--flagfile=cased_run/flags.txt", "--model_dir=cased_again"]) == 0
    assert sha256("cased_again/model.safetensors") == sha256("cased_run/model.safetensors")
    first, second = (
        json.loads((at_work / name / "keras_bert.json").read_text()) for name in ("cased_run", "cased_again")
    )
    assert first.pop("notes")["train_loss"] == second.pop("notes")["train_loss"]
    assert first == second


def test_a_finished_run_is_not_trained_again(flow, at_work, capsys):
    before = snapshot(at_work / "run")
    assert main([*RUN, *SHORT]) == 0
    shown = capsys.readouterr()
    assert "continuing the run in run after step 90" in shown.err
    assert "train_loss" not in shown.err
    assert shown.out == flow["finetune"][1]
    after = snapshot(at_work / "run")
    kept = (
        "model.safetensors",
        "keras_bert.json",
        "metrics.jsonl",
        "final_metrics.json",
        "checkpoints/step-000000090.safetensors",
    )
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--seed=7"], r"now --seed=7, then --seed=12345"),
        (["--max_seq_length=32"], r"now --max_seq_length=32\)"),
        (["--init_checkpoint=./pretrained"], r"now --init_checkpoint=./pretrained, then --init_checkpoint=pretrained"),
    ],
)
def test_a_run_with_other_flags_is_left_alone(flags, told, flow, at_work, capsys):
    before = snapshot(at_work / "run")
    assert main([*RUN, *SHORT, *flags]) == 2
    assert re.search(rf"holds a run with other flags \({told}", capsys.readouterr().err)
    assert snapshot(at_work / "run") == before


def test_overwrite_starts_anew_and_deletes_only_the_run(flow, at_work, capsys):
    shutil.copytree("run", "replaced")
    (at_work / "replaced/notes.md").write_text("mine")
    assert main([*TRAIN, "--model_dir=replaced", "--num_train_epochs=1", "--overwrite"]) == 0
    assert "continuing" not in capsys.readouterr().err
    final = json.loads((at_work / "replaced/final_metrics.json").read_text())
    assert len(final["history"]) == 1
    assert final["weights_sha256"] == sha256("replaced/model.safetensors") != sha256("run/model.safetensors")
    assert (at_work / "replaced/notes.md").read_text() == "mine"
    assert len(list((at_work / "replaced/tensorboard").iterdir())) == 1


def test_a_run_that_is_interrupted_and_killed_ends_like_one_that_is_not(flow, work, at_work, capsys):
    flags = [*TRAIN, *SHORT]
    for epoch, number, code in ((1, signal.SIGINT, 130), (2, signal.SIGKILL, -signal.SIGKILL)):
        process = start(work, *flags, "--model_dir=killed")
        said = []
        for line in process.stderr:
            said.append(line)
            if re.match(rf"epoch {epoch}/3  train_loss", line):
                process.send_signal(number)
                break
        found, _, rest = finish(process)
        assert found == code, "".join(said) + rest
        if number == signal.SIGINT:
            assert re.search(r"keras-bert finetune: stopped after step \d+ of 90 by SIGINT; saved in killed; ", rest)
        assert not (work / "killed/final_metrics.json").exists()
    assert main([*flags, "--model_dir=killed"]) == 0
    assert re.search(r"continuing the run in killed after step \d+\n", capsys.readouterr().err)
    killed, whole = (json.loads((work / name / "final_metrics.json").read_text()) for name in ("killed", "run"))
    assert killed["weights_sha256"] == whole["weights_sha256"]
    assert [r["train_loss"] for r in killed["history"]] == [r["train_loss"] for r in whole["history"]]
    assert len(killed["history"]) == 3


# === Other tasks ===


def test_pairs_from_file_to_file_with_labels_that_the_terminal_cannot_show(at_work, monkeypatch):
    names, rows = {"0": "нет", "1": "да 🔥"}, table()
    write(
        at_work / "pairs.tsv",
        [["q", "a", "is"], *([t, THINGS[i % 4], names[y]] for i, (_, t, y) in enumerate(rows))],
        "\t",
    )
    columns = ["--text_column=q", "--text_pair_column=a", "--label_column=is"]
    flags = ["--train_file=pairs.tsv", "--init_checkpoint=pretrained", "--model_dir=pairs", *columns, *SHORT]
    with monkeypatch.context() as patch, io.TextIOWrapper(io.BytesIO(), "ascii") as terminal:
        patch.setattr(sys, "stdout", terminal)
        assert main(["finetune", *flags]) == 0
        assert rb"\u0434\u0430 \U0001f525" in terminal.buffer.getvalue()
    assert main(["predict", "--model_dir=pairs", "--input_file=pairs.tsv", "--output_file=pairs.csv"]) == 0
    header, *found = read_csv("pairs.csv")
    assert header == ["is"]
    assert {row[0] for row in found} <= set(names.values())
    assert main(["export", "--model_dir=pairs", "--export_dir=models/pairs"]) == 0
    bert = Bert.load("pairs")
    assert bert.pair
    assert [a["label"] for a in bert.predict([r[1] for r in rows], [THINGS[i % 4] for i in range(40)])] == [
        row[0] for row in found
    ]
    assert main(["predict", "--model_dir=pairs", "--input_file=test.csv", "--output_file=pairs.csv"]) == 3


def test_several_labels_from_file_to_file(at_work, capsys):
    kinds = [[THINGS[i % 3], *([THINGS[(i + 1) % 3]] if i % 2 else [])] for i in range(40)]
    with open("many.jsonl", "w") as file:
        for i, kind in enumerate(kinds):
            file.write(json.dumps({"id": i, "text": " ".join(kind), "kinds": kind}) + "\n")
    flags = ["--train_file=many.jsonl", "--label_column=kinds", "--init_checkpoint=pretrained", "--model_dir=many"]
    assert main(["finetune", "--task=multilabel", *flags, *SHORT]) == 0
    assert re.search(r"accuracy \d.*f1 \d", capsys.readouterr().out)
    assert Bert.load("many").labels == ("fire", "flood", "storm")
    files = ["--input_file=many.jsonl", "--output_file=many.csv", "--probabilities"]
    assert main(["predict", "--model_dir=many", *files]) == 0
    header, *rows = read_csv("many.csv")
    assert header == ["id", "kinds", "score_fire", "score_flood", "score_storm"]
    for _, labels, *scores in rows:
        active = [n for n, s in zip(("fire", "flood", "storm"), scores, strict=True) if float(s) >= 0.5]
        assert labels == ",".join(active)


@pytest.mark.slow
def test_entities_from_file_to_file(at_work, capsys):
    lines = [f"{w} O\n{THINGS[i % 3]} I-{THINGS[i % 3].upper()}\n\n" for i, w in enumerate(WORDS[5:31])]
    (at_work / "train.conll").write_text("-DOCSTART- O\n\n" + "".join(lines))
    flags = [
        "--task=tag",
        "--train_file=train.conll",
        "--init_checkpoint=pretrained",
        "--model_dir=tags",
        "--max_windows=3",
    ]
    assert main(["finetune", *flags, *SHORT, "--max_seq_length=16", "--decode=constrained"]) == 0
    assert re.search(r"precision \d.*recall \d.*f1 \d", capsys.readouterr().out)
    bert = Bert.load("tags")
    assert (bert.labels, bert.windows.max_windows) == (("FIRE", "FLOOD", "STORM"), 3)
    assert bert.network.head.config.decode == "constrained"
    assert main(["predict", "--model_dir=tags", "--input_file=train.conll", "--output_file=tags.jsonl"]) == 0
    found = [json.loads(line) for line in (at_work / "tags.jsonl").read_text("utf-8").splitlines()]
    assert found == bert.predict([f"{w} {THINGS[i % 3]}" for i, w in enumerate(WORDS[5:31])])
    assert main(["evaluate", "--model_dir=tags", "--eval_file=train.conll", "--eval_batch_size=7"]) == 0
    results = (at_work / "tags/eval_results.txt").read_text()
    assert capsys.readouterr().out == results
    assert re.fullmatch(r"f1 = [\d.]+\nprecision = [\d.]+\nrecall = [\d.]+\n", results)


@pytest.mark.slow
def test_answers_from_file_to_file(at_work, capsys):
    questions = [
        (f"q{i}", "who", f"{w} {THINGS[i % 3]} {w}", [THINGS[i % 3]] * (i % 4 > 0)) for i, w in enumerate(WORDS[5:31])
    ]
    (at_work / "train.json").write_text(squad(questions))
    flags = ["--train_file=train.json", "--eval_file=train.json", "--init_checkpoint=pretrained", "--model_dir=spans"]
    flags += ["--num_train_epochs=3", "--train_batch_size=4", "--learning_rate=1e-2"]
    flags += ["--version_2_with_negative", "--n_best_size=2", "--max_answer_length=3", "--max_seq_length=16"]
    assert main(["finetune", "--task=span", *flags]) == 0
    said = capsys.readouterr()
    assert re.search(r"best_f1 \d.*exact \d", said.out)
    assert "warning: 26 of 26 evaluation rows are of texts that are trained on" in said.err
    bert = Bert.load("spans")
    (at_work / "out").mkdir()
    assert main(["predict", "--model_dir=spans", "--input_file=train.json", "--output_file=out/predictions.json"]) == 0
    wanted = bert.predict([q[1] for q in questions], [q[2] for q in questions])
    answers = json.loads((at_work / "out/predictions.json").read_text())
    assert answers == {q[0]: one["answer"] for q, one in zip(questions, wanted, strict=True)}
    files = {p.name for p in (at_work / "out").iterdir()}
    assert files == {"predictions.json", "nbest_predictions.json", "null_odds.json"}
    capsys.readouterr()
    evaluate = ["evaluate", "--model_dir=spans", "--eval_file=train.json", "--output_dir=results"]
    assert main(evaluate) == 0
    results = dict(line.split(" = ") for line in capsys.readouterr().out.splitlines())
    assert json.loads((at_work / "results/predictions.json").read_text()) == answers
    assert float(results["f1"]) == pytest.approx(float(results["best_f1"]))
    assert main([*evaluate, "--null_score_diff_threshold=-1e4"]) == 0
    assert set(json.loads((at_work / "results/predictions.json").read_text()).values()) == {""}
    assert main(["predict", "--model_dir=spans", "--input_file=pairs.csv", "--output_file=o.jsonl"]) == 3
    write(at_work / "asked.csv", [["text", "text_pair"], ["who", "a fire b"]])
    assert main(["predict", "--model_dir=spans", "--input_file=asked.csv", "--output_file=o.jsonl"]) == 0
    assert len((at_work / "o.jsonl").read_text().splitlines()) == 1


def test_labels_are_evaluated_too(flow, at_work, capsys):
    assert main(["evaluate", "--model_dir=run", "--eval_file=train.csv"]) == 0
    results = dict(line.split(" = ") for line in capsys.readouterr().out.splitlines())
    assert set(results) == {"accuracy", "f1", "macro_f1", "matthews"}
    assert float(results["accuracy"]) > 0.9
    (at_work / "run/eval_results.txt").unlink()


@pytest.mark.slow
def test_numbers_from_file_to_file_and_a_run_that_diverges(at_work, capsys):
    write(at_work / "numbers.csv", [["text", "label"], *([t, i / 40] for i, (_, t, _) in enumerate(table()))])
    flags = ["--train_file=numbers.csv", "--task=regress", "--init_checkpoint=pretrained"]
    assert main(["finetune", *flags, "--model_dir=numbers", *SHORT]) == 0
    assert "pearson" in capsys.readouterr().out
    assert main(["predict", "--model_dir=numbers", "--input_file=numbers.csv", "--output_file=numbers_out.csv"]) == 0
    header, *rows = read_csv("numbers_out.csv")
    assert header == ["label"]
    assert all(-2 < float(row[0]) < 3 for row in rows)
    write(at_work / "huge.csv", [["text", "label"], *([t, "3e38"] for _, t, _ in table())])
    assert main(["finetune", *flags, "--train_file=huge.csv", "--model_dir=huge", *SHORT]) == 4
    assert "error: epoch 1/3, step 1 of 8: the loss or its gradient is not a number" in capsys.readouterr().err
    assert main(["predict", "--model_dir=huge", "--input_file=test.csv", "--output_file=o.csv"]) == 5


# === Refused once TensorFlow is there ===


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--num_gpus=99"], 2, "num_gpus is 99 but .* are visible; the devices are .*CPU:0"),
        (["--init_checkpoint=ours", "--labels=1,0"], 5, r"labels \['0', '1'\], not for classify with \['1', '0'\]"),
        (["--init_checkpoint=cut"], 5, "model.safetensors: broken or not a safetensors file"),
        (["--init_checkpoint=short"], 5, "does not fit the model: .*block_2"),
    ],
)
def test_what_is_refused_later_leaves_no_run_behind(flags, code, message, at_work, tiny_checkpoint, capsys):
    with contextlib.suppress(FileExistsError):
        tiny_bert().save("ours")
        shutil.copytree(tiny_checkpoint, "cut")
        (at_work / "cut/model.safetensors").write_bytes((tiny_checkpoint / "model.safetensors").read_bytes()[:999])
        shutil.copytree(tiny_checkpoint, "short")
        config = (
            (tiny_checkpoint / "config.json").read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 3')
        )
        (at_work / "short/config.json").write_text(config)
    assert main([*TRAIN, *SHORT, *flags, "--model_dir=refused"]) == code
    err = capsys.readouterr().err
    assert re.search(f"^keras-bert finetune: error: .*{message}", err, re.M), err
    assert not (at_work / "refused").exists()


def test_a_broken_run_is_refused(flow, at_work, capsys):
    shutil.copytree("run", "spoilt")
    for state in (at_work / "spoilt/checkpoints").iterdir():
        state.write_text("rubbish")
    assert main([*TRAIN, *SHORT, "--model_dir=spoilt"]) == 5
    assert re.search("error: .*no other state can be read: start anew with --overwrite", capsys.readouterr().err)
    (at_work / "spoilt/model.safetensors").write_bytes(b"rubbish")
    for argv in (["export", "--export_dir=models/x"], ["predict", "--input_file=test.csv", "--output_file=o.csv"]):
        assert main([*argv, "--model_dir=spoilt"]) == 5
        assert "error: spoilt/model.safetensors: broken" in capsys.readouterr().err
    assert not (at_work / "models/x").exists()


def test_serving_what_is_no_model_is_refused(at_work, capsys):
    assert main(["serve", "--export_dir=nowhere", "--port=0"]) == 5
    assert "nowhere: no such directory" in capsys.readouterr().err
    assert main(["serve", "--export_dir=pretrained", "--port=0"]) == 5
    assert "pretrained: no version directory in it" in capsys.readouterr().err
