"""A step of pretraining on a GPU or TPU: the same network and loss on Keras' JAX backend, compiled by XLA.

    python benchmarks/accelerator.py [--cases=base-128,base-512,large-128,large-512] [--rounds=20] [--tokens=65536]

Question: how many tokens a second does one device read (forward, backward, clipping by the global norm, AdamW, in
bfloat16 with float32 weights, dropout 0.1, 15 % of the tokens masked), and which share of its peak is that? What a step
computes is counted as in `scale.py`, whose table assumes such shares. A batch has `--tokens`, or half as many, and so
on, until it fits into memory.
Needs `jax` for the device (`pip install "jax[cuda12]"`); without a device it runs on the processor and writes nothing.

Expected: 30 to 45 % of the peak, the share that `scale.py` reckons with.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

from pretraining_step import batch_of
from scale import PEAKS, PREDICTED, SHAPES, Shape

CASES = ("base-128", "base-512", "large-128", "large-512")
DEVICES = PEAKS | {"NVIDIA H200": PEAKS["NVIDIA H100"], "TPU v5 lite": PEAKS["TPU v5e"]}
"""Peaks by the beginnings of the names that JAX gives devices."""
RATE, DECAY = 1e-4, 0.01


def step_of(size: str, count: int, length: int) -> Callable[[], float]:
    """A step that is compiled, on one batch again and again; it returns the loss, so it ends when all is computed."""
    import jax
    import keras

    from keras_bert import SIZES
    from keras_bert.pretrain.objectives import PretrainNetwork, PretrainTask

    config = SIZES[size]
    task = PretrainTask(PretrainNetwork(config, 0, dtype="mixed_bfloat16"))
    network, optimizer = task.network, keras.optimizers.AdamW(RATE, weight_decay=DECAY, global_clipnorm=1.0)
    optimizer.build(network.trainable_variables)

    def loss_of(trained: list[Any], others: list[Any], batch: dict[str, Any]) -> tuple[Any, list[Any]]:
        pairs = zip([*network.trainable_variables, *network.non_trainable_variables], [*trained, *others], strict=True)
        with keras.StatelessScope(state_mapping=list(pairs)) as scope:
            losses, _ = task.sums(batch, training=True)
            loss = losses["masked_lm"] / task.weights(batch)["masked_lm"]
        return loss, [scope.get_current_value(v) for v in network.non_trainable_variables]

    def update(state: tuple[Any, ...], batch: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
        trained, others, slots = state
        (loss, others), gradients = jax.value_and_grad(loss_of, has_aux=True)(trained, others, batch)
        trained, slots = optimizer.stateless_apply(slots, gradients, trained)
        return (trained, others, slots), loss

    compiled = jax.jit(update, donate_argnums=0)
    batch = jax.device_put(batch_of(count, length, max(1, int(PREDICTED * length))))
    # Copies: what is handed over is given up, and these are the values of Keras' variables.
    kept = (network.trainable_variables, network.non_trainable_variables, optimizer.variables)
    state = jax.tree.map(lambda x: x.copy(), tuple([v.value for v in variables] for variables in kept))

    def step() -> float:
        nonlocal state
        state, loss = compiled(state, batch)
        return float(loss)

    return step


def measure(case: str, tokens: int, rounds: int) -> tuple[int, list[float], float, float]:
    """Rows of a batch, seconds of each step, and the losses of the first and the last."""
    import jax

    size, length = case.split("-")
    count, step = max(1, tokens // int(length)), None
    while True:
        try:
            step = step_of(size, count, int(length))
            first = step()
            step()
            break
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or count == 1:
                raise
            count, step = count // 2, None  # which gives its memory back
    seconds, last = [], first
    for _ in range(rounds):
        start = time.perf_counter()
        last = step()
        seconds.append(time.perf_counter() - start)
    return count, seconds, first, last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=65536, help="of a batch, to begin with")
    args = parser.parse_args()
    os.environ["KERAS_BACKEND"] = "jax"
    try:
        import jax
    except ModuleNotFoundError:
        raise SystemExit("needs jax for the device at hand, for instance `pip install 'jax[cuda12]'`") from None
    from report import machine, table, write_section

    from keras_bert import SIZES

    device = jax.devices()[0]
    peak = next((value for name, value in DEVICES.items() if device.device_kind.startswith(name)), None)
    lines = []
    for case in args.cases.split(","):
        size, length = case.split("-")
        count, seconds, first, last = measure(case, args.tokens, args.rounds)
        speed = count * int(length) / statistics.median(seconds)
        shape = SHAPES.get(size) or Shape(SIZES[size].num_layers, SIZES[size].hidden_dim)
        flops = speed * shape.flops(int(length))
        took = f"{1000 * statistics.median(seconds):.1f} ({1000 * min(seconds):.1f} to {1000 * max(seconds):.1f})"
        share = f"{flops / peak:.0%}" if peak else "-"
        learnt = f"{first:.2f} to {last:.2f}"
        lines.append([size, length, str(count), took, f"{speed:,.0f}", f"{flops / 1e12:,.2f}", share, learnt])
        print("  ".join(lines[-1]), flush=True)
    header = ["size", "tokens", "rows", "ms per step, median", "tokens/s", "TFLOP/s", "share of the peak", "loss"]
    text = (
        f"`python benchmarks/accelerator.py`: a step of pretraining on one {device.device_kind}, on Keras' JAX backend "
        f"(jax {jax.__version__}), bfloat16 with float32 weights, {args.rounds} steps on the same batch, whose loss "
        "falls as it is learnt by heart. Attention is what XLA makes of it."
    )
    body = "\n\n".join([text, table(header, lines), machine()])
    print(body)
    if device.platform == "cpu":
        print("there is no accelerator: nothing was written")
    else:
        write_section(f"On one {device.device_kind}", body)


if __name__ == "__main__":
    main()
