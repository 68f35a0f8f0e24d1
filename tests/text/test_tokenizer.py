"""The tokenizer in the graph: equal to the plain one, wherever the graph runs."""

import random
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_text import NAUGHTY, ODD, SPECIAL, VOCABULARIES, WORDS, corrupt, fuzz, udhr, vocabulary
from test_wordpiece import PIECES, mrpc_rows, packed

from keras_bert.errors import ConfigError, DataError
from keras_bert.text import double_array, normalization
from keras_bert.text import tokenizer as module
from keras_bert.text.normalization import code_points
from keras_bert.text.tokenizer import Tokenizer, character_offsets
from keras_bert.text.wordpiece import WordPiece

# Beside pieces for all the rules, what the kernel's builder would refuse or could take for something else.
VOCABULARY = [
    *[*PIECES, "##", "", "\u2028", "a", " b ", "##\u2028", "\x11", "a\x11", "\0", "\ud800", "\U000f0000", "\ufa6e"],
    *["##\U000f0001", "a.b", "中文", "[no piece 7]"],
]
KINDS = [(f, lower, s) for f in ("original", "hf") for lower in (False, True) for s in ((), tuple(SPECIAL))]


class Pair:
    """The tokenizer in the graph and the plain one over the same vocabulary."""

    def __init__(self, pieces, lower, flavour="original", special=(), **more):
        self.graph = Tokenizer(pieces, lower, flavour, special, **more)
        self.plain = WordPiece(pieces, lower, flavour, special, **more)
        strings = tf.TensorSpec([None], tf.string)

        def everything(texts):
            ids, starts, ends = self.graph.tokenize_with_offsets(texts)
            characters = [character_offsets(texts, o).flat_values for o in (starts, ends)]
            alone = self.graph.tokenize(texts)
            spans = [starts.flat_values, ends.flat_values, *characters]
            return ids.row_splits, ids.flat_values, alone.row_splits, alone.flat_values, tf.stack(spans, 1)

        self.run = tf.function(everything, input_signature=[strings])

    def differences(self, texts, reference=None):
        """The texts, bytes, for which any id or offset differs, or any id from that of a reference."""
        found = []
        for first in range(0, len(texts), 2048):
            batch = texts[first : first + 2048]
            splits, ids, splits_alone, ids_alone, spans = (v.numpy() for v in self.run(tf.constant(batch, tf.string)))
            assert np.array_equal(splits, splits_alone)
            assert np.array_equal(ids, ids_alone)
            ids, spans, splits = ids.tolist(), spans.tolist(), splits.tolist()
            for text, a, b in zip(batch, splits[:-1], splits[1:], strict=True):
                want = self.plain.tokenize(text)
                both = [[*p, *c] for p, c in zip(want.bytes, want.characters, strict=True)]
                same = want.ids == ids[a:b] and both == spans[a:b]
                if not same or (reference and reference(text) != want.ids):
                    found.append(text)
        return found


@pytest.fixture(scope="module")
def pairs():
    return {kind: Pair(VOCABULARY, kind[1], kind[0], kind[2]) for kind in KINDS}


def encoded(texts):
    return [t.encode("utf-8", "surrogatepass") for t in texts]


# === Equal to the plain tokenizer ===


