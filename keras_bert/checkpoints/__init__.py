"""Weights in and out: directories of ours, and of every library that keeps a BERT.

`checkpoints` opens, loads and saves, `hub` finds a name on disk or on a hub, `formats` knows each library's names and
files. A new library is one module in `formats` and one row in `formats.FORMATS`. Weights are read, code never.
"""

from keras_bert.rooms import exported

__getattr__, __dir__ = exported(
    __name__,
    {
        "checkpoints": "load open_checkpoint save read_model",
        "hub": "resolve",
    },
)
