"""The optimizer and its learning rate.

Enters: `config.OptimizerConfig`. Leaves: an optax transformation whose defaults are those of the
published implementation (HuggingFace's Trainer): AdamW, linear decay to 0 without warm-up, weight
decay 0, gradients clipped at global norm 1.0.
"""

from __future__ import annotations

import jax
import optax

from distill_sbs.config import OptimizerConfig, check_warmup
from distill_sbs.model.parameters import Params, PyTree


def make_schedule(config: OptimizerConfig, train_steps: int) -> optax.Schedule:
    """Rises linearly over `warmup_steps`, then falls linearly to `final_learning_rate` at the end.

    The first step of a run without warm-up is taken at the full rate, as in
    `transformers.get_linear_schedule_with_warmup`.

    Raises:
      OptionError: it would not fall before `train_steps`.
    """
    check_warmup(config, train_steps)
    decay = optax.linear_schedule(
        config.learning_rate, config.final_learning_rate, train_steps - config.warmup_steps
    )
    if config.warmup_steps == 0:
        return decay
    rise = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
    return optax.join_schedules([rise, decay], [config.warmup_steps])


def _decays(params: Params) -> PyTree:
    """Weight decay leaves layer norms alone, as HuggingFace's Trainer does."""
    return jax.tree.map(lambda parameter: parameter.ndim > 1, params)


def make_optimizer(config: OptimizerConfig, train_steps: int) -> optax.GradientTransformation:
    """The optimizer of a run of `train_steps` steps."""
    schedule = make_schedule(config, train_steps)
    if config.name == "adamw":
        update = optax.adamw(
            schedule, b2=config.adam_b2, weight_decay=config.weight_decay, mask=_decays
        )
    else:
        update = optax.adafactor(
            schedule, weight_decay_rate=config.weight_decay or None, weight_decay_mask=_decays
        )
    if config.gradient_clip_norm is None:
        return update
    return optax.chain(optax.clip_by_global_norm(config.gradient_clip_norm), update)
