"""Which positions of the rollouts are trained on, and toward what; numpy alone.

Enters: what `divergence.compare` says of all positions, and the options. Leaves: the threshold β,
the kept positions, and soft labels with a weight for every position. A mode leaves a part of the
method out, to see what it is worth.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from distill_sbs.contrasting.options import ContrastOptions

# Edges of the histogram of divergences, in nats; the last bin has no end.
HISTOGRAM_EDGES = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)

_SELECTING = ("full", "no_contrast", "gold")


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """Some rollouts, padded.

    Attributes:
      inputs: int32 [N, S], end token included; 0 behind it.
      input_lengths: int32 [N].
      targets: what the expert decoded (mode gold: the teacher's rationale), int32 [N, T].
      lengths: of the targets, int32 [N], end token included.
      divergence: float32 [N, T].
      plausible: int32 [N, T].
      ids: int32 [N, T, K].
      contrast: float32 [N, T, K].
      expert: float32 [N, T, K].
    """

    inputs: np.ndarray
    input_lengths: np.ndarray
    targets: np.ndarray
    lengths: np.ndarray
    divergence: np.ndarray
    plausible: np.ndarray
    ids: np.ndarray
    contrast: np.ndarray
    expert: np.ndarray

    def find_valid(self, skip_first: int) -> np.ndarray:
        """Which positions could be trained on, bool [N, T]."""
        places = np.arange(self.targets.shape[1])
        return (places >= skip_first) & (places < self.lengths[:, None])


@dataclasses.dataclass(frozen=True)
class Figures:
    """What is told of all rollouts; see `data.records.soft_labels.Manifest`."""

    beta: float
    problems: int
    examples: int
    valid: int
    kept: int
    overflow: int
    top_k: int
    mean_divergence: float
    histogram: list[int]


@dataclasses.dataclass(frozen=True)
class SoftLabels:
    """What the positions of some rollouts are trained toward.

    Attributes:
      ids: int32 [N, T, K].
      weights: float32 [N, T, K]; the rows of positions with a weight sum to 1, others are 0.
      step_weights: float32 [N, T]: 1 kept, the anchor's weight valid but not kept, else 0.
    """

    ids: np.ndarray
    weights: np.ndarray
    step_weights: np.ndarray


def choose_beta(divergences: np.ndarray, options: ContrastOptions) -> float:
    """β: as given, or the divergence below which the given share of valid positions lies.

    Args:
      divergences: of all valid positions, [P].
      options: see `ContrastOptions`.
    """
    if options.beta_quantile is None or not len(divergences):
        return options.beta
    return float(np.quantile(divergences, options.beta_quantile, method="higher"))


def choose_kept(divergences: np.ndarray, beta: float, options: ContrastOptions) -> np.ndarray:
    """Which of all valid positions are kept, bool [P].

    In mode random_select they are as many as the threshold would keep, drawn by the seed.
    """
    is_above: np.ndarray = divergences >= np.float32(beta)
    if options.mode in _SELECTING:
        return is_above
    if options.mode != "random_select":
        return np.ones(len(divergences), bool)
    chosen = np.random.default_rng(options.random_seed).permutation(len(divergences))
    kept = np.zeros(len(divergences), bool)
    kept[chosen[: int(is_above.sum())]] = True
    return kept


def make_labels(
    rollouts: Rollouts, valid: np.ndarray, kept: np.ndarray, options: ContrastOptions
) -> SoftLabels:
    """The soft labels and weights of some rollouts.

    Args:
      rollouts: N of them.
      valid: bool [N, T].
      kept: bool [N, T], some of the valid ones.
      options: mode and anchor.
    """
    ids = rollouts.ids.copy()
    wanted = rollouts.contrast
    if options.mode in ("no_contrast", "neither", "gold"):
        wanted = np.zeros_like(rollouts.contrast)
        wanted[..., 0] = 1.0  # the expert's likeliest token is the first
        if options.mode == "gold":
            # In anchors the ids stay the expert's.
            gold = np.zeros_like(ids)
            gold[..., 0] = rollouts.targets
            ids = np.where(kept[..., None], gold, ids)
    has_anchor = valid & ~kept & (options.anchor_weight > 0)
    weights = np.where(kept[..., None], wanted, 0.0)
    weights = np.where(has_anchor[..., None], rollouts.expert, weights).astype(np.float32)
    steps = np.where(kept, 1.0, np.where(has_anchor, options.anchor_weight, 0.0))
    ids = np.where(weights > 0, ids, 0).astype(np.int32)
    return SoftLabels(ids, weights, steps.astype(np.float32))


def count_bins(divergences: np.ndarray) -> list[int]:
    """How many divergences lie in each bin of `HISTOGRAM_EDGES`."""
    counts, _ = np.histogram(divergences, [*HISTOGRAM_EDGES, np.inf])
    return [int(count) for count in counts]
