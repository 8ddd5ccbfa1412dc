"""The one error that an entry point answers with a message instead of a traceback.

Enters: a message of what was got, what was expected, and the remedy. Leaves: nothing; entry points
print it and exit with status 2 (`distill_sbs.cli.command_line.run`).
"""

from __future__ import annotations


class UserError(ValueError):
    """Something the user gave that cannot work; the message says what to give instead."""
