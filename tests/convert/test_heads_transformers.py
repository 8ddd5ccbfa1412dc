"""Logits of every kind of head (test_heads.py), compared with those that transformers computes."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flax import traverse_util
from source_examples import V1_0, Memory
from test_heads import HEAD, OF_DECODER, OF_ENCODER, open_changed, rename_embedding, take

from distill_sbs.convert.huggingface.files import HuggingFaceSource
from distill_sbs.model.network import Transformer

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

pytestmark = pytest.mark.parity

INPUTS, TARGETS = [[5, 7, 9, 1]], [[4, 8, 1]]
TIED = {"tie_word_embeddings": True}
UNSCALED = {"tie_word_embeddings": True, "scale_decoder_outputs": False}
OF_V1_1 = {"tie_word_embeddings": False}
D_MODEL = 16


def our_logits(source: HuggingFaceSource) -> np.ndarray:
    values = {path: source.read(path) for path in source.shapes()}
    params = traverse_util.unflatten_dict(values, sep="/")
    inputs, targets = np.array(INPUTS, np.int32), np.array(TARGETS, np.int32)
    shifted = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
    logits = Transformer(source.config).apply({"params": params}, inputs, shifted, targets)
    return np.asarray(logits)


def their_logits(folder: pathlib.Path) -> np.ndarray:
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    with torch.no_grad():
        given = {"input_ids": torch.tensor(INPUTS), "labels": torch.tensor(TARGETS)}
        return model(**given).logits.numpy()


@pytest.mark.parametrize(
    ("changes", "change", "values", "factor"),
    [
        ({}, take(), OF_V1_1, 1.0),
        ({}, rename_embedding(OF_DECODER), OF_V1_1, 1.0),
        ({}, rename_embedding(OF_ENCODER), OF_V1_1, 1.0),
        ({}, rename_embedding(OF_ENCODER, OF_DECODER), OF_V1_1, 1.0),
        ({}, rename_embedding(OF_DECODER), UNSCALED, 1.0),
        ({}, take(), UNSCALED, 1.0),
        ({}, take(HEAD), UNSCALED, 1.0),
        ({}, take(), {"model_type": "mt5"}, 1.0),
        ({}, take(HEAD), {"model_type": "mt5", **TIED}, 1.0),
        (V1_0, take(), {}, 1.0),
        (V1_0, rename_embedding(OF_DECODER), TIED, 1.0),
        (V1_0, rename_embedding(HEAD), {}, 1.0),
        # What the warning is about: transformers 5 scales the logits of a head of its own.
        ({}, rename_embedding(OF_DECODER), {"tie_word_embeddings": None}, D_MODEL**-0.5),
        ({}, take(), TIED, D_MODEL**-0.5),
    ],
)
def test_logits_are_those_of_transformers(
    tmp_path: pathlib.Path,
    changes: dict[str, Any],
    change: Callable[..., None],
    values: dict[str, Any],
    factor: float,
) -> None:
    source = open_changed(tmp_path, Memory(**changes), change, **values)
    ours, theirs = our_logits(source) * factor, their_logits(tmp_path)
    assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()
    assert bool(source.warnings) == (factor != 1.0)
