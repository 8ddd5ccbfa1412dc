"""Greedy and beam decoding, which stop when every row has ended.

In: parameters and encoder tokens int32 [B, S]. Out: tokens int32 [B, L], the end token included,
padding after it. Both follow `transformers`' `generate`, whose tokens they reproduce.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from distill_sbs import constants
from distill_sbs.model import decoder_step
from distill_sbs.model.network import Transformer

# Stands for minus infinity where arithmetic goes on; transformers' number.
_NEVER = -1.0e9


def _start(
    model: Transformer,
    params: Mapping[str, Any],
    encoder_input_tokens: jax.Array,
    max_decode_tokens: int,
) -> decoder_step.Cache:
    if max_decode_tokens < 1:
        raise ValueError(f"max_decode_tokens={max_decode_tokens}: expected at least 1")
    encoded = model.apply({"params": params}, encoder_input_tokens, method="encode")
    return decoder_step.start(
        params, model.config, encoded, encoder_input_tokens, max_decode_tokens
    )


def greedy_decode(
    model: Transformer,
    params: Mapping[str, Any],
    encoder_input_tokens: jax.Array,
    max_decode_tokens: int,
    eos_id: int = constants.EOS_ID,
    pad_id: int = constants.PAD_ID,
) -> jax.Array:
    """Takes the likeliest token at every step.

    Args:
      model: the student.
      params: its parameters.
      encoder_input_tokens: int32 [B, S], 0 is padding. A row of nothing but padding yields
        padding and does not hold the others up.
      max_decode_tokens: L, the end token included.
      eos_id: ends a row.
      pad_id: starts every row, as in T5, and fills it behind its end.

    Returns:
      int32 [B, L].

    Raises:
      ValueError: max_decode_tokens below 1.
    """
    cache = _start(model, params, encoder_input_tokens, max_decode_tokens)
    batch = encoder_input_tokens.shape[0]
    ended = ~(encoder_input_tokens > 0).any(axis=1)
    tokens = jnp.full((batch, max_decode_tokens), pad_id, jnp.int32)
    last = jnp.full((batch,), pad_id, jnp.int32)

    def goes_on(state: Any) -> jax.Array:
        position, _, _, ended, _ = state
        return (position < max_decode_tokens) & ~ended.all()

    def decode_one(state: Any) -> Any:
        position, last, tokens, ended, cache = state
        logits, cache = decoder_step.step(params, model.config, last, position, cache)
        following = jnp.where(ended, pad_id, jnp.argmax(logits, axis=-1).astype(jnp.int32))
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, following[:, None], position, axis=1)
        return position + 1, following, tokens, ended | (following == eos_id), cache

    state = (jnp.zeros((), jnp.int32), last, tokens, ended, cache)
    return jax.lax.while_loop(goes_on, decode_one, state)[2]


class _Beams(NamedTuple):
    """The state of a beam search; K beams a row.

    Attributes:
      position: int32 scalar, tokens decoded so far.
      running: int32 [B, K, L], the unfinished sequences, best first.
      running_scores: float32 [B, K], their summed log-probabilities.
      finished: int32 [B, K, L], the best finished sequences, best first.
      finished_scores: float32 [B, K], log-probability / length ** length_penalty.
      is_finished: bool [B, K], whether there is such a sequence.
      improvable: bool [B], whether a running sequence may still beat the worst finished one.
      cache: of B · K rows.
    """

    position: jax.Array
    running: jax.Array
    running_scores: jax.Array
    finished: jax.Array
    finished_scores: jax.Array
    is_finished: jax.Array
    improvable: jax.Array
    cache: decoder_step.Cache


def _take(array: jax.Array, beams: jax.Array) -> jax.Array:
    """[B, N, …] and indices [B, K] → [B, K, …]."""
    return jnp.take_along_axis(array, beams.reshape(*beams.shape, *[1] * (array.ndim - 2)), axis=1)


def beam_decode(
    model: Transformer,
    params: Mapping[str, Any],
    encoder_input_tokens: jax.Array,
    max_decode_tokens: int,
    beam_size: int = 4,
    length_penalty: float = 1.0,
    eos_id: int = constants.EOS_ID,
    pad_id: int = constants.PAD_ID,
) -> jax.Array:
    """Beam search as `transformers.generate(num_beams=K, early_stopping=False)` does it.

    Args:
      model: the student.
      params: its parameters.
      encoder_input_tokens: int32 [B, S], 0 is padding.
      max_decode_tokens: L, the end token included.
      beam_size: K, sequences kept a row.
      length_penalty: exponent of the length that a finished sequence's score is divided by.
      eos_id: ends a sequence.
      pad_id: starts a sequence, and fills it behind its end.

    Returns:
      int32 [B, L], the best sequence of every row.

    Raises:
      ValueError: beam_size or max_decode_tokens below 1.
    """
    if beam_size < 1:
        raise ValueError(f"beam_size={beam_size}: expected at least 1")
    config = model.config
    batch, length = encoder_input_tokens.shape[0], max_decode_tokens
    real = (encoder_input_tokens > 0).any(axis=1)
    candidates = 2 * beam_size  # so that K unfinished ones remain if K end

    def search_one(state: _Beams) -> _Beams:
        position = state.position
        last = jnp.where(
            position == 0,
            pad_id,
            jax.lax.dynamic_index_in_dim(
                state.running, jnp.maximum(position - 1, 0), axis=2, keepdims=False
            ),
        )
        logits, cache = decoder_step.step(params, config, last.reshape(-1), position, state.cache)
        log_probabilities = jax.nn.log_softmax(logits).reshape(batch, beam_size, -1)
        vocab_size = log_probabilities.shape[-1]
        totals = (log_probabilities + state.running_scores[..., None]).reshape(batch, -1)
        scores, flat = jax.lax.top_k(totals, candidates)  # [B, 2K]
        beams, tokens = flat // vocab_size, (flat % vocab_size).astype(jnp.int32)
        sequences = jax.lax.dynamic_update_slice_in_dim(
            _take(state.running, beams), tokens[..., None], position, axis=2
        )
        ends = (tokens == eos_id) | (position + 1 == length)

        # The best K that have not ended go on.
        running_scores, kept = jax.lax.top_k(jnp.where(ends, scores + _NEVER, scores), beam_size)
        rows = (jnp.arange(batch)[:, None] * beam_size + _take(beams, kept)).reshape(-1)
        cache = decoder_step.rearrange(cache, config, lambda array: array[rows])

        # Those that ended among the best K join the finished ones, of which the best K stay.
        joins = ends & (jnp.arange(candidates) < beam_size)
        penalised = scores / (position + 1).astype(jnp.float32) ** length_penalty
        penalised += jnp.where(state.improvable[:, None], 0.0, _NEVER)
        penalised += jnp.where(joins, 0.0, _NEVER)
        merged_scores = jnp.concatenate([state.finished_scores, penalised], axis=1)
        finished_scores, best = jax.lax.top_k(merged_scores, beam_size)
        finished = _take(jnp.concatenate([state.finished, sequences], axis=1), best)
        is_finished = _take(jnp.concatenate([state.is_finished, joins], axis=1), best)

        # Whether it pays to go on: the best running score, as if it ended now, against the worst
        # finished one.
        best_running = running_scores[:, 0] / (position + 1).astype(jnp.float32) ** length_penalty
        worst = jnp.where(is_finished, finished_scores.min(axis=1, keepdims=True), _NEVER)
        improvable = state.improvable & (best_running[:, None] > worst).any(axis=1)
        return _Beams(
            position + 1,
            _take(sequences, kept),
            running_scores,
            finished,
            finished_scores,
            is_finished,
            improvable,
            cache,
        )

    cache = decoder_step.rearrange(
        _start(model, params, encoder_input_tokens, length),
        config,
        lambda array: jnp.repeat(array, beam_size, axis=0),
    )
    empty = jnp.full((batch, beam_size, length), pad_id, jnp.int32)
    never = jnp.full((batch, beam_size), _NEVER, jnp.float32)
    state = _Beams(
        position=jnp.zeros((), jnp.int32),
        running=empty,
        # All beams start alike: only the first counts, or the same tokens would be found K times.
        running_scores=never.at[:, 0].set(0.0),
        finished=empty,
        finished_scores=never,
        is_finished=jnp.zeros((batch, beam_size), bool),
        improvable=real,
        cache=cache,
    )
    state = jax.lax.while_loop(
        lambda state: (state.position < length) & state.improvable.any(), search_one, state
    )
    best = state.finished[:, 0]
    return jnp.where(real[:, None], best, pad_id)
