"""The optimizer and its learning rate.

Enters: the settings of a run. Leaves: an optax transformation whose defaults are those of the
published implementation (HuggingFace's Trainer): AdamW, linear decay to 0 without warm-up, weight
decay 0, gradients clipped at global norm 1.0.
"""

from __future__ import annotations

from typing import Any

import jax
import optax

from distill_sbs.errors import UserError

OPTIMIZERS = ("adamw", "adafactor")


def linear_decay(learning_rate: float, train_steps: int, warmup_steps: int = 0) -> optax.Schedule:
    """Rises linearly over `warmup_steps`, then falls linearly to 0 at `train_steps`.

    The first step of a run without warm-up is taken at the full rate, as in
    `transformers.get_linear_schedule_with_warmup`.
    """
    if warmup_steps >= train_steps:
        raise UserError(f"WARMUP_STEPS={warmup_steps} is not below TRAIN_STEPS={train_steps}")
    decay = optax.linear_schedule(learning_rate, 0.0, train_steps - warmup_steps)
    if warmup_steps == 0:
        return decay
    rise = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    return optax.join_schedules([rise, decay], [warmup_steps])


def _decays(params: Any) -> Any:
    """Weight decay leaves layer norms alone, as HuggingFace's Trainer does."""
    return jax.tree.map(lambda parameter: parameter.ndim > 1, params)


def make_optimizer(
    name: str,
    schedule: optax.Schedule,
    weight_decay: float = 0.0,
    gradient_clip_norm: float | None = 1.0,
) -> optax.GradientTransformation:
    """Builds 'adamw' or 'adafactor'; `gradient_clip_norm=None` does not clip.

    Raises:
      UserError: an unknown name.
    """
    if name == "adamw":
        update = optax.adamw(schedule, weight_decay=weight_decay, mask=_decays)
    elif name == "adafactor":
        update = optax.adafactor(
            schedule, weight_decay_rate=weight_decay or None, weight_decay_mask=_decays
        )
    else:
        raise UserError(f"OPTIMIZER={name!r} is unknown; use one of {', '.join(OPTIMIZERS)}")
    if gradient_clip_norm is None:
        return update
    return optax.chain(optax.clip_by_global_norm(gradient_clip_norm), update)
