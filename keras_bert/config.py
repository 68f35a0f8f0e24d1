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

FEATURES = ("token_ids", "segment_ids", "padding_mask", "positions", "pack_ids")
"""Encoder inputs, int or bool `[B, T]`; only `token_ids` is required. Where there are `pack_ids`, only positions with
equal ones may look at one another; see `masks.packed`."""

TARGETS = ("masked_positions", "masked_ids", "masked_weights", "pair_labels", "cls_positions")
"""What stands beside the features in a row of pretraining; see `pretrain.rows`."""

WEIGHTED = ("classify", "multilabel")
"""Tasks whose labels can be smoothed and weighted."""

PAIRED = ("span", "similarity")
"""Tasks that read two texts."""

VECTORS = ("similarity", "embed")
SENTENCES = ("classify", "multilabel", "regress", "choice", *VECTORS)
MEANT_FOR = {
    "layers": (*SENTENCES, "tag", "span"),
    "head_lstm": (*SENTENCES, "tag", "span"),
    "pooling": SENTENCES,
    "normalize": VECTORS,
    "objective": ("similarity",),
}
"""Tasks that a field of `HeadConfig` is for; with others it keeps its default."""

FROZEN = "TF_ONEDNN_ASSUME_FROZEN_WEIGHTS"
"""Environment variable of TensorFlow on CPUs: dense layers keep a copy of their weights, in the order that products
read them, from their first use on, and never look at the weights again. For processes that only answer."""

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
class WindowConfig:
    """Long texts read whole, in overlapping windows whose scores are merged, where they are not to be cut.

    The last segment of a row is what windows move over; the number of windows bounds what a text can cost. Tags and
    spans need no merging: each token is judged in the window that shows most of what is around it.
    """

    max_windows: int = _flag(1, "Windows of a long text that are read; 1 cuts the text instead.")
    doc_stride: int = _flag(0, "Tokens from the start of a window to the start of the next; 0 is half a window.")
    window_merge: str = _flag("mean", "How the scores of a text's windows become one.", ("mean", "max", "first"))
    max_query_length: int = _flag(64, "Tokens of a question; --task=span reads windows of the passage beside it.")

    def __post_init__(self) -> None:
        _check_choices(self)
        _require(1 <= self.max_windows <= 1000, f"max_windows must be from 1 to 1000, got {self.max_windows}")
        _require(self.doc_stride >= 0, f"doc_stride must be 0 or more, got {self.doc_stride}")
        _require(self.max_query_length >= 1, f"max_query_length must be at least 1, got {self.max_query_length}")


@dataclass(frozen=True)
class DataConfig:
    """The columns of the input files."""

    text_column: str = _flag("text", "Column that holds the text.")
    text_pair_column: str = _flag("", "Column that holds the second text, for pairs of texts.")
    choices_column: str = _flag(
        "choices", "choice: column of lists of choices (JSON), or columns of one each: a comma list, or their prefix."
    )
    label_column: str = _flag("label", "Column that holds the label.")
    id_column: str = _flag("id", "Column that `predict` copies to its output, where the input has it.")

    def __post_init__(self) -> None:
        names = [n for n in (self.text_column, self.text_pair_column, self.label_column) if n]
        for column in ("text_column", "choices_column"):
            _require(bool(getattr(self, column)), f"{column} must not be empty")
        _require(
            len(set(names)) == len(names),
            f"text_column, text_pair_column and label_column must be different columns, got {names}",
        )


