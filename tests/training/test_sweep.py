"""sweep: mean ± standard error, by hand; the runs themselves are test_train's."""

from __future__ import annotations

import math

import pytest

from distill_sbs import sweep


def result(mixture: str, fraction: float, seed: int, accuracy: float) -> dict:
    return {
        "mixture": mixture,
        "data_fraction": fraction,
        "seed": seed,
        "test": {"accuracy": accuracy},
    }


def test_standard_error() -> None:
    # Deviations from 0.5 are ±0.1: variance 0.04 / 3, divided by 4.
    assert sweep.standard_error([0.4, 0.6, 0.4, 0.6]) == pytest.approx(math.sqrt(0.04 / 3 / 4))
    assert math.isnan(sweep.standard_error([0.5]))


def test_table() -> None:
    rows = sweep.summarise(
        [
            result("a", 1.0, 1, 0.6),
            result("a", 1.0, 0, 0.4),
            result("a", 0.25, 0, 0.1),
            result("b", 1.0, 0, 0.9),
        ]
    )
    assert rows[0]["test_accuracies"] == [0.4, 0.6]
    assert sweep.table(rows).splitlines() == [
        "| mixture | 0.25 | 1 |",
        "| --- | ---: | ---: |",
        "| a | 10.0 | 50.0 ± 10.0 |",
        "| b | – | 90.0 |",
    ]
