"""A checkpoint of any form as our parameters, one tensor at a time.

Enters: a `ParameterSource`, which reads a HuggingFace folder, a T5X checkpoint or one of ours.
Leaves: arrays placed straight into the shards of a mesh; or, for a writer of another form, every
parameter in turn. Nothing is read before it is asked for, and never more than one tensor of one
layer at a time.

Paths are ours with layers one by one, 'encoder/layers_0/attention/query/kernel', whether the form
at hand stacks its layers or not.
"""

from __future__ import annotations

import abc
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from distill_sbs.checkpoint.description import RunDescription
from distill_sbs.convert.huggingface import tensor_names
from distill_sbs.errors import UserError
from distill_sbs.model.axes import STACKED
from distill_sbs.model.config import T5Config

Index = tuple[slice, ...]

_STACKED_PATH = re.compile(rf"(encoder|decoder)/{STACKED}/(.+)")
_LAYER_PATH = re.compile(r"(encoder|decoder)/layers_(\d+)/(.+)")

# What a student computes with its parameters and their shapes do not show.
_COMPUTATION = (
    "mlp_activations",
    "logits_via_embedding",
    "relative_attention_max_distance",
    "layer_norm_epsilon",
)


class Parameter(NamedTuple):
    """A parameter of a student: its path, layers one by one, and its shape."""

    path: str
    shape: tuple[int, ...]


def parameters(config: T5Config) -> Iterator[Parameter]:
    """Every parameter of a student, layers one by one, whatever `config.scan_layers` says."""
    for tensor in tensor_names.tensors(config):
        yield Parameter("/".join(tensor.path), tensor.shape)


def stack_by_stack(config: T5Config) -> Iterator[Parameter]:
    """`parameters`, in an order that keeps together what forms one array where layers are stacked.

    A chunk of a stacked array may hold all its layers; a reader that keeps the last chunk reads
    each but once in this order.
    """
    stacks: dict[str, list[Parameter]] = {}
    for parameter in parameters(config):
        stacks.setdefault(stacked_path(parameter.path)[0], []).append(parameter)
    for stack in stacks.values():
        yield from stack


def stacked_path(path: str) -> tuple[str, int | None]:
    """Where a parameter lies if layers are stacked, and its layer; None where it has none.

    'encoder/layers_3/mlp/wo/kernel' is ('encoder/layers/mlp/wo/kernel', 3).
    """
    match = _LAYER_PATH.fullmatch(path)
    return (f"{match[1]}/{STACKED}/{match[3]}", int(match[2])) if match else (path, None)


class ParameterSource(abc.ABC):
    """A checkpoint on disk, whatever its form.

    Attributes:
      location: where it lies, for messages.
      config: the student's architecture, as far as the form states it or its shapes show it.
      vocabulary: `data.sentencepiece_model.describe`'s answer where the form carries a vocabulary.
      description: what a checkpoint of ours says of itself; None in other forms.
    """

    location: str
    config: T5Config
    vocabulary: Mapping[str, Any] | None = None
    description: RunDescription | None = None

    @abc.abstractmethod
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Path → shape of every parameter there, without reading one; paths that are not a T5's
        by the names that the form itself uses.
        """

    @abc.abstractmethod
    def read(self, path: str, index: Index | None = None) -> np.ndarray:
        """A parameter, or the part of it that `index` names, as float32.

        Raises:
          UserError: the file is truncated or otherwise unreadable; names the tensor.
        """

    def stored_as(self, path: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
        """What the form itself calls a parameter, and how it writes its shape; for messages."""
        return path, shape

    def check(self, config: T5Config) -> None:
        """Compares every shape with those of a student of `config`, reading no values.

        Raises:
          UserError: a tensor missing, unknown, or of another shape; with what was expected.
        """
        found = dict(self.shapes())
        for path, shape in parameters(config):
            name, expected = self.stored_as(path, shape)
            if path not in found:
                raise UserError(
                    f"{self.location} has no tensor {name}; expected one of shape {expected}. Is "
                    "it a checkpoint of another model or version, or a part of one?"
                )
            got = found.pop(path)
            if got != shape:
                raise UserError(
                    f"{self.location}: tensor {name} has shape {self.stored_as(path, got)[1]}, "
                    f"expected {expected}; is it a T5 of another size or version?"
                )
        if found:
            path = min(found)
            raise UserError(
                f"{self.location}: tensor {path} of shape {found[path]} has no place in the "
                f"student ({len(found)} such tensors); is it a T5 of another size or version?"
            )


def check_computation(source: ParameterSource, config: T5Config) -> None:
    """Compares what no shape shows, for forms that state it.

    Raises:
      UserError: a student of `config` would compute something else with the parameters.
    """
    for name in _COMPUTATION:
        got, expected = getattr(source.config, name), getattr(config, name)
        if got != expected:
            raise UserError(
                f"{source.location} has {name}={got!r}, expected {expected!r}; is it a T5 of "
                "another version?"
            )


def place(
    source: ParameterSource, abstract_params: Any, progress: Callable[[int], None] | None = None
) -> Any:
    """The parameters as arrays, every device's shard read by itself.

    Args:
      source: checked against the student's configuration.
      abstract_params: a tree of `jax.ShapeDtypeStruct` with shardings, layers stacked or not.
      progress: called with the values placed since the last call.

    Returns:
      The tree of `abstract_params` with arrays in the place of shapes.
    """

    def array(key_path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        path = jax.tree_util.keystr(key_path, simple=True, separator="/")
        stacked = _STACKED_PATH.fullmatch(path)

        def shard(index: Index) -> np.ndarray:
            if stacked is None:
                return source.read(path, index).astype(leaf.dtype, copy=False)
            stack, rest = stacked.groups()
            layers = range(leaf.shape[0])[index[0]]
            part = np.empty((len(layers), *_lengths(leaf.shape[1:], index[1:])), leaf.dtype)
            for number, layer in enumerate(layers):
                part[number] = source.read(f"{stack}/layers_{layer}/{rest}", index[1:])
            return part

        # One read for all devices that hold the same part, and no part held longer than that.
        devices: dict[Any, list[jax.Device]] = {}
        parts: dict[Any, Index] = {}
        for device, index in leaf.sharding.addressable_devices_indices_map(leaf.shape).items():
            key = tuple((part.start, part.stop) for part in index)
            devices.setdefault(key, []).append(device)
            parts[key] = index
        pieces = []
        for key, index in parts.items():
            value = shard(index)
            pieces += [jax.device_put(value, device) for device in devices[key]]
        placed = jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, pieces)
        if progress is not None:
            progress(math.prod(leaf.shape))
        return placed

    return jax.tree_util.tree_map_with_path(array, abstract_params)


def _lengths(shape: tuple[int, ...], index: Index) -> tuple[int, ...]:
    return tuple(len(range(size)[part]) for size, part in zip(shape, index, strict=True))
