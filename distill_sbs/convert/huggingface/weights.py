"""The tensors of a HuggingFace folder on disk, by HuggingFace's names.

Enters: a folder with `model.safetensors`, its shards and their index, or `pytorch_model.bin` and
the same of it.
Leaves: a handle that knows every tensor's shape and reads one, or a part of one, when asked; and,
for a writer, one file of tensors, written one after another. `torch` is needed for `.bin` alone.
"""

from __future__ import annotations

import abc
import functools
import json
import math
import os
import pathlib
import pickle
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open

from distill_sbs import json_lines
from distill_sbs.dtypes import BY_SAFETENSORS_NAME, FLOAT_TYPES, FloatType
from distill_sbs.errors import DamagedError, SourceError, UserError
from distill_sbs.json_lines import JsonObject

if TYPE_CHECKING:
    import torch

SAFETENSORS = "model.safetensors"
TORCH = "pytorch_model.bin"

# An index of a million tensors has less; a larger file is none.
_JSON_BYTES = 2**27
# safetensors' own limit on its header.
_HEADER_BYTES = 10**8


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
          UserError: the file is damaged, or see `check_type`.
        """

    @abc.abstractmethod
    def check_type(self, name: str) -> None:
        """Looks at the type of a tensor; nothing is read.

        Raises:
          UserError: float32 does not hold its values.
        """


class RenamedWeights(Weights):
    """The same tensors by other names.

    Args:
      weights: the tensors.
      rename: the name that is meant by one of them.
    """

    def __init__(self, weights: Weights, rename: Callable[[str], str]) -> None:
        self._weights = weights
        self._names = {rename(name): name for name in weights.shapes}
        self.shapes = {name: weights.shapes[stored] for name, stored in self._names.items()}

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """See `Weights`."""
        return self._weights.read(self._names[name], index)

    def check_type(self, name: str) -> None:
        """See `Weights`."""
        self._weights.check_type(self._names[name])


def open_weights(folder: pathlib.Path) -> Weights:
    """Opens the weights of a folder, safetensors where both kinds are there.

    Raises:
      UserError: there are none; a file of the index is missing, or truncated, or another program's;
        two files hold the same tensor.
    """
    for name, opened in ((SAFETENSORS, _SafetensorsWeights), (TORCH, _TorchWeights)):
        index = folder / f"{name}.index.json"
        if (folder / name).exists():
            return opened([folder / name], {})
        if index.exists():
            file_of = _read_index(index)
            for tensor, file in sorted(file_of.items()):
                if not file.is_file():
                    raise UserError(
                        f"{file} is missing; {index.name} expects tensor {tensor} in it. "
                        "Was the folder copied whole?"
                    )
            return opened(sorted(set(file_of.values())), file_of)
    raise UserError(
        f"{folder} holds no weights; expected {SAFETENSORS}, {TORCH}, or shards of either with "
        f"their {SAFETENSORS}.index.json"
    )


def read_json(file: pathlib.Path) -> JsonObject:
    """An object from a JSON file.

    Raises:
      UserError: it cannot be read, or holds something else.
    """
    try:
        size = file.stat().st_size
        if size > _JSON_BYTES:
            raise UserError(
                f"{file} has {size:,} bytes, expected a JSON file of less than {_JSON_BYTES:,}; is "
                "it another file?"
            )
        values = json_lines.read_json(file)
    except OSError as error:
        raise DamagedError(file, error) from None
    except SourceError as error:
        raise DamagedError(file, str(error).removeprefix(f"{file}: ")) from None
    if not isinstance(values, dict):
        raise UserError(f"{file} holds a {type(values).__name__}; expected a JSON object")
    return values


def _read_index(index: pathlib.Path) -> dict[str, pathlib.Path]:
    """Which file of the folder holds a tensor."""
    file_of = read_json(index).get("weight_map")
    if not isinstance(file_of, dict) or not file_of:
        raise UserError(f"{index} has no 'weight_map', which names the file of a tensor")
    found = {}
    for tensor, file in file_of.items():
        # Beside the index, and nowhere else on this machine.
        if not isinstance(file, str) or pathlib.PurePath(file).name != file or "\0" in file:
            raise UserError(
                f"{index} says that tensor {tensor!r} lies in {file!r:.80}; expected the name of a "
                "file in the same folder"
            )
        found[tensor] = index.parent / file
    return found


def _check_files(file_of: Mapping[str, pathlib.Path], found: Mapping[str, pathlib.Path]) -> None:
    """What the index says of a tensor must be so."""
    for name, file in sorted(file_of.items()):
        if found.get(name) != file:
            raise UserError(f"{file} has no tensor {name}, which the index expects in it")


def _add_file(found: dict[str, pathlib.Path], name: str, file: pathlib.Path) -> None:
    if name in found:
        raise UserError(
            f"tensor {name} is in {found[name]} and in {file.name}, expected in one of them; were "
            "the files of two models mixed?"
        )
    found[name] = file


def _type_error(file: pathlib.Path, name: str, dtype: object) -> UserError:
    return UserError(
        f"{file}: tensor {name} is of type {dtype}, expected one of {', '.join(FLOAT_TYPES)}; save "
        "it in one of these"
    )


class _SafetensorsWeights(Weights):
    """A file, or shards, of safetensors."""

    def __init__(self, files: Sequence[pathlib.Path], file_of: Mapping[str, pathlib.Path]) -> None:
        self._files: dict[str, pathlib.Path] = {}
        self._handles: dict[tuple[pathlib.Path, str], safe_open] = {}
        self._dtypes: dict[str, str] = {}
        self.shapes = {}
        for file in files:
            handle = self._handle(file, "mmap")
            for name in handle.keys():  # noqa: SIM118 (it is no dictionary)
                part = handle.get_slice(name)
                _add_file(self._files, name, file)
                self._dtypes[name] = part.get_dtype()
                self.shapes[name] = tuple(part.get_shape())
        _check_files(file_of, self._files)

    def _handle(self, file: pathlib.Path, backend: str) -> safe_open:
        if (file, backend) not in self._handles:
            try:
                handle = safe_open(str(file), framework="numpy", backend=backend)
            except (SafetensorError, OSError) as error:
                cut = _first_cut_tensor(file)
                whole = f"; tensor {cut[0]} of shape {cut[1]} is not whole" if cut else ""
                raise DamagedError(file, f"{error}{whole}") from None
            self._handles[file, backend] = handle
        return self._handles[file, backend]

    def check_type(self, name: str) -> None:
        """See `Weights`."""
        if self._dtypes[name] not in BY_SAFETENSORS_NAME:
            raise _type_error(self._files[name], name, self._dtypes[name])

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """See `Weights`."""
        self.check_type(name)
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
            raise DamagedError(
                f"{self._files[name]}: tensor {name} of shape {shape}", error
            ) from None
        converted: np.ndarray = value.astype(np.float32, copy=False)
        return converted


def _first_cut_tensor(file: pathlib.Path) -> tuple[str, tuple[int, ...]] | None:
    """The first tensor that a truncated file does not hold whole, where its header is whole."""
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            size = os.path.getsize(file)
            header = opened.read(length) if length < min(size, _HEADER_BYTES) else b"{}"
        entries: Any = json_lines.parse_json(header, str(file))  # of any form: see below
        ends = {
            name: (int(entry["data_offsets"][1]), tuple(map(int, entry["shape"])))
            for name, entry in entries.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError, struct.error):
        return None
    for name, (end, shape) in sorted(ends.items(), key=lambda item: item[1][0]):
        if 8 + length + end > size:
            return name, shape
    return None


class _TorchWeights(Weights):
    """A file, or shards, that `torch.save` wrote; mapped, so that a tensor is read when asked."""

    def __init__(self, files: Sequence[pathlib.Path], file_of: Mapping[str, pathlib.Path]) -> None:
        try:
            import torch
        except ImportError:
            raise UserError(
                f"{files[0]} was written by torch, which is not installed: "
                f"install it (pip install torch), or take the {SAFETENSORS} of the same model"
            ) from None
        self._torch = torch
        self._tensors: dict[str, torch.Tensor] = {}
        self._files: dict[str, pathlib.Path] = {}
        for file in files:
            for name, tensor in self._load(file).items():
                _add_file(self._files, name, file)
                self._tensors[name] = tensor
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
        _check_files(file_of, self._files)

    def _load(self, file: pathlib.Path) -> Mapping[str, torch.Tensor]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the pickle's version and the like
                state = self._load_mapped(file)
        except pickle.UnpicklingError as error:
            # torch's first line is followed by advice how to run the file all the same.
            cause = next((line for line in str(error).splitlines() if "Unsupported" in line), "")
            raise UserError(
                f"{file} is damaged, or holds more than tensors, which is never run"
                f"{f' ({cause.strip()})' if cause else ''}; take the {SAFETENSORS} of the same "
                "model, or save its tensors alone"
            ) from None
        except Exception as error:  # of many kinds, from C++ too
            raise DamagedError(file, error) from None
        if not isinstance(state, Mapping) or not all(
            isinstance(name, str) and isinstance(tensor, self._torch.Tensor)
            for name, tensor in state.items()
        ):
            raise UserError(f"{file} holds no state of a model; expected tensors by name")
        return state

    def _load_mapped(self, file: pathlib.Path) -> object:
        # weights_only: a pickle may otherwise run whatever its author wrote.
        load = functools.partial(self._torch.load, file, map_location="cpu", weights_only=True)
        try:
            return load(mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            # Written before torch 1.6: no zip file, so read at once.
            return load()

    def check_type(self, name: str) -> None:
        """See `Weights`."""
        tensor = self._tensors[name]
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in FLOAT_TYPES or tensor.layout != self._torch.strided or tensor.is_meta:
            kind = "" if dtype not in FLOAT_TYPES else " and not stored as a plain array"
            raise _type_error(self._files[name], name, f"{dtype}{kind}")

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """See `Weights`."""
        self.check_type(name)
        tensor = self._tensors[name]
        part = tensor if index is None else tensor[index]
        return np.array(part.detach().to(self._torch.float32).numpy())


def divide_into_files(
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
    dtype: FloatType,
    value: Callable[[str], np.ndarray],
) -> None:
    """Writes one safetensors file, never holding more than one of its tensors.

    `safetensors` itself writes a file from tensors that are all in memory. The format is eight
    bytes of length, a JSON header, and the values (github.com/huggingface/safetensors, "Format").

    Args:
      file: where to.
      shapes: names and shapes, in the order in which `value` is asked for them.
      dtype: of what `value` gives.
      value: gives the tensor of a name.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers insists on it
    offset = 0
    for name, shape in shapes:
        size = math.prod(shape) * dtype.dtype.itemsize
        header[name] = {
            "dtype": dtype.safetensors,
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
            array = np.ascontiguousarray(value(name), dtype.dtype)
            assert array.shape == shape, (name, array.shape, shape)
            # Not `tofile`, which tells of a full disk only by a count.
            opened.write(array.reshape(-1).view(np.uint8).data)
