"""Our vocabulary as the tokenizer files of a HuggingFace folder, and back.

Enters: a vocabulary's description (`data.sentencepiece_model.describe`), or a HuggingFace folder.
Leaves: files with which `AutoTokenizer` gives the ids that the student was trained on; or the
`VOCABULARY_FILE` that a folder's tokenizer amounts to.

A SentencePiece model of T5's kind (unigram) becomes a T5Tokenizer, bytes a ByT5Tokenizer. Byte
pair encoding, symbols of the user's own and bytes as fallback, which T5Tokenizer does not know,
become a `tokenizer.json` of the same algorithm, made of the objects of the library `tokenizers`.
"""

from __future__ import annotations

import base64
import json
import pathlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from distill_sbs import constants
from distill_sbs.convert.huggingface import weights
from distill_sbs.data.sentencepiece_model import VocabularyDescription
from distill_sbs.errors import UserError

if TYPE_CHECKING:
    import tokenizers
    from sentencepiece.sentencepiece_model_pb2 import ModelProto
    from tokenizers import models

SENTENCEPIECE_FILE = "spiece.model"
# Gemma's has the other name.
SENTENCEPIECE_FILES = (SENTENCEPIECE_FILE, "tokenizer.model")
SETTINGS_FILE = "tokenizer_config.json"
PIPELINE_FILE = "tokenizer.json"
BYTES = "bytes"

# Tokens that T5 and ByT5 append for their pretraining; no student here reads or writes them.
_EXTRA_IDS, _BYTE_EXTRA_IDS = 100, 125

# SentencePiece's numbers (sentencepiece_model.proto).
_UNIGRAM, _BPE = 1, 2
_NORMAL, _USER_DEFINED, _BYTE = 1, 4, 6
_SPACE = "▁"
_T5_UNKNOWN = 2


def find_vocabulary_file(folder: pathlib.Path, vocab_size: int) -> str | None:
    """What VOCABULARY_FILE says for a folder's tokenizer; None where the folder does not tell."""
    for name in SENTENCEPIECE_FILES:
        if (folder / name).exists():
            return str(folder / name)
    settings = folder / SETTINGS_FILE
    values = weights.read_json(settings) if settings.exists() else {}
    if values.get("tokenizer_class") == "ByT5Tokenizer" or (not values and vocab_size == 384):
        return BYTES
    if (folder / PIPELINE_FILE).exists():
        return str(folder / PIPELINE_FILE)
    return None


def make_tokenizer_files(
    vocabulary: VocabularyDescription, vocab_size: int, max_length: int
) -> dict[str, bytes]:
    """Name → content of the files that `AutoTokenizer` reads.

    Args:
      vocabulary: from `data.sentencepiece_model.describe`.
      vocab_size: rows of the student's embedding, V; extra ids are added where they fit.
      max_length: tokens to which a tokenizer that is told to truncate does so.

    Raises:
      UserError: a SentencePiece model of a kind that HuggingFace's tokenizers do not have.
    """
    settings: dict[str, object] = {
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "model_max_length": max_length,
        # Else decoding takes the blanks before punctuation out of a student's text.
        "clean_up_tokenization_spaces": False,
    }
    if vocabulary["kind"] == BYTES:
        fits = vocabulary["size"] + _BYTE_EXTRA_IDS <= vocab_size
        settings |= {
            "tokenizer_class": "ByT5Tokenizer",
            "extra_ids": _BYTE_EXTRA_IDS if fits else 0,
        }
        return {SETTINGS_FILE: _json(settings)}

    from sentencepiece import sentencepiece_model_pb2

    content = base64.b64decode(vocabulary["model_base64"])
    model = sentencepiece_model_pb2.ModelProto.FromString(content)
    _check_kind(model)
    names = [piece.piece for piece in model.pieces]
    unknown = model.trainer_spec.unk_id
    settings |= {"pad_token": names[0], "eos_token": names[1], "unk_token": names[unknown]}
    # Gemma's has none.
    fits = len(names) + _EXTRA_IDS <= vocab_size and unknown == _T5_UNKNOWN
    extra_ids = _EXTRA_IDS if fits else 0
    # What AutoTokenizer makes of a T5Tokenizer is the same.
    pipeline = _make_pipeline(model, extra_ids)
    _check_ids(pipeline, model)
    files = {SENTENCEPIECE_FILE: content}
    is_t5 = model.trainer_spec.model_type == _UNIGRAM and unknown == _T5_UNKNOWN
    if (
        is_t5
        and model.normalizer_spec.add_dummy_prefix
        and not any(piece.type in (_USER_DEFINED, _BYTE) for piece in model.pieces)
    ):
        settings |= {"tokenizer_class": "T5Tokenizer", "extra_ids": extra_ids}
    else:
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        files[PIPELINE_FILE] = f"{pipeline.to_str(pretty=True)}\n".encode()
    return files | {SETTINGS_FILE: _json(settings)}


def _json(values: Mapping[str, object]) -> bytes:
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()


