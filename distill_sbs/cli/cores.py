"""The processor's cores that this process may use."""

from __future__ import annotations

import os


def find_cores() -> set[int]:
    """Their numbers; of fewer than the machine has under `taskset`, or in a container."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))
