"""The encoder: token ids in, hidden states out. All of BERT's arithmetic is in this file.

Shapes, here and everywhere: B batch, T target length, S source length, N heads, H head size, D hidden size,
F feed-forward size, E width of the embeddings, V vocabulary, L layers, R rows (B * T, or only the tokens among them).

Dense layers work on rows `[R, D]`, attention on `[B, N, T, H]`. `Rows` converts between the two, so blocks need not
know which positions are rows. Everything is `keras.ops`, so it runs on TensorFlow, JAX and PyTorch.
"""

import math
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import keras
from keras import ops

from keras_bert.config import FEATURES, EncoderConfig, choose, from_dict, to_dict
from keras_bert.errors import ConfigError
from keras_bert.model import kernels
from keras_bert.model.masks import MASKS, attention_mask
from keras_bert.model.norms import NORM_PLACES, norm
from keras_bert.model.positions import POSITIONS, Positions

Tensor = Any
Taps = dict[str, Any]
BLOCK_TAPS = ("layers", "attentions", "heads", "inner")
"""Taps with one entry for each layer."""
TAPS = ("embedded", *BLOCK_TAPS, "sequence")


class Rows:
    """Converts between a batch `[B, T, ...]` and its rows `[R, ...]`, here R = B * T.

    Args:
        padding_mask: bool `[B, T]`, True for tokens.
    """

    def __init__(self, padding_mask: Tensor) -> None:
        self.batch, self.length = ops.shape(padding_mask)[0], ops.shape(padding_mask)[1]

    def to_rows(self, x: Tensor) -> Tensor:
        """`[B, T, D]` -> `[R, D]`."""
        return ops.reshape(x, (-1, x.shape[-1]))

    def to_batch(self, x: Tensor) -> Tensor:
        """`[R, D]` -> `[B, T, D]`."""
        return ops.reshape(x, (self.batch, self.length, x.shape[-1]))


class TokenRows(Rows):
    """Rows of tokens only: dense layers skip padding; attention still sees it, as zeros. R is dynamic."""

    def __init__(self, padding_mask: Tensor) -> None:
        super().__init__(padding_mask)
        is_token = ops.cast(ops.reshape(padding_mask, (-1,)), "int32")
        count = ops.cumsum(is_token)
        self.positions = ops.cast(ops.nonzero(is_token)[0], "int32")  # [R], of each row in the flat batch
        self.rows = ops.where(is_token > 0, count - 1, ops.max(count, initial=0))  # [B * T], R for padding

    def to_rows(self, x: Tensor) -> Tensor:
        return kernels.gather(super().to_rows(x), self.positions, self.rows)

    def to_batch(self, x: Tensor) -> Tensor:
        return super().to_batch(kernels.spread(x, self.positions, self.rows))


class Memory:
    """Keys and values `[B, N, P, H]` of the tokens that a layer has read, for the tokens that follow.

    It starts empty, P = 0; each call of the layer appends its own tokens.

    Attributes:
        places: the positions of the tokens, int `[B, P]`, where the kind of positions asks for them.
    """

    def __init__(self, key: Tensor = None, value: Tensor = None, places: Tensor = None) -> None:
        self.key, self.value, self.places = key, value, places

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What `Memory(*tensors)` holds again."""
        return (self.key, self.value) if self.places is None else (self.key, self.value, self.places)

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append `[B, N, T, H]`; returns all keys and values, `[B, N, P + T, H]`."""
        if self.key is not None:
            key, value = (ops.concatenate(two, axis=2) for two in ((self.key, key), (self.value, value)))
        self.key, self.value = key, value
        return key, value

    def extend_places(self, positions: Tensor, batch: Tensor) -> Tensor:
        """Append positions `[B or 1, T]` of a batch of B; returns all, `[B, P + T]`."""
        places = ops.broadcast_to(positions, (batch, ops.shape(positions)[1]))
        self.places = places if self.places is None else ops.concatenate([self.places, places], axis=1)
        return self.places


class View(keras.StatelessScope):
    """In this scope layers read other tensors in place of their weights; gradients flow through those tensors.

    Args:
        values: pairs of a weight and the tensor to read instead, of the same shape and dtype.
    """

    _active = threading.local()  # of this thread: the scope it is in

    def __init__(self, values: Sequence[tuple[keras.Variable, Tensor]]) -> None:
        super().__init__(state_mapping=list(values))
        self.values = list(values)

    def __enter__(self) -> "View":
        self.outer, View._active.view = View.active(), self
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        View._active.view = self.outer
        super().__exit__(*error)

    @classmethod
    def active(cls) -> "View | None":
        """The scope that this thread is in."""
        return getattr(cls._active, "view", None)


