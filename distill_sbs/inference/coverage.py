"""Whether a student's vocabulary covers what it is asked, before its parameters are read.

Enters: a checkpoint and texts. Leaves: nothing; or one line that says how many of the texts hold
pieces that a trimmed vocabulary lacks, and where the first one is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from distill_sbs.checkpoint import steps
from distill_sbs.data.tokenizer import encode_text
from distill_sbs.data.trimmed_ids import TrimmedIds, check_covered


def check_inputs(
    checkpoint: str, task: str, texts: Sequence[str], what: str, place: Callable[[int], str]
) -> None:
    """Refuses texts that a student cannot read; any student with its whole vocabulary reads all.

    Args:
      checkpoint: as `Student.load` takes it.
      task: 'label' or 'rationale'.
      texts: inputs without prefix.
      what: they are, for the message.
      place: where the text of a number stands, for the message.

    Raises:
      UncoveredTextError: there are such texts.
      UserError: there is no checkpoint, or it is damaged.
    """
    description = steps.read_description(steps.find_step_folder(checkpoint))
    trimmed = TrimmedIds.of(description.vocabulary)
    if trimmed is None:
        return
    prefix, encoder = description.prefixes[task], _Lenient(trimmed)
    encoded = (np.array(encode_text(encoder, prefix + text), np.int32) for text in texts)
    check_covered(trimmed, encoded, what, place)


class _Lenient:
    """Encodes what is not covered, too."""

    def __init__(self, ids: TrimmedIds) -> None:
        self._ids = ids

    def encode(self, s: str, /) -> Sequence[int]:
        return self._ids.encode(s)
