"""Encoder output, logits, loss and gradients of our T5 beside transformers', for `parity.py`.

Enters: a `Pair` of the same weights and a few examples. Leaves: `Measurement`s.

A ReLU has no derivative at 0. Among the millions of hidden units of T5 1.0 Base some lie within
rounding of it and fall on either side of it in the two libraries; a single one can move a gradient
by more than the limit. So gradients are compared twice: as each library gives them, and with the
derivative of those units chosen alike; the units are counted, with their distance from 0.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import torch
from parity_pairs import (
    Examples,
    Pair,
    both_tasks,
    torch_inputs,
    torch_labels,
    worst_tensor,
)
from parity_state import state_of_tree
from parity_table import Measurement

from distill_sbs import constants
from distill_sbs.model import losses, network

ENCODED = "encoder output, largest difference"
LOGITS = "logits, largest difference"
LOSS = "loss, relative"
GRADIENTS = "gradients, worst tensor, of its norm"
DECIDED = "… with ReLU units within rounding of 0 decided alike"
DISTANCE = "… the farthest of these units from 0"
LIMITS = {ENCODED: 1e-4, LOGITS: 1e-4, LOSS: 1e-5, GRADIENTS: 1e-4, DECIDED: 1e-4, DISTANCE: 1e-4}


class _Outputs(NamedTuple):
    encoded: np.ndarray  # [B, S, D]
    logits: np.ndarray  # [B, T, V]
    loss: float  # mean over target tokens
    gradients: dict[str, np.ndarray]  # by HuggingFace's names


def _their_outputs(theirs: Any, batch: Mapping[str, np.ndarray]) -> _Outputs:
    inputs = torch_inputs(batch[constants.ENCODER_INPUT_TOKENS])
    output = theirs(**inputs, labels=torch_labels(batch[constants.DECODER_TARGET_TOKENS]))
    output.loss.backward()
    gradients = {name: value.grad.numpy() for name, value in theirs.named_parameters()}
    theirs.zero_grad(set_to_none=True)
    return _Outputs(
        output.encoder_last_hidden_state.detach().numpy(),
        output.logits.detach().numpy(),
        float(output.loss.detach()),
        gradients,
    )


class _Difference(NamedTuple):
    value: float
    note: str


def _differences(
    found: _Outputs, expected: _Outputs, batch: Mapping[str, np.ndarray]
) -> dict[str, _Difference]:
    """By what differs; states and logits at real tokens, since those of padding mean nothing."""
    inputs = batch[constants.ENCODER_INPUT_TOKENS]
    targets = batch[constants.DECODER_TARGET_TOKENS]
    encoded = abs(found.encoded - expected.encoded)[inputs > 0].max()
    logits = abs(found.logits - expected.logits)[targets > 0].max()
    deviation, largest = expected.logits[targets > 0].std(), abs(expected.logits[targets > 0]).max()
    loss = abs(found.loss - expected.loss) / expected.loss
    return {
        ENCODED: _Difference(float(encoded), ""),
        LOGITS: _Difference(
            float(logits), f"standard deviation {deviation:.1f}, largest {largest:.0f}"
        ),
        LOSS: _Difference(loss, f"loss {expected.loss:.3f}"),
        GRADIENTS: _Difference(*worst_tensor(found.gradients, expected.gradients)),
    }


def _our_outputs(pair: Pair, batch: Mapping[str, np.ndarray]) -> tuple[_Outputs, list[np.ndarray]]:
    """Our outputs, and which hidden units of T5 1.0's feed-forward blocks were above 0.

    The latter are bool [B, length, mlp_dim], encoder's layers first; the very values that the
    gradient was computed with.
    """
    ours, config = pair.ours, pair.ours.config

    @jax.jit
    def outputs(params: Any) -> Any:
        variables = {"params": params}
        encoded = ours.apply(variables, batch[constants.ENCODER_INPUT_TOKENS], method="encode")
        logits = ours.apply(
            variables,
            batch[constants.ENCODER_INPUT_TOKENS],
            batch[constants.DECODER_INPUT_TOKENS],
            batch[constants.DECODER_TARGET_TOKENS],
        )
        return encoded, logits

    def mean(params: Any) -> Any:
        targets = batch[constants.DECODER_TARGET_TOKENS]
        hidden, captured = ours.apply(
            {"params": params},
            batch[constants.ENCODER_INPUT_TOKENS],
            batch[constants.DECODER_INPUT_TOKENS],
            targets,
            method="hidden",
            capture_intermediates=lambda module, _: module.name == "wi",
            mutable=["intermediates"],
        )
        weights = network.output_weights(params, config)
        cross_entropy = losses.token_losses(hidden, weights, targets, config).cross_entropy
        loss = jnp.sum(jnp.where(targets > 0, cross_entropy, 0.0)) / (targets > 0).sum()
        return loss, jax.tree.map(lambda before: before > 0, captured)

    encoded, logits = outputs(pair.params)
    (loss, captured), gradients = jax.jit(jax.value_and_grad(mean, has_aux=True))(pair.params)
    above = []
    if captured:
        for stack, layers in (
            ("encoder", config.num_encoder_layers),
            ("decoder", config.num_decoder_layers),
        ):
            for index in range(layers):
                layer = captured["intermediates"][stack][f"layers_{index}"]
                above.append(np.asarray(layer["mlp"]["wi"]["__call__"][0]))
    found = state_of_tree(gradients, config)
    return _Outputs(np.asarray(encoded), np.asarray(logits), float(loss), found), above


class _DecidedReLU(torch.nn.Module):
    """ReLU whose kink is decided beforehand: a unit passes where `above` says so.

    Attributes:
      units: of real tokens.
      undecided: those among them that would have gone the other way.
      farthest: the largest distance from 0 of one that would have.
    """

    def __init__(self, above: np.ndarray, real: np.ndarray) -> None:
        super().__init__()
        self._above, self._real = torch.tensor(above), torch.tensor(real)
        self.units = int(real.sum()) * above.shape[-1]
        self.undecided, self.farthest = 0, 0.0

    def forward(self, inputs: Any) -> Any:
        """[B, length, mlp_dim] -> the same."""
        differing = inputs.detach()[((inputs > 0) != self._above) & self._real[:, :, None]]
        self.undecided += differing.numel()
        self.farthest = max(self.farthest, *differing.abs().tolist(), 0.0)
        return inputs * self._above


@contextlib.contextmanager
def _decided(
    theirs: Any, above: Sequence[np.ndarray], batch: Mapping[str, np.ndarray]
) -> Iterator[list[_DecidedReLU]]:
    """Gives every ReLU of `theirs`, encoder's first, our decisions; takes them back at the end."""
    sides = (
        (theirs.encoder, batch[constants.ENCODER_INPUT_TOKENS] > 0),
        (theirs.decoder, batch[constants.DECODER_TARGET_TOKENS] > 0),
    )
    blocks = [
        (layer.layer[-1].DenseReluDense, real) for side, real in sides for layer in side.block
    ]
    before = [block.act for block, _ in blocks]
    try:
        for (block, real), decisions in zip(blocks, above, strict=True):
            block.act = _DecidedReLU(decisions, real)
        yield [block.act for block, _ in blocks]
    finally:
        for (block, _), act in zip(blocks, before, strict=True):
            block.act = act


