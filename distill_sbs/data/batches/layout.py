"""Lays the sequences of one batch into a static number of fuller rows: packing is layout only.

Enters: BATCH_SIZE sequences (inputs, targets, task ids). Leaves: the model features of one batch,
int32 [rows, S] and [rows, T]. Which sequences are in the batch was decided before, so the loss
does not depend on lengths or packing. T5X packs a stream instead, and its steps see a varying
number of sequences.

Where an example's label and rationale are drawn as a pair, both stand in one row, and so on one
device and in one microbatch; `constants.PAIRS` says which segments of the row they are.
Where the encoder is shared, a pair's inputs stand in the row once. Its rationale is a sequence
without inputs, which answers those of the label before it; `decoder_source_segment_ids` says which
encoder segment a target sees, while in the decoder no target sees another.
Where a run has soft labels, they are laid out beside the target tokens that they belong to.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from distill_sbs import constants
from distill_sbs.errors import UserError

Batch = dict[str, np.ndarray]
RowsHere = Callable[[int], np.ndarray]  # number of rows -> bool [rows]
# rows, S, T -> what a training step over them takes, in any unit
StepCost = Callable[[int, int, int], float]


@dataclasses.dataclass(frozen=True)
class SoftTargets:
    """What stands beside the targets of a contrast's rollout.

    Attributes:
      ids: tokens of each position's soft label, int32 [T, K].
      weights: theirs, float32 [T, K].
      step_weights: the positions' own, float32 [T].
    """

    ids: np.ndarray
    weights: np.ndarray
    step_weights: np.ndarray


@dataclasses.dataclass(frozen=True)
class Sequence2Sequence:
    """One tokenised example: inputs int32 [S], targets int32 [T], task_ids int32 [T].

    The decoder starts from token `start`. Without inputs it answers those of the sequence that is
    laid out before it.
    """

    inputs: np.ndarray
    targets: np.ndarray
    task_ids: np.ndarray
    soft: SoftTargets | None = None
    start: int = constants.PAD_ID


@dataclasses.dataclass(frozen=True)
class BatchShape:
    """A batch's static shape: rows of `input_tokens` (S) and `target_tokens` (T) positions.

    Where sequences are laid in pairs, a row holds up to `pairs` of them (K); 0: they are laid one
    by one. Where there are soft labels, they have up to `soft` tokens; 0: there are none. With
    `shared_encoder` the sequences of a pair have their inputs in common.
    """

    rows: int
    input_tokens: int
    target_tokens: int
    pairs: int = 0
    soft: int = 0
    shared_encoder: bool = False

    @property
    def positions(self) -> int:
        """Token positions in the batch, encoder and decoder together."""
        return self.rows * (self.input_tokens + self.target_tokens)

    def cost(self, step_cost: StepCost) -> float:
        """What a step over it takes, in the unit of `step_cost`."""
        return step_cost(self.rows, self.input_tokens, self.target_tokens)


def measure(sequences: Sequence[Sequence2Sequence], together: int = 1) -> np.ndarray:
    """Input and target lengths in tokens, int64 [N / together, 2]: the sums of each `together`."""
    lengths = [(len(each.inputs), len(each.targets)) for each in sequences]
    sums: np.ndarray = np.array(lengths, np.int64).reshape(-1, together, 2).sum(axis=1)
    return sums


def shape_unpacked(
    batch_size: int,
    input_tokens: int,
    target_tokens: int,
    row_multiple: int = 1,
    in_pairs: bool = False,
    shared_encoder: bool = False,
) -> BatchShape:
    """A row of the full feature lengths for every sequence, or of twice as much for every pair.

    With `shared_encoder` sequences go in pairs, and only a row's targets are twice as long.
    """
    together = 2 if in_pairs or shared_encoder else 1
    rows = -(-batch_size // together // row_multiple) * row_multiple
    inputs = input_tokens if shared_encoder else together * input_tokens
    pairs = together - 1
    targets = together * target_tokens
    return BatchShape(rows, inputs, targets, pairs, shared_encoder=shared_encoder)


# Loads are sums of fractions of a row, so a full row may come out a rounding error above 1.
_FULL = 1.0 + 1e-9
_MOST_SWAPS = 64


def assign_rows(lengths: np.ndarray, shape: BatchShape) -> list[list[int]] | None:
    """Decides which sequences stand in which row.

    The longest first, each into the row that it leaves least full; then sequences of an overfull
    row are swapped with others while that helps. (First-fit decreasing, good in one dimension,
    fails in two: it fills the first rows' targets with rationales, no label then fits beside
    them, and their inputs stay empty.)

    Args:
      lengths: int [B, 2], the sequences' (or pairs') input and target lengths in tokens.
      shape: the rows to fill.

    Returns:
      One list of sequence (or pair) numbers a row, or None where they are not made to fit.
    """
    sizes = [shape.input_tokens, shape.target_tokens]
    if shape.pairs:
        lengths = np.column_stack([lengths, np.ones(len(lengths), np.int64)])
        sizes.append(shape.pairs)
    relative = lengths / np.array(sizes)  # [B, 2], or [B, 3]
    if (relative.sum(axis=0) > shape.rows * _FULL).any():
        return None
    load = np.zeros((shape.rows, len(sizes)))
    row_of = np.empty(len(lengths), int)
    # Ties in drawing order, so the layout is a function of the batch alone.
    for sequence in np.argsort(-relative.max(axis=1), kind="stable"):
        row = int((load + relative[sequence]).max(axis=1).argmin())
        row_of[sequence] = row
        load[row] += relative[sequence]
    for _ in range(_MOST_SWAPS):
        fullest = int(load.max(axis=1).argmax())
        if load[fullest].max() <= _FULL:
            return [np.flatnonzero(row_of == row).tolist() for row in range(shape.rows)]
        inside, outside = np.flatnonzero(row_of == fullest), np.flatnonzero(row_of != fullest)
        if not len(outside):
            return None
        # What every swap of one inside with one outside would leave in the two rows it touches.
        change = relative[inside][:, None] - relative[outside][None]  # [inside, outside, 2 or 3]
        here = (load[fullest] - change).max(axis=-1)
        there = (load[row_of[outside]][None] + change).max(axis=-1)
        worst = np.maximum(here, there)
        first, second = np.unravel_index(int(worst.argmin()), worst.shape)
        if worst[first, second] >= load[fullest].max():
            return None
        other = row_of[outside[second]]
        load[fullest] -= change[first, second]
        load[other] += change[first, second]
        row_of[inside[first]], row_of[outside[second]] = other, fullest
    return None


@dataclasses.dataclass(frozen=True)
class Layout:
    """The shapes that a run's batches take: nearly all `usual`, the rare one `larger`."""

    usual: BatchShape
    larger: BatchShape

    def add_soft_labels(self, tokens: int) -> Layout:
        """The same layout, with soft labels of up to so many tokens."""
        return Layout(
            *(dataclasses.replace(each, soft=tokens) for each in (self.usual, self.larger))
        )

    def share_encoder(self) -> Layout:
        """The same layout, of pairs that have their inputs in common."""
        return Layout(
            *(dataclasses.replace(each, shared_encoder=True) for each in (self.usual, self.larger))
        )

    def shape_for(self, lengths: np.ndarray) -> tuple[BatchShape, list[list[int]]]:
        """The first shape that sequences of these lengths [B, 2] fit, and their rows.

        What does not even fit `larger` takes its rows twice, three times …: for correctness, at
        the price of one more compilation.
        """
        if (rows := assign_rows(lengths, self.usual)) is not None:
            return self.usual, rows
        multiple = 1
        while True:
            shape = dataclasses.replace(self.larger, rows=self.larger.rows * multiple)
            if (rows := assign_rows(lengths, shape)) is not None:
                return shape, rows
            multiple += 1


