"""The one place that touches orbax's inner modules: parameters alone, array by array, and quiet.

Enters: the folder of a step. Leaves: its parameters, whole into shardings or as handles that read
slices; or such a folder, written from parameters that are read while they are written.

`Checkpointer` uses what orbax documents. What is here it does not: specs of tensorstore, contexts,
handlers of leaf types. Another version of orbax is tried by `tests/checkpoint` and
`tests/convert/test_native_files.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import math
import threading
import traceback
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, Protocol

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from absl import logging as absl_logging
from etils import epath
from orbax.checkpoint._src import asyncio_utils

from distill_sbs.checkpoint import checksums, steps
from distill_sbs.checkpoint.description import RunDescription
from distill_sbs.errors import UserError, describe_disk_error
from distill_sbs.model.parameters import Params, PyTree


def restore_parameters(step_folder: epath.Path, abstract_params: Params) -> Params:
    """Restores the parameters alone, straight into the shardings of `abstract_params`.

    Raises:
      DamagedError: the arrays are not there, or not as orbax left them.
      UserError: a parameter is missing or of another shape.
    """
    quiet_orbax()
    path = step_folder / steps.STATE
    with explain_damage(step_folder), ocp.PyTreeCheckpointer() as reader:
        stored = _parameters_of(step_folder, reader.metadata(path).item_metadata)
        _check_shapes(step_folder, stored, abstract_params)
        restored = reader.restore(
            path,
            args=ocp.args.PyTreeRestore(
                item={"params": abstract_params},
                restore_args={
                    "params": ocp.checkpoint_utils.construct_restore_args(abstract_params)
                },
                partial_restore=True,
            ),
        )
    params: Params = restored["params"]
    return params


@contextlib.contextmanager
def explain_damage(step_folder: epath.Path) -> Iterator[None]:
    """Turns whatever a reader of arrays raises into one line that names the step.

    Of a step with checksums, which were compared before, nothing is turned: it is no damage.

    Raises:
      DamagedError: what was raised inside is about what was read.
      OSError: as it was raised: no permission, a failing disk.
    """
    try:
        yield
    except UserError:
        raise
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        if checksums.has_checksums(step_folder):
            raise
        raise steps.make_error(step_folder, f"{error.filename or error} is missing") from None
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        if checksums.has_checksums(step_folder) or describe_disk_error(error):
            raise
        cause = str(error).split(" [source")[0] or type(error).__name__
        raise steps.make_error(step_folder, cause) from None


def _parameters_of(step_folder: epath.Path, metadata: Any) -> PyTree:
    # None where orbax could not read it, for whatever reason.
    if metadata is None or "params" not in metadata.tree:
        raise steps.make_error(step_folder, f"{steps.STATE}/ lists no parameters")
    return metadata.tree["params"]


def _check_shapes(step_folder: epath.Path, stored: PyTree, expected: Params) -> None:
    shapes = {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(
            stored, is_leaf=lambda node: hasattr(node, "shape")
        )
    }
    for path, leaf in jax.tree_util.tree_leaves_with_path(expected):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name not in shapes:
            raise UserError(f"{step_folder} has no parameter {name}; is it another student?")
        if shapes[name] != tuple(leaf.shape):
            raise UserError(
                f"{step_folder}: parameter {name} has shape {shapes[name]}, expected "
                f"{tuple(leaf.shape)}; is it a student of another size?"
            )


# ---------------------------------- tensor by tensor --------------------------


class _Storage(Protocol):
    """How orbax has laid an array out."""

    chunk_shape: tuple[int, ...]


class StoredParameter(Protocol):
    """Orbax's metadata of a parameter, as far as it is read here."""

    name: str
    directory: epath.Path
    shape: tuple[int, ...]
    dtype: np.dtype
    storage: _Storage


def list_stored(step_folder: epath.Path) -> dict[str, StoredParameter]:
    """Orbax's metadata of every parameter by its path: shape, dtype, chunks, and where it lies.

    Raises:
      DamagedError: the arrays are not there, or not as orbax left them.
    """
    quiet_orbax()
    with explain_damage(step_folder), ocp.PyTreeCheckpointer() as reader:
        metadata = reader.metadata(step_folder / steps.STATE).item_metadata
        stored = _parameters_of(step_folder, metadata)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(
            stored, is_leaf=lambda node: hasattr(node, "shape")
        )
    }


