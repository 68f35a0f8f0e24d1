"""Serving: one SavedModel, loaded by three loaders in processes of their own, gives what `predict` gives."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import pickle
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import uvicorn
from checks import randomize
from conftest import TINY, WORDS, shared, tiny_bert

from keras_bert import server
from keras_bert.__main__ import main
from keras_bert.bert import Bert
from keras_bert.cli import verify_export
from keras_bert.config import FROZEN, DataConfig, HeadConfig, TextConfig, WindowConfig, to_dict
from keras_bert.data.batches import encoded
from keras_bert.errors import CheckpointError, ConfigError
from keras_bert.serving import export, golden, releases, warmup
from keras_bert.serving.requests import IDS, Trial
from keras_bert.serving.served import Served
from keras_bert.serving.signatures import signatures_of
from keras_bert.tasks.network import Network
from keras_bert.text.text import Text

ODD = ('say "hi"', "two\nlines", "🔥 emoji", "a,b", "\\", "null")
MANY = (*ODD, *(f"label {i}" for i in range(10_000)))
WINDOWS = WindowConfig(max_windows=3)
KINDS = {
    "single": {},
    "windows": {"pair": True, "task": "multilabel", "labels": ODD},
    "regress": {"task": "regress", "labels": ()},
    "wide": {"labels": MANY, "dtype": "mixed_bfloat16"},
}
ABOUT = {"license": "apache-2.0", "description": 'Finds "fires".', "training": {"train_rows": 7}, "metrics": {}}
OPTIONS = {"windows": {"windows": WINDOWS, "precision": "bfloat16", "about": ABOUT}}
EVERY = [*("single", "windows"), *(pytest.param(name, marks=pytest.mark.slow) for name in ("regress", "wide"))]
ROUNDING = {"single": 1e-5, "regress": 1e-5, "windows": 2e-2, "wide": 2e-2}
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

LOADERS = """
import pickle, sys
import tensorflow as tf

models, out = pickle.load(open(sys.argv[1], "rb")), {"v1": {}, "v2": {}}
try:
    tf.saved_model.load(next(iter(models.values()))[0])
except Exception as error:
    out["without tensorflow_text"] = str(error)

import tensorflow_text

for name, (folder, requests) in models.items():
    model = tf.saved_model.load(folder)
    answers = [
        model.signatures[signature](**{k: tf.constant(v, kind) for k, (v, kind) in inputs.items()})
        for signature, inputs in requests
    ]
    out["v2"][name] = [{k: v.numpy() for k, v in answer.items()} for answer in answers]
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        meta = tf.compat.v1.saved_model.loader.load(session, ["serve"], folder)
        answers = []
        for signature, inputs in requests:
            found = meta.signature_def[signature]
            feed = {found.inputs[k].name: v for k, (v, _) in inputs.items()}
            answers.append(session.run({k: v.name for k, v in found.outputs.items()}, feed))
        out["v1"][name] = answers
