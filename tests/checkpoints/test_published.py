"""Heads that others have trained, used as they are: the answers are those of the library that they come from."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import shared

from keras_bert import Bert
from keras_bert.config import HeadConfig
from keras_bert.conversion import convert
from keras_bert.errors import CheckpointError, ConfigError
from keras_bert.tags import order_of, read_tags

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
        (["I-a", "I-b", "O"], ("a", "b"), (2, -1, 0, -1, 1)),
        (["O", "a", "b"], ("a", "b"), (0, -1, 1, -1, 2)),
        (["NOUN", "VERB"], ("NOUN", "VERB"), (-1, -1, 0, -1, 1)),
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


def test_labels_are_the_types_of_the_tags():
    assert HeadConfig(task="tag", labels=["a"], tags=["O", "S-a"]).width == 2
    with pytest.raises(ConfigError, match=r"labels must be the types of the tags, \['a'\]"):
        HeadConfig(task="tag", labels=["b"], tags=["O", "S-a"])


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
