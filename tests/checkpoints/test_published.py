"""Heads that others have trained, used as they are: the answers are those of the library that they come from."""

import csv
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, shared
from safetensors.numpy import load_file, save_file

from keras_bert import Bert
from keras_bert.__main__ import main
from keras_bert.checkpoints.checkpoints import open_checkpoint
from keras_bert.checkpoints.formats import FORMATS
from keras_bert.checkpoints.formats.table import all_entries
from keras_bert.config import HeadConfig
from keras_bert.conversion import Changes, convert
from keras_bert.errors import CheckpointError, ConfigError, DataError
from keras_bert.tags import order_of, read_tags
from keras_bert.tasks.tagging import Scheme

TEXTS = [
    "forest fire near la ronge !",
    "John Smith lives in London and visits Berlin.",
    "the movie was very good",
    "walking in new york, john visits the forest near London",
]
PAIRS = ["the movie was very good .", "it is not in London", "hello", "who ?"]


# === Recorded values ===


def entities(bert: Bert, texts: list[str]) -> list[list[tuple]]:
    return [[(e["type"], e["start"], e["end"]) for e in row["entities"]] for row in bert.predict(texts)]


def as_entities(folder: Path, said: dict) -> None:
    bert = Bert.load(folder)
    wanted = [[(e["entity_group"], e["start"], e["end"]) for e in row] for row in said["first"]]
    assert entities(bert, said["texts"]) == wanted
    scores = [e["score"] for row in bert.predict(said["texts"]) for e in row["entities"]]
    np.testing.assert_allclose(scores, [e["score"] for row in said["first"] for e in row], atol=1e-5)


def as_cross_encoder(folder: Path, said: dict) -> None:
    bert = Bert.load(folder)
    assert bert.pair
    found = [row["score"] for row in bert.predict(said["texts"], said["pairs"])]
    np.testing.assert_allclose(found, np.ravel(said["logits"]), atol=1e-5)


def as_encoder(folder: Path, said: dict) -> None:
    bert = Bert.from_checkpoint(folder, task="embed", head={"pooling": "mean", "normalize": False})
    np.testing.assert_allclose(bert.embed(said["texts"]), said["mean_raw"], atol=1e-5)


def as_unknown(folder: Path, said: dict) -> None:
    for opened in (Bert.load, lambda path: Bert.from_checkpoint(path, task="embed")):
        with pytest.raises(
            CheckpointError, match=r"unknown keys, .*auto_map, .*use_pre_layer_norm.*--keep_keys="
        ) as error:
            opened(folder)
        assert "\n" not in str(error.value)


CASES = {
    "a01_ner_iob2": as_entities,
    "a04_cross_encoder": as_cross_encoder,
    "a07_bert_tiny_old": as_encoder,
    "a07b_bert_tiny_zip": as_encoder,
    "a14_auto_map": as_unknown,
    "c01_sharded": as_encoder,
    "c10b_bert_config_and_bin": as_encoder,
}


@pytest.mark.parametrize("name", list(CASES))
def test_answers_are_those_that_were_recorded(name):
    folder = shared(f"cases/checkpoints/{name}")
    CASES[name](folder / "ckpt", json.loads((folder / "expected.json").read_text("utf-8")))


# === Tags ===


@pytest.mark.parametrize(
    ("tags", "types", "order"),
    [
        (["O", "B-a", "I-a"], ("a",), (0, 1, 2)),
        (["I-a", "O", "B-a"], ("a",), (1, 2, 0)),
        (["I-a", "I-b", "O"], ("a", "b"), None),
        (["O", "a", "b"], ("a", "b"), None),
        (["NOUN", "VERB"], ("NOUN", "VERB"), None),
        (["O", "B-x-y", "I-x-y"], ("x-y",), (0, 1, 2)),
        (["O", "B-a", "I-a", "E-a", "S-a"], ("a", "a", "a"), None),
        (["O", "a", "I-a"], ("a",), None),
        (["VB-1", "VB-2"], ("1", "2"), None),
    ],
)
def test_what_tags_of_any_scheme_say(tags, types, order):
    reading = read_tags(tags)
    assert (reading.types, order_of(reading)) == (types, order)


