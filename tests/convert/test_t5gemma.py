"""T5Gemma 2 in folders of HuggingFace, without transformers: names, settings, refusals."""

from __future__ import annotations

import copy
import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from safetensors import numpy as safetensors
from source_examples import BYTES, Memory, assert_same_values, refusal, state_of, t5gemma_memory

from distill_sbs.convert.huggingface import settings
from distill_sbs.convert.huggingface.files import HuggingFaceSource, write_huggingface
from distill_sbs.convert.native import NativeSource, write_native
from distill_sbs.convert.t5x.files import write_t5x
from distill_sbs.errors import UserError
from distill_sbs.model import config as configs

BYTE_SIZED = {"vocab_size": 260, "num_encoder_layers": 1, "num_decoder_layers": 2}


def write(folder: pathlib.Path, source: Memory, rename: Callable[[str], str] = str) -> pathlib.Path:
    """A folder as transformers writes it, without an image tower."""
    folder.mkdir(exist_ok=True)
    state = {rename(name): value for name, value in state_of(source).items()}
    safetensors.save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(settings.make_settings(source.config)))
    return folder


def test_names_and_shapes_are_huggingface_s() -> None:
    state = state_of(t5gemma_memory())
    assert state["model.encoder.embed_tokens.weight"].shape == (64, 16)
    assert state["model.encoder.embed_tokens.eoi_embedding"].shape == (16,)
    assert state["model.decoder.layers.6.self_attn.q_proj.weight"].shape == (32, 16)
    assert state["model.decoder.layers.6.self_attn.k_proj.weight"].shape == (16, 16)
    assert state["model.encoder.layers.0.self_attn.o_proj.weight"].shape == (16, 32)
    assert state["model.encoder.layers.0.self_attn.k_norm.weight"].shape == (8,)
    assert state["model.encoder.layers.0.mlp.down_proj.weight"].shape == (16, 24)
    assert state["model.decoder.norm.weight"].shape == (16,)
    # Of a layer four norms, six tensors of attention, three of feed-forward.
    assert len(state) == 2 * 7 * 13 + 2 + 2


@pytest.mark.parametrize(
    "rename",
    [str, lambda name: name.replace("encoder.", "encoder.text_model.", 1)],
    ids=["as on disk", "as in memory"],
)
def test_reads_values_whole_and_in_parts(
    tmp_path: pathlib.Path, rename: Callable[[str], str]
) -> None:
    memory = t5gemma_memory(num_decoder_layers=3)
    source = HuggingFaceSource(str(write(tmp_path, memory, rename)))
    assert source.config == memory.config
    assert source.warnings == ()
    assert_same_values(source, memory)


def test_there_and_back(tmp_path: pathlib.Path) -> None:
    memory = t5gemma_memory(**BYTE_SIZED)
    write_huggingface(memory, str(tmp_path / "given"), vocabulary=BYTES, with_tokenizer=False)
    given = HuggingFaceSource(str(tmp_path / "given"))
    given.check(memory.config)
    write_native(given, str(tmp_path / "native"), vocabulary=BYTES)
    native = NativeSource(str(tmp_path / "native"))
    assert native.config == memory.config
    assert_same_values(native, memory)
    write_huggingface(native, str(tmp_path / "back"), with_tokenizer=False)
    first, second = (
        safetensors.load_file(tmp_path / name / "model.safetensors") for name in ("given", "back")
    )
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name, strict=True)


def test_other_forms_refuse_it(tmp_path: pathlib.Path) -> None:
    memory = t5gemma_memory(**BYTE_SIZED)
    with pytest.raises(UserError, match="is a T5Gemma 2, expected a T5, for T5X has no network"):
        write_t5x(memory, str(tmp_path / "t5x"))
    with pytest.raises(UserError, match="--scan_layers: T5Config.scan_layers=True: expected False"):
        write_native(memory, str(tmp_path / "out"), vocabulary=BYTES, scan_layers=True)
    with pytest.raises(UserError, match="memory is a T5Gemma 2, expected a T5; STUDENT"):
        memory.check(configs.T5Config())
    with pytest.raises(UserError, match="memory is a T5, expected a T5Gemma 2; STUDENT"):
        Memory().check(memory.config)


