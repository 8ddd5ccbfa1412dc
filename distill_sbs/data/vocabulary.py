"""The vocabulary, chosen in one place: `VOCABULARY_FILE`.

Enters: a SentencePiece path (local or gs://), 'bytes' or 'embedded'. Leaves: a SeqIO vocabulary
for the tasks, token ids for a text, and a description that a checkpoint carries, so that the
checkpoint can be used where the file is not.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import seqio
import tensorflow as tf
from etils import epath

from distill_sbs import constants, resources
from distill_sbs.data import settings
from distill_sbs.errors import UserError

BYTES = "bytes"
EMBEDDED = "embedded"

# Natural-language-inference inputs carry the end token between premise and hypothesis, written
# as this text in the records (the published implementation joins them with tokenizer.eos_token).
SEPARATOR = "</s>"


@functools.lru_cache(maxsize=8)
def load(vocabulary_file: str | None) -> seqio.Vocabulary:
    """Loads a vocabulary.

    Raises:
      UserError: no vocabulary is named, the file is missing, or it is no SentencePiece model
        with padding 0 and end-of-sequence 1, which T5 takes for granted.
    """
    if not vocabulary_file:
        raise UserError(
            "VOCABULARY_FILE is not set: give a SentencePiece model's path, 'bytes' or 'embedded'"
        )
    if vocabulary_file == BYTES:
        return seqio.ByteVocabulary()
    path = str(resources.embedded_vocabulary()) if vocabulary_file == EMBEDDED else vocabulary_file
    if not epath.Path(path).exists():
        raise UserError(
            f"VOCABULARY_FILE={vocabulary_file!r}: no such file; "
            "give a SentencePiece model's path, 'bytes' or 'embedded'"
        )
    loaded = seqio.SentencePieceVocabulary(path)
    try:
        ids = (loaded.pad_id, loaded.tokenizer.pad_id(), loaded.eos_id)
    except Exception as error:
        raise UserError(
            f"VOCABULARY_FILE={vocabulary_file!r} is no SentencePiece model: {error}"
        ) from error
    if ids != (constants.PAD_ID, constants.PAD_ID, constants.EOS_ID):
        raise UserError(
            f"VOCABULARY_FILE={vocabulary_file!r} has padding id {ids[1]} and end-of-sequence id "
            f"{ids[2]}, expected 0 and 1 as in T5; train it with --pad_id=0 --eos_id=1"
        )
    return loaded


class ConfiguredVocabulary(seqio.Vocabulary):
    """The vocabulary that the current settings name, looked up when it is used.

    Tasks are registered before gin is read; this stands in their features until then.
    """

    def __init__(self) -> None:
        super().__init__(extra_ids=0)

    @property
    def _loaded(self) -> seqio.Vocabulary:
        return load(settings.current().vocabulary_file)

    @property
    def bos_id(self) -> int | None:
        """None: T5 has no token for the beginning."""
        return self._loaded.bos_id

    @property
    def eos_id(self) -> int | None:
        """The end token, 1."""
        return self._loaded.eos_id

    @property
    def unk_id(self) -> int | None:
        """The token of what the vocabulary cannot write, 2."""
        return self._loaded.unk_id

    @property
    def _base_vocab_size(self) -> int:
        return self._loaded.vocab_size

    def _encode(self, s: str) -> Sequence[int]:
        return self._loaded.encode(s)

    def _decode(self, ids: Sequence[int]) -> str:
        return self._loaded.decode(ids)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        return self._loaded.encode_tf(s)

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        return self._loaded.decode_tf(ids)

    def __eq__(self, other: object) -> bool:
        # T5X compares the data's vocabulary with the model's, which may be loaded already.
        return isinstance(other, ConfiguredVocabulary) or bool(self._loaded == other)

    def __hash__(self) -> int:
        return hash(ConfiguredVocabulary)


def encode_text(vocabulary: seqio.Vocabulary, text: str) -> list[int]:
    """Token ids of a text [S], `SEPARATOR` becoming the end token; no end token is added."""
    ids: list[int] = []
    for position, part in enumerate(text.split(SEPARATOR)):
        if position:
            ids.append(constants.EOS_ID)
        ids.extend(vocabulary.encode(part))
    return ids


def encode_text_tf(vocabulary: seqio.Vocabulary, text: tf.Tensor) -> tf.Tensor:
    """`encode_text` as TensorFlow operations: scalar string → int32 [S]."""

    def joined() -> tf.Tensor:
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
    return tf.cond(has_separator, joined, lambda: tf.cast(vocabulary.encode_tf(text), tf.int32))


def describe(vocabulary_file: str | None) -> dict[str, Any]:
    """A JSON-able description that holds the whole vocabulary; `from_description` undoes it."""
    loaded = load(vocabulary_file)
    if isinstance(loaded, seqio.ByteVocabulary):
        return {"kind": BYTES, "size": loaded.vocab_size}
    model = epath.Path(loaded.sentencepiece_model_file).read_bytes()
    return {
        "kind": "sentencepiece",
        "size": loaded.vocab_size,
        "sha256": hashlib.sha256(model).hexdigest(),
        "model_base64": base64.b64encode(model).decode("ascii"),
    }


def from_description(description: Mapping[str, Any]) -> str:
    """Writes the described vocabulary to a file of this machine and returns a `VOCABULARY_FILE`.

    Raises:
      UserError: the description's checksum does not match its content.
    """
    if description["kind"] == BYTES:
        return BYTES
    model = base64.b64decode(description["model_base64"])
    sha256 = hashlib.sha256(model).hexdigest()
    if sha256 != description["sha256"]:
        raise UserError(
            f"the checkpoint's vocabulary has sha256 {sha256}, expected {description['sha256']}: "
            "the checkpoint is damaged"
        )
    folder = os.path.join(tempfile.gettempdir(), f"distill_sbs_vocabulary_{os.getuid()}")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    path = os.path.join(folder, f"{sha256}.model")
    if not os.path.exists(path) or os.path.getsize(path) != len(model):
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            file.write(model)
        os.replace(file.name, path)
    return path
