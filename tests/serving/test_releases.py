"""The table of server ops, and the look-up of a graph in it."""

import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from keras_bert.errors import CheckpointError
from keras_bert.serving import releases

RELEASES = {
    "FastBertNormalize": 12,
    "FastWordpieceTokenizeWithOffsets": 12,
    "MatMul": 12,
    "ParseExampleV2": 12,
    "TFText>WhitespaceTokenizeWithOffsetsV2": 12,
    "TFText>RoundRobinGenerateMasks": 20,
    "TFText>RoundRobinTrim": 20,
    "TFText>Utf8Binarize": 20,
    "Conv": 14,
    "FFTND": 15,
    "IndexFlatMapDataset": 17,
    "DecodeWebP": 20,
    "DecodeJxl": 21,
    "TopKV2.index_type": 13,
    "VarHandleOp.debug_name": 15,
    "TensorListGetItem.Tshape": 21,
}


def saved(folder, *nodes, functions=(), tag="serve"):
    """A SavedModel with nodes given as (op, attributes), some in functions, and nothing else."""
    content = saved_model_pb2.SavedModel()
    graph = content.meta_graphs.add()
    graph.meta_info_def.tags.append(tag)
    library = graph.graph_def.library
    for name, inside in functions:
        library.function.add().signature.name = name
        fill(library.function[-1].node_def, inside)
    fill(graph.graph_def.node, nodes)
    (folder / "saved_model.pb").write_bytes(content.SerializeToString())
    return folder


def fill(place, nodes):
    for i, (op, attributes) in enumerate(nodes):
        node = place.add(name=f"node_{i}", op=op)
        for key, value in attributes.items():
            node.attr[key].CopyFrom(value)


YES, INT64 = tf.compat.v1.AttrValue(b=True), tf.compat.v1.AttrValue(type=tf.int64.as_datatype_enum)


def test_the_table_knows_when_ops_came():
    table = releases.table()
    assert {name: table.get(name) for name in RELEASES} == RELEASES
    assert len(table) > 1500
    assert set(table.values()) == {12, 13, 14, 15, 16, 17, 18, 20, 21}
    assert not [name for name in table if "PyFunc" in name]


def test_the_installed_tensorflow_has_every_op_of_the_table():
    import tensorflow_text  # noqa: F401  (registers its ops)
    from tensorflow.python.framework import op_def_registry

    installed = int(tf.__version__.split(".")[1])
    names = {name for name, release in releases.table().items() if "." not in name and release <= installed}
    assert len(names) > 1500
    assert [name for name in sorted(names) if op_def_registry.get(name) is None] == []


@pytest.mark.parametrize(
    ("nodes", "oldest"),
    [
        ([("MatMul", {})], "2.12"),
        ([("MatMul", {}), ("TFText>RoundRobinTrim", {})], "2.20"),
        ([("DecodeWebP", {}), ("MatMul", {})], "2.20"),
        ([("TopKV2", {"index_type": INT64})], "2.13"),
        ([("VarHandleOp", {"debug_name": YES})], "2.12"),
    ],
)
def test_the_oldest_server_has_all_ops_and_attributes(nodes, oldest, tmp_path):
    found = releases.check(saved(tmp_path, *nodes))
    assert found.oldest_server == oldest
    assert found.names == tuple(sorted(op for op, _ in nodes))


def test_the_export_of_keras_hub_needs_the_first_server_with_its_trimmer(tmp_path):
    import keras_hub

    tokenizer = keras_hub.tokenizers.WordPieceTokenizer(["[UNK]", "[PAD]", "[CLS]", "[SEP]", "a", "b"])
    packer = keras_hub.layers.MultiSegmentPacker(8, start_value=2, end_value=3, pad_value=1, truncate="round_robin")

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)] * 2)
    def serve(first, second):
        ids, segments = packer((tokenizer(first), tokenizer(second)))
        return {"ids": ids, "segments": segments}

    tf.saved_model.save(tf.Module(), tmp_path, signatures=serve)
    found = releases.check(tmp_path)
    assert "TFText>RoundRobinTrim" in found.names
    assert found.oldest_server == "2.20"


def test_functions_are_looked_into_and_are_no_ops(tmp_path):
    folder = saved(tmp_path, ("inner", {}), functions=[("inner", [("FFTND", {})])])
    assert releases.check(folder) == releases.Ops(("FFTND",), "2.15")


@pytest.mark.parametrize(
    ("nodes", "functions", "said"),
    [
        ([("NoSuchOp", {})], [], "node_0: no TensorFlow Serving from 2.12 to 2.21 has the op NoSuchOp"),
        ([], [("f", [("EagerPyFunc", {})])], "has the op EagerPyFunc"),
        ([("MatMul", {"_XlaMustCompile": YES})], [], "node_0: must be compiled by XLA"),
    ],
)
def test_what_no_server_can_run_is_refused(nodes, functions, said, tmp_path):
    with pytest.raises(CheckpointError, match=said) as caught:
        releases.check(saved(tmp_path, *nodes, functions=functions))
    assert "\n" not in str(caught.value)


def test_what_is_no_saved_model_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"saved_model\.pb: cannot be read"):
        releases.check(tmp_path)
    with pytest.raises(CheckpointError, match="has no graph for serving"):
        releases.check(saved(tmp_path, tag="train"))
    (tmp_path / "saved_model.pb").write_bytes(b"\xff\xff not a message")
    with pytest.raises(CheckpointError, match="cannot be read"):
        releases.check(tmp_path)
