"""Which steps a run has saved, what is in them, and whether they are whole.

Enters: a MODEL_DIR, its `checkpoints/`, or the folder of one step, local or gs://. Leaves: the
folder of a step, its progress and its description; or one line that says what is wrong with it.

A step's folder holds `state/` (orbax's arrays), `progress/` and `description/` (JSON), and
`verification/` (`checksums`). It appears under its number when it is complete. A step that was
damaged later is never used: `train` moves it to `MODEL_DIR/damaged/`, says so and goes on from the
newest whole one; everything else names it and stops.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping

import orbax.checkpoint as ocp
from etils import epath

from distill_sbs import json_lines
from distill_sbs.checkpoint import checksums
from distill_sbs.checkpoint.description import RunDescription
from distill_sbs.cli import terminal
from distill_sbs.errors import DamagedError, SourceError, UserError
from distill_sbs.json_lines import JsonObject, JsonValue

CHECKPOINTS_FOLDER = "checkpoints"
DAMAGED_FOLDER = "damaged"
STATE, PROGRESS, DESCRIPTION = "state", "progress", "description"

# Orbax's file in the folder of a JSON item.
_JSON_FILE = "metadata"


@dataclasses.dataclass
class Progress:
    """What a run knows besides its arrays.

    Attributes:
      position: how often was drawn so far, by task (`data.batches.sampler.Position`).
      evaluations: [{"step": …, "accuracy": …}, …] on validation, in order; of a task whose answers
        are not scored `loss` and `perplexity` in the place of `accuracy`.
      best_step: the evaluated step of highest accuracy, or of lowest loss, the earliest of equals,
        of those that may be it; None before one.
      allocation: what `allocate` keeps besides; None of other runs.
    """

    position: dict[str, int]
    evaluations: list[dict[str, float]] = dataclasses.field(default_factory=list)
    best_step: int | None = None
    allocation: JsonObject | None = None

    def add_evaluation(
        self, step: int, values: Mapping[str, float], first: int = 1, last: int | None = None
    ) -> None:
        """Notes an evaluation and moves `best_step` where it is better.

        The first value decides: a `loss` is better lower, everything else (`accuracy`) higher. So a
        perplexity that stands beside an accuracy never chooses.

        Args:
          step: of the evaluation.
          values: what it found.
          first: earlier steps are never the best.
          last: later steps are never the best; None: all may be.
        """

        def may_be_best(number: float) -> bool:
            return first <= number and (last is None or number <= last)

        others = (_rank(each) for each in self.evaluations if may_be_best(each["step"]))
        best = max(others, default=-math.inf)
        self.evaluations.append({"step": step, **values})
        if may_be_best(step) and _rank(self.evaluations[-1]) > best:
            self.best_step = step

    def values_at(self, step: int) -> dict[str, float] | None:
        """What an evaluation found, without its step; None where there was none."""
        for each in self.evaluations:
            if each["step"] == step:
                return {name: value for name, value in each.items() if name != "step"}
        return None

    def to_json(self) -> dict[str, object]:
        """What is saved: the attributes, and that checksums lie beside them."""
        saved = {**dataclasses.asdict(self), "has_checksums": True}
        if self.allocation is None:
            del saved["allocation"]
        return saved

    @classmethod
    def from_json(cls, saved: JsonObject) -> Progress:
        """The progress that `to_json` gave.

        Raises:
          ValueError: it is not of that form.
        """
        position, evaluations, best_step = map(saved.get, ("position", "evaluations", "best_step"))
        if isinstance(position, dict) and isinstance(evaluations, list):
            counts = {task: count for task, count in position.items() if isinstance(count, int)}
            points = [point for each in evaluations if (point := _read_point(each)) is not None]
            is_whole = len(counts) == len(position) and len(points) == len(evaluations)
            allocation = saved.get("allocation")
            if (
                is_whole
                and isinstance(best_step, int | None)
                and isinstance(allocation, dict | None)
            ):
                return cls(counts, points, best_step, allocation)
        raise ValueError("it does not say position, evaluations and best step")


def _read_point(value: JsonValue) -> dict[str, float] | None:
    """An evaluation that was saved; None where it is none."""
    if not isinstance(value, dict):
        return None
    point = {name: each for name, each in value.items() if isinstance(each, int | float)}
    is_whole = len(point) == len(value) > 1 and isinstance(point.get("step"), int)
    return point if is_whole else None


def _rank(evaluation: Mapping[str, float]) -> float:
    """The higher the better."""
    name, value = next((name, value) for name, value in evaluation.items() if name != "step")
    return -value if name == "loss" else value


# ---------------------------------- which steps there are --------------------


def absolute(path: str) -> epath.Path:
    """The path as orbax wants it: not relative; gs:// paths are absolute as they are."""
    return epath.Path(path) if "://" in path else epath.Path(path).absolute()


