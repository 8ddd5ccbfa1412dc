"""A report, whole, before it is written in any form.

Enters: what `reading` found. Leaves: a `Document` of sentences, tables and figures.
"""

from __future__ import annotations

import dataclasses

from distill_sbs.reporting.drawing import Figure
from distill_sbs.reporting.findings import find
from distill_sbs.reporting.names import state_headlines
from distill_sbs.reporting.parallel import draw_figures
from distill_sbs.reporting.reading import Found
from distill_sbs.reporting.table_form import Table
from distill_sbs.reporting.tables import make_tables


@dataclasses.dataclass(frozen=True)
class Document:
    """What a report says.

    Attributes:
      summary: how many runs there are, and in what state.
      headlines: a sentence each.
      tables: in order.
      figures: in order.
      problems: what was passed over or left out, a line each.
    """

    summary: str
    headlines: tuple[str, ...]
    tables: tuple[Table, ...]
    figures: tuple[Figure, ...]
    problems: tuple[str, ...]


def make_document(found: Found, split: str) -> Document:
    """The report on the runs that were found, by their accuracies on a split."""
    findings = find(found.runs, split)
    figures, notes = draw_figures(findings)
    finished = sum(run.is_finished for run in found.runs)
    summary = f"{_count(finished, 'run')} finished, {len(found.runs) - finished} not"
    if found.problems:
        summary += f", {_count(len(found.problems), 'file')} passed over"
    return Document(
        f"{summary}. Accuracies are on {split}.",
        tuple(state_headlines(findings)),
        tuple(make_tables(findings, found.runs)),
        tuple(figures),
        (*found.problems, *findings.problems, *notes),
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
