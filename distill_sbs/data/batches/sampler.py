"""Which sequences a step sees: a function of (seed, position) alone.

Enters: tokenised tasks, their rates, a seed, a position (`Position`). Leaves: the next sequences,
and the position after them.

Every task is walked in whole epochs, each a new permutation, and the tasks of a mixture take turns
at their rates: after n draws a task with share r has been drawn n·r times, to within one. SeqIO's
own mixing, which T5X uses, draws tasks at random with the same rates.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from distill_sbs.data.batches import layout
from distill_sbs.errors import UserError

Position = dict[str, int]  # task name → how often was drawn from it so far


@dataclasses.dataclass(frozen=True)
class TokenisedTask:
    """All sequences of one split of one task, in file order, cut to the feature lengths.

    Attributes:
      name: the task's name.
      sequences: the tokenised examples.
      texts: the target text before tokenisation, the reference in evaluation; empty in training.
      input_texts: the input text, prefix included; empty in training.
      cut_inputs, cut_targets: the shares of examples that the feature lengths cut.
      redraw: epoch → its sequences, as many, of a task that makes others each epoch; `sequences`
        are those of epoch 0. None: they are always the same.
      others: sequences that later epochs draw, where they may be longer than those of epoch 0.
      indices: each sequence's example, int64 [N].
      partner: the task whose sequences, one for one, are drawn beside these (`pairs`); None: each
        is drawn alone.
      left_out: how many examples were taken out, for want of a partner.
      shared_encoder: whether the partner's sequences answer the inputs of these.
      empty: how many of the sequences have no target, only their partner has.
    """

    name: str
    sequences: Sequence[layout.Sequence2Sequence]
    texts: Sequence[str]
    input_texts: Sequence[str]
    cut_inputs: float
    cut_targets: float
    redraw: Callable[[int], Sequence[layout.Sequence2Sequence]] | None = None
    others: Sequence[layout.Sequence2Sequence] = ()
    indices: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    partner: TokenisedTask | None = None
    left_out: int = 0
    shared_encoder: bool = False
    empty: int = 0

    def lengths(self) -> np.ndarray:
        """Input and target lengths in tokens, of any epoch, int [N, 2].

        Where there is a partner, the longest that each may be together with it.
        """
        lengths = layout.measure((*self.sequences, *self.others))
        return lengths if self.partner is None else lengths + self.partner.lengths().max(axis=0)

    def soft_tokens(self) -> int:
        """How many tokens a soft label has at most; 0 where there are none."""
        return max((each.soft.ids.shape[1] for each in self.sequences if each.soft), default=0)

    def of_epoch(self, number: int) -> Sequence[layout.Sequence2Sequence]:
        """The sequences of an epoch."""
        return self.redraw(number) if self.redraw and number else self.sequences


@dataclasses.dataclass(frozen=True)
class _Epoch:
    """One walk through a task: its sequences, and the order in which they are drawn."""

    number: int
    order: np.ndarray
    sequences: Sequence[layout.Sequence2Sequence]
    partners: Sequence[layout.Sequence2Sequence] | None

    def draw(self, place: int) -> tuple[layout.Sequence2Sequence, ...]:
        # Of another epoch's sequences there may be a few more or fewer.
        number = int(self.order[place]) % len(self.sequences)
        if self.partners is None:
            return (self.sequences[number],)
        return self.sequences[number], self.partners[number]


class MixtureSampler:
    """Draws the sequences of each step from the tasks of a mixture, at their rates.

    Attributes:
      names: the tasks' names.
      shares: their mixing rates, normalised to sum to 1.
      together: sequences that a draw gives: 2 where tasks have partners, all of them then.
    """

    def __init__(self, tasks: Sequence[TokenisedTask], rates: Sequence[float], seed: int) -> None:
        if sum(rates) <= 0:
            raise UserError(f"the mixing rates are {list(rates)}: at least one must be positive")
        self._tasks = list(tasks)
        self._seed = seed
        self._epochs: dict[str, _Epoch] = {}
        self.together = 1 if all(task.partner is None for task in tasks) else 2
        self.names = [task.name for task in tasks]
        self.shares = [rate / sum(rates) for rate in rates]

    def start(self) -> Position:
        """The position before the first draw."""
        return dict.fromkeys(self.names, 0)

    def _find_epoch(self, task: TokenisedTask, number: int) -> _Epoch:
        cached = self._epochs.get(task.name)
        if cached is None or cached.number != number:
            # Keyed by the task's name: a task's order does not depend on what it is mixed with.
            key = [self._seed, zlib.crc32(task.name.encode()), number]
            order = np.random.default_rng(key).permutation(len(task.sequences))
            partners = task.partner.of_epoch(number) if task.partner else None
            cached = _Epoch(number, order, task.of_epoch(number), partners)
            self._epochs[task.name] = cached
        return cached

    def draw(
        self, position: Position, count: int
    ) -> tuple[list[layout.Sequence2Sequence], Position]:
        """Returns what the next `count` draws after `position` give, and the position after them.

        That is `count` sequences, or as many pairs, each a sequence and its partner.
        """
        counts = [position[name] for name in self.names]
        drawn: list[layout.Sequence2Sequence] = []
        for number in range(sum(counts) + 1, sum(counts) + count + 1):
            # The task that is furthest behind its share goes next; the first of equals. Rounded,
            # because the shares are floats and a tie must be a tie.
            behind = [
                round(share * number - done, 9) if share else -np.inf
                for share, done in zip(self.shares, counts, strict=True)
            ]
            index = int(np.argmax(behind))
            task = self._tasks[index]
            epoch, place = divmod(counts[index], len(task.sequences))
            drawn.extend(self._find_epoch(task, epoch).draw(place))
            counts[index] += 1
        return drawn, dict(zip(self.names, counts, strict=True))