def open_parameter(
    stored: StoredParameter, context: tensorstore.Context
) -> tensorstore.TensorStore:
    """A handle of one of `list_stored`, which reads slices; nothing is read yet.

    Args:
      stored: orbax's metadata of the parameter.
      context: one of `make_reading_context`.
    """
    info = ocp.type_handlers.ParamInfo(
        name=stored.name,
        parent_dir=stored.directory,
        is_ocdbt_checkpoint=ocp.type_handlers.is_ocdbt_checkpoint(stored.directory),
    )
    spec = ocp.type_handlers.get_json_tspec_read(info, use_ocdbt=info.is_ocdbt_checkpoint)
    # A chunk that is not there would be read as zeros.
    spec["fill_missing_data_reads"] = False
    return tensorstore.open(tensorstore.Spec(spec), context=context, open=True).result()


def make_reading_context(kept_bytes: int) -> tensorstore.Context:
    """What handles share: decoded chunks of at most `kept_bytes` stay in memory."""
    cache = {"cache_pool": {"total_bytes_limit": kept_bytes}}
    return tensorstore.Context(
        tensorstore.Context.Spec(cache), ocp.type_handlers.get_ts_context(use_ocdbt=True)
    )


# ---------------------------------- writing -----------------------------------

# Of an array's chunk; slices of a stack lie in chunks of their own.
_CHUNK_BYTES = 2**25


@dataclasses.dataclass(frozen=True)
class UnreadArray:
    """An array that is read when it is written: as one, or slice by slice of its first axis.

    Attributes:
      shape: of the whole.
      readers: each reads a part, float32: the whole, or one slice a reader, in their order.
      is_stack: whether the parts are slices.
    """

    shape: tuple[int, ...]
    readers: tuple[Callable[[], np.ndarray], ...]
    is_stack: bool
    dtype: np.dtype[np.float32] = dataclasses.field(default_factory=lambda: np.dtype(np.float32))

    @property
    def size(self) -> int:
        """How many values there are."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """What they take."""
        return self.size * self.dtype.itemsize


class _UnreadHandler(ocp.type_handlers.NumpyHandler):
    """Lets orbax write `UnreadArray`s, of which only one part is in memory at a time."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        super().__init__()
        self._advance = advance
        self._stopped = threading.Event()
        self._writing: list[ocp.future.Future] = []
        # Orbax's own context keeps up to 100 MB of the database's nodes, more with each array, none
        # of which is read again.
        nodes = {"cache_pool#ocdbt": {"total_bytes_limit": 0}}
        self._context = tensorstore.Context(
            tensorstore.Context.Spec(nodes), ocp.type_handlers.get_ts_context(use_ocdbt=True)
        )

    async def serialize(
        self,
        values: Sequence[UnreadArray],
        infos: Sequence[ocp.type_handlers.ParamInfo],
        args: Sequence[ocp.SaveArgs] | None = None,
    ) -> Sequence[ocp.future.Future]:
        """See `orbax.checkpoint.type_handlers.TypeHandler`."""
        args = args or [ocp.SaveArgs()] * len(values)
        # In a thread of its own, which waits until orbax has made the folder.
        writing = ocp.future.CommitFutureAwaitingContractedSignals(
            self._write(values, infos, args), name="part_by_part"
        )
        self._writing.append(writing)
        return [writing]

    async def _write(
        self,
        values: Sequence[UnreadArray],
        infos: Sequence[ocp.type_handlers.ParamInfo],
        args: Sequence[ocp.SaveArgs],
    ) -> None:
        for value, info, arg in zip(values, infos, args, strict=True):
            await info.await_path_creation()
            spec = ocp.type_handlers.get_json_tspec_write(
                info,
                use_ocdbt=info.is_ocdbt_checkpoint,
                global_shape=value.shape,
                local_shape=value.shape,
                dtype=value.dtype,
                process_index=0,
                arg=arg,
            )
            array = await tensorstore.open(
                tensorstore.Spec(spec), create=True, open=True, context=self._context
            )
            for number, read in enumerate(value.readers):
                if self._stopped.is_set():
                    return
                part = array[number] if value.is_stack else array
                await part.write(read())
                self._advance(math.prod(part.shape))

    def stop(self) -> None:
        """Ends writing before the next part, and waits for that; the folder is to be removed."""
        self._stopped.set()
        for writing in self._writing:
            with contextlib.suppress(Exception):
                writing.result()