@dataclass(frozen=True)
class HeadConfig:
    """What is asked of the encoder.

    `labels` are label values as the training file writes them, in the order of class ids; for tagging the types of
    entities. `threshold` is the score from which a label counts as active (multilabel), and above which the last of
    two labels is the answer (classify). `label_smoothing` and `label_weights`, one for each label where there are any,
    shape the loss of training; `FinetuneConfig` says how. `mask_token_id` is the number of [MASK] in the vocabulary
    (fill_mask).
    """

    task: str = "classify"
    labels: tuple[str, ...] = ()
    dropout: float = _flag(0.1, "Dropout before the last layer of the head.")
    threshold: float = 0.5
    label_smoothing: float = 0.0
    label_weights: tuple[float, ...] = ()
    layers: str = _flag(
        "last",
        "Layers of the encoder that are read; mix learns the weights of all.",
        ("last", "second_last", "first_last", "last4_sum", "last4_concat", "mix"),
    )
    head_lstm: int = _flag(0, "Units of each direction of a BiLSTM between the encoder and the head; 0 means none.")
    pooling: str = _flag(
        "",
        "What stands for a whole text: cls, mean or max of its tokens. Default: the pretrained pooler; the mean for "
        "similarity and embed, and with --head_lstm or other --layers.",
        ("", "cls", "mean", "max"),
    )
    normalize: bool = _flag(True, "similarity, embed: vectors of length 1.")
    objective: str = _flag(
        "",
        "similarity: ranking of each pair's second text before the others of the batch (of its part, on many devices), "
        "or cosines like the scores. "
        "Default: scores where there is a label column, else ranking.",
        ("", "ranking", "scores"),
    )
    similarity_scale: float = _flag(20.0, "similarity: factor of cosines in the softmax of --objective=ranking.")
    max_score: float = _flag(1.0, "similarity: score of texts that mean the same, such as 5 for STS; a cosine of 1.")
    decode: str = _flag(
        "",
        "tag: argmax, or constrained to tags that can follow each other; span: joint search, or independent ends. "
        "Default: the first.",
        ("", "argmax", "constrained", "joint", "independent"),
    )
    max_entities: int = _flag(64, "tag: entities of a text that are answered at most.")
    max_answer_length: int = _flag(30, "span: longest answer in tokens.")
    n_best_size: int = _flag(20, "span: answers that are given for each question, from the best on.")
    version_2_with_negative: bool = _flag(False, "span: there are questions without an answer, as in SQuAD 2.0.")
    null_score_diff_threshold: float = _flag(
        0.0, "span: no answer where no-answer scores more than this above the best; the evaluation tunes it."
    )
    top_k: int = _flag(5, "fill_mask: words that are given for each mask, from the best on.")
    max_masks: int = _flag(16, "fill_mask: masks of a text that are answered at most.")
    mask_token_id: int = -1
    max_target_length: int = _flag(32, "generate: longest target in tokens, its end included; sources keep the rest.")
    beam_size: int = _flag(1, "generate: hypotheses that the search goes on with; 1 is greedy search.")
    length_penalty: float = _flag(0.6, "generate: how much longer targets are preferred; 0 compares probabilities.")

    def __post_init__(self) -> None:
        for name in ("labels", "label_weights"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        _check_choices(self)
        suits = {"tag": ("", "argmax", "constrained"), "span": ("", "joint", "independent")}.get(self.task, ("",))
        _require(self.decode in suits, f"decode must be one of {suits} for {self.task}, got {self.decode!r}")
        for name in ("max_entities", "max_answer_length", "n_best_size", "top_k", "max_masks", "beam_size"):
            _require(1 <= getattr(self, name) <= 1000, f"{name} must be from 1 to 1000, got {getattr(self, name)}")
        _require(math.isfinite(self.null_score_diff_threshold), "null_score_diff_threshold must be a number")
        _require(self.max_target_length >= 2, f"max_target_length must be at least 2, got {self.max_target_length}")
        _require(0 <= self.length_penalty <= 10, f"length_penalty must be from 0 to 10, got {self.length_penalty}")
        usual = {f.name: f.default for f in dataclasses.fields(self)}
        for name, tasks in MEANT_FOR.items():
            _require(
                self.task in tasks or getattr(self, name) == usual[name],
                f"{name} has no meaning with the task {self.task}, only with {', '.join(tasks)}",
            )
        _require(0 <= self.head_lstm <= 4096, f"head_lstm must be from 0 to 4096, got {self.head_lstm}")
        for name in ("similarity_scale", "max_score"):
            _require(0 < getattr(self, name) < math.inf, f"{name} must be above 0, got {getattr(self, name)}")
        _require(0 <= self.dropout < 1, f"dropout must be in [0, 1), got {self.dropout}")
        _require(0 < self.threshold < 1, f"threshold must be in (0, 1), got {self.threshold}")
        _require(0 <= self.label_smoothing < 1, f"label_smoothing must be in [0, 1), got {self.label_smoothing}")
        for name in ("label_smoothing", "label_weights"):
            _require(
                not getattr(self, name) or self.task in WEIGHTED,
                f"{name} has no meaning with the task {self.task}, only with {' and '.join(WEIGHTED)}",
            )
        _require(
            len(self.label_weights) in (0, len(self.labels)) and all(0 < w < math.inf for w in self.label_weights),
            f"label_weights must be a number above 0 for each of the labels, got {self.label_weights}",
        )
        twice = sorted({label for label in self.labels if self.labels.count(label) > 1})
        _require(not twice, f"labels must be unique, these are not: {twice}")


@dataclass(frozen=True)
class MaskingConfig:
    """Which tokens the masked language model has to predict, and what it sees in their place (Devlin et al. 2019).

    The five arms of the paper's ablation are settings of it: all words (`masked_lm_prob` 1, `keep_share` 1), only
    masks (`mask_share` 1), masks and random tokens (.8, .2, 0), the usual 80/10/10, masks and originals (.8, 0, .2).
    """

    masked_lm_prob: float = _flag(0.15, "Share of a row's tokens that are to be predicted.")
    max_predictions_per_seq: int = _flag(20, "Most tokens of a row that are to be predicted; 0 is no limit.")
    mask_unit: str = _flag(
        "token",
        "What is predicted as a whole: a token, a word with all its pieces, or a span of words (SpanBERT).",
        ("token", "whole_word", "span"),
    )
    mask_share: float = _flag(0.8, "Share of the predicted tokens that are replaced by --mask_token.")
    random_share: float = _flag(0.1, "Share of the predicted tokens that are replaced by any of the vocabulary.")
    keep_share: float = _flag(0.1, "Share of the predicted tokens that stay as they are.")
    mask_token: str = _flag("[MASK]", "What hides a token; [UNK] is known to fine-tuning too.", ("[MASK]", "[UNK]"))

    def __post_init__(self) -> None:
        _check_choices(self)
        _require(0 < self.masked_lm_prob <= 1, f"masked_lm_prob must be in (0, 1], got {self.masked_lm_prob}")
        _require(
            self.max_predictions_per_seq >= 0,
            f"max_predictions_per_seq must be at least 0, got {self.max_predictions_per_seq}",
        )
        shares = (self.mask_share, self.random_share, self.keep_share)
        _require(
            min(shares) >= 0 and abs(sum(shares) - 1) < 1e-6,
            f"mask_share, random_share and keep_share must add up to 1, got {' + '.join(map(str, shares))}",
        )


@dataclass(frozen=True)
class CorpusConfig:
    """How text becomes rows to pretrain on; names and values are those of google-research/bert."""

    format: str = _flag(
        "dynamic",
        "dynamic: masks are drawn while training; static: they are drawn now, as the original does.",
        ("dynamic", "static"),
    )
    pairs: str = _flag(
        "next_sentence",
        "What the segments of a row are, and so what is to be told of them.",
        ("next_sentence", "sentence_order", "three_way", "distance", "none"),
    )
    max_seq_length: int = _flag(128, "Longest row in tokens, [CLS] and [SEP] included.")
    short_seq_prob: float = _flag(0.1, "Share of documents whose rows aim at a random shorter length.")
    dupe_factor: int = _flag(0, "How often to draw rows from each document; 0 is 10 for static and 1 for dynamic.")
    do_lower_case: bool = _flag(True, "Lower-case the text and strip accents; must fit the vocabulary.")
    random_seed: int = _flag(12345, "Seed of all draws.")
    max_predictions_per_seq: int = _flag(20, "Static: most tokens of a row that are to be predicted.")
    masked_lm_prob: float = _flag(0.15, "Static: share of a row's tokens that are to be predicted.")
    do_whole_word_mask: bool = _flag(False, "Static: mask all pieces of a word or none.")
    sentences: str = _flag(
        "auto",
        "Where sentences end; auto is lines for plain text, and punctuation for the rest.",
        ("auto", "lines", "punctuation"),
    )
    input_format: str = _flag(
        "auto",
        "text: blank lines between documents; jsonl: an object a line; wiki: <doc ...> blocks; auto: each as it looks.",
        ("auto", "text", "jsonl", "wiki"),
    )
    text_column: str = _flag("text", "Key of the text in jsonl.")
    flavour: str = "original"

    def __post_init__(self) -> None:
        _check_choices(self)
        _require(self.max_seq_length >= 5, f"max_seq_length must be at least 5, got {self.max_seq_length}")
        _require(0 <= self.short_seq_prob <= 1, f"short_seq_prob must be in [0, 1], got {self.short_seq_prob}")
        _require(0 < self.masked_lm_prob <= 1, f"masked_lm_prob must be in (0, 1], got {self.masked_lm_prob}")
        _require(
            self.max_predictions_per_seq >= 1,
            f"max_predictions_per_seq must be at least 1, got {self.max_predictions_per_seq}",
        )
        for name in ("dupe_factor", "random_seed"):
            _require(getattr(self, name) >= 0, f"{name} must be at least 0, got {getattr(self, name)}")

    @property
    def copies(self) -> int:
        """How often rows are drawn from each document."""
        return self.dupe_factor or (10 if self.format == "static" else 1)


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter 2019) with warm-up and linear decay; norms and biases do not decay.

    Variants: LAMB (You et al. 2020), other schedules, rates that shrink towards the input, averaged weights.
    """

    optimizer: str = _flag("adamw", "How weights change.", ("adamw", "lamb"))
    learning_rate: float = _flag(5e-5, "Peak learning rate.")
    lr_schedule: str = _flag(
        "linear", "How the rate falls after warm-up.", ("linear", "polynomial", "cosine", "constant")
    )
    lr_power: float = _flag(2.0, "Power of --lr_schedule=polynomial.")
    warmup_proportion: float = _flag(0.1, "Share of all steps during which the rate rises from 0.")
    num_warmup_steps: int = _flag(-1, "Steps during which the rate rises; -1 means --warmup_proportion.")
    weight_decay: float = _flag(0.01, "Decoupled weight decay, not applied to norms and biases.")
    clip_norm: float = _flag(1.0, "Bound on the global gradient norm; 0 turns it off.")
    layer_decay: float = _flag(1.0, "Factor of the rate from each layer to the one below it; 1 means one rate.")
    freeze_layers: int = _flag(
        -1, "Lowest layers that stay as they are, and with them the embeddings; 0 means the embeddings alone, -1 none."
    )
    ema_decay: float = _flag(0.0, "Evaluate and keep a moving average of the weights with this decay; 0 means none.")
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        _check_choices(self)
        rate = self.learning_rate
        _require(
            math.isfinite(rate) and 0 < rate <= 1,
            f"learning_rate must be above 0 and at most 1, got {rate}; 1e-5 to 1e-4 is usual here",
        )
        for name in ("warmup_proportion", "ema_decay"):
            _require(0 <= getattr(self, name) < 1, f"{name} must be in [0, 1), got {getattr(self, name)}")
        for name in ("weight_decay", "clip_norm", "lr_power"):
            value = getattr(self, name)
            _require(math.isfinite(value) and value >= 0, f"{name} must be a number >= 0, got {value}")
        _require(self.num_warmup_steps >= -1, f"num_warmup_steps must be -1 or more, got {self.num_warmup_steps}")
        _require(0 < self.layer_decay <= 1, f"layer_decay must be in (0, 1], got {self.layer_decay}")
        _require(self.freeze_layers >= -1, f"freeze_layers must be -1 (none) or more, got {self.freeze_layers}")


@dataclass(frozen=True)
class TrainConfig:
    """One training run: how long, how much at once, on what hardware, from which seed."""

    num_train_epochs: int = _flag(3, "Passes over the training rows.")
    train_batch_size: int = _flag(32, "Rows per step, over all devices together.")
    eval_batch_size: int = _flag(64, "Rows per evaluation step.")
    grad_accum_steps: int = _flag(1, "Parts that a batch is computed in, one after the other, to save memory.")
    seed: int = _flag(12345, "Seed of initial weights, dropout, split and order of rows.")
    distribution_strategy: str = _flag(
        "auto",
        "Devices to train on; auto: all GPUs of this machine, else the CPU; multi_worker_mirrored reads TF_CONFIG.",
        ("auto", "one_device", "mirrored", "multi_worker_mirrored", "tpu", "parameter_server"),
    )
    num_gpus: int = _flag(-1, "GPUs to use; -1 means all. With 0, or none present, the CPU is used.")
    tpu: str = _flag("", "Name or address of the TPU, or local; for --distribution_strategy=tpu.")
    mixed_precision: str = _flag(
        "none",
        "16-bit arithmetic with 32-bit weights; float16 scales the loss.",
        ("none", "bfloat16", "float16"),
    )
    recompute: bool = _flag(False, "Compute layers again for the gradients instead of keeping them: less memory.")
    jit_compile: str = _flag(
        "auto",
        "Compile the step with XLA, with fixed shapes; auto does so on a TPU only.",
        ("auto", "on", "off"),
    )

    def __post_init__(self) -> None:
        for name in ("num_train_epochs", "train_batch_size", "eval_batch_size", "grad_accum_steps"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        _check_choices(self)
        _require(
            self.grad_accum_steps <= self.train_batch_size,
            f"grad_accum_steps {self.grad_accum_steps} is more than the {self.train_batch_size} rows of a batch",
        )
        _require(0 <= self.seed < 2**31, f"seed must be from 0 to {2**31 - 1}, got {self.seed}")
        _require(self.num_gpus >= -1, f"num_gpus must be -1 (all) or more, got {self.num_gpus}")
        kind = self.distribution_strategy
        _require(
            not (kind == "mirrored" and self.num_gpus == 0),
            "distribution_strategy=mirrored with num_gpus=0 contradict each other",
        )
        _require(
            kind != "tpu" or self.num_gpus == -1,
            "distribution_strategy=tpu with num_gpus contradict each other",
        )
        _require(not self.tpu or kind == "tpu", "tpu names a TPU but distribution_strategy is not tpu")


@dataclass(frozen=True)
class FinetuneConfig:
    """What a fine-tuning does besides plain training on all rows alike.

    With label smoothing (Szegedy et al. 2016) and weights the loss is what PyTorch computes: `CrossEntropyLoss` with
    `label_smoothing` and `weight` (classify), `BCEWithLogitsLoss` with `pos_weight` (multilabel), whose targets are
    smoothed towards 1/2 as Keras does it. Weights that are "balanced" are scikit-learn's: rows / (labels * rows of the
    label); for multilabel rows without the label / rows with it.
    """

    class_weights: str = _flag(
        "",
        "classify, multilabel: what each label counts, label:weight,... (others 1), or balanced: the more, the rarer.",
    )
    label_smoothing: float = _flag(0.0, "classify, multilabel: share of a label that goes to all labels alike.")
    reinit_layers: int = _flag(
        0, "Top layers, and the pooler, that start anew instead of from the checkpoint (Zhang et al. 2021)."
    )
    early_stopping_patience: int = _flag(0, "End after this many epochs without a better metric; 0 means never.")
    group_by_length: bool = _flag(
        False, "Rows of like length in a batch: faster where lengths differ, but a batch is then no random draw."
    )

    def __post_init__(self) -> None:
        _require(0 <= self.label_smoothing < 1, f"label_smoothing must be in [0, 1), got {self.label_smoothing}")
        for name in ("reinit_layers", "early_stopping_patience"):
            _require(getattr(self, name) >= 0, f"{name} must be at least 0, got {getattr(self, name)}")


@dataclass(frozen=True)
class PretrainConfig:
    """How long a pretraining is and what its losses are; names and defaults are google-research/bert's."""

    num_train_steps: int = _flag(100000, "Steps of the whole run, both phases together.")
    phase_two_steps: int = _flag(0, "The last steps of the run that train on --phase_two_input_file.")
    phase_two_batch_size: int = _flag(0, "Rows per step of the second phase; 0 means --train_batch_size.")
    eval_steps: int = _flag(1000, "Steps between evaluations; the model is saved after each.")
    max_eval_steps: int = _flag(100, "Batches of an evaluation at most.")
    pack_rows: bool = _flag(False, "Put short rows together into long ones that do not see each other: less padding.")
    loss_reduction: str = _flag(
        "mean",
        "Mean of the masked tokens' losses, or their sum in each row, before the sentence task's loss is added.",
        ("mean", "sum"),
    )

    def __post_init__(self) -> None:
        _check_choices(self)
        for name in ("num_train_steps", "eval_steps", "max_eval_steps"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("phase_two_steps", "phase_two_batch_size"):
            _require(getattr(self, name) >= 0, f"{name} must be at least 0, got {getattr(self, name)}")
        _require(
            self.phase_two_steps < self.num_train_steps,
            f"phase_two_steps {self.phase_two_steps} must be fewer than all {self.num_train_steps} steps",
        )


@dataclass(frozen=True)
class RunConfig:
    """How a run is kept and when it stops; nothing here changes the weights that it ends with."""

    save_checkpoints_steps: int = _flag(1000, "Steps between checkpoints, besides those after each evaluation.")
    keep_checkpoint_max: int = _flag(2, "Checkpoints that are kept.")
    max_time: float = _flag(0.0, "Seconds after which the run saves and stops with exit code 75; 0 means no limit.")
    profile_steps: str = _flag("", "First and last step to profile for TensorBoard, such as 10,20.")
    dry_run: bool = _flag(False, "Make a few steps, save and restore, say what the run will take, and keep nothing.")

    def __post_init__(self) -> None:
        for name in ("save_checkpoints_steps", "keep_checkpoint_max"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        _require(self.max_time >= 0, f"max_time must be 0 or more seconds, got {self.max_time}")
        _require(
            not self.profile_steps or self.profiled is not None,
            f"profile_steps must be two step numbers such as 10,20, got {self.profile_steps!r}",
        )

    @property
    def profiled(self) -> tuple[int, int] | None:
        """First and last step to profile."""
        parts = self.profile_steps.split(",")
        if len(parts) == 2 and all(p.isascii() and p.isdigit() for p in parts) and int(parts[0]) <= int(parts[1]):
            return int(parts[0]), int(parts[1])
        return None


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
