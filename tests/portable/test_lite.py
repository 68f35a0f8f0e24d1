"""LiteRT models answer as the network does, from text with the plain Python tokenizer, and from text in the graph."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
import tensorflow as tf
from conftest import WORDS, tiny_bert

from keras_bert.__main__ import main
from keras_bert.config import HeadConfig, TextConfig
from keras_bert.errors import CheckpointError, ConfigError, DataError
from keras_bert.portable import lite, portable
from keras_bert.text.text import Text

TEXTS = ["fire in the city", "", "storm " * 40, "Fires é!", "x" * 300, "a b c d e f g h i j k l m n o p q"]
FAR = {"float32": 1e-5, "float16": 1e-3, "int8": 0.05}
KINDS = {
    "classify": tiny_bert("classify", ("no", 'y"es', "🔥")),
    "multilabel": tiny_bert("multilabel", ("no", "yes")),
    "regress": tiny_bert("regress", (), pair=True),
}


@pytest.mark.parametrize(
    ("task", "precision"),
    [*(("classify", p) for p in lite.PRECISIONS), ("multilabel", "int8"), ("regress", "float32")],
)
def test_answers_are_those_of_predict(task, precision, tmp_path):
    bert, tolerance = KINDS[task], FAR[precision]
    lite.write(tmp_path, bert.text, bert.network, bert.pair, precision)
    model = portable.LiteModel(tmp_path)
    segments = [TEXTS, TEXTS[::-1]] if bert.pair else [TEXTS]
    for found, wanted in zip(map(model.answer, *segments), bert.predict(*segments), strict=True):
        assert found.keys() == wanted.keys()
        assert found["truncated"] == wanted["truncated"]
        if "scores" in wanted:
            assert found["scores"] == pytest.approx(wanted["scores"], abs=tolerance)
        if "score" in wanted:
            assert found["score"] == pytest.approx(wanted["score"], abs=tolerance)
        if task == "classify":
            assert found["label"] == next(iter(found["scores"]))
    with pytest.raises(ConfigError, match="this model reads"):
        model.answer(*["fire"] * (2 - bert.pair))
    for wrong in (["fire"], b"fire", None):
        with pytest.raises(DataError, match=r"a text must be a string, got .*; ask for one text at a time"):
            model.answer(*[wrong] * (1 + bert.pair))


@pytest.mark.parametrize("truncation", portable.SHARES)
@pytest.mark.parametrize("part", portable.PARTS)
def test_rows_are_those_of_the_graph(truncation, part):
    random = np.random.default_rng(0)
    words = WORDS[40:]
    segments = [[" ".join(random.choice(words, n)) for n in random.integers(0, 15, 40)] for _ in range(3)]
    config = TextConfig(max_seq_length=12, truncation=truncation, truncation_part=part)
    text = Text(WORDS, config)
    model = object.__new__(portable.LiteModel)  # the tokenizer and the rows need no interpreter
    model.text, model.tokenizer = config, portable.WordPiece(WORDS, True)
    model.cls_id, model.sep_id = text.cls_id, text.sep_id
    for count in (1, 2, 3):
        found = {k: v.numpy() for k, v in text(*segments[:count]).items()}
        for i, row in enumerate(zip(*segments[:count], strict=True)):
            ids, kinds, truncated = model.row(*row)
            mask = found["padding_mask"][i]
            assert ids == found["token_ids"][i][mask].tolist()
            assert kinds == found["segment_ids"][i][mask].tolist()
            assert truncated == found["truncated"][i]


def test_the_graph_takes_text_with_the_registrar():
    import tensorflow_text

    bert = KINDS["classify"]
    content = lite.convert_text(bert.text, bert.network, "float32")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorflow.lite.python.interpreter import InterpreterWithCustomOps

        registrar = tensorflow_text.tflite_registrar.SELECT_TFTEXT_OPS
        run = InterpreterWithCustomOps(model_content=content, custom_op_registerers=registrar).get_signature_runner()
    for text, wanted in zip(TEXTS, bert.predict(TEXTS), strict=True):
        found = run(text=np.array([text.encode()], object))
        ids = bert.text([text])["token_ids"].numpy()[0].tolist()
        assert found["token_ids"][0].tolist() == ids + [0] * (16 - len(ids))
        assert found["score"][0] == pytest.approx(wanted["score"], abs=1e-5)


def test_int8_is_smaller(tmp_path):
    """Where there are enough weights for it to show."""
    from keras_bert.config import EncoderConfig
    from keras_bert.tasks.network import Network

    config = EncoderConfig(vocab_size=2000, num_layers=1, num_heads=2, hidden_dim=64, intermediate_dim=256)
    network = Network(config, HeadConfig(labels=("0", "1")))
    sizes = {name: len(lite.convert(network, name)) for name in lite.PRECISIONS}
    assert sizes["float16"] < 0.6 * sizes["float32"]
    assert sizes["int8"] < 0.4 * sizes["float32"]


def test_the_command(tmp_path, capsys):
    KINDS["classify"].save(tmp_path / "run")
    assert main(["lite", f"--model_dir={tmp_path / 'run'}", f"--output_dir={tmp_path / 'lite'}"]) == 0
    said = capsys.readouterr()
    assert said.out == f"{tmp_path / 'lite'}\n"
    assert "MB in int8" in said.err
    assert portable.LiteModel(tmp_path / "lite", num_threads=2).answer("fire")["label"] in ("no", 'y"es', "🔥")
    for model_dir, output, code, message in (
        ("run", "run/vocab.txt", 2, "is a file; name a directory"),
        ("nowhere", "lite", 5, "does not exist"),
    ):
        assert main(["lite", f"--model_dir={tmp_path / model_dir}", f"--output_dir={tmp_path / output}"]) == code
        assert message in capsys.readouterr().err


def test_importing_it_needs_no_tensorflow():
    code = "import sys\nfrom keras_bert.portable import lite, onnx\n"
    code += "sys.exit(bool({'tensorflow', 'keras'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_refusals(tmp_path):
    bert = KINDS["classify"]
    with pytest.raises(ConfigError, match="unknown precision 'int4'; choose one of float32, float16, int8"):
        lite.convert(bert.network, "int4")
    with pytest.raises(CheckpointError, match="is no LiteRT or ONNX model of ours"):
        portable.LiteModel(tmp_path)
    lite.write(tmp_path, bert.text, bert.network, False)
    (tmp_path / lite.MODEL_FILE).write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"model\.tflite: cannot be read"):
        portable.LiteModel(tmp_path)
    (tmp_path / "file").write_text("kept")
    with pytest.raises(CheckpointError, match="cannot be written"):
        lite.write(tmp_path / "file" / "x", bert.text, bert.network, False)
    assert tf.io.gfile.exists(str(tmp_path / "file"))
