"""Who chooses the mixture of an interval: bandits, and what they are compared with.

Enters: a context (what the task needs, how the student does, what is left of the budget) and
candidate mixtures. Leaves: one mixture. Every choice is a function of the seed, the number of the
interval and what was observed so far, so a policy is restored by observing all of it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from distill_sbs.allocating.context import Context, draw_candidate
from distill_sbs.allocating.ensemble import EnsembleBandit

BANDITS = ("ensemble_ucb", "linucb", "thompson")
BASELINES = ("uniform", "proportional", "single", "random")
POLICIES = (*BANDITS, *BASELINES)
# Where a bandit's own is not given.
EXPLORATION = {"ensemble_ucb": 1.0, "linucb": 0.1, "thompson": 0.1}
RIDGE = 1.0
# A smaller spread of rewards is none.
_LEAST_SCALE = 1e-12


class Policy(Protocol):
    """Chooses mixtures, and learns from rewards."""

    kappa: float

    def select(self, context: Context, candidates: np.ndarray, interval: int) -> np.ndarray:
        """The mixture [K] of an interval; `candidates` are [A, K]."""

    def update(self, context: Context, mixture: np.ndarray, reward: float) -> None:
        """Notes what a mixture gave."""


def make_policy(name: str, seed: int, kappa: float | None = None, warmup: int = 5) -> Policy:
    """A policy by name.

    Args:
      name: one of `POLICIES`.
      seed: of what is drawn.
      kappa: how much uncertainty counts; None: the bandit's own.
      warmup: how many intervals take a random candidate first, of bandits.
    """
    if name in BASELINES:
        return Baseline(name, seed)
    kappa = EXPLORATION[name] if kappa is None else kappa
    if name == "ensemble_ucb":
        return EnsembleBandit(seed, kappa, warmup)
    return LinearBandit(seed, kappa, warmup, samples=name == "thompson")


class Baseline:
    """A policy that learns nothing.

    `uniform`: all capabilities alike; `proportional`: r itself; `single`: the capability that is
    needed most; `random`: any candidate.
    """

    def __init__(self, name: str, seed: int) -> None:
        self.kappa = 0.0
        self._name = name
        self._seed = seed

    def select(self, context: Context, candidates: np.ndarray, interval: int) -> np.ndarray:
        """See `Policy`."""
        requirement = context.requirement
        if self._name == "uniform":
            return np.full(len(requirement), 1.0 / len(requirement))
        if self._name == "proportional":
            return requirement
        if self._name == "single":
            return np.asarray(np.eye(len(requirement))[int(np.argmax(requirement))])
        return draw_candidate(candidates, self._seed, interval)

    def update(self, context: Context, mixture: np.ndarray, reward: float) -> None:
        """See `Policy`."""


class Schedule:
    """A policy that was written down: the mixtures of another run; the last one stays."""

    def __init__(self, mixtures: Sequence[np.ndarray]) -> None:
        self.kappa = 0.0
        self._mixtures = mixtures

    def select(self, context: Context, candidates: np.ndarray, interval: int) -> np.ndarray:
        """See `Policy`."""
        return self._mixtures[min(interval, len(self._mixtures) - 1)]

    def update(self, context: Context, mixture: np.ndarray, reward: float) -> None:
        """See `Policy`."""


class LinearBandit:
    """LinUCB, or Thompson sampling, over a linear model of the reward.

    Features φ = [w, w · (1 - saturation), 1]; A = ridge · I + Σ φφᵀ, b = Σ φ · reward / deviation,
    θ = A⁻¹ b. LinUCB takes the highest θ·φ + κ √(φᵀ A⁻¹ φ), Thompson sampling the highest θ'·φ of a
    θ' from Normal(θ, κ² A⁻¹). The deviation is that of the rewards so far: with it κ has a meaning.
    """

    def __init__(self, seed: int, kappa: float, warmup: int, *, samples: bool = False) -> None:
        self.kappa = kappa
        self._seed = seed
        self._warmup = warmup
        self._samples = samples
        self._features: list[np.ndarray] = []
        self._rewards: list[float] = []

    def select(self, context: Context, candidates: np.ndarray, interval: int) -> np.ndarray:
        """See `Policy`."""
        if interval < self._warmup:
            return draw_candidate(candidates, self._seed, interval)
        if self._samples:
            theta, covariance = self._fit(candidates.shape[1])
            draws = np.random.default_rng([self._seed, interval]).standard_normal(len(theta))
            theta = theta + self.kappa * np.linalg.cholesky(covariance) @ draws
            scores = self._lift(context, candidates) @ theta
        else:
            mean, bonus = self.predict(context, candidates)
            scores = mean + self.kappa * bonus
        return np.asarray(candidates[int(np.argmax(scores))])

    def predict(self, context: Context, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What each candidate should give, in deviations, and how uncertain that is, [A] each."""
        theta, covariance = self._fit(candidates.shape[1])
        features = self._lift(context, candidates)
        uncertainty = np.sqrt(((features @ covariance) * features).sum(axis=1))
        return features @ theta, uncertainty

    def update(self, context: Context, mixture: np.ndarray, reward: float) -> None:
        """See `Policy`."""
        self._features.append(self._lift(context, mixture[None])[0])
        self._rewards.append(reward)

    @staticmethod
    def _lift(context: Context, candidates: np.ndarray) -> np.ndarray:
        ones = np.ones((len(candidates), 1))
        return np.hstack([candidates, candidates * (1.0 - context.saturation), ones])

    def _fit(self, capabilities: int) -> tuple[np.ndarray, np.ndarray]:
        """θ [2K + 1] and A⁻¹."""
        precision = RIDGE * np.eye(2 * capabilities + 1)
        if not self._rewards:
            return np.zeros(len(precision)), np.linalg.inv(precision)
        features = np.array(self._features)
        covariance = np.linalg.inv(precision + features.T @ features)
        return covariance @ (features.T @ scale_rewards(self._rewards)), covariance


def scale_rewards(rewards: Sequence[float]) -> np.ndarray:
    """Rewards in their own deviations; as they are where they do not differ."""
    values = np.array(rewards)
    deviation = float(values.std())
    return values / deviation if deviation > _LEAST_SCALE else values
