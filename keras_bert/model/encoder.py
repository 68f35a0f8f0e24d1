"""The encoder: token ids in, hidden states out. The whole of BERT's arithmetic is in this file.

Shapes, here and everywhere: B batch, T target length, S source length, N heads, H head size, D hidden size,
F feed-forward size, V vocabulary, L layers, R rows: B * T, or the tokens among them.

Dense layers work on rows `[R, D]`, attention on `[B, N, T, H]`; `Rows` knows both shapes, and blocks do not
care how the one became the other. Everything is `keras.ops`, so it runs on TensorFlow, JAX and PyTorch.
"""

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_bert.config import FEATURES, EncoderConfig, choose, from_dict, to_dict
from keras_bert.errors import ConfigError
from keras_bert.model import kernels
from keras_bert.model.masks import MASKS, attention_mask
from keras_bert.model.positions import POSITIONS, Positions

Tensor = Any
TAPS = ("embedded", "layers", "attentions", "sequence")


class Rows:
    """The two shapes of one batch: `[B, T, ...]` and rows `[R, ...]`, one for each place.

    Args:
        there: bool `[B, T]`, which places hold tokens.
    """

    def __init__(self, there: Tensor) -> None:
        self.batch, self.length = ops.shape(there)[0], ops.shape(there)[1]

    def to_rows(self, x: Tensor) -> Tensor:
        """`[B, T, D]` -> `[R, D]`."""
        return ops.reshape(x, (-1, x.shape[-1]))

    def to_batch(self, x: Tensor) -> Tensor:
        """`[R, D]` -> `[B, T, D]`."""
        return ops.reshape(x, (self.batch, self.length, x.shape[-1]))


class TokenRows(Rows):
    """Rows of tokens only: padding costs nothing but in attention, where it is zeros. R is known when it runs."""

    def __init__(self, there: Tensor) -> None:
        super().__init__(there)
        flat = ops.cast(ops.reshape(there, (-1,)), "int32")
        numbers = ops.cumsum(flat)
        self.places = ops.cast(ops.nonzero(flat)[0], "int32")  # of each row
        self.numbers = ops.where(flat > 0, numbers - 1, ops.max(numbers, initial=0))  # of each place; R of padding

    def to_rows(self, x: Tensor) -> Tensor:
        return kernels.gather(super().to_rows(x), self.places, self.numbers)

    def to_batch(self, x: Tensor) -> Tensor:
        return super().to_batch(kernels.spread(x, self.places, self.numbers))


class Memory:
    """Keys and values of the tokens that a block has read, `[B, N, P, H]`, for tokens that come after them.

    To begin with there are none, P = 0; a call of the block adds those of its own tokens.
    """

    def __init__(self, key: Tensor = None, value: Tensor = None) -> None:
        self.key, self.value = key, value

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add `[B, N, T, H]`; returns keys and values of all, `[B, N, P + T, H]`."""
        if self.key is not None:
            key, value = (ops.concatenate(two, axis=2) for two in ((self.key, key), (self.value, value)))
        self.key, self.value = key, value
        return key, value


def dense(config: EncoderConfig, units: int, name: str, dtype: Any, activation: Any = None) -> keras.layers.Dense:
    """A dense layer with BERT's initial weights: truncated normal kernel, zero bias."""
    initializer = keras.initializers.TruncatedNormal(stddev=config.initializer_range)
    return keras.layers.Dense(units, activation=activation, kernel_initializer=initializer, name=name, dtype=dtype)


