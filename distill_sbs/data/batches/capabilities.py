"""The data of an allocation: what is trained on for each capability, and its probes.

Enters: tasks or mixtures by capability, feature lengths; of a live teacher, how it is asked
(`live_targets`). Leaves: the tokenised sequences of every task, without those that stand among what
is evaluated; held-out sequences to probe the student with; one shape that every batch fits,
whatever it is mixed of. All targets count alike: the loss of an interval is the mean over its
tokens.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import seqio

from distill_sbs import constants
from distill_sbs.allocating.interval_plan import TaskTokens
from distill_sbs.allocating.overlap import fingerprint
from distill_sbs.data import registration
from distill_sbs.data.batches import input_pipeline, layout, live_targets
from distill_sbs.errors import UserError

_BATCHES_LOOKED_AT = 64
_LAYOUT_SEED = 0
# How much longer rows are made at a time until every batch goes in.
_STRETCH = 1.02
_DEVIATIONS = 3.5


@dataclasses.dataclass(frozen=True)
class CapabilityData:
    """See the module.

    Attributes:
      tasks: of all capabilities, with the lengths of their sequences.
      sequences: of each task, as many.
      probes: held-out sequences, by capability.
      refused: by task, how many training sequences stand in what is evaluated.
      live: the number of a task → it, where a teacher writes its targets while the run goes.
    """

    tasks: Sequence[TaskTokens]
    sequences: Sequence[list[layout.Sequence2Sequence]]
    probes: Sequence[Sequence[layout.Sequence2Sequence]]
    refused: Mapping[str, int]
    live: Mapping[int, live_targets.LiveTask] = dataclasses.field(default_factory=dict)

    def write(self, unwritten: Sequence[tuple[int, int]], ask: live_targets.Ask) -> None:
        """Has a live teacher write the targets of (task, sequence) numbers, each asked once."""
        for dataset in dict.fromkeys(self.live[task].dataset for task, _ in unwritten):
            own = [each for each in unwritten if self.live[each[0]].dataset == dataset]
            examples = {
                example.id: example
                for example in (self.live[task].example(number) for task, number in own)
            }
            outputs = ask(dataset, "train", list(examples.values()))
            for task in dict.fromkeys(task for task, _ in own):
                numbers = [number for of, number in own if of == task]
                written = live_targets.write_targets(
                    self.tasks[task], self.live[task], numbers, outputs
                )
                for number, sequence in written.items():
                    self.sequences[task][number] = _count_alike(sequence)

    def take(self, members: np.ndarray) -> list[layout.Sequence2Sequence]:
        """The sequences of (task, sequence) numbers, int [B, 2]."""
        return [self.sequences[task][number] for task, number in members.tolist()]

    def mean_tokens(self) -> float:
        """Of a sequence, input and target, in the mean over capabilities."""
        means = [0.0] * len(self.probes)
        for task in self.tasks:
            means[task.capability] += task.share * float((task.inputs + task.targets).mean())
        return sum(means) / len(means)

    def probe_batches(self, capability: int, rows: int) -> Iterator[layout.Batch]:
        """A capability's probes, in batches of the shape that those of all capabilities have."""
        every = list(itertools.chain.from_iterable(self.probes))
        longest = layout.measure(every).max(axis=0)
        shape = layout.BatchShape(rows, int(longest[0]), int(longest[1]))
        own = self.probes[capability]
        for start in range(0, len(own), rows):
            yield layout.fill(own[start : start + rows], layout.Layout(shape, shape))


