"""mutual_information: the formula in numpy, finite differences, padding, chunks, memory."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_sbs.model import config as configs
from distill_sbs.model import mutual_information

CONFIG = configs.T5Config(vocab_size=7, emb_dim=5)
# Two pairs in the first row, of which the second's rationale comes before its label; one in the
# second row; padding at the ends.
SEGMENTS = np.array([[1, 1, 2, 2, 2, 3, 3, 4, 0], [1, 2, 2, 2, 2, 0, 0, 0, 0]], np.int32)
PAIRS = np.array([[[1, 2], [4, 3]], [[1, 2], [0, 0]]], np.int32)


def states(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(*SEGMENTS.shape, 5)).astype(np.float32)


def weights_of(config: configs.T5Config = CONFIG) -> np.ndarray:
    shape = (7, 5) if config.logits_via_embedding else (5, 7)
    return np.random.default_rng(9).normal(size=shape).astype(np.float32)


def total(hidden, weights, segments=SEGMENTS, pairs=PAIRS, config=CONFIG, chunk=None):
    batch = {"decoder_segment_ids": jnp.asarray(segments), "pairs": jnp.asarray(pairs)}
    return mutual_information.sum_over_pairs(hidden, weights, batch, config, chunk).total


def by_definition(hidden, weights, of_label=None, scale=1.0):
    """In float64, pair by pair; `of_label` are the labels' numbers where they shall stand still."""
    loss, found = 0.0, []
    for row, pair in ((0, (1, 2)), (0, (4, 3)), (1, (1, 2))):
        highest = []
        for segment in pair:
            logits = hidden[row][SEGMENTS[row] == segment].astype(np.float64) @ weights * scale
            exponents = np.exp(logits)
            highest.append((exponents / exponents.sum(axis=1, keepdims=True)).max(axis=0))
        label = highest[0] if of_label is None else of_label[len(found)]
        found.append(highest[0])
        loss -= (label * (highest[1] - np.log(np.exp(highest[1]).sum()))).sum()
    return loss, found


