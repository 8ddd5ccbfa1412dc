"""What the runs say together: means over seeds, differences, and the paper's headlines, computed.

Enters: `Run`s. Leaves: `Findings`. Nothing is interpolated: a fraction or a size that reaches a
line is one that was run.

A *cell* is what differs in nothing but the seed: dataset, student, method, teacher, λ, data
fraction, settings. A *series* is a line in a figure: cells that differ in the fraction alone, or in
the student alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from distill_sbs.reporting import words
from distill_sbs.reporting.estimates import Estimate, Interval, estimate, estimate_difference
from distill_sbs.reporting.run import Model, Run

# The one control by name: each example with the rationale of another.
_CONTROL_TEACHER = "shuffled"

# More teachers of one method beside one another are not compared with each other.
_MOST_COMPARED = 50


@dataclasses.dataclass(frozen=True)
class Series:
    """Method and what makes it differ from other lines of the same method.

    Attributes:
      method: its name.
      teacher: whose labels or rationales.
      rate: λ.
      setting: other options in which runs of one cell would differ, as text.
    """

    method: str
    teacher: str | None
    rate: float | None
    setting: str

    def rank(self) -> tuple[object, ...]:
        """For sorting."""
        return (
            words.rank_method(self.method),
            self.teacher == _CONTROL_TEACHER,
            self.teacher or "",
            -1.0 if self.rate is None else self.rate,
            self.setting,
        )


@dataclasses.dataclass(frozen=True)
class Cell:
    """Runs that differ in their seed alone.

    Attributes:
      dataset: its name.
      model: the student; None where it is not known.
      series: method, teacher, λ, settings.
      fraction: of the training data, 0 to 1.
      runs: finished ones with an accuracy, one a seed.
      accuracy: over the seeds, 0 to 1.
    """

    dataset: str
    model: Model | None
    series: Series
    fraction: float
    runs: tuple[Run, ...]
    accuracy: Estimate


@dataclasses.dataclass(frozen=True)
class TeacherLine:
    """A teacher's own accuracy on a dataset, by few-shot chain of thought."""

    dataset: str
    teacher: str
    accuracy: float
    folder: str


@dataclasses.dataclass(frozen=True)
class Difference:
    """Accuracy of `better` minus that of `reference`, seed by seed.

    Attributes:
      cell: of what is compared.
      reference: with what.
      interval: of the mean difference; 0 to 1.
    """

    cell: Cell
    reference: Cell
    interval: Interval


@dataclasses.dataclass(frozen=True)
class DifferenceOfDifferences:
    """A difference with one value of an option minus the same with another, seed by seed.

    Attributes:
      difference: with one value.
      reference: with the other: of the lowest value, or None where that was run.
      interval: of the mean of what the first has more; -2 to 2.
    """

    difference: Difference
    reference: Difference
    interval: Interval


@dataclasses.dataclass(frozen=True)
class DataHeadline:
    """The smallest data fraction at which a method reaches its reference's 100 %.

    Attributes:
      dataset: its name.
      model: the student.
      series: of the method.
      reference: the cell of the whole data; None where it was not run.
      reached: the cell that reaches it; None: none does.
      interval: of the difference between the two on the same seeds; None where there are none.
      measured: the fractions that were run, ascending.
    """

    dataset: str
    model: Model | None
    series: Series
    reference: Cell | None
    reached: Cell | None
    interval: Interval | None
    measured: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class SizeHeadline:
    """The smallest student that passes the teacher's line, and the least data it needs for it.

    Attributes:
      line: the teacher's.
      series: of the method.
      passed: the cell; None: none does.
      models: students that were run.
    """

    line: TeacherLine
    series: Series
    passed: Cell | None
    models: tuple[Model, ...]


@dataclasses.dataclass(frozen=True)
class Findings:
    """All of it, sorted.

    Attributes:
      split: whose accuracy is meant.
      cells: see `Cell`.
      lines: of the teachers.
      differences: see `Difference`.
      differences_of_differences: see `DifferenceOfDifferences`.
      data_headlines: by dataset, student and series.
      size_headlines: by teacher and series.
      pretrained: finished runs that were pretrained, where nothing is right or wrong.
      problems: a line for each run that was left out.
    """

    split: str
    cells: tuple[Cell, ...]
    lines: tuple[TeacherLine, ...]
    differences: tuple[Difference, ...]
    differences_of_differences: tuple[DifferenceOfDifferences, ...]
    data_headlines: tuple[DataHeadline, ...]
    size_headlines: tuple[SizeHeadline, ...]
    pretrained: tuple[Run, ...]
    problems: tuple[str, ...]


