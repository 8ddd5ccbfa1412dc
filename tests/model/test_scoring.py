"""scoring: every candidate in one pass is what decoding would add up for each of them alone."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_sbs.model import losses, scoring
from distill_sbs.model.config import T5Config, named_config
from distill_sbs.model.decoding import greedy_decode
from distill_sbs.model.network import Transformer, initial_parameters, output_weights
from distill_sbs.model.parameters import Params

LABELS = [np.array(each, np.int32) for each in ([5, 9, 1], [5, 1], [7, 8, 6, 4, 1], [30, 1])]
INPUTS = jnp.array([[3, 4, 5, 1, 0, 0], [9, 8, 7, 6, 5, 1], [2, 1, 0, 0, 0, 0]], jnp.int32)


def make(**fields: object) -> tuple[T5Config, Params]:
    sizes = dict(vocab_size=32, emb_dim=32, num_heads=2, head_dim=16, mlp_dim=32)
    config = named_config("t5_1_1_tiny", **{**sizes, **fields})
    return config, initial_parameters(config, jax.random.key(3))


@functools.partial(jax.jit, static_argnums=0)
def score_alone(config: T5Config, params: Params, label: jax.Array) -> jax.Array:
    """−Σ cross-entropy of one label as the target of every input, by the network's usual way."""
    targets = jnp.broadcast_to(label, (len(INPUTS), len(label)))
    batch = {
        "encoder_input_tokens": INPUTS,
        "decoder_input_tokens": jnp.pad(targets[:, :-1], [(0, 0), (1, 0)]),
        "decoder_target_tokens": targets,
    }
    hidden = losses.decoder_states(Transformer(config), params, batch)
    weights = output_weights(params, config)
    return -losses.token_cross_entropy(hidden, weights, targets, config).sum(axis=1)


@functools.partial(jax.jit, static_argnums=(0, 2))
def score_together(config: T5Config, params: Params, chunk_tokens: int | None) -> jax.Array:
    packed = scoring.pack_labels(LABELS)
    return scoring.score_labels(Transformer(config), params, INPUTS, packed, chunk_tokens)


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, {"scan_layers": True}, {"logits_via_embedding": True}])
def test_packed_scores_are_those_of_each_label_alone(fields: dict[str, object]) -> None:
    config, params = make(**fields)
    scores = score_together(config, params, None)
    assert scores.shape == (3, 4)
    expected = np.stack([score_alone(config, params, label) for label in LABELS], axis=1)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=2e-5)
    chunked = score_together(config, params, 6)
    np.testing.assert_allclose(chunked, expected, rtol=0, atol=2e-5)


@pytest.mark.slow
def test_the_decoded_answer_is_the_likeliest_of_a_set_that_holds_it() -> None:
    config, params = make()
    decoded = np.array(greedy_decode(Transformer(config), params, INPUTS, 1))
    labels = [np.array([token], np.int32) for token in range(1, 32)]
    scores = scoring.score_labels(Transformer(config), params, INPUTS, scoring.pack_labels(labels))
    assert (np.argmax(scores, axis=1) + 1).tolist() == decoded[:, 0].tolist()
    # All one-token answers but padding: their probabilities sum to less than 1 by that of padding.
    sums = np.exp(scores).sum(axis=1)
    assert ((sums > 0.5) & (sums < 1.0)).all()


def test_labels_are_laid_side_by_side() -> None:
    packed = scoring.pack_labels(LABELS[:2])
    assert packed.inputs.tolist() == [0, 5, 9, 0, 5]
    assert packed.targets.tolist() == [5, 9, 1, 5, 1]
    assert packed.segments.tolist() == [1, 1, 1, 2, 2]
    assert packed.labels == 2
    for wrong in ([], [np.array([], np.int32)]):
        with pytest.raises(ValueError, match="labels: expected some, each of a token or more"):
            scoring.pack_labels(wrong)
