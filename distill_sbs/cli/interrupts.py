"""Ctrl-C: one line and status 130, wherever a program of ours is.

Enters: SIGINT. Leaves: a `KeyboardInterrupt` in the work, or the end of the process.

Python raises `KeyboardInterrupt` in whatever the main thread is doing. Inside TensorFlow, JAX,
orbax or tensorstore that came out as an ImportError, as 148 lines of another error, as a crash
while the process ended, or not at all: raised in a callback, it was reported and forgotten. So:

- before the work begins, and while any module is imported, Ctrl-C ends the process at once: an
  exception out of the middle of a library's start made it abort;
- in the work it is raised, so that half-written files are removed; whatever comes out of the work
  then is taken for the interruption (`was_noted`), and forgotten ones are raised again;
- the last moments of a process, when Python is taken down, are its own: the status is settled;
- a second Ctrl-C, or five seconds in which the work does not end, such as in a compiler that
  Python cannot interrupt, ends the process at once.

Work that has a handler of its own (`train` saves first) does as it likes. Nothing of this happens
in a program that merely imports this package, or where SIGINT is ignored (`nohup`, `… &`).
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import os
import signal
import sys
import threading
import types
from collections.abc import Iterator

from distill_sbs.cli import freed_memory, python_messages, working_folder

STATUS = 128 + signal.SIGINT
_GRACE_SECONDS = 5.0
_AGAIN_SECONDS = 0.05

_message = "nothing was begun"
_is_working = False
_is_noted = False
_count = 0
_final_status: int | None = None
_terminal = -1  # standard error as it was at the start: TensorFlow's import redirects it
_is_leaving = threading.Lock()


def watch() -> None:
    """Handles Ctrl-C from now on, if this process is about to run an entry point of ours."""
    global _terminal
    if not working_folder.is_program_of_ours():
        return
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return
    with contextlib.suppress(OSError):  # closed
        _terminal = os.dup(2)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    # Python's own handlers wait until the main thread is back in Python; a byte in a pipe does not.
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    freed_memory.share_one_arena()  # before the process's first thread
    threading.Thread(target=_read_signals, args=(reading,), daemon=True).start()
    signal.signal(signal.SIGINT, _handle)
    sys.unraisablehook = _raise_again
    # What was registered first is called last: from there on Python takes its handlers away.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def expect(message: str) -> Iterator[None]:
    """The block is the work that Ctrl-C interrupts; `message` says what it then leaves behind."""
    global _message, _is_working
    _message, _is_working = message, True
    try:
        yield
    finally:
        _is_working = False


def change_message(message: str) -> None:
    """Says what Ctrl-C leaves behind from now on: the work has just put down what it is for."""
    from distill_sbs.cli import terminal  # not at the top: this module is every program's first

    global _message
    _message = terminal.clean(message)


def message() -> str:
    """What Ctrl-C leaves behind at this moment."""
    return _message


def was_noted() -> bool:
    """Whether Ctrl-C came, whatever the libraries in between have made of it."""
    return _is_noted


def finish(status: int) -> None:
    """The work is done: Ctrl-C now only shortens the libraries' taking leave."""
    global _final_status
    _final_status = status


def leave() -> None:
    """Ends a process that handles Ctrl-C here, at once; does nothing in others."""
    if _terminal < 0 or not _is_leaving.acquire(blocking=False):
        return
    if _final_status is not None:
        os._exit(_final_status)
    # A bar hides the cursor while it is shown, and leaves its line begun.
    shown = "\r\x1b[2K\x1b[?25h" if os.isatty(_terminal) else ""
    with contextlib.suppress(OSError):
        os.write(_terminal, f"{shown}interrupted: {_message}\n".encode())
    os._exit(STATUS)


def _handle(_: int, frame: types.FrameType | None) -> None:
    global _is_noted
    if _is_noted or not _is_working or _is_importing(frame):
        leave()
    _is_noted = True
    raise KeyboardInterrupt


def _is_importing(frame: types.FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _read_signals(reading: int) -> None:
    """Ends the process where the work does not, or is asked to a second time."""
    global _count
    while content := os.read(reading, 1):
        if content[0] == signal.SIGINT and signal.getsignal(signal.SIGINT) is _handle:
            _count += 1
            if _count > 1:
                leave()
            threading.Timer(_GRACE_SECONDS, _leave_if_noted).start()


def _leave_if_noted() -> None:
    if signal.getsignal(signal.SIGINT) is _handle:
        leave()


def _raise_again(unraisable: sys.UnraisableHookArgs) -> None:
    """An interruption that was raised where nobody could catch it is raised once more."""
    global _count, _is_noted
    if isinstance(unraisable.exc_value, KeyboardInterrupt) and _is_noted:
        _count, _is_noted = 0, False
        threading.Timer(_AGAIN_SECONDS, _thread.interrupt_main).start()  # not in here again
    else:
        python_messages.show_unraisable(unraisable)
