"""How every entry point ends: one line for what the user can mend, and an exit status.

Enters: what an entry point does. Leaves: its exit status.

| status | meaning |
| --- | --- |
| 0 | done |
| 1 | an error of ours, with a traceback; `precompile`: the run does not fit |
| 2 | something given cannot work, or a file cannot be written: one line says what and the remedy |
| 3 | `extract`: the budget is spent |
| 4 | `extract`: the endpoint answers nobody |
| 75 | another process of the run died: start all of them again |
| 130 | interrupted (Ctrl-C) |
| 143 | SIGTERM; `train` saved first |
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator

from distill_sbs.cli import terminal
from distill_sbs.errors import UserError

USER_ERROR_STATUS = 2
INTERRUPTED_STATUS = 130

# What a disk says that is full, read-only or another user's: the user's to mend, no fault of ours.
_REMEDIES = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "your quota there is used up; make room",
    errno.EROFS: "that disk can only be read; choose a folder on another",
    errno.EACCES: "you may not write or read there; choose another folder, or change its mode",
    errno.EPERM: "you may not do that there; choose another folder",
    errno.ENOTDIR: "a file stands where a folder is needed; choose another path",
    errno.EISDIR: "a folder stands where a file is needed; choose another path",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EFBIG: "the file grew past what that disk or its limits allow",
    errno.EIO: "that disk fails to read or write; look at its health",
}


def run_main(work: Callable[[], int | None], interrupted: str = "nothing was changed") -> int:
    """Runs an entry point's work and gives its exit status.

    Args:
      work: parses the command line and does what it asks for; None is status 0.
      interrupted: what Ctrl-C leaves behind, in a few words.

    Returns:
      The status of the table above. What is not the user's to mend is raised on, for its traceback.
    """
    try:
        return work() or 0
    except UserError as error:
        terminal.say(f"error: {error}", stderr=True)
        return USER_ERROR_STATUS
    except KeyboardInterrupt:
        terminal.say(f"interrupted: {interrupted}", stderr=True)
        return INTERRUPTED_STATUS
    except Exception as error:
        message = describe_disk_error(error)
        if message is None:
            raise
        terminal.say(f"error: {message}", stderr=True)
        return USER_ERROR_STATUS


def describe_disk_error(error: BaseException) -> str | None:
    """One line for a full, read-only or forbidden disk, however a library has wrapped its words.

    Returns:
      What was wrong, where, and the remedy; None where `error` is about something else.
    """
    for each in _chain(error):
        if isinstance(each, OSError) and each.errno in _REMEDIES:
            where = f"{os.fsdecode(each.filename)}: " if each.filename else ""
            return f"{where}{os.strerror(each.errno)}; {_REMEDIES[each.errno]}"
    for each in _chain(error):
        for number, remedy in _REMEDIES.items():
            words = os.strerror(number)
            # TensorFlow, tensorstore and others tell the system's words in a text of their own.
            if words in str(each) and number not in (errno.EPERM, errno.EIO):
                path = re.search(r"(?:gs:/)?/[^\s'\"\];,:]+", str(each))
                where = f"{path.group()}: " if path else ""
                return f"{where}{words}; {remedy}"
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what caused it, and so on."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
