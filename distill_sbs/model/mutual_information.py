"""The mutual-information loss of arXiv 2403.03348, beside distilling step-by-step's own.

Enters: decoder states [B, T, D], and which segments of a row are an example's label and rationale
(`constants.PAIRS`, [B, K, 2]: up to K pairs a row). Leaves: the sum of the loss over the pairs, and
their number.

Of a pair's label and of its rationale it takes q[v], the highest probability that the student gives
token v at any of its target positions: numbers in [0, 1] that sum to 1 or more. Padding is not
among the positions (in the published implementation it is). The loss of the pair is

    - Σ_v q_label[v] · log softmax(q_rationale)[v]

where the q of the rationale serve as logits, and no gradient goes through those of the label: the
rationale is to name what the label knows. A row's pairs lie in that row, so nothing crosses devices
or microbatches but the sum.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
from flax import linen as nn

from distill_sbs import constants
from distill_sbs.model import losses
from distill_sbs.model.config import T5Config

# Arrays as large as a chunk's logits that are alive at once here; one in `losses`.
_ARRAYS_ALIVE = 4

_NO_POSITION = -1


def sum_over_pairs(
    hidden: jax.Array,
    weights: jax.Array,
    batch: Mapping[str, jax.Array],
    config: T5Config,
    logits_chunk_tokens: int | None = None,
) -> losses.SumAndCount:
    """The loss, summed over the pairs of a batch, and how many there are.

    Sums and counts of microbatches add up to those of the whole. Of the logits at most a chunk is
    alive at once; what is kept besides are two numbers for each token of the vocabulary and each
    label and rationale.

    Args:
      hidden: decoder states [B, T, D].
      weights: `network.output_weights(params, config)`, float32.
      batch: of its features, decoder_segment_ids int32 [B, T] and pairs int32 [B, K, 2].
      config: the model's.
      logits_chunk_tokens: see `losses.token_losses`.

    Raises:
      ValueError: logits_chunk_tokens below 1.
    """
    pairs = batch[constants.PAIRS]
    rows, most, _ = pairs.shape
    # Labels' segments first, then rationales': [B, 2 K].
    wanted = jnp.moveaxis(pairs, 2, 1).reshape(rows, 2 * most)
    segments = batch[constants.DECODER_SEGMENT_IDS]
    is_in = (segments[..., None] == wanted[:, None]) & (segments > 0)[..., None]  # [B, T, 2 K]
    slots = jnp.where(is_in.any(axis=-1), jnp.argmax(is_in, axis=-1), 2 * most).astype(jnp.int32)
    length = segments.shape[1]
    if logits_chunk_tokens is not None:
        losses.choose_chunk_length(rows, length, logits_chunk_tokens)  # refuses what is no number
        logits_chunk_tokens = max(1, logits_chunk_tokens // _ARRAYS_ALIVE)
    chunk_length = losses.choose_chunk_length(rows, length, logits_chunk_tokens)
    highest = _highest_probabilities(config, 2 * most, chunk_length, hidden, weights, slots)
    of_label = jax.lax.stop_gradient(highest[:most])  # [K, B, V]
    of_rationale = jax.nn.log_softmax(highest[most:], axis=-1)
    loss = -jnp.sum(of_label * of_rationale, axis=-1)  # [K, B]
    total = jnp.sum(jnp.where(pairs[..., 0].T > 0, loss, 0.0))
    return losses.SumAndCount(total, count_pairs(batch))


def count_pairs(batch: Mapping[str, jax.Array]) -> jax.Array:
    """How many pairs a batch has, an int32 scalar."""
    return jnp.sum(batch[constants.PAIRS][..., 0] > 0, dtype=jnp.int32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _highest_probabilities(
    config: T5Config,
    count: int,
    chunk_length: int,
    hidden: jax.Array,
    weights: jax.Array,
    slots: jax.Array,
) -> jax.Array:
    """Each token's highest probability at any position of a slot; 0 for a slot without positions.

    Its derivative is written out below: which position had it is kept, not the logits, and where
    several had it, the first one counts.

    Args:
      config: the model's.
      count: how many slots a row has (M).
      chunk_length: positions of every row whose logits are alive at once.
      hidden: decoder states [B, T, D].
      weights: of the logits.
      slots: int32 [B, T], the slot of each position; M: none.

    Returns:
      float32 [M, B, V].
    """
    return _forward(config, count, chunk_length, hidden, weights, slots)[0]


# What the backward pass keeps: states, weights, slots, and the positions of the highest, [M, B, V].
_Residuals: TypeAlias = tuple[jax.Array, jax.Array, jax.Array, jax.Array]
_Chunk: TypeAlias = tuple[jax.Array, jax.Array, jax.Array]
_Best: TypeAlias = tuple[jax.Array, jax.Array]


def _split(hidden: jax.Array, slots: jax.Array, count: int, chunk_length: int) -> _Chunk:
    """States, slots and first position of each chunk; what the last is filled up with has none."""
    # Shifted, so that the zeros are no slot.
    chunks = losses.split_length(slots - count, chunk_length) + count
    starts = jnp.arange(len(chunks), dtype=jnp.int32) * chunk_length
    return losses.split_length(hidden, chunk_length), chunks, starts


def _probabilities(config: T5Config, hidden: jax.Array, weights: jax.Array) -> jax.Array:
    return jax.nn.softmax(losses.chunk_logits(config, hidden, weights), axis=-1)  # [B, T, V]


def _forward(
    config: T5Config,
    count: int,
    chunk_length: int,
    hidden: jax.Array,
    weights: jax.Array,
    slots: jax.Array,
) -> tuple[jax.Array, _Residuals]:
    def over_chunks(best: _Best, chunk: _Chunk) -> tuple[_Best, None]:
        states, slots_here, start = chunk
        probabilities = _probabilities(config, states, weights)

        # One slot after the other: a reduction over positions, which stays on the row's device.
        def over_slots(_: None, one: tuple[jax.Array, _Best]) -> tuple[None, _Best]:
            slot, (value, position) = one
            inside = jnp.where((slots_here == slot)[..., None], probabilities, -1.0)
            here = jnp.max(inside, axis=1)  # [B, V]
            place = start + jnp.argmax(inside, axis=1).astype(jnp.int32)
            is_higher = here > value
            return None, (
                jnp.where(is_higher, here, value),
                jnp.where(is_higher, place, position),
            )

        _, better = jax.lax.scan(over_slots, None, (jnp.arange(count, dtype=jnp.int32), best))
        return (_over_axes(better[0]), _over_axes(better[1])), None

    shape = (count, hidden.shape[0], config.vocab_size)
    nothing = (
        _over_axes(jnp.zeros(shape, jnp.float32)),
        _over_axes(jnp.full(shape, _NO_POSITION, jnp.int32)),
    )
    chunks = _split(hidden, slots, count, chunk_length)
    (values, positions), _ = jax.lax.scan(over_chunks, nothing, chunks)
    return values, (hidden, weights, slots, positions)


def _over_axes(array: jax.Array) -> jax.Array:
    return nn.with_logical_constraint(array, (None, "batch", "vocab"))


@functools.partial(jax.vmap, in_axes=(1, 0))
def _take(of_row: jax.Array, slots: jax.Array) -> jax.Array:
    """[M, B, V], [B, T] -> [B, T, V]: of every position what belongs to its slot."""
    return of_row[slots]


def _backward(
    config: T5Config,
    count: int,
    chunk_length: int,
    residuals: _Residuals,
    cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array, None]:
    hidden, weights, slots, positions = residuals

    def over_chunks(total: jax.Array, chunk: _Chunk) -> tuple[jax.Array, jax.Array]:
        states, slots_here, start = chunk
        probabilities = _probabilities(config, states, weights)
        any_slot = jnp.minimum(slots_here, count - 1)
        place = start + jnp.arange(chunk_length, dtype=jnp.int32)
        is_highest = _take(positions, any_slot) == place[:, None]
        is_highest &= (slots_here < count)[..., None]
        of_probability = jnp.where(is_highest, _take(cotangent, any_slot), 0.0)
        # Through the softmax.
        mean = jnp.sum(probabilities * of_probability, axis=-1, keepdims=True)
        gradient = probabilities * (of_probability - mean)
        of_states, of_weights = losses.logits_backward(config, states, weights, gradient)
        return total + of_weights, of_states

    chunks = _split(hidden, slots, count, chunk_length)
    of_weights, of_hidden = jax.lax.scan(over_chunks, jnp.zeros_like(weights), chunks)
    of_hidden = jnp.moveaxis(of_hidden, 0, 1).reshape(hidden.shape[0], -1, hidden.shape[2])
    return of_hidden[:, : hidden.shape[1]], of_weights, None


_highest_probabilities.defvjp(_forward, _backward)
