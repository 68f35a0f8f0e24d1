"""A model for ONNX Runtime: token ids in, answers out, any number of rows of any length, operator set 17.

PyTorch writes ONNX, so the network is built once more on Keras' PyTorch backend, in a process of its own: this one may
be at work with TensorFlow, and a backend is chosen when Keras is imported. What was written is run before it is kept,
and must answer as the network does. `portable.LiteModel` reads the directory, without PyTorch.

Graph fusions of onnxruntime.transformers are left out: on all-MiniLM-L6-v2 they gain nothing over those that a session
makes by itself.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from keras_bert.checkpoints.checkpoints import Checkpoint, as_trained, load, open_checkpoint
from keras_bert.config import TASKS, choose
from keras_bert.errors import CheckpointError, ConfigError, KerasBertError
from keras_bert.portable import portable

MODEL_FILE = "model.onnx"
NEEDED = ("torch", "onnx", "onnxruntime")
OPSET = 17
TOLERANCE = 1e-4
"""How far the written model's numbers may lie from the network's."""

Arrays = dict[str, Any]
"""Output name -> value, first axis B."""


# === What a model gives: (head, logits) -> arrays ===


OUTPUTS: dict[str, Callable[[Any, Any], Arrays]] = {
    "answer": lambda head, logits: dict(head.answer(logits)),
    "embedding": lambda head, logits: {"embedding": logits},
    "logits": lambda head, logits: {"logits": logits},
}
"""By the `portable` of the task: `Head.answer`; a vector `[B, E]` of each text, whose cosines say how similar texts
are; or the logits of each token, `[B, T, width]`, of which tags and spans are still to be made."""


# === How weights are kept: (file of the model, file to write) ===


def _float32(source: str, target: str) -> None:
    os.replace(source, target)


def _int8(source: str, target: str) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # In seven bits, since processors without VNNI add two products of eight bits in sixteen, which may not hold them.
    quantize_dynamic(source, target, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)


PRECISIONS: dict[str, Callable[[str, str], None]] = {"float32": _float32, "int8": _int8}
"""As they are, or in a quarter of the size, which is fastest. With int8 what goes into a product is scaled by its
largest number in the whole batch, so the answer for a row depends a little on the rows beside it."""


# === In this process ===


def write(path: str | Path, run: str | Path | Checkpoint, precision: str = "int8") -> None:
    """Write a model that `portable.LiteModel` reads.

    Args:
        path: the directory to write.
        run: a directory that `Bert.save` or `keras-bert finetune` wrote.
        precision: a name of `PRECISIONS`.

    Raises:
        ConfigError: no such precision; there is no form in ONNX for the task, or for what the head reads; or PyTorch,
            onnx or ONNX Runtime is not installed.
        CheckpointError: the run cannot be read, or has no trained head; or the directory cannot be written.
    """
    choose(PRECISIONS, precision, "precision")
    checkpoint = as_trained(run if isinstance(run, Checkpoint) else open_checkpoint(run))
    assert checkpoint.head is not None
    head = checkpoint.head
    if not head.portable:
        known = ", ".join(task for task, kind in TASKS.items() if kind.portable)
        raise ConfigError(f"ONNX models are for {known}, not for {head.task}")
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"writing ONNX needs {', '.join(missing)}: `pip install {' '.join(missing)}` (extra `onnx`)")
    pair = checkpoint.data is not None and bool(checkpoint.data.text_pair_column) and head.reads != "each"
    content = _converted(checkpoint.path, precision)
    portable.write(path, MODEL_FILE, content, checkpoint.vocabulary, head, checkpoint.text, pair, precision)


def _converted(run: Path, precision: str) -> bytes:
    """The model, written by a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        code = "import sys; from keras_bert.portable.onnx import _main; sys.exit(_main(*sys.argv[1:]))"
        command = [sys.executable, "-W", "ignore", "-c", code, str(run.absolute()), folder, precision]
        environment = os.environ | {
            "KERAS_BACKEND": "torch",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),
        }
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
        said = ["", *done.stderr.strip().splitlines()][-1]
        for kind in (ConfigError, CheckpointError):
            if done.returncode == kind.exit_code:
                raise kind(said)
        if done.returncode:
            raise CheckpointError(f"{run}: PyTorch could not write it as ONNX (exit code {done.returncode}): {said}")
        return (Path(folder) / MODEL_FILE).read_bytes()


