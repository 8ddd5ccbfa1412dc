"""Runs that were pretrained, where nothing is right or wrong: a table and a figure of their losses.

Enters: `Run`s. Leaves: a `Table`, and curves on a canvas.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.figure import Figure as Canvas

from distill_sbs.reporting import words
from distill_sbs.reporting.drawing import (
    BLUE,
    ORANGE,
    Style,
    add_legend,
    mark_steps,
    space_markers,
)
from distill_sbs.reporting.names import name_model
from distill_sbs.reporting.run import Run, list_commands
from distill_sbs.reporting.table_form import Column, Entry, Table

LOSSES_CAPTION = "Mean cross-entropy of the tokens that were taken out, of one run."

# By the curve's name, what it is called and how it looks.
_LOSSES = {
    "label_loss": ("training", Style(BLUE, "o", "-")),
    "validation_loss": ("validation", Style(ORANGE, "s", "--")),
}
# A perplexity beyond e to the power of this says nothing more, and at last is no number.
_LARGEST_LOSS = 100.0


def make_pretraining_table(runs: Sequence[Run]) -> Table:
    """A row a run: its loss on validation, and its perplexity."""
    rows, commands = [], []
    for run in runs:
        loss = run.validation_loss
        perplexity = None if loss is None or loss > _LARGEST_LOSS else math.exp(loss)
        rows.append(
            (
                Entry(run.folder),
                Entry(run.dataset),
                Entry("–" if run.model is None else name_model(run.model)),
                Entry(run.fraction, words.show_fraction(run.fraction)),
                Entry(run.train_steps),
                Entry(loss, "–" if loss is None else f"{loss:.3f}"),
                Entry(perplexity, "–" if perplexity is None else f"{perplexity:.4g}"),
            )
        )
        commands.append(list_commands([run]))
    return Table(
        "pretraining",
        "Pretraining",
        "On validation: the mean cross-entropy of what was taken out, in nats a token, and e to "
        "the power of it.",
        (
            Column("folder", "folder"),
            Column("dataset", "text"),
            Column("model", "student"),
            Column("data_fraction", "data", True),
            Column("train_steps", "steps", True),
            Column("validation_loss", "loss", True),
            Column("perplexity", "perplexity", True),
        ),
        tuple(rows),
        tuple(commands),
    )


def has_losses(run: Run) -> bool:
    """Whether there is a curve to draw."""
    return bool(_LOSSES.keys() & run.curves.keys())


def draw_losses(canvas: Canvas, title: str, run: Run) -> None:
    """Both losses over the steps."""
    axes = canvas.add_subplot()
    axes.set_title(words.cut(title, 78))
    axes.set_ylabel("nats a token")
    mark_steps(axes)
    for name, (label, style) in _LOSSES.items():
        if name not in run.curves:
            continue
        steps, losses = zip(*run.curves[name], strict=True)
        axes.plot(
            steps,
            losses,
            **style.of_line,
            markersize=4,
            markevery=space_markers(steps),
            label=label,
        )
    add_legend(canvas, [axes], "Mean cross-entropy of what was taken out: n = 1 run.")
