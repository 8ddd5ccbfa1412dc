"""How a report's figures look: colours, axes, legends, and the files they become.

Enters: what is to be drawn. Leaves: `Figure`s, the same bytes for the same drawing and matplotlib.

Colours are those of Okabe and Ito, which colour-blind people tell apart; every line has a marker
and a dash pattern as well. What stands in a figure is data: it is not read as mathematics, and an
SVG holds shapes, no scripts. Nothing of matplotlib's global state is used or left changed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from distill_sbs.reporting import words
from distill_sbs.reporting.findings import Cell, Series

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType  # from Matplotlib 3.11 on

_DOTS_PER_INCH = 150

# Okabe and Ito (2008): blue, orange, green, purple, sky blue, vermilion, black; yellow is hardly
# seen on white and comes last.
_BLUE, _ORANGE, _GREEN, _PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
_SKY, _VERMILION, _BLACK, _YELLOW = "#56B4E9", "#D55E00", "#000000", "#F0E442"
PREFERRED = {
    words.FINETUNE: _BLACK,
    words.DSS: _BLUE,
    words.DSS_DISTILL: _SKY,
    words.DISTILL: _ORANGE,
    words.JOINT: _GREEN,
    words.PINTO: _PURPLE,
}
_CYCLE = (_BLUE, _ORANGE, _GREEN, _PURPLE, _SKY, _VERMILION, _BLACK, _YELLOW)
_MARKERS = "osD^vPX<>*"
_DASHES = ("-", "--", "-.", ":")
LINE_COLOUR = "#555555"
_LEGEND_ROW = 0.19  # inches

_STYLE: Mapping[RcKeyType, object] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "grid.alpha": 0.3,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "distill_sbs",
    "text.parse_math": False,
    "text.usetex": False,
}


@dataclasses.dataclass(frozen=True)
class Figure:
    """A drawn figure.

    Attributes:
      name: of its files.
      title: what it shows.
      caption: what its lines and bands mean, and n.
      png: its bytes.
      svg: its text.
    """

    name: str
    title: str
    caption: str
    png: bytes
    svg: str


@dataclasses.dataclass(frozen=True)
class Style:
    """How a line looks."""

    colour: str
    marker: str
    dash: str


def render(name: str, title: str, caption: str, fill: Callable[[Canvas], None]) -> Figure:
    """Draws on a canvas of its own; nothing of matplotlib's global state is used or left."""
    with matplotlib.rc_context(dict(_STYLE)), _no_warnings_of_glyphs():
        canvas = Canvas(figsize=(6.4, 3.6))
        fill(canvas)
        png, svg = io.BytesIO(), io.StringIO()
        canvas.savefig(png, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
        canvas.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    return Figure(name, title, caption, png.getvalue(), svg.getvalue())


@contextlib.contextmanager
def _no_warnings_of_glyphs() -> Iterator[None]:
    """A character that the font lacks is drawn as a box."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def mark_fractions(axes: Axes, fractions: Sequence[float]) -> None:
    """Ticks at the fractions that were run; logarithmic where they span a lot."""
    found = sorted(set(fractions))
    if found[-1] / found[0] >= 15:
        axes.set_xscale("log")
    axes.set_xlabel("share of the training data (%)")
    mark_ticks(axes, found, lambda value: f"{100 * value:.4g}")


def mark_ticks(axes: Axes, values: Sequence[float], show: Callable[[float], str]) -> None:
    """Ticks at these values, as many as have room; no others."""
    is_log = axes.get_xscale() == "log"
    low, high = values[0], values[-1]

    def locate(value: float) -> float:
        if low == high:
            return 0.5
        if is_log:
            return math.log(value / low) / math.log(high / low)
        return (value - low) / (high - low)

    kept = [high]
    for value in reversed(values[:-1]):
        if locate(kept[-1]) - locate(value) >= 0.065:
            kept.append(value)
    axes.xaxis.set_major_locator(FixedLocator(kept[::-1]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: show(float(value))))


def add_legend(canvas: Canvas, panels: Sequence[Axes], widest: int = 36) -> None:
    """What the lines of all panels are, below them, in room of its own.

    Args:
      canvas: grows by as much.
      panels: whose lines.
      widest: characters of a label beside which another has room.
    """
    handles: dict[str, Artist] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if not handles:
        return
    columns = 1 if max(map(len, handles)) > widest else 2
    rows = -(-len(handles) // columns)
    width, height = canvas.get_size_inches()
    canvas.set_size_inches(width, height + _LEGEND_ROW * rows)
    canvas.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=columns)


def choose_styles(cells: Sequence[Cell]) -> dict[tuple[str, Series], Style]:
    """For each dataset's series a colour, a marker and a dash pattern, the same in all figures.

    The series of a method that has most points has the method's own colour.
    """
    points: dict[str, dict[Series, int]] = {}
    for cell in cells:
        of_dataset = points.setdefault(cell.dataset, {})
        of_dataset[cell.series] = of_dataset.get(cell.series, 0) + 1
    styles: dict[tuple[str, Series], Style] = {}
    for dataset, counts in points.items():
        reserved = {PREFERRED[each.method] for each in counts if each.method in PREFERRED}
        uses = dict.fromkeys(_CYCLE, 0)
        ordered = sorted(counts, key=lambda each: (-counts[each], each.rank()))
        for number, series in enumerate(ordered):
            wanted = PREFERRED.get(series.method)
            if wanted is None or uses[wanted]:
                free = [colour for colour in _CYCLE if colour not in reserved] or list(_CYCLE)
                wanted = min(free, key=lambda colour: (uses[colour], _CYCLE.index(colour)))
            styles[dataset, series] = Style(
                wanted, _MARKERS[number % len(_MARKERS)], _DASHES[uses[wanted] % len(_DASHES)]
            )
            uses[wanted] += 1
    return styles


def keep_one_rate(cells: Sequence[Cell]) -> tuple[list[Cell], str]:
    """Of every method the λ with most points, of equals the nearest to 1; and a note of it."""
    counts: dict[Series, dict[float, int]] = {}
    for cell in cells:
        if cell.series.rate is not None:
            by_rate = counts.setdefault(drop_rate(cell.series), {})
            by_rate[cell.series.rate] = by_rate.get(cell.series.rate, 0) + 1
    chosen = {
        series: min(by_rate, key=lambda rate: (-by_rate[rate], abs(rate - 1), rate))
        for series, by_rate in counts.items()
    }
    kept = [
        cell
        for cell in cells
        if cell.series.rate is None or cell.series.rate == chosen[drop_rate(cell.series)]
    ]
    if len(kept) == len(cells):
        return kept, ""
    rates = sorted({rate for series, rate in chosen.items() if len(counts[series]) > 1})
    return kept, f" Shown is λ = {', '.join(f'{rate:g}' for rate in rates)}."


def drop_rate(series: Series) -> Series:
    """What lines over λ have in common."""
    return dataclasses.replace(series, rate=None)
