"""Text to ids: our tokenizer beside TensorFlow Text's FastBertTokenizer and Hugging Face's tokenizers.

    python benchmarks/tokenization.py

Ours runs with every rule on (final sigmas, special tokens in the text, words limited in characters) and gives the ids
of google-research/bert; the others do what they do by default. All tokenize the same batches of lines in turn, in one
process. To expect: about the speed of TensorFlow Text, and several times that of Hugging Face with two threads.
"""

import argparse
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["TOKENIZERS_PARALLELISM"] = "true"
os.environ["RAYON_NUM_THREADS"] = "2"

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
BATCH = 1024
OURS, STOCK, HF = "keras_bert", "TF Text FastBertTokenizer", "HF tokenizers encode_batch_fast, 2 threads"
OFFSETS = ", offsets"


def english(folder: Path) -> list[str]:
    """Paragraphs of Wikipedia articles."""
    articles = [json.loads(row)["text"] for f in sorted(folder.glob("enwiki_*.jsonl")) for row in f.open("rb")]
    return [line for article in articles for line in article.split("\n") if line.strip()]


def chinese(folder: Path) -> list[str]:
    """Lines of Wikipedia articles and two novels."""
    lines = [line for f in sorted(folder.glob("*.txt")) for line in f.read_text("utf-8").split("\n")]
    return [line for line in lines if line.strip() and not line.startswith(("<doc", "</doc"))]


def peers(pieces: list[str]) -> dict[str, Callable[[list[list[str]]], int]]:
    """Name -> a function from batches of lines to the number of ids."""
    import tensorflow as tf
    import tensorflow_text
    import tokenizers

    from keras_bert.text.tokenizer import Tokenizer

    ours = Tokenizer(pieces, True, special_tokens=SPECIAL)
    usable = [p if p.strip() not in ("", "##") else f"[no piece {i}]" for i, p in enumerate(pieces)]
    stock = tensorflow_text.FastBertTokenizer(usable, token_out_type=tf.int32, lower_case_nfd_strip_accents=True)
    hf = tokenizers.Tokenizer(tokenizers.models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    hf.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    hf.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    hf.add_special_tokens(SPECIAL)

    def in_graph(tokenize: Callable) -> Callable[[list[list[str]]], int]:
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
        def all_of_it(strings):
            found = tokenize(strings)
            return [r.flat_values for r in found] if isinstance(found, tuple) else found.flat_values

        def run(batches: list[list[str]]) -> int:
            found = [all_of_it(tf.constant(batch)) for batch in batches]
            return sum(int((f[0] if isinstance(f, list) else f).shape[0]) for f in found)

        return run

    return {
        OURS: in_graph(ours.tokenize),
        STOCK: in_graph(stock.tokenize),
        OURS + OFFSETS: in_graph(ours.tokenize_with_offsets),
        STOCK + OFFSETS: in_graph(stock.tokenize_with_offsets),
        HF: lambda batches: sum(len(e.ids) for b in batches for e in hf.encode_batch_fast(b, add_special_tokens=False)),
    }


def measure(lines: list[str], pieces: list[str], rounds: int) -> dict[str, tuple[list[float], int]]:
    """Seconds of each round, the peers in turn, and how many ids each made."""
    batches = [lines[i : i + BATCH] for i in range(0, len(lines), BATCH)]
    each = peers(pieces)
    counts = {name: run(batches) for name, run in each.items()}  # also warms up
    seconds: dict[str, list[float]] = {name: [] for name in each}
    for number in range(rounds):
        order = list(each)[number % len(each) :] + list(each)[: number % len(each)]
        for name in order:
            start = time.perf_counter()
            each[name](batches)
            seconds[name].append(time.perf_counter() - start)
    return {name: (seconds[name], counts[name]) for name in each}


def build_seconds(pieces: list[str]) -> list[float]:
    """Seconds to make our tokenizer the first time in a process, and after that with the table at hand."""
    from keras_bert.text.tokenizer import Tokenizer

    found = []
    for _ in range(2):
        start = time.perf_counter()
        Tokenizer(pieces, True, special_tokens=SPECIAL)
        found.append(time.perf_counter() - start)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder with vocab/, raw_en/ and raw_zh/")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dry_run", action="store_true", help="print the section and leave RESULTS.md as it is")
    args = parser.parse_args()
    missing = [name for name in ("tokenizers", "tensorflow_text") if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"needs {' and '.join(missing)}: pip install 'keras3-bert[peers]'")
    from report import bars, machine, table, write_section

    rows, sizes = [], []
    panels: dict[str, dict[str, float]] = {}
    for language, lines, name in (
        ("English", english(args.data / "raw_en"), "uncased"),
        ("Chinese", chinese(args.data / "raw_zh"), "chinese"),
    ):
        pieces = (args.data / "vocab" / name / "vocab.txt").read_text("utf-8").removesuffix("\n").split("\n")
        if not rows:
            first, again = build_seconds(pieces)
        found = measure(lines, pieces, args.rounds)
        megabytes = sum(len(line.encode()) for line in lines) / 1e6
        sizes.append(f"{language} {megabytes:.1f} MB in {len(lines)} lines")
        for peer, (seconds, count) in found.items():
            base = STOCK + OFFSETS if OFFSETS in peer else STOCK
            ratios = [
                f"{statistics.median(b / s for s, b in zip(seconds, found[to][0], strict=True)):.2f}"
                for to in (base, HF)
            ]
            speed = f"{megabytes / statistics.median(seconds):.1f}"
            spread = f"{megabytes / max(seconds):.1f} to {megabytes / min(seconds):.1f}"
            rows.append([language, peer, speed, spread, *ratios, f"{count:,}"])
            panels.setdefault(language, {})[peer] = float(speed)
    header = ["", "", "MB/s, median", "slowest to fastest", "times TF Text", f"times {HF}", "ids"]
    body = "\n\n".join(
        [
            f"`python benchmarks/tokenization.py`: {', '.join(sizes)}; batches of {BATCH}, {args.rounds} rounds, the "
            "tokenizers in turn. Ours with all rules on, in a `tf.function`; the published uncased and Chinese "
            "vocabularies. Ratios are medians over rounds; with offsets, beside TF Text with offsets.",
            table(header, rows),
            f"Making our uncased tokenizer: {first:.2f} s, {again:.2f} s again in the same process.",
        ]
    )
    if not args.dry_run:
        body += f"\n\n{bars('tokenization.png', panels, 'MB/s')}\n\n{machine()}"
        write_section("Tokenization", body)
    print(body)


if __name__ == "__main__":
    main()
