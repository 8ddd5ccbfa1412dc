"""The ids of a trimmed vocabulary: which are kept, and what each is in the whole one.

Enters: the ids of the whole SentencePiece model that are kept. Leaves: ids of a student whose
embedding has a row for each of them, and back; what a text holds that has no row.

A text is segmented by the whole model and its ids are mapped, for a model without the pieces that
were taken out would segment other texts otherwise. A piece that is not kept becomes an id beyond
the student's, which says which one it was, until `check_covered` refuses it: no student sees it.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import sentencepiece

from distill_sbs.data import sentencepiece_model
from distill_sbs.data.sentencepiece_model import VocabularyDescription
from distill_sbs.errors import UserError

# Kept ids are filled up to a multiple of this, which devices divide and processors like.
ROW_MULTIPLE = 128

# Shown of the pieces that are missing, and of a text that holds one.
_MOST_PIECES, _MOST_CHARACTERS = 5, 60


class UncoveredTextError(UserError):
    """A text holds pieces that a trimmed vocabulary does not have."""


class TrimmedIds:
    """Maps ids of a whole SentencePiece model to those of a trimmed vocabulary, and back.

    Args:
      model: the serialised model.
      kept: int32 [N], the model's ids that are kept, ascending; the place is the trimmed id.

    Attributes:
      kept: the same.
      table: int32 [pieces of the model], the trimmed id of each; N and its own for one without.
    """

    def __init__(self, model: bytes, kept: np.ndarray) -> None:
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.kept = kept
        pieces = self._processor.GetPieceSize()
        self.table = len(kept) + np.arange(pieces, dtype=np.int32)
        within = kept[kept < pieces]
        self.table[within] = np.arange(len(within), dtype=np.int32)

    @classmethod
    def of(cls, description: VocabularyDescription) -> TrimmedIds | None:
        """Those of a described vocabulary; None of one that is whole.

        Raises:
          UserError: the description is damaged.
        """
        kept = sentencepiece_model.read_kept(description)
        model = sentencepiece_model.read_model(description)
        return None if kept is None or model is None else cls(model, kept)

    @property
    def size(self) -> int:
        """N, how many ids there are."""
        return len(self.kept)

    def encode(self, text: str) -> list[int]:
        """Trimmed ids of a text [S]; N and more for pieces that have none."""
        ids: list[int] = self.table[self._processor.EncodeAsIds(text)].tolist()
        return ids

    def encode_covered(self, text: str) -> list[int]:
        """Trimmed ids of a text [S].

        Raises:
          UncoveredTextError: a piece of it has none.
        """
        ids = self.encode(text)
        if missing := self.find_missing(ids):
            raise UncoveredTextError(
                f"{_shorten(text)!r} holds {self.name_pieces(missing)}, which the student's trimmed"
                f" vocabulary of {self.size:,} ids lacks; {REMEDY}"
            )
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of trimmed ids; of those beyond N too, what they stand for."""
        pieces = self._processor.GetPieceSize()
        whole = [self._whole_id(each) for each in ids]
        known = [each if each < pieces else self._processor.unk_id() for each in whole]
        text: str = self._processor.DecodeIds(known)
        return text

    def find_missing(self, ids: Iterable[int]) -> list[int]:
        """The model's ids of the pieces that have no trimmed id, each as often as it is there."""
        return [int(each) - self.size for each in ids if each >= self.size]

    def name_pieces(self, missing: Sequence[int]) -> str:
        """In words: "3 pieces ('▁zebra' 2, 'ü' 1)"."""
        counts = collections.Counter(missing).most_common()
        shown = [
            f"{self._processor.IdToPiece(each)!r} {count:,}"
            for each, count in counts[:_MOST_PIECES]
        ]
        more = ", …" if len(counts) > _MOST_PIECES else ""
        return f"{len(missing):,} piece{'s' * (len(missing) > 1)} ({', '.join(shown)}{more})"

    def _whole_id(self, trimmed: int) -> int:
        return int(self.kept[trimmed]) if trimmed < self.size else int(trimmed) - self.size


REMEDY = (
    "take the student with its whole vocabulary, or trim one anew with the data that these texts "
    "are like: convert --trim_vocabulary=DATASET,…"
)


def check_covered(
    trimmed: TrimmedIds, sequences: Iterable[np.ndarray], what: str, place: Callable[[int], str]
) -> None:
    """Refuses texts that hold pieces without an id.

    Args:
      trimmed: the vocabulary's ids.
      sequences: ids of each text, from `TrimmedIds.encode`.
      what: they are of, for the message, such as 'cqa_label, split train'.
      place: where the text of a number stands, for the message: 'row 17'.

    Raises:
      UncoveredTextError: there is one; says how many, which pieces, and where the first one is.
    """
    missing: list[int] = []
    uncovered = total = 0
    first = ""
    for number, ids in enumerate(sequences):
        total += 1
        if len(ids) and ids.max() >= trimmed.size:
            found = trimmed.find_missing(ids.tolist())
            first = first or f"{place(number)}, {_shorten(trimmed.decode(ids.tolist()))!r}"
            uncovered += 1
            missing += found
    if uncovered:
        raise UncoveredTextError(
            f"{what}: {uncovered:,} of {total:,} texts hold {trimmed.name_pieces(missing)}, which "
            f"the student's trimmed vocabulary of {trimmed.size:,} ids lacks; the first is "
            f"{first}; {REMEDY}"
        )


def choose_kept(model: bytes, occurring: Iterable[int], rows: int) -> np.ndarray:
    """The ids that a trimmed vocabulary keeps, int32 [N], ascending.

    These are padding, end and other control pieces, the unknown one, bytes, sentinels, and what
    occurs; then the lowest of the others, which are the commonest in a model of SentencePiece's,
    until N is a multiple of `ROW_MULTIPLE`: a row of the embedding that means nothing is never
    made.

    Args:
      model: the serialised SentencePiece model.
      occurring: its ids in the texts.
      rows: of the embedding, which may have more than the model has pieces.
    """
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    kept = {int(each) for each in occurring}
    kept.update(each for each in range(processor.GetPieceSize()) if _is_special(processor, each))
    wanted = min(-(-len(kept) // ROW_MULTIPLE) * ROW_MULTIPLE, rows)
    others = [each for each in range(rows) if each not in kept]
    return np.array(sorted(kept.union(others[: wanted - len(kept)])), np.int32)


def _is_special(processor: sentencepiece.SentencePieceProcessor, piece: int) -> bool:
    return bool(
        processor.IsControl(piece)
        or processor.IsUnknown(piece)
        or processor.IsByte(piece)
        or processor.IdToPiece(piece).startswith("<extra_id_")
    )


def _shorten(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}…"
