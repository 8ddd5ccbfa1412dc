"""What is freed stays with the process, and is not cleared anew by the system."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")

ASKED_AGAIN = """
import ctypes, resource
from distill_sbs.cli.freed_memory import keep_freed_memory
{first}
libc, size = ctypes.CDLL(None), ctypes.c_size_t(2**26)
libc.malloc.restype = ctypes.c_void_p
for step in range(4):
    if step == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    piece = ctypes.c_void_p(libc.malloc(size))
    libc.memset(piece, 1, size)
    libc.free(piece)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def count_printed(program: str) -> int:
    """The number that a program prints."""
    command = [sys.executable, "-c", program]
    return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


@pytest.mark.parametrize(("first", "kept"), [("keep_freed_memory()", True), ("", False)])
def test_pages_come_once(first: str, kept: bool) -> None:
    faults = count_printed(ASKED_AGAIN.format(first=first))
    assert (faults < 100) is kept, faults


IN_THREADS = """
import ctypes, resource, threading
from distill_sbs.cli import freed_memory
{first}
threading.Thread(target=threading.Event().wait, daemon=True).start()
freed_memory.keep_freed_memory()
libc, size = ctypes.CDLL(None), ctypes.c_size_t(2**26)
libc.malloc.restype = ctypes.c_void_p
turn = threading.Lock()

def work():
    for step in range(6):
        with turn:
            piece = ctypes.c_void_p(libc.malloc(size))
            libc.memset(piece, 1, size)
            libc.free(piece)

def count(threads):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    started = [threading.Thread(target=work) for _ in range(threads)]
    for each in started:
        each.start()
    for each in started:
        each.join()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return faults * resource.getpagesize() // size.value

count(1)
print(count(4))
"""


@pytest.mark.parametrize(("first", "kept"), [("freed_memory.share_one_arena()", True), ("", False)])
def test_so_they_do_in_every_thread_though_one_began_before(first: str, kept: bool) -> None:
    # Pieces of 24: what another thread asks for meanwhile may lie in the way of one or two.
    cleared = count_printed(IN_THREADS.format(first=first))
    assert (cleared < 6) is kept, cleared
