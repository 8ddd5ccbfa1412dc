"""Bars for long work, on standard error; nothing is shown off a terminal.

Enters: what is being done, how much of it there is, and each part as it is done. Leaves: a bar that
is gone when the work is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.progress import DownloadColumn, MofNCompleteColumn, Progress, TransferSpeedColumn

from distill_sbs.cli import terminal

_BYTES = 4  # of a float32


@contextlib.contextmanager
def show_progress(
    what: str, total: int | None, silent: bool = False
) -> Iterator[Callable[[int], None]]:
    """A bar for `total` things (None: nobody knows); gives the function that moves it."""
    console = terminal.make_console(stderr=True)
    with Progress(
        *Progress.get_default_columns(),
        MofNCompleteColumn(),
        console=console,
        disable=silent or not console.is_terminal,
        transient=True,
    ) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


@contextlib.contextmanager
def show_values(what: str, values: int, silent: bool = False) -> Iterator[Callable[[int], None]]:
    """A bar for `values` parameters, told in bytes of float32; gives the function that moves it."""
    console = terminal.make_console(stderr=True)
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
