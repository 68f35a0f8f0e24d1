"""BERT from raw text to a served answer, in TensorFlow and Keras 3.

    from keras_bert import Bert

    bert = Bert.from_checkpoint("path/to/checkpoint", labels=["no", "yes"])
    bert.fit(texts, labels)
    bert.predict(["forest fire near la ronge"])

The names below are the public ones. They are imported when first used, so `import keras_bert` is instant.
"""

from typing import TYPE_CHECKING

from keras_bert.rooms import exported

__version__ = "0.1.0"

if TYPE_CHECKING:
    from keras_bert.bert import Bert as Bert
    from keras_bert.config import SIZES as SIZES
    from keras_bert.config import EncoderConfig as EncoderConfig
    from keras_bert.config import FinetuneConfig as FinetuneConfig
    from keras_bert.config import HeadConfig as HeadConfig
    from keras_bert.config import OptimizerConfig as OptimizerConfig
    from keras_bert.config import TextConfig as TextConfig
    from keras_bert.config import TrainConfig as TrainConfig
    from keras_bert.errors import KerasBertError as KerasBertError
    from keras_bert.model.encoder import Encoder as Encoder
    from keras_bert.text.text import Text as Text

__getattr__, _names = exported(
    __name__,
    {
        "bert": "Bert",
        "config": "EncoderConfig FinetuneConfig HeadConfig OptimizerConfig SIZES TextConfig TrainConfig",
        "errors": "KerasBertError",
        "model": "Encoder",
        "text": "Text",
    },
)
__all__ = [*_names(), "__version__"]


def __dir__() -> list[str]:
    return __all__
