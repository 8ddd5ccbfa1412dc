"""An example's label and its rationale, drawn as one.

Enters: the tokenised label tasks and rationale tasks of a mixture. Leaves: label tasks, each with
the rationale task as its partner, both of the same examples in the same order: those that have
both. A rationale is missing where the teacher's output could not be parsed or was filtered out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from distill_sbs.data.batches.layout import Sequence2Sequence
from distill_sbs.data.batches.sampler import TokenisedTask
from distill_sbs.errors import UserError


def pair_mixture(
    names: Sequence[tuple[str, str]], tasks: Sequence[TokenisedTask], rates: Sequence[float]
) -> tuple[list[TokenisedTask], list[float]]:
    """Pairs the tasks of a mixture.

    Args:
      names: of the label and the rationale task of each dataset, as `registration.find_pairs` has
        them.
      tasks: all of them.
      rates: at which the mixture draws from each.

    Returns:
      The label tasks with their partners, and the rate at which pairs are drawn of each.

    Raises:
      UserError: a label and a rationale are drawn at different rates, or no example has both.
    """
    by_name = {task.name: (task, rate) for task, rate in zip(tasks, rates, strict=True)}
    paired, rates_of_pairs = [], []
    for label, rationale in names:
        (labels, rate), (rationales, other) = by_name[label], by_name[rationale]
        if rate != other:
            raise UserError(
                f"{label} is drawn at rate {rate:g}, {rationale} at {other:g}; with "
                "MUTUAL_INFORMATION_WEIGHT above 0 every example comes once with each: expected "
                "equal rates"
            )
        paired.append(pair_tasks(labels, rationales))
        rates_of_pairs.append(rate)
    return paired, rates_of_pairs


def pair_tasks(labels: TokenisedTask, rationales: TokenisedTask) -> TokenisedTask:
    """The label task of the examples that have a rationale too, with these as its partner.

    Raises:
      UserError: no example has both.
    """
    shared, of_labels, of_rationales = np.intersect1d(
        labels.indices, rationales.indices, assume_unique=True, return_indices=True
    )
    if not len(shared):
        raise UserError(
            f"no training example has both a row of {labels.name} and one of {rationales.name}: "
            "there is nothing to pair; set MUTUAL_INFORMATION_WEIGHT = 0.0, or prepare the data "
            "with more of the teacher's outputs"
        )
    partner = _restrict(rationales, shared, of_rationales)
    return dataclasses.replace(_restrict(labels, shared, of_labels), partner=partner)


def _restrict(task: TokenisedTask, indices: np.ndarray, places: np.ndarray) -> TokenisedTask:
    """The task of some of its examples, in the order of `places`."""

    def take(sequences: Sequence[Sequence2Sequence]) -> list[Sequence2Sequence]:
        return [sequences[place] for place in places]

    def redraw(epoch: int) -> list[Sequence2Sequence]:
        return take(task.of_epoch(epoch))

    return dataclasses.replace(
        task,
        sequences=take(task.sequences),
        indices=indices,
        redraw=redraw if task.redraw else None,
        left_out=len(task.sequences) - len(places),
    )