def test_another_window_is_another_student(tmp_path: pathlib.Path) -> None:
    memory = t5gemma_memory()
    source = HuggingFaceSource(str(write(tmp_path, memory)))
    with pytest.raises(UserError, match="has sliding_window=4, expected 5"):
        source.check(dataclasses.replace(memory.config, sliding_window=5))


def test_a_head_of_its_own_is_refused(tmp_path: pathlib.Path) -> None:
    memory = t5gemma_memory(num_encoder_layers=1, num_decoder_layers=1)
    folder = write(tmp_path, memory)
    state = state_of(memory)
    embedding = state["model.encoder.embed_tokens.weight"]
    state["lm_head.out_proj.weight"] = embedding + np.eye(*embedding.shape, dtype=np.float32)
    safetensors.save_file(state, folder / "model.safetensors")
    assert "lm_head.out_proj.weight of shape (64, 16) differs" in refusal(folder)


@pytest.mark.parametrize("name", ["t5gemma2_270m", "t5gemma2_4b"])
def test_settings_there_and_back(name: str) -> None:
    config = configs.named_config(name)
    values = json.loads(json.dumps(settings.make_settings(config)))
    assert settings.read_settings(values).config == config


def test_the_json_form_there_and_back() -> None:
    config = configs.named_config("t5gemma2_1b", dtype="bfloat16")
    values = json.loads(json.dumps(config.to_dict()))
    assert values["architecture"] == "t5gemma2"
    assert configs.T5Config.from_dict(values) == config
    with pytest.raises(ValueError, match=r"T5Config has no field 'num_kv_heads'"):
        configs.named_config("t5_1_1_base", num_kv_heads=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.pop("decoder"), "no decoder, or one that is no object"),
        (lambda values: values["encoder"].update(text_config=3), "no encoder.text_config, or one"),
        (lambda values: values["decoder"].pop("head_dim"), "no decoder.head_dim; is it a T5G"),
        (lambda values: values["decoder"].update(head_dim=16), "head_dim of 8 in encoder.text_con"),
        (
            lambda values: values["decoder"].update(final_logit_softcapping=30.0),
            "decoder.final_logit_softcapping=30.0; expected None",
        ),
        (lambda values: values["decoder"].update(attention_bias=True), "attention_bias=True"),
        (lambda values: values["decoder"].update(eos_token_id=3), "eos_token_id=3; expected 1"),
        (
            lambda values: values["decoder"].update(layer_types=["full_attention"] * 2),
            r"decoder.layer_types=\['full_attention', .*; expected 7 of 'sliding_attention'",
        ),
        (
            lambda values: values["decoder"].update(num_hidden_layers=True),
            "decoder.num_hidden_layers=True; expected a whole",
        ),
        (
            lambda values: values["decoder"]["rope_parameters"]["full_attention"].update(
                rope_type="yarn"
            ),
            "rope_parameters.full_attention of type 'yarn'; expected 'default'",
        ),
        (
            lambda values: [
                each.update(num_key_value_heads=3)
                for each in (values["encoder"]["text_config"], values["decoder"])
            ],
            "config.json has num_key_value_heads=3: expected a divisor of 4",
        ),
        (lambda values: values.update(eoi_token_index="x"), "end_of_image_id='x': expected a"),
        (lambda values: values.update(dropout_rate=2), "dropout_rate=2: expected 0 <= rate"),
    ],
)
def test_what_no_student_computes_is_refused(change: Callable[[Any], object], message: str) -> None:
    values = copy.deepcopy(settings.make_settings(t5gemma_memory().config))
    change(values)
    with pytest.raises(ValueError, match=message) as error:
        settings.read_settings(values)
    assert "\n" not in str(error.value)
