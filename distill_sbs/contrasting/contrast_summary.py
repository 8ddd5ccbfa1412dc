"""What a contrast found, for people: a table, and what to be warned of.

Enters: a manifest. Leaves: text on standard output.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from distill_sbs.cli import terminal
from distill_sbs.contrasting.selection import HISTOGRAM_EDGES

if TYPE_CHECKING:
    from distill_sbs.data.records.soft_labels import Manifest


def warn_of(accuracies: Mapping[str, float]) -> Iterator[str]:
    """One line where the expert is not better than the amateur on validation."""
    if accuracies and accuracies["expert"] <= accuracies["amateur"]:
        yield (
            f"the expert's accuracy on validation, {accuracies['expert']:.1%}, is not above the "
            f"amateur's, {accuracies['amateur']:.1%}: such a contrast makes students worse; give "
            "a weaker amateur"
        )


def print_summary(manifest: Manifest) -> None:
    """Prints the figures of a contrast: one row each, then the histogram of divergences."""
    table = terminal.make_table(
        "", "", title=f"{manifest.dataset}_contrast_{manifest.name}", right_from=1
    )
    for role, accuracy in manifest.validation.items():
        terminal.add_row(table, f"{role}, accuracy on validation", f"{accuracy:.1%}")
    valid = max(manifest.valid, 1)
    for name, value in (
        ("problems decoded", f"{manifest.problems:,}"),
        ("rationales to train on", f"{manifest.examples:,}"),
        ("positions", f"{manifest.valid:,}"),
        ("β, in nats", f"{manifest.beta:.3f}"),
        ("positions kept", f"{manifest.kept:,}"),
        ("share kept", f"{manifest.kept / valid:.1%}"),
        (f"kept with more than {manifest.top_k} plausible tokens", f"{manifest.overflow:,}"),
    ):
        terminal.add_row(table, name, value)
    terminal.add_row(
        table, "mean divergence, in nats", f"{manifest.mean_divergence:.3f}", end_section=True
    )
    ends = [f"to {edge:g}" for edge in HISTOGRAM_EDGES[1:]] + ["and above"]
    for start, end, count in zip(HISTOGRAM_EDGES, ends, manifest.histogram, strict=True):
        terminal.add_row(table, f"divergence {start:g} {end}", f"{count:,} ({count / valid:.1%})")
    terminal.make_console().print(table)
