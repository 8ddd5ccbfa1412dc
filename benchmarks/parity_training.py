"""Decoding, and ten steps of AdamW, of our T5 beside transformers', for `parity.py`.

Enters: a `Pair` of the same weights and examples. Leaves: `Measurement`s.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from parity_outputs import in_float64
from parity_pairs import (
    Examples,
    Pair,
    both_tasks,
    relative,
    torch_inputs,
    torch_labels,
    worst,
    worst_tensor,
)
from parity_state import state_of_tree
from parity_table import Measurement

from distill_sbs import constants
from distill_sbs.config import OptimizerConfig
from distill_sbs.model import decoding
from distill_sbs.training import optimizer, train_step

DECODING = {1: "greedy decoding, outputs that differ", 4: "beam-4 decoding, outputs that differ"}
DECODE_TOKENS = 12
ROWS_AT_ONCE = 16

# The published implementation's settings, but for the number of steps.
LEARNING_RATE = 5e-5
TRAIN_STEPS = 10

STEP_LOSSES = "losses of ten AdamW steps, relative"
OF_NORM = "parameters after ten AdamW steps, worst tensor, of its norm"
OF_MOVEMENT = "… of what the ten steps moved it"


# ---------------------------------- decoding ---------------------------------


def _until_end(tokens: np.ndarray) -> list[list[int]]:
    """Rows up to their end token; transformers fills with either padding or end tokens."""
    rows = []
    for row in tokens.tolist():
        end = row.index(constants.EOS_ID) + 1 if constants.EOS_ID in row else len(row)
        rows.append(row[:end])
    return rows


def decode_both(
    pair: Pair, inputs: np.ndarray, beams: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Tokens that we and transformers decode from inputs [N, S]; a single beam is greedy."""

    @jax.jit
    def decode(params: Any, tokens: Any) -> Any:
        if beams == 1:
            return decoding.greedy_decode(pair.ours, params, tokens, DECODE_TOKENS)
        return decoding.beam_decode(pair.ours, params, tokens, DECODE_TOKENS, beams, 1.0)

    found: list[list[int]] = []
    expected: list[list[int]] = []
    for start in range(0, len(inputs), ROWS_AT_ONCE):
        chunk = inputs[start : start + ROWS_AT_ONCE]
        with torch.no_grad():
            tokens = pair.theirs.generate(
                **torch_inputs(chunk),
                max_new_tokens=DECODE_TOKENS,
                do_sample=False,
                num_beams=beams,
                early_stopping=False,
                length_penalty=1.0,
            )
        expected += _until_end(tokens[:, 1:].numpy())  # without the start token
        found += _until_end(np.asarray(decode(pair.params, chunk)))
    return found, expected


def compare_decoding(pair: Pair, inputs: np.ndarray, beams: int) -> Measurement:
    """How many outputs differ in any token, of inputs [N, S]."""
    found, expected = decode_both(pair, inputs, beams)
    differing = sum(one != other for one, other in zip(found, expected, strict=True))
    lengths = sorted(map(len, expected))
    distinct = len(set(map(tuple, expected)))
    return Measurement(
        DECODING[beams],
        differing,
        0,
        f"of {len(expected)}; {distinct} distinct, {lengths[0]} to {lengths[-1]} tokens",
    )


# ---------------------------------- training ---------------------------------


