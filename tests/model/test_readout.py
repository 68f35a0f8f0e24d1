"""What heads read of the encoder: layers, mix, BiLSTM and pooling by hand, frozen features, and `keras-bert embed`."""

import json

import checks
import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import TINY, WORDS, slow, tiny_bert

from keras_bert.__main__ import main
from keras_bert.bert import Bert, initialize
from keras_bert.config import EncoderConfig, HeadConfig, OptimizerConfig, TrainConfig
from keras_bert.errors import ConfigError
from keras_bert.model.readout import LAYERS, POOLINGS, LayerMix, Readout, normalized
from keras_bert.serving import golden
from keras_bert.tasks.network import HEADS, Network

DEEP = EncoderConfig(
    vocab_size=len(WORDS), num_layers=5, num_heads=2, hidden_dim=8, intermediate_dim=16, max_positions=64
)
random = np.random.default_rng(0)
TAPS = {
    "embedded": random.normal(size=(2, 3, 8)).astype("float32"),
    "layers": [random.normal(size=(2, 3, 8)).astype("float32") for _ in range(5)],
    "padding_mask": np.array([[True, True, False], [True, True, True]]),
}
TAPS["sequence"] = TAPS["layers"][-1]


def read(layers, lstm=0):
    layer = Readout(DEEP, layers, lstm)
    layer.build()
    return layer


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("last", lambda e, x: x[4]),
        ("second_last", lambda e, x: x[3]),
        ("first_last", lambda e, x: (x[0] + x[4]) / 2),
        ("last4_sum", lambda e, x: x[1] + x[2] + x[3] + x[4]),
        ("last4_concat", lambda e, x: np.concatenate(x[1:], axis=2)),
        ("mix", lambda e, x: (e + sum(x)) / 6),
    ],
)
def test_layers_by_hand(name, wanted):
    layer = read(name)
    found = np.asarray(layer(TAPS))
    np.testing.assert_allclose(found, wanted(TAPS["embedded"], TAPS["layers"]), atol=1e-6)
    assert found.shape[2] == layer.width
    taps = {tap: TAPS[tap] for tap in LAYERS[name].taps}
    np.testing.assert_array_equal(layer(taps), found, "it needs no other taps")


def test_the_mix_has_softmax_weights_and_a_factor():
    mix = LayerMix(3)
    mix.build(None)
    assert sorted(w.path.rpartition("/")[2] for w in mix.weights) == ["beta", "gamma"]
    mix.beta.assign([0.0, np.log(2.0), np.log(5.0)])
    mix.gamma.assign([4.0])
    x = random.normal(size=(2, 3, 3, 8)).astype("float32")
    np.testing.assert_allclose(mix(x), 4 * (x[:, :, 0] + 2 * x[:, :, 1] + 5 * x[:, :, 2]) / 8, atol=1e-5)


def test_too_few_layers():
    with pytest.raises(ConfigError, match="layers last4_concat needs 4 layers; the model has 2"):
        Readout(TINY, "last4_concat")
    for name, task in (("layers", "fill_mask"), ("head_lstm", "generate"), ("pooling", "tag"), ("objective", "embed")):
        value = {"layers": "mix", "head_lstm": 3, "pooling": "max", "objective": "ranking"}[name]
        with pytest.raises(ConfigError, match=f"{name} has no meaning with the task {task}, only with"):
            HeadConfig(task=task, **{name: value})


def test_pooling_by_hand():
    x, mask = TAPS["sequence"], TAPS["padding_mask"]
    np.testing.assert_allclose(POOLINGS["cls"](x, mask), x[:, 0])
    np.testing.assert_allclose(POOLINGS["mean"](x, mask), [x[0, :2].mean(0), x[1].mean(0)], atol=1e-6)
    np.testing.assert_allclose(POOLINGS["max"](x, mask), [x[0, :2].max(0), x[1].max(0)])
    for name in ("mean", "max"):
        assert not np.asarray(POOLINGS[name](x, mask & False)).any(), name
    found = np.asarray(normalized(x[:, 0]))
    np.testing.assert_allclose(found, x[:, 0] / np.linalg.norm(x[:, 0], axis=1, keepdims=True), rtol=1e-5)


