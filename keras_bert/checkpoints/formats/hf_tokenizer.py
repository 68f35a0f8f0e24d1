"""Hugging Face's tokenizer files: the vocabulary, what is done to a text, and the tokens that were added.

`tokenizer.json` says everything, and `tokenizer_config.json` what the class of the tokenizer makes of it; older
directories have `vocab.txt`, `special_tokens_map.json` and `added_tokens.json` instead. What we do not compute is
refused by name.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_bert.checkpoints.formats.settings import (
    VOCABULARY_FILE,
    Contents,
    find_vocabulary,
    is_cased,
    read_json,
    write_json,
    write_vocabulary,
)
from keras_bert.config import ADDED_FLAGS, TextConfig
from keras_bert.errors import CheckpointError
from keras_bert.text.vocabulary import read_vocabulary
from keras_bert.text.wordpiece import MAX_WORD_CHARACTERS, UNKNOWN

CONFIG_FILE, WHOLE_FILE = "tokenizer_config.json", "tokenizer.json"
SPECIAL_FILE, ADDED_FILE = "special_tokens_map.json", "added_tokens.json"
FLAVOUR = "hf"
SPECIAL_TOKENS = {name: f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")}
FURTHER_TOKENS = ("bos_token", "eos_token", "extra_special_tokens", "additional_special_tokens")
"""Keys that name special tokens. Release 5 of transformers does not take those of the last one for special in
`added_tokens.json`."""
OWN_CLASSES = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", None)
"""Classes that take their settings from `tokenizer_config.json`, over those of `tokenizer.json`."""
CLASSES = (*OWN_CLASSES, "PreTrainedTokenizer", "TokenizersBackend")
ONLY: dict[str, tuple[Any, ...]] = {
    "do_basic_tokenize": (True, None),
    "never_split": (None, []),
    "split_special_tokens": (False, None),
}
"""Keys of `tokenizer_config.json` that change ids, and the values that ours computes."""
SIDES = {"right": "head", "left": "tail", None: "head"}
"""Which end of a text is cut off, and the part that is kept."""
PREFIX = "##"
TEMPLATE = {"single": ("[CLS]", "A", "[SEP]"), "pair": ("[CLS]", "A", "[SEP]", "B", "[SEP]")}
TYPES = {"single": (0, 0, 0), "pair": (0, 0, 0, 1, 1)}


@dataclass(frozen=True)
class Read:
    """What the files say: pieces in the order of ids, fields of `TextConfig`, and the keys that we have no use for.

    `remarks` are lines for a report.
    """

    vocabulary: list[str]
    text: dict[str, Any]
    rest: dict[str, Any]
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Added:
    """An added token as the files have it; an id that they do not say is None."""

    content: str
    number: int | None
    single_word: bool = False
    normalized: bool = False


def read(path: Path) -> Read:
    """What the tokenizer files in a directory say.

    Raises:
        CheckpointError: they are broken, contradict each other, or say what we do not compute.
        DataError: the vocabulary is broken.
    """
    file = path / CONFIG_FILE
    said = read_json(file) if file.exists() else {}
    whole = read_json(path / WHOLE_FILE) if (path / WHOLE_FILE).exists() else {}
    _check(file, said)
    pieces = _pieces(path, whole)
    vocabulary, added = _with_added(path, pieces, list(_added(path, said, whole)))
    own = not whole or _class(said) in OWN_CLASSES
    of_whole, remarks = _of_whole(path / WHOLE_FILE, whole, own)
    text = {"do_lower_case": not is_cased(pieces)} | of_whole | _of_class(said, own)
    text |= {"truncation_part": SIDES[said.get("truncation_side")], "added_tokens": list(added)}
    text["added_flags"] = [" ".join(flags) for flags in added.values()]
    written = {"do_lower_case", "tokenizer_class", "strip_accents", "tokenize_chinese_chars", "added_tokens_decoder"}
    written |= {f"{name}_token" for name in SPECIAL_TOKENS}
    usual = TextConfig(flavour=FLAVOUR)
    text = {name: value for name, value in text.items() if value != getattr(usual, name) or name == "do_lower_case"}
    return Read(vocabulary, text, {key: value for key, value in said.items() if key not in written}, remarks)


def write(path: Path, contents: Contents) -> None:
    """Write `vocab.txt` and `tokenizer_config.json`, which hold all but a length of words of one's own."""
    text, vocabulary = contents.text, contents.vocabulary
    added = {token.content: token for token in text.tokenizer["added_tokens"]}
    pieces = [piece for piece in vocabulary if piece not in added or added[piece].piece]
    special = {f"{name}_token": token for name, token in SPECIAL_TOKENS.items() if token in vocabulary}
    said = {"do_lower_case": text.do_lower_case, "tokenizer_class": "BertTokenizer", **special}
    if text.accents:
        said["strip_accents"] = text.accents == "strip"
    if not text.chinese_chars:
        said["tokenize_chinese_chars"] = False
    if added:
        flags = {name: (token.single_word, token.normalized) for name, token in added.items()}
        flags |= dict.fromkeys(special.values(), (False, False))
        said["added_tokens_decoder"] = {
            str(vocabulary.index(content)): {
                "content": content,
                "lstrip": False,
                "normalized": normalized,
                "rstrip": False,
                "single_word": single_word,
                "special": not normalized,
            }
            for content, (single_word, normalized) in sorted(flags.items(), key=lambda item: vocabulary.index(item[0]))
        }
    usual = {"model_max_length": contents.encoder.max_positions}
    write_json(path / CONFIG_FILE, usual | contents.origin("hf", CONFIG_FILE) | said)
    write_vocabulary(path / VOCABULARY_FILE, pieces)


