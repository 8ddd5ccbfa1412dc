"""How every entry point ends: one line for what the user can mend, and an exit status.

Enters: what an entry point does. Leaves: its exit status.

| status | meaning |
| --- | --- |
| 0 | done |
| 1 | an error of ours, with a traceback; `precompile`: the run does not fit |
| 2 | something given cannot work, or a file cannot be written: one line says what and the remedy |
| 3 | `extract`: the budget is spent |
| 4 | `extract`: the endpoint answers nobody |
| 5 | `sweep`: runs have failed; it lists them, and the others are done |
| 75 | another process of the run died: start all of them again |
| 130 | interrupted (Ctrl-C); a second Ctrl-C ends at once |
| 141 | whoever read the output stopped reading it (`… | head`); nothing is said |
| 143 | SIGTERM; `train` saved first, `serve` has answered all |
"""

from __future__ import annotations

import contextlib
import select
import signal
import sys
from collections.abc import Callable
from typing import TextIO

from distill_sbs.cli import interrupts, terminal
from distill_sbs.errors import UserError, describe_disk_error

__all__ = ["describe_disk_error", "run_main"]

USER_ERROR_STATUS = 2
UNREAD_STATUS = 128 + signal.SIGPIPE


def run_main(work: Callable[[], int | None], interrupted: str = "nothing was changed") -> int:
    """Runs an entry point's work and gives its exit status.

    Args:
      work: parses the command line and does what it asks for; None is status 0.
      interrupted: what Ctrl-C leaves behind, in a few words, until the work says otherwise
        (`interrupts.change_message`).

    Returns:
      The status of the table above. What is not the user's to mend is raised on, for its traceback.
    """
    try:
        with interrupts.expect(interrupted):
            return _work_and_flush(work)
    except KeyboardInterrupt:
        interrupts.leave()  # as it is: libraries that were interrupted may fail in taking leave
        return _end(f"interrupted: {interrupts.message()}", interrupts.STATUS)
    except UserError as error:
        if interrupts.was_noted():
            interrupts.leave()
        return _end(f"error: {error}", USER_ERROR_STATUS)
    except BrokenPipeError:
        unread = [stream for stream in (sys.stdout, sys.stderr) if _is_unread(stream)]
        if not unread:
            raise
        for stream in unread:
            terminal.silence(stream.fileno())
        return UNREAD_STATUS
    except Exception as error:
        if interrupts.was_noted():
            interrupts.leave()
        message = describe_disk_error(error)
        if message is None:
            raise
        return _end(f"error: {message}", USER_ERROR_STATUS)


def _work_and_flush(work: Callable[[], int | None]) -> int:
    """Does the work; what it printed has left this process, or the reason is raised here."""
    try:
        status = work() or 0
    except SystemExit:
        terminal.find_stream().flush()
        raise
    terminal.find_stream().flush()
    interrupts.finish(status)
    return status


def _end(message: str, status: int) -> int:
    """Says why the work ended; a stream that takes nothing more is let go of."""
    with contextlib.suppress(OSError):
        terminal.say(message, stderr=True)
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            terminal.silence(stream.fileno())
    return status


def _is_unread(stream: TextIO | None) -> bool:
    """Whether a standard stream is a pipe whose other end is closed."""
    try:
        descriptor = stream.fileno() if stream is not None else -1
    except (OSError, ValueError):  # not of the system: a test's
        return False
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))