def _check_kind(model: ModelProto) -> None:
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    wrong = [
        text
        for text, is_wrong in (
            ("model_type is word or char", trainer.model_type not in (_UNIGRAM, _BPE)),
            ("split_by_whitespace is false", not trainer.split_by_whitespace),
            ("treat_whitespace_as_suffix is true", trainer.treat_whitespace_as_suffix),
            (
                "add_dummy_prefix and remove_extra_whitespaces are not alike",
                normalizer.add_dummy_prefix != normalizer.remove_extra_whitespaces,
            ),
            ("unk_id is neither 2 nor 3", trainer.unk_id not in (2, 3)),
        )
        if is_wrong
    ]
    if wrong:
        raise UserError(
            f"the vocabulary is a SentencePiece model of which {', '.join(wrong)}; expected a "
            "unigram or BPE model with SentencePiece's defaults, or one that keeps blanks as "
            "Gemma's does, for HuggingFace's tokenizers have no other. --notokenizer leaves the "
            "tokenizer out"
        )


def _check_ids(pipeline: tokenizers.Tokenizer, model: ModelProto) -> None:
    """Some texts must have the ids that SentencePiece gives them, with which a student trains."""
    import sentencepiece

    own = [each.piece for each in model.pieces if each.type == _USER_DEFINED]
    texts = ["  two  blanks ", "a\nb\tc", "12.5,x?", "h\u00e9llo \u2603 \ufb01ne \u65e5\u672c"]
    texts += [f"a{each}b {each} {each}{each}" for each in own]
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    for text in texts:
        expected = [*processor.encode(text), constants.EOS_ID]
        got = pipeline.encode(text).ids
        if got != expected:
            raise UserError(
                f"HuggingFace's tokenizers read {text!r} as {got}, the vocabulary's SentencePiece "
                f"model as {expected}, expected the same: blanks and line ends as pieces of their "
                "own, or symbols that overlap, are not to be had there. --notokenizer leaves the "
                "tokenizer out"
            )


def _make_pipeline(model: ModelProto, extra_ids: int) -> tokenizers.Tokenizer:
    """The model's algorithm, step by step."""
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )

    pieces = list(model.pieces)
    byte_fallback = any(piece.type == _BYTE for piece in pieces)
    is_unigram = model.trainer_spec.model_type == _UNIGRAM
    make = _make_unigram if is_unigram else _make_byte_pairs
    algorithm = make(pieces, byte_fallback, model.trainer_spec.unk_id)
    keeps_blanks = not model.normalizer_spec.add_dummy_prefix
    if keeps_blanks and isinstance(algorithm, models.BPE):
        # Symbols of their own, such as two blanks, are no product of merges.
        algorithm.ignore_merges = True
    tokenizer = Tokenizer(algorithm)

    if model.normalizer_spec.precompiled_charsmap:
        tokenizer.normalizer = normalizers.Precompiled(model.normalizer_spec.precompiled_charsmap)
    steps: list[pre_tokenizers.PreTokenizer] = [
        pre_tokenizers.WhitespaceSplit(),
        pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always", split=True),
    ]
    if keeps_blanks:  # as Gemma's: nothing is put in front, and no blank is taken out
        steps = [pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="never", split=False)]
    own = sorted((each.piece for each in pieces if each.type == _USER_DEFINED), key=len)
    if own:
        # They are pieces wherever they stand, and no other piece reaches over them.
        pattern = "|".join(re.escape(piece) for piece in reversed(own))
        steps.append(pre_tokenizers.Split(Regex(pattern), behavior="isolated"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)

    scheme = "never" if keeps_blanks else "always"
    tokenizer.decoder = decoders.Metaspace(replacement=_SPACE, prepend_scheme=scheme, split=True)
    if byte_fallback:
        tokenizer.decoder = decoders.Sequence(
            [
                decoders.Replace(_SPACE, " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                *([] if keeps_blanks else [decoders.Strip(content=" ", left=1, right=0)]),
            ]
        )
    end = pieces[constants.EOS_ID].piece
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", end], pair=["$A", end, "$B", end], special_tokens=[(end, constants.EOS_ID)]
    )
    # T5 counts them down: the last id is <extra_id_0>.
    extra = [f"<extra_id_{number}>" for number in reversed(range(extra_ids))]
    special = [piece.piece for piece in pieces[: model.trainer_spec.unk_id + 1]] + extra
    tokenizer.add_special_tokens([AddedToken(each, normalized=False) for each in special])
    return tokenizer


def _make_unigram(
    pieces: list[ModelProto.SentencePiece], byte_fallback: bool, unknown: int
) -> models.Unigram:
    from tokenizers import models

    return models.Unigram(
        [(piece.piece, piece.score) for piece in pieces],
        unk_id=unknown,
        byte_fallback=byte_fallback,
    )


def _make_byte_pairs(
    pieces: list[ModelProto.SentencePiece], byte_fallback: bool, unknown: int
) -> models.BPE:
    """SentencePiece merges the two neighbours that make the piece of highest score; so do these."""
    from tokenizers import models

    ids = {piece.piece: number for number, piece in enumerate(pieces)}
    merged = sorted(
        (piece.piece for piece in pieces if piece.type == _NORMAL and len(piece.piece) > 1),
        key=lambda piece: -pieces[ids[piece]].score,
    )
    merges = [
        (piece[:cut], piece[cut:])
        for piece in merged
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    return models.BPE(
        ids, merges, unk_token=pieces[unknown].piece, fuse_unk=True, byte_fallback=byte_fallback
    )
