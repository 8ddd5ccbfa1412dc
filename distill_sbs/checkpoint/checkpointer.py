"""Checkpoints that describe themselves, written while training goes on.

Enters: the train state, the progress of the run (data position, evaluation history) and the
run's description (student, vocabulary, prefixes, mixture). Leaves: `MODEL_DIR/checkpoints/STEP/`
with all three, complete or absent: orbax renames a finished folder into place.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import logging
from collections.abc import Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
import tensorstore
from absl import logging as absl_logging
from etils import epath
from orbax.checkpoint import checkpoint_managers

from distill_sbs.checkpoint.description import RunDescription
from distill_sbs.errors import UserError

CHECKPOINTS_FOLDER = "checkpoints"
_STATE, _PROGRESS, _DESCRIPTION = "state", "progress", "description"


@dataclasses.dataclass
class Progress:
    """What a run knows besides its arrays.

    Attributes:
      position: sequences drawn so far, by task (`data.batches.input_pipeline.Position`).
      evaluations: [{"step": …, "accuracy": …}, …] on validation, in order.
      best_step: the evaluated step of highest accuracy, the earliest of equals; None before one.
    """

    position: dict[str, int]
    evaluations: list[dict[str, float]] = dataclasses.field(default_factory=list)
    best_step: int | None = None

    def add_evaluation(self, step: int, accuracy: float) -> None:
        """Notes an evaluation and moves `best_step` where the accuracy is higher."""
        best = max((each["accuracy"] for each in self.evaluations), default=-1.0)
        self.evaluations.append({"step": step, "accuracy": accuracy})
        if accuracy > best:
            self.best_step = step


class _NewestAndBest(checkpoint_managers.PreservationPolicy):
    """Keeps the newest `keep` checkpoints and the best one."""

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self.best_step: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        oldest_kept = len(checkpoints) - self.keep
        return [
            number >= oldest_kept or each.step == self.best_step
            for number, each in enumerate(checkpoints)
        ]


class Checkpointer:
    """Writes and reads the checkpoints of one run, asynchronously.

    Args:
      model_dir: the run's folder, local or gs://.
      keep: how many of the newest checkpoints stay; the best one stays besides.
    """

    def __init__(self, model_dir: str, keep: int = 2) -> None:
        if keep < 1:
            raise UserError(f"KEEP_CHECKPOINTS={keep}: expected at least 1")
        _check_bucket_package(model_dir)
        _quiet_orbax()
        self._policy = _NewestAndBest(keep)
        self._manager = ocp.CheckpointManager(
            _absolute(model_dir) / CHECKPOINTS_FOLDER,
            item_names=(_STATE, _PROGRESS, _DESCRIPTION),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._policy,
                cleanup_tmp_directories=True,
                create=True,
            ),
        )

    def save(self, step: int, state: Any, progress: Progress, description: RunDescription) -> None:
        """Starts writing `step`; returns as soon as the arrays have left the devices."""
        self._policy.best_step = progress.best_step
        self._manager.save(
            step,
            args=ocp.args.Composite(
                **{
                    _STATE: ocp.args.StandardSave(state),
                    _PROGRESS: ocp.args.JsonSave(dataclasses.asdict(progress)),
                    _DESCRIPTION: ocp.args.JsonSave(description.to_json()),
                }
            ),
            force=True,
        )

    def latest_step(self) -> int | None:
        """The newest complete checkpoint's step, or None."""
        return self._manager.latest_step()

    def restore(self, step: int, abstract_state: Any) -> tuple[Any, Progress]:
        """Restores the state of `step` straight into the shardings of `abstract_state`."""
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                **{
                    _STATE: ocp.args.StandardRestore(abstract_state),
                    _PROGRESS: ocp.args.JsonRestore(),
                }
            ),
        )
        progress = Progress(**restored[_PROGRESS])
        self._policy.best_step = progress.best_step
        return restored[_STATE], progress

    def wait(self) -> None:
        """Waits until everything that was saved is on disk; raises what writing raised."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and lets go of the folder."""
        self._manager.close()


def _check_bucket_package(path: str) -> None:
    """Orbax asks a bucket for its kind with a library that it does not depend on itself."""
    if not path.startswith("gs://"):
        return
    try:
        importlib.import_module("google.cloud.storage")
    except ImportError as error:
        raise UserError(
            f"{path}: checkpoints in a bucket need the package google-cloud-storage; install it:"
            " pip install 'distill_sbs[gcs]'"
        ) from error


def _absolute(path: str) -> epath.Path:
    """Orbax refuses relative paths; gs:// paths are absolute as they are."""
    return epath.Path(path) if "://" in path else epath.Path(path).absolute()


def has_checkpoint(model_dir: str) -> bool:
    """Whether a run has saved a step; nothing is made or removed to find out."""
    folder = _absolute(model_dir) / CHECKPOINTS_FOLDER
    return folder.exists() and bool(ocp.utils.checkpoint_steps(folder))


