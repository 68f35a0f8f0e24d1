"""What is asked of the encoder, and which columns of a file say it."""

import dataclasses
import math
from dataclasses import dataclass

from keras_bert.config.base import check_choices, flag, require

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


@dataclass(frozen=True)
class DataConfig:
    """The columns of the input files."""

    text_column: str = flag("text", "Column that holds the text.")
    text_pair_column: str = flag("", "Column that holds the second text, for pairs of texts.")
    choices_column: str = flag(
        "choices", "choice: column of lists of choices (JSON), or columns of one each: a comma list, or their prefix."
    )
    label_column: str = flag("label", "Column that holds the label.")
    id_column: str = flag("id", "Column that `predict` copies to its output, where the input has it.")

    def __post_init__(self) -> None:
        names = [n for n in (self.text_column, self.text_pair_column, self.label_column) if n]
        for column in ("text_column", "choices_column"):
            require(bool(getattr(self, column)), f"{column} must not be empty")
        require(
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
    dropout: float = flag(0.1, "Dropout before the last layer of the head.")
    threshold: float = 0.5
    label_smoothing: float = 0.0
    label_weights: tuple[float, ...] = ()
    layers: str = flag(
        "last",
        "Layers of the encoder that are read; mix learns the weights of all.",
        ("last", "second_last", "first_last", "last4_sum", "last4_concat", "mix"),
    )
    head_lstm: int = flag(0, "Units of each direction of a BiLSTM between the encoder and the head; 0 means none.")
    pooling: str = flag(
        "",
        "What stands for a whole text: cls, mean or max of its tokens. Default: the pretrained pooler; the mean for "
        "similarity and embed, and with --head_lstm or other --layers.",
        ("", "cls", "mean", "max"),
    )
    normalize: bool = flag(True, "similarity, embed: vectors of length 1.")
    objective: str = flag(
        "",
        "similarity: ranking of each pair's second text before the others of the batch (of its part, on many devices), "
        "or cosines like the scores. "
        "Default: scores where there is a label column, else ranking.",
        ("", "ranking", "scores"),
    )
    similarity_scale: float = flag(20.0, "similarity: factor of cosines in the softmax of --objective=ranking.")
    max_score: float = flag(1.0, "similarity: score of texts that mean the same, such as 5 for STS; a cosine of 1.")
    decode: str = flag(
        "",
        "tag: argmax, or constrained to tags that can follow each other; span: joint search, or independent ends. "
        "Default: the first.",
        ("", "argmax", "constrained", "joint", "independent"),
    )
    max_entities: int = flag(64, "tag: entities of a text that are answered at most.")
    max_answer_length: int = flag(30, "span: longest answer in tokens.")
    n_best_size: int = flag(20, "span: answers that are given for each question, from the best on.")
    version_2_with_negative: bool = flag(False, "span: there are questions without an answer, as in SQuAD 2.0.")
    null_score_diff_threshold: float = flag(
        0.0, "span: no answer where no-answer scores more than this above the best; the evaluation tunes it."
    )
    top_k: int = flag(5, "fill_mask: words that are given for each mask, from the best on.")
    max_masks: int = flag(16, "fill_mask: masks of a text that are answered at most.")
    mask_token_id: int = -1
    max_target_length: int = flag(32, "generate: longest target in tokens, its end included; sources keep the rest.")
    beam_size: int = flag(1, "generate: hypotheses that the search goes on with; 1 is greedy search.")
    length_penalty: float = flag(0.6, "generate: how much longer targets are preferred; 0 compares probabilities.")

    def __post_init__(self) -> None:
        for name in ("labels", "label_weights"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_choices(self)
        suits = {"tag": ("", "argmax", "constrained"), "span": ("", "joint", "independent")}.get(self.task, ("",))
        require(self.decode in suits, f"decode must be one of {suits} for {self.task}, got {self.decode!r}")
        for name in ("max_entities", "max_answer_length", "n_best_size", "top_k", "max_masks", "beam_size"):
            require(1 <= getattr(self, name) <= 1000, f"{name} must be from 1 to 1000, got {getattr(self, name)}")
        require(math.isfinite(self.null_score_diff_threshold), "null_score_diff_threshold must be a number")
        require(self.max_target_length >= 2, f"max_target_length must be at least 2, got {self.max_target_length}")
        require(0 <= self.length_penalty <= 10, f"length_penalty must be from 0 to 10, got {self.length_penalty}")
        usual = {f.name: f.default for f in dataclasses.fields(self)}
        for name, tasks in MEANT_FOR.items():
            require(
                self.task in tasks or getattr(self, name) == usual[name],
                f"{name} has no meaning with the task {self.task}, only with {', '.join(tasks)}",
            )
        require(0 <= self.head_lstm <= 4096, f"head_lstm must be from 0 to 4096, got {self.head_lstm}")
        for name in ("similarity_scale", "max_score"):
            require(0 < getattr(self, name) < math.inf, f"{name} must be above 0, got {getattr(self, name)}")
        require(0 <= self.dropout < 1, f"dropout must be in [0, 1), got {self.dropout}")
        require(0 < self.threshold < 1, f"threshold must be in (0, 1), got {self.threshold}")
        require(0 <= self.label_smoothing < 1, f"label_smoothing must be in [0, 1), got {self.label_smoothing}")
        for name in ("label_smoothing", "label_weights"):
            require(
                not getattr(self, name) or self.task in WEIGHTED,
                f"{name} has no meaning with the task {self.task}, only with {' and '.join(WEIGHTED)}",
            )
        require(
            len(self.label_weights) in (0, len(self.labels)) and all(0 < w < math.inf for w in self.label_weights),
            f"label_weights must be a number above 0 for each of the labels, got {self.label_weights}",
        )
        twice = sorted({label for label in self.labels if self.labels.count(label) > 1})
        require(not twice, f"labels must be unique, these are not: {twice}")