def test_parts_of_an_entity_are_joined_where_that_is_asked():
    tags = ["O", "B-a", "M-a", "E-a", "S-a", "U-b", "L-b", "c-d"]
    assert read_tags(tags, join=True).numbers == (0, 1, 2, 2, 1, 3, 4, 6)
    assert read_tags(tags, join=True).types == ("a", "b", "d")


def test_logits_and_targets_of_a_scheme():
    tags = ["O", "B-a", "M-a", "E-a", "S-a"]
    logits = np.arange(5, dtype="f4")[None, None]
    apart, joined = (Scheme(tags, ["a"], join) for join in (False, True))
    assert apart.read(logits, -9.0).numpy()[0, 0].tolist() == [0, 1, -9, -9, 2, -9, 3, -9, 4]
    assert apart.types.tolist() == [-1, 0, 0, 0, 0]
    assert joined.read(logits, -9.0).numpy()[0, 0].tolist() == [0, 4, 3]
    assert apart.targets.tolist() == [0, 1, 2, 3], "I- learns M-"
    assert Scheme(["I-a", "b"], ["a", "b"], False).targets.tolist() == [0, 0, 1, 1, 2, 2], "there is no O"
    assert Scheme(["NN-x", "a"], ["x", "a"], False).targets.tolist() == [0, 0, 0, 0, 2, 2], "x has no such tag"


def test_labels_are_the_types_of_the_tags():
    assert HeadConfig(task="tag", labels=["a"], tags=["O", "S-a"]).width == 2
    with pytest.raises(ConfigError, match=r"labels must be the types of the tags, \['a'\]"):
        HeadConfig(task="tag", labels=["b"], tags=["O", "S-a"])


# === Where the files do not say ===


@pytest.fixture
def head(tiny_checkpoint, tmp_path) -> Path:
    """A classifier of three labels, whose files name neither its class nor its labels."""
    shutil.copytree(tiny_checkpoint, tmp_path / "head")
    tensors = load_file(tiny_checkpoint / "model.safetensors")
    random = np.random.default_rng(0)
    tensors["classifier.weight"] = random.normal(size=(3, 16)).astype("f4")
    tensors["classifier.bias"] = random.normal(size=3).astype("f4")
    save_file(tensors, tmp_path / "head/model.safetensors")
    return tmp_path / "head"


def change(folder: Path, **values) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | values), "utf-8")


def test_a_head_that_the_files_do_not_name(head):
    with pytest.raises(
        CheckpointError, match=r"has no trained head; .*--task=similarity\|.*--task=classify --labels=no,yes"
    ):
        Bert.load(head)
    bert = Bert.load(head, task="classify")
    assert bert.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    scores = bert.predict(["fire"])[0]["scores"]
    named = Bert.load(head, task="classify", labels=["a", "b", "c"])
    assert list(named.predict(["fire"])[0]["scores"].values()) == list(scores.values())
    each = Bert.load(head, task="multilabel").predict(["fire"])[0]["scores"]
    logits = np.log([scores[name] for name in each])
    np.testing.assert_allclose(np.diff([np.log(x / (1 - x)) for x in each.values()]), np.diff(logits), atol=1e-4)
    with pytest.raises(ConfigError, match=r"2 labels, but the head of .* has 3 logits"):
        Bert.load(head, task="classify", labels=["a", "b"])
    tags = Bert.load(head, task="tag", labels=["B-a", "I-a", "O"])
    assert (tags.labels, tags.head.config.tags) == (("a",), ())


