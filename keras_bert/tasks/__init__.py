"""What is asked of the encoder: one file a task, with its head and its answer.

`head` is the form of all; `network` joins a head to the encoder and holds the table `HEADS`; `tagging`, `spans`,
`words` and `cosines` decode; `metrics` judges. All of it is `keras.ops` and NumPy. A new task is its dataclass in
`config/tasks.py` and a file here.
"""

from keras_bert.rooms import exported

__getattr__, __dir__ = exported(
    __name__,
    {
        "network": "HEADS Network",
        "head": "Head",
        "classify": "Classify",
        "multilabel": "Multilabel",
        "regress": "Regress",
        "choice": "Choice",
        "tag": "Tag",
        "span": "Span",
        "embed": "Embed",
        "similarity": "Similarity",
        "fill_mask": "FillMask",
        "generate": "Generate",
    },
)
