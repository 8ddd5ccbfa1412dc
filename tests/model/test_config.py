"""Sizes by name, checked values, and the round trip through JSON."""

from __future__ import annotations

import json

import pytest

from distill_sbs.model import config as configs
from distill_sbs.model.parameters import list_parameters


@pytest.mark.parametrize(
    ("name", "parameters_in_millions"),
    # Counts that HuggingFace's models of these sizes have.
    [
        ("t5_1_1_small", 77.0),
        ("t5_1_1_base", 247.6),
        ("t5_1_0_small", 60.5),
        ("t5_1_0_base", 222.9),
        ("byt5_small", 299.6),
        ("mt5_small", 300.2),
        ("umt5_small", 306.6),
    ],
)
def test_published_sizes_have_the_published_number_of_parameters(name, parameters_in_millions):
    config = configs.named_config(name)
    count = 0
    for tensor in list_parameters(config):
        size = 1
        for dimension in tensor.shape:
            size *= dimension
        count += size
    assert round(count / 1e6, 1) == parameters_in_millions


def test_overrides_replace_fields():
    config = configs.named_config("t5_1_1_tiny", vocab_size=1000, scan_layers=True)
    assert (config.vocab_size, config.scan_layers, config.emb_dim) == (1000, True, 128)


def test_round_trip_through_json():
    config = configs.named_config("t5_1_0_3b", dtype="bfloat16", remat_policy="full")
    assert configs.T5Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert hash(config)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: configs.named_config("t5_1_1_bsae"), "'t5_1_1_base'"),
        (lambda: configs.named_config("t5_1_1_base", drop_rate=0.1), "'dropout_rate'"),
        (lambda: configs.T5Config.from_dict({"emb_dims": 3}), "'emb_dim'"),
        (lambda: configs.named_config("t5_1_1_base", dtype="bfloat"), "'bfloat16'"),
        (lambda: configs.named_config("t5_1_1_base", remat_policy="all"), "none, minimal, full"),
        (lambda: configs.named_config("t5_1_1_base", num_heads=0), "num_heads=0"),
        (lambda: configs.named_config("t5_1_1_base", dropout_rate=1.0), "dropout_rate=1.0"),
        (lambda: configs.named_config("t5_1_1_base", mlp_activations=["gelo"]), "'gelu'"),
    ],
)
def test_errors_name_what_was_got_and_what_is_near(call, message):
    with pytest.raises(ValueError, match=message):
        call()
