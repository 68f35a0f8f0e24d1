"""Small models that show one thing each, and servers for them: in a process, or in a thread of this one."""

import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from typing import NamedTuple

import tensorflow as tf
import uvicorn

from keras_bert.server import create_app
from keras_bert.server.settings import ServerConfig

DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
X = tf.TensorSpec([None], tf.float32, name="x")
EXAMPLES = tf.TensorSpec([None], tf.string, name="inputs")
TEXT = tf.TensorSpec([None], tf.string, name="text")
OTHER = tf.TensorSpec([None], tf.string, name="other")


def save_half_plus_two(directory, offset=2.0):
    """TensorFlow Serving's own test model, y = x / 2 + 2, with the signatures that its tests use, and some more."""

    class HalfPlusTwo(tf.Module):
        @tf.function(input_signature=[X])
        def half_plus_two(self, x):
            return {"y": 0.5 * x + offset}

        @tf.function(input_signature=[EXAMPLES])
        def regress(self, inputs):
            return {"outputs": 0.5 * self.parse(inputs) + offset}

        @tf.function(input_signature=[EXAMPLES])
        def classify(self, inputs):
            return {"scores": 0.5 * self.parse(inputs) + offset}

        @tf.function(input_signature=[EXAMPLES])
        def named(self, inputs):
            scores = tf.concat([self.parse(inputs), -self.parse(inputs)], 1)
            return {"scores": scores, "classes": tf.where(scores > 0, "above", "below")}

        @tf.function(input_signature=[X])
        def below_ten(self, x):
            tf.debugging.assert_less(x, 10.0, message="x must be below 10")
            return {"y": tf.identity(x)}

        @tf.function(input_signature=[X])
        def slow(self, x):
            matrix = tf.eye(300)
            for _ in tf.range(tf.cast(tf.reduce_max(x), tf.int32)):
                matrix = tf.matmul(matrix, matrix)
            return {"y": x + matrix[0, 0]}

        @tf.function(input_signature=[tf.TensorSpec(None, tf.float32, name="x")])
        def any_shape(self, x):
            return {"y": 0.5 * x + offset}

        @tf.function(input_signature=[tf.TensorSpec([2], tf.float32, name="x")])
        def two_rows(self, x):
            return {"y": x - tf.reduce_mean(x)}

        def parse(self, inputs):
            return tf.io.parse_example(inputs, {"x": tf.io.FixedLenFeature([1], tf.float32)})["x"]

    module = HalfPlusTwo()
    signatures = {
        "serving_default": module.half_plus_two,
        "regress_x_to_y": module.regress,
        "classify_x_to_y": module.classify,
        "classify_named": module.named,
        "below_ten": module.below_ten,
        "slow": module.slow,
        "any_shape": module.any_shape,
        "two_rows": module.two_rows,
    }
    tf.saved_model.save(module, str(directory), signatures=signatures)


def save_pairs(directory):
    """Two texts in, several outputs of several types out."""

    class Pairs(tf.Module):
        @tf.function(input_signature=[TEXT, OTHER])
        def compare(self, text, other):
            joined = tf.strings.join([text, other], "|")
            return {
                "joined": joined,
                "joined_bytes": joined,
                "lengths": tf.stack([tf.strings.length(text), tf.strings.length(other)], axis=1),
                "same": text == other,
            }

        @tf.function(input_signature=[TEXT])
        def constant(self, text):
            return {"text": text, "labels": tf.constant(["no", "yes", "maybe"])}

    module = Pairs()
    signatures = {"serving_default": module.compare, "constant": module.constant}
    tf.saved_model.save(module, str(directory), signatures=signatures)


def save_lengths(directory):
    """A text in, the number of its bytes out."""
    module = tf.Module()
    module.length = tf.function(lambda text: {"length": tf.strings.length(text)}, [TEXT])
    tf.saved_model.save(module, str(directory), signatures=module.length)


