"""Budgets: charged exactly, never passed."""

from __future__ import annotations

import random

import pytest

from distill_sbs.allocating.budget import GENERATION, TRAINING, OverBudget, TokenBudget
from distill_sbs.errors import UserError


def test_random_charges_never_pass_the_budget() -> None:
    draws = random.Random(0)
    for _ in range(20):
        budget = TokenBudget(1000, 400, 600)
        charged = {GENERATION: 0, TRAINING: 0}
        for _ in range(100):
            kind, tokens = draws.choice([GENERATION, TRAINING]), draws.randrange(60)
            try:
                budget.charge(kind, tokens)
                charged[kind] += tokens
            except OverBudget:
                assert charged[kind] + tokens > {GENERATION: 400, TRAINING: 600}[kind]
            assert budget.used == charged
            assert sum(budget.used.values()) <= budget.total


def test_a_charge_that_does_not_fit_is_refused_whole() -> None:
    budget = TokenBudget(10, 4, 6)
    budget.charge(TRAINING, 5)
    with pytest.raises(OverBudget, match="2 training tokens, 1 left"):
        budget.charge(TRAINING, 2)
    assert budget.left(TRAINING) == 1
    with pytest.raises(ValueError):
        budget.charge(TRAINING, -1)


def test_parts_must_sum_to_the_total() -> None:
    with pytest.raises(UserError, match="are not the budget of 10"):
        TokenBudget(10, 4, 5)
    with pytest.raises(UserError, match="expected at least 0 and 1"):
        TokenBudget(10, 10, 0)


@pytest.mark.parametrize(("generation", "training", "interval"), [(400, 600, 50), (7, 101, 25)])
def test_intervals_sum_to_the_budget(generation: int, training: int, interval: int) -> None:
    budget = TokenBudget(generation + training, generation, training)
    intervals = 0
    while (part := budget.next_interval(interval)).training:
        assert part.training <= interval
        budget.charge(GENERATION, part.generation)
        budget.charge(TRAINING, part.training)
        intervals += 1
    assert intervals == -(-training // interval)
    assert budget.used == {GENERATION: generation, TRAINING: training}


def test_the_last_interval_is_what_is_left() -> None:
    budget = TokenBudget(130, 30, 100)
    # ceil(30 / ceil(100 / 40)) = 10
    assert (budget.next_interval(40).training, budget.next_interval(40).generation) == (40, 10)
    budget.charge(TRAINING, 80)
    budget.charge(GENERATION, 20)
    assert (budget.next_interval(40).training, budget.next_interval(40).generation) == (20, 10)
