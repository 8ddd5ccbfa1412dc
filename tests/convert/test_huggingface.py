"""HuggingFace's weights and settings to ours and back; errors name the tensor."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from model_examples import SMALL, student

from distill_sbs.convert.huggingface import tensor_names
from distill_sbs.model import config as configs

VARIANTS = {
    "v1.1": {},
    "1.0": {"mlp_activations": ("relu",), "logits_via_embedding": True},
    "stacked, unequal sides": {"scan_layers": True, "num_decoder_layers": 3},
}


def paths(tree, prefix=""):
    for name, child in tree.items():
        if isinstance(child, dict):
            yield from paths(child, f"{prefix}{name}/")
        else:
            yield prefix + name, child


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_there_and_back_is_identical(changes):
    model, params = student(**changes)
    state = tensor_names.to_huggingface_state(params, model.config)
    assert all(array.flags["C_CONTIGUOUS"] for array in state.values())
    back = tensor_names.from_huggingface_state(state, model.config)
    expected, found = dict(paths(params)), dict(paths(back))
    assert expected.keys() == found.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(found[path], array, err_msg=path, strict=True)


def test_linear_layers_are_transposed():
    model, params = student()
    state = tensor_names.to_huggingface_state(params, model.config)
    wo = params["decoder"]["layers_1"]["mlp"]["wo"]["kernel"]
    np.testing.assert_array_equal(state["decoder.block.1.layer.2.DenseReluDense.wo.weight"], wo.T)
    bias = params["encoder"]["relpos_bias"]["rel_embedding"]
    name = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    np.testing.assert_array_equal(state[name], bias.T)
    assert state["lm_head.weight"].shape == (48, 16)


def test_copies_of_the_embedding_may_stand_in_the_state():
    model, params = student(**VARIANTS["1.0"])
    state = tensor_names.to_huggingface_state(params, model.config)
    for name in (*tensor_names.EMBEDDING_COPIES, "lm_head.weight"):
        state[name] = state["shared.weight"]
    tensor_names.from_huggingface_state(state, model.config)


def test_errors_name_the_tensor_and_both_shapes():
    model, params = student()
    state = tensor_names.to_huggingface_state(params, model.config)
    name = "encoder.block.1.layer.0.SelfAttention.k.weight"
    with pytest.raises(ValueError, match=f"{name} is missing; expected shape .16, 16."):
        tensor_names.from_huggingface_state(
            {key: value for key, value in state.items() if key != name}, model.config
        )
    with pytest.raises(ValueError, match=f"{name} has shape .16, 8.; expected .16, 16."):
        tensor_names.from_huggingface_state(state | {name: np.zeros((16, 8))}, model.config)
    with pytest.raises(ValueError, match="encoder.block.2.layer.0.layer_norm.weight"):
        extra = {"encoder.block.2.layer.0.layer_norm.weight": np.zeros(16)}
        tensor_names.from_huggingface_state(state | extra, model.config)
    wider = dataclasses.replace(model.config, mlp_dim=32)
    with pytest.raises(ValueError, match=r"mlp/wi_0/kernel has shape \(16, 24\); expected"):
        tensor_names.to_huggingface_state(params, wider)
    del params["decoder"]["decoder_norm"]
    with pytest.raises(ValueError, match="decoder/decoder_norm/scale is missing"):
        tensor_names.to_huggingface_state(params, model.config)


@pytest.mark.parametrize("name", ["t5_1_1_xl", "t5_1_0_11b"])
def test_settings_there_and_back(name):
    config = configs.named_config(name)
    values = json.loads(json.dumps(tensor_names.config_to_huggingface(config)))
    assert tensor_names.config_from_huggingface(values) == config


def test_published_settings():
    # google/t5-v1_1-base and t5-small, as their config.json have it.
    values = {
        "model_type": "t5",
        "vocab_size": 32128,
        "d_model": 768,
        "d_kv": 64,
        "d_ff": 2048,
        "num_layers": 12,
        "num_decoder_layers": 12,
        "num_heads": 12,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    }
    assert tensor_names.config_from_huggingface(values) == configs.named_config("t5_1_1_base")
    values = {
        "model_type": "t5",
        "vocab_size": 32128,
        "d_model": 512,
        "d_kv": 64,
        "d_ff": 2048,
        "num_layers": 6,
        "num_heads": 8,
    }
    assert tensor_names.config_from_huggingface(values) == configs.named_config("t5_1_0_small")


def test_settings_that_transformers_5_wrote():
    # It calls v1.1 tied too, and keeps what matters in scale_decoder_outputs.
    values = tensor_names.config_to_huggingface(SMALL)
    values |= {"tie_word_embeddings": True, "scale_decoder_outputs": False}
    assert not tensor_names.config_from_huggingface(values).logits_via_embedding


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bert"}, "'bert' model"),
        ({"feed_forward_proj": "gelu"}, "feed_forward_proj='gelu'"),
        ({"d_kv": None}, "'d_kv'"),
    ],
)
def test_settings_of_another_model_are_refused(change, message):
    values = tensor_names.config_to_huggingface(SMALL) | change
    values = {name: value for name, value in values.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        tensor_names.config_from_huggingface(values)
