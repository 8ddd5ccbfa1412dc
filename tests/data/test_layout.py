"""layout: rows that hold a batch, nothing lost, little padding."""

from __future__ import annotations

import numpy as np
import pytest

from distill_sbs.data.batches import layout
from distill_sbs.data.batches.layout import BatchShape, Layout, Sequence2Sequence
from distill_sbs.errors import UserError


def sequence(inputs: list[int], targets: list[int], task: int) -> Sequence2Sequence:
    return Sequence2Sequence(
        np.array(inputs, np.int32),
        np.array(targets, np.int32),
        np.full(len(targets), task, np.int32),
    )


def test_two_sequences_in_one_row() -> None:
    batch = layout.fill(
        [sequence([7, 8, 1], [3, 1], 1), sequence([9, 1], [4, 5, 1], 2)],
        Layout(BatchShape(1, 6, 6), BatchShape(1, 6, 6)),
    )
    assert {key: value.tolist() for key, value in batch.items()} == {
        "encoder_input_tokens": [[7, 8, 1, 9, 1, 0]],
        "encoder_segment_ids": [[1, 1, 1, 2, 2, 0]],
        "encoder_positions": [[0, 1, 2, 0, 1, 0]],
        "decoder_target_tokens": [[3, 1, 4, 5, 1, 0]],
        "decoder_input_tokens": [[0, 3, 0, 4, 5, 0]],
        "decoder_segment_ids": [[1, 1, 2, 2, 2, 0]],
        "decoder_positions": [[0, 1, 0, 1, 2, 0]],
        "decoder_task_ids": [[1, 1, 2, 2, 2, 0]],
    }
    assert layout.padding_share(batch) == pytest.approx(2 / 12)


def test_rows_balance_both_dimensions() -> None:
    # Two rationale-like and two label-like sequences: one of each a row is the only way.
    lengths = np.array([[5, 9], [5, 9], [5, 1], [5, 1]])
    rows = layout.assign_rows(lengths, BatchShape(2, 10, 10))
    assert rows is not None
    assert [lengths[row].sum(axis=0).tolist() for row in rows] == [[10, 10], [10, 10]]


def test_what_cannot_fit_is_refused() -> None:
    assert layout.assign_rows(np.array([[6, 1], [6, 1], [6, 1]]), BatchShape(2, 10, 10)) is None


def test_swaps_find_a_perfect_fit() -> None:
    # Longest first leaves {6, 3} and {5, 4, 2} of two rows of 10; swapping 3 with 4 fills both.
    lengths = np.array([[6, 1], [5, 1], [4, 1], [3, 1], [2, 1]])
    rows = layout.assign_rows(lengths, BatchShape(2, 10, 10))
    assert rows is not None
    assert sorted(i for row in rows for i in row) == [0, 1, 2, 3, 4]
    assert [lengths[row, 0].sum() for row in rows] == [10, 10]


def test_a_batch_too_large_takes_the_larger_shape_then_more_rows() -> None:
    shapes = Layout(BatchShape(1, 4, 4), BatchShape(1, 8, 8))
    assert shapes.shape_for(np.array([[4, 4]]))[0] == BatchShape(1, 4, 4)
    assert shapes.shape_for(np.array([[4, 4], [4, 4]]))[0] == BatchShape(1, 8, 8)
    assert shapes.shape_for(np.array([[4, 4]] * 5))[0] == BatchShape(3, 8, 8)


def test_a_sequence_longer_than_a_row() -> None:
    with pytest.raises(UserError, match="raise TASK_FEATURE_LENGTHS"):
        layout.fill([sequence([2] * 9, [1], 1)], Layout(BatchShape(1, 4, 4), BatchShape(1, 8, 8)))


def cost_of_pairs(of_a_pair: float) -> layout.StepCost:
    """A position costs 1."""
    return lambda rows, s, t: rows * (s + t + of_a_pair * (s * s + t * t + s * t))


