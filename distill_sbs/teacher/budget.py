"""What the calls cost, and when to stop for it.

Enters: token counts of responses, prices, limits. Leaves: whether another call may start.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

# Where the endpoint counts no tokens: English text has about four characters to one.
CHARACTERS_PER_TOKEN = 4

# No model reads or writes as much in one call; an endpoint that says so is wrong.
_MOST_TOKENS_OF_A_CALL = 10_000_000


def check_token_count(count: object) -> int | None:
    """A number of tokens as an endpoint gives it, if it can be one of a call; else None.

    Zero is none either: neither a prompt nor a response is empty, and zeros would let a budget
    last for ever.
    """
    if isinstance(count, bool) or not isinstance(count, int | float):
        return None
    if not 0 < count <= _MOST_TOKENS_OF_A_CALL or count != int(count):  # NaN is in no range
        return None
    return int(count)


class Spending(Protocol):
    """What the responses in an output file have cost so far."""

    @property
    def answered(self) -> int:
        """Responses."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts."""

    @property
    def completion_tokens(self) -> int:
        """Tokens of all responses."""


@dataclasses.dataclass(frozen=True)
class Prices:
    """Dollars (or any currency) per million tokens; None where unknown."""

    prompt: float | None = None
    completion: float | None = None

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float | None:
        """What so many tokens cost; None without prices."""
        if self.prompt is None or self.completion is None:
            return None
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


class Budget:
    """Limits on what an output file may cost in all, earlier runs included.

    A call starts only if it, and those in flight, fit in as an average call does; so the end may
    lie beside the limit by what single calls differ from the average.

    Args:
      totals: what the output file holds; grows as responses arrive.
      prices: of tokens.
      max_tokens_total: prompt and completion tokens together.
      max_cost: in the prices' currency.
    """

    def __init__(
        self,
        totals: Spending,
        prices: Prices,
        max_tokens_total: int | None = None,
        max_cost: float | None = None,
    ) -> None:
        self._totals = totals
        self._prices = prices
        self._max_tokens_total = max_tokens_total
        self._max_cost = max_cost
        self._first_guess = (0.0, 0.0)

    @property
    def is_limited(self) -> bool:
        """Whether there is any limit."""
        return self._max_tokens_total is not None or self._max_cost is not None

    def expect(self, prompt_characters: int, completion_tokens: int) -> None:
        """Tells what a call may cost, before any response says so."""
        self._first_guess = (prompt_characters / CHARACTERS_PER_TOKEN, float(completion_tokens))

    def find_excess(self, in_flight: int) -> str | None:
        """Why no further call may start beside `in_flight` others; None where one may."""
        totals, answered = self._totals, self._totals.answered
        if answered:
            average = (totals.prompt_tokens / answered, totals.completion_tokens / answered)
        else:
            average = self._first_guess
        calls = in_flight + 1
        prompt = totals.prompt_tokens + calls * average[0]
        completion = totals.completion_tokens + calls * average[1]
        if self._max_tokens_total is not None and prompt + completion > self._max_tokens_total:
            spent = totals.prompt_tokens + totals.completion_tokens
            return f"{spent:,} of --max_tokens_total={self._max_tokens_total:,} tokens are used"
        cost = self._prices.cost(prompt, completion)
        if self._max_cost is not None and cost is not None and cost > self._max_cost:
            spent_cost = self._prices.cost(totals.prompt_tokens, totals.completion_tokens) or 0.0
            return f"{spent_cost:.4f} of --max_cost={self._max_cost:g} is spent"
        return None