def find_capabilities(
    given: Mapping[str, object], live_teacher: str | None
) -> dict[str, seqio.Task | seqio.Mixture]:
    """What is trained on for each capability.

    Args:
      given: CAPABILITIES, name → the name of a task or mixture.
      live_teacher: whose tasks are registered where they are named; the records lack its outputs.

    Raises:
      UserError: a name is none, or nothing that an allocation can train on.
    """
    found: dict[str, seqio.Task | seqio.Mixture] = {}
    for name, task in given.items():
        try:
            if live_teacher is not None:
                registration.register_live_teacher(str(task), live_teacher)
            found[name] = registration.get_mixture_or_task(str(task))
            parts = find_parts(found[name])
        except UserError as error:
            told = str(error).removeprefix("MIXTURE_OR_TASK_NAME=")
            raise UserError(f"CAPABILITIES[{name!r}]={told}") from error
        if any(registration.is_pretraining(part) for part, _ in parts):
            raise UserError(
                f"CAPABILITIES[{name!r}]={task!r} is text without labels, whose sequences are made "
                "anew each epoch and cannot be charged once; name a task with targets"
            )
    return found


def find_live_tasks(
    capabilities: Mapping[str, seqio.Task | seqio.Mixture], live_teacher: str
) -> list[seqio.Task]:
    """The tasks whose targets the live teacher is to write.

    Raises:
      UserError: there is none, or one that it cannot write.
    """
    found = [
        part
        for each in capabilities.values()
        for part, _ in find_parts(each)
        if live_targets.is_live(part, live_teacher)
    ]
    if not found:
        raise UserError(
            f"LIVE_TEACHER={live_teacher!r} writes nothing of CAPABILITIES; name a task such as "
            f"DATASET_rationale_{live_teacher} there, or set LIVE_TEACHER = None"
        )
    for part in found:
        live_targets.check_live(part, live_teacher)
    return found


def find_parts(
    mixture_or_task: seqio.Task | seqio.Mixture,
) -> list[tuple[seqio.Task, float]]:
    """The tasks of a capability with a rate above 0, and their shares, which sum to 1."""
    parts = registration.tasks_of(mixture_or_task)
    rates = [
        float(mixture_or_task.get_rate(part)) if isinstance(mixture_or_task, seqio.Mixture) else 1.0
        for part in parts
    ]
    total = sum(rates)
    return [(part, rate / total) for part, rate in zip(parts, rates, strict=True) if rate > 0]


def is_taught(task: seqio.Task) -> bool:
    """Whether a teacher wrote a task's targets."""
    info = registration.get_task_info(task)
    return info is not None and info.teacher is not None and info.method != "pinto"


