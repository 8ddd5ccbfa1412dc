"""A report as one HTML page that needs nothing else: no network, no other file.

Enters: a `Document`. Leaves: the page's text. It is built as a tree, so that whatever comes from
data is escaped by the library that writes the tree; the script and the style are fixed texts, and
a content security policy lets the browser run and load nothing else. Figures are images, in which
a browser runs no script.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable
from xml.etree import ElementTree

from distill_sbs.reporting import words
from distill_sbs.reporting.document import Document
from distill_sbs.reporting.drawing import Figure
from distill_sbs.reporting.table_form import Column, Entry, Table

Element = ElementTree.Element

# A click on a heading sorts by its column; a second one the other way round. Empty cells are last.
_SCRIPT = """
"use strict";
function sortBy(header) {
  const table = header.closest("table");
  const body = table.tBodies[0];
  const column = header.cellIndex;
  const isDown = header.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", isDown ? "descending" : "ascending");
  const sign = isDown ? -1 : 1;
  const rows = Array.from(body.rows, (row, index) => {
    const cell = row.cells[column];
    const isNumber = "number" in cell.dataset;
    const isEmpty = "empty" in cell.dataset;
    return { row, index, isEmpty, key: isNumber ? Number(cell.dataset.number) : cell.textContent };
  });
  rows.sort((one, other) => {
    if (one.isEmpty !== other.isEmpty) return one.isEmpty ? 1 : -1;
    let order = 0;
    if (typeof one.key === "number" && typeof other.key === "number") order = one.key - other.key;
    else order = String(one.key).localeCompare(String(other.key), "en", { numeric: true });
    return sign * order || one.index - other.index;
  });
  for (const { row } of rows) body.append(row);
}
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => sortBy(button.closest("th")));
}
"""

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; margin: 0 auto; max-width: 76rem;
  padding: 1.5rem; color: #1a1a1a; background: #fff; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
nav { line-height: 1.9; } nav a { margin-right: 1.2rem; display: inline-block; }
a { color: #0055a0; }
.scroll { overflow: auto; max-height: 90vh; }
table { border-collapse: collapse; font-size: .88rem; }
th, td { padding: .3rem .6rem; text-align: left; vertical-align: top; overflow-wrap: break-word;
  max-width: 26rem; }
td { border-bottom: 1px solid #d5d5d5; }
td.short { white-space: nowrap; }
td.long { min-width: 16rem; }
td.prose { min-width: 10rem; }
th { position: sticky; top: 0; background: #fff; box-shadow: inset 0 -2px #777;
  vertical-align: bottom; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th button { all: unset; cursor: pointer; font-weight: 600; overflow-wrap: normal; }
th button:focus-visible { outline: 2px solid #0072B2; }
th button::after { content: " \\2195"; color: #888; }
th[aria-sort=ascending] button::after { content: " \\2191"; color: #0072B2; }
th[aria-sort=descending] button::after { content: " \\2193"; color: #0072B2; }
.note, figcaption { color: #444; max-width: 60rem; }
figure { margin: 1.5rem 0; overflow-x: auto; } figure img { max-width: 100%; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f4f4f4; padding: .5rem;
  margin: .3rem 0; max-width: 44rem; font-size: .8rem; }
summary { cursor: pointer; color: #0055a0; white-space: nowrap; }
@media (max-width: 46rem) {
  body { padding: 1rem; } ul { padding-left: 1.2rem; }
  td.short { white-space: normal; } td.long { min-width: 10rem; }
  figure img { max-width: none; }
}
@media print { .scroll { max-height: none; } }
"""

# Characters of a cell's text that stand on one line where the screen is wide.
_SHORT = 60
_FINDINGS, _FIGURES, _PASSED_OVER = "findings", "figures", "passed_over"


def write_page(document: Document, title: str = "Report on runs") -> str:
    """The page."""
    html = Element("html", lang="en")
    _head(html, title)
    body = ElementTree.SubElement(html, "body")
    _add(body, "h1", title)
    _add(body, "p", document.summary)
    _contents(body, document)
    if document.headlines:
        _add(body, "h2", "Findings", id=_FINDINGS)
        _list(body, document.headlines)
    for table in document.tables:
        if table.is_overview:
            _table(body, table)
    if document.figures:
        _add(body, "h2", "Figures", id=_FIGURES)
        for figure in document.figures:
            _figure(body, figure)
    for table in document.tables:
        if not table.is_overview:
            _table(body, table)
    if document.problems:
        _add(body, "h2", "Passed over", id=_PASSED_OVER)
        _list(body, document.problems)
    _add(body, "script", _SCRIPT)
    text = ElementTree.tostring(html, encoding="unicode", method="html")
    return f"<!DOCTYPE html>\n{text}\n"


