"""The training step with the mutual-information loss: layouts, microbatches, devices, and β = 0."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from model_examples import ONE_LAYER, SMALL, draw_sequence

from distill_sbs.data.batches import layout
from distill_sbs.data.batches.layout import BatchShape, Sequence2Sequence
from distill_sbs.model.network import Transformer
from distill_sbs.training.train_step import Objective, TrainState, initial_state, make_train_step

MODEL = Transformer(dataclasses.replace(SMALL, **ONE_LAYER))
SGD = optax.sgd(1.0)
HELPER = pathlib.Path(__file__).parent.parent / "helpers" / "pair_equality.py"


@functools.cache
def start() -> TrainState:
    return jax.jit(lambda: initial_state(MODEL, SGD, seed=0))()


def make_pairs(count: int = 4) -> list[Sequence2Sequence]:
    """Labels and rationales in turn, of several lengths."""
    random = np.random.default_rng(0)
    return [draw_sequence(random, task, 48) for task in [1, 2] * count]


def lay_out(shape: BatchShape) -> layout.Batch:
    return layout.fill(make_pairs(), layout.Layout(shape, shape))


def take_step(batch: layout.Batch, beta: float, microbatches: int = 1) -> tuple[TrainState, dict]:
    objective = Objective(mutual_information_weight=beta, logits_chunk_tokens=64)
    step = make_train_step(MODEL, SGD, objective, 0, microbatches)
    return jax.jit(step)(start(), {name: jnp.asarray(array) for name, array in batch.items()})


def largest_difference(one: TrainState, other: TrainState) -> float:
    """The largest difference of any parameter, relative to its tensor's norm."""
    return max(
        float(jnp.linalg.norm(a - b) / jnp.linalg.norm(a))
        for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True)
    )


PACKED = BatchShape(2, 32, 22, pairs=3)
ONE_A_ROW = layout.shape_unpacked(8, 9, 9, in_pairs=True)


@functools.cache
def packed_step() -> tuple[TrainState, dict]:
    return take_step(lay_out(PACKED), 0.3)


@pytest.mark.slow
def test_at_weight_zero_it_is_distilling_step_by_step_to_the_bit() -> None:
    batch = lay_out(PACKED)
    without = {name: array for name, array in batch.items() if name != "pairs"}
    plain, plain_metrics = take_step(without, 0.0)
    beside, metrics = take_step(batch, 0.0)
    assert set(metrics) == set(plain_metrics)
    assert float(metrics["loss"]) == float(plain_metrics["loss"])
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(beside), strict=True):
        np.testing.assert_array_equal(one, other)
    assert largest_difference(plain, packed_step()[0]) > 1e-3


@pytest.mark.slow
def test_the_loss_is_the_sum_of_three_means() -> None:
    _, metrics = packed_step()
    means = {
        name: float(metrics[name].total) / int(metrics[name].count)
        for name in ("label_loss", "rationale_loss", "mutual_information")
    }
    assert int(metrics["mutual_information"].count) == 4
    label, rationale, mutual_information = means.values()
    assert float(metrics["loss"]) == pytest.approx(
        label + rationale + 0.3 * mutual_information, rel=1e-6
    )
    # Each highest probability of a label is near 1/48 or above, and there are 48; log 48 is 3.9.
    assert 3.5 < mutual_information < 12


@pytest.mark.slow
@pytest.mark.parametrize("microbatches", [1, 2])
def test_packed_equals_unpacked_and_microbatched(microbatches: int) -> None:
    packed, metrics = packed_step()
    plain, plain_metrics = take_step(lay_out(ONE_A_ROW), 0.3, microbatches)
    for name in ("loss", "gradient_norm"):
        assert float(plain_metrics[name]) == pytest.approx(float(metrics[name]), rel=1e-5)
    one, other = metrics["mutual_information"], plain_metrics["mutual_information"]
    assert float(other.total) == pytest.approx(float(one.total), rel=1e-6)
    assert int(other.count) == int(one.count)
    assert largest_difference(packed, plain) < 1e-5


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.parametrize("inputs", ["own", pytest.param("shared", marks=pytest.mark.campaign)])
def test_eight_devices_equal_one_and_only_sums_cross_rows(inputs: str) -> None:
    done = subprocess.run(
        [sys.executable, str(HELPER), inputs],
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        },
        cwd=HELPER.parent.parent.parent,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("equal") == 2
