"""Training steps where label and rationale of an example share one encoder pass."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from model_examples import draw_sequence, student

from distill_sbs.data.batches import layout
from distill_sbs.data.batches.layout import BatchShape, Sequence2Sequence
from distill_sbs.model.network import Transformer, output_weights, vocabulary_logits
from distill_sbs.training.train_step import Objective, TrainState, make_train_step

NOTHING = np.zeros(0, np.int32)
EMPTY = Sequence2Sequence(NOTHING, NOTHING, NOTHING)
RATE = 0.7
# Float32, sums in another order: nothing else may differ.
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-6, 1e-5


@functools.cache
def parameters() -> tuple[Transformer, Any]:
    return student(num_encoder_layers=1, num_decoder_layers=1)


def make_pairs() -> list[Sequence2Sequence]:
    """Seven examples; the second has no rationale, the fourth no label."""
    random = np.random.default_rng(0)
    made: list[Sequence2Sequence] = []
    for _ in range(7):
        label, rationale = draw_sequence(random, 1, 48), draw_sequence(random, 2, 48)
        made += [label, dataclasses.replace(rationale, inputs=NOTHING, start=1)]
    made[3] = EMPTY
    made[6] = dataclasses.replace(made[6], targets=NOTHING, task_ids=NOTHING)
    return made


SHAPES = {
    "packed": BatchShape(2, 28, 34, pairs=5, shared_encoder=True),
    "a pair a row": layout.shape_unpacked(14, 9, 9, shared_encoder=True),
}


def lay_out(shape: BatchShape) -> dict[str, jax.Array]:
    batch = layout.fill(make_pairs(), layout.Layout(shape, shape))
    return {name: jnp.asarray(array) for name, array in batch.items()}


def one_at_a_time(params: Any, pairs: Sequence[Sequence2Sequence]) -> jax.Array:
    """Eq. 3 of targets that each stand alone, beside an encoder pass of their own."""
    model, _ = parameters()
    length = 9  # of the longest
    rows = []
    for number, each in enumerate(pairs):
        inputs = pairs[number - number % 2].inputs
        shifted = np.concatenate([[each.start], each.targets])[:-1]
        arrays = (inputs, shifted, each.targets, each.task_ids)
        rows.append([np.pad(array, (0, length - len(array))) for array in arrays])
    inputs, shifted, targets, task_ids = (jnp.asarray(column) for column in zip(*rows, strict=True))

    def take_one(one: tuple[jax.Array, ...]) -> jax.Array:
        tokens = [array[None] for array in one]
        hidden = model.apply({"params": params}, *tokens, method="hidden")
        logits = vocabulary_logits(hidden, output_weights(params, model.config), model.config)
        return -jax.nn.log_softmax(logits)[0, jnp.arange(length), one[2]]

    losses = jax.lax.map(take_one, (inputs, shifted, targets))
    of_label, of_rationale = (jnp.mean(losses, where=task_ids == task) for task in (1, 2))
    return of_label + RATE * of_rationale


@functools.cache
def expected() -> tuple[float, Any]:
    _, params = parameters()
    make: Callable[..., Any] = jax.jit(jax.value_and_grad(lambda p: one_at_a_time(p, make_pairs())))
    loss, gradients = make(params)
    return float(loss), gradients


def take_step(
    batch: dict[str, jax.Array], microbatches: int = 1, beta: float = 0.0
) -> tuple[float, Any]:
    """The loss, and the gradients."""
    model, params = parameters()
    objective = Objective(RATE, logits_chunk_tokens=64, mutual_information_weight=beta)

    def keep(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return jax.tree.map(jnp.zeros_like, updates), updates

    recorder = optax.GradientTransformation(lambda p: jax.tree.map(jnp.zeros_like, p), keep)
    step = make_train_step(model, recorder, objective, 0, microbatches)
    state = TrainState(jnp.zeros((), jnp.int32), params, recorder.init(params))
    after, metrics = jax.jit(step)(state, batch)
    return float(metrics["loss"]), after.optimizer_state


def largest_difference(one: Any, other: Any) -> float:
    """The largest difference of any tensor, relative to its norm."""
    return max(
        float(jnp.linalg.norm(a - b) / jnp.linalg.norm(a))
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "microbatches"),
    [("packed", 2), pytest.param("a pair a row", 1, marks=pytest.mark.campaign)],
)
def test_loss_and_gradients_are_those_of_one_sequence_at_a_time(
    shape: str, microbatches: int
) -> None:
    loss, gradients = take_step(lay_out(SHAPES[shape]), microbatches)
    right_loss, right_gradients = expected()
    difference = largest_difference(right_gradients, gradients)
    print(f"{shape}, {microbatches}: loss {loss / right_loss - 1:+.1e}, gradients {difference:.1e}")
    assert loss == pytest.approx(right_loss, rel=LOSS_TOLERANCE)
    assert difference < GRADIENT_TOLERANCE


@pytest.mark.slow
def test_a_target_sees_the_inputs_of_its_example_and_no_other_target() -> None:
    model, params = parameters()
    batch = lay_out(SHAPES["packed"])

    @jax.jit
    def run(batch: dict[str, jax.Array]) -> jax.Array:
        return model.apply(
            {"params": params},
            batch["encoder_input_tokens"],
            batch["decoder_input_tokens"],
            batch["decoder_target_tokens"],
            batch["encoder_segment_ids"],
            batch["decoder_segment_ids"],
            decoder_source_segment_ids=batch["decoder_source_segment_ids"],
            method="hidden",
        )

    before = run(batch)
    segments, sources = (
        np.asarray(batch[f"decoder_{name}"]) for name in ("segment_ids", "source_segment_ids")
    )
    used = segments > 0

    def find_changed(name: str, where: np.ndarray) -> np.ndarray:
        after = run({**batch, name: jnp.where(where, 40, batch[name])})
        return np.asarray(jnp.any(before != after, axis=-1)) & used

    # The first token of the first label: the label alone changes.
    first = np.zeros_like(used)
    first[0, 0] = True
    changed = find_changed("decoder_input_tokens", first)
    assert changed.tolist() == ((segments == 1) & (np.arange(2)[:, None] == 0)).tolist()
    # The first token of the first input: its label and its rationale change.
    first = np.zeros(batch["encoder_input_tokens"].shape, bool)
    first[0, 0] = True
    changed = find_changed("encoder_input_tokens", first)
    assert changed.tolist() == ((sources == 1) & (np.arange(2)[:, None] == 0)).tolist()
    assert {*segments[changed].tolist()} == {1, 2}
