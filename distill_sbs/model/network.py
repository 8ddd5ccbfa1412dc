"""The student: T5 1.0, T5 v1.1 and umT5 in Flax linen; of T5Gemma what is not in `t5gemma`.

In: token ids int32 [B, S] and [B, T], 0 where padded, and segment ids where rows are packed.
Out: encoder states [B, S, D], decoder states [B, T, D], logits float32 [B, T, V].

Parameter names and shapes are those of google-research/t5x (`t5x/examples/t5/network.py`), so
that its checkpoints fit; with `scan_layers` the layers of a stack are one subtree `layers` with
a leading layer axis (see `model.parameters`). Parameters are plain float32 arrays; sharding
them is the caller's business, by path.

Decoding takes one token at a time (`Transformer.decode_step`, `Decoder.step`), with the keys and
values of earlier positions handed in and out; `model.decoding` loops over it.
"""

from __future__ import annotations

from typing import TypeAlias

import jax
import jax.numpy as jnp
from flax import linen as nn

from distill_sbs.model import t5gemma
from distill_sbs.model.attention import RelativePositionBias, gather_parameter
from distill_sbs.model.config import T5Config, T5GemmaConfig
from distill_sbs.model.fused_attention import ATTENDED, spread_bias
from distill_sbs.model.layers import (
    HIDDEN_AXES,
    DecoderLayer,
    Dropout,
    EncoderLayer,
    RootMeanSquareNorm,
    fan_in_truncated,
)
from distill_sbs.model.masks import Mask, make_mask
from distill_sbs.model.parameters import Params, PyTree

# Keys and values, each [rows, H, length, head_dim]: a pair a layer in a list, or one pair of stacks
# of all layers where the layers are stacked.
KeysAndValues: TypeAlias = PyTree


def _layer_stack(
    layer_class: type[nn.Module],
    config: T5Config,
    deterministic: bool,
    length: int,
    hidden: jax.Array,
    *shared: PyTree,
) -> jax.Array:
    """Runs `length` layers on `hidden`; `shared` goes to every one. Called inside a module."""
    rates = None if deterministic else config.residual_rates(length)
    if config.remat_policy != "none":
        keep = jax.checkpoint_policies
        minimal = keep.checkpoint_dots_with_no_batch_dims
        if config.attention == "fused":
            attended = keep.save_only_these_names(ATTENDED)
            minimal = keep.save_from_both_policies(minimal, attended)
        policies = {"minimal": minimal, "full": None}
        layer_class = nn.remat(
            layer_class,
            prevent_cse=not config.scan_layers,  # inside a scan XLA cannot undo it anyway
            policy=policies[config.remat_policy],
        )
    if config.scan_layers:
        scanned = nn.scan(
            layer_class,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast if rates is None else (*(nn.broadcast for _ in shared), 0),
            length=length,
        )
        own = () if rates is None else (jnp.array(rates, jnp.float32),)
        hidden, _ = scanned(config, deterministic, name="layers")(hidden, *shared, *own)
        return hidden
    for index in range(length):
        layer = layer_class(config, deterministic, name=f"layers_{index}")
        own = () if rates is None else (jnp.float32(rates[index]),)
        hidden, _ = layer(hidden, *shared, *own)
    return hidden


def _shared_bias(config: T5Config, bidirectional: bool, length: int) -> jax.Array | None:
    """The bias [1, H, length, length] of all layers; None where each has its own. In a module."""
    if config.relative_attention_per_layer:
        return None
    positions = jnp.arange(length, dtype=jnp.int32)
    bias: jax.Array = RelativePositionBias(config, bidirectional, name="relpos_bias")(
        positions, positions
    )
    return spread_bias(bias) if config.attention == "fused" else bias


class Encoder(nn.Module):
    """The encoder's stack, from embedded tokens to normalised states."""

    config: T5Config

    @nn.compact
    def __call__(self, embedded: jax.Array, mask: Mask, deterministic: bool) -> jax.Array:
        """Embedded [B, S, D], mask of [B, 1, S, S] -> [B, S, D]."""
        config = self.config
        bias = _shared_bias(config, True, embedded.shape[1])
        hidden = Dropout(config.dropout_rate)(embedded, deterministic)
        hidden = _layer_stack(
            EncoderLayer, config, deterministic, config.num_encoder_layers, hidden, bias, mask
        )
        hidden = RootMeanSquareNorm(config, name="encoder_norm")(hidden)
        # The one hidden dropout that T5X draws for every position.
        return Dropout(config.dropout_rate, broadcast_length=False)(hidden, deterministic)


