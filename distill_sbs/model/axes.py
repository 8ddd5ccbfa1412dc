"""Names for the dimensions of every parameter, and stacking of layers.

In: a parameter tree as `network.Transformer` makes it (arrays, or `jax.ShapeDtypeStruct`s).
Out: the same tree with a tuple of logical axis names in every leaf's place; or the same
parameters with layers stacked (`scan_layers`) or one by one.

The names are T5X's: 'vocab', 'embed', 'mlp', 'heads', 'joined_kv' (heads times head_dim),
'relpos_buckets', and 'layers', the leading axis of stacked layers. Which mesh axis each goes to
is decided elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

STACKED = "layers"
_LAYER = re.compile(r"layers_(\d+)")

_AXES: list[tuple[str, tuple[str, ...]]] = [
    (r"token_embedder/embedding", ("vocab", "embed")),
    (r"(encoder|decoder)/relpos_bias/rel_embedding", ("heads", "relpos_buckets")),
    (r"(encoder|decoder)/(encoder|decoder)_norm/scale", ("embed",)),
    (r"decoder/logits_dense/kernel", ("embed", "vocab")),
    (r"LAYER/pre_\w+_layer_norm/scale", ("embed",)),
    (r"LAYER/(\w*attention)/(query|key|value)/kernel", ("embed", "joined_kv")),
    (r"LAYER/(\w*attention)/out/kernel", ("joined_kv", "embed")),
    (r"LAYER/mlp/wi(_\d)?/kernel", ("embed", "mlp")),
    (r"LAYER/mlp/wo/kernel", ("mlp", "embed")),
]
_PATTERNS = [
    (re.compile(pattern.replace("LAYER", rf"(encoder|decoder)/(?:layers_\d+|{STACKED})")), axes)
    for pattern, axes in _AXES
]


def axes_of(path: str, ndim: int) -> tuple[str, ...]:
    """Logical names of the dimensions of the parameter at `path` ('encoder/layers_0/...').

    Raises:
      ValueError: no such parameter, or not as many dimensions as it has.
    """
    for pattern, axes in _PATTERNS:
        if pattern.fullmatch(path):
            if f"/{STACKED}/" in path:
                axes = ("layers", *axes)
            if ndim != len(axes):
                raise ValueError(
                    f"parameter {path} has {ndim} dimensions; expected {len(axes)}: {axes}"
                )
            return axes
    raise ValueError(
        f"parameter {path} is not one of T5's; expected a tree as Transformer.init makes it "
        "(add a new parameter's axes to distill_sbs/model/axes.py)"
    )


def logical_axes(params: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of `params` with a tuple of logical names, one a dimension, for every leaf.

    Raises:
      ValueError: a parameter that T5 does not have.
    """

    def walk(tree: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        return {
            name: walk(child, f"{prefix}{name}/")
            if isinstance(child, Mapping)
            else axes_of(prefix + name, len(child.shape))
            for name, child in tree.items()
        }

    return walk(params, "")


def stack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of `scan_layers=False` -> those of `scan_layers=True`, same values.

    Raises:
      ValueError: layers missing, or shaped unlike one another.
    """
    return _per_stack(params, _stack)


def unstack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of `scan_layers=True` -> those of `scan_layers=False`, same values."""
    return _per_stack(params, _unstack)


def _per_stack(params: Mapping[str, Any], change: Callable[..., Any]) -> dict[str, Any]:
    return {
        name: change(child, name) if name in ("encoder", "decoder") else child
        for name, child in params.items()
    }


def _stack(stack: Mapping[str, Any], name: str) -> dict[str, Any]:
    others = {key: child for key, child in stack.items() if not _LAYER.fullmatch(key)}
    count = len(stack) - len(others)
    if not count:
        return dict(stack)  # stacked already
    missing = [f"layers_{index}" for index in range(count) if f"layers_{index}" not in stack]
    if missing:
        raise ValueError(f"{name} has {count} layers but no {missing[0]}")
    layers = [stack[f"layers_{index}"] for index in range(count)]
    return {**others, STACKED: _stack_leaves(layers, f"{name}/layers")}


def _stack_leaves(trees: list[Any], path: str) -> Any:
    first = trees[0]
    if isinstance(first, Mapping):
        for index, tree in enumerate(trees):
            if set(tree) != set(first):
                raise ValueError(f"{path}_{index} holds {sorted(tree)}; expected {sorted(first)}")
        return {key: _stack_leaves([tree[key] for tree in trees], f"{path}/{key}") for key in first}
    shapes = sorted({tuple(leaf.shape) for leaf in trees})
    if len(shapes) > 1:
        raise ValueError(f"{path} differs in shape between layers: {shapes}")
    # numpy stays numpy: a converter of 11 B parameters has no business on the device.
    return (np if isinstance(first, np.ndarray) else jnp).stack(trees)


def _unstack(stack: Mapping[str, Any], name: str) -> dict[str, Any]:
    del name
    result: dict[str, Any] = {}
    for key, child in stack.items():
        if key != STACKED:
            result[key] = child
            continue
        for index in range(_leading_length(child)):
            result[f"layers_{index}"] = _take_layer(child, index)
    return result


def _leading_length(tree: Any) -> int:
    while isinstance(tree, Mapping):
        tree = next(iter(tree.values()))
    return tree.shape[0]


def _take_layer(tree: Any, index: int) -> Any:
    if isinstance(tree, Mapping):
        return {key: _take_layer(child, index) for key, child in tree.items()}
    return tree[index]
