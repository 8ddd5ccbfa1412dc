"""Tasks whose targets a teacher writes while a run goes.

Enters: a task of a teacher whose outputs the records do not hold, and what that teacher says when
it is asked. Leaves: the task's sequences, their targets filled in as they come. A row goes through
the task's own preprocessors, so that methods, fractions and filters are those of prepared data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import seqio
import tensorflow as tf

from distill_sbs import constants
from distill_sbs.allocating import interval_plan
from distill_sbs.allocating.interval_plan import IntervalPlan, TaskTokens
from distill_sbs.data import settings
from distill_sbs.data.batches import input_pipeline, layout
from distill_sbs.data.batches.sampler import TokenisedTask
from distill_sbs.data.dataset import Example, TeacherOutput
from distill_sbs.data.records import joining, tfrecords
from distill_sbs.data.tasks import lookup, names
from distill_sbs.errors import UserError

# dataset, split, examples → what the teacher says of each, by id.
Ask = Callable[[str, str, Sequence[Example]], Mapping[str, TeacherOutput]]

# Stands where the teacher has not written anything yet.
_UNWRITTEN = "?"


@dataclasses.dataclass(frozen=True)
class LiveTask:
    """A task, and the examples that its training sequences are made of.

    Attributes:
      task: its preprocessors are what rows go through.
      teacher: who writes its targets.
      dataset: whose examples they are.
      examples: of the training split, by index.
      indices: of each sequence its example, [N].
      limits: TASK_FEATURE_LENGTHS.
    """

    task: seqio.Task
    teacher: str
    dataset: str
    examples: Mapping[int, Example]
    indices: np.ndarray
    limits: Mapping[str, int]

    def example(self, number: int) -> Example:
        """What a sequence is made of."""
        return self.examples[int(self.indices[number])]

    def of_sequences(self, numbers: np.ndarray) -> LiveTask:
        """The task with these of its sequences alone."""
        return dataclasses.replace(self, indices=self.indices[numbers])


def is_live(task: seqio.Task, teacher: str | None) -> bool:
    """Whether a task's targets are `teacher`'s, who is asked while the run goes."""
    info = lookup.get_task_info(task)
    return teacher is not None and info is not None and info.teacher == teacher


def check_live(task: seqio.Task, teacher: str) -> None:
    """Refuses what a live teacher cannot write.

    Raises:
      UserError: the task's inputs hold rationales, or the records hold outputs of that teacher.
    """
    info = lookup.get_task_info(task)
    assert info is not None
    if info.method == "pinto":
        raise UserError(
            f"task {task.name!r} has its teacher's rationales in its inputs, whose lengths have to "
            "be known beforehand; a live teacher writes targets alone"
        )
    if teacher in names.find_joined_teachers(info.dataset):
        raise UserError(
            f"LIVE_TEACHER={teacher!r}: the records of {info.dataset} hold outputs of that teacher;"
            " set LIVE_TEACHER = None to train on them, or give the live one another name"
        )


def load_live(
    task: seqio.Task, teacher: str, limits: Mapping[str, int]
) -> tuple[LiveTask, TokenisedTask]:
    """The training split of a live task, nothing of it written yet.

    Returns:
      The task, and its sequences: their inputs are those that they will have, their targets none.

    Raises:
      UserError: no example can have a target, whatever the teacher says.
    """
    examples = _read_split(task, "train")
    tokenised = _tokenise(task, teacher, "train", examples, None, limits)
    name = lookup.dataset_of(task).name
    return LiveTask(task, teacher, name, examples, tokenised.indices, limits), tokenised


def load_probes(
    task: seqio.Task, teacher: str, limits: Mapping[str, int], probes: int, ask: Ask
) -> tuple[TokenisedTask, Sequence[str]]:
    """The first `probes` of a live task's validation split that the teacher answers.

    Returns:
      Their sequences, and the input texts of the whole split.

    Raises:
      UserError: the teacher answered none of them.
    """
    examples = _read_split(task, "validation")
    whole = _tokenise(task, teacher, "validation", examples, None, limits)
    first = {index: examples[index] for index in whole.indices[:probes].tolist()}
    outputs = ask(lookup.dataset_of(task).name, "validation", list(first.values()))
    return _tokenise(task, teacher, "validation", first, outputs, limits), whole.input_texts


def leave_unwritten(each: TaskTokens, longest: int) -> TaskTokens:
    """A task's lengths before anything is written: every target as long as it may become."""
    count = len(each.targets)
    return dataclasses.replace(
        each,
        targets=np.full(count, longest, each.targets.dtype),
        states=np.full(count, interval_plan.UNWRITTEN),
    )