def test_one_pair_by_hand() -> None:
    # Three tokens. The label's position has probabilities 1/4, 1/4, 1/2; the rationale's two have
    # 1/2, 1/4, 1/4 and 1/4, 1/2, 1/4, whose highest are 1/2, 1/2, 1/4.
    config = configs.T5Config(vocab_size=3, emb_dim=3)
    hidden = jnp.log(jnp.array([[[1.0, 1, 2], [2, 1, 1], [1, 2, 1]]]))
    batch = {"decoder_segment_ids": jnp.array([[1, 2, 2]]), "pairs": jnp.array([[[1, 2]]])}
    found = mutual_information.sum_over_pairs(hidden, jnp.eye(3), batch, config)
    # -(1/2 · 1/2 + 1/2 · 1/4) + log(2 e^(1/2) + e^(1/4)), the label's numbers being 1 in all.
    assert float(found.total) == pytest.approx(-0.375 + 1.5220195, abs=1e-6)
    assert int(found.count) == int(mutual_information.count_pairs(batch)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_value_and_gradients_are_the_definition_s(tied: bool) -> None:
    config = configs.T5Config(vocab_size=7, emb_dim=5, logits_via_embedding=tied)
    hidden, weights = states(), weights_of(config)
    scale = 5**-0.5 if tied else 1.0
    define = functools.partial(by_definition, scale=scale)
    kernel = weights.T if tied else weights
    value, of_label = define(hidden, kernel)
    function = functools.partial(total, config=config)
    found, (of_hidden, of_weights) = jax.value_and_grad(function, argnums=(0, 1))(hidden, weights)
    assert float(found) == pytest.approx(value, rel=1e-6)

    def slopes(array: np.ndarray, evaluate) -> np.ndarray:
        made = np.zeros(array.shape)
        for place in np.ndindex(array.shape):
            moved = np.zeros(array.shape)
            moved[place] = 1e-6
            made[place] = (evaluate(array + moved) - evaluate(array - moved)) / 2e-6
        return made

    expected = slopes(hidden.astype(np.float64), lambda each: define(each, kernel, of_label)[0])
    np.testing.assert_allclose(of_hidden, expected, atol=1e-6)
    is_rationale = np.isin(SEGMENTS, [2, 3])[..., None]
    assert np.abs(np.where(is_rationale, of_hidden, 0)).max() > 1e-2
    np.testing.assert_array_equal(np.where(is_rationale, 0, of_hidden), 0.0)  # labels, padding
    expected = slopes(kernel.astype(np.float64), lambda each: define(hidden, each, of_label)[0])
    np.testing.assert_allclose(of_weights.T if tied else of_weights, expected, atol=1e-6)


@pytest.mark.slow
def test_padding_does_not_count() -> None:
    hidden, weights = states(), weights_of()
    value = float(total(hidden, weights))
    loud = np.where((SEGMENTS == 0)[..., None], 50.0, hidden).astype(np.float32)
    assert float(total(loud, weights)) == value
    more = [(0, 0), (0, 6)]
    wider = np.pad(hidden, [*more, (0, 0)], constant_values=50.0)
    assert float(total(wider, weights, np.pad(SEGMENTS, more))) == pytest.approx(value, rel=1e-6)
    rows = [(0, 2), (0, 0)]
    higher = np.pad(hidden, [*rows, (0, 0)], constant_values=50.0)
    pairs = np.pad(PAIRS, [(0, 2), (0, 3), (0, 0)])
    found = total(higher, weights, np.pad(SEGMENTS, rows), pairs)
    assert float(found) == pytest.approx(value, rel=1e-6)


@pytest.mark.slow
def test_a_batch_without_pairs_has_no_loss() -> None:
    value, gradient = jax.value_and_grad(total)(
        jnp.asarray(states()), weights_of(), SEGMENTS, np.zeros_like(PAIRS)
    )
    assert float(value) == 0.0
    np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.slow
def test_chunks_equal_the_whole_in_value_and_gradient() -> None:
    hidden, weights = states(), weights_of()
    gradient_of = jax.value_and_grad(total, argnums=(0, 1))
    value, gradients = gradient_of(hidden, weights)
    # Nine positions in two rows, a quarter of the limit at once: 1, 2 and 5 of a row.
    for limit in (1, 16, 40):
        found, of_chunks = gradient_of(hidden, weights, SEGMENTS, PAIRS, CONFIG, limit)
        assert float(found) == pytest.approx(float(value), rel=1e-6)
        for one, other in zip(gradients, of_chunks, strict=True):
            np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="logits_chunk_tokens=0: expected at least 1"):
        total(hidden, weights, SEGMENTS, PAIRS, CONFIG, 0)


@pytest.mark.slow
def test_of_equal_probabilities_the_first_has_the_gradient() -> None:
    hidden = np.tile(states()[:, :1], (1, SEGMENTS.shape[1], 1))
    gradient = jax.grad(total)(hidden, weights_of(), SEGMENTS, PAIRS, CONFIG, 8)
    moved = np.abs(gradient).max(axis=-1) > 0
    assert moved.tolist() == [
        [False, False, True, False, False, True, False, False, False],
        [False, True, False, False, False, False, False, False, False],
    ]


@pytest.mark.slow
def test_chunks_bound_the_memory() -> None:
    """Temporary memory of the loss and its gradient, in bytes, by the compiler's own account."""
    config = configs.T5Config(vocab_size=4096, emb_dim=16)

    def temporary_bytes(limit: int | None) -> int:
        function = functools.partial(total, config=config, chunk=limit)
        shapes = [
            jax.ShapeDtypeStruct(shape, dtype)
            for shape, dtype in (
                ((8, 64, 16), "float32"),
                ((16, 4096), "float32"),
                ((8, 64), "int32"),
                ((8, 2, 2), "int32"),
            )
        ]
        lowered = jax.jit(jax.grad(function, argnums=(0, 1))).lower(*shapes)
        return int(lowered.compile().memory_analysis().temp_size_in_bytes)

    all_logits = 8 * 64 * 4096 * 4
    assert temporary_bytes(None) >= all_logits
    # Besides the chunks a few arrays of [4, 8, 4096] stay: a sixteenth of all logits each.
    assert temporary_bytes(64) < all_logits / 2
