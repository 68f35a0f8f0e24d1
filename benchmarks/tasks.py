"""How well the tasks of fine-tuning are learnt on real data: one function a task, one JSON line a run.

    python benchmarks/tasks.py tag --data=DATA --checkpoint=all-MiniLM-L6-v2 --rows=3000
    python benchmarks/tasks.py span --data=DATA --checkpoint=all-MiniLM-L6-v2 --rows=1500

DATA holds `conll2003/eng.*` and `squad2_part/dev-v2.0.json`; of the latter the last fifth of the articles is the
evaluation set. `--rows` and `--eval_rows` take the first rows only; 0 takes all.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from keras_bert.config import DataConfig, OptimizerConfig, RunConfig, TrainConfig
from keras_bert.data import Rows
from keras_bert.readers import find_types, read_labelled


def first(rows: Rows, count: int) -> Rows:
    """The first `count` rows; 0 is all."""
    return rows.take(range(min(count or len(rows), len(rows))))


def tag(options: argparse.Namespace) -> dict[str, Any]:
    """CoNLL-2003: trained on eng.train, evaluated on eng.testa, by entity F1."""
    from keras_bert.bert import Bert

    data = DataConfig()
    train, held = (
        read_labelled("tag", options.data / "conll2003" / f"eng.{part}", data) for part in ("train", "testa")
    )
    bert = Bert.from_checkpoint(options.checkpoint, "tag", find_types(train, "label"), data, max_seq_length=128)
    return run(bert, first(train, options.rows), first(held, options.eval_rows), options)


def span(options: argparse.Namespace) -> dict[str, Any]:
    """SQuAD 2.0, the half of its development set: articles 1 to 4 of 5 against the rest, by F1."""
    from keras_bert.bert import Bert

    data = DataConfig(text_pair_column="text_pair")
    rows = read_labelled("span", options.data / "squad2_part" / "dev-v2.0.json", data)
    cut = len(rows) * 4 // 5
    while rows["text_pair"][cut] == rows["text_pair"][cut - 1]:  # a passage is on one side
        cut += 1
    train, held = rows.take(range(cut)), rows.take(range(cut, len(rows)))
    head = {"version_2_with_negative": True}
    bert = Bert.from_checkpoint(options.checkpoint, "span", data=data, head=head, max_seq_length=options.length)
    return run(bert, first(train, options.rows), first(held, options.eval_rows), options)


def run(bert: Any, train: Rows, held: Rows, options: argparse.Namespace) -> dict[str, Any]:
    """Fine-tune and return the best epoch."""
    from keras_bert.training import Keeping

    config = TrainConfig(
        num_train_epochs=options.epochs, train_batch_size=options.batch, seed=options.seed, eval_batch_size=32
    )
    optimizer = OptimizerConfig(learning_rate=options.rate)
    result = bert.fit_rows(train, held, config, optimizer, Keeping(None, RunConfig()), sys.stderr)
    return {"train_rows": len(train), "eval_rows": len(held), "seconds": result.seconds, **result.best}


TASKS = {"tag": tag, "span": span}


def main() -> None:
    """Run one task and print what it came to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--checkpoint", required=True)
    for name, value in (("rows", 0), ("eval_rows", 0), ("epochs", 3), ("batch", 16), ("length", 384), ("seed", 12345)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--rate", type=float, default=5e-5)
    options = parser.parse_args()
    print(json.dumps({"task": options.task, "seed": options.seed, **TASKS[options.task](options)}))


if __name__ == "__main__":
    main()