class TokenEmbedder(nn.Module):
    """The table of token vectors, shared by encoder and decoder (and by T5 1.0's logits)."""

    config: T5Config

    def setup(self) -> None:
        """The table."""
        shape = (self.config.vocab_size, self.config.emb_dim)
        self.embedding = self.param("embedding", nn.initializers.normal(1.0), shape, jnp.float32)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Tokens int32 [B, length] -> [B, length, D]; NaN for a token outside the vocabulary."""
        # Clamping, the other choice, would train silently on a wrong vocabulary.
        embedded = jnp.take(self.embedding, tokens, axis=0, mode="fill")
        return nn.with_logical_constraint(embedded.astype(self.config.dtype), HIDDEN_AXES)


def vocabulary_logits(hidden: jax.Array, weights: jax.Array, config: T5Config) -> jax.Array:
    """Logits float32 [..., V] of decoder states [..., D].

    Args:
      hidden: decoder states.
      weights: the embedding [V, D] where `config.logits_via_embedding`, else the kernel [D, V].
      config: its dtype is that of the factors; sums are float32 in any case.
    """
    hidden = hidden.astype(config.dtype)
    axes = ("vocab", "embed") if config.logits_via_embedding else ("embed", "vocab")
    weights = gather_parameter(weights.astype(config.dtype), axes)
    if not config.logits_via_embedding:
        return jnp.einsum("...d,dv->...v", hidden, weights, preferred_element_type=jnp.float32)
    logits = jnp.einsum("...d,vd->...v", hidden, weights, preferred_element_type=jnp.float32)
    return logits * jnp.float32(config.logits_scale)


def output_weights(params: Params, config: T5Config) -> jax.Array:
    """The parameter that `vocabulary_logits` takes, out of the whole tree."""
    if config.logits_via_embedding:
        return params["token_embedder"]["embedding"]
    return params["decoder"]["logits_dense"]["kernel"]


class OutputProjection(nn.Module):
    """T5 v1.1's own projection to the vocabulary."""

    config: T5Config

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        """[B, T, D] -> float32 [B, T, V]."""
        shape = (self.config.emb_dim, self.config.vocab_size)
        kernel = self.param("kernel", fan_in_truncated, shape, jnp.float32)
        return vocabulary_logits(hidden, kernel, self.config)


class Decoder(nn.Module):
    """The decoder's stack, and v1.1's projection to the vocabulary."""

    config: T5Config

    def setup(self) -> None:
        """The projection, which is called apart from the stack."""
        if not self.config.logits_via_embedding:
            self.logits_dense = OutputProjection(self.config)

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
        bias = _shared_bias(config, False, embedded.shape[1])
        hidden = Dropout(config.dropout_rate)(embedded, deterministic)
        hidden = _layer_stack(
            DecoderLayer,
            config,
            deterministic,
            config.num_decoder_layers,
            hidden,
            encoded,
            bias,
            self_mask,
            cross_mask,
        )
        hidden = RootMeanSquareNorm(config, name="decoder_norm")(hidden)
        return Dropout(config.dropout_rate)(hidden, deterministic)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Hidden [B, T, D] -> float32 [B, T, V]; v1.1 only."""
        return self.logits_dense(hidden)

    def project_encoded(self, encoded: jax.Array) -> KeysAndValues:
        """Encoder states [B, S, D] -> the keys and values of every step's cross-attention."""
        config, params = self.config, self.variables["params"]
        layer = DecoderLayer(config, parent=None)

        def project(layer_params: Params) -> tuple[jax.Array, jax.Array]:
            variables = {"params": layer_params}
            projected: PyTree = layer.apply(variables, encoded, method="cross_key_value")
            return projected

        if config.scan_layers:
            return jax.lax.map(project, params["layers"])
        return [project(params[f"layers_{index}"]) for index in range(config.num_decoder_layers)]

    def step(
        self,
        embedded: jax.Array,
        past: KeysAndValues,
        cross: KeysAndValues,
        position: jax.Array,
        length: int,
        cross_mask: jax.Array,
    ) -> tuple[jax.Array, KeysAndValues]:
        """One position for each of G hypotheses of B rows, without dropout.

        Args:
          embedded: the tokens there, [B, G, D].
          past: keys and values of earlier positions, from `make_empty_past` on.
          cross: from `project_encoded`, shared by a row's hypotheses.
          position: of the tokens, an int32 scalar.
          length: how many positions `past` has room for.
          cross_mask: bool [B, 1, 1, S], which inputs are real.

        Returns:
          Normalised states [B, G, D], and `past` with this position written.
        """
        config, params = self.config, self.variables["params"]
        bias: PyTree = None
        if not config.relative_attention_per_layer:
            places = jnp.arange(length, dtype=jnp.int32)
            bias = RelativePositionBias(config, False, parent=None).apply(
                {"params": params["relpos_bias"]}, position[None], places
            )
        layer = DecoderLayer(config, parent=None)

        def run(
            hidden: jax.Array, of_layer: tuple[Params, KeysAndValues, KeysAndValues]
        ) -> tuple[jax.Array, KeysAndValues]:
            layer_params, past, cross = of_layer
            arguments = (hidden, past, cross, position, bias, cross_mask)
            stepped: PyTree = layer.apply({"params": layer_params}, *arguments, method="step")
            return stepped

        if config.scan_layers:
            hidden, written = jax.lax.scan(run, embedded, (params["layers"], past, cross))
        else:
            hidden, written = embedded, []
            for index in range(config.num_decoder_layers):
                of_layer = (params[f"layers_{index}"], past[index], cross[index])
                hidden, of_position = run(hidden, of_layer)
                written.append(of_position)
        norm = RootMeanSquareNorm(config, parent=None)
        normalised: PyTree = norm.apply({"params": params["decoder_norm"]}, hidden)
        return normalised, written


