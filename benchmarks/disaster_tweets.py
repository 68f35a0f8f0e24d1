"""Kaggle's Disaster Tweets: fine-tuning MiniLM here and with Hugging Face on PyTorch, side by side.

    python benchmarks/disaster_tweets.py --train_csv=train.csv --checkpoint=all-MiniLM-L6-v2

Question: is ours as good, and how long does an epoch take? For each seed the rows are split 80/20 (stratified,
equal texts on one side) and both train on the same rows with the same checkpoint and hyper-parameters, each in
a process of its own; the processes take turns, an epoch each, so that the machine's mood hits both alike.
Scores are those after the last epoch. `--sorted` adds Hugging Face with batches of like length.

Expected: F1 and accuracy within 0.005 of Hugging Face's; an epoch at least twice as fast as theirs.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EPOCHS, BATCH, RATE, LENGTH, WARMUP, DECAY, CLIP, EPSILON = 2, 32, 5e-5, 128, 0.1, 0.01, 1.0, 1e-6
SHARED = Path(__file__).parent.parent.parent / "shared" / "data" / "disaster_tweets" / "train.csv"


class Ours:
    """keras_bert, as `keras-bert finetune` runs it."""

    def __init__(self, job: dict) -> None:
        from keras_bert import Bert, OptimizerConfig, TrainConfig
        from keras_bert.data import Examples
        from keras_bert.heads import Network
        from keras_bert.trainer import Trainer
        from keras_bert.training import HeadTask, LabelledRows

        bert = Bert.from_checkpoint(job["checkpoint"], labels=["0", "1"], max_seq_length=LENGTH, seed=job["seed"])
        self.config = TrainConfig(num_train_epochs=EPOCHS, train_batch_size=BATCH, seed=job["seed"])
        optimizer = OptimizerConfig(
            learning_rate=RATE, warmup_proportion=WARMUP, weight_decay=DECAY, clip_norm=CLIP, epsilon=EPSILON
        )
        self.train, self.held = (
            LabelledRows(Examples(([r[0] for r in rows],), [r[1] for r in rows]), bert.text, self.config)
            for rows in (job["train"], job["held"])
        )
        shape, head = bert.network.encoder.config, bert.network.head.config
        make = lambda policy: HeadTask(Network(shape, head, dtype=policy))  # noqa: E731
        self.trainer = Trainer(make, bert.network, optimizer, self.config, EPOCHS * self.train.steps)

    def epoch(self, number: int) -> None:
        for batch in self.trainer.take(self.train.training(self.trainer, number * self.train.steps)):
            self.trainer.train(batch)
        self.trainer.flush()

    def predict(self) -> list[int]:
        return self.held.evaluate(self.trainer)[1]["class_id"].tolist()


class HuggingFace:
    """transformers on PyTorch: dynamic padding to the longest row of a batch, AdamW, linear schedule."""

    sort = False

    def __init__(self, job: dict) -> None:
        import torch
        import transformers

        torch.manual_seed(job["seed"])
        self.torch, self.seed = torch, job["seed"]
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(job["checkpoint"])
        self.model = transformers.BertForSequenceClassification.from_pretrained(job["checkpoint"], num_labels=2)
        self.train, self.held = (
            (
                self.tokenizer([r[0] for r in rows], truncation=True, max_length=LENGTH)["input_ids"],
                [r[1] for r in rows],
            )
            for rows in (job["train"], job["held"])
        )
        named = list(self.model.named_parameters())
        still = ("bias", "LayerNorm.weight")
        groups = [
            {"params": [p for n, p in named if not n.endswith(still)], "weight_decay": DECAY},
            {"params": [p for n, p in named if n.endswith(still)], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=RATE, eps=EPSILON)
        steps = EPOCHS * -(-len(self.train[0]) // BATCH)
        self.schedule = transformers.get_linear_schedule_with_warmup(self.optimizer, round(WARMUP * steps), steps)

    def batch(self, source: tuple, rows: list[int]) -> dict:
        longest = max(len(source[0][i]) for i in rows)
        ids = [source[0][i] + [0] * (longest - len(source[0][i])) for i in rows]
        mask = [[1] * len(source[0][i]) + [0] * (longest - len(source[0][i])) for i in rows]
        tensor = self.torch.tensor
        return {
            "input_ids": tensor(ids),
            "attention_mask": tensor(mask),
            "labels": tensor([source[1][i] for i in rows]),
        }

    def order(self, number: int) -> list[list[int]]:
        import numpy as np

        lengths = np.array([len(ids) for ids in self.train[0]])
        if self.sort:
            from keras_bert.data import batches_by_length

            return [b.tolist() for b in batches_by_length(lengths, BATCH, self.seed, number)]
        order = np.random.default_rng((self.seed, number)).permutation(len(lengths)).tolist()
        return [order[i : i + BATCH] for i in range(0, len(order), BATCH)]

    def epoch(self, number: int) -> None:
        self.model.train()
        for rows in self.order(number):
            loss = self.model(**self.batch(self.train, rows)).loss
            self.optimizer.zero_grad()
            loss.backward()
            self.torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
            self.optimizer.step()
            self.schedule.step()

    def predict(self) -> list[int]:
        self.model.eval()
        found: list[int] = []
        with self.torch.no_grad():
            for start in range(0, len(self.held[0]), 64):
                rows = list(range(start, min(start + 64, len(self.held[0]))))
                found += self.model(**self.batch(self.held, rows)).logits.argmax(-1).tolist()
        return found


class HuggingFaceSorted(HuggingFace):
    """The same with batches of like length."""

    sort = True


PEERS = {"keras_bert": Ours, "hf": HuggingFace, "hf sorted": HuggingFaceSorted}


def work(name: str, job_file: str) -> None:
    """A worker: one epoch for each line on standard input, one JSON line for each on standard output."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    peer = PEERS[name](json.loads(Path(job_file).read_text("utf-8")))
    out.write("{}\n")
    for number, _ in enumerate(sys.stdin):
        start = time.perf_counter()
        peer.epoch(number)
        out.write(json.dumps({"seconds": time.perf_counter() - start, "predicted": peer.predict()}) + "\n")


