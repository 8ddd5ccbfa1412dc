"""The vocabulary that `VOCABULARY_FILE` names, as SeqIO has it.

Enters: what `VOCABULARY_FILE` says (`sentencepiece_model.check_path`); or a checkpoint's
description of it. Leaves: a SeqIO vocabulary for the tasks (`data.tokenizer` has what needs no
SeqIO).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import sentencepiece
import seqio
import tensorflow as tf

from distill_sbs import constants
from distill_sbs.data import sentencepiece_model as files
from distill_sbs.data import settings
from distill_sbs.data.sentencepiece_model import BYTES, EMBEDDED, describe
from distill_sbs.data.tokenizer import SEPARATOR, encode_text
from distill_sbs.data.tokenizer_json import is_tokenizer_json
from distill_sbs.data.trimmed_ids import TrimmedIds
from distill_sbs.errors import UserError

__all__ = [
    "BYTES",
    "EMBEDDED",
    "SEPARATOR",
    "ConfiguredVocabulary",
    "StoredVocabulary",
    "TrimmedVocabulary",
    "describe",
    "encode_text",
    "encode_text_tf",
    "find_trimmed",
    "from_description",
    "load",
]


@functools.lru_cache(maxsize=8)
def load(vocabulary_file: str | None) -> seqio.Vocabulary:
    """Loads a vocabulary.

    Raises:
      UserError: as `sentencepiece_model.check_path`.
    """
    path = files.check_path(vocabulary_file)
    if path is None:
        return seqio.ByteVocabulary()
    if files.is_trimmed_file(path):
        return from_description(describe(path))
    if is_tokenizer_json(path):
        return StoredVocabulary(files.read_file(path))
    return seqio.SentencePieceVocabulary(path)


def find_trimmed(loaded: seqio.Vocabulary) -> TrimmedIds | None:
    """Which pieces have an id, where a vocabulary is trimmed; of a configured one, the chosen's."""
    if isinstance(loaded, ConfiguredVocabulary):
        loaded = loaded.loaded
    return loaded.ids if isinstance(loaded, TrimmedVocabulary) else None


def _has_sentinels(loaded: seqio.Vocabulary) -> bool:
    """Whether the model's last piece is T5's first sentinel."""
    if not isinstance(loaded, seqio.SentencePieceVocabulary):
        return False
    last = loaded.tokenizer.IdToPiece(loaded.tokenizer.GetPieceSize() - 1)
    return last.removeprefix("▁") == "<extra_id_0>"


class ConfiguredVocabulary(seqio.Vocabulary):
    """The vocabulary that the current settings name, looked up when it is used.

    Tasks are registered before gin is read; this stands in their features until then.

    Args:
      sentinels: ids above those of the pieces, which stand for what span corruption takes out. They
        count downwards: the first sentinel is the last id. A model that has pieces for them
        (`<extra_id_0>`, as in T5's cc_all.32000.100extra) gets no others.
    """

    def __init__(self, sentinels: int = 0) -> None:
        super().__init__(extra_ids=sentinels)

    @property
    def loaded(self) -> seqio.Vocabulary:
        """The vocabulary that is meant at present."""
        chosen = settings.current()
        return chosen.vocabulary or load(chosen.vocabulary_file)

    @property
    def bos_id(self) -> int | None:
        """None: T5 has no token for the beginning."""
        return self.loaded.bos_id

    @property
    def eos_id(self) -> int | None:
        """The end token, 1."""
        return self.loaded.eos_id

    @property
    def unk_id(self) -> int | None:
        """The token of what the vocabulary cannot write, 2."""
        return self.loaded.unk_id

    @property
    def _base_vocab_size(self) -> int:
        loaded = self.loaded
        if self.extra_ids and isinstance(loaded, TrimmedVocabulary):
            raise UserError(
                "a trimmed vocabulary has no sentinels, which tasks of span corruption put in the "
                "place of what they take out; pretrain with the whole vocabulary, then trim"
            )
        has_own = self.extra_ids and _has_sentinels(loaded)
        return loaded.vocab_size - (self.extra_ids if has_own else 0)

    def _encode(self, s: str) -> Sequence[int]:
        return self.loaded.encode(s)

    def _decode(self, ids: Sequence[int]) -> str:
        return self.loaded.decode(ids)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        return self.loaded.encode_tf(s)

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        return self.loaded.decode_tf(ids)

    def __eq__(self, other: object) -> bool:
        # T5X compares the data's vocabulary with the model's, which may be loaded already.
        return isinstance(other, ConfiguredVocabulary) or bool(self.loaded == other)

    def __hash__(self) -> int:
        return hash(ConfiguredVocabulary)


