"""Every task of fine-tuning on real data: keras_bert and Hugging Face on PyTorch, side by side.

    python benchmarks/tasks.py [--tasks=sst2,conll] [--seeds=3] [--lines=FILE] [--rows=32 --eval_rows=32 --epochs=1]

Question: does each task learn as well here as there, and as well in bfloat16? All sides get the same rows in the same
split, the same checkpoint, and the same epochs, batch size, rate, warm-up, decay (not of biases and norms), clipping,
longest row and seeds, and their predictions are scored by the same code. Hugging Face is its own model classes with
their own dropout and eager attention, in a plain loop over rows in random order: padding to the longest row of a batch,
AdamW, linear schedule. Each run is a process of its own, one after the other, and prints one JSON line. Scores are
those after the last epoch. How long it takes is the question of `training_step.py` and `epoch.py`.

`--rows`, `--eval_rows` and `--epochs` take other sizes; the table is then printed only. So it is when `--tasks` leaves
out one of the usual tasks. `--lines` keeps the lines, and what is there already is not run again.
`--tasks=all` is every task there is. Those in Chinese need `--chinese`, a model that `make models/zh` pretrains from
raw text. `similarity` and `features` have no peer: the first is trained on cosines, the second is section 5.3 of
Devlin et al. 2019, a BiLSTM over the frozen encoder.

Expected: scores within what seeds differ by.
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from keras_bert.config import DataConfig
from keras_bert.data.choices import encode_choices
from keras_bert.data.entities import find_types
from keras_bert.data.faults import Reading
from keras_bert.data.masked import draw_masks, encode_words
from keras_bert.data.source import read_labelled
from keras_bert.data.splits import split
from keras_bert.data.tables import Table, read
from keras_bert.tasks import metrics

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
WARMUP, DECAY, CLIP, EPSILON = 0.1, 0.01, 1.0, 1e-6
LONGEST_ANSWER, BEST, DOC_STRIDE, TOP = 30, 20, 128, 10
QUIET = Reading(say=lambda line: print(line, file=sys.stderr))
Found = dict[str, Any]
"""What a side answers: `predicted`, one value a row; for spans also `silent` and `odds`."""


# === Tasks: their rows, and how much of them ===


@dataclass(frozen=True)
class Task:
    """A row of the table.

    Attributes:
        kind: the task of keras_bert.
        read: directory of the data -> rows to train on and rows to evaluate.
        shown: metrics of the table; the first counts.
        rows, eval_rows: how many, taken evenly from all; 0 is all.
        length: longest row in tokens.
        windows: how long passages are read, where it is not left to the head.
        checkpoint: the flag that names it.
        peer: does Hugging Face have it?
        train: is there anything to learn?
        seeds: how many are run at most; fewer where a run takes a quarter of an hour.
    """

    title: str
    kind: str
    read: Callable[[Path], tuple[Table, Table]]
    shown: tuple[str, ...]
    data: DataConfig = field(default_factory=DataConfig)
    rows: int = 0
    eval_rows: int = 0
    epochs: int = 2
    batch: int = 16
    rate: float = 5e-5
    length: int = 128
    head: dict[str, Any] = field(default_factory=dict)
    windows: dict[str, Any] = field(default_factory=dict)
    frozen: bool = False
    checkpoint: str = "checkpoint"
    peer: bool = True
    train: bool = True
    seeds: int = 3


def spread(rows: Table, count: int) -> Table:
    """`count` rows, evenly from all; 0 is all."""
    size = min(count or len(rows), len(rows))
    return rows.take(i * len(rows) // size for i in range(size))


def labelled(kind: str, data: DataConfig, *files: str) -> Callable[[Path], tuple[Table, Table]]:
    """A file to train on and one to evaluate."""

    def rows(folder: Path) -> tuple[Table, Table]:
        train, held = (read_labelled(kind, folder / file, data, QUIET) for file in files)
        return train, held

    return rows


def questions(folder: Path) -> tuple[Table, Table]:
    """SQuAD 2.0: every fifth article is held out."""
    path = folder / "squad2_part" / "dev-v2.0.json"
    articles = json.loads(path.read_text("utf-8"))["data"]
    number = {p["context"]: i for i, article in enumerate(articles) for p in article["paragraphs"]}
    rows = read_labelled("span", path, PASSAGE, QUIET)
    held = [number[passage] % 5 == 4 for passage in rows["text_pair"]]
    return rows.take(i for i, h in enumerate(held) if not h), rows.take(i for i, h in enumerate(held) if h)


def commonsense(folder: Path) -> tuple[Table, Table]:
    """CommonsenseQA: the last fifth of its development set is held out; its training set is not here."""
    rows = read_labelled("choice", folder / "commonsenseqa" / "dev_rand_split.jsonl", DataConfig(), QUIET)
    cut = len(rows) * 4 // 5
    return rows.take(range(cut)), rows.take(range(cut, len(rows)))


def headless(names: Sequence[str], *files: str) -> Callable[[Path], tuple[Table, Table]]:
    """Tab-separated files without a header."""

    def table(path: Path) -> Table:
        lines = path.read_text("utf-8").rstrip("\n").split("\n")
        columns = dict(zip(names, map(list, zip(*(line.split("\t") for line in lines), strict=True)), strict=True))
        return Table(columns, [str(path)] * len(lines), list(range(1, len(lines) + 1)))

    def rows(folder: Path) -> tuple[Table, Table]:
        train, held = (table(folder / file) for file in files)
        return train, held

    return rows


def encyclopedia(folder: Path) -> tuple[Table, Table]:
    """Chinese Wikipedia: the lines of 20 to 100 characters of the last file, which the model has not read."""
    lines = (folder / "raw_zh" / "zhwiki_05.txt").read_text("utf-8").split("\n")
    found = {n: line for n, line in enumerate(lines, 1) if 20 <= len(line) <= 100 and not line.startswith("<")}
    rows = Table({"text": [*found.values()]}, ["zhwiki_05.txt"] * len(found), [*found])
    return rows.take([]), rows


def tweets(folder: Path) -> tuple[Table, Table]:
    """Kaggle's Disaster Tweets: a fifth is held out, copies of a tweet on one side."""
    rows = read(folder / "disaster_tweets" / "train.csv", ["text", "target"])
    kept, held = split([text.strip().casefold() for text in rows["text"]], rows["target"], 0.2, 1)
    return rows.take(kept), rows.take(held)