# === Settings ===


def _class(said: Mapping[str, Any]) -> Any:
    name = said.get("tokenizer_class")
    return name.removesuffix("Fast") if isinstance(name, str) else name


def _check(file: Path, said: Mapping[str, Any]) -> None:
    """Raises CheckpointError where `tokenizer_config.json` says what we do not compute."""
    if _class(said) not in CLASSES:
        raise CheckpointError(
            f"{file}: tokenizer_class {said['tokenizer_class']!r} changes the ids and is not supported"
        )
    for key, allowed in ONLY.items():
        if key in said and said[key] not in allowed:
            raise CheckpointError(f"{file}: {key} {said[key]!r} changes the ids and is not supported")
    for key in ("strip_accents", "tokenize_chinese_chars"):
        if not isinstance(said.get(key), bool | None):
            raise CheckpointError(f"{file}: {key} must be true or false, got {said[key]!r}")
    if said.get("truncation_side") not in SIDES:
        raise CheckpointError(f"{file}: truncation_side {said['truncation_side']!r}; it can be left or right")
    _check_special(file, said)


def _check_special(file: Path, said: Mapping[str, Any]) -> None:
    """Raises CheckpointError if one of the five special tokens that all have is called otherwise."""
    for name, usual in SPECIAL_TOKENS.items():
        token = said.get(f"{name}_token", usual)
        token = token.get("content") if isinstance(token, dict) else token
        if token not in (usual, None):
            raise CheckpointError(f"{file}: {name}_token is {token!r}; only {usual} is supported")


def _of_class(said: Mapping[str, Any], own: bool) -> dict[str, Any]:
    """What `tokenizer_config.json` says of the text, where the class of the tokenizer heeds it."""
    found: dict[str, Any] = {}
    if isinstance(said.get("do_lower_case"), bool) and own:
        found["do_lower_case"] = said["do_lower_case"]
    if "strip_accents" in said and own:
        found["accents"] = ACCENTS[said["strip_accents"]]
    if isinstance(said.get("tokenize_chinese_chars"), bool) and own:
        found["chinese_chars"] = said["tokenize_chinese_chars"]
    return found


ACCENTS = {None: "", True: "strip", False: "keep"}


