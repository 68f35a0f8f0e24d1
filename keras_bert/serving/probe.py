"""Requests of wrong shapes, sent to an exported model in a process of its own: it must refuse each, and live on.

The model is loaded as TensorFlow Serving loads it, and its inputs are fed without a look at their shapes. Importing
TensorFlow takes seconds, so one process does that for all models and forks for each; it has no thread of its own that
a fork could lose. Run as a program, this file is that process: it reads models from standard input and writes what
became of each request to standard output, as lines of JSON.
"""

import atexit
import base64
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from threading import Lock, Timer
from typing import IO, Any

import numpy as np

from keras_bert.errors import CheckpointError

PATIENCE = 600
"""Seconds that a model may take."""

Arrays = Mapping[str, np.ndarray]
ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": ""}
"""No accelerator, and no threads in the process that forks."""


class Probe:
    """The process that forks, as the exporter sees it: one for all models, from the first `start` to the end."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None

    def start(self) -> None:
        """Start the process, if it does not run."""
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        path = os.pathsep.join(map(os.path.abspath, sys.path))
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the process)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "keras_bert.serving.probe"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=os.environ | ENVIRONMENT | {"PYTHONPATH": path},
            start_new_session=True,  # it and its forks can be ended together
        )

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.communicate()
        if self._errors is not None:
            self._errors.close()
        self._process = self._errors = None

    def refuses(self, folder: Path, requests: Iterable[tuple[str, Arrays]]) -> None:
        """Send every request to the SavedModel in `folder`.

        Raises:
            CheckpointError: the model answers one, fails otherwise than by refusing it, or its process ends.
        """
        requests = list(requests)
        asked = {"folder": str(folder.absolute()), "requests": [(name, _to_json(inputs)) for name, inputs in requests]}
        with self._lock:
            self.start()
            became, end = self._ask(asked)
        for number, (name, inputs) in enumerate(requests):
            if became.get(str(number)) != REFUSED:
                shapes = ", ".join(f"{key} {list(value.shape)}" for key, value in inputs.items())
                raise CheckpointError(
                    f"signature {name}: a request of the shapes {shapes} is not refused: "
                    f"{became.get(str(number)) or became.get(FAILED) or end}; no such model is published"
                )

    def _ask(self, asked: Any) -> tuple[dict[str, str], str]:
        """Number of a request -> what became of it; and how the process of the model ended."""
        process, errors = self._process, self._errors
        assert process
        assert process.stdin
        assert process.stdout
        assert errors
        timer = Timer(PATIENCE, os.killpg, (process.pid, signal.SIGKILL))
        timer.start()
        became: dict[str, str] = {}
        try:
            process.stdin.write(json.dumps(asked).encode("ascii") + b"\n")
            process.stdin.flush()
            for line in process.stdout:
                found = json.loads(line)
                if "end" in found:
                    return became, found["end"]
                became |= found
        except BrokenPipeError:
            pass
        finally:
            timer.cancel()
        process.wait()
        errors.seek(0)
        last = errors.read().decode("utf-8", "replace").strip().splitlines()[-1:]
        return became, " ".join(["the process that tries models ended", *last])


PROBE = Probe()
atexit.register(PROBE.close)


def _to_json(inputs: Arrays) -> dict[str, str]:
    import tensorflow as tf

    protos = {name: tf.make_tensor_proto(value).SerializeToString() for name, value in inputs.items()}
    return {name: base64.b64encode(proto).decode("ascii") for name, proto in protos.items()}


# === The process ===

REFUSED, FAILED = "refused", "failed"


def _try(folder: str, requests: list[Any]) -> None:
    """Send requests to a model through TensorFlow 1's loader and say what became of each."""
    import tensorflow as tf
    from tensorflow.core.framework.tensor_pb2 import TensorProto
    from tensorflow.core.protobuf import saved_model_pb2

    read = saved_model_pb2.SavedModel.FromString(Path(folder, "saved_model.pb").read_bytes())
    signatures = next(g.signature_def for g in read.meta_graphs if "serve" in g.meta_info_def.tags)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        # A placeholder without a shape in place of each input: Python would refuse what the session lets through.
        used = [info for signature in signatures.values() for info in signature.inputs.values()]
        opened = {info.name: tf.compat.v1.placeholder(tf.as_dtype(info.dtype)) for info in used}
        tf.compat.v1.saved_model.load(session, ["serve"], folder, input_map=opened)
        for number, (name, inputs) in enumerate(requests):
            outputs = {key: info.name for key, info in signatures[name].outputs.items()}
            feed = {
                opened[signatures[name].inputs[key].name]: tf.make_ndarray(
                    TensorProto.FromString(base64.b64decode(value))
                )
                for key, value in inputs.items()
            }
            try:
                found = session.run(outputs, feed)
                became = "it answers " + ", ".join(f"{key} {list(value.shape)}" for key, value in found.items())
            except tf.errors.InvalidArgumentError:
                became = REFUSED
            except tf.errors.OpError as error:
                became = f"it fails with {type(error).__name__}, which is no error of the request"
            _say({number: became})


def _say(what: Any) -> None:
    print(json.dumps(what), flush=True)


def main() -> None:
    """Fork for each model; nothing of TensorFlow runs in the process that forks."""
    import tensorflow
    import tensorflow_text  # noqa: F401  (registers the ops of the tokenizer)

    tensorflow.get_logger().setLevel("ERROR")
    for line in sys.stdin:
        child = os.fork()
        if not child:
            try:
                _try(**json.loads(line))
            except Exception as error:
                _say({FAILED: f"{type(error).__name__}: {' '.join(str(error).split())}"})
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        _say({"end": f"its process ends, by signal {-code}" if code < 0 else "its process ends"})


if __name__ == "__main__":
    main()
