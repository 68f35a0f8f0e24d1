"""`keras-bert embed`: vectors of texts, or of each of their tokens, from any checkpoint, trained by us or not.

An `.npz` holds `embeddings` float32 `[rows, E]`, and `ids` where the input has such a column. With `--tokens` the
tokens of all texts stand one after another: `embeddings` `[tokens, E]`, `tokens`, and `lengths` of the texts. A
`.jsonl` holds an object a row: `embedding`, or `tokens` and `embeddings`.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from keras_bert.checkpoints.checkpoints import open_checkpoint, text_config
from keras_bert.cli.flags import Flags, add_opening, kept_keys, names_of, note
from keras_bert.config import EmbedConfig, TextConfig
from keras_bert.data.batches import Examples, lengths
from keras_bert.data.tables import Table, read
from keras_bert.errors import ConfigError
from keras_bert.files import replacing, write_atomic

CHOSEN = ("layers", "pooling", "normalize", "dimensions", "prompt")
KINDS = (".npz", ".jsonl")


def define() -> Flags:
    """The flags of the command."""
    others = [name for name in names_of(EmbedConfig) if name not in CHOSEN]
    flags = Flags("embed", "vectors of texts, or of their tokens", (TextConfig, EmbedConfig), others)
    flags.require("init_checkpoint", "Directory or name of any checkpoint, or of a `keras-bert finetune` run.")
    flags.require("input_file", "Texts: csv, tsv or jsonl.")
    flags.require("output_file", "The .npz or .jsonl to write; an existing one is replaced.")
    flags.add("text_column", "text", "Column that holds the text.")
    flags.add("id_column", "id", "Column that is copied to the output, where the input has it.")
    flags.add("tokens", False, "A vector of every token, [CLS] and [SEP] too, instead of one of the text.")
    flags.add("predict_batch_size", 64, "Rows per step.")
    add_opening(flags)
    return flags


def main(argv: list[str]) -> int:
    """Run the command; see the module's docstring."""
    flags = define()
    if not flags.parse(argv):
        return 0
    flags.config(TextConfig)
    output = Path(flags["output_file"])
    if flags["predict_batch_size"] < 1:
        raise ConfigError(f"--predict_batch_size must be at least 1, got {flags['predict_batch_size']}")
    if output.suffix not in KINDS:
        raise ConfigError(f"--output_file {output}: must end in {' or '.join(KINDS)}")
    if output.is_dir() or not output.parent.is_dir() or not os.access(output.parent, os.W_OK | os.X_OK):
        raise ConfigError(f"--output_file {output}: must be a file in a directory that can be written")
    if flags["tokens"] and flags.given("pooling"):
        raise ConfigError("--tokens and --pooling contradict each other: tokens are not pooled")
    rows = read(flags["input_file"], [flags["text_column"]])
    if output.exists() and any(output.samefile(f) for f in set(rows.files)):
        raise ConfigError(f"--output_file {output}: is also the input; name another file")
    checkpoint = open_checkpoint(flags["init_checkpoint"], kept_keys(flags))
    text = flags.given_of(TextConfig)
    text_config(checkpoint, text)

    from keras_bert.bert import Bert

    opening = {"drop": flags["drop"], "keep_keys": kept_keys(flags)}
    head = flags.given_of(EmbedConfig)
    bert = Bert.from_checkpoint(checkpoint.path, task="embed", head=head, **opening, **text)
    texts, size = rows[flags["text_column"]], flags["predict_batch_size"]
    found = bert.embed_tokens(texts, size, sys.stderr) if flags["tokens"] else bert.embed(texts, size, sys.stderr)
    (write_npz if output.suffix == ".npz" else write_lines)(output, rows, flags["id_column"], found)
    longest = bert.text.config.max_seq_length
    reader = bert.head.prepare_text(bert.text)
    cut = int(np.sum(lengths(Examples((texts,)), reader, cut=False) > longest))
    if cut:
        note(f"warning: {cut} of {len(texts)} texts were longer than {longest} tokens and were cut")
    note(f"wrote {len(rows)} rows to {output}")
    return 0


def write_npz(output: Path, rows: Table, id_column: str, found: Any) -> None:
    """NumPy's form; nothing in it is pickled."""
    arrays: dict[str, np.ndarray] = {"embeddings": found}
    if isinstance(found, list):
        arrays = {
            "embeddings": np.concatenate([vectors for _, vectors in found]),
            "tokens": np.array([piece for pieces, _ in found for piece in pieces]),
            "lengths": np.array([len(pieces) for pieces, _ in found], np.int32),
        }
    if id_column in rows.columns:
        arrays["ids"] = np.array(rows[id_column])
    with replacing(output) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def write_lines(output: Path, rows: Table, id_column: str, found: Any) -> None:
    """An object a line."""
    lines = []
    for i, one in enumerate(found):
        line: dict[str, Any] = {id_column: rows[id_column][i]} if id_column in rows.columns else {}
        if isinstance(one, tuple):
            line |= {"tokens": one[0], "embeddings": one[1].tolist()}
        else:
            line["embedding"] = one.tolist()
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    write_atomic(output, "".join(lines))
