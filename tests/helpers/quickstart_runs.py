"""The shipped quickstart, made small, as a user types it: in processes that can be interrupted."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import jax
import model_examples
import numpy as np

from distill_sbs.inference.student import Student

ROOT = pathlib.Path(__file__).parent.parent.parent
STUDENT = {"vocab_size": 640, **model_examples.ONE_LAYER}


def make_environment(folder: pathlib.Path) -> dict[str, str]:
    """An environment of its own: data prepared on first use, compiled programs shared."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "DISTILL_SBS_DATA_DIR": str(folder / "data"),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        # Compiled once and run often: eight devices on two processors compute for longer otherwise.
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",
        "PYTHONPATH": str(ROOT),
    }


def shrunk_quickstart(model_dir: pathlib.Path, *bindings: str) -> list[str]:
    """The command, on eight simulated devices; `bindings` are macros set besides."""
    return [
        sys.executable,
        "-m",
        "distill_sbs.train",
        "--gin_file=gin/experiments/quickstart.gin",
        f"--gin.MODEL_DIR='{model_dir}'",
        f"--gin.STUDENT_OVERRIDES={STUDENT}",
        "--gin.TRAIN_STEPS=40",
        "--gin.EVAL_PERIOD=20",
        "--gin.CHECKPOINT_PERIOD=5",
        "--gin.LOG_PERIOD=5",
        "--gin.BATCH_SIZE=32",
        "--gin.DROPOUT_RATE=0.1",
        "--gin.DATA_FRACTION=0.05",
        "--gin.EVAL_EXAMPLES=64",
        "--gin.NUM_MODEL_PARTITIONS=2",
        *(f"--gin.{binding}" for binding in bindings),
    ]


class QuickstartRuns:
    """Runs the shrunk quickstart with one cache of data and compiled programs."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.environment = make_environment(folder)

    def start(self, model_dir: pathlib.Path, *bindings: str) -> subprocess.Popen:
        """A process whose standard error is to be read."""
        return subprocess.Popen(
            shrunk_quickstart(model_dir, *bindings),
            env=self.environment,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, model_dir: pathlib.Path, *bindings: str) -> subprocess.CompletedProcess[str]:
        """A process that has ended."""
        return subprocess.run(
            shrunk_quickstart(model_dir, *bindings),
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
        )


def wait_for_step(process: subprocess.Popen) -> None:
    """Until the first line of a logged step."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("step "):
            return
    raise AssertionError(f"ended before a step was logged: {lines}")


def read_parameters(model_dir: pathlib.Path | str) -> list[np.ndarray]:
    """Of the newest step, in a fixed order."""
    steps = sorted(int(path.name) for path in (pathlib.Path(model_dir) / "checkpoints").iterdir())
    student = Student.load(str(pathlib.Path(model_dir) / "checkpoints" / str(steps[-1])))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(student.params)]


def assert_same_parameters(one: pathlib.Path, other: pathlib.Path) -> None:
    """To the bit."""
    for first, second in zip(read_parameters(one), read_parameters(other), strict=True):
        np.testing.assert_array_equal(first, second)


def assert_same_run(one: pathlib.Path, other: pathlib.Path) -> None:
    """Results equal to the letter, parameters to the bit."""
    assert (one / "results.json").read_text() == (other / "results.json").read_text()
    assert_same_parameters(one, other)
