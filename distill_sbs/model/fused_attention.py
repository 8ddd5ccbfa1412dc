"""Attention in one TPU kernel: arrays of queries by keys stay on the chip.

In: query, key and value as their projections leave them, [B, length, H * head_dim]; T5's bias
[data, H, Q, K]; who sees whom, as segments. Out: [B, Q, H * head_dim], and all gradients.

A program of the kernel has one row and as many heads as fill the 128 lanes of a vector register. It
takes the keys of the row whole, so that softmax needs no second pass, in blocks of queries. Rows go
round fastest: a head's bias is read once for all of them, and its gradient is summed over them
before it leaves the chip. The backward pass computes softmax anew; of the forward pass it keeps
what that took, and nothing else.

T5's bias is why this is not one of the kernels that JAX ships: `pallas.ops.tpu.flash_attention`
reads a bias for every row and writes its gradient for every row, [B, H, Q, K] in float32, and
`splash_attention` has none (docs/precompile.md has the numbers).

The kernel is written for TPUs. Elsewhere it is interpreted: right, and slow.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

from distill_sbs.model.masks import Visibility

# How recomputation may call what the kernel gives, to keep it.
ATTENDED = "attended"

LANES = 128
SUBLANES = 8
# Queries at a time: logits of as many, for a row of 1,024 keys, are 1 MiB in float32.
QUERY_BLOCK = 256
# As `attention.MASKED_LOGIT`.
_MASKED_LOGIT = -1e10
# Memory on the chip that the kernel may use, of 128 MiB. Two heads' biases and their gradients,
# each there twice, take 72 MiB of it for rows of the longest kind.
_VMEM_BYTES = 100 * 2**20
LONGEST_ROW = 1536


# ---------------------------------- the mesh ---------------------------------

_JOINED = ("batch", None, "heads")
_BIAS = ("batch", "heads", None, None)
_SEGMENTS = ("batch", None)


def count_row_shards() -> int:
    """Into how many parts the mesh in use splits rows; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return 1
    axes = _partition(("batch",))[0]
    names = (axes,) if isinstance(axes, str) else axes or ()
    return math.prod(mesh.shape[name] for name in names)


def spread_bias(bias: jax.Array) -> jax.Array:
    """[1, H, Q, K] -> float32 [data, H, Q, K], one for each part that rows are split into.

    So every device sums the gradients of its own rows, over all layers, and they are added up over
    devices once.
    """
    spread = jnp.broadcast_to(bias.astype(jnp.float32), (count_row_shards(), *bias.shape[1:]))
    return nn.with_logical_constraint(spread, _BIAS)


def _partition(axes: tuple[str | None, ...]) -> PartitionSpec:
    spec = nn.logical_to_mesh_axes(axes)
    return PartitionSpec() if spec is None else spec


def _on_each_device(
    function: Callable[..., tuple[jax.Array, ...]],
    of_arguments: tuple[tuple[str | None, ...], ...],
    of_results: tuple[tuple[str | None, ...], ...],
) -> Callable[..., tuple[jax.Array, ...]]:
    """The function on the part of the mesh's rows and heads that each device has."""
    if jax.sharding.get_abstract_mesh().empty:
        return function
    return jax.shard_map(
        function,
        in_specs=tuple(_partition(axes) for axes in of_arguments),
        out_specs=tuple(_partition(axes) for axes in of_results),
        check_vma=False,
    )


# ---------------------------------- what is called ---------------------------


