"""A MODEL_DIR with three steps of a few numbers each, and every way to damage one of them."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Callable

import jax

from distill_sbs.checkpoint.checkpointer import Checkpointer
from distill_sbs.checkpoint.description import RunDescription
from distill_sbs.checkpoint.steps import Progress
from distill_sbs.model.config import named_config

STEPS = (10, 20, 30)
DESCRIPTION = RunDescription(
    student=named_config("t5_1_1_tiny"),
    vocabulary={"kind": "bytes", "size": 259},
    mixture="tiny_label",
    task_feature_lengths={"inputs": 8, "targets": 8, "task_ids": 8},
    max_decode_tokens=4,
)


def state_of(step: int) -> dict:
    """Twelve values and a counter."""
    return {
        "params": {"kernel": jax.numpy.arange(12.0).reshape(3, 4) + step},
        "step": jax.numpy.int32(step),
    }


def save_steps(model_dir: pathlib.Path, best_step: int | None = None) -> None:
    """Saves `STEPS`; `best_step` is what the later ones name as the best."""
    checkpointer = Checkpointer(str(model_dir), keep=len(STEPS))
    for step in STEPS:
        best = best_step if best_step is not None and step >= best_step else None
        evaluations = [] if best is None else [{"step": best, "accuracy": 0.5}]
        progress = Progress({"tiny": step}, evaluations, best)
        checkpointer.save(step, state_of(step), progress, DESCRIPTION)
    checkpointer.close()


def files_of(step_folder: pathlib.Path) -> list[pathlib.Path]:
    """Every file of a step that anything is read from."""
    return sorted(
        path
        for path in step_folder.rglob("*")
        if path.is_file() and path.name not in ("commit_success.txt", "_CHECKPOINT_METADATA")
    )


def flip_byte(path: pathlib.Path, position: int = -1) -> None:
    """Changes one byte."""
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)


def _truncate(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _arrays(step: pathlib.Path) -> list[pathlib.Path]:
    return sorted((step / "state").rglob("d/*"))


def _each_array(damage: Callable[[pathlib.Path], None]) -> Callable[[pathlib.Path], None]:
    def damage_all(step: pathlib.Path) -> None:
        for path in _arrays(step):
            damage(path)

    return damage_all


def _empty(step: pathlib.Path) -> None:
    shutil.rmtree(step)
    step.mkdir()


def _become_a_file(step: pathlib.Path) -> None:
    shutil.rmtree(step)
    step.write_text("")


# What may happen to a step, by its name.
DAMAGES: dict[str, Callable[[pathlib.Path], None]] = {
    "one byte of the arrays": lambda step: flip_byte(_arrays(step)[0]),
    "arrays cut short": _each_array(_truncate),
    "arrays empty": _each_array(lambda path: path.write_bytes(b"")),
    "arrays missing": _each_array(pathlib.Path.unlink),
    "no state": lambda step: shutil.rmtree(step / "state"),
    "no manifest": lambda step: (step / "state/manifest.ocdbt").unlink(),
    "no list of arrays": lambda step: (step / "state/_METADATA").unlink(),
    "no progress": lambda step: shutil.rmtree(step / "progress"),
    "progress is garbage": lambda step: (step / "progress/metadata").write_bytes(b"\xff\x00{"),
    "progress is a number": lambda step: (step / "progress/metadata").write_text("5"),
    "progress says nothing": lambda step: (step / "progress/metadata").write_text("{}"),
    "no description": lambda step: shutil.rmtree(step / "description"),
    "description is cut short": lambda step: _truncate(step / "description/metadata"),
    "description is a list": lambda step: (step / "description/metadata").write_text("[]"),
    "description is a folder": lambda step: (
        (step / "description/metadata").unlink(),
        (step / "description/metadata").mkdir(),
    )[1],
    "no checksums": lambda step: shutil.rmtree(step / "verification"),
    "checksums are garbage": lambda step: [
        path.write_text("{") for path in (step / "verification").glob("*.json")
    ][0],
    "an empty folder": _empty,
    "a file": _become_a_file,
}
