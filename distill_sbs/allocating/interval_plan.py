"""Which sequences an interval trains on, and what they cost.

Enters: the lengths of each task's sequences, a mixture's weights, a seed, the interval's number and
its budget. Leaves: its batches. Draws are a function of (seed, interval, weights) alone, with a
difficulty schedule of the run's progress too; the budget decides how far they go. A sequence's
target that a teacher wrote is charged when it is first consumed, and one that would pass the
interval's generated tokens is passed over; the sequences of the interval are then walked, again and
again if need be, up to the batch that would pass its trained tokens.

A live teacher's targets are written when they are wanted. One that is not written yet counts as
long as it may become. So nothing is asked for that could pass the budget, everything that is asked
for is consumed, and the plan that wants nothing more is the same whatever was asked at once:
`data.batches.live_targets.resolve` asks, and plans again, until there is nothing more to ask.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from distill_sbs.allocating.budget import IntervalBudget

_DRAWS_AT_ONCE = 256
# So many draws in a row that the generated tokens do not allow end the drawing.
_MOST_PASSED_OVER = 1024

# Of a live teacher's targets: there; not asked for yet; asked for, and nothing to train on.
WRITTEN, UNWRITTEN, USELESS = range(3)

# Easy, medium and hard, by the share of the budget that is used (the released code of ReAD).
DIFFICULTY_SCHEDULE = ((0.3, (0.1, 0.8, 0.1)), (0.7, (0.1, 0.5, 0.4)), (1.0, (0.05, 0.2, 0.75)))
_CUTS = (1 / 3, 2 / 3)


@dataclasses.dataclass(frozen=True)
class TaskTokens:
    """One task of a capability, by the lengths of its sequences.

    Attributes:
      name: the task's.
      capability: the number of its capability.
      share: how often the capability draws from it; a capability's shares sum to 1.
      inputs: tokens of each input, int [N].
      targets: tokens of each target, int [N].
      is_taught: whether a teacher wrote the targets.
      states: of a live teacher's targets, WRITTEN, UNWRITTEN or USELESS, int [N]; None: all are
        written. The target of an unwritten one has the most tokens that it may have, that of a
        useless one those that were paid for in vain.
    """

    name: str
    capability: int
    share: float
    inputs: np.ndarray
    targets: np.ndarray
    is_taught: bool
    states: np.ndarray | None = None

    def state(self, number: int) -> int:
        """Of a sequence's target."""
        return WRITTEN if self.states is None else int(self.states[number])

    def difficulties(self) -> np.ndarray:
        """0 (easy), 1 or 2 (hard) of each sequence, int [N], a third each.

        Harder is what has the longer target, or of a live teacher, whose targets are not known
        beforehand, the longer input.
        """
        first = self.targets if self.states is None else self.inputs
        ranks = np.empty(len(first), np.int64)
        ranks[np.lexsort((self.inputs, first))] = np.arange(len(first))
        return np.searchsorted(_CUTS, (ranks + 0.5) / len(first))


@dataclasses.dataclass(frozen=True)
class IntervalPlan:
    """What an interval does.

    Attributes:
      batches: of each step the (task, sequence) numbers, int [BATCH_SIZE, 2].
      generated: the teacher's tokens that are charged; where nothing can be trained on, those that
        a live teacher wrote all the same.
      trained: the tokens of inputs and targets of all batches.
      by_capability: the same, by capability, int [K].
      bought: task → which sequences' targets are paid for after the interval, bool [N].
      passed_over: draws that the generated tokens did not allow.
      unwritten: (task, sequence) numbers of what a live teacher is to write; there are no batches
        before it has.
    """

    batches: Sequence[np.ndarray]
    generated: int
    trained: int
    by_capability: np.ndarray
    bought: Mapping[str, np.ndarray]
    passed_over: int
    unwritten: Sequence[tuple[int, int]] = ()


def nothing_bought(tasks: Sequence[TaskTokens]) -> dict[str, np.ndarray]:
    """`IntervalPlan.bought` before the first interval."""
    return {task.name: np.zeros(len(task.targets), bool) for task in tasks if task.is_taught}


def mix_difficulties(progress: float) -> np.ndarray:
    """The shares of easy, medium and hard sequences at a share of the budget, [3]."""
    return np.array(next(mix for until, mix in DIFFICULTY_SCHEDULE if progress <= until))


