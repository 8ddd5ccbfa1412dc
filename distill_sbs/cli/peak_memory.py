"""The most memory that this process has held, for the table at a run's end.

Enters: nothing. Leaves: MiB.
"""

from __future__ import annotations

import pathlib
import resource
import sys


def read_peak_mib(process: int | str) -> float | None:
    """The peak of a process's resident memory so far, in MiB, by its number or 'self'.

    None where the system does not say: it is not Linux, or the process has ended.
    """
    status = pathlib.Path(f"/proc/{process}/status")
    if status.exists():
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return None


def peak_memory_mib() -> float:
    """The peak of this process's resident memory, in MiB.

    Linux keeps the largest `ru_maxrss` over `exec`, so a small program that a large one started
    would report its parent's; `VmHWM` of /proc/self/status begins anew (proc(5)).
    """
    if (found := read_peak_mib("self")) is not None:
        return found
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024
