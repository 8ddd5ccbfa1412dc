"""Training inputs that stand among what a run is evaluated on.

Enters: input texts. Leaves: which of them are told apart from those of evaluation by blanks and
case alone; their prefixes (`predict: `, `explain: `) do not count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from distill_sbs import constants

_PREFIXES = (constants.LABEL_PREFIX, constants.RATIONALE_PREFIX)


def fingerprint(text: str) -> bytes:
    """SHA-256 of an input without prefix, in small letters, blanks collapsed."""
    for prefix in _PREFIXES:
        text = text.removeprefix(prefix)
    return hashlib.sha256(" ".join(text.split()).lower().encode()).digest()


def fingerprints(texts: Iterable[str]) -> frozenset[bytes]:
    """The fingerprints of all."""
    return frozenset(map(fingerprint, texts))
