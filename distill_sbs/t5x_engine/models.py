"""The objective of this project in T5X's model class.

Enters: T5X's encoder-decoder model as T5X's own model file configures it (network, vocabularies,
optimizer, decoding), and λ. Leaves: the same with our feature converter and our loss,
L = mean over label tokens + λ · mean over rationale tokens (arXiv 2305.02301, Eq. 3).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import clu.metrics
import flax.struct
import jax
import jax.numpy as jnp
from t5x import losses as t5x_losses
from t5x import models

from distill_sbs import constants
from distill_sbs.data.feature_converter import StepByStepFeatureConverter
from distill_sbs.errors import UserError
from distill_sbs.model import losses
from distill_sbs.model.parameters import Params, PyTree
from distill_sbs.t5x_engine.messages import one_line_errors

# A feature that `StepByStepTrainer` puts beside the batch: int32 [B, 2], in every row the numbers
# of label and rationale tokens in the whole global batch. T5X hands microbatches to the loss, and
# means of microbatches would not add up to the mean over the batch.
TASK_TOKEN_COUNTS = "task_token_counts"


@flax.struct.dataclass
class TaskMean(clu.metrics.Average):  # type: ignore[misc]  # clu has no types
    """Mean over the tokens of a task; NaN, without a warning, where there was none."""

    def compute(self) -> jax.Array | float:
        """Total / count."""
        return self.total / self.count if self.count else float("nan")


def add_task_token_counts(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The batch, and beside it `TASK_TOKEN_COUNTS` where it has task ids."""
    task_ids = batch.get(constants.DECODER_TASK_IDS)
    if task_ids is None:
        return dict(batch)
    counts = jnp.stack(losses.task_token_counts(task_ids))
    return {**batch, TASK_TOKEN_COUNTS: jnp.broadcast_to(counts, (task_ids.shape[0], 2))}


class StepByStepModel(models.EncoderDecoderModel):  # type: ignore[misc]  # t5x has no types
    """`t5x.models.EncoderDecoderModel` with one task id beside every target token.

    Its metrics are T5X's, but for those that divide the loss by a number of tokens (this loss is
    a sum of means already), and `{label,rationale}_{loss,token_accuracy}` besides, as sums and
    counts: means over all tokens of a logging period, NaN for a task without tokens.

    Args:
      stock: T5X's model; everything but the loss and the converter is taken from it.
      rationale_rate: λ.

    Raises:
      UserError: LOSS_NORMALIZING_FACTOR is set, which this loss has no use for.
    """

    FEATURE_CONVERTER_CLS = StepByStepFeatureConverter

    @one_line_errors
    def __init__(self, stock: models.EncoderDecoderModel, rationale_rate: float = 1.0) -> None:
        # In place of super().__init__: whatever T5X's model file configured, by whatever names.
        self.__dict__.update(vars(stock))
        self.FEATURE_CONVERTER_CLS = StepByStepFeatureConverter
        self.rationale_rate = rationale_rate
        if self._loss_normalizing_factor is not None:
            raise UserError(
                f"LOSS_NORMALIZING_FACTOR={self._loss_normalizing_factor!r}: the loss is already a "
                "mean over label tokens + λ · mean over rationale tokens; set it to None, or train "
                "T5X's token sum with --gin.MODEL=@models.EncoderDecoderModel()"
            )

    @one_line_errors
    def get_initial_variables(self, *arguments: object, **keywords: object) -> PyTree:
        """Parameters; see `t5x.models.EncoderDecoderModel`.

        Raises:
          UserError: the vocabulary has more pieces than the network embeds.
        """
        pieces, embedded = self.output_vocabulary.vocab_size, self.module.config.vocab_size
        if pieces > embedded:
            raise UserError(
                f"the vocabulary has {pieces} pieces, T5X's network embeds {embedded}; give it "
                f"--gin.network.T5Config.vocab_size={-(-pieces // 128) * 128}, or the "
                "VOCABULARY_FILE that belongs to the model"
            )
        return super().get_initial_variables(*arguments, **keywords)

    def loss_fn(
        self,
        params: Params,
        batch: Mapping[str, jax.Array],
        dropout_rng: jax.Array | None,
    ) -> tuple[jax.Array, PyTree]:
        """The loss, a float32 scalar, and T5X's metrics.

        Args:
          params: the network's parameters.
          batch: model features int32 [B, S] and [B, T], `decoder_task_ids` among them. Of a
            microbatch it holds `TASK_TOKEN_COUNTS` too: then losses of microbatches, and their
            gradients, sum to those of the whole batch.
          dropout_rng: a key, or None to evaluate.

        Raises:
          UserError: in training the counts of the whole batch are missing.
        """
        targets = batch[constants.DECODER_TARGET_TOKENS]
        task_ids = batch[constants.DECODER_TASK_IDS]
        counts = self._task_token_counts(batch, is_training=dropout_rng is not None)
        logits = self._compute_logits(params, batch, dropout_rng)  # [B, T, V]
        # T5X's own function, a token at a time: it returns sums only.
        of_token = functools.partial(
            t5x_losses.compute_weighted_cross_entropy,
            label_smoothing=self._label_smoothing,
            z_loss=self._z_loss,
        )
        cross_entropy, _, _ = jax.vmap(jax.vmap(of_token))(logits, targets)  # [B, T]
        loss = losses.step_by_step_loss(cross_entropy, task_ids, self.rationale_rate, counts)
        metrics = self._compute_metrics(
            logits=logits,
            targets=targets,
            mask=task_ids > 0,  # boolean: T5X's metrics refuse weights
            loss=loss,
            segment_ids=_segment_ids(batch),
        )
        del metrics["loss_per_nonpadding_target_token"], metrics["loss_per_all_target_tokens"]
        correct = jnp.argmax(logits, axis=-1) == targets
        per_task = losses.task_metrics(losses.TokenLosses(cross_entropy, correct), task_ids)
        for name, (total, count) in per_task.items():
            metrics[name] = TaskMean(total=total, count=count)
        return loss, metrics

    def _task_token_counts(
        self, batch: Mapping[str, jax.Array], is_training: bool
    ) -> losses.TaskTokenCounts:
        if TASK_TOKEN_COUNTS in batch:
            return losses.TaskTokenCounts(*batch[TASK_TOKEN_COUNTS][0])
        if is_training:
            raise UserError(
                f"the batch has no {TASK_TOKEN_COUNTS}, the token numbers of the whole batch: "
                "train with distill_sbs.t5x_engine.trainer.StepByStepTrainer, which puts them "
                "there (gin/t5x/finetune.gin does)"
            )
        return losses.task_token_counts(batch[constants.DECODER_TASK_IDS])


def _segment_ids(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Which positions are real, and in packed rows whose they are, by T5X's names."""
    packed = {"encoder": constants.ENCODER_SEGMENT_IDS, "decoder": constants.DECODER_SEGMENT_IDS}
    if constants.ENCODER_SEGMENT_IDS in batch:
        return {name: batch[key] for name, key in packed.items()}
    names = (constants.ENCODER_INPUT_TOKENS, constants.DECODER_TARGET_TOKENS)
    return {name: batch[name] != constants.PAD_ID for name in names}
