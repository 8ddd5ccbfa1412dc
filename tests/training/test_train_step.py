"""train_step: Eq. 3 over the whole batch, whatever the layout, the microbatches and the mesh."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from model_examples import draw_sequence

from distill_sbs.data.batches.layout import BatchShape, Layout, Sequence2Sequence, fill
from distill_sbs.model.config import named_config
from distill_sbs.model.network import Transformer
from distill_sbs.training.train_step import Objective, TrainState, initial_state, make_train_step

CONFIG = named_config(
    "t5_1_1_tiny",
    vocab_size=64,
    emb_dim=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=32,
    num_encoder_layers=1,
    num_decoder_layers=1,
    dropout_rate=0.0,
)
MODEL = Transformer(CONFIG)
SGD = optax.sgd(1.0)


@functools.cache
def start(model: Transformer) -> TrainState:
    """The state before the first step, made once for all tests."""
    return jax.jit(lambda: initial_state(model, SGD, seed=0))()


def sequences(labels: int = 4, rationales: int = 4) -> list[Sequence2Sequence]:
    random = np.random.default_rng(0)
    return [draw_sequence(random, task, 64) for task in [1] * labels + [2] * rationales]


def batch_of(members: list[Sequence2Sequence], rows: int, tokens: int) -> dict[str, jax.Array]:
    shape = BatchShape(rows, tokens, tokens)
    return {key: jnp.asarray(value) for key, value in fill(members, Layout(shape, shape)).items()}


def unpacked(members: list[Sequence2Sequence]) -> dict[str, jax.Array]:
    """One sequence a row, by hand, and without segment ids: what T5X calls `pack = False`."""
    rows = [batch_of([member], 1, 12) for member in members]
    joined = {key: jnp.concatenate([row[key] for row in rows]) for key in rows[0]}
    return {key: value for key, value in joined.items() if "segment" not in key}


def one_step(
    batch: dict[str, jax.Array],
    rationale_rate: float = 1.0,
    num_microbatches: int = 1,
    model: Transformer = MODEL,
) -> tuple[TrainState, dict]:
    step = make_train_step(model, SGD, Objective(rationale_rate), 0, num_microbatches)
    return jax.jit(step)(start(model), batch)


def largest_difference(one: TrainState, other: TrainState) -> float:
    """The largest difference of any parameter, relative to its tensor's norm."""
    return max(
        float(jnp.linalg.norm(a - b) / jnp.linalg.norm(a))
        for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True)
    )


@pytest.mark.slow
def test_loss_is_the_sum_of_two_means() -> None:
    _, metrics = one_step(unpacked(sequences()), rationale_rate=0.5)
    label, rationale = metrics["label_loss"], metrics["rationale_loss"]
    assert int(label.count) == 8
    expected = label.total / label.count + 0.5 * rationale.total / rationale.count
    assert float(metrics["loss"]) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.slow
def test_packed_equals_unpacked() -> None:
    members = sequences()
    plain, plain_metrics = one_step(unpacked(members))
    packed, packed_metrics = one_step(batch_of(members, 2, 40))
    assert float(packed_metrics["loss"]) == pytest.approx(float(plain_metrics["loss"]), rel=1e-6)
    assert largest_difference(plain, packed) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("num_microbatches", [2, 4])
def test_microbatched_equals_whole(num_microbatches: int) -> None:
    # Labels and rationales lie unevenly over the microbatches, which a mean of means would show.
    batch = unpacked(sequences(labels=3, rationales=5))
    whole, whole_metrics = one_step(batch, rationale_rate=0.7)
    parts, parts_metrics = one_step(batch, 0.7, num_microbatches)
    assert float(parts_metrics["loss"]) == pytest.approx(float(whole_metrics["loss"]), rel=1e-6)
    assert int(parts_metrics["rationale_loss"].count) == int(whole_metrics["rationale_loss"].count)
    assert largest_difference(whole, parts) < 1e-5


@pytest.mark.slow
def test_rate_zero_is_standard_finetuning_to_the_bit() -> None:
    """On label rows alone, and beside rationale rows of no weight."""
    labels = sequences(labels=4, rationales=0)
    finetuned, _ = one_step(unpacked(labels), rationale_rate=1.0)
    alone, _ = one_step(unpacked(labels), rationale_rate=0.0)
    for one, other in zip(
        jax.tree.leaves(finetuned.params), jax.tree.leaves(alone.params), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    beside, metrics = one_step(unpacked(sequences()), rationale_rate=0.0)
    assert np.isfinite(float(metrics["loss"]))
    assert float(metrics["loss"]) == float(
        metrics["label_loss"].total / metrics["label_loss"].count
    )


@pytest.mark.slow
def test_dropout_depends_on_seed_and_step_alone() -> None:
    model = Transformer(dataclasses.replace(CONFIG, dropout_rate=0.5))
    batch = unpacked(sequences())
    first, again = (one_step(batch, model=model)[0] for _ in range(2))
    assert largest_difference(first, again) == 0.0
    step = jax.jit(make_train_step(model, optax.sgd(0.0), Objective(), seed=0))
    state, one = step(start(model), batch)
    _, two = step(state, batch)
    assert float(one["loss"]) != float(two["loss"])


@pytest.mark.slow
def test_dropout_by_the_hardware_s_generator() -> None:
    """Other masks than by default; as repeatable, others at each step; and nothing else."""
    batch = unpacked(sequences())

    def take(rate: float, use_hardware_rng: bool) -> list[float]:
        model = Transformer(dataclasses.replace(CONFIG, dropout_rate=rate))
        step = jax.jit(
            make_train_step(
                model, optax.sgd(0.0), Objective(), seed=0, use_hardware_rng=use_hardware_rng
            )
        )
        state, one = step(start(model), batch)
        _, two = step(state, batch)
        return [float(one["loss"]), float(two["loss"])]

    first, again, default = take(0.5, True), take(0.5, True), take(0.5, False)
    assert first == again
    assert len({*first, *default}) == 4
    assert take(0.0, True) == take(0.0, False)
