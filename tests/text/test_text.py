"""Text to features: the original's ids and its rule of cutting, in eager mode and in a graph, for any bytes."""

import random

import numpy as np
import pytest
import tensorflow as tf
from conftest import WORDS, shared

from keras_bert import Text, TextConfig
from keras_bert.data.tables import read
from keras_bert.errors import ConfigError, DataError
from keras_bert.text import packing
from keras_bert.text.vocabulary import read_vocabulary

UNK, CLS, SEP = (WORDS.index(piece) for piece in ("[UNK]", "[CLS]", "[SEP]"))
KNOWN = ["fire", "flood", "storm", "city", "music", "the", "is", "in", "on", ".", ",", "a", "7"]


def words(**config) -> Text:
    return Text(WORDS, TextConfig(**config))


def rows(features) -> list[list[int]]:
    """The ids of each row without padding."""
    ids, mask = features["token_ids"].numpy(), features["padding_mask"].numpy()
    return [row[on].tolist() for row, on in zip(ids, mask, strict=True)]


def spec(*shape: int | None) -> tf.TensorSpec:
    return tf.TensorSpec(shape, tf.string)


@pytest.fixture(scope="module")
def uncased() -> Text:
    return Text(read_vocabulary(shared("data/vocab/uncased/vocab.txt")))


def pieces(text: Text, string: str | bytes) -> list[str]:
    """What stands between [CLS] and [SEP]."""
    return [text.vocabulary[i] for i in rows(text([string]))[0][1:-1]]


# === Known answers ===


@pytest.mark.parametrize(
    ("sentence", "ids"),
    [
        ("Hello, World!", [101, 7592, 1010, 2088, 999, 102]),
        ("unaffable", [101, 14477, 20961, 3468, 102]),
        ("Café RÉSUMÉ", [101, 7668, 13746, 102]),
        (
            "The quick brown fox jumps over the lazy dog.",
            [101, 1996, 4248, 2829, 4419, 14523, 2058, 1996, 13971, 3899, 1012, 102],
        ),
        ("森林", [101, 1882, 1881, 102]),
    ],
)
def test_sentences_of_the_uncased_vocabulary(uncased, sentence, ids):
    assert rows(uncased([sentence])) == [ids]


def test_mrpc_features_equal_those_of_google_research_bert(uncased):
    table = read(shared("data/golden/mrpc/dev.tsv"))
    records = list(tf.data.TFRecordDataset(str(shared("data/golden/mrpc/eval.tf_record"))))
    theirs = {
        name: np.array(
            [tf.train.Example.FromString(r.numpy()).features.feature[name].int64_list.value for r in records]
        )
        for name in ("input_ids", "segment_ids", "input_mask")
    }
    ours = uncased(table["#1 String"], table["#2 String"])
    wide = [[0, 0], [0, 128 - ours["token_ids"].shape[1]]]
    ids = np.pad(ours["token_ids"], wide)
    assert ids.shape == theirs["input_ids"].shape == (408, 128)
    np.testing.assert_array_equal(np.pad(ours["segment_ids"], wide), theirs["segment_ids"])
    np.testing.assert_array_equal(np.pad(ours["padding_mask"], wide), theirs["input_mask"])
    np.testing.assert_array_equal(ids, theirs["input_ids"])


def test_casing(uncased):
    assert rows(words(do_lower_case=True)(["FIRE Fíre"])) == [[CLS, *[WORDS.index("fire")] * 2, SEP]]
    assert rows(words(do_lower_case=False)(["fire FIRE"])) == [[CLS, WORDS.index("fire"), UNK, SEP]]


def test_tokenize_neither_cuts_nor_adds():
    found = words(max_seq_length=3).tokenize(["fires in the city", "", "flooded"])
    assert found.dtype == tf.int32
    expected = [["fire", "##s", "in", "the", "city"], [], ["flood", "##ed"]]
    assert found.to_list() == [[WORDS.index(p) for p in row] for row in expected]


# === The shape of features ===


def test_a_batch_of_single_texts():
    features = words(max_seq_length=5)(["fire in the city .", "flood", ""])
    fire, flood, of, the = (WORDS.index(w) for w in ("fire", "flood", "in", "the"))
    expected = {
        "token_ids": np.array([[CLS, fire, of, the, SEP], [CLS, flood, SEP, 0, 0], [CLS, SEP, 0, 0, 0]], np.int32),
        "segment_ids": np.zeros((3, 5), np.int32),
        "padding_mask": np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]], bool),
        "num_tokens": np.array([7, 3, 2], np.int32),
        "truncated": np.array([True, False, False]),
    }
    assert features.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(features[name], value, strict=True)


