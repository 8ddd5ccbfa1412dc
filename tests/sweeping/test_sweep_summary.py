"""The table of a sweep: mean ± standard error, by hand."""

from __future__ import annotations

import pytest

from distill_sbs.sweeping.summary import Result, make_table, summarise


def result(mixture: str, fraction: str, seed: int, accuracy: float | None, **more: str) -> Result:
    labels = {"MIXTURE_OR_TASK_NAME": mixture, **more, "DATA_FRACTION": fraction}
    return Result({**labels, "RANDOM_SEED": str(seed)}, accuracy)


def test_standard_error() -> None:
    # Deviations from 0.5 are ±0.1: variance 0.04 / 3, divided by 4, of which the root.
    accuracies = (0.4, 0.6, 0.4, 0.6)
    (row,) = summarise([result("a", "1", seed, each) for seed, each in enumerate(accuracies)])
    assert row.to_json()["standard_error"] == pytest.approx((0.04 / 3 / 4) ** 0.5)


def test_table() -> None:
    rows = summarise(
        [
            result("a", "1", 1, 0.6),
            result("a", "1", 0, 0.4),
            result("a", "0.25", 0, 0.1),
            result("b", "1", 0, 0.9),
        ]
    )
    assert rows[0].test_accuracies == (0.4, 0.6)
    assert make_table(rows).splitlines() == [
        "| mixture | 0.25 | 1 |",
        "| --- | ---: | ---: |",
        "| a | 10.0 | 50.0 ± 10.0 |",
        "| b | – | 90.0 |",
    ]


def test_further_axes_are_columns_of_their_own() -> None:
    rows = summarise(
        [result("a", "1", 0, 0.5, student="small"), result("a", "1", 0, 0.75, student="base")]
    )
    assert make_table(rows).splitlines()[2:] == ["| a | small | 50.0 |", "| a | base | 75.0 |"]
    assert [row.to_json() for row in rows][1] == {
        "mixture": "a",
        "data_fraction": 1.0,
        "student": "base",
        "seeds": [0],
        "test_accuracies": [0.75],
        "mean": 0.75,
        "standard_error": None,
    }


def test_what_has_no_test_split_is_in_no_row() -> None:
    assert summarise([result("a", "1", 0, None)]) == []
