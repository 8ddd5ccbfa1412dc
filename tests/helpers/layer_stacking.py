"""Parameter trees with their layers stacked (`scan_layers`) or one by one, the same values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from distill_sbs.model.parameters import STACKED

_LAYER = re.compile(r"layers_(\d+)")


def stack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of `scan_layers=False` -> those of `scan_layers=True`."""

    def join(trees: list[Any]) -> Any:
        if isinstance(trees[0], Mapping):
            return {key: join([tree[key] for tree in trees]) for key in trees[0]}
        return np.stack(trees)

    def change(stack: Mapping[str, Any]) -> dict[str, Any]:
        others = {key: child for key, child in stack.items() if not _LAYER.fullmatch(key)}
        layers = [stack[f"layers_{index}"] for index in range(len(stack) - len(others))]
        return {**others, STACKED: join(layers)} if layers else dict(stack)

    return _change_sides(params, change)


def unstack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of `scan_layers=True` -> those of `scan_layers=False`."""

    def count(tree: Any) -> int:
        while isinstance(tree, Mapping):
            tree = next(iter(tree.values()))
        return tree.shape[0]

    def take(tree: Any, index: int) -> Any:
        if isinstance(tree, Mapping):
            return {key: take(child, index) for key, child in tree.items()}
        return tree[index]

    def change(stack: Mapping[str, Any]) -> dict[str, Any]:
        result: dict[str, Any] = {key: child for key, child in stack.items() if key != STACKED}
        if STACKED in stack:
            layers = stack[STACKED]
            result |= {f"layers_{index}": take(layers, index) for index in range(count(layers))}
        return result

    return _change_sides(params, change)


def _change_sides(params: Mapping[str, Any], change: Any) -> dict[str, Any]:
    return {
        name: change(child) if name in ("encoder", "decoder") else child
        for name, child in params.items()
    }
