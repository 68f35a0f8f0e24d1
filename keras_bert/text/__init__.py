"""Strings to rows of token ids, in the graph and in plain Python.

`text` is the layer that a model reads with, `tokenizer` its WordPiece in the graph, `wordpiece` the same in plain
Python, `normalization` what both do to characters, `added` how both find added tokens, `packing` how segments share a
row, `learning` how vocabularies are made. A new way to share a row is one function and one row in `packing.SHARES`.
"""

from keras_bert.rooms import exported

__getattr__, __dir__ = exported(
    __name__,
    {
        "text": "Text",
        "tokenizer": "Tokenizer",
        "wordpiece": "WordPiece",
        "vocabulary": "read_vocabulary",
    },
)
