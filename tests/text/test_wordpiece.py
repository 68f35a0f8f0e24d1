"""WordPiece in plain Python against the original's rules, its published features and Hugging Face."""

import unicodedata

import pytest
from conftest import shared
from hypothesis import given
from hypothesis import strategies as st
from odd_text import NAUGHTY, SPECIAL, VOCABULARIES, fuzz, reference_ids, udhr, vocabulary

from keras_bert.errors import ConfigError, DataError
from keras_bert.text.wordpiece import WordPiece, index, misfit

unicode_14 = pytest.mark.skipif(
    unicodedata.unidata_version != "14.0.0", reason="the independent rules use this Python's Unicode tables"
)
PIECES = [
    *SPECIAL,
    *["a", "b", "ab", "##a", "##b", "##ab", "##c", "e", "i", "σ", "ς", "##σ", "##ς", "ο", "##ο", "Σ", "##Σ"],
    *["中", "文", "日", "ก", "##ก", "ᄀ", "##ᅡ", "##ᆨ", "x", "##x", "y", "[", "]", "#", ".", ":", "'", "!", "mask"],
    *["\u1b4e", "##\u1b4e", "\u166d", "\U0002b820", "\ufaff", "\ufada", "##e", "é", "##é", "A", "##A", "\ue000", "##𐐀"],
]


def tokens(text, lower=True, **options):
    return WordPiece(PIECES, lower, **options).tokenize(text).pieces


def same_as_reference(lines, pieces, lower):
    known, ours = index(pieces, "original"), WordPiece(pieces, lower)
    return [line for line in lines if ours.tokenize(line).ids != reference_ids(line, known, lower)]


# === The rules ===


def test_the_longest_match_comes_first():
    assert tokens("ABAB abc") == ["ab", "##ab", "ab", "##c"]
    assert tokens("abz") == ["[UNK]"]


def test_cased_text_stays_as_it_is():
    assert tokens("Aé AA", lower=False) == ["A", "##é", "A", "##A"]
    assert tokens("Aé AA", lower=True) == ["a", "##e", "a", "##a"]


def test_cjk_and_punctuation_are_words_of_their_own():
    assert tokens("a中文b.:a") == ["a", "中", "文", "b", ".", ":", "a"]


@pytest.mark.parametrize(("flavour", "limit"), [("original", 200), ("hf", 100)])
@pytest.mark.parametrize("char", ["a", "ก"])
def test_a_word_has_a_limit_in_characters(flavour, limit, char):
    assert len(tokens(char * limit, flavour=flavour)) >= limit // 2
    assert tokens(char * (limit + 1) + "!", flavour=flavour) == ["[UNK]", "!"]
    assert len(tokens("e\u0301" * limit, flavour=flavour)) == limit  # counted after accents are gone


def test_a_sigma_at_the_end_of_a_word_is_final():
    assert tokens("ΟΣ ΟΣΟ Σ ΟΣ: ΟΣ:Ο") == ["ο", "##ς", "ο", "##σ", "##ο", "σ", "ο", "##ς", ":", "ο", "##σ", ":", "ο"]
    assert tokens("ΟΣ\u0301\u200b ΟΣ\0Ο") == ["ο", "##ς", "ο", "##σ", "##ο"]
    assert tokens(b"\xce\x9f\xff\xce\xa3\xff") == ["ο", "##ς"]
    assert tokens("ΟΣ", flavour="hf") == ["ο", "##σ"]
    assert tokens("Σ", lower=False) == ["Σ"]


def test_special_tokens_are_found_only_when_listed():
    assert tokens("x[MASK]y") == ["x", "[", "mask", "]", "y"]
    assert tokens("x[MASK]y [mask]", special_tokens=["[MASK]"]) == ["x", "[MASK]", "y", "[", "mask", "]"]
    assert tokens("[[SEP]][MASK][PAD]", special_tokens=SPECIAL) == ["[", "[SEP]", "]", "[MASK]", "[PAD]"]
    assert tokens("ΟΣ[MASK]Ο", special_tokens=["[MASK]"]) == ["ο", "##ς", "[MASK]", "ο"]


def test_ill_formed_utf8_is_skipped():
    text = b"\xffa\xe4\xb8b\xed\xa0\x80\xc0\x80\xf5x"
    assert tokens(text) == tokens(text.decode("utf-8", "ignore")) == ["ab", "##x"]
    assert tokens("a\ud800b") == ["ab"]


