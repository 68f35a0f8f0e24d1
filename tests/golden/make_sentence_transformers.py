"""Small directories of sentence-transformers, and what that library gives for them: `sentence_transformers.npz`.

    python tests/golden/make_sentence_transformers.py     # in an environment with sentence-transformers 6.2.0

`write(name, folder)` makes a directory of random weights, the same each time, so the tests make it anew and compare
with what was recorded.
"""

import json
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

RECORDED = Path(__file__).with_suffix("").with_name("sentence_transformers.npz")
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", "é", ":", ".", "!"]
PIECES += ["##" + c for c in "abcdefghijklmnopqrstuvwxyzé"] + ["fire", "cafe", "café", "lake", "near", "query", "the"]
TEXTS = ["fire near the lake!", "a", "Café", "the fire . the lake . the fire near the lake . a b c d e f g", ""]
WIDTH, LAYERS = 16, 2
OLD = "pooling_mode_"
TANH, IDENTITY = "torch.nn.modules.activation.Tanh", "torch.nn.modules.linear.Identity"

Case = dict[str, Any]
MEAN = {"word_embedding_dimension": WIDTH, OLD + "cls_token": False, OLD + "mean_tokens": True}
CASES: dict[str, Case] = {
    "mean": {"pooling": MEAN, "normalize": True, "length": 12},
    "cls": {"pooling": MEAN | {OLD + "cls_token": True, OLD + "mean_tokens": False}},
    "joined": {"pooling": MEAN | {OLD + "cls_token": True, OLD + "max_tokens": True}, "normalize": True},
    "weighted": {"pooling": MEAN | {OLD + "mean_tokens": False, OLD + "weightedmean_tokens": True}},
    "none_said": {"pooling": MEAN | {OLD + "mean_tokens": False}},
    "last": {"pooling": {"embedding_dimension": WIDTH, "pooling_mode": "lasttoken"}},
    "new_order": {"pooling": {"embedding_dimension": WIDTH, "pooling_mode": ["mean_sqrt_len_tokens", "cls"]}},
    "dense": {"pooling": MEAN, "dense": [(24, True, TANH), (8, False, IDENTITY)], "normalize": True},
    "dense_by_default": {"pooling": MEAN, "dense": [(8, True, None)]},
    "old_layout": {"pooling": MEAN, "transformer": "0_BERT", "normalize": True, "length": 12},
    "prompts": {
        "pooling": MEAN,
        "normalize": True,
        "prompts": {"prompts": {"query": "query: ", "document": "the lake: "}, "default_prompt_name": "query"},
    },
    "passages": {"pooling": MEAN, "prompts": {"prompts": {"passage": "the lake: "}}},
    "default_prompt": {"pooling": MEAN, "prompts": {"prompts": {"x": "the "}, "default_prompt_name": "x"}},
    "lower_cased": {"pooling": MEAN, "sentence": {"do_lower_case": True}, "tokenizer": {"do_lower_case": False}},
}


def write(name: str, folder: Path) -> Path:
    """The directory of a case."""
    case, random = CASES[name], np.random.default_rng(zlib.crc32(name.encode()))
    modules, base = [("Transformer", case.get("transformer", ""))], folder / case.get("transformer", "")
    base.mkdir(parents=True, exist_ok=True)
    write_transformer(base, case, random)
    write_module(folder, modules, "Pooling", case["pooling"])
    width = WIDTH * sum(value is True for key, value in case["pooling"].items() if key.startswith(OLD)) or WIDTH
    for units, bias, activation in case.get("dense", ()):
        said = {"in_features": width, "out_features": units, "bias": bias}
        path = write_module(
            folder, modules, "Dense", said | ({"activation_function": activation} if activation else {})
        )
        tensors = {"linear.weight": random.normal(0, 0.3, (units, width)).astype("float32")}
        tensors |= {"linear.bias": random.normal(0, 0.3, units).astype("float32")} if bias else {}
        save_file(tensors, path / "model.safetensors")
        width = units
    if case.get("normalize"):
        modules.append(("Normalize", f"{len(modules)}_Normalize"))
    rows = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(modules)
    ]
    write_json(folder / "modules.json", rows)
    if "prompts" in case:
        write_json(folder / "config_sentence_transformers.json", case["prompts"])
    return folder


def write_transformer(folder: Path, case: Case, random: np.random.Generator) -> None:
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": len(PIECES),
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    }
    write_json(folder / "config.json", config)
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n", "utf-8")
    tokenizer = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 40}
    write_json(folder / "tokenizer_config.json", tokenizer | case.get("tokenizer", {}))
    length = {"max_seq_length": case["length"]} if "length" in case else {}
    write_json(folder / "sentence_bert_config.json", {"do_lower_case": False} | length | case.get("sentence", {}))

    def normal(*shape: int) -> np.ndarray:
        return random.normal(0, 0.3, shape).astype("float32")

    tables = {"word": len(PIECES), "position": 64, "token_type": 2}
    tensors = {f"embeddings.{n}_embeddings.weight": normal(rows, WIDTH) for n, rows in tables.items()}
    sizes = {"attention.self.query": (16, 16), "attention.self.key": (16, 16), "attention.self.value": (16, 16)}
    sizes |= {"attention.output.dense": (16, 16), "intermediate.dense": (32, 16), "output.dense": (16, 32)}
    dense = {f"encoder.layer.{i}.{name}": size for i in range(LAYERS) for name, size in sizes.items()}
    for name, size in (dense | {"pooler.dense": (16, 16)}).items():
        tensors |= {f"{name}.weight": normal(*size), f"{name}.bias": normal(size[0])}
    norms = [f"encoder.layer.{i}.{n}" for i in range(LAYERS) for n in ("attention.output", "output")]
    for name in ("embeddings", *norms):
        tensors |= {f"{name}.LayerNorm.weight": 1 + normal(WIDTH), f"{name}.LayerNorm.bias": normal(WIDTH)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def write_module(folder: Path, modules: list[tuple[str, str]], kind: str, config: dict[str, Any]) -> Path:
    path = folder / f"{len(modules)}_{kind}"
    modules.append((kind, path.name))
    path.mkdir()
    write_json(path / "config.json", config)
    return path


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")


def record() -> dict[str, np.ndarray]:
    """What sentence-transformers gives: vectors of texts, of queries and of documents."""
    from sentence_transformers import SentenceTransformer

    found = {}
    for name in CASES:
        with tempfile.TemporaryDirectory() as temporary:
            model = SentenceTransformer(str(write(name, Path(temporary))), device="cpu")
            ways = {"": model.encode, "query": model.encode_query, "document": model.encode_document}
            for way, encode in ways.items():
                found[f"{name}:{way}"] = encode(TEXTS, convert_to_numpy=True).astype("float32")
            if name == "passages":
                found[f"{name}:document"] = model.encode(TEXTS, prompt_name="passage").astype("float32")
    return found


if __name__ == "__main__":
    np.savez_compressed(sys.argv[1] if len(sys.argv) > 1 else RECORDED, **record())
