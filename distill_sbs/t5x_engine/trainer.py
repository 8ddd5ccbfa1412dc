"""T5X's trainer, which counts the tokens of each task before it splits a batch.

Enters: what `t5x.trainer.Trainer` takes. Leaves: the same train step, with `TASK_TOKEN_COUNTS` of
the global batch (all hosts, all microbatches) beside every row.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
from flax import traverse_util
from t5x import models, trainer
from t5x.train_state import TrainState

from distill_sbs import constants
from distill_sbs.errors import UserError
from distill_sbs.model.parameters import PyTree
from distill_sbs.t5x_engine.messages import one_line_errors
from distill_sbs.t5x_engine.models import add_task_token_counts
from distill_sbs.training.train_step import Batch


@one_line_errors
def _check_shapes(model: models.BaseModel, train_state: TrainState) -> None:
    features = (constants.ENCODER_INPUT_TOKENS, constants.DECODER_INPUT_TOKENS)
    variables = jax.eval_shape(
        lambda: model.get_initial_variables(jax.random.key(0), dict.fromkeys(features, (1, 1)))
    )
    restored = traverse_util.flatten_dict(train_state.params, sep="/")
    for name, wanted in traverse_util.flatten_dict(variables["params"], sep="/").items():
        if restored[name].shape != wanted.shape:
            raise UserError(
                f"the restored parameter {name} has shape {restored[name].shape}, the network's "
                f"has {wanted.shape}; give T5X's model file that belongs to the checkpoint, such "
                "as --gin_file=t5x/examples/t5/t5_1_1/base.gin"
            )


class StepByStepTrainer(trainer.Trainer):  # type: ignore[misc]  # t5x has no types
    """`t5x.trainer.Trainer` for `StepByStepModel`; other models train in it as in T5X's.

    Raises:
      UserError: restored parameters have other shapes than the network's; one line. (T5X restores
        them as they are, saves them again and then fails to compile.)
    """

    def __init__(
        self, model: models.BaseModel, train_state: TrainState, **keywords: object
    ) -> None:
        _check_shapes(model, train_state)
        super().__init__(model=model, train_state=train_state, **keywords)

    @functools.cached_property
    def _partitioned_train_step(self) -> Callable[[TrainState, Batch], tuple[TrainState, PyTree]]:
        def train_step(train_state: TrainState, batch: Batch) -> tuple[TrainState, PyTree]:
            return trainer.train_with_lr(
                train_state,
                add_task_token_counts(batch),
                learning_rate=self._learning_rate_fn(train_state.step),
                dropout_rng=self._get_step_rng(train_state.step),
                model=self._model,
                num_microbatches=self._num_microbatches,
                weight_metrics_computer=self._weight_metrics_computer,
                data_partition_spec=self._partitioner.data_partition_spec,
            )

        state_axes, batch_axes = self._train_state_axes, self._partitioner.data_partition_spec
        return self._partitioner.partition(
            train_step,
            in_axis_resources=(state_axes, batch_axes),
            out_axis_resources=(state_axes, None),
            donate_argnums=(0,),
        )
