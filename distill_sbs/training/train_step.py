"""One training step, a pure function: state and batch in, state and metrics out.

Enters: a `TrainState` and the model features of one batch, int32 [rows, S] and [rows, T], with one
task id a target token. Leaves: the next state, and per task the (sum, count) of its cross-entropy.

The objective is Eq. 3 of the paper, L = mean over label tokens + λ · mean over rationale tokens,
each mean over the whole global batch: rows on all devices and all microbatches. Where it is asked
for, the mean over pairs of the mutual-information loss comes on top (`model.mutual_information`).
Batches with soft labels add the weighted mean over their positions (`contrasting.soft_loss`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import flax.struct
import jax
import jax.numpy as jnp
import optax

from distill_sbs import constants
from distill_sbs.contrasting import soft_loss
from distill_sbs.model import losses, mutual_information
from distill_sbs.model.network import Transformer, initial_parameters, output_weights
from distill_sbs.model.parameters import Params, PyTree

Batch = dict[str, jax.Array]
Metrics: TypeAlias = dict[str, jax.Array | losses.SumAndCount]  # scalars, and sums of each task


class TrainState(flax.struct.PyTreeNode):
    """All that a step changes: the number of steps taken, the parameters, the optimizer's state."""

    step: jax.Array
    params: Params
    optimizer_state: PyTree


@dataclasses.dataclass(frozen=True)
class Objective:
    """How tokens become a loss.

    Attributes:
      rationale_rate: λ of Eq. 3.
      label_smoothing: as in T5X, 0 is none.
      z_loss: weight of log(Z)², 0 is none.
      logits_chunk_tokens: target positions whose logits may be alive at once; None is all.
      mutual_information_weight: β, the weight of the mutual-information loss. Above 0 a batch says
        which segments are an example's label and rationale (`constants.PAIRS`).
    """

    rationale_rate: float = 1.0
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    logits_chunk_tokens: int | None = None
    mutual_information_weight: float = 0.0


class Counts(NamedTuple):
    """What the means are over, in the whole global batch.

    Attributes:
      tokens: of each task.
      pairs: of a label and a rationale, int32; None where nothing is meant over them.
      soft: weights of positions with soft labels, float32; None where there are none.
    """

    tokens: losses.TaskTokenCounts
    pairs: jax.Array | None
    soft: jax.Array | None


def initial_state(
    model: Transformer, optimizer: optax.GradientTransformation, seed: int | jax.Array
) -> TrainState:
    """The state before the first step. Jit it with `out_shardings` to create it in shards."""
    params = initial_parameters(model.config, jax.random.key(seed))
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def _microbatches(batch: Batch, count: int) -> Batch:
    """[rows, …] → [count, rows / count, …], every device keeping its own rows."""
    return {
        key: array.reshape(-1, count, *array.shape[1:]).swapaxes(0, 1)
        for key, array in batch.items()
    }


