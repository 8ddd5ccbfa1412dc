"""The most memory that this process has held, for the table at a run's end.

Enters: nothing. Leaves: MiB.
"""

from __future__ import annotations

import pathlib
import resource
import sys

_STATUS = pathlib.Path("/proc/self/status")


def peak_memory_mib() -> float:
    """The peak of this process's resident memory, in MiB.

    Linux keeps the largest `ru_maxrss` over `exec`, so a small program that a large one started
    would report its parent's; `VmHWM` of /proc/self/status begins anew (proc(5)).
    """
    if _STATUS.exists():
        for line in _STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024
