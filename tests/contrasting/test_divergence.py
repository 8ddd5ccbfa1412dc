"""Where expert and amateur differ: values worked out by hand, and what must always hold."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from distill_sbs.contrasting.divergence import Comparison, compare

EXPERT = (0.6, 0.3, 0.08, 0.02)


def of_probabilities(
    expert: object, amateur: object, alpha: float = 0.2, top_k: int = 16
) -> Comparison:
    compared = compare(jnp.log(jnp.array(expert)), jnp.log(jnp.array(amateur)), alpha, top_k)
    return Comparison(*map(np.asarray, compared))


@pytest.mark.parametrize(
    ("amateur", "divergence", "soft"),
    [
        # 0.6 ln 2 + 0.3 ln 1 + 0.08 ln (0.08 / 0.3) + 0.02 ln 0.2; 2 : 1.
        ((0.3, 0.3, 0.3, 0.1), 0.27796, (0.66667, 0.33333, 0, 0)),
        # 0.6 ln 6 + 0.3 ln 0.5 + 0.08 ln 0.4 + 0.02 ln 0.2; 6 : 0.5.
        ((0.1, 0.6, 0.2, 0.1), 0.76162, (0.92308, 0.07692, 0, 0)),
    ],
)
def test_golden_values(
    amateur: tuple[float, ...], divergence: float, soft: tuple[float, ...]
) -> None:
    compared = of_probabilities(EXPERT, amateur)
    assert float(compared.divergence) == pytest.approx(divergence, abs=1e-5)
    assert int(compared.plausible) == 2
    assert compared.ids.tolist() == [0, 1, 2, 3]
    assert compared.contrast.tolist() == pytest.approx(soft, abs=1e-5)
    assert compared.expert.tolist() == pytest.approx(EXPERT, abs=1e-6)


def test_golden_losses() -> None:
    amateur = (0.1, 0.6, 0.2, 0.1)
    soft = of_probabilities(EXPERT, amateur).contrast[:2]
    cross_entropy = -np.sum(soft * np.log(EXPERT[:2]))
    assert cross_entropy == pytest.approx(0.56414, abs=1e-5)
    assert cross_entropy + np.sum(soft * np.log(soft)) == pytest.approx(0.29296, abs=1e-5)


def draw_pairs() -> tuple[np.ndarray, np.ndarray]:
    """1,000 pairs of distributions over 12 tokens."""
    random = np.random.default_rng(7)
    pair = random.dirichlet(np.full(12, 0.5), (2, 1000)) + 1e-6
    pair /= pair.sum(axis=-1, keepdims=True)
    return pair[0], pair[1]


def test_soft_labels_of_random_pairs() -> None:
    expert, amateur = draw_pairs()
    compared = of_probabilities(expert, amateur)
    highest = expert.max(axis=1)
    assert (compared.divergence >= 0).all()
    np.testing.assert_allclose(compared.contrast.sum(axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(compared.expert.sum(axis=1), 1.0, atol=1e-6)
    # The closed form, and how many tokens are plausible at most.
    ratio = np.where(expert >= 0.2 * highest[:, None], expert / amateur, 0.0)
    ratio /= ratio.sum(axis=1, keepdims=True)
    by_id = np.take_along_axis(ratio, compared.ids, axis=1)
    np.testing.assert_allclose(compared.contrast, by_id, atol=2e-5)
    assert (compared.plausible <= 1 + (1 / highest - 1) / 0.2 + 1e-4).all()
    # The expert's likeliest token is always in; alone, it is the whole label.
    assert (compared.ids[:, 0] == expert.argmax(axis=1)).all()
    assert (compared.contrast[:, 0] > 0).all()
    alone = compared.plausible == 1
    assert alone.any()
    assert (compared.contrast[alone, 0] == 1.0).all()


def test_equal_distributions_differ_nowhere() -> None:
    expert, _ = draw_pairs()
    compared = of_probabilities(expert, expert)
    assert compared.divergence.max() < 1e-6
    # Whatever the expert says, all plausible tokens weigh the same.
    inside = compared.contrast > 0
    wanted = np.where(inside, 1.0 / compared.plausible[:, None], 0.0)
    np.testing.assert_allclose(compared.contrast, wanted, atol=1e-6)


def test_plausible_tokens_become_fewer_as_alpha_grows() -> None:
    expert, amateur = draw_pairs()
    counts = [of_probabilities(expert, amateur, alpha).plausible for alpha in (0.01, 0.2, 0.8, 1.0)]
    for more, fewer in zip(counts, counts[1:], strict=False):
        assert (fewer <= more).all()
    assert (counts[-1] == 1).all()
    assert of_probabilities((0.4, 0.4, 0.2), (0.2, 0.2, 0.6), 1.0).plausible == 2  # a tie


def test_fewer_positions_are_kept_as_beta_grows() -> None:
    divergence = of_probabilities(*draw_pairs()).divergence
    kept = [int((divergence >= beta).sum()) for beta in (0.0, 0.1, 0.4, 1.0, 4.0)]
    assert kept == sorted(kept, reverse=True)
    assert kept[0] == 1000 > kept[-1]


def test_amateur_that_knows_nothing_truncates_the_expert() -> None:
    # Against equal probabilities the label is the expert's own, cut and with sum 1 again.
    expert, _ = draw_pairs()
    compared = of_probabilities(expert, np.full((1000, 12), 1 / 12), alpha=1e-9)
    by_id = np.take_along_axis(expert, compared.ids, axis=1)
    np.testing.assert_allclose(compared.contrast, by_id, atol=1e-5)


def test_top_k_cuts_the_least_likely() -> None:
    compared = of_probabilities((0.4, 0.3, 0.2, 0.1), (0.25,) * 4, alpha=0.2, top_k=2)
    assert int(compared.plausible) == 4
    assert compared.ids.tolist() == [0, 1]
    assert compared.contrast.tolist() == pytest.approx([4 / 7, 3 / 7])