def test_a_batch_of_pairs():
    features = words(max_seq_length=7)(["a b c d", "a", ""], ["7 8", "", "7"])
    a, b, c, d, s, e = (WORDS.index(w) for w in "abcd78")
    expected = {
        "token_ids": [[CLS, a, b, SEP, s, e, SEP], [CLS, a, SEP, SEP, 0, 0, 0], [CLS, SEP, s, SEP, 0, 0, 0]],
        "segment_ids": [[0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 0, 0, 0], [0, 0, 1, 1, 0, 0, 0]],
        "padding_mask": [[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0]],
        "num_tokens": [9, 4, 4],
        "truncated": [True, False, False],
    }
    assert (c, d) == (a + 2, a + 3)
    for name, value in expected.items():
        np.testing.assert_array_equal(features[name], value)


@pytest.mark.parametrize("texts", [[""], ["fire"], ["fire in the city", "a"], ["a " * 40, "b"]])
def test_the_width_is_the_longest_row(texts):
    features = words(max_seq_length=16)(texts)
    longest = max(len(row) for row in rows(features))
    assert features["token_ids"].shape == (len(texts), longest)
    assert 2 <= longest <= 16
    assert features["padding_mask"].shape == features["segment_ids"].shape == features["token_ids"].shape


@pytest.mark.parametrize("vocabulary", [WORDS[::-1], ["[UNK]", "[CLS]", "[SEP]", "fire"]])
def test_padding_is_that_of_the_vocabulary(vocabulary):
    features = Text(vocabulary)(["fire fire", ""])
    pad = vocabulary.index("[PAD]") if "[PAD]" in vocabulary else 0
    assert features["token_ids"].numpy()[1].tolist() == [
        vocabulary.index("[CLS]"),
        vocabulary.index("[SEP]"),
        pad,
        pad,
    ]


@pytest.mark.parametrize("pair", [None, ["fire .", "", "a b c d e f"]])
def test_count_is_the_length_of_the_rows(pair):
    text = words(max_seq_length=8)
    found = text.count(["", "fire", "a b c d e f g h"], pair)
    assert found.dtype == np.int32
    assert found.tolist() == [len(row) for row in rows(text(["", "fire", "a b c d e f g h"], pair))]


# === Cutting ===


def cut(first: list, second: list, room: int) -> tuple[list, list]:
    """The rule of google-research/bert, as its words say it."""
    first, second = list(first), list(second)
    while len(first) + len(second) > room:
        (first if len(first) > len(second) else second).pop()
    return first, second


def test_longest_first_for_all_small_cases():
    first, second = (side.ravel() for side in np.meshgrid(np.arange(13), np.arange(13)))
    for room in range(27):
        kept = packing.longest_first([tf.constant(first, tf.int32), tf.constant(second, tf.int32)], room)
        expected = [[len(side) for side in cut([0] * a, [0] * b, room)] for a, b in zip(first, second, strict=True)]
        np.testing.assert_array_equal(np.stack(kept, 1), expected)
        (alone,) = packing.longest_first([tf.constant(first, tf.int32)], room)
        np.testing.assert_array_equal(alone, np.minimum(first, room))


def test_longest_first_for_random_cases():
    draw = np.random.default_rng(5)
    for room in draw.integers(0, 512, 20).tolist():
        first, second = draw.integers(0, 700, (2, 40)).astype(np.int32)
        kept = packing.longest_first([tf.constant(first), tf.constant(second)], room)
        expected = [[len(side) for side in cut([0] * a, [0] * b, room)] for a, b in zip(first, second, strict=True)]
        np.testing.assert_array_equal(np.stack(kept, 1), expected)


