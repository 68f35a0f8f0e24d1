"""Pretraining BERT-mini from raw text, here and with KerasHub's MaskedLM: what it learns, token by token.

    python benchmarks/pretraining.py --input_dir=raw_en

Question: does the masked language model learn from a few megabytes of text in minutes, and as well as KerasHub's with
the same shape, vocabulary, rows, schedule and number of tokens? A vocabulary is learnt from the training text, one of
the files is held out, and both models are measured on the same held-out rows with the same masks. The baseline always
answers with the most frequent token of the training text. Each runs in a process of its own.

Expected: well above the baseline, within 20 minutes on two cores, and not below KerasHub's by more than 0.01.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHARED = Path(__file__).parent.parent.parent / "shared" / "data" / "raw_en"
PLOT = Path(__file__).parent / "pretraining.png"
LENGTH, BATCH, RATE, WARMUP, VOCAB, PREDICTIONS, POINTS, EVAL_ROWS = 64, 32, 1e-3, 0.1, 4000, 10, 10, 1024
SEED = 1


def prepare(folder: Path, source: Path) -> None:
    """A vocabulary and two corpora, of all files but the last and of the last."""
    files = sorted(source.glob("enwiki_*.jsonl"))
    if len(files) < 2:
        sys.exit(f"{source}: needs at least two files enwiki_*.jsonl")
    lines = (json.loads(line)["text"] for file in files[:-1] for line in file.open(encoding="utf-8"))
    (folder / "text.txt").write_text("\n".join(lines), "utf-8")
    command = [sys.executable, "-m", "keras_bert"]
    text, vocab = f"--input_file={folder}/text.txt", f"{folder}/vocab.txt"
    subprocess.run([*command, "vocab", text, f"--output_file={vocab}", f"--vocab_size={VOCAB}"], check=True)
    for name, part in (("train", files[:-1]), ("held", files[-1:])):
        flags = [f"--input_file={','.join(map(str, part))}", f"--vocab_file={vocab}", f"--output_dir={folder}/{name}"]
        subprocess.run([*command, "corpus", *flags, f"--max_seq_length={LENGTH}", "--pairs=none"], check=True)


def common(folder: Path):
    """Vocabulary, shape, and the rows of both corpora, which both models get from here."""
    import dataclasses

    from keras_bert.config import SIZES, MaskingConfig, TrainConfig
    from keras_bert.pretrain.reader import Corpus
    from keras_bert.pretrain.run import CorpusBatches
    from keras_bert.text.vocabulary import read_vocabulary

    vocabulary = read_vocabulary(folder / "vocab.txt")
    shape = dataclasses.replace(SIZES["mini"], vocab_size=len(vocabulary), max_positions=LENGTH, activation="gelu_tanh")
    config = TrainConfig(train_batch_size=BATCH, eval_batch_size=64, seed=SEED)
    masking = MaskingConfig(max_predictions_per_seq=PREDICTIONS)
    rows = [
        CorpusBatches(Corpus.open(folder / name), vocabulary, masking, config, LENGTH) for name in ("train", "held")
    ]
    return vocabulary, shape, config, rows


def held_out(rows):
    """The batches that both models are measured on."""
    import numpy as np
    import tensorflow as tf

    from keras_bert.pretrain.run import EVALUATION_EPOCH

    for records, _, indices in rows.corpus.in_order(64, EVAL_ROWS):
        yield rows.features(tf.constant(records), np.full_like(indices, EVALUATION_EPOCH), indices, fixed=True)


def ours(folder: Path, steps: int) -> None:
    """Prints a JSON line at each point of the curve: tokens seen, seconds of training, accuracy."""
    import keras

    from keras_bert.config import OptimizerConfig
    from keras_bert.pretrain.objectives import PretrainNetwork
    from keras_bert.pretrain.run import Pretraining
    from keras_bert.training.step import Trainer

    _, shape, config, (train, held) = common(folder)
    optimizer = OptimizerConfig(learning_rate=RATE, warmup_proportion=WARMUP)
    keras.utils.set_random_seed(SEED)
    network = PretrainNetwork(shape, 0)
    trainer = Trainer(
        lambda policy: Pretraining(PretrainNetwork(shape, 0, dtype=policy)), network, optimizer, config, steps
    )
    spent, start, tokens = 0.0, time.monotonic(), 0.0
    for done, batch in enumerate(trainer.take(train.training(trainer, BATCH, 0, steps)), 1):
        trainer.train(batch)
        tokens += float(batch["padding_mask"].numpy().sum())
        if done % (steps // POINTS) == 0:
            trainer.flush()
            spent += time.monotonic() - start
            means = trainer.evaluate(held.evaluation(trainer, 64, EVAL_ROWS))[0].means()
            report(tokens, spent, means["masked_lm_accuracy"], means["masked_lm_loss"])
            start = time.monotonic()


def keras_hub(folder: Path, steps: int) -> None:
    """The same with KerasHub: its backbone, its MaskedLMHead, its mask generator, and Keras's `fit`."""
    import keras
    import keras_hub
    import numpy as np
    import tensorflow as tf

    from keras_bert.pretrain.rows import assemble

    vocabulary, shape, _, (train, held) = common(folder)
    keras.utils.set_random_seed(SEED)
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=shape.vocab_size,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        hidden_dim=shape.hidden_dim,
        intermediate_dim=shape.intermediate_dim,
        max_sequence_length=LENGTH,
    )
    model = keras_hub.models.BertMaskedLM(backbone=backbone, preprocessor=None)

    class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            step = keras.ops.cast(step, "float32")
            warm = WARMUP * steps
            down = RATE * (steps - step) / (steps - warm)
            return keras.ops.where(step < warm, RATE * (step + 1) / warm, down)

    optimizer = keras.optimizers.AdamW(WarmUp(), weight_decay=0.01, epsilon=1e-6, global_clipnorm=1.0)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss, jit_compile=False)
    ids = {piece: i for i, piece in enumerate(vocabulary)}
    masker = keras_hub.layers.MaskedLMMaskGenerator(
        vocabulary_size=len(vocabulary),
        mask_selection_rate=0.15,
        mask_selection_length=PREDICTIONS,
        mask_token_id=ids["[MASK]"],
        unselectable_token_ids=[ids[name] for name in ("[CLS]", "[SEP]", "[PAD]")],
    )

    def batch(records, epochs, indices):
        examples = train.corpus.parse(records)
        made = assemble(examples, ids["[CLS]"], ids["[SEP]"], ids["[PAD]"], LENGTH)
        masked = masker(made["token_ids"])
        features = {
            "token_ids": masked["token_ids"],
            "padding_mask": made["padding_mask"],
            "segment_ids": made["segment_ids"],
            "mask_positions": masked["mask_positions"],
        }
        return features, masked["mask_ids"], masked["mask_weights"]

    def from_batch(number):
        return lambda: itertools.islice(train.corpus.batches(BATCH, SEED, start=number), part)

    spec = (tf.TensorSpec([BATCH], tf.string), tf.TensorSpec([BATCH], tf.int64), tf.TensorSpec([BATCH], tf.int64))
    spent, tokens, part = 0.0, 0.0, steps // POINTS
    for point in range(POINTS):
        some = tf.data.Dataset.from_generator(from_batch(point * part), output_signature=spec).map(batch).prefetch(8)
        start = time.monotonic()
        model.fit(some, epochs=1, verbose=0)
        spent += time.monotonic() - start
        tokens += sum(float(features["padding_mask"].numpy().sum()) for features, *_ in some)
        hits = total = 0.0
        for rows in held_out(held):
            names = ("token_ids", "padding_mask", "segment_ids")
            given = {n: rows[n] for n in names} | {"mask_positions": rows["masked_positions"]}
            best = np.argmax(model.predict_on_batch(given), axis=-1)
            weights = rows["masked_weights"].numpy()
            hits += float(((best == rows["masked_ids"].numpy()) * weights).sum())
            total += float(weights.sum())
        report(tokens, spent, hits / total, float("nan"))


