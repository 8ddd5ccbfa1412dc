"""optimizer: the reference's learning rate and settings."""

from __future__ import annotations

import jax.numpy as jnp
import optax
import pytest

from distill_sbs.config import OptimizerConfig
from distill_sbs.errors import UserError
from distill_sbs.training import optimizer


def test_linear_decay_without_warmup() -> None:
    schedule = optimizer.make_schedule(OptimizerConfig(learning_rate=5e-5), 10_000)
    assert [float(schedule(step)) for step in (0, 5_000, 10_000)] == pytest.approx(
        [5e-5, 2.5e-5, 0.0]
    )


def test_limas_learning_rate_falls_to_a_tenth() -> None:
    # specs/lima.md, 6.2: 1e-5 at 0, 5.5e-6 in the middle, 1e-6 at the end.
    config = OptimizerConfig(learning_rate=1e-5, final_learning_rate=1e-6)
    schedule = optimizer.make_schedule(config, 470)
    assert [float(schedule(step)) for step in (0, 235, 470)] == pytest.approx([1e-5, 5.5e-6, 1e-6])
    with pytest.raises(UserError, match="FINAL_LEARNING_RATE=0.2 is above LEARNING_RATE=0.1"):
        OptimizerConfig(learning_rate=0.1, final_learning_rate=0.2)


def test_warmup() -> None:
    schedule = optimizer.make_schedule(OptimizerConfig(learning_rate=1.0, warmup_steps=2), 10)
    assert [float(schedule(step)) for step in (0, 1, 2, 6, 10)] == [0.0, 0.5, 1.0, 0.5, 0.0]
    with pytest.raises(UserError, match="WARMUP_STEPS=10 is not below TRAIN_STEPS=10"):
        optimizer.make_schedule(OptimizerConfig(warmup_steps=10), 10)


def test_adamw_first_step_by_hand() -> None:
    # Clipped from norm 5 to 1, the gradient (3, 4) is (0.6, 0.8); Adam's first step is its sign.
    update = optimizer.make_optimizer(OptimizerConfig(learning_rate=0.1), 100)
    params = {"kernel": jnp.array([[1.0, 1.0]])}
    state = update.init(params)
    updates, _ = update.update({"kernel": jnp.array([[3.0, 4.0]])}, state, params)
    new = optax.apply_updates(params, updates)
    assert new["kernel"].tolist()[0] == pytest.approx([0.9, 0.9], abs=1e-6)


def test_adam_b2() -> None:
    # Gradients 3, then 0: corrected moments 0.9 · 0.1 · 3 / 0.19 and b2 (1 − b2) 9 / (1 − b2²) = 3.
    update = optimizer.make_optimizer(
        OptimizerConfig(learning_rate=0.1, adam_b2=0.5, gradient_clip_norm=None), 1_000_000
    )
    params = {"kernel": jnp.zeros((1, 1))}
    state = update.init(params)
    _, state = update.update({"kernel": jnp.array([[3.0]])}, state, params)
    updates, _ = update.update({"kernel": jnp.zeros((1, 1))}, state, params)
    assert float(updates["kernel"][0, 0]) == pytest.approx(-0.1 * 1.4210526 / 3**0.5, rel=1e-5)


def test_weight_decay_leaves_layer_norms_alone() -> None:
    update = optimizer.make_optimizer(OptimizerConfig(learning_rate=0.1, weight_decay=0.5), 100)
    params = {"kernel": jnp.ones((1, 1)), "scale": jnp.ones(1)}
    zeros = {"kernel": jnp.zeros((1, 1)), "scale": jnp.zeros(1)}
    updates, _ = update.update(zeros, update.init(params), params)
    assert float(updates["kernel"][0, 0]) == pytest.approx(-0.05)
    assert float(updates["scale"][0]) == 0.0


def test_unknown_optimizer() -> None:
    with pytest.raises(UserError, match="expected one of adamw, adafactor"):
        OptimizerConfig(name="adam")
