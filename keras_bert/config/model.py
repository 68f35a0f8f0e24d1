"""The encoder: its sizes and features. `SIZES` holds the released models."""

import dataclasses
from dataclasses import dataclass

from keras_bert.config.base import require

FEATURES = ("token_ids", "segment_ids", "padding_mask", "positions", "pack_ids")
"""Encoder inputs, int or bool `[B, T]`; only `token_ids` is required. With `pack_ids`, a position sees only those with
the same id; see `masks.packed`."""


@dataclass(frozen=True)
class EncoderConfig:
    """Shape and arithmetic of a BERT encoder (Devlin et al. 2019, https://arxiv.org/abs/1810.04805).

    `activation` is "gelu" (exact, erf) or "gelu_tanh" (the approximation that google-research/bert, Model
    Garden and KerasHub compute under the name "gelu"). A checkpoint's origin decides which is right, so
    the importer sets it. `max_positions` bounds the sequence length of learned absolute positions.

    `head_dim` is the size of an attention head; 0 means `hidden_dim / num_heads`. `layer_heads` and `layer_units` give
    each layer its own number of heads and width of the feed-forward; empty means `num_heads` and `intermediate_dim`
    everywhere. `local_window` is for masks that let a position see that many tokens around it; 0 means all.
    """

    vocab_size: int = 30522
    num_layers: int = 12
    num_heads: int = 12
    hidden_dim: int = 768
    intermediate_dim: int = 3072
    max_positions: int = 512
    num_segments: int = 2
    activation: str = "gelu_tanh"
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    layer_norm_epsilon: float = 1e-12
    initializer_range: float = 0.02
    pad_token_id: int = 0
    positions: str = "absolute"
    attention_mask: str = "bidirectional"
    head_dim: int = 0
    layer_heads: tuple[int, ...] = ()
    layer_units: tuple[int, ...] = ()
    local_window: int = 0

    def __post_init__(self) -> None:
        for name in ("layer_heads", "layer_units"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        sizes = ("vocab_size", "num_layers", "num_heads", "hidden_dim", "intermediate_dim")
        for name in (*sizes, "max_positions", "num_segments"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("head_dim", "local_window"):
            require(getattr(self, name) >= 0, f"{name} must be at least 0, got {getattr(self, name)}")
        require(
            bool(self.head_dim) or self.hidden_dim % self.num_heads == 0,
            f"hidden_dim {self.hidden_dim} is not a multiple of num_heads {self.num_heads}, and there is no head_dim",
        )
        for name in ("layer_heads", "layer_units"):
            sizes = getattr(self, name)
            require(
                len(sizes) in (0, self.num_layers) and all(type(size) is int and size >= 1 for size in sizes),
                f"{name} must be a number of at least 1 for each of the {self.num_layers} layers, got {list(sizes)}",
            )
        for name in ("hidden_dropout", "attention_dropout"):
            require(0 <= getattr(self, name) < 1, f"{name} must be in [0, 1), got {getattr(self, name)}")

    def layer(self, i: int) -> "EncoderConfig":
        """The sizes of layer i: `num_heads`, `head_dim` and `intermediate_dim` of its own, one layer in all."""
        return dataclasses.replace(
            self,
            num_layers=1,
            num_heads=self.layer_heads[i] if self.layer_heads else self.num_heads,
            head_dim=self.head_dim or self.hidden_dim // self.num_heads,
            intermediate_dim=self.layer_units[i] if self.layer_units else self.intermediate_dim,
            layer_heads=(),
            layer_units=(),
        )


def _bert(num_layers: int, hidden_dim: int, vocab_size: int = 30522) -> EncoderConfig:
    return EncoderConfig(
        vocab_size=vocab_size,
        num_layers=num_layers,
        hidden_dim=hidden_dim,
        num_heads=hidden_dim // 64,
        intermediate_dim=4 * hidden_dim,
    )


SIZES: dict[str, EncoderConfig] = {
    "tiny": _bert(2, 128),
    "mini": _bert(4, 256),
    "small": _bert(4, 512),
    "medium": _bert(8, 512),
    "base": _bert(12, 768),
    "large": _bert(24, 1024),
    "base-cased": _bert(12, 768, 28996),
    "base-chinese": _bert(12, 768, 21128),
    "base-multilingual-cased": _bert(12, 768, 119547),
}
"""google-research/bert's released models, and four of the miniatures of Turc et al. 2019."""
