"""Files of text to examples, and examples to batches.

`tables` reads csv, tsv and jsonl; `entities`, `questions`, `choices`, `masked` and `pairs` the files of a task with
labels of its own; `labels` makes numbers of labels, `splits` holds rows out, `batches` feeds training. A new kind of
file is one function and one row in `readers.READERS`; a broken row is always named, never dropped.
"""

from keras_bert.rooms import exported

__getattr__, __dir__ = exported(
    __name__,
    {
        "tables": "Table read find",
        "labels": "find_labels encode_labels",
        "splits": "split folds hold_out",
        "batches": "Examples",
        "readers": "READERS read_labelled",
        "faults": "Reading",
        "entities": "find_types",
    },
)
