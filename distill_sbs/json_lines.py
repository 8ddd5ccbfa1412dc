r"""JSON and JSON Lines from anywhere: read as they are meant, or refused with file and line.

Enters: bytes of a file, or a text. Leaves: JSON values whose texts can be written as UTF-8 again.

Refused, as `SourceError`: what is no UTF-8, no JSON, nested too deeply for Python's parser, a
number of more digits than Python converts, and a lone surrogate (`"\ud83d"` without its other
half), which no file, tokenizer or endpoint takes. A byte order mark is passed over. Lines end at a
line feed alone: U+2028, U+2029 and U+0085 may stand unescaped inside a JSON text.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Iterator
from typing import TypeAlias

from etils import epath

from distill_sbs.errors import SourceError

# What JSON can say, as Python's parser gives it.
JsonValue: TypeAlias = "None | bool | int | float | str | list[JsonValue] | dict[str, JsonValue]"
JsonObject: TypeAlias = dict[str, JsonValue]

# How files begin that are no text: what to do about each.
_NOT_TEXT = {
    b"\x1f\x8b": "compressed (gzip); unpack it first",
    b"PK\x03\x04": "a ZIP archive; unpack it first",
    b"BZh": "compressed (bzip2); unpack it first",
    b"\xfd7zXZ": "compressed (xz); unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed (zstd); unpack it first",
    b"\xff\xfe": "UTF-16, not UTF-8; save it as UTF-8",
    b"\xfe\xff": "UTF-16, not UTF-8; save it as UTF-8",
}
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_KINDS = {dict: "an object", list: "a list", str: "text", int: "a number", float: "a number"}
_SURROGATE = re.compile("[\ud800-\udfff]")


def parse_json(text: str | bytes, place: str) -> JsonValue:
    """The value that a text stands for.

    Args:
      text: JSON; bytes are taken as UTF-8.
      place: where it stands, such as 'in.jsonl, line 3', for the message.

    Raises:
      SourceError: it is no JSON, or JSON that nothing further on could take.
    """
    if isinstance(text, bytes):
        text = decode_utf8(text, place)
    if not text.strip():
        raise SourceError(f"{place}: broken JSON (nothing is in it)")
    try:
        value: JsonValue = json.loads(text)
    except json.JSONDecodeError as error:
        line = f", line {error.lineno}" if error.lineno > 1 else ""
        reason = error.msg.removesuffix(" at")
        told = f"{place}{line}: broken JSON ({reason} at column {error.colno})"
        if "\r" in text.strip():
            told += "; lines that end in a carriage return alone want line feeds"
        raise SourceError(told) from None
    except RecursionError:
        raise SourceError(f"{place}: JSON that is nested too deeply to be read") from None
    except ValueError as error:  # the digits of a whole number
        raise SourceError(f"{place}: a number that is too long to be read ({error})") from None
    may_hold_surrogates = "\\u" in text or _SURROGATE.search(text)
    if may_hold_surrogates and (found := find_surrogate(value)) is not None:
        raise SourceError(
            f"{place}: {found!r} is half of a character (a lone surrogate), which cannot be "
            "written as UTF-8; take it out, or write the character whole"
        )
    return value


def decode_utf8(content: bytes, place: str) -> str:
    """The text of UTF-8 bytes, a byte order mark at their beginning passed over.

    Raises:
      SourceError: they are no UTF-8.
    """
    return _decode(content.removeprefix(_BYTE_ORDER_MARK), place)


def _decode(content: bytes, place: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 ({error.reason}, byte {error.start + 1}); save it as UTF-8"
        for start, remedy in _NOT_TEXT.items():
            if content.startswith(start):
                reason = remedy
        raise SourceError(f"{place}: {reason}") from None


def show_value(value: object) -> str:
    """A JSON value for a message: its `repr`, cut where it is long or deep."""
    return _SHORT.repr(value)


def name_kind(value: object) -> str:
    """What kind of JSON value it is, in words: 'a list', 'text', 'null'."""
    return _KINDS.get(type(value)) or json.dumps(value)


def find_surrogate(value: object) -> str | None:
    """A lone surrogate in the texts of a JSON value, or None; dicts and lists are gone through."""
    pending = [value]
    while pending:
        part = pending.pop()
        if isinstance(part, str):
            if found := _SURROGATE.search(part):
                return found.group()
        elif isinstance(part, dict):
            pending += [*part, *part.values()]
        elif isinstance(part, list):
            pending += part
    return None


def read_lines(path: epath.PathLike) -> Iterator[tuple[int, str]]:
    """Streams (line number from 1, text without its line end) of a UTF-8 file, local or gs://.

    Raises:
      SourceError: a line is no UTF-8; file and line are named.
    """
    with epath.Path(path).open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            place = f"{path}, line {number}"
            text = decode_utf8(line, place) if number == 1 else _decode(line, place)
            yield number, text.removesuffix("\n").removesuffix("\r")


def read_json_lines(path: epath.PathLike) -> Iterator[tuple[int, JsonObject]]:
    """Streams (line number from 1, object) of a JSON Lines file; blank lines are passed over.

    Raises:
      SourceError: a line is no UTF-8 or holds no JSON object; file and line are named.
    """
    for number, line in read_lines(path):
        if line.strip():
            yield number, parse_object(line, f"{path}, line {number}")


def parse_object(text: str, place: str) -> JsonObject:
    """The JSON object that a line stands for.

    Raises:
      SourceError: see `parse_json`; or it is no object.
    """
    row = parse_json(text, place)
    if not isinstance(row, dict):
        raise SourceError(f"{place}: {name_kind(row)} found, expected one JSON object a line")
    return row


def set_member(text: str, name: str, value: object) -> str:
    """The line of a JSON object with one member more, or another value of it, at its end.

    All else stays as it was typed, character by character: Python would write `1.10`, `1e400` and
    numbers of many digits otherwise than it read them.

    Args:
      text: a JSON object, as `parse_object` takes it.
      name: the member's name; where the object has it, it is taken out first.
      value: what JSON can say.
    """
    decoder = json.JSONDecoder()
    kept = []
    position = _skip_blanks(text, text.index("{") + 1)
    while text[position] != "}":
        start = position
        member, position = decoder.raw_decode(text, position)
        position = _skip_blanks(text, _skip_blanks(text, position) + 1)  # over the colon
        _, position = decoder.raw_decode(text, position)
        if member != name:
            kept.append(text[start:position])
        position = _skip_blanks(text, position)
        if text[position] == ",":
            position = _skip_blanks(text, position + 1)
    kept.append(f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}")
    return "{" + ", ".join(kept) + "}"


def _skip_blanks(text: str, position: int) -> int:
    while text[position] in " \t\n\r":
        position += 1
    return position


def read_json(path: epath.PathLike) -> JsonValue:
    """The value of a JSON file, local or gs://.

    Raises:
      SourceError: see `parse_json`; the file is named.
    """
    return parse_json(epath.Path(path).read_bytes(), str(path))
