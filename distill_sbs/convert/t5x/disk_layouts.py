"""The tensors of a T5X checkpoint on disk, by T5X's own names, in every layout that T5X wrote.

Enters: a path, local or gs://, of a `checkpoint_N` folder or of the MODEL_DIR around it.
Leaves: for each tensor of the model a handle that reads slices; and, for a writer, zarr arrays and
the file that lists them.

The older layout (T5X's `Checkpointer`): a msgpack file `checkpoint` holds small arrays and, for
each of the others, the specification of a zarr array in a folder beside it. The newer one (Orbax):
`state/` holds zarr arrays, in one OCDBT database or in a folder each; `_METADATA` names them, and
in releases of 2022 and 2023 a msgpack file did, as 'PLACEHOLDER://name'.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorstore
from etils import epath
from flax import serialization

from distill_sbs import json_lines
from distill_sbs.dtypes import FLOAT_TYPES
from distill_sbs.errors import DamagedError, UserError

MODEL = "target"  # T5X's name for the model's parameters, beside 'state', the optimizer's
LISTING = "checkpoint"
_STATE, _DATABASE, _METADATA = "state", "manifest.ocdbt", "_METADATA"
_STEP = re.compile(r"checkpoint_(\d+)")
_PLACEHOLDER = "PLACEHOLDER://"
_QUOTED = re.compile(r" \[(?:tensorstore_spec|source locations)=")
_NAME_LETTERS = 500  # no tensor's has 100
_CHUNK_BYTES = 64 * 2**20
_COMPRESSOR = {"id": "zstd", "level": 1}


# A tensor that is in memory, or on disk; TensorStore's specification of one.
Handle = np.ndarray | tensorstore.TensorStore
_Spec = dict[str, object]


def make_absolute(path: str) -> epath.Path:
    """As `epath.Path`, local paths absolute, which a kvstore's must be."""
    return epath.Path(path) if "://" in path else epath.Path(path).absolute()


def find_checkpoint(location: str) -> epath.Path:
    """The folder of one step: `location` itself, or its newest `checkpoint_N`.

    Raises:
      UserError: there is no checkpoint of T5X, or one of Mesh TensorFlow.
    """
    folder = make_absolute(location)
    if folder.name == LISTING and folder.is_file():
        folder = folder.parent
    if any((folder / name).exists() for name in (LISTING, _STATE, _DATABASE, _METADATA)):
        return folder
    if folder.is_dir():
        steps = {
            int(match[1]): child
            for child in folder.iterdir()
            if (match := _STEP.fullmatch(child.name))
        }
        if steps:
            return steps[max(steps)]
    if folder.parent.joinpath(f"{folder.name}.index").exists():
        raise _refuse_mesh_tensorflow(folder)
    raise UserError(
        f"{location}: no checkpoint of T5X there; expected a folder checkpoint_N with a file "
        f"{LISTING!r} or a folder {_STATE!r} in it, or a MODEL_DIR that holds such folders"
    )


def open_tensors(folder: epath.Path) -> dict[str, Handle]:
    """Handles of all the model's tensors, 'encoder/layers_0/mlp/wo/kernel' → array.

    Returns:
      NumPy arrays and TensorStores, both with `shape`, and indexed by slices and integers; a
      TensorStore reads only what was asked for, by `.read().result()`.

    Raises:
      UserError: a file is missing, truncated, or of another program; or a tensor is of a kind
        that no T5 has.
    """
    state = folder / _STATE if (folder / _STATE).is_dir() else folder
    if (state / LISTING).exists():
        leaves = _flatten(state / LISTING, _read_listing(state / LISTING))
    else:
        if (state / _DATABASE).exists():
            names = _database_names(state)
        elif (state / _METADATA).exists():
            names = _described_names(state / _METADATA)
        else:
            raise UserError(
                f"{state} has none of the files {LISTING}, {_DATABASE} and {_METADATA}, one of "
                "which lists a checkpoint's tensors; it was not copied whole, or never finished"
            )
        leaves = {name.removeprefix(f"{MODEL}.").replace(".", "/"): name for name in names}
    if not leaves:
        raise UserError(
            f"{folder} has no tensors {MODEL!r}, as T5X calls the model's; is it a checkpoint of "
            "another program, or one that was never finished?"
        )
    # All at once: each is a request of its own where the checkpoint lies far away.
    opening = {
        path: leaf if isinstance(leaf, np.ndarray) else tensorstore.open(_read_spec(state, leaf))
        for path, leaf in leaves.items()
    }
    handles: dict[str, Handle] = {}
    for path, opened in opening.items():
        if isinstance(opened, np.ndarray):
            handles[path] = opened
        else:
            try:
                stored = opened.result()
            except Exception as error:
                raise DamagedError(f"{folder}: tensor {path}", shorten_error(error)) from error
            _check_chunks(f"{folder}: tensor {path}", stored)
            handles[path] = stored
        dtype = handles[path].dtype.name
        if dtype not in FLOAT_TYPES:
            raise UserError(
                f"{folder}: tensor {path} is of type {dtype}, expected one of "
                f"{', '.join(FLOAT_TYPES)}; save it again with a current T5X"
            )
    return handles


