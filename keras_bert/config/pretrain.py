"""Corpora, masking and the length of pretraining."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from keras_bert.config.base import check_choices, flag, require


def weights_of(value: str | Mapping[Any, float], what: str) -> dict[Any, float]:
    """`NAME:WEIGHT,NAME:WEIGHT` as a dict. Python may give a mapping, in which values of the table stand for names.

    Raises:
        ConfigError: it is not of this form, or a name stands in it twice.
    """
    if not isinstance(value, str):
        return dict(value)
    weights: dict[Any, float] = {}
    for item in filter(None, value.split(",")):
        name, colon, number = (part.strip() for part in item.partition(":"))
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        require(
            bool(name and colon) and math.isfinite(weight),
            f"{what} must be NAME:WEIGHT with commas between, got {item!r}",
        )
        require(name not in weights, f"{what} names {name} twice")
        weights[name] = weight
    return weights


@dataclass(frozen=True)
class MaskingConfig:
    """Which tokens the masked language model has to predict, and what it sees in their place (Devlin et al. 2019).

    The five arms of the paper's ablation are settings of it: all words (`masked_lm_prob` 1, `keep_share` 1), only
    masks (`mask_share` 1), masks and random tokens (.8, .2, 0), the usual 80/10/10, masks and originals (.8, 0, .2).
    """

    masked_lm_prob: float = flag(0.15, "Share of a row's tokens that are to be predicted.")
    max_predictions_per_seq: int = flag(20, "Most tokens of a row that are to be predicted; 0 is no limit.")
    mask_unit: str = flag(
        "token",
        "What is predicted as a whole: a token, a word with all its pieces, or a span of words (SpanBERT).",
        "keras_bert.pretrain.masking:UNITS",
    )
    mask_share: float = flag(0.8, "Share of the predicted tokens that are replaced by --mask_token.")
    random_share: float = flag(0.1, "Share of the predicted tokens that are replaced by any of the vocabulary.")
    keep_share: float = flag(0.1, "Share of the predicted tokens that stay as they are.")
    replacements: str = flag(
        "",
        "Shares of other replacements, as NAME:SHARE with commas between; with the three above they add up to 1.",
    )
    mask_token: str = flag("[MASK]", "What hides a token; [UNK] is known to fine-tuning too.", ("[MASK]", "[UNK]"))

    def __post_init__(self) -> None:
        check_choices(self)
        require(0 < self.masked_lm_prob <= 1, f"masked_lm_prob must be in (0, 1], got {self.masked_lm_prob}")
        require(
            self.max_predictions_per_seq >= 0,
            f"max_predictions_per_seq must be at least 0, got {self.max_predictions_per_seq}",
        )
        shares = self.shares.values()
        require(
            min(shares) >= 0 and abs(sum(shares) - 1) < 1e-6,
            f"mask_share, random_share and keep_share must add up to 1, got {' + '.join(map(str, shares))}",
        )

    @property
    def shares(self) -> dict[Any, float]:
        """The share of each replacement of the predicted tokens, in the order in which they are drawn."""
        usual = {"mask": self.mask_share, "random": self.random_share, "keep": self.keep_share}
        others = weights_of(self.replacements, "replacements")
        twice = sorted(set(usual) & set(others))
        require(not twice, f"replacements names {', '.join(twice)}, which has a setting of its own")
        return usual | others


@dataclass(frozen=True)
class CorpusConfig:
    """How text becomes rows to pretrain on; names and values are those of google-research/bert."""

    format: str = flag(
        "dynamic",
        "dynamic: masks are drawn while training; static: they are drawn now, as the original does.",
        ("dynamic", "static"),
    )
    pairs: str = flag(
        "next_sentence",
        "What the segments of a row are, and so what is to be told of them.",
        "keras_bert.pretrain.pairs:PAIRS",
    )
    max_seq_length: int = flag(128, "Longest row in tokens, [CLS] and [SEP] included.")
    short_seq_prob: float = flag(0.1, "Share of documents whose rows aim at a random shorter length.")
    dupe_factor: int = flag(0, "How often to draw rows from each document; 0 is 10 for static and 1 for dynamic.")
    do_lower_case: bool = flag(True, "Lower-case the text and strip accents; must fit the vocabulary.")
    random_seed: int = flag(12345, "Seed of all draws.")
    max_predictions_per_seq: int = flag(20, "Static: most tokens of a row that are to be predicted.")
    masked_lm_prob: float = flag(0.15, "Static: share of a row's tokens that are to be predicted.")
    do_whole_word_mask: bool = flag(False, "Static: mask all pieces of a word or none.")
    sentences: str = flag(
        "auto",
        "Where sentences end; auto is lines for plain text, and punctuation for the rest.",
        "keras_bert.pretrain.documents:SENTENCES",
    )
    input_format: str = flag(
        "auto",
        "text: blank lines between documents; jsonl: an object a line; wiki: <doc ...> blocks; auto: each as it looks.",
        "keras_bert.pretrain.documents:READERS",
    )
    text_column: str = flag("text", "Key of the text in jsonl.")
    columns: str = flag("", "Columns to store beside the tokens, such as cased; a comma list.")
    flavour: str = "original"

    def __post_init__(self) -> None:
        check_choices(self)
        require(self.max_seq_length >= 5, f"max_seq_length must be at least 5, got {self.max_seq_length}")
        require(0 <= self.short_seq_prob <= 1, f"short_seq_prob must be in [0, 1], got {self.short_seq_prob}")
        require(0 < self.masked_lm_prob <= 1, f"masked_lm_prob must be in (0, 1], got {self.masked_lm_prob}")
        require(
            self.max_predictions_per_seq >= 1,
            f"max_predictions_per_seq must be at least 1, got {self.max_predictions_per_seq}",
        )
        for name in ("dupe_factor", "random_seed"):
            require(getattr(self, name) >= 0, f"{name} must be at least 0, got {getattr(self, name)}")

    @property
    def copies(self) -> int:
        """How often rows are drawn from each document."""
        return self.dupe_factor or (10 if self.format == "static" else 1)


@dataclass(frozen=True)
class PretrainConfig:
    """How long a pretraining is and what its losses are; names and defaults are google-research/bert's."""

    num_train_steps: int = flag(100000, "Steps of the whole run, both phases together.")
    phase_two_steps: int = flag(0, "The last steps of the run that train on --phase_two_input_file.")
    phase_two_batch_size: int = flag(0, "Rows per step of the second phase; 0 means --train_batch_size.")
    eval_steps: int = flag(1000, "Steps between evaluations; the model is saved after each.")
    max_eval_steps: int = flag(100, "Batches of an evaluation at most.")
    pack_rows: bool = flag(False, "Put short rows together into long ones that do not see each other: less padding.")
    loss_reduction: str = flag(
        "mean",
        "Mean of the masked tokens' losses, or their sum in each row, before the sentence task's loss is added.",
        "keras_bert.pretrain.objectives:REDUCTIONS",
    )
    objectives: str = flag(
        "",
        "What is learned, as NAME:WEIGHT with commas between; default: masked_lm:1 and, if the corpus has pairs, "
        "next_sentence:1.",
    )

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("num_train_steps", "eval_steps", "max_eval_steps"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("phase_two_steps", "phase_two_batch_size"):
            require(getattr(self, name) >= 0, f"{name} must be at least 0, got {getattr(self, name)}")
        require(
            self.phase_two_steps < self.num_train_steps,
            f"phase_two_steps {self.phase_two_steps} must be fewer than all {self.num_train_steps} steps",
        )
        require(min(self.weights.values(), default=1) > 0, f"weights of objectives must be above 0, got {self.weights}")

    @property
    def weights(self) -> dict[Any, float]:
        """The weight of each objective that was chosen; empty means the usual ones of the corpus."""
        return weights_of(self.objectives, "objectives")
