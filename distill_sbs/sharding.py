"""The mesh, and where every array of a run lives on it.

Enters: devices, the number of model partitions, a tree of arrays or shapes. Leaves: a
`jax.sharding.Mesh` with axes ('data', 'model') and a `NamedSharding` for every leaf.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from distill_sbs.errors import UserError
from distill_sbs.model import parameter_axes

DATA_AXIS = "data"
MODEL_AXIS = "model"

# Logical axis → mesh axis, as T5X's standard rules have them without FSDP.
LOGICAL_AXIS_RULES: tuple[tuple[str, str | None], ...] = (
    ("batch", DATA_AXIS),
    ("vocab", MODEL_AXIS),
    ("mlp", MODEL_AXIS),
    ("heads", MODEL_AXIS),
    ("joined_kv", MODEL_AXIS),
    ("embed", None),
    ("kv", None),
    ("length", None),
    ("layers", None),
    ("relpos_buckets", None),
)


def make_mesh(num_model_partitions: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of all devices, [devices / partitions, partitions].

    Raises:
      UserError: the partitions do not divide the devices.
    """
    devices = list(devices if devices is not None else jax.devices())
    if num_model_partitions < 1 or len(devices) % num_model_partitions:
        divisors = [n for n in range(1, len(devices) + 1) if len(devices) % n == 0]
        raise UserError(
            f"NUM_MODEL_PARTITIONS={num_model_partitions} does not divide {len(devices)} devices; "
            f"use one of {divisors}"
        )
    grid = np.array(devices).reshape(-1, num_model_partitions)
    return Mesh(grid, (DATA_AXIS, MODEL_AXIS))


def check_batch_size(batch_size: int, num_microbatches: int, mesh: Mesh) -> None:
    """Raises UserError where the data axis and the microbatches do not divide the batch."""
    devices = mesh.shape[DATA_AXIS]
    multiple = devices * num_microbatches
    if num_microbatches < 1 or batch_size < 1 or batch_size % multiple:
        mend = max(-(-batch_size // multiple), 1) * multiple
        microbatches = f" × {num_microbatches} microbatches" if num_microbatches > 1 else ""
        raise UserError(
            f"BATCH_SIZE={batch_size} is not a multiple of {devices} devices{microbatches}; "
            f"use {mend}"
        )


def _spec(axes: Sequence[str | None], shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    rules = dict(LOGICAL_AXIS_RULES)
    names = [rules[axis] if axis else None for axis in axes]
    # A dimension that the mesh does not divide (6 heads on 4 partitions) is kept whole.
    return PartitionSpec(
        *(
            name if name and size % mesh.shape[name] == 0 else None
            for name, size in zip(names, shape, strict=True)
        )
    )


def parameter_shardings(mesh: Mesh, params: Any) -> Any:
    """A `NamedSharding` for every parameter, from its logical axes."""
    axes = parameter_axes.logical_axes(params)
    return jax.tree.map(
        lambda leaf, names: NamedSharding(mesh, _spec(names, leaf.shape, mesh)),
        params,
        axes,
        is_leaf=lambda node: hasattr(node, "shape"),
    )


def state_shardings(mesh: Mesh, optimizer: optax.GradientTransformation, state: Any) -> Any:
    """A `NamedSharding` for every leaf of a `TrainState`.

    Optimizer state lies like the parameter it belongs to; what is smaller is replicated.
    """
    shardings = parameter_shardings(mesh, state.params)

    def like_parameter(leaf: Any, place: NamedSharding, parameter: Any) -> NamedSharding:
        return place if leaf.shape == parameter.shape else replicated(mesh)

    optimizer_state = optax.tree_map_params(
        optimizer,
        like_parameter,
        state.optimizer_state,
        shardings,
        state.params,
        transform_non_params=lambda _: replicated(mesh),
    )
    return state.replace(step=replicated(mesh), params=shardings, optimizer_state=optimizer_state)


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over the data axis."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts a host batch on the mesh, rows over the data axis.

    Every process holds the same whole batch and hands over only its devices' rows.
    """
    sharding = batch_sharding(mesh)
    return {
        key: jax.make_array_from_callback(array.shape, sharding, lambda index, a=array: a[index])
        for key, array in batch.items()
    }


@contextlib.contextmanager
def rules(mesh: Mesh) -> Iterator[None]:
    """Inside, the model's logical activation names mean axes of `mesh`; trace models in it."""
    with mesh, nn.logical_axis_rules(LOGICAL_AXIS_RULES):
        yield