def test_offsets_are_places_in_the_text():
    text = "Ae\u0301\u200b 각,\0 [MASK]b"
    found = WordPiece(PIECES, True, special_tokens=["[MASK]"]).tokenize(text)
    spans = dict(zip(found.pieces, [text[a:b] for a, b in found.characters], strict=True))
    assert spans == {
        "a": "A",
        "##e": "e\u0301\u200b",
        "ᄀ": "각",
        "##ᅡ": "각",
        "##ᆨ": "각",
        "[UNK]": ",\0",
        "[MASK]": "[MASK]",
        "b": "b",
    }
    assert [text.encode()[a:b].decode() for a, b in found.bytes] == [text[a:b] for a, b in found.characters]


def test_offsets_in_ill_formed_bytes():
    found = WordPiece(PIECES, False).tokenize(b"\xffa\xff\xe4\xb8\xad\xff\xffb\xff")
    assert found.pieces == ["a", "中", "b"]
    assert found.bytes == [(1, 3), (3, 8), (8, 10)]
    assert found.characters == [(0, 1), (1, 2), (2, 3)]


@pytest.mark.parametrize("flavour", ["original", "hf"])
@pytest.mark.parametrize("lower", [False, True])
@given(text=st.one_of(st.text(), st.binary(), st.sampled_from(NAUGHTY)))
def test_offsets_run_in_order_and_stay_inside(flavour, lower, text):
    found = WORDPIECES[flavour, lower].tokenize(text)
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    text = text.decode("utf-8", "ignore") if isinstance(text, bytes) else text
    assert len(found.ids) == len(found.pieces) == len(found.characters) == len(found.bytes)
    for spans, end in ((found.characters, len(text)), (found.bytes, len(data))):
        assert all(0 <= a < b <= end for a, b in spans)
        assert spans == sorted(spans)
    slices = [data[a:b].decode("utf-8", "ignore") for a, b in found.bytes]
    assert slices == [text[a:b].encode("utf-8", "ignore").decode() for a, b in found.characters]


WORDPIECES = {(f, lower): WordPiece(PIECES, lower, f) for f in ("original", "hf") for lower in (False, True)}


def test_the_vocabulary_is_read_as_the_original_reads_it():
    assert index(["[UNK]", " a ", "\u2028", "a"], "original") == {"[UNK]": 0, "a": 3, "": 2}
    assert index(["[UNK]", " a ", "a"], "hf") == {"[UNK]": 0, " a": 1, "a": 2}


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"flavour": "cursive"}, ConfigError, "original, hf"),
        ({"special_tokens": ["[GONE]"]}, DataError, r"no \[GONE\]"),
        ({"special_tokens": "[MASK]"}, ConfigError, "must be a list"),
        ({"special_tokens": ["[MASK]", "[MASK]"]}, ConfigError, "different"),
    ],
)
def test_what_cannot_work_is_refused(options, error, words):
    with pytest.raises(error, match=words):
        WordPiece([*PIECES, "[x]", "]y["], True, **options)
    with pytest.raises(DataError, match="UNK"):
        WordPiece(["a"], True)


# === Against others ===


@unicode_14
@pytest.mark.parametrize("lower", [False, True])
def test_odd_lines_as_the_original_rules_have_them(lower):
    texts = [t.encode("utf-8", "ignore").decode() for t in NAUGHTY]
    assert not same_as_reference([*texts, *fuzz(5_000, seed=1)], PIECES, lower)


@unicode_14
@pytest.mark.parametrize("name", VOCABULARIES)
def test_real_vocabularies_as_the_original_rules_have_them(name):
    assert not same_as_reference([*udhr(), *fuzz(2_000, seed=2)], vocabulary(name), VOCABULARIES[name])


def mrpc_rows():
    """Both sentences of each row, and the ids that the original wrote for them."""
    import tensorflow as tf

    lines = shared("data/golden/mrpc/dev.tsv").read_text("utf-8").split("\n")[1:]
    rows = [line.rstrip("\r").split("\t")[3:5] for line in lines if line]
    records = tf.data.TFRecordDataset(str(shared("data/golden/mrpc/eval.tf_record")))
    feature = {"input_ids": tf.io.FixedLenFeature([128], tf.int64)}
    written = [tf.io.parse_single_example(r, feature)["input_ids"].numpy().tolist() for r in records]
    assert len(rows) == len(written) == 408
    return rows, written


