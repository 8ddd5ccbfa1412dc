"""Parameters of a checkpoint straight into the shards of a mesh.

Enters: a `ParameterSource` and the shapes of a parameter tree with their shardings. Leaves: the
tree, as arrays. Never more than one device's part of one parameter is in memory besides.
"""

from __future__ import annotations

import math
import re

import jax
import numpy as np

from distill_sbs.cli.progress import show_values
from distill_sbs.convert.source import Index, ParameterSource
from distill_sbs.model.parameters import STACKED, Params

_STACKED_PATH = re.compile(rf"(encoder|decoder)/{STACKED}/(.+)")


def read_sharded(source: ParameterSource, abstract_params: Params) -> Params:
    """The parameters as arrays, every device's shard read by itself, with a progress bar on the
    first process.

    Args:
      source: checked against the student's configuration.
      abstract_params: a tree of `jax.ShapeDtypeStruct` with shardings, layers stacked or not.

    Returns:
      The tree of `abstract_params` with arrays in the stead of shapes.
    """

    def read_array(
        key_path: tuple[jax.tree_util.DictKey, ...], leaf: jax.ShapeDtypeStruct
    ) -> jax.Array:
        path = jax.tree_util.keystr(key_path, simple=True, separator="/")
        stacked = _STACKED_PATH.fullmatch(path)

        def read_shard(index: Index) -> np.ndarray:
            if stacked is None:
                return source.read(path, index).astype(leaf.dtype, copy=False)
            stack, rest = stacked.groups()
            layers = range(leaf.shape[0])[index[0]]
            part = np.empty((len(layers), *_lengths(leaf.shape[1:], index[1:])), leaf.dtype)
            for number, layer in enumerate(layers):
                part[number] = source.read(f"{stack}/layers_{layer}/{rest}", index[1:])
            return part

        # One read for all devices that hold the same part, and no part held longer than that.
        devices: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
        parts: dict[tuple[tuple[int, int], ...], Index] = {}
        for device, index in leaf.sharding.addressable_devices_indices_map(leaf.shape).items():
            key = tuple((part.start, part.stop) for part in index)
            devices.setdefault(key, []).append(device)
            parts[key] = index
        pieces = []
        for key, index in parts.items():
            value = read_shard(index)
            pieces += [jax.device_put(value, device) for device in devices[key]]
        advance(math.prod(leaf.shape))
        return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, pieces)

    values = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params))
    with show_values("reading", values, silent=jax.process_index() > 0) as advance:
        params: Params = jax.tree_util.tree_map_with_path(read_array, abstract_params)
    return params


def _lengths(shape: tuple[int, ...], index: Index) -> tuple[int, ...]:
    return tuple(len(range(size)[part]) for size, part in zip(shape, index, strict=True))