def list_steps(model_dir: str) -> list[int]:
    """The steps that a run has saved, in order; nothing is made or removed to find out."""
    return _steps_in(absolute(model_dir) / CHECKPOINTS_FOLDER)


def step_folder(model_dir: str, step: int) -> epath.Path:
    """Where a run keeps one of its steps."""
    return absolute(model_dir) / CHECKPOINTS_FOLDER / str(step)


def _steps_in(folder: epath.Path) -> list[int]:
    if not folder.is_dir():
        return []
    return sorted(
        int(child.name)
        for child in folder.iterdir()
        if re.fullmatch(r"0|[1-9]\d*", child.name)
        # In a bucket a folder has its final name while it is written.
        and ("://" not in str(folder) or ocp.utils.is_checkpoint_finalized(child))
    )


def find_step_folder(checkpoint: str) -> epath.Path:
    """The folder of one step, from a MODEL_DIR, its `checkpoints/`, or the step's folder itself.

    A MODEL_DIR or `checkpoints/` gives the best step, as the newest step names it, or the newest
    where nothing was evaluated yet or the best is no longer there.

    Raises:
      DamagedError: the newest step is damaged.
      UserError: there is no checkpoint.
    """
    folder = absolute(checkpoint)
    if any((folder / item).exists() for item in (STATE, PROGRESS, DESCRIPTION)):
        return folder
    steps_folder = folder / CHECKPOINTS_FOLDER if (folder / CHECKPOINTS_FOLDER).exists() else folder
    steps = _steps_in(steps_folder)
    if not steps:
        raise UserError(
            f"{checkpoint}: no checkpoint of distill_sbs there; give a run's MODEL_DIR, its "
            f"{CHECKPOINTS_FOLDER}/ folder, or one step's folder in it (python -m "
            "distill_sbs.convert makes one of a checkpoint of HuggingFace or T5X)"
        )
    newest = steps_folder / str(steps[-1])
    best = read_progress(newest).best_step
    return steps_folder / str(best) if best in steps else newest


# ---------------------------------- what is in a step ------------------------


def read_progress(step_folder: epath.Path) -> Progress:
    """The progress that was saved with a step.

    Raises:
      DamagedError: it is not as it was written.
    """
    return _read_item(step_folder, PROGRESS)[1]


def read_description(step_folder: epath.Path) -> RunDescription:
    """What a step says of itself.

    Raises:
      DamagedError: it is not as it was written.
      UserError: it was written in a format that this version does not know.
    """
    description, _ = _read_item(step_folder, DESCRIPTION)
    try:
        return RunDescription.from_json(description, str(step_folder))
    except DamagedError as error:
        raise make_error(step_folder, error.cause) from None


def _read_item(step_folder: epath.Path, item: str) -> tuple[JsonObject, Progress]:
    """The JSON of an item, and the step's progress, which says whether there are checksums."""
    values = []
    for name in (PROGRESS, item):
        file = step_folder / name / _JSON_FILE
        try:
            value = json_lines.read_json(file)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise make_error(step_folder, f"{name}/{_JSON_FILE} is missing") from None
        except SourceError as error:
            cause = str(error).removeprefix(f"{file}: ")
            raise make_error(step_folder, f"{name}/{_JSON_FILE}: {cause}") from None
        if not isinstance(value, dict):
            raise make_error(step_folder, f"{name}/{_JSON_FILE} holds no JSON object")
        values.append(value)
    if values[0].get("has_checksums"):
        if not checksums.has_checksums(step_folder):
            raise make_error(step_folder, f"{checksums.FOLDER}/ is missing")
        if damage := checksums.find_damage(step_folder, only=f"{item}/"):
            raise make_error(step_folder, damage)
    try:
        return values[1], Progress.from_json(values[0])
    except ValueError as error:
        raise make_error(step_folder, f"{PROGRESS}/{_JSON_FILE}: {error}") from None


