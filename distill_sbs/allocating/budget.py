"""A budget of tokens, charged exactly.

Enters: how many tokens there are in all, a teacher's and a student's. Leaves: what is left; a
charge that does not fit is refused whole. A token is an id after tokenisation, the end token among
them, padding not.
"""

from __future__ import annotations

import dataclasses

from distill_sbs.errors import UserError

GENERATION, TRAINING = "generation", "training"


class OverBudget(Exception):
    """A charge does not fit; nothing was charged."""


@dataclasses.dataclass
class TokenBudget:
    """B = B_gen + B_train, and what was used of each.

    Attributes:
      total: B, in tokens.
      generation: B_gen, the teacher's tokens.
      training: B_train, the student's tokens.
      used: kind → tokens charged so far.

    Raises:
      UserError: the parts are negative or do not sum to the total, or there is nothing to train on.
    """

    total: int
    generation: int
    training: int
    used: dict[str, int] = dataclasses.field(default_factory=lambda: {GENERATION: 0, TRAINING: 0})

    def __post_init__(self) -> None:
        if min(self.generation, self.training) < 0 or self.training == 0:
            raise UserError(
                f"a budget of {self.generation} generated and {self.training} trained tokens: "
                "expected at least 0 and 1; raise BUDGET_TOKENS, or lower GENERATION_TOKENS"
            )
        if self.generation + self.training != self.total:
            raise UserError(
                f"{self.generation} generated + {self.training} trained tokens are not the budget "
                f"of {self.total}"
            )

    def left(self, kind: str) -> int:
        """Tokens of a kind that may still be charged."""
        return self._limit(kind) - self.used[kind]

    def _limit(self, kind: str) -> int:
        return {GENERATION: self.generation, TRAINING: self.training}[kind]

    def charge(self, kind: str, tokens: int) -> None:
        """Notes that tokens were used.

        Raises:
          OverBudget: they are more than are left.
          ValueError: they are fewer than none.
        """
        if tokens < 0:
            raise ValueError(f"{tokens} tokens")
        if tokens > self.left(kind):
            raise OverBudget(f"{tokens} {kind} tokens, {self.left(kind)} left")
        self.used[kind] += tokens

    @property
    def progress(self) -> float:
        """The share that is used, 0 to 1."""
        return sum(self.used.values()) / self.total

    def next_interval(self, interval_tokens: int) -> IntervalBudget:
        """What the next interval may use.

        The generated tokens that are left are spread over the intervals that are left.
        """
        training = min(interval_tokens, self.left(TRAINING))
        if training == 0:
            return IntervalBudget(0, 0)
        intervals_left = -(-self.left(TRAINING) // training)
        return IntervalBudget(-(-self.left(GENERATION) // intervals_left), training)


@dataclasses.dataclass(frozen=True)
class IntervalBudget:
    """The most tokens that one interval uses."""

    generation: int
    training: int
