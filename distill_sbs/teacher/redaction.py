"""Keeps keys and passwords out of whatever is printed or written.

Enters: secrets, and texts of an endpoint's. Leaves: the texts without the secrets.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

# What stands for a key at local servers ("none", "EMPTY") is none, and may be part of an answer.
SHORTEST_SECRET = 8
LONGEST_MESSAGE = 300


class Redactor:
    """Takes secrets out of texts. Args: `secrets`; shorter ones than 8 characters are none."""

    def __init__(self, secrets: Iterable[str | None]) -> None:
        found = {each for each in secrets if each and len(each) >= SHORTEST_SECRET}
        self._secrets = sorted(found, key=len, reverse=True)  # one may hold another

    def hide(self, text: str) -> str:
        """`text` with `[key]` in place of every secret."""
        for secret in self._secrets:
            text = text.replace(secret, "[key]")
        return text

    def hide_in(self, value: Any) -> Any:
        """A JSON value with `[key]` in place of every secret in its texts."""
        if value is None or not self._secrets:
            return value
        text = json.dumps(value)
        for secret in self._secrets:
            text = text.replace(json.dumps(secret)[1:-1], "[key]")
        return json.loads(text)

    def shorten(self, text: str) -> str:
        """`text` on one line, without secrets, no longer than a message should be."""
        text = " ".join(self.hide(text).split())
        return text if len(text) <= LONGEST_MESSAGE else text[:LONGEST_MESSAGE] + " …"
