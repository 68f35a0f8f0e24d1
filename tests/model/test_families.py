"""The arithmetic of BERT's relatives beside transformers: the last hidden state of models with random weights."""

import re
import subprocess
import sys
from pathlib import Path

import families
import numpy as np
import pytest

from keras_bert.config import EncoderConfig
from keras_bert.model.encoder import Encoder

SIZES = {"vocab_size": 60, "num_layers": 4, "num_heads": 2, "hidden_dim": 16, "intermediate_dim": 24}
SIZES |= {"max_positions": 32, "activation": "gelu", "hidden_dropout": 0.0, "attention_dropout": 0.0}
PRE = {"norm_place": "pre"}
SMALL = {"vocab_size": 20, "num_layers": 2, "max_positions": 16}
CONFIGS = {
    "albert": {"embedding_dim": 8, "layer_groups": 1, "activation": "gelu_tanh"},
    "albert_groups": {"embedding_dim": 8, "layer_groups": 2, "activation": "gelu_tanh"},
    "electra": {"embedding_dim": 8},
    "electra_base": {},
    "distilbert": {"num_layers": 3, "num_segments": 1},
    "roberta_pre_layer_norm": PRE,
    "megatron": PRE | {"embedding_norm": False},
    "roformer": {"embedding_dim": 8, "positions": "rotary"},
    "roformer_values": {"positions": "rotary", "rotary_value": True},
    "nezha": SMALL | {"positions": "relative_sinusoidal", "max_distance": 4},
    "relative_key": SMALL | {"positions": "relative_key"},
    "relative_key_query": SMALL | {"positions": "relative_key_query"},
    "modernbert": PRE
    | {"num_segments": 1, "positions": "rotary_half", "attention_mask": "local", "local_window": 6, "global_every": 3}
    | {"global_rotary_base": 160000.0, "feed_forward": "gated", "use_bias": False, "norm_bias": False}
    | {"first_norm": False, "layer_norm_epsilon": 1e-5},
}
BERT = [
    ("encoder/tokens", "embeddings.word_embeddings"),
    (r"encoder/positions/layer_(\d+)", r"encoder.layer.\1.attention.self.distance_embedding"),
    ("encoder/positions", "embeddings.position_embeddings"),
    ("encoder/segments", "embeddings.token_type_embeddings"),
    ("encoder/norm", "embeddings.LayerNorm"),
    ("encoder/projection", "embeddings_project"),
    (r"encoder/block_(\d+)/attention/(query|key|value)", r"encoder.layer.\1.attention.self.\2"),
    (r"encoder/block_(\d+)/attention/output", r"encoder.layer.\1.attention.output.dense"),
    (r"encoder/block_(\d+)/attention_norm", r"encoder.layer.\1.attention.output.LayerNorm"),
    (r"encoder/block_(\d+)/feed_forward/inner", r"encoder.layer.\1.intermediate.dense"),
    (r"encoder/block_(\d+)/feed_forward/outer", r"encoder.layer.\1.output.dense"),
    (r"encoder/block_(\d+)/feed_forward_norm", r"encoder.layer.\1.output.LayerNorm"),
]
GROUP = r"encoder.albert_layer_groups.\1.albert_layers.0."
OTHERS = {
    "Albert": [
        ("encoder/projection", "encoder.embedding_hidden_mapping_in"),
        (r"encoder/block_(\d+)/attention/output", GROUP + "attention.dense"),
        (r"encoder/block_(\d+)/attention/(\w+)", GROUP + r"attention.\2"),
        (r"encoder/block_(\d+)/attention_norm", GROUP + "attention.LayerNorm"),
        (r"encoder/block_(\d+)/feed_forward/inner", GROUP + "ffn"),
        (r"encoder/block_(\d+)/feed_forward/outer", GROUP + "ffn_output"),
        (r"encoder/block_(\d+)/feed_forward_norm", GROUP + "full_layer_layer_norm"),
    ],
    "DistilBert": [
        (r"encoder/block_(\d+)/attention/output", r"transformer.layer.\1.attention.out_lin"),
        (r"encoder/block_(\d+)/attention/(\w)\w+", r"transformer.layer.\1.attention.\2_lin"),
        (r"encoder/block_(\d+)/attention_norm", r"transformer.layer.\1.sa_layer_norm"),
        (r"encoder/block_(\d+)/feed_forward/inner", r"transformer.layer.\1.ffn.lin1"),
        (r"encoder/block_(\d+)/feed_forward/outer", r"transformer.layer.\1.ffn.lin2"),
        (r"encoder/block_(\d+)/feed_forward_norm", r"transformer.layer.\1.output_layer_norm"),
    ],
    "RobertaPreLayerNorm": [
        ("encoder/final_norm", "LayerNorm"),
        (r"encoder/block_(\d+)/attention_norm", r"encoder.layer.\1.attention.LayerNorm"),
        (r"encoder/block_(\d+)/feed_forward_norm", r"encoder.layer.\1.intermediate.LayerNorm"),
    ],
    "MegatronBert": [
        ("encoder/final_norm", "encoder.ln"),
        (r"encoder/block_(\d+)/attention_norm", r"encoder.layer.\1.attention.ln"),
        (r"encoder/block_(\d+)/feed_forward_norm", r"encoder.layer.\1.ln"),
    ],
    "ModernBert": [
        ("encoder/tokens", "embeddings.tok_embeddings"),
        ("encoder/norm", "embeddings.norm"),
        ("encoder/final_norm", "final_norm"),
        (r"encoder/block_(\d+)/attention/output", r"layers.\1.attn.Wo"),
        (r"encoder/block_(\d+)/attention/\w+", r"layers.\1.attn.Wqkv"),
        (r"encoder/block_(\d+)/attention_norm", r"layers.\1.attn_norm"),
        (r"encoder/block_(\d+)/feed_forward/inner", r"layers.\1.mlp.Wi"),
        (r"encoder/block_(\d+)/feed_forward/outer", r"layers.\1.mlp.Wo"),
        (r"encoder/block_(\d+)/feed_forward_norm", r"layers.\1.mlp_norm"),
    ],
}


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    subprocess.run([sys.executable, families.__file__, str(folder)], check=True, timeout=600)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", families.MODELS)
def test_the_last_hidden_state_is_that_of_transformers(name, there):
    check(name, families.MODELS[name][0], dict(np.load(there / f"{name}.npz")))


