"""Means, standard errors and t intervals against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from distill_sbs.reporting.estimates import estimate, estimate_difference, find_t_quantile


def test_mean_and_standard_error() -> None:
    found = estimate([0.5, 0.6, 0.7])
    assert found.mean == pytest.approx(0.6)
    assert found.standard_error == pytest.approx(0.1 / math.sqrt(3))  # stdev 0.1
    assert found.count == 3
    assert estimate([0.5]).standard_error is None


@pytest.mark.parametrize(
    ("degrees", "quantile"), [(1, 12.7062), (3, 3.1824), (7, 2.3646), (1000, 1.9623)]
)
def test_quantiles_of_t_are_those_of_the_tables(degrees: int, quantile: float) -> None:
    assert find_t_quantile(degrees) == pytest.approx(quantile, abs=5e-5)


def test_paired_interval() -> None:
    # Differences 1, 2, 3: mean 2, stdev 1, t(2) = 4.3027.
    found = estimate_difference([1.0, 2.0, 3.0])
    assert found.mean == 2
    assert found.half_width == pytest.approx(4.3027 / math.sqrt(3), abs=1e-4)
    assert not found.excludes_zero
    assert estimate_difference([1.0, 1.1, 1.2, 1.1]).excludes_zero
    assert estimate_difference([1.0]).half_width is None
    assert not estimate_difference([1.0]).excludes_zero
    assert estimate_difference([0.25, 0.25]).half_width == 0
