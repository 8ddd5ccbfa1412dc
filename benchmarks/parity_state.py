"""Whole parameter trees as HuggingFace's states and back: what comparing models needs.

Enters: tensors by HuggingFace's names, or a parameter tree. Leaves: the other. All of it is in
memory at once, which `distill_sbs.convert` avoids.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from distill_sbs.convert.huggingface import names
from distill_sbs.model.config import T5Config
from distill_sbs.model.parameters import split_layer


def tree_of_state(state: Mapping[str, np.ndarray], config: T5Config) -> dict[str, Any]:
    """The parameter tree, of float32 arrays; layers stacked where `config.scan_layers`."""
    stacks: dict[str, list[np.ndarray]] = {}
    for name, path, shape, transposed in names.list_tensors(config):
        value = np.array(state[name].T if transposed else state[name], np.float32, order="C")
        assert value.shape == shape, (name, value.shape, shape)
        stacks.setdefault(split_layer(path)[0] if config.scan_layers else path, []).append(value)
    tree: dict[str, Any] = {}
    for path, values in stacks.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        is_stack = config.scan_layers and "/layers/" in path
        node[last] = np.stack(values) if is_stack else values[0]
    return tree


def state_of_tree(params: Mapping[str, Any], config: T5Config) -> dict[str, np.ndarray]:
    """HuggingFace's tensors, contiguous float32 arrays, of a tree stacked as `config` says."""
    state = {}
    for name, path, shape, transposed in names.list_tensors(config):
        stack, layer = split_layer(path) if config.scan_layers else (path, None)
        node: Any = params
        for part in stack.split("/"):
            node = node[part]
        value = np.asarray(node if layer is None else node[layer], np.float32)
        assert value.shape == shape, (path, value.shape, shape)
        state[name] = np.ascontiguousarray(value.T if transposed else value)
    return state
