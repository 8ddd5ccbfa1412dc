"""A student whose embedding and head have rows for some of the pieces alone, and back.

Enters: a `ParameterSource`, and the ids that a trimmed vocabulary keeps. Leaves: a source of the
trimmed student; or, of a trimmed student and the checkpoint that it was trimmed from, a source of a
whole one, in which the rows that were taken out are those of that checkpoint.

Both only copy values. What was kept comes back to the bit, and so does what was not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from distill_sbs.convert.source import Index, ParameterSource
from distill_sbs.data import sentencepiece_model
from distill_sbs.data.sentencepiece_model import VocabularyDescription
from distill_sbs.errors import UserError
from distill_sbs.model.parameters import list_parameters

# The axis of a parameter that has a place for every id.
_VOCABULARY_AXES = {"token_embedder/embedding": 0, "decoder/logits_dense/kernel": 1}


class TrimmedSource(ParameterSource):
    """A checkpoint without the rows of what its trimmed vocabulary lacks.

    Args:
      whole: the checkpoint; checked.
      vocabulary: of `sentencepiece_model.trim`.
    """

    def __init__(self, whole: ParameterSource, vocabulary: VocabularyDescription) -> None:
        kept = sentencepiece_model.read_kept(vocabulary)
        assert kept is not None
        self._whole, self._kept = whole, kept
        self.location, self.warnings = whole.location, whole.warnings
        self.description, self.vocabulary = whole.description, vocabulary
        self.config = dataclasses.replace(whole.config, vocab_size=len(kept))

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """See `ParameterSource`."""
        return {each.path: each.shape for each in list_parameters(self.config)}

    def _read(self, path: str, index: Index | None) -> np.ndarray:
        axis = _VOCABULARY_AXES.get(path)
        if axis is None:
            return self._whole.read(path, index)
        value = np.take(self._whole.read(path), self._kept, axis=axis)
        return value[index] if index else value


class RestoredSource(ParameterSource):
    """A trimmed student with the rows of another checkpoint where it has none.

    Args:
      student: of a trimmed vocabulary; checked.
      original: the checkpoint that it was trimmed from, or another with the same pieces.

    Raises:
      UserError: they are not of one architecture, or not of one vocabulary.
    """

    def __init__(self, student: ParameterSource, original: ParameterSource) -> None:
        assert student.vocabulary is not None
        kept = sentencepiece_model.read_kept(student.vocabulary)
        if kept is None:
            raise UserError(
                f"--restore_vocabulary={original.location}: the vocabulary of {student.location} is"
                " whole, so there is nothing to restore; leave it out"
            )
        rows = original.config.vocab_size
        if kept[-1] >= rows:
            raise UserError(
                f"--restore_vocabulary={original.location} embeds {rows:,} ids, "
                f"{student.location} keeps id {kept[-1]:,}; give the checkpoint that it was "
                "trimmed from"
            )
        self._student, self._original, self._kept = student, original, kept
        self.location, self.description = student.location, student.description
        self.config = dataclasses.replace(student.config, vocab_size=rows)
        self.vocabulary = sentencepiece_model.untrim(student.vocabulary)
        _check_vocabulary(original, self.vocabulary)
        original.check(self.config)
        said = student.description
        if said is not None and said.converted_from is None:  # it was trained
            self.absent_ids = tuple(sorted(set(range(rows)).difference(kept.tolist())))

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """See `ParameterSource`."""
        return {each.path: each.shape for each in list_parameters(self.config)}

    def _read(self, path: str, index: Index | None) -> np.ndarray:
        axis = _VOCABULARY_AXES.get(path)
        if axis is None:
            return self._student.read(path, index)
        value = np.array(self._original.read(path))
        value[(slice(None),) * axis + (self._kept,)] = self._student.read(path)
        return value[index] if index else value


def trim_source(
    source: ParameterSource, vocabulary: VocabularyDescription, kept: np.ndarray
) -> TrimmedSource:
    """A checkpoint of which only the ids `kept`, int32 [N], ascending, have rows."""
    return TrimmedSource(source, sentencepiece_model.trim(vocabulary, kept))


def check_can_trim(
    source: ParameterSource, vocabulary: VocabularyDescription | None
) -> VocabularyDescription:
    """The whole SentencePiece vocabulary of a checkpoint that is to be trimmed.

    Raises:
      UserError: it has none, or one of bytes, or one that is trimmed.
    """
    if vocabulary is None:
        raise UserError(
            f"--trim_vocabulary: {source.location} carries no vocabulary; name it with "
            "--vocabulary_file"
        )
    if vocabulary["kind"] == sentencepiece_model.BYTES:
        raise UserError(
            f"--trim_vocabulary: {source.location} reads bytes, which are {vocabulary['size']} ids "
            "in all: there is nothing to trim; leave it out"
        )
    if sentencepiece_model.is_trimmed(vocabulary):
        raise UserError(
            f"--trim_vocabulary: {source.location} is trimmed already, to {vocabulary['size']:,} "
            "ids; trim the checkpoint that it came from, with all the data"
        )
    return vocabulary


def _check_vocabulary(original: ParameterSource, whole: VocabularyDescription) -> None:
    theirs = original.vocabulary
    if theirs is not None and theirs.get("sha256") != whole["sha256"]:
        raise UserError(
            f"--restore_vocabulary={original.location} has another vocabulary "
            f"({theirs['size']:,} pieces, sha256 {str(theirs.get('sha256')):.8}…) than the student "
            f"was trimmed from ({whole['size']:,}, {whole['sha256']:.8}…); give that checkpoint"
        )