def dense(
    config: EncoderConfig, units: int, name: str, dtype: Any, activation: Any = None, use_bias: bool = True
) -> keras.layers.Dense:
    """A dense layer with BERT's initial weights: truncated normal kernel, zero bias."""
    return keras.layers.Dense(
        units,
        activation=activation,
        use_bias=use_bias,
        kernel_initializer=keras.initializers.TruncatedNormal(stddev=config.initializer_range),
        name=name,
        dtype=dtype,
    )


class Dropout(keras.layers.Dropout):
    """Dropout in training only (Srivastava et al. 2014), for any shape.

    A call draws its own seed, or uses the one it is given: the same seed drops the same elements.
    """

    def call(self, x: Tensor, training: bool = False, seed: Tensor = None) -> Tensor:
        if not training or not self.rate:
            return x
        return kernels.dropout(x, self.rate, self.seed_generator if seed is None else seed)

    def draw(self) -> Tensor:
        """A seed for one call; None if the rate is 0."""
        return self.seed_generator.next() if self.rate else None


class Embedding(keras.layers.Layer):
    """An embedding table `[rows, E]`: ids int `[...]` -> vectors `[..., E]`."""

    def __init__(self, config: EncoderConfig, rows: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config, self.rows = config, rows

    def build(self, input_shape: Any = None) -> None:
        initializer = keras.initializers.TruncatedNormal(stddev=self.config.initializer_range)
        shape = (self.rows, self.config.embedding_width)
        # Only the rows taken are cast. Casting the table would sum the gradients of a row in sixteen bits.
        self.embeddings = self.add_weight(name="embeddings", shape=shape, initializer=initializer, autocast=False)

    def call(self, ids: Tensor) -> Tensor:
        return ops.cast(ops.take(self.embeddings, ids, axis=0), self.compute_dtype)


class Attention(keras.layers.Layer):
    """Multi-head self-attention (Vaswani et al. 2017): rows `[R, D]` -> rows `[R, D]`."""

    def __init__(self, config: EncoderConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config = config
        self.head_dim = config.head_dim or config.hidden_dim // config.num_heads
        self.width = config.num_heads * self.head_dim
        policy, bias = self.dtype_policy, config.use_bias
        self.query = dense(config, self.width, "query", policy, use_bias=bias)
        self.key = dense(config, self.width, "key", policy, use_bias=bias)
        self.value = dense(config, self.width, "value", policy, use_bias=bias)
        self.output_dense = dense(config, config.hidden_dim, "output", policy, use_bias=bias)
        self.dropout = Dropout(config.attention_dropout, dtype=policy)

    def build(self, x_shape: Any = None) -> None:
        for layer in (self.query, self.key, self.value):
            layer.build((None, self.config.hidden_dim))
        self.output_dense.build((None, self.width))

    def heads(self, x: Tensor, rows: Rows) -> Tensor:
        """`[R, N * H]` -> `[B, N, T, H]`."""
        shape = (rows.batch, rows.length, self.config.num_heads, self.head_dim)
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
    ) -> tuple[Tensor, Taps]:
        """Returns rows `[R, D]`, and the taps "attentions" and "heads" of this layer; S is P + T with a memory."""
        query, key, value = (self.heads(f(x), rows) for f in (self.query, self.key, self.value))
        query, key, value = where.rotate(query, key, value, positions)
        places = positions
        if memory is not None:
            key, value = memory.extend(key, value)
            if where.of_pairs:
                places = memory.extend_places(positions, rows.batch)
        scaled = query * ops.cast(1.0 / math.sqrt(self.head_dim), query.dtype)
        scores = ops.matmul(scaled, ops.transpose(key, (0, 1, 3, 2)))
        scores = where.scores(scores, scaled, key, positions, places)
        probabilities = ops.cast(kernels.masked_softmax(scores, visible, training), value.dtype)
        dropped = self.dropout(probabilities, training=training, seed=seed)
        context = where.values(ops.matmul(dropped, value), dropped, positions, places)  # [B, N, T, H]
        joined = ops.reshape(kernels.swap(context), (rows.batch, rows.length, self.width))
        taps = {"attentions": probabilities, "heads": (query, key, value, context)}
        return self.output_dense(rows.to_rows(joined)), taps


class FeedForward(keras.layers.Layer):
    """Two dense layers with an activation between them: rows `[R, D]` -> `[R, F]` -> `[R, D]`."""

    def __init__(self, config: EncoderConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config = config
        self.act = kernels.activation(config.activation)
        self.inner = self.first_dense()
        self.outer = dense(config, config.hidden_dim, "outer", self.dtype_policy, use_bias=config.use_bias)

    def first_dense(self) -> keras.layers.Dense:
        """The layer that reads the input."""
        config = self.config
        return dense(config, config.intermediate_dim, "inner", self.dtype_policy, self.act, config.use_bias)

    @classmethod
    def inner_shapes(cls, config: EncoderConfig) -> dict[str, tuple[int, ...]]:
        """The weights of the first dense layer, `[D, units]`, and its bias if it has one."""
        units = config.intermediate_dim
        return {"kernel": (config.hidden_dim, units)} | ({"bias": (units,)} if config.use_bias else {})

    def build(self, x_shape: Any = None) -> None:
        self.inner.build((None, self.config.hidden_dim))
        self.outer.build((None, self.config.intermediate_dim))

    def activated(self, x: Tensor) -> Tensor:
        """Rows `[R, D]` -> rows `[R, F]`."""
        return self.inner(x)

    def call(self, x: Tensor, rows: Rows, taps: Sequence[str] = ()) -> tuple[Tensor, Taps]:
        """Returns rows `[R, D]`, and the tap "inner" of this layer if asked for."""
        inner = self.activated(x)
        if "inner" not in taps:
            return self.outer(inner), {}
        tap = rows.to_batch(inner)  # on the way of the gradient, so that it reaches the tap
        return self.outer(rows.to_rows(tap)), {"inner": tap}


class GatedFeedForward(FeedForward):
    """Half of the first dense layer's outputs is activated and multiplies the other half (GeGLU, Shazeer 2020).

    The first half is activated. The first dense layer has no bias, as in MosaicBERT and ModernBERT.
    """

    def first_dense(self) -> keras.layers.Dense:
        return dense(self.config, 2 * self.config.intermediate_dim, "inner", self.dtype_policy, use_bias=False)

    @classmethod
    def inner_shapes(cls, config: EncoderConfig) -> dict[str, tuple[int, ...]]:
        return {"kernel": (config.hidden_dim, 2 * config.intermediate_dim)}

    def activated(self, x: Tensor) -> Tensor:
        gate, factor = ops.split(self.inner(x), 2, axis=-1)
        return self.act(gate) * factor


FEED_FORWARDS: dict[str, type[FeedForward]] = {"dense": FeedForward, "gated": GatedFeedForward}


class Block(keras.layers.Layer):
    """One layer of the encoder: attention and feed-forward, each added to what it reads, with norms as configured."""

    def __init__(self, config: EncoderConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config = config
        policy = self.dtype_policy
        self.attention = Attention(config, name="attention", dtype=policy)
        self.place = choose(NORM_PLACES, config.norm_place, "place of norms")
        self.attention_norm = norm(config, "attention_norm", policy) if config.first_norm else None
        kind = choose(FEED_FORWARDS, config.feed_forward, "kind of feed-forward")
        self.feed_forward = kind(config, name="feed_forward", dtype=policy)
        self.feed_forward_norm = norm(config, "feed_forward_norm", policy)
        self.dropout = Dropout(config.hidden_dropout, dtype=policy)

    def build(self, x_shape: Any = None) -> None:
        self.attention.build()
        if self.attention_norm is not None:
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
        taps: Sequence[str] = (),
    ) -> tuple[Tensor, Taps]:
        """Rows `[R, D]` -> rows `[R, D]` and the taps of this layer that are asked for, of `BLOCK_TAPS`."""

        def first(x: Tensor) -> Tensor:
            return x if self.attention_norm is None else self.attention_norm(x, training=training)

        def second(x: Tensor) -> Tensor:
            return self.feed_forward_norm(x, training=training)

        before, after, _ = self.place
        attended, found = self.attention(
            before(first, x),
            rows=rows,
            visible=visible,
            where=where,
            positions=positions,
            training=training,
            seed=seeds[0],
            memory=memory,
        )
        x = after(first, x + self.dropout(attended, training=training, seed=seeds[1]))
        changed, inner = self.feed_forward(before(second, x), rows=rows, taps=taps)
        x = after(second, x + self.dropout(changed, training=training, seed=seeds[2]))
        found |= inner
        if "layers" in taps:
            found["layers"] = rows.to_batch(x)
        return x, {name: found[name] for name in BLOCK_TAPS if name in taps}

    def again(self, x: Tensor, **shared: Any) -> tuple[Tensor, Taps]:
        """`call` that keeps only its inputs; the rest is computed again for the gradients.

        Chen et al. 2016, https://arxiv.org/abs/1604.06174. Seeds are drawn first, so that both passes drop the same
        elements. Gradients reach only variables and arguments of such a function, so a `View` is passed in as
        arguments.
        """
        seeds = [dropout.draw() for dropout in (self.attention.dropout, self.dropout, self.dropout)]
        view, ours = View.active(), {id(v) for v in self.variables}
        pairs = [(v, value) for v, value in view.values if id(v) in ours] if view else []

        def run(x: Tensor, *values: Tensor) -> tuple[Tensor, Taps]:
            weights = [variable for variable, _ in pairs]
            with View(list(zip(weights, values, strict=True))) if pairs else nullcontext():
                return self(x, **shared, seeds=seeds)

        return keras.remat(run)(x, *(value for _, value in pairs))


class Encoder(keras.Model):
    """BERT (Devlin et al. 2019): `encoder(features)["sequence"]` is `[B, T, D]`.

    `features` is a dict with keys of `config.FEATURES`, or `token_ids` alone. Missing ones take their defaults:
    segments 0, mask `token_ids != pad_token_id`, positions 0, 1, 2, ...

    Args:
        config: an `EncoderConfig`; `SIZES["base"]` and its neighbours are ready-made.
        dtype: "float32", "mixed_bfloat16" or "mixed_float16".

    Attributes:
        recompute: in training, keep only the inputs of each block and compute the rest again for the gradients.
        tokens_only: in training, dense layers skip padding, whose outputs are zeros; needs dynamic shapes.

    Call arguments:
        features: int or bool tensors `[B, T]`.
        taps: which outputs to return. "embedded" is `[B, T, D]`, "sequence" the last layer; lists with one entry for
            each layer are "layers" `[B, T, D]`, "attentions" `[B, N, T, S]`, "heads" (query, key, value and context
            of attention, each `[B, N, T, H]`) and "inner" (after the activation of the feed-forward, `[B, T, F]`).
            A tap that is not asked for costs nothing.
        memory: L of `Memory`, one for each layer, which reads it and appends to it. Not in training.
        seen: bool `[B, T, P]`, which tokens in memory each new token attends to; None if the memory is empty. The
            features are then those of the new tokens, with their `positions`.
        shift: float `[B, T, E]`, added to the token embeddings before the norm.

    Example:
        encoder = Encoder(SIZES["mini"])
        hidden = encoder(np.array([[101, 7592, 102]]))["sequence"]

    Raises:
        ConfigError: an unknown feature, tap, mask, activation, norm or kind of positions; or a sequence known to be
            longer than `max_positions`, where positions are bounded.
    """

    def __init__(self, config: EncoderConfig, dtype: Any = None, name: str = "encoder", **kwargs: Any) -> None:
        super().__init__(dtype=dtype, name=name, **kwargs)
        self.config, self.recompute, self.tokens_only = config, False, False
        policy = self.dtype_policy
        local, everywhere = (choose(MASKS, name, "attention mask") for name in (config.attention_mask, "bidirectional"))
        every = config.global_every
        self.rules = [everywhere if every and i % every == 0 else local for i in range(config.num_layers)]

        # === Layers ===
        self.tokens = Embedding(config, config.vocab_size, name="tokens", dtype=policy)
        self.segments = Embedding(config, config.num_segments, name="segments", dtype=policy)
        self.where = choose(POSITIONS, config.positions, "kind of positions")(config, name="positions", dtype=policy)
        self.norm = norm(config, "norm", policy) if config.embedding_norm else None
        self.dropout = Dropout(config.hidden_dropout, dtype=policy)
        self.projection = None
        if config.embedding_width != config.hidden_dim:
            self.projection = dense(config, config.hidden_dim, "projection", policy, use_bias=config.use_bias)
        self.blocks = [Block(config.layer(i), name=f"block_{i}", dtype=policy) for i in range(config.num_blocks)]
        at_the_end = choose(NORM_PLACES, config.norm_place, "place of norms").at_the_end
        self.final_norm = norm(config, "final_norm", policy) if at_the_end else None

        # === Weights ===
        self.build()

    def build(self, input_shape: Any = None) -> None:
        for layer in (self.tokens, self.segments, self.where):
            layer.build(None)
        narrow, wide = self.config.embedding_width, self.config.hidden_dim
        for reader, width in ((self.norm, narrow), (self.projection, narrow), (self.final_norm, wide)):
            if reader is not None:
                reader.build((None, width))
        for block in self.blocks:
            block.build()
        self.built = True

    def get_config(self) -> dict[str, Any]:
        return {"config": to_dict(self.config), "dtype": self.dtype_policy.name, "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "Encoder":
        return cls(from_dict(EncoderConfig, config["config"]), dtype=config["dtype"], name=config["name"])

    def complete(self, features: Any) -> dict[str, Tensor]:
        """`features` with the defaults filled in."""
        given = features if isinstance(features, dict) else {"token_ids": features}
        unknown = sorted(set(given) - set(FEATURES))
        if unknown or "token_ids" not in given:
            raise ConfigError(f"features are {FEATURES}, token_ids required; got {sorted(given)}")
        full = {name: ops.convert_to_tensor(value) for name, value in given.items()}
        token_ids = full["token_ids"]
        if len(token_ids.shape) != 2:
            raise ConfigError(f"token_ids must be of shape [B, T], got {tuple(token_ids.shape)}")
        length = token_ids.shape[1]
        counted = self.where.bounded and "positions" not in full
        if length is not None and counted and length > self.config.max_positions:
            raise ConfigError(f"{length} tokens in a row, but the model has {self.config.max_positions} positions")
        full.setdefault("segment_ids", ops.zeros_like(token_ids))
        full.setdefault("padding_mask", ops.not_equal(token_ids, self.config.pad_token_id))
        full.setdefault("positions", ops.expand_dims(ops.arange(ops.shape(token_ids)[1], dtype="int32"), 0))
        return full

    def embed(self, features: Any, training: bool = False, shift: Tensor = None) -> Tensor:
        """The embeddings `[B, T, D]`: the sum of token, segment and position rows and `shift`, normalised."""
        features = self.complete(features)
        tokens = self.tokens(features["token_ids"])
        if shift is not None:
            tokens += ops.cast(shift, tokens.dtype)
        x = tokens + self.segments(features["segment_ids"])
        x = self.where.embed(x, features["positions"])
        x = self.dropout(x if self.norm is None else self.norm(x), training=training)
        return x if self.projection is None else self.projection(x)

    def contextualise(
        self,
        embedded: Tensor,
        features: Any,
        taps: Sequence[str] = ("sequence",),
        training: bool = False,
        memory: Sequence[Memory] = (),
        seen: Tensor = None,
    ) -> dict[str, Any]:
        """Run the blocks over embeddings `[B, T, D]`; returns the taps that are asked for."""
        unknown = sorted(set(taps) - set(TAPS))
        if unknown:
            raise ConfigError(f"unknown taps {unknown}; choose of {TAPS}")
        features = self.complete(features)
        rows = (TokenRows if self.tokens_only and training else Rows)(features["padding_mask"])
        shared = {
            "rows": rows,
            "positions": features["positions"],
            "training": training,
            "taps": taps,
        }
        out: dict[str, Any] = {name: [] for name in BLOCK_TAPS if name in taps}
        x = rows.to_rows(embedded)
        visible = {rule: attention_mask(rule, features, self.config, seen) for rule in dict.fromkeys(self.rules)}
        for i, rule in enumerate(self.rules):
            block = self.blocks[self.config.block_of(i)]
            run = block.again if self.recompute and training else block
            of_layer = {"where": self.where.at(i), "visible": visible[rule], "memory": memory[i] if memory else None}
            x, found = run(x, **shared, **of_layer)
            for name, tap in found.items():
                out[name].append(tap)
        if "embedded" in taps:
            out["embedded"] = embedded
        if "sequence" in taps:
            out["sequence"] = rows.to_batch(x if self.final_norm is None else self.final_norm(x, training=training))
        return out

    def call(
        self,
        features: Any,
        taps: Sequence[str] = ("sequence",),
        training: bool = False,
        memory: Sequence[Memory] = (),
        seen: Tensor = None,
        shift: Tensor = None,
    ) -> dict[str, Any]:
        return self.contextualise(self.embed(features, training, shift), features, taps, training, memory, seen)