def make_train_step(
    model: Transformer,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    seed: int | jax.Array,
    num_microbatches: int = 1,
    gradient_shardings: PyTree = None,
    use_hardware_rng: bool = False,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Builds the step function, to be jitted by the caller.

    Args:
      model: the student.
      optimizer: an optax transformation.
      objective: the loss.
      seed: of the dropout masks, together with the step's number.
      num_microbatches: parts that the rows are split into; gradients are summed over them, and
        every mean is still over the whole batch.
      gradient_shardings: a `jax.sharding.Sharding` for every parameter, as the parameters lie.
        With it gradients are summed straight into shards (a reduce-scatter) and accumulate over
        microbatches there; without it the compiler may keep whole ones.
      use_hardware_rng: draw the masks with XLA's own generator (T5X's `use_hardware_rng`; JAX's
        'unsafe_rbg'), which depends on the mesh and the kind of device; else with JAX's default.

    Returns:
      `step(state, batch) -> (state, metrics)`; metrics are the scalars `loss` and
      `gradient_norm`, and `losses.task_metrics` of the whole batch, as sums and counts; with
      `mutual_information_weight` also `mutual_information`, over the pairs; with soft labels
      `contrast_loss` and `contrast_kl`, over their positions, and `contrast_positions`, how many
      of these a step keeps.
    """
    beta = objective.mutual_information_weight
    generator = "unsafe_rbg" if use_hardware_rng else None

    def loss_of(
        params: Params, part: Batch, counts: Counts, key: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        task_ids = part[constants.DECODER_TASK_IDS]
        hidden = losses.decoder_states(model, params, part, key)  # [B, T, D]
        weights = output_weights(params, model.config)
        token_losses = losses.token_losses(
            hidden,
            weights,
            part[constants.DECODER_TARGET_TOKENS],
            model.config,
            label_smoothing=objective.label_smoothing,
            z_loss=objective.z_loss,
            logits_chunk_tokens=objective.logits_chunk_tokens,
        )
        loss = losses.step_by_step_loss(
            token_losses.cross_entropy, task_ids, objective.rationale_rate, counts.tokens
        )
        metrics: Metrics = {**losses.task_metrics(token_losses, task_ids)}
        if counts.pairs is not None:
            of_pairs = mutual_information.sum_over_pairs(
                hidden, weights, part, model.config, objective.logits_chunk_tokens
            )
            pairs = jnp.maximum(counts.pairs, 1).astype(jnp.float32)
            loss = loss + beta * (of_pairs.total / pairs)
            metrics["mutual_information"] = of_pairs
        if counts.soft is not None:
            sums = soft_loss.sum_over_positions(
                hidden, weights, part, model.config, objective.logits_chunk_tokens
            )
            loss = loss + sums.cross_entropy / jnp.where(counts.soft > 0, counts.soft, 1.0)
            here = soft_loss.sum_weights(part)
            metrics["contrast_loss"] = losses.SumAndCount(sums.cross_entropy, here)
            metrics["contrast_kl"] = losses.SumAndCount(sums.divergence, here)
            # Of the whole step, when microbatches are added up.
            one = jnp.float32(1.0 / num_microbatches)
            metrics["contrast_positions"] = losses.SumAndCount(sums.kept, one)
        return loss, metrics

    def value_and_grad(
        params: Params, part: Batch, counts: Counts, key: jax.Array
    ) -> tuple[tuple[jax.Array, Metrics], PyTree]:
        value, gradients = jax.value_and_grad(loss_of, has_aux=True)(params, part, counts, key)
        if gradient_shardings is not None:
            gradients = jax.lax.with_sharding_constraint(gradients, gradient_shardings)
        return value, gradients

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        counts = Counts(
            losses.task_token_counts(batch[constants.DECODER_TASK_IDS]),
            mutual_information.count_pairs(batch) if beta else None,
            soft_loss.sum_weights(batch) if soft_loss.has_soft_labels(batch) else None,
        )
        key = jax.random.fold_in(jax.random.key(seed, impl=generator), state.step)
        if num_microbatches == 1:
            (loss, sums), gradients = value_and_grad(state.params, batch, counts, key)
        else:

            def accumulate(total: PyTree, numbered: tuple[jax.Array, Batch]) -> tuple[PyTree, None]:
                number, part = numbered
                part_key = jax.random.fold_in(key, number)
                one = value_and_grad(state.params, part, counts, part_key)
                return jax.tree.map(jnp.add, total, one), None

            parts = _microbatches(batch, num_microbatches)
            first = jax.tree.map(lambda array: array[0], parts)
            shapes = jax.eval_shape(value_and_grad, state.params, first, counts, key)
            zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
            ((loss, sums), gradients), _ = jax.lax.scan(
                accumulate, zeros, (jnp.arange(num_microbatches), parts)
            )
        updates, optimizer_state = optimizer.update(gradients, state.optimizer_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics: Metrics = {"loss": loss, "gradient_norm": optax.global_norm(gradients), **sums}
        return TrainState(state.step + 1, params, optimizer_state), metrics

    return step