def make_empty_past(config: T5Config, rows: int, length: int) -> KeysAndValues:
    """Room for the keys and values of `length` positions of `rows` hypotheses, zeros."""
    shape = (rows, config.cached_heads, length, config.head_dim)
    if config.scan_layers:
        empty = jnp.zeros((config.num_decoder_layers, *shape), config.dtype)
        return empty, empty
    empty = jnp.zeros(shape, config.dtype)
    return [(empty, empty) for _ in range(config.num_decoder_layers)]


def _make_parts(
    config: T5Config,
) -> tuple[
    TokenEmbedder | t5gemma.TokenEmbedder, Encoder | t5gemma.Encoder, Decoder | t5gemma.Decoder
]:
    if isinstance(config, T5GemmaConfig):
        return t5gemma.TokenEmbedder(config), t5gemma.Encoder(config), t5gemma.Decoder(config)
    return TokenEmbedder(config), Encoder(config), Decoder(config)


class Transformer(nn.Module):
    """The whole student. `apply({"params": params}, ..., method="encode")` and so on."""

    config: T5Config

    def setup(self) -> None:
        """Submodules, by T5X's names; T5Gemma's have the same methods."""
        self.token_embedder, self.encoder, self.decoder = _make_parts(self.config)

    def encode(
        self,
        encoder_input_tokens: jax.Array,
        encoder_segment_ids: jax.Array | None = None,
        enable_dropout: bool = False,
    ) -> jax.Array:
        """Tokens int32 [B, S] (0: padding) -> encoder states [B, S, D]."""
        tokens, segments = encoder_input_tokens, encoder_segment_ids
        mask = make_mask(self.config, tokens, tokens, segments, segments)
        embedded = self.token_embedder(encoder_input_tokens)
        return self.encoder(embedded, mask, not enable_dropout)

    def decoder_hidden(
        self,
        encoded: jax.Array,
        encoder_input_tokens: jax.Array,
        decoder_input_tokens: jax.Array,
        decoder_target_tokens: jax.Array,
        encoder_segment_ids: jax.Array | None = None,
        decoder_segment_ids: jax.Array | None = None,
        enable_dropout: bool = False,
        decoder_source_segment_ids: jax.Array | None = None,
    ) -> jax.Array:
        """Final decoder states [B, T, D], all that logits need; see `__call__` for arguments.

        encoded is [B, S, D], from `encode`; the encoder's tokens only say where it is padding.
        """
        targets, segments = decoder_target_tokens, decoder_segment_ids
        sources = segments if decoder_source_segment_ids is None else decoder_source_segment_ids
        self_mask = make_mask(self.config, targets, targets, segments, segments, causal=True)
        cross_mask = make_mask(
            self.config, targets, encoder_input_tokens, sources, encoder_segment_ids
        )
        embedded = self.token_embedder(decoder_input_tokens)
        return self.decoder(embedded, encoded, self_mask, cross_mask, not enable_dropout)

    def candidates_hidden(
        self,
        encoded: jax.Array,
        encoder_input_tokens: jax.Array,
        decoder_input_tokens: jax.Array,
        decoder_target_tokens: jax.Array,
        decoder_segment_ids: jax.Array,
    ) -> jax.Array:
        """As `decoder_hidden`, of several targets in a row, which all answer its one input."""
        targets, segments = decoder_target_tokens, decoder_segment_ids
        self_mask = make_mask(self.config, targets, targets, segments, segments, causal=True)
        cross_mask = make_mask(self.config, targets, encoder_input_tokens)
        embedded = self.token_embedder(decoder_input_tokens)
        return self.decoder(embedded, encoded, self_mask, cross_mask, True)

    def project_encoded(self, encoded: jax.Array) -> KeysAndValues:
        """See `Decoder.project_encoded`."""
        return self.decoder.project_encoded(encoded)

    def decode_step(
        self,
        tokens: jax.Array,
        past: KeysAndValues,
        cross: KeysAndValues,
        position: jax.Array,
        length: int,
        cross_mask: jax.Array,
    ) -> tuple[jax.Array, KeysAndValues]:
        """Tokens int32 [B, G] at `position` -> logits float32 [B, G, V] of the next, and the past.

        The other arguments are those of `Decoder.step`.
        """
        embedded = self.token_embedder(tokens)
        hidden, past = self.decoder.step(embedded, past, cross, position, length, cross_mask)
        weights = output_weights(self.variables["params"], self.config)
        return vocabulary_logits(hidden, weights, self.config), past

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Decoder states [B, T, D] -> logits float32 [B, T, V]."""
        if self.config.logits_via_embedding:
            logits = vocabulary_logits(hidden, self.token_embedder.embedding, self.config)
        else:
            assert isinstance(self.decoder, Decoder)  # a T5Gemma's logits are by its embedding
            logits = self.decoder.logits(hidden)
        return nn.with_logical_constraint(logits, ("batch", "length", "vocab"))

    def hidden(
        self,
        encoder_input_tokens: jax.Array,
        decoder_input_tokens: jax.Array,
        decoder_target_tokens: jax.Array,
        encoder_segment_ids: jax.Array | None = None,
        decoder_segment_ids: jax.Array | None = None,
        enable_dropout: bool = False,
        decoder_source_segment_ids: jax.Array | None = None,
    ) -> jax.Array:
        """`encode`, then `decoder_hidden`: [B, T, D]. What a loss needs, without the logits."""
        encoded = self.encode(encoder_input_tokens, encoder_segment_ids, enable_dropout)
        return self.decoder_hidden(
            encoded,
            encoder_input_tokens,
            decoder_input_tokens,
            decoder_target_tokens,
            encoder_segment_ids,
            decoder_segment_ids,
            enable_dropout,
            decoder_source_segment_ids,
        )

    def __call__(
        self,
        encoder_input_tokens: jax.Array,
        decoder_input_tokens: jax.Array,
        decoder_target_tokens: jax.Array,
        encoder_segment_ids: jax.Array | None = None,
        decoder_segment_ids: jax.Array | None = None,
        enable_dropout: bool = False,
        decoder_source_segment_ids: jax.Array | None = None,
    ) -> jax.Array:
        """Logits float32 [B, T, V] under teacher forcing.

        Args:
          encoder_input_tokens: int32 [B, S], 0 is padding.
          decoder_input_tokens: int32 [B, T], the targets shifted right inside every segment,
            the start token first (0; `constants.SHARED_DECODER_STARTS` has another).
          decoder_target_tokens: int32 [B, T], 0 is padding; used only as a mask.
          encoder_segment_ids: int32 [B, S] for packed rows: which sequence of the row a token
            belongs to. No token sees another sequence's. Relative positions are differences of
            positions in the row, which inside a segment equal those of the unpacked sequence.
          decoder_segment_ids: int32 [B, T], likewise; both or neither.
          enable_dropout: draw dropout from the rng 'dropout'.
          decoder_source_segment_ids: int32 [B, T], the encoder segment that a target sees, where
            several targets see one; None: the one of its own number.

        Raises:
          ValueError: segment ids for only one of the two sides.
        """
        return self.logits(
            self.hidden(
                encoder_input_tokens,
                decoder_input_tokens,
                decoder_target_tokens,
                encoder_segment_ids,
                decoder_segment_ids,
                enable_dropout,
                decoder_source_segment_ids,
            )
        )


def initial_parameters(config: T5Config, rng: jax.Array) -> Params:
    """A fresh parameter tree, drawn by T5X's initialisers; jit with out_shardings to shard it."""
    tokens = jnp.ones((1, 1), jnp.int32)
    return Transformer(config).init({"params": rng}, tokens, tokens, tokens)["params"]
