"""Residual dropout that rises with depth (arXiv 2305.11206; specs/lima.md, 6.1)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_sbs.model.config import T5Config, named_config
from distill_sbs.model.layers import Dropout
from distill_sbs.model.network import Transformer, initial_parameters
from distill_sbs.model.parameters import Params

SMALL = dict(emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, vocab_size=32)


def make(**fields: object) -> T5Config:
    sizes = {"num_encoder_layers": 3, "num_decoder_layers": 2, "dropout_rate": 0.0, **SMALL}
    return named_config("t5_1_1_small", **{**sizes, **fields})


def test_the_ramp_by_hand() -> None:
    config = make(residual_dropout_rate=0.3)
    assert config.residual_rates(4) == pytest.approx((0.0, 0.1, 0.2, 0.3))
    assert config.residual_rates(2) == (0.0, 0.3)
    assert config.residual_rates(1) == (0.3,)
    constant = make(residual_dropout_rate=0.3, residual_dropout_schedule="constant")
    assert constant.residual_rates(3) == (0.3, 0.3, 0.3)
    assert make().residual_rates(3) is None
    for wrong in (1.0, -0.1, "much", True):
        with pytest.raises(ValueError, match="residual_dropout_rate"):
            make(residual_dropout_rate=wrong)
    with pytest.raises(ValueError, match="residual_dropout_schedule.*one of linear, constant"):
        make(residual_dropout_schedule="steep")


def test_each_element_is_drawn_by_itself_and_the_mean_stays() -> None:
    ones = jnp.ones((4, 50, 200))
    dropped = Dropout(0.5).apply(
        {}, ones, False, jnp.float32(0.2), rngs={"dropout": jax.random.key(0)}
    )
    assert set(np.unique(dropped).tolist()) == {0.0, 1.25}
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.01)
    assert len(np.unique(np.array(dropped[0]), axis=0)) == 50  # not one draw for all positions
    same = Dropout(0.5).apply({}, ones, True, jnp.float32(0.2))
    assert bool((same == ones).all())
    bottom = Dropout(0.5).apply(
        {}, ones, False, jnp.float32(0.0), rngs={"dropout": jax.random.key(0)}
    )
    assert bool((bottom == ones).all())


@functools.partial(jax.jit, static_argnums=(0, 1))
def compute(config: T5Config, drops: bool, params: Params, key: jax.Array) -> jax.Array:
    tokens = jnp.array([[3, 4, 5, 6, 1]], jnp.int32)
    logits: jax.Array = Transformer(config).apply(
        {"params": params},
        tokens,
        tokens,
        tokens,
        enable_dropout=drops,
        rngs={"dropout": key} if drops else None,
    )
    return logits


def run(config: T5Config, key: int | None, params: Params | None = None) -> np.ndarray:
    """The logits; without a key as in evaluation."""
    params = initial_parameters(config, jax.random.key(0)) if params is None else params
    return np.array(compute(config, key is not None, params, jax.random.key(key or 0)))


@pytest.mark.slow
@pytest.mark.parametrize("scanned", [False, pytest.param(True, marks=pytest.mark.campaign)])
def test_training_drops_and_evaluation_does_not(scanned: bool) -> None:
    with_it = make(residual_dropout_rate=0.3, scan_layers=scanned)
    without = make(scan_layers=scanned)
    assert (run(with_it, None) == run(without, None)).all()
    assert (run(with_it, 1) != run(with_it, 2)).any()
    assert (run(without, 1) == run(without, 2)).all()  # nothing else is dropped here


@pytest.mark.slow
def test_the_lowest_layer_drops_nothing() -> None:
    # One layer in each stack would have the highest rate; of two the lower one has 0, so a student
    # whose upper layers add nothing is the same in training as in evaluation.
    config = make(residual_dropout_rate=0.3, num_encoder_layers=2)
    params = initial_parameters(config, jax.random.key(0))
    for stack in ("encoder", "decoder"):
        layer = params[stack]["layers_1"]
        params[stack]["layers_1"] = jax.tree.map(jnp.zeros_like, layer)
    assert (run(config, 1, params) == run(config, 2, params)).all()
    assert (run(config, 1) != run(config, 2)).any()
