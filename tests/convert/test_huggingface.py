"""HuggingFace's names of tensors and its settings, to ours and back."""

from __future__ import annotations

import json

import numpy as np
import pytest
from model_examples import SMALL, student
from parity_state import state_of_tree, tree_of_state

from distill_sbs.convert.huggingface.settings import make_settings, read_settings
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
    state = state_of_tree(params, model.config)
    assert all(array.flags["C_CONTIGUOUS"] for array in state.values())
    back = tree_of_state(state, model.config)
    expected, found = dict(paths(params)), dict(paths(back))
    assert expected.keys() == found.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(found[path], array, err_msg=path, strict=True)


def test_linear_layers_are_transposed():
    model, params = student()
    state = state_of_tree(params, model.config)
    wo = params["decoder"]["layers_1"]["mlp"]["wo"]["kernel"]
    np.testing.assert_array_equal(state["decoder.block.1.layer.2.DenseReluDense.wo.weight"], wo.T)
    bias = params["encoder"]["relpos_bias"]["rel_embedding"]
    name = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    np.testing.assert_array_equal(state[name], bias.T)
    assert state["lm_head.weight"].shape == (48, 16)


@pytest.mark.parametrize("name", ["t5_1_1_xl", "t5_1_0_11b"])
def test_settings_there_and_back(name):
    config = configs.named_config(name)
    values = json.loads(json.dumps(make_settings(config)))
    assert read_settings(values).config == config


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
    assert read_settings(values).config == configs.named_config("t5_1_1_base")
    values = {
        "model_type": "t5",
        "vocab_size": 32128,
        "d_model": 512,
        "d_kv": 64,
        "d_ff": 2048,
        "num_layers": 6,
        "num_heads": 8,
    }
    assert read_settings(values).config == configs.named_config("t5_1_0_small")


def test_settings_that_transformers_5_wrote():
    # It calls v1.1 tied too, and keeps what matters in scale_decoder_outputs.
    values = make_settings(SMALL)
    values |= {"tie_word_embeddings": True, "scale_decoder_outputs": False}
    assert not read_settings(values).config.logits_via_embedding


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bert"}, "'bert' model"),
        ({"feed_forward_proj": "gelu"}, "feed_forward_proj='gelu'"),
        ({"d_kv": None}, "'d_kv'"),
    ],
)
def test_settings_of_another_model_are_refused(change, message):
    values = make_settings(SMALL) | change
    values = {name: value for name, value in values.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        read_settings(values)
