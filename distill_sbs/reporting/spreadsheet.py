"""The tables of a report as CSV.

Enters: a `Table`. Leaves: the text of a file, UTF-8 with line feeds: shares from 0 to 1 as numbers,
texts in quotes. A text that a spreadsheet would take for a formula stands behind an apostrophe.
"""

from __future__ import annotations

import csv
import io

from distill_sbs.reporting import words
from distill_sbs.reporting.table_form import Entry, Table

# Also as the wide characters that some spreadsheets fold into these.
_STARTS_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠", "|", "%")


def write_csv(table: Table) -> str:
    """The table; a column `command` last where its rows have commands, one a line."""
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    has_commands = any(table.commands)
    writer.writerow([column.key for column in table.columns] + ["command"] * has_commands)
    for number, row in enumerate(table.rows):
        values = [_value(entry) for entry in row]
        if has_commands:
            values.append(escape(words.show_lines("\n".join(table.commands[number]))))
        writer.writerow(values)
    return text.getvalue()


def _value(entry: Entry) -> str | int | float:
    if isinstance(entry.value, int | float):
        return float(f"{entry.value:.10g}") if isinstance(entry.value, float) else entry.value
    return escape(words.join_lines(entry.value or ""))


def escape(text: str) -> str:
    """A text that no spreadsheet evaluates."""
    return f"'{text}" if text.lstrip(" \t\n'\"").startswith(_STARTS_FORMULA) else text
