"""Keeps what XLA frees for its next step: a third of a training step's time on CPU cores.

Enters: nothing. Leaves: the C library's allocator, set. XLA asks for a step's temporary memory at
every step and frees it after. The allocator of Linux would give so large a piece back to the system
each time, which then clears it anew, page by page, for the next step (docs/performance.md).
"""

from __future__ import annotations

import ctypes

# mallopt(3), numbers of <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Sets the allocator; does nothing where it is not glibc's.

    Called before other threads start: a thread keeps the arena that it began with. The process
    then holds what it held at its peak until it ends, as peak memory is anyway.
    """
    if not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_ARENA_MAX, 1)
    mallopt(_M_TRIM_THRESHOLD, -1)  # never
