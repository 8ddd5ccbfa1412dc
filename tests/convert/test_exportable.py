"""Which students other forms cannot hold: told before anything is written."""

from __future__ import annotations

import dataclasses

import model_examples
import pytest
from source_examples import BYTE_SIZED, Memory

from distill_sbs.convert.write import _check_exportable
from distill_sbs.errors import UserError


@pytest.mark.parametrize("form", ["ctranslate2", "onnx"])
def test_what_a_server_does_not_do_is_refused(form: str) -> None:
    plain = Memory(**BYTE_SIZED)
    _check_exportable(plain, form)
    plain.decoder_starts = {"label": 2, "rationale": 3}
    with pytest.raises(UserError, match="shares its encoder: .*export it with --to=hf, or train"):
        _check_exportable(plain, form)
    _check_exportable(plain, "hf")


@pytest.mark.parametrize("form", ["ctranslate2", "onnx"])
def test_a_t5gemma_is_not_served(form: str) -> None:
    source = Memory(**BYTE_SIZED)
    model, _ = model_examples.t5gemma()
    source.config = dataclasses.replace(model.config)
    with pytest.raises(UserError, match="is a T5Gemma 2, which .* is not written for here"):
        _check_exportable(source, form)
    _check_exportable(source, "hf")