def _train_theirs(theirs: Any, batches: list[Examples]) -> list[float]:
    """Trains `theirs` in place as HuggingFace's Trainer would; returns the losses."""
    adamw = torch.optim.AdamW(theirs.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    schedule = transformers.get_linear_schedule_with_warmup(adamw, 0, TRAIN_STEPS)
    step_losses = []
    for batch in batches:
        loss = 0.0
        for inputs, targets in (batch[:2], batch[2:]):
            # Summed, not averaged: Eq. 3 at λ = 1.
            loss += theirs(**torch_inputs(inputs), labels=torch_labels(targets)).loss
        adamw.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        adamw.step()
        schedule.step()
        step_losses.append(float(loss.detach()))
    theirs.zero_grad(set_to_none=True)
    return step_losses


def _train_ours(pair: Pair, batches: list[Examples]) -> tuple[list[float], Any]:
    """Trains a copy of the parameters by the project's own step; returns losses and it."""
    update = optimizer.make_optimizer(OptimizerConfig(learning_rate=LEARNING_RATE), TRAIN_STEPS)
    objective = train_step.Objective(rationale_rate=1.0)
    step = jax.jit(
        train_step.make_train_step(pair.ours, update, objective, seed=0), donate_argnums=0
    )
    params = jax.tree.map(jnp.copy, pair.params)  # donated, so not the pair's
    state = train_step.TrainState(jnp.zeros((), jnp.int32), params, update.init(params))
    del params
    step_losses = []
    for batch in batches:
        state, metrics = step(state, both_tasks(batch))
        step_losses.append(float(metrics["loss"]))
    return step_losses, state.params


def _batches(examples: Examples, batch_size: int) -> list[Examples]:
    batches = [
        examples.rows(start, start + batch_size)
        for start in range(0, TRAIN_STEPS * batch_size, batch_size)
    ]
    assert len(batches[-1].labels) == batch_size, "too few examples"
    return batches


def _restore(theirs: Any, initial: Mapping[str, np.ndarray]) -> None:
    """Takes the steps back."""
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.copy_(torch.from_numpy(np.array(initial[name])))


def _differences(
    found_losses: list[float],
    found: Mapping[str, np.ndarray],
    expected_losses: list[float],
    expected: Mapping[str, np.ndarray],
    initial: Mapping[str, np.ndarray],
) -> list[Measurement]:
    """Of two times ten steps from the same weights."""
    steps = enumerate(zip(found_losses, expected_losses, strict=True))
    apart, _ = worst({str(i): abs(one - other) / other for i, (one, other) in steps})
    told = f"from {expected_losses[0]:.3f} to {expected_losses[-1]:.3f}"
    norm, norm_of = worst_tensor(found, expected)
    # Found less initial is exact or nearly so: the two are close together.
    moved, moved_of = worst(
        {
            name: relative(found[name] - initial[name], expected[name] - initial[name])
            for name in expected
        }
    )
    return [
        Measurement(STEP_LOSSES, apart, 1e-5, told),
        Measurement(OF_NORM, norm, 1e-4, norm_of),
        Measurement(OF_MOVEMENT, moved, 1e-2, moved_of),
    ]


def compare_training(pair: Pair, examples: Examples, batch_size: int) -> list[Measurement]:
    """Ten steps with AdamW, linear decay and clipping, of label and rationale rows together.

    Both sides take the same `batch_size` examples a step, others every step. Ten steps move a
    tensor by little of its norm, so the difference is told as a part of that movement as well.

    The pair is afterwards what it was.
    """
    batches = _batches(examples, batch_size)
    initial = state_of_tree(pair.params, pair.ours.config)
    expected_losses = _train_theirs(pair.theirs, batches)
    found_losses, params = _train_ours(pair, batches)
    found = state_of_tree(params, pair.ours.config)
    del params
    expected = _parameters(pair.theirs)
    measured = _differences(found_losses, found, expected_losses, expected, initial)
    _restore(pair.theirs, initial)
    return measured


def rounding_of_training(pair: Pair, examples: Examples, batch_size: int) -> list[Measurement]:
    """What float32 leaves open in `compare_training`: transformers' steps against its float64's.

    AdamW moves every parameter by about the learning rate, be its gradient ever so small, so
    rounding that changes the sign of a tiny gradient moves its parameter the other way; each step
    multiplies what the last one left. The names are those of `compare_training`.
    """
    batches = _batches(examples, batch_size)
    initial = state_of_tree(pair.params, pair.ours.config)
    single_losses = _train_theirs(pair.theirs, batches)
    single = {name: value.copy() for name, value in _parameters(pair.theirs).items()}
    _restore(pair.theirs, initial)
    with in_float64(pair.theirs):
        double_losses = _train_theirs(pair.theirs, batches)
        double = _parameters(pair.theirs)
        measured = _differences(single_losses, single, double_losses, double, initial)
    _restore(pair.theirs, initial)
    return measured


def _parameters(theirs: Any) -> dict[str, np.ndarray]:
    """By name; the model's own memory."""
    return {name: value.detach().numpy() for name, value in theirs.named_parameters()}
