"""Multi-head attention as T5 has it: unscaled products, relative position bias, packed rows.

In: hidden states [B, length, D], boolean masks [B, 1, query, key], a bias [1, H, query, key].
Out: hidden states [B, length, D].

T5 does not divide query-key products by sqrt(head_dim): the factor is folded into the query's
initialiser. Parameter names and shapes are those of google-research/t5x
(`t5x/examples/t5/layers.py`), kernels two-dimensional: [D, H * head_dim] and [H * head_dim, D].
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from distill_sbs.model.config import T5Config
from distill_sbs.model.fused_attention import fused_attention
from distill_sbs.model.masks import Mask, Visibility

# Added to no logit but put in its place: softmax gives exactly 0 beside any visible key, and a
# row that sees no key at all (padding) becomes uniform instead of NaN.
MASKED_LOGIT = -1e10

Initializer = Callable[..., jax.Array]

_fan_in_normal = nn.initializers.variance_scaling(1.0, "fan_in", "normal")


def matrix_product(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    """[B, length, I] times [I, O] -> [B, length, O].

    As a product of two matrices: the kernel's gradient then contracts one dimension, which XLA's
    CPU compiler does without transposing (a train step of the tiny student takes 3/4 of the
    time); elsewhere it is the same.
    """
    flat = inputs.reshape(-1, inputs.shape[-1])
    return jnp.dot(flat, kernel).reshape(*inputs.shape[:-1], kernel.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gather_parameter(kernel: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """A parameter as products should find it on the devices: whole but for the model axis.

    Under FSDP parameters are split over the data axis too, along a dimension that products
    contract. Left to itself the compiler may then gather the activations of the whole batch, which
    are larger by far, and sum partial products of them. The gradient is not gathered, so that it
    is summed straight into shards.
    """
    return nn.with_logical_constraint(kernel, axes)


gather_parameter.defvjp(
    lambda kernel, axes: (gather_parameter(kernel, axes), None),
    lambda axes, _, gradient: (gradient,),
)


class Dense(nn.Module):
    """x @ kernel, no bias; the kernel is float32, the product runs in `dtype`.

    `axes` are the logical names of the kernel's dimensions (`model.parameters`).
    """

    features: int
    dtype: str
    kernel_init: Initializer
    axes: tuple[str, str]

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """[..., inputs] -> [..., features]."""
        shape = (inputs.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        kernel = gather_parameter(kernel.astype(self.dtype), self.axes)
        return matrix_product(inputs.astype(self.dtype), kernel)


def dropout_multiplier(
    rng: jax.Array, rate: float | jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike
) -> jax.Array:
    """1 / (1 - rate) where kept, 0 where dropped, of `shape`, which may broadcast.

    Multiplying by a small broadcast array leaves only that array, not a full-size mask, for the
    backward pass to keep.
    """
    keep = jax.random.bernoulli(rng, 1.0 - rate, shape)
    return keep.astype(dtype) * jnp.asarray(1.0 / (1.0 - rate), dtype)


@functools.cache
def relative_position_intervals(
    num_buckets: int, max_distance: int, bidirectional: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest `key position - query position` of every bucket, both int32 [buckets].

    Buckets are those of T5 (mesh-tensorflow's `_relative_position_bucket`): half of a direction's
    buckets hold one distance each, the others logarithmically wider ranges, the last all
    distances from `max_distance` on. The logarithm is taken here, once, in numpy: on a device,
    where its last bits vary, a distance could fall into a neighbour's bucket. An empty bucket
    has lowest > highest.
    """
    far = 2**30
    distance = np.arange(2 * max(max_distance, num_buckets), dtype=np.int32)
    buckets = num_buckets // 2 if bidirectional else num_buckets
    exact = buckets // 2
    with np.errstate(divide="ignore"):
        ratio = np.log(distance.astype(np.float32) / exact + np.finfo(np.float32).eps)
    large = exact + (ratio / np.log(max_distance / exact) * (buckets - exact)).astype(np.int32)
    bucket_of = np.where(distance < exact, distance, np.minimum(large, buckets - 1))

    lowest = np.full(num_buckets, far, np.int32)
    highest = np.full(num_buckets, -far, np.int32)
    for bucket in range(buckets):
        members = distance[bucket_of == bucket]
        if not members.size:
            continue
        nearest = members[0]
        farthest = far if bucket == buckets - 1 else members[-1]
        # Keys before the query: relative position is minus the distance.
        lowest[bucket], highest[bucket] = -farthest, -nearest
        if bidirectional and farthest > 0:
            # Keys after the query; distance 0 belongs to the other half.
            lowest[buckets + bucket] = max(nearest, 1)
            highest[buckets + bucket] = farthest
    if not bidirectional:
        highest[0] = far  # later keys are masked anyway; T5 puts them with distance 0
    return lowest, highest


