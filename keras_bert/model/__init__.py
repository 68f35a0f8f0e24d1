"""BERT's arithmetic, in `keras.ops` only: it runs on TensorFlow, JAX and PyTorch.

`encoder` is all of BERT, `layers` has the pooler and the vocabulary logits, `readout` chooses what a head reads: which
layers, and which vector for a text. A new mask, kind of positions, activation, choice of layers or pooling is one
function or class and one row: `MASKS` in `masks`, `POSITIONS` in `positions`, `NORMS` and `NORM_PLACES` in `norms`,
`FEED_FORWARDS` in `encoder`, `ACTIVATIONS` in `kernels`, `LAYERS` and `POOLINGS` in `readout`.
"""

from keras_bert.rooms import exported

__getattr__, __dir__ = exported(
    __name__,
    {
        "encoder": "FEED_FORWARDS Encoder Memory",
        "masks": "MASKS",
        "norms": "NORMS NORM_PLACES",
        "positions": "POSITIONS Positions",
        "readout": "LAYERS POOLINGS Layers",
        "layers": "Pooler TiedLogits",
        "kernels": "ACTIVATIONS",
    },
)