PASSAGE = DataConfig(text_pair_column="text_pair")
SENTENCE = DataConfig(text_column="sentence")
PARAPHRASES = DataConfig(text_column="#1 String", text_pair_column="#2 String", label_column="Quality")
PAIR = DataConfig(text_pair_column="text_pair")
CONLL = labelled("tag", DataConfig(), "conll2003/eng.train", "conll2003/eng.testa")
MRPC = labelled("classify", PARAPHRASES, "mrpc/msr_paraphrase_train.txt", "mrpc/msr_paraphrase_test.txt")
COSINES = ("spearman", "auc")

TWEET = DataConfig(label_column="target")
TASKS = {
    "tweets": Task("Disaster Tweets, disaster or not", "classify", tweets, ("f1", "accuracy"), TWEET, batch=32),
    "sst2": Task(
        "SST-2, sentiment",
        "classify",
        labelled("classify", SENTENCE, "sst2/train.tsv", "sst2/dev.tsv"),
        ("accuracy",),
        SENTENCE,
        rows=3000,
        length=64,
    ),
    "mrpc": Task("MRPC, paraphrases", "classify", MRPC, ("f1", "accuracy"), PARAPHRASES, rows=2000),
    "conll": Task("CoNLL-2003, entities", "tag", CONLL, ("f1",), rows=3000, epochs=4, rate=1e-4, length=256, seeds=1),
    "squad": Task(
        "SQuAD 2.0, answers",
        "span",
        questions,
        ("span_f1", "f1", "best_f1"),
        PASSAGE,
        rows=2400,
        eval_rows=500,
        rate=1e-4,
        length=256,
        head={"version_2_with_negative": True, "max_answer_length": LONGEST_ANSWER, "n_best_size": BEST},
        windows={"doc_stride": DOC_STRIDE},
        seeds=1,
    ),
    "csqa": Task("CommonsenseQA, choices", "choice", commonsense, ("accuracy",), length=64),
    "embed": Task("MRPC, cosines without training", "embed", MRPC, COSINES, PARAPHRASES, train=False, epochs=0),
    "fill_mask": Task(
        "Chinese Wikipedia, masked words without training",
        "fill_mask",
        encyclopedia,
        ("p_at_1", "p_at_5", "mrr"),
        eval_rows=1000,
        head={"top_k": TOP},
        checkpoint="chinese",
        train=False,
        epochs=0,
    ),
    "afqmc": Task(
        "AFQMC, Chinese paraphrases",
        "classify",
        headless(("text", "text_pair", "label"), "afqmc/train.txt", "afqmc/dev.txt"),
        ("accuracy", "f1"),
        PAIR,
        rows=6000,
        eval_rows=2000,
        rate=3e-4,
        length=64,
        checkpoint="chinese",
    ),
    "chnsenticorp": Task(
        "ChnSentiCorp, Chinese sentiment",
        "classify",
        headless(("text", "label"), "chnsenticorp/train.tsv", "chnsenticorp/dev.tsv"),
        ("accuracy",),
        rows=4000,
        rate=3e-4,
        checkpoint="chinese",
    ),
    "similarity": Task(
        "MRPC, cosines trained",
        "similarity",
        MRPC,
        COSINES,
        PARAPHRASES,
        rows=2500,
        head={"objective": "scores"},
        peer=False,
    ),
    "features": Task(
        "CoNLL-2003, frozen encoder and BiLSTM",
        "tag",
        CONLL,
        ("f1",),
        rows=3000,
        epochs=3,
        rate=1e-3,
        length=256,
        head={"layers": "last4_concat", "head_lstm": 256},
        frozen=True,
        peer=False,
    ),
}
USUAL = ("sst2", "mrpc", "conll", "squad", "csqa", "embed")


