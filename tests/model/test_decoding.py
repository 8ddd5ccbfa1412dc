"""Decoding: hand-worked searches, and the cache against decoding without one."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_stacking import stack_layers
from model_examples import batch, student

from distill_sbs.model import decoding

A, B = 2, 3
# Probability of the next token (padding, end, A, B) after the last: a world of four tokens.
NEXT = {
    0: [0.0, 0.0, 0.6, 0.4],  # at the start
    A: [0.0, 0.40, 0.35, 0.25],
    B: [0.0, 0.90, 0.05, 0.05],
}


@pytest.fixture
def world(monkeypatch):
    """Replaces the network by NEXT; returns a list that counts the steps taken."""
    table = np.full((4, 4), -30.0, np.float32)
    for last, probabilities in NEXT.items():
        table[last] = np.log(np.maximum(probabilities, 1e-12))
    steps = []

    def prepare(model, params, tokens, hypotheses, length):
        return None, jnp.zeros((tokens.shape[0] * hypotheses, 1))

    def step(config, decoder, cache, tokens, position, length):
        jax.debug.callback(lambda: steps.append(1))
        return jnp.asarray(table)[tokens], cache

    monkeypatch.setattr(decoding, "_prepare", prepare)
    monkeypatch.setattr(decoding, "take_step", step)
    return steps


MODEL = student(vocab_size=4)[0]
ROW = np.array([[5, 1]])


def test_greedy_by_hand(world):
    # A (0.6), then the end (0.4): probability 0.24.
    tokens = decoding.greedy_decode(MODEL, None, ROW, 5)
    assert tokens.tolist() == [[A, 1, 0, 0, 0]]
    jax.effects_barrier()
    assert len(world) == 2  # of 5: the row had ended


@pytest.mark.parametrize("size", [1, 7, 384])
def test_the_likeliest_token_is_argmax_s(size):
    """Of ties the first; a NaN above all; negative infinity alone; bfloat16, which has ties."""
    logits = np.random.default_rng(0).normal(size=(64, size)).astype(np.float32)
    logits[0] = -np.inf
    logits[1, -1] = np.inf
    logits[2, size // 2] = np.nan
    logits[3, size // 3 :] = np.nan
    logits[4] = 2.0
    for each in (jnp.asarray(logits), jnp.asarray(logits, jnp.bfloat16)):
        found = jax.jit(decoding.find_likeliest)(each)
        assert found.dtype == jnp.int32
        np.testing.assert_array_equal(found, jnp.argmax(each, axis=-1))


def test_another_start(world):
    # After A the end is the likeliest: 0.40, a mean of ln 0.40 = -0.92 a token.
    tokens = decoding.greedy_decode(MODEL, None, ROW, 5, start_id=A)
    assert tokens.tolist() == [[1, 0, 0, 0, 0]]
    # B, then the end: 0.25 · 0.90, a mean of ln 0.225 / 2 = -0.75.
    tokens = decoding.beam_decode(MODEL, None, ROW, 5, beam_size=2, start_id=A)
    assert tokens.tolist() == [[B, 1, 0, 0, 0]]


def test_beams_find_the_likelier_output(world):
    # B (0.4), then the end (0.9): probability 0.36, which greedy decoding misses.
    tokens = decoding.beam_decode(MODEL, None, ROW, 5, beam_size=2)
    assert tokens.tolist() == [[B, 1, 0, 0, 0]]


@pytest.mark.slow
def test_length_penalty_by_hand(world):
    # Ended at two tokens: B end, 0.36, and A end, 0.24; at three the best is A B end, 0.135.
    # At exponent 4 sums are divided by 16 and 81, which favours the longest.
    assert math.log(0.135) / 81 > math.log(0.36) / 16
    tokens = decoding.beam_decode(MODEL, None, ROW, 3, beam_size=3, length_penalty=4.0)
    assert tokens.tolist() == [[A, B, 1]]
    tokens = decoding.beam_decode(MODEL, None, ROW, 3, beam_size=3, length_penalty=0.0)
    assert tokens.tolist() == [[B, 1, 0]]


def test_a_row_closes_when_its_beams_have_ended_better(world):
    # Two beams, after two tokens: B end and A end fill both places, the worst log 0.24 / 16
    # = -0.089. The best that runs, A A, has log 0.21 / 16 = -0.098: closed, although A B end
    # would score better later (transformers' early_stopping=False).
    tokens = decoding.beam_decode(MODEL, None, ROW, 3, beam_size=2, length_penalty=4.0)
    assert tokens.tolist() == [[B, 1, 0]]
    jax.effects_barrier()
    assert len(world) == 2


def test_an_output_cut_at_the_limit_has_no_end_token(world):
    assert decoding.greedy_decode(MODEL, None, ROW, 1).tolist() == [[A]]
    assert decoding.beam_decode(MODEL, None, ROW, 1, beam_size=2).tolist() == [[A]]


@pytest.mark.slow
def test_rows_of_padding_stay_empty(world):
    rows = np.array([[0, 0], [5, 1]])
    assert decoding.greedy_decode(MODEL, None, rows, 3).tolist() == [[0, 0, 0], [A, 1, 0]]
    assert decoding.beam_decode(MODEL, None, rows, 3, 2).tolist() == [[0, 0, 0], [B, 1, 0]]
    world.clear()
    decoding.greedy_decode(MODEL, None, rows[:1], 3)
    jax.effects_barrier()
    assert not world


def test_bad_limits_are_refused():
    with pytest.raises(ValueError, match="max_decode_tokens=0: expected at least 1"):
        decoding.greedy_decode(MODEL, None, ROW, 0)
    with pytest.raises(ValueError, match="beam_size=0: expected at least 1"):
        decoding.beam_decode(MODEL, None, ROW, 3, beam_size=0)


LIMIT = 8


def without_cache(model, params, inputs):
    """Greedy decoding by running the whole network for every token."""
    outputs = np.zeros((len(inputs), LIMIT), np.int32)
    ended = np.zeros(len(inputs), bool)

    @jax.jit
    def logits_of(decoder_inputs):
        # Every position counts as real: causality alone hides those not yet decoded.
        real = jnp.ones_like(decoder_inputs)
        return model.apply({"params": params}, inputs, decoder_inputs, real)

    for position in range(LIMIT):
        decoder_inputs = np.pad(outputs, ((0, 0), (1, 0)))[:, :-1]
        tokens = np.asarray(jnp.argmax(logits_of(decoder_inputs)[:, position], axis=-1))
        outputs[:, position] = np.where(ended, 0, tokens)
        ended |= tokens == 1
    return outputs


def end_sometimes(params):
    """Raises the end token's logit, so that outputs end at different lengths."""
    kernel = params["decoder"]["logits_dense"]["kernel"]
    kernel[:, 1] *= 2
    return params


