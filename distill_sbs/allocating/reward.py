"""What an interval was worth to the task, and how that is scaled.

Enters: a requirement r [K], the change of the capability profile δ [K] over an interval, tokens.
Leaves: R = r·δ - β · spill - λ · tokens, where the spill sums the losses of the capabilities that
the task needs most (arXiv 2605.11290).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distill_sbs.allocating.actions import rank_capabilities

# A smaller spread of rewards says nothing of a slope.
_LEAST_SPREAD = 1e-8


def spillover(requirement: np.ndarray, change: np.ndarray, top_k: int = 3) -> float:
    """The weighted losses, ≥ 0: sum of r[c] · max(0, -δ[c]) over the `top_k` of r."""
    pool = rank_capabilities(requirement, top_k)
    return float((requirement[pool] * np.maximum(0.0, -change[pool])).sum())


def interval_reward(
    requirement: np.ndarray,
    change: np.ndarray,
    tokens: int,
    *,
    spill_weight: float = 0.5,
    token_cost: float = 1e-5,
    top_k: int = 3,
) -> float:
    """R, the reward of an interval.

    Args:
      requirement: r, [K].
      change: δ, the profile after the interval minus the one before, [K].
      tokens: used by the interval, generated and trained.
      spill_weight: β.
      token_cost: λ, a token.
      top_k: how many capabilities' losses count.
    """
    spill = spillover(requirement, change, top_k)
    return float(requirement @ change) - spill_weight * spill - token_cost * tokens


def fit_scale(cumulative: Sequence[float], utilities: Sequence[float], before: float) -> float:
    """ρ, from reward to utility: the least-squares slope over the evaluations so far.

    Args:
      cumulative: the rewards' sum at each evaluation.
      utilities: what each evaluation found.
      before: ρ so far, which stays where there are fewer than two evaluations, they are at equal
        rewards, or the slope is not positive.
    """
    if len(cumulative) < 2:
        return before
    centred = np.array(cumulative) - np.mean(cumulative)
    spread = float(centred @ centred)
    if spread <= _LEAST_SPREAD:
        return before
    slope = float(centred @ (np.array(utilities) - np.mean(utilities))) / spread
    return slope if slope > 0.0 else before


def decay_exploration(kappa: float, utilities: Sequence[float], decay: float = 0.7) -> float:
    """κ after an evaluation: less where the utility is not above the evaluation before."""
    stalls = len(utilities) > 1 and utilities[-1] <= utilities[-2]
    return decay * kappa if stalls else kappa