def fused_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None,
    visibility: Visibility,
    head_dim: int,
) -> jax.Array:
    """softmax(query · key + bias) · value of every head, logits and softmax in float32.

    Where a query sees no key, the result is that of masked logits that are all alike, as in
    `attention.dot_product_attention`, and means nothing.

    Args:
      query: [B, Q, H * head_dim], not scaled.
      key: [B, K, H * head_dim].
      value: [B, K, H * head_dim].
      bias: float32 [data, H, Q, K] of `spread_bias`, or None.
      visibility: who sees whom.
      head_dim: width of a head.

    Returns:
      [B, Q, H * head_dim] in query's dtype.
    """
    queries, keys = query.shape[1], key.shape[1]
    more_queries, more_keys = -queries % LANES, -keys % LANES

    def lengthen(array: jax.Array, axis: int, by: int) -> jax.Array:
        return jnp.pad(array, [(0, by if at == axis else 0) for at in range(array.ndim)])

    if more_queries:
        query = lengthen(query, 1, more_queries)
    if more_keys:
        key, value = lengthen(key, 1, more_keys), lengthen(value, 1, more_keys)
    if bias is not None and (more_queries or more_keys):
        bias = lengthen(lengthen(bias, 2, more_queries), 3, more_keys)
    attended = _attend(
        head_dim,
        visibility.causal,
        query,
        key,
        value,
        bias,
        lengthen(visibility.query_segments, 1, more_queries),
        lengthen(visibility.key_segments, 1, more_keys),
    )
    return checkpoint_name(attended[:, :queries], ATTENDED)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(
    head_dim: int,
    causal: bool,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None,
    query_segments: jax.Array,
    key_segments: jax.Array,
) -> jax.Array:
    call = functools.partial(_choose, _forward_call, head_dim, causal, bias is not None)
    biases = [] if bias is None else [bias]
    spread = _on_each_device(
        call,
        (_SEGMENTS, _SEGMENTS, _JOINED, _JOINED, _JOINED, *(_BIAS for _ in biases)),
        (_JOINED,),
    )
    (attended,) = spread(query_segments, key_segments, query, key, value, *biases)
    return attended


_Kept: TypeAlias = tuple[
    jax.Array, jax.Array, jax.Array, jax.Array | None, jax.Array, jax.Array
]  # the arguments: query, key, value, bias, segments of queries and of keys


def _attend_forward(
    head_dim: int,
    causal: bool,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None,
    query_segments: jax.Array,
    key_segments: jax.Array,
) -> tuple[jax.Array, _Kept]:
    kept = query, key, value, bias, query_segments, key_segments
    return _attend(head_dim, causal, *kept), kept


def _attend_backward(
    head_dim: int, causal: bool, kept: _Kept, gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None, None, None]:
    query, key, value, bias, query_segments, key_segments = kept
    call = functools.partial(_choose, _backward_call, head_dim, causal, bias is not None)
    biases = [] if bias is None else [bias]
    spread = _on_each_device(
        call,
        (_SEGMENTS, _SEGMENTS, _JOINED, _JOINED, _JOINED, _JOINED, *(_BIAS for _ in biases)),
        (_JOINED, _JOINED, _JOINED, *(_BIAS for _ in biases)),
    )
    gradients = spread(query_segments, key_segments, query, key, value, gradient, *biases)
    of_bias = gradients[3] if biases else None
    return gradients[0], gradients[1], gradients[2], of_bias, None, None


_attend.defvjp(_attend_forward, _attend_backward)


# ---------------------------------- the kernels ------------------------------


def _choose(
    call: Callable[..., tuple[jax.Array, ...]],
    head_dim: int,
    causal: bool,
    has_bias: bool,
    *arrays: jax.Array,
) -> tuple[jax.Array, ...]:
    run = functools.partial(call, head_dim, causal, has_bias)
    chosen: tuple[jax.Array, ...] = jax.lax.platform_dependent(
        *arrays,
        tpu=functools.partial(run, False),
        default=functools.partial(run, True),
    )
    return chosen


