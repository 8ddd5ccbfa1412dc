"""One cached decoder step: a token in, the logits of the next one out.

In: parameters, encoder states [B, S, D]. Out: a `Cache` of keys and values, of the encoder's
states once and of each decoded token as it comes, and `step`, which the decoding loops call.
The numbers are those of `network.Transformer` under teacher forcing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from distill_sbs.model import network
from distill_sbs.model.attention import MultiHeadAttention, RelativePositionBias
from distill_sbs.model.config import T5Config
from distill_sbs.model.network import FeedForward, RootMeanSquareNorm
from distill_sbs.model.parameter_axes import STACKED

Parameters = Mapping[str, Any]


class LayerCache(NamedTuple):
    """Keys and values of one decoder layer; with scanned layers, each with a leading layer axis.

    Attributes:
      keys, values: of the tokens decoded so far, [B, H, L, head_dim], zeros where none is yet.
      encoder_keys, encoder_values: of the encoder's states, [B, H, S, head_dim].
    """

    keys: jax.Array
    values: jax.Array
    encoder_keys: jax.Array
    encoder_values: jax.Array


class Cache(NamedTuple):
    """All that a step needs besides the parameters.

    Attributes:
      layers: a `LayerCache` each, or one stacked `LayerCache` where layers are scanned.
      encoder_mask: bool [B, 1, 1, S], which inputs are real.
    """

    layers: Any
    encoder_mask: jax.Array


def _layer_parameters(params: Parameters, config: T5Config) -> Any:
    decoder = params["decoder"]
    if config.scan_layers:
        return decoder[STACKED]
    return [decoder[f"layers_{index}"] for index in range(config.num_decoder_layers)]


def start(
    params: Parameters,
    config: T5Config,
    encoded: jax.Array,
    encoder_input_tokens: jax.Array,
    max_decode_tokens: int,
) -> Cache:
    """The cache before the first token; the encoder's keys and values are computed here, once."""
    batch = encoded.shape[0]
    attention = MultiHeadAttention(config)

    def layer(layer_params: Parameters) -> LayerCache:
        keys, values = attention.apply(
            {"params": layer_params["encoder_decoder_attention"]},
            encoded,
            method="project_key_value",
        )
        shape = (batch, config.num_heads, max_decode_tokens, config.head_dim)
        empty = jnp.zeros(shape, keys.dtype)
        return LayerCache(empty, empty, keys, values)

    layers = _layer_parameters(params, config)
    cached = jax.vmap(layer)(layers) if config.scan_layers else [layer(each) for each in layers]
    return Cache(cached, (encoder_input_tokens > 0)[:, None, None, :])


def step(
    params: Parameters, config: T5Config, tokens: jax.Array, position: jax.Array, cache: Cache
) -> tuple[jax.Array, Cache]:
    """Feeds the token at `position` and returns the logits of the one after it.

    Args:
      params: the student's.
      config: its configuration.
      tokens: int32 [B], the tokens at `position`; the padding id at position 0.
      position: int32 scalar, from 0.
      cache: from `start`, or from the step before.

    Returns:
      Logits float32 [B, V], and the cache with the token's keys and values.
    """
    norm, attention = RootMeanSquareNorm(config), MultiHeadAttention(config)
    max_decode_tokens = jax.tree.leaves(cache.layers)[0].shape[-2]
    places = jnp.arange(max_decode_tokens, dtype=jnp.int32)
    bias = RelativePositionBias(config, False).apply(
        {"params": params["decoder"]["relpos_bias"]}, position[None], places
    )  # [1, H, 1, L]
    seen = (places <= position)[None, None, None, :]

    def apply(module: Any, parameters: Parameters, *inputs: Any, **options: Any) -> Any:
        return module.apply({"params": parameters}, *inputs, **options)

    def layer(
        hidden: jax.Array, layer_params: Parameters, cached: LayerCache
    ) -> tuple[jax.Array, LayerCache]:
        own = layer_params["self_attention"]
        x = apply(norm, layer_params["pre_self_attention_layer_norm"], hidden)  # [B, 1, D]
        query = apply(attention, own, x, method="project_query")
        key, value = apply(attention, own, x, method="project_key_value")
        keys = jax.lax.dynamic_update_slice_in_dim(cached.keys, key, position, axis=2)
        values = jax.lax.dynamic_update_slice_in_dim(cached.values, value, position, axis=2)
        hidden += apply(attention, own, query, keys, values, bias, seen, method="attend")
        across = layer_params["encoder_decoder_attention"]
        x = apply(norm, layer_params["pre_cross_attention_layer_norm"], hidden)
        query = apply(attention, across, x, method="project_query")
        hidden += apply(
            attention,
            across,
            query,
            cached.encoder_keys,
            cached.encoder_values,
            None,
            cache.encoder_mask,
            method="attend",
        )
        x = apply(norm, layer_params["pre_mlp_layer_norm"], hidden)
        hidden += apply(FeedForward(config), layer_params["mlp"], x, deterministic=True)
        return hidden, cached._replace(keys=keys, values=values)

    embedding = params["token_embedder"]["embedding"]
    hidden = jnp.take(embedding, tokens[:, None], axis=0).astype(config.dtype)  # [B, 1, D]
    layer_params = _layer_parameters(params, config)
    if config.scan_layers:
        hidden, layers = jax.lax.scan(
            lambda carry, each: layer(carry, *each), hidden, (layer_params, cache.layers)
        )
    else:
        layers = []
        for each_params, each_cache in zip(layer_params, cache.layers, strict=True):
            hidden, updated = layer(hidden, each_params, each_cache)
            layers.append(updated)
    hidden = apply(norm, params["decoder"]["decoder_norm"], hidden)
    logits = network.vocabulary_logits(hidden, network.output_weights(params, config), config)
    return logits[:, 0], cache._replace(layers=layers)


def rearrange(cache: Cache, config: T5Config, change: Callable[[jax.Array], jax.Array]) -> Cache:
    """Applies `change`, a function of arrays [B, …], to every row-wise array of the cache.

    Beam search repeats rows with it, and reorders them.
    """
    of_layers = jax.vmap(change) if config.scan_layers else change
    return Cache(jax.tree.map(of_layers, cache.layers), change(cache.encoder_mask))
