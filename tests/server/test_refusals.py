"""Requests of wrong shapes: every signature refuses them, over HTTP, in Python and in TensorFlow 1's session, and the
next request is answered. What a regression does is a segmentation fault, so all of it runs in processes of its own.
"""

import base64
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_text
from conftest import slow
from servers import TEXT, running
from test_every_task import make

from keras_bert.bert import Bert
from keras_bert.config import TextConfig
from keras_bert.errors import CheckpointError
from keras_bert.serving import probe, signatures
from keras_bert.serving.requests import IDS
from keras_bert.text.text import Text

TASKS = ("classify",)
SLOW = [slow(task) for task in ("choice", "span", "multilabel", "similarity", "tag", "generate")]
CASED = TextConfig(max_seq_length=24, do_lower_case=False, flavour="hf")
"""With this text layer no op before the normalizer looks at the shape: every model of it died of a scalar."""

LOADERS = """
import base64, json, sys
import numpy as np
import tensorflow as tf
import tensorflow_text
from tensorflow.core.protobuf import config_pb2

def array(name, value):
    if name.startswith("input_"):
        return np.array(value, np.int32)
    found = np.array(value, object)
    flat = [base64.b64decode(v) if name == "inputs" else v.encode() for v in found.reshape(-1)]
    return np.array(flat, object).reshape(found.shape)

def said(ask, inputs):
    try:
        return sorted({len(value) for value in ask(inputs)})
    except tf.errors.OpError as error:
        return type(error).__name__

def eager(inputs):
    return [v.numpy() for v in model.signatures[name](**{k: tf.constant(v) for k, v in inputs.items()}).values()]

folder, requests = json.load(sys.stdin)
requests = [(name, {k: array(k, v) for k, v in inputs.items()}) for name, inputs in requests]
model = tf.saved_model.load(folder)
for name, inputs in requests:
    print(json.dumps(said(eager, inputs)), flush=True)
with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    meta = tf.compat.v1.saved_model.loader.load(session, ["serve"], folder)
    asks = {}
    for name, inputs in requests:
        if name not in asks:  # a callable that does without Python's own look at the shapes
            signature = meta.signature_def[name]
            feed, fetch = [signature.inputs[k].name for k in inputs], [v.name for v in signature.outputs.values()]
            asks[name] = session._make_callable_from_options(config_pb2.CallableOptions(feed=feed, fetch=fetch))
        print(json.dumps(said(lambda inputs: asks[name](*inputs.values()), inputs)), flush=True)
"""

TEXTS = ("forest fire", [["a", "b"], ["c", "d"]], [["a", "b"]], [[["a"]], [["b"]]])
CHOICES = ("a", ["a", "b"], [[["a", "b"]], [["c", "d"]]])
NUMBERS = (2, [2, 5, 3], [[[2, 5, 3]], [[2, 6, 3]]])
WRONG = {"text": TEXTS, "text_pair": TEXTS, "choices": CHOICES, **dict.fromkeys(IDS, NUMBERS)}
"""Values that are no vector `[B]` of strings, or no matrix: a scalar, another rank, a nested pair."""
MASKS = ([[1], [1]], [[1, 1, 1]], [[1, 1], [1, 1]], [[1, 1, 1, 1], [1, 1, 1, 1]])
"""Values that are not of the shape `[2, 3]`: `[B, 1]`, `[1, T]` and of other lengths."""


def questions(folder):
    """Every wrong request to every signature of a model, each with a right one behind it: name, inputs, is it right?"""
    manifest = json.loads((folder / "assets.extra" / "keras_bert.json").read_text("utf-8"))
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"fire"]))
    features = tf.train.Features(feature=dict.fromkeys(["text", "text_pair"][: 1 + manifest["pair"]], feature))
    row = base64.b64encode(tf.train.Example(features=features).SerializeToString()).decode()
    values = dict(zip(IDS, ([[2, 5, 3], [2, 6, 3]], [[1, 1, 1], [1, 1, 0]], [[0, 0, 0], [0, 0, 0]]), strict=True))
    values |= {"text": ["a", "b"], "text_pair": ["c", "d"]}
    values |= {"choices": [["e", "f", "g"], ["h", "i", "j"]], "inputs": [row] * 2}
    wrong = WRONG | {"inputs": (row, [[row, row], [row, row]], [[row, row]], [[[row]], [[row]]])}
    found = []
    for name, signature in manifest["signatures"].items():
        good = {key: values[key] for key in signature["inputs"]}
        bad = [good | {key: value} for key in good for value in wrong[key]]
        if len(good) > 1:
            bad += [good | {key: [*value, value[0]]} for key, value in good.items()]
            bad += [good | {key: value[:1]} for key, value in good.items()]
        bad += [good | {key: mask} for key in IDS[1:] if key in good for mask in MASKS]
        for inputs in bad:
            found += [(name, inputs, False), (name, good, True)]
    assert {name for name, *_ in found} == set(manifest["signatures"]) >= {"serving_default", "token_ids", "tokenize"}
    return found