class _Blocks:
    """How the arrays of one device are cut, and what a program of the kernel gets of each."""

    def __init__(self, head_dim: int, query: jax.Array, key: jax.Array) -> None:
        self.rows, self.queries, width = query.shape
        self.keys = key.shape[1]
        heads = width // head_dim
        self.heads = heads
        if head_dim < LANES and LANES % head_dim == 0 and width % LANES == 0:
            self.heads = LANES // head_dim
        elif head_dim % LANES == 0:
            self.heads = 1
        self.width = self.heads * head_dim
        self.grid = (heads // self.heads, self.rows)
        self.flops_of_a_product = 2 * self.rows * self.queries * self.keys * width
        self.exponentials = self.rows * self.queries * self.keys * heads
        self.block = math.gcd(self.queries, QUERY_BLOCK)

    def joined(self, length: int) -> pl.BlockSpec:
        """Of [B, length, H * head_dim]: one row, some heads."""
        return pl.BlockSpec((1, length, self.width), lambda head, row: (row, 0, head))

    def segments(self, length: int) -> pl.BlockSpec:
        """Of [B, 8, length]: one row."""
        return pl.BlockSpec((1, SUBLANES, length), lambda head, row: (row, 0, 0))

    def bias(self) -> pl.BlockSpec:
        """Of [1, H, Q, K]: some heads, the same for all rows."""
        shape = (1, self.heads, self.queries, self.keys)
        return pl.BlockSpec(shape, lambda head, row: (0, head, 0, 0))

    def inputs(self, joined: int, has_bias: bool) -> list[pl.BlockSpec]:
        """Segments, then query, key, value and `joined` more like queries, then the bias."""
        return [
            self.segments(self.queries),
            self.segments(self.keys),
            self.joined(self.queries),
            self.joined(self.keys),
            self.joined(self.keys),
            *(self.joined(self.queries) for _ in range(joined)),
            *([self.bias()] if has_bias else []),
        ]


def _over_sublanes(segments: jax.Array) -> jax.Array:
    """[B, length] -> [B, 8, length], as the chip lays out whole registers."""
    rows, length = segments.shape
    return jnp.broadcast_to(segments[:, None, :], (rows, SUBLANES, length))


def _parameters() -> pltpu.CompilerParams:
    return pltpu.CompilerParams(
        dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=_VMEM_BYTES
    )


def _forward_call(
    head_dim: int,
    causal: bool,
    has_bias: bool,
    interpret: bool,
    query_segments: jax.Array,
    key_segments: jax.Array,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *bias: jax.Array,
) -> tuple[jax.Array, ...]:
    blocks = _Blocks(head_dim, query, key)
    arrays = (query, key, value, *bias)
    attended = pl.pallas_call(
        functools.partial(_forward_kernel, head_dim, causal, has_bias, blocks.block),
        grid=blocks.grid,
        in_specs=blocks.inputs(0, has_bias),
        out_specs=blocks.joined(blocks.queries),
        out_shape=jax.ShapeDtypeStruct(query.shape, query.dtype),
        compiler_params=_parameters(),
        cost_estimate=pl.CostEstimate(
            flops=2 * blocks.flops_of_a_product,
            transcendentals=blocks.exponentials,
            bytes_accessed=sum(array.nbytes for array in (*arrays, query)),
        ),
        interpret=interpret,
        name="fused_attention",
    )(_over_sublanes(query_segments), _over_sublanes(key_segments), *arrays)
    return (attended,)


def _backward_call(
    head_dim: int,
    causal: bool,
    has_bias: bool,
    interpret: bool,
    query_segments: jax.Array,
    key_segments: jax.Array,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    gradient: jax.Array,
    *bias: jax.Array,
) -> tuple[jax.Array, ...]:
    blocks = _Blocks(head_dim, query, key)
    arrays = (query, key, value, gradient, *bias)
    results = (query, key, value, *bias)
    gradients: tuple[jax.Array, ...] = pl.pallas_call(
        functools.partial(_backward_kernel, head_dim, causal, has_bias, blocks.block),
        grid=blocks.grid,
        in_specs=blocks.inputs(1, has_bias),
        out_specs=[
            blocks.joined(blocks.queries),
            blocks.joined(blocks.keys),
            blocks.joined(blocks.keys),
            *([blocks.bias()] if has_bias else []),
        ],
        out_shape=[jax.ShapeDtypeStruct(array.shape, array.dtype) for array in results],
        scratch_shapes=[pltpu.VMEM((blocks.keys, blocks.width), jnp.float32)] * 2,
        compiler_params=_parameters(),
        cost_estimate=pl.CostEstimate(
            flops=5 * blocks.flops_of_a_product,
            transcendentals=blocks.exponentials,
            bytes_accessed=sum(array.nbytes for array in (*arrays, *results)),
        ),
        interpret=interpret,
        name="fused_attention_backward",
    )(_over_sublanes(query_segments), _over_sublanes(key_segments), *arrays)
    return tuple(gradients)


def _product(left: jax.Array, right: jax.Array, left_axis: int, right_axis: int) -> jax.Array:
    """The product of two matrices over these axes, in float32."""
    return jax.lax.dot_general(
        left,
        right,
        (((left_axis,), (right_axis,)), ((), ())),
        preferred_element_type=jnp.float32,
    )


def _see(
    causal: bool, query_segments: jax.Ref, key_segments: jax.Ref, start: jax.Array, block: int
) -> jax.Array:
    """Who of a block of queries sees which key, bool [block, K]."""
    of_queries = jnp.transpose(query_segments[0, :, pl.ds(start, block)])[:, :1]
    of_keys = key_segments[0, :1, :]
    visible = (of_queries == of_keys) & (of_keys > 0)
    if causal:
        rows = start + jax.lax.broadcasted_iota(jnp.int32, visible.shape, 0)
        visible &= rows >= jax.lax.broadcasted_iota(jnp.int32, visible.shape, 1)
    return visible


def _exponentials(
    query: jax.Array, key: jax.Array, bias: jax.Array | None, visible: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Softmax before it is divided by its sum, float32 [queries, keys], and 1 / sum."""
    logits = _product(query, key, 1, 1)
    if bias is not None:
        logits = logits + bias.astype(jnp.float32)
    logits = jnp.where(visible, logits, _MASKED_LOGIT)
    exponentials = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    return exponentials, 1.0 / jnp.sum(exponentials, axis=-1, keepdims=True)


def _forward_kernel(
    head_dim: int, causal: bool, has_bias: bool, block: int, *references: jax.Ref
) -> None:
    query_segments, key_segments, query, key, value, *rest = references
    bias = rest[0] if has_bias else None
    attended = rest[-1]

    def attend_block(number: jax.Array, _: None) -> None:
        start = pl.multiple_of(number * block, block)
        rows = pl.ds(start, block)
        visible = _see(causal, query_segments, key_segments, start, block)
        results = []
        for head in range(query.shape[2] // head_dim):
            lanes = slice(head * head_dim, (head + 1) * head_dim)
            exponentials, scale = _exponentials(
                query[0, rows, lanes],
                key[0, :, lanes],
                bias[0, head, rows, :] if bias is not None else None,
                visible,
            )
            summed = _product(exponentials.astype(value.dtype), value[0, :, lanes], 1, 0)
            results.append(summed * scale)
        attended[0, rows, :] = jnp.concatenate(results, axis=-1).astype(attended.dtype)

    jax.lax.fori_loop(0, query.shape[1] // block, attend_block, None)


def _backward_kernel(
    head_dim: int, causal: bool, has_bias: bool, block: int, *references: jax.Ref
) -> None:
    query_segments, key_segments, query, key, value, gradient, *rest = references
    bias = rest.pop(0) if has_bias else None
    of_query, of_key, of_value, *rest = rest
    of_bias = rest.pop(0) if has_bias else None
    key_sum, value_sum = rest
    key_sum[...] = jnp.zeros(key_sum.shape, jnp.float32)
    value_sum[...] = jnp.zeros(value_sum.shape, jnp.float32)
    if of_bias is not None:

        @pl.when(pl.program_id(1) == 0)
        def begin() -> None:
            of_bias[...] = jnp.zeros(of_bias.shape, of_bias.dtype)

    def attend_block(number: jax.Array, _: None) -> None:
        start = pl.multiple_of(number * block, block)
        rows = pl.ds(start, block)
        visible = _see(causal, query_segments, key_segments, start, block)
        results = []
        for head in range(query.shape[2] // head_dim):
            lanes = slice(head * head_dim, (head + 1) * head_dim)
            queries, keys = query[0, rows, lanes], key[0, :, lanes]
            exponentials, scale = _exponentials(
                queries, keys, bias[0, head, rows, :] if bias is not None else None, visible
            )
            weights = exponentials * scale
            of_result = gradient[0, rows, lanes]
            value_sum[:, lanes] += _product(weights.astype(value.dtype), of_result, 0, 0)
            of_weights = _product(of_result, value[0, :, lanes], 1, 1)
            mean = jnp.sum(weights * of_weights, axis=-1, keepdims=True)
            of_logits = jnp.where(visible, weights * (of_weights - mean), 0.0)
            if of_bias is not None:
                of_bias[0, head, rows, :] += of_logits
            narrow = of_logits.astype(query.dtype)
            key_sum[:, lanes] += _product(narrow, queries, 0, 0)
            results.append(_product(narrow, keys, 1, 0))
        of_query[0, rows, :] = jnp.concatenate(results, axis=-1).astype(of_query.dtype)

    jax.lax.fori_loop(0, query.shape[1] // block, attend_block, None)
    of_key[0] = key_sum[...].astype(of_key.dtype)
    of_value[0] = value_sum[...].astype(of_value.dtype)
