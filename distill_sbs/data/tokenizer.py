"""Token ids of a text, and the text of token ids, without TensorFlow: for a student that answers.

Enters: a checkpoint's description of its vocabulary (`data.sentencepiece_model.describe`). Leaves:
a tokenizer whose ids and texts are those of SeqIO's vocabularies, on which the student was trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import sentencepiece

from distill_sbs import constants
from distill_sbs.data.sentencepiece_model import BYTE_IDS, VocabularyDescription, read_model
from distill_sbs.data.trimmed_ids import TrimmedIds

# Natural-language-inference inputs carry the end token between premise and hypothesis, written
# as this text in the records (the published implementation joins them with tokenizer.eos_token).
SEPARATOR = "</s>"

# Ids of bytes begin behind padding, end and unknown.
_FIRST_BYTE_ID = BYTE_IDS - 256


class Encoder(Protocol):
    """What turns a text into ids: a tokenizer of this module, or a vocabulary of SeqIO's."""

    def encode(self, s: str, /) -> Sequence[int]:
        """Token ids of a text [S], without an end token."""


class Tokenizer(Encoder, Protocol):
    """Both directions."""

    def decode(self, ids: Iterable[int], /) -> str:
        """The text of token ids [L], up to the first end token."""


class SentencePieceTokenizer:
    """Tokens of a SentencePiece model.

    Args:
      model: the serialised model.
    """

    def __init__(self, model: bytes) -> None:
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)

    def encode(self, text: str, /) -> Sequence[int]:
        """Token ids of a text [S], without an end token."""
        ids: Sequence[int] = self._processor.EncodeAsIds(text)
        return ids

    def decode(self, ids: Iterable[int], /) -> str:
        """The text of token ids [L], up to the first end token; ids beyond the model's: unknown."""
        size, unknown = self._processor.GetPieceSize(), self._processor.unk_id()
        known = [int(each) if each < size else unknown for each in ids]
        text: str = self._processor.DecodeIds(_cut_behind_end(known))
        return text


class ByteTokenizer:
    """ByT5's tokens: the bytes of a text in UTF-8."""

    def encode(self, text: str, /) -> Sequence[int]:
        """Token ids of a text [S], without an end token."""
        return [byte + _FIRST_BYTE_ID for byte in text.encode("utf-8")]

    def decode(self, ids: Iterable[int], /) -> str:
        """The text of token ids [L], up to the first end token; what is no UTF-8 is left out."""
        numbers = [int(each) - _FIRST_BYTE_ID for each in _cut_behind_end(list(ids))]
        content = bytes(number for number in numbers if 0 <= number < 256)
        return content.decode("utf-8", errors="ignore")


class TrimmedTokenizer:
    """Tokens of a trimmed SentencePiece model.

    Args:
      ids: which pieces have an id.
    """

    def __init__(self, ids: TrimmedIds) -> None:
        self._ids = ids

    def encode(self, text: str, /) -> Sequence[int]:
        """Token ids of a text [S], without an end token.

        Raises:
          UncoveredTextError: a piece of it has none.
        """
        return self._ids.encode_covered(text)

    def decode(self, ids: Iterable[int], /) -> str:
        """The text of token ids [L], up to the first end token."""
        return self._ids.decode(_cut_behind_end(list(ids)))


def _cut_behind_end(ids: Sequence[int]) -> list[int]:
    ids = list(ids)
    return ids[: ids.index(constants.EOS_ID) + 1] if constants.EOS_ID in ids else ids


def from_description(description: VocabularyDescription) -> Tokenizer:
    """The tokenizer of a described vocabulary, out of the description alone.

    Raises:
      UserError: the description's checksum does not match its content.
    """
    if (trimmed := TrimmedIds.of(description)) is not None:
        return TrimmedTokenizer(trimmed)
    model = read_model(description)
    return ByteTokenizer() if model is None else SentencePieceTokenizer(model)


def encode_text(encoder: Encoder, text: str) -> list[int]:
    """Token ids of a text [S], `SEPARATOR` becoming the end token; no end token is added."""
    ids: list[int] = []
    for position, part in enumerate(text.split(SEPARATOR)):
        if position:
            ids.append(constants.EOS_ID)
        ids.extend(encoder.encode(part))
    return ids
