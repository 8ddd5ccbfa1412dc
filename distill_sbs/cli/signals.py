"""Signals that end a process, handled in another way for a while.

Enters and leaves: the process's own handlers.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence

# A batch system's, Ctrl-C, a terminal that was closed.
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextlib.contextmanager
def keep_handlers(numbers: Sequence[signal.Signals] = ENDING) -> Iterator[list[signal.Signals]]:
    """Afterwards the signals go where they went before, whoever handled them meanwhile.

    Yields those that may be given a handler inside. Not among them are what is ignored (`nohup`, or
    `… &` in a script) and what was set outside Python; outside the main thread, where Python lets
    nobody set one, there are none.
    """
    if threading.current_thread() is not threading.main_thread():
        yield []
        return
    before = {number: signal.getsignal(number) for number in numbers}
    known = {number: handler for number, handler in before.items() if handler is not None}
    try:
        yield [number for number, handler in known.items() if handler != signal.SIG_IGN]
    finally:
        for number, handler in known.items():
            signal.signal(number, handler)
