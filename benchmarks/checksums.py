r"""What checksums cost: a checkpoint of a published size, with the state of AdamW.

    python benchmarks/checksums.py --size=t5_1_1_base --folder=/a/disk/with/6/GB

Enters: a size, and a folder that is made and removed again. Leaves: a table of seconds, on the
clock and of the processor. Saving is done twice, with the sums and without them (the item is
written, and sums up nothing); "checked" is what happens before a step is used, "restored" what
happens then. Random values: they compress as badly as trained ones. No device but the processor.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import numpy as np  # noqa: E402

from distill_sbs.checkpoint import checksums, steps  # noqa: E402
from distill_sbs.checkpoint.checkpointer import Checkpointer  # noqa: E402
from distill_sbs.checkpoint.description import RunDescription  # noqa: E402
from distill_sbs.cli import terminal  # noqa: E402
from distill_sbs.config import OptimizerConfig  # noqa: E402
from distill_sbs.distributed import sharding  # noqa: E402
from distill_sbs.model.config import CONFIG_NAMES, named_config  # noqa: E402
from distill_sbs.training.optimizer import make_optimizer  # noqa: E402
from distill_sbs.training.program import build_training_program  # noqa: E402


def measure(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds on the clock and of the processor that work takes, and what it returns."""
    clock, processor = time.monotonic(), time.process_time()
    value = work()
    return time.monotonic() - clock, time.process_time() - processor, value


def save(model_dir: pathlib.Path, state: Any, description: RunDescription) -> None:
    """One step, waited for."""
    checkpointer = Checkpointer(str(model_dir))
    checkpointer.save(1, state, steps.Progress({"random": 1}), description)
    checkpointer.close()


def main() -> int:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=CONFIG_NAMES, default="t5_1_1_base")
    parser.add_argument("--folder", required=True, help="that does not exist yet")
    options = parser.parse_args()
    folder = pathlib.Path(options.folder)
    folder.mkdir(parents=True)
    config = named_config(options.size)
    program = build_training_program(
        config, make_optimizer(OptimizerConfig(), 1), sharding.make_mesh(1)
    )
    draw = np.random.default_rng(0)
    state = jax.tree.map(
        lambda leaf: jax.device_put(
            draw.random(leaf.shape, np.float32).astype(leaf.dtype), leaf.sharding
        ),
        program.state,
    )
    values = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    lengths = {"inputs": 1024, "targets": 256, "task_ids": 256}
    description = RunDescription(config, {"kind": "random"}, "random", lengths, 64)
    try:
        seconds = {}
        with mock.patch.object(checksums.ChecksumHandler, "finalize", lambda *_: None):
            seconds["saved without"] = measure(lambda: save(folder / "a", state, description))
        shutil.rmtree(folder / "a")
        seconds["saved with"] = measure(lambda: save(folder / "b", state, description))
        step = steps.step_folder(str(folder / "b"), 1)
        written = sum(path.stat().st_size for path in pathlib.Path(step).rglob("*"))
        seconds["checked"] = measure(lambda: steps.check_step(step))
        reader = Checkpointer(str(folder / "b"))
        seconds["restored"] = measure(lambda: reader.restore(1, program.state))
    finally:
        shutil.rmtree(folder)
    title = (
        f"{options.size}: {values:,} parameters and AdamW's state, {size / 1e9:.2f} GB, "
        f"{written / 1e9:.2f} GB on disk; load of the machine {os.getloadavg()[0]:.1f}"
    )
    table = terminal.make_table("", "s", "processor s", title=title, right_from=1)
    for name, (clock, processor, _) in seconds.items():
        terminal.add_row(table, name, f"{clock:.1f}", f"{processor:.1f}")
    terminal.make_console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
