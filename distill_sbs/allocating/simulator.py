"""A toy world in which mixtures of training move capabilities: bandits are measured in seconds.

Enters: a seed, a policy. Leaves: by how much the task's utility r·s rose, and the spill on the way.
Training on a capability raises it, less the better it is, and moves others up or down; a loss is
the larger the more there is to lose. It is no model of any student.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from distill_sbs.allocating import reward as rewards
from distill_sbs.allocating.actions import candidate_mixtures
from distill_sbs.allocating.context import Context
from distill_sbs.allocating.policies import Policy

CAPABILITIES = 5
NOISE = 0.003
_SPILLS = (0.0, 0.02, -0.02, -0.035)
_PROBABILITIES = (0.4, 0.25, 0.2, 0.15)


@dataclasses.dataclass(frozen=True)
class World:
    """What training does: `transfer[i, j]`, of capability i's training on capability j."""

    transfer: np.ndarray
    requirement: np.ndarray
    start: np.ndarray

    @classmethod
    def draw(cls, seed: int) -> World:
        """A world of a seed."""
        draws = np.random.default_rng([seed, 1])
        count = CAPABILITIES
        transfer = draws.choice(_SPILLS, (count, count), p=_PROBABILITIES)
        transfer = transfer * draws.uniform(0.5, 1.2, (count, count))
        np.fill_diagonal(transfer, draws.uniform(0.04, 0.08, count))
        requirement = draws.dirichlet(np.full(count, 1.2))
        return cls(transfer, requirement, draws.uniform(0.15, 0.35, count))

    def expected_change(self, profile: np.ndarray, mixture: np.ndarray) -> np.ndarray:
        """δ of an interval on a mixture, without noise, [K]; gains saturate, losses grow."""
        gains = np.maximum(self.transfer, 0.0) * np.maximum(0.05, 1.0 - profile)
        losses = np.minimum(self.transfer, 0.0) * 2.0 * profile
        return np.asarray(mixture @ (gains + losses))


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A run's gain of utility, and the sum of its spills."""

    gain: float
    spill: float


def run_world(
    world: World,
    policy: Policy | None,
    seed: int,
    *,
    intervals: int = 40,
    spill_weight: float = 0.5,
) -> Outcome:
    """Runs a policy in a world; None is the oracle, which knows what each candidate gives next."""
    draws = np.random.default_rng([seed, 2])
    requirement, profile = world.requirement, world.start
    candidates = candidate_mixtures(requirement, include_one_hot=True)
    spill = 0.0
    for interval in range(intervals):
        context = Context(requirement, profile, 1.0 - interval / intervals)

        def worth(change: np.ndarray) -> float:
            return rewards.interval_reward(
                requirement, change, 0, spill_weight=spill_weight, token_cost=0.0
            )

        if policy is None:
            worths = [worth(world.expected_change(profile, each)) for each in candidates]
            mixture = candidates[int(np.argmax(worths))]
        else:
            mixture = policy.select(context, candidates, interval)
        noise = draws.normal(0.0, NOISE, len(profile))
        after = np.clip(profile + world.expected_change(profile, mixture) + noise, 0.0, 1.0)
        change = after - profile
        spill += rewards.spillover(requirement, change)
        if policy is not None:
            policy.update(context, mixture, worth(change))
        profile = after
    return Outcome(float(requirement @ (profile - world.start)), spill)
