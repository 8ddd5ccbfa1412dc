"""Keeps what XLA frees for its next step: a third of a training step's time on CPU cores.

Enters: nothing. Leaves: the C library's allocator, set. XLA asks for a step's temporary memory at
every step and frees it after. The allocator of Linux would give so large a piece back to the system
each time, which then clears it anew, page by page, for the next step (docs/performance.md).
"""

from __future__ import annotations

# mallopt(3), numbers of <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def share_one_arena() -> None:
    """Every thread's memory comes from one arena; does nothing where the allocator is not glibc's.

    Called before the first thread starts: an arena that a thread has begun is given to later ones
    in turn, whatever their number may be then, and no arena but the first holds large pieces.
    """
    _set((_M_ARENA_MAX, 1))


def keep_freed_memory() -> None:
    """Sets the allocator; does nothing where it is not glibc's.

    The process then holds what it held at its peak until it ends, as peak memory is anyway. Needs
    `share_one_arena` before the first thread, which is called here too.
    """
    share_one_arena()
    _set((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1))  # never trimmed


def _set(*parameters: tuple[int, int]) -> None:
    import ctypes  # not at the top: a program that merely imports this package has no need of it

    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        for name, number in parameters:
            library.mallopt(name, number)
