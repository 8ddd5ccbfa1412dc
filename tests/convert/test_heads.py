"""Which output head a folder of HuggingFace has, by its tensors and its config.json (issue 9.5).

test_heads_transformers.py compares the logits with those of transformers.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from source_examples import BYTE_SIZED, V1_0, Memory, state_of, write_folder, write_state

from distill_sbs.convert import __main__ as command
from distill_sbs.convert.huggingface.files import HuggingFaceSource
from distill_sbs.convert.open import open_source
from distill_sbs.errors import UserError

SHARED, HEAD = "shared.weight", "lm_head.weight"
OF_ENCODER, OF_DECODER = "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"


def take(*names: str) -> Callable[[dict[str, np.ndarray]], None]:
    def change(state: dict[str, np.ndarray]) -> None:
        for name in names:
            state.pop(name, None)

    return change


def rename_embedding(*names: str) -> Callable[[dict[str, np.ndarray]], None]:
    def change(state: dict[str, np.ndarray]) -> None:
        embedding = state.pop(SHARED)
        state.update({name: embedding for name in names})

    return change


def open_changed(
    folder: pathlib.Path, memory: Memory, change: Callable[..., None], **values: Any
) -> HuggingFaceSource:
    state = state_of(memory)
    change(state)
    write_folder(folder, memory, **values)
    source = HuggingFaceSource(str(write_state(folder, state)))
    source.check(source.config)
    return source


@pytest.mark.slow
@pytest.mark.parametrize("tie", [None, True, False])
@pytest.mark.parametrize("names", [(OF_DECODER,), (OF_ENCODER,), (OF_ENCODER, OF_DECODER)])
def test_a_head_is_kept_whatever_the_embedding_is_called(
    tmp_path: pathlib.Path, names: tuple[str, ...], tie: bool | None
) -> None:
    """Issue 9.5: it was lost, with status 0."""
    memory = Memory(**BYTE_SIZED)
    source = open_changed(tmp_path, memory, rename_embedding(*names), tie_word_embeddings=tie)
    assert not source.config.logits_via_embedding
    for path, value in memory.values.items():
        np.testing.assert_array_equal(source.read(path), value, err_msg=path)
    assert bool(source.warnings) == (tie is not False)
    output = tmp_path / "native"
    arguments = ["--vocabulary_file=bytes", f"--input={tmp_path}"]
    assert command.main(["convert", "--to=native", *arguments, f"--output={output}x"]) == 2
    output = tmp_path.parent / f"{tmp_path.name}_native"
    assert command.main(["convert", "--to=native", *arguments, f"--output={output}"]) == 0
    head = "decoder/logits_dense/kernel"
    np.testing.assert_array_equal(open_source(str(output)).read(head), memory.values[head])


@pytest.mark.parametrize(
    ("changes", "change", "values", "missing"),
    [
        ({}, take(HEAD), {}, HEAD),
        ({}, take(HEAD), {"model_type": "mt5"}, HEAD),
        ({}, take(HEAD), {"model_type": "mt5", "tie_word_embeddings": None}, HEAD),
        (V1_0, take(), {"tie_word_embeddings": False}, HEAD),
        (V1_0, take(), {"tie_word_embeddings": False, "scale_decoder_outputs": True}, HEAD),
        ({}, take(SHARED), {}, SHARED),
        ({}, take(SHARED, HEAD), {"tie_word_embeddings": True}, SHARED),
        (V1_0, take(SHARED), {}, SHARED),
    ],
)
def test_a_missing_tensor_is_refused_unless_it_is_said_to_be_tied(
    tmp_path: pathlib.Path,
    changes: dict[str, Any],
    change: Callable[..., None],
    values: dict[str, Any],
    missing: str,
) -> None:
    with pytest.raises(UserError, match=f"has no tensor {re.escape(missing)}"):
        open_changed(tmp_path, Memory(**changes), change, **values)


@pytest.mark.parametrize(
    ("changes", "change", "values", "scaled"),
    [
        (V1_0, take(), {}, True),
        (V1_0, take(), {"tie_word_embeddings": True}, True),
        (V1_0, rename_embedding(OF_DECODER), {}, True),
        (V1_0, rename_embedding(HEAD), {}, True),
        ({}, take(HEAD), {"tie_word_embeddings": True, "scale_decoder_outputs": False}, False),
        ({}, take(HEAD), {"tie_word_embeddings": None, "scale_decoder_outputs": False}, False),
        ({}, take(HEAD), {"model_type": "mt5", "tie_word_embeddings": True}, False),
    ],
)
def test_a_tied_head_is_the_embedding(
    tmp_path: pathlib.Path,
    changes: dict[str, Any],
    change: Callable[..., None],
    values: dict[str, Any],
    scaled: bool,
) -> None:
    memory = Memory(**changes)
    source = open_changed(tmp_path, memory, change, **values)
    assert source.config.logits_via_embedding == scaled
    embedding = memory.values["token_embedder/embedding"]
    np.testing.assert_array_equal(source.read("token_embedder/embedding"), embedding)
    if not scaled:
        np.testing.assert_array_equal(source.read("decoder/logits_dense/kernel"), embedding.T)
    assert source.warnings == ()


@pytest.mark.parametrize(
    "names", [(SHARED, OF_ENCODER), (SHARED, OF_DECODER), (OF_ENCODER, OF_DECODER)]
)
def test_embeddings_that_differ(tmp_path: pathlib.Path, names: tuple[str, str]) -> None:
    def change(state: dict[str, np.ndarray]) -> None:
        embedding = state.pop(SHARED)
        state.update({names[0]: embedding, names[1]: embedding + 1})

    with pytest.raises(UserError, match=rf"{names[1]} of shape .* differs from {names[0]}"):
        open_changed(tmp_path, Memory(), change)