@dataclass(frozen=True)
class Job:
    """What a run gets: a task in its final sizes, its rows, the values of its labels, checkpoint and seed."""

    task: Task
    train: Table
    held: Table
    labels: tuple[str, ...]
    checkpoint: Path
    seed: int

    @property
    def texts(self) -> tuple[str, ...]:
        """The columns of texts."""
        return tuple(c for c in (self.task.data.text_column, self.task.data.text_pair_column) if c)


def job_of(task: Task, args: argparse.Namespace, seed: int) -> Job:
    """Read the rows of a task; the values of its labels are those of the whole training file."""
    everything, held = task.read(args.data)
    labels: tuple[str, ...] = ()
    if task.kind == "tag":
        labels = find_types(everything, task.data.label_column)
    elif task.kind == "classify":
        labels = tuple(sorted(set(everything[task.data.label_column])))
    train = spread(everything, task.rows) if task.train else everything.take([])
    job = Job(task, train, spread(held, task.eval_rows), labels, Path(getattr(args, task.checkpoint)), seed)
    if task.kind != "fill_mask":
        return job
    return dataclasses.replace(job, held=draw_masks(job.held, task.data, masked_wordpiece(job), task.length, 16, 12345))


# === Scores: (job, what a side found) -> metrics ===


def classified(job: Job, found: Found) -> dict[str, float]:
    import numpy as np

    gold = np.array([job.labels.index(label) for label in job.held[job.task.data.label_column]])
    return metrics.classification(gold, np.array(found["predicted"]), len(job.labels))


def tagged(job: Job, found: Found) -> dict[str, float]:
    """F1 of entities, by seqeval."""
    from seqeval.metrics import f1_score

    return {"f1": float(f1_score(list(gold_tags(job.held)), found["predicted"]))}


def chosen(job: Job, found: Found) -> dict[str, float]:
    right = encode_choices(job.held, job.task.data).tolist()
    return {"accuracy": statistics.mean(float(a == b) for a, b in zip(right, found["predicted"], strict=True))}


def answered(job: Job, found: Found) -> dict[str, float]:
    """Those of SQuAD's script; and `span_f1`, F1 of the best spans where there is an answer, given or not."""
    import numpy as np

    golds, best = [[text for _, text in answers] for answers in job.held["label"]], found["predicted"]
    asked = [i for i, gold in enumerate(golds) if gold]
    spans = metrics.reading([golds[i] for i in asked], [best[i] for i in asked], np.zeros(len(asked), bool))
    whole = metrics.reading(golds, best, np.array(found["silent"], bool), np.array(found["odds"]))
    return {"span_f1": spans["f1"]} | whole


def compared(job: Job, found: Found) -> dict[str, float]:
    import numpy as np
    from sklearn.metrics import roc_auc_score

    gold, cosines = np.array(job.held["Quality"], float), np.array(found["predicted"])
    return {"auc": float(roc_auc_score(gold, cosines)), **metrics.regression(gold, cosines)}


def filled(job: Job, found: Found) -> dict[str, float]:
    import numpy as np

    wanted = encode_words(job.held, job.task.data, masked_wordpiece(job))
    best = np.full((*wanted.shape, TOP), -1)
    for i, row in enumerate(found["predicted"]):
        best[i, : len(row)] = row
    return metrics.cloze(wanted, best)


SCORES: dict[str, Callable[[Job, Found], dict[str, float]]] = {
    "classify": classified,
    "tag": tagged,
    "choice": chosen,
    "span": answered,
    "embed": compared,
    "similarity": compared,
    "fill_mask": filled,
}


def masked_wordpiece(job: Job) -> Any:
    """The checkpoint's tokenizer in plain Python."""
    from keras_bert.checkpoints import checkpoints
    from keras_bert.text.wordpiece import WordPiece

    found = checkpoints.open_checkpoint(job.checkpoint)
    return WordPiece(found.vocabulary, checkpoints.text_config(found, {}).do_lower_case, "hf", ("[MASK]",))


