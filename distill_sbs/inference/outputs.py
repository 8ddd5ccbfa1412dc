"""Why a student's outputs say nothing, in one line.

Enters: decoded tokens and their texts. Leaves: a sentence for the end of a run, where most outputs
are empty or never ended, so that an accuracy of 0.0 % does not stand there unexplained; else
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distill_sbs import constants

# Fewer outputs of a kind than this share are the student's mistakes, not a reason to be told.
_SHARE_TOLD = 0.5


def explain_outputs(
    outputs: Sequence[np.ndarray], texts: Sequence[str], max_decode_tokens: int
) -> str | None:
    """Says so where at least half of the outputs are empty, or did not end.

    Args:
      outputs: tokens [L] of each, with the end token where it ended.
      texts: what they say.
      max_decode_tokens: the longest that an output may be, end token included.

    Returns:
      One line, without a full stop; None where nothing is to be said.
    """
    count = len(outputs)
    ended = [bool(np.any(np.asarray(tokens) == constants.EOS_ID)) for tokens in outputs]
    unended = ended.count(False)
    empty = sum(not text.strip() for text in texts)
    at_once = sum(
        end and not text.strip() for end, text in zip(ended, texts, strict=True)
    )  # of the empty ones
    if unended and unended >= _SHARE_TOLD * count:
        said = f", and {_how_many(empty, count)} empty" if empty else ""
        return (
            f"{_how_many(unended, count)} cut off: no end within "
            f"{max_decode_tokens} tokens{said}; train for longer, or raise MAX_DECODE_TOKENS if it "
            "is too small"
        )
    if empty and empty >= _SHARE_TOLD * count:
        how = "the student ends before it has said a word" if at_once else "the student says blanks"
        return (
            f"{_how_many(empty, count)} empty: {how}; train for longer, or at another LEARNING_RATE"
        )
    return None


def _how_many(part: int, count: int) -> str:
    """`all 8 outputs are`, `5 of 8 outputs are`."""
    if count == 1:
        return "the only output is"
    return f"all {count:,} outputs are" if part == count else f"{part:,} of {count:,} outputs are"
