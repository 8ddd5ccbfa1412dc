"""Lays the sequences of one batch into a static number of fuller rows: packing is layout only.

Enters: BATCH_SIZE sequences (inputs, targets, task ids). Leaves: the model features of one batch,
int32 [rows, S] and [rows, T]. Which sequences are in the batch was decided before, so the loss
does not depend on lengths or packing. T5X packs a stream instead, and its steps see a varying
number of sequences.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from distill_sbs.errors import UserError
from distill_sbs import constants

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Sequence2Sequence:
    """One tokenised example: inputs int32 [S], targets int32 [T], task_ids int32 [T]."""

    inputs: np.ndarray
    targets: np.ndarray
    task_ids: np.ndarray


@dataclasses.dataclass(frozen=True)
class BatchShape:
    """A batch's static shape: rows of `input_tokens` (S) and `target_tokens` (T) positions."""

    rows: int
    input_tokens: int
    target_tokens: int

    @property
    def positions(self) -> int:
        """Token positions in the batch, encoder and decoder together."""
        return self.rows * (self.input_tokens + self.target_tokens)


def assign_rows(lengths: np.ndarray, shape: BatchShape) -> list[list[int]] | None:
    """First-fit decreasing: which sequences stand in which row.

    Args:
      lengths: int [B, 2], the sequences' input and target lengths in tokens.
      shape: the rows to fill.

    Returns:
      One list of sequence numbers a row, or None where the sequences do not fit.
    """
    capacity = np.array([shape.input_tokens, shape.target_tokens])
    free = np.tile(capacity, (shape.rows, 1))
    rows: list[list[int]] = [[] for _ in range(shape.rows)]
    # Largest first, by the dimension in which a sequence takes most of a row; ties in drawing
    # order, so the layout is a function of the batch alone.
    order = np.argsort(-(lengths / capacity).max(axis=1), kind="stable")
    for sequence in order:
        fits = (free >= lengths[sequence]).all(axis=1)
        row = int(fits.argmax())
        if not fits[row]:
            return None
        free[row] -= lengths[sequence]
        rows[row].append(int(sequence))
    return rows


def choose_shape(
    batches: Sequence[np.ndarray], row_multiple: int, rarely: float = 0.1, padding: float = 0.04
) -> BatchShape:
    """Chooses the rows that hold most batches with little padding.

    Short rows are cheaper in attention, long rows waste fewer positions: the shortest rows whose
    padding stays below `padding` win, and the least padding where none does.

    Args:
      batches: the lengths [B, 2] of some batches as the run will draw them.
      row_multiple: what the number of rows must be a multiple of (data axis × microbatches).
      rarely: share of the batches that may need the larger shape.
      padding: the share of padded positions that is good enough.

    Returns:
      The shape; a batch that does not fit it takes the same rows twice (`fill`).
    """
    longest = np.max([batch.max(axis=0) for batch in batches], axis=0)
    totals = np.array([batch.sum(axis=0) for batch in batches])
    sequences = len(batches[0])
    best: tuple[float, BatchShape] | None = None
    rows = -(-sequences // row_multiple) * row_multiple
    tried: set[int] = set()
    while rows not in tried and rows >= row_multiple:
        tried.add(rows)
        needed = np.quantile(totals, 1.0 - rarely, axis=0) / rows
        for slack in (1.0, 1.01, 1.02, 1.03, 1.05, 1.08, 1.12, 1.2, 1.35, 1.6, 2.0):
            size = np.maximum(np.ceil(needed * slack), longest).astype(int)
            shape = BatchShape(rows, int(size[0]), int(size[1]))
            fitting = sum(assign_rows(batch, shape) is not None for batch in batches)
            if fitting >= (1.0 - rarely) * len(batches):
                break
        else:
            shape = BatchShape(rows, int(longest[0]), int(longest[1]))
            fitting = sum(assign_rows(batch, shape) is not None for batch in batches)
        padded = 1.0 - totals.sum(axis=1).mean() / (
            shape.positions * (2.0 - fitting / len(batches))
        )
        if best is None or padded < best[0]:
            best = (padded, shape)
        if padded <= padding:
            break
        # Fewer rows by a quarter, in whole multiples.
        rows = max(int(rows * 0.75) // row_multiple, 1) * row_multiple
    assert best is not None
    return best[1]


def fill(sequences: Sequence[Sequence2Sequence], shape: BatchShape) -> Batch:
    """Lays the sequences out in `shape`, or in two, three … times its rows where they do not fit.

    Returns:
      The model features: tokens, segment ids (from 1), positions and `decoder_task_ids`, int32;
      padding is 0 everywhere.

    Raises:
      UserError: a sequence is longer than a row.
    """
    lengths = np.array([(len(each.inputs), len(each.targets)) for each in sequences])
    longest = lengths.max(axis=0)
    if longest[0] > shape.input_tokens or longest[1] > shape.target_tokens:
        raise UserError(
            f"a sequence of {longest[0]} input and {longest[1]} target tokens does not fit a row "
            f"of {shape.input_tokens} and {shape.target_tokens}; raise TASK_FEATURE_LENGTHS"
        )
    multiple = 1
    while (rows := assign_rows(lengths, dataclasses.replace(shape, rows=shape.rows * multiple))) is None:
        multiple += 1

    encoder = np.zeros((3, len(rows), shape.input_tokens), np.int32)
    decoder = np.zeros((5, len(rows), shape.target_tokens), np.int32)
    for row, members in enumerate(rows):
        start, target_start = 0, 0
        for segment, member in enumerate(members, start=1):
            each = sequences[member]
            end, target_end = start + len(each.inputs), target_start + len(each.targets)
            encoder[:, row, start:end] = (
                each.inputs,
                np.full(len(each.inputs), segment),
                np.arange(len(each.inputs)),
            )
            decoder[:, row, target_start:target_end] = (
                each.targets,
                # Teacher forcing: the target shifted right behind padding id 0, T5's start token.
                np.concatenate([[constants.PAD_ID], each.targets[:-1]]),
                np.full(len(each.targets), segment),
                np.arange(len(each.targets)),
                each.task_ids,
            )
            start, target_start = end, target_end
    return {
        constants.ENCODER_INPUT_TOKENS: encoder[0],
        constants.ENCODER_SEGMENT_IDS: encoder[1],
        constants.ENCODER_POSITIONS: encoder[2],
        constants.DECODER_TARGET_TOKENS: decoder[0],
        constants.DECODER_INPUT_TOKENS: decoder[1],
        constants.DECODER_SEGMENT_IDS: decoder[2],
        constants.DECODER_POSITIONS: decoder[3],
        constants.DECODER_TASK_IDS: decoder[4],
    }


def padding_share(batch: Batch) -> float:
    """Share of a batch's positions, encoder and decoder together, that hold padding."""
    inputs, targets = batch[constants.ENCODER_INPUT_TOKENS], batch[constants.DECODER_TARGET_TOKENS]
    used = np.count_nonzero(inputs) + np.count_nonzero(targets)
    return 1.0 - used / (inputs.size + targets.size)
