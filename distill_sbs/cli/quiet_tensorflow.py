"""Imports TensorFlow without its start-up lines on the terminal, and off the GPU.

Enters: nothing. Leaves: TensorFlow imported. TensorFlow's C++ side logs a screenful (oneDNN, CUDA
drivers it did not find) before it reads `TF_CPP_MIN_LOG_LEVEL`, straight to file descriptor 2.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile

from distill_sbs.cli import terminal


def import_tensorflow() -> None:
    """Imports TensorFlow; what it logs is dropped, or shown after all if the import fails."""
    if "tensorflow" in sys.modules:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    stderr = os.dup(2)
    failed = False
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            tensorflow = importlib.import_module("tensorflow")
            # TensorFlow reads records here; an accelerator's memory is JAX's.
            tensorflow.config.set_visible_devices([], "GPU")
        except Exception:
            failed = True
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            if failed:
                log.seek(0)
                terminal.say(log.read().decode(errors="replace"), stderr=True)
