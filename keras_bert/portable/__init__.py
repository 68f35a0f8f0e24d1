"""A model without TensorFlow: LiteRT and ONNX, asked with plain Python and NumPy.

`portable` reads and asks such a directory, `lite` and `onnx` write one. A new runner is one function and one row in
`portable.RUNNERS`.
"""

from keras_bert.rooms import exported

__getattr__, __dir__ = exported(
    __name__,
    {
        "portable": "LiteModel",
    },
)
