"""What a checkpoint says beside its weights, and the settings file that three of the formats share.

`bert_config.json` of google-research/bert, the same file beside a Model Garden checkpoint, and Hugging Face's
`config.json` use the same keys. Each key is one of: a setting of ours; one that leaves the arithmetic alone, which is
carried along, as is any that is off (false, null, empty); one that we support with one value only; or unknown, which is
refused.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from keras_bert.config import DataConfig, EncoderConfig, HeadConfig, TextConfig, WindowConfig, dumps, from_dict
from keras_bert.errors import CheckpointError, ConfigError
from keras_bert.text.vocabulary import read_vocabulary

VOCABULARY_FILE = "vocab.txt"
MAX_JSON_BYTES = 64 * 1024 * 1024
MAX_LAYERS = 1024

CONFIG_NAMES = {
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "hidden_dim": "hidden_size",
    "intermediate_dim": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "num_segments": "type_vocab_size",
    "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "initializer_range": "initializer_range",
    "layer_norm_epsilon": "layer_norm_eps",
    "pad_token_id": "pad_token_id",
}
"""Our field -> the key in `bert_config.json` and Hugging Face's `config.json`."""

ACTIVATION_NAMES = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_python": "gelu",
    "gelu_accurate": "gelu_tanh",
    "relu": "relu",
    "tanh": "tanh",
}

ONLY: dict[str, tuple[Any, ...]] = {
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "pruned_heads": ({}, None),
}
"""Keys that change the arithmetic, and the values that we compute."""

INERT = re.compile(
    r"architectures|transformers_version|_?name_or_path|_commit_hash|torch_dtype|dtype|gradient_checkpointing"
    r"|_?attn_implementation(_autoset)?|use_cache|output_past|output_(attentions|hidden_states|scores)|(use_)?return_dict"
    r"|return_dict_in_generate|torchscript|use_bfloat16|tie_(encoder_decoder|word_embeddings)|finetuning_task"
    r"|task_specific_params|problem_type|prefix|chunk_size_feed_forward|(bos|eos|sep|decoder_start|unk|cls|mask)_token_id"
    r"|cross_attention_hidden_size|tokenizer_class|_?num_labels|id2label|label2id|classifier_dropout|directionality"
    r"|pooler_(fc_size|num_attention_heads|num_fc_layers|size_per_head|type)|tf_legacy_loss|language|max_length"
    r"|min_length|do_sample|early_stopping|num_beams|num_beam_groups|diversity_penalty|temperature|top_[kp]|typical_p"
    r"|repetition_penalty|length_penalty|(encoder_)?no_repeat_ngram_size|bad_words_ids|num_return_sequences"
    r"|model_max_length|max_seq_len(gth)?|matryoshka_dimensions|summary_\w+|do_lower_case|model_name|loss_type|pre_trained"
    r"|sentence_transformers|sbert_ce_default_activation_function|is_training|vocab_type|add_pooling_layer|author|license"
    r"|forced_[be]os_token_id|remove_invalid_values|exponential_decay_length_penalty|(begin_)?suppress_tokens"
)
"""Keys that leave the arithmetic of an encoder and its heads alone."""

SAME_WIDTH = ("embedding_size", "emb_size")
"""Keys of models whose embeddings may be narrower than their layers; here they are as wide."""


@dataclass(frozen=True)
class Contents:
    """What a directory holds beside its weights.

    Attributes:
        origins: format -> file -> the keys found there that we have no use for, written back for that format.
        unknown: keys, as "file: key", of which nobody can say whether they change the arithmetic.
        absent: parts of the model that the files hold only because the format must have them.
        logit_order: for each of our logits the number of it in the files; empty where the order is the same.
        head_problem: why the head that the files name cannot be ours; empty where they name none.
        masked_words: whether the files name the head for masked words, and no other.
        remarks: lines for a report.
    """

    encoder: EncoderConfig
    text: TextConfig
    vocabulary: list[str]
    head: HeadConfig | None = None
    data: DataConfig | None = None
    windows: WindowConfig | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    logit_order: tuple[int, ...] = ()
    head_problem: str = ""
    masked_words: bool = False
    remarks: tuple[str, ...] = ()

    def origin(self, name: str, file: str) -> dict[str, Any]:
        """The keys to write back into a file of the format `name`."""
        return self.origins.get(name, {}).get(file, {})


def some(names: Any, limit: int = 8) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "nothing") + more


def read_json(path: Path, kind: type = dict) -> Any:
    """A JSON file that holds an object, or a list where `kind` is `list`.

    Raises:
        CheckpointError: it cannot be read, is larger than 64 MB, or holds something else.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path}: {path.stat().st_size:,} bytes is no settings file")
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, kind):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not {KINDS_OF_JSON[kind]}")
    return content


KINDS_OF_JSON: dict[Any, str] = {dict: "an object", list: "a list"}


def objects(file: Path, content: Mapping[str, Any], name: str, depth: int = 1) -> dict[str, Any]:
    """The object that a file has under a name, and objects in it down to a depth; an empty one where there is none.

    Raises:
        CheckpointError: it is something else.
    """
    value = content.get(name, {})
    inner = [value]
    for _ in range(depth):
        if not all(isinstance(each, dict) for each in inner):
            raise CheckpointError(f"{file}: {name} is not an object as deep as it should be")
        inner = [deeper for each in inner for deeper in each.values()]
    return value


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """A JSON file in our form."""
    path.write_text(dumps(content), "utf-8", newline="")


def write_vocabulary(path: Path, vocabulary: list[str]) -> None:
    """One piece a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(vocabulary) + "\n", "utf-8", newline="")


