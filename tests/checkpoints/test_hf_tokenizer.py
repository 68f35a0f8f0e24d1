"""Hugging Face's tokenizer files: ids are those of the package `tokenizers`, in plain Python and in the graph."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import shared
from odd_text import NAUGHTY

from keras_bert import Bert
from keras_bert.checkpoints.checkpoints import open_checkpoint
from keras_bert.checkpoints.formats import hf_tokenizer
from keras_bert.config import TextConfig
from keras_bert.conversion import convert
from keras_bert.errors import CheckpointError, KerasBertError
from keras_bert.text.text import Text
from keras_bert.text.wordpiece import WordPiece

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = [
    *SPECIAL,
    "[unused1]",
    "fire",
    "cafe",
    "café",
    "Café",
    "##s",
    "##é",
    "über",
    "uber",
    "한국",
    "한",
    "##국",
    "中",
    "国",
]
PIECES += [
    "中国",
    "##国",
    "e",
    "##1",
    "covid",
    "##ian",
    "ab",
    "##c",
    "istanbul",
    "i",
    "##\u0307",
    "[",
    "]",
    "<",
    ">",
    "1",
    ".",
]
TEXTS = [
    "Café fires ÜBER über İstanbul",
    "한국 中国 a中国b fire中",
    "[E1] fire[E2] x[E1]y [e1] [ E1 ]",
    "Covid covidian COVIDIAN xcovid covid19 covid. -covid-",
    "<e1> <E1><e1>e1 ab abc abab <e1>x x<e1> é<e1>",
    "fire\u2028fire \t[E1]\u00a0[E1]fire [unused1] [UNK] a\x01[E1]\x02b",
    "e" * 12 + " " + "中" * 12,
    "",
]
AddedToken = tokenizers.AddedToken


def save(folder: Path, added=(), **settings) -> Path:
    """A tokenizer as transformers saves it."""
    made = transformers.BertTokenizer(vocab={p: i for i, p in enumerate(PIECES)}, **settings)
    made.add_tokens(list(added))
    made.save_pretrained(folder)
    return folder


def whole(folder: Path, normalizer, added=(), limit=100) -> Path:
    """A `tokenizer.json` alone, for the class that reads nothing else."""
    model = tokenizers.models.WordPiece({p: i for i, p in enumerate(PIECES)}, unk_token="[UNK]")
    model.max_input_chars_per_word = limit
    made = tokenizers.Tokenizer(model)
    made.normalizer, made.pre_tokenizer = normalizer, tokenizers.pre_tokenizers.BertPreTokenizer()
    made.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    made.add_special_tokens(SPECIAL)
    made.add_tokens(list(added))
    names = {f"{token[1:-1].lower()}_token": token for token in SPECIAL}
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names).save_pretrained(folder)
    return folder


BERT = tokenizers.normalizers.BertNormalizer
ADDED = [
    AddedToken("[E1]", special=True, normalized=False),
    AddedToken("[E2]", special=True, normalized=False, lstrip=True, rstrip=True),
    AddedToken("covid", single_word=True, normalized=True),
    AddedToken("<e1>", single_word=True, normalized=False),
    AddedToken("abab", normalized=False),
    AddedToken("aba", normalized=False),
    AddedToken("Über", normalized=True),
    AddedToken("中国", normalized=True),
    AddedToken("[unused1]", special=True, normalized=False),
]
KINDS = {
    "uncased": lambda f: save(f),
    "cased": lambda f: save(f, do_lower_case=False),
    "german": lambda f: save(f, strip_accents=False),
    "stripped": lambda f: save(f, do_lower_case=False, strip_accents=True),
    "no chinese": lambda f: save(f, tokenize_chinese_chars=False),
    "added": lambda f: save(f, ADDED),
    "added, cased": lambda f: save(f, ADDED, do_lower_case=False, tokenize_chinese_chars=False),
    "added to whole words": lambda f: save(
        f, [AddedToken("fire", normalized=True), AddedToken("中", normalized=False)]
    ),
    "whole, korean": lambda f: whole(f, BERT(lowercase=True, strip_accents=False)),
    "whole, cased": lambda f: whole(f, BERT(lowercase=False), ADDED[:4]),
    "whole, limit": lambda f: whole(f, BERT(handle_chinese_chars=False), limit=10),
    "whole, lower first": lambda f: whole(
        f, tokenizers.normalizers.Sequence([tokenizers.normalizers.Lowercase(), BERT(lowercase=False)])
    ),
}


def old(folder: Path, files: dict) -> Path:
    """A directory of earlier days: `vocab.txt` and what stands beside it."""
    (folder / "vocab.txt").write_bytes("\r\n".join([*PIECES[:9], *(f"{p} " for p in PIECES[9:])]).encode())
    files = files | {"tokenizer_config.json": {"do_lower_case": True} | files.get("tokenizer_config.json", {})}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), "utf-8")
    return folder


def named(content: str, **flags) -> dict:
    return {"content": content, "lstrip": False, "rstrip": False, "single_word": False, "normalized": False} | flags


DECODER = {str(len(PIECES) + i): named(c, special=True) for i, c in enumerate(("[E1]", "[E2]"))}
ADDED_JSON = {"[E1]": len(PIECES), "[E2]": len(PIECES) + 1}
KINDS |= {
    "old": lambda f: old(f, {}),
    "old, added": lambda f: old(f, {"added_tokens.json": ADDED_JSON}),
    "old, special": lambda f: old(
        f,
        {
            "added_tokens.json": ADDED_JSON,
            "special_tokens_map.json": {
                "additional_special_tokens": ["[E1]", "[unused1]"],
                "unk_token": named("[UNK]"),
            },
        },
    ),
    "old, decoder": lambda f: old(f, {"tokenizer_config.json": {"added_tokens_decoder": DECODER}}),
    "old, further": lambda f: old(f, {"tokenizer_config.json": {"additional_special_tokens": ["<e1>", "[E1]"]}}),
}


def words(text: str) -> str:
    """Without the five special tokens that a user may type: they are ordinary text for us."""
    for token in SPECIAL:
        text = text.replace(token, "")
    return text


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_the_library(kind, tmp_path):
    KINDS[kind](tmp_path)
    theirs = (
        transformers.PreTrainedTokenizerFast if kind.startswith("whole") else transformers.BertTokenizer
    ).from_pretrained(tmp_path)
    read = hf_tokenizer.read(tmp_path)
    config = TextConfig(flavour="hf", max_seq_length=4096, **read.text)
    graph, plain = Text(read.vocabulary, config), WordPiece(read.vocabulary, **config.tokenizer)
    texts = [
        words(text) for text in (*TEXTS, *NAUGHTY) if text.isascii() or text.encode("utf-8", "ignore").decode() == text
    ]
    wanted = [theirs(text)["input_ids"] for text in texts]
    rows = graph(texts)
    ids, mask = rows["token_ids"].numpy(), rows["padding_mask"].numpy()
    assert [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)] == wanted
    _, starts, ends = (value.to_list() for value in graph.tokenize_with_offsets(texts))
    found = [plain.tokenize(text) for text in texts]
    assert [[2, *one.ids, 3] for one in found] == wanted
    assert [one.bytes for one in found] == [list(zip(*row, strict=True)) for row in zip(starts, ends, strict=True)]


def test_an_added_token_has_the_place_of_its_own_characters(tmp_path):
    read = hf_tokenizer.read(save(tmp_path, ADDED))
    plain = WordPiece(read.vocabulary, **TextConfig(flavour="hf", **read.text).tokenizer)
    text = "é [E2] Über中国x"
    found = plain.tokenize(text)
    assert [text[a:b] for a, b in found.characters] == ["é", "[E2]", "Über", "中国", "x"]


# === Files of published structures ===


@pytest.mark.parametrize("case", ["d01_strip_accents_json", "d03_added_tokens"])
def test_cases_of_published_models(case):
    folder = shared(f"cases/checkpoints/{case}")
    wanted = json.loads((folder / "expected.json").read_text("utf-8"))
    bert = Bert.from_checkpoint(folder / "ckpt", task="embed")
    rows = bert.text(wanted["texts"])
    found = [
        row[keep].tolist() for row, keep in zip(rows["token_ids"].numpy(), rows["padding_mask"].numpy(), strict=True)
    ]
    assert found == wanted["ids"]
    np.testing.assert_allclose(bert.embed(wanted["texts"]), wanted["mean"], atol=1e-5)


@pytest.mark.parametrize("case", ["d01_strip_accents_json", "d03_added_tokens"])
def test_what_the_tokenizer_says_survives_a_conversion(case, tmp_path):
    source = shared(f"cases/checkpoints/{case}") / "ckpt"
    wanted = open_checkpoint(source)
    for target in ("hf", "tf1", "keras_bert"):
        convert(source, tmp_path / target, target)
        found = open_checkpoint(tmp_path / target)
        assert found.vocabulary == wanted.vocabulary
        assert found.text == wanted.text
    convert(tmp_path / "keras_bert", tmp_path / "again", "hf")
    theirs = transformers.BertTokenizer.from_pretrained(tmp_path / "again")
    expected = json.loads((source.parent / "expected.json").read_text("utf-8"))
    assert [theirs(text)["input_ids"] for text in expected["texts"]] == expected["ids"]


# === What we do not compute ===


def changed(**values):
    def change(content: dict) -> dict:
        for key, value in values.items():
            *path, last = key.split("__")
            inner = content
            for name in path:
                inner = inner[name]
            inner[last] = value
        return content

    return change


FAULTS = {
    "normalizer": (changed(normalizer={"type": "NFKC"}), "normalizer NFKC is not supported"),
    "normalizers": (
        changed(normalizer={"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "Lowercase"}]}),
        "normalizer NFD and Lowercase is not supported",
    ),
    "no normalizer": (changed(normalizer=None), "normalizer none is not supported"),
    "clean": (changed(normalizer__clean_text=False), "clean_text false"),
    "pre-tokenizer": (changed(pre_tokenizer={"type": "Whitespace"}), "pre_tokenizer Whitespace is not supported"),
    "no pre-tokenizer": (changed(pre_tokenizer=None), "pre_tokenizer none is not supported"),
    "prefix": (changed(model__continuing_subword_prefix="@@"), "continuing_subword_prefix is '@@'"),
    "unknown": (changed(model__unk_token="<unk>"), "unk_token is '<unk>'"),
    "limit": (changed(model__max_input_chars_per_word=0), "max_input_chars_per_word must be"),
    "kind": (changed(model__type="BPE"), "a BPE tokenizer"),
    "no template": (changed(post_processor=None), "post_processor none is not supported"),
    "roberta": (changed(post_processor={"type": "RobertaProcessing"}), "post_processor RobertaProcessing is not"),
    "ends": (changed(post_processor__cls=["[MASK]", 4]), "post_processor puts"),
    "id": (changed(added_tokens=[named("[E1]", id=7)]), "has the id 7, but the next free one is"),
    "other id": (changed(added_tokens=[named("fire", id=7)]), "has the id 7, but 6 in the vocabulary"),
    "blank": (changed(added_tokens=[named(" x", id=len(PIECES))]), "must be printable"),
}


def text_of(folder: Path) -> Text:
    read = hf_tokenizer.read(folder)
    return Text(read.vocabulary, TextConfig(flavour="hf", **read.text))


@pytest.mark.parametrize("fault", FAULTS)
def test_what_we_do_not_compute_is_refused(fault, tmp_path):
    whole(tmp_path, BERT())
    spoil, said = FAULTS[fault]
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(spoil(json.loads(file.read_text("utf-8")))), "utf-8")
    with pytest.raises(KerasBertError, match=said) as caught:
        text_of(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("tokenizer_config.json", {"tokenizer_class": "RobertaTokenizer"}, "tokenizer_class 'RobertaTokenizer'"),
        ("tokenizer_config.json", {"unk_token": "<unk>"}, "unk_token is '<unk>'"),
        ("tokenizer_config.json", {"truncation_side": "middle"}, "truncation_side 'middle'"),
        ("tokenizer_config.json", {"strip_accents": "no"}, "strip_accents must be true or false"),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}, "added_tokens_decoder must be an object"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"40": "x"}}, "an added token must be an object"),
        ("special_tokens_map.json", {"sep_token": named("</s>")}, "sep_token is '</s>'"),
        ("added_tokens.json", {"x": "y"}, "the id of 'x' is 'y'"),
        (
            "tokenizer.json",
            {"model": {"vocab": {p: i for i, p in enumerate(SPECIAL)}}},
            "must be objects|hold different",
        ),
    ],
)
def test_old_files_that_cannot_be_used(file, content, said, tmp_path):
    old(tmp_path, {file: content})
    if file == "tokenizer.json":
        pieces = {p: i for i, p in enumerate([*SPECIAL, "other"])}
        (tmp_path / file).write_text(json.dumps({"model": {"type": "WordPiece", "vocab": pieces}}), "utf-8")
    with pytest.raises(CheckpointError, match=said):
        hf_tokenizer.read(tmp_path)


def test_a_bert_tokenizer_makes_its_own_parts(tmp_path):
    """As transformers does; a remark says what does not count."""
    whole(tmp_path, tokenizers.normalizers.Sequence([tokenizers.normalizers.Lowercase()]))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}), "utf-8")
    read = hf_tokenizer.read(tmp_path)
    assert read.remarks == (f"{tmp_path / 'tokenizer.json'}: normalizer Lowercase is not supported: {AS_BERT}",)
    theirs = transformers.BertTokenizer.from_pretrained(tmp_path)
    plain = WordPiece(read.vocabulary, **TextConfig(flavour="hf", **read.text).tokenizer)
    for text in map(words, TEXTS):
        assert [2, *plain.tokenize(text).ids, 3] == theirs(text)["input_ids"]


AS_BERT = "texts are read as BertTokenizer reads them"


def test_the_left_side_is_cut(tmp_path):
    read = hf_tokenizer.read(old(tmp_path, {"tokenizer_config.json": {"truncation_side": "left"}}))
    rows = Text(read.vocabulary, TextConfig(flavour="hf", max_seq_length=4, **read.text))(["fire 1 . e"])
    theirs = transformers.BertTokenizer.from_pretrained(tmp_path)
    assert rows["token_ids"].numpy()[0].tolist() == theirs("fire 1 . e", truncation=True, max_length=4)["input_ids"]
