"""What a table of a report is: columns, and rows of entries.

Enters: values and the words that show them. Leaves: frozen tables, which `markdown`, `page` and
`spreadsheet` write.
"""

from __future__ import annotations

import dataclasses

from distill_sbs.reporting import words

Value = str | int | float | None


@dataclasses.dataclass(frozen=True)
class Entry:
    """One cell of a table.

    Attributes:
      value: what it is sorted by, and what CSV has.
      shown: what a person reads; empty: the value as text.
    """

    value: Value
    shown: str = ""

    @property
    def text(self) -> str:
        """What a person reads, on one line."""
        if self.shown:
            return words.join_lines(self.shown)
        return "–" if self.value is None else words.join_lines(str(self.value))


@dataclasses.dataclass(frozen=True)
class Column:
    """Its name in CSV, its heading, and whether it holds numbers, or sentences."""

    key: str
    title: str
    is_number: bool = False
    is_prose: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
      name: of its file.
      title: stands above it.
      note: what its numbers mean.
      columns: see `Column`.
      rows: as many entries each.
      commands: for each row what reproduces it; empty where no row has any.
      is_overview: whether all in it stands in another table too; it is not written as CSV.
    """

    name: str
    title: str
    note: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Entry, ...], ...]
    commands: tuple[tuple[str, ...], ...] = ()
    is_overview: bool = False