def find(runs: Sequence[Run], split: str) -> Findings:
    """Everything that is computed of the runs' accuracies on a split."""
    problems: list[str] = []
    measured: list[Run] = []
    pretrained: list[Run] = []
    for run in runs:
        if not run.is_finished:
            continue
        if split in run.scores:
            measured.append(run)
        elif run.method == words.PRETRAIN:
            pretrained.append(run)
        else:
            problems.append(f"{run.folder}: no accuracy on {split}")
    lines = _find_lines(measured, split, problems)
    cells = _make_cells(measured, split, problems)
    differences = tuple(_compare(cells, split))
    return Findings(
        split,
        cells,
        lines,
        differences,
        tuple(_compare_differences(differences, split)),
        tuple(_data_headlines(cells, split)),
        tuple(_size_headlines(cells, lines)),
        tuple(pretrained),
        tuple(problems),
    )


# ---------------------------------- cells -------------------------------------

_Base = tuple[str, Model | None, str, str | None, float | None, float]


def _base(run: Run) -> _Base:
    assert run.fraction is not None
    return (run.dataset, run.model, run.method, run.teacher, run.rate, run.fraction)


def _varying(runs: Iterable[Run]) -> dict[str, set[str]]:
    """Dataset → options in which runs differ that are otherwise of one cell."""
    by_base: dict[_Base, dict[str, set[str]]] = {}
    for run in runs:
        seen = by_base.setdefault(_base(run), {})
        for macro, value in run.settings.items():
            seen.setdefault(macro, set()).add(value)
    varying: dict[str, set[str]] = {}
    for base, seen in by_base.items():
        differing = {macro for macro, values in seen.items() if len(values) > 1}
        varying.setdefault(base[0], set()).update(differing)
    return varying


def _make_cells(runs: Sequence[Run], split: str, problems: list[str]) -> tuple[Cell, ...]:
    trained = [run for run in runs if run.fraction is not None]
    varying = _varying(trained)
    groups: dict[tuple[str, Model | None, Series, float], dict[object, Run]] = {}
    for run in trained:
        setting = ", ".join(
            words.describe_setting(macro, run.settings[macro])
            for macro in sorted(varying[run.dataset])
            if macro in run.settings
        )
        series = Series(run.method, run.teacher, run.rate, setting)
        assert run.fraction is not None
        group = groups.setdefault((run.dataset, run.model, series, run.fraction), {})
        seed = (run.seed, run.fraction_seed)
        earlier = group.setdefault(seed, run)
        if earlier is run:
            continue
        if earlier.scores[split].accuracy != run.scores[split].accuracy or run.seed is None:
            of_seed = "without a seed" if run.seed is None else f"of seed {run.seed}"
            problems.append(
                f"{run.folder}: a second run {of_seed} like {earlier.folder}, which counts"
            )
    cells = []
    for (dataset, model, series, fraction), by_seed in groups.items():
        members = tuple(by_seed.values())
        cells.append(Cell(dataset, model, series, fraction, members, _estimate(members, split)))
    return tuple(sorted(cells, key=_order))


def _estimate(runs: Sequence[Run], split: str) -> Estimate:
    """Over the runs; a single one that is itself a mean keeps what it says of its spread."""
    if len(runs) == 1:
        run = runs[0]
        return Estimate(run.scores[split].accuracy, run.standard_error, run.seeds)
    return estimate([run.scores[split].accuracy for run in runs])


def rank_model(model: Model | None) -> tuple[object, ...]:
    """For sorting, smallest first."""
    return (model.parameters or 0, model.name, model.changes) if model else (0, "", "")


def _order(cell: Cell) -> tuple[object, ...]:
    return (cell.dataset, rank_model(cell.model), cell.series.rank(), cell.fraction)


# ---------------------------------- teachers ---------------------------------


