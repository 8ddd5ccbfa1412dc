"""Cross-entropy against soft labels of few tokens, with at most a chunk of the logits alive.

Enters: decoder states [B, T, D], and for every target position K tokens with their weights and one
weight of the position. Leaves: sums over the positions of a batch, which add up over microbatches.

The loss of a position with weights v over its tokens is Σ_a v(a) (log v(a) - log p(a)), the
divergence of the student from the soft label; its first term is constant, and the gradient of the
logits is p - v (arXiv 2510.07962). Positions of weight 0 have no part in it, to the bit.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from distill_sbs import constants
from distill_sbs.model import losses
from distill_sbs.model.config import T5Config

# Arrays as large as a chunk's logits that are alive at once here; one in `losses`.
_ARRAYS_ALIVE = 3


class SoftSums(NamedTuple):
    """Sums over the positions of a batch, float32 scalars.

    Attributes:
      cross_entropy: each position's, in nats, times its weight.
      divergence: the same less the soft labels' own entropy.
      kept: how many positions count whole; anchors, of weight below 1, are none.
    """

    cross_entropy: jax.Array
    divergence: jax.Array
    kept: jax.Array


def has_soft_labels(batch: Mapping[str, jax.Array]) -> bool:
    """Whether a batch is one of a run that trains on soft labels."""
    return constants.DECODER_SOFT_IDS in batch


def sum_weights(batch: Mapping[str, jax.Array]) -> jax.Array:
    """The sum of the positions' weights of a batch, a float32 scalar."""
    return jnp.sum(batch[constants.DECODER_STEP_WEIGHTS], dtype=jnp.float32)


def sum_over_positions(
    hidden: jax.Array,
    weights: jax.Array,
    batch: Mapping[str, jax.Array],
    config: T5Config,
    logits_chunk_tokens: int | None = None,
) -> SoftSums:
    """The loss, summed over the positions of a batch.

    Args:
      hidden: decoder states [B, T, D].
      weights: `network.output_weights(params, config)`, float32.
      batch: of its features, decoder_soft_ids int32 [B, T, K], decoder_soft_weights float32
        [B, T, K], whose rows sum to 1 or are 0, and decoder_step_weights float32 [B, T].
      config: the model's.
      logits_chunk_tokens: see `losses.token_losses`.
    """
    soft = batch[constants.DECODER_SOFT_WEIGHTS]
    cross_entropy = soft_cross_entropy(
        hidden, weights, batch[constants.DECODER_SOFT_IDS], soft, config, logits_chunk_tokens
    )
    steps = batch[constants.DECODER_STEP_WEIGHTS]
    # Selected, not multiplied alone: what no position weighs may hold anything.
    total = jnp.sum(jnp.where(steps > 0, steps * cross_entropy, 0.0))
    logs = jnp.log(jnp.where(soft > 0, soft, 1.0))
    entropy = jnp.sum(steps * -jnp.sum(soft * logs, axis=-1))
    kept = jnp.sum(steps >= 1.0, dtype=jnp.float32)
    return SoftSums(total, jax.lax.stop_gradient(total) - entropy, kept)


def soft_cross_entropy(
    hidden: jax.Array,
    weights: jax.Array,
    ids: jax.Array,
    soft: jax.Array,
    config: T5Config,
    logits_chunk_tokens: int | None = None,
) -> jax.Array:
    """-Σ_k soft[k] · log p(ids[k]) of every position: float32 [B, T].

    Args:
      hidden: decoder states [B, T, D].
      weights: of the logits, float32.
      ids: int32 [B, T, K].
      soft: float32 [B, T, K].
      config: the model's.
      logits_chunk_tokens: see `losses.token_losses`.

    Raises:
      ValueError: logits_chunk_tokens below 1.
    """
    batch, length = ids.shape[:2]
    if logits_chunk_tokens is not None:
        losses.choose_chunk_length(batch, length, logits_chunk_tokens)  # refuses what is no number
        logits_chunk_tokens = max(1, logits_chunk_tokens // _ARRAYS_ALIVE)
    chunk_length = losses.choose_chunk_length(batch, length, logits_chunk_tokens)
    if chunk_length == length:
        return _chunk_losses(config, hidden, weights, ids, soft)

    def body(
        weights: jax.Array, chunk: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        return weights, _chunk_losses(config, chunk[0], weights, chunk[1], chunk[2])

    chunks = (
        losses.split_length(hidden, chunk_length),
        losses.split_length(ids, chunk_length),
        losses.split_length(soft, chunk_length),
    )
    _, values = jax.lax.scan(body, weights, chunks)
    joined: jax.Array = jnp.moveaxis(values, 0, 1).reshape(batch, -1)[:, :length]
    return joined


def _spread(ids: jax.Array, soft: jax.Array, vocab_size: int) -> jax.Array:
    """The soft labels over the whole vocabulary, float32 [B, T, V]."""
    # Comparisons, not a scatter: they stay local where the vocabulary is sharded, and are fused.
    places = jnp.arange(vocab_size, dtype=ids.dtype)
    total = jnp.zeros((*ids.shape[:2], vocab_size), jnp.float32)
    for number in range(ids.shape[2]):
        is_here = ids[..., number, None] == places
        total = total + jnp.where(is_here, soft[..., number, None], 0.0)
    return total


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunk_losses(
    config: T5Config, hidden: jax.Array, weights: jax.Array, ids: jax.Array, soft: jax.Array
) -> jax.Array:
    """The losses of a chunk whose logits fit in memory; they are made anew for the derivative."""
    return _forward(config, hidden, weights, ids, soft)[0]


_Residuals: TypeAlias = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]


def _forward(
    config: T5Config, hidden: jax.Array, weights: jax.Array, ids: jax.Array, soft: jax.Array
) -> tuple[jax.Array, _Residuals]:
    logits = losses.chunk_logits(config, hidden, weights)  # [B, T, V]
    log_normaliser = jax.nn.logsumexp(logits, axis=-1)
    wanted = _spread(ids, soft, config.vocab_size)
    loss = jnp.sum(wanted * (log_normaliser[..., None] - logits), axis=-1)
    return loss, (hidden, weights, ids, soft, log_normaliser)


def _backward(
    config: T5Config, residuals: _Residuals, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array, None, None]:
    hidden, weights, ids, soft, log_normaliser = residuals
    logits = losses.chunk_logits(config, hidden, weights)
    probabilities = jnp.exp(logits - log_normaliser[..., None])
    share = jnp.sum(soft, axis=-1, keepdims=True)
    gradient = share * probabilities - _spread(ids, soft, config.vocab_size)
    gradient = gradient * cotangent[..., None]  # of the logits, [B, T, V]
    of_hidden, of_weights = losses.logits_backward(config, hidden, weights, gradient)
    return of_hidden, of_weights, None, None


_chunk_losses.defvjp(_forward, _backward)
