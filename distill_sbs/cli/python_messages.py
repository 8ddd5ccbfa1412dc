"""What Python itself prints: tracebacks, warnings, log lines; data in them stays data too.

Enters: exceptions that nobody caught, warnings and log records of libraries, in a program of ours.
Leaves: the same lines on standard error, controls shown as escapes (`terminal.clean`). In programs
of other people's that import this package nothing changes.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import traceback
import types
import warnings
from typing import Any

from distill_sbs.cli import working_folder


def watch() -> None:
    """Cleans what Python prints from now on, if this process is about to run a program of ours."""
    if working_folder.is_program_of_ours():
        clean_messages()


def clean_messages() -> None:
    """Cleans what Python prints from now on."""
    sys.excepthook = show_exception
    sys.unraisablehook = show_unraisable
    threading.excepthook = _show_exception_of_thread
    warnings.showwarning = _show_warning
    logging.setLogRecordFactory(_LogRecord)


def show_exception(
    kind: type[BaseException], error: BaseException, trace: types.TracebackType | None
) -> None:
    """Prints a traceback."""
    _say("".join(traceback.format_exception(kind, error, trace)))


def show_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """Prints an exception that was raised where nobody could catch it, in a callback say."""
    _say(f"{unraisable.err_msg or 'Exception ignored in'}: {unraisable.object!r}")
    if unraisable.exc_value is not None:
        show_exception(unraisable.exc_type, unraisable.exc_value, unraisable.exc_traceback)


def _show_exception_of_thread(arguments: threading.ExceptHookArgs) -> None:
    if arguments.exc_value is None or isinstance(arguments.exc_value, SystemExit):
        return
    _say(f"Exception in thread {getattr(arguments.thread, 'name', '')}:")
    show_exception(arguments.exc_type, arguments.exc_value, arguments.exc_traceback)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    text = warnings.formatwarning(message, category, filename, lineno, line)
    if file is None:
        _say(text)
    else:
        file.write(_clean(text))


def _say(message: str) -> None:
    from distill_sbs.cli import terminal  # here: `import distill_sbs` stays quick without rich

    with contextlib.suppress(OSError):  # nobody reads it any more
        terminal.say(message.rstrip(), stderr=True)


def _clean(text: str) -> str:
    from distill_sbs.cli import terminal

    return terminal.clean(text)


class _LogRecord(logging.LogRecord):
    """A record whose text is clean, whichever handler shows it."""

    def getMessage(self) -> str:
        if self.exc_info and not self.exc_text:  # handlers take it from here
            self.exc_text = _clean("".join(traceback.format_exception(*self.exc_info)))
        return _clean(super().getMessage())
