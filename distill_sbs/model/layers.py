"""The layers of T5: dropout, norm, feed-forward, and the two kinds of layer made of them.

In: hidden states [B, length, D]; for the decoder also the encoder's states [B, S, D].
Out: hidden states of the same shape; from a decoding step also the keys and values so far.

Parameter names are those of google-research/t5x (`t5x/examples/t5/{layers,network}.py`).
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from distill_sbs.model.attention import (
    Dense,
    MultiHeadAttention,
    RelativePositionBias,
    dropout_multiplier,
)
from distill_sbs.model.config import T5Config
from distill_sbs.model.masks import Mask

HIDDEN_AXES = ("batch", "length", "embed")

fan_in_truncated = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    # T5 v1.1's GELU is the tanh approximation (HuggingFace: gelu_new).
    "gelu": lambda x: nn.gelu(x, approximate=True),
    "relu": nn.relu,
    "silu": nn.silu,
    "linear": lambda x: x,
}


class Dropout(nn.Module):
    """Dropout that, as in T5X, draws once for all positions of a row (`broadcast_length`)."""

    rate: float
    broadcast_length: bool = True

    @nn.compact
    def __call__(
        self, inputs: jax.Array, deterministic: bool, own_rate: jax.Array | None = None
    ) -> jax.Array:
        """Inputs [B, length, features]; takes the rng 'dropout' unless `deterministic`.

        With `own_rate`, a scalar that takes the place of `rate`, every element is drawn by itself,
        as in LIMA's residual dropout (arXiv 2305.11206).
        """
        if deterministic or (own_rate is None and self.rate == 0.0):
            return inputs
        batch, length, features = inputs.shape
        if own_rate is not None:
            key = self.make_rng("dropout")
            return inputs * dropout_multiplier(key, own_rate, inputs.shape, inputs.dtype)
        shape = (batch, 1 if self.broadcast_length else length, features)
        return inputs * dropout_multiplier(self.make_rng("dropout"), self.rate, shape, inputs.dtype)


class RootMeanSquareNorm(nn.Module):
    """x / rms(x) * scale, the mean square taken in float32; no mean, no bias (T5LayerNorm)."""

    config: T5Config

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """[B, length, D] -> [B, length, D] in the compute dtype."""
        dtype = self.config.dtype
        scale = self.param("scale", nn.initializers.ones, (inputs.shape[-1],), jnp.float32)
        wide = inputs.astype(jnp.float32)
        mean_square = jnp.mean(jax.lax.square(wide), axis=-1, keepdims=True)
        normalised = wide * jax.lax.rsqrt(mean_square + self.config.layer_norm_epsilon)
        return normalised.astype(dtype) * scale.astype(dtype)


class FeedForward(nn.Module):
    """The feed-forward block: `wi` (T5 1.0), or the product of `wi_0` and `wi_1` (gated)."""

    config: T5Config

    @nn.compact
    def __call__(self, inputs: jax.Array, deterministic: bool) -> jax.Array:
        """[B, length, D] -> [B, length, D]."""
        config = self.config
        names = ["wi"] if len(config.mlp_activations) == 1 else ["wi_0", "wi_1"]
        branches = []
        for name, activation in zip(names, config.mlp_activations, strict=True):
            dense = Dense(
                config.mlp_dim, config.dtype, fan_in_truncated, ("embed", "mlp"), name=name
            )
            branches.append(_ACTIVATIONS[activation](dense(inputs)))  # [B, length, mlp_dim]
        hidden = functools.reduce(operator.mul, branches)
        hidden = Dropout(config.dropout_rate)(hidden, deterministic)
        hidden = nn.with_logical_constraint(hidden, ("batch", "length", "mlp"))
        dense = Dense(config.emb_dim, config.dtype, fan_in_truncated, ("mlp", "embed"), name="wo")
        return dense(hidden)


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each pre-normalised, with residuals."""

    config: T5Config
    deterministic: bool = True

    @nn.compact
    def __call__(
        self,
        inputs: jax.Array,
        bias: jax.Array | None,
        mask: Mask,
        residual_rate: jax.Array | None = None,
    ) -> tuple[jax.Array, None]:
        """Inputs [B, S, D], bias [1, H, S, S], mask [B, 1, S, S] -> (outputs, None).

        `bias` is None where the layer has a table of relative positions of its own.
        `residual_rate`, a scalar, is dropped of what is added to the residual stream; None: the
        dropout rate of everything else.
        """
        config, deterministic = self.config, self.deterministic
        inputs = nn.with_logical_constraint(inputs, HIDDEN_AXES)
        if config.relative_attention_per_layer:
            positions = jnp.arange(inputs.shape[1], dtype=jnp.int32)
            bias = RelativePositionBias(config, True, name="relpos_bias")(positions, positions)
        x = RootMeanSquareNorm(config, name="pre_attention_layer_norm")(inputs)
        x = MultiHeadAttention(config, name="attention")(x, x, bias, mask, deterministic)
        x = inputs + Dropout(config.dropout_rate)(x, deterministic, residual_rate)
        x = nn.with_logical_constraint(x, HIDDEN_AXES)
        y = RootMeanSquareNorm(config, name="pre_mlp_layer_norm")(x)
        y = FeedForward(config, name="mlp")(y, deterministic)
        y = x + Dropout(config.dropout_rate)(y, deterministic, residual_rate)
        return nn.with_logical_constraint(y, HIDDEN_AXES), None


