"""An example's label and its rationale, drawn as one.

Enters: the tokenised label tasks and rationale tasks of a mixture. Leaves: label tasks, each with
the rationale task as its partner, both of the same examples in the same order: those that have
both. A rationale is missing where the teacher's output could not be parsed or was filtered out.

Where the encoder is shared, both have one input, which stands with the label alone; and unless
every pair must be complete, examples that lack one of the two stay, with an empty target there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from distill_sbs.data.batches.layout import Sequence2Sequence
from distill_sbs.data.batches.sampler import TokenisedTask
from distill_sbs.errors import UserError

_NOTHING = np.zeros(0, np.int32)
_ABSENT = -1  # in the place of a sequence's number


def pair_mixture(
    names: Sequence[tuple[str, str]],
    tasks: Sequence[TokenisedTask],
    rates: Sequence[float],
    *,
    shared_encoder: bool = False,
    complete: bool = True,
) -> tuple[list[TokenisedTask], list[float]]:
    """Pairs the tasks of a mixture.

    Args:
      names: of the label and the rationale task of each dataset, as `registration.find_pairs` has
        them.
      tasks: all of them.
      rates: at which the mixture draws from each.
      shared_encoder: whether a pair has one input.
      complete: whether examples that lack one of the two are left out.

    Returns:
      The label tasks with their partners, and the rate at which pairs are drawn of each: that of
      the label.

    Raises:
      UserError: pairs are complete, and a label and a rationale are drawn at different rates; or no
        example has both; or the two have different inputs where the encoder is shared.
    """
    by_name = {task.name: (task, rate) for task, rate in zip(tasks, rates, strict=True)}
    paired, rates_of_pairs = [], []
    for label, rationale in names:
        (labels, rate), (rationales, other) = by_name[label], by_name[rationale]
        if rate != other and complete:
            raise UserError(
                f"{label} is drawn at rate {rate:g}, {rationale} at {other:g}; with "
                "MUTUAL_INFORMATION_WEIGHT above 0 every example comes once with each: expected "
                "equal rates"
            )
        if shared_encoder:
            paired.append(share_inputs(labels, rationales, complete))
        else:
            paired.append(pair_tasks(labels, rationales))
        rates_of_pairs.append(rate)
    return paired, rates_of_pairs


def pair_tasks(labels: TokenisedTask, rationales: TokenisedTask) -> TokenisedTask:
    """The label task of the examples that have a rationale too, with these as its partner.

    Raises:
      UserError: no example has both.
    """
    shared, of_labels, of_rationales = _find_complete(labels, rationales)
    partner = _restrict(rationales, shared, of_rationales)
    return dataclasses.replace(_restrict(labels, shared, of_labels), partner=partner)


def share_inputs(
    labels: TokenisedTask, rationales: TokenisedTask, complete: bool = False
) -> TokenisedTask:
    """The label task with the rationales as its partner, whose sequences have no inputs.

    They answer the inputs of their labels. Unless `complete`, examples that lack one of the two
    stay, and their label or rationale has no tokens.

    Raises:
      UserError: no example has both, or the inputs of the two differ.
    """
    indices, of_labels, of_rationales = _find_complete(labels, rationales)
    for one, other in zip(of_labels, of_rationales, strict=True):
        if not np.array_equal(labels.sequences[one].inputs, rationales.sequences[other].inputs):
            raise UserError(
                f"SHARED_ENCODER = True: {labels.name} and {rationales.name} have different inputs "
                f"for example {labels.indices[one]} of the training split; expected the same for "
                "both, or set SHARED_ENCODER = False"
            )
    if not complete:
        indices = np.union1d(labels.indices, rationales.indices)
        of_labels, of_rationales = (_locate(each, indices) for each in (labels, rationales))

    def ask(number: int, sequence: Sequence2Sequence | None) -> Sequence2Sequence:
        if sequence is not None:
            return sequence
        inputs = rationales.sequences[of_rationales[number]].inputs
        return Sequence2Sequence(inputs, _NOTHING, _NOTHING)

    def answer(_: int, sequence: Sequence2Sequence | None) -> Sequence2Sequence:
        if sequence is not None:
            return dataclasses.replace(sequence, inputs=_NOTHING)
        return Sequence2Sequence(_NOTHING, _NOTHING, _NOTHING)

    partner = _restrict(rationales, indices, of_rationales, answer)
    partner = dataclasses.replace(
        partner,
        others=[dataclasses.replace(each, inputs=_NOTHING) for each in rationales.others],
        shared_encoder=True,
    )
    asked = _restrict(labels, indices, of_labels, ask)
    return dataclasses.replace(asked, partner=partner, shared_encoder=True)


def _find_complete(
    labels: TokenisedTask, rationales: TokenisedTask
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The examples that have both, and their places in the one and in the other task."""
    shared, of_labels, of_rationales = np.intersect1d(
        labels.indices, rationales.indices, assume_unique=True, return_indices=True
    )
    if not len(shared):
        raise UserError(
            f"no training example has both a row of {labels.name} and one of {rationales.name}: "
            "there is nothing to pair; set MUTUAL_INFORMATION_WEIGHT = 0.0 and SHARED_ENCODER = "
            "False, or prepare the data with more of the teacher's outputs"
        )
    return shared, of_labels, of_rationales


def _locate(task: TokenisedTask, indices: np.ndarray) -> np.ndarray:
    """The place of each example in a task, `_ABSENT` where it has none, int64 [N]."""
    order = np.argsort(task.indices)
    found = np.searchsorted(task.indices, indices, sorter=order)
    places = order[np.minimum(found, len(order) - 1)]
    located: np.ndarray = np.where(task.indices[places] == indices, places, _ABSENT)
    return located


def _keep(_: int, sequence: Sequence2Sequence | None) -> Sequence2Sequence:
    assert sequence is not None
    return sequence


def _restrict(
    task: TokenisedTask,
    indices: np.ndarray,
    places: np.ndarray,
    change: Callable[[int, Sequence2Sequence | None], Sequence2Sequence] = _keep,
) -> TokenisedTask:
    """The task of some of its examples, in the order of `places`.

    Args:
      task: the task.
      indices: the examples.
      places: where each stands in the task, or `_ABSENT`.
      change: from its number and its sequence, None where it is absent, to the one that is drawn.
    """

    def take(sequences: Sequence[Sequence2Sequence]) -> list[Sequence2Sequence]:
        return [
            change(number, None if place == _ABSENT else sequences[place])
            for number, place in enumerate(places)
        ]

    def redraw(epoch: int) -> list[Sequence2Sequence]:
        return take(task.of_epoch(epoch))

    empty = int(np.count_nonzero(places == _ABSENT))
    return dataclasses.replace(
        task,
        sequences=take(task.sequences),
        indices=indices,
        redraw=redraw if task.redraw else None,
        left_out=len(task.sequences) - (len(places) - empty),
        empty=empty,
    )