def write_targets(
    each: TaskTokens,
    live: LiveTask,
    numbers: Sequence[int],
    outputs: Mapping[str, TeacherOutput],
) -> dict[int, layout.Sequence2Sequence]:
    """What a teacher wrote, as sequences by number; those that it wrote in vain have none.

    Args:
      each: the task's lengths and states, which change in place.
      live: the task.
      numbers: the sequences that were asked about.
      outputs: by example.
    """
    assert each.states is not None
    vocabulary = live.task.output_features[constants.TARGETS].vocabulary
    limit = live.limits[constants.TARGETS]
    parsed: dict[int, Example] = {}
    number_of: dict[int, int] = {}
    for number in numbers:
        example = live.example(number)
        output = outputs[example.id]
        text = output.raw or output.rationale
        each.states[number] = interval_plan.USELESS
        each.targets[number] = min(len(vocabulary.encode(text)) + 1, limit) if text else 0
        if output.rationale is not None:
            index = int(live.indices[number])
            parsed[index], number_of[index] = example, number
    written: dict[int, layout.Sequence2Sequence] = {}
    if not parsed:
        return written
    try:
        tokenised = _tokenise(live.task, live.teacher, "train", parsed, outputs, live.limits)
    except UserError:  # a filter takes all of them out
        return written
    for index, sequence in zip(tokenised.indices.tolist(), tokenised.sequences, strict=True):
        number = number_of[index]
        written[number] = sequence
        each.targets[number] = len(sequence.targets)
        each.states[number] = interval_plan.WRITTEN
    return written


def resolve(
    plan: Callable[[], IntervalPlan],
    write: Callable[[Sequence[tuple[int, int]]], None],
) -> IntervalPlan:
    """Plans, has the teacher write what the plan wants, and plans again, until it wants nothing.

    Args:
      plan: of the interval, with what is written by then.
      write: fills targets in; told their (task, sequence) numbers.
    """
    while True:
        found = plan()
        if not found.unwritten:
            return found
        write(found.unwritten)


def _read_split(task: seqio.Task, split: str) -> dict[int, Example]:
    """A split's examples by index."""
    dataset = lookup.dataset_of(task).name
    return dict(enumerate(joining.read_all(settings.current().folder, dataset, split, ())))


def _tokenise(
    task: seqio.Task,
    teacher: str,
    split: str,
    examples: Mapping[int, Example],
    outputs: Mapping[str, TeacherOutput] | None,
    limits: Mapping[str, int],
) -> TokenisedTask:
    """Examples by index, as their records would be, through the task's own preprocessors.

    Without `outputs` a mark stands in the place of each, with the gold label.

    Raises:
      UserError: none of them has a target.
    """

    def output_of(example: Example) -> TeacherOutput:
        if outputs is None:
            return TeacherOutput(example.label or _UNWRITTEN, _UNWRITTEN)
        return outputs[example.id]

    said = [output_of(each) for each in examples.values()]
    fields = {
        constants.INDEX: tf.constant(list(examples), tf.int64),
        constants.ID: [each.id for each in examples.values()],
        constants.INPUT: [each.input for each in examples.values()],
        constants.LABEL: [each.label or "" for each in examples.values()],
        tfrecords.label_key(teacher): [each.label or "" for each in said],
        tfrecords.rationale_key(teacher): [each.rationale or "" for each in said],
        tfrecords.more_rationales_key(teacher): tf.zeros([len(said), 0], tf.string),
        "is_train": [split == "train"] * len(said),
    }
    source = seqio.FunctionDataSource(
        lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensor_slices(fields),
        splits=[split],
    )
    from_memory = seqio.Task(
        name=task.name,
        source=source,
        output_features=task.output_features,
        preprocessors=task.preprocessors,
    )
    return input_pipeline.tokenise(from_memory, split, limits)
