"""Write old/: runs, answers, states, corpora, checkpoints and an export of an earlier version.

`tests/test_golden_old.py` reads them with the code of today. They were made by commit 36832ec, whose import paths
these are:

    git worktree add ../old 36832ec
    cd ../old && PYTHONPATH=. python PATH/TO/tests/golden/make_old.py    # about a minute; prints the sizes

Everything is tiny: 58 word pieces, an encoder of two layers of width 8.
"""

import json
import os
import random
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import tensorflow as tf
from golden_values import environment, masked_batches, plain
from safetensors.numpy import save_file

from keras_bert import Bert
from keras_bert.__main__ import main
from keras_bert.formats import FORMATS
from keras_bert.runs import States

FOLDER = Path(__file__).parent / "old"
WORDS = ["fire", "flood", "storm", "city", "music", "song", "game", "the", "is", "in", "on"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", *"0123456789", *".,!"]
VOCABULARY += [*WORDS, "##s", "##ed", "##ing"]
LENGTH = 32
LONG = "the storm of fires is flooding the city, 4 songs in the game. " * 12
TEXTS = ["fire in the city", "", "東京 🔥 Cafe\u0301, fires!", LONG]
PAIRS = ["a fire in the 🔥 city", "music", "", LONG]
CHOICES = [["a", "b"], ["c", "d", "e"], ["fire", "", "song"], ["x", LONG]]
MASKED = ["the [MASK] is in the city", "", "東京 🔥 [MASK], [MASK]!", "the [MASK] " + LONG]
FLAGS = {
    "classify": ["--text_pair_column=text_pair"],
    "multilabel": ["--pooling=max", "--head_lstm=3"],
    "regress": ["--layers=mix", "--pooling=mean"],
    "choice": [],
    "similarity": [],
    "tag": ["--decode=constrained", "--max_windows=4", "--learning_rate=0.0001"],
    "span": ["--version_2_with_negative", "--n_best_size=3", "--max_answer_length=6", "--max_windows=4"],
    "generate": ["--max_target_length=6", "--beam_size=2"],
}
"""The tasks that are fine-tuned, each with something that is not its default."""
TRAIN = ["--init_checkpoint=base", f"--max_seq_length={LENGTH}", "--train_batch_size=8", "--learning_rate=0.01"]
TRAIN += ["--eval_share=0.25", "--num_gpus=0"]
PRETRAIN = ["--input_file=corpora/dynamic", "--eval_input_file=corpora/static", "--init_checkpoint=base"]
PRETRAIN += [f"--max_seq_length={LENGTH}", "--num_train_steps=8", "--eval_steps=4", "--max_eval_steps=2"]
PRETRAIN += ["--train_batch_size=8", "--eval_batch_size=8", "--learning_rate=0.01", "--num_gpus=0"]
LONGER = ["--train_batch_size=4", "--num_train_epochs=3", "--ema_decay=0.5", "--learning_rate=0.01"]
INTERRUPTED = {
    "finetune": (12, ["finetune", *TRAIN, "--task=regress", "--train_file=data/regress.csv", *LONGER]),
    "pretrain": (6, ["pretrain", *PRETRAIN]),
}
"""Runs that are killed after so many steps: in the middle of the last epoch, and between two evaluations."""
CORPORA = {
    "dynamic": [],
    "static": ["--format=static", "--dupe_factor=2", "--max_predictions_per_seq=4", "--do_whole_word_mask"],
    "three_way": ["--pairs=three_way"],
}


COMMANDS: dict[str, list[str]] = {}
"""The commands that made corpora and interrupted runs, to be given again."""


class Killed(BaseException):
    """Ends a run right after a state was written, as a kill would."""


def command(*argv: str) -> None:
    assert main(list(argv)) == 0, argv


def write_base() -> None:
    """A pretrained checkpoint in Hugging Face's layout, whose weights have a size that matters."""
    width, inner, random = 8, 16, np.random.default_rng(5)
    shapes = {
        "bert.embeddings.word_embeddings.weight": (len(VOCABULARY), width),
        "bert.embeddings.position_embeddings.weight": (48, width),
        "bert.embeddings.token_type_embeddings.weight": (2, width),
        "bert.pooler.dense.weight": (width, width),
        "bert.pooler.dense.bias": (width,),
        "cls.predictions.transform.dense.weight": (width, width),
        "cls.predictions.transform.dense.bias": (width,),
        "cls.predictions.bias": (len(VOCABULARY),),
        "cls.seq_relationship.weight": (2, width),
        "cls.seq_relationship.bias": (2,),
    }
    norms = ["bert.embeddings", "cls.predictions.transform"]
    for layer in (f"bert.encoder.layer.{i}" for i in range(2)):
        dense = [(f"attention.self.{name}", width, width) for name in ("query", "key", "value")]
        dense += [("attention.output.dense", width, width), ("intermediate.dense", inner, width)]
        for name, rows, columns in [*dense, ("output.dense", width, inner)]:
            shapes |= {f"{layer}.{name}.weight": (rows, columns), f"{layer}.{name}.bias": (rows,)}
        norms += [f"{layer}.attention.output", f"{layer}.output"]
    for name in norms:
        shapes |= {f"{name}.LayerNorm.weight": (width,), f"{name}.LayerNorm.bias": (width,)}
    tensors = {
        name: random.normal(float(name.endswith("LayerNorm.weight")), 0.4, shape).astype("float32")
        for name, shape in shapes.items()
    }
    config = {
        "model_type": "bert",
        "vocab_size": len(VOCABULARY),
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_size": width,
        "intermediate_size": inner,
        "max_position_embeddings": 48,
        "hidden_act": "gelu",
    }
    Path("base").mkdir()
    save_file(tensors, "base/model.safetensors", {"format": "pt"})
    Path("base/config.json").write_text(json.dumps(config, indent=1) + "\n", "utf-8")
    Path("base/vocab.txt").write_text("\n".join(VOCABULARY) + "\n", "utf-8")


def write_data() -> None:
    """Some rows for each task, and texts to pretrain on."""
    draw = random.Random(3)
    Path("data").mkdir()

    def sentence(least: int = 3) -> list[str]:
        return draw.choices(WORDS, k=draw.randint(least, 8))

    def write(name: str, lines: list[Any]) -> None:
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        Path("data", name).write_text("\n".join(texts) + "\n", "utf-8")

    texts, pairs = ([sentence() for _ in range(24)] for _ in range(2))
    lines, others = ([" ".join(words) for words in column] for column in (texts, pairs))
    both = list(zip(texts, pairs, lines, others, strict=True))
    write("classify.csv", ["text,text_pair,label", *(f"{a},{b},{'xyz'[len(w) % 3]}" for w, _, a, b in both)])
    write("multilabel.csv", ["text,label", *(f'{a},"{",".join(sorted({*w} & {*WORDS[:3]}))}"' for w, _, a, _ in both)])
    write("regress.csv", ["text,label", *(f"{a},{len(w) / 4}" for w, _, a, _ in both)])
    write("similarity.csv", ["text,text_pair,label", *(f"{a},{b},{len({*w} & {*v}) / 8}" for w, v, a, b in both)])
    write("generate.csv", ["source,target", *(f"{a},{' '.join(w[:2])}" for w, _, a, _ in both)])
    write("choice.jsonl", [{"text": a, "choices": [b, w[0]], "label": len(w) % 2} for w, _, a, b in both])
    tags = {"city": "B-place", "storm": "B-event", "fire": "B-event"}
    write("tag.conll", [line for words in texts for line in [*(f"{w} {tags.get(w, 'O')}" for w in words), ""]])
    questions = [
        {
            "id": str(i),
            "question": b,
            "is_impossible": "fire" not in w,
            "answers": [{"text": "fire", "answer_start": a.index("fire")}] if "fire" in w else [],
            "context": a,
        }
        for i, (w, _, a, b) in enumerate(both)
    ]
    paragraphs = [{"context": q.pop("context"), "qas": [q]} for q in questions]
    write("span.json", [{"version": "v2.0", "data": [{"title": "fires", "paragraphs": paragraphs}]}])
    write("text.txt", ["\n".join(" ".join(sentence()) + " ." for _ in range(8)) + "\n" for _ in range(10)])


def clean(folder: Path, states: bool) -> None:
    """Leave what a later version has to read, without pictures for people."""
    for name in ("tensorboard", "report", "plots", *(() if states else ("checkpoints",))):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("report.html", ".lock"):
        (folder / name).unlink(missing_ok=True)
    if states:
        for older in sorted((folder / "checkpoints").iterdir())[:-1]:
            older.unlink()


def write_runs() -> None:
    """A run of each task."""
    for task, more in FLAGS.items():
        (file,) = Path("data").glob(f"{task}.*")
        flags = [f"--task={task}", f"--train_file={file}", f"--model_dir=runs/{task}", "--num_train_epochs=2"]
        command("finetune", *flags, *TRAIN, *more)
        clean(Path("runs", task), states=False)
    for task in ("embed", "fill_mask"):
        Bert.from_checkpoint("base", task=task, max_seq_length=LENGTH).save(f"runs/{task}")


def write_interrupted() -> None:
    """Runs that were killed, and what they came to when the same command went on."""
    write = States.write
    for name, (last, flags) in INTERRUPTED.items():

        def write_and_end(states: States, step: int, *rest: Any, last: int = last) -> None:
            write(states, step, *rest)
            if step == last:
                raise Killed

        flags = COMMANDS[f"interrupted/{name}"] = [
            *flags,
            f"--model_dir=interrupted/{name}",
            "--save_checkpoints_steps=1",
        ]
        States.write = write_and_end  # type: ignore[method-assign]
        try:
            main(flags)
        except Killed:
            States.write = write  # type: ignore[method-assign]
        else:
            raise AssertionError(f"{name} was not killed")
        folder = Path("interrupted", name)
        clean(folder, states=True)
        shutil.copytree(folder, f"{name}.kept")
        command(*flags)
        clean(folder, states=False)
        final = json.loads((folder / "final_metrics.json").read_text("utf-8"))
        assert final.get("best") in (None, final["history"][-1]), "the weights that are kept are not the last ones"
        Path("resumed").mkdir(exist_ok=True)
        folder.rename(f"resumed/{name}")
        Path(f"{name}.kept").rename(folder)


def questions(bert: Bert, task: str) -> dict[str, Any]:
    """What `predict` is asked."""
    asked: dict[str, Any] = {"texts": MASKED if task == "fill_mask" else TEXTS}
    if bert.pair:
        asked["text_pairs"] = PAIRS
    if task == "choice":
        asked["choices"] = CHOICES
    return asked


def write_export() -> dict[str, Any]:
    """A SavedModel as a tar file; returns what its signature answered."""
    command("export", "--model_dir=runs/classify", "--export_dir=export", "--version=1", "--max_windows=3")
    model = tf.saved_model.load("export/1")
    asked = {"text": TEXTS, "text_pair": PAIRS}
    outputs = model.signatures["serving_default"](**{name: tf.constant(values) for name, values in asked.items()})
    with tarfile.open("export.tar.xz", "w:xz") as tar:
        for path in sorted(Path("export").rglob("*")):
            if path.is_file():
                info = tar.gettarinfo(path)
                info.uid = info.gid = info.mtime = 0
                info.uname = info.gname = ""
                with open(path, "rb") as file:
                    tar.addfile(info, file)
    shutil.rmtree("export")
    return {"asked": asked, "answers": plain({name: value.numpy() for name, value in outputs.items()})}


def write_all() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    os.chdir(FOLDER)
    write_base()
    write_data()
    for name, flags in CORPORA.items():
        files = ["--input_file=data/text.txt", "--vocab_file=base/vocab.txt", f"--output_dir=corpora/{name}"]
        sizes = [f"--max_seq_length={LENGTH}", "--num_shards=2", "--num_processes=1"]
        COMMANDS[f"corpora/{name}"] = ["corpus", *files, *sizes, *flags]
        command(*COMMANDS[f"corpora/{name}"])
    write_interrupted()
    write_runs()
    for name in set(FORMATS) - {"keras_bert"}:
        command("convert", "--input_dir=runs/classify", f"--output_dir=formats/{name}", f"--to_format={name}")
    predictions = {}
    for path in sorted(Path("runs").iterdir()):
        bert = Bert.load(path)
        asked = questions(bert, path.name)
        predictions[path.name] = {"asked": asked, "answers": bert.predict(**asked)}
    bert = Bert.from_checkpoint("resumed/pretrain", task="fill_mask", max_seq_length=LENGTH)
    predictions["pretrain"] = {"asked": {"texts": MASKED}, "answers": bert.predict(MASKED)}
    answers = {"environment": environment(), "predictions": predictions, "export": write_export()}
    Path("commands.json").write_text(json.dumps(COMMANDS, indent=1) + "\n", "utf-8")
    Path("answers.json").write_text(json.dumps(answers, indent=1, ensure_ascii=False) + "\n", "utf-8")
    batches = {
        f"{name}/{key}": value
        for name in CORPORA
        for key, value in masked_batches(f"corpora/{name}", VOCABULARY, LENGTH).items()
    }
    np.savez_compressed("batches.npz", **batches)
    for path in sorted(FOLDER.iterdir()):
        files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
        print(f"{sum(p.stat().st_size for p in files):9,} bytes  {path.name}")


if __name__ == "__main__":
    write_all()
