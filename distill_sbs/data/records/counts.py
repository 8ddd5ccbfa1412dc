"""What is counted while records are written: the figures of `info.json`, and what looks wrong.

Enters: examples as they are written. Leaves: figures by name, and warnings in words: outputs that
are hardly ever parsed, that agree with the gold labels by chance or here and not there, inputs that
stand in two splits.
"""

from __future__ import annotations

import array
import collections
import dataclasses
import enum
import math
from collections.abc import Iterator, Mapping
from typing import NotRequired, TypedDict

import numpy as np

from distill_sbs.data.dataset import AnswerCheck, Example, TeacherOutput

# A published teacher leaves 1 % unparsed; past this share the parser or the file is wrong.
_MOST_UNPARSED = 0.2
# Fewer parsed outputs than these say nothing about agreement.
_FEWEST_COMPARED = 10
# PaLM agrees with the gold labels in 65 to 77 % on the paper's datasets, and its splits differ by
# less than 3 percentage points.
_LEAST_AGREEMENT = 0.1
_MOST_DIFFERENCE = 0.25
# With more different labels than these, answers are no choice among few.
_MOST_CLASSES = 10
_RAW_CHARACTERS = 200


class TeacherFigures(TypedDict):
    """What `info.json` says of one teacher's outputs in one split; see `tfrecords.write_split`."""

    unparsed: int
    label_accuracy: float | None
    mean_rationale_words: float | None
    unanswered: NotRequired[int]
    rationales_of: NotRequired[str]


class SplitInfo(TypedDict):
    """What `info.json` says of one split."""

    examples: int
    teachers: dict[str, TeacherFigures]


class Info(TypedDict):
    """What `info.json` says of a prepared dataset."""

    dataset: str
    format_version: int
    splits: dict[str, SplitInfo]


class State(enum.Enum):
    """What became of the question to the teacher: a count of its own for each but the first."""

    ANSWERED = enum.auto()
    UNANSWERED = enum.auto()
    LEFT_OUT = enum.auto()  # parsed, and not to be kept: another label than the gold one, say


class TeacherCounts:
    """What `info.json` says of one teacher in one split."""

    def __init__(self) -> None:
        self.outputs = self.unparsed = self.unanswered = self.left_out = 0
        self.gold_labels = self.right = self.compared = 0
        self.own_labels = self.gold_copies = 0
        self.rationales = self.rationale_words = 0
        self.classes: set[str] = set()
        self.first_unparsed: tuple[str, str] | None = None  # (id, raw text)

    def add(
        self,
        gold: str | None,
        output: TeacherOutput | None,
        is_correct: AnswerCheck,
        example_id: str = "",
        state: State = State.ANSWERED,
    ) -> None:
        """Counts one example.

        Args:
          gold: its gold label.
          output: None where the teacher was not asked.
          is_correct: compares the two labels.
          example_id: for the message about the first unparsed output.
          state: what became of the question.
        """
        label = output.label if output else None
        if output is not None:
            self.outputs += 1
            self.unparsed += label is None
            self.unanswered += state == State.UNANSWERED
            self.left_out += state == State.LEFT_OUT
            self.own_labels += label is not None and not output.label_is_gold
            self.gold_copies += label is not None and output.label_is_gold
            if label is None and output.raw is not None and self.first_unparsed is None:
                self.first_unparsed = example_id, output.raw
            if output.rationale is not None:
                self.rationales += 1
                self.rationale_words += len(output.rationale.split())
        if gold is not None:
            self.gold_labels += 1
            self.compared += label is not None
            self.right += label is not None and is_correct(gold, label)
            if len(self.classes) <= _MOST_CLASSES:
                self.classes.add(gold)

    @property
    def is_compared_with_itself(self) -> bool:
        """Whether every label is the gold one for want of the teacher's own."""
        return bool(self.gold_copies) and not self.own_labels

    def summary(self) -> TeacherFigures:
        """The figures by name; see `tfrecords.write_split`."""
        says_something = self.gold_labels and not self.is_compared_with_itself
        return {
            "unparsed": self.unparsed,
            "label_accuracy": self.right / self.gold_labels if says_something else None,
            "mean_rationale_words": (
                self.rationale_words / self.rationales if self.rationales else None
            ),
        }


