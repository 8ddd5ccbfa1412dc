"""The kernel of fused attention, interpreted: the numbers and gradients of attention without it."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_examples import SMALL, batch, packed, student

from distill_sbs.config import BatchConfig, ObjectiveConfig
from distill_sbs.distributed import sharding
from distill_sbs.errors import UserError
from distill_sbs.model import attention, losses, masks
from distill_sbs.model.fused_attention import fused_attention

TESTS = pathlib.Path(__file__).parent.parent


def test_by_hand():
    """Logits log 2 and log 6: weights 1/4 and 3/4. The third key is of another segment."""
    keys = jnp.log(jnp.array([[[2.0], [3.0], [9.0]]]))
    values = jnp.array([[[4.0], [8.0], [100.0]]])
    bias = jnp.array([[[[0.0, np.log(2.0), 5.0]]]], jnp.float32)
    seen = masks.Visibility(jnp.array([[1]]), jnp.array([[1, 1, 2]]))
    attended = fused_attention(jnp.ones((1, 1, 1)), keys, values, bias, seen, 1)
    assert float(attended[0, 0, 0]) == pytest.approx(0.25 * 4 + 0.75 * 8, rel=1e-5)


def visible(seen: masks.Visibility) -> jax.Array:
    """Bool [B, 1, Q, K]."""
    queries, keys = seen.query_segments, seen.key_segments
    mask = (queries[:, :, None] == keys[:, None, :]) & (keys[:, None, :] > 0)
    if seen.causal:
        mask &= jnp.arange(queries.shape[1])[:, None] >= jnp.arange(keys.shape[1])
    return mask[:, None]


def unfused(query, key, value, bias, seen, head_dim):
    def split(joined):
        return joined.reshape(*joined.shape[:2], -1, head_dim).swapaxes(1, 2)

    heads = attention.dot_product_attention(
        split(query), split(key), split(value), bias, visible(seen)
    )
    return heads.swapaxes(1, 2).reshape(query.shape)


@pytest.mark.parametrize(
    ("queries", "keys", "heads", "head_dim", "causal"),
    # Two heads fill the lanes; lengths that are no multiple of 128; three blocks of queries of a
    # decoder; a head that fills them alone, without a bias.
    [
        (128, 128, 4, 64, False),
        (30, 50, 3, 8, False),
        (384, 384, 2, 64, True),
        (9, 9, 1, 128, None),
    ],
)
def test_results_and_gradients_are_those_without_the_kernel(queries, keys, heads, head_dim, causal):
    random = np.random.default_rng(0)

    def draw(*shape):
        return jnp.array(random.normal(size=shape), jnp.float32)

    width = heads * head_dim
    query, key, value = (draw(2, length, width) / 4 for length in (queries, keys, keys))
    bias = None if causal is None else draw(1, heads, queries, keys)

    def segments(length):
        """Two of them in the first row, then padding; one in the second."""
        places = np.arange(length)
        first = np.where(places < length - 3, 1 + (places > length // 3), 0)
        return jnp.array([first, np.ones(length)], jnp.int32)

    seen = masks.Visibility(segments(queries), segments(keys), bool(causal))
    real = seen.query_segments[..., None] > 0
    weights = jnp.where(real, draw(2, queries, width), 0.0)
    arguments = (query, key, value) if bias is None else (query, key, value, bias)

    def outcome(attend):
        def total(*arrays):
            attended = attend(*arrays[:3], arrays[3] if bias is not None else None, seen, head_dim)
            return jnp.sum(attended * weights), jnp.where(real, attended, 0.0)

        return jax.jit(jax.grad(total, tuple(range(len(arguments))), has_aux=True))(*arguments)

    gradients, attended = outcome(fused_attention)
    expected_gradients, expected = outcome(unfused)
    np.testing.assert_allclose(attended, expected, atol=2e-6)
    for found, wanted in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.parametrize(("scan_layers", "remat_policy"), [(True, "minimal"), (False, "none")])
def test_a_student_computes_the_same(scan_layers, remat_policy):
    """Packed rows and dropout: the loss and every parameter's gradient."""
    features = packed(batch(3), 40, 24)
    found = {}
    for kind in ("xla", "fused"):
        model, params = student(
            attention=kind, scan_layers=scan_layers, remat_policy=remat_policy, dropout_rate=0.3
        )

        def loss(params, model=model):
            cross_entropy = losses.batch_cross_entropy(
                model, params, features, jax.random.key(3, impl="rbg")
            )
            return jnp.sum(jnp.where(features["decoder_task_ids"] > 0, cross_entropy, 0.0))

        found[kind] = jax.jit(jax.value_and_grad(loss))(params)
    assert float(found["fused"][0]) == pytest.approx(float(found["xla"][0]), rel=1e-6)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4),
        found["fused"][1],
        found["xla"][1],
    )


def test_long_rows_are_refused_before_anything_is_compiled():
    chip = types.SimpleNamespace(platform="tpu")
    mesh = types.SimpleNamespace(devices=np.array([chip]))
    fused = dataclasses.replace(SMALL, attention="fused")

    def check(student, inputs, **objective):
        lengths = {"inputs": inputs, "targets": 128}
        batches = BatchConfig(task_feature_lengths=lengths, batch_size=8)
        sharding.check_attention(student, batches, ObjectiveConfig(**objective), mesh)

    check(fused, 1536)
    check(SMALL, 4096)
    with pytest.raises(UserError, match="rows of 1,600 tokens.* takes 1,536 at most; use 'xla'"):
        check(fused, 800, mutual_information_weight=0.1)


@pytest.mark.campaign
def test_eight_devices_compute_what_one_does():
    finished = subprocess.run(
        [sys.executable, str(TESTS / "helpers" / "fused_meshes.py")],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.split() == ["8x1", "4x2", "same"]
