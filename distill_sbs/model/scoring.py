"""How likely each of a few labels is, all of them in one pass of the decoder.

In: encoder tokens int32 [B, S], and K candidate labels as token arrays, end token included.
Out: float32 [B, K], the log-probability of each label as the whole answer to each input.

The labels stand one after the other in one row, each a segment that sees itself alone and the whole
input; so the encoder runs once, and the decoder's weights are read once, whatever K is. The numbers
are those that decoding would add up, had it been made to say each label.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distill_sbs import constants
from distill_sbs.model import losses
from distill_sbs.model.network import Transformer, output_weights
from distill_sbs.model.parameters import Params, PyTree


class PackedLabels(NamedTuple):
    """Candidate labels in one row.

    Attributes:
      inputs: int32 [T], each label shifted right, the start token first.
      targets: int32 [T].
      segments: int32 [T], 1 for the first label and so on.
    """

    inputs: np.ndarray
    targets: np.ndarray
    segments: np.ndarray

    @property
    def labels(self) -> int:
        """K."""
        return int(self.segments[-1])


def pack_labels(labels: Sequence[np.ndarray], start_id: int = constants.PAD_ID) -> PackedLabels:
    """Lays labels [L] into one row, each behind the decoder's start token.

    Raises:
      ValueError: there is none, or one without tokens.
    """
    if not labels or any(len(label) == 0 for label in labels):
        raise ValueError(f"{len(labels)} labels: expected some, each of a token or more")
    start = np.array([start_id], np.int32)
    return PackedLabels(
        np.concatenate([part for label in labels for part in (start, label[:-1])]).astype(np.int32),
        np.concatenate(labels).astype(np.int32),
        np.repeat(np.arange(1, len(labels) + 1), [len(label) for label in labels]).astype(np.int32),
    )


def score_labels(
    model: Transformer,
    params: Params,
    encoder_input_tokens: jax.Array,
    labels: PackedLabels,
    logits_chunk_tokens: int | None = None,
) -> jax.Array:
    """The summed log-probability of every label's tokens, float32 [B, K].

    Args:
      model: `Transformer(config)`, scanned or not.
      params: its parameters.
      encoder_input_tokens: int32 [B, S], 0 is padding.
      labels: from `pack_labels`.
      logits_chunk_tokens: see `losses.token_losses`.
    """
    rows = encoder_input_tokens.shape[0]
    inputs, targets, segments = (
        jnp.broadcast_to(jnp.asarray(each), (rows, len(each)))
        for each in (labels.inputs, labels.targets, labels.segments)
    )
    variables = {"params": params}
    encoded = model.apply(variables, encoder_input_tokens, method="encode")
    hidden: PyTree = model.apply(
        variables,
        encoded,
        encoder_input_tokens,
        inputs,
        targets,
        segments,
        method="candidates_hidden",
    )
    cross_entropy = losses.token_cross_entropy(
        hidden,
        output_weights(params, model.config),
        targets,
        model.config,
        logits_chunk_tokens=logits_chunk_tokens,
    )  # [B, T]
    of_label = segments[0][:, None] == jnp.arange(1, labels.labels + 1)  # [T, K]
    return -jnp.where(of_label, cross_entropy[:, :, None], 0.0).sum(axis=1)