def report(tokens: float, seconds: float, accuracy: float, loss: float) -> None:
    line = {"tokens": tokens, "seconds": seconds, "accuracy": accuracy, "loss": loss}
    print(json.dumps(line), flush=True)


def baseline(folder: Path) -> float:
    """Accuracy of always answering with the most frequent token of the training rows."""
    import numpy as np
    import tensorflow as tf

    vocabulary, *_, (train, held) = common(folder)
    counts = np.zeros(len(vocabulary), np.int64)
    for records, _, _ in train.corpus.in_order(1024):
        counts += np.bincount(train.corpus.parse(tf.constant(records))["token_ids"].flat_values, minlength=len(counts))
    best, hits, total = int(counts.argmax()), 0.0, 0.0
    for rows in held_out(held):
        weights = rows["masked_weights"].numpy()
        hits += float(((rows["masked_ids"].numpy() == best) * weights).sum())
        total += float(weights.sum())
    return hits / total


def run(kind: str, folder: Path, steps: int) -> list[dict]:
    """The curve of one model, in a process of its own."""
    command = [sys.executable, __file__, f"--kind={kind}", f"--folder={folder}", f"--steps={steps}"]
    found = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            if line.startswith("{"):
                found.append(json.loads(line))
                print(kind, line.strip(), flush=True)
    if process.returncode:
        sys.exit(f"{kind} ended with {process.returncode}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input_dir", type=Path, default=SHARED)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--kind", choices=["ours", "keras_hub"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.kind:
        {"ours": ours, "keras_hub": keras_hub}[arguments.kind](arguments.folder, arguments.steps)
        return
    from report import machine, table, write_section

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, arguments.input_dir)
        floor = baseline(folder)
        curves = {kind: run(kind, folder, arguments.steps) for kind in ("ours", "keras_hub")}
    picture(curves, floor)
    rows = [
        [
            kind,
            f"{curve[-1]['tokens'] / 1e6:.2f} M",
            f"{curve[-1]['seconds'] / 60:.1f}",
            f"{curve[-1]['tokens'] / curve[-1]['seconds']:,.0f}",
            f"{curve[-1]['accuracy']:.4f}",
        ]
        for kind, curve in curves.items()
    ]
    ratio = curves["keras_hub"][-1]["seconds"] / curves["ours"][-1]["seconds"]
    body = (
        f"`python benchmarks/pretraining.py --steps={arguments.steps}`: BERT-mini (4 layers, 256 wide), a vocabulary "
        f"of {VOCAB:,} from English Wikipedia, one file of which is held out; batch {BATCH} x {LENGTH}, rate {RATE:g}, "
        f"float32. Accuracy at masked tokens of held-out text; always answering with the most frequent token gives "
        f"{floor:.4f}. KerasHub takes {ratio:.2f} times as long.\n\n"
        + table(["", "tokens seen", "minutes", "tokens per second", "masked accuracy"], rows)
        + f"\n\n![Masked accuracy over tokens seen]({PLOT.name})\n\n{machine()}"
    )
    write_section("Pretraining from raw text", body)


def picture(curves: dict[str, list[dict]], floor: float) -> None:
    """Both curves and the baseline, over the tokens seen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for kind, curve in curves.items():
        axes.plot([p["tokens"] / 1e6 for p in curve], [p["accuracy"] for p in curve], marker="o", label=kind)
    axes.axhline(floor, color="grey", linestyle="--", label="most frequent token")
    axes.set(xlabel="million tokens seen", ylabel="accuracy at masked tokens, held-out text", ylim=(0, None))
    axes.legend()
    figure.tight_layout()
    figure.savefig(PLOT, dpi=100)


if __name__ == "__main__":
    main()
