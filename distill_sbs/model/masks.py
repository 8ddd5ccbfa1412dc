"""Who sees whom in attention.

In: tokens int32 [B, length], 0 where padded, and segment ids where rows are packed. Out: a mask,
bool [B, 1, query, key], or where the student's attention is fused a `Visibility`, from which the
kernel makes it block by block.
"""

from __future__ import annotations

from typing import TypeAlias

import flax.struct
import jax
import jax.numpy as jnp

from distill_sbs.model.config import T5Config


class Visibility(flax.struct.PyTreeNode):
    """Those of one segment see each other, and nothing sees 0, which is padding.

    Attributes:
      query_segments: int32 [B, Q].
      key_segments: int32 [B, K].
      causal: whether a query sees no later keys.
    """

    query_segments: jax.Array
    key_segments: jax.Array
    causal: bool = flax.struct.field(pytree_node=False, default=False)


Mask: TypeAlias = jax.Array | Visibility


def make_mask(
    config: T5Config,
    query_tokens: jax.Array,
    key_tokens: jax.Array,
    query_segments: jax.Array | None = None,
    key_segments: jax.Array | None = None,
    *,
    causal: bool = False,
) -> Mask:
    """Real tokens see real tokens of their own segment; with `causal`, up to themselves.

    Args:
      config: whether attention is fused.
      query_tokens: int32 [B, Q]; for a decoder its targets.
      key_tokens: int32 [B, K].
      query_segments: int32 [B, Q], or None where a row is one segment.
      key_segments: int32 [B, K], likewise; both or neither.
      causal: for a decoder's attention on itself.

    Raises:
      ValueError: segments of one side alone.
    """
    if (query_segments is None) != (key_segments is None):
        raise ValueError(
            "segment ids were given for only one of encoder and decoder; packed rows need "
            "encoder_segment_ids and decoder_segment_ids, other rows neither"
        )
    query_real = query_tokens > 0
    key_real = query_real if causal else key_tokens > 0
    if config.attention == "fused":
        return Visibility(
            jnp.where(query_real, 1 if query_segments is None else query_segments, 0),
            jnp.where(key_real, 1 if key_segments is None else key_segments, 0),
            causal,
        )
    earlier = None
    if causal:
        positions = jnp.arange(query_tokens.shape[1])
        earlier = positions[:, None] >= positions[None, :]
    mask = query_real[:, :, None] & key_real[:, None, :]
    if query_segments is not None and key_segments is not None:
        mask &= query_segments[:, :, None] == key_segments[:, None, :]
    mask = mask[:, None]
    return mask if earlier is None else mask & earlier
