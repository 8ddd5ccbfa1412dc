"""The tensors of a HuggingFace folder on disk, by HuggingFace's names.

Enters: a folder with `model.safetensors`, its shards and their index, or `pytorch_model.bin` and
the same of it.
Leaves: a handle that knows every tensor's shape and reads one, or a part of one, when asked; and,
for a writer, one file of tensors, written one after another. `torch` is needed for `.bin` alone.
"""

from __future__ import annotations

import abc
import json
import math
import os
import pathlib
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from distill_sbs.errors import UserError

SAFETENSORS = "model.safetensors"
TORCH = "pytorch_model.bin"

# safetensors' names of the types whose every value is a float32 too.
DTYPES: Mapping[str, Any] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}

_DAMAGED = "it is truncated or damaged, or was not copied whole: copy it again"


class Weights(abc.ABC):
    """Tensors of a folder.

    Attributes:
      shapes: of every tensor, by name.
    """

    shapes: Mapping[str, tuple[int, ...]]

    @abc.abstractmethod
    def read(self, name: str, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """A tensor, or the part that `index` names, as float32.

        Raises:
          UserError: the file is damaged, or the tensor of a type that float32 does not hold.
        """


def open_weights(folder: pathlib.Path) -> Weights:
    """Opens the weights of a folder, safetensors where both kinds are there.

    Raises:
      UserError: there are none; a file of the index is missing, or truncated, or another program's.
    """
    for name, opened in ((SAFETENSORS, _SafetensorsWeights), (TORCH, _TorchWeights)):
        index = folder / f"{name}.index.json"
        if (folder / name).exists():
            return opened({None: folder / name}, {})
        if index.exists():
            places = read_json(index).get("weight_map")
            if not isinstance(places, dict):
                raise UserError(f"{index} has no 'weight_map', which names the file of a tensor")
            files = {file: folder / file for file in sorted(set(places.values()))}
            for tensor, file in sorted(places.items()):
                if not files[file].exists():
                    raise UserError(
                        f"{files[file]} is missing; {index.name} expects tensor {tensor} in it. "
                        "Was the folder copied whole?"
                    )
            return opened(files, places)
    raise UserError(
        f"{folder} holds no weights; expected {SAFETENSORS}, {TORCH}, or shards of either with "
        f"their {SAFETENSORS}.index.json"
    )


def read_json(file: pathlib.Path) -> dict[str, Any]:
    """An object from a JSON file.

    Raises:
      UserError: it cannot be read, or holds something else.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}); {_DAMAGED}") from None
    if not isinstance(values, dict):
        raise UserError(f"{file} holds a {type(values).__name__}; expected a JSON object")
    return values


def _check_places(
    places: Mapping[str, str], files: Mapping[Any, pathlib.Path], found: Mapping[str, Any]
) -> None:
    """The index and the shards must name the same tensors."""
    for name, file in sorted(places.items()):
        if name not in found:
            raise UserError(f"{files[file]} has no tensor {name}, which the index expects in it")


class _SafetensorsWeights(Weights):
    """A file, or shards, of safetensors."""

    def __init__(self, files: Mapping[Any, pathlib.Path], places: Mapping[str, str]) -> None:
        self._files: dict[str, pathlib.Path] = {}
        self._handles: dict[tuple[pathlib.Path, str], Any] = {}
        self._dtypes: dict[str, str] = {}
        self.shapes = {}
        for file in files.values():
            handle = self._handle(file, "mmap")
            for name in handle.keys():  # noqa: SIM118 (it is no dictionary)
                part = handle.get_slice(name)
                self._files[name] = file
                self._dtypes[name] = part.get_dtype()
                self.shapes[name] = tuple(part.get_shape())
        _check_places(places, files, self.shapes)

    def _handle(self, file: pathlib.Path, backend: str) -> Any:
        if (file, backend) not in self._handles:
            try:
                handle = safe_open(str(file), framework="numpy", backend=backend)
            except (SafetensorError, OSError) as error:
                cut = _first_cut_tensor(file)
                raise UserError(
                    f"{file} cannot be read ({error})"
                    + (f"; tensor {cut[0]} of shape {cut[1]} is not whole" if cut else "")
                    + f"; {_DAMAGED}"
                ) from None
            self._handles[file, backend] = handle
        return self._handles[file, backend]

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """See `Weights`."""
        if self._dtypes[name] not in DTYPES:
            raise UserError(
                f"{self._files[name]}: tensor {name} is of type {self._dtypes[name]}, expected one "
                f"of {', '.join(DTYPES)}; save it in one of these"
            )
        shape = self.shapes[name]
        # safetensors takes no bounds beyond a tensor's.
        bounds = [range(size)[part] for part, size in zip(index or (), shape, strict=False)]
        try:
            if all(len(bound) == size for bound, size in zip(bounds, shape, strict=False)):
                # Not mapped: what has been read need not stay in memory.
                value = self._handle(self._files[name], "pread").get_tensor(name)
            else:
                part = tuple(slice(bound.start, bound.stop) for bound in bounds)
                value = self._handle(self._files[name], "mmap").get_slice(name)[part]
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{self._files[name]}: tensor {name} of shape {shape} cannot be read "
                f"({error}); {_DAMAGED}"
            ) from None
        return value.astype(np.float32, copy=False)


def _first_cut_tensor(file: pathlib.Path) -> tuple[str, tuple[int, ...]] | None:
    """The first tensor that a truncated file does not hold whole, where its header is whole."""
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            size = os.path.getsize(file)
            header = json.loads(opened.read(length)) if length < size else {}
        ends = {
            name: (entry["data_offsets"][1], tuple(entry["shape"]))
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return None
    for name, (end, shape) in sorted(ends.items(), key=lambda item: item[1][0]):
        if 8 + length + end > size:
            return name, shape
    return None


class _TorchWeights(Weights):
    """A file, or shards, that `torch.save` wrote; mapped, so that a tensor is read when asked."""

    def __init__(self, files: Mapping[Any, pathlib.Path], places: Mapping[str, str]) -> None:
        try:
            import torch
        except ImportError:
            raise UserError(
                f"{next(iter(files.values()))} was written by torch, which is not installed: "
                f"install it (pip install torch), or take the {SAFETENSORS} of the same model"
            ) from None
        self._torch = torch
        self._tensors: dict[str, Any] = {}
        self._files: dict[str, pathlib.Path] = {}
        for file in files.values():
            for name, tensor in self._load(file).items():
                self._tensors[name] = tensor
                self._files[name] = file
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
        _check_places(places, files, self.shapes)

    def _load(self, file: pathlib.Path) -> Mapping[str, Any]:
        # weights_only: a pickle may otherwise run whatever its author wrote.
        options: dict[str, Any] = {"map_location": "cpu", "weights_only": True}
        try:
            try:
                state = self._torch.load(file, mmap=True, **options)
            except RuntimeError as error:
                if "mmap can only be used" not in str(error):
                    raise
                # Written before torch 1.6: no zip file, so read at once.
                state = self._torch.load(file, **options)
        except Exception as error:
            cause = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise UserError(f"{file} cannot be read ({cause}); {_DAMAGED}") from None
        if not isinstance(state, Mapping) or not all(
            isinstance(tensor, self._torch.Tensor) for tensor in state.values()
        ):
            raise UserError(f"{file} holds no state of a model; expected tensors by name")
        return state

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """See `Weights`."""
        tensor = self._tensors[name]
        torch = self._torch
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise UserError(
                f"{self._files[name]}: tensor {name} is of type {tensor.dtype}, expected float32, "
                "float16 or bfloat16; save it in one of these"
            )
        part = tensor if index is None else tensor[index]
        return np.array(part.to(torch.float32).numpy())


def shards(
    sizes: Mapping[str, int], limit: int, base: str = SAFETENSORS
) -> Iterator[tuple[str, list[str]]]:
    """Tensors divided among files of at most `limit` bytes, in order: file name, tensor names.

    Names are HuggingFace's: `model.safetensors`, or `model-00001-of-00003.safetensors`, …
    """
    groups: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if groups[-1] and filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    stem, suffix = base.split(".")
    for number, names in enumerate(groups, start=1):
        whole = len(groups) == 1
        yield (base if whole else f"{stem}-{number:05d}-of-{len(groups):05d}.{suffix}"), names


def write_file(
    file: pathlib.Path,
    shapes: Sequence[tuple[str, tuple[int, ...]]],
    dtype: str,
    value: Callable[[str], np.ndarray],
) -> None:
    """Writes one safetensors file, never holding more than one of its tensors.

    `safetensors` itself writes a file from tensors that are all in memory. The format is eight
    bytes of length, a JSON header, and the values (github.com/huggingface/safetensors, "Format").

    Args:
      file: where to.
      shapes: names and shapes, in the order in which `value` is asked for them.
      dtype: of `DTYPES`, of what `value` gives.
      value: gives the tensor of a name.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers insists on it
    offset = 0
    for name, shape in shapes:
        size = math.prod(shape) * DTYPES[dtype].itemsize
        header[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as opened:
        opened.write(struct.pack("<Q", len(text)))
        opened.write(text)
        for name, shape in shapes:
            array = np.ascontiguousarray(value(name), DTYPES[dtype])
            assert array.shape == shape, (name, array.shape, shape)
            array.tofile(opened)