@pytest.mark.parametrize("max_seq_length", [3, 4, 5, 8, 13, 64])
def test_whole_rows_follow_the_rule(max_seq_length):
    draw = random.Random(max_seq_length)
    first, second = ([draw.choices(KNOWN, k=draw.randrange(14)) for _ in range(100)] for _ in range(2))
    text = words(max_seq_length=max_seq_length)
    single = text([" ".join(s) for s in first])
    paired = text([" ".join(s) for s in first], [" ".join(s) for s in second])
    segments = paired["segment_ids"].numpy()
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        a, b = [WORDS.index(w) for w in a], [WORDS.index(w) for w in b]
        assert rows(single)[i] == [CLS, *a[: max_seq_length - 2], SEP]
        assert single["num_tokens"][i] == len(a) + 2
        assert single["truncated"][i] == (len(a) + 2 > max_seq_length)
        assert paired["num_tokens"][i] == len(a) + len(b) + 3
        assert paired["truncated"][i] == (len(a) + len(b) + 3 > max_seq_length)
        a, b = cut(a, b, max_seq_length - 3)
        assert rows(paired)[i] == [CLS, *a, SEP, *b, SEP]
        assert segments[i].tolist()[: len(a) + len(b) + 3] == [0] * (len(a) + 2) + [1] * (len(b) + 1)
        assert not segments[i, len(a) + len(b) + 3 :].any()


def test_head_takes_the_first_of_each_row():
    ragged = tf.ragged.constant([[1, 2, 3], [], [4], [5, 6]], dtype=tf.int32)
    assert packing.cut(ragged, tf.constant([2, 0, 1, 0])).to_list() == [[1, 2], [], [4], []]


# === Any bytes (T1 to T4, T6, T8) ===


@pytest.mark.parametrize("string", ["", " ", "\t \n\r", "\0", "\0\0 \0", "\u3000", "\u200b\ufeff\xad", "\x07"])
def test_nothing_but_space_and_controls_is_an_empty_text(uncased, string):
    features = uncased([string])
    assert features["token_ids"].numpy().tolist() == [[101, 102]]
    assert features["num_tokens"].numpy().tolist() == [2]
    assert uncased([string], [string])["segment_ids"].numpy().tolist() == [[0, 0, 1]]


@pytest.mark.parametrize(
    ("string", "expected"),
    [
        ("hello\x00world", "hello ##world"),
        ("hello\x07world", "hello ##world"),
        ("\ufeffhello", "hello"),
        ("hello\u200bworld", "hello ##world"),
        ("hel\xadlo", "hello"),
        ("👩\u200d👩\u200d👧", "[UNK]"),
        ("שלום", "ש ##ל ##ו ##ם"),
        ("e\u0301te\u0301", "et ##e"),
        ("[SEP] [MASK]", "[ sep ] [ mask ]"),
        ("[CLS][PAD][UNK]", "[ cl ##s ] [ pad ] [ un ##k ]"),
        ("##ing", "# # ing"),
        (b"\x80", ""),
        (b"a \xff b", "a b"),
    ],
)
def test_odd_characters(uncased, string, expected):
    assert pieces(uncased, string) == expected.split()


def test_special_tokens_in_a_text_never_become_control_ids(uncased):
    ids = rows(uncased([" ".join(uncased.vocabulary[i] for i in (0, 100, 101, 102, 103)) * 3]))[0]
    assert (ids[0], ids[-1]) == (101, 102)
    assert not {0, 101, 102, 103} & set(ids[1:-1])


INVALID = {
    "lone continuation": b"\x80",
    "truncated": b"fire \xe7\x81",
    "overlong": b"\xc0\xaf\xe0\x80\xaf",
    "surrogate": b"\xed\xa0\x80",
    "not Unicode": b"\xf5\x80\x80\x80\xf8\xff",
    "UTF-16 mark": b"\xff\xfef\0i\0",
    "inside a word": b"fi\x80re",
}


@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in INVALID.items()])
def test_invalid_utf8_is_read_alike_everywhere(data):
    text = words(max_seq_length=8)
    graph = tf.function(text, input_signature=[spec(None)])
    found = rows(text([data]))
    assert found == rows(graph(tf.constant([data]))) == rows(text([data, b"music"]))[:1]
    assert all(0 <= i < len(WORDS) for i in found[0])


def test_random_bytes_never_raise():
    draw = random.Random(9)
    data = [draw.randbytes(draw.randrange(40)) for _ in range(2000)]
    features = words(max_seq_length=16)(data, data[::-1])
    ids = features["token_ids"].numpy()
    assert ids.shape == (2000, 16)
    assert ids.min() >= 0
    assert ids.max() < len(WORDS)
    assert (features["padding_mask"].numpy().sum(1) == np.minimum(features["num_tokens"], 16)).all()


