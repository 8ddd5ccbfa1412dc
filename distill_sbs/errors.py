"""The errors that an entry point answers with one line instead of a traceback.

Enters: a message of what was got, what was expected, and the remedy; or an exception in which
Python, TensorFlow, tensorstore or a library in Rust tells what the system said of a disk. Leaves:
one line, which entry points print before they exit with status 2 (`distill_sbs.cli.run_main`).
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import re
from collections.abc import Iterable, Iterator


class UserError(ValueError):
    """Something the user gave that cannot work; the message says what to give instead."""


class UnreachableError(UserError):
    """A bucket that does not answer, or not to us: nothing is known of what lies in it."""


@contextlib.contextmanager
def explain_unreachable() -> Iterator[None]:
    """Tells what TensorFlow's file system says of a bucket in one line; also as a decorator.

    Raises:
      UnreachableError: a bucket could not be read for want of a network or of permission.
    """
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith("tensorflow") or "gs://" not in str(error):
            raise
        raise UnreachableError(
            f"a bucket cannot be reached: {' '.join(str(error).split())[:300]}; see to the "
            "network and to `gcloud auth application-default login`"
        ) from error


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


# ---------------------------------- disks -------------------------------------

# Of the disk itself: no path is needed to know that.
_OF_THE_DISK = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "your quota there is used up; make room",
    errno.EROFS: "that disk can only be read; choose a folder on another",
    errno.EFBIG: "the file grew past what that disk or its limits allow",
    errno.EIO: "that disk fails to read or write; look at its health",
}
# Of a path: a socket that may not be connected, for one, says the same words without one.
_OF_A_PATH = {
    errno.EACCES: "you may not write or read there; choose another folder, or change its mode",
    errno.EPERM: "you may not do that there; choose another folder",
    errno.ENOTDIR: "a file stands where a folder is needed; choose another path",
    errno.EEXIST: "something else stands there; choose another path",
    errno.EISDIR: "a folder stands where a file is needed; choose another path",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "symbolic links go in a circle there; choose another path",
}
_REMEDIES = _OF_THE_DISK | _OF_A_PATH
_NUMBERS = {os.strerror(number): number for number in _REMEDIES}
_WORDS = "|".join(re.escape(words) for words in _NUMBERS)

# How libraries write what the system told them; each names the path it was about, if it knows.
_WRITTEN_AS = (
    # TensorFlow: "/a/b; No space left on device"; of an operation, such as those that write events:
    # "{{function_node …}} /a/b; No space left on device" and more lines.
    (
        re.compile(rf"^(?:{{{{[^{{}}]*+}}}} )?(?P<path>.+); (?P<words>{_WORDS})(?:\n|$)"),
        "tensorflow.",
    ),
    # tensorstore: 'NOT_FOUND: Error writing local file "/a/b": …: Permission denied [os_error…',
    # 'RESOURCE_EXHAUSTED: Failed writing: "/a/b": …: No space left on device [os_error…'.
    (
        re.compile(
            r'^[A-Z_]+: (?>.{0,999}?"(?P<path>/[^"\\]++)).{0,9999}?: '
            rf"(?P<words>{_WORDS})(?: \[|$)",
            re.DOTALL,
        ),
        "builtins.",
    ),
    # Rust's libraries, such as safetensors: "… No space left on device (os error 28)".
    (re.compile(rf"(?P<path>)(?P<words>{_WORDS}) \(os error \d+\)"), ""),
)
# TensorFlow's own words for a file that stands where a folder is needed.
_NOT_A_FOLDER = re.compile(r"^(?P<path>/.*) is not a directory$")

# These are mistakes in a program, whatever had gone wrong when they were made.
_MISTAKES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    NotImplementedError,
    TypeError,
)


def describe_disk_error(error: BaseException) -> str | None:
    """One line for a full, read-only or forbidden disk, however a library has wrapped its words.

    Returns:
      What was wrong, where, and the remedy; None where `error` is about something else.
    """
    for each in _chain(error):
        found = _read_number(each) or _read_words(each)
        if found is not None:
            number, path = found
            where = f"{path}: " if path else ""
            return f"{where}{os.strerror(number)}; {_REMEDIES[number]}"
    return None


def name_disk(error: BaseException, folder: str) -> None:
    """Notes `folder` in a disk's error that names no path: its file was open already."""
    for each in _chain(error):
        if isinstance(each, OSError) and each.errno in _OF_THE_DISK and each.filename is None:
            each.filename = os.path.join(folder, "")


def _read_number(error: BaseException) -> tuple[int, str] | None:
    """(error number, path or '') of an error that Python itself raised."""
    if not isinstance(error, OSError) or error.errno is None:
        return None
    path = error.filename2 or error.filename
    if error.errno in _OF_THE_DISK or (error.errno in _OF_A_PATH and path is not None):
        return error.errno, os.fsdecode(path) if isinstance(path, str | bytes) else ""
    return None


def _read_words(error: BaseException) -> tuple[int, str] | None:
    """(error number, path or '') of an error in which a library quotes the system."""
    if isinstance(error, OSError):
        return None
    kind, message = f"{type(error).__module__}.", str(error)
    for pattern, module in _WRITTEN_AS:
        if kind.startswith(module) and (found := pattern.search(message)):
            return _NUMBERS[found["words"]], found["path"]
    if kind.startswith("tensorflow.") and (found := _NOT_A_FOLDER.search(message)):
        return errno.ENOTDIR, found["path"]
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what caused it, and so on, down to a mistake of a program."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        if isinstance(error, _MISTAKES):
            return
        hidden = error.__suppress_context__
        error = error.__cause__ or (None if hidden else error.__context__)
