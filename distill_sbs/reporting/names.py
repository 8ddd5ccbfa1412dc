"""How series and students are called in one report, and the paper's headlines in words.

Enters: `Findings`. Leaves: names as brief as tells them apart, and sentences.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from distill_sbs.reporting import words
from distill_sbs.reporting.findings import (
    Cell,
    DataHeadline,
    Findings,
    Series,
    SizeHeadline,
    list_rates,
)
from distill_sbs.reporting.run import Model


@dataclasses.dataclass(frozen=True)
class Names:
    """How series and students are called in one report: as briefly as tells them apart."""

    rates: Mapping[tuple[str, str, str | None], set[float]]
    models: Mapping[Model, str]

    @classmethod
    def of(cls, cells: Sequence[Cell]) -> Names:
        """The names for these cells."""
        brief: dict[str, list[Model]] = {}
        for model in dict.fromkeys(cell.model for cell in cells if cell.model is not None):
            brief.setdefault(name_model(model), []).append(model)
        models = {
            model: name if len(same) == 1 or not model.changes else f"{name}, {model.changes}"
            for name, same in brief.items()
            for model in same
        }
        return cls(list_rates(cells), models)

    def name_series(self, series: Series, dataset: str) -> str:
        """'distilling step-by-step (palm), λ = 0.5'."""
        name = words.describe_method(series.method).title
        if series.teacher is not None:
            name += f" ({series.teacher})"
        rates = self.rates.get((dataset, series.method, series.teacher), set())
        if series.rate is not None and len(rates) > 1:
            name += f", λ = {series.rate:g}"
        return f"{name}, {series.setting}" if series.setting else name

    def name_model(self, model: Model | None) -> str:
        """'T5-Base (220 M)'."""
        return "–" if model is None else self.models.get(model, name_model(model))


def name_model(model: Model) -> str:
    """A student's size by name, and its parameters."""
    if model.parameters is None:
        return model.name
    return f"{model.name} ({words.show_count(model.parameters)})"


def show_estimate(cell: Cell, digits: int = 2) -> str:
    """Mean ± standard error, in percent."""
    error = cell.accuracy.standard_error
    spread = "" if error is None else f" ± {words.show_percent(error, digits)}"
    return words.show_percent(cell.accuracy.mean, digits) + spread


# ---------------------------------- sentences ---------------------------------


def state_headlines(findings: Findings) -> list[str]:
    """The paper's headlines, computed: one sentence each, of the methods that have rationales."""
    names = Names.of(findings.cells)
    return [
        *_data_sentences(findings.data_headlines, names),
        *_size_sentences(findings.size_headlines, names),
    ]


def _data_sentences(data_headlines: Iterable[DataHeadline], names: Names) -> Iterable[str]:
    for each in data_headlines:
        if each.series.method not in (words.DSS, words.DSS_DISTILL):
            continue
        start = f"{each.dataset}, {names.name_model(each.model)}: "
        method = names.name_series(each.series, each.dataset)
        if each.reference is None:
            continue
        reference = names.name_series(each.reference.series, each.dataset)
        goal = f"{reference} on 100 % of the data ({show_estimate(each.reference)} %)"
        if each.reached is None:
            best = max(each.measured)
            yield (
                f"{start}{method} does not reach {goal} with what was run, up to "
                f"{words.show_fraction(best)} of the data."
            )
            continue
        is_certain = each.interval is None or each.interval.half_width is None
        is_certain = is_certain or (each.interval is not None and each.interval.excludes_zero)
        beats = is_certain and each.reached.accuracy.mean > each.reference.accuracy.mean
        yield (
            f"{start}{method} {'beats' if beats else 'reaches'} {goal} with "
            f"{words.show_fraction(each.reached.fraction)} of it "
            f"({show_estimate(each.reached)} %{_show_interval(each)})."
        )


def _show_interval(headline: DataHeadline) -> str:
    """The difference on the same seeds: without it the means alone may be chance."""
    interval = headline.interval
    if interval is None or interval.half_width is None:
        return ""
    low, high = interval.mean - interval.half_width, interval.mean + interval.half_width
    return (
        f"; difference on the same {words.show_seeds([interval.count])} "
        f"{words.show_signed(interval.mean)}, 95 % interval {words.show_signed(low)} to "
        f"{words.show_signed(high)}"
    )


def _size_sentences(size_headlines: Iterable[SizeHeadline], names: Names) -> Iterable[str]:
    for each in size_headlines:
        if each.series.method not in (words.FINETUNE, words.DSS, words.DSS_DISTILL):
            continue
        method = names.name_series(each.series, each.line.dataset)
        line = (
            f"the teacher {each.line.teacher} (few-shot chain of thought, "
            f"{words.show_percent(each.line.accuracy, 2)} %)"
        )
        if each.passed is None:
            yield f"{each.line.dataset}: {method} does not pass {line} with any student run."
            continue
        yield (
            f"{each.line.dataset}: {method} passes {line} with "
            f"{names.name_model(each.passed.model)} and "
            f"{words.show_fraction(each.passed.fraction)} of the data "
            f"({show_estimate(each.passed)} %)."
        )