@pytest.mark.parametrize("kind", KINDS)
def test_naughty_strings_and_lengths(pairs, kind):
    lengths = [c * n for c in "aeกé𐐀中σΣ" for n in (99, 100, 101, 199, 200, 201, 399, 401, 800, 801)]
    pieced = [f"b {text}, a{text}b" for text in lengths]
    assert not pairs[kind].differences(
        [*encoded([*NAUGHTY, *lengths, *pieced]), *(t.encode("utf-16") for t in lengths)]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_odd_lines_whole_and_damaged(pairs, kind):
    chance = random.Random(7)
    lines = encoded(fuzz(3_000, seed=7))
    assert not pairs[kind].differences([*lines, *(corrupt(line, chance) for line in lines)])


odd = st.sampled_from([*ODD, *WORDS, *SPECIAL, *"\U000f0000\U000f0001\ufa6e\ufa6f\U000ffffd\U00011f43"])
texts = st.lists(st.one_of(st.text(), st.lists(odd, max_size=8).map("".join)).map(str.encode), max_size=4)
stray = st.sampled_from([b"\xce\xa3", b"\xc0", b"\xf5", b"\xff", b"\xf0\x9f", b"\xed\xa0\x80", b"[MASK]", b"a"])
blobs = st.lists(st.one_of(st.binary(), st.lists(stray, max_size=8).map(b"".join)), max_size=4)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(rows=st.one_of(texts, blobs))
def test_any_bytes(pairs, kind, rows):
    assert not pairs[kind].differences(rows)


@pytest.mark.parametrize("kind", [k for k in KINDS if not k[2]])
def test_one_code_point_in_sixteen(pairs, kind):
    _, corrected = module._changes(module.Kind(kind[0], kind[1]), frozenset())
    some = [c for c in code_points() if c % 16 == 5 or c < 0x250 or c in corrected]
    assert not pairs[kind].differences([f"a{chr(c)}b".encode() for c in some])


@pytest.mark.parametrize("name", VOCABULARIES)
def test_real_vocabularies(name):
    pair = Pair(vocabulary(name), VOCABULARIES[name], special=SPECIAL)
    assert not pair.differences(encoded([*udhr(), *fuzz(2_000, seed=8)]))


def test_the_features_that_the_original_wrote_for_mrpc():
    pieces = vocabulary("uncased")
    tokenizer = Tokenizer(pieces, True)
    rows, written = mrpc_rows()
    first, second = (tokenizer.tokenize(tf.constant([row[i] for row in rows])).to_list() for i in (0, 1))
    known = {"[CLS]": pieces.index("[CLS]"), "[SEP]": pieces.index("[SEP]")}
    assert [packed(a, b, known) for a, b in zip(first, second, strict=True)] == written


@pytest.mark.parametrize("lower", [False, True])
def test_the_text_of_a_token_normalizes_to_its_piece(pairs, lower):
    ours, table = pairs["original", lower, ()].graph, normalization.changes("original", lower)
    lines = list(fuzz(2_000, seed=9))
    ids, starts, ends = (v.to_list() for v in ours.tokenize_with_offsets(tf.constant(lines)))
    checked = 0
    for line, *row in zip(encoded(lines), ids, starts, ends, strict=True):
        spans = list(zip(*row[1:], strict=True))
        for number, span in zip(row[0], spans, strict=True):
            piece = VOCABULARY[number].removeprefix("##")
            if piece == "[UNK]":
                continue
            shown = "".join(table.get(ord(c), c) for c in line[slice(*span)].decode()).replace("ς", "σ")
            if spans.count(span) == 1 and piece[0] not in "각":  # else it is a part of one character
                assert shown == piece.replace("ς", "σ")
                checked += 1
            else:
                assert piece in shown
    assert checked > 3_000


# === Shapes and places ===


def test_empty_batches_and_strings(pairs):
    for kind in KINDS:
        ours = pairs[kind].graph
        for size in (0, 3):
            for ragged in ours.tokenize_with_offsets(tf.constant([""] * size, tf.string)):
                assert ragged.dtype == tf.int32
                assert ragged.to_list() == [[]] * size
        assert ours.tokenize(tf.constant([], tf.string)).to_list() == []


def test_in_a_data_pipeline(pairs):
    ours, lines = pairs["original", True, tuple(SPECIAL)].graph, encoded(fuzz(64, seed=10))
    data = tf.data.Dataset.from_tensor_slices(lines).batch(10).map(ours.tokenize_with_offsets, num_parallel_calls=2)
    found = [row for batch in data for row in batch[0].to_list()]
    assert found == ours.tokenize(tf.constant(lines)).to_list()


RELOAD = """
import sys
import numpy as np
import tensorflow as tf
import tensorflow_text
folder = sys.argv[1]
rows = np.load(folder + "/rows.npy", allow_pickle=False).tolist()
rows = [bytes.fromhex(row) for row in rows]
loaded = tf.saved_model.load(folder).signatures["serving_default"](tf.constant(rows))
loaded = {k: v.numpy() for k, v in loaded.items()}
with tf.compat.v1.Session(graph=tf.Graph()) as session:
    meta = tf.compat.v1.saved_model.load(session, ["serve"], folder)
    signature = meta.signature_def["serving_default"]
    names = {k: v.name for k, v in signature.outputs.items()}
    old = session.run(names, {signature.inputs["texts"].name: rows})
assert not [m for m in sys.modules if m.startswith(("keras_bert", "flatbuffers_"))]
assert all(np.array_equal(loaded[k], old[k]) for k in old)
np.savez(folder + "/found.npz", **loaded)
"""


def test_in_a_saved_model_of_a_process_without_us(pairs, tmp_path):
    ours = pairs["original", True, tuple(SPECIAL)].graph
    served = tf.Module()

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="texts")])
    def serve(texts):
        ids, starts, ends = ours.tokenize_with_offsets(texts)
        characters = character_offsets(texts, starts)
        return {
            k: v.to_tensor(-1)
            for k, v in {"ids": ids, "starts": starts, "ends": ends, "characters": characters}.items()
        }

    served.serve = serve
    tf.saved_model.save(served, str(tmp_path), signatures={"serving_default": serve})
    rows = encoded([*NAUGHTY, *fuzz(50, seed=11)])
    np.save(tmp_path / "rows.npy", np.array([row.hex() for row in rows]))
    subprocess.run([sys.executable, "-W", "ignore", "-c", RELOAD, str(tmp_path)], check=True, timeout=120)
    want = serve(tf.constant(rows))
    with np.load(tmp_path / "found.npz") as found:
        for key, value in want.items():
            assert np.array_equal(found[key], value), key

    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    model = SavedModel.FromString((tmp_path / "saved_model.pb").read_bytes())
    graph = model.meta_graphs[0].graph_def
    nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
    kinds = {n.op for n in nodes}
    assert {"FastBertNormalize", "FastWordpieceTokenizeWithOffsets"} <= {k.rpartition(">")[2] for k in kinds}
    assert not [k for k in kinds if any(word in k for word in ("PyFunc", "Table", "Lookup", "VarHandle", "Variable"))]
    assert not model.meta_graphs[0].asset_file_def