def test_it_is_converted_too(head, tmp_path):
    convert(head, tmp_path / "ours", "keras_bert", changes=Changes(task="classify", labels=["a", "b", "c"]))
    ours = Bert.load(tmp_path / "ours")
    assert ours.predict(["fire"], ["flood"]) == Bert.load(head, "classify", ["a", "b", "c"]).predict(
        ["fire"], ["flood"]
    )
    convert(head, tmp_path / "pairs", "keras_bert", changes=Changes(task="classify", text_pair_column="b"))
    assert Bert.load(tmp_path / "pairs").data.text_pair_column == "b"
    with pytest.raises(DataError, match="this model reads pairs"):
        Bert.load(tmp_path / "pairs").predict(["fire"])
    with pytest.raises(ConfigError, match="has a task and labels of its own"):
        convert(tmp_path / "ours", tmp_path / "x", "hf", changes=Changes(labels=["x", "y", "z"]))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh"}},
            "Tanh' is not computed; it can",
        ),
        (
            {"sbert_ce_default_activation_function": "mine.Softmax"},
            "activation function 'mine.Softmax' is not computed",
        ),
        (
            {
                "problem_type": "single_label_classification",
                "sentence_transformers": {"activation_fn": "torch.nn.Sigmoid"},
            },
            "a sigmoid of each label; they contradict each other",
        ),
    ],
)
def test_activations_that_are_not_computed(keys, message, head):
    change(head, architectures=["BertForSequenceClassification"], num_labels=3, **keys)
    for opened in (Bert.load, lambda path: Bert.from_checkpoint(path, task="embed")):
        with pytest.raises(CheckpointError, match=message):
            opened(head)


def test_the_second_column_is_read(head, tmp_path, monkeypatch, capsys):
    """Of a model that does not say whether it reads pairs: where the input has it, or by a flag."""
    change(head, architectures=["BertForSequenceClassification"], num_labels=3)
    monkeypatch.chdir(tmp_path)
    Path("pairs.csv").write_text("text,text_pair,other\nfire,flood,song\n", "utf-8")
    ask = ["predict", f"--model_dir={head}", "--input_file=pairs.csv", "--probabilities", "--output_file=out.csv"]
    bert = Bert.load(head, labels=["a", "b", "c"])
    for flags, pair in (([], "flood"), (["--text_pair_column=other"], "song")):
        assert main([*ask, "--labels=a,b,c", *flags]) == 0
        found = next(csv.DictReader(Path("out.csv").read_text("utf-8").splitlines()))
        wanted = bert.predict(["fire"], [pair])[0]["scores"]
        np.testing.assert_allclose([float(found[f"score_{name}"]) for name in wanted], list(wanted.values()), atol=1e-6)
    assert capsys.readouterr().err.count("the column text_pair is read as the second text of each row") == 1


# === Files as people have them ===


def rename(folder: Path, to) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({to(name): value for name, value in tensors.items()}, folder / "model.safetensors")


@pytest.mark.parametrize("prefix", ["module.", "0.auto_model.", "module.bert.", "model."])
def test_a_prefix_that_all_tensors_share(prefix, tiny_checkpoint, tmp_path):
    shutil.copytree(tiny_checkpoint, tmp_path / "a")
    rename(tmp_path / "a", lambda name: prefix + name)
    wanted, found = (Bert.from_checkpoint(p, task="embed").embed(["fire"]) for p in (tiny_checkpoint, tmp_path / "a"))
    np.testing.assert_array_equal(found, wanted)
    rename(tmp_path / "a", lambda name: name.removeprefix(prefix) if "pooler" in name else name)
    with pytest.raises(CheckpointError, match="does not fit the model"):
        Bert.from_checkpoint(tmp_path / "a", task="embed")