def test_a_string_that_no_decoder_gives_is_read_as_its_bytes():
    text = words()
    assert rows(text(["fire \ud800"])) == rows(text([b"fire \xed\xa0\x80"])) == [[CLS, WORDS.index("fire"), SEP]]


@pytest.mark.parametrize(
    ("data", "tokens"),
    [
        pytest.param("s" * 2**20, 1, id="one word"),
        pytest.param(" " * 2**20, 0, id="spaces"),
        pytest.param("fire " * 2**17, 2**17, id="words"),
        pytest.param("火" * 2**18, 2**18, id="ideographs"),
        pytest.param("," * 2**20, 2**20, id="punctuation"),
        pytest.param(b"\xff" * 2**20, 0, id="invalid bytes"),
    ],
)
def test_a_megabyte_of_text(data, tokens):
    features = words(max_seq_length=32)([data, "fire"])
    assert features["num_tokens"].numpy().tolist() == [tokens + 2, 3]
    assert features["truncated"].numpy().tolist() == [tokens > 30, False]
    assert features["token_ids"].shape == (2, min(max(tokens + 2, 3), 32))


@pytest.mark.parametrize(
    ("letter", "count", "known"),
    [
        *[(letter, count, count <= 200) for letter in ("s", "\U00010330") for count in (100, 101, 200, 201, 801)],
    ],
)
def test_the_longest_word_has_200_characters(letter, count, known):
    """The limit of google-research/bert; a longer word is unknown, whatever it is made of."""
    text = Text(["[UNK]", "[CLS]", "[SEP]", letter, "##" + letter], TextConfig(max_seq_length=1024))
    assert rows(text([letter * count])) == [[1, 3, *[4] * (count - 1), 2] if known else [1, 0, 2]]


# === Shapes and kinds of input (T5) ===


@pytest.mark.parametrize("pair", [False, True])
def test_a_batch_of_none_in_eager_mode_and_in_a_graph(pair):
    text = words()
    count = 1 + pair
    graph = tf.function(text, input_signature=[spec(None)] * count)
    for features in (text(*[[]] * count), graph(*[tf.constant([], tf.string)] * count)):
        assert {k: (v.shape, v.dtype) for k, v in features.items()} == {
            "token_ids": ((0, 2), tf.int32),
            "segment_ids": ((0, 2), tf.int32),
            "padding_mask": ((0, 2), tf.bool),
            "num_tokens": ((0,), tf.int32),
            "truncated": ((0,), tf.bool),
        }


def test_a_graph_gives_what_eager_mode_gives():
    text = words(max_seq_length=8)
    graph = tf.function(text, input_signature=[spec(None), spec(None)])
    first, second = ["fire in the city", "", "a b c d e f g"], ["", "flood .", "7 8 9"]
    eager, traced = text(first, second), graph(tf.constant(first), tf.constant(second))
    for name in eager:
        np.testing.assert_array_equal(eager[name], traced[name], strict=True)


@pytest.mark.parametrize(
    "texts",
    [
        ["fire", "in"],
        ("fire", "in"),
        [b"fire", "in"],
        np.array(["fire", "in"]),
        np.array([b"fire", b"in"], object),
        tf.constant(["fire", "in"]),
    ],
)
def test_kinds_of_vectors(texts):
    assert rows(words()(texts)) == [[CLS, WORDS.index(w), SEP] for w in ("fire", "in")]


@pytest.mark.parametrize(
    ("texts", "got"),
    [
        ("fire", "()"),
        (b"fire", "()"),
        (tf.constant("fire"), "()"),
        ([["fire"]], "(1, 1)"),
        (np.array([[""]]), "(1, 1)"),
    ],
)
def test_what_is_no_vector_is_refused(texts, got):
    for call in (words(), words().tokenize, words().count):
        with pytest.raises(ConfigError) as caught:
            call(texts)
        assert f"got shape {got}; put a single text into a list" in str(caught.value)


@pytest.mark.parametrize("shape", [(), (None, None), (2, 1)])
def test_what_is_no_vector_is_refused_when_a_graph_is_traced(shape):
    with pytest.raises(ConfigError, match="must be a list or vector of strings"):
        tf.function(words(), input_signature=[spec(*shape)], autograph=False).get_concrete_function()


