"""T5Gemma 2 in Flax linen, text alone: embedding, encoder and decoder for `network.Transformer`.

In: token ids int32 [B, S] and [B, T]; masks bool [B, 1, query, key] of what is real and, where rows
are packed, of the same segment.
Out: encoder states [B, S, D], decoder states [B, T, D]; from a decoding step also the keys and
values so far.

Layers are Gemma 3's (arXiv 2503.19786); the decoder's one attention goes over targets and inputs
together (T5Gemma 2, arXiv 2512.14856). What is computed is what transformers' T5Gemma2 computes
without images. Names follow network.py where the part is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from distill_sbs.model.attention import MASKED_LOGIT, Dense, dropout_multiplier
from distill_sbs.model.config import T5GemmaConfig
from distill_sbs.model.layers import HIDDEN_AXES, Dropout, FeedForward
from distill_sbs.model.masks import Mask, Visibility
from distill_sbs.model.parameters import Params, PyTree

# Cosines and sines, each float32 [..., length, head_dim / 2]; they broadcast to heads.
Rotation: TypeAlias = tuple[jax.Array, jax.Array]
# A key and a value, each [B, Hk, K, head_dim], Hk heads that several queries share.
KeyAndValue: TypeAlias = tuple[jax.Array, jax.Array]

_kernel_init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")


class Norm(nn.Module):
    """x / rms(x) * (1 + scale), in float32 throughout."""

    config: T5GemmaConfig

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """[..., features] -> the same, in the compute dtype."""
        scale = self.param("scale", nn.initializers.zeros, (inputs.shape[-1],), jnp.float32)
        wide = inputs.astype(jnp.float32)
        mean_square = jnp.mean(jax.lax.square(wide), axis=-1, keepdims=True)
        normalised = wide * jax.lax.rsqrt(mean_square + self.config.layer_norm_epsilon)
        return (normalised * (1.0 + scale)).astype(self.config.dtype)


def make_rotation(config: T5GemmaConfig, positions: jax.Array, sees_all: bool) -> Rotation:
    """Angles of a layer that sees all, or of one with a window; positions int32 [..., length]."""
    base = config.rope_theta if sees_all else config.sliding_rope_theta
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    frequencies = 1.0 / np.power(np.float32(base), exponents)
    if sees_all:
        frequencies /= np.float32(config.rope_scaling_factor)
    angles = positions.astype(jnp.float32)[..., None] * jnp.asarray(frequencies, jnp.float32)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(heads: jax.Array, rotation: Rotation) -> jax.Array:
    """[..., length, head_dim], its first half turned against its second, by position."""
    cosine, sine = rotation
    first, second = jnp.split(heads.astype(jnp.float32), 2, axis=-1)
    turned = (first * cosine - second * sine, second * cosine + first * sine)
    return jnp.concatenate(turned, axis=-1).astype(heads.dtype)


def encoder_window(config: T5GemmaConfig, length: int) -> jax.Array:
    """Bool [length, length]: who sees whom in the encoder's layers with a window."""
    positions = jnp.arange(length)
    distance = positions[:, None] - positions[None, :]  # query - key
    window = config.sliding_window
    return (distance < (window + 1) // 2) & (-distance < window // 2 + 1)


def decoder_window(config: T5GemmaConfig, positions: jax.Array, places: jax.Array) -> jax.Array:
    """Bool [query, key]: which of `places` are within the window up to `positions`."""
    return positions[:, None] - places[None, :] < config.sliding_window


class GroupedAttention(nn.Module):
    """Attention whose keys and values are shared by groups of queries."""

    config: T5GemmaConfig

    def setup(self) -> None:
        """The four projections, and the norms of queries and keys."""
        config = self.config
        joined, shared = (n * config.head_dim for n in (config.num_heads, config.num_kv_heads))
        self.query = Dense(joined, config.dtype, _kernel_init, ("embed", "joined_kv"))
        self.key = Dense(shared, config.dtype, _kernel_init, ("embed", "shared_kv"))
        self.value = Dense(shared, config.dtype, _kernel_init, ("embed", "shared_kv"))
        self.out = Dense(config.emb_dim, config.dtype, _kernel_init, ("joined_kv", "embed"))
        self.query_norm = Norm(config)
        self.key_norm = Norm(config)

    def _split(self, joined: jax.Array) -> jax.Array:
        """[B, length, heads * head_dim] -> [B, length, heads, head_dim]."""
        batch, length, _ = joined.shape
        return joined.reshape(batch, length, -1, self.config.head_dim)

    def project_query(self, inputs: jax.Array, rotation: Rotation) -> jax.Array:
        """[B, Q, D] -> [B, Hk, R, Q, head_dim], R queries to a key."""
        config = self.config
        heads = nn.with_logical_constraint(
            self._split(self.query(inputs)), ("batch", "length", "heads", "kv")
        )
        heads = rotate(self.query_norm(heads).swapaxes(1, 2), rotation)
        heads = heads * jnp.asarray(config.query_scale_dim**-0.5, heads.dtype)
        batch, _, length, width = heads.shape
        return heads.reshape(batch, config.num_kv_heads, -1, length, width)

    def project_key_value(self, source: jax.Array, rotation: Rotation | None) -> KeyAndValue:
        """[B, K, D] -> key and value, each [B, Hk, K, head_dim]; the encoder's are not rotated."""
        key, value = (
            nn.with_logical_constraint(
                self._split(project(source)), ("batch", "length", "shared_heads", "kv")
            )
            for project in (self.key, self.value)
        )
        key = self.key_norm(key).swapaxes(1, 2)
        return (key if rotation is None else rotate(key, rotation)), value.swapaxes(1, 2)

    def weigh(
        self, logits: Sequence[jax.Array], masks: Sequence[jax.Array], deterministic: bool
    ) -> list[jax.Array]:
        """One softmax over the keys of all `logits`, each [B, Hk, R, Q, K_i]; weights likewise.

        Masks are bool, and broadcast to their logits'.
        """
        config = self.config
        hidden = jnp.asarray(MASKED_LOGIT, logits[0].dtype)
        masked = [jnp.where(mask, each, hidden) for mask, each in zip(masks, logits, strict=True)]
        weights = jax.nn.softmax(jnp.concatenate(masked, axis=-1), axis=-1).astype(config.dtype)
        if not deterministic and config.dropout_rate > 0.0:
            # One draw for all queries of a row, as in T5.
            shape = (*weights.shape[:3], 1, weights.shape[4])
            weights = weights * dropout_multiplier(
                self.make_rng("dropout"), config.dropout_rate, shape, weights.dtype
            )
        ends = np.cumsum([each.shape[-1] for each in logits])[:-1].tolist()
        return list(jnp.split(weights, ends, axis=-1))

    def products(self, spec: str, query: jax.Array, key: jax.Array) -> jax.Array:
        """Logits of queries and keys."""
        wide = jnp.float32 if self.config.float32_attention_logits else query.dtype
        return jnp.einsum(spec, query, key, preferred_element_type=wide)

    def join(self, attended: jax.Array) -> jax.Array:
        """[B, Hk, R, Q, head_dim] -> [B, Q, D], by the output projection."""
        batch, shared, group, length, width = attended.shape
        heads = attended.reshape(batch, shared * group, length, width).swapaxes(1, 2)
        return self.out(heads.reshape(batch, length, -1))

    def attend(
        self,
        query: jax.Array,
        sources: Sequence[KeyAndValue],
        masks: Sequence[jax.Array],
        deterministic: bool,
    ) -> jax.Array:
        """Attention over the keys of all sources together; masks [B, 1, Q, K_i] -> [B, Q, D]."""
        logits = [self.products("bhrqd,bhkd->bhrqk", query, key) for key, _ in sources]
        weights = self.weigh(logits, [mask[:, :, None] for mask in masks], deterministic)
        parts = [
            jnp.einsum("bhrqk,bhkd->bhrqd", each, value)
            for each, (_, value) in zip(weights, sources, strict=True)
        ]
        return self.join(sum(parts[1:], parts[0]))


class Layer(nn.Module):
    """A layer of either stack: attention and feed-forward, each between two norms."""

    config: T5GemmaConfig
    deterministic: bool = True

    def setup(self) -> None:
        """Submodules."""
        config = self.config
        self.pre_attention_norm = Norm(config)
        self.grouped_attention = GroupedAttention(config)
        self.post_attention_norm = Norm(config)
        self.pre_mlp_norm = Norm(config)
        self.mlp = FeedForward(config)
        self.post_mlp_norm = Norm(config)
        self.attention_dropout = Dropout(config.dropout_rate)
        self.mlp_dropout = Dropout(config.dropout_rate)

    def __call__(
        self,
        inputs: jax.Array,
        rotation: Rotation,
        mask: jax.Array,
        encoded: jax.Array | None = None,
        cross_mask: jax.Array | None = None,
        residual_rate: jax.Array | None = None,
    ) -> jax.Array:
        """Inputs [B, Q, D], mask [B, 1, Q, Q] -> [B, Q, D].

        In the decoder `encoded` [B, S, D] is attended to as well, with `cross_mask` [B, 1, Q, S].
        `residual_rate`, a scalar, is dropped of what is added to the residual stream; None: the
        dropout rate of everything else.
        """
        inputs = nn.with_logical_constraint(inputs, HIDDEN_AXES)
        attention = self.grouped_attention
        x = self.pre_attention_norm(inputs)
        query = attention.project_query(x, rotation)
        sources, masks = [attention.project_key_value(x, rotation)], [mask]
        if encoded is not None and cross_mask is not None:
            sources.append(attention.project_key_value(encoded, None))
            masks.append(cross_mask)
        x = attention.attend(query, sources, masks, self.deterministic)
        x = self.post_attention_norm(x)
        x = inputs + self.attention_dropout(x, self.deterministic, residual_rate)
        return self._feed_forward(x, residual_rate)

    def cross_key_value(self, encoded: jax.Array) -> KeyAndValue:
        """Encoder states [B, S, D] -> the key and value, [B, Hk, S, head_dim], of every step."""
        return self.grouped_attention.project_key_value(encoded, None)

    def step(
        self,
        inputs: jax.Array,
        past: KeyAndValue,
        cross: KeyAndValue,
        position: jax.Array,
        rotation: Rotation,
        seen: jax.Array,
        cross_mask: jax.Array,
    ) -> tuple[jax.Array, KeyAndValue]:
        """One token for each of G hypotheses of B rows, without dropout.

        Args:
          inputs: [B, G, D].
          past: keys and values of earlier positions, [B * G, Hk, length, head_dim].
          cross: `cross_key_value`, shared by a row's hypotheses.
          position: of this token, an int32 scalar.
          rotation: of this position.
          seen: bool [length], which positions this one sees.
          cross_mask: bool [B, 1, 1, S].

        Returns:
          [B, G, D], and `past` with this position written.
        """
        rows, hypotheses, width = inputs.shape
        attention = self.grouped_attention
        x = self.pre_attention_norm(inputs)
        single = attention.project_key_value(x.reshape(-1, 1, width), rotation)
        past = jax.tree.map(
            lambda cache, new: jax.lax.dynamic_update_slice_in_dim(cache, new, position, axis=2),
            past,
            single,
        )
        # All hypotheses stand at one position.
        query = attention.project_query(x, rotation)  # [B, Hk, R, G, head_dim]
        key, value = (each.reshape(rows, hypotheses, *each.shape[1:]) for each in past)
        logits = [
            attention.products("bhrgd,bghkd->bhrgk", query, key),
            attention.products("bhrgd,bhsd->bhrgs", query, cross[0]),
        ]
        weights = attention.weigh(logits, [seen, cross_mask[:, :, None]], True)
        attended = jnp.einsum("bhrgk,bghkd->bhrgd", weights[0], value)
        attended = attended + jnp.einsum("bhrgs,bhsd->bhrgd", weights[1], cross[1])
        x = inputs + self.post_attention_norm(attention.join(attended))
        return self._feed_forward(x), past

    def _feed_forward(self, inputs: jax.Array, residual_rate: jax.Array | None = None) -> jax.Array:
        inputs = nn.with_logical_constraint(inputs, HIDDEN_AXES)
        y = self.post_mlp_norm(self.mlp(self.pre_mlp_norm(inputs), self.deterministic))
        y = inputs + self.mlp_dropout(y, self.deterministic, residual_rate)
        return nn.with_logical_constraint(y, HIDDEN_AXES)


def _run_layers(
    config: T5GemmaConfig,
    deterministic: bool,
    layers: int,
    hidden: jax.Array,
    positions: jax.Array,
    masks: tuple[jax.Array, jax.Array],
    *cross: jax.Array,
) -> jax.Array:
    """All layers of a stack; `masks` are of a layer that sees all and of one with a window."""
    layer_class: type[nn.Module] = Layer
    if config.remat_policy != "none":
        policies = {
            "minimal": jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
            "full": None,
        }
        layer_class = nn.remat(Layer, policy=policies[config.remat_policy])
    rotations = [make_rotation(config, positions, sees_all) for sees_all in (True, False)]
    rates = None if deterministic else config.residual_rates(layers)
    for index in range(layers):
        kind = 0 if config.sees_all(index) else 1
        rate = None if rates is None else jnp.float32(rates[index])
        given = (rotations[kind], masks[kind], *(cross or (None, None)), rate)
        hidden = layer_class(config, deterministic, name=f"layers_{index}")(hidden, *given)
    return hidden


class TokenEmbedder(nn.Module):
    """The table of token vectors, shared by encoder, decoder and logits."""

    config: T5GemmaConfig

    def setup(self) -> None:
        """The table, and the vector of the end of an image."""
        width = self.config.emb_dim
        init = nn.initializers.normal(width**-0.5)
        self.embedding = self.param("embedding", init, (self.config.vocab_size, width), jnp.float32)
        zeros = nn.initializers.zeros
        self.end_of_image = self.param("end_of_image", zeros, (width,), jnp.float32)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Tokens int32 [B, length] -> [B, length, D]; NaN for a token outside the vocabulary.

        Token 0, which starts a target in our batches, is T5Gemma's `start_id`. Where it is padding
        nobody looks.
        """
        config = self.config
        tokens = jnp.where(tokens == 0, config.start_id, tokens)
        embedded = jnp.take(self.embedding, tokens, axis=0, mode="fill").astype(config.dtype)
        embedded = embedded * jnp.asarray(config.emb_dim**0.5, config.dtype)
        is_end = (tokens == config.end_of_image_id)[..., None]
        embedded = jnp.where(is_end, self.end_of_image.astype(config.dtype), embedded)
        return nn.with_logical_constraint(embedded, HIDDEN_AXES)


class Encoder(nn.Module):
    """The encoder's stack, from embedded tokens to normalised states."""

    config: T5GemmaConfig

    @nn.compact
    def __call__(self, embedded: jax.Array, mask: Mask, deterministic: bool) -> jax.Array:
        """Embedded [B, S, D], mask bool [B, 1, S, S] -> [B, S, D]."""
        config = self.config
        assert not isinstance(mask, Visibility)  # its attention is never fused
        # Positions in the row: what a query and a key make of them depends on their difference.
        positions = jnp.arange(embedded.shape[1], dtype=jnp.int32)
        masks = mask, mask & encoder_window(config, embedded.shape[1])
        hidden = Dropout(config.dropout_rate)(embedded, deterministic)
        layers = config.num_encoder_layers
        hidden = _run_layers(config, deterministic, layers, hidden, positions, masks)
        hidden = Norm(config, name="encoder_norm")(hidden)
        return Dropout(config.dropout_rate, broadcast_length=False)(hidden, deterministic)


class Decoder(nn.Module):
    """The decoder's stack."""

    config: T5GemmaConfig

    @nn.compact
    def __call__(
        self,
        embedded: jax.Array,
        encoded: jax.Array,
        self_mask: Mask,
        cross_mask: Mask,
        deterministic: bool,
    ) -> jax.Array:
        """Embedded [B, T, D], encoded [B, S, D], masks [B, 1, T, T], [B, 1, T, S] -> [B, T, D]."""
        config = self.config
        assert not isinstance(self_mask, Visibility) and not isinstance(cross_mask, Visibility)
        places = jnp.arange(embedded.shape[1])
        masks = self_mask, self_mask & decoder_window(config, places, places)
        # Positions in a sequence: the encoder's keys have none, so that a query's own counts. It
        # sees itself and what is before it of its sequence. [B, 1, T]
        positions = jnp.maximum(jnp.sum(self_mask, axis=-1, dtype=jnp.int32) - 1, 0)
        cross = (encoded, cross_mask)
        hidden = Dropout(config.dropout_rate)(embedded, deterministic)
        layers = config.num_decoder_layers
        hidden = _run_layers(config, deterministic, layers, hidden, positions, masks, *cross)
        hidden = Norm(config, name="decoder_norm")(hidden)
        return Dropout(config.dropout_rate)(hidden, deterministic)

    def project_encoded(self, encoded: jax.Array) -> PyTree:
        """Encoder states [B, S, D] -> the keys and values of every step, a pair a layer."""
        layer, params = Layer(self.config, parent=None), self.variables["params"]
        return [
            layer.apply({"params": _of_layer(params, index)}, encoded, method="cross_key_value")
            for index in range(self.config.num_decoder_layers)
        ]

    def step(
        self,
        embedded: jax.Array,
        past: PyTree,
        cross: PyTree,
        position: jax.Array,
        length: int,
        cross_mask: jax.Array,
    ) -> tuple[jax.Array, PyTree]:
        """One position for each of G hypotheses of B rows; see `network.Decoder.step`."""
        config, params = self.config, self.variables["params"]
        places = jnp.arange(length, dtype=jnp.int32)
        seen = places <= position
        in_window = seen & decoder_window(config, position[None], places)[0]
        rotations = [make_rotation(config, position[None], sees_all) for sees_all in (True, False)]
        layer = Layer(config, parent=None)
        hidden, written = embedded, []
        for index in range(config.num_decoder_layers):
            kind = 0 if config.sees_all(index) else 1
            stepped: PyTree = layer.apply(
                {"params": _of_layer(params, index)},
                hidden,
                past[index],
                cross[index],
                position,
                rotations[kind],
                (seen, in_window)[kind],
                cross_mask,
                method="step",
            )
            hidden, of_position = stepped
            written.append(of_position)
        norm = Norm(config, parent=None)
        normalised: PyTree = norm.apply({"params": params["decoder_norm"]}, hidden)
        return normalised, written


def _of_layer(params: Params, index: int) -> Params:
    layer: Params = params[f"layers_{index}"]
    return layer