class RelativePositionBias(nn.Module):
    """A learned logit for every head and bucket of relative positions; T5's layers share one."""

    config: T5Config
    bidirectional: bool

    @nn.compact
    def __call__(self, query_positions: jax.Array, key_positions: jax.Array) -> jax.Array:
        """Positions int32 [query] and [key] (of the row) -> bias [1, H, query, key]."""
        config = self.config
        table = self.param(
            "rel_embedding",
            nn.initializers.variance_scaling(1.0, "fan_avg", "uniform"),
            (config.num_heads, config.relative_attention_num_buckets),
            jnp.float32,
        )
        lowest, highest = relative_position_intervals(
            config.relative_attention_num_buckets,
            config.relative_attention_max_distance,
            self.bidirectional,
        )
        relative = key_positions[None, :] - query_positions[:, None]  # [query, key]
        # A product with one-hot buckets: its transpose is a product too, where that of a lookup
        # would be a scatter.
        one_hot = (relative >= lowest[:, None, None]) & (relative <= highest[:, None, None])
        bias = jnp.einsum("hn,nqk->hqk", table.astype(config.dtype), one_hot.astype(config.dtype))
        return bias[None]


def dot_product_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None,
    mask: jax.Array | None,
    weights_multiplier: jax.Array | None = None,
    *,
    float32_logits: bool = True,
) -> jax.Array:
    """softmax(query · key + bias) · value over the keys that `mask` shows.

    Args:
      query: [B, H, Q, head_dim].
      key: [B, H, K, head_dim].
      value: [B, H, K, head_dim].
      bias: broadcasts to [B, H, Q, K], or None.
      mask: bool, True where the query may see the key, broadcasts to [B, H, Q, K], or None.
      weights_multiplier: dropout's factor, broadcasts to [B, H, Q, K], or None.
      float32_logits: accumulate the products and take the softmax in float32.

    Returns:
      [B, H, Q, head_dim] in query's dtype.
    """
    # Products of bfloat16 numbers are exact in float32, so casting the inputs first, as T5X does,
    # would only cost time.
    logits_dtype = jnp.float32 if float32_logits else query.dtype
    logits = jnp.einsum("bhqd,bhkd->bhqk", query, key, preferred_element_type=logits_dtype)
    if bias is not None:
        logits = logits + bias.astype(logits_dtype)
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.asarray(MASKED_LOGIT, logits_dtype))
    weights = jax.nn.softmax(logits, axis=-1).astype(query.dtype)  # [B, H, Q, K]
    if weights_multiplier is not None:
        weights = weights * weights_multiplier
    return jnp.einsum("bhqk,bhkd->bhqd", weights, value)


