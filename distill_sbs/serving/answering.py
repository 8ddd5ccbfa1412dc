"""From texts to texts: prefix, tokens, network, tokens, text, as `infer` does it with JAX.

Enters: a folder of `convert --to=ctranslate2` or `--to=onnx`, and inputs without prefix. Leaves:
labels or rationales.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from distill_sbs import constants
from distill_sbs.data import tokenizer as tokenizers
from distill_sbs.serving.engines import open_engine
from distill_sbs.serving.served_folder import ServedStudent, read_student

LABEL, RATIONALE = "label", "rationale"


class Answer(NamedTuple):
    """What a student says to one input.

    Attributes:
      text: the label or the rationale.
      input_cut: whether the input was longer than the student reads, and its end left out.
      output_cut: whether the text ends where the longest answer does, not where the student ended.
    """

    text: str
    input_cut: bool
    output_cut: bool


class Answerer:
    """A student, loaded; its methods may be called from any thread, one call at a time.

    Args:
      folder: of `convert`.
      threads: that compute; 0: one for each processor that this process may use.

    Attributes:
      student: what the folder says of itself.

    Raises:
      UserError: no such folder, or one of another kind, or a library is missing.
      DamagedError: a file is missing or not as it was written.
    """

    def __init__(self, folder: str, threads: int = 0) -> None:
        self.student: ServedStudent = read_student(folder)
        self._tokenizer = tokenizers.from_description(self.student.vocabulary)
        self._engine = open_engine(folder, self.student, threads)

    def tokens(self, text: str, task: str) -> tuple[list[int], bool]:
        """Token ids [S] of a text without prefix, and whether it was cut."""
        ids = tokenizers.encode_text(self._tokenizer, self.student.prefixes[task] + text)
        kept = ids[: self.student.max_input_tokens - 1]
        return [*kept, constants.EOS_ID], len(kept) < len(ids)

    def answer(self, texts: Sequence[str], task: str = LABEL, batch_size: int = 32) -> list[Answer]:
        """Answers texts without prefixes.

        Args:
          texts: the inputs.
          task: 'label' or 'rationale'.
          batch_size: inputs decoded at a time.
        """
        read = [self.tokens(text, task) for text in texts]
        outputs = self._engine.decode([row for row, _ in read], batch_size)
        longest = self.student.max_decode_tokens
        return [
            Answer(self._tokenizer.decode(output), cut, len(output) >= longest)
            for output, (_, cut) in zip(outputs, read, strict=True)
        ]
