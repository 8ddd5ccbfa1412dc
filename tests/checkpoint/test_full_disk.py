"""Saving on a disk that becomes full: one error, not a line besides, nothing saved is lost."""

from __future__ import annotations

import pathlib
import subprocess

import jax
import numpy as np
import pytest
import saved_steps
from disks import mount_disk

from distill_sbs.checkpoint import steps
from distill_sbs.checkpoint.checkpointer import Checkpointer
from distill_sbs.errors import describe_disk_error

# Sixty of 32 KiB: enough that many are still being written when the first has failed.
ARRAYS = 60


def state_of(step: int) -> dict:
    draw = np.random.default_rng(step)
    return {
        "params": {f"array_{i}": jax.numpy.asarray(draw.random(8192, "f")) for i in range(ARRAYS)}
    }


def save_until_full(model_dir: pathlib.Path) -> str:
    """Saves step after step; what the first failure is told as."""
    checkpointer = Checkpointer(str(model_dir), keep=100)
    with pytest.raises(Exception) as failed:
        for step in range(1, 100):
            progress = steps.Progress({"tiny": step})
            checkpointer.save(step, state_of(step), progress, saved_steps.DESCRIPTION)
    told = describe_disk_error(failed.value)
    assert told is not None, repr(failed.value)
    return told


# From too small for its first file to three steps, so that it is full at every stage of a save.
@pytest.mark.slow
@pytest.mark.parametrize("size", ["64k", "1m", "1900k", "2200k", "2500k", "4m", "5m", "6m", "8m"])
def test_a_full_disk(size: str, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]) -> None:
    with mount_disk(tmp_path / "disk", size) as disk:
        told = save_until_full(disk / "run")
        assert told.endswith("No space left on device; make room on that disk")
        assert capfd.readouterr().err == ""
        saved = steps.list_steps(str(disk / "run"))
        for step in saved:
            steps.check_step(steps.step_folder(str(disk / "run"), step))
        # With room the next step can be saved, over what the failed one left.
        subprocess.run(["mount", "-o", "remount,size=40m", str(disk)], check=True)
        checkpointer = Checkpointer(str(disk / "run"), keep=100)
        number = len(saved) + 1
        progress = steps.Progress({"tiny": number})
        checkpointer.save(number, state_of(number), progress, saved_steps.DESCRIPTION)
        checkpointer.close()
        assert steps.list_steps(str(disk / "run")) == [*saved, number]
        restored, _ = Checkpointer(str(disk / "run")).restore(number, state_of(0))
        jax.tree.map(np.testing.assert_array_equal, restored, state_of(number))
