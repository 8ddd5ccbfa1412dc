"""What a dataset is: a reader of its raw examples, its teachers, and how an answer is scored.

Enters: the description that a file in `tasks/` gives. Leaves: a `DatasetSpec` that `prepare`
(writes records) and `registration` (builds SeqIO tasks and mixtures) share.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping

from etils import epath

from distill_sbs.errors import SourceError as SourceError

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class TeacherOutput:
    """What a teacher gave for one input: the answer in its response.

    Both fields are None where the response could not be parsed: such a row gives no teacher
    label and no rationale, and is counted as unparsed.

    Attributes:
      label: the answer's.
      rationale: the answer's.
      more_rationales: further ones for the same label, of other samples; training may take turns.
      raw: the response that could not be parsed, for a message; None where it was, or nobody knows.
      label_is_gold: whether `label` is the gold label for want of the teacher's own, so that
        comparing the two says nothing of the teacher.
    """

    label: str | None
    rationale: str | None
    more_rationales: tuple[str, ...] = ()
    raw: str | None = dataclasses.field(default=None, compare=False, repr=False)
    label_is_gold: bool = dataclasses.field(default=False, compare=False, repr=False)


@dataclasses.dataclass(frozen=True)
class Example:
    """One raw example: text in, gold label, and what each teacher said of it."""

    id: str
    input: str
    label: str | None  # None where there is no gold label
    teacher_outputs: Mapping[str, TeacherOutput] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class RawSplit:
    """One split as a reader hands it over; `examples()` streams, and can be called again.

    Attributes:
      size: how many examples there are.
      examples: streams them.
      warnings: what looks wrong in the raw data, one line each.
      notes: what was made of the raw data that one could not guess, one line each.
    """

    size: int
    examples: Callable[[], Iterator[Example]]
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


# (source_dir, split) -> RawSplit. Raises `SourceError` on a missing or malformed file.
Reader = Callable[[epath.Path, str], RawSplit]

# (gold label, predicted label) -> is it right?
AnswerCheck = Callable[[str, str], bool]


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """A dataset by name.

    Attributes:
      name: letters, digits and underscores, in small letters by custom; the first part of every
        task and mixture name.
      reader: streams the raw examples of one split.
      is_correct: compares a gold label with a predicted one.
      teachers: the teachers whose outputs the prepared records hold.
      splits: the splits that exist; a dataset without validation or test cannot be evaluated.
      needs_source_dir: False where the reader makes or finds its data itself.
    """

    name: str
    reader: Reader
    is_correct: AnswerCheck
    teachers: tuple[str, ...] = ()
    splits: tuple[str, ...] = SPLITS
    needs_source_dir: bool = True
