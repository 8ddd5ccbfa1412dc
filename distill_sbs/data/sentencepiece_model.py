"""What `VOCABULARY_FILE` names, checked and described; without TensorFlow, which takes seconds.

Enters: a SentencePiece path (local or gs://), a `tokenizer.json` that amounts to such a model, a
trimmed student's `vocabulary.json`, 'bytes' or 'embedded'. Leaves: the path of a model that T5 can
have; or a description that a checkpoint carries, so that the checkpoint can be used where the file
is not; and the model in such a description. `data.tokenizer` and `data.vocabulary` make tokens of
it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
from typing import NotRequired, TypedDict

import numpy as np
import sentencepiece
from etils import epath

from distill_sbs import constants, json_lines, resources
from distill_sbs.data import tokenizer_json
from distill_sbs.errors import SourceError, UserError

# What convert --trim_vocabulary calls a vocabulary, and in how many bytes of it its format stands.
TRIMMED_FILE, _BEGINNING = "vocabulary.json", 200

BYTES = "bytes"
EMBEDDED = "embedded"

BYTE_IDS = 259  # padding, end, unknown, and every byte

# What `convert --trim_vocabulary` writes beside a student, for VOCABULARY_FILE.
_TRIMMED_FORMAT = 1

# Of ids as they are stored.
_ID_TYPE = np.dtype("<i4")


class VocabularyDescription(TypedDict):
    """A vocabulary, whole, as it stands in a checkpoint.

    Attributes:
      kind: 'bytes' or 'sentencepiece'.
      size: how many ids there are.
      sha256: of a SentencePiece model, and of the ids that are kept, where it is trimmed.
      model_base64: that model, whole: it segments every text as if nothing were trimmed.
      kept_base64: of a trimmed vocabulary the ids of the model that are kept, int32 little-endian,
        ascending; the student's id of a piece is its place among them.
    """

    kind: str
    size: int
    sha256: NotRequired[str]
    model_base64: NotRequired[str]
    kept_base64: NotRequired[str]


def check_path(vocabulary_file: str | None) -> str | None:
    """The path of a model, a `tokenizer.json` or a trimmed vocabulary; None for bytes.

    Raises:
      UserError: no vocabulary is named, the file is missing, or it is neither a SentencePiece model
        with padding 0 and end-of-sequence 1, which T5 takes for granted, nor trimmed from one; or a
        `tokenizer.json` that amounts to none (`tokenizer_json.read_model`).
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
    if is_trimmed_file(path):
        _read_trimmed(path)
        return path
    _check_model(read_file(path), vocabulary_file)
    return path


def _check_model(content: bytes, vocabulary_file: str) -> None:
    try:
        model = sentencepiece.SentencePieceProcessor(model_proto=content)
        ids = (model.pad_id(), model.eos_id())
    except Exception as error:
        raise UserError(
            f"VOCABULARY_FILE={vocabulary_file!r} is no SentencePiece model: {error}"
        ) from error
    if ids != (constants.PAD_ID, constants.EOS_ID):
        raise UserError(
            f"VOCABULARY_FILE={vocabulary_file!r} has padding id {ids[0]} and end-of-sequence id "
            f"{ids[1]}, expected 0 and 1 as in T5; train it with --pad_id=0 --eos_id=1"
        )


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
    if is_trimmed_file(path):
        return _read_trimmed(path)
    return _describe_model(read_file(path))


