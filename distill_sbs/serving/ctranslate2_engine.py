"""CTranslate2 decodes; it sorts inputs by length and divides them into batches by itself.

Enters: a folder of `convert --to=ctranslate2`. Leaves: an `engines.Engine`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import ctranslate2

from distill_sbs import constants, json_lines
from distill_sbs.errors import DamagedError
from distill_sbs.serving.served_folder import CTRANSLATE2, NETWORK_FILES, ServedStudent

_MODEL_FILE, _, VOCABULARY_FILE = NETWORK_FILES[CTRANSLATE2]


class CTranslate2Engine:
    """See `engines.Engine`.

    Args:
      folder: where the network lies.
      student: what it says of itself.
      threads: that compute.
    """

    def __init__(self, folder: str, student: ServedStudent, threads: int) -> None:
        self._max_decode_tokens = student.max_decode_tokens
        self._tokens = read_tokens(folder, student.vocab_size)
        self._ids = {token: number for number, token in enumerate(self._tokens)}
        self._absent = [[self._tokens[number]] for number in student.absent_ids]
        try:
            self._translator = ctranslate2.Translator(
                folder, device="cpu", inter_threads=1, intra_threads=threads
            )
        except (RuntimeError, ValueError) as error:
            raise DamagedError(os.path.join(folder, _MODEL_FILE), error) from None

    def decode(self, rows: Sequence[Sequence[int]], max_batch_size: int) -> list[list[int]]:
        """See `engines.Engine`."""
        results = self._translator.translate_batch(
            [[self._tokens[number] for number in row] for row in rows],
            max_batch_size=max_batch_size,
            beam_size=1,
            # The library's own defaults cut inputs of 1,024 tokens and allow no empty output.
            max_input_length=0,
            min_decoding_length=0,
            max_decoding_length=self._max_decode_tokens,
            suppress_sequences=self._absent or None,
        )
        outputs = ([self._ids[token] for token in result.hypotheses[0]] for result in results)
        return [
            output[: output.index(constants.EOS_ID)] if constants.EOS_ID in output else output
            for output in outputs
        ]


def read_tokens(folder: str, vocab_size: int) -> list[str]:
    """The names of all ids, as CTranslate2 is spoken to.

    Raises:
      DamagedError: they are not as many as the embedding has rows, or not all different.
    """
    path = os.path.join(folder, VOCABULARY_FILE)
    found = json_lines.read_json(path)
    tokens = [each for each in found if isinstance(each, str)] if isinstance(found, list) else []
    if len(tokens) != vocab_size or len(set(tokens)) != vocab_size:
        raise DamagedError(path, f"it is no list of {vocab_size} different tokens")
    return tokens
