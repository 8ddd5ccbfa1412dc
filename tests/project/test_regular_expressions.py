"""No regular expression of the package, and no function that reads texts, takes quadratic time.

`tests/helpers/adversarial_text.py` finds every pattern in the source, so a new one is tested
without being named; one that is put together inside a function has to be listed there.
"""

from __future__ import annotations

import subprocess
import sys

import adversarial_text
import pytest


def check(*patterns: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: its handler of SIGPROF is to interrupt nothing else."""
    command = [sys.executable, adversarial_text.__file__, *patterns]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_everything_is_linear_on_100_kilobytes() -> None:
    done = check()
    shown = f"{done.stderr[-3000:]}\nlast: {done.stdout.splitlines()[-1:]}"
    assert done.returncode == 0, shown


@pytest.mark.slow
def test_quadratic_patterns_are_found() -> None:
    """The first one stood in `prompts.lettered_choices`: 10 s for 20 kB."""
    patterns = [r"^\((\w)\)[ \t]*(.+?)[ \t]*$", r"\(.*\)", r"\s*\n\s*", r"(\w)+ \(.*\) -> .*\{$"]
    done = check(*patterns)
    assert done.returncode == 1
    found = done.stderr.splitlines()
    assert len(found) == len(patterns) and all("takes too long" in each for each in found)


@pytest.mark.slow
def test_the_package_is_searched() -> None:
    patterns, _ = adversarial_text.collect_patterns()
    found = {pattern.place.partition(":")[0]: pattern for pattern in patterns}
    assert len(patterns) > 50
    assert "distill_sbs/teacher/prompts.py" in found and "distill_sbs/json_lines.py" in found