def _describe_model(model: bytes) -> VocabularyDescription:
    return {
        "kind": "sentencepiece",
        "size": sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size(),
        "sha256": _hash(model),
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
        kept = base64.b64decode(description.get("kept_base64", ""), validate=True)
    except ValueError as error:
        raise UserError(
            f"the checkpoint's vocabulary is no base64 ({error}): the checkpoint is damaged"
        ) from None
    sha256 = _hash(model, kept)
    if sha256 != description["sha256"]:
        raise UserError(
            f"the checkpoint's vocabulary has sha256 {sha256}, expected {description['sha256']}: "
            "the checkpoint is damaged"
        )
    return model


def _hash(model: bytes, kept: bytes = b"") -> str:
    return hashlib.sha256(model + kept).hexdigest()


# ---------------------------------- trimmed ----------------------------------


def is_trimmed_file(vocabulary_file: str) -> bool:
    """Whether a path is that of a trimmed vocabulary: by its name, or by how the file begins.

    Any other JSON is taken for a `tokenizer.json`.
    """
    if not vocabulary_file.endswith(tokenizer_json.SUFFIX):
        return False
    if vocabulary_file.rpartition("/")[2] == TRIMMED_FILE:
        return True
    with contextlib.suppress(OSError), epath.Path(vocabulary_file).open("rb") as file:
        return b'"format_version"' in file.read(_BEGINNING)
    return False


def is_trimmed(description: VocabularyDescription) -> bool:
    """Whether only some of the model's pieces have an id."""
    return "kept_base64" in description


def trim(description: VocabularyDescription, kept: np.ndarray) -> VocabularyDescription:
    """The description of a vocabulary of which the ids `kept` remain, int32 [N], ascending.

    Raises:
      ValueError: the vocabulary has no pieces, or is trimmed already.
    """
    model = read_model(description)
    if model is None or is_trimmed(description):
        raise ValueError("only a whole SentencePiece vocabulary can be trimmed")
    content = np.ascontiguousarray(kept, _ID_TYPE).tobytes()
    return {
        "kind": description["kind"],
        "size": len(kept),
        "sha256": _hash(model, content),
        "model_base64": description["model_base64"],
        "kept_base64": base64.b64encode(content).decode("ascii"),
    }


def check_absent_ids(given: object, vocab_size: int) -> tuple[int, ...]:
    """Ids that a student must not say, as they are given from outside.

    Raises:
      ValueError: they are no list of ids of the vocabulary.
    """
    expected = f"expected a list of whole numbers from 0 to {vocab_size - 1}"
    if not isinstance(given, list):
        raise ValueError(f"{given!r:.80}; {expected}")
    for each in given:
        if type(each) is not int or not 0 <= each < vocab_size:
            raise ValueError(f"{each!r:.80} among them; {expected}")
    return tuple(sorted(set(given)))


def untrim(description: VocabularyDescription) -> VocabularyDescription:
    """The description of the whole vocabulary that one was trimmed from."""
    model = read_model(description)
    return description if model is None else _describe_model(model)


def read_kept(description: VocabularyDescription) -> np.ndarray | None:
    """The model's ids that a trimmed vocabulary keeps, int32 [N], ascending; None of a whole one.

    Raises:
      UserError: the description's checksum does not match its content, or the ids are none that a
        student can have.
    """
    if not is_trimmed(description):
        return None
    read_model(description)  # the checksum
    content = base64.b64decode(description["kept_base64"])
    whole = len(content) - len(content) % _ID_TYPE.itemsize
    kept = np.frombuffer(content[:whole], _ID_TYPE).astype(np.int32)
    is_right = whole == len(content) and len(kept) == description["size"]
    if not is_right or kept[:2].tolist() != [0, 1] or (np.diff(kept) <= 0).any():
        raise UserError(
            f"a trimmed vocabulary of {description['size']} ids keeps {len(kept)} in "
            f"{len(content)} bytes, expected as many, ascending, 0 and 1 among them: it is damaged"
        )
    return kept


def write_trimmed(description: VocabularyDescription) -> str:
    """The content of a `vocabulary.json`."""
    return json.dumps({"format_version": _TRIMMED_FORMAT, **description}, indent=1) + "\n"


def _read_trimmed(path: str) -> VocabularyDescription:
    """What `write_trimmed` wrote.

    Raises:
      UserError: it is something else, or damaged.
    """
    expected = f"expected a {TRIMMED_FILE} that convert --trim_vocabulary wrote"
    try:
        values = json_lines.read_json(epath.Path(path))
    except SourceError as error:
        raise UserError(f"VOCABULARY_FILE={path!r} is no JSON ({error}); {expected}") from None
    if not isinstance(values, dict) or values.get("format_version") != _TRIMMED_FORMAT:
        raise UserError(f"VOCABULARY_FILE={path!r} is no trimmed vocabulary; {expected}")
    texts = [values.get(name) for name in ("kind", "sha256", "model_base64", "kept_base64")]
    kind, sha256, model, kept = (each if isinstance(each, str) else "" for each in texts)
    size = values.get("size")
    if kind != "sentencepiece" or not model or not kept or type(size) is not int:
        raise UserError(f"VOCABULARY_FILE={path!r} is no trimmed vocabulary; {expected}")
    description: VocabularyDescription = {
        "kind": kind,
        "size": size,
        "sha256": sha256,
        "model_base64": model,
        "kept_base64": kept,
    }
    try:
        read_kept(description)
    except UserError as error:
        raise UserError(f"VOCABULARY_FILE={path!r}: {error}; take another copy") from None
    _check_model(base64.b64decode(model), path)
    return description
