"""Means over seeds and differences on the same seeds, with what is known of their spread.

Enters: numbers. Leaves: estimates. The interval of a difference is Student's t interval of the mean
of the paired differences: 95 % of such intervals hold the true mean where differences are normal.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean.

    Attributes:
      mean: of the values.
      standard_error: sample standard deviation / √n; None for one value.
      count: n.
    """

    mean: float
    standard_error: float | None
    count: int


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean of differences.

    Attributes:
      mean: of the differences.
      half_width: the 95 % interval is mean ± half_width; None for one difference.
      count: of pairs.
    """

    mean: float
    half_width: float | None
    count: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return self.half_width is not None and abs(self.mean) > self.half_width


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and standard error of at least one value."""
    count, mean = len(values), statistics.fmean(values)
    if count == 1:
        return Estimate(mean, None, 1)
    # By floats: `statistics.stdev` reckons in fractions, which takes long over curves' points.
    squares = math.fsum((value - mean) ** 2 for value in values)
    return Estimate(mean, math.sqrt(squares / (count - 1) / count), count)


def find_t_quantile(degrees_of_freedom: int) -> float:
    """What Student's t stays within, up or down, with a probability of 95 %."""
    from scipy import special  # slow to import, and a sweep's table has no intervals

    return float(special.stdtrit(degrees_of_freedom, (1 + CONFIDENCE) / 2))


def estimate_difference(differences: Sequence[float]) -> Interval:
    """The t interval of the mean of at least one difference."""
    found = estimate(differences)
    if found.standard_error is None:
        return Interval(found.mean, None, 1)
    half = find_t_quantile(found.count - 1) * found.standard_error
    return Interval(found.mean, half, found.count)
