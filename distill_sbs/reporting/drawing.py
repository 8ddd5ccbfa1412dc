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
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from distill_sbs.reporting import words
from distill_sbs.reporting.findings import Cell, Series

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType  # from Matplotlib 3.11 on

_DOTS_PER_INCH = 150

# Okabe and Ito (2008): blue, orange, green, purple, sky blue, vermilion, black; yellow is hardly
# seen on white and comes last.
BLUE, ORANGE, _GREEN, _PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
_SKY, _VERMILION, _BLACK, _YELLOW = "#56B4E9", "#D55E00", "#000000", "#F0E442"
PREFERRED = {
    words.FINETUNE: _BLACK,
    words.DSS: BLUE,
    words.DSS_DISTILL: _SKY,
    words.DISTILL: ORANGE,
    words.JOINT: _GREEN,
    words.PINTO: _PURPLE,
}
_CYCLE = (BLUE, ORANGE, _GREEN, _PURPLE, _SKY, _VERMILION, _BLACK, _YELLOW)
_MARKERS = "osD^vPX<>*"
_DASHES = ("-", "--", "-.", ":")
LINE_COLOUR = "#555555"
_LEGEND_ROW = 0.19  # inches
# Of a label: characters that the narrowest figure is wide, and lines.
_LEGEND_WIDTH, _LEGEND_LINES = 90, 3
# Markers on a curve of many points, so that lines are told apart without their colours.
_MARKERS_ON_A_CURVE = 6

# Values are shown on a logarithmic axis if the largest is as many times the smallest.
_MUCH = 15
# Of an axis across beyond its outermost values, as a share of their distance.
_MARGIN = 0.045
# Room that a tick's label takes of an axis across, which is 1 wide: a character, and between two.
_CHARACTER, _BETWEEN_TICKS = 0.0135, 0.012

_STYLE: Mapping[RcKeyType, object] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "axes.titley": 1.0,  # no ticks stand above the axes; looking for some takes time
    "figure.autolayout": False,
    "figure.constrained_layout.use": False,
    "figure.dpi": _DOTS_PER_INCH,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "grid.alpha": 0.3,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.title_fontsize": 8,
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


class OfLine(TypedDict):
    """What matplotlib's `plot` asks for."""

    color: str
    marker: str
    linestyle: str


@dataclasses.dataclass(frozen=True)
class Style:
    """How a line looks."""

    colour: str
    marker: str
    dash: str

    @property
    def of_line(self) -> OfLine:
        """By the names that `plot` has for them."""
        return {"color": self.colour, "marker": self.marker, "linestyle": self.dash}


def render(name: str, title: str, caption: str, fill: Callable[[Canvas], None]) -> Figure:
    """Draws on a canvas of its own; nothing of matplotlib's global state is used or left.

    With a layout engine of its own a canvas is laid out, and drawn without paper, before each of
    the two files; hence the layout is found once here.
    """
    with matplotlib.rc_context(dict(_STYLE)), _no_warnings_of_glyphs():
        canvas = Canvas(figsize=(7.2, 3.9))
        fill(canvas)
        png, svg = io.BytesIO(), io.StringIO()
        FigureCanvasAgg(canvas)  # what texts measure is remembered from the layout to the picture
        ConstrainedLayoutEngine().execute(canvas)
        canvas.savefig(png, format="png", metadata={"Software": None})
        canvas.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    return Figure(name, title, caption, png.getvalue(), svg.getvalue())


@contextlib.contextmanager
def _no_warnings_of_glyphs() -> Iterator[None]:
    """A character that the font lacks is drawn as a box."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def mark_steps(axes: Axes) -> None:
    """An axis across of steps."""
    axes.set_xlabel("step")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: words.show_step(value)))


def space_markers(points: Sequence[object]) -> int:
    """How many points of a curve apart its markers stand."""
    return max(1, len(points) // _MARKERS_ON_A_CURVE)


def mark_fractions(axes: Axes, fractions: Sequence[float]) -> None:
    """Ticks at the fractions that were run; logarithmic where they span a lot."""
    found = sorted(set(fractions))
    scale_shares(axes, found)
    axes.set_xlabel("share of the training data (%)")
    mark_ticks(axes, found, lambda value: f"{100 * value:.4g}")


def scale_shares(axes: Axes, values: Sequence[float]) -> None:
    """Makes the axis across logarithmic where ascending values span a lot; 0 has its place left."""
    positive = [value for value in values if value > 0]
    if not positive or positive[-1] / positive[0] < _MUCH:
        return
    if positive[0] == values[0]:
        axes.set_xscale("log")
    else:
        axes.set_xscale("symlog", linthresh=positive[0])


def mark_ticks(axes: Axes, values: Sequence[float], show: Callable[[float], str]) -> None:
    """Ticks at these ascending values, as many as have room, both ends first; no others.

    The axis ends a little beyond them.
    """
    scale = axes.xaxis.get_transform()
    places = scale.transform(np.asarray(values, float))
    width = float(places[-1] - places[0]) or 1.0
    if len(values) > 1:
        ends = np.asarray([places[0] - _MARGIN * width, places[-1] + _MARGIN * width])
        axes.set_xlim(*map(float, scale.inverted().transform(ends)))
    kept: dict[float, float] = {}  # value → place, 0 to 1
    for index in dict.fromkeys([len(values) - 1, 0, *reversed(range(len(values)))]):
        value, place = values[index], float(places[index] - places[0]) / width

        def needs(other: float, value: float = value) -> float:
            return _BETWEEN_TICKS + _CHARACTER * (len(show(value)) + len(show(other))) / 2

        if all(abs(place - at) >= needs(other) for other, at in kept.items()):
            kept[value] = place
    axes.xaxis.set_major_locator(FixedLocator(sorted(kept)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: show(float(value))))


def add_legend(canvas: Canvas, panels: Sequence[Axes], note: str, widest: int = 44) -> None:
    """What the lines of all panels are, below them, in room of its own.

    Args:
      canvas: grows by as much.
      panels: whose lines; a label is one line's, long or not.
      note: stands above the lines: of how many each point is, and what bands are.
      widest: characters of a label beside which another has room.
    """
    handles: dict[str, Artist] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if not handles:
        return
    labels = [words.wrap(label, _LEGEND_WIDTH, _LEGEND_LINES) for label in handles]
    columns = 1 if len(labels) == 1 or max(map(len, labels)) > widest else 2
    lines = sum(label.count("\n") + 1 for label in labels)
    width, height = canvas.get_size_inches()
    canvas.set_size_inches(width, height + _LEGEND_ROW * (1 + -(-lines // columns)))
    canvas.legend(
        list(handles.values()),
        labels,
        loc="outside lower center",
        ncols=columns,
        title=note,
        handlelength=2.6,
    )


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
