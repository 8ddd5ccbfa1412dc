"""Bandits: they find what is best, are less uncertain of what they saw, and draw the same again."""

from __future__ import annotations

import numpy as np
import pytest

from distill_sbs.allocating import actions, policies
from distill_sbs.allocating.context import Context
from distill_sbs.allocating.ensemble import EnsembleBandit
from distill_sbs.allocating.policies import make_policy
from distill_sbs.allocating.simulator import World, run_world

REQUIREMENT = np.array([0.5, 0.3, 0.2])
CONTEXT = Context(REQUIREMENT, np.array([0.2, 0.4, 0.6]), 0.5)
CANDIDATES = actions.candidate_mixtures(REQUIREMENT, include_one_hot=True)


def test_linear_rewards_are_learned_without_regret() -> None:
    bandit = make_policy("linucb", 0, kappa=0.0)
    worth = CANDIDATES @ np.array([0.3, 1.0, 0.1])
    gap = float(worth.max() - worth.min())
    regrets = []
    for number in range(100):
        mixture = bandit.select(CONTEXT, CANDIDATES, number)
        reward = float(mixture @ np.array([0.3, 1.0, 0.1]))
        bandit.update(CONTEXT, mixture, reward)
        regrets.append(float(worth.max()) - reward)
    assert np.mean(regrets[-20:]) < 0.01 * gap


def test_the_bonus_shrinks_where_it_was_seen() -> None:
    bandit = policies.LinearBandit(0, 0.1, 0)
    before = bandit.predict(CONTEXT, CANDIDATES)[1]
    for _ in range(3):
        bandit.update(CONTEXT, CANDIDATES[0], 1.0)
    after = bandit.predict(CONTEXT, CANDIDATES)[1]
    assert after[0] < before[0] / 1.5
    assert (after <= before + 1e-12).all()


def test_the_bonus_before_anything_is_the_length_of_the_features() -> None:
    # φ of the first candidate, all on the first capability: [1, 0, 0, 1 - .2, 0, 0, 1].
    bandit = policies.LinearBandit(0, 0.1, 0)
    assert bandit.predict(CONTEXT, CANDIDATES)[1][0] == pytest.approx((1 + 0.64 + 1) ** 0.5)


@pytest.mark.slow
def test_networks_agree_more_where_it_was_seen() -> None:
    bandit = EnsembleBandit(0, 1.0, 0)
    bandit.update(CONTEXT, CANDIDATES[0], 0.1)
    bandit.update(CONTEXT, CANDIDATES[1], 0.4)
    before = bandit.predict(CONTEXT, CANDIDATES[:1])[1][0]
    for _ in range(6):
        bandit.update(CONTEXT, CANDIDATES[0], 0.1)
        bandit.update(CONTEXT, CANDIDATES[1], 0.4)
    assert bandit.predict(CONTEXT, CANDIDATES[:1])[1][0] < before / 2
    means = bandit.predict(CONTEXT, CANDIDATES[:2])[0]
    assert means == pytest.approx([-1.0, 1.0], abs=0.2)  # in standard units


@pytest.mark.parametrize("name", policies.POLICIES)
def test_the_same_seed_draws_the_same(name: str) -> None:
    def draw(seed: int) -> list[list[float]]:
        policy = make_policy(name, seed, warmup=3)
        drawn = []
        for number in range(5):
            mixture = policy.select(CONTEXT, CANDIDATES, number)
            assert mixture.sum() == pytest.approx(1.0)
            policy.update(CONTEXT, mixture, float(mixture[1]))
            drawn.append(mixture.tolist())
        return drawn

    assert draw(0) == draw(0)
    if name in (*policies.BANDITS, "random"):
        assert draw(0) != draw(1)


@pytest.mark.parametrize("name", policies.BANDITS)
def test_every_warmup_draw_is_a_candidate(name: str) -> None:
    allowed = {tuple(each) for each in CANDIDATES.tolist()}
    drawn = {
        tuple(make_policy(name, seed).select(CONTEXT, CANDIDATES, number).tolist())
        for seed in range(20)
        for number in range(5)
    }
    assert drawn <= allowed
    assert len(drawn) > 6


def test_baselines() -> None:
    def choose(name: str) -> list[float]:
        return make_policy(name, 0).select(CONTEXT, CANDIDATES, 0).tolist()

    assert choose("uniform") == pytest.approx([1 / 3] * 3)
    assert choose("proportional") == [0.5, 0.3, 0.2]
    assert choose("single") == [1.0, 0.0, 0.0]
    schedule = policies.Schedule([np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0])])
    drawn = [schedule.select(CONTEXT, CANDIDATES, number).tolist() for number in range(3)]
    assert drawn == [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]


def test_rewards_in_deviations() -> None:
    assert policies.scale_rewards([1.0, 3.0]).tolist() == [1.0, 3.0]  # deviation 1
    assert policies.scale_rewards([2.0, 6.0]).tolist() == [1.0, 3.0]
    assert policies.scale_rewards([2.0, 2.0]).tolist() == [2.0, 2.0]


@pytest.mark.slow
def test_forty_simulated_worlds() -> None:
    """Adaptivity pays in the simulator, and β buys less spill."""
    worlds = [World.draw(seed) for seed in range(40)]

    def run(name: str | None, spill_weight: float = 0.5) -> tuple[float, float]:
        outcomes = [
            run_world(
                world, make_policy(name, seed) if name else None, seed, spill_weight=spill_weight
            )
            for seed, world in enumerate(worlds)
        ]
        return (
            float(np.mean([each.gain for each in outcomes])),
            float(np.mean([each.spill for each in outcomes])),
        )

    bandit, _ = run("linucb")
    assert bandit - run("uniform")[0] > 0.10
    assert bandit - run("proportional")[0] > 0.02
    assert run(None)[0] >= bandit
    assert run("linucb", 4.0)[1] < 0.8 * run("linucb", 0.0)[1]