@pytest.mark.slow
@pytest.mark.parametrize("per_layer", [False, True], ids=["T5", "umT5"])
def test_cached_greedy_equals_decoding_without_a_cache(per_layer):
    model, params = student(relative_attention_per_layer=per_layer)
    params = end_sometimes(params)
    inputs = batch(rows=24)["encoder_input_tokens"]
    expected = without_cache(model, params, inputs)
    lengths = (expected > 0).sum(axis=1)
    assert len(set(lengths.tolist())) > 2  # a varied example
    greedy = jax.jit(lambda tokens: decoding.greedy_decode(model, params, tokens, LIMIT))
    np.testing.assert_array_equal(greedy(inputs), expected)
    one_beam = jax.jit(lambda tokens: decoding.beam_decode(model, params, tokens, LIMIT, 1))
    np.testing.assert_array_equal(one_beam(inputs), expected)


@pytest.mark.slow
def test_scanned_layers_decode_the_same():
    changes = {"logits_via_embedding": True, "relative_attention_per_layer": True}
    model, params = student(**changes)
    scanned, _ = student(**changes, scan_layers=True)
    inputs = batch(rows=6)["encoder_input_tokens"]

    def decode(model, params):
        return jax.jit(
            lambda tokens: (
                decoding.greedy_decode(model, params, tokens, 5),
                decoding.beam_decode(model, params, tokens, 5, 3),
            )
        )(inputs)

    for one, other in zip(
        decode(model, params), decode(scanned, stack_layers(params)), strict=True
    ):
        np.testing.assert_array_equal(one, other)
