"""The weights of a network by path, as checkpoints name them, and their shapes; no layer is built.

One function for each kind of layer, `encoder_weights` for what is below every head, and one row in `FORMS` for each
form of heads, which the dataclass of a task names. Positions and choices of layers say their weights themselves
(`Positions.weight_shapes`, `readout.Layers`). `tests/test_shapes.py` compares all of it with networks that were really
built.
"""

from collections.abc import Callable
from math import prod
from typing import Any

from keras_bert.config import EncoderConfig, HeadConfig, choose

Shape = tuple[int, ...]
Shapes = dict[str, Shape]
Parts = dict[str, Shapes]
"""Part -> its weights. A checkpoint holds a part as a whole or not at all."""

PARTS = ("encoder", "pooler", "masked_lm", "next_sentence", "readout", "dense", "logits")


# === Layers ===


def dense(path: str, inputs: int, units: int, use_bias: bool = True) -> Shapes:
    """A dense layer."""
    return {f"{path}/kernel": (inputs, units)} | ({f"{path}/bias": (units,)} if use_bias else {})


def norm(path: str, width: int, config: EncoderConfig) -> Shapes:
    """The norm that the config names."""
    from keras_bert.model.norms import NORMS  # brings Keras, which opening a checkpoint does not need

    names = choose(NORMS, config.norm, "norm").weight_names
    return {f"{path}/{name}": (width,) for name in names if config.norm_bias or name != "beta"}


def lstm(path: str, inputs: int, units: int) -> Shapes:
    """One direction of a Keras LSTM, whose four gates share each matrix."""
    cell = f"{path}/lstm_cell"
    return {
        f"{cell}/kernel": (inputs, 4 * units),
        f"{cell}/recurrent_kernel": (units, 4 * units),
        f"{cell}/bias": (4 * units,),
    }


def attention(path: str, config: EncoderConfig) -> Shapes:
    """Query, key, value and output of all attention heads."""
    width = config.num_heads * config.head_dim
    shapes: Shapes = {}
    for name in ("query", "key", "value"):
        shapes |= dense(f"{path}/{name}", config.hidden_dim, width, config.use_bias)
    return shapes | dense(f"{path}/output", width, config.hidden_dim, config.use_bias)


def feed_forward(path: str, config: EncoderConfig) -> Shapes:
    """The two dense layers of a block."""
    from keras_bert.model.encoder import FEED_FORWARDS

    kind = choose(FEED_FORWARDS, config.feed_forward, "kind of feed-forward")
    inner = {f"{path}/inner/{name}": shape for name, shape in kind.inner_shapes(config).items()}
    return inner | dense(f"{path}/outer", config.intermediate_dim, config.hidden_dim, config.use_bias)


def block(path: str, config: EncoderConfig) -> Shapes:
    """One layer of the encoder; `config` has its sizes, see `EncoderConfig.layer`."""
    width = config.hidden_dim
    return {
        **attention(f"{path}/attention", config),
        **(norm(f"{path}/attention_norm", width, config) if config.first_norm else {}),
        **feed_forward(f"{path}/feed_forward", config),
        **norm(f"{path}/feed_forward_norm", width, config),
    }


def positions(path: str, config: EncoderConfig) -> Shapes:
    """What the kind of positions adds."""
    from keras_bert.model.positions import POSITIONS  # brings Keras, which opening a checkpoint does not need

    kind = choose(POSITIONS, config.positions, "kind of positions")
    return {f"{path}/{name}": shape for name, shape in kind.weight_shapes(config).items()}


def encoder_weights(config: EncoderConfig) -> Shapes:
    """The whole encoder."""
    from keras_bert.model.norms import NORM_PLACES

    narrow, wide = config.embedding_width, config.hidden_dim
    shapes = {
        "encoder/tokens/embeddings": (config.vocab_size, narrow),
        "encoder/segments/embeddings": (config.num_segments, narrow),
        **positions("encoder/positions", config),
        **(norm("encoder/norm", narrow, config) if config.embedding_norm else {}),
        **(dense("encoder/projection", narrow, wide, config.use_bias) if narrow != wide else {}),
    }
    for i in range(config.num_blocks):
        shapes |= block(f"encoder/block_{i}", config.layer(i))
    at_the_end = choose(NORM_PLACES, config.norm_place, "place of norms").at_the_end
    return shapes | (norm("encoder/final_norm", wide, config) if at_the_end else {})


# === Heads ===


def pooler(config: EncoderConfig) -> Shapes:
    """The pretrained pooler."""
    return dense("head/pooler/dense", config.hidden_dim, config.hidden_dim)


