"""The encoder: its sizes and features. `SIZES` holds the released models."""

import dataclasses
from dataclasses import dataclass

from keras_bert.config.base import flag, require

FEATURES = ("token_ids", "segment_ids", "padding_mask", "positions", "pack_ids", "order", "asks")
"""Encoder inputs, int or bool `[B, T]`; only `token_ids` is required. With `pack_ids`, a position sees only those with
the same id, see `masks.packed`; with `order`, and `asks` for those that are questions, see `masks.ordered`."""


@dataclass(frozen=True)
class EncoderConfig:
    """Shape and arithmetic of a BERT encoder (Devlin et al. 2019, https://arxiv.org/abs/1810.04805).

    `activation` is "gelu" (exact, erf) or "gelu_tanh" (the approximation that google-research/bert, Model
    Garden and KerasHub compute under the name "gelu"). A checkpoint's origin decides which is right, so
    the importer sets it. `max_positions` bounds the sequence length where positions are learned.

    `head_dim` is the size of an attention head; 0 means `hidden_dim / num_heads`. `layer_heads` and `layer_units` give
    each layer its own number of heads and width of the feed-forward; empty means `num_heads` and `intermediate_dim`
    everywhere. The fields from `positions` on say what differs from BERT; their defaults are BERT.
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
    head_dim: int = 0
    layer_heads: tuple[int, ...] = ()
    layer_units: tuple[int, ...] = ()
    positions: str = flag(
        "absolute", "How positions enter the model, see model/positions.py.", "keras_bert.model.positions:POSITIONS"
    )
    attention_mask: str = flag(
        "bidirectional", "Which tokens a token attends to, see model/masks.py.", "keras_bert.model.masks:MASKS"
    )
    local_window: int = flag(0, "With the mask local: how many tokens around it a token attends to; 0 means all.")
    global_every: int = flag(0, "With the mask local: layers 0, n, 2n, ... attend to all tokens; 0 means none does.")
    embedding_dim: int = flag(
        0, "Width of the embedding tables, which a dense layer projects (ALBERT); 0 means that of the hidden states."
    )
    layer_groups: int = flag(
        0, "Layers in all share the weights of that many blocks (ALBERT has 1); 0 means that none share."
    )
    norm_place: str = flag(
        "post",
        "Layers normalise after they add (BERT) or before (Xiong et al. 2020).",
        "keras_bert.model.norms:NORM_PLACES",
    )
    norm: str = flag("layer", "Kind of normalisation.", "keras_bert.model.norms:NORMS")
    norm_bias: bool = flag(True, "Do layer norms have a bias?")
    embedding_norm: bool = flag(True, "Are the embeddings normalised?")
    first_norm: bool = flag(True, "With --norm_place=pre: is there a norm before the attention of the first layer?")
    use_bias: bool = flag(True, "Do the dense layers of the encoder have biases?")
    feed_forward: str = flag(
        "dense", "Kind of feed-forward; gated is GeGLU (Shazeer 2020).", "keras_bert.model.encoder:FEED_FORWARDS"
    )
    max_distance: int = flag(64, "Greatest distance that relative_sinusoidal positions tell apart.")
    rotary_base: float = flag(10000.0, "Base of rotary positions: the greater, the slower channels turn.")
    global_rotary_base: float = flag(0.0, "The base in layers of --global_every; 0 means the same.")
    rotary_scale: float = flag(1.0, "How many times longer than in training rows may be with rotary positions.")
    rotary_scaling: str = flag(
        "linear",
        "What --rotary_scale does: divide positions (linear) or raise the base (ntk).",
        "keras_bert.model.positions:SCALINGS",
    )
    rotary_value: bool = flag(False, "Are values turned too with rotary positions?")

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