out["modules"] = [name for name in sys.modules if name.startswith("keras_bert")]
pickle.dump(out, open(sys.argv[2], "wb"))
"""


def make(task="classify", labels=("0", "1"), pair=False, dtype=None):
    """A tiny model whose answers differ from text to text."""
    network = randomize(Network(TINY, HeadConfig(task=task, labels=labels), dtype=dtype))
    data = DataConfig(text_pair_column="text_pair" if pair else "")
    return Bert(Text(WORDS, TextConfig(max_seq_length=16)), network, data)


@pytest.fixture(scope="module")
def berts(request):
    """The models that the selected tests ask for."""
    asked = [item.name.rpartition("[")[2] for item in request.session.items]
    found = {name: make(**kind) for name, kind in KINDS.items() if any(name in a for a in asked)}
    for bert in found.values():
        bert.network.compile(jit_compile=True)
    return found


@pytest.fixture(scope="module")
def models(berts, tmp_path_factory):
    """The version directory of each exported model; the tree was moved after the export."""
    first, folder = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("moved")
    for name, bert in berts.items():
        assert bert.export(first / name, **OPTIONS.get(name, {})) == first / name / "1"
    shutil.copytree(first, folder, dirs_exist_ok=True)
    shutil.rmtree(first)
    return {name: folder / name / "1" for name in berts}


@pytest.fixture(scope="module")
def manifests(models):
    return {name: golden.read_manifest(folder) for name, folder in models.items()}


def columns(pair, texts, pairs=PAIRS):
    texts = [encoded([t])[0] if isinstance(t, str) else t for t in texts]
    return {"text": texts, "text_pair": encoded(pairs[: len(texts)])} if pair else {"text": texts}


@pytest.fixture(scope="module")
def requests(berts, manifests):
    """Of each model: all texts, bytes that no decoder gives, and none; every signature; and each text alone.

    A model with ten thousand labels is asked less.
    """
    found = {}
    for name, bert in berts.items():
        texts = TEXTS[:3] if name == "wide" else TEXTS
        default = [("serving_default", columns(bert.pair, t)) for t in (texts, BROKEN, [])]
        trial = Trial(bert.text, bert.pair, manifests[name]["signatures"])
        alone = range(len(TEXTS)) if name != "wide" else ()
        default += [("serving_default", columns(bert.pair, TEXTS[i : i + 1], PAIRS[i : i + 1])) for i in alone]
        asked = default[:3] + list(trial.golden(2 if name == "wide" else None)) + default[3:]
        found[name] = [
            (signature, {k: (v, "int32" if k in IDS else "string") for k, v in inputs.items()})
            for signature, inputs in asked
        ]
    return found


@pytest.fixture(scope="module")
def loaded(models, requests, tmp_path_factory):
    """What the two loaders of TensorFlow answer, in a fresh process without our package."""
    folder = tmp_path_factory.mktemp("loaders")
    return ask_loaders({name: (str(path), requests[name]) for name, path in models.items()}, folder)


def ask_loaders(asked, folder, **environment):
    (folder / "asked").write_bytes(pickle.dumps(asked))
    done = subprocess.run(
        [sys.executable, "-c", LOADERS, folder / "asked", folder / "said"],
        env=os.environ | {"PYTHONPATH": "", "TF_CPP_MIN_LOG_LEVEL": "3"} | environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return pickle.loads((folder / "said").read_bytes())


@contextlib.contextmanager
def served(models):
    """Our server in a thread: the address below which the models are."""
    app = server.create_app({name: str(folder.parent) for name, folder in models.items()})
    running = uvicorn.Server(uvicorn.Config(app, log_config=None))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1/models"
        finally:
            running.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def expected(berts, requests):
    """What the same functions give in this process."""
    found = {}
    for name, bert in berts.items():
        options = OPTIONS.get(name, {})
        network = export.in_precision(bert.network, options.get("precision", ""))
        functions = signatures_of(Served(bert.text, network, bert.pair, options.get("windows")))
        asked = itertools.islice(requests[name], 3 + len(functions))
        answers = [functions[s](**{k: tf.constant(v, t) for k, (v, t) in inputs.items()}) for s, inputs in asked]
        found[name] = [{k: v.numpy() for k, v in answer.items()} for answer in answers]
    return found


def assert_equal(found, wanted, tolerance=1e-5):
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert found[name].shape == value.shape, name
        assert found[name].dtype == value.dtype, name
        if value.dtype.kind == "f":
            np.testing.assert_allclose(found[name], value, rtol=tolerance, atol=tolerance, err_msg=name)
        else:
            np.testing.assert_array_equal(found[name], value, err_msg=name)


# === Three loaders ===


def test_loading_without_tensorflow_text_says_which_op_is_missing(loaded):
    said = loaded["without tensorflow_text"]
    assert re.search("Op type not registered 'Fast(BertNormalize|WordpieceTokenizeWithOffsets)'", said)


def test_the_loaders_do_without_this_package(loaded):
    assert loaded["modules"] == []


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("loader", ["v2", "v1"])
def test_a_loader_gives_what_this_process_gives(loader, name, expected, loaded):
    """Every signature; floats are float32, also where the arithmetic is not."""
    for answer, wanted in zip(loaded[loader][name], expected[name], strict=False):
        assert_equal(answer, wanted, ROUNDING[name])
        assert {v.dtype.name for v in answer.values()} <= {"float32", "int32", "bool", "object"}
    assert [len(answer["num_tokens"]) for answer in expected[name][:3]] == [3 if name == "wide" else 22, 6, 0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["windows"])
def test_kept_copies_of_weights_give_the_same(name, models, requests, expected, tmp_path):
    """One kernel, first used for rows of many texts and then for those of one: the copy of its weights fits both."""
    found = ask_loaders({name: (str(models[name]), requests[name])}, tmp_path, **{FROZEN: "1"})
    for loader in ("v1", "v2"):
        for answer, wanted in zip(found[loader][name], expected[name], strict=False):
            assert_equal(answer, wanted, ROUNDING[name])


@pytest.mark.parametrize("name", ["single", *(pytest.param(n, marks=pytest.mark.slow) for n in list(KINDS)[1:])])
def test_the_server_gives_what_was_exported(name, models, manifests):
    with served({name: models[name]}) as url:
        found = golden.replay(manifests[name], golden.server(f"{url}/{name}", manifests[name]))
        assert set(found) == set(manifests[name]["signatures"])
        if name == "single":
            wrong = golden.server(f"{url}/other", manifests[name])
            with pytest.raises(CheckpointError, match="/other: answers 404 to classify"):
                golden.replay(manifests[name], wrong)


@pytest.mark.parametrize("name", ["single", "windows"])
def test_predict_and_the_signature_say_the_same(name, berts, expected):
    """`predict` cuts into batches by length and gives Python values; otherwise it is the signature."""
    bert, wanted, tolerance = berts[name], expected[name][0], 10 * ROUNDING[name]
    answers = bert.predict(TEXTS, PAIRS if bert.pair else None, 4, windows=OPTIONS.get(name, {}).get("windows"))
    assert [a["truncated"] for a in answers] == wanted["truncated"].tolist()
    for i, answer in enumerate(answers):
        names = [n.decode() for n in wanted["labels"][i]] if "labels" in wanted else []
        if "scores" in wanted:
            assert answer["scores"] == pytest.approx(dict(zip(names, wanted["scores"][i], strict=True)), abs=tolerance)
        if "label" in wanted:
            assert list(answer["scores"]) == names
            assert answer["label"] == wanted["label"][i].decode() == names[0]
        if "score" in wanted:
            assert answer["score"] == pytest.approx(wanted["score"][i], abs=tolerance)
        if "active" in wanted:
            assert answer["labels"] == [n for n in names if answer["scores"][n] >= 0.5]


@pytest.mark.parametrize("name", ["single", "windows"])
@pytest.mark.parametrize("loader", ["v2", "v1"])
def test_a_row_does_not_depend_on_its_batch(loader, name, loaded):
    """Alone, and beside a neighbour of 10,000 characters."""
    together, *_ = answers = loaded[loader][name]
    for i, alone in enumerate(answers[-len(TEXTS) :]):
        assert_equal(alone, {k: v[i : i + 1] for k, v in together.items()}, ROUNDING[name])
    assert np.ptp(together["scores"][:, 0]) > 0.05, "the test is of no use if all answers are the same"


@pytest.mark.parametrize(("name", "names"), [("windows", ODD), pytest.param("wide", MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("loader", ["v2", "v1"])
def test_odd_labels_and_ten_thousand_come_back_as_they_were_written(loader, name, names, loaded):
    answer = loaded[loader][name][0]
    for labels, ids in zip(answer["labels"], answer["class_ids"], strict=True):
        assert sorted(ids) == list(range(len(names)))
        assert [label.decode() for label in labels] == [names[i] for i in ids]


def test_labels_that_are_there_twice_are_refused():
    with pytest.raises(ConfigError, match=r"these are not: \['a'\]"):
        HeadConfig(labels=("a", "b", "a"))


def test_verify_export_asks_the_newest_version_again(models, capsys):
    assert main(["verify_export", f"--export_dir={models['single'].parent}"]) == 0
    said = capsys.readouterr()
    signatures = {*FURTHER["classify"], *COMMON, "serving_default", "token_ids"}
    assert [line.split()[0] for line in said.out.splitlines()] == sorted(signatures)
    assert "6 requests answered as exported, within 0.0001" in said.err


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("http://h:1", "http://h:1/v1/models/tweets/versions/7"),
        ("https://h/", "https://h/v1/models/tweets/versions/7"),
        ("http://h:1/v1/models/other", "http://h:1/v1/models/other"),
        ("http://h:1/v1/models/other/versions/3:predict", "http://h:1/v1/models/other/versions/3"),
    ],
)
def test_the_address_of_a_model(given, address):
    assert verify_export.model_url(given, Path("models/tweets/007")) == address


@pytest.mark.parametrize("url", ["localhost:8501", "h", "ftp://h/x", "http://"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(ConfigError, match="--url must be like http://localhost:8501"):
        verify_export.model_url(url, Path("models/tweets/1"))


# === Signatures ===

N, ONE = "n", [None]
SCORES = {"labels": ("string", [None, N]), "scores": ("float32", [None, N]), "class_ids": ("int32", [None, N])}
ANSWERS = {
    "classify": {"label": ("string", ONE), "score": ("float32", ONE), **SCORES},
    "multilabel": {**SCORES, "active": ("bool", [None, N])},
    "regress": {"score": ("float32", ONE)},
}
SIZES = {"num_tokens": ("int32", ONE), "num_windows": ("int32", ONE), "truncated": ("bool", ONE)}
ROW = ("int32", [None, 16])
COMMON = {
    "tokenize": {
        **dict.fromkeys(("ids", "segment_ids", "starts", "ends"), ROW),
        "tokens": ("string", ROW[1]),
        "num_tokens": ("int32", ONE),
        "truncated": ("bool", ONE),
    },
    "embedding": {"embedding": ("float32", [None, 16])},
}
CLASSES = {"classes": ("string", [None, N]), "scores": ("float32", [None, N])}
FURTHER = {
    "classify": {"probabilities": {"probabilities": ("float32", [None, N])}, "classify": CLASSES},
    "multilabel": {"probabilities": {"probabilities": ("float32", [None, N])}, "classify": CLASSES},
    "regress": {"regress": {"outputs": ("float32", ONE)}},
}


@pytest.mark.parametrize("name", EVERY)
def test_signatures_are_as_documented(name, manifests, berts):
    head = berts[name].network.head.config
    answers, width = ANSWERS[head.task], max(1, len(head.labels))
    logits = {"logits": ("float32", [None, width]), "pooled_output": ("float32", [None, 16])}
    wanted = {"serving_default": answers | SIZES, "token_ids": answers | logits} | COMMON | FURTHER[head.task]
    found = manifests[name]["signatures"]
    assert set(found) == set(wanted)
    texts = dict.fromkeys(["text", "text_pair"][: 1 + berts[name].pair], ("string", ONE))
    others = {"token_ids": dict.fromkeys(IDS, ("int32", [None, None]))}
    others |= {key: {"inputs": ("string", ONE)} for key in ("classify", "regress")}
    for signature, outputs in wanted.items():
        kinds = {k: (kind, [width if d == N else d for d in shape]) for k, (kind, shape) in outputs.items()}
        for part, described in (("inputs", others.get(signature, texts)), ("outputs", kinds)):
            tensors = found[signature][part]
            assert {k: (v["dtype"], v["shape"]) for k, v in tensors.items()} == described, (signature, part)


@pytest.fixture(scope="module")
def again(models):
    """The first model, loaded in this process."""
    return tf.saved_model.load(str(models["single"]))


def test_tokenize_shows_pieces_and_where_they_are(again):
    found = {k: v.numpy()[0].tolist() for k, v in again.signatures["tokenize"](text=tf.constant(["Fires, é"])).items()}
    assert found["tokens"] == [b"[CLS]", b"fire", b"##s", b",", b"e", b"[SEP]", *[b""] * 10]
    assert found["starts"][:7] == [-1, 0, 4, 5, 7, -1, -1]
    assert found["ends"][:7] == [-1, 4, 5, 6, 9, -1, -1]
    assert found["num_tokens"] == 6


def test_an_embedding_is_the_mean_of_the_tokens_and_of_length_one(again, berts):
    bert = berts["single"]
    features = bert.text(TEXTS)
    mask = features["padding_mask"].numpy()[:, :, None]
    known = {name: features[name] for name in ("token_ids", "segment_ids", "padding_mask")}
    mean = (bert.network.encoder(known)["sequence"].numpy() * mask).sum(1)
    found = again.signatures["embedding"](text=tf.constant(encoded(TEXTS)))["embedding"].numpy()
    np.testing.assert_allclose(found, mean / np.linalg.norm(mean, axis=1, keepdims=True), atol=1e-6)


def ids_request(ids, mask=None, types=None):
    ids = np.asarray(ids, np.int32)
    return dict(zip(IDS, map(tf.constant, (ids, np.ones_like(ids) if mask is None else mask, ids * 0)), strict=True))


def test_token_ids_padded_to_any_width_or_to_none_at_all(again):
    function = again.signatures["token_ids"]
    row, mask = np.array([[2, 40, 3]], np.int32), np.ones([1, 3], np.int32)
    alone = function(**ids_request(row))["logits"].numpy()
    for width in (4, 64):
        grow = [[0, 0], [0, width - 3]]
        wide = function(**ids_request(np.pad(row, grow), np.pad(mask, grow)))
        np.testing.assert_allclose(wide["logits"], alone, atol=1e-5)
    assert function(**ids_request(np.zeros([2, 0])))["label"].shape == (2,)
    assert function(**ids_request(np.zeros([0, 0])))["label"].shape == (0,)


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([[-1]], f"ids must be from 0 to {len(WORDS) - 1}"),
        ([[len(WORDS)]], f"ids must be from 0 to {len(WORDS) - 1}"),
        ([[2] * 65], "at most 64 tokens, got"),
    ],
)
def test_token_ids_that_cannot_be_are_an_error_of_the_request(again, ids, said):
    with pytest.raises(tf.errors.InvalidArgumentError, match=said):
        again.signatures["token_ids"](**ids_request(ids))


def test_the_loaded_model_can_be_fine_tuned(models):
    """Gradients reach every weight through the function `network`, and the signatures answer with the new weights."""
    model = tf.saved_model.load(str(models["single"]))
    ask = model.signatures["probabilities"]
    features = model.features(tf.constant(["fire in the city", "the music"]))
    before = ask(text=tf.constant(["fire in the city"]))["probabilities"].numpy()
    losses = []
    for _ in range(3):
        with tf.GradientTape() as tape:
            logits = model.network(*(features[k] for k in ("token_ids", "segment_ids", "padding_mask")))["logits"]
            losses.append(tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits([0, 1], logits)))
        gradients = tape.gradient(losses[-1], list(model.weights))
        assert all(g is not None for g in gradients)
        for weight, gradient in zip(model.weights, gradients, strict=True):
            weight.assign_sub(0.1 * tf.convert_to_tensor(gradient))
    assert losses[2] < losses[0]
    assert np.abs(ask(text=tf.constant(["fire in the city"]))["probabilities"].numpy() - before).max() > 1e-3


# === Long texts ===


def test_windows_give_the_same_answer_where_a_text_fits(berts):
    texts = [t for t in TEXTS if len(t) < 20]
    for bert, merge in ((berts["single"], "max"), (berts["windows"], "mean")):
        asked = (texts, [t[:9] for t in texts] if bert.pair else None)
        found = bert.arrays(*asked, windows=WindowConfig(max_windows=9, window_merge=merge))
        wanted = bert.arrays(*asked)
        keep = (wanted["num_tokens"] <= 16) & (found["num_windows"] == 1) & ~found["truncated"]
        assert keep.sum() > 3
        for name, value in wanted.items():
            if value.dtype.kind == "f":
                np.testing.assert_allclose(found[name][keep], value[keep], atol=1e-5)


def test_merged_scores_are_those_of_the_windows(berts):
    """Each window of the long text by itself, as a text that fits."""
    bert = berts["single"]
    served = Served(bert.text, bert.network, False, WindowConfig(max_windows=50, doc_stride=5))
    long = "fire storm music in the city song game flood is on " * 8
    features = served.features(tf.constant([long, "fire"]))
    parts = tf.nn.softmax(served.encoded(features, "logits")["logits"]).numpy()[:-1]
    assert len(parts) > 10
    assert np.ptp(parts[:, 0]) > 0.05
    for merge, wanted in (("mean", parts.mean(0)), ("max", parts.max(0) / parts.max(0).sum()), ("first", parts[0])):
        windows = WindowConfig(max_windows=50, doc_stride=5, window_merge=merge)
        found = bert.arrays([long, "fire"], windows=windows)
        best = wanted.argmax()
        assert found["score"][0] == pytest.approx(wanted[best], abs=1e-5)
        assert found["class_ids"][0, 0] == best
        assert found["num_windows"].tolist() == [len(parts), 1]
        assert not found["truncated"].any()


def test_a_text_of_a_megabyte_is_read_in_as_many_windows_as_allowed(berts):
    found = berts["windows"].arrays(["storm"], ["fire in the city " * 60_000], windows=WINDOWS)
    assert found["num_windows"].tolist() == [3]
    assert found["num_tokens"].tolist() == [240_004]
    assert found["truncated"].tolist() == [True]


# === What is in the SavedModel ===


@pytest.mark.parametrize("name", EVERY)
def test_the_graph_has_no_op_that_servers_may_lack(name, models, manifests):
    found = releases.check(models[name])
    assert found.oldest_server == manifests[name]["oldest_server"] == "2.12"
    assert list(found.names) == manifests[name]["ops"]
    assert {"FastBertNormalize", "FastWordpieceTokenizeWithOffsets", "MatMul"} <= set(found.names)
    assert not [op for op in found.names if re.search("Random|ReadFile|PyFunc|HashTable", op)]


def test_weights_and_vocabulary_are_written_once(models, berts, manifests):
    """Files of Keras' own export hold every weight twice, and a graph for each signature its own tokenizer."""
    folder, bert = models["single"], berts["single"]
    reader = tf.train.load_checkpoint(str(folder / "variables/variables"))
    shapes = reader.get_variable_to_shape_map()
    shapes.pop("_CHECKPOINTABLE_OBJECT_GRAPH")
    assert sum(np.prod(shape) for shape in shapes.values()) == manifests["single"]["parameters"]
    assert manifests["single"]["parameters"] == bert.network.count_params()
    graph = releases.meta_graph(folder).graph_def
    constants = [n.attr["value"].tensor.SerializeToString() for n in releases.nodes(graph) if n.op == "Const"]
    large = [c for c in constants if len(c) > 1000 and b"VARIABLE_VALUE" not in c]  # these name what is saved
    assert len(large) == len(set(large)) >= 3
    assert sum(b"music" in c for c in constants) == 1, "to show pieces; the kernel has them in a form of its own"


