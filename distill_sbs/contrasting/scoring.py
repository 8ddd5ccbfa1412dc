"""One teacher-forced pass of an expert and of an amateur over the same outputs.

Enters: two students' parameters on one mesh, inputs and what the expert decoded for them. Leaves: a
`divergence.Comparison` of every target position, as numpy arrays.

Both students' logits are made for a chunk of positions at a time, so [B, T, V] never lives whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from distill_sbs import constants
from distill_sbs.contrasting.divergence import Comparison, compare
from distill_sbs.distributed import sharding
from distill_sbs.model import losses
from distill_sbs.model.network import Transformer, output_weights
from distill_sbs.model.parameters import Params

# Arrays as large as a chunk's logits that are alive at once here; one in `losses`.
_ARRAYS_ALIVE = 6


def target_length(tokens: np.ndarray) -> int:
    """How many of decoded tokens [L] count: up to the end token, which counts too; else all."""
    ends = np.flatnonzero(tokens == constants.EOS_ID)
    return int(ends[0]) + 1 if len(ends) else len(tokens)


def pad_batch(
    inputs: Sequence[np.ndarray],
    targets: Sequence[np.ndarray],
    rows: int,
    input_tokens: int,
    target_tokens: int,
) -> dict[str, np.ndarray]:
    """The model features of sequences, each in a row of its own; int32 [rows, S] and [rows, T].

    Args:
      inputs: token ids, end token included.
      targets: token ids, up to the end token.
      rows: at least as many as there are sequences.
      input_tokens: S.
      target_tokens: T.
    """
    encoder = np.zeros((2, rows, input_tokens), np.int32)
    decoder = np.zeros((3, rows, target_tokens), np.int32)
    for row, (given, target) in enumerate(zip(inputs, targets, strict=True)):
        encoder[0, row, : len(given)] = given
        encoder[1, row, : len(given)] = 1
        decoder[0, row, : len(target)] = target
        decoder[1, row, 1 : len(target)] = target[:-1]
        # A decoded token may be 0, which is padding elsewhere: segments say what is there.
        decoder[2, row, : len(target)] = 1
    return {
        constants.ENCODER_INPUT_TOKENS: encoder[0],
        constants.ENCODER_SEGMENT_IDS: encoder[1],
        constants.DECODER_TARGET_TOKENS: decoder[0],
        constants.DECODER_INPUT_TOKENS: decoder[1],
        constants.DECODER_SEGMENT_IDS: decoder[2],
    }


class PairScorer:
    """Compares two students on batches of one shape; compiled once.

    Args:
      expert: the student that is to be improved.
      amateur: the weaker one, of the same vocabulary and embedding rows.
      mesh: where both have their parameters.
      alpha: see `divergence.compare`.
      top_k: see `divergence.compare`.
      logits_chunk_tokens: target positions whose logits may be alive at once.
    """

    def __init__(
        self,
        expert: Transformer,
        amateur: Transformer,
        mesh: Mesh,
        alpha: float,
        top_k: int,
        logits_chunk_tokens: int,
    ) -> None:
        self._mesh = mesh
        chunk_tokens = max(1, logits_chunk_tokens // _ARRAYS_ALIVE)

        def score(params: Params, others: Params, batch: dict[str, jax.Array]) -> Comparison:
            states = losses.decoder_states(expert, params, batch)  # [B, T, D]
            other_states = losses.decoder_states(amateur, others, batch)
            weights = output_weights(params, expert.config)
            other_weights = output_weights(others, amateur.config)
            rows, length = batch[constants.DECODER_TARGET_TOKENS].shape
            chunk = losses.choose_chunk_length(rows, length, chunk_tokens)

            def body(carry: None, part: tuple[jax.Array, jax.Array]) -> tuple[None, Comparison]:
                logits = losses.chunk_logits(expert.config, part[0], weights)
                other_logits = losses.chunk_logits(amateur.config, part[1], other_weights)
                return carry, compare(logits, other_logits, alpha, top_k)

            parts = (losses.split_length(states, chunk), losses.split_length(other_states, chunk))
            _, compared = jax.lax.scan(body, None, parts)

            def join(array: jax.Array) -> jax.Array:
                # [chunks, B, chunk, ...] -> [B, T, ...]
                joined = array.swapaxes(0, 1).reshape(rows, -1, *array.shape[3:])
                return joined[:, :length]

            return Comparison(*map(join, compared))

        self._score = jax.jit(score, out_shardings=sharding.replicated(mesh))

    def __call__(
        self, expert: Params, amateur: Params, batch: dict[str, np.ndarray]
    ) -> list[np.ndarray]:
        """Compares both on a batch of `pad_batch`, whose rows the data axis divides.

        Returns:
          The fields of a `Comparison`, [B, T] and [B, T, K].
        """
        with sharding.rules(self._mesh):
            compared = self._score(expert, amateur, sharding.put_batch(batch, self._mesh))
        return [np.asarray(each) for each in compared]


def choose_rows(batch_size: int, mesh: Mesh) -> int:
    """`batch_size`, rounded up to what the data axis divides."""
    parallel = sharding.data_parallelism(mesh)
    return math.ceil(batch_size / parallel) * parallel