def test_the_bilstm_computes_what_pytorch_and_numpy_do():
    layer = read("last", 3)
    checks.randomize(layer)
    weights = {w.path.split("/", 1)[1]: w.numpy() for w in layer.weights}

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    def run(x, way):
        kernel, back, bias = (next(v for p, v in weights.items() if way in p and p.endswith(f"/{end}")) for end in ENDS)
        h, c, out = np.zeros(3), np.zeros(3), []
        for step in x:
            i, f, g, o = np.split(step @ kernel + h @ back + bias, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            out.append(h)
        return np.array(out)

    found = np.asarray(layer(TAPS))
    for row, length in ((0, 2), (1, 3)):
        x = TAPS["sequence"][row, :length]
        wanted = np.concatenate([run(x, "forward"), run(x[::-1], "backward")[::-1]], axis=1)
        np.testing.assert_allclose(found[row, :length], wanted, atol=1e-5)


ENDS = ("kernel", "recurrent_kernel", "bias")

PARTS = {
    f"{task}_{layers}_{lstm}": checks.Part(
        build=lambda dtype, task=task, labels=labels, layers=layers, lstm=lstm: Network(
            TINY, HeadConfig(task=task, labels=labels, layers=layers, head_lstm=lstm), dtype=dtype
        ),
        run=checks.on_features,
        positions=task == "tag",
        silent="key/bias",
    )
    for task, labels, layers, lstm in (("classify", ("a", "b"), "last", 3), ("tag", ("A",), "mix", 2))
}


@pytest.mark.parametrize("promise", checks.PROMISES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("part", PARTS)
def test_promises(part, promise, tmp_path):
    promise(PARTS[part], tmp_path)


def test_sentences_over_other_layers_have_no_pooler():
    plain = HEADS["classify"](DEEP, HeadConfig(labels=("a", "b")))
    assert (plain.taps, hasattr(plain, "pooler")) == (("sequence",), True)
    for more in ({"layers": "last4_concat"}, {"head_lstm": 5}, {"pooling": "cls"}):
        head = HEADS["classify"](DEEP, HeadConfig(labels=("a", "b"), **more))
        assert not hasattr(head, "pooler")
        assert head.projection.kernel.shape[0] == {"last4_concat": 32, "cls": 8}.get(next(iter(more.values())), 10)


def test_initial_values_are_those_of_each_kind():
    network = checks.randomize(Network(TINY, HeadConfig(task="tag", labels=("A",), layers="mix", head_lstm=4)))
    paths = [w.path for w in network.head.weights if "seed_generator" not in w.path]
    initialize(network, paths, 7)
    values = {w.path: w.numpy() for w in network.head.weights}
    for path in paths:
        if path.endswith("recurrent_kernel"):
            np.testing.assert_allclose(values[path] @ values[path].T, np.eye(4), atol=1e-5)
        elif "/lstm/" in path and path.endswith("kernel"):
            assert 0.3 < np.abs(values[path]).max() <= np.sqrt(6 / (16 + 16)), path
        elif path.endswith(("beta", "bias")):
            assert not values[path].any(), path
    assert values["head/readout/mix/gamma"] == 1


@pytest.mark.parametrize("task", ["classify", slow("tag")])
def test_a_frozen_encoder_stays_and_has_no_dropout(task):
    labels, texts = ("0", "1"), ["a fire", "b flood"] * 6
    bert = tiny_bert(task, labels)  # and the random seed
    network = Network(TINY, HeadConfig(task=task, labels=labels, layers="mix", head_lstm=4, dropout=0.0))
    bert = Bert(bert.text, network, bert.data)
    before = {w.path: w.numpy() for w in network.weights}
    truth = ["0", "1"] * 6 if task == "classify" else [[(2, 6, "0")], [(2, 7, "1")]] * 6
    config, held = TrainConfig(num_train_epochs=3, train_batch_size=6), (texts, truth)
    optimizer = OptimizerConfig(learning_rate=3e-2, freeze_layers=2)
    result = bert.fit(texts * 4, truth * 4, None, held, config, optimizer, progress=None)
    assert result.best["f1"] == 1.0
    moved = {path for path, value in before.items() if not np.array_equal(value, dict_of(network)[path])}
    assert moved
    assert all(path.startswith("head/") for path in moved)
    assert {"head/readout/mix/beta", "head/readout/mix/gamma"} <= moved
    frozen = Network(TINY, HeadConfig(task="classify", labels=labels, dropout=0.0))
    frozen.encoder.trainable = False
    given = checks.features([6, 3])
    np.testing.assert_array_equal(frozen(given, training=True), frozen(given, training=False))


def dict_of(network):
    return {w.path: w.numpy() for w in network.weights}


# === The command ===

TEXTS = ["the fire", "a song in the city", "storm"]


@pytest.fixture
def at_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = "".join(json.dumps({"id": f"t{i}", "text": text}) + "\n" for i, text in enumerate(TEXTS))
    (tmp_path / "texts.jsonl").write_text(rows, "utf-8")
    return tmp_path


def embed(checkpoint, *flags):
    return main(["embed", f"--init_checkpoint={checkpoint}", "--input_file=texts.jsonl", *flags])


def test_embed_writes_vectors_of_texts(at_work, tiny_checkpoint):
    assert embed(tiny_checkpoint, "--output_file=mean.npz") == 0
    mean = np.load(at_work / "mean.npz")
    assert mean["ids"].tolist() == ["t0", "t1", "t2"]
    bert = Bert.from_checkpoint(tiny_checkpoint, labels=["0", "1"])
    np.testing.assert_allclose(mean["embeddings"], bert.embed(TEXTS), atol=1e-6)
    given = bert.text(TEXTS)
    given = {name: given[name].numpy() for name in ("token_ids", "segment_ids", "padding_mask")}
    layers = [np.asarray(x) for x in bert.network.encoder(given, taps=("layers",))["layers"]]
    assert embed(tiny_checkpoint, "--output_file=o.jsonl", "--layers=first_last", "--pooling=cls", "--nonormalize") == 0
    lines = [json.loads(line) for line in (at_work / "o.jsonl").read_text().splitlines()]
    wanted = (layers[0] + layers[1])[:, 0] / 2
    np.testing.assert_allclose([line["embedding"] for line in lines], wanted, atol=1e-5)
    assert [line["id"] for line in lines] == ["t0", "t1", "t2"]
    assert embed(tiny_checkpoint, "--output_file=tokens.npz", "--tokens") == 0
    tokens = np.load(at_work / "tokens.npz")
    assert tokens["tokens"].tolist()[:4] == ["[CLS]", "the", "fire", "[SEP]"]
    assert tokens["lengths"].tolist() == given["padding_mask"].sum(1).tolist()
    np.testing.assert_allclose(tokens["embeddings"], layers[1][given["padding_mask"]], atol=1e-5)


def test_embed_refuses_before_any_work(at_work, tiny_checkpoint, capsys):
    for flags, fault in (
        (["--output_file=out.csv"], "--output_file out.csv: must end in .npz or .jsonl"),
        (["--output_file=texts.jsonl"], "is also the input"),
        (["--output_file=o.npz", "--tokens", "--pooling=max"], "--tokens and --pooling contradict each other"),
        (["--output_file=no/o.npz"], "must be a file in a directory that can be written"),
    ):
        assert embed(tiny_checkpoint, *flags) == 2
        assert fault in capsys.readouterr().err
    assert embed(tiny_checkpoint, "--output_file=o.npz", "--layers=last4_sum") == 2
    assert "layers last4_sum needs 4 layers; the model has 2" in capsys.readouterr().err


def test_the_encoder_of_a_run_is_embedded_and_exported(at_work):
    tiny_bert().save(at_work / "run")
    assert embed("run", "--output_file=o.npz", "--layers=mix", "--max_seq_length=8") == 0
    bert = Bert.from_checkpoint(at_work / "run", "embed", head={"layers": "mix"})
    np.testing.assert_allclose(np.load(at_work / "o.npz")["embeddings"], bert.embed(TEXTS), atol=1e-6)
    with pytest.raises(ConfigError, match="a model for classify has no token_embeddings"):
        tiny_bert().embed_tokens(TEXTS)
    with pytest.raises(ConfigError, match="reads pairs as one row"):
        tiny_bert(pair=True).embed(TEXTS)
    assert bert.embed([]).shape == (0, TINY.hidden_dim)
    folder = bert.export(at_work / "models/vectors")
    assert golden.read_manifest(folder)["embedding"] == {"pooling": "mean", "layers": "mix", "normalized": True}
    model = tf.saved_model.load(str(folder))
    assert set(model.signatures) == {"serving_default", "embedding", "token_embeddings", "token_ids", "tokenize"}
    found = model.signatures["token_embeddings"](text=tf.constant(TEXTS))
    assert found["embeddings"].shape == (3, 16, TINY.hidden_dim), "no width depends on the other texts"
    for i, (pieces, vectors) in enumerate(bert.embed_tokens(TEXTS)):
        assert [t.decode() for t in found["tokens"][i].numpy() if t] == pieces
        np.testing.assert_allclose(found["embeddings"][i, : len(pieces)], vectors, atol=1e-6)
        assert not found["embeddings"][i, len(pieces) :].numpy().any()


@pytest.mark.slow
def test_a_head_over_a_bilstm_is_exported(at_work):
    network = checks.randomize(Network(TINY, HeadConfig(labels=("0", "1"), layers="mix", head_lstm=3)))
    bert = Bert(tiny_bert().text, network)
    bert.save(at_work / "run")
    again = Bert.load(at_work / "run")
    wanted = [answer["scores"] for answer in bert.predict(TEXTS)]
    assert [answer["scores"] for answer in again.predict(TEXTS)] == wanted
    model = tf.saved_model.load(str(again.export(at_work / "models/lstm")))
    found = model.signatures["probabilities"](text=tf.constant(TEXTS))["probabilities"].numpy()
    np.testing.assert_allclose(found, [[one["0"], one["1"]] for one in wanted], atol=1e-6)
    assert keras.backend.backend() == "tensorflow"
