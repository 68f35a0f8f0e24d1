"""What the bare matrix products of an answer take, in the form that is exported and in others.

    python benchmarks/products.py [--rounds=7] [--quick]

Question: `where_time_goes.py` shows that products bound the answer to a few texts; would TensorFlow compute them faster
in another form, and how fast are they elsewhere? The chain is that of all-MiniLM-L6-v2's layers, random weights:
query, key, value, output, inner and outer, with their biases, and nothing between; rows are tokens. `weights kept` is
TF_ONEDNN_ASSUME_FROZEN_WEIGHTS, with which `keras-bert serve` runs models in bfloat16.

Expected: kept weights ahead in bfloat16 at few rows, no form clearly ahead in float32 at few and at many; ONNX Runtime
well ahead at few.
"""

import argparse
import os
from collections.abc import Callable
from typing import Any

LAYERS, WIDTH, INNER = 6, 384, 1536
OURS = "as exported"
KEPT = "weights kept"
PEERS = (
    OURS,
    "query, key, value as one",
    "weights transposed",
    "weights as constants",
    KEPT,
    "PyTorch",
    "ONNX Runtime",
)
CASES = tuple((precision, rows) for precision in ("float32", "bfloat16") for rows in (10, 80, 640))


def weights(together: bool = False) -> list[list[Any]]:
    """Of each layer the matrices `[in, out]` float32, in the order of their use; query, key and value may be one."""
    import numpy as np

    rng = np.random.default_rng(1)
    first = [(WIDTH, 3 * WIDTH)] if together else [(WIDTH, WIDTH)] * 3
    shapes = [*first, (WIDTH, WIDTH), (WIDTH, INNER), (INNER, WIDTH)]
    return [[rng.normal(0.0, 0.05, shape).astype("float32") for shape in shapes] for _ in range(LAYERS)]


def in_tensorflow(form: str, precision: str, rows: int) -> Callable[[], Any]:
    from keras_bert.config import FROZEN

    os.environ[FROZEN] = str(int(form == KEPT))
    import numpy as np
    import tensorflow as tf

    together, transposed = form == "query, key, value as one", form == "weights transposed"
    keep = np.asarray if form == "weights as constants" else tf.Variable  # an array becomes a part of the graph
    layers = [
        [(keep(tf.cast(w.T if transposed else w, precision)), keep(tf.zeros(w.shape[1], precision))) for w in layer]
        for layer in weights(together)
    ]

    @tf.function(input_signature=[tf.TensorSpec([None, WIDTH], precision)], autograph=False)
    def chain(x: tf.Tensor) -> tf.Tensor:
        for *first, output, inner, outer in layers:
            parts = [dense(x, *pair) for pair in first]
            x = tf.add_n(tf.split(parts[0], 3, axis=-1) if together else parts)
            for pair in (output, inner, outer):
                x = dense(x, *pair)
        return x

    def dense(x: tf.Tensor, kernel: Any, bias: Any) -> tf.Tensor:
        return tf.nn.bias_add(tf.matmul(x, kernel, transpose_b=transposed), bias)

    x, run = tf.ones([rows, WIDTH], precision), chain.get_concrete_function()
    return lambda: run(x)


def in_pytorch(precision: str, rows: int) -> Callable[[], Any]:
    import torch

    kind = getattr(torch, precision)
    layers = [
        [(torch.from_numpy(w.T.copy()).to(kind), torch.zeros(w.shape[1], dtype=kind)) for w in layer]
        for layer in weights()
    ]
    x = torch.ones(rows, WIDTH, dtype=kind)

    @torch.inference_mode()
    def chain() -> Any:
        y, dense = x, torch.nn.functional.linear
        for *first, output, inner, outer in layers:
            y = sum(dense(y, *pair) for pair in first)
            for pair in (output, inner, outer):
                y = dense(y, *pair)
        return y

    return chain


def in_onnx_runtime(rows: int) -> Callable[[], Any]:
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    nodes: list[Any] = []
    constants: list[Any] = []

    def node(kind: str, *inputs: str) -> str:
        nodes.append(helper.make_node(kind, inputs, [f"n{len(nodes)}"]))
        return nodes[-1].output[0]

    def constant(value: Any) -> str:
        constants.append(numpy_helper.from_array(value, f"c{len(constants)}"))
        return constants[-1].name

    def dense(x: str, w: Any) -> str:
        return node("Add", node("MatMul", x, constant(w)), constant(np.zeros(w.shape[1], "float32")))

    x = "x"
    for *first, output, inner, outer in weights():
        x = node("Sum", *(dense(x, w) for w in first))
        for w in (output, inner, outer):
            x = dense(x, w)
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, WIDTH])] for name in ("x", x)]
    graph = helper.make_graph(nodes, "products", *ends, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {"x": np.ones((rows, WIDTH), "float32")}
    return lambda: session.run(None, feeds)


def build(peer: str, precision: str, rows: int) -> Callable[[], Any]:
    """A call that runs the chain often enough to be timed."""
    if peer == "PyTorch":
        run = in_pytorch(precision, rows)
    elif peer == "ONNX Runtime":
        run = in_onnx_runtime(rows)
    else:
        run = in_tensorflow(peer, precision, rows)

    def call() -> None:
        for _ in range(repeats(rows)):
            run()

    return call


def repeats(rows: int) -> int:
    return 1000 // rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="one case, one round; writes nothing")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    from turns import measure, work

    if args.worker:
        peer, precision, rows = args.worker
        return work(lambda: build(peer, precision, int(rows)))
    from report import machine, table, write_section

    lines = []
    for precision, rows in CASES[:1] if args.quick else CASES:
        peers = PEERS if precision == "float32" else PEERS[:-1]  # ONNX Runtime has no product in bfloat16 on a CPU
        taken = measure(__file__, peers, (precision, rows), 1 if args.quick else args.rounds)
        for name, found in taken.items():
            row = [precision, str(rows), name] if name == OURS else ["", "", name]
            if found.missing:
                lines.append([*row, found.missing, ""])
                continue
            ratio = f"{found.median / taken[OURS].median:.2f}"
            lines.append([*row, found.spread(1000 / repeats(rows), 2), ratio])
    text = (
        "`python benchmarks/products.py`: the 36 products of all-MiniLM-L6-v2's layers with their biases and nothing "
        f"between, random weights, {args.rounds} rounds in turn. A text of 8 words has about 10 rows."
    )
    body = "\n\n".join([text, table(["", "rows", "", "ms, median", "times ours"], lines), machine()])
    print(body)
    if not args.quick:
        write_section("Bare products", body)


if __name__ == "__main__":
    main()
