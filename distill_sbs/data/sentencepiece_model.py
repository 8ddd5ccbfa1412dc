"""What `VOCABULARY_FILE` names, checked and described; without TensorFlow, which takes seconds.

Enters: a SentencePiece path (local or gs://), a `tokenizer.json` that amounts to such a model,
'bytes' or 'embedded'. Leaves: the path of a model that T5 can have; or a description that a
checkpoint carries, so that the checkpoint can be used where the file is not; and the model in such
a description. `data.tokenizer` and `data.vocabulary` make tokens of it.
"""

from __future__ import annotations

import base64
import hashlib
from typing import NotRequired, TypedDict

import sentencepiece
from etils import epath

from distill_sbs import constants, resources
from distill_sbs.data import tokenizer_json
from distill_sbs.errors import UserError

BYTES = "bytes"
EMBEDDED = "embedded"

BYTE_IDS = 259  # padding, end, unknown, and every byte


class VocabularyDescription(TypedDict):
    """A vocabulary, whole, as it stands in a checkpoint.

    Attributes:
      kind: 'bytes' or 'sentencepiece'.
      size: how many ids there are.
      sha256: of a SentencePiece model.
      model_base64: that model.
    """

    kind: str
    size: int
    sha256: NotRequired[str]
    model_base64: NotRequired[str]


def check_path(vocabulary_file: str | None) -> str | None:
    """The SentencePiece model's path, or the `tokenizer.json`'s; None for bytes, which have none.

    Raises:
      UserError: no vocabulary is named, the file is missing, or it is no SentencePiece model
        with padding 0 and end-of-sequence 1, which T5 takes for granted; or a `tokenizer.json` that
        amounts to none (`tokenizer_json.read_model`).
    """
    if not vocabulary_file:
        raise UserError(
            "VOCABULARY_FILE is not set: give a SentencePiece model's path, 'bytes' or 'embedded'"
        )
    if vocabulary_file == BYTES:
        return None
    path = str(resources.embedded_vocabulary()) if vocabulary_file == EMBEDDED else vocabulary_file
    if not epath.Path(path).exists():
        raise UserError(
            f"VOCABULARY_FILE={vocabulary_file!r}: no such file; "
            "give a SentencePiece model's path, 'bytes' or 'embedded'"
        )
    try:
        model = sentencepiece.SentencePieceProcessor(model_proto=read_file(path))
        ids = (model.pad_id(), model.eos_id())
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"VOCABULARY_FILE={vocabulary_file!r} is no SentencePiece model: {error}"
        ) from error
    if ids != (constants.PAD_ID, constants.EOS_ID):
        raise UserError(
            f"VOCABULARY_FILE={vocabulary_file!r} has padding id {ids[0]} and end-of-sequence id "
            f"{ids[1]}, expected 0 and 1 as in T5; train it with --pad_id=0 --eos_id=1"
        )
    return path


def read_file(path: str) -> bytes:
    """The serialised SentencePiece model of a path that `check_path` gave.

    Raises:
      UserError: a `tokenizer.json` that amounts to none.
    """
    if tokenizer_json.is_tokenizer_json(path):
        return tokenizer_json.read_model(path)
    content: bytes = epath.Path(path).read_bytes()
    return content


def describe(vocabulary_file: str | None) -> VocabularyDescription:
    """A JSON-able description that holds the whole vocabulary.

    `data.tokenizer.from_description` and `data.vocabulary.from_description` undo it.

    Raises:
      UserError: as `check_path`.
    """
    path = check_path(vocabulary_file)
    if path is None:
        return {"kind": BYTES, "size": BYTE_IDS}
    model = read_file(path)
    return {
        "kind": "sentencepiece",
        "size": sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size(),
        "sha256": hashlib.sha256(model).hexdigest(),
        "model_base64": base64.b64encode(model).decode("ascii"),
    }


def read_model(description: VocabularyDescription) -> bytes | None:
    """The serialised model in a description of `describe`; None for bytes, which have none.

    Raises:
      UserError: the description's checksum does not match its content.
    """
    if description["kind"] == BYTES:
        return None
    try:
        model = base64.b64decode(description["model_base64"], validate=True)
    except ValueError as error:
        raise UserError(
            f"the checkpoint's vocabulary is no base64 ({error}): the checkpoint is damaged"
        ) from None
    sha256 = hashlib.sha256(model).hexdigest()
    if sha256 != description["sha256"]:
        raise UserError(
            f"the checkpoint's vocabulary has sha256 {sha256}, expected {description['sha256']}: "
            "the checkpoint is damaged"
        )
    return model