def load_capabilities(
    capabilities: Mapping[str, seqio.Task | seqio.Mixture],
    lengths: Mapping[str, int],
    probes: int,
    evaluated: frozenset[bytes],
    advance: Callable[[int], None] = lambda _: None,
    live_teacher: str | None = None,
    ask: live_targets.Ask = lambda *_: {},
) -> CapabilityData:
    """Tokenises everything once.

    Args:
      capabilities: name → what is trained on for it.
      lengths: TASK_FEATURE_LENGTHS.
      probes: how many examples of validation each is probed with.
      evaluated: fingerprints of the inputs that the run is evaluated on.
      advance: told how many more rows are done.
      live_teacher: whose targets are written while the run goes; None: nobody's.
      ask: asks that teacher; here about the inputs that the student is probed with.

    Raises:
      UserError: a capability has no example to train on, or none to probe with.
    """
    tasks: list[TaskTokens] = []
    sequences: list[list[layout.Sequence2Sequence]] = []
    found_probes: list[Sequence[layout.Sequence2Sequence]] = []
    refused: dict[str, int] = {}
    live: dict[int, live_targets.LiveTask] = {}
    for number, (name, mixture) in enumerate(capabilities.items()):
        held_out: list[Sequence[layout.Sequence2Sequence]] = []
        for task, share in find_parts(mixture):
            try:
                if "validation" not in task.splits:
                    raise UserError(f"task {task.name!r} has no validation split to probe with")
                if live_targets.is_live(task, live_teacher):
                    assert live_teacher is not None
                    live[len(tasks)], on_training = live_targets.load_live(
                        task, live_teacher, lengths
                    )
                    on_validation, held_out_texts = live_targets.load_probes(
                        task, live_teacher, lengths, probes, ask
                    )
                else:
                    on_validation = input_pipeline.tokenise(task, "validation", lengths)
                    held_out_texts = on_validation.input_texts
                    on_training = input_pipeline.tokenise(task, "train", lengths, advance)
            except UserError as error:
                raise UserError(f"CAPABILITIES[{name!r}]: {error}") from error
            avoided = evaluated | frozenset(map(fingerprint, held_out_texts))
            is_kept = [fingerprint(text) not in avoided for text in on_training.input_texts]
            kept = [
                _count_alike(sequence)
                for sequence, keeps in zip(on_training.sequences, is_kept, strict=True)
                if keeps
            ]
            if not kept:
                raise UserError(
                    f"CAPABILITIES[{name!r}]: every training example of {task.name!r} stands among "
                    "those of evaluation too; give other data"
                )
            refused[task.name] = len(on_training.sequences) - len(kept)
            measured = layout.measure(kept)
            each = TaskTokens(
                task.name, number, share, measured[:, 0], measured[:, 1], is_taught(task)
            )
            if len(tasks) in live:
                live[len(tasks)] = live[len(tasks)].of_sequences(np.flatnonzero(is_kept))
                each = live_targets.leave_unwritten(each, lengths[constants.TARGETS])
            tasks.append(each)
            sequences.append(kept)
            held_out.append([_count_alike(each) for each in on_validation.sequences])
        turns = itertools.zip_longest(*held_out)
        flat = [each for turn in turns for each in turn if each is not None]
        found_probes.append(flat[:probes])
    return CapabilityData(tasks, sequences, found_probes, refused, live)


def _count_alike(sequence: layout.Sequence2Sequence) -> layout.Sequence2Sequence:
    """All targets as of one task, so that the loss is the mean over all tokens."""
    alike = np.full_like(sequence.task_ids, constants.LABEL_TASK_ID)
    return dataclasses.replace(sequence, task_ids=alike)


def choose_one_shape(
    data: CapabilityData, batch_size: int, row_multiple: int, step_cost: layout.StepCost
) -> layout.Layout:
    """One shape for the batches of every interval, so that one program serves all of them.

    It is made for batches of each capability alone: those of a mixture lie between them.
    """
    draws = np.random.default_rng(_LAYOUT_SEED)
    by_capability: list[list[np.ndarray]] = []
    for number in range(len(data.probes)):
        own = [task for task in data.tasks if task.capability == number]
        lengths = [np.column_stack([task.inputs, task.targets]) for task in own]
        batches = []
        for _ in range(_BATCHES_LOOKED_AT):
            counts = draws.multinomial(batch_size, [task.share for task in own])
            picked = [
                table[draws.integers(len(table), size=count)]
                for table, count in zip(lengths, counts, strict=True)
            ]
            batches.append(np.concatenate(picked))
        by_capability.append(batches)
    longest = np.max([[task.inputs.max(), task.targets.max()] for task in data.tasks], axis=0)
    totals = [np.array([batch.sum(axis=0) for batch in each]) for each in by_capability]
    costliest = by_capability[int(np.argmax([each.sum() for each in totals]))]
    rows = layout.choose_layout(costliest, longest, row_multiple, step_cost).usual.rows
    need = np.max([each.mean(axis=0) + _DEVIATIONS * each.std(axis=0) for each in totals], axis=0)
    sizes = np.maximum(np.ceil(need / rows), longest)
    every = list(itertools.chain.from_iterable(by_capability))
    while True:
        shape = layout.BatchShape(rows, int(sizes[0]), int(sizes[1]))
        if all(layout.assign_rows(batch, shape) is not None for batch in every):
            return layout.Layout(shape, shape)
        sizes = np.ceil(sizes * _STRETCH)