@pytest.mark.parametrize("texts", [[1, 2], [None, "fire"], None, [["a"], ["b", "c"]], tf.constant([1.5]), {"a": "b"}])
def test_what_is_no_string_is_refused(texts):
    with pytest.raises(ConfigError) as caught:
        words()(texts)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError):
        words()(["fire"], texts or [1])


@pytest.mark.parametrize(("first", "second"), [(["a", "b"], ["c"]), (["a"], []), ([], ["c"])])
def test_every_text_needs_a_second_one(first, second):
    with pytest.raises(ConfigError, match=f"{len(first)} texts but {len(second)} in segment 2"):
        words()(first, second)


# === The graph ===

ALLOWED = """
    AddN AddV2 All Any Assert BitwiseAnd BroadcastTo Cast ConcatV2 Const Cumsum DecodeRaw EnsureShape Equal
    ExpandDims FastBertNormalize FastWordpieceTokenizeWithOffsets Fill FloorDiv GatherV2 Greater GreaterEqual Identity
    Less LessEqual LogicalAnd LogicalNot LogicalOr Max Maximum Minimum Mul Neg NoOp NotEqual Pack Pad PadV2 Placeholder
    Prod RaggedGather RaggedRange RaggedTensorToTensor Range ReduceJoin Reshape SegmentMax SelectV2 Shape Squeeze
    StatelessIf StaticRegexReplace StridedSlice StringLength Sub Sum Tile TopKV2 Transpose Unpack Where ZerosLike
"""
"""What the text path may be made of: core ops, and the two kernels of TensorFlow Text; none of its trimmers."""


@pytest.mark.parametrize("do_lower_case", [True, False])
@pytest.mark.parametrize("count", [1, 2])
def test_the_graph_holds_no_op_that_older_servers_lack(do_lower_case, count):
    text = Text(["[UNK]", "[CLS]", "[SEP]", "a", "[PAD]"], TextConfig(do_lower_case=do_lower_case))
    traced = tf.function(text, input_signature=[spec(None)] * count).get_concrete_function()
    graph = traced.graph.as_graph_def()
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    ops = {node.op for node in nodes}
    assert not ops - set(ALLOWED.split())
    assert {op for op in ops if op.startswith("Fast")} == {"FastBertNormalize", "FastWordpieceTokenizeWithOffsets"}
    assert not [op for op in ops if "RoundRobin" in op or "Trim" in op or "Table" in op or "PyFunc" in op]


# === Vocabularies ===


def test_the_line_separator_of_the_chinese_vocabulary():
    text = Text(read_vocabulary(shared("data/vocab/chinese/vocab.txt")))
    assert pieces(text, "今天 hello") == ["今", "天", "hello"]
    assert rows(text(["今"])) == [[101, 791, 102]]


@pytest.mark.parametrize(
    "odd", [["##"], ["\u2028", "##\u2028"], ["a b"], [" x"], ["火火"], [",,"], ["##a", "##b"], ["A"]]
)
def test_pieces_that_no_text_reaches_do_no_harm(odd):
    text = Text(["[UNK]", "[CLS]", "[SEP]", "fire", *odd])
    assert rows(text(["fire none"])) == [[1, 3, 0, 2]]


@pytest.mark.parametrize(
    "more",
    [
        pytest.param([], id="special tokens only"),
        pytest.param(["x" * 300], id="a piece of 300 bytes"),
        pytest.param(["a\0b"], id="NUL"),
        pytest.param(["\ud800"], id="a lone surrogate"),
    ],
)
def test_a_vocabulary_that_tensorflow_text_cannot_take(more):
    with pytest.raises(DataError, match=r"^the vocabulary: TensorFlow Text cannot") as caught:
        Text(["[UNK]", "[CLS]", "[SEP]", *more])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        (["[UNK]", "[CLS]"], r"the vocabulary: has no \[SEP\]"),
        (["[UNK]", "[CLS]", "[SEP]", "a", "a"], "the vocabulary, line 5: repeats 'a' of line 4"),
        (["[UNK]", "[CLS]", "[SEP]", ""], "the vocabulary, line 4: blank"),
        ([*WORDS, "[CLS]"], r"repeats '\[CLS\]'"),
    ],
)
def test_a_vocabulary_with_a_fault_is_refused(vocabulary, message):
    with pytest.raises(DataError, match=message):
        Text(vocabulary)