@pytest.mark.parametrize("name", families.OLD)
def test_the_last_hidden_state_is_that_of_transformers_4(name):
    kept = Path(families.__file__).parent / "families_of_4" / f"{name}.npz"
    check(name, families.OLD[name][0], dict(np.load(kept)))


def check(name, kind, found):
    """Fill our encoder with their weights, each of which must have a place, and compare what both compute."""
    features = {key: found.pop(key) for key in ("token_ids", "segment_ids", "padding_mask")}
    wanted, read = found.pop("hidden"), set()
    encoder = Encoder(EncoderConfig(**SIZES | CONFIGS[name]))
    for weight in encoder.weights:
        if "seed" in weight.path:
            continue
        layer, _, end = weight.path.rpartition("/")
        rules = [*OTHERS.get(kind, ()), *BERT]
        pattern, theirs = next((p, t) for p, t in rules if re.fullmatch(p, layer))
        key = re.sub(pattern, theirs, layer) + (".bias" if end in ("bias", "beta") else ".weight")
        if key not in found and layer == "encoder/segments":
            weight.assign(np.zeros(weight.shape))
            continue
        value = found[key]
        read.add(key)
        if key.endswith("Wqkv.weight"):
            value = np.split(value, 3)[("query", "key", "value").index(layer.rpartition("/")[2])]
        weight.assign(value.T if end == "kernel" else value)
    unread = ("pooler", "encoder.embed_positions", *(["embeddings.position"] if "relative" in name else []))
    assert not [key for key in found if key not in read and not key.startswith(unread)]
    hidden = np.asarray(encoder(features)["sequence"])
    mask = features["padding_mask"][..., None]
    np.testing.assert_allclose(hidden * mask, wanted * mask, atol=1e-5)
