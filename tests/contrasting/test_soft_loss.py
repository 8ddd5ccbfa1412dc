"""The loss of soft labels: by hand, against dense labels, its gradient, chunks and padding."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_sbs import constants
from distill_sbs.contrasting import soft_loss
from distill_sbs.model.config import T5Config

# The embedding is the identity, so that a decoder state is its own logits, but for their scale.
FOUR = T5Config(vocab_size=4, emb_dim=4, logits_via_embedding=False)
KERNEL = jnp.eye(4)


def make_batch(ids: Any, soft: Any, steps: Any) -> dict[str, jax.Array]:
    return {
        constants.DECODER_SOFT_IDS: jnp.array(ids, jnp.int32),
        constants.DECODER_SOFT_WEIGHTS: jnp.array(soft, jnp.float32),
        constants.DECODER_STEP_WEIGHTS: jnp.array(steps, jnp.float32),
    }


def draw_batch() -> tuple[jax.Array, dict[str, jax.Array]]:
    """3 rows of 5 positions, soft labels of 2 tokens; a third of the positions have no weight."""
    random = np.random.default_rng(3)
    ids = np.stack([random.permutation(4)[:2] for _ in range(15)]).reshape(3, 5, 2)
    soft = random.dirichlet((1, 1), (3, 5))
    steps = random.choice([0.0, 0.1, 1.0], (3, 5))
    return jnp.array(random.normal(size=(3, 5, 4)), jnp.float32), make_batch(
        ids, np.where(steps[..., None] > 0, soft, 0.0), steps
    )


def test_golden_values() -> None:
    hidden = jnp.log(jnp.array([[[0.6, 0.3, 0.08, 0.02]]]))
    batch = make_batch([[[0, 1]]], [[[12 / 13, 1 / 13]]], [[1.0]])
    sums = soft_loss.sum_over_positions(hidden, KERNEL, batch, FOUR)
    assert float(sums.cross_entropy) == pytest.approx(0.56414, abs=1e-5)
    assert float(sums.divergence) == pytest.approx(0.29296, abs=1e-5)
    assert float(sums.kept) == 1.0


@pytest.mark.parametrize("chunk_tokens", [None, 9, 1])
def test_sparse_is_dense(chunk_tokens: int | None) -> None:
    hidden, batch = draw_batch()
    ids, soft = (
        batch[constants.DECODER_SOFT_IDS],
        batch[constants.DECODER_SOFT_WEIGHTS],
    )
    dense = jnp.sum(jax.nn.one_hot(ids, 4) * soft[..., None], axis=2)
    wanted = -jnp.sum(dense * jax.nn.log_softmax(hidden), axis=-1)
    got = soft_loss.soft_cross_entropy(hidden, KERNEL, ids, soft, FOUR, chunk_tokens)
    np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize("chunk_tokens", [None, 9])
def test_gradient(chunk_tokens: int | None) -> None:
    hidden, batch = draw_batch()
    steps = batch[constants.DECODER_STEP_WEIGHTS]

    def loss(hidden: jax.Array) -> jax.Array:
        sums = soft_loss.sum_over_positions(hidden, KERNEL, batch, FOUR, chunk_tokens)
        return sums.cross_entropy / soft_loss.sum_weights(batch)

    gradient = jax.grad(loss)(hidden)
    ids, soft = batch[constants.DECODER_SOFT_IDS], batch[constants.DECODER_SOFT_WEIGHTS]
    dense = jnp.sum(jax.nn.one_hot(ids, 4) * soft[..., None], axis=2)
    wanted = steps[..., None] * (jax.nn.softmax(hidden) - dense) / steps.sum()
    np.testing.assert_allclose(gradient, wanted, atol=1e-6)
    assert (np.asarray(steps) == 0).any()
    assert not np.asarray(gradient)[np.asarray(steps) == 0].any()


def test_padding_and_order_of_rows_change_nothing() -> None:
    hidden, batch = draw_batch()
    one = soft_loss.sum_over_positions(hidden, KERNEL, batch, FOUR)
    order = jnp.array([2, 0, 1])
    turned = {name: array[order] for name, array in batch.items()}
    other = soft_loss.sum_over_positions(hidden[order], KERNEL, turned, FOUR)
    padded = {
        name: jnp.pad(array, [(0, 0), (0, 3)] + [(0, 0)] * (array.ndim - 2))
        for name, array in batch.items()
    }
    # Whatever stands at padded positions, infinite logits among it.
    wide = jnp.pad(hidden, [(0, 0), (0, 3), (0, 0)], constant_values=jnp.inf)
    third = soft_loss.sum_over_positions(wide, KERNEL, padded, FOUR)
    for each in (other, third):
        np.testing.assert_allclose(np.array(each), np.array(one), rtol=1e-6)
