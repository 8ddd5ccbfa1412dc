"""What reaches the terminal: consoles on which data stays data.

Enters: texts from teachers, servers, files, paths. Leaves: the same without anything that a
terminal obeys (escape sequences, C0 and C1 controls) and without rich's markup: `[red]` in a path
is a path.
"""

from __future__ import annotations

import re
import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

# C0 but for tab and line feed, delete, C1, and the marks that turn the direction of writing.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

# Off a terminal rich takes 80 columns; a table in a log may be wider.
_WIDTH_OFF_TERMINAL = 100


def clean(text: str) -> str:
    r"""The text with every control character shown as an escape, such as `\x1b`."""
    return _CONTROLS.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


def make_console(stderr: bool = False, **options: Any) -> Console:
    """A console of ours: no markup, no emoji codes, no guessed colours in what it prints."""
    file = sys.stderr if stderr else sys.stdout
    if not file.isatty():
        options.setdefault("width", _WIDTH_OFF_TERMINAL)
    return Console(file=file, markup=False, emoji=False, highlight=False, **options)


def make_table(*columns: str, title: str | None = None, **options: Any) -> Table:
    """A table whose title and cells (`row`) are taken as they are; without columns no header."""
    shown = Text(clean(title)) if title is not None else None
    table = Table(title=shown, title_justify="left", show_header=bool(columns), **options)
    for column in columns:
        table.add_column(Text(clean(column)))
    return table


def add_row(table: Table, *cells: str) -> None:
    """Adds a row whose cells are data: controls are shown, markup is not read."""
    table.add_row(*(Text(clean(cell)) for cell in cells))


def say(message: str, stderr: bool = False) -> None:
    """Prints one line, in which data may stand."""
    print(clean(message), file=sys.stderr if stderr else sys.stdout, flush=True)