def sharded(folder: Path) -> dict[str, str]:
    """Split the weights into two shards; returns the table of the index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    table = {name: names[i % 2] for i, name in enumerate(sorted(tensors))}
    for shard in names:
        save_file({name: tensors[name] for name in table if table[name] == shard}, folder / shard)
    return table


def test_shards(tiny_checkpoint, tmp_path):
    folder = tmp_path / "a"
    shutil.copytree(tiny_checkpoint, folder)
    table, index = sharded(folder), folder / "model.safetensors.index.json"

    def refused(table) -> str:
        index.write_text(json.dumps({"weight_map": table}), "utf-8")
        with pytest.raises(CheckpointError) as error:
            Bert.from_checkpoint(folder, task="embed")
        return str(error.value)

    assert "no shard holds more; copy the files anew" in refused(table | {"more": "model-00001-of-00002.safetensors"})
    assert "is not a table from tensors to files beside it" in refused(table | {"more": "../model.safetensors"})
    assert "index.json names gone.safetensors; put them there" in refused(table | {"more": "gone.safetensors"})
    index.write_text(json.dumps({"weight_map": table}), "utf-8")
    wanted, found = (Bert.from_checkpoint(p, task="embed").embed(["fire"]) for p in (tiny_checkpoint, folder))
    np.testing.assert_array_equal(found, wanted)


def test_more_than_one_container_or_format(tiny_checkpoint, tmp_path):
    shutil.copytree(tiny_checkpoint, tmp_path / "a")
    (tmp_path / "a/pytorch_model.bin").write_bytes(b"not looked at")
    report = Bert.from_checkpoint(tmp_path / "a", task="embed").report
    assert "model.safetensors is read, not pytorch_model.bin beside it" in str(report)
    (tmp_path / "a/bert_config.json").write_bytes((tmp_path / "a/config.json").read_bytes())
    assert open_checkpoint(tmp_path / "a").format == "hf", "the other has no weights"
    convert(tiny_checkpoint, tmp_path / "b", "tf1")
    (tmp_path / "b/keras_bert_extra.json").unlink()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(tiny_checkpoint / name, tmp_path / "b" / name)
    assert "the directory holds tf1 and hf: tf1 is read" in open_checkpoint(tmp_path / "b").contents.remarks
    (tmp_path / "b/bert_model.ckpt.data-00000-of-00001").unlink()
    assert open_checkpoint(tmp_path / "b").format == "hf"


def test_leftovers_of_training_are_no_weights():
    kernel = "encoder/layer_0/attention/self/query/kernel"
    leftovers = [
        f"{kernel}/{slot}" for slot in ("adam_m", "adam_v", "Adam", "Adam_1", "lamb_m", "lamb_v_1", "Momentum")
    ]
    leftovers += [f"{kernel}/ExponentialMovingAverage", "global_step", "beta1_power", "beta2_power_1", "loss_scale"]
    leftovers += [
        "current_loss_scale",
        "good_steps",
        "loss_scale/good_steps",
        "signal_early_stopping/STOP",
        "loss/adam_m",
    ]
    tf1 = FORMATS["tf1"]
    assert [name for name in leftovers if not re.fullmatch(tf1.ignored, name)] == []
    weights = [entry.name for entry in all_entries(tf1.table, TINY, HeadConfig(labels=["a", "b"]))]
    assert [name for name in weights if re.fullmatch(tf1.ignored, name)] == []


# === transformers itself, in a process of its own ===

SCHEMES = {
    "iob2 in another order": ["B-PER", "O", "I-LOC", "B-LOC", "I-PER"],
    "iob1": ["I-PER", "I-LOC", "O"],
    "a type without B-": ["O", "B-PER", "I-PER", "I-LOC"],
    "no I-": ["O", "B-PER", "B-LOC"],
    "types alone": ["O", "PER", "LOC"],
    "bioes": ["O", "B-PER", "I-PER", "E-PER", "S-PER", "B-LOC", "I-LOC", "E-LOC", "S-LOC"],
    "bmes": ["B-a", "M-a", "E-a", "S-a", "O"],
    "parts of speech": ["NOUN", "VERB", "PUNCT", "ADJ"],
    "dashes": ["NN-SG", "NN-PL", "VB"],
    "no names": ["LABEL_0", "LABEL_1", "LABEL_2"],
}
SIGMOID = {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid", "version": "5.0.0"}}
CLASSIFIERS = {
    "two labels": {"labels": ["no", "yes"]},
    "natural language inference": {"labels": ["contradiction", "entailment", "neutral"]},
    "one number": {"num_labels": 1},
    "several labels": {"labels": ["a", "b", "c"], "problem_type": "multi_label_classification"},
    "cross-encoder": {"num_labels": 1} | SIGMOID,
    "cross-encoder of labels": {"labels": ["a", "b"]} | SIGMOID,
}
OTHERS = {"choice": "BertForMultipleChoice", "masked words": "BertForMaskedLM", "answers": "BertForQuestionAnswering"}
CHOICES, MASKED = ["the movie", "hello", "in london"], "the [MASK] was very good"
TRANSFORMERS = """
import json, shutil, sys
from pathlib import Path
import torch, transformers
root, vocabulary, made = Path(sys.argv[1]), sys.argv[2], json.load(sys.stdin)
SIZES = dict(vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
             max_position_embeddings=64, initializer_range=0.4)