def tags_of(text: str, entities: Sequence[tuple[int, int, str]]) -> list[str]:
    """B-, I- or O of each word: that of the entity which its first character is in, as Hugging Face has it."""
    tags, before, start = [], None, 0
    for word in text.split(" "):
        inside = next((e for e in entities if e[0] <= start < e[1]), None)
        tags.append("O" if inside is None else f"{'I' if inside == before else 'B'}-{inside[2]}")
        before, start = inside, start + len(word) + 1
    return tags


def gold_tags(rows: Table) -> Iterator[list[str]]:
    """The right tags of each text."""
    return (tags_of(text, entities) for text, entities in zip(rows["text"], rows["label"], strict=True))


# === Ours ===


def ours(job: Job, precision: str = "none") -> Found:
    """What keras_bert finds, trained as `keras-bert finetune` does."""
    from keras_bert import Bert, OptimizerConfig, TrainConfig
    from keras_bert.tasks.network import Network
    from keras_bert.training.finetune import HeadTask, LabelledRows
    from keras_bert.training.step import Trainer

    task = job.task
    # Vectors are of single texts.
    data = DataConfig() if task.kind == "embed" else task.data
    bert = Bert.from_checkpoint(
        job.checkpoint,
        task.kind,
        job.labels,
        data,
        seed=job.seed,
        head=task.head,
        windows=task.windows,
        max_seq_length=task.length,
    )
    if not task.train:
        return UNTRAINED[task.kind](job, bert)
    config = TrainConfig(
        num_train_epochs=task.epochs,
        train_batch_size=task.batch,
        eval_batch_size=32,
        seed=job.seed,
        mixed_precision=precision,
    )
    shape, head = bert.network.encoder.config, bert.network.head
    optimizer = OptimizerConfig(
        learning_rate=task.rate,
        warmup_proportion=WARMUP,
        weight_decay=DECAY,
        clip_norm=CLIP,
        epsilon=EPSILON,
        freeze_layers=shape.num_layers if task.frozen else -1,
    )
    rows = LabelledRows(bert.examples(job.train), bert.text, config, head, bert.windows)
    trainer = Trainer(
        lambda policy: HeadTask(Network(shape, head.config, dtype=policy)),
        bert.network,
        optimizer,
        config,
        task.epochs * rows.steps,
    )
    for epoch in range(task.epochs):
        for batch in trainer.take(rows.training(trainer, epoch * rows.steps)):
            trainer.train(batch)
    trainer.flush()
    held = LabelledRows(bert.examples(job.held), bert.text, config, head, bert.windows)
    return FOUND[task.kind](job, held.evaluate(trainer)[1])


def our_tags(job: Job, answers: dict[str, Any]) -> Found:
    """Entities in bytes as tags of words."""
    names = ("start_bytes", "end_bytes", "type_ids")
    predicted = []
    for text, *row in zip(job.held["text"], *(answers[name].tolist() for name in names), strict=True):
        data = text.encode()
        entities = [
            (len(data[:start].decode()), len(data[:end].decode()), job.labels[kind])
            for start, end, kind in zip(*row, strict=True)
            if start >= 0
        ]
        predicted.append(tags_of(text, entities))
    return {"predicted": predicted}


def our_answers(job: Job, answers: dict[str, Any]) -> Found:
    """The best span of each question, and whether it was answered."""
    places = zip(answers["nbest_start_bytes"][:, 0], answers["nbest_end_bytes"][:, 0], strict=True)
    best = [
        passage.encode()[max(start, 0) : max(end, 0)].decode()
        for passage, (start, end) in zip(job.held["text_pair"], places, strict=True)
    ]
    silent = (answers["start_byte"] < 0).tolist()
    return {"predicted": best, "silent": silent, "odds": answers["null_score_diff"].tolist()}


FOUND: dict[str, Callable[[Job, dict[str, Any]], Found]] = {
    "classify": lambda job, answers: {"predicted": answers["class_id"].tolist()},
    "choice": lambda job, answers: {"predicted": answers["choice"].tolist()},
    "similarity": lambda job, answers: {"predicted": answers["similarity"].tolist()},
    "tag": our_tags,
    "span": our_answers,
}


def our_cosines(job: Job, bert: Any) -> Found:
    first, second = (bert.embed(job.held[column]) for column in job.texts)
    return {"predicted": (first * second).sum(1).tolist()}


def our_words(job: Job, bert: Any) -> Found:
    found = bert.arrays_of(bert.examples(job.held, labelled=False))
    return {
        "predicted": [
            ids[:count].tolist() for ids, count in zip(found["token_ids"], found["num_masks"].tolist(), strict=True)
        ]
    }