def save_ids(directory):
    """Token ids with a mask: the mean of the ids that are there, and each id doubled."""
    ids = tf.TensorSpec([None, None], tf.int32, name="input_word_ids")
    mask = tf.TensorSpec([None, None], tf.int32, name="input_mask")

    class Ids(tf.Module):
        @tf.function(input_signature=[ids, mask])
        def masked(self, input_word_ids, input_mask):
            mean = tf.reduce_sum(input_word_ids * input_mask, 1) / tf.reduce_sum(input_mask, 1)
            return {"mean": mean, "doubled": 2 * input_word_ids, "labels": tf.tile([[1, 2, 3]], [tf.size(mean), 1])}

        @tf.function(input_signature=[ids])
        def unmasked(self, input_word_ids):
            return {"mean": tf.reduce_mean(tf.cast(input_word_ids, tf.float32), 1)}

    module = Ids()
    tf.saved_model.save(
        module, str(directory), signatures={"serving_default": module.masked, "unmasked": module.unmasked}
    )


def save_filled(directory):
    """A text in, its words and where they begin out, filled up to the longest with "" and -1."""

    class Filled(tf.Module):
        @tf.function(input_signature=[TEXT])
        def split(self, text):
            words = tf.strings.split(text)
            return {"words": words.to_tensor(""), "numbers": tf.ragged.range(words.row_lengths()).to_tensor(-1)}

    module = Filled()
    tf.saved_model.save(module, str(directory), signatures=module.split)


def save_gate(directory):
    """A named pipe's path in, and out once `open_gate` was called; `PATH.asked` says that the graph has begun."""

    class Gate(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="path")])
        def wait(self, path):
            for one in path:
                tf.io.write_file(one + ".asked", "")
            for one in path:
                tf.io.write_file(one, "")  # the kernel waits until somebody reads from the pipe
            return {"path": tf.identity(path)}

    module = Gate()
    tf.saved_model.save(module, str(directory), signatures=module.wait)


def make_gate(path):
    """A gate that is shut."""
    os.mkfifo(path)
    return str(path)


def open_gate(path):
    """Lets requests through a gate, now and later."""
    os.open(path, os.O_RDWR)  # never closed: there is always a reader


class Server(NamedTuple):
    port: int
    lines: tuple[str, ...] = ()
    process: subprocess.Popen | None = None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def send(self, method, path, body=None, headers=None):
        """The status, the content type and the body of the answer to one request."""
        request = urllib.request.Request(self.url + path, data=body, method=method, headers=headers or {})
        try:
            with DIRECT.open(request, timeout=60) as answer:
                return answer.status, answer.headers["Content-Type"], answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers["Content-Type"], error.read()

    def get(self, path):
        status, content_type, body = self.send("GET", path)
        assert (status, content_type) == (200, "application/json")
        return json.loads(body)

    def predict(self, document, path="/v1/models/half:predict", **headers):
        status, content_type, body = self.send("POST", path, json.dumps(document).encode(), headers)
        assert (status, content_type) == (200, "application/json"), body
        return json.loads(body)

    def refusal(self, method, path, body=None):
        """The status and the message of a refusal."""
        status, content_type, answer = self.send(method, path, body)
        assert content_type == "application/json"
        document = json.loads(answer)
        assert document.keys() == {"error"}
        return status, document["error"]

    def metrics(self):
        """The values on the metrics page, by series."""
        status, content_type, body = self.send("GET", "/monitoring/prometheus/metrics")
        assert (status, content_type.split(";")[0]) == (200, "text/plain")
        lines = [line for line in body.decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def patiently():
    """Again and again, for four minutes: a busy machine may be slow; a server that hangs is found all the same."""
    end = time.monotonic() + 240
    while time.monotonic() < end:
        yield
        time.sleep(0.02)


@contextmanager
def running(model_config_file, count, *flags, **options):
    """`keras-bert serve` with `count` models in its own process, which does not outlive the block."""
    command = [
        sys.executable,
        "-m",
        "keras_bert",
        "serve",
        f"--model_config_file={model_config_file}",
        "--port=0",
        *flags,
    ]
    environment = os.environ | {"TF_NUM_INTEROP_THREADS": "4"}  # a gate takes one for itself
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, **options) as process:
        try:
            lines = tuple(process.stdout.readline().rstrip("\n") for _ in range(count))
            port = re.search(r":(\d+)/", lines[0])
            assert port, f"no address in {lines}"
            yield Server(int(port[1]), lines, process)
        finally:
            process.kill()


@contextmanager
def in_thread(models, reread=None, **config):
    """A server on a thread of this process, with sockets like any other."""
    app = create_app({name: str(base) for name, base in models.items()}, ServerConfig(**config), reread)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield Server(server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join()
