"""Which positions are kept and toward what, in every mode; out-of-range options."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from distill_sbs.contrasting import selection
from distill_sbs.contrasting.options import ContrastOptions
from distill_sbs.contrasting.scoring import pad_batch, target_length
from distill_sbs.errors import UserError

# Two rollouts of 3 and 2 tokens, soft labels of 2.
ROLLOUTS = selection.Rollouts(
    inputs=np.array([[5, 1], [6, 1]]),
    input_lengths=np.array([2, 2]),
    targets=np.array([[7, 8, 1], [9, 1, 0]], np.int32),
    lengths=np.array([3, 2]),
    divergence=np.array([[9.0, 0.5, 0.1], [9.0, 0.4, 9.0]], np.float32),
    plausible=np.ones((2, 3), np.int32),
    ids=np.tile(np.array([3, 4], np.int32), (2, 3, 1)),
    contrast=np.tile(np.array([0.25, 0.75], np.float32), (2, 3, 1)),
    expert=np.tile(np.array([0.6, 0.4], np.float32), (2, 3, 1)),
)
VALID = np.array([[False, True, True], [False, True, False]])  # the first is skipped


def make_labels(**changes: object) -> selection.SoftLabels:
    options = ContrastOptions(**changes)
    valid = ROLLOUTS.find_valid(options.skip_first)
    divergences = ROLLOUTS.divergence[valid]
    kept = np.zeros_like(valid)
    kept[valid] = selection.choose_kept(
        divergences, selection.choose_beta(divergences, options), options
    )
    return selection.make_labels(ROLLOUTS, valid, kept, options)


def test_valid_positions() -> None:
    assert ROLLOUTS.find_valid(1).tolist() == VALID.tolist()
    assert ROLLOUTS.find_valid(0).tolist() == [[True, True, True], [True, True, False]]


@pytest.mark.parametrize(
    ("mode", "steps", "kept_label"),
    [
        ("full", [[0, 1, 0.1], [0, 1, 0]], [0.25, 0.75]),
        ("no_select", [[0, 1, 1], [0, 1, 0]], [0.25, 0.75]),
        ("no_contrast", [[0, 1, 0.1], [0, 1, 0]], [1, 0]),
        ("neither", [[0, 1, 1], [0, 1, 0]], [1, 0]),
        ("gold", [[0, 1, 0.1], [0, 1, 0]], [1, 0]),
    ],
)
def test_modes(mode: str, steps: list[list[float]], kept_label: list[float]) -> None:
    labels = make_labels(mode=mode)
    np.testing.assert_allclose(labels.step_weights, steps)
    assert labels.weights[0, 1].tolist() == kept_label
    assert labels.ids[0, 1, 0] == (8 if mode == "gold" else 3)
    np.testing.assert_allclose(labels.weights.sum(axis=-1), np.array(steps) > 0)
    if steps[0][2] == 0.1:  # an anchor is the expert's own distribution
        assert labels.weights[0, 2].tolist() == pytest.approx([0.6, 0.4])
        assert labels.ids[0, 2].tolist() == [3, 4]


def test_random_selection_keeps_as_many() -> None:
    labels = make_labels(mode="random_select")
    assert (labels.step_weights == 1).sum() == 2
    assert not labels.step_weights[~VALID].any()
    again = make_labels(mode="random_select")
    np.testing.assert_array_equal(labels.step_weights, again.step_weights)


def test_without_anchor() -> None:
    labels = make_labels(anchor_weight=0.0)
    assert labels.step_weights.tolist() == [[0, 1, 0], [0, 1, 0]]
    assert not labels.weights[0, 2].any()


def test_beta_by_quantile() -> None:
    options = ContrastOptions(beta_quantile=0.5)
    assert selection.choose_beta(np.array([0.1, 0.2, 0.3, 0.4]), options) == 0.3
    assert selection.choose_beta(np.array([0.1, 0.2]), ContrastOptions(beta=0.7)) == 0.7


def test_histogram() -> None:
    assert selection.count_bins(np.array([0.0, 0.05, 0.1, 0.5, 9.0])) == [2, 1, 0, 1, 0, 0, 1]


def test_target_length_and_padding() -> None:
    assert target_length(np.array([4, 0, 1, 0])) == 3
    assert target_length(np.array([4, 0, 5])) == 3
    batch = pad_batch([np.array([5, 1])], [np.array([4, 0, 1])], 2, 3, 4)
    assert batch["encoder_input_tokens"].tolist() == [[5, 1, 0], [0, 0, 0]]
    assert batch["decoder_target_tokens"].tolist() == [[4, 0, 1, 0], [0, 0, 0, 0]]
    assert batch["decoder_input_tokens"].tolist() == [[0, 4, 0, 0], [0, 0, 0, 0]]
    assert batch["decoder_segment_ids"].tolist() == [[1, 1, 1, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"alpha": 0.0}, r"--alpha=0.0 is not in \(0, 1\]"),
        ({"alpha": 1.5}, r"--alpha=1.5 is not in \(0, 1\]"),
        ({"alpha": float("nan")}, r"--alpha=nan is not in \(0, 1\]"),
        ({"beta": -0.1}, "--beta=-0.1 is not a finite number"),
        ({"beta": float("inf")}, "--beta=inf is not a finite number"),
        ({"beta_quantile": 1.0}, r"--beta_quantile=1.0 is not in \[0, 1\)"),
        ({"anchor_weight": 1.0}, r"--anchor_weight=1.0 is not in \[0, 1\)"),
        ({"mode": "best"}, "--mode='best' is unknown"),
        ({"num_problems": 0}, "--num_problems=0: expected 1 or more"),
        ({"max_rollout": 1}, "--max_rollout=1: expected 2 or more"),
        ({"skip_first": 128}, "--skip_first=128 leaves no position"),
    ],
)
def test_options_out_of_range(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ContrastOptions(**values)


def test_rollouts_are_shared_by_modes_that_need_the_same() -> None:
    full = ContrastOptions()
    same = dataclasses.replace(full, mode="neither", beta=0.1, anchor_weight=0.0, skip_first=0)
    assert full.of_rollouts() == same.of_rollouts()
    for changes in ({"alpha": 0.5}, {"mode": "gold"}, {"num_problems": 10}):
        assert dataclasses.replace(full, **changes).of_rollouts() != full.of_rollouts()
