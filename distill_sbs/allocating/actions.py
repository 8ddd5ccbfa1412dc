"""The mixtures that an interval may be spent on.

Enters: a requirement vector [K]. Leaves: candidates, vectors [K] that sum to 1 with at most two
capabilities in each, all of them among the `top_k` that the task needs most.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

MOST_CANDIDATES = 50


def rank_capabilities(requirement: np.ndarray, top_k: int) -> list[int]:
    """The `top_k` capabilities that are needed most; the first of equals first."""
    ranked: list[int] = np.argsort(-requirement, kind="stable")[:top_k].tolist()
    return ranked


def candidate_mixtures(
    requirement: np.ndarray,
    top_k: int = 3,
    grid: Sequence[float] = (0.25, 0.5, 0.75),
    include_one_hot: bool = False,
) -> np.ndarray:
    """Candidates, float [A, K], each once; the uniform mixture alone where there is none.

    Args:
      requirement: r, [K].
      top_k: how many capabilities take part.
      grid: the weights of the first of a pair; the second has the rest.
      include_one_hot: whether a capability alone is a candidate.
    """
    pool = rank_capabilities(requirement, top_k)
    count = len(requirement)
    found: dict[tuple[float, ...], np.ndarray] = {}

    def add(mixture: np.ndarray) -> None:
        mixture = mixture / mixture.sum()
        found.setdefault(tuple(np.round(mixture, 6).tolist()), mixture)

    if include_one_hot:
        for capability in pool:
            add(np.eye(count)[capability])
    for first, second in itertools.combinations(pool, 2):
        for weight in grid:
            mixture = np.zeros(count)
            mixture[first], mixture[second] = weight, 1.0 - weight
            add(mixture)
    if not found:
        add(np.ones(count))
    return np.array(list(found.values())[:MOST_CANDIDATES])
