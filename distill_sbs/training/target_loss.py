"""The loss of the targets of a split, where no answer is right or wrong.

Enters: parameters, and batches as in training. Leaves: `loss`, the mean cross-entropy in nats a
target token over all of them, and `perplexity`, e to the power of it. Nothing is decoded, and there
is no dropout.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import jax
import numpy as np
from jax.sharding import Mesh

from distill_sbs import constants
from distill_sbs.distributed import sharding
from distill_sbs.model import losses
from distill_sbs.model.network import Transformer
from distill_sbs.model.parameters import Params

# e to a higher power is no float any more.
_LARGEST_EXPONENT = 700.0


class TargetLoss:
    """Measures a student; compiled once for each shape of a batch.

    Args:
      model: the student.
      mesh: the devices.
      logits_chunk_tokens: see `losses.token_losses`.
    """

    def __init__(
        self, model: Transformer, mesh: Mesh, logits_chunk_tokens: int | None = None
    ) -> None:
        self._mesh = mesh

        def add_up(params: Params, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
            cross_entropy = losses.batch_cross_entropy(
                model, params, batch, logits_chunk_tokens=logits_chunk_tokens
            )
            is_target = batch[constants.DECODER_TASK_IDS] != constants.PADDING_TASK_ID
            return jax.numpy.where(is_target, cross_entropy, 0.0).sum(), is_target.sum()

        self._add_up = jax.jit(add_up, out_shardings=sharding.replicated(mesh))

    def __call__(
        self, params: Params, batches: Iterable[dict[str, np.ndarray]]
    ) -> dict[str, float]:
        """`{"loss": nats a token, "perplexity": e^loss}` over all batches, of rows that the data
        axis divides.
        """
        total, count = 0.0, 0
        for batch in batches:
            with sharding.rules(self._mesh):
                loss, tokens = self._add_up(params, sharding.put_batch(batch, self._mesh))
            total += float(loss)
            count += int(tokens)
        mean = total / max(count, 1)
        return {"loss": mean, "perplexity": math.exp(min(mean, _LARGEST_EXPONENT))}
