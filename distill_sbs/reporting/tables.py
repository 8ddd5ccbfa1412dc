"""The tables of a report, independent of how they are shown.

Enters: `Findings` and `Run`s. Leaves: `Table`s of cells that hold a value (for sorting and for CSV)
and the words that are shown.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from distill_sbs.reporting import words
from distill_sbs.reporting.estimates import Interval
from distill_sbs.reporting.findings import (
    Cell,
    DataHeadline,
    Findings,
    Series,
    SizeHeadline,
    TeacherLine,
)
from distill_sbs.reporting.names import Names, name_model, show_estimate
from distill_sbs.reporting.pretrained import make_pretraining_table
from distill_sbs.reporting.run import Model, Run, list_commands
from distill_sbs.reporting.table_form import Column, Entry, Table

# ---------------------------------- tables ------------------------------------


def make_tables(findings: Findings, runs: Sequence[Run]) -> list[Table]:
    """All tables that have a row, in order."""
    names = Names.of(findings.cells)
    made = [
        *_matrices(findings, names),
        _accuracies(findings, names),
        _differences(findings, names),
        _differences_of_differences(findings, names),
        _data_table(findings.data_headlines, names),
        _size_table(findings.size_headlines, names),
        _lines(findings.lines),
        make_pretraining_table(findings.pretrained),
        _unfinished(runs),
        _all_runs(runs, findings.split),
    ]
    return [table for table in made if table.rows]


def _matrices(findings: Findings, names: Names) -> Iterable[Table]:
    """For each dataset and student: a row a series, a column a data fraction."""
    groups: dict[tuple[str, Model | None], list[Cell]] = {}
    for cell in findings.cells:
        groups.setdefault((cell.dataset, cell.model), []).append(cell)
    for number, ((dataset, model), cells) in enumerate(groups.items(), start=1):
        fractions = sorted({cell.fraction for cell in cells})[:12]
        by_series: dict[Series, dict[float, Cell]] = {}
        for cell in cells:
            by_series.setdefault(cell.series, {})[cell.fraction] = cell
        rows = []
        for series, by_fraction in by_series.items():
            row = [Entry(names.name_series(series, dataset))]
            for fraction in fractions:
                found = by_fraction.get(fraction)
                mean = None if found is None else found.accuracy.mean
                row.append(Entry(mean, "–" if found is None else show_estimate(found, 1)))
            rows.append(tuple(row))
        yield Table(
            f"matrix_{number}",
            f"{dataset}, {names.name_model(model)}",
            f"Accuracy on {findings.split} in %, mean ± standard error over "
            f"{_count_seeds(cells)}, by share of the training data.",
            (
                Column("method", "method"),
                *(
                    Column(f"fraction_{fraction:.6g}", words.show_fraction(fraction), True)
                    for fraction in fractions
                ),
            ),
            tuple(rows),
            is_overview=True,
        )


def _count_seeds(cells: Sequence[Cell]) -> str:
    return words.show_seeds(cell.accuracy.count for cell in cells)


_NAMING = (
    Column("dataset", "dataset"),
    Column("model", "student"),
    Column("method", "method"),
)


def _naming(cell: Cell, names: Names) -> tuple[Entry, ...]:
    return (
        Entry(cell.dataset),
        Entry(names.name_model(cell.model)),
        Entry(names.name_series(cell.series, cell.dataset)),
    )


def _accuracies(findings: Findings, names: Names) -> Table:
    rows, commands = [], []
    for cell in findings.cells:
        first = cell.runs[0]
        scores = [run.scores[findings.split] for run in cell.runs]
        measured = [each.decoded_tokens for each in scores if each.decoded_tokens is not None]
        decoded = sum(measured) / len(measured) if measured else None
        most = first.cost.most_decoded_tokens
        examples = scores[0].examples
        steps = sorted({run.train_steps for run in cell.runs if run.train_steps is not None})
        asks = words.describe_method(cell.series.method).asks_teacher
        parameters = cell.model.parameters if cell.model else None
        error = cell.accuracy.standard_error
        rows.append(
            (
                *_naming(cell, names),
                Entry(cell.fraction, words.show_fraction(cell.fraction)),
                Entry(cell.series.rate, words.show_rate(cell.series.rate)),
                Entry(cell.accuracy.mean, words.show_percent(cell.accuracy.mean, 2)),
                Entry(error, "–" if error is None else words.show_percent(error, 2)),
                Entry(cell.accuracy.count),
                Entry(examples),
                Entry(
                    steps[-1] if steps else None, " to ".join(map(str, steps[:1] + steps[1:][-1:]))
                ),
                Entry(parameters, words.show_count(parameters)),
                Entry(first.cost.answer_flops, words.show_flops(first.cost.answer_flops)),
                Entry(first.cost.train_flops, words.show_flops(first.cost.train_flops)),
                Entry(
                    most if decoded is None else decoded,
                    _show_decoded(decoded, most),
                ),
                Entry("yes" if asks else "no"),
            )
        )
        commands.append(list_commands(cell.runs))
    return Table(
        "accuracy",
        "Accuracy and cost",
        f"Accuracy on {findings.split} in %. FLOPs are counted by formula, with every text as long "
        "as it may be, so they are upper bounds; decoded tokens are a mean where they were "
        "measured, else the most that is allowed.",
        (
            *_NAMING,
            Column("data_fraction", "data", True),
            Column("rationale_rate", "λ", True),
            Column("mean", "accuracy", True),
            Column("standard_error", "± s.e.", True),
            Column("seeds", "seeds", True),
            Column("examples", f"{findings.split} examples", True),
            Column("train_steps", "steps", True),
            Column("parameters", "parameters", True),
            Column("answer_flops", "FLOPs an answer", True),
            Column("train_flops", "FLOPs of training", True),
            Column("decoded_tokens", "decoded tokens", True),
            Column("needs_teacher", "teacher at test time"),
        ),
        tuple(rows),
        tuple(commands),
    )


def _show_decoded(decoded: float | None, most: int | None) -> str:
    if decoded is not None:
        return f"{decoded:.1f}"
    return "–" if most is None else f"≤ {most}"


def _differences(findings: Findings, names: Names) -> Table:
    rows = [
        (
            *_naming(each.cell, names),
            Entry(names.name_series(each.reference.series, each.cell.dataset)),
            Entry(each.cell.fraction, words.show_fraction(each.cell.fraction)),
            *_show_interval(each.interval),
        )
        for each in findings.differences
    ]
    return Table(
        "differences",
        "Differences on the same seeds",
        f"Accuracy on {findings.split}, in percentage points: the method minus what it is compared "
        "with, seed by seed; mean and 95 % interval by Student's t over the pairs. Intervals are "
        "not corrected for there being several.",
        (
            *_NAMING,
            Column("reference", "compared with"),
            Column("data_fraction", "data", True),
            *_OF_INTERVAL,
        ),
        tuple(rows),
    )


def _differences_of_differences(findings: Findings, names: Names) -> Table:
    rows = []
    for each in findings.differences_of_differences:
        cell, reference = each.difference.cell, each.difference.reference
        method, other = (
            names.name_series(dataclasses.replace(of.series, setting=""), cell.dataset)
            for of in (cell, reference)
        )
        rows.append(
            (
                Entry(cell.dataset),
                Entry(names.name_model(cell.model)),
                Entry(method),
                Entry(other),
                Entry(cell.series.setting),
                Entry(each.reference.cell.series.setting),
                Entry(cell.fraction, words.show_fraction(cell.fraction)),
                *_show_interval(each.interval),
            )
        )
    return Table(
        "differences_of_differences",
        "Differences of differences",
        f"Accuracy on {findings.split}, in percentage points: what a method gains over what it is "
        "compared with under one setting, minus what it gains under another, seed by seed; mean "
        "and 95 % interval by Student's t over the seeds. Intervals are not corrected for there "
        "being several.",
        (
            *_NAMING,
            Column("reference", "compared with"),
            Column("setting", "setting"),
            Column("reference_setting", "minus setting"),
            Column("data_fraction", "data", True),
            *_OF_INTERVAL,
        ),
        tuple(rows),
    )


_OF_INTERVAL = (
    Column("difference", "difference", True),
    Column("low", "from", True),
    Column("high", "to", True),
    Column("pairs", "pairs", True),
    Column("verdict", "interval"),
)


def _show_interval(interval: Interval) -> tuple[Entry, ...]:
    half, mean = interval.half_width, interval.mean
    low, high = (None, None) if half is None else (mean - half, mean + half)
    return (
        Entry(mean, words.show_signed(mean)),
        Entry(low, "–" if low is None else words.show_signed(low)),
        Entry(high, "–" if high is None else words.show_signed(high)),
        Entry(interval.count),
        Entry(_judge(half, interval.excludes_zero)),
    )


def _judge(half_width: float | None, excludes_zero: bool) -> str:
    if half_width is None:
        return "one pair: none"
    return "excludes 0" if excludes_zero else "contains 0"


def _data_table(headlines: Sequence[DataHeadline], names: Names) -> Table:
    rows = []
    for each in headlines:
        reference, reached = each.reference, each.reached
        if reference is None:
            shown = "reference not run on 100 %"
        else:
            shown = "not reached" if reached is None else words.show_fraction(reached.fraction)
        rows.append(
            (
                Entry(each.dataset),
                Entry(names.name_model(each.model)),
                Entry(names.name_series(each.series, each.dataset)),
                Entry(
                    "–" if reference is None else names.name_series(reference.series, each.dataset)
                ),
                Entry(
                    None if reference is None else reference.accuracy.mean,
                    "–" if reference is None else show_estimate(reference),
                ),
                Entry(None if reached is None else reached.fraction, shown),
                Entry(
                    None if reached is None else reached.accuracy.mean,
                    "–" if reached is None else show_estimate(reached),
                ),
                Entry(", ".join(map(words.show_fraction, each.measured))),
            )
        )
    return Table(
        "least_data",
        "Least data that reaches the reference's 100 %",
        "The smallest share of the training data that was run at which a method's mean accuracy is "
        "that of its reference on all of it, or more.",
        (
            *_NAMING,
            Column("reference", "reference"),
            Column("reference_accuracy", "its accuracy on 100 %", True),
            Column("data_fraction", "reached with", True),
            Column("accuracy", "accuracy there", True),
            Column("measured", "shares that were run"),
        ),
        tuple(rows),
    )


def _size_table(headlines: Sequence[SizeHeadline], names: Names) -> Table:
    rows = []
    for each in headlines:
        passed = each.passed
        model = passed.model if passed else None
        rows.append(
            (
                Entry(each.line.dataset),
                Entry(each.line.teacher),
                Entry(each.line.accuracy, words.show_percent(each.line.accuracy)),
                Entry(names.name_series(each.series, each.line.dataset)),
                Entry(
                    model.parameters if model else None,
                    "not reached" if passed is None else names.name_model(model),
                ),
                Entry(
                    passed.fraction if passed else None,
                    words.show_fraction(passed.fraction) if passed else "–",
                ),
                Entry(
                    passed.accuracy.mean if passed else None,
                    show_estimate(passed) if passed else "–",
                ),
                Entry(", ".join(map(names.name_model, each.models))),
            )
        )
    return Table(
        "least_size",
        "Smallest student that passes the teacher",
        "The smallest student that was run whose mean accuracy is above the teacher's by few-shot "
        "chain of thought, and the least data with which it is.",
        (
            Column("dataset", "dataset"),
            Column("teacher", "teacher"),
            Column("teacher_accuracy", "its accuracy", True),
            Column("method", "method"),
            Column("parameters", "passed by", True),
            Column("data_fraction", "with", True),
            Column("accuracy", "accuracy there", True),
            Column("measured", "students that were run"),
        ),
        tuple(rows),
    )


def _lines(lines: Sequence[TeacherLine]) -> Table:
    rows = [
        (
            Entry(line.dataset),
            Entry(line.teacher),
            Entry(line.accuracy, words.show_percent(line.accuracy, 2)),
            Entry(line.folder),
        )
        for line in lines
    ]
    return Table(
        "teachers",
        "Teachers",
        "Accuracy in % of the teacher itself, by few-shot chain of thought. It needs the teacher "
        "for every answer.",
        (
            Column("dataset", "dataset"),
            Column("teacher", "teacher"),
            Column("accuracy", "accuracy", True),
            Column("folder", "from"),
        ),
        tuple(rows),
    )


def _unfinished(runs: Sequence[Run]) -> Table:
    rows, commands = [], []
    for run in runs:
        if run.is_finished:
            continue
        validation = run.curves.get("validation_accuracy")
        rows.append(
            (
                Entry(run.folder),
                Entry(run.dataset),
                Entry(words.describe_method(run.method).title),
                Entry(run.fraction, words.show_fraction(run.fraction)),
                Entry(run.seed),
                Entry(run.state),
                Entry(run.last_step),
                Entry(run.train_steps),
                Entry(
                    validation[-1][1] if validation else None,
                    words.show_percent(validation[-1][1]) if validation else "–",
                ),
            )
        )
        commands.append(list_commands([run]))
    return Table(
        "unfinished",
        "Runs that have not finished",
        "They are in no mean. The same command goes on with a run.",
        (
            Column("folder", "folder"),
            Column("dataset", "dataset"),
            Column("method", "method"),
            Column("data_fraction", "data", True),
            Column("seed", "seed", True),
            Column("state", "state"),
            Column("last_step", "step", True),
            Column("train_steps", "of", True),
            Column("validation_accuracy", "validation accuracy so far", True),
        ),
        tuple(rows),
        tuple(commands),
    )


def _all_runs(runs: Sequence[Run], split: str) -> Table:
    rows, commands = [], []
    for run in runs:
        if not run.is_finished:
            continue
        scores = run.scores.get(split)
        rows.append(
            (
                Entry(run.folder),
                Entry(run.dataset),
                Entry(run.method),
                Entry(run.teacher),
                Entry("–" if run.model is None else name_model(run.model)),
                Entry(run.fraction, words.show_fraction(run.fraction)),
                Entry(run.rate, words.show_rate(run.rate)),
                Entry(run.seed),
                Entry(
                    scores.accuracy if scores else None,
                    words.show_percent(scores.accuracy, 2) if scores else "–",
                ),
            )
        )
        commands.append(list_commands([run]))
    return Table(
        "runs",
        "Every run",
        f"Accuracy on {split} in %.",
        (
            Column("folder", "folder"),
            Column("dataset", "dataset"),
            Column("method", "method"),
            Column("teacher", "teacher"),
            Column("model", "student"),
            Column("data_fraction", "data", True),
            Column("rationale_rate", "λ", True),
            Column("seed", "seed", True),
            Column("accuracy", "accuracy", True),
        ),
        tuple(rows),
        tuple(commands),
    )