def find_step_folder(checkpoint: str) -> epath.Path:
    """The folder of one step, from a MODEL_DIR, its `checkpoints/`, or the step's folder itself.

    A MODEL_DIR whose run has finished gives the best step, as `results.json` names it; else the
    newest.

    Raises:
      UserError: there is no checkpoint.
    """
    folder = _absolute(checkpoint)
    if (folder / _DESCRIPTION).exists():
        return folder
    steps_folder = folder / CHECKPOINTS_FOLDER if (folder / CHECKPOINTS_FOLDER).exists() else folder
    steps = (
        sorted(
            (int(child.name) for child in steps_folder.iterdir() if child.name.isdigit()),
        )
        if steps_folder.exists()
        else []
    )
    if not steps:
        raise UserError(
            f"{checkpoint}: no checkpoint of distill_sbs there; give a run's MODEL_DIR, its "
            f"{CHECKPOINTS_FOLDER}/ folder, or one step's folder in it (python -m "
            "distill_sbs.convert makes one of a checkpoint of HuggingFace or T5X)"
        )
    newest = steps_folder / str(steps[-1])
    best = Progress(**_read_json(newest / _PROGRESS)).best_step
    return steps_folder / str(best) if best in steps else newest


def _read_json(folder: epath.Path) -> dict[str, Any]:
    _quiet_orbax()
    try:
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
            return dict(reader.restore(folder))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} cannot be read ({error}); the checkpoint is truncated or damaged, or was "
            "not copied whole: copy it again"
        ) from None


def read_description(step_folder: epath.Path) -> RunDescription:
    """What a checkpoint says of itself.

    Raises:
      UserError: it was written in a format that this version does not know.
    """
    return RunDescription.from_json(_read_json(step_folder / _DESCRIPTION), str(step_folder))


def restore_parameters(step_folder: epath.Path, abstract_params: Any) -> Any:
    """Restores the parameters alone, straight into the shardings of `abstract_params`.

    Raises:
      UserError: a parameter is missing or of another shape.
    """
    path = step_folder / _STATE
    with ocp.PyTreeCheckpointer() as reader:
        stored = reader.metadata(path).item_metadata.tree["params"]
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
    return restored["params"]


def _check_shapes(step_folder: epath.Path, stored: Any, expected: Any) -> None:
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


def stored_parameters(step_folder: epath.Path) -> dict[str, Any]:
    """Orbax's metadata of every parameter by its path: shape, dtype, chunks, and where it lies.

    Raises:
      UserError: the arrays are not there, or not as orbax left them.
    """
    _quiet_orbax()
    with ocp.PyTreeCheckpointer() as reader:
        # None where orbax could not read it, for whatever reason.
        metadata = reader.metadata(step_folder / _STATE).item_metadata
    if metadata is None or "params" not in metadata.tree:
        raise UserError(
            f"{step_folder / _STATE} lists no parameters that orbax can read; the checkpoint is "
            "truncated or damaged, or was not copied whole: copy it again"
        )
    stored = metadata.tree["params"]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(
            stored, is_leaf=lambda node: hasattr(node, "shape")
        )
    }


def open_parameter(stored: Any, context: tensorstore.Context) -> tensorstore.TensorStore:
    """A handle of one of `stored_parameters`, which reads slices; nothing is read yet.

    Args:
      stored: orbax's metadata of the parameter.
      context: one of `reading_context`.
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


def reading_context(kept_bytes: int) -> tensorstore.Context:
    """What handles share: decoded chunks of at most `kept_bytes` stay in memory."""
    cache = {"cache_pool": {"total_bytes_limit": kept_bytes}}
    return tensorstore.Context(
        tensorstore.Context.Spec(cache), ocp.type_handlers.get_ts_context(use_ocdbt=True)
    )


def writing_context() -> tensorstore.Context:
    """What handles share that write array after array, none of which is read again.

    Orbax's own keeps up to 100 MB of the database's nodes, more with each array.
    """
    nodes = {"cache_pool#ocdbt": {"total_bytes_limit": 0}}
    return tensorstore.Context(
        tensorstore.Context.Spec(nodes), ocp.type_handlers.get_ts_context(use_ocdbt=True)
    )


def write_step(
    folder: str,
    params: Any,
    save_args: Any,
    leaf: tuple[type, ocp.type_handlers.TypeHandler],
    description: RunDescription,
) -> None:
    """Writes one step's folder that belongs to no run; it must not exist.

    Args:
      folder: local or gs://.
      params: a tree of leaves of one type.
      save_args: the same tree of `ocp.SaveArgs`.
      leaf: that type, and what writes it.
      description: what the checkpoint says of itself.
    """
    _quiet_orbax()
    registry = ocp.type_handlers.create_type_handler_registry(leaf)
    handlers = {
        _STATE: ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
        _PROGRESS: ocp.JsonCheckpointHandler(),
        _DESCRIPTION: ocp.JsonCheckpointHandler(),
    }
    items = {
        _STATE: ocp.args.PyTreeSave({"params": params}, save_args={"params": save_args}),
        _PROGRESS: ocp.args.JsonSave(dataclasses.asdict(Progress({}))),
        _DESCRIPTION: ocp.args.JsonSave(description.to_json()),
    }
    # Its threads log a traceback of what is raised here all the same.
    verbosity = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.FATAL)
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler(**handlers)) as writer:
            writer.save(_absolute(folder), args=ocp.args.Composite(**items))
    finally:
        absl_logging.set_verbosity(verbosity)


def _quiet_orbax() -> None:
    """Orbax and absl report every file at INFO; errors still come through."""
    with contextlib.suppress(ImportError):
        from absl import logging as absl_logging

        absl_logging.set_verbosity(absl_logging.ERROR)
    logging.getLogger("orbax").setLevel(logging.ERROR)