def draw_sequences(
    tasks: Sequence[TaskTokens],
    weights: np.ndarray,
    seed: int,
    interval: int,
    difficulty_mix: np.ndarray | None = None,
) -> Iterator[tuple[int, int]]:
    """Endless (task, sequence) numbers, each task walked in epochs of permutations of its own.

    Args:
      tasks: of all capabilities.
      weights: the mixture, [K].
      seed: RANDOM_SEED.
      interval: its number.
      difficulty_mix: shares of easy, medium and hard, [3], each of which is walked by itself; None:
        a task is walked whole.
    """
    shares = np.array([weights[task.capability] * task.share for task in tasks])
    shares = shares / shares.sum()
    draws = np.random.default_rng([seed, interval, 0])
    orders: dict[tuple[int, int], np.ndarray] = {}
    places: dict[tuple[int, int], int] = {}
    members: dict[tuple[int, int], np.ndarray] = {}
    for number, each in enumerate(tasks):
        if difficulty_mix is None:
            members[number, 0] = np.arange(len(each.targets))
        else:
            levels = each.difficulties()
            members.update({(number, level): np.flatnonzero(levels == level) for level in range(3)})
    while True:
        drawn = draws.choice(len(tasks), _DRAWS_AT_ONCE, p=shares).tolist()
        levels_drawn = [0] * _DRAWS_AT_ONCE
        if difficulty_mix is not None:
            levels_drawn = draws.choice(3, _DRAWS_AT_ONCE, p=difficulty_mix).tolist()
        for task, level in zip(drawn, levels_drawn, strict=True):
            own = members[task, level]
            if not len(own):  # of fewer than three sequences
                continue
            epoch, place = divmod(places.get((task, level), 0), len(own))
            if place == 0:
                key = [
                    seed,
                    interval,
                    1,
                    task,
                    epoch,
                    *([level] if difficulty_mix is not None else []),
                ]
                orders[task, level] = own[np.random.default_rng(key).permutation(len(own))]
            places[task, level] = places.get((task, level), 0) + 1
            yield task, int(orders[task, level][place])


def plan_interval(
    tasks: Sequence[TaskTokens],
    weights: np.ndarray,
    seed: int,
    interval: int,
    budget: IntervalBudget,
    bought: Mapping[str, np.ndarray],
    batch_size: int,
    capabilities: int,
    difficulty_mix: np.ndarray | None = None,
) -> IntervalPlan:
    """Plans an interval; see the module.

    Args:
      tasks: of all capabilities.
      weights: the mixture, [K].
      seed: RANDOM_SEED.
      interval: its number, from 0.
      budget: what it may use.
      bought: what was paid for before; left as it is.
      batch_size: sequences a step.
      capabilities: K.
      difficulty_mix: see `draw_sequences`.
    """
    after = {name: array.copy() for name, array in bought.items()}
    pool: list[tuple[int, int]] = []
    unwritten: dict[tuple[int, int], None] = {}
    pool_tokens = generated = live = passed_over = in_a_row = 0
    for task, number in draw_sequences(tasks, weights, seed, interval, difficulty_mix):
        each = tasks[task]
        price = 0
        if each.is_taught and not after[each.name][number]:
            price = int(each.targets[number])
        if generated + price > budget.generation:
            passed_over += 1
            in_a_row += 1
            if in_a_row == _MOST_PASSED_OVER:
                break
            continue
        if pool_tokens >= budget.training:
            break
        generated += price
        live += price if each.states is not None else 0
        if price:
            after[each.name][number] = True
        if each.state(number) == USELESS:
            in_a_row += 1
            if in_a_row == _MOST_PASSED_OVER:
                break
            continue
        if each.state(number) == UNWRITTEN:
            unwritten[task, number] = None
        in_a_row = 0
        pool.append((task, number))
        pool_tokens += int(each.inputs[number] + each.targets[number])
    batches: list[np.ndarray] = []
    by_capability = np.zeros(capabilities, np.int64)
    if unwritten:
        return IntervalPlan([], 0, 0, by_capability, dict(bought), passed_over, tuple(unwritten))
    trained = 0
    for batch in _walk(pool, batch_size, seed, interval):
        costs = [int(tasks[task].inputs[n] + tasks[task].targets[n]) for task, n in batch.tolist()]
        if trained + sum(costs) > budget.training:
            break
        trained += sum(costs)
        for (task, _), cost in zip(batch.tolist(), costs, strict=True):
            by_capability[tasks[task].capability] += cost
        batches.append(batch)
    if not batches:  # nothing is trained on, so nothing is bought
        return IntervalPlan([], live, 0, by_capability, dict(bought), passed_over)
    return IntervalPlan(batches, generated, trained, by_capability, after, passed_over)


def _walk(
    pool: Sequence[tuple[int, int]], batch_size: int, seed: int, interval: int
) -> Iterator[np.ndarray]:
    """Endless batches of the pool, in another order each time through; none of an empty pool."""
    if not pool:
        return
    numbers = np.array(pool)
    rest = numbers[:0]
    epoch = 0
    while True:
        while len(rest) < batch_size:
            order = np.random.default_rng([seed, interval, 2, epoch]).permutation(len(numbers))
            rest = np.concatenate([rest, numbers[order]])
            epoch += 1
        yield rest[:batch_size]
        rest = rest[batch_size:]