def find_vocabulary(path: Path) -> list[str]:
    """The pieces of `vocab.txt`, or of `tokenizer.json` where there is no such file.

    Raises:
        CheckpointError: there is neither.
        DataError: the file is broken.
    """
    file = path / VOCABULARY_FILE
    if not file.exists() and (path / "tokenizer.json").exists():
        file = path / "tokenizer.json"
    if not file.exists():
        raise CheckpointError(f"{path}: has no vocab.txt; put the vocabulary the model was trained with there")
    return read_vocabulary(file)


def is_cased(vocabulary: list[str]) -> bool:
    """Does any piece have a capital? Then the text was not lower-cased."""
    return any(re.search("[A-Z]", piece) and piece[0] not in "[<" for piece in vocabulary)


def text_config(
    file: Path, encoder: EncoderConfig, do_lower_case: bool, longest: int | None = None, **more: Any
) -> TextConfig:
    """Text settings; rows are as long as usual or `longest`, where the model allows.

    Args:
        more: further fields of `TextConfig`, such as the `flavour`, which goes by the format.
    """
    length = min(longest or TextConfig().max_seq_length, encoder.max_positions)
    return build(TextConfig, {"do_lower_case": do_lower_case, "max_seq_length": length, **more}, file)


def build(kind: type[Any], values: dict[str, Any], file: Path) -> Any:
    """A config from values found in a file.

    Raises:
        CheckpointError: a value is out of its range.
    """
    try:
        return from_dict(kind, values)
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{file}: {error}") from error


def numbers(raw: Mapping[str, Any], names: Mapping[str, str], file: Path) -> dict[str, Any]:
    """The fields of `EncoderConfig` that `raw` gives, each a number of the right kind.

    Raises:
        CheckpointError: one is none, or one that has no default is absent.
    """
    values = {ours: raw[theirs] for ours, theirs in names.items() if raw.get(theirs) is not None}
    missing = [names[k] for k in ("vocab_size", "num_layers", "num_heads", "hidden_dim") if k not in values]
    if missing:
        raise CheckpointError(f"{file}: has no {', '.join(missing)}")
    for ours, value in values.items():
        whole = isinstance(getattr(EncoderConfig, ours), int)
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or value < 0:
            what = "a whole number" if whole else "a number"
            raise CheckpointError(f"{file}: {names[ours]} must be {what}, got {value!r}")
    if values["num_layers"] > MAX_LAYERS:
        raise CheckpointError(f"{file}: {names['num_layers']} {values['num_layers']} is more than {MAX_LAYERS}")
    return values


def read_encoder(file: Path, gelu: str) -> tuple[EncoderConfig, dict[str, Any], dict[str, Any], tuple[str, ...]]:
    """The encoder that a `config.json` or `bert_config.json` describes.

    Args:
        gelu: what the format means by `"hidden_act": "gelu"`.

    Returns:
        The encoder, the whole file, the keys in it that leave the arithmetic alone, and the unknown ones.

    Raises:
        CheckpointError: the file is broken, or describes what we do not compute.
    """
    raw = read_json(file)
    if raw.get("model_type", "bert") != "bert":
        raise CheckpointError(f"{file}: model_type {raw['model_type']!r}; only bert can be loaded")
    for key, allowed in ONLY.items():
        if key in raw and raw[key] not in allowed:
            raise CheckpointError(f"{file}: {key} {raw[key]!r} is not supported")
    values = numbers(raw, CONFIG_NAMES, file)
    act = raw.get("hidden_act", "gelu")
    if not isinstance(act, str) or act not in ACTIVATION_NAMES:
        raise CheckpointError(f"{file}: hidden_act {act!r}; it can be one of {', '.join(ACTIVATION_NAMES)}")
    values["activation"] = gelu if act == "gelu" else ACTIVATION_NAMES[act]
    known = {*CONFIG_NAMES.values(), *ONLY, "hidden_act", "model_type"}
    rest = {key: value for key, value in raw.items() if key not in known}
    inert = {key: value for key, value in rest.items() if INERT.fullmatch(key)}
    width = values["hidden_dim"]
    unknown = tuple(
        f"{file.name}: {key}"
        for key, value in rest.items()
        if value and key not in inert and not (key in SAME_WIDTH and value == width)
    )
    return build(EncoderConfig, values, file), raw, rest, unknown


def encoder_keys(encoder: EncoderConfig, gelu: str) -> dict[str, Any]:
    """The keys that say `encoder`; `gelu` is what the format means by "gelu"."""
    names = {ours: theirs for theirs, ours in reversed(ACTIVATION_NAMES.items())} | {gelu: "gelu"}
    act = names.get(encoder.activation, "gelu")
    return {theirs: getattr(encoder, ours) for ours, theirs in CONFIG_NAMES.items()} | {"hidden_act": act}


def checked(path: Path, contents: Contents) -> Contents:
    """`contents`, whose vocabulary fits the model.

    Raises:
        CheckpointError: there are more pieces than rows for them.
    """
    size, rows = len(contents.vocabulary), contents.encoder.vocab_size
    if size > rows:
        raise CheckpointError(
            f"{path}: the vocabulary has {size} pieces but the model {rows} rows for them; they do not belong together"
        )
    if size < rows:
        remark = f"the vocabulary has {size} pieces; the last {rows - size} rows of the token table have none"
        return dataclasses.replace(contents, remarks=(*contents.remarks, remark))
    return contents
