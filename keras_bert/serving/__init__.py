"""A model as a SavedModel that takes strings and gives answers, and what is kept of it.

`served` is text, encoder and head as one function, `signatures` what a client may call, `export` the file, tried
before it is published; `search` generates; `golden`, `requests`, `warmup` and `manifest` are what is written beside
the graph; `embedding_types` are forms of vectors. A new signature is one function and one row in `signatures`.
"""

from keras_bert.rooms import exported

__getattr__, __dir__ = exported(
    __name__,
    {
        "served": "Served ANSWERING",
        "signatures": "COMMON MAKERS",
    },
)
