"""One version of one exported model: its signatures, and the answers to requests."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401  (registers the tokenizer operations that exported models use)
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError
from tensorflow.core.framework.tensor_pb2 import TensorProto
from tensorflow.core.protobuf import saved_model_pb2

from keras_bert.errors import CheckpointError
from keras_bert.server import examples, json_tensor
from keras_bert.server.json_tensor import RequestError
from keras_bert.serving.protos import PREDICTION_LOG, message_types

Arrays = dict[str, np.ndarray]
WARM_UP = "assets.extra/tf_serving_warmup_requests"
MAX_WARM_UP_RECORDS = 1000
_HTTP_STATUS = {
    tf.errors.INVALID_ARGUMENT: 400,
    tf.errors.FAILED_PRECONDITION: 400,
    tf.errors.OUT_OF_RANGE: 400,
    tf.errors.UNAUTHENTICATED: 401,
    tf.errors.PERMISSION_DENIED: 403,
    tf.errors.NOT_FOUND: 404,
    tf.errors.ALREADY_EXISTS: 409,
    tf.errors.ABORTED: 409,
    tf.errors.RESOURCE_EXHAUSTED: 429,
    tf.errors.CANCELLED: 499,
    tf.errors.UNIMPLEMENTED: 501,
    tf.errors.UNAVAILABLE: 503,
    tf.errors.DEADLINE_EXCEEDED: 504,
}  # UNKNOWN, INTERNAL and DATA_LOSS are 500


class Signature:
    """One signature of a loaded model: named arrays in, named arrays out.

    Args:
        model: the name of the model it belongs to.
        name: its own name.
        function: the restored function.
        definition: its SignatureDef.

    `batched` says that rows of several requests may run together: every input and output has an unknown first
    dimension. `padded` says that rows of different lengths may: all inputs are integers `[B, T]`, and one of
    them is a mask (its name says so), in which the zeros of the padding mean "nothing here".
    """

    def __init__(self, model: str, name: str, function: Any, definition: Any):
        self.model, self.name, self._function = model, name, function
        self.dtypes = {k: _dtype(info) for k, info in sorted(definition.inputs.items())}
        self.inputs = {k: _shape(definition.inputs[k]) for k in self.dtypes}
        self.outputs = {k: _shape(info) for k, info in sorted(definition.outputs.items())}
        shapes = [*self.inputs.values(), *self.outputs.values()]
        self.batched = bool(self.inputs) and all(shape and shape[0] is None for shape in shapes)
        integers = all(dtype.kind in "biu" for dtype in self.dtypes.values())
        matrices = all(shape == (None, None) for shape in self.inputs.values())
        self.padded = self.batched and integers and matrices and any("mask" in name for name in self.inputs)

    def __call__(self, inputs: Arrays) -> Arrays:
        """Run it.

        Raises:
            RequestError: an input has another shape than the signature says, or an operation in the graph failed; the
                message is then that of the operation.
        """
        self._check_shapes(inputs)
        try:
            tensors = {k: tf.constant(v, tf.as_dtype(self.dtypes[k])) for k, v in inputs.items()}
            outputs = self._function(**tensors)
            return {k: np.asarray(v.numpy(), v.dtype.as_numpy_dtype) for k, v in outputs.items()}
        except tf.errors.OpError as error:
            raise RequestError(_first_line(error.message), _HTTP_STATUS.get(error.error_code, 500)) from error

    def _check_shapes(self, inputs: Arrays) -> None:
        """Holds inputs against the declared shapes: a graph need not do that, and a kernel may end the process."""
        for name, declared in self.inputs.items():
            found = inputs[name].shape
            if declared is not None and not tf.TensorShape(declared).is_compatible_with(found):
                wanted, got = (",".join("?" if n is None else str(n) for n in dims) for dims in (declared, found))
                raise RequestError(f"Input {name} of signature {self.name} must have shape [{wanted}] but got [{got}]")


class Call(NamedTuple):
    """A request that was read: what to run, and how its outputs are written."""

    signature: Signature
    inputs: Arrays
    write: Callable[[Arrays], bytes]


class Servable:
    """One version of a model, loaded and ready to answer.

    Args:
        name: the name clients use in the path.
        directory: the version directory; its name is the version number.

    Raises:
        CheckpointError: the SavedModel cannot be loaded.
    """

    def __init__(self, name: str, directory: Path):
        self.name, self.version, self.directory = name, int(directory.name), directory
        try:
            definitions = _read_signature_defs(directory)
            self._model = tf.saved_model.load(str(directory))  # kept: it owns the variables
            self.signatures = {
                key: Signature(name, key, function, definitions[key])
                for key, function in self._model.signatures.items()
            }
        except Exception as error:  # TensorFlow, protobuf and the file system each raise their own kinds
            reason = _first_line(str(error)) or type(error).__name__
            raise CheckpointError(
                f"{directory}: not a loadable SavedModel ({reason}); export the model again"
            ) from error
        self._definitions = {
            key: MessageToDict(definition, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
            for key, definition in definitions.items()
        }

    def metadata(self) -> dict[str, Any]:
        """The answer to a metadata request: every signature with its inputs and outputs."""
        return {
            "model_spec": {"name": self.name, "signature_name": "", "version": str(self.version)},
            "metadata": {"signature_def": {"signature_def": self._definitions}},
        }

    def predict(self, name: str, document: Mapping[str, Any]) -> Call:
        """Reads one parsed `:predict` request for the signature `name`.

        Raises:
            RequestError: the request does not fit the model.
        """
        if name not in self.signatures:
            raise RequestError(f'Serving signature name: "{name}" not found in signature def')
        signature = self.signatures[name]
        if not signature.dtypes:
            raise RequestError(f"Failed to get input map for signature: {name}")
        inputs, row_form = json_tensor.read_inputs(document, signature.dtypes)
        return Call(signature, inputs, partial(json_tensor.write_outputs, row_form=row_form))

    def classify(self, name: str, rows: np.ndarray) -> Call:
        """What runs serialized examples `[B]`; the signature `name` gives `classes`, `scores` or both, `[B, n]`."""
        signature = self._of_examples(name)
        names = signature.outputs.keys()
        if len(names) > 2:
            raise RequestError(f"Expected one or two output Tensors, found {len(names)}")
        if not names & {"classes", "scores"}:
            raise RequestError(
                'Expected classification signature outputs to contain at least one of "classes" or "scores".'
            )
        return Call(signature, {"inputs": rows}, partial(_write_classes, rows=len(rows)))

    def regress(self, name: str, rows: np.ndarray) -> Call:
        """What runs serialized examples `[B]`; the signature `name` gives `outputs`, `[B]` or `[B, 1]`."""
        signature = self._of_examples(name)
        if signature.outputs.keys() != {"outputs"}:
            raise RequestError("No regression outputs found in SignatureDef; it must have one, named outputs")
        return Call(signature, {"inputs": rows}, partial(_write_values, rows=len(rows)))

    def _of_examples(self, name: str) -> Signature:
        """The signature `name`, which must take serialized tf.Examples."""
        if name not in self.signatures:
            raise RequestError(f"No signature was found with the name: {name}")
        signature = self.signatures[name]
        if len(signature.inputs) != 1:
            raise RequestError("Expected one input Tensor.")
        if "inputs" not in signature.inputs or signature.dtypes["inputs"].kind != "O":
            raise RequestError("No inputs found in SignatureDef; it must have one, a string tensor named inputs")
        return signature

    # === Warm-up ===

    def warm_up(self) -> int:
        """Runs the requests that were exported with the model, as TensorFlow Serving does, and counts them.

        Raises:
            CheckpointError: a record cannot be read or does not run, or there are more than 1000.
        """
        path = self.directory / WARM_UP
        if not path.exists():
            return 0
        read, number = message_types(PREDICTION_LOG)["PredictionLog"].FromString, 0
        try:
            for number, record in enumerate(tf.data.TFRecordDataset(str(path)).as_numpy_iterator(), 1):
                if number > MAX_WARM_UP_RECORDS:
                    raise RequestError(f"there are more than {MAX_WARM_UP_RECORDS}")
                self._replay(read(record))
        except (RequestError, DecodeError, tf.errors.OpError, ValueError, TypeError) as error:
            reason = _first_line(str(error)) or type(error).__name__
            raise CheckpointError(f"{path}: warm-up record {number} failed ({reason}); export again") from error
        return number

    def _replay(self, log: Any) -> None:
        kind = next((k for k in ("predict_log", "classify_log", "regress_log") if log.HasField(k)), None)
        if kind is None:
            raise RequestError("it is no predict, classify or regress request")
        request = getattr(log, kind).request
        name = request.model_spec.signature_name or "serving_default"
        if name not in self.signatures:
            raise RequestError(f"the model has no signature {name!r}")
        signature = self.signatures[name]
        if kind == "predict_log":
            inputs = {i.key: tf.make_ndarray(TensorProto.FromString(i.value)) for i in request.inputs}
        else:
            context = "example_list_with_context"
            given = getattr(request.input, context if request.input.HasField(context) else "example_list")
            inputs = {"inputs": np.array([given.context + row for row in given.examples], object)}
        if inputs.keys() != signature.inputs.keys():
            raise RequestError(f"signature {name!r} takes {sorted(signature.inputs)}, not {sorted(inputs)}")
        signature(inputs)


class Action(NamedTuple):
    """What a verb of a path does: `read` takes out of a document what needs no model, `call` what runs that."""

    read: Callable[[Mapping[str, Any]], Any]
    call: Callable[[Servable, str, Any], Call]


ACTIONS = {
    "predict": Action(lambda document: document, Servable.predict),
    "classify": Action(examples.read_examples, Servable.classify),
    "regress": Action(examples.read_examples, Servable.regress),
}


def _write_classes(found: Arrays, rows: int) -> bytes:
    for name, kind in (("classes", "O"), ("scores", "f")):
        if name in found and (found[name].ndim != 2 or len(found[name]) != rows):
            shape = ",".join(map(str, found[name].shape))
            raise RequestError(f"Expected Tensor shape: [batch_size num_classes] but got [{shape}]")
        if name in found and found[name].dtype.kind != kind:
            raise RequestError(f"Expected {name} Tensor of {'DT_STRING' if kind == 'O' else 'DT_FLOAT'}.")
    return examples.write_classes(found.get("classes"), found.get("scores"))


def _write_values(found: Arrays, rows: int) -> bytes:
    values = found["outputs"]
    if values.shape not in ((rows,), (rows, 1)):
        shape = ",".join(map(str, values.shape))
        raise RequestError(
            f"Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got [{shape}]"
        )
    return examples.write_values(values)


def _read_signature_defs(directory: Path) -> dict[str, Any]:
    """The signatures as the file states them, with the names and dims that metadata answers carry."""
    saved_model = saved_model_pb2.SavedModel()
    saved_model.ParseFromString((directory / "saved_model.pb").read_bytes())
    graphs = [graph for graph in saved_model.meta_graphs if "serve" in graph.meta_info_def.tags]
    if not graphs:
        raise ValueError("no graph tagged 'serve' in saved_model.pb")
    return dict(graphs[0].signature_def)


def _dtype(info: Any) -> np.dtype:
    return np.dtype(tf.dtypes.as_dtype(info.dtype).as_numpy_dtype)


def _shape(info: Any) -> tuple[int | None, ...] | None:
    """The dimensions, None for an unknown one; None alone for an unknown rank."""
    shape = tf.TensorShape(info.tensor_shape)
    return tuple(shape) if shape.rank is not None else None


def _first_line(message: str) -> str:
    """The line of an error that says what is wrong, without TensorFlow's frame around it."""
    for line in message.splitlines():
        line = re.sub(r"\{\{function_node .*?\}\} ?|\s*\[Op:[^\]]*\]|^\s*\(\d+\) +", "", line).strip()
        frame = ("Graph execution error", "Detected at node", "<stack traces", "[[{{", "File ")
        if line and not line.startswith(frame) and not line.endswith("root error(s) found."):
            return line
    return ""