def ask(process: subprocess.Popen) -> dict:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def run_seed(rows: list, folder: Path, args: argparse.Namespace, seed: int, peers: list[str]) -> dict:
    """Train the peers on one split; returns seconds of each epoch and the scores of each peer."""
    import numpy as np

    from keras_bert import metrics
    from keras_bert.data import split

    kept, held = split([r[0].strip().casefold() for r in rows], [str(r[1]) for r in rows], 0.2, seed)
    job = {
        "checkpoint": str(args.checkpoint),
        "seed": seed,
        "train": [rows[i] for i in kept],
        "held": [rows[i] for i in held],
    }
    job_file = folder / f"job-{seed}.json"
    job_file.write_text(json.dumps(job), "utf-8")
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    found: dict[str, dict] = {name: {"seconds": []} for name in peers}
    processes = {}
    for name in peers:
        command = [sys.executable, __file__, "--worker", name, str(job_file)]
        processes[name] = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        processes[name].stdout.readline()
    for epoch in range(EPOCHS):
        for name in peers:
            answer = ask(processes[name])
            found[name]["seconds"].append(answer["seconds"])
            labels = np.array([r[1] for r in job["held"]])
            found[name] |= metrics.classification(labels, np.array(answer["predicted"]), 2)
            scores = f"F1 {found[name]['f1']:.4f}  accuracy {found[name]['accuracy']:.4f}"
            print(f"seed {seed}  epoch {epoch + 1}  {name:10}  {answer['seconds']:.1f} s  {scores}", flush=True)
    for process in processes.values():
        process.stdin.close()
        process.wait()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_csv", type=Path, default=SHARED)
    parser.add_argument("--checkpoint", type=Path, default=None, help="default: the demo's all-MiniLM-L6-v2")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sorted", action="store_true", help="also Hugging Face with rows of like length together")
    parser.add_argument("--worker", nargs=2, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(*args.worker)
        return
    from report import machine, table, write_section

    from keras_bert.cli.demo import pretrained
    from keras_bert.data import read

    args.checkpoint = args.checkpoint or pretrained()
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None:
        sys.exit("needs torch and transformers: pip install 'keras3-bert[peers]'")
    source = read(args.train_csv, ["text", "target"])
    rows = [[text, int(label)] for text, label in zip(source["text"], source["target"], strict=True)]
    seeds = list(range(1, args.seeds + 1))
    with tempfile.TemporaryDirectory() as folder:
        runs = [
            run_seed(rows, Path(folder), args, seed, [*PEERS] if args.sorted else ["keras_bert", "hf"])
            for seed in seeds
        ]
    names = [name for name in PEERS if name in runs[0]]
    lines = []
    seconds = {name: [s for r in runs if name in r for s in r[name]["seconds"]] for name in names}
    base = statistics.median(seconds["keras_bert"])
    for name in names:
        each = [r[name] for r in runs if name in r]
        cells = [
            f"{statistics.mean(e[k] for e in each):.4f} ({', '.join(f'{e[k]:.4f}' for e in each)})"
            for k in ("f1", "accuracy")
        ]
        median = statistics.median(seconds[name])
        spread = f"{median:.1f} ({min(seconds[name]):.1f} to {max(seconds[name]):.1f})"
        lines.append([name, *cells, spread, f"{median / base:.2f}"])
    header = ["", "F1, mean (each seed)", "accuracy", "seconds per epoch, median", "times ours"]
    body = "\n\n".join(
        [
            f"`python benchmarks/disaster_tweets.py`: {len(rows)} tweets, 80/20, seeds {seeds}, all-MiniLM-L6-v2, "
            f"{EPOCHS} epochs, batch {BATCH}, rate {RATE:g}, at most {LENGTH} tokens, float32. Epochs in turn; scores "
            "after the last one. `hf` is Hugging Face transformers on PyTorch, padding to the longest row of a batch"
            + ("; `hf sorted` also puts rows of like length together, as we do." if args.sorted else "."),
            table(header, lines),
            machine(),
        ]
    )
    write_section("Fine-tuning on Disaster Tweets", body)
    print(body)


if __name__ == "__main__":
    main()
