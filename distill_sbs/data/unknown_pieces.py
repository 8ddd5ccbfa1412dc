"""What of a text a vocabulary cannot write: unknown pieces, and line breaks that become spaces.

Enters: texts, and a SentencePiece model. Leaves: counts, and what they say in one line. T5's
vocabulary has no braces, no `<`, and few scripts but Latin's; its line breaks are spaces.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator

import sentencepiece

from distill_sbs.data import sentencepiece_model
from distill_sbs.data.dataset import Example
from distill_sbs.data.tokenizer import SEPARATOR

# Shown of the characters that are unknown.
_MOST_SHOWN = 8


@dataclasses.dataclass
class PieceCounts:
    """What was counted in some texts.

    Attributes:
      texts: how many there were.
      pieces: how many pieces they are, without end tokens.
      unknown: how many of these are unknown.
      texts_with_unknown: how many texts hold one or more.
      texts_with_line_breaks: how many hold a line break that the vocabulary cannot write.
      characters: the characters in unknown pieces, with their counts.
    """

    texts: int = 0
    pieces: int = 0
    unknown: int = 0
    texts_with_unknown: int = 0
    texts_with_line_breaks: int = 0
    characters: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    @property
    def share(self) -> float:
        """Unknown pieces among all, 0 to 1."""
        return self.unknown / max(self.pieces, 1)

    def describe(self) -> str:
        """What is unknown, in words: '3 of 120 pieces (2.50%), in 2 of 10 texts: '{' 2, '}' 1'."""
        most = self.characters.most_common(_MOST_SHOWN)
        shown = ", ".join(f"{character!r} {count:,}" for character, count in most)
        more = ", …" if len(self.characters) > _MOST_SHOWN else ""
        return (
            f"{self.unknown:,} of {self.pieces:,} pieces ({self.share:.2%}), in "
            f"{self.texts_with_unknown:,} of {self.texts:,} texts: {shown}{more}"
        )


class PieceCounter:
    """Counts the pieces of texts in one vocabulary.

    Args:
      vocabulary_file: as `VOCABULARY_FILE`; to 'bytes' nothing is unknown.

    Raises:
      UserError: there is no such vocabulary.
    """

    def __init__(self, vocabulary_file: str) -> None:
        self.name = vocabulary_file
        model = sentencepiece_model.read_model(sentencepiece_model.describe(vocabulary_file))
        self._processor = None
        if model is not None:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            ids = self._processor.EncodeAsIds("a\nb")
            self._keeps_line_breaks = "\n" in self._processor.DecodeIds(ids)

    def count(self, text: str, counts: PieceCounts) -> None:
        """Counts one text; its separators are end tokens, and are not counted."""
        counts.texts += 1
        if self._processor is None:
            counts.pieces += len(text.encode("utf-8"))
            return
        unknown = 0
        for part in text.split(SEPARATOR):
            ids = self._processor.EncodeAsIds(part)
            counts.pieces += len(ids)
            if self._processor.unk_id() in ids:
                pieces = self._processor.EncodeAsPieces(part)
                for piece, piece_id in zip(pieces, ids, strict=True):
                    if piece_id == self._processor.unk_id():
                        unknown += 1
                        counts.characters.update(piece)  # of an unknown one, its text
        counts.unknown += unknown
        counts.texts_with_unknown += bool(unknown)
        counts.texts_with_line_breaks += "\n" in text and not self._keeps_line_breaks


class ExamplePieces:
    """Counts the pieces of a split: of inputs, labels, and each teacher's rationales.

    Args:
      counter: of the vocabulary.
    """

    def __init__(self, counter: PieceCounter) -> None:
        self._counter = counter
        self._by_kind: dict[str, PieceCounts] = {}

    def add(self, example: Example) -> None:
        """Counts one example."""
        self._count("inputs", example.input)
        if example.label is not None:
            self._count("labels", example.label)
        self.add_outputs(example)

    def add_outputs(self, example: Example) -> None:
        """Counts the rationales of an example alone."""
        for teacher, output in example.teacher_outputs.items():
            for rationale in filter(None, (output.rationale, *output.more_rationales)):
                self._count(f"rationales of {teacher}", rationale)

    def warn(self, place: str) -> Iterator[str]:
        """One line for each kind of text that holds what the vocabulary cannot write.

        A warning of unknown pieces; a note of line breaks, of which less is lost.
        """
        for kind, counts in self._by_kind.items():
            if counts.unknown:
                yield (
                    f"warning: {place}: {kind}: unknown to {self._counter.name} are "
                    f"{counts.describe()}; "
                    "the student sees one and the same <unk> for all of them: write them otherwise "
                    "in the data, or train with VOCABULARY_FILE='bytes'"
                )
            if counts.texts_with_line_breaks:
                yield (
                    f"note: {place}: {kind}: {counts.texts_with_line_breaks:,} of "
                    f"{counts.texts:,} hold line breaks, which are spaces to {self._counter.name}"
                )

    def _count(self, kind: str, text: str) -> None:
        self._counter.count(text, self._by_kind.setdefault(kind, PieceCounts()))
