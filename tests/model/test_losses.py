"""Losses: hand-worked numbers, chunks, and the objective of Eq. 3."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_examples import batch, packed, student

from distill_sbs.model import config as configs
from distill_sbs.model import losses

# One position whose logits are (0, 0, log 2): probabilities 1/4, 1/4, 1/2.
THREE = configs.T5Config(vocab_size=3, emb_dim=1)
HIDDEN = jnp.ones((1, 1, 1))
WEIGHTS = jnp.array([[0.0, 0.0, math.log(2)]])


@pytest.mark.parametrize(
    ("target", "options", "expected"),
    [
        (2, {}, math.log(2)),
        (0, {}, math.log(4)),
        (2, {"z_loss": 0.1}, math.log(2) + 0.1 * math.log(4) ** 2),
        # Wanted 0.8, 0.1, 0.1; its entropy is 0.639032, the cross-entropy
        # 0.8 log 2 + 0.2 log 4 = 0.831777.
        (2, {"label_smoothing": 0.2}, 0.831777 - 0.639032),
    ],
)
def test_cross_entropy_by_hand(target, options, expected):
    found = losses.token_losses(HIDDEN, WEIGHTS, jnp.array([[target]]), THREE, **options)
    assert found.cross_entropy.dtype == jnp.float32
    np.testing.assert_allclose(found.cross_entropy, [[expected]], rtol=1e-5)
    assert found.correct.tolist() == [[target == 2]]


def test_perfectly_smoothed_prediction_has_no_loss():
    weights = jnp.log(jnp.array([[0.1, 0.8, 0.1]]))
    found = losses.token_cross_entropy(
        HIDDEN, weights, jnp.array([[1]]), THREE, label_smoothing=0.2
    )
    np.testing.assert_allclose(found, [[0.0]], atol=1e-6)


def test_tied_logits_are_scaled():
    # Embedding rows (0, …), (2 log 3, 0, …) and D = 4: the logit is 2 log 3 / sqrt(4) = log 3.
    config = configs.T5Config(vocab_size=2, emb_dim=4, logits_via_embedding=True)
    weights = jnp.zeros((2, 4)).at[1, 0].set(2 * math.log(3))
    hidden = jnp.array([[[1.0, 0.0, 0.0, 0.0]]])
    found = losses.token_cross_entropy(hidden, weights, jnp.array([[1]]), config)
    np.testing.assert_allclose(found, [[math.log(4 / 3)]], rtol=1e-5)


def whole(hidden, weights, targets, config, label_smoothing, z_loss):
    """The same from the definition, with all logits at once and JAX's own derivative."""
    weights = weights.T * config.emb_dim**-0.5 if config.logits_via_embedding else weights
    logits = jnp.einsum("btd,dv->btv", hidden, weights, precision="highest")
    vocabulary = config.vocab_size
    low = label_smoothing / (vocabulary - 1)
    wanted = jnp.where(jax.nn.one_hot(targets, vocabulary) > 0, 1 - label_smoothing, low)
    entropy = -jnp.sum(jax.scipy.special.xlogy(wanted, wanted), axis=-1)
    cross_entropy = -jnp.sum(wanted * jax.nn.log_softmax(logits), axis=-1)
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    return cross_entropy - entropy + z_loss * normaliser**2


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_chunks_equal_the_whole_in_value_and_gradient(tied, smoothing):
    config = configs.T5Config(vocab_size=11, emb_dim=6, logits_via_embedding=tied)
    generator = np.random.default_rng(0)
    hidden = generator.normal(size=(4, 7, 6)).astype(np.float32)
    weights = generator.normal(size=(11, 6) if tied else (6, 11)).astype(np.float32)
    targets = generator.integers(0, 11, (4, 7)).astype(np.int32)
    cotangent = generator.normal(size=(4, 7)).astype(np.float32)
    options = {"label_smoothing": smoothing, "z_loss": 0.01 if smoothing else 0.0}

    def summed(function, *arguments):
        values = function(*arguments, targets, config, **options)
        return jnp.sum(values * cotangent), values

    gradient_of = jax.value_and_grad(summed, argnums=(1, 2), has_aux=True)
    (_, values), gradients = gradient_of(whole, hidden, weights)
    # 28 positions: all at once; 7 chunks; 3, 3, 1; 5, 2; a limit larger than all.
    for limit in (None, 1, 12, 21, 1000):
        chunked = functools.partial(losses.token_cross_entropy, logits_chunk_tokens=limit)
        (_, found), found_gradients = gradient_of(chunked, hidden, weights)
        np.testing.assert_allclose(found, values, rtol=1e-5, atol=1e-5)
        for one, other in zip(gradients, found_gradients, strict=True):
            np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5)