def _best_sizes(totals: np.ndarray, larger: np.ndarray) -> np.ndarray:
    """The two totals [2] of a usual batch that make the mean number of positions smallest."""
    candidates = np.quantile(totals, np.linspace(0.5, 0.98, 13), axis=0)  # [13, 2]
    best, fewest = larger, float(larger.sum())
    for inputs in candidates[:, 0]:
        for targets in candidates[:, 1]:
            share = (totals <= (inputs, targets)).all(axis=1).mean()
            positions = share * (inputs + targets) + (1.0 - share) * larger.sum()
            if positions < fewest:
                best, fewest = np.array([inputs, targets]), positions
    return best


def count_positions(rows: int, input_tokens: int, target_tokens: int) -> float:
    """Where no student is known: positions, and their pairs as dear as in T5 v1.1 Base."""
    inputs, targets = input_tokens, target_tokens
    pairs = inputs**2 + targets**2 + inputs * targets
    return rows * (inputs + targets + 0.0004 * pairs)


# Costs that differ by no more are the same: no formula knows a step's time better.
_SAME_COST = 1.02

_SEQUENCES_LAID_OUT = 4096


def _row_counts(sequences: int, row_multiple: int) -> list[int]:
    """The numbers of rows to try, from a row a sequence down to `row_multiple`.

    Each a seventh fewer than the last; and those into which the sequences go without a rest: two,
    three … a row.
    """
    most = -(-sequences // row_multiple)
    counts = {-(-most // share) for share in range(1, 9)}
    count = most
    while count > 1:
        counts.add(count)
        count = min(int(count * 0.75), count - 1)
    return [count * row_multiple for count in sorted(counts | {1}, reverse=True)]


def choose_layout(
    batches: Sequence[np.ndarray],
    longest: np.ndarray,
    row_multiple: int,
    step_cost: StepCost = count_positions,
    in_pairs: bool = False,
) -> Layout:
    """Chooses the rows in which the batches of a run cost least.

    Short rows are cheaper in attention, long ones waste fewer positions. Of rows that cost the same
    to two hundredths, those with the least padding win.

    Args:
      batches: the lengths, int [B, 2], of some batches as the run will draw them.
      longest: the longest input and target of all, int [2]; every row can hold them.
      row_multiple: what the number of rows must be a multiple of (data axis × microbatches).
      step_cost: what a step takes by its rows (`model.flops.step_cost`, of a student).
      in_pairs: whether the lengths are those of pairs.
    """
    totals = np.array([batch.sum(axis=0) for batch in batches])  # [batches, 2]
    # Sums of many lengths are nearly normal: one in thousands passes 3.5 deviations.
    larger_total = np.maximum(totals.mean(axis=0) + 3.5 * totals.std(axis=0), totals.max(axis=0))
    usual_total = _best_sizes(totals, larger_total)
    could_fit = [batch for batch in batches if (batch.sum(axis=0) <= usual_total).all()]
    # Large batches are more alike, and take longer.
    looked_at = min(max(_SEQUENCES_LAID_OUT // len(batches[0]), 4), 16)
    could_fit, judged = could_fit[:looked_at], batches[: 4 * looked_at]

    def stretch(total: np.ndarray, rows: int, slack: float) -> BatchShape:
        """Rows of their even share of the tokens, times `slack`."""
        inputs, targets = np.maximum(np.ceil(total * slack / rows), longest)
        pairs = math.ceil(_MOST_PAIRS * len(batches[0]) / rows) if in_pairs else 0
        return BatchShape(rows, int(inputs), int(targets), pairs)

    def stretch_for(
        held: Sequence[np.ndarray], misfits: int, total: np.ndarray, rows: int
    ) -> BatchShape:
        """The shortest rows that hold all these batches but some."""

        def holds(slack: float) -> bool:
            shape = stretch(total, rows, slack)
            found = (True for batch in held if assign_rows(batch, shape) is None)
            return sum(itertools.islice(found, misfits + 1)) <= misfits

        last = len(_SLACKS) - 1
        return stretch(total, rows, _SLACKS[bisect.bisect_left(_SLACKS, True, hi=last, key=holds)])

    def least(rows: int) -> float:
        """What no batch in so many rows costs less than."""
        return stretch(usual_total, rows, 1.0).cost(step_cost)

    found: list[tuple[float, float, Layout]] = []  # cost of a batch and positions, both means
    cheapest = math.inf
    for rows in sorted(_row_counts(len(batches[0]), row_multiple), key=least):
        if least(rows) > cheapest * _SAME_COST:
            break
        usual = stretch_for(could_fit, len(could_fit) // 10, usual_total, rows)
        others = [batch for batch in judged if assign_rows(batch, usual) is None]
        larger = stretch_for(others, 0, larger_total, rows)
        rare = len(others) / len(judged)
        cost = (1.0 - rare) * usual.cost(step_cost) + rare * larger.cost(step_cost)
        positions = (1.0 - rare) * usual.positions + rare * larger.positions
        found.append((cost, positions, Layout(usual, larger)))
        cheapest = min(cheapest, cost)
    same = [each for each in found if each[0] <= cheapest * _SAME_COST]
    return min(same, key=lambda each: each[1])[2]


# How much longer than their even share rows are tried, until the sequences go in.
_SLACKS = (1.0, 1.001, 1.002, 1.004, 1.007, 1.01, 1.02, 1.03, 1.05, 1.08, 1.12, 1.2, 1.5, 2.0, 3.0)

# How many times their even share of the pairs a row may hold: short ones are more.
_MOST_PAIRS = 1.5


def fill(
    sequences: Sequence[Sequence2Sequence], layout: Layout, rows_here: RowsHere | None = None
) -> Batch:
    """Lays the sequences of one batch out.

    Args:
      sequences: those of the whole batch; where shapes hold pairs, each pair's label and rationale
        one after the other, and where they share the encoder, the rationale without inputs.
      layout: its shapes.
      rows_here: which rows are wanted; the others stay padding. None: all.

    Returns:
      The model features: tokens, segment ids (from 1), positions and `decoder_task_ids`, int32;
      padding is 0 everywhere. With pairs also `pairs` [rows, K, 2], the decoder segments of each
      pair's label and rationale; 0, 0 where the row has fewer. With soft labels also
      `decoder_soft_ids` int32 and `decoder_soft_weights` float32 [rows, T, K], and
      `decoder_step_weights` float32 [rows, T]; 0 where a sequence has none. With a shared encoder
      also `decoder_source_segment_ids` [rows, T], the encoder segment that each target sees.

    Raises:
      UserError: a sequence is longer than a row.
    """
    together = 2 if layout.usual.pairs else 1
    lengths = measure(sequences, together)
    longest = lengths.max(axis=0)
    if longest[0] > layout.larger.input_tokens or longest[1] > layout.larger.target_tokens:
        what = "pair" if together > 1 else "sequence"
        raise UserError(
            f"a {what} of {longest[0]} input and {longest[1]} target tokens does not fit a row "
            f"of {layout.larger.input_tokens} and {layout.larger.target_tokens}; "
            "raise TASK_FEATURE_LENGTHS"
        )
    shape, rows = layout.shape_for(lengths)

    encoder = np.zeros((3, len(rows), shape.input_tokens), np.int32)
    decoder = np.zeros((6, len(rows), shape.target_tokens), np.int32)
    pairs = np.zeros((len(rows), shape.pairs, 2), np.int32)
    soft = _empty_soft_features(len(rows), shape) if shape.soft else {}
    wanted = np.ones(len(rows), bool) if rows_here is None else rows_here(len(rows))
    for row, members in enumerate(rows):
        if not wanted[row]:
            continue
        start, target_start, source = 0, 0, 0
        numbers = [together * member + offset for member in members for offset in range(together)]
        if shape.pairs:
            pairs[row, : len(members)] = np.arange(1, len(numbers) + 1).reshape(-1, 2)
        for segment, number in enumerate(numbers, start=1):
            each = sequences[number]
            source = segment if len(each.inputs) else source
            end, target_end = start + len(each.inputs), target_start + len(each.targets)
            encoder[:, row, start:end] = (
                each.inputs,
                np.full(len(each.inputs), segment),
                np.arange(len(each.inputs)),
            )
            decoder[:, row, target_start:target_end] = (
                each.targets,
                # Teacher forcing: the target shifted right behind the start token, T5's is 0.
                np.concatenate([[each.start], each.targets])[:-1],
                np.full(len(each.targets), segment),
                np.arange(len(each.targets)),
                each.task_ids,
                np.full(len(each.targets), source),
            )
            if each.soft is not None and soft:
                most = each.soft.ids.shape[1]
                ids, weights, steps = (
                    array[row, target_start:target_end] for array in soft.values()
                )
                ids[:, :most], weights[:, :most] = each.soft.ids, each.soft.weights
                steps[:] = each.soft.step_weights
            start, target_start = end, target_end
    features = {
        constants.ENCODER_INPUT_TOKENS: encoder[0],
        constants.ENCODER_SEGMENT_IDS: encoder[1],
        constants.ENCODER_POSITIONS: encoder[2],
        constants.DECODER_TARGET_TOKENS: decoder[0],
        constants.DECODER_INPUT_TOKENS: decoder[1],
        constants.DECODER_SEGMENT_IDS: decoder[2],
        constants.DECODER_POSITIONS: decoder[3],
        constants.DECODER_TASK_IDS: decoder[4],
    }
    if shape.shared_encoder:
        features[constants.DECODER_SOURCE_SEGMENT_IDS] = decoder[5]
    features.update(soft)
    return {**features, constants.PAIRS: pairs} if shape.pairs else features


def _empty_soft_features(rows: int, shape: BatchShape) -> Batch:
    """The features of soft labels, in the order of `SoftTargets`."""
    positions = (rows, shape.target_tokens)
    return {
        constants.DECODER_SOFT_IDS: np.zeros((*positions, shape.soft), np.int32),
        constants.DECODER_SOFT_WEIGHTS: np.zeros((*positions, shape.soft), np.float32),
        constants.DECODER_STEP_WEIGHTS: np.zeros(positions, np.float32),
    }


def empty_batch(shape: BatchShape) -> Batch:
    """A batch of padding alone: the features that `fill` gives, in their shapes and types."""
    one = np.ones(1, np.int32)
    members = [Sequence2Sequence(one, one, one)] * (2 if shape.pairs else 1)
    batch = fill(members, Layout(shape, shape))
    return {key: np.zeros_like(array) for key, array in batch.items()}


def padding_share(batch: Batch) -> float:
    """Share of a batch's positions, encoder and decoder together, that hold padding."""
    inputs, targets = batch[constants.ENCODER_INPUT_TOKENS], batch[constants.DECODER_TARGET_TOKENS]
    used = np.count_nonzero(inputs) + np.count_nonzero(targets)
    return 1.0 - used / (inputs.size + targets.size)