def _find_lines(runs: Sequence[Run], split: str, problems: list[str]) -> tuple[TeacherLine, ...]:
    """One for each dataset and teacher: its own results, or else what runs say of it."""
    found: dict[tuple[str, str], TeacherLine] = {}
    own = [run for run in runs if run.method == words.FEW_SHOT]
    told = [run for run in runs if run.teacher_accuracy is not None and split == "test"]
    for run in [*own, *told]:
        is_own = run.method == words.FEW_SHOT
        teacher = run.teacher or (run.model.name if run.model else None) or "teacher"
        accuracy = run.scores[split].accuracy if is_own else run.teacher_accuracy
        assert accuracy is not None
        line = TeacherLine(run.dataset, teacher, accuracy, run.folder)
        earlier = found.setdefault((run.dataset, teacher), line)
        if earlier.accuracy != line.accuracy:
            problems.append(
                f"{run.folder}: accuracy {accuracy:.4f} of teacher {teacher}, where "
                f"{earlier.folder} has {earlier.accuracy:.4f}, which counts"
            )
    return tuple(found[key] for key in sorted(found))


# ---------------------------------- differences -------------------------------


def is_reference(reference: Series, series: Series) -> bool:
    """Whether a method is compared with another: with what it is meant to better, or a control."""
    method, other = series.method, reference.method
    if other == words.FINETUNE:
        return method != words.FINETUNE
    if other == words.DISTILL:
        return method == words.DSS_DISTILL
    if other in (words.JOINT, words.PINTO):
        return method == words.DSS and series.teacher == reference.teacher
    return (
        method == other
        and series.teacher != reference.teacher
        and series.rate == reference.rate
        and reference.rank() > series.rank()
    )


class _Beside:
    """Cells of one dataset and student, perhaps of one fraction too, that may be compared."""

    def __init__(self) -> None:
        self._by_method: dict[str, list[Cell]] = {}
        self._settings: dict[str, set[str]] = {}

    def add(self, cell: Cell) -> None:
        """Adds one."""
        self._by_method.setdefault(cell.series.method, []).append(cell)
        self._settings.setdefault(cell.series.method, set()).add(cell.series.setting)

    def find(self, method: str, setting: str) -> list[Cell]:
        """Cells of a method with these settings, or of a method that has but one setting."""
        cells = self._by_method.get(method, [])
        if len(self._settings.get(method, ())) == 1:
            return cells
        return [cell for cell in cells if cell.series.setting == setting]

    def references(self, cell: Cell) -> Iterable[Cell]:
        """What a cell is compared with."""
        own = self._by_method[cell.series.method]
        methods = [words.FINETUNE, words.DISTILL, words.JOINT, words.PINTO]
        if len(own) <= _MOST_COMPARED:
            methods.append(cell.series.method)
        for method in dict.fromkeys(methods):
            for reference in self.find(method, cell.series.setting):
                if is_reference(reference.series, cell.series):
                    yield reference


def _compare(cells: Sequence[Cell], split: str) -> Iterable[Difference]:
    positions: dict[tuple[str, Model | None, float], _Beside] = {}
    for cell in cells:
        positions.setdefault((cell.dataset, cell.model, cell.fraction), _Beside()).add(cell)
    for cell in cells:
        for reference in positions[cell.dataset, cell.model, cell.fraction].references(cell):
            interval = _pair(cell, reference, split)
            if interval is not None:
                yield Difference(cell, reference, interval)


_Seeds = tuple[int | None, int | None]


def _subtract(cell: Cell, reference: Cell, split: str) -> dict[_Seeds, float]:
    """The difference at each seed that both have."""
    by_seed = {(run.seed, run.fraction_seed): run.scores[split].accuracy for run in reference.runs}
    differences = {}
    for run in cell.runs:
        seeds = (run.seed, run.fraction_seed)
        if seeds in by_seed:
            differences[seeds] = run.scores[split].accuracy - by_seed[seeds]
    return differences


def _pair(cell: Cell, reference: Cell, split: str) -> Interval | None:
    differences = list(_subtract(cell, reference, split).values())
    return estimate_difference(differences) if differences else None


