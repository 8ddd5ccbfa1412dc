"""Decodes with a student, and scores what it wrote.

Enters: parameters on a mesh and tokenised inputs. Leaves: output tokens, and for a task the
accuracy over every example of a split, each counted once.
"""

from __future__ import annotations

import collections
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from distill_sbs import constants
from distill_sbs.distributed import sharding
from distill_sbs.model import decoding
from distill_sbs.model.network import Transformer
from distill_sbs.model.parameters import Params

# Inputs are padded to a multiple of this many tokens, and in one call to few different widths, for
# each of them is compiled.
WIDTH_MULTIPLE = 16
_MOST_WIDTHS = 3


class Decoder:
    """Decodes any number of inputs in batches of one static shape.

    Args:
      model: the student.
      mesh: where its parameters live.
      max_decode_tokens: the longest output, end token included.
      batch_size: inputs decoded at a time; rounded up to what the data axis divides.
      beam_size: 1 decodes greedily.
    """

    def __init__(
        self,
        model: Transformer,
        mesh: Mesh,
        max_decode_tokens: int = 64,
        batch_size: int = 128,
        beam_size: int = 1,
    ) -> None:
        devices = sharding.data_parallelism(mesh)
        self._batch_size = -(-batch_size // devices) * devices
        self._mesh = mesh
        if beam_size == 1:
            decode = functools.partial(
                decoding.greedy_decode, model, max_decode_tokens=max_decode_tokens
            )
        else:
            decode = functools.partial(
                decoding.beam_decode,
                model,
                max_decode_tokens=max_decode_tokens,
                beam_size=beam_size,
            )
        self._decode = decode
        self._compiled: dict[int, jax.stages.Wrapped] = {}  # by start token

    def _from(self, start_id: int) -> jax.stages.Wrapped:
        """The jitted function that decodes from a start token."""
        if start_id not in self._compiled:
            self._compiled[start_id] = jax.jit(
                lambda params, tokens: self._decode(params, tokens, start_id=start_id),
                out_shardings=sharding.replicated(self._mesh),
            )
        return self._compiled[start_id]

    def lower(self, params: Params, input_tokens: int) -> jax.stages.Lowered:
        """Traces the decoding of one batch of `input_tokens` positions a row, to compile it.

        Args:
          params: shapes with shardings.
          input_tokens: S.

        Returns:
          A `jax.stages.Lowered`.
        """
        tokens = jax.ShapeDtypeStruct(
            (self._batch_size, input_tokens), np.int32, sharding=sharding.batch_sharding(self._mesh)
        )
        with sharding.rules(self._mesh):
            return self._from(constants.PAD_ID).lower(params, tokens)

    def __call__(
        self,
        params: Params,
        inputs: Sequence[np.ndarray],
        advance: Callable[[int], None] = lambda _: None,
        start_id: int = constants.PAD_ID,
    ) -> list[np.ndarray]:
        """Decodes token arrays [S]; returns one array [L] of at most `max_decode_tokens` each.

        Args:
          params: the student's parameters.
          inputs: token ids, end token included.
          advance: told how many more inputs are done.
          start_id: the decoder's first input token.
        """
        decode = functools.partial(self._from(start_id), params)
        return map_batches(decode, inputs, self._batch_size, self._mesh, advance)


def map_batches(
    function: Callable[[jax.Array], jax.Array],
    inputs: Sequence[np.ndarray],
    batch_size: int,
    mesh: Mesh,
    advance: Callable[[int], None] = lambda _: None,
) -> list[np.ndarray]:
    """Applies a function of encoder tokens [B, S] to all inputs; one row of what it gives for each.

    Args:
      function: jitted, int32 [B, S] to an array [B, …], whole on every device.
      inputs: token ids, end token included.
      batch_size: B, a multiple of the devices on the data axis; less for few inputs
        (`shrink_batch`).
      mesh: the devices.
      advance: told how many more inputs are done.
    """
    batch_size = shrink_batch(batch_size, len(inputs), sharding.data_parallelism(mesh))
    rows: list[np.ndarray] = [np.zeros(0, np.int32)] * len(inputs)
    for places, width in plan_batches([len(each) for each in inputs], batch_size):
        tokens = np.zeros((batch_size, width), np.int32)  # [B, S]
        for row, place in enumerate(places):
            tokens[row, : len(inputs[place])] = inputs[place]
        on_mesh = sharding.put_batch({constants.ENCODER_INPUT_TOKENS: tokens}, mesh)
        with sharding.rules(mesh):
            result = function(on_mesh[constants.ENCODER_INPUT_TOKENS])
        for place, of_row in zip(places, np.asarray(result), strict=False):
            rows[place] = of_row
        advance(len(places))
    return rows


def shrink_batch(batch_size: int, inputs: int, devices: int) -> int:
    """A quarter, a sixteenth … of the batch, the least that holds so few inputs.

    One input is so not decoded as one of 128 rows; and the sizes stay few, for each is compiled.

    Args:
      batch_size: inputs at a time, a multiple of `devices`.
      inputs: how many there are.
      devices: on the data axis.
    """
    while inputs <= (smaller := -(-batch_size // (4 * devices)) * devices) < batch_size:
        batch_size = smaller
    return batch_size


def plan_batches(lengths: Sequence[int], batch_size: int) -> list[tuple[list[int], int]]:
    """Inputs of like lengths beside each other, the longest first: (their places, the width).

    A batch is padded to its own longest input, not to that of all. There are `_MOST_WIDTHS`
    different widths at most: those are widened that add the fewest positions.

    Args:
      lengths: of the inputs, in tokens.
      batch_size: inputs at a time.
    """
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    needed = [-(-max(lengths[batch[0]], 1) // WIDTH_MULTIPLE) * WIDTH_MULTIPLE for batch in batches]
    counts = collections.Counter(needed)
    wider: dict[int, int] = {}
    while len(counts) > _MOST_WIDTHS:
        steps = list(itertools.pairwise(sorted(counts)))
        width, next_width = min(steps, key=lambda step: counts[step[0]] * (step[1] - step[0]))
        counts[next_width] += counts.pop(width)
        wider[width] = next_width
    widths = []
    for width in needed:
        while width in wider:
            width = wider[width]
        widths.append(width)
    return list(zip(batches, widths, strict=True))


def compute_metrics(
    metric_functions: Sequence[Callable[..., Mapping[str, float]]],
    postprocess: Callable[..., object],
    references: Sequence[str],
    predictions: Sequence[str],
) -> dict[str, float]:
    """Applies a task's postprocessor and its (targets, predictions) metric functions."""
    targets = [postprocess(text, is_target=True) for text in references]
    answers = [postprocess(text, is_target=False) for text in predictions]
    values: dict[str, float] = {}
    for metric in metric_functions:
        values.update(metric(targets, answers))
    return {name: float(value) for name, value in values.items()}