def masked_lm(config: EncoderConfig) -> Shapes:
    """The masked language model; its last product is with the token table, so it adds a bias only."""
    width = config.embedding_width
    transform = dense("head/masked_lm/transform", config.hidden_dim, width) | norm("head/masked_lm/norm", width, config)
    return transform | {"head/masked_lm/bias": (config.vocab_size,)}


def pretraining(config: EncoderConfig) -> Parts:
    """What pretraining with two kinds of sentence pairs adds to the encoder."""
    return {
        "pooler": pooler(config),
        "masked_lm": masked_lm(config),
        "next_sentence": dense("head/next_sentence", config.hidden_dim, 2),
    }


def readout(config: EncoderConfig, head: Any) -> tuple[Shapes, int]:
    """What reading the encoder's layers adds, and the width of the vectors that are read."""
    from keras_bert.model.readout import LAYERS

    layers = choose(LAYERS, head.layers, "choice of layers")
    shapes: Shapes = {}
    width = layers.factor * config.hidden_dim
    if layers.mixed:
        shapes |= {"head/readout/mix/beta": (config.num_layers + 1,), "head/readout/mix/gamma": (1,)}
    if head.head_lstm:
        for direction in ("forward_lstm", "backward_lstm"):
            shapes |= lstm(f"head/readout/lstm/{direction}", width, head.head_lstm)
        width = 2 * head.head_lstm
    return shapes, width


def vectors(config: EncoderConfig, head: Any) -> Parts:
    """A head that answers with the vectors that it reads, after dense layers where it has any."""
    shapes, width = readout(config, head)
    parts: Parts = {"readout": shapes} if shapes else {}
    width *= len(head.poolings) if head.dense_units else 1
    layers: Shapes = {}
    for i, (units, bias) in enumerate(zip(head.dense_units, head.dense_biases, strict=True)):
        layers[f"head/dense_{i}/kernel"] = (width, units)
        layers |= {f"head/dense_{i}/bias": (units,)} if bias else {}
        width = units
    return parts | ({"dense": layers} if layers else {})


def tokens(config: EncoderConfig, head: HeadConfig) -> Parts:
    """A head with logits for each token."""
    shapes, width = readout(config, head)
    parts: Parts = {"readout": shapes} if shapes else {}
    return parts | {"logits": dense("head/logits", width, head.width)}


def sentence(config: EncoderConfig, head: Any) -> Parts:
    """A head with logits for a whole text: over the pooler, unless it pools other layers or in another way."""
    pooled = not head.pooling and head.layers == "last" and not head.head_lstm
    parts: Parts = {"pooler": pooler(config)} if pooled else {}
    return parts | tokens(config, head)


def words(config: EncoderConfig, head: HeadConfig) -> Parts:
    """A head with logits over the vocabulary."""
    return {"masked_lm": masked_lm(config)}


FORMS: dict[str, Callable[[EncoderConfig, HeadConfig], Parts]] = {
    "sentence": sentence,
    "tokens": tokens,
    "vectors": vectors,
    "words": words,
}
"""By the `form` of the task."""


# === Models ===


def parts(encoder: EncoderConfig, head: HeadConfig | None = None) -> Parts:
    """The weights of a model by part, each of which it must have; without a head the encoder alone.

    Raises:
        ConfigError: no such kind of positions, choice of layers or task.
    """
    of_head = {} if head is None else choose(FORMS, head.form, "form of a head")(encoder, head)
    return {"encoder": encoder_weights(encoder), **of_head}


def with_pretraining(encoder: EncoderConfig, head: HeadConfig | None = None) -> Parts:
    """`parts`, and those of pretraining, which a checkpoint may hold too; in the order of `PARTS`."""
    known = pretraining(encoder) | parts(encoder, head)
    return {part: known[part] for part in PARTS if part in known}


def of_objective(path: str) -> bool:
    """Whether a weight belongs to an objective of pretraining that is no part here: `head/NAME/...`, of any shape."""
    head, _, rest = path.partition("/")
    name, _, weight = rest.partition("/")
    return head == "head" and bool(weight) and name not in PARTS


def shapes(encoder: EncoderConfig, head: HeadConfig | None = None) -> Shapes:
    """Path -> shape of every weight of a network."""
    return {path: shape for part in parts(encoder, head).values() for path, shape in part.items()}


def count(weights: Shapes) -> int:
    """How many numbers the weights hold."""
    return sum(map(prod, weights.values()))