@dataclasses.dataclass
class SplitCounts:
    """What is counted in one split: its teachers, and a 64-bit hash of each input."""

    teachers: dict[str, TeacherCounts] = dataclasses.field(default_factory=dict)
    inputs: array.array[int] = dataclasses.field(default_factory=lambda: array.array("q"))

    def add(self, example: Example, is_correct: AnswerCheck) -> None:
        """Counts one example for every teacher."""
        self.inputs.append(hash(example.input))
        for teacher, count in self.teachers.items():
            output = example.teacher_outputs.get(teacher)
            count.add(example.label, output, is_correct, example.id)


def warn_of_leaks(splits: Mapping[str, SplitCounts]) -> Iterator[str]:
    """One line for each evaluation split of which inputs stand in the training split too."""
    hashes = {split: np.frombuffer(counts.inputs, np.int64) for split, counts in splits.items()}
    for split, own in hashes.items():
        if split == "train" or "train" not in hashes or not len(own):
            continue
        count = int(np.isin(own, hashes["train"]).sum())
        if count:
            yield (
                f"{count:,} of {len(own):,} inputs of {split} ({count / len(own):.1%}) stand in "
                f"train too: accuracy on {split} flatters by as much"
            )


def warn_of_outputs(split: str, teacher: str, counts: TeacherCounts) -> Iterator[str]:
    """What is implausible in one teacher's outputs for one split, one line each."""
    answered = counts.outputs - counts.unanswered
    unparsed = counts.unparsed - counts.unanswered - counts.left_out
    if answered and unparsed / answered > _MOST_UNPARSED:
        yield (
            f"{split}: {unparsed:,} of {answered:,} outputs of {teacher} "
            f"({unparsed / answered:.0%}) hold no label and rationale in the expected form; are "
            "they another teacher's, or of another prompt?"
        )
    if counts.is_compared_with_itself or counts.compared < _FEWEST_COMPARED:
        return
    agreement = counts.right / counts.compared
    told = f"{split}: the labels of {teacher} that could be parsed agree with the gold labels in "
    told += f"{agreement:.1%} of {counts.compared:,} examples"
    classes = len(counts.classes)
    if agreement < _LEAST_AGREEMENT:
        yield f"{told}; do the outputs belong to other inputs, or write the labels otherwise?"
    elif 2 <= classes <= _MOST_CLASSES:
        chance = 1 / classes
        error = math.sqrt(chance * (1 - chance) / counts.compared)
        if agreement <= chance + 2 * error:
            yield f"{told}, as guessing among {classes} would; do they belong to other inputs?"


def warn_of_differences(info: Info) -> Iterator[str]:
    """One line for each teacher whose agreement with gold labels is another in another split.

    Args:
      info: the whole `info.json`.
    """
    # teacher -> split -> (agreement, outputs compared)
    agreements: dict[str, dict[str, tuple[float, int]]] = collections.defaultdict(dict)
    for split, entry in info["splits"].items():
        for teacher, figures in entry["teachers"].items():
            compared = entry["examples"] - figures["unparsed"]
            if figures["label_accuracy"] is not None and compared >= _FEWEST_COMPARED:
                agreement = min(1.0, figures["label_accuracy"] * entry["examples"] / compared)
                agreements[teacher][split] = agreement, compared
    for teacher, by_split in agreements.items():
        in_order = sorted(by_split, key=lambda split: agreements[teacher][split][0])
        low, high = in_order[0], in_order[-1]
        (least, compared_low), (most, compared_high) = by_split[low], by_split[high]
        noise = math.sqrt(0.25 / compared_low + 0.25 / compared_high)
        if most - least > max(_MOST_DIFFERENCE, 2 * noise):
            yield (
                f"the labels of {teacher} agree with the gold labels in {most:.1%} of {high} but "
                f"{least:.1%} of {low}; are the files of both splits that teacher's own outputs?"
            )


def describe_unparsed(split: str, teacher: str, counts: TeacherCounts) -> str | None:
    """The first output that could not be parsed, in one line; None where its text is unknown."""
    if counts.first_unparsed is None:
        return None
    example_id, raw = counts.first_unparsed
    shown = " ".join(raw[: 10 * _RAW_CHARACTERS].split())
    if len(shown) > _RAW_CHARACTERS:
        shown = shown[:_RAW_CHARACTERS] + " …"
    number = f"the first of {counts.unparsed:,} outputs" if counts.unparsed > 1 else "the output"
    return (
        f"{split}: {number} of {teacher} that could not be parsed (id {example_id}): "
        f"{shown or '(empty)'}"
    )
