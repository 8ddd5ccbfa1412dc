"""The figures of a report: accuracy against data, size and λ, least data and size, training.

Enters: `Findings`. Leaves: `Figure`s, where the runs have the points for them. Bands are mean ±
standard error.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from distill_sbs.reporting import words
from distill_sbs.reporting.drawing import (
    LINE_COLOUR,
    PREFERRED,
    Figure,
    Style,
    add_legend,
    choose_styles,
    drop_rate,
    keep_one_rate,
    mark_fractions,
    mark_ticks,
    render,
)
from distill_sbs.reporting.estimates import estimate
from distill_sbs.reporting.findings import (
    Cell,
    Findings,
    Series,
    TeacherLine,
    find_passing_cells,
    rank_model,
)
from distill_sbs.reporting.names import Names
from distill_sbs.reporting.run import Model

MOST_FIGURES = 60
MOST_LINES = 12


def draw_figures(findings: Findings) -> tuple[list[Figure], list[str]]:
    """Every figure that the runs have the points for, and a line for what was left out."""
    drawer = _Drawer(findings)
    figures: list[Figure] = []
    left = 0
    names: set[str] = set()
    for draw in drawer.plan():
        if len(figures) == MOST_FIGURES:
            left += 1
            continue
        figure = draw()
        assert figure.name not in names
        names.add(figure.name)
        figures.append(figure)
    notes = list(dict.fromkeys(drawer.notes))
    if left:
        notes.append(f"{left} figures more are not drawn; report on fewer runs to see them")
    return figures, notes


class _Drawer:
    """Draws the figures of one report; a series looks the same in all of them."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._names = Names.of(findings.cells)
        self._styles = choose_styles(findings.cells)
        self.notes: list[str] = []

    def plan(self) -> Iterator[Callable[[], Figure]]:
        """What there is to draw, in order."""
        yield from self._by_fraction()
        yield from self._by_size()
        yield from self._least()
        yield from self._by_rate()
        yield from self._over_steps()

    # ------------------------------ data fraction -----------------------------

    def _by_fraction(self) -> Iterator[Callable[[], Figure]]:
        groups: dict[tuple[str, Model | None], list[Cell]] = {}
        for cell in self._findings.cells:
            groups.setdefault((cell.dataset, cell.model), []).append(cell)
        number = itertools.count(1)
        for (dataset, model), cells in groups.items():
            if len({cell.fraction for cell in cells}) > 1:
                yield self._drawing(self._draw_fractions, next(number), dataset, model, cells)

    def _drawing(
        self,
        draw: Callable[[int, str, Model | None, list[Cell]], Figure],
        number: int,
        dataset: str,
        model: Model | None,
        cells: list[Cell],
    ) -> Callable[[], Figure]:
        return lambda: draw(number, dataset, model, cells)

    def _draw_fractions(
        self, number: int, dataset: str, model: Model | None, cells: list[Cell]
    ) -> Figure:
        title = f"{dataset}, {self._names.name_model(model)}: accuracy against data"
        cells, note = keep_one_rate(cells)

        def fill(canvas: Canvas) -> None:
            axes = self._axes(canvas, title)
            self._lines(axes, dataset, cells, lambda cell: cell.fraction)
            for cell in cells:
                if cell.series.method == words.FINETUNE and cell.fraction == 1:
                    style = self._styles[cell.dataset, cell.series]
                    axes.axhline(
                        100 * cell.accuracy.mean, color=style.colour, linestyle=":", linewidth=1
                    )
            self._teacher_lines(axes, dataset)
            mark_fractions(axes, [cell.fraction for cell in cells])
            add_legend(canvas, [axes])

        dotted = any(cell.series.method == words.FINETUNE and cell.fraction == 1 for cell in cells)
        extra = " Dotted: standard finetuning on 100 %." if dotted else ""
        return render(f"data_fraction_{number}", title, self._caption(cells) + extra + note, fill)

    # ------------------------------ size of the student -----------------------

    def _by_size(self) -> Iterator[Callable[[], Figure]]:
        groups: dict[tuple[str, float], list[Cell]] = {}
        for cell in self._findings.cells:
            if cell.model is not None and cell.model.parameters is not None:
                groups.setdefault((cell.dataset, cell.fraction), []).append(cell)
        number = itertools.count(1)
        for (dataset, _), cells in groups.items():
            if len({_size(cell) for cell in cells}) > 1:
                yield self._drawing(self._draw_sizes, next(number), dataset, None, cells)

    def _draw_sizes(self, number: int, dataset: str, _: Model | None, cells: list[Cell]) -> Figure:
        fraction = words.show_fraction(cells[0].fraction)
        title = f"{dataset}, {fraction} of the data: accuracy against size"
        cells, note = keep_one_rate(cells)

        def fill(canvas: Canvas) -> None:
            axes = self._axes(canvas, title)
            axes.set_xscale("log")
            self._lines(axes, dataset, cells, _size)
            self._teacher_lines(axes, dataset)
            axes.set_xlabel("parameters of the student")
            mark_ticks(axes, sorted({_size(cell) for cell in cells}), words.show_count)
            add_legend(canvas, [axes])

        return render(f"model_size_{number}", title, self._caption(cells) + note, fill)

    # ------------------------------ least size and data -----------------------

    def _least(self) -> Iterator[Callable[[], Figure]]:
        number = itertools.count(1)
        for line in self._findings.lines:
            passing = {
                each.series: found
                for each in self._findings.size_headlines
                if each.line == line
                and (
                    found := [
                        c
                        for c in find_passing_cells(self._findings.cells, line, each.series)
                        if c.model is not None and c.model.parameters is not None
                    ]
                )
            }
            if passing:
                yield self._drawing_least(next(number), line, passing)

    def _drawing_least(
        self, number: int, line: TeacherLine, passing: Mapping[Series, list[Cell]]
    ) -> Callable[[], Figure]:
        return lambda: self._draw_least(number, line, passing)

    def _draw_least(
        self, number: int, line: TeacherLine, passing: Mapping[Series, list[Cell]]
    ) -> Figure:
        title = f"{line.dataset}: least data and size above the teacher {line.teacher}"
        cells = [cell for found in passing.values() for cell in found]

        def fill(canvas: Canvas) -> None:
            axes = self._axes(canvas, title)
            axes.set_yscale("log")
            sizes = sorted({_size(cell) for cell in cells})
            axes.yaxis.set_major_locator(FixedLocator(sizes))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(
                FuncFormatter(lambda value, _: words.show_count(float(value)))
            )
            axes.set_ylim(sizes[0] / 2, sizes[-1] * 2)
            for series, found in self._drawn(passing):
                style = self._styles[line.dataset, series]
                axes.plot(
                    [cell.fraction for cell in found],
                    [_size(cell) for cell in found],
                    color=style.colour,
                    marker=style.marker,
                    linestyle=style.dash,
                    markersize=9,
                    markerfacecolor="none",  # where two lie on each other, both are seen
                    label=words.cut(self._names.name_series(series, line.dataset), 60),
                    clip_on=False,
                )
            axes.set_ylabel("parameters of the student")
            mark_fractions(axes, [cell.fraction for cell in cells])
            if len({cell.fraction for cell in cells}) == 1:
                axes.margins(x=0.5)
            add_legend(canvas, [axes])

        caption = (
            "Each point: the least data that was run with which a student of that size is above "
            f"the teacher's {words.show_percent(line.accuracy)} % (mean over "
            f"{words.show_seeds(cell.accuracy.count for cell in cells)}). Lower and further left "
            "is cheaper; a method without a point is never above it."
        )
        return render(f"least_size_and_data_{number}", title, caption, fill)

    # ------------------------------ λ ------------------------------------------

    def _by_rate(self) -> Iterator[Callable[[], Figure]]:
        groups: dict[tuple[str, Model | None, float], list[Cell]] = {}
        for cell in self._findings.cells:
            groups.setdefault((cell.dataset, cell.model, cell.fraction), []).append(cell)
        number = itertools.count(1)
        for (dataset, model, _), cells in groups.items():
            lines: dict[Series, set[float]] = {}
            for cell in cells:
                if cell.series.rate is not None:
                    lines.setdefault(drop_rate(cell.series), set()).add(cell.series.rate)
            if any(len(rates) > 1 for rates in lines.values()):
                yield self._drawing(self._draw_rates, next(number), dataset, model, cells)

    def _draw_rates(
        self, number: int, dataset: str, model: Model | None, cells: list[Cell]
    ) -> Figure:
        fraction = words.show_fraction(cells[0].fraction)
        title = f"{dataset}, {self._names.name_model(model)}, {fraction} of the data: λ"
        rated = [cell for cell in cells if cell.series.rate is not None]
        others = [cell for cell in cells if cell.series.method == words.FINETUNE]

        def fill(canvas: Canvas) -> None:
            axes = self._axes(canvas, title)
            grouped: dict[Series, list[Cell]] = {}
            for cell in rated:
                grouped.setdefault(drop_rate(cell.series), []).append(cell)
            for series, found in self._drawn(grouped):
                styles = [self._styles[dataset, cell.series] for cell in found]
                own = [each for each in styles if each.colour == PREFERRED.get(series.method)]
                style = (own or styles)[0]
                self._line(axes, self._names.name_series(series, dataset), style, found, _rate)
            for cell in others[:MOST_LINES]:
                self._level(axes, cell, self._names.name_series(cell.series, dataset))
            rates = sorted({_rate(cell) for cell in rated})
            if rates[0] > 0 and rates[-1] / rates[0] >= 15:
                axes.set_xscale("log")
            axes.set_xlabel("λ, weight of the rationale loss")
            mark_ticks(axes, rates, lambda value: f"{value:.4g}")
            add_legend(canvas, [axes])

        return render(f"rationale_rate_{number}", title, self._caption(rated + others), fill)

    def _level(self, axes: Axes, cell: Cell, label: str) -> None:
        """A method to which λ means nothing: a line across, with its band."""
        style = self._styles[cell.dataset, cell.series]
        mean, error = 100 * cell.accuracy.mean, 100 * (cell.accuracy.standard_error or 0)
        axes.axhline(mean, color=style.colour, linestyle="--", label=words.cut(label, 60))
        if error:
            axes.axhspan(mean - error, mean + error, color=style.colour, alpha=0.12, linewidth=0)

    # ------------------------------ over steps ---------------------------------

    def _over_steps(self) -> Iterator[Callable[[], Figure]]:
        groups: dict[tuple[str, Model | None, float], list[Cell]] = {}
        for cell in self._findings.cells:
            if any(run.curves for run in cell.runs):
                groups.setdefault((cell.dataset, cell.model, cell.fraction), []).append(cell)
        number = itertools.count(1)
        for (dataset, model, _), cells in groups.items():
            yield self._drawing(self._draw_steps, next(number), dataset, model, cells)

    def _draw_steps(
        self, number: int, dataset: str, model: Model | None, cells: list[Cell]
    ) -> Figure:
        fraction = words.show_fraction(cells[0].fraction)
        title = f"{dataset}, {self._names.name_model(model)}, {fraction} of the data: training"
        cells, note = keep_one_rate(cells)
        curves = sorted({name for cell in cells for run in cell.runs for name in run.curves})

        def fill(canvas: Canvas) -> None:
            canvas.set_size_inches(3.4 * max(2, len(curves)), 3.1)
            canvas.suptitle(words.cut(title, 90), fontsize=10)
            panels = canvas.subplots(1, len(curves), squeeze=False)[0]
            shown = self._drawn({cell.series: [cell] for cell in cells})
            for panel, name in zip(panels, curves, strict=True):
                is_share = name.endswith("accuracy")
                panel.set_title(name.replace("_", " "))
                panel.set_xlabel("step")
                panel.set_ylabel("accuracy (%)" if is_share else "nats a token")
                for _, (cell,) in shown:
                    self._curve(panel, name, cell, 100 if is_share else 1, dataset)
            add_legend(canvas, panels, widest=60)

        caption = self._caption(cells).replace("Accuracy", "Losses and accuracy", 1)
        return render(f"training_{number}", title, caption + note, fill)

    def _curve(self, axes: Axes, name: str, cell: Cell, scale: float, dataset: str) -> None:
        """Mean over the seeds at steps that all of them logged, and a band."""
        style = self._styles[cell.dataset, cell.series]
        curves = [dict(run.curves[name]) for run in cell.runs if name in run.curves]
        if not curves:
            return
        steps = sorted(set.intersection(*(set(curve) for curve in curves)))
        if not steps:
            return
        points = [_spread([scale * curve[step] for curve in curves]) for step in steps]
        means = [mean for mean, _ in points]
        axes.plot(
            steps,
            means,
            color=style.colour,
            linestyle=style.dash,
            linewidth=1.3,
            marker=style.marker if len(steps) < 15 else "",
            markersize=3,
            label=words.cut(self._names.name_series(cell.series, dataset), 60),
        )
        if len(curves) > 1:
            axes.fill_between(
                steps,
                [mean - error for mean, error in points],
                [mean + error for mean, error in points],
                color=style.colour,
                alpha=0.2,
                linewidth=0,
            )

    # ------------------------------ what they share ----------------------------

    def _axes(self, canvas: Canvas, title: str) -> Axes:
        axes = canvas.add_subplot()
        axes.set_title(words.cut(title, 78))
        axes.set_ylabel(f"accuracy on {self._findings.split} (%)")
        return axes

    def _lines(
        self, axes: Axes, dataset: str, cells: Sequence[Cell], locate: Callable[[Cell], float]
    ) -> None:
        grouped: dict[Series, list[Cell]] = {}
        for cell in cells:
            grouped.setdefault(cell.series, []).append(cell)
        for series, found in self._drawn(grouped):
            self._line(
                axes,
                self._names.name_series(series, dataset),
                self._styles[dataset, series],
                found,
                locate,
            )

    def _drawn(self, grouped: Mapping[Series, list[Cell]]) -> list[tuple[Series, list[Cell]]]:
        """As many lines as a figure has room for."""
        if len(grouped) > MOST_LINES:
            self.notes.append(
                f"a figure shows {MOST_LINES} of its {len(grouped)} lines; the tables have all"
            )
        return list(grouped.items())[:MOST_LINES]

    def _line(
        self,
        axes: Axes,
        label: str,
        style: Style,
        cells: Sequence[Cell],
        locate: Callable[[Cell], float],
    ) -> None:
        ordered = sorted(cells, key=lambda cell: (locate(cell), rank_model(cell.model)))
        positions = [locate(cell) for cell in ordered]
        means = [100 * cell.accuracy.mean for cell in ordered]
        axes.plot(
            positions,
            means,
            color=style.colour,
            marker=style.marker,
            linestyle=style.dash,
            markersize=5,
            label=words.cut(label, 60),
        )
        errors = [100 * (cell.accuracy.standard_error or 0.0) for cell in ordered]
        if len(positions) == 1 and errors[0]:  # a band without width is not seen
            axes.errorbar(positions, means, errors, color=style.colour, capsize=3, linewidth=1)
        elif any(errors):
            low = [mean - error for mean, error in zip(means, errors, strict=True)]
            high = [mean + error for mean, error in zip(means, errors, strict=True)]
            axes.fill_between(positions, low, high, color=style.colour, alpha=0.2, linewidth=0)

    def _teacher_lines(self, axes: Axes, dataset: str) -> None:
        lines = [line for line in self._findings.lines if line.dataset == dataset]
        for line, dash in zip(
            lines, itertools.cycle(((0, (6, 2)), (0, (1, 1)), (0, (4, 1, 1, 1))))
        ):
            axes.axhline(
                100 * line.accuracy,
                color=LINE_COLOUR,
                linestyle=dash,
                linewidth=1.2,
                label=words.cut(f"few-shot CoT of the teacher ({line.teacher})", 60),
            )

    def _caption(self, cells: Iterable[Cell]) -> str:
        """What the lines and bands are, and n."""
        cells = list(cells)
        counts = [cell.accuracy.count for cell in cells]
        examples = {
            scores.examples
            for cell in cells
            for run in cell.runs
            if (scores := run.scores.get(self._findings.split)) and scores.examples
        }
        of = (
            f", {next(iter(examples)):,} {self._findings.split} examples"
            if len(examples) == 1
            else ""
        )
        band = " Bands: ± standard error." if max(counts, default=0) > 1 else " No bands: one seed."
        return f"Accuracy: mean over n = {words.show_seeds(counts)}{of}.{band}"


def _spread(values: Sequence[float]) -> tuple[float, float]:
    found = estimate(values)
    return found.mean, found.standard_error or 0.0


def _size(cell: Cell) -> float:
    assert cell.model is not None and cell.model.parameters is not None
    return float(cell.model.parameters)


def _rate(cell: Cell) -> float:
    assert cell.series.rate is not None
    return cell.series.rate
