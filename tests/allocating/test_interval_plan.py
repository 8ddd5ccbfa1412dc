"""Intervals: what is drawn, and that every token is charged once and none too many."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from distill_sbs.allocating import interval_plan
from distill_sbs.allocating.budget import IntervalBudget
from distill_sbs.allocating.interval_plan import IntervalPlan, TaskTokens
from distill_sbs.allocating.overlap import fingerprint

TASKS = [
    TaskTokens("gold", 0, 1.0, np.full(50, 6), np.full(50, 2), False),
    TaskTokens("taught", 1, 1.0, np.full(40, 6), np.full(40, 10), True),
]
HALF = np.array([0.5, 0.5])


def plan(
    weights: np.ndarray = HALF,
    generation: int = 100,
    training: int = 400,
    bought: dict[str, np.ndarray] | None = None,
    seed: int = 0,
    interval: int = 0,
) -> IntervalPlan:
    return interval_plan.plan_interval(
        TASKS,
        weights,
        seed,
        interval,
        IntervalBudget(generation, training),
        interval_plan.nothing_bought(TASKS) if bought is None else bought,
        4,
        2,
    )


def test_tokens_are_counted_and_no_batch_passes_the_budget() -> None:
    found = plan()
    members = np.concatenate(found.batches)
    of_gold, of_taught = (int((members[:, 0] == task).sum()) for task in (0, 1))
    assert found.trained == 8 * of_gold + 16 * of_taught <= 400
    assert found.by_capability.tolist() == [8 * of_gold, 16 * of_taught]
    assert 400 - found.trained < 4 * 16  # one batch more might not have fitted
    assert all(batch.shape == (4, 2) for batch in found.batches)


def test_a_teachers_targets_are_charged_once() -> None:
    first = plan(np.array([0.0, 1.0]), generation=10_000, training=3_000)
    assert first.generated == 40 * 10  # all of them, walked several times
    assert first.bought["taught"].all()
    again = plan(np.array([0.0, 1.0]), 10_000, 3_000, dict(first.bought), interval=1)
    assert again.generated == 0 and again.trained == 3_000 - 3_000 % 64


def test_what_the_generated_tokens_do_not_allow_is_passed_over() -> None:
    found = plan(generation=25)
    assert found.generated == 20  # two of ten; a third would be 30
    assert found.passed_over > 0
    members = np.concatenate(found.batches)
    assert len(set(members[members[:, 0] == 1][:, 1].tolist())) <= 2
    assert found.bought["taught"].sum() == 2


def test_nothing_is_bought_where_nothing_is_trained() -> None:
    found = plan(np.array([0.0, 1.0]), generation=5)
    assert (found.batches, found.generated, found.trained) == ([], 0, 0)
    small = plan(training=20, generation=100)
    assert (small.batches, small.generated) == ([], 0)
    assert not small.bought["taught"].any()


def test_draws_are_a_function_of_seed_interval_and_weights() -> None:
    def draw(seed: int, interval: int, weights: np.ndarray) -> list[tuple[int, int]]:
        drawn = interval_plan.draw_sequences(TASKS, weights, seed, interval)
        return list(itertools.islice(drawn, 300))

    assert draw(0, 0, HALF) == draw(0, 0, HALF)
    assert draw(0, 0, HALF) != draw(1, 0, HALF)
    assert draw(0, 0, HALF) != draw(0, 1, HALF)
    quarter = draw(0, 0, np.array([0.25, 0.75]))
    assert 0.65 < np.mean([task for task, _ in quarter]) < 0.85
    # A task is walked in whole epochs.
    numbers = [number for task, number in quarter if task == 1]
    assert sorted(numbers[:40]) == list(range(40))


def test_a_plan_is_the_same_again() -> None:
    for first, second in zip(plan().batches, plan().batches, strict=True):
        assert first.tolist() == second.tolist()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("predict: Is it so?", "explain:  is  it SO?", True),
        ("predict: Is it so?", "predict: Is it so", False),
    ],
)
def test_inputs_that_are_the_same_but_for_blanks_and_case(one: str, other: str, same: bool) -> None:
    assert (fingerprint(one) == fingerprint(other)) == same