class MultiHeadAttention(nn.Module):
    """Attention of `inputs` on `source`, with the four projections around it."""

    config: T5Config

    def setup(self) -> None:
        """The four projections."""
        config = self.config
        joined = config.num_heads * config.head_dim

        def query_init(*args: Any) -> jax.Array:  # those of any initialiser, however many
            # T5 folds 1 / sqrt(head_dim) in here and never scales the products.
            return _fan_in_normal(*args) / np.sqrt(config.head_dim).astype(np.float32)

        into_heads, out_of_heads = ("embed", "joined_kv"), ("joined_kv", "embed")
        self.query = Dense(joined, config.dtype, query_init, into_heads)
        self.key = Dense(joined, config.dtype, _fan_in_normal, into_heads)
        self.value = Dense(joined, config.dtype, _fan_in_normal, into_heads)
        self.out = Dense(config.emb_dim, config.dtype, _fan_in_normal, out_of_heads)

    def _split(self, joined: jax.Array) -> jax.Array:
        """[B, length, H * head_dim] -> [B, H, length, head_dim]."""
        batch, length, _ = joined.shape
        heads = joined.reshape(batch, length, self.config.num_heads, self.config.head_dim)
        heads = nn.with_logical_constraint(heads, ("batch", "length", "heads", "kv"))
        # Heads first, which batched products want, and a cache of keys can keep.
        return heads.swapaxes(1, 2)

    def project_query(self, inputs: jax.Array) -> jax.Array:
        """[B, Q, D] -> [B, H, Q, head_dim]."""
        return self._split(self.query(inputs))

    def project_key_value(self, source: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[B, K, D] -> key and value, each [B, H, K, head_dim]."""
        return self._split(self.key(source)), self._split(self.value(source))

    def attend(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        bias: jax.Array | None,
        mask: jax.Array | None,
        deterministic: bool = True,
    ) -> jax.Array:
        """Attention on projected heads, then the output projection: -> [B, Q, D]."""
        config = self.config
        multiplier = None
        if not deterministic and config.dropout_rate > 0.0:
            # One draw for all queries of a row, as in T5X.
            shape = (query.shape[0], config.num_heads, 1, key.shape[2])
            multiplier = dropout_multiplier(
                self.make_rng("dropout"), config.dropout_rate, shape, config.dtype
            )
        attended = dot_product_attention(
            query,
            key,
            value,
            bias,
            mask,
            multiplier,
            float32_logits=config.float32_attention_logits,
        )
        batch, heads, length, width = attended.shape
        joined = attended.swapaxes(1, 2).reshape(batch, length, heads * width)
        return self.out(joined)

    def _attend_fused(
        self,
        inputs: jax.Array,
        source: jax.Array,
        bias: jax.Array | None,
        visibility: Visibility,
        deterministic: bool,
    ) -> jax.Array:
        """`__call__` by the kernel, which takes heads side by side, as projections have them."""
        config = self.config
        axes = ("batch", "length", "heads")
        query, key, value = (
            nn.with_logical_constraint(projected, axes)
            for projected in (self.query(inputs), self.key(source), self.value(source))
        )
        if not deterministic and config.dropout_rate > 0.0:
            # One draw for all queries of a row: what drops a weight may as well drop the value.
            shape = (value.shape[0], config.num_heads, 1, value.shape[1])
            multiplier = dropout_multiplier(
                self.make_rng("dropout"), config.dropout_rate, shape, config.dtype
            )
            multiplier = multiplier[:, :, 0].swapaxes(1, 2)  # [B, K, H]
            value = value * jnp.repeat(multiplier, config.head_dim, axis=-1)
        attended = fused_attention(query, key, value, bias, visibility, config.head_dim)
        return self.out(nn.with_logical_constraint(attended, axes))

    def __call__(
        self,
        inputs: jax.Array,
        source: jax.Array,
        bias: jax.Array | None,
        mask: Mask | None,
        deterministic: bool,
    ) -> jax.Array:
        """Inputs [B, Q, D], source [B, K, D], bias and mask as above -> [B, Q, D].

        With a `Visibility` in the mask's place, the kernel does it; the bias is `spread_bias`'s.
        """
        if isinstance(mask, Visibility):
            return self._attend_fused(inputs, source, bias, mask, deterministic)
        key, value = self.project_key_value(source)
        return self.attend(self.project_query(inputs), key, value, bias, mask, deterministic)
