"""The control `shuffled`: each example with the rationale of another.

Enters: examples with a teacher's outputs. Leaves: the same, with a second teacher that argues for
something else; or, for records that are joined (`joining.join_shuffled`), who takes whose
rationale. What distilling step-by-step gains over it is what a rationale says of its own example;
what it gains over labels alone may be no more than practice in writing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from distill_sbs.data.dataset import Example

SHUFFLED_TEACHER = "shuffled"


def go_round(count: int, seed: int) -> list[int]:
    """For each of `count` places the place whose rationale it takes: one seeded cycle."""
    order = np.random.default_rng(seed).permutation(count).tolist()
    taken = [0] * count
    for place, other in zip(order, [*order[1:], *order[:1]], strict=True):
        taken[place] = other
    return taken


def add_shuffled_teacher(
    examples: Sequence[Example], teacher: str, seed: int
) -> tuple[Example, ...]:
    """Adds the teacher `shuffled`: the label of `teacher`, and its rationale of another example.

    The rationales go round in one seeded cycle, so none stays where it belongs.
    """
    shuffled = []
    for example, taken in zip(examples, go_round(len(examples), seed), strict=True):
        own = example.teacher_outputs[teacher]
        other = examples[taken].teacher_outputs[teacher]
        wrong = dataclasses.replace(own, rationale=other.rationale)
        outputs = {**example.teacher_outputs, SHUFFLED_TEACHER: wrong}
        shuffled.append(dataclasses.replace(example, teacher_outputs=outputs))
    return tuple(shuffled)
