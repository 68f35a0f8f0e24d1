"""The encoder: its sizes and features. `SIZES` holds the released models."""

import dataclasses
from dataclasses import dataclass

from keras_bert.config.base import require

FEATURES = ("token_ids", "segment_ids", "padding_mask", "positions", "pack_ids", "order", "asks")
"""Encoder inputs, int or bool `[B, T]`; only `token_ids` is required. With `pack_ids`, a position sees only those with
the same id, see `masks.packed`; with `order`, and `asks` for those that are questions, see `masks.ordered`."""


@dataclass(frozen=True)
class EncoderConfig:
    """Shape and arithmetic of a BERT encoder (Devlin et al. 2019, https://arxiv.org/abs/1810.04805).

    `activation` is "gelu" (exact, erf) or "gelu_tanh" (the approximation that google-research/bert, Model
    Garden and KerasHub compute under the name "gelu"). A checkpoint's origin decides which is right, so
    the importer sets it. `max_positions` bounds the sequence length of learned absolute positions.

    `head_dim` is the size of an attention head; 0 means `hidden_dim / num_heads`. `layer_heads` and `layer_units` give
    each layer its own number of heads and width of the feed-forward; empty means `num_heads` and `intermediate_dim`
    everywhere. `local_window` is for masks that let a position see that many tokens around it; 0 means all.

    The other fields give BERT where they are not set:

    - `embedding_dim` is the width of the embedding tables; a dense layer projects them to `hidden_dim` (ALBERT, Lan et
      al. 2020). 0 means `hidden_dim`, without a projection.
    - `layer_groups` is how many blocks with weights of their own there are; each serves a group of neighbouring layers
      (ALBERT). 0 means one for each layer.
    - `norm_place` is "post" (Vaswani et al. 2017) or "pre" (Xiong et al. 2020), which also normalises after the last
      layer. `norm` is "layer", "rms" or "scale", see `layers.NORMS`; `norm_bias` is for "layer". `embedding_norm` and
      `first_norm` say whether the embeddings are normalised, and whether a pre-norm model normalises before the
      attention of its first layer.
    - `use_bias` is for the dense layers of the encoder. `feed_forward` is "dense" or "gated" (Shazeer 2020).
    - `max_distance` is the greatest distance that "relative_sinusoidal" tells apart.
    - `rotary_base`, `rotary_scale`, `rotary_scaling` and `rotary_value` are for rotary positions, see
      `positions.Rotary`.
    - `global_every` n lets layers 0, n, 2n, ... see what the mask "bidirectional" shows where `attention_mask` is
      "local"; 0 means none. `global_rotary_base` is the base of those layers; 0 means `rotary_base`.
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
    embedding_dim: int = 0
    layer_groups: int = 0
    norm_place: str = "post"
    norm: str = "layer"
    norm_bias: bool = True
    embedding_norm: bool = True
    first_norm: bool = True
    use_bias: bool = True
    feed_forward: str = "dense"
    max_distance: int = 64
    rotary_base: float = 10000.0
    rotary_scale: float = 1.0
    rotary_scaling: str = "linear"
    rotary_value: bool = False
    global_every: int = 0
    global_rotary_base: float = 0.0

    def __post_init__(self) -> None:
        for name in ("layer_heads", "layer_units"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        sizes = ("vocab_size", "num_layers", "num_heads", "hidden_dim", "intermediate_dim")
        for name in (*sizes, "max_positions", "num_segments"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("head_dim", "local_window", "embedding_dim", "global_every", "global_rotary_base"):
            require(getattr(self, name) >= 0, f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("max_distance", "rotary_base", "rotary_scale"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        require(
            0 <= self.layer_groups <= self.num_layers,
            f"layer_groups must be between 0 and the {self.num_layers} layers, got {self.layer_groups}",
        )
        if self.num_blocks < self.num_layers:
            same = not self.layer_heads and not self.layer_units and self.first_norm
            require(same, "layers that share a block have the same heads, units and norms: leave layer_groups at 0")
        require(
            self.first_norm or self.norm_place != "post",
            "first_norm is for models with norms before the layers: set norm_place to pre",
        )
        require(
            not self.global_every or self.attention_mask == "local",
            f"global_every is for attention_mask local, got {self.attention_mask}",
        )
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

    @property
    def embedding_width(self) -> int:
        """Width of the embedding tables."""
        return self.embedding_dim or self.hidden_dim

    @property
    def num_blocks(self) -> int:
        """How many blocks with weights of their own there are."""
        return self.layer_groups or self.num_layers

    def block_of(self, i: int) -> int:
        """The number of the block that computes layer i."""
        return i * self.num_blocks // self.num_layers

    def layer(self, i: int) -> "EncoderConfig":
        """The sizes of layer i: `num_heads`, `head_dim` and `intermediate_dim` of its own, one layer in all."""
        return dataclasses.replace(
            self,
            num_layers=1,
            layer_groups=0,
            first_norm=self.first_norm or i > 0,
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