def write_step(
    folder: str,
    params: PyTree,
    description: RunDescription,
    advance: Callable[[int], None] | None = None,
) -> None:
    """Writes one step's folder that belongs to no run; it must not exist.

    What fails or is interrupted writes nothing more when this raises; `FOLDER.orbax-…` beside it is
    to be removed.

    Args:
      folder: local or gs://.
      params: a tree of `UnreadArray`s.
      description: what the checkpoint says of itself.
      advance: called with the values written since the last call.
    """
    quiet_orbax()
    handler = _UnreadHandler(advance or (lambda _: None))
    registry = ocp.type_handlers.create_type_handler_registry((UnreadArray, handler))
    save_args = jax.tree.map(
        # Orbax divides a stack by its first axis before any other.
        lambda array: ocp.SaveArgs(
            chunk_byte_size=min(_CHUNK_BYTES, array.nbytes // len(array.readers)),
            shard_axes=(0,) if array.is_stack else (),
        ),
        params,
    )
    # Finished in this order: the checksums are of all others.
    handlers = {
        steps.STATE: ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
        steps.PROGRESS: ocp.JsonCheckpointHandler(),
        steps.DESCRIPTION: ocp.JsonCheckpointHandler(),
        checksums.FOLDER: checksums.ChecksumHandler(),
    }
    items = {
        steps.STATE: ocp.args.PyTreeSave({"params": params}, save_args={"params": save_args}),
        steps.PROGRESS: ocp.args.JsonSave(steps.Progress({}).to_json()),
        steps.DESCRIPTION: ocp.args.JsonSave(description.to_json()),
        checksums.FOLDER: checksums.ChecksumSave(),
    }
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler(**handlers)) as writer:
            writer.save(steps.absolute(folder), args=ocp.args.Composite(**items))
    except BaseException:  # an interruption, too
        handler.stop()
        raise


# ---------------------------------- failures ----------------------------------

# How long what fails waits for what was begun beside it: a disk that is full says so at once.
_END_SECONDS = 60.0

_run_of_orbax = asyncio_utils.run_sync


async def _run_to_the_end(work: Coroutine[Any, Any, Any]) -> Any:
    """Does the work; where it fails, everything that it began has ended before that is told."""
    before = asyncio.all_tasks()
    try:
        return await work
    except Exception:
        while begun := asyncio.all_tasks() - before:
            ends = asyncio.gather(*begun, return_exceptions=True)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ends, _END_SECONDS)
        raise


def _run(work: Coroutine[Any, Any, Any], *args: Any, **options: Any) -> Any:
    return _run_of_orbax(_run_to_the_end(work), *args, **options)


# Orbax writes all arrays at once, and closes the loop in which it waits for them as soon as one has
# failed. On a full disk the others fail a moment later, and tensorstore prints for each, from C++,
# that its loop is closed; which ones is a matter of luck. One that does not fail goes on writing
# into a folder that its owner may be about to remove.
asyncio_utils.run_sync = _run


class _NotOrbax(logging.Filter):
    """Drops what orbax logs: what it logs as an error, traceback and all, it raises as well."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        frames = traceback.walk_tb(error.__traceback__) if error is not None else ()
        files = [record.pathname, *(frame.f_code.co_filename for frame, _ in frames)]
        return not any("/orbax/" in file for file in files)


_NOT_ORBAX = _NotOrbax()


def quiet_orbax() -> None:
    """Orbax reports every file at INFO, and every failure twice; what it raises comes through."""
    # At the loggers: absl's handler is not among those of a program that never ran `app.run`.
    # Futures that nobody asks, once one of them has failed, are logged by asyncio.
    for logger in (absl_logging.get_absl_logger(), logging.getLogger("asyncio")):
        logger.addFilter(_NOT_ORBAX)
    logging.getLogger("orbax").setLevel(logging.CRITICAL)
