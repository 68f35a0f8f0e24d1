"""What a run says about itself: predictions of the evaluation rows, and the report made of them.

`predictions` keeps what a model said of each row; `report` makes tables and pictures of it, without a model. A new
part of the report is one function and one row in `report.SECTIONS`.
"""

from keras_bert.rooms import exported

__getattr__, __dir__ = exported(
    __name__,
    {
        "predictions": "Predictions",
        "report": "SECTIONS",
    },
)
