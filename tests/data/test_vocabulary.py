"""vocabulary: one place to choose it, the separator, and a description that travels."""

from __future__ import annotations

import base64
import copy
import json
import os
import pathlib
import pickle
import shutil
import tempfile
from typing import Any

import pytest
import seqio
import tensorflow as tf

from distill_sbs.data import settings, vocabulary
from distill_sbs.errors import UserError


@pytest.fixture
def t5_file(source_dir: pathlib.Path) -> str:
    return str(source_dir.parent / "vocab" / "spiece.model")


def test_bytes_are_byt5s() -> None:
    # ByT5 keeps 0, 1, 2 for padding, end and unknown: 'a' is 97 + 3.
    assert vocabulary.load("bytes").encode("ab") == [100, 101]


def test_separator_becomes_the_end_token() -> None:
    loaded = vocabulary.load("bytes")
    assert vocabulary.encode_text(loaded, "a</s>b</s>c") == [100, 1, 101, 1, 102]
    assert vocabulary.encode_text(loaded, "ab") == [100, 101]


@pytest.mark.parametrize("text", ["a</s>b", "ab", "</s>", "a</s>b</s>c\nd", ""])
def test_tensorflow_encodes_alike(text: str) -> None:
    loaded = vocabulary.load("bytes")
    ids = vocabulary.encode_text_tf(loaded, tf.constant(text)).numpy().tolist()
    assert ids == vocabulary.encode_text(loaded, text)


def test_embedded_has_t5s_special_ids() -> None:
    loaded = vocabulary.load("embedded")
    assert (loaded.pad_id, loaded.eos_id, loaded.unk_id) == (0, 1, 2)


@pytest.mark.realdata
def test_t5_vocabulary(t5_file: str) -> None:
    loaded = vocabulary.load(t5_file)
    assert loaded.vocab_size == 32000
    # T5 has no newline: it is a space to it.
    assert loaded.encode("hello\nworld") == loaded.encode("hello world") == [21820, 296]


@pytest.mark.realdata
@pytest.mark.parity
def test_t5_inputs_equal_huggingface(
    t5_file: str, source_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Premise, end token, hypothesis: ids equal to HuggingFace's T5 tokenizer on real pairs."""
    transformers = pytest.importorskip("transformers")
    shutil.copy(t5_file, tmp_path / "spiece.model")
    tokenizer = transformers.T5Tokenizer.from_pretrained(str(tmp_path))
    loaded = vocabulary.load(t5_file)
    lines = (source_dir / "anli1" / "anli1_test.json").read_text().splitlines()[:50]
    for line in lines:
        row = json.loads(line)
        parts = [f"predict: {row['premise']}", row["hypothesis"]]
        expected = tokenizer(parts[0]).input_ids + tokenizer(parts[1]).input_ids
        text = vocabulary.SEPARATOR.join(parts)
        assert [*vocabulary.encode_text(loaded, text), 1] == expected


@pytest.mark.parametrize("name", [None, "", "/nowhere/spiece.model"])
def test_a_missing_vocabulary_is_named(name: str | None) -> None:
    with pytest.raises(UserError, match="VOCABULARY_FILE"):
        vocabulary.load(name)


def test_a_file_that_is_no_model(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "broken.model"
    path.write_bytes(b"not a model")
    with pytest.raises(UserError, match="is no SentencePiece model"):
        vocabulary.load(str(path))


@pytest.fixture
def described(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A description of the embedded vocabulary, on a machine whose temporary folder is watched."""
    description = vocabulary.describe("embedded")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return description


def test_description_holds_the_whole_vocabulary(
    described: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    again = vocabulary.from_description(described)
    assert isinstance(again, seqio.SentencePieceVocabulary)
    loaded = vocabulary.load("embedded")
    text = "Anna has 3 apples."
    ids = loaded.encode(text)
    assert again.encode(text) == ids
    assert again.encode_tf(tf.constant(text)).numpy().tolist() == ids
    assert again.decode(ids) == again.decode_tf(tf.constant(ids)).numpy().decode() == text
    assert (again.vocab_size, again.eos_id, again.unk_id) == (loaded.vocab_size, 1, 2)
    assert not list(tmp_path.iterdir())


def test_a_vocabulary_left_in_the_temporary_folder_is_not_used(
    described: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    """Version 0.1 trusted a file there by its size; here its pieces are swapped, at that size."""
    model = base64.b64decode(described["model_base64"])
    folder = tmp_path / f"distill_sbs_vocabulary_{os.getuid()}"
    folder.mkdir()
    swapped = model.replace("▁apples".encode(), "▁selppa".encode())
    assert swapped != model
    (folder / f"{described['sha256']}.model").write_bytes(swapped)
    ids = vocabulary.load("embedded").encode("apples")
    assert vocabulary.from_description(described).encode("apples") == ids


def test_a_stored_vocabulary_is_copied_and_compared_by_content(described: dict[str, Any]) -> None:
    one, other = (vocabulary.from_description(described) for _ in range(2))
    assert one == other == pickle.loads(pickle.dumps(one)) == copy.deepcopy(one)
    assert hash(one) == hash(other)
    assert one != vocabulary.load("bytes")


def test_the_tasks_use_the_vocabulary_of_the_settings(described: dict[str, Any]) -> None:
    own = vocabulary.from_description(described)
    settings.use(settings.DataSettings(vocabulary=own, vocabulary_file="bytes"))
    try:
        assert vocabulary.ConfiguredVocabulary().encode("Anna") == own.encode("Anna")
    finally:
        settings.provide(settings.DataSettings)


@pytest.mark.parametrize(
    "change", [{"sha256": "0" * 64}, {"model_base64": "AAAA"}, {"model_base64": "é not base64"}]
)
def test_a_damaged_description_is_refused(
    described: dict[str, Any], change: dict[str, str]
) -> None:
    with pytest.raises(UserError, match="the checkpoint is damaged"):
        vocabulary.from_description({**described, **change})