class LayerNorm(keras.layers.Layer):
    """Layer normalisation over the last axis (Ba et al. 2016), with statistics in float32."""

    def __init__(self, epsilon: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def build(self, input_shape: Any) -> None:
        self.gamma = self.add_weight(name="gamma", shape=(input_shape[-1],), initializer="ones")
        self.beta = self.add_weight(name="beta", shape=(input_shape[-1],), initializer="zeros")

    def call(self, x: Tensor, training: bool = False) -> Tensor:
        return kernels.layer_norm(x, self.gamma, self.beta, self.epsilon, training)


class Dropout(keras.layers.Dropout):
    """Dropout in training only (Srivastava et al. 2014), of any shape.

    A call draws its seed itself, or takes one that was drawn before with `draw`: then it can be done again.
    """

    def call(self, x: Tensor, training: bool = False, seed: Tensor = None) -> Tensor:
        if not training or not self.rate:
            return x
        return kernels.dropout(x, self.rate, self.seed_generator if seed is None else seed)

    def draw(self) -> Tensor:
        """The seed of one call, None where nothing is dropped."""
        return self.seed_generator.next() if self.rate else None


class Embedding(keras.layers.Layer):
    """An embedding table `[rows, D]`: ids int `[...]` -> vectors `[..., D]`."""

    def __init__(self, config: EncoderConfig, rows: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config, self.rows = config, rows

    def build(self, input_shape: Any = None) -> None:
        initializer = keras.initializers.TruncatedNormal(stddev=self.config.initializer_range)
        shape = (self.rows, self.config.hidden_dim)
        # Not cast as a whole: rows are, and in sixteen bits the many gradients of one row would not add up.
        self.embeddings = self.add_weight(name="embeddings", shape=shape, initializer=initializer, autocast=False)

    def call(self, ids: Tensor) -> Tensor:
        return ops.cast(ops.take(self.embeddings, ids, axis=0), self.compute_dtype)


class Attention(keras.layers.Layer):
    """Multi-head self-attention (Vaswani et al. 2017): rows `[R, D]` -> rows `[R, D]`."""

    def __init__(self, config: EncoderConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config = config
        policy = self.dtype_policy
        self.query = dense(config, config.hidden_dim, "query", policy)
        self.key = dense(config, config.hidden_dim, "key", policy)
        self.value = dense(config, config.hidden_dim, "value", policy)
        self.output_dense = dense(config, config.hidden_dim, "output", policy)
        self.dropout = Dropout(config.attention_dropout, dtype=policy)

    def build(self, x_shape: Any = None) -> None:
        for layer in (self.query, self.key, self.value, self.output_dense):
            layer.build((None, self.config.hidden_dim))

    def heads(self, x: Tensor, rows: Rows) -> Tensor:
        """`[R, D]` -> `[B, N, T, H]`."""
        num_heads = self.config.num_heads
        shape = (rows.batch, rows.length, num_heads, self.config.hidden_dim // num_heads)
        return kernels.swap(ops.reshape(rows.to_batch(x), shape))

    def call(
        self,
        x: Tensor,
        rows: Rows,
        visible: Tensor,
        where: Positions,
        positions: Tensor,
        training: bool = False,
        seed: Tensor = None,
        memory: Memory | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns the new rows `[R, D]` and the probabilities `[B, N, T, S]`; with a memory S is its P and T."""
        query, key, value = (self.heads(f(x), rows) for f in (self.query, self.key, self.value))
        query, key = where.rotate(query, key, positions)
        if memory is not None:
            key, value = memory.extend(key, value)
        scale = 1.0 / math.sqrt(self.config.hidden_dim // self.config.num_heads)
        scores = ops.matmul(query * ops.cast(scale, query.dtype), ops.transpose(key, (0, 1, 3, 2)))
        scores = where.scores(scores, query, positions)
        probabilities = kernels.masked_softmax(scores, visible, training)
        dropped = self.dropout(probabilities, training=training, seed=seed)
        context = where.values(ops.matmul(dropped, value), dropped, positions)  # [B, N, T, H]
        context = ops.reshape(kernels.swap(context), (rows.batch, rows.length, self.config.hidden_dim))
        return self.output_dense(rows.to_rows(context)), probabilities


class FeedForward(keras.layers.Layer):
    """Two dense layers with the activation between: rows `[R, D]` -> `[R, F]` -> `[R, D]`."""

    def __init__(self, config: EncoderConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config = config
        act = kernels.activation(config.activation)
        self.inner = dense(config, config.intermediate_dim, "inner", self.dtype_policy, act)
        self.outer = dense(config, config.hidden_dim, "outer", self.dtype_policy)

    def build(self, x_shape: Any = None) -> None:
        self.inner.build((None, self.config.hidden_dim))
        self.outer.build((None, self.config.intermediate_dim))

    def call(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x))


class Block(keras.layers.Layer):
    """One post-norm layer of the encoder: attention, add, norm, feed-forward, add, norm."""

    def __init__(self, config: EncoderConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config = config
        policy = self.dtype_policy
        self.attention = Attention(config, name="attention", dtype=policy)
        self.attention_norm = LayerNorm(config.layer_norm_epsilon, name="attention_norm", dtype=policy)
        self.feed_forward = FeedForward(config, name="feed_forward", dtype=policy)
        self.feed_forward_norm = LayerNorm(config.layer_norm_epsilon, name="feed_forward_norm", dtype=policy)
        self.dropout = Dropout(config.hidden_dropout, dtype=policy)

    def build(self, x_shape: Any = None) -> None:
        self.attention.build()
        self.attention_norm.build((None, self.config.hidden_dim))
        self.feed_forward.build()
        self.feed_forward_norm.build((None, self.config.hidden_dim))

    def call(
        self,
        x: Tensor,
        rows: Rows,
        visible: Tensor,
        where: Positions,
        positions: Tensor,
        training: bool = False,
        seeds: Sequence[Tensor] = (None, None, None),
        memory: Memory | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Rows `[R, D]` -> rows `[R, D]` and the attention probabilities `[B, N, T, S]`."""
        attended, probabilities = self.attention(
            x,
            rows=rows,
            visible=visible,
            where=where,
            positions=positions,
            training=training,
            seed=seeds[0],
            memory=memory,
        )
        x = self.attention_norm(x + self.dropout(attended, training=training, seed=seeds[1]), training=training)
        changed = self.dropout(self.feed_forward(x), training=training, seed=seeds[2])
        x = self.feed_forward_norm(x + changed, training=training)
        return x, probabilities

    def again(self, x: Tensor, **shared: Any) -> tuple[Tensor, Tensor]:
        """`call`, of which only the inputs are kept: the rest is computed again where gradients need it.

        Chen et al. 2016, https://arxiv.org/abs/1604.06174. The seeds are drawn first, so that both times the same is
        dropped.
        """
        seeds = [dropout.draw() for dropout in (self.attention.dropout, self.dropout, self.dropout)]
        return keras.remat(lambda x: self(x, **shared, seeds=seeds))(x)


class Encoder(keras.Model):
    """BERT (Devlin et al. 2019): `encoder(features)["sequence"]` is `[B, T, D]`.

    `features` is a dict with the keys of `config.FEATURES`, or `token_ids` alone. Absent ones take their
    defaults: segments 0, mask `token_ids != pad_token_id`, positions 0, 1, 2, ...

    Args:
        config: an `EncoderConfig`; `SIZES["base"]` and its neighbours are ready-made.
        dtype: "float32", "mixed_bfloat16" or "mixed_float16".

    Attributes:
        recompute: keep little of each block in training and compute it again for the gradients: less memory.
        tokens_only: leave padding out of dense layers in training, where shapes may change; zeros come out for it.

    Call arguments:
        features: int or bool tensors `[B, T]`.
        taps: what to return, of "embedded" `[B, T, D]`, "layers" (a list of L `[B, T, D]`), "attentions" (a
            list of L `[B, N, T, S]`) and "sequence" (the last layer). Only what is asked for is kept.
        memory: L of `Memory`, what each block reads of earlier calls and adds to. Not in training.
        seen: bool `[B, T, P]`, who looks at which token of the memory; None where that is empty. A row then has the
            tokens that are new, and `positions` says where they are.

    Example:
        encoder = Encoder(SIZES["mini"])
        hidden = encoder(np.array([[101, 7592, 102]]))["sequence"]

    Raises:
        ConfigError: an unknown feature, tap, mask, activation or kind of positions; a sequence longer than
            `max_positions` where its length is known; or a memory with positions that are relative.
    """

    def __init__(self, config: EncoderConfig, dtype: Any = None, name: str = "encoder", **kwargs: Any) -> None:
        super().__init__(dtype=dtype, name=name, **kwargs)
        self.config, self.recompute, self.tokens_only = config, False, False
        policy = self.dtype_policy
        self.rule = choose(MASKS, config.attention_mask, "attention mask")

        # === Layers ===
        self.tokens = Embedding(config, config.vocab_size, name="tokens", dtype=policy)
        self.segments = Embedding(config, config.num_segments, name="segments", dtype=policy)
        self.where = choose(POSITIONS, config.positions, "kind of positions")(config, name="positions", dtype=policy)
        self.norm = LayerNorm(config.layer_norm_epsilon, name="norm", dtype=policy)
        self.dropout = Dropout(config.hidden_dropout, dtype=policy)
        self.blocks = [Block(config, name=f"block_{i}", dtype=policy) for i in range(config.num_layers)]

        # === Weights ===
        self.build()

    def build(self, input_shape: Any = None) -> None:
        for layer in (self.tokens, self.segments, self.where):
            layer.build(None)
        self.norm.build((None, self.config.hidden_dim))
        for block in self.blocks:
            block.build()
        self.built = True

    def get_config(self) -> dict[str, Any]:
        return {"config": to_dict(self.config), "dtype": self.dtype_policy.name, "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "Encoder":
        return cls(from_dict(EncoderConfig, config["config"]), dtype=config["dtype"], name=config["name"])

    def complete(self, features: Any) -> dict[str, Tensor]:
        """`features` with every default filled in."""
        given = features if isinstance(features, dict) else {"token_ids": features}
        unknown = sorted(set(given) - set(FEATURES))
        if unknown or "token_ids" not in given:
            raise ConfigError(f"features are {FEATURES}, token_ids required; got {sorted(given)}")
        full = {name: ops.convert_to_tensor(value) for name, value in given.items()}
        token_ids = full["token_ids"]
        if len(token_ids.shape) != 2:
            raise ConfigError(f"token_ids must be of shape [B, T], got {tuple(token_ids.shape)}")
        length = token_ids.shape[1]
        counted = self.config.positions == "absolute" and "positions" not in full
        if length is not None and counted and length > self.config.max_positions:
            raise ConfigError(f"{length} tokens in a row, but the model has {self.config.max_positions} positions")
        full.setdefault("segment_ids", ops.zeros_like(token_ids))
        full.setdefault("padding_mask", ops.not_equal(token_ids, self.config.pad_token_id))
        full.setdefault("positions", ops.expand_dims(ops.arange(ops.shape(token_ids)[1], dtype="int32"), 0))
        return full

    def embed(self, features: Any, training: bool = False) -> Tensor:
        """The embeddings `[B, T, D]`: sum of token, segment and position rows, normalised."""
        features = self.complete(features)
        x = self.tokens(features["token_ids"]) + self.segments(features["segment_ids"])
        return self.dropout(self.norm(self.where.embed(x, features["positions"])), training=training)

    def contextualise(
        self,
        embedded: Tensor,
        features: Any,
        taps: Sequence[str] = ("sequence",),
        training: bool = False,
        memory: Sequence[Memory] = (),
        seen: Tensor = None,
    ) -> dict[str, Any]:
        """Run the blocks over embeddings `[B, T, D]`; returns the taps asked for."""
        unknown = sorted(set(taps) - set(TAPS))
        if unknown:
            raise ConfigError(f"unknown taps {unknown}; choose of {TAPS}")
        features = self.complete(features)
        if memory and self.where.of_pairs:
            raise ConfigError(f"positions of the kind {self.config.positions} are relative: no memory can be kept")
        shared = {
            "rows": (rows := (TokenRows if self.tokens_only and training else Rows)(features["padding_mask"])),
            "visible": attention_mask(self.rule, features, seen),
            "where": self.where,
            "positions": features["positions"],
        }
        out: dict[str, Any] = {name: [] for name in ("layers", "attentions") if name in taps}
        x = rows.to_rows(embedded)
        for i, block in enumerate(self.blocks):
            kept = {"memory": memory[i]} if memory else {}
            run = block.again if self.recompute and training else block
            x, probabilities = run(x, **shared, **kept, training=training)
            if "layers" in taps:
                out["layers"].append(rows.to_batch(x))
            if "attentions" in taps:
                out["attentions"].append(probabilities)
        if "embedded" in taps:
            out["embedded"] = embedded
        if "sequence" in taps:
            out["sequence"] = rows.to_batch(x)
        return out

    def call(
        self,
        features: Any,
        taps: Sequence[str] = ("sequence",),
        training: bool = False,
        memory: Sequence[Memory] = (),
        seen: Tensor = None,
    ) -> dict[str, Any]:
        return self.contextualise(self.embed(features, training), features, taps, training, memory, seen)
