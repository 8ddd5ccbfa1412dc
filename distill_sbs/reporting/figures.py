"""The figures of a report: accuracy against data, size and λ, least data and size, training.

Enters: `Findings`. Leaves: `Figure`s, where the runs have the points for them. Bands are mean ±
standard error. Every figure says itself, above its legend, of how many seeds and examples it is.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

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
    mark_steps,
    mark_ticks,
    render,
    scale_shares,
    space_markers,
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
from distill_sbs.reporting.pretrained import LOSSES_CAPTION, draw_losses, has_losses
from distill_sbs.reporting.run import Model, Run

MOST_LINES = 12


class Drawer:
    """Draws the figures of one report; a series looks the same in all of them.

    Attributes:
      notes: a line for what was left out of the figures that were drawn.
    """

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
        yield from self.over_steps()
        yield from self._pretraining()

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
            for cell in whole:
                axes.axhline(
                    100 * cell.accuracy.mean,
                    color=self._styles[cell.dataset, cell.series].colour,
                    linestyle=":",
                    linewidth=1,
                    label=f"{self._names.name_series(cell.series, dataset)}, 100 %",
                )
            self._teacher_lines(axes, dataset)
            mark_fractions(axes, [cell.fraction for cell in cells])
            add_legend(canvas, [axes], self._note(cells))

        whole = [c for c in cells if c.series.method == words.FINETUNE and c.fraction == 1]
        whole = whole[:MOST_LINES]
        extra = " Dotted: standard finetuning on 100 %." if whole else ""
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
            add_legend(canvas, [axes], self._note(cells))

        return render(f"model_size_{number}", title, self._caption(cells) + note, fill)

    # ------------------------------ least size and data -----------------------

    def _least(self) -> Iterator[Callable[[], Figure]]:
        number = itertools.count(1)
        for line in self._findings.lines:
            own = [cell for cell in self._findings.cells if cell.dataset == line.dataset]
            kept, note = keep_one_rate(own)
            passing: dict[Series, list[Cell]] = {}
            for each in self._findings.size_headlines:
                if each.line == line:
                    found = find_passing_cells(kept, line, each.series)
                    sized = [c for c in found if c.model and c.model.parameters is not None]
                    if sized:
                        passing[each.series] = sized
            if passing:
                yield self._drawing_least(next(number), line, passing, note)

    def _drawing_least(
        self, number: int, line: TeacherLine, passing: Mapping[Series, list[Cell]], note: str
    ) -> Callable[[], Figure]:
        return lambda: self._draw_least(number, line, passing, note)

    def _draw_least(
        self, number: int, line: TeacherLine, passing: Mapping[Series, list[Cell]], note: str
    ) -> Figure:
        title = f"{line.dataset}: least data and size above the teacher {line.teacher}"
        cells = [cell for found in passing.values() for cell in found]
        sizes = sorted({_size(cell) for cell in cells})
        counted = f"mean over n = {words.show_seeds(cell.accuracy.count for cell in cells)}"

        def fill(canvas: Canvas) -> None:
            shown = self._drawn(passing)
            width, height = canvas.get_size_inches()
            canvas.set_size_inches(width, max(height, 1.2 + 0.16 * len(shown) * len(sizes)))
            axes = self._axes(canvas, title)
            for index, (series, found) in enumerate(shown):
                # Each series has a lane in a student's row, or points would lie on each other.
                lane = 0.7 * ((index + 0.5) / len(shown) - 0.5)
                style = self._styles[line.dataset, series]
                axes.plot(
                    [cell.fraction for cell in found],
                    [sizes.index(_size(cell)) - lane for cell in found],
                    **style.of_line,
                    linewidth=1,
                    markersize=7,
                    label=self._label(series, line.dataset, found, cells),
                    clip_on=False,
                )
            axes.grid(False, axis="y")
            for row in range(1, len(sizes)):
                axes.axhline(row - 0.5, color="#cccccc", linewidth=0.8)
            axes.set_yticks(range(len(sizes)), [words.show_count(size) for size in sizes])
            axes.set_ylim(-0.5, len(sizes) - 0.5)
            axes.set_ylabel("parameters of the student")
            mark_fractions(axes, [cell.fraction for cell in cells])
            if len({cell.fraction for cell in cells}) == 1:
                axes.margins(x=0.5)
            above = f"Above {words.show_percent(line.accuracy)} %: {counted}"
            add_legend(canvas, [axes], f"{above}{self._count_examples(cells)}.")

        caption = (
            "Each point: the least data that was run with which a student of that size is above "
            f"the teacher's {words.show_percent(line.accuracy)} % ({counted}). Lower and further "
            "left is cheaper; a method without a point is never above it."
        )
        return render(f"least_size_and_data_{number}", title, caption + note, fill)

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
        position = f"{self._names.name_model(model)}, {words.show_fraction(cells[0].fraction)}"
        title = f"{dataset}, {position} of the data: accuracy against λ"
        rated = [cell for cell in cells if cell.series.rate is not None]
        others = [cell for cell in cells if cell.series.method == words.FINETUNE]
        shown = rated + others

        def fill(canvas: Canvas) -> None:
            axes = self._axes(canvas, title)
            grouped: dict[Series, list[Cell]] = {}
            for cell in rated:
                grouped.setdefault(drop_rate(cell.series), []).append(cell)
            for series, found in self._drawn(grouped):
                styles = [self._styles[dataset, cell.series] for cell in found]
                own = [each for each in styles if each.colour == PREFERRED.get(series.method)]
                style = (own or styles)[0]
                self._line(axes, self._label(series, dataset, found, shown), style, found, _rate)
            for cell in others[:MOST_LINES]:
                self._level(axes, cell, self._label(cell.series, dataset, [cell], shown))
            self._teacher_lines(axes, dataset)
            rates = sorted({_rate(cell) for cell in rated})
            scale_shares(axes, rates)
            axes.set_xlabel("λ, weight of the rationale loss")
            mark_ticks(axes, rates, lambda value: f"{value:.4g}")
            add_legend(canvas, [axes], self._note(shown))

        return render(f"rationale_rate_{number}", title, self._caption(shown), fill)

    def _level(self, axes: Axes, cell: Cell, label: str) -> None:
        """A method to which λ means nothing: a line across, with its band."""
        style = self._styles[cell.dataset, cell.series]
        mean, error = 100 * cell.accuracy.mean, 100 * (cell.accuracy.standard_error or 0)
        axes.axhline(mean, color=style.colour, linestyle="--", label=label)
        if error:
            axes.axhspan(mean - error, mean + error, color=style.colour, alpha=0.12, linewidth=0)

    # ------------------------------ over steps ---------------------------------

    def over_steps(self) -> Iterator[Callable[[], Figure]]:
        """Losses and validation accuracy while they trained, a figure for each group of runs."""
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
        cells, shown_rate = keep_one_rate(cells)
        curves = sorted({name for cell in cells for run in cell.runs for name in run.curves})
        counts = [sum(bool(run.curves) for run in cell.runs) for cell in cells]
        note = self._note(cells, counts, "validation")

        def fill(canvas: Canvas) -> None:
            canvas.set_size_inches(3.4 * max(2, len(curves)), 3.1)
            canvas.suptitle(words.cut(title, 90), fontsize=10)
            panels = canvas.subplots(1, len(curves), squeeze=False)[0]
            shown = self._drawn({cell.series: [cell] for cell in cells})
            for panel, name in zip(panels, curves, strict=True):
                is_share = name.endswith("accuracy")
                panel.set_title(name.replace("_", " "))
                panel.set_ylabel("accuracy (%)" if is_share else "nats a token")
                for axis in (panel.xaxis, panel.yaxis):
                    axis.set_major_locator(MaxNLocator(5))
                mark_steps(panel)
                for index, (_, (cell,)) in enumerate(shown):
                    label = self._label(cell.series, dataset, [cell], cells)
                    self._curve(panel, name, cell, 100 if is_share else 1, label, index)
            add_legend(canvas, panels, note, widest=60)

        caption = f"Losses and accuracy: {note[0].lower()}{note[1:]}{shown_rate}"
        return render(f"training_{number}", title, caption, fill)

    def _curve(
        self, axes: Axes, name: str, cell: Cell, scale: float, label: str, index: int
    ) -> None:
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
        every = space_markers(steps)
        axes.plot(
            steps,
            means,
            **style.of_line,
            linewidth=1.3,
            markersize=4,
            # Of lines that lie on each other the markers stand beside each other.
            markevery=(index * every // MOST_LINES, every),
            label=label,
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

    # ------------------------------ pretraining --------------------------------

    def _pretraining(self) -> Iterator[Callable[[], Figure]]:
        for number, run in enumerate(filter(has_losses, self._findings.pretrained), start=1):
            yield functools.partial(self._draw_pretraining, number, run)

    def _draw_pretraining(self, number: int, run: Run) -> Figure:
        student = self._names.name_model(run.model)
        title = f"{run.dataset}, {student}: pretraining"

        def fill(canvas: Canvas) -> None:
            draw_losses(canvas, title, run)

        return render(f"pretraining_{number}", title, LOSSES_CAPTION, fill)

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
            label = self._label(series, dataset, found, cells)
            self._line(axes, label, self._styles[dataset, series], found, locate)

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
            **style.of_line,
            markersize=5,
            label=label,
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
                label=f"few-shot CoT of the teacher ({line.teacher})",
            )

    def _label(
        self, series: Series, dataset: str, own: Iterable[Cell], shown: Iterable[Cell]
    ) -> str:
        """A line's name; n of its own where not all lines of the figure have the same."""
        label = self._names.name_series(series, dataset)
        of_all = {cell.accuracy.count for cell in shown}
        of_own = sorted({cell.accuracy.count for cell in own})
        if len(of_all) == 1:
            return label
        return f"{label}, n = {' to '.join(map(str, dict.fromkeys((of_own[0], of_own[-1]))))}"

    def _caption(self, cells: Sequence[Cell]) -> str:
        """What the lines and bands are, and n."""
        note = self._note(cells)
        return f"Accuracy: {note[0].lower()}{note[1:]}"

    def _note(
        self, cells: Sequence[Cell], counts: Sequence[int] = (), split: str | None = None
    ) -> str:
        """n, and what the bands are; `counts` are the seeds, where they are not all of a cell's."""
        counts = counts or [cell.accuracy.count for cell in cells]
        if any(cell.accuracy.standard_error is not None for cell in cells) and max(counts) > 1:
            band = "Bands: ± standard error."
        else:
            band = "No bands: one seed." if max(counts) == 1 else "No bands: no error is known."
        return (
            f"Mean over n = {words.show_seeds(counts)}{self._count_examples(cells, split)}. {band}"
        )

    def _count_examples(self, cells: Iterable[Cell], split: str | None = None) -> str:
        """', 400 test examples', or nothing where no run says how many."""
        split = split or self._findings.split
        found = {
            scores.examples
            for cell in cells
            for run in cell.runs
            if (scores := run.scores.get(split)) and scores.examples
        }
        if not found:
            return ""
        numbers = " to ".join(f"{each:,}" for each in sorted({min(found), max(found)}))
        return f", {numbers} {split} examples"


def _spread(values: Sequence[float]) -> tuple[float, float]:
    found = estimate(values)
    return found.mean, found.standard_error or 0.0


def _size(cell: Cell) -> float:
    assert cell.model is not None and cell.model.parameters is not None
    return float(cell.model.parameters)


def _rate(cell: Cell) -> float:
    assert cell.series.rate is not None
    return cell.series.rate
