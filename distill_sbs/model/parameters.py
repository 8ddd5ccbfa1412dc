"""Every parameter of a student: path, shape, and a logical name for each of its dimensions.

In: a `T5Config`; or a tree as `network.Transformer` makes it (arrays, or `jax.ShapeDtypeStruct`s).
Out: the list of its parameters, layers one by one; or the same tree with the names of dimensions
in every leaf's stead.

The names are T5X's: 'vocab', 'embed', 'mlp', 'heads', 'joined_kv' (heads times head_dim),
'relpos_buckets', and 'layers', the leading axis of stacked layers (`scan_layers`). Which mesh axis
each goes to is decided elsewhere.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

from distill_sbs.model.config import T5Config, T5GemmaConfig

# A tree of arrays, shapes, shardings or the like. JAX has no type for trees: what its functions
# make of one, `jax.tree.map` and the rest, is Any.
PyTree: TypeAlias = Any
# A tree of parameters: dictionaries down to arrays, or to `jax.ShapeDtypeStruct`s.
Params: TypeAlias = Mapping[str, PyTree]

# The subtree that holds a side's layers where they are stacked, and the name of their axis.
STACKED = "layers"

_POSITIONS = "relpos_bias/rel_embedding"

_LAYER_PATH = re.compile(r"(encoder|decoder)/layers_(\d{1,9})/(.+)")


class Parameter(NamedTuple):
    """One parameter, layers one by one.

    Attributes:
      path: 'encoder/layers_0/attention/query/kernel'.
      shape: of its array.
      axes: the logical name of every dimension.
    """

    path: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]


def list_parameters(config: T5Config) -> Iterator[Parameter]:
    """Every parameter of a student, layers one by one, whatever `config.scan_layers` says."""
    if isinstance(config, T5GemmaConfig):
        yield from _list_t5gemma(config)
        return
    sizes = {
        "vocab": config.vocab_size,
        "embed": config.emb_dim,
        "mlp": config.mlp_dim,
        "heads": config.num_heads,
        "joined_kv": config.num_heads * config.head_dim,
        "relpos_buckets": config.relative_attention_num_buckets,
    }

    def parameter(path: str, *axes: str) -> Parameter:
        return Parameter(path, tuple(sizes[axis] for axis in axes), axes)

    def list_layer(layer: str, attentions: dict[str, str]) -> Iterator[Parameter]:
        for norm, attention in attentions.items():
            yield parameter(f"{layer}/{norm}/scale", "embed")
            for name in ("query", "key", "value"):
                yield parameter(f"{layer}/{attention}/{name}/kernel", "embed", "joined_kv")
            yield parameter(f"{layer}/{attention}/out/kernel", "joined_kv", "embed")
        if config.relative_attention_per_layer:
            yield parameter(f"{layer}/{_POSITIONS}", "heads", "relpos_buckets")
        yield parameter(f"{layer}/pre_mlp_layer_norm/scale", "embed")
        for name in ["wi"] if len(config.mlp_activations) == 1 else ["wi_0", "wi_1"]:
            yield parameter(f"{layer}/mlp/{name}/kernel", "embed", "mlp")
        yield parameter(f"{layer}/mlp/wo/kernel", "mlp", "embed")

    def list_side(side: str, layers: int, attentions: dict[str, str]) -> Iterator[Parameter]:
        for index in range(layers):
            yield from list_layer(f"{side}/layers_{index}", attentions)
        if not config.relative_attention_per_layer:
            yield parameter(f"{side}/{_POSITIONS}", "heads", "relpos_buckets")
        yield parameter(f"{side}/{side}_norm/scale", "embed")

    yield parameter("token_embedder/embedding", "vocab", "embed")
    of_encoder = {"pre_attention_layer_norm": "attention"}
    yield from list_side("encoder", config.num_encoder_layers, of_encoder)
    of_decoder = {
        "pre_self_attention_layer_norm": "self_attention",
        "pre_cross_attention_layer_norm": "encoder_decoder_attention",
    }
    yield from list_side("decoder", config.num_decoder_layers, of_decoder)
    if not config.logits_via_embedding:
        yield parameter("decoder/logits_dense/kernel", "embed", "vocab")


def _list_t5gemma(config: T5GemmaConfig) -> Iterator[Parameter]:
    sizes = {
        "vocab": config.vocab_size,
        "embed": config.emb_dim,
        "mlp": config.mlp_dim,
        "kv": config.head_dim,
        "joined_kv": config.num_heads * config.head_dim,
        "shared_kv": config.num_kv_heads * config.head_dim,
    }

    def parameter(path: str, *axes: str) -> Parameter:
        return Parameter(path, tuple(sizes[axis] for axis in axes), axes)

    yield parameter("token_embedder/embedding", "vocab", "embed")
    yield parameter("token_embedder/end_of_image", "embed")
    stacks = {"encoder": config.num_encoder_layers, "decoder": config.num_decoder_layers}
    for side, layers in stacks.items():
        for layer in (f"{side}/layers_{index}" for index in range(layers)):
            for norm in ("attention", "mlp"):
                for place in ("pre", "post"):
                    yield parameter(f"{layer}/{place}_{norm}_norm/scale", "embed")
            attention = f"{layer}/grouped_attention"
            yield parameter(f"{attention}/query/kernel", "embed", "joined_kv")
            for name in ("key", "value"):
                yield parameter(f"{attention}/{name}/kernel", "embed", "shared_kv")
            yield parameter(f"{attention}/out/kernel", "joined_kv", "embed")
            for name in ("query_norm", "key_norm"):
                yield parameter(f"{attention}/{name}/scale", "kv")
            for name in ("wi_0", "wi_1"):
                yield parameter(f"{layer}/mlp/{name}/kernel", "embed", "mlp")
            yield parameter(f"{layer}/mlp/wo/kernel", "mlp", "embed")
        yield parameter(f"{side}/{side}_norm/scale", "embed")


def list_by_stack(config: T5Config) -> Iterator[Parameter]:
    """`list_parameters`, so ordered that what is one array of stacked layers stays together.

    A chunk of a stacked array may hold all its layers; a reader that keeps the last chunk reads
    each but once in this order.
    """
    stacks: dict[str, list[Parameter]] = {}
    for parameter in list_parameters(config):
        stacks.setdefault(split_layer(parameter.path)[0], []).append(parameter)
    for stack in stacks.values():
        yield from stack


def split_layer(path: str) -> tuple[str, int | None]:
    """Where a parameter lies if layers are stacked, and its layer; None where it has none.

    'encoder/layers_3/mlp/wo/kernel' is ('encoder/layers/mlp/wo/kernel', 3).
    """
    match = _LAYER_PATH.fullmatch(path)
    return (f"{match[1]}/{STACKED}/{match[3]}", int(match[2])) if match else (path, None)


# ---------------------------------- names of dimensions ----------------------


@functools.cache
def _known_axes() -> dict[str, tuple[str, ...]]:
    """Axes of one layer, by paths as they are where layers are stacked, of every kind of T5."""
    kinds: list[T5Config] = [
        T5Config(
            num_encoder_layers=1,
            num_decoder_layers=1,
            mlp_activations=activations,
            relative_attention_per_layer=per_layer,
        )
        for activations, per_layer in ((("relu",), False), (("gelu", "linear"), True))
    ]
    kinds.append(T5GemmaConfig(num_encoder_layers=1, num_decoder_layers=1))
    return {
        split_layer(each.path)[0]: each.axes for kind in kinds for each in list_parameters(kind)
    }


def find_axes(path: str, ndim: int) -> tuple[str, ...]:
    """Logical names of the dimensions of the parameter at `path` ('encoder/layers_0/...').

    Raises:
      ValueError: no such parameter, or not as many dimensions as it has.
    """
    axes = _known_axes().get(split_layer(path)[0])
    if axes is None:
        raise ValueError(
            f"parameter {path} is not one of T5's; expected a tree as Transformer.init makes it "
            "(add a new parameter to list_parameters of distill_sbs/model/parameters.py)"
        )
    if f"/{STACKED}/" in path:
        axes = ("layers", *axes)
    if ndim != len(axes):
        raise ValueError(f"parameter {path} has {ndim} dimensions; expected {len(axes)}: {axes}")
    return axes


def find_logical_axes(params: Params) -> dict[str, PyTree]:
    """The tree of `params` with a tuple of logical names, one a dimension, for every leaf.

    Raises:
      ValueError: a parameter that T5 does not have.
    """

    def walk(tree: Params, prefix: str) -> dict[str, PyTree]:
        return {
            name: walk(child, f"{prefix}{name}/")
            if isinstance(child, Mapping)
            else find_axes(prefix + name, len(child.shape))
            for name, child in tree.items()
        }

    return walk(params, "")
