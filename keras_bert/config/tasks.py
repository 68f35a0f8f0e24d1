"""The columns of a file, and one dataclass for each task: its own fields, and its facts.

A task is a class here and a head in `tasks/`. `TASKS` and `tasks.HEADS` are open: a row in both is a new task, for
Python and for the commands.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from keras_bert.config.base import check_choices, choose, flag, require
from keras_bert.tags import order_of, read_tags, tags_of

MOST_DENSE = 8
"""Dense layers over a pooled vector."""

READS = ("row", "each", "choices", "offsets", "windows")
"""How an example is read: its texts as one row; each text as a row; its text with each choice as a row; as one row with
the place of each token in the text; or in overlapping windows, with these places too."""


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


# === The form of all ===


@dataclass(frozen=True)
class HeadConfig:
    """What is asked of the encoder.

    `HeadConfig(task="span", n_best_size=5)` is a `SpanConfig`: each task has a class of its own in `TASKS`, with the
    fields that only it has. `labels` are label values as the training file writes them, in the order of class ids.

    Attributes:
        reads: how an example is read, one of `READS`.
        source: the class of `data` that reads its files and encodes its labels, or "module:name" of it.
        scores: the class that judges scores of whole rows (`tasks.scores`), or its "module:name"; "" if the answer is
            no such score.
        has_labels: whether it has label values, given or found in the training file.
        paired: whether it needs a second text.
        single: whether it reads single texts only.
        columns: names of columns that differ from `DataConfig` in its files.
        untrainable: why fine-tuning cannot train it; "" if it can.
        pretrained: whether a pretrained checkpoint answers it without training.
        longest_row: tokens of the longest row, as usual for the task; 0 is what the checkpoint says.
        encoder_only: whether it uses only the encoder of a checkpoint, whatever that was trained for.
        form: what weights its head has, a name of `model.shapes.FORMS`.
        fits_csv: whether `predict` can write its answers into a csv file.
        portable: what models for LiteRT and ONNX give: "answer", "embedding" or "logits"; "" if there are none.
        pipeline: tag of the task in a model card.
        architecture, problem_type: class of transformers that computes it, and its `problem_type`.
    """

    task: str = "classify"
    labels: tuple[str, ...] = ()
    dropout: float = flag(0.1, "Dropout before the last layer of the head.")

    reads: ClassVar[str] = "row"
    source: ClassVar[Any] = "keras_bert.data.labels:Classes"
    scores: ClassVar[Any] = ""
    has_labels: ClassVar[bool] = False
    paired: ClassVar[bool] = False
    single: ClassVar[bool] = False
    columns: ClassVar[Mapping[str, str]] = {}
    untrainable: ClassVar[str] = ""
    pretrained: ClassVar[bool] = False
    longest_row: ClassVar[int] = 0
    encoder_only: ClassVar[bool] = False
    form: ClassVar[Any] = "words"
    fits_csv: ClassVar[bool] = True
    portable: ClassVar[str] = ""
    pipeline: ClassVar[str] = ""
    architecture: ClassVar[str] = ""
    problem_type: ClassVar[str] = ""

    if TYPE_CHECKING:  # the fields of every task may be given; `__new__` picks the class that has them

        def __init__(self, task: str = "classify", labels: Any = (), **fields: Any) -> None: ...

    def __new__(cls, task: str = "", *_: Any, **fields: Any) -> "HeadConfig":
        kind = choose(TASKS, task or "classify", "task") if cls is HeadConfig else cls
        for name in fields:
            require(_has(kind, name) or not _owners(name), _foreign(name, task or kind.task))
        return object.__new__(kind)

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))
        check_choices(self)
        self.check()

    def check(self) -> None:
        """Raises ConfigError if a value is out of its range."""
        require(0 <= self.dropout < 1, f"dropout must be in [0, 1), got {self.dropout}")
        twice = sorted({label for label in self.labels if self.labels.count(label) > 1})
        require(not twice, f"labels must be unique, these are not: {twice}")

    @property
    def width(self) -> int:
        """Number of logits per example, or per token."""
        return len(self.labels)

    @property
    def logit_labels(self) -> tuple[str, ...]:
        """Names of the logits, where labels give them names."""
        return self.labels

    @classmethod
    def of_logits(cls, names: tuple[str, ...]) -> tuple[dict[str, Any], tuple[int, ...]]:
        """The fields of a head whose logits have these names, and the number in `names` of each of our logits; no
        numbers if the order is the same.

        Raises:
            ConfigError: a head for the task has other logits.
        """
        return {"labels": names if cls.has_labels else ()}, ()

    @property
    def whole_batch(self) -> bool:
        """Whether the loss compares the rows of a batch, so that a batch cannot be cut into parts."""
        return False

    @classmethod
    def variants(cls) -> Mapping[str, type["HeadConfig"]]:
        """The classes whose fields are flags, by task."""
        return TASKS if cls is HeadConfig else {cls.task: cls}

    @classmethod
    def variant(cls, values: Mapping[str, Any]) -> tuple[type["HeadConfig"], dict[str, Any]]:
        """The class of the task that `values` name, and those of the values that are its fields.

        Values of other tasks' fields are left out if they are the defaults, as runs of former versions hold them.

        Raises:
            ConfigError: no such task, or a value of another task's field is not its default.
        """
        task = values.get("task", cls.task)
        require(isinstance(task, str), f"task must be a name, got {task!r}")
        kind = choose(TASKS, task, "task") if cls is HeadConfig else cls
        own = {}
        for name, value in values.items():
            owners = _owners(name)
            if _has(kind, name) or not owners:
                own[name] = value
            else:
                usual = getattr(TASKS[owners[0]], name)
                require(value == usual or (usual == () and value == []), _foreign(name, task))
        return kind, own


def _has(kind: type, name: str) -> bool:
    return any(f.name == name for f in dataclasses.fields(kind))


def _owners(name: str) -> list[str]:
    """The tasks that have this field."""
    return [task for task, kind in TASKS.items() if _has(kind, name)]


def _foreign(name: str, task: str) -> str:
    return f"{name} has no meaning with the task {task}, only with {', '.join(_owners(name))}"


@dataclass(frozen=True)
class LayersConfig(HeadConfig):
    """A head over layers of the encoder that can be chosen."""

    layers: str = flag(
        "last",
        "Layers of the encoder that are read; mix learns the weights of all.",
        "keras_bert.model.readout:LAYERS",
    )
    head_lstm: int = flag(0, "Units of each direction of a BiLSTM between the encoder and the head; 0 means none.")

    form: ClassVar[Any] = "tokens"

    def check(self) -> None:
        super().check()
        require(0 <= self.head_lstm <= 4096, f"head_lstm must be from 0 to 4096, got {self.head_lstm}")


@dataclass(frozen=True)
class SentenceConfig(LayersConfig):
    """A head over one vector of a row."""

    pooling: str = flag(
        "",
        "What stands for a whole text: cls, mean or max of its tokens. Default: the pretrained pooler; the mean for "
        "similarity and embed, and with --head_lstm or other --layers.",
        "keras_bert.model.readout:POOLINGS",
    )

    form: ClassVar[Any] = "sentence"


@dataclass(frozen=True)
class WeightedConfig(SentenceConfig):
    """A head whose labels can be smoothed and weighted, and decided by a threshold.

    `threshold` is the score from which a label counts as active (multilabel), and above which the last of two labels is
    the answer (classify). `label_smoothing` and `label_weights`, one for each label if there are any, shape the loss of
    training; `FinetuneConfig` says how.
    """

    threshold: float = 0.5
    label_smoothing: float = 0.0
    label_weights: tuple[float, ...] = ()

    has_labels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "label_weights", tuple(self.label_weights))
        super().__post_init__()

    def check(self) -> None:
        super().check()
        require(0 < self.threshold < 1, f"threshold must be in (0, 1), got {self.threshold}")
        require(0 <= self.label_smoothing < 1, f"label_smoothing must be in [0, 1), got {self.label_smoothing}")
        require(
            len(self.label_weights) in (0, len(self.labels)) and all(0 < w < math.inf for w in self.label_weights),
            f"label_weights must be a number above 0 for each of the labels, got {self.label_weights}",
        )


@dataclass(frozen=True)
class VectorConfig(SentenceConfig):
    """A head that gives a vector of each text.

    `pooling` may join several poolings, such as "cls+mean": their vectors stand side by side. `dense_units`,
    `dense_activations` and `dense_biases` describe dense layers over the pooled vector, one entry for each. A `prompt`
    is put before each text; `query_prompt` and `document_prompt` take its place in the signatures `query` and
    `document`, which a model has if one of the three is set.
    """

    normalize: bool = flag(True, "vectors of length 1.")
    dimensions: int = flag(0, "numbers of a vector that are kept, the first ones; 0 keeps all.")
    prompt: str = flag("", "text that is put before each text.")
    query_prompt: str = flag("", "text that is put before each query, in the signature query.")
    document_prompt: str = flag("", "text that is put before each document, in the signature document.")
    dense_units: tuple[int, ...] = ()
    dense_activations: tuple[str, ...] = ()
    dense_biases: tuple[bool, ...] = ()

    form: ClassVar[Any] = "vectors"
    pretrained: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("dense_units", "dense_activations", "dense_biases"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        super().__post_init__()

    def check(self) -> None:
        super().check()
        require(0 <= self.dimensions < 2**20, f"dimensions must be 0 or more, got {self.dimensions}")
        require(
            len(self.dense_units) == len(self.dense_activations) == len(self.dense_biases) <= MOST_DENSE,
            f"dense_units, dense_activations and dense_biases must be equally many, at most {MOST_DENSE}",
        )
        require(all(units >= 1 for units in self.dense_units), f"dense_units must be positive, got {self.dense_units}")

    @property
    def poolings(self) -> tuple[str, ...]:
        """The names of the poolings whose vectors are joined."""
        return tuple((self.pooling or "mean").split("+"))

    @property
    def has_prompts(self) -> bool:
        """Whether queries and documents are told apart, or any text gets a prompt."""
        return bool(self.prompt or self.query_prompt or self.document_prompt)


# === Tasks ===


@dataclass(frozen=True)
class ClassifyConfig(WeightedConfig):
    """One of n labels."""

    scores: ClassVar[Any] = "keras_bert.tasks.scores:ClassScores"
    portable: ClassVar[str] = "answer"
    pipeline: ClassVar[str] = "text-classification"
    architecture: ClassVar[str] = "BertForSequenceClassification"
    problem_type: ClassVar[str] = "single_label_classification"


@dataclass(frozen=True)
class MultilabelConfig(WeightedConfig):
    """Any number of n labels."""

    task: str = "multilabel"

    source: ClassVar[Any] = "keras_bert.data.labels:LabelSets"
    scores: ClassVar[Any] = "keras_bert.tasks.scores:LabelScores"
    portable: ClassVar[str] = "answer"
    pipeline: ClassVar[str] = "text-classification"
    architecture: ClassVar[str] = "BertForSequenceClassification"
    problem_type: ClassVar[str] = "multi_label_classification"


@dataclass(frozen=True)
class RegressConfig(SentenceConfig):
    """One number: the logit, or what `activation` makes of it."""

    task: str = "regress"
    activation: str = flag(
        "", "what makes a score of the logit: sigmoid; default: nothing.", "keras_bert.tasks.regress:ACTIVATIONS"
    )

    source: ClassVar[Any] = "keras_bert.data.labels:Numbers"
    scores: ClassVar[Any] = "keras_bert.tasks.scores:NumberScores"
    portable: ClassVar[str] = "answer"
    pipeline: ClassVar[str] = "text-classification"
    architecture: ClassVar[str] = "BertForSequenceClassification"
    problem_type: ClassVar[str] = "regression"

    @property
    def width(self) -> int:
        return 1


@dataclass(frozen=True)
class ChoiceConfig(SentenceConfig):
    """One of the choices of a question."""

    task: str = "choice"

    reads: ClassVar[str] = "choices"
    source: ClassVar[Any] = "keras_bert.data.choices:Choices"
    pipeline: ClassVar[str] = "multiple-choice"
    architecture: ClassVar[str] = "BertForMultipleChoice"

    @property
    def width(self) -> int:
        return 1


@dataclass(frozen=True)
class SimilarityConfig(VectorConfig):
    """How similar two texts are."""

    task: str = "similarity"
    objective: str = flag(
        "",
        "ranking of each pair's second text before the others of the batch (of its part, on many devices), or cosines "
        "like the scores. Default: scores where there is a label column, else ranking.",
        "keras_bert.tasks.cosines:OBJECTIVES",
    )
    similarity_scale: float = flag(20.0, "factor of cosines in the softmax of --objective=ranking.")
    max_score: float = flag(1.0, "score of texts that mean the same, such as 5 for STS; a cosine of 1.")

    reads: ClassVar[str] = "each"
    source: ClassVar[Any] = "keras_bert.data.pairs:Pairs"
    paired: ClassVar[bool] = True
    portable: ClassVar[str] = "embedding"
    pipeline: ClassVar[str] = "sentence-similarity"

    def check(self) -> None:
        super().check()
        for name in ("similarity_scale", "max_score"):
            require(0 < getattr(self, name) < math.inf, f"{name} must be above 0, got {getattr(self, name)}")

    @property
    def whole_batch(self) -> bool:
        return self.objective == "ranking"


@dataclass(frozen=True)
class EmbedConfig(VectorConfig):
    """A vector of each text."""

    task: str = "embed"

    untrainable: ClassVar[str] = "embed has nothing to learn from; similarity learns from pairs of texts"
    encoder_only: ClassVar[bool] = True
    fits_csv: ClassVar[bool] = False
    pipeline: ClassVar[str] = "feature-extraction"


@dataclass(frozen=True)
class TagConfig(LayersConfig):
    """Entities in a text; the labels are their types.

    `tags` are the names of the logits of a published head whose scheme is another than O with B- and I- of each label.
    """

    task: str = "tag"
    decode: str = flag(
        "",
        "argmax (default), or constrained to tags that can follow each other.",
        "keras_bert.tasks.tagging:DECODES",
    )
    max_entities: int = flag(64, "entities of a text that are answered at most.")
    join_tags: bool = flag(
        False,
        "of a published head: E-, S-, M-, L- and U- are parts of the entities of their type, as BIOES and BMES mean "
        "them. Default: each is an entity of its own, as transformers answers.",
    )
    tags: tuple[str, ...] = ()

    reads: ClassVar[str] = "windows"
    source: ClassVar[Any] = "keras_bert.data.entities:Entities"
    has_labels: ClassVar[bool] = True
    fits_csv: ClassVar[bool] = False
    portable: ClassVar[str] = "logits"
    pipeline: ClassVar[str] = "token-classification"
    architecture: ClassVar[str] = "BertForTokenClassification"

    def __post_init__(self) -> None:
        object.__setattr__(self, "tags", tuple(self.tags))
        super().__post_init__()

    def check(self) -> None:
        super().check()
        check_counts(self, "max_entities")
        types = set(read_tags(self.tags).types)
        require(not types or types == set(self.labels), f"labels must be the types of the tags, {sorted(types)}")

    @property
    def width(self) -> int:
        return len(self.logit_labels)

    @property
    def logit_labels(self) -> tuple[str, ...]:
        return self.tags or tags_of(self.labels)

    @classmethod
    def of_logits(cls, names: tuple[str, ...]) -> tuple[dict[str, Any], tuple[int, ...]]:
        reading = read_tags(names)
        require(
            bool(reading.types) and "" not in reading.types, "name no types of entities, which a head for tag needs"
        )
        values: dict[str, Any] = {} if 0 in reading.numbers else {"max_entities": MOST_WORDS}
        order = order_of(reading)
        if order is None:
            return values | {"labels": tuple(dict.fromkeys(reading.types)), "tags": names}, ()
        return values | {"labels": reading.keys}, () if order == tuple(range(len(names))) else order


@dataclass(frozen=True)
class SpanConfig(LayersConfig):
    """The answer to a question in a passage."""

    task: str = "span"
    decode: str = flag("", "joint search (default), or independent ends.", "keras_bert.tasks.spans:DECODES")
    max_answer_length: int = flag(30, "longest answer in tokens.")
    n_best_size: int = flag(20, "answers that are given for each question, from the best on.")
    version_2_with_negative: bool = flag(False, "there are questions without an answer, as in SQuAD 2.0.")
    null_score_diff_threshold: float = flag(
        0.0, "no answer where no-answer scores more than this above the best; the evaluation tunes it."
    )

    reads: ClassVar[str] = "windows"
    longest_row: ClassVar[int] = 384
    source: ClassVar[Any] = "keras_bert.data.questions:Answers"
    paired: ClassVar[bool] = True
    fits_csv: ClassVar[bool] = False
    portable: ClassVar[str] = "logits"
    pipeline: ClassVar[str] = "question-answering"
    architecture: ClassVar[str] = "BertForQuestionAnswering"

    def check(self) -> None:
        super().check()
        check_counts(self, "max_answer_length", "n_best_size")
        require(math.isfinite(self.null_score_diff_threshold), "null_score_diff_threshold must be a number")

    @property
    def width(self) -> int:
        return 2


@dataclass(frozen=True)
class FillMaskConfig(HeadConfig):
    """The words at the masks of a text. `mask_token_id` is the number of [MASK] in the vocabulary."""

    task: str = "fill_mask"
    top_k: int = flag(5, "words that are given for each mask, from the best on.")
    max_masks: int = flag(16, "masks of a text that are answered at most.")
    mask_token_id: int = -1

    reads: ClassVar[str] = "offsets"
    source: ClassVar[Any] = "keras_bert.data.masked:MaskedWords"
    single: ClassVar[bool] = True
    columns: ClassVar[Mapping[str, str]] = {"label_column": "target"}
    untrainable: ClassVar[str] = "fill_mask is learnt by pretraining: `keras-bert pretrain`"
    pretrained: ClassVar[bool] = True
    fits_csv: ClassVar[bool] = False
    pipeline: ClassVar[str] = "fill-mask"

    def check(self) -> None:
        super().check()
        check_counts(self, "top_k", "max_masks")


@dataclass(frozen=True)
class GenerateConfig(HeadConfig):
    """A text that follows a text."""

    task: str = "generate"
    max_target_length: int = flag(32, "longest target in tokens, its end included; sources keep the rest.")
    beam_size: int = flag(1, "hypotheses that the search goes on with; 1 is greedy search.")
    length_penalty: float = flag(0.6, "how much longer targets are preferred; 0 compares probabilities.")

    source: ClassVar[Any] = "keras_bert.data.masked:Targets"
    single: ClassVar[bool] = True
    columns: ClassVar[Mapping[str, str]] = {"text_column": "source", "label_column": "target"}
    pipeline: ClassVar[str] = "text2text-generation"

    def check(self) -> None:
        super().check()
        check_counts(self, "beam_size")
        require(self.max_target_length >= 2, f"max_target_length must be at least 2, got {self.max_target_length}")
        require(0 <= self.length_penalty <= 10, f"length_penalty must be from 0 to 10, got {self.length_penalty}")


MOST_WORDS = 256
"""Entities of a text that are answered at most where each word is one, as in tags of parts of speech."""


def check_counts(config: HeadConfig, *names: str) -> None:
    """Raises ConfigError if one of these fields is not from 1 to 1000."""
    for name in names:
        require(1 <= getattr(config, name) <= 1000, f"{name} must be from 1 to 1000, got {getattr(config, name)}")


TASKS: dict[str, type[HeadConfig]] = {
    "classify": ClassifyConfig,
    "multilabel": MultilabelConfig,
    "regress": RegressConfig,
    "choice": ChoiceConfig,
    "similarity": SimilarityConfig,
    "tag": TagConfig,
    "span": SpanConfig,
    "generate": GenerateConfig,
    "fill_mask": FillMaskConfig,
    "embed": EmbedConfig,
}


def tasks_with(kind: type[HeadConfig] = HeadConfig, **facts: Any) -> list[str]:
    """The tasks whose class is a `kind` with these facts, such as `tasks_with(has_labels=True)`."""
    return [
        task
        for task, one in TASKS.items()
        if issubclass(one, kind) and all(getattr(one, name) == value for name, value in facts.items())
    ]