MEGABYTE = [
    part * (1_000_000 // len(part))
    for part in (
        *[b"a", b"a ", b"!", b"[", b"[MASK]", b"\0", b"\xff", b"\xe4\xb8", b"a" * 201 + b" "],
        *encoded(["中", "각", "Σ", "ΑΣ ", "e\u0301", "ก" * 150 + " "]),
    )
]


@pytest.mark.parametrize("special", [(), tuple(SPECIAL)])
def test_a_megabyte_in_one_string(pairs, special):
    for text in MEGABYTE:
        _, *places = pairs["original", True, special].graph.tokenize_with_offsets(tf.constant([text]))
        starts, ends = (offsets.flat_values.numpy() for offsets in places)
        assert ((starts >= 0) & (starts < ends) & (ends <= len(text))).all(), text[:9]
        assert (np.diff(starts) >= 0).all(), text[:9]
        assert (np.diff(ends) >= 0).all(), text[:9]


# === The kernel and its constants ===


def test_the_installed_kernel_splits_as_frozen():
    found = module.kernel_classes()
    for kind, members in found.items():
        different = members ^ normalization.members("kernel", kind)
        assert not different, f"{kind}: {[f'{c:04X}' for c in sorted(different)]}; write unicode/kernel.txt again"


def test_the_corrections_of_the_original_are_those_of_newer_punctuation():
    unassigned = normalization.members("original", "unassigned")
    for lower in (False, True):
        _, stand_ins = module._changes(module.Kind("original", lower), frozenset())
        assert len(stand_ins) == 36
        assert set(stand_ins) <= unassigned


def test_white_space_needs_no_correction():
    for flavour in normalization.FLAVOURS:
        kept = {c for c in normalization.members("kernel", "space") if c not in normalization.changes(flavour, False)}
        assert kept == {c for c in normalization.members(flavour, "space") if c in kept}
        gone = normalization.members(flavour, "space") - kept
        assert all(normalization.changes(flavour, False).get(c, " ") in ("", " ") for c in gone)


@pytest.mark.parametrize(("flavour", "lower"), [(f, lower) for f in ("original", "hf") for lower in (False, True)])
def test_the_table_holds_every_change(flavour, lower):
    import tensorflow_text

    table = normalization.changes(flavour, lower)
    kernel = tensorflow_text.FastBertNormalizer(model_buffer=tf.constant(double_array.normalizer(table)))
    found = kernel.normalize(tf.constant([f"a{chr(c)}b".encode() for c in code_points()])).numpy()
    want = [f"a{table.get(c, chr(c))}b".encode() for c in code_points()]
    assert found.tolist() == want


def test_ill_formed_bytes_are_filled_one_for_one():
    import tensorflow_text

    kernel = tensorflow_text.FastBertNormalizer(model_buffer=tf.constant(module._filling_table(b"\x01")))
    chance = random.Random(12)
    rows = [
        bytes(chance.choices(b"a\x80\x90\xa0\xbf\xc0\xce\xa3\xe0\xe4\xed\xf0\xf4\xf5", k=12)) for _ in range(20_000)
    ]
    found = kernel.normalize(tf.constant(rows)).numpy()
    for row, filled in zip(rows, found, strict=True):
        assert len(row) == len(filled)
        assert filled.decode().replace("\1", "") == row.decode("utf-8", "ignore")


def test_without_tensorflow_text(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_text", None)
    with pytest.raises(ConfigError, match="pip install tensorflow-text"):
        Tokenizer(PIECES, True)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"flavour": "cursive"}, ConfigError, "original, hf"),
        ({"special_tokens": ["[GONE]"]}, DataError, r"no \[GONE\]"),
        ({"special_tokens": [" [MASK]"]}, DataError, "no  .MASK"),
    ],
)
def test_what_cannot_work_is_refused(options, error, words):
    with pytest.raises(error, match=words):
        Tokenizer(PIECES, True, **options)
    with pytest.raises(DataError, match="UNK"):
        Tokenizer(["a"], True)


