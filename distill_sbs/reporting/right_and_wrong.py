"""What a student said to a split, as a page for people: what it confuses, and examples.

Enters: every input with its gold label and the student's answer; of some the student's rationale
and the teacher's; the folder of its run. Leaves: a `Document` of tables and the curves of its
training, which `page` writes.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from distill_sbs.errors import UserError
from distill_sbs.reporting.document import Document
from distill_sbs.reporting.drawing import Figure
from distill_sbs.reporting.figures import Drawer
from distill_sbs.reporting.findings import find
from distill_sbs.reporting.reading import read_runs
from distill_sbs.reporting.table_form import Column, Entry, Table

# More labels than these are no closed set, and make no table that one could read.
MOST_LABELS = 20
# Right answers that are shown, and as many wrong ones.
SHOWN = 10
_OTHER = "another text"


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a student said to one input.

    Attributes:
      input: the text, without a prefix.
      label: the gold one.
      answer: the student's.
      is_right: whether it counts as the label.
      rationale: the student's own; None where it was not asked.
      teacher_rationale: None where the records hold none.
    """

    input: str
    label: str
    answer: str
    is_right: bool
    rationale: str | None = None
    teacher_rationale: str | None = None


def choose_shown(is_right: Sequence[bool], seed: int = 0) -> list[int]:
    """Which answers are shown: `SHOWN` right and as many wrong ones, drawn by seed, in order."""
    draws = np.random.default_rng(seed)
    chosen: list[int] = []
    for wanted in (True, False):
        numbers = [number for number, right in enumerate(is_right) if right == wanted]
        chosen += draws.permutation(numbers)[:SHOWN].tolist() if numbers else []
    return sorted(chosen)


def make_document(
    about: str,
    metrics: Mapping[str, object],
    answers: Sequence[Answer],
    shown: Sequence[int],
    teacher: str | None,
    figures: Sequence[Figure] = (),
) -> Document:
    """The page on a student's answers.

    Args:
      about: what was evaluated on what, a sentence.
      metrics: by name.
      answers: to every input of the split.
      shown: the numbers of those that are shown in full.
      teacher: whose rationales stand beside the student's; None: nobody's.
      figures: what else is known of it, see `draw_training`.
    """
    tables = [_metrics_table(metrics)]
    confusion = _confusion_table(answers)
    tables += [confusion] if confusion else []
    for is_right in (False, True):
        own = [answers[number] for number in shown if answers[number].is_right == is_right]
        if own:
            count = sum(each.is_right == is_right for each in answers)
            tables.append(_examples_table(own, is_right, count, teacher))
    return Document(about, (), tuple(tables), tuple(figures), ())


def draw_training(run_folder: str, split: str) -> list[Figure]:
    """Losses and validation accuracy of a finished run; nothing where its folder tells of none."""
    try:
        findings = find(read_runs(run_folder).runs, split)
    except UserError:  # a checkpoint alone, or in gs://: what is left of the page is no worse
        return []
    return [draw() for draw in Drawer(findings).over_steps()]


def _metrics_table(metrics: Mapping[str, object]) -> Table:
    rows = [
        (Entry(name.replace("_", " ")), Entry(value, f"{value:,.4g}"))
        for name, value in metrics.items()
        if isinstance(value, int | float)
    ]
    columns = (Column("metric", "metric"), Column("value", "value", is_number=True))
    return Table("metrics", "Metrics", "Shares from 0 to 1.", columns, tuple(rows))


def _confusion_table(answers: Sequence[Answer]) -> Table | None:
    """How often each label got each answer; None where labels are no closed set."""
    labels = sorted({each.label for each in answers})
    if len(labels) > MOST_LABELS:
        return None
    counts = collections.Counter(
        (each.label, each.label if each.is_right else each.answer) for each in answers
    )
    known = set(labels)
    others = sum(number for (_, said), number in counts.items() if said not in known)
    said = [*labels, *([_OTHER] if others else [])]
    rows = []
    for label in labels:
        of_label = {each: counts[label, each] for each in labels}
        total = sum(number for (gold, _), number in counts.items() if gold == label)
        of_label[_OTHER] = total - sum(of_label.values())
        share = of_label[label] / total
        rows.append(
            (
                Entry(label),
                *(Entry(of_label[each], f"{of_label[each]:,}") for each in said),
                Entry(share, f"{share:.1%}"),
            )
        )
    columns = (
        Column("gold", "gold label"),
        *(Column(f"said_{number}", f"said: {each}", True) for number, each in enumerate(said)),
        Column("right", "right", True),
    )
    note = f"A row for each of the {len(labels)} gold labels: how often it got which answer."
    return Table("confusion", "What is taken for what", note, columns, tuple(rows))


def _examples_table(
    own: Sequence[Answer], is_right: bool, count: int, teacher: str | None
) -> Table:
    what = "right" if is_right else "wrong"
    columns = [
        Column("input", "input", is_prose=True),
        Column("label", "gold label"),
        Column("answer", "the student's answer"),
        Column("rationale", "the student's rationale", is_prose=True),
    ]
    if teacher is not None:
        columns.append(Column("teacher", f"the rationale of {teacher}", is_prose=True))
    rows = [
        tuple(
            Entry(value)
            for value in (
                each.input,
                each.label,
                each.answer,
                each.rationale,
                *([each.teacher_rationale] if teacher is not None else []),
            )
        )
        for each in own
    ]
    note = (
        f"{len(own)} of the {count:,} {what} answers, drawn at random. A rationale is decoded for "
        "itself: the answer does not depend on it."
    )
    return Table(what, f"{what.capitalize()} answers", note, tuple(columns), tuple(rows))
