"""Warm-up requests: written, read back with other code, replayed."""

import importlib.util

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework.tensor_pb2 import TensorProto

from keras_bert.errors import CheckpointError, ConfigError
from keras_bert.serving import warmup
from keras_bert.serving.protos import PREDICTION_LOG, message_types

INPUTS = {
    "text": np.array([b"fire", "é 🔥".encode(), b"\xff"], object),
    "n": np.arange(6, dtype=np.int32).reshape(2, 3),
}


def records(folder):
    return list(tf.data.TFRecordDataset(str(folder / "assets.extra" / warmup.FILE)).as_numpy_iterator())


def test_records_parse_back(tmp_path):
    requests = [("serving_default", INPUTS), ("other", {"text": np.array([b"x" * 300], object)})]
    warmup.write(tmp_path, "tweets", requests)
    parse = message_types(PREDICTION_LOG)["PredictionLog"].FromString
    for record, (signature, inputs) in zip(records(tmp_path), requests, strict=True):
        log = parse(record)
        assert [field.name for field, _ in log.ListFields()] == ["predict_log"]
        request = log.predict_log.request
        assert (request.model_spec.name, request.model_spec.signature_name) == ("tweets", signature)
        found = {i.key: tf.make_ndarray(TensorProto.FromString(i.value)) for i in request.inputs}
        assert found.keys() == inputs.keys()
        for name, value in inputs.items():
            assert found[name].dtype == value.dtype
            np.testing.assert_array_equal(found[name], value)


@pytest.mark.skipif(importlib.util.find_spec("tensorflow_serving") is None, reason="needs tensorflow-serving-api")
def test_the_official_messages_read_the_same():
    from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

    log = PredictionLog.FromString(warmup.record("tweets", ("serving_default", INPUTS)))
    assert log.predict_log.request.model_spec.signature_name == "serving_default"
    for name, value in INPUTS.items():
        np.testing.assert_array_equal(tf.make_ndarray(log.predict_log.request.inputs[name]), value)


def test_a_thousand_records_are_written_and_one_more_is_refused(tmp_path):
    request = ("serving_default", {"text": np.array([b"fire"], object)})
    warmup.write(tmp_path, "tweets", [request] * 1000)
    assert len(records(tmp_path)) == 1000
    with pytest.raises(ConfigError, match="1001 warm-up requests; TensorFlow Serving accepts at most 1000"):
        warmup.write(tmp_path, "tweets", [request] * 1001)
    assert len(records(tmp_path)) == 1000


def test_requests_that_do_not_run_are_refused():
    module = tf.Module()
    module.f = tf.function(lambda text: {"n": tf.strings.to_number(text)}, [tf.TensorSpec([None], tf.string, "text")])
    signatures = {"serving_default": module.f.get_concrete_function()}
    good = ("serving_default", {"text": np.array([b"1"], object)})
    warmup.replay(signatures, [good, good])
    for number, bad, said in [
        (2, ("other", good[1]), "the model has no signature 'other'"),
        (1, ("serving_default", {"words": good[1]["text"]}), r"\(serving_default\) fails: "),
        (3, ("serving_default", {"text": np.array([b"fire"], object)}), r"\(serving_default\) fails: "),
        (1, ("serving_default", {"text": np.array([1.0])}), r"\(serving_default\) fails: "),
    ]:
        with pytest.raises(CheckpointError, match=f"^warm-up request {number}:? ?{said}") as caught:
            warmup.replay(signatures, [*[good] * (number - 1), bad])
        assert "\n" not in str(caught.value)
