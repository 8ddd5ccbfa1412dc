"""Whether two checkpoints hold the same parameters, whatever their form.

Enters: a `ParameterSource`. Leaves: the sha256 of its parameters' names, shapes and float32 values;
or one line that says that a contrast was made with others.
"""

from __future__ import annotations

import hashlib

import numpy as np

from distill_sbs.convert.source import ParameterSource
from distill_sbs.errors import UserError
from distill_sbs.model.parameters import list_by_stack


def hash_parameters(source: ParameterSource) -> str:
    """The sha256 of all parameters; every one is read, one at a time.

    Raises:
      UserError: one cannot be read.
    """
    total = hashlib.sha256()
    for parameter in list_by_stack(source.config):
        total.update(f"{parameter.path} {parameter.shape}\n".encode())
        total.update(np.ascontiguousarray(source.read(parameter.path), np.float32).tobytes())
    return total.hexdigest()


def check_expert(source: ParameterSource | None, expert: str, what: str) -> None:
    """Refuses to tune another student than the one that a contrast's rollouts came from.

    Args:
      source: what INITIAL_CHECKPOINT_PATH names; None where it names nothing.
      expert: the sha256 that the contrast's manifest holds.
      what: the contrast's name, for messages.

    Raises:
      UserError: they are not the same.
    """
    if source is None:
        raise UserError(
            f"INITIAL_CHECKPOINT_PATH=None: {what} improves the expert that it was made with; "
            "give that checkpoint"
        )
    found = hash_parameters(source)
    if found != expert:
        raise UserError(
            f"INITIAL_CHECKPOINT_PATH: {source.location} is not the expert of {what} (sha256 of "
            f"its parameters {found[:12]}…, the expert's {expert[:12]}…); give the expert's "
            "checkpoint, or make the contrast again with this one"
        )
