"""The progress of reading and writing parameters, on the terminal.

Enters: how many values in all, and how many more are done. Leaves: a bar on standard error, in
bytes of float32; nothing off a terminal, and nothing of what comes through is kept.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

_BYTES = 4  # of a float32


@contextlib.contextmanager
def values_bar(what: str, values: int, silent: bool = False) -> Iterator[Callable[[int], None]]:
    """A bar for `values` values; gives the function that is told of each part that is done."""
    console = Console(file=sys.stderr)
    with Progress(
        *Progress.get_default_columns(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=console,
        disable=silent or not console.is_terminal,
        transient=True,
    ) as bar:
        task = bar.add_task(what, total=_BYTES * values)
        yield lambda count: bar.advance(task, _BYTES * count)