class DecoderLayer(nn.Module):
    """Causal self-attention, attention on the encoder, feed-forward; pre-normalised."""

    config: T5Config
    deterministic: bool = True

    def setup(self) -> None:
        """Submodules, by T5X's names."""
        config = self.config
        if config.relative_attention_per_layer:
            self.relpos_bias = RelativePositionBias(config, False)
        self.pre_self_attention_layer_norm = RootMeanSquareNorm(config)
        self.self_attention = MultiHeadAttention(config)
        self.pre_cross_attention_layer_norm = RootMeanSquareNorm(config)
        self.encoder_decoder_attention = MultiHeadAttention(config)
        self.pre_mlp_layer_norm = RootMeanSquareNorm(config)
        self.mlp = FeedForward(config)
        self.self_attention_dropout = Dropout(config.dropout_rate)
        self.cross_attention_dropout = Dropout(config.dropout_rate)
        self.mlp_dropout = Dropout(config.dropout_rate)

    def __call__(
        self,
        inputs: jax.Array,
        encoded: jax.Array,
        bias: jax.Array | None,
        self_mask: Mask,
        cross_mask: Mask,
        residual_rate: jax.Array | None = None,
    ) -> tuple[jax.Array, None]:
        """Inputs [B, T, D], encoded [B, S, D], bias [1, H, T, T] -> (outputs [B, T, D], None).

        `bias` and `residual_rate`: as in `EncoderLayer`.
        """
        deterministic = self.deterministic
        inputs = nn.with_logical_constraint(inputs, HIDDEN_AXES)
        if self.config.relative_attention_per_layer:
            positions = jnp.arange(inputs.shape[1], dtype=jnp.int32)
            bias = self.relpos_bias(positions, positions)
        x = self.pre_self_attention_layer_norm(inputs)
        x = self.self_attention(x, x, bias, self_mask, deterministic)
        x = inputs + self.self_attention_dropout(x, deterministic, residual_rate)
        x = nn.with_logical_constraint(x, HIDDEN_AXES)
        y = self.pre_cross_attention_layer_norm(x)
        y = self.encoder_decoder_attention(y, encoded, None, cross_mask, deterministic)
        y = x + self.cross_attention_dropout(y, deterministic, residual_rate)
        return self._feed_forward(y, residual_rate), None

    def cross_key_value(self, encoded: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Encoder states [B, S, D] -> the key and value, [B, H, S, head_dim], of every step."""
        return self.encoder_decoder_attention.project_key_value(encoded)

    def step(
        self,
        inputs: jax.Array,
        past: tuple[jax.Array, jax.Array],
        cross: tuple[jax.Array, jax.Array],
        position: jax.Array,
        bias: jax.Array | None,
        cross_mask: jax.Array,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """One token for each of G hypotheses of B rows, without dropout.

        Args:
          inputs: [B, G, D].
          past: keys and values of earlier positions, [B * G, H, length, head_dim].
          cross: `cross_key_value`, shared by a row's hypotheses, which stand where queries do.
          position: of this token, an int32 scalar.
          bias: [1, H, 1, length]; None where the layer has a table of its own.
          cross_mask: bool [B, 1, 1, S].

        Returns:
          [B, G, D], and `past` with this position written.
        """
        rows, hypotheses, width = inputs.shape
        single = self.pre_self_attention_layer_norm(inputs).reshape(-1, 1, width)
        past = jax.tree.map(
            lambda cache, new: jax.lax.dynamic_update_slice_in_dim(cache, new, position, axis=2),
            past,
            self.self_attention.project_key_value(single),
        )
        places = jnp.arange(past[0].shape[2], dtype=jnp.int32)
        seen = places <= position
        if self.config.relative_attention_per_layer:
            bias = self.relpos_bias(position[None], places)
        query = self.self_attention.project_query(single)
        x = self.self_attention.attend(query, *past, bias, seen)
        x = inputs + x.reshape(rows, hypotheses, width)
        query = self.encoder_decoder_attention.project_query(self.pre_cross_attention_layer_norm(x))
        y = x + self.encoder_decoder_attention.attend(query, *cross, None, cross_mask)
        return self._feed_forward(y), past

    def _feed_forward(self, inputs: jax.Array, residual_rate: jax.Array | None = None) -> jax.Array:
        inputs = nn.with_logical_constraint(inputs, HIDDEN_AXES)
        z = self.mlp(self.pre_mlp_layer_norm(inputs), self.deterministic)
        z = inputs + self.mlp_dropout(z, self.deterministic, residual_rate)
        return nn.with_logical_constraint(z, HIDDEN_AXES)
