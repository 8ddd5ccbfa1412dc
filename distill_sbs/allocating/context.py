"""What is known before an interval, and a blind choice.

Enters: a requirement, a profile, what is left of a budget. Leaves: a `Context` for policies.
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Context:
    """What is known before an interval.

    Attributes:
      requirement: r, [K].
      saturation: how well each capability is mastered, 0 to 1, [K]: of a mean log-probability s a
        token, exp(s).
      remaining: the share of the budget that is left, 0 to 1.
    """

    requirement: np.ndarray
    saturation: np.ndarray
    remaining: float


def draw_candidate(candidates: np.ndarray, seed: int, interval: int) -> np.ndarray:
    """One of the candidates, all equally likely."""
    number = np.random.default_rng([seed, interval]).integers(len(candidates))
    return np.asarray(candidates[number])
