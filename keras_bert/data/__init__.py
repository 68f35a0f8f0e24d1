"""Files of text to examples, and examples to batches.

`tables` reads csv, tsv and jsonl; `entities`, `questions`, `choices`, `masked` and `pairs` the files of a task with
labels of its own; `labels` makes numbers of labels, `splits` holds rows out, `batches` feeds training. `source` is the
form of all: a new kind of file is one `Source`, which the dataclass of a task names. A broken row is always named,
never dropped.
"""

from keras_bert.rooms import exported

__getattr__, __dir__ = exported(
    __name__,
    {
        "tables": "Table read find",
        "labels": "find_labels",
        "splits": "split folds hold_out",
        "batches": "Examples",
        "source": "Source FileSource source_of read_labelled",
        "faults": "Reading",
        "entities": "find_types",
    },
)