def _check_chunks(what: str, array: tensorstore.TensorStore) -> None:
    """A chunk is decoded whole: one that is far larger than its array is no file of T5X's."""
    chunk = tuple(size or 1 for size in array.chunk_layout.read_chunk.shape or ())
    if math.prod(chunk) > max(2 * math.prod(array.shape), 2**26):
        raise DamagedError(what, f"chunks of shape {chunk} of an array of shape {array.shape}")


def shorten_error(error: Exception) -> str:
    """TensorStore's message on one line, without the specification that it goes on to quote."""
    return " ".join(_QUOTED.split(str(error))[0].split())


def _read_listing(file: epath.Path) -> Mapping[str, object]:
    """The model's part of the msgpack file: a tree of arrays, zarr specifications, placeholders."""
    content = file.read_bytes()
    if content.startswith(b"model_checkpoint_path"):
        raise _refuse_mesh_tensorflow(file.parent)
    try:
        tree = serialization.msgpack_restore(content)
    except Exception as error:
        raise DamagedError(file, shorten_error(error)) from error
    # Version 0 had no level above; later ones state it and hold the tree as 'optimizer'.
    tree = tree.get("optimizer", tree) if isinstance(tree, dict) else {}
    model = tree.get(MODEL, {}) if isinstance(tree, dict) else {}
    return model if isinstance(model, dict) else {}


def _flatten(file: epath.Path, model: Mapping[str, object]) -> dict[str, np.ndarray | str]:
    """Path → array, or the name of its folder, of every leaf of the model's part.

    Raises:
      UserError: names that are no text, or of a folder that is not the checkpoint's.
    """
    leaves: dict[str, np.ndarray | str] = {}
    pending: list[tuple[str, object]] = [("", model)]
    while pending:
        path, node = pending.pop()
        if len(path) > _NAME_LETTERS:
            cause = f"the name {path[:40]}… has more than {_NAME_LETTERS} letters"
            raise DamagedError(file, cause)
        folder = None
        if isinstance(node, dict) and node.keys() >= {"driver", "kvstore"}:
            # TensorStore has kept the path at either level.
            inside = node["kvstore"].get("path") if isinstance(node["kvstore"], dict) else None
            folder = str(inside or node.get("path", "")).strip("/")
        elif isinstance(node, str) and node.startswith(_PLACEHOLDER):
            folder = node.removeprefix(_PLACEHOLDER)
        if folder is not None:
            folder = folder.rpartition("/")[2]  # beside the listing, wherever it was written
            if folder in ("", ".", ".."):
                raise DamagedError(f"{file}: tensor {path}", "it names no folder")
            leaves[path] = folder
        elif isinstance(node, dict):
            for name, child in reversed(node.items()):
                if not isinstance(name, str):
                    raise DamagedError(f"{file}: {path}", f"a name that is no text, {name!r:.40}")
                pending.append((f"{path}/{name}" if path else name, child))
        else:
            leaves[path] = np.asarray(node)
    return leaves