@pytest.mark.slow
@pytest.mark.parametrize("row_multiple", [1, 8, 16])
def test_chosen_layout_holds_batches_with_little_padding(row_multiple: int) -> None:
    random = np.random.default_rng(0)
    batches = []
    for _ in range(256):
        labels = np.stack([random.normal(48, 9, 64), np.full(64, 4)], axis=1)
        rationales = np.stack([random.normal(48, 9, 64), random.normal(31, 7, 64)], axis=1)
        batches.append(np.maximum(np.concatenate([labels, rationales]).round(), 2).astype(int))
    longest = np.max([batch.max(axis=0) for batch in batches], axis=0)
    chosen = layout.choose_layout(batches, longest, row_multiple, cost_of_pairs(0.0001))
    assert chosen.usual.rows % row_multiple == chosen.larger.rows % row_multiple == 0
    assert (np.array([chosen.usual.input_tokens, chosen.usual.target_tokens]) >= longest).all()
    used = np.array([chosen.shape_for(batch)[0].positions for batch in batches])
    assert set(used) <= {chosen.usual.positions, chosen.larger.positions}
    assert (used == chosen.usual.positions).mean() > 0.6
    assert 1 - np.sum(batches) / used.sum() <= 0.05


def test_small_batches_do_not_lie_in_one_long_row_for_less_padding() -> None:
    """As SVAMP's of 32: their sums vary so much that one row alone wastes least, and costs most."""
    random = np.random.default_rng(0)
    batches = []
    for _ in range(128):
        labels = np.stack([random.normal(42, 12, 16), np.full(16, 12)], axis=1)
        rationales = np.stack([random.normal(42, 12, 16), random.normal(45, 25, 16)], axis=1)
        batches.append(np.maximum(np.concatenate([labels, rationales]).round(), 4).astype(int))
    longest = np.max([batch.max(axis=0) for batch in batches], axis=0)
    chosen = layout.choose_layout(batches, longest, 1, cost_of_pairs(0.0017))
    assert chosen.usual.rows >= 4
    one_row = BatchShape(1, *map(int, np.array(batches).sum(axis=1).max(axis=0)))
    assert chosen.usual.cost(cost_of_pairs(0.0017)) < one_row.cost(cost_of_pairs(0.0017)) / 2


def test_dear_attention_takes_shorter_rows() -> None:
    """Sequences of 20 and 4 or 20 and 20 tokens: two a row waste none, more cost attention."""
    batches = [np.array([[20, 4], [20, 20]] * 16)] * 8
    longest = np.array([20, 20])
    chosen = layout.choose_layout(batches, longest, 1, cost_of_pairs(0.001))
    assert chosen.usual == BatchShape(16, 40, 24)
    # A row a sequence: a fifth is padding.
    chosen = layout.choose_layout(batches, longest, 1, cost_of_pairs(1.0))
    assert chosen.usual == BatchShape(32, 20, 20)
    chosen = layout.choose_layout(batches, longest, 1, cost_of_pairs(0.0))
    assert chosen.usual.positions == 32 * 32


def test_dear_targets_are_padded_less_than_inputs() -> None:
    """Rows of 2 × 20 + 24 pad inputs alone; of 20 + 4 … 20 pad targets by two thirds."""
    random = np.random.default_rng(0)
    batches = [
        np.column_stack([random.integers(15, 25, 64), random.integers(2, 40, 64)])
        for _ in range(64)
    ]
    longest = np.array([25, 40])

    def share_of_targets(of_a_target: float) -> float:
        chosen = layout.choose_layout(
            batches, longest, 1, lambda rows, s, t: rows * (s + of_a_target * t + 0.05 * s * s)
        )
        used = sum(int(batch[:, 1].sum()) for batch in batches)
        shapes = [chosen.shape_for(batch)[0] for batch in batches]
        return used / sum(shape.rows * shape.target_tokens for shape in shapes)

    assert share_of_targets(10.0) > share_of_targets(0.1) + 0.1


def test_of_the_same_cost_the_least_padding_wins() -> None:
    batches = [np.array([[20, 4], [20, 20]] * 16)] * 8
    chosen = layout.choose_layout(batches, np.array([20, 20]), 1, lambda *_: 1.0)
    assert chosen.usual.positions == 32 * 32
