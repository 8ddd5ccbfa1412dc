"""What a task needs: a vector r over the capabilities, ≥ 0, that sums to 1.

Enters: a task card, a TOML file of data. Leaves: r, from the first of: the vector in the card; what
interventions (changes of profile and of utility, measured) say; the declared capability alone.

    capability = "label"        # what the task is most about
    interventions = "probe.jsonl"   # optional: the history of a run, which r is learned from
    [requirement]               # optional: r itself, capability → weight
    label = 3.0
    rationale = 1.0
"""

from __future__ import annotations

import dataclasses
import math
import os
import tomllib
from collections.abc import Mapping, Sequence

import numpy as np

from distill_sbs.allocating import history
from distill_sbs.errors import SourceError, UserError, did_you_mean

# Of every other capability where one is declared and nothing more is known.
OTHERS_SHARE = 1e-3
_KEYS = ("name", "description", "capability", "interventions", "requirement")
_ITERATIONS = 5_000
_CARD_BYTES = 1_000_000


@dataclasses.dataclass(frozen=True)
class TaskCard:
    """A task as its card tells it.

    Attributes:
      place: the card's file, for messages.
      capability: the declared capability; None where the card has none.
      requirement: capability → weight; None where the card has none.
      interventions: a history that r is to be learned from, beside the card; None: none.
    """

    place: str
    capability: str | None = None
    requirement: Mapping[str, float] | None = None
    interventions: str | None = None


def find_requirement(card_path: str | None, names: Sequence[str]) -> np.ndarray:
    """r of the capabilities `names`, [K], from a card; every one alike without.

    Raises:
      SourceError: see `read_card`, and of a history `history.read_history`.
      UserError: a capability of the card is none of `names`, or its weights sum to 0.
    """
    if card_path is None:
        return np.full(len(names), 1.0 / len(names))
    card = read_card(card_path)
    interventions = None
    if card.interventions is not None and card.requirement is None:
        measured = history.read_history(card.interventions)
        history.check_capabilities(measured, names, card.interventions)
        interventions = measured.interventions()
        if not len(interventions[0]):
            raise SourceError(
                f"{card.interventions}: fewer than two intervals were evaluated, so nothing can be "
                "learned from it; lower EVALUATION_SHARE there"
            )
    return resolve_requirement(card, names, interventions)


def read_card(path: str) -> TaskCard:
    """The card in a TOML file.

    Raises:
      SourceError: it is missing, no TOML, or holds what a card does not.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(_CARD_BYTES)
        values = tomllib.loads(content.decode("utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise SourceError(f"TASK_CARD={path}: no such file; expected a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SourceError(f"{path}: no TOML ({error})") from None
    for name in values:
        if name not in _KEYS:
            near = did_you_mean(name, _KEYS)
            raise SourceError(f"{path}: a task card has no {name!r}{near}")
    for name in _KEYS[:-1]:
        if name in values and not isinstance(values[name], str):
            raise SourceError(f"{path}: {name} is {values[name]!r}, expected text")
    requirement = values.get("requirement")
    if requirement is not None:
        if not isinstance(requirement, dict):
            raise SourceError(
                f"{path}: requirement is {requirement!r}, expected a table of weights"
            )
        for name, weight in requirement.items():
            is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
            if not is_number or not math.isfinite(weight) or weight < 0:
                raise SourceError(
                    f"{path}: requirement.{name} is {weight!r}, expected a number ≥ 0"
                )
        requirement = {name: float(weight) for name, weight in requirement.items()}
    interventions = values.get("interventions")
    if interventions is not None:
        interventions = os.path.join(os.path.dirname(path), interventions)
    return TaskCard(path, values.get("capability"), requirement, interventions)


def resolve_requirement(
    card: TaskCard,
    capabilities: Sequence[str],
    interventions: tuple[np.ndarray, np.ndarray] | None = None,
) -> np.ndarray:
    """r, float [K]: the card's own, or learned, or the declared capability.

    Args:
      card: the task's.
      capabilities: their names, K of them.
      interventions: see `learn_requirement`; None where there are none.

    Raises:
      UserError: the card names an unknown capability or none at all, or its vector sums to 0.
    """
    named = [*(card.requirement or ()), *([card.capability] if card.capability else [])]
    for name in named:
        if name not in capabilities:
            near = did_you_mean(name, capabilities)
            raise UserError(
                f"{card.place}: unknown capability {name!r}{near}; CAPABILITIES has "
                f"{', '.join(capabilities)}"
            )
    if card.requirement is not None:
        vector = np.array([card.requirement.get(name, 0.0) for name in capabilities])
        if vector.sum() <= 0:
            raise UserError(
                f"{card.place}: the requirement vector sums to 0; give one capability a weight "
                "above 0, or leave [requirement] out"
            )
        return np.asarray(vector / vector.sum())
    if interventions is not None:
        return learn_requirement(*interventions)
    if card.capability is None:
        raise UserError(
            f"{card.place}: neither [requirement] nor capability is there; name the capability "
            "that the task is most about"
        )
    vector = np.full(len(capabilities), OTHERS_SHARE)
    vector[list(capabilities).index(card.capability)] = 1.0
    return np.asarray(vector / vector.sum())


def learn_requirement(changes: np.ndarray, utilities: np.ndarray) -> np.ndarray:
    """The r on the simplex that explains changes of utility best, in least squares.

    Accelerated projected gradient descent: the problem is convex.

    Args:
      changes: δ of each intervention, [N, K].
      utilities: by how much the task's utility changed with each, [N].
    """
    count = changes.shape[1]
    quadratic, linear = changes.T @ changes, changes.T @ utilities
    largest = float(np.linalg.eigvalsh(quadratic)[-1])
    requirement = previous = np.full(count, 1.0 / count)
    if largest <= 0.0:
        return requirement
    momentum = 1.0
    for _ in range(_ITERATIONS):
        following = (1.0 + math.sqrt(1.0 + 4.0 * momentum**2)) / 2.0
        ahead = requirement + (momentum - 1.0) / following * (requirement - previous)
        previous, momentum = requirement, following
        requirement = project_on_simplex(ahead - (quadratic @ ahead - linear) / largest)
    return requirement


def project_on_simplex(vector: np.ndarray) -> np.ndarray:
    """The nearest vector [K] that is ≥ 0 and sums to 1."""
    descending = np.sort(vector)[::-1]
    excess = (np.cumsum(descending) - 1.0) / np.arange(1, len(vector) + 1)
    last = int(np.flatnonzero(descending > excess)[-1])
    return np.asarray(np.maximum(vector - excess[last], 0.0))