# === In a process of its own, with Keras on PyTorch ===


def _main(run: str, folder: str, precision: str) -> int:
    """Write `MODEL_FILE` into `folder`; returns the exit code of an error, which the last line of stderr tells."""
    from keras_bert.tasks.network import Network

    try:
        found = as_trained(open_checkpoint(run))
        assert found.head is not None
        network = Network(found.encoder, found.head)
        load(network, found)
        whole = os.path.join(folder, "float32.onnx")
        export(network, whole)
        check(network, whole)
        PRECISIONS[precision](whole, os.path.join(folder, MODEL_FILE))
    except KerasBertError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def export(network: Any, path: str) -> None:
    """Write a network on PyTorch as ONNX: int32 `[B, T]` of `portable.INPUTS` -> what `OUTPUTS` says."""
    import torch
    from torch.onnx import symbolic_helper

    @symbolic_helper.parse_args("v", "v", "i")
    def take_along(graph: Any, values: Any, index: Any, axis: int) -> Any:
        return graph.op("GatherElements", values, index, axis_i=axis)

    torch.onnx.register_custom_op_symbolic("aten::take_along_dim", take_along, OPSET)  # PyTorch knows none

    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, *inputs: Any) -> Any:
            return tuple(outputs(network, inputs).values())

    example = rows(2, 6)
    names = list(outputs(network, example))
    axes = {name: {0: "batch", 1: "length"} for name in portable.INPUTS}
    axes |= {name: {0: "batch"} | ({1: "length"} if name == "logits" else {}) for name in names}
    with torch.no_grad():
        # The newer exporter fixes the number of rows.
        torch.onnx.export(
            Module().eval(),
            example,
            path,
            input_names=list(portable.INPUTS),
            output_names=names,
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )


def check(network: Any, path: str) -> None:
    """Ask the written model for rows of other numbers and lengths than it was written with.

    Raises:
        ConfigError: it does not answer as the network does.
    """
    import numpy as np

    run, head = portable.RUNNERS[MODEL_FILE](Path(path).read_bytes(), 1), network.head.config
    for number, length in ((1, 2), (3, 9)):
        inputs = rows(number, length)
        wanted = {name: value.detach().numpy() for name, value in outputs(network, inputs).items()}
        try:
            found = run({name: value.numpy() for name, value in zip(portable.INPUTS, inputs, strict=True)})
            measured = [name for name in wanted if wanted[name].dtype.kind == "f"]  # equal scores have no order
            for name in measured:
                np.testing.assert_allclose(found[name], wanted[name], rtol=TOLERANCE, atol=TOLERANCE)
        except Exception as error:  # ONNX Runtime has types of its own
            said = ", ".join(f"{name}={getattr(head, name)}" for name in ("task", "layers", "pooling", "head_lstm"))
            raise ConfigError(f"this head cannot be written as ONNX ({said}): rows of other lengths fail") from error


def rows(number: int, length: int) -> tuple[Any, ...]:
    """Inputs of a model: rows whose last position is padding, but for the first."""
    import torch

    ids = torch.arange(number * length, dtype=torch.int32).reshape(number, length) % 5
    mask = torch.ones_like(ids)
    mask[1:, -1] = 0
    return ids, torch.zeros_like(ids), mask


def outputs(network: Any, inputs: Sequence[Any]) -> Arrays:
    """What a model gives for its inputs."""
    features = dict(zip(portable.INPUTS, inputs, strict=True))
    logits = network(features | {"padding_mask": features["padding_mask"] > 0}, training=False)
    return choose(OUTPUTS, network.head.config.portable, "portable form")(network.head, logits)