# ---------------------------------- whole or damaged -------------------------


def make_error(step_folder: epath.Path, cause: object) -> DamagedError:
    """A step that is not as it was written; the message names the other steps beside it."""
    error = DamagedError(step_folder, cause)
    steps = _steps_in(step_folder.parent) if step_folder.name.isdigit() else []
    others = [str(step) for step in steps if str(step) != step_folder.name]
    if others:
        numbers = ", ".join(others)
        error.args = (f"{error}, or take another step of {step_folder.parent}: {numbers}",)
    return error


def check_step(step_folder: epath.Path) -> Progress:
    """Compares every file of a step with what was written, and returns the step's progress.

    With several processes all must call it; each reads a share of the files. Of a step that was
    saved without checksums, by an earlier version, only the JSON files are looked at.

    Raises:
      DamagedError: it is not as it was written.
    """
    progress = read_progress(step_folder)
    read_description(step_folder)
    if not (step_folder / STATE).is_dir():
        raise make_error(step_folder, f"{STATE}/ is missing")
    if checksums.has_checksums(step_folder) and (damage := checksums.find_damage(step_folder)):
        raise make_error(step_folder, damage)
    return progress


def find_newest_whole(model_dir: str) -> tuple[int | None, dict[int, str]]:
    """The newest step that a run can go on from, and what is wrong with the newer ones.

    A run needs its best step too, for the test at its end: a step whose best one is damaged or
    gone is passed over like a damaged one.

    Returns:
      The step, or None where none was saved; and for each newer one the cause.

    Raises:
      DamagedError: steps were saved, and none is whole.
    """
    folder = absolute(model_dir) / CHECKPOINTS_FOLDER
    wrong: dict[int, str] = {}
    whole: set[int] = set()

    def check(step: int) -> Progress | None:
        if step in wrong:
            return None
        try:
            progress = check_step(folder / str(step))
        except DamagedError as error:
            wrong[step] = error.cause
            return None
        whole.add(step)
        return progress

    steps = list_steps(model_dir)
    for step in reversed(steps):
        progress = check(step)
        if progress is None:
            continue
        best = progress.best_step
        if best is None or best in whole or (best in steps and check(best) is not None):
            return step, {newer: cause for newer, cause in wrong.items() if newer > step}
        gone = "damaged" if best in steps else "no longer there"
        wrong[step] = f"its best step, {best}, is {gone}"
    if not steps:
        return None, {}
    causes = "; ".join(f"{step}: {wrong[step]}" for step in reversed(steps))
    error = DamagedError(f"every step in {folder}", causes)
    error.args = (f"{error}, or delete that folder to train from the beginning",)
    raise error


def set_aside(model_dir: str, step: int) -> epath.Path:
    """Moves a damaged step out of orbax's sight, which may then save it anew; says where to."""
    folder = absolute(model_dir)
    (folder / DAMAGED_FOLDER).mkdir(parents=True, exist_ok=True)
    target, number = folder / DAMAGED_FOLDER / str(step), 1
    while target.exists():
        number += 1
        target = folder / DAMAGED_FOLDER / f"{step}-{number}"
    (folder / CHECKPOINTS_FOLDER / str(step)).rename(target)
    return target


def set_damaged_aside(model_dir: str, damaged: Mapping[int, str], goes_on: int | None) -> None:
    """Sets damaged steps aside, and warns of each.

    Args:
      model_dir: the run's folder.
      damaged: step → what is wrong with it.
      goes_on: the step that training goes on from; None: from the beginning.
    """
    for step, cause in damaged.items():
        moved_to = set_aside(model_dir, step)
        terminal.say(
            f"warning: step {step} of {model_dir} is damaged ({cause}); it was moved to "
            f"{moved_to}, and training goes on from step {goes_on}",
            stderr=True,
        )
