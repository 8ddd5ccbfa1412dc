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

from collections.abc import Callable

from distill_sbs.cli import terminal
from distill_sbs.errors import UserError
from distill_sbs.files import describe_disk_error

USER_ERROR_STATUS = 2
INTERRUPTED_STATUS = 130


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