def test_chunks_bound_the_memory():
    """Temporary memory of the loss and its gradient, in bytes, by the compiler's own account."""
    config = configs.T5Config(vocab_size=4096, emb_dim=16)

    def temporary_bytes(limit):
        def mean(hidden, weights, targets):
            return losses.token_cross_entropy(
                hidden, weights, targets, config, logits_chunk_tokens=limit
            ).mean()

        compiled = (
            jax.jit(jax.grad(mean, argnums=(0, 1)))
            .lower(
                jax.ShapeDtypeStruct((8, 64, 16), "float32"),
                jax.ShapeDtypeStruct((16, 4096), "float32"),
                jax.ShapeDtypeStruct((8, 64), "int32"),
            )
            .compile()
        )
        return compiled.memory_analysis().temp_size_in_bytes

    all_logits = 8 * 64 * 4096 * 4
    assert temporary_bytes(None) >= all_logits
    assert temporary_bytes(64) < all_logits / 2


def test_bad_options_are_refused():
    arguments = (HIDDEN, WEIGHTS, jnp.array([[0]]), THREE)
    with pytest.raises(ValueError, match="logits_chunk_tokens=0: expected at least 1"):
        losses.token_losses(*arguments, logits_chunk_tokens=0)
    with pytest.raises(ValueError, match="label_smoothing=1.0"):
        losses.token_losses(*arguments, label_smoothing=1.0)


CROSS_ENTROPY = jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 900.0]])
TASK_IDS = jnp.array([[1, 1, 2], [2, 2, 0]])


@pytest.mark.parametrize(("rate", "expected"), [(1.0, 5.5), (0.5, 3.5), (0.0, 1.5)])
def test_step_by_step_loss_by_hand(rate, expected):
    # Label mean (1 + 2) / 2, rationale mean (3 + 4 + 5) / 3; the padding's 900 does not count.
    counts = losses.task_token_counts(TASK_IDS)
    assert (int(counts.label), int(counts.rationale)) == (2, 3)
    assert float(losses.step_by_step_loss(CROSS_ENTROPY, TASK_IDS, rate, counts)) == expected


def test_microbatches_with_the_whole_batch_s_counts_sum_to_the_whole():
    # Rows: label 3 / 2, rationale 3 / 3; then rationale 9 / 3. Means of means would differ.
    counts = losses.task_token_counts(TASK_IDS)
    parts = [
        float(
            losses.step_by_step_loss(
                CROSS_ENTROPY[row : row + 1], TASK_IDS[row : row + 1], 0.5, counts
            )
        )
        for row in (0, 1)
    ]
    assert parts == [1.5 + 0.5 * 1.0, 0.5 * 3.0]
    assert sum(parts) == 3.5


def test_a_task_without_tokens_contributes_nothing():
    for task_ids in (jnp.zeros((1, 2), int), jnp.array([[2, 0]]), jnp.array([[1, 0]])):
        counts = losses.task_token_counts(task_ids)
        values, gradient = jax.value_and_grad(losses.step_by_step_loss)(
            jnp.array([[6.0, jnp.inf]]), task_ids, 1.0, counts
        )
        assert float(values) == (6.0 if task_ids.any() else 0.0)
        assert np.isfinite(gradient).all()


