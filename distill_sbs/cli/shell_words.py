"""Commands to be copied, as the documentation types them.

Enters: words. Leaves: text that a shell reads as these words.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable


def quote_word(word: str) -> str:
    """A word for the shell, a gin value in double quotes: --gin.NAME="'text'"."""
    if shlex.quote(word) == word:
        return word
    name, equals, value = word.partition("=")
    plain = shlex.quote(name) == name and not set('"$`\\!') & set(value)
    return f'{name}{equals}"{value}"' if plain and equals else shlex.quote(word)


def join_words(words: Iterable[str]) -> str:
    """A command line."""
    return " ".join(map(quote_word, words))
