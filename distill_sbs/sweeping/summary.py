"""The table of a sweep: mean ± standard error over seeds.

Enters: what the runs' `results.json` say, with the labels of each in the grid. Leaves: rows, for
`summary.json`, and the table in Markdown.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from distill_sbs.reporting.estimates import Estimate, estimate
from distill_sbs.sweeping.grid import FRACTION, MIXTURE, SEED


@dataclasses.dataclass(frozen=True)
class Result:
    """What a finished run found.

    Attributes:
      labels: axis → label of the run's value there; the mixture, fraction and seed always stand.
      test_accuracy: 0 to 1; None where the dataset has no test split.
    """

    labels: Mapping[str, str]
    test_accuracy: float | None


@dataclasses.dataclass(frozen=True)
class Row:
    """Runs that differ in their seed alone.

    Attributes:
      labels: axis → label; no seed.
      seeds: in ascending order.
      test_accuracies: 0 to 1, in the order of the seeds.
    """

    labels: Mapping[str, str]
    seeds: tuple[str, ...]
    test_accuracies: tuple[float, ...]

    @property
    def accuracy(self) -> Estimate:
        """Over the seeds."""
        return estimate(self.test_accuracies)

    def to_json(self) -> dict[str, object]:
        """A row of `summary.json`."""
        accuracy = self.accuracy
        axes = {
            axis: label for axis, label in self.labels.items() if axis not in (MIXTURE, FRACTION)
        }
        return {
            "mixture": self.labels.get(MIXTURE),
            "data_fraction": float(self.labels[FRACTION]) if FRACTION in self.labels else None,
            **axes,
            "seeds": [int(seed) for seed in self.seeds],
            "test_accuracies": list(self.test_accuracies),
            "mean": accuracy.mean,
            "standard_error": accuracy.standard_error,
        }


def summarise(results: Sequence[Result]) -> list[Row]:
    """The rows, in the order of their first results; what has no test split is left out."""
    groups: dict[tuple[tuple[str, str], ...], dict[str, float]] = {}
    for result in results:
        if result.test_accuracy is not None:
            group = tuple(item for item in result.labels.items() if item[0] != SEED)
            groups.setdefault(group, {})[result.labels[SEED]] = result.test_accuracy
    rows = []
    for group, by_seed in groups.items():
        seeds = tuple(sorted(by_seed, key=int))
        rows.append(Row(dict(group), seeds, tuple(by_seed[seed] for seed in seeds)))
    return rows


def make_table(rows: Sequence[Row]) -> str:
    """A Markdown table in percent: a line a method, a column a data fraction, `mean ± error`."""
    fractions = sorted({row.labels[FRACTION] for row in rows if FRACTION in row.labels}, key=float)
    columns: list[str | None] = [*fractions] or [None]
    others = [axis for axis in (rows[0].labels if rows else ()) if axis not in (FRACTION,)]
    heads = ["mixture" if axis == MIXTURE else axis for axis in others]
    lines = [
        "| " + " | ".join([*heads, *(column or "test accuracy" for column in columns)]) + " |",
        "| " + " | ".join(["---"] * len(heads) + ["---:"] * len(columns)) + " |",
    ]
    cells = {(_key(row, others), row.labels.get(FRACTION)): row for row in rows}
    for key in dict.fromkeys(_key(row, others) for row in rows):
        found = [cells.get((key, column)) for column in columns]
        lines.append("| " + " | ".join([*key, *map(_write, found)]) + " |")
    return "\n".join(lines)


def _key(row: Row, axes: Sequence[str]) -> tuple[str, ...]:
    return tuple(row.labels[axis] for axis in axes)


def _write(row: Row | None) -> str:
    if row is None:
        return "–"
    error = row.accuracy.standard_error
    spread = "" if error is None else f" ± {100 * error:.1f}"
    return f"{100 * row.accuracy.mean:.1f}{spread}"