def packed(first, second, known):
    """[CLS] a [SEP] b [SEP] in 128 ids; the longer sentence, or the second of equals, loses its last token."""
    first, second = list(first), list(second)
    while len(first) + len(second) > 125:
        (first if len(first) > len(second) else second).pop()
    ids = [known["[CLS]"], *first, known["[SEP]"], *second, known["[SEP]"]]
    return ids + [0] * (128 - len(ids))


def test_the_features_that_the_original_wrote_for_mrpc():
    pieces = vocabulary("uncased")
    ours = WordPiece(pieces, True)
    rows, written = mrpc_rows()
    assert [packed(*[ours.tokenize(t).ids for t in row], ours.index) for row in rows] == written


def hugging_face(pieces, lower, special=()):
    """The fast tokenizer's parts, put together for a vocabulary."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lower)
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    if special:
        made.add_special_tokens([tokenizers.AddedToken(t, special=True, normalized=False) for t in special])
    return made


@pytest.mark.parametrize("special", [[], SPECIAL])
@pytest.mark.parametrize("lower", [False, True])
def test_odd_lines_as_hugging_face_has_them(lower, special):
    theirs, ours = hugging_face(PIECES, lower, special), WordPiece(PIECES, lower, "hf", special)
    texts = [t.encode("utf-8", "ignore").decode() for t in NAUGHTY]
    different = [t for t in [*texts, *fuzz(5_000, seed=3)] if theirs.encode(t).ids != ours.tokenize(t).ids]
    assert not different


@pytest.mark.slow
@pytest.mark.parametrize("name", VOCABULARIES)
def test_bert_tokenizer_fast_gives_the_same_ids_for_texts(name):
    transformers = pytest.importorskip("transformers")
    pieces, lower = vocabulary(name), VOCABULARIES[name]
    known = {p: i for i, p in enumerate(pieces)}
    theirs = transformers.BertTokenizerFast(vocab=known, do_lower_case=lower)
    ours = WordPiece(pieces, lower, "hf", SPECIAL)
    lines = [*udhr(), *fuzz(20_000, seed=5)]
    found = theirs(lines, add_special_tokens=False)["input_ids"]
    assert not [line for line, ids in zip(lines, found, strict=True) if ours.tokenize(line).ids != ids]


@pytest.mark.slow
def test_spans_are_those_of_hugging_face():
    pieces = vocabulary("multi_cased")
    theirs, ours = hugging_face(pieces, False), WordPiece(pieces, False, "hf")
    for line in udhr():
        assert theirs.encode(line).offsets == ours.tokenize(line).characters, line


# === Do vocabulary and casing belong together? ===


def test_a_vocabulary_that_suits_its_texts_is_not_spoken_of():
    for name, text in {
        "uncased": "Forest FIRE",
        "cased": "Forest fire",
        "chinese": "森林着火了",
        "multi_cased": "Feu",
    }.items():
        assert misfit(vocabulary(name), [text, ""], VOCABULARIES[name]) == ""
    assert misfit(vocabulary("multi_cased"), udhr(), False) == ""
    assert misfit(PIECES, [], False) == misfit(PIECES, ["", " "], False) == ""


def test_the_wrong_casing_is_said():
    texts = ["Our Deeds are the Reason of this Earthquake", "Forest fire near La Ronge", "all is well"]
    assert misfit(vocabulary("uncased"), texts, False) == (
        "43.8% of the word pieces of the texts are [UNK], but 0.0% with do_lower_case true; "
        "the vocabulary does not suit them"
    )
    assert misfit(vocabulary("uncased"), ["ภาษาไทยไม่มีการเว้นวรรค"], True) == (
        "100.0% of the word pieces of the texts are [UNK]; the vocabulary does not suit them"
    )
    assert misfit(vocabulary("cased"), texts, True) == (
        "29% of the vocabulary has capitals but text is lower-cased; is do_lower_case false for it?"
    )


@pytest.mark.parametrize("text", [["a", "b"], None, 3, ("a",)])
def test_a_text_is_one_string(text):
    with pytest.raises(ConfigError, match="a text must be one string, got"):
        WordPiece(PIECES, True).tokenize(text)
