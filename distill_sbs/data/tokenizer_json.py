"""A `tokenizer.json` of T5 as the SentencePiece model that it was made of.

Enters: the file that HuggingFace's library `tokenizers` reads, of a unigram model, with which many
a checkpoint comes and without its `spiece.model`. Leaves: a serialised SentencePiece model, which
gives every piece of the vocabulary and some awkward texts the ids that the file gives them; a file
for which that cannot be had is refused.

Pieces, their scores and the table of normalisation are taken over to the bit. The tokens that the
file appends for T5's pretraining (`<extra_id_0>` and so on) are no pieces; no student here reads or
writes them.
"""

from __future__ import annotations

import base64
import binascii
import functools
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from etils import epath

from distill_sbs import constants, json_lines
from distill_sbs.errors import SourceError, UserError

if TYPE_CHECKING:
    import tokenizers

SUFFIX = ".json"

# T5's; SentencePiece's numbers of kinds of pieces (sentencepiece_model.proto).
_UNKNOWN_ID = 2
_UNKNOWN, _CONTROL, _BYTE = 2, 3, 6

_SENTINEL = re.compile(r"<extra_id_\d{1,4}>")
_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
_SPACE = "▁"

# Larger than any: that of mT5's 250,000 pieces has 16 MB.
_MOST_BYTES = 2**28
# Pieces of the vocabulary in one text.
_PIECES_A_TEXT = 64

PROBES = (
    "predict: Anna has 12 apples. She buys 7 more. How many apples does Anna have now?",
    "  two  blanks ",
    "a\nb\tc",
    "12.5,x?",
    "h\u00e9llo \u2603 \ufb01ne \u65e5\u672c \U0001f600",
    "A\u0301 \u00a0 \u200b \uff21\uff22\uff23 \u2460\u00bd",
    "{ } < > ~ \\ ^ ` _ \u2581",
)


def is_tokenizer_json(path: str) -> bool:
    """Whether a path is that of such a file, by its name."""
    return path.endswith(SUFFIX)


