"""The mesh, and where every array of a run lives on it.

Enters: devices, the number of model partitions, a tree of arrays or shapes. Leaves: a
`jax.sharding.Mesh` with axes ('slice', 'data', 'model') and a `NamedSharding` for every leaf.

- model: tensor parallelism. Heads, feed-forward width and vocabulary are split over it.
- data: rows are split over it; with FSDP also parameters, gradients and optimizer state.
- slice: groups of devices joined by a slower network (TPU slices over DCN, GPU hosts). Rows are
  split over it, parameters never are: only gradients cross it, once a step.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np
import optax
from flax import linen as nn
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from distill_sbs.config import BatchConfig, ObjectiveConfig
from distill_sbs.errors import UserError
from distill_sbs.model.config import T5Config
from distill_sbs.model.fused_attention import LONGEST_ROW
from distill_sbs.model.parameters import Params, PyTree, find_logical_axes

if TYPE_CHECKING:
    from distill_sbs.training.train_step import TrainState

SLICE_AXIS = "slice"
DATA_AXIS = "data"
MODEL_AXIS = "model"

MeshAxes = str | tuple[str, ...] | None

# Logical axis → mesh axes, as T5X's standard rules have them. Activations follow these.
LOGICAL_AXIS_RULES: tuple[tuple[str, MeshAxes], ...] = (
    ("batch", (SLICE_AXIS, DATA_AXIS)),
    ("vocab", MODEL_AXIS),
    ("mlp", MODEL_AXIS),
    ("heads", MODEL_AXIS),
    ("joined_kv", MODEL_AXIS),
    ("embed", None),
    ("kv", None),
    # T5Gemma's keys and values, of which there may be fewer than partitions.
    ("shared_kv", None),
    ("shared_heads", None),
    ("length", None),
    ("layers", None),
    ("relpos_buckets", None),
)

# What changes for parameters, gradients and optimizer state under FSDP (T5X's 2-D parameter
# partitioning): every parameter but the small relative position biases has an 'embed' dimension.
FSDP_RULES: Mapping[str, MeshAxes] = {"embed": DATA_AXIS}

# With FSDP unset, it is used where parameters, gradients and optimizer state would otherwise fill
# more of a device than this: a quarter of the smallest accelerator in use (TPU v5e, 16 GiB).
REPLICATED_STATE_BYTES = 4 * 2**30


def make_mesh(
    num_model_partitions: int,
    devices: Sequence[jax.Device] | None = None,
    num_slices: int | None = None,
) -> Mesh:
    """A mesh of all devices, [slices, devices / slices / partitions, partitions].

    Neighbours on the model axis are neighbours in the machine, and partitions never span slices.

    Args:
      num_model_partitions: devices that share one copy of the parameters' rows.
      devices: default: all devices of all processes.
      num_slices: groups with a copy of the parameters each; None: the slices that the devices
        say they belong to. 1 makes one data axis of them all, so that FSDP spans slices.

    Raises:
      UserError: partitions or slices do not divide the devices.
    """
    devices = list(devices if devices is not None else jax.devices())
    physical: dict[int, int] = {}
    for device in devices:
        index = getattr(device, "slice_index", None) or 0
        physical[index] = physical.get(index, 0) + 1
    if len(set(physical.values())) > 1:
        raise UserError(
            f"the slices have unlike numbers of devices: {physical}; use slices of one size"
        )
    num_slices = len(physical) if num_slices is None else num_slices
    if num_slices < 1 or len(devices) % num_slices:
        raise UserError(
            f"NUM_SLICES={num_slices} does not divide {len(devices)} devices; "
            f"use one of {_divisors(len(devices))}, or None for the slices that the devices report"
        )
    # What partitions may not span: whatever is smaller, a slice asked for or one that exists.
    largest = len(devices) // math.lcm(num_slices, len(physical))
    if num_model_partitions < 1 or largest % num_model_partitions:
        of_a_slice = " of a slice" if largest < len(devices) else ""
        raise UserError(
            f"NUM_MODEL_PARTITIONS={num_model_partitions} does not divide {largest} "
            f"devices{of_a_slice}; use one of {_divisors(largest)}"
        )
    shape = (1, len(devices) // len(physical) // num_model_partitions, num_model_partitions)
    grid = _physical_grid(shape, len(physical), devices)
    return Mesh(
        grid.reshape(num_slices, -1, num_model_partitions), (SLICE_AXIS, DATA_AXIS, MODEL_AXIS)
    )


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _physical_grid(
    shape: tuple[int, int, int], num_slices: int, devices: Sequence[jax.Device]
) -> np.ndarray:
    """Devices [num_slices, data, model], placed as the interconnect wants them."""
    cores: dict[tuple[int, ...], list[jax.Device]] = {}
    if max(getattr(device, "core_on_chip", 0) for device in devices) > 0:
        for device in sorted(devices, key=lambda device: device.core_on_chip):
            chip = (getattr(device, "slice_index", None) or 0, *device.coords)
            cores.setdefault(chip, []).append(device)
    if not cores:
        return _grid_of_chips(shape, num_slices, devices)
    # Chips of several devices (TPU7x; v4 without megacore), which mesh_utils does not place: the
    # devices of one chip become neighbours, on the model axis where they fit.
    chips = [each[0] for each in cores.values()]
    of_chip = {each[0]: each for each in cores.values()}
    per_chip = len(devices) // len(chips)
    _, data, model = shape
    if model % per_chip == 0:
        grid, axis = _grid_of_chips((1, data, model // per_chip), num_slices, chips), 3
    else:
        grid, axis = _grid_of_chips((1, data // per_chip, model), num_slices, chips), 2
    stacked = np.empty((*grid.shape, per_chip), object)
    for index, chip in np.ndenumerate(grid):
        stacked[index] = of_chip[chip]
    return np.moveaxis(stacked, 3, axis).reshape(num_slices, data, model)


def _grid_of_chips(
    shape: tuple[int, int, int], num_slices: int, devices: Sequence[jax.Device]
) -> np.ndarray:
    def make_grid(allow_split_physical_axes: bool) -> np.ndarray:
        if num_slices == 1:
            return mesh_utils.create_device_mesh(
                shape, devices, allow_split_physical_axes=allow_split_physical_axes
            )
        return mesh_utils.create_hybrid_device_mesh(
            shape,
            (num_slices, 1, 1),
            devices,
            allow_split_physical_axes=allow_split_physical_axes,
        )

    try:
        return make_grid(False)
    except NotImplementedError:
        # A logical axis that is no product of whole axes of the torus: part of one then.
        return make_grid(True)


def data_parallelism(mesh: Mesh) -> int:
    """Into how many parts the rows of a batch are split: slices × data axis."""
    parts: int = mesh.shape[SLICE_AXIS] * mesh.shape[DATA_AXIS]
    return parts


def check_batch_size(batch_size: int, num_microbatches: int, mesh: Mesh) -> None:
    """Raises UserError where the data axis and the microbatches do not divide the batch."""
    devices = data_parallelism(mesh)
    multiple = devices * num_microbatches
    if num_microbatches < 1 or batch_size < 1 or batch_size % multiple:
        mend = max(-(-batch_size // multiple), 1) * multiple
        microbatches = f" × {num_microbatches} microbatches" if num_microbatches > 1 else ""
        raise UserError(
            f"BATCH_SIZE={batch_size} is not a multiple of {devices} devices{microbatches}; "
            f"use {mend}"
        )


def check_attention(
    student: T5Config, batch: BatchConfig, objective: ObjectiveConfig, mesh: Mesh
) -> None:
    """Whether a student's attention can be trained on these devices, with rows so long.

    Other devices than TPUs interpret the kernel of fused attention, which is right, and too slow.

    Raises:
      UserError: it cannot.
    """
    if student.attention != "fused":
        return
    platform = mesh.devices.flat[0].platform
    if platform != "tpu":
        raise UserError(
            "STUDENT_OVERRIDES has 'attention': 'fused', which is a kernel for TPUs; these devices "
            f"are of the kind {platform!r}; leave it out, or use 'xla'"
        )
    longest = max(batch.task_feature_lengths.values()) * (2 if objective.in_pairs else 1)
    if longest > LONGEST_ROW:
        raise UserError(
            f"TASK_FEATURE_LENGTHS makes rows of {longest:,} tokens, and STUDENT_OVERRIDES has "
            f"'attention': 'fused', whose kernel takes {LONGEST_ROW:,} at most; use 'xla'"
        )


def _spec(
    axes: Sequence[str | None],
    shape: Sequence[int],
    mesh: Mesh,
    rules_of_axes: Mapping[str, MeshAxes],
) -> PartitionSpec:
    names = [rules_of_axes[axis] if axis else None for axis in axes]

    def divides(name: MeshAxes, size: int) -> bool:
        parts = (name,) if isinstance(name, str) else name or ()
        return bool(size % math.prod(mesh.shape[part] for part in parts) == 0)

    # A dimension that the mesh does not divide (6 heads on 4 partitions) is kept whole.
    return PartitionSpec(
        *(name if divides(name, size) else None for name, size in zip(names, shape, strict=True))
    )


def parameter_shardings(mesh: Mesh, params: Params, fsdp: bool = False) -> PyTree:
    """A `NamedSharding` for every parameter, from its logical axes; gradients lie likewise.

    Args:
      mesh: from `make_mesh`.
      params: arrays or shapes.
      fsdp: split them over the data axis too; they are gathered layer by layer as they are used.
    """
    axes = find_logical_axes(params)
    rules_of_axes = dict(LOGICAL_AXIS_RULES) | (dict(FSDP_RULES) if fsdp else {})
    return jax.tree.map(
        lambda leaf, names: NamedSharding(mesh, _spec(names, leaf.shape, mesh, rules_of_axes)),
        params,
        axes,
        is_leaf=lambda node: hasattr(node, "shape"),
    )


def state_shardings(
    mesh: Mesh, optimizer: optax.GradientTransformation, state: TrainState, fsdp: bool = False
) -> TrainState:
    """A `NamedSharding` for every leaf of a `TrainState`.

    Optimizer state lies like the parameter it belongs to, and a factor of Adafactor's like the
    dimensions that it kept; what is neither is replicated.
    """
    shardings = parameter_shardings(mesh, state.params, fsdp)

    def like_parameter(
        leaf: jax.ShapeDtypeStruct, sharding: NamedSharding, parameter: jax.ShapeDtypeStruct
    ) -> NamedSharding:
        if leaf.shape == parameter.shape:
            return sharding
        axes = (*sharding.spec, *(None,) * (parameter.ndim - len(sharding.spec)))
        # From the last: where two dimensions are alike, either fits.
        for summed in reversed(range(parameter.ndim)):
            if leaf.shape == (*parameter.shape[:summed], *parameter.shape[summed + 1 :]):
                return NamedSharding(mesh, PartitionSpec(*axes[:summed], *axes[summed + 1 :]))
        return replicated(mesh)

    optimizer_state = optax.tree_map_params(
        optimizer,
        like_parameter,
        state.optimizer_state,
        shardings,
        state.params,
        transform_non_params=lambda _: replicated(mesh),
    )
    return state.replace(step=replicated(mesh), params=shardings, optimizer_state=optimizer_state)


def bytes_per_device(shapes: PyTree, shardings: PyTree) -> int:
    """What a tree of arrays or shapes, placed so, takes on one device."""
    sizes = jax.tree.map(
        lambda leaf, sharding: math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize,
        shapes,
        shardings,
    )
    return sum(jax.tree.leaves(sizes))


def choose_fsdp(
    fsdp: bool | None, mesh: Mesh, optimizer: optax.GradientTransformation, state: TrainState
) -> bool:
    """Whether a run uses FSDP: as told, or where None by the size of its state.

    By size: where parameters, gradients and optimizer state, split over the model axis alone,
    would take more than `REPLICATED_STATE_BYTES` of each device.
    """
    if fsdp is not None:
        return fsdp
    shardings = state_shardings(mesh, optimizer, state)
    taken = bytes_per_device(state, shardings) + bytes_per_device(state.params, shardings.params)
    return taken > REPLICATED_STATE_BYTES


def abstract_parameters(mesh: Mesh, shapes: Params, fsdp: bool | None = None) -> PyTree:
    """Shapes of parameters that are only used, not trained, with their shardings.

    With `fsdp` None they are split over the data axis too where a device would otherwise hold
    more than `REPLICATED_STATE_BYTES`.
    """
    shardings = parameter_shardings(mesh, shapes)
    if fsdp is None:
        fsdp = bytes_per_device(shapes, shardings) > REPLICATED_STATE_BYTES
    return add_shardings(shapes, parameter_shardings(mesh, shapes, True) if fsdp else shardings)


def add_shardings(shapes: PyTree, shardings: PyTree) -> PyTree:
    """`jax.ShapeDtypeStruct`s that say where they are to be: to restore into, or to compile for."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over slices and the data axis."""
    return NamedSharding(mesh, PartitionSpec((SLICE_AXIS, DATA_AXIS)))


def rows_here(mesh: Mesh, rows: int) -> np.ndarray:
    """Which rows of a batch the devices of this process take, bool [rows].

    Processes that share a copy of the parameters (a model axis over several hosts) take the same.
    """
    here = np.zeros(rows, bool)
    for taken in batch_sharding(mesh).addressable_devices_indices_map((rows,)).values():
        assert taken is not None
        here[taken] = True
    return here


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts a host batch on the mesh, rows over slices and the data axis.

    Every process holds an array of the whole batch and hands over only its devices' rows; the
    others' need not be filled.
    """
    sharding = batch_sharding(mesh)
    return {
        key: jax.make_array_from_callback(array.shape, sharding, array.__getitem__)
        for key, array in batch.items()
    }


@contextlib.contextmanager
def rules(mesh: Mesh) -> Iterator[None]:
    """Inside, the model's logical activation names mean axes of `mesh`; trace models in it."""
    # Flax looks for the mesh here, and without one drops every constraint silently; in `with mesh:`
    # it does not look.
    with jax.set_mesh(mesh), nn.logical_axis_rules(LOGICAL_AXIS_RULES):
        yield
