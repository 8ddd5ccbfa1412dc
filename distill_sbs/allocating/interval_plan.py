"""Which sequences an interval trains on, and what they cost.

Enters: the lengths of each task's sequences, a mixture's weights, a seed, the interval's number and
its budget. Leaves: its batches. Draws are a function of (seed, interval, weights) alone; the budget
decides how far they go. A sequence's target that a teacher wrote is charged when it is first
consumed, and one that would pass the interval's generated tokens is passed over; the sequences of
the interval are then walked, again and again if need be, up to the batch that would pass its
trained tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from distill_sbs.allocating.budget import IntervalBudget

_DRAWS_AT_ONCE = 256
# So many draws in a row that the generated tokens do not allow end the drawing.
_MOST_PASSED_OVER = 1024


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
    """

    name: str
    capability: int
    share: float
    inputs: np.ndarray
    targets: np.ndarray
    is_taught: bool


@dataclasses.dataclass(frozen=True)
class IntervalPlan:
    """What an interval does.

    Attributes:
      batches: of each step the (task, sequence) numbers, int [BATCH_SIZE, 2].
      generated: the teacher's tokens that are charged.
      trained: the tokens of inputs and targets of all batches.
      by_capability: the same, by capability, int [K].
      bought: task → which sequences' targets are paid for after the interval, bool [N].
      passed_over: draws that the generated tokens did not allow.
    """

    batches: Sequence[np.ndarray]
    generated: int
    trained: int
    by_capability: np.ndarray
    bought: Mapping[str, np.ndarray]
    passed_over: int


def nothing_bought(tasks: Sequence[TaskTokens]) -> dict[str, np.ndarray]:
    """`IntervalPlan.bought` before the first interval."""
    return {task.name: np.zeros(len(task.targets), bool) for task in tasks if task.is_taught}


def draw_sequences(
    tasks: Sequence[TaskTokens], weights: np.ndarray, seed: int, interval: int
) -> Iterator[tuple[int, int]]:
    """Endless (task, sequence) numbers, each task walked in epochs of permutations of its own."""
    shares = np.array([weights[task.capability] * task.share for task in tasks])
    shares = shares / shares.sum()
    draws = np.random.default_rng([seed, interval, 0])
    orders: dict[int, np.ndarray] = {}
    places = [0] * len(tasks)
    while True:
        for task in draws.choice(len(tasks), _DRAWS_AT_ONCE, p=shares).tolist():
            count = len(tasks[task].targets)
            epoch, place = divmod(places[task], count)
            if place == 0:
                key = [seed, interval, 1, task, epoch]
                orders[task] = np.random.default_rng(key).permutation(count)
            places[task] += 1
            yield task, int(orders[task][place])


def plan_interval(
    tasks: Sequence[TaskTokens],
    weights: np.ndarray,
    seed: int,
    interval: int,
    budget: IntervalBudget,
    bought: Mapping[str, np.ndarray],
    batch_size: int,
    capabilities: int,
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
    """
    after = {name: array.copy() for name, array in bought.items()}
    pool: list[tuple[int, int]] = []
    pool_tokens = generated = passed_over = in_a_row = 0
    for task, number in draw_sequences(tasks, weights, seed, interval):
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
        in_a_row = 0
        generated += price
        if price:
            after[each.name][number] = True
        pool.append((task, number))
        pool_tokens += int(each.inputs[number] + each.targets[number])
    batches: list[np.ndarray] = []
    by_capability = np.zeros(capabilities, np.int64)
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
        return IntervalPlan([], 0, 0, by_capability, dict(bought), passed_over)
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
