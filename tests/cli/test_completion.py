"""Tab in a shell: commands, their flags and macros, as a real Bash completes them."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

from distill_sbs import resources
from distill_sbs.__main__ import COMMANDS

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.fixture
def complete(tmp_path: pathlib.Path):
    """What Bash offers for the last of some words."""
    program = tmp_path / "distill_sbs"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m distill_sbs "$@"\n')
    program.chmod(0o755)

    def offer(*words: str) -> list[str]:
        quoted = " ".join(f"'{word}'" for word in (str(program), *words))
        script = (
            f"source {resources.completion_script()}; COMP_WORDS=({quoted}); "
            f"COMP_CWORD={len(words)}; _distill_sbs; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        )
        done = subprocess.run(
            ["bash", "-c", script],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == 0 and not done.stderr, done.stderr
        return done.stdout.split()

    return offer


def test_commands(complete) -> None:
    assert complete("") == list(COMMANDS)
    assert complete("in") == ["inspect", "infer"]
    assert complete("nothing") == []


def test_flags_and_macros(complete) -> None:
    assert complete("evaluate", "--pa") == ["--page="]
    assert complete("train", "--gin.TRAIN") == ["--gin.TRAIN_STEPS="]
    assert complete("train", "a_file") == []