for number, (name, one) in enumerate(made["models"].items()):
    folder, config, kind = root / name, one["config"], getattr(transformers, one["kind"])
    if folder.exists():
        model = kind.from_pretrained(folder)
    else:
        torch.manual_seed(number)
        labels = config.pop("labels", None)
        if labels:
            config["id2label"] = dict(enumerate(labels))
            config["label2id"] = {label: i for i, label in enumerate(labels)}
        model = kind(transformers.BertConfig(**SIZES, **config))
        model.save_pretrained(folder)
        shutil.copyfile(vocabulary, folder / "vocab.txt")
        said = {"do_lower_case": False, "tokenizer_class": "BertTokenizer", "model_max_length": 512}
        (folder / "tokenizer_config.json").write_text(json.dumps(said))
    tokenizer, model = transformers.BertTokenizerFast.from_pretrained(folder), model.eval()
    def run(*texts, choices=False):
        rows = tokenizer(*texts, return_tensors="pt", padding=True)
        with torch.no_grad():
            return model(**({key: value[None] for key, value in rows.items()} if choices else rows))
    texts, pairs, said = made["texts"], made["pairs"], {}
    if one["kind"] == "BertForTokenClassification":
        pipe = transformers.pipeline("token-classification", model=model, tokenizer=tokenizer, device="cpu",
                                     aggregation_strategy="first")
        said["first"] = [pipe(text) for text in texts]
    elif one["kind"] == "BertForSequenceClassification":
        said["logits"] = [run(texts).logits.tolist(), run(texts, pairs).logits.tolist()]
    elif one["kind"] == "BertForMultipleChoice":
        said["scores"] = run([texts[0]] * 3, made["choices"], choices=True).logits.softmax(-1)[0].tolist()
    elif one["kind"] == "BertForMaskedLM":
        best = run([made["masked"]]).logits[0, 2].topk(5).indices.tolist()
        said["words"] = tokenizer.convert_ids_to_tokens(best)
    else:
        found = run(texts[:1], texts[1:2])
        said["logits"] = torch.stack([found.start_logits[0], found.end_logits[0]], 1).tolist()
    (root / (name + ".json")).write_text(json.dumps(said | {"texts": texts, "pairs": pairs}, default=float))
"""


def run_transformers(root: Path) -> None:
    """Make the models that are not in `root` yet, and write down beside each what transformers answers."""
    models = {n: {"kind": "BertForTokenClassification", "config": {"labels": labels}} for n, labels in SCHEMES.items()}
    models |= {n: {"kind": "BertForSequenceClassification", "config": config} for n, config in CLASSIFIERS.items()}
    models |= {n: {"kind": kind, "config": {}} for n, kind in OTHERS.items()}
    made = {"models": models, "texts": TEXTS, "pairs": PAIRS, "choices": CHOICES, "masked": MASKED}
    vocabulary = shared("cases/checkpoints/a01_ner_iob2/ckpt/vocab.txt")
    command = [sys.executable, "-c", TRANSFORMERS, str(root), str(vocabulary)]
    subprocess.run(command, input=json.dumps(made), text=True, check=True, capture_output=True, timeout=600)


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A folder of random models of transformers, and what it answers with them."""
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None:
        pytest.skip(reason="torch and transformers are not installed (extra peers)")
    root = tmp_path_factory.mktemp("published")
    run_transformers(root)
    return root


@pytest.fixture(scope="module")
def again(published, tmp_path_factory) -> Path:
    """The same models after they have been ours, and what transformers answers with them."""
    root = tmp_path_factory.mktemp("again")
    for name in (*SCHEMES, *CLASSIFIERS, *OTHERS):
        convert(published / name, root / "ours" / name, "keras_bert")
        convert(root / "ours" / name, root / name, "hf")
    run_transformers(root)
    return root


