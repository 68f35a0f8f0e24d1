"""Serving: one SavedModel, loaded by three loaders in processes of their own, gives what `predict` gives."""

import base64
import dataclasses
import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from checks import randomize
from conftest import TINY, WORDS, shared, tiny_bert
from tensorflow.core.protobuf import saved_model_pb2

from keras_bert import serving
from keras_bert.bert import Bert, encode
from keras_bert.config import DataConfig, HeadConfig, TextConfig
from keras_bert.errors import CheckpointError, ConfigError
from keras_bert.heads import Network
from keras_bert.text import Text

ODD = ('say "hi"', "two\nlines", "🔥 emoji", "a,b", "\\", "null")
KINDS = {
    "single": {},
    "pair": {"pair": True},
    "multilabel": {"task": "multilabel", "labels": ("fire", "flood", "storm")},
    "regress": {"task": "regress", "labels": ()},
    "odd": {"labels": ODD},
    "bfloat16": {"dtype": "mixed_bfloat16"},
    "float16": {"dtype": "mixed_float16"},
}
LONG = "fire in the city " * 589  # more than 10,000 characters
TEXTS = [
    "fire in the city",
    "",
    " ",
    "x" * 1000,
    "storm " * 167,
    LONG,
    "🔥 fire 👩‍👩‍👧‍👦",
    "火事 in the город",
    "FLOOD!!! storms, floods; stormed",
    "the",
    "a\x00b\x07 fire",
    "\ufeffflood\u200b",
    "مرحبا storm",
    "e\u0301 é ﬁre",
    "[CLS] [SEP] [MASK] [PAD]",
    "line\nbreak\ttab\r\n",
    '"quotes" \\ and {"b64": "ZmlyZQ=="}',
    "0123456789 0 1 2",
    "song song game music",
    "fire",
    "\ud800 lone surrogate \udfff",
    "flood in the city. storm on the city!",
]
BROKEN = [b"\xff\xfe fire", b"\x80", b"fire \xc3", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80 storm", b"\xc0\xaf"]
PAIRS = [*TEXTS[7:], *TEXTS[:7]]

V2 = """
import pickle, sys
import tensorflow as tf

models, out = pickle.load(open(sys.argv[1], "rb")), {}
try:
    tf.saved_model.load(next(iter(models.values()))[0])
except Exception as error:
    out["without tensorflow_text"] = str(error)

import tensorflow_text

for name, (folder, batches) in models.items():
    model = tf.saved_model.load(folder)
    function = model.signatures["serving_default"]
    answers = [function(**{k: tf.constant(v, tf.string) for k, v in batch.items()}) for batch in batches]
    out[name] = [{k: v.numpy() for k, v in answer.items()} for answer in answers]
out["modules"] = [name for name in sys.modules if name.startswith("keras_bert")]
pickle.dump(out, open(sys.argv[2], "wb"))
"""

V1 = """
import pickle, sys
import tensorflow as tf
import tensorflow_text

models, out = pickle.load(open(sys.argv[1], "rb")), {}
for name, (folder, batches) in models.items():
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        meta = tf.compat.v1.saved_model.loader.load(session, ["serve"], folder)
        signature = meta.signature_def["serving_default"]
        fetches = {k: v.name for k, v in signature.outputs.items()}
        feeds = [{signature.inputs[k].name: v for k, v in batch.items()} for batch in batches]
        out[name] = [session.run(fetches, feed) for feed in feeds]
out["modules"] = [name for name in sys.modules if name.startswith("keras_bert")]
pickle.dump(out, open(sys.argv[2], "wb"))
"""

SERVER = "import json, sys; from keras_bert.server import serve; serve(json.loads(sys.argv[1]), port=0)"


def make(task="classify", labels=("0", "1"), pair=False, dtype=None):
    """A tiny model whose answers differ from text to text."""
    network = randomize(Network(TINY, HeadConfig(task=task, labels=labels), dtype=dtype))
    data = DataConfig(text_pair_column="text_pair" if pair else "")
    return Bert(Text(WORDS, TextConfig(max_seq_length=16)), network, data)


@pytest.fixture(scope="module")
def berts():
    return {name: make(**kind) for name, kind in KINDS.items()}


@pytest.fixture(scope="module")
def models(berts, tmp_path_factory):
    """The version directory of each exported model; the tree was moved after the export."""
    first, folder = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("moved")
    for name, bert in berts.items():
        assert bert.export(first / name) == first / name / "1"
    shutil.copytree(first, folder, dirs_exist_ok=True)
    shutil.rmtree(first)
    return {name: folder / name / "1" for name in berts}


def columns(pair, texts, pairs=PAIRS):
    texts = [encode(t) if isinstance(t, str) else t for t in texts]
    return {"text": texts, "text_pair": [encode(t) for t in pairs[: len(texts)]]} if pair else {"text": texts}


def batches_of(name):
    """All texts; bytes that no decoder gives; none; and each text alone, for the first models."""
    pair = name == "pair"
    alone = range(len(TEXTS)) if name in ("single", "pair") else ()
    return [
        columns(pair, TEXTS),
        columns(pair, BROKEN),
        columns(pair, []),
        *(columns(pair, TEXTS[i : i + 1], PAIRS[i : i + 1]) for i in alone),
    ]


@pytest.fixture(scope="module")
def loaded(models, tmp_path_factory):
    """What the two loaders of TensorFlow answer, each in a fresh process without our package."""
    folder = tmp_path_factory.mktemp("loaders")
    asked = {name: (str(path), batches_of(name)) for name, path in models.items()}
    return ask_loaders(asked, folder)


def ask_loaders(asked, folder):
    (folder / "asked").write_bytes(pickle.dumps(asked))
    processes = {
        name: subprocess.Popen(
            [sys.executable, "-c", code, folder / "asked", folder / name],
            env=os.environ | {"PYTHONPATH": "", "TF_CPP_MIN_LOG_LEVEL": "3"},
            cwd=folder,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, code in {"v2": V2, "v1": V1}.items()
    }
    for process in processes.values():
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    return {name: pickle.loads((folder / name).read_bytes()) for name in processes}


@pytest.fixture(scope="module")
def url(models):
    """Our server, in a process of its own, with every model."""
    bases = json.dumps({name: str(path.parent) for name, path in models.items()})
    with subprocess.Popen([sys.executable, "-c", SERVER, bases], stdout=subprocess.PIPE, text=True) as process:
        try:
            lines = [process.stdout.readline() for _ in models]
            assert lines[0].startswith("serving single version 1 on http://127.0.0.1:")
            yield lines[0].split()[-1].removesuffix("/single")
        finally:
            process.send_signal(signal.SIGTERM)


def post(url, document):
    request = urllib.request.Request(f"{url}:predict", json.dumps(document).encode())
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=60) as response:
        return json.load(response)


def b64(value):
    return {"b64": base64.b64encode(value).decode()}


def rows_of(batch):
    """A batch of columns as the rows of a request; one input needs no name."""
    rows = [dict(zip(batch, map(b64, row), strict=True)) for row in zip(*batch.values(), strict=True)]
    return rows if len(batch) > 1 else [row["text"] for row in rows]


def from_json(rows):
    """Rows of an answer as arrays, strings as the bytes that the loaders give."""

    def array(values):
        found = np.array(values)
        return np.vectorize(str.encode, otypes=[object])(found) if found.dtype.kind == "U" else found

    return {name: array([row[name] for row in rows]) for name in rows[0]}


@pytest.fixture(scope="module")
def expected(berts):
    """What the function behind `predict` gives in this process, for each batch of each model."""
    found = {}
    for name, bert in berts.items():
        function = serving.signature(bert.text, bert.network, bert.pair)
        answers = [function(*(tf.constant(c, tf.string) for c in batch.values())) for batch in batches_of(name)[:3]]
        found[name] = [{k: v.numpy() for k, v in answer.items()} for answer in answers]
    return found


def assert_equal(found, wanted, tolerance=1e-5):
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert found[name].shape == value.shape, name
        if value.dtype.kind == "f":
            np.testing.assert_allclose(found[name], value, rtol=0, atol=tolerance, err_msg=name)
        else:
            np.testing.assert_array_equal(found[name], value, err_msg=name)


# === Three loaders ===


def test_loading_without_tensorflow_text_says_which_op_is_missing(loaded):
    assert "Op type not registered 'FastBertNormalize'" in loaded["v2"]["without tensorflow_text"]


@pytest.mark.parametrize("loader", ["v2", "v1"])
def test_the_loaders_do_without_this_package(loader, loaded):
    assert loaded[loader]["modules"] == []


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("loader", ["v2", "v1"])
def test_a_loader_gives_what_predict_gives(loader, name, expected, loaded):
    answers = loaded[loader][name][:3]
    for answer, wanted in zip(answers, expected[name], strict=True):
        assert_equal(answer, wanted)
        assert {k: v.dtype for k, v in answer.items()} == {k: v.dtype for k, v in wanted.items()}
    assert [len(next(iter(answer.values()))) for answer in answers] == [len(TEXTS), len(BROKEN), 0]


@pytest.mark.parametrize("name", KINDS)
def test_the_server_gives_what_predict_gives(name, expected, url):
    *batches, none = batches_of(name)[:3]
    for batch, wanted in zip(batches, expected[name], strict=False):
        rows = post(f"{url}/{name}", {"instances": rows_of(batch)})["predictions"]
        assert_equal(from_json(rows), wanted)
    assert post(f"{url}/{name}", {"inputs": none})["outputs"] == {output: [] for output in expected[name][2]}


@pytest.mark.parametrize("name", KINDS)
def test_predict_and_the_signature_say_the_same(name, berts, expected):
    """`predict` cuts into batches by length and gives Python values; otherwise it is the signature."""
    bert, wanted = berts[name], expected[name][0]
    answers = bert.predict(TEXTS, PAIRS if bert.pair else None, batch_size=4)
    assert [a["truncated"] for a in answers] == wanted["truncated"].tolist()
    for i, answer in enumerate(answers):
        names = [n.decode() for n in wanted["labels"][i]] if "labels" in wanted else []
        if "scores" in wanted:
            assert answer["scores"] == pytest.approx(dict(zip(names, wanted["scores"][i], strict=True)), abs=1e-5)
        if "label" in wanted:
            assert list(answer["scores"]) == names
            assert answer["label"] == wanted["label"][i].decode() == names[0]
        if "score" in wanted:
            assert answer["score"] == pytest.approx(wanted["score"][i], abs=1e-5)
        if "active" in wanted:
            assert answer["labels"] == [n for n, on in zip(names, wanted["active"][i], strict=True) if on]


@pytest.mark.parametrize("name", ["single", "pair"])
@pytest.mark.parametrize("loader", ["v2", "v1"])
def test_a_row_does_not_depend_on_its_batch(loader, name, loaded):
    """Alone, and beside a neighbour of 10,000 characters."""
    together, *_ = answers = loaded[loader][name]
    for i, alone in enumerate(answers[3:]):
        assert_equal(alone, {k: v[i : i + 1] for k, v in together.items()})
    assert len(answers) == 3 + len(TEXTS)
    assert np.ptp(together["score"]) > 0.05, "the test is of no use if all answers are the same"


@pytest.mark.parametrize("label", ODD)
def test_labels_come_back_as_they_were_written(label, loaded, berts, url):
    classes = {label: i for i, label in enumerate(ODD)}
    for loader in ("v2", "v1"):
        answer = loaded[loader]["odd"][0]
        ids = dict(zip(answer["labels"][0], answer["class_ids"][0], strict=True))
        assert ids[label.encode()] == classes[label]
    (row,) = post(f"{url}/odd", {"instances": ["fire"]})["predictions"]
    assert dict(zip(row["labels"], row["class_ids"], strict=True)) == classes
    assert set(berts["odd"].predict(["fire"])[0]["scores"]) == set(ODD)


# === What is in the SavedModel ===

MANY, ONE = [-1, 2], [-1]
OUTPUTS = {
    "single": {
        "label": ("string", ONE),
        "score": ("float32", ONE),
        "labels": ("string", MANY),
        "scores": ("float32", MANY),
        "class_ids": ("int32", MANY),
    },
    "multilabel": {
        "labels": ("string", [-1, 3]),
        "scores": ("float32", [-1, 3]),
        "class_ids": ("int32", [-1, 3]),
        "active": ("bool", [-1, 3]),
    },
    "regress": {"score": ("float32", ONE)},
}
ALWAYS = {"num_tokens": ("int32", ONE), "truncated": ("bool", ONE)}


def meta_graph(folder):
    content = saved_model_pb2.SavedModel()
    content.ParseFromString((folder / "saved_model.pb").read_bytes())
    (graph,) = content.meta_graphs
    return graph


def described(tensors):
    return {k: (tf.as_dtype(t.dtype).name, [d.size for d in t.tensor_shape.dim]) for k, t in tensors.items()}


@pytest.mark.parametrize("name", ["single", "pair", "multilabel", "regress", "bfloat16", "float16"])
def test_signatures_are_as_documented(name, models):
    graph = meta_graph(models[name])
    assert list(graph.meta_info_def.tags) == ["serve"]
    assert set(graph.signature_def) == {"serving_default", "__saved_model_init_op"}
    signature = graph.signature_def["serving_default"]
    assert signature.method_name == "tensorflow/serving/predict"
    inputs = ["text", "text_pair"] if name == "pair" else ["text"]
    assert described(signature.inputs) == dict.fromkeys(inputs, ("string", ONE))
    assert described(signature.outputs) == OUTPUTS.get(name, OUTPUTS["single"]) | ALWAYS
    assert {tf.as_dtype(kind) for kind, _ in described(signature.outputs).values()} <= set(serving.DTYPES)


OPS = """
    AddN AddV2 All Any Assert AssignVariableOp BatchMatMulV2 BiasAdd BitwiseAnd BroadcastTo Cast ConcatV2 Const
    Cumsum DecodeRaw DisableCopyOnRead Equal Erf Erfc ExpandDims FastBertNormalize FastWordpieceTokenizeWithOffsets
    Fill FloorDiv GatherV2 Greater GreaterEqual Identity If Less LessEqual LogicalAnd LogicalNot LogicalOr MatMul
    Max Maximum Mean MergeV2Checkpoints Minimum Mul Neg NoOp NotEqual Pack Pad PadV2 Placeholder Pow Prod
    RaggedGather RaggedRange RaggedTensorToTensor Range ReadVariableOp RealDiv ReduceJoin Reshape RestoreV2 Rsqrt
    SaveV2 SegmentMax Select SelectV2 Shape ShardedFilename Sigmoid Softmax Sqrt Square SquaredDifference Squeeze
    StatefulPartitionedCall StatelessIf StaticRegexFullMatch StaticRegexReplace StopGradient StridedSlice
    StringJoin StringLength Sub Sum Tanh Tile TopKV2 Transpose Unpack VarHandleOp Where ZerosLike
"""
"""What every TensorFlow Serving since 2.12 has. No Python, no randomness; files only to save and restore variables."""


@pytest.mark.parametrize("name", KINDS)
def test_the_graph_has_no_op_that_servers_may_lack(name, models):
    graph = meta_graph(models[name])
    functions = graph.graph_def.library.function
    used = {n.op for n in graph.graph_def.node} | {n.op for f in functions for n in f.node_def}
    used -= {f.signature.name for f in functions}
    assert {"FastBertNormalize", "FastWordpieceTokenizeWithOffsets", "MatMul"} <= used
    assert not used - set(OPS.split())
    assert not [op for op in used if "RoundRobin" in op]
    assert not [n for f in functions for n in f.node_def if n.attr["_XlaMustCompile"].b], "the server has no XLA"


def test_the_manifest_says_what_the_model_is(models, berts):
    folder = models["odd"]
    manifest = json.loads((folder / "assets.extra" / serving.MANIFEST).read_text("utf-8"))
    assert manifest["schema"] == 1
    assert manifest["tensorflow"] == tf.__version__
    assert tuple(manifest["head"]["labels"]) == ODD
    assert manifest["encoder"] == dataclasses.asdict(TINY)
    assert manifest["text"]["max_seq_length"] == 16
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert set(manifest["files"]) == files - {f"assets.extra/{serving.MANIFEST}"}
    assert {"saved_model.pb", "fingerprint.pb", "variables/variables.index"} < set(manifest["files"])
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


def test_each_weight_is_written_once(models, berts):
    """Files of Keras' own export hold every weight twice."""
    reader = tf.train.load_checkpoint(str(models["single"] / "variables/variables"))
    shapes = reader.get_variable_to_shape_map()
    shapes.pop("_CHECKPOINTABLE_OBJECT_GRAPH")
    assert sum(np.prod(shape) for shape in shapes.values()) == berts["single"].network.count_params()


def test_others_may_read_the_model(models):
    """A server often runs as another user."""
    for path in [models["single"], *models["single"].rglob("*")]:
        wanted = 0o555 if path.is_dir() else 0o444
        assert path.stat().st_mode & wanted == wanted, path


# === Versions and refusals ===


@pytest.fixture(scope="module")
def bert():
    return tiny_bert()


def test_versions_count_up_and_other_names_do_not_count(bert, tmp_path):
    for name in ("7", "010", "abc", "-3", ".tmp-99", "1.5", "²"):
        (tmp_path / name).mkdir()
    (tmp_path / "12").write_text("a file")
    assert serving.versions(tmp_path) == [7, 10]
    assert bert.export(tmp_path).name == "11"
    assert bert.export(tmp_path, version=40).name == "40"
    assert bert.export(str(tmp_path)).name == "41"


@pytest.mark.parametrize("version", [0, -1, 2**63, 7, 10])
def test_a_version_that_cannot_be_is_refused(version, bert, tmp_path):
    (tmp_path / "7").mkdir()
    (tmp_path / "010").mkdir()
    with pytest.raises(ConfigError, match=r"must be from 1 to 9223372036854775807|exists; give another --version"):
        bert.export(tmp_path, version)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["010", "7"]


def test_an_export_dir_that_is_a_file_is_refused(bert, tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ConfigError, match="is a file"):
        bert.export(tmp_path / "file")
    with pytest.raises(CheckpointError, match="cannot be written"):
        bert.export(tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "kept"


def test_a_file_in_the_place_of_the_version_stops_the_export_cleanly(bert, tmp_path):
    (tmp_path / "3").write_text("kept")
    with pytest.raises(CheckpointError, match="3: cannot be written"):
        bert.export(tmp_path, 3)
    assert [p.name for p in tmp_path.iterdir()] == ["3"]
    assert (tmp_path / "3").read_text() == "kept"


LIMITED = """
import os, resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from conftest import tiny_bert
from keras_bert.errors import CheckpointError

bert, base = tiny_bert(), Path(sys.argv[2])

def attempt(name, folder):
    try:
        print(name, bert.export(folder).name)
    except CheckpointError as error:
        print(name, "refused", len(str(error).splitlines()), "cannot be written" in str(error))
    print(sorted(str(p.relative_to(base)) for p in base.rglob("*")))

(base / "closed").mkdir(mode=0)
for limit in (100, 20_000, 100_000, 500_000):  # while the variables are written, then the graph
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    attempt("full", base / "model")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
(base / "model").chmod(0o555)
user = os.geteuid()
if user == 0:
    os.seteuid(65534)  # what may be written is no question for root
attempt("forbidden", base / "model")
attempt("forbidden", base / "model" / "below")
attempt("forbidden", base / "closed" / "below")
if user == 0:
    os.seteuid(0)
(base / "model").chmod(0o755)
print("at last", bert.export(base / "model").name)
"""


def test_a_full_or_forbidden_disk_leaves_nothing_behind():
    with tempfile.TemporaryDirectory() as base:
        Path(base).chmod(0o755)
        command = [sys.executable, "-c", LIMITED, Path(__file__).parent, base]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    names = ["full"] * 4 + ["forbidden"] * 3
    refused = [line for name in names for line in (f"{name} refused 1 True", "['closed', 'model']")]
    assert done.stdout.splitlines() == [*refused, "at last 1"]


# === Real weights ===


@pytest.mark.slow
def test_real_tweets_get_the_same_answers_in_a_fresh_process(minilm, tmp_path):
    """200 tweets of Kaggle's test set through all-MiniLM-L6-v2, in three loaders."""
    import csv

    with open(shared("data/disaster_tweets/test.csv"), newline="", encoding="utf-8") as file:
        tweets = [row["text"] for row in csv.DictReader(file)][:200]
    bert = Bert.from_checkpoint(minilm, labels=["0", "1"], max_seq_length=64)
    folder = bert.export(tmp_path / "tweets")
    answers = bert.predict(tweets)
    found = ask_loaders({"tweets": (str(folder), [columns(False, tweets)])}, tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, json.dumps({"tweets": str(folder.parent)})], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            address = process.stdout.readline().split()[-1]
            rows = post(address, {"instances": tweets})["predictions"]
        finally:
            process.send_signal(signal.SIGTERM)
    for answer in (found["v2"]["tweets"][0], found["v1"]["tweets"][0], from_json(rows)):
        assert [x.decode() for x in answer["label"]] == [a["label"] for a in answers]
        np.testing.assert_allclose(answer["score"], [a["score"] for a in answers], rtol=0, atol=1e-5)
        assert answer["truncated"].tolist() == [a["truncated"] for a in answers]
    assert len({round(a["score"], 4) for a in answers}) > 100