def test_the_manifest_says_what_the_model_is(models, manifests):
    folder, manifest = models["windows"], manifests["windows"]
    assert manifest["schema"] == 1
    assert manifest["versions"]["tensorflow"] == tf.__version__
    assert tuple(manifest["head"]["labels"]) == ODD
    assert manifest["encoder"] == to_dict(TINY)
    assert manifest["text"]["max_seq_length"] == 16
    assert manifest["windows"] == dataclasses.asdict(WINDOWS)
    assert manifest["precision"] == "bfloat16"
    assert manifest["parameters"] == make("multilabel", ODD).network.count_params()
    lines = "".join(f"{word}\n" for word in WORDS).encode()
    assert manifest["vocabulary"] == {"size": len(WORDS), "sha256": hashlib.sha256(lines).hexdigest()}
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert set(manifest["files"]) == files - {f"assets.extra/{golden.MANIFEST}"}
    assert {"saved_model.pb", "README.md", f"assets.extra/{warmup.FILE}"} < files
    golden.check_files(folder, manifest)


def test_the_card_says_how_to_ask(models, manifests):
    card = (models["windows"] / "README.md").read_text("utf-8")
    assert card.startswith('---\nlibrary_name: "keras"\n')
    assert '\nlicense: "apache-2.0"\n---\n' in card
    assert '\nFinds "fires".\n' in card
    assert '"train_rows": 7' in card
    for name in manifests["windows"]["signatures"]:
        assert f"### {name}\n" in card
    for body, verb in re.findall(r"^curl -d '(.*)' http://localhost:8501/v1/models/windows:(\w+)$", card, re.M):
        asked = json.loads(body.replace("'\\''", "'"))
        assert set(asked) == {"signature_name", "examples" if verb == "classify" else "instances"}
    assert "up to 3 overlapping windows" in card
    assert "needs TensorFlow Serving 2.12 or later" in card
    assert r"`say \"hi\"`, `two\nlines`, `🔥 emoji`" in card


