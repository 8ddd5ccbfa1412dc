"""The state of an allocation: what was spent, what it gave, what comes next.

Enters: the options, the requirement vector, and interval by interval what was trained on and
measured. Leaves: the next interval's mixture, and a line of history for the one before. The whole
state is a function of the history: an interrupted run observes it again, and goes on as it would
have.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from distill_sbs.allocating import actions, budget, history, policies, reward
from distill_sbs.allocating.context import Context
from distill_sbs.allocating.options import AllocationConfig

# An evaluation is due a rounding error before its share of the budget.
_EPSILON = 1e-9


class Allocator:
    """Chooses mixtures and keeps the books.

    Args:
      options: of the allocation.
      requirement: r, [K].
      profile: s before the first interval, [K].
      tokens: the budget, of which nothing was used yet.
      seed: RANDOM_SEED.
      schedule: mixtures to replay in the place of the policy's; None: none.
    """

    def __init__(
        self,
        options: AllocationConfig,
        requirement: np.ndarray,
        profile: Sequence[float],
        tokens: budget.TokenBudget,
        seed: int,
        schedule: Sequence[np.ndarray] | None = None,
    ) -> None:
        self.budget = tokens
        self.intervals: list[history.Interval] = []
        self._options = options
        self._requirement = requirement
        self._profile = np.array(profile)
        self._policy: policies.Policy = (
            policies.Schedule(schedule)
            if schedule is not None
            else policies.make_policy(
                options.policy, seed, options.exploration, options.warmup_intervals
            )
        )
        self._candidates = actions.candidate_mixtures(
            requirement, options.top_k, options.mixture_grid, options.uses_one_hot()
        )
        self._scale = 1.0  # ρ
        self._cumulative = 0.0  # of R
        self._points: list[tuple[float, float]] = []  # cumulative R and utility, of evaluations

    def _context(self) -> Context:
        return Context(self._requirement, np.exp(self._profile), 1.0 - self.budget.progress)

    def choose(self) -> np.ndarray:
        """The mixture of the next interval, [K]; the same however often it is asked."""
        return self._policy.select(self._context(), self._candidates, len(self.intervals))

    def is_evaluation_due(self, tokens: int) -> bool:
        """Whether the utility is to be found after an interval that used `tokens`."""
        share, total = self._options.evaluation_share, self.budget.total
        used = sum(self.budget.used.values())
        before, after = (
            math.floor(each / total / share + _EPSILON) for each in (used, used + tokens)
        )
        return after > before

    def observe(
        self,
        mixture: np.ndarray,
        generated: int,
        trained: int,
        tokens: Sequence[int],
        profile: Sequence[float],
        step: int,
        utility: float | None,
    ) -> history.Interval:
        """Notes an interval: charges its tokens, rewards the policy, and adds a line of history.

        Args:
          mixture: w, [K].
          generated, trained: tokens to charge.
          tokens: trained, by capability, [K].
          profile: s after it, [K].
          step: the run's step after it.
          utility: of the evaluation after it; None where there was none.

        Raises:
          budget.OverBudget: the tokens are more than are left; the policy was told nothing.
        """
        options, context, kappa = self._options, self._context(), self._policy.kappa
        self.budget.charge(budget.GENERATION, generated)
        self.budget.charge(budget.TRAINING, trained)
        change = np.array(profile) - self._profile
        spill = reward.spillover(self._requirement, change, options.top_k)
        gained = reward.interval_reward(
            self._requirement,
            change,
            generated + trained,
            spill_weight=options.spill_weight,
            token_cost=options.token_cost,
            top_k=options.top_k,
        )
        scaled = self._scale * gained
        self._policy.update(context, mixture, scaled)
        self._profile = np.array(profile)
        self._cumulative += gained
        if utility is not None:
            self._points.append((self._cumulative, utility))
            rewards, utilities = zip(*self._points, strict=True)
            self._scale = reward.fit_scale(rewards, utilities, self._scale)
            self._policy.kappa = reward.decay_exploration(
                kappa, utilities, options.exploration_decay
            )
        self.intervals.append(
            history.Interval(
                len(self.intervals),
                step,
                [float(each) for each in mixture],
                generated,
                trained,
                [int(each) for each in tokens],
                [float(each) for each in profile],
                gained,
                scaled,
                spill,
                kappa,
                utility,
            )
        )
        return self.intervals[-1]

    def restore(self, intervals: Sequence[history.Interval]) -> None:
        """Observes again what another process of this run observed."""
        for each in intervals:
            self.observe(
                np.array(each.mixture),
                each.generated,
                each.trained,
                each.tokens,
                each.profile,
                each.step,
                each.utility,
            )

    def note_last_utility(self, utility: float) -> None:
        """Adds the utility at the end of the run to the last interval, where it has none."""
        self.intervals[-1] = dataclasses.replace(self.intervals[-1], utility=utility)