def _compare_differences(
    differences: Sequence[Difference], split: str
) -> Iterable[DifferenceOfDifferences]:
    """For each option in which runs of one cell differ: each value against the lowest one."""
    groups: dict[object, list[Difference]] = {}
    for each in differences:
        series, other = each.cell.series, each.reference.series
        if series.setting == other.setting:  # where both were run with it
            plain = [dataclasses.replace(of, setting="") for of in (series, other)]
            key = (each.cell.dataset, each.cell.model, each.cell.fraction, *plain)
            groups.setdefault(key, []).append(each)
    for group in groups.values():
        settings = [each.cell.runs[0].settings for each in group]
        for macro in sorted({macro for options in settings for macro in options}):
            lines: dict[object, list[tuple[tuple[object, ...], Difference]]] = {}
            for options, each in zip(settings, group, strict=True):
                rest = tuple(sorted((m, value) for m, value in options.items() if m != macro))
                lines.setdefault(rest, []).append((_rank_value(options.get(macro, "")), each))
            for line in lines.values():
                (_, lowest), *others = sorted(line, key=lambda ranked: ranked[0])
                base = _subtract(lowest.cell, lowest.reference, split)
                for _, each in others:
                    found = _subtract(each.cell, each.reference, split)
                    paired = [found[seeds] - base[seeds] for seeds in found if seeds in base]
                    if paired:
                        yield DifferenceOfDifferences(each, lowest, estimate_difference(paired))


def _rank_value(text: str) -> tuple[object, ...]:
    """For sorting an option's values: None, numbers, words."""
    if text == "None":
        return (0, 0.0, "")
    try:
        return (1, float(text), text)
    except ValueError:
        return (2, 0.0, text)


# ---------------------------------- headlines ---------------------------------


def _data_headlines(cells: Sequence[Cell], split: str) -> Iterable[DataHeadline]:
    lines: dict[tuple[str, Model | None, Series], list[Cell]] = {}
    whole: dict[tuple[str, Model | None], _Beside] = {}
    for cell in cells:
        lines.setdefault((cell.dataset, cell.model, cell.series), []).append(cell)
        if cell.fraction == 1:
            whole.setdefault((cell.dataset, cell.model), _Beside()).add(cell)
    for (dataset, model, series), line in lines.items():
        if series.method in (words.FINETUNE, words.DISTILL):
            continue
        wanted = words.DISTILL if series.method == words.DSS_DISTILL else words.FINETUNE
        beside = whole.get((dataset, model), _Beside()).find(wanted, series.setting)
        same_teacher = [each for each in beside if each.series.teacher == series.teacher]
        reference = next(iter(same_teacher or beside), None)
        reached, interval = None, None
        if reference is not None:
            goal = reference.accuracy.mean
            reached = next((each for each in line if each.accuracy.mean >= goal), None)
        if reference is not None and reached is not None:
            interval = _pair(reached, reference, split)
        fractions = tuple(each.fraction for each in line)
        yield DataHeadline(dataset, model, series, reference, reached, interval, fractions)


def _size_headlines(cells: Sequence[Cell], lines: Sequence[TeacherLine]) -> Iterable[SizeHeadline]:
    own_lines = {(line.dataset, line.teacher) for line in lines}
    by_dataset: dict[str, dict[Series, list[Cell]]] = {}
    for cell in cells:
        by_dataset.setdefault(cell.dataset, {}).setdefault(cell.series, []).append(cell)
    for line in lines:
        of_series = by_dataset.get(line.dataset, {})
        for series, members in sorted(of_series.items(), key=lambda each: each[0].rank()):
            if series.teacher != line.teacher and (line.dataset, series.teacher) in own_lines:
                continue  # it is measured by its own teacher's line
            ordered = sorted(members, key=lambda cell: (rank_model(cell.model), cell.fraction))
            passed = next((each for each in ordered if each.accuracy.mean > line.accuracy), None)
            models = tuple(dict.fromkeys(each.model for each in ordered if each.model is not None))
            yield SizeHeadline(line, series, passed, models)


def find_passing_cells(cells: Sequence[Cell], line: TeacherLine, series: Series) -> list[Cell]:
    """Of every student that passes the line the cell of least data, smallest student first."""
    found: dict[Model, Cell] = {}
    for cell in cells:
        if cell.dataset != line.dataset or cell.series != series or cell.model is None:
            continue
        if cell.accuracy.mean > line.accuracy:
            earlier = found.setdefault(cell.model, cell)
            if cell.fraction < earlier.fraction:
                found[cell.model] = cell
    return sorted(found.values(), key=lambda cell: rank_model(cell.model))


def list_rates(cells: Iterable[Cell]) -> Mapping[tuple[str, str, str | None], set[float]]:
    """(dataset, method, teacher) → the λ that were run."""
    found: dict[tuple[str, str, str | None], set[float]] = {}
    for cell in cells:
        if cell.series.rate is not None:
            key = (cell.dataset, cell.series.method, cell.series.teacher)
            found.setdefault(key, set()).add(cell.series.rate)
    return found
