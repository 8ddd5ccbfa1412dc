"""What a contrast is made with, each once: its type, range and default.

Enters: values from the flags of `distill_sbs.contrast`, or from Python. Leaves: a frozen dataclass
whose every value is in its range, or a `UserError` that names the flag.
"""

from __future__ import annotations

import dataclasses
import math

from distill_sbs.errors import UserError

MODES = ("full", "no_select", "no_contrast", "neither", "random_select", "gold")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContrastOptions:
    """How rollouts are made and which of their positions are trained on.

    Attributes:
      alpha: least share of the expert's highest probability that is plausible, in (0, 1].
      beta: least divergence of a kept position, in nats.
      beta_quantile: in the place of `beta`: the share of valid positions below it, in [0, 1).
      mode: of `MODES`.
      num_problems: the first inputs that are taken.
      max_rollout: longest rationale, in tokens, end token included.
      top_k: tokens that a soft label may have.
      skip_first: first positions of a rollout that are never trained on.
      anchor_weight: of valid positions that are not kept, in [0, 1); 0 is the published objective.
      random_seed: of mode random_select.
      batch_size: inputs at a time.
      shard_size: rollouts that are saved at a time.

    Raises:
      UserError: a value out of its range.
    """

    alpha: float = 0.2
    beta: float = 0.4
    beta_quantile: float | None = None
    mode: str = "full"
    num_problems: int = 1000
    max_rollout: int = 128
    top_k: int = 16
    skip_first: int = 1
    anchor_weight: float = 0.1
    random_seed: int = 0
    batch_size: int = 64
    shard_size: int = 256

    def __post_init__(self) -> None:
        if not 0.0 < self.alpha <= 1.0:
            raise UserError(f"--alpha={self.alpha} is not in (0, 1]; 0.2 is the paper's")
        if not (math.isfinite(self.beta) and self.beta >= 0.0):
            raise UserError(f"--beta={self.beta} is not a finite number ≥ 0; 0.4 is the paper's")
        if self.beta_quantile is not None and not 0.0 <= self.beta_quantile < 1.0:
            raise UserError(
                f"--beta_quantile={self.beta_quantile} is not in [0, 1); 0.9 keeps a tenth of the "
                "positions"
            )
        if self.mode not in MODES:
            raise UserError(f"--mode={self.mode!r} is unknown; known: {', '.join(MODES)}")
        if not 0.0 <= self.anchor_weight < 1.0:
            raise UserError(
                f"--anchor_weight={self.anchor_weight} is not in [0, 1); 0 is the paper's objective"
            )
        for name, least in (
            ("num_problems", 1),
            ("max_rollout", 2),
            ("top_k", 1),
            ("skip_first", 0),
            ("random_seed", 0),
            ("batch_size", 1),
            ("shard_size", 1),
        ):
            if getattr(self, name) < least:
                raise UserError(f"--{name}={getattr(self, name)}: expected {least} or more")
        if self.skip_first >= self.max_rollout:
            raise UserError(
                f"--skip_first={self.skip_first} leaves no position of --max_rollout="
                f"{self.max_rollout}; expected less"
            )

    def of_rollouts(self) -> dict[str, object]:
        """What rollouts depend on; contrasts that differ in nothing of it share them."""
        names = ("alpha", "num_problems", "max_rollout", "top_k", "batch_size", "shard_size")
        values: dict[str, object] = {name: getattr(self, name) for name in names}
        # The rationales of mode gold are the teacher's.
        return {**values, "gold": self.mode == "gold"}