@functools.lru_cache(maxsize=4)
def read_model(path: str) -> bytes:
    """The SentencePiece model of a `tokenizer.json`, local or gs://.

    Raises:
      UserError: it is of another kind; or no SentencePiece model gives its ids.
    """
    try:
        content = epath.Path(path).read_bytes()
        if len(content) > _MOST_BYTES:
            raise UserError(
                f"{path} has {len(content):,} bytes, expected a tokenizer.json of at most "
                f"{_MOST_BYTES:,}; is it another file?"
            )
        values = json_lines.parse_json(content, path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from None
    except SourceError as error:
        raise UserError(f"{error}; copy the file again") from None
    return _rebuild(path, content, values)


def _rebuild(path: str, content: bytes, values: object) -> bytes:
    from sentencepiece import sentencepiece_model_pb2

    pieces, byte_fallback = _read_pieces(path, values)
    model = sentencepiece_model_pb2.ModelProto()
    for number, (piece, score) in enumerate(pieces):
        kind = None
        if number <= constants.EOS_ID:
            kind = _CONTROL
        elif number == _UNKNOWN_ID:
            kind = _UNKNOWN
        elif byte_fallback and _BYTE_PIECE.fullmatch(piece):
            kind = _BYTE
        model.pieces.add(piece=piece, score=score, type=kind)
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type = trainer.UNIGRAM
    trainer.vocab_size = len(pieces)
    trainer.pad_id, trainer.eos_id, trainer.unk_id = constants.PAD_ID, constants.EOS_ID, _UNKNOWN_ID
    trainer.bos_id = -1
    trainer.pad_piece, trainer.eos_piece, trainer.unk_piece = (piece for piece, _ in pieces[:3])
    trainer.byte_fallback = byte_fallback
    table = _read_table(path, _get(values, "normalizer"))
    normalizer.name = "precompiled" if table else "identity"
    normalizer.precompiled_charsmap = table
    normalizer.add_dummy_prefix = True
    normalizer.remove_extra_whitespaces = True
    normalizer.escape_whitespaces = True
    serialised: bytes = model.SerializeToString()
    _check_ids(path, content, serialised, [piece for piece, _ in pieces])
    return serialised


def _get(values: object, *names: str) -> object:
    """The member of nested JSON objects; None where there is none."""
    for name in names:
        values = values.get(name) if isinstance(values, Mapping) else None
    return values


def _read_pieces(path: str, values: object) -> tuple[list[tuple[str, float]], bool]:
    """The pieces with their scores, without sentinels; and whether bytes write what is unknown."""
    kind = _get(values, "model", "type")
    listed = _get(values, "model", "vocab")
    if kind not in ("Unigram", None) or not isinstance(listed, list):
        raise UserError(
            f"{path} holds a tokenizer of kind {kind!r:.50}, expected 'Unigram', as T5's are; give "
            "the SentencePiece model of the checkpoint (spiece.model, tokenizer.model)"
        )
    unknown = _get(values, "model", "unk_id")
    if unknown != _UNKNOWN_ID or isinstance(unknown, bool):
        raise UserError(
            f"{path} has unk_id={unknown!r:.50}, expected {_UNKNOWN_ID}, as in T5; give the "
            "SentencePiece model of the checkpoint"
        )
    pieces: list[tuple[str, float]] = []
    for number, entry in enumerate(listed):
        if (
            not isinstance(entry, list)
            or len(entry) != 2
            or not isinstance(entry[0], str)
            or not isinstance(entry[1], int | float)
            or isinstance(entry[1], bool)
            or not abs(entry[1]) < 1e30
        ):
            raise UserError(
                f"{path}: entry {number} of the vocabulary is {json_lines.show_value(entry)}, "
                "expected a piece and its score; copy the file again"
            )
        pieces.append((entry[0], float(entry[1])))
    while len(pieces) > _UNKNOWN_ID + 1 and _SENTINEL.fullmatch(pieces[-1][0]):
        pieces.pop()
    if len(pieces) <= _UNKNOWN_ID + 1:
        raise UserError(f"{path} has {len(pieces)} pieces, expected more; copy the file again")
    return pieces, _get(values, "model", "byte_fallback") is True


def _read_table(path: str, normalizer: object) -> bytes:
    """SentencePiece's table of normalisation; empty where there is none."""
    steps = _get(normalizer, "normalizers")
    tables = [
        _get(step, "precompiled_charsmap")
        for step in (steps if isinstance(steps, list) else [normalizer])
        if _get(step, "type") == "Precompiled"
    ]
    try:
        if len(tables) > 1 or not all(isinstance(table, str) for table in tables):
            raise ValueError(f"{len(tables)} of them")
        return base64.b64decode(str(tables[0]), validate=True) if tables else b""
    except (ValueError, binascii.Error) as error:
        raise UserError(
            f"{path}: expected one table of normalisation (precompiled_charsmap) in base64, found "
            f"none that can be read ({error}); copy the file again"
        ) from None


def _check_ids(path: str, content: bytes, model: bytes, pieces: list[str]) -> None:
    """Every piece of the vocabulary and `PROBES` must have the ids that the file gives them."""
    import sentencepiece
    from tokenizers import Tokenizer

    try:
        given: tokenizers.Tokenizer = Tokenizer.from_str(content.decode())
    except Exception as error:  # of many kinds, from Rust
        raise UserError(f"{path} is no tokenizer.json: {str(error):.200}") from None
    given.no_truncation()
    given.no_padding()
    try:
        ours = sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise UserError(f"{path} amounts to no SentencePiece model: {str(error):.200}") from None
    for text in (*PROBES, *_texts_of(pieces)):
        expected = given.encode(text, add_special_tokens=False).ids
        got = ours.encode(text)
        if got != expected:
            raise UserError(
                f"{path} reads {text!r:.100} as {str(expected):.60}…, the SentencePiece model made "
                f"of its pieces as {str(got):.60}…, expected the same: it is not T5's tokenizer "
                "alone; give the SentencePiece model of the checkpoint"
            )
    if given.encode("a").ids != [*ours.encode("a"), constants.EOS_ID]:
        raise UserError(
            f"{path} does not end a text with token {constants.EOS_ID}, expected so, as in T5; "
            "give the SentencePiece model of the checkpoint"
        )


def _texts_of(pieces: list[str]) -> Iterator[str]:
    """The pieces that a text can hold, many in a text."""
    words = [
        piece.replace(_SPACE, " ")
        for piece in pieces[_UNKNOWN_ID + 1 :]
        if not _BYTE_PIECE.fullmatch(piece) and not (piece[:1] == "<" and piece[-1:] == ">")
    ]
    for start in range(0, len(words), _PIECES_A_TEXT):
        yield " ".join(words[start : start + _PIECES_A_TEXT])