def test_others_may_read_the_model(models):
    """A server often runs as another user."""
    for path in [models["single"], *models["single"].rglob("*")]:
        wanted = 0o555 if path.is_dir() else 0o444
        assert path.stat().st_mode & wanted == wanted, path


def test_the_golden_answers_are_checked(models, manifests, tmp_path):
    """A weight that changes, and a file that changes, are both found."""
    folder, manifest = models["single"], manifests["single"]
    model = tf.saved_model.load(str(folder))
    assert max(golden.replay(manifest, golden.loaded(model)).values()) < 1e-6
    model.weights[0].assign(model.weights[0] * 1.1)
    with pytest.raises(CheckpointError, match=r"^signature \w+: \w+ of row \d+ is .*, not "):
        golden.replay(manifest, golden.loaded(model))
    shutil.copytree(folder, tmp_path / "1")
    (tmp_path / "1/README.md").write_text("other")
    with pytest.raises(CheckpointError, match=r"README\.md: is changed since the export"):
        golden.check_files(tmp_path / "1", manifest)


@pytest.mark.slow
def test_two_processes_export_the_same_bytes(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from conftest import tiny_bert; tiny_bert().export(sys.argv[2])"
    )
    folders = [tmp_path / str(i) / "model" for i in (1, 2)]
    environment = os.environ | {"SOURCE_DATE_EPOCH": "1750000000"}
    for folder in folders:
        command = [sys.executable, "-c", code, str(Path(__file__).parents[1]), str(folder)]
        subprocess.run(command, env=environment, check=True, timeout=300)
    files = [{p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in folders]
    assert files[0].keys() == files[1].keys()
    different = [str(name) for name, content in files[0].items() if files[1][name] != content]
    assert {Path(name).name for name in different} <= {"saved_model.pb", "fingerprint.pb", golden.MANIFEST}


def test_a_precision_that_cannot_be_is_refused(berts, tmp_path):
    assert berts["windows"].network.compute_dtype == "float32", "the export left the model as it was"
    with pytest.raises(ConfigError, match="unknown precision 'int4'; choose one of"):
        berts["single"].export(tmp_path, precision="int4")


# === Refusals ===


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--max_windows=0", "max_windows must be from 1 to 1000, got 0"),
        ("--doc_stride=-1", "doc_stride must be 0 or more"),
        ("--window_merge=sum", "window_merge"),
        ("--precision=int8", "precision"),
    ],
)
@pytest.mark.parametrize("command", ["export", "predict"])
def test_flags_that_cannot_be_are_refused(command, flag, said, capsys, tmp_path):
    outputs = ["--input_file=x", f"--output_file={tmp_path}/y"] if command == "predict" else ["--export_dir=x"]
    assert main([command, "--model_dir=x", *outputs, flag]) == 2
    assert said in capsys.readouterr().err


