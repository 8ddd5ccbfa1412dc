"""What rows become, before any training: texts, tokens, what is cut, unknown, and how it packs.

Enters: examples, a vocabulary, feature lengths. Leaves: a `Preview`, which `inspect` prints.
"""

from __future__ import annotations

import array
import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from distill_sbs import constants
from distill_sbs.data import tokenizer
from distill_sbs.data.batches import layout
from distill_sbs.data.dataset import Example
from distill_sbs.data.unknown_pieces import PieceCounter, PieceCounts

_BATCHES_LAID_OUT = 64
# Labels are few, or no classes: past so many different ones the rest is counted together.
_MOST_LABELS = 100_000


@dataclasses.dataclass(frozen=True)
class ShownSequence:
    """One sequence as the student sees it: its texts, and its tokens with the end token, cut."""

    example_id: str
    inputs: str
    targets: str
    input_ids: tuple[int, ...]
    target_ids: tuple[int, ...]


class TaskPreview:
    """One task over the examples.

    Attributes:
      name: 'label', or 'rationale of TEACHER'.
      input_lengths: of whole sequences in tokens, end token included.
      target_lengths: likewise.
      pieces: counts of the inputs, and of the targets.
      shown: the first sequences.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.input_lengths = array.array("i")
        self.target_lengths = array.array("i")
        self.pieces = {name: PieceCounts() for name in (constants.INPUTS, constants.TARGETS)}
        self.shown: list[ShownSequence] = []

    def lengths(self, limits: Mapping[str, int]) -> np.ndarray:
        """Input and target lengths once they are cut, int64 [N, 2]."""
        both = np.stack([self.input_lengths, self.target_lengths], axis=1).astype(np.int64)
        cut: np.ndarray = np.minimum(both, [limits[constants.INPUTS], limits[constants.TARGETS]])
        return cut

    def cut_shares(self, limits: Mapping[str, int]) -> tuple[float, float]:
        """Shares, 0 to 1, of the sequences whose inputs, and whose targets, are cut."""
        inputs = np.asarray(self.input_lengths) > limits[constants.INPUTS]
        targets = np.asarray(self.target_lengths) > limits[constants.TARGETS]
        return float(inputs.mean()), float(targets.mean())


@dataclasses.dataclass(frozen=True)
class Packing:
    """How batches are laid out, and what share of their positions is padding, 0 to 1."""

    shape: layout.BatchShape
    padding: float
    first_row: tuple[int, ...]
    unpacked_shape: layout.BatchShape
    unpacked_padding: float


@dataclasses.dataclass
class Preview:
    """What was found in a split.

    Attributes:
      examples: how many there are.
      without_label: those that have no gold label.
      first_ids: some ids.
      labels: gold labels with their counts.
      tasks: by name, in order.
    """

    examples: int = 0
    without_label: int = 0
    first_ids: list[str] = dataclasses.field(default_factory=list)
    labels: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    tasks: dict[str, TaskPreview] = dataclasses.field(default_factory=dict)


def make_sequences(example: Example) -> Iterator[tuple[str, str, str]]:
    """(task, inputs, targets) of an example, as the tasks of a dataset make them."""
    if example.label:
        yield "label", constants.LABEL_PREFIX + example.input, example.label
    for teacher, output in example.teacher_outputs.items():
        if output.rationale:
            inputs = constants.RATIONALE_PREFIX + example.input
            yield f"rationale of {teacher}", inputs, output.rationale


def preview(
    examples: Iterable[Example],
    encoder: tokenizer.Encoder,
    counter: PieceCounter,
    limits: Mapping[str, int],
    shown: int,
    advance: Callable[[int], None] = lambda _: None,
) -> Preview:
    """Goes through examples once; of all but the `shown` first only lengths are kept."""
    found = Preview()
    for example in examples:
        found.examples += 1
        if len(found.first_ids) < shown:
            found.first_ids.append(example.id)
        if example.label is None:
            found.without_label += 1
        elif example.label in found.labels or len(found.labels) < _MOST_LABELS:
            found.labels[example.label] += 1
        for name, inputs, targets in make_sequences(example):
            task = found.tasks.setdefault(name, TaskPreview(name))
            ids = []
            for feature, text in ((constants.INPUTS, inputs), (constants.TARGETS, targets)):
                counter.count(text, task.pieces[feature])
                ids.append([*tokenizer.encode_text(encoder, text), constants.EOS_ID])
            task.input_lengths.append(len(ids[0]))
            task.target_lengths.append(len(ids[1]))
            if len(task.shown) < shown:
                cut = [
                    _cut(each, limits[feature])
                    for each, feature in zip(
                        ids, (constants.INPUTS, constants.TARGETS), strict=True
                    )
                ]
                task.shown.append(ShownSequence(example.id, inputs, targets, *cut))
        advance(1)
    return found


def _cut(ids: list[int], limit: int) -> tuple[int, ...]:
    """Cut as batches cut it: the end token stays the last."""
    return tuple(ids) if len(ids) <= limit else (*ids[: limit - 1], constants.EOS_ID)


def lay_out(found: Preview, limits: Mapping[str, int], batch_size: int, seed: int = 0) -> Packing:
    """Lays batches of all tasks out, in equal parts at random, packed and a row a sequence."""
    tasks = [task.lengths(limits) for task in found.tasks.values()]
    rng = np.random.default_rng(seed)
    batches = [
        np.concatenate([rng.choice(each, -(-batch_size // len(tasks))) for each in tasks])[
            :batch_size
        ]
        for _ in range(_BATCHES_LAID_OUT)
    ]
    longest = np.max([each.max(axis=0) for each in tasks], axis=0)
    chosen = layout.choose_layout(batches, longest, 1)
    positions = tokens = 0
    first_row: tuple[int, ...] = ()
    for batch in batches:
        shape, rows = chosen.shape_for(batch)
        first_row = first_row or tuple(rows[0])
        positions += shape.positions
        tokens += int(batch.sum())
    unpacked = layout.shape_unpacked(
        batch_size, limits[constants.INPUTS], limits[constants.TARGETS]
    )
    unpacked_padding = 1 - tokens / (unpacked.positions * len(batches))
    padding = 1 - tokens / positions
    return Packing(chosen.usual, padding, first_row, unpacked, unpacked_padding)