def _head(html: Element, title: str) -> None:
    head = ElementTree.SubElement(html, "head")
    ElementTree.SubElement(head, "meta", charset="utf-8")
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )
    ElementTree.SubElement(
        head, "meta", {"http-equiv": "Content-Security-Policy", "content": policy}
    )
    ElementTree.SubElement(
        head, "meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}
    )
    _add(head, "title", title)
    _add(head, "style", _STYLE)


def _add(parent: Element, tag: str, text: str, **attributes: str) -> Element:
    element = ElementTree.SubElement(parent, tag, attributes)
    element.text = text
    return element


def _contents(body: Element, document: Document) -> None:
    """Links to the parts of the page, in their order."""
    parts = [(_FINDINGS, "Findings")] if document.headlines else []
    parts += [(_heading(each), each.title) for each in document.tables if each.is_overview]
    parts += [(_FIGURES, "Figures")] if document.figures else []
    parts += [(_heading(each), each.title) for each in document.tables if not each.is_overview]
    parts += [(_PASSED_OVER, "Passed over")] if document.problems else []
    links = ElementTree.SubElement(body, "nav")
    for name, title in parts:
        _add(links, "a", words.join_lines(title), href=f"#{name}").tail = " "


def _list(parent: Element, lines: Iterable[str]) -> None:
    items = ElementTree.SubElement(parent, "ul")
    for line in lines:
        _add(items, "li", words.join_lines(line))


def _figure(parent: Element, figure: Figure) -> None:
    element = ElementTree.SubElement(parent, "figure", id=figure.name)
    data = base64.b64encode(figure.svg.encode()).decode()
    title = words.join_lines(figure.title)
    ElementTree.SubElement(element, "img", src=f"data:image/svg+xml;base64,{data}", alt=title)
    _add(element, "figcaption", words.join_lines(f"{figure.title}. {figure.caption}"))


def _heading(table: Table) -> str:
    """The anchor of a table's heading."""
    return f"about_{table.name}"


def _table(parent: Element, table: Table) -> None:
    _add(parent, "h2", words.join_lines(table.title), id=_heading(table))
    _add(parent, "p", words.join_lines(table.note), **{"class": "note"})
    box = ElementTree.SubElement(parent, "div", {"class": "scroll", "tabindex": "0"})
    element = ElementTree.SubElement(box, "table", id=table.name)
    head = ElementTree.SubElement(ElementTree.SubElement(element, "thead"), "tr")
    for column in table.columns:
        attributes = {"class": "number"} if column.is_number else {}
        header = ElementTree.SubElement(head, "th", {"scope": "col", **attributes})
        _add(header, "button", words.join_lines(column.title), type="button")
    has_commands = any(table.commands)
    if has_commands:
        _add(head, "th", "command", scope="col")
    body = ElementTree.SubElement(element, "tbody")
    for number, row in enumerate(table.rows):
        line = ElementTree.SubElement(body, "tr")
        for column, entry in zip(table.columns, row, strict=True):
            _cell(line, entry, column)
        if has_commands:
            _commands(ElementTree.SubElement(line, "td"), table.commands[number])


def _cell(row: Element, entry: Entry, column: Column) -> None:
    kind = "short" if len(entry.text) <= _SHORT else "long"
    kind = "number" if column.is_number else "prose" if column.is_prose else kind
    attributes = {"class": kind}
    if isinstance(entry.value, int | float):
        attributes["data-number"] = repr(entry.value)
    elif entry.value is None:
        attributes["data-empty"] = ""
    # A path may be cut behind its folders.
    first, *others = re.split("(?<=/)", entry.text) if column.key == "folder" else [entry.text]
    cell = _add(row, "td", first, **attributes)
    for part in others:
        ElementTree.SubElement(cell, "wbr").tail = part


def _commands(cell: Element, commands: tuple[str, ...]) -> None:
    if not commands:
        return
    details = ElementTree.SubElement(cell, "details")
    _add(details, "summary", "show" if len(commands) == 1 else f"show {len(commands)}")
    for command in commands:
        _add(details, "pre", words.show_lines(command))