@pytest.mark.parametrize("texts", ["fire", tf.constant("fire"), [["a", "b"], ["c", "d"]], [[["a"]]]])
def test_what_is_no_vector_never_reaches_a_kernel(texts):
    tokenizer, offsets = Tokenizer(PIECES, False, "hf"), tf.ragged.constant([[0]], tf.int32)
    for call in (tokenizer.tokenize, tokenizer.tokenize_with_offsets, lambda text: character_offsets(text, offsets)):
        with pytest.raises(ConfigError, match=r"got shape \(.*\); put a single text into a list"):
            call(texts)


@pytest.mark.parametrize("method", ["tokenize", "tokenize_with_offsets"])
def test_the_graph_refuses_what_is_no_vector(method):
    """An input may have another shape than its graph was made for, as a placeholder that is fed has."""
    tokenizer = Tokenizer(PIECES, False, "hf")

    @tf.function(input_signature=[tf.TensorSpec(None, tf.string)], autograph=False)
    def run(text):
        declared = tf.identity(text)
        declared.set_shape([None])
        return getattr(tokenizer, method)(declared)

    for texts in ("forest fire", [["a", "b"], ["c", "d"]], [[["a"]]]):
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"not compatible with expected shape \[\?\]"):
            run(tf.constant(texts))
    run(tf.constant(["forest fire"]))
