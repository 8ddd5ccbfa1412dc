"""T5Gemma 2's network: windows, rotation, parameters, packing, recomputation, what it refuses."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from model_examples import SMALL_T5GEMMA, batch, packed, shapes_of, t5gemma

from distill_sbs.model import config as configs
from distill_sbs.model import decoding, flops
from distill_sbs.model import t5gemma as layers
from distill_sbs.model.parameters import find_logical_axes, list_parameters


def arguments(features):
    names = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")
    segments = ("encoder_segment_ids", "decoder_segment_ids")
    return [features.get(name) for name in (*names, *segments)]


@functools.partial(jax.jit, static_argnums=0)
def logits_of(model, params, features):
    return model.apply({"params": params}, *arguments(features))


def test_windows_by_hand():
    config = dataclasses.replace(SMALL_T5GEMMA, sliding_window=4)
    # In the encoder one before, oneself, and two behind: (4 + 1) // 2 and 4 // 2 + 1 exclusive.
    assert layers.encoder_window(config, 5).astype(int).tolist() == [
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [0, 1, 1, 1, 1],
        [0, 0, 1, 1, 1],
        [0, 0, 0, 1, 1],
    ]
    # In the decoder oneself and three before; what comes later is not its business.
    seen = layers.decoder_window(config, jnp.array([4]), jnp.arange(5))
    assert seen.astype(int).tolist() == [[0, 1, 1, 1, 1]]


def test_rotation_by_hand():
    config = dataclasses.replace(
        SMALL_T5GEMMA, head_dim=2, rope_scaling_factor=2.0, sliding_window=4
    )
    positions = jnp.array([0, 3])
    heads = jnp.array([[1.0, 0.0], [1.0, 0.0]])
    turned = layers.rotate(heads, layers.make_rotation(config, positions, False))
    np.testing.assert_allclose(turned, [[1, 0], [np.cos(3), np.sin(3)]], atol=1e-6)
    scaled = layers.rotate(heads, layers.make_rotation(config, positions, True))
    np.testing.assert_allclose(scaled, [[1, 0], [np.cos(1.5), np.sin(1.5)]], atol=1e-6)


def test_norm_by_hand():
    # rms(3, 4) = sqrt(12.5), and one is added to a scale.
    params = {"params": {"scale": jnp.array([0.0, 9.0])}}
    output = layers.Norm(SMALL_T5GEMMA).apply(params, jnp.array([3.0, 4.0]))
    np.testing.assert_allclose(output, [3 / 12.5**0.5, 40 / 12.5**0.5], rtol=1e-6)


def test_which_layers_see_all():
    config = configs.named_config("t5gemma2_270m")
    assert [layer for layer in range(18) if config.sees_all(layer)] == [5, 11, 17]


@pytest.mark.slow
def test_the_list_of_parameters_is_what_the_network_makes():
    tree = shapes_of(SMALL_T5GEMMA)
    flat = traverse_util.flatten_dict(tree, sep="/")
    listed = list(list_parameters(SMALL_T5GEMMA))
    assert {each.path: each.shape for each in listed} == {
        path: leaf.shape for path, leaf in flat.items()
    }
    axes = traverse_util.flatten_dict(find_logical_axes(tree), sep="/")
    assert {each.path: each.axes for each in listed} == axes


def test_parameters_and_arithmetic_of_270m():
    config = configs.named_config("t5gemma2_270m")
    sizes = [int(np.prod(each.shape)) for each in list_parameters(config)]
    # The published 786 M are these and an image tower of 417 M.
    assert round(sum(sizes) / 1e6, 1) == 368.4
    # One row of one input and one target: two FLOPs a parameter of the layers and of the head, but
    # for keys and values of the encoder's states, which the decoder's layers project as well; and
    # attention, 1 × 1 in the encoder and 1 × 2 in the decoder.
    layer = 640 * 1024 * 2 + 640 * 256 * 2 + 3 * 640 * 2048
    cross, attention = 640 * 256 * 2, 2 * 1024 * (1 + 2)
    expected = 2 * (18 * (2 * layer + cross + attention) + 640 * 262144)
    assert flops.forward_flops(config, 1, 1, 1) == expected


@pytest.mark.slow
def test_packed_rows_equal_the_sequences_alone():
    model, params = t5gemma()
    features = batch(rows=3, inputs=9, targets=7, vocab_size=60)
    alone = np.asarray(logits_of(model, params, features))
    row = packed(features, 30, 24)
    together = np.asarray(logits_of(model, params, row))[0]
    place = 0
    for index, targets in enumerate(features["decoder_target_tokens"]):
        length = int((targets > 0).sum())
        np.testing.assert_allclose(
            together[place : place + length], alone[index, :length], atol=2e-5
        )
        place += length


@pytest.mark.slow
def test_cached_greedy_equals_decoding_without_a_cache():
    model, params = t5gemma(num_encoder_layers=2, full_attention_period=2, num_decoder_layers=2)
    params["token_embedder"]["embedding"] *= 0.05  # else the last token repeats itself
    inputs = batch(rows=8, vocab_size=60)["encoder_input_tokens"]
    limit = 7  # beyond the window

    @jax.jit
    def logits_at(decoder_inputs):
        variables = {"params": params}
        return model.apply(variables, inputs, decoder_inputs, jnp.ones_like(decoder_inputs))

    outputs = np.zeros((len(inputs), limit), np.int32)
    for position in range(limit):
        shifted = np.pad(outputs, ((0, 0), (1, 0)))[:, :-1]
        outputs[:, position] = np.argmax(logits_at(shifted)[:, position], axis=-1)
    ended = np.cumsum(outputs == 1, axis=1) - (outputs == 1) > 0
    expected = np.where(ended, 0, outputs)
    found = jax.jit(lambda tokens: decoding.greedy_decode(model, params, tokens, limit))(inputs)
    np.testing.assert_array_equal(found, expected)
    assert len(set(map(tuple, expected.tolist()))) > 2


@pytest.mark.slow
def test_recomputation_changes_nothing():
    sizes = {"num_encoder_layers": 1, "num_decoder_layers": 1, "full_attention_period": 1}
    features = batch(rows=2, vocab_size=60)
    expected = None
    for policy in ("none", "minimal", "full"):
        model, params = t5gemma(**sizes, remat_policy=policy)

        def loss(params, model=model):
            return jnp.sum(model.apply({"params": params}, *arguments(features)) ** 2) / 1e4

        found = jax.jit(jax.grad(loss))(params)
        expected = expected or found
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scan_layers": True}, "scan_layers=True: expected False, as in every T5Gemma 2"),
        ({"num_kv_heads": 3}, "num_kv_heads=3: expected a divisor of 4"),
        ({"num_kv_heads": 0}, "num_kv_heads=0: expected a whole number >= 1"),
        ({"head_dim": 7}, "head_dim=7: expected an even number"),
        ({"rope_theta": 0}, "rope_theta=0: expected a number > 0"),
        ({"mlp_activations": ["relu"]}, r"mlp_activations=\('relu',\): expected \('gelu'"),
        ({"sliding_windows": 3}, "no field 'sliding_windows'; did you mean 'sliding_window'"),
    ],
)
def test_what_no_t5gemma_has_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        configs.named_config("t5gemma2_270m", **changes)
