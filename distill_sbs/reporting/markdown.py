"""A report as Markdown, with its figures beside it.

Enters: a `Document`. Leaves: the text of `report.md`. What comes from data stands in it as text:
each character that Markdown or HTML could read is escaped, and commands stand in fences.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from distill_sbs.reporting import words
from distill_sbs.reporting.document import Document
from distill_sbs.reporting.table_form import Table

FIGURES_FOLDER = "figures"
_PUNCTUATION = re.compile(r"[\\`*_\[\]|~$@^]")
# What makes a line more than a line of text: a heading, a list, a rule.
_START = re.compile(r"^(?:[#+=:-]|\d+(?=[.)](?: |$)))")


def escape(text: str) -> str:
    """A text on one line, as Markdown that shows it."""
    line = words.join_lines(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = _PUNCTUATION.sub(r"\\\g<0>", line).replace("://", r":\//").replace("www.", r"www\.")
    if start := _START.match(line):
        is_number = start.group().isdigit()
        cut = start.end() if is_number else 0
        line = f"{line[:cut]}\\{line[cut:]}"
    return line


def write_markdown(document: Document) -> str:
    """The whole report."""
    lines = ["# Report on runs", "", escape(document.summary), ""]
    if document.headlines:
        lines += ["## Findings", "", *(f"- {escape(line)}" for line in document.headlines), ""]
    for table in document.tables:
        if table.is_overview:
            lines += _section(table)
    if document.figures:
        lines += ["## Figures", ""]
    for figure in document.figures:
        lines += [
            f"![{escape(figure.title)}]({FIGURES_FOLDER}/{figure.name}.png)",
            "",
            escape(f"{figure.title}. {figure.caption}"),
            "",
        ]
    for table in document.tables:
        if not table.is_overview:
            lines += _section(table)
    if document.problems:
        lines += ["## Passed over", "", *(f"- {escape(line)}" for line in document.problems), ""]
    return "\n".join(lines).rstrip() + "\n"


def _section(table: Table) -> list[str]:
    title = [f"## {escape(table.title)}", "", escape(table.note), ""]
    return [*title, *_rows(table), "", *_commands(table)]


def _rows(table: Table) -> Iterator[str]:
    yield "| " + " | ".join(escape(column.title) for column in table.columns) + " |"
    yield "|" + "".join(" ---: |" if column.is_number else " --- |" for column in table.columns)
    for row in table.rows:
        yield "| " + " | ".join(escape(entry.text) for entry in row) + " |"


def _commands(table: Table) -> list[str]:
    """The commands of all rows in a fence that none of them can close."""
    commands = [words.show_lines(command) for of_row in table.commands for command in of_row]
    if not commands or table.name != "runs":
        return []
    text = "\n".join(dict.fromkeys(commands))
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}sh", text, fence, ""]