def compare_outputs(pair: Pair, examples: Examples, rounding: bool = True) -> list[Measurement]:
    """Encoder output, logits, loss and every parameter's gradient on one batch.

    Args:
      pair: the two models.
      examples: a few; each is a label row and a rationale row of the batch.
      rounding: measure as well what float32 itself leaves open, transformers in float32 against
        transformers in float64. Takes three times as long.
    """
    batch = both_tasks(examples)
    theirs = _their_outputs(pair.theirs, batch)
    known = {}
    if rounding:
        # First, so that its gradients, twice as large, are gone when ours come.
        with in_float64(pair.theirs):
            exact = _their_outputs(pair.theirs, batch)
        known = {name: each.value for name, each in _differences(theirs, exact, batch).items()}
        del exact
    ours, above = _our_outputs(pair, batch)
    found = [
        Measurement(name, each.value, LIMITS[name], each.note, known.get(name))
        for name, each in _differences(ours, theirs, batch).items()
    ]
    del theirs
    if not above:
        return found
    with _decided(pair.theirs, above, batch) as units:
        decided = _their_outputs(pair.theirs, batch)
    value, tensor = worst_tensor(ours.gradients, decided.gradients)
    differing, count = sum(each.undecided for each in units), sum(each.units for each in units)
    farthest = max(each.farthest for each in units)
    return [
        *found,
        Measurement(DECIDED, value, LIMITS[DECIDED], tensor),
        Measurement(DISTANCE, farthest, LIMITS[DISTANCE], f"{differing} of {count:,} units"),
    ]


@contextlib.contextmanager
def in_float64(theirs: Any) -> Iterator[None]:
    """Makes `theirs` compute in float64, also where transformers itself falls back to float32."""
    norm = type(theirs.encoder.final_layer_norm)

    def normalise(self: Any, hidden: Any) -> Any:
        variance = hidden.pow(2).mean(-1, keepdim=True)
        return self.weight * hidden * torch.rsqrt(variance + self.variance_epsilon)

    theirs.double()
    try:
        with mock.patch.object(norm, "forward", normalise):
            yield
    finally:
        theirs.float()  # exact: the values came from float32
