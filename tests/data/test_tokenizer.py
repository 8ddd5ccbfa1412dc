"""tokenizer: the ids and texts are those of SeqIO's vocabularies."""

from __future__ import annotations

import numpy as np
import pytest

from distill_sbs.data import tokenizer, vocabulary
from distill_sbs.errors import UserError

TEXTS = (
    "Anna has 12 apples.",
    "  two  blanks\nand a line ",
    "héllo ☃ 日本 \U0001f600",
    "",
    "a</s>b",
)


@pytest.mark.parametrize("name", ["embedded", "bytes"])
def test_ids_and_texts_are_those_of_seqio(name: str) -> None:
    theirs = vocabulary.load(name)
    ours = tokenizer.from_description(vocabulary.describe(name))
    random = np.random.default_rng(0)
    for text in TEXTS:
        assert list(ours.encode(text)) == list(theirs.encode(text))
        ids = tokenizer.encode_text(ours, text)
        assert ids == tokenizer.encode_text(theirs, text)
        assert ours.decode(ids) == theirs.decode(ids)
    for _ in range(200):
        # Padding, ends in the middle, and ids beyond the vocabulary among them.
        ids = random.integers(0, theirs.vocab_size + 20, 12).tolist()
        assert ours.decode(ids) == theirs.decode(ids), ids


def test_bytes_by_hand() -> None:
    ours = tokenizer.from_description({"kind": "bytes"})
    assert ours.encode("Aé") == [68, 198, 172]
    assert ours.decode([0, 68, 300, 198, 172, 1, 68]) == "Aé"  # ended; 300 is no byte
    assert ours.decode([198]) == ""  # half a character
    assert tokenizer.encode_text(ours, "A</s>B") == [68, 1, 69]


def test_a_damaged_description_is_refused() -> None:
    described = vocabulary.describe("embedded")
    with pytest.raises(UserError, match="has sha256 .*, expected 00: the checkpoint is damaged"):
        tokenizer.from_description({**described, "sha256": "00"})
    with pytest.raises(UserError, match="is no base64"):
        tokenizer.from_description({**described, "model_base64": "?"})
