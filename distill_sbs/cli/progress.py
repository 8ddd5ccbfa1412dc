"""Bars for long work, on standard error; nothing is shown off a terminal.

Enters: what is being done, how much of it there is, and each part as it is done. Leaves: a bar that
is gone when the work is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from distill_sbs.cli import terminal

_BYTES = 4  # of a float32


def make_bar(console: Console, *columns: ProgressColumn | str, silent: bool = False) -> Progress:
    """A bar of rich's, gone when it is done; a text among the columns is shown as it is.

    Args:
      console: of `terminal.make_console`.
      columns: what stands in the bar's line; a text may name fields, such as '{task.description}'.
      silent: show nothing, on a terminal either.
    """
    return Progress(
        *(
            TextColumn(column, markup=False) if isinstance(column, str) else column
            for column in columns
        ),
        console=console,
        disable=silent or not console.is_terminal,
        transient=True,
    )


@contextlib.contextmanager
def show_progress(
    what: str, total: int | None, silent: bool = False
) -> Iterator[Callable[[int], None]]:
    """A bar for `total` things (None: nobody knows); gives the function that moves it."""
    with _show(what, total, silent, MofNCompleteColumn()) as advance:
        yield advance


@contextlib.contextmanager
def show_values(what: str, values: int, silent: bool = False) -> Iterator[Callable[[int], None]]:
    """A bar for `values` parameters, told in bytes of float32; gives the function that moves it."""
    columns = (DownloadColumn(), TransferSpeedColumn())
    with _show(what, _BYTES * values, silent, *columns) as advance:
        yield lambda count: advance(_BYTES * count)


@contextlib.contextmanager
def _show(
    what: str, total: int | None, silent: bool, *columns: ProgressColumn
) -> Iterator[Callable[[int], None]]:
    usual = ("{task.description}", BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    console = terminal.make_console(stderr=True)
    with make_bar(console, *usual, *columns, silent=silent) as bar:
        task = bar.add_task(terminal.clean(what), total=total)
        yield lambda count: bar.advance(task, count)
