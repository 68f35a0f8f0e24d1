"""Warm-up requests, which TensorFlow Serving runs before a new version answers its first client.

The file holds `tensorflow.serving.PredictionLog` messages. A record that fails, or one record too many, makes the
server reject the model, so the exporter replays them before it publishes a version.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_bert.errors import CheckpointError, ConfigError
from keras_bert.serving.protos import PREDICTION_LOG, message_types

FILE = "tf_serving_warmup_requests"
MOST = 1000
"""The most records that a server accepts."""

Request = tuple[str, Mapping[str, np.ndarray]]
"""A signature name and its inputs."""


TYPES = message_types(PREDICTION_LOG)


def record(model: str, request: Request) -> bytes:
    """A `PredictionLog` of one predict request, serialized."""
    signature, inputs = request
    log = TYPES["PredictionLog"]()
    spec = log.predict_log.request.model_spec
    spec.name, spec.signature_name = model, signature
    for name, value in inputs.items():
        log.predict_log.request.inputs.add(key=name, value=tf.make_tensor_proto(value).SerializeToString())
    return bytes(log.SerializeToString())


def replay(signatures: Mapping[str, tf.types.experimental.GenericFunction], requests: Sequence[Request]) -> None:
    """Run requests against the signatures of a loaded SavedModel.

    Raises:
        CheckpointError: a request fails or names an unknown signature; the message gives its number.
    """
    for number, (name, inputs) in enumerate(requests, 1):
        if name not in signatures:
            raise CheckpointError(f"warm-up request {number}: the model has no signature {name!r}")
        try:
            signatures[name](**{key: tf.constant(value) for key, value in inputs.items()})
        except (TypeError, ValueError, tf.errors.OpError) as error:
            raise CheckpointError(f"warm-up request {number} ({name}) fails: {str(error).splitlines()[0]}") from error


def write(folder: Path, model: str, requests: Sequence[Request]) -> None:
    """Write the file of warm-up requests into the version directory `folder`.

    Raises:
        ConfigError: there are more requests than a server accepts.
    """
    if len(requests) > MOST:
        raise ConfigError(f"{len(requests)} warm-up requests; TensorFlow Serving accepts at most {MOST}")
    (folder / "assets.extra").mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(folder / "assets.extra" / FILE)) as writer:
        for request in requests:
            writer.write(record(model, request))
