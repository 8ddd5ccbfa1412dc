"""No regular expression of the package, and no function that reads texts, takes quadratic time.

`tests/helpers/adversarial_text.py` finds every pattern in the source, so a new one is tested
without being named; one that is put together inside a function has to be listed there.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys

import adversarial_text
import pytest


@pytest.mark.slow
def test_everything_is_linear_on_100_kilobytes() -> None:
    done = subprocess.run(
        [sys.executable, adversarial_text.__file__], capture_output=True, text=True, timeout=600
    )
    shown = f"{done.stderr[-3000:]}\nlast: {done.stdout.splitlines()[-1:]}"
    assert done.returncode == 0, shown


@pytest.fixture
def _alarm():
    before = signal.signal(signal.SIGPROF, adversarial_text._stop)
    yield
    signal.signal(signal.SIGPROF, before)


@pytest.mark.parametrize(
    "text", [r"^\((\w)\)[ \t]*(.+?)[ \t]*$", r"\(.*\)", r"\s*\n\s*", r"(\w)+ \(.*\) -> .*\{$"]
)
def test_quadratic_patterns_are_found(
    text: str, _alarm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one stood in `prompts.lettered_choices`: 10 s for 20 kB."""
    monkeypatch.setattr(adversarial_text, "MOST_SECONDS", 0.5)
    pattern = adversarial_text.Pattern("here", text, re.MULTILINE, ("search",))
    assert "takes too long" in (adversarial_text.check_pattern(pattern) or "")


def test_the_package_is_searched() -> None:
    patterns, _ = adversarial_text.collect_patterns()
    found = {pattern.place.partition(":")[0]: pattern for pattern in patterns}
    assert len(patterns) > 50
    assert "distill_sbs/teacher/prompts.py" in found and "distill_sbs/json_lines.py" in found
