"""A small sweep, as a user types it: `comparisons`, a student of one layer, a few steps."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import model_examples

ROOT = pathlib.Path(__file__).parent.parent.parent
STUDENT = {"vocab_size": 512, **model_examples.ONE_LAYER}


def make_command(
    folder: pathlib.Path, *more: str, data: pathlib.Path | None = None, steps: int = 6
) -> list[str]:
    """The command: runs below `folder/sweep`, and data in `folder/data` if no other is given."""
    return [
        sys.executable,
        "-m",
        "distill_sbs.sweep",
        "--gin_file=gin/methods/comparisons.gin",
        f"--gin.DATA_DIR='{data or folder / 'data'}'",
        f"--gin.SWEEP_DIR='{folder / 'sweep'}'",
        f"--gin.STUDENT_OVERRIDES={STUDENT}",
        f"--gin.TRAIN_STEPS={steps}",
        f"--gin.EVAL_PERIOD={steps}",
        "--gin.EVAL_EXAMPLES=16",
        "--gin.LOG_PERIOD=2",
        "--gin.EXAMPLES_PER_STEP=8",
        *more,
    ]


def make_arguments(folder: pathlib.Path, *more: str, data: pathlib.Path | None = None) -> list[str]:
    """The same, for `sweep.main` in this process."""
    return make_command(folder, *more, data=data)[2:]


def mark(folder: pathlib.Path) -> dict[str, str]:
    """An environment that a sweep, and all that it starts, can be told by."""
    return {**os.environ, "SWEEP_TEST": str(folder)}


def find_marked(folder: pathlib.Path) -> dict[int, str]:
    """Process number → command line, of what was started with `mark(folder)` and still runs."""
    return find_processes(f"SWEEP_TEST={folder}")


def find_processes(setting: str) -> dict[int, str]:
    """Process number → command line, of what has a setting in its environment."""
    found = {}
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if setting.encode() in (path / "environ").read_bytes().split(b"\0"):
                command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                found[int(path.name)] = command
    return found


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 600) -> None:
    """Waits; the limit is there for what never comes."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited for {what}"
        time.sleep(0.05)


def count_lines(path: pathlib.Path) -> int:
    """Of a file that may not be there yet."""
    return len(path.read_text().splitlines()) if path.exists() else 0


def read_summary(folder: pathlib.Path) -> list[dict[str, Any]]:
    """Of a sweep that `make_command` made."""
    rows: list[dict[str, Any]] = json.loads((folder / "sweep" / "summary.json").read_text())
    return rows
