"""What reaches the terminal: lines, tables and consoles on which data stays data.

Enters: texts from teachers, servers, files, paths. Leaves: the same without anything that a
terminal obeys (escape sequences, C0 and C1 controls) and without rich's markup: `[red]` in a path
is a path.

No other module makes a console or a table of rich's, or prints (a test sees to it), so that what
is shown is cleaned in one place, on its very last step.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from rich.box import HEAVY_HEAD, Box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

# C0 but for tab and line feed, delete, C1, the separators that some terminals take for a line feed,
# the marks that turn the direction of writing, and halves of characters, which UTF-8 cannot write.
_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)

# Off a terminal rich takes 80 columns; a table in a log may be wider.
_WIDTH_OFF_TERMINAL = 100


def clean(text: str) -> str:
    r"""The text with every control character shown as an escape, such as `\x1b`."""
    return _CONTROLS.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


def say(message: str, stderr: bool = False) -> None:
    """Prints a message, in which data may stand, as lines of their own."""
    _write(clean(message), stderr)


def say_json(value: object, indent: int | None = None) -> None:
    r"""Prints a JSON value on standard output, for programs; a control stands as `\u001b`."""
    text = json.dumps(value, indent=indent, default=str)
    _write(text.replace("\x7f", "\\u007f"))  # the one control that json lets pass


def _write(text: str, stderr: bool = False) -> None:
    stream = find_stream(stderr)
    # A terminal or pipe of another encoding shows escapes where it lacks a character.
    encoding = getattr(stream, "encoding", None) or "utf-8"
    with contextlib.suppress(LookupError):
        text = text.encode(encoding, "backslashreplace").decode(encoding)
    print(text, file=stream, flush=True)


def find_stream(stderr: bool = False) -> TextIO:
    """Standard output or standard error; one that swallows all where the shell has closed it."""
    stream = sys.stderr if stderr else sys.stdout
    return io.StringIO() if stream is None else stream


class _Console(Console):
    """A console that cleans whatever text it is about to lay out, and once more to write."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(clean(text), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else clean(text), style, control)


def make_console(
    stderr: bool = False,
    *,
    width: int | None = None,
    soft_wrap: bool = False,
    quiet: bool = False,
) -> Console:
    """A console of ours: no markup, no emoji codes, no guessed colours in what it prints."""
    stream = find_stream(stderr)
    if width is None and not stream.isatty():
        width = _WIDTH_OFF_TERMINAL
    return _Console(
        file=stream,
        width=width,
        markup=False,
        emoji=False,
        highlight=False,
        soft_wrap=soft_wrap,
        quiet=quiet,
    )


def make_table(
    *columns: str, title: str | None = None, right_from: int | None = None, frame: Box = HEAVY_HEAD
) -> Table:
    """A table whose title and cells (`add_row`) are taken as they are.

    Args:
      columns: their names; all empty: no header.
      title: stands above it.
      right_from: from this column on, counted from 0, cells are set right, as numbers are.
      frame: the lines around and between them.
    """
    shown = Text(clean(title), style="table.title") if title is not None else None
    table = Table(title=shown, title_justify="left", show_header=any(columns), box=frame)
    for position, column in enumerate(columns):
        is_right = right_from is not None and position >= right_from
        table.add_column(Text(clean(column)), justify="right" if is_right else "left")
    return table


def add_row(table: Table, *cells: str, end_section: bool = False) -> None:
    """Adds a row whose cells are data: controls are shown, markup is not read."""
    table.add_row(*(Text(clean(cell)) for cell in cells), end_section=end_section)


@contextlib.contextmanager
def show_status(what: str) -> Iterator[None]:
    """A spinner on standard error while something is done; silent off a terminal."""
    console = make_console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(Text(clean(what))):
        yield


def silence(descriptor: int) -> None:
    """Lets go of a standard stream that nobody reads or that cannot be written any more.

    What Python still holds back for it would raise again when the process ends.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
