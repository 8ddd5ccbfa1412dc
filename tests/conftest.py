"""Shared fixtures: the folder with published raw data, and silence from TensorFlow."""

from __future__ import annotations

import os
import pathlib

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("JAX_PLATFORMS", "cpu")


@pytest.fixture(scope="session")
def source_dir() -> pathlib.Path:
    """The published raw data; skips, saying so, where it is not at hand."""
    folder = os.environ.get("DISTILL_SBS_SOURCE_DIR")
    if not folder:
        pytest.skip("DISTILL_SBS_SOURCE_DIR is unset: the published raw data is not at hand")
    return pathlib.Path(folder)
