"""Encoders of transformers with random weights, and what they compute; `test_families` compares ours with them.

Run as a program, since PyTorch must come into a process before TensorFlow: writes FOLDER/NAME.npz with the weights
under their names there, `token_ids`, `segment_ids`, `padding_mask` and `hidden`, the last hidden state.

    python families.py FOLDER

Some are in transformers 4 alone. What 4.57.6 computes of them is kept in families_of_4/, made by

    python families.py families_of_4 old
"""

import sys
from pathlib import Path

import numpy as np

SIZES = {"vocab_size": 60, "num_attention_heads": 2, "max_position_embeddings": 32, "layer_norm_eps": 1e-12}
WIDE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, "pad_token_id": 0}
PLAIN = SIZES | WIDE
OFF = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
MODELS = {
    "albert": ("Albert", PLAIN | OFF | {"embedding_size": 8, "hidden_act": "gelu_new"}),
    "albert_groups": ("Albert", PLAIN | OFF | {"embedding_size": 8, "num_hidden_groups": 2, "hidden_act": "gelu_new"}),
    "electra": ("Electra", PLAIN | OFF | {"embedding_size": 8}),
    "electra_base": ("Electra", PLAIN | OFF | {"embedding_size": 16}),
    "distilbert": (
        "DistilBert",
        {"vocab_size": 60, "max_position_embeddings": 32, "n_layers": 3, "n_heads": 2, "dim": 16, "hidden_dim": 24},
    ),
    "roberta_pre_layer_norm": ("RobertaPreLayerNorm", PLAIN | OFF | {"type_vocab_size": 2}),
    "megatron": ("MegatronBert", PLAIN | OFF),
    "roformer": ("RoFormer", PLAIN | OFF | {"embedding_size": 8}),
    "roformer_values": ("RoFormer", PLAIN | OFF | {"rotary_value": True}),
    "modernbert": (
        "ModernBert",
        {**PLAIN, "local_attention": 6, "global_attn_every_n_layers": 3, "norm_eps": 1e-5, "hidden_activation": "gelu"}
        | {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3},
    ),
}
"""Name -> class without `Model` and `Config`, and the fields of its config."""
SMALL = PLAIN | OFF | {"vocab_size": 20, "num_hidden_layers": 2, "max_position_embeddings": 16}
OLD = {
    "nezha": ("Nezha", SMALL | {"max_relative_position": 4}),
    "relative_key": ("Bert", SMALL | {"position_embedding_type": "relative_key"}),
    "relative_key_query": ("Bert", SMALL | {"position_embedding_type": "relative_key_query"}),
}


def main(folder: str, models: dict) -> None:
    import torch
    import transformers

    draw = np.random.default_rng(0)
    mask = np.arange(12) < np.array([[12], [9], [4]])
    ids = draw.integers(5, 20, (3, 12)) * mask
    segments = (np.arange(12) > 5) * mask * 1
    for name, (kind, fields) in models.items():
        torch.manual_seed(1)
        config = getattr(transformers, f"{kind}Config")(**fields)
        config._attn_implementation = "eager"
        model = getattr(transformers, f"{kind}Model")(config).eval()
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "embed_positions" in key or "relative_positions" in key:  # tables of sines
                    continue
                parameter.copy_(torch.randn_like(parameter) * 0.3 + (parameter.std() == 0) * parameter)
            given = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
            if kind not in ("DistilBert", "ModernBert"):
                given["token_type_ids"] = torch.tensor(segments)
            if kind == "RobertaPreLayerNorm":
                given["position_ids"] = torch.arange(12)[None]  # not from the padding index on
            hidden = model(**given).last_hidden_state.numpy()
        weights = {key: value.numpy() for key, value in model.state_dict().items() if value.is_floating_point()}
        np.savez_compressed(
            Path(folder) / f"{name}.npz",
            token_ids=ids,
            segment_ids=segments if "token_type_ids" in given else 0 * ids,
            padding_mask=mask,
            hidden=hidden,
            **weights,
        )


if __name__ == "__main__":
    main(sys.argv[1], OLD if sys.argv[2:] else MODELS)