def test_at_rate_zero_rationales_leave_no_trace():
    counts = losses.task_token_counts(TASK_IDS)
    broken = jnp.where(TASK_IDS == 2, jnp.nan, CROSS_ENTROPY * 0.1)
    label_mean = jnp.sum(jnp.where(TASK_IDS == 1, broken, 0.0)) / 2
    loss, gradient = jax.value_and_grad(losses.step_by_step_loss)(broken, TASK_IDS, 0.0, counts)
    assert float(loss) == float(label_mean)  # to the bit
    np.testing.assert_array_equal(gradient, [[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]])


def test_token_sum_loss_is_not_the_objective():
    targets = jnp.array([[5, 1, 7], [6, 1, 0]])
    assert float(losses.token_sum_loss(CROSS_ENTROPY, targets)) == 15.0
    assert float(losses.token_sum_loss(CROSS_ENTROPY, targets, 5.0)) == 3.0


def test_task_metrics_by_hand():
    correct = jnp.array([[True, False, True], [True, False, True]])
    metrics = losses.task_metrics(losses.TokenLosses(CROSS_ENTROPY, correct), TASK_IDS)
    found = {name: (float(each.total), int(each.count)) for name, each in metrics.items()}
    assert found == {
        "label_loss": (3.0, 2),
        "label_token_accuracy": (1.0, 2),
        "rationale_loss": (12.0, 3),
        "rationale_token_accuracy": (2.0, 3),
    }


@functools.partial(jax.jit, static_argnums=0)
def loss_and_gradient(model, params, features):
    def loss(params):
        cross_entropy = losses.batch_cross_entropy(model, params, features)
        task_ids = features["decoder_task_ids"]
        counts = losses.task_token_counts(task_ids)
        return losses.step_by_step_loss(cross_entropy, task_ids, 0.5, counts), cross_entropy

    return jax.value_and_grad(loss, has_aux=True)(params)


@pytest.mark.slow
def test_packed_equals_unpacked_sequence_for_sequence():
    model, params = student()
    alone = batch(rows=3)
    row = packed(alone, 30, 20)
    (loss, values), gradient = loss_and_gradient(model, params, alone)
    (packed_loss, packed_values), packed_gradient = loss_and_gradient(model, params, row)
    real = alone["decoder_target_tokens"] > 0
    np.testing.assert_allclose(packed_values[0, : real.sum()], values[real], rtol=1e-5)
    np.testing.assert_allclose(packed_loss, loss, rtol=1e-6)
    for one, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(packed_gradient), strict=True):
        assert np.linalg.norm(one - other) <= 1e-5 * np.linalg.norm(one)


@pytest.mark.slow
def test_a_row_of_padding_changes_neither_loss_nor_gradient():
    model, params = student()
    features = batch(rows=2)
    more = {name: np.pad(array, ((0, 1), (0, 0))) for name, array in features.items()}
    (loss, _), gradient = loss_and_gradient(model, params, features)
    (more_loss, _), more_gradient = loss_and_gradient(model, params, more)
    np.testing.assert_allclose(more_loss, loss, rtol=1e-6)
    for one, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(more_gradient), strict=True):
        assert np.linalg.norm(one - other) <= 1e-5 * np.linalg.norm(one)


@pytest.mark.slow
def test_dropout_is_on_where_a_key_is_given():
    model, params = student(dropout_rate=0.3, num_encoder_layers=1, num_decoder_layers=1)
    features = batch()
    dropped = jax.jit(lambda key: losses.batch_cross_entropy(model, params, features, key))
    without = jax.jit(lambda: losses.batch_cross_entropy(model, params, features))()
    assert abs(dropped(jax.random.key(0)) - without).max() > 1e-2
