"""The same numbers as other implementations: Hugging Face's BertModel and KerasHub's BertBackbone.

The model is all-MiniLM-L6-v2 (6 layers, 384 wide, 12 heads), trained and real. In the default suite stand
recorded outputs of Hugging Face (`golden/make_minilm.py` writes them) and KerasHub on a few texts; the slow
tests run both on 100 real texts and print the largest difference, and fine-tune with Hugging Face's model and
PyTorch's AdamW step by step.
"""

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import shared

from keras_bert import Bert, OptimizerConfig, TrainConfig
from keras_bert.checkpoints.checkpoints import load, open_checkpoint
from keras_bert.config import HeadConfig, TextConfig
from keras_bert.conversion import convert
from keras_bert.data.batches import batches_at_random
from keras_bert.tasks.network import Network
from keras_bert.text.text import Text
from keras_bert.training.optimizers import schedule

TOLERANCE = 1e-5
GOLDEN = Path(__file__).parents[1] / "golden" / "minilm.npz"


def network_of(folder: Path, **changes) -> Network:
    found = open_checkpoint(folder)
    assert found.encoder.activation == "gelu", "Hugging Face's gelu is the exact one"
    network = Network(dataclasses.replace(found.encoder, **changes), HeadConfig(labels=("a", "b")))
    report = load(network, found)
    assert report.new == ("head/logits/kernel", "head/logits/bias")
    assert report.unused == ("embeddings.position_ids",)
    return network


@pytest.fixture(scope="module")
def network(minilm) -> Network:
    return network_of(minilm)


@pytest.fixture(scope="module")
def tanh_network(minilm) -> Network:
    """KerasHub computes the tanh form of GELU under the name "gelu"."""
    return network_of(minilm, activation="gelu_tanh")


def golden() -> list[dict[str, np.ndarray]]:
    stored = dict(np.load(GOLDEN))
    kinds = ("token_ids", "segment_ids", "places", "hidden", "pooled")
    return [{"text": text, **{kind: stored[f"{i}:{kind}"] for kind in kinds}} for i, text in enumerate(stored["texts"])]


def padded(rows: list[np.ndarray], width: int | None = None) -> np.ndarray:
    width = width or max(map(len, rows))
    return np.stack([np.pad(row, (0, width - len(row))) for row in rows])


