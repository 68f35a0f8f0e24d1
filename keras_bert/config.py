"""What a model, its text and a run are made of: one frozen dataclass per concern, and the table of sizes.

Library code takes these objects. A field's default, help and choices also make its command-line flag
(`cli/flags.py`), so names are those of google-research/bert's flags where the meaning is the same.
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, TypeVar

from keras_bert.errors import ConfigError

FEATURES = ("token_ids", "segment_ids", "padding_mask", "positions")
"""Encoder inputs, int or bool `[B, T]`; only `token_ids` is required."""

T = TypeVar("T")


def _flag(default: Any, help: str, choices: tuple[str, ...] | None = None) -> Any:
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


def _check_choices(config: Any) -> None:
    for f in dataclasses.fields(config):
        choices, value = f.metadata.get("choices"), getattr(config, f.name)
        _require(not choices or value in choices, f"{f.name} must be one of {choices}, got {value!r}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


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
            _require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        _require(
            self.hidden_dim % self.num_heads == 0,
            f"hidden_dim {self.hidden_dim} is not a multiple of num_heads {self.num_heads}",
        )
        for name in ("hidden_dropout", "attention_dropout"):
            _require(0 <= getattr(self, name) < 1, f"{name} must be in [0, 1), got {getattr(self, name)}")


@dataclass(frozen=True)
class TextConfig:
    """How strings become token ids, and what is kept of texts that are too long.

    `flavour` is the tokenizer that the checkpoint was trained with, see `tokenizer.Tokenizer`: "original"
    (google-research/bert) or "hf" (Hugging Face); the importer sets it.
    """

    do_lower_case: bool = _flag(True, "Lower-case the text and strip accents; must fit the vocabulary.")
    max_seq_length: int = _flag(128, "Longest row in tokens, [CLS] and [SEP] included; longer texts are cut.")
    truncation: str = _flag(
        "longest_first",
        "How segments share a row that is too short for all.",
        ("longest_first", "round_robin", "waterfall"),
    )
    truncation_part: str = _flag(
        "head", "Which part of a text that is too long is kept.", ("head", "tail", "head_tail")
    )
    flavour: str = "original"

    def __post_init__(self) -> None:
        _check_choices(self)
        _require(self.flavour in ("original", "hf"), f"flavour must be original or hf, got {self.flavour!r}")
        _require(self.max_seq_length >= 3, f"max_seq_length must be at least 3, got {self.max_seq_length}")


@dataclass(frozen=True)
class DataConfig:
    """The columns of the input files."""

    text_column: str = _flag("text", "Column that holds the text.")
    text_pair_column: str = _flag("", "Column that holds the second text, for pairs of texts.")
    label_column: str = _flag("label", "Column that holds the label.")
    id_column: str = _flag("id", "Column that `predict` copies to its output, where the input has it.")

    def __post_init__(self) -> None:
        names = [n for n in (self.text_column, self.text_pair_column, self.label_column) if n]
        _require(bool(self.text_column), "text_column must not be empty")
        _require(
            len(set(names)) == len(names),
            f"text_column, text_pair_column and label_column must be different columns, got {names}",
        )


@dataclass(frozen=True)
class HeadConfig:
    """What is asked of the encoder.

    `labels` are label values as the training file writes them, in the order of class ids. `threshold` is
    the score from which a label counts as active (multilabel only).
    """

    task: str = "classify"
    labels: tuple[str, ...] = ()
    dropout: float = _flag(0.1, "Dropout before the last layer of the head.")
    threshold: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))
        _require(0 <= self.dropout < 1, f"dropout must be in [0, 1), got {self.dropout}")
        _require(0 < self.threshold < 1, f"threshold must be in (0, 1), got {self.threshold}")
        twice = sorted({label for label in self.labels if self.labels.count(label) > 1})
        _require(not twice, f"labels must be unique, these are not: {twice}")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter 2019) with warm-up and linear decay; norms and biases do not decay."""

    learning_rate: float = _flag(5e-5, "Peak learning rate.")
    warmup_proportion: float = _flag(0.1, "Share of all steps during which the rate rises from 0.")
    weight_decay: float = _flag(0.01, "Decoupled weight decay, not applied to norms and biases.")
    clip_norm: float = _flag(1.0, "Bound on the global gradient norm; 0 turns it off.")
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        rate = self.learning_rate
        _require(
            math.isfinite(rate) and 0 < rate <= 1,
            f"learning_rate must be above 0 and at most 1, got {rate}; 1e-5 to 1e-4 is usual here",
        )
        _require(
            0 <= self.warmup_proportion < 1,
            f"warmup_proportion must be in [0, 1), got {self.warmup_proportion}",
        )
        for name in ("weight_decay", "clip_norm"):
            value = getattr(self, name)
            _require(math.isfinite(value) and value >= 0, f"{name} must be a number >= 0, got {value}")


@dataclass(frozen=True)
class TrainConfig:
    """One training run: how long, how much at once, on what hardware, from which seed."""

    num_train_epochs: int = _flag(3, "Passes over the training rows.")
    train_batch_size: int = _flag(32, "Rows per step, over all devices together.")
    eval_batch_size: int = _flag(64, "Rows per evaluation step.")
    seed: int = _flag(12345, "Seed of initial weights, dropout, split and order of rows.")
    distribution_strategy: str = _flag(
        "auto",
        "Devices to train on; auto takes all GPUs of this machine, else the CPU.",
        ("auto", "one_device", "mirrored"),
    )
    num_gpus: int = _flag(-1, "GPUs to use; -1 means all. With 0, or none present, the CPU is used.")
    mixed_precision: str = _flag(
        "none",
        "16-bit arithmetic with 32-bit weights; float16 scales the loss.",
        ("none", "bfloat16", "float16"),
    )

    def __post_init__(self) -> None:
        for name in ("num_train_epochs", "train_batch_size", "eval_batch_size"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        _check_choices(self)
        _require(0 <= self.seed < 2**31, f"seed must be from 0 to {2**31 - 1}, got {self.seed}")
        _require(self.num_gpus >= -1, f"num_gpus must be -1 (all) or more, got {self.num_gpus}")
        _require(
            not (self.distribution_strategy == "mirrored" and self.num_gpus == 0),
            "distribution_strategy=mirrored with num_gpus=0 contradict each other",
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


def to_dict(config: Any) -> dict[str, Any]:
    """A config as a plain dict that JSON can hold."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}


def from_dict(kind: type[T], values: dict[str, Any]) -> T:
    """Build a config from a dict.

    Raises:
        ConfigError: a key is not a field of `kind`, or a value is of another type or out of its range.
    """
    names = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(names))
    _require(not unknown, f"{kind.__name__} has no {unknown}; it has {names}")
    for name, value in values.items():
        usual = getattr(kind, name)
        likes = {float: (int, float), tuple: (list, tuple)}.get(type(usual), type(usual))
        right = isinstance(value, likes) and isinstance(value, bool) == isinstance(usual, bool)
        _require(right, f"{name} must be like {usual!r}, got {value!r}")
    return kind(**values)


def choose(table: dict[str, T], name: str, what: str) -> T:
    """`table[name]`, or a ConfigError that lists the right names."""
    _require(name in table, f"unknown {what} {name!r}; choose one of {', '.join(table)}")
    return table[name]


def dumps(values: Any) -> str:
    """JSON as every file of ours is written: indented, UTF-8, one newline at the end."""
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"
