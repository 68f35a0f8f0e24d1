"""The manifest of an exported model, for programs, and its model card, for people.

`assets.extra/keras_bert.json` and `README.md` lie in the version directory, where servers read over them.
"""

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from keras_bert.config import TASKS, dumps
from keras_bert.files import sha256
from keras_bert.serving.golden import MANIFEST
from keras_bert.serving.releases import Ops, meta_graph

DIFFERS = ("created", "files.saved_model.pb", "files.fingerprint.pb", "files.README.md")
"""Fields of the manifest that differ between two exports of the same model: the time, and what TensorFlow numbers
anew in each process."""


def described(folder: Path) -> dict[str, Any]:
    """The signatures of a SavedModel: dtype and shape of each input and output, None for what may vary."""

    def tensors(found: Any) -> dict[str, Any]:
        return {
            name: {
                "dtype": tf.as_dtype(found[name].dtype).name,
                "shape": [None if d.size < 0 else d.size for d in found[name].tensor_shape.dim],
            }
            for name in sorted(found)
        }

    signatures = meta_graph(folder).signature_def
    return {
        name: {"inputs": tensors(signatures[name].inputs), "outputs": tensors(signatures[name].outputs)}
        for name in sorted(signatures)
        if not name.startswith("__")
    }


def vocabulary(pieces: Sequence[str]) -> dict[str, Any]:
    """Size of a vocabulary, and the hash of its `vocab.txt`."""
    content = "".join(f"{piece}\n" for piece in pieces)
    return {"size": len(pieces), "sha256": hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()}


def created() -> str:
    """Now, or SOURCE_DATE_EPOCH where it is set, for builds that can be repeated."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))))


def write(folder: Path, model: str, facts: Mapping[str, Any], ops: Ops) -> None:
    """Write the model card and, last of all files, the manifest.

    Args:
        folder: the version directory, with all its other files.
        model: the name that the model is served under.
        facts: what the exporter knows of the model, see `export.export`.
        ops: what its graph needs.
    """
    import keras
    import tensorflow_text

    from keras_bert import __version__

    content = {
        "schema": 1,
        "created": created(),
        "versions": {
            "keras_bert": __version__,
            "tensorflow": tf.__version__,
            "tensorflow_text": tensorflow_text.__version__,
            "keras": keras.__version__,
        },
        "oldest_server": ops.oldest_server,
        "ops": list(ops.names),
        **facts,
        "differs_between_exports": list(DIFFERS),
    }
    (folder / "README.md").write_text(card(model, content), "utf-8")
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    content["files"] = {p.relative_to(folder).as_posix(): sha256(p) for p in files}
    (folder / "assets.extra" / MANIFEST).write_text(dumps(content), "utf-8")


# === Model card ===


def card(model: str, content: Mapping[str, Any]) -> str:
    """The model card: what the model is, how to serve it, how to ask it, and its limits."""
    parts = [_front(content), _title(model, content), _serving(model, content), _asking(model, content)]
    return "\n".join(part for part in [*parts, _limits(content), _origin(content)] if part)


def _front(content: Mapping[str, Any]) -> str:
    about = content["about"]
    task = content["head"]["task"]
    front = {"library_name": "keras", "tags": ["bert", "keras_bert", "saved-model"]}
    pipeline = TASKS[task].pipeline if task in TASKS else ""
    front |= {"pipeline_tag": pipeline} if pipeline else {}
    front |= {name: about[name] for name in ("license", "base_model") if about.get(name)}
    lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in front.items()]
    return "---\n" + "\n".join(lines) + "\n---\n"


def _title(model: str, content: Mapping[str, Any]) -> str:
    head, encoder, labels = content["head"], content["encoder"], content["head"]["labels"]
    shown = ", ".join(f"`{json.dumps(label, ensure_ascii=False)[1:-1]}`" for label in labels[:20])
    more = f" and {len(labels) - 20} more" if len(labels) > 20 else ""
    return "\n".join(
        [
            f"# {model}",
            "",
            content["about"].get("description")
            or f"A BERT for the task `{head['task']}`, from raw text to the answer in one TensorFlow SavedModel.",
            "",
            *([f"- the mean of the scores of {content['models']} models"] if content["models"] > 1 else []),
            f"- {encoder['num_layers']} layers, {encoder['hidden_dim']} wide, {content['parameters']:,} parameters, "
            f"computed in {content['precision']}",
            f"- vocabulary of {content['vocabulary']['size']:,} pieces, "
            f"{'lower-cased' if content['text']['do_lower_case'] else 'cased'}",
            *([f"- {len(labels)} labels: {shown}{more}"] if labels else []),
            f"- needs TensorFlow Serving {content['oldest_server']} or later (by its ops)",
            "",
        ]
    )


def _serving(model: str, content: Mapping[str, Any]) -> str:
    release = content["versions"]["tensorflow"].rpartition(".")[0] + ".0"
    return f"""## Serve

