"""Every setting of the package, as frozen dataclasses without Keras; a field with a help text is also a flag.

`base` has what all share, `model` the encoder, `text` rows of tokens, `tasks` heads and columns, `training` runs, and
`pretrain` corpora, masks and pretraining. A new setting is one field with its help; it becomes a flag by itself.
"""

from keras_bert.config.base import T as T
from keras_bert.config.base import check_choices as check_choices
from keras_bert.config.base import choose as choose
from keras_bert.config.base import dumps as dumps
from keras_bert.config.base import flag as flag
from keras_bert.config.base import from_dict as from_dict
from keras_bert.config.base import require as require
from keras_bert.config.base import resolve as resolve
from keras_bert.config.base import to_dict as to_dict
from keras_bert.config.model import FEATURES as FEATURES
from keras_bert.config.model import SIZES as SIZES
from keras_bert.config.model import EncoderConfig as EncoderConfig
from keras_bert.config.pretrain import CorpusConfig as CorpusConfig
from keras_bert.config.pretrain import MaskingConfig as MaskingConfig
from keras_bert.config.pretrain import PretrainConfig as PretrainConfig
from keras_bert.config.tasks import TASKS as TASKS
from keras_bert.config.tasks import ChoiceConfig as ChoiceConfig
from keras_bert.config.tasks import ClassifyConfig as ClassifyConfig
from keras_bert.config.tasks import DataConfig as DataConfig
from keras_bert.config.tasks import EmbedConfig as EmbedConfig
from keras_bert.config.tasks import FillMaskConfig as FillMaskConfig
from keras_bert.config.tasks import GenerateConfig as GenerateConfig
from keras_bert.config.tasks import HeadConfig as HeadConfig
from keras_bert.config.tasks import LayersConfig as LayersConfig
from keras_bert.config.tasks import MultilabelConfig as MultilabelConfig
from keras_bert.config.tasks import RegressConfig as RegressConfig
from keras_bert.config.tasks import SentenceConfig as SentenceConfig
from keras_bert.config.tasks import SimilarityConfig as SimilarityConfig
from keras_bert.config.tasks import SpanConfig as SpanConfig
from keras_bert.config.tasks import TagConfig as TagConfig
from keras_bert.config.tasks import VectorConfig as VectorConfig
from keras_bert.config.tasks import WeightedConfig as WeightedConfig
from keras_bert.config.tasks import tasks_with as tasks_with
from keras_bert.config.text import ADDED_FLAGS as ADDED_FLAGS
from keras_bert.config.text import AddedToken as AddedToken
from keras_bert.config.text import TextConfig as TextConfig
from keras_bert.config.text import WindowConfig as WindowConfig
from keras_bert.config.training import FROZEN as FROZEN
from keras_bert.config.training import FinetuneConfig as FinetuneConfig
from keras_bert.config.training import OptimizerConfig as OptimizerConfig
from keras_bert.config.training import RunConfig as RunConfig
from keras_bert.config.training import TrainConfig as TrainConfig
