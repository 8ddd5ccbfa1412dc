"""Relative position buckets and attention, against numbers worked out by hand."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest

from distill_sbs.model import attention


def bucket_of(relative: int, bidirectional: bool) -> int:
    lowest, highest = attention.relative_position_intervals(32, 128, bidirectional)
    (bucket,) = np.flatnonzero((relative >= lowest) & (relative <= highest))
    return int(bucket)


@pytest.mark.parametrize(
    ("distance", "bucket"),
    # 16 buckets a direction: 8 exact, then bounds at 8 * 2 ** (k / 2): 8, 11.3, 16, 22.6, 32, …
    [
        (0, 0),
        (7, 7),
        (8, 8),
        (11, 8),
        (12, 9),
        (15, 9),
        (16, 10),
        (22, 10),
        (23, 11),
        (32, 12),
        (45, 12),
        (46, 13),
        (63, 13),
        (64, 14),
        (90, 14),
        (91, 15),
        (127, 15),
        (128, 15),
        (5000, 15),
    ],
)
def test_buckets_of_the_encoder(distance, bucket):
    assert bucket_of(-distance, True) == bucket
    if distance:
        assert bucket_of(distance, True) == 16 + bucket


@pytest.mark.parametrize(
    ("relative", "bucket"),
    # 16 exact, then bounds at 16 * 8 ** (k / 16): 16, 18.2, 20.7, …, 98.7, 112.3; later keys: 0.
    [
        (3, 0),
        (0, 0),
        (-15, 15),
        (-16, 16),
        (-18, 16),
        (-19, 17),
        (-20, 17),
        (-21, 18),
        (-98, 29),
        (-99, 30),
        (-112, 30),
        (-113, 31),
        (-900, 31),
    ],
)
def test_buckets_of_the_decoder(relative, bucket):
    assert bucket_of(relative, False) == bucket


def heads(values: list[float]) -> jnp.ndarray:
    """A list as [1 row, 1 head, length, width 1]."""
    return jnp.array(values, jnp.float32)[None, None, :, None]


def test_attention_by_hand():
    # Logits 0 and log 3: weights 1/4 and 3/4.
    output = attention.dot_product_attention(
        heads([1.0]), heads([0.0, math.log(3)]), heads([4.0, 8.0]), None, None
    )
    np.testing.assert_allclose(output.ravel(), [7.0], rtol=1e-6)


def test_attention_adds_the_bias_and_obeys_the_mask():
    # The bias makes the logits equal; the mask hides the third key.
    output = attention.dot_product_attention(
        heads([1.0]),
        heads([0.0, 2.0, 50.0]),
        heads([4.0, 8.0, 1e6]),
        jnp.array([2.0, 0.0, 0.0]),
        jnp.array([True, True, False]),
    )
    np.testing.assert_allclose(output.ravel(), [6.0], rtol=1e-6)


def test_a_query_that_sees_no_key_gets_the_mean_and_no_nan():
    output = attention.dot_product_attention(
        heads([1.0]), heads([0.0, 2.0]), heads([4.0, 8.0]), None, jnp.zeros(2, bool)
    )
    np.testing.assert_allclose(output.ravel(), [6.0], rtol=1e-6)


def test_dropout_multiplier_keeps_the_mean():
    import jax

    values = attention.dropout_multiplier(jax.random.key(0), 0.25, (20000,), "float32")
    assert set(np.unique(values)) == {0.0, np.float32(1 / 0.75)}
    assert abs(float(values.mean()) - 1.0) < 0.02