def encode_text_tf(vocabulary: seqio.Vocabulary, text: tf.Tensor) -> tf.Tensor:
    """`encode_text` as TensorFlow operations: scalar string → int32 [S]."""

    def join_parts() -> tf.Tensor:
        # A text with n separators is n + 1 parts; each part but the first follows an end token.
        parts = tf.strings.split(text, SEPARATOR)
        first = tf.cast(vocabulary.encode_tf(parts[0]), tf.int32)
        _, ids = tf.while_loop(
            lambda position, _: position < tf.size(parts),
            lambda position, ids: (
                position + 1,
                tf.concat(
                    [
                        ids,
                        [constants.EOS_ID],
                        tf.cast(vocabulary.encode_tf(parts[position]), tf.int32),
                    ],
                    axis=0,
                ),
            ),
            (tf.constant(1), first),
            shape_invariants=(tf.TensorShape([]), tf.TensorShape([None])),
        )
        return ids

    has_separator = tf.strings.regex_full_match(text, f"(?s).*{SEPARATOR}.*")
    return tf.cond(has_separator, join_parts, lambda: tf.cast(vocabulary.encode_tf(text), tf.int32))


class StoredVocabulary(seqio.SentencePieceVocabulary):
    """A SentencePiece vocabulary held in memory; SeqIO's own wants a file.

    Args:
      model: the serialised SentencePiece model.
    """

    def __init__(self, model: bytes) -> None:
        super().__init__(sentencepiece_model_file="(a checkpoint's own vocabulary)")
        self._content = model
        self._tokenizer = sentencepiece.SentencePieceProcessor(model_proto=model)

    @property
    def sp_model(self) -> bytes:
        """The serialised model, from which TensorFlow makes its tokenizer."""
        return self._content

    @property
    def tokenizer(self) -> sentencepiece.SentencePieceProcessor:
        """Python's tokenizer."""
        return self._tokenizer

    def load_model(self) -> None:
        """Nothing: it is loaded."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StoredVocabulary) and self._content == other._content

    def __hash__(self) -> int:
        return hash(self._content)


class TrimmedVocabulary(seqio.Vocabulary):
    """A SentencePiece vocabulary of which only some pieces have an id.

    In TensorFlow's graphs a piece without one becomes an id beyond all others, which whoever reads
    the whole split refuses (`trimmed_ids.check_covered`), for a graph cannot count.

    Args:
      model: the serialised SentencePiece model, whole.
      ids: which pieces have an id.
    """

    def __init__(self, model: bytes, ids: TrimmedIds) -> None:
        super().__init__()
        self.ids = ids
        self._whole = StoredVocabulary(model)

    @property
    def bos_id(self) -> int | None:
        """None: T5 has no token for the beginning."""
        return None

    @property
    def eos_id(self) -> int | None:
        """The end token, 1."""
        return constants.EOS_ID

    @property
    def unk_id(self) -> int | None:
        """The token of what the model cannot write."""
        return int(self.ids.table[self._whole.unk_id])

    @property
    def _base_vocab_size(self) -> int:
        return self.ids.size

    def _encode(self, s: str) -> Sequence[int]:
        return self.ids.encode_covered(s)

    def _decode(self, ids: Sequence[int]) -> str:
        return self.ids.decode(ids)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        return tf.gather(tf.constant(self.ids.table), self._whole.encode_tf(s))

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        return self._whole.decode_tf(tf.gather(tf.constant(self.ids.kept), ids))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, TrimmedVocabulary)
            and self._whole == other._whole
            and bool(np.array_equal(self.ids.kept, other.ids.kept))
        )

    def __hash__(self) -> int:
        return hash((self._whole, self.ids.kept.tobytes()))


def from_description(description: files.VocabularyDescription) -> seqio.Vocabulary:
    """The described vocabulary, out of the description alone: no file is read or written.

    Raises:
      UserError: the description's checksum does not match its content.
    """
    model = files.read_model(description)
    trimmed = TrimmedIds.of(description)
    if model is not None and trimmed is not None:
        return TrimmedVocabulary(model, trimmed)
    return seqio.ByteVocabulary() if model is None else StoredVocabulary(model)
