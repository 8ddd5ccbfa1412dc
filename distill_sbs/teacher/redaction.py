"""Keeps keys and passwords out of whatever is printed or written.

Enters: secrets, and texts of an endpoint's. Leaves: the texts without the secrets, however an
endpoint has written them: in full or by half, in other capitals, encoded for a URL, for HTML, for
JSON or in base64, with blanks or line ends in between.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable

# What stands for a key at local servers ("none", "EMPTY") is none, and may be part of an answer.
SHORTEST_SECRET = 8
LONGEST_MESSAGE = 300

# Half of a secret is one too, if it is no shorter than this.
_SHORTEST_PART = 12

# What a text may have between two characters of a secret: blanks, an escaped line end, characters
# of no width.
_BETWEEN = r"(?:[\s\u200b-\u200d\u2060\ufeff]|\\[nrt])*+"


class Redactor:
    """Takes secrets out of texts. Args: `secrets`; shorter ones than 8 characters are none."""

    def __init__(self, secrets: Iterable[str | None]) -> None:
        found = {each for each in secrets if each and len(each) >= SHORTEST_SECRET}
        for each in list(found):
            for encode in (base64.b64encode, base64.urlsafe_b64encode):
                found.add(encode(each.encode("utf-8", "surrogateescape")).decode().rstrip("="))
        longest_first = sorted(found, key=len, reverse=True)  # one may hold another
        self._whole = [re.compile(_pattern(secret), re.IGNORECASE) for secret in longest_first]
        self._parts = [
            secret[start : start + size]
            for secret in longest_first
            if (size := max(_SHORTEST_PART, len(secret) // 2)) <= len(secret)
            for start in range(len(secret) - size + 1)
        ]

    def hide(self, text: str) -> str:
        """`text` with `[key]` in place of every secret."""
        for pattern in self._whole:
            text = pattern.sub("[key]", text)
        if any(part in text for part in self._parts):
            text = _hide_parts(text, self._parts)
        return text

    def hide_in(self, value: object) -> object:
        """A JSON value with `[key]` in place of every secret in its texts."""
        if isinstance(value, str):
            return self.hide(value)
        if isinstance(value, list | tuple):
            return [self.hide_in(each) for each in value]
        if isinstance(value, dict):
            return {self.hide_in(key): self.hide_in(each) for key, each in value.items()}
        return value

    def shorten(self, text: str) -> str:
        """`text` on one line, without secrets, no longer than a message should be."""
        text = " ".join(self.hide(text).split())
        return text if len(text) <= LONGEST_MESSAGE else text[:LONGEST_MESSAGE] + " …"


def _pattern(secret: str) -> str:
    """A regular expression for a secret in any of its forms; linear in the text."""
    return _BETWEEN.join(map(_pattern_of_character, secret)) + "={0,2}"


def _pattern_of_character(character: str) -> str:
    code = ord(character)
    url = "".join(f"%{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))
    forms = [re.escape(character), url, rf"\\u{code:04x}", rf"\\x{code:02x}"]
    return f"(?:{'|'.join(forms)}|&#0{{0,4}}{code};|&#x0{{0,4}}{code:x};)"


def _hide_parts(text: str, parts: Iterable[str]) -> str:
    """`text` with `[key]` in place of every run of characters that parts of secrets cover."""
    hidden = bytearray(len(text))
    for part in parts:
        start = text.find(part)
        while start >= 0:
            hidden[start : start + len(part)] = b"\x01" * len(part)
            start = text.find(part, start + 1)
    pieces, shown_from = [], 0
    for run in re.finditer(b"\x01+", hidden):
        pieces += [text[shown_from : run.start()], "[key]"]
        shown_from = run.end()
    return "".join([*pieces, text[shown_from:]])
