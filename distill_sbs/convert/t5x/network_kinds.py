"""The two networks of T5X: where our parameters stand in their tensors.

Enters: a tensor of a T5X checkpoint with its name; or the configuration of a student.
Leaves: the parameters of ours that the tensor holds, each with a reader of its slices; or every
tensor that T5X will have, with the parameters that fill it and the state of its optimizer.

The network of `t5x/examples/t5` has our names and shapes. That of `t5x/examples/scalable_t5` keeps
heads and their width apart, [D, H, head_dim] for our [D, H * head_dim]; has a table of relative
positions in every layer, where a T5 shares one; and stacks its layers on axis 1 as
'encoder/encoder/…', or names them one by one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from distill_sbs.convert.source import Index
from distill_sbs.convert.t5x.disk_layouts import Handle
from distill_sbs.errors import UserError
from distill_sbs.model.config import MOST_LAYERS, T5Config
from distill_sbs.model.parameters import list_parameters

LAYER = re.compile(r"(encoder|decoder)/layers_(\d{1,9})/(.+)")
POSITIONS = "relpos_bias/rel_embedding"
_STACKED = re.compile(r"(encoder|decoder)/\1/(.+)")
_HEADS = re.compile(r".+attention/(query|key|value|out)/kernel")
_LAYERS_AXIS = 1


class Part(NamedTuple):
    """Where a parameter of ours stands in a tensor of T5X.

    Attributes:
      values: the tensor, a NumPy array or a TensorStore.
      layer: its index on axis 1, where the tensor holds all layers.
      heads_axis: which axis of ours is two of the tensor's, heads and their width.
    """

    values: Handle
    layer: int | None
    heads_axis: int | None

    def _layer_shape(self) -> tuple[int, ...]:
        shape = tuple(self.values.shape)
        return shape if self.layer is None else shape[:_LAYERS_AXIS] + shape[_LAYERS_AXIS + 1 :]

    @property
    def shape(self) -> tuple[int, ...]:
        """The parameter's, as we have it."""
        return _merge(self._layer_shape(), self.heads_axis)

    def read(self, index: Index | None) -> np.ndarray:
        """The parameter, or the part of it that `index` names, as float32."""
        parts = index or (slice(None),) * len(self.shape)
        wanted: list[slice | int] = [*parts]
        axis, cut = self.heads_axis, None
        if axis is not None:
            # Whole heads are read, and their ends cut off.
            width = self._layer_shape()[axis + 1]
            start, stop, step = parts[axis].indices(self.shape[axis])
            first = start // width
            wanted[axis : axis + 1] = [slice(first, max(first, -(-stop // width))), slice(None)]
            cut = slice(start - first * width, max(start, stop) - first * width, step)
        if self.layer is not None:
            wanted.insert(_LAYERS_AXIS, self.layer)
        values = self.values[tuple(wanted)]
        if not isinstance(values, np.ndarray):
            values = values.read().result()
        if axis is not None:
            values = values.reshape(_merge(values.shape, axis))[(slice(None),) * axis + (cut,)]
        return np.ascontiguousarray(values, np.float32)


def _merge(shape: tuple[int, ...], axis: int | None) -> tuple[int, ...]:
    if axis is None:
        return shape
    return (*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :])


def list_parts(name: str, values: Handle) -> Iterator[tuple[str, Part]]:
    """The parameters, with their paths, that T5X's tensor `name` holds: one, or one a layer.

    Raises:
      UserError: more layers than any T5 has.
    """
    stacked = _STACKED.fullmatch(name)
    layers = values.shape[_LAYERS_AXIS] if stacked and len(values.shape) > _LAYERS_AXIS else None
    heads_axis = None
    if len(values.shape) == (3 if layers is None else 4) and (match := _HEADS.fullmatch(name)):
        heads_axis = 0 if match[1] == "out" else 1
    if stacked is None or layers is None:
        yield name, Part(values, None, heads_axis)
        return
    if layers > MOST_LAYERS:
        raise UserError(
            f"tensor {name} of shape {tuple(values.shape)} holds {layers:,} layers, expected at "
            f"most {MOST_LAYERS}; is it a T5's, and not damaged?"
        )
    for layer in range(layers):
        yield f"{stacked[1]}/layers_{layer}/{stacked[2]}", Part(values, layer, heads_axis)


class Tensor(NamedTuple):
    """A tensor as T5X will have it.

    Attributes:
      name: T5X's.
      shape: T5X's.
      axes: T5X's logical names of the dimensions.
      paths: of the parameters of ours that fill it: one, or one a layer.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    paths: list[str]

    @property
    def layers_axis(self) -> int | None:
        """Which axis is of layers, if one is."""
        return self.axes.index("layers") if "layers" in self.axes else None

    def index_of(self, layer: int) -> tuple[int | slice, ...]:
        """The index of what `paths[layer]` fills."""
        return tuple(layer if axis == self.layers_axis else slice(None) for axis in self._range())

    def layer_shape(self) -> tuple[int, ...]:
        """The shape of what each of `paths` fills."""
        return tuple(self.shape[axis] for axis in self._range() if axis != self.layers_axis)

    def _range(self) -> range:
        return range(len(self.shape))


def list_tensors(config: T5Config, scan_layers: bool) -> Iterator[Tensor]:
    """Every tensor of T5X's `t5`, or of its `scalable_t5` with layers stacked."""
    for path, shape, axes in list_parameters(config):
        layer = LAYER.fullmatch(path)
        side, _, rest = path.partition("/")
        if not scan_layers or (not layer and rest != POSITIONS):
            yield Tensor(path, shape, axes, [path])
        elif not layer or layer[2] == "0":
            yield _stack_layers(side, layer[3] if layer else rest, bool(layer), shape, axes, config)


def _stack_layers(
    side: str,
    rest: str,
    in_layers: bool,
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    config: T5Config,
) -> Tensor:
    layers = config.num_encoder_layers if side == "encoder" else config.num_decoder_layers
    if "joined_kv" in axes:
        joined = axes.index("joined_kv")
        shape = (*shape[:joined], config.num_heads, config.head_dim, *shape[joined + 1 :])
        axes = (*axes[:joined], "heads", "kv", *axes[joined + 1 :])
    return Tensor(
        f"{side}/{side}/{rest}",
        (*shape[:_LAYERS_AXIS], layers, *shape[_LAYERS_AXIS:]),
        (*axes[:_LAYERS_AXIS], "layers", *axes[_LAYERS_AXIS:]),
        [f"{side}/layers_{layer}/{rest}" if in_layers else f"{side}/{rest}"
         for layer in range(layers)],
    )  # fmt: skip


# T5X's Adafactor factors along these (`adafactor.standard_logical_factor_rules`) a tensor that is
# stacked or has more than two dimensions; any other by size alone.
_ROWS, _COLUMNS = ("embed",), ("vocab", "mlp", "heads", "kv")
_FACTORED_FROM = 128


def make_adafactor_state(tensor: Tensor) -> dict[str, np.ndarray]:
    """What T5X's Adafactor holds of a tensor before its first step: zeros, of its shapes.

    It is the optimizer that all of T5X's own model files set.
    """
    shape = tensor.shape
    rows = [number for number, axis in enumerate(tensor.axes) if axis in _ROWS]
    columns = [number for number, axis in enumerate(tensor.axes) if axis in _COLUMNS]
    if tensor.layers_axis is None and len(shape) <= 2:
        factored = len(shape) == 2 and min(shape) >= _FACTORED_FROM
        shorter = int(np.argmin(shape))
        rows, columns = ([shorter], [1 - shorter]) if factored else ([], [])
    state = {name: np.zeros(1, np.float32) for name in ("m", "v", "v_col", "v_row")}
    if rows and columns:
        state["v_row"] = np.zeros(np.delete(shape, columns), np.float32)
        state["v_col"] = np.zeros(np.delete(shape, rows), np.float32)
    else:
        state["v"] = np.zeros(shape, np.float32)
    return state
