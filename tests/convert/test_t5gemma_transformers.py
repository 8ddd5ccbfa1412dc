"""T5Gemma 2, asked of transformers itself: what it saves is read, what is written it loads."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
from test_convert_transformers import assert_same_state, load, logged  # noqa: F401

from distill_sbs.convert.huggingface import settings
from distill_sbs.convert.huggingface.files import HuggingFaceSource
from distill_sbs.convert.write import convert_checkpoint

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from model_examples import SMALL_T5GEMMA  # noqa: E402
from parity_state import tree_of_state  # noqa: E402

from distill_sbs.model import decoding, losses, network  # noqa: E402

pytestmark = pytest.mark.parity


def random_model() -> Any:
    """transformers' T5Gemma 2, whose every weight of text is random."""
    values = settings.make_settings(SMALL_T5GEMMA)
    model = transformers.T5Gemma2ForConditionalGeneration(
        transformers.T5Gemma2Config(**values)
    ).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_small = parameter.ndim == 1 or "embed" in name
            spread = 0.3 if is_small else parameter.shape[-1] ** -0.5
            parameter.normal_(0.0, spread, generator=generator)
    return model
