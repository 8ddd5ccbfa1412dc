"""The errors that an entry point answers with one line instead of a traceback.

Enters: a message of what was got, what was expected, and the remedy. Leaves: nothing; entry points
print it and exit with status 2 (`distill_sbs.cli.run_main`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user gave that cannot work; the message says what to give instead."""


class SourceError(UserError):
    """Data that cannot be read as what it should be; the message names file and line."""


class DamagedError(UserError):
    """A file that is not as it was written: cut short, or changed on its way here.

    Args:
      what: the file, and inside it what cannot be read: 'FILE: tensor NAME of shape SHAPE'.
      cause: what the reader said of it; only its first line is told.

    Attributes:
      cause: that line.
    """

    def __init__(self, what: object, cause: object) -> None:
        lines = str(cause).strip().splitlines()
        self.cause = lines[0].strip() if lines else repr(cause)
        super().__init__(
            f"{what} cannot be read ({self.cause}); it is truncated or damaged, or was not copied "
            "whole: copy it again"
        )


def nearest_names(name: str, known: Iterable[str], most: int = 3) -> list[str]:
    """The known names that `name` may have been meant for, the nearest first; capitals aside."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    matches = difflib.get_close_matches(name.lower(), by_lower, n=most, cutoff=0.5)
    return [by_lower[match] for match in matches]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean NAME?` for the nearest known name, empty if none is near."""
    near = nearest_names(name, known, most=1)
    return f"; did you mean {near[0]}?" if near else ""