UNTRAINED: dict[str, Callable[[Job, Any], Found]] = {"embed": our_cosines, "fill_mask": our_words}


# === Hugging Face: one class a kind ===


@dataclass
class Example:
    """Encoded rows, one, or one a choice; what is to be learnt, by the name of the model's argument; what it is of."""

    rows: list[dict[str, Any]]
    targets: dict[str, Any]
    owner: int = 0


class HuggingFace:
    """transformers on PyTorch."""

    model_class = ""

    def __init__(self, job: Job) -> None:
        import torch
        import transformers

        torch.manual_seed(job.seed)
        transformers.logging.set_verbosity_error()
        self.torch, self.transformers, self.job = torch, transformers, job
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(job.checkpoint)
        kind = getattr(transformers, self.model_class)
        self.model = kind.from_pretrained(job.checkpoint, attn_implementation="eager", **self.options())

    def options(self) -> dict[str, Any]:
        """Arguments of the model."""
        return {}

    def tokens(self, *texts: Any, **options: Any) -> dict[str, Any]:
        """One encoded row."""
        return dict(self.tokenizer(*texts, truncation=True, max_length=self.job.task.length, **options))

    def examples(self, rows: Table) -> list[Example]:
        """Encoded rows with what is to be learnt of them."""
        raise NotImplementedError

    def found(self, held: list[Example]) -> Found:
        """What the model answers; `held` are the examples of `job.held`."""
        return {"predicted": [logits.argmax(-1).item() for (logits,) in self.outputs(held)]}

    def batch(self, examples: Sequence[Example], learn: bool = True) -> dict[str, Any]:
        """Tensors, filled up to the longest row; targets that are lists with -100, which no loss counts."""
        rows = [row for example in examples for row in example.rows]
        longest, each = max(len(row["input_ids"]) for row in rows), len(examples[0].rows)
        shape = (len(examples), longest) if each == 1 else (len(examples), each, longest)
        made = {
            name: self.torch.tensor([row[name] + [0] * (longest - len(row[name])) for row in rows]).view(shape)
            for name in ("input_ids", "token_type_ids", "attention_mask")
        }
        for name in examples[0].targets if learn else ():
            values = [example.targets[name] for example in examples]
            if isinstance(values[0], list):
                values = [value + [-100] * (longest - len(value)) for value in values]
            made[name] = self.torch.tensor(values)
        return made

    def train(self) -> None:
        """Encode the rows and train on them."""
        import numpy as np

        task, torch = self.job.task, self.torch
        examples = self.examples(self.job.train)
        named, still = list(self.model.named_parameters()), ("bias", "LayerNorm.weight")
        groups = [
            {"params": [p for n, p in named if not n.endswith(still)], "weight_decay": DECAY},
            {"params": [p for n, p in named if n.endswith(still)], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=task.rate, eps=EPSILON)
        steps = task.epochs * -(-len(examples) // task.batch)
        schedule = self.transformers.get_linear_schedule_with_warmup(optimizer, round(WARMUP * steps), steps)
        self.model.train()
        for epoch in range(task.epochs):
            order = np.random.default_rng((self.job.seed, epoch)).permutation(len(examples)).tolist()
            for start in range(0, len(order), task.batch):
                loss = self.model(**self.batch([examples[i] for i in order[start : start + task.batch]])).loss
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
                optimizer.step()
                schedule.step()

    def outputs(self, examples: list[Example], size: int = 32) -> list[tuple[Any, ...]]:
        """What the model gives for each example, in their order; rows of like length go together."""
        self.model.eval()
        found: dict[int, tuple[Any, ...]] = {}
        order = sorted(range(len(examples)), key=lambda i: -max(len(row["input_ids"]) for row in examples[i].rows))
        with self.torch.inference_mode():
            for start in range(0, len(order), size):
                part = order[start : start + size]
                output = self.model(**self.batch([examples[i] for i in part], learn=False)).to_tuple()
                found |= zip(part, zip(*output, strict=True), strict=True)
        return [found[i] for i in range(len(examples))]


class Classification(HuggingFace):
    model_class = "BertForSequenceClassification"

    def options(self) -> dict[str, Any]:
        return {"num_labels": len(self.job.labels)}

    def examples(self, rows: Table) -> list[Example]:
        texts = zip(*(rows[column] for column in self.job.texts), strict=True)
        labels = map(self.job.labels.index, rows[self.job.task.data.label_column])
        return [Example([self.tokens(*row)], {"labels": label}) for row, label in zip(texts, labels, strict=True)]


class Choices(HuggingFace):
    model_class = "BertForMultipleChoice"

    def examples(self, rows: Table) -> list[Example]:
        labels = encode_choices(rows, self.job.task.data).tolist()
        return [
            Example([self.tokens(text, choice) for choice in choices], {"labels": label})
            for text, choices, label in zip(rows["text"], rows["choices"], labels, strict=True)
        ]


class Tags(HuggingFace):
    """The first piece of each word has its tag, the others have none."""

    model_class = "BertForTokenClassification"

    @property
    def names(self) -> list[str]:
        return ["O", *(f"{prefix}-{kind}" for kind in self.job.labels for prefix in "BI")]

    def options(self) -> dict[str, Any]:
        return {"num_labels": len(self.names)}

    def examples(self, rows: Table) -> list[Example]:
        ids = {name: i for i, name in enumerate(self.names)}
        found = []
        for text, tags in zip(rows["text"], gold_tags(rows), strict=True):
            row = self.tokenizer(
                text.split(" "), is_split_into_words=True, truncation=True, max_length=self.job.task.length
            )
            words = row.word_ids()
            first = [word is not None and word != before for word, before in zip(words, [None, *words], strict=False)]
            labels = [ids[tags[word]] if f else -100 for word, f in zip(words, first, strict=True)]
            found.append(Example([dict(row)], {"labels": labels}))
        return found

    def found(self, held: list[Example]) -> Found:
        predicted = []
        for text, example, (logits,) in zip(self.job.held["text"], held, self.outputs(held), strict=True):
            labels, best = example.targets["labels"], logits.argmax(-1).tolist()
            tags = [self.names[tag] for tag, label in zip(best, labels, strict=False) if label != -100]
            predicted.append(tags + ["O"] * (len(text.split(" ")) - len(tags)))  # words that were cut off
        return {"predicted": predicted}


class Answers(HuggingFace):
    """Windows of passages, as run_squad has them: each begins `DOC_STRIDE` tokens after the one before it."""

    model_class = "BertForQuestionAnswering"

    def examples(self, rows: Table) -> list[Example]:
        found = []
        for i, (question, passage, answers) in enumerate(
            zip(rows["text"], rows["text_pair"], rows["label"], strict=True)
        ):
            room = self.job.task.length - 3 - len(self.tokenizer(question, add_special_tokens=False)["input_ids"])
            windows = self.tokenizer(
                question,
                passage,
                truncation="only_second",
                max_length=self.job.task.length,
                stride=max(0, room - DOC_STRIDE),  # what windows share
                return_overflowing_tokens=True,
                return_offsets_mapping=True,
            )
            for w in range(len(windows["input_ids"])):
                row = {name: windows[name][w] for name in ("input_ids", "token_type_ids", "attention_mask")}
                inside = [part == 1 for part in windows.sequence_ids(w)]
                places = [p if i else None for p, i in zip(windows["offset_mapping"][w], inside, strict=True)]
                start, end = span_in(places, *(answers[0] if answers else (-1, "")))
                found.append(Example([row | {"places": places}], {"start_positions": start, "end_positions": end}, i))
        return found

    def found(self, held: list[Example]) -> Found:
        """As postprocess_qa_predictions of run_qa: the best sums of a start and an end, against [CLS]."""
        rows = self.job.held
        best: list[tuple[float, str]] = [(float("-inf"), "")] * len(rows)
        null = [float("inf")] * len(rows)
        for example, (starts, ends) in zip(held, self.outputs(held), strict=True):
            places, i = example.rows[0]["places"], example.owner
            null[i] = min(null[i], (starts[0] + ends[0]).item())
            starts, ends = starts[: len(places)], ends[: len(places)]
            lasts = ends.topk(min(BEST, len(places))).indices.tolist()
            for first in starts.topk(min(BEST, len(places))).indices.tolist():
                for last in lasts:
                    if places[first] and places[last] and first <= last < first + LONGEST_ANSWER:
                        text = rows["text_pair"][i][places[first][0] : places[last][1]]
                        best[i] = max(best[i], ((starts[first] + ends[last]).item(), text), key=lambda b: b[0])
        odds = [min(n - score, 1e4) for n, (score, _) in zip(null, best, strict=True)]
        return {"predicted": [text for _, text in best], "silent": [o > 0 for o in odds], "odds": odds}


def span_in(places: Sequence[tuple[int, int] | None], start: int, answer: str) -> tuple[int, int]:
    """First and last token of an answer in a window; [CLS] twice where it does not hold all of it."""
    there = [i for i, place in enumerate(places) if place]
    end = start + len(answer)
    if start < 0 or not there or places[there[0]][0] > start or places[there[-1]][1] < end:
        return 0, 0
    inside = [i for i in there if places[i][1] > start and places[i][0] < end]
    return (inside[0], inside[-1]) if inside else (0, 0)


class Vectors(HuggingFace):
    """The mean over the tokens of the last layer, of length 1, as sentence-transformers has it."""

    model_class = "BertModel"

    def examples(self, rows: Table) -> list[Example]:
        return [Example([self.tokens(text)], {}) for column in self.job.texts for text in rows[column]]

    def found(self, held: list[Example]) -> Found:
        torch = self.torch
        vectors = [
            hidden[: len(example.rows[0]["input_ids"])].mean(0)
            for example, (hidden, *_) in zip(held, self.outputs(held, 64), strict=True)
        ]
        half = len(vectors) // 2
        first, second = torch.stack(vectors[:half]), torch.stack(vectors[half:])
        return {"predicted": torch.nn.functional.cosine_similarity(first, second).tolist()}


class Masks(HuggingFace):
    """The best words at each mask."""

    model_class = "BertForMaskedLM"

    def examples(self, rows: Table) -> list[Example]:
        return [Example([self.tokens(text)], {}) for text in rows[self.job.task.data.text_column]]

    def found(self, held: list[Example]) -> Found:
        mask = self.tokenizer.mask_token_id
        predicted = []
        for example, (logits,) in zip(held, self.outputs(held, 16), strict=True):
            places = [i for i, token in enumerate(example.rows[0]["input_ids"]) if token == mask]
            predicted.append(logits[places].topk(TOP).indices.tolist())
        return {"predicted": predicted}


PEERS: dict[str, type[HuggingFace]] = {
    "classify": Classification,
    "choice": Choices,
    "tag": Tags,
    "span": Answers,
    "embed": Vectors,
    "fill_mask": Masks,
}


def hugging_face(job: Job) -> Found:
    """What transformers on PyTorch finds."""
    peer = PEERS[job.task.kind](job)
    if job.task.train:
        peer.train()
    return peer.found(peer.examples(job.held))


SIDES: dict[str, Callable[[Job], Found]] = {
    "keras_bert": ours,
    "keras_bert bf16": lambda job: ours(job, "bfloat16"),
    "hf": hugging_face,
}


def sides_of(task: Task) -> list[str]:
    """Who takes part: nothing is trained in bfloat16 where nothing is trained, and not all tasks have a peer."""
    return [side for side in SIDES if (task.peer or side != "hf") and (task.train or side != "keras_bert bf16")]


# === Runs and the table ===


def work(name: str, side: str, seed: int, args: argparse.Namespace) -> None:
    """A run: one JSON line on standard output."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    job = job_of(sized(TASKS[name], args), args, seed)
    scores = {key: round(value, 6) for key, value in SCORES[job.task.kind](job, SIDES[side](job)).items()}
    line = key_of(name, side, seed, args) | {"train_rows": len(job.train), "held_rows": len(job.held)}
    out.write(json.dumps(line | {"metrics": scores}) + "\n")
    out.close()


def sized(task: Task, args: argparse.Namespace) -> Task:
    """The task in the sizes that were asked for."""
    given = SIZES if task.train else ("eval_rows",)
    return dataclasses.replace(task, **{n: getattr(args, n) for n in given if getattr(args, n) is not None})


def key_of(name: str, side: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """What makes two runs the same."""
    task = sized(TASKS[name], args)
    values = {field: getattr(task, field) for field in (*SIZES, "batch", "rate", "length")}
    return {"task": name, "side": side, "seed": seed, "from": str(getattr(args, task.checkpoint)), **values}


def run(name: str, side: str, seed: int, args: argparse.Namespace) -> dict[str, Any] | None:
    """Run in a process of its own, unless `--lines` has it; None where it failed, which it has said."""
    key = key_of(name, side, seed, args)
    lines = args.lines.read_text("utf-8").splitlines() if args.lines and args.lines.exists() else []
    for line in map(json.loads, lines):
        if key.items() <= line.items():
            return line
    flags = [f"--{f}={getattr(args, f)}" for f in FLAGS if getattr(args, f) is not None]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, __file__, "--worker", name, side, str(seed), *flags]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        print(f"{name}, {side}, seed {seed}: failed with exit code {done.returncode}; its message is above")
        return None
    print(done.stdout.strip(), flush=True)
    if args.lines:
        with args.lines.open("a", encoding="utf-8") as file:
            file.write(done.stdout)
    return json.loads(done.stdout)


def rows_of_table(name: str, runs: dict[str, list[dict[str, Any]]]) -> list[list[str]]:
    """A row for each metric of a task; its sizes stand in the first."""
    task, one = TASKS[name], next(iter(filter(None, runs.values())))[0]
    what = f"{one['train_rows']} rows, {one['epochs']} epochs" if task.train else "not trained"
    heads = [[task.title, f"{what}; {one['held_rows']} held out"]] + [["", ""]] * (len(task.shown) - 1)
    lines = []
    for head, metric in zip(heads, task.shown, strict=True):
        values = {side: [line["metrics"][metric] for line in runs.get(side, [])] for side in SIDES}
        apart = "-"
        if values["keras_bert"] and values["hf"]:
            apart = f"{statistics.mean(values['keras_bert']) - statistics.mean(values['hf']):+.4f}"
        lines.append([*head, metric, *(mean_and_each(values[side]) for side in SIDES), apart])
    return lines


def mean_and_each(values: Sequence[float]) -> str:
    """`0.9012`, or `0.9012 (0.9000, 0.9024)` of several seeds."""
    if not values:
        return "-"
    each = f" ({', '.join(f'{value:.4f}' for value in values)})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{each}"


SIZES = ("rows", "eval_rows", "epochs")
FLAGS = ("data", "checkpoint", "chinese", *SIZES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="", help=f"a comma list of {', '.join(TASKS)}; or all")
    parser.add_argument("--seeds", type=int, default=1, help="how many at most, from 1 on")
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--checkpoint", type=Path, default=None, help="default: the demo's all-MiniLM-L6-v2")
    parser.add_argument("--chinese", type=Path, default=None, help="a checkpoint as `make models/zh` leaves it")
    parser.add_argument("--lines", type=Path, default=None, help="where the JSON lines are kept, and found again")
    for name in SIZES:
        parser.add_argument(f"--{name}", type=int, default=None)
    parser.add_argument("--worker", nargs=3, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        name, side, seed = args.worker
        work(name, side, int(seed), args)
        return
    from report import machine, table, write_section

    from keras_bert.cli.demo import pretrained

    model = args.checkpoint.name if args.checkpoint else "all-MiniLM-L6-v2"
    args.checkpoint = args.checkpoint or pretrained()
    given = [name for name, task in TASKS.items() if getattr(args, task.checkpoint) is not None]
    usual = [*USUAL, *(name for name in given if TASKS[name].checkpoint != "checkpoint")]
    names = {"": usual, "all": given}.get(args.tasks) or args.tasks.split(",")
    for name in names:
        if name not in TASKS:
            parser.error(f"no task {name!r}; there are {', '.join(TASKS)}")
        if name not in given:
            parser.error(f"{name} needs --{TASKS[name].checkpoint}")
    missing = [
        package for package in ("torch", "transformers", "seqeval", "sklearn") if not importlib.util.find_spec(package)
    ]
    if missing:
        sys.exit(f"needs {', '.join(missing)}: pip install 'keras3-bert[peers]'")
    body, failed, begun = [], False, time.perf_counter()
    for name in names:
        runs: dict[str, list[dict[str, Any]]] = {}
        most = TASKS[name].seeds if TASKS[name].train else 1  # nothing is drawn where nothing is learnt
        for seed in range(1, 1 + min(args.seeds, most)):
            for side in sides_of(TASKS[name]):
                line = run(name, side, seed, args)
                failed = failed or line is None
                runs.setdefault(side, []).extend([line] if line else [])
        if any(runs.values()):
            body += rows_of_table(name, runs)
    header = ["task", "rows", "metric", *SIDES, "keras_bert - hf"]
    about = (
        f"`python benchmarks/tasks.py`: {model}, seeds from 1 on, batch {Task.batch} (tweets "
        f"{TASKS['tweets'].batch}), rate {Task.rate:g} (answers and entities {TASKS['squad'].rate:g}, Chinese "
        f"{TASKS['afqmc'].rate:g}), float32 but where bf16 is said. The same rows, checkpoint and "
        "hyper-parameters on all sides, scored by the same code after the last epoch; the mean over seeds, and each. "
        "`hf` is Hugging Face transformers on PyTorch, padding to the longest row of a batch. Chinese rows start from "
        "`make models/zh`, a BERT-mini that has read 5 MB of text. Without dropout both sides end with the same "
        "weights, but for rounding, as `tests/training/test_parity.py` shows; what differs here is the draw of it."
    )
    text = "\n\n".join([about, table(header, body), machine()])
    print(text)
    print(f"{time.perf_counter() - begun:.0f} s in all", file=sys.stderr)
    if failed:
        sys.exit("some runs failed; RESULTS.md was left as it is")
    if set(USUAL) <= set(names) and all(getattr(args, size) is None for size in SIZES):
        write_section("Tasks", text)


if __name__ == "__main__":
    main()
