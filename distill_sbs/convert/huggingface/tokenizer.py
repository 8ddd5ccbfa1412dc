"""Our vocabulary as the tokenizer files of a HuggingFace folder, and back.

Enters: a vocabulary's description (`data.sentencepiece_model.describe`), or a HuggingFace folder.
Leaves: files with which `AutoTokenizer` gives the ids that the student was trained on; or the
`VOCABULARY_FILE` that a folder's tokenizer amounts to.

A SentencePiece model of T5's kind (unigram) becomes a T5Tokenizer, bytes a ByT5Tokenizer. Byte
pair encoding, symbols of the user's own and bytes as fallback, which T5Tokenizer does not know,
are written out as a `tokenizer.json` of the same algorithm.
"""

from __future__ import annotations

import base64
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from distill_sbs import constants
from distill_sbs.convert.huggingface import weights
from distill_sbs.errors import UserError

SENTENCEPIECE_FILE = "spiece.model"
SETTINGS_FILE = "tokenizer_config.json"
BYTES = "bytes"

# Tokens that T5 and ByT5 append for their pretraining; no student here reads or writes them.
_EXTRA_IDS, _BYTE_EXTRA_IDS = 100, 125

# SentencePiece's numbers (sentencepiece_model.proto).
_UNIGRAM, _BPE = 1, 2
_NORMAL, _USER_DEFINED, _BYTE = 1, 4, 6
_SPACE = "▁"


def vocabulary_file(folder: pathlib.Path, vocab_size: int) -> str | None:
    """What VOCABULARY_FILE says for a folder's tokenizer; None where the folder does not tell."""
    if (folder / SENTENCEPIECE_FILE).exists():
        return str(folder / SENTENCEPIECE_FILE)
    settings = folder / SETTINGS_FILE
    values = weights.read_json(settings) if settings.exists() else {}
    if values.get("tokenizer_class") == "ByT5Tokenizer" or (not values and vocab_size == 384):
        return BYTES
    return None


def tokenizer_files(
    vocabulary: Mapping[str, Any], vocab_size: int, max_length: int
) -> dict[str, bytes]:
    """Name → content of the files that `AutoTokenizer` reads.

    Args:
      vocabulary: from `data.sentencepiece_model.describe`.
      vocab_size: rows of the student's embedding, V; extra ids are added where they fit.
      max_length: tokens to which a tokenizer that is told to truncate does so.

    Raises:
      UserError: a SentencePiece model of a kind that HuggingFace's tokenizers do not have.
    """
    settings: dict[str, Any] = {
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
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(content)
    _check_kind(model)
    names = [piece.piece for piece in model.pieces]
    settings |= {"pad_token": names[0], "eos_token": names[1], "unk_token": names[2]}
    extra_ids = _EXTRA_IDS if len(names) + _EXTRA_IDS <= vocab_size else 0
    files = {SENTENCEPIECE_FILE: content}
    if model.trainer_spec.model_type == _UNIGRAM and not any(
        piece.type in (_USER_DEFINED, _BYTE) for piece in model.pieces
    ):
        settings |= {"tokenizer_class": "T5Tokenizer", "extra_ids": extra_ids}
    else:
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        files["tokenizer.json"] = _json(_pipeline(model, extra_ids))
    return files | {SETTINGS_FILE: _json(settings)}


def _json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()


def _check_kind(model: Any) -> None:
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    wrong = [
        text
        for text, is_wrong in (
            ("model_type is word or char", trainer.model_type not in (_UNIGRAM, _BPE)),
            ("split_by_whitespace is false", not trainer.split_by_whitespace),
            ("treat_whitespace_as_suffix is true", trainer.treat_whitespace_as_suffix),
            ("add_dummy_prefix is false", not normalizer.add_dummy_prefix),
            ("remove_extra_whitespaces is false", not normalizer.remove_extra_whitespaces),
            ("unk_id is not 2", trainer.unk_id != 2),
        )
        if is_wrong
    ]
    if wrong:
        raise UserError(
            f"the vocabulary is a SentencePiece model of which {', '.join(wrong)}; expected a "
            "unigram or BPE model with SentencePiece's defaults, for HuggingFace's tokenizers have "
            "no other. --notokenizer leaves the tokenizer out"
        )


def _pipeline(model: Any, extra_ids: int) -> dict[str, Any]:
    """A `tokenizer.json` (huggingface/tokenizers): the model's algorithm, step by step."""
    pieces = list(model.pieces)
    charsmap = base64.b64encode(model.normalizer_spec.precompiled_charsmap).decode()
    words = {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": "always", "split": True}
    pre_tokenizers: list[dict[str, Any]] = [{"type": "WhitespaceSplit"}, words]
    own = sorted((each.piece for each in pieces if each.type == _USER_DEFINED), key=len)
    if own:
        # They are pieces wherever they stand, and no other piece reaches over them.
        pattern = "|".join(re.escape(piece) for piece in reversed(own))
        pre_tokenizers.append(
            {
                "type": "Split",
                "pattern": {"Regex": pattern},
                "behavior": "Isolated",
                "invert": False,
            }
        )
    byte_fallback = any(piece.type == _BYTE for piece in pieces)
    decoder: dict[str, Any] = words
    if byte_fallback:
        blank = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
        first = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
        steps = [blank, {"type": "ByteFallback"}, {"type": "Fuse"}, first]
        decoder = {"type": "Sequence", "decoders": steps}
    special = {0: pieces[0].piece, 1: pieces[1].piece, 2: pieces[2].piece}
    # T5 counts them down: the last id is <extra_id_0>.
    special |= {len(pieces) + i: f"<extra_id_{extra_ids - 1 - i}>" for i in range(extra_ids)}
    end = {"id": pieces[constants.EOS_ID].piece, "type_id": 0}
    text, second = ({"Sequence": {"id": each, "type_id": 0}} for each in "AB")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": content,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for number, content in special.items()
        ],
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": charsmap}
        if charsmap
        else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre_tokenizers},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [text, {"SpecialToken": end}],
            "pair": [text, {"SpecialToken": end}, second, {"SpecialToken": end}],
            "special_tokens": {
                end["id"]: {
                    "id": end["id"],
                    "ids": [constants.EOS_ID],
                    "tokens": [end["id"]],
                }
            },
        },
        "decoder": decoder,
        "model": _unigram(pieces, byte_fallback)
        if model.trainer_spec.model_type == _UNIGRAM
        else _byte_pairs(pieces, byte_fallback),
    }


def _unigram(pieces: list[Any], byte_fallback: bool) -> dict[str, Any]:
    return {
        "type": "Unigram",
        "unk_id": 2,
        "vocab": [[piece.piece, piece.score] for piece in pieces],
        "byte_fallback": byte_fallback,
    }


def _byte_pairs(pieces: list[Any], byte_fallback: bool) -> dict[str, Any]:
    """SentencePiece merges the two neighbours that make the piece of highest score; so do these."""
    ids = {piece.piece: number for number, piece in enumerate(pieces)}
    merged = sorted(
        (piece for piece in pieces if piece.type == _NORMAL and len(piece.piece) > 1),
        key=lambda piece: -piece.score,
    )
    merges = [
        f"{piece.piece[:cut]} {piece.piece[cut:]}"
        for piece in merged
        for cut in range(1, len(piece.piece))
        if piece.piece[:cut] in ids and piece.piece[cut:] in ids
    ]
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": pieces[2].piece,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": byte_fallback,
        "ignore_merges": False,
        "vocab": ids,
        "merges": merges,
    }
