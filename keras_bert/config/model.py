"""The encoder: its sizes and features. `SIZES` holds the released models."""

from dataclasses import dataclass

from keras_bert.config.base import require

FEATURES = ("token_ids", "segment_ids", "padding_mask", "positions", "pack_ids")
"""Encoder inputs, int or bool `[B, T]`; only `token_ids` is required. Where there are `pack_ids`, only positions with
equal ones may look at one another; see `masks.packed`."""


@dataclass(frozen=True)
class EncoderConfig:
    """Shape and arithmetic of a BERT encoder (Devlin et al. 2019, https://arxiv.org/abs/1810.04805).

    `activation` is "gelu" (exact, erf) or "gelu_tanh" (the approximation that google-research/bert, Model
    Garden and KerasHub compute under the name "gelu"). A checkpoint's origin decides which is right, so
    the importer sets it. `max_positions` bounds the sequence length of learned absolute positions.
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

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "num_layers", "num_heads", "hidden_dim", "intermediate_dim")
        for name in (*sizes, "max_positions", "num_segments"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        require(
            self.hidden_dim % self.num_heads == 0,
            f"hidden_dim {self.hidden_dim} is not a multiple of num_heads {self.num_heads}",
        )
        for name in ("hidden_dropout", "attention_dropout"):
            require(0 <= getattr(self, name) < 1, f"{name} must be in [0, 1), got {getattr(self, name)}")


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
