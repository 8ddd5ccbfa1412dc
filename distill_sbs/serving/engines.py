"""What decodes: a library and an exported network, behind one protocol.

Enters: a folder of `convert --to=ctranslate2` or `--to=onnx`. Leaves: an `Engine`, which turns
input tokens into output tokens, greedily, as `infer` does.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from typing import Protocol

from distill_sbs.errors import UserError
from distill_sbs.serving.served_folder import CTRANSLATE2, ONNX, ServedStudent

# Form -> the library that decodes it.
_LIBRARIES = {CTRANSLATE2: "ctranslate2", ONNX: "onnxruntime"}


class Engine(Protocol):
    """A network that decodes."""

    def decode(self, rows: Sequence[Sequence[int]], max_batch_size: int) -> list[list[int]]:
        """Output tokens of input tokens, end tokens included in the inputs.

        Args:
          rows: token ids [S] of each input.
          max_batch_size: inputs at a time.

        Returns:
          Token ids [L] of each output, at most `max_decode_tokens`, without an end token.
        """


def count_processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def open_engine(folder: str, student: ServedStudent, threads: int = 0) -> Engine:
    """Loads the network.

    Args:
      folder: where it lies.
      student: `served_folder.read_student`'s answer for it.
      threads: that compute; 0: one for each processor that this process may use.

    Raises:
      UserError: the library is not installed.
      DamagedError: the network's files cannot be read.
    """
    library = _LIBRARIES[student.form]
    if importlib.util.find_spec(library) is None:
        raise UserError(
            f"--model={folder} needs {library}, which is not installed; install it: pip install "
            "'distill_sbs[serve]'"
        )
    threads = threads or count_processors()
    # Imported here: each brings its own library, and one is needed.
    if student.form == CTRANSLATE2:
        from distill_sbs.serving.ctranslate2_engine import CTranslate2Engine

        return CTranslate2Engine(folder, student, threads)
    from distill_sbs.serving.onnx_engine import OnnxEngine

    return OnnxEngine(folder, student, threads)