@pytest.fixture(scope="module")
def bert():
    return tiny_bert()


def test_windows_of_a_task_that_cannot_merge_them_are_refused(bert):
    network = Network(TINY, HeadConfig(task="choice"))
    with pytest.raises(ConfigError, match="unknown task with windows 'choice'; choose one of classify"):
        Served(bert.text, network, False, WINDOWS)


def test_an_export_dir_that_is_a_file_is_refused(bert, tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ConfigError, match="is a file"):
        bert.export(tmp_path / "file")
    with pytest.raises(CheckpointError, match="cannot be written"):
        bert.export(tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "kept"


@contextlib.contextmanager
def limited(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def somebody_else():
    """What may be written is no question for root."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        if user == 0:
            os.seteuid(0)


def test_a_full_or_forbidden_disk_leaves_nothing_behind(bert):
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        base.chmod(0o755)
        (base / "closed").mkdir(mode=0)
        for size in (20_000, 500_000):  # while the variables are written, then the graph
            with limited(size), pytest.raises(CheckpointError, match=r"^.*model/1: cannot be written \(.*\)$"):
                bert.export(base / "model")
            assert list((base / "model").iterdir()) == []
        (base / "model").chmod(0o555)
        for folder in (base / "model", base / "closed" / "below"):
            with somebody_else(), pytest.raises(CheckpointError, match="cannot be written"):
                bert.export(folder)
        assert list((base / "model").iterdir()) == []
        (base / "model").chmod(0o755)


# === Every task ===

TASKS = {
    "classify": {"labels": ("0", "1")},
    "pairs": {"task": "classify", "labels": ("no", "yes", "perhaps")},
    "multilabel": {"labels": ("0", "1", "2")},
    "regress": {},
    "tag": {"labels": ("place", "person")},
    "span": {"n_best_size": 3},
    "choice": {},
    "similarity": {},
    "embed": {},
    "fill_mask": {"mask_token_id": WORDS.index("[MASK]")},
    "generate": {"max_target_length": 4, "beam_size": 2},
}
ALWAYS = {"serving_default", "tokenize", "token_ids"}
NAMES = {
    "classify": {"embedding", "probabilities", "classify"},
    "pairs": {"embedding", "probabilities", "classify"},
    "multilabel": {"embedding", "probabilities", "classify"},
    "regress": {"embedding", "regress"},
    "tag": {"embedding"},
    "span": {"embedding"},
    "choice": set(),
    "similarity": {"embedding", "token_embeddings"},
    "embed": {"embedding", "token_embeddings"},
    "fill_mask": {"embedding"},
    "generate": {"embedding"},
}
"""Signatures beside those that every model has."""
SAYS = {
    "classify": set(ANSWERS["classify"]),
    "pairs": set(ANSWERS["classify"]),
    "multilabel": set(ANSWERS["multilabel"]),
    "regress": set(ANSWERS["regress"]),
    "tag": {"types", "texts", "scores", "starts", "ends", "start_bytes", "end_bytes", "num_entities"},
    "span": {"answer", "score", "start", "end", "start_byte", "end_byte", "null_score_diff", "nbest_answers"},
    "choice": {"choice", "answer", "score", "scores"},
    "similarity": {"similarity"},
    "embed": {"embedding"},
    "fill_mask": {"tokens", "token_ids", "scores", "starts", "ends", "num_masks", "filled"},
    "generate": {"generated", "score", "ended", "nbest_generated", "nbest_scores"},
}
"""What the answer holds at least."""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Of every task the model, its version directory, requests for all signatures and what they answer here."""
    folder, found = tmp_path_factory.mktemp("tasks"), {}
    for name, fields in TASKS.items():
        config = HeadConfig(**{"task": name} | fields)
        mask = "seq2seq" if name == "generate" else "bidirectional"
        network = randomize(Network(dataclasses.replace(TINY, attention_mask=mask), config))
        pair = DataConfig(text_pair_column="text_pair" if name in ("pairs", "span", "similarity") else "")
        bert = Bert(Text(WORDS, TextConfig(max_seq_length=16)), network, pair)
        version = bert.export(folder / name)
        asked = list(Trial(bert.text, bert.pair, golden.read_manifest(version)["signatures"]).golden())
        functions = signatures_of(Served(bert.text, network, bert.pair, bert.windows))
        answers = [functions[s](**{k: tf.constant(v) for k, v in inputs.items()}) for s, inputs in asked]
        requests = [(s, {k: (v.tolist(), "int32" if k in IDS else "string") for k, v in i.items()}) for s, i in asked]
        found[name] = version, requests, [{k: v.numpy() for k, v in answer.items()} for answer in answers]
    return found


@pytest.fixture(scope="module")
def answered(tasks, tmp_path_factory):
    """What both loaders of TensorFlow answer for all tasks, in one fresh process."""
    asked = {name: (str(version), requests) for name, (version, requests, _) in tasks.items()}
    return ask_loaders(asked, tmp_path_factory.mktemp("answered"))


@pytest.fixture(scope="module")
def address(tasks):
    with served({name: version for name, (version, *_) in tasks.items()}) as url:
        yield url


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_exported_whole(name, tasks, answered, address, capsys):
    """Three loaders, the server, the golden requests, the ops, the size and the signatures."""
    version, requests, wanted = tasks[name]
    manifest = golden.read_manifest(version)
    assert {signature for signature, _ in requests} == set(manifest["signatures"]) == ALWAYS | NAMES[name]
    default = wanted[[signature for signature, _ in requests].index("serving_default")]
    assert set(default) >= SAYS[name] | set(SIZES)
    assert {v.dtype.name for answer in wanted for v in answer.values()} <= {"float32", "int32", "bool", "object"}
    for loader in ("v1", "v2"):
        for answer, here in zip(answered[loader][name], wanted, strict=True):
            assert_equal(answer, here)
    assert main(["verify_export", f"--export_dir={version}"]) == 0
    assert main(["verify_export", f"--export_dir={version}", f"--url={address}/{name}"]) == 0
    assert capsys.readouterr().err.count("requests answered as exported") == 2
    assert releases.check(version).oldest_server == manifest["oldest_server"] == "2.12"
    shapes = tf.train.load_checkpoint(str(version / "variables/variables")).get_variable_to_shape_map()
    shapes.pop("_CHECKPOINTABLE_OBJECT_GRAPH")
    assert sum(np.prod(shape) for shape in shapes.values()) == manifest["parameters"]
    graph = releases.meta_graph(version).graph_def
    constants = [n.attr["value"].tensor.SerializeToString() for n in releases.nodes(graph) if n.op == "Const"]
    large = [c for c in constants if len(c) > 10_000 and b"VARIABLE_VALUE" not in c]
    assert len(large) == len(set(large))
    shown = sum(b"music" in c for c in constants)
    assert shown == (2 if name == "generate" else 1), "what pieces spell is another list"
    print(f"{name}: TensorFlow Serving {manifest['oldest_server']} or later, {len(constants)} constants")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "verb"), [("classify", "classify"), ("pairs", "classify"), ("regress", "regress")])
