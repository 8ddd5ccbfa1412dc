"""A run's checkpoints, written while training goes on.

Enters: the train state, the progress of the run (data position, evaluation history) and the
run's description (student, vocabulary, prefixes, mixture). Leaves: `MODEL_DIR/checkpoints/STEP/`
with all three and their checksums, complete or absent: orbax renames a finished folder into place
(in a bucket it marks it as finished). What is in such a folder is told by `steps`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from distill_sbs.checkpoint import checksums, steps
from distill_sbs.checkpoint.description import RunDescription
from distill_sbs.checkpoint.orbax_adapter import explain_damage, quiet_orbax
from distill_sbs.errors import UserError

if TYPE_CHECKING:
    from distill_sbs.training.train_step import TrainState


class _Info(Protocol):
    """What orbax says of a checkpoint that it may keep."""

    @property
    def step(self) -> int: ...


class _NewestAndBest(checkpoint_managers.PreservationPolicy):
    """Keeps the newest `keep` checkpoints and the best one."""

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self.best_step: int | None = None

    def should_preserve(self, checkpoints: Sequence[_Info], *, context: object) -> Sequence[bool]:
        oldest_kept = len(checkpoints) - self.keep
        return [
            number >= oldest_kept or each.step == self.best_step
            for number, each in enumerate(checkpoints)
        ]


class Checkpointer:
    """Writes the checkpoints of one run asynchronously, and restores from them.

    Args:
      model_dir: the run's folder, local or gs://; made where it is missing. What a killed process
        left unfinished there is removed.
      keep: how many of the newest checkpoints stay; the best one stays besides.

    Raises:
      UserError: `keep` is below 1; a bucket's package is missing.
    """

    def __init__(self, model_dir: str, keep: int = 2) -> None:
        if keep < 1:
            raise UserError(f"KEEP_CHECKPOINTS={keep}: expected at least 1")
        _check_bucket_package(model_dir)
        quiet_orbax()
        self._folder = steps.absolute(model_dir) / steps.CHECKPOINTS_FOLDER
        self._policy = _NewestAndBest(keep)
        self._manager = ocp.CheckpointManager(
            self._folder,
            item_names=(steps.STATE, steps.PROGRESS, steps.DESCRIPTION, checksums.FOLDER),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._policy,
                cleanup_tmp_directories=True,
                create=True,
                # Its own metadata of each step, which nothing here needs, may be damaged.
                lightweight_initialize=True,
            ),
        )

    def save(
        self, step: int, state: TrainState, progress: steps.Progress, description: RunDescription
    ) -> None:
        """Starts writing `step`; returns as soon as the arrays have left the devices.

        Raises:
          Exception: what writing the step before raised, such as that the disk is full.
        """
        self._policy.best_step = progress.best_step
        self._manager.save(
            step,
            args=ocp.args.Composite(
                **{
                    steps.STATE: ocp.args.StandardSave(state),
                    steps.PROGRESS: ocp.args.JsonSave(progress.to_json()),
                    steps.DESCRIPTION: ocp.args.JsonSave(description.to_json()),
                    checksums.FOLDER: checksums.ChecksumSave(),
                }
            ),
            force=True,
        )

    def latest_step(self) -> int | None:
        """The newest complete checkpoint's step, or None; whether it is whole is not looked at."""
        latest: int | None = self._manager.latest_step()
        return latest

    def restore(self, step: int, abstract_state: TrainState) -> tuple[TrainState, steps.Progress]:
        """Restores the state of `step` straight into the shardings of `abstract_state`.

        Its checksums are not compared here (`steps.check_step`, `steps.find_newest_whole`).

        Raises:
          DamagedError: it cannot be read.
        """
        folder = self._folder / str(step)
        progress = steps.read_progress(folder)
        with explain_damage(folder), ocp.StandardCheckpointer() as reader:
            state = reader.restore(folder / steps.STATE, abstract_state)
        self._policy.best_step = progress.best_step
        return state, progress

    def wait(self) -> None:
        """Waits until everything that was saved is on disk; raises what writing raised."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and lets go of the folder; raises what writing raised."""
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
