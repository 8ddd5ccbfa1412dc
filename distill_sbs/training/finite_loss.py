"""Stops a run whose loss is no number any more.

Enters: the metrics of some steps. Leaves: nothing, or an error that says which checkpoint is good.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from distill_sbs.errors import UserError

if TYPE_CHECKING:
    from distill_sbs.checkpoint.checkpointer import Checkpointer
    from distill_sbs.training.train_step import Metrics


def read_scalar(metrics: Metrics, name: str) -> float:
    """One of a step's scalars, `loss` or `gradient_norm`; waits for the device."""
    value = metrics[name]
    assert not isinstance(value, tuple), name
    return float(value)


def check_finite(window: Sequence[Metrics], step: int, checkpointer: Checkpointer) -> None:
    """Raises UserError where a loss is NaN or infinite.

    Args:
      window: of steps; waits for the device.
      step: the number that is told.
      checkpointer: waited for, so that what it has begun to save is whole.
    """
    for metrics in window:
        loss = read_scalar(metrics, "loss")
        if not math.isfinite(loss):
            checkpointer.wait()
            newest = checkpointer.latest_step()
            kept = f"the checkpoint of step {newest} is good" if newest else "nothing was saved yet"
            raise UserError(
                f"the loss of step {step} is {loss}; {kept}. Lower "
                "LEARNING_RATE, set WARMUP_STEPS, or compute in float32"
            )