def test_the_verbs_of_rest_say_what_predict_says(name, verb, address):
    def ask(verb, **body):
        request = urllib.request.Request(f"{address}/{name}:{verb}", json.dumps(body).encode())
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
            return json.load(answer)

    rows = [{"text": a} | ({"text_pair": b} if name == "pairs" else {}) for a, b in (("fire", "the city"), ("", "x"))]
    answers = ask("predict", instances=rows)["predictions"]
    results = ask(verb, signature_name=verb, examples=rows)["results"]
    if verb == "regress":
        assert results == pytest.approx([a["score"] for a in answers], abs=1e-6)
    else:
        assert [[label for label, _ in row] for row in results] == [a["labels"] for a in answers]
        np.testing.assert_allclose([[s for _, s in row] for row in results], [a["scores"] for a in answers], atol=1e-6)


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
    request = ("serving_default", {"text": (encoded(tweets), "string")})
    found = ask_loaders({"tweets": (str(folder), [request])}, tmp_path)
    manifest = golden.read_manifest(folder)
    parameters = 4 * manifest["parameters"]
    assert (folder / "variables/variables.data-00000-of-00001").stat().st_size < 1.05 * parameters
    assert (folder / "saved_model.pb").stat().st_size < 0.05 * parameters
    with served({"tweets": folder}) as url:
        asked = {"text": np.array(request[1]["text"][0], object)}
        rest = golden.server(f"{url}/tweets", manifest)("serving_default", asked)
    for answer in (found["v2"]["tweets"][0], found["v1"]["tweets"][0], rest):
        assert [x.decode() for x in answer["label"]] == [a["label"] for a in answers]
        np.testing.assert_allclose(answer["score"], [a["score"] for a in answers], rtol=0, atol=1e-5)
        assert answer["truncated"].tolist() == [a["truncated"] for a in answers]
    assert len({round(a["score"], 4) for a in answers}) > 100