def as_batch(cases: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    token_ids = padded([case["token_ids"] for case in cases])
    return {
        "token_ids": token_ids,
        "segment_ids": padded([case["segment_ids"] for case in cases]),
        "padding_mask": token_ids != 0,
    }


# === Recorded outputs of Hugging Face ===


def test_the_recorded_file_is_small_and_told_by_its_script():
    assert GOLDEN.stat().st_size <= 60_000
    cases = golden()
    assert len(cases) == 8
    assert max(len(case["token_ids"]) for case in cases) > 100
    assert any(case["segment_ids"].any() for case in cases)
    assert all(case["hidden"].dtype == np.float32 for case in cases)


@pytest.mark.parametrize("together", [True, False], ids=["one batch", "row by row"])
def test_equals_recorded_outputs_of_hugging_face(network, together):
    cases = golden()
    worst = {"hidden": 0.0, "pooled": 0.0}
    for some in [cases] if together else [[case] for case in cases]:
        hidden = network.encoder(as_batch(some))["sequence"]
        pooled = np.asarray(network.head.pooler(hidden))
        for row, case in enumerate(some):
            got = np.asarray(hidden)[row, case["places"]]
            worst["hidden"] = max(worst["hidden"], float(np.abs(got - case["hidden"]).max()))
            worst["pooled"] = max(worst["pooled"], float(np.abs(pooled[row] - case["pooled"]).max()))
    print(f"recorded Hugging Face, 8 texts: max difference {worst}")
    assert max(worst.values()) <= TOLERANCE


def test_the_other_gelu_would_be_seen(tanh_network):
    case = golden()[1]
    hidden = np.asarray(tanh_network.encoder(as_batch([case]))["sequence"])[0, case["places"]]
    assert np.abs(hidden - case["hidden"]).max() > 5e-4


def test_raw_text_becomes_the_recorded_ids(minilm):
    text = Text(open_checkpoint(minilm).vocabulary, TextConfig(max_seq_length=256))
    for case in golden():
        first, second = case["text"].tolist()
        features = text([first], [second]) if second else text([first])
        assert features["token_ids"].numpy()[0].tolist() == case["token_ids"].tolist(), first
        assert features["segment_ids"].numpy()[0].tolist() == case["segment_ids"].tolist(), first


# === KerasHub ===


def keras_hub_difference(tanh_network: Network, minilm: Path, batches: list[dict[str, np.ndarray]]) -> float:
    import keras_hub

    theirs = keras_hub.models.BertBackbone.from_preset(str(minilm))
    worst = 0.0
    for batch in batches:
        wanted = np.asarray(theirs({**batch, "padding_mask": batch["padding_mask"].astype("int32")})["sequence_output"])
        got = np.asarray(tanh_network.encoder(batch)["sequence"])
        worst = max(worst, float(np.abs(got - wanted)[batch["padding_mask"]].max()))
    return worst


def test_equals_keras_hub_on_a_few_texts(tanh_network, minilm):
    difference = keras_hub_difference(tanh_network, minilm, [as_batch(golden())])
    print(f"KerasHub, 8 texts: max difference {difference:.2e}")
    assert difference <= TOLERANCE


@pytest.mark.slow
def test_equals_keras_hub_on_100_texts(tanh_network, minilm):
    text = Text(open_checkpoint(minilm).vocabulary, TextConfig(max_seq_length=256))
    texts = real_texts()
    batches = []
    for start in range(0, len(texts), 10):
        features = text(texts[start : start + 10])
        batches.append({k: features[k].numpy() for k in ("token_ids", "segment_ids", "padding_mask")})
    difference = keras_hub_difference(tanh_network, minilm, batches)
    tokens = sum(int(batch["padding_mask"].sum()) for batch in batches)
    print(f"KerasHub, {len(texts)} texts, {tokens} tokens: max difference {difference:.2e}")
    assert difference <= TOLERANCE


# === Hugging Face, live ===


def real_texts() -> list[str]:
    """37 first and 13 second to fifth paragraphs of Wikipedia and 50 tweets, in turn, so that batches mix lengths."""
    with open(shared("data/raw_en/enwiki_00.jsonl"), encoding="utf-8") as file:
        articles = [json.loads(line)["text"].split("\n\n") for line in file]
    openings = [article[1] for article in articles] + [" ".join(article[2:6]) for article in articles[:13]]
    with open(shared("data/disaster_tweets/train.csv"), encoding="utf-8", newline="") as file:
        tweets = [row["text"] for _, row in zip(range(50), csv.DictReader(file), strict=False)]
    texts = [text for pair in zip(openings, tweets, strict=True) for text in pair]
    assert len(texts) == 100
    return texts


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_equals_hugging_face_on_100_texts(network, minilm):
    torch = pytest.importorskip("torch", reason="torch is not installed (make proofs installs it)")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (make proofs)")
    tokenizer = transformers.BertTokenizer.from_pretrained(minilm)
    theirs = transformers.BertModel.from_pretrained(minilm, attn_implementation="eager").eval().float()
    worst, pooled_worst, tokens, longest = 0.0, 0.0, 0, 0
    texts = real_texts()
    for start in range(0, len(texts), 10):
        batch = tokenizer(texts[start : start + 10], padding=True, truncation=True, max_length=256, return_tensors="pt")
        with torch.no_grad():
            wanted = theirs(**batch)
        features = {
            "token_ids": batch["input_ids"].numpy(),
            "segment_ids": batch["token_type_ids"].numpy(),
            "padding_mask": batch["attention_mask"].numpy() == 1,
        }
        hidden = network.encoder(features)["sequence"]
        valid = features["padding_mask"]
        worst = max(worst, float(np.abs(np.asarray(hidden) - wanted.last_hidden_state.numpy())[valid].max()))
        pooled = np.asarray(network.head.pooler(hidden))
        pooled_worst = max(pooled_worst, float(np.abs(pooled - wanted.pooler_output.numpy()).max()))
        tokens, longest = tokens + int(valid.sum()), max(longest, int(valid.sum(1).max()))
    print(
        f"Hugging Face eager, {len(texts)} texts, {tokens} tokens, rows up to {longest}: "
        f"max difference {worst:.2e}, pooled {pooled_worst:.2e}"
    )
    assert longest == 256
    assert worst <= TOLERANCE
    assert pooled_worst <= TOLERANCE


def as_theirs(bert: Bert, folder: Path, transformers):
    """The model with its head, as Hugging Face reads it."""
    bert.save(folder / "ours")
    convert(folder / "ours", folder / "theirs", "hf")
    kind = transformers.BertForSequenceClassification
    return kind.from_pretrained(folder / "theirs", attn_implementation="eager")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_run_of_fine_tuning_equals_hugging_face(minilm, tmp_path):
    """The same rows in the same order, no dropout: 41 steps with warm-up, decay and clipping, the last one short."""
    torch = pytest.importorskip("torch", reason="torch is not installed (make proofs installs it)")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (make proofs)")
    start = tmp_path / "start"
    shutil.copytree(minilm, start)
    settings = json.loads((start / "config.json").read_text("utf-8"))
    settings |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (start / "config.json").write_text(json.dumps(settings), "utf-8")
    with open(shared("data/disaster_tweets/train.csv"), encoding="utf-8", newline="") as file:
        rows = [row for _, row in zip(range(750), csv.DictReader(file), strict=False)]
    texts, labels = [row["text"] for row in rows], [int(row["target"]) for row in rows]
    count, size = 650, 16
    bert = Bert.from_checkpoint(start, labels=["0", "1"], dropout=0.0)
    theirs, untrained = (as_theirs(bert, tmp_path / name, transformers) for name in ("trained", "untrained"))

    # === Ours ===
    config, rate = TrainConfig(1, train_batch_size=size, seed=3), OptimizerConfig()
    held = texts[count:], labels[count:]
    bert.fit(texts[:count], labels[:count], None, held, config, rate, progress=None)

    # === Theirs ===
    tokenizer = transformers.BertTokenizer.from_pretrained(minilm)

    def read(chosen):
        batch = [texts[i] for i in chosen]
        return tokenizer(batch, padding=True, truncation=True, max_length=128, return_tensors="pt")

    named, still = list(theirs.named_parameters()), ("bias", "LayerNorm.weight")
    groups = [
        {"params": [p for n, p in named if not n.endswith(still)], "weight_decay": rate.weight_decay},
        {"params": [p for n, p in named if n.endswith(still)], "weight_decay": 0.0},
    ]
    optimizer, norms = torch.optim.AdamW(groups, eps=rate.epsilon), []
    order = batches_at_random(count, size, config.seed, 0)
    rates = schedule(rate, len(order))
    theirs.train()
    for step, batch in enumerate(order):
        for group in optimizer.param_groups:
            group["lr"] = float(rates(step))
        theirs(**read(batch), labels=torch.tensor([labels[i] for i in batch])).loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(theirs.parameters(), rate.clip_norm)))
        optimizer.step()
        optimizer.zero_grad()

    # === Together ===
    ours = as_theirs(bert, tmp_path / "ended", transformers).state_dict()
    before, after = untrained.state_dict(), theirs.state_dict()
    moved = sum(float(((after[name] - before[name]) ** 2).sum()) for name in after) ** 0.5
    apart = sum(float(((after[name] - ours[name]) ** 2).sum()) for name in after) ** 0.5
    with torch.no_grad():
        wanted = theirs.eval()(**read(range(count, len(texts)))).logits.softmax(-1)[:, 1].numpy()
    scores = np.array([answer["scores"]["1"] for answer in bert.predict(held[0])])
    print(
        f"Hugging Face and AdamW of PyTorch, {len(order)} steps, {sum(norm > 1 for norm in norms)} clipped: weights "
        f"moved by {moved:.3f}, apart {apart:.1e}; {len(scores)} scores from {scores.min():.2f} to {scores.max():.2f}, "
        f"apart {np.abs(scores - wanted).max():.1e}"
    )
    assert moved > 0.1
    assert apart <= 0.01 * moved
    assert np.ptp(scores) > 0.2
    assert np.abs(scores - wanted).max() <= 1e-3
