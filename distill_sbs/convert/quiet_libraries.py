"""Libraries that report on their own, silenced: this project's programs say what they do.

Enters and leaves: nothing.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator


def quiet_transformers() -> None:
    """Without bars and advice."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


@contextlib.contextmanager
def quiet_export() -> Iterator[None]:
    """Inside, torch's exporter and what it stands on log and warn of nothing below an error."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "root")]
    before = [each.level for each in loggers]
    try:
        for each in loggers:
            each.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, before, strict=True):
            each.setLevel(level)
