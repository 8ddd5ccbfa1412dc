"""The student's network: names, packing, scanning, recomputation, padding, dropout."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from layer_stacking import stack_layers, unstack_layers
from model_examples import SMALL, batch, packed, student

from distill_sbs.model import layers, network
from distill_sbs.model.parameters import find_logical_axes, list_by_stack, list_parameters

LOGITS_FEATURES = (
    "encoder_input_tokens",
    "decoder_input_tokens",
    "decoder_target_tokens",
    "encoder_segment_ids",
    "decoder_segment_ids",
)


def arguments(features):
    return [features.get(name) for name in LOGITS_FEATURES]


@functools.partial(jax.jit, static_argnums=0)
def logits_of(model, params, features):
    return model.apply({"params": params}, *arguments(features))


def shapes(**changes):
    config = dataclasses.replace(SMALL, **changes)
    tree = jax.eval_shape(lambda: network.initial_parameters(config, jax.random.key(0)))
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join(part.key for part in path): leaf.shape for path, leaf in flat}


def test_names_and_shapes_are_t5x_s():
    found = shapes(num_encoder_layers=1, num_decoder_layers=1)
    kernel = {"query": (16, 16), "key": (16, 16), "value": (16, 16), "out": (16, 16)}
    expected = {
        "token_embedder/embedding": (48, 16),
        "encoder/relpos_bias/rel_embedding": (2, 32),
        "encoder/encoder_norm/scale": (16,),
        "decoder/relpos_bias/rel_embedding": (2, 32),
        "decoder/decoder_norm/scale": (16,),
        "decoder/logits_dense/kernel": (16, 48),
        "encoder/layers_0/pre_attention_layer_norm/scale": (16,),
        "encoder/layers_0/pre_mlp_layer_norm/scale": (16,),
        "decoder/layers_0/pre_self_attention_layer_norm/scale": (16,),
        "decoder/layers_0/pre_cross_attention_layer_norm/scale": (16,),
        "decoder/layers_0/pre_mlp_layer_norm/scale": (16,),
    }
    for block in (
        "encoder/layers_0/attention",
        "decoder/layers_0/self_attention",
        "decoder/layers_0/encoder_decoder_attention",
    ):
        expected |= {f"{block}/{name}/kernel": shape for name, shape in kernel.items()}
    for side in ("encoder", "decoder"):
        mlp = f"{side}/layers_0/mlp"
        expected |= {
            f"{mlp}/wi_0/kernel": (16, 24),
            f"{mlp}/wi_1/kernel": (16, 24),
            f"{mlp}/wo/kernel": (24, 16),
        }
    assert found == expected


def test_names_of_t5_1_0_and_of_scanned_layers():
    found = shapes(mlp_activations=("relu",), logits_via_embedding=True, scan_layers=True)
    assert found["encoder/layers/mlp/wi/kernel"] == (2, 16, 24)
    assert found["decoder/layers/pre_mlp_layer_norm/scale"] == (2, 16)
    assert found["decoder/relpos_bias/rel_embedding"] == (2, 32)
    assert not any("logits_dense" in path or "wi_0" in path for path in found)


def test_logical_axes():
    tree = {
        "token_embedder": {"embedding": np.zeros((3, 2))},
        "encoder": {
            "layers": {"attention": {"out": {"kernel": np.zeros((2, 4, 2))}}},
            "relpos_bias": {"rel_embedding": np.zeros((2, 32))},
        },
        "decoder": {
            "layers_11": {
                "mlp": {"wi_1": {"kernel": np.zeros((2, 5))}, "wo": {"kernel": np.zeros((5, 2))}},
                "pre_cross_attention_layer_norm": {"scale": np.zeros(2)},
            },
            "logits_dense": {"kernel": np.zeros((2, 3))},
        },
    }
    assert find_logical_axes(tree) == {
        "token_embedder": {"embedding": ("vocab", "embed")},
        "encoder": {
            "layers": {"attention": {"out": {"kernel": ("layers", "joined_kv", "embed")}}},
            "relpos_bias": {"rel_embedding": ("heads", "relpos_buckets")},
        },
        "decoder": {
            "layers_11": {
                "mlp": {"wi_1": {"kernel": ("embed", "mlp")}, "wo": {"kernel": ("mlp", "embed")}},
                "pre_cross_attention_layer_norm": {"scale": ("embed",)},
            },
            "logits_dense": {"kernel": ("embed", "vocab")},
        },
    }
    with pytest.raises(ValueError, match="encoder/adapter/kernel is not one of T5's"):
        find_logical_axes({"encoder": {"adapter": {"kernel": np.zeros((2, 2))}}})
    with pytest.raises(ValueError, match="has 1 dimensions; expected 2"):
        find_logical_axes({"token_embedder": {"embedding": np.zeros(2)}})


def test_every_parameter_has_axes():
    for scan_layers in (False, True):
        tree = student(scan_layers=scan_layers)[1]
        axes = find_logical_axes(tree)
        ranks = jax.tree.map(lambda leaf: leaf.ndim, tree)
        assert jax.tree.map(len, axes, is_leaf=lambda node: isinstance(node, tuple)) == ranks


def test_root_mean_square_norm_by_hand():
    # rms(3, 4) = sqrt(12.5)
    norm = layers.RootMeanSquareNorm(SMALL)
    output = norm.apply({"params": {"scale": jnp.array([1.0, 10.0])}}, jnp.array([3.0, 4.0]))
    np.testing.assert_allclose(output, [3 / 12.5**0.5, 40 / 12.5**0.5], rtol=1e-6)


@pytest.mark.slow
def test_stacking_and_back_is_identical_and_computes_the_same():
    model, params = student()
    stacked = stack_layers(params)
    jax.tree.map(np.testing.assert_array_equal, params, unstack_layers(stacked))
    scanned, _ = student(scan_layers=True)
    features = batch()
    np.testing.assert_allclose(
        logits_of(model, params, features), logits_of(scanned, stacked, features), atol=1e-5
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mlp_activations": ("relu",), "logits_via_embedding": True},
        {"num_decoder_layers": 3},
        {"relative_attention_per_layer": True},
    ],
    ids=["v1.1", "1.0", "unequal", "umT5"],
)
def test_the_list_of_parameters_is_what_the_network_makes(changes):
    model, _ = student(**changes)
    listed = list(list_parameters(model.config))
    assert {each.path: each.shape for each in listed} == shapes(**changes)
    axes = traverse_util.flatten_dict(find_logical_axes(student(**changes)[1]), sep="/")
    assert {each.path: each.axes for each in listed} == axes
    by_stack = [each.path for each in list_by_stack(model.config)]
    assert sorted(by_stack) == sorted(each.path for each in listed)
    # The layers of a stack follow one another.
    first = by_stack.index("decoder/layers_0/mlp/wo/kernel")
    assert by_stack[first + 1] == "decoder/layers_1/mlp/wo/kernel"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scan_layers", "policies"),
    [
        (False, ("none", "minimal")),
        pytest.param(True, ("none", "full"), marks=pytest.mark.campaign),
    ],
)
def test_recomputation_changes_nothing(scan_layers, policies):
    features = batch()
    gradients = {}
    for policy in policies:
        model, params = student(
            scan_layers=scan_layers,
            remat_policy=policy,
            dropout_rate=0.2,
            num_encoder_layers=1,
            num_decoder_layers=1,
        )

        def total(params, model=model):
            logits = model.apply(
                {"params": params},
                *arguments(features),
                enable_dropout=True,
                rngs={"dropout": jax.random.key(5, impl="rbg")},
            )
            return jnp.mean(jnp.square(logits))

        gradients[policy] = jax.jit(jax.grad(total))(params)
    for policy in policies[1:]:
        jax.tree.map(
            lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5),
            gradients["none"],
            gradients[policy],
        )


@pytest.mark.slow
def test_packed_rows_equal_the_sequences_alone():
    model, params = student()
    alone = batch(rows=3)
    row = packed(alone, 30, 20)
    of_packed = np.asarray(logits_of(model, params, row))[0]
    of_alone = np.asarray(logits_of(model, params, alone))
    real = alone["decoder_target_tokens"] > 0
    np.testing.assert_allclose(of_packed[: real.sum()], of_alone[real], atol=1e-5)


def test_segment_ids_of_one_side_only_are_refused():
    model, params = student()
    features = batch() | {"encoder_segment_ids": np.ones((3, 9), np.int32)}
    with pytest.raises(ValueError, match="only one of encoder and decoder"):
        logits_of(model, params, features)


@pytest.mark.slow
def test_padding_changes_nothing():
    model, params = student()
    features = batch()
    wider = {name: np.pad(array, ((0, 1), (0, 4))) for name, array in features.items()}
    real = features["decoder_target_tokens"] > 0
    narrow_logits = np.asarray(logits_of(model, params, features))
    wide_logits = np.asarray(logits_of(model, params, wider))
    assert np.isfinite(wide_logits).all()  # the last row is padding throughout
    np.testing.assert_allclose(wide_logits[:3, :6][real], narrow_logits[real], atol=1e-5)


@pytest.mark.slow
def test_a_later_target_does_not_change_an_earlier_logit():
    model, params = student()
    features = batch()
    changed = {name: array.copy() for name, array in features.items()}
    changed["decoder_input_tokens"][0, 3] = 7
    before = np.asarray(logits_of(model, params, features))
    after = np.asarray(logits_of(model, params, changed))
    np.testing.assert_allclose(after[0, :3], before[0, :3], atol=1e-6)
    assert abs(after[0, 3:] - before[0, 3:]).max() > 1e-3


@pytest.mark.slow
def test_dropout_depends_on_its_key_alone():
    model, params = student(dropout_rate=0.3)
    features = batch()

    @jax.jit
    def dropped(key):
        return model.apply(
            {"params": params}, *arguments(features), enable_dropout=True, rngs={"dropout": key}
        )

    one, same, other = (dropped(jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert abs(one - other).max() > 1e-2
    without = logits_of(model, params, features)
    np.testing.assert_array_equal(without, logits_of(model, params, features))
    assert abs(one - without).max() > 1e-2


@pytest.mark.slow
def test_dropout_of_hidden_states_is_drawn_once_for_a_row_s_positions():
    inputs = jnp.ones((2, 5, 64))
    output = layers.Dropout(0.5).apply({}, inputs, False, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_array_equal(output, jnp.broadcast_to(output[:, :1], output.shape))
    assert not np.array_equal(output[0], output[1])
    everywhere = layers.Dropout(0.5, broadcast_length=False).apply(
        {}, inputs, False, rngs={"dropout": jax.random.key(0)}
    )
    assert not np.array_equal(everywhere[:, 0], everywhere[:, 1])


@pytest.mark.slow
def test_bfloat16_computes_near_float32_from_float32_parameters():
    model, params = student()
    low, _ = student(dtype="bfloat16")
    features = batch()
    exact = np.asarray(logits_of(model, params, features))
    rough = logits_of(low, params, features)
    assert rough.dtype == jnp.float32
    error = np.linalg.norm(np.asarray(rough) - exact) / np.linalg.norm(exact)
    assert 1e-5 < error < 0.05
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}


def test_a_token_outside_the_vocabulary_is_not_silent():
    model, params = student()
    features = batch()
    features["encoder_input_tokens"][0, 0] = 48
    assert np.isnan(np.asarray(logits_of(model, params, features))[0]).any()


@pytest.mark.slow
def test_initial_scales():
    config_changes = dict(emb_dim=64, num_heads=4, head_dim=16, mlp_dim=128, vocab_size=500)
    config = dataclasses.replace(SMALL, **config_changes, num_decoder_layers=1)
    params = jax.jit(lambda key: network.initial_parameters(config, key))(jax.random.key(0))
    layer = params["encoder"]["layers_0"]
    assert float(params["token_embedder"]["embedding"].std()) == pytest.approx(1.0, rel=0.02)
    # fan_in 64: 1/8; the query by sqrt(16) less.
    assert float(layer["attention"]["key"]["kernel"].std()) == pytest.approx(1 / 8, rel=0.05)
    assert float(layer["attention"]["query"]["kernel"].std()) == pytest.approx(1 / 32, rel=0.05)
    assert float(layer["mlp"]["wo"]["kernel"].std()) == pytest.approx(128**-0.5, rel=0.05)
    assert (layer["pre_mlp_layer_norm"]["scale"] == 1.0).all()
