"""Keeps compiled programs from one start to the next, so that a second one need not compile.

Enters: nothing. Leaves: JAX's settings in the environment, before JAX is imported. What a user has
set of them stays. The cache lies in the user's own folder, by processor: a compiled program is
machine code, so it is read from nowhere else, and fits the machine that made it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import platform
import stat

FOLDER_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
LEAST_SECONDS_VARIABLE = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
# What compiles faster than this is faster compiled than looked up.
LEAST_SECONDS = "0.2"
_SIZE_VARIABLE = "JAX_COMPILATION_CACHE_MAX_SIZE"
_MOST_BYTES = str(2 * 1024**3)  # what was used longest ago goes first


def keep_compiled_programs() -> None:
    """Sets where JAX keeps compiled programs; call it before JAX is imported.

    Where the folder cannot be made, or others could write to it, nothing is kept.
    """
    if FOLDER_VARIABLE in os.environ:
        return
    folder = os.path.expanduser(f"~/.cache/distill_sbs/compiled/{name_processor()}")
    if not _is_mine_alone(folder):
        return
    os.environ[FOLDER_VARIABLE] = folder
    os.environ.setdefault(LEAST_SECONDS_VARIABLE, LEAST_SECONDS)
    os.environ.setdefault(_SIZE_VARIABLE, _MOST_BYTES)


def name_processor() -> str:
    """A name for what a compiled program depends on: the instructions that there are."""
    return hashlib.blake2b(_describe_processor().encode(), digest_size=4).hexdigest()


def _describe_processor() -> str:
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("flags", "Features")):
                return platform.machine() + line
    return platform.machine() + platform.processor()


def _is_mine_alone(folder: str) -> bool:
    """Whether the folder, which is made where it is missing, is for this user alone to write to."""
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        found = os.stat(folder)
    except OSError:
        return False
    return found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
