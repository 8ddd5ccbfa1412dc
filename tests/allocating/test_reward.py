"""Reward and candidates, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from distill_sbs.allocating import actions, reward

R = np.array([0.5, 0.3, 0.2])
CHANGE = np.array([0.1, -0.2, -0.05])


@pytest.mark.parametrize(("top_k", "spill"), [(1, 0.0), (2, 0.06), (3, 0.07)])
def test_spill_by_hand(top_k: int, spill: float) -> None:
    assert reward.spillover(R, CHANGE, top_k) == pytest.approx(spill, abs=1e-12)


def test_reward_by_hand() -> None:
    # r·δ = .05 - .06 - .01 = -.02; β · spill = .5 · .07
    found = reward.interval_reward(R, CHANGE, 0, spill_weight=0.5, token_cost=0.0)
    assert found == pytest.approx(-0.055, abs=1e-12)
    costs = reward.interval_reward(R, CHANGE, 1000, spill_weight=0.5, token_cost=1e-5)
    assert costs == pytest.approx(-0.065, abs=1e-12)


def test_gains_spill_nothing() -> None:
    assert reward.spillover(R, np.array([0.0, 0.1, 0.2])) == 0.0


def test_reward_does_not_rise_with_beta() -> None:
    draws = np.random.default_rng(0)
    for change in draws.normal(size=(20, 3)):
        values = [
            reward.interval_reward(R, change, 0, spill_weight=beta, token_cost=0.0)
            for beta in (0.0, 0.5, 1.0, 4.0)
        ]
        assert values == sorted(values, reverse=True)


@pytest.mark.parametrize(("one_hot", "count"), [(False, 9), (True, 12)])
def test_candidates(one_hot: bool, count: int) -> None:
    requirement = np.array([0.1, 0.4, 0.05, 0.3, 0.15])
    found = actions.candidate_mixtures(requirement, 3, include_one_hot=one_hot)
    assert found.shape == (count, 5)
    assert found.sum(axis=1) == pytest.approx(np.ones(count))
    assert (found >= 0).all()
    assert ((found > 0).sum(axis=1) <= 2).all()
    assert (found[:, [0, 2]] == 0).all()  # not among the three that are needed most
    assert len({tuple(row) for row in found.tolist()}) == count


def test_a_candidate_is_there_once_and_one_capability_is_uniform() -> None:
    found = actions.candidate_mixtures(np.array([0.6, 0.4]), 3, (0.5, 0.5, 0.25))
    assert found.tolist() == [[0.5, 0.5], [0.25, 0.75]]
    assert actions.candidate_mixtures(np.array([1.0]), 3).tolist() == [[1.0]]


def test_scale_is_the_slope_and_ignores_others() -> None:
    # cumulative 0, 1, 2 and utilities 1, 3, 5: slope 2
    assert reward.fit_scale([0.0, 1.0, 2.0], [1.0, 3.0, 5.0], 1.0) == pytest.approx(2.0)
    assert reward.fit_scale([0.0, 1.0], [3.0, 1.0], 1.5) == 1.5  # falls
    assert reward.fit_scale([0.0, 1.0], [3.0, 3.0], 1.5) == 1.5  # level
    assert reward.fit_scale([2.0], [3.0], 1.5) == 1.5  # one point
    assert reward.fit_scale([2.0, 2.0], [3.0, 4.0], 1.5) == 1.5  # no spread


def test_exploration_decays_on_stalls_alone() -> None:
    assert reward.decay_exploration(1.0, [0.3]) == 1.0
    assert reward.decay_exploration(1.0, [0.3, 0.4]) == 1.0
    assert reward.decay_exploration(1.0, [0.3, 0.3]) == 0.7
    assert reward.decay_exploration(0.7, [0.3, 0.2], 0.5) == pytest.approx(0.35)
