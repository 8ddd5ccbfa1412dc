"""Where an expert and an amateur differ, and what the expert knows there: pure mathematics.

Enters: the logits that both give for the same prefixes, [..., V]. Leaves: for every position the
divergence of the two, the expert's K likeliest tokens, and two distributions over these.

With pE and pA the two distributions at a position (arXiv 2510.07962):

- KL = Σ_a pE(a) (log pE(a) - log pA(a)), in nats, over the whole vocabulary;
- plausible are the tokens M = {a : pE(a) ≥ α · max pE};
- the soft label is v(a) ∝ pE(a) / pA(a) over M, the softmax of log pE - log pA.

All in float32 from log-softmax, so that no small number is added to a probability.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Comparison(NamedTuple):
    """What is known of every position.

    Attributes:
      divergence: KL of the expert's distribution from the amateur's, float32 [...].
      plausible: how many tokens are plausible, |M|, int32 [...].
      ids: the expert's K likeliest tokens, the likeliest first, int32 [..., K].
      contrast: the soft label over them, float32 [..., K]; 0 where a token is not plausible. Where
        more than K are plausible, the K likeliest share the whole weight.
      expert: the expert's own distribution over them, with sum 1, float32 [..., K].
    """

    divergence: jax.Array
    plausible: jax.Array
    ids: jax.Array
    contrast: jax.Array
    expert: jax.Array


def compare(
    expert_logits: jax.Array, amateur_logits: jax.Array, alpha: float | jax.Array, top_k: int
) -> Comparison:
    """Compares two next-token distributions at every position.

    Args:
      expert_logits: [..., V]; log-probabilities will do.
      amateur_logits: [..., V].
      alpha: least share of the highest probability that is plausible, in (0, 1].
      top_k: K; cut to V.
    """
    expert = jax.nn.log_softmax(expert_logits.astype(jnp.float32), axis=-1)
    amateur = jax.nn.log_softmax(amateur_logits.astype(jnp.float32), axis=-1)
    divergence = jnp.sum(jnp.exp(expert) * (expert - amateur), axis=-1)
    least = jnp.max(expert, axis=-1, keepdims=True) + jnp.log(jnp.asarray(alpha, jnp.float32))
    plausible = jnp.sum(expert >= least, axis=-1, dtype=jnp.int32)
    highest, ids = jax.lax.top_k(expert, min(top_k, expert.shape[-1]))  # [..., K]
    difference = highest - jnp.take_along_axis(amateur, ids, axis=-1)
    # The expert's likeliest token is always plausible, so no row is empty.
    contrast = jax.nn.softmax(jnp.where(highest >= least, difference, -jnp.inf), axis=-1)
    return Comparison(
        # Rounding may leave a little below 0 where the two are equal.
        jnp.maximum(divergence, 0.0),
        plausible,
        ids.astype(jnp.int32),
        contrast,
        jax.nn.softmax(highest, axis=-1),
    )