def _database_names(state: epath.Path) -> list[str]:
    model = tensorstore.KvStore.KeyRange(f"{MODEL}.", f"{MODEL}/")  # '/' follows '.'
    try:
        database = tensorstore.KvStore.open(_kvstore(state, None)).result()
        keys = [key.decode() for key in database.list(model).result()]
    except Exception as error:
        raise DamagedError(state / _DATABASE, shorten_error(error)) from error
    return [key.removesuffix("/.zarray") for key in keys if key.endswith("/.zarray")]


def _described_names(file: epath.Path) -> list[str]:
    try:
        content: Any = json_lines.read_json(file)  # of any form: see below
        entries = content["tree_metadata"].values()
        names = [".".join(str(key["key"]) for key in each["key_metadata"]) for each in entries]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(file, repr(error)) from error
    return [name for name in names if name.startswith(f"{MODEL}.")]


def _refuse_mesh_tensorflow(path: epath.Path) -> UserError:
    return UserError(
        f"{path} is a checkpoint of Mesh TensorFlow, expected one of T5X; convert it with T5X's "
        "t5x/scripts/convert_tf_checkpoint.py, or take the converted ones of "
        "gs://t5-data/pretrained_models/t5x/"
    )


def _kvstore(state: epath.Path, name: str | None) -> _Spec:
    """Where the files of one array lie; of the whole database where `name` is None."""
    base = _folder_kvstore(state)
    if name is None or (state / _DATABASE).exists():
        return {"driver": "ocdbt", "base": base, "path": f"{name}/" if name else ""}
    return base | {"path": f"{base['path']}{name}/"}


def _folder_kvstore(folder: epath.Path) -> _Spec:
    path = f"{folder}".rstrip("/") + "/"
    if path.startswith("gs://"):
        bucket, _, inside = path.removeprefix("gs://").partition("/")
        return {"driver": "gcs", "bucket": bucket, "path": inside}
    return {"driver": "file", "path": path}


def _read_spec(state: epath.Path, name: str) -> _Spec:
    return {
        "driver": "zarr",
        "kvstore": _kvstore(state, name),
        "open": True,
        # A chunk that is not there would be read as zeros. T5X leaves out chunks of nothing but
        # zeros, but no weights of a T5 are that.
        "fill_missing_data_reads": False,
    }


def create_array(
    folder: epath.Path, tensor: str, shape: tuple[int, ...], layers_axis: int | None
) -> tuple[tensorstore.TensorStore, _Spec]:
    """Creates a float32 zarr array as T5X's `Checkpointer` does.

    Args:
      folder: the checkpoint's.
      tensor: T5X's name of it.
      shape: the tensor's.
      layers_axis: the axis along which layers will be written one by one; no two share a chunk.

    Returns:
      A TensorStore to write to, and what the file `checkpoint` says of it.
    """
    name = f"{MODEL}.{tensor.replace('/', '.')}"
    chunks = [1 if axis == layers_axis else size for axis, size in enumerate(shape)]
    row_bytes = 4 * math.prod(chunks[1:])
    chunks[0] = min(chunks[0], max(1, _CHUNK_BYTES // row_bytes))
    metadata = {"shape": list(shape), "chunks": chunks, "compressor": _COMPRESSOR}
    spec = {"driver": "zarr", "dtype": "float32", "metadata": metadata}
    settings = {
        "create": True,
        "delete_existing": True,
        "store_data_equal_to_fill_value": True,  # see _read_spec
    }
    store = tensorstore.open({**spec, **settings, "kvstore": _kvstore(folder, name)}).result()
    # T5X takes a path there as relative to the checkpoint, and 'file' for wherever that lies.
    return store, {**spec, "kvstore": {"driver": "file", "path": f"{name}/"}}


def write_listing(folder: epath.Path, tree: Mapping[str, object]) -> None:
    """Writes the file `checkpoint`; it comes last, for it says that the arrays are there."""
    # Version 3, since 2021: bfloat16 values are stored as such.
    content = serialization.msgpack_serialize({"version": 3, "optimizer": dict(tree)})
    (folder / LISTING).write_bytes(content)