@pytest.fixture(scope="module")
def models(request, tmp_path_factory):
    """An exported model of each task that the selected tests ask for, and a stranger's that checks nothing."""
    folder = tmp_path_factory.mktemp("models")
    here = [item.name for item in request.session.items if item.path == request.path]
    asked = {name.rpartition("[")[2].rstrip("]") for name in here}
    for task in [t for t in (*TASKS, *(param.values[0] for param in SLOW)) if t in asked]:
        bert = make(task)
        words = bert.text.vocabulary
        Bert(Text(words, CASED), bert.network, bert.data).export(folder / task)
    save_stranger(folder / "stranger" / "1")
    return folder


def save_stranger(folder):
    """A model that gives strings to TensorFlow Text's normalizer as they come."""
    table, _ = Text(["[UNK]", "[CLS]", "[SEP]", "a"], CASED).tokenizer.constants

    class Stranger(tf.Module):
        @tf.function(input_signature=[TEXT])
        def normalize(self, text):
            return {"normalized": tensorflow_text.FastBertNormalizer(model_buffer=table).normalize(text)}

    module = Stranger()
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.normalize})


@pytest.fixture(scope="module")
def server(models):
    names = sorted(path.name for path in models.iterdir())
    blocks = [f'config {{ name: "{n}" base_path: "{models / n}" model_platform: "tensorflow" }}' for n in names]
    config = models / "models.config"
    config.write_text(f"model_config_list {{ {' '.join(blocks)} }}")
    with running(config, len(names)) as started:
        yield started


@pytest.mark.parametrize("task", [*TASKS, *SLOW])
def test_every_signature_refuses_in_python_and_in_the_session_of_a_server(task, models):
    asked = questions(models / task / "1")
    done = subprocess.run(
        [sys.executable, "-c", LOADERS],
        input=json.dumps([str(models / task / "1"), [(name, inputs) for name, inputs, _ in asked]]),
        capture_output=True,
        text=True,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": ""},
        timeout=600,
    )
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, (asked[len(said) % len(asked)], done.stderr[-2000:])
    for (name, inputs, right), answer in zip(2 * asked, said, strict=True):
        assert answer == ([2] if right else "InvalidArgumentError"), (name, inputs)


@pytest.mark.parametrize("task", [*TASKS, *SLOW])
def test_every_signature_answers_400_and_then_the_next_request(task, models, server):
    for name, inputs, right in questions(models / task / "1"):
        body = {"signature_name": name, "inputs": in_json(inputs)}
        status, _, answer = server.send("POST", f"/v1/models/{task}:predict", json.dumps(body).encode())
        assert status == (200 if right else 400), (name, inputs, answer)
        if not right:
            said = json.loads(answer)["error"]
            assert "must have shape" in said or "must agree in size, got" in said, said


def in_json(inputs):
    """As REST takes them: serialized examples are bytes."""

    def marked(value):
        return [marked(v) for v in value] if isinstance(value, list) else {"b64": value}

    return {name: marked(value) if name == "inputs" else value for name, value in inputs.items()}


@pytest.mark.parametrize("text", WRONG["text"])
def test_a_model_that_checks_nothing_is_guarded_by_the_server(text, server):
    path = "/v1/models/stranger:predict"
    status, message = server.refusal("POST", path, json.dumps({"inputs": text}).encode())
    assert status == 400
    assert message.startswith("Input text of signature serving_default must have shape [?] but got [")
    assert server.predict({"inputs": ["Forest fire"]}, path) == {"outputs": ["Forest fire"]}


# === The exporter ===


def test_a_model_that_dies_of_a_request_is_named_and_the_next_one_is_tried(models):
    scalar, folder = [("serving_default", {"text": np.array(b"forest fire", object)})], models / "stranger" / "1"
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"serving_default: .* text \[\] .*its process ends, by signal 11"):
            probe.PROBE.refuses(folder, scalar)
    with pytest.raises(CheckpointError, match=r"text \[1\] is not refused: it answers normalized \[1\]"):
        probe.PROBE.refuses(folder, [("serving_default", {"text": np.array([b"forest fire"], object)})])
    probe.PROBE.refuses(folder, [])


def test_the_exporter_publishes_no_model_that_answers_a_wrong_shape(monkeypatch, tmp_path):
    monkeypatch.setattr(signatures, "_agree", lambda *pair: tf.no_op())
    bert = make("regress")
    with pytest.raises(CheckpointError, match=r"is not refused: it answers .*no such model is published"):
        bert.export(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_cannot_be_tried_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"is not refused: NotFoundError|FileNotFoundError"):
        probe.PROBE.refuses(tmp_path, [("serving_default", {"text": np.array(b"a", object)})])
