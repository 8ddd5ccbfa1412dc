"""T5Gemma 2, asked of transformers itself: what it saves is read, what is written it loads."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from model_examples import SMALL_T5GEMMA, shift_right
from test_convert_transformers import assert_same_state, load, logged  # noqa: F401

from distill_sbs.convert.huggingface import settings
from distill_sbs.convert.huggingface.files import HuggingFaceSource
from distill_sbs.convert.write import convert_checkpoint
from distill_sbs.model import decoding, losses, network

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

pytestmark = pytest.mark.parity

CONFIG = dataclasses.replace(SMALL_T5GEMMA, vocab_size=640)


def random_model() -> Any:
    """transformers' T5Gemma 2, whose every weight of text is random."""
    values = transformers.T5Gemma2Config(**settings.make_settings(CONFIG))
    model = transformers.T5Gemma2ForConditionalGeneration(values).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_image = "vision" in name or "multi_modal" in name
            spread = 0.3 if parameter.ndim == 1 or "embed" in name else parameter.shape[-1] ** -0.5
            parameter.normal_(0.0, 0.0 if is_image else spread, generator=generator)
    return model


@pytest.fixture(scope="module")
def model() -> Any:
    return random_model()


def examples() -> tuple[np.ndarray, np.ndarray]:
    """Inputs longer than a window, padded; among them the end of an image. Targets, padded."""
    generator = np.random.default_rng(0)
    inputs, targets = (generator.integers(3, 640, (4, width)) for width in (11, 9))
    inputs[0, 8:], inputs[2, 5:], targets[1, 6:] = 0, 0, 0
    inputs[1, 3] = CONFIG.end_of_image_id
    return inputs.astype(np.int32), targets.astype(np.int32)


@pytest.mark.slow
@pytest.mark.parametrize("files", ["one file", "shards in bfloat16"])
def test_there_and_back(
    model: Any,
    files: str,
    tmp_path: pathlib.Path,
    logged: list[str],  # noqa: F811
) -> None:
    given, native, back = (tmp_path / name for name in ("given", "native", "back"))
    expected = model
    if "bfloat16" in files:
        expected = random_model().to(torch.bfloat16)
    expected.save_pretrained(given, max_shard_size="20KB" if "shards" in files else "50GB")
    assert (given / "model.safetensors").exists() == (files == "one file")
    expected = expected.float()
    convert_checkpoint(str(given), str(native), "native", form="hf", vocabulary_file="embedded")
    convert_checkpoint(str(native), str(back), "hf")
    found, tokenizer = load(back)
    assert_same_state(found, expected)
    inputs = tokenizer(["predict: Which?", "explain: Why so?"], padding=True, return_tensors="pt")
    inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    ours, theirs = (each.generate(**inputs, max_new_tokens=8) for each in (found, expected))
    assert torch.equal(ours, theirs) and len(set(ours.flatten().tolist())) > 2
    assert logged == []


@pytest.mark.slow
def test_outputs_loss_and_decoding(model: Any, tmp_path: pathlib.Path) -> None:
    model.save_pretrained(tmp_path)
    source = HuggingFaceSource(str(tmp_path))
    assert source.config == CONFIG
    values = {path: source.read(path) for path in source.shapes()}
    params = traverse_util.unflatten_dict(values, sep="/")
    ours = network.Transformer(source.config)
    inputs, targets = examples()
    shifted = shift_right(targets)
    given = {"input_ids": torch.tensor(inputs), "attention_mask": torch.tensor(inputs > 0).long()}
    labels = torch.tensor(targets).long()
    with torch.no_grad():
        expected = model(**given, labels=torch.where(labels == 0, -100, labels))

    @jax.jit
    def run(inputs: jax.Array, targets: jax.Array) -> tuple[jax.Array, ...]:
        variables = {"params": params}
        encoded = ours.apply(variables, inputs, method="encode")
        logits = ours.apply(variables, inputs, shifted, targets)
        hidden = ours.apply(variables, inputs, shifted, targets, method="hidden")
        weights = network.output_weights(params, CONFIG)
        each = losses.token_losses(hidden, weights, targets, CONFIG).cross_entropy
        loss = jnp.sum(jnp.where(targets > 0, each, 0.0)) / (targets > 0).sum()
        greedy = decoding.greedy_decode(ours, params, inputs, 12)
        return encoded, logits, loss, greedy, decoding.beam_decode(ours, params, inputs, 12, 3)

    encoded, logits, loss, greedy, beams = map(np.asarray, run(inputs, targets))
    states = expected.encoder_last_hidden_state.numpy()
    assert np.abs(encoded - states)[inputs > 0].max() < 1e-4
    assert np.abs(logits - expected.logits.numpy())[targets > 0].max() < 1e-4
    assert 0.5 < logits.std() < 3
    assert abs(float(loss) / float(expected.loss) - 1) < 1e-5
    for found, size in ((greedy, 1), (beams, 3)):
        options = {"max_new_tokens": 12, "do_sample": False, "num_beams": size}
        with torch.no_grad():
            tokens = model.generate(**given, **options).numpy()[:, 1:]
        np.testing.assert_array_equal(found[:, : tokens.shape[1]], tokens)
        assert not found[:, tokens.shape[1] :].any()
    assert len(set(map(tuple, greedy.tolist()))) > 2