In the directory that holds the version directories:

```sh
docker run --rm -p 127.0.0.1:8501:8501 -v "$PWD:/models/{model}" -e MODEL_NAME={model} tensorflow/serving:{release}
```

or, without Docker, `keras-bert serve --export_dir=. --model_name={model}`.
"""


def _asking(model: str, content: Mapping[str, Any]) -> str:
    """One curl line for each signature with its first golden request, and the answer that it gave."""
    out = ["## Ask", ""]
    for case in {case["signature"]: case for case in reversed(content["golden"])}.values():
        name, url = case["signature"], f"http://localhost:8501/v1/models/{model}"
        rows = [dict(zip(case["inputs"], row, strict=True)) for row in zip(*case["inputs"].values(), strict=True)][:1]
        verb, body = "predict", {"signature_name": name, "instances": rows}
        if name in ("classify", "regress"):
            texts = content["example"]
            verb, body = name, {"signature_name": name, "examples": [texts]}
        answer = {key: value[0] for key, value in case["outputs"].items()}
        quoted = json.dumps(body, ensure_ascii=False).replace("'", "'\\''")
        out += [
            f"### {name}",
            "",
            "```sh",
            f"curl -d '{quoted}' {url}:{verb}",
            "```",
            "",
            f"Outputs: {', '.join(f'`{key}`' for key in answer)}.",
            "",
        ]
        if name == "serving_default":
            out += ["```json", json.dumps(_short(answer), indent=2, ensure_ascii=False), "```", ""]
    return "\n".join(out)


def _short(answer: Mapping[str, Any]) -> dict[str, Any]:
    return {k: [*v[:10], "..."] if isinstance(v, list) and len(v) > 10 else v for k, v in answer.items()}


def _limits(content: Mapping[str, Any]) -> str:
    text, windows = content["text"], content["windows"]
    if windows["max_windows"] > 1:
        long = (
            f"Texts of more than {text['max_seq_length']} tokens are read in up to {windows['max_windows']} "
            f"overlapping windows, whose scores are merged ({windows['window_merge']}); what lies behind the last is "
            "not read."
        )
    else:
        long = f"Texts of more than {text['max_seq_length']} tokens are cut ({text['truncation_part']} is kept)."
    return f"""## Limits

{long} `num_tokens`, `num_windows` and `truncated` of an answer say what happened to a text. An empty text, broken UTF-8
and control characters are no errors. Answers repeat within {content["tolerance"]:g} on other machines;
`keras-bert verify_export` checks that, here and against a server.
"""


def _origin(content: Mapping[str, Any]) -> str:
    about = {k: v for k, v in content["about"].items() if v and k not in ("description", "license", "base_model")}
    if not about:
        return ""
    return "## Origin\n\n```json\n" + json.dumps(about, indent=2, ensure_ascii=False) + "\n```\n"