def _of_whole(file: Path, whole: Mapping[str, Any], own: bool) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What `tokenizer.json` says of the text.

    The classes of BERT make a normalizer, a pre-tokenizer and a template of their own, so where the file has others a
    remark says that they do not count.

    Raises:
        CheckpointError: it is not what a BERT tokenizer does.
    """
    if not whole:
        return {}, ()
    parts = {name: whole.get(name) for name in ("normalizer", "pre_tokenizer", "post_processor")}
    if not all(isinstance(part, dict | None) for part in parts.values()):
        raise CheckpointError(f"{file}: {', '.join(parts)} must be objects")
    found, remarks = _model(file, whole), list[str]()
    for name, part in parts.items():
        if part is None and own:
            continue
        try:
            found |= PARTS[name](file, part)
        except CheckpointError as error:
            if not own:
                raise
            remarks.append(f"{str(error).partition(',')[0]}: texts are read as BertTokenizer reads them")
            found |= {"do_lower_case": True} if "Lowercase" in str(part) else {}
    return found, tuple(remarks)


def _pre_tokenizer(file: Path, said: dict[str, Any] | None) -> dict[str, Any]:
    kind = (said or {}).get("type", "none")
    if kind != "BertPreTokenizer":
        raise CheckpointError(f"{file}: pre_tokenizer {kind} is not supported, only BertPreTokenizer")
    return {}


def _normalizer(file: Path, said: dict[str, Any] | None) -> dict[str, Any]:
    steps = said.get("normalizers", [said]) if said else []
    kinds = [str(step.get("type")) for step in steps]
    bert = [step for step in steps if step.get("type") == "BertNormalizer"]
    if len(bert) != 1 or not set(kinds) <= {"BertNormalizer", "Lowercase"}:
        raise CheckpointError(
            f"{file}: normalizer {' and '.join(kinds) or 'none'} is not supported, only BertNormalizer, also with "
            "Lowercase"
        )
    step = bert[0]
    if not step.get("clean_text", True):
        raise CheckpointError(f"{file}: clean_text false is not supported")
    lower, strip = step.get("lowercase", True), step.get("strip_accents")
    if "Lowercase" in kinds and not lower:
        lower, strip = True, bool(strip)
    chinese = step.get("handle_chinese_chars", True)
    if not isinstance(lower, bool) or strip not in ACCENTS or not isinstance(chinese, bool):
        raise CheckpointError(f"{file}: BertNormalizer has a setting that is neither true nor false")
    accents = "" if strip is None or strip == lower else ACCENTS[strip]
    return {"do_lower_case": lower, "accents": accents, "chinese_chars": chinese}


def _template(file: Path, said: dict[str, Any] | None) -> dict[str, Any]:
    """Nothing, if rows are `[CLS] A [SEP]` and `[CLS] A [SEP] B [SEP]`."""
    said = said or {"type": "none"}
    kind = said.get("type")
    if kind == "BertProcessing":
        ends = [said.get(name, [None])[0] for name in ("cls", "sep")]
        if ends != ["[CLS]", "[SEP]"]:
            raise CheckpointError(f"{file}: post_processor puts {ends} around a text, not [CLS] and [SEP]")
        return {}
    if kind != "TemplateProcessing":
        raise CheckpointError(f"{file}: post_processor {kind} is not supported, only BertProcessing or a template")
    for name, wanted in TEMPLATE.items():
        parts = [value for part in said.get(name, []) for value in part.values()]
        found = tuple(part.get("id") for part in parts)
        types = tuple(part.get("type_id") for part in parts)
        if (found, types) != (wanted, TYPES[name]):
            raise CheckpointError(f"{file}: post_processor makes rows of {found} with types {types}; not supported")
    return {}


PARTS: dict[str, Callable[[Path, dict[str, Any] | None], dict[str, Any]]] = {
    "normalizer": _normalizer,
    "pre_tokenizer": _pre_tokenizer,
    "post_processor": _template,
}
"""Parts of `tokenizer.json`, and what makes fields of `TextConfig` of them."""


def _model(file: Path, whole: Mapping[str, Any]) -> dict[str, Any]:
    model = whole.get("model")
    if not isinstance(model, dict):
        raise CheckpointError(f"{file}: not a tokenizer file (it has no model)")
    for key, usual in (("unk_token", UNKNOWN), ("continuing_subword_prefix", PREFIX)):
        if model.get(key, usual) != usual:
            raise CheckpointError(f"{file}: {key} is {model[key]!r}; only {usual} is supported")
    limit = model.get("max_input_chars_per_word", MAX_WORD_CHARACTERS[FLAVOUR])
    if type(limit) is not int or limit < 1:
        raise CheckpointError(f"{file}: max_input_chars_per_word must be a whole number, got {limit!r}")
    return {"max_word_length": 0 if limit == MAX_WORD_CHARACTERS[FLAVOUR] else limit}


# === Vocabulary ===


def _pieces(path: Path, whole: Mapping[str, Any]) -> list[str]:
    """The pieces of `tokenizer.json`, or of `vocab.txt`, which must agree where there are both."""
    if not whole:
        return find_vocabulary(path)
    pieces = read_vocabulary(path / WHOLE_FILE)
    if (path / VOCABULARY_FILE).exists():
        listed = read_vocabulary(path / VOCABULARY_FILE)
        if [piece.rstrip() for piece in listed[: len(pieces)]] != [piece.rstrip() for piece in pieces]:
            raise CheckpointError(
                f"{path}: {VOCABULARY_FILE} and {WHOLE_FILE} hold different pieces; delete the file that the model was "
                "not trained with"
            )
    return pieces


def _added(path: Path, said: Mapping[str, Any], whole: Mapping[str, Any]) -> Iterator[Added]:
    """The added tokens of all files, in the order in which they count."""
    file = path / CONFIG_FILE
    if "added_tokens_decoder" in said:
        for number, token in _object(file, "added_tokens_decoder", said["added_tokens_decoder"]).items():
            yield _token(file, token, int(number) if number.isdecimal() else None)
    for token in whole.get("added_tokens") or []:
        yield _token(path / WHOLE_FILE, token, token.get("id") if isinstance(token, dict) else None)
    sources = [(file, said)]
    if "added_tokens_decoder" not in said and (path / SPECIAL_FILE).exists():
        sources.append((path / SPECIAL_FILE, read_json(path / SPECIAL_FILE)))
        _check_special(*sources[-1])
    special = [token for source in sources for token in _further(*source, FURTHER_TOKENS)]
    if "added_tokens_decoder" not in said and (path / ADDED_FILE).exists():
        names = {token.content for source in sources for token in _further(*source, FURTHER_TOKENS[:-1])}
        for content, number in read_json(path / ADDED_FILE).items():
            if type(number) is not int:
                raise CheckpointError(f"{path / ADDED_FILE}: the id of {content!r} is {number!r}")
            yield Added(content, number, normalized=content not in names)
    yield from special


def _further(file: Path, said: Mapping[str, Any], keys: Sequence[str]) -> Iterator[Added]:
    """Tokens that are named as special besides the five that all have."""
    for key in keys:
        value = said.get(key)
        values = value.values() if isinstance(value, dict) and "content" not in value else value
        for token in values if isinstance(values, list | type({}.values())) else [values]:
            if token is not None:
                yield _token(file, {"content": token} if isinstance(token, str) else token, None, special=True)


def _token(file: Path, said: Any, number: Any, special: bool = False) -> Added:
    if not isinstance(said, dict) or not isinstance(said.get("content"), str):
        raise CheckpointError(f"{file}: an added token must be an object with content, got {str(said)[:80]}")
    is_special = special or bool(said.get("special", False))
    single, normalized = bool(said.get("single_word", False)), bool(said.get("normalized", not is_special))
    return Added(said["content"], number, single, normalized)


def _object(file: Path, key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: {key} must be an object")
    return value


def _with_added(path: Path, pieces: list[str], added: list[Added]) -> tuple[list[str], dict[str, list[str]]]:
    """The vocabulary with the added tokens, and for those that are looked for in texts their `added_flags`.

    The five special tokens that all have are ordinary text where a user types them.

    Raises:
        CheckpointError: an id is not that of the piece, or leaves a gap behind the vocabulary.
    """
    numbers = {piece.rstrip(): number for number, piece in enumerate(pieces)}
    first: dict[str, Added] = {}
    for token in added:
        first.setdefault(token.content, token)
    new = [token for token in first.values() if token.content not in numbers]
    vocabulary = list(pieces)
    for token in sorted(new, key=lambda token: (token.number is None, token.number or 0)):
        if token.number not in (None, len(vocabulary)):
            raise CheckpointError(
                f"{path}: the added token {token.content!r} has the id {token.number}, but the next free one is "
                f"{len(vocabulary)}"
            )
        vocabulary.append(token.content)
    for token in first.values():
        if token.content in numbers and token.number not in (None, numbers[token.content]):
            raise CheckpointError(
                f"{path}: the added token {token.content!r} has the id {token.number}, but {numbers[token.content]} in "
                "the vocabulary"
            )
    kept = [first[content] for content in vocabulary if content in first and content not in SPECIAL_TOKENS.values()]
    flags = {t.content: (t.single_word, t.normalized, t.content in numbers) for t in kept}
    return vocabulary, {
        content: [name for name, on in zip(ADDED_FLAGS, of, strict=True) if on] for content, of in flags.items()
    }
