"""Histories and the allocator's state: written, read, replayed, and refused."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from distill_sbs.allocating import history
from distill_sbs.allocating.bookkeeping import Allocator
from distill_sbs.allocating.budget import OverBudget, TokenBudget
from distill_sbs.allocating.interval_plan import TaskTokens
from distill_sbs.allocating.options import AllocationConfig
from distill_sbs.allocating.state import AllocationState
from distill_sbs.errors import DamagedError, UserError

OPTIONS = AllocationConfig(
    capabilities={"a": "x_label", "b": "x_rationale_t"},
    budget_tokens=1000,
    interval_tokens=100,
    policy="linucb",
    token_cost=0.0,
    warmup_intervals=2,
)
REQUIREMENT = np.array([0.75, 0.25])
HEAD = history.HistoryHead(
    "x_label", {"a": "x_label", "b": "x_rationale_t"}, [0.75, 0.25], [-3.0, -2.0], {"POLICY": "l"}
)


def make_allocator() -> Allocator:
    return Allocator(OPTIONS, REQUIREMENT, HEAD.profile, TokenBudget(1000, 400, 600), 0)


def advance(allocator: Allocator, number: int) -> None:
    """An interval whose profile and utility depend on its number."""
    mixture = allocator.choose()
    utility = 0.1 * number if allocator.is_evaluation_due(130) else None
    profile = [-3.0 + 0.1 * number, -2.0 - 0.05 * number]
    allocator.observe(mixture, 40, 90, [50, 40], profile, 10 * (number + 1), utility)


def test_an_interval_by_hand() -> None:
    allocator = make_allocator()
    assert allocator.is_evaluation_due(100) and not allocator.is_evaluation_due(99)
    line = allocator.observe(np.array([0.5, 0.5]), 40, 60, [30, 30], [-2.8, -2.4], 7, 0.25)
    # r·δ = .75 · .2 - .25 · .4 = .05; spill .25 · .4 = .1, at β = .5
    assert line.reward == pytest.approx(0.0, abs=1e-12)
    assert line.spill == pytest.approx(0.1)
    assert line.kappa == 0.1
    assert allocator.budget.used == {"generation": 40, "training": 60}
    with pytest.raises(OverBudget):
        allocator.observe(np.array([1.0, 0.0]), 0, 541, [541, 0], [-2.8, -2.4], 8, None)


def test_a_restored_allocator_goes_on_the_same() -> None:
    whole = make_allocator()
    for number in range(6):
        advance(whole, number)
    parts = make_allocator()
    for number in range(3):
        advance(parts, number)
    restored = make_allocator()
    restored.restore(parts.intervals)
    for number in range(3, 6):
        advance(restored, number)
    assert restored.intervals == whole.intervals
    assert any(each.kappa != 0.1 for each in whole.intervals) is False
    assert restored.budget.used == whole.budget.used


def test_kappa_falls_at_an_evaluation_that_stalls() -> None:
    allocator = make_allocator()
    for utility in (0.3, 0.3, 0.4, None):
        allocator.observe(np.array([0.5, 0.5]), 0, 100, [50, 50], [-3.0, -2.0], 1, utility)
    assert [each.kappa for each in allocator.intervals] == pytest.approx([0.1, 0.1, 0.07, 0.07])


def test_a_history_is_read_as_it_was_written(tmp_path: pathlib.Path) -> None:
    allocator = make_allocator()
    for number in range(3):
        advance(allocator, number)
    written = history.History(HEAD, tuple(allocator.intervals))
    written.write(str(tmp_path))
    path = tmp_path / history.HISTORY_FILE
    assert history.read_history(str(path)) == written
    changes, utilities = written.interventions()
    assert changes == pytest.approx(np.array([[0.1, -0.05], [0.1, -0.05]]))
    assert utilities == pytest.approx([0.1, 0.1])
    history.check_same_history(str(tmp_path), HEAD)
    other = history.HistoryHead("y_label", HEAD.capabilities, [0.75, 0.25], [], HEAD.options)
    with pytest.raises(UserError, match="history of another run .task: x_label there, y_"):
        history.check_same_history(str(tmp_path), other)
    with pytest.raises(UserError, match="its capabilities are a, b, CAPABILITIES has a, c"):
        history.check_capabilities(written, ["a", "c"], str(path))


@pytest.mark.parametrize(
    ("line", "change", "told"),
    [
        (0, {"format_version": 2}, "line 1: format_version is 2, expected 1"),
        (0, {"capabilities": {}}, "line 1: task, capabilities or options"),
        (1, {"mixture": [0.5, 0.6]}, "line 2: the mixture [0.5, 0.6] is not"),
        (1, {"mixture": [1.0]}, "line 2: mixture is [1.0], expected 2 numbers"),
        (2, {"interval": 7}, "line 3: interval 7, expected 1"),
        (2, {"reward": None}, "line 3: reward is None, expected a number"),
        (1, {"step": -1}, "line 2: step is -1, expected a whole number"),
    ],
)
def test_broken_histories(
    tmp_path: pathlib.Path, line: int, change: dict[str, object], told: str
) -> None:
    allocator = make_allocator()
    for number in range(2):
        advance(allocator, number)
    rows = [
        json.loads(each)
        for each in history.History(HEAD, tuple(allocator.intervals)).lines().splitlines()
    ]
    rows[line].update(change)
    path = tmp_path / "history.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError) as error:
        history.read_history(str(path))
    assert str(path) in str(error.value) and told in str(error.value)


def test_a_state_is_read_as_it_was_saved() -> None:
    tasks = [
        TaskTokens("gold", 0, 1.0, np.ones(3), np.ones(3), False),
        TaskTokens("taught", 1, 1.0, np.ones(11), np.ones(11), True),
    ]
    allocator = make_allocator()
    advance(allocator, 0)
    bought = {"taught": np.arange(11) % 3 == 0}
    state = AllocationState(HEAD, allocator.intervals, bought, 10)
    saved = json.loads(json.dumps(state.to_json()))
    again = AllocationState.from_json(saved, tasks, "here")
    assert (again.head, again.intervals, again.step) == (HEAD, allocator.intervals, 10)
    assert again.bought["taught"].tolist() == bought["taught"].tolist()
    more = [TaskTokens("taught", 1, 1.0, np.ones(30), np.ones(30), True)]
    with pytest.raises(UserError, match="taught has 30 sequences now"):
        AllocationState.from_json(saved, more, "here")
    with pytest.raises(DamagedError, match="head, intervals, bought and step"):
        AllocationState.from_json({"head": {}}, tasks, "here")
