"""Intervals: what is drawn, and that every token is charged once and none too many."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from distill_sbs.allocating import interval_plan
from distill_sbs.allocating.budget import IntervalBudget
from distill_sbs.allocating.interval_plan import IntervalPlan, TaskTokens
from distill_sbs.allocating.overlap import fingerprint
from distill_sbs.data.batches import live_targets

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


# ---------------------------------- a live teacher ----------------------------

LONGEST = 12  # tokens of a target that is not written yet
LENGTHS = np.random.default_rng(0).integers(2, LONGEST + 1, 40)
VAIN = 7  # every seventh answer cannot be trained on; it has three tokens that are paid for


class Teacher:
    """Writes targets of lengths that are laid down beforehand, and counts what it was asked."""

    def __init__(self, at_once: int | None = None) -> None:
        self.states = np.full(40, interval_plan.UNWRITTEN)
        self.task = TaskTokens(
            "live", 0, 1.0, np.full(40, 6), np.full(40, LONGEST), True, self.states
        )
        self.asked: list[int] = []
        self.at_once = at_once
        self.bought = interval_plan.nothing_bought([self.task])

    def write(self, unwritten: Sequence[tuple[int, int]]) -> None:
        for _, number in unwritten[: self.at_once]:
            assert self.states[number] == interval_plan.UNWRITTEN
            in_vain = number % VAIN == 0
            self.states[number] = interval_plan.USELESS if in_vain else interval_plan.WRITTEN
            self.task.targets[number] = 3 if in_vain else LENGTHS[number]
            self.asked.append(number)

    def plan(self, generation: int, training: int, interval: int = 0) -> IntervalPlan:
        found = live_targets.resolve(
            lambda: interval_plan.plan_interval(
                [self.task],
                np.ones(1),
                0,
                interval,
                IntervalBudget(generation, training),
                self.bought,
                4,
                1,
            ),
            self.write,
        )
        self.bought = dict(found.bought)
        return found


def test_a_live_teacher_is_asked_within_the_budget_and_all_of_it_is_paid_for() -> None:
    teacher = Teacher()
    found = teacher.plan(generation=100, training=10_000)
    paid = [3 if number % VAIN == 0 else int(LENGTHS[number]) for number in teacher.asked]
    assert found.generated == sum(paid) <= 100
    assert 100 - found.generated < LONGEST  # one more might not have fitted
    assert teacher.bought["live"].tolist() == [number in teacher.asked for number in range(40)]
    trained_on = {number for batch in found.batches for number in batch[:, 1].tolist()}
    assert trained_on == {number for number in teacher.asked if number % VAIN}


@pytest.mark.parametrize("at_once", [3, None])
def test_what_is_asked_at_once_changes_nothing(at_once: int | None) -> None:
    """One answer a plan is asking in turn, which is what the plan says however it is asked."""
    in_turn, other = Teacher(at_once=1), Teacher(at_once)
    for interval in range(3):
        first, second = (each.plan(60, 400, interval) for each in (in_turn, other))
        assert [batch.tolist() for batch in first.batches] == [
            batch.tolist() for batch in second.batches
        ]
        assert (first.generated, first.trained) == (second.generated, second.trained)
    assert sorted(in_turn.asked) == sorted(other.asked)


def test_what_was_asked_for_is_charged_though_no_batch_fits() -> None:
    teacher = Teacher()
    found = teacher.plan(generation=100, training=30)
    assert found.batches == [] and 0 < found.generated <= 100
    paid = [3 if number % VAIN == 0 else int(LENGTHS[number]) for number in teacher.asked]
    assert found.generated == sum(paid)


def test_a_teacher_that_answers_nothing_of_use_ends_the_plan() -> None:
    teacher = Teacher()
    teacher.states[:] = interval_plan.USELESS
    teacher.task.targets[:] = 0
    assert teacher.plan(100, 1_000).batches == []


# ---------------------------------- difficulty --------------------------------


def test_harder_sequences_come_later() -> None:
    task = TaskTokens("sums", 0, 1.0, np.full(30, 5), np.arange(30), True)
    assert task.difficulties().tolist() == [0] * 10 + [1] * 10 + [2] * 10

    def shares(progress: float) -> np.ndarray:
        mix = interval_plan.mix_difficulties(progress)
        drawn = interval_plan.draw_sequences([task], np.ones(1), 0, 0, mix)
        levels = [number // 10 for _, number in itertools.islice(drawn, 4000)]
        return np.bincount(levels, minlength=3) / 4000

    np.testing.assert_allclose(shares(0.1), [0.1, 0.8, 0.1], atol=0.03)
    np.testing.assert_allclose(shares(0.5), [0.1, 0.5, 0.4], atol=0.03)
    np.testing.assert_allclose(shares(1.0), [0.05, 0.2, 0.75], atol=0.03)


def test_two_sequences_have_two_difficulties_and_both_are_drawn() -> None:
    task = TaskTokens("two", 0, 1.0, np.full(2, 5), np.array([9, 3]), True)
    drawn = interval_plan.draw_sequences(
        [task], np.ones(1), 0, 0, interval_plan.mix_difficulties(0.5)
    )
    assert {number for _, number in itertools.islice(drawn, 50)} == {0, 1}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("predict: Is it so?", "explain:  is  it SO?", True),
        ("predict: Is it so?", "predict: Is it so", False),
    ],
)
def test_inputs_that_are_the_same_but_for_blanks_and_case(one: str, other: str, same: bool) -> None:
    assert (fingerprint(one) == fingerprint(other)) == same