def answers(root: Path, name: str) -> dict:
    return json.loads((root / f"{name}.json").read_text("utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_entities_are_those_of_the_pipeline_there_and_back(scheme, published, again):
    said = answers(published, scheme)
    for folder in (published / scheme, again / "ours" / scheme, again / scheme):
        as_entities(folder, said)
    rows = [[e for row in answers(root, scheme)["first"] for e in row] for root in (published, again)]
    kinds, scores = ([[e[key] for e in row] for row in rows] for key in ("entity_group", "score"))
    assert kinds[0] == kinds[1]
    assert len(set(kinds[0])) >= min(2, len(set(SCHEMES[scheme]) - {"O"}) // 4)
    np.testing.assert_allclose(*scores, atol=1e-5)


def softmax(x):
    return np.exp(x) / np.exp(x).sum(1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


SCORES = {
    "two labels": lambda x: -np.sort(-softmax(x)),
    "natural language inference": lambda x: -np.sort(-softmax(x)),
    "one number": lambda x: x[:, 0],
    "several labels": sigmoid,
    "cross-encoder": lambda x: sigmoid(x)[:, 0],
    "cross-encoder of labels": sigmoid,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CLASSIFIERS))
def test_scores_of_texts_and_pairs(name, published, again):
    said = answers(published, name)
    np.testing.assert_allclose(answers(again, name)["logits"], said["logits"], atol=1e-5)
    for folder in (published / name, again / "ours" / name, again / name):
        for pairs, logits in zip((None, PAIRS), said["logits"], strict=True):
            if pairs is None and name.startswith("cross"):
                continue
            bert, wanted = Bert.load(folder), SCORES[name](np.array(logits))
            found = bert.arrays(TEXTS, pairs)["score" if wanted.ndim == 1 else "scores"]
            np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.slow
def test_choices_masked_words_and_answers(published, again):
    for root in (published, again):
        choice = Bert.load(root / "choice").predict(TEXTS[:1], choices=[CHOICES])
        np.testing.assert_allclose(choice[0]["scores"], answers(published, "choice")["scores"], atol=1e-5)
        masked = Bert.load(root / "masked words").predict([MASKED])
        assert masked[0]["masks"][0]["tokens"] == answers(published, "masked words")["words"]
        span = Bert.load(root / "answers")
        features = span.text(TEXTS[:1], TEXTS[1:2])
        logits = span.network({name: features[name] for name in ("token_ids", "segment_ids", "padding_mask")}).numpy()[
            0
        ]
        np.testing.assert_allclose(logits, answers(published, "answers")["logits"], atol=1e-5)


# === KerasHub itself, in a process of its own ===

KERAS_HUB = """
import json, sys
from pathlib import Path
import keras, keras_hub, numpy as np
root, texts = Path(sys.argv[1]), json.load(sys.stdin)
pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij", "fire", "flood", "the", "##s"]
hub = keras_hub.models
def backbone(dtype="float32"):
    keras.utils.set_random_seed(1)
    made = hub.BertBackbone(vocabulary_size=len(pieces), num_layers=2, num_heads=2, hidden_dim=16, intermediate_dim=32,
                            max_sequence_length=32, dtype=dtype)
    random = np.random.default_rng(0)
    for weight in made.weights:
        weight.assign(random.normal(1.0 if "gamma" in weight.path else 0.0, 0.3, weight.shape))
    return made
tokenizer = hub.BertTokenizer(vocabulary=pieces, lowercase=True, strip_accents=True)
preprocessor = hub.BertTextClassifierPreprocessor(tokenizer, sequence_length=24)
said = {}
def classifier(**options):
    made = hub.BertTextClassifier(backbone(options.pop("dtype", "float32")), preprocessor=preprocessor, **options)
    made.get_layer("logits").kernel.assign(np.random.default_rng(1).normal(0, 0.5, (16, options["num_classes"])))
    return made
for name, options in {
    "softmax": {"num_classes": 3, "activation": "softmax"},
    "sigmoid": {"num_classes": 3, "activation": "sigmoid"},
    "number": {"num_classes": 1},
    "logits": {"num_classes": 3},
}.items():
    made = classifier(**options)
    made.save(root / (name + ".keras"))
    made.save_to_preset(str(root / name))
    said[name] = made.predict(texts, verbose=0).tolist()
made = classifier(num_classes=3, activation="softmax", dtype="bfloat16")
made.save_to_preset(str(root / "bfloat16"))
said["bfloat16"] = made.predict(texts, verbose=0).astype("float32").tolist()
made = classifier(num_classes=3, activation="softmax")
made.quantize("int8")
made.save_to_preset(str(root / "int8"))
said["int8"] = made.predict(texts, verbose=0).tolist()
made = classifier(num_classes=3, activation="softmax")
made.save_to_preset(str(root / "shards"), max_shard_size=1e-5)
assert (root / "shards/model.weights.json").exists() and not (root / "shards/model.weights.h5").exists()
said["shards"] = said["softmax"]
made = hub.BertTextEmbedder(backbone(), pooling_mode="cls", normalize=False,
                            preprocessor=hub.BertTextEmbedderPreprocessor(tokenizer, sequence_length=24))
made.save_to_preset(str(root / "embedder"))
said["embedder"] = made.predict(texts, verbose=0).tolist()
(root / "said.json").write_text(json.dumps(said))
"""
HUB_TEXTS = ["the fire floods", "a b c", "flood"]


@pytest.fixture(scope="module")
def hub_models(tmp_path_factory) -> Path:
    if importlib.util.find_spec("keras_hub") is None:
        pytest.skip(reason="keras_hub is not installed (extra peers)")
    root = tmp_path_factory.mktemp("keras_hub")
    command = [sys.executable, "-c", KERAS_HUB, str(root)]
    subprocess.run(command, input=json.dumps(HUB_TEXTS), text=True, check=True, capture_output=True, timeout=600)
    return root


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("softmax", 1e-5),
        ("softmax.keras", 1e-5),
        ("sigmoid.keras", 1e-5),
        ("number.keras", 1e-5),
        ("number", 1e-5),
        ("bfloat16", 0.03),
        ("int8", 0.03),
        ("shards", 1e-5),
    ],
)
def test_tasks_of_keras_hub(name, tolerance, hub_models):
    wanted = np.array(answers(hub_models, "said")[name.removesuffix(".keras")])
    bert = Bert.load(hub_models / name)
    rows = bert.predict(HUB_TEXTS)
    found = [[row["scores"][label] for label in bert.labels] if bert.labels else [row["score"]] for row in rows]
    np.testing.assert_allclose(found, wanted, atol=tolerance)
    assert np.ptp(wanted, axis=0).max() > 5 * tolerance, "texts differ by more than the tolerance"


@pytest.mark.slow
def test_an_embedder_of_keras_hub(hub_models):
    bert = Bert.load(hub_models / "embedder")
    found = [row["embedding"] for row in bert.predict(HUB_TEXTS)]
    np.testing.assert_allclose(found, answers(hub_models, "said")["embedder"], atol=1e-5)


def test_an_archive_of_keras_that_is_none(tmp_path):
    (tmp_path / "a.keras").write_bytes(b"PK\x03\x04")
    with pytest.raises(CheckpointError, match=r"a\.keras: broken or not a file of Keras"):
        Bert.load(tmp_path / "a.keras")
    with zipfile.ZipFile(tmp_path / "b.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", bytes(1 << 20))
    with pytest.raises(CheckpointError, match=r"b\.keras: unpacks to more than 64 times its size"):
        Bert.load(tmp_path / "b.keras")
    with zipfile.ZipFile(tmp_path / "c.keras", "w") as archive:
        archive.writestr("assets/../../x", b"")
    with pytest.raises(CheckpointError, match=r"c\.keras: names files elsewhere"):
        Bert.load(tmp_path / "c.keras")
    with pytest.raises(CheckpointError, match=r"holds no checkpoint.*; name what is in it: .*a\.keras"):
        Bert.load(tmp_path)
